//! `list`: every container of a state root.

use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::error::{Because, Outcome, is_absent};
use crate::report;
use crate::state::{State, StateDir, check_root};
use serde::Serialize;
use std::fs;
use std::os::unix::fs::MetadataExt;

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

/// A container as the list shows it.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    state: State,
    owner: String,
}

fn list(global: &Global, json: bool, quiet: bool) -> Outcome<i32> {
    check_root(&global.root)?;
    let mut rows = Vec::new();
    let entries = match fs::read_dir(&global.root) {
        Err(error) if is_absent(&error) => None,
        result => Some(result.because(|| format!("cannot read `{}`", global.root.display()))?),
    };
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    for entry in entries.into_iter().flatten().flatten() {
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        let Ok(dir) = StateDir::new(&global.root, &id) else {
            continue;
        };
        match dir.read() {
            Ok(Some(record)) => {
                let owner = entry.metadata().map_or_else(|_| String::new(), |found| name_of(&passwd, found.uid()));
                rows.push(Row { state: dir.state(&record), owner });
            }
            Ok(None) => {}
            Err(failure) => report::warning(global, &failure.to_string()),
        }
    }
    rows.sort_by(|a, b| a.state.id.cmp(&b.state.id));
    let text = if quiet {
        rows.iter().map(|row| format!("{}\n", row.state.id)).collect()
    } else if json {
        format!("{}\n", serde_json::to_string(&rows).because(|| "cannot encode the list".to_owned())?)
    } else {
        table(&rows)
    };
    report::print(&text)?;
    Ok(0)
}

/// The name of a user in the text of `/etc/passwd`, or `#` and the number.
fn name_of(passwd: &str, uid: u32) -> String {
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("#{uid}"))
}

/// Narrowest column, and the space after the widest entry of a wider one; as runc's table has them.
const COLUMN_MIN: usize = 12;
const COLUMN_GAP: usize = 3;

fn table(rows: &[Row]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let body = rows.iter().map(|Row { state, owner }| {
        let (id, pid, status) = (state.id.clone(), state.pid.unwrap_or(0).to_string(), state.status.name().to_owned());
        [id, pid, status, state.bundle.display().to_string(), state.created.clone(), owner.clone()]
    });
    let lines: Vec<[String; 6]> = std::iter::once(head).chain(body).collect();
    let mut text = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate().take(5) {
            let widest = lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
            let width = COLUMN_MIN.max(widest + COLUMN_GAP);
            text += &format!("{cell:width$}");
        }
        text += &line[5];
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Status;

    #[test]
    fn rows_line_up() {
        let state = State {
            oci_version: "1.3.0".into(),
            id: "a-rather-long-name".into(),
            status: Status::Running,
            pid: Some(7),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-11-24T08:00:00Z".into(),
            annotations: std::collections::BTreeMap::new(),
        };
        let rows = [Row { state, owner: name_of("a:x:1:\nroot:x:0:0\n", 0) }];
        assert_eq!(
            table(&rows),
            "ID                   PID         STATUS      BUNDLE      CREATED                OWNER\n\
             a-rather-long-name   7           running     /b          2026-11-24T08:00:00Z   root\n"
        );
        assert_eq!(name_of("root:x:0:0\n", 7), "#7");
    }
}
