//! Gantry's scheduler: from what apps should be to what each node must run, and the API that people and agents use.
//!
//! ```text
//!  people ──unix socket──► api ──┐                        ┌──► store
//!                                ├──► steward ── core ────┤
//!  agents ──TCP, TLS────► hub ───┘                        └──► hub ──► agents
//! ```
//!
//! `core` decides and does nothing else; `steward` owns the world and carries decisions out; `store` is where it lies.

mod api;
mod events;
mod hub;
mod refusal;
mod serve;
mod steward;

pub mod ca;
pub mod core;
pub mod records;
pub mod store;

use crate::api::Api;
use crate::ca::{Ca, CaError};
use crate::core::{Now, Settings};
use crate::hub::Hub;
use crate::steward::Steward;
use crate::store::{Store, StoreError, embedded::Embedded};
use gantry_api::http::ApiError;
use gantry_api::network::Ipv4Net;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How a scheduler is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// State that must outlive a reboot; ours is in `scheduler/` of it.
    pub data_dir: PathBuf,
    /// State that need not.
    pub run_dir: PathBuf,
    /// Where nodes reach us (TCP with TLS).
    pub listen: SocketAddr,
    /// Our address as other hosts know it; the certificate names it.
    pub advertise: Ipv4Addr,
    /// Where local root reaches us; usually `gantry.sock` of `run_dir`.
    pub socket: PathBuf,
    /// This host's name; the certificate names it too.
    pub name: String,
    /// All replicas' addresses; fixed once a node has joined.
    pub replica_net: Ipv4Net,
    /// All services' addresses; fixed once an app is there.
    pub service_net: Ipv4Net,
}

/// Why the scheduler does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder cannot be made.
    #[error("cannot make the folder {}", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The port cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The unix socket cannot be made.
    #[error("cannot make the socket {}", socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The two nets are no good.
    #[error("replica net {replica} and service net {service}: {why}")]
    Nets {
        /// The replica net.
        replica: Ipv4Net,
        /// The service net.
        service: Ipv4Net,
        /// What is wrong.
        why: &'static str,
    },
    /// The nets differ from those the cluster was made with.
    #[error("this cluster was made with replica net {} and service net {}", made.replica_net, made.service_net)]
    NetsChanged {
        /// What it was made with.
        made: Box<Settings>,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The authority failed.
    #[error("the certificate authority failed")]
    Ca(#[from] CaError),
    /// A thread cannot be started.
    #[error("cannot start the scheduler's thread")]
    Thread(#[source] io::Error),
    /// The scheduler's own task broke down: a mistake of ours.
    #[error("the scheduler's task broke down")]
    Broken,
}

impl Error {
    /// What the operator can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Folder { .. } => {
                Some("run as root, or choose another folder with --data-dir and --run-dir".to_owned())
            }
            Self::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                Some(format!("another program has port {}; stop it or choose another with --listen", address.port()))
            }
            Self::Listen { .. } => Some("choose an address of this host with --listen".to_owned()),
            Self::Socket { .. } => Some("run as root, or choose another folder with --run-dir".to_owned()),
            Self::Nets { .. } => {
                Some("choose two nets that do not overlap, such as 10.210.0.0/16 and 10.211.0.0/16".to_owned())
            }
            Self::NetsChanged { made } => {
                Some(format!("start with --replica-net {} --service-net {}", made.replica_net, made.service_net))
            }
            Self::Store(error) => error.hint(),
            Self::Ca(error) => error.hint(),
            Self::Thread(_) => None,
            Self::Broken => Some("the log shows a panic; please report it".to_owned()),
        }
    }
}

/// A scheduler that runs.
pub struct Scheduler {
    api: Arc<Api>,
    address: SocketAddr,
    socket: PathBuf,
    stop: watch::Sender<bool>,
    steward: oneshot::Receiver<Result<(), StoreError>>,
    doors: tokio::task::JoinSet<()>,
}

impl Scheduler {
    /// Opens the store and both doors. When this returns, requests are served.
    ///
    /// # Errors
    /// Something it needs cannot be had.
    pub async fn start(config: Config) -> Result<Self, Error> {
        check_nets(&config)?;
        let home = config.data_dir.join("scheduler");
        make_folder(&home, 0o700)?;
        make_folder(&config.run_dir, 0o755)?;
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&home.join("store.redb"))?);
        let ca = Ca::open(&home.join("ca"))?;
        let listener = tokio::net::TcpListener::bind(config.listen)
            .await
            .map_err(|source| Error::Listen { address: config.listen, source })?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address: config.listen, source })?;
        let settings = settings(store.as_ref(), &config, address.port())?;
        let (revision, reserved) = records::reserve(store.as_ref())?;
        let world = records::load(store.as_ref(), settings, revision, Now(0))?;
        let events = records::events(store.as_ref())?;
        let mut addresses = vec![IpAddr::V4(config.advertise), IpAddr::V4(Ipv4Addr::LOCALHOST)];
        if !address.ip().is_unspecified() {
            addresses.push(address.ip());
        }
        addresses.sort_unstable();
        addresses.dedup();
        let mut names = vec!["gantry-scheduler", "localhost"];
        if names.iter().all(|name| *name != config.name) && !config.name.is_empty() {
            names.push(&config.name);
        }
        let tls = Arc::new(ca.server_config(&names, &addresses)?);
        let socket = serve::bind_socket(&config.socket)
            .map_err(|source| Error::Socket { socket: config.socket.clone(), source })?;

        let (stop, stopped) = watch::channel(false);
        let (steward, handle, inputs) = Steward::new(store, world, events, reserved);
        let hub = Arc::new(Hub::new(handle.clone(), stopped.clone()));
        let api = Arc::new(Api { handle, hub, ca, random: ring::rand::SystemRandom::new() });
        let (end, ended) = oneshot::channel();
        let steward_stopped = stopped.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(Error::Thread)?;
        std::thread::Builder::new()
            .name("scheduler".to_owned())
            .spawn(move || {
                let outcome = runtime.block_on(steward.run(inputs, steward_stopped));
                // Nobody may be waiting for the outcome any more.
                let _ = end.send(outcome);
            })
            .map_err(Error::Thread)?;
        let mut doors = tokio::task::JoinSet::new();
        doors.spawn(serve::local(socket, api::local(Arc::clone(&api)), stopped.clone()));
        doors.spawn(serve::remote(listener, tls, api::remote(Arc::clone(&api)), stopped));
        tracing::info!(%address, socket = %config.socket.display(), "scheduler serves");
        Ok(Self { api, address, socket: config.socket, stop, steward: ended, doors })
    }

    /// Where nodes reach it; tells the port when it was asked to choose one.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A join token, for `gantry server`'s own agent or for a person.
    ///
    /// # Errors
    /// The time is none, or the store failed.
    pub async fn join_token(&self, ttl: Duration) -> Result<String, ApiError> {
        let made = api::make_token(&self.api, ttl.as_secs()).await;
        made.map(|token| token.token).map_err(|refused| refused.error)
    }

    /// Runs until `shutdown` is true or its sender is gone, then ends cleanly: what runs on the nodes goes on.
    ///
    /// # Errors
    /// The store failed meanwhile.
    pub async fn run_until(mut self, mut shutdown: watch::Receiver<bool>) -> Result<(), Error> {
        let early = tokio::select! {
            outcome = &mut self.steward => Some(outcome),
            _ = shutdown.wait_for(|end| *end) => None,
        };
        self.stop.send_replace(true);
        let outcome = match early {
            Some(outcome) => outcome,
            None => (&mut self.steward).await,
        };
        self.doors.shutdown().await;
        // The next start replaces it; a reader in between should see that nobody is there.
        let _ = std::fs::remove_file(&self.socket);
        outcome.map_err(|_| Error::Broken)?.map_err(Error::Store)
    }
}

/// Runs a scheduler until `shutdown` is true.
///
/// # Errors
/// It could not start, or its store failed.
pub async fn run(config: Config, shutdown: watch::Receiver<bool>) -> Result<(), Error> {
    Scheduler::start(config).await?.run_until(shutdown).await
}

fn make_folder(dir: &Path, mode: u32) -> Result<(), Error> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
    made.map_err(|source| Error::Folder { dir: dir.to_owned(), source })
}

fn check_nets(config: &Config) -> Result<(), Error> {
    let (replica, service) = (config.replica_net, config.service_net);
    let why = if replica.overlaps(service) {
        "they overlap"
    } else if replica.length() > 24 {
        "the replica net holds no /24 for a node"
    } else if service.length() > 30 {
        "the service net holds no address"
    } else {
        return Ok(());
    };
    Err(Error::Nets { replica, service, why })
}

/// The cluster's nets never change under what uses them; the port of the API may.
fn settings(store: &dyn Store, config: &Config, port: u16) -> Result<Settings, Error> {
    let wanted = Settings {
        replica_net: config.replica_net,
        service_net: config.service_net,
        reserved_ports: vec![port, gantry_api::images::BLOBS_PORT],
    };
    let made = records::settings(store, &wanted)?;
    if made == wanted {
        return Ok(wanted);
    }
    let nets_differ = (made.replica_net, made.service_net) != (wanted.replica_net, wanted.service_net);
    let in_use = !store.range("/nodes/")?.1.is_empty() || !store.range("/apps/")?.1.is_empty();
    if nets_differ && in_use {
        return Err(Error::NetsChanged { made: Box::new(made) });
    }
    records::set_settings(store, &wanted)?;
    Ok(wanted)
}
