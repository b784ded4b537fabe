//! Building `gantry` and `gantry-runtime`, and checking that each is one file that runs anywhere.

use crate::error::{Error, Result};
use crate::{files, process};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The two programs.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    pub(crate) gantry: PathBuf,
    pub(crate) runtime: PathBuf,
}

/// How to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For users.
    Release,
    /// For tests: compiled faster.
    Debug,
}

/// `cargo xtask build`.
pub(crate) fn task(args: &[String]) -> Result<()> {
    if let Some(word) = args.first() {
        return Err(Error::Usage(format!("build does not know `{word}`")));
    }
    let built = build(Profile::Release)?;
    for path in [&built.gantry, &built.runtime] {
        let size = std::fs::metadata(path).map_err(Error::file("read", path))?.len();
        println!("{:14} {:5.1} MB, static", shown(path), size as f64 / 1e6);
    }
    Ok(())
}

/// A path as seen from the current directory.
pub(crate) fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

/// Cargo, as it runs this task.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(files::root());
    command
}

/// Builds both programs; for a release they are also put where people look for them, `target/release/`.
pub(crate) fn build(profile: Profile) -> Result<Binaries> {
    let mut command = cargo();
    command.args(["build", "--locked", "-p", "gantry-cli", "-p", "gantry-runtime"]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    process::run(&mut command)?;
    let folder = if profile == Profile::Release { "release" } else { "debug" };
    let built = files::target().join(host_target()?).join(folder);
    let place = if profile == Profile::Release { files::target().join(folder) } else { built.clone() };
    let find = |name: &str| -> Result<PathBuf> {
        let from = built.join(name);
        let to = place.join(name);
        let program = std::fs::read(&from).map_err(Error::file("read", &from))?;
        if let Some(interpreter) = interpreter(&program).map_err(|why| Error::input(from.display(), why))? {
            return Err(Error::Host {
                what: format!("{} is not static: it needs {interpreter}", from.display()),
                hint: "build with the flags of .cargo/config.toml; RUSTFLAGS replaces them".into(),
            });
        }
        if from != to {
            link(&from, &to)?;
        }
        Ok(to)
    };
    Ok(Binaries { gantry: find("gantry")?, runtime: find("gantry-runtime")? })
}

/// The runtime alone, for users.
pub(crate) fn runtime() -> Result<PathBuf> {
    process::run(cargo().args(["build", "--locked", "--release", "-p", "gantry-runtime"]))?;
    Ok(files::target().join(host_target()?).join("release/gantry-runtime"))
}

/// An example of a package, for measuring; the one that `GANTRY_EXAMPLE_BIN` names, else a fresh release.
pub(crate) fn example(package: &str, name: &str) -> Result<PathBuf> {
    if let Some(built) = std::env::var_os("GANTRY_EXAMPLE_BIN") {
        return Ok(built.into());
    }
    process::run(cargo().args(["build", "--locked", "--release", "-p", package, "--example", name]))?;
    Ok(files::target().join(host_target()?).join("release/examples").join(name))
}

/// The programs to show or measure: those that `GANTRY_BIN` and `GANTRY_RUNTIME_BIN` name, else a fresh release.
pub(crate) fn ready() -> Result<Binaries> {
    match (std::env::var_os("GANTRY_BIN"), std::env::var_os("GANTRY_RUNTIME_BIN")) {
        (Some(gantry), Some(runtime)) => Ok(Binaries { gantry: gantry.into(), runtime: runtime.into() }),
        (None, None) => build(Profile::Release),
        _ => Err(Error::Usage("set both of GANTRY_BIN and GANTRY_RUNTIME_BIN, or none".into())),
    }
}

/// The same, without building when a release is there already.
pub(crate) fn at_hand() -> Result<Binaries> {
    let place = files::target().join("release");
    let both = Binaries { gantry: place.join("gantry"), runtime: place.join("gantry-runtime") };
    let there = both.gantry.exists() && both.runtime.exists() && std::env::var_os("GANTRY_BIN").is_none();
    if there { Ok(both) } else { ready() }
}

/// The same file under a second name; a copy where that cannot be.
fn link(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(to);
    std::fs::create_dir_all(folder).map_err(Error::file("make", folder))?;
    let draft = to.with_extension(format!("{}", std::process::id()));
    if std::fs::hard_link(from, &draft).is_err() {
        std::fs::copy(from, &draft).map_err(Error::file("write", &draft))?;
    }
    // Renaming a name of a file over another name of the same file does nothing, and leaves both.
    std::fs::rename(&draft, to).map_err(Error::file("write", to))?;
    if draft.exists() {
        std::fs::remove_file(&draft).map_err(Error::file("remove", &draft))?;
    }
    Ok(())
}

/// The target that `host-tuple` in .cargo/config.toml stands for.
fn host_target() -> Result<String> {
    let text = process::text(Command::new("rustc").arg("-vV").current_dir(files::root()))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Error::input("rustc -vV", "names no host"))
}

/// The dynamic linker that a 64-bit little-endian ELF program asks for (program header `PT_INTERP`).
fn interpreter(program: &[u8]) -> Result<Option<String>, &'static str> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| -> Result<u64, &'static str> {
        let bytes = at.checked_add(size).and_then(|end| program.get(at..end)).ok_or("ends too early")?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    if program.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("is no 64-bit little-endian ELF program");
    }
    let headers = number(32, 8)? as usize;
    let (size, count) = (number(54, 2)? as usize, number(56, 2)? as usize);
    for index in 0..count {
        let header = headers.checked_add(index * size).ok_or("ends too early")?;
        if number(header, 4)? == PT_INTERP {
            let (offset, length) = (number(header + 8, 8)? as usize, number(header + 32, 8)? as usize);
            let end = offset.checked_add(length).ok_or("ends too early")?;
            let text = program.get(offset..end).ok_or("ends too early")?;
            return Ok(Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with one header of the given type.
    fn elf(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64; // e_phoff
        bytes[54] = 56; // e_phentsize
        bytes[56] = 1; // e_phnum
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes[72] = 120; // p_offset
        bytes[96] = 5; // p_filesz
        bytes.extend_from_slice(b"/ld1\0");
        bytes
    }

    #[test]
    fn a_dynamic_program_names_its_linker() {
        assert_eq!(interpreter(&elf(3)), Ok(Some("/ld1".into())));
        assert_eq!(interpreter(&elf(1)), Ok(None));
        assert_eq!(interpreter(&elf(3)[..122]), Err("ends too early"));
        assert_eq!(interpreter(&elf(3)[..70]), Err("ends too early"));
        assert!(interpreter(b"#!/bin/sh").is_err());
        assert!(interpreter(b"").is_err());
    }

    #[test]
    fn this_test_is_static_and_the_shell_is_not_a_script() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(interpreter(&own), Ok(None));
        assert!(interpreter(&std::fs::read("/bin/sh").unwrap()).is_ok());
    }

    #[test]
    fn linking_twice_leaves_one_name() {
        let scratch = files::Scratch::new().unwrap();
        let (from, to) = (scratch.path().join("a"), scratch.path().join("d/b"));
        std::fs::write(&from, "1").unwrap();
        link(&from, &to).unwrap();
        link(&from, &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"1");
        assert_eq!(std::fs::read_dir(to.parent().unwrap()).unwrap().count(), 1);
    }
}
