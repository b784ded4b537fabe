//! Images from layouts and archives, and the trees that they make.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use gantry_images::{Digest, ImageError, Limits, LoadOptions, LoadSource, NoProgress, SnapshotOptions, Store};
use serde_json::json;
use tar::EntryType;

use crate::common::{
    Built, Events, Layer, TIME, Tar, architecture, assert_tidy, count, gzip, noise, pack, tree, workplace, write_layout,
};

fn load_dir(store: &Store, dir: &Path) -> gantry_images::Result<Vec<gantry_images::Image>> {
    store.load(LoadSource::Path(dir.to_path_buf()), &NoProgress)
}

fn simple() -> Built {
    Built::new(&[Layer::gzip(Tar::new().dir("./", 0o755).dir("bin", 0o755).file("bin/true", "x"))])
}

#[test]
fn the_same_image_comes_from_every_form() {
    let work = workplace("64m");
    let built = simple();
    built.write_layout(&work.join("layout"), "shop-api:1");
    let layout_tar = pack(&work.join("layout"));
    fs::write(work.join("a.tar"), &layout_tar).unwrap();
    fs::write(work.join("a.tar.gz"), gzip(&layout_tar)).unwrap();
    fs::write(work.join("a.tar.zst"), zstd::encode_all(&layout_tar[..], 1).unwrap()).unwrap();
    fs::write(work.join("docker.tar"), built.docker_archive(&["shop-api:1"])).unwrap();
    for name in ["layout", "a.tar", "a.tar.gz", "a.tar.zst", "docker.tar", "-"] {
        let store = Store::open(work.join(format!("store-{name}"))).unwrap();
        let source = match name {
            "-" => LoadSource::Reader { reader: Box::new(Cursor::new(layout_tar.clone())), name: String::new() },
            name => LoadSource::Path(work.join(name)),
        };
        let events = Events::default();
        let images = store.load(source, &events).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(images.len(), 1);
        assert_eq!((images[0].id, images[0].display_name()), (built.id(), "shop-api:1".into()), "{name}");
        assert_eq!(images[0].config.cmd, ["/bin/true"]);
        assert_eq!((images[0].os.as_str(), images[0].architecture.as_str()), ("linux", architecture()));
        assert_eq!(events.reused(), [false], "{name}");
        assert!(events.last_progress().values().all(|(done, total)| done == total) && events.done(), "{name}");
        for asked in ["shop-api:1", "docker.io/library/shop-api:1", &built.id().to_string(), &built.id().hex()[..8]] {
            assert_eq!(store.image(asked).unwrap().unwrap(), images[0], "{name} {asked}");
        }
        assert!(store.image("shop-api").unwrap().is_none(), "another tag");
        assert_tidy(store.root());
    }
}

#[test]
fn a_layer_that_is_there_is_not_read_again() {
    let work = workplace("64m");
    let (base, top) = (noise(1, 2, 1000), noise(2, 1, 1000));
    Built::new(std::slice::from_ref(&base)).write_layout(&work.join("base"), "base");
    Built::new(&[base, top]).write_layout(&work.join("top"), "top");
    let store = Store::open(work.join("store")).unwrap();
    load_dir(&store, &work.join("base")).unwrap();
    let events = Events::default();
    store.load(LoadSource::Path(work.join("top")), &events).unwrap();
    assert_eq!(events.reused(), [true, false]);
    assert_eq!(count(&store.root().join("layers")), 2);
}

#[test]
fn names_come_from_the_file_if_the_archive_has_none() {
    let work = workplace("64m");
    fs::write(work.join("My-App.tar"), simple().docker_archive(&[])).unwrap();
    let store = Store::open(work.join("store")).unwrap();
    let image = load_dir(&store, &work.join("My-App.tar")).unwrap().remove(0);
    assert_eq!(image.display_name(), "my-app:latest");
    let reader = Box::new(Cursor::new(simple().docker_archive(&["a:1", "b:2"])));
    let image = store.load(LoadSource::Reader { reader, name: String::new() }, &NoProgress).unwrap().remove(0);
    let names: Vec<String> = image.names.iter().map(|name| name.familiar()).collect();
    assert_eq!(names, ["a:1", "b:2", "my-app:latest"]);
}

#[test]
fn layers_of_a_docker_archive_may_be_links_and_the_archive_a_directory() {
    let work = workplace("64m");
    let layer = Layer::plain(Tar::new().file("a", "1"));
    let built = Built::new(&[layer.clone(), layer.clone()]);
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["x:1"], "Layers": ["0/layer.tar", "1/layer.tar"] }]);
    let archive = Tar::new()
        .file("manifest.json", &manifest.to_string())
        .symlink("1/layer.tar", "../0/layer.tar")
        .entry(EntryType::Regular, "0/layer.tar", &layer.blob, |_| {})
        .entry(EntryType::Regular, "c.json", &built.config, |_| {})
        .bytes();
    fs::write(work.join("a.tar"), &archive).unwrap();
    let unpacked = work.join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let done = Command::new("tar").args(["-xf", "/mnt/a.tar", "-C", "/mnt/unpacked"]).status().unwrap();
    assert!(done.success());
    for name in ["a.tar", "unpacked"] {
        let store = Store::open(work.join(format!("store-{name}"))).unwrap();
        let image = load_dir(&store, &work.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")).remove(0);
        assert_eq!((image.id, image.layers.len()), (built.id(), 2), "{name}");
        assert_tidy(store.root());
    }
}

#[test]
fn of_several_platforms_ours_is_loaded_and_another_alone_is_refused() {
    let work = workplace("64m");
    let layer = Layer::gzip(Tar::new().file("a", "1"));
    let (ours, other) = (simple(), Built::with(&[layer], json!({}), "s390x"));
    let with_platform = |built: &Built, arch: &str| {
        let mut entry = built.descriptor();
        entry["platform"] = json!({ "os": "linux", "architecture": arch });
        entry
    };
    let index = json!({ "schemaVersion": 2, "manifests": [with_platform(&other, "s390x"), with_platform(&ours, architecture())] });
    let index = index.to_string().into_bytes();
    let mut blobs = ours.blobs();
    blobs.extend(other.blobs());
    blobs.insert(Digest::of(&index), index.clone());
    let entry = json!({ "mediaType": crate::common::INDEX, "digest": Digest::of(&index), "size": index.len() });
    write_layout(&work.join("multi"), &blobs, &[entry]);
    other.write_layout(&work.join("single"), "other");
    let store = Store::open(work.join("store")).unwrap();
    let image = load_dir(&store, &work.join("multi")).unwrap().remove(0);
    assert_eq!((image.id, image.source_digests.as_slice()), (ours.id(), &[Digest::of(&index)][..]));
    let error = load_dir(&store, &work.join("single")).unwrap_err();
    assert!(matches!(error, ImageError::WrongPlatform { .. }), "{error}");
    let options = LoadOptions { platform: Some("linux/s390x".parse().unwrap()) };
    let image = store.load_with(LoadSource::Path(work.join("single")), &options, &NoProgress).unwrap().remove(0);
    assert_eq!(image.architecture, "s390x");
}

#[test]
fn layers_become_the_tree_that_they_describe() {
    let work = workplace("64m");
    let long = format!("usr/{}/{}", "long-directory-name".repeat(9), "file".repeat(40));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let base = Tar::new()
        .dir("./", 0o751)
        .dir("bin/", 0o755)
        .owned(EntryType::Regular, "bin/su", 0o4755, 3, 4)
        .hardlink("bin/su2", "./bin/su")
        .symlink("bin/sh", "/bin/busybox")
        .symlink("dangling", "../../../../etc/shadow")
        .hardlink("dangling2", "dangling")
        .dir("gone", 0o755)
        .file("gone/a", "1")
        .dir("kept", 0o700)
        .file("kept/deleted", "1")
        .file("kept/stays", "1")
        .dir("opaque", 0o755)
        .file("opaque/old", "1")
        .file("becomes-dir", "1")
        .dir("becomes-file", 0o755)
        .file("becomes-file/x", "1")
        .entry(EntryType::Fifo, "pipe", b"", |h| h.set_mode(0o622))
        .device(EntryType::Char, "null", 1, 3)
        .device(EntryType::Block, "loop", 7, 0)
        .file("/absolute", "1")
        .file(&long, "deep")
        .pax("SCHILY.xattr.user.note", b"a\nb")
        .file("attributes", "x")
        .pax("SCHILY.xattr.security.capability", &capability)
        .file("capable", "x");
    let top = Tar::new()
        .file(".wh.gone", "")
        .dir("kept", 0o700)
        .file("kept/.wh.deleted", "")
        .file("opaque/new", "2")
        .file("opaque/.wh..wh..opq", "")
        .dir("becomes-dir", 0o755)
        .file("becomes-dir/y", "2")
        .file("becomes-file", "2")
        .file(".wh..wh.plnk/ignored", "")
        .file("twice", "first")
        .file("twice", "second")
        .symlink("link-then-file", "/etc/passwd")
        .file("link-then-file", "mine");
    Built::new(&[Layer::gzip(base), Layer::zstd(top)]).write_layout(&work.join("layout"), "x");
    let store = Store::open(work.join("store")).unwrap();
    let image = load_dir(&store, &work.join("layout")).unwrap().remove(0);
    let rootfs = store.snapshot(&image, "c1", &SnapshotOptions::default()).unwrap().rootfs;
    let long_dir = format!("usr/{}", "long-directory-name".repeat(9));
    let expected = [
        "absolute 644 0:0 file \"1\"",
        "attributes 644 0:0 file \"x\"",
        "becomes-dir 755 0:0 dir",
        "becomes-dir/y 644 0:0 file \"2\"",
        "becomes-file 644 0:0 file \"2\"",
        "bin 755 0:0 dir",
        "bin/sh 777 0:0 -> /bin/busybox",
        "bin/su 4755 3:4 file \"\"",
        "bin/su2 4755 3:4 file \"\"",
        "capable 644 0:0 file \"x\"",
        "dangling 777 0:0 -> ../../../../etc/shadow",
        "dangling2 777 0:0 -> ../../../../etc/shadow",
        "kept 700 0:0 dir",
        "kept/stays 644 0:0 file \"1\"",
        "link-then-file 644 0:0 file \"mine\"",
        "loop 644 0:0 block 7:0",
        "null 644 0:0 char 1:3",
        "opaque 755 0:0 dir",
        "opaque/new 644 0:0 file \"2\"",
        "pipe 622 0:0 fifo",
        "twice 644 0:0 file \"second\"",
        "usr 755 0:0 dir",
        &format!("{long_dir} 755 0:0 dir"),
        &format!("{long} 644 0:0 file \"deep\""),
    ];
    assert_eq!(tree(&rootfs), expected);
    assert_eq!(rootfs.metadata().unwrap().mode() & 0o7777, 0o751, "the root directory");
    let su = rootfs.join("bin/su").metadata().unwrap();
    assert_eq!(
        (su.ino(), su.mtime()),
        (rootfs.join("bin/su2").metadata().unwrap().ino(), i64::try_from(TIME).unwrap())
    );
    assert_eq!(rootfs.join("bin").metadata().unwrap().mtime(), i64::try_from(TIME).unwrap());
    let attribute = |file: &str, name: &str| {
        let mut value = [0; 64];
        let length = rustix::fs::lgetxattr(rootfs.join(file), name, &mut value[..]).unwrap();
        value[..length].to_vec()
    };
    assert_eq!(attribute("attributes", "user.note"), b"a\nb");
    assert_eq!(attribute("capable", "security.capability"), capability);
    store.remove_snapshot("c1").unwrap();
    assert!(!rootfs.exists());
    assert_tidy(store.root());
}

#[test]
fn a_private_directory_stays_private_when_a_layer_above_only_passes_through() {
    let work = workplace("64m");
    let base = Layer::gzip(
        Tar::new().owned(EntryType::Directory, "priv", 0o700, 7, 8).dir("open", 0o777).dir("priv/in", 0o750),
    );
    let top = Layer::gzip(Tar::new().file("priv/in/b", "2").file("open/b", "2").file("new/b", "2"));
    let other = Layer::gzip(Tar::new().owned(EntryType::Directory, "priv", 0o711, 9, 9));
    Built::new(&[base, top.clone()]).write_layout(&work.join("a"), "a");
    Built::new(&[other, top.clone()]).write_layout(&work.join("b"), "b");
    Built::new(&[top]).write_layout(&work.join("c"), "c");
    let store = Store::open(work.join("store")).unwrap();
    for (name, expected) in [
        ("a", "priv 700 7:8 dir, priv/in 750 0:0 dir, open 777 0:0 dir, new 755 0:0 dir"),
        ("b", "priv 711 9:9 dir, priv/in 755 0:0 dir, open 755 0:0 dir, new 755 0:0 dir"),
        ("c", "priv 755 0:0 dir, priv/in 755 0:0 dir, open 755 0:0 dir, new 755 0:0 dir"),
    ] {
        let image = load_dir(&store, &work.join(name)).unwrap().remove(0);
        let rootfs = store.snapshot(&image, name, &SnapshotOptions::default()).unwrap().rootfs;
        let all = tree(&rootfs);
        for line in expected.split(", ") {
            assert!(all.iter().any(|have| have == line), "{name}: {line} is not among {all:#?}");
        }
        assert_eq!(fs::read_to_string(rootfs.join("priv/in/b")).unwrap(), "2");
    }
}

#[test]
fn layers_twice_none_at_all_and_an_opaque_root_are_mounted() {
    let work = workplace("64m");
    let a = Layer::gzip(Tar::new().file("x", "a").file("y", "a"));
    let b = Layer::gzip(Tar::new().file("x", "b").file(".wh.y", ""));
    let opaque = Layer::gzip(Tar::new().file(".wh..wh..opq", "").file("z", "c"));
    let store = Store::open(work.join("store")).unwrap();
    for (name, layers, expected) in [
        ("twice", vec![a.clone(), b.clone(), a.clone()], "x=a y=a"),
        ("deleted", vec![a.clone(), b.clone()], "x=b"),
        ("opaque", vec![a.clone(), opaque, b], "x=b z=c"),
        ("none", vec![], ""),
    ] {
        Built::new(&layers).write_layout(&work.join(name), name);
        let image = load_dir(&store, &work.join(name)).unwrap().remove(0);
        let rootfs = store.snapshot(&image, name, &SnapshotOptions::default()).unwrap().rootfs;
        let mut files: Vec<String> = fs::read_dir(&rootfs)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| format!("{}={}", path.file_name().unwrap().display(), fs::read_to_string(&path).unwrap()))
            .collect();
        files.sort();
        assert_eq!(files.join(" "), expected, "{name}");
    }
}

#[test]
fn marks_of_deletions_are_never_listed() {
    let work = workplace("64m");
    let alone = Tar::new().dir("d", 0o711).file("d/.wh.never-there", "").file("d/a", "1").file(".wh.x", "");
    let opaque = Tar::new().dir("d", 0o711).file("d/.wh.old", "").file("d/.wh..wh..opq", "").file("d/a", "1");
    let base = Tar::new().dir("d", 0o755).file("d/old", "0");
    let store = Store::open(work.join("store")).unwrap();
    for (name, layers) in [("alone", vec![alone]), ("opaque", vec![base, opaque])] {
        let layers: Vec<Layer> = layers.into_iter().map(Layer::gzip).collect();
        Built::new(&layers).write_layout(&work.join(name), name);
        let image = load_dir(&store, &work.join(name)).unwrap().remove(0);
        let rootfs = store.snapshot(&image, name, &SnapshotOptions::default()).unwrap().rootfs;
        assert_eq!(tree(&rootfs), ["d 711 0:0 dir", "d/a 644 0:0 file \"1\""], "{name}");
    }
}

#[test]
fn a_hundred_and_fifty_layers_are_mounted() {
    let work = workplace("64m");
    let layers: Vec<Layer> = (0..150).map(|at| Layer::plain(Tar::new().file(&format!("f{at}"), "x"))).collect();
    Built::new(&layers).write_layout(&work.join("many"), "many");
    let store = Store::open(work.join("store")).unwrap();
    let image = load_dir(&store, &work.join("many")).unwrap().remove(0);
    let rootfs = store.snapshot(&image, "c", &SnapshotOptions::default()).unwrap().rootfs;
    assert_eq!(count(&rootfs), 150);
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_but_verified_blobs() {
    let work = workplace("8m");
    // Packed it fits; the second layer, 6 MiB unpacked, does not.
    let zeros = vec![0; 6 << 20];
    let (small, large) =
        (noise(1, 1, 1 << 20), Layer::gzip(Tar::new().entry(EntryType::Regular, "zeros", &zeros, |_| {})));
    drop(zeros);
    Built::new(&[small.clone(), large.clone()]).write_layout(&work.join("layout"), "big");
    let store = Store::open(work.join("store")).unwrap();
    let error = load_dir(&store, &work.join("layout")).unwrap_err();
    assert!(matches!(&error, ImageError::DiskFull { dir, .. } if *dir == work.join("store")), "{error:?}");
    assert!(error.hint().unwrap().contains("/mnt/store"), "{error}");
    assert!(store.images().unwrap().is_empty());
    // Both are unpacked at once: the small one is there if it was done before the other had taken all room.
    assert!(!store.root().join("layers").join(large.diff_id.hex()).exists());
    for blob in fs::read_dir(store.root().join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        assert!(path.ends_with(Digest::of(&fs::read(&path).unwrap()).hex()), "{}", path.display());
    }
    assert_tidy(store.root());
    // With room it goes on from there.
    nix::mount::mount(None::<&str>, "/mnt", None::<&str>, nix::mount::MsFlags::MS_REMOUNT, Some("size=64m")).unwrap();
    assert_eq!(load_dir(&store, &work.join("layout")).unwrap()[0].display_name(), "big:latest");
}

#[test]
fn limits_hold() {
    let work = workplace("64m");
    let layer = Layer::gzip(Tar::new().file("a", "12345").file("b", "12345"));
    Built::new(&[layer]).write_layout(&work.join("layout"), "x");
    for (bytes, inodes, why) in [(9, 10, "more than 9 bytes unpacked"), (10, 1, "more than 1 files"), (10, 2, "")] {
        let store =
            Store::open_with_limits(work.join(format!("store-{bytes}-{inodes}")), Limits { bytes, inodes }).unwrap();
        match load_dir(&store, &work.join("layout")) {
            Ok(_) => assert_eq!(why, ""),
            Err(error) => assert!(!why.is_empty() && error.to_string().contains(why), "{error}"),
        }
    }
}

#[test]
fn a_removed_tree_is_unpacked_again_from_its_blob_and_a_damaged_blob_is_noticed() {
    let work = workplace("64m");
    let built = simple();
    built.write_layout(&work.join("layout"), "x");
    let store = Store::open(work.join("store")).unwrap();
    let image = load_dir(&store, &work.join("layout")).unwrap().remove(0);
    let tree_dir = store.root().join("layers").join(built.layers[0].diff_id.hex());
    fs::remove_dir_all(&tree_dir).unwrap();
    let rootfs = store.snapshot(&image, "c1", &SnapshotOptions::default()).unwrap().rootfs;
    assert_eq!(fs::read_to_string(rootfs.join("bin/true")).unwrap(), "x");
    store.remove_snapshot("c1").unwrap();
    fs::remove_dir_all(&tree_dir).unwrap();
    let blob = store.root().join("blobs/sha256").join(built.layers[0].digest.hex());
    let mut bytes = fs::read(&blob).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let error = store.snapshot(&image, "c1", &SnapshotOptions::default()).unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
    // Loading again heals it.
    let error = load_dir(&store, &work.join("layout")).err();
    assert!(error.is_none(), "{error:?}");
    store.snapshot(&image, "c1", &SnapshotOptions::default()).unwrap();
}

#[test]
fn other_tools_read_the_store() {
    if Command::new("skopeo").arg("--version").output().is_err() {
        println!("skipped: skopeo is not installed");
        return;
    }
    let work = workplace("64m");
    let built = simple();
    built.write_layout(&work.join("layout"), "shop/api:2");
    let store = Store::open(work.join("store")).unwrap();
    load_dir(&store, &work.join("layout")).unwrap();
    let out =
        Command::new("skopeo").args(["inspect", "--raw", "oci:/mnt/store:docker.io/shop/api:2"]).output().unwrap();
    assert_eq!(out.stdout, built.manifest, "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn a_directory_that_is_something_else_is_not_taken() {
    let work = workplace("1m");
    fs::create_dir(work.join("home")).unwrap();
    fs::write(work.join("home/letter"), "dear").unwrap();
    let error = Store::open(work.join("home")).unwrap_err();
    assert!(error.to_string().contains("letter"), "{error}");
    assert_eq!(count(&work.join("home")), 1, "nothing is put there");
    let store = Store::open(work.join("store")).unwrap();
    let index = store.root().join("index.json");
    fs::write(&index, "{").unwrap();
    assert!(matches!(Store::open(work.join("store")), Err(ImageError::BadImage { .. })));
    assert_eq!(fs::read(&index).unwrap(), b"{", "never overwritten");
    fs::remove_file(&index).unwrap();
    let error = Store::open(work.join("store")).unwrap_err().to_string();
    assert!(error.contains("no index.json"), "{error}");
    fs::write(store.root().join("oci-layout"), r#"{"imageLayoutVersion":"9"}"#).unwrap();
    let error = Store::open(work.join("store")).unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
}

#[test]
fn a_store_that_was_half_made_is_completed() {
    let work = workplace("1m");
    let half = work.join("store");
    fs::create_dir_all(half.join("blobs")).unwrap();
    fs::write(half.join("index.json.tmp"), "{\"sche").unwrap();
    fs::write(half.join("lock"), "").unwrap();
    let store = Store::open(&half).unwrap();
    assert!(store.images().unwrap().is_empty());
    assert!(half.join("oci-layout").exists());
}
