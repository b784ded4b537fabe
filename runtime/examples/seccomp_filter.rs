//! Show what filter a bundle's seccomp profile becomes: one instruction per line, as C initialisers.
//!
//!     cargo run -p gantry-runtime --example seccomp_filter config.json

use gantry_runtime::config::Config;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(file) = std::env::args().nth(1) else {
        eprintln!("usage: seccomp_filter CONFIG");
        return ExitCode::from(2);
    };
    match filter(&file) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("seccomp_filter: {error}");
            ExitCode::FAILURE
        }
    }
}

fn filter(file: &str) -> Result<String, Box<dyn std::error::Error>> {
    let config: Config = serde_json::from_slice(&std::fs::read(file)?)?;
    let profile = config.linux.seccomp.ok_or("there is no `linux.seccomp`")?;
    let compiled = gantry_runtime::seccomp::compile(&profile)?;
    let line = |one: &gantry_runtime::sys::seccomp::Instruction| {
        format!("{{ {:#x}, {}, {}, {:#x} }},\n", one.code, one.jt, one.jf, one.k)
    };
    Ok(compiled.program.iter().map(line).collect())
}
