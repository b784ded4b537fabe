//! The compiler against an interpreter of classic BPF and a reading of the profile that shares no code with it.

use super::*;
use serde_json::{Value, json};

/// What the kernel shows a filter.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) architecture: u32,
    pub(super) arguments: [u64; 6],
    /// The high half of an argument comes first.
    pub(super) big: bool,
}

/// Run a program as the kernel would.
pub(super) fn run(program: &[Instruction], call: &Call) -> u32 {
    let word = |offset: u32| match offset {
        0 => call.number,
        4 => call.architecture,
        16.. => {
            let low = offset.is_multiple_of(8) != call.big;
            (call.arguments[(offset as usize - 16) / 8] >> (if low { 0 } else { 32 })) as u32
        }
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

/// Docker's default profile as it comes in a bundle of this architecture with docker's default capabilities.
pub(super) fn docker() -> Seccomp {
    serde_json::from_str(include_str!("../../tests/data/docker-seccomp.json")).expect("a profile")
}

/// Podman's default profile, if it is installed, for a container with no further capability.
pub(super) fn podman() -> Option<Seccomp> {
    let text = std::fs::read("/usr/share/containers/seccomp.json").ok()?;
    let mut value: Value = serde_json::from_slice(&text).expect("JSON");
    let list = value["syscalls"].as_array_mut().expect("rules");
    list.retain(|rule| rule["includes"]["caps"].is_null());
    value["architectures"] = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    Some(profile(value))
}

fn filter(value: Value) -> Vec<Instruction> {
    compile(&profile(value)).expect("a good profile").program
}

fn number(architecture: Architecture, name: &str) -> Option<u32> {
    architecture.number(syscalls::row(name)?)
}

/// Whether a rule for a name may decide about a number.
pub(super) fn concerns(architecture: Architecture, name: &str, of: u32) -> bool {
    let is = |name: &str| number(architecture, name).is_some_and(|number| number + architecture.base() == of);
    is(name) || (rules::carried().any(|carried| carried == name) && (is("socketcall") || is("ipc")))
}

fn native(name: &str, arguments: [u64; 6]) -> Call {
    let number = number(Architecture::NATIVE, name).expect("a known name");
    Call { number, architecture: Architecture::NATIVE.audit(), arguments, ..Call::default() }
}

const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;

#[test]
fn every_name_is_found() {
    let names: Vec<_> = syscalls::names().collect();
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "sorted, and none twice");
    for (row, name) in names.iter().enumerate() {
        assert_eq!(syscalls::row(name), Some(row as u16), "{name}");
    }
    for unknown in ["", "nothing", "rea", "reads", "read\n", "_"] {
        assert_eq!(syscalls::row(unknown), None, "{unknown:?}");
    }
    for architecture in Architecture::all() {
        assert_eq!(number(architecture, "mseal"), Some(462), "{architecture:?}");
        assert!(number(architecture, "execve").is_some(), "{architecture:?}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn numbers_are_those_of_this_kernel() {
    for (name, known) in [
        ("clone3", libc::SYS_clone3),
        ("openat2", libc::SYS_openat2),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("seccomp", libc::SYS_seccomp),
        ("execve", libc::SYS_execve),
    ] {
        assert_eq!(number(Architecture::X86_64, name).map(i64::from), Some(known), "{name}");
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
            {"names": ["kill"], "action": "SCMP_ACT_TRAP"},
            {"names": ["tkill"], "action": "SCMP_ACT_KILL"},
            {"names": ["tgkill"], "action": "SCMP_ACT_KILL_THREAD"},
            {"names": ["ptrace"], "action": "SCMP_ACT_TRACE", "errnoRet": 70},
            {"names": ["bpf"], "action": "SCMP_ACT_LOG"},
            {"names": ["chown"], "action": "SCMP_ACT_NOTIFY"},
        ], "listenerPath": "/agent",
    }));
    for (name, want) in [
        ("read", ALLOW),
        ("write", ALLOW),
        ("mkdir", ERRNO | 2),
        ("mount", KILL_PROCESS),
        ("clone3", ENOSYS),
        ("kill", TRAP),
        ("tkill", KILL_THREAD),
        ("tgkill", KILL_THREAD),
        ("ptrace", TRACE | 70),
        ("bpf", LOG),
        ("chown", NOTIFY),
        ("openat", EPERM),
        ("close_range", ENOSYS),
        ("mseal", ENOSYS),
    ] {
        assert_eq!(run(&program, &native(name, [0; 6])), want, "{name}");
    }
    let foreign = Call { architecture: 0x1234, ..Call::default() };
    assert_eq!(run(&program, &foreign), KILL_THREAD);
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
        ("x86 not listed", &one, on(Architecture::X86, 3), KILL_THREAD),
        ("x32 read", &all, on(Architecture::X32, X32_BIT), ALLOW),
        ("x32 execve", &all, on(Architecture::X32, X32_BIT | 520), ALLOW),
        ("x32 number of x86_64's execve", &all, on(Architecture::X32, X32_BIT | 59), EPERM),
        ("x32 not listed", &one, on(Architecture::X32, X32_BIT), KILL_THREAD),
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
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 2, "value": 9, "op": "SCMP_CMP_NE"}]},
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
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What may be the result by a plain reading of a profile, rule by rule; several when rules contradict each other.
fn naive(profile: &Seccomp, architecture: Architecture, call: &Call) -> Vec<u32> {
    let result = |name: &str, errno| action(name, errno, String::new, String::new).expect("an action");
    let default = result(&profile.default_action, profile.default_errno_ret);
    let cut = |value: u64| if architecture.is_wide() { value } else { value & 0xffff_ffff };
    let holds = |arg: &crate::config::SyscallArg| {
        let (a, v) = (cut(call.arguments[arg.index as usize]), cut(arg.value));
        match arg.op.as_str() {
            "SCMP_CMP_EQ" => a == v,
            "SCMP_CMP_NE" => a != v,
            "SCMP_CMP_LT" => a < v,
            "SCMP_CMP_LE" => a <= v,
            "SCMP_CMP_GT" => a > v,
            "SCMP_CMP_GE" => a >= v,
            _ => a & v == cut(arg.value_two) & v,
        }
    };
    let empty = |arg: &crate::config::SyscallArg| arg.op == "SCMP_CMP_MASKED_EQ" && cut(arg.value) == 0;
    let numbers = |rule: &crate::config::SyscallRule| {
        rule.names.iter().filter_map(|name| number(architecture, name)).collect::<Vec<_>>()
    };
    let mut conditional = Vec::new();
    for rule in profile.syscalls.iter().filter(|rule| numbers(rule).contains(&call.number)) {
        let result = result(&rule.action, rule.errno_ret);
        if result == default {
            continue;
        }
        if rule.args.iter().all(empty) {
            return vec![result];
        }
        if rule.args.iter().all(holds) {
            conditional.push(result);
        }
    }
    conditional.sort_unstable();
    conditional.dedup();
    if !conditional.is_empty() {
        return conditional;
    }
    let newest = profile.syscalls.iter().flat_map(numbers).filter(|&number| number < 0xf_0000).max();
    let newer = newest.is_some_and(|newest| call.number > newest);
    vec![if newer && !matches!(action_code(default), ALLOW | LOG | TRACE) { ENOSYS } else { default }]
}

#[test]
fn random_profiles_mean_what_they_say() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let actions = ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_LOG", "SCMP_ACT_TRAP"];
        let ops = ["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"];
        let values = [0, 1, 7, 0xffff_ffff, 0x1_0000_0001];
        let names: Vec<_> =
            syscalls::names().filter(|name| !rules::carried().any(|carried| carried == *name)).collect();
        let mut syscalls = Vec::new();
        for _ in 0..random.below(14) + 1 {
            let names: Vec<_> = (0..random.below(20) + 1)
                .map(|_| names[random.below(names.len() as u64) as usize])
                .chain(["read"])
                .collect();
            let args: Vec<_> = (0..random.below(4))
                .map(|index| {
                    json!({"index": index * 2 % 5, "value": values[random.below(5) as usize],
                           "valueTwo": values[random.below(5) as usize],
                           "op": format!("SCMP_CMP_{}", ops[random.below(7) as usize])})
                })
                .collect();
            syscalls.push(json!({"names": names, "action": actions[random.below(5) as usize], "args": args}));
        }
        let profile = profile(json!({
            "defaultAction": actions[random.below(5) as usize],
            "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_S390"],
            "syscalls": syscalls,
        }));
        for architecture in [Architecture::X86_64, Architecture::X86, Architecture::X32, Architecture::Arm] {
            let native = if architecture == Architecture::Arm { Architecture::Aarch64 } else { Architecture::X86_64 };
            let program = compile_for(&profile, native).expect("a good profile").program;
            for number in 0..600 {
                let arguments = std::array::from_fn(|_| values[random.below(5) as usize]);
                let audit = architecture.audit();
                let plain = Call { number, architecture: audit, arguments, ..Call::default() };
                let want = naive(&profile, architecture, &plain);
                let got = run(&program, &Call { number: number + architecture.base(), ..plain });
                let what = format!("seed {seed}, {architecture:?}, call {number}, arguments {arguments:x?}");
                assert!(want.contains(&got), "{what}: {got:#x} is not in {want:#x?}");
            }
        }
    }
}

#[test]
fn rules_that_meet() {
    let arg =
        |index: u32, op: &str, value: u64| json!({"index": index, "op": format!("SCMP_CMP_{op}"), "value": value});
    let rule = |errno: u32, args: Value| json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args});
    for (why, rules, argument, want) in [
        ("the first without conditions", vec![rule(2, json!([])), rule(3, json!([]))], 0, 2),
        ("no condition hides those before", vec![rule(2, json!([arg(0, "EQ", 0)])), rule(3, json!([]))], 0, 3),
        ("no condition hides those after", vec![rule(3, json!([])), rule(2, json!([arg(0, "EQ", 0)]))], 0, 3),
        (
            "an empty mask is no condition",
            vec![rule(2, json!([arg(0, "EQ", 0)])), rule(3, json!([arg(0, "MASKED_EQ", 0)]))],
            0,
            3,
        ),
        ("equality before order", vec![rule(2, json!([arg(0, "GT", 1)])), rule(3, json!([arg(0, "EQ", 5)]))], 5, 3),
        ("the narrower bound", vec![rule(2, json!([arg(0, "GT", 1)])), rule(3, json!([arg(0, "GT", 4)]))], 5, 3),
        ("the narrower bound below", vec![rule(2, json!([arg(0, "LT", 9)])), rule(3, json!([arg(0, "LT", 6)]))], 5, 3),
        ("a higher argument first", vec![rule(2, json!([arg(0, "EQ", 5)])), rule(3, json!([arg(1, "EQ", 0)]))], 5, 3),
        (
            "a shorter one hides a longer after it",
            vec![rule(2, json!([arg(0, "EQ", 5)])), rule(3, json!([arg(0, "EQ", 5), arg(1, "EQ", 0)]))],
            5,
            2,
        ),
        ("the default action says nothing", vec![rule(1, json!([])), rule(2, json!([arg(0, "EQ", 5)]))], 5, 2),
    ] {
        let program = filter(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
        assert_eq!(run(&program, &native("clone", [argument, 0, 0, 0, 0, 0])), ERRNO | want, "{why}");
    }
}

#[test]
fn newer_calls_answer_enosys_unless_the_default_lets_them_happen() {
    for (default, want) in [
        ("ERRNO", ENOSYS),
        ("KILL", ENOSYS),
        ("KILL_PROCESS", ENOSYS),
        ("TRAP", ENOSYS),
        ("ALLOW", ALLOW),
        ("LOG", LOG),
        ("TRACE", TRACE | 1),
    ] {
        let rules = json!([{"names": ["read", "execve"], "action": "SCMP_ACT_KILL_PROCESS"}]);
        let program = filter(json!({"defaultAction": format!("SCMP_ACT_{default}"), "syscalls": rules}));
        assert_eq!(run(&program, &native("mseal", [0; 6])), want, "{default}");
        let empty = filter(json!({"defaultAction": format!("SCMP_ACT_{default}")}));
        assert_ne!(run(&empty, &native("mseal", [0; 6])), ENOSYS, "{default} without rules");
    }
}

#[test]
fn a_big_profile_fits() {
    let names: Vec<_> = syscalls::names().filter(|name| *name != "write").collect();
    let rules: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(value, name)| {
            json!({"names": [name], "action": "SCMP_ACT_ALLOW",
                   "args": [{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}]})
        })
        .collect();
    let mut config = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules});
    let program = filter(config.clone());
    for (value, name) in names.iter().enumerate().filter(|(_, name)| number(Architecture::NATIVE, name).is_some()) {
        for (argument, want) in [(value as u64, ALLOW), (value as u64 + 1, EPERM)] {
            assert_eq!(run(&program, &native(name, [0, argument, 0, 0, 0, 0])), want, "{name}");
        }
    }
    config["architectures"] = json!(["SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    for rule in config["syscalls"].as_array_mut().expect("rules") {
        let more = json!({"index": 2, "value": 7, "op": "SCMP_CMP_GT"});
        rule["args"].as_array_mut().expect("conditions").push(more);
    }
    let error = compile(&profile(config)).expect_err("too long");
    assert!(error.to_string().contains("the kernel takes 4096"), "{error}");
}

#[test]
fn flags_of_the_kernel() {
    let with = |flags: Value, action: &str| {
        let rules = json!([{"names": ["mkdir"], "action": action}]);
        let value = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags, "syscalls": rules, "listenerPath": "/x"});
        compile(&profile(value)).expect("a good profile").flags
    };
    for (why, flags, action, want) in [
        ("no list", json!(null), "SCMP_ACT_ERRNO", 4),
        ("an empty list", json!([]), "SCMP_ACT_ERRNO", 0),
        ("some", json!(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"]), "SCMP_ACT_ERRNO", 3),
        ("a listener", json!(["SECCOMP_FILTER_FLAG_TSYNC"]), "SCMP_ACT_NOTIFY", 8),
        ("killable", json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), "SCMP_ACT_NOTIFY", 40),
        ("killable by whom", json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), "SCMP_ACT_ERRNO", 0),
    ] {
        assert_eq!(with(flags, action), want, "{why}");
    }
}

#[test]
fn a_call_denied_in_vain_is_told() {
    let names = |default: &str, action: &str| {
        let rules = json!([{"names": ["read", "no_such_call"], "action": action}]);
        let value = json!({"defaultAction": default, "syscalls": rules});
        compile(&profile(value)).expect("a good profile").warnings
    };
    assert_eq!(names("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"), Vec::<String>::new());
    let warnings = names("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO");
    assert!(warnings.len() == 1 && warnings[0].contains("$.linux.seccomp.syscalls[0].names[1]: `no_such_call`"));
}

#[test]
fn what_cannot_be_carried_out_is_named() {
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let arg = |arg: Value| rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [arg]}));
    for (value, text) in [
        (json!({"defaultAction": "SCMP_ACT_MAYBE"}), "defaultAction: `SCMP_ACT_MAYBE` is not one of SCMP_ACT_ALLOW, "),
        (json!({"defaultAction": ""}), "defaultAction: is missing; it is one of SCMP_ACT_ALLOW"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}), "defaultErrnoRet: 1 is given, but"),
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "defaultAction: SCMP_ACT_NOTIFY cannot be used as default"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_MOON"]}),
            "architectures[0]: `SCMP_ARCH_MOON` is not one of SCMP_ARCH_X86_64, SCMP_ARCH_X86, ",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW"]}),
            "flags[0]: `SECCOMP_FILTER_FLAG_NEW` is not one of SECCOMP_FILTER_FLAG_TSYNC, ",
        ),
        (rule(json!({"names": [], "action": "SCMP_ACT_ERRNO"})), "syscalls[0].names: is empty"),
        (rule(json!({"names": [""], "action": "SCMP_ACT_ERRNO"})), "syscalls[0].names[0]: is empty"),
        (rule(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})), "listenerPath: is missing, but"),
        (rule(json!({"names": ["write"], "action": "SCMP_ACT_NOTIFY"})), "cannot be used for the write syscall"),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096})),
            "syscalls[0].errnoRet: 4096 is above 4095",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536})),
            "syscalls[0].errnoRet: 65536 is above 65535",
        ),
        (arg(json!({"index": 6, "op": "SCMP_CMP_EQ"})), "syscalls[0].args[0].index: 6 is not an argument"),
        (arg(json!({"index": 0, "op": "IS"})), "syscalls[0].args[0].op: `IS` is not one of SCMP_CMP_NE, "),
    ] {
        let error = compile(&profile(value)).expect_err(text).to_string();
        assert!(error.starts_with("config.json: $.linux.seccomp.") && error.contains(text), "{text}: {error}");
    }
}
