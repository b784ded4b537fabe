//! Where each node fetches the images that it lacks: from nodes that have them, else one node asks the registry and the
//! others have it from that one while it comes.
//!
//! ```text
//!  nobody has it:   registry ─► 1st ─┬─► 2nd … 5th ─┬─► …        each serves FANOUT others
//!  two have it:     a ─► 1st, 3rd, …   b ─► 2nd, 4th, …          beyond 2 × FANOUT, those serve the rest
//! ```
//!
//! A node only ever waits for one that began before it, so that no two wait for each other. All of it is advice: a node
//! whose sources fail turns to the registry.

use super::world::{Node, World};
use gantry_api::http::NodeState;
use gantry_api::ids::NodeId;
use gantry_api::images::{HELD_MAX, HeldImage, ImageNews, ImageSources, NAME_BYTES_MAX, Source, Sources, canonical};
use gantry_api::spec::PullPolicy;
use gantry_api::wire::ReplicaState;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Nodes that fetch from one other at once: four uploads fill a link, and a tree of four is three deep at 80 nodes.
const FANOUT: usize = 4;
/// Nodes with the whole image that are named to one that fetches it: one to ask and one to go on with.
const HOLDERS_NAMED: usize = 2;

/// Whom each of `fetching` asks, best first, and whether that one has all of it.
///
/// - `fetching`: in the order in which they began; the answer is in the same order.
pub fn choose<'a, T>(holders: &'a [T], fetching: &'a [T]) -> Vec<Vec<(&'a T, bool)>> {
    let served = FANOUT * holders.len();
    let one = |at: usize| {
        let named = holders.len().min(HOLDERS_NAMED);
        let mut sources: Vec<(&T, bool)> =
            (0..named).map(|next| (&holders[(at + next) % holders.len()], true)).collect();
        // Holders may have another image under that name than the registry: then the one before is worth waiting for.
        let before = if at < served { at.checked_sub(1) } else { (at - served).checked_sub(usize::from(served == 0)) };
        if let Some(parent) = before.map(|before| (&fetching[before / FANOUT], false)) {
            sources.insert(if at < served { named } else { 0 }, parent);
        }
        sources
    };
    (0..fetching.len()).map(one).collect()
}

/// The images that a node holds, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held(BTreeMap<String, HeldImage>);

impl Held {
    /// Takes in what an agent tells; whether that is news. What is over the bounds is dropped.
    fn take(&mut self, news: ImageNews) -> bool {
        let before = news.whole.then(|| std::mem::take(&mut self.0));
        let mut changed = false;
        for name in &news.gone {
            changed |= self.0.remove(name).is_some();
        }
        for image in news.held {
            let room = self.0.len() < HELD_MAX || self.0.contains_key(&image.name);
            let long = [&image.name, &image.digest, &image.manifest].iter().any(|text| text.len() > NAME_BYTES_MAX);
            if room && !long {
                changed |= self.0.get(&image.name) != Some(&image);
                self.0.insert(image.name.clone(), image);
            }
        }
        before.map_or(changed, |before| before != self.0)
    }

    /// The image that `name` means: one of that name, or of that digest where the name has one.
    fn find(&self, name: &str) -> Option<&HeldImage> {
        let pinned = || {
            let (_, digest) = name.split_once('@')?;
            self.0.values().find(|image| image.digest == digest || image.manifest == digest)
        };
        self.0.get(name).or_else(pinned)
    }
}

impl World {
    /// A node told of its images. Whether a decision could rest on it.
    pub fn images(&mut self, id: &NodeId, session: u64, news: ImageNews) -> bool {
        let Some(node) = self.nodes.get_mut(id).filter(|node| node.session == session) else { return false };
        let changed = node.held.take(news);
        self.sources_due |= changed;
        changed
    }

    /// Where a node may fetch what it lacks, as it was last told.
    pub fn sources(&self, id: &NodeId) -> Arc<Sources> {
        self.told.get(id).cloned().unwrap_or_default()
    }

    /// What nodes are to be told that they were not told before.
    pub(super) fn advise(&mut self) -> Vec<(NodeId, Arc<Sources>)> {
        if !std::mem::take(&mut self.sources_due) {
            return Vec::new();
        }
        let mut picture: BTreeMap<NodeId, Sources> =
            self.nodes.keys().map(|id| (id.clone(), Sources::default())).collect();
        for (name, fetching) in lacking(self) {
            let known = knowing(self, &name);
            let digest = known.iter().map(|(_, held)| (held.since_ms, &held.digest)).max().map(|(_, digest)| digest);
            let whole = |(id, held): &(&NodeId, &HeldImage)| Some(&held.digest) == digest && !fetching.contains(id);
            let holders: Vec<&NodeId> = known.iter().filter(|one| whole(one)).map(|(id, _)| *id).collect();
            for (id, chosen) in fetching.iter().zip(choose(&holders, &fetching)) {
                let source = |(id, whole): (&&NodeId, bool)| {
                    let address = self.nodes.get(*id)?.record.underlay;
                    Some(Source { node: (*id).clone(), address, whole })
                };
                let nodes = chosen.into_iter().filter_map(source).collect();
                if let Some(sources) = picture.get_mut(*id) {
                    sources.images.push(ImageSources { name: name.clone(), digest: digest.cloned(), nodes });
                }
            }
        }
        self.told.retain(|id, _| picture.contains_key(id));
        let mut news = Vec::new();
        for (id, sources) in picture {
            if self.told.get(&id).map_or(!sources.images.is_empty(), |told| **told != sources) {
                let sources = Arc::new(sources);
                self.told.insert(id.clone(), Arc::clone(&sources));
                news.push((id, sources));
            }
        }
        news
    }
}

/// Images that nodes must have and lack, or are to ask for again; for each the nodes, the first placed first.
fn lacking(world: &World) -> BTreeMap<String, Vec<&NodeId>> {
    let mut needs: BTreeMap<String, BTreeMap<&NodeId, u64>> = BTreeMap::new();
    for replica in world.replicas.values().filter(|replica| replica.wanted() && !replica.record.completed) {
        let record = &replica.record;
        let making = matches!(replica.state(), None | Some(ReplicaState::Preparing));
        let node = world.nodes.get(&record.node).filter(|node| making && counts(node));
        if let (Some(node), Some(template)) = (node, world.template(&record.name, record.generation)) {
            let name = canonical(&template.image);
            let fetches = match template.pull {
                PullPolicy::Never => false,
                PullPolicy::Always => true,
                PullPolicy::Missing => node.held.find(&name).is_none(),
            };
            if fetches {
                let order = needs.entry(name).or_default().entry(&record.node).or_insert(record.order);
                *order = record.order.min(*order);
            }
        }
    }
    needs.into_iter().map(|(name, nodes)| (name, in_order(nodes))).collect()
}

fn in_order(nodes: BTreeMap<&NodeId, u64>) -> Vec<&NodeId> {
    let mut nodes: Vec<_> = nodes.into_iter().map(|(id, order)| (order, id)).collect();
    nodes.sort_unstable();
    nodes.into_iter().map(|(_, id)| id).collect()
}

/// Nodes that know what `name` means.
fn knowing<'a>(world: &'a World, name: &str) -> Vec<(&'a NodeId, &'a HeldImage)> {
    let counting = world.nodes.iter().filter(|(_, node)| counts(node));
    counting.filter_map(|(id, node)| Some((id, node.held.find(name)?))).collect()
}

fn counts(node: &Node) -> bool {
    node.state == NodeState::Ready
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(holders: &[&str], fetching: &[&str]) -> Vec<String> {
        let one = |sources: &Vec<(&&str, bool)>| {
            let words = sources.iter().map(|(name, whole)| format!("{}{name}", if *whole { "" } else { "~" }));
            words.collect::<Vec<_>>().join(" ")
        };
        choose(holders, fetching).iter().map(one).collect()
    }

    #[test]
    fn one_asks_the_registry_and_the_others_ask_nodes() {
        let none: [&str; 0] = [];
        for (why, holders, fetching, expected) in [
            ("nobody fetches", &["a"][..], &none[..], &none[..]),
            ("the first fetches from the registry", &none, &["1", "2", "3"], &["", "~1", "~1"]),
            ("a tree of four", &none, &["1", "2", "3", "4", "5", "6", "7"], &["", "~1", "~1", "~1", "~1", "~2", "~2"]),
            ("one has it", &["a"], &["1", "2", "3"], &["a", "a ~1", "a ~1"]),
            ("two have it", &["a", "b"], &["1", "2", "3"], &["a b", "b a ~1", "a b ~1"]),
            (
                "more than it may serve",
                &["a"],
                &["1", "2", "3", "4", "5", "6"],
                &["a", "a ~1", "a ~1", "a ~1", "~1 a", "~1 a"],
            ),
        ] {
            assert_eq!(words(holders, fetching), expected, "{why}");
        }
    }

    /// Nodes that ask each one first.
    fn loads<T: Ord + Copy>(chosen: &[Vec<(&T, bool)>]) -> BTreeMap<T, usize> {
        let mut loads = BTreeMap::new();
        for first in chosen.iter().filter_map(|sources| sources.first()) {
            *loads.entry(*first.0).or_default() += 1;
        }
        loads
    }

    #[test]
    fn no_node_serves_more_than_its_share_and_none_waits_for_a_later_one() {
        for holders in 0..6usize {
            for count in 0..200usize {
                let have: Vec<usize> = (1_000..1_000 + holders).collect();
                let fetching: Vec<usize> = (0..count).collect();
                let chosen = choose(&have, &fetching);
                assert!(loads(&chosen).values().all(|load| *load <= FANOUT), "{holders} {count}");
                for (at, sources) in chosen.iter().enumerate() {
                    assert!(sources.iter().all(|(node, whole)| if *whole { **node >= 1_000 } else { **node < at }));
                    assert_eq!(sources.is_empty(), holders == 0 && at == 0, "only one goes to the registry");
                }
            }
        }
    }

    #[test]
    fn what_a_node_tells_is_taken_in_by_difference_and_bounded() {
        let image = |name: &str, digest: &str| HeldImage {
            name: canonical(name),
            digest: digest.to_owned(),
            manifest: "sha256:m".to_owned(),
            since_ms: 1,
        };
        let mut held = Held::default();
        let all =
            ImageNews { whole: true, held: vec![image("a:1", "sha256:1"), image("b:1", "sha256:2")], gone: Vec::new() };
        assert!(held.take(all.clone()) && !held.take(all.clone()));
        assert!(held.find(&canonical("a:1@sha256:2")).is_some(), "by its digest, whatever the name");
        assert!(held.find(&canonical("c@sha256:m")).is_some() && held.find(&canonical("c@sha256:x")).is_none());
        let change =
            |held, gone: &[&str]| ImageNews { whole: false, held, gone: gone.iter().map(|n| canonical(n)).collect() };
        assert!(held.take(change(vec![image("a:1", "sha256:3")], &["b:1", "c:1"])));
        assert_eq!(held.find(&canonical("a:1")).unwrap().digest, "sha256:3");
        assert!(held.find(&canonical("b:1")).is_none());
        assert!(!held.take(change(vec![image(&"x".repeat(NAME_BYTES_MAX), "sha256:1")], &[])));
        let many = (0..HELD_MAX + 10).map(|at| image(&format!("i{at}:1"), "sha256:1")).collect();
        held.take(ImageNews { whole: true, held: many, gone: Vec::new() });
        assert_eq!(held.0.len(), HELD_MAX);
        assert!(held.take(ImageNews { whole: true, ..ImageNews::default() }) && held == Held::default());
    }
}
