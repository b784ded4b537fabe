//! The network of a node: bridge, containers' links and addresses, overlay, service addresses, published ports, names.
//!
//! ```text
//! agent ── Table ──► http ─► node ─► plan (decides) ─► link, nft, conntrack ─► netlink ─► kernel
//! agent ── Loads ──►  ▲        ├─► balance (programs that run when a socket connects) ─► bpf ─► kernel
//! agent ── attach ─►  ▲        │                        attach ─► netns
//! cli ─────────────► client    └─► ports, dns (sockets of our own)
//! gantry run ──────► local (the same pieces without a daemon)
//! ```
//! - [`run`] is the daemon; [`client::Client`] speaks to it.
//! - [`local`] gives one container a network where there is no daemon.
//! - [`remove_all`] takes everything of ours out of the kernel.
//!
//! No program is ever executed for it: links, addresses, routes and neighbours go by rtnetlink, rules by nf_tables'
//! own netlink messages, the balancing programs are assembled here and loaded by bpf(2). `docs/network.md` says what is in the kernel under which name.

mod allocator;
mod attach;
mod balance;
pub mod client;
mod conntrack;
mod daemon;
mod dns;
mod error;
mod hash;
mod link;
pub mod local;
#[cfg(test)]
mod measure;
mod netlink;
mod netns;
mod nft;
mod node;
mod plan;
mod ports;
mod sockets;
mod state;
mod sys;

pub use daemon::{Config, run};
pub use error::NetError;
pub use node::remove_all;
