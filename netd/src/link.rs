//! Links, addresses, routes and neighbours, as `netlink-packet-route` spells them: read what is there, say what should
//! be there.
//!
//! Whose is what: links carry the group [`GROUP`], routes the protocol [`PROTOCOL`]. Nothing else is changed.

use crate::error::{NetError, cidr};
use crate::netlink::{Batch, CREATE, EADDRNOTAVAIL, ENODEV, ENOENT, ESRCH, EXCLUSIVE, Netlink, REPLACE, parse_route};
use gantry_api::network::Ipv4Net;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Group of every link of a node's network: "GN".
pub(crate) const GROUP: u32 = 0x474e;
/// Group of the links of `gantry run`: "GR".
pub(crate) const RUN_GROUP: u32 = 0x4752;
/// Protocol number of our routes (unassigned in the kernel's and iproute2's lists).
pub(crate) const PROTOCOL: u8 = 0x47;
/// The container's end.
pub(crate) const INNER: &str = "eth0";

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl Mac {
    /// Locally administered, and one to one with the IPv4 address: a container that gets a used address gets its
    /// hardware address too, so that no neighbour entry is ever wrong, and peers know it without being told.
    pub(crate) const fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x47, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What was read of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) group: u32,
    pub(crate) master: Option<u32>,
    pub(crate) mac: Vec<u8>,
    pub(crate) kind: Option<String>,
    pub(crate) vxlan: Option<Vxlan>,
}

/// The tunnel device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) id: u32,
    pub(crate) port: u16,
    pub(crate) local: Ipv4Addr,
    pub(crate) learning: bool,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) link: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) length: u8,
}

impl Address {
    /// The network it is on.
    pub(crate) fn net(&self) -> Option<Ipv4Net> {
        let mask = if self.length == 0 { 0 } else { u32::MAX.checked_shl(32 - u32::from(self.length))? };
        Ipv4Net::new(Ipv4Addr::from(u32::from(self.address) & mask), self.length)
    }
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Nowhere: an error at once.
    Unreachable,
    /// To the link.
    Link(u32),
    /// To a gateway on the link.
    Via(Ipv4Addr, u32),
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) to: Ipv4Net,
    pub(crate) way: Way,
    /// What this host says its own address is, to those behind the route.
    pub(crate) source: Option<Ipv4Addr>,
}

/// A route with whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FoundRoute {
    pub(crate) route: Route,
    pub(crate) protocol: u8,
}

/// A link by its name.
pub(crate) fn find(socket: &mut Netlink, name: &str) -> Result<Option<Link>, NetError> {
    let mut message = LinkMessage::default();
    message.attributes =
        vec![LinkAttribute::IfName(name.into()), LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    let found = socket.get(|batch, flags| {
        let request = RouteNetlinkMessage::GetLink(message.clone());
        batch.route(request, flags, "read link", name.to_owned()).tolerate(&[ENODEV]);
    })?;
    let link = found.and_then(|(kind, payload)| parse_route(kind, &payload));
    Ok(link.and_then(|message| if let RouteNetlinkMessage::NewLink(m) = message { Some(read_link(&m)) } else { None }))
}

/// All links, or the ports of one bridge.
pub(crate) fn links(socket: &mut Netlink, of: Option<u32>) -> Result<Vec<Link>, NetError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message.attributes.extend(of.map(LinkAttribute::Controller));
    let found = socket.list(&RouteNetlinkMessage::GetLink(message), "links")?;
    let read =
        found.iter().filter_map(|m| if let RouteNetlinkMessage::NewLink(m) = m { Some(read_link(m)) } else { None });
    Ok(read.filter(|link| of.is_none() || link.master == of).collect())
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link =
        Link { index: message.header.index, up: message.header.flags.contains(LinkFlags::Up), ..Link::default() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Address(bytes) => link.mac.clone_from(bytes),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(read_vxlan(data)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn read_vxlan(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan { id: 0, port: 0, local: Ipv4Addr::UNSPECIFIED, learning: true };
    for item in data {
        match item {
            InfoVxlan::Id(id) => vxlan.id = *id,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(local) => vxlan.local = *local,
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            _ => {}
        }
    }
    vxlan
}

/// All IPv4 addresses.
pub(crate) fn addresses(socket: &mut Netlink) -> Result<Vec<Address>, NetError> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let found = socket.list(&RouteNetlinkMessage::GetAddress(message), "addresses")?;
    Ok(found
        .iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewAddress(message) = message else { return None };
            let ip = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            };
            let address = message.attributes.iter().find_map(ip)?;
            Some(Address { link: message.header.index, address, length: message.header.prefix_len })
        })
        .collect())
}

/// All IPv4 routes of the main table.
pub(crate) fn routes(socket: &mut Netlink) -> Result<Vec<FoundRoute>, NetError> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let found = socket.list(&RouteNetlinkMessage::GetRoute(message), "routes")?;
    Ok(found
        .iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewRoute(message) = message else { return None };
            (message.header.table == RouteHeader::RT_TABLE_MAIN).then(|| read_route(message)).flatten()
        })
        .collect())
}

fn read_route(message: &RouteMessage) -> Option<FoundRoute> {
    let (mut to, mut gateway, mut link, mut source) = (Ipv4Addr::UNSPECIFIED, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let way = match (message.header.kind, gateway, link) {
        (RouteType::Unicast, Some(gateway), Some(link)) => Way::Via(gateway, link),
        (RouteType::Unicast, None, Some(link)) => Way::Link(link),
        _ => Way::Unreachable,
    };
    let route = Route { to: Ipv4Net::new(to, message.header.destination_prefix_length)?, way, source };
    Some(FoundRoute { route, protocol: message.header.protocol.into() })
}

/// A static entry of the tunnel: who is behind an address, or where a hardware address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Neighbour {
    /// The peer's bridge address has this hardware address.
    Arp(Ipv4Addr, Mac),
    /// This hardware address is behind the peer's address in the network of the hosts.
    Forward(Mac, Ipv4Addr),
}

/// The static entries of one link.
pub(crate) fn neighbours(socket: &mut Netlink, link: u32) -> Result<Vec<Neighbour>, NetError> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Bridge] {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        // The forwarding entries are filtered by link with the header, the others with an attribute.
        if family == AddressFamily::Bridge {
            message.header.ifindex = link;
        } else {
            message.attributes.push(NeighbourAttribute::IfIndex(link));
        }
        let found = socket.list(&RouteNetlinkMessage::GetNeighbour(message), "neighbours")?;
        all.extend(found.iter().filter_map(|message| {
            let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
            let fixed = message.header.ifindex == link && message.header.state == NeighbourState::Permanent;
            fixed.then(|| read_neighbour(message)).flatten()
        }));
    }
    Ok(all)
}

fn read_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(*found),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                address = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(match message.header.family {
        AddressFamily::Bridge => Neighbour::Forward(mac?, address?),
        _ => Neighbour::Arp(address?, mac?),
    })
}

fn up(message: &mut LinkMessage) {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
}

fn named(name: &str, kind: InfoKind, data: Option<InfoData>) -> LinkMessage {
    let mut message = LinkMessage::default();
    let mut info = vec![LinkInfo::Kind(kind)];
    info.extend(data.map(LinkInfo::Data));
    message.attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::LinkInfo(info)];
    message
}

/// Create a bridge, up, with a hardware address that stays when ports come and go.
///
/// Its MTU follows its ports until it is changed: one given here would not count as given.
pub(crate) fn create_bridge(batch: &mut Batch, name: &str, mac: Mac, group: u32) {
    let mut message = named(name, InfoKind::Bridge, None);
    message.attributes.extend([LinkAttribute::Address(mac.0.to_vec()), LinkAttribute::Group(group)]);
    up(&mut message);
    let request = RouteNetlinkMessage::NewLink(message);
    batch.route(request, CREATE | EXCLUSIVE, "create bridge", name.to_owned());
}

/// Create the tunnel device, up, that sends what is behind static entries and nothing else.
pub(crate) fn create_vxlan(batch: &mut Batch, name: &str, vxlan: Vxlan, mac: Mac, mtu: u32, group: u32) {
    let data = vec![
        InfoVxlan::Id(vxlan.id),
        InfoVxlan::Local(vxlan.local),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Learning(vxlan.learning),
        // The inner checksums protect the content, and an outer one keeps some network cards from offloading.
        InfoVxlan::UDPCsum(false),
    ];
    let mut message = named(name, InfoKind::Vxlan, Some(InfoData::Vxlan(data)));
    message.attributes.extend([
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Group(group),
    ]);
    up(&mut message);
    let request = RouteNetlinkMessage::NewLink(message);
    batch.route(request, CREATE | EXCLUSIVE, "create tunnel", name.to_owned());
}

/// What a new pair of virtual links needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair<'a> {
    pub(crate) host: &'a str,
    pub(crate) bridge: u32,
    pub(crate) namespace: BorrowedFd<'a>,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) group: u32,
}

/// Create both ends in one message: the host's in the bridge and up, the other inside the namespace.
///
/// The inner end cannot be up yet in the creating message (ENOTCONN): its peer does not exist at that moment.
pub(crate) fn create_pair(batch: &mut Batch, pair: Pair<'_>) {
    // One queue each: several cost a third of the creation and serve nothing below 10 Gbit/s.
    let queues = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
    let mut inner = LinkMessage::default();
    inner.attributes = vec![
        LinkAttribute::IfName(INNER.into()),
        LinkAttribute::Address(pair.mac.0.to_vec()),
        LinkAttribute::Mtu(pair.mtu),
        LinkAttribute::NetNsFd(pair.namespace.as_raw_fd()),
    ];
    inner.attributes.extend(queues.clone());
    let mut outer = named(pair.host, InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(inner))));
    outer.attributes.extend([
        LinkAttribute::Mtu(pair.mtu),
        LinkAttribute::Group(pair.group),
        LinkAttribute::Controller(pair.bridge),
    ]);
    outer.attributes.extend(queues);
    up(&mut outer);
    let request = RouteNetlinkMessage::NewLink(outer);
    batch.route(request, CREATE | EXCLUSIVE, "create veth", pair.host.to_owned());
}

/// Let a bridge send a frame back out of the port it came in by. Repeatable.
pub(crate) fn allow_hairpin(batch: &mut Batch, port: &str) {
    let mut message = LinkMessage::default();
    let data = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
    let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(data)];
    message.attributes = vec![LinkAttribute::IfName(port.into()), LinkAttribute::LinkInfo(info)];
    batch.route(RouteNetlinkMessage::NewLink(message), 0, "allow hairpin on bridge port", port.to_owned());
}

/// Bring a link up, by index.
pub(crate) fn set_up(batch: &mut Batch, index: u32, name: &str) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    up(&mut message);
    batch.route(RouteNetlinkMessage::SetLink(message), 0, "bring up link", name.to_owned());
}

/// Change attributes of a link.
pub(crate) fn change(batch: &mut Batch, index: u32, name: &str, attributes: Vec<LinkAttribute>) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    batch.route(RouteNetlinkMessage::SetLink(message), 0, "change link", name.to_owned());
}

/// Delete a link; fine when it is gone.
pub(crate) fn delete(batch: &mut Batch, name: &str) {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    batch.route(RouteNetlinkMessage::DelLink(message), 0, "delete link", name.to_owned()).tolerate(&[ENODEV]);
}

/// Delete every link of a group at once: one by one costs a grace period of the kernel each, about 20 ms.
pub(crate) fn delete_group(batch: &mut Batch, group: u32) {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    let object = format!("group {group}");
    batch.route(RouteNetlinkMessage::DelLink(message), 0, "delete links of", object).tolerate(&[ENODEV]);
}

/// Give a link an address; fine when it has it.
pub(crate) fn add_address(batch: &mut Batch, link: u32, address: Ipv4Addr, length: u8) {
    let message = address_message(link, address, length);
    batch.route(RouteNetlinkMessage::NewAddress(message), CREATE | REPLACE, "add address", cidr(address, length));
}

/// Take an address from a link; fine when it has it not.
pub(crate) fn delete_address(batch: &mut Batch, link: u32, address: Ipv4Addr, length: u8) {
    let message = address_message(link, address, length);
    let object = cidr(address, length);
    batch
        .route(RouteNetlinkMessage::DelAddress(message), 0, "delete address", object)
        .tolerate(&[EADDRNOTAVAIL, ENODEV]);
}

fn address_message(link: u32, address: Ipv4Addr, length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = length;
    message.header.index = link;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    message
}

/// Add a route, in place of another of ours to the same prefix.
pub(crate) fn add_route(batch: &mut Batch, route: &Route) {
    let message = route_message(route);
    batch.route(RouteNetlinkMessage::NewRoute(message), CREATE | REPLACE, "add route", route.to.to_string());
}

/// Delete a route of ours; fine when it is gone.
pub(crate) fn delete_route(batch: &mut Batch, route: &Route) {
    let message = route_message(route);
    batch.route(RouteNetlinkMessage::DelRoute(message), 0, "delete route", route.to.to_string()).tolerate(&[ESRCH]);
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = route.to.length();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    if route.to.length() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(route.to.address())));
    }
    let (kind, scope) = match route.way {
        Way::Unreachable => (RouteType::Unreachable, RouteScope::Universe),
        Way::Link(_) => (RouteType::Unicast, RouteScope::Link),
        Way::Via(..) => (RouteType::Unicast, RouteScope::Universe),
    };
    message.header.kind = kind;
    message.header.scope = scope;
    if let Way::Link(link) | Way::Via(_, link) = route.way {
        message.attributes.push(RouteAttribute::Oif(link));
    }
    if let Way::Via(gateway, _) = route.way {
        // The gateway is known to be there, even where no address of the link's covers it (the tunnel).
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
    }
    message
}

/// Add a static entry of the tunnel, in place of another for the same key.
pub(crate) fn add_neighbour(batch: &mut Batch, link: u32, neighbour: Neighbour) {
    let (message, object) = neighbour_message(link, neighbour);
    batch.route(RouteNetlinkMessage::NewNeighbour(message), CREATE | REPLACE, "add tunnel entry", object);
}

/// Delete a static entry; fine when it is gone.
pub(crate) fn delete_neighbour(batch: &mut Batch, link: u32, neighbour: Neighbour) {
    let (message, object) = neighbour_message(link, neighbour);
    batch.route(RouteNetlinkMessage::DelNeighbour(message), 0, "delete tunnel entry", object).tolerate(&[ENOENT]);
}

fn neighbour_message(link: u32, neighbour: Neighbour) -> (NeighbourMessage, String) {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    let (address, mac, object) = match neighbour {
        Neighbour::Arp(address, mac) => {
            message.header.family = AddressFamily::Inet;
            (address, mac, format!("{address} at {mac}"))
        }
        Neighbour::Forward(mac, address) => {
            message.header.family = AddressFamily::Bridge;
            message.header.flags = NeighbourFlags::Own;
            (address, mac, format!("{mac} behind {address}"))
        }
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    (message, object)
}

/// The messages that make a new namespace usable: loopback and inner end up, address, default route. Repeatable.
pub(crate) fn configure_inside(batch: &mut Batch, inner: u32, address: Ipv4Addr, length: u8, gateway: Ipv4Addr) {
    const LOOPBACK: u32 = 1;
    set_up(batch, LOOPBACK, "lo");
    set_up(batch, inner, INNER);
    add_address(batch, inner, address, length);
    if let Some(everywhere) = Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0) {
        add_route(batch, &Route { to: everywhere, way: Way::Via(gateway, inner), source: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hardware_address_follows_the_address() {
        assert_eq!(Mac::of(Ipv4Addr::new(10, 210, 1, 2)).to_string(), "02:47:0a:d2:01:02");
    }

    #[test]
    fn a_route_is_read_back_as_written() {
        let to: Ipv4Net = "10.210.2.0/24".parse().unwrap();
        let source = Some(Ipv4Addr::new(10, 210, 1, 1));
        for way in [Way::Unreachable, Way::Link(4), Way::Via(Ipv4Addr::new(10, 0, 0, 2), 3)] {
            let route = Route { to, way, source };
            let found = read_route(&route_message(&route)).unwrap();
            assert_eq!(found, FoundRoute { route, protocol: PROTOCOL });
        }
    }

    #[test]
    fn a_tunnel_entry_is_read_back_as_written() {
        let address = Ipv4Addr::new(10, 0, 0, 2);
        for entry in [Neighbour::Arp(address, Mac::of(address)), Neighbour::Forward(Mac::of(address), address)] {
            assert_eq!(read_neighbour(&neighbour_message(7, entry).0), Some(entry));
        }
    }

    #[test]
    fn the_net_of_an_address() {
        let address = |length| Address { link: 1, address: Ipv4Addr::new(10, 1, 2, 3), length };
        assert_eq!(address(24).net().unwrap().to_string(), "10.1.2.0/24");
        assert_eq!(address(32).net().unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(address(0).net().unwrap().to_string(), "0.0.0.0/0");
    }
}
