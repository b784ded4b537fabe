//! A scheduler in a folder of its own, a person at its unix socket, and scripted agents over real mutual TLS.
#![allow(dead_code, missing_docs, unreachable_pub)] // each test file uses its part

use gantry_api::frame::Frame;
use gantry_api::http::{ApiError, AppDetail, AppSummary, Event, LogLine, Node, Plan, Replica, Token};
use gantry_api::ids::{NodeId, NodeName, ReplicaId};
use gantry_api::spec::{App, Service, Template};
use gantry_api::units::{Bytes, MilliCpu};
use gantry_api::wire::{
    Assignment, Capacity, Exit, Hello, JoinRequest, JoinResponse, JoinToken, ReplicaState, ReplicaStatus, Report,
    ToAgent, ToScheduler, TunnelRequest,
};
use gantry_scheduler::{Config, Scheduler};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes as Data, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Longest wait for anything; a healthy run needs a fraction.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `look` finds something, and says what was missing when it never does.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A scheduler that can be stopped and started again on the same data.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    running: Option<(watch::Sender<bool>, JoinHandle<()>)>,
    pub address: SocketAddr,
}

impl Cluster {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Self { dir, running: None, address: "127.0.0.1:0".parse().unwrap() };
        cluster.again().await;
        cluster
    }

    pub fn config(&self) -> Config {
        Config {
            data_dir: self.dir.path().join("data"),
            run_dir: self.dir.path().join("run"),
            listen: self.address,
            advertise: Ipv4Addr::LOCALHOST,
            socket: self.socket(),
            name: "test".to_owned(),
            replica_net: "10.210.0.0/16".parse().unwrap(),
            service_net: "10.211.0.0/16".parse().unwrap(),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/gantry.sock")
    }

    /// Starts it on the port it had.
    pub async fn again(&mut self) {
        let scheduler = Scheduler::start(self.config()).await.unwrap();
        self.address = scheduler.address();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move { scheduler.run_until(stopped).await.unwrap() });
        self.running = Some((stop, task));
    }

    pub async fn stop(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            stop.send_replace(true);
            task.await.unwrap();
        }
    }

    pub fn ca_pem(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("data/scheduler/ca/ca.pem")).unwrap()
    }

    /// One request at the unix socket.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<Data>) -> Response<Incoming> {
        let io = UnixStream::connect(self.socket()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let request = Request::builder().method(method).uri(path).header("host", "gantry");
        sender.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap()
    }

    pub async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: impl Into<Data>) -> T {
        answer(self.send(method, path, body).await).await.unwrap_or_else(|refused| panic!("{path}: {refused:?}"))
    }

    pub async fn refused(&self, method: Method, path: &str, body: impl Into<Data>) -> (StatusCode, ApiError) {
        let answered: Result<serde_json::Value, _> = answer(self.send(method, path, body).await).await;
        answered.expect_err(path)
    }

    pub async fn deploy(&self, app: &App) -> Plan {
        self.ask(Method::PUT, &format!("/v1/apps/{}", app.name), serde_json::to_vec(app).unwrap()).await
    }

    pub async fn app(&self, name: &str) -> AppDetail {
        self.ask(Method::GET, &format!("/v1/apps/{name}"), "").await
    }

    pub async fn apps(&self) -> Vec<AppSummary> {
        self.ask(Method::GET, "/v1/apps", "").await
    }

    pub async fn nodes(&self) -> Vec<Node> {
        self.ask(Method::GET, "/v1/nodes", "").await
    }

    pub async fn replicas(&self) -> Vec<Replica> {
        self.ask(Method::GET, "/v1/replicas", "").await
    }

    pub async fn events(&self) -> Vec<Event> {
        self.ask(Method::GET, "/v1/events", "").await
    }

    pub async fn token(&self, ttl_s: u64) -> JoinToken {
        let token: Token = self.ask(Method::POST, "/v1/tokens", format!("{{\"ttl_s\":{ttl_s}}}")).await;
        token.token.parse().unwrap()
    }

    /// Waits until all services of the app are as wanted.
    pub async fn settled(&self, app: &str) -> AppDetail {
        eventually(&format!("{app} settled"), async || {
            let detail = self.app(app).await;
            detail.summary.services.iter().all(|service| service.settled).then_some(detail)
        })
        .await
    }

    pub async fn agent(&self, name: &str) -> Agent {
        let mut agent = Agent::new(name);
        let token = self.token(60).await;
        agent.join(self, &token.secret).await.unwrap();
        agent.connect(self);
        eventually(&format!("node {name} ready"), async || {
            let nodes = self.nodes().await;
            nodes.iter().any(|n| n.name.as_str() == name && n.state == gantry_api::http::NodeState::Ready).then_some(())
        })
        .await;
        agent
    }
}

/// The body of an answer, or its refusal.
pub async fn answer<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, (StatusCode, ApiError)> {
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    if status.is_success() {
        let bytes = if bytes.is_empty() { Data::from_static(b"null") } else { bytes };
        Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}")))
    } else {
        Err((status, serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{status} {error}: {bytes:?}"))))
    }
}

/// What a scripted agent does.
#[derive(Default)]
pub struct Script {
    /// Replicas of these images end at once and stay so.
    pub fail: BTreeSet<String>,
    /// Replicas of these images run but never become ready.
    pub unready: BTreeSet<String>,
    /// Replicas of these images end well.
    pub complete: BTreeSet<String>,
    /// Says nothing, hears everything.
    pub silent: bool,
    /// Every assignment that came.
    pub assignments: Vec<Assignment>,
    /// Ids of replicas that ever ran here.
    pub ran: BTreeSet<ReplicaId>,
}

impl Script {
    pub fn newest(&self) -> Option<&Assignment> {
        self.assignments.last()
    }
}

pub struct Agent {
    pub id: NodeId,
    pub name: NodeName,
    pub key: rcgen::KeyPair,
    pub certificate_pem: Option<String>,
    pub underlay: Ipv4Addr,
    pub capacity: Capacity,
    pub labels: BTreeMap<String, String>,
    pub script: Arc<Mutex<Script>>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Agent {
    pub fn new(name: &str) -> Self {
        let digest = gantry_scheduler::ca::sha256(name.as_bytes());
        let byte = u8::from_str_radix(&digest[..2], 16).unwrap();
        Self {
            id: digest[..16].parse().unwrap(),
            name: name.parse().unwrap(),
            key: rcgen::KeyPair::generate().unwrap(),
            certificate_pem: None,
            underlay: Ipv4Addr::new(192, 0, 2, byte),
            capacity: Capacity { cpu: MilliCpu(4000), memory: Bytes(1 << 30) },
            labels: BTreeMap::new(),
            script: Arc::default(),
            task: None,
        }
    }

    pub fn csr(&self) -> String {
        rcgen::CertificateParams::default().serialize_request(&self.key).unwrap().pem().unwrap()
    }

    pub async fn join(&mut self, cluster: &Cluster, secret: &str) -> Result<JoinResponse, (StatusCode, ApiError)> {
        let request = JoinRequest {
            secret: secret.to_owned(),
            name: self.name.clone(),
            node: self.id.clone(),
            csr_pem: self.csr(),
            underlay: self.underlay,
        };
        let mut sender = dial(cluster.address, &cluster.ca_pem(), None).await.unwrap();
        let http = Request::post("/v1/join").header("host", "gantry");
        let body = Full::new(Data::from(serde_json::to_vec(&request).unwrap()));
        let joined: JoinResponse = answer(sender.send_request(http.body(body).unwrap()).await.unwrap()).await?;
        self.certificate_pem = Some(joined.certificate_pem.clone());
        Ok(joined)
    }

    /// Keeps a stream open until killed.
    pub fn connect(&mut self, cluster: &Cluster) {
        let identity = (self.certificate_pem.clone().unwrap(), self.key.serialize_pem());
        let worker = Worker {
            address: cluster.address,
            ca_pem: cluster.ca_pem(),
            identity,
            hello: Hello {
                node: self.id.clone(),
                name: self.name.clone(),
                version: "test".to_owned(),
                underlay: self.underlay,
                capacity: self.capacity,
                labels: self.labels.clone(),
                arch: "amd64".to_owned(),
                kernel: "6.18".to_owned(),
            },
            script: Arc::clone(&self.script),
        };
        self.task = Some(tokio::spawn(worker.run()));
    }

    /// A power cut: the connection breaks without a word.
    pub fn kill(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    pub fn identity(&self) -> Option<(String, String)> {
        Some((self.certificate_pem.clone()?, self.key.serialize_pem()))
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Data>>;

/// A TLS connection to the scheduler, with a certificate or without.
pub async fn dial(
    address: SocketAddr,
    ca_pem: &str,
    identity: Option<&(String, String)>,
) -> Result<Sender, Box<dyn std::error::Error + Send + Sync>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => config.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        )?,
    };
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1")?;
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

pub fn upgrade_request(path: &str, protocol: &str) -> Request<Full<Data>> {
    Request::post(path)
        .header("host", "gantry")
        .header("connection", "upgrade")
        .header("upgrade", protocol)
        .body(Full::default())
        .unwrap()
}

struct Worker {
    address: SocketAddr,
    ca_pem: String,
    identity: (String, String),
    hello: Hello,
    script: Arc<Mutex<Script>>,
}

impl Worker {
    /// Dials again and again, as a real agent does.
    async fn run(self) {
        let mut status: BTreeMap<ReplicaId, ReplicaStatus> = BTreeMap::new();
        let mut applied = gantry_api::ids::Revision(0);
        loop {
            // A refused stream is tried again: the scheduler may be away.
            let _ = self.stream(&mut status, &mut applied).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stream(
        &self,
        status: &mut BTreeMap<ReplicaId, ReplicaStatus>,
        applied: &mut gantry_api::ids::Revision,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut sender = dial(self.address, &self.ca_pem, Some(&self.identity)).await?;
        let response = sender.send_request(upgrade_request("/v1/agent/stream", "gantry-agent")).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(format!("{}", response.status()).into());
        }
        let io = TokioIo::new(hyper::upgrade::on(response).await?);
        let (read, mut write) = tokio::io::split(io);
        let mut lines = BufReader::new(read).lines();
        let mut line = serde_json::to_vec(&ToScheduler::Hello(self.hello.clone()))?;
        line.push(b'\n');
        write.write_all(&line).await?;
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut sequence = 0;
        loop {
            tokio::select! {
                line = lines.next_line() => {
                    let Some(line) = line? else { return Ok(()) };
                    match serde_json::from_str(&line)? {
                        ToAgent::Assignment(assignment) => {
                            *applied = assignment.revision;
                            self.carry_out(&assignment, status);
                            self.script.lock().unwrap().assignments.push(*assignment);
                        }
                        ToAgent::Sources(_) => continue,
                        ToAgent::OpenTunnel { tunnel, request } => {
                            let (address, ca, identity) = (self.address, self.ca_pem.clone(), self.identity.clone());
                            tokio::spawn(async move { serve_tunnel(address, ca, identity, tunnel, request).await.unwrap() });
                            continue;
                        }
                    }
                }
                _ = tick.tick() => {}
            }
            if self.script.lock().unwrap().silent {
                continue;
            }
            sequence += 1;
            let report = Report {
                sequence,
                applied: *applied,
                replicas: status.values().cloned().collect(),
                volumes: Vec::new(),
                problems: Vec::new(),
                memory_used: Bytes(0),
                cpu_used: MilliCpu(0),
            };
            let mut line = serde_json::to_vec(&ToScheduler::Report(report))?;
            line.push(b'\n');
            write.write_all(&line).await?;
        }
    }

    fn carry_out(&self, assignment: &Assignment, status: &mut BTreeMap<ReplicaId, ReplicaStatus>) {
        status.retain(|id, _| assignment.replicas.iter().any(|replica| replica.id == *id));
        let mut script = self.script.lock().unwrap();
        for replica in &assignment.replicas {
            script.ran.insert(replica.id.clone());
            let image = &replica.template.image;
            let (state, ready) = match image {
                image if script.fail.contains(image) => (ReplicaState::Failed, false),
                image if script.complete.contains(image) => (ReplicaState::Completed, false),
                image => (ReplicaState::Running, !script.unready.contains(image)),
            };
            let failed = state == ReplicaState::Failed;
            let exit = Exit { code: Some(1), signal: None, oom_killed: false, at_ms: 1, cause: None };
            let host = 2 + (status.len() % 250) as u8;
            status.entry(replica.id.clone()).or_insert_with(|| ReplicaStatus {
                id: replica.id.clone(),
                state,
                ready,
                healthy: None,
                address: Some(Ipv4Addr::new(10, 210, 1, host)),
                message: None,
                restarts: 0,
                started_at_ms: None,
                last_exit: failed.then_some(exit),
                memory_used: Bytes(0),
                cpu_used: MilliCpu(0),
            });
        }
    }
}

/// Exec: says back what it is told, then exit code 7. Logs: three lines.
async fn serve_tunnel(
    address: SocketAddr,
    ca_pem: String,
    identity: (String, String),
    tunnel: String,
    request: TunnelRequest,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut sender = dial(address, &ca_pem, Some(&identity)).await?;
    let response = sender.send_request(upgrade_request(&format!("/v1/agent/tunnel/{tunnel}"), "gantry-tunnel")).await?;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut io = TokioIo::new(hyper::upgrade::on(response).await?);
    match request {
        TunnelRequest::Exec(_) => {
            let (mut buffer, mut part) = (Vec::new(), [0; 4096]);
            loop {
                while let Some(frame) = Frame::decode(&mut buffer)? {
                    match frame {
                        Frame::Stdin(bytes) if bytes.is_empty() => {
                            io.write_all(&Frame::Exit(7).encode()).await?;
                            io.shutdown().await?;
                            return Ok(());
                        }
                        Frame::Stdin(bytes) => io.write_all(&Frame::Stdout(bytes).encode()).await?,
                        _ => {}
                    }
                }
                let length = io.read(&mut part).await?;
                if length == 0 {
                    return Ok(());
                }
                buffer.extend(&part[..length]);
            }
        }
        TunnelRequest::Logs(logs) => {
            for second in 1..=3 {
                let line = LogLine {
                    time: format!("2026-11-24T10:00:0{second}.{:09}Z", logs.name.number),
                    replica: logs.replica.clone(),
                    name: logs.name.clone(),
                    stream: "stdout".to_owned(),
                    line: format!("line {second}"),
                };
                let mut json = serde_json::to_vec(&line)?;
                json.push(b'\n');
                io.write_all(&json).await?;
            }
            if logs.follow {
                // A follower stays until the other side hangs up.
                let _ = io.read(&mut [0; 1]).await;
            }
            io.shutdown().await?;
            Ok(())
        }
    }
}

pub fn app(name: &str, services: &[(&str, Service)]) -> App {
    App {
        name: name.parse().unwrap(),
        services: services.iter().map(|(name, service)| (name.parse().unwrap(), service.clone())).collect(),
        volumes: BTreeMap::new(),
    }
}

pub fn service(image: &str, replicas: u32) -> Service {
    Service {
        template: Template { image: image.to_owned(), ..Template::default() },
        replicas,
        ports: Vec::new(),
        depends_on: BTreeMap::new(),
        placement: Default::default(),
        update: Default::default(),
        networks: BTreeMap::new(),
        labels: BTreeMap::new(),
    }
}
