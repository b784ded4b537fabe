//! What a profile says about each call of an architecture.
//!
//! # Precedence
//! As libseccomp has it, which runc and crun give a profile to rule by rule, and which the specification is silent on:
//!
//! - A rule whose action is the default action is dropped.
//! - The first rule without conditions decides; rules with conditions beside it, before or after, are dropped.
//! - Otherwise the rules with conditions are asked in an order that does not depend on the profile: higher arguments
//!   first, there equality before `LT` and `LE` before `GT` and `GE`, there the narrower one first; where that says
//!   nothing, in the order of the profile. The first that holds decides, then the default action.
//! - Conditions of a rule hold together, but if two are on the same argument, each is a rule of its own.

use super::architecture::Architecture;
use super::{SeccompError, action, action_code, invalid, syscalls};
use crate::config::{Seccomp, SyscallRule};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// How a condition compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// The argument under a mask equals the value.
    Masked(u64),
}

/// Their names in a profile.
const OPERATORS: [&str; 7] =
    ["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"];

/// One condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u32,
    pub(super) operator: Operator,
    pub(super) value: u64,
}

/// Conditions that must hold together, and what happens then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alternative {
    pub(super) conditions: Vec<Condition>,
    pub(super) result: u32,
}

/// A rule with its names, action and conditions understood.
pub(super) struct Rule {
    /// Rows of the table of calls.
    rows: Vec<u16>,
    /// Each by itself is enough; none is no condition.
    alternatives: Vec<Vec<Condition>>,
    /// `None` is the default action.
    result: Option<u32>,
}

impl Rule {
    /// Whether its action is this one.
    pub(super) fn is(&self, code: u32) -> bool {
        self.result.is_some_and(|result| action_code(result) == code)
    }
}

/// All rules of a profile, and what to tell the operator about them.
pub(super) struct Rules {
    pub(super) rules: Vec<Rule>,
    pub(super) warnings: Vec<String>,
}

/// Understand the rules of a profile.
pub(super) fn parse(profile: &Seccomp, default: u32) -> Result<Rules, SeccompError> {
    let mut warnings = Vec::new();
    let mut rules = Vec::with_capacity(profile.syscalls.len());
    for (number, rule) in profile.syscalls.iter().enumerate() {
        let at = |key: &str| format!("syscalls[{number}].{key}");
        let result = action(&rule.action, rule.errno_ret, || at("action"), || at("errnoRet"))?;
        if rule.names.is_empty() {
            return Err(invalid(at("names"), "is empty; a rule needs the name of a system call"));
        }
        let mut rows = Vec::with_capacity(rule.names.len());
        for (index, name) in rule.names.iter().enumerate() {
            match syscalls::row(name) {
                Some(row) => rows.push(row),
                None if name.is_empty() => {
                    return Err(invalid(at(&format!("names[{index}]")), "is empty; it must name a system call"));
                }
                // Allowed in vain: no harm. Denied in vain: the kernel may know it.
                None if permits(default) && !permits(result) => warnings.push(format!(
                    "config.json: $.linux.seccomp.{}: `{}` is no known system call, so the rule does nothing",
                    at(&format!("names[{index}]")),
                    name.escape_debug()
                )),
                None => {}
            }
        }
        if action_code(result) == super::NOTIFY && rule.names.iter().any(|name| name == "write") {
            // As runc has it: with its errors waiting for an agent, no program can tell that there is none.
            return Err(invalid(at("action"), "SCMP_ACT_NOTIFY cannot be used for the write syscall"));
        }
        let result = (result != default).then_some(result);
        rules.push(Rule { rows, alternatives: conditions(rule, number)?, result });
    }
    Ok(Rules { rules, warnings })
}

/// Actions that let the call happen.
pub(super) fn permits(result: u32) -> bool {
    matches!(result, super::ALLOW | super::LOG)
}

/// The conditions of a rule.
fn conditions(rule: &SyscallRule, number: usize) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let mut all: Vec<Condition> = Vec::with_capacity(rule.args.len());
    let mut repeats = false;
    for (place, arg) in rule.args.iter().enumerate() {
        let at = |key: &str| format!("syscalls[{number}].args[{place}].{key}");
        if arg.index > 5 {
            return Err(invalid(at("index"), format!("{} is not an argument, they are 0 to 5", arg.index)));
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
                let allowed = OPERATORS.join(", ");
                return Err(invalid(at("op"), format!("`{}` is not one of {allowed}", other.escape_debug())));
            }
        };
        repeats |= all.iter().any(|other| other.index == arg.index);
        all.push(Condition { index: arg.index, operator, value });
    }
    Ok(if all.is_empty() {
        Vec::new()
    } else if repeats {
        all.into_iter().map(|condition| vec![condition]).collect()
    } else {
        // Arguments are compared in their order, whatever the order in the profile.
        all.sort_by_key(|condition| condition.index);
        vec![all]
    })
}

/// Calls that others may carry, and by which number, from `linux/net.h` and `linux/ipc.h`.
const SOCKET_CALLS: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];
const IPC_CALLS: [(&str, u64); 12] = [
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
];

/// Names of calls that others may carry.
#[cfg(test)]
pub(super) fn carried() -> impl Iterator<Item = &'static str> {
    SOCKET_CALLS.into_iter().chain(IPC_CALLS.map(|(name, _)| name))
}

/// For each row: the row of the call that carries it, and the number it has there.
fn carriers() -> BTreeMap<u16, (u16, u64)> {
    let sockets = SOCKET_CALLS.iter().zip(1..).map(|(name, number)| (*name, "socketcall", number));
    let all = sockets.chain(IPC_CALLS.iter().map(|(name, number)| (*name, "ipc", *number)));
    all.filter_map(|(name, carrier, number)| Some((syscalls::row(name)?, (syscalls::row(carrier)?, number)))).collect()
}

/// Numbers that have a place of their own in [`Calls`]; then come those that Arm keeps for itself.
const DENSE: usize = 1024;
/// How many of these there may be.
const PRIVATE: usize = 16;

/// What happens for one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaf {
    /// Always this.
    Result(u32),
    /// One of [`Calls::conditional`].
    Conditions(usize),
}

/// What happens for every call of one architecture. Numbers are without its base.
pub(super) struct Calls {
    /// By number: the result of a rule without conditions.
    plain: Vec<Option<u32>>,
    /// By number: rules with conditions, in the order of the profile.
    alternatives: BTreeMap<usize, Vec<Alternative>>,
    /// Different lists of alternatives, in the order they are asked.
    pub(super) conditional: Vec<Vec<Alternative>>,
    /// Highest number that any rule speaks of, Arm's own ones apart.
    pub(super) newest: Option<u32>,
}

impl Calls {
    pub(super) fn new(rules: &[Rule], architecture: Architecture) -> Self {
        let mut calls = Self {
            plain: vec![None; DENSE + PRIVATE],
            alternatives: BTreeMap::new(),
            conditional: Vec::new(),
            newest: None,
        };
        let carriers = if architecture.multiplexes() { carriers() } else { BTreeMap::new() };
        for rule in rules {
            let alternatives: Vec<_> = rule.alternatives.iter().map(|all| effective(all, architecture)).collect();
            for &row in &rule.rows {
                if let Some(&(carrier, number)) = carriers.get(&row)
                    && let Some(place) = architecture.number(carrier).and_then(place)
                    && let Some(result) = rule.result
                {
                    let carried = Condition { index: 0, operator: Operator::Equal, value: number };
                    if alternatives.is_empty() {
                        calls.add(place, vec![carried], result);
                    }
                    for conditions in &alternatives {
                        // The carrier's first argument says which call it is; its others stand where those of the call
                        // would stand. They are pointers in truth, but that is what the other runtimes compare.
                        let rest = conditions.iter().filter(|condition| condition.index != 0).copied();
                        calls.add(place, std::iter::once(carried).chain(rest).collect(), result);
                    }
                }
                let Some(number) = architecture.number(row) else { continue };
                let Some(place) = place(number) else { continue };
                if place < DENSE {
                    calls.newest = calls.newest.max(Some(number));
                }
                let Some(result) = rule.result else { continue };
                if alternatives.is_empty() {
                    calls.add(place, Vec::new(), result);
                }
                for conditions in &alternatives {
                    calls.add(place, conditions.clone(), result);
                }
            }
        }
        calls
    }

    fn add(&mut self, place: usize, conditions: Vec<Condition>, result: u32) {
        if self.plain[place].is_some() {
            return;
        }
        if conditions.is_empty() {
            self.plain[place] = Some(result);
            self.alternatives.remove(&place);
        } else {
            self.alternatives.entry(place).or_default().push(Alternative { conditions, result });
        }
    }

    /// The runs of equal leaves by their first number.
    ///
    /// - `default`: for what no rule speaks of.
    /// - `newer`: for what is newer than all that rules speak of.
    pub(super) fn runs(&mut self, architecture: Architecture, default: u32, newer: u32) -> Vec<(u32, Leaf)> {
        let mut runs: Vec<(u32, Leaf)> = Vec::new();
        let mut push = |start: u32, leaf: Leaf| match runs.last_mut() {
            Some(last) if last.1 == leaf => {}
            _ => runs.push((start, leaf)),
        };
        let gap =
            |number: u32| Leaf::Result(if self.newest.is_some_and(|newest| number > newest) { newer } else { default });
        let last = self.newest.map_or(0, |newest| newest as usize + 1);
        let mut conditional = std::mem::take(&mut self.alternatives).into_iter().peekable();
        for (place, plain) in self.plain.iter().enumerate() {
            if place > last && place < DENSE {
                continue;
            }
            let number = if place < DENSE { place as u32 } else { syscalls::PRIVATE + (place - DENSE) as u32 };
            let leaf = match (plain, conditional.next_if(|(other, _)| *other == place)) {
                (Some(result), _) => Leaf::Result(*result),
                (None, Some((_, alternatives))) => {
                    let ordered = in_order(alternatives, architecture.is_wide());
                    let known = self.conditional.iter().position(|other| *other == ordered);
                    Leaf::Conditions(known.unwrap_or_else(|| {
                        self.conditional.push(ordered);
                        self.conditional.len() - 1
                    }))
                }
                (None, None) => gap(number),
            };
            push(number, leaf);
        }
        push(syscalls::PRIVATE + PRIVATE as u32, gap(u32::MAX));
        runs
    }
}

/// Where a number is kept.
fn place(number: u32) -> Option<usize> {
    let place = match number.checked_sub(syscalls::PRIVATE) {
        None => number as usize,
        Some(private) => DENSE + private as usize,
    };
    let fits = if number < syscalls::PRIVATE { place < DENSE } else { place < DENSE + PRIVATE };
    fits.then_some(place)
}

/// Without the conditions that always hold on an architecture: those whose mask is empty there.
fn effective(conditions: &[Condition], architecture: Architecture) -> Vec<Condition> {
    let says = |condition: &&Condition| match condition.operator {
        Operator::Masked(mask) if architecture.is_wide() => mask != 0,
        Operator::Masked(mask) => mask as u32 != 0,
        _ => true,
    };
    conditions.iter().filter(says).copied().collect()
}

/// A comparison of 32 bits, of which conditions are made; the order is that of these.
#[derive(Debug, Clone, Copy)]
struct Test {
    /// Argument and half: higher ones come first.
    word: u32,
    /// What the kernel's program compares with.
    operation: u8,
    /// What the profile compares with.
    rank: u8,
    descending: bool,
    value: u32,
    mask: u32,
    /// The last of its condition, which holds with this outcome.
    holds: Option<bool>,
}

impl Test {
    /// Nothing tells them apart.
    fn is_same(&self, other: &Self) -> bool {
        (self.word, self.operation, self.value, self.mask) == (other.word, other.operation, other.value, other.mask)
    }

    /// This one is asked later.
    fn is_after(&self, other: &Self) -> bool {
        let ordering = self.word.cmp(&other.word).then(self.rank.cmp(&other.rank)).then({
            let values = self.value.cmp(&other.value);
            if self.descending { values.reverse() } else { values }
        });
        ordering == Ordering::Less
    }
}

/// The tests of one condition.
fn tests(condition: &Condition, wide: bool, tests: &mut Vec<Test>) {
    const EQUAL: u8 = 0;
    const MASKED: u8 = 1;
    const ABOVE: u8 = 2;
    const AT_LEAST: u8 = 3;
    let Condition { index, operator, value } = *condition;
    let (mask, equality) = match operator {
        Operator::Masked(mask) => (mask, Some(MASKED)),
        Operator::Equal | Operator::NotEqual => (u64::MAX, Some(EQUAL)),
        _ => (u64::MAX, None),
    };
    let rank = match operator {
        Operator::Equal | Operator::NotEqual | Operator::Masked(_) => 3,
        Operator::Less | Operator::LessEqual => 2,
        Operator::Greater | Operator::GreaterEqual => 1,
    };
    let last = match operator {
        Operator::Greater | Operator::LessEqual => ABOVE,
        _ => AT_LEAST,
    };
    let descending = matches!(operator, Operator::Less | Operator::LessEqual);
    let mut push = |high: bool, operation: u8| {
        let half = |value: u64| if high { (value >> 32) as u32 } else { value as u32 };
        let word = index * 2 + u32::from(high);
        let mask = half(mask);
        tests.push(Test { word, operation, rank, descending, value: half(value) & mask, mask, holds: None });
    };
    if wide && equality.is_none() {
        push(true, ABOVE);
    }
    if wide {
        push(true, equality.unwrap_or(EQUAL));
    }
    push(false, equality.unwrap_or(last));
    if let Some(last) = tests.last_mut() {
        let negated = matches!(operator, Operator::NotEqual | Operator::Less | Operator::LessEqual);
        last.holds = Some(!negated);
    }
}

/// Sort alternatives: groups that begin with the same test stand where the first of the group would.
fn in_order(alternatives: Vec<Alternative>, wide: bool) -> Vec<Alternative> {
    if alternatives.len() < 2 {
        return alternatives;
    }
    let chains = alternatives.into_iter().map(|alternative| {
        let mut chain = Vec::new();
        alternative.conditions.iter().for_each(|condition| tests(condition, wide, &mut chain));
        (chain, alternative)
    });
    let mut ordered = Vec::new();
    sort(chains.collect(), 0, &mut ordered);
    ordered
}

fn sort(chains: Vec<(Vec<Test>, Alternative)>, depth: usize, ordered: &mut Vec<Alternative>) {
    let mut groups: Vec<Vec<(Vec<Test>, Alternative)>> = Vec::new();
    let mut ended = None;
    for chain in chains {
        if ended.is_some() {
            // All before it has the same conditions and no more: it is never reached.
            break;
        }
        let Some(test) = chain.0.get(depth).copied() else {
            ended = Some(chain.1);
            continue;
        };
        let spot = groups.iter().position(|group| {
            let first = &group[0].0[depth];
            first.is_same(&test) || first.is_after(&test)
        });
        match spot {
            Some(spot) if groups[spot][0].0[depth].is_same(&test) => groups[spot].push(chain),
            spot => groups.insert(spot.unwrap_or(groups.len()), vec![chain]),
        }
    }
    for group in groups {
        if group.len() == 1 {
            ordered.extend(group.into_iter().map(|(_, alternative)| alternative));
            continue;
        }
        // Conditions that end with opposite outcomes of one test exclude each other.
        for holds in [None, Some(true), Some(false)] {
            let side: Vec<_> = group.iter().filter(|(tests, _)| tests[depth].holds == holds).cloned().collect();
            sort(side, depth + 1, ordered);
        }
    }
    ordered.extend(ended);
}
