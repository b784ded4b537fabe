//! The files of one layer, held in memory and written as a tar archive that depends on nothing but them.
//!
//! Nothing is unpacked on disk, so owners, modes and extended attributes (file capabilities) pass through
//! untouched, whoever runs the task.

use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// Time of every file: 2023-11-14T22:13:20Z. The same input gives the same bytes.
pub(crate) const EPOCH: u64 = 1_700_000_000;
/// Prefix of a PAX record that holds an extended attribute.
const XATTR: &str = "SCHILY.xattr.";

/// Links in the root directory to what is of the same name in `usr`.
const LINKS: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// What a path of the tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    /// Two paths that share one allocation are hard links of each other.
    File(Arc<[u8]>),
    Symlink(String),
}

/// One path of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

impl Node {
    /// Owned by root, without extended attributes.
    pub(crate) fn new(kind: Kind, mode: u32) -> Self {
        Self { kind, mode, uid: 0, gid: 0, xattrs: BTreeMap::new() }
    }
}

/// Paths (without a leading slash) and what they are. A parent sorts before what it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

/// `bin`, `sbin`, `lib` and `lib64` are links into `usr`: one place for everything, as in every current distribution.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_matches('/');
    let moves = path.split_once('/').is_some_and(|(first, _)| LINKS.contains(&first));
    if moves { format!("usr/{path}") } else { path.to_owned() }
}

impl Tree {
    /// The directories and links that every root file system has.
    pub(crate) fn skeleton() -> Self {
        let mut tree = Self::default();
        for (path, mode) in [
            ("dev", 0o755),
            ("etc", 0o755),
            ("proc", 0o555),
            ("root", 0o700),
            ("run", 0o755),
            ("sys", 0o555),
            ("tmp", 0o1777),
            ("usr", 0o755),
            ("usr/bin", 0o755),
            ("usr/lib", 0o755),
            ("usr/lib64", 0o755),
            ("usr/local", 0o755),
            ("usr/local/bin", 0o755),
            ("usr/sbin", 0o755),
            ("var", 0o755),
            ("var/tmp", 0o1777),
        ] {
            tree.nodes.insert(path.into(), Node::new(Kind::Directory, mode));
        }
        for link in LINKS {
            tree.nodes.insert(link.into(), Node::new(Kind::Symlink(format!("usr/{link}")), 0o777));
        }
        tree.nodes.insert("var/run".into(), Node::new(Kind::Symlink("/run".into()), 0o777));
        tree
    }

    /// Paths and nodes in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Puts a node at a path, in place of what was there, and makes the directories above it.
    pub(crate) fn put(&mut self, path: &str, node: Node) {
        let path = merged(path);
        for (end, _) in path.match_indices('/') {
            let parent = path[..end].to_owned();
            self.nodes.entry(parent).or_insert_with(|| Node::new(Kind::Directory, 0o755));
        }
        self.nodes.insert(path, node);
    }

    /// Puts a symbolic link where nothing is yet.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        if !self.nodes.contains_key(&merged(path)) {
            self.put(path, Node::new(Kind::Symlink(target.into()), 0o777));
        }
    }

    /// Content of a file.
    pub(crate) fn file(&self, path: &str) -> Option<&Arc<[u8]>> {
        match &self.nodes.get(&merged(path))?.kind {
            Kind::File(content) => Some(content),
            Kind::Directory | Kind::Symlink(_) => None,
        }
    }

    /// Adds the files of a tar archive (a package's) except those `drop` names. A directory that is already there
    /// keeps its mode.
    pub(crate) fn extend(&mut self, archive: impl Read, drop: impl Fn(&str) -> bool) -> io::Result<()> {
        let mut archive = tar::Archive::new(archive);
        let mut extra = Extra::default();
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry?;
            if extra.read(&mut entry)? {
                continue;
            }
            let extra = std::mem::take(&mut extra);
            let path = extra.path.unwrap_or_else(|| entry.path_bytes().into_owned());
            let path = merged(&String::from_utf8_lossy(&path));
            let target = extra.target.or_else(|| entry.link_name_bytes().map(|name| name.into_owned()));
            let target = String::from_utf8_lossy(&target.unwrap_or_default()).into_owned();
            if path.is_empty() || drop(&path) {
                continue;
            }
            let kind = match entry.header().entry_type() {
                tar::EntryType::Directory if self.nodes.contains_key(&path) || LINKS.contains(&&*path) => continue,
                tar::EntryType::Directory => Kind::Directory,
                tar::EntryType::Symlink => Kind::Symlink(target),
                tar::EntryType::Link => match self.file(&target) {
                    Some(content) => Kind::File(Arc::clone(content)),
                    None => continue, // its target was dropped
                },
                tar::EntryType::Regular => {
                    let mut content = Vec::with_capacity(usize::try_from(entry.size()).unwrap_or_default());
                    entry.read_to_end(&mut content)?;
                    Kind::File(content.into())
                }
                other => return Err(io::Error::other(format!("{path} is of type {other:?}, which no layer needs"))),
            };
            let header = entry.header();
            let (mode, uid, gid) = (header.mode()? & 0o7777, header.uid()?, header.gid()?);
            self.put(&path, Node { kind, mode, uid, gid, xattrs: extra.xattrs });
        }
        Ok(())
    }

    /// Writes the tree as a tar archive: sorted, fixed times, numeric owners, extended attributes as PAX records.
    pub(crate) fn write(&self, to: impl Write) -> io::Result<()> {
        let mut archive = tar::Builder::new(to);
        let mut written: HashMap<*const u8, &str> = HashMap::new();
        for (path, node) in &self.nodes {
            match &node.kind {
                Kind::Directory => append(&mut archive, path, node, tar::EntryType::Directory, None, &[])?,
                Kind::Symlink(target) => {
                    append(&mut archive, path, node, tar::EntryType::Symlink, Some(target), &[])?;
                }
                Kind::File(content) => {
                    let first = *written.entry(content.as_ptr()).or_insert(path);
                    if first == path || content.is_empty() {
                        append(&mut archive, path, node, tar::EntryType::Regular, None, content)?;
                    } else {
                        append(&mut archive, path, node, tar::EntryType::Link, Some(first), &[])?;
                    }
                }
            }
        }
        archive.into_inner()?.flush()
    }
}

/// What entries before an entry say of it: GNU long names and PAX records. The `tar` crate's own reader of PAX
/// records ends a value at its first newline, and a file capability is binary.
#[derive(Debug, Default)]
struct Extra {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

impl Extra {
    /// Takes an entry that is about the next one; false when it is an entry of its own.
    fn read<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> io::Result<bool> {
        let kind = entry.header().entry_type();
        if !(kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions()) {
            return Ok(kind.is_pax_global_extensions());
        }
        let mut body = Vec::new();
        entry.read_to_end(&mut body)?;
        if kind.is_pax_local_extensions() {
            return self.records(&body).map(|()| true);
        }
        while body.last() == Some(&0) {
            body.pop();
        }
        *if kind.is_gnu_longname() { &mut self.path } else { &mut self.target } = Some(body);
        Ok(true)
    }

    /// `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.
    fn records(&mut self, mut body: &[u8]) -> io::Result<()> {
        while !body.is_empty() {
            let wrong = || io::Error::new(io::ErrorKind::InvalidData, "a PAX record of the wrong length");
            let space = body.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length: usize =
                std::str::from_utf8(&body[..space]).ok().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
            let record = body.get(space + 1..length.wrapping_sub(1)).ok_or_else(wrong)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            let (key, value) = (&record[..equals], record[equals + 1..].to_vec());
            match std::str::from_utf8(key).unwrap_or_default() {
                "path" => self.path = Some(value),
                "linkpath" => self.target = Some(value),
                key => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.xattrs.insert(name.to_owned(), value);
                    }
                }
            }
            body = body.get(length..).ok_or_else(wrong)?;
        }
        Ok(())
    }
}

/// One entry. What a ustar header cannot hold (long names, attributes) goes before it as PAX records.
fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    node: &Node,
    kind: tar::EntryType,
    target: Option<&str>,
    content: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    let stored = if kind.is_dir() { format!("{path}/") } else { path.to_owned() };
    if header.set_path(&stored).is_err() {
        records.push(("path".into(), stored.clone().into_bytes()));
        header.set_path("long-name")?; // what a reader without PAX would see
    }
    if let Some(target) = target
        && header.set_link_name_literal(target).is_err()
    {
        records.push(("linkpath".into(), target.as_bytes().to_vec()));
    }
    records.extend(node.xattrs.iter().map(|(name, value)| (format!("{XATTR}{name}"), value.clone())));
    header.set_entry_type(kind);
    header.set_mode(node.mode);
    header.set_uid(node.uid);
    header.set_gid(node.gid);
    header.set_mtime(EPOCH);
    header.set_size(content.len() as u64);
    header.set_cksum();
    if !records.is_empty() {
        append_records(archive, &records)?;
    }
    archive.append(&header, content)
}

/// A PAX header entry with fixed metadata of its own.
fn append_records<W: Write>(archive: &mut tar::Builder<W>, records: &[(String, Vec<u8>)]) -> io::Result<()> {
    let mut body = Vec::new();
    for (key, value) in records {
        // `LENGTH KEY=VALUE\n`, where LENGTH counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        body.extend_from_slice(format!("{length} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    let mut header = tar::Header::new_ustar();
    header.set_path("pax-records")?;
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(EPOCH);
    header.set_size(body.len() as u64);
    header.set_cksum();
    archive.append(&header, body.as_slice())
}

/// The files of a package.
pub(crate) fn extend_from_package(
    tree: &mut Tree,
    package: &std::path::Path,
    drop: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut command = std::process::Command::new("dpkg-deb");
    command.arg("--fsys-tarfile").arg(package);
    let archive = crate::process::stdout(&mut command)?;
    tree.extend(archive.as_slice(), drop).map_err(Error::file("read the files of", package))
}

/// Whether `path` is, or lies below, what `pattern` names. `*` stands for any text within one segment.
pub(crate) fn under(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    pattern.split('/').all(|want| segments.next().is_some_and(|have| matches(want, have)))
}

/// Whether a text is what a pattern with `*` describes.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len()).filter(|at| tail.is_char_boundary(*at)).any(|at| matches(rest, &tail[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, mode: u32) -> Node {
        Node::new(Kind::File(text.as_bytes().into()), mode)
    }

    fn bytes(tree: &Tree) -> Vec<u8> {
        let mut out = Vec::new();
        tree.write(&mut out).unwrap();
        out
    }

    fn read(archive: &[u8]) -> Tree {
        let mut tree = Tree::default();
        tree.extend(archive, |_| false).unwrap();
        tree
    }

    #[test]
    fn the_order_of_insertion_does_not_show() {
        let items = [("usr/bin/b", "two", 0o755), ("etc/a", "one", 0o644), ("usr/bin/a", "three", 0o4755)];
        let mut one = Tree::skeleton();
        let mut two = Tree::skeleton();
        for (path, text, mode) in items {
            one.put(path, file(text, mode));
        }
        for (path, text, mode) in items.into_iter().rev() {
            two.put(path, file(text, mode));
        }
        assert_eq!(bytes(&one), bytes(&two));
        assert_eq!(read(&bytes(&one)), one);
    }

    #[test]
    fn capabilities_long_names_owners_and_hard_links_survive() {
        let mut tree = Tree::default();
        let mut ping = file("ELF", 0o755);
        ping.xattrs.insert("security.capability".into(), vec![1, 0, 0, 2, 0, 32, 0, 0, b'\n', b'=', 0, 0]);
        tree.put("usr/bin/ping", ping);
        let long = format!("usr/lib/{}/{}", "d".repeat(120), "f".repeat(180));
        let mut owned = file("long", 0o640);
        (owned.uid, owned.gid) = (101, 102);
        tree.put(&long, owned);
        tree.put("usr/lib/far", Node::new(Kind::Symlink("x/".repeat(90)), 0o777));
        let shared: Arc<[u8]> = b"same".as_slice().into();
        tree.put("a", Node::new(Kind::File(Arc::clone(&shared)), 0o644));
        tree.put("b", Node::new(Kind::File(shared), 0o644));
        let back = read(&bytes(&tree));
        assert_eq!(back, tree);
        assert_eq!(back.file("a").unwrap().as_ptr(), back.file("b").unwrap().as_ptr(), "still one file");
        assert_eq!(bytes(&back), bytes(&tree));
    }

    #[test]
    fn old_places_are_merged_into_usr() {
        for (given, stored) in [
            ("./bin/sh", "usr/bin/sh"),
            ("lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
            ("/lib64/ld.so", "usr/lib64/ld.so"),
            ("./usr/bin/env", "usr/bin/env"),
            ("./bin/", "bin"),
            ("library/x", "library/x"),
            ("./", ""),
        ] {
            assert_eq!(merged(given), stored, "{given}");
        }
    }

    #[test]
    fn dropped_files_are_not_there() {
        let mut tree = Tree::default();
        tree.put("usr/share/doc/x/copyright", file("c", 0o644));
        tree.put("usr/bin/x", file("x", 0o755));
        let mut kept = Tree::default();
        kept.extend(bytes(&tree).as_slice(), |path| under("usr/share/doc", path)).unwrap();
        assert_eq!(kept.iter().map(|(path, _)| path).collect::<Vec<_>>(), ["usr", "usr/bin", "usr/bin/x", "usr/share"]);
    }

    #[test]
    fn a_pattern_names_a_place_and_what_is_below() {
        for (pattern, path, is) in [
            ("usr/share/doc", "usr/share/doc", true),
            ("usr/share/doc", "usr/share/doc/a/b", true),
            ("usr/share/doc", "usr/share/docs", false),
            ("usr/lib/postgresql/*/lib/llvmjit*", "usr/lib/postgresql/15/lib/llvmjit.so", true),
            ("usr/lib/postgresql/*/lib/llvmjit*", "usr/lib/postgresql/15/lib/plpgsql.so", false),
            ("usr/lib/*/gconv", "usr/lib/x86_64-linux-gnu/gconv/UTF-7.so", true),
            ("usr/lib/*/gconv", "usr/lib", false),
        ] {
            assert_eq!(under(pattern, path), is, "{pattern} {path}");
        }
    }

    #[test]
    fn an_old_directory_does_not_hide_its_link() {
        let mut old = Vec::new();
        let mut archive = tar::Builder::new(&mut old);
        append(&mut archive, "bin", &Node::new(Kind::Directory, 0o755), tar::EntryType::Directory, None, &[]).unwrap();
        append(&mut archive, "bin/x", &file("x", 0o755), tar::EntryType::Regular, None, b"x").unwrap();
        archive.finish().unwrap();
        drop(archive);
        let mut tree = Tree::skeleton();
        tree.extend(old.as_slice(), |_| false).unwrap();
        let bin = tree.iter().find(|(path, _)| *path == "bin").unwrap().1;
        assert_eq!(bin.kind, Kind::Symlink("usr/bin".into()));
        assert!(tree.file("usr/bin/x").is_some());
    }

    #[test]
    fn a_broken_archive_is_an_error() {
        let mut archive = bytes(&Tree::skeleton());
        archive.truncate(1000);
        archive[200] ^= 0xff;
        assert!(Tree::default().extend(archive.as_slice(), |_| false).is_err());
    }
}
