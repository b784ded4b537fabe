//! The few rtnetlink and nf_tables messages that a switch and its cables are made of.
//!
//! Written out here, synchronous, instead of through an async library: they are sent from short-lived threads that
//! have entered another network namespace, and nf_tables' bridge family has to be encoded by hand anyway.
//!
//! # Source
//! rtnetlink(7); kernel headers `linux/if_link.h`, `linux/rtnetlink.h`, `linux/netfilter/nf_tables.h`,
//! `linux/netfilter_bridge.h`.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
/// The kernel answers at once; a lost answer must not hang a command.
const ANSWER_WITHIN_S: i64 = 5;
const NESTED: u16 = 0x8000;

const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const VETH_INFO_PEER: u16 = 1;

const NFT: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const NFPROTO_BRIDGE: u8 = 7;
const APPEND: u16 = 0x800;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;

/// Attribute numbers of nf_tables that the libc crate lacks, named as in the kernel's header without `NFTA_`.
mod nfta {
    pub(super) const TABLE_NAME: u16 = 1;
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_TYPE: u16 = 7;
    pub(super) const HOOK_HOOKNUM: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const LIST_ELEM: u16 = 1;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const META_DREG: u16 = 1;
    pub(super) const META_KEY: u16 = 2;
    pub(super) const CMP_SREG: u16 = 1;
    pub(super) const CMP_OP: u16 = 2;
    pub(super) const CMP_DATA: u16 = 3;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CODE: u16 = 1;
    pub(super) const IMMEDIATE_DREG: u16 = 1;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
}

/// Messages being written, several in a row.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    count: u32,
}

impl Buffer {
    /// Appends one message. `header` is the family's own, right behind the netlink header.
    fn message(&mut self, kind: u16, flags: u16, header: &[u8], attributes: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.count += 1;
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.count.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(header);
        self.pad();
        attributes(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// nf_tables counts in network order.
    fn big(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend(0u16.to_ne_bytes());
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        inner(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// Sends the messages and waits for the kernel's verdict on each that asked for one (`asked` of them).
fn exchange(protocol: SockProtocol, buffer: &Buffer, asked: usize) -> io::Result<()> {
    let fd: OwnedFd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(ANSWER_WITHIN_S))?;
    sendto(fd.as_raw_fd(), &buffer.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = vec![0u8; 64 << 10];
    let mut seen = 0;
    while seen < asked {
        let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let mut rest = &answer[..length];
        while let Some((kind, body, next)) = split(rest) {
            if kind == libc::NLMSG_ERROR as u16 {
                let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                seen += 1;
            }
            rest = next;
        }
    }
    Ok(())
}

/// The first message of an answer: its kind, its body, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// One rtnetlink request.
fn route(kind: u16, flags: u16, header: &[u8], attributes: impl FnOnce(&mut Buffer)) -> io::Result<()> {
    let mut buffer = Buffer::default();
    buffer.message(kind, flags | ACK, header, attributes);
    exchange(SockProtocol::NetlinkRoute, &buffer, 1)
}

/// `struct ifinfomsg`.
fn link_header(index: u32, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        let flag = (libc::IFF_UP as u32).to_ne_bytes();
        header[8..12].copy_from_slice(&flag);
        header[12..16].copy_from_slice(&flag);
    }
    header
}

/// The index of an interface in this thread's network namespace.
///
/// # Errors
/// `ENODEV`.
pub fn index(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(io::Error::from)
}

/// Takes an interface up.
///
/// # Errors
/// `ENODEV`.
pub fn up(name: &str) -> io::Result<()> {
    route(libc::RTM_NEWLINK, 0, &link_header(index(name)?, true), |_| {})
}

/// Makes a bridge, up, forwarding from the first moment; one that is there stays.
///
/// # Errors
/// The kernel has no bridges.
pub fn ensure_bridge(name: &str) -> io::Result<()> {
    let made = route(libc::RTM_NEWLINK, CREATE, &link_header(0, true), |m| {
        m.text(libc::IFLA_IFNAME, name);
        m.nest(libc::IFLA_LINKINFO, |m| {
            m.attribute(libc::IFLA_INFO_KIND, b"bridge");
            m.nest(libc::IFLA_INFO_DATA, |m| {
                m.number(IFLA_BR_FORWARD_DELAY, 0);
                m.number(IFLA_BR_STP_STATE, 0);
            });
        });
    });
    match made {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => up(name),
        other => other,
    }
}

/// A cable: `port` of this namespace's `bridge` to `eth0` of the namespace `peer`, which gets the hardware address.
///
/// # Errors
/// `EEXIST` when the port is there.
pub fn add_cable(bridge: &str, port: &str, peer: &File, peer_mac: [u8; 6]) -> io::Result<()> {
    let bridge = index(bridge)?;
    route(libc::RTM_NEWLINK, CREATE, &link_header(0, true), |m| {
        m.text(libc::IFLA_IFNAME, port);
        m.number(libc::IFLA_MASTER, bridge);
        m.nest(libc::IFLA_LINKINFO, |m| {
            m.attribute(libc::IFLA_INFO_KIND, b"veth");
            m.nest(libc::IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.bytes.extend(link_header(0, false));
                    m.text(libc::IFLA_IFNAME, "eth0");
                    m.attribute(libc::IFLA_ADDRESS, &peer_mac);
                    m.number(libc::IFLA_NET_NS_FD, peer.as_raw_fd() as u32);
                });
            });
        });
    })
}

/// Removes an interface; one that is gone is fine.
///
/// # Errors
/// Any but that.
pub fn remove_link(name: &str) -> io::Result<()> {
    let Ok(index) = index(name) else {
        return Ok(());
    };
    match route(libc::RTM_DELLINK, 0, &link_header(index, false), |_| {}) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Gives an interface an address in a /24; one that it has already is fine.
///
/// # Errors
/// `ENODEV`.
pub fn ensure_address(name: &str, address: Ipv4Addr) -> io::Result<()> {
    let mut header = [0u8; 8]; // struct ifaddrmsg
    header[0] = libc::AF_INET as u8;
    header[1] = 24;
    header[4..8].copy_from_slice(&index(name)?.to_ne_bytes());
    let [a, b, c, _] = address.octets();
    let made = route(libc::RTM_NEWADDR, CREATE, &header, |m| {
        m.attribute(libc::IFA_LOCAL, &address.octets());
        m.attribute(libc::IFA_ADDRESS, &address.octets());
        m.attribute(libc::IFA_BROADCAST, &[a, b, c, 255]);
    });
    match made {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// The default route.
///
/// # Errors
/// `ENETUNREACH` when the gateway is on no link that is up.
pub fn ensure_default_route(gateway: Ipv4Addr) -> io::Result<()> {
    // struct rtmsg: family, prefix lengths, TOS, table main, protocol boot, scope universe, type unicast, flags
    let header = [libc::AF_INET as u8, 0, 0, 0, libc::RT_TABLE_MAIN, 3, 0, libc::RTN_UNICAST, 0, 0, 0, 0];
    match route(libc::RTM_NEWROUTE, CREATE, &header, |m| m.attribute(libc::RTA_GATEWAY, &gateway.octets())) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// What a rule of the switch drops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drop {
    /// Port that the frame came in by.
    pub from: Option<String>,
    /// Port that it would leave by.
    pub to: Option<String>,
}

/// Replaces the switch's drop rules, all in one transaction; none removes the table.
///
/// # Errors
/// The kernel has no nf_tables bridge family.
pub fn set_drops(drops: &[Drop]) -> io::Result<()> {
    let batch = |kind: i32, m: &mut Buffer, flags| {
        m.message(kind as u16, flags, &[0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8], |_| {});
    };
    let mut buffer = Buffer::default();
    batch(libc::NFNL_MSG_BATCH_BEGIN, &mut buffer, 0);
    encode_drops(&mut buffer, drops);
    batch(libc::NFNL_MSG_BATCH_END, &mut buffer, 0);
    // The whole batch takes effect or none of it; every message of ours asks for its verdict.
    let asked = buffer.count as usize - 2;
    exchange(SockProtocol::NetlinkNetFilter, &buffer, asked)
}

const TABLE: &str = "gantry-lab";

fn encode_drops(buffer: &mut Buffer, drops: &[Drop]) {
    let header = [NFPROTO_BRIDGE, 0, 0, 0];
    let table = |m: &mut Buffer| m.text(nfta::TABLE_NAME, TABLE);
    let create = libc::NLM_F_CREATE as u16;
    // Made first, so that removing it cannot fail: then it is as empty as new.
    buffer.message(NFT | libc::NFT_MSG_NEWTABLE as u16, ACK | create, &header, table);
    buffer.message(NFT | libc::NFT_MSG_DELTABLE as u16, ACK, &header, table);
    if drops.is_empty() {
        return;
    }
    buffer.message(NFT | libc::NFT_MSG_NEWTABLE as u16, ACK | create, &header, table);
    for (chain, hook) in [("input", 1), ("forward", 2), ("output", 3)] {
        buffer.message(NFT | libc::NFT_MSG_NEWCHAIN as u16, ACK | create, &header, |m| {
            m.text(nfta::CHAIN_TABLE, TABLE);
            m.text(nfta::CHAIN_NAME, chain);
            m.nest(nfta::CHAIN_HOOK, |m| {
                m.big(nfta::HOOK_HOOKNUM, hook);
                m.big(nfta::HOOK_PRIORITY, 0);
            });
            m.text(nfta::CHAIN_TYPE, "filter");
        });
        // What the switch itself receives has no port to leave by, and what it sends none that it came by.
        let fits = |drop: &&Drop| match chain {
            "input" => drop.to.is_none(),
            "output" => drop.from.is_none(),
            _ => true,
        };
        for drop in drops.iter().filter(fits) {
            buffer.message(NFT | libc::NFT_MSG_NEWRULE as u16, ACK | create | APPEND, &header, |m| {
                m.text(nfta::RULE_TABLE, TABLE);
                m.text(nfta::RULE_CHAIN, chain);
                m.nest(nfta::RULE_EXPRESSIONS, |m| {
                    for (key, port) in [(META_IIFNAME, &drop.from), (META_OIFNAME, &drop.to)] {
                        if let Some(port) = port {
                            match_port(m, key, port);
                        }
                    }
                    verdict_drop(m);
                });
            });
        }
    }
}

fn expression(m: &mut Buffer, name: &str, data: impl FnOnce(&mut Buffer)) {
    m.nest(nfta::LIST_ELEM, |m| {
        m.text(nfta::EXPR_NAME, name);
        m.nest(nfta::EXPR_DATA, data);
    });
}

/// `meta iifname "port"` or `meta oifname "port"`.
fn match_port(m: &mut Buffer, key: u32, port: &str) {
    expression(m, "meta", |m| {
        m.big(nfta::META_DREG, libc::NFT_REG_1 as u32);
        m.big(nfta::META_KEY, key);
    });
    expression(m, "cmp", |m| {
        m.big(nfta::CMP_SREG, libc::NFT_REG_1 as u32);
        m.big(nfta::CMP_OP, libc::NFT_CMP_EQ as u32);
        m.nest(nfta::CMP_DATA, |m| {
            let mut name = [0u8; libc::IFNAMSIZ];
            name[..port.len()].copy_from_slice(port.as_bytes());
            m.attribute(nfta::DATA_VALUE, &name);
        });
    });
}

fn verdict_drop(m: &mut Buffer) {
    expression(m, "immediate", |m| {
        m.big(nfta::IMMEDIATE_DREG, libc::NFT_REG_VERDICT as u32);
        m.nest(nfta::IMMEDIATE_DATA, |m| {
            m.nest(nfta::DATA_VERDICT, |m| m.big(nfta::VERDICT_CODE, libc::NF_DROP as u32));
        });
    });
}

/// Runs `work` in a thread that has entered the network namespace.
///
/// # Errors
/// `EPERM`, or what `work` returns.
pub fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let entered = || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
        work()
    };
    let joined = std::thread::scope(|scope| scope.spawn(entered).join());
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        let made = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(made).join().unwrap())
    }

    #[test]
    fn the_kernel_takes_bridge_cable_address_and_route() {
        own_namespace(|| {
            let other = own_namespace(|| File::open("/proc/thread-self/ns/net").unwrap());
            for _ in 0..2 {
                ensure_bridge("br0").unwrap();
                ensure_address("br0", Ipv4Addr::new(10, 88, 7, 1)).unwrap();
                ensure_default_route(Ipv4Addr::new(10, 88, 7, 2)).unwrap();
            }
            add_cable("br0", "n1", &other, [2, 0, 0, 0, 0, 1]).unwrap();
            let twice = add_cable("br0", "n1", &other, [2, 0, 0, 0, 0, 1]).unwrap_err();
            assert_eq!(twice.raw_os_error(), Some(libc::EEXIST));
            inside(&other, || {
                up("eth0")?;
                ensure_address("eth0", Ipv4Addr::new(10, 88, 7, 11))
            })
            .unwrap();
            remove_link("n1").unwrap();
            remove_link("n1").unwrap();
            assert!(inside(&other, || index("eth0")).is_err(), "a cable has two ends");
        });
    }

    #[test]
    fn the_kernel_takes_drop_rules_and_gives_them_back() {
        own_namespace(|| {
            let some = |text: &str| Some(text.to_owned());
            let drops = [
                Drop { from: some("n1"), to: None },
                Drop { from: None, to: some("n1") },
                Drop { from: some("n2"), to: some("n3") },
            ];
            set_drops(&[]).unwrap();
            set_drops(&drops).unwrap();
            set_drops(&drops).unwrap();
            set_drops(&[]).unwrap();
        });
    }

    #[test]
    fn an_answer_that_is_cut_off_is_no_message() {
        for bytes in [&[][..], &[1], &[40, 0, 0, 0, 2, 0, 0, 0], &[0; 15]] {
            assert!(split(bytes).is_none(), "{bytes:?}");
        }
    }
}
