//! The top level of a manifest, and what must hold between its parts.

use super::cursor::Cursor;
use super::interpolate::Vars;
use super::{Host, Request, service};
use crate::ids::{AppName, NetworkName, ServiceName, VolumeName};
use crate::spec::{App, Condition, MountSource, Service, Volume};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What reading needs besides the tree.
pub(super) struct Context<'a> {
    pub(super) request: &'a Request,
    /// Relative paths start here.
    pub(super) folder: &'a Path,
    pub(super) host: &'a dyn Host,
    pub(super) vars: Vars<'a>,
}

impl Context<'_> {
    /// A path of the manifest, absolute from the manifest's folder.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        self.folder.join(text.strip_prefix("./").unwrap_or(text))
    }
}

/// A small file that the manifest declares (`configs`, `secrets`).
pub(super) struct Declared {
    pub(super) content: String,
}

/// What the top level declares, for services to refer to.
#[derive(Default)]
pub(super) struct Declarations {
    pub(super) volumes: BTreeMap<VolumeName, Volume>,
    pub(super) networks: BTreeSet<NetworkName>,
    pub(super) configs: BTreeMap<String, Declared>,
    pub(super) secrets: BTreeMap<String, Declared>,
}

const KEYS: [&str; 8] = ["name", "version", "services", "volumes", "networks", "configs", "secrets", "x-gantry"];

/// The app of a whole tree; `None`, with problems recorded, when there is none.
pub(super) fn read(root: &Cursor<'_>, context: &Context<'_>) -> Option<App> {
    let mut name = None;
    let mut services_at = None;
    let mut declared = Declarations::default();
    for (key, value) in root.map() {
        match key {
            "name" => name = Some(value),
            // obsolete in the specification; says nothing
            "version" => {}
            "services" => services_at = Some(value),
            "volumes" => declared.volumes = value.map().iter().filter_map(|(k, v)| volume(k, v)).collect(),
            "networks" => declared.networks = value.map().iter().filter_map(|(k, v)| network(k, v)).collect(),
            "configs" => declared.configs = files(&value, context),
            "secrets" => declared.secrets = files(&value, context),
            "include" => value.unsupported("name each file with -f"),
            "models" => value.unsupported("run the model as a service"),
            "x-gantry" => value.unsupported("no extension exists yet in this version"),
            _ => value.unknown(&KEYS),
        }
    }
    let Some(services_at) = services_at else {
        root.problem_hint("no services", "a manifest has at least `services:` with one service");
        return None;
    };
    let services = services(&services_at, &declared, context);
    Some(App { name: app_name(root, name, context)?, services, volumes: declared.volumes })
}

fn app_name(root: &Cursor<'_>, written: Option<Cursor<'_>>, context: &Context<'_>) -> Option<AppName> {
    if let Some(name) = &context.request.project {
        return name.parse().map_err(|error| root.problem(format!("-p: {error}"))).ok();
    }
    if let Some(written) = written {
        return written.parse();
    }
    if let Some(name) = (context.vars)("COMPOSE_PROJECT_NAME").filter(|name| !name.is_empty()) {
        return name.parse().map_err(|error| root.problem(format!("COMPOSE_PROJECT_NAME: {error}"))).ok();
    }
    let folder = context.folder.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let plain: String = folder.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    let name = plain.trim_matches(['-', '_']);
    let Ok(name) = name.parse() else {
        root.problem_hint("the app has no name", "add `name:` at the top of the file, or -p NAME");
        return None;
    };
    Some(name)
}

fn volume(key: &str, value: &Cursor<'_>) -> Option<(VolumeName, Volume)> {
    let mut volume = Volume::default();
    for (field, item) in value.map() {
        match field {
            "labels" => volume.labels = labels(&item),
            "driver" => {
                item.choice(&[("local", ())]);
            }
            "external" if item.boolean() == Some(false) => {}
            "external" | "driver_opts" | "name" => item.unsupported("volumes are local and named by app and key"),
            _ => item.unknown(&["labels", "driver"]),
        }
    }
    key.parse().map_err(|error| value.problem(format!("{error}"))).ok().map(|name| (name, volume))
}

fn network(key: &str, value: &Cursor<'_>) -> Option<NetworkName> {
    for (field, item) in value.map() {
        match field {
            "driver" => {
                item.choice(&[("bridge", ()), ("overlay", ())]);
            }
            "attachable" | "internal" | "external" | "enable_ipv6" if item.boolean() == Some(false) => {}
            "labels" => {
                labels(&item);
            }
            "internal" | "external" | "ipam" | "driver_opts" | "name" | "enable_ipv6" | "attachable" => {
                item.unsupported("every app has one routed IPv4 network");
            }
            _ => item.unknown(&["driver", "labels"]),
        }
    }
    key.parse().map_err(|error| value.problem(format!("{error}"))).ok()
}

/// `configs` or `secrets`: content from a file, the text itself, or a variable.
fn files(value: &Cursor<'_>, context: &Context<'_>) -> BTreeMap<String, Declared> {
    let mut out = BTreeMap::new();
    for (key, item) in value.map() {
        let mut content = None;
        for (field, source) in item.map() {
            match field {
                "file" => content = source.word().and_then(|path| read_file(&source, &path, context)),
                "content" => content = source.text().map(str::to_owned),
                "environment" => {
                    let variable = source.word();
                    content = variable.as_deref().and_then(context.vars);
                    if let (Some(variable), None) = (variable, &content) {
                        source.problem(format!("variable `{variable}` is not set"));
                    }
                }
                "external" if source.boolean() == Some(false) => {}
                "external" | "name" | "driver" | "template_driver" | "labels" => {
                    source.unsupported("give its content by `file:`, `content:` or `environment:`");
                }
                _ => source.unknown(&["file", "content", "environment"]),
            }
        }
        match content {
            Some(content) if content.len() > CONTENT_BYTES_MAX => {
                item.problem(format!("{} bytes are over the limit of {CONTENT_BYTES_MAX}", content.len()));
            }
            Some(content) => {
                out.insert(key.to_owned(), Declared { content });
            }
            None if item.map().is_empty() => {
                item.problem_hint("no content", "give `file:`, `content:` or `environment:`");
            }
            None => {}
        }
    }
    out
}

/// Of one config or secret; the whole app must stay below the store's megabyte.
const CONTENT_BYTES_MAX: usize = 500 << 10;

fn read_file(source: &Cursor<'_>, path: &str, context: &Context<'_>) -> Option<String> {
    let path = context.path(path);
    context.host.read(&path).map_err(|error| source.problem(format!("{} cannot be read: {error}", path.display()))).ok()
}

/// `labels`, as map or list.
pub(super) fn labels(value: &Cursor<'_>) -> BTreeMap<String, String> {
    value.pairs(&['=']).into_iter().map(|(key, value, _)| (key, value.unwrap_or_default())).collect()
}

fn services(at: &Cursor<'_>, declared: &Declarations, context: &Context<'_>) -> BTreeMap<ServiceName, Service> {
    let on = profiles(context);
    let mut out = BTreeMap::new();
    let mut cursors = BTreeMap::new();
    for (key, value) in at.map() {
        let name = key.parse::<ServiceName>().map_err(|error| value.problem(format!("{error}")));
        let read = service::read(&value, declared, context);
        if !read.profiles.is_empty() && read.profiles.iter().all(|profile| !on.contains(profile)) {
            continue;
        }
        if let Ok(name) = name {
            cursors.insert(name.clone(), value);
            out.insert(name, read.service);
        }
    }
    if at.map().is_empty() {
        at.problem_hint("no services", "a manifest has at least one service");
    } else if out.is_empty() {
        at.problem_hint("no service is left", "every one is in a profile that is off: switch one on with --profile");
    }
    for (name, cursor) in &cursors {
        dependencies(name, &out, cursor);
        shared_network(name, &out, cursor);
    }
    ports(&out, &cursors);
    pinned(&out, &cursors);
    out
}

fn profiles(context: &Context<'_>) -> BTreeSet<String> {
    let environment = (context.vars)("COMPOSE_PROFILES").unwrap_or_default();
    let named = environment.split(',').filter(|name| !name.is_empty()).map(str::to_owned);
    named.chain(context.request.profiles.iter().cloned()).collect()
}

/// Every dependency exists, can reach its condition, and none comes back to where it began.
fn dependencies(name: &ServiceName, all: &BTreeMap<ServiceName, Service>, at: &Cursor<'_>) {
    for (other, condition) in &all[name].depends_on {
        match all.get(other) {
            None => at.problem(format!("depends_on: there is no service `{other}` (or its profile is off)")),
            Some(other_service) if *condition == Condition::Healthy && other_service.template.health.is_none() => at
                .problem_hint(
                    format!("depends_on: `{other}` can never become healthy: it has no healthcheck"),
                    "give it a healthcheck, or wait for service_started",
                ),
            Some(_) => {}
        }
    }
    let mut todo: Vec<&ServiceName> = all[name].depends_on.keys().collect();
    let mut seen = BTreeSet::new();
    while let Some(next) = todo.pop() {
        if next == name {
            at.problem(format!("depends_on: `{name}` waits for itself, by way of the services it depends on"));
            return;
        }
        if seen.insert(next) {
            todo.extend(all.get(next).into_iter().flat_map(|service| service.depends_on.keys()));
        }
    }
}

/// Networks that would keep two services apart are refused until they do.
fn shared_network(name: &ServiceName, all: &BTreeMap<ServiceName, Service>, at: &Cursor<'_>) {
    let mine = &all[name].networks;
    let apart = all.iter().find(|(_, other)| !mine.keys().any(|network| other.networks.contains_key(network)));
    if let Some((other, _)) = apart {
        at.problem_hint(
            format!("networks: `{name}` and `{other}` share no network, but this version does not keep them apart"),
            "put all services of the app on one common network",
        );
    }
}

fn ports(all: &BTreeMap<ServiceName, Service>, cursors: &BTreeMap<ServiceName, Cursor<'_>>) {
    let mut taken = BTreeMap::new();
    for (name, service) in all {
        for port in &service.ports {
            let key = (port.published, port.protocol);
            if let Some(first) = taken.insert(key, name) {
                let same = if first == name { "twice".to_owned() } else { format!("by `{first}` too") };
                cursors[name].problem_hint(
                    format!("ports: {} is published {same}", port.published),
                    "give each published port to one service",
                );
            }
        }
    }
}

/// Replicas on one volume would write over each other on one node and have different data on two.
fn pinned(all: &BTreeMap<ServiceName, Service>, cursors: &BTreeMap<ServiceName, Cursor<'_>>) {
    for (name, service) in all {
        let volume = service.template.mounts.iter().find_map(|mount| match &mount.source {
            MountSource::Volume { name } if !mount.read_only => Some(name),
            _ => None,
        });
        if let (Some(volume), true) = (volume, service.replicas > 1) {
            cursors[name].problem_hint(
                format!("{} replicas cannot share the local volume `{volume}`", service.replicas),
                "set one replica, or mount the volume read-only",
            );
        }
    }
}
