//! From OCI resources to writes into cgroup files: one table for v1 and v2.
//!
//! Pure. On hybrid hosts some controllers live in v1 and some in v2, so the version is asked per controller.

use crate::config::{BlockIo, Cpu, HugepageLimit, Memory, Network, Rdma, Resources, ThrottleDevice};
use std::collections::BTreeMap;

/// Which interface a controller has on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Its own hierarchy.
    V1,
    /// In the unified hierarchy.
    V2,
}

/// One write into one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Controller, which picks the directory; `cgroup` for core files of v2.
    pub controller: &'static str,
    /// File in it.
    pub file: String,
    /// What to write.
    pub value: String,
    /// Another file and value for kernels that lack `file`.
    pub instead: Option<(String, String)>,
    /// Nothing is lost on a kernel that lacks the file.
    pub optional: bool,
    /// JSON path below `linux.resources` that asked for it.
    pub key: String,
}

/// A limit that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// No such controller on this host.
    #[error("config.json: $.linux.resources.{key}: this host has no `{controller}` cgroup controller")]
    NoController {
        /// Controller.
        controller: &'static str,
        /// What asked for it.
        key: String,
    },
    /// The interface cannot express it.
    #[error("config.json: $.linux.resources.{key}: {problem}")]
    Invalid {
        /// What asked for it.
        key: String,
        /// Why it cannot be.
        problem: String,
    },
}

impl ResourceError {
    /// What the operator can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoController { controller, key } => Some(format!(
                "remove `linux.resources.{key}`, or boot a kernel with the {controller} controller enabled"
            )),
            Self::Invalid { .. } => None,
        }
    }
}

fn invalid(key: &str, problem: &str) -> ResourceError {
    ResourceError::Invalid { key: key.to_owned(), problem: problem.to_owned() }
}

/// Collects writes, asking once per controller which version it has.
struct Table<'a> {
    version_of: &'a dyn Fn(&str) -> Option<Version>,
    writes: Vec<Write>,
}

impl Table<'_> {
    fn version(&self, controller: &'static str, key: &str) -> Result<Version, ResourceError> {
        (self.version_of)(controller).ok_or_else(|| ResourceError::NoController { controller, key: key.to_owned() })
    }

    fn push(&mut self, controller: &'static str, key: &str, file: impl Into<String>, value: impl ToString) {
        self.writes.push(Write {
            controller,
            file: file.into(),
            value: value.to_string(),
            instead: None,
            optional: false,
            key: key.to_owned(),
        });
    }

    fn push_if_there(&mut self, controller: &'static str, key: &str, file: impl Into<String>, value: impl ToString) {
        self.push(controller, key, file, value);
        if let Some(last) = self.writes.last_mut() {
            last.optional = true;
        }
    }

    fn push_or(&mut self, controller: &'static str, key: &str, first: (&str, String), instead: (&str, String)) {
        self.push(controller, key, first.0, first.1);
        if let Some(last) = self.writes.last_mut() {
            last.instead = Some((instead.0.to_owned(), instead.1));
        }
    }
}

/// The writes that carry out `resources`, in order. Device rules are not among them: see [`super::devices`].
///
/// - `version_of`: where a controller lives on this host, `None` when it has none.
///
/// # Errors
/// A limit that asks for a controller this host lacks, or that its version cannot express.
///
/// # Source
/// runtime-spec `config-linux.md`; kernel `cgroup-v1/*.rst` and `cgroup-v2.rst`.
pub fn writes(
    resources: &Resources,
    version_of: &dyn Fn(&str) -> Option<Version>,
) -> Result<Vec<Write>, ResourceError> {
    let mut table = Table { version_of, writes: Vec::new() };
    if let Some(memory) = &resources.memory {
        memory_writes(&mut table, memory)?;
    }
    if let Some(cpu) = &resources.cpu {
        cpu_writes(&mut table, cpu)?;
    }
    // Go writes a limit that is not given as 0.
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit).filter(|&limit| limit != 0) {
        table.version("pids", "pids.limit")?;
        table.push("pids", "pids.limit", "pids.max", limit_or_max(limit));
    }
    if let Some(block_io) = &resources.block_io {
        block_io_writes(&mut table, block_io)?;
    }
    for (index, limit) in resources.hugepage_limits.iter().enumerate() {
        hugepage_writes(&mut table, limit, index)?;
    }
    if let Some(network) = &resources.network {
        network_writes(&mut table, network)?;
    }
    rdma_writes(&mut table, &resources.rdma)?;
    unified_writes(&mut table, resources)?;
    Ok(table.writes)
}

/// v2 spells "no limit" `max`.
fn limit_or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

fn memory_writes(table: &mut Table<'_>, memory: &Memory) -> Result<(), ResourceError> {
    // `kernel` limits what Linux no longer counts apart from the rest; the specification lets runtimes ignore it.
    let given = |limit: Option<i64>| limit.filter(|&limit| limit != 0);
    let (limit, reservation, kernel_tcp) =
        (given(memory.limit), given(memory.reservation), given(memory.kernel_tcp).filter(|&limit| limit > 0));
    let swap = swap_max(memory)?;
    let asks = limit.is_some()
        || swap.is_some()
        || reservation.is_some()
        || memory.swappiness.is_some()
        || kernel_tcp.is_some()
        || memory.disable_oom_killer;
    if !asks {
        return Ok(());
    }
    match table.version("memory", "memory")? {
        Version::V1 => {
            if let Some(limit) = limit {
                table.push("memory", "memory.limit", "memory.limit_in_bytes", limit.max(-1));
            }
            match given(memory.swap) {
                Some(swap) => table.push("memory", "memory.swap", "memory.memsw.limit_in_bytes", swap.max(-1)),
                // No limit at all is meant then.
                None if limit == Some(-1) => {
                    table.push_if_there("memory", "memory.limit", "memory.memsw.limit_in_bytes", -1);
                }
                None => {}
            }
            if let Some(reservation) = reservation {
                table.push("memory", "memory.reservation", "memory.soft_limit_in_bytes", reservation.max(-1));
            }
            if let Some(limit) = kernel_tcp {
                table.push("memory", "memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", limit);
            }
            if let Some(swappiness) = memory.swappiness {
                if swappiness > 100 {
                    return Err(invalid("memory.swappiness", "is above 100"));
                }
                table.push("memory", "memory.swappiness", "memory.swappiness", swappiness);
            }
            if memory.disable_oom_killer {
                table.push("memory", "memory.disableOOMKiller", "memory.oom_control", 1);
            }
        }
        Version::V2 => {
            for (present, key) in [
                (kernel_tcp.is_some(), "memory.kernelTCP"),
                (memory.swappiness.is_some(), "memory.swappiness"),
                (memory.disable_oom_killer, "memory.disableOOMKiller"),
            ] {
                if present {
                    return Err(invalid(key, "cgroup v2 has no such control"));
                }
            }
            match swap {
                Some(swap) => table.push("memory", "memory.swap", "memory.swap.max", limit_or_max(swap)),
                None if limit == Some(-1) => table.push_if_there("memory", "memory.limit", "memory.swap.max", "max"),
                None => {}
            }
            if let Some(limit) = limit {
                table.push("memory", "memory.limit", "memory.max", limit_or_max(limit));
            }
            if let Some(reservation) = reservation {
                table.push("memory", "memory.reservation", "memory.low", limit_or_max(reservation));
            }
        }
    }
    Ok(())
}

/// The value for `memory.swap.max`, or `None` to leave the file as it is.
///
/// OCI `swap` is memory **plus** swap, cgroup v2 counts swap **alone**, so the memory limit is taken off. `swap` 0 is
/// "not given", as Go writes it; unlimited memory passes an unlimited `swap` through.
pub(super) fn swap_max(memory: &Memory) -> Result<Option<i64>, ResourceError> {
    match (memory.limit, memory.swap) {
        (_, None | Some(0)) => Ok(None),
        (_, Some(swap)) if swap < 0 => Ok(Some(-1)),
        (Some(limit), Some(swap)) if limit > 0 && swap < limit => {
            Err(invalid("memory.swap", &format!("{swap} is below the memory limit {limit}, which it includes")))
        }
        (Some(limit), Some(swap)) if limit > 0 => Ok(Some(swap - limit)),
        (_, Some(_)) => Err(invalid("memory.swap", "includes the memory limit, which is not given")),
    }
}

/// `cpu.weight` for v1 shares: 2, 1024 and 262144 shares give 1, 100 and 10000.
///
/// # Source
/// The conversion that runc and crun agreed on in 2025; kubernetes/enhancements 2254 has the older linear one, under
/// which the default of 1024 shares weighed 39.
pub fn cpu_weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

fn cpu_writes(table: &mut Table<'_>, cpu: &Cpu) -> Result<(), ResourceError> {
    for (value, file, key) in [(&cpu.cpus, "cpuset.cpus", "cpu.cpus"), (&cpu.mems, "cpuset.mems", "cpu.mems")] {
        if let Some(list) = value.as_deref().filter(|list| !list.is_empty()) {
            table.version("cpuset", key)?;
            table.push("cpuset", key, file, list);
        }
    }
    let shares = cpu.shares.filter(|&shares| shares != 0);
    let quota = cpu.quota.filter(|&quota| quota != 0);
    let period = cpu.period.filter(|&period| period != 0);
    let realtime = (cpu.realtime_period.filter(|&value| value != 0), cpu.realtime_runtime.filter(|&value| value != 0));
    let asks = shares.is_some()
        || quota.is_some()
        || period.is_some()
        || cpu.burst.is_some()
        || cpu.idle.is_some()
        || realtime != (None, None);
    if !asks {
        return Ok(());
    }
    match table.version("cpu", "cpu")? {
        Version::V1 => {
            if let Some(shares) = shares {
                table.push("cpu", "cpu.shares", "cpu.shares", shares);
            }
            if let Some(value) = realtime.0 {
                table.push("cpu", "cpu.realtimePeriod", "cpu.rt_period_us", value);
            }
            if let Some(value) = realtime.1 {
                table.push("cpu", "cpu.realtimeRuntime", "cpu.rt_runtime_us", value);
            }
            if let Some(period) = period {
                table.push("cpu", "cpu.period", "cpu.cfs_period_us", period);
            }
            if let Some(quota) = quota {
                table.push("cpu", "cpu.quota", "cpu.cfs_quota_us", quota.max(-1));
            }
            if let Some(burst) = cpu.burst {
                table.push("cpu", "cpu.burst", "cpu.cfs_burst_us", burst);
            }
        }
        Version::V2 => {
            if realtime != (None, None) {
                return Err(invalid("cpu.realtimeRuntime", "cgroup v2 has no such control"));
            }
            if let Some(shares) = shares {
                table.push("cpu", "cpu.shares", "cpu.weight", cpu_weight(shares));
            }
            if quota.is_some() || period.is_some() {
                let quota = limit_or_max(quota.unwrap_or(-1));
                table.push("cpu", "cpu.quota", "cpu.max", format!("{quota} {}", period.unwrap_or(100_000)));
            }
            if let Some(burst) = cpu.burst {
                table.push("cpu", "cpu.burst", "cpu.max.burst", burst);
            }
        }
    }
    if let Some(idle) = cpu.idle {
        table.push("cpu", "cpu.idle", "cpu.idle", idle);
    }
    Ok(())
}

/// `io.weight` (1 to 10000) for a `blkio` weight (10 to 1000).
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990
}

fn block_io_writes(table: &mut Table<'_>, io: &BlockIo) -> Result<(), ResourceError> {
    let leaf = io.leaf_weight.is_some_and(|weight| weight != 0)
        || io.weight_device.iter().any(|device| device.leaf_weight.is_some_and(|weight| weight != 0));
    if leaf {
        return Err(invalid("blockIO.leafWeight", "went with the CFQ scheduler in Linux 5.0"));
    }
    let weight = io.weight.filter(|&weight| weight != 0);
    let throttles = [
        (&io.throttle_read_bps_device, "blkio.throttle.read_bps_device", "rbps", "blockIO.throttleReadBpsDevice"),
        (&io.throttle_write_bps_device, "blkio.throttle.write_bps_device", "wbps", "blockIO.throttleWriteBpsDevice"),
        (&io.throttle_read_iops_device, "blkio.throttle.read_iops_device", "riops", "blockIO.throttleReadIOPSDevice"),
        (
            &io.throttle_write_iops_device,
            "blkio.throttle.write_iops_device",
            "wiops",
            "blockIO.throttleWriteIOPSDevice",
        ),
    ];
    if weight.is_none() && io.weight_device.is_empty() && throttles.iter().all(|(list, ..)| list.is_empty()) {
        return Ok(());
    }
    let version = match (table.version_of)("blkio") {
        Some(Version::V1) => Version::V1,
        _ => table.version("io", "blockIO")?,
    };
    if let Some(weight) = weight {
        if !(10..=1000).contains(&weight) {
            return Err(invalid("blockIO.weight", "is outside 10 to 1000"));
        }
        let key = "blockIO.weight";
        match version {
            Version::V1 => {
                let value = weight.to_string();
                table.push_or("blkio", key, ("blkio.bfq.weight", value.clone()), ("blkio.weight", value));
            }
            Version::V2 => {
                let direct = format!("default {weight}");
                let scaled = format!("default {}", io_weight(weight));
                table.push_or("io", key, ("io.bfq.weight", direct), ("io.weight", scaled));
            }
        }
    }
    for device in &io.weight_device {
        let Some(weight) = device.weight.filter(|&weight| weight != 0) else {
            continue;
        };
        let (key, number) = ("blockIO.weightDevice", format!("{}:{}", device.major, device.minor));
        let direct = format!("{number} {weight}");
        match version {
            Version::V1 => {
                let instead = ("blkio.weight_device", direct.clone());
                table.push_or("blkio", key, ("blkio.bfq.weight_device", direct), instead);
            }
            Version::V2 => {
                let instead = ("io.weight", format!("{number} {}", io_weight(weight)));
                table.push_or("io", key, ("io.bfq.weight", direct), instead);
            }
        }
    }
    for (list, v1_file, v2_word, key) in throttles {
        for ThrottleDevice { major, minor, rate } in list {
            match version {
                Version::V1 => table.push("blkio", key, v1_file, format!("{major}:{minor} {rate}")),
                Version::V2 => table.push("io", key, "io.max", format!("{major}:{minor} {v2_word}={rate}")),
            }
        }
    }
    Ok(())
}

fn hugepage_writes(table: &mut Table<'_>, limit: &HugepageLimit, index: usize) -> Result<(), ResourceError> {
    let key = format!("hugepageLimits[{index}]");
    let size = &limit.page_size;
    let known = size.ends_with("KB") || size.ends_with("MB") || size.ends_with("GB");
    if !known || !size[..size.len() - 2].bytes().all(|byte| byte.is_ascii_digit()) || size.len() < 3 {
        return Err(invalid(&key, &format!("`{size}` is not a page size such as 2MB")));
    }
    match table.version("hugetlb", &key)? {
        Version::V1 => {
            table.push("hugetlb", &key, format!("hugetlb.{size}.limit_in_bytes"), limit.limit);
            table.push_if_there("hugetlb", &key, format!("hugetlb.{size}.rsvd.limit_in_bytes"), limit.limit);
        }
        Version::V2 => {
            table.push("hugetlb", &key, format!("hugetlb.{size}.max"), limit.limit);
            table.push_if_there("hugetlb", &key, format!("hugetlb.{size}.rsvd.max"), limit.limit);
        }
    }
    Ok(())
}

/// `rdma.max` has one interface for v1 and v2.
fn rdma_writes(table: &mut Table<'_>, limits: &BTreeMap<String, Rdma>) -> Result<(), ResourceError> {
    for (device, limit) in limits {
        let key = format!("rdma.{device}");
        if device.is_empty() || device.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
            return Err(invalid(&key, "is not the name of a device"));
        }
        let part = |name: &str, value: Option<u32>| value.map(|value| format!(" {name}={value}")).unwrap_or_default();
        let line = part("hca_handle", limit.hca_handles) + &part("hca_object", limit.hca_objects);
        if line.is_empty() {
            return Err(invalid(&key, "needs `hcaHandles` or `hcaObjects`"));
        }
        table.version("rdma", &key)?;
        table.push("rdma", &key, "rdma.max", format!("{device}{line}"));
    }
    Ok(())
}

fn network_writes(table: &mut Table<'_>, network: &Network) -> Result<(), ResourceError> {
    if let Some(class) = network.class_id.filter(|&class| class != 0) {
        match table.version("net_cls", "network.classID")? {
            Version::V1 => table.push("net_cls", "network.classID", "net_cls.classid", class),
            Version::V2 => return Err(invalid("network.classID", "cgroup v2 has no such control")),
        }
    }
    for priority in &network.priorities {
        match table.version("net_prio", "network.priorities")? {
            Version::V1 => {
                let value = format!("{} {}", priority.name, priority.priority);
                table.push("net_prio", "network.priorities", "net_prio.ifpriomap", value);
            }
            Version::V2 => {
                return Err(invalid("network.priorities", "cgroup v2 has no such control"));
            }
        }
    }
    Ok(())
}

fn unified_writes(table: &mut Table<'_>, resources: &Resources) -> Result<(), ResourceError> {
    /// Controllers a `unified` key may name by its first part.
    const CONTROLLERS: &[&str] =
        &["cgroup", "cpu", "cpuset", "dmem", "hugetlb", "io", "memory", "misc", "perf_event", "pids", "rdma"];
    for (file, value) in &resources.unified {
        let key = format!("unified.{file}");
        let first = file.split('.').next().unwrap_or("");
        let Some(&controller) = CONTROLLERS.iter().find(|&&known| known == first) else {
            return Err(invalid(&key, "names no controller of cgroup v2"));
        };
        if file.contains('/') || file == "cgroup.procs" || file == "cgroup.threads" {
            return Err(invalid(&key, "is not a file that holds a limit"));
        }
        if controller != "cgroup" && table.version(controller, &key)? == Version::V1 {
            return Err(invalid(
                &key,
                "invalid configuration: a key of cgroup v2, and this host has the controller in v1",
            ));
        }
        table.push(controller, &key, file.as_str(), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn text(resources: Value, version: Option<Version>) -> String {
        let resources: Resources = serde_json::from_value(resources).expect("resources");
        match writes(&resources, &|_| version) {
            Err(error) => format!("error: {error}"),
            Ok(writes) => writes
                .iter()
                .map(|write| match &write.instead {
                    None if write.optional => format!("{}={} if there", write.file, write.value),
                    None => format!("{}={}", write.file, write.value),
                    Some((file, value)) => {
                        format!("{}={} or {file}={value}", write.file, write.value)
                    }
                })
                .collect::<Vec<_>>()
                .join("; "),
        }
    }

    #[test]
    fn every_limit_in_both_versions() {
        for (resources, v1, v2) in [
            (json!({}), "", ""),
            (json!({"memory": {}}), "", ""),
            (json!({"memory": {"limit": 1000}}), "memory.limit_in_bytes=1000", "memory.max=1000"),
            (json!({"memory": {"limit": 0, "swap": 0, "reservation": 0, "kernel": 5}, "pids": {"limit": 0}}), "", ""),
            (
                json!({"memory": {"limit": -1}}),
                "memory.limit_in_bytes=-1; memory.memsw.limit_in_bytes=-1 if there",
                "memory.swap.max=max if there; memory.max=max",
            ),
            (
                json!({"memory": {"limit": 512, "swap": 512}}),
                "memory.limit_in_bytes=512; memory.memsw.limit_in_bytes=512",
                "memory.swap.max=0; memory.max=512",
            ),
            (
                json!({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10}, "ocrdma1": {"hcaObjects": 4}}}),
                "rdma.max=mlx5_1 hca_handle=3 hca_object=10; rdma.max=ocrdma1 hca_object=4",
                "rdma.max=mlx5_1 hca_handle=3 hca_object=10; rdma.max=ocrdma1 hca_object=4",
            ),
            (
                json!({"rdma": {"a b": {"hcaHandles": 3}}}),
                "error: config.json: $.linux.resources.rdma.a b: is not the name of a device",
                "error: config.json: $.linux.resources.rdma.a b: is not the name of a device",
            ),
            (
                json!({"memory": {"limit": 512, "swap": 768}}),
                "memory.limit_in_bytes=512; memory.memsw.limit_in_bytes=768",
                "memory.swap.max=256; memory.max=512",
            ),
            (
                json!({"memory": {"limit": 512, "swap": -1}}),
                "memory.limit_in_bytes=512; memory.memsw.limit_in_bytes=-1",
                "memory.swap.max=max; memory.max=512",
            ),
            (
                json!({"memory": {"limit": 512, "swap": 100}}),
                "error: config.json: $.linux.resources.memory.swap: 100 is below the memory limit 512, which it includes",
                "error: config.json: $.linux.resources.memory.swap: 100 is below the memory limit 512, which it includes",
            ),
            (
                json!({"memory": {"reservation": 64, "swappiness": 60, "disableOOMKiller": true}}),
                "memory.soft_limit_in_bytes=64; memory.swappiness=60; memory.oom_control=1",
                "error: config.json: $.linux.resources.memory.swappiness: cgroup v2 has no such control",
            ),
            (json!({"memory": {"reservation": 64}}), "memory.soft_limit_in_bytes=64", "memory.low=64"),
            (json!({"cpu": {"shares": 1024}}), "cpu.shares=1024", "cpu.weight=100"),
            (json!({"cpu": {"shares": 0}}), "", ""),
            (
                json!({"cpu": {"quota": 50000, "period": 100000}}),
                "cpu.cfs_period_us=100000; cpu.cfs_quota_us=50000",
                "cpu.max=50000 100000",
            ),
            (json!({"cpu": {"quota": -1}}), "cpu.cfs_quota_us=-1", "cpu.max=max 100000"),
            (
                json!({"cpu": {"burst": 10, "quota": 20}}),
                "cpu.cfs_quota_us=20; cpu.cfs_burst_us=10",
                "cpu.max=20 100000; cpu.max.burst=10",
            ),
            (json!({"cpu": {"idle": 1}}), "cpu.idle=1", "cpu.idle=1"),
            (
                json!({"cpu": {"cpus": "0-1", "mems": "0"}}),
                "cpuset.cpus=0-1; cpuset.mems=0",
                "cpuset.cpus=0-1; cpuset.mems=0",
            ),
            (
                json!({"cpu": {"realtimeRuntime": 5, "realtimePeriod": 10}}),
                "cpu.rt_period_us=10; cpu.rt_runtime_us=5",
                "error: config.json: $.linux.resources.cpu.realtimeRuntime: cgroup v2 has no such control",
            ),
            (json!({"pids": {"limit": 10}}), "pids.max=10", "pids.max=10"),
            (json!({"pids": {"limit": -1}}), "pids.max=max", "pids.max=max"),
            (
                json!({"blockIO": {"weight": 500}}),
                "blkio.bfq.weight=500 or blkio.weight=500",
                "io.bfq.weight=default 500 or io.weight=default 4950",
            ),
            (
                json!({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}]}}),
                "blkio.throttle.read_bps_device=8:0 1024",
                "io.max=8:0 rbps=1024",
            ),
            (
                json!({"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}]}}),
                "blkio.throttle.write_iops_device=8:0 7",
                "io.max=8:0 wiops=7",
            ),
            (
                json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 10}]}}),
                "blkio.bfq.weight_device=8:0 10 or blkio.weight_device=8:0 10",
                "io.bfq.weight=8:0 10 or io.weight=8:0 1",
            ),
            (
                json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4096}]}),
                "hugetlb.2MB.limit_in_bytes=4096; hugetlb.2MB.rsvd.limit_in_bytes=4096 if there",
                "hugetlb.2MB.max=4096; hugetlb.2MB.rsvd.max=4096 if there",
            ),
            (
                json!({"hugepageLimits": [{"pageSize": "../MB", "limit": 1}]}),
                "error: config.json: $.linux.resources.hugepageLimits[0]: `../MB` is not a page size such as 2MB",
                "error: config.json: $.linux.resources.hugepageLimits[0]: `../MB` is not a page size such as 2MB",
            ),
            (
                json!({"network": {"classID": 9, "priorities": [{"name": "eth0", "priority": 3}]}}),
                "net_cls.classid=9; net_prio.ifpriomap=eth0 3",
                "error: config.json: $.linux.resources.network.classID: cgroup v2 has no such control",
            ),
            (
                json!({"unified": {"memory.high": "5"}}),
                "error: config.json: $.linux.resources.unified.memory.high: invalid configuration: a key of cgroup v2, and this host has the controller in v1",
                "memory.high=5",
            ),
            (
                json!({"unified": {"cgroup.procs": "1"}}),
                "error: config.json: $.linux.resources.unified.cgroup.procs: is not a file that holds a limit",
                "error: config.json: $.linux.resources.unified.cgroup.procs: is not a file that holds a limit",
            ),
        ] {
            assert_eq!(text(resources.clone(), Some(Version::V1)), v1, "v1 {resources}");
            assert_eq!(text(resources.clone(), Some(Version::V2)), v2, "v2 {resources}");
        }
    }

    #[test]
    fn a_missing_controller_is_named_only_when_asked_for() {
        assert_eq!(text(json!({"cpu": {}, "memory": {}, "pids": {}}), None), "");
        assert_eq!(
            text(json!({"pids": {"limit": 5}}), None),
            "error: config.json: $.linux.resources.pids.limit: this host has no `pids` cgroup controller"
        );
    }

    #[test]
    fn weights_at_the_known_points() {
        assert_eq!([2, 1024, 262_144].map(cpu_weight), [1, 100, 10_000]);
        let mut last = 0;
        for shares in 2..20_000 {
            assert!(cpu_weight(shares) >= last, "never falls, at {shares}");
            last = cpu_weight(shares);
        }
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }
}
