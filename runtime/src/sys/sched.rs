//! When, where and from which memory a process runs: scheduler attributes, I/O priority, CPU affinity, memory policy.
#![allow(unsafe_code)] // raw sched_setattr, ioprio_set, sched_setaffinity, set_mempolicy

use super::check;
use std::io;

/// `struct sched_attr` from `linux/sched/types.h`, version 1 (56 bytes).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Size of this structure; set by [`set_attributes`].
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the fair policies.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub period: u64,
    /// Utilization clamp.
    pub util_min: u32,
    /// Utilization clamp.
    pub util_max: u32,
}

/// `sched_setattr(2)` on the calling thread.
///
/// # Errors
/// `EINVAL` for a policy or a combination that the kernel does not know, `EPERM` without `CAP_SYS_NICE` or without
/// real-time budget in the cgroup, `EBUSY` when deadlines cannot be kept.
pub fn set_attributes(attributes: &SchedAttr) -> io::Result<()> {
    let attributes = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attributes };
    // SAFETY: the structure is readable and says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(drop)
}

/// `ioprio_set(2)` on the process group of the caller.
///
/// # Errors
/// `EPERM` for the real-time class without `CAP_SYS_ADMIN` or `CAP_SYS_NICE`.
pub fn set_io_priority(class: u32, level: u32) -> io::Result<()> {
    const IOPRIO_WHO_PGRP: libc::c_int = 2;
    const IOPRIO_CLASS_SHIFT: u32 = 13;
    // SAFETY: integers by value.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PGRP, 0, class << IOPRIO_CLASS_SHIFT | level) })
        .map(drop)
}

/// `sched_setaffinity(2)` on the calling thread, one bit per CPU.
///
/// # Errors
/// `EINVAL` when none of the CPUs is there and allowed by the cgroup.
pub fn set_affinity(mask: &[u64]) -> io::Result<()> {
    // SAFETY: pointer and length come from one live slice.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) }).map(drop)
}

/// `set_mempolicy(2)` on the calling thread, one bit per memory node; an empty mask is no mask.
///
/// # Errors
/// `EINVAL` for a mode, flag or node that the kernel does not know or the cgroup does not allow.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> io::Result<()> {
    // The kernel takes one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * u64::BITS as usize + 1 };
    let pointer = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the mask is readable for the bits given, or absent.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) }).map(drop)
}
