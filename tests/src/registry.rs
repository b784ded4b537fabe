//! A registry that runs on a lab's node and counts what it sends: an OCI layout behind the two requests of a pull.

use crate::{Cluster, seconds, until};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Set for a process that is to be a registry: `LAYOUT:PORT:BYTES PER SECOND:COUNT FILE`.
const TASK: &str = "TEST_REGISTRY";

/// A registry on 127.0.0.1 of one node; gone when dropped, or with the test.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    count: PathBuf,
}

impl Registry {
    /// Starts it and waits until it listens. `test` is the test of this program that calls [`serve_registry`].
    ///
    /// # Panics
    /// It does not listen.
    pub fn start(cluster: &Cluster, node: &str, test: &str, layout: &Path, port: u16, bytes_per_s: u64) -> Self {
        let count = cluster.folder().join(format!("sent-{node}"));
        let task = format!("{TASK}={}:{port}:{bytes_per_s}:{}", layout.display(), count.display());
        let program = std::env::current_exe().expect("the test's own path");
        let child = cluster
            .command()
            .args(["lab", "exec", "--name", cluster.name(), node, "--", "/usr/bin/env", &task])
            .arg(program)
            .args([test, "--exact", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("gantry starts");
        let registry = Self { child, count };
        until(&format!("the registry on {node} listens"), seconds(30), || {
            if registry.count.exists() { Ok(()) } else { Err("no count file".to_owned()) }
        });
        registry
    }

    /// Bytes of blobs sent so far.
    ///
    /// # Panics
    /// The count cannot be read.
    pub fn sent(&self) -> u64 {
        let text = fs::read_to_string(&self.count).expect("the count");
        text.trim().parse().unwrap_or_else(|error| panic!("{error}: {text:?}"))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The end of its input is the end of the registry, and then of the command around it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// To be called by a test that is otherwise empty: it is the registry when the process is one.
///
/// # Panics
/// The process is to be a registry, and cannot.
pub fn serve_registry() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<&str> = task.split(':').collect();
    let [layout, port, rate, count] = words[..] else { panic!("{TASK}={task}") };
    let listener = TcpListener::bind(("127.0.0.1", port.parse().expect("a port"))).expect("it listens");
    let (layout, count) = (PathBuf::from(layout), PathBuf::from(count));
    let rate: u64 = rate.parse().expect("bytes per second");
    note(&count, 0);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (layout, count) = (layout.clone(), count.clone());
            // A client that hangs up is no failure of the registry.
            thread::spawn(move || serve(&stream, &layout, rate, &count));
        }
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(0);
}

fn note(count: &Path, bytes: u64) {
    static SENT: AtomicU64 = AtomicU64::new(0);
    static WRITING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    SENT.fetch_add(bytes, Ordering::SeqCst);
    let _one = WRITING.lock().expect("no writer has failed");
    let part = count.with_extension("part");
    fs::write(&part, SENT.load(Ordering::SeqCst).to_string()).expect("the count is written");
    fs::rename(&part, count).expect("the count is written");
}

fn serve(stream: &TcpStream, layout: &Path, rate: u64, count: &Path) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let mut from = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            match header.trim().split_once(':') {
                Some((key, value)) if key.eq_ignore_ascii_case("range") => {
                    from = value.trim().strip_prefix("bytes=")?.split('-').next()?.parse().ok()?;
                }
                Some(_) => {}
                None => break,
            }
        }
        answer(stream, layout, &method, &path, from, rate, count)?;
    }
}

fn answer(
    mut stream: &TcpStream,
    layout: &Path,
    method: &str,
    path: &str,
    from: u64,
    rate: u64,
    count: &Path,
) -> Option<()> {
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json")).ok()?).ok()?;
    let manifest = index["manifests"][0]["digest"].as_str()?.to_owned();
    let (digest, kind) = match (path.split_once("/manifests/"), path.split_once("/blobs/")) {
        (Some(_), _) => (manifest, "application/vnd.oci.image.manifest.v1+json"),
        (None, Some((_, digest))) => (digest.to_owned(), "application/octet-stream"),
        (None, None) => (String::new(), ""),
    };
    let blob = layout.join("blobs").join(digest.replace(':', "/"));
    let Ok(mut file) = File::open(&blob).and_then(|mut file| file.seek(SeekFrom::Start(from)).map(|_| file)) else {
        return stream.write_all(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n").ok();
    };
    let size = file.metadata().ok()?.len();
    let partly = format!("Content-Range: bytes {from}-{}/{size}\r\n", size - 1);
    let (status, range) = if from > 0 { (206, partly.as_str()) } else { (200, "") };
    let length = size - from;
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\n{range}Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    if method == "HEAD" {
        return Some(());
    }
    let (begun, mut sent) = (Instant::now(), 0u64);
    let mut chunk = vec![0; 64 << 10];
    loop {
        let read = file.read(&mut chunk).ok()?;
        if read == 0 {
            return Some(());
        }
        stream.write_all(&chunk[..read]).ok()?;
        sent += read as u64;
        if path.contains("/blobs/") {
            note(count, read as u64);
        }
        // As a link of that rate would: when all of this should have taken longer, the rest waits.
        let due = Duration::from_millis(sent * 1_000 / rate);
        thread::sleep(due.saturating_sub(begun.elapsed()));
    }
}
