//! Tables for decisions, and what must always hold of them. A cluster in a few words: [`Lab`] carries assignments out
//! at once, as well-behaved agents would, unless told otherwise.

use super::*;
use gantry_api::http::{ChangeAction, NodeState};
use gantry_api::ids::{NodeId, ReplicaId, Revision};
use gantry_api::images::{HeldImage, ImageNews, Sources, canonical};
use gantry_api::spec::{
    App, Condition, Constraint, ConstraintKey, Mount, MountSource, OnFailure, Placement, Protocol, PublishedPort,
    PullPolicy, Service, Template, UpdateOrder,
};
use gantry_api::units::{Bytes, MilliCpu, Millis};
use gantry_api::wire::{Assignment, Capacity, Hello, ReplicaState, ReplicaStatus, Report};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

struct Lab {
    world: World,
    now: u64,
    sequence: u64,
    assignments: BTreeMap<NodeId, Arc<Assignment>>,
    /// Nodes that report nothing.
    silent: BTreeSet<NodeId>,
    /// Nodes that never get a table into force.
    stuck: BTreeSet<NodeId>,
    /// Images whose replicas do something else than run well.
    odd: BTreeMap<String, ReplicaState>,
    unready: BTreeSet<String>,
    volumes: BTreeMap<NodeId, BTreeSet<String>>,
    notes: Vec<String>,
    placed: BTreeSet<ReplicaId>,
    /// Where each node was told to fetch images, one line each time.
    advice: Vec<String>,
}

fn id(index: u8) -> NodeId {
    NodeId::from_random([index; 8])
}

impl Lab {
    fn new(nodes: u8) -> Self {
        let settings = Settings {
            replica_net: "10.210.0.0/16".parse().unwrap(),
            service_net: "10.211.0.0/16".parse().unwrap(),
            reserved_ports: vec![7400],
        };
        let mut lab = Self {
            world: World::new(settings, Revision(0), Now(0)),
            now: 10_000,
            sequence: 0,
            assignments: BTreeMap::new(),
            silent: BTreeSet::new(),
            stuck: BTreeSet::new(),
            odd: BTreeMap::new(),
            unready: BTreeSet::new(),
            volumes: BTreeMap::new(),
            notes: Vec::new(),
            placed: BTreeSet::new(),
            advice: Vec::new(),
        };
        for index in 1..=nodes {
            lab.join(index);
        }
        lab
    }

    fn join(&mut self, index: u8) {
        let name = format!("n{index}").parse().unwrap();
        let underlay = Ipv4Addr::new(192, 0, 2, index);
        let now = Now(self.now);
        self.world.join(&id(index), &name, "key", underlay, now).unwrap();
        let label = if index == 1 { "ssd" } else { "disk" };
        let hello = Hello {
            node: id(index),
            name,
            version: String::new(),
            underlay,
            capacity: Capacity { cpu: MilliCpu(4000), memory: Bytes(1000) },
            labels: BTreeMap::from([("disk".to_owned(), label.to_owned())]),
            arch: "amd64".to_owned(),
            kernel: String::new(),
        };
        self.world.hello(1, hello, now).unwrap();
        self.run(10);
    }

    /// Lets `ms` pass in small steps: reports, then a step of the scheduler.
    fn run(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.now < end {
            self.now += 10;
            if self.now.is_multiple_of(100) || ms == 10 {
                self.report();
            }
            self.step();
        }
    }

    fn step(&mut self) {
        let step = self.world.step(Now(self.now));
        for effects in &step.effects {
            self.notes.extend(effects.notes.iter().map(|n| format!("{} {}: {}", n.kind, n.subject, n.message)));
        }
        for (node, sources) in &step.sources {
            self.advice.push(advice(&self.world, node, sources));
        }
        let told = !step.assignments.is_empty();
        for (node, assignment) in step.assignments {
            let before = self.assignments.insert(node, Arc::clone(&assignment));
            assert!(before.is_none_or(|before| before.revision < assignment.revision));
        }
        self.placed.extend(self.world.replicas.keys().cloned());
        if told {
            self.report();
        }
    }

    fn report(&mut self) {
        let nodes: Vec<NodeId> = self.world.nodes.keys().filter(|id| !self.silent.contains(id)).cloned().collect();
        for node in nodes {
            self.sequence += 1;
            let assignment = self.assignments.get(&node).cloned();
            let applied = assignment.as_ref().filter(|_| !self.stuck.contains(&node));
            let mut replicas = Vec::new();
            for (index, replica) in assignment.iter().flat_map(|a| &a.replicas).enumerate() {
                let image = &replica.template.image;
                for mount in &replica.template.mounts {
                    if let MountSource::Volume { name } = &mount.source {
                        let volume = format!("{}_{name}", replica.name.app);
                        self.volumes.entry(node.clone()).or_default().insert(volume);
                    }
                }
                let state = self.odd.get(image).copied().unwrap_or(ReplicaState::Running);
                replicas.push(ReplicaStatus {
                    id: replica.id.clone(),
                    state,
                    ready: state == ReplicaState::Running && !self.unready.contains(image),
                    healthy: None,
                    address: Some(Ipv4Addr::new(10, 210, 1, 2 + index as u8)),
                    message: None,
                    restarts: 0,
                    started_at_ms: None,
                    last_exit: None,
                    memory_used: Bytes(0),
                    cpu_used: MilliCpu(0),
                });
            }
            for volume in assignment.iter().flat_map(|a| &a.remove_volumes) {
                self.volumes.entry(node.clone()).or_default().remove(volume);
            }
            let report = Report {
                sequence: self.sequence,
                applied: applied.map_or(Revision(0), |a| a.revision),
                replicas,
                volumes: self.volumes.get(&node).into_iter().flatten().cloned().collect(),
                problems: Vec::new(),
                memory_used: Bytes(0),
                cpu_used: MilliCpu(0),
            };
            self.world.report(&node, 1, report, Now(self.now));
        }
    }

    fn deploy(&mut self, spec: App) -> Vec<ChangeAction> {
        let made = self.world.prepare(spec).unwrap();
        let (_, plan) = self.world.carry_out(made, Now(self.now));
        plan.changes.iter().map(|change| change.action).collect()
    }

    fn refused(&self, spec: App) -> String {
        self.world.prepare(spec).unwrap_err().to_string()
    }

    /// `n1:1,3 n2:2`: wanted numbers of a service by node.
    fn where_is(&self, service: &str) -> String {
        let mut nodes: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for replica in self.world.replicas.values().filter(|r| r.record.name.service.as_str() == service && r.wanted())
        {
            let node = self.world.nodes[&replica.record.node].record.name.to_string();
            nodes.entry(node).or_default().push(replica.record.name.number);
        }
        let text = |(node, mut numbers): (String, Vec<u32>)| {
            numbers.sort_unstable();
            format!("{node}:{}", numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
        };
        nodes.into_iter().map(text).collect::<Vec<_>>().join(" ")
    }

    fn message(&self, service: &str) -> String {
        let key = ("shop".parse().unwrap(), service.parse().unwrap());
        self.world.messages.get(&key).cloned().unwrap_or_default()
    }

    fn settled(&self) -> bool {
        self.world.show_apps().iter().flat_map(|app| &app.services).all(|service| service.settled)
    }

    fn ready_in(&self, node: u8) -> usize {
        let services = &self.assignments[&id(node)].network.services;
        services.iter().flat_map(|s| &s.endpoints).filter(|e| e.ready).count()
    }
}

/// `n2: web:1 from n1 ~n3`, `~` for one that fetches it too.
fn advice(world: &World, node: &NodeId, sources: &Sources) -> String {
    let name = |id: &NodeId| world.nodes[id].record.name.to_string();
    let mut text = format!("{}:", name(node));
    for image in &sources.images {
        let digest = image.digest.as_ref().map(|digest| format!("={digest}")).unwrap_or_default();
        text += &format!(" {}{digest}", image.name.trim_start_matches("docker.io/library/"));
        for source in &image.nodes {
            text += &format!(" {}{}", if source.whole { "" } else { "~" }, name(&source.node));
        }
    }
    text
}

/// Tells that a node holds an image under a digest.
fn holds(lab: &mut Lab, node: u8, name: &str, digest: &str, since_ms: u64) {
    let image = HeldImage { name: canonical(name), digest: digest.to_owned(), manifest: digest.to_owned(), since_ms };
    lab.world.images(&id(node), 1, ImageNews { whole: false, held: vec![image], gone: Vec::new() });
}

#[test]
fn nodes_are_told_where_the_images_are_that_they_lack() {
    let web = |replicas, pull| {
        let mut made = service("web:1", replicas);
        made.template.pull = pull;
        shop(&[("web", &made)])
    };
    let (missing, always, never) = (PullPolicy::Missing, PullPolicy::Always, PullPolicy::Never);
    type Held<'a> = &'a [(u8, &'a str, u64)];
    for (why, pull, held, silent, expected) in [
        ("nobody has it", missing, &[] as Held<'_>, None, vec!["n1: web:1", "n2: web:1 ~n1", "n3: web:1 ~n1"]),
        ("one has it", missing, &[(2, "a", 1)], None, vec!["n1: web:1=a n2", "n3: web:1=a n2 ~n1"]),
        ("all have it", missing, &[(1, "a", 1), (2, "a", 1), (3, "a", 1)], None, vec![]),
        ("the last that came counts", missing, &[(1, "a", 1), (2, "b", 2)], None, vec!["n3: web:1=b n2"]),
        (
            "asked for again",
            always,
            &[(1, "a", 1), (2, "b", 2)],
            None,
            vec!["n1: web:1=b", "n2: web:1=b ~n1", "n3: web:1=b ~n1"],
        ),
        ("never fetched", never, &[(1, "a", 1)], None, vec![]),
        ("one that has it is silent", missing, &[(2, "a", 1)], Some(2), vec!["n1: web:1", "n3: web:1 ~n1"]),
    ] {
        let mut lab = Lab::new(3);
        lab.run(200);
        for (node, digest, since_ms) in held {
            holds(&mut lab, *node, "web:1", digest, *since_ms);
        }
        lab.odd.insert("web:1".to_owned(), ReplicaState::Preparing);
        lab.silent.extend(silent.map(id));
        lab.run(if silent.is_some() { 1_500 } else { 100 });
        lab.advice.clear();
        let copies = if silent.is_some() { 2 } else { 3 };
        lab.deploy(web(copies, pull));
        lab.step();
        assert_eq!(lab.advice, expected, "{why}");
        lab.advice.clear();
        lab.run(300);
        assert_eq!(lab.advice, [""; 0], "{why}: said once");
        // Whoever holds it needs no more advice, and is a source for the others.
        if held.is_empty() {
            holds(&mut lab, 1, "web:1", "a", 1);
            lab.step();
            assert_eq!(lab.advice, ["n1:", "n2: web:1=a n1", "n3: web:1=a n1 ~n2"], "{why}");
        }
    }
}

fn service(image: &str, replicas: u32) -> Service {
    Service {
        template: Template { image: image.to_owned(), ..Template::default() },
        replicas,
        ports: Vec::new(),
        depends_on: BTreeMap::new(),
        placement: Placement::default(),
        update: gantry_api::spec::Update::default(),
        networks: BTreeMap::new(),
        labels: BTreeMap::new(),
    }
}

fn bound(image: &str, replicas: u32) -> Service {
    let mut made = service(image, replicas);
    let source = MountSource::Volume { name: "data".parse().unwrap() };
    made.template.mounts.push(Mount { target: "/data".to_owned(), source, read_only: false });
    made
}

fn shop(services: &[(&str, &Service)]) -> App {
    App {
        name: "shop".parse().unwrap(),
        services: services.iter().map(|(name, s)| (name.parse().unwrap(), (*s).clone())).collect(),
        volumes: BTreeMap::from([("data".parse().unwrap(), Default::default())]),
    }
}

#[test]
fn copies_are_placed_by_rules_then_spread() {
    let with = |change: &dyn Fn(&mut Service)| {
        let mut made = service("web:1", 3);
        change(&mut made);
        made
    };
    let rule = |equal| Constraint { key: ConstraintKey::Label("disk".to_owned()), equal, value: "ssd".to_owned() };
    for (why, spec, nodes, want, message) in [
        ("spread", with(&|_| ()), 3, "n1:1 n2:2 n3:3", ""),
        ("no node", with(&|_| ()), 0, "", "shop-web-1 cannot be placed: no node has joined"),
        ("a rule", with(&|s| s.placement.constraints.push(rule(true))), 3, "n1:1,2,3", ""),
        ("not a rule", with(&|s| s.placement.constraints.push(rule(false))), 2, "n2:1,2,3", ""),
        (
            "memory",
            with(&|s| s.template.resources.reserve_memory = Bytes(600)),
            2,
            "n1:1 n2:2",
            "shop-web-3 cannot be placed: 2 nodes: 2 short of memory (n1, n2)",
        ),
        (
            "processors",
            with(&|s| s.template.resources.reserve_cpu = MilliCpu(2001)),
            1,
            "n1:1",
            "shop-web-2 cannot be placed: 1 node: 1 short of cpu (n1)",
        ),
        (
            "per node",
            with(&|s| s.placement.max_per_node = Some(1)),
            2,
            "n1:1 n2:2",
            "shop-web-3 cannot be placed: 2 nodes: 2 full by max_replicas_per_node (n1, n2)",
        ),
    ] {
        let mut lab = Lab::new(nodes);
        lab.deploy(shop(&[("web", &spec)]));
        lab.run(1_000);
        assert_eq!((lab.where_is("web").as_str(), lab.message("web").as_str()), (want, message), "{why}");
        assert!(plan(&lab.world, Now(lab.now)).is_empty(), "{why}: placing again moves nothing");
    }
}

#[test]
fn reservations_of_others_are_seen() {
    let mut lab = Lab::new(2);
    let mut big = service("big:1", 1);
    big.template.resources.reserve_memory = Bytes(800);
    lab.deploy(shop(&[("big", &big), ("web", &service("web:1", 1))]));
    lab.run(500);
    assert_eq!((lab.where_is("big").as_str(), lab.where_is("web").as_str()), ("n1:1", "n2:1"));
}

#[test]
fn scaling_down_takes_the_newest_of_the_fullest_node() {
    for (why, spec, from, to, want) in [
        ("stateless", service("web:1", 4), 4, 3, "n1:1,3 n2:2"),
        ("fullest first", service("web:1", 3), 3, 2, "n1:1 n2:2"),
        ("with volumes the highest", bound("web:1", 4), 4, 2, "n1:1 n2:2"),
        ("to none", service("web:1", 2), 2, 0, ""),
    ] {
        let mut lab = Lab::new(2);
        lab.deploy(shop(&[("web", &Service { replicas: from, ..spec.clone() })]));
        lab.run(500);
        lab.deploy(shop(&[("web", &Service { replicas: to, ..spec })]));
        lab.run(500);
        assert_eq!(lab.where_is("web"), want, "{why}");
        assert!(lab.settled(), "{why}");
    }
}

#[test]
fn silence_makes_a_node_suspect_then_lost() {
    let mut lab = Lab::new(2);
    lab.deploy(shop(&[("web", &service("web:1", 4))]));
    lab.run(500);
    assert_eq!(lab.ready_in(1), 4);
    lab.silent.insert(id(2));
    for (ms, state, ready, want) in [
        (900, NodeState::Ready, 4, "n1:1,3 n2:2,4"),
        (300, NodeState::Suspect, 2, "n1:1,3 n2:2,4"),
        (500, NodeState::Suspect, 2, "n1:1,3 n2:2,4"),
        (600, NodeState::Lost, 4, "n1:1,2,3,4"),
    ] {
        lab.run(ms);
        assert_eq!((lab.world.nodes[&id(2)].state, lab.ready_in(1)), (state, ready));
        assert_eq!(lab.where_is("web"), want);
    }
    // It returns, and is told to run nothing of what was replaced; then the service is evened out.
    let before = lab.placed.clone();
    lab.silent.clear();
    lab.run(100);
    assert!(lab.assignments[&id(2)].replicas.iter().all(|replica| !before.contains(&replica.id)));
    lab.run(10_000);
    assert!(lab.settled());
    assert_eq!(lab.where_is("web").matches("n2:").count(), 1);
    let moved = lab.notes.iter().filter(|note| note.contains("evens out")).count();
    assert_eq!(moved, 2, "two moves, no more");
}

#[test]
fn a_copy_that_cannot_be_replaced_stays_with_its_lost_node() {
    let mut lab = Lab::new(2);
    let mut web = service("web:1", 2);
    web.placement.max_per_node = Some(1);
    lab.deploy(shop(&[("web", &web)]));
    lab.run(500);
    let ids: Vec<ReplicaId> = lab.world.replicas.keys().cloned().collect();
    lab.silent.insert(id(2));
    lab.run(4_000);
    assert_eq!(
        lab.message("web"),
        "shop-web-2 cannot be placed: 2 nodes: 1 full by max_replicas_per_node (n1), 1 lost (n2)"
    );
    lab.silent.clear();
    lab.run(500);
    assert_eq!(lab.world.replicas.keys().cloned().collect::<Vec<_>>(), ids, "it is kept, not restarted");
    assert!(lab.settled());
}

#[test]
fn a_pause_of_the_scheduler_is_not_silence_of_the_nodes() {
    let mut lab = Lab::new(2);
    lab.deploy(shop(&[("web", &service("web:1", 2))]));
    lab.run(500);
    let before = lab.placed.clone();
    lab.now += 60_000;
    lab.step();
    lab.run(1_000);
    assert_eq!(lab.placed, before);
    assert!(!lab.notes.iter().any(|note| note.starts_with("node.suspect")));
}

#[test]
fn data_binds_a_copy_to_its_node() {
    let mut lab = Lab::new(2);
    lab.deploy(shop(&[("db", &bound("db:1", 1))]));
    lab.run(500);
    assert_eq!(lab.where_is("db"), "n1:1");
    let first = lab.placed.clone();
    lab.silent.insert(id(1));
    lab.run(10_000);
    assert_eq!(lab.message("db"), "shop-db-1 waits for node n1 (lost), which holds its volume");
    assert_eq!(lab.placed, first, "never started twice");
    // Changed while its node is away: still nothing elsewhere.
    lab.deploy(shop(&[("db", &bound("db:2", 1))]));
    lab.run(3_000);
    assert_eq!(lab.where_is("db").replace("n1:1", ""), "");
    lab.silent.clear();
    lab.run(3_000);
    assert_eq!(lab.where_is("db"), "n1:1");
    assert!(lab.settled(), "{}", lab.message("db"));
    // Down and up again: back to its data.
    lab.world.remove(&"shop".parse().unwrap(), false).unwrap();
    lab.run(2_000);
    assert!(lab.world.apps.is_empty() && lab.world.replicas.is_empty());
    lab.deploy(shop(&[("a", &service("a:1", 3)), ("db", &bound("db:2", 1))]));
    lab.run(1_000);
    assert_eq!(lab.where_is("db"), "n1:1");
    // A lost node that is given up gives its data up.
    lab.silent.insert(id(1));
    lab.run(3_000);
    let effects = lab.world.forget_node(&id(1)).unwrap();
    assert_eq!(effects.keys.last(), Some(&Key::Node(id(1))), "no pin may outlive its node");
    lab.run(1_000);
    assert_eq!(lab.where_is("db"), "n2:1");
}

#[test]
fn deleted_volumes_are_deleted_before_new_ones_take_their_name() {
    let mut lab = Lab::new(1);
    lab.deploy(shop(&[("db", &bound("db:1", 1))]));
    lab.run(500);
    assert_eq!(lab.volumes[&id(1)].len(), 1);
    lab.world.remove(&"shop".parse().unwrap(), true).unwrap();
    lab.run(1_000);
    assert!(lab.volumes[&id(1)].is_empty(), "the agent was told");
    assert!(lab.world.condemned.is_empty() && lab.world.pins.is_empty());
    assert!(lab.assignments[&id(1)].remove_volumes.is_empty(), "once done it is no longer asked for");
}

#[test]
fn a_first_start_waits_and_says_for_what() {
    for (condition, image_state, message) in [
        (Condition::Started, ReplicaState::Preparing, "waits for db to start"),
        (Condition::Healthy, ReplicaState::Preparing, "waits for db to be healthy"),
        (Condition::CompletedSuccessfully, ReplicaState::Running, "waits for db to complete"),
        (Condition::Healthy, ReplicaState::Failed, "waits for db to be healthy (shop-db-1 failed: no reason given)"),
    ] {
        let mut lab = Lab::new(1);
        lab.odd.insert("db:1".to_owned(), image_state);
        let mut web = service("web:1", 1);
        web.depends_on.insert("db".parse().unwrap(), condition);
        lab.deploy(shop(&[("db", &service("db:1", 1)), ("web", &web)]));
        lab.run(500);
        assert_eq!((lab.message("web").as_str(), lab.where_is("web").as_str()), (message, ""));
        let end =
            if condition == Condition::CompletedSuccessfully { ReplicaState::Completed } else { ReplicaState::Running };
        lab.odd.insert("db:1".to_owned(), end);
        lab.run(500);
        assert_eq!(lab.where_is("web"), "n1:1", "{message}");
        // From then on it no longer waits.
        lab.odd.insert("db:1".to_owned(), ReplicaState::BackingOff);
        lab.deploy(shop(&[("db", &service("db:1", 1)), ("web", &Service { replicas: 2, ..web })]));
        lab.run(500);
        assert_eq!(lab.where_is("web"), "n1:1,2");
    }
}

#[test]
fn completed_replicas_are_not_run_again() {
    let mut lab = Lab::new(2);
    lab.odd.insert("job:1".to_owned(), ReplicaState::Completed);
    lab.deploy(shop(&[("job", &service("job:1", 1))]));
    lab.run(500);
    assert!(lab.settled());
    lab.silent.insert(id(1));
    lab.run(5_000);
    assert_eq!(lab.placed.len(), 1);
    assert!(lab.settled());
}

#[test]
fn a_rolling_change_keeps_to_its_batches() {
    for (why, order, parallelism, least_ready, most_copies) in [
        ("one at a time, old first", UpdateOrder::StopFirst, 1, 3, 4),
        ("two at a time, old first", UpdateOrder::StopFirst, 2, 2, 4),
        ("one at a time, new first", UpdateOrder::StartFirst, 1, 4, 7),
        ("all at once, new first", UpdateOrder::StartFirst, 0, 4, 8),
    ] {
        let mut lab = Lab::new(2);
        let mut web = service("web:1", 4);
        web.update.order = order;
        web.update.parallelism = parallelism;
        lab.deploy(shop(&[("web", &web)]));
        lab.run(500);
        web.template.image = "web:2".to_owned();
        assert_eq!(lab.deploy(shop(&[("web", &web)])), [ChangeAction::Replace]);
        let (mut ready, mut copies) = (usize::MAX, 0);
        for _ in 0..1_000 {
            lab.run(10);
            ready = ready.min(lab.ready_in(1));
            copies = copies.max(lab.world.replicas.len());
            if lab.settled() {
                break;
            }
        }
        assert!(lab.settled(), "{why}: {}", lab.message("web"));
        assert!(
            ready >= least_ready && copies <= most_copies,
            "{why}: at least {ready} ready, at most {copies} copies"
        );
        assert!(
            lab.world
                .replicas
                .values()
                .all(|r| lab.world.template(&r.record.name, r.record.generation).unwrap().image == "web:2")
        );
        assert!(lab.world.templates.is_empty(), "{why}: the template before is forgotten");
    }
}

#[test]
fn a_rolling_change_pauses_between_batches() {
    let mut lab = Lab::new(1);
    let mut web = service("web:1", 2);
    web.update.delay_ms = Millis(3_000);
    lab.deploy(shop(&[("web", &web)]));
    lab.run(500);
    web.template.image = "web:2".to_owned();
    lab.deploy(shop(&[("web", &web)]));
    lab.run(2_500);
    let new = |lab: &Lab| lab.world.replicas.values().filter(|r| r.record.order > 2 && r.wanted()).count();
    assert_eq!(new(&lab), 1);
    lab.run(4_500);
    assert_eq!(new(&lab), 2);
}

#[test]
fn a_failed_change_does_as_it_was_told() {
    for (on_failure, message, images) in [
        (OnFailure::Pause, "rolling change paused: shop-web-1 failed: no reason given", "bad web:1 web:1"),
        (OnFailure::Continue, "shop-web-1 failed: no reason given", "bad bad bad"),
        (
            OnFailure::Rollback,
            "rolled back to the template before: shop-web-1 failed: no reason given",
            "web:1 web:1 web:1",
        ),
    ] {
        let mut lab = Lab::new(2);
        lab.odd.insert("bad".to_owned(), ReplicaState::Failed);
        let mut web = service("web:1", 3);
        web.update.on_failure = on_failure;
        lab.deploy(shop(&[("web", &web)]));
        lab.run(500);
        web.template.image = "bad".to_owned();
        lab.deploy(shop(&[("web", &web)]));
        lab.run(5_000);
        let mut seen: Vec<String> = lab.world.show_replicas(None).into_iter().map(|r| r.image).collect();
        seen.sort();
        assert_eq!((lab.message("web").as_str(), seen.join(" ").as_str()), (message, images));
        assert_eq!(lab.settled(), on_failure == OnFailure::Rollback);
        // A good one afterwards gets through, whatever the state.
        web.template.image = "web:3".to_owned();
        lab.deploy(shop(&[("web", &web)]));
        lab.run(5_000);
        assert!(lab.settled(), "{on_failure:?}: {}", lab.message("web"));
    }
}

#[test]
fn while_paused_what_is_replaced_gets_the_template_that_worked() {
    let mut lab = Lab::new(2);
    lab.odd.insert("bad".to_owned(), ReplicaState::Failed);
    let mut web = service("web:1", 2);
    lab.deploy(shop(&[("web", &web)]));
    lab.run(500);
    web.template.image = "bad".to_owned();
    lab.deploy(shop(&[("web", &web)]));
    lab.run(1_000);
    assert!(lab.message("web").contains("paused"));
    lab.silent.insert(id(2));
    lab.run(4_000);
    let good = lab.world.show_replicas(None).into_iter().filter(|r| r.image == "web:1" && r.ready).count();
    assert_eq!(good, 1);
    assert_eq!(lab.deploy(shop(&[("web", &web)])), [ChangeAction::Update], "the same again resumes it");
}

#[test]
fn a_replica_is_drained_everywhere_before_it_is_stopped() {
    let mut lab = Lab::new(2);
    lab.deploy(shop(&[("web", &service("web:1", 2))]));
    lab.run(500);
    lab.stuck.insert(id(1));
    lab.deploy(shop(&[("web", &service("web:1", 1))]));
    lab.run(10);
    assert_eq!(lab.ready_in(1), 1, "it leaves the tables at once");
    let held = |lab: &Lab| lab.assignments.values().map(|a| a.replicas.len()).sum::<usize>();
    lab.run(500);
    assert_eq!(held(&lab), 2, "n1 has not applied it yet");
    lab.run(600);
    assert_eq!(held(&lab), 1, "one second is the longest wait");

    let mut quick = Lab::new(2);
    quick.deploy(shop(&[("web", &service("web:1", 2))]));
    quick.run(500);
    quick.deploy(shop(&[("web", &service("web:1", 1))]));
    quick.run(30);
    assert_eq!(held(&quick), 1, "as soon as all have applied it");
}

#[test]
fn nothing_is_sent_when_nothing_changed() {
    let mut lab = Lab::new(3);
    lab.deploy(shop(&[("web", &service("web:1", 5)), ("db", &bound("db:1", 1))]));
    lab.run(5_000);
    let revision = lab.world.revision;
    lab.run(10_000);
    assert_eq!(lab.world.revision, revision);
    assert!(plan(&lab.world, Now(lab.now)).is_empty());
}

#[test]
fn a_port_belongs_to_one_service() {
    let published = |port: u16, protocol| {
        let mut made = service("web:1", 1);
        made.ports.push(PublishedPort { published: port, target: 80, protocol });
        made
    };
    let mut lab = Lab::new(1);
    lab.deploy(App { name: "first".parse().unwrap(), ..shop(&[("web", &published(80, Protocol::Tcp))]) });
    let (same, other) = (published(80, Protocol::Tcp), published(80, Protocol::Udp));
    assert_eq!(
        lab.refused(shop(&[("web", &same)])),
        "service web: port 80/tcp is already published by service web of app first"
    );
    assert_eq!(
        lab.refused(shop(&[("a", &other), ("b", &other)])),
        "service b: port 80/udp is already published by service a"
    );
    let ours = published(7400, Protocol::Tcp);
    assert_eq!(
        lab.refused(shop(&[("web", &ours)])),
        "service web: port 7400/tcp is already published by Gantry itself"
    );
    lab.deploy(shop(&[("web", &other)]));
    // An app that goes gives its ports up at once.
    lab.world.remove(&"first".parse().unwrap(), false).unwrap();
    lab.deploy(shop(&[("web", &same)]));
}

#[test]
fn addresses_and_subnets_are_stable_and_distinct() {
    let mut lab = Lab::new(3);
    let subnets: BTreeSet<String> = lab.world.nodes.values().map(|n| n.record.subnet.to_string()).collect();
    assert_eq!(subnets.into_iter().collect::<Vec<_>>(), ["10.210.1.0/24", "10.210.2.0/24", "10.210.3.0/24"]);
    let one = service("a:1", 0);
    lab.deploy(shop(&[("a", &one), ("b", &one)]));
    let address =
        |lab: &Lab, name: &str| lab.world.apps[&"shop".parse().unwrap()].services[&name.parse().unwrap()].address;
    let (a, b) = (address(&lab, "a"), address(&lab, "b"));
    assert_ne!(a, b);
    lab.deploy(shop(&[("b", &service("b:2", 0)), ("c", &one)]));
    assert_eq!(address(&lab, "b"), b);
    assert_ne!(address(&lab, "c"), a, "a freed address rests a while");
}

#[test]
fn a_change_of_rules_moves_what_breaks_them() {
    let mut lab = Lab::new(2);
    let mut web = service("web:1", 2);
    web.update.order = UpdateOrder::StartFirst;
    lab.deploy(shop(&[("web", &web)]));
    lab.run(500);
    let value = "ssd".to_owned();
    web.placement.constraints.push(Constraint { key: ConstraintKey::Label("disk".to_owned()), equal: true, value });
    assert_eq!(lab.deploy(shop(&[("web", &web)])), [ChangeAction::Update]);
    lab.run(2_000);
    assert_eq!(lab.where_is("web"), "n1:1,2");
    assert!(lab.settled());
}

#[test]
fn a_service_that_leaves_its_app_is_drained() {
    let mut lab = Lab::new(1);
    lab.deploy(shop(&[("a", &service("a:1", 2)), ("b", &service("b:1", 1))]));
    lab.run(500);
    assert_eq!(lab.deploy(shop(&[("b", &service("b:1", 1))])), [ChangeAction::Remove, ChangeAction::Keep]);
    lab.run(1_000);
    assert_eq!(lab.world.replicas.len(), 1);
    assert!(lab.world.templates.is_empty());
}

fn any_service() -> impl Strategy<Value = Service> {
    (0..3u8, 0..7u32, 0..400u64, any::<bool>(), any::<bool>(), 0..3u32, proptest::option::of(1..4u32)).prop_map(
        |(image, replicas, memory, start_first, volume, parallelism, max_per_node)| {
            let image = format!("image:{image}");
            let mut made = if volume { bound(&image, replicas) } else { service(&image, replicas) };
            made.template.resources.reserve_memory = Bytes(memory);
            made.update.order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
            made.update.parallelism = parallelism;
            made.placement.max_per_node = max_per_node;
            made
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Carried out, every plan comes to rest; at rest placing again moves nothing; limits hold; ids are unique.
    #[test]
    fn every_plan_comes_to_rest(
        nodes in 1..5u8,
        deploys in prop::collection::vec((any_service(), any_service(), 0..1_500u64), 1..5),
        dead in proptest::option::of(1..5u8),
    ) {
        let mut lab = Lab::new(nodes);
        for (web, db, ms) in deploys {
            if let Ok(made) = lab.world.prepare(shop(&[("web", &web), ("db", &db)])) {
                lab.world.carry_out(made, Now(lab.now));
            }
            lab.run(ms);
        }
        if let Some(dead) = dead.filter(|dead| *dead <= nodes) {
            lab.silent.insert(id(dead));
        }
        lab.run(25_000);
        prop_assert!(plan(&lab.world, Now(lab.now)).is_empty());
        let revision = lab.world.revision;
        lab.run(3_000);
        prop_assert_eq!(lab.world.revision, revision);
        for (node, (taken, _)) in lab.world.reserved() {
            prop_assert!(taken.memory <= lab.world.nodes[node].capacity().memory);
        }
        let mut names = BTreeSet::new();
        for replica in lab.world.replicas.values().filter(|r| r.wanted()) {
            let spec = &lab.world.apps[&replica.record.name.app].spec.services[&replica.record.name.service];
            prop_assert!(names.insert(replica.record.name.clone()) || spec.update.order == UpdateOrder::StartFirst);
        }
        prop_assert_eq!(lab.placed.len() as u64, lab.world.counters.replicas);
    }
}
