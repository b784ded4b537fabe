//! What a change costs in the kernel. Run by `cargo xtask bench net`, which knows the aims.

use crate::balance::Balancer;
use crate::nft::{Nft, Sets, ruleset};
use crate::plan;
use gantry_api::network::{Balancing, Table};
use rustix::mount::{MountFlags, MountPropagationFlags};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Processor time of this thread. The kernel does what is asked inside the call, and what else the machine does is not
/// counted.
fn spent() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// `count` services of three replicas each, or of one where there are too many for that.
fn services(count: u32) -> Table {
    let one = plan::tests::table(1, &[("s", &[(0, true), (1, true), (2, true)])]);
    let service = |n: u32| {
        let mut service = one.services[0].clone();
        service.service = format!("s{n}").parse().unwrap_or_else(|_| unreachable!("a plain name"));
        service.ports.clear();
        if count > crate::balance::book::ENDPOINTS_MAX / 3 {
            service.endpoints.truncate(1);
        }
        service.address = Ipv4Addr::from(0x0ad4_0000 + n);
        for (host, endpoint) in (0..).zip(&mut service.endpoints) {
            endpoint.address = Ipv4Addr::from(0x0ae0_0000 + 4 * n + host);
        }
        service
    };
    let mut table = one.clone();
    table.replica_net = "10.224.0.0/11".parse().unwrap_or(table.replica_net);
    table.service_net = "10.212.0.0/15".parse().unwrap_or(table.service_net);
    table.services = (1..=count).map(service).collect();
    table
}

fn median(mut samples: Vec<Duration>) -> f64 {
    samples.sort_unstable();
    samples[samples.len() / 2].as_secs_f64()
}

fn figure(name: &str, value: f64, unit: &str) {
    println!("figure|{name}|{value}|{unit}");
}

fn measure(count: u32, run_dir: &Path, cgroup: &str) {
    let parameters = plan::parameters(&services(0), &services(0).nodes[0], "gantry0");
    let rules = ruleset::node(&parameters);
    let before = Arc::new(services(count));
    let mut nft = Nft::open().expect("a netlink socket");
    let mut balancer = Balancer::new(run_dir, Some(cgroup.to_owned()));
    balancer.ensure(&Arc::new(services(0)), 0);
    assert_eq!(balancer.status(), Balancing::Connect);
    nft.ensure(&rules, &Sets::new()).expect("the rules");

    let start = spent();
    let mut wanted = plan::service_sets(None, &before);
    nft.ensure(&rules, &wanted).expect("all services");
    let all_rules = spent() - start;
    let start = spent();
    balancer.ensure(&before, 0);
    let all_programs = spent() - start;

    let (mut rules_cost, mut programs_cost, mut deciding) = (Vec::new(), Vec::new(), Vec::new());
    let mut now = before;
    for round in 0..201usize {
        // A replica leaves, or comes back.
        let mut table = (*now).clone();
        let service = (round / 2 * 7919) % table.services.len();
        if let Some(endpoint) = table.services[service].endpoints.last_mut() {
            endpoint.ready = round % 2 == 1;
        }
        let table = Arc::new(table);
        let start = spent();
        let next = plan::service_sets(Some((&now, &wanted)), &table);
        deciding.push(spent() - start);
        let start = spent();
        balancer.ensure(&table, 0);
        programs_cost.push(spent() - start);
        let start = spent();
        let written = nft.ensure(&rules, &next).expect("one change");
        rules_cost.push(spent() - start);
        assert!(written > 0 && written <= 24, "{written}");
        (now, wanted) = (table, next);
    }
    figure(&format!("one endpoint changed, programs, {count} services"), median(programs_cost) * 1e6, "µs");
    figure(&format!("one endpoint changed, rules, {count} services"), median(rules_cost) * 1e6, "µs");
    figure(&format!("finding what changed, {count} services"), median(deciding) * 1e6, "µs");
    figure(&format!("all built, programs, {count} services"), all_programs.as_secs_f64() * 1e3, "ms");
    figure(&format!("all built, rules, {count} services"), all_rules.as_secs_f64() * 1e3, "ms");
    nft.remove(ruleset::NODE_TABLE).expect("the table goes");
    crate::balance::remove(run_dir).expect("the programs go");
}

#[test]
#[ignore = "a measurement"]
fn kernel_writes() {
    let done = std::thread::spawn(|| {
        crate::sys::unshare_network_and_mounts().expect("root");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).expect("private mounts");
        rustix::mount::mount("tmpfs", "/mnt", "tmpfs", MountFlags::empty(), None).expect("a scratch directory");
        let cgroup = format!("/gantry-netd-test-{}-0", std::process::id());
        for count in [10, 1_000, 10_000, 50_000] {
            measure(count, Path::new("/mnt"), &cgroup);
        }
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let _ = std::fs::remove_dir(format!("{root}{cgroup}"));
        }
    });
    done.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
