//! The two tables: `gantry` of a node, `gantry_run` of containers without a daemon.
//!
//! | chain | what for |
//! |---|---|
//! | prerouting, output | service address → a replica; published port → a replica |
//! | postrouting | replies must come back the way they went; replicas reach the outside |
//! | forward, local_out, local_in | what no replica serves is refused at once, and never leaves by the default route |

use super::rule::{End, TCP};
use super::{Chain, Hook, Key, Pages, Part, Rule, Ruleset, Set, Value};
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

/// The table of a node.
pub(crate) const NODE_TABLE: &str = "gantry";
/// The table of `gantry run`.
pub(crate) const RUN_TABLE: &str = "gantry_run";

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
    Ruleset {
        table: NODE_TABLE,
        sets: vec![SERVICES, MANY, STICKY, PUBLISHED, HELD],
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
            (chain("forward", "filter", Hook::Forward, FILTER), no_replica()),
            (chain("local_out", "filter", Hook::Output, FILTER), no_replica()),
            (
                chain("local_in", "filter", Hook::Input, FILTER),
                vec![held().transport(TCP).reset(), held().unreachable()],
            ),
        ],
    }
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
