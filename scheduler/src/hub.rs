//! Agents' connections: the assignment stream of each, and tunnels that agents dial back for exec and logs.

use crate::ca::PeerNode;
use crate::refusal::Refused;
use crate::steward::{Handle, Input, Session};
use gantry_api::ids::NodeId;
use gantry_api::wire::{Assignment, LINE_BYTES_MAX, ToAgent, ToScheduler, TunnelRequest};
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
        let (newest, assignments) = watch::channel(None);
        let (commands, waiting) = mpsc::channel(COMMANDS_MAX);
        let input = Input::Hello { hello, session: Session { id: session, newest, commands } };
        self.handle.send(input).await.map_err(|refused| refused.error.message)?;
        tokio::select! {
            ended = self.read_reports(&mut read, &peer.node, session) => ended,
            ended = write_orders(write, assignments, waiting) => ended,
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
                ToScheduler::Report(report) => {
                    let input = Input::Report { node: node.clone(), session, report };
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
        let order = ToAgent::OpenTunnel { tunnel: tunnel.clone(), request };
        let sent = commands.try_send(order).is_ok();
        let answered =
            if sent { tokio::time::timeout(DIAL_BACK_MAX, answered).await } else { Ok(Ok(Err(String::new()))) };
        self.waiting().remove(&tunnel);
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

/// 128 random bits, hexadecimal.
pub(crate) fn random_hex(random: &SystemRandom) -> Result<String, Refused> {
    let mut bytes = [0u8; 16];
    random.fill(&mut bytes).map_err(|_| Refused::unavailable("this host has no randomness yet"))?;
    Ok(crate::ca::hex(&bytes))
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
    mut assignments: watch::Receiver<Option<Arc<Assignment>>>,
    mut commands: mpsc::Receiver<ToAgent>,
) -> Result<(), String> {
    assignments.mark_changed();
    loop {
        let order = tokio::select! {
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
