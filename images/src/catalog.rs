//! What an unpacked layer holds, so that it can be checked later: `layers/<diff-id>/files`, a line for each thing.
//!
//! ```text
//! f  MODE UID GID SIZE BLAKE3 PATH     a regular file
//! h  TARGET PATH                       another name of TARGET
//! d  MODE UID GID PATH                 a directory; again when its attributes change
//! l  UID GID TARGET PATH               a symbolic link
//! n  c|b|p MODE UID GID MAJOR MINOR PATH
//! w  PATH                              a deletion
//! x  NAME VALUE PATH                   an extended attribute of PATH
//! -  PATH                              gone, with all below it: a later member of the archive has its place
//! ```
//! Fields end with a tab, paths are escaped. Written while the archive is unpacked, in its order, so that no memory is
//! needed however large the layer; a later line about a path counts more than an earlier one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use crate::error::{ImageError, Result, at};
use crate::unpack::{escape, escape_to, unescape_bytes};

/// Name of the list beside the tree.
pub(crate) const NAME: &str = "files";

/// A path of 4095 bytes is at most three times as long escaped, and a line has two; an attribute is at most 64 KiB.
const LINE_MAX: u64 = 256 << 10;

/// Owner and mode, as `chmod(2)` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    File {
        owned: Owned,
        size: u64,
        hash: blake3::Hash,
    },
    Directory(Owned),
    Symlink {
        uid: u32,
        gid: u32,
        target: Vec<u8>,
    },
    /// `kind` is `c`, `b` or `p`.
    Node {
        kind: char,
        owned: Owned,
        device: (u32, u32),
    },
    Whiteout,
}

/// Everything about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) item: Item,
    /// Names with the same number are one file.
    pub(crate) file: u64,
    pub(crate) attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Writes the list.
#[derive(Debug)]
pub(crate) struct Recorder {
    out: BufWriter<File>,
    line: String,
}

impl Recorder {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { out: BufWriter::with_capacity(64 << 10, File::create(path)?), line: String::new() })
    }

    pub(crate) fn item(&mut self, path: &[u8], item: &Item) -> io::Result<()> {
        self.line.clear();
        let line = &mut self.line;
        // Writing to a string does not fail.
        let _ = match item {
            Item::File { owned, size, hash } => {
                write!(line, "f\t{:o}\t{}\t{}\t{size}\t{}\t", owned.mode, owned.uid, owned.gid, hash.to_hex())
            }
            Item::Directory(owned) => write!(line, "d\t{:o}\t{}\t{}\t", owned.mode, owned.uid, owned.gid),
            Item::Symlink { uid, gid, target } => write!(line, "l\t{uid}\t{gid}\t{}\t", escape(target)),
            Item::Node { kind, owned, device } => {
                write!(line, "n\t{kind}\t{:o}\t{}\t{}\t{}\t{}\t", owned.mode, owned.uid, owned.gid, device.0, device.1)
            }
            Item::Whiteout => write!(line, "w\t"),
        };
        self.end(path)
    }

    pub(crate) fn hardlink(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        self.line = format!("h\t{}\t", escape(target));
        self.end(path)
    }

    pub(crate) fn attribute(&mut self, path: &[u8], name: &[u8], value: &[u8]) -> io::Result<()> {
        self.line = format!("x\t{}\t{}\t", escape(name), escape(value));
        self.end(path)
    }

    pub(crate) fn gone(&mut self, path: &[u8]) -> io::Result<()> {
        self.line = "-\t".to_owned();
        self.end(path)
    }

    fn end(&mut self, path: &[u8]) -> io::Result<()> {
        escape_to(&mut self.line, path);
        self.line.push('\n');
        self.out.write_all(self.line.as_bytes())
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A layer as it should be, by path; parents come before what is in them.
pub(crate) type Catalog = BTreeMap<Vec<u8>, Entry>;

/// Read a list; `None` if there is none.
///
/// # Errors
/// It is malformed, or cannot be read.
pub(crate) fn read(path: &Path) -> Result<Option<Catalog>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::io("open", path, error)),
    };
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let mut builder = Builder::default();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let count = io::Read::take(&mut reader, LINE_MAX).read_until(b'\n', &mut line).map_err(at("read", path))?;
        if count == 0 {
            break;
        }
        let text = line.strip_suffix(b"\n").and_then(|text| std::str::from_utf8(text).ok());
        text.and_then(|text| builder.line(text)).ok_or_else(|| ImageError::BadImage {
            what: path.display().to_string(),
            why: format!("line {number} is malformed"),
        })?;
    }
    Ok(Some(builder.catalog))
}

struct Builder {
    catalog: Catalog,
    files: u64,
}

impl Default for Builder {
    fn default() -> Self {
        let root = Item::Directory(Owned { mode: 0o755, uid: 0, gid: 0 });
        let root = Entry { item: root, file: 0, attributes: Vec::new() };
        Self { catalog: BTreeMap::from([(Vec::new(), root)]), files: 0 }
    }
}

impl Builder {
    /// `None` if the line is malformed.
    fn line(&mut self, line: &str) -> Option<()> {
        let (head, path) = line.rsplit_once('\t')?;
        let path = unescape_bytes(path);
        let mut fields = head.split('\t');
        match fields.next()? {
            "-" => self.remove(&path),
            "h" => {
                let target = unescape_bytes(fields.next()?);
                let entry = self.catalog.get(&target)?.clone();
                self.catalog.insert(path, entry);
            }
            "x" => {
                let (name, value) = (unescape_bytes(fields.next()?), unescape_bytes(fields.next()?));
                let attributes = &mut self.catalog.get_mut(&path)?.attributes;
                attributes.retain(|(other, _)| *other != name);
                attributes.push((name, value));
            }
            kind => {
                let item = item(kind, &mut fields)?;
                self.files += 1;
                // The attributes of a directory that is declared again stay unless they are set again.
                let attributes = match (&item, self.catalog.remove(&path)) {
                    (Item::Directory(_), Some(old)) if matches!(old.item, Item::Directory(_)) => old.attributes,
                    _ => Vec::new(),
                };
                self.catalog.insert(path, Entry { item, file: self.files, attributes });
            }
        }
        fields.next().is_none().then_some(())
    }

    fn remove(&mut self, path: &[u8]) {
        self.catalog.remove(path);
        let below = [path, b"/"].concat();
        let inside = |other: &Vec<u8>| other.starts_with(&below);
        let gone: Vec<Vec<u8>> =
            self.catalog.range(below.clone()..).map(|(other, _)| other).take_while(|o| inside(o)).cloned().collect();
        for path in gone {
            self.catalog.remove(&path);
        }
    }
}

fn item<'a>(kind: &str, fields: &mut impl Iterator<Item = &'a str>) -> Option<Item> {
    let mut next = || fields.next();
    let octal = |text: &str| u32::from_str_radix(text, 8).ok();
    Some(match kind {
        "f" => Item::File {
            owned: Owned { mode: octal(next()?)?, uid: next()?.parse().ok()?, gid: next()?.parse().ok()? },
            size: next()?.parse().ok()?,
            hash: blake3::Hash::from_hex(next()?).ok()?,
        },
        "d" => Item::Directory(Owned { mode: octal(next()?)?, uid: next()?.parse().ok()?, gid: next()?.parse().ok()? }),
        "l" => {
            Item::Symlink { uid: next()?.parse().ok()?, gid: next()?.parse().ok()?, target: unescape_bytes(next()?) }
        }
        "n" => Item::Node {
            kind: next()?.chars().next().filter(|kind| "cbp".contains(*kind))?,
            owned: Owned { mode: octal(next()?)?, uid: next()?.parse().ok()?, gid: next()?.parse().ok()? },
            device: (next()?.parse().ok()?, next()?.parse().ok()?),
        },
        "w" => Item::Whiteout,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(content: &[u8]) -> Item {
        let owned = Owned { mode: 0o644, uid: 1, gid: 2 };
        Item::File { owned, size: content.len() as u64, hash: blake3::hash(content) }
    }

    #[test]
    fn what_was_recorded_is_read_back_and_later_lines_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let directory = |mode| Item::Directory(Owned { mode, uid: 0, gid: 0 });
        let mut out = Recorder::create(&path).unwrap();
        out.item(b"a", &directory(0o755)).unwrap();
        out.attribute(b"a", b"user.x", b"1").unwrap();
        out.item(b"a/one", &file(b"1")).unwrap();
        out.hardlink(b"a/two", b"a/one").unwrap();
        out.item(b"a", &directory(0o700)).unwrap();
        out.item(b"ab", &Item::Whiteout).unwrap();
        out.item(b"b", &directory(0o755)).unwrap();
        out.item(b"b/c", &file(b"2")).unwrap();
        out.gone(b"b").unwrap();
        out.item(b"b", &Item::Symlink { uid: 0, gid: 0, target: b"x\ty z".to_vec() }).unwrap();
        out.item(b"n\n", &Item::Node { kind: 'b', owned: Owned { mode: 0o600, uid: 0, gid: 6 }, device: (8, 1) })
            .unwrap();
        // The other name keeps the old file.
        out.gone(b"a/one").unwrap();
        out.item(b"a/one", &file(b"new")).unwrap();
        out.finish().unwrap();
        let catalog = read(&path).unwrap().unwrap();
        let items: Vec<(&[u8], &Item)> = catalog.iter().map(|(path, entry)| (path.as_slice(), &entry.item)).collect();
        let expected = [
            (&b""[..], &directory(0o755)),
            (b"a", &directory(0o700)),
            (b"a/one", &file(b"new")),
            (b"a/two", &file(b"1")),
            (b"ab", &Item::Whiteout),
            (b"b", &Item::Symlink { uid: 0, gid: 0, target: b"x\ty z".to_vec() }),
            (b"n\n", &Item::Node { kind: 'b', owned: Owned { mode: 0o600, uid: 0, gid: 6 }, device: (8, 1) }),
        ];
        assert_eq!(items, expected);
        assert_eq!(catalog[&b"a"[..]].attributes, [(b"user.x".to_vec(), b"1".to_vec())]);
        assert_ne!(catalog[&b"a/one"[..]].file, catalog[&b"a/two"[..]].file);
        assert!(read(&dir.path().join("absent")).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn no_list_makes_the_reader_panic(text in "([fhdlnwx-]\t([0-9a-f%/]{0,3}\t){0,6}[a-c%/]{0,4}\n){0,6}") {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(NAME);
            std::fs::write(&path, text).unwrap();
            let _ = read(&path);
        }
    }
}
