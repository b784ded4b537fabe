//! Nodes: who they are, how they join, and their own connections.

use super::{Api, Names, Peer, json, name, parameter, refuse_without_upgrade, switching};
use crate::ca::PeerNode;
use crate::hub::random_hex;
use crate::records::{self, TokenRecord};
use crate::refusal::{Refused, internal};
use crate::steward::{Steward, wall_ms};
use crate::store::Op;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Json, body::Body};
use gantry_api::http::{Node, NodeState, Token, TokenRequest};
use gantry_api::ids::NodeName;
use gantry_api::wire::{JoinRequest, JoinResponse, JoinToken, STREAM_PROTOCOL, TUNNEL_PROTOCOL};
use hyper_util::rt::TokioIo;
use std::sync::Arc;

/// Longer is asked for by nobody in their right mind: a token is a key to the cluster.
const TTL_S_MAX: u64 = 30 * 24 * 3600;
/// Tokens alive at once.
const TOKENS_MAX: usize = 1_000;

pub(super) async fn nodes(State(api): State<Arc<Api>>) -> Result<Json<Vec<Node>>, Refused> {
    api.handle.ask(|steward| steward.world.show_nodes(steward.now(), wall_ms())).await.map(Json)
}

pub(super) async fn forget(State(api): State<Arc<Api>>, names: Names) -> Result<StatusCode, Refused> {
    let name: NodeName = name(&parameter(&names, "name")?)?;
    let job = move |steward: &mut Steward| {
        let Some((node, _)) = steward.world.node_named(name.as_str()) else {
            return Err(
                Refused::not_found(format!("there is no node `{name}`")).hint("`gantry node ls` lists the nodes")
            );
        };
        let id = node.record.id.clone();
        let effects = steward.world.forget_node(&id).map_err(|state| {
            let state = match state {
                NodeState::Suspect => "suspect",
                _ => "ready",
            };
            Refused::conflict(format!("node {name} is {state}; only a lost node can be removed"))
                .hint("stop `gantry` on that host first; after 3 s the node is lost")
        })?;
        steward.record_all(vec![effects])
    };
    api.handle.ask(job).await??;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn token(State(api): State<Arc<Api>>, body: Body) -> Result<Json<Token>, Refused> {
    let TokenRequest { ttl_s } = json(body).await?;
    make_token(&api, ttl_s).await.map(Json)
}

/// Makes a join token. Only the hash of its secret is kept.
pub(crate) async fn make_token(api: &Api, ttl_s: u64) -> Result<Token, Refused> {
    if ttl_s == 0 || ttl_s > TTL_S_MAX {
        return Err(Refused::invalid(format!("ttl_s: {ttl_s} is not between 1 and {TTL_S_MAX}")));
    }
    let secret = format!("{}{}", random_hex(&api.random)?, random_hex(&api.random)?);
    let key = records::token_key(&crate::ca::sha256(secret.as_bytes()));
    let job = move |steward: &mut Steward| {
        let now_ms = wall_ms();
        let expires_at_ms = now_ms.saturating_add(ttl_s * 1000);
        let mut alive = 0;
        let mut ops = Vec::new();
        for entry in steward.read_all("/tokens/")? {
            let record: TokenRecord = records::parse(&entry).map_err(|error| internal(&error, error.hint()))?;
            if record.expires_at_ms > now_ms {
                alive += 1;
            } else if ops.len() < crate::store::OPS_MAX / 2 {
                ops.push(Op::Delete { key: entry.key });
            }
        }
        if alive >= TOKENS_MAX {
            return Err(
                Refused::conflict(format!("{TOKENS_MAX} tokens are alive already")).hint("wait until some expire")
            );
        }
        ops.push(records::put(key, &TokenRecord { expires_at_ms }));
        steward.write_ops(ops)?;
        Ok(expires_at_ms)
    };
    let expires_at_ms = api.handle.ask(job).await??;
    Ok(Token { token: JoinToken { ca_sha256: api.ca.fingerprint(), secret }.to_string(), expires_at_ms })
}

pub(super) async fn join(State(api): State<Arc<Api>>, body: Body) -> Result<Json<JoinResponse>, Refused> {
    let request: JoinRequest = json(body).await?;
    let token = records::token_key(&crate::ca::sha256(request.secret.as_bytes()));
    let entry = api.handle.ask(move |steward| steward.read(&token)).await??;
    check_token(entry.as_ref())?;
    let certificate = api.ca.sign_node(&request.node, &request.csr_pem).map_err(|error| match &error {
        crate::ca::CaError::Request(_) => Refused::invalid(format!("csr_pem: {error}")),
        _ => internal(&error, error.hint()),
    })?;
    let (node, key_sha256) = (request.node.clone(), certificate.key_sha256.clone());
    let job = move |steward: &mut Steward| {
        let now = steward.now();
        let effects = steward.world.join(&node, &request.name, &key_sha256, request.underlay, now)?;
        steward.record_all(vec![effects])
    };
    api.handle.ask(job).await??;
    Ok(Json(JoinResponse { certificate_pem: certificate.pem, ca_pem: api.ca.certificate_pem().to_owned() }))
}

fn check_token(entry: Option<&crate::store::Entry>) -> Result<(), Refused> {
    let fresh = "make a new one with `gantry token create` on the scheduler's host";
    let Some(entry) = entry else {
        return Err(Refused::forbidden("this join token is not known here").hint(fresh));
    };
    let record: TokenRecord = records::parse(entry).map_err(|error| internal(&error, error.hint()))?;
    let now_ms = wall_ms();
    if record.expires_at_ms <= now_ms {
        let ago = match (now_ms - record.expires_at_ms) / 1000 {
            seconds @ 0..120 => format!("{seconds} s"),
            seconds => format!("{} min", seconds / 60),
        };
        return Err(Refused::forbidden(format!("this join token expired {ago} ago")).hint(fresh));
    }
    Ok(())
}

/// The member on the other end.
async fn member(api: &Api, peer: &Peer) -> Result<PeerNode, Refused> {
    let Some(peer) = &peer.0 else {
        return Err(Refused::forbidden("this path needs a node's certificate").hint("join the node first"));
    };
    api.hub.admit(peer).await?;
    Ok(peer.clone())
}

pub(super) async fn stream(
    State(api): State<Arc<Api>>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
) -> Result<Response, Refused> {
    refuse_without_upgrade(request.headers(), STREAM_PROTOCOL)?;
    let peer = member(&api, &peer).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    let hub = Arc::clone(&api.hub);
    tokio::spawn(async move {
        if let Ok(io) = upgrade.await {
            hub.serve_stream(TokioIo::new(io), peer).await;
        }
    });
    Ok(switching(STREAM_PROTOCOL))
}

pub(super) async fn tunnel(
    State(api): State<Arc<Api>>,
    Extension(peer): Extension<Peer>,
    names: Names,
    mut request: Request,
) -> Result<Response, Refused> {
    let id = parameter(&names, "id")?;
    refuse_without_upgrade(request.headers(), TUNNEL_PROTOCOL)?;
    let peer = member(&api, &peer).await?;
    if !api.hub.expects(&id, &peer.node) {
        return Err(Refused::not_found("nobody waits for this tunnel any more"));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let hub = Arc::clone(&api.hub);
    tokio::spawn(async move {
        let answer = upgrade.await.map(TokioIo::new).map_err(|error| error.to_string());
        hub.answer(&id, &peer.node, answer);
    });
    Ok(switching(TUNNEL_PROTOCOL))
}
