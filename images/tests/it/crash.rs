//! Processes that are killed, and hosts that lose their power, at random moments of a pull or a load.
//!
//! The moments are seeded; `GANTRY_CRASHES` says how many there are for each of these, `GANTRY_FUZZ_SEED` which.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_images::{Digest, Image, LoadSource, NoProgress, PullOptions, SnapshotOptions, Store};

use crate::common::{Built, Layer, Tar, assert_tidy, count, noise, workplace};
use crate::concurrent::{child, finish};
use crate::registry::Registry;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Moments in a span of time.
struct Moments {
    state: u64,
    span: Duration,
}

impl Moments {
    fn in_span(span: Duration) -> Self {
        Self { state: number("GANTRY_FUZZ_SEED", 0).wrapping_add(0x9e37_79b9_7f4a_7c15), span }
    }

    fn next(&mut self) -> Duration {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.span * u32::try_from(self.state >> 44).unwrap() / (1 << 20)
    }
}

/// How many moments are tried.
fn crashes(in_ci: u64) -> u64 {
    number("GANTRY_CRASHES", in_ci)
}

/// A store directory and what is to be in it: several layers, of many files and of few.
fn built() -> Built {
    let many = (0..300).fold(Tar::new().dir("many", 0o755), |tar, at| tar.file(&format!("many/{at}"), "content"));
    Built::new(&[
        noise(1, 3, 1_500_000),
        noise(2, 4, 300_000),
        Layer::gzip(many),
        Layer::zstd(Tar::new().file("z", "z")),
    ])
}

fn kill_at(mut child: Child, moment: Duration) {
    // The moment is what is tested, so here, and only here, time is let pass.
    std::thread::sleep(moment);
    // Ended already is a moment too.
    let _ = child.kill();
    child.wait().unwrap();
}

fn pull(store: &Store, registry: &Registry) -> Image {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(store.pull(&registry.reference("app:1"), &PullOptions::default(), &NoProgress)).unwrap()
}

/// Whatever happened: it opens, what is listed is whole, and nothing of dead processes is left.
fn assert_sound(dir: &Path, case: &str) -> Store {
    let store = Store::open(dir).unwrap_or_else(|error| panic!("{case}: {error}"));
    for image in store.images().unwrap() {
        let found = store.verify(&image).unwrap();
        assert!(found.damage.is_empty() && found.files > 300, "{case}: {found:?}");
        store.snapshot(&image, "check", &SnapshotOptions::default()).unwrap();
        store.remove_snapshot("check").unwrap();
    }
    let index: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    let listed: BTreeSet<&str> = entries.iter().map(|entry| entry["digest"].as_str().unwrap()).collect();
    assert_eq!(listed.len(), store.images().unwrap().len(), "{case}: one is half");
    for blob in fs::read_dir(dir.join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        assert!(path.ends_with(Digest::of(&fs::read(&path).unwrap()).hex()), "{case}: {} is half", path.display());
    }
    let left: Vec<String> = fs::read_dir(dir.join("ingest"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".lease"))
        .collect();
    assert!(left.is_empty() && count(&dir.join("trash")) == 0, "{case}: {left:?}");
    store
}

/// With the image gone, nothing of it is left: neither what was committed nor what was begun.
fn assert_no_leak(store: &Store, case: &str) {
    for image in store.images().unwrap() {
        store.remove(&image.digest.to_string(), true).unwrap();
    }
    store.collect().unwrap();
    for dir in ["blobs/sha256", "layers", "images", "containers"] {
        assert_eq!(count(&store.root().join(dir)), 0, "{case}: {dir}");
    }
    assert_tidy(store.root());
}

/// Bytes of the image's layers that the store need not fetch any more.
fn kept(dir: &Path, built: &Built) -> u64 {
    let of = |layer: &Layer| {
        let blob = dir.join("blobs/sha256").join(layer.digest.hex());
        let part = dir.join("ingest").join(format!("{}.part", layer.digest.hex()));
        if blob.exists() { layer.size } else { part.metadata().map_or(0, |meta| meta.len()).min(layer.size) }
    };
    built.layers.iter().map(of).sum()
}

#[test]
fn a_pull_killed_at_any_moment_leaves_a_sound_store_and_goes_on() {
    let work = workplace("512m");
    let (registry, built) = (Registry::start(), built());
    registry.push("1", &built);
    let reference = registry.reference("app:1");
    let start = || child(&format!("pull /mnt/store {reference}")).stderr(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    finish(child(&format!("pull /mnt/whole {reference}")).spawn().unwrap());
    let mut moments = Moments::in_span(begin.elapsed());
    let size: u64 = built.layers.iter().map(|layer| layer.size).sum();
    let dir = work.join("store");
    let (mut gone_on, mut whole) = (0, 0);
    for at in 0..crashes(24) {
        let moment = moments.next();
        let case = format!("kill {at} after {moment:?}");
        kill_at(start(), moment);
        let store = assert_sound(&dir, &case);
        let missing = size - kept(&dir, &built);
        gone_on += u32::from(missing > 0 && missing < size);
        whole += u32::from(!store.images().unwrap().is_empty());
        registry.reset();
        assert_eq!(pull(&store, &registry).digest, built.digest(), "{case}");
        let fetched = registry.state.lock().unwrap().layer_bytes(&built);
        // A hundredth, and a piece for each layer.
        let more = size / 100 + built.layers.len() as u64 * (256 << 10);
        assert!(fetched <= missing + more, "{case}: {fetched} bytes fetched, {missing} were missing");
        assert_sound(&dir, &case);
        assert_no_leak(&store, &case);
    }
    println!("{gone_on} went on in the middle, {whole} were whole");
}

#[test]
fn a_load_killed_at_any_moment_leaves_a_sound_store_and_can_be_repeated() {
    let work = workplace("512m");
    let built = built();
    built.write_layout(&work.join("layout"), "app:1");
    fs::write(work.join("archive.tar"), built.docker_archive(&["app:1"])).unwrap();
    for source in ["layout", "archive.tar"] {
        let task = |store: &str| format!("load /mnt/{store} /mnt/{source}");
        let begin = Instant::now();
        finish(child(&task(&format!("whole-{source}"))).spawn().unwrap());
        let mut moments = Moments::in_span(begin.elapsed());
        let dir = work.join("store");
        for at in 0..crashes(10) {
            let moment = moments.next();
            let case = format!("{source}, kill {at} after {moment:?}");
            kill_at(child(&task("store")).stderr(Stdio::null()).spawn().unwrap(), moment);
            let store = assert_sound(&dir, &case);
            let images = store.load(LoadSource::Path(work.join(source)), &NoProgress).unwrap();
            assert_eq!(images[0].id, built.id(), "{case}");
            assert_sound(&dir, &case);
            assert_no_leak(&store, &case);
        }
    }
}

/// A disk whose content can be copied at any moment, as if the power had failed then.
///
/// An ext4 in a file, in an XFS in a file in memory: XFS copies a file at one moment (`FICLONE`), and of the ext4 only
/// what it has written to its disk by then is in the copy. What was not synced is lost, as it would be.
struct Disk {
    work: PathBuf,
}

impl Disk {
    /// `None` if the tools for it are not there.
    fn new(work: &Path) -> Option<Self> {
        let disk = Self { work: work.to_path_buf() };
        for dir in ["xfs", "disk", "after"] {
            fs::create_dir(work.join(dir)).unwrap();
        }
        fs::File::create(work.join("xfs.img")).unwrap().set_len(600 << 20).unwrap();
        let there = disk.run("mkfs.xfs", &["-q", "-m", "reflink=1", "xfs.img"])
            && disk.run("mount", &["-o", "loop", "xfs.img", "xfs"]);
        if !there {
            println!("skipped: there is no XFS (Debian: xfsprogs), or no loop device");
            return None;
        }
        fs::File::create(work.join("xfs/now.img")).unwrap().set_len(160 << 20).unwrap();
        assert!(disk.run("mkfs.ext4", &["-q", "-F", "xfs/now.img"]));
        assert!(disk.run("mount", &["-o", "loop", "xfs/now.img", "disk"]));
        Some(disk)
    }

    fn run(&self, program: &str, words: &[&str]) -> bool {
        let mut command = Command::new(program);
        command.args(words).current_dir(&self.work).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// What would be there after the power has failed now and come back, at `after`.
    fn power_cut(&self) -> PathBuf {
        assert!(self.run("cp", &["--reflink=always", "xfs/now.img", "xfs/then.img"]));
        assert!(self.run("mount", &["-o", "loop", "xfs/then.img", "after"]));
        self.work.join("after/store")
    }

    fn forget(&self) {
        assert!(self.run("umount", &["after"]));
        fs::remove_file(self.work.join("xfs/then.img")).unwrap();
    }
}

#[test]
fn a_power_cut_at_any_moment_leaves_a_sound_store_that_goes_on() {
    let work = workplace("1g");
    let Some(disk) = Disk::new(&work) else {
        return;
    };
    let (registry, built) = (Registry::start(), built());
    registry.push("1", &built);
    let reference = registry.reference("app:1");
    let task = format!("pull /mnt/disk/store {reference}");
    let begin = Instant::now();
    finish(child(&task).spawn().unwrap());
    let mut moments = Moments::in_span(begin.elapsed());
    // What is told to be done is done: not a second goes by.
    let store = assert_sound(&disk.power_cut(), "after the end");
    assert_eq!(store.images().unwrap().len(), 1, "the pull had ended");
    drop(store);
    disk.forget();
    for at in 0..crashes(8) {
        fs::remove_dir_all(work.join("disk/store")).unwrap();
        let mut pulling = child(&task).stderr(Stdio::null()).spawn().unwrap();
        let moment = moments.next();
        let case = format!("cut {at} after {moment:?}");
        // As above: the moment is what is tested.
        std::thread::sleep(moment);
        let dir = disk.power_cut();
        pulling.wait().unwrap();
        let store = assert_sound(&dir, &case);
        assert_eq!(pull(&store, &registry).digest, built.digest(), "{case}");
        assert_sound(&dir, &case);
        assert_no_leak(&store, &case);
        drop(store);
        disk.forget();
    }
}

#[test]
fn what_was_loaded_tagged_or_removed_is_so_after_a_power_cut() {
    let work = workplace("1g");
    let Some(disk) = Disk::new(&work) else {
        return;
    };
    let built = built();
    built.write_layout(&work.join("layout"), "app:1");
    let store = Store::open(work.join("disk/store")).unwrap();
    store.load(LoadSource::Path(work.join("layout")), &NoProgress).unwrap();
    let names = |store: &Store| -> Vec<String> {
        let images = store.images().unwrap();
        let mut all: Vec<String> = images.iter().flat_map(|image| &image.names).map(|name| name.familiar()).collect();
        all.sort();
        all
    };
    let after = |case: &str, expected: &[&str]| {
        let found = assert_sound(&disk.power_cut(), case);
        assert_eq!(names(&found), expected, "{case}");
        drop(found);
        disk.forget();
    };
    after("loaded", &["app:1"]);
    store.tag("app:1", &"app:2".parse().unwrap()).unwrap();
    after("tagged", &["app:1", "app:2"]);
    let image = store.images().unwrap().remove(0);
    let rootfs = store.snapshot(&image, "kept", &SnapshotOptions::default()).unwrap().rootfs;
    fs::write(rootfs.join("mine"), "mine").unwrap();
    fs::File::open(rootfs.join("mine")).unwrap().sync_all().unwrap();
    let then = Store::open(disk.power_cut()).unwrap();
    let again = then.remount("kept").unwrap();
    assert_eq!(fs::read_to_string(again.join("mine")).unwrap(), "mine", "what the container synced");
    then.remove_snapshot("kept").unwrap();
    drop(then);
    disk.forget();
    store.remove_snapshot("kept").unwrap();
    store.remove("app:1", false).unwrap();
    after("one name removed", &["app:2"]);
    store.remove("app:2", false).unwrap();
    after("removed", &[]);
}
