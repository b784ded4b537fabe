//! `gantry version`.

use crate::client::{Client, block_on};
use crate::error::Outcome;
use crate::global::Global;
use crate::render::out;
use serde::Serialize;

/// Show the version of this command and of the scheduler.
///
/// Exit codes: 0 done, 1 the scheduler cannot be reached (this command's version is printed all the same).
#[derive(Debug, clap::Args)]
pub(crate) struct Version {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Versions {
    client: ClientVersion,
    server: Option<gantry_api::http::Version>,
}

#[derive(Debug, Serialize)]
struct ClientVersion {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

/// Does it.
pub(crate) fn run(args: Version, global: &Global) -> Outcome {
    let client =
        ClientVersion { version: env!("CARGO_PKG_VERSION"), os: std::env::consts::OS, arch: std::env::consts::ARCH };
    let scheduler = Client::new(global).and_then(|scheduler| {
        let version = block_on(scheduler.version())?;
        Ok((version, scheduler.socket().to_owned()))
    });
    if args.json {
        let server = scheduler.as_ref().ok().map(|(version, _)| version.clone());
        out::json(&Versions { client, server })?;
    } else {
        out::line(format_args!("client  {} ({}, {})", client.version, client.os, client.arch))?;
        if let Ok((version, socket)) = &scheduler {
            out::line(format_args!("server  {} (API {}) at {}", version.version, version.api, socket.display()))?;
        }
    }
    scheduler.map(|_| 0)
}
