//! The scheduler's API as the commands use it: JSON over HTTP on a unix socket, one connection per request.
//!
//! One request per connection keeps streams, upgrades and plain answers alike, and costs tens of microseconds on a
//! unix socket.

use crate::error::CliError;
use crate::global::Global;
use bytes::{Bytes, BytesMut};
use gantry_api::http::{ApiError, AppDetail, AppSummary, Event, Node, Plan, Replica, Scale, Token, TokenRequest};
use gantry_api::ids::{AppName, NodeName, ReplicaId, ServiceName};
use gantry_api::spec::App;
use gantry_api::wire::{ExecRequest, TUNNEL_PROTOCOL};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// A scheduler that has not begun to answer by then is stuck. Deploys are one transaction, exec waits for an agent to
/// dial back: both are done in a second or not at all.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// A longer line in a stream is refused: the peer is broken. Agents cut log lines far below this.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens.
    #[error("cannot reach the scheduler at {}", socket.display())]
    Unreachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection ended early.
    #[error("the scheduler at {} broke off while answering `{request}`", socket.display())]
    Broken {
        /// Where it is.
        socket: PathBuf,
        /// Method and path.
        request: String,
        /// What HTTP said.
        source: hyper::Error,
    },
    /// No answer came.
    #[error("the scheduler at {} did not answer `{request}` within {}s", socket.display(), ANSWER_MAX.as_secs())]
    Silent {
        /// Where it is.
        socket: PathBuf,
        /// Method and path.
        request: String,
    },
    /// The answer makes no sense.
    #[error("what answers at {} does not speak Gantry's API: `{request}`: {detail}", socket.display())]
    Foreign {
        /// Where it is.
        socket: PathBuf,
        /// Method and path.
        request: String,
        /// What was wrong with the answer.
        detail: String,
    },
    /// The scheduler said no.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

impl ClientError {
    /// What the person can do next.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("the socket is for root: try again with sudo".to_owned())
            }
            Self::Unreachable { socket, .. } if socket.ends_with("n1/gantry.sock") => {
                let lab = socket.ancestors().nth(2).and_then(Path::file_name).map(|name| name.to_string_lossy());
                let name = lab.map_or_else(String::new, |lab| format!(" --name {lab}"));
                Some(format!(
                    "the lab's node n1 is off or its daemon is starting: `gantry lab status{name}` tells, \
                     `gantry lab start{name} n1` starts it"
                ))
            }
            Self::Unreachable { .. } => Some(
                "start one with `gantry server` (this host as a cluster) or `gantry lab up` (a cluster on this machine)"
                    .to_owned(),
            ),
            Self::Broken { .. } => Some("it may have been stopped or restarted: try again".to_owned()),
            Self::Silent { .. } => Some("look at the log of `gantry server`".to_owned()),
            Self::Foreign { .. } => {
                Some("compare `gantry version` here and on the server, and check --host / GANTRY_HOST".to_owned())
            }
            Self::Refused(error) if error.hint.is_none() && error.code == "not_found" => {
                Some("`gantry apps`, `gantry ps -a` and `gantry node ls` list what there is".to_owned())
            }
            Self::Refused(error) => error.hint.clone(),
        }
    }

    /// Whether the thing asked for does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(error) if error.code == "not_found")
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let cli = Self::chain(&error);
        match error.hint() {
            Some(hint) => cli.hint(hint),
            None => cli,
        }
    }
}

/// Runs a command's future on this thread: a multi-thread runtime costs over a millisecond to start.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("an epoll descriptor and a pipe for signals");
    let result = runtime.block_on(future);
    // A thread that still reads from a terminal must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Which scheduler to talk to.
///
/// # Errors
/// `--host` is no unix socket, or several labs run and none was chosen.
pub(crate) fn socket(global: &Global) -> Result<PathBuf, CliError> {
    if let Some(host) = &global.host {
        return match host.strip_prefix("unix://").unwrap_or(host) {
            path if path.starts_with('/') => Ok(PathBuf::from(path)),
            _ => Err(CliError::new(format!("--host `{host}` is not the address of a unix socket"))
                .hint("write it as unix:///run/gantry/gantry.sock")
                .code(crate::error::USAGE)),
        };
    }
    let own = global.run_dir.join("gantry.sock");
    if own.exists() {
        return Ok(own);
    }
    let all = lab_sockets(&global.run_dir.join("labs"));
    let answers = |socket: &&PathBuf| std::os::unix::net::UnixStream::connect(socket).is_ok();
    let labs: Vec<PathBuf> = all.iter().filter(answers).cloned().collect();
    match labs.as_slice() {
        // The only lab is meant also while its first node is off: the error will name it.
        [] if all.len() == 1 => Ok(all[0].clone()),
        [] => Ok(own),
        [only] => Ok(only.clone()),
        [first, ..] => {
            let names = labs.iter().map(|socket| socket.display().to_string()).collect::<Vec<_>>().join(", ");
            Err(CliError::new(format!("several labs run: {names}"))
                .hint(format!("choose one with --host unix://{} or GANTRY_HOST", first.display())))
        }
    }
}

/// Of a name that is no container of this host, when there is no scheduler to ask either.
pub(crate) fn nowhere(error: CliError, name: &str) -> CliError {
    match error.message.starts_with("cannot reach the scheduler") {
        true => CliError { message: format!("`{name}` is no container of this host, and {}", error.message), ..error },
        false => error,
    }
}

/// Sockets of labs' first nodes, in order of name; nobody may listen.
fn lab_sockets(labs: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(labs) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.path().is_dir()) // locks lie beside them
        .map(|entry| entry.path().join("n1/gantry.sock"))
        .collect();
    found.sort();
    found
}

/// Which lines of output are wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogsQuery {
    /// Of this app only.
    pub(crate) app: Option<AppName>,
    /// Of this service only.
    pub(crate) service: Option<ServiceName>,
    /// Of this replica only.
    pub(crate) replica: Option<ReplicaId>,
    /// Go on as lines come.
    pub(crate) follow: bool,
    /// The last so many of each replica.
    pub(crate) tail: Option<u64>,
    /// Newer than this, milliseconds since 1970.
    pub(crate) since_ms: Option<u64>,
}

impl LogsQuery {
    /// Path and query. Names and ids need no escaping: their rules allow no character that would.
    fn path(&self) -> String {
        let follow = self.follow.then_some("true");
        let pairs = [
            ("app", self.app.as_ref().map(ToString::to_string)),
            ("service", self.service.as_ref().map(ToString::to_string)),
            ("replica", self.replica.as_ref().map(ToString::to_string)),
            ("follow", follow.map(str::to_owned)),
            ("tail", self.tail.map(|n| n.to_string())),
            ("since_ms", self.since_ms.map(|ms| ms.to_string())),
        ];
        let query: Vec<String> =
            pairs.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?))).collect();
        format!("/v1/logs?{}", query.join("&"))
    }
}

/// One scheduler.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

type Answer<T> = Result<T, ClientError>;

impl Client {
    /// The scheduler that the options name.
    ///
    /// # Errors
    /// As [`socket`].
    pub(crate) fn new(global: &Global) -> Result<Self, CliError> {
        Ok(Self { socket: socket(global)? })
    }

    /// The scheduler behind this socket.
    pub(crate) const fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its version.
    pub(crate) async fn version(&self) -> Answer<gantry_api::http::Version> {
        self.get("/v1/version").await
    }

    /// Every node.
    pub(crate) async fn nodes(&self) -> Answer<Vec<Node>> {
        self.get("/v1/nodes").await
    }

    /// Forgets a lost node.
    pub(crate) async fn remove_node(&self, name: &NodeName) -> Answer<()> {
        self.send(Method::DELETE, &format!("/v1/nodes/{name}"), None).await.map(drop)
    }

    /// Every app.
    pub(crate) async fn apps(&self) -> Answer<Vec<AppSummary>> {
        self.get("/v1/apps").await
    }

    /// One app in full.
    pub(crate) async fn app(&self, app: &AppName) -> Answer<AppDetail> {
        self.get(&format!("/v1/apps/{app}")).await
    }

    /// Deploys, or with `dry_run` tells what a deploy would change.
    pub(crate) async fn put_app(&self, app: &App, dry_run: bool) -> Answer<Plan> {
        let query = if dry_run { "?dry_run=true" } else { "" };
        self.call(Method::PUT, &format!("/v1/apps/{}{query}", app.name), Some(app)).await
    }

    /// Removes an app, with `volumes` its data too.
    pub(crate) async fn delete_app(&self, app: &AppName, volumes: bool) -> Answer<Plan> {
        let query = if volumes { "?volumes=true" } else { "" };
        self.call(Method::DELETE, &format!("/v1/apps/{app}{query}"), None::<&()>).await
    }

    /// Changes one service's number.
    pub(crate) async fn scale(&self, app: &AppName, service: &ServiceName, replicas: u32) -> Answer<Plan> {
        let path = format!("/v1/apps/{app}/services/{service}/replicas");
        self.call(Method::PUT, &path, Some(&Scale { replicas })).await
    }

    /// Replicas of one app, or of all.
    pub(crate) async fn replicas(&self, app: Option<&AppName>) -> Answer<Vec<Replica>> {
        match app {
            Some(app) => self.get(&format!("/v1/replicas?app={app}")).await,
            None => self.get("/v1/replicas").await,
        }
    }

    /// What happened of late.
    pub(crate) async fn events(&self) -> Answer<Vec<Event>> {
        self.get("/v1/events").await
    }

    /// What happens, as server-sent events.
    pub(crate) async fn follow_events(&self) -> Answer<Lines> {
        self.lines("/v1/events?follow=true".to_owned()).await
    }

    /// Output, one [`gantry_api::http::LogLine`] as JSON per line.
    pub(crate) async fn logs(&self, query: &LogsQuery) -> Answer<Lines> {
        self.lines(query.path()).await
    }

    /// A token to join with.
    pub(crate) async fn token(&self, ttl_s: u64) -> Answer<Token> {
        self.call(Method::POST, "/v1/tokens", Some(&TokenRequest { ttl_s })).await
    }

    /// A tunnel to a command in a replica, which carries [`gantry_api::frame`]s.
    pub(crate) async fn exec(&self, request: &ExecRequest) -> Answer<TokioIo<hyper::upgrade::Upgraded>> {
        let line = "POST /v1/exec".to_owned();
        let response = self.send(Method::POST, "/v1/exec", Some(encode(request))).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let detail = format!("status {} in place of an upgrade", response.status());
            return Err(ClientError::Foreign { socket: self.socket.clone(), request: line, detail });
        }
        match hyper::upgrade::on(response).await {
            Ok(upgraded) => Ok(TokioIo::new(upgraded)),
            Err(source) => Err(ClientError::Broken { socket: self.socket.clone(), request: line, source }),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        self.call(Method::GET, path, None::<&()>).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Answer<T> {
        let line = format!("{method} {path}");
        let response = self.send(method, path, body.map(encode)).await?;
        let bytes = self.whole(response, &line).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.foreign(&line, error.to_string()))
    }

    async fn lines(&self, path: String) -> Answer<Lines> {
        let response = self.send(Method::GET, &path, None).await?;
        Ok(Lines {
            client: self.clone(),
            request: format!("GET {path}"),
            body: response.into_body(),
            rest: BytesMut::new(),
            seen: 0,
        })
    }

    /// Sends one request; an answer that is no success becomes an error.
    async fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Answer<Response<Incoming>> {
        let line = format!("{method} {path}");
        let response = tokio::time::timeout(ANSWER_MAX, self.ask(method, path, body, &line))
            .await
            .map_err(|_| ClientError::Silent { socket: self.socket.clone(), request: line.clone() })??;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let bytes = self.whole(response, &line).await?;
        match serde_json::from_slice::<ApiError>(&bytes) {
            Ok(error) => Err(ClientError::Refused(error)),
            Err(_) => Err(self.foreign(&line, format!("status {status}"))),
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Vec<u8>>, line: &str) -> Answer<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Unreachable { socket: self.socket.clone(), source })?;
        let broken = |source| self.broken(line, source);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It drives the connection until its body is read or it is upgraded; failures show in the response.
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "gantry");
        if path == "/v1/exec" {
            request = request.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, TUNNEL_PROTOCOL);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .expect("paths are made of checked names and numbers");
        sender.send_request(request).await.map_err(broken)
    }

    async fn whole(&self, response: Response<Incoming>, line: &str) -> Answer<Bytes> {
        let body = tokio::time::timeout(ANSWER_MAX, response.into_body().collect())
            .await
            .map_err(|_| ClientError::Silent { socket: self.socket.clone(), request: line.to_owned() })?;
        Ok(body.map_err(|source| self.broken(line, source))?.to_bytes())
    }

    fn broken(&self, line: &str, source: hyper::Error) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), request: line.to_owned(), source }
    }

    fn foreign(&self, line: &str, detail: String) -> ClientError {
        ClientError::Foreign { socket: self.socket.clone(), request: line.to_owned(), detail }
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types are JSON")
}

/// A response body, line by line.
#[derive(Debug)]
pub(crate) struct Lines {
    client: Client,
    request: String,
    body: Incoming,
    rest: BytesMut,
    /// Bytes of `rest` that are known to hold no line end.
    seen: usize,
}

impl Lines {
    /// The next line without its end; `None` after the last.
    ///
    /// # Errors
    /// The connection broke, or the line has no end in sight.
    pub(crate) async fn next(&mut self) -> Answer<Option<String>> {
        loop {
            if let Some(at) = self.rest[self.seen..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.rest.split_to(self.seen + at + 1);
                self.seen = 0;
                line.truncate(line.len() - 1);
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            self.seen = self.rest.len();
            if self.seen > LINE_BYTES_MAX {
                return Err(self.client.foreign(&self.request, format!("a line of over {LINE_BYTES_MAX} bytes")));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.rest.extend_from_slice(data);
                    }
                }
                Some(Err(source)) => return Err(self.client.broken(&self.request, source)),
                None if self.rest.is_empty() => return Ok(None),
                None => {
                    let last = std::mem::take(&mut self.rest);
                    self.seen = 0;
                    return Ok(Some(String::from_utf8_lossy(&last).into_owned()));
                }
            }
        }
    }

    /// The next line as JSON.
    ///
    /// # Errors
    /// As [`Lines::next`], or it is not a `T`.
    pub(crate) async fn next_json<T: DeserializeOwned>(&mut self) -> Answer<Option<T>> {
        let Some(line) = self.next().await? else {
            return Ok(None);
        };
        self.decode(&line).map(Some)
    }

    /// The next server-sent event's data as JSON; comments and other fields are passed over.
    ///
    /// # Errors
    /// As [`Lines::next_json`].
    pub(crate) async fn next_event<T: DeserializeOwned>(&mut self) -> Answer<Option<T>> {
        while let Some(line) = self.next().await? {
            if let Some(data) = line.strip_prefix("data:") {
                return self.decode(data.trim()).map(Some);
            }
        }
        Ok(None)
    }

    fn decode<T: DeserializeOwned>(&self, text: &str) -> Answer<T> {
        serde_json::from_str(text).map_err(|error| self.client.foreign(&self.request, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(run_dir: &Path, host: Option<&str>) -> Global {
        Global {
            data_dir: PathBuf::new(),
            run_dir: run_dir.to_owned(),
            cgroup_parent: "/gantry".to_owned(),
            host: host.map(str::to_owned),
            runtime: None,
        }
    }

    #[test]
    fn the_socket_is_the_named_one_then_this_hosts_then_the_only_labs() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        let own = run.join("gantry.sock");
        assert_eq!(socket(&global(run, None)).unwrap(), own, "nothing runs: the error will name this one");
        assert_eq!(socket(&global(run, Some("unix:///x/y"))).unwrap(), Path::new("/x/y"));
        assert_eq!(socket(&global(run, Some("/x/y"))).unwrap(), Path::new("/x/y"));
        assert_eq!(socket(&global(run, Some("tcp://10.0.0.1:7400"))).unwrap_err().code, 2);

        let lab = |name: &str| {
            let node = run.join("labs").join(name).join("n1");
            std::fs::create_dir_all(&node).unwrap();
            let path = node.join("gantry.sock");
            (std::os::unix::net::UnixListener::bind(&path).unwrap(), path)
        };
        let (one, first) = lab("one");
        assert_eq!(socket(&global(run, None)).unwrap(), first);
        drop(one);
        std::fs::write(run.join("labs/one.lock"), "").unwrap();
        assert_eq!(socket(&global(run, None)).unwrap(), first, "the only lab, its first node off");
        std::fs::remove_file(&first).unwrap();
        let (_one, first) = lab("one");
        let (two, second) = lab("two");
        let error = socket(&global(run, None)).unwrap_err();
        assert!(error.message.contains("one") && error.message.contains("two"), "{}", error.message);
        drop(two);
        assert!(second.exists());
        assert_eq!(socket(&global(run, None)).unwrap(), first, "a dead lab leaves its socket behind");
        std::fs::write(&own, "").unwrap();
        assert_eq!(socket(&global(run, None)).unwrap(), own);
    }

    #[test]
    fn a_logs_query_holds_only_what_was_asked() {
        let mut query = LogsQuery { app: Some("shop".parse().unwrap()), ..LogsQuery::default() };
        assert_eq!(query.path(), "/v1/logs?app=shop");
        query.service = Some("api".parse().unwrap());
        (query.follow, query.tail, query.since_ms) = (true, Some(10), Some(5));
        assert_eq!(query.path(), "/v1/logs?app=shop&service=api&follow=true&tail=10&since_ms=5");
    }
}
