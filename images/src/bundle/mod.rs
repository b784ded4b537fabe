//! Makes an OCI runtime configuration from what an image wants and what the user asked for, with docker's defaults.
//!
//! The rules of docker that matter: a new entry point drops the image's command; a user's environment comes after the
//! image's; `/proc` and `/sys` are masked; fourteen capabilities; a filter for system calls; private namespaces.
//!
//! # Source
//! OCI runtime-spec 1.2 (`config.md`, `config-linux.md`); OCI image-spec `conversion.md`; the documentation of
//! `docker run`.

mod capabilities;
mod devices;
mod mounts;
mod process;
mod seccomp;
mod user;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{ImageError, Result, at};
use crate::files;
use crate::manifest::ImageConfig;

/// Version of the runtime specification that is written.
pub const OCI_VERSION: &str = "1.2.0";

/// Name of the program that runs as PID 1 with `init`, inside the container; `/dev` is its own file system, so nothing
/// is left in the container's files.
const INIT_PATH: &str = "/dev/init";

/// The period of the processor quota; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// The kernel takes no smaller quota.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// What the user wants other than the image and the defaults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// Replaces `CMD`.
    pub command: Option<Vec<String>>,
    /// Replaces `ENTRYPOINT`, and drops `CMD`; an empty one only drops both.
    pub entrypoint: Option<Vec<String>>,
    /// `KEY=VALUE` sets, `KEY` alone removes.
    pub env: Vec<String>,
    /// Replaces `WORKDIR`.
    pub working_dir: Option<String>,
    /// Replaces `USER`: `user`, `uid`, `user:group`, `uid:gid`.
    pub user: Option<String>,
    /// Groups besides, by name or number.
    pub group_add: Vec<String>,
    /// Give it a terminal.
    pub tty: bool,
    /// A program on the host, static, that is to be PID 1: it reaps, and passes signals on.
    pub init: Option<PathBuf>,
    /// Name of the host inside.
    pub hostname: Option<String>,
    /// Its NIS domain.
    pub domainname: Option<String>,
    /// Directories and files from outside, and `tmpfs`.
    pub mounts: Vec<Mount>,
    /// The root file system cannot be written to.
    pub read_only: bool,
    /// Most memory.
    pub memory_bytes: Option<u64>,
    /// Most memory and swap together; -1 is no limit.
    pub memory_swap: Option<i64>,
    /// Thousandths of a processor: a limit, and the weight against others.
    pub cpu_millis: Option<u64>,
    /// Most processes and threads.
    pub pids_max: Option<i64>,
    /// Capabilities to add, with or without `CAP_`; `ALL` is all.
    pub cap_add: Vec<String>,
    /// Capabilities to drop.
    pub cap_drop: Vec<String>,
    /// Everything that the host can do: all capabilities and devices, nothing masked, no filter.
    pub privileged: bool,
    /// Which network it is in.
    pub network: Network,
    /// Where its cgroup is; the runtime chooses if not given.
    pub cgroups_path: Option<String>,
    /// Kernel parameters of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Limits of its processes.
    pub ulimits: Vec<Ulimit>,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Size of `/dev/shm`; 64 MiB if not given.
    pub shm_size: Option<u64>,
    /// Replaces `STOPSIGNAL`.
    pub stop_signal: Option<String>,
    /// The filter for system calls.
    pub security: Seccomp,
    /// Set-id programs give no rights.
    pub no_new_privileges: bool,
    /// For the runtime and for tools.
    pub annotations: BTreeMap<String, String>,
    /// Written among the annotations, over those of the image.
    pub labels: BTreeMap<String, String>,
    /// How gladly the kernel kills it when memory is short; -1000 to 1000.
    pub oom_score_adj: Option<i32>,
}

/// Which network a container is in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Network {
    /// One of its own, with nothing but loopback.
    #[default]
    New,
    /// That of the host.
    Host,
    /// One that is there, such as `/run/netns/web-1`.
    Path(PathBuf),
}

/// Something mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On the host; not used for `tmpfs`.
    pub source: PathBuf,
    /// In the container; absolute.
    pub target: String,
    /// What it is.
    pub kind: MountKind,
    /// It cannot be written to.
    pub read_only: bool,
    /// More mount options, such as `size=64m` of a `tmpfs`, `rshared` of a bind mount.
    pub options: Vec<String>,
}

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// A file or directory of the host.
    Bind,
    /// The directory of a volume.
    Volume,
    /// An empty directory in memory.
    Tmpfs,
}

/// A limit of `setrlimit(2)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Such as `nofile`.
    pub name: String,
    /// What holds until a process raises it.
    pub soft: u64,
    /// How far it can; `u64::MAX` is no limit.
    pub hard: u64,
}

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Such as `/dev/fuse`.
    pub host: PathBuf,
    /// Its name in the container.
    pub container: String,
    /// Of `r` (read), `w` (write), `m` (make).
    pub permissions: String,
}

/// The filter for system calls.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Seccomp {
    /// What ordinary programs need.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// From a file: the `linux.seccomp` object of the runtime specification.
    Path(PathBuf),
}

/// The configuration for one container.
///
/// - `rootfs`: where its root file system is mounted; users are looked up inside.
///
/// # Errors
/// `UnknownUser`, `BadOption`, or a file that cannot be read.
pub fn config(image: &ImageConfig, rootfs: &Path, overrides: &Overrides) -> Result<Value> {
    let identity = user::identity(image, rootfs, overrides)?;
    let capabilities = capabilities::effective(overrides)?;
    let process = process::process(image, &identity, &capabilities, overrides)?;
    let mut config = Map::new();
    config.insert("ociVersion".into(), json!(OCI_VERSION));
    config.insert("process".into(), process);
    config.insert("root".into(), json!({ "path": text("root file system", rootfs)?, "readonly": overrides.read_only }));
    if let Some(hostname) = &overrides.hostname {
        // The kernel's limit for `sethostname(2)`.
        if hostname.is_empty() || hostname.len() > 64 || hostname.contains('\0') {
            return Err(bad("hostname", hostname, "must be 1 to 64 characters"));
        }
        config.insert("hostname".into(), json!(hostname));
    }
    if let Some(domainname) = &overrides.domainname {
        config.insert("domainname".into(), json!(domainname));
    }
    config.insert("mounts".into(), mounts::mounts(overrides)?);
    config.insert("annotations".into(), json!(annotations(image, overrides)));
    config.insert("linux".into(), linux(&capabilities, overrides)?);
    Ok(Value::Object(config))
}

/// Write `config.json` into the bundle directory `dir`, which is made if needed. It may hold secrets, so only its owner
/// can read it.
///
/// # Errors
/// Those of the file system.
pub fn write(dir: &Path, config: &Value) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(at("make directory", dir))?;
    let path = dir.join("config.json");
    let text = serde_json::to_vec_pretty(config).map_err(|e| ImageError::io("write", &path, e))?;
    files::write_atomic(&path, &dir.join("config.json.tmp"), &text, 0o600)
}

/// JSON has only text.
fn text<'a>(field: &'static str, path: &'a Path) -> Result<&'a str> {
    let not = || bad(field, path.display().to_string(), "is not UTF-8");
    path.to_str().ok_or_else(not)
}

fn bad(field: &'static str, value: impl Into<String>, why: impl Into<String>) -> ImageError {
    ImageError::BadOption { field, value: value.into(), why: why.into() }
}

/// What the image says that has no other place in a bundle (image-spec `conversion.md`).
fn annotations(image: &ImageConfig, overrides: &Overrides) -> BTreeMap<String, String> {
    let mut all = image.labels.clone();
    let stop_signal = overrides.stop_signal.as_ref().unwrap_or(&image.stop_signal);
    if !stop_signal.is_empty() {
        all.insert("org.opencontainers.image.stopSignal".into(), stop_signal.clone());
    }
    if !image.exposed_ports.is_empty() {
        let ports = image.exposed_ports.iter().cloned().collect::<Vec<_>>().join(",");
        all.insert("org.opencontainers.image.exposedPorts".into(), ports);
    }
    all.extend(overrides.labels.clone());
    all.extend(overrides.annotations.clone());
    all
}

fn linux(capabilities: &capabilities::Set, overrides: &Overrides) -> Result<Value> {
    let mut linux = Map::new();
    linux.insert("namespaces".into(), namespaces(&overrides.network)?);
    let (devices, rules) = devices::devices(overrides)?;
    linux.insert("resources".into(), resources(rules, overrides)?);
    if !devices.is_empty() {
        linux.insert("devices".into(), Value::Array(devices));
    }
    if let Some(path) = &overrides.cgroups_path {
        linux.insert("cgroupsPath".into(), json!(path));
    }
    let sysctls = sysctls(overrides)?;
    if !sysctls.is_empty() {
        linux.insert("sysctl".into(), json!(sysctls));
    }
    if !overrides.privileged {
        linux.insert("maskedPaths".into(), json!(mounts::MASKED));
        linux.insert("readonlyPaths".into(), json!(mounts::READ_ONLY));
    }
    if let Some(seccomp) = seccomp::filter(overrides, capabilities)? {
        linux.insert("seccomp".into(), seccomp);
    }
    Ok(Value::Object(linux))
}

fn namespaces(network: &Network) -> Result<Value> {
    let mut all: Vec<Value> =
        ["pid", "ipc", "uts", "mount", "cgroup"].iter().map(|kind| json!({ "type": kind })).collect();
    match network {
        Network::New => all.push(json!({ "type": "network" })),
        Network::Path(path) => {
            let path = text("network", path)?;
            all.push(json!({ "type": "network", "path": path }));
        }
        Network::Host => {}
    }
    Ok(Value::Array(all))
}

fn resources(device_rules: Value, overrides: &Overrides) -> Result<Value> {
    let mut resources = Map::new();
    resources.insert("devices".into(), device_rules);
    let memory = memory(overrides.memory_bytes, overrides.memory_swap)?;
    if !memory.is_empty() {
        resources.insert("memory".into(), Value::Object(memory));
    }
    if let Some(millis) = overrides.cpu_millis {
        resources.insert("cpu".into(), cpu(millis)?);
    }
    if let Some(limit) = overrides.pids_max {
        resources.insert("pids".into(), json!({ "limit": limit }));
    }
    Ok(Value::Object(resources))
}

/// `swap` is memory and swap together, as in the specification.
fn memory(limit: Option<u64>, swap: Option<i64>) -> Result<Map<String, Value>> {
    let too_large = |limit: u64| bad("memory", limit.to_string(), "is too large");
    let limit = limit.map(|limit| i64::try_from(limit).map_err(|_| too_large(limit)));
    let limit = limit.transpose()?;
    let mut memory = Map::new();
    if let Some(limit) = limit {
        memory.insert("limit".into(), json!(limit));
    }
    match (swap, limit) {
        (Some(swap), Some(limit)) if swap >= 0 && swap < limit => {
            let why = format!("is memory and swap together, so at least the {limit} of memory");
            return Err(bad("memory_swap", swap.to_string(), why));
        }
        (Some(swap), None) if swap >= 0 => {
            let why = "needs a limit for memory too";
            return Err(bad("memory_swap", swap.to_string(), why));
        }
        (Some(swap), Some(_)) => drop(memory.insert("swap".into(), json!(swap))),
        _ => {}
    }
    Ok(memory)
}

fn cpu(millis: u64) -> Result<Value> {
    if millis == 0 {
        return Err(bad("cpu", "0", "must be more than nothing"));
    }
    let quota = millis.saturating_mul(CPU_PERIOD_US / 1000);
    let quota = quota.clamp(CPU_QUOTA_MIN_US, i64::MAX as u64);
    // 1024 is one processor; the kernel takes 2 to 262144.
    let shares = (millis.saturating_mul(1024) / 1000).clamp(2, 262_144);
    Ok(json!({ "shares": shares, "quota": quota, "period": CPU_PERIOD_US }))
}

/// Only what belongs to a namespace of the container; anything else would change the host.
fn sysctls(overrides: &Overrides) -> Result<BTreeMap<String, String>> {
    let own_network = overrides.network != Network::Host;
    let mut all = BTreeMap::new();
    if own_network {
        // As docker: no capability is needed for low ports and for ping inside the container's own network.
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        all.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    for (key, value) in &overrides.sysctls {
        let ipc = key.starts_with("fs.mqueue.")
            || key.starts_with("kernel.msg")
            || key.starts_with("kernel.shm")
            || key == "kernel.sem";
        let network = key.starts_with("net.");
        if key.contains("..") || key.contains('/') || !(ipc || network) {
            return Err(bad("sysctl", key, "does not belong to a namespace of the container"));
        }
        if network && !own_network {
            return Err(bad("sysctl", key, "would change the network of the host"));
        }
        all.insert(key.clone(), value.clone());
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
