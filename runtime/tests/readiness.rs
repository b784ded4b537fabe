//! A container that tells a service manager when it is ready (`NOTIFY_SOCKET`).
//!
//! This file's own program, which is static, is bound into the container and speaks from there.

mod common;

use common::{Bed, finish, id, patience, until};
use serde_json::json;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread::{self, JoinHandle};

/// Not a test where nobody asks for it: the speaker in the container. `SAY`: messages, `;` between, `,` for a new line.
#[test]
fn speaker() {
    let Ok(text) = std::env::var("SAY") else { return };
    let socket = UnixDatagram::unbound().expect("a socket");
    let path = std::env::var("NOTIFY_SOCKET").expect("the variable");
    for message in text.split(';') {
        socket.send_to(message.replace(',', "\n").as_bytes(), &path).expect("somebody listens");
    }
}

/// A bed whose program says something and then runs a script.
fn speaking(say: &str, script: &str) -> Bed {
    let mut bed = Bed::new(&format!("/speaker --exact speaker >/dev/null || exit 99; {script}"));
    let own = std::env::current_exe().expect("this program");
    bed.config["mounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({"destination": "/speaker", "type": "bind", "source": own, "options": ["bind", "ro"]}));
    bed.config["process"]["env"] = json!(["PATH=/bin", format!("SAY={say}"), "NOTIFY_SOCKET=/of/the/bundle"]);
    bed
}

/// A service manager that reads some messages.
fn manager(address: &SocketAddr, count: usize) -> JoinHandle<Vec<String>> {
    let socket = UnixDatagram::bind_addr(address).expect("the manager's socket");
    socket.set_read_timeout(Some(patience())).expect("a time limit");
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        let read = |_| {
            let count = socket.recv(&mut buffer).expect("a message");
            String::from_utf8_lossy(&buffer[..count]).into_owned()
        };
        (0..count).map(read).collect()
    })
}

/// What the container's program has in its environment.
fn variable(bed: &Bed, name: &str) -> String {
    let environment = fs::read_to_string(format!("/proc/{}/environ", bed.pid(name))).expect("its environment");
    environment.split('\0').filter(|entry| entry.starts_with("NOTIFY_SOCKET=")).collect()
}

#[test]
fn a_detached_run_returns_when_the_container_is_ready() {
    let bed = speaking("STATUS=READY=1;X=1,READY=1", "exec sleep 1000");
    let name = id("ready");
    let path = bed.path("manager");
    let heard = manager(&SocketAddr::from_pathname(&path).expect("an address"), 2);
    bed.save();
    let ran = finish(bed.command(&["run", "-d", &name]).env("NOTIFY_SOCKET", &path));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let pid = bed.pid(&name);
    assert_eq!(heard.join().expect("it"), [format!("READY=1\nMAINPID={pid}"), "BARRIER=1".to_owned()]);
    assert_eq!(variable(&bed, &name), format!("NOTIFY_SOCKET={}/notify", path.display()));
    let options = bed.ok(&["exec", &name, "grep", &format!(" {} ", path.display()), "/proc/self/mountinfo"]);
    assert!(options.contains(" ro,nosuid,nodev,noexec,"), "{options}");
    bed.ok(&["delete", "--force", &name]);
    bed.assert_gone(&name);
}

#[test]
fn start_waits_for_a_user_of_a_user_namespace_and_an_abstract_address() {
    let mut bed = speaking("READY=1", "exec sleep 1000");
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 2000}]);
    bed.config["linux"]["uidMappings"] = map.clone();
    bed.config["linux"]["gidMappings"] = map;
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    bed.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let owner = std::process::Command::new("chown").args(["-hR", "100000:100000"]).arg(bed.rootfs("")).status();
    assert!(owner.expect("chown").success());
    fs::set_permissions(bed.path(""), fs::Permissions::from_mode(0o755)).expect("its mode");
    let name = id("start");
    bed.save();
    let address = format!("@{name}");
    let ran = finish(bed.command(&["create", &name]).env("NOTIFY_SOCKET", &address));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let heard = manager(&SocketAddr::from_abstract_name(&name).expect("an address"), 2);
    let ran = finish(bed.command(&["start", &name]).env("NOTIFY_SOCKET", &address));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let pid = bed.pid(&name);
    assert_eq!(heard.join().expect("it"), [format!("READY=1\nMAINPID={pid}"), "BARRIER=1".to_owned()]);
    assert_eq!(variable(&bed, &name), "NOTIFY_SOCKET=/run/notify/notify");
}

#[test]
fn in_the_foreground_the_runtime_stays_the_main_process() {
    let bed = speaking("READY=1;READY=1", "exit 7");
    let path = bed.path("manager");
    let heard = manager(&SocketAddr::from_pathname(&path).expect("an address"), 1);
    bed.save();
    let ran = finish(bed.command(&["run", &id("front")]).env("NOTIFY_SOCKET", &path));
    assert_eq!((ran.code, ran.err.as_str()), (7, ""));
    assert_eq!(heard.join().expect("it"), ["READY=1"]);
}

#[test]
fn who_never_gets_ready_ends_the_wait_with_its_end() {
    let bed = speaking("STOPPING=1", "exit 3");
    bed.save();
    let path = bed.path("manager");
    let name = id("ends");
    let ran = finish(bed.command(&["run", "-d", &name]).env("NOTIFY_SOCKET", &path));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(bed.status(&name), "stopped");
    // A signal to whoever waits is for the container.
    let mut bed = Bed::new("trap 'exit 0' TERM; touch /tmp/there; while :; do sleep 0.01; done");
    bed.config["root"]["readonly"] = json!(false);
    fs::create_dir(bed.rootfs("tmp")).expect("a directory");
    let name = id("signal");
    bed.save();
    let ran = finish(bed.command(&["create", &name]).env("NOTIFY_SOCKET", &path));
    assert_eq!(ran.code, 0, "{}", ran.err);
    let start = bed.command(&["start", &name]).env("NOTIFY_SOCKET", &path).spawn().expect("the runtime");
    until("it runs", || bed.rootfs("tmp/there").exists());
    let second = bed.run(&["start", &name]);
    assert!(second.err.contains("cannot start an already running container"), "{}", second.err);
    common::signal(start.id() as i32, 15);
    assert_eq!(common::wait(start), 0);
    assert_eq!(bed.status(&name), "stopped");
}

#[test]
fn nobody_to_tell_is_a_warning() {
    let bed = speaking("READY=1", "exit 0");
    bed.save();
    let path = bed.path("nobody");
    let ran = finish(bed.command(&["run", &id("nobody")]).env("NOTIFY_SOCKET", &path));
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains(&format!("warning: cannot tell `{}` that the container is ready", path.display())));
}

#[test]
fn without_a_socket_to_wait_for() {
    let bed = Bed::new("exec sleep 1000");
    bed.save();
    let supervised = bed.supervised();
    let options: Vec<&str> = supervised.iter().map(String::as_str).collect();
    // No address, a supervisor, and a container that was made without: none waits, none has the variable.
    for (address, options) in
        [("vsock:2:1", &["-d"][..]), ("", &["-d"]), ("/no", &[&["-d"], options.as_slice()].concat())]
    {
        let name = id("none");
        let ran = finish(bed.command(&[&["run"], options, &[name.as_str()]].concat()).env("NOTIFY_SOCKET", address));
        assert_eq!(ran.code, 0, "{address}: {}", ran.err);
        assert_eq!(variable(&bed, &name), "", "{address}");
    }
    let name = id("late");
    bed.ok(&["create", &name]);
    let ran = finish(bed.command(&["start", &name]).env("NOTIFY_SOCKET", "/no"));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}
