//! What is measured, made ready: the programs, one bundle for all of them, and a view of the host with cgroup v1 only.

use crate::error::{Error, Result};
use crate::{binaries, files, host, process, sys};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The default profile of podman and docker, from Debian's package.
const PROFILE: &str = "/usr/share/containers/seccomp.json";
const GRANTED: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// Everything in its place.
pub(super) struct Stage {
    /// Bundles, state and logs; in memory.
    pub(super) folder: PathBuf,
    pub(super) ours: PathBuf,
    pub(super) floor: PathBuf,
}

/// One runtime with a state root of its own.
#[derive(Clone)]
pub(super) struct Runtime {
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    pub(super) root: PathBuf,
}

impl Runtime {
    /// A command of it.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(args);
        command
    }
}

impl Stage {
    /// Installs the peers, builds, and hides the unified hierarchy from this process and its children.
    pub(super) fn set() -> Result<Self> {
        host::check_root("bench runtime")?;
        host::install(&[
            ("crun", "crun"),
            ("runc", "runc"),
            ("gcc", "gcc"),
            ("strace", "strace"),
            ("/usr/include/stdlib.h", "libc6-dev"),
            (PROFILE, "golang-github-containers-common"),
        ])?;
        let folder = PathBuf::from(format!("/dev/shm/gantry-bench-{}", std::process::id()));
        std::fs::create_dir(&folder).map_err(Error::file("make", &folder))?;
        let ours = match std::env::var_os("GANTRY_RUNTIME_BIN") {
            Some(built) => PathBuf::from(built),
            None => binaries::runtime()?,
        };
        let stage = Self { ours: folder.join("gantry-runtime"), floor: folder.join("floor"), folder };
        std::fs::copy(&ours, &stage.ours).map_err(Error::file("copy", &ours))?;
        sys::own_mount_namespace("/sys/fs/cgroup/unified").map_err(Error::file("hide", Path::new("/sys/fs/cgroup")))?;
        stage.bundle("true", &["/program"], 256 << 20)?;
        stage.compile("program.c", include_str!("program.c"), &stage.folder.join("true/rootfs/program"))?;
        let filter = process::text(&mut stage.seccomp_filter())?;
        stage.write("filter.h", &format!("static const struct sock_filter filter[] = {{\n{filter}}};\n"))?;
        stage.compile("floor.c", include_str!("floor.c"), &stage.floor)?;
        Ok(stage)
    }

    /// The command that shows the filter of the bundle's profile.
    pub(super) fn seccomp_filter(&self) -> Command {
        let mut example = binaries::cargo();
        example.args(["run", "--quiet", "--locked", "--release", "-p", "gantry-runtime"]);
        example.args(["--example", "seccomp_filter", "--"]).arg(self.folder.join("true/config.json"));
        example
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::write(&path, text).map_err(Error::file("write", &path))?;
        Ok(path)
    }

    fn compile(&self, name: &str, source: &str, program: &Path) -> Result<()> {
        let source = self.write(name, source)?;
        let flags = ["-O2", "-static", "-Wno-unused-result", "-o"];
        process::run(Command::new("gcc").args(flags).arg(program).arg(source))
    }

    /// The three runtimes: ours first.
    pub(super) fn runtimes(&self) -> [Runtime; 3] {
        let one = |name: &'static str, program: PathBuf| Runtime {
            name,
            program,
            root: self.folder.join(format!("state-{name}")),
        };
        let found = |name: &str| process::find(name).unwrap_or_else(|| name.into());
        [one("gantry", self.ours.clone()), one("crun", found("crun")), one("runc", found("runc"))]
    }

    /// A bundle on the common root filesystem.
    ///
    /// - `memory`: limit in bytes.
    pub(super) fn bundle(&self, name: &str, args: &[&str], memory: u64) -> Result<PathBuf> {
        let bundle = self.folder.join(name);
        let rootfs = self.folder.join("true/rootfs");
        for folder in ["proc", "sys", "dev", "etc"] {
            let folder = rootfs.join(folder);
            std::fs::create_dir_all(&folder).map_err(Error::file("make", &folder))?;
        }
        std::fs::create_dir_all(&bundle).map_err(Error::file("make", &bundle))?;
        let profile: Value =
            serde_json::from_str(&files::read(Path::new(PROFILE))?).map_err(|error| Error::input(PROFILE, error))?;
        let config = config(args, &rootfs, memory, seccomp(&profile));
        self.write(&format!("{name}/config.json"), &format!("{config:#}"))?;
        Ok(bundle)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            eprintln!("xtask: cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// What `runc spec` writes, and a cgroup namespace, limits and the profile.
fn config(args: &[&str], rootfs: &Path, memory: u64, seccomp: Value) -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let strict = ["nosuid", "noexec", "nodev"];
    let with = |more: &[&'static str]| [&strict[..], more].concat();
    let namespaces: Vec<Value> =
        ["pid", "network", "ipc", "uts", "mount", "cgroup"].iter().map(|kind| json!({"type": kind})).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": GRANTED, "effective": GRANTED, "permitted": GRANTED},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": rootfs, "readonly": true},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &with(&["mode=1777", "size=65536k"])),
            mount("/dev/mqueue", "mqueue", "mqueue", &strict),
            mount("/sys", "sysfs", "sysfs", &with(&["ro"])),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &with(&["relatime", "ro"])),
        ],
        "linux": {
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": memory},
                "pids": {"limit": 100},
            },
            "namespaces": namespaces,
            "seccomp": seccomp,
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// The profile as an engine hands it to a runtime: for this processor and the capabilities granted.
fn seccomp(profile: &Value) -> Value {
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let (native, name) = match std::env::consts::ARCH {
        "aarch64" => ("SCMP_ARCH_AARCH64", "arm64"),
        _ => ("SCMP_ARCH_X86_64", "amd64"),
    };
    let maps = profile["archMap"].as_array().into_iter().flatten();
    let architectures: Vec<String> = maps
        .filter(|map| map["architecture"] == native)
        .flat_map(|map| [vec![native.to_owned()], strings(&map["subArchitectures"])].concat())
        .collect();
    let granted = |capability: &String| GRANTED.contains(&capability.as_str());
    let applies = |rule: &Value| {
        let (with, without) = (&rule["includes"], &rule["excludes"]);
        let on = strings(&with["arches"]);
        (on.is_empty() || on.iter().any(|one| one == name))
            && strings(&with["caps"]).iter().all(granted)
            && !strings(&without["arches"]).iter().any(|one| one == name)
            && !strings(&without["caps"]).iter().any(granted)
    };
    let rules: Vec<Value> = profile["syscalls"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|rule| applies(rule))
        .map(|rule| {
            let mut one = json!({"names": rule["names"], "action": rule["action"]});
            for key in ["args", "errnoRet"] {
                if rule.get(key).is_some_and(|value| !value.is_null() && value != &json!([])) {
                    one[key] = rule[key].clone();
                }
            }
            one
        })
        .collect();
    let mut profile_of_bundle = json!({
        "defaultAction": profile["defaultAction"],
        "architectures": architectures,
        "syscalls": rules,
    });
    if let Some(errno) = profile.get("defaultErrnoRet").filter(|errno| !errno.is_null()) {
        profile_of_bundle["defaultErrnoRet"] = errno.clone();
    }
    profile_of_bundle
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_cut_down_to_what_applies() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            ],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}, "excludes": {}},
                {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_KILL"]}},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]},
                    "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
                {"names": ["tee"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_KILL"]}},
                {"names": ["s390"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
            ],
        });
        let cut = seccomp(&profile);
        let names: Vec<&Value> = cut["syscalls"].as_array().unwrap().iter().map(|rule| &rule["names"][0]).collect();
        assert_eq!(names, ["read", "kill", "clone"]);
        assert_eq!(cut["architectures"].as_array().unwrap().len(), 2);
        assert_eq!(cut["defaultErrnoRet"], 38);
        assert!(cut["syscalls"][0].get("args").is_none());
        assert_eq!(cut["syscalls"][2]["args"][0]["value"], 1);
    }
}
