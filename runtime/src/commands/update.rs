//! `update`: other limits for a container that runs.

use super::open;
use crate::args::{Command, Global, Operands, Opt, UsageError, Value};
use crate::cgroup::update::merge;
use crate::config::{BlockIo, Cpu, Memory, Pids, Resources};
use crate::error::{Because, Failure, InStep, Outcome};
use crate::remove::saved_config;
use crate::report;
use crate::state::{StateDir, Status, write_atomically};
use std::fs;
use std::io::Read;
use std::path::Path;

/// What holds after updates, in the state directory; `config.json` stays what the container was created with.
const FILE: &str = "resources.json";

/// Where classes of cache and bandwidth are.
const RESCTRL: &str = "/sys/fs/resctrl";

/// `update`.
#[derive(Debug, Default)]
pub struct Update {
    id: String,
    /// A file, or `-`.
    resources: Option<String>,
    memory: Memory,
    cpu: Cpu,
    pids: Pids,
    block_io: BlockIo,
    l3_cache: Option<String>,
    memory_bandwidth: Option<String>,
    ignored: Vec<&'static str>,
}

macro_rules! number {
    ($name:literal, $says:literal, $part:ident.$field:ident) => {
        Opt::value($name, "N", $says, |update: &mut Self, value| {
            value.number().map(|number| update.$part.$field = Some(number))
        })
    };
}

macro_rules! bytes {
    ($name:literal, $says:literal, $field:ident) => {
        Opt::value($name, "BYTES", $says, |update: &mut Self, value| {
            bytes(value).map(|number| update.memory.$field = Some(number))
        })
    };
}

impl Command for Update {
    const NAME: &'static str = "update";
    const SUMMARY: &'static str = "change the limits of a container";
    const OPERANDS: &'static str = "ID";
    const NOTES: &'static str = "What is not given stays as it is. BYTES may end in k, m, g, t or p; -1 is no limit.\n\
        FILE holds what `linux.resources` of config.json does; other options are ignored beside it.";
    const OPTIONS: &'static [&'static [Opt<Self>]] = &[&[
        Opt::value(
            "resources",
            "FILE|-",
            "read limits as JSON from a file or standard input",
            |update: &mut Self, value| value.text().map(|text| update.resources = Some(text)),
        )
        .short('r'),
        number!("blkio-weight", "share of block devices, 10 to 1000", block_io.weight),
        number!("cpu-period", "period of the CPU quota in microseconds", cpu.period),
        number!("cpu-quota", "CPU time per period in microseconds", cpu.quota),
        number!("cpu-burst", "CPU time that may be saved up, in microseconds", cpu.burst),
        number!("cpu-share", "share of the CPU against other containers", cpu.shares),
        number!("cpu-rt-period", "period of real-time scheduling in microseconds", cpu.realtime_period),
        number!("cpu-rt-runtime", "real-time scheduling per period in microseconds", cpu.realtime_runtime),
        Opt::value("cpuset-cpus", "LIST", "CPUs to run on", |update, value| {
            value.text().map(|text| update.cpu.cpus = Some(text))
        }),
        Opt::value("cpuset-mems", "LIST", "memory nodes to use", |update, value| {
            value.text().map(|text| update.cpu.mems = Some(text))
        }),
        number!("cpu-idle", "1 to run only when nothing else wants to", cpu.idle),
        bytes!("memory", "most memory", limit),
        bytes!("memory-reservation", "memory that is taken away last", reservation),
        bytes!("memory-swap", "most memory and swap together", swap),
        Opt::value("kernel-memory", "BYTES", "ignored", |update, _| {
            update.ignored.push("kernel-memory");
            Ok(())
        }),
        Opt::value("kernel-memory-tcp", "BYTES", "ignored", |update, _| {
            update.ignored.push("kernel-memory-tcp");
            Ok(())
        }),
        number!("pids-limit", "most processes and threads", pids.limit),
        Opt::value("l3-cache-schema", "TEXT", "cache allocation, as Linux writes it", |update, value| {
            value.text().map(|text| update.l3_cache = Some(text))
        }),
        Opt::value("mem-bw-schema", "TEXT", "memory bandwidth allocation, as Linux writes it", |update, value| {
            value.text().map(|text| update.memory_bandwidth = Some(text))
        }),
    ]];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.id = operands.id()?;
        Ok(())
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        let (dir, record) = open(global, &self.id)?;
        let status = dir.status(&record);
        if !matches!(status, Status::Created | Status::Running | Status::Paused) {
            return Err(Failure::new("container not running").hint(format!("`{}` is {}", self.id, status.name())));
        }
        for option in &self.ignored {
            report::warning(global, &format!("Setting --{option} is ignored and will be removed"));
        }
        let change = self.change()?;
        self.check_allocation()?;
        let update = merge(&current(&dir)?, &change);
        let cgroup = record.own_cgroup()?;
        cgroup.update(&update).in_step("update")?;
        self.allocate(&dir, &cgroup.processes())?;
        let bytes = serde_json::to_vec(&update.all).because(|| "cannot encode the limits".to_owned())?;
        write_atomically(&dir.file(FILE), &bytes, false)?;
        Ok(0)
    }
}

/// The limits that hold now.
fn current(dir: &StateDir) -> Outcome<Resources> {
    let file = dir.file(FILE);
    if let Ok(text) = fs::read(&file) {
        return serde_json::from_slice(&text).because(|| format!("cannot understand `{}`", file.display()));
    }
    saved_config(dir).map(|(_, config)| config.linux.resources)
}

impl Update {
    /// What is asked for.
    fn change(&self) -> Outcome<Resources> {
        let Some(file) = &self.resources else {
            return Ok(Resources {
                memory: Some(self.memory.clone()),
                cpu: Some(self.cpu.clone()),
                pids: Some(self.pids.clone()),
                block_io: Some(self.block_io.clone()),
                ..Resources::default()
            });
        };
        let mut text = Vec::new();
        if file == "-" {
            std::io::stdin().read_to_end(&mut text).because(|| "cannot read standard input".to_owned())?;
        } else {
            text = crate::files::read_given(file.as_ref(), crate::files::CONFIG_BYTES_MAX)
                .because(|| format!("cannot read `{file}`"))?;
        }
        // One value; what may follow it is not looked at, as in Go.
        serde_json::Deserializer::from_slice(&text)
            .into_iter()
            .next()
            .unwrap_or_else(|| Ok(Resources::default()))
            .because(|| format!("cannot understand `{file}`"))
            .or_hint("it must be JSON like `linux.resources` in config.json")
    }

    /// What is asked for by name of the resource; an empty text asks for nothing.
    fn allocations(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        let both = [
            ("L3", "Intel RDT/CAT: l3 cache schema is not enabled", &self.l3_cache),
            ("MB", "Intel RDT/MBA: memory bandwidth schema is not enabled", &self.memory_bandwidth),
        ];
        both.into_iter().filter_map(|(name, text, value)| {
            Some((name, text, value.as_deref()?)).filter(|(.., value)| !value.is_empty())
        })
    }

    /// Cache and bandwidth are allocated by hardware that few hosts have.
    fn check_allocation(&self) -> Outcome<()> {
        match self.allocations().find(|(name, ..)| !Path::new(RESCTRL).join("info").join(name).is_dir()) {
            None => Ok(()),
            Some((_, text, _)) => {
                Err(Failure::new(text).hint("it needs hardware support, and resctrl mounted at /sys/fs/resctrl"))
            }
        }
    }

    /// Write the shares of the container's class, made for it when there is none.
    fn allocate(&self, dir: &StateDir, pids: &[i32]) -> Outcome<()> {
        if self.allocations().next().is_none() {
            return Ok(());
        }
        let (text, _) = saved_config(dir)?;
        let config: serde_json::Value =
            serde_json::from_slice(&text).because(|| "cannot understand `config.json`".to_owned())?;
        let named = config.pointer("/linux/intelRdt/closID").and_then(serde_json::Value::as_str);
        let class =
            Path::new(RESCTRL).join(named.filter(|name| !name.is_empty()).unwrap_or(&self.id).trim_matches('/'));
        let write = |file: &str, value: &str| {
            let file = class.join(file);
            fs::write(&file, value).because(|| format!("cannot write `{value}` to `{}`", file.display()))
        };
        if !class.is_dir() {
            fs::create_dir(&class).because(|| format!("cannot make class `{}`", class.display()))?;
            pids.iter().try_for_each(|pid| write("tasks", &pid.to_string()))?;
        }
        self.allocations().try_for_each(|(_, _, schema)| write("schemata", &format!("{schema}\n")))
    }
}

/// A number of bytes as Docker's tools write it: `64m`, `1.5G`, `10MiB`, `-1`.
fn bytes(value: &Value) -> Result<i64, UsageError> {
    let text = value.text()?;
    parse_bytes(&text).ok_or_else(|| value.wrong("a number of bytes such as 67108864, 64m or 1.5G", &text))
}

fn parse_bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if !number.starts_with(|letter: char| letter.is_ascii_digit()) {
        return None;
    }
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let unit = unit.strip_suffix('i').unwrap_or(unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    if let Ok(number) = number.parse::<i64>() {
        return number.checked_mul(1 << shift);
    }
    let number = number.parse::<f64>().ok()? * (1_i64 << shift) as f64;
    (number.is_finite() && number < i64::MAX as f64).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes() {
        for (text, want) in [
            ("67108864", Some(64 << 20)),
            ("64m", Some(64 << 20)),
            ("64M", Some(64 << 20)),
            ("64MB", Some(64 << 20)),
            ("64 MiB", Some(64 << 20)),
            ("1.5G", Some(3 << 29)),
            ("10kib", Some(10 << 10)),
            ("7b", Some(7)),
            ("-1", Some(-1)),
            ("0", Some(0)),
            ("-2", None),
            ("", None),
            ("m", None),
            ("1x", None),
            (".5g", None),
            ("1..5g", None),
            ("9999999999p", None),
        ] {
            assert_eq!(parse_bytes(text), want, "{text:?}");
        }
    }
}
