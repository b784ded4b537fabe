//! Devices of a container, and what its cgroup lets it do with them.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::{Value, json};

use super::{Device, Overrides, bad};
use crate::error::{Result, at};

/// Character devices that every container may use: null, zero, full, random, urandom, tty, console, ptmx, and
/// pseudo-terminals (kernel: `admin-guide/devices.txt`). `None` is all minor numbers.
const ORDINARY: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Directories of `/dev` that are file systems of their own in a container.
const OWN: [&str; 4] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"];

/// The devices to make, and the rules of the cgroup. Making a node is allowed, using it only by a rule.
pub(super) fn devices(overrides: &Overrides) -> Result<(Vec<Value>, Value)> {
    let mut nodes = overrides.devices.iter().map(node).collect::<Result<Vec<_>>>()?;
    if overrides.privileged {
        let mut all = Vec::new();
        collect(Path::new("/dev"), &mut all);
        all.retain(|found| !nodes.iter().any(|(node, _)| node["path"] == found["path"]));
        nodes.extend(all.into_iter().map(|node| (node, String::new())));
        return Ok((nodes.into_iter().map(|(node, _)| node).collect(), json!([{ "allow": true, "access": "rwm" }])));
    }
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    for (major, minor) in ORDINARY {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rules.push(rule);
    }
    for (node, access) in &nodes {
        rules.push(json!({
            "allow": true, "type": node["type"], "major": node["major"], "minor": node["minor"], "access": access,
        }));
    }
    Ok((nodes.into_iter().map(|(node, _)| node).collect(), Value::Array(rules)))
}

/// A device as the container gets it, and the access to it.
fn node(device: &Device) -> Result<(Value, String)> {
    let shown = device.host.display().to_string();
    let access = if device.permissions.is_empty() { "rwm" } else { device.permissions.as_str() };
    if !access.chars().all(|c| "rwm".contains(c)) {
        return Err(bad("device", shown, format!("permissions `{access}` must be of r, w and m")));
    }
    if !device.container.starts_with('/') || device.container.split('/').any(|part| part == "..") {
        return Err(bad("device", &device.container, "must be an absolute path"));
    }
    let meta = std::fs::metadata(&device.host).map_err(at("look at", &device.host))?;
    let value = describe(&meta, &device.container).ok_or_else(|| bad("device", shown, "is not a device"))?;
    Ok((value, access.to_owned()))
}

fn describe(meta: &std::fs::Metadata, path: &str) -> Option<Value> {
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None,
    };
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let mode = meta.permissions().mode() & 0o777;
    Some(
        json!({ "path": path, "type": kind, "major": major, "minor": minor, "fileMode": mode, "uid": meta.uid(), "gid": meta.gid() }),
    )
}

/// All devices of the host; what goes away meanwhile is left out.
fn collect(dir: &Path, found: &mut Vec<Value>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let (Ok(meta), Some(text)) = (path.symlink_metadata(), path.to_str()) else {
            continue;
        };
        if OWN.contains(&text) || text == "/dev/console" {
            continue;
        }
        if meta.is_dir() {
            collect(&path, found);
        } else {
            found.extend(describe(&meta, text));
        }
    }
}
