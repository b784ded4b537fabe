//! What is mounted in a container, and which parts of `/proc` and `/sys` it does not see.

use serde_json::{Value, json};

use super::{INIT_PATH, Mount, MountKind, Overrides, bad, text};
use crate::error::Result;

/// Docker's size of `/dev/shm`.
const SHM_SIZE: u64 = 64 << 20;

/// Hidden, because they tell of the host or reach its hardware.
pub(super) const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// To be read, but not written.
pub(super) const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": target, "type": kind, "source": source, "options": options })
}

fn defaults(overrides: &Overrides) -> Vec<Value> {
    let access = if overrides.privileged { "rw" } else { "ro" };
    let size = format!("size={}", overrides.shm_size.unwrap_or(SHM_SIZE));
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size]),
    ]
}

/// The defaults and what the user wants; a user's mount at the same place replaces a default. What lies inside of
/// something else comes after it.
pub(super) fn mounts(overrides: &Overrides) -> Result<Value> {
    let mut own = overrides.mounts.iter().map(entry).collect::<Result<Vec<_>>>()?;
    if let Some(program) = &overrides.init {
        let program = text("init", program)?;
        own.push(json!({ "destination": INIT_PATH, "type": "bind", "source": program, "options": ["bind", "ro", "nosuid", "nodev"] }));
    }
    let place = |mount: &Value| mount["destination"].as_str().unwrap_or_default().to_owned();
    let mut all = defaults(overrides);
    all.retain(|default| !own.iter().any(|mount| place(mount) == place(default)));
    all.extend(own);
    all.sort_by_key(|mount| depth(&place(mount)));
    Ok(Value::Array(all))
}

fn depth(path: &str) -> usize {
    path.split('/').filter(|part| !part.is_empty()).count()
}

fn entry(mount: &Mount) -> Result<Value> {
    let target = normal(&mount.target)?;
    let mut options: Vec<String> = Vec::new();
    let (kind, source) =
        match mount.kind {
            MountKind::Tmpfs => {
                options.extend(["nosuid", "nodev"].map(str::to_owned));
                if !mount.options.iter().any(|option| option == "exec") {
                    options.push("noexec".into());
                }
                ("tmpfs", "tmpfs".to_owned())
            }
            MountKind::Bind | MountKind::Volume => {
                if !mount.source.is_absolute() {
                    return Err(bad("mount source", mount.source.display().to_string(), "must be an absolute path"));
                }
                if !mount.options.iter().any(|option| option == "bind" || option == "rbind") {
                    options.push("rbind".into());
                }
                if !mount.options.iter().any(|option| {
                    option.ends_with("shared") || option.ends_with("slave") || option.ends_with("private")
                }) {
                    options.push("rprivate".into());
                }
                ("bind", text("mount source", &mount.source)?.to_owned())
            }
        };
    options.extend(mount.options.iter().cloned());
    options.push(if mount.read_only { "ro" } else { "rw" }.to_owned());
    Ok(json!({ "destination": target, "type": kind, "source": source, "options": options }))
}

/// An absolute path without `.`, `..` and doubled slashes; not the root directory.
fn normal(target: &str) -> Result<String> {
    let parts: Vec<&str> = target.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if !target.starts_with('/') || parts.contains(&"..") || target.contains('\0') {
        return Err(bad("mount target", target, "must be an absolute path without `..`"));
    }
    if parts.is_empty() {
        return Err(bad("mount target", target, "must not be the root directory"));
    }
    Ok(format!("/{}", parts.join("/")))
}
