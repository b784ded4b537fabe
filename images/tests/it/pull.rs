//! Pulls from a registry that can be made to misbehave.

use std::fs;
use std::path::Path;

use gantry_images::{
    Credentials, Digest, Image, ImageError, NoProgress, PullOptions, PullPolicy, Reference, Result, SnapshotOptions,
    Store,
};
use serde_json::json;

use crate::common::{Built, Events, Layer, Tar, architecture, assert_tidy, count, noise, workplace};
use crate::registry::{Fault, Login, Registry};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn pull(store: &Store, reference: &Reference, options: &PullOptions) -> Result<Image> {
    runtime().block_on(store.pull(reference, options, &NoProgress))
}

fn always() -> PullOptions {
    PullOptions { policy: PullPolicy::Always, ..PullOptions::default() }
}

fn sample() -> Built {
    let layers =
        [noise(1, 3, 100_000), Layer::zstd(Tar::new().file("a", "zstd")), Layer::plain(Tar::new().file("b", "plain"))];
    Built::new(&layers)
}

fn store(work: &Path, name: &str) -> Store {
    Store::open(work.join(name)).unwrap()
}

#[test]
fn an_image_is_pulled_once_and_asked_for_only_when_wanted() {
    let work = workplace("64m");
    let (registry, built, store) = (Registry::start(), sample(), store(&work, "store"));
    registry.push("1", &built);
    let reference = registry.reference("shop/api:1");
    let events = Events::default();
    let image = runtime().block_on(store.pull(&reference, &PullOptions::default(), &events)).unwrap();
    assert_eq!(
        (image.digest, image.id, image.names.as_slice()),
        (built.digest(), built.id(), &[reference.clone()][..])
    );
    assert_eq!(events.reused(), [false; 3]);
    assert_eq!(events.last_progress().len(), 3);
    assert!(events.last_progress().values().all(|(done, total)| done == total) && events.done());
    let log = registry.log();
    assert_eq!(log[0], "HEAD /v2/shop/api/manifests/1");
    assert_eq!(log.len(), 1 + 1 + 1 + 3, "{log:?}");
    let rootfs = store.snapshot(&image, "c", &SnapshotOptions::default()).unwrap().rootfs;
    assert_eq!(fs::read_to_string(rootfs.join("a")).unwrap(), "zstd");
    assert_eq!(count(&rootfs.join("noise")), 3);
    registry.reset();
    pull(&store, &reference, &PullOptions::default()).unwrap();
    assert!(registry.log().is_empty(), "present: no question at all");
    pull(&store, &reference, &always()).unwrap();
    assert_eq!(registry.log(), ["HEAD /v2/shop/api/manifests/1"], "warm: one question");
    registry.reset();
    let pinned = registry.reference(&format!("shop/api@{}", built.digest()));
    pull(&store, &pinned, &always()).unwrap();
    assert!(registry.log().is_empty(), "a digest cannot move");
    let never = PullOptions { policy: PullPolicy::Never, ..PullOptions::default() };
    assert!(matches!(pull(&store, &registry.reference("other"), &never), Err(ImageError::NotFound(_))));
    assert_tidy(store.root());
}

#[test]
fn a_moved_tag_fetches_only_what_is_new() {
    let work = workplace("64m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let base = noise(1, 1, 50_000);
    registry.push("1", &Built::new(std::slice::from_ref(&base)));
    let reference = registry.reference("app:1");
    let old = pull(&store, &reference, &PullOptions::default()).unwrap();
    registry.push("1", &Built::new(&[base.clone(), noise(2, 1, 1000)]));
    registry.reset();
    let new = pull(&store, &reference, &always()).unwrap();
    assert_ne!(old.digest, new.digest);
    assert!(!registry.log().iter().any(|line| line.contains(&base.digest.to_string())), "{:?}", registry.log());
    assert_eq!(store.image(&reference.to_string()).unwrap().unwrap().digest, new.digest);
}

#[test]
fn the_platform_is_chosen_from_an_index_and_checked() {
    let work = workplace("64m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let other = Built::with(&[noise(3, 1, 10)], json!({}), "s390x");
    let ours = sample();
    let entry = |built: &Built, arch: &str| {
        let mut entry = built.descriptor();
        entry["platform"] = json!({ "os": "linux", "architecture": arch });
        entry
    };
    let index =
        |entries: &[serde_json::Value]| json!({ "schemaVersion": 2, "manifests": entries }).to_string().into_bytes();
    let both = index(&[entry(&other, "s390x"), entry(&ours, architecture())]);
    registry.push("ours", &ours);
    registry.push("other", &other);
    registry.push_index("both", &both);
    registry.push_index("foreign", &index(&[entry(&other, "s390x")]));
    let image = pull(&store, &registry.reference("x:both"), &PullOptions::default()).unwrap();
    assert_eq!((image.digest, image.source_digests.as_slice()), (ours.digest(), &[Digest::of(&both)][..]));
    registry.reset();
    pull(&store, &registry.reference("x:both"), &always()).unwrap();
    assert_eq!(registry.log().len(), 1, "the digest of the index is remembered");
    pull(&store, &registry.reference(&format!("x@{}", Digest::of(&both))), &PullOptions::default()).unwrap();
    assert_eq!(registry.log().len(), 1, "and found by");
    for tag in ["other", "foreign"] {
        let error = pull(&store, &registry.reference(&format!("x:{tag}")), &PullOptions::default()).unwrap_err();
        assert!(matches!(error, ImageError::WrongPlatform { .. }), "{tag}: {error}");
    }
    let options = PullOptions { platform: Some("linux/s390x".parse().unwrap()), ..PullOptions::default() };
    assert_eq!(pull(&store, &registry.reference("x:both"), &options).unwrap().architecture, "s390x");
}

#[test]
fn answers_that_are_wrong_are_named_and_nothing_of_them_is_kept() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), sample());
    registry.push("1", &built);
    type Check = fn(&ImageError) -> bool;
    let again = |fault: Fault| vec![fault; 10];
    let table: Vec<(&str, &'static str, Vec<Fault>, Check)> = vec![
        ("layer damaged", "/blobs/", again(Fault::Corrupt), |e| matches!(e, ImageError::Damaged { .. })),
        ("manifest damaged", "/manifests/sha256", again(Fault::Corrupt), |e| matches!(e, ImageError::Damaged { .. })),
        ("layer too long", "/blobs/", again(Fault::Length(1 << 20)), |e| matches!(e, ImageError::WrongSize { .. })),
        ("layer too short", "/blobs/", again(Fault::Length(5)), |e| matches!(e, ImageError::WrongSize { .. })),
        ("portal for the tag", "/manifests/1", again(Fault::Html), |e| matches!(e, ImageError::NotARegistry { .. })),
        ("portal for the manifest", "/manifests/sha256", again(Fault::Html), |e| {
            matches!(e, ImageError::NotARegistry { .. })
        }),
        ("portal for blobs", "/blobs/", again(Fault::Html), |e| matches!(e, ImageError::NotARegistry { .. })),
        ("no such tag", "/manifests/1", again(Fault::Status(404, "X: y", "")), |e| {
            matches!(e, ImageError::NotInRegistry { .. })
        }),
        ("forbidden", "/manifests/1", again(Fault::Status(403, "X: y", "")), |e| {
            matches!(e, ImageError::Unauthorized { .. })
        }),
        (
            "teapot",
            "/manifests/sha256",
            again(Fault::Status(418, "X: y", r#"{"errors":[{"message":"short and stout"}]}"#)),
            |e| matches!(e, ImageError::Registry { status: 418, detail, .. } if detail == "short and stout"),
        ),
        ("huge manifest", "/manifests/sha256", again(Fault::Length(5 << 20)), |e| {
            matches!(e, ImageError::TooBig { .. })
        }),
    ];
    for (case, path, faults, right) in table {
        let store = store(&work, &format!("store-{}", case.replace(' ', "-")));
        registry.reset();
        registry.fault(path, &faults);
        let error = pull(&store, &registry.reference("x:1"), &PullOptions::default()).expect_err(case);
        assert!(right(&error), "{case}: {error:?}");
        assert!(store.images().unwrap().is_empty(), "{case}");
        for blob in fs::read_dir(store.root().join("blobs/sha256")).unwrap() {
            let path = blob.unwrap().path();
            let digest = Digest::of(&fs::read(&path).unwrap());
            assert_eq!(path.file_name().unwrap().to_str().unwrap(), digest.hex(), "{case}");
        }
        let leases = fs::read_dir(store.root().join("ingest")).unwrap().map(|e| e.unwrap().file_name());
        assert!(!leases.into_iter().any(|name| name.to_str().unwrap().ends_with(".lease")), "{case}");
        registry.reset();
        pull(&store, &registry.reference("x:1"), &PullOptions::default())
            .unwrap_or_else(|e| panic!("{case}, then well: {e}"));
        assert_tidy(store.root());
    }
}

#[test]
fn what_may_pass_is_tried_again_but_not_for_ever() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), sample());
    registry.push("1", &built);
    let unwell = Fault::Status(503, "Retry-After: 0", "");
    for (case, path, faults) in [
        ("unwell", "/manifests/1", vec![unwell.clone(); 3]),
        ("too many", "/blobs/", vec![Fault::Status(429, "Retry-After: 0", ""); 3]),
        ("hung up", "/manifests/sha256", vec![Fault::HangUp; 2]),
        ("cut off", "/blobs/", vec![Fault::CutAfter(1000), Fault::CutAfter(10_000)]),
    ] {
        let store = store(&work, &format!("store-{}", case.replace(' ', "-")));
        registry.reset();
        registry.fault(path, &faults);
        pull(&store, &registry.reference("x:1"), &PullOptions::default()).unwrap_or_else(|e| panic!("{case}: {e}"));
    }
    let broken = store(&work, "store-broken");
    registry.reset();
    registry.fault("/manifests/1", &vec![unwell; 100]);
    let error = pull(&broken, &registry.reference("x:1"), &PullOptions::default()).unwrap_err();
    assert!(matches!(error, ImageError::Registry { status: 503, .. }), "{error}");
    assert_eq!(registry.log().len(), 4);
    registry.reset();
    registry.fault("/manifests/1", &[Fault::Status(429, "Retry-After: 3600", "")]);
    let error = pull(&broken, &registry.reference("x:1"), &PullOptions::default()).unwrap_err();
    assert!(matches!(error, ImageError::Registry { status: 429, .. }), "{error}");
    assert_eq!(registry.log().len(), 1, "an hour is not waited for");
}

#[test]
fn a_download_goes_on_where_it_broke_off() {
    let work = workplace("64m");
    let registry = Registry::start();
    let built = Built::new(&[noise(1, 4, 500_000)]);
    registry.push("1", &built);
    let layer = built.layers[0].digest;
    for (case, no_ranges) in [("ranges", false), ("no ranges", true)] {
        registry.state.lock().unwrap().no_ranges = no_ranges;
        let store = store(&work, &format!("store-{no_ranges}"));
        registry.reset();
        // Once with progress, then three times without: given up, but what came is kept.
        let config = built.id().to_string();
        registry.fault(
            leak(layer.to_string()),
            &[Fault::CutAfter(700_000), Fault::CutAfter(0), Fault::CutAfter(0), Fault::CutAfter(0)],
        );
        let error = pull(&store, &registry.reference("x:1"), &PullOptions::default()).unwrap_err();
        let ImageError::Truncated { got, wanted, .. } = error else { panic!("{case}: {error}") };
        assert!(got > 0 && got <= 700_000 && wanted == built.layers[0].size, "{case}: {got} of {wanted}");
        let part = store.root().join("ingest").join(format!("{}.part", layer.hex()));
        let kept = part.metadata().unwrap().len();
        assert_eq!(kept, got, "{case}");
        registry.reset();
        pull(&store, &registry.reference("x:1"), &PullOptions::default()).unwrap();
        let asked: Vec<String> =
            registry.log().into_iter().filter(|line| line.contains("/blobs/") && !line.contains(&config)).collect();
        assert_eq!(asked, [format!("GET /v2/x/blobs/{layer} bytes={kept}-")], "{case}");
        assert_tidy(store.root());
    }
}

/// Faults are found by static text; tests have few.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[test]
fn a_damaged_beginning_is_fetched_again() {
    let work = workplace("64m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let built = Built::new(&[noise(1, 2, 200_000)]);
    registry.push("1", &built);
    let part = store.root().join("ingest").join(format!("{}.part", built.layers[0].digest.hex()));
    fs::write(&part, vec![0; 100_000]).unwrap();
    let image = pull(&store, &registry.reference("x:1"), &PullOptions::default()).unwrap();
    assert_eq!(image.digest, built.digest());
    let asked: Vec<String> =
        registry.log().into_iter().filter(|line| line.contains(&built.layers[0].digest.to_string())).collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_tidy(store.root());
}

#[test]
fn registries_that_want_a_login_get_one() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), sample());
    registry.push("1", &built);
    let reference = registry.reference("x:1");
    let file = work.join("config.json");
    // `user:secret`
    let auth = json!({ "auths": { registry.address.to_string(): { "auth": "dXNlcjpzZWNyZXQ=" } } });
    fs::write(&file, auth.to_string()).unwrap();
    let basic = "Basic dXNlcjpzZWNyZXQ=".to_owned();
    let from_file = PullOptions { auth_file: Some(file), ..PullOptions::default() };
    let wrong = Some(Credentials { username: "user".into(), password: "wrong".into() });
    let wrong = PullOptions { credentials: wrong, ..PullOptions::default() };
    for (case, login) in [("basic", Login::Basic(basic.clone())), ("bearer", Login::Bearer(basic))] {
        registry.state.lock().unwrap().login = login;
        let store = store(&work, case);
        for (who, options) in [("nobody", &PullOptions::default()), ("a wrong one", &wrong)] {
            let error = pull(&store, &reference, options).unwrap_err();
            assert!(matches!(error, ImageError::Unauthorized { .. }), "{case} {who}: {error:?}");
            assert!(error.hint().unwrap().contains("auths") && !error.to_string().contains("wrong"), "{error}");
        }
        registry.reset();
        assert_eq!(pull(&store, &reference, &from_file).unwrap().digest, built.digest(), "{case}");
        let refused = registry.log().iter().filter(|line| line.contains("manifests/1")).count();
        assert_eq!(refused, 2, "{case}: asked once without and once with: {:?}", registry.log());
    }
    // Open to all with a token, as the large registries are.
    registry.state.lock().unwrap().login = Login::Bearer(String::new());
    pull(&store(&work, "anonymous"), &reference, &PullOptions::default()).unwrap();
}

#[test]
fn a_registry_that_is_not_there_is_told_with_a_hint() {
    let work = workplace("8m");
    let store = store(&work, "store");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = pull(&store, &format!("{free}/x").parse().unwrap(), &PullOptions::default()).unwrap_err();
    assert!(matches!(error, ImageError::Network { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("insecure"), "{error}");
}

#[test]
fn what_cannot_fit_is_refused_before_it_is_fetched() {
    let work = workplace("2m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let built = Built::new(&[noise(1, 3, 1 << 20)]);
    registry.push("1", &built);
    let error = pull(&store, &registry.reference("x:1"), &PullOptions::default()).unwrap_err();
    assert!(matches!(error, ImageError::DiskFull { needed: Some(_), .. }), "{error:?}");
    assert!(!registry.log().iter().any(|line| line.contains(&built.layers[0].digest.to_string())));
}

#[test]
fn a_disk_that_fills_up_while_pulling_is_told_and_tidied() {
    let work = workplace("4m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let zeros = vec![0; 8 << 20];
    let large = Layer::gzip(Tar::new().entry(tar::EntryType::Regular, "zeros", &zeros, |_| {}));
    let built = Built::new(&[noise(1, 1, 100_000), large]);
    registry.push("1", &built);
    let error = pull(&store, &registry.reference("x:1"), &PullOptions::default()).unwrap_err();
    assert!(matches!(&error, ImageError::DiskFull { dir, .. } if *dir == work.join("store")), "{error:?}");
    assert!(store.images().unwrap().is_empty());
    let leases = fs::read_dir(store.root().join("ingest")).unwrap().map(|e| e.unwrap().file_name());
    assert!(!leases.into_iter().any(|name| name.to_str().unwrap().ends_with(".lease")));
}

#[test]
fn pulls_at_once_fetch_every_layer_once() {
    let work = workplace("64m");
    let (registry, built, store) = (Registry::start(), sample(), store(&work, "store"));
    registry.push("1", &built);
    let reference = registry.reference("x:1");
    let options = PullOptions::default();
    let images = runtime().block_on(async {
        let pulls = (0..6).map(|_| store.pull(&reference, &options, &NoProgress));
        futures_util::future::join_all(pulls).await
    });
    assert!(images.iter().all(|image| image.as_ref().unwrap().digest == built.digest()));
    for layer in &built.layers {
        let fetched = registry.log().iter().filter(|line| line.contains(&layer.digest.to_string())).count();
        assert_eq!(fetched, 1, "{}", layer.digest);
    }
    assert_tidy(store.root());
}

#[test]
fn a_pull_can_be_a_task_of_a_daemon() {
    let work = workplace("64m");
    let (registry, built, store) = (Registry::start(), sample(), store(&work, "store"));
    registry.push("1", &built);
    let reference = registry.reference("x:1");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let task = runtime.spawn(async move {
        let options = PullOptions::default();
        store.pull(&reference, &options, &NoProgress).await
    });
    let image = runtime.block_on(task).unwrap().unwrap();
    assert_eq!(image.digest, built.digest());
}

#[test]
fn a_pull_that_is_given_up_leaves_what_it_has_and_no_work_behind() {
    let work = workplace("64m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let built = Built::new(&[noise(1, 2, 300_000)]);
    registry.push("1", &built);
    let layer = leak(built.layers[0].digest.to_string());
    registry.fault(layer, &vec![Fault::CutAfter(100_000); 50]);
    let reference = registry.reference("x:1");
    let options = PullOptions::default();
    runtime().block_on(async {
        let pull = store.pull(&reference, &options, &NoProgress);
        let asked = async {
            while registry.log().iter().filter(|line| line.contains(layer)).count() < 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            done = pull => panic!("not given up: {done:?}"),
            () = asked => {}
        }
    });
    // The runtime has waited for its threads.
    let names: Vec<_> = fs::read_dir(store.root().join("ingest"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, [format!("{}.part", built.layers[0].digest.hex())]);
    registry.reset();
    pull(&store, &reference, &options).unwrap();
    assert_tidy(store.root());
}

#[test]
fn two_blobs_of_the_same_tree_are_one_layer() {
    let work = workplace("64m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let tar = || Tar::new().file("same", &"x".repeat(300_000));
    registry.push("1", &Built::new(&[Layer::gzip(tar()), Layer::zstd(tar())]));
    let reference = registry.reference("x:1");
    let image = pull(&store, &reference, &PullOptions::default()).unwrap();
    assert_eq!(count(&store.root().join("layers")), 1);
    let options = SnapshotOptions::default();
    let rootfs = store.snapshot(&image, "c", &options).unwrap().rootfs;
    assert_eq!(rootfs.join("same").metadata().unwrap().len(), 300_000);
    assert_tidy(store.root());
}
