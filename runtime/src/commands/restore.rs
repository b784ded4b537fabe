//! `restore`: make a container again from the images of a checkpoint.

use super::checkpoint::{HasImages, Images, ImagesOptions};
use super::launching::{Common, CommonOptions, HasCommon, clean_up, load};
use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::cgroup::{Cgroup, owner};
use crate::config::Config;
use crate::container::hooks;
use crate::container::init::Terminal;
use crate::container::options;
use crate::container::path::{Links, RootDir};
use crate::criu::message::Message;
use crate::criu::{self, Call, Kind, Notification, option, outside};
use crate::error::{Because, Failure, InStep, Outcome};
use crate::foreground::{self, Signals};
use crate::launch::{self, Bundle, Manner};
use crate::pidfd::Receiver;
use crate::state::{self, ProcessId, Record, StateDir, Status};
use crate::sys::{clone, socket, tty};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// `restore`.
#[derive(Debug, Default)]
pub struct Restore {
    common: Common,
    images: Images,
    detach: bool,
    keep: bool,
    lsm_profile: Option<String>,
}

impl HasCommon for Restore {
    fn common(&mut self) -> &mut Common {
        &mut self.common
    }
}

impl HasImages for Restore {
    fn images(&mut self) -> &mut Images {
        &mut self.images
    }
}

impl Command for Restore {
    const NAME: &'static str = "restore";
    const SUMMARY: &'static str = "make a container again from a checkpoint";
    const OPERANDS: &'static str = "ID";
    const OPTIONS: &'static [&'static [Opt<Self>]] = &[
        CommonOptions::<Self>::LAUNCH,
        ImagesOptions::<Self>::LIST,
        &[
            Opt::switch("detach", "return when it runs", |command: &mut Self, value| {
                value.on().map(|on| command.detach = on)
            })
            .short('d'),
            Opt::switch(
                "keep",
                "do not remove the container when the program has ended",
                |command: &mut Self, value| value.on().map(|on| command.keep = on),
            ),
            Opt::switch("no-subreaper", "accepted for compatibility: this is no subreaper", |_, value| {
                value.on().map(drop)
            }),
            Opt::value(
                "lsm-profile",
                "TYPE:NAME",
                "with this AppArmor or SELinux profile",
                |command: &mut Self, value| value.text().map(|text| command.lsm_profile = Some(text)),
            ),
        ],
    ];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.common.finish(operands.id()?)
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        let signals = Signals::hold()?;
        let options = self.common.options(global);
        let program = criu::find(global.criu.as_deref())?;
        let bundle = load(global, &options.bundle)?;
        let manner = Manner { later: false, keep_terminal: !self.detach, stdio: None, supervised: false };
        let terminal = launch::terminal_receiver(&options, &bundle.config, &manner)?;
        let receiver = Receiver::connect(options.pidfd_socket.as_ref())?;
        leave_mounts().in_step("mount namespace")?;
        let images = self.images.directory()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let images_dir = rustix::fs::open(&images, flags, Mode::empty())
            .because(|| format!("cannot open the images in `{}`", images.display()))
            .or_hint("--image-path names the directory that `checkpoint` has written")?;
        let unit = launch::unit(&options, &bundle.config).in_step("cgroup")?;
        let dir = StateDir::new(&options.root, &options.id)?;
        let lock = dir.claim().in_step("claim id")?;
        let mut attempt = Attempt { dir: &dir, cgroup: None };
        let mut record = launch::intent(&options, &bundle, &manner, unit.as_ref())?;
        dir.write(&record).in_step("record intent")?;
        let copy = dir.file("config.json");
        fs::write(&copy, &bundle.text)
            .because(|| format!("cannot write `{}`", copy.display()))
            .in_step("record intent")?;
        let mut cgroup = Cgroup::at(record.cgroup.clone()).in_step("cgroup")?.with_unit(unit);
        let made = cgroup.create(&bundle.config.linux.resources).in_step("cgroup")?;
        attempt.cgroup = Some(cgroup.clone());
        cgroup.apply(&bundle.config.linux.resources).in_step("limits")?;
        if let Some(user) = owner::of(&bundle.config) {
            cgroup.give_to(user).in_step("cgroup")?;
        }
        make_mount_points(&bundle.config, &record.rootfs).in_step("mount points")?;
        let work = Restoring { restore: self, bundle: &bundle, dir: &dir, record: &record, cgroup: &cgroup };
        let (pid, master) = work.restore(&program, &images, &images_dir, &terminal)?;
        drop(made);
        record.init = Some(ProcessId::of(pid)?);
        record.complete = true;
        dir.write(&record).in_step("record process")?;
        let pidfd = clone::pidfd_open(pid).because(|| "the restored process has gone".to_owned())?;
        receiver.send(pidfd.as_fd())?;
        if let Some(file) = &options.pid_file {
            state::write_atomically(file, pid.to_string().as_bytes(), false).in_step("pid file")?;
        }
        std::mem::forget(attempt);
        let held = lock.release();
        if self.detach {
            return Ok(0);
        }
        let exit = foreground::attend(pidfd.as_fd(), &signals, master, None)?;
        if !self.keep {
            clean_up(global, &dir, held, &record, &cgroup);
        }
        Ok(exit.shell_code())
    }
}

/// Takes back what was made, unless told that all went well.
struct Attempt<'a> {
    dir: &'a StateDir,
    cgroup: Option<Cgroup>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.kill().and_then(|()| cgroup.remove());
        }
        let _ = self.dir.remove();
    }
}

/// CRIU mounts, but makes no place for it: a fresh root filesystem lacks what the first start made there.
fn make_mount_points(config: &Config, rootfs: &Path) -> Outcome<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, flags, Mode::empty())
        .because(|| format!("cannot open root filesystem `{}`", rootfs.display()))?;
    let root = RootDir(root.as_fd());
    let mut covered: Vec<String> = Vec::new();
    for mount in &config.mounts {
        let destination = crate::container::path::clean(&mount.destination);
        // Below another mount, the place is in the images or in its source.
        if covered.iter().any(|above| destination.starts_with(&format!("{above}/"))) {
            continue;
        }
        let bind = options::parse(&mount.options).is_ok_and(|options| options.bind.is_some());
        let source = mount.source.as_deref().map(Path::new);
        let links = Links::for_path(&destination);
        if bind && source.is_some_and(|source| source.exists() && !source.is_dir()) {
            root.make_file(&destination, links)?;
        } else {
            root.make_dir(&destination, links)?;
        }
        covered.push(destination);
    }
    Ok(())
}

/// What a restore works with.
struct Restoring<'a> {
    restore: &'a Restore,
    bundle: &'a Bundle,
    dir: &'a StateDir,
    record: &'a Record,
    cgroup: &'a Cgroup,
}

impl Restoring<'_> {
    /// Returns the first process, and its terminal if it is ours to keep.
    fn restore(
        &self,
        program: &Path,
        images: &Path,
        images_dir: &OwnedFd,
        terminal: &Terminal,
    ) -> Outcome<(i32, Option<OwnedFd>)> {
        let config = &self.bundle.config;
        let work = self.restore.images.work()?;
        let work_dir = criu::directory(&work)?;
        let root = &self.record.rootfs;
        // Over itself, in our mount namespace alone.
        mount_bind_recursive(root, root).because(|| format!("cannot mount `{}` for criu", root.display()))?;
        let mut options = self
            .restore
            .images
            .options("restore.log")
            .number(option::IMAGES_DIR_FD, i64::from(images_dir.as_raw_fd()))
            .number(option::WORK_DIR_FD, i64::from(work_dir.as_raw_fd()))
            .text(option::ROOT, &root.display().to_string())
            .flag(option::RST_SIBLING, true);
        if let Some(profile) = &self.restore.lsm_profile {
            options = options.text(option::LSM_PROFILE, profile);
        }
        for mount in outside::host_mounts(config, &self.bundle.path, self.cgroup) {
            let (key, value) = (&mount.destination, mount.source.display().to_string());
            options = options.message(option::EXT_MNT, &Message::default().text(1, key).text(2, &value));
        }
        // Where it is put, whatever its place was; the one without a name is for the unified hierarchy.
        let place = format!("/{}", self.record.cgroup);
        options = options.message(option::CG_ROOT, &Message::default().text(2, &place));
        for controller in self.cgroup.hierarchies().v1.iter().flat_map(|v1| &v1.controllers) {
            options = options.message(option::CG_ROOT, &Message::default().text(1, controller).text(2, &place));
        }
        let joined = outside::joined(config)?;
        for (kind, path) in &joined.entered {
            let join = Message::default().text(1, kind).text(2, &path.display().to_string());
            options = options.message(option::JOIN_NS, &join);
        }
        let mut kept = Vec::new();
        for (_, name, path) in &joined.named {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file = rustix::fs::open(path, flags, Mode::empty())
                .because(|| format!("cannot open namespace `{}`", path.display()))?;
            kept.push(((*name).to_owned(), file));
        }
        for (number, name) in (0..).zip(old_streams(images)) {
            if outside::is_outside(&name) {
                let ours = crate::sys::process::inherited(number)
                    .ok_or_else(|| Failure::new(format!("descriptor {number} is closed")))?;
                let copy = rustix::io::fcntl_dupfd_cloexec(ours, 3).because(|| "cannot keep a stream".to_owned())?;
                kept.push((name, copy));
            }
        }
        let mut doors = self.cgroup.doors()?;
        self.cgroup.add_v2_door(&mut doors)?;
        let no_new_privileges = config.process.as_ref().is_some_and(|process| process.no_new_privileges);
        // In the process that becomes CRIU: its children are born in the container's cgroup.
        let prepare = || {
            doors.enter().in_step("join cgroup")?;
            // CRIU before 3.18 forgets it; what it makes again inherits it.
            if no_new_privileges {
                crate::sys::process::set_no_new_privs().because(|| "cannot set no_new_privs".to_owned())?;
            }
            Ok(())
        };
        let inherit = kept.iter().map(|(name, fd)| (name.clone(), fd.as_fd())).collect();
        let log = work.join("restore.log");
        let call = Call { program, kind: Kind::Restore, options, inherit, log, prepare: &prepare };
        let mut master = None;
        let pid =
            call.run(&mut |notification| self.notified(notification, terminal, &mut master)).in_step("restore")?;
        let pid = pid.ok_or_else(|| Failure::new("criu did not say which process it has restored"))?;
        Ok((pid, master))
    }

    fn notified(&self, notification: Notification, terminal: &Terminal, master: &mut Option<OwnedFd>) -> Outcome<()> {
        match (notification.point.as_str(), notification.terminal) {
            ("setup-namespaces", _) => {
                let hooks = &self.bundle.config.hooks;
                let state = self.dir.state(self.record).with(Status::Creating, Some(notification.pid));
                hooks::run("prestart", &hooks.prestart, &state.to_line()).in_step("runtime hooks")?;
                hooks::run("createRuntime", &hooks.create_runtime, &state.to_line()).in_step("runtime hooks")
            }
            ("orphan-pts-master", Some(found)) => match terminal {
                Terminal::Send(receiver) => {
                    let number = tty::number(found.as_fd()).because(|| "cannot name the terminal".to_owned())?;
                    socket::send(receiver.as_fd(), format!("/dev/pts/{number}").as_bytes(), Some(found.as_fd()))
                        .because(|| "cannot send the terminal to the console socket".to_owned())
                }
                Terminal::Keep | Terminal::None => {
                    *master = Some(found);
                    Ok(())
                }
            },
            _ => Ok(()),
        }
    }
}

/// The standard streams the container had.
fn old_streams(images: &Path) -> Vec<String> {
    let text = fs::read(images.join(outside::STREAMS)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// A mount namespace of our own, which CRIU inherits: it insists on a root filesystem that is a mount, and nobody else
/// should see that one. Before the directories of images and logs are opened, since CRIU makes mounts there, too.
fn leave_mounts() -> Outcome<()> {
    clone::unshare(libc::CLONE_NEWNS).because(|| "cannot make a mount namespace for criu".to_owned())?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .because(|| "cannot make the mounts of criu's namespace private".to_owned())
}
