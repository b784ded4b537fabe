//! What the node is and what it uses.

use gantry_api::units::{Bytes, MilliCpu};
use gantry_api::wire::Capacity;
use std::fs;
use std::path::Path;

/// A data directory fuller than this is a problem: images and logs still grow.
const DISK_FULL_PERCENT: u64 = 90;

/// Processors and memory of the machine.
pub(crate) fn total() -> Capacity {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let (memory, _) = memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    Capacity { cpu: MilliCpu(processors * 1000), memory }
}

/// Total memory and memory in use, from the text of `/proc/meminfo`.
fn memory(meminfo: &str) -> (Bytes, Bytes) {
    let kib = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let total = kib("MemTotal");
    (Bytes(total << 10), Bytes(total.saturating_sub(kib("MemAvailable")) << 10))
}

/// Busy and all ticks of all processors since boot, from the text of `/proc/stat`.
fn ticks(stat: &str) -> (u64, u64) {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    // user nice system idle iowait irq softirq steal; guest time is in user already
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(|n| n.parse().unwrap_or(0)).collect();
    let all: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    (all - idle, all)
}

/// Usage of the whole node between two looks.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    before: Option<(u64, u64)>,
}

impl Meter {
    /// Memory in use, and processors in use since the look before.
    pub(crate) fn look(&mut self) -> (Bytes, MilliCpu) {
        let (_, memory) = memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
        let now = ticks(&fs::read_to_string("/proc/stat").unwrap_or_default());
        let cpu = self.before.map_or(MilliCpu(0), |before| share(before, now, total().cpu));
        self.before = Some(now);
        (memory, cpu)
    }
}

fn share(before: (u64, u64), now: (u64, u64), of: MilliCpu) -> MilliCpu {
    let busy = now.0.saturating_sub(before.0);
    let all = now.1.saturating_sub(before.1);
    MilliCpu((busy * u64::from(of.0)).checked_div(all).unwrap_or(0).min(u64::from(of.0)) as u32)
}

/// What is wrong with the node's disk, in words.
pub(crate) fn disk_problem(dir: &Path) -> Option<String> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    let blocks_used = stat.f_blocks.saturating_sub(stat.f_bfree);
    let percent = (blocks_used * 100).checked_div(blocks_used + stat.f_bavail)?;
    (percent >= DISK_FULL_PERCENT).then(|| {
        let free = Bytes(stat.f_bavail * stat.f_frsize);
        format!("the disk that holds {} is {percent}% full, {free} are left", dir.display())
    })
}

/// How much this process is spared when memory runs out: -1000 (never ended) to 1000.
pub(crate) fn oom_score_adj() -> Option<i32> {
    std::fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()
}

/// Kernel release and architecture as images name it.
pub(crate) fn platform() -> (String, String) {
    let uname = rustix::system::uname();
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    (uname.release().to_string_lossy().into_owned(), arch.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_use_is_what_is_not_available() {
        let text = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n";
        assert_eq!(memory(text), (Bytes(1000 << 10), Bytes(600 << 10)));
        assert_eq!(memory("MemTotal: lots"), (Bytes(0), Bytes(0)));
    }

    #[test]
    fn idle_and_waiting_time_is_not_busy() {
        assert_eq!(ticks("cpu  10 1 5 80 4 0 0 0 7 0\ncpu0 1 1 1 1\n"), (16, 100));
        assert_eq!(ticks(""), (0, 0));
    }

    #[test]
    fn busy_ticks_become_processors() {
        for (before, now, want) in [((0, 0), (50, 200), 500), ((0, 0), (200, 200), 2000), ((5, 5), (5, 5), 0)] {
            assert_eq!(share(before, now, MilliCpu(2000)), MilliCpu(want));
        }
    }

    #[test]
    fn this_machine_has_processors_and_memory() {
        let total = total();
        assert!(total.cpu.0 >= 1000 && total.memory.0 > 0);
        let (kernel, arch) = platform();
        assert!(!kernel.is_empty() && !arch.is_empty());
        assert!(disk_problem(Path::new("/proc")).is_none());
    }
}
