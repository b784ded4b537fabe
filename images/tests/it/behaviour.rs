//! What is done with images that other tools treat differently, row by row, and where each row is tested.
//!
//! | row | outcome | test |
//! |---|---|---|
//! | `..` in names | refused | `hostile::layers_that_reach_out…` |
//! | leading `/` | taken off | `load::layers_become_the_tree…` |
//! | through a symbolic link, absolute or relative; whiteouts and opaque marks too | refused | `hostile::layers_that_reach_out…` |
//! | file over a link of the same layer | replaces it | `load::layers_become_the_tree…` |
//! | hard link out, through a link, to a lower layer, to a directory | refused | `hostile::layers_that_reach_out…` |
//! | whiteout of `.`, `..` or nothing; of what the layer makes | refused | `hostile::layers_that_reach_out…` |
//! | devices, set-id bits, file capabilities | accepted | `load::layers_become_the_tree…` |
//! | attributes of overlayfs | refused | `hostile::layers_that_reach_out…` |
//! | a bomb of bytes, of files | refused by ratio, by limits, by room | `hostile::a_bomb…`, `load::limits_hold`, `room`, here |
//! | names too long, too deep | refused | `hostile::layers_that_reach_out…` |
//! | content, size, digest, diff-id, their number, media types | refused | `hostile::blobs_that_are_not…`, `bad_input` |
//! | layers twice | unpacked once | here |
//! | another platform, also in a single manifest | refused unless asked for | `bad_input`, `load`, `pull` |
//! | malformed or huge JSON | refused | `hostile`, `pull::answers_that_are_wrong…`, here |
//! | `urls` | never asked | `bad_input::addresses_in_a_descriptor…` |
//! | packed otherwise than said, bytes after the end | refused | `hostile::blobs_that_are_not…` |
//! | members after the end of the archive | not there, but in the diff-id | here |
//! | a size in an extended header | counts, for data and for the next member | here |
//! | a directory only passed through | keeps owner, mode and attributes of the layer below | `load::a_private_directory…`, `roots` |
//! | `bin/x` over a link `bin` of a lower layer | a directory of its own, and a warning | here |

use std::fs;

use gantry_images::{Digest, Image, Limits, LoadSource, NoProgress, Result, SnapshotOptions, Store};
use tar::EntryType;

use crate::common::{Built, Layer, Tar, assert_tidy, count, gzip, tree, workplace};

fn load(store: &Store, built: &Built) -> Result<Image> {
    let dir = store.root().with_file_name("layout");
    let _ = fs::remove_dir_all(&dir);
    built.write_layout(&dir, "x");
    store.load(LoadSource::Path(dir), &NoProgress).map(|mut images| images.remove(0))
}

fn shown(store: &Store, image: &Image) -> Vec<String> {
    let files = tree(&store.snapshot(image, "c", &SnapshotOptions::default()).unwrap().rootfs);
    store.remove_snapshot("c").unwrap();
    files
}

#[test]
fn members_after_the_end_are_not_there_but_are_in_the_digest() {
    let work = workplace("32m");
    let store = Store::open(work.join("store")).unwrap();
    let (first, after) = (Tar::new().file("a", "1").bytes(), Tar::new().file("evil", "2").bytes());
    let whole = [first.clone(), after].concat();
    let layer = |diff_id| Layer::raw(diff_id, gzip(&whole), "tar+gzip");
    let error = load(&store, &Built::new(&[layer(Digest::of(&first))])).unwrap_err();
    assert!(error.to_string().contains("unpacked layer"), "{error}");
    let image = load(&store, &Built::new(&[layer(Digest::of(&whole))])).unwrap();
    assert_eq!(shown(&store, &image), ["a 644 0:0 file \"1\""]);
    assert_tidy(store.root());
}

#[test]
fn a_size_in_an_extended_header_counts_for_data_and_for_what_follows() {
    let work = workplace("32m");
    let store = Store::open(work.join("store")).unwrap();
    // The plain header says 0, so a reader that believes it takes the data for the next header.
    let hidden = Tar::new().file("smuggled", "x").bytes();
    let inner = &hidden[..1024];
    let bytes = Tar::new().pax("size", b"1024").entry(EntryType::Regular, "outer", inner, |h| h.set_size(0));
    let mut bytes = bytes.file("next", "n").bytes();
    // `set_size` above changed only the header; its data is there.
    let image = load(&store, &Built::new(&[Layer::raw(Digest::of(&bytes), bytes.clone(), "tar")])).unwrap();
    let names: Vec<String> =
        shown(&store, &image).iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(names, ["next", "outer"]);
    // And the other way: it says more than there is.
    bytes = Tar::new().pax("size", b"4096").file("outer", "x").bytes();
    bytes.truncate(2048);
    let error = load(&store, &Built::new(&[Layer::raw(Digest::of(&bytes), bytes, "tar")])).unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
    assert_tidy(store.root());
}

#[test]
fn a_layer_that_comes_twice_is_kept_once() {
    let work = workplace("32m");
    let store = Store::open(work.join("store")).unwrap();
    let layer = Layer::gzip(Tar::new().file("a", "1"));
    let other = Layer::gzip(Tar::new().file("a", "2"));
    let image = load(&store, &Built::new(&[layer.clone(), other, layer])).unwrap();
    assert_eq!((image.layers.len(), count(&store.root().join("layers"))), (3, 2));
    assert_eq!(shown(&store, &image), ["a 644 0:0 file \"1\""]);
}

#[test]
fn a_directory_over_a_link_of_a_lower_layer_is_a_directory() {
    let work = workplace("32m");
    let store = Store::open(work.join("store")).unwrap();
    let base = Layer::gzip(Tar::new().dir("usr", 0o755).dir("usr/bin", 0o755).symlink("bin", "usr/bin"));
    let top = Layer::gzip(Tar::new().file("bin/x", "x"));
    let image = load(&store, &Built::new(&[base, top])).unwrap();
    let expected = ["bin 755 0:0 dir", "bin/x 644 0:0 file \"x\"", "usr 755 0:0 dir", "usr/bin 755 0:0 dir"];
    assert_eq!(shown(&store, &image), expected);
}

#[test]
fn a_layer_of_very_many_files_is_refused_by_number() {
    let work = workplace("512m");
    let limits = Limits { bytes: 1 << 30, inodes: 20_000 };
    let store = Store::open_with_limits(work.join("store"), limits).unwrap();
    let many = (0..20_001).fold(Tar::new(), |tar, at| tar.file(&format!("f{at}"), ""));
    let error = load(&store, &Built::new(&[Layer::gzip(many)])).unwrap_err();
    assert!(error.to_string().contains("more than 20000 files"), "{error}");
    assert!(error.hint().is_some());
    assert_eq!(count(&store.root().join("layers")), 0);
    assert_tidy(store.root());
}

#[test]
fn documents_are_refused_by_size_before_they_are_read() {
    let work = workplace("128m");
    let store = Store::open(work.join("store")).unwrap();
    let layer = || Layer::gzip(Tar::new().file("a", "1"));
    let huge = format!("{{\"a\":\"{}\"}}", "x".repeat(9 << 20)).into_bytes();
    let error = load(&store, &Built::assemble(&[layer()], huge)).unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
    let mut built = Built::new(&[layer()]);
    built.manifest.extend(vec![b' '; 5 << 20]);
    let error = load(&store, &built).unwrap_err();
    assert!(error.to_string().contains("too big"), "{error}");
    for dir in ["layers", "blobs/sha256"] {
        assert_eq!(count(&store.root().join(dir)), 0, "{dir}");
    }
    assert_tidy(store.root());
}
