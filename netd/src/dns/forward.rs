//! Names that are not ours: ask the host's own name servers.

use std::fs::Metadata;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The list that systemd-resolved keeps of the real servers, when resolv.conf names only its local stub.
const SYSTEMD: &str = "/run/systemd/resolve/resolv.conf";
/// Questions on their way at once; more are answered "server failure".
const QUESTIONS_MAX: usize = 512;
/// When the next server is asked too.
const PATIENCE: Duration = Duration::from_millis(400);
/// When no answer is "server failure": below the 5 s after which resolvers ask again.
const DEADLINE: Duration = Duration::from_secs(4);
const PORT: u16 = 53;

/// The name servers of a resolv.conf that can be reached from another network namespace: those not on loopback. When
/// it names only such, those of systemd-resolved.
pub(crate) fn nameservers(path: &Path) -> Vec<IpAddr> {
    let read = |path: &Path| parse(&std::fs::read_to_string(path).unwrap_or_default());
    let remote = |list: Vec<IpAddr>| list.into_iter().filter(|ip| !ip.is_loopback()).collect::<Vec<_>>();
    let found = remote(read(path));
    if found.is_empty() { remote(read(Path::new(SYSTEMD))) } else { found }
}

fn parse(text: &str) -> Vec<IpAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    });
    servers.filter(|ip: &IpAddr| !ip.is_unspecified()).collect()
}

/// Asks on behalf of containers.
#[derive(Debug)]
pub(crate) struct Forwarder {
    path: PathBuf,
    servers: Mutex<Option<Servers>>,
    permits: Semaphore,
}

#[derive(Debug, Clone)]
struct Servers {
    list: Vec<IpAddr>,
    stamp: Option<(SystemTime, u64)>,
    looked: Instant,
}

impl Forwarder {
    /// - `path`: resolv.conf, read again when it changes.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, servers: Mutex::new(None), permits: Semaphore::new(QUESTIONS_MAX) }
    }

    /// The servers now, without `own` (which would ask itself).
    fn servers(&self, own: Ipv4Addr) -> Vec<IpAddr> {
        const LOOK_AGAIN: Duration = Duration::from_secs(1);
        let mut cached = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(servers) = cached.as_ref().filter(|servers| servers.looked.elapsed() < LOOK_AGAIN) {
            return servers.list.clone();
        }
        let stamp = std::fs::metadata(&self.path).ok().and_then(|m: Metadata| Some((m.modified().ok()?, m.len())));
        let looked = Instant::now();
        if let Some(servers) = cached.as_mut().filter(|servers| stamp.is_some() && servers.stamp == stamp) {
            servers.looked = looked;
            return servers.list.clone();
        }
        let mut list = nameservers(&self.path);
        if list.is_empty() {
            // A server on the host's loopback is out of a container's reach, not out of ours.
            list = parse(&std::fs::read_to_string(&self.path).unwrap_or_default());
        }
        list.retain(|ip| *ip != IpAddr::V4(own));
        *cached = Some(Servers { list: list.clone(), stamp, looked });
        list
    }

    /// The answer of a name server to a question over UDP, as it came; `None` when none answered.
    pub(crate) async fn udp(&self, packet: &[u8], own: Ipv4Addr) -> Option<Vec<u8>> {
        const ROUNDS: usize = 2;
        let _permit = self.permits.try_acquire().ok()?;
        let servers = self.servers(own);
        let mut next = servers.iter().cycle().take(ROUNDS * servers.len());
        let mut asked: JoinSet<Option<Vec<u8>>> = JoinSet::new();
        let mut failure = None;
        let deadline = tokio::time::sleep(DEADLINE);
        tokio::pin!(deadline);
        loop {
            let more = match next.next() {
                Some(server) => {
                    asked.spawn(ask_udp(packet.to_vec(), SocketAddr::new(*server, PORT)));
                    true
                }
                None => false,
            };
            if asked.is_empty() {
                return failure;
            }
            tokio::select! {
                done = asked.join_next() => match done {
                    Some(Ok(Some(answer))) if is_final(&answer) => return Some(answer),
                    Some(Ok(Some(answer))) => failure = Some(answer),
                    _ => {}
                },
                () = tokio::time::sleep(PATIENCE), if more => {}
                () = &mut deadline => return failure,
            }
        }
    }

    /// The same over TCP.
    pub(crate) async fn tcp(&self, packet: &[u8], own: Ipv4Addr) -> Option<Vec<u8>> {
        let _permit = self.permits.try_acquire().ok()?;
        for server in self.servers(own) {
            let exchange = ask_tcp(packet, SocketAddr::new(server, PORT));
            if let Ok(Some(answer)) = tokio::time::timeout(DEADLINE / 2, exchange).await {
                return Some(answer);
            }
        }
        None
    }
}

/// Not "server failure" or "refused", after which another server is worth a try.
fn is_final(answer: &[u8]) -> bool {
    const SERVER_FAILURE: u8 = 2;
    const REFUSED: u8 = 5;
    answer.get(3).is_some_and(|flags| !matches!(flags & 0x0f, SERVER_FAILURE | REFUSED))
}

async fn ask_udp(mut packet: Vec<u8>, server: SocketAddr) -> Option<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // Port and number chosen anew for each question: an answer cannot be forged by guessing.
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    let original = [*packet.first()?, *packet.get(1)?];
    let fresh = (RandomState::new().hash_one(Instant::now()) as u16).to_be_bytes();
    packet[..2].copy_from_slice(&fresh);
    socket.send(&packet).await.ok()?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await.ok()?;
        if answers(&buffer[..length], &packet) {
            buffer.truncate(length);
            buffer[..2].copy_from_slice(&original);
            return Some(buffer);
        }
    }
}

/// Whether it is the answer to the question: same number, same question.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    const HEADER: usize = 12;
    const ANSWER_BIT: u8 = 0x80;
    let Some(end) = question_end(question) else { return false };
    answer.len() >= HEADER
        && answer[..2] == question[..2]
        && answer[2] & ANSWER_BIT != 0
        && (answer.len() == HEADER
            || answer.get(HEADER..end).is_some_and(|asked| asked.eq_ignore_ascii_case(&question[HEADER..end])))
}

/// Where the first question of a packet ends. A name in a question is not compressed.
fn question_end(packet: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1 + length;
        if length == 0 {
            let end = at + 4;
            return (end <= packet.len()).then_some(end);
        }
    }
}

async fn ask_tcp(packet: &[u8], server: SocketAddr) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    stream.write_all(&u16::try_from(packet.len()).ok()?.to_be_bytes()).await.ok()?;
    stream.write_all(packet).await.ok()?;
    let length = stream.read_u16().await.ok()?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.ok()?;
    answers(&answer, packet).then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn loopback_servers_are_not_for_containers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let text = "# a comment\nnameserver 127.0.0.1\nnameserver 192.0.2.1\n nameserver 2001:db8::1\n\
                    nameserver\nnameserver x\nsearch a.b\n";
        std::fs::write(&path, text).unwrap();
        let list: Vec<String> = nameservers(&path).iter().map(IpAddr::to_string).collect();
        assert_eq!(list, ["192.0.2.1", "2001:db8::1"]);
    }

    #[test]
    fn own_address_is_never_asked_and_changes_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 10.210.1.1\nnameserver 127.0.0.53\n").unwrap();
        let forwarder = Forwarder::new(path.clone());
        let own = Ipv4Addr::new(10, 210, 1, 1);
        assert_eq!(forwarder.servers(own), Vec::<IpAddr>::new());
        std::fs::write(&path, "nameserver 192.0.2.44\n").unwrap();
        forwarder.servers.lock().unwrap().as_mut().unwrap().looked -= Duration::from_secs(2);
        assert_eq!(forwarder.servers(own), ["192.0.2.44".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let mut question = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        question.extend(b"\x03www\x02ab\x00\x00\x01\x00\x01");
        let mut answer = question.clone();
        answer[2] |= 0x80;
        assert!(answers(&answer, &question));
        let mut upper = answer.clone();
        upper[13] = b'W';
        assert!(answers(&upper, &question));
        assert!(!answers(&question, &question), "a question is no answer");
        answer[0] = 9;
        assert!(!answers(&answer, &question), "another number");
        answer[0] = 1;
        answer[14] = b'x';
        assert!(!answers(&answer, &question), "another name");
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_compared(a in proptest::collection::vec(any::<u8>(), 0..64),
                                     b in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = answers(&a, &b);
            let _ = is_final(&a);
        }
    }
}
