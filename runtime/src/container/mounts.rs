//! The container's mounts: trees made by descriptor, attached one by one below the new root.
//!
//! ```text
//! runtime process, host mount namespace:   open_tree(root), open_tree(source of each bind mount)   `Prepared`
//! container's first process, its own one:  move_mount(root), then for each mount
//!                                          fsopen/open_tree → attributes → move_mount onto a descriptor
//! ```
//! Bind sources are opened before the clone, so a user namespace needs no right to walk to them, and no path of the
//! host is used after entering the container's namespace.

use super::labels;
use super::options::{self, Bind, Options, Propagation, READ_ONLY};
use super::path::{Links, RootDir, clean};
use crate::cgroup::Cgroup;
use crate::config::{Config, Device, Mount};
use crate::error::{Because, Failure, InStep, Outcome};
use crate::sys::mount::{MountAttr, mount_setattr};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Device files every container has: name, major, minor.
pub const DEFAULT_DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Trees opened in the host's mount namespace.
#[derive(Debug)]
pub struct Prepared {
    /// The root filesystem.
    pub root: OwnedFd,
    /// Per mount of the configuration.
    trees: Vec<Tree>,
    /// Mounts that become read-only when all is in them: see [`Context::seal`].
    late: RefCell<Vec<OwnedFd>>,
    /// Host device files, where making them is not allowed (user namespaces): path in the container, tree.
    pub devices: Vec<(String, OwnedFd)>,
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

/// The root filesystem with all that is mounted in it; its last part may be no link.
fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    rustix::mount::open_tree(CWD, path, flags)
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
    /// Open everything that comes from the host.
    ///
    /// # Errors
    /// A source is missing or cannot be cloned.
    pub fn open(config: &Config, bundle: &Path, cgroup: &Cgroup) -> Outcome<Self> {
        let path = root_path(config, bundle);
        let root = open_root(&path)
            .because(|| format!("cannot open root filesystem `{}`", path.display()))
            .or_hint("`root.path` in config.json is relative to the bundle; does the directory exist?")?;
        let default = default_propagation(config);
        set_propagation(root.as_fd(), default).because(|| "cannot set the propagation of the root".to_owned())?;
        let mut trees = Vec::with_capacity(config.mounts.len());
        for (index, mount) in config.mounts.iter().enumerate() {
            trees.push(prepare(config, mount, bundle, cgroup, default).map_err(|failure| at(failure, index, mount))?);
        }
        let mut devices = Vec::new();
        if config.namespace("user").is_some() {
            for (name, _, _) in DEFAULT_DEVICES {
                let path = format!("/dev/{name}");
                devices.push(host_device(&path, None)?);
            }
            for device in config.linux.devices.iter().filter(|device| device.kind != "p") {
                devices.push(host_device(&device.path, Some(device))?);
            }
        }
        Ok(Self { root, trees, late: RefCell::default(), devices })
    }
}

/// A device file of the host, which must be the one that the bundle means.
fn host_device(path: &str, wanted: Option<&Device>) -> Outcome<(String, OwnedFd)> {
    let tree = open_tree(CWD, Path::new(path), false)
        .because(|| format!("cannot open device `{path}` of the host, which a user namespace may not make"))?;
    if let Some(wanted) = wanted {
        let stat = rustix::fs::fstat(&tree).because(|| format!("cannot look at device `{path}` of the host"))?;
        let kind = if wanted.kind == "b" { FileType::BlockDevice } else { FileType::CharacterDevice };
        let number = rustix::fs::makedev(wanted.major.unwrap_or(0), wanted.minor.unwrap_or(0));
        if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
            let what = format!("`{path}` of the host, which a user namespace needs, is not the device of the bundle");
            return Err(Failure::new(what));
        }
    }
    Ok((path.to_owned(), tree))
}

fn at(mut failure: Failure, index: usize, mount: &Mount) -> Failure {
    failure.what = format!("$.mounts[{index}] on `{}`: {}", mount.destination, failure.what);
    failure
}

fn parse(mount: &Mount) -> Outcome<Options> {
    options::parse(&mount.options).map_err(|error| Failure::new(format!("option {error}")))
}

fn prepare(config: &Config, mount: &Mount, bundle: &Path, cgroup: &Cgroup, default: Propagation) -> Outcome<Tree> {
    let options = parse(mount)?;
    if options.remount {
        return Ok(Tree::None);
    }
    if let Some(bind) = is_bind(mount, &options) {
        let source = bundle.join(mount.source.as_deref().unwrap_or(""));
        let tree = open_tree(CWD, &source, bind == Bind::Recursive)
            .because(|| format!("cannot open bind source `{}`", source.display()))
            .or_hint("the source of a bind mount must exist on this host")?;
        if options.propagations.is_empty() || default.kind != libc::MS_SLAVE {
            set_propagation(tree.as_fd(), default).because(|| "cannot set its propagation".to_owned())?;
        }
        return Ok(Tree::Bind(tree));
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
        return Ok(Tree::Cgroups(trees));
    }
    Ok(Tree::None)
}

/// Directory name and the container's own directory for each hierarchy; the name is empty on a pure v2 host.
fn cgroup_directories(cgroup: &Cgroup) -> Vec<(String, PathBuf)> {
    let hierarchies = cgroup.hierarchies();
    let mut list: Vec<(String, PathBuf)> =
        hierarchies.v1.iter().map(|v1| (v1.directory_name(), cgroup.path_in(&v1.mount))).collect();
    if let Some(v2) = &hierarchies.v2 {
        let name = if list.is_empty() { String::new() } else { "unified".to_owned() };
        list.push((name, cgroup.path_in(v2)));
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
    let all = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).because(|| "cannot open `/`".to_owned())?;
    mount_setattr(old.as_fd(), true, &all).because(|| "cannot make the host's mounts private".to_owned())?;
    let Some(place) = place else {
        return attach(prepared.root.as_fd(), old.as_fd()).because(|| "cannot attach the root filesystem".to_owned());
    };
    let what = || format!("cannot attach the root filesystem on `{}`", place.display());
    let target = rustix::fs::open(place, flags | OFlags::NOFOLLOW, Mode::empty()).because(what)?;
    let (found, wanted) = (rustix::fs::fstat(&target).because(what)?, rustix::fs::fstat(&prepared.root).because(what)?);
    if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino) {
        return Err(Failure::new(format!("{}: it is another directory now", what())));
    }
    attach(prepared.root.as_fd(), target.as_fd()).because(what)
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

    /// Make all mounts, in order.
    ///
    /// # Errors
    /// One cannot be made as the bundle says.
    pub fn mount_all(&self) -> Outcome<()> {
        for (index, mount) in self.config.mounts.iter().enumerate() {
            self.mount(mount, &self.prepared.trees[index]).map_err(|failure| at(failure, index, mount))?;
        }
        Ok(())
    }

    fn mount(&self, mount: &Mount, tree: &Tree) -> Outcome<()> {
        let mut options = parse(mount)?;
        let destination = clean(&mount.destination);
        let links = Links::for_path(&destination);
        // Later mounts need places in a tmpfs, and device files and links are made in `/dev`.
        let late =
            options.attr.set & READ_ONLY != 0 && (destination == "/dev" || mount.kind.as_deref() == Some("tmpfs"));
        if late {
            options.attr.set &= !READ_ONLY;
        }
        let mounted = self.mount_as(mount, tree, &destination, links, options)?;
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
        tree: &Tree,
        destination: &str,
        links: Links,
        mut options: Options,
    ) -> Outcome<Option<OwnedFd>> {
        if options.remount {
            return self.remount(destination, links, &options).map(|()| None);
        }
        match (tree, mount.kind.as_deref().unwrap_or("")) {
            (Tree::Bind(tree), _) => {
                let target = self.bind_target(tree.as_fd(), destination, links)?;
                refuse_data(&options)?;
                finish(tree.as_fd(), target.as_fd(), &options).map(|()| None)
            }
            (_, "cgroup" | "cgroup2") => self.mount_cgroup(tree, destination, links, &options).map(|()| None),
            (_, kind) => {
                labels::add_mount_label(self.config, kind, &mut options);
                let target = self.root().make_dir(destination, links)?;
                let made = new_filesystem(kind, mount.source.as_deref(), &options)?;
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
        let target = self.root().make_dir(destination, links)?;
        if hierarchies.v1.is_empty() {
            let made = match tree {
                Tree::Cgroups(trees) => match trees.first() {
                    Some((_, tree)) => tree.try_clone().because(|| "cannot copy a descriptor".to_owned())?,
                    None => return Err(Failure::new("this host has no cgroup hierarchy")),
                },
                _ => new_filesystem("cgroup2", Some("cgroup"), options)?,
            };
            return finish(made.as_fd(), target.as_fd(), options);
        }
        let data = vec![("mode".to_owned(), Some("755".to_owned()))];
        let mut writable = Options { data, ..Options::default() };
        labels::add_mount_label(self.config, "tmpfs", &mut writable);
        let directory = new_filesystem("tmpfs", Some("cgroup"), &writable)?;
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
            if hierarchies.v2.is_some() {
                place("unified", new_filesystem("cgroup2", Some("cgroup"), &one)?)?;
            }
        }
        for v1 in hierarchies.v1.iter().filter(|v1| v1.controllers.len() > 1) {
            for name in &v1.controllers {
                rustix::fs::symlinkat(v1.directory_name(), &directory, name.as_str())
                    .because(|| format!("cannot make the link `{name}`"))?;
            }
        }
        apply_attributes(directory.as_fd(), &one).because(|| "cannot set the options of the cgroup mount".to_owned())
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
        for path in &self.config.linux.masked_paths {
            let path = clean(path);
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
        let stat = rustix::fs::fstat(&null).because(what)?;
        let is_null =
            FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == rustix::fs::makedev(1, 3);
        if is_null { Ok(null) } else { Err(Failure::new("`/dev/null` of the container is not the null device")) }
    }

    /// Make paths read-only, with everything below.
    ///
    /// # Errors
    /// A path exists and cannot be changed.
    pub fn make_readonly(&self) -> Outcome<()> {
        for path in &self.config.linux.readonly_paths {
            let path = clean(path);
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

/// A detached copy of the mount a descriptor refers to.
///
/// # Errors
/// Those of `open_tree(2)`.
pub fn copy_of(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_tree(fd, Path::new(""), false)
}

/// What a filesystem understands cannot be told to a bind mount.
fn refuse_data(options: &Options) -> Outcome<()> {
    if options.data.is_empty() {
        return Ok(());
    }
    let words: Vec<&str> = options.data.iter().map(|(key, _)| key.as_str()).collect();
    Err(Failure::new(format!("`{}` is not an option of a bind mount", words.join(","))))
}

/// Set attributes and propagation, then attach.
fn finish(tree: BorrowedFd<'_>, target: BorrowedFd<'_>, options: &Options) -> Outcome<()> {
    apply_attributes(tree, options).because(|| "cannot set the options".to_owned())?;
    let done = attach(tree, target);
    // The kernel says no more than this when a file is mounted on a directory or the other way round.
    let kinds = matches!(done, Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOTDIR));
    done.because(|| "cannot attach".to_owned()).map_err(|failure| match kinds {
        true => failure.hint("a directory is mounted on a directory, a file on a file"),
        false => failure,
    })
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
/// - `by_moving`: by chroot rather than pivot_root.
/// - `at_place`: [`attach_root`] was given a place.
///
/// # Errors
/// The mount calls fail.
pub fn pivot(prepared: &Prepared, by_moving: bool, at_place: bool) -> Outcome<()> {
    rustix::process::fchdir(&prepared.root).because(|| "cannot enter the root filesystem".to_owned())?;
    if by_moving {
        // For roots on the initial ramfs, where pivot_root does not work. The tree is on `/` already, unless hooks
        // wanted it elsewhere.
        if at_place {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let old = rustix::fs::open("/", flags, Mode::empty()).because(|| "cannot open `/`".to_owned())?;
            attach(prepared.root.as_fd(), old.as_fd()).because(|| "cannot move the root filesystem".to_owned())?;
        }
        crate::sys::mount::chroot_here().because(|| "cannot change the root".to_owned())?;
    } else {
        crate::sys::mount::pivot_root_here()
            .because(|| "pivot_root failed".to_owned())
            .or_hint("if the host runs from an initial ramfs, use --no-pivot")?;
        rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)
            .because(|| "cannot detach the old root".to_owned())?;
    }
    rustix::process::chdir("/").because(|| "cannot enter the new root".to_owned())
}
