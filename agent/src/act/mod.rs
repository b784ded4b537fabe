//! Doing: one step for one replica, safe to repeat. Nothing here decides what comes next.

pub(crate) mod bundle;
pub(crate) mod files;
pub(crate) mod images;
pub(crate) mod network;
pub(crate) mod runtime;
pub(crate) mod volumes;

use crate::fsx;
use crate::model::{Checked, Done, Facts, Prepared, Process, Step};
use crate::paths::Paths;
use gantry_api::network::AttachRequest;
use gantry_api::spec::HealthCheck;
use gantry_api::wire::AssignedReplica;
use gantry_images::{Image, SnapshotOptions};
use images::Images;
use network::Network;
use runtime::{Create, Runtime};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;

/// Replicas prepared at once, once their images are there: it is disk and kernel work.
const PREPARING_MAX: usize = 8;
/// Health checks at once.
const CHECKING_MAX: usize = 16;

/// Everything that a step needs.
pub(crate) struct Actor {
    paths: Paths,
    cgroup_parent: String,
    init: PathBuf,
    runtime: Arc<Runtime>,
    images: Arc<Images>,
    network: Network,
    preparing: Semaphore,
    checking: Semaphore,
}

impl Actor {
    pub(crate) fn new(
        paths: Paths,
        cgroup_parent: String,
        init: PathBuf,
        runtime: Arc<Runtime>,
        images: Images,
        network: Network,
    ) -> Self {
        Self {
            paths,
            cgroup_parent,
            init,
            runtime,
            images: Arc::new(images),
            network,
            preparing: Semaphore::new(PREPARING_MAX),
            checking: Semaphore::new(CHECKING_MAX),
        }
    }

    /// The images of the node.
    pub(crate) fn store(&self) -> &gantry_images::Store {
        self.images.store()
    }

    /// The control group of a replica.
    pub(crate) fn cgroup(&self, replica: &AssignedReplica) -> String {
        format!("{}/{}", self.cgroup_parent.trim_end_matches('/'), replica.id)
    }

    /// What a replica that is being prepared waits for, in words.
    pub(crate) fn waits_for(&self, replica: &AssignedReplica) -> Option<String> {
        self.images.pulling(&replica.template.image)
    }

    /// Of these images, those that were missing and have been loaded since.
    pub(crate) async fn arrived(&self, wanted: &HashSet<String>) -> Vec<String> {
        self.images.arrived(wanted).await
    }

    /// Removes images that no replica uses if the disk is too full, beside everything else.
    pub(crate) fn relieve(&self) {
        let images = Arc::clone(&self.images);
        tokio::spawn(async move { images.relieve().await });
    }

    /// Carries out one step. `cancelled` turns true when a preparation need not be finished.
    pub(crate) async fn carry_out(
        &self,
        replica: &Arc<AssignedReplica>,
        step: &Step,
        facts: &Facts,
        cancelled: watch::Receiver<bool>,
    ) -> Result<Done, String> {
        match step {
            Step::Prepare => self.prepare(replica, facts, cancelled).await.map(Done::Prepared),
            Step::Start | Step::Restart => self.start(replica).await.map(|()| Done::Started),
            Step::Stop { signal, .. } => self.signal(replica, signal).await,
            Step::Kill => self.signal(replica, "SIGKILL").await,
            Step::Check => self.check(replica, facts).await.map(Done::Checked),
            Step::Remove => self.remove(replica).await.map(|()| Done::Done),
            Step::Cancel => Ok(Done::Done),
        }
    }

    async fn prepare(
        &self,
        replica: &Arc<AssignedReplica>,
        facts: &Facts,
        mut cancelled: watch::Receiver<bool>,
    ) -> Result<Prepared, String> {
        self.keep_record(replica).await?;
        let template = &replica.template;
        let image = tokio::select! {
            image = self.images.ensure(&template.image, template.pull, facts.image.as_deref()) => image?,
            _ = cancelled.wait_for(|cancelled| *cancelled) => return Err("it is not wanted any more".to_owned()),
        };
        let _place = self.preparing.acquire().await.map_err(|error| error.to_string())?;
        let request = AttachRequest {
            id: replica.id.to_string(),
            app: Some(replica.name.app.clone()),
            hostname: replica.name.to_string(),
            ports: Vec::new(),
        };
        let (network, snapshot) = tokio::join!(self.network.attach(&request), self.snapshot(replica, &image));
        let (network, snapshot) = (network?, snapshot?);
        let address = Some(network.address);
        let stop_signal = Some(image.config.stop_signal.clone()).filter(|signal| !signal.is_empty());
        let digest = image.digest.to_string();
        let health_check = image.config.healthcheck.as_ref().and_then(images::check);
        let (paths, cgroup, init) = (self.paths.clone(), self.cgroup(replica), self.init.clone());
        let replica = Arc::clone(replica);
        blocking(move || {
            let parts = bundle::Parts {
                replica: &replica,
                image: &image,
                snapshot: &snapshot,
                network: &network,
                cgroup,
                init: &init,
            };
            bundle::write(&parts, &paths)
        })
        .await?;
        Ok(Prepared { image: digest, stop_signal, address, health_check })
    }

    /// From here on the replica is known from its directory, whatever else is lost.
    async fn keep_record(&self, replica: &Arc<AssignedReplica>) -> Result<(), String> {
        let (own, replica) = (self.paths.replica(&replica.id), Arc::clone(replica));
        blocking(move || {
            let bytes = serde_json::to_vec(&*replica).map_err(|error| error.to_string())?;
            let write = fsx::ensure_dir(&own.dir, 0o700).and_then(|()| match fsx::read(&own.record())? {
                Some(kept) if kept == bytes => Ok(()),
                _ => fsx::write_durable(&own.record(), &bytes, 0o600),
            });
            write.map_err(|error| crate::error::chain(&error))
        })
        .await
    }

    async fn snapshot(&self, replica: &AssignedReplica, image: &Arc<Image>) -> Result<gantry_images::Snapshot, String> {
        let (store, id, image) = (self.images.store().clone(), replica.id.to_string(), Arc::clone(image));
        blocking(move || {
            let options = SnapshotOptions { volatile: true, ..SnapshotOptions::default() };
            store.snapshot(&image, &id, &options).map_err(|error| images::words(&error))
        })
        .await
    }

    /// Starts a process with what is prepared. What may be left of the one before is taken away first.
    async fn start(&self, replica: &AssignedReplica) -> Result<(), String> {
        let own = self.paths.replica(&replica.id);
        let exit_file = self.paths.exit_file(&replica.id);
        self.runtime.delete(&replica.id).await.map_err(|error| error.words())?;
        fsx::remove_file(&exit_file).map_err(|error| crate::error::chain(&error))?;
        let with = Create { bundle: &own.bundle(), log: &own.log(), exit_file: &exit_file };
        let started = match self.runtime.create(&replica.id, with).await {
            Ok(()) => self.runtime.start(&replica.id).await,
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            let message = error.words();
            // The next try deletes too; what matters to a person is why this one failed.
            if let Err(error) = self.runtime.delete(&replica.id).await {
                tracing::debug!("{}: {}", replica.id, error.words());
            }
            return Err(message);
        }
        Ok(())
    }

    async fn signal(&self, replica: &AssignedReplica, signal: &str) -> Result<Done, String> {
        self.runtime.kill(&replica.id, signal).await.map(|()| Done::Done).map_err(|error| error.words())
    }

    async fn check(&self, replica: &AssignedReplica, facts: &Facts) -> Result<Checked, String> {
        let (Process::Running { started_ms }, Some(check)) = (&facts.process, facts.check(replica)) else {
            return Err("there is nothing to check".to_owned());
        };
        let _place = self.checking.acquire().await.map_err(|error| error.to_string())?;
        let (passed, output) = match self.run_check(replica, check).await {
            Ok(result) => result,
            Err(message) => (false, message),
        };
        Ok(Checked { started_ms: *started_ms, passed, output })
    }

    async fn run_check(&self, replica: &AssignedReplica, check: &HealthCheck) -> Result<(bool, String), String> {
        let limit = check.timeout_ms.duration();
        let output = self.runtime.check(&replica.id, &check.command, limit).await.map_err(|error| error.words())?;
        Ok(match output.code {
            Some(0) => (true, output.text),
            Some(code) if output.text.trim().is_empty() => (false, format!("exit code {code}")),
            Some(_) => (false, output.text),
            None => (false, format!("took longer than {}; {}", check.timeout_ms, output.text.trim())),
        })
    }

    /// Takes away all that was made for a replica; its record goes last.
    async fn remove(&self, replica: &AssignedReplica) -> Result<(), String> {
        self.runtime.delete(&replica.id).await.map_err(|error| error.words())?;
        self.network.detach(replica.id.as_str()).await?;
        let (store, id) = (self.images.store().clone(), replica.id.clone());
        let (own, exit_file) = (self.paths.replica(&id), self.paths.exit_file(&id));
        blocking(move || {
            store.remove_snapshot(id.as_str()).map_err(|error| images::words(&error))?;
            let removed = fsx::remove_tree(&own.secrets)
                .and_then(|()| fsx::remove_file(&exit_file))
                .and_then(|()| fsx::remove_tree(&own.dir));
            removed.map_err(|error| crate::error::chain(&error))
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(format!("it failed in an unforeseen way: {error}")))
}
