//! A command in a replica: the person's connection and the agent's tunnel, tied together.

use super::{Api, json, refuse_without_upgrade, switching};
use crate::refusal::Refused;
use axum::extract::{Request, State};
use axum::response::Response;
use gantry_api::http::NodeState;
use gantry_api::ids::NodeId;
use gantry_api::wire::{ExecRequest, ReplicaState, TUNNEL_PROTOCOL, TunnelRequest};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at the node of a command.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// So many looks in a row must find it lost: a connection outlives a short cut of the network.
const LOOKS_LOST: u32 = 3;

pub(super) async fn run(State(api): State<Arc<Api>>, mut request: Request) -> Result<Response, Refused> {
    refuse_without_upgrade(request.headers(), TUNNEL_PROTOCOL)?;
    let upgrade = hyper::upgrade::on(&mut request);
    let exec: ExecRequest = json(request.into_body()).await?;
    if exec.command.is_empty() {
        return Err(Refused::invalid("command: is empty"));
    }
    let id = exec.replica.clone();
    let found = api.handle.ask(move |steward| {
        let world = &steward.world;
        let replica = world.replicas.get(&id)?;
        let node = world.nodes.get(&replica.record.node)?;
        let running = replica.status.as_ref().is_some_and(|status| status.state == ReplicaState::Running);
        Some((node.record.id.clone(), node.record.name.clone(), node.state, running))
    });
    let Some((node, name, state, running)) = found.await? else {
        return Err(Refused::not_found(format!("there is no replica `{}`", exec.replica))
            .hint("`gantry ps` lists the replicas; a replaced one has another id"));
    };
    if state == NodeState::Lost {
        return Err(Refused::unavailable(format!("node {name} of {} is lost", exec.replica)));
    }
    if !running {
        return Err(Refused::conflict(format!("{} is not running", exec.replica)).hint("`gantry logs` tells why"));
    }
    let mut tunnel = api.hub.open_tunnel(&node, TunnelRequest::Exec(exec)).await?;
    tokio::spawn(async move {
        if let Ok(io) = upgrade.await {
            let mut io = TokioIo::new(io);
            tokio::select! {
                // Either side may hang up at any time; the other is then told by the end of its stream.
                _ = tokio::io::copy_bidirectional(&mut io, &mut tunnel) => {}
                () = lost(&api, &node) => {}
            }
        }
    });
    Ok(switching(TUNNEL_PROTOCOL))
}

/// Ends when the node does not come back: what was typed to a host that is down is sent again for a quarter of an hour.
async fn lost(api: &Api, node: &NodeId) {
    let mut looks = 0;
    while looks < LOOKS_LOST {
        tokio::time::sleep(LOOK_AGAIN).await;
        let asked = node.clone();
        let state = api.handle.ask(move |steward| steward.world.nodes.get(&asked).map(|node| node.state)).await;
        let there = matches!(state, Ok(Some(NodeState::Ready | NodeState::Suspect)));
        looks = if there { 0 } else { looks + 1 };
    }
}
