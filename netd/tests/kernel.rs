//! netd against the real kernel, between network namespaces of its own making.

mod lab;

use gantry_api::network::{Path, Published};
use gantry_api::spec::Protocol;
use lab::*;
use std::io::ErrorKind;
use std::net::Ipv4Addr;

#[test]
#[ignore = "a node's process, started by the other tests"]
fn node_process() {
    lab::node_process();
}

fn refused<T: std::fmt::Debug>(result: &Result<T, ErrorKind>) -> bool {
    matches!(result, Err(ErrorKind::ConnectionRefused))
}

#[test]
fn one_node() {
    apart(|| {
        let (switch, nodes) = cluster(1);
        let node = &nodes[0];
        let early = block_on(node.client.attach(&request("early"))).unwrap_err();
        assert_eq!(code(&early), "unavailable");

        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let (a, b) = (node.attach("shop-api-1-a"), node.attach("shop-api-2-b"));
        assert_eq!(a.gateway, Ipv4Addr::new(10, 210, 1, 1));
        assert_eq!((a.address, b.address), (Ipv4Addr::new(10, 210, 1, 2), Ipv4Addr::new(10, 210, 1, 3)));
        assert_eq!(node.attach("shop-api-1-a"), a, "the same request answers the same");
        assert_eq!(block_on(node.client.attachments()).unwrap().len(), 2);
        let (net_a, net_b) = (Net::open(&a.netns), Net::open(&b.netns));
        let (_server_a, _server_b) = (net_a.serve(80, "a"), net_b.serve(80, "b"));
        node.set_table(&table(
            2,
            1,
            &underlay(1),
            vec![service(1, "api", Some(8080), &[&a, &b]), service(2, "db", Some(8081), &[])],
        ));
        assert_eq!(node.status().problems, Vec::<String>::new());

        assert_eq!(net_a.ask("10.210.1.3:80").unwrap(), "b 10.210.1.2", "container to container");
        assert_eq!(net_a.who("10.211.0.1:80"), ["a", "b"], "service address, and hairpin to itself");
        assert_eq!(node.net.who("10.211.0.1:80"), ["a", "b"], "service address from the node");
        assert_eq!(switch.who("10.0.0.1:8080"), ["a", "b"], "published port from outside");
        assert!(switch.ask("10.0.0.1:8080").unwrap().ends_with(" 10.0.0.254"), "a local replica sees its client");
        for to in ["10.0.0.1:8080", "10.210.1.1:8080", "127.0.0.1:8080"] {
            assert_eq!(node.net.who(to), ["a", "b"], "published port from the node at {to}");
        }
        assert_eq!(net_a.who("10.210.1.1:8080"), ["a", "b"], "published port from a container");

        for to in ["10.211.0.2:80", "10.211.0.99:80", "10.211.0.1:81"] {
            assert!(refused(&net_a.ask(to)), "{to} from a container: {:?}", net_a.ask(to));
            assert!(refused(&node.net.ask(to)), "{to} from the node: {:?}", node.net.ask(to));
        }
        for net in [&switch, &net_a, &node.net] {
            assert!(
                refused(&net.ask("10.0.0.1:8081")),
                "published port without replica: {:?}",
                net.ask("10.0.0.1:8081")
            );
        }
        assert!(refused(&ask_udp(&net_a.udp_socket("10.211.0.2:80"))), "UDP is refused too");
        assert!(net_a.ask("10.210.77.2:80").is_err(), "an address of no node");

        let outside = switch.serve(9000, "outside");
        assert_eq!(net_a.ask("10.0.0.254:9000").unwrap(), "outside 10.0.0.1", "replicas leave as their node");
        drop(outside);
    });
}

/// The rules of nf_tables have a map for each kind of service, and one that changes its kind is never without replica.
#[test]
fn a_service_changes_the_number_of_its_replicas_and_whether_clients_stay() {
    apart(|| {
        let (switch, nodes) = cluster(1);
        let node = &nodes[0];
        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let all: Vec<_> = (0..5).map(|n| node.attach(&format!("shop-api-{n}-x"))).collect();
        let names = ["a", "b", "c", "d", "e"];
        let _servers: Vec<_> = all.iter().zip(names).map(|(a, name)| Net::open(&a.netns).serve(80, name)).collect();
        let set = |revision, count: usize, sticky| {
            let mut api = service(1, "api", None, &all[..count].iter().collect::<Vec<_>>());
            api.sticky = sticky;
            node.set_table(&table(revision, 1, &underlay(1), vec![api]));
        };
        for (revision, count) in [(2, 1), (3, 5), (4, 4), (5, 5), (6, 2)] {
            set(revision, count, false);
            assert_eq!(node.net.who("10.211.0.1:80"), names[..count], "{count} replicas");
        }
        set(7, 5, true);
        let who = node.net.who("10.211.0.1:80");
        assert_eq!(who.len(), 1, "one client, one replica: {who:?}");
        switch.ip("route add 10.211.0.0/16 via 10.0.0.1");
        let mut others = std::collections::BTreeSet::new();
        for n in 1..=20 {
            switch.ip(&format!("address replace 10.0.0.{}/24 dev br0", 100 + n));
            switch.ip(&format!("route replace 10.211.0.0/16 via 10.0.0.1 src 10.0.0.{}", 100 + n));
            others.insert(switch.ask("10.211.0.1:80").unwrap().split(' ').next().unwrap().to_owned());
        }
        assert!(others.len() > 2, "twenty clients, several replicas: {others:?}");
        set(8, 5, false);
        assert_eq!(node.net.who("10.211.0.1:80"), names);
    });
}

#[test]
fn a_detach_leaves_nothing() {
    apart(|| {
        let (_switch, mut nodes) = cluster(1);
        let node = &mut nodes[0];
        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let before = node.leftovers();
        let mut held = request("held");
        held.ports = vec![Published { published: 8080, target: 80, protocol: Protocol::Tcp }];
        let a = node.attach("a");
        let held_attachment = block_on(node.client.attach(&held)).unwrap();
        let net = Net::open(&held_attachment.netns);
        let server = net.serve(80, "held");
        assert_eq!(node.net.ask("10.0.0.1:8080").unwrap(), "held 10.0.0.1");
        assert_eq!(mounted_below(&node.directory), 2);
        drop(server);

        node.detach("a");
        // `net` still holds this namespace, as a process that does not die would.
        node.detach("held");
        node.detach("held");
        assert_eq!(node.leftovers(), before);
        assert_eq!(mounted_below(&node.directory), 0);
        assert!(!std::path::Path::new(&a.netns).exists());
        assert_eq!(node.attach("b").address, Ipv4Addr::new(10, 210, 1, 4), "a freed address is not used at once");
        assert!(refused(&node.net.ask("10.0.0.1:8080")));
        node.detach("b");

        node.stop();
        node.net.run(|| gantry_netd::remove_all(&node.directory.join("run"), &node.directory.join("data"))).unwrap();
        assert_eq!(node.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn three_nodes_on_one_segment() {
    apart(|| {
        let (switch, nodes) = cluster(3);
        for node in &nodes {
            node.set_table(&table(1, node.number, &underlay(3), vec![]));
        }
        let all: Vec<_> = nodes.iter().map(|node| node.attach(&format!("shop-api-{}-x", node.number))).collect();
        let nets: Vec<Net> = all.iter().map(|a| Net::open(&a.netns)).collect();
        let names = ["one", "two", "three"];
        let _servers: Vec<_> =
            nets.iter().zip(names).map(|(net, name)| (net.serve(80, name), net.serve_udp(80, name))).collect();
        let api = |on: &[usize]| service(1, "api", Some(8080), &on.iter().map(|n| &all[*n]).collect::<Vec<_>>());
        let set = |revision, on: &[usize]| {
            for node in &nodes {
                node.set_table(&table(revision, node.number, &underlay(3), vec![api(on)]));
            }
        };
        set(2, &[0, 1, 2]);
        for (node, net) in nodes.iter().zip(&nets) {
            assert!(node.status().peers.iter().all(|(_, path)| *path == Path::Direct));
            assert_eq!(net.who("10.211.0.1:80"), ["one", "three", "two"], "from a container on node {}", node.number);
            assert_eq!(node.net.who("10.211.0.1:80"), ["one", "three", "two"], "from node {}", node.number);
            let published = format!("10.0.0.{}:8080", node.number);
            assert_eq!(switch.who(&published), ["one", "three", "two"], "published on node {}", node.number);
            assert_eq!(node.net.who(&published), ["one", "three", "two"], "published, from node {}", node.number);
            assert_eq!(node.net.who("127.0.0.1:8080"), ["one", "three", "two"], "loopback of node {}", node.number);
            assert!(names.contains(&ask_udp(&node.net.udp_socket("127.0.0.1:8080")).unwrap().as_str()), "UDP there");
        }
        assert_eq!(nets[0].ask("10.210.2.2:80").unwrap(), "two 10.210.1.2", "a replica sees who asks");

        set(3, &[1]);
        assert_eq!(nets[0].who("10.211.0.1:80"), ["two"]);
        let (flow, published) = (nets[0].udp_socket("10.211.0.1:80"), switch.udp_socket("10.0.0.3:8080"));
        assert_eq!(ask_udp(&flow).unwrap(), "two");
        assert_eq!(ask_udp(&published).unwrap(), "two");
        set(4, &[2]);
        assert_eq!(ask_udp(&flow).unwrap(), "three", "an old UDP flow does not stick to a replica that is gone");
        assert_eq!(ask_udp(&published).unwrap(), "three");
        set(5, &[]);
        for (node, net) in nodes.iter().zip(&nets) {
            assert!(refused(&net.ask("10.211.0.1:80")));
            assert!(refused(&switch.ask(&format!("10.0.0.{}:8080", node.number))));
        }
        let older = block_on(nodes[0].client.set_table(&table(4, 1, &underlay(3), vec![]))).unwrap_err();
        assert_eq!(code(&older), "conflict");

        // Node 3 leaves: its addresses fail at once, and no route of it stays.
        nodes[0].set_table(&table(6, 1, &underlay(2), vec![]));
        assert!(!nodes[0].net.ip("route").contains("10.210.3.0"));
        assert!(nets[0].ask("10.210.3.2:80").is_err());
        assert!(nets[0].ask("10.210.2.2:80").is_ok());
    });
}

/// Two segments with a router between: the nodes share no network.
#[test]
fn nodes_behind_a_router_use_the_tunnel() {
    apart(|| {
        let router = Net::own();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
        for segment in [1, 2] {
            ip(&format!("link add seg{segment} type bridge"));
            ip(&format!("address add 10.0.{segment}.254/24 dev seg{segment}"));
            ip(&format!("link set seg{segment} up"));
        }
        let underlay = [Ipv4Addr::new(10, 0, 1, 1), Ipv4Addr::new(10, 0, 2, 2)];
        let node = |n: u8| {
            let at = usize::from(n - 1);
            Node::new(n, &router, &format!("seg{n}"), underlay[at], Ipv4Addr::new(10, 0, n, 254))
        };
        let nodes = [node(1), node(2)];
        for node in &nodes {
            node.set_table(&table(1, node.number, &underlay, vec![]));
            assert_eq!(node.status().peers[0].1, Path::Vxlan);
        }
        let (a, b) = (nodes[0].attach("shop-api-1-a"), nodes[1].attach("shop-api-2-b"));
        let (net_a, net_b) = (Net::open(&a.netns), Net::open(&b.netns));
        let _servers = [net_a.serve(80, "a"), net_b.serve(80, "b")];
        for node in &nodes {
            node.set_table(&table(2, node.number, &underlay, vec![service(1, "api", Some(8080), &[&a, &b])]));
        }
        assert_eq!(net_a.ask("10.210.2.2:80").unwrap(), "b 10.210.1.2");
        for net in [&net_a, &net_b, &nodes[0].net, &nodes[1].net] {
            assert_eq!(net.who("10.211.0.1:80"), ["a", "b"]);
        }
        for n in [1, 2] {
            assert_eq!(router.who(&format!("{}:8080", underlay[n - 1])), ["a", "b"], "published on node {n}");
            assert_eq!(nodes[n - 1].net.who(&format!("{}:8080", underlay[n - 1])), ["a", "b"], "from node {n}");
        }
        assert_eq!(
            net_a.ask("10.0.2.2:8080").map(|answer| answer.len() > 2),
            Ok(true),
            "another node's published port"
        );
        bulk(&net_b, &net_a, "10.210.2.2:5000");
        assert!(net_a.ip("link show eth0").contains("mtu 1450"));

        nodes[0].set_table(&table(3, 1, &underlay[..1], vec![]));
        assert!(!nodes[0].net.ip("-o link").contains("gantry-vx0"), "no peer needs the tunnel any more");
    });
}

/// Ten megabytes arrive whole: no packet is too large for the way, no checksum wrong.
fn bulk(server: &Net, client: &Net, to: &str) {
    use std::io::{Read, Write};
    const SIZE: usize = 10 << 20;
    let to: std::net::SocketAddr = to.parse().unwrap();
    let listener = server.run(|| std::net::TcpListener::bind(("0.0.0.0", to.port())).unwrap());
    let sender = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&vec![7; SIZE]).unwrap();
    });
    let received = client.run(|| {
        let mut stream = std::net::TcpStream::connect_timeout(&to, DEADLINE).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        data
    });
    sender.join().unwrap();
    assert!(received.len() == SIZE && received.iter().all(|byte| *byte == 7));
}

#[test]
fn connections_of_a_draining_replica_finish_and_those_of_a_gone_one_end() {
    apart(|| {
        use std::io::{Read, Write};
        let (_switch, nodes) = cluster(2);
        for node in &nodes {
            node.set_table(&table(1, node.number, &underlay(2), vec![]));
        }
        let (client, a, b) = (nodes[0].attach("c"), nodes[1].attach("shop-api-1-a"), nodes[1].attach("shop-api-2-b"));
        let (net, net_a, net_b) = (Net::open(&client.netns), Net::open(&a.netns), Net::open(&b.netns));
        let listener = net_a.run(|| std::net::TcpListener::bind("0.0.0.0:80").unwrap());
        let _b = (net_b.serve(80, "b"), net_b.serve_udp(81, "b"));
        let _a = net_a.serve_udp(81, "a");
        let set = |revision, services: Vec<gantry_api::network::Service>| {
            for node in &nodes {
                node.set_table(&table(revision, node.number, &underlay(2), services.clone()));
            }
        };
        set(2, vec![service(1, "api", None, &[&a])]);
        let mut stream = net.run(|| std::net::TcpStream::connect("10.211.0.1:80").unwrap());
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let flow = net.udp_socket("10.211.0.1:81");
        assert_eq!(ask_udp(&flow).unwrap(), "a");

        let mut draining = service(1, "api", None, &[&a, &b]);
        draining.endpoints[0].ready = false;
        set(3, vec![draining]);
        assert_eq!(net.who("10.211.0.1:80"), ["b"], "new connections go to the other");
        assert_eq!(ask_udp(&flow).unwrap(), "b", "datagrams too");
        stream.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();

        set(4, vec![service(1, "api", None, &[&b])]);
        wait_for("a connection to a gone replica ends", || stream.write_all(b"x").err());
    });
}

#[test]
fn many_at_once() {
    apart(|| {
        const COUNT: usize = 24;
        let (_switch, nodes) = cluster(1);
        let node = &nodes[0];
        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let before = node.leftovers();
        let every = |work: &(dyn Fn(&str) + Sync)| {
            let start = std::time::Instant::now();
            std::thread::scope(|scope| {
                for n in 0..COUNT {
                    scope.spawn(move || work(&format!("c{n}")));
                }
            });
            start.elapsed() / COUNT as u32
        };
        let attached = every(&|id| drop(node.attach(id)));
        let all = block_on(node.client.attachments()).unwrap();
        let mut addresses: Vec<Ipv4Addr> = all.iter().map(|attachment| attachment.address).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), COUNT, "everybody has an address of its own");
        let _server = Net::open(&all[0].netns).serve(80, "first");
        for attachment in &all {
            let answer = Net::open(&attachment.netns).ask(&format!("{}:80", all[0].address));
            assert_eq!(answer.unwrap(), format!("first {}", attachment.address));
        }
        drop(_server);
        // Twice the same id at once, from two who do not know of each other.
        std::thread::scope(|scope| {
            let two = [(); 2].map(|()| scope.spawn(|| node.attach("twin")));
            let [first, second] = two.map(|thread| thread.join().unwrap());
            assert_eq!(first, second);
        });
        node.detach("twin");
        let detached = every(&|id| node.detach(id));
        assert_eq!(node.leftovers(), before);
        println!("attach {attached:?}, detach {detached:?} each, {COUNT} at once");
    });
}

#[test]
fn a_thousand_services() {
    apart(|| {
        let (_switch, nodes) = cluster(1);
        let node = &nodes[0];
        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let (a, b) = (node.attach("shop-api-1-a"), node.attach("shop-api-2-b"));
        let (net_a, net_b) = (Net::open(&a.netns), Net::open(&b.netns));
        let _servers = [net_a.serve(80, "a"), net_b.serve(80, "b")];
        let address = |n: u32| Ipv4Addr::from(0x0ad3_0000 + n);
        let services = |changed| -> Vec<_> {
            (1..=1000)
                .map(|n| {
                    let mut service = service(1, &format!("s{n}"), None, &[if n == 500 { changed } else { &a }]);
                    service.address = address(n);
                    service
                })
                .collect()
        };
        let time = |revision, services| {
            let table = table(revision, 1, &underlay(1), services);
            let start = std::time::Instant::now();
            node.set_table(&table);
            start.elapsed()
        };
        // 64,000 elements: more than one transaction holds.
        let whole = time(2, services(&a));
        for n in [1, 250, 500, 1000] {
            assert_eq!(net_b.who(&format!("{}:80", address(n))), ["a"], "service {n}");
        }
        let one = time(3, services(&b));
        assert_eq!(net_b.who(&format!("{}:80", address(500))), ["b"]);
        assert_eq!(net_b.who(&format!("{}:80", address(499))), ["a"]);
        let none = time(4, vec![]);
        assert!(refused(&net_b.ask(&format!("{}:80", address(500)))));
        assert!(!node.net.nft("list table ip gantry").contains("elements"));
        println!("1,000 services: all {whole:?}, one changed {one:?}, all gone {none:?}");
    });
}

#[test]
fn a_container_gets_all_its_ports_or_none() {
    apart(|| {
        let (switch, nodes) = cluster(1);
        let node = &nodes[0];
        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let before = node.leftovers();
        let publish = |id: &str, ports: &[u16]| {
            let mut request = request(id);
            let port = |published: &u16| Published { published: *published, target: 80, protocol: Protocol::Tcp };
            request.ports = ports.iter().map(port).collect();
            block_on(node.client.attach(&request))
        };
        let foreign = node.net.serve(8081, "foreign");
        let error = publish("a", &[8080, 8081]).unwrap_err();
        assert_eq!(code(&error), "conflict");
        let words = "port 8081/tcp cannot be published: it is held by another program on this node";
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(node.leftovers(), before, "nothing is left of it");
        drop(foreign);
        let a = publish("a", &[8080, 8081]).unwrap();
        let _server = Net::open(&a.netns).serve(80, "a");
        assert_eq!(switch.who("10.0.0.1:8081"), ["a"]);
        let error = publish("b", &[8080]).unwrap_err();
        assert!(error.to_string().contains("published by another already"), "{error}");
    });
}

#[test]
fn a_killed_netd_is_not_missed() {
    apart(|| {
        use std::io::{Read, Write};
        let (switch, mut nodes) = cluster(1);
        let node = &mut nodes[0];
        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let (a, b) = (node.attach("a"), node.attach("b"));
        let (net_a, net_b) = (Net::open(&a.netns), Net::open(&b.netns));
        let _server = net_b.serve(80, "b");
        let now = table(2, 1, &underlay(1), vec![service(1, "api", Some(8080), &[&b])]);
        node.set_table(&now);
        // A long connection through the service address, and one through a published port.
        let listener = net_b.run(|| std::net::TcpListener::bind("0.0.0.0:81").unwrap());
        let mut client = net_a.run(|| std::net::TcpStream::connect("10.211.0.1:81").unwrap());
        let (mut server, _) = listener.accept().unwrap();
        let mut still_alive = move || {
            client.write_all(b"x").unwrap();
            let mut byte = [0];
            server.read_exact(&mut byte).unwrap();
        };
        let rules = node.net.nft("-a list ruleset");
        let links = node.net.ip("-4 -o address");
        node.kill();
        still_alive();
        assert_eq!(net_a.ask("10.211.0.1:80").unwrap().split(' ').next(), Some("b"));
        assert_eq!(switch.who("10.0.0.1:8080"), ["b"]);
        node.start();
        still_alive();
        assert_eq!(node.status().revision, Some(now.revision), "the table was kept");
        assert_eq!(node.net.nft("-a list ruleset"), rules, "nothing was written anew");
        assert_eq!(node.net.ip("-4 -o address"), links);
        assert_eq!(node.attach("a"), a, "attachments were kept");
        assert_eq!(node.attach("c").address, Ipv4Addr::new(10, 210, 1, 4));
        node.set_table(&now);
        let table = node.net.nft("-a list table ip gantry");
        assert!(rules.starts_with(&table), "a new container is a new sender in the bridge, and nothing else: {table}");
        assert_eq!(node.net.who("127.0.0.1:8080"), ["b"]);
        still_alive();
    });
}

/// Whenever in an attach netd dies, the next one makes it whole, and a detach leaves nothing.
#[test]
fn killed_in_the_middle_of_an_attach() {
    apart(|| {
        let (_switch, mut nodes) = cluster(1);
        let node = &mut nodes[0];
        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let before = node.leftovers();
        for moment in 0..8u32 {
            let client = node.client.clone();
            let attach = std::thread::spawn(move || block_on(client.attach(&request("c"))).is_ok());
            std::thread::sleep(std::time::Duration::from_micros(200) * moment * moment);
            node.kill();
            let done = attach.join().unwrap();
            node.start();
            let kept = node.status().attachments == 1;
            assert!(kept || !done, "moment {moment}: an attach that was answered is kept");
            let attachment = node.attach("c");
            let server = Net::open(&attachment.netns).serve(80, "c");
            assert!(node.net.ask(&format!("{}:80", attachment.address)).is_ok(), "moment {moment}");
            drop(server);
            node.detach("c");
            assert_eq!(node.leftovers(), before, "moment {moment}");
            assert_eq!(mounted_below(&node.directory), 0, "moment {moment}");
        }
    });
}

#[test]
fn after_a_restart_of_the_host_attachments_are_dropped() {
    apart(|| {
        let (_switch, mut nodes) = cluster(1);
        let node = &mut nodes[0];
        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let a = node.attach("a");
        node.kill();
        rustix::mount::unmount(&a.netns, rustix::mount::UnmountFlags::DETACH).unwrap();
        node.net.ip("link delete gantry0");
        node.net.nft("flush ruleset");
        node.start();
        assert_eq!(node.status().attachments, 0);
        assert!(node.net.nft("list tables").contains("table ip gantry"), "the kept table is in force again");
        let again = node.attach("a");
        let _server = Net::open(&again.netns).serve(80, "a");
        assert!(node.net.ask(&format!("{}:80", again.address)).unwrap().starts_with("a "));
    });
}

#[test]
fn damage_is_mended() {
    apart(|| {
        let (_switch, nodes) = cluster(2);
        let node = &nodes[0];
        node.set_table(&table(1, 1, &underlay(2), vec![]));
        let (a, b) = (node.attach("a"), node.attach("b"));
        let (net_a, net_b) = (Net::open(&a.netns), Net::open(&b.netns));
        let _server = net_b.serve(80, "b");
        node.set_table(&table(2, 1, &underlay(2), vec![service(1, "api", Some(8080), &[&b])]));
        let works = || net_a.ask("10.211.0.1:80").is_ok_and(|answer| answer.starts_with("b "));
        let link = node.net.ip("-o link show type veth");
        let link = link.split(": ").nth(1).and_then(|name| name.split('@').next()).unwrap().to_owned();
        assert!(works());
        for damage in [
            "nft flush table ip gantry",
            "nft delete table ip gantry",
            "nft flush map ip gantry services",
            "nft delete table bridge gantry_bridge",
            "ip link delete gantry0",
            "ip link set gantry0 down",
            "ip address flush dev gantry0",
            "ip route flush proto 71",
        ] {
            let (program, arguments) = damage.split_once(' ').unwrap();
            match program {
                "nft" => node.net.nft(arguments),
                _ => node.net.ip(arguments),
            };
            let tables = || node.net.nft("list tables").contains("bridge gantry_bridge");
            wait_for(damage, || (works() && tables() && node.net.ip("route").contains("10.210.2.0/24")).then_some(()));
        }
        node.net.ip("link delete gantry0");
        node.attach("an-attach-mends-what-it-needs");
        wait_for("and the check mends the rest", || works().then_some(()));
        node.net.ip(&format!("link delete {link}"));
        wait_for("a deleted veth is made again", || works().then_some(()));
    });
}

#[test]
fn a_port_of_another_program_stays_its_own() {
    apart(|| {
        let (switch, nodes) = cluster(1);
        let node = &nodes[0];
        let foreign = node.net.serve(8080, "foreign");
        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let a = node.attach("a");
        let _server = Net::open(&a.netns).serve(80, "a");
        node.set_table(&table(2, 1, &underlay(1), vec![service(1, "api", Some(8080), &[&a])]));
        assert_eq!(node.status().problems, ["port 8080/tcp is held by another program on this node"]);
        assert_eq!(switch.who("10.0.0.1:8080"), ["foreign"]);
        drop(foreign);
        wait_for("the port is taken over", || node.status().problems.is_empty().then_some(()));
        assert_eq!(switch.who("10.0.0.1:8080"), ["a"]);
        let bind = || node.net.run(|| std::net::TcpListener::bind("0.0.0.0:8080").map(drop));
        assert_eq!(bind().unwrap_err().kind(), ErrorKind::AddrInUse, "no other program can take it");
        node.set_table(&table(3, 1, &underlay(1), vec![]));
        wait_for("a port that is published no more is free", || bind().ok());
    });
}

#[test]
fn a_network_of_the_host_is_refused_before_anything_is_touched() {
    apart(|| {
        let (_switch, nodes) = cluster(1);
        let node = &nodes[0];
        node.net.ip("address add 10.210.9.1/24 dev eth0");
        let before = node.leftovers();
        let error = block_on(node.client.set_table(&table(1, 1, &underlay(1), vec![]))).unwrap_err();
        assert_eq!(code(&error), "conflict");
        let words = "the replica network 10.210.0.0/16 overlaps the route to 10.210.9.0/24 by eth0 of this host";
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.hint().is_some());
        assert_eq!(node.leftovers(), before);
        assert_eq!(node.status().revision, None);
    });
}

#[test]
fn names() {
    apart(|| {
        use hickory_proto::rr::RecordType::{A, AAAA, PTR};
        let (switch, nodes) = cluster(1);
        let node = &nodes[0];
        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let (a, b) = (node.attach("shop-api-1-a"), node.attach("shop-api-2-b"));
        node.set_table(&table(2, 1, &underlay(1), vec![service(1, "api", None, &[&a, &b])]));
        let net = Net::open(&a.netns);
        for tcp in [false, true] {
            for (name, kind, expected) in [
                ("api", A, "NoError 10.211.0.1"),
                ("API-ALIAS", A, "NoError 10.211.0.1"),
                ("api", AAAA, "NoError "),
                ("tasks.api", A, "NoError 10.210.1.2 10.210.1.3"),
                ("api-2", A, "NoError 10.210.1.3"),
                ("api.shop", A, "NoError 10.211.0.1"),
                ("no.shop.gantry", A, "NXDomain "),
                ("3.1.210.10.in-addr.arpa", PTR, "NoError shop-api-2.shop.gantry."),
                ("nothing", A, "NXDomain "),
                ("example.com", A, "ServFail "),
            ] {
                assert_eq!(look_up(&net, "10.210.1.1:53", name, kind, tcp), expected, "{name} {kind} tcp={tcp}");
            }
        }
        // Names of elsewhere come from the host's name server, also one that appears later.
        let upstream = switch.run(|| std::net::UdpSocket::bind("10.0.0.254:53").unwrap());
        std::thread::spawn(move || name_server(&upstream));
        std::fs::write(node.directory.join("resolv.conf"), "nameserver 10.210.1.1\nnameserver 10.0.0.254\n").unwrap();
        wait_for("a changed resolv.conf is read", || {
            (look_up(&net, "10.210.1.1:53", "example.com", A, false) == "NoError 192.0.2.7").then_some(())
        });
        assert_eq!(look_up(&net, "10.210.1.1:53", "api", A, false), "NoError 10.211.0.1");
        node.detach("shop-api-2-b");
        node.set_table(&table(3, 1, &underlay(1), vec![]));
        assert_eq!(look_up(&net, "10.210.1.1:53", "3.1.210.10.in-addr.arpa", PTR, false), "NXDomain ");
    });
}

/// Ask for one name; answers code and data, sorted.
fn look_up(net: &Net, server: &str, name: &str, kind: hickory_proto::rr::RecordType, tcp: bool) -> String {
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use std::io::{Read, Write};
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(format!("{name}.").parse().unwrap(), kind));
    let packet = message.to_vec().unwrap();
    let server: std::net::SocketAddr = server.parse().unwrap();
    let answer = net.run(|| {
        if tcp {
            let mut stream = std::net::TcpStream::connect_timeout(&server, DEADLINE).unwrap();
            stream.write_all(&(packet.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&packet).unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).unwrap();
            answer
        } else {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.send_to(&packet, server).unwrap();
            let mut answer = vec![0; 4096];
            let (length, from) = socket.recv_from(&mut answer).unwrap();
            assert_eq!(from, server);
            answer.truncate(length);
            answer
        }
    });
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.metadata.id, 4711);
    let mut data: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    format!("{:?} {}", answer.metadata.response_code, data.join(" "))
}

/// Answers every question with 192.0.2.7.
fn name_server(socket: &std::net::UdpSocket) {
    use hickory_proto::op::{Message, MessageType};
    use hickory_proto::rr::{RData, Record};
    let mut buffer = [0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        let mut message = Message::from_vec(&buffer[..length]).unwrap();
        message.metadata.message_type = MessageType::Response;
        let name = message.queries[0].name.clone();
        let address = RData::A(Ipv4Addr::new(192, 0, 2, 7).into());
        message.answers.push(Record::from_rdata(name, 60, address));
        socket.send_to(&message.to_vec().unwrap(), client).unwrap();
    }
}

#[test]
fn a_container_without_a_daemon() {
    apart(|| {
        let (switch, mut nodes) = cluster(2);
        nodes.iter_mut().for_each(Node::stop);
        let host = &nodes[0];
        let (run, data) = (host.directory.join("run"), host.directory.join("data"));
        let publish = |id: &str, published| {
            let mut request = request(id);
            request.app = None;
            request.ports = vec![Published { published, target: 80, protocol: Protocol::Tcp }];
            host.net.run(|| gantry_netd::local::attach(&run, &data, &request))
        };
        let a = publish("a", 8080).unwrap_or_else(|e| panic!("{}", e.chain())).attachment;
        assert_eq!((a.address, a.gateway), (Ipv4Addr::new(10, 209, 0, 2), Ipv4Addr::new(10, 209, 0, 1)));
        let net = Net::open(&a.netns);
        let server = net.serve(80, "a");
        assert_eq!(switch.ask("10.0.0.1:8080").unwrap(), "a 10.0.0.254");
        for to in ["10.0.0.1:8080", "127.0.0.1:8080", "10.209.0.1:8080"] {
            assert_eq!(host.net.who(to), ["a"], "published at {to}");
        }
        assert_eq!(net.who("10.0.0.1:8080"), ["a"], "and to the container itself");
        let outside = switch.serve(9000, "outside");
        assert_eq!(net.ask("10.0.0.254:9000").unwrap(), "outside 10.0.0.1");
        drop(outside);
        // A container that has made 127.0.0.1 an address of elsewhere does not get to the host's loopback by it.
        let loopback = host.net.run(|| std::net::TcpListener::bind("127.0.0.1:7777").unwrap());
        net.ip("address delete 127.0.0.1/8 dev lo");
        net.ip("route add 127.0.0.1/32 via 10.209.0.1 dev eth0 onlink");
        net.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap());
        let connect = || {
            let to = "127.0.0.1:7777".parse().unwrap();
            net.run(|| std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(500)).map(drop))
        };
        assert_eq!(connect().map_err(|e| e.kind()), Err(ErrorKind::TimedOut));
        host.net.nft("flush chain ip gantry_run guard");
        assert!(connect().is_ok(), "it is the rule that keeps it out");
        drop(loopback);

        let taken = publish("b", 8080).unwrap_err();
        assert_eq!(taken.to_string(), "port 8080/tcp cannot be published: container a has it");
        let foreign = host.net.serve(8081, "foreign");
        let taken = publish("b", 8081).unwrap_err();
        assert_eq!(taken.to_string(), "port 8081/tcp cannot be published: another program on this host holds it");
        drop(foreign);
        host.net.nft("add table ip filter");
        host.net.nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
        let local = publish("b", 8082).unwrap();
        assert!(local.warnings[0].contains("(table ip filter, chain FORWARD)"), "{:?}", local.warnings);
        host.net.nft("delete table ip filter");
        let b = local.attachment;
        assert_eq!(publish("b", 8082).unwrap().attachment, b);
        assert_eq!(net.ask("10.209.0.3:80").map(|_| ()), Err(ErrorKind::ConnectionRefused), "they see each other");
        drop((server, net));
        let detach = |id: &str| host.net.run(|| gantry_netd::local::detach(&run, &data, id)).unwrap();
        detach("a");
        assert!(refused(&host.net.ask("127.0.0.1:8080")));
        detach("b");
        detach("b");
        assert_eq!(host.leftovers(), Vec::<String>::new());
        assert_eq!(mounted_below(&host.directory), 0);

        host.net.ip("address add 10.209.0.77/25 dev eth0");
        let error = publish("c", 8080).unwrap_err();
        let words = "the local network 10.209.0.0/24 overlaps the route to 10.209.0.0/25 by eth0 of this host";
        assert_eq!(error.to_string(), words);
        assert_eq!(host.leftovers(), Vec::<String>::new());
    });
}
