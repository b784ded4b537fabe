//! Who can be counted on, joins and leaves.
//!
//! ```text
//!  joined ──report──► Ready ──1 s silent──► Suspect ──2 s silent──► Lost
//!                       ▲                      │                      │
//!                       └──────── report ──────┴──────── report ──────┘
//! ```

use super::plan::Action;
use super::world::{Effects, Key, Node, NodeRecord, Now, World};
use gantry_api::http::NodeState;
use gantry_api::ids::{NodeId, NodeName};
use std::net::Ipv4Addr;

/// A node silent for so long gets no traffic: two reports and a bit are missing.
pub const SUSPECT_MS: u64 = 1_000;
/// A node silent for so long has its replicas replaced: four reports are missing.
pub const LOST_MS: u64 = 2_000;
/// How long a node that was not heard of yet may take: since it joined, or since the scheduler started.
pub const GRACE_MS: u64 = 5_000;
/// Bits of each node's part of the replica net.
const SUBNET_BITS: u8 = 24;

/// Why a host cannot join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The identity has another key.
    #[error("node identity {0} has joined with another key")]
    Key(NodeId),
    /// The name is held by another node.
    #[error("node name `{name}` is held by another node ({id}, {state})")]
    Name {
        /// The name.
        name: NodeName,
        /// Who holds it.
        id: NodeId,
        /// How that one is.
        state: &'static str,
    },
    /// The address is held by another node.
    #[error("address {address} is held by node `{name}`")]
    Address {
        /// The address.
        address: Ipv4Addr,
        /// Who holds it.
        name: NodeName,
    },
    /// No part of the replica net is left.
    #[error("no /{SUBNET_BITS} of the replica net {0} is free")]
    Full(String),
}

impl JoinError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Key(_) => {
                "remove the agent's folder under the data directory of the joining host, then join again".to_owned()
            }
            Self::Name { name, state: "lost", .. } => {
                format!("if the old host is gone for good, run `gantry node rm {name}` and join again")
            }
            Self::Name { .. } => "join under another name with --name".to_owned(),
            Self::Address { name, .. } => {
                format!(
                    "give this host's own address with --advertise, or run `gantry node rm {name}` if that host is gone"
                )
            }
            Self::Full(_) => "remove lost nodes, or make a cluster with a larger --replica-net".to_owned(),
        })
    }
}

/// What silence makes of each node.
pub(super) fn transitions(world: &World, now: Now) -> Vec<Action> {
    let differing = world.nodes.values().filter_map(|node| {
        let state = due(node, now);
        (state != node.state).then(|| Action::Node { node: node.record.id.clone(), state })
    });
    differing.collect()
}

fn due(node: &Node, now: Now) -> NodeState {
    match node.seen {
        None if node.record.lost => NodeState::Lost,
        None if now.since(node.since) >= GRACE_MS => NodeState::Lost,
        None => NodeState::Suspect,
        Some(seen) => match now.since(seen) {
            0..SUSPECT_MS => NodeState::Ready,
            SUSPECT_MS..LOST_MS if node.state != NodeState::Lost => NodeState::Suspect,
            _ => NodeState::Lost,
        },
    }
}

pub(super) fn apply(world: &mut World, id: &NodeId, state: NodeState, now: Now, effects: &mut Effects) {
    let Some(node) = world.nodes.get_mut(id) else { return };
    node.state = state;
    let name = node.record.name.clone();
    let silent = node.seen.map_or_else(|| now.since(node.since), |seen| now.since(seen));
    let lost = state == NodeState::Lost;
    if lost != node.record.lost {
        node.record.lost = lost;
        effects.keys.push(Key::Node(id.clone()));
    }
    match state {
        NodeState::Ready => {
            node.ready_since = now;
            effects.note("node.ready", name, "it reports");
        }
        NodeState::Suspect => effects.note("node.suspect", name, format!("silent for {silent} ms: gets no traffic")),
        NodeState::Lost => {
            // What it said no longer holds; when it returns it says it anew.
            node.report = None;
            for replica in world.replicas.values_mut().filter(|r| r.record.node == *id) {
                replica.ready_since = None;
                replica.status = None;
            }
            effects.note("node.lost", name, format!("silent for {silent} ms: its replicas are replaced"));
        }
    }
}

impl World {
    /// Makes a host a member, or confirms that it is one: asking again with the same key changes nothing.
    ///
    /// # Errors
    /// The identity, name or address is another's, or the replica net is used up.
    pub fn join(
        &mut self,
        id: &NodeId,
        name: &NodeName,
        key_sha256: &str,
        underlay: Ipv4Addr,
        now: Now,
    ) -> Result<Effects, JoinError> {
        let mut effects = Effects::default();
        if let Some(other) = self.nodes.values().find(|n| n.record.name == *name && n.record.id != *id) {
            let state = state_text(other.state);
            return Err(JoinError::Name { name: name.clone(), id: other.record.id.clone(), state });
        }
        if let Some(other) = self.nodes.values().find(|n| n.record.underlay == underlay && n.record.id != *id) {
            return Err(JoinError::Address { address: underlay, name: other.record.name.clone() });
        }
        if let Some(node) = self.nodes.get_mut(id) {
            if node.record.key_sha256 != key_sha256 {
                return Err(JoinError::Key(id.clone()));
            }
            if node.record.name != *name || node.record.underlay != underlay {
                node.record.name = name.clone();
                node.record.underlay = underlay;
                effects.keys.push(Key::Node(id.clone()));
            }
            return Ok(effects);
        }
        let subnet = self.free_subnet().ok_or_else(|| JoinError::Full(self.settings.replica_net.to_string()))?;
        let record = NodeRecord {
            id: id.clone(),
            name: name.clone(),
            key_sha256: key_sha256.to_owned(),
            underlay,
            subnet,
            hello: None,
            lost: false,
        };
        self.nodes.insert(id.clone(), Node::new(record, now));
        effects.keys.push(Key::Node(id.clone()));
        effects.note("node.joined", name, format!("from {underlay}, replicas in {subnet}"));
        Ok(effects)
    }

    /// Forgets a lost node with its replicas; data of volumes there is given up.
    ///
    /// # Errors
    /// The state of the node, when it is not lost.
    pub fn forget_node(&mut self, id: &NodeId) -> Result<Effects, NodeState> {
        let mut effects = Effects::default();
        let Some(node) = self.nodes.get(id) else { return Ok(effects) };
        if node.state != NodeState::Lost {
            return Err(node.state);
        }
        let name = node.record.name.clone();
        self.nodes.remove(id);
        let pinned: Vec<_> = self.pins.iter().filter(|(_, home)| *home == id).map(|(n, _)| n.clone()).collect();
        for replica in pinned {
            self.pins.remove(&replica);
            effects.note("volume.given_up", &replica, format!("its data was on node {name}, which was removed"));
            effects.keys.push(Key::Pin(replica));
        }
        // Last: there may be more pins than one transaction holds, and none may outlive its node.
        effects.keys.push(Key::Node(id.clone()));
        effects.note("node.removed", name, "removed by a person");
        Ok(effects)
    }

    /// The lowest free part of the replica net; the first one last, since `x.y.0.z` looks like no node at all.
    fn free_subnet(&self) -> Option<gantry_api::network::Ipv4Net> {
        let net = self.settings.replica_net;
        let count = 1u32 << SUBNET_BITS.checked_sub(net.length())?.min(16);
        let free = |index: u32| {
            let subnet = net.subnet(SUBNET_BITS, index)?;
            self.nodes.values().all(|node| node.record.subnet != subnet).then_some(subnet)
        };
        (1..count).chain([0]).find_map(free)
    }
}

pub(super) const fn state_text(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready => "ready",
        NodeState::Suspect => "suspect",
        NodeState::Lost => "lost",
    }
}
