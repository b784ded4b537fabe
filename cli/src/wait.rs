//! Waiting for what was recorded to come true. Giving up on the wait changes nothing.

use crate::client::{Client, ClientError};
use crate::error::{CliError, INTERRUPTED, NOT_READY, Outcome};
use crate::render::progress::{Line, Progress, service_line};
use crate::render::{count, out};
use gantry_api::http::AppDetail;
use gantry_api::ids::{AppName, Revision, ServiceName};
use gantry_api::units::Millis;
use std::future::Future;
use std::time::Duration;

/// Agents report twice a second, so looking more often shows nothing new.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long to wait, for every command that can.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Limit {
    /// Wait this long at most: seconds, or a duration such as `2m`.
    #[arg(long, visible_alias = "wait-timeout", value_name = "TIME", default_value = "60", value_parser = limit)]
    pub(crate) timeout: Duration,
}

/// Seconds as compose takes them, or a duration with its unit.
fn limit(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(u64::from(seconds)));
    }
    text.parse::<Millis>().map(|ms| Duration::from_millis(ms.0)).map_err(|error| error.to_string())
}

/// One look at how things stand.
enum Look {
    /// All is as wanted.
    Done(Vec<Line>),
    /// Not yet.
    Open(Vec<Line>),
}

/// Waits until every service of `app`, or those in `only`, is as recorded in `revision` or later.
///
/// # Errors
/// The time is over (exit code 3), or the app is gone.
pub(crate) async fn until_settled(
    client: &Client,
    app: &AppName,
    revision: Revision,
    only: Option<&[ServiceName]>,
    limit: Limit,
) -> Outcome {
    let look = async || match client.app(app).await {
        Ok(detail) => Ok(judge(&detail, revision, only)),
        Err(error) if error.is_not_found() => {
            Err(CliError::new(format!("app {app} was removed while this waited for it")))
        }
        Err(error) => away(error),
    };
    until(look, limit, &format!("{app} is not ready"), &format!("`gantry ps {app}` and `gantry logs {app}`")).await
}

/// Waits until no replica of `app` is left.
///
/// # Errors
/// The time is over (exit code 3).
pub(crate) async fn until_gone(client: &Client, app: &AppName, limit: Limit) -> Outcome {
    let look = async || match client.replicas(Some(app)).await {
        Ok(replicas) if replicas.is_empty() => Ok(Look::Done(Vec::new())),
        Err(error) if error.is_not_found() => Ok(Look::Done(Vec::new())),
        Ok(replicas) => {
            let text = format!("{} left", count(replicas.len() as u64, "replica"));
            Ok(Look::Open(vec![Line { name: app.to_string(), text, done: false }]))
        }
        Err(error) => away(error),
    };
    until(look, limit, &format!("{app} is not gone"), &format!("`gantry ps -a {app}`")).await
}

/// A scheduler that restarts meanwhile is waited for; a refusal is final.
fn away(error: ClientError) -> Result<Look, CliError> {
    match error {
        ClientError::Unreachable { .. } | ClientError::Broken { .. } | ClientError::Silent { .. } => {
            let text = CliError::from(error).message;
            Ok(Look::Open(vec![Line { name: "scheduler".to_owned(), text, done: false }]))
        }
        ClientError::Foreign { .. } | ClientError::Refused(_) => Err(error.into()),
    }
}

fn judge(detail: &AppDetail, revision: Revision, only: Option<&[ServiceName]>) -> Look {
    let services = detail.summary.services.iter().filter(|s| only.is_none_or(|only| only.contains(&s.name)));
    let lines: Vec<Line> = services.map(|service| service_line(service, &detail.replicas)).collect();
    if detail.summary.revision >= revision && lines.iter().all(|line| line.done) {
        Look::Done(lines)
    } else {
        Look::Open(lines)
    }
}

/// Looks again and again until done, the limit, or Ctrl-C.
async fn until<F>(look: impl Fn() -> F, limit: Limit, failure: &str, commands: &str) -> Outcome
where
    F: Future<Output = Result<Look, CliError>>,
{
    let mut progress = Progress::new();
    let mut last = Vec::new();
    let watch = async {
        loop {
            match look().await? {
                Look::Done(lines) => {
                    progress.show(&lines);
                    return Ok::<(), CliError>(());
                }
                Look::Open(lines) => {
                    progress.show(&lines);
                    last = lines;
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let ended = tokio::select! {
        result = watch => Some(result),
        _ = tokio::signal::ctrl_c() => None,
        () = tokio::time::sleep(limit.timeout) => Some(Err(late(&last, limit, failure, commands))),
    };
    progress.end();
    ended.map_or_else(
        || {
            out::note(format_args!("gantry: interrupted; what was recorded goes on. Look with {commands}"));
            Ok(INTERRUPTED)
        },
        |result| result.map(|()| 0),
    )
}

fn late(last: &[Line], limit: Limit, failure: &str, commands: &str) -> CliError {
    let open: Vec<String> =
        last.iter().filter(|line| !line.done).map(|line| format!("{} {}", line.name, line.text)).collect();
    let after = Millis(u64::try_from(limit.timeout.as_millis()).unwrap_or(u64::MAX));
    let state = if open.is_empty() { String::new() } else { format!(" ({})", open.join("; ")) };
    CliError::new(format!("{failure} after {after}{state}"))
        .hint(format!("what was recorded stays in force; look with {commands}"))
        .code(NOT_READY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::{detail, service};

    #[test]
    fn a_limit_is_seconds_or_a_duration() {
        assert_eq!(limit("90"), Ok(Duration::from_secs(90)));
        assert_eq!(limit("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(limit("0"), Ok(Duration::ZERO));
        assert!(limit("soon").is_err() && limit("-1").is_err());
    }

    #[test]
    fn an_older_picture_does_not_count_as_settled() {
        let done = |look| matches!(look, Look::Done(_));
        let ready = detail(vec![service("api", 1, 1)], Vec::new());
        assert!(done(judge(&ready, Revision(7), None)));
        assert!(!done(judge(&ready, Revision(8), None)));
        let half = detail(vec![service("api", 1, 1), service("web", 1, 0)], Vec::new());
        assert!(!done(judge(&half, Revision(7), None)));
        assert!(done(judge(&half, Revision(7), Some(&["api".parse().unwrap()]))));
    }

    #[test]
    fn lateness_names_what_is_missing() {
        let lines = [
            Line { name: "api".to_owned(), text: "1/2 ready".to_owned(), done: false },
            Line { name: "db".to_owned(), text: "1/1 ready".to_owned(), done: true },
        ];
        let error = late(&lines, Limit { timeout: Duration::from_secs(60) }, "shop is not ready", "`gantry ps shop`");
        assert_eq!(error.message, "shop is not ready after 1m (api 1/2 ready)");
        assert_eq!(error.code, 3);
    }
}
