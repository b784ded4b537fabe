//! `config.json` of an OCI bundle, as plain structures.
//!
//! Own types rather than a crate: only what Linux containers use, small, and with every known key that this runtime
//! does not carry out kept as a raw value so that [`check`] can refuse it by its JSON path. Keys that the
//! specification does not know are extensions and are ignored, as it demands.

pub mod check;
pub mod example;
pub mod read;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;

/// Version of the specification that is carried out; also what `spec` writes.
pub const SPEC_VERSION: &str = "1.3.0";

/// Go writes an absent list as `null`; take it as empty.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Lines of text: a list, or one text as drafts of the specification had it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Lines {
    /// One text, maybe of several lines.
    Text(String),
    /// One line each.
    List(Vec<String>),
}

impl Default for Lines {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl Lines {
    /// Each line.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let list = match self {
            Self::Text(text) => std::slice::from_ref(text),
            Self::List(list) => list,
        };
        list.iter().flat_map(|text| text.lines()).filter(|line| !line.trim().is_empty())
    }
}

/// Declare structures of `config.json`: camelCase, every field optional unless marked otherwise.
macro_rules! config {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", remote = "Self")]
        pub struct $name { $(
            $(#[$field_meta])*
            #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
            pub $field: $type,
        )* }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::deserialize(read::ObjectOnly(deserializer))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                Self::serialize(self, serializer)
            }
        }
    )*};
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

config! {
    /// The whole file.
    Config {
        /// Version of the specification the bundle was written for.
        oci_version: String,
        /// What runs in the container.
        process: Option<Process>,
        /// The root filesystem.
        root: Option<Root>,
        /// Host name.
        hostname: Option<String>,
        /// NIS domain name.
        domainname: Option<String>,
        /// Mounts, in order.
        mounts: Vec<Mount>,
        /// Programs run at points of the life cycle.
        hooks: Hooks,
        /// Free-form key-value pairs.
        annotations: BTreeMap<String, String>,
        /// Linux-specific part.
        linux: Linux,
        /// Virtual machine settings; refused.
        vm: Option<Value>,
    }

    /// What runs in the container.
    Process {
        /// Attach a terminal.
        terminal: bool,
        /// Its initial size.
        console_size: Option<ConsoleSize>,
        /// User and groups.
        user: User,
        /// Program and arguments.
        args: Vec<String>,
        /// Windows only; refused.
        command_line: Option<String>,
        /// Environment.
        env: Vec<String>,
        /// Working directory in the container.
        cwd: String,
        /// Capability sets.
        capabilities: Option<Capabilities>,
        /// Resource limits.
        rlimits: Vec<Rlimit>,
        /// Set no_new_privs.
        no_new_privileges: bool,
        /// AppArmor profile.
        apparmor_profile: Option<String>,
        /// OOM killer adjustment.
        oom_score_adj: Option<i32>,
        /// Scheduler attributes.
        scheduler: Option<Scheduler>,
        /// SELinux label.
        selinux_label: Option<String>,
        /// I/O priority.
        io_priority: Option<IoPriority>,
        /// CPU affinity of `exec`.
        #[serde(rename = "execCPUAffinity")]
        exec_cpu_affinity: Option<ExecCpuAffinity>,
    }

    /// Scheduler attributes, as `sched_setattr(2)` takes them.
    Scheduler {
        /// `SCHED_*`.
        policy: String,
        /// -20 to 19.
        nice: Option<i32>,
        /// 1 to 99, for `SCHED_FIFO` and `SCHED_RR`.
        priority: Option<i32>,
        /// `SCHED_FLAG_*`.
        flags: Vec<String>,
        /// Nanoseconds per period, for `SCHED_DEADLINE`.
        runtime: Option<u64>,
        /// Nanoseconds, for `SCHED_DEADLINE`.
        deadline: Option<u64>,
        /// Nanoseconds, for `SCHED_DEADLINE`.
        period: Option<u64>,
    }

    /// I/O priority.
    IoPriority {
        /// `IOPRIO_CLASS_*`.
        class: String,
        /// 0, the highest, to 7.
        priority: i32,
    }

    /// CPU affinity of `exec`, as lists such as `0-3,7`.
    ExecCpuAffinity {
        /// Before the process joins the container's cgroup.
        initial: Option<String>,
        /// After that.
        #[serde(rename = "final")]
        last: Option<String>,
    }

    /// Terminal size.
    ConsoleSize {
        /// Lines.
        height: u16,
        /// Characters per line.
        width: u16,
    }

    /// User and groups.
    User {
        /// User ID in the container.
        uid: u32,
        /// Group ID in the container.
        gid: u32,
        /// File mode mask.
        umask: Option<u32>,
        /// Supplementary groups.
        additional_gids: Vec<u32>,
        /// Windows only; ignored on Linux by the specification.
        username: Option<String>,
    }

    /// The five capability sets.
    Capabilities {
        /// Bounding.
        bounding: Vec<String>,
        /// Effective.
        effective: Vec<String>,
        /// Inheritable.
        inheritable: Vec<String>,
        /// Permitted.
        permitted: Vec<String>,
        /// Ambient.
        ambient: Vec<String>,
    }

    /// One resource limit.
    Rlimit {
        /// `RLIMIT_*`.
        #[serde(rename = "type")]
        kind: String,
        /// Hard limit.
        hard: u64,
        /// Soft limit.
        soft: u64,
    }

    /// The root filesystem.
    Root {
        /// Path, relative to the bundle or absolute.
        path: String,
        /// Mount it read-only.
        readonly: bool,
    }

    /// One mount.
    Mount {
        /// Where, in the container.
        destination: String,
        /// Filesystem type, or `bind`.
        #[serde(rename = "type")]
        kind: Option<String>,
        /// Device, or host path of a bind mount.
        source: Option<String>,
        /// Options as in fstab.
        options: Vec<String>,
        /// ID mapping of the mount.
        uid_mappings: Vec<IdMapping>,
        /// ID mapping of the mount.
        gid_mappings: Vec<IdMapping>,
    }

    /// Programs run at points of the life cycle.
    Hooks {
        /// Deprecated twin of `createRuntime`.
        prestart: Vec<Hook>,
        /// In the runtime's namespaces, before pivot_root.
        create_runtime: Vec<Hook>,
        /// In the container's namespaces, before pivot_root.
        create_container: Vec<Hook>,
        /// In the container, just before the program.
        start_container: Vec<Hook>,
        /// After the program has been executed.
        poststart: Vec<Hook>,
        /// After the container has been deleted.
        poststop: Vec<Hook>,
    }

    /// One hook.
    Hook {
        /// Absolute path.
        path: String,
        /// Arguments, including the zeroth.
        args: Vec<String>,
        /// Environment; without the key, that of the process that starts it.
        env: Option<Vec<String>>,
        /// Seconds until it is killed.
        timeout: Option<i64>,
    }

    /// Linux-specific part.
    Linux {
        /// User ID map of a new user namespace.
        uid_mappings: Vec<IdMapping>,
        /// Group ID map of a new user namespace.
        gid_mappings: Vec<IdMapping>,
        /// Kernel parameters.
        sysctl: BTreeMap<String, String>,
        /// Limits.
        resources: Resources,
        /// Place below each hierarchy's mount point.
        cgroups_path: Option<String>,
        /// Namespaces to make or join.
        namespaces: Vec<Namespace>,
        /// Device files.
        devices: Vec<Device>,
        /// Network devices of the host to move in, by their name there.
        net_devices: BTreeMap<String, NetDevice>,
        /// System call filter.
        seccomp: Option<Seccomp>,
        /// Propagation of the root mount.
        rootfs_propagation: Option<String>,
        /// Paths made unreadable.
        masked_paths: Vec<String>,
        /// Paths made read-only.
        readonly_paths: Vec<String>,
        /// SELinux label of mounts.
        mount_label: Option<String>,
        /// Cache and memory bandwidth allocation.
        intel_rdt: Option<IntelRdt>,
        /// NUMA memory policy.
        memory_policy: Option<MemoryPolicy>,
        /// Execution domain.
        personality: Option<Personality>,
        /// Clock offsets of a new time namespace.
        time_offsets: BTreeMap<String, TimeOffset>,
    }

    /// A network device to move in.
    NetDevice {
        /// Name in the container; absent keeps the host's. `eth%d` lets the kernel choose the number.
        name: Option<String>,
    }

    /// NUMA memory policy.
    MemoryPolicy {
        /// `MPOL_*`.
        mode: String,
        /// Memory nodes, such as `0-3,7`.
        nodes: Option<String>,
        /// `MPOL_F_*`.
        flags: Vec<String>,
    }

    /// Cache and memory bandwidth allocation by the resctrl filesystem.
    IntelRdt {
        /// Class of service; absent makes one of the container's own, `/` is the default class.
        #[serde(rename = "closID")]
        clos_id: Option<String>,
        /// Lines for `schemata`, as they are.
        schemata: Lines,
        /// Cache share.
        l3_cache_schema: Option<String>,
        /// Memory bandwidth.
        mem_bw_schema: Option<String>,
        /// Make a monitoring group.
        enable_monitoring: bool,
        /// Until 1.2 of the specification: as `enableMonitoring`.
        #[serde(rename = "enableCMT")]
        enable_cmt: bool,
        /// Until 1.2 of the specification: as `enableMonitoring`.
        #[serde(rename = "enableMBM")]
        enable_mbm: bool,
    }

    /// Offset of one clock.
    TimeOffset {
        /// Seconds.
        secs: i64,
        /// Nanoseconds.
        nanosecs: u32,
    }

    /// A namespace to make or join.
    Namespace {
        /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup` or `time`.
        #[serde(rename = "type")]
        kind: String,
        /// File of an existing namespace; absent makes a new one.
        path: Option<String>,
    }

    /// A device file.
    Device {
        /// `c`, `b`, `u` or `p`.
        #[serde(rename = "type")]
        kind: String,
        /// Path in the container.
        path: String,
        /// Major number.
        major: Option<u32>,
        /// Minor number.
        minor: Option<u32>,
        /// Permissions.
        file_mode: Option<u32>,
        /// Owner in the container.
        uid: Option<u32>,
        /// Group in the container.
        gid: Option<u32>,
    }

    /// Execution domain.
    Personality {
        /// `LINUX` or `LINUX32`.
        domain: String,
        /// Refused: no flag is defined.
        flags: Vec<String>,
    }

    /// Limits.
    Resources {
        /// Device access rules, in order.
        devices: Vec<DeviceRule>,
        /// Memory.
        memory: Option<Memory>,
        /// Processor.
        cpu: Option<Cpu>,
        /// Number of tasks.
        pids: Option<Pids>,
        /// Block devices.
        #[serde(rename = "blockIO")]
        block_io: Option<BlockIo>,
        /// Huge pages.
        hugepage_limits: Vec<HugepageLimit>,
        /// Traffic class and priorities.
        network: Option<Network>,
        /// RDMA devices by name.
        rdma: BTreeMap<String, Rdma>,
        /// cgroup v2 files by name.
        unified: BTreeMap<String, String>,
    }

    /// A device access rule.
    DeviceRule {
        /// Allow or deny.
        allow: bool,
        /// `a`, `b` or `c`; absent is `a`.
        #[serde(rename = "type")]
        kind: Option<String>,
        /// Major number, absent or -1 for all.
        major: Option<i64>,
        /// Minor number, absent or -1 for all.
        minor: Option<i64>,
        /// Some of `rwm`; absent is all.
        access: Option<String>,
    }

    /// Memory limits in bytes, -1 unlimited.
    Memory {
        /// Memory.
        limit: Option<i64>,
        /// Soft limit.
        reservation: Option<i64>,
        /// Memory plus swap.
        swap: Option<i64>,
        /// Kernel memory; the kernel has dropped it.
        kernel: Option<i64>,
        /// TCP buffers, v1 only.
        #[serde(rename = "kernelTCP")]
        kernel_tcp: Option<i64>,
        /// 0 to 100, v1 only.
        swappiness: Option<u64>,
        /// v1 only.
        #[serde(rename = "disableOOMKiller")]
        disable_oom_killer: bool,
        /// Always so in current kernels.
        use_hierarchy: Option<bool>,
        /// Only for updates.
        check_before_update: Option<bool>,
    }

    /// Processor limits.
    Cpu {
        /// Relative weight, v1 scale.
        shares: Option<u64>,
        /// Microseconds per period, -1 unlimited.
        quota: Option<i64>,
        /// Microseconds that may be saved up.
        burst: Option<u64>,
        /// Microseconds.
        period: Option<u64>,
        /// Microseconds of real-time scheduling.
        realtime_runtime: Option<i64>,
        /// Microseconds.
        realtime_period: Option<u64>,
        /// CPUs to run on.
        cpus: Option<String>,
        /// Memory nodes to use.
        mems: Option<String>,
        /// 1 for SCHED_IDLE.
        idle: Option<i64>,
    }

    /// Number of tasks.
    Pids {
        /// -1 unlimited.
        limit: Option<i64>,
    }

    /// Block device limits.
    BlockIo {
        /// 10 to 1000.
        weight: Option<u16>,
        /// v1 CFQ only.
        leaf_weight: Option<u16>,
        /// Per device.
        weight_device: Vec<WeightDevice>,
        /// Bytes read per second.
        throttle_read_bps_device: Vec<ThrottleDevice>,
        /// Bytes written per second.
        throttle_write_bps_device: Vec<ThrottleDevice>,
        /// Reads per second.
        #[serde(rename = "throttleReadIOPSDevice")]
        throttle_read_iops_device: Vec<ThrottleDevice>,
        /// Writes per second.
        #[serde(rename = "throttleWriteIOPSDevice")]
        throttle_write_iops_device: Vec<ThrottleDevice>,
    }

    /// Weight for one device.
    WeightDevice {
        /// Major number.
        major: i64,
        /// Minor number.
        minor: i64,
        /// 10 to 1000.
        weight: Option<u16>,
        /// v1 CFQ only.
        leaf_weight: Option<u16>,
    }

    /// Rate for one device.
    ThrottleDevice {
        /// Major number.
        major: i64,
        /// Minor number.
        minor: i64,
        /// Per second.
        rate: u64,
    }

    /// Limit for one page size.
    HugepageLimit {
        /// As the kernel names it: `2MB`, `1GB`.
        page_size: String,
        /// Bytes.
        limit: u64,
    }

    /// Limit for one RDMA device.
    Rdma {
        /// Open handles.
        hca_handles: Option<u32>,
        /// Objects.
        hca_objects: Option<u32>,
    }

    /// Traffic class and priorities, v1 only.
    Network {
        /// Class for net_cls.
        #[serde(rename = "classID")]
        class_id: Option<u32>,
        /// Priorities for net_prio.
        priorities: Vec<InterfacePriority>,
    }

    /// Priority of one interface.
    InterfacePriority {
        /// Interface.
        name: String,
        /// Priority.
        priority: u32,
    }

    /// System call filter.
    Seccomp {
        /// For calls without a rule.
        default_action: String,
        /// Error number for `SCMP_ACT_ERRNO` and `SCMP_ACT_TRACE` as default.
        default_errno_ret: Option<u32>,
        /// Architectures beside the native one.
        architectures: Vec<String>,
        /// `SECCOMP_FILTER_FLAG_*`.
        flags: Option<Vec<String>>,
        /// Listener socket; refused.
        listener_path: Option<String>,
        /// For the listener.
        listener_metadata: Option<String>,
        /// Rules.
        syscalls: Vec<SyscallRule>,
    }

    /// A rule of the filter.
    SyscallRule {
        /// System calls by name.
        names: Vec<String>,
        /// What to do.
        action: String,
        /// Error number for `SCMP_ACT_ERRNO` and `SCMP_ACT_TRACE`.
        errno_ret: Option<u32>,
        /// Conditions, all of which must hold.
        args: Vec<SyscallArg>,
    }

    /// A condition on one argument.
    SyscallArg {
        /// 0 to 5.
        index: u32,
        /// Operand.
        value: u64,
        /// Second operand of `SCMP_CMP_MASKED_EQ`.
        value_two: u64,
        /// `SCMP_CMP_*`.
        op: String,
    }
}

impl Hooks {
    /// Every list with its key, in the order in which they run.
    pub fn each(&self) -> [(&'static str, &[Hook]); 6] {
        [
            ("prestart", &self.prestart),
            ("createRuntime", &self.create_runtime),
            ("createContainer", &self.create_container),
            ("startContainer", &self.start_container),
            ("poststart", &self.poststart),
            ("poststop", &self.poststop),
        ]
    }
}

/// One line of an ID map. Written with all its keys, as its schema demands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First ID in the container.
    #[serde(rename = "containerID", default)]
    pub container_id: u32,
    /// First ID on the host.
    #[serde(rename = "hostID", default)]
    pub host_id: u32,
    /// How many.
    #[serde(default)]
    pub size: u32,
}

impl Config {
    /// The namespace entry of a kind.
    pub fn namespace(&self, kind: &str) -> Option<&Namespace> {
        self.linux.namespaces.iter().find(|namespace| namespace.kind == kind)
    }

    /// Whether the container gets a new namespace of this kind.
    pub fn makes(&self, kind: &str) -> bool {
        self.namespace(kind).is_some_and(|namespace| namespace.joined().is_none())
    }
}

impl Namespace {
    /// The file of the namespace to join; an empty path counts as absent, as in Go.
    pub fn joined(&self) -> Option<&str> {
        self.path.as_deref().filter(|path| !path.is_empty())
    }
}
