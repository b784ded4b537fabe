//! Connections to the scheduler. The agent dials; only other nodes dial a node, for images.

use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// To connect, for the handshake, and for an answer's head, each.
const STEP_MAX: Duration = Duration::from_secs(5);
/// Unacknowledged for longer, a peer is gone: its host went down without a word.
const UNACKNOWLEDGED_MS_MAX: u32 = 5_000;
/// A silent connection is asked whether it lives: after this, so often, so many times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// A longer answer to a request is refused.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// No connection, or no answer on it.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody there.
    #[error("cannot reach the scheduler at {0}")]
    Connect(SocketAddr, #[source] io::Error),
    /// Somebody there, but not one to talk to.
    #[error("cannot agree on TLS with {0}")]
    Tls(SocketAddr, #[source] io::Error),
    /// The conversation broke.
    #[error("cannot talk to the scheduler at {0}")]
    Http(SocketAddr, #[source] hyper::Error),
    /// A refusal, with what it says.
    #[error("the scheduler at {server} answers {status}: {message}")]
    Refused {
        /// Who.
        server: SocketAddr,
        /// HTTP status.
        status: StatusCode,
        /// Its words.
        message: String,
    },
    /// It did not answer in time.
    #[error("the scheduler at {0} does not answer")]
    Silent(SocketAddr),
    /// The request cannot be made, which is our own mistake.
    #[error("cannot form the request")]
    Form(#[from] hyper::http::Error),
}

/// An upgraded connection.
pub(crate) type Tunnel = TokioIo<Upgraded>;

/// How long a peer may leave bytes unacknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unacknowledged {
    /// One that reads at once or is gone.
    Short,
    /// As long as the kernel likes: it counts those for a reader that pauses too, and logs wait for a pager.
    Long,
}

/// How to reach the scheduler.
#[derive(Clone)]
pub(crate) struct Dialer {
    server: SocketAddr,
    tls: Arc<ClientConfig>,
}

/// A status and a whole body.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// A peer whose host went down without a word is noticed, also where only it is expected to speak.
fn tune(tcp: &TcpStream, unacknowledged: Unacknowledged) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    if unacknowledged == Unacknowledged::Short {
        sockopt::set_tcp_user_timeout(tcp, UNACKNOWLEDGED_MS_MAX)?;
    }
    sockopt::set_tcp_keepidle(tcp, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(tcp, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(tcp, KEEPALIVE_PROBES)?;
    Ok(sockopt::set_socket_keepalive(tcp, true)?)
}

impl Dialer {
    pub(crate) fn new(server: SocketAddr, tls: ClientConfig) -> Self {
        Self { server, tls: Arc::new(tls) }
    }

    async fn step<T>(&self, what: impl Future<Output = T>) -> Result<T, DialError> {
        timeout(STEP_MAX, what).await.map_err(|_| DialError::Silent(self.server))
    }

    async fn connect(&self, unacknowledged: Unacknowledged) -> Result<TlsStream<TcpStream>, DialError> {
        let at = self.server;
        let timed_out = |_| DialError::Connect(at, io::ErrorKind::TimedOut.into());
        let connected = timeout(STEP_MAX, TcpStream::connect(at)).await.map_err(timed_out)?;
        let tcp = connected.map_err(|error| DialError::Connect(at, error))?;
        tune(&tcp, unacknowledged).map_err(|error| DialError::Connect(at, error))?;
        let name = ServerName::IpAddress(at.ip().into());
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        self.step(connector.connect(name, tcp)).await?.map_err(|error| DialError::Tls(at, error))
    }

    /// One request with a JSON body.
    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> Result<Answer, DialError> {
        let http = |error| DialError::Http(self.server, error);
        let io = TokioIo::new(self.connect(Unacknowledged::Short).await?);
        let (mut sender, connection) = self.step(http1::handshake(io)).await?.map_err(http)?;
        let connection = tokio::spawn(connection);
        let request = Request::post(path)
            .header(HOST, self.server.to_string())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let answer = self.step(sender.send_request(request)).await?.map_err(http)?;
        let status = answer.status();
        let body = self.step(Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect()).await?;
        connection.abort();
        match body {
            Ok(body) => Ok(Answer { status, body: body.to_bytes() }),
            Err(_) => Err(DialError::Silent(self.server)),
        }
    }

    /// A connection that speaks `protocol` once `POST path` was answered.
    pub(crate) async fn upgrade(
        &self,
        path: &str,
        protocol: &str,
        unacknowledged: Unacknowledged,
    ) -> Result<Tunnel, DialError> {
        let http = |error| DialError::Http(self.server, error);
        let io = TokioIo::new(self.connect(unacknowledged).await?);
        let (mut sender, connection) = self.step(http1::handshake(io)).await?.map_err(http)?;
        tokio::spawn(connection.with_upgrades());
        let request = Request::post(path)
            .header(HOST, self.server.to_string())
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, protocol)
            .body(Empty::<Bytes>::new())?;
        let answer = self.step(sender.send_request(request)).await?.map_err(http)?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (server, status) = (self.server, answer.status());
            let body = self.step(Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect()).await?;
            let message = body.map_or_else(|_| String::new(), |body| words(&body.to_bytes()));
            return Err(DialError::Refused { server, status, message });
        }
        Ok(TokioIo::new(self.step(hyper::upgrade::on(answer)).await?.map_err(http)?))
    }
}

/// What a refusal says: the message of an API error, or the start of whatever it is.
pub(crate) fn words(body: &[u8]) -> String {
    match serde_json::from_slice::<gantry_api::http::ApiError>(body) {
        Ok(error) => error.message,
        Err(_) => String::from_utf8_lossy(body).trim().chars().take(300).collect(),
    }
}
