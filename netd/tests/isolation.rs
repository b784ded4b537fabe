//! Who reaches whom: networks of apps, internal ones, and senders that claim to be others.

mod lab;

use gantry_api::network::{Attachment, Service, ServiceNetwork};
use lab::*;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};

#[test]
#[ignore = "a node's process, started by the other tests"]
fn node_process() {
    lab::node_process();
}

fn on(networks: &[(&str, bool)], number: u8, name: &str, at: &Attachment) -> Service {
    let network = |(name, internal): &(&str, bool)| ServiceNetwork { name: (*name).into(), internal: *internal };
    Service {
        networks: networks.iter().map(network).collect(),
        ..service(number, name, Some(8000 + u16::from(number)), &[at])
    }
}

#[test]
fn services_reach_only_those_on_a_network_of_theirs() {
    apart(|| {
        let (switch, nodes) = cluster(2);
        for node in &nodes {
            node.set_table(&table(1, node.number, &underlay(2), vec![]));
        }
        let [one, two] = &nodes[..] else { unreachable!() };
        let all = [one.attach("web"), one.attach("api"), one.attach("db"), two.attach("cache"), one.attach("free")];
        let [web, api, db, cache, free] = all.each_ref().map(|a| Net::open(&a.netns));
        let names = ["web", "api", "db", "cache"];
        let _servers: Vec<_> =
            [&web, &api, &db, &cache].iter().zip(names).map(|(net, name)| net.serve(80, name)).collect();
        let (front, back) = (("shop_front", false), ("shop_back", true));
        let services = || {
            vec![
                on(&[front], 1, "web", &all[0]),
                on(&[front, back], 2, "api", &all[1]),
                on(&[back], 3, "db", &all[2]),
                on(&[back], 4, "cache", &all[3]),
            ]
        };
        for node in &nodes {
            node.set_table(&table(2, node.number, &underlay(2), services()));
            assert_eq!(node.status().problems, Vec::<String>::new());
        }
        let to = |n: usize| format!("{}:80", all[n].address);
        assert!(web.ask(&to(1)).is_ok() && web.ask("10.211.0.2:80").is_ok(), "a network in common");
        assert!(api.ask(&to(2)).is_ok() && api.ask("10.211.0.3:80").is_ok() && api.ask(&to(0)).is_ok());
        assert!(
            cache.ask(&to(2)).is_ok() && db.ask(&to(3)).is_ok() && cache.ask("10.211.0.3:80").is_ok(),
            "on two nodes"
        );
        assert_eq!(web.ask(&to(2)), Err(ErrorKind::TimedOut), "in one bridge");
        for (net, to, why) in [
            (&web, "10.211.0.3:80".to_owned(), "by the service's address"),
            (&web, to(3), "on another node"),
            (&web, "10.211.0.4:80".to_owned(), "on another node, by the service's address"),
            (&cache, to(0), "the other way round"),
        ] {
            assert_eq!(net.ask(&to), Err(ErrorKind::ConnectionRefused), "{why}");
        }
        assert!(free.ask(&to(2)).is_ok(), "a container outside of every app is in no network");
        assert!(one.net.ask(&to(2)).is_ok(), "nor is the node");
        assert!(
            switch.ask("10.0.0.2:8003").is_ok() && switch.ask("10.0.0.1:8003").is_ok(),
            "nor who comes from outside"
        );

        let _outside = switch.serve(9000, "outside");
        assert!(web.ask("10.0.0.254:9000").is_ok() && api.ask("10.0.0.254:9000").is_ok());
        assert_eq!(db.ask("10.0.0.254:9000"), Err(ErrorKind::ConnectionRefused), "an internal network");
        assert_eq!(cache.ask("10.0.0.254:9000"), Err(ErrorKind::ConnectionRefused));

        for (net, name, found) in
            [(&api, "db", true), (&web, "db", false), (&web, "api", true), (&free, "db.shop", true)]
        {
            assert_eq!(resolves(net, name), found, "{name}");
        }
        // All of it goes with the last network.
        let plain = services().into_iter().map(|service| Service { networks: vec![], ..service }).collect();
        one.set_table(&table(3, 1, &underlay(2), plain));
        assert!(web.ask(&to(2)).is_ok());
        assert!(!one.net.nft("list ruleset").contains("groups"));
    });
}

fn resolves(net: &Net, name: &str) -> bool {
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    net.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.send_to(&question, "10.210.1.1:53").unwrap();
        let mut answer = [0; 512];
        socket.recv_from(&mut answer).unwrap();
        answer[3] & 15 == 0 && answer[7] > 0
    })
}

#[test]
fn nobody_sends_as_another() {
    apart(|| {
        let (_switch, nodes) = cluster(1);
        let node = &nodes[0];
        node.set_table(&table(1, 1, &underlay(1), vec![]));
        let (a, b, c) = (node.attach("a"), node.attach("b"), node.attach("c"));
        let (net, victim) = (Net::open(&a.netns), Net::open(&b.netns));
        let listener = victim.run(|| UdpSocket::bind("0.0.0.0:7").unwrap());
        listener.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
        let heard = |from: Ipv4Addr| {
            net.run(|| UdpSocket::bind((from, 0)).unwrap().send_to(b"x", (b.address, 7)).unwrap());
            listener.recv_from(&mut [0; 8]).map(|(_, from)| from.ip()).ok()
        };
        assert_eq!(heard(a.address), Some(a.address.into()));
        for other in [c.address, Ipv4Addr::new(192, 0, 2, 1)] {
            net.ip(&format!("address add {other}/32 dev eth0"));
            assert_eq!(heard(other), None, "{other}");
        }
        assert_eq!(heard(a.address), Some(a.address.into()));
        // Nor says that another's address is its own.
        let entry = || victim.ip(&format!("neighbour show {}", c.address));
        victim.ip("neighbour flush all");
        net.ip(&format!("neighbour replace {} lladdr {} dev eth0", b.address, mac(&victim)));
        net.run(|| UdpSocket::bind((c.address, 0)).unwrap().send_to(b"x", (b.address, 8)).unwrap());
        assert!(!entry().contains(&mac(&net)), "{}", entry());
        // A container that comes anew under an address that was used is its sender at once.
        node.detach("c");
        let d = node.attach("d");
        let net_d = Net::open(&d.netns);
        net_d.run(|| UdpSocket::bind((d.address, 0)).unwrap().send_to(b"x", (b.address, 7)).unwrap());
        assert_eq!(listener.recv_from(&mut [0; 8]).unwrap().1.ip(), d.address);
        assert_eq!(node.net.nft("list set bridge gantry_bridge senders").matches(" . ").count() - 1, 3);
    });
}

fn mac(net: &Net) -> String {
    let text = net.ip("-o link show eth0");
    text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}
