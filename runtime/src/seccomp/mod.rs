//! From an OCI seccomp profile to a classic BPF program.
//!
//! ```text
//! profile ─ rules ─► per architecture: number → leaf ─► runs of equal leaves ─► balanced search ─► instructions
//! ```
//! libseccomp needs 0.8 to 19 ms for the usual default profile; here it is some tens of microseconds, and the program
//! is a third as long, which is what the kernel's time to load it depends on (all measured).
//!
//! What a profile means is in [`rules`]; it equals what libseccomp makes of it, and a test compares the two programs
//! over all calls. Two things go beyond a profile, as in runc:
//!
//! - A call newer than any the profile speaks of answers `ENOSYS` unless the default action lets calls happen: its
//!   author cannot have meant it, and programs fall back on that error only.
//! - A call of an architecture that is not listed kills the thread.

mod architecture;
mod assembler;
pub mod notify;
mod rules;
mod syscalls;

use crate::config::Seccomp;
use crate::sys::seccomp::Instruction;
use architecture::{Architecture, X32_BIT};
use assembler::Assembler;
use rules::{Alternative, Calls, Condition, Leaf, Operator};

/// Most instructions the kernel takes, `BPF_MAXINSNS`.
const INSTRUCTIONS_MAX: usize = 4096;
/// `SECCOMP_RET_KILL_THREAD`.
const KILL_THREAD: u32 = 0;
/// `SECCOMP_RET_KILL_PROCESS`.
const KILL_PROCESS: u32 = 0x8000_0000;
/// `SECCOMP_RET_TRAP`.
const TRAP: u32 = 0x0003_0000;
/// `SECCOMP_RET_ERRNO`; the error number is in the low half.
const ERRNO: u32 = 0x0005_0000;
/// `SECCOMP_RET_USER_NOTIF`.
const NOTIFY: u32 = 0x7fc0_0000;
/// `SECCOMP_RET_TRACE`; a number for the tracer is in the low half.
const TRACE: u32 = 0x7ff0_0000;
/// `SECCOMP_RET_LOG`.
const LOG: u32 = 0x7ffc_0000;
/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;
/// Highest error number the kernel returns, `MAX_ERRNO`.
const ERRNO_MAX: u32 = 4095;

/// Every action of a profile.
pub const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

/// A profile that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// A value that is wrong.
    #[error("config.json: $.linux.seccomp.{path}: {problem}")]
    Invalid {
        /// JSON path below `linux.seccomp`.
        path: String,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// More than the kernel takes.
    #[error("config.json: $.linux.seccomp: the filter needs {0} instructions, the kernel takes {INSTRUCTIONS_MAX}")]
    TooLong(usize),
}

impl SeccompError {
    /// What the operator can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Invalid { .. } => None,
            Self::TooLong(_) => Some("use fewer conditions on arguments, or fewer `architectures`".to_owned()),
        }
    }
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
    /// An agent decides about some calls, and has to get the listener.
    pub notifies: bool,
    /// What to tell the operator.
    pub warnings: Vec<String>,
}

/// Compile a profile.
///
/// # Errors
/// An action, architecture, operator or flag that is unknown, or a filter too long for the kernel.
pub fn compile(profile: &Seccomp) -> Result<Filter, SeccompError> {
    compile_for(profile, Architecture::NATIVE)
}

fn compile_for(profile: &Seccomp, native: Architecture) -> Result<Filter, SeccompError> {
    let path = |name: &'static str| move || name.to_owned();
    let default =
        action(&profile.default_action, profile.default_errno_ret, path("defaultAction"), path("defaultErrnoRet"))?;
    if default == NOTIFY {
        return Err(invalid("defaultAction", "SCMP_ACT_NOTIFY cannot be used as default action"));
    }
    let architectures = architectures(&profile.architectures, native)?;
    let rules = rules::parse(profile, default)?;
    let notifies = rules.rules.iter().any(|rule| rule.is(NOTIFY));
    if notifies && profile.listener_path.as_deref().unwrap_or("").is_empty() {
        let problem = "is missing, but a rule has the action SCMP_ACT_NOTIFY; it must name the socket of an agent";
        return Err(invalid("listenerPath", problem));
    }
    let flags = filter_flags(profile.flags.as_deref(), notifies)?;
    let mut program = Assembler::default();
    let mut dispatch = program.result(KILL_THREAD);
    for &architecture in architectures.iter().rev().filter(|&&architecture| architecture != Architecture::X32) {
        let has_x32 = architecture == Architecture::X86_64 && architectures.contains(&Architecture::X32);
        let search = decide(&mut program, &rules.rules, architecture, has_x32, default);
        let search = program.load(assembler::NUMBER, search);
        dispatch = program.jump_equal(architecture.audit(), search, dispatch);
    }
    program.load(assembler::ARCHITECTURE, dispatch);
    let program = program.finish();
    if program.len() > INSTRUCTIONS_MAX {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(Filter { program, flags, notifies, warnings: rules.warnings })
}

/// Those a profile lists and this machine can run, the native one first. For others no rule is needed.
fn architectures(names: &[String], native: Architecture) -> Result<Vec<Architecture>, SeccompError> {
    let mut architectures = vec![native];
    for (index, name) in names.iter().enumerate() {
        let Some(architecture) = Architecture::parse(name) else {
            let allowed: Vec<_> = Architecture::names().collect();
            let problem = format!("`{}` is not one of {}", name.escape_debug(), allowed.join(", "));
            return Err(invalid(format!("architectures[{index}]"), problem));
        };
        if architecture.shares_kernel_with(native) && !architectures.contains(&architecture) {
            architectures.push(architecture);
        }
    }
    Ok(architectures)
}

/// Code that decides about a call by its number, which is loaded.
fn decide(
    program: &mut Assembler,
    rules: &[rules::Rule],
    architecture: Architecture,
    has_x32: bool,
    default: u32,
) -> usize {
    let mut tree = Tree::new(program, rules, architecture, default);
    if architecture != Architecture::X86_64 {
        return tree.search();
    }
    // x32 calls come as x86_64 ones with a bit of their own; -1 is a call that a tracer has skipped.
    tree.end = X32_BIT;
    let native = tree.search();
    let skipped = program.result(default);
    let other = if has_x32 {
        let mut tree = Tree::new(program, rules, Architecture::X32, default);
        tree.runs.remove(0);
        tree.search()
    } else {
        program.result(KILL_THREAD)
    };
    let other = program.jump_equal(u32::MAX, skipped, other);
    program.jump_at_least(X32_BIT, other, native)
}

/// Most numbers to try one by one rather than divide again: as long as half a division, and as deep.
const TRIED: usize = 3;

/// A search among the calls of one architecture.
struct Tree<'a> {
    program: &'a mut Assembler,
    architecture: Architecture,
    default: u32,
    runs: Vec<(u32, Leaf)>,
    conditional: Vec<Vec<Alternative>>,
    /// Code for each of these, where there is any yet.
    labels: Vec<Option<usize>>,
    /// Numbers from here on do not come.
    end: u32,
}

impl<'a> Tree<'a> {
    fn new(program: &'a mut Assembler, rules: &[rules::Rule], architecture: Architecture, default: u32) -> Self {
        let mut calls = Calls::new(rules, architecture);
        let newer = match action_code(default) {
            ALLOW | LOG | TRACE => default,
            _ => ERRNO | libc::ENOSYS as u32,
        };
        let mut runs = calls.runs(architecture, default, newer);
        runs.iter_mut().for_each(|(start, _)| *start += architecture.base());
        if architecture.base() != 0 {
            // Below the base are calls of other conventions: of x86_64, or such as no kernel of this architecture takes.
            runs.insert(0, (0, Leaf::Result(default)));
        }
        if architecture.has_empty_call() && calls.newest.is_some() && newer != default {
            // A number that does not fit into the instruction and is not known comes as 0, which is no call any more.
            match runs.get(1) {
                Some((1, _)) => {}
                _ => runs.insert(1, (1, runs[0].1)),
            }
            runs[0].1 = Leaf::Result(newer);
        }
        let labels = vec![None; calls.conditional.len()];
        Self { program, architecture, default, runs, conditional: calls.conditional, labels, end: u32::MAX }
    }

    fn search(&mut self) -> usize {
        let runs = std::mem::take(&mut self.runs);
        self.divide(&runs, self.end)
    }

    fn divide(&mut self, runs: &[(u32, Leaf)], end: u32) -> usize {
        let [(_, first), ..] = *runs else {
            return self.program.result(self.default);
        };
        if let [_] = runs {
            return self.leaf(first);
        }
        for base in [first, runs[1].1] {
            if let Some(label) = self.try_each(runs, end, base) {
                return label;
            }
        }
        let (left, right) = runs.split_at(runs.len() / 2);
        let start = right[0].0;
        let right = self.divide(right, end);
        let left = self.divide(left, start);
        self.program.jump_at_least(start, right, left)
    }

    /// One leaf with a few exceptions of one number each.
    fn try_each(&mut self, runs: &[(u32, Leaf)], end: u32, base: Leaf) -> Option<usize> {
        let ends = runs.iter().skip(1).map(|(start, _)| *start).chain(std::iter::once(end));
        let exceptions = || runs.iter().zip(ends.clone()).filter(|((_, leaf), _)| *leaf != base);
        let count = exceptions().count();
        let single = exceptions().all(|((start, _), end)| end - start == 1);
        if !single || count > TRIED || count >= runs.len() {
            return None;
        }
        let mut next = self.leaf(base);
        for ((number, leaf), _) in exceptions() {
            let other = self.leaf(*leaf);
            next = self.program.jump_equal(*number, other, next);
        }
        Some(next)
    }

    fn leaf(&mut self, leaf: Leaf) -> usize {
        let index = match leaf {
            Leaf::Result(result) => return self.program.result(result),
            Leaf::Conditions(index) => index,
        };
        if let Some(label) = self.labels[index] {
            return label;
        }
        let mut next = self.program.result(self.default);
        for Alternative { conditions, result } in self.conditional[index].iter().rev() {
            let mut holds = self.program.result(*result);
            for condition in conditions.iter().rev() {
                holds = test(self.program, *condition, self.architecture, holds, next);
            }
            next = holds;
        }
        self.labels[index] = Some(next);
        next
    }
}

/// One condition: where to go when it holds and when it does not.
fn test(program: &mut Assembler, condition: Condition, architecture: Architecture, yes: usize, no: usize) -> usize {
    let Condition { index, operator, value } = condition;
    let opposite = match operator {
        Operator::NotEqual => Some(Operator::Equal),
        Operator::Less => Some(Operator::GreaterEqual),
        Operator::LessEqual => Some(Operator::Greater),
        _ => None,
    };
    if let Some(operator) = opposite {
        return test(program, Condition { operator, ..condition }, architecture, no, yes);
    }
    let (low, high) = (value as u32, (value >> 32) as u32);
    let low_test = match operator {
        // Nothing of this half counts.
        Operator::Masked(mask) if mask as u32 == 0 => yes,
        Operator::Masked(mask) => {
            let masked = mask as u32;
            let compare = program.jump_equal(low & masked, yes, no);
            let compare = if masked == u32::MAX { compare } else { program.and(masked, compare) };
            program.load(architecture.low(index), compare)
        }
        Operator::Greater => {
            let compare = program.jump_above(low, yes, no);
            program.load(architecture.low(index), compare)
        }
        Operator::GreaterEqual => {
            let compare = program.jump_at_least(low, yes, no);
            program.load(architecture.low(index), compare)
        }
        _ => {
            let compare = program.jump_equal(low, yes, no);
            program.load(architecture.low(index), compare)
        }
    };
    if !architecture.is_wide() {
        return low_test;
    }
    let high_test = match operator {
        Operator::Masked(mask) if mask >> 32 == 0 => return low_test,
        Operator::Masked(mask) => {
            let masked = (mask >> 32) as u32;
            let compare = program.jump_equal(high & masked, low_test, no);
            if masked == u32::MAX { compare } else { program.and(masked, compare) }
        }
        Operator::Greater | Operator::GreaterEqual => {
            let equal = program.jump_equal(high, low_test, no);
            program.jump_above(high, yes, equal)
        }
        _ => program.jump_equal(high, low_test, no),
    };
    program.load(architecture.high(index), high_test)
}

/// The action of a filter's return value, without its data.
const fn action_code(result: u32) -> u32 {
    result & 0xffff_0000
}

/// The filter's return value for an action.
fn action(
    name: &str,
    errno: Option<u32>,
    path: impl Fn() -> String,
    errno_path: impl Fn() -> String,
) -> Result<u32, SeccompError> {
    let with_data = |base: u32, max: u32| {
        let data = errno.unwrap_or(libc::EPERM as u32);
        if data > max { Err(invalid(errno_path(), format!("{data} is above {max}"))) } else { Ok(base | data) }
    };
    let result = match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_ERRNO" => return with_data(ERRNO, ERRNO_MAX),
        "SCMP_ACT_TRACE" => return with_data(TRACE, 0xffff),
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_NOTIFY" => NOTIFY,
        "" => return Err(invalid(path(), format!("is missing; it is one of {}", ACTIONS.join(", ")))),
        other => {
            return Err(invalid(path(), format!("`{}` is not one of {}", other.escape_debug(), ACTIONS.join(", "))));
        }
    };
    match errno {
        Some(errno) => {
            let problem = format!("{errno} is given, but `{name}` returns no error; SCMP_ACT_ERRNO and _TRACE do");
            Err(invalid(errno_path(), problem))
        }
        None => Ok(result),
    }
}

/// Flags of a profile and of `seccomp(2)`.
pub const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 1),
    ("SECCOMP_FILTER_FLAG_LOG", 2),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 4),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 32),
];
const SPEC_ALLOW: u32 = 4;
const NEW_LISTENER: u32 = 8;
const WAIT_KILLABLE: u32 = 32;

/// `SECCOMP_FILTER_FLAG_*`; without a list, speculation stays allowed, as runc does.
fn filter_flags(names: Option<&[String]>, notifies: bool) -> Result<u32, SeccompError> {
    let mut flags = if names.is_none() { SPEC_ALLOW } else { 0 };
    for (index, name) in names.into_iter().flatten().enumerate() {
        let Some((_, flag)) = FLAGS.iter().find(|(known, _)| known == name) else {
            let allowed = FLAGS.map(|(known, _)| known).join(", ");
            let problem = format!("`{}` is not one of {allowed}", name.escape_debug());
            return Err(invalid(format!("flags[{index}]"), problem));
        };
        flags |= flag;
    }
    // There is one thread, and the kernel gives a listener for one only.
    Ok(if notifies { flags & !1 | NEW_LISTENER } else { flags & !WAIT_KILLABLE })
}

#[cfg(test)]
mod differential;
#[cfg(test)]
mod tests;
