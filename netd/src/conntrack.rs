//! Forgetting connections: a replica that is gone must not be sent what its old connections still send.

use crate::error::NetError;
use crate::netlink::{Attributes, Batch, ENOENT, Family, Netlink, REQUEST};
use std::net::Ipv4Addr;

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const HEADER: [u8; 4] = [2, 0, 0, 0];
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
const FILTER_SOURCE: u32 = 1;
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;

/// Which connections of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those it opened and those it serves.
    All,
    /// Those it serves.
    Served,
    /// Of those it serves, the ones over UDP: without a state of their own they would stick to it for ever, while a
    /// TCP connection may be let finish.
    ServedUdp,
}

/// Delete connections of `address` in the calling thread's namespace. Answers how many.
///
/// Listed with the kernel's own filter (Linux 5.8; a kernel without it sends all, and we choose), then deleted one by
/// one in one write: deleting by filter came with Linux 6.8 only.
pub(crate) fn forget(address: Ipv4Addr, which: Which) -> Result<usize, NetError> {
    let mut socket = Netlink::open(Family::Netfilter)?;
    let mut forgotten = 0;
    // Who answers is the source of the reply, whether or not the address was translated on the way there.
    let sides: &[u16] = if which == Which::All { &[ORIGINAL, REPLY] } else { &[REPLY] };
    for side in sides {
        let found = socket.dump(|batch, flags| list(batch, flags, address, *side))?;
        let mut batch = Batch::new();
        for (_, payload) in &found {
            let Some(connection) = payload.get(HEADER.len()..).map(Attributes) else { continue };
            if matches(&connection, *side, address, which)
                && let Some(original) = connection.value(ORIGINAL)
            {
                batch.begin(DELETE, REQUEST, &HEADER, "forget connection of", address.to_string());
                batch.nest(ORIGINAL, |b| b.append(original));
                batch.end();
                batch.tolerate(&[ENOENT]);
                forgotten += 1;
            }
        }
        socket.run(batch)?;
    }
    Ok(forgotten)
}

fn list(batch: &mut Batch, flags: u16, address: Ipv4Addr, side: u16) {
    batch.begin(GET, flags, &HEADER, "list connections of", address.to_string());
    batch.nest(side, |b| {
        b.nest(ADDRESSES, |b| {
            b.attribute(1, &address.octets());
            b.attribute(2, &[0; 4]);
        });
        b.nest(PROTOCOL, |b| b.attribute(1, &[0]));
    });
    batch.nest(FILTER, |b| {
        let flags = |wanted| if side == wanted { FILTER_SOURCE } else { 0 };
        b.attribute(FILTER_ORIGINAL, &flags(ORIGINAL).to_ne_bytes());
        b.attribute(FILTER_REPLY, &flags(REPLY).to_ne_bytes());
    });
    batch.end();
}

fn matches(connection: &Attributes<'_>, side: u16, address: Ipv4Addr, which: Which) -> bool {
    const UDP: u8 = 17;
    let part = |outer: u16, inner: u16| Attributes(Attributes(connection.value(side)?).value(outer)?).value(inner);
    part(ADDRESSES, 1) == Some(&address.octets()[..])
        && (which != Which::ServedUdp || part(PROTOCOL, 1) == Some(&[UDP][..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(source: [u8; 4], protocol: u8) -> Vec<u8> {
        let mut batch = Batch::new();
        for side in [ORIGINAL, REPLY] {
            batch.nest(side, |b| {
                b.nest(ADDRESSES, |b| b.attribute(1, &if side == REPLY { source } else { [10, 0, 0, 1] }));
                b.nest(PROTOCOL, |b| b.attribute(1, &[protocol]));
            });
        }
        batch.written().to_vec()
    }

    #[test]
    fn only_the_asked_connections_match() {
        let address = Ipv4Addr::new(10, 210, 1, 2);
        for (source, protocol, which, side, expected) in [
            ([10, 210, 1, 2], 6, Which::Served, REPLY, true),
            ([10, 210, 1, 2], 6, Which::ServedUdp, REPLY, false),
            ([10, 210, 1, 2], 17, Which::ServedUdp, REPLY, true),
            ([10, 210, 1, 3], 17, Which::All, REPLY, false),
            ([10, 210, 1, 2], 17, Which::All, ORIGINAL, false),
        ] {
            let bytes = connection(source, protocol);
            assert_eq!(matches(&Attributes(&bytes), side, address, which), expected, "{source:?} {protocol} {which:?}");
        }
    }
}
