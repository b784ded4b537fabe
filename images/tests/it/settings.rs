//! What the operator says of registries: mirrors and trust.

use std::fs;
use std::path::Path;

use gantry_images::{
    Digest, Image, ImageError, NoProgress, PullOptions, PullPolicy, Reference, Registries, Result, Store,
};
use rcgen::{KeyPair, SigningKey};
use serde_json::json;

use crate::common::{Built, MANIFEST, assert_tidy, noise, workplace};
use crate::registry::{Fault, Registry};

fn settings(work: &Path, text: &str) -> Registries {
    let file = work.join("registries.toml");
    fs::write(&file, text).unwrap();
    Registries::read(&file).unwrap()
}

fn pull(store: &Store, reference: &Reference, registries: &Registries, policy: PullPolicy) -> Result<Image> {
    let options = PullOptions { registries: registries.clone(), policy, ..PullOptions::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(store.pull(reference, &options, &NoProgress))
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_when_it_fails() {
    let work = workplace("128m");
    let (mirror, registry) = (Registry::start(), Registry::start());
    let built = Built::new(&[noise(1, 1, 300_000), noise(2, 1, 10)]);
    registry.push("1", &built);
    let layer: &'static str = Box::leak(built.layers[0].digest.to_string().into_boxed_str());
    let text = format!("[registry.\"{}\"]\nmirrors = [\"http://{}/copies\"]", registry.address, mirror.address);
    let registries = settings(&work, &text);
    let cut = [Fault::CutAfter(100), Fault::HangUp, Fault::HangUp, Fault::HangUp, Fault::HangUp];
    let cases: [(&str, bool, &[Fault], Option<bool>); 5] = [
        ("it has all", true, &[], Some(false)),
        ("it has nothing", false, &[], Some(true)),
        ("its layer is damaged", true, &[Fault::Corrupt], Some(true)),
        ("its layer breaks off", true, &cut, Some(true)),
        ("it is no registry", true, &[Fault::Html], Some(true)),
    ];
    for (at, (case, filled, faults, registry_asked)) in cases.into_iter().enumerate() {
        mirror.reset();
        registry.reset();
        mirror.state.lock().unwrap().manifests.clear();
        if filled {
            mirror.push("1", &built);
        }
        mirror.fault(layer, faults);
        let store = Store::open(work.join(format!("store{at}"))).unwrap();
        let image = pull(&store, &registry.reference("x:1"), &registries, PullPolicy::Missing).unwrap();
        assert_eq!(image.digest, built.digest(), "{case}");
        assert!(mirror.log()[0].ends_with("/v2/copies/x/manifests/1"), "{case}: {:?}", mirror.log());
        assert_eq!(Some(!registry.log().is_empty()), registry_asked, "{case}: {:?}", registry.log());
        assert_tidy(store.root());
    }
    // Nobody listens there any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!("[registry.\"{}\"]\nmirrors = [\"http://{gone}\"]", registry.address);
    let store = Store::open(work.join("store")).unwrap();
    pull(&store, &registry.reference("x:1"), &settings(&work, &text), PullPolicy::Missing).unwrap();
}

/// RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let one = |group: &[u8]| {
        let bits = (0..3).fold(0u32, |bits, at| (bits << 8) | u32::from(*group.get(at).unwrap_or(&0)));
        let digit = |at: usize| if at <= group.len() { ALPHABET[(bits >> (18 - 6 * at)) as usize & 63] } else { b'=' };
        (0..4).map(|at| char::from(digit(at))).collect::<String>()
    };
    bytes.chunks(3).map(one).collect()
}

/// What `cosign sign --key` leaves in a repository.
pub(crate) fn sign(registry: &Registry, key: &KeyPair, image: Digest, says: Digest) {
    let payload = json!({
        "critical": { "identity": { "docker-reference": "" }, "image": { "docker-manifest-digest": says },
                      "type": "cosign container image signature" },
        "optional": null,
    });
    let payload = payload.to_string().into_bytes();
    let signature = base64(&key.sign(&payload).unwrap());
    let layer = json!({
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": Digest::of(&payload),
        "size": payload.len(), "annotations": { "dev.cosignproject.cosign/signature": signature },
    });
    let config = b"{}".to_vec();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer],
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": 2 },
    });
    let mut state = registry.state.lock().unwrap();
    state.blobs.insert(Digest::of(&payload).to_string(), payload);
    let tag = format!("sha256-{}.sig", image.hex());
    state.manifests.insert(tag, (MANIFEST.to_owned(), manifest.to_string().into_bytes()));
}

#[test]
fn only_what_a_key_has_signed_is_used() {
    let work = workplace("64m");
    let registry = Registry::start();
    let (built, other) = (Built::new(&[noise(1, 1, 100)]), Built::new(&[noise(2, 1, 100)]));
    registry.push("1", &built);
    let keys = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519].map(|kind| KeyPair::generate_for(kind).unwrap());
    for (name, key) in ["one", "two"].into_iter().zip(&keys) {
        fs::write(work.join(format!("{name}.pub")), key.public_key_pem()).unwrap();
    }
    let rule = |name: &str| {
        let file = work.join(format!("{name}.pub"));
        settings(
            &work,
            &format!(
                "[[trust]]\nscope = \"{}/shop\"\nrequire = \"signature\"\nkeys = [\"{}\"]",
                registry.address,
                file.display()
            ),
        )
    };
    let store = Store::open(work.join("store")).unwrap();
    let (reference, free) = (registry.reference("shop/app:1"), registry.reference("free/app:1"));
    let refused = |registries: &Registries, why: &str| {
        let error = pull(&store, &reference, registries, PullPolicy::Missing).unwrap_err();
        assert!(matches!(error, ImageError::Untrusted { .. }), "{why}: {error:?}");
        assert!(error.hint().is_some());
    };
    refused(&rule("one"), "not signed at all");
    assert!(store.images().unwrap().is_empty(), "nothing of it is kept under a name");
    sign(&registry, &keys[0], built.digest(), other.digest());
    refused(&rule("one"), "a signature of another image");
    sign(&registry, &keys[0], built.digest(), built.digest());
    refused(&rule("two"), "signed by another key");
    assert_eq!(pull(&store, &reference, &rule("one"), PullPolicy::Missing).unwrap().digest, built.digest());
    registry.reset();
    pull(&store, &reference, &rule("one"), PullPolicy::Missing).unwrap();
    assert!(registry.log().is_empty(), "verified once: {:?}", registry.log());
    refused(&rule("two"), "here, but the key has changed");
    sign(&registry, &keys[1], built.digest(), built.digest());
    pull(&store, &reference, &rule("two"), PullPolicy::Missing).unwrap();
    pull(&store, &free, &rule("one"), PullPolicy::Missing).unwrap();
}

#[test]
fn places_can_be_pinned_or_refused() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), Built::new(&[noise(1, 1, 100)]));
    registry.push("1", &built);
    let store = Store::open(work.join("store")).unwrap();
    let address = registry.address;
    let text = format!(
        "[[trust]]\nscope = \"*\"\nrequire = \"refuse\"\n[[trust]]\nscope = \"{address}/pinned\"\nrequire = \"digest\"\n\
         [[trust]]\nscope = \"{address}/free\"\nrequire = \"any\""
    );
    let registries = settings(&work, &text);
    let digest = built.digest();
    for (name, good) in [
        ("other:1".to_owned(), false),
        ("pinned:1".to_owned(), false),
        (format!("pinned@{digest}"), true),
        ("pinned:1".to_owned(), false),
        ("free:1".to_owned(), true),
        (format!("other@{digest}"), false),
    ] {
        let pulled = pull(&store, &registry.reference(&name), &registries, PullPolicy::Missing);
        match pulled {
            Ok(_) => assert!(good, "{name}"),
            Err(error) => assert!(!good && matches!(error, ImageError::Untrusted { .. }), "{name}: {error:?}"),
        }
    }
}
