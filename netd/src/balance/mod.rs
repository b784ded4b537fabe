//! Balancing at connect time: programs in the kernel lead each socket of a container to a replica when it connects, so
//! that packets need no translation, and count what is open.
//!
//! ```text
//! Table ─► book (numbers, order of writes) ─► kernel: maps ◄─ programs ◄─ connect, sendto, close
//! loads of the cluster ─► smoothed ──────────────────┘  └─► open connections of this node
//! ```
//! [`policy`] says how a replica is chosen; [`programs`] is the same for the kernel. What a kernel refuses leaves all
//! connections to the rules of nf_tables, which are always there.

mod asm;
pub(crate) mod book;
#[cfg(test)]
mod interpreter;
mod kernel;
#[cfg_attr(not(test), expect(dead_code, reason = "what the programs are compared with"))]
pub(crate) mod policy;
mod programs;
#[cfg(test)]
mod simulation;

use crate::error::NetError;
use crate::plan::changes;
use book::{Book, Key, List, State, Wanted, Write};
use gantry_api::network::{Balancing, Live, Loads, Service, Table};
use kernel::Kernel;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Programs and maps of a node, or why there are none.
#[derive(Debug)]
pub(crate) struct Balancer {
    run_dir: PathBuf,
    cgroup_parent: Option<String>,
    on: Option<On>,
    reason: String,
    tried: Option<Instant>,
}

#[derive(Debug)]
struct On {
    kernel: Kernel,
    book: Book,
    /// The table in the maps.
    applied: Option<Arc<Table>>,
    /// Replicas there are no numbers left for.
    full: bool,
    reports: Reports,
    /// Since when replicas are gone that sockets are still open to.
    gone: HashMap<Key, Instant>,
}

/// The cluster's connections to each replica, smoothed.
#[derive(Debug, Default)]
struct Reports {
    connections: HashMap<Key, f64>,
    last: Option<Instant>,
}

impl Reports {
    /// Take in what all nodes have reported together; answers the new numbers, zeros too.
    fn take(&mut self, now: Instant, loads: &Loads) -> Vec<(Key, f64)> {
        /// How much of the difference a report moves: three reports, a third of a second, make two thirds of it.
        const WEIGHT: f64 = 0.3;
        self.last = Some(now);
        for connections in self.connections.values_mut() {
            *connections *= 1.0 - WEIGHT;
        }
        for load in &loads.endpoints {
            let key = Key { service: load.service, address: load.address };
            *self.connections.entry(key).or_default() += WEIGHT * f64::from(load.connections);
        }
        let all = self.connections.iter().map(|(key, connections)| (*key, *connections)).collect();
        // What has decayed to less than a unit is as good as none.
        self.connections.retain(|_, connections| *connections * f64::from(1u32 << policy::UNIT_BITS) >= 1.0);
        all
    }

    /// Reports that nobody renews say nothing any more. Answers what must be set to zero.
    fn expire(&mut self, now: Instant) -> Vec<Key> {
        const STALE: Duration = Duration::from_secs(2);
        if self.last.is_none_or(|last| now.saturating_duration_since(last) < STALE) {
            return Vec::new();
        }
        self.last = None;
        self.connections.drain().map(|(key, _)| key).collect()
    }
}

impl Balancer {
    /// - `cgroup_parent`: the cgroup above all containers of this node; `None`: no programs.
    pub(crate) fn new(run_dir: &Path, cgroup_parent: Option<String>) -> Self {
        let reason = "no cgroup was named that the containers are in".to_owned();
        Self { run_dir: run_dir.to_owned(), cgroup_parent, on: None, reason, tried: None }
    }

    /// Make maps and programs what the table says. Answers how much was written, and what there was no room for.
    pub(crate) fn ensure(&mut self, table: &Arc<Table>, offset: u32) -> (usize, Option<String>) {
        let applied = self.on.as_ref().and_then(|on| on.applied.as_ref());
        let mut written = self.switch_on(applied.is_some_and(|applied| Arc::ptr_eq(applied, table)));
        let Some(on) = &mut self.on else { return (written, None) };
        match on.ensure(table, offset) {
            Ok(count) => {
                written += count;
                let problem = on.full.then(|| {
                    format!("more than {} replicas: some services are balanced per packet", book::ENDPOINTS_MAX - 1)
                });
                (written, problem)
            }
            Err(error) => {
                self.switch_off(&error);
                (written, None)
            }
        }
    }

    /// - `look`: whether what is on may have been damaged.
    fn switch_on(&mut self, look: bool) -> usize {
        const TRY_EVERY: Duration = Duration::from_secs(60);
        if look && self.on.as_ref().is_some_and(|on| !on.kernel.is_there()) {
            tracing::warn!("the balancing programs' directory is gone; making it anew");
            self.on = None;
            self.tried = None;
        }
        let Some(parent) = self.cgroup_parent.as_ref().filter(|_| self.on.is_none()) else { return 0 };
        if self.tried.is_some_and(|tried| tried.elapsed() < TRY_EVERY) {
            return 0;
        }
        self.tried = Some(Instant::now());
        match kernel::cgroup(parent).and_then(|cgroup| Kernel::open(&self.run_dir, &cgroup)) {
            Ok((kernel, written)) => match On::new(kernel) {
                Ok(on) => {
                    self.on = Some(on);
                    return written;
                }
                Err(error) => self.switch_off(&error),
            },
            Err(error) => self.switch_off(&error),
        }
        0
    }

    fn switch_off(&mut self, error: &NetError) {
        let reason = error.chain();
        if self.reason != reason {
            tracing::warn!(reason, "connections are not balanced at connect time; nftables does it per packet");
        }
        self.reason = reason;
        self.on = None;
        if let Err(error) = kernel::remove(&self.run_dir) {
            tracing::warn!(error = %error.chain(), "balancing programs cannot be removed");
        }
    }

    /// For people.
    pub(crate) fn status(&self) -> Balancing {
        match &self.on {
            Some(_) => Balancing::Connect,
            None => Balancing::Packets { reason: self.reason.clone() },
        }
    }

    /// Open sockets of this node per replica: of those in the table, and of those that are gone but not yet left.
    pub(crate) fn live(&self) -> Vec<Live> {
        let Some(on) = &self.on else { return Vec::new() };
        let live = on.book.endpoints().filter_map(|(key, id, state)| {
            let endpoint = on.kernel.endpoint(id)?;
            Some(Live {
                service: key.service,
                address: key.address,
                ready: state == State::Ready,
                connections: endpoint.live.load(Ordering::Relaxed),
                total: endpoint.total.load(Ordering::Relaxed),
            })
        });
        live.collect()
    }

    /// Those of `replicas` that sockets of this node are open to.
    pub(crate) fn open_to(&self, replicas: &BTreeSet<Ipv4Addr>) -> Vec<Ipv4Addr> {
        if replicas.is_empty() {
            return Vec::new();
        }
        let mut open: Vec<_> = self.live().into_iter().filter(|l| l.connections > 0).map(|l| l.address).collect();
        open.retain(|address| replicas.contains(address));
        open.sort_unstable();
        open.dedup();
        open
    }

    /// Replicas that are gone for longer than `patience`, with sockets still open to them.
    pub(crate) fn left_open(&self, patience: Duration) -> BTreeSet<Ipv4Addr> {
        let gone = self.on.iter().flat_map(|on| &on.gone);
        gone.filter(|(_, since)| since.elapsed() >= patience).map(|(key, _)| key.address).collect()
    }

    /// Take in the whole cluster's loads.
    pub(crate) fn report(&mut self, loads: &Loads) {
        let Some(on) = &mut self.on else { return };
        for (key, connections) in on.reports.take(Instant::now(), loads) {
            on.tell(key, policy::reported(connections, loads.nodes));
        }
    }
}

impl On {
    /// With what an earlier netd left in the maps.
    fn new(kernel: Kernel) -> Result<Self, NetError> {
        let lists = kernel.services.all().map_err(|source| map_error("list", source))?;
        let lists = lists.iter().map(|(service, list)| (Ipv4Addr::from(*service), List::parse(list)));
        // The line of number 0, which is nobody's, keeps how far the numbers were ever used.
        let used = kernel.endpoint(0).map(|zero| zero.live.load(Ordering::Relaxed)).unwrap_or_default();
        let endpoints = (1..used).filter_map(|id| {
            let endpoint = kernel.endpoint(id)?;
            let key = Key::from_number(endpoint.key.load(Ordering::Relaxed));
            Some((id, key, State::from_number(endpoint.state.load(Ordering::Relaxed))))
        });
        let book = Book::restore(endpoints, lists);
        Ok(Self { kernel, book, applied: None, full: false, reports: Reports::default(), gone: HashMap::new() })
    }

    fn ensure(&mut self, table: &Arc<Table>, offset: u32) -> Result<usize, NetError> {
        let mut written = 0;
        for key in self.reports.expire(Instant::now()) {
            self.tell(key, 0);
        }
        let same = self.applied.as_ref().is_some_and(|applied| Arc::ptr_eq(applied, table));
        if !same || self.full {
            written += self.apply(table, offset)?;
            self.applied = Some(Arc::clone(table));
        } else {
            // Damage is looked for when nothing else is to do: at every check.
            written += self.kernel.attach()?;
        }
        let kernel = &self.kernel;
        let live = |id| kernel.endpoint(id).map_or(0, |endpoint| endpoint.live.load(Ordering::Relaxed));
        for write in self.book.collect(live) {
            self.write(&write)?;
        }
        let now = Instant::now();
        self.gone = self.book.gone().map(|key| (key, self.gone.get(&key).copied().unwrap_or(now))).collect();
        Ok(written)
    }

    fn apply(&mut self, table: &Table, offset: u32) -> Result<usize, NetError> {
        let before = self.applied.as_ref().filter(|_| !self.full).cloned();
        let mut changes = changes(before.as_deref(), table);
        if before.is_none() {
            let present: HashSet<Ipv4Addr> = table.services.iter().map(|service| service.address).collect();
            let left = self.book.services().into_iter().filter(|service| !present.contains(service));
            changes.extend(left.map(|service| (service, None)));
        }
        let mut written = 0;
        self.full = false;
        for (address, service) in changes {
            let wanted = service.map(wanted);
            match self.book.change(address, wanted.as_ref(), offset) {
                Ok(writes) => {
                    for write in &writes {
                        self.write(write)?;
                    }
                    written += writes.len();
                }
                Err(book::Full) => self.full = true,
            }
        }
        Ok(written)
    }

    fn write(&self, write: &Write) -> Result<(), NetError> {
        match write {
            Write::Name(id, key) => {
                if let (Some(endpoint), Some(zero)) = (self.kernel.endpoint(*id), self.kernel.endpoint(0)) {
                    zero.live.fetch_max(id + 1, Ordering::Relaxed);
                    endpoint.reported.store(0, Ordering::Relaxed);
                    endpoint.total.store(0, Ordering::Relaxed);
                    endpoint.key.store(key.number(), Ordering::Release);
                }
                Ok(())
            }
            Write::Mark(id, state) => {
                if let Some(endpoint) = self.kernel.endpoint(*id) {
                    endpoint.state.store(*state as u32, Ordering::Release);
                }
                Ok(())
            }
            Write::Lead(service, list) => self.kernel.services.set(&service.octets(), &list.bytes()),
            Write::Forget(service) => self.kernel.services.remove(&service.octets()),
        }
        .map_err(|source| map_error("write to", source))
    }

    fn tell(&self, key: Key, reported: u32) {
        if let Some(endpoint) = self.book.id(key).and_then(|id| self.kernel.endpoint(id)) {
            endpoint.reported.store(reported, Ordering::Relaxed);
        }
    }
}

fn map_error(operation: &'static str, source: std::io::Error) -> NetError {
    NetError::Bpf { operation, object: "the map `services`".to_owned(), detail: None, source }
}

fn wanted(service: &Service) -> Wanted {
    let mut endpoints = BTreeMap::new();
    for endpoint in &service.endpoints {
        *endpoints.entry(endpoint.address).or_default() |= endpoint.ready;
    }
    Wanted { sticky: service.sticky, endpoints }
}

/// Take programs and maps out of the kernel; fine when there are none.
pub(crate) fn remove(run_dir: &Path) -> Result<(), NetError> {
    kernel::remove(run_dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::network::Load;

    fn key(n: u8) -> Key {
        Key { service: Ipv4Addr::new(10, 211, 0, 1), address: Ipv4Addr::new(10, 210, 0, n) }
    }

    fn loads(list: &[(u8, u32)]) -> Loads {
        let load = |(n, connections): &(u8, u32)| Load {
            service: key(*n).service,
            address: key(*n).address,
            connections: *connections,
        };
        Loads { nodes: 1, endpoints: list.iter().map(load).collect() }
    }

    #[test]
    fn reports_are_smoothed_and_forgotten() {
        let (mut reports, start) = (Reports::default(), Instant::now());
        assert_eq!(reports.take(start, &loads(&[(2, 10)])), [(key(2), 3.0)]);
        let (_, now) = reports.take(start, &loads(&[(2, 10)]))[0];
        assert!((now - 5.1).abs() < 1e-9);
        for _ in 0..40 {
            reports.take(start, &loads(&[]));
        }
        assert!(reports.connections.is_empty(), "what nobody reports decays to nothing");
        reports.take(start, &loads(&[(3, 10)]));
        assert_eq!(reports.expire(start + Duration::from_secs(1)), []);
        assert_eq!(reports.expire(start + Duration::from_secs(3)), [key(3)]);
        assert_eq!(reports.expire(start + Duration::from_secs(4)), []);
    }
}
