//! Images between nodes: a new image leaves the registry once, and what any node has needs no registry.

use gantry_tests::{Cluster, Registry, large_image, seconds, serve_registry, until};
use std::path::Path;

/// Each node has a door to the same registry at its own loopback, where plain HTTP is allowed.
const PORT: u16 = 5000;
/// Slow enough that all nodes fetch at the same time.
const BYTES_PER_S: u64 = 6 << 20;

/// No test: the registries that the test below starts on nodes.
#[test]
fn registry() {
    serve_registry();
}

fn size_of_layers(layout: &Path) -> u64 {
    let sizes = std::fs::read_dir(layout.join("blobs/sha256")).expect("blobs").flatten();
    sizes.map(|blob| blob.metadata().expect("its size").len()).sum()
}

fn app(replicas: u32) -> String {
    format!(
        "services:
  web:
    image: 127.0.0.1:{PORT}/shop/app:1
    stop_grace_period: 1s
    deploy:
      replicas: {replicas}
      placement: {{max_replicas_per_node: 1}}
"
    )
}

#[test]
fn a_new_image_leaves_the_registry_once_and_then_needs_none() {
    let cluster = Cluster::bare();
    cluster.lab(&["up", "--nodes", "3"]).ok();
    let layout = large_image(cluster.folder(), 3, 8 << 20);
    let door = |node: &&str| Registry::start(&cluster, node, "registry", &layout, PORT, BYTES_PER_S);
    let doors: Vec<Registry> = ["n1", "n2", "n3"].iter().map(door).collect();
    let file = cluster.manifest("app", &app(3));
    cluster.gantry(&["up", "-f", &file]).ok();
    cluster.until_ready("app", "web", 3);
    let (sent, size) = (doors.iter().map(Registry::sent).sum::<u64>(), size_of_layers(&layout));
    let each: Vec<u64> = doors.iter().map(Registry::sent).collect();
    println!(
        "registry sent {sent} bytes of blobs for 3 nodes, the image has {size}: {:.3}; {each:?}",
        sent as f64 / size as f64
    );
    assert!(sent * 10 >= size * 9, "{sent} of {size}: it was fetched at all");
    assert!(sent * 10 <= size * 12, "{sent} of {size}, by node {each:?}");

    drop(doors);
    cluster.lab(&["up", "--nodes", "4"]).ok();
    let file = cluster.manifest("app", &app(4));
    cluster.gantry(&["up", "-f", &file]).ok();
    let ready = cluster.until_ready("app", "web", 4);
    assert!(ready.iter().any(|replica| replica.node.as_ref().is_some_and(|node| node.as_str() == "n4")), "{ready:#?}");

    // Whoever holds no certificate of a node gets nothing, not even a page that says so.
    let address = until("n1's address", seconds(10), || {
        let out = cluster.gantry(&["node", "ls", "--json"]).ok();
        let nodes: Vec<gantry_api::http::Node> = serde_json::from_str(&out).map_err(|error| error.to_string())?;
        nodes.into_iter().find(|node| node.name.as_str() == "n1").map(|node| node.underlay).ok_or(out)
    });
    let url = format!("http://{address}:7401/v1/blobs/sha256:{}", "0".repeat(64));
    let answer = cluster.on("n2", &["/bin/busybox", "wget", "-T", "5", "-q", "-O", "-", &url]);
    assert!(answer.code != 0 && answer.out.is_empty(), "{answer:?}");
    cluster.down();
}
