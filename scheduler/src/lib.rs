//! Gantry scheduler.
pub mod core;
pub mod store;
pub mod records;
pub mod ca;
