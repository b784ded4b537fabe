//! What comes next for each replica: two pictures and a time in, actions out. No clock, no I/O, no log.
//!
//! At most one action per replica at a time; a health check may run beside another action. Everything may be
//! repeated: the plan looks at what is, never at what it said before.

#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

use crate::model::{Action, Desired, Ending, Facts, Health, Node, Observed, Process, Seen, Step, start_period_ms};
use gantry_api::ids::ReplicaId;
use gantry_api::spec::{HealthCheck, MountSource, Restart, RestartCondition};
use gantry_api::wire::{AssignedReplica, Exit, ReplicaState, ReplicaStatus};
use std::collections::BTreeSet;

/// First pause before a restart; the first restart of all has none.
const BACKOFF_FIRST_MS: u64 = 100;
/// Longest pause before a restart.
const BACKOFF_MAX_MS: u64 = 30_000;
/// First pause before something that failed is tried again: a registry, netd, a mount.
const RETRY_FIRST_MS: u64 = 500;
/// Longest pause before something that failed is tried again.
const RETRY_MAX_MS: u64 = 30_000;
/// A process that outlives SIGKILL hangs in the kernel; it is asked again this often.
const KILL_AGAIN_MS: u64 = 2_000;
/// First look at a starting replica's health, so that one that is quick is ready quickly. The next ones come when it
/// has run for twice as long each time, until the pauses reach the check's own interval.
const EARLY_CHECK_MS: u64 = 20;
/// No check comes more often than this once a replica has started.
const INTERVAL_MIN_MS: u64 = 200;
/// When the image and the manifest name none.
const STOP_SIGNAL: &str = "SIGTERM";

/// At most one action per replica: what comes next, never a script of steps.
pub fn plan(desired: &Desired, observed: &Observed, now_ms: u64) -> Vec<Action> {
    let act = |id: &ReplicaId| match next(desired.get(id).map(|r| &**r), observed.get(id), now_ms) {
        Next::Act(step) => Some(Action { replica: id.clone(), step }),
        Next::Wait(_) | Next::Rest => None,
    };
    everyone(desired, observed).into_iter().filter_map(act).collect()
}

/// When [`plan`] may say something else although nothing happened; `None` when only events can change it.
pub fn wake_ms(desired: &Desired, observed: &Observed, now_ms: u64) -> Option<u64> {
    let when = |id: &ReplicaId| match next(desired.get(id).map(|r| &**r), observed.get(id), now_ms) {
        Next::Act(_) => Some(now_ms),
        Next::Wait(until_ms) => Some(until_ms),
        Next::Rest => None,
    };
    everyone(desired, observed).into_iter().filter_map(when).min()
}

fn everyone<'a>(desired: &'a Desired, observed: &'a Observed) -> BTreeSet<&'a ReplicaId> {
    desired.keys().chain(observed.keys()).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Act(Step),
    Wait(u64),
    Rest,
}

impl Next {
    fn at(due_ms: u64, now_ms: u64, step: Step) -> Self {
        if now_ms < due_ms { Self::Wait(due_ms) } else { Self::Act(step) }
    }
}

fn next(want: Option<&AssignedReplica>, seen: Option<&Seen>, now_ms: u64) -> Next {
    let Some(seen) = seen else {
        return if want.is_some() { Next::Act(Step::Prepare) } else { Next::Rest };
    };
    let facts = &seen.facts;
    match (want, &facts.busy) {
        (None, Some(Step::Prepare)) if !facts.cancelled => Next::Act(Step::Cancel),
        (_, Some(_)) => Next::Rest,
        (Some(want), None) => wanted(want, facts, now_ms),
        (None, None) => unwanted(seen, now_ms),
    }
}

fn unwanted(seen: &Seen, now_ms: u64) -> Next {
    let facts = &seen.facts;
    match (&facts.process, &facts.stop) {
        (Process::Absent | Process::Ended { .. }, _) => Next::at(retry_ms(facts), now_ms, Step::Remove),
        // One that was being stopped for its health is on its way out already.
        (Process::Running { .. }, Some(_)) => kill(facts, now_ms),
        (Process::Running { .. }, None) => {
            Next::Act(Step::Stop { signal: stop_signal(&seen.replica, facts), cause: None })
        }
    }
}

fn wanted(want: &AssignedReplica, facts: &Facts, now_ms: u64) -> Next {
    match &facts.process {
        Process::Absent if !facts.prepared => Next::at(retry_ms(facts), now_ms, Step::Prepare),
        Process::Absent => Next::Act(Step::Start),
        Process::Running { .. } if facts.stop.is_some() => kill(facts, now_ms),
        Process::Running { started_ms } => match facts.check(want) {
            None => Next::Rest,
            Some(_) if facts.health.healthy == Some(false) => {
                Next::Act(Step::Stop { signal: stop_signal(want, facts), cause: Some(facts.unhealthy_cause()) })
            }
            Some(_) if facts.health.checking => Next::Rest,
            Some(check) => Next::at(check_due_ms(check, &facts.health, *started_ms), now_ms, Step::Check),
        },
        Process::Ended { at_ms, ending } => match verdict(&want.template.restart, facts, *at_ms, *ending) {
            Verdict::Over(_) => Next::Rest,
            Verdict::Again(due_ms) if facts.prepared => Next::at(due_ms, now_ms, Step::Restart),
            Verdict::Again(due_ms) => Next::at(due_ms.max(retry_ms(facts)), now_ms, Step::Prepare),
        },
    }
}

/// A replica that was told to stop: SIGKILL at its deadline, and again while the kernel keeps it.
fn kill(facts: &Facts, now_ms: u64) -> Next {
    let due_ms = facts.stop.as_ref().map_or(now_ms, |stop| match stop.killed_ms {
        None => stop.deadline_ms,
        Some(at_ms) => at_ms + KILL_AGAIN_MS,
    });
    Next::at(due_ms, now_ms, Step::Kill)
}

fn stop_signal(replica: &AssignedReplica, facts: &Facts) -> String {
    let own = replica.template.stop_signal.as_ref();
    own.or(facts.stop_signal.as_ref()).map_or(STOP_SIGNAL, String::as_str).to_owned()
}

/// When a failed action may be tried again.
fn retry_ms(facts: &Facts) -> u64 {
    facts.trouble.as_ref().map_or(0, |t| t.at_ms + doubling(RETRY_FIRST_MS, t.count, RETRY_MAX_MS))
}

/// Pause before the restart that follows the `failures`-th end in a row: none, 0.1 s, 0.2 s, … 30 s.
pub fn backoff_ms(failures: u32) -> u64 {
    if failures <= 1 { 0 } else { doubling(BACKOFF_FIRST_MS, failures - 1, BACKOFF_MAX_MS) }
}

/// `first` for 1, twice that for 2, and so on up to `max`.
fn doubling(first: u64, count: u32, max: u64) -> u64 {
    first.saturating_mul(1 << count.saturating_sub(1).min(32)).min(max)
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Started again at this time.
    Again(u64),
    /// Nothing more will be tried.
    Over(ReplicaState),
}

/// What follows the end of a process.
fn verdict(policy: &Restart, facts: &Facts, at_ms: u64, ending: Ending) -> Verdict {
    let failed = facts.last_exit.as_ref().is_none_or(failure);
    let over = Verdict::Over(if failed { ReplicaState::Failed } else { ReplicaState::Completed });
    let again = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => failed,
        RestartCondition::None => false,
    };
    match ending {
        // We ended it, and now it is wanted after all.
        Ending::Unwanted => Verdict::Again(at_ms),
        Ending::Lost if again => Verdict::Again(at_ms),
        Ending::Own if again && policy.attempts_max.is_none_or(|max| facts.attempts < max) => {
            Verdict::Again(at_ms.saturating_add(policy.delay_ms.map_or(backoff_ms(facts.failures), |delay| delay.0)))
        }
        Ending::Own | Ending::Lost => over,
    }
}

/// Whether a restart policy of `on_failure` counts this end.
fn failure(exit: &Exit) -> bool {
    exit.code != Some(0) || exit.signal.is_some() || exit.oom_killed || exit.cause.is_some()
}

/// When the next check is due. While a replica starts it is looked at early and then less and less often, up to
/// the interval its check asks for.
fn check_due_ms(check: &HealthCheck, health: &Health, started_ms: u64) -> u64 {
    let interval_ms = check.interval_ms.0.max(INTERVAL_MIN_MS);
    let start_interval_ms = if check.start_interval_ms.0 == 0 { interval_ms } else { check.start_interval_ms.0 };
    let early_ms = doubling(EARLY_CHECK_MS, health.checks, start_interval_ms.min(interval_ms).max(1));
    match health.checked_ms {
        // An adopted replica that is known to be well keeps its rhythm as far as we know it.
        None => started_ms.saturating_add(early_ms),
        Some(at_ms) if health.healthy.is_none() && at_ms.saturating_sub(started_ms) < start_period_ms(check) => {
            at_ms.saturating_add(early_ms)
        }
        Some(at_ms) => at_ms.saturating_add(interval_ms),
    }
}

/// Volumes that are to be deleted and that no replica on the node can touch any more.
pub fn volumes_to_remove(node: &Node) -> Vec<String> {
    let wanted = node.desired.values().map(|r| &**r);
    let present = node.observed.values().map(|seen| &*seen.replica);
    let used: BTreeSet<String> = wanted.chain(present).flat_map(volumes).collect();
    node.remove_volumes.iter().filter(|name| !used.contains(*name)).cloned().collect()
}

/// The named volumes of a replica, as `<app>_<volume>`.
pub fn volumes(replica: &AssignedReplica) -> impl Iterator<Item = String> + '_ {
    replica.template.mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Volume { name } => Some(format!("{}_{name}", replica.name.app)),
        MountSource::Anonymous | MountSource::Bind { .. } | MountSource::Tmpfs { .. } => None,
    })
}

/// What the scheduler is told of all replicas, wanted or there.
pub fn statuses(node: &Node) -> Vec<ReplicaStatus> {
    let one = |id: &ReplicaId| status(id, node.desired.get(id).map(|r| &**r), node.observed.get(id));
    everyone(&node.desired, &node.observed).into_iter().map(one).collect()
}

/// What the scheduler is told of a replica; usage is added by who measures it.
pub fn status(id: &ReplicaId, want: Option<&AssignedReplica>, seen: Option<&Seen>) -> ReplicaStatus {
    let default = Facts::default();
    let facts = seen.map_or(&default, |seen| &seen.facts);
    let (state, message) = state(want, facts);
    let running = state == ReplicaState::Running;
    let checked = want.is_some_and(|want| facts.check(want).is_some());
    ReplicaStatus {
        id: id.clone(),
        state,
        ready: running && (!checked || facts.health.healthy == Some(true)),
        healthy: if checked { facts.health.healthy } else { None },
        address: facts.address,
        message,
        restarts: facts.restarts,
        started_at_ms: match facts.process {
            Process::Running { started_ms } => Some(started_ms),
            Process::Absent | Process::Ended { .. } => None,
        },
        last_exit: facts.last_exit.clone(),
        memory_used: Default::default(),
        cpu_used: Default::default(),
    }
}

fn state(want: Option<&AssignedReplica>, facts: &Facts) -> (ReplicaState, Option<String>) {
    let trouble = facts.trouble.as_ref().map(|t| t.message.clone());
    let Some(want) = want else { return (ReplicaState::Stopping, trouble) };
    match &facts.process {
        Process::Absent if facts.restarts > 0 => (ReplicaState::BackingOff, trouble),
        Process::Absent => (ReplicaState::Preparing, trouble),
        Process::Running { .. } => match &facts.stop {
            Some(stop) => (ReplicaState::Stopping, stop.cause.clone()),
            None => (ReplicaState::Running, trouble),
        },
        Process::Ended { at_ms, ending } => {
            let state = match verdict(&want.template.restart, facts, *at_ms, *ending) {
                Verdict::Again(_) => ReplicaState::BackingOff,
                Verdict::Over(state) => state,
            };
            let cause = facts.last_exit.as_ref().and_then(|exit| exit.cause.clone());
            (state, trouble.or(cause))
        }
    }
}
