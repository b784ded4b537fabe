//! What comes next, everywhere.

use super::place::{Candidate, Need, Refusal, place};
use super::world::{AppRecord, Now, Phase, Replica, ReplicaRecord, Rollout, TemplateKey, World, reservation, volumes};
use super::{drain, nodes, services};
use gantry_api::http::NodeState;
use gantry_api::ids::{AppName, NodeId, ReplicaId, ReplicaName, ServiceName};
use gantry_api::spec::{Service, Template};
use gantry_api::wire::{Capacity, ReplicaState};
use std::collections::BTreeMap;

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A node can be counted on, or not.
    Node {
        /// Which.
        node: NodeId,
        /// How far.
        state: NodeState,
    },
    /// What the service depends on was reached: it may start.
    Release {
        /// Its app.
        app: AppName,
        /// The service.
        service: ServiceName,
    },
    /// A new copy runs on a node.
    Place {
        /// The decision.
        replica: ReplicaRecord,
        /// Its volumes bind its name to the node from now on.
        pin: bool,
        /// The copy on a lost node whose number it takes.
        evict: Option<ReplicaId>,
        /// Why, in words.
        why: String,
    },
    /// A replica ended with exit code 0 for good.
    Complete {
        /// Which.
        replica: ReplicaId,
    },
    /// A replica must go: no new connections from now on.
    Drain {
        /// Which.
        replica: ReplicaId,
        /// Whether another copy takes its number when it is gone.
        handover: bool,
        /// Why, in words.
        why: String,
    },
    /// Every node knows: its agent is told to stop it.
    Drop {
        /// Which.
        replica: ReplicaId,
    },
    /// A replica is gone.
    Forget {
        /// Which.
        replica: ReplicaId,
        /// How that is known, in words.
        why: String,
    },
    /// A rolling change goes into another state.
    Rollout {
        /// Its app.
        app: AppName,
        /// The service.
        service: ServiceName,
        /// The state.
        rollout: Rollout,
        /// Why, in words.
        why: String,
    },
    /// A rolling change failed: the template before is the present one again.
    Rollback {
        /// Its app.
        app: AppName,
        /// The service.
        service: ServiceName,
        /// Why, in words.
        why: String,
    },
    /// Nothing of an app that was taken down is left.
    RemoveApp {
        /// Which.
        app: AppName,
    },
    /// No replica is made from this template any more.
    RemoveTemplate {
        /// Which.
        key: TemplateKey,
    },
    /// A node has deleted a volume's data.
    VolumeGone {
        /// `<app>_<volume>`.
        volume: String,
        /// Where.
        node: NodeId,
    },
    /// What a service waits for, in words; kept in memory only.
    Explain {
        /// Its app.
        app: AppName,
        /// The service.
        service: ServiceName,
        /// `None` when it waits for nothing.
        message: Option<String>,
    },
}

/// Something to tell, not yet an event: it has no time and no number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// `replica.placed`, …
    pub kind: &'static str,
    /// Whom it is about.
    pub subject: String,
    /// Why, in words.
    pub message: String,
}

/// What comes next, at most one step per replica; empty when all is as it should be for now.
///
/// Each action is valid together with those before it. Carried out until nothing is left, it comes to rest.
pub fn plan(world: &World, now: Now) -> Vec<Action> {
    let moved = nodes::transitions(world, now);
    if !moved.is_empty() || world.holding(now) {
        return moved;
    }
    let mut draft = Draft::new(world, now);
    completed(&mut draft);
    drain::plan(&mut draft);
    for app in world.apps.values() {
        for service in app.spec.services.keys() {
            services::plan(&mut draft, app, service);
        }
    }
    services::orphans(&mut draft);
    leftovers(&mut draft);
    draft.actions
}

fn completed(draft: &mut Draft<'_>) {
    for replica in draft.world.replicas.values() {
        if !replica.record.completed && replica.wanted() && replica.state() == Some(ReplicaState::Completed) {
            draft.actions.push(Action::Complete { replica: replica.record.id.clone() });
        }
    }
}

/// Apps, templates and volumes that nothing needs any more.
fn leftovers(draft: &mut Draft<'_>) {
    let world = draft.world;
    for app in world.apps.values().filter(|app| app.removing.is_some()) {
        if !world.replicas.values().any(|replica| replica.record.name.app == app.spec.name) {
            draft.actions.push(Action::RemoveApp { app: app.spec.name.clone() });
        }
    }
    for (app, service, generation) in world.templates.keys() {
        let used = world.replicas.values().any(|r| {
            r.record.generation == *generation && r.record.name.app == *app && r.record.name.service == *service
        });
        let rollout = world.apps.get(app).and_then(|a| a.services.get(service)).map(|record| &record.rollout);
        let kept =
            matches!(rollout, Some(Rollout::Active { from } | Rollout::Paused { from, .. }) if from == generation);
        if !used && !kept {
            draft.actions.push(Action::RemoveTemplate { key: (app.clone(), service.clone(), *generation) });
        }
    }
    for (volume, places) in &world.condemned {
        for place in places {
            let gone = match world.nodes.get(place) {
                None => true,
                Some(node) => {
                    node.state == NodeState::Ready
                        && node.applied() >= node.assigned
                        && node.report.as_ref().is_some_and(|report| !report.volumes.contains(volume))
                }
            };
            if gone {
                draft.actions.push(Action::VolumeGone { volume: volume.clone(), node: place.clone() });
            }
        }
    }
}

/// A plan in the making: the world, and what the actions so far take from it.
pub(super) struct Draft<'a> {
    pub(super) world: &'a World,
    pub(super) now: Now,
    pub(super) actions: Vec<Action>,
    taken: BTreeMap<&'a NodeId, (Capacity, u32)>,
    groups: BTreeMap<(&'a AppName, &'a ServiceName), Vec<&'a Replica>>,
    /// Copies of a service that this plan adds to a node, or takes away from it.
    shifts: BTreeMap<(&'a AppName, ServiceName, &'a NodeId), i32>,
    order: u64,
}

impl<'a> Draft<'a> {
    fn new(world: &'a World, now: Now) -> Self {
        let mut groups: BTreeMap<_, Vec<&Replica>> = BTreeMap::new();
        for replica in world.replicas.values() {
            groups.entry((&replica.record.name.app, &replica.record.name.service)).or_default().push(replica);
        }
        let (taken, order) = (world.reserved(), world.counters.replicas);
        Self { world, now, actions: Vec::new(), taken, groups, shifts: BTreeMap::new(), order }
    }

    /// All replicas of a service, those on their way out too.
    pub(super) fn replicas(&self, app: &AppName, service: &ServiceName) -> Vec<&'a Replica> {
        self.groups.get(&(app, service)).cloned().unwrap_or_default()
    }

    /// Services that have replicas, in an app or not.
    pub(super) fn services(&self) -> Vec<(&'a AppName, &'a ServiceName)> {
        self.groups.keys().copied().collect()
    }

    /// Where a new copy of `name` could run; `without` is taken to be gone already.
    pub(super) fn find(
        &self,
        app: &'a AppRecord,
        service: &'a Service,
        name: &ReplicaName,
        template: &Template,
        without: Option<&Replica>,
    ) -> Result<NodeId, Refusal> {
        let candidates = self.candidates(&app.spec.name, &name.service, without);
        place(&self.requirements(app, service, name, template), &candidates)
    }

    pub(super) fn requirements(
        &self,
        app: &'a AppRecord,
        service: &'a Service,
        name: &ReplicaName,
        template: &Template,
    ) -> Need<'a> {
        let home = volumes(template).next().and_then(|_| self.world.pins.get(name)).cloned();
        let shared = if home.is_none() { shared_homes(self.world, app, &name.service, template) } else { Vec::new() };
        let mut clearing = Vec::new();
        for volume in volumes(template) {
            if let Some(places) = self.world.condemned.get(&format!("{}_{volume}", app.spec.name)) {
                clearing.extend(places.iter().cloned());
            }
        }
        Need { wants: reservation(template), placement: &service.placement, home, shared, clearing }
    }

    /// Every node with what is taken there.
    pub(super) fn candidates(
        &self,
        app: &'a AppName,
        service: &ServiceName,
        without: Option<&Replica>,
    ) -> Vec<Candidate<'a>> {
        let group = self.groups.get(&(app, service)).map(Vec::as_slice).unwrap_or_default();
        let mut copies: BTreeMap<&NodeId, (u32, u32)> = BTreeMap::new();
        for replica in group.iter().filter(|r| without.is_none_or(|w| w.record.id != r.record.id)) {
            let (spread, present) = copies.entry(&replica.record.node).or_default();
            *spread += u32::from(replica.wanted());
            *present += 1;
        }
        let make = |node: &'a super::world::Node| {
            let id = &node.record.id;
            let (mut taken, mut replicas) = self.taken.get(id).copied().unwrap_or_default();
            if let Some(gone) = without.filter(|w| w.record.node == *id) {
                taken = super::world::free(taken, self.world.need(&gone.record));
                replicas = replicas.saturating_sub(1);
            }
            let (spread, present) = copies.get(id).copied().unwrap_or_default();
            let shift = self.shifts.get(&(app, service.clone(), id)).copied().unwrap_or_default();
            let spread = spread.saturating_add_signed(shift);
            Candidate { node, taken, replicas, spread, present: present + shift.max(0).unsigned_abs() }
        };
        self.world.nodes.values().map(make).collect()
    }

    /// Places a copy of `name` on `node`.
    #[allow(clippy::too_many_arguments)] // one decision with all its parts, built in three places
    pub(super) fn place(
        &mut self,
        app: &'a AppRecord,
        service: &ServiceName,
        number: u32,
        node: NodeId,
        generation: u64,
        evict: Option<&Replica>,
        why: impl Into<String>,
    ) {
        self.order += 1;
        let name = ReplicaName { app: app.spec.name.clone(), service: service.clone(), number };
        let id = ReplicaId::new(&name, scatter(self.order));
        let record = ReplicaRecord {
            id,
            name,
            node: node.clone(),
            generation,
            order: self.order,
            phase: Phase::Wanted,
            completed: false,
        };
        let template = self.world.template(&record.name, generation);
        let pin = template.is_some_and(|t| volumes(t).next().is_some());
        if let Some((key, need)) =
            self.world.nodes.get_key_value(&node).map(|(key, _)| key).zip(template.map(reservation))
        {
            let (taken, replicas) = self.taken.entry(key).or_default();
            taken.cpu.0 = taken.cpu.0.saturating_add(need.cpu.0);
            taken.memory.0 = taken.memory.0.saturating_add(need.memory.0);
            *replicas += 1;
            *self.shifts.entry((&app.spec.name, service.clone(), key)).or_default() += 1;
        }
        let evict = evict.map(|old| old.record.id.clone());
        self.actions.push(Action::Place { replica: record, pin, evict, why: why.into() });
    }

    /// Sends a replica on its way out.
    pub(super) fn drain(&mut self, replica: &'a Replica, handover: bool, why: impl Into<String>) {
        let record = &replica.record;
        *self.shifts.entry((&record.name.app, record.name.service.clone(), &record.node)).or_default() -= 1;
        self.actions.push(Action::Drain { replica: record.id.clone(), handover, why: why.into() });
    }

    /// Says what a service waits for, when that is news.
    pub(super) fn explain(&mut self, app: &AppName, service: &ServiceName, message: Option<String>) {
        let key = (app.clone(), service.clone());
        if self.world.messages.get(&key) != message.as_ref() {
            self.actions.push(Action::Explain { app: key.0, service: key.1, message });
        }
    }
}

/// Nodes that hold a volume of the template for another service of the app: the two must meet there.
fn shared_homes(world: &World, app: &AppRecord, service: &ServiceName, template: &Template) -> Vec<NodeId> {
    let mut homes = Vec::new();
    for (other, spec) in app.spec.services.iter().filter(|(other, _)| *other != service) {
        if volumes(&spec.template).any(|theirs| volumes(template).any(|ours| ours == theirs)) {
            let first = ReplicaName { app: app.spec.name.clone(), service: other.clone(), number: 0 };
            let of_other = world.pins.range(first..).take_while(|(n, _)| n.app == app.spec.name && n.service == *other);
            homes.extend(of_other.map(|(_, node)| node.clone()));
        }
    }
    homes
}

/// Spreads consecutive numbers over all 24-bit ones, each hit once before any is hit twice, so that two copies of a
/// name are told apart at a glance.
fn scatter(order: u64) -> u32 {
    (order.wrapping_mul(0x9e_3779 | 1) & 0xff_ffff) as u32
}
