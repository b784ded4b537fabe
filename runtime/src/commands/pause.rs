//! `pause` and `resume`: stop all processes of a container where they are, and let them go on.

use super::one::OnOne;
use super::open;
use crate::args::Global;
use crate::error::{Failure, InStep, Outcome};
use crate::state::Status;

/// `pause`.
#[derive(Debug, Default)]
pub struct Pause;

impl OnOne for Pause {
    const NAME: &'static str = "pause";
    const SUMMARY: &'static str = "stop all processes of a container until it is resumed";

    fn run(global: &Global, id: &str) -> Outcome<i32> {
        let (dir, record) = open(global, id)?;
        match dir.status(&record) {
            Status::Running | Status::Created => {
                record.own_cgroup()?.freeze().in_step("pause")?;
                Ok(0)
            }
            status => Err(Failure::new("container not running").hint(format!("`{}` is {}", id, status.name()))),
        }
    }
}

/// `resume`.
#[derive(Debug, Default)]
pub struct Resume;

impl OnOne for Resume {
    const NAME: &'static str = "resume";
    const SUMMARY: &'static str = "let the processes of a paused container go on";

    fn run(global: &Global, id: &str) -> Outcome<i32> {
        let (dir, record) = open(global, id)?;
        let status = dir.status(&record);
        if status != Status::Paused {
            return Err(Failure::new("container not paused").hint(format!("`{}` is {}", id, status.name())));
        }
        let cgroup = record.own_cgroup()?;
        cgroup.thaw();
        if cgroup.is_frozen() {
            return Err(Failure::new(format!("cannot resume `{}`", id))
                .hint("a cgroup above it is frozen, or its freezer cannot be written"));
        }
        Ok(0)
    }
}
