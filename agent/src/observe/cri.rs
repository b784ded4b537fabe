//! Logs in CRI format: `TIME stdout|stderr F|P TEXT`, one file that is rotated to `.1`, `.2` … by its writer.
//!
//! A reader goes from the oldest file to the newest, knows a file by its inode and not by its name, and so follows
//! rotation without losing or repeating a line.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A joined line is cut here: a program that never ends its line must not fill our memory.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Lines of one [`Reader::read`] after which it returns, so that its caller can pass them on.
const BATCH_LINES: usize = 512;
/// Rotated files that are looked for.
const SEGMENTS_MAX: usize = 100;
/// Of the end of a file that [`tail`] looks at.
const TAIL_BYTES: u64 = 128 << 10;

/// One whole line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// RFC 3339, of its first part.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: &'static str,
    /// Without its end.
    pub text: String,
}

/// One line of the file: a whole line of output or a part of one.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    time: &'a str,
    stream: &'static str,
    partial: bool,
    text: &'a [u8],
}

fn entry(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |c| *c == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => "stdout",
        b"stderr" => "stderr",
        _ => return None,
    };
    let partial = match parts.next()?.first()? {
        b'P' => true,
        b'F' => false,
        _ => return None,
    };
    Some(Entry { time, stream, partial, text: parts.next().unwrap_or_default() })
}

/// Joins parts to lines; both streams can be in the middle of one.
#[derive(Debug, Default)]
struct Joiner {
    begun: [Option<(String, Vec<u8>)>; 2],
}

impl Joiner {
    fn take(&mut self, raw: &[u8]) -> Option<Line> {
        let entry = entry(raw)?;
        let begun = &mut self.begun[usize::from(entry.stream == "stderr")];
        let (_, text) = begun.get_or_insert_with(|| (entry.time.to_owned(), Vec::new()));
        text.extend(entry.text);
        if entry.partial && text.len() < LINE_BYTES_MAX {
            return None;
        }
        let (time, text) = begun.take()?;
        Some(Line { time, stream: entry.stream, text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// What was begun and will not be ended.
    fn rest(&mut self) -> Vec<Line> {
        let streams = ["stdout", "stderr"];
        let line = |(begun, stream): (&mut Option<(String, Vec<u8>)>, _)| {
            let (time, text) = begun.take()?;
            Some(Line { time, stream, text: String::from_utf8_lossy(&text).into_owned() })
        };
        self.begun.iter_mut().zip(streams).filter_map(line).collect()
    }
}

/// What a [`Reader::read`] ended at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// There is more to read.
    More,
    /// The present end of the log.
    End,
    /// The log was removed.
    Gone,
}

/// A place in a log.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: Option<(File, u64)>,
    raw: Vec<u8>,
    joiner: Joiner,
}

impl Reader {
    /// At the beginning of the log whose newest file is `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, raw: Vec::new(), joiner: Joiner::default() }
    }

    /// Appends lines to `out`: all up to the end, or a good number of them.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read(&mut self, out: &mut Vec<Line>) -> io::Result<At> {
        let begin = out.len();
        loop {
            // Whether it was rotated is asked before its end is looked for: only then is that end final.
            let current = self.current()?;
            let Some((file, inode)) = &mut self.file else {
                if !self.advance(None)? {
                    let gone = !self.path.parent().is_some_and(Path::exists);
                    return Ok(if gone { At::Gone } else { At::End });
                }
                continue;
            };
            let inode = *inode;
            let bytes = read_chunk(file, &mut self.raw)?;
            self.split(out);
            if out.len() - begin >= BATCH_LINES {
                return Ok(At::More);
            }
            if bytes > 0 {
                continue;
            }
            if current == Some(inode) {
                return Ok(At::End);
            }
            if !self.advance(Some(inode))? {
                let gone = !self.path.parent().is_some_and(Path::exists);
                return Ok(if gone { At::Gone } else { At::End });
            }
        }
    }

    /// Lines that were begun and are not ended, when no more is wanted.
    pub fn rest(&mut self) -> Vec<Line> {
        self.joiner.rest()
    }

    fn current(&self) -> io::Result<Option<u64>> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(Some(metadata.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Goes to the file after the one of inode `after`, or to the oldest. `false` when there is none yet.
    fn advance(&mut self, after: Option<u64>) -> io::Result<bool> {
        let mut next = None;
        let (mut found_after, newest) = (after.is_none(), self.path.exists());
        for path in segments(&self.path) {
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            let inode = file.metadata()?.ino();
            if Some(inode) == after {
                found_after = true;
                break;
            }
            next = Some((file, inode));
        }
        // Without the newest file it is being rotated, or being removed: what is older than ours was read before. Where
        // the newest is there times are not asked, since clocks are set back.
        if let (false, false, Some((held, _)), Some((oldest, _))) = (found_after, newest, &self.file, &next)
            && oldest.metadata()?.modified()? < held.metadata()?.modified()?
        {
            return Ok(false);
        }
        let found = next.is_some();
        if found {
            self.raw.clear();
            self.file = next;
        }
        Ok(found)
    }

    fn split(&mut self, out: &mut Vec<Line>) {
        let mut begin = 0;
        while let Some(length) = self.raw[begin..].iter().position(|c| *c == b'\n') {
            out.extend(self.joiner.take(&self.raw[begin..begin + length]));
            begin += length + 1;
        }
        self.raw.drain(..begin);
        if self.raw.len() > LINE_BYTES_MAX {
            self.raw.clear(); // no line of a CRI log is that long: this file is something else
        }
    }
}

fn read_chunk(file: &mut File, raw: &mut Vec<u8>) -> io::Result<usize> {
    let begin = raw.len();
    raw.resize(begin + CHUNK_BYTES, 0);
    let result = file.read(&mut raw[begin..]);
    raw.truncate(begin + *result.as_ref().unwrap_or(&0));
    result
}

/// The newest file, then the rotated ones from the newest to the oldest. The first that is absent ends them, but the
/// newest is absent for a moment in the middle of a rotation.
fn segments(path: &Path) -> impl Iterator<Item = PathBuf> {
    let rotated = |n: usize| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    let newest = Some(path.to_owned()).filter(|path| path.exists());
    newest.into_iter().chain((1..SEGMENTS_MAX).map(rotated))
}

/// The last `count` lines, from the last part of the newest two files.
///
/// # Errors
/// A file cannot be read.
pub fn tail(path: &Path, count: usize) -> io::Result<Vec<Line>> {
    let mut parts = Vec::new();
    for path in segments(path).take(2) {
        match end_of(&path) {
            Ok(bytes) => parts.push(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    let mut joiner = Joiner::default();
    let mut lines = VecDeque::new();
    let raw_lines = parts.iter().rev().flat_map(|part| part.split(|c| *c == b'\n'));
    for line in raw_lines.filter_map(|raw| joiner.take(raw)).collect::<Vec<_>>().into_iter().chain(joiner.rest()) {
        lines.push_back(line);
        if lines.len() > count {
            lines.pop_front();
        }
    }
    Ok(lines.into())
}

fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn an_entry_is_four_fields() {
        for (line, want) in [
            ("T stdout F hello world", Some(("stdout", false, "hello world"))),
            ("T stderr P half", Some(("stderr", true, "half"))),
            ("T stdout F ", Some(("stdout", false, ""))),
            ("T stdout F", Some(("stdout", false, ""))),
            ("T stdout F:tag x", Some(("stdout", false, "x"))),
            ("T stdin F x", None),
            ("T stdout X x", None),
            ("", None),
            ("plain text", None),
        ] {
            let got = entry(line.as_bytes());
            let got = got.map(|e| (e.stream, e.partial, std::str::from_utf8(e.text).unwrap()));
            assert_eq!(got, want, "{line}");
        }
    }

    fn append(path: &Path, text: &str) {
        File::options().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn rotate(path: &Path, keep: usize) {
        let name = |n: usize| if n == 0 { path.to_owned() } else { PathBuf::from(format!("{}.{n}", path.display())) };
        for n in (0..keep).rev().filter(|n| name(*n).exists()) {
            fs::rename(name(n), name(n + 1)).unwrap();
        }
    }

    fn texts(reader: &mut Reader) -> (Vec<String>, At) {
        let mut out = Vec::new();
        let mut at = At::More;
        while at == At::More {
            at = reader.read(&mut out).unwrap();
        }
        (out.into_iter().map(|line| line.text).collect(), at)
    }

    #[test]
    fn parts_are_joined_per_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        append(&path, "1 stdout P a\n2 stderr F err\n3 stdout F b\n4 stdout P un");
        let mut reader = Reader::new(&path);
        let mut out = Vec::new();
        assert_eq!(reader.read(&mut out).unwrap(), At::End);
        let line = |time: &str, stream, text: &str| Line { time: time.to_owned(), stream, text: text.to_owned() };
        assert_eq!(out, [line("2", "stderr", "err"), line("1", "stdout", "ab")]);
        append(&path, "ended\n");
        assert_eq!(texts(&mut reader), (vec![], At::End));
        assert_eq!(reader.rest(), [line("4", "stdout", "unended")]);
    }

    #[test]
    fn no_line_is_lost_or_repeated_over_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut reader = Reader::new(&path);
        assert_eq!(texts(&mut reader), (vec![], At::End), "not begun yet");
        let (mut written, mut got) = (Vec::new(), Vec::new());
        for n in 0..300 {
            append(&path, &format!("t stdout F {n}\n"));
            written.push(n.to_string());
            if n % 7 == 3 {
                rotate(&path, 4);
            }
            // Behind by up to three rotations, also in the moment when the newest file is absent.
            if n % 11 == 0 || n % 7 == 3 {
                got.extend(texts(&mut reader).0);
            }
        }
        got.extend(texts(&mut reader).0);
        assert_eq!(got, written);
    }

    #[test]
    fn a_late_reader_begins_with_the_oldest_file_and_ends_with_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("replica");
        fs::create_dir(&logs).unwrap();
        let path = logs.join("log");
        for n in 0..3 {
            append(&path, &format!("t stdout F {n}\n"));
            rotate(&path, 4);
        }
        append(&path, "t stdout F 3\n");
        let mut reader = Reader::new(&path);
        assert_eq!(texts(&mut reader), (["0", "1", "2", "3"].map(String::from).to_vec(), At::End));
        fs::remove_dir_all(&logs).unwrap();
        assert_eq!(texts(&mut reader), (vec![], At::Gone));
    }

    #[test]
    fn nothing_is_repeated_while_the_log_is_being_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for n in 0..3 {
            append(&path, &format!("t stdout F {n}\n"));
            rotate(&path, 4);
        }
        append(&path, "t stdout F 3\n");
        for n in 1..=3 {
            let file = File::options().write(true).open(format!("{}.{n}", path.display())).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(60 * n)).unwrap();
        }
        let mut reader = Reader::new(&path);
        assert_eq!(texts(&mut reader).0, ["0", "1", "2", "3"]);
        fs::remove_file(&path).unwrap();
        assert_eq!(texts(&mut reader), (vec![], At::End));
    }

    #[test]
    fn files_dropped_unread_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        append(&path, "t stdout F 0\n");
        let mut reader = Reader::new(&path);
        assert_eq!(texts(&mut reader).0, ["0"]);
        for n in 1..=5 {
            rotate(&path, 2);
            append(&path, &format!("t stdout F {n}\n"));
        }
        assert_eq!(texts(&mut reader).0, ["3", "4", "5"]);
    }

    #[test]
    fn the_tail_reaches_over_one_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(tail(&path, 3).unwrap().is_empty());
        for n in 0..30 {
            append(&path, &format!("t stdout F {n}\n"));
            if n == 28 {
                rotate(&path, 2);
            }
        }
        append(&path, "t stdout P last wor");
        append(&path, "\n");
        let texts: Vec<String> = tail(&path, 3).unwrap().into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["28", "29", "last wor"]);
    }

    #[test]
    fn nonsense_in_a_log_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        append(&path, "rubbish\n\u{0}\u{0}\nt stdout F good\n");
        assert_eq!(texts(&mut Reader::new(&path)).0, ["good"]);
    }
}
