//! The sockets of the name server. Opened once and kept; what they answer from is replaced under them.

use super::answer::{self, Step, Transport};
use super::forward::Forwarder;
use super::zone::{Clients, Zone};
use crate::error::NetError;
use hickory_proto::op::ResponseCode;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

const PORT: u16 = 53;
/// TCP connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 128;
/// A TCP connection that asks nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Shared {
    zone: RwLock<Arc<Zone>>,
    clients: RwLock<Arc<Clients>>,
    forwarder: Forwarder,
}

impl Shared {
    fn prepare(&self, packet: &[u8], transport: Transport, source: SocketAddr) -> Step {
        let source = match source.ip() {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let zone = Arc::clone(&self.zone.read().unwrap_or_else(PoisonError::into_inner));
        let clients = Arc::clone(&self.clients.read().unwrap_or_else(PoisonError::into_inner));
        answer::prepare(packet, transport, &zone, &clients, source)
    }

    async fn forward(&self, packet: &[u8], transport: Transport, own: Ipv4Addr, single_label: bool) -> Option<Vec<u8>> {
        let found = match transport {
            Transport::Udp => self.forwarder.udp(packet, own).await,
            Transport::Tcp => self.forwarder.tcp(packet, own).await,
        };
        // Where nobody can be asked, a name of one label does not exist: a mistyped service fails at once.
        let code = if single_label { ResponseCode::NXDomain } else { ResponseCode::ServFail };
        found.or_else(|| answer::error_reply(packet, code))
    }
}

/// The name server of a node.
#[derive(Debug)]
pub(crate) struct Server {
    runtime: Handle,
    shared: Arc<Shared>,
    listening: Option<(Ipv4Addr, [AbortHandle; 2])>,
}

impl Server {
    /// Not listening yet; its sockets will be served by `runtime`.
    pub(crate) fn new(runtime: Handle, resolv_conf: PathBuf) -> Self {
        let shared =
            Shared { zone: RwLock::default(), clients: RwLock::default(), forwarder: Forwarder::new(resolv_conf) };
        Self { runtime, shared: Arc::new(shared), listening: None }
    }

    /// Answer from this table's names from now on.
    pub(crate) fn set_zone(&self, zone: Zone) {
        *self.shared.zone.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(zone);
    }

    /// These are the containers that may ask for short names.
    pub(crate) fn set_clients(&self, clients: Clients) {
        *self.shared.clients.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(clients);
    }

    /// Listen on `address`, which must be one of this host's; nothing happens when it does already.
    ///
    /// # Errors
    /// Another program holds the port.
    pub(crate) fn listen(&mut self, address: Ipv4Addr) -> Result<(), NetError> {
        if self.listening.as_ref().is_some_and(|(now, _)| *now == address) {
            return Ok(());
        }
        self.stop();
        let at = SocketAddrV4::new(address, PORT);
        let error = |e: std::io::Error| NetError::io("listen for DNS on", at, e);
        let _inside = self.runtime.enter();
        let udp = std::net::UdpSocket::bind(at).map_err(error)?;
        udp.set_nonblocking(true).map_err(error)?;
        let udp = UdpSocket::from_std(udp).map_err(error)?;
        let tcp = std::net::TcpListener::bind(at).map_err(error)?;
        tcp.set_nonblocking(true).map_err(error)?;
        let tcp = TcpListener::from_std(tcp).map_err(error)?;
        let udp = self.runtime.spawn(serve_udp(udp, Arc::clone(&self.shared), address)).abort_handle();
        let tcp = self.runtime.spawn(serve_tcp(tcp, Arc::clone(&self.shared), address)).abort_handle();
        self.listening = Some((address, [udp, tcp]));
        Ok(())
    }

    fn stop(&mut self) {
        if let Some((_, tasks)) = self.listening.take() {
            tasks.iter().for_each(AbortHandle::abort);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>, own: Ipv4Addr) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; 4096];
    loop {
        // An error here belongs to an earlier answer (its receiver went away), not to the socket.
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else { continue };
        match shared.prepare(&buffer[..length], Transport::Udp, source) {
            Step::Reply(bytes) => {
                let _ = socket.send_to(&bytes, source).await;
            }
            Step::Forward { single_label } => {
                let (socket, shared, packet) = (Arc::clone(&socket), Arc::clone(&shared), buffer[..length].to_vec());
                tokio::spawn(async move {
                    if let Some(bytes) = shared.forward(&packet, Transport::Udp, own, single_label).await {
                        let _ = socket.send_to(&bytes, source).await;
                    }
                });
            }
            Step::Ignore => {}
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>, own: Ipv4Addr) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, source)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    serve_connection(stream, source, &shared, own).await;
                    drop(permit);
                });
            }
            // Out of descriptors, most likely: wait for some to be closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Until the other end closes, is silent for too long, or sends what is no question. `None` is the end.
async fn serve_connection(mut stream: TcpStream, source: SocketAddr, shared: &Shared, own: Ipv4Addr) -> Option<()> {
    loop {
        let length = tokio::time::timeout(IDLE, stream.read_u16()).await.ok()?.ok()?;
        let mut packet = vec![0; usize::from(length)];
        tokio::time::timeout(IDLE, stream.read_exact(&mut packet)).await.ok()?.ok()?;
        let bytes = match shared.prepare(&packet, Transport::Tcp, source) {
            Step::Reply(bytes) => bytes,
            Step::Forward { single_label } => shared.forward(&packet, Transport::Tcp, own, single_label).await?,
            Step::Ignore => return None,
        };
        let mut answer = u16::try_from(bytes.len()).ok()?.to_be_bytes().to_vec();
        answer.extend_from_slice(&bytes);
        tokio::time::timeout(IDLE, stream.write_all(&answer)).await.ok()?.ok()?;
    }
}
