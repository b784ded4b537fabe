//! A container: from a checked configuration to a running program, on this kernel.

pub mod capabilities;
pub mod channel;
pub mod copy_up;
pub mod hooks;
pub mod idmap;
pub mod init;
pub mod mounts;
pub mod namespaces;
pub mod nodes;
pub mod options;
pub mod path;
pub mod process;
pub mod procfs;
pub mod quick;
pub mod rlimits;
