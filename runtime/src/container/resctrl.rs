//! `linux.intelRdt`: a share of cache and memory bandwidth, by the resctrl filesystem.
//!
//! ```text
//! /sys/fs/resctrl/            the default class (`closID` "/")
//!   CLASS/schemata, tasks     a class of service: shares, and who is in it
//!   CLASS/mon_groups/ID/      what one container of the class uses
//! ```
//! A class named by `closID` belongs to whoever gave the name and stays; one without a name is the container's own.

use crate::config::{Config, IntelRdt};
use crate::error::{Because, Failure, InStep, Outcome, is_absent};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where it is mounted by custom, and `RDTGROUP_SUPER_MAGIC`.
const USUAL_PLACE: &str = "/sys/fs/resctrl";
const RESCTRL_MAGIC: u64 = 0x0765_5821;

/// What is wrong with the values alone, if anything: the key and why.
///
/// # Errors
/// A class that is no name, a schema of the wrong form.
pub fn check(rdt: &IntelRdt) -> Result<(), (&'static str, String)> {
    if let Some(class) = class(rdt)
        && class != "/"
        && (matches!(class, "." | ".." | "info" | "mon_data" | "mon_groups") || class.contains(['/', '\n', '\0']))
    {
        return Err(("closID", format!("`{class}` is not a name for a class; `/` is the default class")));
    }
    if let Some(schema) = &rdt.mem_bw_schema
        && (!schema.starts_with("MB:") || schema.contains('\n'))
    {
        return Err(("memBwSchema", format!("`{schema}` is not one line that begins with `MB:`")));
    }
    Ok(())
}

/// The named class; an empty name counts as absent, as in Go.
fn class(rdt: &IntelRdt) -> Option<&str> {
    rdt.clos_id.as_deref().filter(|class| !class.is_empty())
}

/// Lines for `schemata`, in the order the specification gives: cache and bandwidth first, the raw lines last.
fn lines(rdt: &IntelRdt) -> Vec<&str> {
    let bandwidth = rdt.mem_bw_schema.as_deref().filter(|line| !line.is_empty());
    let cache = rdt.l3_cache_schema.as_deref().unwrap_or("");
    let cache = cache.lines().filter(|line| bandwidth.is_none() || !line.trim_start().starts_with("MB:"));
    let all = cache.chain(bandwidth).chain(rdt.schemata.iter());
    all.filter(|line| !line.trim().is_empty()).collect()
}

/// A line such as `L3:0=ff;1=0f` as resource and values by domain; numbers lose zeros in front.
fn parse_line(line: &str) -> Option<(String, BTreeMap<String, String>)> {
    let (resource, values) = line.split_once(':')?;
    let plain = |text: &str| {
        let text = text.trim().trim_start_matches('0').to_ascii_lowercase();
        if text.is_empty() { "0".to_owned() } else { text }
    };
    let mut domains = BTreeMap::new();
    for value in values.split(';').filter(|value| !value.trim().is_empty()) {
        let (domain, value) = value.split_once('=')?;
        domains.insert(plain(domain), plain(value));
    }
    Some((resource.trim().to_owned(), domains))
}

/// The first wanted line that a class does not have.
fn first_difference<'a>(wanted: &[&'a str], schemata: &str) -> Option<&'a str> {
    let has: BTreeMap<_, _> = schemata.lines().filter_map(parse_line).collect();
    wanted.iter().copied().find(|line| {
        let Some((resource, domains)) = parse_line(line) else {
            return true;
        };
        let Some(found) = has.get(&resource) else {
            return true;
        };
        domains.iter().any(|(domain, value)| found.get(domain) != Some(value))
    })
}

/// The mount point of resctrl.
///
/// # Errors
/// There is none.
fn find() -> Outcome<PathBuf> {
    if rustix::fs::statfs(USUAL_PLACE).is_ok_and(|found| found.f_type as u64 == RESCTRL_MAGIC) {
        return Ok(PathBuf::from(USUAL_PLACE));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").because(|| "cannot read the mounts".to_owned())?;
    find_in(&mounts).ok_or_else(|| {
        Failure::new("config.json: $.linux.intelRdt: no resctrl filesystem is mounted on this host").hint(format!(
            "`mount -t resctrl resctrl {USUAL_PLACE}` where the processor and the kernel have it \
             (CONFIG_X86_CPU_RESCTRL); else remove `linux.intelRdt` from config.json"
        ))
    })
}

fn find_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let place = mount.split(' ').nth(4)?;
        (filesystem.split(' ').next() == Some("resctrl")).then(|| PathBuf::from(place.replace("\\040", " ")))
    })
}

/// Where the processes of a container go.
#[derive(Debug, PartialEq, Eq)]
pub struct Group {
    /// The class.
    class: PathBuf,
    /// The class is the container's own.
    own: bool,
    /// Its monitoring group.
    monitor: Option<PathBuf>,
}

impl Group {
    fn of(root: &Path, rdt: &IntelRdt, id: &str) -> Self {
        let (path, own) = match class(rdt) {
            Some("/") => (root.to_owned(), false),
            Some(class) => (root.join(class), false),
            None => (root.join(id), true),
        };
        let monitored = rdt.enable_monitoring || rdt.enable_cmt || rdt.enable_mbm;
        let monitor = monitored.then(|| path.join("mon_groups").join(id));
        Self { class: path, own, monitor }
    }

    fn make(&self, rdt: &IntelRdt) -> Outcome<()> {
        let class = self.class.display();
        let wanted = lines(rdt);
        let exists = self.class.is_dir();
        if self.own && exists {
            return Err(Failure::new(format!("`{class}` exists already")).hint("remove it, or name it with `closID`"));
        }
        if !self.own && !exists && wanted.is_empty() {
            return Err(Failure::new(format!("config.json: $.linux.intelRdt.closID: there is no class `{class}`"))
                .hint("make it beforehand, or give its shares with `schemata`"));
        }
        let schemata = self.class.join("schemata");
        if exists {
            let has = fs::read_to_string(&schemata).because(|| format!("cannot read `{}`", schemata.display()));
            return match first_difference(&wanted, &if wanted.is_empty() { String::new() } else { has? }) {
                None => Ok(()),
                Some(line) => Err(Failure::new(format!(
                    "config.json: $.linux.intelRdt: the class `{class}` exists and differs from `{line}`"
                ))
                .hint(format!("its shares are in `{}`", schemata.display()))),
            };
        }
        fs::create_dir(&self.class)
            .because(|| format!("cannot make the class `{class}`"))
            .or_hint("the processor has few classes; see info/*/num_closids in the resctrl filesystem")?;
        let written = wanted.into_iter().try_for_each(|line| {
            fs::write(&schemata, format!("{line}\n"))
                .because(|| format!("cannot write `{line}` to `{}`", schemata.display()))
                .or_hint("see info/last_cmd_status in the resctrl filesystem")
        });
        if written.is_err() {
            let _ = fs::remove_dir(&self.class);
        }
        written
    }

    fn make_monitor(&self) -> Outcome<()> {
        let Some(monitor) = &self.monitor else {
            return Ok(());
        };
        match fs::create_dir(monitor) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            result => result
                .because(|| format!("cannot make the monitoring group `{}`", monitor.display()))
                .or_hint("the processor has few of them; see info/L3_MON/num_rmids in the resctrl filesystem"),
        }
    }

    /// Files to write `0` into, to join: the class, then the monitoring group.
    ///
    /// # Errors
    /// They cannot be opened.
    pub fn doors(&self) -> Outcome<Vec<OwnedFd>> {
        let open = |directory: &Path| {
            let tasks = directory.join("tasks");
            rustix::fs::open(&tasks, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .because(|| format!("cannot open `{}`", tasks.display()))
        };
        std::iter::once(self.class.as_path()).chain(self.monitor.as_deref()).map(open).collect()
    }

    /// Remove what belongs to the container alone; absent is success.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self) -> Outcome<()> {
        // With a class its monitoring groups go as well.
        let directory = if self.own { Some(&self.class) } else { self.monitor.as_ref() };
        let Some(directory) = directory else {
            return Ok(());
        };
        match fs::remove_dir(directory) {
            Err(error) if !is_absent(&error) => {
                Err(error).because(|| format!("cannot remove `{}`", directory.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Make the class and the monitoring group of a container, if its bundle asks for one.
///
/// # Errors
/// No resctrl, no such class, one that differs, or the kernel refuses the shares.
pub fn prepare(config: &Config, id: &str) -> Outcome<Option<Group>> {
    match &config.linux.intel_rdt {
        None => Ok(None),
        Some(rdt) => prepare_in(&find()?, rdt, id).map(Some),
    }
}

fn prepare_in(root: &Path, rdt: &IntelRdt, id: &str) -> Outcome<Group> {
    let group = Group::of(root, rdt, id);
    group.make(rdt)?;
    group.make_monitor().inspect_err(|_| {
        if group.own {
            let _ = fs::remove_dir(&group.class);
        }
    })?;
    Ok(group)
}

/// The group of a container that exists, for `exec` and removal.
///
/// # Errors
/// There is no resctrl any more.
pub fn of(config: &Config, id: &str) -> Outcome<Option<Group>> {
    match &config.linux.intel_rdt {
        None => Ok(None),
        Some(rdt) => Ok(Some(Group::of(&find()?, rdt, id))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: &Value) -> IntelRdt {
        serde_json::from_value(value.clone()).expect("the right shape")
    }

    #[test]
    fn values() {
        for (value, want) in [
            (json!({}), ""),
            (json!({"closID": "gold", "memBwSchema": "MB:0=50"}), ""),
            (json!({"closID": "/"}), ""),
            (json!({"closID": "a/b"}), "closID"),
            (json!({"closID": ".."}), "closID"),
            (json!({"closID": "mon_groups"}), "closID"),
            (json!({"memBwSchema": "L3:0=f"}), "memBwSchema"),
            (json!({"memBwSchema": "MB:0=5\nMB:1=6"}), "memBwSchema"),
        ] {
            assert_eq!(check(&read(&value)).err().map_or("", |(key, _)| key), want, "{value}");
        }
    }

    #[test]
    fn lines_in_the_order_of_the_specification() {
        for (value, want) in [
            (json!({}), ""),
            (json!({"l3CacheSchema": "L3:0=f"}), "L3:0=f"),
            (json!({"l3CacheSchema": "L3:0=f\nMB:0=9", "memBwSchema": "MB:0=5"}), "L3:0=f|MB:0=5"),
            (json!({"l3CacheSchema": "L3:0=f\nMB:0=9"}), "L3:0=f|MB:0=9"),
            (json!({"schemata": ["L2:0=3", "MB:0=7"], "memBwSchema": "MB:0=5"}), "MB:0=5|L2:0=3|MB:0=7"),
            (json!({"schemata": "L3:0=7f0;1=1f\nL2:0=f"}), "L3:0=7f0;1=1f|L2:0=f"),
        ] {
            assert_eq!(lines(&read(&value)).join("|"), want, "{value}");
        }
    }

    #[test]
    fn schemata_are_compared_by_meaning() {
        let has = "    MB:0=100;1= 50\n    L3:0=00ff;1=0fff\n";
        for (wanted, differs) in [
            (&["L3:0=ff"][..], None),
            (&["L3:1=FFF;0=ff", "MB:1=050"], None),
            (&["L3:0=f"], Some("L3:0=f")),
            (&["L3:2=ff"], Some("L3:2=ff")),
            (&["L2:0=1"], Some("L2:0=1")),
            (&["nonsense"], Some("nonsense")),
            (&[], None),
        ] {
            assert_eq!(first_difference(wanted, has), differs, "{wanted:?}");
        }
    }

    #[test]
    fn the_mount_point_is_found() {
        let mounts = "22 1 0:21 / /proc rw - proc proc rw\n30 1 0:30 / /mnt/a\\040b rw shared:5 - resctrl resctrl rw\n";
        assert_eq!(find_in(mounts), Some(PathBuf::from("/mnt/a b")));
        assert_eq!(find_in("22 1 0:21 / /resctrl rw - tmpfs resctrl rw\n"), None);
    }

    /// A directory instead of the kernel's: files come from writing to them.
    #[test]
    fn classes_are_made_checked_and_removed() {
        let root = tempfile::tempdir().expect("a directory");
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("gold/mon_groups")).expect("a class");
        fs::write(path("gold/schemata"), "L3:0=f0;1=f\n").expect("its shares");
        for (why, value, want) in [
            ("a class that is there", json!({"closID": "gold"}), ""),
            ("with the same shares", json!({"closID": "gold", "l3CacheSchema": "L3:0=f0"}), ""),
            ("with others", json!({"closID": "gold", "l3CacheSchema": "L3:0=1"}), "exists and differs from `L3:0=1`"),
            ("a class that is not there", json!({"closID": "lead"}), "there is no class"),
            ("the default class", json!({"closID": "/"}), ""),
            ("a class to be made", json!({"closID": "tin", "schemata": ["L3:0=3"]}), ""),
            ("a class of its own", json!({"memBwSchema": "MB:0=20"}), ""),
            ("the same again", json!({"memBwSchema": "MB:0=20"}), "exists already"),
            ("monitored", json!({"closID": "gold", "enableMonitoring": true}), ""),
        ] {
            let got = prepare_in(root.path(), &read(&value), "box");
            let got = got.err().map_or(String::new(), |failure| failure.to_string());
            assert!(if want.is_empty() { got.is_empty() } else { got.contains(want) }, "{why}: {got}");
        }
        assert_eq!(fs::read_to_string(path("tin/schemata")).expect("shares"), "L3:0=3\n");
        assert_eq!(fs::read_to_string(path("box/schemata")).expect("shares"), "MB:0=20\n");
        assert!(path("gold/mon_groups/box").is_dir());
        for file in ["box/tasks", "gold/tasks", "gold/mon_groups/box/tasks"] {
            fs::write(path(file), "").expect("tasks");
        }
        let own = Group::of(root.path(), &read(&json!({})), "box");
        assert_eq!(own.doors().expect("the door").len(), 1);
        let shared = Group::of(root.path(), &read(&json!({"closID": "gold", "enableCMT": true})), "box");
        assert_eq!(shared.doors().expect("both doors").len(), 2);
        // The kernel's files vanish with their directory.
        for file in ["box/tasks", "box/schemata", "gold/mon_groups/box/tasks"] {
            fs::remove_file(path(file)).expect("a file");
        }
        own.remove().expect("removed");
        shared.remove().expect("removed");
        own.remove().expect("removing twice is fine");
        assert!(!path("box").exists() && !path("gold/mon_groups/box").exists() && path("gold").is_dir());
    }
}
