//! Resource limits of the process.

use crate::config::Rlimit;
use crate::error::{Because, Outcome};
use crate::sys::process::{self, Resource};

/// All limits of Linux.
const LIMITS: &[(&str, Resource)] = &[
    ("RLIMIT_AS", libc::RLIMIT_AS),
    ("RLIMIT_CORE", libc::RLIMIT_CORE),
    ("RLIMIT_CPU", libc::RLIMIT_CPU),
    ("RLIMIT_DATA", libc::RLIMIT_DATA),
    ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE),
    ("RLIMIT_LOCKS", libc::RLIMIT_LOCKS),
    ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK),
    ("RLIMIT_MSGQUEUE", libc::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", libc::RLIMIT_NICE),
    ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE),
    ("RLIMIT_NPROC", libc::RLIMIT_NPROC),
    ("RLIMIT_RSS", libc::RLIMIT_RSS),
    ("RLIMIT_RTPRIO", libc::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME),
    ("RLIMIT_SIGPENDING", libc::RLIMIT_SIGPENDING),
    ("RLIMIT_STACK", libc::RLIMIT_STACK),
];

/// The number of a `RLIMIT_*` name.
pub fn resource(name: &str) -> Option<Resource> {
    LIMITS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// All names, for an error.
pub fn names() -> String {
    LIMITS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// Set all limits.
///
/// # Errors
/// Raising a hard limit without `CAP_SYS_RESOURCE`.
pub fn apply(limits: &[Rlimit]) -> Outcome<()> {
    for limit in limits {
        let Some(resource) = resource(&limit.kind) else {
            continue;
        };
        process::set_rlimit(resource, limit.soft, limit.hard)
            .because(|| format!("cannot set {} to {} (hard {})", limit.kind, limit.soft, limit.hard))
            .map_err(|failure| match process::get_rlimit(resource) {
                Ok((_, hard)) if limit.hard > hard => {
                    failure.hint(format!("the hard limit of the runtime is {hard}; raising it takes CAP_SYS_RESOURCE"))
                }
                _ => failure,
            })?;
    }
    Ok(())
}

/// Raise the hard limits that a process in a user namespace cannot raise itself any more, as far as we can; it sets the
/// limits, and says which it could not.
pub fn raise_of(pid: i32, limits: &[Rlimit]) {
    for limit in limits {
        if let Some(resource) = resource(&limit.kind) {
            let _ = process::raise_hard_limit_of(pid, resource, limit.hard);
        }
    }
}

/// Let this process open as many files as it may, returning the former limit: one descriptor per bind mount is held.
pub fn raise_open_files() -> Option<(u64, u64)> {
    let (soft, hard) = process::get_rlimit(libc::RLIMIT_NOFILE).ok()?;
    process::set_rlimit(libc::RLIMIT_NOFILE, hard, hard).ok()?;
    Some((soft, hard))
}

/// Put back what [`raise_open_files`] found, so that the container does not inherit ours.
///
/// # Errors
/// None known.
pub fn restore_open_files(before: Option<(u64, u64)>) -> Outcome<()> {
    match before {
        None => Ok(()),
        Some((soft, hard)) => process::set_rlimit(libc::RLIMIT_NOFILE, soft, hard)
            .because(|| "cannot restore the limit of open files".to_owned()),
    }
}
