//! The five capability sets, exactly as the bundle says.

use crate::config::check::ConfigError;
use crate::config::Capabilities;
use crate::error::{Because, Failure, Outcome};
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

/// Names of the bits of a set.
fn names(set: u64) -> String {
    let named = NAMES.iter().enumerate().filter(|(number, _)| set >> number & 1 == 1);
    named.map(|(_, name)| format!("CAP_{name}")).collect::<Vec<_>>().join(", ")
}

impl Sets {
    /// From the configuration.
    ///
    /// # Errors
    /// A name that is no capability.
    pub fn from_config(config: &Capabilities, at: &str) -> Result<Self, ConfigError> {
        let read = |list: &[String], key: &str| -> Result<u64, ConfigError> {
            list.iter().enumerate().try_fold(0, |set, (index, name)| match bit(name) {
                Some(bit) => Ok(set | bit),
                None => Err(ConfigError::Invalid {
                    path: format!("{at}.capabilities.{key}[{index}]"),
                    problem: format!("`{name}` is not a capability"),
                }),
            })
        };
        Ok(Self {
            bounding: read(&config.bounding, "bounding")?,
            effective: read(&config.effective, "effective")?,
            inheritable: read(&config.inheritable, "inheritable")?,
            permitted: read(&config.permitted, "permitted")?,
            ambient: read(&config.ambient, "ambient")?,
        })
    }

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
                Err(error) => return Err(error).because(|| format!("cannot drop capability {number}")),
            }
        }
        Ok(())
    }

    /// Set the other four, after the user ID.
    ///
    /// # Errors
    /// The runtime itself lacks one that is asked for, or the sets contradict each other.
    pub fn apply(&self) -> Outcome<()> {
        let [_, ours, _] = process::capget().because(|| "cannot read the capabilities".to_owned())?;
        let lacking = (self.permitted | self.effective | self.inheritable) & !ours;
        if lacking != 0 {
            return Err(Failure::new(format!("the runtime itself does not have {}", names(lacking)))
                .hint("remove them from `process.capabilities`, or run the runtime with more privilege"));
        }
        process::capset(self.effective, self.permitted, self.inheritable)
            .because(|| "cannot set the capabilities".to_owned())?;
        process::ambient_clear().because(|| "cannot clear the ambient capabilities".to_owned())?;
        for number in (0..64).filter(|number| self.ambient >> number & 1 == 1) {
            process::ambient_raise(number)
                .because(|| format!("cannot make {} ambient", names(1 << number)))
                .map_err(|failure| failure.hint("it must also be permitted and inheritable"))?;
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
}
