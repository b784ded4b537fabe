//! Whatever a registry, an archive or a person sends: never a panic, never more than it says, never out of its place.
//!
//! Seeded, so that a failure can be repeated. `GANTRY_FUZZ_SECONDS` makes each of these go on for longer than in CI, and
//! `GANTRY_FUZZ_SEED` begin elsewhere.

use std::io::{Cursor, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::auth;
use crate::catalog;
use crate::digest::Digest;
use crate::manifest::{self, ConfigFile, Document};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::tarball::TarReader;
use crate::unpack::{self, Limits};

/// A small generator of numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Call with seed after seed: the first `tries`, or as many as the time of a long run allows.
fn for_a_while(tries: u64, mut try_one: impl FnMut(&mut Random)) {
    let long = std::env::var_os("GANTRY_FUZZ_SECONDS").is_some();
    let deadline = Instant::now() + Duration::from_secs(number("GANTRY_FUZZ_SECONDS", 0));
    let first = number("GANTRY_FUZZ_SEED", 0);
    for seed in first.. {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| try_one(&mut random)));
        assert!(caught.is_ok(), "seed {seed}; repeat it with GANTRY_FUZZ_SEED={seed}");
        if if long { Instant::now() > deadline } else { seed - first >= tries } {
            println!("{} tries", seed - first);
            return;
        }
    }
}

/// Spoil a good example in a few places: bytes, pieces doubled, cut or exchanged, words put in.
fn spoil(random: &mut Random, good: &[u8], words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(40)).min(bytes.len());
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..end, [])),
            2 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            3 | 4 => {
                let word = random.pick(words).to_vec();
                bytes.splice(at..end.min(at + word.len()), word);
            }
            _ if at < bytes.len() => bytes[at] = random.below(256) as u8,
            _ => {}
        }
    }
    bytes
}

const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn digests_are_those_that_they_print_as() {
    for_a_while(5000, |random| {
        let text = spoil(random, HEX.as_bytes(), &[b"sha512:", b"../", b"A", b"%2e", "ä".as_bytes(), b"\0"]);
        let text = String::from_utf8_lossy(&text);
        if let Ok(digest) = text.parse::<Digest>() {
            assert_eq!(digest.to_string(), text);
            assert!(!digest.hex().contains(['/', '.']));
        }
    });
}

#[test]
fn references_are_those_that_they_print_as() {
    let good =
        ["registry.example.com:5000/shop/api:2", "busybox", "a/b_c--d.e:T-1", &format!("x/y:1@{HEX}"), "[::1]:5/x"];
    let words: [&[u8]; 9] = [b"..", b"//", b":", b"@", b"docker.io/", b"localhost", b" ", "ä".as_bytes(), b"\n"];
    for_a_while(5000, |random| {
        let base = *random.pick(&good);
        let text = spoil(random, base.as_bytes(), &words);
        let text = String::from_utf8_lossy(&text);
        match text.parse::<Reference>() {
            Ok(reference) => {
                assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference, "{text:?}");
                assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference, "{text:?}");
                assert!(!reference.name().contains("..") || reference.registry().contains(".."), "{text:?}");
            }
            Err(error) => assert!(error.hint().is_some()),
        }
    });
}

/// Values that JSON may have where something else is expected.
const JSON: [&[u8]; 14] = [
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\"\"",
    b"true",
    b"\"\\ud800\"",
    b"[[[[[[",
    b"\"layers\":",
    b"\"urls\":[\"http://x\"],",
    b"0.5",
    b",",
];

#[test]
fn manifests_and_indexes_are_refused_or_whole() {
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{HEX}","size":2}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{HEX}","size":3,
            "annotations":{{"a":"b"}}}}],"subject":null}}"#,
        manifest::OCI_MANIFEST,
        manifest::OCI_CONFIG
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{HEX}","size":2,
            "platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}]}}"#,
        manifest::OCI_MANIFEST
    );
    let config =
        format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{HEX}"]}}}}"#);
    let config = ConfigFile::parse("x", config.as_bytes()).unwrap();
    let host = Platform::host();
    for_a_while(5000, |random| {
        let good = if random.below(2) == 0 { &manifest } else { &index };
        let bytes = spoil(random, good.as_bytes(), &JSON);
        match manifest::parse("x", Some(manifest::OCI_MANIFEST), &bytes) {
            Ok(Document::Manifest(manifest)) => {
                if let Ok(specs) = manifest.layer_specs("x", &config) {
                    assert_eq!(specs.len(), 1);
                    assert!(manifest.layers.iter().all(|layer| layer.urls.is_empty()));
                }
            }
            Ok(Document::Index(parts)) => {
                if let Ok(chosen) = manifest::choose("x", &parts, &host) {
                    assert!(chosen.platform.as_ref().is_none_or(|platform| platform.fits(&host).is_some()));
                }
            }
            Err(error) => assert!(error.hint().is_some() && !error.to_string().is_empty()),
        }
    });
}

#[test]
fn configurations_are_refused_or_used() {
    let good = format!(
        r#"{{"created":"2023-11-14T22:13:20Z","architecture":"amd64","os":"linux","variant":null,"config":{{"User":"a:b",
            "ExposedPorts":{{"80/tcp":{{}}}},"Env":["A=1"],"Cmd":["x"],"Volumes":null,"WorkingDir":"/","Labels":{{"a":"b"}},
            "StopSignal":"TERM","Healthcheck":{{"Test":["CMD","x"],"Interval":1,"Retries":3}}}},
            "rootfs":{{"type":"layers","diff_ids":["{HEX}"]}},"history":[{{"created_by":"x","empty_layer":true}}]}}"#
    );
    let host = Platform::host();
    for_a_while(5000, |random| {
        let bytes = spoil(random, good.as_bytes(), &JSON);
        if let Ok(config) = ConfigFile::parse("x", &bytes) {
            let _ = config.check_platform("x", &host);
            let _ = config.platform().to_string();
            // What is used again as JSON comes back.
            let text = serde_json::to_string(&config.config).unwrap();
            assert_eq!(serde_json::from_str::<manifest::ImageConfig>(&text).unwrap(), config.config);
        }
    });
}

#[test]
fn challenges_never_panic_and_give_bounded_lists() {
    let good = r#"Bearer realm="https://auth.example.com/token",service="registry",scope="repository:a/b:pull,push", Basic realm="x""#;
    let words: [&[u8]; 9] = [b"\"", b"\\\"", b",", b"=", b" ", b"Basic", b"\t", "ä".as_bytes(), b"realm="];
    for_a_while(5000, |random| {
        let text = spoil(random, good.as_bytes(), &words);
        let text = String::from_utf8_lossy(&text);
        let found = auth::parse_challenges(&text);
        assert!(found.len() <= text.len());
        let all: usize =
            found.iter().flat_map(|one| one.parameters.iter()).map(|(key, value)| key.len() + value.len()).sum();
        assert!(all <= text.len() * 3, "{text}");
    });
}

/// A good archive with everything in it.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |kind: tar::EntryType, path: &str, link: Option<&str>, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_uid(1);
        header.set_gid(2);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        match link {
            Some(link) => tar.append_link(&mut header, path, link).unwrap(),
            None => {
                if path == "attributes" {
                    tar.append_pax_extensions([("SCHILY.xattr.user.x", &b"1"[..]), ("size", b"3")]).unwrap();
                }
                tar.append_data(&mut header, path, data).unwrap();
            }
        }
    };
    add(tar::EntryType::Directory, "d/", None, b"");
    add(tar::EntryType::Regular, "d/file", None, b"content");
    add(tar::EntryType::Symlink, "out", Some("/"), b"");
    add(tar::EntryType::Link, "again", Some("d/file"), b"");
    add(tar::EntryType::Regular, &"long/".repeat(40), None, b"");
    add(tar::EntryType::Regular, "attributes", None, b"abc");
    add(tar::EntryType::Fifo, "pipe", None, b"");
    add(tar::EntryType::Char, "null", None, b"");
    add(tar::EntryType::Regular, "d/.wh.gone", None, b"");
    add(tar::EntryType::Regular, "d/.wh..wh..opq", None, b"");
    tar.into_inner().unwrap()
}

/// Headers are only looked at if their checksum is right.
fn repair_checksums(random: &mut Random, bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        let looks_like_a_header = &block[257..262] == b"ustar";
        if looks_like_a_header && random.below(8) != 0 {
            let sum: u32 =
                block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { u32::from(*b) }).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

const TAR: [&[u8]; 16] = [
    b"../",
    b"/",
    b"..",
    b".wh.",
    b".wh..wh..opq",
    b"\0",
    b"7777777",
    b"\x80\xff\xff\xff\xff\xff\xff\xff",
    b"out/",
    b"x",
    b"g",
    b"L",
    b"K",
    b"S",
    b"30 size=99999999999999999\n",
    b"19 GNU.sparse.major=1\n",
];

fn spoilt_archive(random: &mut Random, good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    // In place mostly, so that blocks stay where they are.
    for _ in 0..=random.below(6) {
        let word = random.pick(&TAR);
        let at = random.below(bytes.len() - word.len());
        match random.below(3) {
            0 => bytes[at] = random.below(256) as u8,
            _ => bytes[at..at + word.len()].copy_from_slice(word),
        }
    }
    if random.below(5) == 0 {
        bytes = spoil(random, &bytes, &TAR);
    }
    repair_checksums(random, &mut bytes);
    bytes
}

#[test]
fn archives_are_read_within_their_bounds() {
    let good = archive();
    for_a_while(3000, |random| {
        let bytes = spoilt_archive(random, &good);
        let mut reader = TarReader::new(Cursor::new(&bytes));
        let (mut members, mut data) = (0, 0);
        let mut buffer = [0; 1000];
        while let Ok(Some(member)) = reader.next_member() {
            members += 1;
            assert!(member.path.len() <= bytes.len() && member.link.len() <= bytes.len());
            while let Ok(count @ 1..) = reader.read_data(&mut buffer) {
                data += count;
            }
        }
        assert!(members <= bytes.len() / 512 && data <= bytes.len(), "{members} members, {data} bytes");
    });
}

/// A tree that must not change beside one that may.
#[test]
fn archives_are_unpacked_inside_or_refused() {
    let good = archive();
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("canary"), "alive").unwrap();
    let mut unpacked = 0;
    for_a_while(400, |random| {
        let bytes = spoilt_archive(random, &good);
        for name in ["tree", "scratch"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let limits = Limits { bytes: 1 << 20, inodes: 1000 };
        let done = unpack::unpack(Cursor::new(&bytes), &at("tree"), &at("scratch"), &at("list"), limits);
        if let Ok((meta, _)) = done {
            unpacked += 1;
            assert!(meta.size <= limits.bytes && meta.inodes <= limits.inodes + 300);
            // Its list can be read back.
            assert!(catalog::read(&at("list")).unwrap().is_some());
        }
        assert_eq!(std::fs::read_to_string(at("canary")).unwrap(), "alive");
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert!(names <= 4, "{names} names");
        for name in ["tree", "scratch"] {
            std::fs::remove_dir_all(at(name)).unwrap();
        }
        let _ = std::fs::remove_file(at("list"));
    });
    assert!(unpacked > 0, "all were refused");
}

/// What another reader sees in a good archive, this one sees too.
#[test]
fn archives_mean_the_same_to_another_reader() {
    for_a_while(300, |random| {
        let mut tar = tar::Builder::new(Vec::new());
        for member in 0..random.below(8) {
            let path = format!("{}{member}", "d/".repeat(random.below(90)));
            let data: Vec<u8> = (0..random.below(1500)).map(|_| random.below(256) as u8).collect();
            let mut header = if random.below(2) == 0 { tar::Header::new_gnu() } else { tar::Header::new_ustar() };
            header.set_size(data.len() as u64);
            header.set_mode(0o640);
            header.set_uid(random.below(3_000_000) as u64 % 2_097_151);
            header.set_mtime(random.below(1 << 30) as u64);
            if random.below(3) == 0 {
                tar.append_pax_extensions([("SCHILY.xattr.user.a", &b"b"[..])]).unwrap();
            }
            // A name that this form of a header cannot hold is another test's.
            let _ = tar.append_data(&mut header, Path::new(&path), &data[..]);
        }
        let bytes = tar.into_inner().unwrap();
        let mut theirs = Vec::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            let header = entry.header();
            theirs.push((
                entry.path_bytes().to_vec(),
                header.mode().unwrap(),
                header.uid().unwrap(),
                header.mtime().unwrap(),
                data,
            ));
        }
        let mut ours = Vec::new();
        let mut reader = TarReader::new(Cursor::new(&bytes));
        while let Some(member) = reader.next_member().unwrap() {
            let mut data = vec![0; member.size as usize];
            let mut filled = 0;
            while filled < data.len() {
                filled += reader.read_data(&mut data[filled..]).unwrap();
            }
            let time = u64::try_from(member.mtime_s).unwrap();
            ours.push((member.path, member.mode, u64::from(member.uid), time, data));
        }
        assert_eq!(ours, theirs);
    });
}

#[test]
fn lists_of_files_are_refused_or_read() {
    let hash = blake3::hash(b"x").to_hex();
    let good = format!(
        "d\t755\t0\t0\ta\nf\t644\t1\t2\t5\t{hash}\ta/b\nh\ta/b\tc\nl\t0\t0\tx%0ay\tl\nw\tgone\nx\tuser.a\tb\ta\n-\tc\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("files");
    for_a_while(1000, |random| {
        std::fs::write(
            &path,
            spoil(random, good.as_bytes(), &[b"\t", b"\n", b"%", b"-1", b"99999999999", b"../", b"h\t"]),
        )
        .unwrap();
        let _ = catalog::read(&path);
    });
}
