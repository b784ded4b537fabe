//! Values for tests of rendering.

use gantry_api::http::{AppDetail, AppSummary, Node, NodeState, Replica, ServiceSummary};
use gantry_api::ids::{ReplicaId, ReplicaName, Revision};
use gantry_api::spec::{App, Protocol};
use gantry_api::units::{Bytes, MilliCpu};
use gantry_api::wire::{Capacity, Exit, ReplicaState};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The moment that samples are shown at.
pub(crate) const NOW_MS: u64 = 1_000_000_000;

/// A replica of `shop` that has run for two minutes.
pub(crate) fn replica(service: &str, number: u32, state: ReplicaState) -> Replica {
    let name = ReplicaName { app: "shop".parse().unwrap(), service: service.parse().unwrap(), number };
    Replica {
        id: ReplicaId::new(&name, 0xab_0000 + number),
        name,
        node: Some("n1".parse().unwrap()),
        state,
        ready: state == ReplicaState::Running,
        healthy: None,
        current: true,
        image: format!("{service}:1"),
        address: Some(Ipv4Addr::new(10, 210, 0, 10)),
        message: None,
        restarts: 0,
        started_at_ms: Some(NOW_MS - 120_000),
        last_exit: None,
        used: Capacity::default(),
    }
}

/// How a process ended five seconds ago.
pub(crate) fn exit(code: Option<i32>, signal: Option<i32>) -> Exit {
    Exit { code, signal, oom_killed: false, at_ms: NOW_MS - 5000, cause: None }
}

/// A service of which `ready` of `wanted` are ready.
pub(crate) fn service(name: &str, wanted: u32, ready: u32) -> ServiceSummary {
    ServiceSummary {
        name: name.parse().unwrap(),
        image: format!("{name}:1"),
        wanted,
        running: ready,
        ready,
        updated: ready,
        completed: 0,
        address: Some(Ipv4Addr::new(10, 211, 0, 7)),
        ports: Vec::new(),
        settled: wanted == ready,
        message: None,
    }
}

/// A port open on every node.
pub(crate) fn port(published: u16, target: u16) -> gantry_api::network::Published {
    gantry_api::network::Published { published, target, protocol: Protocol::Tcp }
}

/// An app in full.
pub(crate) fn detail(services: Vec<ServiceSummary>, replicas: Vec<Replica>) -> AppDetail {
    let name: gantry_api::ids::AppName = "shop".parse().unwrap();
    AppDetail {
        spec: App { name: name.clone(), services: BTreeMap::new(), volumes: BTreeMap::new() },
        summary: AppSummary { name, services, revision: Revision(7) },
        replicas,
    }
}

/// A node of four processors and 8 GiB.
pub(crate) fn node(name: &str, state: NodeState) -> Node {
    let capacity = |cpu, gib: u64| Capacity { cpu: MilliCpu(cpu), memory: Bytes(gib << 30) };
    Node {
        id: "0123456789abcdef".parse().unwrap(),
        name: name.parse().unwrap(),
        state,
        underlay: Ipv4Addr::new(192, 168, 1, 10),
        capacity: capacity(4000, 8),
        reserved: capacity(1000, 2),
        used: capacity(250, 1),
        replicas: 3,
        labels: BTreeMap::new(),
        version: "0.1.0".to_owned(),
        arch: "amd64".to_owned(),
        kernel: "6.18.0".to_owned(),
        problems: Vec::new(),
        seen_ms: NOW_MS - 300,
    }
}
