//! User namespaces of any map, ID-mapped mounts, and what neither lets a container do to the host.

mod common;

use common::{Bed, field, has_kernel, id};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

/// First ID of the containers here.
const BASE: u32 = 100_000;

fn line(container: u32, host: u32, size: u32) -> Value {
    json!({"containerID": container, "hostID": host, "size": size})
}

/// A bed in a user namespace of this map; its image belongs to `owner`.
fn mapped(script: &str, map: Value, owner: u32) -> Bed {
    let mut bed = Bed::new(script);
    let owner = format!("{owner}:{owner}");
    assert!(Command::new("chown").args(["-hR", &owner]).arg(bed.rootfs("")).status().expect("chown").success());
    bed.config["linux"]["uidMappings"] = map.clone();
    bed.config["linux"]["gidMappings"] = map;
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    // The state and the image must be reachable for an ID that is not root.
    fs::set_permissions(bed.path(""), fs::Permissions::from_mode(0o755)).expect("its mode");
    bed
}

fn grant(bed: &mut Bed, names: &[&str]) {
    for set in ["bounding", "effective", "permitted"] {
        bed.config["process"]["capabilities"][set] = json!(names);
    }
}

fn mount(bed: &mut Bed, mount: Value) {
    bed.config["mounts"].as_array_mut().expect("mounts").push(mount);
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).expect("a file");
    (found.uid(), found.gid())
}

#[test]
fn three_hundred_and_forty_lines() {
    let map: Vec<Value> = (0..340).map(|at| line(at, 2000 + at * 2, 1)).collect();
    let mut bed = mapped("wc -l < /proc/self/uid_map; tail -1 /proc/self/gid_map; id -u", json!(map), 2000);
    bed.config["process"]["user"] = json!({"uid": 339, "gid": 339});
    let out = bed.says();
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["340", "339", "2678", "1", "339"], "{out}");
    bed.config["linux"]["uidMappings"].as_array_mut().expect("a map").push(line(340, 5000, 1));
    assert!(bed.refuses().contains("$.linux.uidMappings[340]: is more than the 340 lines"));
}

#[test]
fn root_need_not_be_mapped() {
    let mut bed = mapped(
        "id -u; id -g; cat /proc/self/uid_map; hostname; stat -c %u /bin; grep CapEff /proc/self/status; echo x > /dev/null && echo null",
        json!([line(1000, BASE, 10)]),
        BASE,
    );
    bed.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    bed.config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "devpts");
    let out = bed.says();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(
        words,
        ["1000", "1000", "1000", "100000", "10", "gantry", "1000", "CapEff:", "0000000000000000", "null"],
        "{out}"
    );
    bed.config["process"]["user"] = json!({"uid": 0, "gid": 1000});
    let error = bed.refuses();
    assert!(error.contains("$.process.user.uid: 0 is not in `linux.uidMappings`"), "{error}");
}

#[test]
fn different_maps_for_users_and_groups() {
    let mut bed =
        mapped("touch /dev/shm/f; stat -c %u:%g /dev/shm/f; id -G; touch /data/f", json!([line(0, BASE, 100)]), BASE);
    bed.config["linux"]["gidMappings"] = json!([line(0, 200_000, 10), line(50, 300_000, 1)]);
    bed.config["process"]["user"]["additionalGids"] = json!([50, 3]);
    fs::create_dir(bed.path("bundle/data")).expect("a directory");
    chown(bed.path("bundle/data"), Some(BASE), Some(0)).expect("chown");
    mount(&mut bed, json!({"destination": "/data", "type": "bind", "source": "data", "options": ["bind"]}));
    assert_eq!(bed.says(), "0:0\n0 3 50\n");
    assert_eq!(owner(&bed.path("bundle/data/f")), (BASE, 200_000));
}

#[test]
fn mounts_devices_and_terminal_in_a_user_namespace() {
    let mut bed = mapped(
        "stat -c '%u %t:%T' /dev/console /dev/full; mount | grep -cE ' (/proc|/sys|/dev/mqueue|/sys/fs/cgroup|/dev/pts) '; tty;
         stat -c %t:%T /dev/extra 2>&1; stat -c %F /dev/pipe; stat -c %u /dev/pts/0; cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_forward",
        json!([line(0, BASE, 65_536)]),
        BASE,
    );
    bed.config["process"]["terminal"] = json!(true);
    bed.config["linux"]["sysctl"] = json!({"kernel.shmmni": "55", "net.ipv4.ip_forward": "1"});
    bed.config["linux"]["devices"] = json!([{"type": "p", "path": "/dev/pipe", "fileMode": 0o600}]);
    let out = bed.says().replace('\r', "");
    let want =
        "0 88:0\n65534 1:7\n5\n/dev/pts/0\nstat: can't stat '/dev/extra': No such file or directory\nfifo\n0\n55\n1\n";
    assert_eq!(out, want);
    bed.config["linux"]["devices"] = json!([{"type": "c", "path": "/dev/ptmx", "major": 5, "minor": 2}]);
    bed.config["process"]["args"] = json!(["readlink", "/dev/ptmx"]);
    assert_eq!(bed.says(), "pts/ptmx\n", "of the container, not the host's");
    bed.config["linux"]["devices"] = json!([{"type": "c", "path": "/dev/null", "major": 1, "minor": 5}]);
    assert!(bed.refuses().contains("`/dev/null` of the host is not device c 1:5"));
    bed.config["linux"]["devices"] = json!([{"type": "c", "path": "/dev/kmsg", "major": 1, "minor": 11}]);
    bed.config["process"]["terminal"] = json!(false);
    bed.config["process"]["args"] = json!(["stat", "-c", "%t:%T", "/dev/kmsg"]);
    assert_eq!(bed.says(), "1:b\n");
}

#[test]
fn views_of_namespaces_that_are_the_hosts() {
    let mut bed = mapped(
        "ls -d /sys/class/net/lo /proc/1; touch /sys/x 2>&1; ls /proc | grep -c '^[0-9]'",
        json!([line(0, BASE, 10)]),
        BASE,
    );
    bed.config["linux"]["namespaces"] = json!([{"type": "user"}, {"type": "mount"}]);
    bed.config["hostname"] = json!(null);
    bed.config["mounts"]
        .as_array_mut()
        .expect("mounts")
        .retain(|mount| !matches!(mount["type"].as_str(), Some("cgroup" | "devpts" | "mqueue")));
    let out = bed.says();
    assert!(out.starts_with("/proc/1\n/sys/class/net/lo\ntouch: /sys/x: Read-only file system\n"), "{out}");
}

#[test]
fn standard_streams_can_be_opened_again() {
    for user in [0, 5] {
        let mut bed = mapped("echo out > /dev/stdout; echo err > /dev/stderr", json!([line(0, BASE, 10)]), BASE);
        bed.config["process"]["user"] = json!({"uid": user, "gid": user});
        bed.save();
        let mut child = bed.command(&["run", &id("pipes")]);
        let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the runtime");
        let output = child.wait_with_output().expect("its output");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "out\n",
            "{user}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n", "{user}");
    }
}

#[test]
fn limits_of_resources() {
    let mut bed = mapped("ulimit -Hn; ulimit -Sn; ulimit -c", json!([line(0, BASE, 10)]), BASE);
    bed.config["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]);
    assert_eq!(bed.says(), "99\n77\n0\n");
    bed.config["process"]["rlimits"][0] = json!({"type": "RLIMIT_NOFILE", "soft": 3, "hard": 3});
    bed.config["process"]["args"] = json!(["/bin/busybox", "true"]);
    bed.says();
    // What cannot be given is told by `create`, where engines look for it.
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nproc).maximum;
    let Some(more) = hard.map(|hard| hard + 1) else { return };
    bed.config["process"]["rlimits"][0] = json!({"type": "RLIMIT_NPROC", "soft": 5, "hard": more});
    let name = id("limits");
    let ran = bed.run(&["create", &name]);
    if ran.code == 0 {
        return; // with CAP_SYS_RESOURCE it can
    }
    assert!(ran.err.contains(&format!("cannot set RLIMIT_NPROC to 5 (hard {more})")), "{}", ran.err);
    bed.assert_gone(&name);
}

#[test]
fn exec_sets_everything_again() {
    let mut bed = mapped("sleep 1000", json!([line(0, BASE, 100)]), BASE);
    bed.config["process"]["oomScoreAdj"] = json!(123);
    let name = id("exec");
    bed.ok(&["run", "-d", &name]);
    let script = "cat /proc/self/oom_score_adj; id -u; readlink /proc/self/ns/user; grep CapBnd /proc/self/status; echo x > /dev/null";
    let theirs = fs::read_link(format!("/proc/{}/ns/user", bed.pid(&name))).expect("a namespace");
    let want = |user| format!("123\n{user}\n{}\nCapBnd:\t0000000020000420\n", theirs.display());
    assert_eq!(bed.ok(&["exec", &name, "sh", "-c", script]), want(0));
    assert_eq!(bed.ok(&["exec", "-u", "7:8", &name, "sh", "-c", script]), want(7));
    let error = bed.run(&["exec", "-u", "100", &name, "true"]).err;
    assert!(error.contains("cannot become user 100") && error.contains("is the user mapped"), "{error}");
    bed.ok(&["delete", "--force", &name]);
}

/// Hostile: as root of its namespace with every capability.
#[test]
fn root_of_a_container_is_nobody_on_the_host() {
    let mut bed = mapped(
        "chown 70000 /data/mine 2>&1; chown 9:9 /data/hosts 2>&1; cat /data/hosts 2>&1; chmod 777 /data/hosts 2>&1; mknod /data/mem c 1 1 2>&1;
         echo 1 > /proc/sys/kernel/panic; hostname changed && hostname; mount -t tmpfs x /bin && echo own mounts;
         mount -o remount,rw /sys 2>&1; kill -9 1000 2>&1; chown 9 /data/mine && touch /data/made; sleep 1000",
        json!([line(0, BASE, 10)]),
        BASE,
    );
    let all = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "MKNOD",
        "SYS_ADMIN",
        "SYS_PTRACE",
        "KILL",
        "SYS_RESOURCE",
        "SYS_RAWIO",
    ];
    let all: Vec<String> = all.map(|name| format!("CAP_{name}")).to_vec();
    grant(&mut bed, &all.iter().map(String::as_str).collect::<Vec<_>>());
    bed.config["process"]["noNewPrivileges"] = json!(false);
    bed.config["linux"]["readonlyPaths"] = json!([]);
    let data = bed.path("bundle/data");
    fs::create_dir(&data).expect("a directory");
    for (name, uid) in [("mine", BASE), ("hosts", 0)] {
        fs::write(data.join(name), "content").expect("a file");
        fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o600)).expect("its mode");
        chown(data.join(name), Some(uid), Some(uid)).expect("chown");
    }
    chown(&data, Some(BASE), Some(BASE)).expect("chown");
    mount(&mut bed, json!({"destination": "/data", "type": "bind", "source": "data", "options": ["bind"]}));
    let name = id("hostile");
    bed.save();
    let mut child = bed.command(&["run", &name]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("the runtime");
    common::until("it has done its worst", || data.join("made").exists());
    let pid = bed.pid(&name);
    // Capabilities count in its own namespace only, and every ID is that of nobody.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    assert!(field(&status, "Uid").starts_with("100000\t100000"), "{status}");
    assert_eq!(field(&status, "Groups"), "", "no group of the host is left");
    assert_ne!(fs::read_link(format!("/proc/{pid}/ns/user")).ok(), fs::read_link("/proc/self/ns/user").ok());
    bed.ok(&["kill", &name, "KILL"]);
    let mut out = String::new();
    child.stdout.take().expect("its output").read_to_string(&mut out).expect("text");
    common::wait(child);
    for want in [
        "chown: /data/mine: Invalid argument",
        "chown: /data/hosts: Operation not permitted",
        "cat: can't open '/data/hosts': Permission denied",
        "chmod: /data/hosts: Operation not permitted",
        "mknod: /data/mem: Operation not permitted",
        "changed\n",
        "own mounts\n",
    ] {
        assert!(out.contains(want), "{want}: {out}");
    }
    assert_eq!((owner(&data.join("mine")).0, owner(&data.join("hosts")).0), (BASE + 9, 0));
    assert_eq!(owner(&data.join("made")), (BASE, BASE));
    assert_eq!(fs::metadata(data.join("hosts")).expect("the file").permissions().mode() & 0o777, 0o600);
}

/// What a container sees of a host's file, and what the host sees of the container's, through an ID-mapped mount.
const LOOK: &str = "stat -c %u:%g /data/hosts; touch /data/made; stat -c %u:%g /data/made; chown 3:4 /data/made && stat -c %u:%g /data/made";

fn data(bed: &Bed, uid: u32) -> std::path::PathBuf {
    let data = bed.path("bundle/data");
    fs::create_dir(&data).expect("a directory");
    fs::write(data.join("hosts"), "").expect("a file");
    for path in [&data, &data.join("hosts")] {
        chown(path, Some(uid), Some(uid)).expect("chown");
    }
    data
}

#[test]
fn a_mount_with_the_map_of_the_container() {
    for option in ["idmap", "ridmap"] {
        let mut bed = mapped(LOOK, json!([line(0, BASE, 10)]), BASE);
        grant(&mut bed, &["CAP_CHOWN"]);
        let data = data(&bed, 0);
        mount(
            &mut bed,
            json!({"destination": "/data", "type": "bind", "source": "data", "options": ["rbind", option]}),
        );
        assert_eq!(bed.says(), "0:0\n0:0\n3:4\n", "{option}");
        // On the disk they are root's, or whoever the container's ID stands for, and not of the range.
        assert_eq!(owner(&data.join("made")), (3, 4), "{option}");
    }
}

#[test]
fn a_mount_with_a_map_of_its_own() {
    // Without a user namespace: files of 5000 look like root's, and what root makes is 5000's.
    let mut bed = Bed::new(LOOK);
    grant(&mut bed, &["CAP_CHOWN"]);
    let files = data(&bed, 5000);
    let map = json!([line(5000, 0, 10)]);
    mount(
        &mut bed,
        json!({
            "destination": "/data", "type": "bind", "source": "data", "options": ["bind"], "uidMappings": map, "gidMappings": map,
        }),
    );
    assert_eq!(bed.says(), "0:0\n0:0\n3:4\n");
    assert_eq!(owner(&files.join("made")), (5003, 5004));
    // Several mounts, two with the same map; one differs between users and groups; beside a user namespace.
    let mut bed =
        mapped("for n in a b c; do touch /$n/f && stat -c %u:%g /$n/f; done", json!([line(0, BASE, 10)]), BASE);
    for (name, users, groups) in [
        ("a", line(0, BASE, 10), line(0, BASE, 10)),
        ("b", line(0, BASE, 10), line(0, BASE, 10)),
        ("c", line(7000, BASE, 1), line(8000, BASE, 2)),
    ] {
        let path = bed.path("bundle").join(name);
        fs::create_dir(&path).expect("a directory");
        let own = if name == "c" { (7000, 8000) } else { (0, 0) };
        chown(&path, Some(own.0), Some(own.1)).expect("chown");
        mount(
            &mut bed,
            json!({
                "destination": format!("/{name}"), "type": "bind", "source": name, "options": ["bind", "idmap"],
                "uidMappings": [users], "gidMappings": [groups],
            }),
        );
    }
    assert_eq!(bed.says(), "0:0\n0:0\n0:0\n");
    assert_eq!(owner(&bed.path("bundle/a/f")), (0, 0));
    assert_eq!(owner(&bed.path("bundle/c/f")), (7000, 8000));
}

#[test]
fn a_map_written_in_an_option_as_for_crun() {
    for (option, owner_of_made) in [
        ("idmap=uids=5000-100000-10;gids=5000-100000-10", 5000),
        ("ridmap=uids=@5000-0-10;gids=@5000-0-10", 5000),
        ("idmap=uids=@4999-9-1#@5000-0-5;gids=@5000-0-10", 5000),
    ] {
        let mut bed = mapped("stat -c %u /data/hosts; touch /data/made", json!([line(0, BASE, 10)]), BASE);
        let files = data(&bed, 5000);
        mount(
            &mut bed,
            json!({"destination": "/data", "type": "bind", "source": "data", "options": ["rbind", option]}),
        );
        assert_eq!(bed.says(), "0\n", "{option}");
        assert_eq!(owner(&files.join("made")), (owner_of_made, owner_of_made), "{option}");
    }
    for (option, want) in [
        ("idmap=uids=0-1", "is not of the form"),
        ("idmap=uids=@0-99-1;gids=0-0-1", "ID 99 of `idmap` is not mapped in the container"),
        ("idmap=uids=0-1-0;gids=0-1-1", "line 0 of `idmap` has a `size` of 0"),
    ] {
        let mut bed = mapped("true", json!([line(0, BASE, 10)]), BASE);
        mount(
            &mut bed,
            json!({"destination": "/data", "type": "bind", "source": "/tmp", "options": ["rbind", option]}),
        );
        let error = bed.refuses();
        assert!(error.contains("$.mounts[7]") && error.contains(want), "{option}: {error}");
    }
}

#[test]
fn an_id_outside_of_the_map_belongs_to_nobody_and_makes_nothing() {
    let mut bed = Bed::new("stat -c %u /data/hosts; touch /data/made 2>&1; echo x >> /data/hosts 2>&1");
    let files = data(&bed, 42);
    let map = json!([line(5000, 5000, 10)]);
    mount(
        &mut bed,
        json!({
            "destination": "/data", "type": "bind", "source": "data", "options": ["bind"], "uidMappings": map, "gidMappings": map,
        }),
    );
    let ran = bed.run(&["run", &id("nobody")]);
    assert!(ran.out.starts_with("65534\n"), "{}", ran.out);
    assert!(ran.out.contains("touch: /data/made: Permission denied") || ran.out.contains("too large"), "{}", ran.out);
    assert!(!files.join("made").exists());
}

#[test]
fn only_the_topmost_or_everything_below() {
    if !has_kernel(6, 3) {
        return; // no tmpfs with a map
    }
    for (option, want) in [("idmap", "0 65534\n"), ("ridmap", "0 0\n")] {
        let mut bed = mapped("echo $(stat -c %u /data/top /data/sub/deep)", json!([line(0, BASE, 10)]), BASE);
        let outer = bed.path("bundle/data");
        fs::create_dir_all(outer.join("sub")).expect("directories");
        fs::write(outer.join("top"), "").expect("a file");
        mount(
            &mut bed,
            json!({"destination": "/data", "type": "bind", "source": "data", "options": ["rbind", option]}),
        );
        bed.save();
        // The mount below is only there for the runtime.
        let script = format!("mount -t tmpfs x {0}/sub; touch {0}/sub/deep; exec \"$0\" \"$@\"", outer.display());
        let root = bed.path("state").display().to_string();
        let output = Command::new("unshare")
            .args([
                "-m",
                "sh",
                "-ec",
                &script,
                env!("CARGO_BIN_EXE_gantry-runtime"),
                "--root",
                &root,
                "run",
                &id("deep"),
            ])
            .current_dir(bed.bundle())
            .output()
            .expect("unshare");
        assert_eq!(String::from_utf8_lossy(&output.stdout), want, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_new_filesystem_with_a_map() {
    if !has_kernel(6, 3) {
        return; // no tmpfs with a map
    }
    let mut bed = Bed::new("stat -c %u:%g /data; touch /data/f; stat -c %u:%g /data/f");
    let map = json!([line(0, 6000, 10)]);
    mount(
        &mut bed,
        json!({
            "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["mode=777"],
            "uidMappings": map, "gidMappings": map,
        }),
    );
    bed.config["process"]["user"] = json!({"uid": 6003, "gid": 6004});
    assert_eq!(bed.says(), "6000:6000\n6003:6004\n");
}

#[test]
fn what_cannot_be_mapped_is_told() {
    let map = json!([line(0, BASE, 10)]);
    let mut bed = Bed::new("true");
    mount(
        &mut bed,
        json!({
            "destination": "/p", "type": "bind", "source": "/proc", "options": ["bind"], "uidMappings": map, "gidMappings": map,
        }),
    );
    let error = bed.refuses();
    assert!(error.contains("$.mounts[7] on `/p`: cannot map the IDs of the mount"), "{error}");
    assert!(error.contains("cannot map the IDs of a proc filesystem"), "{error}");
    let mut bed = mapped("true", map, BASE);
    mount(&mut bed, json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["idmap"]}));
    let error = bed.refuses();
    assert!(error.contains("$.mounts[7] on `/data`: cannot map the IDs of the mount"), "{error}");
    let mut bed = Bed::new("true");
    mount(&mut bed, json!({"destination": "/data", "type": "bind", "source": "/tmp", "options": ["bind", "idmap"]}));
    assert!(bed.refuses().contains("$.mounts[7].options: asks for an ID map, but neither"));
}

#[test]
fn the_map_of_a_joined_user_namespace() {
    let first = mapped("sleep 1000", json!([line(0, BASE, 10)]), BASE);
    let name = id("owner");
    first.ok(&["run", "-d", &name]);
    let mut second = mapped(LOOK, json!([]), BASE);
    grant(&mut second, &["CAP_CHOWN"]);
    let list = second.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    list.pop();
    list.push(json!({"type": "user", "path": format!("/proc/{}/ns/user", first.pid(&name))}));
    let files = data(&second, 0);
    mount(&mut second, json!({"destination": "/data", "type": "bind", "source": "data", "options": ["bind", "idmap"]}));
    assert_eq!(second.says(), "0:0\n0:0\n3:4\n");
    assert_eq!(owner(&files.join("made")), (3, 4));
    first.ok(&["delete", "--force", &name]);
}

#[test]
fn without_a_map_every_id_is_itself() {
    let mut bed = Bed::new("cat /proc/self/uid_map /proc/self/gid_map; stat -c %u:%g /data/hosts; id -u; id -g");
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    bed.config["process"]["user"] = json!({"uid": 1234, "gid": 4321});
    data(&bed, 5000);
    mount(&mut bed, json!({"destination": "/data", "type": "bind", "source": "data", "options": ["bind"]}));
    let ours = |file: &str| -> Vec<(String, String)> {
        let text = fs::read_to_string(file).expect("a map of ours");
        let line = |line: &str| -> (String, String) {
            let mut words = line.split_whitespace().map(str::to_owned);
            (words.next().expect("an ID"), words.nth(1).expect("a size"))
        };
        text.lines().map(line).collect()
    };
    let mut want = String::new();
    for (inside, size) in ours("/proc/self/uid_map").into_iter().chain(ours("/proc/self/gid_map")) {
        want += &format!("{inside} {inside} {size} ");
    }
    let said = bed.says();
    assert_eq!(said.split_whitespace().collect::<Vec<_>>().join(" "), format!("{want}5000:5000 1234 4321"));
    // Other commands read the same configuration.
    let name = id("same");
    bed.config["process"]["args"] = json!(["sleep", "1000"]);
    bed.ok(&["run", "-d", &name]);
    assert_eq!(bed.ok(&["exec", "-u", "77:78", &name, "sh", "-c", "id -u; id -g"]), "77\n78\n");
    bed.ok(&["delete", "--force", &name]);
    bed.assert_gone(&name);
    // A mount with the map of the container, and one with a map of its own.
    bed.config["process"]["args"] = json!(["stat", "-c", "%u:%g", "/data/hosts", "/mapped/hosts"]);
    let last = bed.config["mounts"].as_array().expect("mounts").len() - 1;
    bed.config["mounts"][last]["options"] = json!(["bind", "idmap"]);
    let map = json!([line(5000, 7000, 1)]);
    mount(
        &mut bed,
        json!({
            "destination": "/mapped", "type": "bind", "source": "data", "options": ["bind"], "uidMappings": map, "gidMappings": map,
        }),
    );
    assert_eq!(bed.says(), "5000:5000\n7000:7000\n");
    // Half a map is a mistake.
    bed.config["linux"]["uidMappings"] = json!([line(0, 0, 1)]);
    assert!(bed.refuses().contains("$.linux.gidMappings: is empty, but a new user namespace needs a map"));
}
