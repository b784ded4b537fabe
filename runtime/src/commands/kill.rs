//! `kill`: a signal to the first process, or to all.

use super::open;
use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::cgroup::Cgroup;
use crate::cgroup::freezer;
use crate::error::{Because, Failure, Outcome};
use crate::rootless;
use crate::state::Record;
use crate::sys::{clone, signal};
use std::io;
use std::os::fd::AsFd;

/// `kill`.
#[derive(Debug, Default)]
pub struct Kill {
    id: String,
    signal: i32,
    all: bool,
}

impl Command for Kill {
    const NAME: &'static str = "kill";
    const SUMMARY: &'static str = "send a signal to a container";
    const OPERANDS: &'static str = "ID [SIGNAL]";
    const NOTES: &'static str = "SIGNAL is a name with or without SIG, or a number [default: TERM].";
    const OPTIONS: &'static [&'static [Opt<Self>]] =
        &[&[Opt::switch("all", "send it to every process of the container", |kill: &mut Self, value| {
            value.on().map(|on| kill.all = on)
        })
        .short('a')]];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.id = operands.id()?;
        let name = operands.next().unwrap_or_else(|| "TERM".to_owned());
        self.signal = signal::parse(&name).ok_or_else(|| UsageError::new(format!("unknown signal \"{name}\"")))?;
        Ok(())
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        let (dir, record) = open(global, &self.id)?;
        if self.all && !record.cgroup_left_out.is_empty() {
            return rootless_all(&record, self.signal).map(|()| 0);
        }
        if self.all {
            let cgroup = record.own_cgroup()?;
            cgroup.signal_all(self.signal);
            if self.signal == libc::SIGKILL {
                cgroup.thaw();
            }
            return Ok(0);
        }
        let sent = match record.init.and_then(|init| init.open()) {
            Some(pidfd) => clone::pidfd_send_signal(pidfd.as_fd(), self.signal),
            None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        };
        match sent {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                let status = dir.status(&record).name();
                Err(Failure::new(format!("container not running: `{}` is {status}", self.id)))
            }
            result => {
                result.because(|| format!("cannot send signal {}", self.signal))?;
                // On v1 a frozen process dies when it is let go.
                if self.signal == libc::SIGKILL && freezer::is_frozen(&record.cgroup) {
                    record.own_cgroup()?.thaw();
                }
                Ok(0)
            }
        }
    }
}

/// All of a container that is not in every hierarchy: by its cgroup if it has one, else by its PID namespace.
fn rootless_all(record: &Record, signal: i32) -> Outcome<()> {
    let cgroup = Cgroup::at(record.cgroup.clone())?.without(&record.cgroup_left_out);
    if !cgroup.is_nowhere() {
        cgroup.signal_all(signal);
        return Ok(());
    }
    let Some(init) = record.init.filter(|init| init.open().is_some()) else { return Ok(()) };
    for pid in rootless::members(init.pid) {
        if let Ok(pidfd) = clone::pidfd_open(pid)
            // Looked at again while the descriptor is held: the number may be another's by now.
            && rootless::members(init.pid).contains(&pid)
        {
            let _ = clone::pidfd_send_signal(pidfd.as_fd(), signal);
        }
    }
    Ok(())
}
