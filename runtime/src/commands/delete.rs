//! `delete`: remove what is left of a container.

use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::error::{Failure, Outcome};
use crate::remove::remove;
use crate::report;
use crate::state::{Grip, Record, StateDir, Status};
use std::thread;
use std::time::{Duration, Instant};

/// How long somebody else may take to remove it.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// `delete`.
#[derive(Debug, Default)]
pub struct Delete {
    id: String,
    force: bool,
}

impl Command for Delete {
    const NAME: &'static str = "delete";
    const SUMMARY: &'static str = "remove a container that has stopped";
    const OPERANDS: &'static str = "ID";
    const OPTIONS: &'static [&'static [Opt<Self>]] =
        &[&[Opt::switch("force", "kill it first; succeeds when it does not exist", |delete: &mut Self, value| {
            value.on().map(|on| delete.force = on)
        })
        .short('f')]];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.id = operands.id()?;
        Ok(())
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        delete(global, &self.id, self.force)
    }
}

/// How a container is when nobody removes it. Half removed, with its process just alive and its start socket gone, it
/// looks as if it ran.
fn settled(dir: &StateDir, record: &Record) -> Outcome<Status> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    loop {
        let status = dir.status(record);
        if status != Status::Running || Instant::now() > deadline {
            return Ok(status);
        }
        match dir.try_lock()? {
            Grip::Locked(_) => return Ok(dir.status(record)),
            Grip::Absent => return Ok(Status::Stopped),
            Grip::Busy => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn delete(global: &Global, id: &str, force: bool) -> Outcome<i32> {
    let dir = StateDir::new(&global.root, id)?;
    let record = match dir.read() {
        Ok(record) => record,
        // Not there, or not to be understood: what can be found without it still goes.
        Err(_) if force => None,
        Err(failure) => return Err(failure),
    };
    if !force {
        let status = record.as_ref().map_or(Ok(Status::Stopped), |record| settled(&dir, record))?;
        if matches!(status, Status::Running | Status::Paused | Status::Creating) {
            return Err(Failure::new(format!("cannot delete container {id} that is not stopped: {}", status.name()))
                .hint(format!("stop it with `kill {id} KILL`, or use `delete --force {id}`")));
        }
    }
    match remove(&dir, record.as_ref(), id)? {
        Some(warnings) => warnings.iter().for_each(|warning| report::warning(global, warning)),
        None if force => {}
        None => return Err(Failure::new(format!("container does not exist: `{id}`")).hint("it was deleted meanwhile")),
    }
    Ok(0)
}
