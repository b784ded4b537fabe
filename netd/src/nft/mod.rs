//! Our own encoder for nf_tables: one table of ours, described as data, created in one transaction, and afterwards
//! changed by elements of its maps only. No other table is ever read for a decision or touched.
//!
//! ```text
//! Ruleset (data) ─► fingerprint in each rule's comment ─► intact? ─ no ─► one transaction replaces the whole table
//! Elements wanted ─► diff against what is there ─► one transaction deletes and adds
//! ```
//! What is there is remembered together with the generation number of nf_tables, which the kernel raises at every
//! change by anybody: as long as it stands, a check costs one question and no list.

mod rule;
pub(crate) mod ruleset;

pub(crate) use rule::Rule;

use crate::error::NetError;
use crate::netlink::{APPEND, Attributes, Batch, CREATE, ENOENT, Family, Netlink, text};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const NEW_SET: u16 = SUBSYSTEM | 9;
const GET_SET: u16 = SUBSYSTEM | 10;
const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
const GET_ELEMENT: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENT: u16 = SUBSYSTEM | 14;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
/// Length of `nfgenmsg`: family, version 0, resource 0.
const HEADER_LENGTH: usize = 4;

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// IPv4 packets that this host sends, receives or forwards.
    Ip = 2,
    /// Frames in the host's bridges.
    Bridge = 7,
}

impl Layer {
    const fn header(self) -> [u8; HEADER_LENGTH] {
        [self as u8, 0, 0, 0]
    }
}

/// A table's name and layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) layer: Layer,
}

/// One 32-bit part of a map's key or value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Address,
    Protocol,
    Port,
    Slot,
}

impl Part {
    /// The number by which the `nft` tool knows how to print it; the kernel ignores it.
    const fn kind(self) -> u32 {
        match self {
            Self::Address => 7,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Slot => 19, // `mark`: a number in the host's byte order
        }
    }
}

/// A map, or a set when it has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Part],
    pub(crate) value: &'static [Part],
}

/// A key, padded with zeros behind the set's own parts.
pub(crate) type Key = [u8; 12];
/// A value, padded likewise.
pub(crate) type Value = [u8; 8];
/// Elements, in the order of their keys.
pub(crate) type Elements = BTreeMap<Key, Value>;

/// Elements whose keys begin with the same 32 bits: one service, say.
type Page = Arc<Elements>;
/// Pages whose keys begin with the same 24 bits.
type Volume = Arc<BTreeMap<[u8; 4], Page>>;

/// What a set holds, in pages and volumes. One that was not made anew is shared, and then nobody looks inside: a change of
/// one service costs nearly the same whatever their number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pages(BTreeMap<[u8; 3], Volume>);

const fn volume_of(head: [u8; 4]) -> [u8; 3] {
    [head[0], head[1], head[2]]
}

impl Pages {
    /// Make `elements`, whose keys all begin with `head`, the page of that head.
    pub(crate) fn set(&mut self, head: [u8; 4], elements: Elements) {
        let page = self.0.get(&volume_of(head)).and_then(|volume| volume.get(&head));
        if page.map_or(elements.is_empty(), |page| **page == elements) {
            return;
        }
        let volume = Arc::make_mut(self.0.entry(volume_of(head)).or_default());
        if elements.is_empty() {
            volume.remove(&head);
        } else {
            volume.insert(head, Arc::new(elements));
        }
        if volume.is_empty() {
            self.0.remove(&volume_of(head));
        }
    }

    /// All elements.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.0.values().flat_map(|volume| volume.values()).flat_map(|page| page.iter())
    }
}

impl FromIterator<(Key, Value)> for Pages {
    fn from_iter<T: IntoIterator<Item = (Key, Value)>>(elements: T) -> Self {
        let mut pages: BTreeMap<[u8; 4], Elements> = BTreeMap::new();
        for (key, value) in elements {
            pages.entry([key[0], key[1], key[2], key[3]]).or_default().insert(key, value);
        }
        let mut volumes: BTreeMap<[u8; 3], BTreeMap<[u8; 4], Page>> = BTreeMap::new();
        for (head, page) in pages {
            volumes.entry(volume_of(head)).or_default().insert(head, Arc::new(page));
        }
        Self(volumes.into_iter().map(|(head, volume)| (head, Arc::new(volume))).collect())
    }
}

/// Where a chain is called from, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    /// `nat` or `filter`.
    pub(crate) kind: &'static str,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
}

/// The kernel's numbers of the hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A whole table.
#[derive(Debug)]
pub(crate) struct Ruleset {
    pub(crate) table: Table,
    pub(crate) sets: Vec<Set>,
    pub(crate) chains: Vec<(Chain, Vec<Rule>)>,
}

impl Ruleset {
    /// Each rule's chain and comment, in order, and each set: what the kernel must list when nothing was damaged.
    fn fingerprint(&self) -> Fingerprint {
        let rules = self.chains.iter().flat_map(|(chain, rules)| {
            rules.iter().map(move |rule| (chain.name.to_owned(), format!("{} {:08x}", rule.name(), chain.mark(rule))))
        });
        let mut sets: Vec<_> = self.sets.iter().map(|set| set.name.to_owned()).collect();
        sets.sort();
        Fingerprint { rules: sorted_by_chain(rules.collect()), sets }
    }

    /// The transaction's messages that replace the whole table, whether it is there or not.
    fn replace(&self) -> Batch {
        let mut batch = Batch::new();
        // Deleting what is absent is an error; adding what is there is none. So: add, delete, add.
        new_table(&mut batch, self.table);
        delete_table(&mut batch, self.table);
        new_table(&mut batch, self.table);
        for set in &self.sets {
            set.create(&mut batch, self.table);
        }
        for (chain, rules) in &self.chains {
            chain.create(&mut batch, self.table);
            for rule in rules {
                let comment = format!("{} {:08x}", rule.name(), chain.mark(rule));
                rule.create(&mut batch, self.table, chain.name, &comment);
            }
        }
        batch
    }
}

/// Rules are listed chain by chain; which chain comes first is the kernel's choice.
fn sorted_by_chain(mut rules: Vec<(String, String)>) -> Vec<(String, String)> {
    rules.sort_by(|a, b| a.0.cmp(&b.0));
    rules
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fingerprint {
    rules: Vec<(String, String)>,
    sets: Vec<String>,
}

impl Chain {
    fn create(&self, batch: &mut Batch, table: Table) {
        batch.begin(
            NEW_CHAIN,
            CREATE,
            &table.layer.header(),
            "create nftables chain",
            format!("{} {}", table.name, self.name),
        );
        batch.text(1, table.name);
        batch.text(3, self.name);
        batch.nest(4, |b| {
            b.be32(1, self.hook as u32);
            b.be32(2, self.priority as u32);
        });
        batch.text(7, self.kind);
        batch.end();
    }

    /// A number that changes with the rule's code and with where it is called.
    fn mark(&self, rule: &Rule) -> u32 {
        let place = format!("{} {} {}", self.kind, self.hook as u32, self.priority);
        crate::hash::fnv1a(&[place.as_bytes(), rule.code()].concat()) as u32
    }
}

impl Set {
    fn create(&self, batch: &mut Batch, table: Table) {
        const MAP: u32 = 8;
        let concatenated = |parts: &[Part]| parts.iter().fold(0, |kind, part| kind << 6 | part.kind());
        let length = |parts: &[Part]| 4 * parts.len() as u32;
        batch.begin(
            NEW_SET,
            CREATE,
            &table.layer.header(),
            "create nftables map",
            format!("{} {}", table.name, self.name),
        );
        batch.text(1, table.name);
        batch.text(2, self.name);
        batch.be32(3, if self.value.is_empty() { 0 } else { MAP });
        batch.be32(4, concatenated(self.key));
        batch.be32(5, length(self.key));
        if !self.value.is_empty() {
            batch.be32(6, concatenated(self.value));
            batch.be32(7, length(self.value));
        }
        // An identity within the transaction. Numbered by name: rules refer to the set by name only.
        batch.be32(10, crate::hash::fnv1a(self.name.as_bytes()) as u32);
        batch.end();
    }
}

fn new_table(batch: &mut Batch, table: Table) {
    batch.begin(NEW_TABLE, CREATE, &table.layer.header(), "create nftables table", table.name);
    batch.text(1, table.name);
    batch.end();
}

fn delete_table(batch: &mut Batch, table: Table) {
    batch.begin(DELETE_TABLE, 0, &table.layer.header(), "delete nftables table", table.name);
    batch.text(1, table.name);
    batch.end();
}

/// What must go and what must come so that a set that holds `have` holds `want`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Diff {
    pub(crate) delete: Vec<(Key, Value)>,
    pub(crate) add: Vec<(Key, Value)>,
}

/// A changed value is a deletion and an addition: nf_tables does not overwrite.
pub(crate) fn diff(have: &Pages, want: &Pages) -> Diff {
    let mut diff = Diff::default();
    let (no_volume, no_page) = (Volume::default(), Page::default());
    side_by_side(&have.0, &want.0, |old, new| {
        let (old, new) = (old.map_or(&no_volume, |(_, v)| v), new.map_or(&no_volume, |(_, v)| v));
        if Arc::ptr_eq(old, new) {
            return;
        }
        side_by_side(old, new, |old, new| {
            let (old, new) = (old.map_or(&no_page, |(_, page)| page), new.map_or(&no_page, |(_, page)| page));
            if Arc::ptr_eq(old, new) {
                return;
            }
            side_by_side(old, new, |old, new| {
                if old != new {
                    diff.delete.extend(old.map(|(key, value)| (*key, *value)));
                    diff.add.extend(new.map(|(key, value)| (*key, *value)));
                }
            });
        });
    });
    diff
}

/// One walk over both: what has the same key comes together.
fn side_by_side<'a, K: Ord, V>(
    have: &'a BTreeMap<K, V>,
    want: &'a BTreeMap<K, V>,
    mut each: impl FnMut(Option<(&'a K, &'a V)>, Option<(&'a K, &'a V)>),
) {
    let (mut have, mut want) = (have.iter().peekable(), want.iter().peekable());
    loop {
        let order = match (have.peek(), want.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        each(if order.is_le() { have.next() } else { None }, if order.is_ge() { want.next() } else { None });
    }
}

fn write_elements(batch: &mut Batch, kind: u16, table: Table, set: &Set, elements: &[(Key, Value)]) {
    // An attribute's length has 16 bits; one element takes at most 40 bytes.
    const PER_MESSAGE: usize = 800;
    let adding = kind == NEW_ELEMENT;
    let (flags, operation) = if adding { (CREATE, "add to nftables map") } else { (0, "delete from nftables map") };
    for chunk in elements.chunks(PER_MESSAGE) {
        batch.begin(kind, flags, &table.layer.header(), operation, format!("{} {}", table.name, set.name));
        batch.text(1, table.name);
        batch.text(2, set.name);
        batch.nest(3, |b| {
            for (key, value) in chunk {
                b.nest(1, |b| {
                    b.nest(1, |b| b.attribute(1, &key[..4 * set.key.len()]));
                    if adding && !set.value.is_empty() {
                        b.nest(2, |b| b.attribute(1, &value[..4 * set.value.len()]));
                    }
                });
            }
        });
        batch.end();
    }
}

/// The elements of each set, shared: what was not made anew is recognised without looking inside.
pub(crate) type Sets = BTreeMap<&'static str, Arc<Pages>>;

/// What we know to be in the kernel.
#[derive(Debug)]
struct Known {
    generation: u32,
    fingerprint: Fingerprint,
    sets: Sets,
    listed: Instant,
}

/// Our tables in one network namespace.
#[derive(Debug)]
pub(crate) struct Nft {
    socket: Netlink,
    /// By the tables' names.
    known: BTreeMap<&'static str, Known>,
}

impl Nft {
    /// For the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, NetError> {
        Ok(Self { socket: Netlink::open(Family::Netfilter)?, known: BTreeMap::new() })
    }

    /// Make the table equal to `ruleset` and each of its sets to the elements in `wanted` (a set not named is left
    /// empty). Answers how many elements were written; a rebuilt table counts as one more.
    pub(crate) fn ensure(&mut self, ruleset: &Ruleset, wanted: &Sets) -> Result<usize, NetError> {
        match self.ensure_once(ruleset, wanted) {
            Ok(written) => Ok(written),
            Err(first) => {
                // Somebody else changed our table between look and write: look again, once.
                tracing::debug!(error = %first.chain(), "nftables transaction failed; listing and trying again");
                self.ensure_once(ruleset, wanted)
            }
        }
    }

    /// On an error nothing is known any more, and the next call lists everything.
    fn ensure_once(&mut self, ruleset: &Ruleset, wanted: &Sets) -> Result<usize, NetError> {
        // One write must fit the socket's buffer; a load larger than this is several transactions.
        const PER_TRANSACTION: usize = 16_000;
        let fingerprint = ruleset.fingerprint();
        let generation = self.generation()?;
        let (mut batch, mut sets, listed, mut written) = match self.current(ruleset, &fingerprint, generation)? {
            Some((sets, listed)) => (Batch::new(), sets, listed, 0),
            None => (ruleset.replace(), Sets::new(), Instant::now(), 1),
        };
        let mut commits = 0;
        let mut pending = 0;
        for set in &ruleset.sets {
            let want = wanted.get(set.name).cloned().unwrap_or_default();
            let have = sets.insert(set.name, Arc::clone(&want)).unwrap_or_default();
            if Arc::ptr_eq(&have, &want) {
                continue;
            }
            let diff = diff(&have, &want);
            // Deletions first: an element that changes its value is in both lists. They go in one transaction with
            // the additions unless there are very many.
            for (kind, list) in [(DELETE_ELEMENT, &diff.delete), (NEW_ELEMENT, &diff.add)] {
                for chunk in list.chunks(PER_TRANSACTION) {
                    if pending + chunk.len() > PER_TRANSACTION {
                        self.socket.transaction(std::mem::take(&mut batch))?;
                        commits += 1;
                        pending = 0;
                    }
                    write_elements(&mut batch, kind, ruleset.table, set, chunk);
                    pending += chunk.len();
                }
            }
            written += diff.delete.len() + diff.add.len();
        }
        if !batch.is_empty() {
            self.socket.transaction(batch)?;
            commits += 1;
        }
        let before = generation;
        let generation = if commits == 0 { before } else { self.generation()? };
        // When nobody else has written, our other tables are as they were.
        if generation == before.wrapping_add(commits) {
            for known in self.known.values_mut().filter(|known| known.generation == before) {
                known.generation = generation;
            }
        }
        self.known.insert(ruleset.table.name, Known { generation, fingerprint, sets, listed });
        Ok(written)
    }

    /// What the sets hold, and when that was last listed; `None` when the table is absent, damaged or made from other
    /// rules.
    fn current(
        &mut self,
        ruleset: &Ruleset,
        fingerprint: &Fingerprint,
        generation: u32,
    ) -> Result<Option<(Sets, Instant)>, NetError> {
        // Should a change by somebody else fall exactly between our write and our reading of the generation, it is
        // found at the next full list.
        const LIST_AT_LEAST_EVERY: Duration = Duration::from_secs(60);
        if let Some(known) = self.known.remove(ruleset.table.name)
            && known.generation == generation
            && known.fingerprint == *fingerprint
            && known.listed.elapsed() < LIST_AT_LEAST_EVERY
        {
            return Ok(Some((known.sets, known.listed)));
        }
        if self.listed(ruleset.table)? != *fingerprint {
            return Ok(None);
        }
        let mut sets = Sets::new();
        for set in &ruleset.sets {
            sets.insert(set.name, Arc::new(self.elements(ruleset.table, set)?));
        }
        Ok(Some((sets, Instant::now())))
    }

    fn generation(&mut self) -> Result<u32, NetError> {
        let found = self.socket.get(|batch, flags| {
            batch.begin(GET_GENERATION, flags, &Layer::Ip.header(), "read", "the generation of nf_tables");
            batch.end();
        })?;
        let id = found.and_then(|(_, payload)| {
            let value = Attributes(payload.get(HEADER_LENGTH..)?).value(1)?;
            Some(u32::from_be_bytes(value.try_into().ok()?))
        });
        Ok(id.unwrap_or_default())
    }

    fn listed(&mut self, table: Table) -> Result<Fingerprint, NetError> {
        let mut list = |kind: u16, what: &'static str| {
            self.socket.dump(|batch, flags| {
                batch.begin(kind, flags, &table.layer.header(), "list nftables", format!("{what} of {}", table.name));
                batch.text(1, table.name);
                batch.end();
                batch.tolerate(&[ENOENT]);
            })
        };
        let rules = list(GET_RULE, "rules")?.into_iter().filter_map(|(_, payload)| {
            let attributes = Attributes(payload.get(HEADER_LENGTH..)?);
            let ours = attributes.value(1).map(text).as_deref() == Some(table.name);
            let comment = attributes.value(7).and_then(rule::comment).unwrap_or_default();
            ours.then(|| Some((attributes.value(2).map(text)?, comment))).flatten()
        });
        let rules = sorted_by_chain(rules.collect());
        let sets = list(GET_SET, "maps")?.into_iter().filter_map(|(_, payload)| {
            let attributes = Attributes(payload.get(HEADER_LENGTH..)?);
            let ours = attributes.value(1).map(text).as_deref() == Some(table.name);
            ours.then(|| attributes.value(2).map(text)).flatten()
        });
        let mut sets: Vec<_> = sets.collect();
        sets.sort();
        Ok(Fingerprint { rules, sets })
    }

    /// What one set holds.
    pub(crate) fn elements(&mut self, table: Table, set: &Set) -> Result<Pages, NetError> {
        let found = self.socket.dump(|batch, flags| {
            batch.begin(
                GET_ELEMENT,
                flags,
                &table.layer.header(),
                "list nftables map",
                format!("{} {}", table.name, set.name),
            );
            batch.text(1, table.name);
            batch.text(2, set.name);
            batch.end();
            batch.tolerate(&[ENOENT]);
        })?;
        let mut elements = Elements::new();
        for (_, payload) in &found {
            let list = payload.get(HEADER_LENGTH..).and_then(|rest| Attributes(rest).value(3)).unwrap_or_default();
            elements.extend(Attributes(list).filter_map(|(_, element)| parse_element(element)));
        }
        Ok(elements.into_iter().collect())
    }

    /// Chains of other tables that drop what they do not know of the packets on their way through this host. Only to
    /// tell people: what one table drops no other can let pass, and their rules may let ours pass already.
    pub(crate) fn forward_drops(&mut self) -> Result<Vec<String>, NetError> {
        const ANY_FAMILY: [u8; 4] = [0; 4];
        let found = self.socket.dump(|batch, flags| {
            batch.begin(GET_CHAIN, flags, &ANY_FAMILY, "list nftables", "chains");
            batch.end();
        })?;
        Ok(found.iter().filter_map(|(_, payload)| forward_drop(payload)).collect())
    }

    /// Delete the table; fine when it is absent.
    pub(crate) fn remove(&mut self, table: Table) -> Result<(), NetError> {
        self.known.remove(table.name);
        let mut batch = Batch::new();
        new_table(&mut batch, table);
        delete_table(&mut batch, table);
        self.socket.transaction(batch)
    }
}

/// `table ip filter, chain FORWARD`, if the chain is one that drops by default.
fn forward_drop(chain: &[u8]) -> Option<String> {
    const DROP: u32 = 0;
    let number = |value: &[u8]| Some(u32::from_be_bytes(value.try_into().ok()?));
    let family = match chain.first()? {
        1 => "inet",
        2 => "ip",
        _ => return None,
    };
    let attributes = Attributes(chain.get(HEADER_LENGTH..)?);
    let hook = Attributes(attributes.value(4)?).value(1).and_then(number)?;
    let policy = attributes.value(5).and_then(number)?;
    let (table, name) = (attributes.value(1).map(text)?, attributes.value(3).map(text)?);
    (hook == Hook::Forward as u32 && policy == DROP).then(|| format!("table {family} {table}, chain {name}"))
}

fn parse_element(element: &[u8]) -> Option<(Key, Value)> {
    let part = |kind| Attributes(Attributes(element).value(kind)?).value(1);
    let (mut key, mut value) = (Key::default(), Value::default());
    let bytes = part(1)?;
    key.get_mut(..bytes.len())?.copy_from_slice(bytes);
    if let Some(bytes) = part(2) {
        value.get_mut(..bytes.len())?.copy_from_slice(bytes);
    }
    Some((key, value))
}

/// New rules of a table go behind those before them.
const RULE_FLAGS: u16 = CREATE | APPEND;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn elements() -> impl Strategy<Value = Pages> {
        // Few keys and values, so that equal, changed, new and gone ones all occur.
        proptest::collection::btree_map(0u8..20, 0u8..3, 0..20).prop_map(|map| {
            map.into_iter()
                .map(|(k, v)| ([k / 4, 0, 0, 0, k % 4, 0, 0, 0, 0, 0, 0, 0], [v, 0, 0, 0, 0, 0, 0, 0]))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_diff_carried_out_gives_exactly_what_was_wanted(have in elements(), want in elements()) {
            let diff = diff(&have, &want);
            let mut now: Elements = have.iter().map(|(key, value)| (*key, *value)).collect();
            for (key, _) in &diff.delete {
                prop_assert!(now.remove(key).is_some(), "only what is there is deleted");
            }
            for (key, value) in &diff.add {
                prop_assert!(now.insert(*key, *value).is_none(), "nothing is overwritten");
            }
            prop_assert_eq!(&now.into_iter().collect::<Pages>(), &want);
        }

        #[test]
        fn nothing_is_written_when_nothing_changed(have in elements()) {
            prop_assert_eq!(diff(&have, &have), Diff::default());
            prop_assert_eq!(diff(&have, &have.iter().map(|(key, value)| (*key, *value)).collect()), Diff::default());
        }

        #[test]
        fn any_bytes_can_be_read_as_an_element(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_element(&bytes);
        }
    }

    /// The number in a comment is made of every byte of the rule: a change of a rule must be meant.
    #[test]
    fn the_rules_of_a_node() {
        let rules = ruleset::node(&ruleset::NodeParameters {
            bridge: "gantry0".into(),
            subnet: "10.210.1.0/24".parse().unwrap(),
            gateway: std::net::Ipv4Addr::new(10, 210, 1, 1),
            replica_net: "10.210.0.0/16".parse().unwrap(),
            service_net: "10.211.0.0/16".parse().unwrap(),
            apart: false,
        });
        let fingerprint = rules.fingerprint();
        let text: Vec<String> =
            fingerprint.rules.iter().map(|(chain, comment)| format!("{chain}: {comment}")).collect();
        assert_eq!(
            text,
            [
                "forward: service without replica cc66ba93",
                "forward: service without replica e77d37f5",
                "local_in: published port without replica 42161c49",
                "local_in: published port without replica 9989ca57",
                "local_out: service without replica b766d44c",
                "local_out: service without replica a608022a",
                "output: service address to a replica 0e582476",
                "output: service of many replicas 2b5ffc6d",
                "output: service whose clients stay 83d69f8f",
                "output: published port to a replica 92c97722",
                "postrouting: back through the bridge ccd4d295",
                "postrouting: back through this node 8f09dfa8",
                "postrouting: replicas to the outside b5979ba8",
                "prerouting: service address to a replica 814c38dd",
                "prerouting: service of many replicas 3541be42",
                "prerouting: service whose clients stay 63ded9bc",
                "prerouting: published port to a replica 2085bf39",
            ]
        );
        assert_eq!(fingerprint.sets, ["held", "many", "published", "services", "sticky"]);
    }

    #[test]
    fn the_rules_of_a_bridge() {
        let text = |apart| {
            let fingerprint = ruleset::bridge(apart).fingerprint();
            let rules = fingerprint.rules.iter().map(|(chain, comment)| format!("{chain}: {comment}"));
            (rules.collect::<Vec<_>>(), fingerprint.sets.join(" "))
        };
        let (rules, sets) = text(false);
        assert_eq!(sets, "links senders");
        assert_eq!(rules.len(), 2, "{rules:?}");
        assert!(rules.iter().all(|rule| rule.starts_with("prerouting: another's ")), "{rules:?}");
        let (rules, sets) = text(true);
        assert_eq!(sets, "groups links reach senders");
        assert_eq!(rules.iter().filter(|rule| rule.starts_with("forward: ")).count(), 2, "{rules:?}");
    }

    #[test]
    fn elements_on_the_wire() {
        let set = Set { name: "s", key: &[Part::Address, Part::Slot], value: &[Part::Address] };
        let mut batch = Batch::new();
        let key = [10, 211, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0];
        let value = [10, 210, 1, 2, 0, 0, 0, 0];
        write_elements(&mut batch, NEW_ELEMENT, Table { name: "t", layer: Layer::Ip }, &set, &[(key, value)]);
        let mut bytes = batch.written().to_vec();
        bytes[8..12].fill(0); // the sequence number
        let hex: Vec<String> = bytes.chunks(4).map(|c| c.iter().map(|b| format!("{b:02x}")).collect()).collect();
        assert_eq!(
            hex.join(" "),
            "48000000 0c0a0104 00000000 00000000 02000000 06000100 74000000 06000200 73000000 24000380 \
             20000180 10000180 0c000100 0ad30001 02000000 0c000280 08000100 0ad20102"
        );
        let list = Attributes(&bytes[20..]).value(3).unwrap();
        let (_, element) = Attributes(list).next().unwrap();
        assert_eq!(parse_element(element), Some((key, value)));
    }
}
