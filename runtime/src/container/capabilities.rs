//! The five capability sets, exactly as the bundle says.

use crate::config::Capabilities;
use crate::error::{Because, Outcome};
use crate::sys::process;

/// Names by number, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The five sets, one bit per capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    /// What can ever be gained.
    pub bounding: u64,
    /// What is checked.
    pub effective: u64,
    /// What survives `execve` of a file with capabilities.
    pub inheritable: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What survives `execve` of an ordinary file.
    pub ambient: u64,
}

/// The bit of a name such as `CAP_CHOWN`; upper and lower case are the same, the prefix may be missing.
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == short).map(|number| 1 << number)
}

/// Every name.
pub fn all() -> impl Iterator<Item = String> {
    NAMES.iter().map(|name| format!("CAP_{name}"))
}

/// Names of the bits of a set.
fn names(set: u64) -> String {
    let named = NAMES.iter().enumerate().filter(|(number, _)| set >> number & 1 == 1);
    named.map(|(_, name)| format!("CAP_{name}")).collect::<Vec<_>>().join(", ")
}

/// What becomes of the capabilities a bundle asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// What can be given.
    pub sets: Sets,
    /// What cannot, and why. The specification wants a warning and no failure: fewer privileges isolate no less.
    pub warnings: Vec<String>,
}

/// The sets to apply, out of what the configuration asks for.
///
/// - `ours`: what the runtime itself may hand on.
pub fn grant(config: &Capabilities, ours: u64) -> Granted {
    let mut warnings = Vec::new();
    let mut read = |list: &[String], key: &str| -> u64 {
        list.iter().fold(0, |set, name| match bit(name) {
            Some(bit) => set | bit,
            None => {
                warnings.push(format!("process.capabilities.{key}: `{name}` is not a capability of Linux"));
                set
            }
        })
    };
    let wanted = Sets {
        bounding: read(&config.bounding, "bounding"),
        effective: read(&config.effective, "effective"),
        inheritable: read(&config.inheritable, "inheritable"),
        permitted: read(&config.permitted, "permitted"),
        ambient: read(&config.ambient, "ambient"),
    };
    let lacking = (wanted.permitted | wanted.effective | wanted.inheritable) & !ours;
    if lacking != 0 {
        warnings.push(format!("the runtime itself does not have {}, nor will the container", names(lacking)));
    }
    let mut sets = wanted;
    sets.permitted &= ours;
    sets.inheritable &= ours;
    sets.effective &= sets.permitted;
    sets.ambient &= sets.permitted & sets.inheritable;
    for (wanted, given, key, needs) in [
        (wanted.effective & ours, sets.effective, "effective", "permitted"),
        (wanted.ambient & ours, sets.ambient, "ambient", "permitted and inheritable"),
    ] {
        if wanted != given {
            let missing = names(wanted & !given);
            warnings.push(format!("process.capabilities.{key}: {missing} would have to be {needs} as well"));
        }
    }
    Granted { sets, warnings }
}

impl Sets {
    /// Take everything else out of the bounding set.
    ///
    /// # Errors
    /// Without `CAP_SETPCAP`.
    pub fn limit_bounding(&self) -> Outcome<()> {
        for number in 0..64 {
            if self.bounding >> number & 1 == 1 {
                continue;
            }
            match process::bounding_drop(number) {
                Ok(()) => {}
                // Beyond the last capability of this kernel.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                Err(error) => {
                    return Err(error).because(|| format!("cannot drop capability {number}"));
                }
            }
        }
        Ok(())
    }

    /// Set the other four, after the user ID.
    ///
    /// # Errors
    /// A set holds what this process may not have; [`grant`] makes sure that none does.
    pub fn apply(&self) -> Outcome<()> {
        process::capset(self.effective, self.permitted, self.inheritable)
            .because(|| "cannot set the capabilities".to_owned())?;
        // The kernel takes out of the ambient set what is no longer permitted and inheritable.
        if self.permitted & self.inheritable != 0 {
            process::ambient_clear().because(|| "cannot clear the ambient capabilities".to_owned())?;
        }
        for number in (0..64).filter(|number| self.ambient >> number & 1 == 1) {
            process::ambient_raise(number).because(|| format!("cannot make {} ambient", names(1 << number)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits() {
        for (name, want) in [
            ("CAP_CHOWN", Some(1)),
            ("cap_kill", Some(1 << 5)),
            ("SYS_ADMIN", Some(1 << 21)),
            ("CAP_CHECKPOINT_RESTORE", Some(1 << 40)),
            ("CAP_", None),
            ("CAP_ALL", None),
            ("", None),
        ] {
            assert_eq!(bit(name), want, "{name:?}");
        }
        assert_eq!(names(1 << 21 | 1), "CAP_CHOWN, CAP_SYS_ADMIN");
    }

    #[test]
    fn what_cannot_be_granted_is_left_out_and_said() {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let config = Capabilities {
            bounding: list(&["CAP_KILL", "CAP_MOON"]),
            permitted: list(&["CAP_KILL", "CAP_SYS_RESOURCE"]),
            effective: list(&["CAP_KILL", "CAP_SYS_RESOURCE", "CAP_CHOWN"]),
            inheritable: Vec::new(),
            ambient: list(&["CAP_KILL"]),
        };
        let kill = 1 << 5;
        let Granted { sets, warnings } = grant(&config, !(1 << 24));
        assert_eq!(sets, Sets { bounding: kill, effective: kill, permitted: kill, inheritable: 0, ambient: 0 });
        assert_eq!(
            warnings,
            [
                "process.capabilities.bounding: `CAP_MOON` is not a capability of Linux",
                "the runtime itself does not have CAP_SYS_RESOURCE, nor will the container",
                "process.capabilities.effective: CAP_CHOWN would have to be permitted as well",
                "process.capabilities.ambient: CAP_KILL would have to be permitted and inheritable as well",
            ]
        );
        let plain = Capabilities { permitted: list(&["CAP_KILL"]), ..Capabilities::default() };
        assert_eq!(grant(&plain, u64::MAX).warnings, Vec::<String>::new());
    }
}
