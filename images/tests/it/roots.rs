//! What every way to make a root file system must do, and what only one of them can.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use gantry_images::{IdMaps, IdRange, Image, ImageError, LoadSource, NoProgress, RootKind, SnapshotOptions, Store};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tar::EntryType;

use crate::common::{Built, Layer, Tar, assert_tidy, count, tree, workplace};

const KINDS: [RootKind; 2] = [RootKind::Overlay, RootKind::Copy];

fn load(store: &Store, name: &str, layers: &[Layer]) -> Image {
    let dir = store.root().with_file_name(format!("layout-{name}"));
    Built::new(layers).write_layout(&dir, name);
    store.load(LoadSource::Path(dir), &NoProgress).unwrap().remove(0)
}

fn of(kind: RootKind) -> SnapshotOptions {
    SnapshotOptions { kind: Some(kind), ..SnapshotOptions::default() }
}

/// Everything that stacking has to get right.
fn layers() -> Vec<Layer> {
    let base = Tar::new()
        .dir("./", 0o751)
        .dir("bin", 0o755)
        .owned(EntryType::Regular, "bin/su", 0o4755, 3, 4)
        .hardlink("bin/su2", "bin/su")
        .symlink("bin/sh", "/bin/busybox")
        .symlink("link", "/etc")
        .dir("gone", 0o755)
        .file("gone/a", "1")
        .owned(EntryType::Directory, "priv", 0o700, 7, 8)
        .file("priv/old", "1")
        .dir("opaque", 0o755)
        .file("opaque/old", "1")
        .file("becomes-dir", "1")
        .dir("becomes-file", 0o755)
        .file("becomes-file/x", "1")
        .entry(EntryType::Fifo, "pipe", b"", |h| h.set_mode(0o622))
        .device(EntryType::Char, "null", 1, 3)
        .pax("SCHILY.xattr.user.note", b"a")
        .file("attributes", "x");
    let top = Tar::new()
        .file(".wh.gone", "")
        .file("priv/new", "2")
        .file("priv/.wh.old", "")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "2")
        .dir("becomes-dir", 0o755)
        .file("becomes-dir/y", "2")
        .file("becomes-file", "2")
        .dir("link", 0o755)
        .file("link/inside", "2");
    vec![Layer::gzip(base), Layer::gzip(top)]
}

const TREE: [&str; 16] = [
    "attributes 644 0:0 file \"x\"",
    "becomes-dir 755 0:0 dir",
    "becomes-dir/y 644 0:0 file \"2\"",
    "becomes-file 644 0:0 file \"2\"",
    "bin 755 0:0 dir",
    "bin/sh 777 0:0 -> /bin/busybox",
    "bin/su 4755 3:4 file \"\"",
    "bin/su2 4755 3:4 file \"\"",
    "link 755 0:0 dir",
    "link/inside 644 0:0 file \"2\"",
    "null 644 0:0 char 1:3",
    "opaque 755 0:0 dir",
    "opaque/new 644 0:0 file \"2\"",
    "pipe 622 0:0 fifo",
    "priv 700 7:8 dir",
    "priv/new 644 0:0 file \"2\"",
];

fn expected() -> Vec<String> {
    TREE.map(str::to_owned).to_vec()
}

#[test]
fn every_way_shows_the_same_files() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let image = load(&store, "all", &layers());
    for kind in KINDS {
        let made = store.snapshot(&image, &format!("{kind:?}"), &of(kind)).unwrap();
        assert_eq!((made.kind, tree(&made.rootfs)), (kind, expected()));
        assert_eq!(made.rootfs.metadata().unwrap().mode() & 0o7777, 0o751, "{kind:?}");
        let inode = |name: &str| made.rootfs.join(name).metadata().unwrap().ino();
        assert_eq!(inode("bin/su"), inode("bin/su2"), "{kind:?}");
        let mut note = [0; 8];
        let length = rustix::fs::lgetxattr(made.rootfs.join("attributes"), "user.note", &mut note[..]).unwrap();
        assert_eq!(&note[..length], b"a", "{kind:?}");
        let time = made.rootfs.join("bin").metadata().unwrap().mtime();
        assert_eq!(time, i64::try_from(crate::common::TIME).unwrap(), "{kind:?}");
    }
    assert_tidy(store.root());
}

#[test]
fn every_way_keeps_what_is_written_to_itself_and_goes_without_a_trace() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let image = load(&store, "all", &layers());
    for kind in KINDS {
        let one = store.snapshot(&image, "one", &of(kind)).unwrap().rootfs;
        let two = store.snapshot(&image, "two", &of(kind)).unwrap().rootfs;
        fs::write(one.join("bin/su"), "changed").unwrap();
        fs::remove_file(one.join("priv/new")).unwrap();
        symlink("/mnt", one.join("priv/new")).unwrap();
        fs::write(one.join("large"), vec![1; 100_000]).unwrap();
        assert_eq!(tree(&two), expected(), "{kind:?}: others do not see it");
        let usage = store.snapshot_usage("one").unwrap();
        assert!((100_000..400_000).contains(&usage.bytes), "{kind:?}: {usage:?}");
        assert!(usage.inodes >= 4, "{kind:?}: {usage:?}");
        // Not mounted any more, as after a reboot: it comes back with what was written.
        if kind == RootKind::Overlay {
            nix::mount::umount2(&one, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
        assert_eq!(store.remount("one").unwrap(), one);
        assert_eq!(
            fs::read_to_string(one.join("bin/su2")).unwrap(),
            if kind == RootKind::Copy { "changed" } else { "" }
        );
        assert_eq!(fs::read_to_string(one.join("bin/su")).unwrap(), "changed", "{kind:?}");
        let listed: Vec<String> = store.snapshots().unwrap().into_iter().map(|snapshot| snapshot.id).collect();
        assert_eq!(listed, ["one", "two"], "{kind:?}");
        for id in ["one", "two"] {
            store.remove_snapshot(id).unwrap();
        }
        assert_eq!(count(&store.root().join("containers")), 0, "{kind:?}");
        assert_tidy(store.root());
    }
    assert!(matches!(store.remount("one"), Err(ImageError::NotFound(_))));
}

#[test]
fn every_way_starts_a_volatile_one_anew_after_a_reboot_only() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let image = load(&store, "all", &layers());
    for kind in KINDS {
        let options = SnapshotOptions { volatile: true, ..of(kind) };
        let rootfs = store.snapshot(&image, "c", &options).unwrap().rootfs;
        fs::write(rootfs.join("new"), "mine").unwrap();
        // A copy is not mounted.
        let unmount = || nix::mount::umount2(&rootfs, nix::mount::MntFlags::MNT_DETACH).is_ok();
        assert_eq!(unmount(), kind == RootKind::Overlay);
        store.remount("c").unwrap();
        assert!(rootfs.join("new").exists(), "{kind:?}: the host has run on");
        unmount();
        let record = rootfs.with_file_name("snapshot.json");
        let text = fs::read_to_string(&record).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        fs::write(&record, text.replace(boot.trim(), "an-earlier-boot")).unwrap();
        store.remount("c").unwrap();
        assert_eq!(tree(&rootfs), expected(), "{kind:?}");
        store.remove_snapshot("c").unwrap();
        assert_tidy(store.root());
    }
}

#[test]
fn every_way_can_be_read_only() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let image = load(&store, "all", &layers());
    for kind in KINDS {
        let options = SnapshotOptions { read_only: true, ..of(kind) };
        let rootfs = store.snapshot(&image, "c", &options).unwrap().rootfs;
        let refused = fs::write(rootfs.join("new"), "x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{kind:?}");
        assert_eq!(tree(&rootfs), expected(), "{kind:?}");
        nix::mount::umount2(&rootfs, nix::mount::MntFlags::MNT_DETACH).unwrap();
        store.remount("c").unwrap();
        assert!(fs::write(rootfs.join("new"), "x").is_err(), "{kind:?}: still");
        store.remove_snapshot("c").unwrap();
        assert_tidy(store.root());
    }
}

#[test]
fn where_overlayfs_cannot_write_files_are_copied() {
    let work = workplace("64m");
    // A store on an overlay, which cannot be the top of another.
    for dir in ["low", "own/upper", "own/work", "merged"] {
        fs::create_dir_all(work.join(dir)).unwrap();
    }
    let options = "lowerdir=/mnt/low,upperdir=/mnt/own/upper,workdir=/mnt/own/work";
    mount(Some("overlay"), &work.join("merged"), Some("overlay"), MsFlags::empty(), Some(options)).unwrap();
    let store = Store::open(work.join("merged/store")).unwrap();
    let plain = [Layer::gzip(Tar::new().dir("d", 0o711).file("d/a", "1")), Layer::gzip(Tar::new().file("d/a", "2"))];
    let image = load(&store, "plain", &plain);
    let made = store.snapshot(&image, "c", &SnapshotOptions::default()).unwrap();
    assert_eq!(made.kind, RootKind::Copy);
    assert_eq!(tree(&made.rootfs), ["d 711 0:0 dir", "d/a 644 0:0 file \"2\""]);
    let error = store.snapshot(&image, "d", &of(RootKind::Overlay)).unwrap_err();
    assert!(matches!(error, ImageError::Mount { .. }), "asked for by name, it is not replaced: {error}");
    assert_eq!(count(&store.root().join("containers")), 1, "nothing is left of it");
    for error in [store.changes("c").unwrap_err(), store.commit_container("c", &Default::default()).unwrap_err()] {
        assert!(error.to_string().contains("is a copy"), "{error}");
    }
    store.remove_snapshot("c").unwrap();
    assert_tidy(store.root());
}

#[test]
fn a_size_that_cannot_be_held_is_refused_and_leaves_nothing() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let image = load(&store, "all", &layers());
    for kind in [Some(RootKind::Overlay), Some(RootKind::Copy), None] {
        let options = SnapshotOptions { size_max: Some(1 << 20), kind, ..SnapshotOptions::default() };
        // tmpfs has no projects.
        let error = store.snapshot(&image, "c", &options).unwrap_err();
        let clear = match kind {
            Some(RootKind::Copy) => error.to_string().contains("needs overlayfs"),
            _ => matches!(error, ImageError::NoQuota { .. }) && error.hint().unwrap().contains("prjquota"),
        };
        assert!(clear, "{kind:?}: {error:?}");
        assert_eq!(count(&store.root().join("containers")), 0, "{kind:?}");
        assert_tidy(store.root());
    }
}

#[test]
fn owners_are_shown_to_a_user_namespace_as_its_own_and_stay_on_disk() {
    let work = workplace("64m");
    let store = Store::open(work.join("store")).unwrap();
    let image = load(&store, "all", &layers());
    let range = |outside| vec![IdRange { inside: 0, outside, length: 65_536 }];
    let maps = IdMaps { users: range(100_000), groups: range(200_000) };
    let options = SnapshotOptions { ids: Some(maps), ..of(RootKind::Overlay) };
    let made = store.snapshot(&image, "c", &options).unwrap();
    let all = tree(&made.rootfs);
    for line in ["bin 755 100000:200000 dir", "bin/su 4755 100003:200004 file \"\"", "priv 700 100007:200008 dir"] {
        assert!(all.iter().any(|have| have == line), "{line} is not among {all:#?}");
    }
    // What the container writes goes into an image with the owners that the container sees.
    std::os::unix::fs::chown(made.rootfs.join("bin/su"), Some(100_009), Some(200_009)).unwrap();
    let upper = store.root().join("containers/c/upper/bin/su").metadata().unwrap();
    assert_eq!((upper.uid(), upper.gid()), (100_009, 200_009));
    let committed = store.commit_container("c", &Default::default()).unwrap();
    let shown = store.snapshot(&committed, "committed", &of(RootKind::Overlay)).unwrap().rootfs;
    let shown = shown.join("bin/su").metadata().unwrap();
    assert_eq!((shown.uid(), shown.gid()), (9, 9));
    let lower = store.root().join("layers").join(image.layers[0].diff_id.hex()).join("fs/bin/su").metadata().unwrap();
    assert_eq!((lower.uid(), lower.gid()), (3, 4));
    // Another container sees the same layers without.
    let plain = store.snapshot(&image, "d", &of(RootKind::Overlay)).unwrap().rootfs;
    assert_eq!(plain.join("bin/su").metadata().unwrap().uid(), 3);
    for bad in [IdMaps { users: vec![], groups: range(1) }, IdMaps { users: range(1), groups: range(u32::MAX) }] {
        let options = SnapshotOptions { ids: Some(bad), ..SnapshotOptions::default() };
        assert!(matches!(store.snapshot(&image, "e", &options), Err(ImageError::BadOption { .. })));
    }
    for id in ["c", "d", "committed"] {
        store.remove_snapshot(id).unwrap();
    }
    assert_tidy(store.root());
}

/// The most that the kernel stacks, with and without directories to correct, which want a layer of their own.
#[test]
fn five_hundred_layers_are_mounted() {
    let work = workplace("256m");
    // A descriptor for each.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(4096)), hard).unwrap();
    let store = Store::open(work.join("store")).unwrap();
    let mut layers: Vec<Layer> = (0..500).map(|at| Layer::plain(Tar::new().file(&format!("f{at}"), "x"))).collect();
    let image = load(&store, "plain", &layers);
    let rootfs = store.snapshot(&image, "c", &SnapshotOptions::default()).unwrap().rootfs;
    assert_eq!(count(&rootfs), 500);
    layers[0] = Layer::plain(Tar::new().owned(EntryType::Directory, "priv", 0o700, 7, 8));
    layers[499] = Layer::plain(Tar::new().file("priv/secret", "x"));
    let image = load(&store, "private", &layers);
    let rootfs = store.snapshot(&image, "d", &SnapshotOptions::default()).unwrap().rootfs;
    let private = rootfs.join("priv").metadata().unwrap();
    assert_eq!((private.mode() & 0o7777, private.uid()), (0o700, 7));
    assert!(rootfs.join("priv/secret").exists());
    assert_eq!(store.remount("d").unwrap(), rootfs);
    layers.push(Layer::plain(Tar::new().file("one-more", "x")));
    let dir = Path::new("/mnt/layout-more");
    Built::new(&layers).write_layout(dir, "more");
    let error = store.load(LoadSource::Path(dir.to_path_buf()), &NoProgress).unwrap_err();
    assert!(error.to_string().contains("501 layers are more than the 500"), "{error}");
}
