//! Words for people and for the programs that call us: standard error, and the `--log` file.

use crate::args::Global;
use crate::error::{Because, Failure, Outcome};
use std::fs::OpenOptions;
use std::io::Write;
use std::time::SystemTime;

/// One line on standard error. A reader that has gone is no reason to stop.
fn show(text: &str) {
    let text = crate::error::on_one_line(text);
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// The answer of a command, on standard output.
///
/// # Errors
/// It cannot be written.
pub fn print(text: &str) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).because(|| "cannot write to standard output".to_owned())
}

/// Show a failure and log it.
pub fn failure(global: &Global, failure: &Failure) {
    show(&format!("gantry-runtime: {failure}"));
    if let Some(hint) = &failure.hint {
        show(&format!("hint: {hint}"));
    }
    log(global, "error", &failure.to_string());
}

/// Say something that did not stop the command: in the log file, or without one on standard error, which is the
/// container's own where a client started us.
pub fn warning(global: &Global, text: &str) {
    if global.log.is_none() {
        show(&format!("gantry-runtime: warning: {text}"));
    }
    log(global, "warning", text);
}

/// Say how a container ended that ran in the foreground: on standard error in any case, for its output has ended.
pub fn ended(global: &Global, text: &str) {
    show(&format!("gantry-runtime: warning: {text}"));
    log(global, "warning", text);
}

/// Log with `--debug` only; without a log file, on standard error.
pub fn debug(global: &Global, text: &str) {
    if global.debug && global.log.is_none() {
        show(&line(false, "debug", text));
    } else if global.debug {
        log(global, "debug", text);
    }
}

/// A line in one of runc's formats, which callers parse.
fn line(json: bool, level: &str, text: &str) -> String {
    let time = crate::time::rfc3339(SystemTime::now());
    if json {
        serde_json::json!({"level": level, "msg": text, "time": time}).to_string()
    } else {
        format!("time=\"{time}\" level={level} msg={text:?}")
    }
}

/// Append one line to the log file.
fn log(global: &Global, level: &str, text: &str) {
    let Some(path) = &global.log else { return };
    let line = line(global.log_json, level, text);
    let file = OpenOptions::new().append(true).create(true).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
        show(&format!("gantry-runtime: cannot write `{}`: {error}", path.display()));
    }
}
