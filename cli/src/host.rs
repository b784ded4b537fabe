//! What a daemon needs to know of the host it runs on: its name, its address for other hosts, where a server is.

use crate::error::CliError;
use gantry_api::ids::NodeName;
use gantry_api::wire::API_PORT;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// For asking the kernel which way it would send (RFC 5737, never in use); nothing is sent there.
const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The node name when none is given: the host's name without its domain.
///
/// # Errors
/// Nothing of the host's name can be a node's name.
pub fn node_name() -> Result<NodeName, CliError> {
    let hostname = nix::unistd::gethostname()
        .map_err(|error| CliError::new(format!("cannot read the host's name: {error}")).hint("give one with --name"))?;
    name_from(&hostname.to_string_lossy())
}

fn name_from(hostname: &str) -> Result<NodeName, CliError> {
    let short = hostname.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let plain: String = short.chars().map(allowed).take(63).collect();
    plain.trim_matches(['-', '_']).parse().map_err(|_| {
        CliError::new(format!("the host's name `{hostname}` cannot be a node's name")).hint("give one with --name")
    })
}

/// This host's address for other hosts when none is given: the one it would send from towards `peer`, or towards its
/// default route.
///
/// # Errors
/// There is no such way.
pub fn advertise(peer: Option<IpAddr>) -> Result<Ipv4Addr, CliError> {
    let towards = match peer {
        Some(IpAddr::V4(address)) => address,
        _ => SOMEWHERE,
    };
    let found = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((towards, 9))?;
        socket.local_addr()
    });
    match found.map(|address| address.ip()) {
        Ok(IpAddr::V4(address)) if !address.is_unspecified() => Ok(address),
        _ => Err(CliError::new("cannot tell at which address other hosts reach this one: there is no default route")
            .hint("give it with --advertise ADDRESS")),
    }
}

/// Where a server is, as a person writes it: an address or a name, maybe with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// Address and port.
    Address(SocketAddr),
    /// A name that has to be looked up, and port.
    Name(String, u16),
}

impl std::str::FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(Self::Address(SocketAddr::new(ip, API_PORT)));
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => {
                (name, port.parse().map_err(|_| format!("`{port}` is not a port: write HOST or HOST:PORT"))?)
            }
            None => (text, API_PORT),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match !name.is_empty() && name.chars().all(plain) {
            true => Ok(Self::Name(name.to_owned(), port)),
            false => Err(format!("`{name}` is not a host: write an address or a name, such as 192.0.2.10:{API_PORT}")),
        }
    }
}

/// The address of a server; names are looked up in /etc/hosts (a static binary has no name service switch).
///
/// # Errors
/// The name is not there.
pub fn resolve(server: &Server) -> Result<SocketAddr, CliError> {
    match server {
        Server::Address(address) => Ok(*address),
        Server::Name(name, port) => {
            let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
            in_hosts(&hosts, name).map(|ip| SocketAddr::new(ip, *port)).ok_or_else(|| {
                CliError::new(format!("`{name}` is not in /etc/hosts")).hint("give the server's IPv4 address")
            })
        }
    }
}

fn in_hosts(hosts: &str, name: &str) -> Option<IpAddr> {
    hosts.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    })
}

/// One `--label KEY=VALUE`.
///
/// # Errors
/// It has no key.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        None if !text.is_empty() => Ok((text.to_owned(), String::new())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// The container runtime's binary: the given one, `gantry-runtime` beside this program, or on PATH.
///
/// # Errors
/// There is none.
pub fn runtime(given: Option<&Path>) -> Result<PathBuf, CliError> {
    if let Some(file) = given {
        return std::path::absolute(file)
            .map_err(|error| CliError::new(format!("cannot find {}: {error}", file.display())));
    }
    let own = std::env::current_exe().ok().and_then(|file| Some(file.parent()?.to_owned()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = own.into_iter().chain(std::env::split_paths(&path));
    runtime_in(folders).ok_or_else(|| {
        CliError::new("there is no `gantry-runtime` beside this program or on PATH")
            .hint("put it beside `gantry`, or name it with --runtime FILE")
    })
}

fn runtime_in(folders: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let runs = |file: &PathBuf| {
        std::fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    folders.into_iter().map(|folder| folder.join("gantry-runtime")).find(runs)
}

/// Daemons make namespaces, mounts, links and cgroups.
///
/// # Errors
/// Not root.
pub fn require_root(command: &str) -> Result<(), CliError> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(CliError::new(format!("`gantry {command}` needs root")).hint(format!("sudo gantry {command} …"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_name_becomes_a_nodes_name() {
        for (hostname, want) in [
            ("worker-1", Some("worker-1")),
            ("Web01.example.org", Some("web01")),
            ("my host", Some("my-host")),
            ("-x-", Some("x")),
            ("", None),
            ("...", None),
            ("日本", None),
        ] {
            assert_eq!(name_from(hostname).ok().map(|name| name.to_string()).as_deref(), want, "{hostname}");
        }
        assert_eq!(name_from(&"a".repeat(70)).unwrap().as_str().len(), 63);
    }

    #[test]
    fn a_server_is_an_address_or_a_name() {
        let address = |text: &str| Ok(Server::Address(text.parse().unwrap()));
        for (text, want) in [
            ("192.0.2.1", address("192.0.2.1:7400")),
            ("192.0.2.1:80", address("192.0.2.1:80")),
            ("[2001:db8::1]:80", address("[2001:db8::1]:80")),
            ("[2001:db8::1]", address("[2001:db8::1]:7400")),
            ("2001:db8::1", address("[2001:db8::1]:7400")),
            ("first.example", Ok(Server::Name("first.example".to_owned(), 7400))),
            ("first:81", Ok(Server::Name("first".to_owned(), 81))),
            ("first:x", Err(())),
            ("first:99999", Err(())),
            ("", Err(())),
            (":80", Err(())),
            ("http://first", Err(())),
        ] {
            assert_eq!(text.parse::<Server>().map_err(|_| ()), want, "{text}");
        }
    }

    #[test]
    fn the_runtime_is_the_first_that_can_be_executed() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str, mode: u32| {
            let place = folder.path().join(name);
            std::fs::create_dir(&place).unwrap();
            let file = place.join("gantry-runtime");
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            place
        };
        let (plain, first, second) = (place("plain", 0o644), place("first", 0o755), place("second", 0o755));
        let absent = folder.path().join("absent");
        let found = runtime_in([absent.clone(), plain, first.clone(), second]);
        assert_eq!(found, Some(first.join("gantry-runtime")));
        assert_eq!(runtime_in([absent]), None);
        assert_eq!(runtime(Some(Path::new("/x/y"))).unwrap(), Path::new("/x/y"));
    }

    #[test]
    fn names_are_looked_up_in_hosts() {
        let hosts = "# 192.0.2.9 first\n127.0.0.1 localhost\n192.0.2.1\tFirst.example first # here\nbroken first\n";
        assert_eq!(in_hosts(hosts, "first"), Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!(in_hosts(hosts, "FIRST.EXAMPLE"), Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!(in_hosts(hosts, "here"), None);
    }

    #[test]
    fn a_label_has_a_key() {
        let pair = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(label("disk=ssd"), pair("disk", "ssd"));
        assert_eq!(label("a=b=c"), pair("a", "b=c"));
        assert_eq!(label("gpu"), pair("gpu", ""));
        assert!(label("=x").is_err() && label("").is_err());
    }

    #[test]
    fn the_address_towards_a_peer_is_the_one_of_the_way_there() {
        assert_eq!(advertise(Some(Ipv4Addr::LOCALHOST.into())).unwrap(), Ipv4Addr::LOCALHOST);
    }
}
