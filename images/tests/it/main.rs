//! The store on the real kernel: loading, hostile archives, snapshots, registries, crashes. Needs root.
//!
//! Every test works on a `tmpfs` of its own in a mount namespace of its own thread: nothing is left behind, however it
//! ends, and any number can run at once.

mod bad_input;
mod behaviour;
mod build;
mod common;
mod concurrent;
mod crash;
mod flights;
mod hostile;
mod load;
mod login;
mod peers;
mod pull;
mod push;
mod real_registry;
mod registry;
mod room;
mod roots;
mod round_trips;
mod scrub;
mod settings;
mod snapshot;
mod transfer;
