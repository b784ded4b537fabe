//! Labels of the kernel's security modules: `process.apparmorProfile`, `process.selinuxLabel`, `linux.mountLabel`.
//!
//! A label that nothing would enforce is refused: the container would run with less isolation than its bundle says.

use super::options::Options;
use super::procfs::Procfs;
use crate::config::{Config, Process};
use crate::error::{Failure, InStep, Outcome};
use std::fs;
use std::os::fd::BorrowedFd;

/// The profile that confines nothing, which a kernel without AppArmor carries out as well.
const UNCONFINED: &str = "unconfined";

fn given(label: Option<&str>) -> Option<&str> {
    label.filter(|label| !label.is_empty())
}

/// The security modules of a kernel that matter here.
#[derive(Debug, Clone, Copy)]
struct Modules {
    selinux: bool,
    apparmor: bool,
}

impl Modules {
    /// Those of this kernel. The file system of SELinux is registered by the module itself, wherever it is mounted.
    fn of_this_kernel() -> Self {
        let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let apparmor = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
        Self {
            selinux: filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("selinuxfs")),
            apparmor: apparmor.trim() == "Y",
        }
    }

    fn check_process(self, process: &Process, at: &str) -> Outcome<()> {
        if let Some(label) = given(process.selinux_label.as_deref())
            && !self.selinux
        {
            return Err(absent(&format!("{at}.selinuxLabel"), label, "SELinux"));
        }
        match given(process.apparmor_profile.as_deref()) {
            Some(profile) if profile != UNCONFINED && !self.apparmor => {
                Err(absent(&format!("{at}.apparmorProfile"), profile, "AppArmor"))
            }
            _ => Ok(()),
        }
    }

    fn check(self, config: &Config) -> Outcome<()> {
        if let Some(process) = &config.process {
            self.check_process(process, "process")?;
        }
        match given(config.linux.mount_label.as_deref()) {
            Some(label) if !self.selinux => Err(absent("linux.mountLabel", label, "SELinux")),
            _ => Ok(()),
        }
    }
}

fn absent(path: &str, label: &str, module: &str) -> Failure {
    Failure::new(format!(
        "config.json: $.{path}: `{label}` would not be enforced, {module} is not enabled on this host"
    ))
    .hint(format!("enable {module} in the kernel (`lsm=` on its command line), or remove `{path}` from config.json"))
}

fn has_label(process: &Process) -> bool {
    given(process.selinux_label.as_deref()).is_some() || given(process.apparmor_profile.as_deref()).is_some()
}

/// Whether this kernel can enforce the labels of a bundle.
///
/// # Errors
/// It cannot; the key is named.
pub fn check_host(config: &Config) -> Outcome<()> {
    let labelled = config.process.as_ref().is_some_and(has_label);
    if labelled || given(config.linux.mount_label.as_deref()).is_some() {
        Modules::of_this_kernel().check(config)
    } else {
        Ok(())
    }
}

/// The same for a process of `exec`.
///
/// # Errors
/// As [`check_host`].
pub fn check_host_process(process: &Process) -> Outcome<()> {
    if has_label(process) { Modules::of_this_kernel().check_process(process, "process") } else { Ok(()) }
}

/// Ask for the labels of the program that this process becomes.
///
/// # Errors
/// The kernel does not know the profile or context, or refuses the change.
pub fn apply(process: &Process) -> Outcome<()> {
    let selinux = given(process.selinux_label.as_deref());
    let apparmor = given(process.apparmor_profile.as_deref());
    if selinux.is_none() && apparmor.is_none() {
        return Ok(());
    }
    let procfs = Procfs::new()?;
    // `/proc/thread-self`, without the link: attributes belong to a thread, and this process has one.
    let process = rustix::process::getpid().as_raw_nonzero();
    let attributes = format!("{process}/task/{}/attr", rustix::thread::gettid().as_raw_nonzero());
    if let Some(label) = selinux {
        procfs
            .write(&format!("{attributes}/exec"), label)
            .or_hint("the policy must know the context and allow the runtime to change to it; see `ausearch -m avc`")
            .in_step("SELinux")?;
        // For the session keyring, which is about to be made.
        procfs.write(&format!("{attributes}/keycreate"), label).in_step("SELinux")?;
    }
    if let Some(profile) = apparmor {
        // Beside other modules, AppArmor has a directory of its own.
        let own = format!("{attributes}/apparmor/exec");
        let file = if procfs.has(&own)? { own } else { format!("{attributes}/exec") };
        match procfs.write(&file, &format!("exec {profile}")) {
            // No AppArmor: checked before, so this confines nothing.
            Err(_) if profile == UNCONFINED && !Modules::of_this_kernel().apparmor => {}
            result => result.or_hint("the profile must be loaded on the host; see `aa-status`").in_step("AppArmor")?,
        }
    }
    Ok(())
}

/// Add the label of mounts to the options of a new filesystem, unless the bundle gives one itself.
///
/// Not for those that the policy labels by its own rules, file by file.
pub fn add_mount_label(config: &Config, kind: &str, options: &mut Options) {
    let Some(label) = given(config.linux.mount_label.as_deref()) else {
        return;
    };
    let by_policy = matches!(kind, "proc" | "sysfs" | "mqueue" | "cgroup" | "cgroup2");
    let already = options.data.iter().any(|(key, _)| key.ends_with("context"));
    if !by_policy && !already {
        options.data.push(("context".to_owned(), Some(label.to_owned())));
    }
}

/// Give one file the label of mounts, such as the terminal or the root of a message queue filesystem.
///
/// # Errors
/// The kernel refuses the context.
pub fn label_file(config: &Config, file: BorrowedFd<'_>) -> Outcome<()> {
    use crate::error::Because;
    let Some(label) = given(config.linux.mount_label.as_deref()) else {
        return Ok(());
    };
    rustix::fs::fsetxattr(file, "security.selinux", label.as_bytes(), rustix::fs::XattrFlags::empty())
        .because(|| format!("cannot label a file with `linux.mountLabel` `{label}`"))
        .in_step("SELinux")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_nothing_enforces_is_refused() {
        let none = Modules { selinux: false, apparmor: false };
        let all = Modules { selinux: true, apparmor: true };
        for (why, selinux, apparmor, mount, modules, want) in [
            ("nothing asked", "", "", "", none, ""),
            ("all there", "a:b:c:s0", "docker-default", "x", all, ""),
            (
                "no SELinux",
                "a:b:c:s0",
                "",
                "",
                none,
                "config.json: $.process.selinuxLabel: `a:b:c:s0` would not be enforced, SELinux is not enabled on this host",
            ),
            (
                "no SELinux for mounts",
                "",
                "",
                "a:b:c:s0",
                Modules { selinux: false, apparmor: true },
                "config.json: $.linux.mountLabel: `a:b:c:s0` would not be enforced, SELinux is not enabled on this host",
            ),
            (
                "no AppArmor",
                "",
                "docker-default",
                "",
                Modules { selinux: true, apparmor: false },
                "config.json: $.process.apparmorProfile: `docker-default` would not be enforced, AppArmor is not enabled \
                 on this host",
            ),
            ("nothing to enforce", "", "unconfined", "", none, ""),
        ] {
            let some = |text: &str| Some(text.to_owned());
            let mut config = crate::config::example::config(false);
            let process = config.process.as_mut().expect("a process");
            (process.selinux_label, process.apparmor_profile) = (some(selinux), some(apparmor));
            config.linux.mount_label = some(mount);
            let got = modules.check(&config).err().map_or(String::new(), |failure| failure.to_string());
            assert_eq!(got, want, "{why}");
        }
    }

    #[test]
    fn new_filesystems_are_labelled_where_the_policy_does_not() {
        let mut config = crate::config::example::config(false);
        for (label, kind, given, want) in [
            ("", "tmpfs", "", ""),
            ("a:b:c:s0:c1,c2", "tmpfs", "", "context=a:b:c:s0:c1,c2"),
            ("a:b:c:s0", "devpts", "", "context=a:b:c:s0"),
            ("a:b:c:s0", "tmpfs", "context", "context=own"),
            ("a:b:c:s0", "tmpfs", "rootcontext", "rootcontext=own"),
            ("a:b:c:s0", "proc", "", ""),
            ("a:b:c:s0", "cgroup2", "", ""),
        ] {
            config.linux.mount_label = Some(label.to_owned());
            let mut options = Options::default();
            if !given.is_empty() {
                options.data.push((given.to_owned(), Some("own".to_owned())));
            }
            add_mount_label(&config, kind, &mut options);
            let text = options.data.iter().map(|(key, value)| format!("{key}={}", value.as_deref().unwrap_or("")));
            assert_eq!(text.collect::<Vec<_>>().join(" "), want, "{label} {kind} {given}");
        }
    }
}
