//! Balancing at connect time, with processes in a cgroup of the test's own.

mod lab;

use gantry_api::network::{Balancing, Live, Load, Loads, Service, Table};
use lab::*;

#[test]
#[ignore = "a node's process, started by the other tests"]
fn node_process() {
    lab::node_process();
}

#[test]
#[ignore = "a container's process, started by the other tests"]
fn container_process() {
    lab::container_process();
}

/// Nodes whose containers are balanced at connect time.
fn balanced(count: u8) -> (Net, Vec<Node>) {
    let (switch, mut nodes) = cluster(count);
    for node in &mut nodes {
        node.stop();
        node.cgroup = Some(Cgroup::new());
        node.start();
        node.set_table(&now(node, count, 1, vec![]));
        assert_eq!(node.status().balancing, Balancing::Connect);
    }
    (switch, nodes)
}

fn now(node: &Node, count: u8, revision: u64, services: Vec<Service>) -> Table {
    table(revision, node.number, &underlay(count), services)
}

fn live(node: &Node) -> Vec<Live> {
    block_on(node.client.live()).unwrap()
}

/// Open connections to the replicas, by the last byte of their addresses.
fn open(node: &Node) -> Vec<(u8, u32)> {
    live(node).iter().map(|live| (live.address.octets()[3], live.connections)).collect()
}

fn inside(node: &Node, attachment: &gantry_api::network::Attachment) -> Container {
    Container::new(&Net::open(&attachment.netns), node.cgroup.as_ref().unwrap())
}

#[test]
fn a_connection_is_led_once_and_counted() {
    apart(|| {
        let (_switch, nodes) = balanced(2);
        let [one, two] = &nodes[..] else { unreachable!() };
        let (client, a, b) = (one.attach("client"), one.attach("shop-api-1-a"), two.attach("shop-api-2-b"));
        let _servers = [Net::open(&a.netns).serve(80, "a"), Net::open(&b.netns).serve(80, "b")];
        let api = service(1, "api", None, &[&a, &b]);
        let db = service(2, "db", None, &[]);
        for node in &nodes {
            node.set_table(&now(node, 2, 2, vec![api.clone(), db.clone()]));
        }
        let mut container = inside(one, &client);
        let answer = container.tell("ask 60 10.211.0.1:80");
        let counts: Vec<u32> = answer.split(['=', ' ']).filter_map(|word| word.parse().ok()).collect();
        assert!(counts.len() == 2 && counts.iter().all(|count| *count > 10), "{answer}");
        let total: Vec<u64> = live(one).iter().map(|live| live.total).collect();
        assert_eq!(total.iter().sum::<u64>(), 60);
        assert_eq!(open(one), [(3, 0), (2, 0)], "all are closed again");
        // A replica on the own bridge sees its client itself, which the rules could not give; the client sees the
        // service's address.
        for to in ["10.211.0.1:80", "[::ffff:10.211.0.1]:80"] {
            let answer = container.tell(&format!("peer {to}"));
            assert!([format!("{to} a 10.210.1.2"), format!("{to} b 10.210.1.2")].contains(&answer), "{answer}");
        }
        for to in ["10.211.0.2:80", "10.211.0.99:80", "10.211.0.1:81"] {
            assert_eq!(container.tell(&format!("peer {to}")), "ConnectionRefused", "{to}");
        }
        assert_eq!(container.tell("ask 1 10.210.1.3:80"), "a=1", "a replica's own address");

        // The cluster says that `a` is busy; then that it is not.
        let loads = |connections| Loads {
            nodes: 2,
            endpoints: vec![Load { service: api.address, address: a.address, connections }],
        };
        // A report is forgotten when no other follows: on a machine that stands still for seconds, say it again.
        wait_for("a busy replica gets nothing", || {
            block_on(one.client.set_loads(&loads(1000))).unwrap();
            (container.tell("ask 40 10.211.0.1:80") == "b=40").then_some(())
        });
        for _ in 0..40 {
            block_on(one.client.set_loads(&loads(0))).unwrap();
        }
        assert!(container.tell("ask 40 10.211.0.1:80").contains("a="));

        // What is open on this node counts at once.
        assert_eq!(container.tell("hold 40 10.211.0.1:80"), "a=20 b=20");
        assert_eq!(open(one), [(3, 20), (2, 20)]);
        let mut draining = api.clone();
        draining.endpoints[0].ready = false;
        one.set_table(&now(one, 2, 3, vec![draining]));
        assert_eq!(container.tell("ask 20 10.211.0.1:80"), "b=20");
        assert!(live(one).iter().any(|live| live.address == a.address && !live.ready && live.connections == 20));
        one.set_table(&now(one, 2, 4, vec![service(1, "api", None, &[&b])]));
        assert_eq!(open(one), [(3, 20), (2, 20)], "gone, but not yet left");
        container.tell("drop");
        wait_for("the drain is seen", || open(one).iter().all(|(_, open)| *open == 0).then_some(()));
    });
}

#[test]
fn datagrams() {
    apart(|| {
        let (_switch, nodes) = balanced(1);
        let node = &nodes[0];
        let (client, a, b) = (node.attach("client"), node.attach("shop-api-1-a"), node.attach("shop-api-2-b"));
        let (net_a, net_b) = (Net::open(&a.netns), Net::open(&b.netns));
        let _servers = [net_a.serve_udp(80, "a"), net_b.serve_udp(80, "b")];
        let set = |revision, on: &[&gantry_api::network::Attachment]| {
            node.set_table(&now(node, 1, revision, vec![service(1, "api", None, on), service(2, "db", None, &[&b])]));
        };
        set(2, &[&a]);
        let mut container = inside(node, &client);
        container.tell("udp");
        assert_eq!(container.tell("send 10.211.0.1:80"), "a 10.211.0.1:80", "the answer comes from whom was asked");
        set(3, &[&a, &b]);
        for _ in 0..10 {
            assert_eq!(container.tell("send 10.211.0.1:80"), "a 10.211.0.1:80", "a socket stays with its replica");
        }
        assert_eq!(container.tell("send 10.211.0.2:80"), "b 10.211.0.2:80", "two services by one socket");
        assert_eq!(container.tell("send 10.211.0.1:80"), "a 10.211.0.1:80");
        set(4, &[&b]);
        assert_eq!(container.tell("send 10.211.0.1:80"), "b 10.211.0.1:80", "a replica that is gone gets nothing more");
        container.tell("drop");
        assert!(open(node).iter().all(|(_, open)| *open == 0));
        container.tell("udp 10.211.0.1:80");
        assert_eq!(container.tell("send"), "b 10.211.0.1:80", "connected");
    });
}

#[test]
fn a_sticky_client_keeps_its_replica() {
    apart(|| {
        let (_switch, nodes) = balanced(1);
        let node = &nodes[0];
        let clients = ["c1", "c2", "c3", "c4", "c5", "c6"].map(|id| node.attach(id));
        let replicas = ["shop-api-1-a", "shop-api-2-b", "shop-api-3-c"].map(|id| node.attach(id));
        let _servers: Vec<_> =
            replicas.iter().zip(["a", "b", "c"]).map(|(r, name)| Net::open(&r.netns).serve(80, name)).collect();
        let set = |revision, on: &[&gantry_api::network::Attachment]| {
            let mut service = service(1, "api", None, on);
            service.sticky = true;
            node.set_table(&now(node, 1, revision, vec![service]));
        };
        let [a, b, c] = &replicas;
        set(2, &[a, b, c]);
        let mut containers = clients.each_ref().map(|client| inside(node, client));
        let mut ask = || containers.each_mut().map(|container| container.tell("ask 10 10.211.0.1:80"));
        let first = ask();
        assert!(first.iter().all(|answer| ["a=10", "b=10", "c=10"].contains(&answer.as_str())), "{first:?}");
        set(3, &[a, b]);
        for (before, after) in first.iter().zip(ask()) {
            assert!(before == "c=10" && after != *before || *before == after, "{before} became {after}");
        }
        set(4, &[a, b, c]);
        assert_eq!(ask(), first);
    });
}

#[test]
fn a_killed_netd_is_not_missed_and_the_next_writes_nothing() {
    apart(|| {
        let (_switch, mut nodes) = balanced(1);
        let node = &mut nodes[0];
        let (client, a, b) = (node.attach("client"), node.attach("shop-api-1-a"), node.attach("shop-api-2-b"));
        let _servers = [Net::open(&a.netns).serve(80, "a"), Net::open(&b.netns).serve(80, "b")];
        let table = now(node, 1, 2, vec![service(1, "api", None, &[&a, &b])]);
        node.set_table(&table);
        let mut container = inside(node, &client);
        assert_eq!(container.tell("hold 10 10.211.0.1:80"), "a=5 b=5");
        let kept = |node: &Node| {
            let mut kept = Vec::new();
            for entry in std::fs::read_dir(node.directory.join("run/bpf/1")).unwrap().flatten() {
                use std::os::unix::fs::MetadataExt;
                kept.push((entry.file_name(), entry.metadata().unwrap().ino()));
            }
            kept.sort();
            kept
        };
        let before = kept(node);
        assert_eq!(before.len(), 12, "three maps, nine programs: {before:?}");
        node.kill();
        assert_eq!(container.tell("hold 10 10.211.0.1:80"), "a=5 b=5");
        node.start();
        assert_eq!(kept(node), before, "the same objects");
        assert_eq!(open(node), [(3, 10), (4, 10)], "nothing was forgotten");
        node.set_table(&table);
        container.tell("drop");
        assert_eq!(open(node), [(3, 0), (4, 0)]);
        // Whatever of it is damaged is made again.
        let (name, _) = &before[0];
        for damage in ["a program", "all"] {
            match damage {
                "all" => {
                    rustix::mount::unmount(node.directory.join("run/bpf"), rustix::mount::UnmountFlags::DETACH)
                        .unwrap();
                }
                _ => std::fs::remove_file(node.directory.join("run/bpf/1").join(name)).unwrap(),
            }
            node.set_table(&table);
            assert_eq!(node.status().balancing, Balancing::Connect, "{damage}");
            assert_eq!(container.tell("hold 10 10.211.0.1:80"), "a=5 b=5", "{damage}");
            container.tell("drop");
        }
        node.stop();
        node.net.run(|| gantry_netd::remove_all(&node.directory.join("run"), &node.directory.join("data"))).unwrap();
        assert!(!node.directory.join("run/bpf").exists());
        assert_eq!(mounted_below(&node.directory), 0);
        assert_ne!(container.tell("ask 1 10.211.0.1:80"), "a=1", "nothing leads there any more");
    });
}

/// Programs learn at once that nobody is there any more.
#[test]
fn sockets_to_a_replica_that_is_gone_end() {
    apart(|| {
        let (_switch, nodes) = balanced(1);
        let node = &nodes[0];
        let (client, a, b) = (node.attach("client"), node.attach("shop-api-1-a"), node.attach("shop-api-2-b"));
        let (net_a, net_b) = (Net::open(&a.netns), Net::open(&b.netns));
        let _b = [net_b.serve(80, "b"), net_b.serve_udp(80, "b")];
        let a_udp = net_a.serve_udp(80, "a");
        let set = |revision, on: &[&gantry_api::network::Attachment]| {
            node.set_table(&now(node, 1, revision, vec![service(1, "api", None, on)]));
        };
        set(2, &[&a]);
        let mut container = inside(node, &client);
        container.tell("udp 10.211.0.1:80");
        assert_eq!(container.tell("send"), "a 10.211.0.1:80");
        set(3, &[&a, &b]);
        assert_eq!(container.tell("send"), "a 10.211.0.1:80");
        set(4, &[&b]);
        assert_eq!(container.tell("hear"), "ConnectionAborted", "a program that waits for an answer learns of it");
        container.tell("udp 10.211.0.1:80");
        assert_eq!(container.tell("send"), "b 10.211.0.1:80");
        container.tell("drop");
        set(5, &[&a]);
        drop(a_udp);
        // A connection without traffic: no packet would ever tell of the end of the other side.
        let listener = net_a.run(|| std::net::TcpListener::bind("0.0.0.0:81").unwrap());
        container.tell("stream 10.211.0.1:81");
        let accepted = listener.accept().unwrap();
        set(6, &[&a, &b]);
        set(7, &[&b]);
        assert_eq!(container.tell("alive"), "alive", "a replica that stops may finish what it has begun");
        node.detach("shop-api-1-a");
        wait_for("the connection ends", || (container.tell("alive") != "alive").then_some(()));
        drop((accepted, net_a));
    });
}

/// Replicas come and go all the time: not one connection of many fails.
#[test]
fn there_is_never_an_empty_window() {
    apart(|| {
        let (_switch, nodes) = balanced(1);
        let node = &nodes[0];
        let (client, a, b) = (node.attach("client"), node.attach("shop-api-1-a"), node.attach("shop-api-2-b"));
        let _servers = [Net::open(&a.netns).serve(80, "a"), Net::open(&b.netns).serve(80, "b")];
        node.set_table(&now(node, 1, 2, vec![service(1, "api", None, &[&a, &b])]));
        let mut container = inside(node, &client);
        container.begin("ask 3000 10.211.0.1:80");
        for round in 0..60u64 {
            let on: &[&gantry_api::network::Attachment] = match round % 4 {
                0 => &[&a, &b],
                1 => &[&b],
                2 => &[&a, &b],
                _ => &[&a],
            };
            node.set_table(&now(node, 1, 3 + round, vec![service(1, "api", None, on)]));
        }
        let answer = container.end();
        let counts: Vec<u32> = answer.split(['=', ' ']).filter_map(|word| word.parse().ok()).collect();
        assert!(answer.starts_with("a=") && counts.len() == 2 && counts.iter().sum::<u32>() == 3000, "{answer}");
        assert!(open(node).iter().all(|(_, open)| *open == 0));
    });
}

#[test]
fn what_the_kernel_refuses_is_told_and_the_rules_do_it() {
    apart(|| {
        let (_switch, nodes) = cluster(1);
        let node = &nodes[0];
        node.set_table(&now(node, 1, 1, vec![]));
        let (client, a) = (node.attach("client"), node.attach("shop-api-1-a"));
        let _server = Net::open(&a.netns).serve(80, "a");
        node.set_table(&now(node, 1, 2, vec![service(1, "api", None, &[&a])]));
        match node.status().balancing {
            Balancing::Packets { reason } => assert_eq!(reason, "no cgroup was named that the containers are in"),
            other => panic!("{other:?}"),
        }
        assert_eq!(Net::open(&client.netns).who("10.211.0.1:80"), ["a"]);
        assert_eq!(live(node), []);
        block_on(node.client.set_loads(&Loads { nodes: 1, endpoints: vec![] })).unwrap();
        assert!(!node.directory.join("run/bpf").exists());
    });
}
