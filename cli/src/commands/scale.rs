//! `gantry scale`.

use crate::client::{Client, block_on};
use crate::error::{CliError, Outcome, USAGE};
use crate::global::Global;
use crate::project::Project;
use crate::render::out;
use crate::wait::{self, Limit};
use gantry_api::ids::{AppName, Revision, ServiceName};
use std::str::FromStr;

/// Change how many replicas of services should run.
///
/// Done when the scheduler has recorded the numbers; with `--wait`, when that many are ready.
///
/// Exit codes: 0 done, 1 refused, 2 wrong usage, 3 not ready in time, 130 interrupted (the change goes on).
#[derive(Debug, clap::Args)]
pub(crate) struct Scale {
    /// App and the numbers for its services; 0 stops a service and keeps its description. Without an app, the one of
    /// `-p` or of the manifest.
    #[arg(required = true, value_name = "[APP] SERVICE=N")]
    words: Vec<Word>,
    #[command(flatten)]
    project: Project,
    /// Wait until that many replicas are ready.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    limit: Limit,
}

/// One word of the command line.
#[derive(Debug, Clone, PartialEq)]
enum Word {
    /// An app.
    App(AppName),
    /// A service's number.
    Number(ServiceName, u32),
}

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((service, number)) = text.split_once('=') else {
            return text.parse().map(Self::App).map_err(|error: gantry_api::ids::NameError| error.to_string());
        };
        let service = service.parse().map_err(|error: gantry_api::ids::NameError| error.to_string())?;
        let number = number.parse().map_err(|_| format!("`{number}` is not a number of replicas"))?;
        Ok(Self::Number(service, number))
    }
}

/// Does it.
pub(crate) fn run(args: Scale, global: &Global) -> Outcome {
    let (app, numbers) = split(args.words)?;
    let app = match app.or_else(|| args.project.project_name.clone()) {
        Some(app) => app,
        None => args.project.load()?.name,
    };
    let client = Client::new(global)?;
    block_on(async {
        let mut revision = Revision(0);
        for (service, number) in &numbers {
            revision = revision.max(client.scale(&app, service, *number).await?.revision);
            out::note(format_args!("{app}/{service}: {number} wanted"));
        }
        if !args.wait {
            return Ok(0);
        }
        let services: Vec<ServiceName> = numbers.into_iter().map(|(service, _)| service).collect();
        wait::until_settled(&client, &app, revision, Some(&services), args.limit).await
    })
}

type Numbers = Vec<(ServiceName, u32)>;

/// An app at most, first, then at least one number.
fn split(words: Vec<Word>) -> Result<(Option<AppName>, Numbers), CliError> {
    let usage = |message: String| {
        CliError::new(message)
            .hint("write it as `gantry scale APP SERVICE=N`, such as `gantry scale shop api=3`")
            .code(USAGE)
    };
    let (mut app, mut numbers) = (None, Vec::new());
    for (index, word) in words.into_iter().enumerate() {
        match word {
            Word::App(name) if index == 0 => app = Some(name),
            Word::App(name) => return Err(usage(format!("`{name}` has no number"))),
            Word::Number(service, number) => numbers.push((service, number)),
        }
    }
    if numbers.is_empty() { Err(usage("no service has a number".to_owned())) } else { Ok((app, numbers)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_an_app_and_numbers() {
        for (line, want) in [
            ("shop api=3", Ok("shop api=3")),
            ("api=3 web=0", Ok("- api=3 web=0")),
            ("shop", Err("no service has a number")),
            ("shop api", Err("`api` has no number")),
            ("api=3 shop", Err("`shop` has no number")),
        ] {
            let words = line.split(' ').map(|word| word.parse().unwrap()).collect();
            let got = split(words).map(|(app, numbers)| {
                let app = app.map_or_else(|| "-".to_owned(), |app| app.to_string());
                numbers.iter().fold(app, |text, (service, number)| format!("{text} {service}={number}"))
            });
            match want {
                Ok(want) => assert_eq!(got.unwrap(), want),
                Err(want) => {
                    let error = got.unwrap_err();
                    assert_eq!((error.message.as_str(), error.code), (want, 2));
                }
            }
        }
        for bad in ["api=", "api=-1", "api=x", "=3", "Api=3", "a b"] {
            assert!(bad.parse::<Word>().is_err(), "{bad}");
        }
    }
}
