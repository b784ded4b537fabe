//! What a person sees while a command waits: a live line per service on a terminal, plain lines elsewhere.

use super::{apps, out, replicas};
use gantry_api::http::{Replica, ServiceSummary};
use gantry_api::wire::ReplicaState;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;

/// One thing that is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its name.
    pub(crate) name: String,
    /// How it stands.
    pub(crate) text: String,
    /// Whether the wait for it is over.
    pub(crate) done: bool,
}

/// The line of one service.
pub(crate) fn service_line(service: &ServiceSummary, of_app: &[Replica]) -> Line {
    let mut text = match service.settled {
        true if service.wanted > 0 && service.completed == service.wanted => "completed".to_owned(),
        true if service.wanted == 0 => "stopped".to_owned(),
        _ => format!("{} ready", apps::ready(service)),
    };
    let own: Vec<&Replica> = of_app.iter().filter(|replica| replica.name.service == service.name).collect();
    if !service.settled {
        if own.iter().any(|replica| !replica.current) {
            text.push_str(&format!(", {}/{} updated", service.updated, service.wanted));
        }
        if let Some(trouble) = trouble(service, &own) {
            text.push_str(": ");
            text.push_str(&trouble);
        }
    }
    Line { name: service.name.to_string(), text, done: service.settled }
}

/// Why a service is not as wanted: its own message and the first of its replicas that says what is wrong.
fn trouble(service: &ServiceSummary, own: &[&Replica]) -> Option<String> {
    let message = service.message.as_deref().map(super::one_line).filter(|message| !message.is_empty());
    let rank = |replica: &Replica| match replica.state {
        ReplicaState::Failed => 0,
        ReplicaState::BackingOff => 1,
        ReplicaState::Running => 2,
        _ => 3,
    };
    let mut bad: Vec<&&Replica> = own.iter().filter(|replica| replica.current && !replica.ready).collect();
    bad.sort_by_key(|replica| (rank(replica), replica.name.number));
    let told = bad.iter().find_map(|replica| Some(format!("{}: {}", replica.name, replicas::why(replica)?)));
    let preparing = || {
        let replica = bad.iter().find(|replica| replica.state == ReplicaState::Preparing && replica.node.is_some())?;
        Some(format!("{}: preparing {}", replica.name, replica.image))
    };
    let replica = told.or_else(preparing);
    match (message, replica) {
        (Some(message), Some(replica)) if !replica.ends_with(&message) => Some(format!("{message}; {replica}")),
        (message, replica) => message.or(replica),
    }
}

/// Shows lines as they change.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Lines that are drawn again in place.
    Live {
        /// All of them.
        all: MultiProgress,
        /// By name.
        bars: BTreeMap<String, ProgressBar>,
    },
    /// A line each time one changes.
    Plain {
        /// What was said last, by name.
        said: BTreeMap<String, String>,
    },
}

impl Progress {
    /// Live when standard error is a terminal.
    pub(crate) fn new() -> Self {
        if std::io::stderr().is_terminal() {
            Self::Live { all: MultiProgress::new(), bars: BTreeMap::new() }
        } else {
            Self::Plain { said: BTreeMap::new() }
        }
    }

    /// Shows how things stand now.
    pub(crate) fn show(&mut self, lines: &[Line]) {
        match self {
            Self::Live { all, bars } => {
                let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
                for line in lines {
                    let bar = bars.entry(line.name.clone()).or_insert_with(|| all.add(ProgressBar::new_spinner()));
                    bar.set_style(live_style(line.done));
                    bar.set_prefix(format!("{:width$}", line.name));
                    bar.set_message(line.text.clone());
                    bar.tick();
                }
            }
            Self::Plain { said } => {
                for line in changed(said, lines) {
                    out::note(line);
                }
            }
        }
    }

    /// Leaves the last picture standing.
    pub(crate) fn end(&mut self) {
        if let Self::Live { bars, .. } = self {
            bars.values().for_each(ProgressBar::abandon);
        }
    }
}

fn live_style(done: bool) -> ProgressStyle {
    let template = if done { "✔ {prefix}  {wide_msg}" } else { "{spinner} {prefix}  {wide_msg}" };
    ProgressStyle::with_template(template).expect("the template is ours")
}

/// The lines that differ from what was said before, and remembers them.
fn changed(said: &mut BTreeMap<String, String>, lines: &[Line]) -> Vec<String> {
    let mut news = Vec::new();
    for line in lines {
        let text = format!("{}: {}", line.name, line.text);
        if said.insert(line.name.clone(), text.clone()).as_ref() != Some(&text) {
            news.push(text);
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::{exit, replica, service};

    #[test]
    fn a_service_says_how_far_it_is_and_what_is_in_its_way() {
        let mut crashing = replica("api", 2, ReplicaState::BackingOff);
        crashing.last_exit = Some(exit(Some(1), None));
        let mut old = replica("api", 1, ReplicaState::Running);
        old.current = false;
        let mut waiting = service("api", 3, 0);
        waiting.message = Some("waits for db to be healthy".to_owned());
        let mut job = service("api", 1, 0);
        (job.completed, job.settled) = (1, true);
        for (service, replicas, want) in [
            (service("api", 2, 2), vec![], "2/2 ready"),
            (service("api", 2, 1), vec![], "1/2 ready"),
            (service("api", 0, 0), vec![], "stopped"),
            (job, vec![], "completed"),
            (waiting, vec![], "0/3 ready: waits for db to be healthy"),
            (service("api", 2, 1), vec![old], "1/2 ready, 1/2 updated"),
            (service("api", 2, 1), vec![crashing.clone()], "1/2 ready: shop-api-2: it ended with exit code 1"),
            (service("db", 2, 1), vec![crashing.clone()], "1/2 ready"),
            (
                service("db", 1, 0),
                vec![replica("db", 1, ReplicaState::Preparing)],
                "0/1 ready: shop-db-1: preparing db:1",
            ),
        ] {
            assert_eq!(service_line(&service, &replicas).text, want);
        }
        let mut paused = service("api", 2, 1);
        paused.message = Some("rolling change paused".to_owned());
        let text = service_line(&paused, &[crashing]).text;
        assert_eq!(text, "1/2 ready: rolling change paused; shop-api-2: it ended with exit code 1");
    }

    #[test]
    fn plain_lines_come_only_when_something_changed() {
        let line = |text: &str| Line { name: "api".to_owned(), text: text.to_owned(), done: false };
        let mut said = BTreeMap::new();
        assert_eq!(changed(&mut said, &[line("0/1 ready")]), ["api: 0/1 ready"]);
        assert!(changed(&mut said, &[line("0/1 ready")]).is_empty());
        assert_eq!(changed(&mut said, &[line("1/1 ready")]), ["api: 1/1 ready"]);
    }
}
