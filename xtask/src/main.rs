//! The tasks of this repository: `cargo xtask help`.

mod error;
mod files;
mod host;
mod images;
mod process;

use error::{Error, Result};
use std::process::ExitCode;

const HELP: &str = "\
Tasks of this repository. Those that need root or packages of the system say so.

    cargo xtask images [--refresh] [NAME...]   OCI images from Debian packages, in .cache/images/NAME.tar
    cargo xtask help                           this text
";

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let name = if args.is_empty() { "help".to_owned() } else { args.remove(0) };
    match task(&name, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {}", error.chain());
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(if matches!(error, Error::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn task(name: &str, args: Vec<String>) -> Result<()> {
    match name {
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        "images" => images::task(args),
        other => Err(Error::Usage(format!("no task `{other}`"))),
    }
}
