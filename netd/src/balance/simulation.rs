//! The policy's code under load, in events and not in time: many client nodes, replicas of different speed.

use super::policy::{self, Load};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// xorshift64*: the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn word(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        let uniform = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        -mean * (1.0 - uniform).ln()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Policy {
    Ours,
    /// Knows every connection of every node at once.
    Ideal,
    Random,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Done { replica: usize, node: usize, started: u64 },
    Report,
}

struct Replica {
    /// Times the mean service time.
    slowness: f64,
    busy: usize,
    waiting: VecDeque<(usize, u64, u64)>,
    active: u32,
}

/// Mean and 99th percentile of the latency, in microseconds.
fn simulate(policy: Policy, nodes: usize, slowness: &[f64], utilisation: f64) -> (f64, f64) {
    const WORKERS: usize = 4;
    const MEAN: f64 = 50_000.0;
    const REPORT_EVERY: u64 = 100_000;
    const END: u64 = 60_000_000;
    const WARM: u64 = 5_000_000;
    let capacity: f64 = slowness.iter().map(|slow| WORKERS as f64 / (MEAN * slow)).sum();
    let pause = 1.0 / (capacity * utilisation);
    let mut random = Random(0x5eed);
    let mut replicas: Vec<Replica> = slowness
        .iter()
        .map(|slowness| Replica { slowness: *slowness, busy: 0, waiting: VecDeque::new(), active: 0 })
        .collect();
    let mut live = vec![vec![0u32; replicas.len()]; nodes];
    let mut smoothed = vec![0.0; replicas.len()];
    let ids: Vec<u32> = (0..replicas.len() as u32).collect();
    let mut latencies = Vec::new();
    let mut order = 0u64;
    let mut events = BinaryHeap::new();
    let mut at = |events: &mut BinaryHeap<_>, time: u64, event| {
        order += 1;
        events.push(Reverse((time, order, event)));
    };
    at(&mut events, 0, Event::Arrival);
    at(&mut events, REPORT_EVERY, Event::Report);
    while let Some(Reverse((now, _, event))) = events.pop() {
        if now > END {
            break;
        }
        match event {
            Event::Report => {
                for (smoothed, replica) in smoothed.iter_mut().zip(&replicas) {
                    *smoothed = 0.7 * *smoothed + 0.3 * f64::from(replica.active);
                }
                at(&mut events, now + REPORT_EVERY, Event::Report);
            }
            Event::Arrival => {
                let node = random.word() as usize % nodes;
                let word = random.word();
                let load = |id: u32| {
                    let id = id as usize;
                    Some(match policy {
                        Policy::Ours => {
                            Load { live: live[node][id], reported: policy::reported(smoothed[id], nodes as u32) }
                        }
                        Policy::Ideal => Load { live: replicas[id].active, reported: 0 },
                        Policy::Random => Load { live: 0, reported: 0 },
                    })
                };
                let chosen = match policy {
                    Policy::Ideal => {
                        let least = replicas.iter().map(|replica| replica.active).min().unwrap();
                        let all: Vec<usize> = (0..replicas.len()).filter(|r| replicas[*r].active == least).collect();
                        all[word as usize % all.len()]
                    }
                    _ => policy::choose(&ids, word, load).unwrap() as usize,
                };
                live[node][chosen] += 1;
                let replica = &mut replicas[chosen];
                replica.active += 1;
                let work = random.exponential(MEAN * replica.slowness) as u64;
                if replica.busy < WORKERS {
                    replica.busy += 1;
                    at(&mut events, now + work, Event::Done { replica: chosen, node, started: now });
                } else {
                    replica.waiting.push_back((node, now, work));
                }
                at(&mut events, now + random.exponential(pause) as u64, Event::Arrival);
            }
            Event::Done { replica: index, node, started } => {
                if started > WARM {
                    latencies.push(now - started);
                }
                live[node][index] -= 1;
                let replica = &mut replicas[index];
                replica.active -= 1;
                match replica.waiting.pop_front() {
                    Some((node, started, work)) => {
                        at(&mut events, now + work, Event::Done { replica: index, node, started });
                    }
                    None => replica.busy -= 1,
                }
            }
        }
    }
    latencies.sort_unstable();
    let mean = latencies.iter().sum::<u64>() as f64 / latencies.len() as f64;
    (mean, latencies[latencies.len() * 99 / 100] as f64)
}

/// 10 replicas, two of them half as fast, 80 % load.
#[test]
fn most_free_is_close_to_ideal_from_one_to_twenty_nodes() {
    let mut slowness = [1.0; 10];
    slowness[..2].fill(2.0);
    let ideal = simulate(Policy::Ideal, 1, &slowness, 0.8);
    let blind = simulate(Policy::Random, 1, &slowness, 0.8);
    assert!(blind.0 > 5.0 * ideal.0, "a test that random choice passes would show nothing: {blind:?} {ideal:?}");
    for nodes in [1, 5, 20] {
        let ours = simulate(Policy::Ours, nodes, &slowness, 0.8);
        let (mean, p99) = (ours.0 / ideal.0, ours.1 / ideal.1);
        println!("{nodes} nodes: mean {mean:.2}, p99 {p99:.2} of the ideal balancer's");
        assert!(mean <= 1.5 && p99 <= 1.5, "{nodes} nodes: mean {mean:.2}, p99 {p99:.2}");
    }
}
