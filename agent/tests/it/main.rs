//! The agent on the real kernel, with the real runtime, images and netd, against a scripted scheduler.
//!
//! Every test runs in network, mount and PID namespaces of its own: nothing of the host's is touched, and when a test
//! is killed part-way the kernel takes everything away.

#![allow(unreachable_pub)] // what modules of a test share

mod common;
mod join;
mod replica;
mod sharing;
mod tunnels;
