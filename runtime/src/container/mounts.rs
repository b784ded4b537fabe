//! The container's mounts: trees made by descriptor, attached one by one below the new root.
//!
//! ```text
//! runtime process, host mount namespace:   open_tree(root), open_tree(source of each bind mount)   `Prepared`
//! container's first process, its own one:  move_mount(root), then for each mount
//!                                          fsopen/open_tree → attributes → move_mount onto a descriptor
//! ```
//! Bind sources are opened before the clone, so a user namespace needs no right to walk to them, and no path of the
//! host is used after entering the container's namespace. Two cases open them later, in the container's process: a
//! runtime without the right to clone trees does so in the new mount namespace, as the user it runs as; and with a
//! joined mount namespace, paths are those of that namespace.

use super::idmap;
use super::labels;
use super::namespaces::MountsOf;
use super::options::{self, Bind, IDMAP, Idmap, Options, Propagation, READ_ONLY};
use super::path::{Links, RootDir, clean};
use super::quick::{self, Places};
use crate::cgroup::Cgroup;
use crate::config::{Config, Device, IdMapping, Mount};
use crate::error::{Because, Failure, InStep, Outcome, in_words};
use crate::rootless;
use crate::sys::mount::{MountAttr, mount_setattr};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use std::cell::RefCell;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Device files every container has: name, major, minor.
pub const DEFAULT_DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Trees opened in the host's mount namespace.
#[derive(Debug)]
pub struct Prepared {
    /// The root filesystem.
    pub root: OwnedFd,
    /// Its path on the host.
    path: PathBuf,
    /// Per mount of the configuration.
    trees: Vec<Tree>,
    /// User namespaces whose ID maps filesystems get that the container makes, by the index of the mount.
    maps: Vec<(usize, Rc<OwnedFd>)>,
    /// Mounts that become read-only when all is in them: see [`Context::seal`].
    late: RefCell<Vec<OwnedFd>>,
    /// Host device files, where making them is not allowed (user namespaces): path in the container, tree.
    pub devices: Vec<(String, OwnedFd)>,
    /// In whose mount namespace all this goes.
    mounts_of: MountsOf,
    /// Where the root goes in a mount namespace that is joined: over itself.
    seat: Option<OwnedFd>,
    /// Filesystems that the container's process has made.
    places: Places,
}

/// What a mount was prepared to.
#[derive(Debug)]
enum Tree {
    /// Made in the container.
    None,
    /// A bind mount.
    Bind(OwnedFd),
    /// The container's own directories of each cgroup hierarchy, for containers without a cgroup namespace.
    Cgroups(Vec<(String, OwnedFd)>),
}

fn is_bind(mount: &Mount, options: &Options) -> Option<Bind> {
    options.bind.or_else(|| (mount.kind.as_deref() == Some("bind")).then_some(Bind::Single))
}

fn open_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(dir, path, flags)
}

fn set_propagation(tree: BorrowedFd<'_>, propagation: Propagation) -> std::io::Result<()> {
    let attr = MountAttr { propagation: propagation.kind, ..MountAttr::default() };
    mount_setattr(tree, propagation.recursive, &attr)
}

/// What mounts get that name no propagation: they see changes of the host, the host does not see theirs.
fn default_propagation(config: &Config) -> Propagation {
    let slave = Propagation { kind: libc::MS_SLAVE, recursive: true };
    match config.linux.rootfs_propagation.as_deref().and_then(options::propagation) {
        Some(Propagation { kind: libc::MS_PRIVATE | libc::MS_UNBINDABLE, .. }) => {
            Propagation { kind: libc::MS_PRIVATE, recursive: true }
        }
        _ => slave,
    }
}

/// The root filesystem of a bundle.
pub fn root_path(config: &Config, bundle: &Path) -> PathBuf {
    bundle.join(config.root.as_ref().map_or("", |root| root.path.as_str()))
}

impl Prepared {
    /// Open everything that comes from the host, in the runtime process; `None` when only the container's process can.
    ///
    /// # Errors
    /// A source is missing or cannot be cloned.
    pub fn open_early(config: &Config, bundle: &Path, cgroup: &Cgroup) -> Outcome<Option<Self>> {
        if rootless::is_ordinary_user() || MountsOf::of(config) == MountsOf::Joined {
            return Ok(None);
        }
        match open_root(config, bundle) {
            Err(Errno::PERM) if rootless::in_user_namespace() => Ok(None),
            root => Self::with_root(root, config, bundle, cgroup).map(Some),
        }
    }

    /// The same in the container's process.
    ///
    /// # Errors
    /// A source is missing or cannot be cloned.
    pub fn open(config: &Config, bundle: &Path, cgroup: &Cgroup) -> Outcome<Self> {
        Self::with_root(open_root(config, bundle), config, bundle, cgroup)
    }

    fn with_root(root: Result<OwnedFd, Errno>, config: &Config, bundle: &Path, cgroup: &Cgroup) -> Outcome<Self> {
        let path = root_path(config, bundle);
        let root = root
            .because(|| format!("cannot open root filesystem `{}`", path.display()))
            .or_hint("`root.path` in config.json is relative to the bundle; does the directory exist?")?;
        let mounts_of = MountsOf::of(config);
        let (trees, maps, devices, seat) = (Vec::new(), Vec::new(), Vec::new(), None);
        let (late, places) = (RefCell::default(), Places::default());
        let mut prepared = Self { root, path: path.clone(), trees, maps, late, devices, mounts_of, seat, places };
        if mounts_of == MountsOf::Runtime {
            return Ok(prepared);
        }
        if mounts_of == MountsOf::Joined {
            let what = || format!("cannot open root filesystem `{}`", path.display());
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            prepared.seat = Some(rustix::fs::open(&path, flags, Mode::empty()).because(what)?);
        }
        let root = prepared.root.as_fd();
        let default = default_propagation(config);
        set_propagation(root, default).because(|| "cannot set the propagation of the root".to_owned())?;
        let mut maps = Maps { config, made: Vec::new() };
        prepared.trees.reserve(config.mounts.len());
        for (index, mount) in config.mounts.iter().enumerate() {
            let (tree, map) = prepare(config, mount, bundle, cgroup, default, &mut maps)
                .map_err(|failure| at(failure, index, mount))?;
            prepared.trees.push(tree);
            prepared.maps.extend(map.map(|map| (index, map)));
        }
        if config.namespace("user").is_some() {
            for (name, major, minor) in DEFAULT_DEVICES {
                let path = format!("/dev/{name}");
                let tree = host_device(&path, "c", *major, *minor)?;
                prepared.devices.push((path, tree));
            }
            // Pipes have no number and can be made by anybody.
            for device in config.linux.devices.iter().filter(|device| device.kind != "p") {
                prepared.devices.push((device.path.clone(), device_for_users(config, device)?));
            }
        }
        Ok(prepared)
    }

    /// Whether mounts may be made at all.
    pub fn may_mount(&self) -> bool {
        self.mounts_of != MountsOf::Runtime
    }
}

fn open_root(config: &Config, bundle: &Path) -> Result<OwnedFd, Errno> {
    let path = root_path(config, bundle);
    if MountsOf::of(config) == MountsOf::Runtime {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return rustix::fs::open(&path, flags | OFlags::NOFOLLOW, Mode::empty());
    }
    // The last part may be no link: what was checked would not be what is used.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    rustix::mount::open_tree(CWD, &path, flags)
}

/// A device file for a user namespace, where none can be made: made here, with mode and owner as the bundle says. Whoever
/// may not make one either can only borrow the host's.
fn device_for_users(config: &Config, device: &Device) -> Outcome<OwnedFd> {
    let (major, minor) = (device.major.unwrap_or(0), device.minor.unwrap_or(0));
    let is_default = DEFAULT_DEVICES.iter().any(|(name, ..)| device.path.strip_prefix("/dev/") == Some(name));
    if is_default || rootless::is_ordinary_user() || rootless::in_user_namespace() {
        return host_device(&device.path, &device.kind, major, minor);
    }
    let what = || format!("cannot make device `{}`", device.path);
    let owner = |list: &[IdMapping], id: Option<u32>, of: &str| {
        let id = id.unwrap_or(0);
        // A joined user namespace has a map that the bundle does not know.
        let found = if list.is_empty() { Some(id) } else { idmap::to_host(list, id) };
        found.ok_or_else(|| Failure::new(format!("device `{}`: {of} {id} is not mapped", device.path)))
    };
    let uid = owner(&config.linux.uid_mappings, device.uid, "user")?;
    let gid = owner(&config.linux.gid_mappings, device.gid, "group")?;
    // One name in a filesystem that is never attached anywhere.
    let place = new_filesystem("tmpfs", Some("devices"), &Options::default())?;
    let kind = if device.kind == "b" { FileType::BlockDevice } else { FileType::CharacterDevice };
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match rustix::fs::mknodat(&place, DEVICE, kind, mode, rustix::fs::makedev(major, minor)) {
        // Without CAP_MKNOD.
        Err(Errno::PERM) => return host_device(&device.path, &device.kind, major, minor),
        made => made.because(what)?,
    }
    rustix::fs::chmodat(&place, DEVICE, mode, AtFlags::empty()).because(what)?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    rustix::fs::chownat(&place, DEVICE, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).because(what)?;
    match open_tree(place.as_fd(), Path::new(DEVICE), false) {
        // Before Linux 6.15 only what is attached somewhere can be bound.
        Err(Errno::INVAL) => host_device(&device.path, &device.kind, major, minor),
        tree => tree.because(what),
    }
}

/// The name of a device in a filesystem of its own.
const DEVICE: &str = "device";

/// A mount of a device file of the host that has the right numbers: whoever may not make one can only borrow.
///
/// # Errors
/// There is none, or it is another device.
pub fn host_device(path: &str, kind: &str, major: u32, minor: u32) -> Outcome<OwnedFd> {
    let what = || format!("cannot open device `{path}` of the host, which a user namespace may not make");
    let tree = open_tree(CWD, Path::new(path), false).because(what)?;
    let stat = rustix::fs::fstat(&tree).because(what)?;
    let found = FileType::from_raw_mode(stat.st_mode);
    let right = if kind == "b" { found.is_block_device() } else { found.is_char_device() };
    if right && stat.st_rdev == rustix::fs::makedev(major, minor) {
        return Ok(tree);
    }
    Err(Failure::new(format!("`{path}` of the host is not device {kind} {major}:{minor}"))
        .hint("in a user namespace a device of the bundle must be at the same path on the host"))
}

/// Users and groups of a map.
type Map = (Vec<IdMapping>, Vec<IdMapping>);

/// User namespaces for ID-mapped mounts; one for all mounts with the same map.
struct Maps<'a> {
    config: &'a Config,
    made: Vec<(Option<Map>, Rc<OwnedFd>)>,
}

impl Maps<'_> {
    /// For a mount that has an ID map: its own, else that of the container's user namespace.
    fn of(&mut self, mount: &Mount, options: &Options) -> Outcome<Rc<OwnedFd>> {
        let map = match &options.own_map {
            Some([uids, gids]) => {
                let linux = &self.config.linux;
                Some((own_lines(uids, &linux.uid_mappings)?, own_lines(gids, &linux.gid_mappings)?))
            }
            None if mount.uid_mappings.is_empty() => None,
            None => Some((mount.uid_mappings.clone(), mount.gid_mappings.clone())),
        };
        if let Some((_, fd)) = self.made.iter().find(|(other, _)| *other == map) {
            return Ok(Rc::clone(fd));
        }
        let joined = self.config.namespace("user").and_then(|namespace| namespace.joined());
        let fd = match (&map, joined) {
            (Some((uids, gids)), _) => idmap::namespace(uids, gids)?,
            (None, Some(path)) => rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .because(|| format!("cannot open the user namespace `{path}`"))?,
            (None, None) => idmap::namespace(&self.config.linux.uid_mappings, &self.config.linux.gid_mappings)?,
        };
        let fd = Rc::new(fd);
        self.made.push((map, Rc::clone(&fd)));
        Ok(fd)
    }
}

/// Lines of an option, or the map of the container for none; those that name an ID of the container are looked up there.
fn own_lines(lines: &[options::MapLine], container: &[IdMapping]) -> Outcome<Vec<IdMapping>> {
    if lines.is_empty() {
        return match container.is_empty() {
            false => Ok(container.to_vec()),
            true => Err(Failure::new("`idmap` has a map for users or groups only, and the container has none")),
        };
    }
    let mut list = Vec::with_capacity(lines.len());
    for line in lines {
        let host_id = match line.of_container {
            false => line.outside,
            true => idmap::to_host(container, line.outside).ok_or_else(|| {
                Failure::new(format!("ID {} of `idmap` is not mapped in the container", line.outside))
            })?,
        };
        list.push(IdMapping { container_id: line.inside, host_id, size: line.size });
    }
    idmap::check(&list).map_err(|(index, why)| Failure::new(format!("line {index} of `idmap` {why}")))?;
    Ok(list)
}

/// Whether a mount has an ID map, and how far down.
pub fn idmap_of(mount: &Mount, options: &Options) -> Option<Idmap> {
    options.idmap.or_else(|| (!mount.uid_mappings.is_empty()).then_some(Idmap::Single))
}

/// Give a tree that is not attached yet an ID map.
fn map_ids(tree: BorrowedFd<'_>, depth: Idmap, map: &OwnedFd) -> Outcome<()> {
    let attr = MountAttr { set: IDMAP, userns_fd: map.as_raw_fd() as u64, ..MountAttr::default() };
    let Err(error) = mount_setattr(tree, depth == Idmap::Recursive, &attr) else {
        return Ok(());
    };
    let kind = rustix::fs::fstatfs(tree).map_or_else(|_| "unknown".to_owned(), |found| name_of(found.f_type as u64));
    let hint = match error.raw_os_error() {
        Some(libc::EINVAL) if depth == Idmap::Recursive => {
            format!("this kernel cannot map the IDs of every filesystem in it (the topmost is {kind}); try `idmap`")
        }
        Some(libc::EINVAL) => format!("this kernel cannot map the IDs of a {kind} filesystem, or it is mapped already"),
        Some(libc::EPERM) => "it takes the rights of the user namespace in which the filesystem was mounted, \
            the host's for most, and a map other than the host's"
            .to_owned(),
        _ => "see mount_setattr(2), MOUNT_ATTR_IDMAP".to_owned(),
    };
    Err(error).because(|| "cannot map the IDs of the mount".to_owned()).or_hint(&hint)
}

/// The usual name of a filesystem that a bundle may ask for in vain.
fn name_of(magic: u64) -> String {
    let known = match magic {
        0x9fa0 => "proc",
        0x6265_6572 => "sysfs",
        0x1cd1 => "devpts",
        0x1980_0202 => "mqueue",
        0x0027_e0eb => "cgroup",
        0x6367_7270 => "cgroup2",
        0x0102_1994 => "tmpfs",
        0xef53 => "ext4",
        0x794c_7630 => "overlay",
        0x6573_5546 => "fuse",
        0x6969 => "nfs",
        0x0102_1997 => "9p",
        other => return format!("{other:#x}"),
    };
    known.to_owned()
}

fn at(mut failure: Failure, index: usize, mount: &Mount) -> Failure {
    failure.what = format!("$.mounts[{index}] on `{}`: {}", mount.destination, failure.what);
    failure
}

fn parse(mount: &Mount) -> Outcome<Options> {
    options::parse(&mount.options).map_err(|error| Failure::new(format!("option {error}")))
}

fn prepare(
    config: &Config,
    mount: &Mount,
    bundle: &Path,
    cgroup: &Cgroup,
    default: Propagation,
    maps: &mut Maps<'_>,
) -> Outcome<(Tree, Option<Rc<OwnedFd>>)> {
    let options = parse(mount)?;
    if options.remount {
        return Ok((Tree::None, None));
    }
    let idmap = idmap_of(mount, &options);
    let map = idmap.map(|_| maps.of(mount, &options)).transpose()?;
    if let Some(bind) = is_bind(mount, &options) {
        let source = bundle.join(mount.source.as_deref().unwrap_or(""));
        let recursive = bind == Bind::Recursive;
        let tree = open_tree(CWD, &source, recursive).map_err(|error| open_failed(error, &source, recursive))?;
        if options.propagations.is_empty() || default.kind != libc::MS_SLAVE {
            set_propagation(tree.as_fd(), default).because(|| "cannot set its propagation".to_owned())?;
        }
        if let (Some(depth), Some(map)) = (idmap, &map) {
            map_ids(tree.as_fd(), depth, map)?;
        }
        return Ok((Tree::Bind(tree), None));
    }
    let is_cgroup = matches!(mount.kind.as_deref(), Some("cgroup" | "cgroup2"));
    if is_cgroup && config.namespace("cgroup").is_none() {
        let mut trees = Vec::new();
        for (name, path) in cgroup_directories(cgroup) {
            let tree = open_tree(CWD, &path, false).because(|| format!("cannot open cgroup `{}`", path.display()))?;
            set_propagation(tree.as_fd(), Propagation { kind: libc::MS_PRIVATE, recursive: true })
                .because(|| "cannot set its propagation".to_owned())?;
            trees.push((name, tree));
        }
        return Ok((Tree::Cgroups(trees), None));
    }
    Ok((Tree::None, map))
}

fn open_failed(error: Errno, source: &Path, recursive: bool) -> Failure {
    let hint = match error {
        Errno::INVAL if !recursive => {
            "something is mounted below it, which a user namespace may not leave out: use `rbind`"
        }
        Errno::PERM => "cloning a mount takes CAP_SYS_ADMIN in the owner of the mount namespace",
        Errno::ACCESS => "the user that runs the runtime must be able to reach it",
        _ => "the source of a bind mount must exist on this host",
    };
    let failure = Failure::new(format!("cannot open bind source `{}`", source.display())).hint(hint);
    Failure { cause: Some(in_words(in_words(error.to_string()))), ..failure }
}

/// Directory name and the container's own directory for each hierarchy that a container sees; the name is empty on a
/// pure v2 host. A hybrid host shows v1 alone, as with runc: the unified hierarchy has no limits there. In a hierarchy
/// that the container has no directory in, it is where the runtime is.
fn cgroup_directories(cgroup: &Cgroup) -> Vec<(String, PathBuf)> {
    let hierarchies = cgroup.hierarchies();
    let mut list: Vec<(String, PathBuf)> =
        hierarchies.v1.iter().map(|v1| (v1.directory_name(), cgroup.seen_in(&v1.mount, Some(v1)))).collect();
    if let Some(v2) = hierarchies.v2.as_ref().filter(|_| list.is_empty()) {
        list.push((String::new(), cgroup.seen_in(v2, None)));
    }
    list
}

/// Attach a tree to an open directory or file.
fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags)
}

/// Put the new root on top of the old one, or for hooks where they look for it: on the bundle's root filesystem. The
/// caller then works by its descriptor and pivots into it.
///
/// # Errors
/// The mount calls fail, or the root filesystem has been replaced meanwhile.
pub fn attach_root(prepared: &Prepared, place: Option<&Path>) -> Outcome<()> {
    match (prepared.mounts_of, &prepared.seat) {
        (MountsOf::Runtime, _) => return Ok(()),
        (_, Some(seat)) => {
            return attach(prepared.root.as_fd(), seat.as_fd())
                .because(|| "cannot attach the root filesystem in the joined mount namespace".to_owned());
        }
        _ => {}
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).because(|| "cannot make the host's mounts private".to_owned())?;
    let Some(place) = place else {
        return attach_on_top(prepared);
    };
    let what = || format!("cannot attach the root filesystem on `{}`", place.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // Where that cannot be (the path is not open to a user namespace, or lies on a mount of another one), on the root: it
    // is the same for the container.
    let Ok(target) = rustix::fs::open(place, flags, Mode::empty()) else {
        return attach_on_top(prepared);
    };
    let (found, wanted) = (rustix::fs::fstat(&target).because(what)?, rustix::fs::fstat(&prepared.root).because(what)?);
    if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino) {
        return Err(Failure::new(format!("{}: it is another directory now", what())));
    }
    attach(prepared.root.as_fd(), target.as_fd()).or_else(|_| attach_on_top(prepared))
}

fn attach_on_top(prepared: &Prepared) -> Outcome<()> {
    rustix::mount::move_mount(&prepared.root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .because(|| "cannot attach the root filesystem".to_owned())
}

/// Everything a mount step needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Configuration.
    pub config: &'a Config,
    /// Trees from the host.
    pub prepared: &'a Prepared,
    /// The container's cgroup.
    pub cgroup: &'a Cgroup,
}

impl Context<'_> {
    fn root(&self) -> RootDir<'_> {
        RootDir(self.prepared.root.as_fd())
    }

    fn places(&self) -> &Places {
        &self.prepared.places
    }

    /// A directory of the container, made where it is missing.
    ///
    /// # Errors
    /// As [`RootDir::make_dir`].
    pub fn directory(&self, path: &str) -> Outcome<Rc<OwnedFd>> {
        match self.places().get(self.root(), path) {
            Some(found) => Ok(found),
            None => self.root().make_dir(path, Links::for_path(path)).map(Rc::new),
        }
    }

    /// Make some of the mounts, in order.
    ///
    /// # Errors
    /// One cannot be made as the bundle says.
    pub fn mount_some(&self, which: Range<usize>) -> Outcome<()> {
        for (index, mount) in which.clone().zip(&self.config.mounts[which]) {
            let map = self.prepared.maps.iter().find(|(at, _)| *at == index).map(|(_, map)| map.as_ref());
            let Some(tree) = self.prepared.trees.get(index) else { continue };
            self.mount(mount, tree, map).map_err(|failure| at(failure, index, mount))?;
        }
        Ok(())
    }

    fn mount(&self, mount: &Mount, tree: &Tree, map: Option<&OwnedFd>) -> Outcome<()> {
        let mut options = parse(mount)?;
        let destination = clean(&mount.destination);
        let links = Links::for_path(&destination);
        // Later mounts need places in a tmpfs, and device files and links are made in `/dev`.
        let late =
            options.attr.set & READ_ONLY != 0 && (destination == "/dev" || mount.kind.as_deref() == Some("tmpfs"));
        if late {
            options.attr.set &= !READ_ONLY;
        }
        let mounted = self.mount_as(mount, (tree, map), &destination, links, options)?;
        if late {
            self.prepared.late.borrow_mut().push(match mounted {
                Some(mounted) => mounted,
                None => self.root().open(&destination, OFlags::PATH, links).because(|| "cannot open it".to_owned())?,
            });
        }
        Ok(())
    }

    /// Returns the mount, if it was made here.
    fn mount_as(
        &self,
        mount: &Mount,
        (tree, map): (&Tree, Option<&OwnedFd>),
        destination: &str,
        links: Links,
        mut options: Options,
    ) -> Outcome<Option<OwnedFd>> {
        if options.remount {
            return self.remount(destination, links, &options).map(|()| None);
        }
        let kind = mount.kind.as_deref().unwrap_or("");
        if matches!(tree, Tree::None) {
            if kind == "tmpfs" {
                self.keep_mode(destination, links, &mut options)?;
            }
            labels::add_mount_label(self.config, kind, &mut options);
        }
        if matches!(tree, Tree::None)
            && map.is_none()
            && quick::mount(self.root(), self.places(), (kind, mount.source.as_deref()), (destination, links), &options)
        {
            return Ok(None);
        }
        self.places().cover(destination);
        match (tree, kind) {
            (Tree::Bind(tree), _) => {
                let target = self.bind_target(tree.as_fd(), destination, links)?;
                refuse_data(&options)?;
                finish(tree.as_fd(), target.as_fd(), &options).map(|()| None)
            }
            (_, "cgroup" | "cgroup2") => self.mount_cgroup(tree, destination, links, &options).map(|()| None),
            (_, kind) => {
                let target = self.root().make_dir(destination, links)?;
                let made = match new_filesystem(kind, mount.source.as_deref(), &options) {
                    Ok(made) => made,
                    Err(failure) => self.host_view(kind, &options).unwrap_or(Err(failure))?,
                };
                if let (Some(depth), Some(map)) = (idmap_of(mount, &options), map) {
                    map_ids(made.as_fd(), depth, map)?;
                }
                if options.copy_up {
                    super::copy_up::copy(self.root(), destination, made.as_fd())?;
                }
                if kind == "mqueue" {
                    labels::label_file(self.config, made.as_fd())?;
                }
                finish(made.as_fd(), target.as_fd(), &options)?;
                Ok(Some(made))
            }
        }
    }

    /// A filesystem in memory on a directory of the image has that directory's mode, unless the bundle says another.
    fn keep_mode(&self, destination: &str, links: Links, options: &mut Options) -> Outcome<()> {
        if options.copy_up || options.data.iter().any(|(key, _)| key == "mode") {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(directory) = self.root().open(destination, flags, links) {
            let stat = rustix::fs::fstat(&directory).because(|| format!("cannot look at `{destination}`"))?;
            options.data.push(("mode".to_owned(), Some(format!("{:o}", stat.st_mode & 0o7777))));
        }
        Ok(())
    }

    /// The host's own mount of a filesystem that shows a namespace: what a user namespace can have when that
    /// namespace is not of its own, and the kernel refuses a new mount for that reason.
    fn host_view(&self, kind: &str, options: &Options) -> Option<Outcome<OwnedFd>> {
        let (path, namespace) = match kind {
            "sysfs" => ("/sys", "network"),
            "mqueue" => ("/dev/mqueue", "ipc"),
            "proc" => ("/proc", "pid"),
            _ => return None,
        };
        let foreign = self.config.namespace("user").is_some() || rootless::in_user_namespace();
        if !foreign || self.config.makes(namespace) {
            return None;
        }
        let view = || {
            let tree = open_tree(CWD, Path::new(path), true).because(|| format!("cannot open `{path}` of the host"))?;
            let slave = Propagation { kind: libc::MS_SLAVE, recursive: true };
            set_propagation(tree.as_fd(), slave).because(|| "cannot set its propagation".to_owned())?;
            // As strict below as on top: it brings the host's mounts with it.
            mount_setattr(tree.as_fd(), true, &options.attr).because(|| "cannot set the options".to_owned())?;
            Ok(tree)
        };
        Some(view())
    }

    /// A place of the same kind as the source: directory on directory, file on file.
    fn bind_target(&self, tree: BorrowedFd<'_>, destination: &str, links: Links) -> Outcome<OwnedFd> {
        let stat = rustix::fs::fstat(tree).because(|| "cannot look at the bind source".to_owned())?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            self.root().make_dir(destination, links)
        } else {
            self.root().make_file(destination, links)
        }
    }

    fn remount(&self, destination: &str, links: Links, options: &Options) -> Outcome<()> {
        let what = || "cannot change the mount".to_owned();
        let target = self.root().open(destination, OFlags::PATH, links).because(what)?;
        if options.bind.is_none() && !(options.data.is_empty() && options.superblock.is_empty()) {
            reconfigure(target.as_fd(), options)?;
        } else {
            refuse_data(options)?;
        }
        let not_a_mount = |error: &std::io::Error| error.raw_os_error() == Some(libc::EINVAL);
        apply_attributes(target.as_fd(), options).map_err(|error| match not_a_mount(&error) {
            true => Failure { cause: Some(error.to_string()), ..Failure::new(what()) }
                .hint("`remount` needs a mount to change: an earlier entry with the same destination"),
            false => Failure { cause: Some(error.to_string()), ..Failure::new(what()) },
        })
    }

    /// The cgroup filesystem as the container may see it: one v2 mount, or a directory of v1 mounts.
    fn mount_cgroup(&self, tree: &Tree, destination: &str, links: Links, options: &Options) -> Outcome<()> {
        let hierarchies = self.cgroup.hierarchies();
        if hierarchies.v1.is_empty() {
            let target = self.root().make_dir(destination, links)?;
            let made = match tree {
                Tree::Cgroups(trees) => match trees.first() {
                    Some((_, tree)) => tree.try_clone().because(|| "cannot copy a descriptor".to_owned())?,
                    None => return Err(Failure::new("this host has no cgroup hierarchy")),
                },
                _ => new_filesystem("cgroup2", Some("cgroup"), options)?,
            };
            return finish(made.as_fd(), target.as_fd(), options);
        }
        if matches!(tree, Tree::None) {
            let names: Vec<(String, String)> = hierarchies
                .v1
                .iter()
                .map(|v1| {
                    // A hierarchy without controllers has to say so.
                    let none = v1.controllers.iter().all(|name| name.contains('='));
                    (v1.directory_name(), format!("{}{}", if none { "none," } else { "" }, v1.controllers.join(",")))
                })
                .collect();
            if let Some(directory) = quick::cgroups(self.root(), self.places(), (destination, links), &names, options) {
                return self.finish_cgroups(directory.as_fd(), options);
            }
        }
        let target = self.root().make_dir(destination, links)?;
        let data = vec![("mode".to_owned(), Some("755".to_owned()))];
        let mut writable = Options { data, ..Options::default() };
        labels::add_mount_label(self.config, "tmpfs", &mut writable);
        let directory = new_filesystem("tmpfs", Some("tmpfs"), &writable)?;
        attach(directory.as_fd(), target.as_fd()).because(|| "cannot attach the directory of cgroups".to_owned())?;
        let inside = RootDir(directory.as_fd());
        let one = Options { data: Vec::new(), ..options.clone() };
        let place = |name: &str, made: OwnedFd| -> Outcome<()> {
            let target = inside.make_dir(name, Links::Refuse)?;
            finish(made.as_fd(), target.as_fd(), &one)
        };
        if let Tree::Cgroups(trees) = tree {
            for (name, tree) in trees {
                place(name, tree.try_clone().because(|| "cannot copy a descriptor".to_owned())?)?;
            }
        } else {
            for v1 in &hierarchies.v1 {
                let flags = v1.controllers.iter().map(|name| match name.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (name.clone(), None),
                });
                // A hierarchy without controllers has to say so.
                let none = v1.controllers.iter().all(|name| name.contains('='));
                let none = none.then(|| ("none".to_owned(), None));
                let options = Options { data: flags.chain(none).collect(), ..one.clone() };
                place(&v1.directory_name(), new_filesystem("cgroup", Some("cgroup"), &options)?)?;
            }
        }
        self.finish_cgroups(directory.as_fd(), options)
    }

    /// Links for controllers that share a hierarchy, and the options of the directory.
    fn finish_cgroups(&self, directory: BorrowedFd<'_>, options: &Options) -> Outcome<()> {
        for v1 in self.cgroup.hierarchies().v1.iter().filter(|v1| v1.controllers.len() > 1) {
            for name in &v1.controllers {
                rustix::fs::symlinkat(v1.directory_name(), directory, name.as_str())
                    .because(|| format!("cannot make the link `{name}`"))?;
            }
        }
        let one = Options { data: Vec::new(), ..options.clone() };
        apply_attributes(directory, &one).because(|| "cannot set the options of the cgroup mount".to_owned())
    }

    /// Make paths unreadable: an empty read-only directory, or the null device, on top.
    ///
    /// # Errors
    /// A path exists and cannot be covered.
    pub fn mask(&self) -> Outcome<()> {
        if self.config.linux.masked_paths.is_empty() {
            return Ok(());
        }
        let mut null: Option<OwnedFd> = None;
        let mut empty: Option<OwnedFd> = None;
        let mut files = quick::Cover::default();
        // Made by `nodes` in this process, where it was not the host's to give.
        let mut checked = self.prepared.devices.is_empty();
        for path in &self.config.linux.masked_paths {
            let path = clean(path);
            let attempt = files.put(self.root(), self.places(), &path, || {
                quick::null_device(self.root(), self.places(), &mut checked)
            });
            if attempt != quick::Attempt::Otherwise {
                continue;
            }
            let what = || format!("cannot mask `{path}`");
            let Some(target) = self.existing(&path)? else {
                continue;
            };
            let stat = rustix::fs::fstat(&target).because(what)?;
            let cover = if !FileType::from_raw_mode(stat.st_mode).is_dir() {
                let null = match &null {
                    Some(null) => null,
                    None => null.insert(self.null_device()?),
                };
                open_tree(null.as_fd(), Path::new(""), false).because(what)?
            } else {
                match &empty {
                    // Another view of the same empty directory.
                    Some(first) => open_tree(first.as_fd(), Path::new(""), false).because(what)?,
                    None => {
                        let mut data = [("nr_blocks", "1"), ("nr_inodes", "1")]
                            .map(|(key, value)| (key.to_owned(), Some(value.to_owned())))
                            .to_vec();
                        // The filesystem itself, so that remounting the mount does not help.
                        data.push(("ro".to_owned(), None));
                        let attr = MountAttr { set: READ_ONLY, ..MountAttr::default() };
                        let mut options = Options { data, attr, ..Options::default() };
                        labels::add_mount_label(self.config, "tmpfs", &mut options);
                        new_filesystem("tmpfs", Some("tmpfs"), &options)?
                    }
                }
            };
            attach(cover.as_fd(), target.as_fd()).because(what)?;
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                empty.get_or_insert(cover);
            }
        }
        Ok(())
    }

    /// The container's `/dev/null`, proven to be the null device and not something an image put there.
    fn null_device(&self) -> Outcome<OwnedFd> {
        let what = || "cannot open `/dev/null` of the container to mask files with".to_owned();
        let null = self.root().open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW, Links::Refuse).because(what)?;
        if is_null_device(null.as_fd()) {
            Ok(null)
        } else {
            Err(Failure::new("`/dev/null` of the container is not the null device"))
        }
    }

    /// Make paths read-only, with everything below.
    ///
    /// # Errors
    /// A path exists and cannot be changed.
    pub fn make_readonly(&self) -> Outcome<()> {
        for path in &self.config.linux.readonly_paths {
            let path = clean(path);
            if quick::make_readonly(self.root(), self.places(), &path) != quick::Attempt::Otherwise {
                continue;
            }
            let what = || format!("cannot make `{path}` read-only");
            let Some(target) = self.existing(&path)? else {
                continue;
            };
            let tree = open_tree(target.as_fd(), Path::new(""), true).because(what)?;
            let attr = MountAttr { set: READ_ONLY, ..MountAttr::default() };
            mount_setattr(tree.as_fd(), true, &attr).because(what)?;
            attach(tree.as_fd(), target.as_fd()).because(what)?;
        }
        Ok(())
    }

    fn existing(&self, path: &str) -> Outcome<Option<OwnedFd>> {
        match self.root().open(path, OFlags::PATH, Links::Follow) {
            Ok(target) => Ok(Some(target)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error).because(|| format!("cannot open `{path}` in the root filesystem")),
        }
    }

    /// What has to wait until all is in place: read-only mounts that others are in, and the root's own attributes.
    ///
    /// # Errors
    /// The mount calls fail.
    pub fn seal(&self) -> Outcome<()> {
        if !self.prepared.may_mount() {
            return Ok(());
        }
        let root = self.prepared.root.as_fd();
        for mount in self.prepared.late.take() {
            let attr = MountAttr { set: READ_ONLY, ..MountAttr::default() };
            mount_setattr(mount.as_fd(), false, &attr).because(|| "cannot make a mount read-only".to_owned())?;
        }
        if self.config.root.as_ref().is_some_and(|root| root.readonly) {
            let attr = MountAttr { set: READ_ONLY, ..MountAttr::default() };
            mount_setattr(root, false, &attr).because(|| "cannot make the root read-only".to_owned())?;
        }
        let wanted = self.config.linux.rootfs_propagation.as_deref().and_then(options::propagation);
        if let Some(wanted) = wanted {
            set_propagation(root, wanted).because(|| "cannot set the propagation of the root".to_owned())?;
        }
        Ok(())
    }

    /// Mount one open file or device over a path in the container.
    ///
    /// # Errors
    /// The target cannot be made or covered.
    pub fn cover(&self, tree: BorrowedFd<'_>, path: &str) -> Outcome<()> {
        let target = self.root().make_file(path, Links::Refuse)?;
        attach(tree, target.as_fd()).because(|| format!("cannot mount on `{path}`"))
    }
}

/// Whether a descriptor is of the null device, and not of something in its place.
pub fn is_null_device(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == rustix::fs::makedev(1, 3)
    })
}

/// A detached copy of the mount a descriptor refers to.
///
/// # Errors
/// Those of `open_tree(2)`.
pub fn copy_of(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_tree(fd, Path::new(""), false)
}

/// What a filesystem understands cannot be told to a bind mount. Values such as `mode=755` are without effect there, as
/// the kernel has it for `mount(2)`; a single word may be one that should protect, misspelt.
fn refuse_data(options: &Options) -> Outcome<()> {
    let words: Vec<&str> =
        options.data.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key.as_str()).collect();
    if words.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("`{}` is not an option of a bind mount", words.join(","))))
}

/// Set attributes and propagation, then attach.
fn finish(tree: BorrowedFd<'_>, target: BorrowedFd<'_>, options: &Options) -> Outcome<()> {
    apply_attributes(tree, options).because(|| "cannot set the options".to_owned())?;
    let done = attach(tree, target);
    let is_dir = |fd| rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
    match done {
        // The kernel has no more to say than that this is invalid.
        Err(Errno::INVAL | Errno::NOTDIR) if is_dir(tree) != is_dir(target) => Err(Errno::NOTDIR)
            .because(|| "cannot attach".to_owned())
            .or_hint("a directory is mounted on a directory, a file on a file"),
        other => other.because(|| "cannot attach".to_owned()),
    }
}

fn apply_attributes(tree: BorrowedFd<'_>, options: &Options) -> std::io::Result<()> {
    if options.recursive_attr != MountAttr::default() {
        mount_setattr(tree, true, &options.recursive_attr)?;
    }
    if options.attr != MountAttr::default() {
        mount_setattr(tree, false, &options.attr)?;
    }
    options.propagations.iter().try_for_each(|propagation| set_propagation(tree, *propagation))
}

/// Tell the options of a filesystem to the kernel.
fn configure(context: BorrowedFd<'_>, options: &Options, kind: &str) -> Outcome<()> {
    for word in &options.superblock {
        rustix::mount::fsconfig_set_flag(context, *word).because(|| format!("{kind} refuses the option `{word}`"))?;
    }
    for (key, value) in &options.data {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(context, key.as_str(), value.as_str())
                .because(|| format!("{kind} refuses the option `{key}={value}`"))?,
            None => rustix::mount::fsconfig_set_flag(context, key.as_str())
                .because(|| format!("{kind} refuses the option `{key}`"))?,
        }
    }
    Ok(())
}

/// Change the options of the filesystem that is mounted at a descriptor.
fn reconfigure(target: BorrowedFd<'_>, options: &Options) -> Outcome<()> {
    let flags = rustix::mount::FsPickFlags::FSPICK_CLOEXEC | rustix::mount::FsPickFlags::FSPICK_EMPTY_PATH;
    let context = rustix::mount::fspick(target, "", flags)
        .because(|| "cannot change the filesystem".to_owned())
        .or_hint("`remount` needs a mount to change: an earlier entry with the same destination")?;
    configure(context.as_fd(), options, "the filesystem")?;
    rustix::mount::fsconfig_reconfigure(&context).because(|| "cannot change the filesystem".to_owned())
}

/// A new filesystem, not attached anywhere.
///
/// # Errors
/// The kernel does not know the type, an option, or refuses.
pub fn new_filesystem(kind: &str, source: Option<&str>, options: &Options) -> Outcome<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .because(|| format!("cannot open a filesystem of type `{kind}`"))?;
    let source = source.filter(|source| !source.is_empty());
    if let Some(source) = source {
        rustix::mount::fsconfig_set_string(&context, "source", source)
            .because(|| format!("{kind} refuses the source `{source}`"))?;
        // A device that cannot be written must not be opened for writing.
        if source.starts_with('/') && options.attr.set & READ_ONLY != 0 {
            rustix::mount::fsconfig_set_flag(&context, "ro").because(|| format!("{kind} refuses the option `ro`"))?;
        }
    }
    configure(context.as_fd(), options, kind)?;
    rustix::mount::fsconfig_create(&context).because(|| format!("cannot make a filesystem of type `{kind}`"))?;
    let flags = MountAttrFlags::from_bits_retain(options.attr.set as u32);
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
        .because(|| format!("cannot mount a filesystem of type `{kind}`"))
}

/// Leave the old root for the new one.
///
/// - `by_moving`: by chroot rather than pivot_root; [`attach_root`] must have been given a place.
///
/// # Errors
/// The mount calls fail.
pub fn pivot(prepared: &Prepared, by_moving: bool) -> Outcome<()> {
    if by_moving && prepared.mounts_of == MountsOf::Container {
        move_root(prepared)?;
    }
    rustix::process::fchdir(&prepared.root).because(|| "cannot enter the root filesystem".to_owned())?;
    if by_moving || prepared.mounts_of != MountsOf::Container {
        // In a namespace of others only our own root may change.
        crate::sys::mount::chroot_here().because(|| "cannot change the root".to_owned())?;
        rustix::process::chdir("/").because(|| "cannot enter the new root".to_owned())
    } else {
        crate::sys::mount::pivot_root_here()
            .because(|| "pivot_root failed".to_owned())
            .or_hint("if the host runs from an initial ramfs, use --no-pivot")?;
        // What is taken away is the old root on top; the current directory is the new one.
        rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)
            .because(|| "cannot detach the old root".to_owned())
    }
}

/// For hosts on the initial ramfs, where pivot_root does not work: put the tree over `/`.
///
/// The host's mounts stay below it, and the kernel lets a user namespace of the container mount a whole procfs or sysfs
/// when one is there, seen or not. So those go first.
fn move_root(prepared: &Prepared) -> Outcome<()> {
    let what = || "cannot read the mount table".to_owned();
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").because(what)?;
    for line in table.lines().rev() {
        let (mount, filesystem) = line.split_once(" - ").unwrap_or((line, ""));
        let Some(path) = mount.split(' ').nth(4).map(unescape) else { continue };
        let whole = matches!(filesystem.split(' ').next(), Some("proc" | "sysfs"));
        if whole && !Path::new(&path).starts_with(&prepared.path) {
            rustix::mount::unmount(path.as_str(), rustix::mount::UnmountFlags::DETACH)
                .because(|| format!("cannot take `{path}` of the host away"))
                .or_hint("without it the container could see all of the kernel's settings; leave --no-pivot out")?;
        }
    }
    rustix::mount::move_mount(&prepared.root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .because(|| "cannot put the root filesystem over `/`".to_owned())
}

/// A path of the mount table, where the kernel writes spaces and the like as octal numbers.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}
