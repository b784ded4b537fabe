//! Desired state: what an app's manifest means, with every default filled in. Stored as JSON.
//!
//! A [`Service`] has two halves: its [`Template`] is all that a replica is made from, so a change there replaces
//! replicas; the rest (how many, where, how to change) can change under running replicas.

use crate::ids::{AppName, NetworkName, ServiceName, VolumeName};
use crate::units::{Bytes, MilliCpu, Millis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An app as deployed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct App {
    /// Its name.
    pub name: AppName,
    /// Its services; never empty.
    pub services: BTreeMap<ServiceName, Service>,
    /// Named volumes that the manifest declares.
    #[serde(default)]
    pub volumes: BTreeMap<VolumeName, Volume>,
}

/// A named local volume: a directory on the node where its replica first ran; it pins that replica.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// Labels of the manifest.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// One microservice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// What each replica is made from.
    pub template: Template,
    /// Replicas that should run.
    pub replicas: u32,
    /// Ports open on every node.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// Services that must have reached a condition before this one's first start.
    #[serde(default)]
    pub depends_on: BTreeMap<ServiceName, Condition>,
    /// Which nodes may run it.
    #[serde(default)]
    pub placement: Placement,
    /// How a change is rolled out.
    #[serde(default)]
    pub update: Update,
    /// Networks it is on; services reach each other when they share one.
    #[serde(default)]
    pub networks: BTreeMap<NetworkName, NetworkUse>,
    /// Labels of the service (Compose `deploy.labels`).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A service's place on one network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkUse {
    /// More DNS names for the service.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// What a replica is made from. Two replicas of equal templates are interchangeable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// Image reference as written in the manifest.
    pub image: String,
    /// When to ask the registry.
    #[serde(default)]
    pub pull: PullPolicy,
    /// Replaces the image's entry point.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// Variables on top of the image's.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Replaces the image's working directory.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Replaces the image's user: `user`, `uid`, `user:group`, `uid:gid`.
    #[serde(default)]
    pub user: Option<String>,
    /// Host name; the replica's name when absent.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Volumes, binds and tmpfs.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Small files with content from the manifest (Compose `configs` and `secrets`).
    #[serde(default)]
    pub files: Vec<File>,
    /// Reservations and limits.
    #[serde(default)]
    pub resources: Resources,
    /// How to tell that a replica works.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// Without `health`: the check that the image may bring along is not run either.
    #[serde(default)]
    pub health_off: bool,
    /// What to do when it ends.
    #[serde(default)]
    pub restart: Restart,
    /// Signal that asks it to stop; the image's, or `SIGTERM`, when absent.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// How long it may take to stop before SIGKILL.
    #[serde(default = "stop_grace_default")]
    pub stop_grace_ms: Millis,
    /// Capabilities on top of the default set; `ALL` is all.
    #[serde(default)]
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set; `ALL` is all.
    #[serde(default)]
    pub cap_drop: Vec<String>,
    /// No confinement beyond namespaces.
    #[serde(default)]
    pub privileged: bool,
    /// Root file system read-only.
    #[serde(default)]
    pub read_only: bool,
    /// A small init as PID 1 that reaps orphans.
    #[serde(default)]
    pub init: bool,
    /// A terminal as its standard streams.
    #[serde(default)]
    pub tty: bool,
    /// `security_opt: no-new-privileges`.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// `security_opt: seccomp:unconfined`.
    #[serde(default)]
    pub seccomp_unconfined: bool,
    /// Namespaced kernel parameters.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Soft and hard limits by name without `RLIMIT_`, lower case (`nofile`).
    #[serde(default)]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Supplementary groups.
    #[serde(default)]
    pub group_add: Vec<String>,
    /// Lines for /etc/hosts: name to address.
    #[serde(default)]
    pub extra_hosts: BTreeMap<String, String>,
    /// Size of /dev/shm.
    #[serde(default)]
    pub shm_size: Option<Bytes>,
    /// Labels of the replica.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

const fn stop_grace_default() -> Millis {
    Millis(10_000)
}

/// When a registry is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Only when the image is not there.
    #[default]
    Missing,
    /// Before every creation of a replica.
    Always,
    /// Never: an absent image is an error.
    Never,
}

/// One mount of a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside.
    pub target: String,
    /// Where it comes from.
    pub source: MountSource,
    /// No writes.
    #[serde(default)]
    pub read_only: bool,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MountSource {
    /// A named local volume of the app.
    Volume {
        /// Its name.
        name: VolumeName,
    },
    /// A directory of its own that goes with the replica.
    Anonymous,
    /// A path of the node.
    Bind {
        /// Absolute path on the node.
        path: String,
        /// Make a missing directory (Compose short syntax) instead of refusing.
        create: bool,
    },
    /// Memory.
    Tmpfs {
        /// Limit of its size.
        size: Option<Bytes>,
        /// Octal mode.
        mode: Option<u32>,
    },
}

/// A small file given by the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// Absolute path inside.
    pub target: String,
    /// Its bytes, as text.
    pub content: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    #[serde(default)]
    pub uid: u32,
    /// Group.
    #[serde(default)]
    pub gid: u32,
    /// Held on tmpfs and shown to nobody.
    #[serde(default)]
    pub secret: bool,
}

/// What a replica is promised and what it may take at most; zero reserves nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Processors promised.
    #[serde(default)]
    pub reserve_cpu: MilliCpu,
    /// Memory promised.
    #[serde(default)]
    pub reserve_memory: Bytes,
    /// Processors at most.
    #[serde(default)]
    pub limit_cpu: Option<MilliCpu>,
    /// Memory at most.
    #[serde(default)]
    pub limit_memory: Option<Bytes>,
    /// Processes and threads at most.
    #[serde(default)]
    pub limit_pids: Option<u32>,
}

/// A check that runs inside the replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Program and arguments (`CMD-SHELL` is already `/bin/sh -c …`).
    pub command: Vec<String>,
    /// Between two checks.
    pub interval_ms: Millis,
    /// A check that takes longer has failed.
    pub timeout_ms: Millis,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
    /// Failures within this time of the start do not count.
    pub start_period_ms: Millis,
    /// Between checks during the start period.
    pub start_interval_ms: Millis,
}

/// What to do when a replica ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// Which endings are followed by a restart.
    pub condition: RestartCondition,
    /// Restarts at most; none is no limit.
    #[serde(default)]
    pub attempts_max: Option<u32>,
    /// Pause before each restart in place of the back-off.
    #[serde(default)]
    pub delay_ms: Option<Millis>,
}

impl Default for Restart {
    fn default() -> Self {
        Self { condition: RestartCondition::Any, attempts_max: None, delay_ms: None }
    }
}

/// Which endings are followed by a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartCondition {
    /// No ending: the service is done when its replicas have ended.
    None,
    /// An exit code other than 0, a signal, or failed health.
    OnFailure,
    /// Every ending.
    Any,
}

/// One resource limit of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// What a service waits for in another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// All its replicas run.
    Started,
    /// All its replicas are ready.
    Healthy,
    /// All its replicas ended with exit code 0.
    CompletedSuccessfully,
}

/// A port open on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Port on the nodes.
    pub published: u16,
    /// Port of the replicas.
    pub target: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Which nodes may run a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// All must hold.
    #[serde(default)]
    pub constraints: Vec<Constraint>,
    /// Replicas at most on one node.
    #[serde(default)]
    pub max_per_node: Option<u32>,
}

/// One rule on nodes: `node.labels.disk == ssd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// What is looked at.
    pub key: ConstraintKey,
    /// `==`, or `!=` when false.
    pub equal: bool,
    /// The value compared with.
    pub value: String,
}

/// What a constraint looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", content = "label", rename_all = "snake_case")]
pub enum ConstraintKey {
    /// `node.hostname`: the node's name.
    Hostname,
    /// `node.id`.
    Id,
    /// `node.labels.NAME`.
    Label(String),
    /// `node.platform.arch`.
    Arch,
    /// `node.platform.os`.
    Os,
}

/// How a change of the template is rolled out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Replicas changed at once; 0 is all.
    pub parallelism: u32,
    /// Which comes first.
    pub order: UpdateOrder,
    /// Pause between two batches.
    pub delay_ms: Millis,
    /// How long a changed replica is watched before it counts as good.
    pub monitor_ms: Millis,
    /// What to do when a changed replica fails.
    pub on_failure: OnFailure,
}

impl Default for Update {
    /// Compose's defaults, with health instead of a fixed watch: one at a time, old one first.
    fn default() -> Self {
        Self {
            parallelism: 1,
            order: UpdateOrder::StopFirst,
            delay_ms: Millis(0),
            monitor_ms: Millis(0),
            on_failure: OnFailure::Pause,
        }
    }
}

/// Which comes first when a replica is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateOrder {
    /// The old one ends before the new one starts.
    StopFirst,
    /// The new one is ready before the old one ends.
    StartFirst,
}

/// What to do when a rolling change fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Stop changing; what runs keeps running.
    Pause,
    /// Go on.
    Continue,
    /// Go back to the template before.
    Rollback,
}
