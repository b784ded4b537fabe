//! A host of its own for one client and one runtime: made by `sandbox.sh`, filled and read here.

use super::{Did, Step, plain};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Which runtime a sandbox has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    Runc,
    /// Ours; Debian's runc and crun cannot be executed there.
    Gantry,
}

impl Host {
    fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Gantry => "gantry",
        }
    }
}

/// A sandbox at work. Dropping it ends everything in it and removes what it left.
pub(crate) struct Sandbox {
    keeper: Child,
    work: PathBuf,
    steps: usize,
}

/// The longest that one client may take.
const DEADLINE: Duration = Duration::from_secs(540);

/// Whether the client is there, and may be run; in CI it has to be.
pub(crate) fn is_ready(programs: &[(&str, &str)]) -> bool {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let lacks = |name: &str| !folders.iter().any(|folder| Path::new(folder).join(name).exists());
    let common = [("busybox", "busybox-static"), ("runc", "runc"), ("script", "bsdutils"), ("unshare", "util-linux")];
    let mut packages: Vec<&str> =
        programs.iter().chain(&common).filter(|(name, _)| lacks(name)).map(|(_, package)| *package).collect();
    packages.dedup();
    let why = if !packages.is_empty() {
        let packages = packages.join(" ");
        format!("Debian's {packages} missing; hint: apt-get install --no-install-recommends {packages}")
    } else if fs::metadata("/proc/self").map_or(1, |meta| meta.uid()) != 0 {
        "not root".to_owned()
    } else {
        return true;
    };
    let in_ci = std::env::var_os("CI").is_some_and(|value| value != "false");
    assert!(!in_ci, "NOT TESTED: {why}");
    eprintln!("NOT TESTED: {why}");
    false
}

impl Sandbox {
    /// Starts on the steps.
    pub(crate) fn start(client: &str, host: Host, steps: &[Step<'_>]) -> Self {
        let name = format!("gantry-clients-{}-{client}-{}", std::process::id(), host.name());
        // Not in a directory that a sandbox hides.
        let hidden = ["/run", "/opt", "/dev", "/var/tmp", "/var/lib", "/etc", "/sys"];
        let given = std::env::temp_dir();
        let folder = if hidden.iter().any(|hidden| given.starts_with(hidden)) { Path::new("/tmp") } else { &given };
        let work = folder.join(&name);
        fs::create_dir_all(work.join("steps")).expect("a work directory");
        let write = |path: &str, text: &str| fs::write(work.join(path), text).expect("a file of the sandbox");
        write("sandbox.sh", include_str!("sandbox.sh"));
        write("prelude.sh", include_str!("prelude.sh"));
        write("image.sh", include_str!("image.sh"));
        write("steps/000", &format!("{}\n. $WORK/prelude.sh\n. $WORK/image.sh", use_runtime(host, &work)));
        for (number, step) in steps.iter().enumerate() {
            write(&format!("steps/{:03}", number + 1), step.does);
        }
        let keeper = Command::new("setsid") // a test runner that ends this test's process group does not end the keeper
            .args(["bash", "sandbox.sh", "keeper", &name])
            .arg(&work)
            .current_dir(&work)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("util-linux and bash are installed");
        Self { keeper, work, steps: steps.len() }
    }

    /// Waits for the last step and answers what they all did.
    pub(crate) fn finish(self) -> Vec<Did> {
        let begun = Instant::now();
        while !self.work.join("done").exists() {
            if begun.elapsed() > DEADLINE {
                let last =
                    (0..=self.steps).rev().find(|number| self.work.join(format!("steps/{number:03}.out")).exists());
                panic!("not done after {DEADLINE:?}; at step {last:?}; {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for number in [0, 1] {
            let did = self.did(number).unwrap_or_else(|| panic!("no sandbox: {}", self.log()));
            assert_eq!(did.code, 0, "set-up of the sandbox: {}{}{}", did.out, did.err, self.log());
        }
        let did = |number| self.did(number).unwrap_or_else(|| panic!("step {number} was not run: {}", self.log()));
        (1..=self.steps).map(did).collect()
    }

    fn did(&self, number: usize) -> Option<Did> {
        let read = |end: &str| fs::read(self.work.join(format!("steps/{number:03}.{end}"))).ok();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let code = text(read("code")?).trim().to_owned();
        let (code, took) = code.split_once(' ')?;
        let [out, err] = [read("out")?, read("err")?].map(|bytes| plain(&text(bytes)));
        Some(Did { code: code.parse().ok()?, out, err, took: took.to_owned() })
    }

    /// Name of its cgroups.
    pub(crate) fn name(&self) -> &str {
        self.work.file_name().and_then(|name| name.to_str()).expect("a name of ours")
    }

    /// Where its files are.
    pub(crate) fn work(&self) -> &Path {
        &self.work
    }

    /// What went wrong outside of the steps.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.work.join("log")).unwrap_or_default()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take()); // it ends the sandbox, removes all, and ends itself
        let _ = self.keeper.wait();
    }
}

/// Lines that make the runtime the only one of the sandbox.
fn use_runtime(host: Host, work: &Path) -> String {
    if host == Host::Runc {
        return "echo OCI=/usr/sbin/runc >/run/sandbox/env".into();
    }
    let refuse = work.join("no-runtime");
    fs::write(&refuse, "#!/bin/sh\necho \"this is not the runtime under test: $0 $*\" >&2\nexit 99\n").expect("a file");
    fs::set_permissions(&refuse, fs::Permissions::from_mode(0o755)).expect("its mode");
    fs::copy(env!("CARGO_BIN_EXE_gantry-runtime"), work.join("gantry-runtime")).expect("a copy of the runtime");
    "mkdir /opt/bin; cp $WORK/gantry-runtime /opt/bin/ || exit 1
    echo OCI=/opt/bin/gantry-runtime >/run/sandbox/env
    for other in /usr/sbin/runc /usr/bin/crun; do
        [ ! -e $other ] || mount --bind $WORK/no-runtime $other || exit 1
    done"
        .to_owned()
}
