//! What a container uses, in the shape in which runc's `events` prints it.

use super::hierarchy::{read, words};
use super::table::Version;
use super::{Cgroup, Directory};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Nanoseconds per clock tick: 100 ticks a second on every architecture of Linux that we build for.
const TICK_NS: u64 = 10_000_000;

/// Declare the structures of the JSON. Which fields are left out when they are zero is as in Go.
macro_rules! shape {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty;)* })*) => {$(
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
        $(#[$meta])*
        pub struct $name { $(
            $(#[$field_meta])*
            pub $field: $type,
        )* }
    )*};
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

shape! {
    /// Everything.
    Stats {
        /// Processor.
        cpu: Cpu;
        /// CPUs and memory nodes, v1 only.
        cpuset: Cpuset;
        /// Memory.
        memory: Memory;
        /// Number of tasks.
        pids: Pids;
        /// Block devices.
        blkio: Blkio;
        /// Huge pages by size.
        hugetlb: BTreeMap<String, Hugetlb>;
        /// Cache and memory bandwidth; not measured.
        intel_rdt: Nothing;
        /// Always null: interfaces are the network's, not the runtime's.
        network_interfaces: Option<Nothing>;
    }

    /// An empty object.
    Nothing {}

    /// Processor.
    Cpu {
        /// Time used.
        usage: CpuUsage;
        /// Time waited for quota.
        throttling: Throttling;
    }

    /// Time used, in nanoseconds.
    CpuUsage {
        /// All of it.
        #[serde(skip_serializing_if = "is_default")]
        total: u64;
        /// By CPU.
        #[serde(skip_serializing_if = "is_default")]
        percpu: Vec<u64>;
        /// By CPU, in the kernel.
        #[serde(skip_serializing_if = "is_default")]
        percpu_kernel: Vec<u64>;
        /// By CPU, in programs.
        #[serde(skip_serializing_if = "is_default")]
        percpu_user: Vec<u64>;
        /// In the kernel.
        kernel: u64;
        /// In programs.
        user: u64;
    }

    /// Time waited for quota.
    Throttling {
        /// Periods that have passed.
        #[serde(skip_serializing_if = "is_default")]
        periods: u64;
        /// Periods in which the quota ran out.
        #[serde(rename = "throttledPeriods")]
        #[serde(skip_serializing_if = "is_default")]
        throttled_periods: u64;
        /// Nanoseconds waited.
        #[serde(rename = "throttledTime")]
        #[serde(skip_serializing_if = "is_default")]
        throttled_time: u64;
    }

    /// CPUs and memory nodes, v1 only.
    Cpuset {
        /// CPUs.
        #[serde(skip_serializing_if = "is_default")]
        cpus: Vec<u16>;
        /// File of this name.
        cpu_exclusive: u64;
        /// Memory nodes.
        #[serde(skip_serializing_if = "is_default")]
        mems: Vec<u16>;
        /// File of this name.
        mem_hardwall: u64;
        /// File of this name.
        mem_exclusive: u64;
        /// File of this name.
        memory_migrate: u64;
        /// File of this name.
        memory_spread_page: u64;
        /// File of this name.
        memory_spread_slab: u64;
        /// File of this name.
        memory_pressure: u64;
        /// File of this name.
        sched_load_balance: u64;
        /// File of this name.
        sched_relax_domain_level: i64;
    }

    /// Memory.
    Memory {
        /// Page cache.
        #[serde(skip_serializing_if = "is_default")]
        cache: u64;
        /// Memory.
        usage: Counter;
        /// Memory and swap.
        swap: Counter;
        /// Kernel memory, v1 only.
        kernel: Counter;
        /// TCP buffers, v1 only.
        #[serde(rename = "kernelTCP")]
        kernel_tcp: Counter;
        /// `memory.stat`.
        #[serde(skip_serializing_if = "is_default")]
        raw: BTreeMap<String, u64>;
    }

    /// A limited kind of memory.
    Counter {
        /// Most allowed.
        limit: u64;
        /// In use.
        #[serde(skip_serializing_if = "is_default")]
        usage: u64;
        /// Most ever used.
        #[serde(skip_serializing_if = "is_default")]
        max: u64;
        /// How often the limit was in the way.
        failcnt: u64;
    }

    /// Number of tasks.
    Pids {
        /// There are.
        #[serde(skip_serializing_if = "is_default")]
        current: u64;
        /// Most allowed; 0 is unlimited.
        #[serde(skip_serializing_if = "is_default")]
        limit: u64;
    }

    /// Block devices.
    #[serde(rename_all = "camelCase")]
    Blkio {
        /// Bytes.
        #[serde(skip_serializing_if = "is_default")]
        io_service_bytes_recursive: Vec<BlkioEntry>;
        /// Requests.
        #[serde(skip_serializing_if = "is_default")]
        io_serviced_recursive: Vec<BlkioEntry>;
        /// Requests waiting.
        #[serde(skip_serializing_if = "is_default")]
        io_queue_recursive: Vec<BlkioEntry>;
        /// Nanoseconds in service.
        #[serde(skip_serializing_if = "is_default")]
        io_service_time_recursive: Vec<BlkioEntry>;
        /// Nanoseconds waiting.
        #[serde(skip_serializing_if = "is_default")]
        io_wait_time_recursive: Vec<BlkioEntry>;
        /// Requests merged.
        #[serde(skip_serializing_if = "is_default")]
        io_merged_recursive: Vec<BlkioEntry>;
        /// Milliseconds of the device.
        #[serde(skip_serializing_if = "is_default")]
        io_time_recursive: Vec<BlkioEntry>;
        /// Sectors.
        #[serde(skip_serializing_if = "is_default")]
        sectors_recursive: Vec<BlkioEntry>;
    }

    /// One figure of one device.
    BlkioEntry {
        /// Major number.
        #[serde(skip_serializing_if = "is_default")]
        major: u64;
        /// Minor number.
        #[serde(skip_serializing_if = "is_default")]
        minor: u64;
        /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total` or nothing.
        #[serde(skip_serializing_if = "is_default")]
        op: String;
        /// The figure.
        #[serde(skip_serializing_if = "is_default")]
        value: u64;
    }

    /// Huge pages of one size.
    Hugetlb {
        /// Bytes in use.
        #[serde(skip_serializing_if = "is_default")]
        usage: u64;
        /// Most ever used.
        #[serde(skip_serializing_if = "is_default")]
        max: u64;
        /// How often the limit was in the way.
        failcnt: u64;
    }
}

/// Reads figures of one directory; what is not there is zero.
struct Figures(PathBuf);

impl Figures {
    fn text(&self, file: &str) -> String {
        read(self.0.join(file)).unwrap_or_default()
    }

    /// A number, with `max` as the largest one.
    fn number(&self, file: &str) -> u64 {
        number(self.text(file).trim())
    }

    /// `KEY VALUE` lines.
    fn table(&self, file: &str) -> BTreeMap<String, u64> {
        let text = self.text(file);
        let line = |line: &str| line.split_once(' ').map(|(key, value)| (key.to_owned(), number(value.trim())));
        text.lines().filter_map(line).collect()
    }

    fn value(&self, file: &str, key: &str) -> u64 {
        self.table(file).get(key).copied().unwrap_or(0)
    }

    fn numbers(&self, file: &str) -> Vec<u64> {
        words(&self.0.join(file)).iter().map(|word| number(word)).collect()
    }
}

fn number(text: &str) -> u64 {
    if text == "max" { u64::MAX } else { text.parse().unwrap_or(0) }
}

/// `0-2,5` as numbers.
fn list(text: &str) -> Vec<u16> {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.trim().parse().ok().zip(last.trim().parse().ok()).map(|(first, last): (u16, u16)| first..=last)
    };
    text.trim().split(',').filter_map(part).flatten().collect()
}

impl Cgroup {
    /// Read all figures.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        let figures = |controller: &str| {
            Some(Figures(self.directory_of(controller)?)).zip(self.hierarchies.version_of(controller))
        };
        // `cpu.stat` of v2 is there without the controller.
        let cpu = figures("cpu").or_else(|| Some((Figures(self.v2_directory()?), Version::V2)));
        match cpu {
            Some((cpu, Version::V1)) => stats.cpu.throttling = throttling(&cpu.table("cpu.stat"), "throttled_time", 1),
            Some((cpu, Version::V2)) => stats.cpu = cpu_v2(&cpu.table("cpu.stat")),
            None => {}
        }
        if let Some((cpuacct, Version::V1)) = figures("cpuacct") {
            stats.cpu.usage = cpuacct_v1(&cpuacct);
        }
        if let Some((cpuset, Version::V1)) = figures("cpuset") {
            stats.cpuset = cpuset_v1(&cpuset);
        }
        match figures("memory") {
            Some((memory, Version::V1)) => stats.memory = memory_v1(&memory),
            Some((memory, Version::V2)) => stats.memory = memory_v2(&memory),
            None => {}
        }
        if let Some((pids, _)) = figures("pids") {
            let limit = pids.number("pids.max");
            stats.pids =
                Pids { current: pids.number("pids.current"), limit: if limit == u64::MAX { 0 } else { limit } };
        }
        match (figures("blkio"), figures("io")) {
            (Some((blkio, Version::V1)), _) => stats.blkio = blkio_v1(&blkio),
            (_, Some((io, _))) => stats.blkio = io_v2(&io.text("io.stat")),
            _ => {}
        }
        // On hybrid hosts runc looks at v1 only, where the limits of all others are.
        if let Some((hugetlb, version)) = figures("hugetlb")
            && (version == Version::V1 || self.hierarchies.is_pure_v2())
        {
            stats.hugetlb = hugetlb_of(&hugetlb, version);
        }
        stats
    }

    /// Directory of the memory controller and its interface.
    pub fn memory(&self) -> Option<(PathBuf, Version)> {
        self.directory_of("memory").zip(self.hierarchies.version_of("memory"))
    }

    /// Every directory of the container, for comparisons.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.directories().into_iter().map(|Directory { path, .. }| path).collect()
    }
}

fn throttling(stat: &BTreeMap<String, u64>, time: &str, scale: u64) -> Throttling {
    let value = |key: &str| stat.get(key).copied().unwrap_or(0);
    Throttling {
        periods: value("nr_periods"),
        throttled_periods: value("nr_throttled"),
        throttled_time: value(time) * scale,
    }
}

fn cpu_v2(stat: &BTreeMap<String, u64>) -> Cpu {
    let ns = |key: &str| stat.get(key).copied().unwrap_or(0) * 1000;
    let usage =
        CpuUsage { total: ns("usage_usec"), kernel: ns("system_usec"), user: ns("user_usec"), ..CpuUsage::default() };
    Cpu { usage, throttling: throttling(stat, "throttled_usec", 1000) }
}

fn cpuacct_v1(figures: &Figures) -> CpuUsage {
    let stat = figures.table("cpuacct.stat");
    let ticks = |key: &str| stat.get(key).copied().unwrap_or(0) * TICK_NS;
    // A heading, then `CPU USER SYSTEM`.
    let all = figures.text("cpuacct.usage_all");
    let column = |at: usize| -> Vec<u64> {
        all.lines().skip(1).filter_map(|line| line.split(' ').nth(at)).map(number).collect()
    };
    CpuUsage {
        total: figures.number("cpuacct.usage"),
        percpu: figures.numbers("cpuacct.usage_percpu"),
        percpu_kernel: column(2),
        percpu_user: column(1),
        kernel: ticks("system"),
        user: ticks("user"),
    }
}

fn cpuset_v1(figures: &Figures) -> Cpuset {
    let flag = |name: &str| figures.number(&format!("cpuset.{name}"));
    Cpuset {
        cpus: list(&figures.text("cpuset.cpus")),
        cpu_exclusive: flag("cpu_exclusive"),
        mems: list(&figures.text("cpuset.mems")),
        mem_hardwall: flag("mem_hardwall"),
        mem_exclusive: flag("mem_exclusive"),
        memory_migrate: flag("memory_migrate"),
        memory_spread_page: flag("memory_spread_page"),
        memory_spread_slab: flag("memory_spread_slab"),
        memory_pressure: flag("memory_pressure"),
        sched_load_balance: flag("sched_load_balance"),
        sched_relax_domain_level: figures.text("cpuset.sched_relax_domain_level").trim().parse().unwrap_or(0),
    }
}

fn memory_v1(figures: &Figures) -> Memory {
    let counter = |kind: &str| Counter {
        limit: figures.number(&format!("memory.{kind}limit_in_bytes")),
        usage: figures.number(&format!("memory.{kind}usage_in_bytes")),
        max: figures.number(&format!("memory.{kind}max_usage_in_bytes")),
        failcnt: figures.number(&format!("memory.{kind}failcnt")),
    };
    let raw = figures.table("memory.stat");
    Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: counter(""),
        swap: counter("memsw."),
        kernel: counter("kmem."),
        kernel_tcp: counter("kmem.tcp."),
        raw,
    }
}

/// v1 counts memory and swap together, and so does this.
fn memory_v2(figures: &Figures) -> Memory {
    let raw = figures.table("memory.stat");
    let usage =
        Counter { limit: figures.number("memory.max"), usage: figures.number("memory.current"), ..Counter::default() };
    let limit = match figures.number("memory.swap.max") {
        u64::MAX => u64::MAX,
        limit => limit.saturating_add(usage.limit),
    };
    let swap = Counter { limit, usage: figures.number("memory.swap.current") + usage.usage, ..Counter::default() };
    Memory { cache: raw.get("file").copied().unwrap_or(0), usage, swap, raw, ..Memory::default() }
}

fn blkio_v1(figures: &Figures) -> Blkio {
    // The first set that exists: what the scheduler counts, or what passed the throttling layer.
    for (first, prefix) in [
        ("blkio.bfq.sectors_recursive", "blkio.bfq."),
        ("blkio.bfq.io_serviced_recursive", "blkio.bfq."),
        ("blkio.sectors_recursive", "blkio."),
        ("blkio.throttle.io_serviced_recursive", "blkio.throttle."),
    ] {
        let entries = |name: &str| blkio_entries(&figures.text(&format!("{prefix}{name}_recursive")));
        if blkio_entries(&figures.text(first)).is_empty() {
            continue;
        }
        return Blkio {
            io_service_bytes_recursive: entries("io_service_bytes"),
            io_serviced_recursive: entries("io_serviced"),
            io_queue_recursive: entries("io_queued"),
            io_service_time_recursive: entries("io_service_time"),
            io_wait_time_recursive: entries("io_wait_time"),
            io_merged_recursive: entries("io_merged"),
            io_time_recursive: entries("time"),
            sectors_recursive: entries("sectors"),
        };
    }
    Blkio {
        io_service_bytes_recursive: blkio_entries(&figures.text("blkio.throttle.io_service_bytes")),
        io_serviced_recursive: blkio_entries(&figures.text("blkio.throttle.io_serviced")),
        ..Blkio::default()
    }
}

/// `MAJOR:MINOR [OP] VALUE` lines; the sum of all at the end has no device.
fn blkio_entries(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (op, value) = match (words.next()?, words.next()) {
            (op, Some(value)) => (op, value),
            (value, None) => ("", value),
        };
        let op = op.to_owned();
        Some(BlkioEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, op, value: value.parse().ok()? })
    };
    text.lines().filter_map(entry).collect()
}

fn io_v2(text: &str) -> Blkio {
    let mut blkio = Blkio::default();
    for line in text.lines() {
        let Some((device, rest)) = line.split_once(' ') else { continue };
        let Some((major, minor)) = device.split_once(':') else { continue };
        let (major, minor) = (number(major), number(minor));
        for (key, value) in rest.split(' ').filter_map(|item| item.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlkioEntry { major, minor, op: op.to_owned(), value: number(value) });
        }
    }
    blkio
}

/// Sizes of huge pages as cgroup files spell them.
fn hugepage_sizes() -> Vec<String> {
    let names = fs::read_dir(Path::new("/sys/kernel/mm/hugepages")).into_iter().flatten().flatten();
    let mut sizes: Vec<String> =
        names.filter_map(|entry| hugepage_size(entry.file_name().to_str().unwrap_or_default())).collect();
    sizes.sort();
    sizes
}

/// `hugepages-2048kB` is `2MB`.
fn hugepage_size(name: &str) -> Option<String> {
    let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    })
}

fn hugetlb_of(figures: &Figures, version: Version) -> BTreeMap<String, Hugetlb> {
    let one = |size: String| {
        let file = |name: &str| format!("hugetlb.{size}.{name}");
        let usage = match version {
            Version::V1 => Hugetlb {
                usage: figures.number(&file("usage_in_bytes")),
                max: figures.number(&file("max_usage_in_bytes")),
                failcnt: figures.number(&file("failcnt")),
            },
            Version::V2 => Hugetlb {
                usage: figures.number(&file("current")),
                max: 0,
                failcnt: figures.value(&file("events"), "max"),
            },
        };
        (size, usage)
    };
    // The controller may be there without being handed down.
    let file = if version == Version::V1 { "usage_in_bytes" } else { "current" };
    let counted = |size: &String| figures.0.join(format!("hugetlb.{size}.{file}")).exists();
    hugepage_sizes().into_iter().filter(counted).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        for (text, want) in [("0-2,5\n", &[0, 1, 2, 5][..]), ("0\n", &[0]), ("\n", &[]), ("", &[]), ("7,x", &[7])] {
            assert_eq!(list(text), want, "{text:?}");
        }
    }

    #[test]
    fn sizes_of_huge_pages() {
        for (name, want) in [
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-64kB", Some("64KB")),
            ("something", None),
        ] {
            assert_eq!(hugepage_size(name).as_deref(), want, "{name}");
        }
    }

    #[test]
    fn figures_of_block_devices() {
        let entry = |major, minor, op: &str, value| BlkioEntry { major, minor, op: op.to_owned(), value };
        assert_eq!(
            blkio_entries("8:0 Read 10\n8:0 Total 12\n254:16 7\nTotal 12\n"),
            [entry(8, 0, "Read", 10), entry(8, 0, "Total", 12), entry(254, 16, "", 7)]
        );
        let v2 = io_v2("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:0 \nbad\n");
        assert_eq!(v2.io_service_bytes_recursive, [entry(8, 0, "Read", 1), entry(8, 0, "Write", 2)]);
        assert_eq!(v2.io_serviced_recursive, [entry(8, 0, "Read", 3), entry(8, 0, "Write", 4)]);
    }

    #[test]
    fn nothing_used_in_the_shape_of_runc() {
        let text = serde_json::to_string(&Stats::default()).expect("JSON");
        assert_eq!(
            text,
            r#"{"cpu":{"usage":{"kernel":0,"user":0},"throttling":{}},"cpuset":{"cpu_exclusive":0,"mem_hardwall":0,"#
                .to_owned()
                + r#""mem_exclusive":0,"memory_migrate":0,"memory_spread_page":0,"memory_spread_slab":0,"#
                + r#""memory_pressure":0,"sched_load_balance":0,"sched_relax_domain_level":0},"memory":{"usage":"#
                + r#"{"limit":0,"failcnt":0},"swap":{"limit":0,"failcnt":0},"kernel":{"limit":0,"failcnt":0},"#
                + r#""kernelTCP":{"limit":0,"failcnt":0}},"pids":{},"blkio":{},"hugetlb":{},"intel_rdt":{},"#
                + r#""network_interfaces":null}"#
        );
    }

    #[test]
    fn v2_swap_includes_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        for (file, text) in [
            ("memory.stat", "anon 5\nfile 7\n"),
            ("memory.max", "100\n"),
            ("memory.current", "60\n"),
            ("memory.swap.max", "30\n"),
            ("memory.swap.current", "4\n"),
        ] {
            fs::write(dir.path().join(file), text).expect("a file");
        }
        let memory = memory_v2(&Figures(dir.path().to_owned()));
        assert_eq!((memory.cache, memory.usage.limit, memory.usage.usage), (7, 100, 60));
        assert_eq!((memory.swap.limit, memory.swap.usage), (130, 64));
        fs::write(dir.path().join("memory.swap.max"), "max\n").expect("a file");
        assert_eq!(memory_v2(&Figures(dir.path().to_owned())).swap.limit, u64::MAX);
    }
}
