//! Copies between a host and a container: what a path means, and that nothing of a container leads out of it.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use gantry_images::transfer::{self, Place, TransferOptions, Transferred};
use gantry_images::{ImageError, Result};
use tar::EntryType;

use crate::common::{TIME, Tar, gzip, tree, workplace};

const PLAIN: TransferOptions = TransferOptions { follow: false, archive: false };
const ARCHIVE: TransferOptions = TransferOptions { follow: false, archive: true };
const FOLLOW: TransferOptions = TransferOptions { follow: true, archive: false };

/// A host with a directory to lose, and a container.
struct Bed {
    host: PathBuf,
    root: PathBuf,
}

impl Bed {
    fn new(work: &Path) -> Self {
        let bed = Self { host: work.join("host"), root: work.join("root") };
        for dir in ["host/dir/sub", "host/secret", "root/etc", "root/dir"] {
            fs::create_dir_all(work.join(dir)).unwrap();
        }
        fs::write(bed.host.join("file"), "host").unwrap();
        fs::write(bed.host.join("dir/a"), "1").unwrap();
        fs::write(bed.host.join("dir/sub/b"), "2").unwrap();
        fs::write(bed.host.join("secret/key"), "secret").unwrap();
        fs::write(bed.root.join("etc/file"), "container").unwrap();
        bed
    }

    fn at(&self, path: &str) -> Place {
        Place::container(&self.root, "c", Path::new(path)).unwrap()
    }

    fn own(&self, path: &str) -> Place {
        // Joined as text, because the ending counts.
        Place::host(Path::new(&format!("{}/{path}", self.host.display()))).unwrap()
    }

    fn put(&self, source: &str, target: &str) -> Result<Transferred> {
        transfer::copy(&self.own(source), &self.at(target), PLAIN)
    }

    fn get(&self, source: &str, target: &str) -> Result<Transferred> {
        transfer::copy(&self.at(source), &self.own(target), PLAIN)
    }

    fn unharmed(&self, case: &str) {
        assert_eq!(tree(&self.host.join("secret")), ["key 644 0:0 file \"secret\""], "{case}");
    }
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_path_means_what_docker_takes_it_for() {
    for (at, (source, target, outcome)) in [
        ("file", "/new", Ok("new")),
        ("file", "/dir", Ok("dir/file")),
        ("file", "/dir/", Ok("dir/file")),
        ("file", "dir", Ok("dir/file")),
        ("file", "/etc/file", Ok("etc/file")),
        ("file", "/none/", Err("no such directory")),
        ("file", "/none/x", Err("is not there")),
        ("file", "/etc/file/", Err("not a directory")),
        ("file/", "/new", Err("Not a directory")),
        ("none", "/new", Err("No such file")),
        ("dir", "/new", Ok("new/sub/b")),
        ("dir", "/new/", Ok("new/sub/b")),
        ("dir/", "/dir", Ok("dir/dir/sub/b")),
        ("dir", "/dir", Ok("dir/dir/sub/b")),
        ("dir/.", "/dir", Ok("dir/sub/b")),
        ("dir/.", "/new", Ok("new/sub/b")),
        ("dir", "/etc/file", Err("cannot be copied to what is none")),
        ("dir/.", "/etc/file", Err("cannot be copied to what is none")),
        ("dir", "/none/x", Err("is not there")),
        ("dir/sub/..", "/new", Ok("new/a")),
        ("dir", "/", Ok("dir/a")),
    ]
    .into_iter()
    .enumerate()
    {
        let work = workplace("16m").join(at.to_string());
        let bed = Bed::new(&work);
        // The same both ways.
        let other = Bed { host: bed.root.clone(), root: bed.host.clone() };
        let back = transfer::copy(
            &other.at(&format!("/{source}")),
            &Place::host(Path::new(&format!("{}/{}", bed.root.display(), target.trim_start_matches('/')))).unwrap(),
            PLAIN,
        );
        match (&back, outcome) {
            (Ok(_), Ok(path)) => {
                assert!(bed.root.join(path).is_file(), "{source} {target}: {:?}", tree(&bed.root));
                fs::remove_dir_all(&work).unwrap();
            }
            (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{source} {target}: {error}"),
            _ => panic!("from the container, {source} {target}: {back:?}"),
        }
        let bed = Bed::new(&work);
        match (bed.put(source, target), outcome) {
            (Ok(done), Ok(path)) => {
                assert!(bed.root.join(path).is_file(), "{source} {target}: {:?}", tree(&bed.root));
                assert!(done.files > 0 && done.bytes > 0 && done.left_out.is_empty(), "{done:?}");
            }
            (Err(error), Err(why)) => {
                let text = error.to_string();
                assert!(text.contains(why) && text.starts_with("cannot copy "), "{source} {target}: {error}");
            }
            (done, _) => panic!("{source} {target}: {done:?}"),
        }
    }
}

#[test]
fn links_of_a_container_stay_in_it() {
    let work = workplace("16m");
    let bed = Bed::new(&work);
    let outside = bed.host.join("secret");
    // As the container sees it, this is its own /mnt/host/secret, which it does not have.
    symlink(&outside, bed.root.join("out")).unwrap();
    symlink("../../../../../../mnt/host/secret", bed.root.join("dir/up")).unwrap();
    symlink("/etc", bed.root.join("inside")).unwrap();
    symlink("/etc/file", bed.root.join("to-file")).unwrap();
    symlink("nowhere", bed.root.join("dangling")).unwrap();
    for path in ["/out/key", "/out/", "/dir/up/key", "/../../../../mnt/host/secret/key", "/out/."] {
        assert!(bed.get(path, "taken").is_err(), "{path}");
        assert!(!bed.host.join("taken").exists(), "{path}");
    }
    for path in ["/out/evil", "/dir/up/evil", "/out/key", "/out/", "/../../mnt/host/secret/evil", "/dangling"] {
        assert!(bed.put("file", path).is_err(), "{path}");
        bed.unharmed(path);
    }
    // What leads elsewhere inside is followed, on both sides.
    bed.get("/inside/file", "one").unwrap();
    assert_eq!(read(bed.host.join("one")), "container");
    bed.put("file", "/inside/new").unwrap();
    assert_eq!(read(bed.root.join("etc/new")), "host");
    bed.put("file", "/to-file").unwrap();
    assert_eq!(read(bed.root.join("etc/file")), "host");
    assert!(bed.root.join("to-file").is_symlink(), "its target was replaced, not the link");
    // A link itself is copied as one; followed when that is asked for, inside.
    bed.get("/to-file", "link").unwrap();
    assert_eq!(fs::read_link(bed.host.join("link")).unwrap(), Path::new("/etc/file"));
    transfer::copy(&bed.at("/to-file"), &bed.own("content"), FOLLOW).unwrap();
    assert_eq!(read(bed.host.join("content")), "host");
    assert!(transfer::copy(&bed.at("/out/key"), &bed.own("taken"), FOLLOW).is_err());
    // A tree with all of them comes as it is, and over itself again.
    bed.get("/", "all").unwrap();
    bed.get("/", "all").unwrap();
    assert_eq!(fs::read_link(bed.host.join("all/out")).unwrap(), outside);
    bed.unharmed("all");
    // A directory where the target has a link, and a file through it.
    fs::create_dir_all(bed.host.join("tree/out")).unwrap();
    fs::write(bed.host.join("tree/out/key"), "evil").unwrap();
    let error = bed.put("tree/.", "/").unwrap_err();
    assert!(error.to_string().contains("over what is none"), "{error}");
    bed.unharmed("a directory over a link");
}

#[test]
fn owners_modes_times_and_kinds_are_kept_as_far_as_is_safe() {
    let work = workplace("16m");
    let bed = Bed::new(&work);
    let from = bed.root.join("dir");
    fs::write(from.join("su"), "x").unwrap();
    std::os::unix::fs::chown(from.join("su"), Some(5), Some(6)).unwrap();
    fs::set_permissions(from.join("su"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::hard_link(from.join("su"), from.join("su2")).unwrap();
    rustix::fs::lsetxattr(from.join("su"), "user.note", b"n", rustix::fs::XattrFlags::empty()).unwrap();
    let node = |name: &str, kind, number| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, from.join(name), kind, mode, number).unwrap();
    };
    node("pipe", rustix::fs::FileType::Fifo, 0);
    node("null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    let _listener = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(TIME);
    for name in ["su", ""] {
        fs::File::open(from.join(name)).unwrap().set_modified(time).unwrap();
    }
    let plain = transfer::copy(&bed.at("/dir"), &bed.own("plain"), PLAIN).unwrap();
    assert_eq!(plain.left_out.len(), 2, "{plain:?}");
    let expected = ["pipe 600 0:0 fifo", "su 755 0:0 file \"x\"", "su2 755 0:0 file \"x\""];
    assert_eq!(tree(&bed.host.join("plain")), expected, "no set-id bits, no devices");
    transfer::copy(&bed.at("/dir"), &bed.own("archive"), ARCHIVE).unwrap();
    let all = tree(&bed.host.join("archive"));
    assert!(all.contains(&"su 6755 5:6 file \"x\"".to_owned()), "{all:?}");
    for name in ["plain", "archive"] {
        let at = |path: &str| bed.host.join(name).join(path).metadata().unwrap();
        assert_eq!(at("su").ino(), at("su2").ino(), "{name}");
        assert_eq!((at("su").mtime(), at("").mtime()), (TIME as i64, TIME as i64), "{name}");
        let mut note = [0; 4];
        let read = rustix::fs::lgetxattr(bed.host.join(name).join("su"), "user.note", &mut note[..]);
        assert_eq!(read.is_ok(), name == "archive", "{name}");
    }
    // Into a container devices go, as root of a container could make them.
    let other = Bed { host: bed.host.clone(), root: work.join("other") };
    fs::create_dir(&other.root).unwrap();
    transfer::copy(&bed.at("/dir"), &other.at("/dir"), ARCHIVE).unwrap();
    assert!(tree(&other.root).contains(&"dir/null 600 0:0 char 1:3".to_owned()), "{:?}", tree(&other.root));
}

#[test]
fn streams_go_both_ways_and_are_as_hostile_as_layers() {
    let work = workplace("16m");
    let bed = Bed::new(&work);
    fs::hard_link(bed.root.join("etc/file"), bed.root.join("etc/again")).unwrap();
    symlink("file", bed.root.join("etc/link")).unwrap();
    std::os::unix::fs::chown(bed.root.join("etc/file"), Some(5), Some(6)).unwrap();
    let mut stream = Vec::new();
    transfer::to_tar(&bed.at("/etc"), &mut stream, PLAIN).unwrap();
    let names: Vec<String> = tar::Archive::new(&stream[..])
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["etc/", "etc/again", "etc/file", "etc/link"]);
    for packed in [stream.clone(), gzip(&stream), zstd::encode_all(&stream[..], 1).unwrap()] {
        let done = transfer::from_tar(&mut Cursor::new(packed), &bed.at("/dir")).unwrap();
        assert_eq!((done.files, tree(&bed.root.join("dir/etc"))), (4, tree(&bed.root.join("etc"))));
    }
    let mut inside = Vec::new();
    transfer::to_tar(&bed.at("/etc/."), &mut inside, PLAIN).unwrap();
    transfer::from_tar(&mut Cursor::new(inside), &bed.at("/")).unwrap();
    assert_eq!(read(bed.root.join("file")), "container");
    symlink("/mnt/host/secret", bed.root.join("out")).unwrap();
    let t = Tar::new;
    for (case, tar, why) in [
        ("dots", t().file("../../host/secret/evil", "x"), "`..`"),
        ("through a link of the container", t().file("out/evil", "x"), "symbolic link"),
        ("through a link of the stream", t().symlink("l", "/mnt/host/secret").file("l/evil", "x"), "symbolic link"),
        ("hard link out", t().hardlink("evil", "../../host/secret/key"), "`..`"),
        ("hard link through a link", t().hardlink("evil", "out/key"), "symbolic link"),
        ("directory over a link", t().dir("out", 0o755), "over what is none"),
        ("over a directory", t().file("etc", "x"), "a directory is there"),
        ("unknown kind", t().entry(EntryType::new(b'M'), "a", b"", |_| {}), "unknown type"),
    ] {
        let error = transfer::from_tar(&mut Cursor::new(tar.bytes()), &bed.at("/")).expect_err(case);
        assert!(error.to_string().contains(why), "{case}: {error}");
        bed.unharmed(case);
    }
    let html = b"<!doctype html>".repeat(100);
    let error = transfer::from_tar(&mut Cursor::new(html), &bed.at("/")).unwrap_err();
    assert!(matches!(error, ImageError::BadArchive { .. }), "{error}");
    let error = transfer::from_tar(&mut Cursor::new(stream[..700].to_vec()), &bed.at("/dir")).unwrap_err();
    assert!(matches!(error, ImageError::BadArchive { .. } | ImageError::Copy { .. }), "{error}");
    let error = transfer::from_tar(&mut Cursor::new(stream), &bed.at("/etc/file")).unwrap_err();
    assert!(error.to_string().contains("not a directory"), "{error}");
}

/// A container that changes its links while it is copied gets nothing of the host.
#[test]
fn links_that_change_meanwhile_lead_nowhere() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let work = workplace("16m");
    let bed = Bed::new(&work);
    let (dir, link) = (bed.root.join("swap"), bed.root.join("swap-link"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("key"), "own").unwrap();
    symlink("/mnt/host/secret", &link).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &link, flags).unwrap();
            }
        });
        let mut right = 0;
        for _ in 0..400 {
            if bed.get("/swap/key", "taken").is_ok() {
                assert_eq!(read(bed.host.join("taken")), "own");
                right += 1;
            }
            // Refused or done, but never through the link.
            let _ = bed.put("dir/.", "/swap");
            let _ = bed.put("file", "/swap/evil");
            bed.unharmed("a race");
        }
        over.store(true, Ordering::Relaxed);
        assert!(right > 0, "never the right one");
    });
}
