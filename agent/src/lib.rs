//! The worker's daemon: from what the scheduler assigned to replicas that run, and back to what it is told of them.
//!
//! ```text
//! scheduler ══ stream ══► ledger (disk) ─► plan ─► act: image ─ snapshot ─ network ─ bundle ─ runtime
//!                                           ▲                                              │
//!                          report ◄═════════╧═══════════ observe: exit files, logs, usage ◄┘
//! ```
//!
//! [`plan`] and [`model`] are pure and public: a simulation can drive them as the daemon does. The daemon works from
//! its ledger whether there is a scheduler or not, and its own death changes nothing that runs.

mod act;
mod daemon;
pub mod deaths;
mod dial;
mod error;
mod fsx;
mod identity;
mod join;
mod ledger;
pub mod model;
mod observe;
pub mod paths;
pub mod plan;
mod share;
mod stream;
mod sys;
mod tls;

pub use act::volumes::{VolumeError, ensure as ensure_volume};
pub use daemon::{Config, run};
pub use dial::DialError;
pub use error::AgentError;
pub use fsx::FileError;
pub use identity::{IdentityError, is_joined};
pub use join::{JoinConfig, JoinError, Joined, join};
pub use observe::cri;
pub use tls::TlsError;
