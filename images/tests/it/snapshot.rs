//! Root file systems: mounted, mounted again, removed; and images that they hold on to.

use std::fs;
use std::os::unix::fs::MetadataExt;

use gantry_images::{Image, ImageError, LoadSource, NoProgress, SnapshotOptions, Store};
use nix::mount::{MntFlags, umount2};

use crate::common::{Built, Layer, Tar, assert_tidy, count, workplace};

fn load(store: &Store, name: &str, content: &str) -> Image {
    let built = Built::new(&[Layer::gzip(Tar::new().file("a", content).file("b", content))]);
    let dir = store.root().with_file_name(format!("layout-{content}"));
    built.write_layout(&dir, name);
    store.load(LoadSource::Path(dir), &NoProgress).unwrap().remove(0)
}

fn unmount(path: &std::path::Path) {
    umount2(path, MntFlags::MNT_DETACH).unwrap();
}

const KEPT: SnapshotOptions =
    SnapshotOptions { volatile: false, read_only: false, size_max: None, ids: None, kind: None };
const VOLATILE: SnapshotOptions =
    SnapshotOptions { volatile: true, read_only: false, size_max: None, ids: None, kind: None };

#[test]
fn a_snapshot_is_mounted_once_and_keeps_what_was_written() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let image = load(&store, "x", "1");
    let first = store.snapshot(&image, "web.1", &KEPT).unwrap();
    fs::write(first.rootfs.join("new"), "mine").unwrap();
    fs::remove_file(first.rootfs.join("a")).unwrap();
    let again = store.snapshot(&image, "web.1", &KEPT).unwrap();
    assert_eq!(again, first);
    unmount(&first.rootfs);
    assert_eq!(count(&first.rootfs), 0, "mounted only once");
    // As after a reboot.
    store.snapshot(&image, "web.1", &KEPT).unwrap();
    assert_eq!(fs::read_to_string(first.rootfs.join("new")).unwrap(), "mine");
    assert!(!first.rootfs.join("a").exists());
    // Others do not see it.
    let other = store.snapshot(&image, "web.2", &KEPT).unwrap();
    assert!(other.rootfs.join("a").exists() && !other.rootfs.join("new").exists());
    let ids: Vec<String> = store.snapshots().unwrap().into_iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(ids, ["web.1", "web.2"]);
    store.remove_snapshot("web.1").unwrap();
    store.remove_snapshot("web.1").unwrap();
    store.remove_snapshot("never-there").unwrap();
    assert!(!first.rootfs.exists() && other.rootfs.join("a").exists());
    assert_tidy(store.root());
}

#[test]
fn a_volatile_snapshot_is_mounted_again_and_starts_anew_after_a_reboot() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let image = load(&store, "x", "1");
    let snapshot = store.snapshot(&image, "c", &VOLATILE).unwrap();
    fs::write(snapshot.rootfs.join("new"), "mine").unwrap();
    unmount(&snapshot.rootfs);
    assert_eq!(store.snapshot(&image, "c", &VOLATILE).unwrap(), snapshot);
    assert_eq!(fs::read_to_string(snapshot.rootfs.join("new")).unwrap(), "mine");
    unmount(&snapshot.rootfs);
    let record = snapshot.rootfs.with_file_name("snapshot.json");
    let text = fs::read_to_string(&record).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    fs::write(&record, text.replace(boot.trim(), "an-earlier-boot")).unwrap();
    store.snapshot(&image, "c", &VOLATILE).unwrap();
    assert!(!snapshot.rootfs.join("new").exists());
    assert!(snapshot.rootfs.join("a").exists());
    assert_tidy(store.root());
}

#[test]
fn an_id_is_a_name_and_belongs_to_one_image() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let (one, two) = (load(&store, "one", "1"), load(&store, "two", "2"));
    for bad in ["", ".", "..", "a/b", "../../x", "-x", "a b", &"a".repeat(200)] {
        assert!(matches!(store.snapshot(&one, bad, &KEPT), Err(ImageError::BadOption { .. })), "{bad}");
        assert!(store.remove_snapshot(bad).is_err(), "{bad}");
    }
    store.snapshot(&one, "c", &KEPT).unwrap();
    let error = store.snapshot(&two, "c", &KEPT).unwrap_err();
    assert!(matches!(&error, ImageError::SnapshotExists { image, .. } if *image == one.digest), "{error}");
}

#[test]
fn an_image_in_use_stays_until_its_last_container_is_gone() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let image = load(&store, "shop/api:1", "1");
    let snapshot = store.snapshot(&image, "api.1", &KEPT).unwrap();
    let error = store.remove("shop/api:1", false).unwrap_err();
    assert_eq!(error.to_string(), "image `shop/api:1` is used by container `api.1`");
    let removed = store.remove("shop/api:1", true).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted.len()), (1, 0));
    assert!(store.images().unwrap().is_empty());
    assert_eq!(fs::read_to_string(snapshot.rootfs.join("a")).unwrap(), "1");
    // The nameless image can still be mounted for its container.
    unmount(&snapshot.rootfs);
    store.snapshot(&image, "api.1", &KEPT).unwrap();
    store.remove_snapshot("api.1").unwrap();
    for dir in ["blobs/sha256", "layers", "images", "containers"] {
        assert_eq!(count(&store.root().join(dir)), 0, "{dir}");
    }
    assert_tidy(store.root());
}

#[test]
fn content_goes_with_its_last_name_and_what_is_shared_stays() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let base = Layer::gzip(Tar::new().file("base", "b"));
    let own = Layer::gzip(Tar::new().file("own", &"o".repeat(5000)));
    for (name, layers) in [("base", vec![base.clone()]), ("top", vec![base.clone(), own.clone()])] {
        Built::new(&layers).write_layout(&work.join(name), name);
        store.load(LoadSource::Path(work.join(name)), &NoProgress).unwrap();
    }
    Built::new(&[base.clone(), own.clone()]).write_layout(&work.join("again"), "other:1");
    let image = store.load(LoadSource::Path(work.join("again")), &NoProgress).unwrap().remove(0);
    let id = image.id.hex();
    assert!(matches!(store.remove(&id[..12], false), Err(ImageError::SeveralNames { .. })));
    let removed = store.remove("other:1", false).unwrap();
    assert_eq!((removed.untagged[0].familiar(), removed.deleted.len(), removed.freed_bytes), ("other:1".into(), 0, 0));
    let removed = store.remove(&id[..12], false).unwrap();
    assert_eq!(removed.untagged[0].familiar(), "top:latest");
    assert!(removed.deleted.contains(&own.digest) && removed.deleted.contains(&own.diff_id));
    assert!(!removed.deleted.contains(&base.digest) && removed.freed_bytes >= 5000, "{removed:?}");
    assert!(store.image("base").unwrap().is_some());
    assert!(matches!(store.remove("top", false), Err(ImageError::NotFound(_))));
    let layers = store.root().join("layers");
    assert_eq!(count(&layers), 1);
    assert_eq!(layers.join(base.diff_id.hex()).metadata().unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_name_moves_to_the_image_that_was_loaded_last() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let (old, new) = (load(&store, "app:1", "1"), load(&store, "app:1", "2"));
    assert_ne!(old.digest, new.digest);
    assert_eq!(store.image("app:1").unwrap().unwrap().digest, new.digest);
    assert_eq!(store.images().unwrap().len(), 1);
    let removed = store.collect().unwrap();
    assert!(removed.deleted.contains(&old.digest) && !removed.deleted.contains(&new.digest));
}
