//! How a replica goes without losing a connection: first every node stops sending it new ones, then it is stopped,
//! then it is forgotten when its agent no longer has it.

use super::plan::{Action, Draft};
use super::world::{Phase, Replica, World, volumes};
use gantry_api::http::NodeState;

/// A node that does not apply its table for so long holds a drain up no longer.
const DRAIN_MS_MAX: u64 = 1_000;
/// An agent that reports without a dropped replica for so long has not got it, whatever its table is.
const DROPPED_MS_MAX: u64 = 5_000;

pub(super) const fn handover(phase: Phase) -> bool {
    matches!(phase, Phase::Draining { handover: true } | Phase::Stopping { handover: true })
}

pub(super) fn plan(draft: &mut Draft<'_>) {
    let (world, now) = (draft.world, draft.now);
    for replica in world.replicas.values() {
        let id = replica.record.id.clone();
        let why = match world.nodes.get(&replica.record.node).map(|node| node.state) {
            None => Some("its node was removed"),
            Some(NodeState::Lost) if !replica.wanted() && !must_be_seen_gone(world, replica) => {
                Some("its node is lost")
            }
            _ => None,
        };
        if let Some(why) = why {
            draft.actions.push(Action::Forget { replica: id, why: why.to_owned() });
            continue;
        }
        match replica.record.phase {
            Phase::Wanted => {}
            Phase::Draining { .. } if drained(world, replica) || now.since(replica.since) >= DRAIN_MS_MAX => {
                draft.actions.push(Action::Drop { replica: id });
            }
            Phase::Draining { .. } => {}
            Phase::Stopping { .. } if gone(world, replica, now.since(replica.since)) => {
                draft.actions.push(Action::Forget { replica: id, why: "stopped".to_owned() });
            }
            Phase::Stopping { .. } => {}
        }
    }
}

/// A copy with volumes on a lost node may still run there: no second one may start on its data before it is known to
/// be gone. An app that is taken down does not wait.
fn must_be_seen_gone(world: &World, replica: &Replica) -> bool {
    let name = &replica.record.name;
    let removing = world.apps.get(&name.app).is_none_or(|app| app.removing.is_some());
    !removing && world.template(name, replica.record.generation).is_some_and(|t| volumes(t).next().is_some())
}

/// Whether every ready node has in force a table in which the replica is not ready.
fn drained(world: &World, replica: &Replica) -> bool {
    let Some(since) = replica.published else { return false };
    let ready = world.nodes.values().filter(|node| node.state == NodeState::Ready && node.report.is_some());
    ready.into_iter().all(|node| node.applied() >= since || node.applied() >= node.assigned)
}

/// Whether the agent says, after it was told, that it no longer has the replica.
fn gone(world: &World, replica: &Replica, waited_ms: u64) -> bool {
    let Some(node) = world.nodes.get(&replica.record.node) else { return true };
    let (Some(report), Some(since)) = (&node.report, replica.published) else { return false };
    let listed = report.replicas.iter().any(|status| status.id == replica.record.id);
    let told = report.applied >= since || report.applied >= node.assigned || waited_ms >= DROPPED_MS_MAX;
    node.state == NodeState::Ready && !listed && told
}
