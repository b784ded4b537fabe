//! How and where a container's process runs: scheduler, I/O priority, CPUs, memory nodes, limits, personality.

mod common;

use common::{Bed, Ran, field, id, until};
use serde_json::{Value, json};
use std::process::Command;

/// Nice value, real-time priority and policy of the process that runs this in a shell.
const SCHEDULE: &str = "awk '{print $19, $40, $41}' /proc/self/stat; true";

#[test]
fn schedulers_are_as_told() {
    for (scheduler, want) in [
        (json!({"policy": "SCHED_OTHER", "nice": 7}), "7 0 0\n"),
        (json!({"policy": "SCHED_OTHER", "nice": -5}), "-5 0 0\n"),
        (json!({"policy": "SCHED_BATCH"}), "0 0 3\n"),
        (json!({"policy": "SCHED_IDLE"}), "0 0 5\n"),
        (json!({"policy": "SCHED_BATCH", "nice": -3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}), "0 0 3\n"),
    ] {
        let mut bed = Bed::new(SCHEDULE);
        bed.config["process"]["scheduler"] = scheduler.clone();
        assert_eq!(bed.says(), want, "{scheduler}");
    }
}

/// Whether this machine lets a process in the root cgroup have a real-time policy.
fn has_real_time(policy: &[&str]) -> bool {
    Command::new("chrt").args(policy).arg("true").output().is_ok_and(|output| output.status.success())
}

/// A container that may fail for want of budget: either it runs as told, or the error says what is missing.
fn real_time(scheduler: Value, want: &str) {
    let mut bed = Bed::new(&format!("{SCHEDULE}; cat /proc/1/stat | awk '{{print $41}}'"));
    bed.config["process"]["scheduler"] = scheduler.clone();
    let Ran { code, out, err } = bed.run(&["run", &id("rt")]);
    match code {
        0 => assert!(out.starts_with(want), "{scheduler}: {out}"),
        _ => assert!(
            err.contains("scheduler: cannot set `process.scheduler` to SCHED_") && err.contains("hint: "),
            "{scheduler}: {err}"
        ),
    }
}

#[test]
fn real_time_policies_run_or_say_what_they_lack() {
    real_time(json!({"policy": "SCHED_FIFO", "priority": 10}), "0 10 1\n");
    real_time(json!({"policy": "SCHED_RR", "priority": 99}), "0 99 2\n");
    if has_real_time(&["-d", "-T", "1000000", "-D", "20000000", "-P", "20000000", "0"]) {
        // It may fork only when its children are ordinary.
        let mut bed = Bed::new("read line < /proc/self/stat; echo $line | awk '{print $40, $41}'");
        bed.config["process"]["scheduler"] = json!({
            "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 20_000_000, "period": 20_000_000,
            "flags": ["SCHED_FLAG_RESET_ON_FORK"],
        });
        assert_eq!(bed.says(), "0 6\n");
    }
    let mut bed = Bed::new("true");
    bed.config["process"]["scheduler"] =
        json!({"policy": "SCHED_DEADLINE", "runtime": 30_000_000, "deadline": 20_000_000, "period": 20_000_000});
    let message = bed.refuses();
    assert!(message.contains("SCHED_DEADLINE: ") && message.contains("runtime <= deadline <= period"), "{message}");
    bed.config["process"]["scheduler"] = json!({"policy": "SCHED_ISO"});
    assert!(bed.refuses().contains("Linux has never had SCHED_ISO"));
}

#[test]
fn io_priorities_are_as_told_also_for_exec() {
    for (class, level, want) in [
        ("IOPRIO_CLASS_BE", 0, "best-effort: prio 0\n"),
        ("IOPRIO_CLASS_BE", 7, "best-effort: prio 7\n"),
        ("IOPRIO_CLASS_RT", 3, "realtime: prio 3\n"),
        ("IOPRIO_CLASS_IDLE", 0, "idle\n"),
    ] {
        let mut bed = Bed::new("sleep 1000");
        bed.config["process"]["ioPriority"] = json!({"class": class, "priority": level});
        let name = id("io");
        bed.ok(&["run", "-d", &name]);
        let of = |pid: i32| {
            let output = Command::new("ionice").arg("-p").arg(pid.to_string()).output().expect("ionice");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert_eq!(of(bed.pid(&name)), want);
        let file = bed.path("exec");
        bed.ok(&["exec", "-d", "--pid-file", &file.display().to_string(), &name, "sleep", "1000"]);
        let pid = std::fs::read_to_string(file).expect("a pid").trim().parse().expect("a number");
        assert_eq!(of(pid), want);
        bed.ok(&["delete", "--force", &name]);
    }
}

/// CPUs of this machine, as the kernel writes them.
fn cpus() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("the status");
    field(&status, "Cpus_allowed_list").to_owned()
}

#[test]
fn exec_runs_on_the_cpus_it_is_told() {
    let all = cpus();
    if !all.contains(['-', ',']) {
        return; // One CPU: there is nothing to choose.
    }
    let mut bed = Bed::new("grep Cpus_allowed_list /proc/self/status > /dev/shm/init; sleep 1000");
    bed.config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
    let name = id("cpus");
    bed.ok(&["run", "-d", &name]);
    let show = |args: &[&str]| {
        let out = bed.ok(args);
        field(&out, "Cpus_allowed_list").to_owned()
    };
    let seen = ["grep", "Cpus_allowed_list", "/proc/self/status"];
    assert_eq!(show(&[&["exec", &name][..], &seen].concat()), "1", "of the container's own process");
    until("the first process has looked", || bed.run(&["exec", &name, "cat", "/dev/shm/init"]).out.contains("list"));
    assert_eq!(show(&["exec", &name, "cat", "/dev/shm/init"]), all, "not for the first process");
    for (affinity, want) in [
        (json!({"initial": "1", "final": "0"}), "0"),
        (json!({"final": "0-1"}), "0-1"),
        (json!({"initial": "1"}), all.as_str()),
        (json!({}), all.as_str()),
        (json!(null), all.as_str()),
    ] {
        let process = json!({"args": seen, "cwd": "/", "env": ["PATH=/bin"], "execCPUAffinity": affinity});
        std::fs::write(bed.path("process.json"), process.to_string()).expect("a file");
        assert_eq!(show(&["exec", "-p", &bed.path("process.json").display().to_string(), &name]), want, "{affinity}");
    }
    for (affinity, want) in [
        (json!({"initial": "7000"}), "cannot set `process.execCPUAffinity.initial` to `7000`"),
        (json!({"final": "7000"}), "cannot set `process.execCPUAffinity.final` to `7000`"),
        (json!({"final": "1-"}), "$.process.execCPUAffinity.final: `1-` is not a list"),
    ] {
        let process = json!({"args": seen, "cwd": "/", "execCPUAffinity": affinity});
        std::fs::write(bed.path("process.json"), process.to_string()).expect("a file");
        let ran = bed.run(&["exec", "-p", &bed.path("process.json").display().to_string(), &name]);
        assert!(ran.code != 0 && ran.err.contains(want), "{affinity}: {ran:?}");
    }
    bed.ok(&["delete", "--force", &name]);
}

#[test]
fn the_cpus_of_the_cgroup_are_what_exec_gets_without_a_final_list() {
    if !cpus().contains(['-', ',']) {
        return;
    }
    let mut bed = Bed::new("sleep 1000");
    bed.config["linux"]["resources"]["cpu"] = json!({"cpus": "1"});
    bed.config["process"]["execCPUAffinity"] = json!({"initial": "0"});
    let name = id("cpuset");
    bed.ok(&["run", "-d", &name]);
    let out = bed.ok(&["exec", &name, "grep", "Cpus_allowed_list", "/proc/self/status"]);
    assert_eq!(field(&out, "Cpus_allowed_list"), "1");
    bed.ok(&["delete", "--force", &name]);
}

#[test]
fn memory_policies_are_as_told_also_for_exec() {
    for (policy, want) in [
        (json!({"mode": "MPOL_BIND", "nodes": "0"}), "bind:0"),
        (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}), "bind=static:0"),
        (json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]}), "interleave=relative:0"),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0"}), "prefer:0"),
        (json!({"mode": "MPOL_PREFERRED_MANY", "nodes": "0"}), "prefer (many):0"),
        (json!({"mode": "MPOL_LOCAL"}), "local"),
        (json!({"mode": "MPOL_DEFAULT"}), "default"),
    ] {
        let script = "head -1 /proc/self/numa_maps";
        let mut bed = Bed::new(&format!("{script}; sleep 1000"));
        bed.config["linux"]["memoryPolicy"] = policy.clone();
        bed.config["process"]["args"] = json!(["sleep", "1000"]);
        let name = id("numa");
        bed.ok(&["run", "-d", &name]);
        let of_init = std::fs::read_to_string(format!("/proc/{}/numa_maps", bed.pid(&name))).expect("numa_maps");
        let of_exec = bed.ok(&["exec", &name, "sh", "-c", script]);
        for (who, maps) in [("init", of_init), ("exec", of_exec)] {
            let first = maps.lines().next().expect("a line").split_once(' ').expect("words").1;
            assert!(first.starts_with(want), "{policy} of {who}: {first}");
        }
        bed.ok(&["delete", "--force", &name]);
    }
    let mut bed = Bed::new("true");
    bed.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "900"});
    let message = bed.refuses();
    assert!(
        message.contains("memory policy: cannot set `linux.memoryPolicy` to MPOL_BIND with nodes 900"),
        "{message}"
    );
}

#[test]
fn every_limit_by_its_name() {
    let mut bed = Bed::new("cat /proc/self/limits");
    // Below what any test machine has; the file shows them in its own words and units.
    let limits = [
        ("RLIMIT_AS", "Max address space", 1_000_000_000_u64),
        ("RLIMIT_CORE", "Max core file size", 4096),
        ("RLIMIT_CPU", "Max cpu time", 600),
        ("RLIMIT_DATA", "Max data size", 500_000_000),
        ("RLIMIT_FSIZE", "Max file size", 1_000_000),
        ("RLIMIT_LOCKS", "Max file locks", 77),
        ("RLIMIT_MEMLOCK", "Max locked memory", 4096),
        ("RLIMIT_MSGQUEUE", "Max msgqueue size", 8192),
        ("RLIMIT_NICE", "Max nice priority", 0),
        ("RLIMIT_NOFILE", "Max open files", 100),
        ("RLIMIT_NPROC", "Max processes", 50),
        ("RLIMIT_RSS", "Max resident set", 1_000_000),
        ("RLIMIT_RTPRIO", "Max realtime priority", 0),
        ("RLIMIT_RTTIME", "Max realtime timeout", 1_000_000),
        ("RLIMIT_SIGPENDING", "Max pending signals", 60),
        ("RLIMIT_STACK", "Max stack size", 8_000_000),
    ];
    bed.config["process"]["rlimits"] =
        limits.iter().map(|(kind, _, value)| json!({"type": kind, "soft": value, "hard": value})).collect();
    let out = bed.says();
    for (kind, words, value) in limits {
        let line = field(&out, words);
        let shown: Vec<&str> = line.split_whitespace().take(2).collect();
        assert_eq!(shown, [value.to_string(), value.to_string()], "{kind}");
    }
    bed.config["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": u64::MAX, "hard": u64::MAX}]);
    let unlimited = bed.run(&["run", &id("unlimited")]);
    assert!(unlimited.out.contains("unlimited") || unlimited.err.contains("CAP_SYS_RESOURCE"), "{unlimited:?}");
    bed.config["process"]["rlimits"] = json!([{"type": "RLIMIT_MOON", "soft": 1, "hard": 1}]);
    let message = bed.refuses();
    assert!(message.contains("$.process.rlimits[0].type: `RLIMIT_MOON` is not one of RLIMIT_AS, "), "{message}");
}

#[test]
fn both_personalities() {
    for (domain, number, machine) in [("LINUX", "00000000", std::env::consts::ARCH), ("LINUX32", "00000008", "i686")] {
        let mut bed = Bed::new("cat /proc/self/personality; uname -m");
        std::os::unix::fs::symlink("busybox", bed.rootfs("bin/uname")).expect("an applet");
        bed.config["linux"]["personality"] = json!({"domain": domain});
        let out = bed.says();
        assert!(out.starts_with(number), "{domain}: {out}");
        if std::env::consts::ARCH == "x86_64" {
            assert!(out.ends_with(&format!("{machine}\n")), "{domain}: {out}");
        }
    }
    let mut bed = Bed::new("true");
    bed.config["linux"]["personality"] = json!({"domain": "BSD"});
    assert!(bed.refuses().contains("$.linux.personality.domain: `BSD` is not one of LINUX, LINUX32"));
}

#[test]
fn masks_scores_and_names() {
    let mut bed =
        Bed::new("touch /dev/shm/f; stat -c %a /dev/shm/f; cat /proc/self/oom_score_adj /proc/sys/kernel/domainname");
    bed.config["domainname"] = json!("example.org");
    assert_eq!(
        bed.says(),
        format!("644\n{}example.org\n", std::fs::read_to_string("/proc/self/oom_score_adj").expect("a score"))
    );
    bed.config["process"]["user"]["umask"] = json!(0o077);
    bed.config["process"]["oomScoreAdj"] = json!(500);
    assert_eq!(bed.says(), "600\n500\nexample.org\n");
}

#[test]
fn kernel_parameters_in_every_form_and_none_of_the_host() {
    let mut bed = Bed::new(
        "cd /proc/sys; cat net/ipv4/ip_forward net/ipv4/conf/lo/forwarding fs/mqueue/msg_max kernel/sem kernel/domainname",
    );
    bed.config["linux"]["sysctl"] = json!({
        "net.ipv4.ip_forward": "1",
        "net/ipv4/conf/lo/forwarding": "0",
        "fs.mqueue.msg_max": "33",
        "kernel/sem": "250 32000 100 128",
        "kernel.domainname": "from.sysctl",
    });
    assert_eq!(bed.says(), "1\n0\n33\n250\t32000\t100\t128\nfrom.sysctl\n");
    for (name, kinds, want) in [
        ("kernel.core_pattern", &[][..], "is not a parameter of a namespace"),
        ("vm/swappiness", &[], "is not a parameter of a namespace"),
        ("kernel.hostname", &[], "is given beside `hostname`, which means the same"),
        ("net.ipv4.ip_forward", &["network"], "needs a `network` namespace"),
        ("kernel.shmmax", &["ipc"], "needs a `ipc` namespace"),
        ("net.ipv4.nothing", &[], "cannot write `1` to `/proc/sys/net/ipv4/nothing`"),
    ] {
        let mut bed = Bed::new("true");
        bed.config["linux"]["sysctl"] = json!({name: "1"});
        let namespaces = bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|entry| !kinds.contains(&entry["type"].as_str().expect("a kind")));
        let message = bed.refuses();
        assert!(message.contains(want), "{name}: {message}");
    }
    // Without `hostname`, its parameter is as good.
    let mut bed = Bed::new("hostname");
    bed.config["hostname"] = json!(null);
    bed.config["linux"]["sysctl"] = json!({"kernel.hostname": "by-sysctl"});
    assert_eq!(bed.says(), "by-sysctl\n");
    // A namespace joined by path may be the host's in disguise.
    let mut bed = Bed::new("true");
    bed.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "0"});
    bed.config["linux"]["namespaces"][1] = json!({"type": "network", "path": "/proc/self/ns/net"});
    let message = bed.refuses();
    assert!(message.contains("$.linux.sysctl.net.ipv4.ip_forward: would change the host"), "{message}");
}

#[test]
fn labels_that_this_kernel_would_not_enforce_are_refused() {
    let enabled = std::fs::read_to_string("/proc/filesystems").expect("filesystems").contains("selinuxfs");
    let apparmor = std::path::Path::new("/sys/module/apparmor/parameters/enabled").exists();
    let cases = [
        (!enabled, "/process/selinuxLabel", "system_u:system_r:container_t:s0", "$.process.selinuxLabel: `system_u:"),
        (!enabled, "/linux/mountLabel", "system_u:object_r:container_file_t:s0", "$.linux.mountLabel: `system_u:"),
        (
            !apparmor,
            "/process/apparmorProfile",
            "docker-default",
            "$.process.apparmorProfile: `docker-default` would not",
        ),
    ];
    for (refused, pointer, label, want) in cases {
        let mut bed = Bed::new("true");
        let (parent, key) = pointer.rsplit_once('/').expect("a key");
        bed.config.pointer_mut(parent).expect("the parent")[key] = json!(label);
        if refused {
            let message = bed.refuses();
            assert!(message.contains(want) && message.contains("hint: enable "), "{message}");
        }
    }
    if !apparmor {
        let mut bed = Bed::new("echo runs");
        bed.config["process"]["apparmorProfile"] = json!("unconfined");
        assert_eq!(bed.says(), "runs\n", "no profile is what a kernel without AppArmor has");
    }
}

#[test]
fn cache_shares_need_a_resctrl_filesystem() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    if mounts.contains(" - resctrl ") {
        return;
    }
    let mut bed = Bed::new("true");
    bed.config["linux"]["intelRdt"] = json!({"closID": "gold"});
    let message = bed.refuses();
    assert!(message.contains("resctrl: config.json: $.linux.intelRdt: no resctrl filesystem is mounted"), "{message}");
    assert!(message.contains("hint: `mount -t resctrl"), "{message}");
}
