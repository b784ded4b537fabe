//! What scheduler and agent say to each other.
//!
//! The agent dials `POST /v1/agent/stream` (mutual TLS), the connection is upgraded to [`STREAM_PROTOCOL`], and from
//! then on both sides send one JSON message per line: [`ToScheduler`] and [`ToAgent`]. Exec and logs travel on
//! connections of their own that the agent dials back when told by [`ToAgent::OpenTunnel`].

use crate::ids::{NodeId, NodeName, ReplicaId, ReplicaName, Revision};
use crate::images::{ImageNews, Sources};
use crate::network;
use crate::spec::Template;
use crate::units::{Bytes, MilliCpu};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// `Upgrade:` token of the assignment stream.
pub const STREAM_PROTOCOL: &str = "gantry-agent";
/// `Upgrade:` token of a tunnel for exec or logs.
pub const TUNNEL_PROTOCOL: &str = "gantry-tunnel";
/// A longer line on the stream is refused: the peer is broken.
pub const LINE_BYTES_MAX: usize = 64 << 20;
/// Port of the scheduler's API when none is named.
pub const API_PORT: u16 = 7400;
/// Between two reports of an agent that has nothing new to say, in milliseconds.
pub const REPORT_INTERVAL_MS: u64 = 500;

/// A joining host's first words, over TLS whose CA it checks against the token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret part.
    pub secret: String,
    /// The name it wants.
    pub name: NodeName,
    /// Identity chosen by the host (kept on its disk before it asks, so that asking twice is one join).
    pub node: NodeId,
    /// Certificate signing request, PEM. Only its public key is used.
    pub csr_pem: String,
    /// Where other hosts reach it.
    pub underlay: Ipv4Addr,
}

/// Membership.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinResponse {
    /// The node's certificate, PEM.
    pub certificate_pem: String,
    /// The cluster's CA certificate, PEM.
    pub ca_pem: String,
}

/// `GANTRY-1-<sha256 of the CA certificate's DER, hex>-<secret>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the CA certificate's DER, lower-case hexadecimal.
    pub ca_sha256: String,
    /// What proves the right to join.
    pub secret: String,
}

impl std::fmt::Display for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GANTRY-1-{}-{}", self.ca_sha256, self.secret)
    }
}

/// Not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token: it should look like GANTRY-1-<64 hexadecimal digits>-<secret>")]
pub struct TokenError;

impl std::str::FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let rest = text.trim().strip_prefix("GANTRY-1-").ok_or(TokenError)?;
        let (ca, secret) = rest.split_once('-').ok_or(TokenError)?;
        let hex = ca.len() == 64 && ca.bytes().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase());
        let plain = !secret.is_empty() && secret.bytes().all(|c| c.is_ascii_alphanumeric());
        if hex && plain { Ok(Self { ca_sha256: ca.to_owned(), secret: secret.to_owned() }) } else { Err(TokenError) }
    }
}

/// From the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToScheduler {
    /// First message of a stream.
    Hello(Hello),
    /// The whole state of the node; replaces the report before.
    Report(Report),
    /// What changed of the images that the node holds; all of them first.
    Images(ImageNews),
    /// A tunnel that cannot be opened, and why.
    TunnelRefused {
        /// As in [`ToAgent::OpenTunnel`].
        tunnel: String,
        /// For the person who asked.
        message: String,
    },
}

/// To the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAgent {
    /// What the node must run; replaces the assignment before.
    Assignment(Box<Assignment>),
    /// Where to fetch the images that the node lacks; comes before the assignment that needs them.
    Sources(Sources),
    /// Dial back `POST /v1/agent/tunnel/<tunnel>` and serve this.
    OpenTunnel {
        /// Names the tunnel; an unguessable number.
        tunnel: String,
        /// What to do on it.
        request: TunnelRequest,
    },
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Who; must be the certificate's.
    pub node: NodeId,
    /// As people call it.
    pub name: NodeName,
    /// Gantry's version on the node.
    pub version: String,
    /// Where other hosts reach it.
    pub underlay: Ipv4Addr,
    /// What replicas may use.
    pub capacity: Capacity,
    /// Labels given at join.
    pub labels: BTreeMap<String, String>,
    /// `amd64`, `arm64`.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
}

/// What replicas of a node may use together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Processors.
    pub cpu: MilliCpu,
    /// Memory.
    pub memory: Bytes,
}

/// What one node must run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// What this was made from.
    pub revision: Revision,
    /// The node this is for.
    pub node: NodeId,
    /// All its replicas; one that is not here must not run.
    pub replicas: Vec<AssignedReplica>,
    /// The network as this node must see it.
    pub network: network::Table,
    /// Volumes that no app owns any more and whose data was asked to be deleted (`down --volumes`), as
    /// `<app>_<volume>`.
    #[serde(default)]
    pub remove_volumes: Vec<String>,
}

/// One replica of an assignment. Its template never changes: a change makes another replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AssignedReplica {
    /// Which copy.
    pub id: ReplicaId,
    /// Its place.
    pub name: ReplicaName,
    /// What to make.
    pub template: Template,
}

/// The node as the agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Rises with each report of one agent process.
    pub sequence: u64,
    /// Revision of the assignment whose network table is in force here; 0 before the first.
    pub applied: Revision,
    /// Every replica there is on the node, also those that must go.
    pub replicas: Vec<ReplicaStatus>,
    /// Named volumes with data here, as `<app>_<volume>`.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// What is wrong on the node, in words for a person; empty when all is well.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Memory in use on the node.
    #[serde(default)]
    pub memory_used: Bytes,
    /// Processors in use, averaged over the last second.
    #[serde(default)]
    pub cpu_used: MilliCpu,
}

/// One replica as the agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Which copy.
    pub id: ReplicaId,
    /// Where it is in its life.
    pub state: ReplicaState,
    /// Whether it may be given connections: running, and healthy where it has a check.
    pub ready: bool,
    /// `None` when it has no health check or was not checked yet.
    #[serde(default)]
    pub healthy: Option<bool>,
    /// Its address once it has one.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// What it waits for or why it failed, in words.
    #[serde(default)]
    pub message: Option<String>,
    /// Times it was started again on this node.
    #[serde(default)]
    pub restarts: u32,
    /// When the present process started, milliseconds since 1970.
    #[serde(default)]
    pub started_at_ms: Option<u64>,
    /// How the process before ended.
    #[serde(default)]
    pub last_exit: Option<Exit>,
    /// Memory in use.
    #[serde(default)]
    pub memory_used: Bytes,
    /// Processors in use, averaged over the last second.
    #[serde(default)]
    pub cpu_used: MilliCpu,
}

/// Where a replica is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// Image, snapshot, network or bundle is being made.
    Preparing,
    /// Its process runs.
    Running,
    /// It ended and will be started again after a pause.
    BackingOff,
    /// It was told to stop.
    Stopping,
    /// It ended with exit code 0 and stays so.
    Completed,
    /// It ended or cannot start, and nothing more will be tried.
    Failed,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, when it exited.
    #[serde(default)]
    pub code: Option<i32>,
    /// Signal number, when one ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Whether its memory limit ended it.
    #[serde(default)]
    pub oom_killed: bool,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Why we ended it, where we did: failed health check with its output, node loss.
    #[serde(default)]
    pub cause: Option<String>,
}

/// What a tunnel is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TunnelRequest {
    /// Run a command in a replica; [`crate::frame`]s both ways.
    Exec(ExecRequest),
    /// Read logs; [`crate::http::LogLine`]s as JSON, one per line, towards the scheduler.
    Logs(LogsRequest),
}

/// A command to run in a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Where.
    pub replica: ReplicaId,
    /// Program and arguments.
    pub command: Vec<String>,
    /// A terminal.
    #[serde(default)]
    pub tty: bool,
    /// Keep standard input open.
    #[serde(default)]
    pub stdin: bool,
    /// `KEY=VALUE` on top of the replica's.
    #[serde(default)]
    pub environment: Vec<String>,
    /// In place of the replica's.
    #[serde(default)]
    pub user: Option<String>,
    /// In place of the replica's.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Columns and rows of the terminal at first.
    #[serde(default)]
    pub size: Option<(u16, u16)>,
}

/// Which log lines are wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogsRequest {
    /// Whose.
    pub replica: ReplicaId,
    /// Its place, to name lines with.
    pub name: ReplicaName,
    /// Go on as lines come.
    #[serde(default)]
    pub follow: bool,
    /// Only the last so many.
    #[serde(default)]
    pub tail: Option<u64>,
    /// Only newer than this, milliseconds since 1970.
    #[serde(default)]
    pub since_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written() {
        let token = JoinToken { ca_sha256: "0a".repeat(32), secret: "s3cret".to_owned() };
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        let upper = token.to_string().replace("0a0a", "0A0A");
        for bad in ["", "GANTRY-1-", "GANTRY-1-00-x", "SWMTKN-1-aa-bb", upper.as_str(), &format!("{token}-")] {
            assert_eq!(bad.parse::<JoinToken>(), Err(TokenError), "{bad}");
        }
    }
}
