//! Is this configuration one that can be carried out exactly? If not, which key stands in the way?
//!
//! Pure: looks at the configuration only. What depends on the host is found by the step that needs it.

use super::{Config, Process, SPEC_VERSION};
use crate::container::idmap;
use crate::container::namespaces::Kind;
use crate::container::{net_devices, resctrl, rlimits, scheduling, sysctl};
use std::collections::BTreeSet;

/// A key that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Known to the specification, not to this runtime.
    #[error("config.json: $.{path} is not supported by this runtime")]
    Unsupported {
        /// JSON path.
        path: String,
    },
    /// A value that is wrong by itself or beside another.
    #[error("config.json: $.{path}: {problem}")]
    Invalid {
        /// JSON path.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

impl ConfigError {
    /// What the operator can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unsupported { path } => Some(format!("remove `{path}` from config.json, or use another runtime")),
            Self::Invalid { .. } => None,
        }
    }
}

fn unsupported(path: impl Into<String>) -> ConfigError {
    ConfigError::Unsupported { path: path.into() }
}

fn invalid(path: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { path: path.into(), problem: problem.into() }
}

/// Check a whole configuration.
///
/// # Errors
/// The first key that cannot be carried out.
pub fn check(config: &Config) -> Result<(), ConfigError> {
    check_version(&config.oci_version)?;
    if config.vm.is_some() {
        return Err(unsupported("vm"));
    }
    let root = config.root.as_ref().ok_or_else(|| invalid("root", "is missing"))?;
    if root.path.is_empty() {
        return Err(invalid("root.path", "is empty; a directory is wanted, relative to the bundle or absolute"));
    }
    if root.path.contains('\0') {
        return Err(invalid("root.path", "contains a zero byte"));
    }
    if leaves(&root.path) {
        let problem = format!("`{}` leaves the bundle; give a path below it, or an absolute one", root.path);
        return Err(invalid("root.path", problem));
    }
    if config.annotations.contains_key("") {
        return Err(invalid("annotations", "has an empty key"));
    }
    match &config.process {
        Some(process) => check_process(process, "process")?,
        None => return Err(invalid("process", "is missing, so there is nothing to run")),
    }
    check_mounts(config)?;
    check_namespaces(config)?;
    check_linux(config)?;
    check_hooks(config)
}

/// Major and minor number of a semantic version.
fn version(text: &str) -> Option<(u32, u32)> {
    let core = text.split(['-', '+']).next()?;
    let mut parts = core.split('.').map(|part| part.parse::<u32>().ok());
    let (major, minor, _patch) = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some((major, minor))
}

/// Versions 1.x are compatible by semantic versioning.
fn check_version(text: &str) -> Result<(), ConfigError> {
    match version(text) {
        Some((1, _)) => Ok(()),
        _ => Err(invalid("ociVersion", format!("`{text}` is not a version of the form 1.x.y, up to {SPEC_VERSION}"))),
    }
}

/// What the operator should know about a configuration that is carried out.
pub fn warnings(config: &Config) -> Vec<String> {
    let newer = version(&config.oci_version) > version(SPEC_VERSION);
    let text = format!(
        "config.json: $.ociVersion: `{}` is newer than {SPEC_VERSION}; keys that came later are ignored",
        config.oci_version
    );
    if newer { vec![text] } else { Vec::new() }
}

/// Whether a relative path goes above where it starts.
fn leaves(path: &str) -> bool {
    let mut depth = 0_i64;
    !path.starts_with('/')
        && path.split('/').any(|part| {
            depth += match part {
                "" | "." => 0,
                ".." => -1,
                _ => 1,
            };
            depth < 0
        })
}

/// A wrong value below a key, as the modules that know the values report it.
fn below<T>(at: &str, result: Result<T, (&'static str, String)>) -> Result<(), ConfigError> {
    result.map(drop).map_err(|(key, problem)| invalid(format!("{at}.{key}"), problem))
}

/// The kernel takes the highest number for "no change".
fn check_id(id: Option<u32>, path: &str) -> Result<(), ConfigError> {
    if id == Some(u32::MAX) { Err(invalid(path, format!("{} is no ID", u32::MAX))) } else { Ok(()) }
}

/// Check a process, of the container or for `exec`.
///
/// # Errors
/// The first key that cannot be carried out.
pub fn check_process(process: &Process, at: &str) -> Result<(), ConfigError> {
    if process.args.is_empty() {
        return Err(invalid(format!("{at}.args"), "is empty; its first entry must name a program"));
    }
    for (index, text) in process.args.iter().enumerate() {
        if text.contains('\0') {
            return Err(invalid(format!("{at}.args[{index}]"), "contains a zero byte"));
        }
    }
    for (index, text) in process.env.iter().enumerate() {
        if text.contains('\0') {
            return Err(invalid(format!("{at}.env[{index}]"), "contains a zero byte"));
        }
    }
    if !process.cwd.starts_with('/') {
        return Err(invalid(format!("{at}.cwd"), format!("`{}` is not an absolute path", process.cwd)));
    }
    let groups = process.user.additional_gids.iter();
    for (id, key) in [(&process.user.uid, "uid"), (&process.user.gid, "gid")]
        .into_iter()
        .chain(groups.map(|gid| (gid, "additionalGids")))
    {
        check_id(Some(*id), &format!("{at}.user.{key}"))?;
    }
    if process.user.umask.is_some_and(|umask| umask > 0o777) {
        return Err(invalid(format!("{at}.user.umask"), "is more than 0777 (511)"));
    }
    if let Some(value) = process.oom_score_adj.filter(|value| !(-1000..=1000).contains(value)) {
        return Err(invalid(format!("{at}.oomScoreAdj"), format!("{value} is outside -1000 to 1000")));
    }
    if let Some(wanted) = &process.scheduler {
        below(&format!("{at}.scheduler"), scheduling::attributes(wanted))?;
    }
    if let Some(wanted) = &process.io_priority {
        below(&format!("{at}.ioPriority"), scheduling::io_priority(wanted))?;
    }
    if let Some(wanted) = &process.exec_cpu_affinity {
        below(&format!("{at}.execCPUAffinity"), scheduling::affinity(wanted))?;
    }
    let mut seen = BTreeSet::new();
    for (index, rlimit) in process.rlimits.iter().enumerate() {
        let path = format!("{at}.rlimits[{index}]");
        if rlimits::resource(&rlimit.kind).is_none() {
            let problem = format!("`{}` is not one of {}", rlimit.kind, rlimits::names());
            return Err(invalid(format!("{path}.type"), problem));
        }
        if rlimit.soft > rlimit.hard {
            return Err(invalid(path, format!("soft limit {} is above hard limit {}", rlimit.soft, rlimit.hard)));
        }
        if !seen.insert(&rlimit.kind) {
            return Err(invalid(path, format!("`{}` is given twice", rlimit.kind)));
        }
    }
    Ok(())
}

/// Files in `/proc` that lxcfs and the like may put something else over; everything else there would let an image
/// fool the runtime or its own security settings.
const PROC_FILES_TO_COVER: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Whether a relative path begins, after all, with `..`. An absolute one cannot leave: `/..` is `/`.
fn leaves_root(path: &str) -> bool {
    let mut depth = 0_usize;
    !path.starts_with('/')
        && path.split('/').any(|part| match part {
            "" | "." => false,
            ".." if depth == 0 => true,
            ".." => {
                depth -= 1;
                false
            }
            _ => {
                depth += 1;
                false
            }
        })
}

fn check_mounts(config: &Config) -> Result<(), ConfigError> {
    for (index, mount) in config.mounts.iter().enumerate() {
        let path = format!("mounts[{index}]");
        if mount.destination.is_empty() {
            return Err(invalid(format!("{path}.destination"), "is empty; it must be a path in the container"));
        }
        if leaves_root(&mount.destination) {
            let problem = format!("`{}` leaves the root filesystem; use an absolute path", mount.destination);
            return Err(invalid(format!("{path}.destination"), problem));
        }
        let clean = crate::container::path::clean(&mount.destination);
        let options = crate::container::options::parse(&mount.options)
            .map_err(|error| invalid(format!("{path}.options"), error.to_string()))?;
        let bind = options.bind.is_some() || mount.kind.as_deref() == Some("bind");
        if bind && mount.source.as_deref().unwrap_or("").is_empty() && !options.remount {
            return Err(invalid(format!("{path}.source"), "is missing, a bind mount needs one"));
        }
        if !bind && !options.remount && mount.kind.as_deref().unwrap_or("").is_empty() {
            return Err(invalid(format!("{path}.type"), "is missing, and the mount is not a bind mount"));
        }
        if clean.starts_with("/proc/") && !(bind && PROC_FILES_TO_COVER.contains(&clean.as_str())) {
            let problem = format!("`{clean}` lies inside /proc, which the runtime must be able to trust");
            return Err(invalid(format!("{path}.destination"), problem));
        }
        check_mount_map(config, mount, &options, &path)?;
        if clean == "/" && !options.remount {
            return Err(invalid(format!("{path}.destination"), "is the root itself"));
        }
    }
    Ok(())
}

/// An ID map of a mount: both halves, or that of the container's user namespace.
fn check_mount_map(
    config: &Config,
    mount: &super::Mount,
    options: &crate::container::options::Options,
    path: &str,
) -> Result<(), ConfigError> {
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    let asks = options.idmap.is_some() || !uids.is_empty() || !gids.is_empty();
    if !asks {
        return Ok(());
    }
    for (half, other, key) in [(uids, gids, "gidMappings"), (gids, uids, "uidMappings")] {
        if !half.is_empty() && other.is_empty() {
            return Err(invalid(format!("{path}.{key}"), "is missing, an ID-mapped mount needs both maps"));
        }
    }
    if uids.is_empty() && options.own_map.is_none() && config.namespace("user").is_none() {
        let problem = "asks for an ID map, but neither the mount nor a user namespace has one";
        return Err(invalid(format!("{path}.options"), problem));
    }
    if options.remount {
        return Err(invalid(path, "cannot change the ID map of a mount that is there"));
    }
    if matches!(mount.kind.as_deref(), Some("cgroup" | "cgroup2")) {
        return Err(invalid(path, "is a cgroup filesystem, whose IDs cannot be mapped"));
    }
    check_map(uids, &format!("{path}.uidMappings"))?;
    check_map(gids, &format!("{path}.gidMappings"))
}

fn check_map(map: &[super::IdMapping], path: &str) -> Result<(), ConfigError> {
    idmap::check(map).map_err(|(index, problem)| invalid(format!("{path}[{index}]"), problem))
}

/// Without a mount namespace of its own the container has its root and no mount: one would stay on the host.
fn check_shared_mounts(config: &Config) -> Result<(), ConfigError> {
    let linux = &config.linux;
    for (asks, key) in [
        (!config.mounts.is_empty(), "mounts"),
        (config.root.as_ref().is_some_and(|root| root.readonly), "root.readonly"),
        (!linux.masked_paths.is_empty(), "linux.maskedPaths"),
        (!linux.readonly_paths.is_empty(), "linux.readonlyPaths"),
        (linux.rootfs_propagation.as_deref().is_some_and(|text| !text.is_empty()), "linux.rootfsPropagation"),
    ] {
        if asks {
            let problem =
                "cannot be carried out: `linux.namespaces` has no `mount`, and the host's mounts stay as they are";
            return Err(invalid(key, problem));
        }
    }
    Ok(())
}

/// Every ID of the process must exist in the user namespace that is made for it.
fn check_mapped(config: &Config) -> Result<(), ConfigError> {
    let Some(process) = &config.process else { return Ok(()) };
    let (uids, gids) = (&config.linux.uid_mappings, &config.linux.gid_mappings);
    let user = &process.user;
    let groups = user.additional_gids.iter().enumerate();
    let groups = groups.map(|(index, &gid)| (gids, gid, format!("additionalGids[{index}]"), "linux.gidMappings"));
    for (map, id, key, name) in [
        (uids, user.uid, "uid".to_owned(), "linux.uidMappings"),
        (gids, user.gid, "gid".to_owned(), "linux.gidMappings"),
    ]
    .into_iter()
    .chain(groups)
    {
        if idmap::to_host(map, id).is_none() {
            let problem = format!("{id} is not in `{name}`, so it does not exist in the container");
            return Err(invalid(format!("process.user.{key}"), problem));
        }
    }
    Ok(())
}

fn check_namespaces(config: &Config) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    for (index, namespace) in config.linux.namespaces.iter().enumerate() {
        let path = format!("linux.namespaces[{index}]");
        let Some(kind) = Kind::parse(&namespace.kind) else {
            return Err(invalid(
                format!("{path}.type"),
                format!("`{}` is not one of {}", namespace.kind, Kind::ALL.map(Kind::name).join(", ")),
            ));
        };
        if !seen.insert(kind) {
            return Err(invalid(path, format!("`{}` is given twice", namespace.kind)));
        }
        if namespace.joined().is_some_and(|file| !file.starts_with('/')) {
            let file = namespace.joined().unwrap_or("");
            return Err(invalid(format!("{path}.path"), format!("`{file}` is not an absolute path")));
        }
    }
    if !seen.contains(&Kind::Mount) {
        check_shared_mounts(config)?;
    }
    let maps = !config.linux.uid_mappings.is_empty() || !config.linux.gid_mappings.is_empty();
    if config.makes("user") {
        for (empty, key) in [
            (config.linux.uid_mappings.is_empty(), "linux.uidMappings"),
            (config.linux.gid_mappings.is_empty(), "linux.gidMappings"),
        ] {
            if empty {
                return Err(invalid(key, "is empty, but a new user namespace needs a map"));
            }
        }
        check_map(&config.linux.uid_mappings, "linux.uidMappings")?;
        check_map(&config.linux.gid_mappings, "linux.gidMappings")?;
        check_mapped(config)?;
    } else if maps && config.namespace("user").is_none() {
        return Err(invalid("linux.uidMappings", "is given without a user namespace"));
    }
    if config.hostname.as_deref().is_some_and(|name| !name.is_empty()) && config.namespace("uts").is_none() {
        return Err(invalid("hostname", "needs a `uts` namespace, else it would rename the host"));
    }
    if config.domainname.as_deref().is_some_and(|name| !name.is_empty()) && config.namespace("uts").is_none() {
        return Err(invalid("domainname", "needs a `uts` namespace, else it would rename the host"));
    }
    if !config.linux.time_offsets.is_empty() && !config.makes("time") {
        return Err(invalid("linux.timeOffsets", "needs a new `time` namespace"));
    }
    for clock in config.linux.time_offsets.keys() {
        if clock != "monotonic" && clock != "boottime" {
            return Err(invalid(
                format!("linux.timeOffsets.{clock}"),
                format!("`{clock}` is not `monotonic` or `boottime`"),
            ));
        }
    }
    Ok(())
}

fn check_linux(config: &Config) -> Result<(), ConfigError> {
    let linux = &config.linux;
    if let Some(policy) = &linux.memory_policy {
        below("linux.memoryPolicy", scheduling::memory_policy(policy))?;
    }
    if let Some(rdt) = &linux.intel_rdt {
        below("linux.intelRdt", resctrl::check(rdt))?;
    }
    check_net_devices(config)?;
    for name in linux.sysctl.keys() {
        sysctl::check(config, name).map_err(|problem| invalid(format!("linux.sysctl.{name}"), problem))?;
    }
    if let Some(propagation) = &linux.rootfs_propagation
        && crate::container::options::propagation(propagation).is_none()
        && !propagation.is_empty()
    {
        return Err(invalid(
            "linux.rootfsPropagation",
            format!("`{propagation}` is not one of shared, slave, private, unbindable"),
        ));
    }
    for (key, paths) in [("maskedPaths", &linux.masked_paths), ("readonlyPaths", &linux.readonly_paths)] {
        for (index, path) in paths.iter().enumerate() {
            if !path.starts_with('/') {
                return Err(invalid(format!("linux.{key}[{index}]"), format!("`{path}` is not an absolute path")));
            }
        }
    }
    for (index, device) in linux.devices.iter().enumerate() {
        let path = format!("linux.devices[{index}]");
        if !matches!(device.kind.as_str(), "c" | "b" | "u" | "p") {
            return Err(invalid(format!("{path}.type"), format!("`{}` is not one of c, b, u, p", device.kind)));
        }
        if device.kind != "p" && (device.major.is_none() || device.minor.is_none()) {
            return Err(invalid(path, "needs `major` and `minor`"));
        }
        check_id(device.uid, &format!("{path}.uid"))?;
        check_id(device.gid, &format!("{path}.gid"))?;
        if !device.path.starts_with('/') {
            return Err(invalid(format!("{path}.path"), format!("`{}` is not an absolute path", device.path)));
        }
    }
    if let Some(personality) = &linux.personality {
        if !matches!(personality.domain.as_str(), "LINUX" | "LINUX32") {
            let problem = format!("`{}` is not one of LINUX, LINUX32", personality.domain);
            return Err(invalid("linux.personality.domain", problem));
        }
        if !personality.flags.is_empty() {
            return Err(unsupported("linux.personality.flags"));
        }
    }
    if let Some(path) = &linux.cgroups_path
        && path.split('/').any(|part| part == "..")
    {
        return Err(invalid(
            "linux.cgroupsPath",
            format!("`{path}` contains `..`; it must stay below the cgroup mounts"),
        ));
    }
    Ok(())
}

fn check_net_devices(config: &Config) -> Result<(), ConfigError> {
    let devices = &config.linux.net_devices;
    if !devices.is_empty() && config.namespace(Kind::Network.name()).is_none() {
        return Err(invalid("linux.netDevices", "needs a `network` namespace to move the devices to"));
    }
    let mut seen = BTreeSet::new();
    for (name, device) in devices {
        let path = format!("linux.netDevices.{name}");
        net_devices::check_name(name).map_err(|problem| invalid(path.clone(), problem))?;
        let new = device.name.as_deref().filter(|name| !name.is_empty()).unwrap_or(name);
        net_devices::check_name(new).map_err(|problem| invalid(format!("{path}.name"), problem))?;
        if !new.contains('%') && !seen.insert(new) {
            return Err(invalid(format!("{path}.name"), format!("`{new}` is the name of another device, too")));
        }
    }
    Ok(())
}

fn check_hooks(config: &Config) -> Result<(), ConfigError> {
    for (key, list) in config.hooks.each() {
        for (index, hook) in list.iter().enumerate() {
            let path = format!("hooks.{key}[{index}]");
            if !hook.path.starts_with('/') {
                return Err(invalid(format!("{path}.path"), format!("`{}` is not an absolute path", hook.path)));
            }
            if let Some(seconds) = hook.timeout.filter(|seconds| *seconds <= 0) {
                return Err(invalid(format!("{path}.timeout"), format!("{seconds} is not more than zero")));
            }
            let texts = [&hook.path].into_iter().chain(&hook.args).chain(hook.env.iter().flatten());
            if texts.into_iter().any(|text| text.contains('\0')) {
                return Err(invalid(path, "contains a zero byte"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The example configuration with one key set by its JSON pointer.
    fn with(pointer: &str, value: Value) -> Result<(), ConfigError> {
        let mut config = serde_json::to_value(super::super::example::config(true)).expect("the example is JSON");
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer has a slash");
        let parent = config.pointer_mut(parent).expect("the parent is in the example");
        match parent {
            Value::Array(list) if key == "-" => list.push(value),
            _ => parent[key] = value,
        }
        check(&serde_json::from_value(config).expect("the value has the right type"))
    }

    #[test]
    fn the_example_is_good() {
        assert_eq!(check(&super::super::example::config(true)), Ok(()));
        assert_eq!(check(&super::super::example::config(false)), Ok(()));
    }

    #[test]
    fn a_key_that_cannot_be_carried_out_is_named() {
        for (pointer, value, path) in [
            ("/linux/intelRdt", json!({"closID": "a/b"}), "$.linux.intelRdt.closID"),
            ("/linux/netDevices", json!({"eth0": {"name": "a b"}}), "$.linux.netDevices.eth0.name"),
            ("/linux/netDevices", json!({"a": {"name": "c"}, "b": {"name": "c"}}), "$.linux.netDevices.b.name"),
            ("/linux/memoryPolicy", json!({"mode": "MPOL_BIND"}), "$.linux.memoryPolicy.nodes"),
            ("/process/scheduler", json!({"policy": "SCHED_X"}), "$.process.scheduler.policy"),
            (
                "/process/ioPriority",
                json!({"class": "IOPRIO_CLASS_RT", "priority": 9}),
                "$.process.ioPriority.priority",
            ),
            ("/process/execCPUAffinity", json!({"final": "x"}), "$.process.execCPUAffinity.final"),
            ("/annotations", json!({"": "x"}), "$.annotations"),
            ("/root/path", json!("a/../../b"), "$.root.path"),
            ("/linux/personality", json!({"domain": "LINUX", "flags": ["X"]}), "$.linux.personality.flags"),
            ("/linux/rootfsPropagation", json!("public"), "$.linux.rootfsPropagation"),
            ("/hooks", json!({"poststop": [{"path": "/x", "timeout": 0}]}), "$.hooks.poststop[0].timeout"),
            ("/linux/sysctl", json!({"kernel.hostname": "x"}), "$.linux.sysctl.kernel.hostname"),
            ("/linux/sysctl", json!({"net/../kernel/x": "1"}), "$.linux.sysctl.net/../kernel/x"),
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}, {"type": "RLIMIT_CPU", "soft": 2, "hard": 2}]),
                "$.process.rlimits[1]",
            ),
            ("/process/cwd", json!("work"), "$.process.cwd"),
            ("/process/args", json!([]), "$.process.args"),
            ("/process/args", json!(["a\u{0}b"]), "$.process.args[0]"),
            ("/process/rlimits", json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]), "$.process.rlimits[0].type"),
            ("/process/rlimits", json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]), "$.process.rlimits[0]"),
            ("/process/oomScoreAdj", json!(2000), "$.process.oomScoreAdj"),
            ("/process/user", json!({"gid": u32::MAX}), "$.process.user.gid"),
            ("/process/user", json!({"additionalGids": [1, u32::MAX]}), "$.process.user.additionalGids"),
            ("/ociVersion", json!("2.0.0"), "$.ociVersion"),
            ("/ociVersion", json!(""), "$.ociVersion"),
            ("/root", json!(null), "$.root"),
            ("/process", json!(null), "$.process"),
            ("/linux/sysctl", json!({"vm.swappiness": "1"}), "$.linux.sysctl.vm.swappiness"),
            ("/linux/sysctl", json!({"net..x": "1"}), "$.linux.sysctl.net..x"),
            ("/linux/namespaces/-", json!({"type": "pid"}), "$.linux.namespaces"),
            ("/linux/namespaces/-", json!({"type": "moon"}), "$.linux.namespaces"),
            ("/linux/namespaces/-", json!({"type": "user"}), "$.linux.uidMappings"),
            ("/linux/namespaces", json!([{"type": "pid"}]), "$.mounts: "),
            (
                "/linux/namespaces/-",
                json!({"type": "time", "path": "x"}),
                "$.linux.namespaces[6].path: `x` is not an abs",
            ),
            ("/mounts/-", json!({"destination": "/proc/self", "type": "tmpfs"}), "$.mounts[7].destination"),
            ("/mounts/-", json!({"destination": "/x/../proc/1", "type": "tmpfs"}), "$.mounts[7].destination"),
            ("/mounts/-", json!({"destination": "/x", "options": ["bind"]}), "$.mounts[7].source"),
            ("/mounts/-", json!({"destination": "/x"}), "$.mounts[7].type"),
            ("/mounts/-", json!({"destination": "/..", "type": "tmpfs"}), "$.mounts[7].destination"),
            ("/linux/maskedPaths", json!(["etc"]), "$.linux.maskedPaths[0]"),
            ("/linux/devices", json!([{"type": "c", "path": "/dev/x"}]), "$.linux.devices[0]"),
            (
                "/linux/devices",
                json!([{"type": "c", "path": "/dev/x", "major": 1, "minor": 3, "uid": u32::MAX}]),
                "$.linux.devices[0].uid",
            ),
            ("/linux/personality", json!({"domain": "BSD"}), "$.linux.personality.domain"),
            ("/linux/cgroupsPath", json!("/a/../b"), "$.linux.cgroupsPath"),
            ("/hooks", json!({"poststop": [{"path": "x"}]}), "$.hooks.poststop[0].path"),
        ] {
            let error = with(pointer, value).expect_err(pointer).to_string();
            assert!(error.contains(path), "{pointer}: {error}");
        }
    }

    #[test]
    fn versions() {
        for (text, good, warned) in [
            ("1.0.0", true, false),
            ("1.0.2-dev", true, false),
            ("1.3.0", true, false),
            ("1.3.9+build.5", true, false),
            ("1.4.0", true, true),
            ("1.99.0-rc.1", true, true),
            ("2.0.0", false, true),
            ("0.9.0", false, false),
            ("1.3", false, false),
            ("1.a.b", false, false),
            ("1.2.3.4", false, false),
            ("", false, false),
        ] {
            let config = Config { oci_version: text.to_owned(), ..super::super::example::config(true) };
            assert_eq!((check(&config).is_ok(), !warnings(&config).is_empty()), (good, warned), "{text:?}");
        }
    }

    #[test]
    fn relative_roots() {
        for (path, out) in [
            ("rootfs", false),
            ("a/../b", false),
            ("./a/./..", false),
            ("/x/../../y", false),
            ("..", true),
            ("a/../../a", true),
        ] {
            assert_eq!(leaves(path), out, "{path}");
        }
    }

    #[test]
    fn what_the_specification_does_not_know_is_ignored() {
        assert_eq!(with("/linux/somethingNew", json!({"a": 1})), Ok(()));
        assert_eq!(with("/mounts", json!(null)), Ok(()));
    }

    /// The example in a user namespace with ten users and groups, changed.
    fn with_users(change: impl FnOnce(&mut Value)) -> String {
        let mut config = serde_json::to_value(super::super::example::config(true)).expect("the example is JSON");
        config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
        config["linux"]["gidMappings"] = config["linux"]["uidMappings"].clone();
        config["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
        change(&mut config);
        let checked = check(&serde_json::from_value(config).expect("the value has the right type"));
        checked.err().map_or(String::new(), |error| error.to_string())
    }

    #[test]
    fn maps_and_ids_that_do_not_fit_are_named() {
        let map = |lines: Value| move |config: &mut Value| config["linux"]["uidMappings"] = lines;
        let ids = |lines: Value| lines;
        assert_eq!(with_users(|_| ()), "");
        for (error, want) in [
            (with_users(map(ids(json!([{"size": 0}])))), "$.linux.uidMappings[0]: has a `size` of 0"),
            (
                with_users(map(ids(json!([{"hostID": 1, "size": 9}, {"containerID": 20, "hostID": 5, "size": 1}])))),
                "$.linux.uidMappings[1]: has a range of `hostID` in common with line 0",
            ),
            (with_users(|config| config["process"]["user"]["uid"] = json!(10)), "$.process.user.uid: 10 is not in"),
            (with_users(|config| config["process"]["user"]["gid"] = json!(99)), "$.process.user.gid: 99 is not in"),
            (
                with_users(|config| config["process"]["user"]["additionalGids"] = json!([3, 77])),
                "$.process.user.additionalGids[1]: 77 is not in `linux.gidMappings`",
            ),
        ] {
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn maps_of_mounts() {
        let lines = json!([{"containerID": 0, "hostID": 5, "size": 1}]);
        let mount = |key: &str, value: Value| {
            let mut mount = json!({"destination": "/x", "type": "bind", "source": "/x", "options": ["bind"]});
            mount[key] = value;
            mount
        };
        let both = |options: Value| {
            let mut mount = mount("options", options);
            mount["uidMappings"] = lines.clone();
            mount["gidMappings"] = lines.clone();
            mount
        };
        for (why, mount, want) in [
            ("half a map", mount("uidMappings", lines.clone()), "$.mounts[7].gidMappings: is missing"),
            ("the other half", mount("gidMappings", lines.clone()), "$.mounts[7].uidMappings: is missing"),
            ("no map anywhere", mount("options", json!(["bind", "idmap"])), "$.mounts[7].options: asks for an ID map"),
            ("both", both(json!(["bind"])), ""),
            ("both and the option", both(json!(["rbind", "ridmap"])), ""),
            ("a remount", both(json!(["bind", "remount"])), "$.mounts[7]: cannot change the ID map"),
        ] {
            let error = with("/mounts/-", mount).err().map_or(String::new(), |error| error.to_string());
            assert!(error.contains(want) && error.is_empty() == want.is_empty(), "{why}: {error}");
        }
        assert_eq!(
            with_users(|config| config["mounts"]
                .as_array_mut()
                .expect("a list")
                .push(mount("options", json!(["ridmap", "bind"])))),
            ""
        );
    }
}
