//! Several processes on one store, and processes that are killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gantry_images::{LoadSource, NoProgress, PullOptions, SnapshotOptions, Store};

use crate::common::{Built, assert_tidy, count, noise, workplace};
use crate::registry::Registry;

/// What a child process is to do: `load STORE LAYOUT`, `use STORE ID` or `pull STORE REFERENCE`.
const TASK: &str = "GANTRY_IMAGES_TEST_TASK";

/// The body of a child process; without a task it is an empty test.
#[test]
fn task() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let words: Vec<&str> = task.split(' ').collect();
    let store = Store::open(words[1]).unwrap();
    match words[0] {
        "load" => drop(store.load(LoadSource::Path(PathBuf::from(words[2])), &NoProgress).unwrap()),
        "use" => {
            let image = store.images().unwrap().remove(0);
            store.snapshot(&image, words[2], &SnapshotOptions::default()).unwrap();
            store.remove_snapshot(words[2]).unwrap();
        }
        "pull" => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let options = PullOptions { auth_file: gantry_images::default_auth_file(), ..PullOptions::default() };
            let pulled = runtime.block_on(store.pull(&words[2].parse().unwrap(), &options, &NoProgress));
            pulled.unwrap_or_else(|error| panic!("{error}"));
        }
        other => panic!("{other}"),
    }
}

/// Another process of this test program, in the mount namespace of this thread.
pub(crate) fn child(task: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "concurrent::task", "--nocapture"])
        .env(TASK, task)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn start(task: &str) -> Child {
    child(task).spawn().unwrap()
}

pub(crate) fn finish(child: Child) {
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn image(work: &Path) -> Built {
    let built = Built::new(&[noise(1, 50, 20_000), noise(2, 20, 50_000), noise(3, 1, 3_000_000)]);
    built.write_layout(&work.join("layout"), "app:1");
    built
}

#[test]
fn processes_that_load_the_same_image_at_once_all_succeed() {
    let work = workplace("256m");
    let built = image(&work);
    let children: Vec<Child> = (0..4).map(|_| start("load /mnt/store /mnt/layout")).collect();
    children.into_iter().for_each(finish);
    let store = Store::open(work.join("store")).unwrap();
    let images = store.images().unwrap();
    assert_eq!((images.len(), images[0].digest), (1, built.digest()));
    assert_eq!(count(&store.root().join("layers")), 3);
    assert_tidy(store.root());
}

#[test]
fn processes_that_use_remove_and_collect_at_once_do_not_disturb_each_other() {
    let work = workplace("256m");
    image(&work);
    let store = Store::open(work.join("store")).unwrap();
    store.load(LoadSource::Path(work.join("layout")), &NoProgress).unwrap();
    let mut children: Vec<Child> = (0..4).map(|at| start(&format!("use /mnt/store c{at}"))).collect();
    children.extend((0..2).map(|_| start("load /mnt/store /mnt/layout")));
    for _ in 0..20 {
        store.collect().unwrap();
    }
    children.into_iter().for_each(finish);
    assert!(store.image("app:1").unwrap().is_some());
    assert!(store.snapshots().unwrap().is_empty());
    assert_tidy(store.root());
}

#[test]
fn a_load_that_is_killed_leaves_a_store_that_opens_and_can_go_on() {
    let work = workplace("256m");
    let built = image(&work);
    let begin = Instant::now();
    finish(start("load /mnt/whole /mnt/layout"));
    let whole = begin.elapsed();
    // Spread over the time that a whole load takes, process start included.
    for at in 0..15u32 {
        let dir = work.join("store");
        let mut child = start("load /mnt/store /mnt/layout");
        // The moment of the kill is what is tested, so here, and only here, time is let pass.
        std::thread::sleep(whole * at / 15 + Duration::from_micros(500));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&dir).unwrap();
        for image in store.images().unwrap() {
            store.snapshot(&image, "check", &SnapshotOptions::default()).unwrap();
            store.remove_snapshot("check").unwrap();
        }
        let leases = fs::read_dir(dir.join("ingest")).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(!leases.into_iter().any(|name| name.to_str().unwrap().ends_with(".lease")), "after kill {at}");
        assert_eq!(count(&dir.join("trash")), 0);
        let images = store.load(LoadSource::Path(work.join("layout")), &NoProgress).unwrap();
        assert_eq!(images[0].digest, built.digest());
        let rootfs = store.snapshot(&images[0], "c", &SnapshotOptions::default()).unwrap().rootfs;
        assert_eq!(count(&rootfs.join("noise")), 71, "after kill {at}");
        store.remove_snapshot("c").unwrap();
        assert_tidy(&dir);
        fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn a_pull_that_is_killed_goes_on_where_it_was() {
    let work = workplace("256m");
    let registry = Registry::start();
    let built = Built::new(&[noise(1, 4, 2_000_000), noise(2, 4, 500_000)]);
    registry.push("1", &built);
    let reference = registry.reference("app:1");
    let begin = Instant::now();
    finish(start(&format!("pull /mnt/whole {reference}")));
    let whole = begin.elapsed();
    for at in 0..8u32 {
        let dir = work.join("store");
        let mut child = start(&format!("pull /mnt/store {reference}"));
        // As above: the moment is what is tested.
        std::thread::sleep(whole * (at + 4) / 12);
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&dir).unwrap();
        let mut missing = 0;
        for layer in &built.layers {
            let part = dir.join("ingest").join(format!("{}.part", layer.digest.hex()));
            let kept = part.metadata().map_or(0, |meta| meta.len());
            let whole = dir.join("blobs/sha256").join(layer.digest.hex()).exists();
            missing += if whole { 0 } else { layer.size - kept };
        }
        // What the one who was killed has asked for is read late where the machine is busy.
        registry.wait_quiet();
        registry.reset();
        finish(start(&format!("pull /mnt/store {reference}")));
        assert_eq!(store.image(&reference.to_string()).unwrap().unwrap().digest, built.digest());
        let bytes = registry.state.lock().unwrap().layer_bytes(&built);
        assert!(bytes <= missing, "kill {at}: {bytes} bytes fetched, {missing} were missing");
        assert_tidy(&dir);
        fs::remove_dir_all(&dir).unwrap();
    }
}
