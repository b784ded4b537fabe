//! How the program is linked: it starts at `gantry_entry` (src/entry.rs) rather than at the C library's `_start`, and a
//! release carries nothing that it never uses.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=no-unwind.ld");
    link("-e,gantry_entry");
    let set = |name: &str| env::var(name).unwrap_or_default();
    if set("PROFILE") != "release" {
        return;
    }
    // cargo's `strip` leaves the table of symbols of a package with a profile of its own.
    link("--strip-all");
    if !has_default_linker(&set("CARGO_ENCODED_RUSTFLAGS"), &set("TARGET")) {
        return;
    }
    // One copy of functions that are the same, and no tables for unwinding: a panic of a release aborts.
    link("--icf=all");
    link(&format!("-T,{}/no-unwind.ld", set("CARGO_MANIFEST_DIR")));
    if set("HOST") == set("TARGET") && has_packed_relocations() {
        link("-z,pack-relative-relocs");
    }
}

/// An argument for the linker.
fn link(argument: &str) {
    println!("cargo::rustc-link-arg-bins=-Wl,{argument}");
}

/// Whether the linker is the one that comes with Rust, whose options are known.
fn has_default_linker(flags: &str, target: &str) -> bool {
    target == "x86_64-unknown-linux-gnu" && env::var_os("RUSTC_LINKER").is_none() && !flags.contains("link")
}

/// Whether the C library that is linked can start a static program with packed relocations: glibc since 2.36.
fn has_packed_relocations() -> bool {
    let Ok(said) = Command::new("getconf").arg("GNU_LIBC_VERSION").output() else { return false };
    let said = String::from_utf8_lossy(&said.stdout);
    let mut numbers = said.trim().rsplit(' ').next().unwrap_or_default().split('.').map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (2, 36))
}
