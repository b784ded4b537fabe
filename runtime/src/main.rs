//! The `gantry-runtime` program; see the library for how it works.
//!
//! It is entered from the C library and not through Rust's own start, which makes a dozen system calls for a guard page,
//! an alternative signal stack and an ignored `SIGPIPE`: each command would pay for what it does not use.
#![cfg_attr(not(test), no_main)]

#[cfg(not(test))]
mod entry;
