//! Small memory limits of v1, and what making a container takes.
//!
//! The ten mounts of cgroup filesystems alone are charged with some 40 KiB, to whoever makes them. They must be made after
//! joining the cgroup (that is where the cgroup namespace has its root), but not by a process that is still in it: so for
//! a limit that this would exhaust, the container's first process goes back to where the runtime is charged until all is
//! made. It has not run the program then, and moving itself costs some microseconds.

use super::hierarchy::read;
use super::{Cgroup, make, refused};
use crate::config::Resources;
use crate::error::{InStep, Outcome};
use std::os::fd::OwnedFd;

/// A limit below this may be too small for what making a container takes.
const SMALL: i64 = 1024 * 1024;

/// Two places to be charged, as files to write `0` into.
#[derive(Debug)]
pub struct Aside {
    runtime: OwnedFd,
    container: OwnedFd,
}

/// Whether the limit is too small for what making a container takes.
pub fn is_wanted(resources: &Resources) -> bool {
    let limit = resources.memory.as_ref().and_then(|memory| memory.limit);
    limit.is_some_and(|limit| (1..SMALL).contains(&limit))
}

impl Cgroup {
    /// The two places, if the limit is small, in a v1 hierarchy, and that of the runtime is seen here.
    pub fn aside(&self, resources: &Resources) -> Option<Aside> {
        if !is_wanted(resources) {
            return None;
        }
        let v1 = self.hierarchies.v1_of("memory").filter(|v1| !self.is_left_out(&v1.mount))?;
        let membership = read("/proc/self/cgroup").ok()?;
        let runtime = v1.mount.join(memory_of(&membership)?);
        Some(Aside {
            runtime: make::door(&runtime, "tasks").ok()?,
            container: make::door(&v1.mount.join(&self.path), "tasks").ok()?,
        })
    }
}

impl Aside {
    /// Go where the runtime is charged.
    ///
    /// # Errors
    /// It is gone.
    pub fn step_out(&self) -> Outcome<()> {
        rustix::io::write(&self.runtime, b"0").map(drop).map_err(refused).in_step("join cgroup")
    }

    /// Go where the container is charged, for good.
    ///
    /// # Errors
    /// It does not take us.
    pub fn step_in(&self) -> Outcome<()> {
        rustix::io::write(&self.container, b"0").map(drop).map_err(refused).in_step("join cgroup")
    }
}

/// Where a process is charged, from its `/proc/PID/cgroup`, without the leading slash.
fn memory_of(membership: &str) -> Option<&str> {
    membership.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let has = parts.next()?.split(',').any(|name| name == "memory");
        let path = parts.next()?.strip_prefix('/')?;
        (has && !path.split('/').any(|part| part == "..")).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_process_is_charged() {
        for (membership, want) in [
            ("4:memory:/a/b\n3:cpuset:/\n", Some("a/b")),
            ("4:cpu,memory:/\n", Some("")),
            ("3:cpuset:/x\n0::/y\n", None),
            ("4:memory:/../elsewhere\n", None),
            ("", None),
        ] {
            assert_eq!(memory_of(membership), want, "{membership:?}");
        }
    }
}
