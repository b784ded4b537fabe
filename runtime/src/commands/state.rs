//! `state`: where a container is in its life.

use super::one::OnOne;
use super::open;
use crate::args::Global;
use crate::error::{Because, Outcome};
use crate::report;

/// `state`.
#[derive(Debug, Default)]
pub struct State;

impl OnOne for State {
    const NAME: &'static str = "state";
    const SUMMARY: &'static str = "print the state of a container as JSON";

    fn run(global: &Global, id: &str) -> Outcome<i32> {
        let (dir, record) = open(global, id)?;
        let text =
            serde_json::to_string_pretty(&dir.state(&record)).because(|| "cannot encode the state".to_owned())?;
        report::print(&format!("{text}\n"))?;
        Ok(0)
    }
}
