//! The scheduler's core and the agents' planner together, over a network that loses, doubles and delays messages, on
//! machines that lose power. Every run is its seed: `GANTRY_SEED=n` repeats one, `GANTRY_SEEDS=n` runs so many.
//!
//! While the storm lasts, safety is checked after every step; then the weather clears, and everything must come to
//! rest as it is wanted.

use gantry_agent::model::{Checked, Done, Found, Node as AgentNode, Prepared, Process, Step};
use gantry_agent::plan;
use gantry_api::ids::{AppName, NodeId, ReplicaId, Revision};
use gantry_api::network::{Ipv4Net, Table};
use gantry_api::spec::App;
use gantry_api::wire::{Assignment, Capacity, Exit, Hello, Report};
use gantry_api::{manifest, units};
use gantry_scheduler::core::{Now, Settings, World};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

const STEP_MS: u64 = 25;
const STORM_MS: u64 = 12_000;
const CALM_MS_MAX: u64 = 240_000;
const REST_MS: u64 = 12_000;
const NODES: u32 = 4;

/// splitmix64: a seeded sequence, so that a failing case is its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What is true on one machine, whatever anybody believes of it.
#[derive(Default)]
struct Machine {
    made: BTreeSet<ReplicaId>,
    running: BTreeMap<ReplicaId, u64>,
    exits: BTreeMap<ReplicaId, Exit>,
    volumes: BTreeSet<String>,
    /// Network table in force.
    table: Option<Table>,
}

struct Agent {
    id: NodeId,
    number: u32,
    node: AgentNode,
    machine: Machine,
    under_way: Vec<(u64, gantry_agent::model::Action)>,
    powered: bool,
    cut_until: u64,
    session: u64,
    sequence: u64,
    said: Option<u64>,
    reported: u64,
    dirty: bool,
}

enum Message {
    Hello(u64, Box<Hello>),
    Report(u64, Box<Report>),
    Assign(u64, Arc<Assignment>),
}

struct Sim {
    seed: u64,
    trace: bool,
    random: Random,
    now: u64,
    calm: bool,
    world: World,
    agents: Vec<Agent>,
    air: Vec<(u64, NodeId, Message)>,
    sessions: u64,
    sent: BTreeMap<NodeId, Revision>,
    last_tick: u64,
}

fn settings() -> Settings {
    let net = |text: &str| text.parse::<Ipv4Net>().expect("a net");
    Settings { replica_net: net("10.210.0.0/16"), service_net: net("10.211.0.0/16"), reserved_ports: Vec::new() }
}

fn node_id(number: u32) -> NodeId {
    NodeId::from_random(u64::from(number).to_be_bytes())
}

/// An app of a stateless service with a check, one that depends on it, and one with a volume.
fn app(replicas: u64, version: u64) -> App {
    let text = format!(
        "
name: shop
services:
  web:
    image: web:{version}
    ports: ['8080:80']
    healthcheck: {{test: [CMD, ok], interval: 1s, retries: 2}}
    stop_grace_period: 1s
    deploy: {{replicas: {replicas}, update_config: {{order: start-first}}}}
  front:
    image: front
    depends_on: {{web: {{condition: service_healthy}}}}
    deploy: {{replicas: 2}}
  db:
    image: db:{version}
    volumes: ['data:/data']
volumes: {{data: }}
"
    );
    struct One(String);
    impl manifest::Host for One {
        fn read(&self, path: &Path) -> std::io::Result<String> {
            let found = path.ends_with("compose.yaml").then(|| self.0.clone());
            found.ok_or_else(|| std::io::ErrorKind::NotFound.into())
        }
        fn var(&self, _: &str) -> Option<String> {
            None
        }
    }
    let request = manifest::Request { files: vec!["/x/compose.yaml".into()], ..manifest::Request::default() };
    manifest::load(&request, &One(text)).unwrap_or_else(|problems| panic!("{problems}")).app
}

fn name() -> AppName {
    "shop".parse().expect("a name")
}

impl Agent {
    fn new(number: u32) -> Self {
        Self {
            id: node_id(number),
            number,
            node: AgentNode::default(),
            machine: Machine::default(),
            under_way: Vec::new(),
            powered: true,
            cut_until: 0,
            session: 0,
            sequence: 0,
            said: None,
            reported: 0,
            dirty: true,
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            node: self.id.clone(),
            name: format!("n{}", self.number).parse().expect("a name"),
            version: "0".to_owned(),
            underlay: Ipv4Addr::new(10, 88, 0, 10 + self.number as u8),
            capacity: Capacity { cpu: units::MilliCpu(4000), memory: units::Bytes(8 << 30) },
            labels: BTreeMap::new(),
            arch: "amd64".to_owned(),
            kernel: "6".to_owned(),
        }
    }

    fn report(&mut self) -> Report {
        self.sequence += 1;
        let ids: BTreeSet<&ReplicaId> = self.node.observed.keys().chain(self.node.desired.keys()).collect();
        let status = |id: &ReplicaId| {
            plan::status(id, self.node.desired.get(id).map(|replica| &**replica), self.node.observed.get(id))
        };
        Report {
            sequence: self.sequence,
            applied: self.machine.table.as_ref().map_or(Revision(0), |table| table.revision),
            replicas: ids.into_iter().map(status).collect(),
            volumes: self.machine.volumes.iter().cloned().collect(),
            problems: Vec::new(),
            memory_used: units::Bytes(0),
            cpu_used: units::MilliCpu(0),
        }
    }

    /// The agent is killed and comes back with what it keeps; with `reboot`, every process is gone too.
    fn restart(&mut self, reboot: bool, now: u64) {
        if reboot {
            self.machine.running.clear();
        }
        self.under_way.clear();
        self.said = None;
        for (id, seen) in &mut self.node.observed {
            let kept = serde_json::to_string(&seen.facts).expect("facts");
            seen.facts = serde_json::from_str(&kept).expect("facts");
            let found = match (self.machine.running.get(id), self.machine.exits.get(id)) {
                (Some(since), _) => Found::Running(*since),
                (None, Some(exit)) => Found::Exited(exit.clone()),
                (None, None) => Found::Nothing,
            };
            seen.facts.adopt(found, now);
        }
    }

    fn die(&mut self, id: &ReplicaId, code: Option<i32>, now: u64) {
        if self.machine.running.remove(id).is_some() {
            let signal = code.is_none().then_some(9);
            let exit = Exit { code, signal, oom_killed: false, at_ms: now, cause: None };
            self.machine.exits.insert(id.clone(), exit);
        }
    }

    fn carry_out(&mut self, action: &gantry_agent::model::Action, luck: u64, now: u64) -> Result<Done, String> {
        let id = &action.replica;
        if luck == 0 {
            return Err("no luck".to_owned());
        }
        match &action.step {
            Step::Prepare => {
                self.machine.made.insert(id.clone());
                if let Some(replica) = self.node.desired.get(id) {
                    self.machine.volumes.extend(plan::volumes(replica));
                }
                let order = id.as_str().bytes().fold(self.number, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
                let address = Ipv4Addr::from(0x0ad2_0000 | (self.number << 8) | (2 + order % 250));
                Ok(Done::Prepared(Prepared {
                    image: "i".to_owned(),
                    stop_signal: None,
                    address: Some(address),
                    health_check: None,
                }))
            }
            Step::Start | Step::Restart => {
                assert!(self.machine.made.contains(id), "{action}: started without being prepared");
                assert!(!self.machine.running.contains_key(id), "{action}: it runs already");
                self.machine.exits.remove(id);
                self.machine.running.insert(id.clone(), now);
                Ok(Done::Started)
            }
            Step::Stop { .. } | Step::Kill => {
                let hard = action.step == Step::Kill;
                if hard || luck != 1 {
                    self.die(&id.clone(), (!hard).then_some(0), now);
                }
                Ok(Done::Done)
            }
            Step::Check => match self.node.observed.get(id).map(|seen| seen.facts.process.clone()) {
                Some(Process::Running { started_ms }) => {
                    Ok(Done::Checked(Checked { started_ms, passed: luck != 1, output: String::new() }))
                }
                _ => Err("it does not run".to_owned()),
            },
            Step::Remove => {
                self.machine.made.remove(id);
                self.machine.running.remove(id);
                self.machine.exits.remove(id);
                Ok(Done::Done)
            }
            Step::Cancel => Ok(Done::Done),
        }
    }
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut world = World::new(settings(), Revision(0), Now(0));
        let agents: Vec<Agent> = (1..=NODES).map(Agent::new).collect();
        for agent in &agents {
            let hello = agent.hello();
            world.join(&agent.id, &hello.name, "key", hello.underlay, Now(0)).expect("it joins");
        }
        Self {
            seed,
            trace: std::env::var_os("GANTRY_TRACE").is_some(),
            random: Random(seed),
            now: 1_000_000,
            calm: false,
            world,
            agents,
            air: Vec::new(),
            sessions: 0,
            sent: BTreeMap::new(),
            last_tick: 0,
        }
    }

    fn fail(&self, what: &str) -> ! {
        panic!("seed {} at {} ms: {what}\nrepeat with GANTRY_SEED={}", self.seed, self.now, self.seed)
    }

    /// A message leaves; it may be lost, doubled or late.
    fn send(&mut self, node: &NodeId, make: impl Fn() -> Message) {
        let copies = if self.calm {
            1
        } else {
            match self.random.below(20) {
                0 => 0,
                1 => 2,
                _ => 1,
            }
        };
        for _ in 0..copies {
            let late = if self.calm { 1 } else { self.random.below(150) };
            self.air.push((self.now + late, node.clone(), make()));
        }
    }

    /// The scheduler's process is killed: it comes back with what the store has.
    fn restart_scheduler(&mut self) {
        let now = Now(self.now);
        let mut fresh = World::new(self.world.settings.clone(), Revision(self.world.revision.0 + 1000), now);
        fresh.counters = self.world.counters.clone();
        fresh.apps = self.world.apps.clone();
        fresh.templates = self.world.templates.clone();
        fresh.pins = self.world.pins.clone();
        fresh.condemned = self.world.condemned.clone();
        for node in self.world.nodes.values() {
            fresh.load_node(node.record.clone(), now);
        }
        for replica in self.world.replicas.values() {
            fresh.load_replica(replica.record.clone(), now);
        }
        fresh.hold(now);
        self.world = fresh;
        self.air.retain(|(_, _, message)| matches!(message, Message::Assign(..)));
        for agent in &mut self.agents {
            agent.said = None;
        }
    }

    fn user(&mut self, replicas: u64, version: u64) {
        match self.world.prepare(app(replicas, version)) {
            Ok(deployment) => {
                self.world.carry_out(deployment, Now(self.now));
            }
            Err(error) => self.fail(&format!("a deploy was refused: {error}")),
        }
    }

    fn weather(&mut self) {
        if self.random.one_in(100) {
            let (replicas, version) = (1 + self.random.below(6), self.random.below(3));
            self.user(replicas, version);
        }
        if self.random.one_in(400) {
            let _ = self.world.remove(&name(), false);
        }
        if self.random.one_in(150) {
            self.restart_scheduler();
        }
        let now = self.now;
        for i in 0..self.agents.len() {
            let roll = self.random.below(400);
            let span = 500 + self.random.below(5_000);
            let agent = &mut self.agents[i];
            match roll {
                0 => {
                    agent.powered = !agent.powered;
                    agent.restart(true, now);
                }
                1 | 2 => agent.restart(false, now),
                3 => agent.restart(true, now),
                4 | 5 => agent.cut_until = now + span,
                6..=12 => {
                    let victims: Vec<ReplicaId> = agent.machine.running.keys().cloned().collect();
                    if let Some(victim) = victims.get(roll as usize % victims.len().max(1)) {
                        agent.die(victim, Some(1), now);
                    }
                }
                _ => {}
            }
        }
    }

    fn clear_up(&mut self) {
        self.calm = true;
        for agent in &mut self.agents {
            agent.powered = true;
            agent.cut_until = 0;
        }
    }

    fn step(&mut self) {
        self.now += STEP_MS;
        if !self.calm {
            self.weather();
        }
        self.deliver();
        for i in 0..self.agents.len() {
            self.work(i);
        }
        if self.now >= self.last_tick + 100 || self.random.one_in(3) {
            self.last_tick = self.now;
            self.decide();
        }
        self.check();
    }

    fn decide(&mut self) {
        let step = self.world.step(Now(self.now));
        for (node, assignment) in step.assignments {
            let before = self.sent.insert(node.clone(), assignment.revision);
            if before.is_some_and(|before| before > assignment.revision) {
                self.fail(&format!("revision went back on {node}: {before:?} then {}", assignment.revision));
            }
            let session = self.world.nodes[&node].session;
            self.send(&node, || Message::Assign(session, Arc::clone(&assignment)));
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let mut due: Vec<(u64, NodeId, Message)> = self.air.extract_if(.., |(at, ..)| *at <= now).collect();
        due.sort_by_key(|(at, ..)| *at);
        for (_, id, message) in due {
            let Some(at) = self.agents.iter().position(|agent| agent.id == id) else { continue };
            if !self.agents[at].powered || self.agents[at].cut_until > now {
                continue;
            }
            match message {
                Message::Hello(session, hello) => {
                    if self.world.hello(session, *hello, Now(now)).is_ok()
                        && let Some(assignment) = self.world.assignment(&id).filter(|_| !self.world.holding(Now(now)))
                    {
                        self.send(&id, || Message::Assign(session, Arc::clone(&assignment)));
                    }
                }
                Message::Report(session, report) => {
                    self.world.report(&id, session, *report, Now(now));
                }
                Message::Assign(session, assignment) => {
                    let agent = &mut self.agents[at];
                    if session == agent.session && agent.node.assign(&assignment, &id).is_ok() {
                        agent.machine.table = Some(assignment.network.clone());
                        agent.dirty = true;
                    }
                }
            }
        }
    }

    fn work(&mut self, at: usize) {
        let now = self.now;
        if !self.agents[at].powered {
            return;
        }
        let agent = &mut self.agents[at];
        let before = agent.node.observed.clone();
        let exits: Vec<(ReplicaId, Exit)> =
            agent.machine.exits.iter().map(|(id, exit)| (id.clone(), exit.clone())).collect();
        for (id, exit) in exits {
            agent.node.exited(&id, exit, now);
        }
        for action in plan::plan(&agent.node.desired, &agent.node.observed, now) {
            agent.node.begin(&action, now);
            let late = if self.calm { 5 } else { self.random.below(400) };
            agent.under_way.push((now + late, action));
        }
        let due: Vec<_> = agent.under_way.extract_if(.., |(due, _)| *due <= now).map(|(_, action)| action).collect();
        for action in due {
            let luck = if self.calm { 9 } else { self.random.below(12) };
            let outcome = agent.carry_out(&action, luck, now);
            if self.trace {
                eprintln!("{now} n{} {action}: {outcome:?}", agent.number);
            }
            agent.node.end(&action, outcome, now);
        }
        for volume in plan::volumes_to_remove(&agent.node) {
            agent.machine.volumes.remove(&volume);
        }
        agent.dirty |= before != agent.node.observed;
        self.talk(at);
    }

    fn talk(&mut self, at: usize) {
        let now = self.now;
        if self.agents[at].said.is_none() {
            self.sessions += 1;
            let session = self.sessions;
            let agent = &mut self.agents[at];
            (agent.session, agent.said, agent.sequence, agent.dirty) = (session, Some(now), 0, true);
            let (id, hello) = (agent.id.clone(), agent.hello());
            self.send(&id, || Message::Hello(session, Box::new(hello.clone())));
        }
        let agent = &mut self.agents[at];
        // A stream that lost its first words is dropped and dialled again.
        if self.world.nodes[&agent.id].session != agent.session && agent.said.is_some_and(|at| now > at + 1_000) {
            agent.said = None;
        }
        if agent.dirty || now >= agent.reported + 500 {
            (agent.dirty, agent.reported) = (false, now);
            let (id, session, report) = (agent.id.clone(), agent.session, agent.report());
            self.send(&id, || Message::Report(session, Box::new(report.clone())));
        }
    }

    /// What must hold at every moment.
    fn check(&self) {
        let mut holders: BTreeMap<String, &Agent> = BTreeMap::new();
        for agent in &self.agents {
            for id in agent.machine.running.keys().filter(|id| id.as_str().starts_with("shop-db-")) {
                let place = id.as_str().rsplit_once('-').map_or("", |(place, _)| place).to_owned();
                if let Some(other) = holders.insert(place, agent).filter(|other| other.id != agent.id) {
                    self.fail(&format!("{id} has a volume and runs on {} and {}", other.number, agent.number));
                }
            }
        }
        let mut seen = BTreeSet::new();
        for id in self.agents.iter().flat_map(|agent| agent.machine.running.keys()) {
            if !seen.insert(id) {
                self.fail(&format!("{id} runs on two nodes"));
            }
        }
    }

    /// What is not yet as it is wanted; empty when all is.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let wanted = self.world.apps.get(&name()).filter(|app| app.removing.is_none());
        let mut running: BTreeMap<(&str, u64), u32> = BTreeMap::new();
        for replica in self.world.replicas.values() {
            let record = &replica.record;
            let home = self.agents.iter().find(|agent| agent.id == record.node).expect("a home");
            if home.machine.running.contains_key(&record.id) {
                *running.entry((record.name.service.as_str(), record.generation)).or_default() += 1;
            } else {
                missing.push(format!("{} does not run", record.id));
            }
        }
        for (service, spec) in wanted.iter().flat_map(|app| &app.spec.services) {
            let generation = wanted.map_or(0, |app| app.services[service].generation);
            let count = running.remove(&(service.as_str(), generation)).unwrap_or_default();
            if count != spec.replicas {
                missing.push(format!("{service}: {count} of {} run as they should", spec.replicas));
            }
        }
        missing.extend(running.into_keys().map(|key| format!("{key:?} runs and should not")));
        for agent in &self.agents {
            let all: BTreeSet<&ReplicaId> = agent.machine.made.iter().collect();
            let known: BTreeSet<&ReplicaId> = self
                .world
                .replicas
                .values()
                .filter(|replica| replica.record.node == agent.id)
                .map(|replica| &replica.record.id)
                .collect();
            if all != known {
                missing.push(format!("n{} has {all:?}, the scheduler knows {known:?}", agent.number));
            }
            missing.extend(self.table_errors(agent));
        }
        missing
    }

    /// A node's table must offer exactly what runs.
    fn table_errors(&self, agent: &Agent) -> Vec<String> {
        let Some(table) = &agent.machine.table else { return vec![format!("n{} has no table", agent.number)] };
        let offered: BTreeSet<&ReplicaId> = table
            .services
            .iter()
            .flat_map(|service| &service.endpoints)
            .filter(|endpoint| endpoint.ready)
            .map(|endpoint| &endpoint.replica)
            .collect();
        let running: BTreeSet<&ReplicaId> = self.agents.iter().flat_map(|agent| agent.machine.running.keys()).collect();
        if offered == running {
            return Vec::new();
        }
        vec![format!("n{} offers {offered:?}, there run {running:?}", agent.number)]
    }

    fn run(seed: u64) {
        let mut sim = Self::new(seed);
        sim.user(3, 0);
        let end = sim.now + STORM_MS;
        while sim.now < end {
            sim.step();
        }
        sim.clear_up();
        let version = sim.random.below(3);
        // A paused change is a rest of its own kind; the user goes on with another version.
        sim.user(4, 3 + version);
        let deadline = sim.now + CALM_MS_MAX;
        // At rest for so long that nobody waits for anything: replicas that are evened out over returned nodes move
        // one at a time.
        let mut rest_since = None;
        while rest_since.is_none_or(|since| sim.now < since + REST_MS) {
            for _ in 0..20 {
                sim.step();
            }
            let missing = sim.missing();
            if missing.is_empty() {
                rest_since.get_or_insert(sim.now);
                continue;
            }
            rest_since = None;
            if sim.now > deadline {
                sim.fail(&format!("not at rest:\n{}\n{:#?}", missing.join("\n"), sim.world.messages));
            }
        }
        let before = sim.world.revision;
        for _ in 0..120 {
            sim.step();
        }
        if sim.world.revision != before {
            sim.fail("it does not come to rest: revisions go on");
        }
    }
}

#[test]
fn every_storm_ends_in_what_was_wanted() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("GANTRY_SEED") {
        return Sim::run(seed);
    }
    let seeds = number("GANTRY_SEEDS").unwrap_or(1_000);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || (thread..seeds).step_by(threads as usize).for_each(Sim::run));
        }
    });
}
