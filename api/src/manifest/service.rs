//! One service of a manifest.

use super::app::{Context, Declarations, Declared, labels};
use super::cursor::Cursor;
use super::{dotenv, parts};
use crate::ids::ServiceName;
use crate::spec::{
    Condition, File, Mount, NetworkUse, PublishedPort, PullPolicy, Restart, RestartCondition, Service, Template, Ulimit,
};
use crate::units::MilliCpu;
use std::collections::BTreeMap;

/// A service and the profiles that switch it on (none: always on).
pub(super) struct Read {
    pub(super) service: Service,
    pub(super) profiles: Vec<String>,
}

const KEYS: [&str; 53] = [
    "image",
    "command",
    "entrypoint",
    "environment",
    "env_file",
    "working_dir",
    "user",
    "hostname",
    "ports",
    "expose",
    "volumes",
    "tmpfs",
    "configs",
    "secrets",
    "networks",
    "healthcheck",
    "depends_on",
    "deploy",
    "scale",
    "restart",
    "cpus",
    "mem_limit",
    "mem_reservation",
    "pids_limit",
    "cap_add",
    "cap_drop",
    "privileged",
    "read_only",
    "init",
    "tty",
    "security_opt",
    "sysctls",
    "ulimits",
    "group_add",
    "extra_hosts",
    "shm_size",
    "labels",
    "stop_signal",
    "stop_grace_period",
    "pull_policy",
    "profiles",
    "build",
    "container_name",
    "network_mode",
    "links",
    "logging",
    "platform",
    "stdin_open",
    "dns",
    "extends",
    "develop",
    "annotations",
    "x-gantry",
];

/// What Compose has and this version refuses, with what to do instead.
const REFUSED: [(&str, &str); 41] = [
    ("annotations", "use `labels`"),
    ("attach", "see the output with `gantry logs`"),
    ("blkio_config", "limits are cpu, memory and pids"),
    ("build", "build the image, then `gantry load` it or push it to a registry, and name it with `image:`"),
    ("cgroup", "every replica has a cgroup of its own"),
    ("cgroup_parent", "it is set per node"),
    ("container_name", "replicas are named APP-SERVICE-NUMBER"),
    ("cpu_count", "use `cpus`"),
    ("cpu_percent", "use `cpus`"),
    ("cpu_period", "use `cpus`"),
    ("cpu_quota", "use `cpus`"),
    ("cpu_rt_period", "use `cpus`"),
    ("cpu_rt_runtime", "use `cpus`"),
    ("cpu_shares", "use `deploy.resources.reservations.cpus`"),
    ("cpuset", "use `cpus`"),
    ("credential_spec", "it is for Windows"),
    ("develop", "change the image and run `gantry up` again"),
    ("device_cgroup_rules", "devices are not handed out yet"),
    ("devices", "devices are not handed out yet"),
    ("dns", "every replica asks its node, which forwards to the host's servers"),
    ("dns_opt", "every replica asks its node"),
    ("dns_search", "every replica asks its node"),
    ("domainname", "use `hostname`"),
    ("extends", "use YAML anchors and merge keys (`<<: *base`)"),
    ("gpus", "devices are not handed out yet"),
    ("ipc", "every replica has its own"),
    ("isolation", "it is for Windows"),
    ("links", "services of an app reach each other by name; use `depends_on` for order"),
    ("logging", "logs are kept on the node and read with `gantry logs`"),
    ("mac_address", "it is chosen by the node"),
    ("memswap_limit", "set `mem_limit`"),
    ("mem_swappiness", "set `mem_limit`"),
    ("network_mode", "every replica has its own address; remove the key"),
    ("oom_kill_disable", "set a memory limit that fits"),
    ("oom_score_adj", "set a memory limit that fits"),
    ("pid", "every replica has its own"),
    ("platform", "the node's own is used"),
    ("runtime", "the runtime is Gantry's own"),
    ("stdin_open", "a replica has no input; use `gantry exec -it`"),
    ("userns_mode", "user namespaces are not used yet"),
    ("volumes_from", "name the volume in both services"),
];

/// A service; what cannot be read is recorded and left at its default.
pub(super) fn read(at: &Cursor<'_>, declared: &Declarations, context: &Context<'_>) -> Read {
    let mut reader = Reader {
        declared,
        context,
        template: Template { stop_grace_ms: crate::units::Millis(10_000), ..Template::default() },
        parts: Parts::default(),
    };
    for (key, value) in at.map() {
        let known = reader.process(key, &value)
            || reader.confinement(key, &value)
            || reader.files(key, &value)
            || reader.running(key, &value);
        if !known {
            match REFUSED.iter().find(|(refused, _)| *refused == key) {
                Some((_, hint)) => value.unsupported(hint),
                None => value.unknown(&KEYS),
            }
        }
    }
    reader.finish(at)
}

/// An image's name as far as its letters tell; what it really names, the node knows.
fn image(value: &Cursor<'_>) -> String {
    let name = value.word().unwrap_or_default();
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@' | '[' | ']');
    let fine =
        name.chars().all(known) && !name.starts_with(['.', '-', '/', ':', '@']) && !name.ends_with(['/', ':', '@']);
    if !fine && !name.is_empty() {
        value.problem_hint(
            format!("`{name}` is not an image reference"),
            "write [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST], such as `nginx:1.27`",
        );
    }
    name
}

/// What a service consists of besides its template.
#[derive(Default)]
struct Parts {
    ports: Vec<PublishedPort>,
    depends_on: BTreeMap<ServiceName, Condition>,
    networks: Option<BTreeMap<crate::ids::NetworkName, NetworkUse>>,
    deploy: parts::Deploy,
    scale: Option<u32>,
    restart: Option<Restart>,
    profiles: Vec<String>,
    env_file: Vec<(String, String)>,
}

struct Reader<'a> {
    declared: &'a Declarations,
    context: &'a Context<'a>,
    template: Template,
    parts: Parts,
}

impl Reader<'_> {
    /// What runs: image, command, variables.
    fn process(&mut self, key: &str, value: &Cursor<'_>) -> bool {
        let t = &mut self.template;
        match key {
            "image" => t.image = image(value),
            "command" => t.command = parts::command(value),
            "entrypoint" => t.entrypoint = parts::command(value),
            "environment" => t.environment.extend(parts::environment(value, self.context.vars)),
            "env_file" => self.parts.env_file = env_files(value, self.context),
            "working_dir" => t.working_dir = value.word(),
            "user" => t.user = value.word(),
            "hostname" => t.hostname = value.word(),
            "stop_signal" => t.stop_signal = parts::signal(value),
            "stop_grace_period" => t.stop_grace_ms = value.parse().unwrap_or(t.stop_grace_ms),
            "pull_policy" => t.pull = pull_policy(value),
            "init" => t.init = value.boolean().unwrap_or_default(),
            "tty" => t.tty = value.boolean().unwrap_or_default(),
            "labels" => t.labels = labels(value),
            "healthcheck" => (t.health, t.health_off) = parts::health(value),
            _ => return false,
        }
        true
    }

    /// What it may do.
    fn confinement(&mut self, key: &str, value: &Cursor<'_>) -> bool {
        let t = &mut self.template;
        match key {
            "cap_add" => t.cap_add = parts::capabilities(value),
            "cap_drop" => t.cap_drop = parts::capabilities(value),
            "privileged" => t.privileged = value.boolean().unwrap_or_default(),
            "read_only" => t.read_only = value.boolean().unwrap_or_default(),
            "security_opt" => security(t, value),
            "sysctls" => t.sysctls = labels(value),
            "ulimits" => t.ulimits = value.map().iter().filter_map(|(k, v)| Some(((*k).into(), ulimit(v)?))).collect(),
            "group_add" => t.group_add = value.texts(),
            "cpus" => t.resources.limit_cpu = value.parse(),
            "mem_limit" => t.resources.limit_memory = value.parse(),
            "mem_reservation" => t.resources.reserve_memory = value.parse().unwrap_or_default(),
            "pids_limit" => t.resources.limit_pids = parts::pids(value),
            "shm_size" => t.shm_size = value.parse(),
            _ => return false,
        }
        true
    }

    /// What it sees of the outside.
    fn files(&mut self, key: &str, value: &Cursor<'_>) -> bool {
        let t = &mut self.template;
        match key {
            "volumes" => t.mounts.extend(parts::volumes(value, self.declared, self.context)),
            "tmpfs" => t.mounts.extend(parts::tmpfs(value)),
            "configs" => t.files.extend(files(value, &self.declared.configs, false)),
            "secrets" => t.files.extend(files(value, &self.declared.secrets, true)),
            "extra_hosts" => t.extra_hosts = parts::hosts(value),
            _ => return false,
        }
        true
    }

    /// How it is run.
    fn running(&mut self, key: &str, value: &Cursor<'_>) -> bool {
        match key {
            "ports" => self.parts.ports = parts::ports(value),
            // every port of a replica is reachable within the app: only the form is checked
            "expose" => parts::expose(value),
            "networks" => self.parts.networks = Some(parts::networks(value, self.declared)),
            "depends_on" => self.parts.depends_on = parts::depends_on(value),
            "deploy" => self.parts.deploy = parts::deploy(value),
            "scale" => self.parts.scale = value.number(0, REPLICAS_MAX),
            "restart" => self.parts.restart = restart(value),
            "profiles" => self.parts.profiles = value.texts(),
            _ => return false,
        }
        true
    }

    fn finish(self, at: &Cursor<'_>) -> Read {
        let Self { mut template, parts, .. } = self;
        if template.image.is_empty() && at.node.get("image").is_none() && at.node.get("build").is_none() {
            at.problem_hint("no image", "name one with `image:`");
        }
        for (key, value) in parts.env_file {
            template.environment.entry(key).or_insert(value);
        }
        let parts::DeployResources { reserve_cpu, reserve_memory, limit_cpu, limit_memory, limit_pids } =
            parts.deploy.resources;
        let resources = &mut template.resources;
        resources.reserve_cpu = reserve_cpu.unwrap_or(MilliCpu(0));
        resources.reserve_memory = reserve_memory.unwrap_or(resources.reserve_memory);
        resources.limit_cpu = limit_cpu.or(resources.limit_cpu);
        resources.limit_memory = limit_memory.or(resources.limit_memory);
        resources.limit_pids = limit_pids.or(resources.limit_pids);
        if resources.limit_memory.is_some_and(|limit| limit < resources.reserve_memory) {
            at.problem("more memory is reserved than the limit allows");
        }
        if resources.limit_cpu.is_some_and(|limit| limit < resources.reserve_cpu) {
            at.problem("more cpus are reserved than the limit allows");
        }
        // of two mounts on one target the later counts (merged files)
        let mut mounts: Vec<Mount> = Vec::new();
        for mount in template.mounts {
            mounts.retain(|earlier| earlier.target != mount.target);
            mounts.push(mount);
        }
        template.mounts = mounts;
        if let (Some(_), Some(_)) = (&parts.restart, &parts.deploy.restart) {
            at.problem_hint("both `restart` and `deploy.restart_policy`", "keep one of the two");
        }
        template.restart = parts.deploy.restart.or(parts.restart).unwrap_or_default();
        if let (Some(_), Some(_)) = (parts.scale, parts.deploy.replicas) {
            at.problem_hint("both `scale` and `deploy.replicas`", "keep one of the two");
        }
        let default = || [("default".parse().expect("a valid name"), NetworkUse::default())].into();
        let service = Service {
            template,
            replicas: parts.deploy.replicas.or(parts.scale).unwrap_or(1),
            ports: parts.ports,
            depends_on: parts.depends_on,
            placement: parts.deploy.placement,
            update: parts.deploy.update.unwrap_or_default(),
            networks: parts.networks.filter(|networks| !networks.is_empty()).unwrap_or_else(default),
            labels: parts.deploy.labels,
        };
        Read { service, profiles: parts.profiles }
    }
}

/// Replicas of one service at most.
pub(super) const REPLICAS_MAX: u32 = 10_000;

fn pull_policy(value: &Cursor<'_>) -> PullPolicy {
    let choices = [
        ("missing", PullPolicy::Missing),
        ("if_not_present", PullPolicy::Missing),
        ("always", PullPolicy::Always),
        ("never", PullPolicy::Never),
    ];
    value.choice(&choices).unwrap_or_default()
}

/// `no`, `always`, `on-failure[:times]`, `unless-stopped`.
fn restart(value: &Cursor<'_>) -> Option<Restart> {
    let policy = |condition, attempts_max| Some(Restart { condition, attempts_max, delay_ms: None });
    match value.text()? {
        "no" | "false" => policy(RestartCondition::None, None),
        "always" | "unless-stopped" => policy(RestartCondition::Any, None),
        "on-failure" => policy(RestartCondition::OnFailure, None),
        other => match other.strip_prefix("on-failure:").map(str::parse) {
            Some(Ok(times)) => policy(RestartCondition::OnFailure, Some(times)),
            _ => {
                value.problem(format!("`{other}` is not one of: no, always, on-failure[:times], unless-stopped"));
                None
            }
        },
    }
}

fn security(template: &mut Template, value: &Cursor<'_>) {
    for item in value.list() {
        match item.text() {
            Some("no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true") => {
                template.no_new_privileges = true;
            }
            Some("no-new-privileges:false" | "no-new-privileges=false") => template.no_new_privileges = false,
            Some("seccomp:unconfined" | "seccomp=unconfined") => template.seccomp_unconfined = true,
            Some(_) => item.problem("only no-new-privileges and seccomp:unconfined are supported"),
            None => {}
        }
    }
}

const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

fn ulimit(value: &Cursor<'_>) -> Option<Ulimit> {
    let name = value.path.rsplit('.').next().unwrap_or_default();
    if !ULIMITS.contains(&name) {
        value.unknown(&ULIMITS);
        return None;
    }
    // -1 is no limit
    let number = |at: &Cursor<'_>| match at.text()? {
        "-1" | "unlimited" => Some(u64::MAX),
        _ => at.number(0, u64::MAX),
    };
    if !value.is_map() {
        return number(value).map(|both| Ulimit { soft: both, hard: both });
    }
    let (mut soft, mut hard) = (None, None);
    for (key, item) in value.map() {
        match key {
            "soft" => soft = number(&item),
            "hard" => hard = number(&item),
            _ => item.unknown(&["soft", "hard"]),
        }
    }
    match (soft, hard) {
        (Some(soft), Some(hard)) if soft <= hard => Some(Ulimit { soft, hard }),
        (Some(soft), Some(hard)) => {
            value.problem(format!("soft limit {soft} is over the hard limit {hard}"));
            None
        }
        _ => {
            value.problem("give both `soft` and `hard`");
            None
        }
    }
}

/// `configs` and `secrets` of a service.
fn files(value: &Cursor<'_>, declared: &BTreeMap<String, Declared>, secret: bool) -> Vec<File> {
    value.list().iter().filter_map(|item| file(item, declared, secret)).collect()
}

fn file(item: &Cursor<'_>, declared: &BTreeMap<String, Declared>, secret: bool) -> Option<File> {
    let (mut source, mut target, mut mode, mut uid, mut gid) = (None, None, 0o444, 0, 0);
    if item.is_map() {
        for (key, field) in item.map() {
            match key {
                "source" => source = field.word(),
                "target" => target = field.word(),
                "mode" => mode = field.mode()?,
                "uid" => uid = field.number(0, u32::MAX)?,
                "gid" => gid = field.number(0, u32::MAX)?,
                _ => field.unknown(&["source", "target", "mode", "uid", "gid"]),
            }
        }
    } else {
        source = item.word();
    }
    let Some(source) = source else {
        item.problem("no `source`");
        return None;
    };
    let Some(found) = declared.get(&source) else {
        let kind = if secret { "secrets" } else { "configs" };
        item.problem_hint(format!("`{source}` is not declared"), &format!("declare it under `{kind}:` at the top"));
        return None;
    };
    let folder = if secret { "/run/secrets/" } else { "/" };
    let target = target.unwrap_or_else(|| source.clone());
    let target = if target.starts_with('/') { target } else { format!("{folder}{target}") };
    Some(File { target, content: found.content.clone(), mode, uid, gid, secret })
}

fn env_files(value: &Cursor<'_>, context: &Context<'_>) -> Vec<(String, String)> {
    let items = if value.is_list() { value.list() } else { vec![value.clone()] };
    items.iter().flat_map(|item| env_file(item, context).unwrap_or_default()).collect()
}

fn env_file(item: &Cursor<'_>, context: &Context<'_>) -> Option<Vec<(String, String)>> {
    let (mut path, mut required) = (None, true);
    if item.is_map() {
        for (key, field) in item.map() {
            match key {
                "path" => path = field.word(),
                "required" => required = field.boolean()?,
                _ => field.unknown(&["path", "required"]),
            }
        }
    } else {
        path = item.word();
    }
    let Some(path) = path else {
        item.problem("no `path`");
        return None;
    };
    let path = context.path(&path);
    let text = match context.host.read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return None,
        Err(error) => {
            item.problem(format!("{} cannot be read: {error}", path.display()));
            return None;
        }
    };
    dotenv::parse(&text, context.vars)
        .map_err(|(line, what)| item.problem(format!("{}:{line}: {what}", path.display())))
        .ok()
}
