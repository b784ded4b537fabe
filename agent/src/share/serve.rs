//! Our blobs, read-only, for the other nodes of the cluster.
//!
//! | request | answer |
//! |---|---|
//! | `GET`, `HEAD /v1/blobs/{digest}` | 200, or 206 for a `Range: bytes=N-` |
//! | the same with `gantry-unfinished: yes` | also a blob that is being fetched here, as it grows; 503 while it is about to come |
//! | `GET /v1/signatures/{digest}` | 200: signatures that a manifest was verified by, one per line |
//!
//! 403: not a node of this cluster, or one that was removed. 404: not here. 503 with `Retry-After`: too many transfers.

use super::UNFINISHED;
use crate::error::chain;
use crate::tls;
use futures_util::stream;
use gantry_api::ids::NodeId;
use gantry_api::network::Table;
use gantry_images::{Digest, Growing, Growth, Store, Stored};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info};

/// Blobs sent at once: four nodes with four layers each.
const TRANSFERS_MAX: usize = 16;
/// Connections at once; some only ask.
const CONNECTIONS_MAX: usize = 128;
/// For a handshake, and for the head of a request.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// A reader that takes nothing for so long is cut off, and so is one that waits for a blob that does not grow.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How long the answer about a blob that is about to come is held back.
const COMING_TIME_MAX: Duration = Duration::from_secs(2);
/// Between two looks at a blob that is being fetched.
const GROWTH_LOOK: Duration = Duration::from_millis(20);
/// Between two looks at whether a blob has begun to come.
const COMING_LOOK: Duration = Duration::from_millis(100);
/// Between two tries to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);
/// Bytes read at once.
const CHUNK: usize = 256 << 10;
/// Chunks between disk and network.
const CHUNKS_WAITING: usize = 2;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What serving needs.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Arc<rustls::ServerConfig>,
    pub(crate) store: Store,
    /// Tells who the nodes of the cluster are.
    pub(crate) tables: watch::Receiver<Option<Arc<Table>>>,
    /// Why blobs are not served, in words.
    pub(crate) problem: watch::Sender<Option<String>>,
}

struct Shop {
    store: Store,
    tables: watch::Receiver<Option<Arc<Table>>>,
    transfers: Arc<Semaphore>,
}

/// Serves until it is dropped.
pub(crate) async fn run(door: Door) {
    let listener = listen(&door).await;
    info!("blobs are served at {}", door.address);
    let acceptor = TlsAcceptor::from(door.tls);
    let transfers = Arc::new(Semaphore::new(TRANSFERS_MAX));
    let shop = Arc::new(Shop { store: door.store, tables: door.tables, transfers });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                // Out of descriptors, or a connection that ended already.
                debug!("a connection cannot be taken: {error}");
                sleep(GROWTH_LOOK).await;
                continue;
            }
        };
        // One over the bound is hung up on: it asks another node.
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let (acceptor, shop) = (acceptor.clone(), Arc::clone(&shop));
            connections.spawn(async move {
                if let Err(error) = converse(tcp, &acceptor, shop).await {
                    debug!("a node's connection ended: {}", chain(&*error));
                }
                drop(place);
            });
        }
    }
}

async fn listen(door: &Door) -> TcpListener {
    loop {
        match TcpListener::bind(door.address).await {
            Ok(listener) => {
                door.problem.send_replace(None);
                return listener;
            }
            Err(error) => {
                let words = format!("images are not served to other nodes: cannot listen on {}: {error}", door.address);
                door.problem.send_if_modified(|problem| problem.replace(words.clone()).as_ref() != Some(&words));
                sleep(LISTEN_AGAIN).await;
            }
        }
    }
}

async fn converse(
    tcp: TcpStream,
    acceptor: &TlsAcceptor,
    shop: Arc<Shop>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    tcp.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(&tcp, STALL_MAX.as_millis() as u32)?;
    let tls = timeout(HEAD_TIME_MAX, acceptor.accept(tcp)).await??;
    let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = certificates.first().and_then(tls::node_of);
    let service = service_fn(move |request| {
        let (shop, peer) = (Arc::clone(&shop), peer.clone());
        async move { Ok::<_, Infallible>(shop.answer(&request, peer.as_ref()).await) }
    });
    let http = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(tls), service);
    Ok(http.await?)
}

impl Shop {
    async fn answer(&self, request: &Request<Incoming>, peer: Option<&NodeId>) -> Response<Body> {
        let member = |peer: &NodeId| {
            self.tables.borrow().as_ref().is_some_and(|table| table.nodes.iter().any(|node| node.node == *peer))
        };
        if !peer.is_some_and(member) {
            return words(StatusCode::FORBIDDEN, "only nodes of this cluster are served");
        }
        let head = request.method() == Method::HEAD;
        if !head && request.method() != Method::GET {
            return words(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served");
        }
        let path = request.uri().path();
        let digest = |prefix: &str| path.strip_prefix(prefix).map(str::parse::<Digest>);
        let answered = match (digest("/v1/blobs/"), digest("/v1/signatures/")) {
            (Some(Ok(digest)), _) => self.blob(digest, request, head).await,
            (_, Some(Ok(digest))) => self.signatures(digest).await,
            (Some(Err(error)), _) | (_, Some(Err(error))) => {
                return words(StatusCode::BAD_REQUEST, &error.to_string());
            }
            (None, None) => return words(StatusCode::NOT_FOUND, "there is nothing of this name"),
        };
        answered.unwrap_or_else(|error| words(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
    }

    async fn signatures(&self, digest: Digest) -> io::Result<Response<Body>> {
        let store = self.store.clone();
        let found = spawn_blocking(move || store.signatures(digest)).await?.map_err(io::Error::other)?;
        let lines: String = found.iter().filter_map(|signed| Some(signed.to_text()? + "\n")).collect();
        Ok(words(StatusCode::OK, &lines))
    }

    async fn blob(&self, digest: Digest, request: &Request<Incoming>, head: bool) -> io::Result<Response<Body>> {
        let unfinished = request.headers().contains_key(UNFINISHED);
        let Some(from) = offset(request) else {
            return Ok(words(StatusCode::RANGE_NOT_SATISFIABLE, "only a range `bytes=N-` is served"));
        };
        let stored = match self.offer(digest).await? {
            Stored::Coming if unfinished => self.coming(digest).await?,
            other => other,
        };
        match stored {
            Stored::Whole { size, .. } if from > size || (from == size && from > 0) => {
                let answer = words(StatusCode::RANGE_NOT_SATISFIABLE, "the blob is shorter");
                Ok(with(answer, CONTENT_RANGE, &format!("bytes */{size}")))
            }
            Stored::Whole { size, .. } if head => Ok(whole(empty(), from, size)),
            Stored::Whole { file, size } => {
                let Some(place) = self.place() else { return Ok(busy()) };
                Ok(whole(pump(file, Until::Size(size), from, place).await?, from, size))
            }
            Stored::Growing(growing) if unfinished && !head => {
                let Some(place) = self.place() else { return Ok(busy()) };
                let file = growing.file.try_clone()?;
                let body = pump(file, Until::Grown(growing), from, place).await?;
                let answer = Response::builder().header(UNFINISHED, from).body(body);
                answer.map_err(io::Error::other)
            }
            Stored::Coming if unfinished => Ok(later("it is about to come")),
            Stored::Growing(_) | Stored::Coming | Stored::Absent => Ok(words(StatusCode::NOT_FOUND, "not here")),
        }
    }

    async fn offer(&self, digest: Digest) -> io::Result<Stored> {
        let store = self.store.clone();
        spawn_blocking(move || store.offer(digest)).await?.map_err(io::Error::other)
    }

    /// Waits a while for the first bytes of a blob.
    async fn coming(&self, digest: Digest) -> io::Result<Stored> {
        let until = Instant::now() + COMING_TIME_MAX;
        loop {
            sleep(COMING_LOOK).await;
            match self.offer(digest).await? {
                Stored::Coming if Instant::now() < until => {}
                other => return Ok(other),
            }
        }
    }

    fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.transfers).try_acquire_owned().ok()
    }
}

/// The start of `Range: bytes=N-`, 0 without one; `None` for other ranges.
fn offset(request: &Request<Incoming>) -> Option<u64> {
    let Some(range) = request.headers().get(RANGE) else { return Some(0) };
    range.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// Where the bytes end.
enum Until {
    Size(u64),
    Grown(Growing),
}

/// A body that reads ahead a little. It ends in an error unless all was sent.
async fn pump(file: File, until: Until, from: u64, place: OwnedSemaphorePermit) -> io::Result<Body> {
    let mut file = tokio::fs::File::from_std(file);
    file.seek(io::SeekFrom::Start(from)).await?;
    let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
    tokio::spawn(async move {
        let outcome = send(&mut file, until, from, &sender).await;
        // An end without this word is no end. Whoever went away hears nothing of it.
        let last = outcome.map(|()| None).map_err(|error| io::Error::new(error.kind(), error.to_string()));
        let _ = timeout(STALL_MAX, sender.send(last)).await;
        drop(place);
    });
    let frames = stream::unfold(Some(chunks), |chunks| async move {
        let mut chunks = chunks?;
        match chunks.recv().await {
            Some(Ok(Some(bytes))) => Some((Ok(Frame::data(bytes)), Some(chunks))),
            Some(Ok(None)) => None,
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(io::ErrorKind::TimedOut.into()), None)),
        }
    });
    Ok(StreamBody::new(frames).boxed_unsync())
}

type Chunk = io::Result<Option<Bytes>>;

async fn send(file: &mut tokio::fs::File, until: Until, from: u64, to: &mpsc::Sender<Chunk>) -> io::Result<()> {
    let (mut at, mut last) = (from, Instant::now());
    loop {
        let (end, over) = match &until {
            Until::Size(size) => (*size, true),
            Until::Grown(growing) => match growing.growth()? {
                Growth::More(length) => (length, false),
                Growth::Whole(length) => (length, true),
                Growth::Gone => return Err(io::Error::other("it was given up")),
            },
        };
        if at > end {
            return Err(io::Error::other("it was begun again"));
        }
        while at < end {
            let mut chunk = vec![0; usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK)];
            let count = file.read(&mut chunk).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            chunk.truncate(count);
            at += count as u64;
            let sent = timeout(STALL_MAX, to.send(Ok(Some(Bytes::from(chunk))))).await;
            sent.map_err(|_| io::ErrorKind::TimedOut)?.map_err(|_| io::ErrorKind::BrokenPipe)?;
            last = Instant::now();
        }
        if over {
            return Ok(());
        }
        if last.elapsed() > STALL_MAX || to.is_closed() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sleep(GROWTH_LOOK).await;
    }
}

fn empty() -> Body {
    Full::default().map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn with(mut answer: Response<Body>, name: hyper::header::HeaderName, value: &str) -> Response<Body> {
    if let Ok(value) = value.parse() {
        answer.headers_mut().insert(name, value);
    }
    answer
}

fn words(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(text.to_owned())).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    with(answer, CONTENT_TYPE, "text/plain; charset=utf-8")
}

fn later(text: &str) -> Response<Body> {
    with(words(StatusCode::SERVICE_UNAVAILABLE, text), RETRY_AFTER, "1")
}

fn busy() -> Response<Body> {
    later("this node sends as many blobs as it may already")
}

fn whole(body: Body, from: u64, size: u64) -> Response<Body> {
    let mut answer = Response::new(body);
    if from > 0 {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        answer = with(answer, CONTENT_RANGE, &format!("bytes {from}-{}/{size}", size.saturating_sub(1)));
    }
    let answer = with(answer, CONTENT_LENGTH, &(size - from).to_string());
    with(with(answer, ACCEPT_RANGES, "bytes"), CONTENT_TYPE, "application/octet-stream")
}
