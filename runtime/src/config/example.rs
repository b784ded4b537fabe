//! The configuration that `gantry-runtime spec` writes.

use super::{
    Capabilities, Config, DeviceRule, IdMapping, Linux, Mount, Namespace, Process, Resources, Rlimit, Root, User,
};

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: Some(kind.to_owned()),
        source: Some(source.to_owned()),
        options: strings(options),
        ..Mount::default()
    }
}

/// A container with namespaces of its own for everything but users, few capabilities and a read-only root that runs
/// a shell, with a terminal if asked for.
pub fn config(terminal: bool) -> Config {
    let keep = strings(&["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    Config {
        oci_version: super::SPEC_VERSION.to_owned(),
        process: Some(Process {
            terminal,
            user: User::default(),
            args: strings(&["sh"]),
            env: strings(&["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"]),
            cwd: "/".to_owned(),
            capabilities: Some(Capabilities {
                bounding: keep.clone(),
                effective: keep.clone(),
                permitted: keep,
                ..Capabilities::default()
            }),
            rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".to_owned(), hard: 1024, soft: 1024 }],
            no_new_privileges: true,
            ..Process::default()
        }),
        root: Some(Root { path: "rootfs".to_owned(), readonly: true }),
        hostname: Some("gantry".to_owned()),
        mounts: mounts(),
        linux: Linux {
            resources: Resources {
                devices: vec![DeviceRule { access: Some("rwm".to_owned()), ..DeviceRule::default() }],
                ..Resources::default()
            },
            namespaces: ["pid", "network", "ipc", "uts", "mount", "cgroup"]
                .map(|kind| Namespace { kind: kind.to_owned(), path: None })
                .to_vec(),
            masked_paths: strings(&[
                "/proc/acpi",
                "/proc/asound",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/sys/firmware",
                "/proc/scsi",
            ]),
            readonly_paths: strings(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]),
            ..Linux::default()
        },
        ..Config::default()
    }
}

/// The same for an ordinary user: root in the container is that user, the network is the host's, and there are no
/// limits, which need rights.
pub fn rootless(mut config: Config, uid: u32, gid: u32) -> Config {
    let map = |host_id| vec![IdMapping { container_id: 0, host_id, size: 1 }];
    config.linux.uid_mappings = map(uid);
    config.linux.gid_mappings = map(gid);
    config.linux.namespaces.retain(|namespace| namespace.kind != "network");
    config.linux.namespaces.push(Namespace { kind: "user".to_owned(), path: None });
    config.linux.resources = Resources::default();
    for mount in &mut config.mounts {
        // Other groups than the user's own are not mapped.
        mount.options.retain(|option| !option.starts_with("gid=") && !option.starts_with("uid="));
        if mount.kind.as_deref() == Some("sysfs") {
            // A new sysfs shows the network of a network namespace that must be the user's own.
            let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
            *mount = self::mount("/sys", "none", "/sys", &options);
        }
    }
    config
}

fn mounts() -> Vec<Mount> {
    let locked = ["nosuid", "noexec", "nodev"];
    vec![
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &locked),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
}
