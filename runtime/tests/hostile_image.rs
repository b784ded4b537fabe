//! Images that try to lead us out of the container: links, fake devices, fake procfs, leaked descriptors.
//!
//! Every case is either refused or stays inside, and a tree outside of the root filesystem is the same after it.

mod common;
#[path = "common/hostile.rs"]
mod hostile;

use common::{Bed, Ran, id};
use hostile::{CLIMB, Canary, with_leaks};
use rustix::fs::{CWD, FileType, Mode};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

#[test]
fn no_descriptor_of_the_host_is_a_working_directory() {
    let mut bed = Bed::new(CLIMB);
    fs::write(bed.rootfs("marker-inside"), "").expect("a file");
    symlink("/proc/self/fd/3", bed.rootfs("leak")).expect("a link");
    symlink("/proc/self/cwd", bed.rootfs("here")).expect("a link");
    let mut tried: Vec<String> = (0..24).map(|number| format!("/proc/self/fd/{number}")).collect();
    tried.extend(
        ["/proc/self/fd/3/etc", "/proc/1/fd/4", "/proc/self/root/../..", "/leak", "/here", "/leak/etc"]
            .map(str::to_owned),
    );
    let mut started = 0;
    let mut check = |cwd: &str, how: &str, ran: &Ran| {
        if ran.code == 0 {
            started += 1;
            assert!(ran.out.contains("marker-inside"), "{how} in {cwd} is outside: {}", ran.out);
        } else {
            assert!(ran.err.contains("working directory"), "{how} in {cwd}: {ran:?}");
        }
    };
    for cwd in &tried {
        bed.config["process"]["cwd"] = json!(cwd);
        check(cwd, "run", &with_leaks(&bed, &["run", &id("cwd")]));
        check(cwd, "run with kept descriptors", &with_leaks(&bed, &["run", "--preserve-fds", "5", &id("cwd")]));
    }
    let mut bed = Bed::new("sleep 1000");
    fs::write(bed.rootfs("marker-inside"), "").expect("a file");
    symlink("/proc/self/fd/3", bed.rootfs("leak")).expect("a link");
    symlink("/proc/self/cwd", bed.rootfs("here")).expect("a link");
    bed.config["root"]["readonly"] = json!(false);
    let name = id("into");
    bed.ok(&["run", "-d", &name]);
    for cwd in &tried {
        check(cwd, "exec", &with_leaks(&bed, &["exec", "--cwd", cwd, &name, "sh", "-c", CLIMB]));
        let kept = ["exec", "--preserve-fds", "5", "--cwd", cwd, &name, "sh", "-c", CLIMB];
        check(cwd, "exec with kept descriptors", &with_leaks(&bed, &kept));
    }
    assert!(started > 0, "some of them are inside, or the test tests nothing");
}

#[test]
fn exec_leaks_no_descriptor() {
    let bed = Bed::new("sleep 1000");
    let name = id("fds");
    bed.ok(&["run", "-d", &name]);
    let ran = with_leaks(&bed, &["exec", &name, "ls", "/proc/self/fd"]);
    assert_eq!(ran.out.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "3 is the directory listed");
}

#[test]
fn the_null_device_and_the_console_are_what_they_should_be() {
    let canary = Canary::new();
    let character = |path: &Path, major, minor| {
        let number = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), number).expect("a node");
    };
    let outside = canary.path().join("passwd");
    type Prepare<'a> = Box<dyn Fn(&Path) + 'a>;
    let cases: Vec<(&str, &str, Prepare<'_>)> = vec![
        ("a link", "null", Box::new(|at| symlink(&outside, at).expect("a link"))),
        ("a link to a device", "null", Box::new(|at| symlink("/dev/zero", at).expect("a link"))),
        ("a link to our descriptors", "null", Box::new(|at| symlink("/proc/self/fd/0", at).expect("a link"))),
        ("a file", "null", Box::new(|at| fs::write(at, "x").expect("a file"))),
        ("another device", "null", Box::new(|at| character(at, 1, 5))),
        ("a directory", "null", Box::new(|at| fs::create_dir(at).expect("a directory"))),
        ("a pipe", "null", Box::new(|at| rustix::fs::mknodat(CWD, at, FileType::Fifo, Mode::RUSR, 0).expect("a pipe"))),
        ("a console that is a link", "console", Box::new(|at| symlink(&outside, at).expect("a link"))),
        ("a console that is a link to null", "console", Box::new(|at| symlink("/dev/null", at).expect("a link"))),
        ("a console that is a directory", "console", Box::new(|at| fs::create_dir(at).expect("a directory"))),
    ];
    for (why, name, prepare) in cases {
        // The image's own /dev, with nothing mounted there but terminals.
        let mut bed = Bed::new("echo started");
        let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| {
            !mount["destination"].as_str().expect("a path").starts_with("/dev") || mount["type"] == "devpts"
        });
        fs::create_dir(bed.rootfs("dev")).expect("dev");
        fs::create_dir(bed.rootfs("dev/pts")).expect("pts");
        prepare(&bed.rootfs("dev").join(name));
        bed.config["root"]["readonly"] = json!(false);
        bed.config["process"]["terminal"] = json!(name == "console");
        let ran = bed.run(&["run", &id("dev")]);
        assert!(ran.code == 1 && !ran.out.contains("started"), "{why}: {ran:?}");
        assert!(ran.err.contains(name), "{why}: {}", ran.err);
        canary.assert_untouched(why);
    }
}

#[test]
fn links_of_the_image_lead_nowhere() {
    let canary = Canary::new();
    let deep = format!("{}{}", "../".repeat(20), canary.path().display());
    let absolute = canary.path().display().to_string();
    let by_fd = format!("/proc/self/root{absolute}");
    let by_init = format!("/proc/1/root{absolute}");
    let mut refused = 0;
    for (why, target) in [
        ("absolute", absolute.as_str()),
        ("relative", &deep),
        ("magic root", &by_fd),
        ("magic root of process 1", &by_init),
        ("magic working directory", "/proc/self/cwd"),
        ("magic descriptor", "/proc/self/fd/3"),
        ("procfs", "/proc/sys"),
        ("procfs, relative", "proc/self/attr"),
        ("sysfs", "/sys/fs"),
        ("devices", "/dev"),
        ("itself", "target"),
    ] {
        for (what, mount) in [
            ("a tmpfs", json!({"type": "tmpfs"})),
            ("a directory", json!({"type": "bind", "source": "/etc", "options": ["rbind", "ro"]})),
            ("a file", json!({"type": "bind", "source": "/etc/hostname", "options": ["bind"]})),
            ("a copy", json!({"type": "tmpfs", "options": ["tmpcopyup"]})),
        ] {
            for place in ["/target", "/target/new", "/target/etc", "/volume/target/new"] {
                let mut bed = Bed::new("echo started");
                bed.config["root"]["readonly"] = json!(false);
                symlink(target, bed.rootfs("target")).expect("a link");
                let volume = bed.path("volume");
                fs::create_dir(&volume).expect("a volume");
                symlink(target, volume.join("target")).expect("a link");
                let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
                mounts.push(json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]}));
                let mut mount = mount.clone();
                mount["destination"] = json!(place);
                mounts.push(mount);
                bed.save();
                let ran = with_leaks(&bed, &["run", &id("link")]);
                let why = format!("{what} on {place}, which is {why}: {ran:?}");
                assert!(ran.code == 0 && ran.out == "started\n" || ran.code == 1, "{why}");
                // From the volume, a relative one leads to a place in the volume.
                let trusted = target.contains("proc") || target.starts_with("/sys") || target == "/dev";
                if trusted && !(place.starts_with("/volume") && target.starts_with("proc")) {
                    assert_eq!(ran.code, 1, "{why}");
                }
                refused += u32::from(ran.code == 1);
                canary.assert_untouched(&why);
            }
        }
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn the_trusted_directories_are_no_links() {
    let canary = Canary::new();
    let outside = canary.path().display().to_string();
    for (name, target) in [
        ("proc", outside.as_str()),
        ("proc", "etc"),
        ("sys", "/proc"),
        ("sys/fs", &outside),
        ("sys/fs/cgroup", &outside),
        ("dev", &outside),
        ("dev", "../../../../dev"),
        ("dev/shm", &outside),
        ("dev/pts", "/proc"),
        ("dev/mqueue", &outside),
    ] {
        let mut bed = Bed::new("echo started");
        // Without the filesystem above it, which would cover the link.
        if let Some((above, _)) = name.rsplit_once('/') {
            let above = format!("/{}", above.split('/').next().expect("a name"));
            bed.config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != above.as_str());
        }
        let path = bed.rootfs(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        symlink(target, &path).expect("a link");
        let ran = bed.run(&["run", &id("trust")]);
        assert!(ran.code == 1 && ran.err.contains(&format!("/{name}")), "{name} to {target}: {ran:?}");
        canary.assert_untouched(name);
    }
}

#[test]
fn a_fake_procfs_takes_no_writes() {
    let canary = Canary::new();
    let fake = |bed: &mut Bed| {
        for mount in bed.config["mounts"].as_array_mut().expect("mounts") {
            if mount["destination"] == "/proc" {
                *mount = json!({"destination": "/proc", "type": "bind", "source": canary.path(), "options": ["rbind"]});
            }
        }
        let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({"destination": "/real", "type": "proc", "source": "proc"}));
        bed.config["linux"]["readonlyPaths"] = json!([]);
        bed.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.domainname": "example.org"});
    };
    let mut bed = Bed::new("cat /real/sys/net/ipv4/ip_forward /real/sys/kernel/domainname; sleep 1000");
    fake(&mut bed);
    let name = id("fake");
    let supervised = bed.supervised();
    let mut args = vec!["run", "--detach", &name];
    args.extend(supervised.iter().map(String::as_str));
    bed.ok(&args);
    common::until("the real parameters are set", || bed.logged() == "1\nexample.org\n");
    let process = json!({"args": ["cat", "/real/self/oom_score_adj"], "cwd": "/", "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0}, "oomScoreAdj": 777});
    fs::write(bed.path("process.json"), process.to_string()).expect("a file");
    let file = bed.path("process.json").display().to_string();
    assert_eq!(bed.ok(&["exec", "--process", &file, &name]), "777\n");
    canary.assert_untouched("sysctl and score");
    // A label is set for real, or, on a kernel without the module, not at all.
    let mut bed = Bed::new("cat /real/self/attr/current");
    fake(&mut bed);
    bed.config["process"]["apparmorProfile"] = json!("gantry-test-no-such-profile");
    let ran = bed.run(&["run", &id("label")]);
    assert!(ran.code == 1 && ran.err.contains("AppArmor"), "{ran:?}");
    canary.assert_untouched("label");
}

#[test]
fn cgroups_of_others_are_out_of_reach() {
    // Everything the container sees of the hierarchies refuses writes, and ends at its own directory.
    let script = "for f in $(ls -d /sys/fs/cgroup/*/* /sys/fs/cgroup/* 2>/dev/null); do
            [ -f $f ] && echo 1 2>/dev/null > $f && echo wrote $f; done
        mkdir /sys/fs/cgroup/*/new 2>/dev/null && echo made
        for f in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent; do [ -e $f ] && echo agent $f; done
        ls -d /sys/fs/cgroup/*/gantry-runtime /sys/fs/cgroup/gantry-runtime 2>/dev/null; echo end";
    for own_namespace in [true, false] {
        let mut bed = Bed::new(script);
        if !own_namespace {
            bed.config["linux"]["namespaces"]
                .as_array_mut()
                .expect("namespaces")
                .retain(|kind| kind["type"] != "cgroup");
        }
        assert_eq!(bed.says(), "end\n", "own namespace: {own_namespace}");
    }
    // Writable if the bundle says so, and still its own directory only.
    let mut bed = Bed::new(
        "mkdir /sys/fs/cgroup/pids/new 2>/dev/null || mkdir /sys/fs/cgroup/new && echo made
         ls -d /sys/fs/cgroup/*/gantry-runtime /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/gantry-runtime 2>/dev/null; echo end",
    );
    for mount in bed.config["mounts"].as_array_mut().expect("mounts") {
        if mount["type"] == "cgroup" {
            mount["options"] = json!(["nosuid", "noexec", "nodev"]);
        }
    }
    assert_eq!(bed.says(), "made\nend\n");
}

#[test]
fn a_passwd_file_that_never_ends_stops_nobody() {
    for kind in ["pipe", "endless device", "directory", "descriptor"] {
        let mut bed = Bed::new("echo $HOME");
        bed.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        let passwd = bed.rootfs("etc/passwd");
        match kind {
            "pipe" => rustix::fs::mknodat(CWD, &passwd, FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("a pipe"),
            "endless device" => symlink("/dev/zero", &passwd).expect("a link"),
            "directory" => fs::create_dir(&passwd).expect("a directory"),
            _ => symlink("/proc/self/fd/0", &passwd).expect("a link"),
        }
        assert_eq!(bed.says(), "/\n", "{kind}");
    }
}
