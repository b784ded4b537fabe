//! From an OCI seccomp profile to a classic BPF program.
//!
//! ```text
//! profile ─ rules ─► per architecture: number → leaf ─► intervals of equal leaves ─► binary search ─► instructions
//! ```
//! libseccomp needs 0.8 to 19 ms for the usual default profile and emits a linear search; here it is some tens of
//! microseconds, and the tree halves what the kernel needs to load it (both measured).
//!
//! Meaning of a profile: for one system call, rules with conditions are asked in their order and the first that holds
//! decides; then a rule without conditions; then the default action. A foreign architecture is killed.

mod assembler;
mod syscalls;

use crate::config::{Seccomp, SyscallRule};
use crate::sys::seccomp::Instruction;
use assembler::Assembler;
use std::collections::BTreeMap;

/// Most instructions the kernel takes, `BPF_MAXINSNS`.
const INSTRUCTIONS_MAX: usize = 4096;
/// Bit that marks an x32 call.
const X32_BIT: u32 = 0x4000_0000;
/// `SECCOMP_RET_KILL_PROCESS`.
const KILL_PROCESS: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO`; the error number is in the low half.
const ERRNO: u32 = 0x0005_0000;
/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_LOG`.
const LOG: u32 = 0x7ffc_0000;

/// A profile that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// A value that is wrong.
    #[error("config.json: $.linux.seccomp.{path}: {problem}")]
    Invalid {
        /// JSON path below `linux.seccomp`.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// More than the kernel takes.
    #[error("config.json: $.linux.seccomp: the filter needs {0} instructions, the kernel takes {INSTRUCTIONS_MAX}")]
    TooLong(usize),
}

fn invalid(path: impl Into<String>, problem: impl Into<String>) -> SeccompError {
    SeccompError::Invalid { path: path.into(), problem: problem.into() }
}

/// A compiled profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Instructions for `seccomp(2)`.
    pub program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

/// An instruction set a process can make system calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Architecture {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

impl Architecture {
    #[cfg(target_arch = "x86_64")]
    const NATIVE: Self = Self::X86_64;
    #[cfg(target_arch = "aarch64")]
    const NATIVE: Self = Self::Aarch64;

    /// `AUDIT_ARCH_*`.
    const fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Column in the table of numbers.
    const fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::X86 => 1,
            Self::X32 => 2,
            Self::Aarch64 => 3,
            Self::Arm => 4,
        }
    }

    const fn is_32_bit(self) -> bool {
        matches!(self, Self::X86 | Self::Arm)
    }

    /// `Ok(None)` is one that cannot run on this machine, so that no rule for it is needed.
    fn parse(name: &str) -> Result<Option<Self>, ()> {
        let here = match name {
            "SCMP_ARCH_NATIVE" => Self::NATIVE,
            "SCMP_ARCH_X86_64" => Self::X86_64,
            "SCMP_ARCH_X86" => Self::X86,
            "SCMP_ARCH_X32" => Self::X32,
            "SCMP_ARCH_AARCH64" => Self::Aarch64,
            "SCMP_ARCH_ARM" => Self::Arm,
            "SCMP_ARCH_MIPS"
            | "SCMP_ARCH_MIPS64"
            | "SCMP_ARCH_MIPS64N32"
            | "SCMP_ARCH_MIPSEL"
            | "SCMP_ARCH_MIPSEL64"
            | "SCMP_ARCH_MIPSEL64N32"
            | "SCMP_ARCH_PPC"
            | "SCMP_ARCH_PPC64"
            | "SCMP_ARCH_PPC64LE"
            | "SCMP_ARCH_S390"
            | "SCMP_ARCH_S390X"
            | "SCMP_ARCH_PARISC"
            | "SCMP_ARCH_PARISC64"
            | "SCMP_ARCH_RISCV64"
            | "SCMP_ARCH_LOONGARCH64"
            | "SCMP_ARCH_M68K"
            | "SCMP_ARCH_SH"
            | "SCMP_ARCH_SHEB" => return Ok(None),
            _ => return Err(()),
        };
        let family = |architecture: Self| matches!(architecture, Self::X86_64 | Self::X86 | Self::X32);
        Ok((family(here) == family(Self::NATIVE)).then_some(here))
    }
}

/// How a condition compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// The argument under a mask equals the value.
    Masked(u64),
}

/// One condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condition {
    index: u32,
    operator: Operator,
    value: u64,
}

/// What happens for one system call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Leaf {
    /// Tried in order: all conditions of one hold → its result.
    alternatives: Vec<(Vec<Condition>, u32)>,
    /// Result when no alternative holds; `None` is the default action.
    otherwise: Option<u32>,
}

/// Compile a profile.
///
/// # Errors
/// A name, action, operator or flag that is unknown, or a filter too long for the kernel.
pub fn compile(profile: &Seccomp) -> Result<Filter, SeccompError> {
    if profile.listener_path.as_deref().is_some_and(|path| !path.is_empty()) {
        return Err(invalid("listenerPath", "user-space notification is not supported by this runtime"));
    }
    let default = action(&profile.default_action, profile.default_errno_ret, "defaultAction", "defaultErrnoRet")?;
    let flags = filter_flags(profile.flags.as_deref())?;
    let mut architectures = vec![Architecture::NATIVE];
    for (index, name) in profile.architectures.iter().enumerate() {
        let path = || format!("architectures[{index}]");
        let parsed = Architecture::parse(name)
            .map_err(|()| invalid(path(), format!("`{name}` is not an architecture of seccomp")))?;
        if let Some(architecture) = parsed.filter(|architecture| !architectures.contains(architecture)) {
            architectures.push(architecture);
        }
    }
    let rules = parse_rules(profile, default)?;
    let mut program = Assembler::default();
    let mut dispatch = program.result(KILL_PROCESS);
    for &architecture in architectures.iter().rev().filter(|&&architecture| architecture != Architecture::X32) {
        let mut intervals = intervals(&rules, architecture, default);
        if architecture == Architecture::X86_64 {
            // x32 calls come with the same architecture and their own bit; -1 is a call a tracer has skipped.
            if architectures.contains(&Architecture::X32) {
                let shifted = self::intervals(&rules, Architecture::X32, default).into_iter();
                intervals.retain(|(start, _)| *start < X32_BIT);
                intervals.extend(
                    shifted.map(|(start, leaf)| (start + X32_BIT, leaf)).filter(|(start, _)| *start != u32::MAX),
                );
            } else {
                intervals.retain(|(start, _)| *start < X32_BIT);
                intervals.push((X32_BIT, Leaf { otherwise: Some(KILL_PROCESS), ..Leaf::default() }));
            }
            intervals.push((u32::MAX, Leaf { otherwise: Some(default), ..Leaf::default() }));
        }
        let search = search(&mut program, &intervals, default, architecture);
        let search = program.load(assembler::NUMBER, search);
        dispatch = program.jump_equal(architecture.audit(), search, dispatch);
    }
    program.load(assembler::ARCHITECTURE, dispatch);
    let program = program.finish();
    if program.len() > INSTRUCTIONS_MAX {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(Filter { program, flags })
}

/// A binary search over the intervals, returning its first instruction.
fn search(program: &mut Assembler, intervals: &[(u32, Leaf)], default: u32, architecture: Architecture) -> usize {
    match intervals {
        [] => program.result(default),
        [(_, leaf)] => {
            let mut next = program.result(leaf.otherwise.unwrap_or(default));
            for (conditions, result) in leaf.alternatives.iter().rev() {
                let mut holds = program.result(*result);
                for condition in conditions.iter().rev() {
                    holds = test(program, *condition, architecture, holds, next);
                }
                next = holds;
            }
            next
        }
        _ => {
            let (left, right) = intervals.split_at(intervals.len() / 2);
            let start = right[0].0;
            let right = search(program, right, default, architecture);
            let left = search(program, left, default, architecture);
            program.jump_at_least(start, right, left)
        }
    }
}

/// One condition: where to go when it holds and when it does not.
fn test(program: &mut Assembler, condition: Condition, architecture: Architecture, yes: usize, no: usize) -> usize {
    let Condition { index, operator, value } = condition;
    let (low, high) = (value as u32, (value >> 32) as u32);
    let (low_at, high_at) = (assembler::argument_low(index), assembler::argument_high(index));
    let narrow = architecture.is_32_bit();
    match operator {
        Operator::NotEqual => {
            return test(program, Condition { operator: Operator::Equal, ..condition }, architecture, no, yes);
        }
        Operator::Less => {
            return test(program, Condition { operator: Operator::GreaterEqual, ..condition }, architecture, no, yes);
        }
        Operator::LessEqual => {
            return test(program, Condition { operator: Operator::Greater, ..condition }, architecture, no, yes);
        }
        _ => {}
    }
    let low_test = match operator {
        Operator::Masked(mask) => {
            let masked = mask as u32;
            let compare = program.jump_equal(low & masked, yes, no);
            program.and(masked, compare)
        }
        Operator::Greater => program.jump_above(low, yes, no),
        Operator::GreaterEqual => program.jump_at_least(low, yes, no),
        _ => program.jump_equal(low, yes, no),
    };
    let low_test = program.load(low_at, low_test);
    if narrow {
        return low_test;
    }
    let high_test = match operator {
        Operator::Masked(mask) => {
            let masked = (mask >> 32) as u32;
            let compare = program.jump_equal(high & masked, low_test, no);
            program.and(masked, compare)
        }
        Operator::Greater | Operator::GreaterEqual => {
            let equal = program.jump_equal(high, low_test, no);
            program.jump_above(high, yes, equal)
        }
        _ => program.jump_equal(high, low_test, no),
    };
    program.load(high_at, high_test)
}

/// A rule with its names, actions and conditions understood.
struct Rule<'a> {
    names: &'a [String],
    alternatives: Vec<Vec<Condition>>,
    result: u32,
}

fn parse_rules<'a>(profile: &'a Seccomp, default: u32) -> Result<Vec<Rule<'a>>, SeccompError> {
    let mut rules = Vec::with_capacity(profile.syscalls.len());
    for (number, rule) in profile.syscalls.iter().enumerate() {
        let at = format!("syscalls[{number}]");
        let result = action(&rule.action, rule.errno_ret, &format!("{at}.action"), &format!("{at}.errnoRet"))?;
        if rule.names.is_empty() {
            return Err(invalid(format!("{at}.names"), "is empty"));
        }
        for (index, name) in rule.names.iter().enumerate() {
            // A name nobody knows may be allowed in vain; denying it in vain would be a hole.
            if !permits(result) && permits(default) && !is_known(name) {
                let path = format!("{at}.names[{index}]");
                return Err(invalid(path, format!("`{name}` is no known system call, so it cannot be denied")));
            }
        }
        rules.push(Rule { names: &rule.names, alternatives: conditions(rule, &at)?, result });
    }
    Ok(rules)
}

fn permits(result: u32) -> bool {
    matches!(result, ALLOW | LOG)
}

fn is_known(name: &str) -> bool {
    numbers(name).is_some() || syscalls::ELSEWHERE.contains(&name)
}

fn numbers(name: &str) -> Option<&'static [i32; 5]> {
    let found = syscalls::TABLE.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    Some(&syscalls::TABLE[found].1)
}

/// The conditions of a rule. Several on the same argument are alternatives, as runc and its users have it.
fn conditions(rule: &SyscallRule, at: &str) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let mut all = Vec::with_capacity(rule.args.len());
    for (index, arg) in rule.args.iter().enumerate() {
        let path = format!("{at}.args[{index}]");
        if arg.index > 5 {
            return Err(invalid(format!("{path}.index"), format!("{} is above 5", arg.index)));
        }
        let (operator, value) = match arg.op.as_str() {
            "SCMP_CMP_EQ" => (Operator::Equal, arg.value),
            "SCMP_CMP_NE" => (Operator::NotEqual, arg.value),
            "SCMP_CMP_LT" => (Operator::Less, arg.value),
            "SCMP_CMP_LE" => (Operator::LessEqual, arg.value),
            "SCMP_CMP_GT" => (Operator::Greater, arg.value),
            "SCMP_CMP_GE" => (Operator::GreaterEqual, arg.value),
            "SCMP_CMP_MASKED_EQ" => (Operator::Masked(arg.value), arg.value_two),
            other => {
                return Err(invalid(format!("{path}.op"), format!("`{other}` is not a comparison")));
            }
        };
        all.push(Condition { index: arg.index, operator, value });
    }
    let repeats = (0..6).any(|index| all.iter().filter(|condition| condition.index == index).count() > 1);
    Ok(if all.is_empty() {
        Vec::new()
    } else if repeats {
        all.into_iter().map(|condition| vec![condition]).collect()
    } else {
        vec![all]
    })
}

/// 32-bit x86 has two ways to make some calls: directly, and through `socketcall` or `ipc` with a number.
const MULTIPLEXED: &[(&str, &[(&str, u64)])] = &[
    (
        "socketcall",
        &[
            ("socket", 1),
            ("bind", 2),
            ("connect", 3),
            ("listen", 4),
            ("accept", 5),
            ("getsockname", 6),
            ("getpeername", 7),
            ("socketpair", 8),
            ("send", 9),
            ("recv", 10),
            ("sendto", 11),
            ("recvfrom", 12),
            ("shutdown", 13),
            ("setsockopt", 14),
            ("getsockopt", 15),
            ("sendmsg", 16),
            ("recvmsg", 17),
            ("accept4", 18),
            ("recvmmsg", 19),
            ("sendmmsg", 20),
        ],
    ),
    (
        "ipc",
        &[
            ("semop", 1),
            ("semget", 2),
            ("semctl", 3),
            ("semtimedop", 4),
            ("msgsnd", 11),
            ("msgrcv", 12),
            ("msgget", 13),
            ("msgctl", 14),
            ("shmat", 21),
            ("shmdt", 22),
            ("shmget", 23),
            ("shmctl", 24),
        ],
    ),
];

/// What each system call number of an architecture leads to, as the start of each run of equal leaves.
fn intervals(rules: &[Rule<'_>], architecture: Architecture, default: u32) -> Vec<(u32, Leaf)> {
    let mut leaves: BTreeMap<u32, Leaf> = BTreeMap::new();
    for rule in rules {
        for name in rule.names {
            let number = numbers(name).map_or(-1, |numbers| numbers[architecture.column()]);
            if let Ok(number) = u32::try_from(number) {
                add(leaves.entry(number).or_default(), &rule.alternatives, rule.result);
            }
            if architecture != Architecture::X86 || !rule.alternatives.is_empty() {
                continue;
            }
            for (carrier, calls) in MULTIPLEXED {
                let call = calls.iter().find(|(call, _)| call == name);
                let carrier = numbers(carrier).and_then(|numbers| u32::try_from(numbers[1]).ok());
                if let (Some(&(_, value)), Some(carrier)) = (call, carrier) {
                    let condition = Condition { index: 0, operator: Operator::Equal, value };
                    add(leaves.entry(carrier).or_default(), &[vec![condition]], rule.result);
                }
            }
        }
    }
    // A call newer than any the profile speaks of: its author did not mean to forbid it, and programs fall back only
    // on ENOSYS. The highest Arm-private numbers do not count as "newest".
    let newest = leaves.keys().copied().filter(|&number| number < 0xf_0000).max();
    let tail = match newest {
        Some(_) if default & 0xffff_0000 == ERRNO => Some(ERRNO | libc::ENOSYS as u32),
        _ => None,
    };
    let mut runs: Vec<(u32, Leaf)> = Vec::new();
    let mut push = |start: u32, leaf: Leaf| {
        let leaf = if leaf.alternatives.is_empty() {
            Leaf { otherwise: Some(leaf.otherwise.unwrap_or(default)), ..leaf }
        } else {
            leaf
        };
        match runs.last_mut() {
            Some(last) if last.1 == leaf => {}
            Some(last) if last.0 == start => last.1 = leaf,
            _ => runs.push((start, leaf)),
        }
    };
    push(0, Leaf::default());
    let gap = |number: u32| Leaf {
        otherwise: if newest.is_some_and(|newest| number > newest) { tail } else { None },
        ..Leaf::default()
    };
    for (number, leaf) in leaves {
        push(number, leaf);
        push(number + 1, gap(number + 1));
    }
    runs
}

fn add(leaf: &mut Leaf, alternatives: &[Vec<Condition>], result: u32) {
    if alternatives.is_empty() {
        leaf.otherwise.get_or_insert(result);
    } else {
        leaf.alternatives.extend(alternatives.iter().map(|conditions| (conditions.clone(), result)));
    }
}

/// The filter's return value for an action.
fn action(name: &str, errno: Option<u32>, path: &str, errno_path: &str) -> Result<u32, SeccompError> {
    let with_errno = |base: u32| {
        let errno = errno.unwrap_or(libc::EPERM as u32);
        if errno > 0xffff { Err(invalid(errno_path, format!("{errno} is above 65535"))) } else { Ok(base | errno) }
    };
    let result = match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_ERRNO" => return with_errno(ERRNO),
        "SCMP_ACT_TRACE" => return with_errno(0x7ff0_0000),
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_NOTIFY" => {
            return Err(invalid(path, "user-space notification is not supported by this runtime"));
        }
        other => return Err(invalid(path, format!("`{other}` is not an action"))),
    };
    match errno {
        Some(_) => Err(invalid(errno_path, format!("`{name}` returns no error number"))),
        None => Ok(result),
    }
}

/// `SECCOMP_FILTER_FLAG_*`; without a list, speculation stays allowed, as runc does.
fn filter_flags(names: Option<&[String]>) -> Result<u32, SeccompError> {
    const SPEC_ALLOW: u32 = 4;
    let Some(names) = names else {
        return Ok(SPEC_ALLOW);
    };
    let mut flags = 0;
    for (index, name) in names.iter().enumerate() {
        flags |= match name.as_str() {
            // We have one thread, which TSYNC then means; the kernel's flag is 1.
            "SECCOMP_FILTER_FLAG_TSYNC" => 1,
            "SECCOMP_FILTER_FLAG_LOG" => 2,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => SPEC_ALLOW,
            _ => {
                return Err(invalid(format!("flags[{index}]"), format!("`{name}` is not supported")));
            }
        };
    }
    Ok(flags)
}

#[cfg(test)]
mod tests;
