//! The runtime as an ordinary user, and as root of a user namespace only.
//!
//! The user is a bare number without an account on this host: `setpriv` becomes it, and a copy of `/etc` in a mount
//! namespace of the test's own gives it a name and ranges of IDs.

mod common;

use common::{Bed, Ran, finish, id, runs, until};
use gantry_runtime::config::example;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// An ordinary user.
const USER: u32 = 12_345;
/// First ID of its range.
const RANGE: u32 = 500_000;

/// A bed that belongs to the user.
struct Theirs(Bed);

fn shell(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().expect("sh");
    assert!(status.success(), "{script}");
}

impl Theirs {
    /// With the bundle that `spec --rootless` writes.
    fn new(script: &str) -> Self {
        let mut bed = Bed::new(script);
        let config = example::rootless(example::config(false), USER, USER);
        let args = bed.config["process"]["args"].clone();
        bed.config = serde_json::to_value(config).expect("JSON");
        bed.config["process"]["args"] = args;
        fs::copy(env!("CARGO_BIN_EXE_gantry-runtime"), bed.path("runtime")).expect("a copy that the user may run");
        fs::create_dir(bed.path("run")).expect("a runtime directory");
        let home = bed.path("");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).expect("open to the user");
        shell(&format!(
            "cd {}; cp -a /etc etc; chown -R {USER}:{USER} bundle run
             echo them:x:{USER}:{USER}::/:/bin/sh >> etc/passwd
             echo them:{RANGE}:65536 > etc/subuid; echo them:{RANGE}:65536 > etc/subgid",
            home.display()
        ));
        Self(bed)
    }

    /// A map of the user's own ID to root, and of its range to the rest.
    fn with_range(mut self) -> Self {
        let map = json!([
            {"containerID": 0, "hostID": USER, "size": 1}, {"containerID": 1, "hostID": RANGE, "size": 65_536},
        ]);
        self.config()["linux"]["uidMappings"] = map.clone();
        self.config()["linux"]["gidMappings"] = map;
        self
    }

    fn config(&mut self) -> &mut Value {
        &mut self.0.config
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// A command line as the user, in the bundle; `"$0"` is the runtime.
    fn command(&self, script: &str) -> Command {
        self.0.save();
        let home = self.path("").display().to_string();
        let runtime = self.path("runtime").display().to_string();
        let become_user = format!(
            "mount --bind {home}/etc /etc
             exec setpriv --reuid {USER} --regid {USER} --clear-groups env -i XDG_RUNTIME_DIR={home}/run \
             PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c \"$1\" {runtime}"
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-ec", &become_user, "sh", script]);
        command.current_dir(self.0.bundle()).stdin(Stdio::null());
        command
    }

    fn run(&self, script: &str) -> Ran {
        finish(&mut self.command(script))
    }

    fn ok(&self, script: &str) -> String {
        let ran = self.run(script);
        assert_eq!(ran.code, 0, "{script}: out: {} err: {}", ran.out, ran.err);
        ran.out
    }

    /// Run the bundle to its end; what it printed.
    fn says(&self) -> String {
        let name = id("user");
        let out = self.ok(&format!("exec \"$0\" run {name}"));
        assert!(!self.path("run/gantry-runtime").join(&name).exists(), "its state is left");
        assert_eq!(common::cgroups(&name), Vec::<PathBuf>::new(), "its cgroups are left");
        out
    }

    fn refuses(&self) -> String {
        let ran = self.run(&format!("exec \"$0\" run {}", id("user")));
        assert_eq!(ran.code, 1, "out: {} err: {}", ran.out, ran.err);
        ran.err
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // What a failed test leaves.
        let root = self.path("run/gantry-runtime");
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let _ = self.command(&format!("exec \"$0\" delete --force {name}")).output();
        }
    }
}

#[test]
fn one_id() {
    let bed = Theirs::new(
        "id -u; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; touch /dev/shm/f; stat -c %u /dev/shm/f;
         echo x > /dev/null && head -c2 /dev/zero | wc -c; hostname; stat -c %u:%t:%T /dev/null; stat -c %u /bin;
         ls /proc | grep -c '^[0-9]'",
    );
    let out = bed.says();
    let words: Vec<&str> = out.split_whitespace().collect();
    let head = ["0", "0", "12345", "1", "0", "12345", "1", "deny", "0", "2", "gantry", "65534:1:3", "0"];
    assert_eq!(words[..head.len()], head, "{out}");
    assert!(words[head.len()].parse::<u32>().expect("a count") <= 4, "{out}");
}

#[test]
fn spec_writes_a_bundle_for_the_user_that_runs() {
    let mut bed = Theirs::new("");
    fs::remove_file(bed.0.bundle().join("config.json")).ok();
    let made = bed.ok("rm config.json; \"$0\" spec --rootless; cat config.json");
    let config: Value = serde_json::from_str(&made).expect("JSON");
    assert_eq!(config["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": USER, "size": 1}]));
    *bed.config() = config;
    bed.config()["process"]["terminal"] = json!(false);
    bed.config()["process"]["args"] = json!(["sh", "-c", "id -u; ls -d /sys/class"]);
    assert_eq!(bed.says(), "0\n/sys/class\n");
}

#[test]
fn ranges_of_ids() {
    let mut bed = Theirs::new(
        "id -u; id -G; cat /proc/self/uid_map /proc/self/setgroups; touch /data/f; mkdir /data/d; chown 7:8 /data/f; ls -ln /data/f | tr -s ' ' | cut -d' ' -f3,4",
    )
    .with_range();
    let data = bed.path("bundle/data");
    fs::create_dir(&data).expect("a directory");
    bed.config()["mounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({"destination": "/data", "type": "bind", "source": "data", "options": ["bind"]}));
    bed.config()["process"]["capabilities"]["bounding"] = json!(["CAP_CHOWN"]);
    bed.config()["process"]["capabilities"]["effective"] = json!(["CAP_CHOWN"]);
    bed.config()["process"]["capabilities"]["permitted"] = json!(["CAP_CHOWN"]);
    bed.config()["process"]["user"]["additionalGids"] = json!([5, 6]);
    bed.config()["mounts"].as_array_mut().expect("mounts")[2]["options"]
        .as_array_mut()
        .expect("options")
        .push(json!("gid=5"));
    shell(&format!("chown {USER}:{USER} {}", data.display()));
    let out = bed.says();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "5", "6", "0", "12345", "1", "1", "500000", "65536", "allow", "7", "8"], "{out}");
    let owner = |name: &str| fs::metadata(data.join(name)).map(|found| (found.uid(), found.gid())).expect("a file");
    assert_eq!(owner("f"), (RANGE + 6, RANGE + 7));
    assert_eq!(owner("d"), (USER, USER));
    // As a user of the range, with a working directory that only root of the container may enter.
    bed.config()["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    bed.config()["process"]["args"] = json!(["sh", "-c", "id; touch /bin/x 2>&1; grep CapEff /proc/self/status"]);
    let out = bed.says();
    assert!(out.starts_with("uid=1000 gid=1000"), "{out}");
    assert!(out.ends_with("CapEff:\t0000000000000000\n"), "{out}");
}

#[test]
fn ids_of_others_are_refused() {
    let mut bed = Theirs::new("true").with_range();
    bed.config()["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    let error = bed.refuses();
    assert!(error.contains("user namespace: `newuidmap` refuses the map \"0 0 1\\n\": newuidmap:"), "{error}");
    assert!(error.contains("hint: `/etc/subuid` must give these IDs to user 12345"), "{error}");
    bed.config()["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
    bed.config()["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    let error = bed.refuses();
    assert!(error.contains("`newgidmap` refuses the map"), "{error}");
}

#[test]
fn a_helper_that_hangs_or_is_missing_is_told() {
    let bed = Theirs::new("true").with_range();
    let error = bed.run(&format!("PATH=/nowhere exec \"$0\" run {}", id("user"))).err;
    assert!(error.contains("cannot run `newuidmap`") && error.contains("apt-get install uidmap"), "{error}");
    let fake = bed.path("bundle/newuidmap");
    fs::write(&fake, "#!/bin/sh\nexec sleep 1000\n").expect("a program");
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).expect("its mode");
    let begun = std::time::Instant::now();
    let ran = bed.run(&format!("PATH=$PWD:$PATH exec \"$0\" run {}", id("user")));
    assert!(ran.err.contains("`newuidmap` did not end within 15 s"), "{}", ran.err);
    assert!(begun.elapsed().as_secs() < 29, "{:?}", begun.elapsed());
}

#[test]
fn a_whole_life() {
    for bed in [Theirs::new("sleep 1000"), Theirs::new("sleep 1000").with_range()] {
        let name = id("life");
        bed.ok(&format!("exec \"$0\" create --pid-file pid {name}"));
        let state: Value = serde_json::from_str(&bed.ok(&format!("exec \"$0\" state {name}"))).expect("JSON");
        assert_eq!(state["status"], "created");
        let pid = state["pid"].as_i64().expect("a pid") as i32;
        assert_eq!(fs::read_to_string(bed.path("bundle/pid")).expect("the pid file"), pid.to_string());
        bed.ok(&format!("exec \"$0\" start {name}"));
        assert!(bed.ok("exec \"$0\" list").contains(&name));
        let status = |name: &str| bed.ok(&format!("exec \"$0\" state {name}"));
        assert!(status(&name).contains("\"running\""));
        let out = bed.ok(&format!(
            "exec \"$0\" exec -e A=b {name} sh -c 'id -u; echo $A; readlink /proc/self/ns/pid; cat /proc/self/uid_map | wc -l; ls /proc | grep -c \"^[0-9]\"'"
        ));
        let theirs = fs::read_link(format!("/proc/{pid}/ns/pid")).expect("a namespace").display().to_string();
        assert!(out.starts_with(&format!("0\nb\n{theirs}\n")), "{out}");
        assert_eq!(bed.run(&format!("exec \"$0\" exec {name} sh -c 'exit 7'")).code, 7);
        assert_eq!(bed.run(&format!("exec \"$0\" exec {name} /none")).code, 127);
        bed.ok(&format!("exec \"$0\" exec -d --pid-file other {name} sleep 1000"));
        let other: i32 = fs::read_to_string(bed.path("bundle/other")).expect("a pid").parse().expect("a number");
        assert!(runs(other));
        let ran = bed.run(&format!("exec \"$0\" delete {name}"));
        assert!(ran.err.contains("not stopped"), "{}", ran.err);
        // Process 1 ignores what it does not handle, the other one does not.
        bed.ok(&format!("exec \"$0\" kill --all {name} TERM"));
        until("the other has ended", || !runs(other));
        assert!(status(&name).contains("\"running\""));
        bed.ok(&format!("exec \"$0\" exec -d --pid-file other {name} sleep 1000"));
        let other: i32 = fs::read_to_string(bed.path("bundle/other")).expect("a pid").parse().expect("a number");
        bed.ok(&format!("exec \"$0\" kill {name} KILL"));
        until("it is stopped", || status(&name).contains("\"stopped\""));
        assert!(!runs(other), "goes with the container");
        bed.ok(&format!("exec \"$0\" delete {name}"));
        assert!(!bed.path("run/gantry-runtime").join(&name).exists());
        bed.ok(&format!("exec \"$0\" delete --force {name}"));
    }
}

#[test]
fn a_terminal() {
    let mut bed = Theirs::new("tty; stat -c '%u %a' /dev/console; stty size").with_range();
    bed.config()["process"]["terminal"] = json!(true);
    bed.config()["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    let out = bed.says();
    assert!(out.contains("/dev/pts/0\n0 620\n33 77\n"), "{out}");
    bed.config()["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let out = bed.says();
    assert!(out.contains("/dev/pts/0\n1000 620\n33 77\n"), "{out}");
}

#[test]
fn a_network_clocks_and_parameters_of_its_own() {
    let mut bed = Theirs::new(
        "ls /sys/class/net; cat /sys/class/net/lo/flags /proc/sys/net/ipv4/ip_unprivileged_port_start; hostname;
         cat /proc/sys/kernel/shmmni; grep boottime /proc/self/timens_offsets | tr -s ' ' | cut -d' ' -f2; cat /proc/self/cgroup | grep -cv ':/$' || true",
    );
    let namespaces = bed.config()["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.extend([json!({"type": "network"}), json!({"type": "time"})]);
    bed.config()["linux"]["timeOffsets"] = json!({"boottime": {"secs": 5000}});
    bed.config()["linux"]["sysctl"] =
        json!({"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shmmni": "99", "kernel.hostname": "box"});
    bed.config()["hostname"] = json!("");
    let mounts = bed.config()["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["destination"] != "/sys");
    mounts.push(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid"]}));
    mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}));
    assert_eq!(bed.says(), "lo\n0x9\n80\nbox\n99\n5000\n0\n");
}

#[test]
fn without_a_cgroup_a_limit_is_refused() {
    let mut bed = Theirs::new("true");
    bed.config()["linux"]["resources"] = json!({"pids": {"limit": 9}});
    let error = bed.refuses();
    assert!(error.contains("cannot set `linux.resources.pids.limit`: rootless needs no limits"), "{error}");
    bed.config()["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    bed.says();
    bed.config()["linux"]["cgroupsPath"] = json!("/not/mine");
    let error = bed.refuses();
    assert!(error.contains("cannot make cgroup `not/mine`: permission denied"), "{error}");
    bed.config()["linux"]["cgroupsPath"] = json!(null);
    let error = bed.run(&format!("exec \"$0\" --rootless false run {}", id("user"))).err;
    assert!(error.contains("cgroup: cannot make cgroup") && error.contains("ermission denied"), "{error}");
}

#[test]
fn a_cgroup_that_was_handed_over_is_used() {
    let place = id("handed");
    let mounts: Vec<PathBuf> = ["pids", "memory"].map(|name| PathBuf::from("/sys/fs/cgroup").join(name)).to_vec();
    if !mounts[0].exists() {
        // v2 only: the next test.
        return;
    }
    let clean = Cleanup(mounts.iter().map(|mount| mount.join(&place)).collect());
    for directory in &clean.0 {
        fs::create_dir(directory).expect("a cgroup");
        std::os::unix::fs::chown(directory, Some(USER), Some(USER)).expect("hand it over");
    }
    let mut bed = Theirs::new("sleep 1000");
    bed.config()["linux"]["cgroupsPath"] = json!(format!("/{place}/box"));
    bed.config()["linux"]["resources"] = json!({"pids": {"limit": 9}});
    let name = id("limited");
    bed.ok(&format!("exec \"$0\" run -d {name}"));
    let box_of_pids = clean.0[0].join("box");
    let read = |file: &str| fs::read_to_string(box_of_pids.join(file)).expect("a file of the cgroup");
    assert_eq!(read("pids.max"), "9\n");
    assert_eq!(read("cgroup.procs").lines().count(), 1);
    bed.ok(&format!("exec \"$0\" exec -d {name} sleep 1000"));
    assert_eq!(read("cgroup.procs").lines().count(), 2);
    bed.ok(&format!("exec \"$0\" delete --force {name}"));
    assert!(!box_of_pids.exists() && !clean.0[1].join("box").exists());
}

/// Directories to remove.
struct Cleanup(Vec<PathBuf>);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for directory in &self.0 {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Where only a v2 hierarchy is visible, in a mount namespace of the test's own, and the caller's cgroup is the user's
/// together with its parent, as a service manager arranges it.
#[test]
fn on_v2_a_place_beside_the_callers_cgroup_is_found() {
    let top = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
    let top = top.into_iter().find(|path| path.join("cgroup.subtree_control").exists());
    let top = top.expect("a v2 hierarchy");
    let place = id("slice");
    let clean = Cleanup(vec![top.join(&place)]);
    let pids = fs::read_to_string(top.join("cgroup.controllers")).is_ok_and(|text| text.contains("pids"));
    let mut bed = Theirs::new("grep ^0:: /proc/self/cgroup; sleep 1000");
    bed.config()["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|entry| entry["type"] != "cgroup");
    if pids {
        bed.config()["linux"]["resources"] = json!({"pids": {"limit": 9}});
    }
    let directory = clean.0[0].display();
    shell(&format!(
        "mkdir {directory} {directory}/caller
         chown {USER}:{USER} {directory} {directory}/cgroup.procs {directory}/cgroup.subtree_control {directory}/caller \
         {directory}/caller/cgroup.procs"
    ));
    let name = id("limited");
    let run = |line: &str| {
        let inner = bed.command(&format!("exec \"$0\" {line}"));
        let script =
            "[ ! -e /sys/fs/cgroup/unified ] || { umount -R -l /sys/fs/cgroup; mount -t cgroup2 x /sys/fs/cgroup; }
                      echo $$ > /sys/fs/cgroup/$0/caller/cgroup.procs; exec \"$@\"";
        let mut outer = Command::new("unshare");
        outer.args(["-m", "sh", "-ec", script, &place]).arg(inner.get_program()).args(inner.get_args());
        outer.current_dir(bed.0.bundle()).stdin(Stdio::null());
        let ran = finish(&mut outer);
        assert_eq!(ran.code, 0, "{line}: {}", ran.err);
        ran.out
    };
    let supervise = "--supervise --container-log ../run/log --exit-file ../run/exit";
    run(&format!("run -d {supervise} {name}"));
    let theirs = clean.0[0].join(format!("gantry-runtime-{name}"));
    assert!(fs::read_to_string(theirs.join("cgroup.procs")).expect("its processes").lines().count() >= 1);
    if pids {
        assert_eq!(fs::read_to_string(theirs.join("pids.max")).expect("the limit"), "9\n");
    }
    assert_eq!(
        run(&format!("exec {name} grep ^0:: /proc/self/cgroup")),
        format!("0::/{place}/gantry-runtime-{name}\n")
    );
    run(&format!("delete --force {name}"));
    assert!(!theirs.exists());
}

#[test]
fn without_a_map_the_user_is_root_of_the_container() {
    let mut bed = Theirs::new("id -u; cat /proc/self/uid_map /proc/self/gid_map");
    bed.config()["linux"]["uidMappings"] = json!([]);
    bed.config()["linux"]["gidMappings"] = json!([]);
    let user = USER.to_string();
    assert_eq!(bed.says().split_whitespace().collect::<Vec<_>>(), ["0", "0", &user, "1", "0", &user, "1"]);
    bed.config()["process"]["user"] = json!({"uid": 1, "gid": 0});
    assert!(bed.refuses().contains("$.process.user.uid: 1 is not in `linux.uidMappings`"));
    // Root of a user namespace has what that has.
    bed.config()["process"]["user"] = json!({"uid": 0, "gid": 0});
    let ran = nested(&bed, "-Ur", &format!("run {}", id("nested")));
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(ran.out.split_whitespace().collect::<Vec<_>>(), ["0", "0", "0", "1", "0", "0", "1"]);
}

#[test]
fn what_a_user_cannot_have_is_told() {
    let mut bed = Theirs::new("true");
    let namespaces = bed.config()["linux"]["namespaces"].clone();
    let list = bed.config()["linux"]["namespaces"].as_array_mut().expect("namespaces");
    list.retain(|entry| entry["type"] != "user");
    bed.config()["linux"]["uidMappings"] = json!([]);
    bed.config()["linux"]["gidMappings"] = json!([]);
    let error = bed.refuses();
    assert!(error.contains("rootless container requires user namespaces"), "{error}");
    let mut bed = Theirs::new("true");
    bed.config()["linux"]["namespaces"] = namespaces;
    let map = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
    bed.config()["mounts"].as_array_mut().expect("mounts").push(json!({
        "destination": "/x", "type": "bind", "source": "/tmp", "options": ["rbind", "idmap"],
        "uidMappings": map, "gidMappings": map,
    }));
    let error = bed.refuses();
    let at = bed.config()["mounts"].as_array().expect("mounts").len() - 1;
    let expected = format!("$.mounts[{at}]: mapping the IDs of a mount takes the rights of the host's root");
    assert!(error.contains(&expected), "{error}");
    let error = bed.run("unset XDG_RUNTIME_DIR; exec \"$0\" list").err;
    assert!(error.contains("XDG_RUNTIME_DIR is not set") && error.contains("--root"), "{error}");
    assert_eq!(bed.run("unset XDG_RUNTIME_DIR; exec \"$0\" --version").code, 0);
}

#[test]
fn an_oom_score_can_only_rise() {
    let mut bed = Theirs::new("cat /proc/self/oom_score_adj");
    let ours = fs::read_to_string("/proc/self/oom_score_adj").expect("a score");
    bed.config()["process"]["oomScoreAdj"] = json!(777);
    assert_eq!(bed.says(), "777\n");
    bed.config()["process"]["oomScoreAdj"] = json!(-900);
    assert_eq!(bed.says(), ours);
    bed.config()["process"]["args"] = json!(["sleep", "1000"]);
    bed.config()["process"]["oomScoreAdj"] = json!(300);
    let name = id("score");
    bed.ok(&format!("exec \"$0\" run -d {name}"));
    assert_eq!(bed.ok(&format!("exec \"$0\" exec {name} cat /proc/self/oom_score_adj")), "300\n");
    bed.ok(&format!("exec \"$0\" delete --force {name}"));
}

#[test]
fn containers_share_the_namespaces_of_another() {
    let bed = Theirs::new("hostname pause; sleep 1000").with_range();
    let mut bed = bed;
    bed.config()["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_ADMIN"]);
    for set in ["effective", "permitted"] {
        bed.config()["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
    }
    bed.config()["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "network"}));
    bed.config()["process"]["oomScoreAdj"] = json!(200);
    let pause = id("pause");
    bed.ok(&format!("exec \"$0\" run -d {pause}"));
    let state: Value = serde_json::from_str(&bed.ok(&format!("exec \"$0\" state {pause}"))).expect("JSON");
    let pid = state["pid"].as_i64().expect("a pid");
    let mut second = Theirs::new(
        "for n in user net ipc uts pid; do readlink /proc/self/ns/$n; done; hostname; id -u; cat /proc/self/oom_score_adj; ls -d /sys/class/net/lo",
    );
    let joined = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
    second.config()["linux"]["namespaces"] = json!([
        joined("user", "user"), joined("network", "net"), joined("ipc", "ipc"), joined("uts", "uts"),
        joined("pid", "pid"), {"type": "mount"}, {"type": "cgroup"}, {"type": "time"},
    ]);
    second.config()["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 100}});
    second.config()["hostname"] = json!(null);
    second.config()["process"]["oomScoreAdj"] = json!(400);
    let out = second.says();
    let theirs =
        |file: &str| fs::read_link(format!("/proc/{pid}/ns/{file}")).expect("a namespace").display().to_string();
    let want = ["user", "net", "ipc", "uts", "pid"].map(|file| theirs(file) + "\n").concat();
    assert_eq!(out, want + "pause\n0\n400\n/sys/class/net/lo\n");
    // The network alone belongs to a user namespace that is not joined.
    second.config()["linux"]["namespaces"] =
        json!([{"type": "user"}, joined("network", "net"), {"type": "mount"}, {"type": "pid"}]);
    second.config()["linux"]["timeOffsets"] = json!({});
    second.config()["linux"]["sysctl"] = json!({});
    second.config()["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "mqueue");
    let error = second.refuses();
    assert!(error.contains("cannot join the network namespace"), "{error}");
    assert!(error.contains("the user namespace that owns it must be joined, too"), "{error}");
    bed.ok(&format!("exec \"$0\" delete --force {pause}"));
}

#[test]
fn hooks_and_a_supervisor() {
    let mut bed = Theirs::new("echo said");
    let note = bed.path("run/note").display().to_string();
    bed.config()["hooks"]["createRuntime"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("id -u > {note}")], "env": ["PATH=/usr/bin:/bin"]}]);
    let name = id("supervised");
    bed.ok(&format!("exec \"$0\" run -d --supervise --container-log ../run/log --exit-file ../run/exit {name}"));
    until("the exit file is there", || bed.path("run/exit").exists());
    assert!(fs::read_to_string(bed.path("run/log")).expect("the log").contains("stdout F said"));
    assert_eq!(fs::read_to_string(bed.path("run/note")).expect("the hook ran"), format!("{USER}\n"));
    bed.ok(&format!("exec \"$0\" delete --force {name}"));
}

/// Hostile: what the container's root may do to the host is what the user may.
#[test]
fn nothing_of_the_host_is_in_reach() {
    let mut bed = Theirs::new(
        "chown 70000:70000 /data/f 2>&1; chown 1:1 /data/f && stat -c %u /data/f; chown 2:2 /rooted/secret 2>&1; cat /rooted/secret 2>&1;
         mknod /data/mem c 1 1 2>&1; echo 1 > /proc/sys/kernel/panic 2>&1; echo -1000 > /proc/self/oom_score_adj;
         hostname",
    )
    .with_range();
    let rooted = bed.path("rooted");
    fs::create_dir(&rooted).expect("a directory");
    fs::create_dir(bed.path("bundle/data")).expect("a directory");
    fs::write(bed.path("bundle/data/f"), "").expect("a file");
    fs::write(rooted.join("secret"), "secret").expect("a file of root");
    fs::set_permissions(rooted.join("secret"), fs::Permissions::from_mode(0o600)).expect("its mode");
    shell(&format!("chown -R {USER}:{USER} {}", bed.path("bundle/data").display()));
    let all =
        ["CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "MKNOD", "SYS_ADMIN", "SYS_PTRACE", "SYS_RESOURCE"];
    let all: Vec<String> = all.map(|name| format!("CAP_{name}")).to_vec();
    for set in ["bounding", "effective", "permitted"] {
        bed.config()["process"]["capabilities"][set] = json!(all);
    }
    let mounts = bed.config()["mounts"].as_array_mut().expect("mounts");
    mounts.push(json!({"destination": "/data", "type": "bind", "source": "data", "options": ["bind"]}));
    mounts.push(json!({"destination": "/rooted", "type": "bind", "source": rooted, "options": ["bind"]}));
    bed.config()["linux"]["readonlyPaths"] = json!([]);
    let ran = bed.run(&format!("exec \"$0\" run {}", id("hostile")));
    for line in [
        "chown: /data/f: Invalid argument",
        "\n1\n",
        "chown: /rooted/secret: Operation not permitted",
        "can't open '/rooted/secret': Permission denied",
        "mknod: /data/mem: Operation not permitted",
        "/proc/sys/kernel/panic: Permission denied",
    ] {
        assert!(ran.out.contains(line) || ran.err.contains(line), "{line}: {} {}", ran.out, ran.err);
    }
    assert_eq!(fs::metadata(bed.path("bundle/data/f")).expect("the file").uid(), RANGE);
    assert_eq!(fs::metadata(rooted.join("secret")).expect("the file").uid(), 0);
}

/// Hostile: the container's root is the user that owns our program file here.
#[test]
fn our_program_is_out_of_reach_during_exec() {
    let bed =
        Theirs::new("while :; do for p in /proc/[0-9]*; do readlink $p/exe | grep -v busybox; done; done 2>/dev/null");
    let runtime = bed.path("runtime");
    chown(&runtime, Some(USER), Some(USER)).expect("the user's own");
    let before = fs::read(&runtime).expect("the program");
    let name = id("exe");
    bed.ok(&format!("exec \"$0\" run -d --supervise --container-log ../run/log --exit-file ../run/exit {name}"));
    for _ in 0..30 {
        bed.ok(&format!("exec \"$0\" exec {name} true"));
    }
    bed.ok(&format!("exec \"$0\" delete --force {name}"));
    until("the exit file is there", || bed.path("run/exit").exists());
    assert_eq!(fs::read_to_string(bed.path("run/log")).expect("the log"), "", "it saw our program");
    assert!(fs::read(&runtime).expect("the program") == before, "unchanged");
}

/// Run the runtime as root of a user namespace made by the user, with or without a mount namespace.
fn nested(bed: &Theirs, flags: &str, line: &str) -> Ran {
    bed.run(&format!("exec unshare {flags} \"$0\" {line}"))
}

#[test]
fn root_of_a_user_namespace_only() {
    for flags in ["-Ur", "-Urm"] {
        let mut bed = Theirs::new("id -u; cat /proc/self/uid_map; stat -c %t:%T /dev/null; hostname; sleep 0");
        let name = id("nested");
        bed.config()["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
        bed.config()["linux"]["gidMappings"] = bed.config()["linux"]["uidMappings"].clone();
        let ran = nested(&bed, flags, &format!("run {name}"));
        assert_eq!(ran.code, 0, "{flags}: {} {}", ran.out, ran.err);
        assert_eq!(ran.out.split_whitespace().collect::<Vec<_>>(), ["0", "0", "0", "1", "1:3", "gantry"], "{flags}");
        // Without a further user namespace.
        let list = bed.config()["linux"]["namespaces"].as_array_mut().expect("namespaces");
        list.retain(|entry| entry["type"] != "user");
        bed.config()["linux"]["uidMappings"] = json!([]);
        bed.config()["linux"]["gidMappings"] = json!([]);
        let ran = nested(&bed, flags, &format!("run {name}"));
        assert_eq!(ran.code, 0, "{flags}: {} {}", ran.out, ran.err);
        assert!(ran.out.ends_with("1:3\ngantry\n"), "{flags}: {}", ran.out);
        assert!(!bed.path("run/gantry-runtime").join(&name).exists(), "its state was in the user's directory");
        // IDs that the outer namespace does not have.
        bed.config()["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
        bed.config()["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 10}]);
        bed.config()["linux"]["gidMappings"] = bed.config()["linux"]["uidMappings"].clone();
        let ran = nested(&bed, flags, &format!("run {name}"));
        assert!(ran.err.contains("cannot write \"0 0 10\\n\" to `/proc/"), "{flags}: {}", ran.err);
        assert!(ran.err.contains("hint: host IDs are those of the runtime's own user namespace"), "{}", ran.err);
    }
}

#[test]
fn root_of_a_user_namespace_with_a_range_manages_containers() {
    // As an engine of an ordinary user does: one user namespace for all its commands.
    let mut bed = Theirs::new("sleep 1000");
    bed.config()["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|entry| entry["type"] != "user");
    bed.config()["linux"]["uidMappings"] = json!([]);
    bed.config()["linux"]["gidMappings"] = json!([]);
    let name = id("engine");
    let script = format!(
        "set -e; R={runtime}; $R run -d --pid-file ../run/pid {name}
         mkdir ../run/pod; sed \"s:PIDNS:/proc/$(cat ../run/pid)/ns/pid:\" pod.json > ../run/pod/config.json
         $R run -b ../run/pod {name}-2; $R exec {name} id -u; $R exec -u 1000:1000 {name} id -u; $R list -q; $R kill {name} KILL;
         until $R state {name} | grep -q stopped; do :; done; $R delete {name}; $R list -q",
        runtime = bed.path("runtime").display()
    );
    let mut pod = bed.config().clone();
    pod["root"]["path"] = json!(bed.path("bundle/rootfs"));
    pod["linux"]["namespaces"][0]["path"] = json!("PIDNS");
    let note = |name: &str| format!("readlink /proc/self/ns/pid > {}", bed.path("run").join(name).display());
    pod["process"]["args"] = json!(["sh", "-c", "readlink /proc/self/ns/pid; ps | grep -c '[s]leep 1000'"]);
    pod["hooks"] = json!({"createRuntime": [{
        "path": "/bin/sh", "args": ["sh", "-c", note("note")], "env": ["PATH=/usr/bin:/bin"],
    }]});
    fs::write(bed.path("bundle/pod.json"), pod.to_string()).expect("a configuration");
    fs::write(bed.path("bundle/engine"), script).expect("a script");
    let ran = bed.run("exec unshare -m -r --map-auto sh engine");
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    let note = fs::read_to_string(bed.path("run/note")).expect("the hook ran");
    assert!(ran.out.ends_with(&format!("\n1\n0\n1000\n{name}\n")), "{} {}", ran.out, ran.err);
    assert!(ran.out.starts_with("pid:[") && !ran.out.starts_with(&note), "the hook is outside: {note} {}", ran.out);
}
