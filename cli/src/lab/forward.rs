//! Ports that an app publishes in the lab, on the host's 127.0.0.1.
//!
//! ```text
//! program on the host ─► 127.0.0.1:PORT (host's namespace) ─ relay ─► NODE:PORT (switch's namespace)
//! ```
//! A socket belongs to the namespace in which it was made: one thread has entered the switch's and does nothing but
//! make sockets. What is published, and which nodes are alive, is asked of the scheduler a few times a second; while it
//! is away the last answer stays in force.

use super::api;
use super::cgroup::Join;
use super::error::LabError;
use super::helper::{self, BootFile};
use super::state::write_whole;
use gantry_api::http::{AppSummary, Node, NodeState};
use gantry_api::spec::Protocol;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, LocalSet};

/// Often enough that a published port is there when a person has typed its address.
const POLL: Duration = Duration::from_millis(200);
/// Nodes are on the same machine: one that has not answered by then is dead or cut off.
const DIAL_WITHIN: Duration = Duration::from_millis(500);
/// The forwarder's report in the lab's run directory.
pub const REPORT: &str = "forward.json";
/// The forwarder has looked at a new port by then; a lab's forwarder that is dead is not waited for longer.
const LOOKED_WITHIN: Duration = Duration::from_secs(1);
/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// Clients of one UDP port at once; the longest silent is forgotten.
const UDP_CLIENTS_MAX: usize = 256;
const UDP_SILENT_MAX: Duration = Duration::from_secs(60);
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// What the forwarder is to do.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Boot {
    /// Its cgroups.
    pub join: Join,
    /// The lab's scheduler.
    pub socket: PathBuf,
    /// The switch's network namespace.
    pub switch: PathBuf,
    /// Where to report to.
    pub report: PathBuf,
    /// Nodes to try while the scheduler has not told which are alive.
    pub nodes: Vec<Ipv4Addr>,
}

/// What the forwarder does, for `lab status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// Ports that are open on 127.0.0.1, as `8080/tcp`.
    pub open: Vec<String>,
    /// Ports that are not, and why.
    pub problems: Vec<String>,
}

/// What keeps ports of a lab from being open on 127.0.0.1, by the socket of its scheduler. Empty also when that is no
/// lab's. The forwarder looks five times a second, so it is asked until it has looked at all of `ports`.
pub async fn problems(socket: &Path, ports: &[(u16, Protocol)]) -> Vec<String> {
    let Some(report) = socket.parent().and_then(Path::parent).map(|run| run.join(REPORT)) else {
        return Vec::new();
    };
    let deadline = tokio::time::Instant::now() + LOOKED_WITHIN;
    loop {
        let Some(report) = std::fs::read(&report).ok().and_then(|text| serde_json::from_slice::<Report>(&text).ok())
        else {
            return Vec::new();
        };
        let problem = |key: &Key| {
            let head = format!("port {} ", text(*key));
            report.problems.iter().find(|problem| problem.starts_with(&head)).cloned()
        };
        let seen = |key: &Key| report.open.contains(&text(*key)) || problem(key).is_some();
        if ports.iter().all(seen) || tokio::time::Instant::now() > deadline {
            return ports.iter().filter_map(problem).collect();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

type Key = (u16, Protocol);

/// Forwards until killed.
pub fn run(file: &BootFile) -> u8 {
    let prepared = file.read::<Boot>().and_then(|boot| {
        boot.join.enter_root()?;
        boot.join.enter_leaf()?;
        let factory = Factory::start(&boot.switch)?;
        Ok((boot, factory))
    });
    let (boot, factory) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return helper::not_ready(&error),
    };
    if helper::ready().is_err() {
        return crate::error::REFUSED;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lab-forward: cannot start: {error}");
            return crate::error::REFUSED;
        }
    };
    let (answers, news) = tokio::sync::watch::channel(Picture { ports: BTreeSet::new(), nodes: boot.nodes.clone() });
    let (socket, nodes) = (boot.socket.clone(), boot.nodes.clone());
    std::thread::spawn(move || poll_scheduler(&socket, &nodes, &answers));
    LocalSet::new().block_on(&runtime, Forwarder::new(boot.report, factory).run(news));
    0
}

/// What the scheduler says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Picture {
    ports: BTreeSet<Key>,
    nodes: Vec<Ipv4Addr>,
}

/// Asks in a thread of its own, since a slow answer must not hold up a relay.
fn poll_scheduler(socket: &Path, all: &[Ipv4Addr], answers: &tokio::sync::watch::Sender<Picture>) {
    loop {
        let apps = api::ask::<Vec<AppSummary>>(socket, "/v1/apps", None);
        let nodes = api::ask::<Vec<Node>>(socket, "/v1/nodes", None);
        if let (Ok(apps), Ok(nodes)) = (apps, nodes) {
            let fresh = picture(&apps, &nodes, all);
            answers.send_if_modified(|present| {
                let changed = *present != fresh;
                *present = fresh;
                changed
            });
        }
        if answers.is_closed() {
            return;
        }
        std::thread::sleep(POLL);
    }
}

fn picture(apps: &[AppSummary], nodes: &[Node], all: &[Ipv4Addr]) -> Picture {
    let services = apps.iter().flat_map(|app| &app.services);
    let ports = services.flat_map(|service| &service.ports).map(|port| (port.published, port.protocol)).collect();
    let ready: Vec<Ipv4Addr> =
        nodes.iter().filter(|node| node.state == NodeState::Ready).map(|node| node.underlay).collect();
    Picture { ports, nodes: if ready.is_empty() { all.to_vec() } else { ready } }
}

/// Makes sockets in the switch's namespace.
#[derive(Debug, Clone)]
struct Factory {
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
enum Order {
    Tcp(oneshot::Sender<io::Result<TcpSocket>>),
    Udp(oneshot::Sender<io::Result<std::net::UdpSocket>>),
}

impl Factory {
    fn start(switch: &Path) -> Result<Self, LabError> {
        let namespace = File::open(switch).map_err(LabError::file("open", switch))?;
        let (orders, inbox) = mpsc::channel::<Order>();
        let (entered, wait) = mpsc::channel();
        std::thread::spawn(move || {
            let done = nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET);
            let failed = done.is_err();
            let _ = entered.send(done); // the one who waits is gone only when the process is
            while !failed && let Ok(order) = inbox.recv() {
                // A connection that was given up meanwhile needs no socket.
                match order {
                    Order::Tcp(reply) => drop(reply.send(TcpSocket::new_v4())),
                    Order::Udp(reply) => drop(reply.send(udp_socket())),
                }
            }
        });
        let gone = io::Error::other("its thread ended");
        wait.recv()
            .map_err(|_| LabError::kernel("enter the switch's namespace")(gone))?
            .map_err(LabError::kernel("enter the switch's namespace"))?;
        Ok(Self { orders })
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let (reply, answer) = oneshot::channel();
        let gone = |_| io::Error::other("the thread that makes sockets has ended");
        self.orders.send(Order::Tcp(reply)).map_err(|_| io::Error::other("no thread makes sockets"))?;
        let socket = answer.await.map_err(gone)??;
        let timeout = |_| io::Error::from(io::ErrorKind::TimedOut);
        let stream = tokio::time::timeout(DIAL_WITHIN, socket.connect(address)).await.map_err(timeout)??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Udp(reply)).map_err(|_| io::Error::other("no thread makes sockets"))?;
        let made = answer.await.map_err(|_| io::Error::other("the thread that makes sockets has ended"))??;
        let socket = UdpSocket::from_std(made)?;
        socket.connect(address).await?;
        Ok(socket)
    }
}

fn udp_socket() -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Listeners, kept equal to what is published.
struct Forwarder {
    report: PathBuf,
    way: Way,
    open: BTreeMap<Key, JoinHandle<()>>,
    reported: Option<Report>,
}

/// What a relay needs: where the nodes are now, and sockets.
#[derive(Clone)]
struct Way {
    factory: Factory,
    nodes: Arc<Mutex<Vec<Ipv4Addr>>>,
    turn: Arc<AtomicUsize>,
    slots: Arc<Semaphore>,
}

impl Way {
    /// The nodes, beginning with another one each time: outside traffic enters through any.
    fn nodes(&self) -> Vec<Ipv4Addr> {
        let mut nodes = self.nodes.lock().map(|nodes| nodes.clone()).unwrap_or_default();
        if !nodes.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % nodes.len();
            nodes.rotate_left(turn);
        }
        nodes
    }
}

impl Forwarder {
    fn new(report: PathBuf, factory: Factory) -> Self {
        let way = Way {
            factory,
            nodes: Arc::default(),
            turn: Arc::default(),
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        };
        Self { report, way, open: BTreeMap::new(), reported: None }
    }

    async fn run(mut self, mut news: tokio::sync::watch::Receiver<Picture>) {
        loop {
            let picture = news.borrow_and_update().clone();
            if let Ok(mut nodes) = self.way.nodes.lock() {
                nodes.clone_from(&picture.nodes);
            }
            let problems = self.ensure(&picture.ports).await;
            self.tell(problems);
            // A port that another program held may be free by now: look again each second even without news.
            drop(tokio::time::timeout(POLL * 5, news.changed()).await);
        }
    }

    /// Opens and closes listeners; returns what could not be opened.
    async fn ensure(&mut self, wanted: &BTreeSet<Key>) -> Vec<String> {
        self.open.retain(|key, task| {
            let keep = wanted.contains(key) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        let mut problems = Vec::new();
        for key in wanted {
            if self.open.contains_key(key) {
                continue;
            }
            match self.listen(*key).await {
                Ok(task) => drop(self.open.insert(*key, task)),
                Err(error) => problems.push(format!("port {} of this host: {}", text(*key), reason(&error))),
            }
        }
        problems
    }

    async fn listen(&self, (port, protocol): Key) -> io::Result<JoinHandle<()>> {
        let (way, address) = (self.way.clone(), (Ipv4Addr::LOCALHOST, port));
        Ok(match protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind(address).await?;
                tokio::task::spawn_local(accept(listener, port, way))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(address).await?;
                tokio::task::spawn_local(relay_datagrams(Rc::new(socket), port, way))
            }
        })
    }

    /// Reports to the file, and each new problem to the log.
    fn tell(&mut self, problems: Vec<String>) {
        let report = Report { open: self.open.keys().map(|key| text(*key)).collect(), problems };
        if self.reported.as_ref() == Some(&report) {
            return;
        }
        let known = self.reported.as_ref().map(|report| report.problems.clone()).unwrap_or_default();
        for problem in report.problems.iter().filter(|problem| !known.contains(problem)) {
            eprintln!("lab-forward: {problem}");
        }
        let json = serde_json::to_vec(&report).unwrap_or_default();
        match write_whole(&self.report, &json, 0o644) {
            Ok(()) => self.reported = Some(report),
            Err(error) => eprintln!("lab-forward: {}", crate::error::CliError::chain(&error).message),
        }
    }
}

fn text((port, protocol): Key) -> String {
    match protocol {
        Protocol::Tcp => format!("{port}/tcp"),
        Protocol::Udp => format!("{port}/udp"),
    }
}

fn reason(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::AddrInUse { "another program holds it".to_owned() } else { error.to_string() }
}

async fn accept(listener: TcpListener, port: u16, way: Way) {
    // Aborting this task closes the listener and, with the set, the relays that it began.
    let mut relays = tokio::task::JoinSet::new();
    loop {
        while relays.try_join_next().is_some() {}
        let Ok(slot) = way.slots.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, _)) => {
                let way = way.clone();
                relays.spawn_local(async move {
                    relay(client, port, &way).await;
                    drop(slot);
                });
            }
            // Out of descriptors: those in use come back.
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Both ways until both have ended; a client whom no node answers is hung up on.
async fn relay(mut client: TcpStream, port: u16, way: &Way) {
    for node in way.nodes() {
        if let Ok(mut server) = way.factory.dial(SocketAddr::from((node, port))).await {
            drop(client.set_nodelay(true)); // only slower without
            drop(tokio::io::copy_bidirectional(&mut client, &mut server).await); // either side may hang up
            return;
        }
    }
}

/// One socket towards the nodes per client, so that answers find their way back.
async fn relay_datagrams(outside: Rc<UdpSocket>, port: u16, way: Way) {
    let mut clients: BTreeMap<SocketAddr, (Rc<UdpSocket>, JoinHandle<()>)> = BTreeMap::new();
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok((length, client)) = outside.recv_from(&mut datagram).await else {
            continue; // an answer that its client refused
        };
        clients.retain(|_, (_, task)| !task.is_finished());
        if !clients.contains_key(&client) {
            if clients.len() >= UDP_CLIENTS_MAX {
                clients.pop_first();
            }
            let Some(node) = way.nodes().first().copied() else {
                continue;
            };
            let Ok(inside) = way.factory.udp(SocketAddr::from((node, port))).await else {
                continue;
            };
            let inside = Rc::new(inside);
            let back = tokio::task::spawn_local(answer_datagrams(inside.clone(), outside.clone(), client));
            clients.insert(client, (inside, back));
        }
        if let Some((inside, _)) = clients.get(&client) {
            drop(inside.send(&datagram[..length]).await); // a datagram may be lost
        }
    }
}

async fn answer_datagrams(inside: Rc<UdpSocket>, outside: Rc<UdpSocket>, client: SocketAddr) {
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    while let Ok(received) = tokio::time::timeout(UDP_SILENT_MAX, inside.recv(&mut datagram)).await {
        match received {
            Ok(length) => drop(outside.send_to(&datagram[..length], client).await), // as above
            Err(_) => return, // the node refuses: the next datagram tries another
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn problems_of_the_ports_asked_for_are_told() {
        let run = tempfile::tempdir().unwrap();
        let socket = run.path().join("n1/gantry.sock");
        let ports = [(80, Protocol::Tcp), (53, Protocol::Udp)];
        assert!(problems(&socket, &ports).await.is_empty(), "no lab");
        let report = Report {
            open: vec!["53/udp".to_owned()],
            problems: vec!["port 80/tcp of this host: taken".to_owned(), "port 8/tcp of this host: taken".to_owned()],
        };
        std::fs::write(run.path().join(REPORT), serde_json::to_vec(&report).unwrap()).unwrap();
        assert_eq!(problems(&socket, &ports).await, ["port 80/tcp of this host: taken"]);
    }

    #[test]
    fn all_nodes_are_tried_while_none_is_known_to_be_alive() {
        let all = [Ipv4Addr::new(10, 88, 0, 11), Ipv4Addr::new(10, 88, 0, 12)];
        assert_eq!(picture(&[], &[], &all), Picture { ports: BTreeSet::new(), nodes: all.to_vec() });
    }

    #[test]
    fn a_port_that_is_taken_says_so() {
        assert_eq!(reason(&io::Error::from(io::ErrorKind::AddrInUse)), "another program holds it");
        assert_eq!(text((53, Protocol::Udp)), "53/udp");
    }
}
