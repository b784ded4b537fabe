//! Makes the program start at `gantry_entry` (src/entry.rs) rather than at the C library's `_start`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,-e,gantry_entry");
}
