//! Replicas: one line each, status in docker's words.

use super::{brief, one_line, table::table, time};
use gantry_api::http::Replica;
use gantry_api::wire::{Exit, ReplicaState};

/// `gantry ps`.
pub(crate) fn listing(replicas: &[Replica], now_ms: u64) -> String {
    let rows = replicas.iter().map(|replica| {
        [
            replica.name.to_string(),
            replica.image.clone(),
            replica.node.as_ref().map_or_else(String::new, ToString::to_string),
            brief(&status(replica, now_ms)),
            replica.restarts.to_string(),
            replica.address.map_or_else(String::new, |address| address.to_string()),
        ]
    });
    table(["NAME", "IMAGE", "NODE", "STATUS", "RESTARTS", "ADDRESS"], rows)
}

/// Where a replica is in its life and why.
pub(crate) fn status(replica: &Replica, now_ms: u64) -> String {
    let since = |ms: Option<u64>| ms.map_or_else(String::new, |ms| format!(" {}", time::ago(now_ms, ms)));
    let ended = || since(replica.last_exit.as_ref().map(|exit| exit.at_ms));
    let code = || replica.last_exit.as_ref().map_or_else(String::new, |exit| format!(" ({})", exit_code(exit)));
    let mut text = match replica.state {
        _ if replica.node.is_none() => "Waiting".to_owned(),
        ReplicaState::Preparing => "Preparing".to_owned(),
        ReplicaState::Running => {
            let up = replica
                .started_at_ms
                .map_or_else(|| "Up".to_owned(), |at| format!("Up {}", time::span(now_ms.saturating_sub(at))));
            match (replica.healthy, replica.ready) {
                (Some(true), _) => format!("{up} (healthy)"),
                (Some(false), _) => format!("{up} (unhealthy)"),
                (None, true) => up,
                (None, false) => format!("{up} (not ready)"),
            }
        }
        ReplicaState::BackingOff => format!("Restarting{}{}", code(), ended()),
        ReplicaState::Stopping => "Stopping".to_owned(),
        ReplicaState::Completed => format!("Exited (0){}", ended()),
        ReplicaState::Failed => format!("Failed{}{}", code(), ended()),
    };
    if !replica.current && replica.state == ReplicaState::Running {
        text.push_str(", to be replaced");
    }
    if let Some(why) = why(replica).filter(|_| replica.state != ReplicaState::Completed) {
        text.push_str(": ");
        text.push_str(&why);
    }
    text
}

/// What a replica waits for or why it failed; `None` for one that is well.
pub(crate) fn why(replica: &Replica) -> Option<String> {
    if let Some(message) = replica.message.as_deref().map(one_line).filter(|message| !message.is_empty()) {
        return Some(message);
    }
    let ended = matches!(replica.state, ReplicaState::BackingOff | ReplicaState::Failed);
    replica.last_exit.as_ref().filter(|_| ended).map(exit_words)
}

/// 128 + signal when a signal ended it, as a shell shows it.
fn exit_code(exit: &Exit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => code.to_string(),
        (None, Some(signal)) => (128 + signal).to_string(),
        (None, None) => "?".to_owned(),
    }
}

/// How a process ended, in words.
fn exit_words(exit: &Exit) -> String {
    let how = match (exit.oom_killed, exit.code, exit.signal) {
        (true, ..) => "it used more memory than its limit".to_owned(),
        (false, Some(code), _) => format!("it ended with exit code {code}"),
        (false, None, Some(signal)) => format!("{} ended it", signal_name(signal)),
        (false, None, None) => "it ended".to_owned(),
    };
    match &exit.cause {
        Some(cause) => format!("{how}: {}", one_line(cause)),
        None => how,
    }
}

fn signal_name(number: i32) -> String {
    nix::sys::signal::Signal::try_from(number)
        .map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::{NOW_MS, exit, replica};

    #[test]
    fn status_is_said_in_dockers_words() {
        let base = |state| replica("api", 1, state);
        let with = |state, change: fn(&mut Replica)| {
            let mut replica = base(state);
            change(&mut replica);
            replica
        };
        for (replica, want) in [
            (base(ReplicaState::Running), "Up 2 minutes"),
            (with(ReplicaState::Running, |r| r.healthy = Some(true)), "Up 2 minutes (healthy)"),
            (
                with(ReplicaState::Running, |r| {
                    r.healthy = Some(false);
                    r.ready = false;
                    r.message = Some("connection\nrefused".to_owned());
                }),
                "Up 2 minutes (unhealthy): connection refused",
            ),
            (with(ReplicaState::Running, |r| r.ready = false), "Up 2 minutes (not ready)"),
            (with(ReplicaState::Running, |r| r.started_at_ms = None), "Up"),
            (with(ReplicaState::Running, |r| r.current = false), "Up 2 minutes, to be replaced"),
            (base(ReplicaState::Preparing), "Preparing"),
            (with(ReplicaState::Preparing, |r| r.message = Some("pulling".to_owned())), "Preparing: pulling"),
            (with(ReplicaState::Preparing, |r| r.node = None), "Waiting"),
            (
                with(ReplicaState::BackingOff, |r| r.last_exit = Some(exit(Some(1), None))),
                "Restarting (1) 5 seconds ago: it ended with exit code 1",
            ),
            (
                with(ReplicaState::Failed, |r| r.last_exit = Some(exit(None, Some(9)))),
                "Failed (137) 5 seconds ago: SIGKILL ended it",
            ),
            (
                with(ReplicaState::BackingOff, |r| {
                    let mut exit = exit(None, Some(9));
                    exit.oom_killed = true;
                    r.last_exit = Some(exit);
                }),
                "Restarting (137) 5 seconds ago: it used more memory than its limit",
            ),
            (with(ReplicaState::Failed, |r| r.message = Some("no such image".to_owned())), "Failed: no such image"),
            (base(ReplicaState::Stopping), "Stopping"),
            (with(ReplicaState::Completed, |r| r.last_exit = Some(exit(Some(0), None))), "Exited (0) 5 seconds ago"),
        ] {
            assert_eq!(status(&replica, NOW_MS), want);
        }
    }

    #[test]
    fn a_listing_has_one_line_each() {
        let mut waiting = replica("db", 1, ReplicaState::Preparing);
        (waiting.node, waiting.address) = (None, None);
        waiting.message = Some("3 nodes: 2 short of memory, 1 lost".to_owned());
        let text = listing(&[replica("api", 1, ReplicaState::Running), waiting], NOW_MS);
        let want = "
NAME         IMAGE   NODE   STATUS                                        RESTARTS   ADDRESS
shop-api-1   api:1   n1     Up 2 minutes                                  0          10.210.0.10
shop-db-1    db:1           Waiting: 3 nodes: 2 short of memory, 1 lost   0
";
        assert_eq!(text, want.trim_start());
    }
}
