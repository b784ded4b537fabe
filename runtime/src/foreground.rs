//! Stay with a process: pass signals to it, carry its terminal, and take its exit code.

use crate::container::channel::{Channel, Message};
use crate::error::{Because, Failure, Outcome};
use crate::readiness::Listener;
use crate::sys::clone::{self, Exit};
use crate::sys::signal::{self, SignalSet};
use crate::sys::{process, tty};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How often the user must interrupt until the container is killed rather than asked.
const INTERRUPTS_TO_KILL: u32 = 3;

/// All signals, held until somebody looks: none is lost between the clone and the waiting.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Block every signal and read them from a descriptor from now on.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn hold() -> Outcome<Self> {
        // A caller that ignores it hands that down, and then no exit status can be taken.
        signal::reset_handler(libc::SIGCHLD);
        let all = SignalSet::all_but_faults();
        signal::set_mask(&all).because(|| "cannot block signals".to_owned())?;
        signal::signalfd(&all).because(|| "cannot watch signals".to_owned()).map(Self)
    }

    /// The descriptor, to poll on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next signal that has arrived.
    ///
    /// # Errors
    /// The descriptor fails.
    pub fn next(&self) -> Outcome<Option<i32>> {
        signal::next(self.fd()).because(|| "cannot read signals".to_owned())
    }

    /// Wait for a message, giving up when the user interrupts.
    ///
    /// # Errors
    /// A signal that asks us to end.
    pub fn receive(&self, channel: &Channel) -> Outcome<Message> {
        self.receive_within(channel, None, None).map(|message| message.unwrap_or(Message::End))
    }

    /// The same from a process whose end of the channel others may hold open, too: its death is the end.
    ///
    /// # Errors
    /// As [`Signals::receive`].
    pub fn receive_from(&self, channel: &Channel, pidfd: BorrowedFd<'_>) -> Outcome<Message> {
        self.receive_within(channel, None, Some(pidfd)).map(|message| message.unwrap_or(Message::End))
    }

    /// The same; `None` when nothing came within `limit`, or before the death of a process.
    fn receive_within(
        &self,
        channel: &Channel,
        limit: Option<&Timespec>,
        pidfd: Option<BorrowedFd<'_>>,
    ) -> Outcome<Option<Message>> {
        loop {
            let mut fds = vec![
                PollFd::from_borrowed_fd(channel.fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.fd(), PollFlags::IN),
            ];
            fds.extend(pidfd.map(|pidfd| PollFd::from_borrowed_fd(pidfd, PollFlags::IN)));
            if !poll_within(&mut fds, limit)? {
                return Ok(None);
            }
            let (message, signal) = (fds[0].revents(), fds[1].revents());
            // A message first: once the program runs, signals are for it.
            if !message.is_empty() {
                return channel.receive().map(Some);
            }
            if fds.get(2).is_some_and(|ended| !ended.revents().is_empty()) {
                return Ok(None);
            }
            if !signal.is_empty()
                && let Some(signal @ (libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT)) = self.next()?
            {
                return Err(Failure::new(format!("interrupted by signal {signal} before the start")));
            }
        }
    }
}

/// Wait for any descriptor.
///
/// # Errors
/// Out of memory.
pub fn poll(fds: &mut [PollFd<'_>]) -> Outcome<()> {
    poll_within(fds, None).map(drop)
}

/// Wait for any descriptor; false when nothing came within `limit`.
fn poll_within(fds: &mut [PollFd<'_>], limit: Option<&Timespec>) -> Outcome<bool> {
    loop {
        match rustix::event::poll(fds, limit) {
            Err(Errno::INTR) => {}
            result => return result.map(|count| count > 0).because(|| "cannot wait".to_owned()),
        }
    }
}

/// Waits for a process of ours that starts in a container, but not for memory it will never get.
///
/// - One that must not be killed (`oom_score_adj` -1000, from the bundle or the caller) tries again for ever in the
///   kernel. When it is silent, its score is one better until it is through.
/// - One whose bundle disables the OOM killer sleeps for ever. It is given up.
pub struct OomGuard<'a> {
    pid: i32,
    is_hopeless: &'a dyn Fn() -> bool,
    eased: bool,
}

/// How long a process may be silent before it is looked at.
const SILENT_MAX: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// The score of a process that is never killed, and the next one.
const NEVER_KILLED: (&str, &str) = ("-1000", "-999");

impl<'a> OomGuard<'a> {
    /// For a process that is not reaped as long as this lives.
    ///
    /// - `is_hopeless`: asked when it is silent; whether it sleeps for memory and should be given up.
    pub const fn new(pid: i32, is_hopeless: &'a dyn Fn() -> bool) -> Self {
        Self { pid, is_hopeless, eased: false }
    }

    /// As [`Signals::receive`].
    ///
    /// # Errors
    /// As there.
    pub fn receive(&mut self, channel: &Channel, signals: &Signals) -> Outcome<Message> {
        loop {
            if let Some(message) = signals.receive_within(channel, Some(&SILENT_MAX), None)? {
                return Ok(message);
            }
            if (self.is_hopeless)() {
                return Err(Failure::new(
                    "the container has no memory left for its start, and may not be killed for it",
                )
                .hint("raise `linux.resources.memory.limit`, or remove `disableOOMKiller`"));
            }
            self.ease();
        }
    }

    fn file(&self) -> String {
        format!("/proc/{}/oom_score_adj", self.pid)
    }

    fn ease(&mut self) {
        // Where this fails there is nothing to ease; it is only tried once either way.
        if std::mem::replace(&mut self.eased, true) {
            return;
        }
        let protected = std::fs::read_to_string(self.file()).is_ok_and(|score| score.trim() == NEVER_KILLED.0);
        if protected {
            let _ = std::fs::write(self.file(), NEVER_KILLED.1);
        }
    }
}

impl Drop for OomGuard<'_> {
    fn drop(&mut self) {
        let eased = || std::fs::read_to_string(self.file()).is_ok_and(|score| score.trim() == NEVER_KILLED.1);
        if self.eased && eased() {
            // Gone if it was killed.
            let _ = std::fs::write(self.file(), NEVER_KILLED.0);
        }
    }
}

/// Raw mode for our own terminal, put back at the end.
struct RawMode(Option<tty::Settings>);

impl RawMode {
    fn enter() -> Self {
        Self(process::inherited(0).and_then(|input| tty::make_raw(input).ok()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let (Some(settings), Some(input)) = (&self.0, process::inherited(0)) {
            let _ = tty::restore(input, settings);
        }
    }
}

/// Before a program writes to a terminal that is carried to our own streams: what goes into a file or pipe has plain
/// newlines, as with other runtimes.
pub fn suit_output(master: BorrowedFd<'_>) {
    if process::inherited(1).is_none_or(|output| tty::size(output).is_err()) {
        let _ = tty::keep_newlines(master);
    }
}

/// The container's terminal, carried to ours.
struct Relay {
    master: OwnedFd,
    /// Typed and not yet taken by the container.
    pending: Vec<u8>,
    input_open: bool,
    output_open: bool,
}

/// Bytes moved at a time.
const CHUNK: usize = 16 * 1024;

impl Relay {
    fn new(master: OwnedFd) -> Self {
        // A container that does not read must not stop us from showing what it writes.
        if let Ok(flags) = rustix::fs::fcntl_getfl(&master) {
            let _ = rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK);
        }
        let relay = Self { master, pending: Vec::new(), input_open: true, output_open: true };
        relay.copy_size();
        relay
    }

    fn copy_size(&self) {
        let ours = [0, 1, 2].into_iter().find_map(|number| tty::size(process::inherited(number)?).ok());
        if let Some(size) = ours.filter(|size| size.rows > 0) {
            let _ = tty::set_size(self.master.as_fd(), size);
        }
    }

    // Not inlined, as the other one that has a buffer: who has no terminal does not pay for pages of stack.
    #[inline(never)]
    fn read_input(&mut self) {
        let Some(input) = process::inherited(0) else {
            self.input_open = false;
            return;
        };
        let mut buffer = [0; CHUNK];
        match rustix::io::read(input, &mut buffer) {
            Ok(0) => {
                self.input_open = false;
                // What a person would type to end the input.
                self.pending.push(4);
            }
            Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.input_open = false,
        }
    }

    fn write_pending(&mut self) {
        match rustix::io::write(&self.master, &self.pending) {
            Ok(count) => {
                self.pending.drain(..count);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.pending.clear(),
        }
    }

    /// Copy what is there; false when nothing more will come now.
    #[inline(never)]
    fn read_output(&mut self) -> bool {
        let mut buffer = [0; CHUNK];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(count) if count > 0 => {
                write_all(1, &buffer[..count]);
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            _ => {
                self.output_open = false;
                false
            }
        }
    }
}

/// Write to one of our own streams; a reader that has gone is not the container's fault.
fn write_all(number: i32, mut bytes: &[u8]) {
    let Some(output) = process::inherited(number) else {
        return;
    };
    while !bytes.is_empty() {
        match rustix::io::write(output, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(output, PollFlags::OUT)];
                if poll(&mut fds).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// Wait until a container says that it is ready, or has ended, and let the service manager know.
///
/// # Errors
/// Waiting fails.
pub fn await_ready(listener: &Listener, pid: i32, pidfd: BorrowedFd<'_>, signals: &Signals) -> Outcome<()> {
    let mut interrupts = 0;
    loop {
        let mut fds = [listener.fd(), pidfd, signals.fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        poll(&mut fds)?;
        let ended = !fds[1].revents().is_empty();
        if listener.hear() {
            listener.hand_over(pid, signals);
            return Ok(());
        }
        if ended {
            return Ok(());
        }
        while let Some(signal) = signals.next()? {
            pass_on(signal, pidfd, None, &mut interrupts);
        }
    }
}

/// Stay until the process has ended; it is reaped.
///
/// - `listener`: where the process may say that it is ready.
///
/// # Errors
/// Waiting fails.
pub fn attend(
    pidfd: BorrowedFd<'_>,
    signals: &Signals,
    terminal: Option<OwnedFd>,
    listener: Option<&Listener>,
) -> Outcome<Exit> {
    let raw = terminal.as_ref().map(|_| RawMode::enter());
    let mut relay = terminal.map(Relay::new);
    let mut interrupts = 0;
    loop {
        let mut fds =
            vec![PollFd::from_borrowed_fd(pidfd, PollFlags::IN), PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN)];
        let mut input_at = None;
        if let Some(relay) = &relay {
            let mut want = PollFlags::empty();
            want.set(PollFlags::IN, relay.output_open);
            want.set(PollFlags::OUT, !relay.pending.is_empty());
            if relay.output_open {
                fds.push(PollFd::from_borrowed_fd(relay.master.as_fd(), want));
            }
            if relay.input_open
                && relay.pending.is_empty()
                && let Some(input) = process::inherited(0)
            {
                input_at = Some(fds.len());
                fds.push(PollFd::from_borrowed_fd(input, PollFlags::IN));
            }
        }
        fds.extend(listener.map(|listener| PollFd::from_borrowed_fd(listener.fd(), PollFlags::IN)));
        poll(&mut fds)?;
        let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        let (ended, signalled, input_ready) = (ready(0), ready(1), input_at.is_some_and(ready));
        drop(fds);
        if let Some(listener) = listener {
            listener.pass_on();
        }
        if let Some(relay) = &mut relay {
            if input_ready {
                relay.read_input();
            }
            if !relay.pending.is_empty() {
                relay.write_pending();
            }
            if relay.output_open {
                relay.read_output();
            }
        }
        if signalled {
            while let Some(signal) = signals.next()? {
                pass_on(signal, pidfd, relay.as_ref(), &mut interrupts);
            }
        }
        if ended {
            if let Some(relay) = &mut relay {
                while relay.output_open && relay.read_output() {}
            }
            drop(raw);
            return clone::wait(pidfd).because(|| "cannot take the exit status".to_owned());
        }
    }
}

fn pass_on(signal: i32, pidfd: BorrowedFd<'_>, relay: Option<&Relay>, interrupts: &mut u32) {
    let signal = match signal {
        libc::SIGWINCH => {
            if let Some(relay) = relay {
                relay.copy_size();
            }
            return;
        }
        // About us or our terminal, not the container.
        libc::SIGCHLD | libc::SIGPIPE | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU | libc::SIGURG => return,
        libc::SIGINT | libc::SIGTERM => {
            *interrupts += 1;
            if *interrupts >= INTERRUPTS_TO_KILL { libc::SIGKILL } else { signal }
        }
        other => other,
    };
    // It may have ended a moment ago; the descriptor makes sure that no other process is hit.
    let _ = clone::pidfd_send_signal(pidfd, signal);
}
