//! The parts of a service that have a syntax of their own: commands, ports, mounts, checks, deploy.

use super::app::{Context, Declarations, labels};
use super::cursor::Cursor;
use super::interpolate::Vars;
use super::service::REPLICAS_MAX;
use crate::ids::{NetworkName, ServiceName};
use crate::spec::{
    Condition, Constraint, ConstraintKey, HealthCheck, Mount, MountSource, NetworkUse, OnFailure, Placement, Protocol,
    PublishedPort, Restart, RestartCondition, Update, UpdateOrder,
};
use crate::units::{Bytes, MilliCpu, Millis};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// A command as a list, or one line split as a shell would split it; empty or null is absent.
pub(super) fn command(value: &Cursor<'_>) -> Option<Vec<String>> {
    if value.is_null() {
        return None;
    }
    if value.is_list() {
        return Some(value.texts());
    }
    let text = value.text()?;
    split_words(text).map_err(|what| value.problem(what)).ok()
}

/// Splits at white space; quotes and `\` as in a POSIX shell, nothing else of it.
fn split_words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (q, Some(open)) if q == open => quote = None,
            ('\\', None | Some('"')) => match chars.next() {
                Some(next) => {
                    let word = word.get_or_insert_default();
                    if quote.is_some() && !matches!(next, '"' | '\\' | '$' | '`') {
                        word.push('\\');
                    }
                    word.push(next);
                }
                None => return Err("a lone `\\` at the end of the command".to_owned()),
            },
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote in the command is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

/// `environment`: a name without value takes the variable of the one who deploys, when it is set.
pub(super) fn environment(value: &Cursor<'_>, vars: Vars<'_>) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for (key, value, at) in value.pairs(&['=']) {
        if key.is_empty() || key.contains('\0') {
            at.problem("a variable needs a name");
            continue;
        }
        if let Some(value) = value.or_else(|| vars(&key)) {
            out.insert(key, value);
        }
    }
    out
}

const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// A signal by name, with or without `SIG`, or by number.
pub(super) fn signal(value: &Cursor<'_>) -> Option<String> {
    let text = value.text()?;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if SIGNALS.contains(&name) || name.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number)) {
        return Some(if name.starts_with(char::is_numeric) { name.to_owned() } else { format!("SIG{name}") });
    }
    value.problem(format!("`{text}` is not a signal such as SIGTERM"));
    None
}

/// Linux's capabilities, capabilities(7).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Capability names without `CAP_`, or `ALL`.
pub(super) fn capabilities(value: &Cursor<'_>) -> Vec<String> {
    let one = |item: &Cursor<'_>| {
        let text = item.text()?;
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" || CAPABILITIES.contains(&name) {
            return Some(name.to_owned());
        }
        item.problem(format!("`{text}` is not a capability such as NET_ADMIN, or ALL"));
        None
    };
    value.list().iter().filter_map(one).collect()
}

/// A limit of processes; -1 is none.
pub(super) fn pids(value: &Cursor<'_>) -> Option<u32> {
    if value.text()? == "-1" { None } else { value.number(1, 4_194_304) }
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`, as list or map.
pub(super) fn hosts(value: &Cursor<'_>) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for (name, address, at) in value.pairs(&['=', ':']) {
        let address = address.unwrap_or_default();
        let plain = address.trim_start_matches('[').trim_end_matches(']');
        match plain.parse::<std::net::IpAddr>() {
            Ok(address) => {
                out.insert(name, address.to_string());
            }
            Err(_) => at.problem(format!("`{address}` is not an IP address")),
        }
    }
    out
}

// ---- ports

/// `[published:]target[/protocol]` or the long form.
pub(super) fn ports(value: &Cursor<'_>) -> Vec<PublishedPort> {
    let mut out: Vec<PublishedPort> = Vec::new();
    for item in value.list() {
        let ports =
            if item.is_map() { long_port(&item).unwrap_or_default() } else { short_port(&item).unwrap_or_default() };
        for port in ports {
            if !out.contains(&port) {
                out.push(port);
            }
        }
    }
    out
}

fn short_port(item: &Cursor<'_>) -> Option<Vec<PublishedPort>> {
    let text = item.text()?;
    let (addresses, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
        Some((addresses, "udp")) => (addresses, Protocol::Udp),
        Some((_, other)) => {
            item.problem(format!("`{other}` is neither tcp nor udp"));
            return None;
        }
    };
    let Some((rest, target)) = addresses.rsplit_once(':') else {
        item.problem_hint(
            format!("`{text}` names no port on the nodes"),
            &format!("write `8080:{text}`; within the app every port is reachable without publishing it"),
        );
        return None;
    };
    let published = match rest.rsplit_once(':') {
        None | Some(("0.0.0.0", _)) => rest.rsplit(':').next().unwrap_or(rest),
        Some((address, _)) => {
            item.problem_hint(
                format!("a published port is open on every node, not on one address (`{address}`)"),
                "remove the address",
            );
            return None;
        }
    };
    let (published, target) = (range(item, published)?, range(item, target)?);
    if published.clone().count() != target.clone().count() {
        item.problem("the two ranges have different lengths");
        return None;
    }
    Some(published.zip(target).map(|(published, target)| PublishedPort { published, target, protocol }).collect())
}

fn range(item: &Cursor<'_>, text: &str) -> Option<RangeInclusive<u16>> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (low.parse::<u16>(), high.parse::<u16>()) {
        (Ok(low), Ok(high)) if 0 < low && low <= high => Some(low..=high),
        _ => {
            item.problem(format!("`{text}` is not a port from 1 to 65535, or a range of them"));
            None
        }
    }
}

fn long_port(item: &Cursor<'_>) -> Option<Vec<PublishedPort>> {
    let (mut published, mut target, mut protocol) = (None, None, Protocol::Tcp);
    for (key, field) in item.map() {
        match key {
            "published" => published = field.number(1, u16::MAX),
            "target" => target = field.number(1, u16::MAX),
            "protocol" => protocol = field.choice(&[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)])?,
            "mode" if field.text() == Some("ingress") => {}
            "mode" => field.unsupported("ports are open on every node (`mode: ingress`)"),
            "host_ip" => field.unsupported("a published port is open on every node"),
            // for people and tools only
            "name" | "app_protocol" => {}
            _ => field.unknown(&["published", "target", "protocol", "mode", "name", "app_protocol"]),
        }
    }
    match (published, target) {
        (Some(published), Some(target)) => Some(vec![PublishedPort { published, target, protocol }]),
        _ if item.node.get("published").is_none() || item.node.get("target").is_none() => {
            item.problem("give both `published` and `target`");
            None
        }
        _ => None,
    }
}

/// `expose` says what is already so; its form is checked.
pub(super) fn expose(value: &Cursor<'_>) {
    for item in value.list() {
        if let Some(text) = item.text() {
            range(&item, text.trim_end_matches("/tcp").trim_end_matches("/udp"));
        }
    }
}

// ---- mounts

/// `source:target[:ro]` or the long form.
pub(super) fn volumes(value: &Cursor<'_>, declared: &Declarations, context: &Context<'_>) -> Vec<Mount> {
    let one = |item: &Cursor<'_>| {
        let mount =
            if item.is_map() { long_mount(item, declared, context) } else { short_mount(item, declared, context) }?;
        if mount.target.starts_with('/') && mount.target != "/" && !mount.target.split('/').any(|part| part == "..") {
            return Some(mount);
        }
        item.problem(format!("`{}` is not an absolute path inside the replica", mount.target));
        None
    };
    value.list().iter().filter_map(one).collect()
}

fn short_mount(item: &Cursor<'_>, declared: &Declarations, context: &Context<'_>) -> Option<Mount> {
    let text = item.text()?;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [target] => return Some(Mount { target: target.to_owned(), source: MountSource::Anonymous, read_only: false }),
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => {
            item.problem(format!("`{text}` is not source:target or source:target:ro"));
            return None;
        }
    };
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            // SELinux relabelling: without SELinux there is nothing to do
            "rw" | "z" | "Z" => {}
            other => item.problem(format!("mount option `{other}` is not one of: ro, rw, z, Z")),
        }
    }
    let source = if source.starts_with(['/', '.', '~']) {
        MountSource::Bind { path: bind_path(item, source, context)?, create: true }
    } else {
        named(item, source, declared)?
    };
    Some(Mount { target: target.to_owned(), source, read_only })
}

fn named(item: &Cursor<'_>, name: &str, declared: &Declarations) -> Option<MountSource> {
    let volume = name.parse().map_err(|error| item.problem(format!("{error}"))).ok()?;
    if !declared.volumes.contains_key(&volume) {
        item.problem_hint(
            format!("volume `{name}` is not declared"),
            "declare it under `volumes:` at the top, or begin a path with ./ or /",
        );
        return None;
    }
    Some(MountSource::Volume { name: volume })
}

/// A path of the host, absolute; the manifest's folder is where relative ones begin.
fn bind_path(item: &Cursor<'_>, text: &str, context: &Context<'_>) -> Option<String> {
    let text = match text.strip_prefix('~') {
        Some(rest) => match (context.vars)("HOME") {
            Some(home) => format!("{home}{rest}"),
            None => {
                item.problem("`~`: HOME is not set");
                return None;
            }
        },
        None => text.to_owned(),
    };
    Some(context.path(&text).to_string_lossy().into_owned())
}

fn long_mount(item: &Cursor<'_>, declared: &Declarations, context: &Context<'_>) -> Option<Mount> {
    let (mut kind, mut source, mut target, mut read_only) = ("volume", None, None, false);
    let (mut create, mut size, mut mode) = (false, None, None);
    for (key, field) in item.map() {
        match key {
            "type" => kind = field.choice(&[("volume", "volume"), ("bind", "bind"), ("tmpfs", "tmpfs")])?,
            "source" => source = field.word(),
            "target" => target = field.word(),
            "read_only" => read_only = field.boolean().unwrap_or_default(),
            "bind" => {
                for (key, option) in field.map() {
                    match key {
                        "create_host_path" => create = option.boolean().unwrap_or_default(),
                        "propagation" | "selinux" | "recursive" => {
                            option.unsupported("binds are recursive and private")
                        }
                        _ => option.unknown(&["create_host_path"]),
                    }
                }
            }
            "tmpfs" => {
                for (key, option) in field.map() {
                    match key {
                        "size" => size = option.parse::<Bytes>(),
                        "mode" => mode = option.mode(),
                        _ => option.unknown(&["size", "mode"]),
                    }
                }
            }
            "volume" => {
                for (_, option) in field.map() {
                    option.unsupported("a fresh volume is filled from the image");
                }
            }
            "consistency" => {}
            _ => field.unknown(&["type", "source", "target", "read_only", "bind", "volume", "tmpfs", "consistency"]),
        }
    }
    let Some(target) = target else {
        if item.node.get("target").is_none() {
            item.problem("no `target`");
        }
        return None;
    };
    let source = match (kind, source) {
        ("tmpfs", None) => MountSource::Tmpfs { size, mode },
        ("tmpfs", Some(_)) => {
            item.problem("a tmpfs has no `source`");
            return None;
        }
        ("bind", Some(path)) => MountSource::Bind { path: bind_path(item, &path, context)?, create },
        ("bind", None) => {
            item.problem("a bind needs a `source`");
            return None;
        }
        (_, Some(name)) => named(item, &name, declared)?,
        (_, None) => MountSource::Anonymous,
    };
    Some(Mount { target, source, read_only })
}

/// `tmpfs: PATH[:size=64m,mode=1777]`, one or a list.
pub(super) fn tmpfs(value: &Cursor<'_>) -> Vec<Mount> {
    let items = if value.is_list() { value.list() } else { vec![value.clone()] };
    let one = |item: &Cursor<'_>| {
        let text = item.text()?;
        let (target, options) = text.split_once(':').unwrap_or((text, ""));
        let (mut size, mut mode) = (None, None);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", text)) => size = text.parse().map_err(|error| item.problem(format!("{error}"))).ok(),
                Some(("mode", text)) => mode = u32::from_str_radix(text, 8).ok(),
                _ => item.problem(format!("tmpfs option `{option}` is not one of: size=, mode=")),
            }
        }
        if !target.starts_with('/') {
            item.problem(format!("`{target}` is not an absolute path"));
            return None;
        }
        Some(Mount { target: target.to_owned(), source: MountSource::Tmpfs { size, mode }, read_only: false })
    };
    items.iter().filter_map(one).collect()
}

// ---- health, dependencies, networks

const INTERVAL: Millis = Millis(30_000);

/// `healthcheck`, and whether it is switched off, that of the image too.
pub(super) fn health(value: &Cursor<'_>) -> (Option<HealthCheck>, bool) {
    let (mut command, mut off, mut retries) = (None, false, 3);
    let (mut interval, mut timeout, mut period, mut start) = (INTERVAL, INTERVAL, Millis(0), None);
    for (key, field) in value.map() {
        match key {
            "test" => (command, off) = health_test(&field),
            "disable" => off = field.boolean().unwrap_or_default(),
            "interval" => interval = positive(&field).unwrap_or(interval),
            "timeout" => timeout = positive(&field).unwrap_or(timeout),
            "retries" => retries = field.number(1, 1000).unwrap_or(retries),
            "start_period" => period = field.parse().unwrap_or(period),
            "start_interval" => start = positive(&field),
            _ => {
                field.unknown(&["test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"])
            }
        }
    }
    if off {
        return (None, true);
    }
    if command.is_none() && value.node.get("test").is_none() {
        value.problem_hint("no `test`", "give the command that tells whether the replica works");
    }
    let check = |command| HealthCheck {
        command,
        interval_ms: interval,
        timeout_ms: timeout,
        retries,
        start_period_ms: period,
        // docker's default of 5 s would hide a service for most of its start
        start_interval_ms: start.unwrap_or(Millis(interval.0.min(500))),
    };
    (command.map(check), false)
}

fn positive(value: &Cursor<'_>) -> Option<Millis> {
    let span = value.parse::<Millis>()?;
    if span.0 == 0 {
        value.problem("must be longer than 0");
        return None;
    }
    Some(span)
}

/// The command, and whether `NONE` switches checks off.
fn health_test(field: &Cursor<'_>) -> (Option<Vec<String>>, bool) {
    let shell = |line: &str| Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()]);
    if !field.is_list() {
        return (field.word().as_deref().and_then(shell), false);
    }
    let words = field.texts();
    match (words.first().map(String::as_str), words.len()) {
        (Some("NONE"), 1) => (None, true),
        (Some("CMD"), 2..) => (Some(words[1..].to_vec()), false),
        (Some("CMD-SHELL"), 2) => (shell(&words[1]), false),
        _ => {
            field.problem_hint(
                "the list begins with CMD, CMD-SHELL (and one line) or NONE",
                "for example [\"CMD\", \"pg_isready\"]",
            );
            (None, false)
        }
    }
}

/// `depends_on`, as list or map.
pub(super) fn depends_on(value: &Cursor<'_>) -> BTreeMap<ServiceName, Condition> {
    let mut out = BTreeMap::new();
    if !value.is_map() {
        let names = value.list().into_iter().filter_map(|item| item.parse::<ServiceName>());
        return names.map(|name| (name, Condition::Started)).collect();
    }
    let conditions = [
        ("service_started", Condition::Started),
        ("service_healthy", Condition::Healthy),
        ("service_completed_successfully", Condition::CompletedSuccessfully),
    ];
    for (key, item) in value.map() {
        let mut condition = Condition::Started;
        for (field, option) in item.map() {
            match field {
                "condition" => condition = option.choice(&conditions).unwrap_or(condition),
                "required" if option.boolean() == Some(true) => {}
                "restart" if option.boolean() == Some(false) => {}
                "required" => option.unsupported("leave out a service that is not needed"),
                "restart" => option.unsupported("services find each other again by name"),
                _ => option.unknown(&["condition", "required", "restart"]),
            }
        }
        if let Ok(name) = key.parse().map_err(|error| item.problem(format!("{error}"))) {
            out.insert(name, condition);
        }
    }
    out
}

/// A service's networks, as list or map.
pub(super) fn networks(value: &Cursor<'_>, declared: &Declarations) -> BTreeMap<NetworkName, NetworkUse> {
    let mut out = BTreeMap::new();
    let items: Vec<(String, Cursor<'_>, bool)> = if value.is_map() {
        value.map().into_iter().map(|(key, item)| (key.to_owned(), item, true)).collect()
    } else {
        value.list().into_iter().filter_map(|item| Some((item.word()?, item, false))).collect()
    };
    for (name, item, options) in items {
        let mut used = NetworkUse::default();
        for (field, option) in if options { item.map() } else { Vec::new() } {
            match field {
                "aliases" => used.aliases = aliases(&option),
                "priority" | "interface_name" | "gw_priority" | "ipv4_address" | "ipv6_address" | "link_local_ips"
                | "mac_address" | "driver_opts" => option.unsupported("addresses are chosen by the node"),
                _ => option.unknown(&["aliases"]),
            }
        }
        let Ok(name) = name.parse::<NetworkName>().map_err(|error| item.problem(format!("{error}"))) else { continue };
        if name.as_str() != "default" && !declared.networks.contains(&name) {
            item.problem_hint(format!("network `{name}` is not declared"), "declare it under `networks:` at the top");
        }
        out.insert(name, used);
    }
    out
}

/// More names of the service; each one DNS label.
fn aliases(value: &Cursor<'_>) -> Vec<String> {
    let one = |item: Cursor<'_>| item.parse::<ServiceName>().map(|name| name.to_string());
    value.list().into_iter().filter_map(one).collect()
}

// ---- deploy

/// What `deploy` says; `None` where it is silent.
#[derive(Default)]
pub(super) struct Deploy {
    pub(super) replicas: Option<u32>,
    pub(super) resources: DeployResources,
    pub(super) placement: Placement,
    pub(super) restart: Option<Restart>,
    pub(super) update: Option<Update>,
    pub(super) labels: BTreeMap<String, String>,
}

/// `deploy.resources`.
#[derive(Default)]
pub(super) struct DeployResources {
    pub(super) reserve_cpu: Option<MilliCpu>,
    pub(super) reserve_memory: Option<Bytes>,
    pub(super) limit_cpu: Option<MilliCpu>,
    pub(super) limit_memory: Option<Bytes>,
    pub(super) limit_pids: Option<u32>,
}

/// `deploy`.
pub(super) fn deploy(value: &Cursor<'_>) -> Deploy {
    let mut out = Deploy::default();
    for (key, field) in value.map() {
        match key {
            "replicas" => out.replicas = field.number(0, REPLICAS_MAX),
            "resources" => out.resources = resources(&field),
            "placement" => out.placement = placement(&field),
            "restart_policy" => out.restart = restart_policy(&field),
            "update_config" => out.update = update(&field),
            "labels" => out.labels = labels(&field),
            "mode" if field.text() == Some("replicated") => {}
            "mode" => field.unsupported("only `replicated` is; set `replicas`"),
            "endpoint_mode" if field.text() == Some("vip") => {}
            "endpoint_mode" => field.unsupported("only `vip` is; `tasks.SERVICE` in DNS gives the replicas"),
            "rollback_config" => field.unsupported("a failed change stops where it is (`failure_action: pause`)"),
            _ => field.unknown(&[
                "replicas",
                "resources",
                "placement",
                "restart_policy",
                "update_config",
                "labels",
                "mode",
                "endpoint_mode",
            ]),
        }
    }
    out
}

fn resources(value: &Cursor<'_>) -> DeployResources {
    let mut out = DeployResources::default();
    for (key, half) in value.map() {
        let limits = match key {
            "limits" => true,
            "reservations" => false,
            _ => {
                half.unknown(&["limits", "reservations"]);
                continue;
            }
        };
        for (key, field) in half.map() {
            match (key, limits) {
                ("cpus", true) => out.limit_cpu = field.parse(),
                ("cpus", false) => out.reserve_cpu = field.parse(),
                ("memory", true) => out.limit_memory = field.parse(),
                ("memory", false) => out.reserve_memory = field.parse(),
                ("pids", true) => out.limit_pids = pids(&field),
                ("devices" | "generic_resources", _) => field.unsupported("devices are not handed out yet"),
                (_, true) => field.unknown(&["cpus", "memory", "pids"]),
                (_, false) => field.unknown(&["cpus", "memory"]),
            }
        }
    }
    out
}

fn placement(value: &Cursor<'_>) -> Placement {
    let mut out = Placement::default();
    for (key, field) in value.map() {
        match key {
            "constraints" => out.constraints = field.list().iter().filter_map(constraint).collect(),
            "max_replicas_per_node" => out.max_per_node = field.number(1, REPLICAS_MAX),
            "preferences" => field.unsupported("replicas are spread over nodes already"),
            _ => field.unknown(&["constraints", "max_replicas_per_node"]),
        }
    }
    out
}

/// `node.labels.disk == ssd`.
fn constraint(item: &Cursor<'_>) -> Option<Constraint> {
    let text = item.text()?;
    let split = text.split_once("==").map(|(k, v)| (k, v, true));
    let Some((key, value, equal)) = split.or_else(|| text.split_once("!=").map(|(k, v)| (k, v, false))) else {
        item.problem(format!("`{text}` has neither == nor !="));
        return None;
    };
    let (key, value) = (key.trim(), value.trim());
    let key = match key {
        "node.hostname" => ConstraintKey::Hostname,
        "node.id" => ConstraintKey::Id,
        "node.platform.os" => ConstraintKey::Os,
        "node.platform.arch" => ConstraintKey::Arch,
        _ => match key.strip_prefix("node.labels.") {
            Some(label) if !label.is_empty() => ConstraintKey::Label(label.to_owned()),
            _ => {
                let known = "known: node.hostname, node.id, node.labels.NAME, node.platform.os, node.platform.arch";
                item.problem_hint(format!("`{key}` cannot be compared"), known);
                return None;
            }
        },
    };
    Some(Constraint { key, equal, value: value.to_owned() })
}

fn restart_policy(value: &Cursor<'_>) -> Option<Restart> {
    let mut out = Restart::default();
    let conditions =
        [("none", RestartCondition::None), ("on-failure", RestartCondition::OnFailure), ("any", RestartCondition::Any)];
    for (key, field) in value.map() {
        match key {
            "condition" => out.condition = field.choice(&conditions)?,
            "delay" => out.delay_ms = field.parse(),
            "max_attempts" => out.attempts_max = field.number(0, 1_000_000),
            "window" => field.unsupported("a replica that ran for a minute counts as healthy"),
            _ => field.unknown(&["condition", "delay", "max_attempts"]),
        }
    }
    Some(out)
}

fn update(value: &Cursor<'_>) -> Option<Update> {
    let mut out = Update::default();
    let orders = [("stop-first", UpdateOrder::StopFirst), ("start-first", UpdateOrder::StartFirst)];
    let actions = [("pause", OnFailure::Pause), ("continue", OnFailure::Continue), ("rollback", OnFailure::Rollback)];
    for (key, field) in value.map() {
        match key {
            "parallelism" => out.parallelism = field.number(0, REPLICAS_MAX)?,
            "delay" => out.delay_ms = field.parse()?,
            "monitor" => out.monitor_ms = field.parse()?,
            "order" => out.order = field.choice(&orders)?,
            "failure_action" => out.on_failure = field.choice(&actions)?,
            "max_failure_ratio" if field.text().is_some_and(|text| text.parse() == Ok(0.0)) => {}
            "max_failure_ratio" => field.unsupported("the first failure counts"),
            _ => field.unknown(&["parallelism", "delay", "monitor", "order", "failure_action"]),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::split_words;

    #[test]
    fn a_command_line_is_split_like_a_shell_would() {
        for (text, want) in [
            ("a b  c", Some(vec!["a", "b", "c"])),
            ("sh -c 'echo \"x y\"'", Some(vec!["sh", "-c", "echo \"x y\""])),
            ("a \"b \\\" c\" d\\ e", Some(vec!["a", "b \" c", "d e"])),
            ("a \"\" ''", Some(vec!["a", "", ""])),
            ("a\"b\"c", Some(vec!["abc"])),
            ("\"\\n\"", Some(vec!["\\n"])),
            ("", Some(vec![])),
            ("'open", None),
            ("end\\", None),
        ] {
            let want = want.map(|words| words.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(split_words(text).ok(), want, "{text}");
        }
    }
}
