//! Which address a container gets.

use crate::error::NetError;
use gantry_api::network::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;

/// Free addresses of one subnet. Network, bridge (the first) and broadcast address are never given.
///
/// A fresh address comes before a used one, and of the used ones the one freed longest ago: what somebody still sends
/// to a container that is gone shall not reach another one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allocator {
    used: BTreeSet<Ipv4Addr>,
    freed: VecDeque<Ipv4Addr>,
}

impl Allocator {
    /// An address of `subnet` that nobody has.
    ///
    /// # Errors
    /// All are used.
    pub(crate) fn take(&mut self, subnet: Ipv4Net) -> Result<Ipv4Addr, NetError> {
        // Addresses of an earlier subnet are of no use any more.
        self.freed.retain(|address| subnet.contains(*address));
        let last = (1u32 << (32 - u32::from(subnet.length()))).saturating_sub(1);
        let fresh = (2..last)
            .filter_map(|index| subnet.nth(index))
            .find(|address| !self.used.contains(address) && !self.freed.contains(address));
        let address = fresh.or_else(|| self.freed.pop_front()).ok_or(NetError::Exhausted(subnet))?;
        self.used.insert(address);
        Ok(address)
    }

    /// Take back an address; fine when it is free.
    pub(crate) fn free(&mut self, address: Ipv4Addr) {
        if self.used.remove(&address) {
            self.freed.push_back(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn last(allocator: &mut Allocator, subnet: &str) -> Option<u8> {
        allocator.take(subnet.parse().unwrap()).ok().map(|address| address.octets()[3])
    }

    #[test]
    fn fresh_before_used_and_the_longest_free_first() {
        let mut allocator = Allocator::default();
        let net = "10.210.1.0/29"; // .2 to .6
        assert_eq!((0..3).map(|_| last(&mut allocator, net)).collect::<Vec<_>>(), [Some(2), Some(3), Some(4)]);
        allocator.free(Ipv4Addr::new(10, 210, 1, 3));
        allocator.free(Ipv4Addr::new(10, 210, 1, 2));
        allocator.free(Ipv4Addr::new(10, 210, 1, 2));
        assert_eq!(
            (0..5).map(|_| last(&mut allocator, net)).collect::<Vec<_>>(),
            [Some(5), Some(6), Some(3), Some(2), None]
        );
        let error = allocator.take(net.parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "no free address in 10.210.1.0/29");
        assert_eq!(last(&mut allocator, "10.210.2.0/24"), Some(2), "a new subnet begins anew");
    }

    proptest! {
        #[test]
        fn nobody_gets_what_another_has(steps in proptest::collection::vec(any::<Option<u8>>(), 0..100)) {
            let subnet: Ipv4Net = "10.210.1.0/28".parse().unwrap();
            let mut allocator = Allocator::default();
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for step in steps {
                match step {
                    Some(n) if !held.is_empty() => {
                        allocator.free(held.swap_remove(usize::from(n) % held.len()));
                    }
                    _ => match allocator.take(subnet) {
                        Ok(address) => {
                            prop_assert!(!held.contains(&address));
                            prop_assert!(subnet.contains(address) && (2..=14).contains(&(address.octets()[3])));
                            held.push(address);
                        }
                        Err(_) => prop_assert_eq!(held.len(), 13),
                    },
                }
            }
        }
    }
}
