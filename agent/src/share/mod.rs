//! Images between nodes: what we hold is told to the scheduler, served to other nodes, and fetched from them.
//!
//! ```text
//! store ─ inventory ─► stream ══► scheduler ══► stream ─ Sources ─► fetch ─ mutual TLS ─► serve of another node
//! ```
//!
//! A node trusts another one for nothing but its membership; `gantry_images` checks every digest.

pub(crate) mod fetch;
pub(crate) mod inventory;
pub(crate) mod serve;

/// In a request: a blob that is still being fetched there is wanted too. In an answer: that it is one, and the offset at
/// which the body begins.
const UNFINISHED: &str = "gantry-unfinished";
