//! Reads tar archives member by member, with every length bounded. Writes nothing: see `unpack`.
//!
//! A reader of our own because layers come from strangers: long names and extended headers are limited, binary
//! extended attributes are read by their length, and members without data have none whatever their size field says
//! (as Go's reader has it, with which the images of the world are made).
//!
//! # Source
//! POSIX.1-2017 `pax`, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format" and
//! "Storing Sparse Files".

use std::io::{self, BufRead};

const BLOCK: usize = 512;

/// Largest long name or extended header: 64 KiB of attributes is the most that the kernel takes per attribute.
const EXTENSION_MAX: u64 = 1 << 20;

/// Most pieces of a sparse file; GNU tar makes one for each run of data.
const SPARSE_MAX: usize = 100_000;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Hardlink,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
}

/// One member of an archive; its data is read from the reader.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
    /// Bytes of the file once unpacked.
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset and length of the pieces that hold data, if the file has holes.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
}

/// A tar archive being read.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Data of the current member that has not been read.
    left: u64,
    /// Fill to the next block after it.
    padding: u64,
    global: Extended,
}

/// What an extended header says; later ones win over earlier ones and over the plain header.
#[derive(Debug, Clone, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_map: Option<Vec<u8>>,
    sparse_version: (u32, u32),
    sparse: bool,
}

fn malformed(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, global: Extended::default() }
    }

    /// The reader below, for what follows the end of the archive.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next member; `None` at the end mark or the end of the data.
    ///
    /// # Errors
    /// `InvalidData` if the archive is malformed, `UnexpectedEof` if it is cut off, else those of the reader.
    pub(crate) fn next_member(&mut self) -> io::Result<Option<Member>> {
        let mut extended = self.global.clone();
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = number(&header[124..136])?;
            match header[156] {
                b'x' | b'X' => extended.apply(&self.extension(size)?)?,
                b'g' => {
                    let body = self.extension(size)?;
                    self.global.apply_global(&body)?;
                    extended.apply_global(&body)?;
                }
                b'L' => extended.path = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => extended.link = Some(until_nul(&self.extension(size)?).to_vec()),
                b'V' => self.start_data(size),
                _ => return self.member(&header, size, extended).map(Some),
            }
        }
    }

    fn member(&mut self, header: &[u8; BLOCK], size: u64, extended: Extended) -> io::Result<Member> {
        let path = extended.path.clone().unwrap_or_else(|| plain_path(header));
        let kind = kind(header[156], &path)?;
        let has_data = kind == Kind::File;
        let stored = if has_data { extended.size.unwrap_or(size) } else { 0 };
        self.start_data(stored);
        let mut member = Member {
            path,
            link: extended.link.clone().unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
            kind,
            mode: u32::try_from(number(&header[100..108])?).unwrap_or(0) & 0o7777,
            uid: extended.uid.map_or_else(|| id(&header[108..116]), Ok)?,
            gid: extended.gid.map_or_else(|| id(&header[116..124]), Ok)?,
            mtime_s: extended
                .mtime
                .map_or_else(|| i64::try_from(number(&header[136..148]).unwrap_or(0)).unwrap_or(0), |m| m.0),
            mtime_ns: extended.mtime.map_or(0, |m| m.1),
            size: stored,
            device: (0, 0),
            xattrs: extended.xattrs.clone(),
            sparse: None,
        };
        if matches!(kind, Kind::Char | Kind::Block) {
            member.device = (id(&header[329..337])?, id(&header[337..345])?);
        }
        if header[156] == b'S' {
            self.old_sparse(header, &mut member)?;
        } else if extended.sparse && has_data {
            self.pax_sparse(&extended, &mut member)?;
        }
        Ok(member)
    }

    /// Data of the current member as it lies in the reader, at most `want` bytes; nothing at its end. To be followed by
    /// `consume_data`.
    pub(crate) fn data(&mut self, want: u64) -> io::Result<&[u8]> {
        let want = usize::try_from(self.left.min(want)).unwrap_or(usize::MAX);
        if want == 0 {
            return Ok(&[]);
        }
        match self.inner.fill_buf()? {
            [] => Err(cut_off()),
            ready => Ok(&ready[..want.min(ready.len())]),
        }
    }

    /// So many bytes of what `data` gave have been used.
    pub(crate) fn consume_data(&mut self, count: usize) {
        self.inner.consume(count);
        self.left -= count as u64;
    }

    /// Read the data of the current member; 0 at its end.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(cut_off());
        }
        self.left -= count as u64;
        Ok(count)
    }

    fn start_data(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn skip_data(&mut self) -> io::Result<()> {
        let mut rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        while rest > 0 {
            let ready = self.inner.fill_buf()?.len();
            if ready == 0 {
                return Err(cut_off());
            }
            let count = usize::try_from(rest).unwrap_or(usize::MAX).min(ready);
            self.inner.consume(count);
            rest -= count as u64;
        }
        Ok(())
    }

    /// A header with a valid checksum; `None` for a block of zeros or the end of the data.
    fn header(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(cut_off()),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 =
            block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { u64::from(*b) }).sum();
        if number(&block[148..156]).ok() != Some(sum) {
            return Err(malformed("it is not a tar archive, or a header is damaged (wrong checksum)"));
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_MAX {
            return Err(malformed(format!("an extended header of {size} bytes is more than {EXTENSION_MAX}")));
        }
        self.start_data(size);
        let mut body = vec![0; usize::try_from(size).unwrap_or(0)];
        self.inner.read_exact(&mut body).map_err(|_| cut_off())?;
        self.left = 0;
        Ok(body)
    }

    /// The old GNU form: pieces in the header and in blocks after it.
    fn old_sparse(&mut self, header: &[u8; BLOCK], member: &mut Member) -> io::Result<()> {
        let mut map = Vec::new();
        let mut more = header[482] != 0;
        pieces(&header[386..482], &mut map)?;
        while more {
            let mut block = [0; BLOCK];
            self.inner.read_exact(&mut block).map_err(|_| cut_off())?;
            pieces(&block[..504], &mut map)?;
            more = block[504] != 0;
        }
        member.size = number(&header[483..495])?;
        member.sparse = Some(check_map(map, self.left, member.size)?);
        Ok(())
    }

    /// The pax forms: 0.1 has the pieces in the extended header, 1.0 in front of the data.
    fn pax_sparse(&mut self, extended: &Extended, member: &mut Member) -> io::Result<()> {
        let map = match (extended.sparse_version, &extended.sparse_map) {
            ((1, 0), _) => self.sparse_1_0()?,
            (_, Some(text)) => {
                let numbers = text.split(|b| *b == b',').map(decimal).collect::<io::Result<Vec<_>>>()?;
                numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
            }
            _ => return Err(malformed("this form of a sparse file is not known")),
        };
        member.size = extended.sparse_size.ok_or_else(|| malformed("a sparse file without its size"))?;
        if let Some(name) = &extended.sparse_name {
            member.path.clone_from(name);
        }
        member.sparse = Some(check_map(map, self.left, member.size)?);
        Ok(())
    }

    /// Decimal numbers on lines of their own: the count, then offset and length of each piece; filled up to a block.
    fn sparse_1_0(&mut self) -> io::Result<Vec<(u64, u64)>> {
        let (mut numbers, mut line, mut wanted) = (Vec::new(), Vec::new(), 1);
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            let mut filled = 0;
            while filled < BLOCK {
                match self.read_data(&mut block[filled..])? {
                    0 => return Err(malformed("the map of a sparse file is cut off")),
                    count => filled += count,
                }
            }
            for byte in block {
                match byte {
                    _ if numbers.len() == wanted => break,
                    b'\n' => numbers.push(decimal(&std::mem::take(&mut line))?),
                    byte => line.push(byte),
                }
                if numbers.len() == 1 && wanted == 1 {
                    let count = usize::try_from(numbers[0]).ok().filter(|n| *n <= SPARSE_MAX);
                    wanted = 1 + 2 * count.ok_or_else(|| malformed("a sparse file has too many pieces"))?;
                }
            }
        }
        Ok(numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off")
}

fn kind(flag: u8, path: &[u8]) -> io::Result<Kind> {
    match flag {
        0 if path.ends_with(b"/") => Ok(Kind::Directory),
        b'0' | 0 | b'7' | b'S' => Ok(Kind::File),
        b'1' => Ok(Kind::Hardlink),
        b'2' => Ok(Kind::Symlink),
        b'3' => Ok(Kind::Char),
        b'4' => Ok(Kind::Block),
        b'5' => Ok(Kind::Directory),
        b'6' => Ok(Kind::Fifo),
        other => Err(malformed(format!("`{}` has the unknown type `{}`", lossy(path), other.escape_ascii()))),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Name and prefix of the plain header; GNU's header has other things where the prefix would be.
fn plain_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = if &header[257..263] == b"ustar\0" { until_nul(&header[345..500]) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal digits, or in binary if the first bit is set.
fn number(field: &[u8]) -> io::Result<u64> {
    if field[0] & 0x80 != 0 {
        if field[0] & 0x40 != 0 {
            return Err(malformed("a negative number"));
        }
        let start = u64::from(field[0] & 0x3f);
        return field[1..].iter().try_fold(start, |sum, byte| {
            sum.checked_mul(256)
                .and_then(|s| s.checked_add(u64::from(*byte)))
                .ok_or_else(|| malformed("a number is too large"))
        });
    }
    let digits = until_nul(field).trim_ascii();
    digits
        .iter()
        .try_fold(0u64, |sum, digit| match digit {
            b'0'..=b'7' => sum.checked_mul(8).and_then(|s| s.checked_add(u64::from(digit - b'0'))),
            _ => None,
        })
        .ok_or_else(|| malformed(format!("`{}` is not a number", lossy(digits))))
}

fn id(field: &[u8]) -> io::Result<u32> {
    u32::try_from(number(field)?).map_err(|_| malformed("a user, group or device number is too large"))
}

fn decimal(text: &[u8]) -> io::Result<u64> {
    let parsed = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
    parsed.ok_or_else(|| malformed(format!("`{}` is not a number", lossy(text))))
}

fn pieces(fields: &[u8], map: &mut Vec<(u64, u64)>) -> io::Result<()> {
    for piece in fields.chunks_exact(24).filter(|piece| piece[0] != 0) {
        map.push((number(&piece[..12])?, number(&piece[12..])?));
    }
    if map.len() > SPARSE_MAX { Err(malformed("a sparse file has too many pieces")) } else { Ok(()) }
}

/// Pieces must be in order, within the file, and be all of the data that is stored.
fn check_map(map: Vec<(u64, u64)>, stored: u64, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, length) in &map {
        let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
        end = next.ok_or_else(|| malformed("the pieces of a sparse file overlap or reach beyond its end"))?;
        sum += length;
    }
    if sum == stored { Ok(map) } else { Err(malformed("a sparse file does not have the data its map says")) }
}

impl Extended {
    /// Records are `LENGTH KEY=VALUE\n`, where the length counts all of it.
    fn apply(&mut self, mut body: &[u8]) -> io::Result<()> {
        let broken = || malformed("an extended header is malformed");
        while !body.is_empty() && body[0] != 0 {
            let space = body.iter().take(20).position(|b| *b == b' ').ok_or_else(broken)?;
            let length = usize::try_from(decimal(&body[..space])?).map_err(|_| broken())?;
            if length <= space + 1 || length > body.len() || body[length - 1] != b'\n' {
                return Err(broken());
            }
            let record = &body[space + 1..length - 1];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(broken)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            body = &body[length..];
        }
        Ok(())
    }

    /// Of what is said once for all members only owner and time make sense.
    fn apply_global(&mut self, body: &[u8]) -> io::Result<()> {
        let mut all = Self::default();
        all.apply(body)?;
        self.uid = all.uid.or(self.uid);
        self.gid = all.gid.or(self.gid);
        self.mtime = all.mtime.or(self.mtime);
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let id = |value: &[u8]| {
            decimal(value).and_then(|n| u32::try_from(n).map_err(|_| malformed("a user or group number is too large")))
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(id(value)?),
            b"gid" => self.gid = Some(id(value)?),
            b"mtime" => self.mtime = Some(seconds(value)?),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                (self.sparse, self.sparse_size) = (true, Some(decimal(value)?))
            }
            b"GNU.sparse.map" => (self.sparse, self.sparse_map) = (true, Some(value.to_vec())),
            b"GNU.sparse.major" => (self.sparse, self.sparse_version.0) = (true, id(value)?),
            b"GNU.sparse.minor" => (self.sparse, self.sparse_version.1) = (true, id(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(old, _)| old != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Seconds with a fraction, before 1970 too: `-1.25` is 2 whole seconds before and 0.75 after.
fn seconds(value: &[u8]) -> io::Result<(i64, u32)> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let parsed: i64 = whole.parse().map_err(|_| malformed(format!("`{text}` is not a time")))?;
    let digits: String = fraction.chars().filter(char::is_ascii_digit).chain("000000000".chars()).take(9).collect();
    let ns: u32 = digits.parse().unwrap_or(0);
    if whole.starts_with('-') && ns > 0 { Ok((parsed.saturating_sub(1), 1_000_000_000 - ns)) } else { Ok((parsed, ns)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(bytes: &[u8]) -> io::Result<Vec<(Member, Vec<u8>)>> {
        let mut reader = TarReader::new(bytes);
        let mut all = Vec::new();
        while let Some(member) = reader.next_member()? {
            let (mut data, mut buffer) = (Vec::new(), [0; 700]);
            loop {
                match reader.read_data(&mut buffer)? {
                    0 => break,
                    count => data.extend_from_slice(&buffer[..count]),
                }
            }
            all.push((member, data));
        }
        Ok(all)
    }

    fn header(path: &str, kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    #[test]
    fn long_names_numbers_and_attributes_are_read() {
        let long = format!("{}/file", "directory-with-a-long-name".repeat(9));
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_data(&mut header("x", tar::EntryType::Regular, 5), &long, &b"hello"[..]).unwrap();
        builder
            .append_pax_extensions([
                ("SCHILY.xattr.user.a", &b"1\n2=3\0"[..]),
                ("mtime", b"-1.25"),
                ("uid", b"4000000000"),
            ])
            .unwrap();
        builder.append(&header("y", tar::EntryType::Regular, 0), &b""[..]).unwrap();
        builder.append_link(&mut header("z", tar::EntryType::Symlink, 0), "z", &long).unwrap();
        let all = members(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].0.path.as_slice(), all[0].1.as_slice()), (long.as_bytes(), &b"hello"[..]));
        assert_eq!(all[1].0.xattrs, [(b"user.a".to_vec(), b"1\n2=3\0".to_vec())]);
        assert_eq!((all[1].0.mtime_s, all[1].0.mtime_ns, all[1].0.uid), (-2, 750_000_000, 4_000_000_000));
        assert_eq!((all[2].0.kind, all[2].0.link.as_slice()), (Kind::Symlink, long.as_bytes()));
    }

    #[test]
    fn an_extended_size_wins_and_the_next_member_is_found() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("size", &b"600"[..])]).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(1024);
        bytes.extend_from_slice(header("a", tar::EntryType::Regular, 0).as_bytes());
        bytes.extend_from_slice(&[7; 600]);
        bytes.extend_from_slice(&[0; 424]);
        bytes.extend_from_slice(header("b", tar::EntryType::Directory, 0).as_bytes());
        let all = members(&bytes).unwrap();
        assert_eq!(all[0].1, [7; 600]);
        assert_eq!(all[1].0.path, b"b");
    }

    #[test]
    fn sparse_files_of_gnu_tar_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let script = "truncate -s 3M a; printf hello | dd of=a bs=1 seek=1000000 conv=notrunc status=none;
            printf end | dd of=a bs=1 seek=3145725 conv=notrunc status=none";
        assert!(std::process::Command::new("sh").arg("-c").arg(script).current_dir(&dir).status().unwrap().success());
        for format in [&["--format=gnu"][..], &["--format=posix"], &["--format=posix", "--sparse-version=0.1"]] {
            let out = std::process::Command::new("tar")
                .args(["-cS", "-f", "-"])
                .args(format)
                .arg("a")
                .current_dir(&dir)
                .output()
                .unwrap();
            assert!(out.status.success());
            let (member, data) = members(&out.stdout).unwrap().remove(0);
            assert_eq!((member.path.as_slice(), member.size), (&b"a"[..], 3 << 20), "{format:?}");
            let map = member.sparse.unwrap_or_else(|| panic!("{format:?}: no map"));
            assert_eq!(map.iter().map(|piece| piece.1).sum::<u64>(), data.len() as u64, "{format:?}");
            assert!(data.windows(5).any(|w| w == b"hello"), "{format:?}");
        }
    }

    #[test]
    fn a_damaged_archive_is_refused() {
        let good = header("a", tar::EntryType::Regular, 3).as_bytes().to_vec();
        let mut wrong = good.clone();
        wrong[0] = b'b';
        let mut huge = header("a", tar::EntryType::GNULongName, 1 << 40);
        huge.set_cksum();
        for (bytes, why) in [
            (&b"<html>not an archive, but long enough"[..].repeat(20), "not a tar"),
            (&wrong, "checksum"),
            (&good, "cut off"),
            (&good[..100].to_vec(), "cut off"),
            (&huge.as_bytes().to_vec(), "extended header"),
        ] {
            let error = members(bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
        assert!(members(b"").unwrap().is_empty());
        assert!(members(&[0; 1024]).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..3000), flag in any::<u8>()) {
            if bytes.len() >= BLOCK {
                bytes[156] = flag;
                bytes[148..156].copy_from_slice(b"        ");
                let sum: u32 = bytes[..BLOCK].iter().map(|b| u32::from(*b)).sum();
                bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            let _ = members(&bytes);
            let _ = Extended::default().apply(&bytes);
        }
    }
}
