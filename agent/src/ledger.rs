//! What lives through the agent's death, and through a reboot without a scheduler: the last assignment and what
//! happened to each replica.
//!
//! Two files, since the assignment with its network table is large and changes seldom, and facts are small and change
//! with every process. Both are replaced as a whole, and are on disk before anything is done about them.

use crate::fsx::{self, FileError};
use crate::model::{Desired, Facts, Node, Observed, Seen};
use crate::paths::Paths;
use gantry_api::ids::ReplicaId;
use gantry_api::network::Attachment;
use gantry_api::wire::{AssignedReplica, Assignment};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tracing::warn;

/// The files, and what the facts file holds.
pub(crate) struct Ledger {
    paths: Paths,
    written: Vec<u8>,
}

impl Ledger {
    /// Reads what is kept. A file that cannot be read as what it should be is put aside: running replicas are known
    /// from their own directories, and the scheduler sends its assignment again.
    pub(crate) fn open(paths: &Paths) -> Result<(Self, Option<Assignment>, Node), FileError> {
        for (dir, mode) in [(paths.agent(), 0o700), (paths.replicas(), 0o700), (paths.exits(), 0o700)] {
            fsx::ensure_dir(&dir, mode)?;
        }
        let assignment: Option<Assignment> = load(&paths.assignment())?;
        let mut facts: BTreeMap<ReplicaId, Facts> = load(&paths.ledger())?.unwrap_or_default();
        let mut node = Node::default();
        if let Some(assignment) = &assignment {
            node.revision = assignment.revision;
            node.desired = assignment.replicas.iter().map(|r| (r.id.clone(), Arc::new(r.clone()))).collect();
            node.remove_volumes.clone_from(&assignment.remove_volumes);
        }
        node.observed = observed(paths, &node.desired, &mut facts)?;
        if assignment.is_none() {
            // Not known what is wanted is not the same as nothing is wanted: what is there stays until we are told.
            node.desired = node.observed.iter().map(|(id, seen)| (id.clone(), Arc::clone(&seen.replica))).collect();
        }
        Ok((Self { paths: paths.clone(), written: Vec::new() }, assignment, node))
    }

    /// Keeps an assignment.
    pub(crate) fn save_assignment(paths: &Paths, assignment: &Assignment) -> Result<(), FileError> {
        let bytes = serde_json::to_vec(assignment).expect("an assignment is JSON");
        fsx::write_durable(&paths.assignment(), &bytes, 0o600)
    }

    /// What was to be written last is not on disk: it has to be written again.
    pub(crate) fn unwritten(&mut self) {
        self.written.clear();
    }

    /// What has to be done to keep what happened to the replicas; `None` when it is kept already.
    pub(crate) fn write(
        &mut self,
        observed: &Observed,
    ) -> Option<impl FnOnce() -> Result<(), FileError> + Send + use<>> {
        let facts: BTreeMap<&ReplicaId, &Facts> = observed.iter().map(|(id, seen)| (id, &seen.facts)).collect();
        let bytes = serde_json::to_vec(&facts).expect("facts are JSON");
        if bytes == self.written {
            return None;
        }
        self.written.clone_from(&bytes);
        let path = self.paths.ledger();
        Some(move || fsx::write_durable(&path, &bytes, 0o600))
    }
}

/// Every replica that has a directory: it was made by us, and nothing else tells what may be left of it.
fn observed(paths: &Paths, desired: &Desired, facts: &mut BTreeMap<ReplicaId, Facts>) -> Result<Observed, FileError> {
    let mut observed = Observed::new();
    for name in fsx::names(&paths.replicas())? {
        let Ok(id) = name.parse::<ReplicaId>() else { continue };
        let replica = match load::<AssignedReplica>(&paths.replica(&id).record())? {
            Some(replica) => Some(Arc::new(replica)),
            None => desired.get(&id).cloned(),
        };
        // Without its record the directory was never begun, or its removal was interrupted: nothing else is left.
        match replica {
            Some(replica) => {
                let mut facts = facts.remove(&id).unwrap_or_default();
                if facts.address.is_none() {
                    let attachment: Option<Attachment> = load(&paths.replica(&id).attachment())?;
                    facts.address = attachment.map(|attachment| attachment.address);
                }
                observed.insert(id, Seen { replica, facts });
            }
            None => fsx::remove_tree(&paths.replica(&id).dir)?,
        }
    }
    Ok(observed)
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let Some(bytes) = fsx::read(path)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            let aside = path.with_extension("damaged");
            warn!("{} cannot be read and is put aside as {}: {error}", path.display(), aside.display());
            std::fs::rename(path, &aside).map_err(FileError::new("put aside", path))?;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Process;
    use gantry_api::ids::ReplicaName;
    use gantry_api::spec::Template;
    use std::fs;

    fn paths() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&dir.path().join("data"), &dir.path().join("run"));
        (dir, paths)
    }

    fn replica(number: u32) -> AssignedReplica {
        let name = ReplicaName { app: "a".parse().unwrap(), service: "s".parse().unwrap(), number };
        AssignedReplica { id: ReplicaId::new(&name, number), name, template: Template::default() }
    }

    fn record(paths: &Paths, replica: &AssignedReplica) {
        let files = paths.replica(&replica.id);
        fs::create_dir_all(&files.dir).unwrap();
        fs::write(files.record(), serde_json::to_vec(replica).unwrap()).unwrap();
    }

    #[test]
    fn facts_come_back_for_every_replica_that_has_a_directory() {
        let (_dir, paths) = paths();
        let (mut ledger, assignment, mut node) = Ledger::open(&paths).unwrap();
        assert_eq!((assignment, &node), (None, &Node::default()));
        for number in [1, 2] {
            let replica = replica(number);
            record(&paths, &replica);
            let facts = Facts { restarts: number, process: Process::Running { started_ms: 5 }, ..Facts::default() };
            node.observed.insert(replica.id.clone(), Seen { replica: Arc::new(replica), facts });
        }
        ledger.write(&node.observed).expect("there is something to keep")().unwrap();
        assert!(ledger.write(&node.observed).is_none(), "nothing is new");
        fs::remove_dir_all(paths.replica(&replica(2).id).dir).unwrap();
        let (_, _, back) = Ledger::open(&paths).unwrap();
        node.observed.remove(&replica(2).id);
        assert_eq!(back.observed, node.observed);
    }

    #[test]
    fn a_damaged_ledger_is_put_aside_and_replicas_are_still_known() {
        let (_dir, paths) = paths();
        Ledger::open(&paths).unwrap();
        record(&paths, &replica(1));
        fs::create_dir_all(paths.replicas().join("never-begun")).unwrap();
        let network = r#"{"id":"x","address":"10.210.0.5","prefix_length":24,"gateway":"10.210.0.1","netns":"/n"}"#;
        fs::write(paths.replica(&replica(1).id).attachment(), network).unwrap();
        for file in [paths.ledger(), paths.assignment()] {
            fs::write(&file, b"{\"half").unwrap();
        }
        let (_, assignment, node) = Ledger::open(&paths).unwrap();
        assert_eq!(assignment, None);
        assert_eq!(node.observed.keys().collect::<Vec<_>>(), [&replica(1).id]);
        assert_eq!(node.desired.keys().collect::<Vec<_>>(), [&replica(1).id], "what runs is not stopped");
        assert_eq!(node.observed[&replica(1).id].facts.address, Some([10, 210, 0, 5].into()));
        assert!(!paths.replicas().join("never-begun").exists());
        assert!(paths.agent().join("ledger.damaged").exists());
    }
}
