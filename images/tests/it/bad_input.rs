//! What a registry, a network or an image may do wrong: each is one error that names the image, the endpoint, the digest
//! and what to do, after a bounded number of requests, and nothing of it is kept.
//!
//! Helpers that hang are in `login`, layers that do what they must not in `hostile`.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use gantry_images::{Credentials, Digest, ImageError, NoProgress, PullOptions, Reference, Store};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::common::{Built, Layer, MANIFEST, Tar, assert_tidy, count, noise, workplace};
use crate::registry::{Fault, Login, Registry};

fn pull(store: &Store, reference: &Reference, options: &PullOptions) -> Result<Digest, ImageError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(store.pull(reference, options, &NoProgress)).map(|image| image.digest)
}

/// As the command line shows it.
fn text(error: &ImageError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// An image, spoilt: one layer of noise and what is changed of it.
fn spoilt(change: impl FnOnce(&mut Layer)) -> Built {
    let mut layer = noise(1, 1, 40_000);
    change(&mut layer);
    Built::new(&[layer])
}

/// An image whose manifest is changed after it was made.
fn remade(change: impl FnOnce(&mut Value)) -> Built {
    let mut built = spoilt(|_| {});
    let mut manifest: Value = serde_json::from_slice(&built.manifest).unwrap();
    change(&mut manifest);
    built.manifest = manifest.to_string().into_bytes();
    built
}

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// What an error must say besides the image and its endpoint.
struct Case {
    name: &'static str,
    built: Built,
    /// Blobs that the registry does not have.
    missing: Vec<Digest>,
    fault: Option<(String, Fault)>,
    says: Vec<String>,
}

impl Case {
    fn of(name: &'static str, built: Built, says: &[&str]) -> Self {
        let says = says.iter().map(|word| (*word).to_owned()).collect();
        Self { name, built, missing: Vec::new(), fault: None, says }
    }

    fn answers(name: &'static str, path: &str, fault: Fault, says: &[&str]) -> Self {
        Self { fault: Some((path.to_owned(), fault)), ..Self::of(name, spoilt(|_| {}), says) }
    }

    fn naming(mut self, digest: Digest) -> Self {
        self.says.push(digest.to_string());
        self
    }
}

fn cases() -> Vec<Case> {
    let good = spoilt(|_| {});
    let (layer, config) = (good.layers[0].digest, good.id());
    let blob = format!("/blobs/{layer}");
    let other = Digest::of(b"other");
    let status =
        |code, head, words: &[&str]| Case::answers("a status", "/manifests/", Fault::Status(code, head, ""), words);
    let refusal = r#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#;
    vec![
        Case::of(
            "unknown layer type",
            spoilt(|l| l.media_type = "application/x-squashfs".into()),
            &["application/x-squashfs"],
        )
        .naming(layer),
        Case::of(
            "foreign layer type",
            spoilt(|l| l.media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into()),
            &["outside the registry"],
        )
        .naming(layer),
        Case::of(
            "unknown manifest type",
            remade(|m| m["mediaType"] = json!("application/vnd.acme.thing.manifest+json")),
            &["acme"],
        ),
        Case::of(
            "no container image",
            remade(|m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")),
            &["helm"],
        ),
        Case::of("schema 1", remade(|m| m["schemaVersion"] = json!(1)), &["schema 1"]),
        Case::of(
            "broken digest",
            remade(|m| m["layers"][0]["digest"] = json!("sha256:../../../etc/passwd")),
            &["digest"],
        ),
        Case::of(
            "layers to be fetched elsewhere",
            remade(|m| m["layers"][0]["urls"] = json!(["http://127.0.0.1:1/x"])),
            &["elsewhere"],
        )
        .naming(layer),
        Case::of("size said too small", spoilt(|l| l.size -= 1), &["wrong size"]).naming(layer),
        Case::of("size said too large", spoilt(|l| l.size += 1), &["wrong size"]).naming(layer),
        Case::of("another diff-id", spoilt(|l| l.diff_id = other), &["unpacked layer", "is damaged"])
            .naming(layer)
            .naming(other),
        Case::of(
            "no archive",
            Built::new(&[Layer::raw(other, b"plain text, and no gzip".to_vec(), "tar+gzip")]),
            &["gzip"],
        )
        .naming(Digest::of(b"plain text, and no gzip")),
        Case { missing: vec![layer], ..Case::of("missing layer", spoilt(|_| {}), &["not in registry"]) }.naming(layer),
        Case { missing: vec![config], ..Case::of("missing configuration", spoilt(|_| {}), &["not in registry"]) }
            .naming(config),
        Case::answers("layer damaged", &blob, Fault::Corrupt, &["is damaged"]).naming(layer),
        Case::answers("layer cut off", &blob, Fault::CutAfter(0), &["GET"]).naming(layer),
        Case::answers(
            "portal for the tag",
            "/manifests/1",
            Fault::Html,
            &["does not answer like a registry", "text/html"],
        ),
        Case::answers("portal for a layer", &blob, Fault::Html, &["does not answer like a registry"]).naming(layer),
        status(401, "X: y", &["refuses access"]),
        status(403, "X: y", &["refuses access"]),
        Case::answers(
            "forbidden, with words",
            "/manifests/sha256",
            Fault::Status(403, "X: y", refusal),
            &["not for you"],
        ),
        status(404, "X: y", &["not in registry"]),
        status(418, "X: y", &["418", "manifests/"]),
        status(429, "Retry-After: 3600", &["429"]),
        status(500, "Retry-After: 0", &["500"]),
        status(503, "Retry-After: 0", &["503"]),
    ]
}

#[test]
fn every_error_names_image_endpoint_and_remedy_and_is_found_in_bounded_time() {
    let work = workplace("64m");
    for (at, case) in cases().into_iter().enumerate() {
        let (registry, name) = (Registry::start(), case.name);
        registry.push("1", &case.built);
        for digest in &case.missing {
            registry.state.lock().unwrap().blobs.remove(&digest.to_string());
        }
        if let Some((path, fault)) = case.fault {
            registry.fault(leak(path), &vec![fault; 100]);
        }
        let store = Store::open(work.join(format!("store{at}"))).unwrap();
        let error = pull(&store, &registry.reference("shop/app:1"), &PullOptions::default()).expect_err(name);
        let (shown, hint) = (text(&error), error.hint());
        for word in case.says.iter().map(String::as_str).chain([registry.address.to_string().as_str(), "shop/app"]) {
            assert!(shown.contains(word), "{name}: `{word}` is not in: {shown}");
        }
        assert!(hint.is_some_and(|hint| !hint.is_empty()), "{name} has no hint: {shown}");
        assert_eq!(shown.matches("shop/app:1").count().max(1), 1, "{name} says it twice: {shown}");
        assert!(registry.log().len() <= 20, "{name}: {} requests", registry.log().len());
        assert!(store.images().unwrap().is_empty(), "{name}");
        assert_eq!(count(&store.root().join("layers")), 0, "{name}");
        // What is right may be kept; what is wrong may not.
        for blob in fs::read_dir(store.root().join("blobs/sha256")).unwrap() {
            let path = blob.unwrap().path();
            assert!(path.ends_with(Digest::of(&fs::read(&path).unwrap()).hex()), "{name}");
        }
    }
}

#[test]
fn addresses_in_a_descriptor_are_never_asked() {
    let work = workplace("64m");
    let (registry, elsewhere) = (Registry::start(), Registry::start());
    let built = remade(|m| {
        let digest = m["layers"][0]["digest"].as_str().unwrap().to_owned();
        m["layers"][0]["urls"] = json!([format!("http://{}/v2/x/blobs/{digest}", elsewhere.address)]);
    });
    registry.push("1", &built);
    elsewhere.push("1", &built);
    let store = Store::open(work.join("store")).unwrap();
    pull(&store, &registry.reference("app:1"), &PullOptions::default()).unwrap_err();
    assert!(elsewhere.log().is_empty(), "{:?}", elsewhere.log());
    assert_tidy(store.root());
}

#[test]
fn credentials_do_not_follow_to_another_host_and_redirects_end() {
    let work = workplace("64m");
    let (registry, elsewhere) = (Registry::start(), Registry::start());
    let built = spoilt(|_| {});
    registry.push("1", &built);
    elsewhere.push("1", &built);
    registry.state.lock().unwrap().login = Login::Basic("Basic dXNlcjpzZWNyZXQ=".into());
    let credentials = Some(Credentials { username: "user".into(), password: "secret".into() });
    let options = PullOptions { credentials, ..PullOptions::default() };
    let to = |registry: &Registry| {
        let place = format!("Location: http://{}/v2/app/blobs/{}", registry.address, built.layers[0].digest);
        Fault::Status(307, leak(place), "")
    };
    let layer = leak(format!("/blobs/{}", built.layers[0].digest));
    registry.fault(layer, &[to(&elsewhere)]);
    let store = Store::open(work.join("store")).unwrap();
    assert_eq!(pull(&store, &registry.reference("app:1"), &options).unwrap(), built.digest());
    assert!(elsewhere.log().iter().any(|line| line.contains(layer)), "{:?}", elsewhere.log());
    assert!(elsewhere.state.lock().unwrap().secrets.is_empty(), "{:?}", elsewhere.state.lock().unwrap().secrets);
    assert!(!registry.state.lock().unwrap().secrets.is_empty());
    // Round and round.
    registry.reset();
    registry.fault(layer, &vec![to(&registry); 100]);
    let other = Store::open(work.join("other")).unwrap();
    let error = pull(&other, &registry.reference("app:1"), &options).unwrap_err();
    assert!(text(&error).contains("redirected too often"), "{}", text(&error));
    assert!(registry.log().len() < 30, "{}", registry.log().len());
}

/// Replaces a file of `/etc`, only in the mount namespace of this test.
fn etc(work: &Path, name: &str, content: &str) {
    fs::write(work.join(name), content).unwrap();
    let none = None::<&str>;
    mount(Some(&work.join(name)), Path::new("/etc").join(name).as_path(), none, MsFlags::MS_BIND, none).unwrap();
}

#[test]
fn a_certificate_of_nobody_is_refused_and_the_remedy_named() {
    let work = workplace("64m");
    etc(&work, "hosts", "127.0.0.1 registry.test\n");
    let made = rcgen::generate_simple_self_signed(["registry.test".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            // The client hangs up, as it should.
            let _ = connection.complete_io(&mut stream);
        }
    });
    let store = Store::open(work.join("store")).unwrap();
    let reference: Reference = format!("registry.test:{port}/shop/app:1").parse().unwrap();
    let error = pull(&store, &reference, &PullOptions::default()).unwrap_err();
    let shown = text(&error);
    assert!(shown.contains("certificate") && shown.contains(&reference.to_string()), "{shown}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("`ca`") && hint.contains(&format!("registry.test:{port}")), "{hint}");
}

#[test]
fn a_host_that_has_no_address_is_told() {
    let work = workplace("64m");
    etc(&work, "hosts", "127.0.0.1 localhost\n");
    // Nobody listens there: the kernel says so at once.
    etc(&work, "resolv.conf", "nameserver 127.0.0.1\n");
    let store = Store::open(work.join("store")).unwrap();
    let error = pull(&store, &"no-such.example.com/shop/app:1".parse().unwrap(), &PullOptions::default()).unwrap_err();
    let shown = text(&error);
    for word in ["no-such.example.com", "shop/app:1", "address", "name server"] {
        assert!(shown.contains(word), "`{word}` is not in: {shown}");
    }
    assert!(error.hint().unwrap().contains("resolv.conf"), "{:?}", error.hint());
}

#[test]
fn a_single_image_for_another_processor_is_refused_unless_asked_for() {
    let work = workplace("64m");
    let registry = Registry::start();
    let built = Built::with(&[Layer::gzip(Tar::new().file("a", "1"))], json!({}), "s390x");
    registry.push("1", &built);
    let store = Store::open(work.join("store")).unwrap();
    let error = pull(&store, &registry.reference("app:1"), &PullOptions::default()).unwrap_err();
    assert!(text(&error).contains("linux/s390x") && error.hint().unwrap().contains("platform"), "{error}");
    assert_eq!(count(&store.root().join("layers")), 0, "nothing is fetched for nothing");
    let options = PullOptions { platform: Some("linux/s390x".parse().unwrap()), ..PullOptions::default() };
    assert_eq!(pull(&store, &registry.reference("app:1"), &options).unwrap(), built.digest());
    // An index that promises this processor, and a configuration that says another.
    let mut entry = built.descriptor();
    entry["platform"] = json!({ "os": "linux", "architecture": crate::common::architecture() });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string().into_bytes();
    registry.push_index("lies", &index);
    let other = Store::open(work.join("other")).unwrap();
    let error = pull(&other, &registry.reference("app:lies"), &PullOptions::default()).unwrap_err();
    assert!(matches!(error, ImageError::WrongPlatform { .. }), "{error:?}");
    let kind = registry.state.lock().unwrap().manifests["1"].0.clone();
    assert_eq!(kind, MANIFEST, "a manifest, not an index");
}
