//! Checkpoints and restores by the `criu` program, driven over a socket as its `swrk` service.
//!
//! ```text
//! runtime ── clone ─► (cgroup, mount namespace of its own) ── exec ─► criu swrk 3
//!    request ───────────────────────────────────────────────────────►
//!    ◄─────────────────────── notification, sometimes with a terminal     any number of times
//!    ok ────────────────────────────────────────────────────────────►
//!    ◄────────────────────────────────────── answer, with a process number
//! ```

pub mod message;
pub mod outside;

use crate::container::channel::Channel;
use crate::error::{Because, Failure, InStep, Outcome};
use crate::sys::clone::{self, Side};
use crate::sys::{process, signal, socket};
use message::{Fields, Message, Value};
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest answer that CRIU sends.
const ANSWER_MAX: usize = 64 * 1024;
/// Where CRIU finds its socket; what it inherits comes after it.
const SOCKET: i32 = 3;
/// Above every number that is given away.
const OUT_OF_THE_WAY: i32 = 100;
/// First byte of our own child's message that it could not become CRIU: no field begins so.
const NOT_STARTED: u8 = 0xff;

/// `criu_req_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Save.
    Dump = 1,
    /// Make again.
    Restore = 2,
    /// Save memory only, leave it running.
    PreDump = 4,
    /// The answer to a notification.
    Notify = 6,
}

/// What CRIU tells on its way.
#[derive(Debug)]
pub struct Notification {
    /// Name of the point.
    pub point: String,
    /// The first process, once there is one.
    pub pid: i32,
    /// A terminal without an owner.
    pub terminal: Option<OwnedFd>,
}

/// One request to one process of CRIU.
pub struct Call<'a> {
    /// The program.
    pub program: &'a Path,
    /// What to do.
    pub kind: Kind,
    /// `criu_opts`.
    pub options: Message,
    /// Descriptors CRIU gets, under names that its images know.
    pub inherit: Vec<(String, BorrowedFd<'a>)>,
    /// The log that its options name.
    pub log: PathBuf,
    /// Prepare the process that becomes CRIU.
    pub prepare: &'a dyn Fn() -> Outcome<()>,
}

/// Find the program as `execvp` would.
///
/// # Errors
/// It is not installed.
pub fn find(given: Option<&Path>) -> Outcome<PathBuf> {
    let name = given.unwrap_or(Path::new("criu"));
    let candidates: Vec<PathBuf> = if name.as_os_str().as_bytes().contains(&b'/') {
        vec![name.to_owned()]
    } else {
        let search = std::env::var_os("PATH").unwrap_or_default();
        // Where it is installed, and where an ordinary PATH does not look.
        std::env::split_paths(&search).chain(["/usr/sbin".into(), "/sbin".into()]).map(|dir| dir.join(name)).collect()
    };
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        Failure::new(format!("checkpoints need the program `{}`, which is not installed", name.display()))
            .hint("install it, for example with `apt-get install criu`, or say where it is with --criu")
    })
}

impl Call<'_> {
    /// Make the request and serve notifications; returns the number of a restored process.
    ///
    /// # Errors
    /// CRIU cannot be started or says no. Its log has more.
    pub fn run(&self, on: &mut dyn FnMut(Notification) -> Outcome<()>) -> Outcome<Option<i32>> {
        let (ours, theirs) = Channel::pair()?;
        let what = || format!("cannot start `{}`", self.program.display());
        match clone::clone3(0, None).because(what)? {
            Side::Child => {
                drop(ours);
                let failure = match self.become_criu(&theirs) {
                    Ok(never) => match never {},
                    Err(failure) => failure,
                };
                let bytes = [&[NOT_STARTED][..], &failure.encode()].concat();
                let _ = socket::send(theirs.fd(), &bytes, None);
                process::exit_now(1)
            }
            Side::Parent { pidfd, .. } => {
                drop(theirs);
                let answer = self.converse(&ours, on);
                if answer.is_err() {
                    let _ = clone::pidfd_send_signal(pidfd.as_fd(), libc::SIGTERM);
                }
                drop(ours);
                clone::wait(pidfd.as_fd()).because(|| "cannot reap criu".to_owned())?;
                answer
            }
        }
    }

    fn become_criu(&self, channel: &Channel) -> Outcome<std::convert::Infallible> {
        (self.prepare)()?;
        let what = || "cannot hand descriptors to criu".to_owned();
        let mut kept = vec![rustix::io::fcntl_dupfd_cloexec(channel.fd(), OUT_OF_THE_WAY).because(what)?];
        for (_, fd) in &self.inherit {
            kept.push(rustix::io::fcntl_dupfd_cloexec(fd, OUT_OF_THE_WAY).because(what)?);
        }
        process::close_on_exec_from(SOCKET as u32).because(what)?;
        for (number, fd) in kept.iter().enumerate() {
            process::dup_to(fd.as_fd(), SOCKET + number as i32).because(what)?;
        }
        signal::stop_ignoring(signal::ignored()?);
        signal::set_mask(&signal::SignalSet::empty()).because(what)?;
        let text = |bytes: &[u8]| CString::new(bytes).because(|| "a zero byte in an argument".to_owned());
        let program = text(self.program.as_os_str().as_bytes())?;
        let arguments = [program.clone(), text(b"swrk")?, text(SOCKET.to_string().as_bytes())?];
        let environment = std::env::vars_os()
            .map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<Outcome<Vec<_>>>()?;
        Err(process::execve(&program, &arguments, &environment))
            .because(|| format!("cannot run `{}`", self.program.display()))
    }

    fn request(&self) -> Message {
        let mut options = self.options.clone();
        for (number, (key, _)) in self.inherit.iter().enumerate() {
            options = options.message(
                option::INHERIT_FD,
                &Message::default().text(1, key).number(2, i64::from(SOCKET) + 1 + number as i64),
            );
        }
        Message::default().number(1, self.kind as i64).message(2, &options)
    }

    fn converse(&self, channel: &Channel, on: &mut dyn FnMut(Notification) -> Outcome<()>) -> Outcome<Option<i32>> {
        let gone =
            || Failure::new("criu ended without an answer").hint("`criu check` tells what it lacks on this kernel");
        // A child that has failed already is found out by what it left to read.
        let sent = socket::send(channel.fd(), self.request().bytes(), None);
        let mut buffer = vec![0; ANSWER_MAX];
        loop {
            let (count, fd) = match socket::receive(channel.fd(), &mut buffer) {
                Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => (0, None),
                result => result.because(|| "cannot read from criu".to_owned())?,
            };
            if count == 0 {
                return Err(self.with_log(gone()));
            }
            if buffer[0] == NOT_STARTED {
                return Err(Failure::decode(&buffer[1..count]));
            }
            sent.as_ref().map_err(|_| gone())?;
            let answer = Answer::read(&buffer[..count]);
            if answer.kind == Kind::Notify as i64 {
                let Notified { point, pid } = answer.notified;
                on(Notification { point, pid, terminal: fd })?;
                let go = Message::default().number(1, Kind::Notify as i64).flag(3, true);
                socket::send(channel.fd(), go.bytes(), None).because(|| "criu has gone".to_owned())?;
                continue;
            }
            if answer.success {
                return Ok(answer.restored);
            }
            let said = answer.message.as_deref().map(str::trim).filter(|text| !text.is_empty());
            let cause = said.map_or_else(|| format!("error {}", answer.errno), |text| text.replace('\n', "; "));
            let failure = Failure { cause: Some(cause), ..Failure::new("criu failed") };
            return Err(self.with_log(failure));
        }
    }

    /// The first thing its log complains of, and where that is.
    fn with_log(&self, failure: Failure) -> Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let Some(line) = log.lines().find(|line| line.contains("Error")) else { return failure };
        Failure { cause: Some(line.to_owned()), ..failure }
            .hint(format!("see `{}`; `criu check` tells what it lacks on this kernel", self.log.display()))
    }
}

/// Numbers of the fields of `criu_opts`, from CRIU's `rpc.proto`.
pub mod option {
    #![allow(missing_docs)] // named as there
    pub const IMAGES_DIR_FD: u64 = 1;
    pub const PID: u64 = 2;
    pub const LEAVE_RUNNING: u64 = 3;
    pub const EXT_UNIX_SK: u64 = 4;
    pub const TCP_ESTABLISHED: u64 = 5;
    pub const EVASIVE_DEVICES: u64 = 6;
    pub const SHELL_JOB: u64 = 7;
    pub const FILE_LOCKS: u64 = 8;
    pub const LOG_LEVEL: u64 = 9;
    pub const LOG_FILE: u64 = 10;
    pub const PAGE_SERVER: u64 = 11;
    pub const NOTIFY_SCRIPTS: u64 = 12;
    pub const ROOT: u64 = 13;
    pub const PARENT_IMG: u64 = 14;
    pub const TRACK_MEM: u64 = 15;
    pub const AUTO_DEDUP: u64 = 16;
    pub const WORK_DIR_FD: u64 = 17;
    pub const LINK_REMAP: u64 = 18;
    pub const EXT_MNT: u64 = 23;
    pub const MANAGE_CGROUPS: u64 = 24;
    pub const CG_ROOT: u64 = 25;
    pub const RST_SIBLING: u64 = 26;
    pub const INHERIT_FD: u64 = 27;
    pub const MANAGE_CGROUPS_MODE: u64 = 34;
    pub const EXTERNAL: u64 = 37;
    pub const EMPTY_NS: u64 = 38;
    pub const JOIN_NS: u64 = 39;
    pub const ORPHAN_PTS_MASTER: u64 = 50;
    pub const LSM_PROFILE: u64 = 53;
}

#[derive(Debug, Default)]
struct Notified {
    point: String,
    pid: i32,
}

/// `criu_resp`.
#[derive(Debug, Default)]
struct Answer {
    kind: i64,
    success: bool,
    restored: Option<i32>,
    notified: Notified,
    errno: i64,
    message: Option<String>,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let text = |value: Value<'_>| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut answer = Self::default();
        for (field, value) in Fields(bytes) {
            match field {
                1 => answer.kind = value.as_number(),
                2 => answer.success = value.as_number() != 0,
                4 => {
                    answer.restored =
                        Fields(value.as_bytes()).find(|(field, _)| *field == 1).map(|(_, pid)| pid.as_number() as i32)
                }
                5 => {
                    for (field, value) in Fields(value.as_bytes()) {
                        match field {
                            1 => answer.notified.point = text(value),
                            2 => answer.notified.pid = value.as_number() as i32,
                            _ => {}
                        }
                    }
                }
                7 => answer.errno = value.as_number(),
                9 => answer.message = Some(text(value)),
                _ => {}
            }
        }
        answer
    }
}

/// `criu_cg_mode` by the words of `--manage-cgroups-mode`.
pub fn cgroups_mode(word: &str) -> Option<i64> {
    Some(match word {
        "ignore" => 0,
        "soft" => 3,
        "full" => 4,
        "strict" => 5,
        _ => return None,
    })
}

/// Open a directory of images or logs, made if it is not there.
///
/// # Errors
/// It cannot be made or opened.
pub fn directory(path: &Path) -> Outcome<OwnedFd> {
    fs::create_dir_all(path).because(|| format!("cannot make `{}`", path.display()))?;
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .because(|| format!("cannot open `{}`", path.display()))
        .in_step("images")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let notification = Message::default()
            .number(1, 6)
            .flag(2, true)
            .message(5, &Message::default().text(1, "post-restore").number(2, 7));
        let answer = Answer::read(notification.bytes());
        assert_eq!((answer.kind, answer.notified.point.as_str(), answer.notified.pid), (6, "post-restore", 7));
        let restored = Message::default().number(1, 2).flag(2, true).message(4, &Message::default().number(1, 42));
        assert_eq!(Answer::read(restored.bytes()).restored, Some(42));
        let failed = Message::default().number(1, 1).number(2, 0).number(7, 3).text(9, "no");
        let answer = Answer::read(failed.bytes());
        assert_eq!((answer.success, answer.errno, answer.message.as_deref()), (false, 3, Some("no")));
    }

    #[test]
    fn an_absent_program_is_named() {
        let failure = find(Some(Path::new("/nowhere/criu"))).expect_err("not there");
        assert!(failure.to_string().contains("`/nowhere/criu`, which is not installed"), "{failure}");
        assert!(failure.hint.is_some());
    }
}
