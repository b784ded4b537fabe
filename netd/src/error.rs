//! What can go wrong: operation, object and cause, and what to do about it.

use gantry_api::ids::Revision;
use gantry_api::network::Ipv4Net;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// A failure of the node's network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused a netlink request.
    #[error("cannot {operation} {object}{}", detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Netlink {
        /// `create link`, `add route`.
        operation: &'static str,
        /// Its name.
        object: String,
        /// The kernel's own words, when it gave some.
        detail: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// The kernel refused a map or a program of the balancer.
    #[error("cannot {operation} {object}{}", detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Bpf {
        /// `load`, `attach`.
        operation: &'static str,
        /// Which.
        object: String,
        /// The verifier's words, when it gave some.
        detail: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// A system call or a file.
    #[error("cannot {operation} {object}")]
    Io {
        /// `bind`, `read`.
        operation: &'static str,
        /// A path or an address.
        object: String,
        /// Cause.
        source: io::Error,
    },
    /// One of our networks is already somebody's.
    #[error("the {what} {ours} overlaps the route to {theirs} of this host")]
    Overlap {
        /// `replica network`.
        what: &'static str,
        /// The network we were to use.
        ours: Ipv4Net,
        /// The host's route: prefix and device.
        theirs: String,
    },
    /// An attach before the first table.
    #[error("node has no subnet yet: no table was received")]
    NoSubnet,
    /// A table made from an older state than the one in force.
    #[error("table of revision {given} is older than revision {current} in force")]
    OlderTable {
        /// What was sent.
        given: Revision,
        /// What is in force.
        current: Revision,
    },
    /// A table that contradicts itself.
    #[error("table of revision {revision}: {problem}")]
    Table {
        /// The table.
        revision: Revision,
        /// What is wrong.
        problem: String,
    },
    /// An id that cannot be a file name.
    #[error(
        "`{0}` is not a valid attachment id: use 1 to 200 of a-z, A-Z, 0-9, `-`, `_` and `.`, beginning with a letter or digit"
    )]
    Id(String),
    /// Every address of the subnet is used.
    #[error("no free address in {0}")]
    Exhausted(Ipv4Net),
    /// A port that cannot be opened.
    #[error("port {port} cannot be published: {problem}")]
    Port {
        /// `8080/tcp`.
        port: String,
        /// Why.
        problem: String,
    },
    /// Another netd serves the same directory.
    #[error("another netd is running with {}", .0.display())]
    Running(PathBuf),
    /// netd's API cannot be reached or answered nonsense.
    #[error("cannot {operation} at netd's socket {}", socket.display())]
    Api {
        /// `connect`, `read the answer to PUT /v1/table`.
        operation: String,
        /// The socket.
        socket: PathBuf,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// netd answered with a refusal.
    #[error("netd refused: {0}")]
    Refused(gantry_api::http::ApiError),
}

impl NetError {
    pub(crate) fn io(operation: &'static str, object: impl ToString, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, object: object.to_string(), source: source.into() }
    }

    pub(crate) fn file(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::io(operation, path.display(), source)
    }

    /// The error number, when the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. } | Self::Bpf { source, .. } | Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// What the operator can do next; `None` when only the cause knows.
    pub fn hint(&self) -> Option<String> {
        const EPERM: i32 = 1;
        const EOPNOTSUPP: i32 = 95;
        match self {
            Self::Netlink { .. } | Self::Io { .. } if self.errno() == Some(EPERM) => {
                Some("run as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN".into())
            }
            Self::Netlink { operation, .. } if self.errno() == Some(EOPNOTSUPP) => Some(format!(
                "this kernel lacks what `{operation}` needs: bridge, veth, vxlan, nf_tables with nat, fib, numgen, reject and masquerade"
            )),
            Self::Bpf { .. } if self.errno() == Some(EPERM) => {
                Some("run as root, or with CAP_BPF and CAP_NET_ADMIN; a cgroup above may forbid more programs".into())
            }
            Self::Bpf { .. } => Some("Linux 5.9 with CONFIG_CGROUP_BPF and a mounted cgroup2 has what it needs".into()),
            Self::Netlink { .. } | Self::Io { .. } | Self::Table { .. } | Self::Id(_) => None,
            Self::Overlap { what, .. } => Some(match *what {
                "local network" => "remove the route, or run the container on a node".into(),
                _ => format!("choose another {what} when the cluster is created, or remove the route"),
            }),
            Self::NoSubnet => Some("wait until the agent has joined and received its first assignment".into()),
            Self::OlderTable { .. } => {
                Some("send the newest table; remove the node's data to start a new cluster".into())
            }
            Self::Exhausted(_) => Some("remove containers on this node, or add a node".into()),
            Self::Port { .. } => Some("publish another port, or stop what holds this one".into()),
            Self::Running(_) => Some("stop it first, or choose another --data-dir and --run-dir".into()),
            Self::Api { .. } => Some("start netd on this node: `gantry netd`, `gantry join` or `gantry server`".into()),
            Self::Refused(error) => error.hint.clone(),
        }
    }

    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// The text of an address with its prefix length, for messages.
pub(crate) fn cidr(address: Ipv4Addr, length: u8) -> String {
    format!("{address}/{length}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_operation_object_and_cause_once() {
        let error = NetError::Netlink {
            operation: "add route",
            object: "10.210.2.0/24".into(),
            detail: Some("Nexthop has invalid gateway".into()),
            source: io::Error::from_raw_os_error(101),
        };
        assert_eq!(
            error.chain(),
            "cannot add route 10.210.2.0/24 (Nexthop has invalid gateway): Network is unreachable (os error 101)"
        );
        assert_eq!(error.hint(), None);
        let error = NetError::io("bind", "10.210.1.1:53", io::Error::from_raw_os_error(1));
        assert!(error.hint().unwrap().contains("root"));
    }
}
