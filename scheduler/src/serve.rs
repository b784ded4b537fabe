//! The two doors: a unix socket for local root, and TCP with TLS for nodes.

use crate::api::Peer;
use crate::ca;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// A client that sends no request for so long is cut off.
const HEADERS_MAX: Duration = Duration::from_secs(10);
/// A client that does not finish TLS for so long is cut off.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A silent connection is asked whether it lives: after this, so often, so many times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// Connections at once through one door; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 16_384;
/// After an error of accept (out of descriptors): a pause, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Makes the socket for local root: never there with a wider mode, even for a moment.
pub(crate) fn bind_socket(socket: &Path) -> io::Result<UnixListener> {
    let part = socket.with_extension(format!("{}.part", std::process::id()));
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&part)?;
    std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&part, socket)?;
    Ok(listener)
}

/// Serves local root until told to end.
pub(crate) async fn local(listener: UnixListener, routes: Router, mut shutdown: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|end| *end) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let routes = routes.clone();
                connections.spawn(async move {
                    serve(stream, routes).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a local connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves nodes until told to end.
pub(crate) async fn remote(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    routes: Router,
    mut shutdown: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|end| *end) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Small messages should leave at once; where that cannot be set they merely leave later.
        let _ = stream.set_nodelay(true);
        if let Err(error) = keep_alive(&stream) {
            tracing::debug!("a connection's death will be noticed late: {error}");
        }
        let (acceptor, routes) = (acceptor.clone(), routes.clone());
        connections.spawn(async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
                let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let peer = Peer(shown.and_then(ca::peer_node));
                serve(stream, routes.layer(Extension(peer))).await;
            }
            drop(place);
        });
    }
}

/// An idle tunnel whose host went down without a word must end: somebody waits for its next byte.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, routes: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!("a connection ended: {error}");
    }
}
