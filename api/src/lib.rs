//! What Gantry's rooms say to each other: names, units, the manifest, and every message on the wire.
//!
//! Types only: parse and check, no I/O, no clock. `manifest` turns a Compose file into a [`spec::AppSpec`]; `spec`
//! is the desired state as stored; `wire` is what scheduler and agent exchange; `network` is the picture that netd
//! makes true; `http` is what the user's command asks of the scheduler; `images` is where nodes get images from each other; `frame`
//! carries exec and logs.

pub mod frame;
pub mod http;
pub mod ids;
pub mod images;
pub mod manifest;
pub mod network;
pub mod spec;
pub mod units;
pub mod wire;
