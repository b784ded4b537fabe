//! Network namespaces: each is made by a thread that ends right after, and kept alive by a bind mount of its file.

use crate::error::NetError;
use crate::netlink::{Family, Netlink};
use rustix::mount::UnmountFlags;
use rustix::thread::LinkNameSpaceType;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The calling thread's own namespace. `/proc/self` would be the main thread's.
const OWN: &str = "/proc/thread-self/ns/net";

/// Settings of every new namespace, written before anything is in it.
///
/// As Docker and podman do, so that an image that does not run as root may listen on port 80 and ping. Redirects are
/// refused because they would lead round the translation of service addresses.
const SETTINGS: [(&str, &str); 5] = [
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    // Our addresses are unique by construction; the check would only delay, and sees its own echo on a hairpin port.
    ("net/ipv6/conf/default/accept_dad", "0"),
];

/// A network namespace: a descriptor that keeps it, and a socket inside.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) descriptor: OwnedFd,
    pub(crate) route: Netlink,
}

/// Run `work` on a thread of its own and hand back what it found.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T, NetError> + Send) -> Result<T, NetError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(|e| NetError::io("start", "a thread for a network namespace", e))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Make a namespace and keep it under `path`.
///
/// # Errors
/// No privilege, or `path` cannot be made or mounted on.
pub(crate) fn create(path: &Path) -> Result<Namespace, NetError> {
    on_a_thread(|| {
        crate::sys::unshare_network().map_err(|e| NetError::file("create network namespace", path, e))?;
        for (name, value) in SETTINGS {
            // Comforts, not isolation: a host that keeps /proc/sys read-only can do without them.
            if let Err(error) = std::fs::write(Path::new("/proc/sys").join(name), value) {
                tracing::debug!(name, %error, "setting of a new network namespace not written");
            }
        }
        File::create(path).map_err(|e| NetError::file("create", path, e))?;
        let inside = inside()?;
        rustix::mount::mount_bind(OWN, path).map_err(|e| NetError::file("mount network namespace on", path, e))?;
        Ok(inside)
    })
}

fn inside() -> Result<Namespace, NetError> {
    let descriptor = File::open(OWN).map_err(|e| NetError::io("open", OWN, e))?.into();
    Ok(Namespace { descriptor, route: Netlink::open(Family::Route)? })
}

/// The namespace kept under `path`; `None` when there is none (the file is absent, or only a file is left of it).
pub(crate) fn open(path: &Path) -> Result<Option<Namespace>, NetError> {
    run(path, inside)
}

/// Run `work` in the namespace kept under `path`; `None` when there is none.
pub(crate) fn run<T: Send>(
    path: &Path,
    work: impl FnOnce() -> Result<T, NetError> + Send,
) -> Result<Option<T>, NetError> {
    const NSFS: i64 = 0x6e73_6673;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(NetError::file("open network namespace", path, e)),
    };
    let kind = rustix::fs::fstatfs(&file).map_err(|e| NetError::file("inspect", path, e))?.f_type;
    if kind != NSFS {
        return Ok(None);
    }
    on_a_thread(|| {
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| NetError::file("enter network namespace", path, e))?;
        work().map(Some)
    })
}

/// Let go of the namespace under `path`; fine when there is none. It dies when its last process has gone.
pub(crate) fn remove(path: &Path) -> Result<(), NetError> {
    loop {
        // More than one mount can lie on the file when an attach was cut off and repeated.
        match rustix::mount::unmount(path, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(e) => return Err(NetError::file("unmount network namespace", path, e)),
        }
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(NetError::file("remove", path, e)),
        _ => Ok(()),
    }
}

/// Write a setting of the calling thread's network namespace, unless it already has the value.
pub(crate) fn set_sysctl(name: &str, value: &str) -> Result<bool, NetError> {
    let file = Path::new("/proc/sys").join(name);
    let same = |text: String| text.split_whitespace().eq(value.split_whitespace());
    if std::fs::read_to_string(&file).is_ok_and(same) {
        return Ok(false);
    }
    std::fs::write(&file, value).map_err(|e| NetError::file(write_of(value), &file, e))?;
    Ok(true)
}

fn write_of(value: &str) -> &'static str {
    match value {
        "0" => "write 0 to",
        "1" => "write 1 to",
        "2" => "write 2 to",
        _ => "write",
    }
}
