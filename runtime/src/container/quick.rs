//! The usual mounts in as few system calls as they take.
//!
//! A filesystem is mounted by `mount(2)` on the current directory, or on a name in it: two calls where the descriptors
//! of `fsopen(2)` want six to twelve. It is as safe: the directory was opened once, inside the root, and no path is
//! resolved after that. A name is used only in filesystems that this process has made itself and nobody else has seen
//! ([`Places`]), where no link can wait.
//!
//! Only what is known to mean the same both ways is done here; anything else, and anything that fails, is left to the
//! general way in `mounts`, which can also say what is wrong with it.

use super::mounts;
use super::options::Options;
use super::path::{Links, RootDir};
use crate::sys::mount::{MountAttr, mount_setattr_at};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};
use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// Filesystems whose content is the kernel's or ours alone.
const KINDS: &[&str] = &["proc", "sysfs", "tmpfs", "devpts", "mqueue"];

/// Options that these take as words, in `mount(2)` as in `fsconfig(2)`.
const WORDS: &[&str] = &[
    "mode",
    "size",
    "nr_inodes",
    "nr_blocks",
    "uid",
    "gid",
    "newinstance",
    "ptmxmode",
    "max",
    "hidepid",
    "subset",
    "inode64",
];

/// Attributes of a mount, and their bits in `mount(2)`.
const FLAGS: &[(u64, MountFlags)] = &[
    (0x1, MountFlags::RDONLY),
    (0x2, MountFlags::NOSUID),
    (0x4, MountFlags::NODEV),
    (0x8, MountFlags::NOEXEC),
    (0x10, MountFlags::NOATIME),
    (0x20, MountFlags::STRICTATIME),
    (0x80, MountFlags::NODIRATIME),
];

/// Where filesystems of [`KINDS`] were mounted by this process, by destination.
#[derive(Debug, Default)]
pub struct Places(RefCell<State>);

#[derive(Debug, Default)]
struct State {
    places: Vec<Place>,
    /// Which of them is the current directory.
    current: Option<String>,
}

#[derive(Debug)]
struct Place {
    path: String,
    directory: Option<Rc<OwnedFd>>,
}

impl Places {
    /// Something was mounted there: what was known of this path and all below it no longer holds.
    pub fn cover(&self, path: &str) {
        let hidden =
            |place: &str| place.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let mut state = self.0.borrow_mut();
        state.places.retain(|place| path != "/" && !hidden(&place.path));
        if path == "/" || state.current.as_deref().is_some_and(hidden) {
            state.current = None;
        }
    }

    fn made(&self, path: &str) {
        self.0.borrow_mut().places.push(Place { path: path.to_owned(), directory: None });
    }

    /// The directory of a filesystem that this process has made, if there is one at this path.
    pub fn get(&self, root: RootDir<'_>, path: &str) -> Option<Rc<OwnedFd>> {
        let mut state = self.0.borrow_mut();
        let place = state.places.iter_mut().find(|place| place.path == path)?;
        if place.directory.is_none() {
            let opened = root.open(path, OFlags::PATH | OFlags::DIRECTORY, Links::Refuse).ok()?;
            place.directory = Some(Rc::new(opened));
        }
        place.directory.clone()
    }

    fn enter(&self, path: &str, directory: &OwnedFd) -> Result<(), Errno> {
        if self.0.borrow().current.as_deref() == Some(path) {
            return Ok(());
        }
        rustix::process::fchdir(directory)?;
        self.0.borrow_mut().current = Some(path.to_owned());
        Ok(())
    }
}

/// The exec closes it for nothing.
fn leave_open(fd: OwnedFd) {
    std::mem::forget(fd);
}

/// What `mount(2)` takes for these options, if all of them are known to mean the same there.
fn plain(options: &Options) -> Option<(MountFlags, CString)> {
    let simple = Options { attr: options.attr, data: options.data.clone(), ..Options::default() };
    if *options != simple || options.attr.propagation != 0 {
        return None;
    }
    let mut left = options.attr.set;
    let mut flags = MountFlags::empty();
    for (attribute, flag) in FLAGS {
        if left & attribute != 0 {
            left &= !attribute;
            flags |= *flag;
        }
    }
    let mut data = String::new();
    for (key, value) in &options.data {
        if !WORDS.contains(&key.as_str()) || value.as_deref().is_some_and(|value| value.contains(',')) {
            return None;
        }
        if !data.is_empty() {
            data.push(',');
        }
        data.push_str(key);
        if let Some(value) = value {
            data.push('=');
            data.push_str(value);
        }
    }
    let data = CString::new(data).ok()?;
    (left == 0).then_some((flags, data))
}

/// Mount a new filesystem; false when it has to be done in the general way.
pub fn mount(
    root: RootDir<'_>,
    places: &Places,
    (kind, source): (&str, Option<&str>),
    (destination, links): (&str, Links),
    options: &Options,
) -> bool {
    // A read-only tmpfs would be so for all its mounts, and nothing could be put into it.
    let fits = KINDS.contains(&kind) && !(kind == "tmpfs" && options.attr.set & 1 != 0);
    let Some((flags, data)) = fits.then(|| plain(options)).flatten() else {
        return false;
    };
    let source = source.filter(|source| !source.is_empty()).unwrap_or("none");
    let done = at(root, places, destination, links, |target| {
        rustix::mount::mount(source, target, kind, flags, data.as_c_str())
    });
    if done {
        places.cover(destination);
        places.made(destination);
    }
    done
}

/// Do something on a directory of the container, made where it is missing, by a name in the current directory.
fn at(
    root: RootDir<'_>,
    places: &Places,
    destination: &str,
    links: Links,
    act: impl FnOnce(&str) -> Result<(), Errno>,
) -> bool {
    let (parent, name) = destination.rsplit_once('/').unwrap_or(("", destination));
    if let Some(directory) = places.get(root, parent) {
        let there = rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755));
        return matches!(there, Ok(()) | Err(Errno::EXIST))
            && places.enter(parent, &directory).and_then(|()| act(name)).is_ok();
    }
    let Ok(target) = root.make_dir(destination, links) else {
        return false;
    };
    places.0.borrow_mut().current = None;
    let done = rustix::process::fchdir(&target).is_ok() && act(".").is_ok();
    leave_open(target);
    done
}

/// The directory of cgroup mounts, one per hierarchy: name, and its options for `mount(2)`.
///
/// Answers the descriptor of that directory, still writable; `None` when it has to be done in the general way, which
/// then starts on top.
pub fn cgroups(
    root: RootDir<'_>,
    places: &Places,
    (destination, links): (&str, Links),
    hierarchies: &[(String, String)],
    options: &Options,
) -> Option<Rc<OwnedFd>> {
    let (flags, _) = plain(&Options { data: Vec::new(), ..options.clone() })?;
    let writable = Options { data: vec![("mode".to_owned(), Some("755".to_owned()))], ..Options::default() };
    if !mount(root, places, ("tmpfs", Some("tmpfs")), (destination, links), &writable) {
        return None;
    }
    let directory = places.get(root, destination)?;
    places.enter(destination, &directory).ok()?;
    for (name, controllers) in hierarchies {
        let kind = if controllers.is_empty() { "cgroup2" } else { "cgroup" };
        let data = CString::new(controllers.as_str()).ok()?;
        rustix::fs::mkdirat(&directory, name.as_str(), Mode::from_raw_mode(0o755)).ok()?;
        rustix::mount::mount("cgroup", name.as_str(), kind, flags, data.as_c_str()).ok()?;
    }
    Some(directory)
}

/// The last name of a path directly in a filesystem of [`Places`], with the directory it is in.
fn inside<'a>(root: RootDir<'_>, places: &Places, path: &'a str) -> Option<(Rc<OwnedFd>, &'a str)> {
    let (parent, name) = path.rsplit_once('/')?;
    Some((places.get(root, parent)?, name))
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Done.
    Done,
    /// There is no such path in the container, so there is nothing to do.
    Absent,
    /// It has to be done in the general way.
    Otherwise,
}

/// Views of one thing, to put on many paths: one is kept ready, since most paths turn out to be absent or of the other
/// kind.
#[derive(Debug, Default)]
pub struct Cover(Option<OwnedFd>);

impl Drop for Cover {
    fn drop(&mut self) {
        if let Some(view) = self.0.take() {
            leave_open(view);
        }
    }
}

impl Cover {
    /// Put a view of `thing` on a path.
    ///
    /// - `thing`: makes another view.
    pub fn put(
        &mut self,
        root: RootDir<'_>,
        places: &Places,
        path: &str,
        thing: impl FnOnce() -> Option<OwnedFd>,
    ) -> Attempt {
        let Some((directory, name)) = inside(root, places, path) else {
            return Attempt::Otherwise;
        };
        if self.0.is_none() {
            self.0 = thing();
        }
        let Some(view) = &self.0 else {
            return Attempt::Otherwise;
        };
        match attach_at(view.as_fd(), directory.as_fd(), name) {
            Ok(()) => {
                if let Some(view) = self.0.take() {
                    leave_open(view);
                }
                Attempt::Done
            }
            Err(Errno::NOENT) => Attempt::Absent,
            // A directory cannot be covered with a file.
            Err(_) => cover_directory(places, path, &directory, name),
        }
    }
}

/// Put an empty directory on one: a filesystem that is read-only itself, so that remounting the mount does not help.
fn cover_directory(places: &Places, path: &str, directory: &OwnedFd, name: &str) -> Attempt {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let mounted = places
        .enter(parent, directory)
        .and_then(|()| rustix::mount::mount("tmpfs", name, "tmpfs", MountFlags::RDONLY, c"nr_blocks=1,nr_inodes=1"));
    if mounted.is_ok() { Attempt::Done } else { Attempt::Otherwise }
}

fn attach_at(tree: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    rustix::mount::move_mount(tree, "", directory, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Put a read-only view of a path on itself, with all below it.
pub fn make_readonly(root: RootDir<'_>, places: &Places, path: &str) -> Attempt {
    let Some((directory, name)) = inside(root, places, path) else {
        return Attempt::Otherwise;
    };
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let Ok(name) = CString::new(name) else {
        return Attempt::Otherwise;
    };
    let bind = MountFlags::BIND | MountFlags::REC;
    let bound = places
        .enter(parent, &directory)
        .and_then(|()| rustix::mount::mount(name.as_c_str(), name.as_c_str(), c"", bind, None::<&CStr>));
    match bound {
        Ok(()) => {}
        Err(Errno::NOENT) => return Attempt::Absent,
        Err(_) => return Attempt::Otherwise,
    }
    let attr = MountAttr { set: super::options::READ_ONLY, ..MountAttr::default() };
    let done = mount_setattr_at(directory.as_fd(), &name, &attr);
    // Should this fail, the general way puts another mount on top.
    if done.is_ok() { Attempt::Done } else { Attempt::Otherwise }
}

/// A view of the null device that `nodes` has made, if `/dev` is a filesystem of ours.
///
/// - `checked`: it was found to be the null device before; nobody but us could have replaced it.
pub fn null_device(root: RootDir<'_>, places: &Places, checked: &mut bool) -> Option<OwnedFd> {
    let dev = places.get(root, "/dev")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let null = rustix::mount::open_tree(&dev, "null", flags).ok()?;
    *checked = *checked || mounts::is_null_device(null.as_fd());
    checked.then_some(null)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(words: &[&str]) -> Option<String> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let (flags, data) = plain(&super::super::options::parse(&words).expect("options"))?;
        Some(format!("{:x} {}", flags.bits(), data.to_string_lossy()))
    }

    #[test]
    fn only_what_means_the_same_is_plain() {
        for (words, want) in [
            (&[][..], Some("0 ")),
            (&["nosuid", "noexec", "nodev", "ro"], Some("f ")),
            (&["nosuid", "strictatime", "mode=755", "size=65536k"], Some("1000002 mode=755,size=65536k")),
            (&["newinstance", "ptmxmode=0666", "gid=5"], Some("0 newinstance,ptmxmode=0666,gid=5")),
            (&["noatime", "nodiratime"], Some("c00 ")),
            (&["mode=755,uid=0"], None),
            (&["nosymfollow"], None),
            (&["sync"], None),
            (&["context=x"], None),
            (&["rro"], None),
            (&["rslave"], None),
            (&["tmpcopyup"], None),
        ] {
            assert_eq!(text(words).as_deref(), want, "{words:?}");
        }
    }

    #[test]
    fn a_place_is_forgotten_when_something_covers_it() {
        let places = Places::default();
        let known = |places: &Places| -> Vec<String> {
            places.0.borrow().places.iter().map(|place| place.path.clone()).collect()
        };
        for path in ["/proc", "/dev", "/dev/shm", "/device"] {
            places.made(path);
        }
        places.cover("/dev/shm/deep");
        assert_eq!(known(&places), ["/proc", "/dev", "/dev/shm", "/device"]);
        places.cover("/dev");
        assert_eq!(known(&places), ["/proc", "/device"]);
        places.cover("/");
        assert_eq!(known(&places), Vec::<String>::new());
    }
}
