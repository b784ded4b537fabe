//! Which device files the container may use: rules in order, for the v1 files and as an eBPF program for v2.

use crate::config::DeviceRule;
use crate::sys::bpf::Instruction;

/// Kind of device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Both.
    All,
    /// Block devices.
    Block,
    /// Character devices.
    Char,
}

/// One rule; later rules win.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Allow or deny.
    pub allow: bool,
    /// Kind.
    pub kind: Kind,
    /// `None` is every number.
    pub major: Option<u32>,
    /// `None` is every number.
    pub minor: Option<u32>,
    /// `ACCESS_*` bits.
    pub access: u8,
}

/// `BPF_DEVCG_ACC_MKNOD`.
pub const ACCESS_MKNOD: u8 = 1;
/// `BPF_DEVCG_ACC_READ`.
pub const ACCESS_READ: u8 = 2;
/// `BPF_DEVCG_ACC_WRITE`.
pub const ACCESS_WRITE: u8 = 4;
/// Every access.
pub const ACCESS_ALL: u8 = 7;

/// Devices every container has, by the specification: numbers of null, zero, full, random, urandom, tty, ptmx, and
/// all of devpts.
const DEFAULT: &[(u32, Option<u32>)] =
    &[(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];

/// A rule that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.json: $.linux.resources.devices[{index}]: {problem}")]
pub struct DeviceError {
    index: usize,
    problem: String,
}

/// The rules to enforce, on top of "deny everything": what the bundle asks for, then what every container gets.
///
/// # Errors
/// A rule that is not valid.
pub fn rules(config: &[DeviceRule]) -> Result<Vec<Rule>, DeviceError> {
    let mut rules = Vec::with_capacity(config.len() + DEFAULT.len() + 2);
    for (index, rule) in config.iter().enumerate() {
        rules.push(parse(rule).map_err(|problem| DeviceError { index, problem })?);
    }
    // Making a device node does no harm while it cannot be opened, and images contain some.
    for kind in [Kind::Char, Kind::Block] {
        rules.push(Rule { allow: true, kind, major: None, minor: None, access: ACCESS_MKNOD });
    }
    let device =
        |&(major, minor)| Rule { allow: true, kind: Kind::Char, major: Some(major), minor, access: ACCESS_ALL };
    rules.extend(DEFAULT.iter().map(device));
    Ok(rules)
}

fn parse(rule: &DeviceRule) -> Result<Rule, String> {
    let kind = match rule.kind.as_deref() {
        None | Some("" | "a") => Kind::All,
        Some("b") => Kind::Block,
        Some("c" | "u") => Kind::Char,
        Some(other) => return Err(format!("type `{other}` is not one of a, b, c")),
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value).map(Some).map_err(|_| format!("{value} is not a device number")),
    };
    let mut access = 0;
    for letter in rule.access.as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => ACCESS_READ,
            'w' => ACCESS_WRITE,
            'm' => ACCESS_MKNOD,
            _ => return Err(format!("access `{letter}` is not one of r, w, m")),
        };
    }
    let (major, minor) = (number(rule.major)?, number(rule.minor)?);
    Ok(Rule { allow: rule.allow, kind, major, minor, access })
}

/// Whether a rule is about every access to every device.
fn is_total(rule: &Rule) -> bool {
    rule.kind == Kind::All && rule.major.is_none() && rule.minor.is_none() && rule.access == ACCESS_ALL
}

/// The rules that still matter: those before the last total one are dead. The flag says what holds when none matches.
pub(super) fn effective(rules: &[Rule]) -> (bool, &[Rule]) {
    match rules.iter().rposition(is_total) {
        Some(position) => (rules[position].allow, &rules[position + 1..]),
        None => (false, rules),
    }
}

/// Lines for the v1 files, in order: `(file, line)`.
///
/// # Errors
/// A rule that v1 would take and not enforce: its kernel side keeps a list of exceptions to one default, and can take
/// back only what is exactly one of them.
pub fn v1_writes(rules: &[Rule]) -> Result<Vec<(&'static str, String)>, DeviceError> {
    let (allow_rest, rules) = effective(rules);
    if allow_rest && rules.iter().all(|rule| rule.allow) {
        // A new cgroup has its parent's rules, which is all we may hand on anyway.
        return Ok(Vec::new());
    }
    let file = |allow: bool| {
        if allow { "devices.allow" } else { "devices.deny" }
    };
    let mut writes = vec![(file(allow_rest), "a".to_owned())];
    let mut exceptions: Vec<Rule> = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        if rule.allow == allow_rest {
            if rule.access == ACCESS_MKNOD {
                continue; // Only a convenience; the rest is allowed already.
            }
            let partly = |other: &&Rule| overlaps(rule, other) && !covers(rule, other);
            if exceptions.iter().any(|other| partly(&other)) {
                let problem = "takes back a part of an earlier rule, which cgroup v1 cannot express".to_owned();
                return Err(DeviceError { index, problem });
            }
            let taken: Vec<Rule> = exceptions.extract_if(.., |other| overlaps(rule, other)).collect();
            writes.extend(taken.iter().flat_map(lines).map(|line| (file(allow_rest), line)));
            continue;
        }
        exceptions.push(*rule);
        writes.extend(lines(rule).map(|line| (file(rule.allow), line)));
    }
    Ok(writes)
}

fn kinds(kind: Kind) -> &'static [char] {
    match kind {
        Kind::All => &['b', 'c'],
        Kind::Block => &['b'],
        Kind::Char => &['c'],
    }
}

fn lines(rule: &Rule) -> impl Iterator<Item = String> {
    let number = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
    let (major, minor) = (number(rule.major), number(rule.minor));
    let access: String = [(ACCESS_READ, 'r'), (ACCESS_WRITE, 'w'), (ACCESS_MKNOD, 'm')]
        .into_iter()
        .filter(|(bit, _)| rule.access & bit != 0)
        .map(|(_, letter)| letter)
        .collect();
    kinds(rule.kind).iter().map(move |kind| format!("{kind} {major}:{minor} {access}"))
}

fn overlaps(a: &Rule, b: &Rule) -> bool {
    let meet = |x: Option<u32>, y: Option<u32>| x.is_none() || y.is_none() || x == y;
    kinds(a.kind).iter().any(|kind| kinds(b.kind).contains(kind))
        && meet(a.major, b.major)
        && meet(a.minor, b.minor)
        && a.access & b.access != 0
}

/// Whether `a` speaks about everything `b` does.
fn covers(a: &Rule, b: &Rule) -> bool {
    let within = |x: Option<u32>, y: Option<u32>| x.is_none() || x == y;
    kinds(b.kind).iter().all(|kind| kinds(a.kind).contains(kind))
        && within(a.major, b.major)
        && within(a.minor, b.minor)
        && b.access & !a.access == 0
}

/// An eBPF program for `BPF_PROG_TYPE_CGROUP_DEVICE` that returns 1 to allow, or `None` when all is allowed.
///
/// The context holds `access << 16 | kind`, major and minor. Later rules win, so they are asked first; a rule decides
/// an access only if it covers all of it, and a denial also if it touches a part.
pub fn program(rules: &[Rule]) -> Option<Vec<Instruction>> {
    const LOAD_WORD: u8 = 0x61;
    const MOVE: u8 = 0xb7;
    const COPY: u8 = 0xbf;
    const AND_32: u8 = 0x54;
    const SHIFT_RIGHT_32: u8 = 0x74;
    const JUMP_NOT_EQUAL: u8 = 0x55;
    const JUMP_EQUAL: u8 = 0x15;
    const EXIT: u8 = 0x95;
    const SCRATCH: u8 = 0;
    const KIND: u8 = 2;
    const ACCESS: u8 = 3;
    const MAJOR: u8 = 4;
    const MINOR: u8 = 5;

    let (allow_rest, rules) = effective(rules);
    if allow_rest && rules.iter().all(|rule| rule.allow) {
        return None;
    }
    let op = |code, destination: u8, source: u8, offset, immediate| Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    };
    let mut program = vec![
        op(LOAD_WORD, KIND, 1, 0, 0),
        op(COPY, ACCESS, KIND, 0, 0),
        op(AND_32, KIND, 0, 0, 0xffff),
        op(SHIFT_RIGHT_32, ACCESS, 0, 0, 16),
        op(LOAD_WORD, MAJOR, 1, 4, 0),
        op(LOAD_WORD, MINOR, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        // Tests that skip to the next rule; their jump offsets are filled in below.
        let mut tests = Vec::new();
        match rule.kind {
            Kind::All => {}
            Kind::Block => tests.push(op(JUMP_NOT_EQUAL, KIND, 0, 0, 1)),
            Kind::Char => tests.push(op(JUMP_NOT_EQUAL, KIND, 0, 0, 2)),
        }
        if let Some(major) = rule.major {
            tests.push(op(JUMP_NOT_EQUAL, MAJOR, 0, 0, major as i32));
        }
        if let Some(minor) = rule.minor {
            tests.push(op(JUMP_NOT_EQUAL, MINOR, 0, 0, minor as i32));
        }
        if rule.access != ACCESS_ALL {
            tests.push(op(COPY, SCRATCH, ACCESS, 0, 0));
            if rule.allow {
                // Something is asked for that the rule does not give: next.
                tests.push(op(AND_32, SCRATCH, 0, 0, i32::from(ACCESS_ALL & !rule.access)));
                tests.push(op(JUMP_NOT_EQUAL, SCRATCH, 0, 0, 0));
            } else {
                // Nothing is asked for that the rule takes: next.
                tests.push(op(AND_32, SCRATCH, 0, 0, i32::from(rule.access)));
                tests.push(op(JUMP_EQUAL, SCRATCH, 0, 0, 0));
            }
        }
        let length = tests.len() + 2;
        for (position, test) in tests.iter_mut().enumerate() {
            if matches!(test.code, JUMP_NOT_EQUAL | JUMP_EQUAL) {
                test.offset = (length - position - 1) as i16;
            }
        }
        program.extend(tests);
        program.push(op(MOVE, 0, 0, 0, i32::from(rule.allow)));
        program.push(op(EXIT, 0, 0, 0, 0));
    }
    program.push(op(MOVE, 0, 0, 0, i32::from(allow_rest)));
    program.push(op(EXIT, 0, 0, 0, 0));
    Some(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse_all(rules_json: Value) -> Vec<Rule> {
        rules(&serde_json::from_value::<Vec<DeviceRule>>(rules_json).expect("rules")).expect("valid rules")
    }

    /// Run the program on one access, as the kernel would; only the operations the assembler uses.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut register = [0u32; 11];
        let mut at = 0;
        loop {
            let step = program[at];
            let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            at += 1;
            match step.code {
                0x61 => register[to] = context[step.offset as usize / 4],
                0xb7 => register[to] = step.immediate as u32,
                0xbf => register[to] = register[from],
                0x54 => register[to] &= step.immediate as u32,
                0x74 => register[to] >>= step.immediate,
                0x55 if register[to] != step.immediate as u32 => at += step.offset as usize,
                0x15 if register[to] == step.immediate as u32 => at += step.offset as usize,
                0x55 | 0x15 => {}
                0x95 => return register[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_decides_as_the_rules_say() {
        let default = parse_all(json!([{"allow": false, "access": "rwm"}]));
        let disk = parse_all(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"},
        ]));
        let open = parse_all(json!([{"allow": true, "access": "rwm"}, {"allow": false, "type": "b", "access": "w"}]));
        let (block, char, read, write, mknod) = (1, 2, 2, 4, 1);
        for (why, rules, kind, access, major, minor, want) in [
            ("null", &default, char, read | write, 1, 3, true),
            ("a pty", &default, char, read | write, 136, 77, true),
            ("mem", &default, char, read, 1, 1, false),
            ("a disk", &default, block, read, 8, 0, false),
            ("making the node of a disk", &default, block, mknod, 8, 0, true),
            ("allowed disk, reading", &disk, block, read, 8, 0, true),
            ("allowed disk, writing", &disk, block, read | write, 8, 0, false),
            ("another partition", &disk, block, read, 8, 1, false),
            ("all but writing to disks: char", &open, char, write, 10, 200, true),
            ("all but writing to disks: read", &open, block, read, 8, 0, true),
            ("all but writing to disks: write", &open, block, read | write, 8, 0, false),
        ] {
            let program = program(rules).expect("something is denied");
            assert_eq!(run(&program, kind, access, major, minor), want, "{why}");
        }
        assert_eq!(program(&parse_all(json!([{"allow": true, "access": "rwm"}]))), None);
    }

    #[test]
    fn v1_lines() {
        let text = |rules: Value| match v1_writes(&parse_all(rules)) {
            Ok(writes) => writes.iter().map(|(file, line)| format!("{file} {line}")).collect::<Vec<_>>().join("; "),
            Err(error) => error.to_string(),
        };
        let default = text(json!([{"allow": false, "access": "rwm"}]));
        assert!(default.starts_with("devices.deny a; devices.allow c *:* m; devices.allow b *:* m; "), "{default}");
        assert!(default.ends_with("devices.allow c 136:* rwm"), "{default}");
        assert_eq!(text(json!([])), default, "no rule is the same as deny all");
        assert_eq!(text(json!([{"allow": true, "access": "rwm"}])), "");
        let partly = text(json!([
            {"allow": true, "type": "c", "access": "rw"},
            {"allow": false, "type": "c", "major": 1, "minor": 1, "access": "r"},
        ]));
        assert!(partly.contains("devices[1]: takes back a part"), "{partly}");
    }

    #[test]
    fn bad_rules_are_refused() {
        for rule in [
            json!({"allow": true, "type": "x"}),
            json!({"allow": true, "access": "q"}),
            json!({"allow": true, "major": -2}),
            json!({"allow": true, "minor": 5_000_000_000_i64}),
        ] {
            let list: Vec<DeviceRule> = serde_json::from_value(json!([rule])).expect("a rule");
            assert!(rules(&list).is_err(), "{rule}");
        }
    }
}
