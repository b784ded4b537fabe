//! Sending images, giving them names, saving them, and what takes room.

use std::fs;

use gantry_images::{
    Image, ImageError, LoadSource, NoProgress, Prune, PullOptions, Reference, Removed, SnapshotOptions, Store,
};
use serde_json::json;

use crate::common::{Built, Layer, Tar, architecture, assert_tidy, noise, workplace};
use crate::registry::{Fault, Login, Registry};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn load(store: &Store, built: &Built, name: &str) -> Image {
    let dir = store.root().with_file_name(format!("layout-{}", built.digest().short()));
    built.write_layout(&dir, name);
    store.load(LoadSource::Path(dir), &NoProgress).unwrap().remove(0)
}

fn push(store: &Store, name: &str, target: &Reference) -> Result<(), ImageError> {
    runtime().block_on(store.push(name, target, &PullOptions::default(), &NoProgress)).map(drop)
}

#[test]
fn a_piece_that_breaks_off_is_taken_up_where_it_broke() {
    let work = workplace("128m");
    let (registry, store) = (Registry::start(), Store::open(work.join("store")).unwrap());
    let built = Built::new(&[noise(1, 1, 9 << 20)]);
    load(&store, &built, "app:1");
    registry.fault("/blobs/uploads/0", &[Fault::HangUp, Fault::Status(503, "X: y", "")]);
    push(&store, "app:1", &registry.reference("shop/app:1")).unwrap();
    let state = registry.state.lock().unwrap();
    assert_eq!(state.blobs[&built.layers[0].digest.to_string()], built.layers[0].blob);
    assert_eq!(state.manifests["1"].1, built.manifest);
}

#[test]
fn a_push_logs_in_and_a_refusal_is_told() {
    let work = workplace("64m");
    let (registry, store) = (Registry::start(), Store::open(work.join("store")).unwrap());
    load(&store, &Built::new(&[noise(1, 1, 100)]), "app:1");
    registry.state.lock().unwrap().login = Login::Basic("Basic dTpw".into());
    let target = registry.reference("app:1");
    let error = push(&store, "app:1", &target).unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error:?}");
    let credentials = gantry_images::Credentials { username: "u".into(), password: "p".into() };
    let options = PullOptions { credentials: Some(credentials), ..PullOptions::default() };
    runtime().block_on(store.push("app:1", &target, &options, &NoProgress)).unwrap();
    registry.fault(
        "/manifests/",
        &[Fault::Status(400, "X: y", r#"{"errors":[{"code":"MANIFEST_INVALID","message":"no"}]}"#)],
    );
    let error = runtime().block_on(store.push("app:1", &target, &options, &NoProgress)).unwrap_err();
    assert!(error.to_string().contains("no") && matches!(error, ImageError::Registry { status: 400, .. }), "{error}");
    assert!(matches!(push(&store, "absent", &target), Err(ImageError::NotFound(_))));
    assert_tidy(store.root());
}

#[test]
fn a_name_moves_and_the_image_that_had_it_stays() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let one = load(&store, &Built::new(&[noise(1, 1, 100)]), "one:1");
    let two = load(&store, &Built::new(&[noise(2, 1, 100)]), "two:1");
    let name: Reference = "shop/app:stable".parse().unwrap();
    assert_eq!(store.tag("one:1", &name).unwrap().names, ["one:1".parse().unwrap(), name.clone()]);
    assert_eq!(store.tag(&two.id.short(), &name).unwrap().digest, two.digest);
    store.tag("two:1", &"one:1".parse().unwrap()).unwrap();
    let nameless = store.images().unwrap().into_iter().find(|image| image.digest == one.digest).unwrap();
    assert_eq!(nameless.names, []);
    let pinned = format!("app@{}", one.digest).parse().unwrap();
    assert!(matches!(store.tag("two:1", &pinned), Err(ImageError::BadReference { .. })));
    assert!(matches!(store.tag("absent", &name), Err(ImageError::NotFound(_))));
    let removed = store.prune(Prune::Nameless).unwrap();
    assert!(removed.deleted.contains(&one.digest) && removed.untagged.is_empty());
    assert_eq!(store.images().unwrap().len(), 1);
}

#[test]
fn what_is_saved_is_loaded_again_and_always_the_same() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let shared = noise(1, 1, 1000);
    let one = load(&store, &Built::new(&[shared.clone(), noise(2, 1, 10)]), "one:1");
    let two = load(&store, &Built::new(&[shared, Layer::zstd(Tar::new().file("a", "b"))]), "two:1");
    store.tag("one:1", &"one:latest".parse().unwrap()).unwrap();
    let save = |names: &[&str]| {
        let mut bytes = Vec::new();
        store.save(names, &mut bytes, "test").map(|()| bytes)
    };
    let both = save(&[&one.digest.to_string(), "two:1"]).unwrap();
    assert_eq!(both, save(&[&one.digest.to_string(), "two:1"]).unwrap());
    let other = Store::open(work.join("other")).unwrap();
    let source = LoadSource::Reader { reader: Box::new(std::io::Cursor::new(both)), name: String::new() };
    other.load(source, &NoProgress).unwrap();
    let names = |store: &Store| {
        let one = |image: Image| (image.digest, image.names);
        store.images().unwrap().into_iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(names(&other), names(&store));
    assert_eq!(names(&store).len(), 2);
    assert!(matches!(save(&["absent"]), Err(ImageError::NotFound(_))));
    fs::remove_file(store.root().join("blobs/sha256").join(two.layers[1].digest.hex())).unwrap();
    assert!(matches!(save(&["two:1"]), Err(ImageError::NotFound(_))));
}

#[test]
fn the_history_is_told_with_sizes() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let layers = [noise(1, 1, 1000), noise(2, 1, 500), noise(3, 1, 7)];
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    let config = json!({
        "architecture": architecture(), "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [
            { "created": "2023-11-14T22:13:20Z", "created_by": "ADD file" },
            { "created_by": "ENV A=1", "empty_layer": true },
            { "created_by": "RUN make", "comment": "by hand" },
        ],
    });
    let image = load(&store, &Built::assemble(&layers, config.to_string().into_bytes()), "app:1");
    let steps = store.history(&image).unwrap();
    let lines: Vec<_> = steps.iter().map(|step| (step.created_by.as_str(), step.size, step.layer)).collect();
    let layer = |at: usize| Some(layers[at].digest);
    assert_eq!(
        lines,
        [("ADD file", 1000, layer(0)), ("ENV A=1", 0, None), ("RUN make", 500, layer(1)), ("", 0, layer(2))]
    );
}

#[test]
fn room_is_counted_once_and_given_back() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let shared = noise(1, 1, 1 << 20);
    let one = load(&store, &Built::new(&[shared.clone(), noise(2, 1, 10)]), "one:1");
    load(&store, &Built::new(&[shared, noise(3, 1, 1 << 20)]), "two:1");
    let rootfs =
        store.snapshot(&one, "c", &SnapshotOptions { volatile: true, ..SnapshotOptions::default() }).unwrap().rootfs;
    fs::write(rootfs.join("big"), vec![1; 300_000]).unwrap();
    let usage = store.usage().unwrap();
    let mib = |bytes: u64| bytes >> 20;
    assert_eq!((usage.images.count, usage.images.active, mib(usage.images.bytes)), (2, 1, 4));
    assert_eq!(mib(usage.images.reclaimable_bytes), 2, "what both share is used");
    assert!((300_000..400_000).contains(&usage.containers.bytes), "{usage:?}");
    assert_eq!(store.prune(Prune::Nameless).unwrap(), Removed::default());
    let removed = store.prune(Prune::Unused).unwrap();
    assert_eq!(removed.untagged, ["two:1".parse().unwrap()]);
    assert_eq!(mib(removed.freed_bytes), 2);
    store.remove_snapshot("c").unwrap();
    store.prune(Prune::Unused).unwrap();
    assert_eq!(store.usage().unwrap().images.bytes, 0);
    assert_tidy(store.root());
}
