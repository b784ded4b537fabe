//! Real clients with Debian's packages and default settings: whatever works with runc works with this runtime.
//!
//! Each client is one test. It runs a table of steps twice, at the same time, each in a sandbox (a host of its own made
//! of namespaces, see `sandbox.sh`): once with runc, once with `gantry-runtime`, where no other runtime can be executed.
//! A step passes when runc does what the table says, and this runtime does exactly the same: exit code and output,
//! without what is different in every run (see `plain`).

mod sandbox;

use sandbox::{Host, Sandbox};
use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

/// One row of a client's table.
///
/// In the file, lines that start with `# ` and stand before the next step are comments:
///
/// ```text
/// === NAME
/// lines for bash, with `prelude.sh`
/// --- [EXIT CODE] [said|ours]
/// lines of standard output, or else of standard error, have these texts, in this order
/// ```
#[derive(Debug, PartialEq, Eq)]
struct Step<'a> {
    name: &'a str,
    does: &'a str,
    /// Exit code with either runtime.
    code: i32,
    says: &'a str,
    compared: Compared,
}

/// How much of a step is compared with runc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// Exit code and all of the output.
    All,
    /// `said`: exit code, and what the table says. The rest names the runtime, or has its words or figures.
    Said,
    /// `ours`: nothing. runc 1.1.5 cannot do it on every host where this runtime can.
    Ours,
}

/// The steps of a table.
fn table(text: &str) -> Vec<Step<'_>> {
    text.split("\n=== ").skip(1).map(row).collect()
}

fn row(text: &str) -> Step<'_> {
    let (name, rest) = text.split_once('\n').expect("lines after the name");
    let (does, rest) = rest.split_once("\n---").unwrap_or_else(|| panic!("`{name}` has no line `---`"));
    let (terms, says) = rest.split_once('\n').unwrap_or((rest, ""));
    let says = says.split_once("\n# ").map_or(says, |(says, _)| says);
    let mut step = Step { name, does, code: 0, says: says.trim(), compared: Compared::All };
    for term in terms.split_whitespace() {
        match term {
            "said" => step.compared = Compared::Said,
            "ours" => step.compared = Compared::Ours,
            code => step.code = code.parse().unwrap_or_else(|_| panic!("`{name}`: what is `{code}`?")),
        }
    }
    step
}

/// What a step did with one runtime.
struct Did {
    code: i32,
    out: String,
    err: String,
    took: String,
}

/// Runs a client's table with both runtimes and compares.
fn compare(client: &str, programs: &[(&str, &str)], text: &str) {
    if !sandbox::is_ready(programs) {
        return;
    }
    let steps = table(text);
    let [runc, ours] = [Host::Runc, Host::Gantry].map(|host| Sandbox::start(client, host, &steps));
    let (runc, ours) = (runc.finish(), ours.finish());
    let mut wrong = String::new();
    for (number, step) in steps.iter().enumerate() {
        let (with_runc, with_ours) = (&runc[number], &ours[number]);
        println!("{:>7} {:>7}  {}", with_runc.took, with_ours.took, step.name);
        let verdicts = verdicts(step, with_runc, with_ours);
        if !verdicts.is_empty() {
            let _ = writeln!(wrong, "\n=== {}: {}\n{}", step.name, verdicts.join("; "), step.does.trim());
            for (name, did) in [("runc", with_runc), ("ours", with_ours)] {
                let _ = writeln!(wrong, "--- {name}: exit code {}\n{}{}", did.code, short(&did.out), short(&did.err));
            }
            let _ = writeln!(wrong, "--- lines of one only");
            for (runc, ours) in [(&with_runc.out, &with_ours.out), (&with_runc.err, &with_ours.err)] {
                wrong += &difference(runc, ours);
            }
        }
    }
    assert!(wrong.is_empty(), "{client}:{wrong}");
}

/// Lines that only the first text has, and those that only the second has.
fn difference(runc: &str, ours: &str) -> String {
    let only = |mark: &str, text: &str, other: &str| -> String {
        let other: Vec<&str> = other.lines().collect();
        text.lines().filter(|line| !other.contains(line)).map(|line| format!("{mark} {line}\n")).collect()
    };
    only("runc", runc, ours) + &only("ours", ours, runc)
}

/// The beginning of a long output.
fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(2000)]
}

/// What is wrong with a step.
fn verdicts(step: &Step<'_>, runc: &Did, ours: &Did) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, did) in [("runc", runc), ("ours", ours)] {
        if name == "runc" && step.compared == Compared::Ours {
            continue;
        }
        if did.code != step.code {
            wrong.push(format!("{name} ended with {}, not {}", did.code, step.code));
        }
        if let Some(line) = missing(&did.out, &did.err, step.says) {
            wrong.push(format!("{name} does not say `{line}`"));
        }
    }
    if step.compared == Compared::All && (&runc.out, &runc.err) != (&ours.out, &ours.err) {
        wrong.push("the output differs".into());
    }
    wrong
}

/// The first line of `wanted` that neither stream has after the ones before it.
fn missing<'a>(out: &str, err: &str, wanted: &'a str) -> Option<&'a str> {
    let (mut out, mut err) = (out.lines(), err.lines());
    wanted.lines().map(str::trim).find(|want| {
        let mut ahead = out.clone();
        if want.is_empty() || ahead.any(|line| line.contains(want)) {
            out = ahead;
            return false;
        }
        !err.any(|line| line.contains(want))
    })
}

/// docker's client says so now and then after the daemon's refusal.
const DOCKER_STOPS_WAITING: &str = "error waiting for container: context canceled";

/// Output without what no two runs have in common: ids, times, and the name of the runtime.
fn plain(text: &str) -> String {
    let text: String = text.split_inclusive('\n').filter(|line| !line.contains(DOCKER_STOPS_WAITING)).collect();
    let mut out = String::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        if let Some((_, after)) = rest.strip_prefix("time=\"").and_then(|rest| rest.split_once('"')) {
            out.push_str("time=T");
            rest = after;
        }
        let is_word = |c: char| c.is_ascii_alphanumeric();
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if word == 0 {
            let end = rest.find(is_word).unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let (head, tail) = rest.split_at(word);
        rest = tail;
        let hex = head.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        out.push_str(match head.len() {
            64 | 32 | 12 if hex => "ID",
            26 if head.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()) => "LAYER",
            _ => head,
        });
    }
    out
}

/// Programs of each client, and the packages that have them.
const PODMAN: &[(&str, &str)] =
    &[("podman", "podman"), ("conmon", "conmon"), ("catatonit", "catatonit"), ("newuidmap", "uidmap")];
const DOCKER: &[(&str, &str)] =
    &[("dockerd", "docker.io"), ("containerd", "containerd"), ("docker-init", "tini"), ("iptables", "iptables")];
const CONTAINERD: &[(&str, &str)] = &[("containerd", "containerd"), ("ctr", "containerd")];

#[test]
fn podman_works_as_with_runc() {
    compare("podman", PODMAN, include_str!("podman.steps"));
}

#[test]
fn docker_works_as_with_runc() {
    compare("docker", DOCKER, include_str!("docker.steps"));
}

#[test]
fn containerd_works_as_with_runc() {
    compare("containerd", CONTAINERD, include_str!("containerd.steps"));
}

#[test]
fn nothing_outlives_a_test_that_is_killed() {
    if !sandbox::is_ready(&[]) {
        return;
    }
    let seconds = format!("1{}", std::process::id());
    let script = format!(
        "mkdir -p /sys/fs/cgroup/*/inner; mount -t tmpfs tmpfs /mnt; setsid sleep {seconds} & \
         setsid sh -c 'trap \"\" TERM HUP; sleep {seconds}' & wait"
    );
    let text = format!("set up\n{script}\n---");
    let sandbox = Sandbox::start("killed", Host::Gantry, &[row(&text)]);
    let (name, work) = (sandbox.name().to_owned(), sandbox.work().to_owned());
    let processes =
        || Command::new("pgrep").args(["-fc", &format!("^sleep {seconds}")]).output().expect("pgrep").stdout;
    let groups = || {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        hierarchies.filter(|hierarchy| hierarchy.path().join(&name).exists()).count()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while processes() != b"2\n" {
        assert!(Instant::now() < deadline, "the sandbox is not at work: {}", sandbox.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(groups() > 0 || std::path::Path::new("/sys/fs/cgroup").join(&name).exists());
    drop(sandbox); // closes the pipe, which is all that the end of this process would do
    assert_eq!((processes(), groups(), work.exists()), (b"0\n".to_vec(), 0, false));
    assert!(!std::path::Path::new("/sys/fs/cgroup").join(&name).exists());
}

#[test]
fn tables_are_read() {
    let steps = table("# about\n\n=== one\necho a\necho b\n---\na\nb\n\n# ---- more\n\n=== two\nx\n--- 7 said\n");
    let one = Step { name: "one", does: "echo a\necho b", code: 0, says: "a\nb", compared: Compared::All };
    assert_eq!(steps, [one, Step { name: "two", does: "x", code: 7, says: "", compared: Compared::Said }]);
}

#[test]
fn what_differs_in_every_run_is_not_compared() {
    let id = "3f".repeat(32);
    for (text, same) in [
        (format!("a {id} b"), "a ID b"),
        ("overlay/l/ABCDEFGHIJKLMNOPQRSTUVWXYZ:x".into(), "overlay/l/LAYER:x"),
        ("0123456789ab".into(), "ID"),
        (r#"time="2026-11-24T11:52:16Z" level=warning"#.into(), "time=T level=warning"),
        ("0123456789abc, short 0123".into(), "0123456789abc, short 0123"),
    ] {
        assert_eq!(plain(&text), same);
    }
    assert_eq!(missing("one\ntwo\nthree", "four", "on\nfou\nthree"), None);
    assert_eq!(missing("one\ntwo", "", "two\none"), Some("one"));
}
