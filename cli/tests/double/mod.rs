//! A scheduler made of canned answers on a unix socket, and the command run against it.

use gantry_api::frame::Frame;
use gantry_api::http::ApiError;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One answer.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// Status and body.
    Body(u16, String),
    /// Upgraded; these frames are sent, after input has ended if the flag says so.
    Frames(Vec<Frame>, Echo),
}

/// What a tunnel does with input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    /// Sends it back on standard output until it ends.
    Input,
    /// Sends it back on standard output until Ctrl-C is typed.
    Keys,
    /// Ignores it.
    Nothing,
}

/// Success with a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> Answer {
    Answer::Body(200, serde_json::to_string(value).unwrap())
}

/// A refusal.
pub(crate) fn refusal(status: u16, code: &str, message: &str, hint: Option<&str>) -> Answer {
    let error = ApiError { code: code.to_owned(), message: message.to_owned(), hint: hint.map(str::to_owned) };
    Answer::Body(status, serde_json::to_string(&error).unwrap())
}

/// What the double was asked: `METHOD /path?query`, and the body.
pub(crate) type Asked = Vec<(String, String)>;

struct World {
    /// For each `METHOD /path?query`, the answers still to give; the last one is given again and again.
    answers: Vec<(String, VecDeque<Answer>)>,
    asked: Asked,
}

/// The scheduler's double. Its socket and thread go with it.
pub(crate) struct Double {
    world: Arc<Mutex<World>>,
    directory: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Double {
    /// Starts one that knows these answers; anything else is a `not_found`.
    pub(crate) fn new(answers: &[(&str, Answer)]) -> Self {
        let mut table: Vec<(String, VecDeque<Answer>)> = Vec::new();
        for (request, answer) in answers {
            match table.iter_mut().find(|(known, _)| known == request) {
                Some((_, queue)) => queue.push_back(answer.clone()),
                None => table.push(((*request).to_owned(), VecDeque::from([answer.clone()]))),
            }
        }
        let world = Arc::new(Mutex::new(World { answers: table, asked: Vec::new() }));
        let directory = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(directory.path().join("gantry.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let shared = Arc::clone(&world);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = serve(tokio::net::UnixListener::from_std(listener).unwrap(), shared) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        Self { world, directory, stop: Some(stop), thread: Some(thread) }
    }

    /// Its run directory, with `gantry.sock` in it.
    pub(crate) fn run_dir(&self) -> &Path {
        self.directory.path()
    }

    /// Runs `gantry ARGS` against it, with `input` as standard input.
    pub(crate) fn run(&self, args: &[&str], input: &str) -> Ended {
        run(self.run_dir(), self.run_dir(), args, input)
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Asked {
        self.world.lock().unwrap().asked.clone()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// `gantry` with a clean environment.
pub(crate) fn gantry(run_dir: &Path, here: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(PathBuf::from(env!("CARGO_BIN_EXE_gantry")));
    command.env_clear().env("GANTRY_RUN_DIR", run_dir).env("PATH", "/usr/bin:/bin").current_dir(here).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs `gantry ARGS` in `here` to its end.
pub(crate) fn run(run_dir: &Path, here: &Path, args: &[&str], input: &str) -> Ended {
    use std::io::Write;
    let mut child = gantry(run_dir, here, args).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A command that takes no input may have ended before it is written.
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        child.wait_with_output().unwrap().into()
    })
}

async fn serve(listener: tokio::net::UnixListener, world: Arc<Mutex<World>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let world = Arc::clone(&world);
        let service = service_fn(move |request| answer(request, Arc::clone(&world)));
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(connection.with_upgrades());
    }
}

async fn answer(mut request: Request<Incoming>, world: Arc<Mutex<World>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let body = request.body_mut().collect().await.unwrap().to_bytes();
    let answer = {
        let mut world = world.lock().unwrap();
        world.asked.push((line.clone(), String::from_utf8_lossy(&body).into_owned()));
        let queue = world.answers.iter_mut().find(|(known, _)| *known == line).map(|(_, queue)| queue);
        match queue {
            Some(queue) if queue.len() > 1 => queue.pop_front().unwrap(),
            Some(queue) => queue[0].clone(),
            None => refusal(404, "not_found", &format!("the double does not know {line}"), None),
        }
    };
    Ok(match answer {
        Answer::Body(status, body) => {
            let status = StatusCode::from_u16(status).unwrap();
            Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap()
        }
        Answer::Frames(frames, echo) => {
            assert_eq!(request.headers()[UPGRADE], "gantry-tunnel");
            tokio::spawn(tunnel(request, frames, echo, world));
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(CONNECTION, "Upgrade")
                .header(UPGRADE, "gantry-tunnel")
                .body(Full::default())
                .unwrap()
        }
    })
}

/// Serves a tunnel; resizes and signals are noted as if they had been asked for.
async fn tunnel(request: Request<Incoming>, frames: Vec<Frame>, echo: Echo, world: Arc<Mutex<World>>) {
    let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
    let (mut buffer, mut chunk) = (Vec::new(), vec![0; 4096]);
    let mut open = echo != Echo::Nothing;
    while open {
        let read = stream.read(&mut chunk).await.unwrap();
        assert_ne!(read, 0, "closed before the end of input");
        buffer.extend_from_slice(&chunk[..read]);
        while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
            match frame {
                Frame::Stdin(bytes) if bytes.is_empty() => open = false,
                Frame::Stdin(bytes) => {
                    open = echo == Echo::Input || !bytes.contains(&3);
                    stream.write_all(&Frame::Stdout(bytes).encode()).await.unwrap();
                }
                other => world.lock().unwrap().asked.push(("frame".to_owned(), format!("{other:?}"))),
            }
        }
    }
    for frame in frames {
        stream.write_all(&frame.encode()).await.unwrap();
    }
    stream.shutdown().await.unwrap();
}
