//! Images in which somebody keeps exchanging directories, files and links while containers are made from them.
//!
//! A swapped state leads, by an absolute link, to a tree of the host; a directory of the same path inside the image, the
//! twin, is where it leads when it is resolved correctly. So neither state stops a container, what lands in the twin
//! proves that the race was hit, and what lands on the host is a hole. `GANTRY_TEST_ROUNDS` sets the number of rounds;
//! a round is one resolution of a path.

mod common;
#[path = "common/hostile.rs"]
mod hostile;

use common::{Bed, id};
use gantry_runtime::container::copy_up;
use gantry_runtime::container::path::{Links, RootDir};
use hostile::{CLIMB, Canary, rounds, while_swapping, with_leaks};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A directory `a` that is exchanged with a link `b` to `canary`, and the twin of that in `root`.
struct Arena {
    pair: (PathBuf, PathBuf),
    real: fs::File,
    twin: PathBuf,
}

impl Arena {
    /// - `at`: where the pair is.
    /// - `root`: what absolute links are resolved from.
    fn new(at: &Path, root: &Path, canary: &Canary) -> Self {
        let pair = (at.join("a"), at.join("b"));
        fs::create_dir_all(&pair.0).expect("a directory");
        symlink(canary.path(), &pair.1).expect("a link");
        let twin = root.join(canary.path().strip_prefix("/").expect("absolute"));
        fs::create_dir_all(&twin).expect("the twin");
        let real = fs::File::open(&pair.0).expect("the real one");
        Self { pair, real, twin }
    }

    /// The real directory, wherever it is now.
    fn real(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.real.as_raw_fd()))
    }

    /// How many files of that beginning the real directory and the twin hold; they are removed.
    fn harvest(&self, beginning: &str) -> (u64, u64) {
        let take = |dir: &Path| {
            let entries = fs::read_dir(dir).expect("entries").flatten();
            let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning));
            let remove =
                |path: PathBuf| fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)).expect("removed");
            ours.map(|entry| remove(entry.path())).count() as u64
        };
        (take(&self.real()), take(&self.twin))
    }
}

#[test]
fn resolving_making_and_opening() {
    let canary = Canary::new();
    let dir = tempfile::tempdir_in("/run").expect("a directory");
    let arena = Arena::new(dir.path(), dir.path(), &canary);
    for place in [arena.real(), arena.twin.clone()] {
        fs::write(place.join("there"), "").expect("a file");
    }
    let root = fs::File::open(dir.path()).expect("the root");
    let root = RootDir(root.as_fd());
    let inodes =
        |name: &str| [arena.real(), arena.twin.clone()].map(|dir| fs::metadata(dir.join(name)).expect(name).ino());
    let known = inodes("there");
    let mut opened = [0, 0];
    let ((), swaps) = while_swapping(std::slice::from_ref(&arena.pair), || {
        for round in 0..rounds(4000) {
            let (name, links) = (round % 500, Links::for_path("/a"));
            // Any of them may fail in the moment of the exchange; none may act outside.
            let _ = root.make_dir(&format!("/a/made{name}"), links);
            let _ = root.make_dir(&format!("/a/made-deep{name}/x/y"), links);
            let _ = root.make_file(&format!("/a/made-file{name}"), Links::Follow);
            if let Ok((parent, name)) = root.parent(&format!("/a/made-node{name}"), links) {
                let _ = rustix::fs::mknodat(&parent, name.as_str(), FileType::Fifo, Mode::RUSR, 0);
            }
            if let Ok(found) = root.open("/a/there", OFlags::PATH, Links::Follow) {
                let inode = rustix::fs::fstat(found).expect("a file").st_ino;
                let which = known.iter().position(|&known| known == inode);
                opened[which.expect("the real one or the twin")] += 1;
            }
        }
    });
    let (real, twin) = arena.harvest("made");
    eprintln!("{swaps} exchanges, {real} made in the real directory, {twin} in the twin, opened {opened:?}");
    assert!(real > 0 && twin > 0 && opened[0] > 0 && opened[1] > 0, "the race was hit");
    canary.assert_untouched("resolution");
}

#[test]
fn copying_files_that_are_exchanged() {
    let canary = Canary::new();
    let dir = tempfile::tempdir_in("/run").expect("a directory");
    let source = dir.path().join("c");
    fs::create_dir(&source).expect("a directory");
    let spare = dir.path().join("spare");
    fs::create_dir(&spare).expect("a directory");
    // Pairs that must not mix: a privileged file's mode with another's content, a pipe that is read, a directory
    // that becomes a link to the host.
    fs::write(source.join("tool"), "privileged").expect("a file");
    fs::set_permissions(source.join("tool"), fs::Permissions::from_mode(0o4755)).expect("its mode");
    fs::write(spare.join("tool"), "evil").expect("a file");
    fs::set_permissions(spare.join("tool"), fs::Permissions::from_mode(0o644)).expect("its mode");
    fs::write(source.join("pipe"), "file").expect("a file");
    rustix::fs::mknodat(CWD, spare.join("pipe"), FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
    fs::create_dir(source.join("dir")).expect("a directory");
    fs::write(source.join("dir/inside"), "inside").expect("a file");
    symlink(canary.path(), spare.join("dir")).expect("a link");
    fs::write(source.join("link"), "file").expect("a file");
    symlink(canary.path().join("passwd"), spare.join("link")).expect("a link");
    let pairs = ["tool", "pipe", "dir", "link"].map(|name| (source.join(name), spare.join(name)));
    let root = fs::File::open(dir.path()).expect("the root");
    let (mut done, mut tools) = (0, [0, 0]);
    let ((), swaps) = while_swapping(&pairs, || {
        for _ in 0..rounds(2000) {
            let target = tempfile::tempdir_in("/run").expect("a directory");
            let fd = fs::File::open(target.path()).expect("a directory");
            done += u32::from(copy_up::copy(RootDir(root.as_fd()), "/c", fd.as_fd()).is_ok());
            let at = |name: &str| target.path().join(name);
            if let Ok(content) = fs::read(at("tool")) {
                let mode = fs::metadata(at("tool")).expect("a file").mode() & 0o7777;
                // One that was not finished is for its owner only.
                assert!(mode & 0o6000 == 0 || content == b"privileged", "{mode:o} {content:?}");
                tools[usize::from(content == b"evil")] += 1;
            }
            for name in ["dir", "link"] {
                let Ok(found) = fs::symlink_metadata(at(name)) else { continue };
                assert!(found.is_symlink() || !at(name).join("passwd").exists(), "copied from the host: {name}");
                assert!(!found.is_file() || fs::read(at(name)).is_ok_and(|text| text != b"root"), "{name}");
            }
        }
    });
    eprintln!("{swaps} exchanges, {done} copies went through, tools {tools:?}");
    assert!(done > 0 && tools[0] > 0 && tools[1] > 0, "both states were seen");
    canary.assert_untouched("copying");
}

/// A container with many things to do below `/a` and `/vol/a`.
fn busy(bed: &mut Bed, volume: &Path) -> usize {
    let mut count = 1;
    let file = bed.path("file");
    fs::write(&file, "bound").expect("a file");
    let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["destination"] == "/proc" || mount["destination"] == "/dev");
    mounts.push(json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["rbind"]}));
    for prefix in ["/a", "/vol/a"] {
        for number in 0..8 {
            let at = |kind: &str| format!("{prefix}/made-{kind}{number}");
            mounts.push(json!({"destination": at("dir") + "/deep/er", "type": "tmpfs", "options": ["size=4k"]}));
            mounts.push(json!({"destination": at("file"), "type": "bind", "source": file, "options": ["bind", "ro"]}));
            mounts.push(json!({"destination": format!("{prefix}/there"), "type": "tmpfs", "options": ["tmpcopyup"]}));
            mounts.push(json!({"destination": at("flat"), "type": "tmpfs", "options": ["size=4k"]}));
            count += 4;
        }
    }
    let mut devices = Vec::new();
    let (mut masked, mut readonly): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for prefix in ["/a", "/vol/a"] {
        for number in 0..6 {
            devices.push(
                json!({"type": "c", "path": format!("{prefix}/made-node{number}"), "major": 1, "minor": 3, "uid": 1}),
            );
            masked.push(json!(format!("{prefix}/keep/file")));
            masked.push(json!(format!("{prefix}/keep/dir")));
            readonly.push(json!(format!("{prefix}/keep/ro")));
            count += 4;
        }
    }
    bed.config["linux"]["devices"] = json!(devices);
    bed.config["linux"]["maskedPaths"] = json!(masked);
    bed.config["linux"]["readonlyPaths"] = json!(readonly);
    bed.config["process"]["cwd"] = json!("/a/made-cwd/x");
    bed.config["root"]["readonly"] = json!(false);
    count
}

#[test]
fn containers_from_an_image_that_changes() {
    let canary = Canary::new();
    let mut bed = Bed::new("true");
    let volume = bed.path("volume");
    fs::create_dir(&volume).expect("a volume");
    let per_container = busy(&mut bed, &volume);
    bed.save();
    let root = bed.rootfs("");
    let arenas = [Arena::new(&root, &root, &canary), Arena::new(&volume, &root, &canary)];
    for place in [arenas[0].real(), arenas[1].real(), arenas[0].twin.clone()] {
        for dir in ["keep/dir", "keep/ro", "there/deep"] {
            fs::create_dir_all(place.join(dir)).expect("a directory");
        }
        for file in ["keep/file", "there/deep/file"] {
            fs::write(place.join(file), "x").expect("a file");
        }
    }
    let pairs: Vec<_> = arenas.iter().map(|arena| arena.pair.clone()).collect();
    let (mut made, mut done, mut tried) = ((0, 0), 0, 0);
    let mut refusals = std::collections::BTreeMap::new();
    let ((), swaps) = while_swapping(&pairs, || {
        while tried * per_container < rounds(4000) {
            let ran = common::finish(&mut bed.command(&["run", &id("race")]));
            // A refusal in the moment of an exchange is fine.
            assert!(ran.code == 0 || ran.code == 1 || ran.code == 126, "{ran:?}");
            done += usize::from(ran.code == 0);
            if ran.code != 0 {
                *refusals.entry(ran.err.split(['[', '`']).next().unwrap_or("").to_owned()).or_insert(0) += 1;
            }
            tried += 1;
            for arena in &arenas {
                let (real, twin) = arena.harvest("made");
                made = (made.0 + real, made.1 + twin);
            }
        }
    });
    eprintln!(
        "{swaps} exchanges, {done} of {tried} containers ran, {made:?} made in (real, twin); refused: {refusals:?}"
    );
    assert!(done > 0 && made.0 > 0 && made.1 > 0, "the race was hit");
    canary.assert_untouched("containers");
}

#[test]
fn working_directories_that_become_links_to_our_descriptors() {
    let canary = Canary::new();
    let mut bed = Bed::new(CLIMB);
    fs::write(bed.rootfs("marker-inside"), "").expect("a file");
    bed.config["process"]["cwd"] = json!("/w");
    bed.config["root"]["readonly"] = json!(false);
    let mut pairs = vec![(bed.rootfs("w"), bed.rootfs("w2"))];
    fs::create_dir(&pairs[0].0).expect("a directory");
    // Descriptor 3 is the host's root.
    symlink("/proc/self/fd/3", &pairs[0].1).expect("a link");
    let seen = std::cell::RefCell::new([0_u32; 2]);
    let check = |how: &str, ran: &common::Ran| {
        assert!(ran.code != 0 || ran.out.contains("marker-inside"), "{how} is outside: {ran:?}");
        assert!(ran.code == 0 || ran.err.contains("directory"), "{how}: {ran:?}");
        seen.borrow_mut()[usize::from(ran.code != 0)] += 1;
    };
    let count = rounds(100);
    let ((), _) = while_swapping(&pairs, || {
        for _ in 0..count {
            check("run", &with_leaks(&bed, &["run", "--preserve-fds", "1", &id("cwd")]));
        }
    });
    bed.config["process"]["args"] = json!(["sleep", "100000"]);
    bed.config["process"]["cwd"] = json!("/");
    let name = id("into");
    bed.ok(&["run", "-d", &name]);
    pairs[0] = (bed.rootfs("w"), bed.rootfs("w2"));
    let ((), swaps) = while_swapping(&pairs, || {
        for _ in 0..count {
            check("exec", &with_leaks(&bed, &["exec", "--preserve-fds", "1", "--cwd", "/w", &name, "sh", "-c", CLIMB]));
        }
    });
    let [inside, refused] = *seen.borrow();
    eprintln!("{swaps} exchanges, {inside} were inside, {refused} refused");
    assert!(inside > 0 && refused > 0, "the race was hit");
    canary.assert_untouched("working directories");
}

#[test]
fn a_null_device_that_changes_masks_nothing_with_another_file() {
    let canary = Canary::new();
    let mut bed = Bed::new("for f in /etc/secret*; do cat $f; done; echo end");
    let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["destination"] == "/proc");
    fs::create_dir(bed.rootfs("dev")).expect("dev");
    let masked: Vec<String> = (0..6).map(|number| format!("/etc/secret{number}")).collect();
    for path in &masked {
        fs::write(bed.rootfs(&path[1..]), "secret").expect("a file");
    }
    bed.config["linux"]["maskedPaths"] = json!(masked);
    let node = |path: &Path, minor| {
        let number = rustix::fs::makedev(1, minor);
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), number).expect("a node");
    };
    node(&bed.rootfs("dev/null"), 3);
    symlink(canary.path().join("passwd"), bed.rootfs("dev/other")).expect("a link");
    bed.save();
    let pairs = [(bed.rootfs("dev/null"), bed.rootfs("dev/other"))];
    let mut seen = [0, 0];
    let ((), swaps) = while_swapping(&pairs, || {
        for _ in 0..rounds(100) {
            let ran = common::finish(&mut bed.command(&["run", &id("null")]));
            assert!(ran.code == 1 || ran.out == "end\n", "{ran:?}");
            seen[usize::from(ran.code == 1)] += 1;
        }
    });
    eprintln!("{swaps} exchanges, {seen:?} masked and refused");
    assert!(seen[0] > 0 && seen[1] > 0, "the race was hit");
    canary.assert_untouched("masked paths");
}
