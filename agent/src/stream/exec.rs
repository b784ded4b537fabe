//! The exec tunnel: a command in a replica with its streams, or its terminal, as frames.
//!
//! Whoever asked going away ends the command: nothing is left running in a replica that nobody looks at.

use crate::act::bundle;
use crate::act::runtime::{Process, Runtime, code};
use crate::dial::Tunnel;
use crate::error::chain;
use gantry_api::frame::{Frame, PAYLOAD_BYTES_SENT};
use gantry_api::wire::ExecRequest;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Output that is read ahead of a slow reader: this many frames.
const AHEAD_FRAMES: usize = 16;
/// After the command has ended: for output of processes it left behind, and how much of theirs. A pipe holds no more.
const LEFTOVERS_MAX: Duration = Duration::from_millis(500);
const LEFTOVERS_BYTES_MAX: usize = 1 << 20;
/// While a command takes no input, whoever asked is looked after this often.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// To end a command whose reader has gone.
const ENDING_MAX: Duration = Duration::from_secs(5);
/// For the runtime to hand over the terminal.
const CONSOLE_MAX: Duration = Duration::from_secs(10);

pub(super) async fn serve(io: Tunnel, request: &ExecRequest, bundle: &Path, runtime: &Runtime) -> io::Result<()> {
    let (from, mut to) = tokio::io::split(io);
    let (frames, mut outgoing) = mpsc::channel::<Frame>(AHEAD_FRAMES);
    // When it ends, nobody can send frames any more, and whoever tries learns that the peer has gone.
    let writing = async move {
        while let Some(frame) = outgoing.recv().await {
            to.write_all(&frame.encode()).await?;
            to.flush().await?;
        }
        to.shutdown().await
    };
    let running = async {
        let last = match run(from, request, bundle, runtime, &frames).await {
            Ok(Some(code)) => Some(Frame::Exit(code)),
            Ok(None) => None,
            Err(message) => Some(Frame::Error(message)),
        };
        if let Some(last) = last {
            let _ = frames.send(last).await; // the reader may have gone
        }
        drop(frames);
    };
    // When the peer cannot be written to, it is gone, which ends the command; if not in time, the drop does.
    let mut running = std::pin::pin!(running);
    let mut writing = std::pin::pin!(writing);
    tokio::select! {
        result = &mut writing => {
            let _ = timeout(ENDING_MAX, running).await;
            result
        }
        () = &mut running => writing.await,
    }
}

/// The exit code; `None` when the peer went away; or why the command could not be run.
async fn run(
    from: impl AsyncRead + Unpin,
    request: &ExecRequest,
    bundle: &Path,
    runtime: &Runtime,
    frames: &mpsc::Sender<Frame>,
) -> Result<Option<i32>, String> {
    if request.command.is_empty() {
        return Err("no command given".to_owned());
    }
    let (mut command, process) = runtime.exec();
    let console = if request.tty { Some(Console::listen(runtime, &mut command)?) } else { None };
    arguments(&mut command, request, bundle)?;
    let streams = !request.tty;
    command.stdin(if streams && request.stdin { Stdio::piped() } else { Stdio::null() });
    command.stdout(if streams { Stdio::piped() } else { Stdio::null() });
    let child = runtime.spawn(&mut command).map_err(|error| chain(&error))?;
    // From here on, dropping this future kills the command.
    let mut running = Running { child, process };
    match console {
        Some(console) => terminal(from, request, console, &mut running, frames).await,
        None => pipes(from, &mut running, frames).await,
    }
}

fn arguments(command: &mut Command, request: &ExecRequest, bundle: &Path) -> Result<(), String> {
    for variable in &request.environment {
        command.arg("--env").arg(variable);
    }
    if let Some(name) = &request.user {
        let user = bundle::user(bundle, name)?;
        command.arg("--user").arg(format!("{}:{}", user.uid, user.gid));
        for group in user.additional_gids {
            command.arg("--additional-gids").arg(group.to_string());
        }
    }
    if let Some(dir) = &request.working_dir {
        command.arg("--cwd").arg(dir);
    }
    command.arg(request.replica.as_str()).args(&request.command);
    Ok(())
}

/// A command in a replica that ends with this value.
struct Running {
    child: Child,
    process: Process,
}

impl Running {
    fn signal(&self, number: i32) {
        if let (Some(process), Some(signal)) = (self.process.open(), rustix::process::Signal::from_named_raw(number)) {
            // A process that has just ended needs none.
            let _ = rustix::process::pidfd_send_signal(&process, signal);
        }
    }

    async fn end(&mut self) {
        self.process.end(&mut self.child, Instant::now()).await;
    }
}

impl Drop for Running {
    /// When the whole tunnel is dropped; the waiting command is killed by its own drop.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(9);
        }
    }
}

async fn pipes(
    from: impl AsyncRead + Unpin,
    running: &mut Running,
    frames: &mpsc::Sender<Frame>,
) -> Result<Option<i32>, String> {
    let (mut pumps, over) = (JoinSet::new(), watch::Sender::new(false));
    if let Some(pipe) = running.child.stdout.take() {
        pumps.spawn(pump(pipe, frames.clone(), Frame::Stdout, Leftovers::after(&over)));
    }
    if let Some(pipe) = running.child.stderr.take() {
        pumps.spawn(pump(pipe, frames.clone(), Frame::Stderr, Leftovers::after(&over)));
    }
    let mut stdin = running.child.stdin.take();
    let mut input = Input::new(from);
    let status = loop {
        tokio::select! {
            status = running.child.wait() => break status.map_err(|error| error.to_string())?,
            frame = input.next() => match frame {
                Some(Frame::Stdin(bytes)) if bytes.is_empty() => stdin = None,
                Some(Frame::Stdin(bytes)) => {
                    // The command may have closed its input; that is its business.
                    let written = match &mut stdin {
                        Some(pipe) => tokio::select! {
                            written = pipe.write_all(&bytes) => written.is_ok(),
                            // A command that reads nothing can still end.
                            status = running.child.wait() => break status.map_err(|error| error.to_string())?,
                            () = gone(frames) => {
                                running.end().await;
                                return Ok(None);
                            }
                        },
                        None => true,
                    };
                    if !written {
                        stdin = None;
                    }
                }
                Some(Frame::Signal(number)) => running.signal(number),
                Some(_) => {}
                None => {
                    running.end().await;
                    return Ok(None);
                }
            },
        }
    };
    finish(pumps, &over).await;
    Ok(Some(code(status)))
}

/// Ends when whoever asked has gone. Input that waits hides the end of their stream, so a frame that says nothing is
/// sent now and then: that fails when nobody is there.
async fn gone(frames: &mpsc::Sender<Frame>) {
    loop {
        sleep(LOOK_AGAIN).await;
        if frames.send(Frame::Stdout(Vec::new())).await.is_err() {
            return;
        }
    }
}

/// The command has ended: waits for the rest of its output. A slow reader is waited for, processes that were left
/// behind with the pipes are not.
async fn finish(mut pumps: JoinSet<()>, over: &watch::Sender<bool>) {
    over.send_replace(true);
    while pumps.join_next().await.is_some() {}
}

/// How much is read once the command is over.
struct Leftovers {
    over: watch::Receiver<bool>,
    bytes: usize,
}

impl Leftovers {
    fn after(over: &watch::Sender<bool>) -> Self {
        Self { over: over.subscribe(), bytes: 0 }
    }

    /// What `read` gives; 0 at the end of the output.
    async fn next(&mut self, read: impl Future<Output = io::Result<usize>>) -> usize {
        if self.bytes > LEFTOVERS_BYTES_MAX {
            return 0;
        }
        let over = &mut self.over;
        let quiet = async {
            let _ = over.wait_for(|over| *over).await; // whoever would say so may have gone
            sleep(LEFTOVERS_MAX).await;
        };
        let length = tokio::select! {
            biased;
            read = read => read.unwrap_or(0),
            () = quiet => 0,
        };
        if *self.over.borrow() {
            self.bytes += length;
        }
        length
    }
}

async fn pump(
    mut pipe: impl AsyncRead + Unpin,
    frames: mpsc::Sender<Frame>,
    kind: fn(Vec<u8>) -> Frame,
    mut leftovers: Leftovers,
) {
    let mut buffer = vec![0; PAYLOAD_BYTES_SENT];
    while let length @ 1.. = leftovers.next(pipe.read(&mut buffer)).await {
        if frames.send(kind(buffer[..length].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Frames from whoever asked.
struct Input<R> {
    from: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Input<R> {
    fn new(from: R) -> Self {
        Self { from, buffer: Vec::new() }
    }

    /// The next one; `None` when the peer has gone or sends nonsense. May be dropped at any time.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            match Frame::decode(&mut self.buffer) {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(_) => return None,
            }
            if !matches!(self.from.read_buf(&mut self.buffer).await, Ok(1..)) {
                return None;
            }
        }
    }
}

/// The socket on which the runtime hands over a terminal.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn listen(runtime: &Runtime, command: &mut Command) -> Result<Self, String> {
        let path = runtime.scratch_file("tty");
        let listener = UnixListener::bind(&path);
        let listener = listener.map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
        command.arg("--tty").arg("--console-socket").arg(&path);
        Ok(Self { listener, path })
    }

    async fn master(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept().await?;
        loop {
            stream.readable().await?;
            match receive(&stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let take = || {
        let mut name = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut name)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
                && let Some(descriptor) = descriptors.next()
            {
                return Ok(descriptor);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the runtime sent no terminal"))
    };
    stream.try_io(tokio::io::Interest::READABLE, take)
}

async fn terminal(
    from: impl AsyncRead + Unpin,
    request: &ExecRequest,
    console: Console,
    running: &mut Running,
    frames: &mpsc::Sender<Frame>,
) -> Result<Option<i32>, String> {
    let terminal = Arc::new(take_over(console, running).await?);
    if let Some((columns, rows)) = request.size {
        terminal.resize(columns, rows);
    }
    let (mut pumps, over) = (JoinSet::new(), watch::Sender::new(false));
    pumps.spawn(pump_terminal(Arc::clone(&terminal), frames.clone(), Leftovers::after(&over)));
    let mut input = Input::new(from);
    let status = loop {
        tokio::select! {
            status = running.child.wait() => break status.map_err(|error| error.to_string())?,
            frame = input.next() => match frame {
                Some(Frame::Stdin(bytes)) => tokio::select! {
                    _ = terminal.write_all(&bytes) => {}
                    status = running.child.wait() => break status.map_err(|error| error.to_string())?,
                    () = gone(frames) => {
                        running.end().await;
                        return Ok(None);
                    }
                },
                Some(Frame::Resize(columns, rows)) => terminal.resize(columns, rows),
                Some(Frame::Signal(number)) => running.signal(number),
                Some(_) => {}
                None => {
                    running.end().await;
                    return Ok(None);
                }
            },
        }
    };
    finish(pumps, &over).await;
    Ok(Some(code(status)))
}

/// Waits for the terminal, or for the reason why there is none.
async fn take_over(console: Console, running: &mut Running) -> Result<Terminal, String> {
    let words = running.child.stderr.take().map(|mut pipe| {
        tokio::spawn(async move {
            let mut text = Vec::new();
            let _ = pipe.read_to_end(&mut text).await; // what came before the failure is all there is
            String::from_utf8_lossy(&text).trim().to_owned()
        })
    });
    tokio::select! {
        master = timeout(CONSOLE_MAX, console.master()) => match master {
            Ok(master) => {
                let terminal = master.and_then(Terminal::new);
                terminal.map_err(|error| format!("cannot take over the terminal: {error}"))
            }
            Err(_) => Err("the runtime hands over no terminal".to_owned()),
        },
        status = running.child.wait() => {
            let status = status.map_err(|error| error.to_string())?;
            let said = match words {
                Some(words) => timeout(LEFTOVERS_MAX, words).await.ok().and_then(Result::ok).unwrap_or_default(),
                None => String::new(),
            };
            Err(if said.is_empty() { format!("exec ended with {status}") } else { said })
        }
    }
}

async fn pump_terminal(terminal: Arc<Terminal>, frames: mpsc::Sender<Frame>, mut leftovers: Leftovers) {
    let mut buffer = vec![0; PAYLOAD_BYTES_SENT];
    // EIO is how a terminal says that nobody is on its other side.
    while let length @ 1.. = leftovers.next(terminal.read(&mut buffer)).await {
        if frames.send(Frame::Stdout(buffer[..length].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Our side of a pseudo-terminal.
struct Terminal {
    master: AsyncFd<OwnedFd>,
}

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Self { master: crate::sys::ready(master)? })
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.master.readable().await?;
            if let Ok(result) = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?)) {
                return result;
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.master.writable().await?;
            if let Ok(written) = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                bytes = &bytes[written?..];
            }
        }
        Ok(())
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // A terminal that was hung up has no size; its end comes by itself.
        let _ = rustix::termios::tcsetwinsize(self.master.get_ref(), size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_terminal_is_handed_over_and_carries_bytes_and_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let console = Console { listener: UnixListener::bind(&path).unwrap(), path: path.clone() };
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let slave = std::fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        tokio::task::spawn_blocking(move || {
            use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
            let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = [std::os::fd::AsFd::as_fd(&master)];
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            let name = [io::IoSlice::new(b"/dev/ptmx")];
            rustix::net::sendmsg(&stream, &name, &mut control, SendFlags::empty()).unwrap();
        })
        .await
        .unwrap();
        let terminal = Terminal::new(console.master().await.unwrap()).unwrap();
        drop(console);
        terminal.resize(101, 37);
        let size = rustix::termios::tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (101, 37));
        terminal.write_all(b"hi\n").await.unwrap();
        let mut buffer = [0; 64];
        let length = terminal.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"hi\r\n", "its echo");
        drop(slave);
    }

    #[tokio::test]
    async fn input_ends_with_the_peer_or_with_nonsense() {
        let mut bytes = Frame::Stdin(b"x".to_vec()).encode();
        let mut input = Input::new(&bytes[..]);
        assert_eq!(input.next().await, Some(Frame::Stdin(b"x".to_vec())));
        assert_eq!(input.next().await, None);
        bytes[0] = 99;
        assert_eq!(Input::new(&bytes[..]).next().await, None);
    }

    #[tokio::test]
    async fn a_slow_reader_gets_all_output_of_a_command_that_has_ended() {
        let (mut command, pipe) = tokio::io::duplex(1 << 20);
        let (frames, mut reader) = mpsc::channel(1);
        let (mut pumps, over) = (JoinSet::new(), watch::Sender::new(false));
        pumps.spawn(pump(pipe, frames, Frame::Stdout, Leftovers::after(&over)));
        command.write_all(&vec![7; 200_000]).await.unwrap();
        // It ends, but what it left behind keeps its output open.
        let finishing = tokio::spawn(async move { finish(pumps, &over).await });
        sleep(2 * LEFTOVERS_MAX).await;
        let mut bytes = 0;
        while let Some(Frame::Stdout(part)) = timeout(Duration::from_secs(10), reader.recv()).await.unwrap() {
            bytes += part.len();
        }
        assert_eq!(bytes, 200_000);
        finishing.await.unwrap();
        drop(command);
    }

    #[tokio::test]
    async fn processes_left_behind_do_not_go_on_for_ever() {
        let (mut left_behind, pipe) = tokio::io::duplex(1 << 10);
        let (frames, mut reader) = mpsc::channel(1);
        let (mut pumps, over) = (JoinSet::new(), watch::Sender::new(false));
        pumps.spawn(pump(pipe, frames, Frame::Stdout, Leftovers::after(&over)));
        let chatter = tokio::spawn(async move { while left_behind.write_all(b"still here\n").await.is_ok() {} });
        let reading = tokio::spawn(async move { while reader.recv().await.is_some() {} });
        timeout(Duration::from_secs(10), finish(pumps, &over)).await.expect("it ends");
        chatter.await.unwrap();
        reading.await.unwrap();
    }

    #[tokio::test]
    async fn a_command_that_takes_no_input_ends_when_its_reader_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        // Stands for `gantry-runtime exec`: tells its number, and reads nothing.
        let program = dir.path().join("runtime");
        let script = "#!/bin/sh\nwhile [ \"$1\" != --pid-file ]; do shift; done\necho $$ > \"$2\"\nexec sleep 1000\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let runtime = Runtime::new(&program, dir.path(), dir.path());
        let (mut command, process) = runtime.exec();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = runtime.spawn(&mut command).unwrap();
        let mut running = Running { child, process };
        let (frames, mut reader) = mpsc::channel(AHEAD_FRAMES);
        let (mut near, far) = tokio::io::duplex(4 << 20);
        near.write_all(&Frame::Stdin(vec![0; 1 << 20]).encode()).await.unwrap();
        let ended = pipes(far, &mut running, &frames);
        let gone = async {
            // The pipe is full; a frame that says nothing asks whether anybody is there.
            assert_eq!(reader.recv().await, Some(Frame::Stdout(Vec::new())));
            drop(reader);
            std::future::pending().await
        };
        let result = tokio::select! {
            result = timeout(Duration::from_secs(30), ended) => result.expect("it ends"),
            () = gone => unreachable!(),
        };
        assert_eq!(result, Ok(None));
        assert!(running.child.try_wait().unwrap().is_some());
        drop(near);
    }
}
