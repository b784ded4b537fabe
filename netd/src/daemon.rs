//! The daemon: the local API, and a check every few seconds.

use crate::error::NetError;
use crate::node::Node;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use gantry_api::http::ApiError;
use gantry_api::network::{AttachRequest, Attachment, Live, Loads, Status, Table};
use serde::de::DeserializeOwned;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::watch;

/// How often damaged kernel objects are looked for.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// A table of 10,000 services with 10 replicas each has about 25 MB.
const BODY_MAX: usize = 64 << 20;

/// Where and how a node's netd runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// For what a restart of the host ends: `netns/`.
    pub run_dir: PathBuf,
    /// For what survives it: `netd/`.
    pub data_dir: PathBuf,
    /// The bridge of the node's replicas.
    pub bridge: String,
    /// The local API.
    pub socket: PathBuf,
    /// Largest packet of containers; `None`: that of the node's own network less the tunnel's headers.
    pub mtu: Option<u32>,
    /// Where the host's name servers are listed.
    pub resolv_conf: PathBuf,
    /// The cgroup that all containers of the node are in, as `/gantry`: their connections are balanced when they are
    /// made. `None`: per packet only.
    pub cgroup_parent: Option<String>,
}

impl Config {
    /// The usual names in these directories.
    pub fn new(run_dir: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        let run_dir = run_dir.into();
        Self {
            socket: run_dir.join("netd.sock"),
            run_dir,
            data_dir: data_dir.into(),
            bridge: "gantry0".into(),
            mtu: None,
            resolv_conf: "/etc/resolv.conf".into(),
            cgroup_parent: None,
        }
    }

    fn check(&self) -> Result<(), NetError> {
        const NAME_MAX: usize = 15;
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        if !self.bridge.is_empty() && self.bridge.len() <= NAME_MAX && self.bridge.bytes().all(plain) {
            return Ok(());
        }
        Err(NetError::io(
            "create",
            format!("bridge `{}`: not a name of a link", self.bridge),
            std::io::ErrorKind::InvalidInput,
        ))
    }
}

/// Run until `shutdown` becomes true. Stopping changes nothing in the kernel: traffic goes on, and the next start takes
/// over what is there.
///
/// # Errors
/// Another netd runs with the same directories, or its socket cannot be made. What the kernel refuses later does not
/// end the daemon: see [`Status::problems`].
pub async fn run(config: Config, mut shutdown: watch::Receiver<bool>) -> Result<(), NetError> {
    config.check()?;
    let socket = config.socket.clone();
    let runtime = tokio::runtime::Handle::current();
    let node = Arc::new(blocking(move || Node::open(config, runtime)).await?);
    let listener = listen(&socket)?;
    tracing::info!(socket = %socket.display(), "netd ready");
    let checks = tokio::spawn(check_again_and_again(Arc::clone(&node)));
    let stopped = async move {
        // A sender that is gone will never say more: stop, too.
        let _ = shutdown.wait_for(|stop| *stop).await;
    };
    let served = axum::serve(listener, router(node)).with_graceful_shutdown(stopped).await;
    checks.abort();
    served.map_err(|e| NetError::file("serve", &socket, e))
}

/// A socket for root alone, in place of one that an earlier netd left.
fn listen(socket: &std::path::Path) -> Result<UnixListener, NetError> {
    // Renamed into place once its mode is right: there is no moment in which others may connect, or nobody can.
    let new = socket.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new).map_err(|e| NetError::file("listen on", &new, e))?;
    std::fs::set_permissions(&new, Permissions::from_mode(0o600)).map_err(|e| NetError::file("protect", &new, e))?;
    std::fs::rename(&new, socket).map_err(|e| NetError::file("replace", socket, e))?;
    Ok(listener)
}

async fn check_again_and_again(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(CHECK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await; // the first is at once, and opening has just checked
    loop {
        ticks.tick().await;
        let node = Arc::clone(&node);
        blocking(move || node.check()).await;
    }
}

/// Netlink blocks, if only for a moment.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only at the end of the runtime, when nobody waits for an answer any more.
            Err(_) => std::future::pending().await,
        },
    }
}

fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/table", put(put_table))
        .route("/v1/attachments", get(attachments))
        .route("/v1/attachments/{id}", put(attach).delete(detach))
        .route("/v1/loads", get(live).put(put_loads))
        .route("/v1/status", get(status))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(node)
}

/// A refusal as the API spells it.
struct Refusal(StatusCode, ApiError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, axum::Json(self.1)).into_response()
    }
}

impl From<NetError> for Refusal {
    fn from(error: NetError) -> Self {
        let (status, code) = match &error {
            NetError::NoSubnet => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            NetError::OlderTable { .. } | NetError::Overlap { .. } | NetError::Port { .. } => {
                (StatusCode::CONFLICT, "conflict")
            }
            NetError::Table { .. } | NetError::Id(_) => (StatusCode::BAD_REQUEST, "invalid"),
            NetError::Exhausted(_) => (StatusCode::UNPROCESSABLE_ENTITY, "cannot_fit"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        Self(status, ApiError { code: code.into(), message: error.chain(), hint: error.hint() })
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("the request's body is not what is expected here: {error}");
        Refusal(StatusCode::BAD_REQUEST, ApiError { code: "invalid".into(), message, hint: None })
    })
}

async fn put_table(State(node): State<Arc<Node>>, body: axum::body::Bytes) -> Result<StatusCode, Refusal> {
    let table: Table = parse(&body)?;
    blocking(move || node.set_table(table)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn attach(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    body: axum::body::Bytes,
) -> Result<axum::Json<Attachment>, Refusal> {
    let request: AttachRequest = parse(&body)?;
    if request.id != id {
        let message = format!("the path says `{id}` and the body `{}`", request.id);
        return Err(Refusal(StatusCode::BAD_REQUEST, ApiError { code: "invalid".into(), message, hint: None }));
    }
    Ok(axum::Json(blocking(move || node.attach(request)).await?))
}

async fn detach(State(node): State<Arc<Node>>, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    blocking(move || node.detach(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn attachments(State(node): State<Arc<Node>>) -> axum::Json<Vec<Attachment>> {
    axum::Json(blocking(move || node.attachments()).await)
}

async fn live(State(node): State<Arc<Node>>) -> axum::Json<Vec<Live>> {
    axum::Json(blocking(move || node.live()).await)
}

async fn put_loads(State(node): State<Arc<Node>>, body: axum::body::Bytes) -> Result<StatusCode, Refusal> {
    let loads: Loads = parse(&body)?;
    blocking(move || node.report(&loads)).await;
    Ok(StatusCode::NO_CONTENT)
}

async fn status(State(node): State<Arc<Node>>) -> axum::Json<Status> {
    axum::Json(blocking(move || node.status()).await)
}
