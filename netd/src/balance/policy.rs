//! Which replica a connection goes to. The kernel's programs do the same, instruction by instruction ([`super::programs`]),
//! and a test runs both side by side; the simulation runs this.
//!
//! Two different replicas are drawn at random and the one with the smaller load gets the connection; equal loads: at
//! random. The load is the number of open connections **of this node** to the replica, at this very moment, plus twice
//! the smoothed number of the whole cluster's connections to it, divided by the number of nodes. The first part is exact
//! but sees only one node; the second sees all nodes but is a tenth of a second old. Sending everybody to the one
//! smallest would make all nodes run to the same replica between two reports.
//!
//! With session affinity the client (its network namespace: one replica, one namespace) decides instead, by rendezvous
//! hashing: the replica with the largest hash of (client, replica) gets all its connections. A replica that comes or goes
//! moves only the clients that it gets or had.

/// Replicas of one service that a node balances over. A node of a cluster with more takes another 64 of them than its
/// neighbours.
pub(crate) const CHOICES_MAX: usize = 64;

/// Loads are counted in 1/256 of a connection.
pub(crate) const UNIT_BITS: u32 = 8;

/// Odd, and without pattern: 2^64 divided by the golden ratio.
pub(crate) const MIX_ID: u64 = 0x9e37_79b9_7f4a_7c15;
/// Odd, and without pattern.
pub(crate) const MIX_HASH: u64 = 0xd6e8_feb8_6659_fd93;

/// What a choice needs to know of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Open connections of this node.
    pub(crate) live: u32,
    /// See [`reported`].
    pub(crate) reported: u32,
}

impl Load {
    /// The number that is compared.
    pub(crate) fn score(self) -> u64 {
        (u64::from(self.live) << UNIT_BITS) + u64::from(self.reported)
    }
}

/// The part of a replica's load that comes from reports: `connections` of all `nodes`, smoothed, to this replica.
pub(crate) fn reported(connections: f64, nodes: u32) -> u32 {
    // A float becomes the nearest number that fits, and 0 if it is none.
    (2.0 * connections * f64::from(1u32 << UNIT_BITS) / f64::from(nodes.max(1))) as u32
}

/// One of `ids`, or `None` when neither of the two that were drawn can be used.
///
/// - `random`: 32 bits; the low half draws the first, the next 15 bits the second, the last one breaks a tie.
/// - `load`: of a replica that may be given connections now.
pub(crate) fn choose(ids: &[u32], random: u32, load: impl Fn(u32) -> Option<Load>) -> Option<u32> {
    let count = ids.len();
    let first = (random & 0xffff) as usize % count.max(1);
    let mut second = first;
    if count > 1 {
        second = (first + 1 + ((random >> 16) & 0x7fff) as usize % (count - 1)) % count;
    }
    let (first, second) = (*ids.get(first)?, *ids.get(second)?);
    match (load(first), load(second)) {
        (Some(a), Some(b)) if a.score() == b.score() => Some(if random >> 31 == 1 { second } else { first }),
        (Some(a), Some(b)) => Some(if a.score() < b.score() { first } else { second }),
        (Some(_), None) => Some(first),
        (None, Some(_)) => Some(second),
        (None, None) => None,
    }
}

/// The replica that a client sticks to; `None` when there is none.
pub(crate) fn stick(ids: &[u32], client: u64) -> Option<u32> {
    let hash = |id: u32| {
        let mixed = u64::from(id).wrapping_mul(MIX_ID) ^ client;
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(MIX_HASH);
        mixed ^ (mixed >> 32)
    };
    // Of equal hashes the last one wins, as in the program.
    ids.iter().copied().max_by_key(|id| hash(*id))
}

/// What the programs do for one connection: a client that sticks to its replica when that can be used, or else the less
/// loaded of two.
#[cfg(test)] // the simulation and the comparison with the programs
pub(crate) fn pick(ids: &[u32], client: Option<u64>, random: u32, load: impl Fn(u32) -> Option<Load>) -> Option<u32> {
    let stuck = client.and_then(|client| stick(ids, client)).filter(|id| load(*id).is_some());
    stuck.or_else(|| choose(ids, random, load))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const fn load(live: u32, reported: u32) -> Option<Load> {
        Some(Load { live, reported })
    }

    #[test]
    fn the_less_loaded_of_two() {
        // (live, reported) of the replicas 1 and 2; both are drawn whenever there are two.
        for (why, one, two, tie, expected) in [
            ("fewer connections", load(1, 0), load(2, 0), 0, Some(1)),
            ("fewer connections", load(3, 0), load(2, 0), 0, Some(2)),
            ("the cluster's load counts", load(0, 257), load(1, 0), 0, Some(2)),
            ("the cluster's load counts", load(0, 255), load(1, 0), 1, Some(1)),
            ("a tie is broken by the last bit", load(1, 0), load(0, 256), 0, Some(1)),
            ("a tie is broken by the last bit", load(1, 0), load(0, 256), 1, Some(2)),
            ("one that cannot be used is as good as absent", None, load(9, 9), 0, Some(2)),
            ("one that cannot be used is as good as absent", load(9, 9), None, 1, Some(1)),
            ("nobody", None, None, 0, None),
        ] {
            let found = choose(&[1, 2], tie << 31, |id| if id == 1 { one } else { two });
            assert_eq!(found, expected, "{why}: {one:?} {two:?} {tie}");
        }
        assert_eq!(choose(&[], 0, |_| load(0, 0)), None);
        assert_eq!(choose(&[7], u32::MAX, |_| load(0, 0)), Some(7));
    }

    #[test]
    fn equal_replicas_get_equal_shares() {
        let mut shares = BTreeMap::new();
        let mut random = 1u64;
        for _ in 0..100_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = choose(&[1, 2, 3, 4, 5], (random >> 32) as u32, |_| load(0, 0)).unwrap();
            *shares.entry(id).or_insert(0u32) += 1;
        }
        assert!(shares.values().all(|share| (19_000..21_000).contains(share)), "{shares:?}");
    }

    #[test]
    fn reports_are_twice_the_share_of_a_node() {
        for (connections, nodes, expected) in [
            (0.0, 1, 0),
            (1.0, 1, 512),
            (10.0, 20, 256),
            (0.5, 100, 2),
            (f64::NAN, 1, 0),
            (1e30, 1, u32::MAX),
            (1.0, 0, 512),
        ] {
            assert_eq!(reported(connections, nodes), expected, "{connections} {nodes}");
        }
    }

    #[test]
    fn who_sticks_moves_only_when_his_replica_goes_or_a_new_one_is_his() {
        let before = [1, 2, 3, 4, 5];
        let without = [1, 2, 4, 5];
        let mut shares = BTreeMap::new();
        for client in 0..10_000u64 {
            let id = stick(&before, client).unwrap();
            *shares.entry(id).or_insert(0u32) += 1;
            if id != 3 {
                assert_eq!(stick(&without, client), Some(id));
            }
        }
        assert!(shares.len() == 5 && shares.values().all(|share| (1_600..2_400).contains(share)), "{shares:?}");
        assert_eq!(stick(&[], 1), None);
    }
}
