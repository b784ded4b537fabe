//! The world in the store: which key holds what, writing what a step touched, and reading all of it back.

use crate::core::{AppRecord, Counters, Key, NodeRecord, Now, ReplicaRecord, Settings, World};
use crate::store::{Entry, OPS_MAX, Op, Store, StoreError, Transaction};
use gantry_api::http::Event;
use gantry_api::ids::{NodeId, ReplicaName, Revision};
use gantry_api::spec::Template;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Revisions reserved at once. Assignments are numbered in memory, faster than the store could write; a restarted
/// scheduler begins behind all that were reserved, so that a revision never comes twice.
const REVISIONS_RESERVED: u64 = 1_000_000;

const SETTINGS: &str = "/alloc/settings";
const COUNTERS: &str = "/alloc/counters";
const REVISION: &str = "/alloc/revision";

/// A join token as recorded, under the hash of its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Until when it can be used, milliseconds since 1970.
    pub expires_at_ms: u64,
}

/// Key of an event.
pub fn event_key(sequence: u64) -> String {
    format!("/events/{sequence:020}")
}

/// Key of a token.
pub fn token_key(hash: &str) -> String {
    format!("/tokens/{hash}")
}

/// A put of a value as JSON.
pub fn put<T: Serialize>(key: String, value: &T) -> Op {
    // Our records have string keys and no failing parts: this cannot fail.
    Op::Put { key, value: serde_json::to_vec(value).unwrap_or_default() }
}

/// The operation that makes the store's record equal to the world's.
pub fn op(world: &World, key: &Key) -> Op {
    fn of<T: Serialize>(path: String, value: Option<&T>) -> Op {
        match value {
            Some(value) => put(path, value),
            None => Op::Delete { key: path },
        }
    }
    match key {
        Key::App(app) => of(format!("/apps/{app}"), world.apps.get(app)),
        Key::Template(key) => of(format!("/templates/{}/{}/{}", key.0, key.1, key.2), world.templates.get(key)),
        Key::Node(id) => of(format!("/nodes/{id}"), world.nodes.get(id).map(|node| &node.record)),
        Key::Replica(id) => of(format!("/replicas/{id}"), world.replicas.get(id).map(|replica| &replica.record)),
        Key::Pin(name) => of(format!("/pins/{}/{}/{}", name.app, name.service, name.number), world.pins.get(name)),
        Key::Condemned(volume) => of(format!("/volumes/{volume}"), world.condemned.get(volume)),
        Key::Counters => put(COUNTERS.to_owned(), &world.counters),
    }
}

/// Puts groups of operations that belong together into as few transactions as the limit allows, in order. A later
/// operation on a key takes the place of an earlier one in the same transaction.
///
/// A group that is over the limit by itself is cut: whoever makes such a large one puts last what makes it true.
pub fn transactions(groups: Vec<Vec<Op>>) -> Vec<Transaction> {
    let mut made: Vec<Transaction> = Vec::new();
    let parts = groups.iter().flat_map(|group| group.chunks(OPS_MAX));
    for group in parts {
        let fits = made.last().is_some_and(|last| last.ops.len() + group.len() <= OPS_MAX);
        if !fits {
            made.push(Transaction::default());
        }
        if let Some(last) = made.last_mut() {
            for op in group {
                last.ops.retain(|before| before.key() != op.key());
                last.ops.push(op.clone());
            }
        }
    }
    made
}

/// Reserves the next block of revisions; returns its end.
///
/// # Errors
/// The store cannot be read or written.
pub fn reserve(store: &dyn Store) -> Result<(Revision, Revision), StoreError> {
    let start: u64 = store.get(REVISION)?.map_or(Ok(0), |entry| parse(&entry))?;
    let end = start + REVISIONS_RESERVED;
    store.commit(&Transaction { conditions: Vec::new(), ops: vec![put(REVISION.to_owned(), &end)] })?;
    Ok((Revision(start), Revision(end)))
}

/// The settings that the cluster was made with, recorded now when there are none.
///
/// # Errors
/// The store cannot be read or written.
pub fn settings(store: &dyn Store, wanted: &Settings) -> Result<Settings, StoreError> {
    if let Some(entry) = store.get(SETTINGS)? {
        return parse(&entry);
    }
    store.commit(&Transaction { conditions: Vec::new(), ops: vec![put(SETTINGS.to_owned(), wanted)] })?;
    Ok(wanted.clone())
}

/// Records other settings.
///
/// # Errors
/// The store cannot be written.
pub fn set_settings(store: &dyn Store, settings: &Settings) -> Result<(), StoreError> {
    store.commit(&Transaction { conditions: Vec::new(), ops: vec![put(SETTINGS.to_owned(), settings)] })?;
    Ok(())
}

/// Reads the whole world.
///
/// # Errors
/// The store cannot be read, or a record is damaged.
pub fn load(store: &dyn Store, settings: Settings, revision: Revision, now: Now) -> Result<World, StoreError> {
    let mut world = World::new(settings, revision, now);
    if let Some(entry) = store.get(COUNTERS)? {
        world.counters = parse::<Counters>(&entry)?;
    }
    for entry in store.range("/apps/")?.1 {
        let app: AppRecord = parse(&entry)?;
        world.apps.insert(app.spec.name.clone(), app);
    }
    for entry in store.range("/templates/")?.1 {
        let template: Template = parse(&entry)?;
        let mut parts = entry.key.split('/').skip(2);
        let mut next = || parts.next().unwrap_or_default();
        let (app, service, generation) = (next().parse(), next().parse(), next().parse::<u64>());
        let (Ok(app), Ok(service), Ok(generation)) = (app, service, generation) else {
            return Err(StoreError::Damaged { key: entry.key, why: "the key names no template".to_owned() });
        };
        world.templates.insert((app, service, generation), template);
    }
    for entry in store.range("/nodes/")?.1 {
        world.load_node(parse::<NodeRecord>(&entry)?, now);
    }
    for entry in store.range("/replicas/")?.1 {
        world.load_replica(parse::<ReplicaRecord>(&entry)?, now);
    }
    for entry in store.range("/pins/")?.1 {
        let home: NodeId = parse(&entry)?;
        world.pins.insert(pin_name(&entry)?, home);
    }
    for entry in store.range("/volumes/")?.1 {
        let places: BTreeSet<NodeId> = parse(&entry)?;
        world.condemned.insert(entry.key["/volumes/".len()..].to_owned(), places);
    }
    world.hold(now);
    Ok(world)
}

fn pin_name(entry: &Entry) -> Result<ReplicaName, StoreError> {
    let damaged = || StoreError::Damaged { key: entry.key.clone(), why: "the key names no replica".to_owned() };
    let mut parts = entry.key.split('/').skip(2);
    let mut next = || parts.next().unwrap_or_default();
    Ok(ReplicaName {
        app: next().parse().map_err(|_| damaged())?,
        service: next().parse().map_err(|_| damaged())?,
        number: next().parse().map_err(|_| damaged())?,
    })
}

/// Reads all events, oldest first.
///
/// # Errors
/// The store cannot be read, or a record is damaged.
pub fn events(store: &dyn Store) -> Result<Vec<Event>, StoreError> {
    store.range("/events/")?.1.iter().map(parse).collect()
}

/// Reads a record.
///
/// # Errors
/// It is not what it should be.
pub fn parse<T: DeserializeOwned>(entry: &Entry) -> Result<T, StoreError> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Damaged { key: entry.key.clone(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_over_the_limit_is_cut_in_its_order_and_others_are_kept_whole() {
        let delete = |n: usize| Op::Delete { key: format!("/{n}") };
        let group = |from: usize, count: usize| (from..from + count).map(delete).collect::<Vec<Op>>();
        let made = transactions(vec![group(0, 3), group(3, OPS_MAX * 2 + 1), group(1_000, OPS_MAX), Vec::new()]);
        let lengths: Vec<usize> = made.iter().map(|transaction| transaction.ops.len()).collect();
        assert_eq!(lengths, [3, OPS_MAX, OPS_MAX, 1, OPS_MAX]);
        let ops: Vec<Op> = made.into_iter().flat_map(|transaction| transaction.ops).collect();
        assert_eq!(ops, [group(0, OPS_MAX * 2 + 4), group(1_000, OPS_MAX)].concat());
    }
}
