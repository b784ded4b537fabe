//! From a template to an OCI bundle.

use crate::act::{files, volumes};
use crate::fsx;
use crate::observe::node;
use crate::paths::{Paths, Replica};
use gantry_api::network::Attachment;
use gantry_api::spec::{MountSource, Template};
use gantry_api::wire::AssignedReplica;
use gantry_images::bundle::{self, Mount, MountKind, Network, Overrides, Seccomp, Ulimit};
use gantry_images::{Image, ImageConfig, Snapshot};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The kernel's limit for a host name.
const HOSTNAME_BYTES_MAX: usize = 63;

/// What a bundle is made from.
pub(crate) struct Parts<'a> {
    pub(crate) replica: &'a AssignedReplica,
    pub(crate) image: &'a Image,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) network: &'a Attachment,
    pub(crate) cgroup: String,
    /// Static program for `init: true`.
    pub(crate) init: &'a Path,
}

/// Makes volumes and files, and writes the bundle.
pub(crate) fn write(parts: &Parts<'_>, paths: &Paths) -> Result<(), String> {
    let own = paths.replica(&parts.replica.id);
    let mut mounts = mounts(parts, paths, &own)?;
    let hostname = hostname(parts.replica);
    let etc = files::write_etc(&parts.replica.template, &hostname, parts.network, &own).map_err(|e| words(&e))?;
    for (source, target) in etc {
        // A file of the user's at the same place is meant to replace ours.
        if !mounts.iter().any(|mount| mount.target == target) {
            mounts.push(bind(source, target, false));
        }
    }
    // An agent that has lost its ledger finds the address again.
    let attachment = serde_json::to_vec(parts.network).map_err(|error| words(&error))?;
    fsx::write(&own.attachment(), &attachment, 0o600).map_err(|error| words(&error))?;
    let overrides = overrides(parts, hostname, mounts);
    let config = bundle::config(&parts.image.config, &parts.snapshot.rootfs, &overrides);
    let mut config = config.map_err(|error| super::images::words(&error))?;
    reserve(&mut config, &parts.replica.template);
    bundle::write(&own.bundle(), &config).map_err(|error| super::images::words(&error))
}

fn words(error: &dyn std::error::Error) -> String {
    crate::error::chain(error)
}

fn hostname(replica: &AssignedReplica) -> String {
    let mut name = replica.template.hostname.clone().unwrap_or_else(|| replica.name.to_string());
    while name.len() > HOSTNAME_BYTES_MAX {
        name.pop();
    }
    name
}

fn bind(source: PathBuf, target: &str, read_only: bool) -> Mount {
    Mount { source, target: target.to_owned(), kind: MountKind::Bind, read_only, options: Vec::new() }
}

fn mounts(parts: &Parts<'_>, paths: &Paths, own: &Replica) -> Result<Vec<Mount>, String> {
    let template = &parts.replica.template;
    let rootfs = &parts.snapshot.rootfs;
    let volume = |dir: PathBuf, target: &str, read_only| -> Result<Mount, String> {
        let source = volumes::ensure(&dir, rootfs, target).map_err(|error| words(&error))?;
        Ok(Mount { source, target: target.to_owned(), kind: MountKind::Volume, read_only, options: Vec::new() })
    };
    let mut mounts = Vec::new();
    for (index, mount) in template.mounts.iter().enumerate() {
        let target = mount.target.as_str();
        mounts.push(match &mount.source {
            MountSource::Volume { name } => {
                let dir = paths.volumes().join(format!("{}_{name}", parts.replica.name.app));
                volume(dir, target, mount.read_only)?
            }
            MountSource::Anonymous => volume(own.volumes().join(index.to_string()), target, mount.read_only)?,
            MountSource::Bind { path, create } => bind(ensure_bind(path, *create)?, target, mount.read_only),
            MountSource::Tmpfs { size, mode } => {
                let size = size.map(|size| format!("size={}", size.0));
                let mode = mode.map(|mode| format!("mode={mode:o}"));
                let options = size.into_iter().chain(mode).collect();
                let (source, kind) = (PathBuf::new(), MountKind::Tmpfs);
                Mount { source, target: target.to_owned(), kind, read_only: mount.read_only, options }
            }
        });
    }
    let written = files::write(&template.files, own).map_err(|error| words(&error))?;
    mounts.extend(template.files.iter().zip(written).map(|(file, source)| bind(source, &file.target, true)));
    // Directories that the image says hold data, and that nothing else is mounted on.
    for (index, target) in parts.image.config.volumes.iter().enumerate() {
        let same = |mount: &Mount| mount.target.trim_end_matches('/') == target.trim_end_matches('/');
        if target.starts_with('/') && !mounts.iter().any(same) {
            mounts.push(volume(own.volumes().join(format!("image-{index}")), target, false)?);
        }
    }
    Ok(mounts)
}

fn ensure_bind(path: &str, create: bool) -> Result<PathBuf, String> {
    let source = PathBuf::from(path);
    if !source.is_absolute() {
        return Err(format!("the bind mount's source `{path}` must be an absolute path on the node"));
    }
    if source.symlink_metadata().is_err() {
        if !create {
            return Err(format!(
                "{path} does not exist on this node; create it, or put the service on a node that has it"
            ));
        }
        fsx::ensure_dir(&source, 0o755).map_err(|error| words(&error))?;
    }
    Ok(source)
}

fn overrides(parts: &Parts<'_>, hostname: String, mounts: Vec<Mount>) -> Overrides {
    // Every field is named, so that a new one must be thought about.
    let Template {
        image: _,
        pull: _,
        entrypoint,
        command,
        environment: _,
        working_dir,
        user,
        hostname: _,
        mounts: _,
        files: _,
        resources,
        health: _,
        health_off: _,
        restart: _,
        stop_signal,
        stop_grace_ms: _,
        cap_add,
        cap_drop,
        privileged,
        read_only,
        init,
        tty,
        no_new_privileges,
        seccomp_unconfined,
        sysctls,
        ulimits,
        group_add,
        extra_hosts: _,
        shm_size,
        labels,
    } = &parts.replica.template;
    let ulimit = |(name, limit): (&String, &gantry_api::spec::Ulimit)| Ulimit {
        name: name.clone(),
        soft: limit.soft,
        hard: limit.hard,
    };
    Overrides {
        command: command.clone(),
        entrypoint: entrypoint.clone(),
        env: environment(parts.replica),
        working_dir: working_dir.clone(),
        user: user.clone(),
        group_add: group_add.clone(),
        tty: *tty,
        init: init.then(|| parts.init.to_owned()),
        hostname: Some(hostname),
        mounts,
        read_only: *read_only,
        memory_bytes: resources.limit_memory.map(|limit| limit.0),
        cpu_millis: resources.limit_cpu.map(|limit| u64::from(limit.0)),
        pids_max: resources.limit_pids.map(i64::from),
        cap_add: cap_add.clone(),
        cap_drop: cap_drop.clone(),
        privileged: *privileged,
        network: Network::Path(PathBuf::from(&parts.network.netns)),
        cgroups_path: Some(parts.cgroup.clone()),
        sysctls: sysctls.clone(),
        ulimits: ulimits.iter().map(ulimit).collect(),
        shm_size: shm_size.map(|size| size.0),
        stop_signal: stop_signal.clone(),
        security: if *seccomp_unconfined { Seccomp::Unconfined } else { Seccomp::Default },
        no_new_privileges: *no_new_privileges,
        labels: labels.clone(),
        oom_score_adj: oom_score(node::oom_score_adj()),
        ..Overrides::default()
    }
}

/// A daemon that the kernel is to spare hands its score down to what it starts; a replica is not to be spared.
fn oom_score(own: Option<i32>) -> Option<i32> {
    // Raising it needs no privilege; one that is not lowered is left alone, since lowering it would.
    own.filter(|score| *score < 0).map(|_| 0)
}

/// Ours first, so that the manifest may replace them.
fn environment(replica: &AssignedReplica) -> Vec<String> {
    let ours = [
        ("GANTRY_REPLICA", replica.id.to_string()),
        ("GANTRY_SERVICE", replica.name.service.to_string()),
        ("GANTRY_APP", replica.name.app.to_string()),
    ];
    let ours = ours.into_iter().map(|(key, value)| format!("{key}={value}"));
    let theirs = replica.template.environment.iter().map(|(key, value)| format!("{key}={value}"));
    ours.chain(theirs).collect()
}

/// What is promised is a share against others and a soft limit; neither has a flag in docker.
fn reserve(config: &mut Value, template: &Template) {
    let resources = &mut config["linux"]["resources"];
    let cpu = u64::from(template.resources.reserve_cpu.0);
    if cpu > 0 {
        // 1024 is one processor; the kernel takes 2 to 262144.
        resources["cpu"]["shares"] = json!((cpu * 1024 / 1000).clamp(2, 262_144));
    }
    let memory = template.resources.reserve_memory.0;
    let below_limit = template.resources.limit_memory.is_none_or(|limit| memory <= limit.0);
    if memory > 0 && below_limit {
        resources["memory"]["reservation"] = json!(memory.min(i64::MAX as u64));
    }
}

/// Numbers for a user by name or number, from the files inside a replica; its own where none is given.
#[derive(Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    #[serde(default)]
    pub(crate) additional_gids: Vec<u32>,
}

/// Looks up a user in the replica that the bundle at `dir` is for.
pub(crate) fn user(dir: &Path, name: &str) -> Result<User, String> {
    let path = dir.join("config.json");
    let text = std::fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let own: Value =
        serde_json::from_slice(&text).map_err(|error| format!("{} is damaged: {error}", path.display()))?;
    let rootfs = own["root"]["path"].as_str().ok_or_else(|| format!("{} names no root", path.display()))?;
    let (user, command) = (Some(name.to_owned()), Some(vec!["-".to_owned()]));
    let overrides = Overrides { user, command, ..Overrides::default() };
    let config = bundle::config(&ImageConfig::default(), Path::new(rootfs), &overrides);
    let mut config = config.map_err(|error| super::images::words(&error))?;
    serde_json::from_value(config["process"]["user"].take()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::ids::{ReplicaId, ReplicaName};
    use gantry_api::spec::Resources;
    use gantry_api::units::{Bytes, MilliCpu};

    fn replica(template: Template) -> AssignedReplica {
        let name = ReplicaName { app: "shop".parse().unwrap(), service: "web".parse().unwrap(), number: 2 };
        AssignedReplica { id: ReplicaId::new(&name, 1), name, template }
    }

    #[test]
    fn a_replica_is_not_spared_as_the_daemon_is() {
        for (own, expected) in [(Some(-900), Some(0)), (Some(0), None), (Some(200), None), (None, None)] {
            assert_eq!(oom_score(own), expected, "{own:?}");
        }
        assert!(node::oom_score_adj().is_some(), "the kernel tells ours");
    }

    #[test]
    fn the_manifests_environment_comes_after_ours() {
        let environment = [("A", "1"), ("GANTRY_APP", "mine")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let replica = replica(Template { environment: environment.into(), ..Template::default() });
        let want =
            ["GANTRY_REPLICA=shop-web-2-000001", "GANTRY_SERVICE=web", "GANTRY_APP=shop", "A=1", "GANTRY_APP=mine"];
        assert_eq!(super::environment(&replica), want);
    }

    #[test]
    fn a_host_name_is_the_manifests_or_the_replicas_and_fits_the_kernel() {
        assert_eq!(hostname(&replica(Template::default())), "shop-web-2");
        let long = Some("x".repeat(100));
        assert_eq!(hostname(&replica(Template { hostname: long, ..Template::default() })).len(), 63);
    }

    #[test]
    fn a_bind_mount_is_made_only_where_the_manifest_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let path = path.to_str().unwrap();
        assert!(ensure_bind(path, false).unwrap_err().contains("does not exist on this node"));
        assert!(ensure_bind(path, true).unwrap().is_dir());
        assert!(ensure_bind("relative", true).is_err());
    }

    #[test]
    fn a_user_is_looked_up_inside_the_replica() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        std::fs::create_dir_all(rootfs.join("etc")).unwrap();
        std::fs::write(rootfs.join("etc/passwd"), "app:x:70:71::/:\n").unwrap();
        std::fs::write(rootfs.join("etc/group"), "app:x:71:\nlog:x:72:app\n").unwrap();
        std::fs::write(dir.path().join("config.json"), json!({"root": {"path": rootfs}}).to_string()).unwrap();
        let found = user(dir.path(), "app").unwrap();
        assert_eq!((found.uid, found.gid, found.additional_gids.contains(&72)), (70, 71, true));
        let numbers = user(dir.path(), "5:6").unwrap();
        assert_eq!((numbers.uid, numbers.gid), (5, 6));
        assert!(user(dir.path(), "nobody-there").is_err());
    }

    #[test]
    fn promises_become_shares_and_a_soft_limit() {
        for (resources, want) in [
            (Resources::default(), json!({"linux": {"resources": {}}})),
            (
                Resources { reserve_cpu: MilliCpu(500), reserve_memory: Bytes(7), ..Resources::default() },
                json!({"linux": {"resources": {"cpu": {"shares": 512}, "memory": {"reservation": 7}}}}),
            ),
            (
                Resources { reserve_memory: Bytes(7), limit_memory: Some(Bytes(6)), ..Resources::default() },
                json!({"linux": {"resources": {}}}),
            ),
        ] {
            let mut config = json!({"linux": {"resources": {}}});
            reserve(&mut config, &Template { resources, ..Template::default() });
            assert_eq!(config, want);
        }
    }
}
