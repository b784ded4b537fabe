//! Where a copy can run, or why nowhere.
//!
//! Hard rules first, each with its reason; then the node with the fewest copies of the service, then the one with the
//! smallest part reserved, then the fewest replicas, then the first by name.

use super::world::{Node, free};
use gantry_api::http::NodeState;
use gantry_api::ids::{NodeId, NodeName};
use gantry_api::spec::{Constraint, ConstraintKey, Placement};
use gantry_api::wire::Capacity;
use std::collections::BTreeMap;
use std::fmt;

/// What a copy needs.
#[derive(Debug, Clone)]
pub struct Need<'a> {
    /// What it reserves.
    pub wants: Capacity,
    /// Which nodes may run it.
    pub placement: &'a Placement,
    /// The node that holds its volumes.
    pub home: Option<NodeId>,
    /// Nodes that hold a volume it shares with another service; any when empty.
    pub shared: Vec<NodeId>,
    /// Nodes that still delete an earlier volume of the same name.
    pub clearing: Vec<NodeId>,
}

/// A node and what is taken there.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The node.
    pub node: &'a Node,
    /// What replicas there reserve.
    pub taken: Capacity,
    /// Replicas there.
    pub replicas: u32,
    /// Copies of the service there that stay.
    pub spread: u32,
    /// Copies of the service there, those on their way out too.
    pub present: u32,
}

/// Why a node cannot run a copy; in the order in which people should read them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Too little memory is free.
    Memory,
    /// Too few processors are free.
    Cpu,
    /// The most copies allowed on one node are there.
    PerNode,
    /// A rule does not hold.
    Constraint(String),
    /// The volume is elsewhere.
    Volume,
    /// An earlier volume of the same name is still being deleted.
    Clearing,
    /// It joined but has not reported.
    Unheard,
    /// Silent for a moment.
    Suspect,
    /// Silent for long.
    Lost,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "short of memory",
            Self::Cpu => "short of cpu",
            Self::PerNode => "full by max_replicas_per_node",
            Self::Constraint(rule) => return write!(f, "without {rule}"),
            Self::Volume => "without its volume",
            Self::Clearing => "still deleting an earlier volume",
            Self::Unheard => "not heard of yet",
            Self::Suspect => "suspect",
            Self::Lost => "lost",
        })
    }
}

/// Why no node can run a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Nodes by reason.
    pub reasons: BTreeMap<Reason, Vec<NodeName>>,
}

/// More names than this are counted, not listed.
const NAMES_MAX: usize = 5;

impl fmt::Display for Refusal {
    /// `3 nodes: 2 short of memory (n1, n2), 1 lost (n3)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: usize = self.reasons.values().map(Vec::len).sum();
        if total == 0 {
            return f.write_str("no node has joined");
        }
        write!(f, "{total} node{}: ", if total == 1 { "" } else { "s" })?;
        for (index, (reason, names)) in self.reasons.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{} {reason} (", names.len())?;
            for (index, name) in names.iter().take(NAMES_MAX).enumerate() {
                write!(f, "{}{name}", if index == 0 { "" } else { ", " })?;
            }
            if names.len() > NAMES_MAX {
                write!(f, ", {} more", names.len() - NAMES_MAX)?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// The best node for a copy.
///
/// # Errors
/// Why each node cannot run it.
pub fn place(need: &Need<'_>, candidates: &[Candidate<'_>]) -> Result<NodeId, Refusal> {
    let mut refusal = Refusal::default();
    let mut best: Option<((u32, u64, u32, &NodeName), &NodeId)> = None;
    for candidate in candidates {
        if let Some(reason) = reason_against(need, candidate) {
            refusal.reasons.entry(reason).or_default().push(candidate.node.record.name.clone());
            continue;
        }
        let record = &candidate.node.record;
        let score = (candidate.spread, reserved_share(candidate), candidate.replicas, &record.name);
        if best.as_ref().is_none_or(|(least, _)| score < *least) {
            best = Some((score, &record.id));
        }
    }
    refusal.reasons.values_mut().for_each(|names| names.sort());
    best.map(|(_, id)| id.clone()).ok_or(refusal)
}

/// Why the node cannot run a copy now.
pub(super) fn reason_against(need: &Need<'_>, candidate: &Candidate<'_>) -> Option<Reason> {
    let node = candidate.node;
    let id = &node.record.id;
    match node.state {
        NodeState::Lost => return Some(Reason::Lost),
        NodeState::Suspect if node.seen.is_none() => return Some(Reason::Unheard),
        NodeState::Suspect => return Some(Reason::Suspect),
        NodeState::Ready if node.report.is_none() => return Some(Reason::Unheard),
        NodeState::Ready => {}
    }
    let elsewhere = need.home.as_ref().is_some_and(|home| home != id);
    if elsewhere || (!need.shared.is_empty() && !need.shared.contains(id)) {
        return Some(Reason::Volume);
    }
    if need.clearing.contains(id) {
        return Some(Reason::Clearing);
    }
    if need.placement.max_per_node.is_some_and(|max| candidate.present >= max) {
        return Some(Reason::PerNode);
    }
    never(need, node).or_else(|| short(need.wants, free(node.capacity(), candidate.taken)))
}

/// Why the node could not run a copy even if nothing else ran there.
pub(super) fn never(need: &Need<'_>, node: &Node) -> Option<Reason> {
    let broken = need.placement.constraints.iter().find(|constraint| !node.satisfies(constraint));
    broken.map(|constraint| Reason::Constraint(rule_text(constraint))).or_else(|| short(need.wants, node.capacity()))
}

fn short(wants: Capacity, free: Capacity) -> Option<Reason> {
    if wants.memory > free.memory {
        return Some(Reason::Memory);
    }
    (wants.cpu > free.cpu).then_some(Reason::Cpu)
}

/// The larger of the shares of memory and processors that are reserved, in thousandths.
fn reserved_share(candidate: &Candidate<'_>) -> u64 {
    let capacity = candidate.node.capacity();
    let share = |taken: u64, all: u64| taken.saturating_mul(1000) / all.max(1);
    share(candidate.taken.memory.0, capacity.memory.0).max(share(candidate.taken.cpu.0 as u64, capacity.cpu.0 as u64))
}

fn rule_text(constraint: &Constraint) -> String {
    let key = match &constraint.key {
        ConstraintKey::Hostname => "node.hostname".to_owned(),
        ConstraintKey::Id => "node.id".to_owned(),
        ConstraintKey::Label(label) => format!("node.labels.{label}"),
        ConstraintKey::Arch => "node.platform.arch".to_owned(),
        ConstraintKey::Os => "node.platform.os".to_owned(),
    };
    format!("{key} {} {}", if constraint.equal { "==" } else { "!=" }, constraint.value)
}
