//! Whatever is in `config.json` or on the command line: never a panic, always one line that says what is wrong and where.
//!
//! Seeded, so that a failure can be repeated. `GANTRY_FUZZ_SECONDS` makes it go on for longer than in CI, and
//! `GANTRY_FUZZ_SEED` begin elsewhere.

use gantry_runtime::cgroup::{devices, table};
use gantry_runtime::config::Config;
use gantry_runtime::config::example;
use gantry_runtime::container::process::capability_warnings;
use gantry_runtime::error::Outcome;
use gantry_runtime::{args, launch};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

/// A small generator of numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Seeds of a short run: always the same ones, however fast the machine is.
const TRIES: u64 = 2000;

/// Call with seed after seed: the first [`TRIES`], or as many as the time of a long run allows.
fn for_a_while(mut try_one: impl FnMut(&mut Random)) {
    let long = std::env::var_os("GANTRY_FUZZ_SECONDS").is_some();
    let deadline = Instant::now() + Duration::from_secs(number("GANTRY_FUZZ_SECONDS", 0));
    let first = number("GANTRY_FUZZ_SEED", 0);
    for seed in first.. {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| try_one(&mut random)));
        assert!(caught.is_ok(), "seed {seed}; repeat it with GANTRY_FUZZ_SEED={seed}");
        if if long { Instant::now() > deadline } else { seed - first >= TRIES } {
            println!("{} tries", seed - first);
            return;
        }
    }
}

/// A configuration with something under most keys.
fn rich() -> Value {
    let mut config = serde_json::to_value(example::config(true)).expect("JSON");
    config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]);
    config["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7], "umask": 18});
    config["process"]["consoleSize"] = json!({"height": 24, "width": 80});
    config["hooks"] = json!({"poststop": [{"path": "/bin/x", "args": ["x"], "env": ["A=b"], "timeout": 5}]});
    config["annotations"] = json!({"a": "b"});
    config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    config["linux"]["devices"] =
        json!([{"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 438}]);
    config["linux"]["resources"] = json!({
        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}],
        "memory": {"limit": 1_000_000, "swap": 2_000_000, "reservation": 5000},
        "cpu": {"shares": 512, "quota": 5000, "period": 10000, "cpus": "0"},
        "pids": {"limit": 5},
        "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 100}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
        "network": {"classID": 5, "priorities": [{"name": "eth0", "priority": 5}]},
        "unified": {"memory.high": "5000"},
    });
    config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"], "listenerPath": "/x", "listenerMetadata": "y",
        "syscalls": [{"names": ["read", "clone"], "action": "SCMP_ACT_ALLOW",
                      "args": [{"index": 1, "value": 5, "valueTwo": 6, "op": "SCMP_CMP_MASKED_EQ"}]},
                     {"names": ["mount"], "action": "SCMP_ACT_TRACE", "errnoRet": 7}],
    });
    config["linux"]["personality"] = json!({"domain": "LINUX"});
    config["linux"]["rootfsPropagation"] = json!("rprivate");
    config["linux"]["cgroupsPath"] = json!("/a/b");
    config
}

/// Something that does not belong there, or just might.
fn strange(random: &mut Random) -> Value {
    let numbers = [
        json!(0),
        json!(-1),
        json!(1),
        json!(6),
        json!(65_535),
        json!(65_536),
        json!(u32::MAX),
        json!(4_294_967_296_u64),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1.5),
        json!(1e300),
        json!(-0.0),
    ];
    let words = [
        "",
        " ",
        "/",
        "//",
        "..",
        "../..",
        "/..",
        "/a/../..",
        ".",
        "a",
        "\u{0}",
        "a\nb",
        "\u{1b}[2J",
        "ä€🦀",
        "\u{202e}x",
        "CAP_CHOWN",
        "CAP_MOON",
        "RLIMIT_CPU",
        "SCMP_ACT_NOTIFY",
        "SCMP_CMP_LT",
        "SCMP_ARCH_X32",
        "host",
        "pid",
        "user",
        "rbind",
        "ro",
        "mode=99999",
        "size=-1",
        "99999999999999999999",
        "0-",
        "-",
        "0,1-",
        "c",
        "b",
        "max",
        "-1",
        "=",
        "A=",
        "1.2.0",
        "9.9.9",
        "net.",
        "kernel.x",
        "sysfs",
        "proc",
        "tmpfs",
        "idmap",
        "bind",
        "1:2",
        "io.max",
        "memory.max",
    ];
    match random.below(10) {
        0 => json!(null),
        1 => json!([]),
        2 => json!({}),
        3 => json!(random.below(2) == 0),
        4 | 5 => random.pick(&numbers).clone(),
        6 => json!("x".repeat(random.below(100_000))),
        7 => (0..random.below(200))
            .fold(json!(1), |inner, turn| if turn % 2 == 0 { json!([inner]) } else { json!({"a": inner}) }),
        _ => json!(random.pick(&words)),
    }
}

/// All places of a value, as pointers.
fn places(value: &Value, at: &str, list: &mut Vec<String>) {
    list.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            places(value, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), list);
        }),
        Value::Array(all) => {
            all.iter().enumerate().for_each(|(index, value)| places(value, &format!("{at}/{index}"), list))
        }
        _ => {}
    }
}

/// Change one place.
fn mutate(config: &mut Value, random: &mut Random) {
    let mut all = Vec::new();
    places(config, "", &mut all);
    let place = random.pick(&all).clone();
    let new = strange(random);
    let Some(found) = config.pointer_mut(&place) else { return };
    match (found, random.below(6)) {
        (Value::Object(map), 0) => {
            let keys: Vec<_> = map.keys().cloned().collect();
            if !keys.is_empty() {
                map.remove(random.pick(&keys));
            }
        }
        (Value::Object(map), 1) => drop(map.insert(new.as_str().unwrap_or("x").to_owned(), json!("y"))),
        (Value::Array(list), 0) => list.push(new),
        (Value::Array(list), 1) => {
            if let Some(first) = list.first().cloned() {
                list.push(first);
            }
        }
        (Value::Array(list), 2) => list.clear(),
        (Value::String(text), 0) => text.insert_str(0, "../"),
        (Value::String(text), 1) => text.push('\u{7}'),
        (found, _) => *found = new,
    }
}

/// Everything that is done with a configuration before anything is made.
fn carry_out(text: &[u8]) -> Outcome<Config> {
    let config = launch::parse_config(text, "config.json")?;
    let filter = launch::compile_filter(&config)?;
    assert!(filter.is_none_or(|filter| filter.program.len() <= 4096));
    if let Some(process) = &config.process {
        let _ = capability_warnings(process, false);
    }
    for version in [table::Version::V1, table::Version::V2] {
        if let Err(error) = table::writes(&config.linux.resources, &|_| Some(version)) {
            let text = error.to_string();
            assert!(text.contains("$.linux.resources"), "{text}");
        }
    }
    if let Ok(rules) = devices::rules(&config.linux.resources.devices) {
        let _ = devices::program(&rules);
        let _ = devices::v1_writes(&rules);
    }
    Ok(config)
}

/// An error is one line and names a place.
fn judge(outcome: Outcome<Config>, text: &[u8]) {
    let Err(failure) = outcome else { return };
    let message = failure.to_string();
    let shown = || String::from_utf8_lossy(&text[..text.len().min(4000)]).into_owned();
    assert!(!message.contains(char::is_control), "{message:?} for {}", shown());
    assert!(message.contains("$"), "no JSON path in `{message}` for {}", shown());
    assert!(message.len() < 300_000, "{} bytes of message", message.len());
    assert!(!message.ends_with("is wrong") && !message.ends_with(": "), "{message}");
}

#[test]
fn configurations() {
    let base = rich();
    carry_out(base.to_string().as_bytes()).expect("the base is good");
    for_a_while(|random| {
        let mut config = base.clone();
        for _ in 0..=random.below(3) {
            mutate(&mut config, random);
        }
        let text = config.to_string();
        judge(carry_out(text.as_bytes()), text.as_bytes());
    });
}

#[test]
fn bytes() {
    let base = serde_json::to_vec_pretty(&rich()).expect("JSON");
    for_a_while(|random| {
        let mut text = base.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(text.len());
            let far = (at + random.below(60)).min(text.len());
            match random.below(6) {
                0 => text[at] ^= 1 << random.below(8),
                1 => drop(text.drain(at..far)),
                2 => {
                    // A key or an element twice, most of the time.
                    let piece = text[at..far].to_vec();
                    text.splice(at..at, piece);
                }
                3 => text.truncate(at),
                4 => text.insert(at, *random.pick(b"{}[],:\"\\\n0-9e.\xff\0")),
                _ => drop(text.splice(at..far, b"9".repeat(random.below(400)))),
            }
            if text.is_empty() {
                text.push(b' ');
            }
        }
        judge(carry_out(&text), &text);
    });
}

#[test]
fn duplicates_are_named() {
    let text = r#"{"ociVersion": "1.2.0", "process": {"cwd": "/", "cwd": "/x"}}"#;
    let message = launch::parse_config(text.as_bytes(), "config.json").expect_err("twice").to_string();
    assert!(message.contains("$.process.cwd: duplicate field `cwd`"), "{message}");
}

/// Whatever else changes: a value of another type is named by the path it has.
#[test]
fn every_leaf_of_another_type_is_named() {
    let base = rich();
    let mut all = Vec::new();
    places(&base, "", &mut all);
    for place in all {
        for other in [json!({"x": [1]}), json!(["x"]), json!("x"), json!(5), json!(true)] {
            let mut config = base.clone();
            let found = config.pointer_mut(&place).expect("it is there");
            let kind = |value: &Value| std::mem::discriminant(value);
            if kind(found) == kind(&other) {
                continue;
            }
            *found = other.clone();
            let Err(failure) = launch::parse_config(config.to_string().as_bytes(), "config.json") else {
                panic!("{place} may be {other}");
            };
            let path = place.split('/').skip(1).fold("$".to_owned(), |path, step| match step.parse::<usize>() {
                Ok(index) => format!("{path}[{index}]"),
                Err(_) => format!("{path}.{step}"),
            });
            let message = failure.to_string();
            assert!(message.contains(&format!("{path}: invalid type: ")), "{place} as {other}: {message}");
            assert!(message.contains(", expected "), "{message}");
        }
    }
}

#[test]
fn command_lines() {
    let words = [
        "create",
        "run",
        "start",
        "state",
        "kill",
        "delete",
        "list",
        "exec",
        "spec",
        "ps",
        "pause",
        "resume",
        "update",
        "events",
        "features",
        "checkpoint",
        "restore",
        "help",
        "fly",
        "",
        "-",
        "--",
        "---",
        "=",
        "--=",
        "-=",
        "--root",
        "--root=",
        "--root=/x",
        "--log",
        "--log-format",
        "json",
        "text",
        "xml",
        "--debug",
        "--debug=maybe",
        "--rootless",
        "auto",
        "true",
        "--systemd-cgroup",
        "-h",
        "--help",
        "-v",
        "--version",
        "-b",
        "--bundle",
        "/b",
        "-d",
        "--detach",
        "--pid-file",
        "/p",
        "--console-socket",
        "--preserve-fds",
        "3",
        "-3",
        "99999999999999999999",
        "--no-pivot",
        "--keep",
        "--all",
        "-a",
        "--force",
        "-f",
        "-q",
        "--format",
        "table",
        "--process",
        "-p",
        "-t",
        "--tty",
        "--cwd",
        "-e",
        "A=b",
        "--user",
        "-u",
        "0",
        "0:0",
        "0:",
        ":0",
        "root",
        "--cap",
        "CAP_CHOWN",
        "CAP_MOON",
        "--additional-gids",
        "-g",
        "KILL",
        "SIGKILL",
        "9",
        "RTMIN+3",
        "NOPE",
        "web",
        "a/b",
        "..",
        "ä",
        "\u{0}",
        "\n",
        "--resources",
        "--memory",
        "5m",
        "--cpu-quota",
        "--pids-limit",
        "--blkio-weight",
        "--stats",
        "--interval",
        "5s",
        "--container-log",
        "--supervise",
        "--exit-file",
        "--log-max-bytes",
        "--log-max-files",
        "--ignore-paused",
        "--cgroup",
        "x:y",
        "--pidfd-socket",
        "--no-new-privs",
        "--image-path",
        "--leave-running",
        "--unknown",
        "-x",
        "-dt",
        "-u0",
        "-abc",
        "--detach=false",
    ];
    for_a_while(|random| {
        let mut line: Vec<OsString> = (0..random.below(9)).map(|_| OsString::from(*random.pick(&words))).collect();
        if random.below(8) == 0 {
            line.push(OsString::from_vec(vec![b'-', b'-', 0xff, b'=', 0xfe]));
        }
        if random.below(20) == 0 {
            line.push(OsString::from("x".repeat(random.below(10_000))));
        }
        if let (_, Err(error)) = args::parse(line.iter().cloned()) {
            let message = error.to_string();
            assert!(message.len() > 8, "`{message}` for {line:?}");
        }
    });
}

#[test]
fn an_empty_object_is_refused_by_the_first_thing_it_lacks() {
    let text = Value::Object(Map::new()).to_string();
    let message = launch::parse_config(text.as_bytes(), "config.json").expect_err("nothing").to_string();
    assert!(message.contains("$.ociVersion"), "{message}");
}
