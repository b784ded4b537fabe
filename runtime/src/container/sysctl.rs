//! `linux.sysctl`: kernel parameters of the container's namespaces, and of no other.

use super::namespaces::Kind;
use super::procfs::Procfs;
use crate::config::Config;
use crate::error::{Because, InStep, Outcome};
use crate::sys::mount;

/// Parameters of the IPC namespace that have no prefix of their own.
const IPC: &[&str] = &[
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// The file of a parameter, below `/proc/sys`. The first separator decides: after a slash, dots are part of names;
/// after a dot, slashes stand for dots in names, as in `net.ipv4.conf.eth0/100.forwarding` (`sysctl(8)`).
///
/// # Errors
/// A part that is no name.
pub fn path(name: &str) -> Result<String, String> {
    let slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let path: String = match slashes {
        true => name.to_owned(),
        false => name
            .chars()
            .map(|char| match char {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    };
    if name.contains('\0') || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("has a part that is no name".to_owned());
    }
    Ok(path)
}

/// The namespace that a parameter belongs to, by its file.
pub fn namespace(path: &str) -> Option<Kind> {
    if path.starts_with("net/") {
        Some(Kind::Network)
    } else if path.starts_with("fs/mqueue/") || IPC.contains(&path) {
        Some(Kind::Ipc)
    } else if path == "kernel/domainname" || path == "kernel/hostname" {
        Some(Kind::Uts)
    } else {
        None
    }
}

/// What is wrong with a parameter in a configuration, if anything.
///
/// # Errors
/// It would change the host, or the bundle has another key for it.
pub fn check(config: &Config, name: &str) -> Result<(), String> {
    let path = path(name)?;
    for (own, key, value) in
        [("kernel/hostname", "hostname", &config.hostname), ("kernel/domainname", "domainname", &config.domainname)]
    {
        if path == own && value.as_deref().is_some_and(|name| !name.is_empty()) {
            return Err(format!("is given beside `{key}`, which means the same"));
        }
    }
    let Some(kind) = namespace(&path) else {
        let allowed = "net.*, fs.mqueue.*, kernel.{msg*,sem,shm*}, kernel.hostname, kernel.domainname";
        return Err(format!(
            "is not a parameter of a namespace, setting it would change the host; allowed are {allowed}"
        ));
    };
    if config.namespace(kind.name()).is_none() {
        return Err(format!("needs a `{}` namespace; without it the host would change", kind.name()));
    }
    Ok(())
}

/// The namespace that a parameter belongs to, by its name.
pub fn namespace_of(name: &str) -> Option<Kind> {
    path(name).ok().and_then(|path| namespace(&path))
}

/// Set all parameters, in the container's namespaces.
///
/// # Errors
/// The kernel does not have one, or refuses the value.
pub fn apply(config: &Config) -> Outcome<()> {
    if config.linux.sysctl.is_empty() {
        return Ok(());
    }
    let procfs = Procfs::new()?;
    for (name, value) in &config.linux.sysctl {
        let path = path(name).because(|| format!("$.linux.sysctl.{name}"))?;
        // Root of a user namespace may call, but not write to the file.
        match path.as_str() {
            "kernel/hostname" => {
                mount::set_hostname(value).because(|| format!("cannot set the host name `{value}`"))?;
            }
            "kernel/domainname" => {
                mount::set_domainname(value).because(|| format!("cannot set the domain name `{value}`"))?;
            }
            _ => procfs
                .write(&format!("sys/{path}"), value)
                .or_hint("does this kernel have it, and does it take this value?")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (name, want) in [
            ("net.ipv4.ip_forward", Ok("net/ipv4/ip_forward")),
            ("net/ipv4/ip_forward", Ok("net/ipv4/ip_forward")),
            ("net/ipv4/conf/eth0.100/forwarding", Ok("net/ipv4/conf/eth0.100/forwarding")),
            ("net.ipv4.conf.eth0/100.forwarding", Ok("net/ipv4/conf/eth0.100/forwarding")),
            ("kernel.sem", Ok("kernel/sem")),
            ("x", Ok("x")),
            ("", Err(())),
            ("net..x", Err(())),
            ("net/../kernel/x", Err(())),
            ("net.//.kernel.x", Err(())),
            ("net./.x", Err(())),
            (".net", Err(())),
            ("/net", Err(())),
            ("net/", Err(())),
            ("net.a\0b", Err(())),
        ] {
            assert_eq!(path(name).map_err(|_| ()), want.map(str::to_owned), "{name:?}");
        }
    }

    #[test]
    fn namespaces() {
        for (path, want) in [
            ("net/ipv4/ip_forward", Some(Kind::Network)),
            ("network/x", None),
            ("fs/mqueue/msg_max", Some(Kind::Ipc)),
            ("fs/file-max", None),
            ("kernel/shmmni", Some(Kind::Ipc)),
            ("kernel/shmmnix", None),
            ("kernel/domainname", Some(Kind::Uts)),
            ("kernel/core_pattern", None),
            ("vm/swappiness", None),
        ] {
            assert_eq!(namespace(path), want, "{path}");
        }
    }
}
