//! Show what filter a bundle's seccomp profile becomes: one instruction per line, as C initialisers; or how many
//! microseconds that takes.
//!
//!     cargo run -p gantry-runtime --example seccomp_filter config.json
//!     cargo run --release -p gantry-runtime --example seccomp_filter config.json time

use gantry_runtime::config::Config;
use std::process::ExitCode;
use std::time::Instant;

/// How often a profile is compiled for its median.
const ROUNDS: usize = 2001;

fn main() -> ExitCode {
    let Some(file) = std::env::args().nth(1) else {
        eprintln!("usage: seccomp_filter CONFIG [time]");
        return ExitCode::from(2);
    };
    let timed = std::env::args().nth(2).as_deref() == Some("time");
    match filter(&file, timed) {
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

fn filter(file: &str, timed: bool) -> Result<String, Box<dyn std::error::Error>> {
    let config: Config = serde_json::from_slice(&std::fs::read(file)?)?;
    let profile = config.linux.seccomp.ok_or("there is no `linux.seccomp`")?;
    let compiled = gantry_runtime::seccomp::compile(&profile)?;
    if timed {
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            std::hint::black_box(gantry_runtime::seccomp::compile(&profile)?);
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        return Ok(format!("{:.1}\n", times[ROUNDS / 2].as_secs_f64() * 1e6));
    }
    let line = |one: &gantry_runtime::sys::seccomp::Instruction| {
        format!("{{ {:#x}, {}, {}, {:#x} }},\n", one.code, one.jt, one.jf, one.k)
    };
    Ok(compiled.program.iter().map(line).collect())
}
