//! One question to one answer, without I/O.

use super::zone::{Clients, Found, ZONE, Zone};
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::Ipv4Addr;

/// How long an answer may be kept, in seconds. A service's address never changes while it lives; who its replicas are
/// does.
const TTL_SERVICE: u32 = 5;
const TTL_REPLICA: u32 = 2;
/// How long "no such name" may be kept: a service that appears is seen soon.
const TTL_NOTHING: u32 = 1;
/// The largest answer over UDP that no path fragments (DNS flag day 2020).
const UDP_MAX: u16 = 1232;

/// How the question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// What to do with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send this back.
    Reply(Vec<u8>),
    /// Ask the host's name servers.
    Forward {
        /// The name has one label: nobody but a local name server can know it.
        single_label: bool,
    },
    /// Not a question.
    Ignore,
}

/// Answer from memory what is ours.
///
/// - `source`: who asks; decides which short names there are.
pub(crate) fn prepare(packet: &[u8], transport: Transport, zone: &Zone, clients: &Clients, source: Ipv4Addr) -> Step {
    const ANSWER_BIT: u8 = 0x80;
    if packet.len() < 12 || packet[2] & ANSWER_BIT != 0 {
        return Step::Ignore;
    }
    let Ok(request) = Message::from_vec(packet) else {
        return error_reply(packet, ResponseCode::FormErr).map_or(Step::Ignore, Step::Reply);
    };
    let refuse = |code| reply(response(&request, code), &request, transport);
    let [query] = request.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
    if request.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    if !matches!(query.query_class, DNSClass::IN | DNSClass::ANY) {
        return refuse(ResponseCode::Refused);
    }
    // A label that is not plain text is none of ours.
    let Some(name) = plain(&query.name) else { return Step::Forward { single_label: false } };
    if let Some(address) = reverse(&name) {
        return match zone.name_of(address, clients) {
            Some(name) => reply(pointer(&request, query, name.as_deref()), &request, transport),
            None => Step::Forward { single_label: false },
        };
    }
    let app = clients.get(&source).and_then(|client| client.app.as_ref());
    match zone.find(&name, app, source) {
        Found::Addresses(list) => reply(addresses(&request, query, list), &request, transport),
        Found::Nothing => {
            let mut message = response(&request, ResponseCode::NXDomain);
            message.authorities.push(authority(&query.name));
            reply(message, &request, transport)
        }
        Found::Elsewhere => Step::Forward { single_label: !name.contains('.') },
    }
}

/// The name in lower case without its last dot.
fn plain(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        let fine = label.iter().all(|c| c.is_ascii_graphic() && *c != b'.');
        text.push_str(std::str::from_utf8(label).ok().filter(|_| fine)?);
    }
    text.make_ascii_lowercase();
    Some(text)
}

/// The address of a complete `4.3.2.1.in-addr.arpa`.
fn reverse(name: &str) -> Option<Ipv4Addr> {
    let mut parts = name.strip_suffix(".in-addr.arpa")?.split('.').rev();
    let mut octet = || parts.next()?.parse::<u8>().ok();
    let address = Ipv4Addr::new(octet()?, octet()?, octet()?, octet()?);
    parts.next().is_none().then_some(address)
}

fn response(request: &Message, code: ResponseCode) -> Message {
    let mut message = Message::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    message.metadata = Metadata::response_from_request(&request.metadata);
    message.metadata.authoritative = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.queries.clone_from(&request.queries);
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MAX);
        message.edns = Some(edns);
    }
    message
}

fn addresses(request: &Message, query: &Query, list: &[Ipv4Addr]) -> Message {
    let mut message = response(request, ResponseCode::NoError);
    if matches!(query.query_type, RecordType::A | RecordType::ANY) && !list.is_empty() {
        let ttl = if list.len() == 1 { TTL_SERVICE } else { TTL_REPLICA };
        // Another one first each time, for the many programs that take the first.
        let (tail, head) = list.split_at(usize::from(request.metadata.id) % list.len());
        let record = |address: &Ipv4Addr| Record::from_rdata(query.name.clone(), ttl, RData::A(A(*address)));
        message.answers.extend(head.iter().chain(tail).map(record));
    } else {
        // The name exists: "no such name" to an AAAA question would make resolvers drop its A record too.
        message.authorities.push(authority(&query.name));
    }
    message
}

fn pointer(request: &Message, query: &Query, name: Option<&str>) -> Message {
    let code = if name.is_some() { ResponseCode::NoError } else { ResponseCode::NXDomain };
    let mut message = response(request, code);
    match name.and_then(wire_name) {
        Some(name) if matches!(query.query_type, RecordType::PTR | RecordType::ANY) => {
            let record = Record::from_rdata(query.name.clone(), TTL_REPLICA, RData::PTR(PTR(name)));
            message.answers.push(record);
        }
        _ => message.authorities.push(authority(&query.name)),
    }
    message
}

/// Label by label as bytes: our names may hold `_`, which a host name parser refuses.
fn wire_name(text: &str) -> Option<Name> {
    let mut name = Name::from_labels(text.split('.').map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// Tells how long a "nothing there" may be kept.
fn authority(asked: &Name) -> Record {
    let zone = wire_name(ZONE).unwrap_or_else(Name::root);
    // A short name lies in no zone; then it is its own.
    let owner = if zone.zone_of(asked) { zone.clone() } else { asked.clone() };
    let soa = SOA::new(zone.clone(), zone, 1, 60, 60, 60, TTL_NOTHING);
    Record::from_rdata(owner, TTL_NOTHING, RData::SOA(soa))
}

fn reply(message: Message, request: &Message, transport: Transport) -> Step {
    let limit = match (transport, &request.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(512, UDP_MAX),
        (Transport::Udp, None) => 512,
    };
    let bytes = match message.to_vec() {
        Ok(bytes) if bytes.len() <= usize::from(limit) => bytes,
        Ok(_) => message.truncate().to_vec().unwrap_or_default(),
        Err(error) => {
            tracing::debug!(%error, "answer cannot be encoded");
            response(request, ResponseCode::ServFail).to_vec().unwrap_or_default()
        }
    };
    if bytes.is_empty() { Step::Ignore } else { Step::Reply(bytes) }
}

/// An answer without content, made from the first bytes of any question.
pub(crate) fn error_reply(packet: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let header: [u8; 4] = packet.get(..4)?.try_into().ok()?;
    let request = Message::from_vec(packet).unwrap_or_else(|_| {
        let mut request = Message::new(u16::from_be_bytes([header[0], header[1]]), MessageType::Query, OpCode::Query);
        request.metadata.recursion_desired = header[2] & 1 != 0;
        request
    });
    let mut message = response(&request, code);
    if code == ResponseCode::NXDomain
        && let Some(query) = request.queries.first()
    {
        message.authorities.push(authority(&query.name));
    }
    message.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::super::zone::Client;
    use super::*;
    use crate::plan::Isolation;
    use crate::plan::tests::table;
    use proptest::prelude::*;

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        let mut query = Query::query(wire_name(name).unwrap(), kind);
        query.set_query_class(DNSClass::IN);
        message.queries.push(query);
        message
    }

    fn setting() -> (Zone, Clients, Ipv4Addr) {
        let zone =
            Zone::new(&table(1, &[("api", &[(0, true), (1, true)]), ("db", &[(3, false)])]), &Isolation::default());
        let inside = Ipv4Addr::new(10, 210, 1, 50);
        let client = Client { app: Some("shop".parse().unwrap()), hostname: "x".into() };
        (zone, Clients::from([(inside, client)]), inside)
    }

    /// The answer as text: code, then records.
    fn ask(name: &str, kind: RecordType, from_inside: bool) -> String {
        let (zone, clients, inside) = setting();
        let source = if from_inside { inside } else { Ipv4Addr::new(10, 0, 0, 9) };
        let packet = question(name, kind).to_vec().unwrap();
        match prepare(&packet, Transport::Udp, &zone, &clients, source) {
            Step::Reply(bytes) => {
                let message = Message::from_vec(&bytes).unwrap();
                assert_eq!(message.metadata.id, 7);
                assert_eq!(message.queries.len(), 1);
                let mut records: Vec<String> =
                    message.answers.iter().map(|r| format!("{}={}", r.ttl, r.data)).collect();
                records.sort();
                let soa = if message.authorities.is_empty() { "" } else { " soa" };
                format!("{:?} {}{soa}", message.metadata.response_code, records.join(" "))
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn answers_by_table() {
        use RecordType::{A, AAAA, ANY, PTR, TXT};
        for (name, kind, inside, expected) in [
            ("api", A, true, "NoError 5=10.211.0.1"),
            ("API", A, true, "NoError 5=10.211.0.1"),
            ("api", AAAA, true, "NoError  soa"),
            ("api", TXT, true, "NoError  soa"),
            ("api", ANY, true, "NoError 5=10.211.0.1"),
            ("api", A, false, "Forward { single_label: true }"),
            ("api.shop", A, false, "NoError 5=10.211.0.1"),
            ("Api.Shop.Gantry", A, false, "NoError 5=10.211.0.1"),
            ("tasks.api", A, true, "NoError 2=10.210.1.2 2=10.210.1.3"),
            ("tasks.db", A, true, "NoError  soa"),
            ("shop-api-2", A, true, "NoError 5=10.210.1.3"),
            ("none.shop.gantry", A, true, "NXDomain  soa"),
            ("none.shop.gantry", AAAA, true, "NXDomain  soa"),
            ("none", A, true, "Forward { single_label: true }"),
            ("example.com", A, true, "Forward { single_label: false }"),
            ("2.1.210.10.in-addr.arpa", PTR, false, "NoError 2=shop-api-1.shop.gantry."),
            ("1.0.211.10.in-addr.arpa", PTR, false, "NoError 2=api.shop.gantry."),
            ("50.1.210.10.in-addr.arpa", PTR, false, "NoError 2=x.gantry."),
            ("99.1.210.10.in-addr.arpa", PTR, false, "NXDomain  soa"),
            ("8.8.8.8.in-addr.arpa", PTR, true, "Forward { single_label: false }"),
            ("8.in-addr.arpa", PTR, true, "Forward { single_label: false }"),
        ] {
            assert_eq!(ask(name, kind, inside), expected, "{name} {kind} inside={inside}");
        }
    }

    #[test]
    fn a_long_answer_is_cut_for_udp_only() {
        let endpoints: Vec<(u8, bool)> = (0..60).map(|n| (n, true)).collect();
        let zone = Zone::new(&table(1, &[("api", &endpoints)]), &Isolation::default());
        let mut message = question("tasks.api.shop", RecordType::A);
        for (payload, transport, whole) in [
            (None, Transport::Udp, false),
            (Some(1232), Transport::Udp, true),
            (Some(100), Transport::Udp, false),
            (None, Transport::Tcp, true),
        ] {
            message.edns = payload.map(|size| {
                let mut edns = Edns::new();
                edns.set_max_payload(size);
                edns
            });
            let packet = message.to_vec().unwrap();
            let Step::Reply(bytes) = prepare(&packet, transport, &zone, &Clients::new(), Ipv4Addr::LOCALHOST) else {
                panic!("no reply");
            };
            let answer = Message::from_vec(&bytes).unwrap();
            assert_eq!(answer.metadata.truncation, !whole, "{payload:?} {transport:?}");
            assert_eq!(answer.answers.len(), if whole { 60 } else { 0 }, "{payload:?} {transport:?}");
            assert_eq!(answer.edns.is_some(), payload.is_some());
        }
    }

    #[test]
    fn what_is_no_question_gets_no_answer_and_a_broken_one_an_error() {
        let (zone, clients, inside) = setting();
        let mut packet = question("api", RecordType::A).to_vec().unwrap();
        packet[2] |= 0x80;
        assert_eq!(prepare(&packet, Transport::Udp, &zone, &clients, inside), Step::Ignore);
        assert_eq!(prepare(&[0; 5], Transport::Udp, &zone, &clients, inside), Step::Ignore);
        packet[2] &= 0x7f;
        packet.truncate(14);
        let Step::Reply(bytes) = prepare(&packet, Transport::Udp, &zone, &clients, inside) else { panic!("no reply") };
        assert_eq!(Message::from_vec(&bytes).unwrap().metadata.response_code, ResponseCode::FormErr);
    }

    proptest! {
        #[test]
        fn no_packet_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (zone, clients, inside) = setting();
            let _ = prepare(&bytes, Transport::Udp, &zone, &clients, inside);
            let _ = error_reply(&bytes, ResponseCode::ServFail);
        }

        #[test]
        fn no_damage_to_a_question_is_too_strange(at in 0usize..40, byte in any::<u8>(), cut in 0usize..60) {
            let (zone, clients, inside) = setting();
            let mut packet = question("tasks.api.shop.gantry", RecordType::A).to_vec().unwrap();
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
            packet.truncate(cut.max(1));
            if let Step::Reply(bytes) = prepare(&packet, Transport::Udp, &zone, &clients, inside) {
                prop_assert!(Message::from_vec(&bytes).is_ok());
            }
        }
    }
}
