//! From OCI resources to properties of a systemd unit, so that what systemd believes is what the kernel does: it writes
//! the files again whenever it is reloaded.
//!
//! # Source
//! systemd.resource-control(5), org.freedesktop.systemd1(5).

use super::wire::{Property, Value};
use crate::cgroup::devices::{self, ACCESS_MKNOD, ACCESS_READ, ACCESS_WRITE, Kind, Rule};
use crate::cgroup::hierarchy::{Hierarchies, read};
use crate::cgroup::table;
use crate::config::{BlockIo, Resources};
use crate::error::{Failure, Outcome};
use std::path::Path;

/// Period of a CPU quota unless another is given.
const DEFAULT_PERIOD_US: u64 = 100_000;
/// systemd keeps a quota in steps of one percent of a CPU.
const QUOTA_STEP_US: u64 = 10_000;

/// `-1` is no limit on both sides.
fn limit(value: i64) -> Value {
    Value::U64(u64::try_from(value).unwrap_or(u64::MAX))
}

/// Limits of a new unit, device rules included.
///
/// # Errors
/// A value that no unit can have.
pub fn all(resources: &Resources, hierarchies: &Hierarchies) -> Outcome<Vec<Property>> {
    let mut properties = device_properties(resources)?;
    properties.extend(changes(resources, hierarchies)?);
    Ok(properties)
}

/// Limits to change.
///
/// # Errors
/// A value that no unit can have.
pub fn changes(resources: &Resources, hierarchies: &Hierarchies) -> Outcome<Vec<Property>> {
    let v2 = hierarchies.is_pure_v2();
    let mut list: Vec<Property> = Vec::new();
    if let Some(memory) = &resources.memory {
        let given = |value: Option<i64>| value.filter(|&value| value != 0);
        if let Some(value) = given(memory.limit) {
            list.push((if v2 { "MemoryMax" } else { "MemoryLimit" }, limit(value)));
        }
        if v2 {
            if let Some(value) = given(memory.reservation) {
                list.push(("MemoryLow", limit(value)));
            }
            let swap = table::swap_max(memory).map_err(|error| Failure::new(error.to_string()))?;
            if let Some(swap) = swap.or((memory.limit == Some(-1)).then_some(-1)) {
                list.push(("MemorySwapMax", limit(swap)));
            }
        }
    }
    if let Some(cpu) = &resources.cpu {
        if let Some(shares) = cpu.shares.filter(|&shares| shares != 0) {
            list.push(match v2 {
                true => ("CPUWeight", Value::U64(table::cpu_weight(shares))),
                false => ("CPUShares", Value::U64(shares)),
            });
        }
        quota(&mut list, cpu.quota.unwrap_or(0), cpu.period.unwrap_or(0));
        for (value, name, key) in
            [(&cpu.cpus, "AllowedCPUs", "cpu.cpus"), (&cpu.mems, "AllowedMemoryNodes", "cpu.mems")]
        {
            if let Some(text) = value.as_deref().filter(|text| !text.is_empty()) {
                list.push((name, Value::Bytes(bits(text, key)?)));
            }
        }
    }
    if let Some(value) = resources.pids.as_ref().and_then(|pids| pids.limit).filter(|&limit| limit != 0) {
        list.push(("TasksMax", limit(value)));
    }
    if let Some(io) = resources.block_io.as_ref() {
        block_io(&mut list, io, v2);
    }
    unified(&mut list, resources)?;
    Ok(list)
}

fn quota(list: &mut Vec<Property>, quota: i64, period: u64) {
    if period != 0 {
        list.push(("CPUQuotaPeriodUSec", Value::U64(period)));
    }
    if quota != 0 || period != 0 {
        let period = if period == 0 { DEFAULT_PERIOD_US } else { period };
        let per_second = u64::try_from(quota).ok().filter(|&quota| quota > 0).map_or(u64::MAX, |quota| {
            let exact = u128::from(quota) * 1_000_000 / u128::from(period);
            // Up, so that what is in the container's own cgroup is never refused.
            u64::try_from(exact).unwrap_or(u64::MAX - QUOTA_STEP_US).next_multiple_of(QUOTA_STEP_US)
        });
        list.push(("CPUQuotaPerSecUSec", Value::U64(per_second)));
    }
}

/// A list such as `0-2,7` as bits, lowest first.
fn bits(text: &str, key: &str) -> Outcome<Vec<u8>> {
    let wrong = || Failure::new(format!("linux.resources.{key}: `{text}` is not a list such as 0-2,7"));
    let mut bits = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        for number in usize::from(first)..=usize::from(last) {
            if bits.len() <= number / 8 {
                bits.resize(number / 8 + 1, 0);
            }
            bits[number / 8] |= 1 << (number % 8);
        }
    }
    if bits.is_empty() { Err(wrong()) } else { Ok(bits) }
}

fn block_io(list: &mut Vec<Property>, io: &BlockIo, v2: bool) {
    if let Some(weight) = io.weight.filter(|&weight| weight != 0) {
        list.push(match v2 {
            true => ("IOWeight", Value::U64(table::io_weight(weight))),
            false => ("BlockIOWeight", Value::U64(weight.into())),
        });
    }
    if !v2 {
        return;
    }
    // systemd looks the device up by a path; one that udev does not know is limited by our own write only.
    let path =
        |major: i64, minor: i64| Some(format!("/dev/block/{major}:{minor}")).filter(|path| Path::new(path).exists());
    let weights: Vec<(String, u64)> = io
        .weight_device
        .iter()
        .filter_map(|device| {
            let weight = device.weight.filter(|&weight| weight != 0)?;
            Some((path(device.major, device.minor)?, table::io_weight(weight)))
        })
        .collect();
    if !weights.is_empty() {
        list.push(("IODeviceWeight", Value::TextNumbers(weights)));
    }
    for (name, devices) in [
        ("IOReadBandwidthMax", &io.throttle_read_bps_device),
        ("IOWriteBandwidthMax", &io.throttle_write_bps_device),
        ("IOReadIOPSMax", &io.throttle_read_iops_device),
        ("IOWriteIOPSMax", &io.throttle_write_iops_device),
    ] {
        let limits: Vec<(String, u64)> =
            devices.iter().filter_map(|device| Some((path(device.major, device.minor)?, device.rate))).collect();
        if !limits.is_empty() {
            list.push((name, Value::TextNumbers(limits)));
        }
    }
}

/// Files of v2 that are a property; the others are written only.
fn unified(list: &mut Vec<Property>, resources: &Resources) -> Outcome<()> {
    for (file, text) in &resources.unified {
        let text = text.trim();
        let wrong = || Failure::new(format!("linux.resources.unified.{file}: `{text}` is not a value for it"));
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let or_max = |text: &str| if text == "max" { Ok(u64::MAX) } else { number(text) };
        let name = match file.as_str() {
            "cpu.max" => {
                let (most, period) = text.split_once(' ').unwrap_or((text, ""));
                let most = if most == "max" { -1 } else { most.parse::<i64>().map_err(|_| wrong())? };
                quota(list, most, if period.is_empty() { DEFAULT_PERIOD_US } else { number(period.trim())? });
                continue;
            }
            "cpuset.cpus" | "cpuset.mems" => {
                let name = if file == "cpuset.cpus" { "AllowedCPUs" } else { "AllowedMemoryNodes" };
                list.push((name, Value::Bytes(bits(text, &format!("unified.{file}"))?)));
                continue;
            }
            "cpu.weight" => "CPUWeight",
            "memory.min" => "MemoryMin",
            "memory.low" => "MemoryLow",
            "memory.high" => "MemoryHigh",
            "memory.max" => "MemoryMax",
            "memory.swap.max" => "MemorySwapMax",
            "pids.max" => "TasksMax",
            _ => continue,
        };
        list.push((name, Value::U64(or_max(text)?)));
    }
    Ok(())
}

/// Who may use which device. systemd knows no denial, so it may allow more than the rules do; on v2 our own filter
/// stands beside its, and both must allow.
fn device_properties(resources: &Resources) -> Outcome<Vec<Property>> {
    let rules = devices::rules(&resources.devices).map_err(|error| Failure::new(error.to_string()))?;
    let (allow_rest, rules) = devices::effective(&rules);
    if allow_rest {
        return Ok(vec![
            ("DevicePolicy", Value::Text("auto".to_owned())),
            ("DeviceAllow", Value::TextPairs(Vec::new())),
        ]);
    }
    let names = read("/proc/devices").unwrap_or_default();
    let allowed = rules.iter().filter(|rule| rule.allow).flat_map(|rule| device_entries(rule, &names)).collect();
    Ok(vec![("DevicePolicy", Value::Text("strict".to_owned())), ("DeviceAllow", Value::TextPairs(allowed))])
}

fn device_entries(rule: &Rule, names: &str) -> Vec<(String, String)> {
    let access: String = [(ACCESS_READ, 'r'), (ACCESS_WRITE, 'w'), (ACCESS_MKNOD, 'm')]
        .into_iter()
        .filter(|(bit, _)| rule.access & bit != 0)
        .map(|(_, letter)| letter)
        .collect();
    let kinds: &[(&str, &str)] = match rule.kind {
        Kind::All => &[("char", "Character devices:"), ("block", "Block devices:")],
        Kind::Char => &[("char", "Character devices:")],
        Kind::Block => &[("block", "Block devices:")],
    };
    let entry = |&(kind, heading): &(&str, &str)| -> Vec<String> {
        match (rule.major, rule.minor) {
            (None, _) => vec![format!("{kind}-*")],
            (Some(major), Some(minor)) => vec![format!("/dev/{kind}/{major}:{minor}")],
            (Some(major), None) => driver_names(names, heading, major).map(|name| format!("{kind}-{name}")).collect(),
        }
    };
    kinds.iter().flat_map(entry).map(|name| (name, access.clone())).collect()
}

/// Names of a major number in `/proc/devices`.
fn driver_names<'a>(text: &'a str, heading: &'a str, major: u32) -> impl Iterator<Item = &'a str> {
    let section = text.lines().skip_while(move |line| *line != heading).skip(1).take_while(|line| !line.is_empty());
    section.filter_map(move |line| {
        let (number, name) = line.trim_start().split_once(' ')?;
        (number.parse() == Ok(major)).then_some(name)
    })
}

/// A property from an annotation `org.systemd.property.NAME`, whose value is written as GVariant text: `'text'`, `true`,
/// `['a', 'b']`, `uint64 5`, `5`. A name in seconds becomes the one in microseconds, as systemd wants it.
///
/// # Errors
/// The value is of another form.
pub fn from_annotation(name: &str, text: &str) -> Outcome<(String, Value)> {
    let wrong = || {
        Failure::new(format!("annotation `org.systemd.property.{name}`: `{text}` is not understood"))
            .hint("write a GVariant such as 'text', true, ['a', 'b'], uint64 5")
    };
    let good = name.len() > 1 && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let value = gvariant(text.trim()).filter(|_| good).ok_or_else(wrong)?;
    match name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) {
        None => Ok((name.to_owned(), value)),
        Some(stem) => {
            let seconds = match value {
                Value::I32(number) => u64::try_from(number).ok(),
                Value::U32(number) => Some(number.into()),
                Value::I64(number) => u64::try_from(number).ok(),
                Value::U64(number) => Some(number),
                _ => None,
            };
            let micros = seconds.and_then(|seconds| seconds.checked_mul(1_000_000)).ok_or_else(wrong)?;
            Ok((format!("{stem}USec"), Value::U64(micros)))
        }
    }
}

fn gvariant(text: &str) -> Option<Value> {
    let quoted = |text: &str| {
        let mark = text.chars().next().filter(|mark| matches!(mark, '\'' | '"'))?;
        let inner = text.strip_prefix(mark)?.strip_suffix(mark)?;
        (!inner.contains([mark, '\\'])).then(|| inner.to_owned())
    };
    if let Some(list) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
        return items.map(quoted).collect::<Option<Vec<_>>>().map(Value::Texts);
    }
    match text.split_once(' ') {
        _ if text == "true" || text == "false" => Some(Value::Bool(text == "true")),
        Some(("uint64", number)) => number.trim().parse().ok().map(Value::U64),
        Some(("int64", number)) => number.trim().parse().ok().map(Value::I64),
        Some(("uint32", number)) => number.trim().parse().ok().map(Value::U32),
        Some(("int32", number)) => number.trim().parse().ok().map(Value::I32),
        _ => quoted(text).map(Value::Text).or_else(|| text.parse().ok().map(Value::I32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn of(resources: Json, v2: bool) -> String {
        let resources: Resources = serde_json::from_value(resources).expect("resources");
        let mut hierarchies = Hierarchies::default();
        if !v2 {
            hierarchies
                .v1
                .push(crate::cgroup::hierarchy::V1 { controllers: vec!["memory".into()], mount: "/m".into() });
        }
        match changes(&resources, &hierarchies) {
            Ok(list) => list.iter().map(|(name, value)| format!("{name}={value:?}")).collect::<Vec<_>>().join(" "),
            Err(failure) => format!("error: {failure}"),
        }
    }

    #[test]
    fn limits_as_properties() {
        for (resources, v2, v1) in [
            (json!({}), "", ""),
            (json!({"memory": {"limit": 0}, "cpu": {"shares": 0, "quota": 0}, "pids": {"limit": 0}}), "", ""),
            (
                json!({"memory": {"limit": 512, "swap": 768, "reservation": 100}}),
                "MemoryMax=U64(512) MemoryLow=U64(100) MemorySwapMax=U64(256)",
                "MemoryLimit=U64(512)",
            ),
            (
                json!({"memory": {"limit": -1}}),
                "MemoryMax=U64(18446744073709551615) MemorySwapMax=U64(18446744073709551615)",
                "MemoryLimit=U64(18446744073709551615)",
            ),
            (json!({"cpu": {"shares": 1024}}), "CPUWeight=U64(100)", "CPUShares=U64(1024)"),
            (
                json!({"cpu": {"quota": 12_345, "period": 100_000}}),
                "CPUQuotaPeriodUSec=U64(100000) CPUQuotaPerSecUSec=U64(130000)",
                "CPUQuotaPeriodUSec=U64(100000) CPUQuotaPerSecUSec=U64(130000)",
            ),
            (json!({"cpu": {"quota": 50_000}}), "CPUQuotaPerSecUSec=U64(500000)", "CPUQuotaPerSecUSec=U64(500000)"),
            (
                json!({"cpu": {"quota": -1}}),
                "CPUQuotaPerSecUSec=U64(18446744073709551615)",
                "CPUQuotaPerSecUSec=U64(18446744073709551615)",
            ),
            (
                json!({"cpu": {"cpus": "0-2,9", "mems": "0"}}),
                "AllowedCPUs=Bytes([7, 2]) AllowedMemoryNodes=Bytes([1])",
                "AllowedCPUs=Bytes([7, 2]) AllowedMemoryNodes=Bytes([1])",
            ),
            (
                json!({"cpu": {"cpus": "2-1"}}),
                "error: linux.resources.cpu.cpus: `2-1` is not a list such as 0-2,7",
                "error: linux.resources.cpu.cpus: `2-1` is not a list such as 0-2,7",
            ),
            (
                json!({"pids": {"limit": -1}}),
                "TasksMax=U64(18446744073709551615)",
                "TasksMax=U64(18446744073709551615)",
            ),
            (json!({"blockIO": {"weight": 500}}), "IOWeight=U64(4950)", "BlockIOWeight=U64(500)"),
            (
                json!({"unified": {"cpu.max": "max 50000", "memory.high": "5", "pids.max": "max", "io.latency": "x"}}),
                "CPUQuotaPeriodUSec=U64(50000) CPUQuotaPerSecUSec=U64(18446744073709551615) MemoryHigh=U64(5) TasksMax=U64(18446744073709551615)",
                "CPUQuotaPeriodUSec=U64(50000) CPUQuotaPerSecUSec=U64(18446744073709551615) MemoryHigh=U64(5) TasksMax=U64(18446744073709551615)",
            ),
            (
                json!({"unified": {"memory.high": "much"}}),
                "error: linux.resources.unified.memory.high: `much` is not a value for it",
                "error: linux.resources.unified.memory.high: `much` is not a value for it",
            ),
        ] {
            assert_eq!(of(resources.clone(), true), v2, "v2 {resources}");
            assert_eq!(of(resources.clone(), false), v1, "v1 {resources}");
        }
    }

    #[test]
    fn devices_as_properties() {
        let names = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n136 other\n";
        let rule = |kind, major, minor, access| Rule { allow: true, kind, major, minor, access };
        for (rule, want) in [
            (rule(Kind::Char, Some(1), Some(3), 7), vec![("/dev/char/1:3", "rwm")]),
            (rule(Kind::Char, Some(136), None, 7), vec![("char-pts", "rwm")]),
            (rule(Kind::Block, Some(8), None, 2), vec![("block-sd", "r")]),
            (rule(Kind::Block, Some(99), None, 2), vec![]),
            (rule(Kind::All, None, None, 1), vec![("char-*", "m"), ("block-*", "m")]),
        ] {
            let want: Vec<_> = want.into_iter().map(|(name, access)| (name.to_owned(), access.to_owned())).collect();
            assert_eq!(device_entries(&rule, names), want, "{rule:?}");
        }
    }

    #[test]
    fn annotations_as_properties() {
        for (name, text, want) in [
            ("CollectMode", "'inactive-or-failed'", Some(("CollectMode", Value::Text("inactive-or-failed".into())))),
            ("TimeoutStopUSec", "uint64 5000000", Some(("TimeoutStopUSec", Value::U64(5_000_000)))),
            ("TimeoutStopSec", "5", Some(("TimeoutStopUSec", Value::U64(5_000_000)))),
            ("SendSIGHUP", "true", Some(("SendSIGHUP", Value::Bool(true)))),
            ("KillSignal", "9", Some(("KillSignal", Value::I32(9)))),
            (
                "After",
                "['a.service', \"b.service\"]",
                Some(("After", Value::Texts(vec!["a.service".into(), "b.service".into()]))),
            ),
            ("TimeoutStopSec", "'x'", None),
            ("TimeoutStopSec", "-1", None),
            ("Bad", "{}", None),
            ("Bad", "'a' 'b'", None),
            ("B d", "5", None),
        ] {
            let got = from_annotation(name, text).ok();
            assert_eq!(got, want.map(|(name, value)| (name.to_owned(), value)), "{name} {text}");
        }
    }
}
