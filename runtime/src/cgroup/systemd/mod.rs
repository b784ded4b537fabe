//! Cgroups made by systemd: the container is a scope in a slice, and systemd knows its limits.
//!
//! ```text
//! placeholder process ──► StartTransientUnit(PIDs=[it]) ──► JobRemoved "done" ──► the scope's directories are there
//! container's first process is born there ──► placeholder ends ──► scope lives as long as the container
//! ```
//! A scope cannot be empty, and the container's process wants to be born in it; hence the placeholder. The scope is
//! delegated, so everything else is done as in any other cgroup.

pub mod bus;
pub mod properties;
pub mod wire;

use super::hierarchy::{Hierarchies, read};
use crate::config::Resources;
use crate::error::{Because, Failure, InStep, Outcome};
use crate::sys::clone::{self, Side};
use crate::sys::process;
use bus::{Bus, BusError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wire::{Value, Writer};

/// Prefix of annotations that are properties of the unit.
const ANNOTATION: &str = "org.systemd.property.";
/// First part of the names of scopes for bundles that name none.
const DEFAULT_PREFIX: &str = "gantry";

/// The unit of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Name, with `.scope`.
    pub name: String,
    /// The slice it is in.
    pub slice: String,
    /// It belongs to the user's own systemd.
    #[serde(default)]
    pub user: bool,
    /// More properties, from annotations.
    #[serde(default, skip)]
    extra: Vec<(String, Value)>,
}

/// A process that does nothing but be in a scope. It ends with this value, or with the process that made it.
#[derive(Debug)]
pub struct Placeholder(OwnedFd);

impl Placeholder {
    fn start() -> Outcome<(i32, Self)> {
        let parent = rustix::process::getpid();
        match clone::clone3(0, None).because(|| "cannot make a process for the scope".to_owned())? {
            Side::Child => {
                let tied = process::set_parent_death_signal(libc::SIGKILL).is_ok();
                if !tied || rustix::process::getppid() != Some(parent) {
                    process::exit_now(1);
                }
                loop {
                    rustix::event::pause();
                }
            }
            Side::Parent { pid, pidfd } => Ok((pid, Self(pidfd))),
        }
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        let _ = clone::pidfd_send_signal(self.0.as_fd(), libc::SIGKILL);
        let _ = clone::wait(self.0.as_fd());
    }
}

/// Whether the host was booted with systemd, as sd_booted(3) finds out.
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Refuse where there is no systemd.
///
/// # Errors
/// It does not run.
pub fn require() -> Outcome<()> {
    if is_running() {
        return Ok(());
    }
    Err(Failure::new("systemd not running on this host, cannot use systemd cgroups manager").hint(
        "leave out --systemd-cgroup; for podman `--cgroup-manager cgroupfs`, for docker `native.cgroupdriver=cgroupfs`",
    ))
}

/// Directories of a slice: `a-b.slice` is in `a.slice`.
fn expand_slice(slice: &str) -> Outcome<String> {
    let wrong = || Failure::new(format!("invalid slice name: {slice}")).hint("such as machine.slice or a-b.slice");
    let stem = slice.strip_suffix(".slice").filter(|stem| !stem.is_empty()).ok_or_else(wrong)?;
    if stem == "-" {
        return Ok(String::new());
    }
    let mut path = String::new();
    let mut prefix = String::new();
    for part in stem.split('-') {
        if part.is_empty() || !part.bytes().all(is_name_byte) {
            return Err(wrong());
        }
        prefix += part;
        path += &format!("{prefix}.slice/");
        prefix.push('-');
    }
    Ok(path)
}

/// What names of units are made of.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte)
}

impl Unit {
    /// The unit for `linux.cgroupsPath`, which is `SLICE:PREFIX:NAME` then, and annotations.
    ///
    /// # Errors
    /// It has another form.
    pub fn new(cgroups_path: Option<&str>, id: &str, annotations: &BTreeMap<String, String>) -> Outcome<Self> {
        let user = !rustix::process::geteuid().is_root();
        let default_slice = if user { "user.slice" } else { "system.slice" };
        let given = cgroups_path.unwrap_or("");
        let parts: Vec<&str> = if given.is_empty() { vec!["", DEFAULT_PREFIX, id] } else { given.split(':').collect() };
        let [slice, prefix, name] = parts[..] else {
            return Err(Failure::new(format!(
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \"{given}\" instead"
            ))
            .hint("for example machine.slice:libpod:web"));
        };
        let slice = if slice.is_empty() { default_slice } else { slice };
        expand_slice(slice)?;
        if name.is_empty() || name.ends_with(".slice") || !name.bytes().chain(prefix.bytes()).all(is_name_byte) {
            return Err(Failure::new(format!("cgroupsPath \"{given}\" does not name a scope"))
                .hint("names of units are made of letters, digits and :-_.\\@"));
        }
        let name = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        let extra = annotations
            .iter()
            .filter_map(|(key, text)| key.strip_prefix(ANNOTATION).map(|name| properties::from_annotation(name, text)))
            .collect::<Outcome<_>>()?;
        Ok(Self { name, slice: slice.to_owned(), user, extra })
    }

    /// Where its cgroup will be below each mount point.
    ///
    /// # Errors
    /// The user's systemd does not say where it is itself.
    pub fn place(&self) -> Outcome<String> {
        let mut place = expand_slice(&self.slice)?;
        if self.user {
            let root = self.connect()?.manager_text("ControlGroup").because(|| "cannot ask systemd".to_owned())?;
            let root = root.trim_matches('/');
            if !root.is_empty() {
                place = format!("{root}/{place}");
            }
        }
        Ok(place + &self.name)
    }

    /// Sockets to try, systemd's own first.
    fn sockets(&self) -> Vec<(PathBuf, bool)> {
        if !self.user {
            return vec![("/run/systemd/private".into(), true), ("/run/dbus/system_bus_socket".into(), false)];
        }
        let uid = rustix::process::geteuid().as_raw();
        let runtime =
            std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| format!("/run/user/{uid}").into(), PathBuf::from);
        let named = std::env::var("DBUS_SESSION_BUS_ADDRESS").unwrap_or_default();
        let named = named.split([';', ',']).find_map(|part| part.strip_prefix("unix:path=")).map(PathBuf::from);
        let bus = named.unwrap_or_else(|| runtime.join("bus"));
        vec![(runtime.join("systemd/private"), true), (bus, false)]
    }

    fn connect(&self) -> Outcome<Bus> {
        connect(&self.sockets(), bus::WITHIN)
    }

    /// Start the unit with the limits as its properties. When this returns its cgroup is there, with a placeholder in
    /// it.
    ///
    /// # Errors
    /// systemd refuses, or does not answer in time.
    pub fn start(&self, resources: &Resources, hierarchies: &Hierarchies) -> Outcome<Placeholder> {
        require()?;
        let limits = properties::all(resources, hierarchies)?;
        let mut bus = self.connect()?;
        let (pid, placeholder) = Placeholder::start()?;
        start_scope(&mut bus, self, pid, hierarchies.is_pure_v2(), limits)?;
        Ok(placeholder)
    }

    /// Change properties while it runs.
    ///
    /// # Errors
    /// systemd refuses, or does not answer in time.
    pub fn set(&self, changes: &[wire::Property]) -> Outcome<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut body = Writer::default();
        body.text(&self.name);
        body.bool(true);
        body.properties(changes);
        let mut bus = self.connect()?;
        match bus.manager("SetUnitProperties", "sba(sv)", &body.0) {
            Ok(_) => Ok(()),
            Err(error) => Err(failure(&format!("unable to set unit properties of `{}`", self.name), &error)),
        }
    }

    /// Stop it; one that is gone is stopped. Its processes should be dead already, or systemd asks them to end first.
    ///
    /// # Errors
    /// systemd does not answer in time.
    pub fn stop(&self) -> Outcome<()> {
        stop_scope(&mut self.connect()?, &self.name)
    }
}

/// The first socket that answers.
fn connect(sockets: &[(PathBuf, bool)], within: Duration) -> Outcome<Bus> {
    let mut reasons = Vec::new();
    for (path, direct) in sockets {
        match Bus::connect(path, *direct, within) {
            Ok(bus) => return Ok(bus),
            Err(error @ BusError::Late(_)) => return Err(failure("cannot talk to systemd", &error)),
            Err(error) => reasons.push(format!("`{}`: {error}", path.display())),
        }
    }
    Err(Failure::new(format!("cannot connect to systemd: {}", reasons.join("; "))))
        .or_hint("is this the host's own /run? without systemd leave out --systemd-cgroup")
}

fn failure(what: &str, error: &BusError) -> Failure {
    let failure = Failure { cause: Some(error.to_string()), ..Failure::new(what) };
    match error {
        BusError::Late(_) => {
            failure.hint("systemd is busy or hangs; see `systemctl list-jobs` and `journalctl -b _PID=1`")
        }
        BusError::Answer { .. } if error.is("UnitExists") => {
            failure.hint("another container has this name; see `systemctl status`, or choose another cgroupsPath")
        }
        _ => failure,
    }
}

fn start_scope(bus: &mut Bus, unit: &Unit, pid: i32, v2: bool, limits: Vec<wire::Property>) -> Outcome<()> {
    let what = format!("unable to start unit \"{}\"", unit.name);
    let mut list: Vec<(&str, Value)> = vec![
        ("Description", Value::Text(format!("container {}", unit.name))),
        ("Slice", Value::Text(unit.slice.clone())),
        ("PIDs", Value::U32s(vec![pid as u32])),
        ("Delegate", Value::Bool(true)),
        ("MemoryAccounting", Value::Bool(true)),
        ("CPUAccounting", Value::Bool(true)),
        (if v2 { "IOAccounting" } else { "BlockIOAccounting" }, Value::Bool(true)),
        ("TasksAccounting", Value::Bool(true)),
        ("DefaultDependencies", Value::Bool(false)),
    ];
    list.extend(limits);
    list.extend(unit.extra.iter().map(|(name, value)| (name.as_str(), value.clone())));
    let mut body = Writer::default();
    body.text(&unit.name);
    body.text("replace");
    body.properties(&list);
    body.no_auxiliary_units();
    let mut result = bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", &body.0);
    if result.as_ref().is_err_and(|error| error.is("UnitExists")) {
        // It may be left from a container that failed.
        reset_failed(bus, &unit.name);
        result = bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", &body.0);
    }
    match result {
        Ok(word) if word == "done" || (word == bus::UNKNOWN && is_member(pid, &unit.name)) => Ok(()),
        Ok(word) => {
            reset_failed(bus, &unit.name);
            Err(Failure::new(format!("error creating systemd unit `{}`: got `{word}`", unit.name)))
        }
        Err(error) => Err(failure(&what, &error)),
    }
}

/// Whether a process is in the cgroup of a unit.
fn is_member(pid: i32, name: &str) -> bool {
    let text = read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().any(|line| line.rsplit('/').next() == Some(name))
}

fn stop_scope(bus: &mut Bus, name: &str) -> Outcome<()> {
    let mut body = Writer::default();
    body.text(name);
    body.text("replace");
    let result = bus.job("StopUnit", "ss", &body.0);
    let result = match result {
        // Whatever the job came to, the processes are dead; what is left of the unit is reset.
        Ok(_) => Ok(()),
        Err(error) if error.is("NoSuchUnit") => Ok(()),
        Err(error) => Err(failure(&format!("unable to stop unit \"{name}\""), &error)),
    };
    reset_failed(bus, name);
    result
}

/// Let systemd forget a unit that failed; one that has not failed is not known any more, which is as good.
fn reset_failed(bus: &mut Bus, name: &str) {
    let mut body = Writer::default();
    body.text(name);
    let _ = bus.manager("ResetFailedUnit", "s", &body.0);
}

#[cfg(test)]
mod tests;
