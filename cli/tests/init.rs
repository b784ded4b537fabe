//! This binary as PID 1 of a container, in a PID namespace of the test's own.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

fn init(script: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gantry"));
    command.arg0("/dev/init").args(["--", "sh", "-c", script]);
    command
}

#[test]
fn it_ends_as_its_command_ends() {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("trap '' TERM; kill $$; exit 3", 3)] {
        assert_eq!(init(script).status().unwrap().code(), Some(code), "{script}");
    }
    for (program, code) in [("/no/such/program", 127), ("/etc", 126)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gantry"));
        let output = command.arg0("/dev/init").args(["--", program]).output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with(&format!("init: cannot run `{program}`: ")));
    }
}

#[test]
fn signals_reach_the_command_once_and_with_a_clean_mask() {
    // 40 is a real-time signal, for which there is no name.
    for signal in [nix::libc::SIGTERM, nix::libc::SIGHUP, nix::libc::SIGUSR1, 40] {
        let script = format!("trap 'echo got; exit 9' {signal}; echo ready; while :; do sleep 0.01; done");
        let mut child = init(&script).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        assert!(
            Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap().success()
        );
        assert_eq!(lines.next().unwrap().unwrap(), "got", "signal {signal}");
        assert_eq!(child.wait().unwrap().code(), Some(9));
    }
}

#[test]
fn as_pid_1_it_reaps_orphans() {
    // Ten orphans end while the command looks. One that nobody reaps stays in /proc beside PID 1 and the command.
    let script = "i=0; while [ $i -lt 10 ]; do (sleep 0.05 &); i=$((i+1)); done; n=0; set -- /proc/[0-9]*; \
                  while [ $# -gt 2 ]; do n=$((n+1)); [ $n -lt 500 ] || exit 1; sleep 0.01; set -- /proc/[0-9]*; done; \
                  [ $$ -ne 1 ] || exit 2";
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("init");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_gantry"), &link).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]).arg(&link);
    let output = command.args(["--", "sh", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
