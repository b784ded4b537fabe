//! The network as every node should see it: replaced as a whole, never patched.
//!
//! The agent hands a [`Table`] to netd; netd makes kernel and DNS equal to it.

use crate::ids::{AppName, NodeId, NodeName, ReplicaId, ReplicaName, Revision, ServiceName};
use crate::spec::Protocol;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 prefix: `10.210.3.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4Net {
    address: Ipv4Addr,
    length: u8,
}

/// Not a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IPv4 prefix such as `10.210.0.0/16` (no bits may be set behind its length)")]
pub struct NetError(pub String);

impl Ipv4Net {
    /// `None` when `length` is over 32 or `address` has bits behind it.
    pub fn new(address: Ipv4Addr, length: u8) -> Option<Self> {
        let net = Self { address, length };
        (length <= 32 && u32::from(address) & !net.mask() == 0).then_some(net)
    }

    /// The network address.
    pub const fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Bits of the prefix.
    pub const fn length(self) -> u8 {
        self.length
    }

    const fn mask(self) -> u32 {
        if self.length == 0 { 0 } else { u32::MAX << (32 - self.length as u32) }
    }

    /// Whether `address` lies inside.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.address)
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The `index`-th address of the prefix, `None` behind its end.
    pub fn nth(self, index: u32) -> Option<Ipv4Addr> {
        let size = 1u64 << (32 - u32::from(self.length));
        (u64::from(index) < size).then(|| Ipv4Addr::from(u32::from(self.address) + index))
    }

    /// The `index`-th sub-prefix of `length` bits.
    pub fn subnet(self, length: u8, index: u32) -> Option<Self> {
        if length < self.length || length > 32 || u64::from(index) >= 1u64 << (length - self.length) {
            return None;
        }
        let address = u32::from(self.address) + (index << (32 - u32::from(length)));
        Self::new(Ipv4Addr::from(address), length)
    }
}

impl FromStr for Ipv4Net {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let error = || NetError(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(error)?;
        let address = address.parse().map_err(|_| error())?;
        let length = length.parse().map_err(|_| error())?;
        Self::new(address, length).ok_or_else(error)
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Serialize for Ipv4Net {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ipv4Net {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What one node's network should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What this was made from; netd refuses an older one.
    pub revision: Revision,
    /// The node this table is for.
    pub local: NodeId,
    /// All replicas' addresses lie in here.
    pub replica_net: Ipv4Net,
    /// All services' addresses lie in here.
    pub service_net: Ipv4Net,
    /// Every node with its part of `replica_net`, the local one too.
    pub nodes: Vec<NodeRoute>,
    /// Every service of every app.
    pub services: Vec<Service>,
}

/// Where a node's replicas are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRoute {
    /// The node.
    pub node: NodeId,
    /// Its name, for people.
    pub name: NodeName,
    /// Its address in the network of the hosts.
    pub underlay: Ipv4Addr,
    /// Its /24 of the replica net; the first address is its bridge (gateway and DNS).
    pub subnet: Ipv4Net,
}

/// One service point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The app.
    pub app: AppName,
    /// The service.
    pub service: ServiceName,
    /// Its virtual address; a connection to any port of it reaches that port of a ready replica.
    pub address: Ipv4Addr,
    /// More names for it within the app.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Ports open on every node.
    #[serde(default)]
    pub ports: Vec<Published>,
    /// Whether a client stays with the replica it had first, as long as that is ready.
    #[serde(default)]
    pub sticky: bool,
    /// The networks it is on: it reaches, and is reached by, services that share one, and those that name none. None: it
    /// reaches everybody.
    #[serde(default)]
    pub networks: Vec<ServiceNetwork>,
    /// Its replicas.
    pub endpoints: Vec<Endpoint>,
}

/// A network of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceNetwork {
    /// Its name in the cluster: that of the app and of the network (`shop_back`), or of an external one.
    pub name: String,
    /// Whether it leads to no place outside of the cluster. A service leaves the cluster by any other network.
    #[serde(default)]
    pub internal: bool,
}

/// A port open on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Published {
    /// Port on the nodes.
    pub published: u16,
    /// Port of the replicas.
    pub target: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// One replica behind a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Which copy.
    pub replica: ReplicaId,
    /// Its name, resolvable in DNS.
    pub name: ReplicaName,
    /// Where it runs.
    pub node: NodeId,
    /// Its address.
    pub address: Ipv4Addr,
    /// Whether it may be given connections.
    pub ready: bool,
}

/// A request to give a network to one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Unique on the node; the replica's id, or a container's.
    pub id: String,
    /// Whose names it may look up; `None` for a container outside any app.
    pub app: Option<AppName>,
    /// Host name, for reverse look-up.
    pub hostname: String,
    /// Ports of this one container to open on this node (`gantry run -p`).
    #[serde(default)]
    pub ports: Vec<Published>,
}

/// A container's network, ready to be joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// As requested.
    pub id: String,
    /// The container's address.
    pub address: Ipv4Addr,
    /// Bits of the node's subnet.
    pub prefix_length: u8,
    /// The bridge: default route and DNS server.
    pub gateway: Ipv4Addr,
    /// Path of the network namespace for the runtime to join.
    pub netns: String,
}

/// How the node's network is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Revision of the table in force; `None` before the first.
    pub revision: Option<Revision>,
    /// Attachments held.
    pub attachments: u32,
    /// How each other node is reached, by node name.
    pub peers: Vec<(NodeName, Path)>,
    /// What could not be made true, in words: `port 8080/tcp is held by another program on this node`.
    #[serde(default)]
    pub problems: Vec<String>,
    /// How containers' connections to services find a replica.
    #[serde(default)]
    pub balancing: Balancing,
}

/// Where a connection to a service address is led to a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balancing {
    /// When a container's socket connects: to the less loaded of two, and at no cost per packet.
    Connect,
    /// On the packet's way: at random.
    Packets {
        /// Why the better way is closed.
        reason: String,
    },
}

impl Default for Balancing {
    fn default() -> Self {
        Self::Packets { reason: String::new() }
    }
}

/// What a node's containers have open to one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// The service's address.
    pub service: Ipv4Addr,
    /// The replica's.
    pub address: Ipv4Addr,
    /// Whether it is given new connections. One that is not and has 0 connections is drained.
    pub ready: bool,
    /// Open now.
    pub connections: u32,
    /// Opened since the replica was first ready.
    pub total: u64,
}

/// What the whole cluster has open, so that every node knows which replica is free. Sent about ten times a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loads {
    /// How many nodes have reported.
    pub nodes: u32,
    /// Each replica with connections; one that is not named has none.
    pub endpoints: Vec<Load>,
}

/// Connections of all nodes to one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The service's address.
    pub service: Ipv4Addr,
    /// The replica's.
    pub address: Ipv4Addr,
    /// Open now.
    pub connections: u32,
}

/// How another node's replicas are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// A plain route: both are on one network segment.
    Direct,
    /// Encapsulated.
    Vxlan,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_no_bits_behind_it() {
        for (text, good) in [
            ("10.210.0.0/16", true),
            ("0.0.0.0/0", true),
            ("10.0.0.1/32", true),
            ("10.210.0.1/16", false),
            ("10.0.0.0/33", false),
            ("10.0.0.0", false),
            ("x/8", false),
        ] {
            assert_eq!(text.parse::<Ipv4Net>().is_ok(), good, "{text}");
        }
    }

    #[test]
    fn sub_prefixes_are_counted_from_zero() {
        let net: Ipv4Net = "10.210.0.0/16".parse().unwrap();
        assert_eq!(net.subnet(24, 0).unwrap().to_string(), "10.210.0.0/24");
        assert_eq!(net.subnet(24, 255).unwrap().to_string(), "10.210.255.0/24");
        assert_eq!(net.subnet(24, 256), None);
        assert_eq!(net.subnet(8, 0), None);
        assert_eq!(net.nth(257).unwrap().to_string(), "10.210.1.1");
        assert_eq!(net.nth(65536), None);
        assert!(net.contains("10.210.255.255".parse().unwrap()));
        assert!(!net.contains("10.211.0.0".parse().unwrap()));
    }
}
