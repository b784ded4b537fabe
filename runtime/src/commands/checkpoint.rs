//! `checkpoint`: save a running container with CRIU, and remove it unless it is to go on.

use super::open;
use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::cgroup::Cgroup;
use crate::criu::message::Message;
use crate::criu::{self, Call, Kind, option, outside};
use crate::error::{Because, Failure, InStep, Outcome};
use crate::remove::{remove, saved_config};
use crate::report;
use crate::state;
use crate::state::Status;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Where images go unless `--image-path` says otherwise.
const DEFAULT_IMAGES: &str = "checkpoint";

/// Options of `checkpoint` and `restore` alike.
#[derive(Debug, Default)]
pub struct Images {
    images: Option<PathBuf>,
    work: Option<PathBuf>,
    /// Switches of CRIU that are simply handed on: field and value.
    switches: Vec<u64>,
    cgroups_mode: Option<i64>,
    empty_network: bool,
}

/// A command with these options.
pub trait HasImages {
    /// Where they go.
    fn images(&mut self) -> &mut Images;
}

/// The options as a table for any such command.
#[derive(Debug)]
pub struct ImagesOptions<C>(PhantomData<C>);

impl<C: HasImages + 'static> ImagesOptions<C> {
    /// What both have.
    pub const LIST: &'static [Opt<C>] = &[
        Opt::value("image-path", "DIR", "directory of the images [default: ./checkpoint]", |command: &mut C, value| {
            value.path().map(|path| command.images().images = Some(path))
        }),
        Opt::value(
            "work-path",
            "DIR",
            "directory of CRIU's logs [default: that of the images]",
            |command: &mut C, value| value.path().map(|path| command.images().work = Some(path)),
        ),
        Opt::switch("tcp-established", "with open TCP connections", |command: &mut C, value| {
            command.images().switch(option::TCP_ESTABLISHED, value.on()?)
        }),
        Opt::switch("ext-unix-sk", "with unix sockets to outside", |command: &mut C, value| {
            command.images().switch(option::EXT_UNIX_SK, value.on()?)
        }),
        Opt::switch("shell-job", "with a session and terminal of outside", |command: &mut C, value| {
            command.images().switch(option::SHELL_JOB, value.on()?)
        }),
        Opt::switch("file-locks", "with file locks", |command: &mut C, value| {
            command.images().switch(option::FILE_LOCKS, value.on()?)
        }),
        Opt::switch("auto-dedup", "drop pages that later images replace", |command: &mut C, value| {
            command.images().switch(option::AUTO_DEDUP, value.on()?)
        }),
        Opt::value(
            "manage-cgroups-mode",
            "MODE",
            "ignore, soft, full or strict [default: soft]",
            |command: &mut C, value| {
                let word = value.text()?;
                let mode =
                    criu::cgroups_mode(&word).ok_or_else(|| value.wrong("ignore, soft, full or strict", &word))?;
                command.images().cgroups_mode = Some(mode);
                Ok(())
            },
        ),
        Opt::value("empty-ns", "network", "a network namespace without its content", |command: &mut C, value| {
            value.one_of(&["network"]).map(|_| command.images().empty_network = true)
        }),
        Opt::switch("lazy-pages", "not supported: pages are always there at once", |_: &mut C, value| {
            match value.on()? {
                true => {
                    Err(UsageError::new("--lazy-pages is not supported; leave it out and memory is restored at once"))
                }
                false => Ok(()),
            }
        }),
    ];
}

impl Images {
    fn switch(&mut self, field: u64, on: bool) -> Result<(), UsageError> {
        self.switches.retain(|other| *other != field);
        self.switches.extend(on.then_some(field));
        Ok(())
    }

    /// Directory of the images.
    ///
    /// # Errors
    /// There is no current directory.
    pub fn directory(&self) -> Outcome<PathBuf> {
        match &self.images {
            Some(path) => Ok(path.clone()),
            None => std::path::absolute(DEFAULT_IMAGES).because(|| "there is no current directory".to_owned()),
        }
    }

    /// Directory of CRIU's log.
    ///
    /// # Errors
    /// There is no current directory.
    pub fn work(&self) -> Outcome<PathBuf> {
        self.work.clone().map_or_else(|| self.directory(), Ok)
    }

    /// The part of CRIU's options that they are.
    pub fn options(&self, log: &str) -> Message {
        let mut options = Message::default()
            .number(option::LOG_LEVEL, 4)
            .text(option::LOG_FILE, log)
            .flag(option::NOTIFY_SCRIPTS, true)
            .flag(option::MANAGE_CGROUPS, true)
            .flag(option::ORPHAN_PTS_MASTER, true)
            .flag(option::EVASIVE_DEVICES, true)
            .flag(option::LINK_REMAP, true);
        for field in &self.switches {
            options = options.flag(*field, true);
        }
        if let Some(mode) = self.cgroups_mode {
            options = options.number(option::MANAGE_CGROUPS_MODE, mode);
        }
        if self.empty_network {
            options = options.number(option::EMPTY_NS, i64::from(libc::CLONE_NEWNET));
        }
        options
    }
}

/// `checkpoint`.
#[derive(Debug, Default)]
pub struct Checkpoint {
    id: String,
    images: Images,
    leave_running: bool,
    pre_dump: bool,
    parent: Option<String>,
    page_server: Option<(String, u16)>,
}

impl HasImages for Checkpoint {
    fn images(&mut self) -> &mut Images {
        &mut self.images
    }
}

impl Command for Checkpoint {
    const NAME: &'static str = "checkpoint";
    const SUMMARY: &'static str = "save a running container with CRIU";
    const OPERANDS: &'static str = "ID";
    const OPTIONS: &'static [&'static [Opt<Self>]] = &[
        ImagesOptions::<Self>::LIST,
        &[
            Opt::switch("leave-running", "let it go on afterwards", |command: &mut Self, value| {
                value.on().map(|on| command.leave_running = on)
            }),
            Opt::switch(
                "pre-dump",
                "save memory only and let it go on, for a shorter stop later",
                |command: &mut Self, value| value.on().map(|on| command.pre_dump = on),
            ),
            Opt::value("parent-path", "DIR", "earlier images, relative to these", |command: &mut Self, value| {
                value.text().map(|text| command.parent = Some(text))
            }),
            Opt::value(
                "page-server",
                "ADDRESS:PORT",
                "send memory to a page server of CRIU",
                |command: &mut Self, value| {
                    let text = value.text()?;
                    let parsed =
                        text.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
                    command.page_server = Some(parsed.ok_or_else(|| value.wrong("ADDRESS:PORT", &text))?);
                    Ok(())
                },
            ),
        ],
    ];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.id = operands.id()?;
        Ok(())
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        let (dir, record) = open(global, &self.id)?;
        let status = dir.status(&record);
        let init = match (status, record.init) {
            (Status::Created | Status::Stopped | Status::Creating, _) | (_, None) => {
                let text = format!("container cannot be checkpointed in {} state: `{}`", status.name(), self.id);
                return Err(Failure::new(text).hint("only a running container can be saved"));
            }
            (_, Some(init)) => init,
        };
        let program = criu::find(global.criu.as_deref())?;
        let (_, config) = saved_config(&dir)?;
        let cgroup = Cgroup::at(record.cgroup.clone()).in_step("cgroup")?;
        let images = self.images.directory()?;
        let images_dir = criu::directory(&images)?;
        let work = self.images.work()?;
        let work_dir = criu::directory(&work)?;
        let mut options = self
            .images
            .options("dump.log")
            .number(option::IMAGES_DIR_FD, i64::from(images_dir.as_raw_fd()))
            .number(option::WORK_DIR_FD, i64::from(work_dir.as_raw_fd()))
            .text(option::ROOT, &record.rootfs.display().to_string())
            .number(option::PID, i64::from(init.pid))
            .flag(option::LEAVE_RUNNING, self.leave_running || self.pre_dump);
        if let Some(parent) = &self.parent {
            if parent.starts_with('/') || !images.join(parent).is_dir() {
                return Err(Failure::new(format!(
                    "--parent-path: no images in `{parent}`, relative to `{}`",
                    images.display()
                )));
            }
            options = options.text(option::PARENT_IMG, parent);
        }
        if self.pre_dump || self.parent.is_some() {
            options = options.flag(option::TRACK_MEM, true);
        }
        if let Some((address, port)) = &self.page_server {
            let server = Message::default().text(1, address).number(2, i64::from(*port));
            options = options.message(option::PAGE_SERVER, &server);
        }
        for (place, mount) in outside::present(outside::host_mounts(&config, &record.bundle, &cgroup), init.pid)? {
            options = options.message(option::EXT_MNT, &Message::default().text(1, &place).text(2, &mount.destination));
        }
        for (kind, name, path) in outside::joined(&config)?.named {
            options = options.text(option::EXTERNAL, &format!("{kind}[{}]:{name}", outside::inode(&path)?));
        }
        let kind = if self.pre_dump { Kind::PreDump } else { Kind::Dump };
        let streams = outside::streams(init.pid)?;
        for stream in streams.iter().filter(|stream| outside::is_outside(stream) && !stream.starts_with("pipe:")) {
            options = options.text(option::EXTERNAL, stream);
        }
        if !self.pre_dump {
            let streams = serde_json::to_vec(&streams).because(|| "cannot encode".to_owned())?;
            state::write_atomically(&images.join(outside::STREAMS), &streams, false)?;
        }
        let call = Call {
            program: &program,
            kind,
            options,
            inherit: Vec::new(),
            log: work.join("dump.log"),
            prepare: &|| Ok(()),
        };
        call.run(&mut |_| Ok(())).in_step("checkpoint")?;
        if !self.leave_running && !self.pre_dump {
            for warning in remove(&dir, Some(&record), &self.id)?.into_iter().flatten() {
                report::warning(global, &warning);
            }
        }
        Ok(0)
    }
}
