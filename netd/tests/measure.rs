//! What a connection and a packet cost on each way to a service. Run by `cargo xtask bench net`, which knows the aims.

mod lab;

use gantry_api::network::Balancing;
use lab::*;

#[test]
#[ignore = "a node's process, started by the others"]
fn node_process() {
    lab::node_process();
}

#[test]
#[ignore = "a container's process, started by the others"]
fn container_process() {
    lab::container_process();
}

/// Processor time of client and server together, softirqs included: both are threads of one process on one processor.
#[test]
#[ignore = "a measurement"]
fn ways_to_a_service() {
    apart(|| {
        let rounds = std::env::var("GANTRY_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
        let (_switch, mut nodes) = cluster(2);
        nodes[0].stop();
        nodes[0].cgroup = Some(Cgroup::new());
        nodes[0].start();
        for node in &nodes {
            node.set_table(&table(1, node.number, &underlay(2), vec![]));
        }
        assert_eq!(nodes[0].status().balancing, Balancing::Connect);
        let (client, near, far) =
            (nodes[0].attach("client"), nodes[0].attach("shop-near-1-a"), nodes[1].attach("shop-far-1-a"));
        for node in &nodes {
            let services = vec![service(1, "near", None, &[&near]), service(2, "far", None, &[&far])];
            node.set_table(&table(2, node.number, &underlay(2), services));
        }
        let net = Net::open(&client.netns);
        let mut balanced = Container::new(&net, nodes[0].cgroup.as_ref().unwrap());
        // In no cgroup of ours: no program runs for its sockets.
        let mut plain = Container::without_cgroup(&net);
        for (replica, port) in [(&near, 80), (&far, 80)] {
            balanced.tell(&format!("serve {port} {}", replica.netns));
            plain.tell(&format!("serve {} {}", port + 1, replica.netns));
        }
        for (place, own, address) in
            [("same node", near.address, "10.211.0.1"), ("other node", far.address, "10.211.0.2")]
        {
            for (order, count, what) in [("crr", 300, "connection"), ("rr", 2000, "request")] {
                let mut samples = [const { Vec::new() }; 4];
                for _ in 0..rounds {
                    // In turns, so that what else the machine does meets all alike.
                    let costs = [
                        plain.tell(&format!("{order} {count} {own}:81")),
                        balanced.tell(&format!("{order} {count} {address}:80")),
                        balanced.tell(&format!("{order} {count} {own}:80")),
                        plain.tell(&format!("{order} {count} {address}:81")),
                    ];
                    for (samples, cost) in samples.iter_mut().zip(costs) {
                        samples.push(cost.parse::<f64>().unwrap());
                    }
                }
                let [direct, connect, hooked, rules] = samples.map(median);
                println!("figure|{what}, {place}: programs|{connect}|µs|direct|{direct}");
                println!("figure|{what}, {place}: programs, but no service|{hooked}|µs|direct|{direct}");
                println!("figure|{what}, {place}: rules|{rules}|µs|direct|{direct}");
            }
        }
    });
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
