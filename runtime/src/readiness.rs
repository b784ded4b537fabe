//! Readiness for a service manager, by systemd's protocol: the container gets a socket of its own, and its `READY=1` is
//! passed on to the `NOTIFY_SOCKET` of the runtime, which the container never sees.
//!
//! ```text
//! program ─► PATH/notify = ROOT/ID/notify/notify ─► run, start ─► NOTIFY_SOCKET
//! ```
//! `create` makes the directory and mounts it. Whoever lets the program run makes the socket, so that somebody listens.

use crate::config::{Config, Mount};
use crate::container::namespaces::MountsOf;
use crate::container::path::clean;
use crate::error::{Because, Failure, Outcome, is_absent};
use crate::foreground::Signals;
use crate::state::StateDir;
use crate::sys::{process, socket};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::cell::Cell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The variable, outside and in the container.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// The directory below the container's state, and the socket in it.
const NAME: &str = "notify";
/// Where the directory is in the container when the manager's address is no path that could be there.
const PLACE: &str = "/run/notify";
/// Longest address of a socket.
const ADDRESS_MAX: usize = 107;
/// How long the manager may take to read what is sent.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take to say that it has understood it; systemd's own programs wait as long.
const BARRIER_WITHIN: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
/// Messages taken at a time: a container that sends all the time must not keep us from the rest.
const MESSAGES_MAX: u32 = 64;

/// The service manager: a path, or an abstract name after `@`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manager(String);

impl Manager {
    /// The one that started us, if it wants to hear.
    pub fn from_environment() -> Option<Self> {
        std::env::var(VARIABLE).ok().and_then(|text| Self::parse(&text))
    }

    /// What is no address of a local socket is nobody's.
    fn parse(text: &str) -> Option<Self> {
        let good = text.len() > 1 && text.len() <= ADDRESS_MAX && text.starts_with(['/', '@']);
        good.then(|| Self(text.to_owned()))
    }

    /// Where the container has the directory: at the manager's own path, as with crun, so that what is written for that
    /// path finds it.
    fn place(&self) -> String {
        let path = clean(&self.0);
        if self.0.starts_with('/') && path != "/" { path } else { PLACE.to_owned() }
    }

    /// Make the directory, and the configuration that has it. `None` without a mount namespace of the container's own,
    /// where nothing may be mounted.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn add_to(&self, config: &Config, dir: &StateDir) -> Outcome<Option<Config>> {
        if MountsOf::of(config) != MountsOf::Container {
            return Ok(None);
        }
        let directory = dir.file(NAME);
        let everybody = fs::Permissions::from_mode(0o755);
        fs::create_dir(&directory)
            .and_then(|()| fs::set_permissions(&directory, everybody))
            .because(|| format!("cannot make `{}`", directory.display()))?;
        let source = directory.to_str().ok_or_else(|| Failure::new("the state root is not UTF-8"))?.to_owned();
        let mut config = config.clone();
        config.mounts.push(Mount {
            destination: self.place(),
            kind: Some("bind".to_owned()),
            source: Some(source),
            options: ["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec(),
            ..Mount::default()
        });
        if let Some(process) = &mut config.process {
            process.env.retain(|entry| !entry.starts_with("NOTIFY_SOCKET="));
            process.env.push(format!("{VARIABLE}={}/{NAME}", self.place()));
        }
        Ok(Some(config))
    }

    fn connect(&self) -> io::Result<UnixDatagram> {
        let address = match self.0.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&self.0)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_write_timeout(Some(SEND_WITHIN))?;
        Ok(socket)
    }
}

/// A socket that the container reaches.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    manager: Manager,
    /// The manager knows.
    told: Cell<bool>,
}

impl Listener {
    /// Make the socket of a container whose program does not run yet. `None` when nobody wants to hear, or the container
    /// was made without a place for it.
    ///
    /// # Errors
    /// It cannot be made, or another process is starting the container.
    pub fn open(dir: &StateDir, manager: Option<Manager>) -> Outcome<Option<Self>> {
        let Some(manager) = manager else { return Ok(None) };
        let what = || format!("cannot make the container's `{VARIABLE}`");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match rustix::fs::open(dir.file(NAME), flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            result => result.because(what)?,
        };
        // Socket paths are short, and the state root may not be.
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd())).because(what)?;
        let make = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        };
        let socket = make().because(what)?;
        match bind_for_all(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                if rustix::net::connect(make().because(what)?, &address).is_ok() {
                    return Err(Failure::new("the container is being started by another process"));
                }
                // Left by a start that was cut short.
                rustix::fs::unlinkat(&directory, NAME, AtFlags::empty()).because(what)?;
                bind_for_all(&socket, &address).because(what)?;
            }
            result => result.because(what)?,
        }
        Ok(Some(Self { socket, manager, told: Cell::new(false) }))
    }

    /// To poll on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Take what has come; whether the container has said by now that it is ready.
    pub fn hear(&self) -> bool {
        let mut buffer = [0; 4096];
        let mut ready = false;
        for _ in 0..MESSAGES_MAX {
            match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((count, _)) => ready |= buffer[..count].split(|&byte| byte == b'\n').any(|line| line == b"READY=1"),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        ready
    }

    /// In the foreground: the manager's main process stays the runtime, which has the exit status.
    pub fn pass_on(&self) {
        if self.hear() && !self.told.replace(true) {
            self.tell(|manager| socket::send(manager.connect()?.as_fd(), b"READY=1", None));
        }
    }

    /// Before the runtime goes: the main process is the container's from now on, and the manager must have understood
    /// that while the sender still is there to be asked who it was.
    pub fn hand_over(&self, pid: i32, signals: &Signals) {
        let text = format!("READY=1\nMAINPID={pid}");
        self.tell(|manager| {
            let socket = manager.connect()?;
            socket::send(socket.as_fd(), text.as_bytes(), None)?;
            let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            socket::send(socket.as_fd(), b"BARRIER=1", Some(theirs.as_fd()))?;
            drop(theirs);
            let mut fds = [PollFd::new(&ours, PollFlags::IN), PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&BARRIER_WITHIN))?;
            Ok(())
        });
    }

    /// A manager that has gone is no reason to stop.
    fn tell(&self, send: impl Fn(&Manager) -> io::Result<()>) {
        if let Err(error) = send(&self.manager) {
            let gone = if is_absent(&error) { ", nobody is there" } else { "" };
            eprintln!(
                "gantry-runtime: warning: cannot tell `{}` that the container is ready{gone}: {error}",
                self.manager.0
            );
        }
    }
}

/// Bind a socket that every user may write to. Not by a change of its mode afterwards, which would follow a path once
/// more.
fn bind_for_all(socket: &OwnedFd, address: &SocketAddrUnix) -> Result<(), Errno> {
    let before = process::exchange_umask(0);
    let bound = rustix::net::bind(socket, address);
    process::exchange_umask(before);
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_managers() {
        for (text, place) in [
            ("/run/systemd/notify", Some("/run/systemd/notify")),
            ("/run//user/./5/socket/", Some("/run/user/5/socket")),
            ("@abstract", Some(PLACE)),
            ("/", None),
            ("//", Some(PLACE)),
            ("@", None),
            ("", None),
            ("vsock:2:1234", None),
            ("run/notify", None),
        ] {
            assert_eq!(Manager::parse(text).map(|manager| manager.place()).as_deref(), place, "{text}");
        }
        assert_eq!(Manager::parse(&format!("/{}", "x".repeat(ADDRESS_MAX))), None);
    }
}
