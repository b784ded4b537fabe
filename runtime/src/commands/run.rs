//! `run`: `create` and `start` in one, staying until the program ends unless detached.

use super::launching::{Common, CommonOptions, HasCommon, clean_up, let_go, load, poststart};
use super::supervised::supervised;
use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::error::{InStep, Outcome};
use crate::foreground::{self, Signals};
use crate::launch::{self, Launched, Manner};
use crate::readiness::Listener;
use crate::report;
use crate::sealed;
use crate::sys::clone;
use std::os::fd::AsFd;

/// `run`.
#[derive(Debug, Default)]
pub struct Run {
    common: Common,
    detach: bool,
    keep: bool,
}

impl HasCommon for Run {
    fn common(&mut self) -> &mut Common {
        &mut self.common
    }
}

impl Command for Run {
    const NAME: &'static str = "run";
    const SUMMARY: &'static str = "create and start; stays until the program ends unless detached";
    const OPERANDS: &'static str = "ID";
    const OPTIONS: &'static [&'static [Opt<Self>]] = &[
        CommonOptions::<Self>::LAUNCH,
        &[
            Opt::switch("detach", "return when the program runs", |run: &mut Self, value| {
                value.on().map(|on| run.detach = on)
            })
            .short('d'),
            Opt::switch("keep", "do not remove the container when the program has ended", |run: &mut Self, value| {
                value.on().map(|on| run.keep = on)
            }),
            Opt::switch("no-subreaper", "accepted for compatibility: this is no subreaper", |_, value| {
                value.on().map(drop)
            }),
        ],
        CommonOptions::<Self>::SUPERVISOR,
    ];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.common.finish(operands.id()?)?;
        if self.common.settings.is_some() && !self.detach {
            return Err(UsageError::new("`run --supervise` needs --detach"));
        }
        Ok(())
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        sealed::ensure()?;
        let options = self.common.options(global);
        match &self.common.settings {
            Some(settings) => supervised(global, &options, settings, false),
            None => run_here(global, &options, self.detach, self.keep),
        }
    }
}

fn run_here(global: &Global, options: &launch::Options, detach: bool, keep: bool) -> Outcome<i32> {
    let signals = Signals::hold()?;
    let bundle = load(global, &options.bundle)?;
    let manner = Manner { later: false, keep_terminal: !detach, stdio: None, supervised: false };
    let launched = launch::launch(options, &bundle, manner, &signals)?;
    let Launched { dir, held, record, pidfd, terminal, channel, cgroup } = launched;
    if let Some(master) = &terminal {
        foreground::suit_output(master.as_fd());
    }
    let started = Listener::open(&dir, options.manager.clone()).in_step("notify socket").and_then(|listener| {
        let_go(&channel, &signals, &dir, &record, &cgroup, || Ok(bundle.config.linux.seccomp.clone()))?;
        poststart(&dir, &record, &bundle.config.hooks.poststart)?;
        Ok(listener)
    });
    let listener = match started {
        Ok(listener) => listener,
        Err(failure) => {
            let _ = clone::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = clone::wait(pidfd.as_fd());
            clean_up(global, &dir, held, &record, &cgroup);
            return Err(failure);
        }
    };
    if detach {
        if let (Some(listener), Some(init)) = (&listener, &record.init) {
            foreground::await_ready(listener, init.pid, pidfd.as_fd(), &signals)?;
        }
        return Ok(0);
    }
    let exit = foreground::attend(pidfd.as_fd(), &signals, terminal, listener.as_ref())?;
    // Not when a child alone was killed and the program dealt with it.
    if exit == clone::Exit::Signal(libc::SIGKILL) && cgroup.account().oom_killed {
        report::ended(global, "the container was killed because it used more memory than its limit");
    }
    if !keep {
        clean_up(global, &dir, held, &record, &cgroup);
    }
    // Closed and given back by the end of this process, which comes now.
    std::mem::forget((channel, pidfd, signals, bundle, dir, record, cgroup));
    Ok(exit.shell_code())
}
