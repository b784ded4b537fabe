//! `spec`: an example configuration to start from.

use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::config::{Config, example};
use crate::error::{Because, Failure, Outcome};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// `spec`.
#[derive(Debug, Default)]
pub struct Spec {
    bundle: PathBuf,
    rootless: bool,
}

impl Command for Spec {
    const NAME: &'static str = "spec";
    const SUMMARY: &'static str = "write an example config.json";
    const OPERANDS: &'static str = "";
    const OPTIONS: &'static [&'static [Opt<Self>]] = &[&[
        Opt::value("bundle", "DIR", "where to write it [default: .]", |spec: &mut Self, value| {
            value.path().map(|path| spec.bundle = path)
        })
        .short('b'),
        Opt::switch("rootless", "for a container of an ordinary user", |spec: &mut Self, value| {
            value.on().map(|on| spec.rootless = on)
        }),
    ]];

    fn operands(&mut self, _: &mut Operands) -> Result<(), UsageError> {
        Ok(())
    }

    fn run(&self, _: &Global) -> Outcome<i32> {
        spec(&self.bundle, self.rootless)
    }
}

fn spec(bundle: &Path, rootless: bool) -> Outcome<i32> {
    let file = bundle.join("config.json");
    if file.exists() {
        return Err(Failure::new(format!("file `{}` exists", file.display())).hint("remove it first, or use --bundle"));
    }
    let mut config = example::config(true);
    if rootless {
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        config = example::rootless(config, user, group);
    }
    let mut text = serde_json::to_string_pretty(&with_zeros(&config)?).because(|| "cannot encode".to_owned())?;
    text.push('\n');
    fs::write(&file, text).because(|| format!("cannot write `{}`", file.display()))?;
    Ok(0)
}

/// The configuration with the keys that the specification demands and that are left out elsewhere when they are zero:
/// whoever edits the file looks for them.
fn with_zeros(config: &Config) -> Outcome<Value> {
    let mut value = serde_json::to_value(config).because(|| "cannot encode".to_owned())?;
    value["process"]["user"] = json!({"uid": 0, "gid": 0});
    for rule in value.pointer_mut("/linux/resources/devices").and_then(Value::as_array_mut).into_iter().flatten() {
        if rule.get("allow").is_none() {
            rule["allow"] = json!(false);
        }
    }
    Ok(value)
}
