//! Finds the addresses of registries without the C library: a static binary has no name service switch.
//!
//! Literal addresses, then `/etc/hosts`, then the servers of `/etc/resolv.conf`: A and AAAA over UDP, over TCP if the
//! answer is cut off.
//!
//! # Source
//! RFC 1035 sections 4.1 and 4.2; RFC 6761 section 6.3 (`localhost`); `resolv.conf(5)`.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// One question to one server; `resolv.conf` has 5 s, but servers that work answer in less than 1.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

/// Rounds over all servers.
const ATTEMPTS: usize = 2;

/// As in `resolv.conf(5)`.
const SERVERS_MAX: usize = 3;

/// Resolver for reqwest. Files are read at each use: they change while a daemon runs.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    hosts: PathBuf,
    resolv_conf: PathBuf,
    /// For servers in the file, which cannot give one.
    port: u16,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { hosts: "/etc/hosts".into(), resolv_conf: "/etc/resolv.conf".into(), port: 53 }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.lookup(name.as_str()).await?;
            let addresses: Addrs = Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Servers {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

fn parse_resolv_conf(text: &str) -> Servers {
    let mut found = Servers { ndots: 1, ..Servers::default() };
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                // A zone after `%` cannot be used without its interface; such a server is left out.
                found.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
            }
            Some("search" | "domain") => found.search = words.map(|w| w.trim_end_matches('.').to_owned()).collect(),
            Some("options") => {
                let ndots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse::<usize>().ok()).next_back();
                found.ndots = ndots.unwrap_or(found.ndots).min(15);
            }
            _ => {}
        }
    }
    found.servers.truncate(SERVERS_MAX);
    if found.servers.is_empty() {
        found.servers.push(Ipv4Addr::LOCALHOST.into());
    }
    found
}

fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|other| other.eq_ignore_ascii_case(name)).then_some(address)
    };
    text.lines().filter_map(line).collect()
}

/// The names to ask for, in order.
fn candidates(name: &str, servers: &Servers) -> Vec<String> {
    let (absolute, bare) = (name.ends_with('.'), name.trim_end_matches('.'));
    let searched = servers.search.iter().filter(|_| !absolute).map(|domain| format!("{bare}.{domain}"));
    let mut all: Vec<String> = searched.collect();
    let at = if bare.matches('.').count() >= servers.ndots || absolute { 0 } else { all.len() };
    all.insert(at, bare.to_owned());
    all
}

impl Resolver {
    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let bare = name.trim_end_matches('.');
        if let Ok(address) = bare.parse() {
            return Ok(vec![address]);
        }
        let hosts = tokio::fs::read_to_string(&self.hosts).await.unwrap_or_default();
        let found = in_hosts(&hosts, bare);
        if !found.is_empty() {
            return Ok(found);
        }
        if bare.eq_ignore_ascii_case("localhost") || bare.to_ascii_lowercase().ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let servers = parse_resolv_conf(&tokio::fs::read_to_string(&self.resolv_conf).await.unwrap_or_default());
        let mut failure = io::Error::new(io::ErrorKind::NotFound, format!("no address for host `{bare}`"));
        for candidate in candidates(name, &servers) {
            match self.ask_all(&candidate, &servers).await {
                Ok(found) if !found.is_empty() => return Ok(found),
                Ok(_) => {}
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn ask_all(&self, name: &str, servers: &Servers) -> io::Result<Vec<IpAddr>> {
        let mut failure = io::Error::other("no name server");
        for _ in 0..ATTEMPTS {
            for server in &servers.servers {
                let server = SocketAddr::new(*server, self.port);
                let both = tokio::join!(ask(server, name, TYPE_A), ask(server, name, TYPE_AAAA));
                match both {
                    (Err(error), Err(_)) => {
                        failure = io::Error::new(
                            error.kind(),
                            format!("name server {server} does not tell the address of `{name}`: {error}"),
                        );
                    }
                    (v4, v6) => {
                        return Ok(v4.unwrap_or_default().into_iter().chain(v6.unwrap_or_default()).collect());
                    }
                }
            }
        }
        Err(failure)
    }
}

async fn ask(server: SocketAddr, name: &str, kind: u16) -> io::Result<Vec<IpAddr>> {
    let id = RandomState::new().build_hasher().finish() as u16;
    let question = encode(id, name, kind)?;
    let answer = timeout(ANSWER_TIME_MAX, over_udp(server, &question)).await??;
    let answer = match answer {
        Answer::Found(found) => return Ok(found),
        Answer::CutOff => timeout(ANSWER_TIME_MAX, over_tcp(server, &question)).await??,
    };
    match answer {
        Answer::Found(found) => Ok(found),
        Answer::CutOff => Err(io::Error::other("the answer is cut off")),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Found(Vec<IpAddr>),
    CutOff,
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Answer> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not answer our question is noise, or a forgery: wait on.
        if let Some(answer) = decode(question, &buffer[..length]) {
            return answer;
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    decode(question, &buffer).unwrap_or_else(|| Err(io::Error::other("the answer is malformed")))
}

/// A question for one name, with recursion desired.
fn encode(id: u16, name: &str, kind: u16) -> io::Result<Vec<u8>> {
    let mut message = Vec::from(id.to_be_bytes());
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length));
        let length = length
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is not a host name")))?;
        message.push(length);
        message.extend(label.to_ascii_lowercase().bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    Ok(message)
}

/// The addresses in an answer; `None` if it does not belong to the question.
fn decode(question: &[u8], answer: &[u8]) -> Option<io::Result<Answer>> {
    let header = answer.get(..12)?;
    let asked = &question[12..];
    let same_question = answer.get(12..12 + asked.len()).is_some_and(|echo| echo.eq_ignore_ascii_case(asked));
    if header[..2] != question[..2] || header[2] & 0x80 == 0 || header[4..6] != [0, 1] || !same_question {
        return None;
    }
    if header[2] & 0x02 != 0 {
        return Some(Ok(Answer::CutOff));
    }
    match header[3] & 0x0f {
        0 => {}
        // No such name: an answer, with nothing in it.
        3 => return Some(Ok(Answer::Found(Vec::new()))),
        code => {
            return Some(Err(io::Error::other(format!("it answers with error {code}"))));
        }
    }
    let kind = u16::from_be_bytes([asked[asked.len() - 4], asked[asked.len() - 3]]);
    let count = u16::from_be_bytes([header[6], header[7]]);
    let records = records(answer, 12 + asked.len(), count, kind);
    Some(records.map(Answer::Found).ok_or_else(|| io::Error::other("the answer is malformed")))
}

/// Addresses among the records. Aliases need no following: a recursive server sends their targets along.
fn records(message: &[u8], mut at: usize, count: u16, wanted: u16) -> Option<Vec<IpAddr>> {
    let mut found = Vec::new();
    for _ in 0..count {
        at = after_name(message, at)?;
        let fixed = message.get(at..at + 10)?;
        let kind = u16::from_be_bytes([fixed[0], fixed[1]]);
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = message.get(at + 10..at + 10 + length)?;
        if kind == wanted && kind == TYPE_A {
            found.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?));
        } else if kind == wanted && kind == TYPE_AAAA {
            found.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?));
        }
        at += 10 + length;
    }
    Some(found)
}

/// A name ends with an empty label or with a pointer to the rest of it.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length if length & 0xc0 == 0 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn resolv_conf_is_read_as_the_manual_says() {
        let text = "# comment\nnameserver 10.0.0.2 ; x\nnameserver fe80::1%eth0\nnameserver ::1\nsearch a.example. b.example\noptions ndots:2 edns0\n";
        let servers = parse_resolv_conf(text);
        assert_eq!(servers.servers, ["10.0.0.2".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        for (name, expected) in [
            ("reg", "reg.a.example reg.b.example reg"),
            ("x.reg.io", "x.reg.io x.reg.io.a.example x.reg.io.b.example"),
            ("reg.", "reg"),
        ] {
            assert_eq!(candidates(name, &servers).join(" "), expected, "{name}");
        }
        assert_eq!(parse_resolv_conf("").servers, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
    }

    #[test]
    fn hosts_may_have_aliases_and_comments() {
        let text = "127.0.0.1 localhost\n10.1.2.3 registry.lab Registry # x\n#10.9.9.9 registry\nfd00::1 registry\n";
        assert_eq!(in_hosts(text, "REGISTRY"), ["10.1.2.3".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert!(in_hosts(text, "x").is_empty());
    }

    /// A name server that first cuts off what it says over UDP, then gives an alias and an address over TCP.
    async fn serve(udp: UdpSocket, tcp: tokio::net::TcpListener) {
        let mut buffer = [0; 512];
        loop {
            tokio::select! {
                got = udp.recv_from(&mut buffer) => {
                    let (length, peer) = got.unwrap();
                    let mut answer = buffer[..length].to_vec();
                    answer[2] |= 0x82;
                    udp.send_to(&answer, peer).await.unwrap();
                }
                got = tcp.accept() => {
                    let mut stream = got.unwrap().0;
                    let length = stream.read_u16().await.unwrap();
                    let mut answer = vec![0; length.into()];
                    stream.read_exact(&mut answer).await.unwrap();
                    answer[2] |= 0x80;
                    let is_a = answer[answer.len() - 3] == 1;
                    answer[7] = if is_a { 2 } else { 0 };
                    if is_a {
                        answer.extend(b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x04\x01b\xc0\x0c");
                        answer.extend(b"\x01b\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\x01\x02\x03");
                    }
                    let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                    stream.write_all(&[&length[..], &answer].concat()).await.unwrap();
                }
            }
        }
    }

    #[tokio::test]
    async fn a_real_exchange_over_udp_and_tcp_finds_the_address() {
        let dir = tempfile::tempdir().unwrap();
        let (hosts, resolv_conf) = (dir.path().join("hosts"), dir.path().join("resolv.conf"));
        std::fs::write(&hosts, "").unwrap();
        std::fs::write(&resolv_conf, "nameserver 127.0.0.1\n").unwrap();
        // The same port for both, which another program may have for one of them.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = tokio::net::TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let port = udp.local_addr().unwrap().port();
        let server = tokio::spawn(serve(udp, tcp));
        let resolver = Resolver { hosts, resolv_conf, port };
        assert_eq!(resolver.lookup("registry.test").await.unwrap(), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(resolver.lookup("localhost").await.unwrap()[0], IpAddr::from(Ipv4Addr::LOCALHOST));
        assert!(resolver.lookup(&"x".repeat(70)).await.is_err());
        server.abort();
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_parser_panic(tail in proptest::collection::vec(any::<u8>(), 0..100), flags in any::<u8>()) {
            let question = encode(7, "a.example", TYPE_A).unwrap();
            let mut answer = question.clone();
            (answer[2], answer[3], answer[7]) = (0x80, flags & 0x0f, 3);
            answer.extend(tail);
            let _ = decode(&question, &answer);
        }
    }
}
