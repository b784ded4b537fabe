//! Which replica has which number in the programs' map, and in which order the maps are changed: decisions only.
//!
//! A change of one replica is two or three writes, whatever the number of services. Their order keeps every moment in
//! between right for a program that runs just then: a replica can be used before a list names it, and a list no longer
//! names it before it cannot be used. A number is given to another replica only when no socket counts on it any more.

use super::policy::CHOICES_MAX;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

/// Numbers there are; 0 means "none".
pub(crate) const ENDPOINTS_MAX: u32 = 65_536;
/// Length of a list in the map.
pub(crate) const LIST_LENGTH: usize = 8 + 4 * CHOICES_MAX;

/// What the programs are told of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub(crate) enum State {
    /// The number is nobody's.
    Free = 0,
    /// May be given connections.
    Ready = super::programs::READY as u32,
    /// A replica that is not to be given any; those it has may finish.
    Draining = 2,
    /// No replica any more, but sockets that had been led to it are still open.
    Gone = 3,
}

impl State {
    pub(crate) fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Ready,
            2 => Self::Draining,
            3 => Self::Gone,
            _ => Self::Free,
        }
    }
}

/// What a service address leads to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct List {
    /// Whether a client stays with its replica.
    pub(crate) sticky: bool,
    /// Numbers of at most [`CHOICES_MAX`] ready replicas.
    pub(crate) ids: Vec<u32>,
}

impl List {
    pub(crate) fn bytes(&self) -> [u8; LIST_LENGTH] {
        let mut bytes = [0; LIST_LENGTH];
        let head = [self.ids.len() as u32, u32::from(self.sticky)];
        for (to, word) in bytes.chunks_exact_mut(4).zip(head.iter().chain(&self.ids)) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    pub(crate) fn parse(bytes: &[u8; LIST_LENGTH]) -> Self {
        let mut words = bytes.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        let count = words.next().unwrap_or_default() as usize;
        let sticky = words.next() == Some(1);
        Self { sticky, ids: words.take(count).collect() }
    }
}

/// What a service should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) sticky: bool,
    /// Each replica's address, and whether it is ready.
    pub(crate) endpoints: BTreeMap<Ipv4Addr, bool>,
}

/// Whose number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) service: Ipv4Addr,
    pub(crate) address: Ipv4Addr,
}

impl Key {
    /// As the programs compare it: service address in the high half, both halves as the bytes lie on the wire.
    pub(crate) fn number(self) -> u64 {
        let half = |address: Ipv4Addr| u64::from(u32::from_ne_bytes(address.octets()));
        half(self.service) << 32 | half(self.address)
    }

    pub(crate) fn from_number(number: u64) -> Self {
        let address = |half: u64| Ipv4Addr::from((half as u32).to_ne_bytes());
        Self { service: address(number >> 32), address: address(number) }
    }
}

/// One change of the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Write {
    /// A number gets its replica.
    Name(u32, Key),
    /// What the programs may do with it.
    Mark(u32, State),
    /// A service's list, as a whole.
    Lead(Ipv4Addr, List),
    /// An address of no service.
    Forget(Ipv4Addr),
}

/// More replicas than numbers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// One service.
#[derive(Debug, Default)]
struct Entry {
    /// The list in the kernel, if there is one.
    list: Option<List>,
    ids: BTreeMap<Ipv4Addr, (u32, State)>,
}

/// What is in the maps.
#[derive(Debug, Default)]
pub(crate) struct Book {
    services: BTreeMap<Ipv4Addr, Entry>,
    /// Replicas that are gone and have still their numbers.
    gone: BTreeSet<Key>,
    free: VecDeque<u32>,
    /// The first number never used.
    next: u32,
}

impl Book {
    /// From what an earlier netd left in the kernel. A list that names a number which is not its service's is dropped:
    /// it will be written anew.
    pub(crate) fn restore(
        endpoints: impl IntoIterator<Item = (u32, Key, State)>,
        lists: impl IntoIterator<Item = (Ipv4Addr, List)>,
    ) -> Self {
        let mut book = Self { next: 1, ..Self::default() };
        for (id, key, state) in endpoints {
            // Numbers below it that are nobody's can be used.
            book.free.extend(book.next..id);
            book.next = book.next.max(id + 1);
            let entry = book.services.entry(key.service).or_default();
            if state == State::Free || entry.ids.contains_key(&key.address) {
                book.free.push_back(id);
            } else {
                entry.ids.insert(key.address, (id, state));
                if state == State::Gone {
                    book.gone.insert(key);
                }
            }
        }
        for (service, list) in lists {
            book.services.entry(service).or_default().list = Some(list);
        }
        book
    }

    /// Services that are in the maps.
    pub(crate) fn services(&self) -> Vec<Ipv4Addr> {
        self.services.keys().copied().collect()
    }

    /// Every replica that has a number.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (Key, u32, State)> {
        self.services.iter().flat_map(|(service, entry)| {
            entry.ids.iter().map(|(address, (id, state))| (Key { service: *service, address: *address }, *id, *state))
        })
    }

    /// Those that are gone.
    pub(crate) fn gone(&self) -> impl Iterator<Item = Key> {
        self.gone.iter().copied()
    }

    /// A replica's number.
    pub(crate) fn id(&self, key: Key) -> Option<u32> {
        self.services.get(&key.service)?.ids.get(&key.address).map(|(id, _)| *id)
    }

    fn take(&mut self) -> Option<u32> {
        // The one that is free for longest comes first.
        self.free.pop_front().or_else(|| {
            let id = self.next.max(1);
            self.next = id + 1;
            (id < ENDPOINTS_MAX).then_some(id)
        })
    }

    /// Make one service what is wanted (`None`: no service), and answer the writes that do so, in their order.
    ///
    /// - `offset`: differs between nodes; decides which 64 of more replicas this node uses.
    ///
    /// # Errors
    /// All numbers are used; nothing was changed for this service then.
    pub(crate) fn change(
        &mut self,
        service: Ipv4Addr,
        wanted: Option<&Wanted>,
        offset: u32,
    ) -> Result<Vec<Write>, Full> {
        let nobody = BTreeMap::new();
        let endpoints = wanted.map_or(&nobody, |wanted| &wanted.endpoints);
        let mut entry = self.services.remove(&service).unwrap_or_default();
        let mut writes = Vec::new();
        let mut ready = Vec::new();
        for (address, _) in endpoints.iter().filter(|(_, ready)| **ready) {
            let known = entry.ids.get(address).copied();
            let id = match known {
                Some((id, _)) => id,
                None => match self.take() {
                    Some(id) => {
                        writes.push(Write::Name(id, Key { service, address: *address }));
                        id
                    }
                    None => {
                        self.free.extend(writes.iter().filter_map(|write| match write {
                            Write::Name(id, _) => Some(*id),
                            _ => None,
                        }));
                        self.services.insert(service, entry);
                        return Err(Full);
                    }
                },
            };
            if known.is_none_or(|(_, state)| state != State::Ready) {
                writes.push(Write::Mark(id, State::Ready));
            }
            ready.push((*address, id));
        }
        for (address, id) in &ready {
            entry.ids.insert(*address, (*id, State::Ready));
        }
        let list = wanted
            .map(|wanted| List { sticky: wanted.sticky, ids: window(&ready, offset).map(|(_, id)| *id).collect() });
        if list != entry.list {
            writes.push(match &list {
                Some(list) => Write::Lead(service, list.clone()),
                None => Write::Forget(service),
            });
        }
        entry.list = list;
        for (address, (id, state)) in &mut entry.ids {
            let now = match endpoints.get(address) {
                Some(true) => State::Ready,
                Some(false) => State::Draining,
                None => State::Gone,
            };
            let key = Key { service, address: *address };
            if now == State::Gone {
                self.gone.insert(key);
            } else {
                self.gone.remove(&key);
            }
            if *state != now {
                *state = now;
                writes.push(Write::Mark(*id, now));
            }
        }
        if entry.list.is_some() || !entry.ids.is_empty() {
            self.services.insert(service, entry);
        }
        Ok(writes)
    }

    /// Numbers of replicas that are gone and on which no socket counts any more become free.
    pub(crate) fn collect(&mut self, live: impl Fn(u32) -> u32) -> Vec<Write> {
        let mut writes = Vec::new();
        let (services, free) = (&mut self.services, &mut self.free);
        self.gone.retain(|key| {
            let Some(entry) = services.get_mut(&key.service) else { return false };
            let Some((id, _)) = entry.ids.get(&key.address).copied() else { return false };
            if live(id) > 0 {
                return true;
            }
            entry.ids.remove(&key.address);
            if entry.list.is_none() && entry.ids.is_empty() {
                services.remove(&key.service);
            }
            free.push_back(id);
            writes.push(Write::Mark(id, State::Free));
            false
        });
        writes
    }
}

/// At most [`CHOICES_MAX`] of all, beginning at another one on each node.
fn window<T>(all: &[T], offset: u32) -> impl Iterator<Item = &T> {
    let start = if all.len() > CHOICES_MAX { offset as usize % all.len() } else { 0 };
    all.iter().cycle().skip(start).take(all.len().min(CHOICES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 211, 0, 1);

    fn replica(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 210, 1, n)
    }

    fn wanted(endpoints: &[(u8, bool)]) -> Wanted {
        Wanted { sticky: false, endpoints: endpoints.iter().map(|(n, ready)| (replica(*n), *ready)).collect() }
    }

    fn text(writes: &[Write]) -> String {
        let words = writes.iter().map(|write| match write {
            Write::Name(id, key) => format!("{id} is {}", key.address.octets()[3]),
            Write::Mark(id, state) => format!("{id} {state:?}"),
            Write::Lead(_, list) => format!("list {:?}", list.ids),
            Write::Forget(_) => "no list".to_owned(),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn one_change_after_the_other() {
        let mut book = Book { next: 1, ..Book::default() };
        for (why, want, expected) in [
            ("two new ones", Some(wanted(&[(2, true), (3, true)])), "1 is 2, 1 Ready, 2 is 3, 2 Ready, list [1, 2]"),
            ("nothing changed", Some(wanted(&[(2, true), (3, true)])), ""),
            ("one drains", Some(wanted(&[(2, false), (3, true)])), "list [2], 1 Draining"),
            ("and is ready again", Some(wanted(&[(2, true), (3, true)])), "1 Ready, list [1, 2]"),
            ("one goes", Some(wanted(&[(3, true)])), "list [2], 1 Gone"),
            ("one not ready yet needs no number", Some(wanted(&[(3, true), (4, false)])), ""),
            ("it comes back while sockets are open", Some(wanted(&[(2, true), (3, true)])), "1 Ready, list [1, 2]"),
            ("replaced by another", Some(wanted(&[(4, true)])), "3 is 4, 3 Ready, list [3], 1 Gone, 2 Gone"),
            ("no replica", Some(wanted(&[])), "list [], 3 Gone"),
            ("no service", None, "no list"),
        ] {
            assert_eq!(text(&book.change(SERVICE, want.as_ref(), 0).unwrap()), expected, "{why}");
        }
        assert_eq!(text(&book.collect(|id| u32::from(id == 2))), "1 Free, 3 Free", "a socket is open on 2");
        assert_eq!(text(&book.change(SERVICE, Some(&wanted(&[(9, true)])), 0).unwrap()), "1 is 9, 1 Ready, list [1]");
        assert_eq!(text(&book.collect(|_| 0)), "2 Free");
    }

    #[test]
    fn a_list_survives_the_way_there_and_back() {
        for list in [List::default(), List { sticky: true, ids: (1..=64).collect() }] {
            assert_eq!(List::parse(&list.bytes()), list);
        }
        let mut damaged = [0xff; LIST_LENGTH];
        assert_eq!(List::parse(&damaged).ids.len(), CHOICES_MAX, "never more than there is room for");
        damaged[..4].fill(0);
        assert_eq!(List::parse(&damaged), List::default());
        let key = Key { service: SERVICE, address: replica(7) };
        assert_eq!(Key::from_number(key.number()), key);
    }

    #[test]
    fn more_replicas_than_a_list_holds() {
        let all = wanted(&(2..=101).map(|n| (n, true)).collect::<Vec<_>>());
        let lists: Vec<Vec<u32>> = [0, 50]
            .into_iter()
            .map(|offset| {
                let mut book = Book { next: 1, ..Book::default() };
                book.change(SERVICE, Some(&all), offset).unwrap();
                book.services[&SERVICE].list.clone().unwrap().ids
            })
            .collect();
        assert!(lists.iter().all(|ids| ids.len() == CHOICES_MAX));
        let both: std::collections::BTreeSet<u32> = lists.concat().into_iter().collect();
        assert_eq!(both.len(), 100, "each node another part");
    }

    #[test]
    fn when_all_numbers_are_used_the_service_stays_as_it_was() {
        let mut book = Book { next: ENDPOINTS_MAX - 1, ..Book::default() };
        assert_eq!(book.change(SERVICE, Some(&wanted(&[(2, true), (3, true)])), 0), Err(Full));
        assert_eq!(
            text(&book.change(SERVICE, Some(&wanted(&[(3, true)])), 0).unwrap()),
            "65535 is 3, 65535 Ready, list [65535]"
        );
        assert_eq!(book.change(SERVICE, Some(&wanted(&[(2, true), (3, true)])), 0), Err(Full));
        assert_eq!(text(&book.change(SERVICE, Some(&wanted(&[(3, true)])), 0).unwrap()), "");
    }

    /// The maps, as the kernel would hold them.
    #[derive(Default)]
    struct Maps {
        endpoints: BTreeMap<u32, (Option<Key>, Option<State>)>,
        lists: BTreeMap<Ipv4Addr, List>,
    }

    impl Maps {
        fn write(&mut self, write: &Write) {
            match write {
                Write::Name(id, key) => self.endpoints.entry(*id).or_default().0 = Some(*key),
                Write::Mark(id, state) => self.endpoints.entry(*id).or_default().1 = Some(*state),
                Write::Lead(service, list) => drop(self.lists.insert(*service, list.clone())),
                Write::Forget(service) => drop(self.lists.remove(service)),
            }
        }

        /// Replicas that a program could choose now.
        fn usable(&self, service: Ipv4Addr) -> Vec<Ipv4Addr> {
            let ids = self.lists.get(&service).map(|list| list.ids.clone()).unwrap_or_default();
            let usable = ids.iter().map(|id| self.endpoints[id]).filter_map(|(key, state)| {
                key.filter(|key| key.service == service && state == Some(State::Ready)).map(|key| key.address)
            });
            usable.collect()
        }

        fn book(&self) -> Book {
            let endpoints = self.endpoints.iter().filter_map(|(id, (key, state))| Some((*id, (*key)?, (*state)?)));
            Book::restore(endpoints, self.lists.clone())
        }
    }

    fn some_wanted() -> impl Strategy<Value = Wanted> {
        proptest::collection::btree_map(2u8..12, any::<bool>(), 0..8)
            .prop_map(|map| wanted(&map.into_iter().collect::<Vec<_>>()))
    }

    proptest! {
        #[test]
        fn at_every_moment_only_ready_replicas_and_never_an_empty_window(
            steps in proptest::collection::vec((0u8..3, proptest::option::of(some_wanted()), any::<bool>()), 1..30),
        ) {
            let (mut book, mut maps) = (Book { next: 1, ..Book::default() }, Maps::default());
            for (service, want, restart) in steps {
                let service = Ipv4Addr::new(10, 211, 0, service);
                let before = maps.usable(service);
                let ready: Vec<Ipv4Addr> = want.iter().flat_map(|w| &w.endpoints).filter(|(_, r)| **r).map(|(a, _)| *a).collect();
                let writes = book.change(service, want.as_ref(), 0).unwrap();
                for write in &writes {
                    maps.write(write);
                    let now = maps.usable(service);
                    prop_assert!(now.iter().all(|a| before.contains(a) || ready.contains(a)));
                    prop_assert!(!now.is_empty() || before.is_empty() || ready.is_empty(), "{}", text(&writes));
                }
                prop_assert_eq!(maps.usable(service), ready);
                prop_assert_eq!(text(&book.change(service, want.as_ref(), 0).unwrap()), "");
                for write in book.collect(|id| id % 2) {
                    maps.write(&write);
                }
                if restart {
                    book = maps.book();
                    prop_assert_eq!(text(&book.change(service, want.as_ref(), 0).unwrap()), "");
                }
            }
            let mut ids: Vec<u32> = book.endpoints().map(|(_, id, _)| id).collect();
            let count = ids.len();
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), count, "no number is two replicas'");
        }
    }
}
