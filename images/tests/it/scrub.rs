//! Damage to unpacked and packed layers: found, named, put back.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use gantry_images::{Image, NoProgress, PullOptions, SnapshotOptions, Store, Verified};
use tar::EntryType;

use crate::common::{Built, Layer, Tar, assert_tidy, noise, tree, workplace};
use crate::registry::Registry;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn sample() -> Built {
    let base = Tar::new()
        .dir("etc", 0o755)
        .file("etc/config", "right")
        .hardlink("etc/same", "etc/config")
        .symlink("etc/link", "config")
        .owned(EntryType::Fifo, "etc/pipe", 0o600, 7, 8)
        .device(EntryType::Char, "etc/null", 1, 3)
        .pax("SCHILY.xattr.user.note", b"kept")
        .file("etc/noted", "x")
        .dir("deep", 0o700)
        .dir("deep/er", 0o750)
        .file("deep/er/file", "down here")
        .file("replaced", "old")
        .file("replaced", "new");
    let upper = Tar::new().file("etc/.wh.config", "").dir("gone", 0o755).file("gone/.wh..wh..opq", "");
    Built::new(&[Layer::gzip(base), Layer::gzip(upper)])
}

fn pulled(registry: &Registry, store: &Store, built: &Built) -> Image {
    registry.push("1", built);
    let reference = registry.reference("app:1");
    runtime().block_on(store.pull(&reference, &PullOptions::default(), &NoProgress)).unwrap()
}

fn layer(store: &Store, built: &Built, at: usize) -> std::path::PathBuf {
    store.root().join("layers").join(built.layers[at].diff_id.hex()).join("fs")
}

fn paths(found: &Verified) -> Vec<String> {
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map_or("-".to_owned(), |p| p.display().to_string());
    found.damage.iter().map(|damage| format!("{}: {}", path(&damage.path), damage.what)).collect()
}

/// A file in place of another, of the same size and time: only its content tells.
fn spoil(path: &Path) {
    let meta = path.metadata().unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[0] ^= 1;
    fs::write(path, bytes).unwrap();
    fs::File::open(path).unwrap().set_modified(meta.modified().unwrap()).unwrap();
}

#[test]
fn every_kind_of_damage_is_found_and_put_back() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), sample());
    let store = Store::open(work.join("store")).unwrap();
    let image = pulled(&registry, &store, &built);
    let fs_dir = layer(&store, &built, 0);
    let (before, time) = (tree(&fs_dir), fs_dir.join("etc").metadata().unwrap().mtime());
    let clean = store.verify(&image).unwrap();
    assert_eq!((paths(&clean), clean.files), (vec![], 12 + 4));
    let rootfs = store.snapshot(&image, "c", &SnapshotOptions::default()).unwrap().rootfs;
    type Breakage<'a> = (&'a str, fn(&Path), &'a [&'a str]);
    let table: &[Breakage<'_>] = &[
        ("a bit", |d| spoil(&d.join("etc/config")), &["etc/config: its content has changed"]),
        ("through its other name", |d| spoil(&d.join("etc/same")), &["etc/config: its content has changed"]),
        (
            "cut off",
            |d| fs::write(d.join("replaced"), "").unwrap(),
            &["replaced: its size, target or number has changed"],
        ),
        ("lost", |d| fs::remove_file(d.join("etc/noted")).unwrap(), &["etc/noted: missing"]),
        ("a tree lost", |d| fs::remove_dir_all(d.join("deep")).unwrap(), &["deep: missing"]),
        ("added", |d| fs::write(d.join("etc/more"), "x").unwrap(), &["etc/more: not part of the layer"]),
        ("a tree added", |d| fs::create_dir_all(d.join("more/and/more")).unwrap(), &["more: not part of the layer"]),
        (
            "opened up",
            |d| fs::set_permissions(d.join("deep"), PermissionsExt::from_mode(0o755)).unwrap(),
            &["deep: its mode or owner has changed"],
        ),
        (
            "given away",
            |d| chown(d.join("etc/pipe"), Some(0), None).unwrap(),
            &["etc/pipe: its mode or owner has changed"],
        ),
        (
            "another target",
            |d| {
                fs::remove_file(d.join("etc/link")).unwrap();
                symlink("/etc/passwd", d.join("etc/link")).unwrap();
            },
            &["etc/link: its size, target or number has changed"],
        ),
        (
            "a directory became a link",
            |d| {
                fs::remove_dir_all(d.join("deep")).unwrap();
                symlink("etc", d.join("deep")).unwrap();
            },
            &["deep: something else is there"],
        ),
        (
            "no longer one file",
            |d| {
                fs::remove_file(d.join("etc/same")).unwrap();
                fs::copy(d.join("etc/config"), d.join("etc/same")).unwrap();
            },
            &["etc/same: no longer the same file as its other name"],
        ),
        (
            "an attribute",
            |d| {
                rustix_remove(&d.join("etc/noted"));
            },
            &["etc/noted: its extended attributes have changed"],
        ),
    ];
    for (why, spoil, expected) in table {
        spoil(&fs_dir);
        let found = store.verify(&image).unwrap();
        assert_eq!(paths(&found), *expected, "{why}");
        runtime().block_on(store.repair(&image, &found, &PullOptions::default(), &NoProgress)).unwrap();
        assert_eq!(paths(&store.verify(&image).unwrap()), Vec::<String>::new(), "{why}");
        assert_eq!(tree(&fs_dir), before, "{why}");
        assert_eq!(fs_dir.join("etc").metadata().unwrap().mtime(), time, "{why}");
    }
    assert_eq!(fs::read_to_string(rootfs.join("deep/er/file")).unwrap(), "down here", "a container sees it");
    registry.reset();
    assert!(registry.log().is_empty());
    assert_tidy(store.root());
}

fn rustix_remove(path: &Path) {
    let name = c"user.note";
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: two strings that end with a zero byte and live through the call.
    #[allow(unsafe_code)]
    let done = unsafe { nix::libc::removexattr(path.as_ptr(), name.as_ptr()) };
    assert_eq!(done, 0);
}

#[test]
fn a_packed_layer_that_is_damaged_too_is_fetched_again() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), Built::new(&[noise(1, 2, 5000), noise(2, 2, 5000)]));
    let store = Store::open(work.join("store")).unwrap();
    let image = pulled(&registry, &store, &built);
    let blob = store.root().join("blobs/sha256").join(built.layers[1].digest.hex());
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::set_permissions(&blob, PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(&blob, bytes).unwrap();
    spoil(&layer(&store, &built, 1).join("noise/2-0"));
    let found = store.verify(&image).unwrap();
    assert_eq!(paths(&found), ["-: its packed form is damaged", "noise/2-0: its content has changed"]);
    registry.reset();
    runtime().block_on(store.repair(&image, &found, &PullOptions::default(), &NoProgress)).unwrap();
    assert_eq!(paths(&store.verify(&image).unwrap()), Vec::<String>::new());
    assert_eq!(registry.log().len(), 1, "only that layer: {:?}", registry.log());
    assert_tidy(store.root());
}

#[test]
fn a_layer_without_its_list_is_told_and_gets_a_new_one() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), sample());
    let store = Store::open(work.join("store")).unwrap();
    let image = pulled(&registry, &store, &built);
    let list = layer(&store, &built, 0).with_file_name("files");
    for spoil in [|path: &Path| fs::remove_file(path), |path: &Path| fs::write(path, "nonsense")] {
        spoil(&list).unwrap();
        let found = store.verify(&image).unwrap();
        assert_eq!(paths(&found), ["-: its list of files is damaged"]);
        runtime().block_on(store.repair(&image, &found, &PullOptions::default(), &NoProgress)).unwrap();
        assert_eq!(paths(&store.verify(&image).unwrap()), Vec::<String>::new());
    }
    assert_tidy(store.root());
}
