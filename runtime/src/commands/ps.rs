//! `ps`: the processes of a container, as the host's `ps` shows them.

use super::open;
use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::error::{Because, Failure, InStep, Outcome};
use std::io::Write;
use std::process::Stdio;

/// `ps`.
#[derive(Debug, Default)]
pub struct Ps {
    id: String,
    json: bool,
    options: Vec<String>,
}

impl Command for Ps {
    const NAME: &'static str = "ps";
    const SUMMARY: &'static str = "list the processes of a container";
    const OPERANDS: &'static str = "ID [PS OPTIONS...]";
    const NOTES: &'static str = "What follows ID goes to the host's ps [default: -ef]; its output needs a column PID.";
    const REST_AFTER: usize = 1;
    const OPTIONS: &'static [&'static [Opt<Self>]] =
        &[&[Opt::value("format", "table|json", "lines of ps, or numbers as JSON", |ps: &mut Self, value| {
            value.one_of(&["table", "json"]).map(|format| ps.json = format == "json")
        })
        .short('f')]];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.id = operands.id()?;
        self.options = operands.rest();
        Ok(())
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        let (_, record) = open(global, &self.id)?;
        let pids = record.own_cgroup()?.processes();
        let text = if self.json {
            // As Go prints an empty list.
            let numbers: Vec<String> = pids.iter().map(i32::to_string).collect();
            if pids.is_empty() { "null\n".to_owned() } else { format!("[{}]\n", numbers.join(",")) }
        } else {
            pick(&host_ps(&self.options)?, &pids)?
        };
        std::io::stdout().write_all(text.as_bytes()).because(|| "cannot write the list".to_owned())?;
        Ok(0)
    }
}

fn host_ps(options: &[String]) -> Outcome<String> {
    let mut command = std::process::Command::new("ps");
    if options.is_empty() {
        command.arg("-ef");
    }
    let output = command
        .args(options)
        .stdin(Stdio::null())
        .output()
        .because(|| "cannot run `ps`".to_owned())
        .or_hint("install procps, or use --format json")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::new(format!("`ps` failed with {}: {said}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The heading and the lines of these processes.
fn pick(output: &str, pids: &[i32]) -> Outcome<String> {
    let mut lines = output.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|name| name == "PID").ok_or_else(|| {
        Failure::new("couldn't find PID field in ps output").hint("let the options of ps include pid")
    })?;
    let mut text = format!("{heading}\n");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            text += line;
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_container_only() {
        let output = "UID   PID  PPID CMD\nroot    1     0 init\nroot   17     1 a 42\nroot   42    17 b\n\n";
        assert_eq!(pick(output, &[17]).expect("lines"), "UID   PID  PPID CMD\nroot   17     1 a 42\n");
        assert_eq!(pick(output, &[]).expect("lines"), "UID   PID  PPID CMD\n");
        assert!(pick("CMD\nx\n", &[1]).expect_err("no PID").to_string().contains("couldn't find PID field"));
        assert!(pick("", &[1]).is_err());
    }
}
