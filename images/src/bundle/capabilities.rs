//! Which capabilities a container has.

use std::collections::BTreeSet;

use super::{Overrides, bad};
use crate::error::Result;

/// Names, with `CAP_`.
pub(super) type Set = BTreeSet<String>;

/// All that Linux has, in the order of their numbers (`linux/capability.h`).
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Docker's fourteen: enough for root inside to manage its own files, users and processes.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The default, plus, minus. With `ALL` dropped only what is added is left; with `ALL` added all but what is dropped.
pub(super) fn effective(overrides: &Overrides) -> Result<Set> {
    let (add, drop) = (parse("cap_add", &overrides.cap_add)?, parse("cap_drop", &overrides.cap_drop)?);
    if overrides.privileged {
        return Ok(available());
    }
    let base = match (&add, &drop) {
        (Asked::All, Asked::All) => Set::new(),
        (Asked::All, Asked::Some(_)) => available(),
        (Asked::Some(_), Asked::All) => Set::new(),
        (Asked::Some(_), Asked::Some(_)) => DEFAULT.iter().map(|name| format!("CAP_{name}")).collect(),
    };
    let mut set = base;
    if let Asked::Some(names) = drop {
        set = &set - &names;
    }
    if let Asked::Some(names) = add {
        set.extend(names);
    }
    Ok(set)
}

enum Asked {
    All,
    Some(Set),
}

fn parse(field: &'static str, names: &[String]) -> Result<Asked> {
    let mut set = Set::new();
    for given in names {
        let upper = given.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" {
            return Ok(Asked::All);
        }
        if !ALL.contains(&name) {
            return Err(bad(field, given, "is not a capability of Linux"));
        }
        set.insert(format!("CAP_{name}"));
    }
    Ok(Asked::Some(set))
}

/// What can be given: our own bounding set. Asking for more would fail the container on a host that lacks some.
fn available() -> Set {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapBnd:")?.trim(), 16).ok());
    let has = |number: usize| bits.is_none_or(|bits| bits >> number & 1 == 1);
    ALL.iter().enumerate().filter(|(number, _)| has(*number)).map(|(_, name)| format!("CAP_{name}")).collect()
}
