//! `linux.netDevices`: network devices of the host that move into the container.
//!
//! ```text
//! runtime process:  find the device, read its addresses ─► is the name free over there?
//!                   move and rename ─► in the container's namespace: addresses back, up
//! ```
//! The kernel drops the addresses of a device that moves. What comes after the move works through a netlink socket made
//! inside the container's namespace; the device itself is known by the number it has there.

use super::namespaces::Kind;
use crate::config::Config;
use crate::error::{Because, Failure, InStep, Outcome};
use crate::sys::clone;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Longest name of an interface, `IFNAMSIZ` without its zero.
const NAME_MAX: usize = 15;
/// Replies of the kernel are at most this long.
const REPLY_MAX: usize = 64 * 1024;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE_CREATE: u16 = 0x500;

const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFF_UP: u32 = 0x1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_RT_PRIORITY: u16 = 9;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;
const IFA_F_PERMANENT: u32 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;

/// Header of a netlink message, of a link and of an address message.
const HEADER: usize = 16;
const LINK: usize = 16;
const ADDRESS: usize = 8;

/// Is this a name that an interface can have?
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let bad = |byte: u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b':' | 0);
    if name.is_empty() || name.len() > NAME_MAX || matches!(name, "." | "..") || name.bytes().any(bad) {
        return Err(format!(
            "`{}` is not a name of an interface: 1 to {NAME_MAX} bytes, no space, `/`, `:`",
            name.escape_debug()
        ));
    }
    match name.matches('%').count() {
        0 => Ok(()),
        1 if name.contains("%d") => Ok(()),
        _ => Err(format!("`{name}` has a `%` that is not one `%d`")),
    }
}

/// A message to the kernel.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend(body);
        Self(bytes)
    }

    fn link(kind: u16, flags: u16, index: u32, set: u32, change: u32) -> Self {
        let mut body = [0; LINK];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..12].copy_from_slice(&set.to_ne_bytes());
        body[12..16].copy_from_slice(&change.to_ne_bytes());
        Self::new(kind, flags, &body)
    }

    fn attribute(mut self, kind: u16, data: &[u8]) -> Self {
        self.0.extend(((4 + data.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn name(self, name: &str) -> Self {
        self.attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat())
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The messages in what the kernel sent: type and body.
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut list = Vec::new();
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let Some(body) = bytes.get(HEADER..length as usize) else {
            break;
        };
        list.push((kind, body));
        bytes = bytes.get((length as usize).next_multiple_of(4)..).unwrap_or(&[]);
    }
    list
}

/// The attributes in a body: type and data.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut list = Vec::new();
    while let (Some(length), Some(kind)) = (u16_at(bytes, 0), u16_at(bytes, 2)) {
        let Some(data) = bytes.get(4..length as usize) else {
            break;
        };
        list.push((kind & 0x3fff, data));
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or(&[]);
    }
    list
}

/// A link as the kernel describes it.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    index: u32,
    name: String,
}

impl Link {
    fn parse(body: &[u8]) -> Option<Self> {
        let name = attributes(body.get(LINK..)?).into_iter().find(|(kind, _)| *kind == IFLA_IFNAME)?.1;
        let name = String::from_utf8_lossy(name.split(|&byte| byte == 0).next()?).into_owned();
        Some(Self { index: u32_at(body, 4)?, name })
    }
}

/// An address that moves with its device.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// The address in a message, if it is of this link, permanent and global, as the specification has it.
    fn parse(body: &[u8], index: u32) -> Option<Self> {
        let (&family, &prefix, &flags, &scope) = (body.first()?, body.get(1)?, body.get(2)?, body.get(3)?);
        if u32_at(body, 4)? != index || scope != RT_SCOPE_UNIVERSE {
            return None;
        }
        let found = attributes(body.get(ADDRESS..)?);
        let all = found.iter().find(|(kind, _)| *kind == IFA_FLAGS).and_then(|(_, data)| u32_at(data, 0));
        let flags = all.unwrap_or(u32::from(flags));
        if flags & IFA_F_PERMANENT == 0 {
            return None;
        }
        let kept = |kind: &u16| matches!(*kind, IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST | IFA_RT_PRIORITY);
        let mut attributes: Vec<(u16, Vec<u8>)> =
            found.iter().filter(|(kind, _)| kept(kind)).map(|(kind, data)| (*kind, data.to_vec())).collect();
        let flags = flags & !(IFA_F_TENTATIVE | IFA_F_DADFAILED);
        attributes.push((IFA_FLAGS, flags.to_ne_bytes().to_vec()));
        Some(Self { family, prefix, attributes })
    }

    fn request(&self, index: u32) -> Request {
        let mut body = [self.family, self.prefix, 0, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let request = Request::new(RTM_NEWADDR, NLM_F_ACK | NLM_F_REPLACE_CREATE, &body);
        self.attributes.iter().fold(request, |request, (kind, data)| request.attribute(*kind, data))
    }
}

/// A route netlink socket, in the network namespace it was made in.
struct Socket(OwnedFd);

impl Socket {
    fn open() -> Outcome<Self> {
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .because(|| "cannot open a netlink socket".to_owned())
            .map(Self)
    }

    /// Open one in another namespace, and come back.
    fn open_in(namespace: BorrowedFd<'_>) -> Outcome<Self> {
        let own = open("/proc/self/ns/net")?;
        clone::setns(namespace, Kind::Network.flag()).because(|| "cannot enter the network namespace".to_owned())?;
        let socket = Self::open();
        clone::setns(own.as_fd(), Kind::Network.flag())
            .because(|| "cannot return to the host's network namespace".to_owned())?;
        socket
    }

    /// Send a request and take the replies, until the kernel says that it is done.
    fn ask(&self, request: &Request, mut each: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
        let mut bytes = request.0.clone();
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        rustix::net::send(&self.0, &bytes, SendFlags::empty())?;
        let mut buffer = vec![0; REPLY_MAX];
        loop {
            let count = match rustix::net::recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                result => result?.0,
            };
            for (kind, body) in messages(&buffer[..count]) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = u32_at(body, 0).unwrap_or(0) as i32;
                        return if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(-code)) };
                    }
                    _ => each(kind, body),
                }
            }
        }
    }

    fn link(&self, name: &str) -> Result<Option<Link>, Errno> {
        let mut link = None;
        let request = Request::link(RTM_GETLINK, NLM_F_ACK, 0, 0, 0).name(name);
        match self.ask(&request, |_, body| link = Link::parse(body)) {
            Err(Errno::NODEV) => Ok(None),
            result => result.map(|()| link),
        }
    }

    fn links(&self) -> Result<Vec<Link>, Errno> {
        let mut links = Vec::new();
        self.ask(&Request::link(RTM_GETLINK, NLM_F_DUMP, 0, 0, 0), |_, body| links.extend(Link::parse(body)))?;
        Ok(links)
    }

    fn addresses(&self, index: u32) -> Result<Vec<Address>, Errno> {
        let mut addresses = Vec::new();
        let request = Request::new(RTM_GETADDR, NLM_F_DUMP, &[0; ADDRESS]);
        self.ask(&request, |_, body| addresses.extend(Address::parse(body, index)))?;
        Ok(addresses)
    }
}

fn open(path: &str) -> Outcome<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).because(|| format!("cannot open `{path}`"))
}

/// Move all devices of a bundle. In the runtime process, while the container's process waits.
///
/// - `pid`: the container's process, in its network namespace if that is a new one.
///
/// # Errors
/// No such device, a name that is taken, a device that is bound to its namespace.
pub fn move_all(config: &Config, pid: i32) -> Outcome<()> {
    if config.linux.net_devices.is_empty() {
        return Ok(());
    }
    let joined = config.namespace(Kind::Network.name()).and_then(|namespace| namespace.joined());
    let namespace = open(&joined.map_or_else(|| format!("/proc/{pid}/ns/net"), str::to_owned))?;
    let here = Socket::open()?;
    let there = Socket::open_in(namespace.as_fd())?;
    for (name, device) in &config.linux.net_devices {
        let new_name = device.name.as_deref().filter(|name| !name.is_empty()).unwrap_or(name);
        move_one(&here, &there, namespace.as_fd(), name, new_name).map_err(|mut failure| {
            failure.what = format!("config.json: $.linux.netDevices.{name}: {}", failure.what);
            failure
        })?;
    }
    Ok(())
}

fn move_one(here: &Socket, there: &Socket, namespace: BorrowedFd<'_>, name: &str, new_name: &str) -> Outcome<()> {
    let cannot_look = || "cannot look at the device".to_owned();
    let device = here.link(name).because(cannot_look)?.ok_or_else(|| {
        Failure::new("there is no such network device in the host's namespace").hint("`ip link` lists those there are")
    })?;
    let template = new_name.contains('%');
    let before = if template { there.links().because(cannot_look)? } else { Vec::new() };
    if !template && there.link(new_name).because(cannot_look)?.is_some() {
        return Err(Failure::new(format!("the container's network namespace has a device `{new_name}` already"))
            .hint("give another `name`, or one with `%d` in it"));
    }
    let addresses = here.addresses(device.index).because(cannot_look)?;
    let request = Request::link(RTM_NEWLINK, NLM_F_ACK, device.index, 0, 0)
        .attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes())
        .name(new_name);
    here.ask(&request, |_, _| {})
        .because(|| format!("cannot move it into the container as `{new_name}`"))
        .or_hint("loopback and some virtual devices are bound to their namespace (`ip -d link`)")?;
    let moved = if template {
        let after = there.links().because(cannot_look)?;
        after.into_iter().find(|link| !before.iter().any(|old| old.index == link.index))
    } else {
        there.link(new_name).because(cannot_look)?
    };
    let index = moved.ok_or_else(|| Failure::new("it has vanished on its way into the container"))?.index;
    for address in &addresses {
        there.ask(&address.request(index), |_, _| {}).because(|| "cannot give it its addresses back".to_owned())?;
    }
    there
        .ask(&Request::link(RTM_NEWLINK, NLM_F_ACK, index, IFF_UP, IFF_UP), |_, _| {})
        .because(|| "cannot bring it up in the container".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, good) in [
            ("eth0", true),
            ("eth%d", true),
            ("a-name_of.15byt", true),
            ("a-name_of.16byte", false),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("a:1", false),
            ("a%", false),
            ("%d%d", false),
            ("a%s", false),
            ("a\0", false),
        ] {
            assert_eq!(check_name(name).is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn messages_survive_what_is_cut_off() {
        let request = Request::link(RTM_NEWLINK, 0, 7, 0, 0).name("eth0");
        let mut bytes = request.0.clone();
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let two = [bytes.clone(), bytes.clone()].concat();
        let links: Vec<_> = messages(&two).into_iter().filter_map(|(_, body)| Link::parse(body)).collect();
        assert_eq!(links, [Link { index: 7, name: "eth0".into() }, Link { index: 7, name: "eth0".into() }]);
        for end in 0..bytes.len() {
            assert!(messages(&bytes[..end]).iter().all(|(_, body)| Link::parse(body).is_none()), "{end}");
            attributes(&bytes[..end]);
        }
        // A length that would make no progress ends it.
        assert_eq!(messages(&[0; 32]).len(), 0);
        assert_eq!(attributes(&[0; 32]).len(), 0);
    }

    #[test]
    fn permanent_and_global_addresses_move() {
        let message = |flags: u8, scope: u8, index: u32, more: Option<u32>| {
            let mut body = vec![2, 24, flags, scope];
            body.extend(index.to_ne_bytes());
            let mut request = Request(body).attribute(IFA_LOCAL, &[10, 0, 0, 1]).attribute(3, b"eth0\0");
            if let Some(flags) = more {
                request = request.attribute(IFA_FLAGS, &flags.to_ne_bytes());
            }
            request.0
        };
        for (why, body, moves) in [
            ("permanent and global", message(0x80, 0, 5, None), true),
            ("another link", message(0x80, 0, 6, None), false),
            ("of the link only", message(0x80, 253, 5, None), false),
            ("from DHCP", message(0, 0, 5, None), false),
            ("long flags count", message(0, 0, 5, Some(0x280)), true),
            ("long flags count the other way", message(0x80, 0, 5, Some(0x200)), false),
        ] {
            assert_eq!(Address::parse(&body, 5).is_some(), moves, "{why}");
        }
        let address = Address::parse(&message(0xc8, 0, 5, None), 5).expect("an address");
        assert_eq!(address.attributes, [(IFA_LOCAL, vec![10, 0, 0, 1]), (IFA_FLAGS, 0x80_u32.to_ne_bytes().to_vec())]);
        let request = address.request(9);
        let body = &request.0[HEADER..];
        assert_eq!(Address::parse(body, 9), Some(address), "what is sent is what was read");
    }
}
