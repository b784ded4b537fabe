//! A small registry on loopback whose answers can be spoilt.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use gantry_images::{Digest, Reference};

use crate::common::{Built, INDEX, MANIFEST};

/// What happens to the next request whose path contains a text.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Answer with a status, a header and a body.
    Status(u16, &'static str, &'static str),
    /// Send only so many bytes of the body, then hang up.
    CutAfter(usize),
    /// Change the last byte.
    Corrupt,
    /// Claim another length, and send as much.
    Length(usize),
    /// A log-in page, with status 200.
    Html,
    /// Hang up without an answer.
    HangUp,
    /// The body comes a byte at a time, and never to an end.
    Trickle,
}

#[derive(Clone, Default)]
pub(crate) enum Login {
    #[default]
    None,
    /// `Authorization` must be this.
    Basic(String),
    /// A token, for whoever has this `Authorization`.
    Bearer(String),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) manifests: BTreeMap<String, (String, Vec<u8>)>,
    pub(crate) faults: Vec<(&'static str, VecDeque<Fault>)>,
    pub(crate) login: Login,
    /// Uploads under way, by number.
    pub(crate) uploads: Vec<Vec<u8>>,
    /// Answer ranges with all of it.
    pub(crate) no_ranges: bool,
    /// Say of a range that it begins a byte later.
    pub(crate) wrong_ranges: bool,
    /// Connections that are open.
    pub(crate) open: usize,
    /// `METHOD path range`
    pub(crate) log: Vec<String>,
    /// `METHOD path AUTHORIZATION`, of requests that had one.
    pub(crate) secrets: Vec<String>,
}

impl State {
    /// Bytes of layers of this image that were asked for.
    pub(crate) fn layer_bytes(&self, built: &Built) -> u64 {
        let asked = |digest: Digest| {
            let digest = digest.to_string();
            self.log.iter().filter(move |line| line.contains(&digest))
        };
        let left =
            |line: &String, size: u64| match line.split_once("bytes=").and_then(|(_, range)| range.split_once('-')) {
                Some((start, "")) => size - start.parse::<u64>().unwrap(),
                Some((start, last)) => last.parse::<u64>().unwrap() + 1 - start.parse::<u64>().unwrap(),
                None => size,
            };
        let layers = built.layers.iter();
        layers.flat_map(|layer| asked(layer.digest).map(move |line| left(line, layer.size))).sum()
    }
}

/// See the module. The listening thread ends with the process.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                shared.lock().unwrap().open += 1;
                // A peer that hangs up is not a failure of the double.
                thread::spawn(move || {
                    serve(&stream, address, &shared);
                    shared.lock().unwrap().open -= 1;
                });
            }
        });
        Self { address, state }
    }

    pub(crate) fn push(&self, tag: &str, built: &Built) {
        let mut state = self.state.lock().unwrap();
        state.blobs.extend(built.blobs().into_iter().map(|(digest, bytes)| (digest.to_string(), bytes)));
        let manifest = (MANIFEST.to_owned(), built.manifest.clone());
        state.manifests.insert(built.digest().to_string(), manifest.clone());
        state.manifests.insert(tag.to_owned(), manifest);
    }

    pub(crate) fn push_index(&self, tag: &str, index: &[u8]) {
        let entry = (INDEX.to_owned(), index.to_vec());
        let mut state = self.state.lock().unwrap();
        state.manifests.insert(Digest::of(index).to_string(), entry.clone());
        state.manifests.insert(tag.to_owned(), entry);
    }

    pub(crate) fn fault(&self, path: &'static str, faults: &[Fault]) {
        self.state.lock().unwrap().faults.push((path, faults.iter().cloned().collect()));
    }

    pub(crate) fn reset(&self) {
        let mut state = self.state.lock().unwrap();
        state.faults.clear();
        state.log.clear();
    }

    /// Wait until nobody is connected, so that what comes into the log is new.
    pub(crate) fn wait_quiet(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.state.lock().unwrap().open > 0 {
            assert!(Instant::now() < deadline, "connections stay open");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    pub(crate) fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((key, value)) = line.trim().split_once(':') else {
            break;
        };
        headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body })
}

fn serve(stream: &TcpStream, address: SocketAddr, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        if respond(stream, address, &request, &mut state.lock().unwrap()).is_none() {
            return;
        }
    }
}

/// `None` closes the connection.
fn respond(mut stream: &TcpStream, address: SocketAddr, request: &Request, state: &mut State) -> Option<()> {
    let range = request.headers.get("range").cloned().unwrap_or_default();
    state.log.push(format!("{} {} {range}", request.method, request.path).trim().to_owned());
    let fault = state.faults.iter_mut().find(|(path, left)| request.path.contains(path) && !left.is_empty());
    let fault = fault.and_then(|(_, left)| left.pop_front());
    let mut head = String::new();
    let authorization = request.headers.get("authorization").cloned().unwrap_or_default();
    if !authorization.is_empty() {
        state.secrets.push(format!("{} {} {authorization}", request.method, request.path));
    }
    let (mut status, mut kind, mut body) = (200, "application/octet-stream".to_owned(), Vec::new());
    if request.path.starts_with("/token") {
        // An identity token comes in a form, everything else in the address.
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let refresh = form.split('&').find_map(|pair| pair.strip_prefix("refresh_token="));
        let who = refresh.map_or(authorization.clone(), |token| format!("refresh {token}"));
        let granted = matches!(&state.login, Login::Bearer(wanted) if *wanted == who);
        let all = request.path.clone() + &form;
        let asked = all.contains("service=double") && all.contains("scope=repository%3A");
        (status, body) = if granted && asked { (200, br#"{"token":"t0ken"}"#.to_vec()) } else { (401, Vec::new()) };
    } else if let Some(challenge) = challenge(&state.login, &authorization, address) {
        (status, head) = (401, format!("WWW-Authenticate: {challenge}\r\n"));
        body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#.to_vec();
    } else if let Some((_, rest)) = request.path.split_once("/blobs/uploads/") {
        (status, head) = upload(request, rest, state, matches!(fault, Some(Fault::HangUp)));
    } else if let (Some((_, what)), "PUT") = (request.path.split_once("/manifests/"), request.method.as_str()) {
        let kind = request.headers.get("content-type").cloned().unwrap_or_default();
        state.manifests.insert(what.to_owned(), (kind, request.body.clone()));
        status = 201;
    } else if let Some((_, what)) = request.path.split_once("/manifests/") {
        match state.manifests.get(what) {
            Some((media_type, bytes)) => {
                (kind, body) = (media_type.clone(), bytes.clone());
                head = format!("Docker-Content-Digest: {}\r\n", Digest::of(bytes));
            }
            None => status = 404,
        }
    } else if let Some((_, digest)) = request.path.split_once("/blobs/") {
        match state.blobs.get(digest) {
            Some(bytes) => body = bytes.clone(),
            None => status = 404,
        }
        let asked = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
        if let Some((start, last)) = asked.filter(|_| status == 200 && !state.no_ranges) {
            let (start, size) = (start.parse::<usize>().unwrap(), body.len());
            let end = if last.is_empty() { size } else { last.parse::<usize>().unwrap() + 1 };
            let said = start + usize::from(state.wrong_ranges);
            head = format!("Content-Range: bytes {said}-{}/{size}\r\n", end - 1);
            (status, body) = (206, body[start..end].to_vec());
        }
    } else {
        status = 404;
    }
    let (mut length, mut sent) = (body.len(), body.len());
    let trickle = matches!(fault, Some(Fault::Trickle));
    match fault {
        None => {}
        Some(Fault::Status(code, extra, text)) => {
            (status, head, body) = (code, format!("{extra}\r\n"), text.as_bytes().to_vec());
            (length, sent) = (body.len(), body.len());
        }
        Some(Fault::CutAfter(count)) => sent = count.min(length),
        Some(Fault::Corrupt) => *body.last_mut().unwrap() ^= 1,
        Some(Fault::Length(count)) => {
            body.resize(count, 0);
            (length, sent) = (count, count);
        }
        Some(Fault::Html) => {
            (status, kind, body) = (200, "text/html; charset=utf-8".into(), b"<html>Log in, please</html>".to_vec());
            (length, sent) = (body.len(), body.len());
        }
        Some(Fault::HangUp) => return None,
        Some(Fault::Trickle) => {}
    }
    let start = format!("HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{head}\r\n");
    stream.write_all(start.as_bytes()).ok()?;
    if trickle {
        let mut stream = stream.try_clone().ok()?;
        // Until the other side has had enough; this connection goes on there.
        thread::spawn(move || {
            for byte in body.chunks(1) {
                if stream.write_all(byte).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        return None;
    }
    if request.method != "HEAD" {
        stream.write_all(&body[..sent]).ok()?;
        (sent == length).then_some(())?;
    }
    Some(())
}

/// Half of a piece arrives if it is to break off.
fn upload(request: &Request, rest: &str, state: &mut State, broken: bool) -> (u16, String) {
    let (number, query) = rest.split_once('?').unwrap_or((rest, ""));
    let number: usize = number.parse().unwrap_or(state.uploads.len());
    let mounted = query.strip_prefix("mount=").and_then(|rest| rest.split('&').next()).map(|d| d.replace("%3A", ":"));
    match request.method.as_str() {
        "POST" if mounted.is_some_and(|digest| state.blobs.contains_key(&digest)) => return (201, String::new()),
        "POST" => state.uploads.push(Vec::new()),
        "PATCH" => {
            let start: usize = request.headers["content-range"].split_once('-').unwrap().0.parse().unwrap();
            if start != state.uploads[number].len() {
                return (416, String::new());
            }
            let count = if broken { request.body.len() / 2 } else { request.body.len() };
            state.uploads[number].extend(&request.body[..count]);
        }
        "PUT" => {
            let digest = query.split_once("digest=").unwrap().1.replace("%3A", ":");
            let bytes = state.uploads[number].clone();
            if Digest::of(&bytes).to_string() != digest {
                return (400, String::new());
            }
            state.blobs.insert(digest, bytes);
            return (201, String::new());
        }
        _ => {}
    }
    let last = state.uploads[number].len().saturating_sub(1);
    let status = if request.method == "GET" { 204 } else { 202 };
    (status, format!("Location: /v2/x/blobs/uploads/{number}\r\nRange: 0-{last}\r\n"))
}

fn challenge(login: &Login, authorization: &str, address: SocketAddr) -> Option<String> {
    match login {
        Login::Basic(wanted) if authorization != wanted => Some("Basic realm=\"double\"".into()),
        Login::Bearer(_) if authorization != "Bearer t0ken" => {
            Some(format!("Bearer realm=\"http://{address}/token\",service=\"double\",scope=\"repository:x:pull\""))
        }
        _ => None,
    }
}
