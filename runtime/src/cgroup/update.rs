//! Change the limits of a container that runs.

use super::hierarchy::read;
use super::table::Version;
use super::{Cgroup, systemd};
use crate::config::{Cpu, Memory, Resources};
use crate::error::{Failure, Outcome};

/// What an update comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// All limits that hold afterwards.
    pub all: Resources,
    /// Those to write now: what changes, and what must go with it (memory with swap, quota with period).
    pub write: Resources,
}

/// Limits `now` with the wishes of `change`. What is absent, zero or empty there stays as it is, since Go programs write
/// what they do not ask for like that. Devices are not touched: others may have added some.
pub fn merge(now: &Resources, change: &Resources) -> Update {
    let mut all = now.clone();
    let mut write = Resources::default();
    if let Some(wish) = &change.memory {
        merge_memory(&mut all, &mut write, wish);
    }
    if let Some(wish) = &change.cpu {
        merge_cpu(&mut all, &mut write, wish);
    }
    if let Some(pids) = change.pids.as_ref().filter(|pids| pids.limit.is_some_and(|limit| limit != 0)) {
        all.pids = Some(pids.clone());
        write.pids = Some(pids.clone());
    }
    if let Some(wish) = &change.block_io {
        let io = all.block_io.get_or_insert_default();
        let mut wish = wish.clone();
        wish.weight = wish.weight.filter(|&weight| weight != 0);
        io.weight = wish.weight.or(io.weight);
        for (list, new) in [
            (&mut io.throttle_read_bps_device, &wish.throttle_read_bps_device),
            (&mut io.throttle_write_bps_device, &wish.throttle_write_bps_device),
            (&mut io.throttle_read_iops_device, &wish.throttle_read_iops_device),
            (&mut io.throttle_write_iops_device, &wish.throttle_write_iops_device),
        ] {
            list.retain(|old| !new.iter().any(|new| (new.major, new.minor) == (old.major, old.minor)));
            list.extend(new.iter().cloned());
        }
        io.weight_device
            .retain(|old| !wish.weight_device.iter().any(|new| (new.major, new.minor) == (old.major, old.minor)));
        io.weight_device.extend(wish.weight_device.iter().cloned());
        write.block_io = Some(wish);
    }
    for limit in &change.hugepage_limits {
        all.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        all.hugepage_limits.push(limit.clone());
        write.hugepage_limits.push(limit.clone());
    }
    if change.network.is_some() {
        all.network.clone_from(&change.network);
        write.network.clone_from(&change.network);
    }
    all.rdma.extend(change.rdma.clone());
    write.rdma.clone_from(&change.rdma);
    all.unified.extend(change.unified.clone());
    write.unified.clone_from(&change.unified);
    Update { all, write }
}

fn given<T: PartialEq + Default>(value: &Option<T>) -> Option<&T> {
    value.as_ref().filter(|value| **value != T::default())
}

fn merge_memory(all: &mut Resources, write: &mut Resources, wish: &Memory) {
    let memory = all.memory.get_or_insert_default();
    let mut out = Memory { check_before_update: wish.check_before_update, ..Memory::default() };
    let (limit, mut swap) = (given(&wish.limit).copied(), given(&wish.swap).copied());
    // Neither is limited then, as on v1 with one file for both.
    if limit == Some(-1) && swap.is_none() {
        swap = Some(-1);
    }
    // What the bundle gave as 0 was not given.
    memory.swap = swap.or(given(&memory.swap).copied());
    memory.limit = limit.or(given(&memory.limit).copied());
    if limit.is_some() || swap.is_some() {
        out.limit = memory.limit;
        // Unlimited swap that nobody named is left to the table, which knows whether the kernel counts it.
        out.swap = if limit == Some(-1) && given(&wish.swap).is_none() { None } else { memory.swap };
    }
    if let Some(reservation) = given(&wish.reservation) {
        memory.reservation = Some(*reservation);
        out.reservation = memory.reservation;
    }
    if wish.swappiness.is_some() {
        memory.swappiness = wish.swappiness;
        out.swappiness = wish.swappiness;
    }
    if given(&wish.kernel_tcp).is_some() {
        memory.kernel_tcp = wish.kernel_tcp;
        out.kernel_tcp = wish.kernel_tcp;
    }
    memory.disable_oom_killer |= wish.disable_oom_killer;
    out.disable_oom_killer = wish.disable_oom_killer;
    write.memory = Some(out);
}

fn merge_cpu(all: &mut Resources, write: &mut Resources, wish: &Cpu) {
    let cpu = all.cpu.get_or_insert_default();
    let mut out = Cpu::default();
    macro_rules! take {
        ($($field:ident)*) => {$(
            if given(&wish.$field).is_some() {
                cpu.$field.clone_from(&wish.$field);
                out.$field.clone_from(&wish.$field);
            }
        )*};
    }
    take!(shares period quota realtime_runtime realtime_period cpus mems);
    // Zero has a meaning in these.
    if wish.burst.is_some() {
        cpu.burst = wish.burst;
        out.burst = wish.burst;
    }
    if wish.idle.is_some() {
        cpu.idle = wish.idle;
        out.idle = wish.idle;
    }
    if out.period.is_some() || out.quota.is_some() {
        out.period = given(&cpu.period).copied();
        out.quota = given(&cpu.quota).copied();
    }
    write.cpu = Some(out);
}

impl Cgroup {
    /// Change limits; `init` keeps the container's processes from being killed for it where asked
    /// (`memory.checkBeforeUpdate`). With a systemd unit its properties change first, so that it agrees.
    ///
    /// # Errors
    /// A limit that cannot be carried out; earlier ones may have changed.
    pub fn update(&self, update: &Update) -> Outcome<()> {
        self.check_before_update(&update.write)?;
        if let Some(unit) = &self.unit {
            unit.set(&systemd::properties::changes(&update.write, &self.hierarchies)?)?;
        }
        self.apply_limits(&update.write)
    }

    /// v1 refuses a limit below the usage by itself; v2 kills.
    fn check_before_update(&self, resources: &Resources) -> Outcome<()> {
        let Some(memory) = resources.memory.as_ref().filter(|memory| memory.check_before_update == Some(true)) else {
            return Ok(());
        };
        let Some((directory, Version::V2)) = self.memory() else { return Ok(()) };
        let usage: i64 =
            read(directory.join("memory.current")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        for (name, limit) in [("memory+swap", memory.swap), ("memory", memory.limit)] {
            if let Some(limit) = limit.filter(|&limit| limit > 0 && limit <= usage) {
                return Err(Failure::new(format!("rejecting {name} limit {limit} <= usage {usage}"))
                    .hint("a lower limit kills; leave out `checkBeforeUpdate` to set it nevertheless"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resources(value: Value) -> Resources {
        serde_json::from_value(value).expect("resources")
    }

    #[test]
    fn what_changes_and_what_goes_with_it() {
        for (why, now, change, write, all) in [
            ("nothing", json!({"pids": {"limit": 5}}), json!({}), json!({}), json!({"pids": {"limit": 5}})),
            (
                "zeros of Go",
                json!({"memory": {"limit": 5}, "cpu": {"quota": 7}}),
                json!({"memory": {"limit": 0, "swap": 0, "reservation": 0}, "pids": {"limit": 0},
                    "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": ""}, "blockIO": {"weight": 0}}),
                json!({"memory": {}, "cpu": {}, "blockIO": {}}),
                json!({"memory": {"limit": 5}, "cpu": {"quota": 7}, "blockIO": {}}),
            ),
            (
                "memory with the swap there was",
                json!({"memory": {"limit": 100, "swap": 150, "reservation": 20}}),
                json!({"memory": {"limit": 120}}),
                json!({"memory": {"limit": 120, "swap": 150}}),
                json!({"memory": {"limit": 120, "swap": 150, "reservation": 20}}),
            ),
            (
                "no limit",
                json!({"memory": {"limit": 100, "swap": 150}}),
                json!({"memory": {"limit": -1}}),
                json!({"memory": {"limit": -1}}),
                json!({"memory": {"limit": -1, "swap": -1}}),
            ),
            (
                "quota with the period there was",
                json!({"cpu": {"quota": 10, "period": 100, "shares": 5, "burst": 3}}),
                json!({"cpu": {"quota": 20, "burst": 0}}),
                json!({"cpu": {"quota": 20, "period": 100, "burst": 0}}),
                json!({"cpu": {"quota": 20, "period": 100, "shares": 5, "burst": 0}}),
            ),
            (
                "one device of two",
                json!({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1},
                    {"major": 9, "minor": 0, "rate": 2}]}}),
                json!({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 3}]}}),
                json!({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 3}]}}),
                json!({"blockIO": {"throttleReadBpsDevice": [{"major": 9, "minor": 0, "rate": 2},
                    {"major": 8, "minor": 0, "rate": 3}]}}),
            ),
            (
                "a v2 file",
                json!({"unified": {"a": "1", "b": "2"}}),
                json!({"unified": {"b": "3"}}),
                json!({"unified": {"b": "3"}}),
                json!({"unified": {"a": "1", "b": "3"}}),
            ),
        ] {
            let update = merge(&resources(now), &resources(change));
            assert_eq!(update.write, resources(write), "{why}");
            assert_eq!(update.all, resources(all), "{why}");
        }
    }
}
