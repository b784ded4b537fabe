//! Each property of isolation, seen from inside a container.

mod common;

use common::{Bed, field, id};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;

fn link(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace").display().to_string()
}

#[test]
fn namespaces_are_its_own() {
    let kinds = ["pid", "net", "ipc", "uts", "mnt", "cgroup"];
    let out = Bed::new("for n in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done").says();
    for (kind, inside) in kinds.iter().zip(out.lines()) {
        assert_ne!(inside, link(kind), "{kind}");
    }
    assert_eq!(out.lines().count(), kinds.len());
}

#[test]
fn a_namespace_that_is_not_listed_is_shared() {
    let mut bed = Bed::new("for n in net ipc; do readlink /proc/self/ns/$n; done");
    bed.config["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}, {"type": "uts"}]);
    bed.config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "sysfs");
    assert_eq!(bed.says(), format!("{}\n{}\n", link("net"), link("ipc")));
}

#[test]
fn it_is_process_one_and_sees_no_other() {
    let out = Bed::new("echo $$; ls /proc | grep -c '^[0-9]'; hostname; cat /proc/self/cgroup").says();
    let mut lines = out.lines();
    assert_eq!(lines.next(), Some("1"));
    assert!(lines.next().expect("a count").parse::<u32>().expect("a number") <= 4, "{out}");
    assert_eq!(lines.next(), Some("gantry"));
    for line in lines {
        assert!(line.ends_with(":/"), "the cgroup namespace hides the path: {line}");
    }
}

#[test]
fn only_loopback_and_it_is_up() {
    let out = Bed::new("ls /sys/class/net; cat /sys/class/net/lo/flags").says();
    assert_eq!(out, "lo\n0x9\n");
}

#[test]
fn the_root_is_read_only_and_pivoted() {
    let bed = Bed::new("touch /x 2>&1; ls /..; mount | grep -c 'on / '");
    let out = bed.says();
    assert!(out.contains("Read-only file system"), "{out}");
    assert!(!out.contains("root\n"), "no directory of the host: {out}");
    assert!(out.ends_with("1\n"), "one root mount: {out}");
}

#[test]
fn devices_are_the_default_ones_and_no_other_opens() {
    let mut bed = Bed::new(
        "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done; readlink /dev/fd; readlink /dev/ptmx;
         mknod /dev/mem0 c 1 1 && head -c1 /dev/mem0 2>&1; echo x > /dev/null && head -c2 /dev/zero | wc -c",
    );
    let all = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    bed.config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    let out = bed.says();
    for line in ["/dev/null 1:3 666", "/dev/zero 1:5 666", "/dev/urandom 1:9 666", "/dev/tty 5:0 666"] {
        assert!(out.contains(line), "{line}: {out}");
    }
    assert!(out.contains("/proc/self/fd\npts/ptmx\n"), "{out}");
    assert!(out.contains("/dev/mem0: Operation not permitted"), "the device cgroup refuses: {out}");
    assert!(out.ends_with("2\n"), "{out}");
}

#[test]
fn a_listed_device_has_its_numbers_mode_and_owner() {
    let mut bed = Bed::new("stat -c '%t:%T %a %u:%g' /dev/extra /dev/sub/fifo");
    bed.config["linux"]["devices"] = json!([
        {"type": "c", "path": "/dev/extra", "major": 1, "minor": 7, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"type": "p", "path": "/dev/sub/fifo", "fileMode": 0o600},
    ]);
    assert_eq!(bed.says(), "1:7 640 5:6\n0:0 600 0:0\n");
}

#[test]
fn masked_paths_are_empty_and_readonly_paths_refuse() {
    let mut bed = Bed::new(
        "wc -c < /etc/secret; ls /etc/dir | wc -l; echo 1 > /proc/sys/net/ipv4/ip_forward; echo $?;
         touch /proc/sysrq-trigger 2>&1; cat /etc/ro; echo x > /etc/ro; echo $?",
    );
    fs::write(bed.rootfs("etc/secret"), "secret").expect("a file");
    fs::write(bed.rootfs("etc/ro"), "kept\n").expect("a file");
    fs::create_dir(bed.rootfs("etc/dir")).expect("a directory");
    fs::write(bed.rootfs("etc/dir/file"), "").expect("a file");
    bed.config["root"]["readonly"] = json!(false);
    for (key, path) in [
        ("maskedPaths", "/etc/secret"),
        ("maskedPaths", "/etc/dir"),
        ("maskedPaths", "/none"),
        ("readonlyPaths", "/etc/ro"),
    ] {
        bed.config["linux"][key].as_array_mut().expect("a list").push(json!(path));
    }
    let out = bed.says();
    assert!(out.starts_with("0\n0\n1\n"), "{out}");
    assert!(out.ends_with("kept\n1\n"), "{out}");
    assert_eq!(fs::read_to_string(bed.rootfs("etc/ro")).expect("the file"), "kept\n");
}

#[test]
fn capabilities_are_exact_for_root_and_others() {
    for (why, user, sets, want) in [
        ("none", 0, json!({}), ["0"; 5]),
        (
            "each its own",
            0,
            json!({"bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
                   "inheritable": ["CAP_KILL"]}),
            ["20", "20", "20", "21", "0"],
        ),
        (
            "another user with ambient",
            1000,
            json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
                   "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}),
            ["20"; 5],
        ),
        (
            "another user without ambient",
            1000,
            json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]}),
            ["0", "0", "0", "20", "0"],
        ),
    ] {
        let mut bed = Bed::new("cat /proc/self/status");
        bed.config["process"]["capabilities"] = sets;
        bed.config["process"]["user"] = json!({"uid": user, "gid": user});
        let out = bed.says();
        for (name, want) in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].iter().zip(want) {
            let got = field(&out, name).trim_start_matches('0');
            assert_eq!(if got.is_empty() { "0" } else { got }, want, "{why}: {name}");
        }
    }
}

#[test]
fn no_new_privileges_as_told() {
    for (set, want) in [(true, "1"), (false, "0")] {
        let mut bed = Bed::new("cat /proc/self/status");
        bed.config["process"]["noNewPrivileges"] = json!(set);
        assert_eq!(field(&bed.says(), "NoNewPrivs"), want);
    }
}

#[test]
fn seccomp_refuses_with_the_given_error_with_and_without_no_new_privileges() {
    for no_new_privileges in [true, false] {
        let mut bed = Bed::new("mkdir /dev/shm/d 2>&1; chmod 700 /dev/shm 2>&1; cat /proc/self/status");
        bed.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bed.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            ],
        });
        let out = bed.says();
        assert!(out.contains("'/dev/shm/d': Operation not permitted"), "{out}");
        assert!(out.contains("/dev/shm: No space left on device"), "{out}");
        assert_eq!(field(&out, "Seccomp:"), "2", "{out}");
    }
}

#[test]
fn user_groups_umask_directory_environment_and_limits() {
    let mut bed = Bed::new("id; pwd; touch /dev/shm/f; stat -c %a /dev/shm/f; env; cat /proc/self/limits");
    bed.config["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 0o027});
    bed.config["process"]["cwd"] = json!("/work/deep");
    bed.config["process"]["env"] = json!(["PATH=/bin", "COLOUR=blue"]);
    bed.config["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]);
    fs::write(bed.rootfs("etc/passwd"), "me:x:1000:1001::/home/me:/bin/sh\n").expect("passwd");
    let out = bed.says();
    assert!(out.starts_with("uid=1000(me) gid=1001 groups=5,7"), "{out}");
    assert!(out.contains("/work/deep\n640\n"), "{out}");
    assert!(out.contains("COLOUR=blue\n") && out.contains("HOME=/home/me\n"), "{out}");
    let open_files = out.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    assert_eq!(open_files.split_whitespace().collect::<Vec<_>>()[3..5], ["100", "200"]);
}

#[test]
fn open_files_limit_is_the_callers_when_the_bundle_has_none() {
    let mut bed = Bed::new("ulimit -n");
    bed.config["process"]["rlimits"] = json!([]);
    bed.save();
    let id = id("limit");
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg("ulimit -S -n 321; exec \"$0\" --root \"$1\" run \"$2\"");
    shell.arg(env!("CARGO_BIN_EXE_gantry-runtime")).arg(bed.path("state")).arg(&id).current_dir(bed.bundle());
    let output = shell.output().expect("a shell");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "321\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn bind_mounts_tmpfs_and_their_options() {
    let mut bed = Bed::new(
        "cat /data/file; echo new > /data/written; echo x > /ro/file; echo $?; cat /one; grep -E ' /(data|ro|one|tmp) ' /proc/self/mountinfo;
         stat -c %a /tmp; ls /tmp",
    );
    let host = bed.path("host");
    fs::create_dir(&host).expect("a directory");
    fs::write(host.join("file"), "from host\n").expect("a file");
    let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
    mounts.push(
        json!({"destination": "/data", "type": "bind", "source": host, "options": ["rbind", "nosuid", "noexec"]}),
    );
    mounts.push(json!({"destination": "/ro", "source": host, "options": ["bind", "ro", "rprivate"]}));
    mounts.push(json!({"destination": "/one", "type": "none", "source": host.join("file"), "options": ["bind"]}));
    mounts.push(
        json!({"destination": "/tmp", "type": "tmpfs", "options": ["mode=1770", "size=1m", "tmpcopyup", "nodev"]}),
    );
    fs::create_dir(bed.rootfs("tmp")).expect("tmp");
    fs::write(bed.rootfs("tmp/kept"), "").expect("a file");
    let out = bed.says();
    assert!(out.starts_with("from host\n1\nfrom host\n"), "{out}");
    assert_eq!(fs::read_to_string(host.join("written")).expect("written through"), "new\n");
    let options = |at: &str| out.lines().find(|line| line.contains(&format!(" {at} "))).expect(at).to_owned();
    assert!(options("/data").contains("nosuid") && options("/data").contains("noexec"), "{out}");
    assert!(options("/ro").contains(" ro,"), "{out}");
    assert!(options("/tmp").contains("nodev") && options("/tmp").contains("size=1024k"), "{out}");
    assert!(out.ends_with("kept\n"), "{out}");
}

#[test]
fn recursive_read_only_covers_mounts_below() {
    let mut bed = Bed::new("echo x > /data/sub/f; echo $?; echo x > /flat/sub/f; echo $?");
    let host = bed.path("host");
    fs::create_dir_all(host.join("sub")).expect("a directory");
    // A mount of its own below the source, in a namespace of the test's own.
    let script = format!(
        "mount -t tmpfs t {0}/sub && \"$0\" --root {1} run {2}",
        host.display(),
        bed.path("state").display(),
        id("rro")
    );
    let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
    mounts.push(json!({"destination": "/data", "type": "bind", "source": host, "options": ["rbind", "rro"]}));
    mounts.push(json!({"destination": "/flat", "type": "bind", "source": host, "options": ["rbind", "ro"]}));
    bed.save();
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_gantry-runtime")])
        .current_dir(bed.bundle())
        .output()
        .expect("unshare");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n0\n", "{err}");
}

#[test]
fn nothing_is_mounted_on_the_host() {
    let before = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let bed = Bed::new("true");
    bed.says();
    let after = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let ours = |text: &str| text.lines().filter(|line| line.contains(&bed.bundle().display().to_string())).count();
    assert_eq!((ours(&before), ours(&after)), (0, 0));
}

#[test]
fn host_descriptors_do_not_leak() {
    let bed = Bed::new("ls -l /proc/self/fd");
    bed.save();
    let id = id("fds");
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg("exec 7</etc/hostname 9</; exec \"$0\" --root \"$1\" run \"$2\"");
    shell.arg(env!("CARGO_BIN_EXE_gantry-runtime")).arg(bed.path("state")).arg(&id).current_dir(bed.bundle());
    let output = shell.output().expect("a shell");
    let out = String::from_utf8_lossy(&output.stdout);
    let open = out.lines().filter(|line| line.starts_with('l')).count();
    assert_eq!(open, 4, "0, 1, 2 and the directory being listed: {out}");
}

#[test]
fn preserved_descriptors_stay() {
    let bed = Bed::new("cat <&3; cat <&4 2>/dev/null || echo closed");
    bed.save();
    fs::write(bed.path("handed"), "over\n").expect("a file");
    let id = id("keep");
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg("exec 3<\"$3\" 4<\"$3\"; exec \"$0\" --root \"$1\" run --preserve-fds 1 \"$2\"");
    shell.arg(env!("CARGO_BIN_EXE_gantry-runtime")).arg(bed.path("state")).arg(&id).arg(bed.path("handed"));
    let output = shell.current_dir(bed.bundle()).output().expect("a shell");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "over\nclosed\n");
}

#[test]
fn kernel_parameters_host_and_domain_name() {
    let mut bed =
        Bed::new("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni /proc/sys/kernel/domainname; hostname");
    bed.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "77"});
    bed.config["hostname"] = json!("box");
    bed.config["domainname"] = json!("example.org");
    assert_eq!(bed.says(), "1\n77\nexample.org\nbox\n");
}

#[test]
fn a_user_namespace_maps_ids() {
    let mut bed = Bed::new(
        "id -u; cat /proc/self/uid_map /proc/self/gid_map; touch /dev/shm/f; stat -c %u /dev/shm/f; stat -c %t:%T /dev/null; echo x > /dev/null && echo writable; hostname",
    );
    // The owner of the image must be the container's root, as an engine would arrange.
    let chown = std::process::Command::new("chown").args(["-R", "100000:100000"]).arg(bed.rootfs("")).status();
    assert!(chown.expect("chown").success());
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    bed.config["linux"]["uidMappings"] = map.clone();
    bed.config["linux"]["gidMappings"] = map;
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    let out = bed.says();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536", "0", "100000", "65536", "0", "1:3", "writable", "gantry"], "{out}");
}

#[test]
fn a_time_namespace_shifts_the_clock() {
    let mut bed =
        Bed::new("cut -d. -f1 /proc/uptime 2>/dev/null || head -c 20 /proc/uptime; cat /proc/self/timens_offsets");
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "time"}));
    bed.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000, "nanosecs": 0}});
    let out = bed.says();
    let seconds: f64 = out.split(['.', ' ', '\n']).next().expect("a number").parse().expect("uptime");
    assert!(seconds > 1_000_000.0, "{out}");
    assert!(out.contains("boottime") && out.contains("1000000"), "{out}");
}

#[test]
fn namespaces_of_another_container_can_be_joined() {
    let first = Bed::new("hostname first; sleep 1000");
    let mut first = first;
    first.config["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_ADMIN"]);
    let name = id("first");
    first.ok(&["create", &name]);
    first.ok(&["start", &name]);
    let pid = first.pid(&name);
    let mut second = Bed::new("for n in net ipc uts pid; do readlink /proc/self/ns/$n; done; hostname");
    second.config["hostname"] = json!(null);
    let kinds = ["network", "ipc", "uts", "pid"];
    let files = ["net", "ipc", "uts", "pid"];
    let mut list = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    for (kind, file) in kinds.iter().zip(files) {
        list.push(json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
    }
    second.config["linux"]["namespaces"] = json!(list);
    let out = second.says();
    let want: String = files
        .map(|file| fs::read_link(format!("/proc/{pid}/ns/{file}")).expect("a namespace").display().to_string() + "\n")
        .concat();
    assert_eq!(out, want + "gantry\n");
    first.ok(&["delete", "--force", &name]);
}

#[test]
fn personality_is_set() {
    let mut bed = Bed::new("cat /proc/self/personality");
    bed.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    assert_eq!(bed.says(), "00000008\n");
}

#[test]
fn hostile_links_in_the_image_are_refused() {
    for (why, link_name, target) in [
        ("proc to a place outside", "proc", "/etc"),
        ("proc to a place inside", "proc", "etc"),
        ("sys", "sys", "/tmp"),
        ("dev", "dev", "/etc"),
    ] {
        let bed = Bed::new("echo started");
        symlink(target, bed.rootfs(link_name)).expect("a link");
        let message = bed.refuses();
        assert!(message.contains("mounts: ") && message.contains(&format!("/{link_name}")), "{why}: {message}");
    }
}

#[test]
fn links_in_mount_targets_stay_inside() {
    let mut bed = Bed::new("cat /real/f");
    let (host, outside) = (bed.path("host"), bed.path("outside"));
    fs::create_dir(&host).expect("a directory");
    fs::create_dir(&outside).expect("a directory");
    fs::write(host.join("f"), "bound\n").expect("a file");
    symlink("/real", bed.rootfs("alias")).expect("a link");
    fs::create_dir(bed.rootfs("real")).expect("a directory");
    let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
    mounts.push(json!({"destination": "/alias", "type": "bind", "source": host, "options": ["bind"]}));
    assert_eq!(bed.says(), "bound\n");
    // The same with a link that leads out: it is resolved from the container's root, where there is nothing.
    symlink(&outside, bed.rootfs("escape")).expect("a link");
    let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
    mounts.push(json!({"destination": "/escape/made", "type": "tmpfs"}));
    assert_eq!(bed.says(), "bound\n");
    assert_eq!(fs::read_dir(&outside).expect("outside").count(), 0);
}

#[test]
fn a_null_device_that_is_another_file_masks_nothing() {
    let mut bed = Bed::new("echo started");
    bed.config["mounts"]
        .as_array_mut()
        .expect("mounts")
        .retain(|mount| !mount["destination"].as_str().expect("a path").starts_with("/dev"));
    fs::create_dir(bed.rootfs("dev")).expect("dev");
    fs::write(bed.rootfs("dev/null"), "not the null device").expect("a file");
    let message = bed.refuses();
    assert!(message.contains("`null` exists and is another file"), "{message}");
}

#[test]
fn shared_propagation_stays_away_from_the_host_unless_asked() {
    let mut bed = Bed::new("grep -E ' / (ro|rw)' /proc/self/mountinfo");
    bed.config["linux"]["rootfsPropagation"] = json!("shared");
    assert!(bed.says().contains("shared:"));
    let bed = Bed::new("grep -c shared: /proc/self/mountinfo || true");
    assert_eq!(bed.says(), "0\n");
}

/// Run the runtime where only a v2 hierarchy is visible, in a mount namespace of the test's own.
fn on_pure_v2(bed: &Bed, args: &str) -> String {
    bed.save();
    let script = format!(
        "umount -R -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && \"$0\" --root {} {args}",
        bed.path("state").display()
    );
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_gantry-runtime")])
        .current_dir(bed.bundle())
        .output()
        .expect("unshare");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn pure_v2_hosts_filter_devices_by_program() {
    let mut bed = Bed::new(
        "mknod /dev/mem0 c 1 1; head -c1 /dev/mem0 2>&1; mknod /dev/n0 c 1 3; echo x > /dev/n0 && echo allowed;
         grep cgroup /proc/self/mountinfo | wc -l; cat /proc/self/cgroup | grep -v :name= | tail -1",
    );
    let all = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    bed.config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    let out = on_pure_v2(&bed, &format!("run {}", id("pure")));
    assert_eq!(out, "head: /dev/mem0: Operation not permitted\nallowed\n1\n0::/\n");
}

#[test]
fn a_user_namespace_of_another_container_can_be_joined() {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let mut first = Bed::new("sleep 1000");
    let own = |bed: &Bed| {
        let chown = std::process::Command::new("chown").args(["-R", "100000:100000"]).arg(bed.rootfs("")).status();
        assert!(chown.expect("chown").success());
    };
    own(&first);
    first.config["linux"]["uidMappings"] = map.clone();
    first.config["linux"]["gidMappings"] = map;
    first.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    let name = id("owner");
    first.ok(&["run", "-d", &name]);
    let pid = first.pid(&name);
    let mut second = Bed::new(
        "for n in user net pid; do readlink /proc/self/ns/$n; done; cat /proc/self/uid_map; ls /proc | grep -c '^[0-9]'",
    );
    own(&second);
    second.config["linux"]["namespaces"] = json!([
        {"type": "user", "path": format!("/proc/{pid}/ns/user")},
        {"type": "network", "path": format!("/proc/{pid}/ns/net")},
        {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"},
    ]);
    let out = second.says();
    let lines: Vec<&str> = out.lines().collect();
    let theirs =
        |kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace").display().to_string();
    assert_eq!((lines[0], lines[1]), (theirs("user").as_str(), theirs("net").as_str()));
    assert_ne!(lines[2], theirs("pid"));
    assert!(lines[3].contains("100000"), "{out}");
    assert!(lines[4].parse::<u32>().expect("a number") <= 4, "{out}");
    // A new user namespace beside a network joined from the host side works as well.
    let mut third = Bed::new("readlink /proc/self/ns/net; id -u");
    own(&third);
    third.config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    third.config["linux"]["gidMappings"] = third.config["linux"]["uidMappings"].clone();
    third.config["mounts"]
        .as_array_mut()
        .expect("mounts")
        .retain(|mount| !matches!(mount["type"].as_str(), Some("sysfs" | "cgroup" | "mqueue")));
    third.config["linux"]["namespaces"] = json!([
        {"type": "user"}, {"type": "network", "path": format!("/proc/{pid}/ns/net")}, {"type": "pid"}, {"type": "mount"},
    ]);
    third.config["hostname"] = json!(null);
    assert_eq!(third.says(), format!("{}\n0\n", theirs("net")));
    first.ok(&["delete", "--force", &name]);
}

#[test]
fn without_a_cgroup_namespace_its_own_cgroups_are_mounted() {
    let mut bed = Bed::new(
        "ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max; cat /sys/fs/cgroup/unified/cgroup.procs 2>/dev/null | head -1",
    );
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|kind| kind["type"] != "cgroup");
    bed.config["linux"]["resources"]["pids"] = json!({"limit": 33});
    assert!(bed.says().contains("33\n"));
}

#[test]
fn a_racing_image_never_makes_us_write_outside() {
    // A thread that swaps a directory of the image with a link to the host, a few times per start. Not in a tight loop:
    // that holds the kernel's rename lock nearly always, and stalled the whole machine for half a minute.
    let outside = tempfile::tempdir().expect("a directory");
    let mut bed = Bed::new("true");
    bed.config["mounts"].as_array_mut().expect("mounts").push(json!({"destination": "/a/b/c", "type": "tmpfs"}));
    bed.save();
    let (real, link) = (bed.rootfs("a"), bed.rootfs("swap"));
    fs::create_dir(&real).expect("a directory");
    symlink(outside.path(), &link).expect("a link");
    let stop = std::sync::atomic::AtomicBool::new(false);
    /// Stops the thread even when an assertion fails, so that the failure is seen.
    struct Stop<'a>(&'a std::sync::atomic::AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = renameat_with(CWD, &real, CWD, &link, RenameFlags::EXCHANGE);
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
        });
        let _stop = Stop(&stop);
        for _ in 0..40 {
            // Either outcome is fine; writing outside is not.
            bed.run(&["run", &id("race")]);
        }
    });
    assert_eq!(fs::read_dir(outside.path()).expect("outside").count(), 0);
}

/// Without pivot_root the host's mounts are below the container's. A whole procfs there would let a user namespace of the
/// container mount one that masks nothing.
#[test]
fn without_pivot_no_whole_procfs_is_within_reach() {
    let mut bed = Bed::new("unshare -mrpf sh -c 'mount -t proc none /proc && echo mounted'");
    for set in ["bounding", "permitted", "effective"] {
        bed.config["process"]["capabilities"][set] = json!(["CAP_SETFCAP", "CAP_SETUID", "CAP_SETGID"]);
    }
    for pivot in [&["run"][..], &["run", "--no-pivot"]] {
        let name = id("nopivot");
        let ran = bed.run(&[pivot, &[name.as_str()]].concat());
        assert!(ran.code == 1 && ran.err.contains("mount: permission denied"), "{pivot:?}: {ran:?}");
        bed.assert_gone(&name);
    }
    let name = id("nopivot");
    bed.config["process"]["args"] =
        json!(["sh", "-c", "ls / | head -1; pwd; awk '$5 == \"/\"' /proc/self/mountinfo | wc -l"]);
    assert_eq!(bed.ok(&["run", "--no-pivot", &name]), "bin\n/\n1\n");
}

/// A hook of the runtime that enters the container's mount namespace finds the root filesystem at its path, and what it
/// mounts there is in the container.
#[test]
fn a_hook_mounts_into_the_container_by_its_path_on_the_host() {
    let mut bed = Bed::new("cat /gift/note; cat /relative");
    bed.config["root"]["readonly"] = json!(false);
    fs::create_dir(bed.bundle().join("gift")).expect("a directory");
    fs::write(bed.bundle().join("gift/note"), "from the hook\n").expect("a file");
    fs::create_dir(bed.rootfs("gift")).expect("a directory");
    let (from, to) = (bed.bundle().join("gift"), bed.rootfs("gift"));
    let script = format!(
        "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); [ -f config.json ] && nsenter -m -t $pid mount --bind {} {}",
        from.display(),
        to.display()
    );
    let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    bed.config["hooks"]["createRuntime"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": [path]}]);
    let script = "cat > /dev/null; echo in the root > relative";
    bed.config["hooks"]["createContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": [path]}]);
    assert_eq!(bed.says(), "from the hook\nin the root\n");
}
