//! Images made here: from a directory, from what a container has changed; and what it has changed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use gantry_images::{
    BuildOptions, Change, ImageConfig, ImageError, LoadSource, NoProgress, Packed, Prune, SnapshotOptions, Store,
};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tar::EntryType;

use crate::common::{Built, Layer, Tar, assert_tidy, tree, workplace};

const LONG: &str = "a-name-that-is-much-longer-than-the-hundred-bytes-that-the-header-of-an-archive-has-room-for-so-that-it-needs-more";

/// One of everything.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/config"), "text").unwrap();
    fs::set_permissions(root.join("etc/config"), PermissionsExt::from_mode(0o4750)).unwrap();
    chown(root.join("etc/config"), Some(1000), Some(3_000_000)).unwrap();
    fs::set_permissions(root.join("etc/config"), PermissionsExt::from_mode(0o4750)).unwrap();
    fs::hard_link(root.join("etc/config"), root.join("etc/same")).unwrap();
    symlink("/etc/config", root.join("link")).unwrap();
    fs::write(root.join(LONG), "long").unwrap();
    fs::set_permissions(root, PermissionsExt::from_mode(0o711)).unwrap();
    let (all, none) = (Mode::from_bits_truncate(0o666), 0);
    mknod(&root.join("pipe"), SFlag::S_IFIFO, all, none).unwrap();
    mknod(&root.join("null"), SFlag::S_IFCHR, all, makedev(1, 3)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
}

/// `tree` reads all files, which a socket does not allow.
fn tree_without_socket(root: &Path) -> Vec<String> {
    let (socket, aside) = (root.join("socket"), root.with_file_name("aside"));
    fs::rename(&socket, &aside).unwrap();
    let lines = tree(root);
    fs::rename(&aside, &socket).unwrap();
    lines
}

#[test]
fn a_directory_becomes_an_image_always_the_same() {
    let work = workplace("64m");
    let (one, two) = (work.join("one"), work.join("two"));
    for dir in [&one, &two] {
        fs::create_dir(dir).unwrap();
        fill(dir);
    }
    let expected = tree_without_socket(&two);
    let store = Store::open(work.join("store")).unwrap();
    let run = ImageConfig { cmd: vec!["/bin/sh".into()], env: vec!["A=1".into()], ..ImageConfig::default() };
    for packed in [Packed::Zstd, Packed::Gzip] {
        let options = BuildOptions {
            name: Some("made:1".parse().unwrap()),
            packed,
            time: Some(1_700_000_000),
            config: Some(run.clone()),
            ..BuildOptions::default()
        };
        let image = store.from_rootfs(&one, &options).unwrap();
        assert_eq!(store.from_rootfs(&two, &options).unwrap().digest, image.digest, "made later, elsewhere");
        assert_eq!((&image.config, image.created.as_deref()), (&run, Some("2023-11-14T22:13:20Z")));
        let rootfs = store
            .snapshot(&image, "c", &SnapshotOptions { volatile: true, ..SnapshotOptions::default() })
            .unwrap()
            .rootfs;
        assert!(!rootfs.join("socket").exists(), "nobody listens there");
        assert_eq!(tree(&rootfs), expected);
        assert_eq!(fs::metadata(&rootfs).unwrap().permissions().mode() & 0o7777, 0o711);
        assert!(store.verify(&image).unwrap().damage.is_empty());
        store.remove_snapshot("c").unwrap();
    }
    let absent = store.from_rootfs(&work.join("absent"), &BuildOptions::default());
    assert!(matches!(absent, Err(ImageError::Io { .. })), "{absent:?}");
    let file = store.from_rootfs(&one.join("etc/config"), &BuildOptions::default());
    assert!(matches!(file, Err(ImageError::BadOption { .. })), "{file:?}");
    assert_tidy(store.root());
}

#[test]
fn what_a_container_changed_becomes_a_layer() {
    let work = workplace("64m");
    let base = Tar::new()
        .dir("etc", 0o755)
        .file("etc/kept", "kept")
        .file("etc/changed", "old")
        .file("etc/removed", "x")
        .dir("dir", 0o755)
        .file("dir/inside", "x")
        .owned(EntryType::Directory, "own", 0o700, 7, 8);
    let built = Built::new(&[Layer::gzip(base)]);
    built.write_layout(&work.join("layout"), "base:1");
    let store = Store::open(work.join("store")).unwrap();
    let image = store.load(LoadSource::Path(work.join("layout")), &NoProgress).unwrap().remove(0);
    let rootfs =
        store.snapshot(&image, "c", &SnapshotOptions { volatile: true, ..SnapshotOptions::default() }).unwrap().rootfs;
    fs::write(rootfs.join("etc/changed"), "new").unwrap();
    fs::remove_file(rootfs.join("etc/removed")).unwrap();
    fs::remove_dir_all(rootfs.join("dir")).unwrap();
    fs::create_dir(rootfs.join("dir")).unwrap();
    fs::write(rootfs.join("dir/other"), "y").unwrap();
    fs::write(rootfs.join("own/mine"), "z").unwrap();
    fs::write(rootfs.join("brief"), "").unwrap();
    fs::remove_file(rootfs.join("brief")).unwrap();
    let changes: Vec<(String, Change)> =
        store.changes("c").unwrap().into_iter().map(|(path, change)| (path.display().to_string(), change)).collect();
    let expected = [
        ("dir", Change::Changed),
        ("dir/other", Change::Added),
        ("etc", Change::Changed),
        ("etc/changed", Change::Changed),
        ("etc/removed", Change::Deleted),
        ("own", Change::Changed),
        ("own/mine", Change::Added),
    ];
    assert_eq!(changes, expected.map(|(path, change)| (path.to_owned(), change)));
    let options = BuildOptions {
        name: Some("changed:1".parse().unwrap()),
        author: Some("Ada".into()),
        comment: Some("by hand".into()),
        ..BuildOptions::default()
    };
    let made = store.commit_container("c", &options).unwrap();
    assert_eq!((made.layers.len(), &made.config), (2, &image.config));
    assert_eq!(store.history(&made).unwrap()[0].comment, "by hand");
    let other =
        store.snapshot(&made, "d", &SnapshotOptions { volatile: true, ..SnapshotOptions::default() }).unwrap().rootfs;
    assert_eq!(tree(&other), tree(&rootfs));
    assert!(store.changes("d").unwrap().is_empty());
    assert!(matches!(store.commit_container("absent", &options), Err(ImageError::NotFound(_))));
    assert!(matches!(store.changes("absent"), Err(ImageError::NotFound(_))));
    for id in ["c", "d"] {
        store.remove_snapshot(id).unwrap();
    }
    store.prune(Prune::Unused).unwrap();
    assert_tidy(store.root());
}
