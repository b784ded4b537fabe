//! What should run where: pictures and a time in, decisions out. No I/O, no clock, no log, no store.
//!
//! ```text
//!  deploy, join, report ──► World ──► plan ──► Action ──► World ──► publish ──► an Assignment per node
//! ```
//!
//! [`World`] is what the scheduler knows; [`plan()`] lists what comes next, at most one step per replica; carried out
//! ([`World::step`]) until nothing is left, every plan comes to rest. The daemon writes what a step touched to the
//! store before any agent is told.

mod deploy;
mod drain;
mod network;
mod nodes;
mod place;
mod plan;
mod rollout;
mod services;
mod sources;
mod view;
mod world;

pub use deploy::{DeployError, Deployment};
pub use nodes::{GRACE_MS, JoinError, LOST_MS, SUSPECT_MS};
pub use place::{Candidate, Need, Reason, Refusal, place};
pub use plan::{Action, Note, plan};
pub use sources::{Held, choose as choose_sources};
pub use world::{
    AppRecord, Counters, Effects, Key, Node, NodeRecord, Now, Phase, Removal, Replica, ReplicaRecord, Rollout,
    ServiceRecord, Settings, Step, TemplateKey, World,
};

#[cfg(test)]
mod tests;
