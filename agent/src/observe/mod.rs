//! Reading: exit files, logs, control groups, the node. Nothing here decides or changes anything.

pub(crate) mod cgroup;
pub mod cri;
pub(crate) mod exits;
pub(crate) mod node;
pub(crate) mod watch;
