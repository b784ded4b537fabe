//! From a table to what this node's kernel should hold: decisions only, nothing is read or written here.

use crate::error::NetError;
use crate::link::{Address, FoundRoute, Mac, Neighbour, PROTOCOL, Route, Way};
use crate::nft::ruleset::{self, NodeParameters, service_slot, service_slots};
use crate::nft::{Pages, Sets, Value};
use crate::state::Record;
use gantry_api::ids::{NodeName, Revision};
use gantry_api::network::{Endpoint, Ipv4Net, NodeRoute, Path, Published, Service, Table};
use gantry_api::spec::Protocol;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Headers that the tunnel puts before a packet: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14.
pub(crate) const VXLAN_OVERHEAD: u32 = 50;

/// A published port as nodes know it.
pub(crate) type Port = (Protocol, u16);
/// Where connections to published ports go.
pub(crate) type Targets = BTreeMap<Port, Vec<(Ipv4Addr, u16)>>;

/// `8080/tcp`.
pub(crate) fn port_text((protocol, port): Port) -> String {
    match protocol {
        Protocol::Tcp => format!("{port}/tcp"),
        Protocol::Udp => format!("{port}/udp"),
    }
}

/// The first address of a subnet: bridge, default route and DNS of its replicas.
pub(crate) fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    subnet.nth(1).unwrap_or(subnet.address())
}

/// This node's own line of the table.
///
/// # Errors
/// The table contradicts itself, in a way that would lead traffic astray.
pub(crate) fn check(table: &Table) -> Result<NodeRoute, NetError> {
    let wrong = |problem: String| NetError::Table { revision: table.revision, problem };
    if table.replica_net.overlaps(table.service_net) {
        let (replicas, services) = (table.replica_net, table.service_net);
        return Err(wrong(format!("the replica network {replicas} overlaps the service network {services}")));
    }
    let mut subnets: Vec<&NodeRoute> = Vec::new();
    for node in &table.nodes {
        let (name, subnet) = (&node.name, node.subnet);
        if !table.replica_net.contains(subnet.address()) || subnet.length() < table.replica_net.length() {
            return Err(wrong(format!("the subnet {subnet} of node {name} is not inside {}", table.replica_net)));
        }
        // Network, bridge, one replica, broadcast.
        if subnet.length() > 30 {
            return Err(wrong(format!("the subnet {subnet} of node {name} has no room for a replica")));
        }
        if let Some(other) = subnets.iter().find(|other| other.subnet.overlaps(subnet)) {
            return Err(wrong(format!("nodes {} and {name} have overlapping subnets", other.name)));
        }
        subnets.push(node);
    }
    let mut addresses = BTreeSet::new();
    for service in &table.services {
        let (app, name, address) = (&service.app, &service.service, service.address);
        if !table.service_net.contains(address) {
            return Err(wrong(format!(
                "the address {address} of service {app}/{name} is not in {}",
                table.service_net
            )));
        }
        if !addresses.insert(address) {
            return Err(wrong(format!("the address {address} of service {app}/{name} is another service's too")));
        }
        if let Some(endpoint) = service.endpoints.iter().find(|e| !table.replica_net.contains(e.address)) {
            return Err(wrong(format!("the address of replica {} is not in {}", endpoint.replica, table.replica_net)));
        }
    }
    let local = table.nodes.iter().find(|node| node.node == table.local);
    local.cloned().ok_or_else(|| wrong(format!("the node {} it was made for is not among its nodes", table.local)))
}

/// What the rules depend on.
pub(crate) fn parameters(table: &Table, local: &NodeRoute, bridge: &str) -> NodeParameters {
    NodeParameters {
        bridge: bridge.to_owned(),
        subnet: local.subnet,
        gateway: gateway(local.subnet),
        replica_net: table.replica_net,
        service_net: table.service_net,
        apart: table.services.iter().any(|service| !service.networks.is_empty()),
    }
}

/// A number that differs between nodes.
pub(crate) fn offset(table: &Table) -> u32 {
    crate::hash::fnv1a(table.local.as_str().as_bytes()) as u32
}

/// Another node, and the link on which it is reached directly; `None` when it is not on a network of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: NodeName,
    pub(crate) underlay: Ipv4Addr,
    pub(crate) subnet: Ipv4Net,
    pub(crate) direct: Option<u32>,
}

impl Peer {
    pub(crate) fn path(&self) -> Path {
        if self.direct.is_some() { Path::Direct } else { Path::Vxlan }
    }
}

/// How every other node is reached.
///
/// - `host`: addresses of the links that are not ours. The longest prefix that covers a node's address decides.
pub(crate) fn peers(table: &Table, host: &[Address]) -> Vec<Peer> {
    let direct = |underlay: Ipv4Addr| {
        let on = host.iter().filter(|a| a.length < 32 && a.net().is_some_and(|net| net.contains(underlay)));
        on.max_by_key(|address| address.length).map(|address| address.link)
    };
    let others = table.nodes.iter().filter(|node| node.node != table.local);
    others
        .map(|node| Peer {
            name: node.name.clone(),
            underlay: node.underlay,
            subnet: node.subnet,
            direct: direct(node.underlay),
        })
        .collect()
}

/// The hardware address of a node's tunnel end: known to every node without being told.
pub(crate) fn tunnel_mac(subnet: Ipv4Net) -> Mac {
    Mac::of(subnet.address())
}

/// Routes of this node.
///
/// - `bridge`, `vxlan`: the links' numbers.
pub(crate) fn routes(p: &NodeParameters, peers: &[Peer], bridge: u32, vxlan: Option<u32>) -> BTreeSet<Route> {
    let source = Some(p.gateway);
    let mut routes = BTreeSet::from([
        // An address of a node that is not there fails at once instead of leaving by the default route.
        Route { to: p.replica_net, way: Way::Unreachable, source: None },
        // Only so that the host itself finds a way and a source address before the address is translated; what is
        // not translated is refused by the rules.
        Route { to: p.service_net, way: Way::Link(bridge), source },
    ]);
    for peer in peers {
        let way = match (peer.direct, vxlan) {
            (Some(link), _) => Way::Via(peer.underlay, link),
            (None, Some(vxlan)) => Way::Via(gateway(peer.subnet), vxlan),
            (None, None) => Way::Unreachable,
        };
        routes.insert(Route { to: peer.subnet, way, source: if way == Way::Unreachable { None } else { source } });
    }
    routes
}

/// The tunnel's static entries: two per peer behind it.
pub(crate) fn neighbours(peers: &[Peer]) -> BTreeSet<Neighbour> {
    let behind = peers.iter().filter(|peer| peer.direct.is_none());
    behind
        .flat_map(|peer| {
            let mac = tunnel_mac(peer.subnet);
            [Neighbour::Arp(gateway(peer.subnet), mac), Neighbour::Forward(mac, peer.underlay)]
        })
        .collect()
}

/// What must go and what must come. A changed route is replaced, never absent: it is in the second list only.
pub(crate) fn route_changes(have: &[FoundRoute], want: &BTreeSet<Route>) -> (Vec<Route>, Vec<Route>) {
    let ours: Vec<Route> = have.iter().filter(|found| found.protocol == PROTOCOL).map(|found| found.route).collect();
    let add: Vec<Route> = want.iter().filter(|route| !ours.contains(route)).copied().collect();
    let stale = ours.into_iter().filter(|route| !want.iter().any(|wanted| wanted.to == route.to)).collect();
    (stale, add)
}

/// The ready replicas of every service, in the services' maps.
///
/// - `before`: an earlier table of this node with its maps: what is the same in both is taken over.
pub(crate) fn service_sets(before: Option<(&Table, &Sets)>, now: &Table) -> Sets {
    let before = before.filter(|(table, _)| table.local == now.local);
    let names = [ruleset::SERVICES.name, ruleset::MANY.name, ruleset::STICKY.name];
    let old = |name| before.and_then(|(_, sets)| sets.get(name)).map(|pages| Pages::clone(pages)).unwrap_or_default();
    let mut sets = names.map(|name| (name, old(name)));
    for (address, service) in changes(before.map(|(table, _)| table), now) {
        let endpoints = service.map(|service| service.endpoints.as_slice()).unwrap_or_default();
        let mut ready: Vec<Ipv4Addr> = endpoints.iter().filter(|e| e.ready).map(|e| e.address).collect();
        ready.sort_unstable();
        let (set, slots) = service_slots(&ready, service.is_some_and(|service| service.sticky), offset(now));
        for (name, pages) in &mut sets {
            let slots = slots.iter().filter(|_| *name == set.name);
            let page = slots.map(|(slot, replica)| service_slot(address, *slot, *replica)).collect();
            pages.set(address.octets(), page);
        }
    }
    sets.into_iter().map(|(name, pages)| (name, Arc::new(pages))).collect()
}

/// Who reaches whom, in the maps of both tables.
///
/// Replicas on the same networks are one group. Groups that share a network reach each other; a replica of a service
/// without networks is in no group.
pub(crate) fn isolation(table: &Table) -> Isolation {
    let mut found = Isolation::default();
    let mut numbers: BTreeMap<BTreeSet<&str>, u32> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for service in table.services.iter().filter(|service| !service.networks.is_empty()) {
        let networks: BTreeSet<&str> = service.networks.iter().map(|network| network.name.as_str()).collect();
        let group = *numbers.entry(networks).or_insert_with_key(|networks| {
            let text = networks.iter().copied().collect::<Vec<_>>().join(" ");
            // A number that other groups do not change: then their coming and going changes no element of ours.
            let hash = crate::hash::fnv1a(text.as_bytes()) as u32;
            let number = (0..).map(|next| hash.wrapping_add(next)).find(|number| taken.insert(*number));
            number.unwrap_or_else(|| unreachable!("2^32 numbers are not all taken"))
        });
        let closed = service.networks.iter().all(|network| network.internal);
        for endpoint in &service.endpoints {
            found.groups.insert(endpoint.address, group);
            if closed {
                found.internal.insert(endpoint.address);
            }
        }
        found.services.insert(service.address, group);
    }
    for (one, first) in &numbers {
        for (_, second) in numbers.iter().filter(|(other, _)| !one.is_disjoint(other)) {
            found.reach.insert((*first, *second));
        }
    }
    found
}

/// See [`isolation`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Isolation {
    /// Each replica's group.
    pub(crate) groups: BTreeMap<Ipv4Addr, u32>,
    /// Each service address's.
    pub(crate) services: BTreeMap<Ipv4Addr, u32>,
    pub(crate) reach: BTreeSet<(u32, u32)>,
    /// Replicas that must not leave the cluster.
    pub(crate) internal: BTreeSet<Ipv4Addr>,
}

impl Isolation {
    /// Whether a container at `from` may know of the replica or service at `to`.
    pub(crate) fn allows(&self, from: Ipv4Addr, to: Ipv4Addr) -> bool {
        let group = |address| self.groups.get(&address).or_else(|| self.services.get(&address));
        match (group(from), group(to)) {
            (Some(one), Some(other)) => self.reach.contains(&(*one, *other)),
            _ => true,
        }
    }

    /// The elements of the maps; empty when no service names a network.
    pub(crate) fn sets(&self) -> Sets {
        let groups: Pages = self.groups.iter().map(|(replica, group)| ruleset::member(*replica, *group)).collect();
        let plain = |key| (key, Value::default());
        let reach: Pages = self.reach.iter().map(|(one, other)| plain(ruleset::numbers(*one, *other))).collect();
        let internal: Pages = self.internal.iter().map(|replica| plain(ruleset::in_set(*replica))).collect();
        let named = [(ruleset::GROUPS.name, groups), (ruleset::REACH.name, reach), (ruleset::INTERNAL.name, internal)];
        named.into_iter().map(|(name, pages)| (name, Arc::new(pages))).collect()
    }
}

/// Whether two states of one service lead to the same replicas. Compares what decides that and nothing else: of many
/// services nearly all are the same.
fn same_replicas(old: &Service, new: &Service) -> bool {
    let same = |(old, new): (&Endpoint, &Endpoint)| old.address == new.address && old.ready == new.ready;
    old.sticky == new.sticky
        && old.endpoints.len() == new.endpoints.len()
        && old.endpoints.iter().zip(&new.endpoints).all(same)
}

/// Services of `now` whose replicas are not those of `before`, and addresses that are no service's any more.
pub(crate) fn changes<'a>(before: Option<&Table>, now: &'a Table) -> Vec<(Ipv4Addr, Option<&'a Service>)> {
    let Some(before) = before else {
        return now.services.iter().map(|service| (service.address, Some(service))).collect();
    };
    // Mostly the same services in the same order: then no index is needed.
    let aligned = before.services.len() == now.services.len()
        && before.services.iter().zip(&now.services).all(|(old, new)| old.address == new.address);
    if aligned {
        let pairs = before.services.iter().zip(&now.services).filter(|(old, new)| !same_replicas(old, new));
        return pairs.map(|(_, new)| (new.address, Some(new))).collect();
    }
    let mut old: HashMap<Ipv4Addr, &Service> = before.services.iter().map(|old| (old.address, old)).collect();
    let known = |old: Option<&Service>, new| old.is_some_and(|old| same_replicas(old, new));
    let new = now.services.iter().filter(|new| !known(old.remove(&new.address), new));
    let mut changes: Vec<_> = new.map(|new| (new.address, Some(new))).collect();
    let mut gone: Vec<_> = old.into_keys().map(|address| (address, None)).collect();
    gone.sort_unstable_by_key(|(address, _)| *address);
    // Those that go come last: an address is never without a replica because it was taken first.
    changes.append(&mut gone);
    changes
}

/// Every published port with the ready replicas behind it. When two publish one port the first keeps it.
///
/// - `own`: ports of single containers of this node.
pub(crate) fn targets<'a>(
    table: &Table,
    own: impl IntoIterator<Item = (Ipv4Addr, &'a [Published])>,
) -> (Targets, Vec<String>) {
    let mut targets = Targets::new();
    let mut problems = Vec::new();
    let mut add = |port: &Published, addresses: &mut dyn Iterator<Item = Ipv4Addr>, who: String| {
        let key = (port.protocol, port.published);
        if targets.contains_key(&key) {
            problems.push(format!("port {} is published by another already: it is not open for {who}", port_text(key)));
            return;
        }
        let mut list: Vec<_> = addresses.map(|address| (address, port.target)).collect();
        list.sort_unstable();
        targets.insert(key, list);
    };
    for service in &table.services {
        for port in &service.ports {
            let mut ready = service.endpoints.iter().filter(|e| e.ready).map(|e| e.address);
            add(port, &mut ready, format!("service {}/{}", service.app, service.service));
        }
    }
    for (address, ports) in own {
        for port in ports {
            add(port, &mut std::iter::once(address), format!("the container at {address}"));
        }
    }
    (targets, problems)
}

/// Containers that were attached in an earlier subnet of this node, in words: nothing can reach them.
pub(crate) fn strays<'a>(subnet: Ipv4Net, records: impl IntoIterator<Item = &'a Record>) -> Vec<String> {
    let strays = records.into_iter().filter(|record| !subnet.contains(record.address));
    strays
        .map(|record| format!("container {} has {}, outside this node's {subnet}", record.request.id, record.address))
        .collect()
}

/// Replicas that got connections before and must not get them now: gone ones, and ones that are only not ready.
pub(crate) fn lost(before: &Table, now: &Table) -> (BTreeSet<Ipv4Addr>, BTreeSet<Ipv4Addr>) {
    let changed: BTreeSet<Ipv4Addr> = changes(Some(before), now).into_iter().map(|(address, _)| address).collect();
    let old = before.services.iter().filter(|service| changed.contains(&service.address));
    let old: BTreeMap<Ipv4Addr, bool> = old.flat_map(|s| &s.endpoints).map(|e| (e.address, e.ready)).collect();
    // They may be replicas of another service, too.
    let (mut gone, mut unready): (BTreeSet<_>, BTreeSet<_>) = (old.keys().copied().collect(), BTreeSet::new());
    unready.extend(old.iter().filter(|(_, ready)| **ready).map(|(address, _)| *address));
    if !old.is_empty() {
        for endpoint in now.services.iter().flat_map(|service| &service.endpoints) {
            gone.remove(&endpoint.address);
            if endpoint.ready {
                unready.remove(&endpoint.address);
            }
        }
    }
    unready.retain(|address| !gone.contains(address));
    (gone, unready)
}

/// Refuse networks that this host already reaches another way.
///
/// - `ours`: numbers of our own links.
/// - `name`: a link's name by number, for the message.
///
/// Default routes, and the halves of one that VPNs use (anything shorter than /8), are no conflict.
pub(crate) fn no_overlap(
    nets: &[(&'static str, Ipv4Net)],
    routes: &[FoundRoute],
    ours: &[u32],
    name: impl Fn(u32) -> String,
) -> Result<(), NetError> {
    const DEFAULT_LIKE: u8 = 8;
    for found in routes.iter().filter(|f| f.protocol != PROTOCOL && f.route.to.length() >= DEFAULT_LIKE) {
        let link = match found.route.way {
            Way::Link(link) | Way::Via(_, link) if ours.contains(&link) => continue,
            Way::Link(link) | Way::Via(_, link) => format!(" by {}", name(link)),
            Way::Unreachable => String::new(),
        };
        if let Some((what, net)) = nets.iter().find(|(_, net)| net.overlaps(found.route.to)) {
            return Err(NetError::Overlap { what, ours: *net, theirs: format!("{}{link}", found.route.to) });
        }
    }
    Ok(())
}

/// Whether `given` may replace `current`.
pub(crate) fn not_older(current: Option<&Table>, given: &Table) -> Result<(), NetError> {
    // Another identity is another cluster: its revisions are not comparable.
    let current = current.filter(|table| table.local == given.local).map(|table| table.revision);
    match current {
        Some(current) if given.revision < current => Err(NetError::OlderTable { given: given.revision, current }),
        _ => Ok(()),
    }
}

/// For the log: what a table holds.
pub(crate) fn summary(table: &Table) -> (Revision, usize, usize, usize) {
    let endpoints = table.services.iter().map(|service| service.endpoints.len()).sum();
    (table.revision, table.nodes.len(), table.services.len(), endpoints)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::nft;
    use gantry_api::ids::{ReplicaId, ReplicaName};
    use proptest::prelude::*;

    /// A cluster of nodes 10.0.0.1, 10.0.0.2, ... with subnets 10.210.1.0/24, ...; this node is the first.
    pub(crate) fn table(nodes: u8, services: &[(&str, &[(u8, bool)])]) -> Table {
        let id = |n: u8| format!("{n:016x}").parse().unwrap();
        Table {
            revision: Revision(1),
            local: id(1),
            replica_net: "10.210.0.0/16".parse().unwrap(),
            service_net: "10.211.0.0/16".parse().unwrap(),
            nodes: (1..=nodes)
                .map(|n| NodeRoute {
                    node: id(n),
                    name: format!("n{n}").parse().unwrap(),
                    underlay: Ipv4Addr::new(10, 0, 0, n),
                    subnet: format!("10.210.{n}.0/24").parse().unwrap(),
                })
                .collect(),
            services: (1u8..).zip(services).map(|(n, (name, endpoints))| service(n, name, endpoints)).collect(),
        }
    }

    fn service(n: u8, name: &str, endpoints: &[(u8, bool)]) -> Service {
        let name: ReplicaName = ReplicaName { app: "shop".parse().unwrap(), service: name.parse().unwrap(), number: 1 };
        Service {
            app: name.app.clone(),
            service: name.service.clone(),
            address: Ipv4Addr::new(10, 211, 0, n),
            aliases: vec![format!("{}-alias", name.service)],
            ports: vec![Published { published: 8000 + u16::from(n), target: 80, protocol: Protocol::Tcp }],
            sticky: false,
            networks: vec![],
            endpoints: (1..)
                .zip(endpoints)
                .map(|(number, (host, ready))| {
                    let name = ReplicaName { number, ..name.clone() };
                    Endpoint {
                        replica: ReplicaId::new(&name, u32::from(*host)),
                        name,
                        node: format!("{:016x}", 1).parse().unwrap(),
                        address: Ipv4Addr::new(10, 210, 1 + host / 100, 2 + host % 100),
                        ready: *ready,
                    }
                })
                .collect(),
        }
    }

    const HOST: [Address; 1] = [Address { link: 2, address: Ipv4Addr::new(10, 0, 0, 1), length: 24 }];

    #[test]
    fn a_table_that_contradicts_itself_is_refused() {
        let good = table(2, &[("api", &[(0, true)])]);
        assert_eq!(check(&good).unwrap().name.as_str(), "n1");
        type Damage = fn(&mut Table);
        let cases: [(&str, Damage); 7] = [
            ("not among its nodes", |t| t.local = "ffffffffffffffff".parse().unwrap()),
            ("overlaps the service network", |t| t.service_net = "10.210.128.0/17".parse().unwrap()),
            ("is not inside", |t| t.nodes[1].subnet = "10.9.0.0/24".parse().unwrap()),
            ("no room", |t| t.nodes[1].subnet = "10.210.9.0/31".parse().unwrap()),
            ("overlapping subnets", |t| t.nodes[1].subnet = "10.210.0.0/17".parse().unwrap()),
            ("is not in", |t| t.services[0].address = Ipv4Addr::new(1, 1, 1, 1)),
            ("of replica", |t| t.services[0].endpoints[0].address = Ipv4Addr::new(8, 8, 8, 8)),
        ];
        for (words, damage) in cases {
            let mut bad = good.clone();
            damage(&mut bad);
            let error = check(&bad).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn nodes_on_our_network_are_reached_directly_and_others_through_the_tunnel() {
        let mut table = table(3, &[]);
        table.nodes[2].underlay = Ipv4Addr::new(10, 9, 0, 3);
        let peers = peers(&table, &HOST);
        assert_eq!(peers.iter().map(Peer::path).collect::<Vec<_>>(), [Path::Direct, Path::Vxlan]);
        let p = parameters(&table, &table.nodes[0], "gantry0");
        let ways: Vec<String> =
            routes(&p, &peers, 7, Some(8)).iter().map(|r| format!("{} {:?} {:?}", r.to, r.way, r.source)).collect();
        assert_eq!(
            ways,
            [
                "10.210.0.0/16 Unreachable None",
                "10.210.2.0/24 Via(10.0.0.2, 2) Some(10.210.1.1)",
                "10.210.3.0/24 Via(10.210.3.1, 8) Some(10.210.1.1)",
                "10.211.0.0/16 Link(7) Some(10.210.1.1)",
            ]
        );
        let entries: Vec<Neighbour> = neighbours(&peers).into_iter().collect();
        let mac = Mac::of(Ipv4Addr::new(10, 210, 3, 0));
        assert_eq!(
            entries,
            [Neighbour::Arp(Ipv4Addr::new(10, 210, 3, 1), mac), Neighbour::Forward(mac, Ipv4Addr::new(10, 9, 0, 3))]
        );
    }

    #[test]
    fn a_changed_route_is_replaced_and_a_stale_one_deleted() {
        let route = |to: &str, way| Route { to: to.parse().unwrap(), way, source: None };
        let found = |route, protocol| FoundRoute { route, protocol };
        let have = [
            found(route("10.210.2.0/24", Way::Link(1)), PROTOCOL),
            found(route("10.210.3.0/24", Way::Link(1)), PROTOCOL),
            found(route("10.0.0.0/24", Way::Link(2)), 2),
        ];
        let want = BTreeSet::from([route("10.210.2.0/24", Way::Link(5))]);
        let (stale, add) = route_changes(&have, &want);
        assert_eq!(stale, [route("10.210.3.0/24", Way::Link(1))]);
        assert_eq!(add, [route("10.210.2.0/24", Way::Link(5))]);
        let same = [found(route("10.210.2.0/24", Way::Link(5)), PROTOCOL)];
        assert_eq!(route_changes(&same, &want), (vec![], vec![]));
    }

    #[test]
    fn only_ready_replicas_get_slots() {
        let table = table(1, &[("api", &[(0, true), (1, false), (2, true)]), ("db", &[(3, false)])]);
        let sets = service_sets(None, &table);
        assert_eq!(sets[ruleset::SERVICES.name].iter().count(), ruleset::FEW as usize);
        let replicas: BTreeSet<u8> = sets[ruleset::SERVICES.name].iter().map(|(_, value)| value[3]).collect();
        assert_eq!(replicas, BTreeSet::from([2, 4]));
        let (targets, problems) = targets(&table, []);
        assert!(problems.is_empty());
        assert_eq!(targets[&(Protocol::Tcp, 8001)].len(), 2);
        assert_eq!(targets[&(Protocol::Tcp, 8002)].len(), 0);
    }

    #[test]
    fn only_what_differs_is_changed() {
        let before = table(1, &[("api", &[(0, true)]), ("db", &[(1, true)])]);
        let names = |now: &Table| {
            let names = changes(Some(&before), now).into_iter().map(|(address, service)| {
                format!("{}{}", address.octets()[3], service.map_or("-", |service| service.service.as_str()))
            });
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&before), "");
        assert_eq!(names(&table(1, &[("api", &[(0, true)]), ("db", &[(1, false)])])), "2db");
        assert_eq!(names(&table(1, &[("api", &[(0, true)])])), "2-");
        assert_eq!(names(&table(1, &[("api", &[(0, true)]), ("db", &[(1, true)]), ("web", &[(5, true)])])), "3web");
        assert_eq!(changes(None, &before).len(), 2);
    }

    #[test]
    fn services_reach_those_on_a_network_of_theirs() {
        use gantry_api::network::ServiceNetwork;
        let mut table = table(
            1,
            &[
                ("web", &[(0, true)]),
                ("api", &[(1, true)]),
                ("db", &[(2, true)]),
                ("old", &[(3, true)]),
                ("web2", &[(4, true)]),
            ],
        );
        let on = |names: &[(&str, bool)]| -> Vec<ServiceNetwork> {
            names.iter().map(|(name, internal)| ServiceNetwork { name: (*name).into(), internal: *internal }).collect()
        };
        let networks = [
            on(&[("front", false)]),
            on(&[("back", true), ("front", false)]),
            on(&[("back", true)]),
            on(&[]),
            on(&[("front", false)]),
        ];
        for (service, networks) in table.services.iter_mut().zip(networks) {
            service.networks = networks;
        }
        let found = isolation(&table);
        let replica = |n: u8| Ipv4Addr::new(10, 210, 1, 2 + n);
        for (from, to, allowed) in [
            (0, 1, true),
            (1, 0, true),
            (0, 2, false),
            (2, 0, false),
            (1, 2, true),
            (0, 0, true),
            (0, 3, true),
            (3, 2, true),
            (0, 4, true),
            (4, 2, false),
        ] {
            assert_eq!(found.allows(replica(from), replica(to)), allowed, "{from} to {to}");
            assert_eq!(
                found.allows(replica(from), Ipv4Addr::new(10, 211, 0, 1 + to)),
                allowed,
                "{from} to service {to}"
            );
        }
        assert_eq!(found.internal, BTreeSet::from([replica(2)]), "one with another network leaves by that");
        assert_eq!(found.groups.values().collect::<BTreeSet<_>>().len(), 3, "the same networks, one group");
        assert_eq!(found.reach.len(), 7);
        assert_eq!(isolation(&Table { services: vec![], ..table.clone() }), Isolation::default());
        // The number of a group does not depend on the others.
        table.services.remove(1);
        assert_eq!(isolation(&table).groups[&replica(2)], found.groups[&replica(2)]);
    }

    #[test]
    fn a_port_published_twice_stays_with_the_first() {
        let mut table = table(1, &[("api", &[(0, true)]), ("db", &[(3, true)])]);
        table.services[1].ports = table.services[0].ports.clone();
        let (targets, problems) = targets(&table, []);
        assert_eq!(targets[&(Protocol::Tcp, 8001)], [(Ipv4Addr::new(10, 210, 1, 2), 80)]);
        assert_eq!(problems, ["port 8001/tcp is published by another already: it is not open for service shop/db"]);
    }

    #[test]
    fn lost_replicas_are_gone_or_only_not_ready() {
        let before = table(1, &[("api", &[(0, true), (1, true), (2, true), (3, false)])]);
        let now = table(1, &[("api", &[(0, true), (1, false), (3, true)])]);
        let (gone, unready) = lost(&before, &now);
        assert_eq!(gone, BTreeSet::from([Ipv4Addr::new(10, 210, 1, 4)]));
        assert_eq!(unready, BTreeSet::from([Ipv4Addr::new(10, 210, 1, 3)]));
    }

    #[test]
    fn a_network_of_the_host_is_not_taken() {
        let route = |to: &str, way| Route { to: to.parse().unwrap(), way, source: None };
        let nets = [("replica network", "10.210.0.0/16".parse().unwrap())];
        for (why, to, way, protocol, refused) in [
            ("default route", "0.0.0.0/0", Way::Link(2), 3, false),
            ("half a default route", "0.0.0.0/1", Way::Link(2), 3, false),
            ("another network", "10.0.0.0/24", Way::Link(2), 2, false),
            ("a part of ours", "10.210.7.0/24", Way::Link(2), 2, true),
            ("a network around ours", "10.0.0.0/8", Way::Link(2), 2, true),
            ("our own route", "10.210.7.0/24", Way::Link(2), PROTOCOL, false),
            ("our own link", "10.210.7.0/24", Way::Link(9), 2, false),
        ] {
            let found = [FoundRoute { route: route(to, way), protocol }];
            let result = no_overlap(&nets, &found, &[9], |_| "eth0".into());
            assert_eq!(result.is_err(), refused, "{why}");
            if let Err(error) = result {
                let words =
                    format!("the replica network 10.210.0.0/16 overlaps the route to {to} by eth0 of this host");
                assert_eq!(error.to_string(), words);
            }
        }
    }

    #[test]
    fn an_older_table_is_refused() {
        let current = Table { revision: Revision(5), ..table(1, &[]) };
        for (revision, local, fine) in [(4, 1, false), (5, 1, true), (6, 1, true), (1, 2, true)] {
            let mut given = Table { revision: Revision(revision), ..table(1, &[]) };
            given.local = format!("{local:016x}").parse().unwrap();
            assert_eq!(not_older(Some(&current), &given).is_ok(), fine, "{revision} {local}");
        }
        assert!(not_older(None, &current).is_ok());
    }

    fn some_table() -> impl Strategy<Value = Table> {
        let endpoints = proptest::collection::vec((0u8..80, any::<bool>()), 0..6);
        proptest::collection::vec(endpoints, 0..4).prop_map(|services| {
            let names = ["a", "b", "c", "d"];
            let list: Vec<(&str, &[(u8, bool)])> =
                services.iter().zip(names).map(|(e, name)| (name, e.as_slice())).collect();
            table(1, &list)
        })
    }

    proptest! {
        #[test]
        fn from_any_table_to_any_other(before in some_table(), now in some_table()) {
            let (have, want) = (service_sets(None, &before), service_sets(None, &now));
            prop_assert_eq!(&service_sets(Some((&before, &have)), &now), &want, "a change gives what a new start gives");
            for (name, want) in &want {
                let diff = nft::diff(&have[name], want);
                let mut have: BTreeMap<_, _> = have[name].iter().map(|(key, value)| (*key, *value)).collect();
                diff.delete.iter().for_each(|(key, _)| { have.remove(key); });
                have.extend(diff.add);
                prop_assert_eq!(&have.into_iter().collect::<Pages>(), &**want);
            }
            let ready: BTreeSet<Ipv4Addr> = now.services.iter().flat_map(|s| &s.endpoints)
                .filter(|e| e.ready).map(|e| e.address).collect();
            for (_, value) in want.values().flat_map(|pages| pages.iter()) {
                let replica = Ipv4Addr::new(value[0], value[1], value[2], value[3]);
                prop_assert!(ready.contains(&replica));
            }
        }
    }
}
