//! Sockets that are connected to a replica that is gone: the kernel ends them, so that a program learns of it at once
//! and not after a quarter of an hour of silence.
//!
//! What was translated on the packet's way is conntrack's ([`crate::conntrack`]); a socket that was led to its replica
//! when it connected knows the replica's own address, and lives in its container's network namespace.

use crate::error::NetError;
use crate::netlink::{Batch, ENOENT, Family, Netlink};
use std::net::Ipv4Addr;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// Where the other end's address begins in it.
const DESTINATION: usize = 20;
/// Where it begins in `struct inet_diag_msg`, behind family, state, timer and retransmissions.
const ID_AT: usize = 4;

/// Which sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Over UDP: nobody will ever tell them.
    Datagrams,
    /// Also those over TCP that have sent again what the other end does not acknowledge.
    Unanswered,
    /// All of both.
    All,
}

/// End the sockets of the calling thread's network namespace that are connected to one of `replicas`. Answers how many.
///
/// # Errors
/// The kernel has no `sock_diag`, or was built without `INET_DIAG_DESTROY`.
pub(crate) fn destroy(replicas: &[Ipv4Addr], which: Which) -> Result<usize, NetError> {
    let mut socket = Netlink::open(Family::Sockets)?;
    let mut batch = Batch::new();
    let mut destroyed = 0;
    for (family, protocol) in [(INET, UDP), (INET6, UDP), (INET, TCP), (INET6, TCP)] {
        if protocol == TCP && which == Which::Datagrams {
            continue;
        }
        let found = socket.dump(|batch, flags| {
            batch.begin(SOCK_DIAG_BY_FAMILY, flags, &request(family, protocol, &[0; ID]), "list", "sockets");
            batch.end();
            // IPv6 may be absent.
            batch.tolerate(&[ENOENT]);
        })?;
        for (_, message) in &found {
            let Some((id, replica)) = connected(message, family, protocol, which) else { continue };
            if replicas.contains(&replica) {
                let request = request(family, protocol, id);
                batch.begin(SOCK_DESTROY, crate::netlink::REQUEST, &request, "end a socket to", replica.to_string());
                batch.end();
                // It may have ended by itself.
                batch.tolerate(&[ENOENT]);
                destroyed += 1;
            }
        }
    }
    socket.run(batch)?;
    Ok(destroyed)
}

/// `struct inet_diag_req_v2`: all states.
fn request(family: u8, protocol: u8, id: &[u8; ID]) -> [u8; 8 + ID] {
    let mut request = [0; 8 + ID];
    request[..2].copy_from_slice(&[family, protocol]);
    request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    request[8..].copy_from_slice(id);
    request
}

/// A listed socket's identity and the IPv4 address of its other end, if it is one of those wanted.
fn connected(message: &[u8], family: u8, protocol: u8, which: Which) -> Option<(&[u8; ID], Ipv4Addr)> {
    let retransmissions = *message.get(3)?;
    if protocol == TCP && which == Which::Unanswered && retransmissions == 0 {
        return None;
    }
    let id: &[u8; ID] = message.get(ID_AT..ID_AT + ID)?.try_into().ok()?;
    let address = &id[DESTINATION..DESTINATION + 16];
    let v4 = match family {
        INET => &address[..4],
        _ => address.strip_prefix(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])?,
    };
    Some((id, Ipv4Addr::new(v4[0], v4[1], v4[2], v4[3])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(retransmissions: u8, destination: &[u8]) -> Vec<u8> {
        let mut message = vec![0; 72];
        message[3] = retransmissions;
        message[ID_AT + DESTINATION..ID_AT + DESTINATION + destination.len()].copy_from_slice(destination);
        message
    }

    #[test]
    fn only_the_asked_sockets() {
        let replica = [10, 210, 1, 2];
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 210, 1, 2];
        let native = [0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 210, 1, 2];
        for (why, family, protocol, which, message, expected) in [
            ("IPv4", INET, TCP, Which::All, message(0, &replica), true),
            ("IPv4 in IPv6", INET6, TCP, Which::All, message(0, &mapped), true),
            ("IPv6", INET6, TCP, Which::All, message(0, &native), false),
            ("answered", INET, TCP, Which::Unanswered, message(0, &replica), false),
            ("not answered", INET, TCP, Which::Unanswered, message(1, &replica), true),
            ("datagrams need no answer", INET, UDP, Which::Unanswered, message(0, &replica), true),
            ("cut off", INET, UDP, Which::All, vec![0; 51], false),
        ] {
            let found = connected(&message, family, protocol, which).map(|(_, address)| address);
            assert_eq!(found, expected.then_some(Ipv4Addr::from(replica)), "{why}");
        }
    }
}
