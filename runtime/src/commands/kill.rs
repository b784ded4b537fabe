//! `kill`: a signal to the first process, or to all.

use super::open;
use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::cgroup::Cgroup;
use crate::error::{Because, Failure, Outcome};
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
        if self.all {
            let cgroup = Cgroup::at(record.cgroup.clone())?;
            cgroup.signal_all(self.signal);
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
            result => result.because(|| format!("cannot send signal {}", self.signal)).map(|()| 0),
        }
    }
}
