//! Every mount option of the specification, as the kernel shows it inside the container.

mod common;

use common::{Bed, id};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A line of mountinfo.
struct Mounted {
    /// Options of the mount.
    own: Vec<String>,
    /// `shared:1`, `master:2` and the like.
    tags: String,
    kind: String,
    /// Options of the filesystem.
    whole: Vec<String>,
}

/// What is mounted on a place, the last of several.
fn mounted(mountinfo: &str, place: &str) -> Mounted {
    let line = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some(place));
    let line = line.unwrap_or_else(|| panic!("nothing on {place}: {mountinfo}"));
    let (mount, filesystem) = line.split_once(" - ").expect("a separator");
    let words: Vec<&str> = mount.split(' ').collect();
    let filesystem: Vec<&str> = filesystem.split(' ').collect();
    let list = |text: &str| text.split(',').map(str::to_owned).collect();
    Mounted {
        own: list(words[5]),
        tags: words[6..].join(" "),
        kind: filesystem[0].to_owned(),
        whole: list(filesystem.last().expect("options")),
    }
}

impl Mounted {
    /// Words that must be there, and with `!` words that must not; `^` looks at the filesystem's options.
    fn assert(&self, why: &str, words: &str) {
        for word in words.split_whitespace() {
            let (wanted, word) = word.strip_prefix('!').map_or((true, word), |word| (false, word));
            let (list, word) = word.strip_prefix('^').map_or((&self.own, word), |word| (&self.whole, word));
            let there = list.iter().any(|found| found == word);
            assert_eq!(there, wanted, "{why}: {word} in {list:?}");
        }
    }
}

fn add(bed: &mut Bed, mount: Value) {
    bed.config["mounts"].as_array_mut().expect("mounts").push(mount);
}

/// Run in a mount namespace of the test's own, after a shell script that mounts things there; `$0` is the runtime.
fn after(script: &str, bed: &Bed) -> String {
    bed.save();
    let script = format!("{script} && exec \"$0\" --root {} run {}", bed.path("state").display(), id("after"));
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", &script, env!("CARGO_BIN_EXE_gantry-runtime")])
        .current_dir(bed.bundle())
        .output()
        .expect("unshare");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn options_of_a_new_filesystem() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "rw relatime !nosuid !nodev !noexec"),
        (&["defaults"], "rw relatime !nosuid !nodev !noexec"),
        (&["ro"], "ro !rw"),
        (&["ro", "rw"], "rw !ro"),
        (&["rw", "ro"], "ro !rw"),
        (&["nosuid"], "nosuid"),
        (&["nosuid", "suid"], "!nosuid"),
        (&["nodev"], "nodev"),
        (&["nodev", "dev"], "!nodev"),
        (&["noexec"], "noexec"),
        (&["noexec", "exec"], "!noexec"),
        (&["noatime"], "noatime !relatime"),
        (&["noatime", "atime"], "relatime !noatime"),
        (&["relatime"], "relatime"),
        (&["strictatime"], "!relatime !noatime"),
        (&["norelatime"], "!relatime !noatime"),
        (&["strictatime", "nostrictatime"], "relatime"),
        (&["nodiratime"], "nodiratime"),
        (&["nodiratime", "diratime"], "!nodiratime"),
        (&["nosymfollow"], "nosymfollow"),
        (&["nosymfollow", "symfollow"], "!nosymfollow"),
        (&["sync"], "^sync"),
        (&["sync", "async"], "!^sync"),
        (&["dirsync"], "^dirsync"),
        (&["lazytime"], "^lazytime"),
        (&["lazytime", "nolazytime"], "!^lazytime"),
        (&["mand", "nomand"], "!^mand"),
        (&["silent", "loud", "iversion", "noiversion"], "rw"),
        (&["size=64k"], "^size=64k"),
        (
            &["size=2m", "nr_inodes=99", "mode=700", "uid=7", "gid=8"],
            "^size=2048k ^nr_inodes=99 ^mode=700 ^uid=7 ^gid=8",
        ),
        (&["rro"], "ro"),
        (
            &["rnosuid", "rnodev", "rnoexec", "rnoatime", "rnodiratime", "rnosymfollow"],
            "nosuid nodev noexec noatime nodiratime nosymfollow",
        ),
        (&["nosuid", "rsuid"], "nosuid"),
        (&["private"], "rw"),
    ];
    let mut bed = Bed::new("cat /proc/self/mountinfo");
    bed.config["root"]["readonly"] = json!(false);
    for (index, (options, _)) in cases.iter().enumerate() {
        add(
            &mut bed,
            json!({"destination": format!("/m/{index}"), "type": "tmpfs", "source": "t", "options": options}),
        );
    }
    let out = bed.says();
    for (index, (options, want)) in cases.iter().enumerate() {
        let found = mounted(&out, &format!("/m/{index}"));
        assert_eq!(found.kind, "tmpfs");
        found.assert(&format!("{options:?}"), want);
    }
}

#[test]
fn options_of_a_bind_mount_and_of_what_is_mounted_below() {
    // Per case: what the mount itself shows, and what the mount below it shows.
    let cases: &[(&[&str], &str, Option<&str>)] = &[
        (&["bind"], "rw relatime", None),
        (&["rbind"], "rw relatime", Some("rw relatime")),
        (&["rbind", "ro"], "ro", Some("rw")),
        (&["rbind", "rro"], "ro", Some("ro")),
        (&["rbind", "rro", "rw"], "rw", Some("ro")),
        (&["bind", "rro"], "ro", None),
        (&["rbind", "rro", "rrw"], "rw", Some("rw")),
        (&["rbind", "nosuid", "nodev", "noexec"], "nosuid nodev noexec", Some("!nosuid !nodev !noexec")),
        (&["rbind", "rnosuid"], "nosuid !nodev", Some("nosuid !nodev")),
        (&["rbind", "rnosuid", "rsuid"], "!nosuid", Some("!nosuid")),
        (&["rbind", "rnodev"], "nodev", Some("nodev")),
        (&["rbind", "rnodev", "rdev"], "!nodev", Some("!nodev")),
        (&["rbind", "rnoexec"], "noexec", Some("noexec")),
        (&["rbind", "rnoexec", "rexec"], "!noexec", Some("!noexec")),
        (&["rbind", "noatime"], "noatime", Some("relatime")),
        (&["rbind", "rnoatime"], "noatime", Some("noatime")),
        (&["rbind", "rnoatime", "ratime"], "relatime", Some("relatime")),
        (&["rbind", "rstrictatime"], "!relatime !noatime", Some("!relatime !noatime")),
        (&["rbind", "rnorelatime"], "!relatime !noatime", Some("!relatime !noatime")),
        (&["rbind", "rstrictatime", "rnostrictatime"], "relatime", Some("relatime")),
        (&["rbind", "rnoatime", "rrelatime"], "relatime", Some("relatime")),
        (&["rbind", "rnodiratime"], "nodiratime", Some("nodiratime")),
        (&["rbind", "rnodiratime", "rdiratime"], "!nodiratime", Some("!nodiratime")),
        (&["rbind", "rnosymfollow"], "nosymfollow", Some("nosymfollow")),
        (&["rbind", "rnosymfollow", "rsymfollow"], "!nosymfollow", Some("!nosymfollow")),
        (&["rbind", "sync", "dirsync", "lazytime", "async"], "rw !^sync", Some("rw")),
    ];
    let mut bed = Bed::new("cat /proc/self/mountinfo");
    let host = bed.path("host");
    fs::create_dir_all(host.join("sub")).expect("a directory");
    for (index, (options, _, _)) in cases.iter().enumerate() {
        add(&mut bed, json!({"destination": format!("/m/{index}"), "source": host, "options": options}));
    }
    let host = host.display();
    let out = after(&format!("mount --bind {host} {host} && mount -t tmpfs t {host}/sub"), &bed);
    for (index, (options, want, below)) in cases.iter().enumerate() {
        let place = format!("/m/{index}");
        mounted(&out, &place).assert(&format!("{options:?}"), want);
        let sub = format!("{place}/sub");
        match below {
            Some(want) => mounted(&out, &sub).assert(&format!("{options:?}, below"), want),
            None => assert!(!out.contains(&format!(" {sub} ")), "{options:?}: nothing below: {out}"),
        }
    }
}

#[test]
fn a_bind_mount_keeps_and_takes_back_what_the_source_has() {
    let mut bed = Bed::new("cat /proc/self/mountinfo");
    let host = bed.path("host");
    fs::create_dir(&host).expect("a directory");
    add(&mut bed, json!({"destination": "/kept", "source": host, "options": ["bind"]}));
    add(&mut bed, json!({"destination": "/back", "source": host, "options": ["bind", "suid", "exec", "rw", "atime"]}));
    let out = after(&format!("mount -t tmpfs -o ro,nosuid,noexec,nodev,noatime t {}", host.display()), &bed);
    mounted(&out, "/kept").assert("kept", "ro nosuid noexec nodev noatime");
    mounted(&out, "/back").assert("taken back", "rw !nosuid !noexec nodev relatime");
}

#[test]
fn remounts_change_what_is_there() {
    let mut bed = Bed::new("cat /proc/self/mountinfo; cat /plain/file");
    fs::create_dir(bed.rootfs("plain")).expect("a directory");
    fs::write(bed.rootfs("plain/file"), "here\n").expect("a file");
    let host = bed.path("host");
    fs::create_dir(&host).expect("a directory");
    add(&mut bed, json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": ["size=64k"]}));
    add(&mut bed, json!({"destination": "/t", "type": "tmpfs", "options": ["remount", "size=128k", "nosuid", "ro"]}));
    add(&mut bed, json!({"destination": "/b", "source": host, "options": ["bind"]}));
    add(&mut bed, json!({"destination": "/b", "options": ["remount", "bind", "ro", "noexec"]}));
    add(&mut bed, json!({"destination": "/dev", "options": ["remount", "bind", "ro"]}));
    add(&mut bed, json!({"destination": "/", "options": ["remount", "bind", "nodev"]}));
    let out = bed.says();
    mounted(&out, "/t").assert("a filesystem", "ro nosuid ^size=128k");
    mounted(&out, "/b").assert("a bind mount", "ro noexec");
    mounted(&out, "/dev").assert("the devices, which are made all the same", "ro");
    mounted(&out, "/").assert("the root", "nodev");
    assert!(out.ends_with("here\n"), "{out}");
    add(&mut bed, json!({"destination": "/plain", "options": ["remount", "bind", "ro"]}));
    let message = bed.refuses();
    assert!(message.contains("on `/plain`: cannot change the mount") && message.contains("earlier entry"), "{message}");
}

#[test]
fn a_tmpfs_takes_up_what_it_covers_also_when_read_only() {
    let mut bed =
        Bed::new("ls -ld /full /full/dir /full/link; cat /full/dir/file; touch /full/x 2>&1; cat /proc/self/mountinfo");
    fs::create_dir_all(bed.rootfs("full/dir")).expect("directories");
    fs::write(bed.rootfs("full/dir/file"), "copied\n").expect("a file");
    std::os::unix::fs::symlink("dir/file", bed.rootfs("full/link")).expect("a link");
    std::os::unix::fs::chown(bed.rootfs("full/dir"), Some(3), Some(4)).expect("an owner");
    bed.config["root"]["readonly"] = json!(false);
    add(
        &mut bed,
        json!({"destination": "/full", "type": "tmpfs", "source": "t", "options": ["tmpcopyup", "ro", "size=1m"]}),
    );
    let out = bed.says();
    assert!(out.contains("copied\n") && out.contains("-> dir/file") && out.contains(" 3 "), "{out}");
    assert!(out.contains("Read-only file system"), "{out}");
    mounted(&out, "/full").assert("copied up", "ro ^size=1024k");
    assert!(!bed.rootfs("full/x").exists());
}

#[test]
fn a_read_only_tmpfs_takes_mounts_and_devices_first() {
    let mut bed = Bed::new("ls /dev; readlink /dev/fd; cat /proc/self/mountinfo");
    let dev =
        bed.config["mounts"].as_array_mut().expect("mounts").iter_mut().find(|mount| mount["destination"] == "/dev");
    dev.expect("the devices")["options"].as_array_mut().expect("options").push(json!("ro"));
    add(&mut bed, json!({"destination": "/run", "type": "tmpfs", "source": "t", "options": ["ro"]}));
    add(&mut bed, json!({"destination": "/run/inner/most", "type": "tmpfs", "source": "t", "options": ["rw"]}));
    let out = bed.says();
    assert!(out.contains("null\n") && out.contains("/proc/self/fd\n"), "{out}");
    for (place, want) in [("/dev", "ro"), ("/dev/shm", "rw"), ("/run", "ro"), ("/run/inner/most", "rw")] {
        mounted(&out, place).assert(place, want);
    }
}

#[test]
fn mounts_on_one_place_lie_over_each_other_in_order() {
    let mut bed = Bed::new("cat /data/name; grep -c ' /data ' /proc/self/mountinfo");
    for name in ["first", "second"] {
        fs::create_dir(bed.path(name)).expect("a directory");
        fs::write(bed.path(name).join("name"), name).expect("a file");
        let source = bed.path(name);
        add(&mut bed, json!({"destination": "data", "source": source, "options": ["bind"]}));
    }
    assert_eq!(bed.says(), "second2\n");
}

/// Propagation of a bind mount whose source is shared on the host: `shared`, `master` or nothing.
#[test]
fn propagation_of_bind_mounts() {
    let cases: &[(&[&str], &str, &str)] = &[
        (&["rbind"], "master", "master"),
        (&["rbind", "private"], "", "master"),
        (&["rbind", "rprivate"], "", ""),
        (&["rbind", "slave"], "master", "shared"),
        (&["rbind", "rslave"], "master", "master"),
        (&["rbind", "shared"], "shared", "shared"),
        (&["rbind", "rshared"], "shared", "shared"),
        (&["rbind", "unbindable"], "unbindable", "shared"),
        (&["rbind", "runbindable"], "unbindable", "unbindable"),
        (&["rbind", "rslave", "rshared"], "shared master", "shared master"),
    ];
    let mut bed = Bed::new("cat /proc/self/mountinfo");
    let host = bed.path("host");
    fs::create_dir_all(host.join("sub")).expect("a directory");
    for (index, (options, _, _)) in cases.iter().enumerate() {
        add(&mut bed, json!({"destination": format!("/m/{index}"), "source": host, "options": options}));
    }
    let host = host.display();
    let script = format!("mount --bind {host} {host} && mount -t tmpfs t {host}/sub && mount --make-rshared {host}");
    let out = after(&script, &bed);
    let tags = |place: String| -> String {
        let found = mounted(&out, &place).tags;
        let names = found.split(' ').map(|tag| tag.split(':').next().unwrap_or(""));
        names.filter(|name| !name.is_empty()).collect::<Vec<_>>().join(" ")
    };
    for (index, (options, want, below)) in cases.iter().enumerate() {
        if options == &["rbind", "private"] {
            // Only the top; what is below stays as the source has it.
            assert_eq!(tags(format!("/m/{index}")), *want, "{options:?}");
            assert_eq!(tags(format!("/m/{index}/sub")), "shared", "{options:?}, below");
            continue;
        }
        assert_eq!(tags(format!("/m/{index}")), *want, "{options:?}");
        assert_eq!(tags(format!("/m/{index}/sub")), *below, "{options:?}, below");
    }
}

#[test]
fn propagation_of_the_root() {
    for (propagation, want) in [
        (json!(null), "master"),
        (json!(""), "master"),
        (json!("slave"), "master"),
        (json!("rslave"), "master"),
        (json!("private"), ""),
        (json!("rprivate"), ""),
        (json!("shared"), "shared"),
        (json!("rshared"), "shared"),
        (json!("unbindable"), "unbindable"),
        (json!("runbindable"), "unbindable"),
    ] {
        let mut bed = Bed::new("cat /proc/self/mountinfo");
        bed.config["linux"]["rootfsPropagation"] = propagation.clone();
        let bundle = bed.bundle();
        let out = after(&format!("mount --bind {0} {0} && mount --make-rshared {0} && cd {0}", bundle.display()), &bed);
        let tags = mounted(&out, "/").tags;
        assert!(tags.contains(want) && (want == "shared" || !tags.contains("shared")), "{propagation}: {tags:?}");
        assert!(!want.is_empty() || tags.is_empty(), "{propagation}: {tags:?}");
    }
}

/// What the host mounts later appears in a slave, and what the container mounts does not appear on the host.
#[test]
fn a_slave_root_follows_the_host_and_does_not_lead_it() {
    for (propagation, follows) in [("slave", true), ("private", false)] {
        let mut bed = Bed::new("sleep 1000");
        fs::create_dir(bed.rootfs("plugged")).expect("a directory");
        bed.config["root"]["readonly"] = json!(false);
        bed.config["linux"]["rootfsPropagation"] = json!(propagation);
        bed.save();
        let (bundle, name) = (bed.bundle(), id("slave"));
        let script = format!(
            "mount --bind {0} {0} && mount --make-rshared {0} && cd {0} && \"$0\" --root {1} run -d {2} </dev/null >/dev/null 2>&1 &&
             mkdir {0}/rootfs/plugged/in && mount -t tmpfs later {0}/rootfs/plugged && grep -c later /proc/$(cat {3})/mountinfo; \
             \"$0\" --root {1} exec {2} mount -t tmpfs inner /etc; grep -c ' inner ' /proc/self/mountinfo; \
             \"$0\" --root {1} delete --force {2}",
            bundle.display(),
            bed.path("state").display(),
            name,
            bed.path("pid").display(),
        );
        let script = script.replace("run -d", &format!("run -d --pid-file {}", bed.path("pid").display()));
        let output = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", &script, env!("CARGO_BIN_EXE_gantry-runtime")])
            .output()
            .expect("unshare");
        let out = String::from_utf8_lossy(&output.stdout);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(out, if follows { "1\n0\n" } else { "0\n0\n" }, "{propagation}: {err}");
    }
}

#[test]
fn a_read_only_root_is_and_mounts_in_it_are_not() {
    for readonly in [true, false] {
        let mut bed =
            Bed::new("touch /etc/x 2>/dev/null && echo etc; touch /dev/shm/x && echo shm; cat /proc/self/mountinfo");
        bed.config["root"]["readonly"] = json!(readonly);
        let out = bed.says();
        assert_eq!(out.contains("etc\n"), !readonly, "{out}");
        assert!(out.contains("shm\n"), "{out}");
        mounted(&out, "/").assert("the root", if readonly { "ro" } else { "rw" });
        mounted(&out, "/dev/shm").assert("a mount in it", "rw");
    }
}

#[test]
fn masked_and_read_only_paths_of_every_kind() {
    let mut bed = Bed::new(
        "for f in /m/dir /m/file /m/link /m/fifo; do ls -A $f 2>&1 | wc -l; done; cat /m/file | wc -c; cat /m/link | wc -c;
         touch /m/dir/x 2>&1; mkdir /r/dir/x 2>&1; echo x 2>&1 > /r/file; cat /r/dir/kept; rm /r/dir/kept 2>&1; touch /r/sub/t && echo written",
    );
    bed.config["root"]["readonly"] = json!(false);
    for directory in ["m/dir", "r/dir", "r/sub"] {
        fs::create_dir_all(bed.rootfs(directory)).expect("directories");
    }
    fs::write(bed.rootfs("m/dir/secret"), "secret").expect("a file");
    fs::write(bed.rootfs("m/file"), "secret").expect("a file");
    fs::write(bed.rootfs("m/real"), "secret").expect("a file");
    fs::write(bed.rootfs("r/file"), "kept\n").expect("a file");
    fs::write(bed.rootfs("r/dir/kept"), "kept\n").expect("a file");
    std::os::unix::fs::symlink("/m/real", bed.rootfs("m/link")).expect("a link");
    assert!(Command::new("mkfifo").arg(bed.rootfs("m/fifo")).status().expect("mkfifo").success());
    bed.config["linux"]["maskedPaths"] =
        json!(["/m/dir", "/m/file", "/m/link", "/m/fifo", "/m/none", "/m/file/below", "/m/dir", "/none/at/all"]);
    bed.config["linux"]["readonlyPaths"] = json!(["/r/dir", "/r/file", "/r/none", "/r/file/below", "/r//dir/../dir"]);
    let out = bed.says();
    assert!(out.starts_with("0\n1\n1\n1\n0\n0\n"), "{out}");
    assert_eq!(out.matches("Read-only file system").count(), 4, "two touch, mkdir, rm: {out}");
    assert!(out.ends_with("written\n"), "{out}");
    assert_eq!(fs::read_to_string(bed.rootfs("r/file")).expect("the file"), "kept\n");
}

/// The script that leaves only a v2 hierarchy to see.
const PURE_V2: &str = "umount -R -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup";

#[test]
fn cgroups_are_mounted_with_and_without_a_namespace_on_both_versions() {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        // A pure v2 host already: the hybrid half of this test has nothing to look at.
        return;
    }
    for (why, host, namespace, kind, options) in [
        ("hybrid with a namespace", "true", true, "cgroup", json!(["ro", "nosuid", "noexec", "nodev"])),
        ("hybrid without", "true", false, "cgroup", json!(["ro", "nosuid", "noexec", "nodev"])),
        ("v2 with a namespace", PURE_V2, true, "cgroup", json!(["ro", "nosuid"])),
        ("v2 without", PURE_V2, false, "cgroup", json!(["ro", "nosuid"])),
        ("v2 by its own name", PURE_V2, true, "cgroup2", json!(["ro", "nosuid"])),
        ("v2 writable", PURE_V2, true, "cgroup", json!(["rw", "nosuid"])),
        ("v2 writable without", PURE_V2, false, "cgroup2", json!(["rw", "nosuid"])),
    ] {
        let mut bed = Bed::new(
            "cd /sys/fs/cgroup; d=.; test -d pids && d=pids; cat $d/cgroup.procs; mkdir $d/made 2>/dev/null && echo made && rmdir $d/made;
             cat /proc/self/mountinfo",
        );
        let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
        let cgroup = mounts.iter_mut().find(|mount| mount["type"] == "cgroup").expect("the cgroup mount");
        (cgroup["type"], cgroup["options"]) = (json!(kind), options.clone());
        let namespaces = bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|entry| namespace || entry["type"] != "cgroup");
        std::os::unix::fs::symlink("busybox", bed.rootfs("bin/rmdir")).expect("an applet");
        let out = after(host, &bed);
        let writable = options[0] == "rw";
        assert!(out.starts_with("1\n"), "{why}: the container's processes are in the directory it sees: {out}");
        assert_eq!(out.contains("made\n"), writable, "{why}: {out}");
        let place = if host == "true" { "/sys/fs/cgroup/pids" } else { "/sys/fs/cgroup" };
        let found = mounted(&out, place);
        found.assert(why, if writable { "rw nosuid" } else { "ro nosuid" });
        assert_eq!(found.kind, if host == "true" { "cgroup" } else { "cgroup2" }, "{why}");
    }
}
