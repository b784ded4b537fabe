//! The lab's own cgroups: the one record of which processes are its, even when every file is lost.
//!
//! `<cgroup_parent>/lab-<name>/<who>` in each hierarchy that the machine mounts, v1 and v2 alike, where `who` is a
//! node, `switch` or `forward`.

use super::error::LabError;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Controllers that a node's own manager may want on v2.
const V2_WANTED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// Dying takes the kernel milliseconds; a process in an uninterruptible call takes longer.
const REMOVE_WITHIN: Duration = Duration::from_secs(15);

/// More than two labs in a row are not removed in the microseconds that making a path takes.
const MAKE_AGAIN: u32 = 3;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Mount options that name a v1 hierarchy; `None` for v2.
    pub v1: Option<String>,
}

/// All hierarchies, and the lab's place in them.
#[derive(Debug, Clone)]
pub struct Groups {
    /// As mounted.
    pub hierarchies: Vec<Hierarchy>,
    top: String,
}

/// Where a process of the lab must write itself, in this order.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Join {
    /// Before it makes its cgroup namespace: these become the root there.
    pub root: Vec<PathBuf>,
    /// Afterwards: on v2 a cgroup with children that have controllers may hold no process itself.
    pub leaf: Vec<PathBuf>,
}

impl Join {
    /// Moves this process to the root of its node.
    ///
    /// # Errors
    /// The cgroup is gone, which says that the lab is being removed.
    pub fn enter_root(&self) -> Result<(), LabError> {
        self.root.iter().try_for_each(|file| fs::write(file, "0").map_err(LabError::file("join", file)))
    }

    /// Moves this process to the node's leaves.
    ///
    /// # Errors
    /// As above.
    pub fn enter_leaf(&self) -> Result<(), LabError> {
        self.leaf.iter().try_for_each(|file| fs::write(file, "0").map_err(LabError::file("join", file)))
    }
}

impl Groups {
    /// Finds the hierarchies of this machine.
    ///
    /// # Errors
    /// None is mounted below /sys/fs/cgroup.
    pub fn discover(parent: &str, lab: &str) -> Result<Self, LabError> {
        let file = "/proc/self/mountinfo";
        let text = fs::read_to_string(file).map_err(LabError::file("read", file))?;
        let hierarchies = parse(&text);
        if hierarchies.is_empty() {
            return Err(LabError::NoCgroups);
        }
        Ok(Self { hierarchies, top: format!("{}/lab-{lab}", parent.trim_matches('/')) })
    }

    /// The lab's cgroup, as a person would name it.
    pub fn name(&self) -> String {
        format!("/{}", self.top)
    }

    fn path(&self, hierarchy: &Hierarchy, who: Option<&str>) -> PathBuf {
        let top = hierarchy.mount.join(&self.top);
        who.map_or_else(|| top.clone(), |who| top.join(who))
    }

    /// Makes the cgroups of `who`; may be repeated.
    ///
    /// # Errors
    /// A cgroup cannot be made.
    pub fn ensure(&self, who: &str) -> Result<Join, LabError> {
        let mut join = Join::default();
        for hierarchy in &self.hierarchies {
            let leaf = self.path(hierarchy, Some(who));
            // Another lab's `down` may remove a parent that was empty until now: then it is made again.
            let mut made = make_below(&hierarchy.mount, &leaf, hierarchy.v1.as_deref());
            for _ in 0..MAKE_AGAIN {
                if made.is_ok() {
                    break;
                }
                made = make_below(&hierarchy.mount, &leaf, hierarchy.v1.as_deref());
            }
            made?;
            if hierarchy.v1.is_some() {
                // `tasks` and not `cgroup.procs`: moving one thread spares the kernel a grace period of 8 to 25 ms.
                join.root.push(leaf.join("tasks"));
            } else {
                let init = leaf.join("init");
                make(&init)?;
                join.root.push(leaf.join("cgroup.procs"));
                join.leaf.push(init.join("cgroup.procs"));
            }
        }
        Ok(join)
    }

    /// Where a process that comes to a running node writes itself.
    pub fn visit(&self, who: &str) -> Join {
        let root = self.hierarchies.iter().map(|hierarchy| {
            let leaf = self.path(hierarchy, Some(who));
            if hierarchy.v1.is_some() { leaf.join("tasks") } else { leaf.join("init/cgroup.procs") }
        });
        Join { root: root.collect(), leaf: Vec::new() }
    }

    /// Every process in the cgroups of `who`, or of the whole lab.
    pub fn pids(&self, who: Option<&str>) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            for folder in folders(&self.path(hierarchy, who)) {
                let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
            }
        }
        pids
    }

    /// Whether anything of the lab's cgroups exists.
    pub fn exist(&self) -> bool {
        self.hierarchies.iter().any(|hierarchy| self.path(hierarchy, None).is_dir())
    }

    /// Ends whatever is left in the cgroups of `who` (or of the whole lab) and removes them.
    ///
    /// # Errors
    /// They are still there after a while: a process cannot die, or new ones keep coming.
    pub fn remove(&self, who: Option<&str>) -> Result<(), LabError> {
        let tops: Vec<PathBuf> = self.hierarchies.iter().map(|hierarchy| self.path(hierarchy, who)).collect();
        let deadline = Instant::now() + REMOVE_WITHIN;
        let mut pause = Duration::from_millis(1);
        loop {
            for folder in tops.iter().flat_map(|top| folders(top)) {
                // A frozen process cannot die. The files are there on one of v1 and v2 each; absent is fine.
                for (file, value) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0"), ("cgroup.kill", "1")] {
                    write_if_there(&folder.join(file), value);
                }
            }
            for pid in self.pids(who) {
                self.end(pid);
            }
            for folder in tops.iter().flat_map(|top| folders(top)) {
                drop(fs::remove_dir(folder)); // busy: tried again below
            }
            let left: Vec<&PathBuf> = tops.iter().filter(|top| top.is_dir()).collect();
            if left.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                let names: Vec<String> = left.iter().map(|path| path.display().to_string()).collect();
                return Err(LabError::Cgroups(names.join(", ")));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        if who.is_none() {
            self.remove_empty_parents();
        }
        Ok(())
    }

    /// The cgroups above the lab's go too when nothing else uses them.
    fn remove_empty_parents(&self) {
        for hierarchy in &self.hierarchies {
            let mut parent = Path::new(&self.top).parent();
            while let Some(relative) = parent.filter(|path| !path.as_os_str().is_empty()) {
                if fs::remove_dir(hierarchy.mount.join(relative)).is_err() {
                    break;
                }
                parent = relative.parent();
            }
        }
    }

    /// SIGKILL through a descriptor, after a second look that the process it names is in the lab's cgroup.
    fn end(&self, pid: i32) {
        let Some(target) = Pid::from_raw(pid).filter(|_| pid != std::process::id() as i32) else {
            return;
        };
        let Ok(pidfd) = pidfd_open(target, PidfdFlags::empty()) else {
            return; // gone
        };
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if groups.lines().any(|line| in_group(line, &self.top)) {
            let _ = pidfd_send_signal(pidfd, Signal::KILL); // ESRCH: it ended meanwhile
        }
    }
}

/// Whether a line of `/proc/PID/cgroup` names `top` or a cgroup below it. The line's path starts at the root of the
/// cgroup namespace, which may lie below the mount's root: so its end, not its beginning, is compared with care.
fn in_group(line: &str, top: &str) -> bool {
    let path = line.splitn(3, ':').nth(2).unwrap_or_default();
    let wanted = format!("/{top}/");
    format!("{path}/").contains(&wanted)
}

fn write_if_there(file: &Path, value: &str) {
    if let Ok(mut opened) = fs::OpenOptions::new().write(true).open(file) {
        // Ending what is frozen or half removed is repeated by the caller until the cgroup is gone.
        drop(io::Write::write_all(&mut opened, value.as_bytes()));
    }
}

/// `mkdir` that may be repeated.
fn make(path: &Path) -> Result<(), LabError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(LabError::file("make cgroup", path)(error)),
        _ => Ok(()),
    }
}

/// Makes every cgroup between the mount point and `leaf`, each ready to hold processes.
fn make_below(mount: &Path, leaf: &Path, v1: Option<&str>) -> Result<(), LabError> {
    let cpuset = v1.is_some_and(|options| options.split(',').any(|option| option == "cpuset"));
    let steps: Vec<&Path> = leaf.ancestors().take_while(|path| *path != mount).collect();
    for path in steps.into_iter().rev() {
        let parent = path.parent().unwrap_or(mount);
        if v1.is_none() {
            enable_controllers(parent);
        }
        make(path)?;
        if cpuset {
            for item in ["cpuset.cpus", "cpuset.mems"] {
                let file = path.join(item);
                if fs::read_to_string(&file).is_ok_and(|text| text.trim().is_empty()) {
                    let inherited = parent.join(item);
                    let value = fs::read_to_string(&inherited).map_err(LabError::file("read", &inherited))?;
                    fs::write(&file, value.trim()).map_err(LabError::file("write", &file))?;
                }
            }
        }
    }
    Ok(())
}

/// Hands the usual v2 controllers down. One that cannot be handed down is missing in the nodes, where the runtime
/// says so when a container asks for it.
fn enable_controllers(parent: &Path) {
    let have = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    let on = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in V2_WANTED {
        if have.split_whitespace().any(|c| c == controller) && !on.split_whitespace().any(|c| c == controller) {
            write_if_there(&parent.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
    }
}

/// `top` and every cgroup below it, children before parents.
fn folders(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![top.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        open.extend(below.map(|entry| entry.path()));
        found.push(folder);
    }
    found.reverse();
    found
}

/// The cgroup hierarchies in the text of a mountinfo file.
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(mount), mut right) = (left.split(' ').nth(4), right.split(' ')) else {
            continue;
        };
        if !mount.starts_with("/sys/fs/cgroup") {
            continue;
        }
        let v1 = match right.next() {
            Some("cgroup2") => None,
            Some("cgroup") => Some(v1_options(right.nth(1).unwrap_or_default())),
            _ => continue,
        };
        let hierarchy = Hierarchy { mount: PathBuf::from(mount), v1 };
        if !found.iter().any(|other| other.v1 == hierarchy.v1) {
            found.push(hierarchy);
        }
    }
    found
}

/// What is left of a v1 mount's super options when only those that name the hierarchy are kept.
fn v1_options(options: &str) -> String {
    let names: Vec<&str> = options
        .split(',')
        .filter(|option| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children" | "noprefix" | "cpuset_v2_mode"))
        .filter(|option| !option.starts_with("release_agent="))
        .collect();
    let named = names.iter().any(|option| option.starts_with("name="));
    let controllers = names.iter().any(|option| !option.starts_with("name="));
    if named && !controllers { format!("none,{}", names.join(",")) } else { names.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_from_mountinfo() {
        let hybrid = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset,release_agent=/x
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
99 31 0:38 / /mnt/other rw,relatime - cgroup2 cgroup2 rw
";
        let found: Vec<(String, Option<String>)> =
            parse(hybrid).into_iter().map(|h| (h.mount.display().to_string(), h.v1)).collect();
        let want = [
            ("/sys/fs/cgroup/cpu,cpuacct", Some("cpu,cpuacct")),
            ("/sys/fs/cgroup/cpuset", Some("cpuset")),
            ("/sys/fs/cgroup/systemd", Some("none,name=systemd")),
            ("/sys/fs/cgroup/unified", None),
        ];
        assert_eq!(found, want.map(|(mount, v1)| (mount.to_owned(), v1.map(str::to_owned))));
        let pure = parse("28 23 0:24 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(pure, [Hierarchy { mount: "/sys/fs/cgroup".into(), v1: None }]);
        assert!(parse("nonsense\n - \na b c d /sys/fs/cgroup/x - cgroup\n").len() <= 1);
    }

    #[test]
    fn only_the_lab_s_own_cgroup_is_its() {
        for (line, own) in [
            ("4:memory:/gantry/lab-a/n1", true),
            ("0::/gantry/lab-a", true),
            ("0::/above/gantry/lab-a/n1/init", true),
            ("0::/gantry/lab-ab/n1", false),
            ("0::/gantry", false),
            ("0::/", false),
            ("", false),
        ] {
            assert_eq!(in_group(line, "gantry/lab-a"), own, "{line}");
        }
    }
}
