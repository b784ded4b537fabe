//! `list`: every container of a state root.

use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::error::{Because, Outcome, is_absent};
use crate::report;
use crate::state::StateDir;
use std::fs;

/// `list`.
#[derive(Debug, Default)]
pub struct List {
    json: bool,
    quiet: bool,
}

impl Command for List {
    const NAME: &'static str = "list";
    const SUMMARY: &'static str = "list containers";
    const OPERANDS: &'static str = "";
    const OPTIONS: &'static [&'static [Opt<Self>]] = &[&[
        Opt::value("format", "table|json", "how to print them [default: table]", |list: &mut Self, value| {
            value.one_of(&["table", "json"]).map(|format| list.json = format == "json")
        })
        .short('f'),
        Opt::switch("quiet", "ids only", |list: &mut Self, value| value.on().map(|on| list.quiet = on)).short('q'),
    ]];

    fn operands(&mut self, _: &mut Operands) -> Result<(), UsageError> {
        Ok(())
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        list(global, self.json, self.quiet)
    }
}

fn list(global: &Global, json: bool, quiet: bool) -> Outcome<i32> {
    let mut states = Vec::new();
    let entries = match fs::read_dir(&global.root) {
        Err(error) if is_absent(&error) => None,
        result => Some(result.because(|| format!("cannot read `{}`", global.root.display()))?),
    };
    for entry in entries.into_iter().flatten().flatten() {
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        let Ok(dir) = StateDir::new(&global.root, &id) else {
            continue;
        };
        match dir.read() {
            Ok(Some(record)) => states.push(dir.state(&record)),
            Ok(None) => {}
            Err(failure) => report::warning(global, &failure.to_string()),
        }
    }
    states.sort_by(|a, b| a.id.cmp(&b.id));
    if quiet {
        states.iter().for_each(|state| println!("{}", state.id));
    } else if json {
        println!("{}", serde_json::to_string(&states).because(|| "cannot encode the list".to_owned())?);
    } else {
        let width = states.iter().map(|state| state.id.len()).max().unwrap_or(0).max(4);
        println!("{:width$}  {:8}  {:8}  {:30}  BUNDLE", "ID", "PID", "STATUS", "CREATED");
        for state in &states {
            let (pid, status) = (state.pid.unwrap_or(0), state.status.name());
            println!("{:width$}  {pid:<8}  {status:8}  {:30}  {}", state.id, state.created, state.bundle.display());
        }
    }
    Ok(0)
}
