//! Joining, and everything that can be wrong with it.

use crate::common::Scheduler;
use gantry_agent::{JoinConfig, JoinError, is_joined, join};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn config(dir: &Path, scheduler: &Scheduler) -> JoinConfig {
    JoinConfig {
        data_dir: dir.to_owned(),
        server: scheduler.address,
        token: scheduler.token.clone(),
        name: "worker-1".parse().unwrap(),
        advertise: Ipv4Addr::LOCALHOST,
    }
}

#[tokio::test]
async fn asking_twice_is_one_join() {
    let scheduler = Scheduler::start().await;
    let dir = tempfile::tempdir().unwrap();
    assert!(!is_joined(dir.path()));
    let first = join(config(dir.path(), &scheduler)).await.unwrap();
    assert!(is_joined(dir.path()) && !first.already);
    let again = join(config(dir.path(), &scheduler)).await.unwrap();
    assert!(again.already && again.node == first.node);
    assert_eq!(scheduler.joins(), 1);
    let identity = dir.path().join("agent/identity");
    assert_eq!(identity.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let other = JoinConfig { name: "worker-2".parse().unwrap(), ..config(dir.path(), &scheduler) };
    assert!(matches!(join(other).await, Err(JoinError::Already { other_cluster: false, .. })));
    let stranger = Scheduler::start().await;
    let error = join(config(dir.path(), &stranger)).await.unwrap_err();
    assert!(matches!(error, JoinError::Already { other_cluster: true, .. }));
    assert!(error.hint().unwrap().contains("agent"));
}

#[tokio::test]
async fn every_failure_has_its_own_words_and_keeps_the_identity() {
    let scheduler = Scheduler::start().await;
    let stranger = Scheduler::start().await;
    let dir = tempfile::tempdir().unwrap();
    let good = config(dir.path(), &scheduler);

    let mut wrong = good.clone();
    wrong.token.secret = "other".to_owned();
    let error = join(wrong).await.unwrap_err();
    assert!(matches!(error, JoinError::Token { .. }), "{error}");
    assert!(error.to_string().contains("unknown token") && error.hint().unwrap().contains("gantry token"));

    let error = join(JoinConfig { token: stranger.token.clone(), ..good.clone() }).await.unwrap_err();
    assert!(matches!(error, JoinError::Fingerprint { .. }), "{error}");
    assert!(error.to_string().contains(&scheduler.token.ca_sha256) && error.hint().is_some());

    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let error = join(JoinConfig { server: nobody, ..good.clone() }).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable(_)), "{error}");

    let error = join(JoinConfig { name: "taken".parse().unwrap(), ..good.clone() }).await.unwrap_err();
    assert!(matches!(error, JoinError::Refused { .. }), "{error}");
    assert_eq!(error.hint().as_deref(), Some("choose another name"));

    let plain = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = plain.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-x\r\n").await;
        }
    });
    let error = join(JoinConfig { server, ..good.clone() }).await.unwrap_err();
    assert!(matches!(error, JoinError::Tls(_)), "{error}");

    assert!(!is_joined(dir.path()));
    let kept = std::fs::read_to_string(dir.path().join("agent/identity")).unwrap();
    let joined = join(good).await.unwrap();
    assert!(kept.contains(joined.node.as_str()), "the identity that was tried with is the one that joined");
}

#[tokio::test]
async fn a_node_cannot_pose_as_the_scheduler() {
    let node = Scheduler::start_as(rcgen::ExtendedKeyUsagePurpose::ClientAuth).await;
    let dir = tempfile::tempdir().unwrap();
    let error = join(config(dir.path(), &node)).await.unwrap_err();
    assert!(matches!(error, JoinError::Tls(_)), "{error}");
    assert_eq!(node.joins(), 0);
}

#[tokio::test]
async fn an_agent_that_has_not_joined_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let config = gantry_agent::Config {
        data_dir: dir.path().join("data"),
        run_dir: dir.path().join("run"),
        cgroup_parent: "/none".to_owned(),
        runtime: "/none".into(),
        init: "/none".into(),
        netd_socket: "/none".into(),
        advertise: Ipv4Addr::LOCALHOST,
        labels: Default::default(),
        capacity: None,
        reserved: Default::default(),
        insecure_registries: Vec::new(),
        watermarks: gantry_images::Watermarks::default(),
    };
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let error = gantry_agent::run(config, stopped).await.unwrap_err();
    assert!(error.hint().unwrap().contains("gantry join"), "{error}");
}
