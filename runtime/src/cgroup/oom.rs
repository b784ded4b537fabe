//! Hear when a container runs out of memory: an eventfd on v1, a watched file on v2.

use super::hierarchy::read;
use super::table::Version;
use super::{Cgroup, write_file};
use crate::error::{Because, Failure, Outcome};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// A watch on one cgroup.
#[derive(Debug)]
pub struct OomWatch {
    /// An eventfd or an inotify descriptor.
    fd: OwnedFd,
    /// Counts deaths, and is gone with the cgroup.
    file: PathBuf,
    /// Deaths known of, on v2.
    seen: u64,
    version: Version,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Memory ran out.
    Oom,
    /// Nothing of interest.
    Nothing,
    /// The cgroup is gone.
    End,
}

impl OomWatch {
    /// Watch a container.
    ///
    /// # Errors
    /// There is no memory controller, or the container is gone.
    pub fn new(cgroup: &Cgroup) -> Outcome<Self> {
        let Some((directory, version)) = cgroup.memory() else {
            return Err(Failure::new("this host has no `memory` cgroup controller")
                .hint("`events --stats` works without; lack of memory cannot be watched"));
        };
        let what = || format!("cannot watch `{}`", directory.display());
        match version {
            Version::V1 => {
                let fd = eventfd(0, EventfdFlags::CLOEXEC).because(what)?;
                let file = directory.join("memory.oom_control");
                let target = rustix::fs::open(&file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).because(what)?;
                let order = format!("{} {}", fd.as_raw_fd(), target.as_raw_fd());
                write_file(&directory.join("cgroup.event_control"), &order).because(what)?;
                Ok(Self { fd, file, seen: 0, version })
            }
            Version::V2 => {
                let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
                let fd = inotify::init(flags).because(what)?;
                let file = directory.join("memory.events");
                inotify::add_watch(&fd, &file, inotify::WatchFlags::MODIFY).because(what)?;
                let populated = directory.join("cgroup.events");
                inotify::add_watch(&fd, &populated, inotify::WatchFlags::MODIFY).because(what)?;
                let seen = deaths(&read(&file).because(what)?);
                Ok(Self { fd, file, seen, version })
            }
        }
    }

    /// The descriptor, to poll on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Take what the descriptor has; it must be readable.
    ///
    /// # Errors
    /// It fails.
    pub fn hear(&mut self) -> Outcome<Heard> {
        let mut buffer = [0; 4096];
        match rustix::io::read(&self.fd, &mut buffer) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error).because(|| "cannot read memory events".to_owned()),
        }
        let Ok(text) = read(&self.file) else { return Ok(Heard::End) };
        if self.version == Version::V1 {
            return Ok(Heard::Oom);
        }
        let deaths = deaths(&text);
        let more = deaths > self.seen;
        self.seen = deaths;
        Ok(if more { Heard::Oom } else { Heard::Nothing })
    }
}

/// Processes killed, from `memory.events`.
fn deaths(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_in_memory_events() {
        assert_eq!(deaths("low 0\nhigh 0\nmax 8\noom 2\noom_kill 3\noom_group_kill 0\n"), 3);
        assert_eq!(deaths(""), 0);
    }
}
