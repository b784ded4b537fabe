//! The programs, as the kernel runs them in `connect`, `sendto`, `recvfrom`, `getpeername` and `close` of every socket
//! of a container.
//!
//! ```text
//! connect4 connect6   service address → a replica's; count it; remember it in the socket
//! sendmsg4 sendmsg6   the same per datagram of a socket that is not connected; a socket stays with its replica while
//!                     that is ready
//! recvmsg4 recvmsg6   a replica's address → the service address that the socket had asked for
//! getpeername4 and 6  the same
//! sock_release        give the counts back
//! ```
//! The programs for IPv6 sockets act on IPv4 addresses inside (`::ffff:10.211.0.1`), as a socket that serves both uses
//! them. The port is never changed. What they do not find they leave alone: the rules of nf_tables translate or refuse
//! it.
//!
//! Registers: r6 context, r7 service address, r8 the service, r9 the chosen replica (before it is chosen: the random
//! number or the client).

use super::asm::{Assembler, Code, Helper, If, Label, Op, Reg, Size};
use super::policy::{CHOICES_MAX, MIX_HASH, MIX_ID, UNIT_BITS};
use Reg::{Frame, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9};

/// The maps, which netd and the programs share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Map {
    /// Service address → [`super::book::List`].
    Services,
    /// Id → [`crate::sys::bpf::Endpoint`].
    Endpoints,
    /// Socket → [`RECORDS`] records.
    Sockets,
}

/// Service addresses that one socket may speak to in turns and still know who answers. (One that is connected uses one.)
pub(crate) const RECORDS: i16 = 4;
/// A record: service address, port, replica's address, id of the replica (0: none).
pub(crate) const RECORD_SIZE: i16 = 16;
const RECORD_ADDRESS: i16 = 0;
const RECORD_PORT: i16 = 4;
const RECORD_REPLICA: i16 = 8;
const RECORD_ID: i16 = 12;

/// The replica may be given connections.
pub(crate) const READY: i32 = 1;
const ENDPOINT_KEY: i16 = 0;
const ENDPOINT_STATE: i16 = 8;
const ENDPOINT_LIVE: i16 = 12;
const ENDPOINT_REPORTED: i16 = 16;
const ENDPOINT_TOTAL: i16 = 24;

const LIST_COUNT: i16 = 0;
const LIST_STICKY: i16 = 4;
const LIST_IDS: i16 = 8;

// `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;
const PROTOCOL: i16 = 36;
const SOCKET: i16 = 64;
/// Where an IPv4 address lies in an IPv6 one.
const MAPPED: i16 = USER_IP6 + 12;

// The stack frame.
const ADDRESS: i16 = -4;
const ID: i16 = -8;
const OTHER_ID: i16 = -12;
const REPLICA: i16 = -16;
const FIRST: i16 = -24;
const FIRST_SCORE: i16 = -32;
const STORAGE: i16 = -40;
const RECORD: i16 = -48;
const PORT: i16 = -52;
const OLD_ID: i16 = -56;

const TCP: i32 = 6;
const UDP: i32 = 17;

type Asm = Assembler<Map>;

/// IPv4 or IPv6 sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn address(self) -> i16 {
        match self {
            Self::V4 => USER_IP4,
            Self::V6 => MAPPED,
        }
    }
}

/// One program and where it is called.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// The kernel's number of the kind of program.
    pub(crate) kind: u32,
    /// And of the place.
    pub(crate) attach_type: u32,
    pub(crate) code: Code<Map>,
}

/// All of them, in the order in which they may be attached: who counts comes after who gives the counts back.
pub(crate) fn all() -> Vec<Program> {
    const SOCKET: u32 = 9;
    const SOCKET_ADDRESS: u32 = 18;
    let program = |name, attach_type, code| Program { name, kind: SOCKET_ADDRESS, attach_type, code };
    vec![
        Program { name: "sock_release", kind: SOCKET, attach_type: 34, code: release() },
        program("recvmsg4", 19, answer(Family::V4)),
        program("recvmsg6", 20, answer(Family::V6)),
        program("getpeername4", 29, answer(Family::V4)),
        program("getpeername6", 30, answer(Family::V6)),
        program("sendmsg4", 14, datagram(Family::V4)),
        program("sendmsg6", 15, datagram(Family::V6)),
        program("connect4", 10, connect(Family::V4)),
        program("connect6", 11, connect(Family::V6)),
    ]
}

fn connect(family: Family) -> Code<Map> {
    let mut asm = Asm::new();
    let a = &mut asm;
    let (out, supported) = (a.label(), a.label());
    a.set(R6, R1);
    a.load(Size::Word, R1, R6, PROTOCOL);
    a.jump_if(R1, If::Equal, TCP, supported);
    a.jump_if(R1, If::NotEqual, UDP, out);
    a.here(supported);
    load_address(a, family, out);
    find_service(a, out);
    storage(a, true, out);
    // A socket that was connected before (a refused attempt, or UDP) has left its replicas.
    forget_all(a);
    choose(a, out);
    a.load(Size::Double, R1, Frame, STORAGE);
    a.store(Size::Double, Frame, RECORD, R1);
    remember_and_count(a);
    rewrite(a, family);
    leave(a, out);
    asm.finish()
}

fn datagram(family: Family) -> Code<Map> {
    let mut asm = Asm::new();
    let a = &mut asm;
    let (out, known, place) = (a.label(), a.label(), a.label());
    a.set(R6, R1);
    load_address(a, family, out);
    find_service(a, out);
    storage(a, true, out);
    a.load(Size::Word, R1, R6, USER_PORT);
    a.store(Size::Word, Frame, PORT, R1);
    for record in 0..RECORDS {
        let (at, next) = (record * RECORD_SIZE, a.label());
        a.load(Size::Double, R1, Frame, STORAGE);
        a.load(Size::Word, R2, R1, at + RECORD_ADDRESS);
        a.jump_if(R2, If::NotEqual, R7, next);
        a.load(Size::Word, R2, R1, at + RECORD_PORT);
        a.load(Size::Word, R3, Frame, PORT);
        a.jump_if(R2, If::NotEqual, R3, next);
        a.load(Size::Word, R2, R1, at + RECORD_ID);
        a.jump_if(R2, If::Equal, 0, next);
        a.store(Size::Word, Frame, ID, R2);
        a.op(Op::Add, R1, i32::from(at));
        a.store(Size::Double, Frame, RECORD, R1);
        a.jump(known);
        a.here(next);
    }
    for record in 0..RECORDS {
        let (at, next) = (record * RECORD_SIZE, a.label());
        a.load(Size::Double, R1, Frame, STORAGE);
        a.load(Size::Word, R2, R1, at + RECORD_ID);
        a.jump_if(R2, If::NotEqual, 0, next);
        a.op(Op::Add, R1, i32::from(at));
        a.store(Size::Double, Frame, RECORD, R1);
        a.jump(place);
        a.here(next);
    }
    a.call(Helper::Random);
    a.op(Op::And, R0, i32::from(RECORDS - 1));
    a.op(Op::ShiftLeft, R0, RECORD_SIZE.trailing_zeros() as i32);
    a.load(Size::Double, R1, Frame, STORAGE);
    a.op(Op::Add, R1, R0);
    a.store(Size::Double, Frame, RECORD, R1);
    a.jump(place);

    let same = a.label();
    a.here(known);
    usable(a, ID, place);
    a.set(R9, R0);
    a.load(Size::Double, R1, R9, ENDPOINT_KEY);
    a.store(Size::Word, Frame, REPLICA, R1);
    a.jump(same);

    a.here(place);
    a.load(Size::Double, R1, Frame, RECORD);
    forget(a, 0);
    choose(a, out);
    remember_and_count(a);
    a.here(same);
    rewrite(a, family);
    leave(a, out);
    asm.finish()
}

fn answer(family: Family) -> Code<Map> {
    let mut asm = Asm::new();
    let a = &mut asm;
    let out = a.label();
    a.set(R6, R1);
    load_address(a, family, out);
    a.load(Size::Word, R8, R6, USER_PORT);
    storage(a, false, out);
    for record in 0..RECORDS {
        let (at, next) = (record * RECORD_SIZE, a.label());
        a.load(Size::Double, R1, Frame, STORAGE);
        a.load(Size::Word, R2, R1, at + RECORD_REPLICA);
        a.jump_if(R2, If::NotEqual, R7, next);
        a.load(Size::Word, R2, R1, at + RECORD_PORT);
        a.jump_if(R2, If::NotEqual, R8, next);
        a.load(Size::Word, R2, R1, at + RECORD_ID);
        a.jump_if(R2, If::Equal, 0, next);
        a.load(Size::Word, R2, R1, at + RECORD_ADDRESS);
        a.store(Size::Word, R6, family.address(), R2);
        a.jump(out);
        a.here(next);
    }
    leave(a, out);
    asm.finish()
}

fn release() -> Code<Map> {
    let mut asm = Asm::new();
    let a = &mut asm;
    let out = a.label();
    // Here the context itself is the socket.
    a.set(R6, R1);
    a.set(R2, R6);
    storage_of_r2(a, false, out);
    forget_all(a);
    leave(a, out);
    asm.finish()
}

/// The end: 1 lets the call go on.
fn leave(a: &mut Asm, out: Label) {
    a.here(out);
    a.set(R0, 1);
    a.exit();
}

/// r7 = the address, as it is on the wire; `out` when it is a true IPv6 address.
fn load_address(a: &mut Asm, family: Family, out: Label) {
    if family == Family::V6 {
        for (word, value) in [(0, 0), (4, 0), (8, 0xffff_u32.to_be())] {
            a.load(Size::Word, R1, R6, USER_IP6 + word);
            // A comparison with a constant would extend its sign.
            a.set_long(R2, u64::from(value));
            a.jump_if(R1, If::NotEqual, R2, out);
        }
    }
    a.load(Size::Word, R7, R6, family.address());
}

/// r8 = the service at r7.
fn find_service(a: &mut Asm, out: Label) {
    a.store(Size::Word, Frame, ADDRESS, R7);
    look_up(a, Map::Services, ADDRESS, out);
    a.set(R8, R0);
}

/// r0 = the value of the key on the stack.
fn look_up(a: &mut Asm, map: Map, key: i16, absent: Label) {
    a.set_map(R1, map);
    a.set(R2, Frame);
    a.op(Op::Add, R2, i32::from(key));
    a.call(Helper::MapLookup);
    a.jump_if(R0, If::Equal, 0, absent);
}

/// The socket's records, on the stack.
fn storage(a: &mut Asm, create: bool, out: Label) {
    a.load(Size::Double, R2, R6, SOCKET);
    storage_of_r2(a, create, out);
}

fn storage_of_r2(a: &mut Asm, create: bool, out: Label) {
    a.set_map(R1, Map::Sockets);
    a.set(R3, 0);
    a.set(R4, i32::from(create));
    a.call(Helper::SocketStorage);
    a.jump_if(R0, If::Equal, 0, out);
    a.store(Size::Double, Frame, STORAGE, R0);
}

/// r0 = the replica whose id is on the stack, if it is one of the service at r7 and ready.
fn usable(a: &mut Asm, id: i16, not: Label) {
    look_up(a, Map::Endpoints, id, not);
    // An id that was given to another replica meanwhile has another service's key.
    a.load(Size::Double, R1, R0, ENDPOINT_KEY);
    a.op(Op::ShiftRight, R1, 32);
    a.jump_if(R1, If::NotEqual, R7, not);
    a.load(Size::Word, R1, R0, ENDPOINT_STATE);
    a.jump_if(R1, If::NotEqual, READY, not);
}

/// r1 = the load of the replica at r0; r2 is lost.
fn score(a: &mut Asm) {
    a.load(Size::Word, R1, R0, ENDPOINT_LIVE);
    a.op(Op::ShiftLeft, R1, UNIT_BITS as i32);
    a.load(Size::Word, R2, R0, ENDPOINT_REPORTED);
    a.op(Op::Add, R1, R2);
}

/// `to` = the id at the index in it, which the caller has bounded.
fn load_id(a: &mut Asm, to: Reg) {
    a.op(Op::ShiftLeft, to, 2);
    a.op(Op::Add, to, R8);
    a.load(Size::Word, to, to, LIST_IDS);
}

/// r1 = how many replicas the service has, 1 to [`CHOICES_MAX`].
fn load_count(a: &mut Asm, none: Label) {
    a.load(Size::Word, R1, R8, LIST_COUNT);
    a.jump_if(R1, If::Equal, 0, none);
    a.jump_if(R1, If::Greater, CHOICES_MAX as i32, none);
}

/// [`super::policy::choose`] and [`super::policy::stick`]: r9 = a replica of the service at r8; its id and address are on
/// the stack.
fn choose(a: &mut Asm, none: Label) {
    let index_max = CHOICES_MAX as i32 - 1;
    let (draw, chosen) = (a.label(), a.label());
    a.load(Size::Word, R1, R8, LIST_STICKY);
    a.jump_if(R1, If::Equal, 0, draw);
    stick(a, none);
    usable(a, ID, draw);
    a.set(R9, R0);
    a.jump(chosen);

    a.here(draw);
    let (one, in_range, first, only_second, second) = (a.label(), a.label(), a.label(), a.label(), a.label());
    a.call(Helper::Random);
    a.set(R9, R0);
    load_count(a, none);
    a.set(R2, R9);
    a.op(Op::And, R2, 0xffff);
    a.op(Op::Modulo, R2, R1);
    a.jump_if(R2, If::Greater, index_max, none);
    a.set(R3, R2);
    load_id(a, R3);
    a.store(Size::Word, Frame, ID, R3);
    a.store(Size::Word, Frame, OTHER_ID, R3);
    a.jump_if(R1, If::Equal, 1, one);
    a.set(R3, R9);
    a.op(Op::ShiftRight, R3, 16);
    a.op(Op::And, R3, 0x7fff);
    a.set(R4, R1);
    a.op(Op::Sub, R4, 1);
    a.op(Op::Modulo, R3, R4);
    a.op(Op::Add, R3, R2);
    a.op(Op::Add, R3, 1);
    a.jump_if(R3, If::Less, R1, in_range);
    a.op(Op::Sub, R3, R1);
    a.here(in_range);
    a.jump_if(R3, If::Greater, index_max, none);
    load_id(a, R3);
    a.store(Size::Word, Frame, OTHER_ID, R3);
    a.here(one);

    usable(a, ID, only_second);
    a.store(Size::Double, Frame, FIRST, R0);
    score(a);
    a.store(Size::Double, Frame, FIRST_SCORE, R1);
    usable(a, OTHER_ID, first);
    score(a);
    a.load(Size::Double, R2, Frame, FIRST_SCORE);
    a.jump_if(R1, If::Less, R2, second);
    a.jump_if(R1, If::Greater, R2, first);
    a.op(Op::ShiftRight, R9, 31);
    a.jump_if(R9, If::NotEqual, 0, second);
    a.here(first);
    a.load(Size::Double, R9, Frame, FIRST);
    a.jump(chosen);

    a.here(only_second);
    usable(a, OTHER_ID, none);
    a.here(second);
    a.set(R9, R0);
    a.load(Size::Word, R1, Frame, OTHER_ID);
    a.store(Size::Word, Frame, ID, R1);

    a.here(chosen);
    // Address and service in one load: they belong together.
    a.load(Size::Double, R1, R9, ENDPOINT_KEY);
    a.set(R2, R1);
    a.op(Op::ShiftRight, R2, 32);
    a.jump_if(R2, If::NotEqual, R7, none);
    a.store(Size::Word, Frame, REPLICA, R1);
}

/// The id of the client's replica on the stack. Takes r7 for itself and gives it back.
fn stick(a: &mut Asm, none: Label) {
    let (next, done, smaller) = (a.label(), a.label(), a.label());
    a.set(R1, R6);
    a.call(Helper::NamespaceCookie);
    a.set(R9, R0);
    load_count(a, none);
    a.set(R2, 0);
    a.set(R3, 0);
    a.set(R4, 0);
    a.here(next);
    a.jump_if(R2, If::GreaterOrEqual, R1, done);
    a.jump_if(R2, If::GreaterOrEqual, CHOICES_MAX as i32, done);
    a.set(R5, R2);
    load_id(a, R5);
    a.set_long(R0, MIX_ID);
    a.op(Op::Mul, R0, R5);
    a.op(Op::Xor, R0, R9);
    for multiply in [true, false] {
        a.set(R7, R0);
        a.op(Op::ShiftRight, R7, 32);
        a.op(Op::Xor, R0, R7);
        if multiply {
            a.set_long(R7, MIX_HASH);
            a.op(Op::Mul, R0, R7);
        }
    }
    a.jump_if(R0, If::Less, R3, smaller);
    a.set(R3, R0);
    a.set(R4, R5);
    a.here(smaller);
    a.op(Op::Add, R2, 1);
    a.jump(next);
    a.here(done);
    a.store(Size::Word, Frame, ID, R4);
    a.load(Size::Word, R7, Frame, ADDRESS);
}

/// Fill the record on the stack, and count the socket with its replica.
fn remember_and_count(a: &mut Asm) {
    a.load(Size::Double, R1, Frame, RECORD);
    a.store(Size::Word, R1, RECORD_ADDRESS, R7);
    a.load(Size::Word, R2, R6, USER_PORT);
    a.store(Size::Word, R1, RECORD_PORT, R2);
    a.load(Size::Word, R2, Frame, REPLICA);
    a.store(Size::Word, R1, RECORD_REPLICA, R2);
    a.load(Size::Word, R2, Frame, ID);
    a.store(Size::Word, R1, RECORD_ID, R2);
    a.set(R1, 1);
    a.atomic_add(Size::Word, R9, ENDPOINT_LIVE, R1);
    a.set(R1, 1);
    a.atomic_add(Size::Double, R9, ENDPOINT_TOTAL, R1);
}

/// The replica's address in place of the service's.
fn rewrite(a: &mut Asm, family: Family) {
    a.load(Size::Word, R1, Frame, REPLICA);
    a.store(Size::Word, R6, family.address(), R1);
}

fn forget_all(a: &mut Asm) {
    for record in 0..RECORDS {
        a.load(Size::Double, R1, Frame, STORAGE);
        forget(a, record * RECORD_SIZE);
    }
}

/// Give the count of the record at r1 + `at` back, once: the record is empty then.
fn forget(a: &mut Asm, at: i16) {
    let none = a.label();
    a.load(Size::Word, R2, R1, at + RECORD_ID);
    a.jump_if(R2, If::Equal, 0, none);
    a.store_constant(Size::Word, R1, at + RECORD_ID, 0);
    a.store(Size::Word, Frame, OLD_ID, R2);
    look_up(a, Map::Endpoints, OLD_ID, none);
    a.set(R1, -1);
    a.atomic_add(Size::Word, R0, ENDPOINT_LIVE, R1);
    a.here(none);
}
