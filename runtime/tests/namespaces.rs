//! Namespaces in every combination: new, joined, shared with the host.

mod common;

use common::{Bed, id};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

fn own(file: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{file}")).expect("a namespace").display().to_string()
}

fn of(pid: i32, file: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{file}")).expect("a namespace").display().to_string()
}

/// Kinds and their files.
const KINDS: [(&str, &str); 6] =
    [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid"), ("cgroup", "cgroup"), ("time", "time")];

/// A process of the host's in namespaces of its own.
struct Holder(Child);

impl Holder {
    fn new(flags: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(flags).args(["sh", "-c", "echo; exec sleep 1000"]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("unshare");
        let mut line = [0];
        std::io::Read::read_exact(child.stdout.as_mut().expect("its output"), &mut line).expect("it is there");
        Self(child)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn file(&self, file: &str) -> String {
        format!("/proc/{}/ns/{file}", self.pid())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn namespaces(bed: &mut Bed) -> &mut Vec<Value> {
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces")
}

fn without_mounts(bed: &mut Bed) {
    bed.config["mounts"] = json!([]);
    bed.config["root"]["readonly"] = json!(false);
    bed.config["linux"]["maskedPaths"] = json!([]);
    bed.config["linux"]["readonlyPaths"] = json!([]);
}

#[test]
fn each_kind_is_new_joined_or_shared() {
    let pause = Bed::new("sleep 1000");
    let mut pause = pause;
    namespaces(&mut pause).push(json!({"type": "time"}));
    let name = id("pause");
    pause.ok(&["run", "-d", &name]);
    let pid = pause.pid(&name);
    let files = KINDS.map(|(_, file)| file).join(" ");
    // Bit n of each number says what kind n is: one round makes, joins and shares every kind once.
    for round in 0..3 {
        let mut bed = Bed::new(&format!("for n in {files}; do readlink /proc/self/ns/$n; done"));
        bed.config["hostname"] = json!(null);
        bed.config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "cgroup");
        let mut list = vec![json!({"type": "mount"})];
        for (at, (kind, file)) in KINDS.iter().enumerate() {
            match (at + round) % 3 {
                0 => list.push(json!({"type": kind})),
                1 => list.push(json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")})),
                _ => {}
            }
        }
        bed.config["linux"]["namespaces"] = json!(list);
        let out = bed.says();
        for (at, ((kind, file), inside)) in KINDS.iter().zip(out.lines()).enumerate() {
            match (at + round) % 3 {
                0 => assert!(inside != own(file) && inside != of(pid, file), "{kind} is new: {out}"),
                1 => assert_eq!(inside, of(pid, file), "{kind} is joined"),
                _ => assert_eq!(inside, own(file), "{kind} is the host's"),
            }
        }
    }
    pause.ok(&["delete", "--force", &name]);
}

#[test]
fn pods_share_what_they_say_and_exec_finds_it() {
    let mut pause = Bed::new("sleep 1000");
    pause.config["hostname"] = json!("pod");
    let name = id("pause");
    pause.ok(&["run", "-d", &name]);
    let pid = pause.pid(&name);
    let mut beds = Vec::new();
    for word in ["one", "two"] {
        let mut bed = Bed::new("sleep 1000");
        bed.config["hostname"] = json!(null);
        let joined = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
        bed.config["linux"]["namespaces"] = json!([
            joined("network", "net"), joined("ipc", "ipc"), joined("uts", "uts"), joined("pid", "pid"),
            {"type": "mount"}, {"type": "cgroup"},
        ]);
        let name = id(word);
        bed.ok(&["run", "-d", &name]);
        beds.push((bed, name));
    }
    for (bed, name) in &beds {
        let out =
            bed.ok(&["exec", name, "sh", "-c", "hostname; ps | grep -c '[s]leep 1000'; readlink /proc/self/ns/pid"]);
        assert_eq!(out, format!("pod\n3\n{}\n", of(pid, "pid")), "all see all");
        assert_ne!(of(bed.pid(name), "mnt"), of(pid, "mnt"));
    }
    let (bed, name) = &beds[0];
    bed.ok(&["delete", "--force", name]);
    assert_eq!(beds[1].0.status(&beds[1].1), "running", "the others go on");
    pause.ok(&["delete", "--force", &name_of(&pause)]);
    common::until("the pid namespace ends with its first process", || beds[1].0.status(&beds[1].1) == "stopped");
}

fn name_of(bed: &Bed) -> String {
    let entry = fs::read_dir(bed.path("state")).expect("the state root").flatten().next().expect("a container");
    entry.file_name().into_string().expect("a name")
}

#[test]
fn hooks_stay_outside_of_a_joined_pid_namespace() {
    let pause = Bed::new("sleep 1000");
    let name = id("pause");
    pause.ok(&["run", "-d", &name]);
    let mut bed = Bed::new("true");
    let note = bed.path("note").display().to_string();
    let args = json!(["sh", "-c", format!("readlink /proc/self/ns/pid > {note}")]);
    bed.config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": args, "env": ["PATH=/usr/bin:/bin"]}]});
    namespaces(&mut bed)[0]["path"] = json!(format!("/proc/{}/ns/pid", pause.pid(&name)));
    bed.says();
    assert_eq!(fs::read_to_string(note).expect("the hook ran"), own("pid") + "\n");
    pause.ok(&["delete", "--force", &name]);
}

#[test]
fn a_wrong_file_is_refused_by_its_path() {
    let fifo = std::env::temp_dir().join(id("fifo"));
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let fifo = fifo.display().to_string();
    for (path, want) in [
        ("/proc/self/ns/pid", "$.linux.namespaces[1].path: `/proc/self/ns/pid` is a pid namespace, not a network"),
        ("/etc/passwd", "$.linux.namespaces[1].path: `/etc/passwd` is not a namespace"),
        ("/dev/null", "$.linux.namespaces[1].path: `/dev/null` is not a namespace"),
        ("/tmp", "$.linux.namespaces[1].path: `/tmp` is not a namespace"),
        (&fifo, "is not a namespace"),
        ("/proc/self/ns/none", "$.linux.namespaces[1].path: cannot open the network namespace"),
        ("proc/self/ns/net", "$.linux.namespaces[1].path: `proc/self/ns/net` is not an absolute path"),
    ] {
        let mut bed = Bed::new("true");
        namespaces(&mut bed)[1]["path"] = json!(path);
        let error = bed.refuses();
        assert!(error.contains(want), "{path}: {error}");
    }
    fs::remove_file(fifo).expect("the FIFO");
    let mut bed = Bed::new("true");
    namespaces(&mut bed).push(json!({"type": "ipc"}));
    assert!(bed.refuses().contains("$.linux.namespaces[6]: `ipc` is given twice"));
}

#[test]
fn the_hosts_own_namespace_is_not_changed_through_a_path() {
    for (at, kind, file, key, value) in [
        (3, "uts", "uts", "/hostname", json!("evil")),
        (1, "network", "net", "/linux/sysctl", json!({"net.ipv4.ip_forward": "1"})),
        (2, "ipc", "ipc", "/linux/sysctl", json!({"kernel.shmmni": "1"})),
        (4, "mount", "mnt", "/hostname", json!("x")),
    ] {
        let mut bed = Bed::new("true");
        namespaces(&mut bed)[at]["path"] = json!(format!("/proc/self/ns/{file}"));
        assert_eq!(namespaces(&mut bed)[at]["type"], kind);
        *bed.config.pointer_mut(key.rsplit_once('/').expect("a path").0).expect("a parent") = {
            let (parent, name) = key.rsplit_once('/').expect("a path");
            let mut parent = bed.config.pointer(parent).expect("a parent").clone();
            parent[name] = value;
            parent
        };
        let error = bed.refuses();
        assert!(error.contains("would change the host"), "{kind}: {error}");
    }
    let mut bed = Bed::new("hostname");
    namespaces(&mut bed)[3]["path"] = json!("/proc/self/ns/uts");
    bed.config["hostname"] = json!(null);
    bed.says();
}

#[test]
fn without_a_mount_namespace_it_is_a_chroot() {
    let mut bed = Bed::new("pwd; ls /; touch /made; /bin/busybox stat -c %t:%T /dev/null; id -u");
    namespaces(&mut bed).retain(|entry| entry["type"] != "mount");
    let error = bed.refuses();
    assert!(error.contains("$.mounts: cannot be carried out: `linux.namespaces` has no `mount`"), "{error}");
    without_mounts(&mut bed);
    let before = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let out = bed.says();
    assert_eq!(out, "/\nbin\ndev\netc\n1:3\n0\n");
    assert!(bed.rootfs("made").exists());
    let after = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let here = bed.path("").display().to_string();
    assert!(!after.contains(&here), "nothing is mounted on the host: {before} {after}");
    // Nor with no namespace at all; exec comes to the same root.
    let mut bed = Bed::new("sleep 1000");
    without_mounts(&mut bed);
    bed.config["hostname"] = json!(null);
    for list in [json!([]), json!(null)] {
        bed.config["linux"]["namespaces"] = list;
        let name = id("chroot");
        bed.ok(&["run", "-d", &name]);
        assert_eq!(of(bed.pid(&name), "mnt"), own("mnt"));
        assert_eq!(bed.ok(&["exec", &name, "sh", "-c", "ls /; pwd"]), "bin\ndev\netc\n/\n");
        bed.ok(&["delete", "--force", &name]);
    }
    bed.config["hostname"] = json!("x");
    assert!(bed.refuses().contains("$.hostname: needs a `uts` namespace"));
}

#[test]
fn a_mount_namespace_is_joined_and_the_root_is_looked_up_there() {
    let holder = Holder::new(&["-m"]);
    // The root filesystem is only there: a bind mount that the host does not have.
    let bed = Bed::new("readlink /proc/self/ns/mnt; ls /; mount | grep -c ' / '; hostname; touch /x 2>&1 || true");
    let mut bed = bed;
    let place = bed.path("place");
    fs::create_dir(&place).expect("a directory");
    let status = Command::new("nsenter")
        .args([format!("--mount={}", holder.file("mnt")).as_str(), "mount", "--bind"])
        .args([bed.rootfs(""), place.clone()])
        .status();
    assert!(status.expect("nsenter").success());
    bed.config["root"]["path"] = json!(place);
    namespaces(&mut bed)[4]["path"] = json!(holder.file("mnt"));
    fs::create_dir(bed.rootfs("proc")).expect("a mount point");
    // Paths are those of the namespace; the check of the root on the host comes first and finds the empty directory.
    let name = id("joined");
    let out = bed.ok(&["run", &name]);
    let want = of(holder.pid(), "mnt");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], want);
    assert!(out.contains("\nbin\ndev\netc\nproc\nsys\n"), "{out}");
    assert!(out.contains("\ngantry\n") && out.contains("Read-only file system"), "{out}");
    let mine = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mine.contains(&place.display().to_string()), "the host has none of it");
    // exec comes to its root, not to that of the namespace.
    let mut bed2 = Bed::new("sleep 1000");
    namespaces(&mut bed2)[4]["path"] = json!(holder.file("mnt"));
    let name = id("joined");
    bed2.ok(&["run", "-d", &name]);
    assert_eq!(bed2.ok(&["exec", &name, "ls", "/"]), "bin\ndev\netc\nproc\nsys\n");
    bed2.ok(&["delete", "--force", &name]);
    // The others in it still have their root.
    assert!(PathBuf::from(format!("/proc/{}/root/usr/bin", holder.pid())).exists());
}

#[test]
fn clocks_may_be_shifted_in_a_user_namespace_and_beside_joined_ones() {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    let script = "grep boottime /proc/self/timens_offsets | tr -s ' ' | cut -d' ' -f2; id -u";
    let holder = Holder::new(&["-n"]);
    for join in [false, true] {
        let mut bed = Bed::new(script);
        assert!(
            Command::new("chown").args(["-R", "100000:100000"]).arg(bed.rootfs("")).status().expect("chown").success()
        );
        bed.config["linux"]["uidMappings"] = map.clone();
        bed.config["linux"]["gidMappings"] = map.clone();
        bed.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 7000}});
        if join {
            namespaces(&mut bed)[1]["path"] = json!(holder.file("net"));
            bed.config["mounts"]
                .as_array_mut()
                .expect("mounts")
                .retain(|mount| mount["type"] != "sysfs" && mount["type"] != "cgroup");
        }
        namespaces(&mut bed).extend([json!({"type": "user"}), json!({"type": "time"})]);
        assert_eq!(bed.says(), "7000\n0\n", "{join}");
    }
    let joined = Holder::new(&["-T", "--boottime", "9000"]);
    let mut bed = Bed::new("readlink /proc/self/ns/time");
    namespaces(&mut bed).push(json!({"type": "time", "path": format!("/proc/{}/ns/time_for_children", joined.pid())}));
    assert_eq!(bed.says(), of(joined.pid(), "time_for_children") + "\n");
    bed.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1}});
    assert!(bed.refuses().contains("$.linux.timeOffsets: needs a new `time` namespace"));
}
