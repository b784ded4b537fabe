//! `features`: what this runtime can do, as the specification's features document.
//!
//! Nothing is claimed from a list of our own making. Below are the words that the specification and the kernel know;
//! each is put to the code that would carry it out (the option parser, the configuration check, the filter compiler),
//! and what that code takes is what is printed.

use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::config::{Config, Hooks, SPEC_VERSION, Seccomp, SyscallArg, SyscallRule, check};
use crate::container::namespaces::Kind;
use crate::container::{capabilities, options};
use crate::error::{Because, Outcome};
use crate::report;
use crate::seccomp;
use crate::sys;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Oldest version of the specification whose bundles run unchanged.
const OLDEST_SPEC: &str = "1.0.0";

/// `features`.
#[derive(Debug, Default)]
pub struct Features;

impl Command for Features {
    const NAME: &'static str = "features";
    const SUMMARY: &'static str = "print what this runtime can do as JSON";
    const OPERANDS: &'static str = "";
    const OPTIONS: &'static [&'static [Opt<Self>]] = &[];

    fn operands(&mut self, _: &mut Operands) -> Result<(), UsageError> {
        Ok(())
    }

    fn run(&self, _: &Global) -> Outcome<i32> {
        let text = serde_json::to_string_pretty(&document()).because(|| "cannot encode the features".to_owned())?;
        report::print(&format!("{text}\n"))?;
        Ok(0)
    }
}

/// The document, as runtime-spec 1.3 `features.md` and `features-linux.md` define it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: Vec<&'static str>,
    mount_options: Vec<String>,
    linux: Linux,
    annotations: BTreeMap<&'static str, String>,
    /// None: no annotation changes what a bundle asks for.
    potentially_unsafe_config_annotations: [&'static str; 0],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: Vec<&'static str>,
    capabilities: Vec<String>,
    cgroup: Cgroup,
    seccomp: SeccompFeatures,
    apparmor: Switch,
    selinux: Switch,
    intel_rdt: IntelRdt,
    memory_policy: MemoryPolicy,
    mount_extensions: MountExtensions,
    net_devices: Switch,
}

#[derive(Debug, Serialize)]
struct Switch {
    enabled: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
    systemd_user: bool,
    rdma: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SeccompFeatures {
    enabled: bool,
    actions: Vec<&'static str>,
    operators: Vec<&'static str>,
    archs: Vec<&'static str>,
    known_flags: Vec<&'static str>,
    supported_flags: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct IntelRdt {
    enabled: bool,
    schemata: bool,
    monitoring: bool,
}

#[derive(Debug, Serialize)]
struct MemoryPolicy {
    modes: Vec<&'static str>,
    flags: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct MountExtensions {
    idmap: Switch,
}

/// What this runtime can do.
pub fn document() -> Document {
    Document {
        oci_version_min: OLDEST_SPEC,
        oci_version_max: SPEC_VERSION,
        hooks: Hooks::default().each().map(|(name, _)| name).to_vec(),
        mount_options: mount_options(),
        linux: Linux {
            namespaces: Kind::ALL.map(Kind::name).to_vec(),
            capabilities: capabilities::all().collect(),
            cgroup: Cgroup {
                v1: true,
                v2: true,
                systemd: crate::cgroup::SYSTEMD,
                systemd_user: crate::cgroup::SYSTEMD_USER,
                rdma: takes(&json!({"linux": {"resources": {"rdma": {"mlx5_1": {"hcaHandles": 3}}}}})),
            },
            seccomp: seccomp_features(),
            apparmor: Switch { enabled: takes(&json!({"process": {"apparmorProfile": "x"}})) },
            selinux: Switch { enabled: takes(&json!({"process": {"selinuxLabel": "system_u:system_r:x_t:s0"}})) },
            intel_rdt: IntelRdt {
                enabled: takes(&json!({"linux": {"intelRdt": {"closID": "x"}}})),
                schemata: takes(&json!({"linux": {"intelRdt": {"schemata": ["L3:0=f"]}}})),
                monitoring: takes(&json!({"linux": {"intelRdt": {"enableMonitoring": true}}})),
            },
            memory_policy: MemoryPolicy {
                modes: filter(MEMORY_MODES, |mode| {
                    let nodes = if NODELESS_MODES.contains(&mode) { "" } else { "0" };
                    takes(&json!({"linux": {"memoryPolicy": {"mode": mode, "nodes": nodes}}}))
                }),
                flags: filter(MEMORY_FLAGS, |flag| {
                    let policy = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]});
                    takes(&json!({"linux": {"memoryPolicy": policy}}))
                }),
            },
            mount_extensions: MountExtensions { idmap: Switch { enabled: mount_option("idmap") } },
            net_devices: Switch { enabled: takes(&json!({"linux": {"netDevices": {"dummy0": {}}}})) },
        },
        annotations: BTreeMap::from([
            ("io.gantry.runtime.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("org.opencontainers.runc.checkpoint.enabled", super::CHECKPOINTS.to_string()),
        ]),
        potentially_unsafe_config_annotations: [],
    }
}

fn filter(words: &[&'static str], takes: impl Fn(&str) -> bool) -> Vec<&'static str> {
    words.iter().copied().filter(|word| takes(word)).collect()
}

/// Words before which `r` makes them count for the mounts below, too.
const ATTRIBUTES: &[&str] = &[
    "atime",
    "dev",
    "diratime",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "relatime",
    "ro",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "unbindable",
];

/// The other mount options of `config.md` and `mount(8)` that are not for one filesystem alone.
const OTHER_OPTIONS: &[&str] = &[
    "acl",
    "async",
    "bind",
    "defaults",
    "dirsync",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noacl",
    "noiversion",
    "nolazytime",
    "nomand",
    "rbind",
    "remount",
    "ridmap",
    "silent",
    "sync",
    "tmpcopyup",
];

fn mount_options() -> Vec<String> {
    let plain = ATTRIBUTES.iter().chain(OTHER_OPTIONS).map(|&word| word.to_owned());
    let recursive = ATTRIBUTES.iter().map(|word| format!("r{word}"));
    let mut all: Vec<String> = plain.chain(recursive).filter(|word| mount_option(word)).collect();
    all.sort_unstable();
    all
}

/// Carried out by the runtime, neither refused nor handed to the filesystem.
fn mount_option(word: &str) -> bool {
    options::parse(&[word.to_owned()]).is_ok_and(|parsed| parsed.data.is_empty())
}

/// `MPOL_*` of `config-linux.md`.
const MEMORY_MODES: &[&str] = &[
    "MPOL_DEFAULT",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_WEIGHTED_INTERLEAVE",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_LOCAL",
];
/// Those that take no nodes.
const NODELESS_MODES: &[&str] = &["MPOL_DEFAULT", "MPOL_LOCAL"];
/// `MPOL_F_*` of `config-linux.md`.
const MEMORY_FLAGS: &[&str] = &["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];

/// Whether the check of configurations takes a smallest one with these keys.
fn takes(keys: &Value) -> bool {
    let mut config = json!({
        "ociVersion": SPEC_VERSION,
        "root": {"path": "rootfs"},
        "process": {"cwd": "/", "args": ["x"]},
        "linux": {"namespaces": Kind::ALL.map(|kind| json!({"type": kind.name()})),
            "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]},
    });
    merge(&mut config, keys);
    // From text, as every configuration: another source would be another copy of all the code that reads one.
    let text = config.to_string();
    serde_json::from_slice::<Config>(text.as_bytes()).is_ok_and(|config| check::check(&config).is_ok())
}

fn merge(into: &mut Value, keys: &Value) {
    match (into, keys) {
        (Value::Object(into), Value::Object(keys)) => {
            for (key, value) in keys {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, value) => *into = value.clone(),
    }
}

/// `SCMP_ACT_*` of `config-linux.md`.
const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
/// `SCMP_CMP_*` of `config-linux.md`.
const OPERATORS: &[&str] =
    &["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"];
/// `SCMP_ARCH_*` of `config-linux.md`, and what libseccomp 2.6 has beyond it.
const ARCHITECTURES: &[&str] = &[
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];
/// `SECCOMP_FILTER_FLAG_*` of `config-linux.md`.
const FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

fn seccomp_features() -> SeccompFeatures {
    let allow = || Seccomp { default_action: "SCMP_ACT_ALLOW".to_owned(), ..Seccomp::default() };
    let rule = |action: &str, args: Vec<SyscallArg>| Seccomp {
        syscalls: vec![SyscallRule {
            names: vec!["getcwd".to_owned()],
            action: action.to_owned(),
            args,
            ..SyscallRule::default()
        }],
        listener_path: (action == "SCMP_ACT_NOTIFY").then(|| "/listener".to_owned()),
        ..allow()
    };
    let flagged = |flag: &str| {
        let listener = flag.ends_with("_RECV");
        let profile = if listener { rule("SCMP_ACT_NOTIFY", Vec::new()) } else { allow() };
        Seccomp { flags: Some(vec![flag.to_owned()]), ..profile }
    };
    let compiles = |profile: &Seccomp| seccomp::compile(profile).is_ok();
    let known_flags = filter(FLAGS, |flag| compiles(&flagged(flag)));
    let supported_flags = filter(&known_flags, |flag| {
        seccomp::compile(&flagged(flag)).is_ok_and(|filter| sys::seccomp::knows_flags(filter.flags))
    });
    SeccompFeatures {
        enabled: true,
        actions: filter(ACTIONS, |action| compiles(&rule(action, Vec::new()))),
        operators: filter(OPERATORS, |op| {
            let arg = SyscallArg { index: 0, value: 1, op: op.to_owned(), ..SyscallArg::default() };
            compiles(&rule("SCMP_ACT_LOG", vec![arg]))
        }),
        archs: filter(ARCHITECTURES, |name| compiles(&Seccomp { architectures: vec![name.to_owned()], ..allow() })),
        known_flags,
        supported_flags,
    }
}
