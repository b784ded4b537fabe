//! One rule as the expressions that the kernel runs: load into a register, compare, look up, act.
//!
//! Registers are 32 bits wide here; a concatenated key is built in neighbouring ones and a looked-up value comes back
//! into them, address first, port second.

use super::{NEW_RULE, RULE_FLAGS, Table};
use crate::netlink::Batch;
use gantry_api::network::Ipv4Net;
use std::net::Ipv4Addr;

/// The first 32-bit register; the others follow.
const R0: u32 = 8;
const R1: u32 = 9;
const R2: u32 = 10;
/// The first 128-bit register, for interface names. It shares its bytes with `R0` to `R0 + 3`.
const WIDE: u32 = 1;
const VERDICT: u32 = 0;

/// `meta` key: number of the link that a packet came in by.
const INPUT_LINK: u32 = 4;
/// Any number that all nodes share: a client keeps its slot wherever it comes in. Without one the kernel draws its own.
const HASH_SEED: u32 = 0x6761_6e74;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Which address of the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl End {
    const fn offset(self) -> u32 {
        match self {
            Self::Source => 12,
            Self::Destination => 16,
        }
    }
}

/// TCP's number in the IP header.
pub(crate) const TCP: u8 = 6;
/// UDP's.
pub(crate) const UDP: u8 = 17;

/// A rule under construction: conditions first, then what to do.
#[derive(Debug)]
pub(crate) struct Rule {
    name: &'static str,
    code: Batch,
}

impl Rule {
    /// `name` is shown as the rule's comment by `nft list ruleset`.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, code: Batch::new() }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn code(&self) -> &[u8] {
        self.code.written()
    }

    fn expression(mut self, name: &str, inside: impl FnOnce(&mut Batch)) -> Self {
        self.code.nest(1, |b| {
            b.text(1, name);
            b.nest(2, inside);
        });
        self
    }

    fn compare(self, register: u32, operator: u32, value: &[u8]) -> Self {
        self.expression("cmp", |b| {
            b.be32(1, register);
            b.be32(2, operator);
            b.nest(3, |b| b.attribute(1, value));
        })
    }

    fn payload(self, register: u32, base: u32, offset: u32, length: u32) -> Self {
        self.expression("payload", |b| {
            b.be32(1, register);
            b.be32(2, base);
            b.be32(3, offset);
            b.be32(4, length);
        })
    }

    fn network_header(self, register: u32, offset: u32, length: u32) -> Self {
        self.payload(register, 1, offset, length)
    }

    fn transport_header(self, register: u32, offset: u32, length: u32) -> Self {
        self.payload(register, 2, offset, length)
    }

    fn mask(self, register: u32, mask: &[u8; 4]) -> Self {
        self.expression("bitwise", |b| {
            b.be32(1, register);
            b.be32(2, register);
            b.be32(3, 4);
            b.nest(4, |b| b.attribute(1, mask));
            b.nest(5, |b| b.attribute(1, &[0; 4]));
        })
    }

    fn meta(self, register: u32, key: u32) -> Self {
        self.expression("meta", |b| {
            b.be32(1, register);
            b.be32(2, key);
        })
    }

    fn in_net(self, end: End, net: Ipv4Net, operator: u32) -> Self {
        let mask = if net.length() == 0 { 0 } else { u32::MAX << (32 - u32::from(net.length())) };
        self.network_header(R0, end.offset(), 4).mask(R0, &mask.to_be_bytes()).compare(
            R0,
            operator,
            &net.address().octets(),
        )
    }

    /// The address lies in `net`.
    pub(crate) fn within(self, end: End, net: Ipv4Net) -> Self {
        self.in_net(end, net, EQUAL)
    }

    /// The address lies outside `net`.
    pub(crate) fn outside(self, end: End, net: Ipv4Net) -> Self {
        self.in_net(end, net, NOT_EQUAL)
    }

    fn interface(self, key: u32, name: &str, operator: u32) -> Self {
        let mut padded = [0; 16];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        self.meta(WIDE, key).compare(WIDE, operator, &padded)
    }

    /// Came in by this interface.
    pub(crate) fn comes_in_by(self, name: &str) -> Self {
        self.interface(6, name, EQUAL)
    }

    /// Leaves by this interface.
    pub(crate) fn leaves_by(self, name: &str) -> Self {
        self.interface(7, name, EQUAL)
    }

    /// Leaves by another interface.
    pub(crate) fn leaves_not_by(self, name: &str) -> Self {
        self.interface(7, name, NOT_EQUAL)
    }

    /// The transport protocol has this number.
    pub(crate) fn transport(self, number: u8) -> Self {
        self.meta(R0, 16).compare(R0, EQUAL, &[number])
    }

    /// Addressed to any address of this host.
    pub(crate) fn for_this_host(self) -> Self {
        const DESTINATION: u32 = 2;
        const ADDRESS_TYPE: u32 = 3;
        const LOCAL: u32 = 2;
        self.expression("fib", |b| {
            b.be32(1, R0);
            b.be32(2, ADDRESS_TYPE);
            b.be32(3, DESTINATION);
        })
        .compare(R0, EQUAL, &LOCAL.to_ne_bytes())
    }

    fn conntrack(self, key: u32, bits: u32) -> Self {
        self.expression("ct", |b| {
            b.be32(1, R0);
            b.be32(2, key);
        })
        .mask(R0, &bits.to_ne_bytes())
        .compare(R0, NOT_EQUAL, &[0; 4])
    }

    /// The first packet of a connection.
    pub(crate) fn new_connection(self) -> Self {
        const STATE: u32 = 0;
        const NEW: u32 = 8;
        self.conntrack(STATE, NEW)
    }

    /// A connection whose destination was translated.
    pub(crate) fn translated(self) -> Self {
        const STATUS: u32 = 2;
        const DESTINATION_NAT: u32 = 1 << 5;
        self.conntrack(STATUS, DESTINATION_NAT)
    }

    fn random(self, register: u32, below: u32) -> Self {
        const RANDOM: u32 = 1;
        self.expression("numgen", |b| {
            b.be32(1, register);
            b.be32(2, below);
            b.be32(3, RANDOM);
        })
    }

    fn look_up(self, set: &str, into: Option<u32>) -> Self {
        self.look_up_at(R0, set, into)
    }

    fn look_up_at(self, register: u32, set: &str, into: Option<u32>) -> Self {
        self.expression("lookup", |b| {
            b.text(1, set);
            b.be32(2, register);
            if let Some(register) = into {
                b.be32(3, register);
            }
        })
    }

    /// What is in the registers is not in `set`.
    fn absent_from(self, set: &str) -> Self {
        const INVERTED: u32 = 1;
        self.expression("lookup", |b| {
            b.text(1, set);
            b.be32(2, R0);
            b.be32(5, INVERTED);
        })
    }

    /// A frame of this kind.
    pub(crate) fn carries(self, kind: u16) -> Self {
        const PROTOCOL: u32 = 1;
        self.meta(R0, PROTOCOL).compare(R0, EQUAL, &kind.to_be_bytes())
    }

    /// Came in by a link whose number is in `set`.
    pub(crate) fn comes_in_by_one_of(self, set: &str) -> Self {
        self.meta(R0, INPUT_LINK).look_up(set, None)
    }

    /// The pair of the link it came in by and the address at `offset` of its network header is not in `set`.
    pub(crate) fn sender_not_in(self, set: &str, offset: u32) -> Self {
        self.meta(R0, INPUT_LINK).network_header(R1, offset, 4).absent_from(set)
    }

    /// The address at `offset` of the network header is one.
    pub(crate) fn has_address(self, offset: u32) -> Self {
        self.network_header(R0, offset, 4).compare(R0, NOT_EQUAL, &[0; 4])
    }

    /// Both addresses have a group in `groups`, and the pair of groups is not in `reach`.
    pub(crate) fn apart(self, groups: &str, reach: &str) -> Self {
        self.network_header(R0, End::Source.offset(), 4)
            .look_up_at(R0, groups, Some(R0))
            .network_header(R1, End::Destination.offset(), 4)
            .look_up_at(R1, groups, Some(R1))
            .absent_from(reach)
    }

    /// The source address is in `set`.
    pub(crate) fn source_in(self, set: &str) -> Self {
        self.network_header(R0, End::Source.offset(), 4).look_up(set, None)
    }

    fn protocol_and_port(self) -> Self {
        self.meta(R0, 16).transport_header(R1, 2, 2)
    }

    /// Protocol and destination port are in `set`.
    pub(crate) fn port_in(self, set: &str) -> Self {
        self.protocol_and_port().look_up(set, None)
    }

    fn translate(self, kind: u32, address: u32, port: Option<u32>) -> Self {
        const IPV4: u32 = 2;
        self.expression("nat", |b| {
            b.be32(1, kind);
            b.be32(2, IPV4);
            b.be32(3, address);
            if let Some(port) = port {
                b.be32(5, port);
            }
        })
    }

    /// To the address in `map` under (destination address, random slot); the port stays.
    pub(crate) fn lead_to_slot_of_address(self, map: &str, slots: u32) -> Self {
        self.network_header(R0, End::Destination.offset(), 4)
            .random(R1, slots)
            .look_up(map, Some(R0))
            .translate(1, R0, None)
    }

    /// To the address in `map` under (destination address, slot of the source address); the port stays.
    pub(crate) fn lead_to_slot_of_client(self, map: &str, slots: u32) -> Self {
        const JENKINS: u32 = 0;
        self.network_header(R0, End::Destination.offset(), 4)
            .network_header(R2, End::Source.offset(), 4)
            .expression("hash", |b| {
                b.be32(1, R2);
                b.be32(2, R1);
                b.be32(3, 4);
                b.be32(4, slots);
                b.be32(5, HASH_SEED);
                b.be32(7, JENKINS);
            })
            .look_up(map, Some(R0))
            .translate(1, R0, None)
    }

    /// To the address and port in `map` under (protocol, destination port, random slot).
    pub(crate) fn lead_to_slot_of_port(self, map: &str, slots: u32) -> Self {
        self.protocol_and_port().random(R2, slots).look_up(map, Some(R0)).translate(1, R0, Some(R1))
    }

    /// Make `address` the source.
    pub(crate) fn source_becomes(self, address: Ipv4Addr) -> Self {
        self.expression("immediate", |b| {
            b.be32(1, R0);
            b.nest(2, |b| b.attribute(1, &address.octets()));
        })
        .translate(0, R0, None)
    }

    /// Make the address of the outgoing interface the source.
    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", |_| {})
    }

    /// Answer with a TCP reset.
    pub(crate) fn reset(self) -> Self {
        self.expression("reject", |b| b.be32(1, 1))
    }

    /// Answer with ICMP "port unreachable".
    pub(crate) fn unreachable(self) -> Self {
        self.expression("reject", |b| {
            b.be32(1, 0);
            b.attribute(2, &[3]);
        })
    }

    /// Throw the packet away.
    pub(crate) fn drop_it(self) -> Self {
        self.expression("immediate", |b| {
            b.be32(1, VERDICT);
            b.nest(2, |b| b.nest(2, |b| b.be32(1, 0)));
        })
    }

    pub(super) fn create(&self, batch: &mut Batch, table: Table, chain: &str, comment: &str) {
        let object = format!("{} {chain} `{}`", table.name, self.name);
        batch.begin(NEW_RULE, RULE_FLAGS, &table.layer.header(), "create nftables rule", object);
        batch.text(1, table.name);
        batch.text(2, chain);
        batch.nest(4, |b| b.append(self.code()));
        let mut data = vec![COMMENT, comment.len() as u8 + 1];
        data.extend_from_slice(comment.as_bytes());
        data.push(0);
        batch.attribute(7, &data);
        batch.end();
    }
}

/// The `nft` tool keeps a rule's comment as (kind 0, length, text with its end) in the rule's user data.
const COMMENT: u8 = 0;

/// The comment in a rule's user data.
pub(super) fn comment(data: &[u8]) -> Option<String> {
    let length = usize::from(*data.get(1)?);
    (*data.first()? == COMMENT).then(|| data.get(2..2 + length).map(crate::netlink::text)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Attributes;

    fn names(rule: &Rule) -> Vec<String> {
        Attributes(rule.code())
            .map(|(_, expression)| crate::netlink::text(Attributes(expression).value(1).unwrap()))
            .collect()
    }

    #[test]
    fn a_rule_is_its_expressions_in_order() {
        let rule = Rule::new("services")
            .within(End::Destination, "10.211.0.0/16".parse().unwrap())
            .lead_to_slot_of_address("services", 64);
        assert_eq!(names(&rule), ["payload", "bitwise", "cmp", "payload", "numgen", "lookup", "nat"]);
    }

    #[test]
    fn a_comment_survives_the_way_there_and_back() {
        let mut batch = Batch::new();
        let table = Table { name: "t", layer: super::super::Layer::Ip };
        Rule::new("x").masquerade().create(&mut batch, table, "c", "x 0badcafe");
        let attributes = Attributes(&batch.written()[20..]);
        assert_eq!(comment(attributes.value(7).unwrap()).as_deref(), Some("x 0badcafe"));
        for damaged in [&[][..], &[0], &[0, 9, b'x'], &[1, 1, 0]] {
            assert_eq!(comment(damaged), None);
        }
    }
}
