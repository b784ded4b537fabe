//! The `gantry-runtime` program; see the library for how it works.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(gantry_runtime::run(std::env::args_os().skip(1)))
}
