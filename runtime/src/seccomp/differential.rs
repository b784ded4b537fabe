//! Our programs against those of libseccomp: the same decision for every call.
//!
//! A small C program, built here, asks libseccomp; both programs run in an interpreter. Where libseccomp 2.5.4 departs
//! from what its documentation says, rules are not generated, or the difference would be ours to explain:
//!
//! - On 32-bit architectures `LE` after another condition compares as `GT` (a pointer is reset, not what it points to).
//! - Of two rules of one call, one may be reached through the other if one has several conditions other than equality,
//!   or an inequality with a value above 32 bits.
//! - `sys_debug_setcontext` and `switch_endian` share a number inside libseccomp, so one is taken for the other.
//! - A rule for a call that an architecture does not have may take the place of the load of the number.
//! - Of two `NE` with other actions the order depends on the upper half of the argument.
//! - `LT` and `LE` with a value above 32 bits do not hold for arguments whose upper half is smaller.

use super::architecture::Architecture;
use super::tests::{Call, Random, docker, podman, run};
use super::*;
use crate::config::{Seccomp, SyscallArg, SyscallRule};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running helper.
struct Libseccomp {
    child: Child,
    to: ChildStdin,
    from: ChildStdout,
}

const SOURCE: &str = include_str!("libseccomp.c");

impl Libseccomp {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (source, program) = (dir.path().join("helper.c"), dir.path().join("helper"));
        std::fs::write(&source, SOURCE).expect("the source");
        let built = Command::new("cc").arg("-o").arg(&program).arg(&source).arg("-l:libseccomp.so.2").output();
        let built = built.expect("tests need a C compiler");
        let words = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "tests need libseccomp2 (apt-get install libseccomp2): {words}");
        let mut child =
            Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the helper");
        let (to, from) = (child.stdin.take().expect("its input"), child.stdout.take().expect("its output"));
        Self { child, to, from }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").expect("the helper listens");
    }

    fn number(&mut self) -> i32 {
        let mut bytes = [0; 4];
        self.from.read_exact(&mut bytes).expect("the helper answers");
        i32::from_ne_bytes(bytes)
    }

    /// Add a rule; whether it was taken.
    fn rule(&mut self, action: u32, name: &str, args: &[SyscallArg]) -> bool {
        let mut line = format!("rule {action} {name} {}", args.len());
        for arg in args {
            // `enum scmp_compare` begins with 1.
            let op = OPERATORS.iter().position(|known| *known == arg.op).expect("an operator") + 1;
            line += &format!(" {} {op} {} {}", arg.index, arg.value, arg.value_two);
        }
        self.say(&line);
        self.number() == 0
    }

    /// The program, in the byte order of this machine.
    fn program(&mut self, swap: bool) -> Vec<Instruction> {
        self.say("end");
        let mut bytes = vec![0; self.number() as usize];
        self.from.read_exact(&mut bytes).expect("the program");
        let short = |at: &[u8]| u16::from_ne_bytes([at[0], at[1]]);
        let word = |at: &[u8]| u32::from_ne_bytes([at[0], at[1], at[2], at[3]]);
        let instruction = |at: &[u8]| Instruction { code: short(at), jt: at[2], jf: at[3], k: word(&at[4..]) };
        let turned = |i: Instruction| Instruction { code: i.code.swap_bytes(), k: i.k.swap_bytes(), ..i };
        bytes.chunks_exact(8).map(instruction).map(|i| if swap { turned(i) } else { i }).collect()
    }
}

impl Drop for Libseccomp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As `enum scmp_compare` counts them.
const OPERATORS: [&str; 7] =
    ["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"];

/// Architectures that go together, the native one first.
fn groups() -> Vec<Vec<Architecture>> {
    use Architecture::*;
    vec![
        vec![X86_64, X86, X32],
        vec![X86_64],
        vec![X86_64, X86],
        vec![X86_64, X32],
        vec![X86],
        vec![Aarch64, Arm],
        vec![Arm],
        vec![Mips64, Mips, Mips64n32],
        vec![Mips],
        vec![Mipsel64, Mipsel, Mipsel64n32],
        vec![Mipsel64n32],
        vec![Ppc64, Ppc],
        vec![Ppc64le],
        vec![S390x, S390],
        vec![Parisc],
        vec![Parisc64, Parisc],
        vec![Riscv64],
    ]
}

/// Whether libseccomp can be trusted with another rule of a call.
fn trusted(before: &[(u32, Vec<SyscallArg>)], result: u32, args: &[SyscallArg]) -> bool {
    let first = args.iter().map(|arg| arg.index).min();
    let good = |arg: &SyscallArg| match arg.op.as_str() {
        "SCMP_CMP_LE" if Some(arg.index) != first => false,
        "SCMP_CMP_LT" | "SCMP_CMP_LE" => arg.value >> 32 == 0,
        _ => true,
    };
    let equality = |arg: &SyscallArg| arg.op == "SCMP_CMP_EQ";
    let simple = |args: &[SyscallArg]| match args {
        [arg] => {
            arg.value >> 32 == 0 || matches!(arg.op.as_str(), "SCMP_CMP_EQ" | "SCMP_CMP_NE" | "SCMP_CMP_MASKED_EQ")
        }
        args => args.iter().all(equality),
    };
    let unequal = |args: &[SyscallArg]| matches!(args, [arg] if arg.op == "SCMP_CMP_NE");
    let rivals = unequal(args) && before.iter().any(|(other, args)| *other != result && unequal(args));
    args.iter().all(good)
        && !rivals
        && (args.is_empty() || before.is_empty() || (simple(args) && before.iter().all(|(_, args)| simple(args))))
}

/// The number of a call as the kernel shows it.
fn number(architecture: Architecture, name: &str) -> Option<u32> {
    Some(architecture.number(syscalls::row(name)?)? + architecture.base())
}

/// Compare one profile for one group; returns the lengths of the programs.
fn compare(library: &mut Libseccomp, profile: &Seccomp, group: &[Architecture], random: &mut Random) -> (usize, usize) {
    let none = String::new;
    let default = action(&profile.default_action, profile.default_errno_ret, none, none).expect("an action");
    // As runc has it; but its tree for the other byte order compares turned numbers.
    let big = !group[0].is_little();
    let optimize = if profile.syscalls.len() > 32 && !big { 2 } else { 1 };
    let names: Vec<_> = group.iter().map(|architecture| architecture.short_name()).collect();
    library.say(&format!("filter {default} {optimize} {}", names.join(" ")));
    // The profile again, one name at a time, without what libseccomp refuses.
    let mut taken = Seccomp { syscalls: Vec::new(), ..profile.clone() };
    taken.architectures = names.iter().map(|name| format!("SCMP_ARCH_{}", name.to_uppercase())).collect();
    let mut by_name: BTreeMap<&str, Vec<(u32, Vec<SyscallArg>)>> = BTreeMap::new();
    let mut values: BTreeSet<u64> = [0, 1, 1 << 31, u64::from(u32::MAX), 1 << 32, u64::MAX].into();
    let multiplexes = group.iter().any(|architecture| architecture.multiplexes());
    let carried: BTreeSet<&str> = rules::carried().collect();
    for rule in &profile.syscalls {
        let result = action(&rule.action, rule.errno_ret, none, none).expect("an action");
        let alternatives = match rule.args.iter().map(|arg| arg.index).collect::<BTreeSet<_>>().len() {
            distinct if distinct == rule.args.len() => vec![rule.args.clone()],
            _ => rule.args.iter().map(|arg| vec![arg.clone()]).collect(),
        };
        for name in &rule.names {
            for args in &alternatives {
                let before = by_name.entry(name).or_default();
                let shared =
                    multiplexes && (carried.contains(name.as_str()) || matches!(name.as_str(), "socketcall" | "ipc"));
                if shared && args.iter().any(|arg| arg.op != "SCMP_CMP_EQ") {
                    continue;
                }
                if result == default || !trusted(before, result, args) || !library.rule(result, name, args) {
                    continue;
                }
                before.push((result, args.clone()));
                for arg in args {
                    values.extend([arg.value, arg.value.wrapping_add(1), arg.value.wrapping_sub(1), arg.value_two]);
                }
                taken.syscalls.push(SyscallRule { names: vec![name.clone()], args: args.clone(), ..rule.clone() });
            }
        }
    }
    let theirs = library.program(big && cfg!(target_endian = "little"));
    let ours = compile_for(&taken, group[0]).expect("a good profile").program;
    let values: Vec<u64> = values.into_iter().collect();
    for &architecture in group {
        let conditional: BTreeSet<u32> = by_name
            .iter()
            .filter(|(_, rules)| rules.iter().any(|(_, args)| !args.is_empty()))
            .flat_map(|(name, _)| [*name, "socketcall", "ipc"])
            .filter_map(|name| number(architecture, name))
            .collect();
        let numbers: BTreeSet<u32> = by_name
            .iter()
            .filter(|(_, rules)| !rules.is_empty())
            .filter_map(|(name, _)| number(architecture, name))
            .collect();
        let known = |number: &&u32| architecture == Architecture::X32 || **number < syscalls::PRIVATE;
        let newest = numbers.iter().filter(known).max().copied();
        let odd = [600, 0xf_0000, 0xf_0001, 0xf_0005, 0xf_0010, 0x3fff_ffff, 0x4000_0000, 0x4000_0258, 0x7fff_ffff];
        let low = (0..=600).map(|number| number + architecture.base()).chain(0..=3).chain([u32::MAX]);
        for number in low.chain(odd) {
            // x86_64 and x32 share a number space; each is tried with its own numbers and the other's.
            let of = match architecture {
                Architecture::X86_64 | Architecture::X32 if number == u32::MAX => None,
                Architecture::X86_64 | Architecture::X32 => {
                    let x32 = number & X32_BIT != 0;
                    let matches = x32 == (architecture == Architecture::X32);
                    matches.then_some(newest).flatten()
                }
                _ => newest,
            };
            if of.is_none() && number & X32_BIT != 0 && group.contains(&Architecture::X32) {
                continue;
            }
            if architecture == Architecture::X32 && number & X32_BIT == 0 {
                continue;
            }
            let samples = if conditional.contains(&number) { 60 } else { 1 };
            for _ in 0..samples {
                let mut arguments = [0; 6];
                arguments.fill_with(|| values[random.below(values.len() as u64) as usize]);
                if conditional.contains(&number) && random.below(2) == 0 {
                    arguments[0] = random.below(25);
                }
                let call = Call { number, architecture: architecture.audit(), arguments, big };
                let private = number >= syscalls::PRIVATE && numbers.contains(&number);
                let newer = of.is_some_and(|newest| number > newest) && !private;
                let empty = number == 0 && architecture.has_empty_call() && newest.is_some();
                let want = match (newer || empty) && !matches!(action_code(default), ALLOW | LOG | TRACE) {
                    true => ERRNO | libc::ENOSYS as u32,
                    false => run(&theirs, &call),
                };
                let got = run(&ours, &call);
                // A long program for the other byte order has some results turned once too often.
                let want = if big && want.swap_bytes() == got { got } else { want };
                let about = |rule: &&SyscallRule| super::tests::concerns(architecture, &rule.names[0], number);
                assert_eq!(
                    got,
                    want,
                    "{architecture:?} of {group:?}, call {number:#x}, arguments {arguments:#x?}, rules {:#x?}",
                    taken.syscalls.iter().filter(about).collect::<Vec<_>>()
                );
            }
        }
    }
    let foreign = Call { architecture: 0x1234, big, ..Call::default() };
    assert_eq!(run(&ours, &foreign), run(&theirs, &foreign));
    (ours.len(), theirs.len())
}

#[test]
fn numbers_equal_those_of_libseccomp() {
    let mut library = Libseccomp::new();
    let carried: BTreeSet<&str> = rules::carried().collect();
    let mut compared = 0;
    for architecture in Architecture::all() {
        let short = architecture.short_name();
        library.say(&format!("number {short} read"));
        if library.number() < 0 {
            assert!(matches!(short.as_str(), "loongarch64" | "m68k" | "sh" | "sheb"), "libseccomp knows {short}");
            continue;
        }
        for name in syscalls::names() {
            library.say(&format!("number {short} {name}"));
            let theirs = library.number();
            // -1 is an unknown name; others below 0 are calls this architecture has not, or carries.
            if theirs == -1 || (carried.contains(name) && architecture.multiplexes()) {
                continue;
            }
            compared += 1;
            let theirs = u32::try_from(theirs).ok();
            assert_eq!(number(architecture, name), theirs, "{name} on {short}");
        }
    }
    assert!(compared > 8000, "{compared}");
}

#[test]
fn default_profiles_decide_as_with_libseccomp() {
    let mut library = Libseccomp::new();
    let mut random = Random(1);
    for (name, profile) in [("docker", Some(docker())), ("podman", podman())] {
        let Some(profile) = profile else {
            eprintln!("no /usr/share/containers/seccomp.json here");
            continue;
        };
        for group in groups() {
            let (ours, theirs) = compare(&mut library, &profile, &group, &mut random);
            println!("{name} {group:?}: {ours} instructions, libseccomp {theirs}");
            assert!(ours < theirs, "{name}: {ours} of {theirs}");
        }
    }
}

/// How many random profiles; more with `GANTRY_SECCOMP_PROFILES`.
fn profiles() -> u64 {
    std::env::var("GANTRY_SECCOMP_PROFILES").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

#[test]
fn random_profiles_decide_as_with_libseccomp() {
    let mut library = Libseccomp::new();
    let groups = groups();
    for seed in 0..profiles() {
        let mut random = Random(seed);
        println!("seed {seed}");
        let group = &groups[seed as usize % groups.len()];
        let has = |architecture: &Architecture, name: &str| {
            let carried = architecture.multiplexes() && rules::carried().any(|carried| carried == name);
            carried || number(*architecture, name).is_some()
        };
        let profile = random_profile(&mut random, |name| group.iter().all(|architecture| has(architecture, name)));
        compare(&mut library, &profile, group, &mut random);
    }
}

fn random_profile(random: &mut Random, has: impl Fn(&str) -> bool) -> Seccomp {
    let actions = [
        ("SCMP_ACT_ALLOW", None),
        ("SCMP_ACT_ERRNO", Some(1)),
        ("SCMP_ACT_ERRNO", Some(22)),
        ("SCMP_ACT_KILL", None),
        ("SCMP_ACT_KILL_PROCESS", None),
        ("SCMP_ACT_TRAP", None),
        ("SCMP_ACT_TRACE", Some(77)),
        ("SCMP_ACT_LOG", None),
        ("SCMP_ACT_NOTIFY", None),
    ];
    let values: [u64; 9] =
        [0, 1, 7, 0x7fff_ffff, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0007, 0x5_0000_0007, 0xffff_ffff_0000_0000];
    let mut pick = |bound: usize| random.below(bound as u64) as usize;
    let usable = |name: &&str| !matches!(*name, "write" | "sys_debug_setcontext" | "switch_endian") && has(name);
    let names: Vec<_> = syscalls::names().filter(usable).collect();
    // Few, so that rules of a profile meet.
    let favourites: Vec<&str> = (0..4)
        .map(|_| names[pick(names.len())])
        .chain(["socket", "semget", "clone", "personality", "socketcall", "ipc", "mmap"])
        .filter(|name| has(name))
        .collect();
    let most = if pick(4) == 0 { 60 } else { 12 };
    let count = 1 + pick(most);
    let mut syscalls = Vec::new();
    for _ in 0..count {
        let (action, errno_ret) = actions[pick(actions.len())];
        let mut args = Vec::new();
        for index in 0..6 {
            if pick(5) == 0 {
                let op = OPERATORS[pick(OPERATORS.len())].to_owned();
                args.push(SyscallArg { index, value: values[pick(9)], value_two: values[pick(9)], op });
            }
        }
        if pick(12) == 0 && args.len() == 1 {
            args.push(SyscallArg { value: values[pick(9)], ..args[0].clone() });
        }
        let mut rule = SyscallRule { action: action.to_owned(), errno_ret, args, ..SyscallRule::default() };
        rule.names = if pick(2) == 0 {
            vec![favourites[pick(favourites.len())].to_owned()]
        } else {
            (0..=pick(20)).map(|_| names[pick(names.len())].to_owned()).collect()
        };
        syscalls.push(rule);
    }
    let (default_action, default_errno_ret) = actions[pick(actions.len() - 1)];
    Seccomp {
        default_action: default_action.to_owned(),
        default_errno_ret,
        listener_path: Some("/agent".to_owned()),
        syscalls,
        ..Seccomp::default()
    }
}
