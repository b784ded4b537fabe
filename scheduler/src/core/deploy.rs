//! A new desired state: checked whole against everything else before anything is touched, and what it changes.

use super::nodes::state_text;
use super::place::{Need, Refusal, never};
use super::world::{AppRecord, Effects, Key, Now, Removal, Rollout, ServiceRecord, TemplateKey, World, reservation};
use gantry_api::http::{Change, ChangeAction, Plan};
use gantry_api::ids::{AppName, Revision, ServiceName, VolumeName};
use gantry_api::spec::{App, MountSource, Protocol, Service, Template};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// More copies of one service than all addresses of a /16 allow make no sense.
const REPLICAS_MAX: u32 = 10_000;
/// One record must fit into the store's 1 MiB with room for what we add.
const SPEC_BYTES_MAX: usize = 900 << 10;
/// Longer values are cut in a plan's details.
const DETAIL_CHARS_MAX: usize = 80;
/// Records in one transaction, below the store's limit.
const KEYS_MAX: usize = 100;

/// Why a desired state is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeployError {
    /// It contradicts itself.
    #[error("{field}: {rule}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong.
        rule: String,
    },
    /// Services wait for each other in a ring.
    #[error("depends_on: services wait for each other: {0}")]
    Cycle(String),
    /// It is larger than one record may be.
    #[error("the app is {bytes} bytes, more than {SPEC_BYTES_MAX}")]
    Large {
        /// Its size.
        bytes: usize,
    },
    /// A port is another's.
    #[error("service {service}: port {port} is already published by {holder}")]
    Port {
        /// The service that wants it.
        service: ServiceName,
        /// `8080/tcp`.
        port: String,
        /// Who has it.
        holder: String,
    },
    /// A volume would have the same directory as another app's.
    #[error("volume {volume}: its data would lie in `{directory}`, as a volume of app {app} does")]
    Volume {
        /// The volume.
        volume: VolumeName,
        /// `<app>_<volume>`.
        directory: String,
        /// The other app.
        app: AppName,
    },
    /// No node could ever run it.
    #[error("{}", misfits(.0))]
    CannotFit(
        /// Each service, and why per node.
        Vec<(ServiceName, String)>,
    ),
    /// The service net is used up.
    #[error("no address of the service net is free")]
    Addresses,
    /// There is no such app.
    #[error("there is no app `{0}`")]
    NoApp(AppName),
    /// There is no such service.
    #[error("app {app} has no service `{service}`")]
    NoService {
        /// The app.
        app: AppName,
        /// The service.
        service: ServiceName,
    },
}

impl DeployError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Invalid { .. } => return None,
            Self::Cycle(_) => "remove one of these depends_on".to_owned(),
            Self::Large { .. } => "put large files into an image or a volume".to_owned(),
            Self::Port { .. } => "publish another port, or take the other one down first".to_owned(),
            Self::Volume { .. } => "give the app or the volume another name".to_owned(),
            Self::CannotFit(_) => {
                "reserve less, change deploy.placement, or add a node that fits (`gantry token create` on its host)"
                    .to_owned()
            }
            Self::Addresses => "remove apps that are not needed".to_owned(),
            Self::NoApp(_) => "`gantry apps` lists the apps".to_owned(),
            Self::NoService { app, .. } => format!("`gantry apps {app}` lists its services"),
        })
    }
}

/// A desired state that was checked, and what it changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// What to record.
    pub app: AppRecord,
    /// What changes.
    pub plan: Plan,
    retired: Vec<(TemplateKey, Template)>,
    generations: u64,
    addresses: u32,
    changed: bool,
}

impl World {
    /// Checks a new desired state of an app; changes nothing.
    ///
    /// # Errors
    /// It contradicts itself or something else, or fits nowhere.
    pub fn prepare(&self, spec: App) -> Result<Deployment, DeployError> {
        check(&spec)?;
        self.check_ports(&spec)?;
        self.check_volumes(&spec)?;
        self.check_fit(&spec)?;
        let old = self.apps.get(&spec.name);
        let revived = old.is_some_and(|app| app.removing.is_some());
        let mut made = Deployment {
            app: AppRecord { spec, revision: Revision(0), services: BTreeMap::new(), removing: None },
            plan: Plan::default(),
            retired: Vec::new(),
            generations: self.counters.generations,
            addresses: self.counters.addresses,
            changed: old.is_none_or(|old| old.removing.is_some()),
        };
        let names: BTreeSet<ServiceName> =
            made.app.spec.services.keys().chain(old.iter().flat_map(|o| o.spec.services.keys())).cloned().collect();
        for name in names {
            let before = old.and_then(|old| Some((old.spec.services.get(&name)?, old.services.get(&name)?)));
            let change = match (before, made.app.spec.services.get(&name).cloned()) {
                (Some((spec, record)), Some(new)) => {
                    self.changed_service(&mut made, &name, (spec, record, revived), &new)
                }
                (None, Some(new)) => self.new_service(&mut made, &name, &new)?,
                (Some((spec, record)), None) => {
                    let key = (made.app.spec.name.clone(), name.clone(), record.generation);
                    made.retired.push((key, spec.template.clone()));
                    Change { service: name, action: ChangeAction::Remove, details: Vec::new() }
                }
                (None, None) => continue,
            };
            made.changed |= change.action != ChangeAction::Keep;
            made.plan.changes.push(change);
        }
        made.changed |= old.is_some_and(|old| old.spec != made.app.spec);
        Ok(made)
    }

    fn changed_service(
        &self,
        made: &mut Deployment,
        name: &ServiceName,
        (spec, record, revived): (&Service, &ServiceRecord, bool),
        new: &Service,
    ) -> Change {
        let mut record = record.clone();
        let mut details = differences(spec, new);
        let replace = spec.template != new.template;
        let mut action = match (replace, details.is_empty()) {
            (true, _) => ChangeAction::Replace,
            (false, false) => ChangeAction::Update,
            (false, true) => ChangeAction::Keep,
        };
        if replace {
            let from = match record.rollout {
                // The last template known to work, not the one whose change has just failed.
                Rollout::Paused { from, .. } => from,
                _ => record.generation,
            };
            let key = (made.app.spec.name.clone(), name.clone(), record.generation);
            made.retired.push((key, spec.template.clone()));
            made.generations += 1;
            record.generation = made.generations;
            let any = self
                .replicas
                .values()
                .any(|r| r.record.name.app == made.app.spec.name && r.record.name.service == *name);
            record.rollout = if any && !revived { Rollout::Active { from } } else { Rollout::Done };
            record.note = None;
        } else if let Rollout::Paused { from, .. } = record.rollout {
            // Deploying the same again is how a person says: go on.
            record.rollout = Rollout::Active { from };
            details.push("rolling change: paused → goes on".to_owned());
            action = ChangeAction::Update;
        }
        if revived {
            record.released = new.depends_on.is_empty();
            record.note = None;
            if action == ChangeAction::Keep {
                action = ChangeAction::Create;
            }
        }
        made.app.services.insert(name.clone(), record);
        Change { service: name.clone(), action, details }
    }

    fn new_service(&self, made: &mut Deployment, name: &ServiceName, new: &Service) -> Result<Change, DeployError> {
        let address = self.free_address(made)?;
        made.generations += 1;
        let record = ServiceRecord {
            address,
            generation: made.generations,
            released: new.depends_on.is_empty(),
            rollout: Rollout::Done,
            note: None,
        };
        made.app.services.insert(name.clone(), record);
        let details = vec![format!("image: {}", new.template.image), format!("replicas: {}", new.replicas)];
        Ok(Change { service: name.clone(), action: ChangeAction::Create, details })
    }

    /// The next address that no service has; the first and last of the net are left out.
    fn free_address(&self, made: &mut Deployment) -> Result<Ipv4Addr, DeployError> {
        let records = self.apps.values().chain([&made.app]).flat_map(|app| app.services.values());
        let used: BTreeSet<Ipv4Addr> = records.map(|record| record.address).collect();
        let net = self.settings.service_net;
        let size = 1u64 << (32 - u32::from(net.length()));
        let usable = size.saturating_sub(2).min(1 << 20) as u32;
        for step in 0..usable {
            let index = 1 + (made.addresses + step) % usable;
            if let Some(address) = net.nth(index).filter(|address| !used.contains(address)) {
                made.addresses = index % usable;
                return Ok(address);
            }
        }
        Err(DeployError::Addresses)
    }

    /// Records a checked deployment: effects to write one after another, and the plan with its revision.
    pub fn carry_out(&mut self, made: Deployment, _now: Now) -> (Vec<Effects>, Plan) {
        let mut plan = made.plan;
        if !made.changed {
            return (Vec::new(), plan);
        }
        // Templates first: until the app's own record is written they are merely unused.
        let mut effects: Vec<Effects> = made
            .retired
            .chunks(KEYS_MAX)
            .map(|chunk| Effects {
                keys: chunk.iter().map(|(key, _)| Key::Template(key.clone())).collect(),
                notes: Vec::new(),
            })
            .collect();
        self.templates.extend(made.retired);
        self.revision.0 += 1;
        plan.revision = self.revision;
        self.counters.generations = self.counters.generations.max(made.generations);
        self.counters.addresses = made.addresses;
        let name = made.app.spec.name.clone();
        self.messages.retain(|(app, service), _| *app != name || made.app.services.contains_key(service));
        self.apps.insert(name.clone(), AppRecord { revision: self.revision, ..made.app });
        let mut own = Effects { keys: vec![Key::Counters, Key::App(name.clone())], notes: Vec::new() };
        let said: Vec<String> = plan.changes.iter().filter_map(change_text).collect();
        own.note("app.deployed", name, if said.is_empty() { "no service changed".to_owned() } else { said.join(", ") });
        effects.push(own);
        (effects, plan)
    }

    /// Takes an app down; what it has goes step by step.
    ///
    /// # Errors
    /// There is no such app.
    pub fn remove(&mut self, app: &AppName, volumes: bool) -> Result<(Effects, Plan), DeployError> {
        let record = self.apps.get_mut(app).ok_or_else(|| DeployError::NoApp(app.clone()))?;
        let volumes = volumes || record.removing.is_some_and(|before| before.volumes);
        record.removing = Some(Removal { volumes });
        self.revision.0 += 1;
        record.revision = self.revision;
        let remove =
            |name: &ServiceName| Change { service: name.clone(), action: ChangeAction::Remove, details: Vec::new() };
        let plan = Plan { changes: record.spec.services.keys().map(remove).collect(), revision: self.revision };
        let mut effects = Effects { keys: vec![Key::App(app.clone())], notes: Vec::new() };
        effects.note("app.removing", app, if volumes { "with its volumes" } else { "its volumes are kept" });
        Ok((effects, plan))
    }

    /// Checks another number of copies of one service; changes nothing.
    ///
    /// # Errors
    /// There is no such service, or the number makes no sense.
    pub fn prepare_scale(
        &self,
        app: &AppName,
        service: &ServiceName,
        replicas: u32,
    ) -> Result<Deployment, DeployError> {
        let record = self.apps.get(app).filter(|app| app.removing.is_none());
        let mut spec = record.ok_or_else(|| DeployError::NoApp(app.clone()))?.spec.clone();
        let Some(found) = spec.services.get_mut(service) else {
            return Err(DeployError::NoService { app: app.clone(), service: service.clone() });
        };
        found.replicas = replicas;
        self.prepare(spec)
    }

    fn check_ports(&self, spec: &App) -> Result<(), DeployError> {
        let mut holders: BTreeMap<(u16, Protocol), String> = BTreeMap::new();
        for port in &self.settings.reserved_ports {
            holders.insert((*port, Protocol::Tcp), "Gantry itself".to_owned());
        }
        for app in self.apps.values().filter(|app| app.spec.name != spec.name && app.removing.is_none()) {
            for (name, service) in &app.spec.services {
                for port in &service.ports {
                    holders.insert((port.published, port.protocol), format!("service {name} of app {}", app.spec.name));
                }
            }
        }
        for (name, service) in &spec.services {
            for port in &service.ports {
                if let Some(holder) = holders.insert((port.published, port.protocol), format!("service {name}")) {
                    let port = port_text(port.published, port.protocol);
                    return Err(DeployError::Port { service: name.clone(), port, holder });
                }
            }
        }
        Ok(())
    }

    fn check_volumes(&self, spec: &App) -> Result<(), DeployError> {
        for volume in spec.volumes.keys() {
            let directory = format!("{}_{volume}", spec.name);
            for app in self.apps.values().filter(|app| app.spec.name != spec.name) {
                if app.spec.volumes.keys().any(|theirs| format!("{}_{theirs}", app.spec.name) == directory) {
                    return Err(DeployError::Volume { volume: volume.clone(), directory, app: app.spec.name.clone() });
                }
            }
        }
        Ok(())
    }

    /// Each service must fit on some node that is known, were it empty and well.
    fn check_fit(&self, spec: &App) -> Result<(), DeployError> {
        let mut known: Vec<_> = self.nodes.values().filter(|node| node.record.hello.is_some()).collect();
        if known.is_empty() {
            return Ok(());
        }
        known.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        let mut misfits = Vec::new();
        for (name, service) in spec.services.iter().filter(|(_, service)| service.replicas > 0) {
            let need = Need {
                wants: reservation(&service.template),
                placement: &service.placement,
                home: None,
                shared: Vec::new(),
                clearing: Vec::new(),
            };
            let mut refusal = Refusal::default();
            for node in &known {
                if let Some(reason) = never(&need, node) {
                    refusal.reasons.entry(reason).or_default().push(node.record.name.clone());
                }
            }
            if refusal.reasons.values().map(Vec::len).sum::<usize>() == known.len() {
                misfits.push((name.clone(), refusal.to_string()));
            }
        }
        if misfits.is_empty() { Ok(()) } else { Err(DeployError::CannotFit(misfits)) }
    }

    /// Ids of the nodes called `name`, with their state in words.
    pub fn node_named(&self, name: &str) -> Option<(&super::world::Node, &'static str)> {
        self.nodes.values().find(|node| node.record.name.as_str() == name).map(|node| (node, state_text(node.state)))
    }
}

fn misfits(services: &[(ServiceName, String)]) -> String {
    let one =
        |(service, why): &(ServiceName, String)| format!("service {service} fits on no node, even an empty one: {why}");
    services.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// What an app alone can get wrong.
fn check(spec: &App) -> Result<(), DeployError> {
    let invalid = |field: String, rule: &str| Err(DeployError::Invalid { field, rule: rule.to_owned() });
    let bytes = serde_json::to_vec(spec).map_or(usize::MAX, |json| json.len());
    if bytes > SPEC_BYTES_MAX {
        return Err(DeployError::Large { bytes });
    }
    if spec.services.is_empty() {
        return invalid("services".to_owned(), "an app has at least one service");
    }
    for (name, service) in &spec.services {
        let field = |path: &str| format!("services.{name}.{path}");
        if service.template.image.is_empty() {
            return invalid(field("image"), "is empty");
        }
        if service.replicas > REPLICAS_MAX {
            return invalid(field("deploy.replicas"), "at most 10000 replicas");
        }
        if service.ports.iter().any(|port| port.published == 0 || port.target == 0) {
            return invalid(field("ports"), "0 is no port");
        }
        for mount in &service.template.mounts {
            if !mount.target.starts_with('/') {
                return invalid(field("volumes"), "the path inside must be absolute");
            }
            if let MountSource::Volume { name } = &mount.source
                && !spec.volumes.contains_key(name)
            {
                return invalid(field("volumes"), &format!("volume `{name}` is not declared"));
            }
        }
        for other in service.depends_on.keys() {
            if !spec.services.contains_key(other) {
                return invalid(field("depends_on"), &format!("there is no service `{other}`"));
            }
        }
    }
    check_rings(spec)
}

/// Follows depends_on from every service; a service met twice on one way closes a ring.
fn check_rings(spec: &App) -> Result<(), DeployError> {
    let mut sound: BTreeSet<&ServiceName> = BTreeSet::new();
    for start in spec.services.keys() {
        // The way from `start`, each step with the dependencies still to follow.
        let mut way: Vec<(&ServiceName, Vec<&ServiceName>)> = vec![(start, followers(spec, start))];
        while let Some((name, left)) = way.last_mut() {
            let Some(next) = left.pop() else {
                sound.insert(name);
                way.pop();
                continue;
            };
            if let Some(first) = way.iter().position(|(name, _)| *name == next) {
                let mut ring: Vec<&str> = way[first..].iter().map(|(name, _)| name.as_str()).collect();
                ring.push(next.as_str());
                return Err(DeployError::Cycle(ring.join(" → ")));
            }
            if !sound.contains(next) {
                way.push((next, followers(spec, next)));
            }
        }
    }
    Ok(())
}

fn followers<'a>(spec: &'a App, name: &ServiceName) -> Vec<&'a ServiceName> {
    spec.services.get(name).map(|service| service.depends_on.keys().collect()).unwrap_or_default()
}

fn port_text(port: u16, protocol: Protocol) -> String {
    let protocol = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{port}/{protocol}")
}

fn change_text(change: &Change) -> Option<String> {
    let verb = match change.action {
        ChangeAction::Create => "created",
        ChangeAction::Replace => "replaced",
        ChangeAction::Update => "updated",
        ChangeAction::Remove => "removed",
        ChangeAction::Keep => return None,
    };
    Some(format!("{} {verb}", change.service))
}

/// Field by field, `path: old → new`. What may be secret is named, not shown.
fn differences(old: &Service, new: &Service) -> Vec<String> {
    let mut details = Vec::new();
    if old == new {
        return details;
    }
    let json = |service: &Service| serde_json::to_value(service).unwrap_or(Value::Null);
    compare("", &json(old), &json(new), &mut details);
    details
}

fn compare(path: &str, old: &Value, new: &Value, details: &mut Vec<String>) {
    match (old, new) {
        _ if old == new => {}
        (Value::Object(before), Value::Object(after)) => {
            let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for key in keys {
                let below = match path {
                    "" | "template" if key != "template" => key.clone(),
                    "" => "template".to_owned(),
                    _ => format!("{path}.{key}"),
                };
                let (before, after) = (before.get(key).unwrap_or(&Value::Null), after.get(key).unwrap_or(&Value::Null));
                compare(&below, before, after, details);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                compare(&format!("{path}[{index}]"), before, after, details);
            }
        }
        _ if path.starts_with("files") => details.push(format!("{path}: changed")),
        _ => details.push(format!("{path}: {} → {}", value_text(old), value_text(new))),
    }
}

fn value_text(value: &Value) -> String {
    let text = match value {
        Value::Null => "(none)".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.char_indices().nth(DETAIL_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
