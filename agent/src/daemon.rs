//! The agent's one loop: what happened changes the picture, the picture is kept on disk, the plan says what comes next,
//! and that is begun. Nothing in the loop waits for the world.

use crate::act::network::{self, Network};
use crate::act::{Actor, images::Images, runtime::Runtime, volumes};
use crate::deaths::{self, Death};
use crate::error::{AgentError, chain};
use crate::fsx;
use crate::identity::Identity;
use crate::ledger::Ledger;
use crate::model::{Action, Done, Found, Node, Process, Seen, Step};
use crate::observe::cgroup::{Hierarchies, Usage};
use crate::observe::exits::{self, ExitFile};
use crate::observe::watch::Watch;
use crate::observe::{cri, node};
use crate::paths::Paths;
use crate::share::{fetch, inventory, serve};
use crate::stream::{self, Stream};
use crate::{dial::Dialer, plan, tls};
use gantry_api::ids::{NodeId, ReplicaId};
use gantry_api::images::{BLOBS_PORT, Sources};
use gantry_api::network::Table;
use gantry_api::units::{Bytes, MilliCpu};
use gantry_api::wire::{Assignment, Capacity, Hello, ReplicaStatus, Report};
use gantry_images::{Peers, Store, Watermarks};
use gantry_netd::client::Client;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tracing::{info, warn};

/// Should the kernel not tell of an exit file, we look this often.
const RESCAN: Duration = Duration::from_secs(2);
/// Between two looks at whether what should run does: a supervisor that was killed leaves no exit file.
const AUDIT: Duration = Duration::from_secs(5);
/// A child of a killed agent holds its lock until it has become another program.
const LOCK_MAX: Duration = Duration::from_secs(2);
/// Between two looks at whether an image that replicas wait for has been loaded here meanwhile.
const ARRIVALS: Duration = Duration::from_secs(1);
/// Between looks at how full the disk of the images is; a pull looks too.
const RELIEF: Duration = Duration::from_secs(60);
/// Between two looks at usage.
const MEASURE: Duration = Duration::from_secs(1);

/// How the agent is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// What survives a reboot.
    pub data_dir: PathBuf,
    /// What need not.
    pub run_dir: PathBuf,
    /// Control group above all replicas: `/gantry`.
    pub cgroup_parent: String,
    /// The runtime's binary.
    pub runtime: PathBuf,
    /// Static program that is PID 1 of replicas with `init: true`.
    pub init: PathBuf,
    /// Where netd listens.
    pub netd_socket: PathBuf,
    /// Where other hosts reach this one.
    pub advertise: Ipv4Addr,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// What replicas may use together, where that is not the whole machine.
    pub capacity: Option<Capacity>,
    /// Of the capacity, what is kept for the system.
    pub reserved: Capacity,
    /// Registries that are spoken to over plain HTTP; those on loopback always are.
    pub insecure_registries: Vec<String>,
    /// When unused images are removed.
    pub watermarks: Watermarks,
}

/// Runs the agent until `shutdown` turns true or its sender is gone. Replicas are not touched by its end.
///
/// # Errors
/// It cannot begin: see [`AgentError`]. Once begun it does not give up.
pub async fn run(config: Config, mut shutdown: watch::Receiver<bool>) -> Result<(), AgentError> {
    let identity = Identity::load(&config.data_dir)?;
    let Some((identity, member)) = identity.and_then(|i| i.membership.clone().map(|member| (i, member))) else {
        return Err(AgentError::NotJoined(crate::paths::identity(&config.data_dir)));
    };
    let paths = Paths::new(&config.data_dir, &config.run_dir);
    let _lock = lock(&paths).await?;
    let dialer = Dialer::new(member.server, tls::member(&member.certificate_pem, &identity.key_pem, &member.ca_pem)?);
    let (server, client) = tls::among_nodes(&member.certificate_pem, &identity.key_pem, &member.ca_pem)?;
    let (sources, named) = watch::channel(Sources::default());
    let peers = Arc::new(fetch::Nodes::new(client, named));
    let (mut daemon, events) = Daemon::begin(&config, paths, &identity, peers).await?;
    let (inventory, images) = watch::channel(Arc::default());
    let door = serve::Door {
        address: SocketAddr::from((config.advertise, BLOBS_PORT)),
        tls: Arc::new(server),
        store: daemon.actor.store().clone(),
        tables: daemon.tables.subscribe(),
        problem: events.sharing_in.clone(),
    };
    daemon.tasks.spawn(inventory::keep(door.store.clone(), inventory));
    daemon.tasks.spawn(serve::run(door));
    let stream = Stream {
        dialer,
        hello: hello(&config, &identity),
        reports: daemon.reports.subscribe(),
        assignments: events.assignments_in.clone(),
        images,
        sources,
        runtime: Arc::clone(&daemon.runtime),
        paths: daemon.paths.clone(),
    };
    daemon.tasks.spawn(stream::run(stream));
    info!("node {} runs, {} replicas were there", identity.name, daemon.node.observed.len());
    tokio::select! {
        () = daemon.run(events) => {}
        _ = shutdown.wait_for(|over| *over) => {}
    }
    info!("the agent ends; replicas go on");
    Ok(())
}

/// Held as long as the agent runs.
async fn lock(paths: &Paths) -> Result<File, AgentError> {
    fsx::ensure_dir(&paths.agent(), 0o700)?;
    let path = paths.agent().join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(fsx::FileError::new("open", &path))?;
    let deadline = Instant::now() + LOCK_MAX;
    while file.try_lock().is_err() {
        if Instant::now() > deadline {
            return Err(AgentError::Locked(paths.data_dir().to_owned()));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(file)
}

fn hello(config: &Config, identity: &Identity) -> Hello {
    let (kernel, arch) = node::platform();
    let total = config.capacity.unwrap_or_else(node::total);
    let capacity = Capacity {
        cpu: MilliCpu(total.cpu.0.saturating_sub(config.reserved.cpu.0)),
        memory: Bytes(total.memory.0.saturating_sub(config.reserved.memory.0)),
    };
    Hello {
        node: identity.node.clone(),
        name: identity.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        underlay: config.advertise,
        capacity,
        labels: config.labels.clone(),
        arch,
        kernel,
    }
}

/// Milliseconds since 1970 at the start, and from there on by a clock that nobody sets.
#[derive(Debug, Clone, Copy)]
struct Clock {
    base_ms: u64,
    begun: Instant,
}

impl Clock {
    fn new() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { base_ms: since_1970.as_millis() as u64, begun: Instant::now() }
    }

    fn now_ms(self) -> u64 {
        self.base_ms + self.begun.elapsed().as_millis() as u64
    }

    fn instant(self, at_ms: u64) -> Instant {
        self.begun + Duration::from_millis(at_ms.saturating_sub(self.base_ms))
    }
}

/// What the loop is told.
enum Event {
    Ended(Action, Result<Done, String>),
    /// Replicas whose process should run and is not there, by the start of that process.
    Missing(Vec<(ReplicaId, u64)>),
    /// Images that were missing and are here now.
    Arrived(Vec<String>),
    Measured(Measured),
    VolumeRemoved(String, Result<(), String>),
}

/// One look at usage.
struct Measured {
    at: Instant,
    replicas: HashMap<ReplicaId, Usage>,
    memory: Bytes,
    cpu: MilliCpu,
    meter: node::Meter,
    volumes: Vec<String>,
    disk: Option<String>,
}

struct Events {
    ended: mpsc::UnboundedReceiver<Event>,
    assignments: mpsc::Receiver<Box<Assignment>>,
    assignments_in: mpsc::Sender<Box<Assignment>>,
    /// `None` when the kernel tells no more, and looking again is all there is.
    exits: Option<Watch>,
    network: watch::Receiver<network::State>,
    /// Why images are not served to other nodes.
    sharing: watch::Receiver<Option<String>>,
    sharing_in: watch::Sender<Option<String>>,
}

struct Daemon {
    clock: Clock,
    me: NodeId,
    paths: Paths,
    runtime: Arc<Runtime>,
    actor: Arc<Actor>,
    node: Node,
    ledger: Ledger,
    /// Every action under way has one sender; there are at most two per replica.
    told: mpsc::UnboundedSender<Event>,
    tables: watch::Sender<Option<Arc<Table>>>,
    cancels: HashMap<ReplicaId, watch::Sender<bool>>,
    reports: watch::Sender<Report>,
    network: network::State,
    hierarchies: Hierarchies,
    meter: Option<node::Meter>,
    measured: Option<(Instant, HashMap<ReplicaId, Usage>)>,
    usage: HashMap<ReplicaId, (Bytes, MilliCpu)>,
    exits_taken: Vec<(ReplicaId, ExitFile)>,
    /// Being removed, or could not be.
    volumes_going: BTreeSet<String>,
    /// Of those, the ones that could not be: tried again at the next audit.
    volumes_stuck: BTreeSet<String>,
    own_problems: BTreeMap<&'static str, String>,
    tasks: JoinSet<()>,
}

impl Daemon {
    async fn begin(
        config: &Config,
        paths: Paths,
        identity: &Identity,
        peers: Arc<dyn Peers>,
    ) -> Result<(Self, Events), AgentError> {
        let scratch = paths.consoles();
        fsx::ensure_dir(&scratch, 0o700)?;
        fsx::ensure_dir(&paths.runtime_root(), 0o700)?;
        let runtime = Arc::new(Runtime::new(&config.runtime, &paths.runtime_root(), &scratch));
        let unusable = |error| AgentError::Runtime(config.runtime.clone(), error);
        runtime.probe().await.map_err(unusable)?;
        let (ledger, assignment, mut node) = Ledger::open(&paths)?;
        // Watched before it is read, so that no exit comes in between.
        let exits = Watch::arrivals(&paths.exits()).map_err(|error| AgentError::Watch(paths.exits(), error))?;
        let clock = Clock::new();
        let running = runtime.list().await.map_err(|error| unusable(std::io::Error::other(error.words())))?;
        let before = node.observed.clone();
        let buried = adopt(&mut node, &running, &paths, clock.now_ms())?;
        let images = paths.images();
        let store = spawn_blocking(move || Store::open(images)).await;
        let store = store.map_err(|error| AgentError::Images(error.into()))?;
        let store = store.map_err(|error| AgentError::Images(error.into()))?;
        let client = Arc::new(Client::new(config.netd_socket.clone()));
        let (tables, tables_out) = watch::channel(assignment.map(|assignment| Arc::new(assignment.network)));
        let (state, network) = watch::channel(network::State::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(network::keep(Arc::clone(&client), tables_out, state));
        let actor = Arc::new(Actor::new(
            paths.clone(),
            config.cgroup_parent.clone(),
            config.init.clone(),
            Arc::clone(&runtime),
            Images::new(store, config.insecure_registries.clone(), config.watermarks, Some(peers)),
            Network::new(client, network.clone()),
        ));
        let (told, ended) = mpsc::unbounded_channel();
        let (assignments_in, assignments) = mpsc::channel(1);
        let hierarchies = Hierarchies::find(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
        let (me, reports) = (identity.node.clone(), watch::Sender::new(empty_report()));
        let mut daemon = Self {
            clock,
            me,
            paths,
            runtime,
            actor,
            node,
            ledger,
            told,
            tables,
            cancels: HashMap::new(),
            reports,
            network: network::State::default(),
            hierarchies,
            meter: Some(node::Meter::default()),
            measured: None,
            usage: HashMap::new(),
            exits_taken: Vec::new(),
            volumes_going: BTreeSet::new(),
            volumes_stuck: BTreeSet::new(),
            own_problems: BTreeMap::new(),
            tasks,
        };
        daemon.clear_scratch();
        for (id, file) in buried {
            if let (Some(before), Some(after)) = (before.get(&id), daemon.node.observed.get(&id)) {
                daemon.bury(before, after, file.as_ref());
            }
        }
        daemon.step().await;
        let (sharing_in, sharing) = watch::channel(None);
        let exits = Some(exits);
        Ok((daemon, Events { ended, assignments, assignments_in, exits, network, sharing, sharing_in }))
    }

    /// Sockets and files of commands that a killed agent left.
    fn clear_scratch(&self) {
        for name in fsx::names(&self.paths.consoles()).unwrap_or_default() {
            if let Err(error) = fsx::remove_file(&self.paths.consoles().join(name)) {
                warn!("{}", chain(&error));
            }
        }
    }

    async fn run(&mut self, mut events: Events) {
        let every = |period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        let (mut rescan, mut audit, mut measure) = (every(RESCAN), every(AUDIT), every(MEASURE));
        let (mut arrivals, mut relief) = (every(ARRIVALS), every(RELIEF));
        loop {
            let wake = plan::wake_ms(&self.node.desired, &self.node.observed, self.clock.now_ms());
            let wake = wake.map(|at_ms| self.clock.instant(at_ms));
            let pause = async {
                match wake {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = changed(&mut events.exits) => {
                    if let Err(error) = changed {
                        warn!("cannot watch exit files any more, looking every {RESCAN:?}: {error}");
                        events.exits = None;
                    }
                    self.exits();
                }
                Some(event) = events.ended.recv() => {
                    self.take(event);
                    while let Ok(event) = events.ended.try_recv() {
                        self.take(event);
                    }
                }
                Some(assignment) = events.assignments.recv() => self.assign(*assignment).await,
                Ok(()) = events.network.changed() => self.network = events.network.borrow_and_update().clone(),
                Ok(()) = events.sharing.changed() => {
                    let problem = events.sharing.borrow_and_update().clone();
                    self.problem("sharing", problem);
                }
                _ = rescan.tick() => self.exits(),
                _ = audit.tick() => self.audit(),
                _ = measure.tick() => self.measure(),
                _ = arrivals.tick() => self.arrivals(),
                _ = relief.tick() => self.actor.relieve(),
                () = pause => {}
            }
            self.step().await;
        }
    }

    /// Keeps what is known, begins what comes next, and tells of it.
    async fn step(&mut self) {
        let now_ms = self.clock.now_ms();
        let actions = plan::plan(&self.node.desired, &self.node.observed, now_ms);
        for action in &actions {
            self.node.begin(action, now_ms);
        }
        // Told before it is kept: whatever is told here is found again by looking.
        self.publish();
        self.save().await;
        self.forget_exits();
        for action in actions {
            self.spawn(action);
        }
        for volume in plan::volumes_to_remove(&self.node) {
            self.remove_volume(volume);
        }
    }

    async fn save(&mut self) {
        let Some(write) = self.ledger.write(&self.node.observed) else { return };
        let problem = match spawn_blocking(write).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(error) => Some(error.to_string()),
        };
        if problem.is_some() {
            self.ledger.unwritten();
        }
        self.problem("ledger", problem.map(|why| format!("what happens here cannot be kept: {why}")));
    }

    /// Notes or clears a problem of the node's own.
    fn problem(&mut self, about: &'static str, problem: Option<String>) {
        match problem {
            None => drop(self.own_problems.remove(about)),
            Some(words) if self.own_problems.get(about) == Some(&words) => {}
            Some(words) => {
                warn!("{words}");
                self.own_problems.insert(about, words);
            }
        }
    }

    fn spawn(&mut self, action: Action) {
        let Some(seen) = self.node.observed.get(&action.replica) else { return };
        match action.step {
            Step::Cancel => {
                if let Some(cancel) = self.cancels.get(&action.replica) {
                    cancel.send_replace(true);
                }
                return;
            }
            Step::Check => {}
            _ => info!("{action}"),
        }
        let (cancel, cancelled) = watch::channel(false);
        if action.step == Step::Prepare {
            self.cancels.insert(action.replica.clone(), cancel.clone());
        }
        let (actor, told) = (Arc::clone(&self.actor), self.told.clone());
        let (replica, facts) = (Arc::clone(&seen.replica), seen.facts.clone());
        tokio::spawn(async move {
            let outcome = actor.carry_out(&replica, &action.step, &facts, cancelled).await;
            drop(cancel);
            // Without a receiver the daemon has ended, and will find what was done when it begins again.
            let _ = told.send(Event::Ended(action, outcome));
        });
    }

    fn take(&mut self, event: Event) {
        let now_ms = self.clock.now_ms();
        match event {
            Event::Ended(action, outcome) => {
                if let Err(message) = &outcome
                    && action.step != Step::Check
                {
                    warn!("{action}: {message}");
                }
                if matches!(action.step, Step::Prepare) {
                    self.cancels.remove(&action.replica);
                }
                self.node.end(&action, outcome, now_ms);
                if matches!(action.step, Step::Start | Step::Restart) {
                    self.exits(); // what ended while it was being started waited for this
                }
            }
            Event::Missing(replicas) => {
                for (id, started_ms) in replicas {
                    if let Some(seen) = self.node.observed.get_mut(&id)
                        && seen.facts.busy.is_none()
                        && seen.facts.process == (Process::Running { started_ms })
                    {
                        warn!("{id} is gone, and nobody wrote how it ended");
                        let before = seen.clone();
                        seen.facts.adopt(Found::Nothing, now_ms);
                        let after = seen.clone();
                        self.bury(&before, &after, None);
                    }
                }
            }
            Event::Arrived(images) => {
                info!("{} arrived", images.join(", "));
                self.node.arrived(&images);
            }
            Event::Measured(measured) => self.measured(measured),
            Event::VolumeRemoved(name, result) => match result {
                Ok(()) => {
                    self.volumes_going.remove(&name);
                    self.node.remove_volumes.retain(|other| *other != name);
                    self.problem("volume", None);
                }
                Err(message) => {
                    self.volumes_stuck.insert(name);
                    self.problem("volume", Some(message));
                }
            },
        }
    }

    /// Takes in every exit file there is, but of replicas that are being started: see [`Node::hears_exits`].
    fn exits(&mut self) {
        let found = match exits::scan(&self.paths.exits()) {
            Ok(found) => found,
            Err(error) => return self.problem("exits", Some(chain(&error))),
        };
        self.problem("exits", None);
        let now_ms = self.clock.now_ms();
        let found: Vec<_> = found.into_iter().filter(|(id, _)| self.node.hears_exits(id)).collect();
        for (id, file) in &found {
            let before = self.node.observed.get(id).cloned();
            if self.node.exited(id, file.exit.clone(), now_ms)
                && let (Some(before), Some(after)) = (before, self.node.observed.get(id))
            {
                info!("{id} ended: {}", ending(&file.exit));
                self.bury(&before, after, Some(file));
            }
        }
        self.exits_taken.extend(found);
    }

    /// Removes exit files whose news are kept.
    fn forget_exits(&mut self) {
        for (id, file) in std::mem::take(&mut self.exits_taken) {
            // A process that was started and ended meanwhile has left another one.
            let path = self.paths.exit_file(&id);
            let removed = exits::read(&path).and_then(|now| match now {
                Some(now) if now == file => fsx::remove_file(&path),
                _ => Ok(()),
            });
            if let Err(error) = removed {
                warn!("{}", chain(&error));
            }
        }
    }

    /// Leaves a record of an end.
    fn bury(&self, before: &Seen, after: &Seen, file: Option<&ExitFile>) {
        let replica = Arc::clone(&after.replica);
        let Some(exit) = after.facts.last_exit.clone() else { return };
        let death = Death {
            replica: replica.id.clone(),
            name: replica.name.clone(),
            image: replica.template.image.clone(),
            exit,
            started_at_ms: file.map(|file| file.started_at_ms),
            restarts: before.facts.restarts,
            memory_peak: file.and_then(|file| file.memory_peak),
            memory_limit: replica.template.resources.limit_memory,
            health_output: Some(before.facts.health.output.clone()).filter(|output| !output.is_empty()),
            last_lines: Vec::new(),
        };
        let (log, dir) = (self.paths.replica(&replica.id).log(), self.paths.deaths());
        spawn_blocking(move || {
            let lines = cri::tail(&log, deaths::LINES).unwrap_or_default();
            let death = Death { last_lines: lines.into_iter().map(|line| line.text).collect(), ..death };
            if let Err(error) = deaths::record(&dir, &death) {
                warn!("the end of {} is not recorded: {}", death.replica, chain(&error));
            }
        });
    }

    async fn assign(&mut self, assignment: Assignment) {
        if let Err(refused) = self.node.assign(&assignment, &self.me) {
            return warn!("{refused}; it is not carried out");
        }
        self.volumes_going.clear();
        self.volumes_stuck.clear();
        self.problem("volume", None);
        let assignment = Arc::new(assignment);
        // The table does not wait for our disk: netd keeps it by itself. That it is in force is told after both.
        self.tables.send_replace(Some(Arc::new(assignment.network.clone())));
        let (paths, kept) = (self.paths.clone(), Arc::clone(&assignment));
        let result = spawn_blocking(move || Ledger::save_assignment(&paths, &kept)).await;
        self.problem(
            "assignment",
            match result {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("the assignment cannot be kept: {}", chain(&error))),
                Err(error) => Some(format!("the assignment cannot be kept: {error}")),
            },
        );
    }

    fn remove_volume(&mut self, name: String) {
        if !self.volumes_going.insert(name.clone()) {
            return;
        }
        let (dir, told) = (self.paths.volumes(), self.told.clone());
        info!("remove volume {name}");
        spawn_blocking(move || {
            let result = volumes::remove(&dir, &name).map_err(|error| chain(&error));
            let _ = told.send(Event::VolumeRemoved(name, result)); // the daemon may have ended
        });
    }

    fn running(&self) -> Vec<(ReplicaId, u64)> {
        let running = |(id, seen): (&ReplicaId, &Seen)| match seen.facts.process {
            Process::Running { started_ms } => Some((id.clone(), started_ms)),
            Process::Absent | Process::Ended { .. } => None,
        };
        self.node.observed.iter().filter_map(running).collect()
    }

    /// Asks the runtime whether what should run does.
    fn audit(&mut self) {
        for name in std::mem::take(&mut self.volumes_stuck) {
            self.volumes_going.remove(&name);
        }
        let should = self.running();
        if should.is_empty() {
            return;
        }
        let (runtime, told, paths) = (Arc::clone(&self.runtime), self.told.clone(), self.paths.clone());
        tokio::spawn(async move {
            let listed = match runtime.list().await {
                Ok(listed) => listed,
                Err(error) => return warn!("cannot look at what runs: {}", error.words()),
            };
            let runs: BTreeSet<&str> = listed.iter().filter(|c| c.runs()).map(|c| c.id.as_str()).collect();
            // One whose exit file is there or about to be is found by that.
            let lost = |id: &ReplicaId| !runs.contains(id.as_str()) && !paths.exit_file(id).exists();
            let missing: Vec<_> = should.into_iter().filter(|(id, _)| lost(id)).collect();
            if !missing.is_empty() {
                tokio::time::sleep(RESCAN).await;
                let missing = missing.into_iter().filter(|(id, _)| !paths.exit_file(id).exists()).collect();
                let _ = told.send(Event::Missing(missing)); // the daemon may have ended
            }
        });
    }

    /// Looks for images whose pull failed: `gantry load` may have brought them, and the next try may be far off.
    fn arrivals(&self) {
        let wanted = self.node.images_wanted();
        if wanted.is_empty() {
            return;
        }
        let (actor, told) = (Arc::clone(&self.actor), self.told.clone());
        tokio::spawn(async move {
            let arrived = actor.arrived(&wanted).await;
            if !arrived.is_empty() {
                let _ = told.send(Event::Arrived(arrived)); // the daemon may have ended
            }
        });
    }

    fn measure(&mut self) {
        // One look at a time: a slow disk must not pile them up.
        let Some(mut meter) = self.meter.take() else { return };
        let running: Vec<(ReplicaId, String)> = self
            .running()
            .into_iter()
            .filter_map(|(id, _)| Some((id.clone(), self.actor.cgroup(&self.node.observed.get(&id)?.replica))))
            .collect();
        let (hierarchies, paths, told) = (self.hierarchies.clone(), self.paths.clone(), self.told.clone());
        spawn_blocking(move || {
            let replicas = running.into_iter().map(|(id, cgroup)| (id, hierarchies.usage(&cgroup))).collect();
            let (memory, cpu) = meter.look();
            let volumes = volumes::list(&paths.volumes()).unwrap_or_default();
            let disk = node::disk_problem(paths.data_dir());
            let at = Instant::now();
            let measured = Measured { at, replicas, memory, cpu, meter, volumes, disk };
            let _ = told.send(Event::Measured(measured)); // the daemon may have ended
        });
    }

    fn measured(&mut self, now: Measured) {
        let before = self.measured.take();
        self.usage = now
            .replicas
            .iter()
            .map(|(id, usage)| {
                let cpu = before.as_ref().and_then(|(at, replicas)| {
                    let spent_ns = usage.cpu_ns.saturating_sub(replicas.get(id)?.cpu_ns);
                    (u128::from(spent_ns) * 1000).checked_div((now.at - *at).as_nanos())
                });
                (id.clone(), (usage.memory, MilliCpu(cpu.unwrap_or(0) as u32)))
            })
            .collect();
        self.measured = Some((now.at, now.replicas));
        self.meter = Some(now.meter);
        self.problem("disk", now.disk);
        self.reports.send_if_modified(|report| {
            (report.memory_used, report.cpu_used) = (now.memory, now.cpu);
            let changed = report.volumes != now.volumes;
            report.volumes = now.volumes;
            changed
        });
    }

    /// Puts what is true now where the stream finds it; wakes it only for news, not for usage.
    fn publish(&self) {
        let mut replicas = plan::statuses(&self.node);
        for status in &mut replicas {
            (status.memory_used, status.cpu_used) = self.usage.get(&status.id).copied().unwrap_or_default();
            if let Some(Seen { replica, facts }) = self.node.observed.get(&status.id)
                && facts.busy == Some(Step::Prepare)
            {
                status.message = self.actor.waits_for(replica).or_else(|| status.message.take());
            }
        }
        let problems: Vec<String> = self.network.problems.iter().chain(self.own_problems.values()).cloned().collect();
        self.reports.send_if_modified(|report| {
            let news = report.applied != self.network.applied
                || report.problems != problems
                || report.replicas.len() != replicas.len()
                || report.replicas.iter().zip(&replicas).any(|(old, new)| news(old, new));
            report.applied = self.network.applied;
            report.problems = problems;
            report.replicas = replicas;
            news
        });
    }
}

async fn changed(watch: &mut Option<Watch>) -> std::io::Result<()> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

fn empty_report() -> Report {
    Report {
        sequence: 0,
        applied: Default::default(),
        replicas: Vec::new(),
        volumes: Vec::new(),
        problems: Vec::new(),
        memory_used: Bytes(0),
        cpu_used: MilliCpu(0),
    }
}

/// Whether more than usage differs.
fn news(old: &ReplicaStatus, new: &ReplicaStatus) -> bool {
    let ReplicaStatus { memory_used, cpu_used, .. } = *old;
    *old != ReplicaStatus { memory_used, cpu_used, ..new.clone() }
}

/// How a process ended, in words.
fn ending(exit: &gantry_api::wire::Exit) -> String {
    match (exit.oom_killed, exit.signal, exit.code) {
        (true, ..) => "over its memory limit".to_owned(),
        (_, Some(signal), _) => format!("signal {signal}"),
        (_, None, Some(code)) => format!("exit code {code}"),
        (_, None, None) => "nobody knows how".to_owned(),
    }
}

/// Brings what is kept in line with what runs; the ends that are news, with their exit files where there are any.
fn adopt(
    node: &mut Node,
    listed: &[crate::act::runtime::Listed],
    paths: &Paths,
    now_ms: u64,
) -> Result<Vec<(ReplicaId, Option<ExitFile>)>, fsx::FileError> {
    let runs: BTreeSet<&str> = listed.iter().filter(|c| c.runs()).map(|c| c.id.as_str()).collect();
    let mut ended = Vec::new();
    for (id, seen) in &mut node.observed {
        let facts = &mut seen.facts;
        facts.clamp_stop(seen.replica.template.stop_grace_ms.0, now_ms);
        let started_ms = match facts.process {
            Process::Running { started_ms } => started_ms,
            Process::Absent | Process::Ended { .. } => now_ms,
        };
        if runs.contains(id.as_str()) {
            facts.adopt(Found::Running(started_ms), now_ms);
            continue;
        }
        let last = facts.last_exit.clone();
        let file = exits::read(&paths.exit_file(id))?;
        facts.adopt(file.clone().map_or(Found::Nothing, |file| Found::Exited(file.exit)), now_ms);
        if facts.last_exit != last {
            ended.push((id.clone(), file));
        }
    }
    Ok(ended)
}
