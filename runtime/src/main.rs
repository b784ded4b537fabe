//! The `gantry-runtime` program; see the library for how it works.
//!
//! It is entered from the C library and not through Rust's own start, which makes a dozen system calls for a guard page,
//! an alternative signal stack and an ignored `SIGPIPE`: each command would pay for what it does not use.
#![cfg_attr(not(test), no_main)]
#![allow(unsafe_code)] // the symbol that the C library calls

#[cfg(not(test))]
mod entry;

/// What the C library calls. Arguments are taken from [`std::env`], which has them from the loader.
#[cfg(not(test))]
#[unsafe(no_mangle)]
pub extern "C" fn main(_count: i32, _arguments: *const *const i8) -> i32 {
    gantry_runtime::sys::process::fill_standard_streams();
    gantry_runtime::sys::process::widen_heap();
    let code = gantry_runtime::run(std::env::args_os().skip(1));
    let _ = std::io::Write::flush(&mut std::io::stdout());
    gantry_runtime::sys::process::exit_now(i32::from(code))
}
