//! `linux.netDevices`: devices of a host, which is a network namespace of the test's own.

mod common;

use common::{Bed, id};
use serde_json::json;
use std::process::{Command, Output};

/// Run in a network namespace of the test's own, after a script; `$0` is the runtime.
fn on_a_host_with(script: &str, bed: &Bed, then: &str) -> Output {
    bed.save();
    let script = format!(
        "ip link set lo up && {script} && {{ \"$0\" --root {} run {}; code=$?; {then}; exit $code; }}",
        bed.path("state").display(),
        id("net")
    );
    Command::new("unshare")
        .args(["-n", "sh", "-c", &script, env!("CARGO_BIN_EXE_gantry-runtime")])
        .current_dir(bed.bundle())
        .output()
        .expect("unshare")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const PAIR: &str = "ip link add one type veth peer name two && ip link set two up && ip link set one mtu 1400 \
                    address 02:00:00:00:00:07 && ip addr add 10.9.0.1/24 dev one && ip addr add 10.9.0.2/24 dev one && \
                    ip addr add fd00:9::1/64 dev one nodad && ip addr add 169.254.3.3/16 scope link dev one && ip link set one up";

#[test]
fn a_device_moves_with_its_addresses_and_a_new_name() {
    let mut bed = Bed::new("ip link show; ip addr show dev eth0");
    bed.config["linux"]["netDevices"] = json!({"one": {"name": "eth0"}});
    let output = on_a_host_with(PAIR, &bed, "ip -o link | grep -c one");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{err}");
    for part in ["eth0", "UP", "mtu 1400", "02:00:00:00:00:07", "10.9.0.1/24", "10.9.0.2/24", "fd00:9::1/64"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert!(!out.contains("169.254.3.3"), "an address of the link only stays behind: {out}");
    assert!(!out.contains("one@") && !out.contains("two"), "nothing else came along: {out}");
}

#[test]
fn a_device_keeps_its_name_or_gets_the_next_free_one() {
    for (devices, names) in [
        (json!({"one": {}}), "one"),
        (json!({"one": {"name": null}, "two": {"name": "second"}}), "one second"),
        (json!({"one": {"name": "eth%d"}}), "eth0"),
        (json!({"one": {"name": "net%d"}, "two": {"name": "net%d"}}), "net0 net1"),
        (json!({"two": {"name": "one"}}), "one"),
    ] {
        let mut bed = Bed::new("ls /sys/class/net");
        bed.config["linux"]["netDevices"] = devices.clone();
        let output = on_a_host_with("ip link add one type veth peer name two", &bed, "true");
        let found = text(&output.stdout);
        let found: Vec<&str> = found.split_whitespace().filter(|name| *name != "lo").collect();
        assert_eq!(found.join(" "), names, "{devices}: {}", text(&output.stderr));
    }
}

#[test]
fn hooks_of_the_container_find_the_device_there() {
    let mut bed = Bed::new("true");
    let seen = bed.path("seen");
    bed.config["linux"]["netDevices"] = json!({"one": {"name": "eth0"}});
    let script = format!("/bin/ip addr show dev eth0 > {}", seen.display());
    bed.config["hooks"]["createContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let output = on_a_host_with(PAIR, &bed, "true");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(std::fs::read_to_string(seen).expect("what the hook saw").contains("10.9.0.1/24"));
}

#[test]
fn devices_that_cannot_move_are_named() {
    for (devices, want) in [
        (json!({"none": {}}), "$.linux.netDevices.none: there is no such network device"),
        (json!({"lo": {"name": "lo1"}}), "$.linux.netDevices.lo: cannot move it into the container as `lo1`"),
        (json!({"one": {"name": "lo"}}), "$.linux.netDevices.one: the container's network namespace has a device `lo`"),
        (json!({"one": {"name": "far-too-long-a-name"}}), "$.linux.netDevices.one.name: `far-too-long-a-name` is not"),
    ] {
        let mut bed = Bed::new("echo started");
        bed.config["linux"]["netDevices"] = devices.clone();
        let output = on_a_host_with("ip link add one type veth peer name two", &bed, "ip -o link show one >&2");
        let err = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()), "{err}");
        assert!(err.contains(want), "{devices}: {err}");
        assert!(err.contains("one@two"), "the device is still the host's: {err}");
    }
}

#[test]
fn a_device_needs_a_network_namespace_to_go_to() {
    let mut bed = Bed::new("true");
    bed.config["linux"]["netDevices"] = json!({"one": {}});
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|entry| entry["type"] != "network");
    assert!(bed.refuses().contains("$.linux.netDevices: needs a `network` namespace"));
}

#[test]
fn a_namespace_joined_by_path_takes_devices_as_well() {
    let mut bed = Bed::new("ip addr show dev eth0");
    let joined = bed.path("joined");
    std::fs::write(&joined, "").expect("a file");
    // The kernel shows no sysfs of a network that belongs to somebody else.
    bed.config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "sysfs");
    bed.config["linux"]["netDevices"] = json!({"one": {"name": "eth0"}});
    let namespaces = bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    let network = namespaces.iter_mut().find(|entry| entry["type"] == "network").expect("the network");
    network["path"] = json!(joined);
    bed.save();
    let script = format!(
        "{PAIR} && unshare -n sh -c 'exec mount --bind /proc/self/ns/net {}' && exec \"$0\" --root {} run {}",
        joined.display(),
        bed.path("state").display(),
        id("joined")
    );
    let output = Command::new("unshare")
        .args(["-n", "-m", "--propagation", "private", "sh", "-c", &script, env!("CARGO_BIN_EXE_gantry-runtime")])
        .current_dir(bed.bundle())
        .output()
        .expect("unshare");
    let out = text(&output.stdout);
    assert!(out.contains("10.9.0.1/24") && out.contains("UP"), "{out} {}", text(&output.stderr));
}
