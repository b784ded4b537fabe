//! Many who want the same, and layers that come in ranges, slowly, or not at all.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use futures_util::future::join_all;
use gantry_images::{Digest, ImageError, LoadSource, NoProgress, PullOptions, Reference, Store};

use crate::common::{Built, Events, assert_tidy, count, noise, pack, workplace, write_layout};
use crate::concurrent::{child, finish};
use crate::registry::{Fault, Registry};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn asked(registry: &Registry, digest: Digest) -> usize {
    registry.log().iter().filter(|line| line.contains(&digest.to_string())).count()
}

fn store(work: &Path, name: &str) -> Store {
    Store::open(work.join(name)).unwrap()
}

/// Faults are found by static text; tests have few.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[test]
fn ten_pulls_at_once_fetch_and_unpack_once() {
    let work = workplace("256m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let built = Built::new(&[noise(1, 4, 300_000), noise(2, 30, 10_000), noise(3, 1, 50_000), noise(4, 1, 40_000)]);
    registry.push("1", &built);
    let (reference, options) = (registry.reference("x:1"), PullOptions::default());
    let events: Vec<Events> = (0..10).map(|_| Events::default()).collect();
    let pulls = events.iter().map(|events| store.pull(&reference, &options, events));
    let images = runtime().block_on(join_all(pulls));
    assert!(images.iter().all(|image| image.as_ref().unwrap().digest == built.digest()));
    for layer in &built.layers {
        assert_eq!(asked(&registry, layer.digest), 1, "{}", layer.digest);
    }
    let unpacked = events.iter().flat_map(Events::reused).filter(|reused| !reused).count();
    assert_eq!(unpacked, built.layers.len());
    assert_tidy(store.root());
}

#[test]
fn ten_processes_at_once_fetch_once() {
    let work = workplace("256m");
    let registry = Registry::start();
    let built = Built::new(&[noise(1, 4, 300_000), noise(2, 30, 10_000), noise(3, 1, 50_000)]);
    registry.push("1", &built);
    let task = format!("pull /mnt/store {}", registry.reference("x:1"));
    let children: Vec<Child> = (0..10).map(|_| child(&task).spawn().unwrap()).collect();
    children.into_iter().for_each(finish);
    for layer in &built.layers {
        assert_eq!(asked(&registry, layer.digest), 1, "{}", layer.digest);
    }
    assert_tidy(&work.join("store"));
}

#[test]
fn ten_images_on_one_base_fetch_the_base_once() {
    let work = workplace("256m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let base = [noise(1, 4, 300_000), noise(2, 30, 10_000)];
    // Own layers smaller and larger than those of the base: some wait for it first, some have it last.
    let own = (0..10).map(|at| noise(100 + at, 1, 20_000 * (1 + at as usize * 8)));
    let built: Vec<Built> = own.map(|own| Built::new(&[&base[..], &[own]].concat())).collect();
    let references: Vec<Reference> = built
        .iter()
        .enumerate()
        .map(|(at, built)| {
            let tag = format!("{at}");
            registry.push(&tag, built);
            registry.reference(&format!("x:{tag}"))
        })
        .collect();
    let options = PullOptions::default();
    let pulls = references.iter().map(|reference| store.pull(reference, &options, &NoProgress));
    let images = runtime().block_on(join_all(pulls));
    for (image, built) in images.iter().zip(&built) {
        assert_eq!(image.as_ref().unwrap().digest, built.digest());
        assert_eq!(asked(&registry, built.layers[2].digest), 1);
    }
    for layer in &base {
        assert_eq!(asked(&registry, layer.digest), 1, "{}", layer.digest);
    }
    assert_eq!(count(&store.root().join("layers")), 12);
    assert_tidy(store.root());
}

#[test]
fn what_is_complete_is_not_held_back_by_what_is_slow() {
    let work = workplace("64m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let (slow, shared) = (noise(1, 1, 200_000), noise(2, 1, 100_000));
    registry.push("slow", &Built::new(&[slow.clone(), shared.clone()]));
    let other = Built::new(&[shared.clone(), noise(3, 1, 1000)]);
    registry.push("other", &other);
    registry.fault(leak(slow.digest.to_string()), &[Fault::Trickle]);
    let (first, second) = (registry.reference("x:slow"), registry.reference("x:other"));
    let options = PullOptions::default();
    runtime().block_on(async {
        let begun = async {
            while asked(&registry, shared.digest) == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            store.pull(&second, &options, &NoProgress).await
        };
        tokio::select! {
            done = store.pull(&first, &options, &NoProgress) => panic!("it cannot be done: {done:?}"),
            done = begun => assert_eq!(done.unwrap().digest, other.digest()),
        }
    });
    assert_eq!(asked(&registry, shared.digest), 1);
}

#[test]
fn a_byte_at_a_time_is_no_progress() {
    let work = workplace("64m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let built = Built::new(&[noise(1, 2, 100_000)]);
    registry.push("1", &built);
    let reference = registry.reference("x:1");
    let options = PullOptions { patience: Some(Duration::from_millis(300)), ..PullOptions::default() };
    let layer = leak(built.layers[0].digest.to_string());
    registry.fault(layer, &vec![Fault::Trickle; 100]);
    let error = runtime().block_on(store.pull(&reference, &options, &NoProgress)).unwrap_err();
    assert!(matches!(error, ImageError::TooSlow { .. }), "{error:?}");
    assert!(error.to_string().contains(layer) && error.hint().is_some(), "{error}");
    assert_eq!(asked(&registry, built.layers[0].digest), 4, "a bounded number of times");
    registry.reset();
    registry.fault(layer, &[Fault::Trickle]);
    registry.fault("/manifests/1", &[Fault::Trickle]);
    runtime().block_on(store.pull(&reference, &options, &NoProgress)).unwrap();
    assert_tidy(store.root());
}

#[test]
fn a_large_layer_comes_in_ranges_where_the_registry_gives_them() {
    let work = workplace("256m");
    let registry = Registry::start();
    let built = Built::new(&[noise(1, 2, 9 << 20)]);
    let layer = &built.layers[0];
    registry.push("1", &built);
    let (reference, options) = (registry.reference("x:1"), PullOptions::default());
    for (case, no_ranges, wrong_ranges) in
        [("ranges", false, false), ("no ranges", true, false), ("other ranges than asked for", false, true)]
    {
        let store = store(&work, &case.replace(' ', "-"));
        registry.wait_quiet();
        registry.reset();
        let mut state = registry.state.lock().unwrap();
        (state.no_ranges, state.wrong_ranges) = (no_ranges, wrong_ranges);
        drop(state);
        let image = runtime().block_on(store.pull(&reference, &options, &NoProgress)).unwrap();
        assert_eq!(image.digest, built.digest(), "{case}");
        let lines: Vec<String> =
            registry.log().into_iter().filter(|line| line.contains(&layer.digest.to_string())).collect();
        if no_ranges || wrong_ranges {
            assert!(lines.iter().any(|line| !line.contains("bytes=")), "{case}: all at once instead: {lines:?}");
        } else {
            assert!(lines.len() > 16 && lines.iter().all(|line| line.contains("bytes=")), "{case}: {lines:?}");
            assert_eq!(registry.state.lock().unwrap().layer_bytes(&built), layer.size, "each byte once");
        }
        assert_tidy(store.root());
        std::fs::remove_dir_all(store.root()).unwrap();
    }
}

#[test]
fn a_range_that_breaks_off_is_taken_up() {
    let work = workplace("128m");
    let (registry, store) = (Registry::start(), store(&work, "store"));
    let built = Built::new(&[noise(1, 2, 9 << 20)]);
    registry.push("1", &built);
    let faults = [Fault::CutAfter(900_000), Fault::CutAfter(0), Fault::CutAfter(100_000)];
    registry.fault(leak(built.layers[0].digest.to_string()), &faults);
    let reference = registry.reference("x:1");
    let image = runtime().block_on(store.pull(&reference, &PullOptions::default(), &NoProgress)).unwrap();
    assert_eq!(image.digest, built.digest());
    assert_tidy(store.root());
}

#[test]
fn images_of_one_archive_share_the_work_and_the_good_ones_stay() {
    let work = workplace("128m");
    let base = noise(1, 4, 100_000);
    let mut broken = noise(9, 1, 5000);
    broken.blob[100] ^= 1;
    let built: Vec<Built> = [noise(2, 1, 5000), noise(3, 1, 9000), broken, noise(4, 1, 2000)]
        .into_iter()
        .map(|own| Built::new(&[base.clone(), own]))
        .collect();
    for (case, images, good) in [("good", vec![0, 1, 3], 3), ("one is damaged", vec![0, 1, 2, 3], 2)] {
        let layout = work.join("layout");
        let blobs = images.iter().flat_map(|at| built[*at].blobs()).collect();
        let entry = |at: &usize| {
            let mut entry = built[*at].descriptor();
            entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": format!("app{at}:1") });
            entry
        };
        write_layout(&layout, &blobs, &images.iter().map(entry).collect::<Vec<_>>());
        let archive = pack(&layout);
        for from_archive in [true, false] {
            let store = store(&work, "store");
            let events = Events::default();
            let source = if from_archive {
                LoadSource::Reader { reader: Box::new(std::io::Cursor::new(archive.clone())), name: "x.tar".into() }
            } else {
                LoadSource::Path(layout.clone())
            };
            let loaded = store.load(source, &events);
            assert_eq!(loaded.is_ok(), good == images.len(), "{case}: {loaded:?}");
            assert_eq!(store.images().unwrap().len(), good, "{case}");
            let layers = images.len() + 1 - usize::from(loaded.is_err());
            assert_eq!(events.reused(), vec![false; layers], "{case}: each layer once");
            assert_tidy(store.root());
            std::fs::remove_dir_all(store.root()).unwrap();
        }
        std::fs::remove_dir_all(layout).unwrap();
    }
}
