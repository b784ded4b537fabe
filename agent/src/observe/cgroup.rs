//! What a replica uses, from its control group: version 1, version 2, or a mixture of both.

use gantry_api::units::Bytes;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the two controllers we read are mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    memory: Option<Mounted>,
    cpu: Option<Mounted>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Mounted {
    V1(PathBuf),
    V2(PathBuf),
}

/// What one control group used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Without page cache that nobody has touched lately, as `docker stats` counts.
    pub(crate) memory: Bytes,
    /// Since it was made.
    pub(crate) cpu_ns: u64,
}

impl Hierarchies {
    /// From the text of `/proc/self/mountinfo`. A controller that version 1 holds is not in version 2.
    pub(crate) fn find(mountinfo: &str) -> Self {
        let mut found = Self::default();
        let mut unified = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
            let has = |controller| options.split(',').any(|option| option == controller);
            match kind {
                "cgroup2" => unified = unified.or(Some(PathBuf::from(point))),
                "cgroup" if has("memory") => found.memory = Some(Mounted::V1(point.into())),
                "cgroup" if has("cpuacct") => found.cpu = Some(Mounted::V1(point.into())),
                _ => {}
            }
        }
        let unified = unified.map(Mounted::V2);
        found.memory = found.memory.or(unified.clone());
        found.cpu = found.cpu.or(unified);
        found
    }

    /// What `cgroup` uses now; zeros for what cannot be read, such as a group that has just gone.
    pub(crate) fn usage(&self, cgroup: &str) -> Usage {
        let read = |dir: PathBuf, file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        let inside = |mount: &Path| mount.join(cgroup.trim_start_matches('/'));
        let memory = self.memory.as_ref().map_or(0, |mounted| match mounted {
            Mounted::V1(mount) => working_set(
                &read(inside(mount), "memory.usage_in_bytes"),
                &read(inside(mount), "memory.stat"),
                "total_inactive_file",
            ),
            Mounted::V2(mount) => working_set(
                &read(inside(mount), "memory.current"),
                &read(inside(mount), "memory.stat"),
                "inactive_file",
            ),
        });
        let cpu_ns = self.cpu.as_ref().map_or(0, |mounted| match mounted {
            Mounted::V1(mount) => number(&read(inside(mount), "cpuacct.usage")),
            Mounted::V2(mount) => keyed(&read(inside(mount), "cpu.stat"), "usage_usec") * 1000,
        });
        Usage { memory: Bytes(memory), cpu_ns }
    }
}

fn working_set(usage: &str, stat: &str, inactive: &str) -> u64 {
    number(usage).saturating_sub(keyed(stat, inactive))
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// The value of `key` in lines of `key value`.
fn keyed(text: &str, key: &str) -> u64 {
    text.lines().filter_map(|line| line.split_once(' ')).find(|(k, _)| *k == key).map_or(0, |(_, v)| number(v))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
31 25 0:28 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw\n\
32 31 0:29 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup rw\n\
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
34 31 0:31 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
35 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
    const V2: &str = "31 25 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\nrubbish\n";

    #[test]
    fn controllers_are_found_where_they_are_mounted() {
        let hybrid = Hierarchies::find(V1);
        assert_eq!(hybrid.memory, Some(Mounted::V1("/sys/fs/cgroup/memory".into())));
        assert_eq!(hybrid.cpu, Some(Mounted::V1("/sys/fs/cgroup/cpu,cpuacct".into())));
        let unified = Hierarchies::find(V2);
        assert_eq!(unified.memory, Some(Mounted::V2("/sys/fs/cgroup".into())));
        assert_eq!(unified.cpu, unified.memory);
        assert_eq!(Hierarchies::find(""), Hierarchies::default());
    }

    #[test]
    fn usage_is_read_from_either_version() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("gantry/x");
        fs::create_dir_all(&group).unwrap();
        for (file, text) in [
            ("memory.usage_in_bytes", "5000\n"),
            ("memory.current", "3000\n"),
            ("memory.stat", "cache 9\ninactive_file 500\ntotal_inactive_file 1000\n"),
            ("cpuacct.usage", "123456\n"),
            ("cpu.stat", "usage_usec 77\nuser_usec 1\n"),
        ] {
            fs::write(group.join(file), text).unwrap();
        }
        let of = |mounted: fn(PathBuf) -> Mounted| {
            let mounted = Some(mounted(dir.path().to_owned()));
            Hierarchies { memory: mounted.clone(), cpu: mounted }.usage("/gantry/x")
        };
        assert_eq!(of(Mounted::V1), Usage { memory: Bytes(4000), cpu_ns: 123_456 });
        assert_eq!(of(Mounted::V2), Usage { memory: Bytes(2500), cpu_ns: 77_000 });
        assert_eq!(Hierarchies::default().usage("/gantry/x"), Usage::default());
    }
}
