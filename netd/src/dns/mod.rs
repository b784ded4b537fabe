//! Names: on the bridge's own address, behind no virtual one (no translation, so no race of conntrack for the A and
//! AAAA questions that a resolver sends at once).
//!
//! ```text
//! packet ─► answer::prepare ─ ours ─► answer from memory
//!                           └ other ─► forward: to the host's name servers ─► answer, or "server failure"
//! ```

pub(crate) mod answer;
mod forward;
mod server;
pub(crate) mod zone;

pub(crate) use forward::nameservers;
pub(crate) use server::Server;
