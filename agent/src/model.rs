//! What a node knows of its replicas, and how each thing that happens changes it. Pure: no clock, no I/O.
//!
//! ```text
//!              Prepare         Start                Stop, Kill: told, then SIGKILL at the deadline
//!   (no entry) ──────► Absent ──────► Running ◄──────┐
//!                        ▲               │ exit      │ Restart: same snapshot, network, bundle
//!                 reboot │               ▼           │
//!                        └───────────► Ended ────────┘
//!                                        │ Remove
//!                                        ▼
//!                                   (no entry)
//! ```
//!
//! Whether an ended replica is completed, failed or waiting follows from these facts and its restart policy
//! ([`crate::plan`]); it is not kept twice. Times are milliseconds of one clock that never goes back.

use gantry_api::ids::{NodeId, ReplicaId, Revision};
use gantry_api::spec::HealthCheck;
use gantry_api::wire::{AssignedReplica, Assignment, Exit};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// A replica that ran well this long may fail again at once.
pub const STEADY_MS: u64 = 60_000;
/// Of a check's output that is kept in words for people; the death record has all of it.
const CAUSE_CHARS_MAX: usize = 600;

/// What must run.
pub type Desired = BTreeMap<ReplicaId, Arc<AssignedReplica>>;
/// What there is.
pub type Observed = BTreeMap<ReplicaId, Seen>;

/// One replica that is on the node, wanted or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// What it was made from.
    pub replica: Arc<AssignedReplica>,
    /// What happened to it.
    pub facts: Facts,
}

/// What happened to one replica. All but the fields marked so live through a restart of the agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Snapshot, network and bundle are there.
    pub prepared: bool,
    /// The image it was made from, by digest: making it again uses the same one.
    pub image: Option<String>,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// Signal that the image wants as its stop signal.
    pub stop_signal: Option<String>,
    /// Check that the image brings along.
    pub health_check: Option<HealthCheck>,
    /// Its process.
    pub process: Process,
    /// Times it was started again.
    pub restarts: u32,
    /// Of those, the ones that its restart policy counts.
    pub attempts: u32,
    /// Ends in a row without a steady minute between.
    pub failures: u32,
    /// How the process before ended.
    pub last_exit: Option<Exit>,
    /// When the last end was that the machine has a record of; the record itself stays until the next start.
    pub exit_read_ms: Option<u64>,
    /// It was told to stop.
    pub stop: Option<Stop>,
    /// The action before failed.
    pub trouble: Option<Trouble>,
    /// Results of its checks.
    pub health: Health,
    /// An action is under way. Not kept.
    #[serde(skip)]
    pub busy: Option<Step>,
    /// The preparation under way was told to give up. Not kept.
    #[serde(skip)]
    pub cancelled: bool,
}

/// The process of a replica.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Process {
    /// There is none, or it is being started.
    #[default]
    Absent,
    /// It runs.
    Running {
        /// Since when.
        started_ms: u64,
    },
    /// It ended; how is in [`Facts::last_exit`].
    Ended {
        /// When.
        at_ms: u64,
        /// Whose doing.
        ending: Ending,
    },
}

/// Whose doing the end of a process was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Its own, or ours because it was unhealthy: the restart policy decides.
    Own,
    /// Ours, since it was not wanted at that time.
    Unwanted,
    /// The node went down, or nobody knows: no fault of the replica.
    Lost,
}

/// It was told to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// SIGKILL follows then.
    pub deadline_ms: u64,
    /// SIGKILL was sent then.
    #[serde(default)]
    pub killed_ms: Option<u64>,
    /// Why, where it is to be started again; `None` when it must go.
    #[serde(default)]
    pub cause: Option<String>,
}

/// An action that failed and will be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// When it failed.
    pub at_ms: u64,
    /// Times in a row.
    pub count: u32,
    /// Why, for a person.
    pub message: String,
}

/// Results of a replica's checks, of the present process only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// `None` before the first result that counts.
    pub healthy: Option<bool>,
    /// Since when it is healthy without a break.
    pub since_ms: Option<u64>,
    /// Failures in a row that count.
    pub failures: u32,
    /// What the last failed check wrote.
    pub output: String,
    /// Checks made. Not kept.
    #[serde(skip)]
    pub checks: u32,
    /// When the last one ended. Not kept.
    #[serde(skip)]
    pub checked_ms: Option<u64>,
    /// One is under way. Not kept.
    #[serde(skip)]
    pub checking: bool,
}

/// One thing to do about one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// About whom.
    pub replica: ReplicaId,
    /// What.
    pub step: Step,
}

/// What can be done about a replica; every step may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make image, snapshot, mounts, network and bundle.
    Prepare,
    /// Give up a preparation under way.
    Cancel,
    /// Create and start its first process.
    Start,
    /// Create and start its next process.
    Restart,
    /// Send its stop signal.
    Stop {
        /// `SIGTERM`.
        signal: String,
        /// Why, where it is to be started again.
        cause: Option<String>,
    },
    /// Send SIGKILL.
    Kill,
    /// Run its health check once.
    Check,
    /// Take away all that was made for it.
    Remove,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = &self.replica;
        match &self.step {
            Step::Prepare => write!(f, "prepare {id}"),
            Step::Cancel => write!(f, "cancel {id}"),
            Step::Start => write!(f, "start {id}"),
            Step::Restart => write!(f, "restart {id}"),
            Step::Stop { signal, cause: None } => write!(f, "stop {id} by {signal}"),
            Step::Stop { signal, cause: Some(cause) } => write!(f, "stop {id} by {signal}: {cause}"),
            Step::Kill => write!(f, "kill {id}"),
            Step::Check => write!(f, "check {id}"),
            Step::Remove => write!(f, "remove {id}"),
        }
    }
}

/// What a successful step found or made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Of [`Step::Prepare`].
    Prepared(Prepared),
    /// Of [`Step::Start`] and [`Step::Restart`].
    Started,
    /// Of [`Step::Check`].
    Checked(Checked),
    /// Of the others.
    Done,
}

/// What a preparation found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The image, by digest.
    pub image: String,
    /// The image's stop signal.
    pub stop_signal: Option<String>,
    /// The replica's address.
    pub address: Option<Ipv4Addr>,
    /// The image's health check.
    pub health_check: Option<HealthCheck>,
}

/// One result of a health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Start of the process that was checked; a result about an earlier one is dropped.
    pub started_ms: u64,
    /// Whether it works.
    pub passed: bool,
    /// The end of what the check wrote, or why it could not run.
    pub output: String,
}

/// What was found of a replica's process when the agent came back.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// It runs, since this time.
    Running(u64),
    /// It ended, and its exit was recorded.
    Exited(Exit),
    /// There is neither a process nor a record of its end.
    Nothing,
}

/// An assignment that must not be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It came late.
    #[error("assignment of revision {given} is older than the one in force, revision {have}")]
    Older {
        /// Its revision.
        given: Revision,
        /// The revision in force.
        have: Revision,
    },
    /// It is for another node.
    #[error("assignment is for node {0}")]
    OtherNode(NodeId),
}

impl Facts {
    /// How the replica is checked: as its manifest says, else as its image does.
    pub fn check<'a>(&'a self, replica: &'a AssignedReplica) -> Option<&'a HealthCheck> {
        let template = &replica.template;
        let of_image = self.health_check.as_ref().filter(|_| !template.health_off);
        template.health.as_ref().or(of_image)
    }

    /// A step was begun: from now on it counts as under way.
    ///
    /// `grace_ms` is the time a stopping replica has before SIGKILL.
    pub fn begin(&mut self, step: &Step, grace_ms: u64, now_ms: u64) {
        match step {
            Step::Prepare | Step::Start | Step::Remove => self.busy = Some(step.clone()),
            Step::Restart => {
                if matches!(self.process, Process::Ended { ending: Ending::Own, .. }) {
                    self.attempts += 1;
                }
                self.restarts += 1;
                self.process = Process::Absent;
                self.busy = Some(Step::Restart);
            }
            Step::Cancel => self.cancelled = true,
            Step::Stop { cause, .. } => {
                let deadline_ms = now_ms.saturating_add(grace_ms);
                self.stop = Some(Stop { deadline_ms, killed_ms: None, cause: cause.clone() });
                self.busy = Some(step.clone());
            }
            Step::Kill => {
                if let Some(stop) = &mut self.stop {
                    stop.killed_ms = Some(now_ms);
                }
                self.busy = Some(Step::Kill);
            }
            Step::Check => self.health.checking = true,
        }
    }

    /// A step ended. `check` is the replica's own, for the result of one.
    pub fn end(&mut self, step: &Step, outcome: Result<Done, String>, check: Option<&HealthCheck>, now_ms: u64) {
        match step {
            Step::Cancel => return,
            Step::Check => return self.checked(outcome, check, now_ms),
            Step::Prepare => self.cancelled = false,
            Step::Start | Step::Restart | Step::Stop { .. } | Step::Kill | Step::Remove => {}
        }
        self.busy = None;
        let message = match outcome {
            Ok(done) => {
                self.trouble = None;
                match done {
                    Done::Prepared(made) => {
                        self.prepared = true;
                        self.image = Some(made.image);
                        self.stop_signal = made.stop_signal;
                        self.address = made.address;
                        self.health_check = made.health_check;
                    }
                    Done::Started if self.process == Process::Absent => {
                        self.process = Process::Running { started_ms: now_ms };
                        self.health = Health::default();
                    }
                    Done::Started | Done::Checked(_) | Done::Done => {}
                }
                return;
            }
            Err(message) => message,
        };
        if matches!(step, Step::Start | Step::Restart) {
            // Whatever it needs is made afresh before the next try; whether there is one, its policy says.
            self.prepared = false;
            if self.process == Process::Absent {
                let cause = Some(format!("cannot be started: {message}"));
                self.last_exit = Some(Exit { code: None, signal: None, oom_killed: false, at_ms: now_ms, cause });
                self.failures += 1;
                self.process = Process::Ended { at_ms: now_ms, ending: Ending::Own };
            }
        } else {
            let count = self.trouble.as_ref().map_or(0, |t| t.count).saturating_add(1);
            self.trouble = Some(Trouble { at_ms: now_ms, count, message });
        }
    }

    /// A process is being started: an end that is told now may be that of one before, which is taken away first.
    /// Whoever tells of ends waits until the start is over.
    pub fn is_starting(&self) -> bool {
        matches!(self.busy, Some(Step::Start | Step::Restart))
    }

    /// The process ended. `false` when this is no news: there is no process that it could be about.
    pub fn exited(&mut self, mut exit: Exit, now_ms: u64) -> bool {
        if self.exit_read_ms == Some(exit.at_ms) {
            return false;
        }
        let steady = match self.process {
            Process::Running { started_ms } => {
                let since_ms = if self.health.healthy.is_none() { Some(started_ms) } else { self.health.since_ms };
                since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= STEADY_MS)
            }
            Process::Absent | Process::Ended { .. } => return false,
        };
        let ending = match self.stop.take() {
            None => Ending::Own,
            Some(Stop { cause: None, .. }) => Ending::Unwanted,
            Some(Stop { cause, .. }) => {
                exit.cause = cause;
                Ending::Own
            }
        };
        self.exit_read_ms = Some(exit.at_ms);
        self.ended(exit, ending, steady, now_ms);
        true
    }

    fn ended(&mut self, exit: Exit, ending: Ending, steady: bool, now_ms: u64) {
        if steady {
            self.failures = 0;
        }
        if ending == Ending::Own {
            self.failures = self.failures.saturating_add(1);
        }
        self.last_exit = Some(exit);
        self.process = Process::Ended { at_ms: now_ms, ending };
        self.stop = None;
        self.health = Health::default();
    }

    fn checked(&mut self, outcome: Result<Done, String>, check: Option<&HealthCheck>, now_ms: u64) {
        self.health.checking = false;
        let (Process::Running { started_ms }, Some(check)) = (&self.process, check) else { return };
        let started_ms = *started_ms;
        let (passed, output) = match outcome {
            Ok(Done::Checked(result)) if result.started_ms != started_ms => return,
            Ok(Done::Checked(result)) => (result.passed, result.output),
            Ok(_) => return,
            Err(message) => (false, message),
        };
        let health = &mut self.health;
        health.checks = health.checks.saturating_add(1);
        health.checked_ms = Some(now_ms);
        if passed {
            health.failures = 0;
            health.healthy = Some(true);
            health.output.clear();
            let since = *health.since_ms.get_or_insert(now_ms);
            if now_ms.saturating_sub(since) >= STEADY_MS {
                self.failures = 0;
            }
            return;
        }
        health.output = output;
        if health.healthy.is_some() || now_ms.saturating_sub(started_ms) >= start_period_ms(check) {
            health.failures = health.failures.saturating_add(1);
            if health.failures >= check.retries.max(1) {
                health.healthy = Some(false);
            }
        }
    }

    /// Why an unhealthy replica is stopped, in words.
    pub fn unhealthy_cause(&self) -> String {
        let output = self.health.output.trim();
        let mut cause = format!("health check failed {} times in a row", self.health.failures);
        if self.health.failures == 1 {
            cause = "health check failed".to_owned();
        }
        if !output.is_empty() {
            let skip = output.chars().count().saturating_sub(CAUSE_CHARS_MAX);
            cause.push_str(": ");
            cause.extend(output.chars().skip(skip));
        }
        cause
    }

    /// Brings the facts in line with what was found when the agent came back.
    pub fn adopt(&mut self, found: Found, now_ms: u64) {
        self.clamp(now_ms);
        match found {
            Found::Running(started_ms) => {
                if !matches!(self.process, Process::Running { .. }) {
                    self.process = Process::Running { started_ms: started_ms.min(now_ms) };
                    self.health = Health::default();
                }
                self.prepared = true;
                return;
            }
            Found::Exited(exit) => {
                let known = self.exit_read_ms == Some(exit.at_ms);
                if !known && !matches!(self.process, Process::Ended { .. }) {
                    let started_ms = exit.at_ms.min(now_ms);
                    if self.process == Process::Absent {
                        self.process = Process::Running { started_ms };
                    }
                    self.exited(exit, now_ms);
                }
            }
            Found::Nothing => {
                if matches!(self.process, Process::Running { .. }) {
                    let ending = match self.stop.take() {
                        Some(Stop { cause: None, .. }) => Ending::Unwanted,
                        _ => Ending::Lost,
                    };
                    let cause = Some("the node, or the replica's supervisor, went down".to_owned());
                    let exit = Exit { code: None, signal: None, oom_killed: false, at_ms: now_ms, cause };
                    self.ended(exit, ending, false, now_ms);
                }
            }
        }
        // Mounts, network and files of memory may have gone with a reboot; making what is there already is cheap.
        self.prepared = false;
    }

    /// Nor may the deadline of a stop lie further ahead than the grace that it gives.
    pub fn clamp_stop(&mut self, grace_ms: u64, now_ms: u64) {
        if let Some(stop) = &mut self.stop {
            stop.deadline_ms = stop.deadline_ms.min(now_ms.saturating_add(grace_ms));
        }
    }

    /// Times of a clock that was set back must not hold anything up.
    fn clamp(&mut self, now_ms: u64) {
        match &mut self.process {
            Process::Running { started_ms } => *started_ms = (*started_ms).min(now_ms),
            Process::Ended { at_ms, .. } => *at_ms = (*at_ms).min(now_ms),
            Process::Absent => {}
        }
        if let Some(trouble) = &mut self.trouble {
            trouble.at_ms = trouble.at_ms.min(now_ms);
        }
        if let Some(stop) = &mut self.stop {
            stop.killed_ms = stop.killed_ms.map(|at_ms| at_ms.min(now_ms));
        }
        if let Some(since) = &mut self.health.since_ms {
            *since = (*since).min(now_ms);
        }
    }
}

/// How long after a start failures do not count: never less than one interval, since a check is made early.
pub fn start_period_ms(check: &HealthCheck) -> u64 {
    check.start_period_ms.0.max(check.interval_ms.0)
}

/// The whole node: two pictures, and the revision of the wanted one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// What must run.
    pub desired: Desired,
    /// What there is.
    pub observed: Observed,
    /// Where `desired` comes from.
    pub revision: Revision,
    /// Volumes whose data must go once nobody uses them, as `<app>_<volume>`.
    pub remove_volumes: Vec<String>,
}

impl Node {
    /// Takes over an assignment. The same one again changes nothing.
    ///
    /// # Errors
    /// It is older than the one in force, or for another node.
    pub fn assign(&mut self, assignment: &Assignment, node: &NodeId) -> Result<(), Refused> {
        if assignment.node != *node {
            return Err(Refused::OtherNode(assignment.node.clone()));
        }
        if assignment.revision < self.revision {
            return Err(Refused::Older { given: assignment.revision, have: self.revision });
        }
        self.revision = assignment.revision;
        self.desired = assignment.replicas.iter().map(|r| (r.id.clone(), Arc::new(r.clone()))).collect();
        self.remove_volumes.clone_from(&assignment.remove_volumes);
        Ok(())
    }

    /// Images of the replicas that are not prepared.
    pub fn images_wanted(&self) -> HashSet<String> {
        let unprepared = |id: &ReplicaId| self.observed.get(id).is_some_and(|seen| !seen.facts.prepared);
        let wanted = self.desired.iter().filter(|(id, _)| unprepared(id));
        wanted.map(|(_, replica)| replica.template.image.clone()).collect()
    }

    /// Images have come that could not be had before: who waits for them need not wait for the next try.
    pub fn arrived(&mut self, images: &[String]) {
        for (id, seen) in &mut self.observed {
            let waits = !seen.facts.prepared && seen.facts.busy.is_none();
            if waits && self.desired.get(id).is_some_and(|want| images.contains(&want.template.image)) {
                seen.facts.trouble = None;
            }
        }
    }

    /// An action was begun; its replica has an entry from now on.
    pub fn begin(&mut self, action: &Action, now_ms: u64) {
        if !self.observed.contains_key(&action.replica)
            && let Some(replica) = self.desired.get(&action.replica)
        {
            let seen = Seen { replica: Arc::clone(replica), facts: Facts::default() };
            self.observed.insert(action.replica.clone(), seen);
        }
        if let Some(seen) = self.observed.get_mut(&action.replica) {
            let grace_ms = seen.replica.template.stop_grace_ms.0;
            seen.facts.begin(&action.step, grace_ms, now_ms);
        }
    }

    /// An action ended.
    pub fn end(&mut self, action: &Action, outcome: Result<Done, String>, now_ms: u64) {
        if action.step == Step::Remove && outcome.is_ok() {
            self.observed.remove(&action.replica);
        } else if let Some(Seen { replica, facts }) = self.observed.get_mut(&action.replica) {
            let check = facts.check(replica).cloned();
            facts.end(&action.step, outcome, check.as_ref(), now_ms);
        }
    }

    /// Whether ends of this replica's processes can be told now; later otherwise.
    pub fn hears_exits(&self, id: &ReplicaId) -> bool {
        self.observed.get(id).is_none_or(|seen| !seen.facts.is_starting())
    }

    /// A process ended; `false` when that is no news.
    pub fn exited(&mut self, id: &ReplicaId, exit: Exit, now_ms: u64) -> bool {
        self.observed.get_mut(id).is_some_and(|seen| seen.facts.exited(exit, now_ms))
    }
}
