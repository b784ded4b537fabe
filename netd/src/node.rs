//! The node's network: what is wanted (table, attachments), and the one procedure that makes the kernel equal to it.
//!
//! ```text
//! set_table ─┐
//! attach ────┼─► wanted, on disk ─► converge: sysctls → links → routes → ports → rules → names
//! detach ────┘                          ▲
//!                        start, every 5 s: mends what was damaged, writes nothing when nothing was
//! ```
//! Everything here blocks; the daemon calls it from threads of its own. All state that must outlive this process is in
//! the kernel or on disk: a killed netd changes no traffic, and the next one finds what is there and goes on.

use crate::Config;
use crate::attach::{self, Place};
use crate::balance::{self, Balancer};
use crate::conntrack::{self, Which};
use crate::dns::{self, zone};
use crate::error::NetError;
use crate::link::{self, Address, Link, Mac, Vxlan};
use crate::netlink::{Batch, EAFNOSUPPORT, ENOENT, EOPNOTSUPP, Family, Netlink};
use crate::netns::set_sysctl;
use crate::nft::{self, Nft, Pages, Sets, ruleset};
use crate::plan::{self, Isolation, Peer, Port, VXLAN_OVERHEAD};
use crate::ports::Holders;
use crate::sockets;
use crate::state::{self, Attachments, Durability, Record, check_id, netns_path};
use gantry_api::network::{AttachRequest, Attachment, Live, Loads, NodeRoute, Status, Table};
use netlink_packet_route::link::LinkAttribute;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The tunnel device.
pub(crate) const VXLAN_LINK: &str = "gantry-vx0";
/// Network number in the tunnel: "GN" in hexadecimal, so that another VXLAN of the host is not ours by accident.
const VXLAN_ID: u32 = 0x47_4e;
/// The port that the standard gives to VXLAN: network cards know it and offload.
const VXLAN_PORT: u16 = 4789;
const PREFIX: &str = "gv";
/// When a link of the host gives no better number.
const MTU_DEFAULT: u32 = 1500;

/// The files of a node.
#[derive(Debug)]
struct Files {
    table: PathBuf,
    attachments: PathBuf,
}

/// What is wanted, and what is known of how far it is true.
#[derive(Debug)]
struct Inner {
    wanted: Option<Wanted>,
    attachments: Attachments,
    route: Netlink,
    nft: Nft,
    balancer: Balancer,
    holders: Holders,
    dns: dns::Server,
    /// Ports held at the last converge.
    held: BTreeSet<Port>,
    /// Elements of the rules at the last converge.
    sets: Sets,
    peers: Vec<Peer>,
    problems: Vec<String>,
    /// Bridge and MTU of the last converge, for attaches.
    bridge: Option<(u32, u32)>,
    /// Numbers of the links of attachments, by the links' names.
    links: BTreeMap<String, u32>,
}

/// A table that was checked, and what follows from it alone.
#[derive(Debug, Clone)]
struct Wanted {
    table: Arc<Table>,
    local: NodeRoute,
    /// The services' maps.
    services: Sets,
    /// Who reaches whom.
    isolation: Arc<Isolation>,
    apart: Sets,
    /// Whether the table is on disk.
    stored: bool,
}

impl Wanted {
    /// - `before`: the one in force, of which is taken over what is the same.
    fn new(table: Table, before: Option<&Self>) -> Result<Self, NetError> {
        let local = plan::check(&table)?;
        let services = plan::service_sets(before.map(|before| (&*before.table, &before.services)), &table);
        let isolation = plan::isolation(&table);
        let (isolation, apart) = match before.filter(|before| *before.isolation == isolation) {
            Some(before) => (Arc::clone(&before.isolation), before.apart.clone()),
            None => {
                let sets = isolation.sets();
                (Arc::new(isolation), sets)
            }
        };
        Ok(Self { table: Arc::new(table), local, services, isolation, apart, stored: false })
    }
}

/// The node's network.
#[derive(Debug)]
pub(crate) struct Node {
    config: Config,
    files: Files,
    inner: Mutex<Inner>,
    /// Held from the receipt of a table until it is on disk.
    tables: Mutex<()>,
    /// One lock per attachment: requests for one id come one after the other, different ones together.
    turns: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    _lock: File,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Take over the directories, and what an earlier netd left in the kernel.
    ///
    /// # Errors
    /// Another netd runs with them, or the kernel lacks netlink families.
    pub(crate) fn open(config: Config, runtime: tokio::runtime::Handle) -> Result<Self, NetError> {
        let directory = config.data_dir.join("netd");
        state::private_directory(&directory)?;
        let netns = config.run_dir.join("netns");
        std::fs::create_dir_all(&netns).map_err(|e| NetError::file("create directory", &netns, e))?;
        let lock = state::try_lock(&directory.join("lock"))?.ok_or_else(|| NetError::Running(directory.clone()))?;
        let files = Files { table: directory.join("table.json"), attachments: directory.join("attachments.json") };
        let wanted = state::load::<Table>(&files.table)?.and_then(|table| Wanted::new(table, None).ok());
        let wanted = wanted.map(|wanted| Wanted { stored: true, ..wanted });
        let mut inner = Inner {
            wanted,
            attachments: state::load(&files.attachments)?.unwrap_or_default(),
            route: Netlink::open(Family::Route)?,
            nft: Nft::open()?,
            balancer: Balancer::new(&config.run_dir, config.cgroup_parent.clone()),
            holders: Holders::new(runtime.clone()),
            dns: dns::Server::new(runtime, config.resolv_conf.clone()),
            held: BTreeSet::new(),
            sets: Sets::new(),
            peers: Vec::new(),
            problems: Vec::new(),
            bridge: None,
            links: BTreeMap::new(),
        };
        inner.drop_dead(&config, &files)?;
        inner.names();
        inner.dns.set_clients(inner.clients());
        let node = Self {
            config,
            files,
            inner: Mutex::new(inner),
            tables: Mutex::default(),
            turns: Mutex::default(),
            _lock: lock,
        };
        node.check();
        Ok(node)
    }

    /// Make this the table in force.
    ///
    /// # Errors
    /// It is older than the one in force, contradicts itself, or its networks are the host's: nothing has changed then.
    /// Or the kernel refused a part: the table is in force all the same, and every check tries again.
    pub(crate) fn set_table(&self, table: Table) -> Result<(), NetError> {
        let _one_at_a_time = locked(&self.tables);
        if self.in_force(&table) {
            return locked(&self.inner).converge(&self.config).map(|_| ());
        }
        let before = locked(&self.inner).wanted.clone();
        let wanted = Wanted::new(table, before.as_ref())?;
        let mut inner = locked(&self.inner);
        plan::not_older(before.as_ref().map(|before| &*before.table), &wanted.table)?;
        let nets = |w: &Wanted| (w.table.replica_net, w.table.service_net, w.local.subnet);
        if before.as_ref().map(nets) != Some(nets(&wanted)) {
            inner.no_overlap(&wanted.table)?;
        }
        let (revision, nodes, services, endpoints) = plan::summary(&wanted.table);
        tracing::debug!(%revision, nodes, services, endpoints, subnet = %wanted.local.subnet, "table");
        let table = Arc::clone(&wanted.table);
        inner.wanted = Some(wanted);
        inner.names();
        let done = inner.converge(&self.config);
        let mut stale = Vec::new();
        if let Some(before) = &before {
            let lost = forget_lost(&before.table, &table);
            stale = inner.balancer.open_to(&lost);
        } else {
            inner.warn_of_firewall(&self.config.bridge);
        }
        drop(inner);
        self.end_sockets(&stale, sockets::Which::Datagrams);
        // After the kernel, and without the lock: a slow disk must not keep traffic on a replica that is gone, nor
        // containers from their network.
        state::store(&self.files.table, &*table, Durability::Power)?;
        if let Some(wanted) = &mut locked(&self.inner).wanted {
            wanted.stored = true;
        }
        done.map(|_| ())
    }

    /// Whether this very table is in force, and on disk.
    fn in_force(&self, table: &Table) -> bool {
        locked(&self.inner).wanted.as_ref().is_some_and(|wanted| wanted.stored && *wanted.table == *table)
    }

    /// End sockets of this node's containers to replicas that are no more. Only a courtesy: a failure is logged.
    fn end_sockets(&self, replicas: &[Ipv4Addr], which: sockets::Which) {
        if replicas.is_empty() {
            return;
        }
        let ids: Vec<String> = locked(&self.inner).attachments.records.keys().cloned().collect();
        let mut ended = 0;
        for id in ids {
            let path = netns_path(&self.config.run_dir, &id);
            match crate::netns::run(&path, || sockets::destroy(replicas, which)) {
                Ok(count) => ended += count.unwrap_or_default(),
                Err(error) => tracing::warn!(id, error = %error.chain(), "sockets to replicas that are gone stay open"),
            }
        }
        tracing::debug!(ended, ?which, "sockets to replicas that are gone");
    }

    /// Sockets that outlive their replica: what a program has not noticed by itself.
    fn end_left_open(&self) {
        /// A replica that stops answers what it is still sent; only a dead one does not.
        const UNANSWERED_AFTER: Duration = Duration::from_secs(10);
        /// Longer than a replica takes to stop.
        const ALL_AFTER: Duration = Duration::from_secs(300);
        for (patience, which) in [(ALL_AFTER, sockets::Which::All), (UNANSWERED_AFTER, sockets::Which::Unanswered)] {
            let open: Vec<_> = locked(&self.inner).balancer.left_open(patience).into_iter().collect();
            self.end_sockets(&open, which);
        }
    }

    /// Compare the kernel with what is wanted and mend it; failures are kept for [`Self::status`].
    pub(crate) fn check(&self) {
        let mut inner = locked(&self.inner);
        match inner.converge(&self.config) {
            Ok(0) => {}
            Ok(written) => tracing::info!(written, "network mended"),
            Err(error) => tracing::warn!(error = %error.chain(), "network cannot be mended"),
        }
        if inner.bridge.is_some() {
            let damaged = inner.damaged();
            drop(inner);
            self.repair(damaged);
            self.end_left_open();
        }
    }

    fn repair(&self, damaged: Vec<Record>) {
        for record in damaged {
            let id = record.request.id.clone();
            let turn = self.turn(&id);
            let _turn = locked(&turn);
            // It may have been detached, or still be in the making, since the list was made.
            let place = {
                let inner = locked(&self.inner);
                inner.attachments.records.get(&id).is_some_and(|now| *now == record).then(|| inner.place(&self.config))
            };
            if let Some(Ok(place)) = place {
                let done =
                    Netlink::open(Family::Route).and_then(|mut route| attach::ensure(&mut route, &place, &record));
                match done {
                    Ok(()) => tracing::info!(id, "attachment mended"),
                    Err(error) => tracing::warn!(id, error = %error.chain(), "attachment cannot be mended"),
                }
            }
        }
    }

    fn turn(&self, id: &str) -> Arc<Mutex<()>> {
        let mut turns = locked(&self.turns);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(id.to_owned()).or_default())
    }

    /// Give a container a network, or complete the one it has.
    ///
    /// # Errors
    /// No table yet, no free address, or the kernel refused; a new one leaves nothing behind then.
    pub(crate) fn attach(&self, request: AttachRequest) -> Result<Attachment, NetError> {
        check_id(&request.id)?;
        let turn = self.turn(&request.id);
        let _turn = locked(&turn);
        let (place, record, new) = {
            let mut inner = locked(&self.inner);
            if inner.bridge.is_none() && inner.wanted.is_some() {
                inner.converge(&self.config)?;
            }
            let place = inner.place(&self.config)?;
            let (record, new) = inner.record(&request)?;
            state::store(&self.files.attachments, &inner.attachments, Durability::Process)?;
            (place, record, new)
        };
        let mut route = Netlink::open(Family::Route)?;
        let mut made = attach::ensure(&mut route, &place, &record);
        let found = link::find(&mut route, &record.link);
        let mut inner = locked(&self.inner);
        if made.is_err() && inner.converge(&self.config).is_ok() {
            // Perhaps what it builds on had been damaged since the last check; it is whole now.
            made = inner.place(&self.config).and_then(|place| attach::ensure(&mut route, &place, &record));
        }
        if let Ok(Some(link)) = &found {
            inner.links.insert(record.link.clone(), link.index);
        }
        let guarded = made.and_then(|()| inner.ensure_bridge_rules().map(drop));
        if let Err(error) = guarded.and_then(|()| inner.open_ports(&self.config, &record)) {
            if new {
                let _ = attach::remove(&mut route, &self.config.run_dir, &record);
                inner.forget(&record.request.id);
                state::store(&self.files.attachments, &inner.attachments, Durability::Process)?;
                // The ports that could be opened are closed again.
                let _ = inner.converge(&self.config);
            }
            return Err(error);
        }
        inner.dns.set_clients(inner.clients());
        Ok(place.attachment(&record))
    }

    /// Take a container's network away; fine when it has none.
    ///
    /// # Errors
    /// The kernel refused; the attachment is kept, so that the next try completes it.
    pub(crate) fn detach(&self, id: &str) -> Result<(), NetError> {
        check_id(id)?;
        let turn = self.turn(id);
        let _turn = locked(&turn);
        let Some(record) = locked(&self.inner).attachments.records.get(id).cloned() else {
            return crate::netns::remove(&netns_path(&self.config.run_dir, id));
        };
        let mut route = Netlink::open(Family::Route)?;
        attach::remove(&mut route, &self.config.run_dir, &record)?;
        forget_connections(record.address, Which::All);
        // This one is certainly dead.
        let open = locked(&self.inner).balancer.open_to(&BTreeSet::from([record.address]));
        self.end_sockets(&open, sockets::Which::All);
        let mut inner = locked(&self.inner);
        inner.forget(id);
        state::store(&self.files.attachments, &inner.attachments, Durability::Process)?;
        inner.dns.set_clients(inner.clients());
        inner.links.remove(&record.link);
        if record.request.ports.is_empty() {
            inner.ensure_bridge_rules()?;
        } else {
            inner.converge(&self.config)?;
        }
        Ok(())
    }

    /// All containers' networks.
    pub(crate) fn attachments(&self) -> Vec<Attachment> {
        let inner = locked(&self.inner);
        let Ok(place) = inner.place(&self.config) else { return Vec::new() };
        inner.attachments.records.values().map(|record| place.attachment(record)).collect()
    }

    /// How it is doing.
    pub(crate) fn status(&self) -> Status {
        let inner = locked(&self.inner);
        Status {
            revision: inner.wanted.as_ref().map(|wanted| wanted.table.revision),
            attachments: inner.attachments.records.len() as u32,
            peers: inner.peers.iter().map(|peer| (peer.name.clone(), peer.path())).collect(),
            problems: inner.problems.clone(),
            balancing: inner.balancer.status(),
        }
    }

    /// Open connections of this node's containers to each replica.
    pub(crate) fn live(&self) -> Vec<Live> {
        locked(&self.inner).balancer.live()
    }

    /// Open connections of the whole cluster.
    pub(crate) fn report(&self, loads: &Loads) {
        locked(&self.inner).balancer.report(loads);
    }
}

/// A connection that cannot be forgotten ends by its timeout; the change that led here is made all the same.
fn forget_connections(address: Ipv4Addr, which: Which) {
    match conntrack::forget(address, which) {
        Ok(0) => {}
        Ok(count) => tracing::debug!(%address, count, "connections forgotten"),
        Err(error) => tracing::warn!(%address, error = %error.chain(), "connections cannot be forgotten"),
    }
}

/// Answers the replicas that must not get anything more.
fn forget_lost(before: &Table, now: &Table) -> BTreeSet<Ipv4Addr> {
    let (gone, mut unready) = plan::lost(before, now);
    gone.iter().for_each(|address| forget_connections(*address, Which::Served));
    unready.iter().for_each(|address| forget_connections(*address, Which::ServedUdp));
    unready.extend(gone);
    unready
}

impl Inner {
    fn warn_of_firewall(&mut self, bridge: &str) {
        for chain in self.nft.forward_drops().unwrap_or_default() {
            tracing::warn!(chain, "this host's firewall drops forwarded packets by default: let {bridge} pass there");
        }
    }

    fn names(&self) {
        if let Some(wanted) = &self.wanted {
            self.dns.set_zone(zone::Zone::new(&wanted.table, &wanted.isolation));
        }
    }

    /// Drop attachments whose namespace is gone: the host was restarted, and nothing of them is left.
    fn drop_dead(&mut self, config: &Config, files: &Files) -> Result<(), NetError> {
        let mut dead = Vec::new();
        for id in self.attachments.records.keys() {
            if crate::netns::open(&netns_path(&config.run_dir, id))?.is_none() {
                dead.push(id.clone());
            }
        }
        for id in &dead {
            if let Some(record) = self.attachments.records.get(id) {
                attach::remove(&mut self.route, &config.run_dir, record)?;
            }
            self.forget(id);
            tracing::info!(id, "attachment dropped: its network namespace is gone");
        }
        if dead.is_empty() { Ok(()) } else { state::store(&files.attachments, &self.attachments, Durability::Process) }
    }

    fn forget(&mut self, id: &str) {
        if let Some(record) = self.attachments.records.remove(id) {
            self.attachments.addresses.free(record.address);
        }
    }

    /// The record of a request, and whether it is new.
    fn record(&mut self, request: &AttachRequest) -> Result<(Record, bool), NetError> {
        if let Some(record) = self.attachments.records.get_mut(&request.id) {
            record.request = request.clone();
            return Ok((record.clone(), false));
        }
        let subnet = self.wanted.as_ref().ok_or(NetError::NoSubnet)?.local.subnet;
        let link = self.attachments.link_name(PREFIX, &request.id);
        let address = self.attachments.addresses.take(subnet)?;
        let record = Record { request: request.clone(), address, link };
        self.attachments.records.insert(request.id.clone(), record.clone());
        Ok((record, true))
    }

    /// Open a new container's own ports; all of them or none.
    fn open_ports(&mut self, config: &Config, record: &Record) -> Result<(), NetError> {
        if record.request.ports.is_empty() {
            return Ok(());
        }
        self.converge(config)?;
        for port in &record.request.ports {
            let text = plan::port_text((port.protocol, port.published));
            let prefix = format!("port {text} ");
            if let Some(problem) = self.problems.iter().find_map(|problem| problem.strip_prefix(&prefix)) {
                return Err(NetError::Port { port: text, problem: format!("it {problem}") });
            }
        }
        Ok(())
    }

    fn place<'a>(&self, config: &'a Config) -> Result<Place<'a>, NetError> {
        let (Some(wanted), Some((bridge, mtu))) = (&self.wanted, self.bridge) else { return Err(NetError::NoSubnet) };
        let subnet = wanted.local.subnet;
        Ok(Place {
            run_dir: &config.run_dir,
            bridge,
            group: link::GROUP,
            mtu,
            gateway: plan::gateway(subnet),
            prefix_length: subnet.length(),
            hairpin: false,
        })
    }

    fn clients(&self) -> zone::Clients {
        let client = |record: &Record| zone::Client {
            app: record.request.app.clone(),
            hostname: record.request.hostname.clone(),
        };
        self.attachments.records.values().map(|record| (record.address, client(record))).collect()
    }

    fn no_overlap(&mut self, table: &Table) -> Result<(), NetError> {
        let links = link::links(&mut self.route, None)?;
        let ours: Vec<u32> = links.iter().filter(|l| l.group == link::GROUP).map(|l| l.index).collect();
        let name =
            |index: u32| links.iter().find(|l| l.index == index).map_or_else(|| index.to_string(), |l| l.name.clone());
        let nets = [("replica network", table.replica_net), ("service network", table.service_net)];
        plan::no_overlap(&nets, &link::routes(&mut self.route)?, &ours, name)
    }

    /// Attachments whose host end is not in the bridge.
    fn damaged(&mut self) -> Vec<Record> {
        let Some((bridge, _)) = self.bridge else { return Vec::new() };
        if self.attachments.records.is_empty() {
            return Vec::new();
        }
        let Ok(ports) = link::links(&mut self.route, Some(bridge)) else { return Vec::new() };
        let fine: BTreeSet<&str> = ports.iter().filter(|port| port.up).map(|port| port.name.as_str()).collect();
        self.attachments.records.values().filter(|record| !fine.contains(record.link.as_str())).cloned().collect()
    }

    /// Make the kernel equal to what is wanted; answers how much was written.
    fn converge(&mut self, config: &Config) -> Result<usize, NetError> {
        let Some(wanted) = self.wanted.clone() else { return Ok(0) };
        self.problems.clear();
        let result = self.converge_to(config, &wanted);
        if let Err(error) = &result {
            self.problems.push(error.chain());
        }
        result
    }

    fn converge_to(&mut self, config: &Config, wanted: &Wanted) -> Result<usize, NetError> {
        let Wanted { table, local, .. } = wanted;
        let parameters = plan::parameters(table, local, &config.bridge);
        let mut written = usize::from(set_sysctl("net/ipv4/ip_forward", "1")?);
        let host = self.host_addresses(config)?;
        self.peers = plan::peers(table, &host);
        let underlay = host.iter().find(|address| address.address == local.underlay);
        if underlay.is_none() && !self.peers.is_empty() {
            let problem = format!("the address {} of this node is on none of its interfaces", local.underlay);
            self.problems.push(problem);
        }
        let mtu = self.mtu(config, underlay)?;
        let bridge = self.ensure_bridge(config, local, mtu, &mut written)?;
        let vxlan = self.ensure_vxlan(local, mtu, &mut written)?;
        written += bridge_sysctls(&config.bridge, vxlan.is_some())?;
        written += self.ensure_routes(&parameters, bridge.index, vxlan)?;
        self.bridge = Some((bridge.index, mtu));
        self.problems.extend(plan::strays(local.subnet, self.attachments.records.values()));
        // Before the rules: they are many writes, these are two or three for one change.
        let (count, problem) = self.balancer.ensure(table, plan::offset(table));
        written += count;
        self.problems.extend(problem);
        // Names do not wait for rules, nor rules for names.
        let rules = self.ensure_rules(wanted, &parameters);
        if let Err(error) = self.dns.listen(parameters.gateway) {
            self.problems.push(error.chain());
        }
        Ok(written + rules?)
    }

    fn ensure_rules(&mut self, wanted: &Wanted, parameters: &ruleset::NodeParameters) -> Result<usize, NetError> {
        let own = self.attachments.records.values().map(|record| (record.address, record.request.ports.as_slice()));
        let (targets, problems) = plan::targets(&wanted.table, own);
        self.problems.extend(problems);
        // Ports first: what another program holds must stay its own, and stays out of the rules.
        let (held, problems) = self.holders.hold(&targets);
        self.problems.extend(problems);
        let open = targets.iter().filter(|(port, _)| held.contains(port));
        let published = ruleset::published_elements(open, plan::offset(&wanted.table));
        let ports = held.iter().map(|(protocol, port)| ruleset::held_port(*protocol, *port)).collect::<Pages>();
        self.held = held;
        // What is as it was keeps its identity, so that nobody looks inside again.
        let mut set = |name, elements: Pages| {
            let before = self.sets.get(name).filter(|before| ***before == elements).cloned();
            self.sets.insert(name, before.unwrap_or_else(|| Arc::new(elements)));
        };
        set(ruleset::PUBLISHED.name, published);
        set(ruleset::HELD.name, ports);
        self.sets.extend(wanted.services.iter().map(|(name, pages)| (*name, Arc::clone(pages))));
        let mut wanted_sets = self.sets.clone();
        wanted_sets.extend(wanted.apart.iter().map(|(name, pages)| (*name, Arc::clone(pages))));
        let written = self.nft.ensure(&ruleset::node(parameters), &wanted_sets)?;
        let bridge = self.bridge.map(|(bridge, _)| bridge);
        let ports = link::links(&mut self.route, bridge)?;
        self.links = ports.into_iter().map(|port| (port.name, port.index)).collect();
        Ok(written + self.ensure_bridge_rules()?)
    }

    /// Frames between this node's containers: senders are who they are, and stay among those they may reach.
    fn ensure_bridge_rules(&mut self) -> Result<usize, NetError> {
        let Some(wanted) = &self.wanted else { return Ok(0) };
        let records = self.attachments.records.values();
        let senders = records.filter_map(|record| Some((*self.links.get(&record.link)?, record.address)));
        let plain = |key| (key, Default::default());
        let links: Pages = senders.clone().map(|(link, _)| plain(ruleset::numbers(link, 0))).collect();
        let senders: Pages = senders.map(|(link, address)| plain(ruleset::sender(link, address))).collect();
        let mut sets = wanted.apart.clone();
        sets.extend([(ruleset::LINKS.name, Arc::new(links)), (ruleset::SENDERS.name, Arc::new(senders))]);
        let apart = !wanted.isolation.services.is_empty();
        match self.nft.ensure(&ruleset::bridge(apart), &sets) {
            Err(error) if matches!(error.errno(), Some(EOPNOTSUPP | EAFNOSUPPORT | ENOENT)) => {
                let words = "containers of this node are not kept apart from each other";
                self.problems.push(format!("{words}: this kernel has no rules for bridges ({})", error.chain()));
                Ok(0)
            }
            other => other,
        }
    }

    /// Addresses of links that are not ours.
    fn host_addresses(&mut self, config: &Config) -> Result<Vec<Address>, NetError> {
        let mut ours = Vec::new();
        for name in [config.bridge.as_str(), VXLAN_LINK] {
            ours.extend(link::find(&mut self.route, name)?.map(|link| link.index));
        }
        const LOOPBACK: u32 = 1;
        let all = link::addresses(&mut self.route)?;
        Ok(all.into_iter().filter(|a| a.link != LOOPBACK && !ours.contains(&a.link)).collect())
    }

    /// Every link of a container has room for the tunnel's headers, whether or not a peer is behind it today: a change
    /// of MTU under running connections is worse than 3 % of a packet.
    fn mtu(&mut self, config: &Config, underlay: Option<&Address>) -> Result<u32, NetError> {
        if let Some(mtu) = config.mtu {
            return Ok(mtu);
        }
        let Some(underlay) = underlay else { return Ok(MTU_DEFAULT - VXLAN_OVERHEAD) };
        let links = link::links(&mut self.route, None)?;
        let mtu = links.iter().find(|link| link.index == underlay.link).map_or(MTU_DEFAULT, |link| link.mtu);
        // IPv4 guarantees 576; below it nothing works anyway.
        Ok(mtu.saturating_sub(VXLAN_OVERHEAD).clamp(576, 65_535 - VXLAN_OVERHEAD))
    }

    fn ensure_bridge(
        &mut self,
        config: &Config,
        local: &NodeRoute,
        mtu: u32,
        written: &mut usize,
    ) -> Result<Link, NetError> {
        let gateway = plan::gateway(local.subnet);
        let bridge = match link::find(&mut self.route, &config.bridge)? {
            Some(bridge) => ours(bridge, "bridge")?,
            None => {
                let mut batch = Batch::new();
                link::create_bridge(&mut batch, &config.bridge, Mac::of(gateway), link::GROUP);
                self.route.run(batch)?;
                *written += 1;
                self.found(&config.bridge)?
            }
        };
        let mut batch = Batch::new();
        repair_link(&mut batch, &bridge, mtu, Mac::of(gateway));
        let (want, mut have) = ((gateway, local.subnet.length()), false);
        for address in link::addresses(&mut self.route)?.iter().filter(|a| a.link == bridge.index) {
            if (address.address, address.length) == want {
                have = true;
            } else {
                link::delete_address(&mut batch, bridge.index, address.address, address.length);
            }
        }
        if !have {
            link::add_address(&mut batch, bridge.index, want.0, want.1);
        }
        *written += usize::from(!batch.is_empty());
        self.route.run(batch)?;
        Ok(bridge)
    }

    /// The tunnel's number; `None` when no peer needs one, and it is removed then.
    fn ensure_vxlan(&mut self, local: &NodeRoute, mtu: u32, written: &mut usize) -> Result<Option<u32>, NetError> {
        let needed = self.peers.iter().any(|peer| peer.direct.is_none());
        let want = Vxlan { id: VXLAN_ID, port: VXLAN_PORT, local: local.underlay, learning: false };
        let mac = plan::tunnel_mac(local.subnet);
        let mut batch = Batch::new();
        let mut there = None;
        if let Some(found) = link::find(&mut self.route, VXLAN_LINK)? {
            let found = ours(found, "tunnel")?;
            // What it is made of cannot be changed, only made anew.
            if needed && found.vxlan == Some(want) {
                repair_link(&mut batch, &found, mtu, mac);
                there = Some(found.index);
            } else {
                link::delete(&mut batch, VXLAN_LINK);
            }
        }
        if needed && there.is_none() {
            link::create_vxlan(&mut batch, VXLAN_LINK, want, mac, mtu, link::GROUP);
        }
        *written += usize::from(!batch.is_empty());
        self.route.run(batch)?;
        match there {
            None if needed => Ok(Some(self.found(VXLAN_LINK)?.index)),
            there => Ok(there),
        }
    }

    fn found(&mut self, name: &str) -> Result<Link, NetError> {
        let absent = || NetError::io("find link", name, std::io::ErrorKind::NotFound);
        link::find(&mut self.route, name)?.ok_or_else(absent)
    }

    fn ensure_routes(
        &mut self,
        parameters: &ruleset::NodeParameters,
        bridge: u32,
        vxlan: Option<u32>,
    ) -> Result<usize, NetError> {
        let want = plan::routes(parameters, &self.peers, bridge, vxlan);
        let (stale, add) = plan::route_changes(&link::routes(&mut self.route)?, &want);
        let mut written = stale.len() + add.len();
        let mut batch = Batch::new();
        stale.iter().for_each(|route| link::delete_route(&mut batch, route));
        if let Some(vxlan) = vxlan {
            let have: BTreeSet<_> = link::neighbours(&mut self.route, vxlan)?.into_iter().collect();
            let want = plan::neighbours(&self.peers);
            have.difference(&want).for_each(|entry| link::delete_neighbour(&mut batch, vxlan, *entry));
            want.difference(&have).for_each(|entry| link::add_neighbour(&mut batch, vxlan, *entry));
            written += have.symmetric_difference(&want).count();
        }
        add.iter().for_each(|route| link::add_route(&mut batch, route));
        self.route.run(batch)?;
        Ok(written)
    }
}

/// A link with one of our names that is not ours is left alone.
fn ours(link: Link, what: &'static str) -> Result<Link, NetError> {
    if link.group == link::GROUP {
        return Ok(link);
    }
    let object = format!("{what} {}: a link of this name exists that is not Gantry's", link.name);
    Err(NetError::io("create", object, std::io::ErrorKind::AlreadyExists))
}

fn repair_link(batch: &mut Batch, link: &Link, mtu: u32, mac: Mac) {
    let mut attributes = Vec::new();
    if link.mtu != mtu {
        attributes.push(LinkAttribute::Mtu(mtu));
    }
    if link.mac != mac.0 {
        attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    if !attributes.is_empty() {
        link::change(batch, link.index, &link.name, attributes);
    }
    if !link.up {
        link::set_up(batch, link.index, &link.name);
    }
}

/// Settings of the kernel that the paths rely on. Answers how many were changed.
fn bridge_sysctls(bridge: &str, tunnel: bool) -> Result<usize, NetError> {
    let mut written = 0;
    // Frames between containers of this bridge are no business of the IP rules. Absent without br_netfilter.
    let bridged = "net/bridge/bridge-nf-call-iptables";
    if std::path::Path::new("/proc/sys").join(bridged).exists() {
        written += usize::from(set_sysctl(bridged, "0")?);
    }
    written += no_redirects(bridge)?;
    // Loose: a packet must come from where we know a way to, not from exactly there; the stricter of this and the
    // host's setting for all links counts.
    for link in [Some(bridge), tunnel.then_some(VXLAN_LINK)].into_iter().flatten() {
        written += usize::from(set_sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "2")?);
    }
    Ok(written)
}

/// A packet that leaves by the bridge it came in by (a service address with its replica next door) makes the kernel
/// send a redirect, which would lead round the translation, and whose accounting holds back the "port unreachable" that
/// a refused UDP packet deserves. The setting for all links is OR-ed with each link's own, which stays on elsewhere.
pub(crate) fn no_redirects(bridge: &str) -> Result<usize, NetError> {
    let mut written = 0;
    for link in ["all", bridge] {
        written += usize::from(set_sysctl(&format!("net/ipv4/conf/{link}/send_redirects"), "0")?);
    }
    Ok(written)
}

/// Remove everything that a node's netd and `gantry run` have made in this network namespace, and their files.
///
/// Nothing else is touched: links are ours by their group, routes by their protocol, tables by their name.
///
/// # Errors
/// netd is still running, or the kernel refused; what could be removed has been.
pub fn remove_all(run_dir: &std::path::Path, data_dir: &std::path::Path) -> Result<(), NetError> {
    let directory = data_dir.join("netd");
    let _lock = if directory.exists() {
        Some(state::try_lock(&directory.join("lock"))?.ok_or_else(|| NetError::Running(directory.clone()))?)
    } else {
        None
    };
    let mut failed = None;
    let mut attempt = |result: Result<(), NetError>| {
        if let Err(error) = result {
            failed.get_or_insert(error);
        }
    };
    let netns = run_dir.join("netns");
    if let Ok(entries) = std::fs::read_dir(&netns) {
        for entry in entries.flatten() {
            attempt(crate::netns::remove(&entry.path()));
        }
    }
    attempt(balance::remove(run_dir));
    attempt(remove_from_kernel(
        &[link::GROUP, link::RUN_GROUP],
        &[ruleset::NODE_TABLE, ruleset::BRIDGE_TABLE, ruleset::RUN_TABLE],
    ));
    for directory in [&netns, &directory] {
        match std::fs::remove_dir_all(directory) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => attempt(Err(NetError::file("remove", directory, e))),
            _ => {}
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Links of these groups with all routes of ours, and these tables.
pub(crate) fn remove_from_kernel(groups: &[u32], tables: &[nft::Table]) -> Result<(), NetError> {
    let mut nft = Nft::open()?;
    for table in tables {
        nft.remove(*table)?;
    }
    let mut route = Netlink::open(Family::Route)?;
    let mut batch = Batch::new();
    if groups.contains(&link::GROUP) {
        for found in link::routes(&mut route)?.iter().filter(|found| found.protocol == link::PROTOCOL) {
            link::delete_route(&mut batch, &found.route);
        }
    }
    groups.iter().for_each(|group| link::delete_group(&mut batch, *group));
    route.run(batch)
}
