//! A model of a node's world: actions take time, fail at random, processes die at random, the agent forgets what it
//! does not keep. Left in peace, the plan must come to rest with all that is wanted running and nothing else there.

use super::*;
use crate::model::{Checked, Done, Found, Prepared};
use gantry_api::ids::ReplicaName;
use gantry_api::spec::Template;
use gantry_api::units::Millis;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is true on the machine, whatever the agent believes.
#[derive(Default)]
struct Truth {
    made: BTreeSet<ReplicaId>,
    running: BTreeMap<ReplicaId, u64>,
    exits: BTreeMap<ReplicaId, Exit>,
}

struct World {
    node: Node,
    truth: Truth,
    under_way: Vec<(u64, Action, Part)>,
    /// Starts that go on although the agent that began them is gone.
    orphans: Vec<(u64, ReplicaId)>,
    now_ms: u64,
    random: u64,
    peace: bool,
}

/// A start first takes away what is left; the rest comes later.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    First,
    Last,
}

/// splitmix64: a seeded sequence, so that a failing case is its seed.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl World {
    fn new(seed: u64) -> Self {
        let (node, truth) = (Node::default(), Truth::default());
        Self { node, truth, under_way: Vec::new(), orphans: Vec::new(), now_ms: 1_000_000, random: seed, peace: false }
    }

    fn one_in(&mut self, n: u64) -> bool {
        !self.peace && random(&mut self.random).is_multiple_of(n)
    }

    fn die(&mut self, id: &ReplicaId, code: Option<i32>) {
        if self.truth.running.remove(id).is_some() {
            let signal = code.is_none().then_some(9);
            let exit = Exit { code, signal, oom_killed: false, at_ms: self.now_ms, cause: None };
            self.truth.exits.insert(id.clone(), exit);
        }
    }

    fn carry_out(&mut self, action: &Action) -> Result<Done, String> {
        let id = &action.replica;
        if self.one_in(5) {
            return Err("no luck".to_owned());
        }
        match &action.step {
            Step::Prepare => {
                self.truth.made.insert(id.clone());
                Ok(Done::Prepared(Prepared {
                    image: "i".to_owned(),
                    stop_signal: None,
                    address: None,
                    health_check: None,
                }))
            }
            Step::Start | Step::Restart => {
                assert!(self.truth.made.contains(id), "{action}: started without being prepared");
                assert!(!self.truth.running.contains_key(id), "{action}: it was taken away before");
                self.truth.exits.remove(id);
                self.truth.running.insert(id.clone(), self.now_ms);
                Ok(Done::Started)
            }
            Step::Stop { .. } => {
                if !self.one_in(3) {
                    self.die(id, Some(0));
                }
                Ok(Done::Done)
            }
            Step::Kill => {
                self.die(id, None);
                Ok(Done::Done)
            }
            Step::Check => {
                let Some(Process::Running { started_ms }) = self.node.observed.get(id).map(|s| s.facts.process.clone())
                else {
                    return Err("it does not run".to_owned());
                };
                let passed = !self.one_in(2);
                Ok(Done::Checked(Checked { started_ms, passed, output: String::new() }))
            }
            Step::Remove => {
                self.truth.made.remove(id);
                self.truth.running.remove(id);
                self.truth.exits.remove(id);
                Ok(Done::Done)
            }
            Step::Cancel => Ok(Done::Done),
        }
    }

    /// The agent is killed and comes back with what it keeps; with `reboot`, every process is gone too.
    fn agent_restarts(&mut self, reboot: bool) {
        if reboot {
            self.truth.running.clear();
        }
        for (due_ms, action, _) in std::mem::take(&mut self.under_way) {
            if matches!(action.step, Step::Start | Step::Restart) && !reboot {
                self.orphans.push((due_ms + 20, action.replica));
            }
        }
        for (id, seen) in &mut self.node.observed {
            let kept = serde_json::to_string(&seen.facts).unwrap();
            seen.facts = serde_json::from_str(&kept).unwrap();
            let found = match (self.truth.running.get(id), self.truth.exits.get(id)) {
                (Some(since_ms), _) => Found::Running(*since_ms),
                (None, Some(exit)) => Found::Exited(exit.clone()),
                (None, None) => Found::Nothing,
            };
            seen.facts.adopt(found, self.now_ms);
        }
    }

    fn step(&mut self, wanted: &[Arc<AssignedReplica>]) {
        if self.one_in(6) {
            let chosen = wanted.iter().filter(|_| random(&mut self.random).is_multiple_of(2));
            self.node.desired = chosen.map(|r| (r.id.clone(), Arc::clone(r))).collect();
        }
        if self.one_in(20) {
            let reboot = self.one_in(2);
            self.agent_restarts(reboot);
        }
        let running: Vec<ReplicaId> = self.truth.running.keys().cloned().collect();
        for id in running {
            if self.one_in(8) {
                self.die(&id, Some(1));
            }
        }
        let exits: Vec<(ReplicaId, Exit)> =
            self.truth.exits.iter().map(|(id, exit)| (id.clone(), exit.clone())).collect();
        for (id, exit) in exits.into_iter().filter(|(id, _)| self.node.hears_exits(id)).collect::<Vec<_>>() {
            self.node.exited(&id, exit, self.now_ms);
            // Noted and on disk; the agent may be killed before it has removed the file.
            if self.one_in(4) {
                self.agent_restarts(false);
            }
            self.truth.exits.remove(&id);
        }
        for action in plan(&self.node.desired, &self.node.observed, self.now_ms) {
            self.node.begin(&action, self.now_ms);
            let due_ms = self.now_ms + random(&mut self.random) % 50;
            self.under_way.push((due_ms, action, Part::First));
        }
        let again = plan(&self.node.desired, &self.node.observed, self.now_ms);
        assert!(again.is_empty(), "the plan repeats what is under way: {}", again[0]);
        let now_ms = self.now_ms;
        for (_, id) in self.orphans.extract_if(.., |(due_ms, _)| *due_ms <= now_ms) {
            if self.truth.made.contains(&id) {
                self.truth.running.entry(id).or_insert(now_ms);
            }
        }
        let due: Vec<_> = self.under_way.extract_if(.., |(due_ms, ..)| *due_ms <= now_ms).collect();
        for (_, action, part) in due {
            if part == Part::First && matches!(action.step, Step::Start | Step::Restart) {
                self.die(&action.replica, None);
                self.under_way.push((now_ms + 20, action, Part::Last));
                continue;
            }
            // An orphan of an earlier agent may have come in between: its container is in the way.
            if matches!(action.step, Step::Start | Step::Restart) && self.truth.running.contains_key(&action.replica) {
                self.die(&action.replica, None);
                self.node.end(&action, Err("it has been started already".to_owned()), now_ms);
                continue;
            }
            let outcome = self.carry_out(&action);
            self.node.end(&action, outcome, self.now_ms);
        }
        self.now_ms += 10;
    }

    fn rest(&mut self, wanted: &[Arc<AssignedReplica>]) {
        self.peace = true;
        // The longest pause there is, and the time all the rest takes.
        for _ in 0..(RETRY_MAX_MS + BACKOFF_MAX_MS + 20_000) / 10 {
            self.step(wanted);
        }
        let desired: Vec<&ReplicaId> = self.node.desired.keys().collect();
        assert_eq!(self.node.observed.keys().collect::<Vec<_>>(), desired, "entries");
        assert_eq!(self.truth.made.iter().collect::<Vec<_>>(), desired, "made");
        for id in desired {
            let seen = &self.node.observed[id];
            let status = status(id, Some(&self.node.desired[id]), Some(seen));
            let over = matches!(status.state, ReplicaState::Completed | ReplicaState::Failed);
            assert_ne!(over, self.truth.running.contains_key(id), "{id} is {:?}", status.state);
            assert_eq!(over, !status.ready, "{id}: {status:?}");
            assert!(!over || seen.replica.template.restart.condition != RestartCondition::Any, "{id} gave up");
        }
    }
}

fn replicas(count: u32) -> Vec<Arc<AssignedReplica>> {
    let make = |number: u32| {
        let condition =
            [RestartCondition::Any, RestartCondition::OnFailure, RestartCondition::None][number as usize % 3];
        let check = HealthCheck {
            command: vec!["true".to_owned()],
            interval_ms: Millis(700),
            timeout_ms: Millis(100),
            retries: 2,
            start_period_ms: Millis(0),
            start_interval_ms: Millis(0),
        };
        let name = ReplicaName { app: "a".parse().unwrap(), service: "s".parse().unwrap(), number };
        let template = Template {
            image: "i".to_owned(),
            stop_grace_ms: Millis(300),
            restart: Restart { condition, ..Restart::default() },
            health: number.is_multiple_of(2).then_some(check),
            ..Template::default()
        };
        Arc::new(AssignedReplica { id: ReplicaId::new(&name, number), name, template })
    };
    (1..=count).map(make).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_comes_to_rest_and_matches_what_is_wanted(seed: u64, count in 1u32..7, storm in 0usize..1500) {
        let wanted = replicas(count);
        let mut world = World::new(seed);
        world.node.desired = wanted.iter().map(|r| (r.id.clone(), Arc::clone(r))).collect();
        for _ in 0..storm {
            world.step(&wanted);
        }
        world.rest(&wanted);
    }
}
