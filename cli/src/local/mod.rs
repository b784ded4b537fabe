//! Containers and images of this host, without any daemon: `gantry run` and what belongs to it.
//!
//! ```text
//! run ─► options (a wish) ─► images ─► record (reserve) ─► life: snapshot, network, bundle ─► runtime
//!                                                             ▲ release, destroy, sweep
//! stop, kill, start, rm, logs, list ─── commands ─────────────┘
//! ```

mod commands;
mod error;
pub mod images;
mod life;
mod options;
mod record;
mod run;
mod runtime;
mod volumes;

pub use commands::{ExecOptions, Kill, LogOptions, Rm, Start, Stop, exec, knows, logs, ps};
pub use images::{Images, Load, Pull, Rmi};
pub use options::Run;
pub use run::Watch;
