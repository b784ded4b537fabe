//! When and where a process runs: `process.scheduler`, `process.ioPriority`, `process.execCPUAffinity`,
//! `linux.memoryPolicy`.
//!
//! Words are turned into numbers by pure functions, which `config::check` uses too, so that what reaches the kernel has
//! been understood.

use crate::config::{ExecCpuAffinity, IoPriority, MemoryPolicy, Process, Scheduler};
use crate::error::{Because, InStep, Outcome};
use crate::sys::sched::{self, SchedAttr};

/// A value that is wrong: the key below the one asked about, and what is wrong with it.
pub type Wrong = (&'static str, String);

/// Scheduling policies.
pub const POLICIES: &[(&str, u32)] = &[
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];
const FIFO: u32 = 1;
const RR: u32 = 2;
const ISO: u32 = 4;
const DEADLINE: u32 = 6;

/// Flags of the scheduler.
pub const SCHEDULER_FLAGS: &[(&str, u64)] = &[
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// Classes of I/O priority.
pub const IO_CLASSES: &[(&str, u32)] = &[("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];

/// Modes of the memory policy.
pub const MEMORY_MODES: &[(&str, u32)] = &[
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];
const MPOL_DEFAULT: u32 = 0;
const MPOL_PREFERRED: u32 = 1;
const MPOL_LOCAL: u32 = 4;

/// Flags of the memory policy.
pub const MEMORY_FLAGS: &[(&str, u32)] =
    &[("MPOL_F_STATIC_NODES", 1 << 15), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_NUMA_BALANCING", 1 << 13)];

/// More than any kernel is built for; a list up to here is a kibibyte as a mask.
const CPUS_MAX: usize = 8192;
/// The most memory nodes a kernel is built for.
const NODES_MAX: usize = 1024;

fn number<T: Copy>(table: &[(&str, T)], word: &str) -> Result<T, String> {
    table.iter().find(|(name, _)| *name == word).map(|(_, number)| *number).ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
        format!("`{word}` is not one of {}", names.join(", "))
    })
}

/// The mask of a list such as `0-3,7`.
///
/// - `end`: the first number that is too high.
///
/// # Errors
/// What is wrong with the list, which is shown.
pub fn mask(list: &str, end: usize) -> Result<Vec<u64>, String> {
    let mut mask: Vec<u64> = Vec::new();
    let wrong = |why: &str| format!("`{list}` {why}; a list such as `0-3,7` is wanted");
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let parse = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong("is not a list of numbers"));
        let (first, last) = (parse(first)?, parse(last)?);
        if first > last {
            return Err(wrong("has a range that runs backwards"));
        }
        if last >= end {
            return Err(format!("`{list}` names {last}; the highest number is {}", end - 1));
        }
        for bit in first..=last {
            let word = bit / u64::BITS as usize;
            if mask.len() <= word {
                mask.resize(word + 1, 0);
            }
            mask[word] |= 1 << (bit % u64::BITS as usize);
        }
    }
    Ok(mask)
}

/// What `sched_setattr(2)` takes.
///
/// # Errors
/// The key that is wrong, and why.
pub fn attributes(scheduler: &Scheduler) -> Result<SchedAttr, Wrong> {
    let policy = number(POLICIES, &scheduler.policy).map_err(|why| ("policy", why))?;
    let nice = scheduler.nice.unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(("nice", format!("{nice} is outside -20 to 19")));
    }
    let priority = scheduler.priority.unwrap_or(0);
    match policy {
        FIFO | RR if !(1..=99).contains(&priority) => {
            return Err(("priority", format!("{priority} is outside 1 to 99, as {} wants it", scheduler.policy)));
        }
        FIFO | RR => {}
        _ if priority != 0 => {
            let why = format!("{priority} is given with {}; only SCHED_FIFO and SCHED_RR have one", scheduler.policy);
            return Err(("priority", why));
        }
        _ => {}
    }
    let times = [("runtime", scheduler.runtime), ("deadline", scheduler.deadline), ("period", scheduler.period)];
    if policy != DEADLINE
        && let Some((key, Some(value))) = times.into_iter().find(|(_, value)| value.is_some_and(|value| value != 0))
    {
        return Err((key, format!("{value} is given with {}; only SCHED_DEADLINE has one", scheduler.policy)));
    }
    let mut flags = 0;
    for flag in &scheduler.flags {
        flags |= number(SCHEDULER_FLAGS, flag).map_err(|why| ("flags", why))?;
    }
    Ok(SchedAttr {
        policy,
        flags,
        nice,
        priority: priority as u32,
        runtime: scheduler.runtime.unwrap_or(0),
        deadline: scheduler.deadline.unwrap_or(0),
        period: scheduler.period.unwrap_or(0),
        ..SchedAttr::default()
    })
}

/// Class and level for `ioprio_set(2)`.
///
/// # Errors
/// The key that is wrong, and why.
pub fn io_priority(wanted: &IoPriority) -> Result<(u32, u32), Wrong> {
    let class = number(IO_CLASSES, &wanted.class).map_err(|why| ("class", why))?;
    match u32::try_from(wanted.priority) {
        Ok(level) if level <= 7 => Ok((class, level)),
        _ => Err(("priority", format!("{} is outside 0 to 7", wanted.priority))),
    }
}

/// Mode with its flags, and the mask of nodes.
///
/// # Errors
/// The key that is wrong, and why.
pub fn memory_policy(policy: &MemoryPolicy) -> Result<(u32, Vec<u64>), Wrong> {
    let mode = number(MEMORY_MODES, &policy.mode).map_err(|why| ("mode", why))?;
    let mut flags = 0;
    for flag in &policy.flags {
        flags |= number(MEMORY_FLAGS, flag).map_err(|why| ("flags", why))?;
    }
    let list = policy.nodes.as_deref().map_or("", str::trim);
    let nodes = if list.is_empty() { Vec::new() } else { mask(list, NODES_MAX).map_err(|why| ("nodes", why))? };
    match (mode, nodes.is_empty()) {
        (MPOL_DEFAULT | MPOL_LOCAL, false) => {
            Err(("nodes", format!("`{list}` is given, but {} has none", policy.mode)))
        }
        (MPOL_DEFAULT | MPOL_LOCAL | MPOL_PREFERRED, _) | (_, false) => Ok((mode | flags, nodes)),
        (_, true) => Err(("nodes", format!("is empty, but {} needs some", policy.mode))),
    }
}

/// The two masks of `execCPUAffinity`.
///
/// # Errors
/// The key that is wrong, and why.
pub fn affinity(wanted: &ExecCpuAffinity) -> Result<[Option<Vec<u64>>; 2], Wrong> {
    let read = |list: &Option<String>, key: &'static str| match list.as_deref().map_or("", str::trim) {
        "" => Ok(None),
        list => mask(list, CPUS_MAX).map(Some).map_err(|why| (key, why)),
    };
    Ok([read(&wanted.initial, "initial")?, read(&wanted.last, "final")?])
}

/// Set scheduler and I/O priority of this process, for the program it becomes.
///
/// # Errors
/// The kernel refuses.
pub fn apply(process: &Process) -> Outcome<()> {
    if let Some(wanted) = &process.scheduler {
        let attributes = attributes(wanted).because_key("process.scheduler")?;
        let hint = match attributes.policy {
            ISO => "Linux has never had SCHED_ISO",
            FIFO | RR => {
                "it takes CAP_SYS_NICE, and on cgroup v1 a budget in every cgroup above (`cpu.realtimeRuntime`)"
            }
            DEADLINE => {
                "runtime <= deadline <= period must hold, all CPUs be allowed, and their time not be given away"
            }
            _ => "a nice value below the runtime's own takes CAP_SYS_NICE; see sched_setattr(2)",
        };
        sched::set_attributes(&attributes)
            .because(|| format!("cannot set `process.scheduler` to {}", wanted.policy))
            .or_hint(hint)
            .in_step("scheduler")?;
    }
    if let Some(wanted) = &process.io_priority {
        let (class, level) = io_priority(wanted).because_key("process.ioPriority")?;
        sched::set_io_priority(class, level)
            .because(|| format!("cannot set `process.ioPriority` to {} {level}", wanted.class))
            .or_hint("IOPRIO_CLASS_RT takes CAP_SYS_NICE or CAP_SYS_ADMIN")
            .in_step("scheduler")?;
    }
    Ok(())
}

/// Set the memory policy of this process, for the program it becomes.
///
/// # Errors
/// The kernel refuses: no such node, or none that the cgroup allows.
pub fn apply_memory_policy(policy: Option<&MemoryPolicy>) -> Outcome<()> {
    let Some(policy) = policy else {
        return Ok(());
    };
    let (mode, nodes) = memory_policy(policy).because_key("linux.memoryPolicy")?;
    sched::set_memory_policy(mode, &nodes)
        .because(|| {
            let nodes = policy.nodes.as_deref().unwrap_or("none");
            format!("cannot set `linux.memoryPolicy` to {} with nodes {nodes}", policy.mode)
        })
        .or_hint("the nodes must have memory and be allowed by the cgroup: see /sys/devices/system/node/has_memory")
        .in_step("memory policy")
}

/// For `exec`, in the runtime process: where to run until the process has joined the cgroup.
///
/// # Errors
/// No such CPU.
pub fn apply_initial_affinity(process: &Process) -> Outcome<()> {
    let Some(wanted) = &process.exec_cpu_affinity else {
        return Ok(());
    };
    match affinity(wanted).because_key("process.execCPUAffinity")? {
        [Some(mask), _] => sched::set_affinity(&mask)
            .because(|| refused("initial", wanted.initial.as_deref()))
            .or_hint("the CPUs must be online and allowed for the runtime itself")
            .in_step("CPU affinity"),
        _ => Ok(()),
    }
}

/// For `exec`, in the new process, once it is in the cgroup: the final CPUs, or all that the cgroup allows.
///
/// # Errors
/// None of the CPUs is allowed in the cgroup.
pub fn apply_final_affinity(process: &Process) -> Outcome<()> {
    let Some(wanted) = &process.exec_cpu_affinity else {
        return Ok(());
    };
    let [initial, last] = affinity(wanted).because_key("process.execCPUAffinity")?;
    let mask = match (initial, last) {
        (_, Some(last)) => last,
        // The kernel takes those of them that the cgroup allows.
        (Some(_), None) => vec![u64::MAX; CPUS_MAX / u64::BITS as usize],
        (None, None) => return Ok(()),
    };
    sched::set_affinity(&mask)
        .because(|| refused("final", wanted.last.as_deref()))
        .or_hint("at least one CPU must be online and among `linux.resources.cpu.cpus`")
        .in_step("CPU affinity")
}

fn refused(key: &str, list: Option<&str>) -> String {
    format!("cannot set `process.execCPUAffinity.{key}` to `{}`", list.unwrap_or(""))
}

/// A wrong value as a failure; `config::check` has refused it before, except in a `--process` file.
trait BecauseKey<T> {
    fn because_key(self, key: &'static str) -> Outcome<T>;
}

impl<T> BecauseKey<T> for Result<T, Wrong> {
    fn because_key(self, key: &'static str) -> Outcome<T> {
        self.map_err(|(below, why)| crate::error::Failure::new(format!("{key}.{below}: {why}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    fn read<T: DeserializeOwned>(value: &Value) -> T {
        serde_json::from_value(value.clone()).expect("the right shape")
    }

    fn wrong<T>(result: Result<T, Wrong>) -> String {
        result.err().map_or("good".to_owned(), |(key, why)| format!("{key}: {why}"))
    }

    #[test]
    fn lists_of_cpus_and_nodes() {
        for (list, want) in [
            ("0", Ok(vec![1])),
            ("0-3,7", Ok(vec![0b1000_1111])),
            (" 1 , 2 ", Ok(vec![6])),
            ("64", Ok(vec![0, 1])),
            ("63-64", Ok(vec![1 << 63, 1])),
            ("127", Ok(vec![0, 1 << 63])),
            ("", Err("`` is not a list of numbers; a list such as `0-3,7` is wanted")),
            ("1,,2", Err("`1,,2` is not a list of numbers; a list such as `0-3,7` is wanted")),
            ("3-1", Err("`3-1` has a range that runs backwards; a list such as `0-3,7` is wanted")),
            ("-1", Err("`-1` is not a list of numbers; a list such as `0-3,7` is wanted")),
            ("0-4294967295", Err("`0-4294967295` names 4294967295; the highest number is 127")),
            ("128", Err("`128` names 128; the highest number is 127")),
        ] {
            assert_eq!(mask(list, 128), want.map_err(str::to_owned), "{list:?}");
        }
    }

    #[test]
    fn schedulers() {
        for (value, want) in [
            (json!({"policy": "SCHED_OTHER", "nice": -20}), "good"),
            (json!({"policy": "SCHED_BATCH", "nice": 19, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}), "good"),
            (json!({"policy": "SCHED_FIFO", "priority": 1}), "good"),
            (json!({"policy": "SCHED_RR", "priority": 99}), "good"),
            (json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3}), "good"),
            (json!({"policy": "SCHED_IDLE", "priority": 0, "runtime": 0}), "good"),
            (
                json!({"policy": "other"}),
                "policy: `other` is not one of SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_ISO, SCHED_IDLE, \
                 SCHED_DEADLINE",
            ),
            (json!({"policy": "SCHED_OTHER", "nice": 20}), "nice: 20 is outside -20 to 19"),
            (json!({"policy": "SCHED_RR"}), "priority: 0 is outside 1 to 99, as SCHED_RR wants it"),
            (
                json!({"policy": "SCHED_IDLE", "priority": 3}),
                "priority: 3 is given with SCHED_IDLE; only SCHED_FIFO and SCHED_RR have one",
            ),
            (
                json!({"policy": "SCHED_FIFO", "priority": 1, "deadline": 9}),
                "deadline: 9 is given with SCHED_FIFO; only SCHED_DEADLINE has one",
            ),
        ] {
            assert_eq!(wrong(attributes(&read(&value))), want, "{value}");
        }
        let flags: Vec<&str> = SCHEDULER_FLAGS.iter().map(|(name, _)| *name).collect();
        let all = attributes(&read(&json!({"policy": "SCHED_OTHER", "flags": flags}))).expect("all flags");
        assert_eq!((all.flags, size_of::<SchedAttr>()), (0x7f, 56));
    }

    #[test]
    fn io_priorities() {
        for (class, level, want) in [
            ("IOPRIO_CLASS_RT", 0, "good"),
            ("IOPRIO_CLASS_BE", 7, "good"),
            ("IOPRIO_CLASS_IDLE", 4, "good"),
            ("IOPRIO_CLASS_BE", 8, "priority: 8 is outside 0 to 7"),
            ("IOPRIO_CLASS_BE", -1, "priority: -1 is outside 0 to 7"),
            (
                "IOPRIO_CLASS_NONE",
                0,
                "class: `IOPRIO_CLASS_NONE` is not one of IOPRIO_CLASS_RT, IOPRIO_CLASS_BE, IOPRIO_CLASS_IDLE",
            ),
        ] {
            let got = io_priority(&IoPriority { class: class.to_owned(), priority: level });
            assert_eq!(wrong(got), want, "{class} {level}");
        }
    }

    #[test]
    fn memory_policies() {
        for (value, want) in [
            (json!({"mode": "MPOL_DEFAULT"}), "good"),
            (json!({"mode": "MPOL_LOCAL"}), "good"),
            (json!({"mode": "MPOL_PREFERRED"}), "good"),
            (json!({"mode": "MPOL_PREFERRED", "nodes": "2"}), "good"),
            (json!({"mode": "MPOL_BIND", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]}), "good"),
            (json!({"mode": "MPOL_BIND"}), "nodes: is empty, but MPOL_BIND needs some"),
            (
                json!({"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": ""}),
                "nodes: is empty, but MPOL_WEIGHTED_INTERLEAVE needs some",
            ),
            (json!({"mode": "MPOL_LOCAL", "nodes": "0"}), "nodes: `0` is given, but MPOL_LOCAL has none"),
            (json!({"mode": "MPOL_BIND", "nodes": "1024"}), "nodes: `1024` names 1024; the highest number is 1023"),
            (
                json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_MOON"]}),
                "flags: `MPOL_F_MOON` is not one of MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES, MPOL_F_NUMA_BALANCING",
            ),
        ] {
            assert_eq!(wrong(memory_policy(&read(&value))), want, "{value}");
        }
        let (mode, nodes) = memory_policy(&read(&json!({
            "mode": "MPOL_INTERLEAVE", "nodes": "0,65", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_NUMA_BALANCING"],
        })))
        .expect("good");
        assert_eq!((mode, nodes), (3 | 0xa000, vec![1, 2]));
    }

    #[test]
    fn affinities() {
        let read = |initial: &str, last: &str| {
            affinity(&ExecCpuAffinity { initial: Some(initial.to_owned()), last: Some(last.to_owned()) })
        };
        assert_eq!(read("0", ""), Ok([Some(vec![1]), None]));
        assert_eq!(read("", "1"), Ok([None, Some(vec![2])]));
        assert_eq!(wrong(read("0", "x")), "final: `x` is not a list of numbers; a list such as `0-3,7` is wanted");
        assert_eq!(wrong(read("9999", "")), "initial: `9999` names 9999; the highest number is 8191");
    }
}
