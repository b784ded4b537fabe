//! Other nodes as `gantry_images` wants them: who they are the scheduler says, that they are nodes their certificate.

use super::UNFINISHED;
use crate::tls;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use gantry_api::ids::NodeId;
use gantry_api::images::{BLOBS_PORT, ImageSources, Source, Sources, canonical};
use gantry_images::{Digest, Offer, Peer, Peers, Reference, Signed};
use http_body_util::{BodyDataStream, BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_RANGE, HOST, RANGE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// To connect: nodes are near each other, and another source is tried next.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// For the handshake.
const TLS_TIME_MAX: Duration = Duration::from_secs(3);
/// Signatures of one image, as text.
const SIGNATURES_MAX: usize = 1 << 20;

/// The other nodes, as the scheduler last named them.
pub(crate) struct Nodes {
    tls: Arc<ClientConfig>,
    port: u16,
    sources: watch::Receiver<Sources>,
}

impl Nodes {
    pub(crate) fn new(tls: ClientConfig, sources: watch::Receiver<Sources>) -> Self {
        Self { tls: Arc::new(tls), port: BLOBS_PORT, sources }
    }

    fn of<T>(&self, reference: &Reference, get: impl FnOnce(&ImageSources) -> T) -> Option<T> {
        let name = canonical(&reference.to_string());
        self.sources.borrow().images.iter().find(|image| image.name == name).map(get)
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").field("sources", &*self.sources.borrow()).finish_non_exhaustive()
    }
}

impl Peers for Nodes {
    fn digest(&self, reference: &Reference) -> Option<Digest> {
        self.of(reference, |image| image.digest.as_ref()?.parse().ok()).flatten()
    }

    fn sources(&self, reference: &Reference) -> Vec<Arc<dyn Peer>> {
        let node = |Source { node, address, whole }: &Source| -> Arc<dyn Peer> {
            let address = SocketAddr::from((*address, self.port));
            let name = format!("{node} at {address}");
            Arc::new(Node { id: node.clone(), name, address, whole: *whole, tls: Arc::clone(&self.tls) })
        };
        self.of(reference, |image| image.nodes.iter().map(node).collect()).unwrap_or_default()
    }
}

/// One other node.
struct Node {
    id: NodeId,
    name: String,
    address: SocketAddr,
    whole: bool,
    tls: Arc<ClientConfig>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Peer for Node {
    fn name(&self) -> &str {
        &self.name
    }

    fn whole(&self) -> bool {
        self.whole
    }

    fn blob(&self, digest: Digest, offset: u64) -> BoxFuture<'_, io::Result<Offer>> {
        async move {
            let answer = self.get(&format!("/v1/blobs/{digest}"), offset).await?;
            match answer.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT if starts_at(&answer) == Some(offset) => {
                    let bytes = BodyDataStream::new(answer.into_body());
                    Ok(Offer::Bytes(bytes.map(|piece| piece.map_err(io::Error::other)).boxed()))
                }
                StatusCode::NOT_FOUND => Ok(Offer::Absent),
                StatusCode::SERVICE_UNAVAILABLE => Ok(Offer::Later),
                status => Err(refused(status)),
            }
        }
        .boxed()
    }

    fn signatures(&self, digest: Digest) -> BoxFuture<'_, io::Result<Vec<Signed>>> {
        async move {
            let answer = self.get(&format!("/v1/signatures/{digest}"), 0).await?;
            match answer.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => return Ok(Vec::new()),
                status => return Err(refused(status)),
            }
            let body = Limited::new(answer.into_body(), SIGNATURES_MAX).collect().await.map_err(io::Error::other)?;
            let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            Ok(text.lines().filter_map(Signed::from_text).collect())
        }
        .boxed()
    }
}

impl Node {
    /// One request on a connection of its own, which ends with the answer's body.
    async fn get(&self, path: &str, offset: u64) -> io::Result<Response<Incoming>> {
        let tcp = timeout(CONNECT_TIME_MAX, TcpStream::connect(self.address)).await??;
        tcp.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let io = timeout(TLS_TIME_MAX, connector.connect(name, tcp)).await??;
        let certificates = io.get_ref().1.peer_certificates().unwrap_or_default();
        let who = certificates.first().and_then(tls::node_of);
        if who.as_ref() != Some(&self.id) {
            return Err(io::Error::other("another node answers there"));
        }
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let request = Request::get(path).header(HOST, self.address.to_string()).header(UNFINISHED, "yes");
        let request = if offset > 0 { request.header(RANGE, format!("bytes={offset}-")) } else { request };
        let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        sender.send_request(request).await.map_err(io::Error::other)
    }
}

/// The offset at which a body begins.
fn starts_at(answer: &Response<Incoming>) -> Option<u64> {
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(offset) = header(UNFINISHED) {
        return offset.parse().ok();
    }
    match header(CONTENT_RANGE.as_str()) {
        Some(range) => range.strip_prefix("bytes ")?.split('-').next()?.parse().ok(),
        None => (answer.status() == StatusCode::OK).then_some(0),
    }
}

fn refused(status: StatusCode) -> io::Error {
    io::Error::other(format!("it answers {status}"))
}
