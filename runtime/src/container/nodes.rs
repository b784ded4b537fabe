//! Device files and links below `/dev`.

use super::mounts::{Context, DEFAULT_DEVICES, host_device};
use super::path::{Links, RootDir, clean};
use crate::config::Device;
use crate::error::{Because, Failure, Outcome};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};

/// Links every container has.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Make the default devices, those of the bundle, and the links. With a bind-mounted `/dev` the host side owns them.
///
/// # Errors
/// One cannot be made, or something else is in its place.
pub fn make(context: &Context<'_>) -> Outcome<()> {
    let config = context.config;
    let bound = config.mounts.iter().any(|mount| {
        let has = |word: &str| mount.options.iter().any(|option| option == word);
        let bind = mount.kind.as_deref() == Some("bind") || has("bind") || has("rbind");
        bind && !has("remount") && clean(&mount.destination) == "/dev"
    });
    if !context.prepared.may_mount() && config.namespace("user").is_some() {
        // Neither made nor bound: what the root filesystem has is all there can be.
        return Ok(());
    }
    let root = RootDir(context.prepared.root.as_fd());
    let own_terminals = config.mounts.iter().any(|mount| clean(&mount.destination) == "/dev/pts");
    // With terminals of its own, this name is a link to them, whatever the host has there. What is bound to `/dev` is
    // not ours to fill.
    let wanted = |path: &str| match clean(path).as_str() {
        "/dev/ptmx" if own_terminals => false,
        path => !bound || !path.starts_with("/dev/"),
    };
    if context.prepared.devices.is_empty() && !bound {
        let dev = context.directory("/dev")?;
        for &(name, major, minor) in DEFAULT_DEVICES {
            let device = Node { kind: FileType::CharacterDevice, major, minor, mode: 0o666, uid: 0, gid: 0 };
            device.make_or_borrow(context, dev.as_fd(), &format!("/dev/{name}"), name)?;
        }
    }
    for (path, tree) in context.prepared.devices.iter().filter(|(path, _)| wanted(path)) {
        context.cover(tree.as_fd(), path)?;
    }
    for device in config.linux.devices.iter().filter(|device| wanted(&device.path)) {
        let (dir, name) = root.parent(&device.path, Links::for_path(&clean(&device.path)))?;
        if context.prepared.devices.is_empty() {
            Node::from(device).make_or_borrow(context, dir.as_fd(), &clean(&device.path), &name)?;
        } else if device.kind == "p" {
            // Pipes have no number and can be made anywhere, also where the host's devices had to do.
            Node::from(device).make(dir.as_fd(), &name)?;
        }
    }
    if bound {
        return Ok(());
    }
    let dev = context.directory("/dev")?;
    for (name, target) in LINKS {
        link(dev.as_fd(), name, target)?;
    }
    // Anything but our link in this place would be a way to another terminal.
    if own_terminals {
        let link = || rustix::fs::symlinkat("pts/ptmx", &dev, "ptmx");
        let result = match link() {
            Err(Errno::EXIST) => rustix::fs::unlinkat(&dev, "ptmx", AtFlags::empty()).and_then(|()| link()),
            result => result,
        };
        result.because(|| "cannot replace `/dev/ptmx`".to_owned())?;
    }
    Ok(())
}

fn link(dev: BorrowedFd<'_>, name: &str, target: &str) -> Outcome<()> {
    match rustix::fs::symlinkat(target, dev, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).because(|| format!("cannot make the link `/dev/{name}`")),
    }
}

/// A device file to make.
struct Node {
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl From<&Device> for Node {
    fn from(device: &Device) -> Self {
        let kind = match device.kind.as_str() {
            "b" => FileType::BlockDevice,
            "p" => FileType::Fifo,
            _ => FileType::CharacterDevice,
        };
        Self {
            kind,
            major: device.major.unwrap_or(0),
            minor: device.minor.unwrap_or(0),
            mode: device.file_mode.unwrap_or(0o666) & 0o7777,
            uid: device.uid.unwrap_or(0),
            gid: device.gid.unwrap_or(0),
        }
    }
}

impl Node {
    fn number(&self) -> u64 {
        if self.kind == FileType::Fifo { 0 } else { rustix::fs::makedev(self.major, self.minor) }
    }

    /// Whether a file is this device.
    fn is(&self, stat: &rustix::fs::Stat) -> bool {
        FileType::from_raw_mode(stat.st_mode) == self.kind
            && (self.kind == FileType::Fifo || stat.st_rdev == self.number())
    }

    /// Make it, or, where the kernel lets nobody make devices (root of a user namespace only), bind the host's.
    fn make_or_borrow(&self, context: &Context<'_>, dir: BorrowedFd<'_>, path: &str, name: &str) -> Outcome<()> {
        let result = self.make(dir, name);
        let borrow = result.is_err()
            && self.kind != FileType::Fifo
            && context.prepared.may_mount()
            && crate::rootless::in_user_namespace();
        if !borrow {
            return result;
        }
        let kind = if self.kind == FileType::BlockDevice { "b" } else { "c" };
        context.cover(host_device(path, kind, self.major, self.minor)?.as_fd(), path)
    }

    fn make(&self, dir: BorrowedFd<'_>, name: &str) -> Outcome<()> {
        let what = || format!("cannot make device `{name}`");
        let number = self.number();
        match rustix::fs::mknodat(dir, name, self.kind, Mode::from_raw_mode(self.mode), number) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).because(what)?;
                return if self.is(&stat) {
                    Ok(())
                } else {
                    Err(Failure::new(format!("`{name}` exists and is another file")))
                };
            }
            Err(error) => return Err(error).because(what),
        }
        if self.uid != 0 || self.gid != 0 {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            // What is there now may be another file than the one just made.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(dir, name, flags, Mode::empty()).because(what)?;
            if !self.is(&rustix::fs::fstat(&made).because(what)?) {
                return Err(Failure::new(format!("`{name}` was replaced while it was made")));
            }
            rustix::fs::chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).because(what)?;
        }
        Ok(())
    }
}
