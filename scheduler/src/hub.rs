//! Agents' connections: the assignment stream of each, and tunnels that agents dial back for exec and logs.

use crate::ca::PeerNode;
use crate::refusal::Refused;
use crate::steward::{Handle, Input, Session};
use gantry_api::ids::NodeId;
use gantry_api::images::Sources;
use gantry_api::wire::{Assignment, LINE_BYTES_MAX, Report, ToAgent, ToScheduler, TunnelRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot, watch};

/// A stream that says nothing for so long is closed; agents report twice a second.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// An agent that takes nothing for so long is cut off.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// How long an agent may take to dial back.
const DIAL_BACK_MAX: Duration = Duration::from_secs(5);
/// Tunnels asked of one agent and not yet sent to it.
const COMMANDS_MAX: usize = 64;
/// Tunnels waited for at once, over all agents.
const TUNNELS_WAITING_MAX: usize = 1_024;

/// What a node may say of itself, labels included: it is recorded.
const HELLO_BYTES_MAX: usize = 64 << 10;
/// What a node may say of one replica in words.
const WORDS_BYTES_MAX: usize = 4 << 10;

/// A connection that an agent dialled back.
pub(crate) type Tunnel = TokioIo<Upgraded>;

/// Agents' connections.
pub(crate) struct Hub {
    handle: Handle,
    sessions: AtomicU64,
    waiting: Mutex<HashMap<String, Waiting>>,
    random: SystemRandom,
    shutdown: watch::Receiver<bool>,
}

struct Waiting {
    node: NodeId,
    answer: oneshot::Sender<Result<Tunnel, String>>,
}

impl Hub {
    pub(crate) fn new(handle: Handle, shutdown: watch::Receiver<bool>) -> Self {
        Self {
            handle,
            sessions: AtomicU64::new(1),
            waiting: Mutex::new(HashMap::new()),
            random: SystemRandom::new(),
            shutdown,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the certificate's node is a member, with the key it joined with.
    pub(crate) async fn admit(&self, peer: &PeerNode) -> Result<(), Refused> {
        let asked = peer.clone();
        let known = self
            .handle
            .ask(move |steward| steward.world.nodes.get(&asked.node).map(|n| n.record.key_sha256 == asked.key_sha256))
            .await?;
        match known {
            Some(true) => Ok(()),
            Some(false) => Err(Refused::forbidden(format!("node {} joined with another key", peer.node))),
            None => Err(Refused::forbidden(format!("node {} is not a member of this cluster", peer.node))
                .hint("it was removed, or the cluster was made anew: join it again with a fresh token")),
        }
    }

    /// Serves one assignment stream until it ends.
    pub(crate) async fn serve_stream(self: Arc<Self>, io: Tunnel, peer: PeerNode) {
        let mut shutdown = self.shutdown.clone();
        let session = self.sessions.fetch_add(1, Ordering::Relaxed);
        let node = peer.node.clone();
        tokio::select! {
            ended = self.stream(io, session, peer) => if let Err(why) = ended {
                tracing::info!(%node, "assignment stream ended: {why}");
            },
            _ = shutdown.wait_for(|end| *end) => {}
        }
        // At shutdown there is nobody left to tell.
        let _ = self.handle.send(Input::Gone { node, session }).await;
    }

    async fn stream(&self, io: Tunnel, session: u64, peer: PeerNode) -> Result<(), String> {
        let (read, write) = tokio::io::split(io);
        let mut read = BufReader::new(read);
        let Some(ToScheduler::Hello(hello)) = next_line(&mut read).await? else {
            return Err("its first message is not hello".to_owned());
        };
        if hello.node != peer.node {
            return Err(format!("it says it is node {}, its certificate is another's", hello.node));
        }
        if serde_json::to_vec(&hello).is_ok_and(|json| json.len() > HELLO_BYTES_MAX) {
            return Err(format!("what it says of itself is over {HELLO_BYTES_MAX} bytes"));
        }
        let (newest, assignments) = watch::channel(None);
        let (sources, advice) = watch::channel(Arc::default());
        let (commands, waiting) = mpsc::channel(COMMANDS_MAX);
        let input = Input::Hello { hello, session: Session { id: session, newest, sources, commands } };
        self.handle.send(input).await.map_err(|refused| refused.error.message)?;
        tokio::select! {
            ended = self.read_reports(&mut read, &peer.node, session) => ended,
            ended = write_orders(write, advice, assignments, waiting) => ended,
        }
    }

    async fn read_reports<R: AsyncRead + Unpin>(
        &self,
        read: &mut BufReader<R>,
        node: &NodeId,
        session: u64,
    ) -> Result<(), String> {
        while let Some(message) = next_line(read).await? {
            match message {
                ToScheduler::Report(mut report) => {
                    cut_words(&mut report);
                    let input = Input::Report { node: node.clone(), session, report };
                    self.handle.send(input).await.map_err(|refused| refused.error.message)?;
                }
                ToScheduler::Images(news) => {
                    let input = Input::Images { node: node.clone(), session, news };
                    self.handle.send(input).await.map_err(|refused| refused.error.message)?;
                }
                ToScheduler::TunnelRefused { tunnel, message } => self.answer(&tunnel, node, Err(message)),
                ToScheduler::Hello(_) => return Err("it said hello twice".to_owned()),
            }
        }
        Ok(())
    }

    /// Asks an agent to dial back, and waits for it.
    pub(crate) async fn open_tunnel(&self, node: &NodeId, request: TunnelRequest) -> Result<Tunnel, Refused> {
        let asked = node.clone();
        let commands = self.handle.ask(move |steward| steward.commands(&asked)).await?;
        let commands = commands.ok_or_else(|| Refused::unavailable("its node's agent is away"))?;
        let tunnel = self.unguessable()?;
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.len() >= TUNNELS_WAITING_MAX {
                return Err(Refused::unavailable("too many tunnels are being opened at once"));
            }
            waiting.insert(tunnel.clone(), Waiting { node: node.clone(), answer });
        }
        let _awaited = Awaited { hub: self, tunnel: &tunnel };
        let order = ToAgent::OpenTunnel { tunnel: tunnel.clone(), request };
        let sent = commands.try_send(order).is_ok();
        let answered =
            if sent { tokio::time::timeout(DIAL_BACK_MAX, answered).await } else { Ok(Ok(Err(String::new()))) };
        match answered {
            _ if !sent => Err(Refused::unavailable("its node's agent is away or overloaded")),
            Ok(Ok(Ok(io))) => Ok(io),
            Ok(Ok(Err(message))) => Err(Refused::conflict(message)),
            Ok(Err(_)) | Err(_) => Err(Refused::unavailable("its node's agent did not answer in time")),
        }
    }

    /// Whether someone waits for this tunnel of this node.
    pub(crate) fn expects(&self, tunnel: &str, node: &NodeId) -> bool {
        self.waiting().get(tunnel).is_some_and(|waiting| waiting.node == *node)
    }

    /// Hands a tunnel, or why there is none, to who waits for it.
    pub(crate) fn answer(&self, tunnel: &str, node: &NodeId, answer: Result<Tunnel, String>) {
        let mut waiting = self.waiting();
        if waiting.get(tunnel).is_some_and(|waiting| waiting.node == *node)
            && let Some(found) = waiting.remove(tunnel)
        {
            // Whoever waited may have given up.
            let _ = found.answer.send(answer);
        }
    }

    fn unguessable(&self) -> Result<String, Refused> {
        random_hex(&self.random)
    }
}

/// A tunnel that someone waits for. Who asked may go away at any time, which must not leave the place taken.
struct Awaited<'a> {
    hub: &'a Hub,
    tunnel: &'a str,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.hub.waiting().remove(self.tunnel);
    }
}

/// 128 random bits, hexadecimal.
pub(crate) fn random_hex(random: &SystemRandom) -> Result<String, Refused> {
    let mut bytes = [0u8; 16];
    random.fill(&mut bytes).map_err(|_| Refused::unavailable("this host has no randomness yet"))?;
    Ok(crate::ca::hex(&bytes))
}

/// Words of an agent become events and reasons in the store, whose records are bounded.
fn cut_words(report: &mut Report) {
    for status in &mut report.replicas {
        let cause = status.last_exit.as_mut().and_then(|exit| exit.cause.as_mut());
        for words in status.message.as_mut().into_iter().chain(cause) {
            words.truncate(words.floor_char_boundary(WORDS_BYTES_MAX));
        }
    }
}

/// The next message; `None` when the peer has closed the stream.
async fn next_line<R: AsyncRead + Unpin>(read: &mut BufReader<R>) -> Result<Option<ToScheduler>, String> {
    let mut line = Vec::new();
    let mut bounded = read.take(LINE_BYTES_MAX as u64);
    let length = tokio::time::timeout(SILENCE_MAX, bounded.read_until(b'\n', &mut line))
        .await
        .map_err(|_| "nothing was heard for too long".to_owned())?
        .map_err(|error| error.to_string())?;
    if length == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err("it ended within a message".to_owned());
    }
    serde_json::from_slice(&line).map(Some).map_err(|error| format!("malformed message: {error}"))
}

async fn write_orders<W: AsyncWrite + Unpin>(
    mut write: W,
    mut sources: watch::Receiver<Arc<Sources>>,
    mut assignments: watch::Receiver<Option<Arc<Assignment>>>,
    mut commands: mpsc::Receiver<ToAgent>,
) -> Result<(), String> {
    assignments.mark_changed();
    loop {
        let order = tokio::select! {
            biased; // sources were said before the assignment that needs them
            changed = sources.changed() => {
                changed.map_err(|_| "another stream took its place".to_owned())?;
                ToAgent::Sources(sources.borrow_and_update().as_ref().clone())
            }
            changed = assignments.changed() => {
                // The steward has dropped the session: a newer stream took its place, or the node was refused.
                changed.map_err(|_| "another stream took its place".to_owned())?;
                let newest = assignments.borrow_and_update().clone();
                match newest {
                    Some(assignment) => ToAgent::Assignment(Box::new(assignment.as_ref().clone())),
                    None => continue,
                }
            }
            command = commands.recv() => match command {
                Some(command) => command,
                None => return Err("another stream took its place".to_owned()),
            },
        };
        let mut line = serde_json::to_vec(&order).map_err(|error| error.to_string())?;
        line.push(b'\n');
        tokio::time::timeout(WRITE_MAX, write.write_all(&line))
            .await
            .map_err(|_| "it takes nothing any more".to_owned())?
            .map_err(|error| error.to_string())?;
        write.flush().await.map_err(|error| error.to_string())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Now, Settings, World};
    use crate::steward::Steward;
    use crate::store::memory::Memory;
    use gantry_api::ids::{ReplicaId, ReplicaName, Revision};
    use gantry_api::wire::{Capacity, Exit, Hello, LogsRequest, ReplicaState, ReplicaStatus};
    use std::net::Ipv4Addr;

    fn name() -> ReplicaName {
        ReplicaName { app: "a".parse().unwrap(), service: "s".parse().unwrap(), number: 1 }
    }

    #[tokio::test]
    async fn whoever_stops_waiting_for_a_tunnel_leaves_no_place_taken() {
        let settings = Settings {
            replica_net: "10.210.0.0/16".parse().unwrap(),
            service_net: "10.211.0.0/16".parse().unwrap(),
            reserved_ports: Vec::new(),
        };
        let mut world = World::new(settings, Revision(0), Now(0));
        let (node, underlay) = (NodeId::from_random([1; 8]), Ipv4Addr::new(192, 0, 2, 1));
        world.join(&node, &"n1".parse().unwrap(), "key", underlay, Now(0)).unwrap();
        let (steward, handle, inputs) =
            Steward::new(Arc::new(Memory::default()), world, Vec::new(), Revision(1_000_000));
        let (_stop, stopped) = watch::channel(false);
        tokio::spawn(steward.run(inputs, stopped.clone()));
        let hub = Hub::new(handle.clone(), stopped);
        let hello = Hello {
            node: node.clone(),
            name: "n1".parse().unwrap(),
            version: String::new(),
            underlay,
            capacity: Capacity::default(),
            labels: Default::default(),
            arch: String::new(),
            kernel: String::new(),
        };
        let (newest, _assignments) = watch::channel(None);
        let (sources, _advice) = watch::channel(Arc::default());
        let (commands, mut orders) = mpsc::channel(1);
        handle.send(Input::Hello { hello, session: Session { id: 1, newest, sources, commands } }).await.unwrap();
        let replica = ReplicaId::new(&name(), 1);
        let request = LogsRequest { replica, name: name(), follow: false, tail: None, since_ms: None };
        let mut opening = Box::pin(hub.open_tunnel(&node, TunnelRequest::Logs(request)));
        tokio::select! {
            _ = &mut opening => panic!("nobody answers"),
            order = orders.recv() => assert!(order.is_some()),
        }
        assert_eq!(hub.waiting().len(), 1);
        drop(opening);
        assert!(hub.waiting().is_empty());
    }

    #[test]
    fn an_agents_words_fit_the_store() {
        let words = || Some("ä".repeat(1 << 20));
        let exit = Exit { code: None, signal: None, oom_killed: false, at_ms: 0, cause: words() };
        let status = ReplicaStatus {
            id: ReplicaId::new(&name(), 1),
            state: ReplicaState::Failed,
            ready: false,
            healthy: None,
            address: None,
            message: words(),
            restarts: 0,
            started_at_ms: None,
            last_exit: Some(exit),
            memory_used: Default::default(),
            cpu_used: Default::default(),
        };
        let mut report = Report {
            sequence: 1,
            applied: Revision(0),
            replicas: vec![status],
            volumes: Vec::new(),
            problems: Vec::new(),
            memory_used: Default::default(),
            cpu_used: Default::default(),
        };
        cut_words(&mut report);
        let status = &report.replicas[0];
        assert_eq!(status.message.as_ref().unwrap().len(), WORDS_BYTES_MAX);
        assert_eq!(status.last_exit.as_ref().unwrap().cause.as_ref().unwrap().len(), WORDS_BYTES_MAX);
    }
}
