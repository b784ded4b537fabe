//! The API as people and agents meet it: a real unix socket, real mutual TLS, scripted agents.

mod common;

use common::{Agent, Cluster, PATIENCE, answer, app, dial, eventually, service, upgrade_request};
use gantry_api::frame::Frame;
use gantry_api::http::{ChangeAction, LogLine, NodeState, Plan};
use gantry_api::spec::{Condition, Protocol, PublishedPort, UpdateOrder};
use gantry_api::units::Bytes;
use gantry_api::wire::{ExecRequest, ReplicaState, ToScheduler};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn an_app_is_deployed_scaled_and_taken_down() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.agent("n1").await, cluster.agent("n2").await);
    let spec = app("shop", &[("web", service("web:1", 4))]);

    let dry: Plan = cluster.ask(Method::PUT, "/v1/apps/shop?dry_run=true", serde_json::to_vec(&spec).unwrap()).await;
    assert_eq!((dry.changes[0].action, dry.revision.0), (ChangeAction::Create, 0));
    assert!(cluster.apps().await.is_empty());

    let plan = cluster.deploy(&spec).await;
    assert!(plan.revision.0 > 0);
    let detail = cluster.settled("shop").await;
    assert_eq!(detail.replicas.iter().filter(|r| r.node.as_ref() == Some(&one.name)).count(), 2);
    for agent in [&one, &two] {
        let ready = async || {
            let script = agent.script.lock().unwrap();
            let service = script.newest()?.network.services.first()?;
            (service.endpoints.iter().filter(|e| e.ready).count() == 4).then_some(())
        };
        eventually("four ready endpoints in every table", ready).await;
    }
    let again = cluster.deploy(&spec).await;
    assert_eq!((again.changes[0].action, again.revision.0), (ChangeAction::Keep, 0));

    let plan: Plan = cluster.ask(Method::PUT, "/v1/apps/shop/services/web/replicas", "{\"replicas\":1}").await;
    assert_eq!(plan.changes[0].details, ["replicas: 4 → 1"]);
    let detail = cluster.settled("shop").await;
    assert_eq!(detail.replicas.len(), 1);

    let plan: Plan = cluster.ask(Method::DELETE, "/v1/apps/shop", "").await;
    assert_eq!(plan.changes[0].action, ChangeAction::Remove);
    eventually("the app is gone", async || cluster.apps().await.is_empty().then_some(())).await;
    assert!(cluster.replicas().await.is_empty());
    let kinds: BTreeSet<String> = cluster.events().await.into_iter().map(|event| event.kind).collect();
    for kind in ["node.joined", "app.deployed", "replica.placed", "replica.ready", "replica.draining", "app.removed"] {
        assert!(kinds.contains(kind), "{kind} in {kinds:?}");
    }
}

#[tokio::test]
async fn replicas_of_a_dead_node_run_elsewhere_in_three_seconds() {
    let cluster = Cluster::start().await;
    let mut agents = Vec::new();
    for name in ["n1", "n2", "n3"] {
        agents.push(cluster.agent(name).await);
    }
    cluster.deploy(&app("shop", &[("web", service("web:1", 6))])).await;
    let before = cluster.settled("shop").await;
    let on_third: Vec<_> = before.replicas.iter().filter(|r| r.node.as_ref() == Some(&agents[2].name)).collect();
    assert_eq!(on_third.len(), 2);

    let died = Instant::now();
    agents[2].kill();
    let all_elsewhere = async || {
        let replicas = cluster.replicas().await;
        let elsewhere = |r: &&gantry_api::http::Replica| r.ready && r.node.as_ref() != Some(&agents[2].name);
        (replicas.iter().filter(elsewhere).count() == 6).then(|| died.elapsed())
    };
    let took = eventually("six ready replicas elsewhere", all_elsewhere).await;
    // 2 s to be sure, the rest is ours; a busy machine is given a second.
    assert!(took < Duration::from_millis(4_000), "took {took:?}");
    assert!(took > Duration::from_millis(1_500), "given up too early: {took:?}");
    let lost = |nodes: Vec<gantry_api::http::Node>| {
        nodes.iter().any(|n| n.name.as_str() == "n3" && n.state == NodeState::Lost)
    };
    assert!(lost(cluster.nodes().await));

    // It returns: what was replaced is stopped there, then the service is evened out, one replica at a time.
    let old: BTreeSet<_> = on_third.iter().map(|r| r.id.clone()).collect();
    agents[2].script.lock().unwrap().assignments.clear();
    agents[2].connect(&cluster);
    let first = async || agents[2].script.lock().unwrap().assignments.first().cloned();
    let first = eventually("the returned node is told", first).await;
    assert!(first.replicas.iter().all(|replica| !old.contains(&replica.id)));
    let even = async || {
        let replicas = cluster.replicas().await;
        let mut counts: BTreeMap<_, u32> = BTreeMap::new();
        replicas.iter().filter(|r| r.ready).for_each(|r| *counts.entry(r.node.clone()).or_default() += 1);
        (replicas.len() == 6 && counts.len() == 3 && counts.values().all(|count| *count == 2)).then_some(())
    };
    eventually("two replicas on each node again", even).await;
}

#[tokio::test]
async fn a_restarted_scheduler_adopts_what_runs() {
    let mut cluster = Cluster::start().await;
    let (one, two) = (cluster.agent("n1").await, cluster.agent("n2").await);
    cluster.deploy(&app("shop", &[("web", service("web:1", 4))])).await;
    let before = cluster.settled("shop").await;
    let newest = |agent: &Agent| agent.script.lock().unwrap().newest().unwrap().clone();
    let (last_one, last_two) = (newest(&one), newest(&two));
    let events = cluster.events().await;

    cluster.stop().await;
    for agent in [&one, &two] {
        agent.script.lock().unwrap().assignments.clear();
    }
    cluster.again().await;
    let after = cluster.settled("shop").await;
    let ids = |detail: &gantry_api::http::AppDetail| detail.replicas.iter().map(|r| r.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after));
    for (agent, last) in [(&one, last_one), (&two, last_two)] {
        let told = async || agent.script.lock().unwrap().newest().cloned();
        eventually("an assignment after the restart", told).await;
        for assignment in &agent.script.lock().unwrap().assignments {
            assert!(assignment.revision > last.revision, "a revision came again");
            assert_eq!(assignment.replicas, last.replicas, "nothing is started or stopped");
            assert_eq!(assignment.network.services, last.network.services, "no endpoint loses traffic");
        }
    }
    let later = cluster.events().await;
    assert_eq!(later[..events.len()], events[..], "events are kept");
    assert!(later.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
}

#[tokio::test]
async fn joining_is_refused_for_distinct_reasons() {
    let cluster = Cluster::start().await;
    let token = cluster.token(60).await;
    let mut first = Agent::new("n1");
    let refused = |answer: Result<_, (StatusCode, gantry_api::http::ApiError)>| {
        answer.map(|_: gantry_api::wire::JoinResponse| ()).unwrap_err()
    };

    let (status, error) = refused(first.join(&cluster, "wrong").await);
    assert_eq!((status, error.code.as_str()), (StatusCode::FORBIDDEN, "forbidden"));
    assert!(error.message.contains("not known"), "{error:?}");
    assert!(error.hint.is_some());

    let short = cluster.token(1).await;
    let expired = async || match Agent::new("late").join(&cluster, &short.secret).await {
        Err((StatusCode::FORBIDDEN, error)) => Some(error.message),
        _ => None,
    };
    let message = eventually("the token expires", expired).await;
    assert!(message.contains("expired"), "{message}");

    first.join(&cluster, &token.secret).await.unwrap();
    first.join(&cluster, &token.secret).await.unwrap(); // again with the same identity and key: the same node
    let late: Vec<_> = cluster.nodes().await.into_iter().filter(|n| n.name.as_str() == "n1").collect();
    assert_eq!(late.len(), 1);

    let mut namesake = Agent::new("n9");
    namesake.name = "n1".parse().unwrap();
    let (status, error) = refused(namesake.join(&cluster, &token.secret).await);
    assert_eq!((status, error.code.as_str()), (StatusCode::CONFLICT, "conflict"));
    assert!(error.message.contains("held by another node"), "{error:?}");

    let mut impostor = Agent::new("n1");
    let (status, error) = refused(impostor.join(&cluster, &token.secret).await);
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(error.message.contains("another key"), "{error:?}");

    impostor = Agent::new("n2");
    impostor.underlay = first.underlay;
    let (_, error) = refused(impostor.join(&cluster, &token.secret).await);
    assert!(error.message.contains("address"), "{error:?}");
}

#[tokio::test]
async fn over_the_network_only_members_are_served() {
    let cluster = Cluster::start().await;
    let mut agent = cluster.agent("n1").await;
    let get = |path: &str| Request::get(path).header("host", "gantry").body(Full::default()).unwrap();

    for identity in [None, agent.identity()] {
        let mut sender = dial(cluster.address, &cluster.ca_pem(), identity.as_ref()).await.unwrap();
        let answered = answer::<serde_json::Value>(sender.send_request(get("/v1/apps")).await.unwrap()).await;
        assert_eq!(answered.unwrap_err().0, StatusCode::FORBIDDEN);
    }
    let mut sender = dial(cluster.address, &cluster.ca_pem(), None).await.unwrap();
    let request = upgrade_request("/v1/agent/stream", "gantry-agent");
    let answered = answer::<serde_json::Value>(sender.send_request(request).await.unwrap()).await;
    assert_eq!(answered.unwrap_err().0, StatusCode::FORBIDDEN);

    // A certificate of another authority does not even get through TLS.
    let stranger = rcgen::generate_simple_self_signed(vec![agent.id.to_string()]).unwrap();
    let identity = (stranger.cert.pem(), stranger.signing_key.serialize_pem());
    let refused = match dial(cluster.address, &cluster.ca_pem(), Some(&identity)).await {
        Err(_) => true,
        Ok(mut sender) => sender.send_request(upgrade_request("/v1/agent/stream", "gantry-agent")).await.is_err(),
    };
    assert!(refused);

    // A member that says it is another one is cut off.
    agent.kill();
    let mut sender = dial(cluster.address, &cluster.ca_pem(), agent.identity().as_ref()).await.unwrap();
    let response = sender.send_request(upgrade_request("/v1/agent/stream", "gantry-agent")).await.unwrap();
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let hello = gantry_api::wire::Hello {
        node: Agent::new("n2").id.clone(),
        name: "n2".parse().unwrap(),
        version: String::new(),
        underlay: agent.underlay,
        capacity: agent.capacity,
        labels: BTreeMap::new(),
        arch: String::new(),
        kernel: String::new(),
    };
    let mut line = serde_json::to_vec(&ToScheduler::Hello(hello)).unwrap();
    line.push(b'\n');
    io.write_all(&line).await.unwrap();
    let mut rest = Vec::new();
    // Whether it ends with a close or a reset, nothing was said.
    let _ = tokio::time::timeout(PATIENCE, io.read_to_end(&mut rest)).await.expect("the stream is closed");
    assert!(rest.is_empty());

    // A removed node's certificate is worth nothing.
    let lost = async || (cluster.nodes().await[0].state == NodeState::Lost).then_some(());
    eventually("n1 is lost", lost).await;
    let _: serde_json::Value = cluster.ask(Method::DELETE, "/v1/nodes/n1", "").await;
    let mut sender = dial(cluster.address, &cluster.ca_pem(), agent.identity().as_ref()).await.unwrap();
    let request = upgrade_request("/v1/agent/stream", "gantry-agent");
    let (status, error) = answer::<serde_json::Value>(sender.send_request(request).await.unwrap()).await.unwrap_err();
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(error.message.contains("not a member"), "{error:?}");
}

#[tokio::test]
async fn bad_requests_are_refused_with_their_reason() {
    let cluster = Cluster::start().await;
    let _agent = cluster.agent("n1").await;
    let mode = std::fs::metadata(cluster.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let json = |app: &gantry_api::spec::App| serde_json::to_vec(app).unwrap();
    let mut published = service("web:1", 1);
    published.ports.push(PublishedPort { published: 8080, target: 80, protocol: Protocol::Tcp });
    cluster.deploy(&app("first", &[("web", published.clone())])).await;
    let mut huge = service("web:1", 1);
    huge.template.resources.reserve_memory = Bytes(8 << 30);
    let mut ring = [service("a:1", 1), service("b:1", 1)];
    ring[0].depends_on.insert("b".parse().unwrap(), Condition::Healthy);
    ring[1].depends_on.insert("a".parse().unwrap(), Condition::Started);
    let mut lonely = service("web:1", 1);
    lonely.depends_on.insert("db".parse().unwrap(), Condition::Healthy);

    let put = Method::PUT;
    for (why, method, path, body, status, code, words) in [
        ("junk", put.clone(), "/v1/apps/shop", b"{".to_vec(), 400, "invalid", "body"),
        (
            "other name",
            put.clone(),
            "/v1/apps/shop",
            json(&app("other", &[("web", service("a", 1))])),
            400,
            "invalid",
            "other",
        ),
        ("bad name", put.clone(), "/v1/apps/Shop", b"{}".to_vec(), 400, "invalid", "Shop"),
        ("no service", put.clone(), "/v1/apps/shop", json(&app("shop", &[])), 400, "invalid", "at least one"),
        ("large", put.clone(), "/v1/apps/shop", vec![b' '; 2 << 20], 413, "invalid", "larger"),
        ("port", put.clone(), "/v1/apps/shop", json(&app("shop", &[("web", published)])), 409, "conflict", "8080/tcp"),
        (
            "no room",
            put.clone(),
            "/v1/apps/shop",
            json(&app("shop", &[("web", huge)])),
            422,
            "cannot_fit",
            "1 short of memory (n1)",
        ),
        (
            "ring",
            put.clone(),
            "/v1/apps/shop",
            json(&app("shop", &[("a", ring[0].clone()), ("b", ring[1].clone())])),
            400,
            "invalid",
            "→",
        ),
        (
            "unknown",
            put.clone(),
            "/v1/apps/shop",
            json(&app("shop", &[("web", lonely)])),
            400,
            "invalid",
            "no service `db`",
        ),
        ("no app", Method::GET, "/v1/apps/none", vec![], 404, "not_found", "none"),
        (
            "scale nothing",
            put.clone(),
            "/v1/apps/first/services/db/replicas",
            b"{\"replicas\":1}".to_vec(),
            404,
            "not_found",
            "db",
        ),
        (
            "scale to -1",
            put,
            "/v1/apps/first/services/web/replicas",
            b"{\"replicas\":-1}".to_vec(),
            400,
            "invalid",
            "body",
        ),
        ("no path", Method::GET, "/v1/nothing", vec![], 404, "not_found", "path"),
        ("method", Method::POST, "/v1/apps", vec![], 400, "invalid", "method"),
        ("query", Method::DELETE, "/v1/apps/first?volumes=maybe", vec![], 400, "invalid", "volumes"),
        ("ready node", Method::DELETE, "/v1/nodes/n1", vec![], 409, "conflict", "ready"),
        ("no node", Method::DELETE, "/v1/nodes/n7", vec![], 404, "not_found", "n7"),
        ("eternal token", Method::POST, "/v1/tokens", b"{\"ttl_s\":0}".to_vec(), 400, "invalid", "ttl_s"),
        ("logs of nobody", Method::GET, "/v1/logs", vec![], 400, "invalid", "app"),
        ("exec without upgrade", Method::POST, "/v1/exec", b"{}".to_vec(), 400, "invalid", "upgrade"),
    ] {
        let (got, error) = cluster.refused(method, path, body).await;
        assert_eq!((got.as_u16(), error.code.as_str()), (status, code), "{why}: {error:?}");
        assert!(error.message.contains(words), "{why}: {error:?}");
    }
    let names: Vec<_> = cluster.apps().await.into_iter().map(|app| app.name.to_string()).collect();
    assert_eq!(names, ["first"], "nothing was touched");
}

#[tokio::test]
async fn a_rolling_change_drains_before_it_stops() {
    let cluster = Cluster::start().await;
    let agent = cluster.agent("n1").await;
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let name = format!("{order:?}").to_lowercase();
        let mut web = service("web:1", 3);
        web.update.order = order;
        cluster.deploy(&app(&name, &[("web", web.clone())])).await;
        cluster.settled(&name).await;
        agent.script.lock().unwrap().assignments.clear();

        web.template.image = "web:2".to_owned();
        let plan = cluster.deploy(&app(&name, &[("web", web)])).await;
        assert_eq!(plan.changes[0].action, ChangeAction::Replace);
        assert_eq!(plan.changes[0].details, ["image: web:1 → web:2"]);
        let detail = cluster.settled(&name).await;
        assert!(detail.replicas.iter().all(|r| r.image == "web:2" && r.current));

        let script = agent.script.lock().unwrap();
        let mut last: Option<(BTreeSet<_>, BTreeSet<_>)> = None;
        for assignment in &script.assignments {
            let service = assignment.network.services.iter().find(|s| s.app.as_str() == name).unwrap();
            let ready: BTreeSet<_> = service.endpoints.iter().filter(|e| e.ready).map(|e| e.replica.clone()).collect();
            let held: BTreeSet<_> = assignment.replicas.iter().map(|r| r.id.clone()).collect();
            let least = if order == UpdateOrder::StopFirst { 2 } else { 3 };
            assert!(ready.len() >= least, "{order:?}: only {} ready", ready.len());
            if let Some((held_before, ready_before)) = &last {
                for gone in held_before.difference(&held) {
                    assert!(!ready_before.contains(gone), "{gone} was stopped while it was given connections");
                }
            }
            last = Some((held, ready));
        }
    }
}

#[tokio::test]
async fn a_failed_change_is_rolled_back() {
    let cluster = Cluster::start().await;
    let agent = cluster.agent("n1").await;
    agent.script.lock().unwrap().fail.insert("web:bad".to_owned());
    let mut web = service("web:1", 2);
    web.update.on_failure = gantry_api::spec::OnFailure::Rollback;
    cluster.deploy(&app("shop", &[("web", web.clone())])).await;
    cluster.settled("shop").await;
    web.template.image = "web:bad".to_owned();
    cluster.deploy(&app("shop", &[("web", web)])).await;
    let rolled_back = async || {
        let detail = cluster.app("shop").await;
        let service = &detail.summary.services[0];
        let note = service.message.as_ref().is_some_and(|m| m.contains("rolled back") && m.contains("exit code 1"));
        (service.settled && service.image == "web:1" && note).then_some(())
    };
    eventually("web:1 again, with the reason", rolled_back).await;
}

#[tokio::test]
async fn services_start_in_the_order_of_their_dependencies() {
    let cluster = Cluster::start().await;
    let agent = cluster.agent("n1").await;
    {
        let mut script = agent.script.lock().unwrap();
        script.unready.insert("db:1".to_owned());
        script.complete.insert("migrate:1".to_owned());
    }
    let mut migrate = service("migrate:1", 1);
    migrate.depends_on.insert("db".parse().unwrap(), Condition::Healthy);
    let mut web = service("web:1", 1);
    web.depends_on.insert("migrate".parse().unwrap(), Condition::CompletedSuccessfully);
    cluster.deploy(&app("shop", &[("db", service("db:1", 1)), ("migrate", migrate), ("web", web)])).await;
    let waiting = async || {
        let detail = cluster.app("shop").await;
        let message = |index: usize| detail.summary.services[index].message.clone().unwrap_or_default();
        (message(1) == "waits for db to be healthy" && message(2) == "waits for migrate to complete").then_some(())
    };
    eventually("both wait and say for what", waiting).await;
    assert_eq!(cluster.replicas().await.len(), 1);

    // The database becomes ready: a new copy, since a scripted replica never changes.
    agent.script.lock().unwrap().unready.clear();
    let mut spec = cluster.app("shop").await.spec;
    spec.services.get_mut(&"db".parse().unwrap()).unwrap().template.image = "db:2".to_owned();
    cluster.deploy(&spec).await;
    let detail = cluster.settled("shop").await;
    let state = |name: &str| detail.replicas.iter().find(|r| r.name.service.as_str() == name).unwrap().state;
    assert_eq!((state("migrate"), state("web")), (ReplicaState::Completed, ReplicaState::Running));
}

#[tokio::test]
async fn exec_and_logs_go_through_tunnels() {
    let cluster = Cluster::start().await;
    let _agents = (cluster.agent("n1").await, cluster.agent("n2").await);
    cluster.deploy(&app("shop", &[("web", service("web:1", 2))])).await;
    let detail = cluster.settled("shop").await;

    let response = cluster.send(Method::GET, "/v1/logs?app=shop", "").await;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let lines: Vec<LogLine> =
        bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    assert!(lines.windows(2).all(|pair| pair[0].time < pair[1].time), "merged by time");

    // Followed, a replica that comes later is joined.
    let mut body = cluster.send(Method::GET, "/v1/logs?app=shop&follow=true", "").await.into_body();
    let mut text = String::new();
    let _: Plan = cluster.ask(Method::PUT, "/v1/apps/shop/services/web/replicas", "{\"replicas\":3}").await;
    let read = async {
        while text.matches("line 3").count() < 3 {
            let frame = body.frame().await.expect("more lines").unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("lines of three replicas");
    drop(body);

    let exec = ExecRequest {
        replica: detail.replicas[0].id.clone(),
        command: vec!["cat".to_owned()],
        tty: false,
        stdin: true,
        environment: Vec::new(),
        user: None,
        working_dir: None,
        size: None,
    };
    let io = tokio::net::UnixStream::connect(cluster.socket()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut request = upgrade_request("/v1/exec", "gantry-tunnel");
    *request.body_mut() = Full::from(serde_json::to_vec(&exec).unwrap());
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(&Frame::Stdin(b"hello".to_vec()).encode()).await.unwrap();
    io.write_all(&Frame::Stdin(Vec::new()).encode()).await.unwrap();
    let mut bytes = Vec::new();
    tokio::time::timeout(PATIENCE, io.read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(Frame::decode(&mut bytes).unwrap(), Some(Frame::Stdout(b"hello".to_vec())));
    assert_eq!(Frame::decode(&mut bytes).unwrap(), Some(Frame::Exit(7)));
}

#[tokio::test]
async fn events_are_followed_as_they_happen() {
    let cluster = Cluster::start().await;
    let mut body = cluster.send(Method::GET, "/v1/events?follow=true", "").await.into_body();
    let _agent = cluster.agent("n1").await;
    let mut text = String::new();
    let read = async {
        while !text.contains("event: node.ready") {
            let frame = body.frame().await.expect("more events").unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("node.ready is told");
    assert!(text.contains("\"kind\":\"node.joined\""), "{text}");
}
