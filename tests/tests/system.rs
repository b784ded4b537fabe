//! The whole system on a lab: a user's commands in, a user's observations out.

use gantry_api::http::{NodeState, Replica};
use gantry_tests::{Cluster, get, seconds, until};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

/// A web server that names its replica, with a check that takes it in at once.
fn web(replicas: u32, port: u16, more: &str) -> String {
    format!(
        "services:
  web:
    image: probe:1
    ports: ['{port}:8080']
    healthcheck: {{test: [CMD, test, -x, /www/cgi-bin/who], interval: 1s, timeout: 5s}}
    stop_grace_period: 1s
    deploy:
      replicas: {replicas}
      update_config: {{order: start-first}}
{more}"
    )
}

fn who(address: SocketAddr) -> Result<String, String> {
    let answer = get(address, "/cgi-bin/who")?;
    if answer.status == 200 { Ok(answer.body.trim().to_owned()) } else { Err(format!("{answer:?}")) }
}

/// Asks until every one of `wanted` has answered.
fn all_answer(address: SocketAddr, wanted: &[Replica]) {
    let wanted: BTreeSet<String> = wanted.iter().map(|replica| replica.name.to_string()).collect();
    let mut seen = BTreeSet::new();
    until("an answer of every replica", seconds(20), || {
        seen.insert(who(address)?);
        if wanted.is_subset(&seen) { Ok(()) } else { Err(format!("wanted {wanted:?}, seen {seen:?}")) }
    });
}

fn nodes_of(replicas: &[Replica]) -> BTreeSet<String> {
    replicas.iter().filter_map(|replica| replica.node.as_ref().map(ToString::to_string)).collect()
}

/// Host PID of a replica's first process: the one in its cgroup that started first.
fn pid_of(cluster: &Cluster, replica: &Replica) -> i32 {
    let id = replica.id.to_string();
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let mine = groups.lines().any(|line| line.contains(cluster.name()) && line.contains(&id));
        let inside = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let first = inside.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"));
        if mine && first {
            pids.push(pid);
        }
    }
    assert_eq!(pids.len(), 1, "first processes of {id}: {pids:?}");
    pids[0]
}

fn node_state(cluster: &Cluster, name: &str) -> NodeState {
    let out = cluster.gantry(&["node", "ls", "--json"]).ok();
    let nodes: Vec<gantry_api::http::Node> = serde_json::from_str(&out).expect("nodes");
    nodes.into_iter().find(|node| node.name.as_str() == name).expect("the node").state
}

#[test]
fn an_app_lives_through_what_can_happen() {
    let cluster = Cluster::up(3);
    let (port, address) = cluster.port();
    let file = cluster.manifest("app", &web(3, port, ""));
    cluster.gantry(&["up", "-f", &file]).ok();
    let replicas = cluster.until_ready("app", "web", 3);
    assert_eq!(nodes_of(&replicas).len(), 3, "spread over the nodes");
    all_answer(address, &replicas);
    for node in ["n1", "n2", "n3"] {
        let answer = cluster.on(
            node,
            &["/bin/busybox", "wget", "-q", "-O", "-", &format!("http://{}:{port}/", own_address(&cluster, node))],
        );
        assert_eq!(answer.ok(), "ok\n", "published on {node}");
    }

    cluster.gantry(&["scale", "app", "web=6"]).ok();
    let replicas = cluster.until_ready("app", "web", 6);
    all_answer(address, &replicas);

    // a process dies: the same replica is back, with its ending on record
    let victim = &replicas[0];
    gantry_tests::kill(pid_of(&cluster, victim));
    let back = until("the killed replica runs again", seconds(20), || {
        let now = cluster.ready("app", "web");
        let same = now.into_iter().find(|replica| replica.id == victim.id && replica.restarts == 1);
        same.ok_or_else(|| "not yet".to_owned())
    });
    assert_eq!(back.last_exit.and_then(|exit| exit.signal), Some(9));

    // a worker loses power: its replicas run elsewhere
    cluster.lab(&["kill", "n3"]).ok();
    until("replicas off the dead node", seconds(30), || {
        let ready = cluster.ready("app", "web");
        let away = !nodes_of(&ready).contains("n3");
        if away && ready.len() == 6 { Ok(()) } else { Err(format!("{ready:#?}")) }
    });
    assert_eq!(node_state(&cluster, "n3"), NodeState::Lost);
    for _ in 0..20 {
        who(address).expect("no request goes to the dead node");
    }

    // and comes back: nothing of the old replicas is left on it
    cluster.lab(&["start", "n3"]).ok();
    until("the node is back", seconds(30), || match node_state(&cluster, "n3") {
        NodeState::Ready => Ok(()),
        state => Err(format!("{state:?}")),
    });
    cluster.until_ready("app", "web", 6);

    cluster.gantry(&["down", "app"]).ok();
    until("no replica is left", seconds(20), || {
        let out = cluster.gantry(&["ps", "--json"]).ok();
        if out.trim() == "[]" { Ok(()) } else { Err(out) }
    });
    cluster.down();
}

fn own_address(cluster: &Cluster, node: &str) -> String {
    let out = cluster.gantry(&["node", "ls", "--json"]).ok();
    let nodes: Vec<gantry_api::http::Node> = serde_json::from_str(&out).expect("nodes");
    nodes.into_iter().find(|each| each.name.as_str() == node).expect("the node").underlay.to_string()
}

#[test]
fn services_find_each_other_by_name_from_every_node() {
    let cluster = Cluster::up(3);
    let (port, _) = cluster.port();
    let client = "  client:
    image: probe:1
    command: [sleep, '100000']
    stop_grace_period: 0s
    deploy: {replicas: 3}
    depends_on: {web: {condition: service_healthy}}
";
    let file = cluster.manifest("app", &web(2, port, client));
    cluster.gantry(&["up", "-f", &file]).ok();
    let clients = cluster.until_ready("app", "client", 3);
    assert_eq!(nodes_of(&clients).len(), 3);
    let webs = cluster.until_ready("app", "web", 2);
    for client in &clients {
        let name = client.name.to_string();
        let mut seen = BTreeSet::new();
        until(&format!("{name} is answered by both"), seconds(20), || {
            let done = cluster.gantry(&["exec", &name, "wget", "-q", "-O", "-", "http://web:8080/cgi-bin/who"]);
            seen.insert(done.ok().trim().to_owned());
            if seen.len() == webs.len() { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }
    // replicas have names too, and what does not exist is said at once
    let name = clients[0].name.to_string();
    let one = cluster.gantry(&["exec", &name, "wget", "-q", "-O", "-", &format!("http://{}:8080/", webs[0].name)]);
    assert_eq!(one.ok(), "ok\n");
    let none = cluster.gantry(&["exec", &name, "wget", "-q", "-O", "-", "http://nobody:8080/"]);
    assert_ne!(none.code, 0);
    cluster.down();
}

/// Requests without pause on a thread, until dropped; counts what failed.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    failed: Arc<std::sync::Mutex<Vec<String>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Load {
    fn on(address: SocketAddr) -> Self {
        let (stop, sent, failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default(), Arc::default());
        let (halt, count, errors): (_, _, Arc<std::sync::Mutex<Vec<String>>>) =
            (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&failed));
        let thread = thread::spawn(move || {
            while !halt.load(Ordering::Relaxed) {
                if let Err(error) = who(address) {
                    errors.lock().expect("errors").push(error);
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, sent, failed, thread: Some(thread) }
    }

    fn end(mut self) -> (u32, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("running").join().expect("the thread");
        (self.sent.load(Ordering::Relaxed), self.failed.lock().expect("errors").clone())
    }
}

#[test]
fn a_rolling_change_fails_no_request() {
    let cluster = Cluster::up(2);
    let (port, address) = cluster.port();
    let file = cluster.manifest("app", &web(3, port, ""));
    cluster.gantry(&["up", "-f", &file]).ok();
    let before = cluster.until_ready("app", "web", 3);
    all_answer(address, &before);
    let load = Load::on(address);
    let changed = web(3, port, "    environment: {VERSION: '2'}\n");
    let file = cluster.manifest("app", &changed);
    let plan = cluster.gantry(&["plan", "-f", &file]).ok();
    assert!(plan.contains("web") && plan.contains("VERSION"), "{plan}");
    cluster.gantry(&["up", "-f", &file]).ok();
    let after = cluster.until_ready("app", "web", 3);
    let (sent, failed) = load.end();
    assert!(after.iter().all(|replica| replica.current), "{after:#?}");
    assert!(after.iter().all(|replica| before.iter().all(|old| old.id != replica.id)), "all were replaced");
    assert!(sent > 10 && failed.is_empty(), "{} of {sent} requests failed: {failed:#?}", failed.len());
    cluster.down();
}

#[test]
fn a_volume_keeps_its_data_and_its_place() {
    let cluster = Cluster::up(3);
    let manifest = |version: u32| {
        format!(
            "services:
  store:
    image: probe:1
    command: [sh, -c, 'echo {version} >> /data/log; exec sleep 100000']
    volumes: ['data:/data']
    stop_grace_period: 0s
    deploy: {{placement: {{constraints: ['node.hostname != n1']}}}}
volumes: {{data: }}
"
        )
    };
    let file = cluster.manifest("keep", &manifest(1));
    cluster.gantry(&["up", "-f", &file]).ok();
    let first = cluster.until_ready("keep", "store", 1).remove(0);
    let node = first.node.clone().expect("a node").to_string();
    let file = cluster.manifest("keep", &manifest(2));
    cluster.gantry(&["up", "-f", &file]).ok();
    let log = cluster.gantry(&["exec", "keep-store-1", "cat", "/data/log"]).ok();
    assert_eq!(log, "1\n2\n");

    // its node is lost: it waits for it, since the data is there
    cluster.lab(&["kill", &node]).ok();
    until("the replica says what it waits for", seconds(30), || {
        let all = cluster.replicas("keep");
        let told = all.iter().any(|r| !r.ready && r.message.as_ref().is_some_and(|text| text.contains(&node)));
        if told { Ok(()) } else { Err(format!("{all:#?}")) }
    });
    cluster.lab(&["start", &node]).ok();
    let back = cluster.until_ready("keep", "store", 1).remove(0);
    assert_eq!(back.node.expect("a node").as_str(), node);
    let log = cluster.gantry(&["exec", "keep-store-1", "cat", "/data/log"]).ok();
    assert_eq!(log, "1\n2\n2\n");
    cluster.down();
}

#[test]
fn a_dead_daemon_changes_nothing_that_runs() {
    let cluster = Cluster::up(2);
    let (port, address) = cluster.port();
    let file = cluster.manifest("app", &web(2, port, ""));
    cluster.gantry(&["up", "-f", &file]).ok();
    let before = cluster.until_ready("app", "web", 2);
    all_answer(address, &before);
    let load = Load::on(address);
    for node in ["n1", "n2"] {
        let pids = gantry_tests::daemons(&cluster, node);
        assert!(!pids.is_empty(), "a daemon on {node}");
        pids.into_iter().for_each(gantry_tests::kill);
    }
    until("the scheduler answers again", seconds(30), || {
        let done = cluster.gantry(&["node", "ls", "--json"]);
        let ready = done.out.matches("\"ready\"").count();
        if done.code == 0 && ready == 2 { Ok(()) } else { Err(format!("{done:?}")) }
    });
    let after = cluster.until_ready("app", "web", 2);
    let (sent, failed) = load.end();
    for old in &before {
        let now = after.iter().find(|replica| replica.id == old.id).unwrap_or_else(|| panic!("{old:?} was replaced"));
        assert_eq!((now.started_at_ms, now.restarts), (old.started_at_ms, old.restarts), "{} was restarted", old.id);
    }
    assert!(sent > 10 && failed.is_empty(), "{} of {sent} requests failed: {failed:#?}", failed.len());
    cluster.down();
}

#[test]
fn a_node_that_is_cut_off_is_replaced_and_heals() {
    let cluster = Cluster::up(3);
    let (port, address) = cluster.port();
    let file = cluster.manifest("app", &web(3, port, ""));
    cluster.gantry(&["up", "-f", &file]).ok();
    all_answer(address, &cluster.until_ready("app", "web", 3));
    cluster.lab(&["cut", "n3"]).ok();
    until("replicas off the cut node", seconds(30), || {
        let ready = cluster.ready("app", "web");
        let away = !nodes_of(&ready).contains("n3");
        if away && ready.len() == 3 { Ok(()) } else { Err(format!("{ready:#?}")) }
    });
    cluster.lab(&["heal"]).ok();
    until("the healed node is ready and holds nothing that was replaced", seconds(30), || {
        let all = cluster.replicas("app");
        let mut names: Vec<String> = all.iter().map(|replica| replica.name.to_string()).collect();
        names.sort();
        names.dedup();
        match node_state(&cluster, "n3") {
            NodeState::Ready if all.len() == 3 && names.len() == 3 && all.iter().all(|r| r.ready) => Ok(()),
            state => Err(format!("{state:?} {all:#?}")),
        }
    });
    cluster.down();
}

#[test]
fn logs_and_exec_reach_any_node() {
    let cluster = Cluster::up(2);
    let manifest = "services:
  talk:
    image: probe:1
    command: [sh, -c, 'echo hello from $$HOSTNAME; echo oops >&2; exec sleep 100000']
    hostname: fixed
    stop_grace_period: 0s
    deploy: {replicas: 2}
";
    let file = cluster.manifest("talk", manifest);
    cluster.gantry(&["up", "-f", &file]).ok();
    let replicas = cluster.until_ready("talk", "talk", 2);
    assert_eq!(nodes_of(&replicas).len(), 2);
    let logs = until("both lines of both", seconds(20), || {
        let done = cluster.gantry(&["logs", "talk"]);
        let all = format!("{}{}", done.out, done.err);
        if all.matches("oops").count() == 2 && all.matches("hello").count() == 2 { Ok(all) } else { Err(all) }
    });
    assert!(logs.contains("talk-1") && logs.contains("talk-2"), "{logs}");
    for replica in &replicas {
        let name = replica.name.to_string();
        assert_eq!(cluster.gantry(&["exec", &name, "hostname"]).ok(), "fixed\n");
        assert_eq!(cluster.gantry(&["exec", &name, "sh", "-c", "exit 7"]).code, 7);
        assert_eq!(cluster.gantry(&["exec", &name, "no-such-program"]).code, 127);
    }
    assert_eq!(cluster.gantry(&["exec", "talk-talk-9", "true"]).code, 125);
    cluster.down();
}

#[test]
fn tiers_start_in_the_order_of_their_health() {
    let cluster = Cluster::up(2);
    let manifest = "services:
  front:
    image: probe:1
    depends_on: {back: {condition: service_healthy}}
    stop_grace_period: 0s
  back:
    image: probe:1
    command: [sh, -c, 'sleep 1; touch /tmp/ok; exec sleep 100000']
    healthcheck: {test: [CMD, test, -e, /tmp/ok], interval: 1s, start_period: 30s, start_interval: 100ms}
    depends_on: {setup: {condition: service_completed_successfully}}
    stop_grace_period: 0s
  setup:
    image: probe:1
    command: [sleep, '0.5']
    restart: 'no'
";
    let file = cluster.manifest("tiers", manifest);
    cluster.gantry(&["up", "-f", &file]).ok();
    let front = cluster.until_ready("tiers", "front", 1).remove(0);
    let back = cluster.until_ready("tiers", "back", 1).remove(0);
    let (front, back) = (front.started_at_ms.expect("started"), back.started_at_ms.expect("started"));
    assert!(front >= back + 1000, "front at {front}, back at {back}");
    cluster.down();
}

#[test]
fn bad_input_is_refused_with_a_remedy_and_leaves_nothing() {
    let cluster = Cluster::up(2);
    let (port, _) = cluster.port();
    let file = cluster.manifest("app", &web(1, port, ""));
    cluster.gantry(&["up", "-f", &file]).ok();
    let big = "services: {big: {image: probe:1, deploy: {resources: {reservations: {memory: 500g}}}}}";
    let absent = "services: {gone: {image: 'nowhere.invalid/none:1'}}";
    let clash = format!("services: {{other: {{image: probe:1, ports: ['{port}:8080']}}}}");
    for (why, name, text, code, wanted) in [
        ("mistyped key", "bad", "services: {a: {imagee: x}}", 1, "did you mean `image`?"),
        ("never fits", "big", big, 1, "memory"),
        ("port of another app", "clash", clash.as_str(), 1, "app"),
        ("image absent", "absent", absent, 3, "nowhere.invalid/none:1"),
    ] {
        let file = cluster.manifest(name, text);
        let done = cluster.gantry(&["up", "-f", &file, "--timeout", "4"]);
        let said = format!("{}{}", done.out, done.err);
        assert_eq!(done.code, code, "{why}: {said}");
        assert!(said.contains(wanted), "{why}: {said}");
    }
    cluster.gantry(&["down", "absent"]).ok();
    let apps = cluster.gantry(&["apps"]).ok();
    assert!(!apps.contains("big") && !apps.contains("clash") && !apps.contains("absent"), "{apps}");

    for (why, args, code, wanted) in [
        ("no such app", vec!["scale", "nope", "web=2"], 1, "nope"),
        ("no such service", vec!["scale", "app", "nope=2"], 1, "nope"),
        ("no manifest", vec!["up", "-f", "/nonexistent/compose.yaml"], 1, "/nonexistent/compose.yaml"),
        ("wrong usage", vec!["up", "--no-such-flag"], 2, "--no-such-flag"),
        ("nobody there", vec!["-H", "unix:///nonexistent/gantry.sock", "ps"], 1, "/nonexistent/gantry.sock"),
    ] {
        let done = cluster.gantry(&args);
        assert_eq!(done.code, code, "{why}: {done:?}");
        assert!(done.err.contains(wanted), "{why}: {done:?}");
        assert!(code == 2 || done.err.contains("hint: "), "{why} has a hint: {done:?}");
    }
    cluster.down();
}
