//! The tasks of this repository: `cargo xtask help`.

mod bench;
mod binaries;
mod demo;
mod error;
mod files;
mod hammer;
mod host;
mod http;
mod images;
mod lab;
mod process;
mod show;
mod suite;
mod sys;

use error::{Error, Result};
use std::process::ExitCode;

const HELP: &str = "\
Tasks of this repository. Those that need root or packages of the system say so.

    cargo xtask demo [--keep-going]            build, make images, bring up a lab, deploy a shop, break things
                                               (on port 8080 of this host, or on the one in PORT)
    cargo xtask demo --down                    remove the demo's lab
    cargo xtask test [--quick]                 format, lints and every test; --quick: unit tests only
    cargo xtask build                          target/release/gantry and target/release/gantry-runtime
    cargo xtask images [--refresh] [NAME...]   OCI images from Debian packages, in .cache/images/NAME.tar;
                                               --refresh takes the newest packages
    cargo xtask bench NAME [--rounds N] [--check] [--save]
                                               measured figures beside their aims; --check: fail when one falls
                                               short, --save: keep all samples in docs/benchmarks/NAME.txt
    cargo xtask help                           this text
";

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let name = if args.is_empty() { "help".to_owned() } else { args.remove(0) };
    match task(&name, &args) {
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

fn task(name: &str, args: &[String]) -> Result<()> {
    match name {
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        "images" => images::task(args),
        "build" => binaries::task(args),
        "demo" => demo::task(args),
        "test" => suite::task(args),
        "bench" => bench::task(args),
        "fetch" => http::task(args), // for the demo's own use, inside a node
        other => Err(Error::Usage(format!("no task `{other}`"))),
    }
}
