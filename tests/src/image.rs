//! An image for tests, made from the host's static busybox: an OCI layout without any tool.

use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// A web server that tells who answers: `GET /cgi-bin/who` gives the replica's host name, `/cgi-bin/slow` answers
/// after a while, `/index.html` says `ok`.
const WHO: &str = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nhostname\n";
const APPLETS: [&str; 22] = [
    "sh", "httpd", "hostname", "cat", "echo", "sleep", "wget", "ls", "id", "kill", "env", "touch", "nslookup", "true",
    "false", "test", "printf", "mkdir", "date", "tail", "mount", "stat",
];

/// Writes the layout `NAME` below `folder` and answers its path; the image is called `probe:1`.
///
/// # Panics
/// busybox-static is not installed, or the folder cannot be written: the test cannot run.
pub fn probe_image(folder: &Path) -> PathBuf {
    image(&folder.join("probe"), &[])
}

/// As [`probe_image`], with so many more layers of so many bytes of noise each, in the layout `large` below `folder`.
///
/// # Panics
/// As [`probe_image`].
pub fn large_image(folder: &Path, layers: u64, bytes: usize) -> PathBuf {
    let noise: Vec<Vec<u8>> = (1..=layers).map(|seed| noise(seed, bytes)).collect();
    image(&folder.join("large"), &noise)
}

/// A layer with one file that nothing compresses.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, &format!("noise-{seed}"), tar::EntryType::Regular, 0o644, &data[..bytes]);
    tar.into_inner().expect("the layer")
}

fn image(layout: &Path, more: &[Vec<u8>]) -> PathBuf {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("the layout's folder");
    let layers: Vec<Vec<u8>> = std::iter::once(layer()).chain(more.iter().cloned()).collect();
    let digests: Vec<String> = layers.iter().map(|layer| blob(&blobs, layer)).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "Cmd": ["httpd", "-f", "-p", "8080", "-h", "/www"],
            "Env": ["PATH=/bin"],
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": digests.iter().map(|d| format!("sha256:{d}")).collect::<Vec<_>>() },
    });
    let config = config.to_string();
    let config_digest = blob(&blobs, config.as_bytes());
    let descriptor = |kind: &str, digest: &str, size: usize| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": size });
    let packed: Vec<_> = digests.iter().zip(&layers).map(|(d, l)| descriptor("layer.v1.tar", d, l.len())).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config_digest, config.len()),
        "layers": packed,
    })
    .to_string();
    let mut entry = descriptor("manifest.v1+json", &blob(&blobs, manifest.as_bytes()), manifest.len());
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "probe:1" });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(layout.join("index.json"), index.to_string()).expect("index.json");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("oci-layout");
    layout.to_path_buf()
}

fn blob(folder: &Path, bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(folder.join(&digest), bytes).expect("a blob");
    digest
}

fn layer() -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    let busybox = busybox.expect("busybox: apt-get install busybox-static");
    let mut tar = tar::Builder::new(Vec::new());
    for folder in ["bin", "tmp", "www", "www/cgi-bin", "etc", "data"] {
        let mode = if folder == "tmp" { 0o1777 } else { 0o755 };
        add(&mut tar, folder, tar::EntryType::Directory, mode, &[]);
    }
    add(&mut tar, "bin/busybox", tar::EntryType::Regular, 0o755, &busybox);
    for applet in APPLETS {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("a link");
    }
    add(&mut tar, "www/cgi-bin/who", tar::EntryType::Regular, 0o755, WHO.as_bytes());
    add(&mut tar, "www/index.html", tar::EntryType::Regular, 0o644, b"ok\n");
    add(&mut tar, "etc/passwd", tar::EntryType::Regular, 0o644, b"root:x:0:0:root:/:/bin/sh\n");
    add(&mut tar, "etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\n");
    tar.into_inner().expect("the layer")
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, mode: u32, bytes: &[u8]) {
    let mut header = header(kind, mode, bytes.len());
    tar.append_data(&mut header, path, bytes).expect("an entry");
}
