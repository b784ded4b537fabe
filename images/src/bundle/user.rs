//! Who runs in a container: names are those of the image's own files, read inside its root file system.
//!
//! # Source
//! `passwd(5)`, `group(5)`; the rules of `USER` in the Dockerfile reference.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::Overrides;
use crate::error::{ImageError, Result, at};
use crate::manifest::ImageConfig;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// No image has that many users; what is beyond is not seen.
const FILE_MAX: u64 = 16 << 20;

/// Ids of a process.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: Vec<&'a str>,
}

/// The user wanted, else that of the image, else root.
pub(super) fn identity(image: &ImageConfig, rootfs: &Path, overrides: &Overrides) -> Result<Identity> {
    let wanted = overrides.user.as_deref().unwrap_or(&image.user);
    let (passwd, group) = (read(rootfs, PASSWD)?, read(rootfs, GROUP)?);
    let users: Vec<User<'_>> = passwd.lines().filter_map(user).collect();
    let groups: Vec<Group<'_>> = group.lines().filter_map(self::group).collect();
    resolve(wanted, &overrides.group_add, &users, &groups)
}

/// A file of the image, its links followed inside; empty if it is not there.
fn read(rootfs: &Path, file: &str) -> Result<String> {
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(at("open", rootfs))?;
    // Not blocked by a FIFO that an image may put there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let full = rootfs.join(&file[1..]);
    let opened = rustix::fs::openat2(
        root,
        &file[1..],
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let file = match opened {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(ImageError::io("open", &full, errno)),
    };
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(ImageError::io("read", &full, io::Error::from(io::ErrorKind::InvalidInput)));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(at("read", &full))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn user(line: &str) -> Option<User<'_>> {
    let fields: Vec<&str> = line.trim().split(':').collect();
    let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
    Some(User { name: fields[0], uid, gid, home: fields.get(5).copied().unwrap_or_default() })
}

fn group(line: &str) -> Option<Group<'_>> {
    let fields: Vec<&str> = line.trim().split(':').collect();
    let gid = fields.get(2)?.parse().ok()?;
    let members = fields.get(3).map(|all| all.split(',').collect()).unwrap_or_default();
    Some(Group { name: fields[0], gid, members })
}

fn unknown(kind: &'static str, name: &str, file: &'static str) -> ImageError {
    ImageError::UnknownUser { kind, name: name.to_owned(), file }
}

fn resolve(wanted: &str, more: &[String], users: &[User<'_>], groups: &[Group<'_>]) -> Result<Identity> {
    let (who, which) = match wanted.split_once(':') {
        Some((who, which)) => (who, Some(which).filter(|which| !which.is_empty())),
        None => (wanted, None),
    };
    let who = if who.is_empty() { "0" } else { who };
    let number = parse_id(who);
    // A name wins over a number: a user may be called `1000`.
    let known =
        users.iter().find(|user| user.name == who).or_else(|| users.iter().find(|user| Some(user.uid) == number));
    let uid = match (known, number) {
        (Some(user), _) => user.uid,
        (None, Some(number)) => number,
        (None, None) => return Err(unknown("user", who, PASSWD)),
    };
    let gid = match which {
        Some(which) => group_id(which, groups)?,
        None => known.map_or(0, |user| user.gid),
    };
    // The group of the process is among the others too: else giving it up would get around a refusal for a group.
    let mut all = vec![gid];
    if let (Some(user), None) = (known, which) {
        let member = |group: &&Group<'_>| group.members.contains(&user.name);
        all.extend(groups.iter().filter(member).map(|group| group.gid));
    }
    for name in more {
        all.push(group_id(name, groups)?);
    }
    let mut seen = BTreeSet::new();
    all.retain(|gid| seen.insert(*gid));
    let home = known.map(|user| user.home).filter(|home| home.starts_with('/')).unwrap_or("/");
    Ok(Identity { uid, gid, groups: all, home: home.to_owned() })
}

fn group_id(name: &str, groups: &[Group<'_>]) -> Result<u32> {
    let known = groups.iter().find(|group| group.name == name).map(|group| group.gid);
    known.or_else(|| parse_id(name)).ok_or_else(|| unknown("group", name, GROUP))
}

/// The largest number means "no change" to the kernel, so it is no id.
fn parse_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:102::/var/lib/postgresql:/bin/sh\n1000:x:7:7::/seven:\nbroken\n";
    const GROUP: &str = "root:x:0:\npostgres:x:102:\nssl-cert:x:103:postgres,www\nwheel:x:10:root\n";

    #[test]
    fn users_are_those_of_the_image() {
        let users: Vec<User<'_>> = PASSWD.lines().filter_map(user).collect();
        let groups: Vec<Group<'_>> = GROUP.lines().filter_map(group).collect();
        for (wanted, more, expected) in [
            ("", "", "0:0 [0, 10] /root"),
            ("root", "", "0:0 [0, 10] /root"),
            ("postgres", "", "101:102 [102, 103] /var/lib/postgresql"),
            ("101", "", "101:102 [102, 103] /var/lib/postgresql"),
            ("postgres:wheel", "", "101:10 [10] /var/lib/postgresql"),
            ("postgres:", "", "101:102 [102, 103] /var/lib/postgresql"),
            ("1000", "", "7:7 [7] /seven"),
            ("4711", "", "4711:0 [0] /"),
            ("4711:4712", "ssl-cert 99 4712", "4711:4712 [4712, 103, 99] /"),
            (":postgres", "", "0:102 [102] /root"),
            ("nobody", "", "no user `nobody` in /etc/passwd of the image"),
            ("root:nobody", "", "no group `nobody` in /etc/group of the image"),
            ("root", "nobody", "no group `nobody` in /etc/group of the image"),
            ("-1", "", "no user `-1` in /etc/passwd of the image"),
            ("4294967295", "", "no user `4294967295` in /etc/passwd of the image"),
        ] {
            let more: Vec<String> = more.split_whitespace().map(str::to_owned).collect();
            let got = match resolve(wanted, &more, &users, &groups) {
                Ok(i) => format!("{}:{} {:?} {}", i.uid, i.gid, i.groups, i.home),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, expected, "{wanted}");
        }
    }
}
