//! What the user's command asks of the scheduler: JSON over HTTP, on a unix socket for local root and on TCP with
//! mutual TLS.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/version` | | [`Version`] |
//! | `GET /v1/nodes` | | `Vec<`[`Node`]`>` |
//! | `DELETE /v1/nodes/{name}` | | forgets a lost node |
//! | `GET /v1/apps` | | `Vec<`[`AppSummary`]`>` |
//! | `GET /v1/apps/{app}` | | [`AppDetail`] |
//! | `PUT /v1/apps/{app}` | [`App`] | [`Plan`]: what changed; `?dry_run=true` changes nothing |
//! | `DELETE /v1/apps/{app}` | | [`Plan`]; `?volumes=true` deletes its data too |
//! | `PUT /v1/apps/{app}/services/{service}/replicas` | [`Scale`] | [`Plan`] |
//! | `GET /v1/replicas` | | `Vec<`[`Replica`]`>`; `?app=` |
//! | `GET /v1/events` | | `Vec<`[`Event`]`>`; `?follow=true`: server-sent events |
//! | `GET /v1/logs` | | [`LogLine`]s, one JSON per line; `?app=&service=&replica=&follow=&tail=&since_ms=` |
//! | `POST /v1/exec` | [`crate::wire::ExecRequest`] | upgraded to [`crate::wire::TUNNEL_PROTOCOL`], [`crate::frame`]s |
//! | `POST /v1/tokens` | [`TokenRequest`] | [`Token`] |
//! | `POST /v1/join` | [`crate::wire::JoinRequest`] | [`crate::wire::JoinResponse`] (TCP, no client certificate) |
//! | `POST /v1/agent/stream`, `/v1/agent/tunnel/{id}` | | see [`crate::wire`] (TCP, node certificate) |
//!
//! Every refusal is an [`ApiError`] with status 400 (bad input), 403, 404, 409 (conflict), 413, 422 (cannot fit),
//! 500 or 503 (not ready, agent away).

use crate::ids::{AppName, NodeId, NodeName, ReplicaId, ReplicaName, Revision, ServiceName};
use crate::network::Published;
use crate::spec::App;
use crate::wire::{Capacity, Exit, ReplicaState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs: `not_found`, `invalid`, `conflict`, `cannot_fit`, `forbidden`, `unavailable`, `internal`.
    pub code: String,
    /// What, where and why, for a person.
    pub message: String,
    /// What to do about it.
    #[serde(default)]
    pub hint: Option<String>,
}

/// The answering scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Gantry's version.
    pub version: String,
    /// API generation.
    pub api: String,
}

/// A node as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Identity.
    pub id: NodeId,
    /// Name.
    pub name: NodeName,
    /// Whether it can be counted on.
    pub state: NodeState,
    /// Where other hosts reach it.
    pub underlay: Ipv4Addr,
    /// What replicas may use.
    pub capacity: Capacity,
    /// What replicas there reserve.
    pub reserved: Capacity,
    /// What is used.
    pub used: Capacity,
    /// Replicas that run there.
    pub replicas: u32,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Gantry's version there.
    pub version: String,
    /// `amd64`, `arm64`.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// What is wrong there, in words; empty when all is well.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Last report, milliseconds since 1970.
    pub seen_ms: u64,
}

/// Whether a node can be counted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It reports.
    Ready,
    /// Silent for a second: its replicas get no traffic.
    Suspect,
    /// Silent for longer: its replicas are replaced.
    Lost,
}

/// One line of `gantry apps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppSummary {
    /// Its name.
    pub name: AppName,
    /// Its services.
    pub services: Vec<ServiceSummary>,
    /// Revision of its last change.
    pub revision: Revision,
}

/// One service's numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceSummary {
    /// Its name.
    pub name: ServiceName,
    /// Image.
    pub image: String,
    /// Replicas wanted.
    pub wanted: u32,
    /// Replicas that run, of the present template or an older one.
    pub running: u32,
    /// Replicas that may be given connections.
    pub ready: u32,
    /// Replicas of the present template that are ready.
    pub updated: u32,
    /// Ended with exit code 0 for good.
    pub completed: u32,
    /// Its address within the cluster.
    pub address: Option<Ipv4Addr>,
    /// Ports open on every node.
    pub ports: Vec<Published>,
    /// Whether all is as wanted; the command waits for this.
    pub settled: bool,
    /// What it waits for or why it cannot go on, in words: `waits for db to be healthy`, `3 nodes: 2 short of
    /// memory, 1 lost`, `rolling change paused: …`.
    pub message: Option<String>,
}

/// An app in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppDetail {
    /// Numbers.
    pub summary: AppSummary,
    /// Desired state, file contents of secrets left out.
    pub spec: App,
    /// Its replicas.
    pub replicas: Vec<Replica>,
}

/// A replica as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replica {
    /// Which copy.
    pub id: ReplicaId,
    /// Its place.
    pub name: ReplicaName,
    /// Where it is to run; `None` while it is not placed.
    pub node: Option<NodeName>,
    /// Where it is in its life.
    pub state: ReplicaState,
    /// Whether it may be given connections.
    pub ready: bool,
    /// Result of its health check.
    pub healthy: Option<bool>,
    /// Whether its template is the present one.
    pub current: bool,
    /// Image.
    pub image: String,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// What it waits for or why it failed.
    pub message: Option<String>,
    /// Restarts on its node.
    pub restarts: u32,
    /// When its process started, milliseconds since 1970.
    pub started_at_ms: Option<u64>,
    /// How the process before ended.
    pub last_exit: Option<Exit>,
    /// What it uses.
    pub used: Capacity,
}

/// A change of one service's number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// Replicas that should run.
    pub replicas: u32,
}

/// What a deploy changes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Per service, in order of name.
    pub changes: Vec<Change>,
    /// Revision in which they were recorded; 0 for a dry run or when nothing changed.
    pub revision: Revision,
}

/// What changes in one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The service.
    pub service: ServiceName,
    /// What happens to it.
    pub action: ChangeAction,
    /// Field by field, `path: old → new`.
    pub details: Vec<String>,
}

/// What happens to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// New.
    Create,
    /// Its replicas are replaced, one batch after another.
    Replace,
    /// Changed without replacing replicas.
    Update,
    /// Removed.
    Remove,
    /// Nothing.
    Keep,
}

/// One thing that happened: the spine that explaining reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Rises by one.
    pub sequence: u64,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Revision it came from, 0 when it came from outside the store.
    pub revision: Revision,
    /// `replica.running`, `replica.exited`, `node.lost`, `app.deployed`, …
    pub kind: String,
    /// Whom it is about.
    pub subject: String,
    /// Why, in words.
    pub message: String,
}

/// One line of a replica's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// RFC 3339 with nanoseconds, UTC.
    pub time: String,
    /// Whose.
    pub replica: ReplicaId,
    /// Its place.
    pub name: ReplicaName,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line without its end.
    pub line: String,
}

/// A request for a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRequest {
    /// How long it can be used, seconds.
    pub ttl_s: u64,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// For `gantry join --token`.
    pub token: String,
    /// Until when, milliseconds since 1970.
    pub expires_at_ms: u64,
}
