//! `spec`: an example configuration to start from.

use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::config::example;
use crate::error::{Because, Failure, Outcome};
use std::fs;
use std::path::{Path, PathBuf};

/// `spec`.
#[derive(Debug, Default)]
pub struct Spec {
    bundle: PathBuf,
}

impl Command for Spec {
    const NAME: &'static str = "spec";
    const SUMMARY: &'static str = "write an example config.json";
    const OPERANDS: &'static str = "";
    const OPTIONS: &'static [&'static [Opt<Self>]] =
        &[&[Opt::value("bundle", "DIR", "where to write it [default: .]", |spec: &mut Self, value| {
            value.path().map(|path| spec.bundle = path)
        })
        .short('b')]];

    fn operands(&mut self, _: &mut Operands) -> Result<(), UsageError> {
        Ok(())
    }

    fn run(&self, _: &Global) -> Outcome<i32> {
        spec(&self.bundle)
    }
}

fn spec(bundle: &Path) -> Outcome<i32> {
    let file = bundle.join("config.json");
    if file.exists() {
        return Err(Failure::new(format!("`{}` exists", file.display())).hint("remove it first, or use --bundle"));
    }
    let mut text = serde_json::to_string_pretty(&example::config(true)).because(|| "cannot encode".to_owned())?;
    text.push('\n');
    fs::write(&file, text).because(|| format!("cannot write `{}`", file.display()))?;
    Ok(0)
}
