//! From what a service should be to its copies: how many, which numbers, in which order, and what it waits for.

use super::drain::handover;
use super::place::{Need, reason_against};
use super::plan::{Action, Draft};
use super::rollout;
use super::world::{AppRecord, Phase, Replica, Rollout, ServiceRecord, volumes};
use gantry_api::http::NodeState;
use gantry_api::ids::{NodeId, ReplicaName, ServiceName};
use gantry_api::spec::{Condition, Service};
use gantry_api::wire::ReplicaState;
use std::collections::{BTreeMap, BTreeSet};

/// Why a copy is placed to even out a service.
pub(super) const MOVED: &str = "evens out the service over the nodes";
/// Between two such moves of one service.
const MOVE_PAUSE_MS: u64 = 1_500;
/// A node takes part in evening out when it has been ready for so long.
const MOVE_SETTLED_MS: u64 = 1_000;
/// A moved copy that is not ready after so long is given up.
const MOVE_MS_MAX: u64 = 30_000;
/// A service's copies on the fullest and the emptiest node must differ by so much before one is moved.
const MOVE_GAIN: u32 = 2;

/// One service under consideration.
pub(super) struct View<'a> {
    pub(super) app: &'a AppRecord,
    pub(super) name: &'a ServiceName,
    pub(super) spec: &'a Service,
    pub(super) record: &'a ServiceRecord,
    /// Wanted copies by number; two while one takes over from the other.
    pub(super) slots: BTreeMap<u32, Vec<&'a Replica>>,
    /// Numbers with a copy on its way out, and whether another takes the number over.
    pub(super) ending: BTreeMap<u32, bool>,
    /// Copies that should run.
    pub(super) wanted: u32,
    /// Its copies have volumes: each is bound to a node, and no two of one number may run at once.
    pub(super) bound: bool,
}

impl<'a> View<'a> {
    fn new(draft: &Draft<'a>, app: &'a AppRecord, name: &'a ServiceName) -> Option<Self> {
        let (spec, record) = (app.spec.services.get(name)?, app.services.get(name)?);
        let mut slots: BTreeMap<u32, Vec<&Replica>> = BTreeMap::new();
        let mut ending = BTreeMap::new();
        for replica in draft.replicas(&app.spec.name, name) {
            if !draft.world.nodes.contains_key(&replica.record.node) {
                continue; // forgotten by this very plan
            }
            let number = replica.record.name.number;
            match replica.record.phase {
                Phase::Wanted => slots.entry(number).or_default().push(replica),
                phase => *ending.entry(number).or_default() |= handover(phase),
            }
        }
        let wanted = if app.removing.is_some() { 0 } else { spec.replicas };
        let bound = volumes(&spec.template).next().is_some();
        Some(Self { app, name, spec, record, slots, ending, wanted, bound })
    }

    pub(super) fn replica_name(&self, number: u32) -> ReplicaName {
        ReplicaName { app: self.app.spec.name.clone(), service: self.name.clone(), number }
    }

    /// The template of a copy placed now: while a change is paused, the one before it.
    pub(super) fn generation(&self) -> u64 {
        match &self.record.rollout {
            Rollout::Paused { from, .. } => *from,
            _ => self.record.generation,
        }
    }
}

/// What comes next for one service.
pub(super) fn plan<'a>(draft: &mut Draft<'a>, app: &'a AppRecord, name: &'a ServiceName) {
    let Some(mut view) = View::new(draft, app, name) else { return };
    let before = draft.actions.len();
    scale_down(draft, &mut view);
    let mut message = replace_lost(draft, &view);
    message = message.or(fill(draft, &view));
    if draft.actions.len() > before {
        return; // what was just decided is seen from the next plan on, and counts there
    }
    message = rollout::finish_pairs(draft, &view).or(message);
    message = rollout::plan(draft, &view).or(message);
    if draft.actions.len() == before && message.is_none() {
        message = even_out(draft, &view);
    }
    if app.removing.is_some() {
        message = Some("is being removed".to_owned());
    }
    draft.explain(&app.spec.name, name, message.or_else(|| view.record.note.clone()));
}

/// Copies of services that are in no app any more.
pub(super) fn orphans(draft: &mut Draft<'_>) {
    for (app, service) in draft.services() {
        if draft.world.apps.get(app).is_some_and(|app| app.services.contains_key(service)) {
            continue;
        }
        for replica in draft.replicas(app, service).into_iter().filter(|r| r.wanted()) {
            draft.drain(replica, false, "its service was removed");
        }
    }
}

/// Numbers that are one too many go: those that serve least first, then from the fullest node, then the newest.
/// With volumes always the highest, so that which data is in use stays foreseeable.
fn scale_down<'a>(draft: &mut Draft<'a>, view: &mut View<'a>) {
    while view.slots.len() > view.wanted as usize {
        let crowd = |node: &NodeId| view.slots.values().flatten().filter(|r| r.record.node == *node).count();
        let rank = |(number, copies): &(&u32, &Vec<&Replica>)| {
            let useful = copies.iter().any(|r| draft.world.ready(r) || r.record.completed);
            let current = copies.iter().any(|r| r.record.generation == view.record.generation);
            let crowd = copies.iter().map(|r| crowd(&r.record.node)).max().unwrap_or(0);
            if view.bound { (false, false, 0, **number) } else { (!useful, !current, crowd, **number) }
        };
        let Some(number) = view.slots.iter().max_by_key(rank).map(|(number, _)| *number) else { return };
        for replica in view.slots.remove(&number).unwrap_or_default() {
            draft.drain(replica, false, "scaled down");
        }
        view.ending.entry(number).or_default();
    }
}

fn lost(draft: &Draft<'_>, replica: &Replica) -> bool {
    draft.world.nodes.get(&replica.record.node).is_none_or(|node| node.state == NodeState::Lost)
}

/// Copies on lost nodes are placed elsewhere under the same number, unless their data is on that node.
fn replace_lost<'a>(draft: &mut Draft<'a>, view: &View<'a>) -> Option<String> {
    let mut message = None;
    for (number, copies) in &view.slots {
        let (gone, live): (Vec<&Replica>, Vec<&Replica>) = copies.iter().partition(|r| lost(draft, r));
        for old in gone {
            if old.record.completed {
                continue;
            }
            if !live.is_empty() {
                let why = "its node is lost and another copy has its number".to_owned();
                draft.actions.push(Action::Forget { replica: old.record.id.clone(), why });
                continue;
            }
            let name = view.replica_name(*number);
            if draft.world.pins.contains_key(&name) && view.bound {
                let node = draft.world.node_name(&old.record.node);
                message = Some(format!("{name} waits for node {node} (lost), which holds its volume"));
                continue;
            }
            match try_place(
                draft,
                view,
                *number,
                Some(old),
                format!("node {} is lost", draft.world.node_name(&old.record.node)),
            ) {
                Ok(()) => {}
                Err(why) => message = Some(why),
            }
            break; // one copy per number is placed, whatever there was
        }
    }
    message
}

/// Copies that are missing. Numbers that are being handed over come first, then the lowest free ones.
fn fill<'a>(draft: &mut Draft<'a>, view: &View<'a>) -> Option<String> {
    let missing = (view.wanted as usize).saturating_sub(view.slots.len());
    if missing == 0 {
        return None;
    }
    if !view.record.released {
        if let Some(message) = blocked(draft, view) {
            return Some(message);
        }
        let (app, service) = (view.app.spec.name.clone(), view.name.clone());
        draft.actions.push(Action::Release { app, service });
    }
    let handed: BTreeSet<u32> = view.ending.iter().filter(|(_, handover)| **handover).map(|(n, _)| *n).collect();
    let fresh = (1..).filter(|number| {
        let ending = view.ending.contains_key(number);
        !view.slots.contains_key(number) && !handed.contains(number) && (view.bound || !ending)
    });
    let over = handed.iter().copied().filter(|number| !view.slots.contains_key(number));
    let mut message = None;
    for number in over.chain(fresh).take(missing) {
        let name = view.replica_name(number);
        if view.ending.contains_key(&number) || (view.bound && lingers(draft, &name)) {
            message = Some(format!("{name} waits for the copy before it to stop"));
            continue;
        }
        if let Err(why) = try_place(draft, view, number, None, "wanted".to_owned()) {
            message = Some(why);
            if !view.bound {
                break; // what one copy cannot have, its equals cannot either
            }
        }
    }
    message
}

pub(super) fn try_place<'a>(
    draft: &mut Draft<'a>,
    view: &View<'a>,
    number: u32,
    evict: Option<&Replica>,
    why: String,
) -> Result<(), String> {
    let name = view.replica_name(number);
    let generation = view.generation();
    let template = draft.world.template(&name, generation).unwrap_or(&view.spec.template);
    match draft.find(view.app, view.spec, &name, template, evict) {
        Ok(node) => {
            draft.place(view.app, view.name, number, node, generation, evict, why);
            Ok(())
        }
        Err(refusal) => {
            let home = draft.world.pins.get(&name).filter(|_| view.bound).and_then(|id| draft.world.nodes.get(id));
            Err(match home {
                Some(home) if home.state != NodeState::Ready => format!(
                    "{name} waits for node {} ({}), which holds its volume",
                    home.record.name,
                    super::nodes::state_text(home.state)
                ),
                _ => format!("{name} cannot be placed: {refusal}"),
            })
        }
    }
}

/// Whether the node that holds the name's data still has a copy that nobody here knows of: one given up while its
/// node was away.
fn lingers(draft: &Draft<'_>, name: &ReplicaName) -> bool {
    let home = draft.world.pins.get(name).and_then(|id| draft.world.nodes.get(id));
    let Some(report) = home.and_then(|node| node.report.as_ref()) else { return false };
    let prefix = format!("{name}-");
    report.replicas.iter().any(|status| {
        let digits = status.id.as_str().strip_prefix(&prefix);
        digits.is_some_and(|d| d.len() == 6 && d.bytes().all(|c| c.is_ascii_hexdigit()))
            && !draft.world.replicas.contains_key(&status.id)
    })
}

/// What the service's first start waits for.
fn blocked(draft: &Draft<'_>, view: &View<'_>) -> Option<String> {
    view.spec.depends_on.iter().find_map(|(other, condition)| {
        let spec = view.app.spec.services.get(other)?;
        let copies = draft.replicas(&view.app.spec.name, other);
        let reached = copies.iter().filter(|r| r.wanted() && reaches(draft, r, *condition)).count();
        if reached >= spec.replicas as usize {
            return None;
        }
        let what = match condition {
            Condition::Started => "start",
            Condition::Healthy => "be healthy",
            Condition::CompletedSuccessfully => "complete",
        };
        let failed = copies.iter().find(|r| r.wanted() && r.state() == Some(ReplicaState::Failed));
        let because = failed.map(|r| format!(" ({})", failure_text(r))).unwrap_or_default();
        Some(format!("waits for {other} to {what}{because}"))
    })
}

fn reaches(draft: &Draft<'_>, replica: &Replica, condition: Condition) -> bool {
    match condition {
        Condition::Started => replica.record.completed || replica.state() == Some(ReplicaState::Running),
        Condition::Healthy => draft.world.ready(replica),
        Condition::CompletedSuccessfully => replica.record.completed,
    }
}

/// `shop-web-2 failed: exit code 1`.
pub(super) fn failure_text(replica: &Replica) -> String {
    let status = replica.status.as_ref();
    let said = status.and_then(|s| s.message.clone()).filter(|message| !message.is_empty());
    let exit = || status.and_then(|s| s.last_exit.as_ref()).map(super::view::exit_text);
    format!("{} failed: {}", replica.record.name, said.or_else(exit).unwrap_or_else(|| "no reason given".to_owned()))
}

/// One copy goes from the fullest node to the emptiest, when that evens the service out. The new one is ready before
/// the old one ends, one at a time, never with volumes, never while anything else of the service changes.
fn even_out<'a>(draft: &mut Draft<'a>, view: &View<'a>) -> Option<String> {
    let world = draft.world;
    let quiet = view.record.rollout == Rollout::Done && view.ending.is_empty() && !view.bound;
    let settled = |copies: &Vec<&Replica>| matches!(copies[..], [only] if world.ready(only) && only.record.generation == view.record.generation);
    if !quiet
        || view.wanted < MOVE_GAIN
        || view.slots.len() != view.wanted as usize
        || !view.slots.values().all(settled)
    {
        return None;
    }
    let key = (view.app.spec.name.clone(), view.name.clone());
    if world.moved.get(&key).is_some_and(|at| draft.now.since(*at) < MOVE_PAUSE_MS) {
        return None;
    }
    let need: Need<'_> = draft.requirements(view.app, view.spec, &view.replica_name(1), &view.spec.template);
    let candidates = draft.candidates(&view.app.spec.name, view.name, None);
    let fullest = candidates.iter().max_by_key(|c| c.spread)?;
    let open = candidates
        .iter()
        .filter(|c| reason_against(&need, c).is_none() && draft.now.since(c.node.ready_since) >= MOVE_SETTLED_MS);
    let emptiest = open.min_by_key(|c| (c.spread, c.replicas))?;
    if fullest.spread < emptiest.spread + MOVE_GAIN {
        return None;
    }
    let (from, to) = (fullest.node.record.id.clone(), emptiest.node.record.id.clone());
    let (number, _) = view.slots.iter().rev().find(|(_, copies)| copies[0].record.node == from)?;
    draft.place(view.app, view.name, *number, to, view.record.generation, None, MOVED);
    None
}

/// Whether a copy that was to take over has had its time.
pub(super) const fn overdue(waited_ms: u64) -> bool {
    waited_ms >= MOVE_MS_MAX
}
