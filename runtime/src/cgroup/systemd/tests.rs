//! A double of systemd on a socket, and what the driver says to it.

use super::bus::Bus;
use super::wire::{self, FIXED_HEADER, Message, Reader, Writer};
use super::*;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

/// What the double does with the calls it gets, in order.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Answer with a job, and report its result.
    Job(&'static str),
    /// The same, but the signal comes before the answer, after one of another job.
    JobEarly(&'static str),
    /// Answer with a job, and never say more of it.
    JobUnheard,
    /// Answer without values.
    Done,
    /// Answer with an error of this name.
    Error(&'static str),
    /// Never answer.
    Silence,
    /// Hang up.
    HangUp,
}

struct Double {
    dir: tempfile::TempDir,
    thread: JoinHandle<Vec<(String, Vec<u8>)>>,
}

impl Double {
    fn new(acts: &'static [Act]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("bus")).expect("a socket");
        let thread = std::thread::spawn(move || serve(listener.accept().expect("the driver").0, acts));
        Self { dir, thread }
    }

    fn bus(&self, within: Duration) -> Bus {
        Bus::connect(&self.dir.path().join("bus"), true, within).expect("connected")
    }

    /// The calls it got: method and body.
    fn calls(self) -> Vec<(String, Vec<u8>)> {
        self.thread.join().expect("the double")
    }
}

fn serve(mut stream: UnixStream, acts: &[Act]) -> Vec<(String, Vec<u8>)> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a line");
        line.push(byte[0]);
    }
    let uid = rustix::process::geteuid().as_raw().to_string();
    let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(line, format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes());
    stream.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").expect("written");
    let mut begin = [0; 7];
    stream.read_exact(&mut begin).expect("BEGIN");
    assert_eq!(&begin, b"BEGIN\r\n");
    let mut calls = Vec::new();
    for act in acts {
        let mut header = [0; FIXED_HEADER];
        if stream.read_exact(&mut header).is_err() {
            break;
        }
        let mut bytes = header.to_vec();
        bytes.resize(Message::length(&header).expect("a length"), 0);
        stream.read_exact(&mut bytes[FIXED_HEADER..]).expect("the rest");
        let call = Message::decode(&bytes).expect("a call");
        let serial = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        calls.push((call.member, call.body));
        let job = format!("/job/{serial}");
        let answer = |stream: &mut UnixStream| {
            let mut body = Writer::default();
            body.text(&job);
            stream.write_all(&message(wire::METHOD_RETURN, Some(serial), "", "o", &body.0)).expect("written");
        };
        let removed = |stream: &mut UnixStream, job: &str, result: &str| {
            let mut body = Writer::default();
            body.u32(1);
            body.text(job);
            body.text("web.scope");
            body.text(result);
            stream.write_all(&message(wire::SIGNAL, None, "JobRemoved", "uoss", &body.0)).expect("written");
        };
        match act {
            Act::Job(result) => {
                answer(&mut stream);
                removed(&mut stream, &job, result);
            }
            Act::JobEarly(result) => {
                removed(&mut stream, "/job/other", "failed");
                removed(&mut stream, &job, result);
                answer(&mut stream);
            }
            Act::JobUnheard => answer(&mut stream),
            Act::Done => {
                stream.write_all(&message(wire::METHOD_RETURN, Some(serial), "", "", &[])).expect("written");
            }
            Act::Error(name) => {
                let mut body = Writer::default();
                body.text("no, thank you");
                let full = format!("org.freedesktop.systemd1.{name}");
                stream.write_all(&message(wire::ERROR, Some(serial), &full, "s", &body.0)).expect("written");
            }
            Act::Silence => {
                // Until the other side gives up.
                let _ = stream.read(&mut [0]);
            }
            Act::HangUp => break,
        }
    }
    calls
}

/// A message to the driver.
fn message(kind: u8, reply_to: Option<u32>, name: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut fields = Writer::default();
    let mut field = |code: u8, kind: &str, value: &dyn Fn(&mut Writer)| {
        fields.0.resize(fields.0.len().next_multiple_of(8), 0);
        fields.0.extend([code, kind.len() as u8]);
        fields.0.extend(kind.as_bytes());
        fields.0.push(0);
        value(&mut fields);
    };
    if let Some(serial) = reply_to {
        field(5, "u", &|writer| writer.u32(serial));
    }
    if !name.is_empty() {
        field(if kind == wire::ERROR { 4 } else { 3 }, "s", &|writer| writer.text(name));
    }
    if !signature.is_empty() {
        field(8, "g", &|writer| {
            writer.0.push(signature.len() as u8);
            writer.0.extend(signature.as_bytes());
            writer.0.push(0);
        });
    }
    let mut whole = vec![b'l', kind, 1, 1];
    whole.extend((body.len() as u32).to_le_bytes());
    whole.extend(77_u32.to_le_bytes());
    whole.extend((fields.0.len() as u32).to_le_bytes());
    whole.extend(&fields.0);
    whole.resize(whole.len().next_multiple_of(8), 0);
    whole.extend(body);
    whole
}

fn unit() -> Unit {
    Unit { name: "web.scope".to_owned(), slice: "machine.slice".to_owned(), user: false, extra: Vec::new() }
}

const LONG: Duration = Duration::from_secs(30);

#[test]
fn a_scope_is_started_with_its_process_and_limits() {
    for acts in [&[Act::Job("done")], &[Act::JobEarly("done")]] {
        let double = Double::new(acts);
        start_scope(&mut double.bus(LONG), &unit(), 4711, true, vec![("TasksMax", Value::U64(5))]).expect("started");
        let calls = double.calls();
        assert_eq!(calls.len(), 1, "{acts:?}");
        let (member, body) = &calls[0];
        assert_eq!(member, "StartTransientUnit");
        let mut reader = Reader::new(body);
        assert_eq!((reader.text(), reader.text()), (Ok("web.scope"), Ok("replace")));
        let has = |bytes: &[u8]| body.windows(bytes.len()).any(|window| window == bytes);
        assert!(has(b"PIDs\0\x02au\0"), "the process");
        assert!(has(&4711_u32.to_le_bytes()), "its number");
        assert!(has(b"TasksMax\0\x01t\0"), "the limit");
        assert!(has(b"Delegate\0\x01b\0"), "ours to divide");
    }
}

#[test]
fn a_failed_unit_of_the_same_name_is_reset() {
    let double = Double::new(&[Act::Error("UnitExists"), Act::Done, Act::Job("done")]);
    start_scope(&mut double.bus(LONG), &unit(), 1, true, Vec::new()).expect("started at last");
    let names: Vec<String> = double.calls().into_iter().map(|(member, _)| member).collect();
    assert_eq!(names, ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]);
}

#[test]
fn what_systemd_refuses_is_told() {
    for (acts, want) in [
        (
            &[Act::Error("UnitExists"), Act::Done, Act::Error("UnitExists")][..],
            "no, thank you (org.freedesktop.systemd1.UnitExists)",
        ),
        (&[Act::Job("timeout"), Act::Done], "error creating systemd unit `web.scope`: got `timeout`"),
        (&[Act::Error("PropertyReadOnly")], "unable to start unit \"web.scope\": no, thank you"),
        (&[Act::HangUp], "unable to start unit \"web.scope\": unexpected end of file"),
    ] {
        let double = Double::new(acts);
        let failure = start_scope(&mut double.bus(LONG), &unit(), 1, true, Vec::new()).expect_err("refused");
        assert!(failure.to_string().contains(want), "{acts:?}: {failure}");
        double.calls();
    }
}

#[test]
fn a_systemd_that_hangs_is_given_up() {
    let double = Double::new(&[Act::Silence]);
    let mut bus = double.bus(Duration::from_millis(200));
    let failure = start_scope(&mut bus, &unit(), 1, true, Vec::new()).expect_err("late");
    assert!(failure.to_string().contains("no answer within 200ms"), "{failure}");
    assert!(failure.hint.is_some_and(|hint| hint.contains("busy")));
    drop(bus);
    double.calls();
}

#[test]
fn stopping_what_is_gone_succeeds() {
    for acts in [&[Act::Job("done"), Act::Error("NoSuchUnit")], &[Act::Error("NoSuchUnit"), Act::Error("NoSuchUnit")]] {
        let double = Double::new(acts);
        stop_scope(&mut double.bus(LONG), "web.scope").expect("stopped");
        let names: Vec<String> = double.calls().into_iter().map(|(member, _)| member).collect();
        assert_eq!(names, ["StopUnit", "ResetFailedUnit"]);
    }
    let double = Double::new(&[Act::Error("AccessDenied"), Act::Done]);
    assert!(stop_scope(&mut double.bus(LONG), "web.scope").is_err());
    double.calls();
}

#[test]
fn the_end_of_a_job_may_go_unheard() {
    let acts = &[Act::JobUnheard, Act::Done, Act::Error("NoSuchJob"), Act::Done];
    let double = Double::new(acts);
    stop_scope(&mut double.bus(LONG), "web.scope").expect("stopped");
    let names: Vec<String> = double.calls().into_iter().map(|(member, _)| member).collect();
    assert_eq!(names, ["StopUnit", "GetJob", "GetJob", "ResetFailedUnit"]);
    // A start that nobody heard the end of counts when the process is there.
    let double = Double::new(&[Act::JobUnheard, Act::Error("NoSuchJob"), Act::Done]);
    let failure = start_scope(&mut double.bus(LONG), &unit(), 1, true, Vec::new()).expect_err("not there");
    assert!(failure.to_string().contains("got `unknown`"), "{failure}");
    double.calls();
}

#[test]
fn nobody_at_any_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let sockets = [(dir.path().join("a"), true), (dir.path().join("b"), false)];
    let failure = connect(&sockets, LONG).expect_err("nobody");
    let text = failure.to_string();
    assert!(text.contains("/a`: ") && text.contains("/b`: ") && failure.hint.is_some(), "{text}");
}

#[test]
fn a_real_bus_takes_our_bytes() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("bus");
    let config = dir.path().join("config");
    let text = format!(
        "<busconfig><type>custom</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
         <allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/></policy></busconfig>",
        socket.display()
    );
    std::fs::write(&config, text).expect("written");
    let daemon = std::process::Command::new("dbus-daemon")
        .arg(format!("--config-file={}", config.display()))
        .args(["--nofork", "--nopidfile", "--nosyslog"])
        .spawn();
    let Ok(mut daemon) = daemon else {
        eprintln!("skipped: dbus-daemon is not installed");
        return;
    };
    let deadline = std::time::Instant::now() + LONG;
    // It lets us in and takes the rule; then it says that no systemd is behind it.
    let mut result = Bus::connect(&socket, false, LONG);
    while matches!(result, Err(BusError::Io(_))) && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        result = Bus::connect(&socket, false, LONG);
    }
    let _ = daemon.kill();
    let _ = daemon.wait();
    let error = result.expect_err("there is no systemd");
    assert!(error.is("ServiceUnknown"), "{error}");
}

#[test]
fn units_from_the_path() {
    let none = BTreeMap::new();
    for (path, want) in [
        (Some("machine.slice:libpod:abc"), Ok("machine.slice/libpod-abc.scope")),
        (Some("a-b.slice:p:n"), Ok("a.slice/a-b.slice/p-n.scope")),
        (Some("-.slice:p:n"), Ok("p-n.scope")),
        (Some("machine.slice::n"), Ok("machine.slice/n.scope")),
        (Some("/a/b"), Err("expected cgroupsPath to be of format")),
        (Some("machine.slice:p"), Err("expected cgroupsPath to be of format")),
        (Some("machine:p:n"), Err("invalid slice name: machine")),
        (Some("a--b.slice:p:n"), Err("invalid slice name")),
        (Some("a/b.slice:p:n"), Err("invalid slice name")),
        (Some(".slice:p:n"), Err("invalid slice name")),
        (Some("machine.slice:p:../n"), Err("does not name a scope")),
        (Some("machine.slice:p:"), Err("does not name a scope")),
        (Some("machine.slice:p:n.slice"), Err("does not name a scope")),
    ] {
        let place =
            Unit::new(path, "web", &none).map(|unit| Unit { user: false, ..unit }).and_then(|unit| unit.place());
        match (place, want) {
            (Ok(place), Ok(want)) => assert_eq!(place, want, "{path:?}"),
            (Err(failure), Err(want)) => assert!(failure.to_string().contains(want), "{path:?}: {failure}"),
            (place, want) => panic!("{path:?}: {place:?} instead of {want:?}"),
        }
    }
    let unit = Unit::new(None, "web", &none).expect("a unit");
    assert_eq!(unit.name, "gantry-web.scope");
    let annotations = BTreeMap::from([("org.systemd.property.CollectMode".to_owned(), "'x'".to_owned())]);
    assert_eq!(Unit::new(None, "web", &annotations).expect("a unit").extra.len(), 1);
}
