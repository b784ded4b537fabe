//! The logs tunnel: lines towards the scheduler, until the end of the log, of the replica, or of who reads.

use crate::dial::Tunnel;
use crate::observe::cri::{At, Line, Reader};
use crate::observe::watch::Watch;
use crate::paths::Replica;
use gantry_api::http::LogLine;
use gantry_api::wire::LogsRequest;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Should the kernel not tell of a change, we look this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Lines kept for a `tail` at most.
const TAIL_MAX: u64 = 100_000;

pub(super) async fn serve(io: Tunnel, request: &LogsRequest, replica: &Replica) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(io);
    tokio::select! {
        result = send(&mut to, request, replica) => {
            result?;
            to.shutdown().await
        }
        () = closed(&mut from) => Ok(()),
    }
}

/// Ends when the peer has closed its side.
async fn closed(from: &mut (impl AsyncRead + Unpin)) {
    let mut ignored = [0; 64];
    while let Ok(1..) = from.read(&mut ignored).await {}
}

async fn send(to: &mut (impl AsyncWrite + Unpin), request: &LogsRequest, replica: &Replica) -> io::Result<()> {
    let since = request.since_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms.try_into().ok()?).ok());
    let wanted = |line: &Line| match since {
        None => true,
        Some(since) => line.time.parse::<jiff::Timestamp>().is_ok_and(|time| time > since),
    };
    // Watched before it is read, so that nothing comes in between.
    let mut watch = Watch::changes(&replica.dir);
    let mut reader = Reader::new(&replica.log());
    let mut tail = request.tail.map(|count| (count.min(TAIL_MAX) as usize, VecDeque::new()));
    loop {
        let (back, lines, at) = read(reader).await?;
        reader = back;
        let mut lines: Vec<Line> = lines.into_iter().filter(&wanted).collect();
        if at != At::More && !(request.follow && at == At::End) {
            lines.extend(reader.rest().into_iter().filter(&wanted));
        }
        if let Some((count, kept)) = &mut tail {
            kept.extend(lines);
            kept.drain(..kept.len().saturating_sub(*count));
            if at == At::More {
                continue;
            }
            lines = std::mem::take(kept).into();
            tail = None;
        }
        write(to, request, lines).await?;
        match at {
            At::More => {}
            At::End if request.follow => {
                // Without inotify (too many instances) looking again is all there is.
                let changed = async {
                    match &mut watch {
                        Ok(watch) => watch.changed().await,
                        Err(_) => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = changed => {}
                    () = sleep(LOOK_AGAIN) => {}
                }
            }
            At::End | At::Gone => return Ok(()),
        }
    }
}

async fn read(mut reader: Reader) -> io::Result<(Reader, Vec<Line>, At)> {
    let read = spawn_blocking(move || {
        let mut lines = Vec::new();
        let at = reader.read(&mut lines)?;
        Ok((reader, lines, at))
    });
    read.await.map_err(io::Error::other)?
}

async fn write(to: &mut (impl AsyncWrite + Unpin), request: &LogsRequest, lines: Vec<Line>) -> io::Result<()> {
    let mut text = Vec::new();
    for Line { time, stream, text: line } in lines {
        let (replica, name) = (request.replica.clone(), request.name.clone());
        let line = LogLine { time, replica, name, stream: stream.to_owned(), line };
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    // No deadline: a reader may pause as long as it likes, and the end of its connection ends this too.
    to.write_all(&text).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Paths;
    use gantry_api::ids::{ReplicaId, ReplicaName};
    use std::fs;
    use std::io::Write;
    use std::path::Path;
    use tokio::time::timeout;

    fn request(follow: bool, tail: Option<u64>, since_ms: Option<u64>) -> LogsRequest {
        let name = ReplicaName { app: "a".parse().unwrap(), service: "s".parse().unwrap(), number: 1 };
        LogsRequest { replica: ReplicaId::new(&name, 1), name, follow, tail, since_ms }
    }

    fn replica(dir: &Path) -> Replica {
        let replica = Paths::new(dir, dir).replica(&request(false, None, None).replica);
        fs::create_dir_all(&replica.dir).unwrap();
        replica
    }

    fn append(replica: &Replica, numbers: std::ops::Range<u32>) {
        let mut file = fs::File::options().create(true).append(true).open(replica.log()).unwrap();
        for n in numbers {
            writeln!(file, "1970-01-01T00:00:{n:02}Z stdout F {n}").unwrap();
        }
    }

    fn texts(bytes: &[u8]) -> Vec<String> {
        let whole = bytes.iter().rposition(|c| *c == b'\n').map_or(0, |end| end + 1);
        let lines = bytes[..whole].split(|c| *c == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice::<LogLine>(line).unwrap().line).collect()
    }

    #[tokio::test]
    async fn tail_and_since_choose_lines() {
        let dir = tempfile::tempdir().unwrap();
        let replica = replica(dir.path());
        append(&replica, 0..10);
        for (tail, since_ms, want) in [
            (Some(2), None, &["8", "9"][..]),
            (None, Some(7_000), &["8", "9"]),
            (Some(5), Some(7_000), &["8", "9"]),
            (Some(0), None, &[]),
            (None, Some(99_000), &[]),
        ] {
            let mut out = Vec::new();
            send(&mut out, &request(false, tail, since_ms), &replica).await.unwrap();
            assert_eq!(texts(&out), want, "{tail:?} {since_ms:?}");
        }
    }

    #[tokio::test]
    async fn following_ends_with_the_replica() {
        let dir = tempfile::tempdir().unwrap();
        let replica = replica(dir.path());
        append(&replica, 0..1);
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        let (to_send, request) = (replica.clone(), request(true, None, None));
        let sending = tokio::spawn(async move { send(&mut near, &request, &to_send).await });
        let mut got = Vec::new();
        for n in 1..4 {
            while texts(&got).len() < n as usize {
                let read = timeout(Duration::from_secs(10), far.read_buf(&mut got)).await;
                assert_ne!(read.expect("a line comes").unwrap(), 0);
            }
            append(&replica, n..n + 1);
            fs::rename(replica.log(), replica.dir.join("log.1")).unwrap();
        }
        while texts(&got).len() < 4 {
            timeout(Duration::from_secs(10), far.read_buf(&mut got)).await.expect("the last line comes").unwrap();
        }
        fs::remove_dir_all(&replica.dir).unwrap();
        timeout(Duration::from_secs(10), sending).await.expect("it ends with the log").unwrap().unwrap();
        assert_eq!(texts(&got), ["0", "1", "2", "3"]);
    }
}
