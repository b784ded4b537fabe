//! The conversation with the scheduler: one long-lived connection that we dial, dial again, and never wait for.
//!
//! Everything on the node goes on without it. What arrives is handed to the daemon, what the daemon last published is
//! sent every half second and at once when it changed.

mod exec;
mod logs;

use crate::act::runtime::Runtime;
use crate::dial::{DialError, Dialer, Tunnel, Unacknowledged};
use crate::paths::Paths;
use crate::share::inventory::{self, Inventory};
use gantry_api::images::Sources;
use gantry_api::wire::{
    Assignment, Hello, LINE_BYTES_MAX, REPORT_INTERVAL_MS, Report, STREAM_PROTOCOL, TUNNEL_PROTOCOL, ToAgent,
    ToScheduler, TunnelRequest,
};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

/// First pause before dialling again.
const REDIAL_FIRST: Duration = Duration::from_millis(50);
/// Longest pause before dialling again.
const REDIAL_MAX: Duration = Duration::from_secs(2);
/// A peer that takes no bytes for longer is gone.
const WRITE_MAX: Duration = Duration::from_secs(5);
/// Between two reports of changes: in a storm of them, each report carries many.
const GATHER: Duration = Duration::from_millis(10);
/// Tunnels at once; one more is refused with words.
const TUNNELS_MAX: usize = 128;

/// What the conversation needs.
pub(crate) struct Stream {
    pub(crate) dialer: Dialer,
    pub(crate) hello: Hello,
    pub(crate) reports: watch::Receiver<Report>,
    pub(crate) assignments: mpsc::Sender<Box<Assignment>>,
    /// The images that are here.
    pub(crate) images: watch::Receiver<Arc<Inventory>>,
    /// Where those are that are not.
    pub(crate) sources: watch::Sender<Sources>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) paths: Paths,
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the connection to the scheduler broke")]
    Io(#[from] io::Error),
    #[error("the scheduler sent what is no message")]
    Message(#[from] serde_json::Error),
    #[error("the scheduler closed the connection")]
    Closed,
    #[error("the daemon has ended")]
    Over,
}

/// Talks until it is dropped; tunnels outlive a broken conversation.
pub(crate) async fn run(mut stream: Stream) {
    let mut tunnels = JoinSet::new();
    let places = Arc::new(Semaphore::new(TUNNELS_MAX));
    let mut sequence = 0;
    let mut pause = REDIAL_FIRST;
    let mut quiet = false;
    loop {
        let begun = Instant::now();
        let broken = match converse(&mut stream, &mut sequence, &mut tunnels, &places).await {
            Err(Broken::Over) | Ok(()) => return,
            Err(broken) => broken,
        };
        while tunnels.try_join_next().is_some() {}
        if begun.elapsed() > REDIAL_MAX {
            (pause, quiet) = (REDIAL_FIRST, false);
        }
        if quiet {
            debug!("{}", crate::error::chain(&broken));
        } else {
            warn!("{}; trying again, everything here goes on", crate::error::chain(&broken));
            quiet = true; // said once per absence
        }
        // Up to half again as long, so that a fleet does not come back in step.
        let jitter = pause.mul_f64((RandomState::new().hash_one(sequence) % 512) as f64 / 1024.0);
        sleep(pause + jitter).await;
        pause = (pause * 2).min(REDIAL_MAX);
    }
}

async fn converse(
    stream: &mut Stream,
    sequence: &mut u64,
    tunnels: &mut JoinSet<()>,
    places: &Arc<Semaphore>,
) -> Result<(), Broken> {
    let io = stream.dialer.upgrade("/v1/agent/stream", STREAM_PROTOCOL, Unacknowledged::Short).await?;
    info!("connected to the scheduler");
    let (read, mut write) = tokio::io::split(io);
    send(&mut write, &ToScheduler::Hello(stream.hello.clone())).await?;
    let (messages, mut incoming) = mpsc::channel(4);
    let mut reader = JoinSet::new(); // ends with this function
    reader.spawn(read_messages(read, messages));
    let (refusals, mut refused) = mpsc::channel::<ToScheduler>(TUNNELS_MAX);
    let mut tick = interval(Duration::from_millis(REPORT_INTERVAL_MS));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut quiet_until = Instant::now();
    let mut told: Option<Arc<Inventory>> = None;
    stream.images.mark_changed();
    loop {
        tokio::select! {
            changed = stream.images.changed() => {
                changed.map_err(|_| Broken::Over)?;
                let now = Arc::clone(&stream.images.borrow_and_update());
                if let Some(news) = inventory::difference(told.as_deref(), &now) {
                    send(&mut write, &ToScheduler::Images(news)).await?;
                }
                told = Some(now);
            }
            changed = news(&mut stream.reports, quiet_until) => {
                changed.map_err(|_| Broken::Over)?;
                send_report(&mut write, stream, sequence).await?;
                tick.reset();
                quiet_until = Instant::now() + GATHER;
            }
            _ = tick.tick() => send_report(&mut write, stream, sequence).await?,
            Some(refusal) = refused.recv() => send(&mut write, &refusal).await?,
            message = incoming.recv() => match message.ok_or(Broken::Closed)?? {
                ToAgent::Assignment(assignment) => {
                    stream.assignments.send(assignment).await.map_err(|_| Broken::Over)?;
                }
                ToAgent::Sources(sources) => drop(stream.sources.send_replace(sources)),
                ToAgent::OpenTunnel { tunnel, request } => {
                    let open = Opening::new(stream, tunnel, request, refusals.clone());
                    match Arc::clone(places).try_acquire_owned() {
                        Ok(place) => {
                            tunnels.spawn(async move {
                                open.serve().await;
                                drop(place);
                            });
                        }
                        Err(_) => open.refuse(format!("{TUNNELS_MAX} tunnels are open on this node already")),
                    }
                }
            },
        }
    }
}

async fn news(reports: &mut watch::Receiver<Report>, not_before: Instant) -> Result<(), watch::error::RecvError> {
    sleep_until(not_before).await;
    reports.changed().await
}

async fn send_report(
    write: &mut (impl AsyncWrite + Unpin),
    stream: &mut Stream,
    sequence: &mut u64,
) -> Result<(), Broken> {
    *sequence += 1;
    let report = Report { sequence: *sequence, ..stream.reports.borrow_and_update().clone() };
    send(write, &ToScheduler::Report(report)).await
}

async fn send(write: &mut (impl AsyncWrite + Unpin), message: &ToScheduler) -> Result<(), Broken> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let all = async {
        write.write_all(&line).await?;
        write.flush().await
    };
    Ok(timeout(WRITE_MAX, all).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)
}

async fn read_messages(read: impl AsyncRead + Unpin, messages: mpsc::Sender<Result<ToAgent, Broken>>) {
    let mut read = BufReader::new(read);
    loop {
        let message = read_message(&mut read).await;
        let last = message.is_err();
        if messages.send(message).await.is_err() || last {
            return;
        }
    }
}

async fn read_message(read: &mut (impl AsyncBufReadExt + Unpin)) -> Result<ToAgent, Broken> {
    let mut line = Vec::new();
    let length = read.take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Err(Broken::Closed),
        Some(b'\n') => Ok(serde_json::from_slice(&line)?),
        Some(_) if length < LINE_BYTES_MAX => Err(Broken::Closed),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a line is over the limit").into()),
    }
}

/// A tunnel that the scheduler asked for.
struct Opening {
    tunnel: String,
    request: TunnelRequest,
    dialer: Dialer,
    runtime: Arc<Runtime>,
    paths: Paths,
    refusals: mpsc::Sender<ToScheduler>,
}

impl Opening {
    fn new(stream: &Stream, tunnel: String, request: TunnelRequest, refusals: mpsc::Sender<ToScheduler>) -> Self {
        Self {
            tunnel,
            request,
            dialer: stream.dialer.clone(),
            runtime: Arc::clone(&stream.runtime),
            paths: stream.paths.clone(),
            refusals,
        }
    }

    fn refuse(self, message: String) {
        // Without a stream to say it on, or with one that is choked by refusals, the scheduler's own time-out tells.
        let _ = self.refusals.try_send(ToScheduler::TunnelRefused { tunnel: self.tunnel, message });
    }

    async fn serve(self) {
        let replica = match &self.request {
            TunnelRequest::Exec(request) => &request.replica,
            TunnelRequest::Logs(request) => &request.replica,
        };
        if !self.paths.replica(replica).dir.is_dir() {
            let message = format!("replica {replica} is not on this node");
            return self.refuse(message);
        }
        // The name is the scheduler's, but a path is made from it.
        if !self.tunnel.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_') {
            return self.refuse("a tunnel's name is made of letters, digits, `-` and `_`".to_owned());
        }
        let path = format!("/v1/agent/tunnel/{}", self.tunnel);
        let io: Tunnel = match self.dialer.upgrade(&path, TUNNEL_PROTOCOL, Unacknowledged::Long).await {
            Ok(io) => io,
            Err(error) => {
                let message = crate::error::chain(&error);
                debug!("tunnel {}: {message}", self.tunnel);
                return self.refuse(message);
            }
        };
        let result = match &self.request {
            TunnelRequest::Exec(request) => {
                let bundle = self.paths.replica(&request.replica).bundle();
                exec::serve(io, request, &bundle, &self.runtime).await
            }
            TunnelRequest::Logs(request) => logs::serve(io, request, &self.paths.replica(&request.replica)).await,
        };
        if let Err(error) = result {
            debug!("tunnel {} ended: {error}", self.tunnel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_is_a_line_and_half_a_line_is_the_end() {
        let text =
            b"{\"type\":\"open_tunnel\",\"tunnel\":\"1\",\"request\":{\"kind\":\"logs\",\"replica\":\"a-s-1-000001\",\
            \"name\":{\"app\":\"a\",\"service\":\"s\",\"number\":1}}}\n{\"type\"";
        let mut read = BufReader::new(&text[..]);
        assert!(matches!(read_message(&mut read).await, Ok(ToAgent::OpenTunnel { .. })));
        assert!(matches!(read_message(&mut read).await, Err(Broken::Closed)));
        let mut read = BufReader::new(&b"{}\n"[..]);
        assert!(matches!(read_message(&mut read).await, Err(Broken::Message(_))));
    }
}
