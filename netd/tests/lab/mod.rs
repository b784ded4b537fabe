//! Hosts made of network namespaces, for tests against the real kernel.
//!
//! Every test runs on a thread with a mount namespace, a scratch directory and a network namespace of its own: nothing it makes is
//! seen outside, and all of it goes when the test ends or is killed. A node is a process (this test binary again), so
//! that it can be killed; it ends by itself when its parent is gone.
//!
//! Needs root, `ip` (iproute2) and `nft` (nftables).
#![allow(unsafe_code)] // unshare only
#![allow(unreachable_pub)] // a test's module is nobody's interface
#![allow(dead_code)] // not every test uses all of it

use gantry_api::ids::Revision;
use gantry_api::network::{AttachRequest, Attachment, Endpoint, NodeRoute, Published, Service, Status, Table};
use gantry_api::spec::Protocol;
use gantry_netd::NetError;
use gantry_netd::client::Client;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// For a machine that has much else to do; reached only when something is wrong.
pub const DEADLINE: Duration = Duration::from_secs(60);
const CGROUP_VARIABLE: &str = "GANTRY_NETD_TEST_CGROUP";
const NODE_VARIABLE: &str = "GANTRY_NETD_TEST_NODE";

/// Run a test apart from everything.
pub fn apart(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only namespaces and working directory of this thread change; no descriptor table is unshared.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::FS) }
                .expect("these tests need root");
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            rustix::mount::mount("tmpfs", scratch(), "tmpfs", MountFlags::empty(), None).unwrap();
            ip("link set lo up");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A directory to mount on that does not hide this program.
fn scratch() -> &'static str {
    let program = std::env::current_exe().unwrap();
    ["/tmp", "/mnt"].into_iter().find(|folder| !program.starts_with(folder)).unwrap()
}

/// Run `ip` in the calling thread's namespace.
pub fn ip(arguments: &str) -> String {
    tool("ip", arguments)
}

/// Run `nft` in the calling thread's namespace.
pub fn nft(arguments: &str) -> String {
    tool("nft", arguments)
}

fn tool(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    let output = output.unwrap_or_else(|e| panic!("these tests need `{program}`: {e}"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Wait for a state.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A network namespace.
#[derive(Clone)]
pub struct Net(Arc<OwnedFd>);

impl Net {
    /// The calling thread's.
    pub fn own() -> Self {
        Self(Arc::new(File::open("/proc/thread-self/ns/net").unwrap().into()))
    }

    /// A new one.
    pub fn new() -> Self {
        let made = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: only the network namespace of this thread changes.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
                ip("link set lo up");
                Self::own()
            });
            thread.join()
        });
        made.unwrap()
    }

    /// That of an attachment.
    pub fn open(path: &str) -> Self {
        Self(Arc::new(File::open(path).unwrap().into()))
    }

    /// Run something inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let done = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(self.0.as_fd(), kind).unwrap();
                work()
            });
            thread.join()
        });
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub fn ip(&self, arguments: &str) -> String {
        self.run(|| ip(arguments))
    }

    pub fn nft(&self, arguments: &str) -> String {
        self.run(|| nft(arguments))
    }

    /// Connect, and read what the server says of itself and of us: `NAME CLIENT-ADDRESS`.
    pub fn ask(&self, to: &str) -> Result<String, std::io::ErrorKind> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).map_err(|e| e.kind())?;
            stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).map_err(|e| e.kind())?;
            Ok(text)
        })
    }

    /// The names of all servers that answer at `to` in many tries.
    pub fn who(&self, to: &str) -> Vec<String> {
        let mut names: Vec<String> = (0..40)
            .map(|_| self.ask(to).unwrap_or_else(|e| format!("{e:?}")))
            .map(|answer| answer.split(' ').next().unwrap_or_default().to_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Serve `NAME CLIENT-ADDRESS` on a TCP port until the answer is dropped.
    pub fn serve(&self, port: u16, name: &str) -> Server {
        let listener = self.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        let (name, socket) = (name.to_owned(), listener.try_clone().unwrap());
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, client)) = listener.accept() {
                let _ = write!(stream, "{name} {}", client.ip());
            }
        });
        Server { socket: Some(socket.into()), stop: Arc::default(), thread: Some(thread) }
    }

    /// Serve the name on a UDP port, once per packet.
    pub fn serve_udp(&self, port: u16, name: &str) -> Server {
        let socket = self.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (name, stopped) = (name.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, client)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(name.as_bytes(), client);
                }
            }
        });
        Server { socket: None, stop, thread: Some(thread) }
    }

    pub fn udp_socket(&self, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            socket
        })
    }
}

/// One packet there, one back.
pub fn ask_udp(socket: &UdpSocket) -> Result<String, std::io::ErrorKind> {
    socket.send(b"?").map_err(|e| e.kind())?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).map_err(|e| e.kind())?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A server; ends when dropped, and lets go of its namespace.
pub struct Server {
    socket: Option<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(socket) = self.socket.take() {
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap(); // wakes its accept
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A directory of the unified hierarchy, gone when dropped.
pub struct Cgroup {
    pub name: String,
    pub path: PathBuf,
}

impl Cgroup {
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        const PREFIX: &str = "gantry-netd-test-";
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let mount = mounts.into_iter().find(|mount| mount.join("cgroup.controllers").exists());
        let mount = mount.expect("these tests need cgroup2");
        // What tests that were killed have left.
        for entry in std::fs::read_dir(mount).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = (std::fs::remove_dir(entry.path().join("c")), std::fs::remove_dir(entry.path()));
            }
        }
        let name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = mount.join(&name);
        // A container's own cgroup lies below the node's.
        std::fs::create_dir_all(path.join("c")).unwrap();
        Self { name, path }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let start = Instant::now();
        while self.path.exists() && start.elapsed() < DEADLINE {
            let _ = (std::fs::remove_dir(self.path.join("c")), std::fs::remove_dir(&self.path));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process in a container's network and cgroup, which does what it is told line by line.
pub struct Container {
    process: Child,
    answers: std::io::BufReader<std::process::ChildStdout>,
}

const ANSWER: &str = "answer: ";

impl Container {
    pub fn new(net: &Net, cgroup: &Cgroup) -> Self {
        Self::start(net, &cgroup.path.join("c"))
    }

    /// In the cgroup that the test is in.
    pub fn without_cgroup(net: &Net) -> Self {
        Self::start(net, Path::new(""))
    }

    fn start(net: &Net, cgroup: &Path) -> Self {
        let mut process = net.run(|| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "container_process", "--ignored", "--nocapture"])
                .env(CGROUP_VARIABLE, cgroup)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let answers = std::io::BufReader::new(process.stdout.take().unwrap());
        Self { process, answers }
    }

    /// See [`obey`].
    pub fn tell(&mut self, order: &str) -> String {
        self.begin(order);
        self.end()
    }

    pub fn begin(&mut self, order: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    pub fn end(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "the container's process has ended");
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim_end().to_owned();
            }
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The body of the test that is a container's process.
pub fn container_process() {
    let cgroup = PathBuf::from(std::env::var(CGROUP_VARIABLE).expect("run by other tests only"));
    if cgroup != Path::new("") {
        std::fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
    }
    let (mut streams, mut datagrams) = (Vec::new(), None);
    for order in std::io::stdin().lines() {
        let answer = obey(&order.unwrap(), &mut streams, &mut datagrams);
        println!("{ANSWER}{answer}");
    }
}

/// - `ask N ADDRESS`: N connections one after the other; who answered how often, as `a=3 b=4`.
/// - `hold N ADDRESS`: the same, and keep them.
/// - `peer ADDRESS`: connect; whom the socket believes to speak to, and whom the server has seen.
/// - `stream ADDRESS`: connect and keep it; `alive`: whether that connection has not ended.
/// - `serve PORT NETNS`: answer requests in another namespace; `rr N ADDRESS`, `crr N ADDRESS`: N requests by one
///   connection, by one each; microseconds of processor time per request.
/// - `drop`: close what is held.
/// - `udp`, `udp ADDRESS`: open a datagram socket, connected or not.
/// - `hear`: the error that waiting for a datagram ends with.
/// - `send ADDRESS`, `send`: a datagram; who answered, and from which address.
fn obey(order: &str, streams: &mut Vec<TcpStream>, datagrams: &mut Option<UdpSocket>) -> String {
    let words: Vec<&str> = order.split(' ').collect();
    let connect = |to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).map_err(|e| e.kind())?;
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|e| e.kind())?;
        Ok::<_, std::io::ErrorKind>((stream, text))
    };
    match words[..] {
        ["ask" | "hold", count, to] => {
            let mut who = std::collections::BTreeMap::<String, u32>::new();
            for _ in 0..count.parse().unwrap() {
                let name = match connect(to) {
                    Ok((stream, text)) => {
                        if words[0] == "hold" {
                            streams.push(stream);
                        }
                        text.split(' ').next().unwrap_or_default().to_owned()
                    }
                    Err(error) => format!("{error:?}"),
                };
                *who.entry(name).or_default() += 1;
            }
            who.iter().map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
        }
        ["peer", to] => match connect(to) {
            Ok((stream, text)) => format!("{} {text}", stream.peer_addr().unwrap()),
            Err(error) => format!("{error:?}"),
        },
        ["stream", to] => {
            streams.push(TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(3)).unwrap());
            String::new()
        }
        ["alive"] => {
            let stream = streams.last_mut().unwrap();
            stream.set_nonblocking(true).unwrap();
            match stream.read(&mut [0]) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => "alive".to_owned(),
                other => format!("{:?}", other.map_err(|error| error.kind())),
            }
        }
        ["hear"] => format!("{:?}", datagrams.as_ref().unwrap().recv(&mut [0; 64]).map_err(|e| e.kind()).unwrap_err()),
        ["serve", port, netns] => {
            let listener = Net::open(netns).run(|| TcpListener::bind(format!("0.0.0.0:{port}")).unwrap());
            std::thread::spawn(move || {
                on_one_processor();
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    stream.set_nodelay(true).unwrap();
                    let mut buffer = [0; 64];
                    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {
                        let _ = stream.write_all(&buffer);
                    }
                }
            });
            String::new()
        }
        ["crr" | "rr", count, to] => {
            on_one_processor();
            let (count, to): (u32, SocketAddr) = (count.parse().unwrap(), to.parse().unwrap());
            let open = || {
                let stream = TcpStream::connect(to).unwrap();
                stream.set_nodelay(true).unwrap();
                stream
            };
            let request = |stream: &mut TcpStream| {
                let mut buffer = [1; 64];
                stream.write_all(&buffer).unwrap();
                stream.read_exact(&mut buffer).unwrap();
            };
            let mut stream = open();
            let start = processor_time();
            for _ in 0..count {
                if words[0] == "crr" {
                    stream = open();
                }
                request(&mut stream);
            }
            let spent = processor_time() - start;
            format!("{}", spent.as_secs_f64() * 1e6 / f64::from(count))
        }
        ["drop"] => {
            streams.clear();
            *datagrams = None;
            String::new()
        }
        ["udp"] | ["udp", _] => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            if let Some(to) = words.get(1) {
                socket.connect(to).unwrap();
            }
            *datagrams = Some(socket);
            String::new()
        }
        ["send"] | ["send", _] => {
            let socket = datagrams.as_ref().unwrap();
            let sent = match words.get(1) {
                Some(to) => socket.send_to(b"?", to),
                None => socket.send(b"?"),
            };
            let mut buffer = [0; 64];
            match sent.and_then(|_| socket.recv_from(&mut buffer)) {
                Ok((length, from)) => format!("{} {from}", String::from_utf8_lossy(&buffer[..length])),
                Err(error) => format!("{:?}", error.kind()),
            }
        }
        _ => panic!("no such order: {order}"),
    }
}

fn on_one_processor() {
    let mut set = rustix::thread::CpuSet::new();
    set.set(0);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A host with netd.
pub struct Node {
    pub number: u8,
    pub net: Net,
    pub directory: PathBuf,
    pub client: Client,
    /// Above its containers, when connections are to be balanced as they are made.
    pub cgroup: Option<Cgroup>,
    process: Option<Child>,
}

impl Node {
    /// A host on a port of `switch`, with an address there.
    pub fn new(number: u8, switch: &Net, bridge: &str, address: Ipv4Addr, gateway: Ipv4Addr) -> Self {
        let net = Net::new();
        let port = format!("port{number}");
        switch.ip(&format!("link add {port} type veth peer name uplink{number}"));
        switch.run(|| {
            net.run(|| {});
            let holder = format!("{}/ns{number}", scratch());
            // `ip` wants a name or a process: a bind mount of the namespace's file gives it a path.
            File::create(&holder).unwrap();
            net.run(|| rustix::mount::mount_bind("/proc/thread-self/ns/net", &holder).unwrap());
            ip(&format!("link set uplink{number} netns {holder} name eth0"));
            ip(&format!("link set {port} master {bridge} up"));
        });
        net.ip(&format!("address add {address}/24 dev eth0"));
        net.ip("link set eth0 up");
        net.ip(&format!("route add default via {gateway}"));
        let directory = Path::new(scratch()).join(format!("node{number}"));
        std::fs::create_dir_all(directory.join("run")).unwrap();
        let client = Client::new(directory.join("run/netd.sock"));
        let mut node = Self { number, net, directory, client, cgroup: None, process: None };
        node.start();
        node
    }

    /// Start netd.
    pub fn start(&mut self) {
        assert!(self.process.is_none());
        let child = self.net.run(|| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "node_process", "--ignored", "--nocapture"])
                .env(NODE_VARIABLE, &self.directory)
                .envs(self.cgroup.iter().map(|cgroup| (CGROUP_VARIABLE, format!("/{}", cgroup.name))))
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        });
        self.process = Some(child);
        let client = self.client.clone();
        wait_for("netd answers", || block_on(client.status()).ok());
    }

    /// SIGKILL, as nothing else.
    pub fn kill(&mut self) {
        let mut child = self.process.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The orderly end.
    pub fn stop(&mut self) {
        let mut child = self.process.take().unwrap();
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }

    pub fn set_table(&self, table: &Table) {
        block_on(self.client.set_table(table)).unwrap();
    }

    pub fn status(&self) -> Status {
        block_on(self.client.status()).unwrap()
    }

    /// Attach a container of the app `shop`.
    pub fn attach(&self, id: &str) -> Attachment {
        block_on(self.client.attach(&request(id))).unwrap()
    }

    pub fn detach(&self, id: &str) {
        block_on(self.client.detach(id)).unwrap();
    }

    /// Everything in the kernel that could be ours: links but the host's own, routes but the host's own, rules.
    pub fn leftovers(&self) -> Vec<String> {
        let name = |line: &str| line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut left: Vec<String> = self.net.ip("-o link").lines().map(name).collect();
        left.retain(|name| !name.starts_with("eth0") && name != "lo:");
        // Whether a bridge has a carrier is noticed with a delay.
        let routes = self.net.ip("-o route").replace("linkdown", "");
        left.extend(routes.lines().filter(|line| !line.contains("eth0")).map(|line| line.trim_end().to_owned()));
        left.extend(self.net.nft("list ruleset").lines().map(str::to_owned));
        left
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

pub fn request(id: &str) -> AttachRequest {
    AttachRequest { id: id.into(), app: Some("shop".parse().unwrap()), hostname: id.into(), ports: vec![] }
}

/// The body of the test that is a node's process.
pub fn node_process() {
    let directory = PathBuf::from(std::env::var(NODE_VARIABLE).expect("run by other tests only"));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = stop.send(true);
        // Kept, so that only its value ends the daemon.
        std::thread::park();
    });
    let mut config = gantry_netd::Config::new(directory.join("run"), directory.join("data"));
    config.resolv_conf = directory.join("resolv.conf");
    config.cgroup_parent = std::env::var(CGROUP_VARIABLE).ok();
    block_on(gantry_netd::run(config, stopped)).unwrap();
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The code of a refusal.
pub fn code(error: &NetError) -> &str {
    match error {
        NetError::Refused(error) => &error.code,
        other => panic!("not a refusal: {}", other.chain()),
    }
}

pub const SHARED: &str = "br0";

/// A switch with `count` hosts 10.0.0.1, 10.0.0.2, ...; it is 10.0.0.254 itself, and everybody's default route.
pub fn cluster(count: u8) -> (Net, Vec<Node>) {
    let switch = Net::own();
    ip("link add br0 type bridge");
    ip("link set br0 up");
    ip("address add 10.0.0.254/24 dev br0");
    // The frames of the switch are nobody's business.
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    let gateway = Ipv4Addr::new(10, 0, 0, 254);
    let nodes = (1..=count).map(|n| Node::new(n, &switch, SHARED, Ipv4Addr::new(10, 0, 0, n), gateway)).collect();
    (switch, nodes)
}

fn node_id(number: u8) -> gantry_api::ids::NodeId {
    format!("{number:016x}").parse().unwrap()
}

/// The table of a node of a cluster whose hosts have these addresses.
pub fn table(revision: u64, local: u8, underlay: &[Ipv4Addr], services: Vec<Service>) -> Table {
    Table {
        revision: Revision(revision),
        local: node_id(local),
        replica_net: "10.210.0.0/16".parse().unwrap(),
        service_net: "10.211.0.0/16".parse().unwrap(),
        nodes: (1..)
            .zip(underlay)
            .map(|(n, underlay)| NodeRoute {
                node: node_id(n),
                name: format!("n{n}").parse().unwrap(),
                underlay: *underlay,
                subnet: format!("10.210.{n}.0/24").parse().unwrap(),
            })
            .collect(),
        services,
    }
}

pub fn underlay(count: u8) -> Vec<Ipv4Addr> {
    (1..=count).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect()
}

/// A service of the app `shop` with ready endpoints at these attachments.
pub fn service(number: u8, name: &str, published: Option<u16>, endpoints: &[&Attachment]) -> Service {
    Service {
        app: "shop".parse().unwrap(),
        service: name.parse().unwrap(),
        address: Ipv4Addr::new(10, 211, 0, number),
        aliases: vec![format!("{name}-alias")],
        ports: published
            .into_iter()
            .flat_map(|port| {
                [Protocol::Tcp, Protocol::Udp].map(|protocol| Published { published: port, target: 80, protocol })
            })
            .collect(),
        sticky: false,
        networks: vec![],
        endpoints: (1..)
            .zip(endpoints)
            .map(|(number, attachment)| Endpoint {
                replica: attachment.id.parse().unwrap(),
                name: gantry_api::ids::ReplicaName {
                    app: "shop".parse().unwrap(),
                    service: name.parse().unwrap(),
                    number,
                },
                node: node_id(attachment.address.octets()[2]),
                address: attachment.address,
                ready: true,
            })
            .collect(),
    }
}

/// Whether a mount lies below a path, in the calling thread's mount namespace.
pub fn mounted_below(path: &Path) -> usize {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let below = format!(" {}/", path.display());
    text.lines().filter(|line| line.contains(&below)).count()
}
