//! The log file of a container, in the CRI format, with rotation.
//!
//! ```text
//! 2026-11-24T08:00:00.123456789Z stdout F a whole line
//! 2026-11-24T08:00:00.123456789Z stderr P the start of a line that goes on in the next entry
//! ```
//! Nothing is held back: what was read is written at once, and a piece without its end of line is marked `P`.
//! When the file cannot be written (a full disk), the container waits a bounded time; after that, output is dropped
//! and the number of bytes lost is written as soon as writing works again.

use crate::error::{Because, InStep, Outcome};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Longest piece of a line in one entry.
pub const LINE_MAX: usize = 16 * 1024;
/// How long a failing write may hold the container up.
const HOLD_MAX: Duration = Duration::from_secs(5);
/// Pause between two attempts.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Which stream an entry is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// An open log.
#[derive(Debug)]
pub struct ContainerLog {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
    files_max: u32,
    /// Bytes dropped since the last successful write.
    lost: u64,
    /// How long a write may be tried again.
    hold_max: Duration,
    /// Entries under construction, kept to be used again.
    entries: Vec<u8>,
}

/// The first entry of a chunk: its tag, its text, and how much of the chunk that is.
fn first_entry(chunk: &[u8]) -> (u8, &[u8], usize) {
    let most = &chunk[..chunk.len().min(LINE_MAX + 1)];
    match memchr::memchr(b'\n', most) {
        Some(end) => (b'F', &chunk[..end], end + 1),
        None => {
            let piece = &most[..most.len().min(LINE_MAX)];
            (b'P', piece, piece.len())
        }
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o640))?);
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

impl ContainerLog {
    /// Open for appending.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn open(path: &Path, bytes_max: u64, files_max: u32) -> Outcome<Self> {
        let (file, bytes) = open(path)
            .because(|| format!("cannot open `{}`", path.display()))
            .or_hint("the directory of --container-log must exist")
            .in_step("container log")?;
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            bytes_max,
            files_max,
            lost: 0,
            hold_max: HOLD_MAX,
            entries: Vec::new(),
        })
    }

    /// Number of the open descriptor. It changes with rotation.
    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Write a chunk of output as entries, all with the same time.
    pub fn write(&mut self, stream: Stream, chunk: &[u8], now: SystemTime) {
        let mut head = format!("{} {} F ", crate::time::rfc3339(now), stream.name()).into_bytes();
        let tag_at = head.len() - 2;
        let mut entries = std::mem::take(&mut self.entries);
        // Room for lines of sixteen bytes and more; shorter ones make it grow.
        entries.reserve(chunk.len() + chunk.len() / 16 * head.len() + head.len() + 1);
        let mut rest = chunk;
        while !rest.is_empty() {
            let (tag, text, length) = first_entry(rest);
            head[tag_at] = tag;
            rest = &rest[length..];
            let written = self.bytes + entries.len() as u64;
            let size = head.len() + text.len() + 1;
            if written > 0 && written + size as u64 > self.bytes_max {
                self.append(&entries);
                entries.clear();
                self.rotate();
            }
            entries.extend_from_slice(&head);
            entries.extend_from_slice(text);
            entries.push(b'\n');
        }
        self.append(&entries);
        entries.clear();
        self.entries = entries;
    }

    /// Give back memory that is needed only while there is output.
    pub fn rest(&mut self) {
        self.entries = Vec::new();
    }

    /// Last chance to say what was lost.
    pub fn finish(&mut self) {
        if self.lost > 0 {
            self.append(&[]);
        }
    }

    fn append(&mut self, entries: &[u8]) {
        let mut all = Vec::new();
        let bytes = if self.lost > 0 {
            let stamp = crate::time::rfc3339(SystemTime::now());
            let _ = writeln!(all, "{stamp} stderr F gantry-runtime: {} bytes of log were lost", self.lost);
            all.extend_from_slice(entries);
            all.as_slice()
        } else {
            entries
        };
        // After a loss, try once only: the container has waited long enough.
        let deadline = Instant::now() + if self.lost > 0 { Duration::ZERO } else { self.hold_max };
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(count) => {
                    self.bytes += count as u64;
                    rest = &rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if Instant::now() < deadline => thread::sleep(RETRY_AFTER),
                Err(_) => {
                    self.lost += rest.len().min(entries.len()) as u64;
                    return;
                }
            }
        }
        self.lost = 0;
    }

    /// FILE.3 → FILE.4, ..., FILE → FILE.1. When that fails, writing goes on in the old file: too long is better than
    /// lost.
    fn rotate(&mut self) {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.files_max <= 1 {
            if self.file.set_len(0).is_ok() {
                self.bytes = 0;
            }
            return;
        }
        for number in (1..self.files_max - 1).rev() {
            let _ = fs::rename(numbered(number), numbered(number + 1));
        }
        if fs::rename(&self.path, numbered(1)).is_err() {
            return;
        }
        match open(&self.path) {
            Ok((file, bytes)) => (self.file, self.bytes) = (file, bytes),
            Err(_) => {
                let _ = fs::rename(numbered(1), &self.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn all(path: &Path, files: u32) -> String {
        let mut text = String::new();
        for number in (1..files).rev() {
            text += &fs::read_to_string(format!("{}.{number}", path.display())).unwrap_or_default();
        }
        text + &fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn lines_and_pieces() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut log = ContainerLog::open(&path, 1 << 20, 5).expect("a log");
        log.write(Stream::Stdout, b"one\n\ntwo", UNIX_EPOCH);
        log.write(Stream::Stdout, b" goes on\n", UNIX_EPOCH);
        log.write(Stream::Stderr, b"bad\n", UNIX_EPOCH);
        let stamp = "1970-01-01T00:00:00.000000000Z";
        let want = format!(
            "{stamp} stdout F one\n{stamp} stdout F \n{stamp} stdout P two\n{stamp} stdout F  goes on\n{stamp} stderr F bad\n"
        );
        assert_eq!(fs::read_to_string(&path).expect("the log"), want);
    }

    #[test]
    fn a_long_line_is_cut_into_pieces() {
        let text = |size: usize, end: &str| [&vec![b'x'; size][..], end.as_bytes()].concat();
        for (why, chunk, want) in [
            ("just fits", text(LINE_MAX, "\n"), vec![('F', LINE_MAX)]),
            ("one too many", text(LINE_MAX + 1, "\n"), vec![('P', LINE_MAX), ('F', 1)]),
            ("no end", text(LINE_MAX + 1, ""), vec![('P', LINE_MAX), ('P', 1)]),
            ("exactly a piece", text(LINE_MAX, ""), vec![('P', LINE_MAX)]),
            ("several", text(3 * LINE_MAX, "\n\n"), vec![('P', LINE_MAX), ('P', LINE_MAX), ('F', LINE_MAX), ('F', 0)]),
        ] {
            let mut rest = &chunk[..];
            let mut got = Vec::new();
            while !rest.is_empty() {
                let (tag, text, length) = first_entry(rest);
                got.push((char::from(tag), text.len()));
                rest = &rest[length..];
            }
            assert_eq!(got, want, "{why}");
        }
    }

    #[test]
    fn rotation_keeps_every_line_it_has_room_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut log = ContainerLog::open(&path, 500, 4).expect("a log");
        for number in 0..60 {
            log.write(Stream::Stdout, format!("line {number}\n").as_bytes(), UNIX_EPOCH);
        }
        let text = all(&path, 4);
        let numbers: Vec<u32> =
            text.lines().map(|line| line.rsplit(' ').next().expect("a word").parse().expect("a number")).collect();
        assert_eq!(numbers.last(), Some(&59));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no gap: {numbers:?}");
        for file in [path.clone(), PathBuf::from(format!("{}.3", path.display()))] {
            assert!(fs::metadata(&file).expect("a file").len() <= 500);
        }
        assert!(!PathBuf::from(format!("{}.4", path.display())).exists(), "four files in all");
    }

    #[test]
    fn one_chunk_may_fill_several_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut log = ContainerLog::open(&path, 200, 10).expect("a log");
        let chunk: String = (0..20).map(|number| format!("{number}\n")).collect();
        log.write(Stream::Stdout, chunk.as_bytes(), UNIX_EPOCH);
        assert_eq!(all(&path, 10).lines().count(), 20);
        assert!(fs::metadata(&path).expect("the log").len() <= 200);
    }

    #[test]
    fn a_full_disk_is_reported_and_survived() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut log = ContainerLog::open(&path, 1 << 20, 5).expect("a log");
        log.hold_max = Duration::from_millis(1);
        let good = std::mem::replace(&mut log.file, File::options().write(true).open("/dev/full").expect("full"));
        log.write(Stream::Stdout, b"gone\n", UNIX_EPOCH);
        log.file = good;
        log.write(Stream::Stdout, b"back\n", UNIX_EPOCH);
        let text = fs::read_to_string(&path).expect("the log");
        assert!(text.contains("bytes of log were lost") && text.contains("stdout F back"), "{text}");
    }
}
