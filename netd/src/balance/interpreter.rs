//! Runs the kernel's programs without a kernel, with the random numbers that a test gives: so they can be compared with
//! [`super::policy`] case by case.

use super::asm::LOAD_CONSTANT;
use super::book::{Key, List, State};
use super::policy::{self, Load};
use super::programs::{self, Map, RECORD_SIZE, RECORDS};
use crate::sys::bpf::Instruction;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

const CONTEXT: usize = 1;
const STACK: usize = 2;
const ENDPOINTS: usize = 3;
const SOCKET: usize = 4;
const STORAGE: usize = 5;
const FIRST_SERVICE: usize = 6;
const STACK_SIZE: usize = 512;

/// A kernel with one socket.
struct Machine {
    /// A pointer is a region's number in the upper half and the place inside in the lower one.
    regions: Vec<Vec<u8>>,
    services: BTreeMap<[u8; 4], usize>,
    stored: bool,
    random: u32,
    client: u64,
}

impl Machine {
    fn new(services: &[(Ipv4Addr, List)], endpoints: &[(Key, State, Load)]) -> Self {
        let mut regions = vec![vec![]; FIRST_SERVICE];
        regions[CONTEXT] = vec![0; 72];
        regions[CONTEXT][64..].copy_from_slice(&((SOCKET as u64) << 32).to_ne_bytes());
        regions[STACK] = vec![0xaa; STACK_SIZE];
        regions[SOCKET] = vec![0; 8];
        regions[STORAGE] = vec![0; (RECORDS * RECORD_SIZE) as usize];
        regions[ENDPOINTS] = vec![0; 32]; // number 0
        for (key, state, load) in endpoints {
            let line = &mut regions[ENDPOINTS];
            line.extend(key.number().to_ne_bytes());
            line.extend((*state as u32).to_ne_bytes());
            line.extend(load.live.to_ne_bytes());
            line.extend(load.reported.to_ne_bytes());
            line.extend([0; 12]);
        }
        let mut known = BTreeMap::new();
        for (address, list) in services {
            known.insert(address.octets(), regions.len());
            regions.push(list.bytes().to_vec());
        }
        Self { regions, services: known, stored: false, random: 0, client: 0 }
    }

    fn word(&self, region: usize, at: usize) -> u32 {
        u32::from_ne_bytes(self.regions[region][at..at + 4].try_into().unwrap())
    }

    fn set(&mut self, region: usize, at: usize, bytes: &[u8]) {
        self.regions[region][at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn live(&self, id: u32) -> u32 {
        self.word(ENDPOINTS, id as usize * 32 + 12)
    }

    /// The call of a program by its name, for an IPv4 address; answers the address in the end.
    fn call(&mut self, name: &str, to: Ipv4Addr, port: u16) -> Ipv4Addr {
        let at = if name.ends_with('6') {
            self.set(CONTEXT, 8, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
            20
        } else {
            4
        };
        self.set(CONTEXT, at, &to.octets());
        self.set(CONTEXT, 24, &u32::from(port.to_be()).to_ne_bytes());
        if self.word(CONTEXT, 36) == 0 {
            self.set(CONTEXT, 36, &6u32.to_ne_bytes());
        }
        self.run(name);
        Ipv4Addr::from(self.word(CONTEXT, at).to_ne_bytes())
    }

    fn run(&mut self, name: &str) {
        let program = programs::all().into_iter().find(|program| program.name == name).unwrap();
        let code = program.code.with_maps(|map| map as i32);
        let mut r = [0u64; 11];
        r[1] = (CONTEXT as u64) << 32;
        r[10] = ((STACK as u64) << 32) + STACK_SIZE as u64;
        let mut at = 0;
        for _ in 0..100_000 {
            let i = code[at];
            at += 1;
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let operand = if i.code & 8 != 0 { r[from] } else { i64::from(i.immediate) as u64 };
            let jump = |at: usize| (at as i64 + i64::from(i.offset)) as usize;
            match i.code {
                0x95 => {
                    assert_eq!(r[0], 1, "the call always goes on");
                    return;
                }
                0x85 => r[0] = self.helper(i.immediate, &r),
                LOAD_CONSTANT => {
                    r[to] = u64::from(i.immediate as u32) | u64::from(code[at].immediate as u32) << 32;
                    at += 1;
                }
                0x05 => at = jump(at),
                code if code & 7 == 5 => {
                    let holds = match code & 0xf0 {
                        0x10 => r[to] == operand,
                        0x20 => r[to] > operand,
                        0x30 => r[to] >= operand,
                        0x50 => r[to] != operand,
                        0xa0 => r[to] < operand,
                        other => panic!("condition {other:#x}"),
                    };
                    if holds {
                        at = jump(at);
                    }
                }
                code if code & 7 == 7 => {
                    r[to] = match code & 0xf0 {
                        0x00 => r[to].wrapping_add(operand),
                        0x10 => r[to].wrapping_sub(operand),
                        0x20 => r[to].wrapping_mul(operand),
                        0x50 => r[to] & operand,
                        0x60 => r[to] << operand,
                        0x70 => r[to] >> operand,
                        0x90 => r[to] % operand,
                        0xa0 => r[to] ^ operand,
                        0xb0 => operand,
                        other => panic!("operation {other:#x}"),
                    }
                }
                _ => self.memory(i, &mut r, to, from),
            }
        }
        panic!("{name} does not end");
    }

    fn memory(&mut self, i: Instruction, r: &mut [u64; 11], to: usize, from: usize) {
        let pointer = |base: u64| {
            let address = base.wrapping_add(i64::from(i.offset) as u64);
            ((address >> 32) as usize, address as u32 as usize)
        };
        let size = if i.code & 0x18 == 0x18 { 8 } else { 4 };
        let (region, at) = pointer(if i.code & 7 == 1 { r[from] } else { r[to] });
        let place = &mut self.regions[region][at..at + size];
        let mut old = [0; 8];
        old[..size].copy_from_slice(place);
        let old = u64::from_le_bytes(old);
        match i.code & 0xe7 {
            0x61 => r[to] = old,
            0x63 => place.copy_from_slice(&r[from].to_le_bytes()[..size]),
            0x62 => place.copy_from_slice(&i64::from(i.immediate).to_le_bytes()[..size]),
            0xc3 => place.copy_from_slice(&old.wrapping_add(r[from]).to_le_bytes()[..size]),
            other => panic!("instruction {other:#x}"),
        }
    }

    fn helper(&mut self, number: i32, r: &[u64; 11]) -> u64 {
        match number {
            1 => {
                let key = self.word((r[2] >> 32) as usize, r[2] as u32 as usize);
                if r[1] == Map::Services as u64 {
                    return self.services.get(&key.to_ne_bytes()).map_or(0, |region| (*region as u64) << 32);
                }
                assert_eq!(r[1], Map::Endpoints as u64);
                let at = key as usize * 32;
                if at < self.regions[ENDPOINTS].len() { ((ENDPOINTS as u64) << 32) + at as u64 } else { 0 }
            }
            7 => self.random.into(),
            107 => {
                assert!(r[1] == Map::Sockets as u64 && r[3] == 0);
                assert!([SOCKET as u64, CONTEXT as u64].contains(&(r[2] >> 32)));
                self.stored |= r[4] == 1;
                if self.stored { (STORAGE as u64) << 32 } else { 0 }
            }
            122 => self.client,
            other => panic!("helper {other}"),
        }
    }
}

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 211, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 211, 0, 2);

fn replica(id: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 210, 1, id as u8)
}

fn endpoint(service: Ipv4Addr, id: u32, state: State, live: u32, reported: u32) -> (Key, State, Load) {
    (Key { service, address: replica(id) }, state, Load { live, reported })
}

/// Replicas 1 and 2 of one service, 3 of another.
fn two_services() -> Machine {
    let list = |ids: &[u32]| List { sticky: false, ids: ids.to_vec() };
    Machine::new(
        &[(SERVICE, list(&[1, 2])), (OTHER, list(&[3]))],
        &[
            endpoint(SERVICE, 1, State::Ready, 0, 0),
            endpoint(SERVICE, 2, State::Ready, 0, 0),
            endpoint(OTHER, 3, State::Ready, 0, 0),
        ],
    )
}

#[test]
fn a_connection_from_its_beginning_to_its_end() {
    for (connect, name) in [("connect4", "getpeername4"), ("connect6", "getpeername6")] {
        let mut machine = two_services();
        assert_eq!(machine.call(connect, SERVICE, 80), replica(1));
        assert_eq!((machine.live(1), machine.live(2)), (1, 0));
        assert_eq!(machine.call(name, replica(1), 80), SERVICE);
        assert_eq!(machine.call(name, replica(1), 81), replica(1), "another port is another's");
        assert_eq!(machine.call(name, replica(2), 80), replica(2));
        // It was refused, and tries again: the busier one is not taken.
        machine.random = 0x8000_0000;
        assert_eq!(machine.call(connect, SERVICE, 80), replica(2), "the last bit breaks a tie");
        assert_eq!((machine.live(1), machine.live(2)), (0, 1), "the first one's count was given back");
        machine.run("sock_release");
        machine.run("sock_release");
        assert_eq!((machine.live(1), machine.live(2)), (0, 0), "once");
    }
}

#[test]
fn what_is_no_service_is_left_alone() {
    let mut machine = two_services();
    let elsewhere = Ipv4Addr::new(192, 0, 2, 1);
    for name in ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"]
    {
        assert_eq!(machine.call(name, elsewhere, 80), elsewhere, "{name}");
    }
    assert!(!machine.stored);
    machine.run("sock_release");
    machine.set(CONTEXT, 36, &1u32.to_ne_bytes());
    assert_eq!(machine.call("connect4", SERVICE, 80), SERVICE, "ICMP");
    // A true IPv6 address that ends like a service's.
    let mut machine = two_services();
    machine.set(CONTEXT, 36, &6u32.to_ne_bytes());
    machine.set(CONTEXT, 8, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 211, 0, 1]);
    machine.run("connect6");
    assert_eq!(machine.word(CONTEXT, 20).to_ne_bytes(), SERVICE.octets());
}

#[test]
fn datagrams_of_one_socket_stay_with_a_replica_while_it_is_ready() {
    let mut machine = two_services();
    machine.set(CONTEXT, 36, &17u32.to_ne_bytes());
    assert_eq!(machine.call("sendmsg4", SERVICE, 53), replica(1));
    machine.random = 0x8000_0001;
    assert_eq!(machine.call("sendmsg4", SERVICE, 53), replica(1), "whatever is drawn");
    assert_eq!(machine.call("sendmsg4", OTHER, 54), replica(3), "another service beside it");
    assert_eq!(machine.call("recvmsg4", replica(1), 53), SERVICE);
    assert_eq!(machine.call("recvmsg6", replica(3), 54), OTHER);
    assert_eq!([1, 2, 3].map(|id| machine.live(id)), [1, 0, 1]);
    machine.set(ENDPOINTS, 32 + 8, &(State::Draining as u32).to_ne_bytes());
    assert_eq!(machine.call("sendmsg4", SERVICE, 53), replica(2), "a draining one gets nothing more");
    assert_eq!([1, 2, 3].map(|id| machine.live(id)), [0, 1, 1]);
    // More services than records: the oldest or another one is forgotten, and its count given back.
    for port in 1..20 {
        machine.random = u32::from(port);
        machine.call("sendmsg4", SERVICE, port);
    }
    assert_eq!([1, 2, 3].iter().map(|id| machine.live(*id)).sum::<u32>(), RECORDS as u32);
    machine.run("sock_release");
    assert_eq!([1, 2, 3].map(|id| machine.live(id)), [0, 0, 0]);
}

#[test]
fn a_number_that_became_another_replicas_is_not_used() {
    let mut machine = two_services();
    // The list still names 1 and 2, but both are replicas of the other service now.
    for id in [1, 2] {
        let key = Key { service: OTHER, address: replica(id) }.number();
        machine.set(ENDPOINTS, id as usize * 32, &key.to_ne_bytes());
    }
    assert_eq!(machine.call("connect4", SERVICE, 80), SERVICE, "left to the rules");
    assert_eq!([1, 2, 3].map(|id| machine.live(id)), [0, 0, 0]);
}

fn some_endpoint() -> impl Strategy<Value = (bool, u8, u32, u32)> {
    // Few values, so that ties occur.
    (any::<bool>(), 1u8..=3, 0u32..4, prop_oneof![Just(0u32), Just(256), Just(512), any::<u32>()])
}

proptest! {
    #[test]
    fn the_programs_choose_as_the_policy_does(
        endpoints in proptest::collection::vec(some_endpoint(), 0..=64),
        random in any::<u32>(),
        client in any::<u64>(),
        sticky in any::<bool>(),
        name in prop_oneof![Just("connect4"), Just("connect6"), Just("sendmsg4"), Just("sendmsg6")],
    ) {
        let lines: Vec<_> = (1..).zip(&endpoints).map(|(id, (ours, state, live, reported))| {
            let service = if *ours { SERVICE } else { OTHER };
            endpoint(service, id, State::from_number(u32::from(*state)), *live, *reported)
        }).collect();
        let ids: Vec<u32> = (1..=lines.len() as u32).collect();
        let mut machine = Machine::new(&[(SERVICE, List { sticky, ids: ids.clone() })], &lines);
        machine.random = random;
        machine.client = client;
        let expected = policy::pick(&ids, sticky.then_some(client), random, |id| {
            let (key, state, load) = lines[id as usize - 1];
            (key.service == SERVICE && state == State::Ready).then_some(load)
        });
        let found = machine.call(name, SERVICE, 80);
        prop_assert_eq!(found, expected.map_or(SERVICE, replica));
        for (id, line) in (1..).zip(&lines) {
            prop_assert_eq!(machine.live(id), line.2.live + u32::from(Some(id) == expected));
        }
    }
}
