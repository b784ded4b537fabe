//! Carries a command's streams between this process and a tunnel of frames.
//!
//! ```text
//! thread: stdin ──►┐
//! signals, resize ─┴► queue ─► frames ═══ tunnel ═══► frames ─► stdout, stderr (blocking writes, off this thread)
//! ```

use crate::error::{CliError, INTERRUPTED, NOT_FOUND, NOT_INVOKABLE, NOT_RUN, Outcome};
use gantry_api::frame::{Frame, PAYLOAD_BYTES_SENT};
use rustix::termios::{self, OptionalActions, Termios};
use std::io::{self, ErrorKind, Read, Write};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Frames towards the command that wait for the tunnel: half a mebibyte, then reading stdin pauses.
const QUEUE_MAX: usize = 16;
/// So many Ctrl-C leave a command that ignores them.
const INTERRUPTS_MAX: u32 = 3;
/// What a shell shows for a process that SIGPIPE ended: 128 + 13.
const BROKEN_PIPE: u8 = 141;

/// Whether the command is given our standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// It is.
    Standard,
    /// It has none.
    None,
}

/// Whether the command has a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    /// It has; ours shows it.
    Ours,
    /// It has plain streams.
    None,
}

/// Columns and rows of our terminal.
pub(crate) fn terminal_size() -> Option<(u16, u16)> {
    let size = termios::tcgetwinsize(io::stdin()).or_else(|_| termios::tcgetwinsize(io::stdout())).ok()?;
    Some((size.ws_col, size.ws_row))
}

/// Carries until the command ends; returns its exit code.
///
/// # Errors
/// The command could not be run, or the tunnel broke.
pub(crate) async fn carry<S>(stream: S, input: Input, terminal: Terminal) -> Outcome
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let failed = |error: io::Error| CliError::new(format!("cannot watch for signals: {error}")).code(NOT_RUN);
    let mut signals = Signals::new().map_err(failed)?;
    let raw = match (input, terminal) {
        (Input::Standard, Terminal::Ours) => Raw::enter(),
        _ => None,
    };
    let (reader, writer) = tokio::io::split(stream);
    let (queue, frames) = mpsc::channel(QUEUE_MAX);
    if input == Input::Standard {
        let queue = queue.clone();
        // Not joined: a read from a terminal ends when the process does.
        std::thread::spawn(move || read_input(&mut io::stdin().lock(), &queue));
    }
    let outcome = tokio::select! {
        outcome = receive(reader) => outcome,
        () = send(writer, frames) => unreachable!("it never ends"),
        () = signals.forward(&queue, terminal) => {
            drop(raw);
            return Err(CliError::new("interrupted; the command is ended with the connection").code(INTERRUPTED));
        }
    };
    drop(raw);
    outcome
}

/// Reads input and queues it, an empty frame at its end.
fn read_input(from: &mut impl Read, queue: &mpsc::Sender<Frame>) {
    let mut chunk = vec![0; PAYLOAD_BYTES_SENT];
    loop {
        let read = match from.read(&mut chunk) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        if queue.blocking_send(Frame::Stdin(chunk[..read].to_vec())).is_err() || read == 0 {
            return;
        }
    }
}

/// Sends what is queued. What cannot be sent is lost: the other half tells why the tunnel ended.
async fn send<S: AsyncWrite>(mut to: WriteHalf<S>, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if to.write_all(&frame.encode()).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// Writes out what comes until the last frame.
async fn receive<S: AsyncRead>(mut from: ReadHalf<S>) -> Outcome {
    let broke =
        |why: &str| CliError::new(format!("the connection broke before the command ended: {why}")).code(NOT_RUN);
    let mut buffer = Vec::new();
    let mut chunk = vec![0; 2 * PAYLOAD_BYTES_SENT];
    loop {
        while let Some(frame) = Frame::decode(&mut buffer).map_err(|error| broke(&error.to_string()))? {
            match frame {
                Frame::Stdout(bytes) => write_out(bytes, io::stdout).await?,
                Frame::Stderr(bytes) => write_out(bytes, io::stderr).await?,
                Frame::Exit(code) => return Ok(exit_code(code)),
                Frame::Error(message) => {
                    let code = error_code(&message);
                    return Err(CliError::new(message).code(code));
                }
                Frame::Stdin(_) | Frame::Resize(..) | Frame::Signal(_) => {}
            }
        }
        match from.read(&mut chunk).await {
            Ok(0) => {
                return Err(broke("it was closed").hint("the replica or its node may have stopped: `gantry ps -a`"));
            }
            Ok(read) => buffer.extend_from_slice(&chunk[..read]),
            Err(error) => return Err(broke(&error.to_string())),
        }
    }
}

/// Writes on another thread, so that a reader of ours that pauses stops neither input nor Ctrl-C.
async fn write_out<W: Write + 'static>(bytes: Vec<u8>, to: fn() -> W) -> Result<(), CliError> {
    let write = move || {
        let mut to = to();
        to.write_all(&bytes).and_then(|()| to.flush())
    };
    let written = tokio::task::spawn_blocking(write).await.expect("writing does not panic");
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CliError::silent(BROKEN_PIPE),
        _ => CliError::new(format!("cannot write the command's output: {error}")).code(NOT_RUN),
    })
}

/// As a shell sees it: the low eight bits.
fn exit_code(code: i32) -> u8 {
    code.to_le_bytes()[0]
}

/// Docker's codes for a command that could not be run, told from the runtime's words as docker does.
fn error_code(message: &str) -> u8 {
    let lower = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if says(&["no such file or directory", "not found in $path", "executable file not found"]) {
        NOT_FOUND
    } else if says(&["permission denied", "exec format error", "is a directory"]) {
        NOT_INVOKABLE
    } else {
        NOT_RUN
    }
}

/// Our terminal in raw mode: keys go to the command as they are. Restored when dropped.
struct Raw(Termios);

impl Raw {
    /// `None` when standard input is no terminal.
    fn enter() -> Option<Self> {
        let before = termios::tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that has gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Signals to this process that are the command's business.
struct Signals {
    resize: Signal,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            resize: signal(SignalKind::window_change())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// Queues signals as frames; ends when the person insists on leaving.
    async fn forward(&mut self, queue: &mpsc::Sender<Frame>, terminal: Terminal) {
        let mut interrupts = 0;
        loop {
            let kind = tokio::select! {
                _ = self.resize.recv() => SignalKind::window_change(),
                _ = self.interrupt.recv() => SignalKind::interrupt(),
                _ = self.terminate.recv() => SignalKind::terminate(),
                _ = self.hangup.recv() => SignalKind::hangup(),
                _ = self.quit.recv() => SignalKind::quit(),
            };
            if kind == SignalKind::interrupt() {
                interrupts += 1;
            }
            if interrupts == INTERRUPTS_MAX {
                return;
            }
            let frame = match kind == SignalKind::window_change() {
                false => Some(Frame::Signal(kind.as_raw_value())),
                true if terminal == Terminal::Ours => {
                    terminal_size().map(|(columns, rows)| Frame::Resize(columns, rows))
                }
                true => None,
            };
            if let Some(frame) = frame {
                // A full queue means that the tunnel stands still: a signal that waited would be of no use.
                let _ = queue.try_send(frame);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `carry` makes of these bytes from the other side.
    async fn ends_with(bytes: Vec<u8>) -> Result<u8, (String, u8)> {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        theirs.write_all(&bytes).await.unwrap();
        drop(theirs);
        carry(ours, Input::None, Terminal::None).await.map_err(|error| (error.message, error.code))
    }

    #[tokio::test]
    async fn the_exit_code_is_the_commands_or_dockers() {
        let error = |text: &str| Frame::Error(text.to_owned()).encode();
        assert_eq!(ends_with(Frame::Exit(0).encode()).await, Ok(0));
        assert_eq!(ends_with(Frame::Exit(137).encode()).await, Ok(137));
        assert_eq!(ends_with(Frame::Exit(-1).encode()).await, Ok(255));
        for (message, code) in [
            ("cannot run `foo`: No such file or directory", 127),
            ("executable file not found in $PATH", 127),
            ("cannot run `/etc`: Permission denied", 126),
            ("the agent is away", 125),
        ] {
            assert_eq!(ends_with(error(message)).await, Err((message.to_owned(), code)));
        }
        let cut = ends_with(Frame::Exit(0).encode()[..4].to_vec()).await.unwrap_err();
        assert_eq!(cut, ("the connection broke before the command ended: it was closed".to_owned(), 125));
        let nonsense = ends_with(vec![77; 16]).await.unwrap_err();
        assert!(nonsense.0.contains("frame of unknown kind 77") || nonsense.0.contains("limit"), "{}", nonsense.0);
    }

    #[test]
    fn input_is_cut_to_frames_and_its_end_is_an_empty_one() {
        let (queue, mut frames) = mpsc::channel(16);
        let input = vec![7; PAYLOAD_BYTES_SENT + 1];
        read_input(&mut input.as_slice(), &queue);
        drop(queue);
        let mut lengths = Vec::new();
        while let Some(Frame::Stdin(bytes)) = frames.blocking_recv() {
            lengths.push(bytes.len());
        }
        assert_eq!(lengths, [PAYLOAD_BYTES_SENT, 1, 0]);
    }
}
