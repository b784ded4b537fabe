//! Words for people and for the programs that call us: standard error, and the `--log` file.

use crate::args::Global;
use crate::error::Failure;
use std::fs::OpenOptions;
use std::io::Write;
use std::time::SystemTime;

/// Show a failure and log it.
pub fn failure(global: &Global, failure: &Failure) {
    eprintln!("gantry-runtime: {failure}");
    if let Some(hint) = &failure.hint {
        eprintln!("hint: {hint}");
    }
    log(global, "error", &failure.to_string());
}

/// Show and log something that did not stop the command.
pub fn warning(global: &Global, text: &str) {
    eprintln!("gantry-runtime: warning: {text}");
    log(global, "warning", text);
}

/// Log with `--debug` only.
pub fn debug(global: &Global, text: &str) {
    if global.debug {
        log(global, "debug", text);
    }
}

/// Append one line to the log file, in runc's formats, which callers parse.
fn log(global: &Global, level: &str, text: &str) {
    let Some(path) = &global.log else { return };
    let time = crate::time::rfc3339(SystemTime::now());
    let line = if global.log_json {
        serde_json::json!({"level": level, "msg": text, "time": time}).to_string()
    } else {
        format!("time=\"{time}\" level={level} msg={text:?}")
    };
    let file = OpenOptions::new().append(true).create(true).open(path);
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
        eprintln!("gantry-runtime: cannot write `{}`: {error}", path.display());
    }
}
