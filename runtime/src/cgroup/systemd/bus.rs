//! A connection to systemd or to a message bus. Every wait ends at a deadline.

use super::wire::{self, Call, Damaged, FIXED_HEADER, Message, Reader, Writer};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long systemd may take for one command. Podman and containerd wait longer for us.
pub const WITHIN: Duration = Duration::from_secs(30);

/// How long to wait in silence for the end of a job before asking.
const ASK_AFTER: Duration = Duration::from_millis(500);
/// Result of a job whose end was not heard.
pub const UNKNOWN: &str = "unknown";

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
/// Signals kept while waiting for an answer; a busy systemd sends a few per unit.
const SIGNALS_MAX: usize = 4096;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other side does not speak D-Bus.
    #[error("{0}")]
    Damaged(#[from] Damaged),
    /// It does not know us.
    #[error("it refuses us: `{0}`")]
    Refused(String),
    /// It is busy or hangs.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// It answered with an error.
    #[error("{text}")]
    Answer {
        /// Name of the error.
        name: String,
        /// What it said.
        text: String,
    },
}

impl BusError {
    /// Whether it is a certain error of systemd, by the last part of its name.
    pub fn is(&self, last: &str) -> bool {
        matches!(self, Self::Answer { name, .. } if name.rsplit('.').next() == Some(last))
    }
}

/// A connection.
#[derive(Debug)]
pub struct Bus {
    socket: OwnedFd,
    /// Not through a bus, but to systemd itself.
    direct: bool,
    serial: u32,
    deadline: Instant,
    within: Duration,
    signals: VecDeque<Message>,
    input: Vec<u8>,
}

impl Bus {
    /// Connect and make ourselves known.
    ///
    /// - `direct`: the socket is systemd's own.
    ///
    /// # Errors
    /// Nobody listens there, or we are not let in.
    pub fn connect(path: &Path, direct: bool, within: Duration) -> Result<Self, BusError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(io::Error::from)?;
        let deadline = Instant::now() + within;
        let mut bus = Self { socket, direct, serial: 0, deadline, within, signals: VecDeque::new(), input: Vec::new() };
        let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
        loop {
            match rustix::net::connect(&bus.socket, &address) {
                Ok(()) => break,
                // Its queue is full.
                Err(Errno::AGAIN) if Instant::now() < bus.deadline => std::thread::sleep(Duration::from_millis(5)),
                Err(Errno::AGAIN) => return Err(BusError::Late(within)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        bus.authenticate()?;
        if !direct {
            bus.call(&bus_call("Hello", ""), &[])?;
            let mut rule = Writer::default();
            rule.text(&format!("type='signal',sender='{SYSTEMD}',path='{MANAGER_PATH}',interface='{MANAGER}'"));
            bus.call(&bus_call("AddMatch", "s"), &rule.0)?;
            bus.manager("Subscribe", "", &[])?;
        }
        Ok(bus)
    }

    /// By user number, which the kernel confirms.
    fn authenticate(&mut self) -> Result<(), BusError> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > 512 {
                return Err(BusError::Refused("a line without end".to_owned()));
            }
            line.extend(self.take(1)?);
        }
        if !line.starts_with(b"OK") {
            return Err(BusError::Refused(String::from_utf8_lossy(&line).trim().to_owned()));
        }
        self.send(b"BEGIN\r\n")
    }

    /// Wait until the socket is ready, or for a while at most if `patience` says so; false when that is over.
    fn wait(&self, events: PollFlags, patience: Duration) -> Result<bool, BusError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(BusError::Late(self.within));
        }
        let left = left.min(patience);
        let mut fds = [PollFd::new(&self.socket, events)];
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut fds, Some(&time)) {
            Ok(0) => Ok(false),
            Ok(_) | Err(Errno::INTR) => Ok(true),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), BusError> {
        while !bytes.is_empty() {
            match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN) => drop(self.wait(PollFlags::OUT, self.within)?),
                Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    /// The next bytes, exactly so many.
    fn take(&mut self, count: usize) -> Result<Vec<u8>, BusError> {
        while self.input.len() < count {
            let mut buffer = [0; 4096];
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((0, _)) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok((read, _)) => self.input.extend_from_slice(&buffer[..read]),
                Err(Errno::AGAIN) => drop(self.wait(PollFlags::IN, self.within)?),
                Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(self.input.drain(..count).collect())
    }

    fn receive(&mut self) -> Result<Message, BusError> {
        let mut bytes = self.take(FIXED_HEADER)?;
        let header: &[u8; FIXED_HEADER] =
            bytes.first_chunk().ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let length = Message::length(header)?;
        bytes.extend(self.take(length - FIXED_HEADER)?);
        Ok(Message::decode(&bytes)?)
    }

    /// Call a method and wait for its answer.
    ///
    /// # Errors
    /// The connection breaks, the deadline passes, or the answer is an error.
    pub fn call(&mut self, call: &Call<'_>, body: &[u8]) -> Result<Message, BusError> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&call.encode(serial, body))?;
        loop {
            let message = self.receive()?;
            match message.kind {
                wire::SIGNAL if self.signals.len() < SIGNALS_MAX => self.signals.push_back(message),
                wire::METHOD_RETURN if message.reply_to == Some(serial) => return Ok(message),
                wire::ERROR if message.reply_to == Some(serial) => {
                    let text = message.to_string();
                    return Err(BusError::Answer { name: message.error, text });
                }
                _ => {}
            }
        }
    }

    /// Call a method of systemd's manager.
    ///
    /// # Errors
    /// As [`Bus::call`].
    pub fn manager(&mut self, member: &str, signature: &str, body: &[u8]) -> Result<Message, BusError> {
        let destination = (!self.direct).then_some(SYSTEMD);
        self.call(&Call { destination, path: MANAGER_PATH, interface: MANAGER, member, signature }, body)
    }

    /// Call a method of the manager that starts a job, and wait for its end; returns its result. A signal that is never
    /// sent (systemd was reloaded meanwhile) does not hold us up: the job is asked for now and then, and one that is
    /// not known any more is over, with the result [`UNKNOWN`].
    ///
    /// # Errors
    /// As [`Bus::call`].
    pub fn job(&mut self, member: &str, signature: &str, body: &[u8]) -> Result<String, BusError> {
        let answer = self.manager(member, signature, body)?;
        let job = Reader::new(&answer.body).text()?.to_owned();
        let number = job.rsplit('/').next().and_then(|number| number.parse::<u32>().ok());
        let mut over = false;
        loop {
            let message = match self.signals.pop_front() {
                Some(signal) => signal,
                None if over => return Ok(UNKNOWN.to_owned()),
                None if self.input.is_empty() && !self.wait(PollFlags::IN, ASK_AFTER)? => {
                    let mut body = Writer::default();
                    body.u32(number.unwrap_or(0));
                    match self.manager("GetJob", "u", &body.0) {
                        Err(error) if error.is("NoSuchJob") => over = true,
                        result => drop(result?),
                    }
                    continue;
                }
                None => self.receive()?,
            };
            if message.kind != wire::SIGNAL || message.member != "JobRemoved" {
                continue;
            }
            let mut reader = Reader::new(&message.body);
            let (_, path, _, result) = (reader.u32()?, reader.text()?, reader.text()?, reader.text()?);
            if path == job {
                return Ok(result.to_owned());
            }
        }
    }

    /// A property of the manager that is a text.
    ///
    /// # Errors
    /// As [`Bus::call`].
    pub fn manager_text(&mut self, name: &str) -> Result<String, BusError> {
        let destination = (!self.direct).then_some(SYSTEMD);
        let mut body = Writer::default();
        body.text(MANAGER);
        body.text(name);
        let call = Call { destination, path: MANAGER_PATH, interface: PROPERTIES, member: "Get", signature: "ss" };
        let answer = self.call(&call, &body.0)?;
        Ok(Reader::new(&answer.body).text_variant()?.to_owned())
    }
}

fn bus_call<'a>(member: &'a str, signature: &'a str) -> Call<'a> {
    Call { destination: Some(BUS), path: BUS_PATH, interface: BUS, member, signature }
}
