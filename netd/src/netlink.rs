//! The netlink transport: messages are gathered in a [`Batch`], sent in one write, and each carries the words for its
//! own error.
//!
//! Synchronous on purpose: the kernel handles a request inside `send`, so that an answer is there when it returns. A
//! socket stays in the network namespace it was opened in, whichever thread uses it later.
//!
//! Link, address, route and neighbour messages are those of `netlink-packet-route`; nf_tables and conntrack, for
//! which no crate of a fitting licence speaks netlink, are written with [`Batch::begin`] and [`Batch::attribute`].

use crate::error::NetError;
use netlink_packet_core::{NetlinkDeserializable, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::net::sockopt::{self, Timeout};
use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;
const DUMP: u16 = 0x300;

const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
const DUMP_INTERRUPTED: u16 = 0x10;
const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;

pub(crate) const ENOENT: i32 = 2;
pub(crate) const ESRCH: i32 = 3;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ENODEV: i32 = 19;
pub(crate) const EOPNOTSUPP: i32 = 95;
pub(crate) const EAFNOSUPPORT: i32 = 97;
pub(crate) const EADDRNOTAVAIL: i32 = 99;

/// Unique within the process, so that an answer left over from a failed batch is never taken for a new one's.
static SEQUENCE: AtomicU32 = AtomicU32::new(1);

/// The kernel's netlink families in use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nf_tables and conntrack.
    Netfilter,
    /// Open sockets of programs.
    Sockets,
}

/// One message's place in a batch and its words.
#[derive(Debug, Clone)]
struct Step {
    sequence: u32,
    operation: &'static str,
    object: Cow<'static, str>,
    tolerated: &'static [i32],
}

/// Messages to be sent together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    steps: Vec<Step>,
    last: usize,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Add a message about a link, an address, a route or a neighbour.
    pub(crate) fn route(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: &'static str,
        object: impl Into<Cow<'static, str>>,
    ) -> &mut Self {
        let sequence = self.step(operation, object.into());
        let mut message = NetlinkMessage::from(message);
        message.header.flags = REQUEST | flags;
        message.header.sequence_number = sequence;
        message.finalize();
        self.last = self.bytes.len();
        self.bytes.resize(self.last + message.buffer_len(), 0);
        message.serialize(&mut self.bytes[self.last..]);
        self.pad();
        self
    }

    /// Errors of the last message that mean it was not needed.
    pub(crate) fn tolerate(&mut self, errors: &'static [i32]) -> &mut Self {
        if let Some(step) = self.steps.last_mut() {
            step.tolerated = errors;
        }
        self
    }

    fn step(&mut self, operation: &'static str, object: Cow<'static, str>) -> u32 {
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        self.steps.push(Step { sequence, operation, object, tolerated: &[] });
        sequence
    }

    /// Open a message written by hand; [`Self::end`] closes it.
    pub(crate) fn begin(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        operation: &'static str,
        object: impl Into<Cow<'static, str>>,
    ) {
        let sequence = self.step(operation, object.into());
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(header);
        self.pad();
    }

    /// Close the message opened last.
    pub(crate) fn end(&mut self) {
        let length = (self.bytes.len() - self.last) as u32;
        self.bytes[self.last..self.last + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute that holds attributes. Its length field has 16 bits: the caller bounds what it puts inside.
    pub(crate) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        inside(self);
        let length = self.bytes.len() - start;
        debug_assert!(length <= usize::from(u16::MAX), "a nested attribute of {length} bytes");
        self.bytes[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
    }

    /// Attributes written elsewhere.
    pub(crate) fn append(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
    }

    /// What was written so far.
    pub(crate) fn written(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Ask for an acknowledgement of the message opened last.
    ///
    /// On a transaction of nf_tables it must be the last real message, not the one that ends the batch: Linux 6.1
    /// never acknowledges that one (6.18 does).
    pub(crate) fn acknowledge(&mut self) {
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            let value = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
            flags.copy_from_slice(&value.to_ne_bytes());
        }
    }
}

/// One socket of one family in one network namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: netlink_sys::Socket,
    buffer: Vec<u8>,
}

/// Kind and payload of a message.
pub(crate) type Message = (u16, Vec<u8>);

/// What was answered to a question, and whether it changed while it was read.
#[derive(Debug, Default)]
struct List {
    messages: Vec<Message>,
    interrupted: bool,
}

/// What the kernel answered to one message: an error number, and its words.
struct Answer {
    sequence: u32,
    errno: i32,
    words: Option<String>,
}

impl Netlink {
    /// Open a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel lacks the family, or too many open files.
    pub(crate) fn open(family: Family) -> Result<Self, NetError> {
        const NETLINK_ROUTE: isize = 0;
        const NETLINK_SOCK_DIAG: isize = 4;
        const NETLINK_NETFILTER: isize = 12;
        // A batch of 16,000 map elements is about 1 MB and must fit into one write.
        const SEND_BUFFER: usize = 8 << 20;
        let protocol = match family {
            Family::Route => NETLINK_ROUTE,
            Family::Netfilter => NETLINK_NETFILTER,
            Family::Sockets => NETLINK_SOCK_DIAG,
        };
        let error = |e: io::Error| NetError::io("open", format!("netlink socket ({family:?})"), e);
        let mut socket = netlink_sys::Socket::new(protocol).map_err(error)?;
        socket.bind_auto().map_err(error)?;
        socket.set_cap_ack(true).map_err(error)?;
        socket.set_ext_ack(true).map_err(error)?;
        // Makes filters in dump requests hold; kernels before 4.20 lack it and send more than asked.
        let _ = socket.set_netlink_get_strict_chk(true);
        // An answer comes inside `send`; the timeout is against a kernel that never acknowledges, not against load.
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(10)))
            .map_err(|e| error(e.into()))?;
        if family == Family::Netfilter {
            for set in [sockopt::set_socket_send_buffer_size_force, sockopt::set_socket_recv_buffer_size_force] {
                set(&socket, SEND_BUFFER).map_err(|e| error(e.into()))?;
            }
        }
        Ok(Self { socket, buffer: vec![0; 64 << 10] })
    }

    /// Send a batch and wait until the kernel has carried it out.
    ///
    /// # Errors
    /// That of the first message that failed with an error it does not tolerate. In a transaction of nf_tables
    /// nothing was changed then; otherwise the messages before and after it may have been carried out.
    pub(crate) fn run(&mut self, mut batch: Batch) -> Result<(), NetError> {
        if batch.is_empty() {
            return Ok(());
        }
        batch.acknowledge();
        self.send(&batch)?;
        self.answers(&batch, batch.steps.len() - 1)
    }

    /// The same for nf_tables: all of it or nothing.
    pub(crate) fn transaction(&mut self, inner: Batch) -> Result<(), NetError> {
        const BATCH_BEGIN: u16 = 0x10;
        const BATCH_END: u16 = 0x11;
        const HEADER: [u8; 4] = [0, 0, 0, 10];
        if inner.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.begin(BATCH_BEGIN, 0, &HEADER, "commit", "changes to nf_tables");
        batch.end();
        let offset = batch.bytes.len();
        batch.bytes.extend_from_slice(&inner.bytes);
        batch.steps.extend(inner.steps);
        batch.last = offset + inner.last;
        batch.acknowledge();
        let last = batch.steps.len() - 1;
        batch.begin(BATCH_END, 0, &HEADER, "commit", "changes to nf_tables");
        batch.end();
        self.send(&batch)?;
        self.answers(&batch, last)
    }

    fn send(&mut self, batch: &Batch) -> Result<(), NetError> {
        let error = |e: io::Error| {
            let step = &batch.steps[0];
            NetError::Netlink { operation: step.operation, object: step.object.to_string(), detail: None, source: e }
        };
        let sent = self.socket.send(&batch.bytes, 0).map_err(error)?;
        if sent == batch.bytes.len() { Ok(()) } else { Err(error(io::ErrorKind::WriteZero.into())) }
    }

    /// Read until the step at `last` is acknowledged; the first error that counts is the result.
    fn answers(&mut self, batch: &Batch, last: usize) -> Result<(), NetError> {
        let mut failed: Option<(usize, NetError)> = None;
        loop {
            let received = self.receive(&batch.steps[last])?;
            let mut finished = false;
            for (header, payload) in Messages(&self.buffer[..received]) {
                let Some(answer) = (header.kind == ERROR).then(|| parse_answer(header, payload)).flatten() else {
                    continue;
                };
                let Some(index) = batch.steps.iter().position(|step| step.sequence == answer.sequence) else {
                    continue;
                };
                // A failed commit is answered with the number of the message that began the batch.
                finished |= index == last || (index == 0 && answer.errno != 0);
                let step = &batch.steps[index];
                let earlier = failed.as_ref().is_some_and(|(first, _)| *first <= index);
                if answer.errno != 0 && !step.tolerated.contains(&answer.errno) && !earlier {
                    failed = Some((index, step.error(answer)));
                }
            }
            if finished {
                return failed.map_or(Ok(()), |(_, error)| Err(error));
            }
        }
    }

    fn receive(&mut self, step: &Step) -> Result<usize, NetError> {
        loop {
            match rustix::net::recv(&self.socket, &mut self.buffer[..], rustix::net::RecvFlags::empty()) {
                Ok((length, _)) => return Ok(length),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    let source = if e == rustix::io::Errno::AGAIN { io::ErrorKind::TimedOut.into() } else { e.into() };
                    let (operation, object) = (step.operation, step.object.to_string());
                    return Err(NetError::Netlink { operation, object, detail: None, source });
                }
            }
        }
    }

    /// Ask for a list; answers the payloads of its messages with their kinds. Asked again when the kernel says that
    /// the list changed while it was read.
    pub(crate) fn dump(&mut self, build: impl Fn(&mut Batch, u16)) -> Result<Vec<Message>, NetError> {
        const TRIES: u32 = 5;
        let mut list = self.ask(&build, DUMP)?;
        for _ in 1..TRIES {
            if !list.interrupted {
                break;
            }
            list = self.ask(&build, DUMP)?;
        }
        // One that changes all the time is as good as can be had: the next check reads it again.
        Ok(list.messages)
    }

    /// Ask for one thing; an empty answer when it is not there.
    pub(crate) fn get(&mut self, build: impl Fn(&mut Batch, u16)) -> Result<Option<Message>, NetError> {
        Ok(self.ask(build, ACK)?.messages.into_iter().next())
    }

    fn ask(&mut self, build: impl Fn(&mut Batch, u16), flags: u16) -> Result<List, NetError> {
        let mut batch = Batch::new();
        build(&mut batch, flags);
        self.send(&batch)?;
        let step = batch.steps[0].clone();
        let mut list = List::default();
        loop {
            let received = self.receive(&step)?;
            for (header, payload) in Messages(&self.buffer[..received]) {
                if header.sequence != step.sequence {
                    continue;
                }
                list.interrupted |= header.flags & DUMP_INTERRUPTED != 0;
                match header.kind {
                    NOOP => {}
                    DONE => return Ok(list),
                    ERROR => match parse_answer(header, payload) {
                        Some(answer) if answer.errno != 0 && !step.tolerated.contains(&answer.errno) => {
                            return Err(step.error(answer));
                        }
                        _ => return Ok(list),
                    },
                    kind => list.messages.push((kind, payload.to_vec())),
                }
            }
        }
    }

    /// Ask for links, addresses, routes or neighbours.
    pub(crate) fn list(
        &mut self,
        request: &RouteNetlinkMessage,
        object: &'static str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        let found = self.dump(|batch, flags| {
            batch.route(request.clone(), flags, "list", object);
        })?;
        Ok(found.iter().filter_map(|(kind, payload)| parse_route(*kind, payload)).collect())
    }
}

/// A message this crate cannot read (a new kernel's attribute, say) is as good as absent: it is not one of ours.
pub(crate) fn parse_route(kind: u16, payload: &[u8]) -> Option<RouteNetlinkMessage> {
    let mut header = netlink_packet_core::NetlinkHeader::default();
    header.message_type = kind;
    RouteNetlinkMessage::deserialize(&header, payload)
        .inspect_err(|error| tracing::debug!(kind, %error, "netlink message not understood"))
        .ok()
}

impl Step {
    fn error(&self, answer: Answer) -> NetError {
        NetError::Netlink {
            operation: self.operation,
            object: self.object.to_string(),
            detail: answer.words,
            source: io::Error::from_raw_os_error(answer.errno),
        }
    }
}

#[derive(Clone, Copy)]
struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The messages in a received buffer; stops at the first that does not fit.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.get(..HEADER)?;
        let length = u32_at(head, 0)? as usize;
        let payload = self.0.get(HEADER..length)?;
        let header = Header { kind: u16_at(head, 4)?, flags: u16_at(head, 6)?, sequence: u32_at(head, 8)? };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, payload))
    }
}

fn parse_answer(header: Header, payload: &[u8]) -> Option<Answer> {
    const WORDS: u16 = 1;
    let errno = -(u32_at(payload, 0)? as i32);
    let original = payload.get(4..4 + HEADER)?;
    let skip = if header.flags & CAPPED != 0 { HEADER } else { (u32_at(original, 0)? as usize).next_multiple_of(4) };
    let words = (header.flags & ACK_TLVS != 0)
        .then(|| Attributes(payload.get(4 + skip..)?).find(|(kind, _)| *kind == WORDS))
        .flatten()
        .map(|(_, value)| text(value));
    Some(Answer { sequence: u32_at(original, 8)?, errno, words })
}

/// The attributes in a payload; stops at the first that does not fit. Flag bits are taken off the kinds.
#[derive(Clone)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this kind.
    pub(crate) fn value(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const FLAGS: u16 = 0xc000;
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & !FLAGS;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A C string without its end.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_by_hand_has_its_length_and_padding() {
        let mut batch = Batch::new();
        batch.begin(0x0a00, CREATE, &[2, 0, 0, 0], "create table", "gantry");
        batch.text(1, "gantry");
        batch.nest(4, |b| b.be32(1, 3));
        batch.end();
        let bytes = batch.written();
        assert_eq!(u32_at(bytes, 0), Some(bytes.len() as u32));
        assert_eq!(bytes.len() % 4, 0);
        let attributes = Attributes(&bytes[20..]);
        assert_eq!(attributes.value(1), Some(&b"gantry\0"[..]));
        assert_eq!(Attributes(attributes.value(4).unwrap()).value(1), Some(&[0, 0, 0, 3][..]));
        batch.acknowledge();
        assert_eq!(u16_at(batch.written(), 6), Some(REQUEST | CREATE | ACK));
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            for (header, payload) in Messages(&bytes) {
                let _ = parse_answer(header, payload);
                let _ = parse_route(header.kind, payload);
                for (_, value) in Attributes(payload) {
                    let _ = text(value);
                }
            }
        }
    }
}
