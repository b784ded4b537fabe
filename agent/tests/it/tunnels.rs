//! Commands in replicas, and their logs, through tunnels.

use crate::common::*;
use gantry_api::frame::Frame;
use gantry_api::http::LogLine;
use gantry_api::ids::ReplicaId;
use gantry_api::wire::{AssignedReplica, ExecRequest, LogsRequest, TunnelRequest};
use std::fs;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};

fn exec(replica: &ReplicaId, command: &[&str]) -> ExecRequest {
    ExecRequest {
        replica: replica.clone(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: false,
        stdin: true,
        environment: Vec::new(),
        user: None,
        working_dir: None,
        size: None,
    }
}

/// Everything up to the last frame, both streams apart, and that frame.
async fn all(io: &mut (impl AsyncRead + Unpin)) -> (String, String, Frame) {
    let (mut out, mut err, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
            match frame {
                Frame::Stdout(bytes) => out.extend(bytes),
                Frame::Stderr(bytes) => err.extend(bytes),
                last => return (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), last),
            }
        }
        let read = tokio::time::timeout(DEADLINE, io.read_buf(&mut buffer)).await.expect("frames come").unwrap();
        assert_ne!(read, 0, "the last frame comes before the end; so far {out:?} {err:?}");
    }
}

#[test]
fn a_command_runs_with_its_streams_or_a_terminal() {
    inside("tunnels::a_command_runs_with_its_streams_or_a_terminal", || async {
        let mut world = World::new().await;
        let web = replica("web", 1, SERVER);
        world.assign(&[&web], &[]);
        world.start_agent();
        world.running(&web.id, 0).await;
        let open = async |tunnel: &str, request: ExecRequest| {
            world.scheduler.open(tunnel, TunnelRequest::Exec(request)).await.unwrap()
        };

        let script = "read line; echo got $line; echo bad >&2; echo $A $GANTRY_SERVICE $(hostname); id -u; pwd; exit 7";
        let mut request = exec(&web.id, &["sh", "-c", script]);
        request.environment = vec!["A=1".to_owned()];
        request.user = Some("app".to_owned());
        request.working_dir = Some("/data".to_owned());
        let mut io = open("1", request).await;
        io.write_all(&Frame::Stdin(b"hello\n".to_vec()).encode()).await.unwrap();
        let (out, err, last) = all(&mut io).await;
        assert_eq!(out, "got hello\n1 web shop-web-1\n70\n/data\n");
        assert_eq!((err.as_str(), last), ("bad\n", Frame::Exit(7)));

        let mut io = open("2", exec(&web.id, &["cat"])).await;
        let big = "x".repeat(200_000);
        for part in big.as_bytes().chunks(30_000) {
            io.write_all(&Frame::Stdin(part.to_vec()).encode()).await.unwrap();
        }
        io.write_all(&Frame::Stdin(Vec::new()).encode()).await.unwrap();
        assert_eq!(all(&mut io).await, (big, String::new(), Frame::Exit(0)));

        let mut io = open("3", exec(&web.id, &["sleep", "1000"])).await;
        eventually("it sleeps", || running("sleep\x001000\x00") == 1).await;
        io.write_all(&Frame::Signal(15).encode()).await.unwrap();
        assert_eq!(all(&mut io).await.2, Frame::Exit(143));

        let mut request = exec(&web.id, &["sh", "-c", "stty size; tty >/dev/null && echo a terminal; read x; exit 5"]);
        request.tty = true;
        request.size = Some((91, 33));
        let mut io = open("4", request).await;
        io.write_all(&Frame::Stdin(b"go\n".to_vec()).encode()).await.unwrap();
        let (out, _, last) = all(&mut io).await;
        assert!(out.contains("a terminal\r\n"), "{out}");
        assert_eq!(last, Frame::Exit(5));

        let mut io = open("5", exec(&web.id, &["no-such-program"])).await;
        let (_, err, last) = all(&mut io).await;
        assert!(err.contains("no-such-program") && last != Frame::Exit(0), "{err} {last:?}");

        // Whoever asked going away ends the command.
        let io = open("6", exec(&web.id, &["sleep", "1001"])).await;
        eventually("it sleeps", || running("sleep\x001001\x00") == 1).await;
        drop(io);
        eventually("it is killed", || running("sleep\x001001\x00") == 0).await;

        let stranger = exec(&"shop-web-9-000000".parse().unwrap(), &["true"]);
        let refused = world.scheduler.open("7", TunnelRequest::Exec(stranger)).await.err().unwrap();
        assert_eq!(refused, "replica shop-web-9-000000 is not on this node");
        let left = || fs::read_dir(world.run_dir().join("consoles")).unwrap().count();
        eventually("sockets and pid files are gone", || left() == 0).await;
    });
}

fn running(cmdline: &str) -> usize {
    let of = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
    fs::read_dir("/proc").unwrap().flatten().map(of).filter(|line| line == cmdline.as_bytes()).count()
}

fn logs(replica: &AssignedReplica, follow: bool, tail: Option<u64>) -> TunnelRequest {
    let (name, replica) = (replica.name.clone(), replica.id.clone());
    TunnelRequest::Logs(LogsRequest { replica, name, follow, tail, since_ms: None })
}

#[test]
fn logs_are_whole_and_end_with_the_replica() {
    inside("tunnels::logs_are_whole_and_end_with_the_replica", || async {
        let mut world = World::new().await;
        let web = replica(
            "web",
            1,
            "echo one; echo two >&2; while test ! -e /tmp/go; do sleep 0.02; done; echo three; exec sleep 1000",
        );
        world.assign(&[&web], &[]);
        world.start_agent();
        world.running(&web.id, 0).await;
        let log = world.replica_dir(&web.id).join("log");
        eventually("it has written", || fs::read_to_string(&log).is_ok_and(|text| text.lines().count() == 2)).await;
        let mut text = String::new();
        let mut io = world.scheduler.open("1", logs(&web, false, Some(1))).await.unwrap();
        io.read_to_string(&mut text).await.unwrap();
        let last: LogLine = serde_json::from_str(text.trim()).unwrap();
        assert!(["one", "two"].contains(&last.line.as_str()) && last.replica == web.id);

        let io = world.scheduler.open("2", logs(&web, true, None)).await.unwrap();
        let mut lines = BufReader::new(io).lines();
        let mut next = async || {
            let line =
                tokio::time::timeout(DEADLINE, lines.next_line()).await.expect("a line or the end comes").unwrap();
            line.map(|line| serde_json::from_str::<LogLine>(&line).unwrap())
        };
        let mut got = [next().await.unwrap(), next().await.unwrap()].map(|line| (line.stream, line.line));
        got.sort();
        let want = [("stderr", "two"), ("stdout", "one")].map(|(stream, line)| (stream.to_owned(), line.to_owned()));
        assert_eq!(got, want);
        let rootfs = world.data_dir().join("images/containers").join(web.id.as_str()).join("rootfs");
        fs::write(rootfs.join("tmp/go"), "").unwrap();
        assert_eq!(next().await.unwrap().line, "three");
        world.assign(&[], &[]);
        assert!(next().await.is_none(), "the log ends with its replica");
        let gone = tokio::time::timeout(Duration::from_secs(10), world.scheduler.open("3", logs(&web, false, None)));
        assert!(gone.await.unwrap().is_err());
    });
}
