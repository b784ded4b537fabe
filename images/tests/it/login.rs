//! Credentials from programs and from identity tokens.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use gantry_images::{ImageError, NoProgress, PullOptions, Result, Store};
use serde_json::json;

use crate::common::{Built, noise, workplace};
use crate::concurrent::child;
use crate::registry::{Login, Registry};

/// A pull by another process, whose `PATH` has the helper; what it wrote about its failure, if it failed.
fn pulled(work: &Path, reference: &str, config: &serde_json::Value) -> Option<String> {
    fs::create_dir_all(work.join("docker")).unwrap();
    fs::write(work.join("docker/config.json"), config.to_string()).unwrap();
    let path = format!("{}:{}", work.join("bin").display(), std::env::var("PATH").unwrap());
    let mut pull = child(&format!("pull {} {reference}", work.join("store").display()));
    let out = pull.env("PATH", path).env("DOCKER_CONFIG", work.join("docker")).output().unwrap();
    (!out.status.success()).then(|| String::from_utf8_lossy(&out.stderr).into_owned())
}

fn helper(work: &Path, name: &str, script: &str) {
    let path = work.join("bin").join(format!("docker-credential-{name}"));
    fs::create_dir_all(work.join("bin")).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_helper_is_asked_and_its_failures_are_told() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), Built::new(&[noise(1, 1, 100)]));
    registry.push("1", &built);
    registry.state.lock().unwrap().login = Login::Basic("Basic dXNlcjpzZWNyZXQ=".into());
    let (address, reference) = (registry.address.to_string(), registry.reference("x:1").to_string());
    helper(
        &work,
        "good",
        &format!(
            r#"read -r server; [ "$1 $server" = "get {address}" ] && echo '{{"Username":"user","Secret":"secret"}}'"#
        ),
    );
    helper(&work, "none", "echo credentials not found in native keychain; exit 1");
    helper(&work, "bad", "echo the keychain is locked; exit 1");
    helper(&work, "odd", "echo hello");
    // It must not outlive its shell.
    helper(&work, "slow", "exec sleep 60");
    let with = |name: &str| json!({ "credHelpers": { address.clone(): name } });
    for (config, expected) in [
        (with("bad"), Some("`docker-credential-bad` fails: the keychain is locked")),
        (with("odd"), Some("`docker-credential-odd` does not answer with JSON")),
        (with("absent"), Some("`docker-credential-absent` cannot be run: No such file")),
        (with("slow"), Some("`docker-credential-slow` gives no answer within 10 s")),
        (with("../x"), Some("cannot be the name of a credential helper")),
        (with("none"), Some("refuses access")),
        (json!({ "credsStore": "good", "auths": { address.clone(): {} } }), None),
    ] {
        let failure = pulled(&work, &reference, &config);
        match (failure, expected) {
            (Some(text), Some(expected)) => assert!(text.contains(expected), "{config}: {text}"),
            (failure, expected) => assert_eq!((failure, expected), (None, None), "{config}"),
        }
    }
}

#[test]
fn an_identity_token_is_exchanged() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), Built::new(&[noise(1, 1, 100)]));
    registry.push("1", &built);
    registry.state.lock().unwrap().login = Login::Bearer("refresh long".into());
    let store = Store::open(work.join("store")).unwrap();
    let file = work.join("config.json");
    let pull = |token: &str| -> Result<()> {
        let auths = json!({ "auths": { registry.address.to_string(): { "identitytoken": token } } });
        fs::write(&file, auths.to_string()).unwrap();
        let options = PullOptions { auth_file: Some(file.clone()), ..PullOptions::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(store.pull(&registry.reference("x:1"), &options, &NoProgress)).map(drop)
    };
    assert!(matches!(pull("short"), Err(ImageError::Unauthorized { .. })));
    pull("long").unwrap();
}
