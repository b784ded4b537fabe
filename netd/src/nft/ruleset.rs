//! The two tables: `gantry` of a node, `gantry_run` of containers without a daemon.
//!
//! | chain | what for |
//! |---|---|
//! | prerouting, output | service address → a replica; published port → a replica |
//! | postrouting | replies must come back the way they went; replicas reach the outside |
//! | forward, local_out, local_in | what no replica serves is refused at once, and never leaves by the default route |

use super::rule::{End, TCP};
use super::{Chain, Hook, Key, Layer, Pages, Part, Rule, Ruleset, Set, Table, Value};
use gantry_api::network::Ipv4Net;
use gantry_api::spec::Protocol;
use std::net::Ipv4Addr;

/// Slots of a service of many replicas and of each published port, filled evenly from its replicas.
///
/// With n replicas one slot more or less is n/64 of a fair share: 3 % at 2 replicas, 16 % at 10. More than 64
/// replicas of one service: each node balances over 64 of them, another choice on each node.
pub(crate) const SLOTS: u32 = 64;
/// Slots of a service of 1, 2, 3, 4, 6 or 12 replicas: every one has exactly its share, and most services need only a
/// fifth of the elements.
pub(crate) const FEW: u32 = 12;

/// (service address, slot below [`FEW`]) → replica.
pub(crate) const SERVICES: Set = Set { name: "services", key: &[Part::Address, Part::Slot], value: &[Part::Address] };
/// (service address, slot below [`SLOTS`]) → replica, for the other numbers of replicas.
pub(crate) const MANY: Set = Set { name: "many", key: &[Part::Address, Part::Slot], value: &[Part::Address] };
/// (service address, slot of the client's address) → replica, for services whose clients stay with one.
pub(crate) const STICKY: Set = Set { name: "sticky", key: &[Part::Address, Part::Slot], value: &[Part::Address] };
/// (protocol, published port, slot) → replica and its port.
pub(crate) const PUBLISHED: Set =
    Set { name: "published", key: &[Part::Protocol, Part::Port, Part::Slot], value: &[Part::Address, Part::Port] };
/// (protocol, port) held by us on this node, with or without a ready replica behind it.
pub(crate) const HELD: Set = Set { name: "held", key: &[Part::Protocol, Part::Port], value: &[] };

/// Replica → number of the group of networks it is on. A replica of no network is in no group, and reaches everybody.
pub(crate) const GROUPS: Set = Set { name: "groups", key: &[Part::Address], value: &[Part::Slot] };
/// Pairs of groups that share a network.
pub(crate) const REACH: Set = Set { name: "reach", key: &[Part::Slot, Part::Slot], value: &[] };
/// Replicas on internal networks only.
pub(crate) const INTERNAL: Set = Set { name: "internal", key: &[Part::Address], value: &[] };
/// Numbers of the links of this node's containers.
pub(crate) const LINKS: Set = Set { name: "links", key: &[Part::Slot], value: &[] };
/// (link, address) of this node's containers: who may send what.
pub(crate) const SENDERS: Set = Set { name: "senders", key: &[Part::Slot, Part::Address], value: &[] };

/// The table of a node.
pub(crate) const NODE_TABLE: Table = Table { name: "gantry", layer: Layer::Ip };
/// The table of a node's bridge.
pub(crate) const BRIDGE_TABLE: Table = Table { name: "gantry_bridge", layer: Layer::Bridge };
/// The table of `gantry run`.
pub(crate) const RUN_TABLE: Table = Table { name: "gantry_run", layer: Layer::Ip };

const BEFORE_DESTINATION_NAT: i32 = -300;
const DESTINATION_NAT: i32 = -100;
const FILTER: i32 = 0;
const SOURCE_NAT: i32 = 100;

const fn chain(name: &'static str, kind: &'static str, hook: Hook, priority: i32) -> Chain {
    Chain { name, kind, hook, priority }
}

fn loopback() -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8).unwrap_or_else(|| unreachable!("127.0.0.0/8 is a prefix"))
}

/// What the rules of a node depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeParameters {
    pub(crate) bridge: String,
    pub(crate) subnet: Ipv4Net,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) replica_net: Ipv4Net,
    pub(crate) service_net: Ipv4Net,
    /// Whether any service names a network, so that not everybody reaches everybody.
    pub(crate) apart: bool,
}

/// The table of a node.
pub(crate) fn node(p: &NodeParameters) -> Ruleset {
    let to_replicas = || {
        vec![
            Rule::new("service address to a replica")
                .within(End::Destination, p.service_net)
                .lead_to_slot_of_address(SERVICES.name, FEW),
            Rule::new("service of many replicas")
                .within(End::Destination, p.service_net)
                .lead_to_slot_of_address(MANY.name, SLOTS),
            Rule::new("service whose clients stay")
                .within(End::Destination, p.service_net)
                .lead_to_slot_of_client(STICKY.name, SLOTS),
            // 127.0.0.1 is served by netd itself: translating it would need route_localnet on the uplink.
            Rule::new("published port to a replica")
                .outside(End::Destination, loopback())
                .for_this_host()
                .lead_to_slot_of_port(PUBLISHED.name, SLOTS),
        ]
    };
    let unserved = || Rule::new("service without replica").within(End::Destination, p.service_net);
    let no_replica = || vec![unserved().transport(TCP).reset(), unserved().unreachable()];
    let (mut sets, mut forward) = (vec![SERVICES, MANY, STICKY, PUBLISHED, HELD], no_replica());
    if p.apart {
        sets.extend([GROUPS, REACH, INTERNAL]);
        forward.extend(keep_apart(p));
    }
    Ruleset {
        table: NODE_TABLE,
        sets,
        chains: vec![
            (chain("prerouting", "nat", Hook::Prerouting, DESTINATION_NAT), to_replicas()),
            (chain("output", "nat", Hook::Output, DESTINATION_NAT), to_replicas()),
            (
                chain("postrouting", "nat", Hook::Postrouting, SOURCE_NAT),
                vec![
                    // Both on this bridge: the reply would cross it directly and miss the way back through us.
                    Rule::new("back through the bridge")
                        .translated()
                        .within(End::Source, p.subnet)
                        .leaves_by(&p.bridge)
                        .masquerade(),
                    // From outside to a replica on another node: the reply must come back to this node.
                    Rule::new("back through this node")
                        .translated()
                        .outside(End::Source, p.replica_net)
                        .within(End::Destination, p.replica_net)
                        .leaves_not_by(&p.bridge)
                        .source_becomes(p.gateway),
                    Rule::new("replicas to the outside")
                        .within(End::Source, p.subnet)
                        .outside(End::Destination, p.replica_net)
                        .leaves_not_by(&p.bridge)
                        .masquerade(),
                ],
            ),
            (chain("forward", "filter", Hook::Forward, FILTER), forward),
            (chain("local_out", "filter", Hook::Output, FILTER), no_replica()),
            (
                chain("local_in", "filter", Hook::Input, FILTER),
                vec![held().transport(TCP).reset(), held().unreachable()],
            ),
        ],
    }
}

/// Refused at once, as by a port that nobody listens on.
fn keep_apart(p: &NodeParameters) -> [Rule; 4] {
    let networks = || Rule::new("no network in common").apart(GROUPS.name, REACH.name);
    let internal = || {
        // An answer to who came in by a published port is none.
        Rule::new("internal network")
            .new_connection()
            .source_in(INTERNAL.name)
            .outside(End::Destination, p.replica_net)
            .leaves_not_by(&p.bridge)
    };
    [
        networks().transport(TCP).reset(),
        networks().unreachable(),
        internal().transport(TCP).reset(),
        internal().unreachable(),
    ]
}

const IP: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// The table of the frames between a node's containers, which the other table never sees.
///
/// - `apart`: as [`NodeParameters::apart`].
pub(crate) fn bridge(apart: bool) -> Ruleset {
    const BEFORE_ALL: i32 = -300;
    const FILTER_BRIDGED: i32 = -200;
    const ARP_SENDER: u32 = 14;
    const IP_SOURCE: u32 = 12;
    let (mut sets, mut forward) = (vec![LINKS, SENDERS], Vec::new());
    if apart {
        sets.extend([GROUPS, REACH]);
        // In a bridge nothing can be answered: not every kernel has a way to.
        forward.push(Rule::new("no network in common").carries(IP).apart(GROUPS.name, REACH.name).drop_it());
        forward.push(Rule::new("networks are IPv4").carries(IPV6).comes_in_by_one_of(LINKS.name).drop_it());
    }
    let spoofed = |name, kind| Rule::new(name).carries(kind).comes_in_by_one_of(LINKS.name);
    let prerouting = vec![
        spoofed("another's address", IP).sender_not_in(SENDERS.name, IP_SOURCE).drop_it(),
        // A sender of 0.0.0.0 only asks whether an address is free.
        spoofed("another's neighbour entry", ARP)
            .has_address(ARP_SENDER)
            .sender_not_in(SENDERS.name, ARP_SENDER)
            .drop_it(),
    ];
    let mut chains = vec![(chain("prerouting", "filter", Hook::Prerouting, BEFORE_ALL), prerouting)];
    if apart {
        chains.push((chain("forward", "filter", Hook::Forward, FILTER_BRIDGED), forward));
    }
    Ruleset { table: BRIDGE_TABLE, sets, chains }
}

/// What still arrives at a held port was not translated: no replica is ready.
fn held() -> Rule {
    Rule::new("published port without replica")
        .outside(End::Destination, loopback())
        .new_connection()
        .port_in(HELD.name)
}

/// The table of `gantry run`: published ports of containers on one bridge, and the way out.
pub(crate) fn run(bridge: &str, subnet: Ipv4Net) -> Ruleset {
    let published =
        || vec![Rule::new("published port to a container").for_this_host().lead_to_slot_of_port(PUBLISHED.name, 1)];
    Ruleset {
        table: RUN_TABLE,
        sets: vec![PUBLISHED],
        chains: vec![
            (
                chain("guard", "filter", Hook::Prerouting, BEFORE_DESTINATION_NAT),
                // The bridge may route 127.0.0.0/8 so that published ports work there; containers must not use it.
                vec![
                    Rule::new("no loopback from containers")
                        .comes_in_by(bridge)
                        .within(End::Destination, loopback())
                        .drop_it(),
                ],
            ),
            (chain("prerouting", "nat", Hook::Prerouting, DESTINATION_NAT), published()),
            (chain("output", "nat", Hook::Output, DESTINATION_NAT), published()),
            (
                chain("postrouting", "nat", Hook::Postrouting, SOURCE_NAT),
                vec![
                    Rule::new("containers to the outside")
                        .within(End::Source, subnet)
                        .leaves_not_by(bridge)
                        .masquerade(),
                    Rule::new("back through the bridge")
                        .translated()
                        .within(End::Source, subnet)
                        .leaves_by(bridge)
                        .masquerade(),
                    Rule::new("from the host's loopback")
                        .within(End::Source, loopback())
                        .leaves_by(bridge)
                        .masquerade(),
                ],
            ),
        ],
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => super::rule::UDP,
    }
}

/// The element of [`SERVICES`].
pub(crate) fn service_slot(address: Ipv4Addr, slot: u32, replica: Ipv4Addr) -> (Key, Value) {
    let (mut key, mut value) = (Key::default(), Value::default());
    key[..4].copy_from_slice(&address.octets());
    key[4..8].copy_from_slice(&slot.to_ne_bytes());
    value[..4].copy_from_slice(&replica.octets());
    (key, value)
}

/// The element of [`GROUPS`].
pub(crate) fn member(replica: Ipv4Addr, group: u32) -> (Key, Value) {
    let (key, mut value) = (in_set(replica), Value::default());
    value[..4].copy_from_slice(&group.to_ne_bytes());
    (key, value)
}

/// The element of [`INTERNAL`].
pub(crate) fn in_set(replica: Ipv4Addr) -> Key {
    let mut key = Key::default();
    key[..4].copy_from_slice(&replica.octets());
    key
}

/// The element of [`REACH`]; with one number, that of [`LINKS`].
pub(crate) fn numbers(first: u32, second: u32) -> Key {
    let mut key = Key::default();
    key[..4].copy_from_slice(&first.to_ne_bytes());
    key[4..8].copy_from_slice(&second.to_ne_bytes());
    key
}

/// The element of [`SENDERS`].
pub(crate) fn sender(link: u32, address: Ipv4Addr) -> Key {
    let mut key = numbers(link, 0);
    key[4..8].copy_from_slice(&address.octets());
    key
}

/// The element of [`HELD`].
pub(crate) fn held_port(protocol: Protocol, port: u16) -> (Key, Value) {
    let mut key = Key::default();
    key[0] = protocol_number(protocol);
    key[4..6].copy_from_slice(&port.to_be_bytes());
    (key, Value::default())
}

/// The element of [`PUBLISHED`].
pub(crate) fn published_slot(protocol: Protocol, port: u16, slot: u32, to: (Ipv4Addr, u16)) -> (Key, Value) {
    let (mut key, _) = held_port(protocol, port);
    let mut value = Value::default();
    key[8..12].copy_from_slice(&slot.to_ne_bytes());
    value[..4].copy_from_slice(&to.0.octets());
    value[4..6].copy_from_slice(&to.1.to_be_bytes());
    (key, value)
}

/// Share `targets` out over `slots` slots as evenly as can be; none when there are none.
///
/// `offset` differs between nodes and decides who gets the odd slots, and which 64 of more targets this node uses.
pub(crate) fn fill<T: Copy>(targets: &[T], slots: u32, offset: u32) -> impl Iterator<Item = (u32, T)> {
    let count = targets.len();
    (0..if count == 0 { 0 } else { slots }).map(move |slot| (slot, targets[(slot as usize + offset as usize) % count]))
}

/// Where a service's slots lie, and what is in them.
pub(crate) fn service_slots(replicas: &[Ipv4Addr], sticky: bool, offset: u32) -> (&'static Set, Vec<(u32, Ipv4Addr)>) {
    if sticky {
        // The replica with the largest hash: one that comes or goes moves no slot but its own.
        let hash = |slot: u32, replica: &Ipv4Addr| {
            crate::hash::fnv1a(&[&replica.octets()[..], &slot.to_be_bytes()].concat()).wrapping_mul(MIX) >> 32
        };
        let best = |slot| replicas.iter().max_by_key(|replica| hash(slot, replica)).map(|replica| (slot, *replica));
        return (&STICKY, (0..SLOTS).filter_map(best).collect());
    }
    let few = !replicas.is_empty() && FEW.is_multiple_of(replicas.len() as u32);
    let (set, slots) = if few { (&SERVICES, FEW) } else { (&MANY, SLOTS) };
    (set, fill(replicas, slots, offset).collect())
}

/// Spreads what differs in the last bytes only: 2^64 divided by the golden ratio, made odd.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// The elements of the map for the given published ports.
pub(crate) fn published_elements<'a>(
    ports: impl IntoIterator<Item = (&'a (Protocol, u16), &'a Vec<(Ipv4Addr, u16)>)>,
    offset: u32,
) -> Pages {
    let slots = ports.into_iter().flat_map(|((protocol, port), targets)| {
        fill(targets, SLOTS, offset).map(|(slot, to)| published_slot(*protocol, *port, slot, to))
    });
    slots.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_shared_out_evenly() {
        for count in [1usize, 2, 3, 5, 10, 63, 64] {
            for offset in [0u32, 1, 77, u32::MAX] {
                let targets: Vec<usize> = (0..count).collect();
                let mut shares = vec![0u32; count];
                let mut slots = Vec::new();
                for (slot, target) in fill(&targets, SLOTS, offset) {
                    slots.push(slot);
                    shares[target] += 1;
                }
                assert_eq!(slots, (0..SLOTS).collect::<Vec<_>>(), "{count} targets: each slot once");
                let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
                assert!(most - least <= 1, "{count} targets: {shares:?}");
            }
        }
        assert_eq!(fill::<u8>(&[], SLOTS, 3).count(), 0);
    }

    #[test]
    fn more_replicas_than_slots_are_shared_between_nodes() {
        let targets: Vec<u32> = (0..100).collect();
        let seen: std::collections::BTreeSet<u32> = [0, 50]
            .iter()
            .flat_map(|offset| fill(&targets, SLOTS, *offset).map(|(_, t)| t).collect::<Vec<_>>())
            .collect();
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn slots_of_a_service() {
        let replicas: Vec<Ipv4Addr> = (2..=20).map(|n| Ipv4Addr::new(10, 210, 1, n)).collect();
        for (count, sticky, set, slots, most) in [
            (0, false, "many", 0, 0),
            (1, false, "services", 12, 12),
            (3, false, "services", 12, 4),
            (5, false, "many", 64, 13),
            (12, false, "services", 12, 1),
            (19, false, "many", 64, 4),
            (0, true, "sticky", 0, 0),
            (1, true, "sticky", 64, 64),
            (4, true, "sticky", 64, 28),
        ] {
            let (found, list) = service_slots(&replicas[..count], sticky, 7);
            assert_eq!((found.name, list.len()), (set, slots), "{count} {sticky}");
            let share = |r: &Ipv4Addr| list.iter().filter(|(_, replica)| replica == r).count();
            let largest = replicas.iter().map(share).max().unwrap();
            assert!(largest <= most, "{count} {sticky}: {largest}");
        }
        let (_, before) = service_slots(&replicas[..5], true, 0);
        let (_, after) = service_slots(&replicas[..4], true, 0);
        for ((_, old), (_, new)) in before.iter().zip(&after) {
            assert!(old == new || *old == replicas[4], "only the gone one's clients move");
        }
    }

    #[test]
    fn keys_are_laid_out_as_the_registers_are() {
        let (key, value) = service_slot(Ipv4Addr::new(10, 211, 0, 7), 5, Ipv4Addr::new(10, 210, 1, 2));
        assert_eq!(key[..4], [10, 211, 0, 7]);
        assert_eq!(key[4..8], 5u32.to_ne_bytes());
        assert_eq!(value[..4], [10, 210, 1, 2]);
        let (key, value) = published_slot(Protocol::Udp, 8080, 1, (Ipv4Addr::new(10, 210, 1, 2), 80));
        assert_eq!(key[..8], [17, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(value[..6], [10, 210, 1, 2, 0, 80]);
    }
}
