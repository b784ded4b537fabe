//! The HTTP API: for local root on a unix socket, for nodes on TCP with mutual TLS.
//!
//! Over TCP a client certificate is asked for but not needed; each route says who may use it: `/v1/join` everybody
//! (the token in it decides), `/v1/agent/…` members with their certificate, and nothing else.

mod apps;
mod events;
mod exec;
mod logs;
mod members;

use crate::ca::{Ca, PeerNode};
use crate::hub::Hub;
use crate::refusal::Refused;
use crate::steward::Handle;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use gantry_api::http::Version;
use http_body_util::{BodyExt, LengthLimitError, Limited};
pub(crate) use members::make_token;
use ring::rand::SystemRandom;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// A request's body at most: an app that would not fit into the store need not be read.
const BODY_BYTES_MAX: usize = 1 << 20;
/// A client that does not finish its body for so long is refused: anybody can connect to the port of nodes.
const BODY_MAX: Duration = Duration::from_secs(10);

/// What every route needs.
pub(crate) struct Api {
    pub(crate) handle: Handle,
    pub(crate) hub: Arc<Hub>,
    pub(crate) ca: Ca,
    pub(crate) random: SystemRandom,
}

/// Who is on the other end of a TCP connection: a node, when it showed a certificate of ours.
#[derive(Debug, Clone)]
pub(crate) struct Peer(pub(crate) Option<PeerNode>);

/// Routes for local root.
pub(crate) fn local(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/version", get(version))
        .route("/v1/nodes", get(members::nodes))
        .route("/v1/nodes/{name}", delete(members::forget))
        .route("/v1/tokens", post(members::token))
        .route("/v1/apps", get(apps::list))
        .route("/v1/apps/{app}", get(apps::detail).put(apps::deploy).delete(apps::remove))
        .route("/v1/apps/{app}/services/{service}/replicas", put(apps::scale))
        .route("/v1/replicas", get(apps::replicas))
        .route("/v1/events", get(events::list))
        .route("/v1/logs", get(logs::read))
        .route("/v1/exec", post(exec::run))
        .fallback(async || Refused::not_found("there is no such path in this API"))
        .method_not_allowed_fallback(async || Refused::invalid("this path has no such method"))
        .with_state(api)
}

/// Routes for other hosts.
pub(crate) fn remote(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/join", post(members::join))
        .route("/v1/agent/stream", post(members::stream))
        .route("/v1/agent/tunnel/{id}", post(members::tunnel))
        .fallback(async || {
            Refused::forbidden("over the network only nodes are served: /v1/join and /v1/agent")
                .hint("run the command on the scheduler's host as root, where it uses the unix socket")
        })
        .method_not_allowed_fallback(async || Refused::invalid("this path has no such method"))
        .with_state(api)
}

async fn version() -> axum::Json<Version> {
    axum::Json(Version { version: env!("CARGO_PKG_VERSION").to_owned(), api: "v1".to_owned() })
}

/// Reads a JSON body, bounded.
async fn json<T: DeserializeOwned>(body: Body) -> Result<T, Refused> {
    let collected = tokio::time::timeout(BODY_MAX, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let collected = collected.map_err(|_| Refused::invalid("the request's body did not come in time"))?;
    let collected = collected.map_err(|error| {
        if error.is::<LengthLimitError>() {
            Refused::too_large(BODY_BYTES_MAX)
        } else {
            Refused::invalid(format!("the request's body could not be read: {error}"))
        }
    })?;
    serde_json::from_slice(&collected.to_bytes())
        .map_err(|error| Refused::invalid(format!("the request's body is not what this path takes: {error}")))
}

/// Reads a name of the path.
fn name<T: std::str::FromStr<Err = gantry_api::ids::NameError>>(text: &str) -> Result<T, Refused> {
    text.parse().map_err(|error: gantry_api::ids::NameError| Refused::invalid(error.to_string()))
}

type Names = Result<Path<Vec<(String, String)>>, axum::extract::rejection::PathRejection>;

/// The parameter of the path called `key`.
fn parameter(names: &Names, key: &str) -> Result<String, Refused> {
    let Ok(Path(names)) = names else { return Err(Refused::invalid("the path is not valid UTF-8")) };
    let found = names.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
    found.ok_or_else(|| Refused::invalid(format!("the path lacks {key}")))
}

/// Reads the query.
fn query<T: DeserializeOwned>(request: &Request) -> Result<T, Refused> {
    axum::extract::Query::try_from_uri(request.uri())
        .map(|axum::extract::Query(value)| value)
        .map_err(|error| Refused::invalid(error.body_text()))
}

/// Whether the request asks for an upgrade to `protocol`.
fn wants_upgrade(headers: &HeaderMap, protocol: &str) -> bool {
    let has = |header, token: &str| {
        headers
            .get_all(header)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    has(UPGRADE, protocol) && has(CONNECTION, "upgrade")
}

fn refuse_without_upgrade(headers: &HeaderMap, protocol: &str) -> Result<(), Refused> {
    if wants_upgrade(headers, protocol) {
        return Ok(());
    }
    Err(Refused::invalid(format!("this path needs `Connection: upgrade` and `Upgrade: {protocol}`")))
}

/// The answer after which the connection is no longer HTTP.
fn switching(protocol: &'static str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, axum::http::HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, axum::http::HeaderValue::from_static(protocol));
    response
}
