//! Lines and what they become.

use super::*;

fn shown(line: &str) -> String {
    match parse(line.split_whitespace().map(OsString::from)) {
        (_, Err(error)) => format!("error: {error}"),
        (global, Ok(parsed)) => format!("{} {parsed:?}", global.root.display()),
    }
}

#[test]
fn lines() {
    for (line, wanted) in [
        (
            "--root /r create --bundle /b web",
            vec!["/r Command(Create", "id: \"web\"", "bundle: \"/b\"", "settings: None"],
        ),
        ("create web -b /b", vec!["/run/gantry-runtime Command(Create", "id: \"web\"", "bundle: \"/b\""]),
        ("create --bundle=/b --pid-file=/p web", vec!["bundle: \"/b\"", "pid_file: Some(\"/p\")"]),
        ("-root /r create -bundle /b -pid-file=/p web", vec!["/r Command", "bundle: \"/b\"", "pid_file: Some(\"/p\")"]),
        ("create web --root /r", vec!["/r Command(Create"]),
        ("run -d web --keep", vec!["detach: true, keep: true"]),
        ("run --detach=false web --keep=true", vec!["detach: false, keep: true"]),
        ("delete -f=false web", vec!["force: false"]),
        ("exec -e=A=B web env", vec!["env: [\"A\"]"]),
        ("run -detach web", vec!["detach: true"]),
        ("run -b/b web", vec!["bundle: \"/b\""]),
        ("run -db /b web", vec!["bundle: \"/b\"", "detach: true"]),
        ("kill web 9", vec!["signal: 9"]),
        ("kill --all web SIGINT", vec!["signal: 2", "all: true"]),
        ("kill web", vec!["signal: 15"]),
        ("kill web NOPE", vec!["error: unknown signal \"NOPE\""]),
        ("delete -f web", vec!["force: true"]),
        ("delete --force=maybe web", vec!["error: --force takes true or false, not `maybe`"]),
        ("exec -t -u 1:2 web ls -l --color", vec!["tty: true", "(1, Some(2))", "[\"ls\", \"-l\", \"--color\"]"]),
        ("exec web -- ls -l", vec!["args: [\"ls\", \"-l\"]"]),
        ("exec -td web ls", vec!["tty: true", "detach: true"]),
        ("exec -p /f web", vec!["process: Some(\"/f\")", "args: []"]),
        ("exec -p /f web ls", vec!["error: `exec` needs either"]),
        ("exec web", vec!["error: `exec` needs either"]),
        ("exec -u root web ls", vec!["error: -u takes UID"]),
        ("exec -u 1: web ls", vec!["error: -u takes UID"]),
        ("exec --user -1 web ls", vec!["error: --user takes UID"]),
        ("exec -u 4294967295 web ls", vec!["error: -u takes UID"]),
        ("exec -c CAP_FLY -e A=b web ls", vec!["capabilities: [\"CAP_FLY\"]", "env: [\"A\"]"]),
        ("list -f json -q", vec!["json: true, quiet: true"]),
        ("list -qf json", vec!["json: true, quiet: true"]),
        ("list -f xml", vec!["error: -f takes table or json, not `xml`"]),
        ("create", vec!["error: \"create\" requires a container id"]),
        ("create --bundle", vec!["error: --bundle needs a value"]),
        ("state a b", vec!["error: \"state\" does not take `b`"]),
        ("state --force a", vec!["error: `state` has no option `--force`"]),
        ("fly a", vec!["error: there is no command `fly`"]),
        ("--fly", vec!["error: there is no option `--fly`"]),
        ("create --supervise a", vec!["error: --supervise needs"]),
        ("create --exit-file /e a", vec!["error: options of the supervisor"]),
        ("run --supervise --container-log /l --exit-file /e a", vec!["error: `run --supervise` needs --detach"]),
        ("create --supervise --container-log /l --exit-file /e a", vec!["log_bytes_max: 10485760, log_files_max: 5"]),
        ("create a --preserve-fds x", vec!["error: --preserve-fds takes a number"]),
        ("--version", vec!["Version"]),
        ("", vec!["Help(None)"]),
        ("run --help", vec!["Help(Some(run))"]),
        ("help kill", vec!["Help(Some(kill))"]),
    ] {
        let got = shown(line);
        for want in wanted {
            assert!(got.contains(want), "{line}: {want} is not in {got}");
        }
    }
}

#[test]
fn an_error_keeps_the_log_and_the_command() {
    let (global, parsed) = parse(["--log", "/l", "--log-format", "json", "kill", "--fly"].map(OsString::from));
    assert_eq!((global.log, global.log_json), (Some(PathBuf::from("/l")), true));
    assert_eq!(parsed.expect_err("no such option").command, Some("kill"));
}

#[test]
fn every_option_is_written_in_one_way_only() {
    for entry in COMMANDS {
        let help = (entry.help)();
        let mut seen = std::collections::BTreeSet::new();
        for line in help.lines().filter(|line| line.starts_with("  --")) {
            for word in line.split_whitespace().take_while(|word| word.starts_with('-')) {
                assert!(seen.insert(word.trim_end_matches(',').to_owned()), "{}: {word} twice", entry.name);
            }
        }
    }
}
