//! `cargo xtask test`: everything that can tell whether the repository is good, and one honest line at the end.

use crate::binaries::{self, Profile};
use crate::error::{Error, Result};
use crate::{host, process, show};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Programs that tests run, and the packages that hold them.
const NEEDED: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("git", "git"),
    ("runc", "runc"),
    ("skopeo", "skopeo"),
    ("strace", "strace"),
];
/// Their packages enable services, which a person's machine is spared: there the tests with a real registry and with
/// real clients of the runtime say that they are left out, unless somebody has installed these.
const NEEDED_IN_CI: &[(&str, &str)] = &[
    ("docker-registry", "docker-registry"),
    ("podman", "podman"),
    ("catatonit", "catatonit"), // podman run --init, podman pod
    ("newuidmap", "uidmap"),    // podman run --userns
    ("dockerd", "docker.io"),
    ("iptables", "iptables"), // networks of both
    ("containerd", "containerd"),
    ("mkfs.xfs", "xfsprogs"), // a disk whose power is cut, in the tests of the image store
    ("umoci", "umoci"),       // images that go through other tools and come back
    ("buildah", "buildah"),
];

/// Tests as a runner counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Who counts the tests. Each says its sums in its own way, and what a failed test printed may look like the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    /// One line per test program.
    CargoTest,
    /// One line at the end.
    Nextest,
}

impl Count {
    /// Adds what a line of a runner says in sum; any other line adds nothing.
    fn add(&mut self, runner: Runner, line: &str) {
        let line = plain(line);
        let line = line.trim();
        match runner {
            // `test result: ok. 26 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s`
            Runner::CargoTest => {
                let Some(rest) = line.strip_prefix("test result: ") else { return };
                for part in rest.split(['.', ';']) {
                    self.take(part, &[("passed", 1), ("failed", 2), ("ignored", 3)]);
                }
            }
            // `Summary [ 1.2s] 9 tests run: 6 passed (1 slow), 2 failed, 1 timed out, 3 skipped`
            Runner::Nextest => {
                let Some((_, rest)) = line.split_once(" run: ").filter(|_| line.starts_with("Summary [")) else {
                    return;
                };
                *self = Self::default(); // the last one is the runner's own
                for part in rest.split(',') {
                    self.take(part, &[("passed", 1), ("failed", 2), ("timed", 2), ("exec", 2), ("skipped", 3)]);
                }
            }
        }
    }

    /// `6 passed (1 slow)` is about the first two words.
    fn take(&mut self, part: &str, kinds: &[(&str, u8)]) {
        let mut words = part.split_whitespace();
        let Some(count) = words.next().and_then(|word| word.parse::<u64>().ok()) else { return };
        let kind = words.next().unwrap_or_default();
        match kinds.iter().find(|(name, _)| *name == kind).map(|(_, place)| *place) {
            Some(1) => self.passed += count,
            Some(2) => self.failed += count,
            Some(_) => self.skipped += count,
            None => {}
        }
    }

    fn line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// A line without terminal colours.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        out.push_str(before);
        rest = after.find(|c: char| c.is_ascii_alphabetic()).map_or("", |end| &after[end + 1..]);
    }
    out + rest
}

/// What one step came to.
#[derive(Debug)]
struct Outcome {
    title: &'static str,
    took: Duration,
    count: Count,
    error: Option<String>,
}

/// `cargo xtask test [--quick]`.
pub(crate) fn task(args: &[String]) -> Result<()> {
    let mut quick = false;
    for arg in args {
        match arg.as_str() {
            "--quick" => quick = true,
            other => return Err(Error::Usage(format!("test does not know `{other}`"))),
        }
    }
    if !quick {
        host::check_root("test")?;
    }
    show::step("Install what tests need", || {
        let in_ci = std::env::var_os("CI").is_some_and(|value| value != "false");
        let needed = match (quick, in_ci) {
            (true, _) => NEEDED[..1].to_vec(), // the linker
            (false, false) => NEEDED.to_vec(),
            (false, true) => [NEEDED, NEEDED_IN_CI].concat(),
        };
        let installed = host::install(&needed)?;
        Ok(if installed.is_empty() { "nothing is missing".into() } else { installed.join(" ") })
    })?;
    let outcomes = steps(quick);
    println!("\n{}", summary(&outcomes));
    let mut count = Count::default();
    for outcome in &outcomes {
        count.passed += outcome.count.passed;
        count.failed += outcome.count.failed;
        count.skipped += outcome.count.skipped;
    }
    println!("{}", count.line());
    let broken: Vec<&str> = outcomes.iter().filter(|one| one.error.is_some()).map(|one| one.title).collect();
    if broken.is_empty() && count.failed == 0 {
        return Ok(());
    }
    Err(Error::broken("every step to succeed", format!("these did not: {}", broken.join(", "))))
}

fn steps(quick: bool) -> Vec<Outcome> {
    let mut outcomes = vec![
        run("format", || just(binaries::cargo().args(["fmt", "--all", "--", "--check", "-l"]))),
        run("lints", || {
            let mut clippy = binaries::cargo();
            just(clippy.args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--quiet",
                "--keep-going",
                "--",
                "-D",
                "warnings",
            ]))
        }),
    ];
    if quick {
        outcomes.push(run("unit tests", || {
            let mut command = binaries::cargo();
            command.args(["test", "--workspace", "--lib", "--bins", "--locked", "--no-fail-fast"]);
            counted(&mut command, Runner::CargoTest, &mut std::io::stdout())
        }));
        return outcomes;
    }
    let mut built = None;
    outcomes.push(run("programs", || {
        built = Some(binaries::build(Profile::Debug)?);
        Ok(Count::default())
    }));
    let Some(built) = built else { return outcomes };
    let with_programs = |mut command: Command| {
        command.env("GANTRY_BIN", &built.gantry).env("GANTRY_RUNTIME_BIN", &built.runtime);
        command
    };
    let nextest = binaries::cargo().args(["nextest", "--version"]).output().is_ok_and(|output| output.status.success());
    outcomes.push(run(if nextest { "tests (nextest)" } else { "tests (cargo test)" }, || {
        let mut command = with_programs(binaries::cargo());
        let runner = if nextest {
            command.args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
            Runner::Nextest
        } else {
            command.args(["test", "--workspace", "--all-targets", "--locked", "--no-fail-fast"]);
            Runner::CargoTest
        };
        counted(&mut command, runner, &mut std::io::stdout())
    }));
    outcomes.push(run("examples in documentation", || {
        let mut command = with_programs(binaries::cargo());
        command.args(["test", "--workspace", "--doc", "--locked", "--no-fail-fast"]);
        counted(&mut command, Runner::CargoTest, &mut std::io::stdout())
    }));
    outcomes
}

/// One step; the next ones are done whatever comes of it.
fn run(title: &'static str, work: impl FnOnce() -> Result<Count, Failed>) -> Outcome {
    println!("\n▸ {title}");
    let begun = Instant::now();
    let (count, error) = match work() {
        Ok(count) => (count, None),
        Err(Failed { count, error }) => (count, Some(error.chain())),
    };
    let took = begun.elapsed();
    match &error {
        None => println!("  done in {}", show::time(took)),
        Some(error) => println!("  failed after {}: {error}", show::time(took)),
    }
    Outcome { title, took, count, error }
}

/// A step that failed, with the tests that it counted until then.
#[derive(Debug)]
struct Failed {
    count: Count,
    error: Error,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { count: Count::default(), error }
    }
}

/// A command that counts no tests.
fn just(command: &mut Command) -> Result<Count, Failed> {
    process::run(command)?;
    Ok(Count::default())
}

/// A test runner: what it prints is passed on, and its own sums are added up.
fn counted(command: &mut Command, runner: Runner, out: &mut impl Write) -> Result<Count, Failed> {
    let (reader, writer) = std::io::pipe().map_err(Error::file("make", std::path::Path::new("a pipe")))?;
    let again = writer.try_clone().map_err(Error::file("make", std::path::Path::new("a pipe")))?;
    command.stdin(Stdio::null()).stdout(again).stderr(writer);
    let spawned = command.spawn();
    let spawn_error = |source| Error::Spawn { program: process::shown(command), source };
    let mut child = spawned.map_err(spawn_error)?;
    // The command holds our ends of the pipe: without them it ends when the runner does.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut count = Count::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.map_err(Error::file("read", std::path::Path::new("the runner's output")))?;
        let _ = out.write_all(&line).and_then(|()| out.write_all(b"\n")); // nobody reads any more: still counted
        count.add(runner, &String::from_utf8_lossy(&line));
    }
    let status = child.wait().map_err(|source| Error::Spawn { program: process::shown(command), source })?;
    if status.success() && count.failed == 0 {
        return Ok(count);
    }
    let reason = if count.failed > 0 { format!("{} tests failed", count.failed) } else { status.to_string() };
    Err(Failed { count, error: Error::Failed { command: process::shown(command), reason } })
}

fn summary(outcomes: &[Outcome]) -> String {
    let head = ["STEP", "TIME", "RESULT"].map(str::to_owned).to_vec();
    let rows = outcomes.iter().map(|outcome| {
        let ran = outcome.count != Count::default();
        let result = match (&outcome.error, ran) {
            (Some(_), true) => format!("FAILED: {}", outcome.count.line()),
            (Some(_), false) => "FAILED".to_owned(),
            (None, true) => outcome.count.line(),
            (None, false) => "ok".to_owned(),
        };
        vec![outcome.title.to_owned(), show::time(outcome.took), result]
    });
    show::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runners_own_sums_are_added() {
        for (runner, lines, sum) in [
            (
                Runner::CargoTest,
                vec![
                    "test result: ok. 26 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
                    "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
                    "test deep::passed ... ok",
                    "     Summary [   0.5s] 9 tests run: 6 passed, 2 failed, 4 skipped",
                    "9 passed; but not a sum",
                    "",
                ],
                "29 passed, 2 failed, 1 skipped",
            ),
            (
                Runner::Nextest,
                vec![
                    "     Summary [   0.1s] 1 test run: 1 passed, 0 skipped",
                    "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured",
                    "     Summary [   0.5s] 9 tests run: 6 passed (1 slow, 1 leaky), 2 failed, 1 timed out, 4 skipped",
                    "Summary of changes: 7 passed",
                ],
                "6 passed, 3 failed, 4 skipped",
            ),
            (
                Runner::Nextest,
                vec![
                    "\x1b[32;1m     Summary\x1b[0m [   0.1s] \x1b[1m3\x1b[0m tests run: \x1b[1m2\x1b[0m \x1b[32;1mpassed\x1b[0m, \x1b[1m1\x1b[0m exec failed, 0 skipped",
                ],
                "2 passed, 1 failed, 0 skipped",
            ),
        ] {
            let mut count = Count::default();
            lines.iter().for_each(|line| count.add(runner, line));
            assert_eq!(count.line(), sum, "{lines:?}");
        }
    }

    #[test]
    fn a_runner_that_fails_is_counted_and_an_error() {
        // Not printed: whoever runs this test would count it.
        let script =
            |text: &str| counted(Command::new("sh").args(["-c", text]), Runner::CargoTest, &mut std::io::sink());
        let good = script("echo 'test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured'");
        assert_eq!(good.unwrap(), Count { passed: 2, failed: 0, skipped: 1 });
        let bad = script("echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored' >&2; exit 101").unwrap_err();
        assert_eq!(bad.count, Count { passed: 2, failed: 1, skipped: 0 });
        let broken = script("echo 'error: could not compile'; exit 101").unwrap_err();
        assert_eq!((broken.count, broken.error.to_string().contains("101")), (Count::default(), true));
        let liar = script("echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored'; exit 0");
        assert!(liar.is_err(), "a failed test is a failure whatever the exit code says");
    }

    #[test]
    fn the_summary_shows_what_failed() {
        let step = |title, count, error: Option<&str>| Outcome {
            title,
            took: Duration::from_secs(2),
            count,
            error: error.map(str::to_owned),
        };
        let text = summary(&[
            step("format", Count::default(), None),
            step("lints", Count::default(), Some("x")),
            step("tests", Count { passed: 1, failed: 2, skipped: 3 }, Some("x")),
        ]);
        assert_eq!(
            text,
            "STEP    TIME    RESULT\nformat  2.00 s  ok\nlints   2.00 s  FAILED\n\
             tests   2.00 s  FAILED: 1 passed, 2 failed, 3 skipped"
        );
    }
}
