//! Every claim of `features`, put to the test: what is listed works, and what is not listed is refused by name.

mod common;

use common::{Bed, field, id, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;

fn features() -> Value {
    serde_json::from_str(&Bed::new("true").ok(&["features"])).expect("the document is JSON")
}

/// The words of a list in the document.
fn words(document: &Value, at: &str) -> Vec<String> {
    let list = document.pointer(at).and_then(Value::as_array).unwrap_or_else(|| panic!("{at} is a list"));
    list.iter().map(|word| word.as_str().expect("a word").to_owned()).collect()
}

#[test]
fn the_document_has_every_part() {
    let document = features();
    for (at, want) in [("/ociVersionMin", "1.0.0"), ("/ociVersionMax", "1.3.0")] {
        assert_eq!(document.pointer(at), Some(&json!(want)), "{at}");
    }
    for at in ["/hooks", "/mountOptions", "/linux/namespaces", "/linux/capabilities", "/linux/seccomp/actions"] {
        assert!(!words(&document, at).is_empty(), "{at}");
    }
    for at in ["/linux/cgroup/v1", "/linux/cgroup/systemd", "/linux/seccomp/enabled", "/linux/apparmor/enabled"] {
        assert!(document.pointer(at).is_some_and(Value::is_boolean), "{at}");
    }
    for at in ["/linux/selinux/enabled", "/linux/intelRdt/enabled", "/linux/mountExtensions/idmap/enabled"] {
        assert!(document.pointer(at).is_some_and(Value::is_boolean), "{at}");
    }
    assert!(document.pointer("/annotations").is_some_and(Value::is_object));
    assert_eq!(document.pointer("/potentiallyUnsafeConfigAnnotations"), Some(&json!([])));
}

/// The mount table of a container with these mounts.
fn mounted(mounts: &[Value]) -> String {
    let mut bed = Bed::new("cat /proc/self/mountinfo");
    bed.config["mounts"].as_array_mut().expect("mounts").extend(mounts.iter().cloned());
    bed.config["root"]["readonly"] = json!(false);
    bed.says()
}

/// Lines of the table for a place and everything below it.
fn lines_below<'a>(table: &'a str, place: &str) -> Vec<&'a str> {
    let below = format!("{place}/");
    let at = |line: &&str| line.split(' ').nth(4).is_some_and(|point| point == place || point.starts_with(&below));
    table.lines().filter(at).collect()
}

/// Options of the mount itself, and its propagation.
fn options_of(line: &str) -> (BTreeSet<&str>, Vec<&str>) {
    let fields: Vec<&str> = line.split(' ').collect();
    let propagation = fields[6..].iter().take_while(|field| **field != "-").copied().collect();
    (fields[5].split(',').collect(), propagation)
}

fn tmpfs(options: &[&str]) -> Value {
    json!({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": options})
}

/// A tree of the host with mounts below it.
fn sys(options: &[&str]) -> Value {
    json!({"destination": "/mnt", "type": "none", "source": "/sys", "options": options})
}

/// What a word for an attribute does: the word before it that it takes back, and what the table shows then.
fn attribute(word: &str) -> Option<(&'static str, &'static str, bool)> {
    Some(match word {
        "ro" => ("rw", "ro", true),
        "rw" => ("ro", "ro", false),
        "nosuid" => ("suid", "nosuid", true),
        "suid" => ("nosuid", "nosuid", false),
        "nodev" => ("dev", "nodev", true),
        "dev" => ("nodev", "nodev", false),
        "noexec" => ("exec", "noexec", true),
        "exec" => ("noexec", "noexec", false),
        "noatime" => ("strictatime", "noatime", true),
        "atime" | "relatime" | "nostrictatime" => ("noatime", "relatime", true),
        "strictatime" | "norelatime" => ("noatime", "noatime", false),
        "nodiratime" => ("diratime", "nodiratime", true),
        "diratime" => ("nodiratime", "nodiratime", false),
        "nosymfollow" => ("symfollow", "nosymfollow", true),
        "symfollow" => ("nosymfollow", "nosymfollow", false),
        _ => return None,
    })
}

fn check_mount_option(word: &str) {
    let recursive = word.strip_prefix('r');
    if let Some((before, shown, there)) = attribute(word) {
        let table = mounted(&[tmpfs(&[before, word])]);
        let lines = lines_below(&table, "/mnt");
        assert_eq!(lines.len(), 1, "{word}: {table}");
        assert_eq!(options_of(lines[0]).0.contains(shown), there, "{word}: {}", lines[0]);
        return;
    }
    if let Some((before, shown, there)) = recursive.and_then(attribute) {
        let before = format!("r{before}");
        let table = mounted(&[sys(&["rbind", &before, word])]);
        let lines = lines_below(&table, "/mnt");
        assert!(lines.len() > 1, "{word} needs mounts below /sys: {table}");
        for line in lines {
            assert_eq!(options_of(line).0.contains(shown), there, "{word}: {line}");
        }
        return;
    }
    let propagation = |line: &str, kind: &str| options_of(line).1.iter().any(|field| field.starts_with(kind));
    match word {
        "shared" => {
            let table = mounted(&[tmpfs(&["private", word])]);
            assert!(propagation(lines_below(&table, "/mnt")[0], "shared:"), "{table}");
        }
        "rshared" => {
            let table = mounted(&[sys(&["rbind", "rprivate", word])]);
            assert!(lines_below(&table, "/mnt").iter().all(|line| propagation(line, "shared:")), "{table}");
        }
        "private" | "slave" | "unbindable" => {
            let table = mounted(&[tmpfs(&["shared", word])]);
            let line = lines_below(&table, "/mnt")[0];
            assert!(!propagation(line, "shared:"), "{word}: {line}");
            assert_eq!(propagation(line, "unbindable"), word == "unbindable", "{line}");
        }
        "rprivate" | "rslave" | "runbindable" => {
            let table = mounted(&[sys(&["rbind", "rshared", word])]);
            let lines = lines_below(&table, "/mnt");
            assert!(lines.len() > 1 && lines.iter().all(|line| !propagation(line, "shared:")), "{word}: {table}");
            assert!(
                lines.iter().all(|line| propagation(line, "unbindable") == (word == "runbindable")),
                "{word}: {table}"
            );
        }
        "bind" => assert_eq!(lines_below(&mounted(&[sys(&[word])]), "/mnt").len(), 1),
        "rbind" => assert!(lines_below(&mounted(&[sys(&[word])]), "/mnt").len() > 1),
        "remount" => {
            let table = mounted(&[tmpfs(&["rw"]), tmpfs(&[word, "ro"])]);
            assert!(options_of(lines_below(&table, "/mnt")[0]).0.contains("ro"), "{table}");
        }
        "tmpcopyup" => {
            let mut bed = Bed::new("cat /kept/file");
            fs::create_dir(bed.rootfs("kept")).expect("a directory");
            fs::write(bed.rootfs("kept/file"), "from the image").expect("a file");
            let mount = json!({"destination": "/kept", "type": "tmpfs", "source": "tmpfs", "options": [word]});
            bed.config["mounts"].as_array_mut().expect("mounts").push(mount);
            assert_eq!(bed.says(), "from the image");
        }
        "sync" | "dirsync" | "lazytime" | "mand" => {
            let table = mounted(&[tmpfs(&[word])]);
            let line = lines_below(&table, "/mnt")[0];
            // The kernel has had no mandatory locks since 5.15, and takes the word without an effect.
            assert!(word == "mand" || line.rsplit(' ').next().is_some_and(|shown| shown.contains(word)), "{line}");
        }
        "idmap" | "ridmap" => {
            let mut bed = Bed::new("stat -c %u /mnt/file");
            fs::create_dir(bed.path("data")).expect("a directory");
            fs::write(bed.path("data/file"), "").expect("a file");
            let map = json!([{"containerID": 0, "hostID": 1000, "size": 1000}]);
            let mount = json!({"destination": "/mnt", "type": "bind", "source": bed.path("data"),
                "options": ["rbind", word], "uidMappings": map, "gidMappings": map});
            bed.config["mounts"].as_array_mut().expect("mounts").push(mount);
            bed.config["root"]["readonly"] = json!(false);
            assert_eq!(bed.says(), "1000\n", "{word}");
        }
        // What every filesystem does anyway, or has no say about: taken, and no change.
        "defaults" | "async" | "loud" | "silent" | "nomand" | "noiversion" | "iversion" | "nolazytime" | "acl"
        | "noacl" => {
            let table = mounted(&[tmpfs(&[word])]);
            let (options, propagation) = options_of(lines_below(&table, "/mnt")[0]);
            assert!(options.contains("rw") && propagation.is_empty(), "{word}: {table}");
        }
        _ => panic!("`{word}` is claimed, and this test does not know what it does"),
    }
}

#[test]
fn mount_options_do_what_they_say() {
    for word in words(&features(), "/mountOptions") {
        check_mount_option(&word);
    }
}

#[test]
fn namespaces_are_made() {
    for kind in words(&features(), "/linux/namespaces") {
        let file = match kind.as_str() {
            "network" => "net",
            "mount" => "mnt",
            other => other,
        };
        let host = fs::read_link(format!("/proc/self/ns/{file}")).expect("a namespace of the host");
        // Through the procfs of the host's PID namespace, which the container gets as a bind.
        let mut bed = Bed::new(&format!("readlink /proc/self/ns/{file}"));
        let mut list = vec![json!({"type": "mount"})];
        if kind == "user" {
            let map = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
            bed.config["linux"]["uidMappings"] = map.clone();
            bed.config["linux"]["gidMappings"] = map;
            list.push(json!({"type": "user"}));
            list.push(json!({"type": "pid"}));
        } else if kind != "mount" {
            list.push(json!({"type": kind}));
        }
        bed.config["linux"]["namespaces"] = json!(list);
        bed.config["hostname"] = Value::Null;
        bed.config["linux"]["resources"] = json!({});
        let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| mount["destination"] == "/proc");
        let inside = bed.says();
        assert_ne!(inside.trim(), host.to_str().expect("a link"), "{kind}");
        assert!(inside.starts_with(&format!("{file}:[")), "{kind}: {inside}");
    }
}

#[test]
fn capabilities_are_given_by_name() {
    let ours = fs::read_to_string("/proc/self/status").expect("our status");
    let ours = u64::from_str_radix(field(&ours, "CapBnd"), 16).expect("a set");
    let mut seen = 0;
    for name in words(&features(), "/linux/capabilities") {
        let mut bed = Bed::new("grep CapBnd /proc/self/status");
        bed.config["process"]["capabilities"] = json!({"bounding": [name]});
        let ran = bed.run(&["run", &id("cap")]);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let set = u64::from_str_radix(field(&ran.out, "CapBnd"), 16).expect("a set");
        if set == 0 {
            continue; // not ours to give; which those may be is checked at the end
        }
        assert!(set.is_power_of_two() && set & seen == 0 && set & ours == set, "{name}: {set:x}");
        seen |= set;
    }
    assert_eq!(seen, ours, "every capability of this kernel that we have has a name");
}

#[test]
fn hooks_run() {
    let mut bed = Bed::new("true");
    bed.config["root"]["readonly"] = json!(false);
    let claimed = words(&features(), "/hooks");
    for name in &claimed {
        // In the container its own root is all there is; everywhere else the host's path still holds.
        let file = if name == "startContainer" { "/ran".into() } else { bed.rootfs("ran").display().to_string() };
        let script = format!("cat > /dev/null; echo {name} >> {file}");
        bed.config["hooks"][name] = json!([{"path": "/bin/busybox", "args": ["sh", "-c", script]}]);
    }
    let name = id("hooks");
    bed.ok(&["run", &name]);
    let ran = fs::read_to_string(bed.rootfs("ran")).expect("what the hooks wrote");
    let ran: BTreeSet<&str> = ran.lines().collect();
    assert_eq!(ran, claimed.iter().map(String::as_str).collect(), "all that is claimed, and nothing else");
    bed.assert_gone(&name);
}

/// A bed whose script is under a rule for `kill(2)`.
fn under_rule(script: &str, rule: &Value) -> Bed {
    let mut bed = Bed::new(script);
    bed.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    bed
}

/// Sends itself a signal that does nothing by default, and tells whether it could.
const SEND: &str = "kill -CHLD $$ && echo sent || echo refused";

#[test]
fn seccomp_actions_act() {
    const KILLED: i32 = 128 + libc_sigsys();
    for action in words(&features(), "/linux/seccomp/actions") {
        let mut bed = under_rule(SEND, &json!({"names": ["kill"], "action": action}));
        if action == "SCMP_ACT_NOTIFY" {
            check_notify(bed);
            continue;
        }
        bed.save();
        let ran = bed.run(&["run", &id("action")]);
        let (code, out) = match action.as_str() {
            "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" => (0, "sent\n"),
            // Nobody traces it, which is ENOSYS.
            "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE" => (0, "refused\n"),
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" | "SCMP_ACT_KILL_PROCESS" | "SCMP_ACT_TRAP" => (KILLED, ""),
            other => panic!("`{other}` is claimed, and this test does not know what it does"),
        };
        assert_eq!((ran.code, ran.out.as_str()), (code, out), "{action}: {ran:?}");
        bed.config = json!({});
    }
}

const fn libc_sigsys() -> i32 {
    31
}

/// Somebody who listens gets the filter's descriptor.
fn check_notify(mut bed: Bed) {
    let path = bed.path("listener");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    listener.set_nonblocking(true).expect("a flag");
    bed.config["linux"]["seccomp"]["listenerPath"] = json!(path);
    let name = id("notify");
    bed.ok(&["run", "-d", &name]);
    until("the listener hears of the container", || listener.accept().is_ok());
    bed.ok(&["delete", "--force", &name]);
}

#[test]
fn seccomp_operators_compare() {
    for operator in words(&features(), "/linux/seccomp/operators") {
        // CHLD is 17 and URG is 23; both do nothing by default.
        let (value, second, chld, urg) = match operator.as_str() {
            "SCMP_CMP_EQ" => (17, 0, "refused", "sent"),
            "SCMP_CMP_NE" => (17, 0, "sent", "refused"),
            "SCMP_CMP_LT" => (23, 0, "refused", "sent"),
            "SCMP_CMP_LE" => (17, 0, "refused", "sent"),
            "SCMP_CMP_GT" => (17, 0, "sent", "refused"),
            "SCMP_CMP_GE" => (23, 0, "sent", "refused"),
            // 17 is 0b10001 and 23 is 0b10111.
            "SCMP_CMP_MASKED_EQ" => (0b110, 0, "refused", "sent"),
            other => panic!("`{other}` is claimed, and this test does not know what it does"),
        };
        let script = "for s in CHLD URG; do kill -$s $$ && echo sent || echo refused; done";
        let argument = json!({"index": 1, "value": value, "valueTwo": second, "op": operator});
        let rule = json!({"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [argument]});
        assert_eq!(under_rule(script, &rule).says(), format!("{chld}\n{urg}\n"), "{operator}");
    }
}

#[test]
fn seccomp_architectures_and_flags_are_taken() {
    let document = features();
    for name in words(&document, "/linux/seccomp/archs") {
        let mut bed = under_rule(SEND, &json!({"names": ["kill"], "action": "SCMP_ACT_ERRNO"}));
        bed.config["linux"]["seccomp"]["architectures"] = json!([name]);
        assert_eq!(bed.says(), "refused\n", "{name}");
    }
    let known = words(&document, "/linux/seccomp/knownFlags");
    let supported = words(&document, "/linux/seccomp/supportedFlags");
    for flag in &supported {
        assert!(known.contains(flag), "{flag}");
        if flag == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" {
            continue; // means something with a listener only
        }
        let mut bed = under_rule(SEND, &json!({"names": ["kill"], "action": "SCMP_ACT_ERRNO"}));
        bed.config["linux"]["seccomp"]["flags"] = json!([flag]);
        assert_eq!(bed.says(), "refused\n", "{flag}");
    }
}

#[test]
fn cgroups_of_this_host_are_claimed() {
    let document = features();
    let unified = fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok();
    let version = if unified { "/linux/cgroup/v2" } else { "/linux/cgroup/v1" };
    assert_eq!(document.pointer(version), Some(&json!(true)));
    let bed = Bed::new("sleep 1000");
    let name = id("cgroup");
    bed.ok(&["run", "-d", &name]);
    assert!(!common::cgroups(&name).is_empty(), "it has a cgroup");
    bed.ok(&["delete", "--force", &name]);
}

/// A part that is claimed is not called unsupported, and one that is not claimed is refused by its path.
#[test]
fn the_other_parts_are_honest_both_ways() {
    let document = features();
    let on = |at: &str| document.pointer(at) == Some(&json!(true));
    let policy = document.pointer("/linux/memoryPolicy/modes").and_then(Value::as_array).expect("modes");
    for (claimed, at, value) in [
        (on("/linux/selinux/enabled"), "/process/selinuxLabel", json!("system_u:system_r:container_t:s0")),
        (on("/linux/intelRdt/enabled"), "/linux/intelRdt", json!({"closID": "gantry-test-none"})),
        (on("/linux/intelRdt/schemata"), "/linux/intelRdt", json!({"schemata": ["L3:0=f"]})),
        (on("/linux/intelRdt/monitoring"), "/linux/intelRdt", json!({"enableMonitoring": true})),
        (on("/linux/netDevices/enabled"), "/linux/netDevices", json!({"gantry-none0": {}})),
        (on("/linux/cgroup/rdma"), "/linux/resources/rdma", json!({"gantry-none0": {"hcaHandles": 1}})),
        (!policy.is_empty(), "/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0"})),
    ] {
        let mut bed = Bed::new("true");
        let mut place = &mut bed.config;
        for key in at.trim_start_matches('/').split('/') {
            place = &mut place[key];
        }
        *place = value;
        let ran = bed.run(&["run", &id("part")]);
        let refused = ran.code != 0 && ran.err.contains("not supported by this runtime");
        assert_eq!(refused, !claimed, "{at}: {ran:?}");
        let key = format!("$.{}", at.trim_start_matches('/').replace('/', "."));
        assert!(claimed || ran.err.contains(&key), "{at}: {ran:?}");
    }
}
