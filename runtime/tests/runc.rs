//! The same lines to runc and to this runtime: equal exit codes, equal answers where both should agree, and in errors
//! the words that callers look for. Skipped where runc is not installed (`apt-get install runc`).

mod common;

use common::{Bed, finish, id, until_or};
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Stdio};

/// What of a run must be equal.
#[derive(Clone, Copy)]
enum Same {
    /// The exit code.
    Code,
    /// Standard output as well.
    Output,
    /// The exit code, and both errors have these words.
    Words(&'static str),
    /// Both fail with these words: with 255 there, with the code of a shell here.
    ShellCode(i32, &'static str),
    /// JSON objects of state: equal but for what differs from run to run.
    State,
}

/// The lines, in order: each pair of containers goes through the same life.
const LINES: &[(&str, Same)] = &[
    // What is not there.
    ("state ID", Same::Words("container does not exist")),
    ("start ID", Same::Words("container does not exist")),
    ("kill ID", Same::Words("container does not exist")),
    ("delete ID", Same::Words("container does not exist")),
    ("checkpoint ID", Same::Words("container does not exist")),
    ("pause ID", Same::Words("container does not exist")),
    ("resume ID", Same::Words("container does not exist")),
    ("ps ID", Same::Words("container does not exist")),
    ("events ID", Same::Words("container does not exist")),
    ("update ID", Same::Words("container does not exist")),
    ("exec ID true", Same::Words("container does not exist")),
    ("delete --force ID", Same::Output),
    ("delete -f=false ID", Same::Words("container does not exist")),
    ("list -q", Same::Output),
    ("list", Same::Output),
    // What is not understood.
    ("fly", Same::Code),
    ("--fly", Same::Code),
    ("create", Same::Code),
    ("create a b", Same::Code),
    ("create --preserve-fds x ID", Same::Code),
    ("create -b", Same::Code),
    ("create --bundle /nowhere ID", Same::Code),
    ("run", Same::Code),
    ("state", Same::Code),
    ("state --format json ID", Same::Code),
    ("kill", Same::Code),
    ("kill ID TERM more", Same::Code),
    ("delete --force=maybe ID", Same::Code),
    ("exec", Same::Code),
    ("exec -g x ID true", Same::Code),
    ("list -f xml", Same::Code),
    ("list all", Same::Code),
    ("spec more", Same::Code),
    ("features more", Same::Code),
    ("--log-format xml list", Same::Code),
    ("--help", Same::Code),
    ("kill --help", Same::Code),
    ("help exec", Same::Code),
    ("--version", Same::Code),
    // A life in steps.
    ("create ID", Same::Output),
    ("create ID", Same::Words("container with given ID already exists")),
    ("state ID", Same::State),
    ("start ID", Same::Output),
    ("start ID", Same::Words("cannot start an already running container")),
    ("state ID", Same::State),
    ("list -f json", Same::State),
    ("list -q", Same::Output),
    ("exec ID echo hello", Same::Output),
    ("exec ID sh -c exit\u{a0}7", Same::Output),
    ("exec ID sh -c kill\u{a0}-9\u{a0}$$", Same::Output),
    ("exec -e A=1 -e B=2 ID env", Same::Output),
    ("exec -u 1:2 ID id -u", Same::Output),
    ("exec --user 1:2 ID id -g", Same::Output),
    ("exec -u 1:2 -g 7 -g 8 ID id -G", Same::Output),
    ("exec --cwd /bin ID pwd", Same::Output),
    ("exec -cwd /bin ID pwd", Same::Output),
    ("exec ID grep Cap /proc/self/status", Same::Output),
    ("exec --cap CAP_CHOWN --cap CAP_FOWNER ID grep Cap /proc/self/status", Same::Output),
    ("exec --no-new-privs ID grep NoNewPrivs /proc/self/status", Same::Output),
    ("exec -d ID true", Same::Output),
    ("exec --process PROCESS ID", Same::Output),
    ("exec -p /nowhere ID", Same::Words("no such file or directory")),
    ("exec --cwd /nowhere ID true", Same::ShellCode(126, "no such file or directory")),
    ("exec ID nowhere", Same::ShellCode(127, "exec: \"nowhere\": executable file not found in $PATH")),
    ("exec ID /nowhere", Same::ShellCode(127, "exec: \"/nowhere\": stat /nowhere: no such file or directory")),
    ("exec ID /bin", Same::ShellCode(126, "exec: \"/bin\": permission denied")),
    ("exec -t -d ID true", Same::Code),
    ("update --pids-limit 50 ID", Same::Output),
    ("exec ID true", Same::Output),
    ("pause ID", Same::Output),
    ("state ID", Same::State),
    ("exec ID true", Same::Words("cannot exec in a paused container (use --ignore-paused to override)")),
    ("delete ID", Same::Words("cannot delete container ID that is not stopped: paused")),
    ("resume ID", Same::Output),
    ("resume ID", Same::Words("container not paused")),
    ("state ID", Same::State),
    ("kill ID 0", Same::Output),
    ("kill ID NOPE", Same::Words("unknown signal \"NOPE\"")),
    ("kill --all ID 0", Same::Output),
    ("delete ID", Same::Words("cannot delete container ID that is not stopped: running")),
    ("kill ID SIGKILL", Same::Output),
    ("WAIT stopped", Same::Code),
    ("state ID", Same::State),
    ("kill ID", Same::Words("container not running")),
    ("kill ID 0", Same::Words("container not running")),
    ("kill -a ID KILL", Same::Output),
    ("pause ID", Same::Words("container not running")),
    ("start ID", Same::Words("cannot start a container that has stopped")),
    ("exec ID true", Same::Words("cannot exec in a stopped container")),
    ("delete ID", Same::Output),
    ("delete ID", Same::Words("container does not exist")),
    // Created, and never started.
    ("create --pid-file PIDFILE ID", Same::Output),
    ("kill ID KILL", Same::Output),
    ("WAIT stopped", Same::Code),
    ("delete ID", Same::Output),
    ("create ID", Same::Output),
    ("delete --force ID", Same::Output),
];

/// Programs in the foreground and what becomes of them.
const RUNS: &[(&[&str], Same)] = &[
    (&["true"], Same::Output),
    (&["sh", "-c", "echo out; exit 3"], Same::Output),
    (&["sh", "-c", "kill -9 $$"], Same::Output),
    (&["sh", "-c", "kill -TERM $$; exit 4"], Same::Output),
    (&["id", "-u"], Same::Output),
    (&["hostname"], Same::Output),
    (&["sh", "-c", "ls /dev"], Same::Output),
    (&["sh", "-c", "ls -l /proc/self/fd | wc -l"], Same::Output),
    (&["grep", "Cap", "/proc/self/status"], Same::Output),
    (&["sh", "-c", "awk '{print $2}' /proc/mounts | busybox sort"], Same::Output),
];

/// The two runtimes on one bundle, each with a state root of its own.
struct Pair {
    bed: Bed,
    name: String,
}

impl Pair {
    fn command(&self, runc: bool, args: &[String]) -> Command {
        if !runc {
            return self.bed.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.bed.path("runc")).args(args).current_dir(self.bed.bundle());
        command.stdin(Stdio::null());
        command
    }

    fn args(&self, runc: bool, line: &str) -> Vec<String> {
        let file = |name: &str| self.bed.path(name).display().to_string();
        line.split(' ')
            .map(|word| match word {
                // In one cgroup tree, so they may not have the same name.
                "ID" => self.id(runc),
                "PROCESS" => file("process.json"),
                "PIDFILE" => file("pid"),
                other => other.replace('\u{a0}', " "),
            })
            .collect()
    }

    fn id(&self, runc: bool) -> String {
        if runc { format!("{}r", self.name) } else { format!("{}g", self.name) }
    }

    /// Text without what differs from run to run.
    fn normal(&self, runc: bool, text: &str) -> String {
        text.replace(&self.id(runc), "ID")
    }

    fn check(&self, line: &str, same: Same) {
        if let Some(status) = line.strip_prefix("WAIT ") {
            for runc in [true, false] {
                let reached = until_or(|| {
                    let state = finish(&mut self.command(runc, &self.args(runc, "state ID"))).out;
                    serde_json::from_str::<Value>(&state).is_ok_and(|state| state["status"] == json!(status))
                });
                assert!(reached, "{line}: runc {runc}");
            }
            return;
        }
        let [theirs, ours] = [true, false].map(|runc| finish(&mut self.command(runc, &self.args(runc, line))));
        let shown = format!("{line}\nrunc: {theirs:?}\nours: {ours:?}");
        match same {
            Same::ShellCode(code, _) => assert_eq!((theirs.code, ours.code), (255, code), "{shown}"),
            _ => assert_eq!(ours.code, theirs.code, "{shown}"),
        }
        match same {
            Same::Code => {}
            Same::Output => assert_eq!(self.normal(false, &ours.out), self.normal(true, &theirs.out), "{shown}"),
            Same::Words(words) | Same::ShellCode(_, words) => {
                for (runc, ran) in [(true, &theirs), (false, &ours)] {
                    let text = self.normal(runc, &ran.err).replace("\\\"", "\"").to_lowercase();
                    assert!(text.contains(&words.to_lowercase()), "{shown}");
                }
            }
            Same::State => assert_eq!(self.state(false, &ours.out), self.state(true, &theirs.out), "{shown}"),
        }
    }

    /// A state, or a list of them, with numbers and times reduced to whether they are there.
    fn state(&self, runc: bool, text: &str) -> Value {
        let mut value: Value =
            serde_json::from_str(&self.normal(runc, text)).unwrap_or_else(|_| panic!("JSON: {text}"));
        let objects = match &mut value {
            Value::Array(list) => list.iter_mut().collect(),
            other => vec![other],
        };
        for object in objects.into_iter().filter_map(Value::as_object_mut) {
            object.insert("pid".into(), json!(object["pid"].as_i64() > Some(0)));
            object.insert("created".into(), json!(object["created"].as_str().is_some_and(|time| time.ends_with('Z'))));
            object.remove("ociVersion");
            // Empty in runc's answer to `state`, and absent in ours.
            object.retain(|key, value| key != "owner" || value != "");
        }
        value
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.command(true, &self.args(true, "delete --force ID")).output();
    }
}

fn pair(script: &str) -> Option<Pair> {
    if !Command::new("runc").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: runc is not installed (apt-get install runc)");
        return None;
    }
    let mut bed = Bed::new(script);
    // What the two share: runc 1.1 knows no newer version, and looks at /sys/fs/cgroup in another way.
    bed.config["ociVersion"] = json!("1.0.2");
    bed.config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "cgroup");
    bed.config["process"]["rlimits"] = json!([]);
    Some(Pair { bed, name: id("pair") })
}

#[test]
fn lines_end_alike() {
    let Some(pair) = pair("trap : TERM; while :; do sleep 1000; done") else { return };
    pair.bed.save();
    let process = json!({"user": {"uid": 3, "gid": 4}, "cwd": "/bin", "args": ["sh", "-c", "id -u; pwd; echo $A"],
        "env": ["PATH=/bin", "A=b"]});
    fs::write(pair.bed.path("process.json"), process.to_string()).expect("a file");
    for (line, same) in LINES {
        pair.check(line, *same);
    }
}

#[test]
fn programs_end_alike() {
    let Some(mut pair) = pair("true") else { return };
    for (args, same) in RUNS {
        pair.bed.config["process"]["args"] = json!(args);
        pair.bed.save();
        pair.check("run ID", *same);
    }
}
