//! The one task that owns the world: takes in reports, requests and time, plans, writes, and only then tells agents.
//!
//! ```text
//!  requests ─┐                ┌──► store (durable)
//!  reports ──┼──► world ──step┤        │ then
//!  ticks ────┘                └──► sessions: the newest assignment of each agent
//! ```
//!
//! It runs on a thread of its own, since a commit waits for the disk. When a commit fails the scheduler ends: its
//! memory is ahead of its store, and what the store has is what was promised (invariant 1).

use crate::core::{Effects, Note, Now, World};
use crate::events::EventLog;
use crate::records;
use crate::refusal::{Refused, internal};
use crate::store::{Op, Store, StoreError, Transaction};
use gantry_api::http::Event;
use gantry_api::ids::{NodeId, Revision};
use gantry_api::images::{ImageNews, Sources};
use gantry_api::wire::{Assignment, Hello, Report, ToAgent};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};

/// Time passes in steps of this size.
const TICK: Duration = Duration::from_millis(100);
/// Messages waiting for the task; senders wait when it is full.
pub(crate) const INPUTS_MAX: usize = 1_024;
/// Messages taken in before the next step.
const BATCH_MAX: usize = 256;
/// Events that changed no record are written together after so long.
const FLUSH: Duration = Duration::from_millis(200);
/// So many revisions before the reserved ones are used up, more are reserved.
const REVISIONS_MARGIN: u64 = 10_000;

type Job = Box<dyn FnOnce(&mut Steward) + Send>;

/// A message to the task.
pub(crate) enum Input {
    Hello { hello: Hello, session: Session },
    Report { node: NodeId, session: u64, report: Report },
    Images { node: NodeId, session: u64, news: ImageNews },
    Gone { node: NodeId, session: u64 },
    Job(Job),
}

/// The way to one agent.
pub(crate) struct Session {
    /// Rises with each stream.
    pub(crate) id: u64,
    /// The newest assignment; a slow agent skips those in between.
    pub(crate) newest: watch::Sender<Option<Arc<Assignment>>>,
    /// Where it may fetch images; written before an assignment that came later.
    pub(crate) sources: watch::Sender<Arc<Sources>>,
    /// Everything else.
    pub(crate) commands: mpsc::Sender<ToAgent>,
}

/// How the rest of the scheduler reaches the task.
#[derive(Clone)]
pub(crate) struct Handle {
    inputs: mpsc::Sender<Input>,
    pub(crate) events: Arc<EventLog>,
    /// Rises with each step that changed something.
    pub(crate) steps: watch::Receiver<u64>,
}

impl Handle {
    /// Runs `job` on the world and returns what it returns.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Steward) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |steward| {
            // Whoever asked may have gone away meanwhile.
            let _ = answer.send(job(steward));
        });
        self.send(Input::Job(job)).await?;
        answered.await.map_err(|_| Refused::unavailable("the scheduler is shutting down"))
    }

    pub(crate) async fn send(&self, input: Input) -> Result<(), Refused> {
        self.inputs.send(input).await.map_err(|_| Refused::unavailable("the scheduler is shutting down"))
    }
}

/// The task.
pub(crate) struct Steward {
    pub(crate) world: World,
    store: Arc<dyn Store>,
    events: Arc<EventLog>,
    sequence: u64,
    reserved: Revision,
    sessions: BTreeMap<NodeId, Session>,
    origin: Instant,
    unwritten: Vec<Op>,
    flushed: Instant,
    failure: Option<StoreError>,
    steps: watch::Sender<u64>,
}

impl Steward {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        mut world: World,
        events: Vec<Event>,
        reserved: Revision,
    ) -> (Self, Handle, mpsc::Receiver<Input>) {
        let (inputs, receiver) = mpsc::channel(INPUTS_MAX);
        let events = Arc::new(EventLog::new(events));
        let steps = watch::Sender::new(0);
        let handle = Handle { inputs, events: Arc::clone(&events), steps: steps.subscribe() };
        let (sequence, origin) = (events.newest(), Instant::now());
        world.hold(Now(0));
        let steward = Self {
            world,
            store,
            events,
            sequence,
            reserved,
            sessions: BTreeMap::new(),
            origin,
            unwritten: Vec::new(),
            flushed: origin,
            failure: None,
            steps,
        };
        (steward, handle, receiver)
    }

    /// The clock that decisions are made by.
    pub(crate) fn now(&self) -> Now {
        Now(self.origin.elapsed().as_millis() as u64)
    }

    /// Runs until told to end.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut shutdown: watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => self.take_batch(input, &mut inputs),
                    None => break,
                },
                _ = tick.tick() => true,
                _ = shutdown.wait_for(|end| *end) => break,
            };
            if due && self.failure.is_none() {
                self.step();
            }
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
        }
        self.flush();
        self.failure.map_or(Ok(()), Err)
    }

    /// Takes in what is waiting; whether a decision could rest on it.
    fn take_batch(&mut self, first: Input, inputs: &mut mpsc::Receiver<Input>) -> bool {
        let mut due = self.take(first);
        for _ in 1..BATCH_MAX {
            match inputs.try_recv() {
                Ok(input) => due |= self.take(input),
                Err(_) => break,
            }
        }
        due
    }

    fn take(&mut self, input: Input) -> bool {
        match input {
            Input::Hello { hello, session } => self.hello(hello, session),
            Input::Report { node, session, report } => {
                let (effects, changed) = self.world.report(&node, session, report, self.now());
                self.record(vec![effects]);
                changed
            }
            Input::Images { node, session, news } => self.world.images(&node, session, news),
            Input::Gone { node, session } => {
                if self.sessions.get(&node).is_some_and(|s| s.id == session) {
                    self.sessions.remove(&node);
                }
                false
            }
            Input::Job(job) => {
                job(self);
                true
            }
        }
    }

    fn hello(&mut self, hello: Hello, session: Session) -> bool {
        let node = hello.node.clone();
        let now = self.now();
        // Refused: dropping the session ends the stream.
        let Ok(effects) = self.world.hello(session.id, hello, now) else { return false };
        self.record(vec![effects]);
        if !self.world.holding(now) {
            session.sources.send_replace(self.world.sources(&node));
            session.newest.send_replace(self.world.assignment(&node));
        }
        self.sessions.insert(node, session);
        true
    }

    /// The way to a node's agent.
    pub(crate) fn commands(&self, node: &NodeId) -> Option<mpsc::Sender<ToAgent>> {
        self.sessions.get(node).map(|session| session.commands.clone())
    }

    fn step(&mut self) {
        let now = self.now();
        if self.world.revision.0 + REVISIONS_MARGIN > self.reserved.0 {
            match records::reserve(self.store.as_ref()) {
                Ok((_, end)) => self.reserved = end,
                Err(error) => return self.fail(error),
            }
        }
        let step = self.world.step(now);
        let changed = !step.effects.is_empty() || !step.assignments.is_empty();
        self.record(step.effects);
        if self.failure.is_some() {
            return;
        }
        for (node, sources) in step.sources {
            if let Some(session) = self.sessions.get(&node) {
                session.sources.send_replace(sources);
            }
        }
        for (node, assignment) in step.assignments {
            if let Some(session) = self.sessions.get(&node) {
                session.newest.send_replace(Some(assignment));
            }
        }
        if changed {
            self.steps.send_modify(|steps| *steps += 1);
        }
        // No assignment rests on these events, so none waits for them.
        if self.flushed.elapsed() >= FLUSH {
            self.flush();
        }
    }

    /// Writes what was touched, durably, before anyone is told. Events that go with no record wait for company.
    fn record(&mut self, effects: Vec<Effects>) {
        let mut groups: Vec<Vec<Op>> = Vec::new();
        for effects in effects {
            let mut ops: Vec<Op> = effects.keys.iter().map(|key| records::op(&self.world, key)).collect();
            let told = self.tell(effects.notes);
            if ops.is_empty() {
                self.unwritten.extend(told);
            } else {
                ops.extend(told);
                groups.push(ops);
            }
        }
        if !groups.is_empty() {
            self.write(groups);
        }
    }

    /// Writes what goes with the operations of a request that changes no part of the world.
    ///
    /// # Errors
    /// The store failed; the scheduler is about to end.
    pub(crate) fn write_ops(&mut self, ops: Vec<Op>) -> Result<(), Refused> {
        self.write(vec![ops]);
        self.outcome()
    }

    /// Writes what a request did.
    ///
    /// # Errors
    /// The store failed; the scheduler is about to end.
    pub(crate) fn record_all(&mut self, effects: Vec<Effects>) -> Result<(), Refused> {
        self.record(effects);
        self.outcome()
    }

    fn outcome(&self) -> Result<(), Refused> {
        match &self.failure {
            None => Ok(()),
            Some(error) => Err(internal(error, error.hint())),
        }
    }

    /// Reads one key for a request.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn read(&self, key: &str) -> Result<Option<crate::store::Entry>, Refused> {
        self.store.get(key).map_err(|error| internal(&error, error.hint()))
    }

    /// Keys under a prefix, for a request.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn read_all(&self, prefix: &str) -> Result<Vec<crate::store::Entry>, Refused> {
        self.store.range(prefix).map(|(_, entries)| entries).map_err(|error| internal(&error, error.hint()))
    }

    fn write(&mut self, groups: Vec<Vec<Op>>) {
        for transaction in records::transactions(groups) {
            self.commit(&transaction);
        }
    }

    fn flush(&mut self) {
        self.flushed = Instant::now();
        let ops = std::mem::take(&mut self.unwritten);
        // Any two of these are independent: cut as the limit allows.
        self.write(ops.into_iter().map(|op| vec![op]).collect());
    }

    fn commit(&mut self, transaction: &Transaction) {
        if self.failure.is_none()
            && let Err(error) = self.store.commit(transaction)
        {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: StoreError) {
        self.failure.get_or_insert(error);
    }

    /// Makes events of notes; returns how to write them, and how to remove those that are too old.
    fn tell(&mut self, notes: Vec<Note>) -> Vec<Op> {
        let at_ms = wall_ms();
        let mut ops = Vec::new();
        for note in notes {
            self.sequence += 1;
            let event = Event {
                sequence: self.sequence,
                at_ms,
                revision: self.world.revision,
                kind: note.kind.to_owned(),
                subject: note.subject,
                message: note.message,
            };
            tracing::info!(kind = %event.kind, subject = %event.subject, "{}", event.message);
            ops.push(records::put(records::event_key(event.sequence), &event));
            if let Some(old) = self.events.push(event) {
                ops.push(Op::Delete { key: records::event_key(old) });
            }
        }
        ops
    }
}

/// Milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
