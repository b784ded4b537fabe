//! A disk that is full, or fills up: refused or undone at once, verified content kept, unused images removed in time.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use gantry_images::{Image, ImageError, LoadSource, NoProgress, PullOptions, SnapshotOptions, Store, Watermarks};
use nix::mount::{MsFlags, mount};
use tar::EntryType;

use crate::common::{Built, Layer, Tar, assert_tidy, count, noise, workplace};
use crate::registry::Registry;

fn pull(store: &Store, registry: &Registry, name: &str) -> Result<Image, ImageError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(store.pull(&registry.reference(name), &PullOptions::default(), &NoProgress))
}

fn load(store: &Store, work: &Path, name: &str, layers: &[Layer]) -> Image {
    let dir = work.join("layouts").join(name);
    Built::new(layers).write_layout(&dir, name);
    let image = store.load(LoadSource::Path(dir.clone()), &NoProgress).unwrap().remove(0);
    fs::remove_dir_all(dir).unwrap();
    image
}

/// A disk of its own for the store, so that what else a test writes does not count.
fn disk(work: &Path, options: &str) {
    fs::create_dir_all(work.join("disk")).unwrap();
    mount(Some("tmpfs"), &work.join("disk"), Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
}

fn grow(work: &Path, options: &str) {
    mount(None::<&str>, &work.join("disk"), None::<&str>, MsFlags::MS_REMOUNT, Some(options)).unwrap();
}

fn assert_no_work_left(store: &Store) {
    let left = fs::read_dir(store.root().join("ingest")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_str().unwrap().ends_with(".lease")).collect();
    assert!(left.is_empty() && count(&store.root().join("trash")) == 0, "{left:?}");
}

#[test]
fn what_cannot_fit_packed_and_unpacked_is_refused_at_once() {
    let work = workplace("64m");
    disk(&work, "size=5m");
    let (registry, store) = (Registry::start(), Store::open(work.join("disk/store")).unwrap());
    // 3 MiB fit, 6 MiB do not.
    let built = Built::new(&[noise(1, 3, 1 << 20)]);
    registry.push("1", &built);
    let begin = Instant::now();
    let error = pull(&store, &registry, "x:1").unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(matches!(error, ImageError::DiskFull { needed: Some(needed), .. } if needed > 6 << 20), "{error:?}");
    assert!(!registry.log().iter().any(|line| line.contains(&built.layers[0].digest.to_string())));
    assert_tidy(store.root());
    grow(&work, "size=32m");
    pull(&store, &registry, "x:1").unwrap();
}

#[test]
fn a_disk_without_inodes_is_refused_before_and_undone_within_a_second() {
    let work = workplace("64m");
    disk(&work, "size=32m,nr_inodes=400");
    let (registry, store) = (Registry::start(), Store::open(work.join("disk/store")).unwrap());
    let files = (0..2000).fold(Tar::new(), |tar, at| tar.file(&format!("f{at}"), ""));
    let (small, many) = (noise(1, 1, 10_000), Layer::gzip(files));
    registry.push("many", &Built::new(&[small.clone(), many.clone()]));
    let layers: Vec<Layer> = (0..80).map(|at| Layer::plain(Tar::new().file(&format!("f{at}"), "x"))).collect();
    registry.push("layers", &Built::new(&layers));
    let error = pull(&store, &registry, "x:layers").unwrap_err();
    assert!(matches!(error, ImageError::DiskFull { .. }), "{error:?}");
    assert!(!registry.log().iter().any(|line| line.contains(&layers[0].digest.to_string())), "nothing is fetched");
    let begin = Instant::now();
    let error = pull(&store, &registry, "x:many").unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert!(matches!(error, ImageError::DiskFull { .. }) && error.hint().unwrap().contains("inodes"), "{error:?}");
    assert!(store.images().unwrap().is_empty());
    assert_no_work_left(&store);
    let free = nix::sys::statvfs::statvfs(store.root()).unwrap().files_available();
    assert!(free > 300, "{free}");
    grow(&work, "size=32m,nr_inodes=10000");
    registry.reset();
    pull(&store, &registry, "x:many").unwrap();
    let again = registry.log().iter().filter(|line| line.contains(&many.digest.to_string())).count();
    assert_eq!(again, 0, "what was fetched and verified is not fetched again: {:?}", registry.log());
    assert_tidy(store.root());
}

#[test]
fn a_disk_that_fills_while_unpacking_is_free_again_within_a_second_and_containers_go_on() {
    let work = workplace("128m");
    disk(&work, "size=24m");
    let (registry, store) = (Registry::start(), Store::open(work.join("disk/store")).unwrap());
    let running = load(&store, &work, "running", &[Layer::gzip(Tar::new().file("a", "1"))]);
    let rootfs = store.snapshot(&running, "c", &SnapshotOptions::default()).unwrap().rootfs;
    // Packed it is nothing; two of them are unpacked at once, and each alone is too large.
    let zeros = |name: &str| Layer::gzip(Tar::new().entry(EntryType::Regular, name, &vec![0; 30 << 20], |_| {}));
    let (one, two) = (zeros("one"), zeros("two"));
    let noise = noise(1, 1, 500_000);
    registry.push("1", &Built::new(&[noise.clone(), one.clone(), two.clone()]));
    let before = nix::sys::statvfs::statvfs(store.root()).unwrap();
    let error = pull(&store, &registry, "x:1").unwrap_err();
    let undone = Instant::now();
    assert!(matches!(&error, ImageError::DiskFull { dir, .. } if *dir == work.join("disk/store")), "{error:?}");
    // All that is kept is packed, verified, and small.
    let deadline = undone + Duration::from_secs(1);
    loop {
        let now = nix::sys::statvfs::statvfs(store.root()).unwrap();
        let kept = (before.blocks_available() - now.blocks_available()) * now.fragment_size();
        if kept < 2 << 20 {
            break;
        }
        assert!(Instant::now() < deadline, "{kept} bytes are still in use");
        std::thread::yield_now();
    }
    assert_no_work_left(&store);
    fs::write(rootfs.join("b"), "2").unwrap();
    assert_eq!(fs::read_to_string(rootfs.join("a")).unwrap(), "1");
    assert_eq!(store.images().unwrap().len(), 1);
    grow(&work, "size=120m");
    pull(&store, &registry, "x:1").unwrap();
    assert_tidy(store.root());
}

#[test]
fn above_the_high_mark_images_go_that_nobody_uses_the_oldest_first() {
    let work = workplace("128m");
    disk(&work, "size=30m");
    let store = Store::open(work.join("disk/store")).unwrap();
    let sized = |seed, name: &str| load(&store, &work, name, &[noise(seed, 1, 2 << 20)]);
    // Each takes 4 MiB, packed and unpacked.
    let (first, used, second, third) = (sized(1, "first"), sized(2, "used"), sized(3, "second"), sized(4, "third"));
    let rootfs = store.snapshot(&used, "c", &SnapshotOptions::default()).unwrap().rootfs;
    let at = |image: &Image, seconds: u64| {
        let file = store.root().join("images").join(image.digest.hex()).join("stack.json");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds);
        fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
    };
    for (image, seconds) in [(&used, 1), (&second, 2), (&first, 3), (&third, 4)] {
        at(image, seconds);
    }
    let names = || -> Vec<String> { store.images().unwrap().iter().map(Image::display_name).collect() };
    let marks = |high_percent, low_percent| Watermarks { high_percent, low_percent };
    // About 53 % is in use.
    assert_eq!(store.relieve(marks(80, 10)).unwrap(), Default::default(), "below the mark nothing goes");
    let removed = store.relieve(marks(50, 45)).unwrap();
    let gone: Vec<String> = removed.untagged.iter().map(|name| name.familiar()).collect();
    assert_eq!(gone, ["second:latest"], "the longest unused, and no more than needed");
    assert!(removed.freed_bytes > 3 << 20, "{removed:?}");
    // Using it makes it new: it is the last to go.
    store.snapshot(&first, "d", &SnapshotOptions::default()).unwrap();
    store.remove_snapshot("d").unwrap();
    at(&third, 5);
    store.relieve(marks(30, 28)).unwrap();
    assert_eq!(names(), ["first:latest", "used:latest"]);
    store.relieve(marks(2, 1)).unwrap();
    assert_eq!(names(), ["first:latest", "used:latest"], "what was just used stays a while");
    store.relieve_as_of(marks(2, 1), SystemTime::now() + Duration::from_secs(3600)).unwrap();
    assert_eq!(names(), ["used:latest"], "a container uses it");
    assert_eq!(count(&rootfs.join("noise")), 1);
    assert_tidy(store.root());
}

#[test]
fn usage_counts_what_is_there_and_prune_frees_what_it_says() {
    let work = workplace("128m");
    disk(&work, "size=64m");
    let store = Store::open(work.join("disk/store")).unwrap();
    let base = noise(1, 1, 1 << 20);
    load(&store, &work, "base", std::slice::from_ref(&base));
    let top = load(&store, &work, "top", &[base, noise(2, 1, 2 << 20)]);
    load(&store, &work, "other", &[noise(3, 1, 3 << 20)]);
    let rootfs = store.snapshot(&top, "c", &SnapshotOptions::default()).unwrap().rootfs;
    fs::write(rootfs.join("written"), vec![1; 1 << 20]).unwrap();
    let usage = store.usage().unwrap();
    let near = |bytes: u64, mib: u64| bytes.abs_diff(mib << 20) < 600_000;
    assert_eq!((usage.images.count, usage.images.active, usage.containers.count), (3, 1, 1));
    assert!(near(usage.images.bytes, 12), "shared layers count once: {usage:?}");
    assert!(near(usage.images.reclaimable_bytes, 6), "{usage:?}");
    assert!(near(usage.containers.bytes, 1), "{usage:?}");
    let free = || {
        let stat = nix::sys::statvfs::statvfs(store.root()).unwrap();
        stat.blocks_available() * stat.fragment_size()
    };
    let before = free();
    let removed = store.prune(gantry_images::Prune::Unused).unwrap();
    assert!(near(removed.freed_bytes, 6) && near(free() - before, 6), "{removed:?}");
    let left: Vec<String> = store.images().unwrap().iter().map(Image::display_name).collect();
    assert_eq!(left, ["top:latest"]);
    assert_eq!(store.usage().unwrap().images.reclaimable_bytes, 0);
}
