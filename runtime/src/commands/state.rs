//! `state`: where a container is in its life.

use super::open;
use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::error::{Because, Outcome};
use crate::report;

/// `state`.
#[derive(Debug, Default)]
pub struct State {
    id: String,
}

impl Command for State {
    const NAME: &'static str = "state";
    const SUMMARY: &'static str = "print the state of a container as JSON";
    const OPERANDS: &'static str = "ID";
    const OPTIONS: &'static [&'static [Opt<Self>]] = &[];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.id = operands.id()?;
        Ok(())
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        let (dir, record) = open(global, &self.id)?;
        let text =
            serde_json::to_string_pretty(&dir.state(&record)).because(|| "cannot encode the state".to_owned())?;
        report::print(&format!("{text}\n"))?;
        Ok(0)
    }
}
