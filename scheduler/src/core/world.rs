//! Everything the scheduler knows, and how each thing that happens changes it.
//!
//! Records are kept in the store; the rest (reports, readiness, timers) is learnt again from the agents after a
//! restart. A replica's life here:
//!
//! ```text
//!  Wanted ──drain──► Draining ──every node applied, or 1 s──► Stopping ──report no longer lists it──► forgotten
//!    └────────────── its node is lost and a replacement is placed ───────────────────────────────────────┘
//! ```

use super::drain;
use super::network::Published;
use super::plan::{Action, Note, plan};
use super::sources::Held;
use gantry_api::http::NodeState;
use gantry_api::ids::{AppName, NodeId, NodeName, ReplicaId, ReplicaName, Revision, ServiceName};
use gantry_api::images::Sources;
use gantry_api::network::Ipv4Net;
use gantry_api::spec::{App, Constraint, ConstraintKey, MountSource, Template};
use gantry_api::units::{Bytes, MilliCpu};
use gantry_api::wire::{Assignment, Capacity, Hello, ReplicaState, ReplicaStatus, Report};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Milliseconds of a clock that never steps back; its origin does not matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub u64);

impl Now {
    /// Milliseconds since `earlier`, 0 when that is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What a cluster was made with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// All replicas' addresses; each node gets a /24 of it.
    pub replica_net: Ipv4Net,
    /// All services' addresses.
    pub service_net: Ipv4Net,
    /// Ports of the nodes that no app may publish: the scheduler's own.
    #[serde(default)]
    pub reserved_ports: Vec<u16>,
}

/// Numbers that are handed out once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Replicas ever placed.
    pub replicas: u64,
    /// Templates ever deployed.
    pub generations: u64,
    /// Where the search for a free service address begins, so that a freed one is not used again at once.
    pub addresses: u32,
}

/// An app as recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppRecord {
    /// Desired state.
    pub spec: App,
    /// Revision of its last change.
    pub revision: Revision,
    /// What belongs to each service of `spec` besides its desired state.
    pub services: BTreeMap<ServiceName, ServiceRecord>,
    /// Set when it is being taken down.
    #[serde(default)]
    pub removing: Option<Removal>,
}

/// How an app is taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Its named volumes go too.
    pub volumes: bool,
}

/// A service's part of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// Its address, stable for its whole life.
    pub address: Ipv4Addr,
    /// Names its present template.
    pub generation: u64,
    /// Whether what it depends on was reached once; from then on it starts without waiting.
    pub released: bool,
    /// The change under way.
    pub rollout: Rollout,
    /// What became of the last change, in words.
    #[serde(default)]
    pub note: Option<String>,
}

/// A change of a service's template under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Rollout {
    /// None.
    Done,
    /// Replicas are being replaced.
    Active {
        /// The template before.
        from: u64,
    },
    /// A changed replica failed: what runs keeps running, on the template before where one must be placed.
    Paused {
        /// The template before.
        from: u64,
        /// Why, in words.
        message: String,
    },
    /// Replicas go back to the template before.
    Back {
        /// Why, in words.
        message: String,
    },
}

/// Names a template that is no longer its service's present one.
pub type TemplateKey = (AppName, ServiceName, u64);

/// A node as recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Identity.
    pub id: NodeId,
    /// As people call it.
    pub name: NodeName,
    /// SHA-256 of its public key, hexadecimal; a certificate of another key is refused.
    pub key_sha256: String,
    /// Where other hosts reach it.
    pub underlay: Ipv4Addr,
    /// Its part of the replica net.
    pub subnet: Ipv4Net,
    /// What it last said of itself.
    #[serde(default)]
    pub hello: Option<Hello>,
    /// Its replicas were given up; kept so that a restarted scheduler does not wait for it.
    #[serde(default)]
    pub lost: bool,
}

/// A node.
#[derive(Debug, Clone)]
pub struct Node {
    /// What is kept.
    pub record: NodeRecord,
    /// Whether it can be counted on.
    pub state: NodeState,
    /// When it was last heard of; `None` since it joined or the scheduler started.
    pub seen: Option<Now>,
    /// When waiting for its first word began.
    pub since: Now,
    /// When it last became ready.
    pub ready_since: Now,
    /// Its last report.
    pub report: Option<Report>,
    /// Images that it said it holds.
    pub held: Held,
    /// Names its present stream; messages of an earlier one are dropped.
    pub session: u64,
    /// Revision of the assignment it should have in force.
    pub assigned: Revision,
    /// When that was last sent.
    pub sent: Now,
}

impl Node {
    pub(super) fn new(record: NodeRecord, now: Now) -> Self {
        let state = if record.lost { NodeState::Lost } else { NodeState::Suspect };
        Self {
            record,
            state,
            seen: None,
            since: now,
            ready_since: now,
            report: None,
            held: Held::default(),
            session: 0,
            assigned: Revision(0),
            sent: now,
        }
    }

    /// Revision of the network table in force there.
    pub fn applied(&self) -> Revision {
        self.report.as_ref().map_or(Revision(0), |report| report.applied)
    }

    /// What replicas may use there.
    pub fn capacity(&self) -> Capacity {
        self.record.hello.as_ref().map_or_else(Capacity::default, |hello| hello.capacity)
    }

    /// Whether `constraint` holds there.
    pub fn satisfies(&self, constraint: &Constraint) -> bool {
        let hello = self.record.hello.as_ref();
        let value = match &constraint.key {
            ConstraintKey::Hostname => Some(self.record.name.as_str()),
            ConstraintKey::Id => Some(self.record.id.as_str()),
            ConstraintKey::Label(label) => hello.and_then(|h| h.labels.get(label)).map(String::as_str),
            ConstraintKey::Arch => hello.map(|h| h.arch.as_str()),
            ConstraintKey::Os => Some("linux"),
        };
        (value == Some(constraint.value.as_str())) == constraint.equal
    }
}

/// A placement decision as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// Which copy.
    pub id: ReplicaId,
    /// Its place.
    pub name: ReplicaName,
    /// Where it runs.
    pub node: NodeId,
    /// What it is made from.
    pub generation: u64,
    /// Rises with each placement of the cluster.
    pub order: u64,
    /// Where it is on its way out.
    pub phase: Phase,
    /// It ended with exit code 0 for good.
    #[serde(default)]
    pub completed: bool,
}

/// Where a replica is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// It should run.
    Wanted,
    /// It runs but gets no new connections, until every node knows.
    Draining {
        /// Whether another copy takes its number when it is gone.
        handover: bool,
    },
    /// Its agent was told to stop it.
    Stopping {
        /// As for draining.
        handover: bool,
    },
}

/// A replica.
#[derive(Debug, Clone)]
pub struct Replica {
    /// What is kept.
    pub record: ReplicaRecord,
    /// What its agent last said of it.
    pub status: Option<ReplicaStatus>,
    /// Since when it is ready without a break.
    pub ready_since: Option<Now>,
    /// When its present phase began, or the scheduler started.
    pub since: Now,
    /// First revision published in this phase.
    pub published: Option<Revision>,
    /// It ran before the scheduler started: what its first report says is no news.
    pub adopted: bool,
}

impl Replica {
    pub(super) fn new(record: ReplicaRecord, now: Now) -> Self {
        Self { record, status: None, ready_since: None, since: now, published: None, adopted: false }
    }

    /// Whether it should run.
    pub fn wanted(&self) -> bool {
        self.record.phase == Phase::Wanted
    }

    /// Whether its agent says that it works, or it has done its work.
    pub fn good(&self) -> bool {
        self.record.completed || self.ready_since.is_some()
    }

    pub(super) fn state(&self) -> Option<ReplicaState> {
        self.status.as_ref().map(|status| status.state)
    }
}

/// A record that a step touched: the store writes its present value, or removes it when it is gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// An app.
    App(AppName),
    /// An earlier template.
    Template(TemplateKey),
    /// A node.
    Node(NodeId),
    /// A replica.
    Replica(ReplicaId),
    /// The node that holds a replica name's volumes.
    Pin(ReplicaName),
    /// A volume whose data must go.
    Condemned(String),
    /// The counters.
    Counters,
}

/// What applying something did: records to write together, and what there is to tell.
#[derive(Debug, Clone, Default)]
pub struct Effects {
    /// Records to write in one transaction.
    pub keys: Vec<Key>,
    /// Events.
    pub notes: Vec<Note>,
}

/// What one step did.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// Each entry in one transaction, in order; all before anyone is told.
    pub effects: Vec<Effects>,
    /// New assignments.
    pub assignments: Vec<(NodeId, Arc<Assignment>)>,
    /// Where nodes may fetch images, to be told before the assignments.
    pub sources: Vec<(NodeId, Arc<Sources>)>,
}

/// Everything the scheduler knows.
#[derive(Debug, Clone)]
pub struct World {
    /// What the cluster was made with.
    pub settings: Settings,
    /// Numbers that are handed out once.
    pub counters: Counters,
    /// Apps.
    pub apps: BTreeMap<AppName, AppRecord>,
    /// Earlier templates that a replica or a rollout still needs.
    pub templates: BTreeMap<TemplateKey, Template>,
    /// Nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Replicas.
    pub replicas: BTreeMap<ReplicaId, Replica>,
    /// Which node holds the volumes of a replica's name.
    pub pins: BTreeMap<ReplicaName, NodeId>,
    /// Volumes (`<app>_<volume>`) whose data must go, and where it still is.
    pub condemned: BTreeMap<String, BTreeSet<NodeId>>,
    /// What each service waits for, in words.
    pub messages: BTreeMap<(AppName, ServiceName), String>,
    /// When each service's replicas were last moved to even them out.
    pub moved: BTreeMap<(AppName, ServiceName), Now>,
    /// Rises with every change that someone outside could see.
    pub revision: Revision,
    pub(super) published: Published,
    /// Where each node was last told to fetch images.
    pub(super) told: BTreeMap<NodeId, Arc<Sources>>,
    /// Something changed since that was worked out.
    pub(super) sources_due: bool,
    awaited: BTreeSet<NodeId>,
    hold_until: Now,
    ticked: Now,
}

/// Rounds of planning in one step; more would mean that two rules fight.
const ROUNDS_MAX: u32 = 32;

impl World {
    /// An empty world; `revision` is higher than any handed out before.
    pub fn new(settings: Settings, revision: Revision, now: Now) -> Self {
        Self {
            settings,
            counters: Counters::default(),
            apps: BTreeMap::new(),
            templates: BTreeMap::new(),
            nodes: BTreeMap::new(),
            replicas: BTreeMap::new(),
            pins: BTreeMap::new(),
            condemned: BTreeMap::new(),
            messages: BTreeMap::new(),
            moved: BTreeMap::new(),
            revision,
            published: Published::default(),
            told: BTreeMap::new(),
            sources_due: false,
            awaited: BTreeSet::new(),
            hold_until: now,
            ticked: now,
        }
    }

    /// Takes in a node from the store.
    pub fn load_node(&mut self, record: NodeRecord, now: Now) {
        self.nodes.insert(record.id.clone(), Node::new(record, now));
    }

    /// Takes in a replica from the store.
    pub fn load_replica(&mut self, record: ReplicaRecord, now: Now) {
        let replica = Replica { adopted: true, ..Replica::new(record, now) };
        self.replicas.insert(replica.record.id.clone(), replica);
    }

    /// Holds back decisions and tables until every node that was not lost has reported, or its grace is over: after
    /// a restart nobody loses traffic because the scheduler does not know yet who is ready.
    pub fn hold(&mut self, now: Now) {
        self.awaited = self.nodes.values().filter(|n| !n.record.lost).map(|n| n.record.id.clone()).collect();
        self.hold_until = Now(now.0 + super::nodes::GRACE_MS);
    }

    /// Whether decisions are held back.
    pub fn holding(&self, now: Now) -> bool {
        now < self.hold_until && !self.awaited.is_empty()
    }

    /// The template a replica is made from.
    pub fn template(&self, name: &ReplicaName, generation: u64) -> Option<&Template> {
        let present = self.apps.get(&name.app).and_then(|app| {
            let record = app.services.get(&name.service)?;
            let service = app.spec.services.get(&name.service)?;
            (record.generation == generation).then_some(&service.template)
        });
        present.or_else(|| self.templates.get(&(name.app.clone(), name.service.clone(), generation)))
    }

    /// Whether the replica may be given connections.
    pub fn ready(&self, replica: &Replica) -> bool {
        let node = self.nodes.get(&replica.record.node);
        replica.wanted() && replica.ready_since.is_some() && node.is_some_and(|n| n.state == NodeState::Ready)
    }

    /// What replicas reserve on each node, and how many there are, those on their way out too.
    pub fn reserved(&self) -> BTreeMap<&NodeId, (Capacity, u32)> {
        let mut sums: BTreeMap<&NodeId, (Capacity, u32)> = BTreeMap::new();
        for replica in self.replicas.values() {
            let need = self.need(&replica.record);
            let (sum, count) = sums.entry(&replica.record.node).or_default();
            sum.cpu.0 = sum.cpu.0.saturating_add(need.cpu.0);
            sum.memory.0 = sum.memory.0.saturating_add(need.memory.0);
            *count += 1;
        }
        sums
    }

    pub(super) fn need(&self, record: &ReplicaRecord) -> Capacity {
        self.template(&record.name, record.generation).map_or_else(Capacity::default, reservation)
    }

    /// A stream of `node` began. Its earlier streams count no more.
    ///
    /// # Errors
    /// The node never joined, was forgotten, or another of its streams is newer.
    pub fn hello(&mut self, session: u64, hello: Hello, now: Now) -> Result<Effects, UnknownNode> {
        let node = self.nodes.get_mut(&hello.node).ok_or(UnknownNode)?;
        if session < node.session {
            return Err(UnknownNode);
        }
        self.sources_due = true;
        node.session = session;
        node.seen = Some(now);
        if let Some(report) = &mut node.report {
            report.sequence = 0;
        }
        let mut effects = Effects::default();
        if node.record.hello.as_ref() != Some(&hello) || node.record.underlay != hello.underlay {
            node.record.underlay = hello.underlay;
            effects.keys.push(Key::Node(hello.node.clone()));
            node.record.hello = Some(hello);
        }
        Ok(effects)
    }

    /// A node reported. Returns what there is to tell, and whether anything changed that a decision could rest on.
    ///
    /// Reports of an earlier stream, and one that is not newer than the last, are dropped.
    pub fn report(&mut self, id: &NodeId, session: u64, mut report: Report, now: Now) -> (Effects, bool) {
        let mut effects = Effects::default();
        let Some(node) = self.nodes.get_mut(id) else { return (effects, false) };
        let stale = node.report.as_ref().is_some_and(|last| report.sequence <= last.sequence && report.sequence > 0);
        if session != node.session || stale {
            return (effects, false);
        }
        let mut changed = node.state != NodeState::Ready || self.awaited.remove(id);
        changed |= node.report.as_ref().is_none_or(|last| {
            last.applied != report.applied
                || last.volumes != report.volumes
                || last.replicas.len() != report.replicas.len()
        });
        node.seen = Some(now);
        let mut listed: BTreeMap<ReplicaId, ReplicaStatus> =
            report.replicas.iter().map(|status| (status.id.clone(), status.clone())).collect();
        report.replicas.sort_by(|a, b| a.id.cmp(&b.id));
        node.report = Some(report);
        for replica in self.replicas.values_mut().filter(|r| r.record.node == *id) {
            let status = listed.remove(&replica.record.id);
            changed |= observe(replica, status, now, &mut effects);
        }
        self.sources_due |= changed;
        (effects, changed)
    }

    /// Lets time pass. A step in which nothing was heard because the scheduler itself stood still (a stopped
    /// process, a paused machine) is not counted as silence of the nodes.
    fn advance(&mut self, now: Now) {
        let gap = now.since(self.ticked);
        if gap > super::nodes::SUSPECT_MS {
            for node in self.nodes.values_mut() {
                node.seen = node.seen.map(|seen| Now(seen.0 + gap));
                node.since = Now(node.since.0 + gap);
            }
        }
        self.ticked = self.ticked.max(now);
    }

    /// Plans, applies what was planned until nothing is left, and publishes what changed.
    pub fn step(&mut self, now: Now) -> Step {
        self.advance(now);
        let mut step = Step::default();
        for _ in 0..ROUNDS_MAX {
            let actions = plan(self, now);
            if actions.is_empty() {
                break;
            }
            step.effects.extend(actions.into_iter().map(|action| self.apply(action, now)));
        }
        if !self.holding(now) {
            step.sources = self.advise();
            step.assignments = self.publish(now);
        }
        step
    }

    /// Applies one decision.
    pub fn apply(&mut self, action: Action, now: Now) -> Effects {
        let mut effects = Effects::default();
        self.sources_due = true;
        self.apply_to(action, now, &mut effects);
        effects
    }

    fn apply_to(&mut self, action: Action, now: Now, effects: &mut Effects) {
        match action {
            Action::Node { node, state } => super::nodes::apply(self, &node, state, now, effects),
            Action::Place { replica, pin, evict, why } => self.apply_place(replica, pin, evict, why, now, effects),
            Action::Release { app, service } => {
                if let Some(record) = self.service_mut(&app, &service) {
                    record.released = true;
                    effects.keys.push(Key::App(app));
                }
            }
            Action::Complete { replica } => {
                if let Some(found) = self.replicas.get_mut(&replica) {
                    found.record.completed = true;
                    effects.note("replica.completed", &replica, "ended with exit code 0");
                    effects.keys.push(Key::Replica(replica));
                }
            }
            Action::Drain { replica, handover, why } => {
                self.enter(&replica, Phase::Draining { handover }, now, effects);
                effects.note("replica.draining", &replica, why);
            }
            Action::Drop { replica } => {
                let handover = self.replicas.get(&replica).is_some_and(|r| drain::handover(r.record.phase));
                self.enter(&replica, Phase::Stopping { handover }, now, effects);
                effects.note("replica.stopping", &replica, "no node sends it connections any more");
            }
            Action::Forget { replica, why } => {
                self.replicas.remove(&replica);
                effects.note("replica.gone", &replica, why);
                effects.keys.push(Key::Replica(replica));
            }
            Action::Rollout { app, service, rollout, why } => {
                if let Some(record) = self.service_mut(&app, &service) {
                    let kind = match &rollout {
                        Rollout::Done => "rollout.done",
                        Rollout::Active { .. } => "rollout.started",
                        Rollout::Paused { .. } => "rollout.paused",
                        Rollout::Back { .. } => "rollout.back",
                    };
                    record.rollout = rollout;
                    effects.note(kind, format!("{app}/{service}"), why);
                    effects.keys.push(Key::App(app));
                }
            }
            Action::Rollback { app, service, why } => self.apply_rollback(app, service, why, effects),
            Action::RemoveApp { app } => self.apply_remove_app(app, effects),
            Action::RemoveTemplate { key } => {
                self.templates.remove(&key);
                effects.keys.push(Key::Template(key));
            }
            Action::VolumeGone { volume, node } => {
                if let Some(places) = self.condemned.get_mut(&volume) {
                    places.remove(&node);
                    if places.is_empty() {
                        self.condemned.remove(&volume);
                    }
                }
                effects.note("volume.removed", &volume, format!("its data on node {} is gone", self.node_name(&node)));
                effects.keys.push(Key::Condemned(volume));
            }
            Action::Explain { app, service, message: Some(message) } => {
                self.messages.insert((app, service), message);
            }
            Action::Explain { app, service, message: None } => {
                self.messages.remove(&(app, service));
            }
        }
    }

    fn apply_place(
        &mut self,
        record: ReplicaRecord,
        pin: bool,
        evict: Option<ReplicaId>,
        why: String,
        now: Now,
        effects: &mut Effects,
    ) {
        if let Some(evicted) = evict {
            self.replicas.remove(&evicted);
            effects.note("replica.gone", &evicted, format!("replaced by {}", record.id));
            effects.keys.push(Key::Replica(evicted));
        }
        if pin && self.pins.get(&record.name) != Some(&record.node) {
            self.pins.insert(record.name.clone(), record.node.clone());
            effects.keys.push(Key::Pin(record.name.clone()));
        }
        if why == super::services::MOVED {
            self.moved.insert((record.name.app.clone(), record.name.service.clone()), now);
        }
        self.counters.replicas = self.counters.replicas.max(record.order);
        effects.note("replica.placed", &record.id, format!("on node {}: {why}", self.node_name(&record.node)));
        effects.keys.extend([Key::Counters, Key::Replica(record.id.clone())]);
        self.replicas.insert(record.id.clone(), Replica::new(record, now));
    }

    fn apply_rollback(&mut self, app: AppName, service: ServiceName, why: String, effects: &mut Effects) {
        let Some(record) = self.apps.get(&app).and_then(|a| a.services.get(&service)) else { return };
        let Rollout::Active { from } = record.rollout else { return };
        let (back, away) = ((app.clone(), service.clone(), from), (app.clone(), service.clone(), record.generation));
        let Some(template) = self.templates.remove(&back) else { return };
        let Some(found) = self.apps.get_mut(&app) else { return };
        let (Some(spec), Some(record)) = (found.spec.services.get_mut(&service), found.services.get_mut(&service))
        else {
            return;
        };
        let failed = std::mem::replace(&mut spec.template, template);
        record.generation = from;
        record.note = Some(format!("rolled back to the template before: {why}"));
        record.rollout = Rollout::Back { message: why.clone() };
        self.templates.insert(away.clone(), failed);
        effects.note("rollout.back", format!("{app}/{service}"), why);
        effects.keys.extend([Key::App(app), Key::Template(back), Key::Template(away)]);
    }

    fn apply_remove_app(&mut self, app: AppName, effects: &mut Effects) {
        let Some(record) = self.apps.remove(&app) else { return };
        self.messages.retain(|(a, _), _| *a != app);
        self.moved.retain(|(a, _), _| *a != app);
        if record.removing.is_some_and(|removal| removal.volumes) {
            let pinned: Vec<(ReplicaName, NodeId)> =
                self.pins.iter().filter(|(name, _)| name.app == app).map(|(n, id)| (n.clone(), id.clone())).collect();
            for volume in record.spec.volumes.keys() {
                let volume = format!("{app}_{volume}");
                let reported = self
                    .nodes
                    .values()
                    .filter(|n| n.report.as_ref().is_some_and(|report| report.volumes.contains(&volume)));
                let mut places: BTreeSet<NodeId> = reported.map(|n| n.record.id.clone()).collect();
                places.extend(pinned.iter().map(|(_, node)| node.clone()).filter(|id| self.nodes.contains_key(id)));
                if !places.is_empty() {
                    effects.keys.push(Key::Condemned(volume.clone()));
                    self.condemned.entry(volume).or_default().extend(places);
                }
            }
            for (name, _) in pinned {
                self.pins.remove(&name);
                effects.keys.push(Key::Pin(name));
            }
        }
        effects.note("app.removed", &app, "all its replicas are gone");
        effects.keys.push(Key::App(app));
    }

    fn enter(&mut self, id: &ReplicaId, phase: Phase, now: Now, effects: &mut Effects) {
        if let Some(replica) = self.replicas.get_mut(id) {
            replica.record.phase = phase;
            replica.since = now;
            replica.published = None;
            effects.keys.push(Key::Replica(id.clone()));
        }
    }

    pub(super) fn service_mut(&mut self, app: &AppName, service: &ServiceName) -> Option<&mut ServiceRecord> {
        self.apps.get_mut(app)?.services.get_mut(service)
    }

    pub(super) fn node_name(&self, id: &NodeId) -> String {
        self.nodes.get(id).map_or_else(|| id.to_string(), |node| node.record.name.to_string())
    }
}

/// The node is not a member: it never joined or was forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node is not a member of this cluster")]
pub struct UnknownNode;

impl Effects {
    pub(super) fn note(&mut self, kind: &'static str, subject: impl ToString, message: impl Into<String>) {
        self.notes.push(Note { kind, subject: subject.to_string(), message: message.into() });
    }
}

/// What a template reserves.
pub(super) fn reservation(template: &Template) -> Capacity {
    Capacity { cpu: template.resources.reserve_cpu, memory: template.resources.reserve_memory }
}

/// Capacity without what is taken, never below zero.
pub(super) fn free(capacity: Capacity, taken: Capacity) -> Capacity {
    Capacity {
        cpu: MilliCpu(capacity.cpu.0.saturating_sub(taken.cpu.0)),
        memory: Bytes(capacity.memory.0.saturating_sub(taken.memory.0)),
    }
}

/// Named volumes of a template; a replica that has any is bound to the node where its data is.
pub(super) fn volumes(template: &Template) -> impl Iterator<Item = &gantry_api::ids::VolumeName> {
    template.mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Volume { name } => Some(name),
        _ => None,
    })
}

/// Takes in what an agent says of one replica; whether a decision could rest on the difference.
fn observe(replica: &mut Replica, status: Option<ReplicaStatus>, now: Now, told: &mut Effects) -> bool {
    let mut unheard = Effects::default();
    let news = !std::mem::take(&mut replica.adopted);
    let effects = if news { told } else { &mut unheard };
    let id = replica.record.id.clone();
    let before = std::mem::replace(&mut replica.status, status);
    let Some(status) = &replica.status else {
        replica.ready_since = None;
        return before.is_some();
    };
    let ready = status.ready && status.state == ReplicaState::Running;
    if ready != replica.ready_since.is_some() {
        replica.ready_since = ready.then_some(now);
        let (kind, text) = if ready {
            ("replica.ready", "may be given connections")
        } else {
            ("replica.unready", "gets no connections")
        };
        effects.note(kind, &id, status.message.clone().unwrap_or_else(|| text.to_owned()));
    }
    let state_before = before.as_ref().map(|b| b.state);
    if state_before != Some(status.state) {
        let kind = match status.state {
            ReplicaState::Preparing => "replica.preparing",
            ReplicaState::Running => "replica.running",
            ReplicaState::BackingOff => "replica.backing_off",
            ReplicaState::Stopping => "replica.stopping",
            ReplicaState::Completed => "replica.ended",
            ReplicaState::Failed => "replica.failed",
        };
        if kind != "replica.stopping" || replica.record.phase == Phase::Wanted {
            effects.note(kind, &id, status.message.clone().unwrap_or_default());
        }
    }
    let exit_before = before.as_ref().and_then(|b| b.last_exit.as_ref());
    if let Some(exit) = &status.last_exit
        && before.is_some()
        && exit_before != Some(exit)
    {
        effects.note("replica.exited", &id, super::view::exit_text(exit));
    }
    before.as_ref().is_none_or(|b| {
        b.state != status.state
            || b.ready != status.ready
            || b.healthy != status.healthy
            || b.address != status.address
            || b.restarts != status.restarts
            || b.message != status.message
    })
}
