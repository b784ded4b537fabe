//! Images that go through other tools and come back: digests and files are the same. Peers that are not installed are
//! left out (Debian: skopeo, umoci, podman, buildah).

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use gantry_images::{Digest, Image, LoadSource, NoProgress, SnapshotOptions, Store};
use nix::mount::{MsFlags, mount};
use tar::EntryType;

use crate::common::{Built, Layer, TIME, Tar, tree, workplace};

fn installed(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        println!("skipped: {program} is not installed");
    }
    there
}

/// All that a layer can hold and other tools keep.
fn rich() -> Built {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("usr/{}/{}", "long-directory-name".repeat(9), "file".repeat(40));
    let base = Tar::new()
        .dir("./", 0o755)
        .dir("bin", 0o755)
        .owned(EntryType::Regular, "bin/su", 0o4755, 3, 4)
        // As tar writes it: some tools give the file what its other name says.
        .entry(EntryType::Link, "bin/su2", b"", |h| {
            h.set_link_name("bin/su").unwrap();
            h.set_mode(0o4755);
            h.set_uid(3);
            h.set_gid(4);
        })
        .symlink("bin/sh", "/bin/busybox")
        .symlink("dangling", "../../nowhere")
        .owned(EntryType::Directory, "home", 0o2750, 1000, 1001)
        .owned(EntryType::Regular, "home/mine", 0o600, 1000, 1001)
        .dir("tmp", 0o1777)
        .dir("gone", 0o755)
        .file("gone/a", "1")
        .dir("opaque", 0o755)
        .file("opaque/old", "1")
        .entry(EntryType::Fifo, "pipe", b"", |h| h.set_mode(0o622))
        .dir("usr", 0o755)
        .dir(&format!("usr/{}", "long-directory-name".repeat(9)), 0o755)
        .file(&long, "deep")
        .file("name with spaces, ä and 日本", "x")
        .pax("SCHILY.xattr.user.note", b"a\nb")
        .file("attributes", "x")
        .pax("SCHILY.xattr.security.capability", &capability)
        .file("capable", "x");
    let top = Tar::new()
        .file(".wh.gone", "")
        .dir("opaque", 0o755)
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "2")
        .file("big", &"0123456789".repeat(30_000));
    Built::new(&[Layer::gzip(base), Layer::gzip(top)])
}

/// `tree` with attributes and names; times of files are compared here, those of directories not every tool keeps.
fn detailed(root: &Path) -> Vec<String> {
    // Long content by its digest, so that a difference can be read.
    let short = |line: String| {
        if line.len() > 500 { format!("{}… {}", &line[..100], Digest::of(line.as_bytes())) } else { line }
    };
    let mut lines: Vec<String> = tree(root).into_iter().map(short).collect();
    for path in every(root) {
        let meta = path.symlink_metadata().unwrap();
        let shown = path.strip_prefix(root).unwrap().display().to_string();
        if !meta.is_dir() {
            assert_eq!(meta.mtime(), TIME as i64, "{shown}");
        }
        for name in ["user.note", "security.capability"] {
            let mut value = [0; 64];
            if let Ok(length) = rustix::fs::lgetxattr(&path, name, &mut value[..]) {
                lines.push(format!("{shown} {name} {:?}", &value[..length]));
            }
        }
        if meta.is_file() && meta.nlink() > 1 {
            lines.push(format!("{shown} has {} names", meta.nlink()));
        }
    }
    lines.sort();
    lines
}

fn every(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            all.extend(every(&path));
        }
        all.push(path);
    }
    all.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    all
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// A store with the image in it, and its files.
fn ours(work: &Path, built: &Built) -> (Store, Image, Vec<String>) {
    built.write_layout(&work.join("layout"), "shop/rich:1");
    let store = Store::open(work.join("store")).unwrap();
    let image = store.load(LoadSource::Path(work.join("layout")), &NoProgress).unwrap().remove(0);
    let rootfs = store.snapshot(&image, "ours", &SnapshotOptions::default()).unwrap().rootfs;
    let files = detailed(&rootfs);
    assert!(files.len() > 20, "{files:?}");
    (store, image, files)
}

/// What another store makes of an archive, and its files.
fn back(work: &Path, name: &str, archive: &Path) -> (Image, Vec<String>) {
    let store = Store::open(work.join(name)).unwrap();
    let image = store.load(LoadSource::Path(archive.to_path_buf()), &NoProgress).unwrap().remove(0);
    let rootfs = store.snapshot(&image, "back", &SnapshotOptions::default()).unwrap().rootfs;
    let files = detailed(&rootfs);
    (image, files)
}

#[test]
fn skopeo_copies_the_store_and_what_it_saves_without_a_change() {
    if !installed("skopeo") {
        return;
    }
    let (work, built) = (workplace("128m"), rich());
    let (store, image, files) = ours(&work, &built);
    let skopeo = |from: &str, to: &str| {
        run(Command::new("skopeo").args(["copy", "--quiet", "--insecure-policy", from, to]).env("TMPDIR", &work));
    };
    store.save(&["shop/rich:1"], &mut fs::File::create(work.join("saved.tar")).unwrap(), "saved.tar").unwrap();
    skopeo("oci:/mnt/store:docker.io/shop/rich:1", "oci-archive:/mnt/from-store.tar:shop/rich:1");
    skopeo("oci-archive:/mnt/saved.tar", "oci:/mnt/from-saved:shop/rich:1");
    skopeo("docker-archive:/mnt/saved.tar", "docker-archive:/mnt/docker.tar:shop/rich:1");
    for (name, archive) in [("a", "from-store.tar"), ("b", "from-saved")] {
        let (other, found) = back(&work, name, &work.join(archive));
        assert_eq!((other.digest, other.id), (image.digest, image.id), "{archive}");
        assert_eq!(found, files, "{archive}");
    }
    // The other form has no manifest of its own, but the same configuration.
    let (other, found) = back(&work, "c", &work.join("docker.tar"));
    assert_eq!((other.id, found), (image.id, files));
}

#[test]
fn umoci_unpacks_the_store_to_the_same_files() {
    if !installed("umoci") {
        return;
    }
    let (work, built) = (workplace("128m"), rich());
    let (_store, _, files) = ours(&work, &built);
    run(Command::new("umoci").args(["unpack", "--image", "/mnt/store:docker.io/shop/rich:1", "/mnt/bundle"]));
    assert_eq!(detailed(&work.join("bundle/rootfs")), files);
    // And what it makes itself from there is an image for us.
    fs::write(work.join("bundle/rootfs/new"), "n").unwrap();
    fs::File::open(work.join("bundle/rootfs/new"))
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(TIME))
        .unwrap();
    run(Command::new("umoci").args(["repack", "--image", "/mnt/layout:more", "/mnt/bundle"]));
    let more = Store::open(work.join("more")).unwrap();
    let images = more.load(LoadSource::Path(work.join("layout")), &NoProgress).unwrap();
    let image = images.iter().find(|image| image.layers.len() == 3).expect("its image");
    let rootfs = more.snapshot(image, "c", &SnapshotOptions::default()).unwrap().rootfs;
    assert_eq!(fs::read_to_string(rootfs.join("new")).unwrap(), "n");
    let mut with_new = files;
    with_new.push("new 644 0:0 file \"n\"".to_owned());
    with_new.sort();
    assert_eq!(detailed(&rootfs), with_new);
}

/// podman and buildah keep their things in one place.
fn containers(program: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["--root", "/mnt/podman", "--runroot", "/mnt/podman-run", "--storage-driver", "vfs"]);
    command.env("TMPDIR", "/mnt").env("HOME", "/mnt").env("XDG_RUNTIME_DIR", "/mnt/xdg");
    command
}

#[test]
fn podman_and_buildah_take_and_give_the_same_files() {
    if !installed("podman") || !installed("buildah") {
        return;
    }
    let (work, built) = (workplace("256m"), rich());
    let (store, image, files) = ours(&work, &built);
    store.save(&["shop/rich:1"], &mut fs::File::create(work.join("saved.tar")).unwrap(), "saved.tar").unwrap();
    run(containers("podman").args(["load", "--quiet", "-i", "/mnt/saved.tar"]));
    let id = run(containers("podman").args(["image", "inspect", "--format", "{{.Id}}", "shop/rich:1"]));
    assert_eq!(id, image.id.hex());
    let mounted = run(containers("podman").args(["image", "mount", "shop/rich:1"]));
    assert_eq!(detailed(Path::new(&mounted)), files, "as podman unpacks it");
    run(containers("podman").args(["image", "umount", "shop/rich:1"]));
    for format in ["oci-archive", "docker-archive"] {
        let archive = format!("/mnt/{format}.tar");
        run(containers("podman").args(["save", "--quiet", "--format", format, "-o", &archive, "shop/rich:1"]));
        let (other, found) = back(&work, format, Path::new(&archive));
        let diffs = |image: &Image| image.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>();
        assert_eq!((other.id, diffs(&other), found), (image.id, diffs(&image), files.clone()), "{format}");
    }
    // buildah makes a layer on top.
    let from = run(containers("buildah").args(["from", "--pull-never", "shop/rich:1"]));
    fs::write(work.join("added"), "by buildah").unwrap();
    run(containers("buildah").args(["copy", "--quiet", &from, "/mnt/added", "/added"]));
    run(containers("buildah").args([
        "commit",
        "--quiet",
        "--timestamp",
        &TIME.to_string(),
        &from,
        "oci-archive:/mnt/built.tar:built:1",
    ]));
    let (built, found) = back(&work, "built", Path::new("/mnt/built.tar"));
    assert_eq!(built.layers.len(), 3);
    let mut with_added = files;
    with_added.push("added 644 0:0 file \"by buildah\"".to_owned());
    with_added.sort();
    assert_eq!(found, with_added);
}

/// The same image on the file systems that hosts have.
#[test]
fn every_file_system_holds_the_same_files() {
    let work = workplace("1g");
    let built = rich();
    let mut seen: Vec<(String, Vec<String>)> = Vec::new();
    for (name, make) in [
        ("ext4", &["mkfs.ext4", "-q", "-F"][..]),
        ("xfs", &["mkfs.xfs", "-q", "-f"]),
        ("btrfs", &["mkfs.btrfs", "-q", "-f"]),
        ("tmpfs", &[]),
    ] {
        let at = work.join(name);
        fs::create_dir(&at).unwrap();
        if let Some((program, options)) = make.split_first() {
            let image = work.join(format!("{name}.img"));
            fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
            let mut made = Command::new(program);
            made.args(options).arg(&image).stdout(Stdio::null()).stderr(Stdio::null());
            if !made.status().is_ok_and(|status| status.success()) {
                println!("skipped: {program} is not there");
                continue;
            }
            // The loop device goes with the mount, and that with this thread.
            let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at).status().unwrap();
            if !mounted.success() {
                println!("skipped: {name} cannot be mounted");
                continue;
            }
        } else {
            mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        let (_, _, files) = ours(&at, &built);
        seen.push((name.to_owned(), files));
    }
    let (first, files) = &seen[0];
    for (name, others) in &seen[1..] {
        assert_eq!(others, files, "{name} beside {first}");
    }
    assert!(seen.len() > 1, "{seen:?}");
}
