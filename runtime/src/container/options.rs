//! Mount options as words, turned into what the mount calls take.

use crate::sys::mount::MountAttr;

/// `MOUNT_ATTR_RDONLY`.
pub const READ_ONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
/// The whole field of access time modes.
const ATIME: u64 = 0x70;
const RELATIME: u64 = 0x00;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;
/// `MOUNT_ATTR_IDMAP`.
pub const IDMAP: u64 = 0x10_0000;

/// A propagation and whether it goes down the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Propagation {
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`.
    pub kind: u64,
    /// For all mounts below, too.
    pub recursive: bool,
}

/// Whether a bind mount takes the mounts below its source with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// `bind`.
    Single,
    /// `rbind`.
    Recursive,
}

/// Which mounts get an ID map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idmap {
    /// `idmap`: this one.
    Single,
    /// `ridmap`: all below, too.
    Recursive,
}

/// A line of a map that is written in an option, as podman does for crun: `0-1000-1`, and with `@` in front of the list
/// when the second number is an ID in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapLine {
    /// First ID in the filesystem.
    pub inside: u32,
    /// First ID through the mount.
    pub outside: u32,
    /// How many.
    pub size: u32,
    /// `outside` is an ID of the container.
    pub of_container: bool,
}

/// Read `uids=0-1-10#10-11-10;gids=@0-100-10`; one of the two may be missing.
fn own_map(text: &str) -> Option<[Vec<MapLine>; 2]> {
    let mut map = [Vec::new(), Vec::new()];
    for half in text.split(';') {
        let (at, list) = match half.split_once('=')? {
            ("uids", list) => (0, list),
            ("gids", list) => (1, list),
            _ => return None,
        };
        for line in list.split('#') {
            let (line, of_container) = line.strip_prefix('@').map_or((line, false), |line| (line, true));
            let numbers: Vec<u32> = line.split('-').map(|number| number.parse().ok()).collect::<Option<_>>()?;
            let [inside, outside, size] = numbers[..] else { return None };
            map[at].push(MapLine { inside, outside, size, of_container });
        }
    }
    Some(map)
}

/// Options of one mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `bind` or `rbind`.
    pub bind: Option<Bind>,
    /// `remount`.
    pub remount: bool,
    /// Attributes of this mount.
    pub attr: MountAttr,
    /// Attributes of this mount and all below it.
    pub recursive_attr: MountAttr,
    /// Propagations, in order.
    pub propagations: Vec<Propagation>,
    /// `idmap` or `ridmap`.
    pub idmap: Option<Idmap>,
    /// `idmap=uids=..;gids=..`: users and groups.
    pub own_map: Option<[Vec<MapLine>; 2]>,
    /// `tmpcopyup`: fill the new tmpfs with what it covers.
    pub copy_up: bool,
    /// Options for the filesystem itself.
    pub data: Vec<(String, Option<String>)>,
}

/// An option that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A map that cannot be read.
    #[error("`{0}` is not of the form `idmap=uids=ID-ID-SIZE#..;gids=ID-ID-SIZE#..`")]
    Map(String),
    /// A word with a zero byte or nothing in it.
    #[error("`{0}` is not an option")]
    Invalid(String),
}

/// What a word does to attributes: bits to set, bits to clear.
fn attribute(word: &str) -> Option<(u64, u64)> {
    Some(match word {
        "ro" => (READ_ONLY, 0),
        "rw" => (0, READ_ONLY),
        "nosuid" => (NOSUID, 0),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, 0),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, 0),
        "exec" => (0, NOEXEC),
        "noatime" => (NOATIME, ATIME),
        "relatime" | "atime" | "nostrictatime" => (RELATIME, ATIME),
        "strictatime" | "norelatime" => (STRICTATIME, ATIME),
        "nodiratime" => (NODIRATIME, 0),
        "diratime" => (0, NODIRATIME),
        "nosymfollow" => (NOSYMFOLLOW, 0),
        "symfollow" => (0, NOSYMFOLLOW),
        _ => return None,
    })
}

/// A propagation by its name.
pub fn propagation(word: &str) -> Option<Propagation> {
    let (name, recursive) = match word.strip_prefix('r') {
        Some(name) => (name, true),
        None => (word, false),
    };
    let kind = match name {
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some(Propagation { kind, recursive })
}

/// A later word takes back an earlier one.
fn apply(attr: &mut MountAttr, (set, clear): (u64, u64)) {
    attr.set = attr.set & !clear | set;
    // The kernel wants the whole atime field cleared whenever a mode is set.
    attr.clear = attr.clear & !(set & !ATIME) | clear;
}

/// Read the words of one mount.
///
/// # Errors
/// A word that this runtime does not carry out.
pub fn parse(words: &[String]) -> Result<Options, OptionError> {
    let mut options = Options::default();
    for word in words {
        let word = word.as_str();
        if word.contains('\0') {
            return Err(OptionError::Invalid(word.replace('\0', "\\0")));
        }
        let recursive = word.strip_prefix('r').and_then(attribute);
        if let Some(change) = attribute(word) {
            apply(&mut options.attr, change);
        } else if let Some(propagation) = propagation(word) {
            options.propagations.push(propagation);
        } else if let Some(change) = recursive {
            apply(&mut options.recursive_attr, change);
        } else {
            match word {
                "" | "defaults" | "nofail" | "_netdev" | "auto" | "noauto" | "user" | "nouser" | "loud" | "async"
                | "nomand" | "noiversion" | "nolazytime" => {}
                "bind" => options.bind = options.bind.or(Some(Bind::Single)),
                "rbind" => options.bind = Some(Bind::Recursive),
                "remount" => options.remount = true,
                "tmpcopyup" => options.copy_up = true,
                "idmap" => options.idmap = options.idmap.or(Some(Idmap::Single)),
                "ridmap" => options.idmap = Some(Idmap::Recursive),
                _ if word.starts_with("idmap=") || word.starts_with("ridmap=") => {
                    let (name, text) = word.split_once('=').unwrap_or((word, ""));
                    options.own_map = Some(own_map(text).ok_or_else(|| OptionError::Map(word.to_owned()))?);
                    options.idmap = Some(if name == "idmap" { Idmap::Single } else { Idmap::Recursive });
                }
                _ => options.data.push(match word.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (word.to_owned(), None),
                }),
            }
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let options = match parse(&words) {
            Ok(options) => options,
            Err(error) => return error.to_string(),
        };
        let mut parts = Vec::new();
        match options.bind {
            Some(Bind::Single) => parts.push("bind".to_owned()),
            Some(Bind::Recursive) => parts.push("rbind".to_owned()),
            None => {}
        }
        match options.idmap {
            Some(Idmap::Single) => parts.push("idmap".to_owned()),
            Some(Idmap::Recursive) => parts.push("ridmap".to_owned()),
            None => {}
        }
        for list in options.own_map.iter().flatten() {
            let at = |line: &MapLine| if line.of_container { "@" } else { "" };
            let line = |line: &MapLine| format!("{}{}-{}-{}", at(line), line.inside, line.outside, line.size);
            parts.push(format!("[{}]", list.iter().map(line).collect::<Vec<_>>().join(" ")));
        }
        for (name, attr) in [("", options.attr), ("r", options.recursive_attr)] {
            if attr != MountAttr::default() {
                parts.push(format!("{name}+{:x}-{:x}", attr.set, attr.clear));
            }
        }
        parts.extend(
            options.propagations.iter().map(|p| format!("p{:x}{}", p.kind, if p.recursive { "r" } else { "" })),
        );
        parts.extend(options.data.iter().map(|(key, value)| format!("{key}:{}", value.as_deref().unwrap_or("-"))));
        parts.join(" ")
    }

    #[test]
    fn words() {
        for (words, want) in [
            (&["nosuid", "noexec", "nodev"][..], "+e-0"),
            (&["ro"], "+1-0"),
            (&["ro", "rw"], "+0-1"),
            (&["rw", "ro"], "+1-0"),
            (&["rro"], "r+1-0"),
            (&["rnosuid", "rnoatime"], "r+12-70"),
            (&["relatime"], "+0-70"),
            (&["strictatime"], "+20-70"),
            (&["noatime", "strictatime"], "+20-70"),
            (&["nodiratime", "diratime"], "+0-80"),
            (&["bind"], "bind"),
            (&["rbind", "bind"], "rbind"),
            (&["rprivate"], "p40000r"),
            (&["shared", "slave"], "p100000 p80000"),
            (&["mode=755", "size=65536k"], "mode:755 size:65536k"),
            (&["newinstance", "gid=5"], "newinstance:- gid:5"),
            (&["defaults", ""], ""),
            (&["sync"], "sync:-"),
            (&["rw", "runbindable"], "+0-1 p20000r"),
            (&["idmap"], "idmap"),
            (&["ridmap", "idmap"], "ridmap"),
            (&["idmap=uids=0-1-10#10-11-10;gids=@0-100-10"], "idmap [0-1-10 10-11-10] [@0-100-10]"),
            (&["ridmap=gids=0-1-1;uids=0-2-1"], "ridmap [0-2-1] [0-1-1]"),
            (&["idmap=uids=0-1-10"], "idmap [0-1-10] []"),
            (&["idmap=uids=0-1"], "`idmap=uids=0-1` is not of the form `idmap=uids=ID-ID-SIZE#..;gids=ID-ID-SIZE#..`"),
            (&["idmap="], "`idmap=` is not of the form `idmap=uids=ID-ID-SIZE#..;gids=ID-ID-SIZE#..`"),
            (&["a\0b"], "`a\\0b` is not an option"),
        ] {
            assert_eq!(text(words), want, "{words:?}");
        }
    }
}
