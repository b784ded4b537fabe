//! Who this node is: chosen once, kept on disk before anybody is told of it.

use crate::fsx::{self, FileError};
use crate::paths;
use gantry_api::ids::{NodeId, NodeName};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::Path;

/// The identity file. Without its membership the node has only decided who it would be.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) name: NodeName,
    pub(crate) key_pem: String,
    #[serde(default)]
    pub(crate) membership: Option<Membership>,
}

/// What joining gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Membership {
    pub(crate) server: SocketAddr,
    pub(crate) certificate_pem: String,
    pub(crate) ca_pem: String,
}

impl std::fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("node", &self.node).field("name", &self.name).finish_non_exhaustive()
    }
}

/// The identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be read or written.
    #[error("cannot use the node's identity")]
    File(#[from] FileError),
    /// It is not what it should be.
    #[error("{0} is damaged")]
    Damaged(String, #[source] serde_json::Error),
}

impl IdentityError {
    /// What the operator can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Damaged(path, _) => Some(format!("remove {path} and join again; the node gets a new identity")),
        }
    }
}

impl Identity {
    pub(crate) fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = paths::identity(data_dir);
        let Some(bytes) = fsx::read(&path)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|error| IdentityError::Damaged(path.display().to_string(), error))
    }

    pub(crate) fn save(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let path = paths::identity(data_dir);
        fsx::ensure_dir(path.parent().unwrap_or(data_dir), 0o700)?;
        let bytes = serde_json::to_vec(self).expect("an identity is JSON");
        Ok(fsx::write_durable(&path, &bytes, 0o600)?)
    }
}

/// Whether the host under `data_dir` belongs to a cluster.
pub fn is_joined(data_dir: &Path) -> bool {
    matches!(Identity::load(data_dir), Ok(Some(Identity { membership: Some(_), .. })))
}
