//! What the host must be, and what is installed on it when it is missing.

use crate::error::{Error, Result};
use crate::process;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| effective_user(&status) == Some(0))
}

/// Field two of `Uid:` is the effective user.
fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Refuses to go on for anyone but root.
pub(crate) fn check_root(task: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let hint = format!("sudo --preserve-env=PATH,HOME cargo xtask {task}");
    Err(Error::Host { what: format!("`{task}` makes namespaces, mounts and cgroups, which takes root"), hint })
}

/// Refuses to go on where there is no apt.
pub(crate) fn check_debian() -> Result<()> {
    if ["apt-get", "apt-cache", "dpkg", "dpkg-deb"].iter().all(|program| process::find(program).is_some()) {
        return Ok(());
    }
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("this system");
    let what = format!("{} has no apt, which images and test tools come from", name.trim_matches('"'));
    Err(Error::Host { what, hint: "use Debian 12 or a current Ubuntu, for example in a virtual machine".into() })
}

/// Fetches the package lists.
pub(crate) fn update_package_lists() -> Result<()> {
    check_root("images")?;
    eprintln!("apt-get update");
    process::stdout(Command::new("apt-get").args(["-qq", "update"]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    Ok(())
}

/// Installs the packages whose programs are missing (pairs of program and package), and answers what it installed.
pub(crate) fn install(wanted: &[(&str, &str)]) -> Result<Vec<String>> {
    let lacks = |program: &str| process::find(program).is_none();
    let mut missing: Vec<String> =
        wanted.iter().filter(|(program, _)| lacks(program)).map(|(_, package)| (*package).to_owned()).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(missing);
    }
    check_debian()?;
    check_root("test")?;
    println!("  installing with apt: {}", missing.join(" "));
    let policy = Policy::deny()?;
    let install = || {
        let mut command = policy.command("apt-get");
        command.args(["-qq", "-y", "--no-install-recommends", "install"]).args(&missing);
        process::stdout(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if install().is_err() {
        update_package_lists()?; // a fresh host has none
        install()?;
    }
    Ok(missing)
}

/// What packages ask before they start a service (invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// No package starts a service: for the commands made here, and only for them, the host's policy is to refuse.
///
/// A script lies over the policy in a mount namespace of the command's own. That takes a file to lie on; where there
/// was none, an empty one that cannot be executed, which means nothing to anyone, is there in the meantime.
struct Policy {
    made: bool,
}

impl Policy {
    fn deny() -> Result<Self> {
        let path = Path::new(POLICY);
        match OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
            Ok(_) => Ok(Self { made: true }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Self { made: false }),
            Err(error) => Err(Error::file("make", path)(error)),
        }
    }

    fn command(&self, program: &str) -> Command {
        let script = "deny=$(mktemp) && printf '#!/bin/sh\\nexit 101\\n' >\"$deny\" && chmod 755 \"$deny\" && \
                      mount --bind \"$deny\" \"$0\" && rm \"$deny\" && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, POLICY, program]);
        command
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.made {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_is_the_second_number() {
        assert_eq!(effective_user("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t0\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_user("Uid:\t0\t33\t0\t0\n"), Some(33));
        assert_eq!(effective_user("Name:\tx\n"), None);
    }

    #[test]
    fn packages_start_no_service() {
        if !is_root() {
            return;
        }
        let before = std::fs::read(POLICY).ok();
        let policy = Policy::deny().unwrap();
        let status = policy.command("sh").args(["-c", "test -x \"$0\" && \"$0\"", POLICY]).status().unwrap();
        assert_eq!(status.code(), Some(101));
        drop(policy);
        assert_eq!(std::fs::read(POLICY).ok(), before, "the host's own policy is as it was");
    }

    #[test]
    fn what_is_there_is_not_installed() {
        assert!(install(&[("sh", "no-such-package")]).unwrap().is_empty());
    }
}
