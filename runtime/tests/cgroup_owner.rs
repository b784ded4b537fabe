//! Whose the cgroup is: of a container that may make cgroups below its own, on v2; never on v1.

mod common;

use common::{Bed, cgroups, id};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

const BASE: u32 = 100_000;

fn is_pure_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A bed in a user namespace of its own, with its cgroups mounted writable or not.
fn bed(script: &str, writable: bool) -> Bed {
    let mut bed = Bed::new(script);
    let owner = format!("{BASE}:{BASE}");
    assert!(Command::new("chown").args(["-hR", &owner]).arg(bed.rootfs("")).status().expect("chown").success());
    fs::set_permissions(bed.path(""), fs::Permissions::from_mode(0o755)).expect("its mode");
    let map = json!([{"containerID": 0, "hostID": BASE, "size": 65_536}]);
    bed.config["linux"]["uidMappings"] = map.clone();
    bed.config["linux"]["gidMappings"] = map;
    let kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup", "user"];
    bed.config["linux"]["namespaces"] = json!(kinds.map(|kind| json!({"type": kind})));
    let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["destination"] != json!("/sys/fs/cgroup"));
    let options = if writable { vec!["nosuid", "noexec", "nodev"] } else { vec!["nosuid", "noexec", "nodev", "ro"] };
    mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}));
    bed
}

/// Users of the directory and of some of its files, as the host sees them.
fn owners(directory: &Path) -> Vec<u32> {
    let names = ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads", "pids.max", "cgroup.freeze"];
    let paths = names.map(|name| directory.join(name));
    paths.iter().filter_map(|path| fs::metadata(path).ok()).map(|found| found.uid()).collect()
}

#[test]
fn a_writable_mount_gives_the_cgroup_to_the_user_of_the_process() {
    for (why, writable, uid, owner) in
        [("root", true, 0, BASE), ("another user", true, 7, BASE + 7), ("read-only", false, 0, 0)]
    {
        let mut bed = bed("sleep 1000", writable);
        bed.config["process"]["user"] = json!({"uid": uid, "gid": 0});
        bed.config["linux"]["resources"]["pids"] = json!({"limit": 50});
        let name = id("owner");
        bed.ok(&["run", "-d", &name]);
        if is_pure_v2() {
            let [directory] = cgroups(&name).try_into().expect("one directory");
            assert_eq!(owners(&directory), [owner, owner, owner, owner, 0, 0], "{why}");
        } else {
            assert!(cgroups(&name).iter().flat_map(|path| owners(path)).all(|user| user == 0), "{why}: v1 is for root");
        }
        bed.ok(&["delete", "--force", &name]);
        bed.assert_gone(&name);
    }
}

#[test]
fn what_it_makes_is_its_own_and_goes_with_it() {
    if !is_pure_v2() {
        return; // there is nothing to give
    }
    let script =
        "cd /sys/fs/cgroup && mkdir -p inner/deep && echo $$ > inner/deep/cgroup.procs && cat /proc/self/cgroup
        echo +pids > cgroup.subtree_control; cat inner/cgroup.controllers | tr ' ' '\\n' | grep pids
        echo max 2>/dev/null > pids.max || echo limits stay";
    let bed = bed(script, true);
    assert_eq!(bed.says(), "0::/inner/deep\npids\nlimits stay\n");
}
