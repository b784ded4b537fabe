//! Archives and images that do what they must not: what is refused, and that nothing got out.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use gantry_images::{Digest, LoadSource, NoProgress, SnapshotOptions, Store};
use proptest::prelude::*;
use serde_json::json;
use tar::EntryType;

use crate::common::{Built, Layer, Tar, assert_tidy, count, gzip, workplace};

/// A store in a directory beside which there is something to lose.
fn store(work: &Path) -> Store {
    fs::create_dir_all(work.join("outside")).unwrap();
    fs::write(work.join("outside/canary"), "alive").unwrap();
    Store::open(work.join("store")).unwrap()
}

fn load(store: &Store, work: &Path, built: &Built) -> Result<gantry_images::Image, String> {
    let dir = work.join("layout");
    let _ = fs::remove_dir_all(&dir);
    built.write_layout(&dir, "hostile");
    store.load(LoadSource::Path(dir), &NoProgress).map(|mut images| images.remove(0)).map_err(|e| e.to_string())
}

fn assert_unharmed(work: &Path, case: &str) {
    assert_eq!(fs::read_to_string(work.join("outside/canary")).unwrap(), "alive", "{case}");
    assert_eq!(count(&work.join("outside")), 1, "{case}");
    let names: Vec<_> = fs::read_dir(work).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        names.iter().all(|name| ["outside", "store", "layout"].contains(&name.to_str().unwrap())),
        "{case}: {names:?}"
    );
}

#[test]
fn layers_that_reach_out_or_contradict_themselves_are_refused() {
    let work = workplace("64m");
    let store = store(&work);
    let up = "../../../../outside";
    let t = Tar::new;
    for (case, tar, why) in [
        ("dots", t().file("../../../outside/evil", "x"), "has `..`"),
        ("dots inside", t().file("a/../../../../../outside/evil", "x"), "has `..`"),
        ("through an absolute link", t().symlink("out", "/mnt/outside").file("out/evil", "x"), "symbolic link"),
        ("through a relative link", t().symlink("out", up).file("out/evil", "x"), "symbolic link"),
        (
            "through a link deeper",
            t().dir("a", 0o755).symlink("a/out", "/mnt/outside").file("a/out/b/evil", "x"),
            "symbolic link",
        ),
        ("directory through a link", t().symlink("out", "/mnt/outside").dir("out/evil", 0o777), "symbolic link"),
        ("whiteout through a link", t().symlink("out", "/mnt/outside").file("out/.wh.canary", ""), "symbolic link"),
        ("opaque through a link", t().symlink("out", "/mnt/outside").file("out/.wh..wh..opq", ""), "symbolic link"),
        ("hard link with dots", t().hardlink("evil", "../../../../outside/canary"), "has `..`"),
        ("hard link absolute", t().hardlink("evil", "/mnt/outside/canary"), "not a file of the same layer"),
        (
            "hard link through a link",
            t().symlink("out", "/mnt/outside").hardlink("evil", "out/canary"),
            "not a file of the same layer",
        ),
        ("hard link to below", t().hardlink("evil", "bin/sh"), "not a file of the same layer"),
        ("hard link to a directory", t().dir("d", 0o755).hardlink("evil", "d"), "not a file of the same layer"),
        ("whiteout of the parent", t().dir("d", 0o755).file("d/.wh...", ""), "whiteout of nothing"),
        ("whiteout of itself", t().file("d/.wh..", ""), "whiteout of nothing"),
        ("whiteout of nothing", t().file("d/.wh.", ""), "whiteout of nothing"),
        ("whiteout, then file", t().file(".wh.a", "").file("a", "x"), "deleted by the same layer"),
        ("file, then whiteout", t().file("a", "x").file(".wh.a", ""), "what the same layer makes"),
        ("inside a whiteout", t().file(".wh.d/x", "x"), "inside a whiteout"),
        ("inside a file", t().file("a", "x").file("a/b", "x"), "used as a directory"),
        ("raw whiteout device", t().device(EntryType::Char, "a", 0, 0), "character device 0:0"),
        (
            "overlay redirect",
            t().pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc").dir("a", 0o755),
            "attribute of overlayfs",
        ),
        (
            "overlay metacopy",
            t().pax("SCHILY.xattr.trusted.overlay.metacopy", b"").file("a", "x"),
            "attribute of overlayfs",
        ),
        (
            "overlay user attribute",
            t().pax("SCHILY.xattr.user.overlay.opaque", b"y").symlink("a", "b"),
            "attribute of overlayfs",
        ),
        ("name too long", t().file(&"n".repeat(300), "x"), "more than 255 bytes"),
        ("too deep", t().file(&format!("{}f", "d/".repeat(300)), "x"), "too deep"),
        ("root as a link", t().symlink("./", "/mnt/outside"), "stands for the root"),
        ("empty link", t().symlink("a", ""), "without a proper target"),
        ("unknown type", t().entry(EntryType::new(b'M'), "a", b"", |_| {}), "unknown type"),
        ("huge extended header", t().entry(EntryType::XHeader, "a", &vec![b'x'; 2 << 20], |_| {}), "extended header"),
        ("broken extended header", t().entry(EntryType::XHeader, "a", b"99 path=x\n", |_| {}), "malformed"),
        ("huge number", t().pax("size", b"99999999999999999999999").file("a", ""), "not a number"),
        ("more data than there is", t().pax("size", b"999999999999").file("a", ""), "more than"),
    ] {
        let error = load(&store, &work, &Built::new(&[Layer::gzip(tar)])).map(|image| image.digest).expect_err(case);
        assert!(error.contains(why), "{case}: {error}");
        assert_unharmed(&work, case);
        assert_eq!(count(&store.root().join("layers")), 0, "{case}");
        assert_eq!(count(&store.root().join("blobs/sha256")), 0, "{case}");
        assert_tidy(store.root());
    }
}

#[test]
fn what_is_only_odd_is_contained() {
    let work = workplace("64m");
    let store = store(&work);
    let base = Layer::gzip(Tar::new().dir("bin", 0o755).symlink("lib", "/mnt/outside").file("bin/x", "1"));
    let top = Layer::gzip(Tar::new().file("//lib///y", "2").file("bin/./x", "2").file("lib/.wh.canary", ""));
    let image = load(&store, &work, &Built::new(&[base, top])).unwrap();
    let rootfs = store.snapshot(&image, "c", &SnapshotOptions::default()).unwrap().rootfs;
    // The directory of the upper layer hides the link of the lower one.
    assert_eq!(fs::read_to_string(rootfs.join("lib/y")).unwrap(), "2");
    assert_eq!(fs::read_to_string(rootfs.join("bin/x")).unwrap(), "2");
    fs::write(rootfs.join("lib/z"), "3").unwrap();
    assert_unharmed(&work, "odd");
}

#[test]
fn blobs_that_are_not_what_the_manifest_says_are_refused() {
    let work = workplace("64m");
    let store = store(&work);
    let good = || Layer::gzip(Tar::new().file("a", "1"));
    let tar_bytes = Tar::new().file("a", "1").bytes();
    let with = |change: &dyn Fn(&mut Layer)| {
        let mut layer = good();
        change(&mut layer);
        Built::new(&[layer])
    };
    let other = Digest::of(b"other");
    let three_diffs = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [other, other, other] } });
    for (case, built, why) in [
        ("other content", with(&|l| *l.blob.last_mut().unwrap() ^= 1), "is damaged"),
        ("content cut short", with(&|l| l.blob.truncate(l.blob.len() - 1)), "wrong size"),
        ("content too long", with(&|l| l.blob.push(0)), "wrong size"),
        ("size said too small", with(&|l| l.size -= 1), "wrong size"),
        ("size said too large", with(&|l| l.size += 1), "wrong size"),
        ("other diff-id", with(&|l| l.diff_id = other), "unpacked layer"),
        ("not gzip", Built::new(&[Layer::raw(Digest::of(&tar_bytes), tar_bytes.clone(), "tar+gzip")]), "gzip"),
        ("not zstd", Built::new(&[Layer::raw(Digest::of(&tar_bytes), tar_bytes.clone(), "tar+zstd")]), "cannot read"),
        ("not tar", Built::new(&[Layer::raw(other, gzip(&[7; 2000]), "tar+gzip")]), "not a tar archive"),
        (
            "gzip cut off",
            Built::new(&[Layer::raw(Digest::of(&tar_bytes), gzip(&tar_bytes)[..60].to_vec(), "tar+gzip")]),
            "archive",
        ),
        (
            "rubbish after gzip",
            Built::new(&[Layer::raw(
                Digest::of(&tar_bytes),
                [gzip(&tar_bytes), b"rubbish".to_vec()].concat(),
                "tar+gzip",
            )]),
            "cannot be unpacked",
        ),
        ("unknown type", with(&|l| l.media_type = "application/x-squashfs".into()), "not known"),
        (
            "too many diff-ids",
            Built::assemble(&[good()], three_diffs.to_string().into_bytes()),
            "1 layers, but 3 diff_ids",
        ),
        ("no configuration", Built::assemble(&[good()], b"{".to_vec()), "not valid"),
    ] {
        let error = load(&store, &work, &built).map(|image| image.digest).expect_err(case);
        assert!(error.contains(why), "{case}: {error}");
        assert!(store.images().unwrap().is_empty(), "{case}");
        assert_eq!(count(&store.root().join("layers")), 0, "{case}");
        assert_eq!(count(&store.root().join("blobs/sha256")), 0, "{case}");
        assert_tidy(store.root());
    }
    load(&store, &work, &Built::new(&[good()])).unwrap();
}

#[test]
fn a_bomb_is_refused_before_it_fills_the_disk() {
    let work = workplace("64m");
    let store = store(&work);
    // 2 GiB of zeros, made a member at a time: 1 GiB is what so small a layer may unpack to.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size(2 << 30);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    std::io::Write::write_all(&mut encoder, header.as_bytes()).unwrap();
    std::io::Write::write_all(&mut encoder, &vec![0; 4 << 20]).unwrap();
    let bomb = Layer::raw(Digest::of(b"never reached"), encoder.finish().unwrap(), "tar+gzip");
    let error = load(&store, &work, &Built::new(&[bomb])).map(|image| image.digest).unwrap_err();
    assert!(error.contains("more than 1073741824 bytes unpacked"), "{error}");
    assert_tidy(store.root());
}

#[test]
fn archives_that_are_none_say_so() {
    let work = workplace("64m");
    let store = store(&work);
    let manifest = |text: &str| Tar::new().file("manifest.json", text).bytes();
    let html = b"<!doctype html><title>Log in</title>".repeat(40);
    for (case, bytes, why) in [
        ("html", html, "not a tar archive"),
        ("empty", Vec::new(), "not an image"),
        ("other tar", Tar::new().file("README", "x").bytes(), "not an image"),
        (
            "cut off",
            Built::new(&[Layer::plain(Tar::new().file("a", "1"))]).docker_archive(&["x"])[..700].to_vec(),
            "cut off",
        ),
        ("cut off gzip", gzip(&Tar::new().file("a", &"x".repeat(5000)).bytes())[..40].to_vec(), "archive"),
        ("bad json", manifest("{"), "not valid"),
        ("no image", manifest("[]"), "lists no image"),
        ("missing parts", manifest(r#"[{"Config":"c.json","RepoTags":["x"],"Layers":[]}]"#), "`c.json` is missing"),
        (
            "reaching out",
            manifest(r#"[{"Config":"../../../../etc/passwd","RepoTags":["x"],"Layers":[]}]"#),
            "is missing",
        ),
        ("bad name", manifest(r#"[{"Config":"c.json","RepoTags":["../x"],"Layers":[]}]"#), "not an image reference"),
    ] {
        let source = LoadSource::Reader { reader: Box::new(Cursor::new(bytes)), name: "archive".into() };
        let error = store.load(source, &NoProgress).expect_err(case).to_string();
        assert!(error.contains(why), "{case}: {error}");
        assert_tidy(store.root());
    }
    assert_unharmed(&work, "archives");
}

/// One member of a random archive: kind, path, target.
fn random_member() -> impl Strategy<Value = (u8, String, String)> {
    let part = prop_oneof![
        4 => Just("a"),
        4 => Just("b"),
        2 => Just("c"),
        1 => Just(".."),
        1 => Just("."),
        1 => Just(""),
        1 => Just(".wh.a"),
        1 => Just(".wh..wh..opq"),
    ];
    let path = || proptest::collection::vec(part.clone(), 1..4).prop_map(|parts| parts.join("/"));
    let target = prop_oneof![
        3 => path(),
        1 => Just("/mnt/outside".to_owned()),
        1 => Just("../../../../../outside/canary".to_owned()),
    ];
    (0..7u8, path(), target)
}

#[test]
fn no_archive_at_all_reaches_out_or_leaves_something_half_made() {
    let work = workplace("64m");
    let store = store(&work);
    let config = proptest::test_runner::Config { cases: 400, failure_persistence: None, ..Default::default() };
    let accepted = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let layers = proptest::collection::vec(proptest::collection::vec(random_member(), 0..6), 1..3);
    runner
        .run(&layers, |layers| {
            let pack = |members: &Vec<(u8, String, String)>| {
                let one = |tar: Tar, (kind, path, target): &(u8, String, String)| match kind {
                    0 | 1 => tar.file(path, "x"),
                    2 => tar.dir(path, 0o755),
                    3 => tar.symlink(path, target),
                    4 => tar.hardlink(path, target),
                    5 => tar.device(EntryType::Char, path, 1, 3),
                    _ => tar.entry(EntryType::Fifo, path, b"", |_| {}),
                };
                Layer::plain(members.iter().fold(Tar::new(), one))
            };
            let built = Built::new(&layers.iter().map(pack).collect::<Vec<_>>());
            if let Ok(image) = load(&store, &work, &built) {
                accepted.set(accepted.get() + 1);
                let snapshot = store.snapshot(&image, "c", &SnapshotOptions::default());
                let rootfs = snapshot.map_err(|e| TestCaseError::fail(e.to_string()))?.rootfs;
                crate::common::tree(&rootfs);
                store.remove_snapshot("c").unwrap();
                store.remove("hostile", true).unwrap();
            }
            assert_unharmed(&work, "random");
            assert_tidy(store.root());
            store.collect().unwrap();
            for dir in ["layers", "blobs/sha256", "images"] {
                prop_assert_eq!(count(&store.root().join(dir)), 0, "{}", dir);
            }
            Ok(())
        })
        .unwrap();
    let accepted = accepted.get();
    assert!(accepted > 20, "only {accepted} were good");
}
