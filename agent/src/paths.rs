//! Where everything lies on a node.

use gantry_api::ids::ReplicaId;
use std::path::{Path, PathBuf};

/// The directories of one node's agent.
#[derive(Debug, Clone)]
pub struct Paths {
    data_dir: PathBuf,
    run_dir: PathBuf,
}

impl Paths {
    /// Under these two.
    pub fn new(data_dir: &Path, run_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned(), run_dir: run_dir.to_owned() }
    }

    /// All that the agent keeps.
    pub fn agent(&self) -> PathBuf {
        self.data_dir.join("agent")
    }

    /// Membership of the cluster.
    pub fn identity(&self) -> PathBuf {
        identity(&self.data_dir)
    }

    /// The last assignment.
    pub fn assignment(&self) -> PathBuf {
        self.agent().join("assignment.json")
    }

    /// What happened to each replica.
    pub fn ledger(&self) -> PathBuf {
        self.agent().join("ledger.json")
    }

    /// One directory per replica.
    pub fn replicas(&self) -> PathBuf {
        self.agent().join("replicas")
    }

    /// Where supervisors leave exit files, `<id>.json`.
    pub fn exits(&self) -> PathBuf {
        self.agent().join("exits")
    }

    /// An exit file.
    pub fn exit_file(&self, id: &ReplicaId) -> PathBuf {
        self.exits().join(format!("{id}.json"))
    }

    /// Records of ended processes.
    pub fn deaths(&self) -> PathBuf {
        self.agent().join("deaths")
    }

    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    /// Named volumes, `<app>_<volume>/_data`.
    pub fn volumes(&self) -> PathBuf {
        self.data_dir.join("volumes")
    }

    /// What the runtime keeps.
    pub fn runtime_root(&self) -> PathBuf {
        self.run_dir.join("runtime")
    }

    /// Sockets over which terminals are handed to us.
    pub fn consoles(&self) -> PathBuf {
        self.run_dir.join("consoles")
    }

    /// Files held in memory, one directory per replica.
    pub fn secrets(&self) -> PathBuf {
        self.run_dir.join("secrets")
    }

    /// The node's data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// One replica's directory.
    pub fn replica(&self, id: &ReplicaId) -> Replica {
        Replica { dir: self.replicas().join(id.as_str()), secrets: self.secrets().join(id.as_str()) }
    }
}

/// Membership of the cluster, under `data_dir`.
pub(crate) fn identity(data_dir: &Path) -> PathBuf {
    data_dir.join("agent").join("identity")
}

/// The directories of one replica.
#[derive(Debug, Clone)]
pub struct Replica {
    /// All that is kept for it on disk.
    pub dir: PathBuf,
    /// Its files in memory.
    pub secrets: PathBuf,
}

impl Replica {
    /// What it was made from.
    pub fn record(&self) -> PathBuf {
        self.dir.join("replica.json")
    }

    /// Its network, as netd gave it.
    pub fn attachment(&self) -> PathBuf {
        self.dir.join("attachment.json")
    }

    /// The OCI bundle.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// Its output; older parts beside it with `.1`, `.2` …
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Files of the manifest.
    pub fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    /// `hosts`, `hostname`, `resolv.conf`.
    pub fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    /// Volumes that go with it.
    pub fn volumes(&self) -> PathBuf {
        self.dir.join("volumes")
    }
}
