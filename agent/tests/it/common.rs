//! A node in namespaces of its own, and a scheduler that does what a test says.

use gantry_agent::{Config, JoinConfig};
use gantry_api::http::ApiError;
use gantry_api::ids::{NodeId, ReplicaId, ReplicaName, Revision};
use gantry_api::network::{NodeRoute, Table};
use gantry_api::spec::Template;
use gantry_api::units::Millis;
use gantry_api::wire::*;
use gantry_images::{LoadSource, NoProgress, Store};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Everything is awaited at most this long.
pub const DEADLINE: Duration = Duration::from_secs(30);
pub const IMAGE: &str = "example.test/busybox:1";
/// Set inside of the namespaces, to the runtime's binary.
const INSIDE: &str = "GANTRY_AGENT_TEST_INSIDE";
/// Set for an agent that is a process of its own, to the directory of its world.
const AGENT: &str = "GANTRY_AGENT_TEST_AGENT";
/// Set inside, to the control group of the test.
const CGROUP: &str = "GANTRY_AGENT_TEST_CGROUP";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Runs a test, called `name` with its module, in namespaces of its own.
pub fn inside<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let up = Command::new("busybox").args(["ifconfig", "lo", "up"]).status().expect("busybox-static is installed");
        assert!(up.success());
        // All that a test writes goes with its namespace.
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", std::env::temp_dir(), "tmpfs", flags, c"mode=1777").unwrap();
        tracing_subscriber::fmt().with_env_filter("info,gantry_agent=debug").with_ansi(false).init();
        tokio::runtime::Runtime::new().unwrap().block_on(test());
        return;
    }
    let program = runtime_program();
    let cgroup = format!("gantry-agent-test-{}-{}", std::process::id(), name.replace("::", "-"));
    let output = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, program)
        .env("TMPDIR", scratch(&[&std::env::current_exe().unwrap(), program]))
        .env(CGROUP, &cgroup)
        .output()
        .expect("util-linux is installed");
    sweep_cgroups(&cgroup);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "{name} failed inside its namespaces");
}

/// A directory to mount on that hides none of the programs.
fn scratch(programs: &[&Path]) -> &'static str {
    let hides = |folder: &str| programs.iter().any(|program| program.starts_with(folder));
    ["/tmp", "/mnt", "/srv"].into_iter().find(|folder| !hides(folder)).expect("a place that hides no program")
}

/// The runtime's binary, built if it is not.
fn runtime_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(given) = std::env::var_os("GANTRY_RUNTIME") {
            return given.into();
        }
        let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
        let built =
            Command::new(cargo).args(["build", "--quiet", "--locked", "-p", "gantry-runtime"]).status().unwrap();
        assert!(built.success(), "the runtime builds");
        let test = std::env::current_exe().unwrap();
        test.parent().and_then(Path::parent).unwrap().join("gantry-runtime")
    })
}

/// Control groups live outside of namespaces: those of this test, and of killed ones, are removed.
fn sweep_cgroups(own: &str) {
    for hierarchy in std::fs::read_dir(CGROUPS).into_iter().flatten().flatten() {
        for group in std::fs::read_dir(hierarchy.path()).into_iter().flatten().flatten() {
            let name = group.file_name().to_string_lossy().into_owned();
            let owner =
                name.strip_prefix("gantry-agent-test-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
            if name == own || owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                for child in std::fs::read_dir(group.path()).into_iter().flatten().flatten() {
                    let _ = std::fs::remove_dir(child.path());
                }
                let _ = std::fs::remove_dir(group.path());
            }
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An OCI layout with busybox, a directory with data, and a user.
pub fn write_image(dir: &Path) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = |path: &str, kind: tar::EntryType, mode: u32, owner: u64, link: Option<&str>, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        match link {
            Some(link) => tar.append_link(&mut header, path, link).unwrap(),
            None => tar.append_data(&mut header, path, data).unwrap(),
        }
    };
    let (dir_kind, file_kind) = (tar::EntryType::Directory, tar::EntryType::Regular);
    for path in ["bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"] {
        header(path, dir_kind, 0o755, 0, None, &[]);
    }
    header("bin/busybox", file_kind, 0o755, 0, None, &std::fs::read("/usr/bin/busybox").expect("busybox-static"));
    for name in ["sh", "cat", "sleep", "echo", "ls", "stat", "id", "tty", "stty", "hostname", "env", "test", "rm"] {
        header(&format!("bin/{name}"), tar::EntryType::Symlink, 0o777, 0, Some("busybox"), &[]);
    }
    header("etc/passwd", file_kind, 0o644, 0, None, b"root:x:0:0::/:/bin/sh\napp:x:70:70::/:/bin/sh\n");
    header("etc/group", file_kind, 0o644, 0, None, b"root:x:0:\napp:x:70:\n");
    header("cache/", dir_kind, 0o700, 70, None, &[]);
    header("data/", dir_kind, 0o750, 70, None, &[]);
    header("data/seed", file_kind, 0o640, 70, None, b"from the image\n");
    let layer = tar.into_inner().unwrap();
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = sha256(bytes);
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        format!("sha256:{digest}")
    };
    let layer_digest = put(&layer);
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = serde_json::json!({
        "architecture": arch, "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "WorkingDir": "/", "Volumes": {"/cache": {}}},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len()}],
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": put(&manifest),
            "size": manifest.len(), "annotations": {"org.opencontainers.image.ref.name": IMAGE}}],
    });
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// A scheduler that says what the test says.
pub struct Scheduler {
    pub address: SocketAddr,
    pub token: JoinToken,
    tls: Arc<rustls::ServerConfig>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    ca_pem: String,
    ca_key: KeyPair,
    secret: String,
    assignment: Mutex<Option<Assignment>>,
    orders: broadcast::Sender<ToAgent>,
    cut: watch::Sender<()>,
    reports: watch::Sender<Option<Report>>,
    hellos: watch::Sender<Vec<Hello>>,
    joins: Mutex<Vec<NodeId>>,
    tunnels: Mutex<HashMap<String, oneshot::Sender<Result<Upgraded, String>>>>,
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scheduler {
    pub async fn start() -> Self {
        Self::start_as(ExtendedKeyUsagePurpose::ServerAuth).await
    }

    /// With a certificate of this purpose.
    pub async fn start_as(purpose: ExtendedKeyUsagePurpose) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let shared = Arc::new(Shared {
            ca_pem: ca.pem(),
            secret: "s3cret".to_owned(),
            assignment: Mutex::new(None),
            orders: broadcast::Sender::new(64),
            cut: watch::Sender::new(()),
            reports: watch::Sender::new(None),
            hellos: watch::Sender::new(Vec::new()),
            joins: Mutex::new(Vec::new()),
            tunnels: Mutex::new(HashMap::new()),
            ca_key,
        });
        let token = JoinToken { ca_sha256: sha256(ca.der()), secret: shared.secret.clone() };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = Arc::new(shared.server_config(ca.der(), purpose));
        let acceptor = TlsAcceptor::from(Arc::clone(&tls));
        let task = tokio::spawn(serve(listener, acceptor, Arc::clone(&shared)));
        Self { address, token, tls, shared, task }
    }

    /// A certificate of the cluster's CA, with its key.
    pub fn certificate(
        &self,
        name: &str,
        purpose: ExtendedKeyUsagePurpose,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &self.shared.issuer()).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// Goes away without a word; the port refuses.
    pub fn stop(&self) {
        self.task.abort();
        self.shared.cut.send_replace(());
    }

    /// Comes back at the same place, and knows what it knew.
    pub async fn resume(&mut self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        self.shared.reports.send_replace(None);
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls));
        self.task = tokio::spawn(serve(listener, acceptor, Arc::clone(&self.shared)));
    }

    /// What every stream that comes is sent first.
    pub fn set(&self, assignment: Assignment) {
        *self.shared.assignment.lock().unwrap() = Some(assignment);
    }

    /// Sends an assignment, now and to every stream that comes.
    pub fn assign(&self, assignment: Assignment) {
        self.set(assignment.clone());
        let _ = self.shared.orders.send(ToAgent::Assignment(Box::new(assignment)));
    }

    pub fn joins(&self) -> usize {
        self.shared.joins.lock().unwrap().len()
    }

    pub fn hellos(&self) -> Vec<Hello> {
        self.shared.hellos.borrow().clone()
    }

    /// The first report that is as wanted.
    pub async fn wait(&self, what: &str, mut good: impl FnMut(&Report) -> bool) -> Report {
        let mut reports = self.shared.reports.subscribe();
        let found = reports.wait_for(|report| report.as_ref().is_some_and(&mut good));
        match tokio::time::timeout(DEADLINE, found).await {
            Ok(report) => report.unwrap().clone().unwrap(),
            Err(_) => panic!("not in time: {what}; last report: {:#?}", *self.shared.reports.borrow()),
        }
    }

    /// The state of one replica as soon as it is as wanted.
    pub async fn wait_replica(
        &self,
        id: &ReplicaId,
        what: &str,
        good: impl Fn(&ReplicaStatus) -> bool,
    ) -> ReplicaStatus {
        let of = |report: &Report| report.replicas.iter().find(|r| r.id == *id).cloned();
        of(&self.wait(what, |report| of(report).is_some_and(|r| good(&r))).await).unwrap()
    }

    pub async fn open(&self, tunnel: &str, request: TunnelRequest) -> Result<TokioIo<Upgraded>, String> {
        let (sender, receiver) = oneshot::channel();
        self.shared.tunnels.lock().unwrap().insert(tunnel.to_owned(), sender);
        self.shared.orders.send(ToAgent::OpenTunnel { tunnel: tunnel.to_owned(), request }).unwrap();
        let opened = tokio::time::timeout(DEADLINE, receiver).await.expect("the tunnel is opened or refused").unwrap();
        opened.map(TokioIo::new)
    }
}

impl Shared {
    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_ca_cert_pem(&self.ca_pem, &self.ca_key).unwrap()
    }

    fn server_config(&self, ca: &CertificateDer<'static>, purpose: ExtendedKeyUsagePurpose) -> rustls::ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![purpose];
        params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![certificate.der().clone(), ca.clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap()
    }

    fn join(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let request: JoinRequest = serde_json::from_slice(body).unwrap();
        if request.secret != self.secret {
            let error = ApiError { code: "forbidden".into(), message: "unknown token".into(), hint: None };
            return answer(StatusCode::FORBIDDEN, serde_json::to_vec(&error).unwrap());
        }
        if request.name.as_str() == "taken" {
            let hint = Some("choose another name".into());
            let error = ApiError { code: "conflict".into(), message: "node `taken` is there already".into(), hint };
            return answer(StatusCode::CONFLICT, serde_json::to_vec(&error).unwrap());
        }
        self.joins.lock().unwrap().push(request.node.clone());
        let csr = CertificateSigningRequestParams::from_pem(&request.csr_pem).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, request.node.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate_pem = params.signed_by(&csr.public_key, &self.issuer()).unwrap().pem();
        let joined = JoinResponse { certificate_pem, ca_pem: self.ca_pem.clone() };
        answer(StatusCode::OK, serde_json::to_vec(&joined).unwrap())
    }
}

fn answer(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap()
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let member = tls.get_ref().1.peer_certificates().is_some();
            let service = service_fn(move |request| handle(request, Arc::clone(&shared), member));
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(tls), service).with_upgrades().await;
        });
    }
}

async fn handle(
    mut request: Request<Incoming>,
    shared: Arc<Shared>,
    member: bool,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let path = request.uri().path().to_owned();
    if path == "/v1/join" {
        return Ok(shared.join(&request.into_body().collect().await.unwrap().to_bytes()));
    }
    if !member {
        return Ok(answer(StatusCode::FORBIDDEN, b"no certificate".to_vec()));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let protocol = request.headers()["upgrade"].clone();
    match path.strip_prefix("/v1/agent/tunnel/").map(str::to_owned) {
        Some(tunnel) => {
            assert_eq!(protocol, TUNNEL_PROTOCOL);
            tokio::spawn(async move {
                if let (Ok(io), Some(to)) = (upgrade.await, shared.tunnels.lock().unwrap().remove(&tunnel)) {
                    let _ = to.send(Ok(io));
                }
            });
        }
        None => {
            assert_eq!((path.as_str(), protocol.to_str().unwrap()), ("/v1/agent/stream", STREAM_PROTOCOL));
            tokio::spawn(async move { stream(TokioIo::new(upgrade.await.unwrap()), shared).await });
        }
    }
    let switching = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header("connection", "upgrade");
    Ok(switching.header("upgrade", protocol).body(Full::default()).unwrap())
}

async fn stream(io: TokioIo<Upgraded>, shared: Arc<Shared>) {
    let (from, mut to) = tokio::io::split(io);
    let mut orders = shared.orders.subscribe();
    let mut cut = shared.cut.subscribe();
    let first = shared.assignment.lock().unwrap().clone().map(|a| ToAgent::Assignment(Box::new(a)));
    let mut lines = BufReader::new(from).lines();
    let line = |order: &ToAgent| serde_json::to_string(order).unwrap() + "\n";
    if let Some(first) = first {
        let _ = to.write_all(line(&first).as_bytes()).await;
    }
    loop {
        tokio::select! {
            _ = cut.changed() => return,
            order = orders.recv() => {
                let Ok(order) = order else { return };
                if to.write_all(line(&order).as_bytes()).await.is_err() {
                    return;
                }
            }
            text = lines.next_line() => {
                let Ok(Some(text)) = text else { return };
                match serde_json::from_str(&text).unwrap() {
                    ToScheduler::Hello(hello) => shared.hellos.send_modify(|hellos| hellos.push(hello)),
                    ToScheduler::Report(report) => drop(shared.reports.send_replace(Some(report))),
                    ToScheduler::Images(_) => {}
                    ToScheduler::TunnelRefused { tunnel, message } => {
                        if let Some(to) = shared.tunnels.lock().unwrap().remove(&tunnel) {
                            let _ = to.send(Err(message));
                        }
                    }
                }
            }
        }
    }
}

/// A node with its netd, its agent and its scheduler.
pub struct World {
    pub scheduler: Scheduler,
    pub dir: tempfile::TempDir,
    pub cgroup_parent: String,
    pub node: NodeId,
    runtime: PathBuf,
    agent: Option<(JoinHandle<()>, watch::Sender<bool>)>,
    netd: Option<watch::Sender<bool>>,
    revision: Revision,
}

impl World {
    /// A node that has joined, with the image; its agent does not run yet.
    pub async fn new() -> Self {
        let scheduler = Scheduler::start().await;
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let layout = dir.path().join("layout");
        write_image(&layout);
        let images = data_dir.join("images");
        let load = move || Store::open(images).unwrap().load(LoadSource::Path(layout), &NoProgress).unwrap();
        tokio::task::spawn_blocking(load).await.unwrap();
        let join = JoinConfig {
            data_dir: data_dir.clone(),
            server: scheduler.address,
            token: scheduler.token.clone(),
            name: "one".parse().unwrap(),
            advertise: Ipv4Addr::LOCALHOST,
        };
        let node = gantry_agent::join(join).await.unwrap().node;
        let cgroup_parent = cgroup_parent();
        let runtime = PathBuf::from(std::env::var_os(INSIDE).unwrap());
        let (agent, netd, revision) = (None, None, Revision(0));
        let mut world = Self { scheduler, dir, cgroup_parent, node, runtime, agent, netd, revision };
        world.start_netd().await;
        world
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    async fn start_netd(&mut self) {
        std::fs::create_dir_all(self.run_dir()).unwrap();
        let (stop, stopped) = watch::channel(false);
        let config = gantry_netd::Config::new(self.run_dir(), self.data_dir());
        let socket = config.socket.clone();
        tokio::spawn(async move { gantry_netd::run(config, stopped).await.unwrap() });
        eventually("netd listens", || socket.exists()).await;
        self.netd = Some(stop);
    }

    /// An agent that can be killed like any process.
    pub fn start_agent_process(&self) -> std::process::Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["common::agent_process", "--exact", "--nocapture"]).env(AGENT, self.dir.path());
        command.spawn().unwrap()
    }

    pub fn start_agent(&mut self) {
        let config = config(self.dir.path());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move { gantry_agent::run(config, stopped).await.unwrap() });
        self.agent = Some((task, stop));
    }

    /// As if it were killed: nothing is said good-bye to.
    pub async fn kill_agent(&mut self) {
        let (task, _stop) = self.agent.take().expect("the agent runs");
        task.abort();
        let _ = task.await;
    }

    pub fn table(&self) -> Table {
        Table {
            revision: self.revision,
            local: self.node.clone(),
            replica_net: "10.210.0.0/16".parse().unwrap(),
            service_net: "10.211.0.0/16".parse().unwrap(),
            nodes: vec![NodeRoute {
                node: self.node.clone(),
                name: "one".parse().unwrap(),
                underlay: Ipv4Addr::LOCALHOST,
                subnet: "10.210.1.0/24".parse().unwrap(),
            }],
            services: Vec::new(),
        }
    }

    pub fn assignment(&self, revision: u64, replicas: &[&AssignedReplica]) -> Assignment {
        Assignment {
            revision: Revision(revision),
            node: self.node.clone(),
            replicas: replicas.iter().map(|r| (*r).clone()).collect(),
            network: Table { revision: Revision(revision), ..self.table() },
            remove_volumes: Vec::new(),
        }
    }

    pub fn assign(&mut self, replicas: &[&AssignedReplica], remove_volumes: &[&str]) {
        self.revision.0 += 1;
        let remove_volumes = remove_volumes.iter().map(|v| (*v).to_owned()).collect();
        self.scheduler.assign(Assignment { remove_volumes, ..self.assignment(self.revision.0, replicas) });
    }

    /// Runs the runtime's command line.
    pub fn runtime(&self, arguments: &[&str]) -> String {
        let root = self.run_dir().join("runtime");
        let output = Command::new(&self.runtime).arg("--root").arg(root).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn pid(&self, id: &ReplicaId) -> i32 {
        let state: serde_json::Value = serde_json::from_str(&self.runtime(&["state", id.as_str()])).unwrap();
        state["pid"].as_i64().unwrap() as i32
    }

    pub fn replica_dir(&self, id: &ReplicaId) -> PathBuf {
        self.data_dir().join("agent/replicas").join(id.as_str())
    }

    pub async fn running(&self, id: &ReplicaId, restarts: u32) -> ReplicaStatus {
        let good = |r: &ReplicaStatus| r.state == ReplicaState::Running && r.restarts == restarts && r.ready;
        self.scheduler.wait_replica(id, &format!("{id} runs after {restarts} restarts"), good).await
    }
}

fn config(dir: &Path) -> Config {
    Config {
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
        cgroup_parent: cgroup_parent(),
        runtime: std::env::var_os(INSIDE).unwrap().into(),
        init: "/none".into(),
        netd_socket: dir.join("run/netd.sock"),
        advertise: Ipv4Addr::LOCALHOST,
        labels: [("disk".to_owned(), "ssd".to_owned())].into(),
        capacity: None,
        reserved: Capacity::default(),
        insecure_registries: Vec::new(),
        watermarks: gantry_images::Watermarks::default(),
    }
}

fn cgroup_parent() -> String {
    format!("/{}", std::env::var(CGROUP).unwrap())
}

/// No test: what `start_agent_process` runs, until it is killed.
#[test]
fn agent_process() {
    let Some(dir) = std::env::var_os(AGENT) else { return };
    tracing_subscriber::fmt().with_env_filter("info,gantry_agent=debug").with_ansi(false).init();
    let (_stop, stopped) = watch::channel(false);
    let agent = async move { gantry_agent::run(config(Path::new(&dir)), stopped).await.unwrap() };
    tokio::runtime::Runtime::new().unwrap().block_on(agent);
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// A replica that runs `script` in the shell.
pub fn replica(service: &str, number: u32, script: &str) -> AssignedReplica {
    let name = ReplicaName { app: "shop".parse().unwrap(), service: service.parse().unwrap(), number };
    let template = Template {
        image: IMAGE.to_owned(),
        command: Some(["sh", "-c", script].map(str::to_owned).to_vec()),
        stop_grace_ms: Millis(1_000),
        ..Template::default()
    };
    AssignedReplica { id: ReplicaId::new(&name, 0xab), name, template }
}

/// Runs until it is told to stop, and then stops at once.
pub const SERVER: &str = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";

pub async fn eventually(what: &str, mut good: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !good() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
