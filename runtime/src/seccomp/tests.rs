//! The compiler against an interpreter of classic BPF and a reading of the profile that shares no code with it.

use super::*;
use serde_json::{Value, json};

/// What the kernel shows a filter.
#[derive(Debug, Clone, Copy, Default)]
struct Call {
    number: u32,
    architecture: u32,
    arguments: [u64; 6],
}

/// Run a program as the kernel would.
fn run(program: &[Instruction], call: &Call) -> u32 {
    let word = |offset: u32| match offset {
        0 => call.number,
        4 => call.architecture,
        16.. => (call.arguments[(offset as usize - 16) / 8] >> (if offset.is_multiple_of(8) { 0 } else { 32 })) as u32,
        _ => panic!("offset {offset}"),
    };
    let (mut at, mut a) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { jt } else { jf });
        match code {
            0x20 => a = word(k),
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(a == k),
            0x25 => at += jump(a > k),
            0x35 => at += jump(a >= k),
            0x06 => return k,
            other => panic!("operation {other:#x}"),
        }
    }
}

fn profile(value: Value) -> Seccomp {
    serde_json::from_value(value).expect("a profile")
}

fn filter(value: Value) -> Vec<Instruction> {
    compile(&profile(value)).expect("a good profile").program
}

fn native(name: &str, arguments: [u64; 6]) -> Call {
    let number = numbers(name).expect("a known name")[Architecture::NATIVE.column()];
    Call { number: number as u32, architecture: Architecture::NATIVE.audit(), arguments }
}

const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;

#[test]
fn table_is_sorted() {
    assert!(syscalls::TABLE.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!(numbers("read").map(|numbers| numbers[0]), Some(0));
    assert_eq!(numbers("nothing"), None);
    assert_eq!(numbers("mseal"), Some(&[462; 5]));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn numbers_are_those_of_this_kernel() {
    for (name, number) in [
        ("clone3", libc::SYS_clone3),
        ("openat2", libc::SYS_openat2),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("seccomp", libc::SYS_seccomp),
        ("execve", libc::SYS_execve),
    ] {
        assert_eq!(numbers(name).map(|numbers| i64::from(numbers[0])), Some(number), "{name}");
    }
}

#[test]
fn actions_defaults_and_new_calls() {
    let program = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["read", "write", "nothing_like_it"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2},
            {"names": ["mount"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ],
    }));
    for (name, want) in [
        ("read", ALLOW),
        ("write", ALLOW),
        ("mkdir", ERRNO | 2),
        ("mount", KILL_PROCESS),
        ("clone3", ENOSYS),
        ("openat", EPERM),
        ("close_range", ENOSYS),
        ("mseal", ENOSYS),
    ] {
        assert_eq!(run(&program, &native(name, [0; 6])), want, "{name}");
    }
    let foreign = Call { architecture: 0x1234, ..Call::default() };
    assert_eq!(run(&program, &foreign), KILL_PROCESS);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn architectures() {
    let rules = |architectures: Value| {
        filter(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": architectures,
            "syscalls": [{"names": ["read", "socket", "execve"], "action": "SCMP_ACT_ALLOW"}],
        }))
    };
    let on =
        |architecture: Architecture, number| Call { number, architecture: architecture.audit(), ..Call::default() };
    let (all, one) = (rules(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])), rules(json!([])));
    for (why, program, call, want) in [
        ("x86 read", &all, on(Architecture::X86, 3), ALLOW),
        ("x86 number of x86_64's read", &all, on(Architecture::X86, 0), EPERM),
        ("x86 not listed", &one, on(Architecture::X86, 3), KILL_PROCESS),
        ("x32 read", &all, on(Architecture::X32, X32_BIT), ALLOW),
        ("x32 execve", &all, on(Architecture::X32, X32_BIT | 520), ALLOW),
        ("x32 number of x86_64's execve", &all, on(Architecture::X32, X32_BIT | 59), EPERM),
        ("x32 not listed", &one, on(Architecture::X32, X32_BIT), KILL_PROCESS),
        ("skipped by a tracer", &one, on(Architecture::X86_64, u32::MAX), EPERM),
        ("x86 socketcall(SOCKET)", &all, Call { arguments: [1, 0, 0, 0, 0, 0], ..on(Architecture::X86, 102) }, ALLOW),
        ("x86 socketcall(BIND)", &all, Call { arguments: [2, 0, 0, 0, 0, 0], ..on(Architecture::X86, 102) }, EPERM),
    ] {
        assert_eq!(run(program, &call), want, "{why}");
    }
}

#[test]
fn every_comparison_over_both_halves() {
    let values: Vec<u64> = vec![0, 1, 5, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0005, 0x5_0000_0000, u64::MAX];
    for (op, holds) in [
        ("SCMP_CMP_EQ", (|a, v, _| a == v) as fn(u64, u64, u64) -> bool),
        ("SCMP_CMP_NE", |a, v, _| a != v),
        ("SCMP_CMP_LT", |a, v, _| a < v),
        ("SCMP_CMP_LE", |a, v, _| a <= v),
        ("SCMP_CMP_GT", |a, v, _| a > v),
        ("SCMP_CMP_GE", |a, v, _| a >= v),
        ("SCMP_CMP_MASKED_EQ", |a, v, two| a & v == two & v),
    ] {
        for &value in &values {
            for &two in &values {
                let program = filter(json!({
                    "defaultAction": "SCMP_ACT_ERRNO",
                    "syscalls": [{"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                                  "args": [{"index": 2, "value": value, "valueTwo": two, "op": op}]}],
                }));
                for &argument in &values {
                    let got = run(&program, &native("clone", [0, 0, argument, 0, 0, 0]));
                    let want = if holds(argument, value, two) { ALLOW } else { EPERM };
                    assert_eq!(got, want, "{argument:#x} {op} {value:#x} {two:#x}");
                }
            }
        }
    }
}

#[test]
fn conditions_and_precedence() {
    let program = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22,
             "args": [{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}, {"index": 2, "value": 9, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
        ],
    }));
    for (why, call, want) in [
        ("both conditions", native("socket", [16, 3, 9, 0, 0, 0]), ERRNO | 22),
        ("one of two", native("socket", [16, 3, 0, 0, 0, 0]), ALLOW),
        ("same argument twice: the first", native("personality", [0; 6]), ALLOW),
        ("same argument twice: the second", native("personality", [8, 0, 0, 0, 0, 0]), ALLOW),
        ("same argument twice: neither", native("personality", [9, 0, 0, 0, 0, 0]), EPERM),
    ] {
        assert_eq!(run(&program, &call), want, "{why}");
    }
}

/// A small generator of numbers, so that a failure can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// The meaning of a profile, read rule by rule.
fn naive(profile: &Seccomp, column: usize, narrow: bool, call: &Call) -> u32 {
    let default = action(&profile.default_action, profile.default_errno_ret, "", "").expect("an action");
    let number = |name: &str| numbers(name).and_then(|numbers| u32::try_from(numbers[column]).ok());
    let matching =
        profile.syscalls.iter().filter(|rule| rule.names.iter().any(|name| number(name) == Some(call.number)));
    let (mut conditional, mut plain) = (None, None);
    for rule in matching {
        let result = action(&rule.action, rule.errno_ret, "", "").expect("an action");
        let cut = |value: u64| if narrow { value & 0xffff_ffff } else { value };
        let holds = |arg: &crate::config::SyscallArg| {
            let (a, v) = (cut(call.arguments[arg.index as usize]), cut(arg.value));
            match arg.op.as_str() {
                "SCMP_CMP_EQ" => a == v,
                "SCMP_CMP_NE" => a != v,
                "SCMP_CMP_LT" => a < v,
                "SCMP_CMP_GE" => a >= v,
                _ => a & v == cut(arg.value_two) & v,
            }
        };
        if rule.args.is_empty() {
            plain = plain.or(Some(result));
        } else if rule.args.iter().all(holds) {
            conditional = conditional.or(Some(result));
        }
    }
    let newest = profile.syscalls.iter().flat_map(|rule| &rule.names).filter_map(|name| number(name)).max();
    match (conditional, plain) {
        (Some(result), _) | (None, Some(result)) => result,
        _ if newest.is_some_and(|newest| call.number > newest) && default & 0xffff_0000 == ERRNO => ENOSYS,
        _ => default,
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn random_profiles_mean_what_they_say() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let actions = ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_LOG", "SCMP_ACT_TRAP"];
        let ops = ["SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_GE", "SCMP_CMP_MASKED_EQ"];
        let values = [0, 1, 7, 0xffff_ffff, 0x1_0000_0001];
        let mut syscalls = Vec::new();
        for _ in 0..random.below(14) + 1 {
            let names: Vec<_> = (0..random.below(20) + 1)
                .map(|_| syscalls::TABLE[random.below(syscalls::TABLE.len() as u64) as usize].0)
                .filter(|name| {
                    !MULTIPLEXED
                        .iter()
                        .any(|(carrier, calls)| name == carrier || calls.iter().any(|(call, _)| call == name))
                })
                .chain(["read"])
                .collect();
            let args: Vec<_> = (0..random.below(3))
                .map(|index| {
                    json!({"index": index * 2, "value": values[random.below(5) as usize],
                           "valueTwo": values[random.below(5) as usize], "op": ops[random.below(5) as usize]})
                })
                .collect();
            syscalls.push(json!({"names": names, "action": actions[random.below(5) as usize], "args": args}));
        }
        let profile = profile(json!({
            "defaultAction": actions[random.below(5) as usize],
            "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": syscalls,
        }));
        let program = compile(&profile).expect("a good profile").program;
        for number in 0..600 {
            let mut arguments = [0; 6];
            for argument in &mut arguments {
                *argument = values[random.below(5) as usize];
            }
            for (architecture, bit) in [(Architecture::X86_64, 0), (Architecture::X86, 0), (Architecture::X32, X32_BIT)]
            {
                let plain = Call { number, architecture: architecture.audit(), arguments };
                let want = naive(&profile, architecture.column(), architecture.is_32_bit(), &plain);
                let got = run(&program, &Call { number: number | bit, ..plain });
                assert_eq!(got, want, "seed {seed}, {architecture:?}, call {number}, arguments {arguments:x?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_carried_out_is_named() {
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    for (value, path) in [
        (json!({"defaultAction": "SCMP_ACT_MAYBE"}), "defaultAction"),
        (json!({"defaultAction": ""}), "defaultAction"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}), "defaultErrnoRet"),
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "defaultAction"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_MOON"]}), "architectures[0]"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW"]}), "flags[0]"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}), "listenerPath"),
        (rule(json!({"names": [], "action": "SCMP_ACT_ERRNO"})), "syscalls[0].names"),
        (rule(json!({"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"})), "syscalls[0].names[0]"),
        (rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 70000})), "syscalls[0].errnoRet"),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]})),
            "syscalls[0].args[0].index",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "op": "IS"}]})),
            "syscalls[0].args[0].op",
        ),
    ] {
        let error = compile(&profile(value)).expect_err(path).to_string();
        assert!(error.contains(&format!("$.linux.seccomp.{path}:")), "{path}: {error}");
    }
}
