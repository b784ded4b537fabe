//! Published ports are held by sockets of netd's, so that no other program can take one by mistake, and one that is
//! taken already is found.
//!
//! The rules carry all traffic but that to 127.0.0.1, which the kernel translates only with `route_localnet` on the
//! way out, opening the host's loopback to its neighbours. So the holding sockets serve it: a small proxy.

use crate::plan::{Port, Targets, port_text};
use gantry_api::spec::Protocol;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// Connections through 127.0.0.1 at once, over all ports; more wait.
const CONNECTIONS_MAX: usize = 1024;
/// Clients of one UDP port at once; the packets of more are dropped.
const UDP_CLIENTS_MAX: usize = 256;
/// A UDP client that is silent for so long is forgotten, as conntrack does with an unanswered one.
const UDP_IDLE: Duration = Duration::from_secs(30);

/// Where each port leads, and whose turn it is.
#[derive(Debug, Default)]
struct Shared {
    targets: Mutex<Targets>,
    turn: AtomicUsize,
}

impl Shared {
    fn next(&self, port: Port) -> Option<SocketAddr> {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let list = targets.get(&port)?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        list.get(turn.checked_rem(list.len())?).map(|(address, port)| SocketAddr::from((*address, *port)))
    }
}

/// The ports held.
#[derive(Debug)]
pub(crate) struct Holders {
    runtime: Handle,
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    held: BTreeMap<Port, AbortOnDrop>,
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Holders {
    /// Nothing held yet; the sockets will be served by `runtime`.
    pub(crate) fn new(runtime: Handle) -> Self {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { runtime, shared: Arc::default(), permits, held: BTreeMap::new() }
    }

    /// Hold exactly the ports of `targets`; answers those held, and words for those that cannot be.
    pub(crate) fn hold(&mut self, targets: &Targets) -> (BTreeSet<Port>, Vec<String>) {
        self.held.retain(|port, _| targets.contains_key(port));
        let mut problems = Vec::new();
        for port in targets.keys() {
            if !self.held.contains_key(port) {
                match self.open(*port) {
                    Ok(task) => {
                        self.held.insert(*port, AbortOnDrop(task));
                    }
                    Err(error) => problems.push(refusal(*port, &error)),
                }
            }
        }
        self.shared.targets.lock().unwrap_or_else(PoisonError::into_inner).clone_from(targets);
        (self.held.keys().copied().collect(), problems)
    }

    fn open(&self, port: Port) -> io::Result<AbortHandle> {
        let _inside = self.runtime.enter();
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port.1);
        let shared = Arc::clone(&self.shared);
        let task = match port.0 {
            Protocol::Tcp => {
                // A listening socket keeps others out even when both allow reuse, and the reuse allows a restart.
                let listener = TcpListener::bind(any)?;
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                self.runtime.spawn(serve_tcp(listener, port, shared, Arc::clone(&self.permits)))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(any)?;
                socket.set_nonblocking(true)?;
                self.runtime.spawn(serve_udp(tokio::net::UdpSocket::from_std(socket)?, port, shared))
            }
        };
        Ok(task.abort_handle())
    }
}

fn refusal(port: Port, error: &io::Error) -> String {
    let text = port_text(port);
    match error.kind() {
        io::ErrorKind::AddrInUse if port.1 == 53 => {
            format!("port {text} is used by this node's own DNS, or held by another program on this node")
        }
        io::ErrorKind::AddrInUse => format!("port {text} is held by another program on this node"),
        _ => format!("port {text} cannot be opened: {error}"),
    }
}

async fn serve_tcp(listener: tokio::net::TcpListener, port: Port, shared: Arc<Shared>, permits: Arc<Semaphore>) {
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let mut client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                // Out of descriptors, most likely: wait for some to be closed.
                tracing::debug!(port = %port_text(port), %error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let target = shared.next(port);
        tokio::spawn(async move {
            let _permit = permit;
            let server = match target {
                Some(target) => tokio::net::TcpStream::connect(target).await,
                None => Err(io::ErrorKind::ConnectionRefused.into()),
            };
            match server {
                Ok(mut server) => {
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    // An error here is one of the two ends going away, which the other end sees.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
                // Closed with a reset: the nearest thing to the refusal that the replica would have given.
                Err(_) => drop(client.set_zero_linger()),
            }
        });
    }
}

async fn serve_udp(socket: tokio::net::UdpSocket, port: Port, shared: Arc<Shared>) {
    let socket = Arc::new(socket);
    let clients: Arc<Mutex<HashMap<SocketAddr, Arc<tokio::net::UdpSocket>>>> = Arc::default();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let known = {
            let clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
            if clients.len() >= UDP_CLIENTS_MAX && !clients.contains_key(&client) {
                continue;
            }
            clients.get(&client).cloned()
        };
        let upstream = match known {
            Some(upstream) => upstream,
            None => {
                let Some(target) = shared.next(port) else { continue };
                let Ok(upstream) = connect_udp(target).await else { continue };
                let upstream = Arc::new(upstream);
                clients.lock().unwrap_or_else(PoisonError::into_inner).insert(client, Arc::clone(&upstream));
                tokio::spawn(answers(Arc::clone(&socket), client, Arc::clone(&upstream), Arc::clone(&clients)));
                upstream
            }
        };
        let _ = upstream.send(&buffer[..length]).await;
    }
}

async fn connect_udp(target: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(target).await?;
    Ok(socket)
}

type Clients = Arc<Mutex<HashMap<SocketAddr, Arc<tokio::net::UdpSocket>>>>;

/// Hand the replica's packets to its client until both are silent.
async fn answers(
    socket: Arc<tokio::net::UdpSocket>,
    client: SocketAddr,
    upstream: Arc<tokio::net::UdpSocket>,
    clients: Clients,
) {
    let mut buffer = vec![0; 65_536];
    while let Ok(Ok(length)) = tokio::time::timeout(UDP_IDLE, upstream.recv(&mut buffer)).await {
        let _ = socket.send_to(&buffer[..length], client).await;
    }
    clients.lock().unwrap_or_else(PoisonError::into_inner).remove(&client);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_who_holds_the_port() {
        let port = (Protocol::Tcp, 8080);
        assert_eq!(
            refusal(port, &io::ErrorKind::AddrInUse.into()),
            "port 8080/tcp is held by another program on this node"
        );
        assert!(refusal((Protocol::Udp, 53), &io::ErrorKind::AddrInUse.into()).contains("own DNS"));
        assert!(refusal(port, &io::ErrorKind::PermissionDenied.into()).contains("permission denied"));
    }

    #[test]
    fn targets_take_turns() {
        let shared = Shared::default();
        let port = (Protocol::Tcp, 80);
        assert_eq!(shared.next(port), None);
        let to = |n| (Ipv4Addr::new(10, 210, 1, n), 80);
        shared.targets.lock().unwrap().insert(port, vec![to(2), to(3)]);
        let mut seen: Vec<SocketAddr> = (0..2).filter_map(|_| shared.next(port)).collect();
        seen.sort();
        assert_eq!(seen, [SocketAddr::from(to(2)), SocketAddr::from(to(3))]);
        shared.targets.lock().unwrap().insert(port, vec![]);
        assert_eq!(shared.next(port), None);
    }
}
