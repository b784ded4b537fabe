//! One container's life without a daemon: what is made for it, in which order, and how it is taken away.
//!
//! ```text
//! make:  reserve ─► snapshot ─► network ─► files, bundle ─► runtime
//! end:   runtime delete ─► network detach ─► [kept: record, snapshot, log] ─► snapshot ─► directory
//! ```
//! Every step of the end succeeds when its object is gone: it can be repeated by whoever comes next.

use super::error::LocalError;
use super::options::{Network, Source, Volume};
use super::record::{Ended, Phase, Place, Record, Shelf};
use super::runtime::Runtime;
use super::volumes;
use crate::global::Global;
use gantry_api::network::AttachRequest;
use gantry_images::bundle::{self, Mount, MountKind, Overrides};
use gantry_images::{Image, SnapshotOptions, Store};
use gantry_netd::local as net;
use serde::Deserialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The kernel's limit for a host name.
const HOSTNAME_BYTES_MAX: usize = 63;

/// What every step needs.
#[derive(Debug)]
pub struct Host {
    /// Options of the command.
    pub global: Global,
    /// Images and snapshots.
    pub store: Store,
    /// The runtime's binary.
    pub runtime: Runtime,
    /// Containers.
    pub shelf: Shelf,
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Host {
    /// Opens this host's stores.
    ///
    /// # Errors
    /// Not root, no runtime, no store.
    pub fn open(global: &Global, command: &'static str) -> Result<Self, LocalError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(LocalError::NotRoot(command));
        }
        Ok(Self {
            global: global.clone(),
            store: super::images::store(global)?,
            runtime: Runtime::find(global)?,
            shelf: Shelf::new(global),
        })
    }

    // --------------------------------------------------------------------------------------------------- make

    /// Everything between a record and a bundle that the runtime can take.
    ///
    /// # Errors
    /// Of any step; what was made is taken away by [`Host::end`] or [`Host::destroy`].
    pub fn prepare(&self, record: &mut Record, place: &Place, image: &Image) -> Result<(), LocalError> {
        let options =
            SnapshotOptions { volatile: record.remove, size_max: record.wish.storage, ..SnapshotOptions::default() };
        let snapshot = self.store.snapshot(image, &record.id, &options)?;
        let hostname = hostname(record);
        let (network, servers) = self.attach(record, &hostname)?;
        let mut mounts = self.mounts(record, place, image, &snapshot.rootfs)?;
        for (file, target) in write_etc(record, place, &hostname, &servers)? {
            if !mounts.iter().any(|mount| mount.target == target) {
                mounts.push(bind(file, target, false));
            }
        }
        let mut overrides = self.overrides(record, hostname, mounts, network);
        if record.wish.init {
            overrides.init = Some(std::env::current_exe().map_err(LocalError::kernel("find this program's file"))?);
        }
        let config = bundle::config(&image.config, &snapshot.rootfs, &overrides)?;
        record.command = shown_command(&config);
        bundle::write(&place.bundle(), &config)?;
        for old in [place.exit(), place.complaints()] {
            remove_file(&old)?;
        }
        Ok(())
    }

    fn attach(
        &self,
        record: &mut Record,
        hostname: &str,
    ) -> Result<(bundle::Network, Option<Vec<String>>), LocalError> {
        match record.wish.network {
            Network::None => return Ok((bundle::Network::New, Some(Vec::new()))),
            Network::Host => return Ok((bundle::Network::Host, None)),
            Network::Bridge => {}
        }
        let request = AttachRequest {
            id: record.id.clone(),
            app: None,
            hostname: hostname.to_owned(),
            ports: record.wish.ports.clone(),
        };
        let made = net::attach(&self.global.run_dir, &self.global.data_dir, &request)
            .map_err(|error| network_error(&error))?;
        record.address = Some(made.attachment.address);
        let servers = made.nameservers.iter().map(ToString::to_string).collect();
        Ok((bundle::Network::Path(PathBuf::from(made.attachment.netns)), Some(servers)))
    }

    fn mounts(&self, record: &Record, place: &Place, image: &Image, rootfs: &Path) -> Result<Vec<Mount>, LocalError> {
        let mut mounts = Vec::new();
        for (number, volume) in record.wish.volumes.iter().enumerate() {
            mounts.push(self.mount(volume, number, place, rootfs)?);
        }
        // Directories that the image says hold data, and that nothing else is mounted on.
        for (number, target) in image.config.volumes.iter().enumerate() {
            let same = |mount: &Mount| mount.target.trim_end_matches('/') == target.trim_end_matches('/');
            if target.starts_with('/') && !mounts.iter().any(same) {
                let dir = place.volumes().join(format!("image-{number}"));
                mounts.push(data(volumes::ensure(&dir, rootfs, target)?, target, false));
            }
        }
        Ok(mounts)
    }

    fn mount(&self, volume: &Volume, number: usize, place: &Place, rootfs: &Path) -> Result<Mount, LocalError> {
        let Volume { source, target, read_only, options } = volume;
        let mut mount = match source {
            Source::Path(path) => {
                // As docker: what is not there becomes a directory.
                if path.symlink_metadata().is_err() {
                    fs::create_dir_all(path).map_err(LocalError::file("make", path))?;
                }
                bind(path.clone(), target, *read_only)
            }
            Source::Named(name) => {
                let dir = self.data_dir().join("volumes").join(name);
                data(volumes::ensure(&dir, rootfs, target)?, target, *read_only)
            }
            Source::Anonymous => {
                data(volumes::ensure(&place.volumes().join(number.to_string()), rootfs, target)?, target, *read_only)
            }
            Source::Tmpfs => Mount {
                source: PathBuf::new(),
                target: target.clone(),
                kind: MountKind::Tmpfs,
                read_only: *read_only,
                options: Vec::new(),
            },
        };
        mount.options.extend(options.iter().cloned());
        Ok(mount)
    }

    fn data_dir(&self) -> PathBuf {
        std::path::absolute(&self.global.data_dir).unwrap_or_else(|_| self.global.data_dir.clone())
    }

    fn overrides(&self, record: &Record, hostname: String, mounts: Vec<Mount>, network: bundle::Network) -> Overrides {
        let wish = &record.wish;
        Overrides {
            command: wish.command.clone(),
            entrypoint: wish.entrypoint.clone(),
            env: wish.env.clone(),
            working_dir: wish.workdir.clone(),
            user: wish.user.clone(),
            tty: wish.tty,
            // With the host's network comes the host's name, as docker has it.
            hostname: Some(hostname),
            mounts,
            read_only: wish.read_only,
            memory_bytes: wish.memory,
            cpu_millis: wish.cpu_millis,
            pids_max: wish.pids,
            cap_add: wish.cap_add.clone(),
            cap_drop: wish.cap_drop.clone(),
            privileged: wish.privileged,
            network,
            cgroups_path: Some(format!("{}/{}", self.global.cgroup_parent.trim_end_matches('/'), record.id)),
            stop_signal: wish.stop_signal.clone(),
            ..Overrides::default()
        }
    }

    // ---------------------------------------------------------------------------------------------------- end

    /// Takes away what a container needs only while it runs.
    ///
    /// # Errors
    /// A process hangs, or the kernel refuses; to be repeated.
    pub fn release(&self, record: &Record) -> Result<(), LocalError> {
        self.runtime.delete(&record.id)?;
        if record.wish.network == Network::Bridge {
            let detached = net::detach(&self.global.run_dir, &self.global.data_dir, &record.id);
            detached.map_err(|error| network_error(&error))?;
        }
        Ok(())
    }

    /// Takes a container away for good.
    ///
    /// # Errors
    /// As [`Host::release`]; to be repeated.
    pub fn destroy(&self, record: &Record) -> Result<(), LocalError> {
        self.release(record)?;
        self.store.remove_snapshot(&record.id)?;
        remove_dir(&self.shelf.place(&record.id).dir)?;
        // The runtime's and our empty directories; in use by others, mostly.
        let run = std::path::absolute(&self.global.run_dir).unwrap_or_else(|_| self.global.run_dir.clone());
        for folder in ["run", "netns"] {
            drop(fs::remove_dir(run.join(folder)));
        }
        Ok(())
    }

    /// After its program has ended: removed, or kept as ended.
    ///
    /// # Errors
    /// As [`Host::release`].
    pub fn end(&self, record: &mut Record, ended: Ended) -> Result<(), LocalError> {
        if record.remove {
            return self.destroy(record);
        }
        self.release(record)?;
        record.phase = Phase::Ended(ended);
        record.owner = None;
        record.address = None;
        self.shelf.place(&record.id).save(record)
    }

    /// How a detached container ended, as its supervisor wrote; unknown when it could not.
    pub fn exit_record(&self, place: &Place) -> Ended {
        #[derive(Deserialize)]
        struct Exit {
            exit_code: Option<i32>,
            signal: Option<i32>,
            #[serde(default)]
            oom_killed: bool,
        }
        let exit: Option<Exit> = fs::read(place.exit()).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let code = exit.as_ref().and_then(|exit| exit.exit_code.or(exit.signal.map(|signal| 128 + signal)));
        Ended { code, oom_killed: exit.is_some_and(|exit| exit.oom_killed), at_ms: now_ms() }
    }

    /// Clears what killed commands and restarts of the host have left. Hold the shelf's lock.
    ///
    /// A container in the foreground, one with `--rm` and one that never ran go altogether; a detached one is kept as
    /// ended. What cannot be cleared now is left to the next one, and said.
    pub fn sweep(&self) {
        for id in self.shelf.ids() {
            let place = self.shelf.place(&id);
            let done = match place.load() {
                Ok(Some(record)) if record.stale() => self.sweep_one(record, &place),
                Ok(Some(_)) => Ok(()),
                // Killed before the record was written, or it is damaged: then no more is known than the id.
                Ok(None) | Err(_) => self.sweep_unknown(&id, &place),
            };
            if let Err(error) = done {
                let error = crate::error::CliError::from(error);
                eprintln!("gantry: container {id} cannot be cleared: {}", error.message);
            }
        }
    }

    fn sweep_one(&self, mut record: Record, place: &Place) -> Result<(), LocalError> {
        let _lock = place.lock()?;
        if record.phase == Phase::Running && record.detached && !record.remove {
            let ended = self.exit_record(place);
            return self.end(&mut record, ended);
        }
        self.destroy(&record)
    }

    fn sweep_unknown(&self, id: &str, place: &Place) -> Result<(), LocalError> {
        self.runtime.delete(id)?;
        net::detach(&self.global.run_dir, &self.global.data_dir, id).map_err(|error| network_error(&error))?;
        self.store.remove_snapshot(id)?;
        remove_dir(&place.dir)
    }
}

fn network_error(error: &gantry_netd::NetError) -> LocalError {
    LocalError::Network { message: error.chain(), hint: error.hint() }
}

fn bind(source: PathBuf, target: &str, read_only: bool) -> Mount {
    Mount { source, target: target.to_owned(), kind: MountKind::Bind, read_only, options: Vec::new() }
}

fn data(source: PathBuf, target: &str, read_only: bool) -> Mount {
    Mount { source, target: target.to_owned(), kind: MountKind::Volume, read_only, options: Vec::new() }
}

fn remove_file(path: &Path) -> Result<(), LocalError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LocalError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

fn remove_dir(path: &Path) -> Result<(), LocalError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LocalError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The program and its arguments, from the finished configuration.
fn shown_command(config: &serde_json::Value) -> Vec<String> {
    let words = config["process"]["args"].as_array().into_iter().flatten();
    words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

fn hostname(record: &Record) -> String {
    if let Some(name) = &record.wish.hostname {
        return name.clone();
    }
    if record.wish.network == Network::Host
        && let Ok(name) = nix::unistd::gethostname()
        && let Ok(name) = name.into_string()
    {
        return name;
    }
    let mut name = record.id.clone();
    name.truncate(HOSTNAME_BYTES_MAX);
    name
}

/// Writes `hosts`, `hostname` and `resolv.conf`; with the host's network its own files are shown instead.
fn write_etc(
    record: &Record,
    place: &Place,
    hostname: &str,
    servers: &Option<Vec<String>>,
) -> Result<Vec<(PathBuf, &'static str)>, LocalError> {
    let Some(servers) = servers else {
        let own = [("/etc/hosts", "/etc/hosts"), ("/etc/resolv.conf", "/etc/resolv.conf")];
        let there = own.into_iter().filter_map(|(file, target)| Some((fs::canonicalize(file).ok()?, target)));
        return Ok(there.collect());
    };
    let dir = place.etc();
    fs::create_dir_all(&dir).map_err(LocalError::file("make", &dir))?;
    let address = record.address.map_or_else(|| "127.0.0.1".to_owned(), |address| address.to_string());
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{hostname}\n");
    let resolv: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let mut files = Vec::new();
    for (name, target, text) in [
        ("hosts", "/etc/hosts", hosts),
        ("hostname", "/etc/hostname", format!("{hostname}\n")),
        ("resolv.conf", "/etc/resolv.conf", resolv),
    ] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(LocalError::file("write", &path))?;
        files.push((path, target));
    }
    Ok(files)
}
