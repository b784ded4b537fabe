//! ID maps: checked, written to a user namespace, and turned into a namespace for a mount.
//!
//! ```text
//! root            any map        /proc/PID/{uid,gid}_map
//! ordinary user   its own ID     the same, after "deny" in /proc/PID/setgroups
//!                 ranges         newuidmap, newgidmap: programs of the host that look at /etc/subuid and subgid
//! ```

use super::channel::Channel;
use crate::config::{Config, IdMapping};
use crate::error::{Because, Failure, Outcome};
use crate::rootless;
use crate::sys::clone::{self, Side};
use crate::sys::process;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

/// Lines the kernel takes.
const LINES_MAX: usize = 340;
/// The kernel takes less than a page, in one write.
const BYTES_MAX: usize = 4095;
/// How long `newuidmap` may take: it reads local files, but may ask a directory service.
const HELPER_WITHIN: Timespec = Timespec { tv_sec: 15, tv_nsec: 0 };

/// A line that the kernel would refuse, by its index, and why.
///
/// # Errors
/// The first such line.
pub fn check(map: &[IdMapping]) -> Result<(), (usize, String)> {
    if map.len() > LINES_MAX {
        return Err((LINES_MAX, format!("is more than the {LINES_MAX} lines that the kernel takes")));
    }
    for (index, line) in map.iter().enumerate() {
        if line.size == 0 {
            return Err((index, "has a `size` of 0".to_owned()));
        }
        for (first, key) in [(line.container_id, "containerID"), (line.host_id, "hostID")] {
            if u64::from(first) + u64::from(line.size) > u64::from(u32::MAX) {
                return Err((index, format!("`{key}` {first} with `size` {} goes past the last ID", line.size)));
            }
        }
        for (other, before) in map[..index].iter().enumerate() {
            let meet = |a: u32, b: u32| a < b.saturating_add(before.size) && b < a.saturating_add(line.size);
            for (key, meets) in [
                ("containerID", meet(line.container_id, before.container_id)),
                ("hostID", meet(line.host_id, before.host_id)),
            ] {
                if meets {
                    return Err((index, format!("has a range of `{key}` in common with line {other}")));
                }
            }
        }
    }
    if text(map).len() > BYTES_MAX {
        return Err((map.len() - 1, format!("the map is longer than the {BYTES_MAX} bytes that the kernel takes")));
    }
    Ok(())
}

/// Give a new user namespace for which the bundle has no map at all every ID that we have, as itself; an ordinary user
/// gets root for its own, all that it may map without help.
///
/// # Errors
/// `/proc` is not readable.
///
/// # Source
/// crun; the specification says nothing, and runc refuses.
pub fn fill_in(config: &mut Config) -> Outcome<()> {
    if !config.makes("user") || !config.linux.uid_mappings.is_empty() || !config.linux.gid_mappings.is_empty() {
        return Ok(());
    }
    let (uid, gid) = rootless::ids();
    if uid != 0 {
        let own = |host_id| vec![IdMapping { container_id: 0, host_id, size: 1 }];
        (config.linux.uid_mappings, config.linux.gid_mappings) = (own(uid), own(gid));
        return Ok(());
    }
    let same = |file: &str| {
        let path = format!("/proc/self/{file}");
        fs::read_to_string(&path).because(|| format!("cannot read `{path}`")).map(|text| to_itself(&text))
    };
    (config.linux.uid_mappings, config.linux.gid_mappings) = (same("uid_map")?, same("gid_map")?);
    Ok(())
}

/// The IDs that a map of ours has on the inside, each as itself.
fn to_itself(ours: &str) -> Vec<IdMapping> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|word| word.parse().ok());
        let (inside, size) = (numbers.next()??, numbers.nth(1)??);
        Some(IdMapping { container_id: inside, host_id: inside, size })
    };
    ours.lines().filter_map(line).collect()
}

/// The ID on the host's side.
pub fn to_host(map: &[IdMapping], id: u32) -> Option<u32> {
    map.iter().find_map(|line| {
        let offset = id.checked_sub(line.container_id)?;
        (offset < line.size).then(|| line.host_id.checked_add(offset))?
    })
}

/// The same map with ranges joined that continue each other, as few lines as it takes.
fn joined(map: &[IdMapping]) -> Vec<IdMapping> {
    let mut list: Vec<IdMapping> = map.to_vec();
    list.sort_by_key(|line| line.container_id);
    let mut short: Vec<IdMapping> = Vec::with_capacity(list.len());
    for line in list {
        match short.last_mut() {
            Some(last)
                if last.container_id.checked_add(last.size) == Some(line.container_id)
                    && last.host_id.checked_add(last.size) == Some(line.host_id) =>
            {
                last.size += line.size;
            }
            _ => short.push(line),
        }
    }
    short
}

fn lines(map: &[IdMapping]) -> String {
    map.iter().map(|line| format!("{} {} {}\n", line.container_id, line.host_id, line.size)).collect()
}

/// The map as the kernel reads it; in its own order unless that is too long.
fn text(map: &[IdMapping]) -> String {
    let plain = lines(map);
    if plain.len() <= BYTES_MAX { plain } else { lines(&joined(map)) }
}

/// Write both maps of a process that is in a new user namespace.
///
/// # Errors
/// The kernel or the helper programs refuse, or they do not end in time.
pub fn write(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Outcome<()> {
    let (uid, gid) = rootless::ids();
    if uid == 0 {
        write_file(pid, "uid_map", &text(uids))?;
        return write_file(pid, "gid_map", &text(gids));
    }
    let is_own = |map: &[IdMapping], id: u32| matches!(map, [line] if line.size == 1 && line.host_id == id);
    if is_own(uids, uid) {
        write_file(pid, "uid_map", &text(uids))?;
    } else {
        helper("newuidmap", "/etc/subuid", pid, uids)?;
    }
    if is_own(gids, gid) {
        // The groups that an administrator gave the user, perhaps to keep it from something, must stay.
        write_file(pid, "setgroups", "deny")?;
        write_file(pid, "gid_map", &text(gids))
    } else {
        helper("newgidmap", "/etc/subgid", pid, gids)
    }
}

fn write_file(pid: i32, file: &str, text: &str) -> Outcome<()> {
    let path = format!("/proc/{pid}/{file}");
    fs::write(&path, text).because(|| format!("cannot write {text:?} to `{path}`")).map_err(|failure| {
        match rootless::in_user_namespace() {
            true => failure.hint("host IDs are those of the runtime's own user namespace, see /proc/self/uid_map"),
            false => failure,
        }
    })
}

/// Have a program of the host with the privilege for it write a map.
fn helper(program: &'static str, table: &str, pid: i32, map: &[IdMapping]) -> Outcome<()> {
    let what = || format!("cannot run `{program}`");
    let output = rustix::fs::memfd_create("helper-output", rustix::fs::MemfdFlags::CLOEXEC).because(what)?;
    let mut output = fs::File::from(output);
    let copy = || output.try_clone().map(Stdio::from);
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    for line in map {
        command.args([line.container_id, line.host_id, line.size].map(|number| number.to_string()));
    }
    command.stdin(Stdio::null()).stdout(copy().because(what)?).stderr(copy().because(what)?);
    let mut child = command.spawn().because(what).map_err(|failure| {
        failure.hint("an ordinary user needs it to map more than its own ID: apt-get install uidmap")
    })?;
    let pidfd = clone::pidfd_open(child.id() as i32).because(what)?;
    let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    let ended = loop {
        match rustix::event::poll(&mut fds, Some(&HELPER_WITHIN)) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result.because(what)? > 0,
        }
    };
    if !ended {
        let _ = child.kill();
        let seconds = HELPER_WITHIN.tv_sec;
        return Err(Failure::new(format!("`{program}` did not end within {seconds} s"))
            .hint("it may wait for a directory service; see `subid` in /etc/nsswitch.conf"));
    }
    let status = child.wait().because(what)?;
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    let _ = output.seek(SeekFrom::Start(0)).and_then(|_| output.take(1024).read_to_end(&mut said));
    let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
    let cause = if said.is_empty() { status.to_string() } else { said };
    let (uid, _) = rootless::ids();
    Err(Failure { cause: Some(cause), ..Failure::new(format!("`{program}` refuses the map {:?}", lines(map))) }
        .hint(format!("`{table}` must give these IDs to user {uid}, and {program} must be setuid root")))
}

/// A user namespace with these maps and nobody in it, for a mount.
///
/// # Errors
/// No right to make or map it.
pub fn namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Outcome<OwnedFd> {
    let what = || "cannot make a user namespace for the map".to_owned();
    let (ours, theirs) = Channel::pair()?;
    match clone::clone3(libc::CLONE_NEWUSER as u64, None).because(what)? {
        Side::Child => {
            drop(ours);
            // Holds the namespace until the file below is open, or the runtime is gone.
            let _ = theirs.wait_for_go();
            process::exit_now(0)
        }
        Side::Parent { pid, pidfd } => {
            drop(theirs);
            let made = write(pid, uids, gids).and_then(|()| {
                let path = format!("/proc/{pid}/ns/user");
                rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).because(what)
            });
            drop(ours);
            clone::wait(pidfd.as_fd()).because(what)?;
            made
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Vec<IdMapping> {
        let line = |line: &str| {
            let number: Vec<u32> = line.split(' ').map(|word| word.parse().expect("a number")).collect();
            IdMapping { container_id: number[0], host_id: number[1], size: number[2] }
        };
        text.split(',').filter(|text| !text.is_empty()).map(line).collect()
    }

    #[test]
    fn lines_the_kernel_refuses_are_named() {
        for (text, want) in [
            ("0 1000 1", ""),
            ("0 100000 65536", ""),
            ("0 1000 1,1 100000 65536", ""),
            ("5 5 5,0 0 5,10 10 1", ""),
            ("0 0 4294967295", ""),
            ("0 1000 0", "0: has a `size` of 0"),
            ("1 0 4294967295", "0: `containerID` 1 with `size` 4294967295 goes past the last ID"),
            ("0 1 4294967295", "0: `hostID` 1 with `size` 4294967295 goes past the last ID"),
            ("0 0 10,9 100 1", "1: has a range of `containerID` in common with line 0"),
            ("0 0 10,10 9 1", "1: has a range of `hostID` in common with line 0"),
            ("5 5 1,0 100 10", "1: has a range of `containerID` in common with line 0"),
        ] {
            let got = check(&map(text)).err().map_or(String::new(), |(index, why)| format!("{index}: {why}"));
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn a_map_may_have_340_lines_if_they_are_short_or_join() {
        let spread = |count: u32, factor: u32| -> Vec<IdMapping> {
            (0..count).map(|id| IdMapping { container_id: id, host_id: id * factor, size: 1 }).collect()
        };
        assert_eq!(check(&spread(340, 2)), Ok(()));
        assert!(text(&spread(340, 2)).len() <= BYTES_MAX);
        assert_eq!(check(&spread(341, 2)).expect_err("too many").0, 340);
        assert!(check(&spread(340, 1_000_000)).expect_err("too long").1.contains("4095 bytes"));
        let neighbours: Vec<IdMapping> = (0..340)
            .rev()
            .map(|id| IdMapping { container_id: 1_000_000 + id, host_id: 2_000_000 + id, size: 1 })
            .collect();
        assert_eq!(check(&neighbours), Ok(()));
        assert_eq!(text(&neighbours), "1000000 2000000 340\n");
    }

    #[test]
    fn every_id_as_itself() {
        for (ours, want) in [
            ("         0          0 4294967295\n", "0 0 4294967295"),
            ("         0       1000          1\n         1     100000      65536\n", "0 0 1,1 1 65536"),
            ("", ""),
        ] {
            assert_eq!(to_itself(ours), map(want), "{ours:?}");
        }
    }

    #[test]
    fn ids_on_the_host() {
        let some = map("0 1000 1,10 100000 5");
        for (id, want) in [(0, Some(1000)), (1, None), (10, Some(100_000)), (14, Some(100_004)), (15, None)] {
            assert_eq!(to_host(&some, id), want, "{id}");
        }
    }
}
