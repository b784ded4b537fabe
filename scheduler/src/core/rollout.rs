//! A rolling change: replicas of an earlier template, or on a node that the rules no longer allow, are replaced by
//! ones of the present template, a few at a time, each batch only when the one before is good.
//!
//! ```text
//!  Done ──deploy──► Active ──all good──► Done
//!                     │ a changed replica fails
//!                     ├─ pause ─────► Paused ──deploy──► Active
//!                     ├─ continue ──► Active
//!                     └─ rollback ──► Back ──all good──► Done
//! ```

use super::plan::{Action, Draft};
use super::services::{View, failure_text, overdue, try_place};
use super::world::{Replica, Rollout};
use gantry_api::spec::{OnFailure, UpdateOrder};
use gantry_api::wire::ReplicaState;
use std::collections::BTreeSet;

/// With a check or a start that fails so often, a changed replica counts as failed; it is allowed one unlucky start.
const RESTARTS_MAX: u32 = 2;

/// Where two copies have one number, the one that takes over ends the other as soon as it is good.
pub(super) fn finish_pairs<'a>(draft: &mut Draft<'a>, view: &View<'a>) -> Option<String> {
    let mut message = None;
    for (number, copies) in view.slots.iter().filter(|(_, copies)| copies.len() > 1) {
        let fit = |r: &&&'a Replica| r.record.generation == view.record.generation && !misplaced(draft, view, r);
        let Some(heir) = copies.iter().filter(fit).max_by_key(|r| r.record.order).copied() else { continue };
        if draft.world.ready(heir) || heir.record.completed {
            for old in copies.iter().filter(|r| r.record.id != heir.record.id) {
                draft.drain(old, false, format!("{} has taken over", heir.record.id));
            }
            continue;
        }
        let even = copies.iter().all(|r| r.record.generation == heir.record.generation);
        let over = heir.state() == Some(ReplicaState::Failed) || overdue(draft.now.since(heir.since));
        if even && over && copies.iter().any(|r| draft.world.ready(r)) {
            draft.drain(heir, false, "it did not become ready in place of the copy that works");
        } else {
            message = Some(format!("waits for {} to be ready", view.replica_name(*number)));
        }
    }
    message
}

/// Replaces the next batch.
pub(super) fn plan<'a>(draft: &mut Draft<'a>, view: &View<'a>) -> Option<String> {
    if view.wanted == 0 {
        return finish(draft, view);
    }
    if let Rollout::Paused { message, .. } = &view.record.rollout {
        return Some(format!("rolling change paused: {message}"));
    }
    let current = |r: &&Replica| r.record.generation == view.record.generation;
    let changed: Vec<&Replica> = view.slots.values().flatten().copied().filter(|r| current(&r)).collect();
    let outdated: Vec<u32> = view
        .slots
        .iter()
        .filter(|(_, copies)| copies.iter().all(|r| !current(r) || misplaced(draft, view, r)))
        .map(|(number, _)| *number)
        .collect();
    let failing: Vec<&Replica> = changed.iter().copied().filter(|r| fails(view, r)).collect();
    if let Some(message) = on_failure(draft, view, &failing) {
        return message;
    }
    let ignore_failed = view.spec.update.on_failure == OnFailure::Continue || !is_active(view);
    let mut busy: BTreeSet<u32> = changed
        .iter()
        .filter(|r| !settled(draft, view, r) && !(ignore_failed && fails(view, r)))
        .map(|r| r.record.name.number)
        .collect();
    busy.extend(view.ending.iter().filter(|(_, handover)| **handover).map(|(number, _)| *number));
    if outdated.is_empty() {
        if busy.is_empty() && view.slots.len() >= view.wanted as usize {
            return finish(draft, view).or_else(|| changed.iter().find(|r| ailing(r)).map(|r| failure_text(r)));
        }
        let waits = is_rolling(view).then(|| waiting(view, &busy)).flatten();
        return waits.or_else(|| changed.iter().find(|r| ailing(r)).map(|r| failure_text(r)));
    }
    let room = match view.spec.update.parallelism {
        0 => usize::MAX,
        most => (most as usize).saturating_sub(busy.len()),
    };
    replace(draft, view, outdated, room).or_else(|| waiting(view, &busy))
}

fn is_active(view: &View<'_>) -> bool {
    matches!(view.record.rollout, Rollout::Active { .. })
}

fn is_rolling(view: &View<'_>) -> bool {
    view.record.rollout != Rollout::Done
}

fn waiting(view: &View<'_>, busy: &BTreeSet<u32>) -> Option<String> {
    let first = view.replica_name(*busy.first()?);
    let verb = if matches!(view.record.rollout, Rollout::Back { .. }) { "rolling back" } else { "rolling change" };
    Some(format!("{verb}: waits for {first} to be ready"))
}

/// The change is over when no copy differs and none is busy.
fn finish(draft: &mut Draft<'_>, view: &View<'_>) -> Option<String> {
    if is_rolling(view) && view.app.removing.is_none() {
        let (app, service) = (view.app.spec.name.clone(), view.name.clone());
        let why = match &view.record.rollout {
            Rollout::Back { .. } => "every replica is on the template before again",
            _ => "every replica is on the present template",
        };
        draft.actions.push(Action::Rollout { app, service, rollout: Rollout::Done, why: why.to_owned() });
    }
    None
}

/// What a failed changed replica leads to; `None` when the change goes on.
#[allow(clippy::option_option)] // outer: stop here; inner: what to say
fn on_failure(draft: &mut Draft<'_>, view: &View<'_>, failing: &[&Replica]) -> Option<Option<String>> {
    let Rollout::Active { from } = view.record.rollout else { return None };
    let why = failure_text(failing.first()?);
    let (app, service) = (view.app.spec.name.clone(), view.name.clone());
    match view.spec.update.on_failure {
        OnFailure::Continue => None,
        OnFailure::Rollback => {
            draft.actions.push(Action::Rollback { app, service, why: why.clone() });
            Some(Some(format!("rolling back: {why}")))
        }
        OnFailure::Pause => {
            let rollout = Rollout::Paused { from, message: why.clone() };
            draft.actions.push(Action::Rollout { app, service, rollout, why: why.clone() });
            Some(Some(format!("rolling change paused: {why}")))
        }
    }
}

/// Starts replacing up to `room` numbers; those that serve nobody first.
fn replace<'a>(draft: &mut Draft<'a>, view: &View<'a>, mut outdated: Vec<u32>, room: usize) -> Option<String> {
    let serves = |number: &u32| view.slots[number].iter().any(|r| draft.world.ready(r));
    outdated.sort_by_key(|number| (serves(number), *number));
    // While a copy that takes over is on its way its number is busy, which `room` has counted.
    for number in outdated.into_iter().take(room) {
        let Some(old) = view.slots[&number].iter().max_by_key(|r| r.record.order) else { continue };
        let name = view.replica_name(number);
        if view.spec.update.order == UpdateOrder::StartFirst && !view.bound {
            if let Err(why) = try_place(draft, view, number, None, "takes over from the copy before it".to_owned()) {
                return Some(format!("rolling change waits, order start-first needs room for one more: {why}"));
            }
            continue;
        }
        let template = &view.spec.template;
        if let Err(refusal) = draft.find(view.app, view.spec, &name, template, Some(old)) {
            return Some(format!("rolling change waits: {name} could not be placed again: {refusal}"));
        }
        for old in &view.slots[&number] {
            draft.drain(old, true, "replaced by a rolling change");
        }
    }
    None
}

/// Good for as long as the change's watch and pause say; without a change under way, good at all.
fn settled(draft: &Draft<'_>, view: &View<'_>, replica: &Replica) -> bool {
    let update = &view.spec.update;
    let watch = if is_rolling(view) { update.monitor_ms.0.saturating_add(update.delay_ms.0) } else { 0 };
    replica.record.completed || replica.ready_since.is_some_and(|since| draft.now.since(since) >= watch)
}

fn fails(view: &View<'_>, replica: &Replica) -> bool {
    let Some(status) = &replica.status else { return false };
    let watched = view.spec.update.monitor_ms.0 > 0;
    let restarts_max = if watched { 1 } else { RESTARTS_MAX };
    let unwell = !replica.good() || watched;
    status.state == ReplicaState::Failed
        || (unwell && status.restarts >= restarts_max)
        || (!replica.good() && status.healthy == Some(false))
}

/// A replica that will not run, or not for long, without someone's help.
fn ailing(replica: &Replica) -> bool {
    let again = replica.status.as_ref().is_some_and(|status| status.restarts >= RESTARTS_MAX);
    match replica.state() {
        Some(ReplicaState::Failed) => true,
        Some(ReplicaState::BackingOff) => again,
        _ => false,
    }
}

/// Whether the rules no longer allow the replica's node. One with volumes stays with its data.
fn misplaced(draft: &Draft<'_>, view: &View<'_>, replica: &Replica) -> bool {
    let Some(node) = draft.world.nodes.get(&replica.record.node) else { return false };
    !view.bound && !view.spec.placement.constraints.iter().all(|constraint| node.satisfies(constraint))
}
