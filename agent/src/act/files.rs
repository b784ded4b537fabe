//! Small files of a replica: what the manifest gives, and what every container expects in `/etc`.

use crate::fsx::{self, FileError};
use crate::paths;
use gantry_api::network::Attachment;
use gantry_api::spec::{File, Template};
use rustix::mount::MountFlags;
use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// All secrets of a node together.
const SECRETS_OPTIONS: &std::ffi::CStr = c"mode=0700,size=64m";
/// `statfs(2)`: file systems that live in memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;
/// Compose's name for the node itself, as seen from a container.
const HOST_GATEWAY: &str = "host-gateway";

/// Writes the manifest's files; where each lies, in their order.
pub(crate) fn write(files: &[File], replica: &paths::Replica) -> Result<Vec<PathBuf>, FileError> {
    if files.iter().any(|file| file.secret) {
        ensure_in_memory(replica.secrets.parent().unwrap_or(&replica.secrets))?;
        fsx::ensure_dir(&replica.secrets, 0o700)?;
    }
    if files.iter().any(|file| !file.secret) {
        fsx::ensure_dir(&replica.files(), 0o700)?;
    }
    let one = |(index, file): (usize, &File)| {
        let dir = if file.secret { replica.secrets.clone() } else { replica.files() };
        let path = dir.join(index.to_string());
        write_one(&path, file).map_err(FileError::new("write", &path))?;
        Ok(path)
    };
    files.iter().enumerate().map(one).collect()
}

fn write_one(path: &Path, file: &File) -> io::Result<()> {
    // Its owner is set before its content and before its mode.
    let open = || fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut to = match open() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            open()?
        }
        other => other?,
    };
    chown(path, Some(file.uid), Some(file.gid))?;
    io::Write::write_all(&mut to, file.content.as_bytes())?;
    to.set_permissions(fs::Permissions::from_mode(file.mode & 0o7777))
}

/// Makes `dir` a place that is never written to a disk (swap aside).
fn ensure_in_memory(dir: &Path) -> Result<(), FileError> {
    fsx::ensure_dir(dir, 0o700)?;
    let mount = || {
        let kind = rustix::fs::statfs(dir)?.f_type as u64;
        if matches!(kind & 0xffff_ffff, TMPFS_MAGIC | RAMFS_MAGIC) {
            return Ok(());
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("tmpfs", dir, "tmpfs", flags, SECRETS_OPTIONS)
    };
    mount().map_err(|errno: rustix::io::Errno| FileError::new("mount tmpfs on", dir)(errno.into()))
}

/// Writes `hosts`, `hostname` and `resolv.conf`; each with its path inside.
pub(crate) fn write_etc(
    template: &Template,
    hostname: &str,
    network: &Attachment,
    replica: &paths::Replica,
) -> Result<Vec<(PathBuf, &'static str)>, FileError> {
    let dir = replica.etc();
    fsx::ensure_dir(&dir, 0o755)?;
    let put = |name: &str, target: &'static str, text: String| {
        let path = dir.join(name);
        let write = fs::write(&path, text).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)));
        write.map_err(FileError::new("write", &path))?;
        Ok((path, target))
    };
    Ok(vec![
        put("hosts", "/etc/hosts", hosts(template, hostname, network))?,
        put("hostname", "/etc/hostname", format!("{hostname}\n"))?,
        put("resolv.conf", "/etc/resolv.conf", format!("nameserver {}\n", network.gateway))?,
    ])
}

fn hosts(template: &Template, hostname: &str, network: &Attachment) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    text.push_str(&format!("{}\t{hostname}\n", network.address));
    for (name, address) in &template.extra_hosts {
        let gateway = network.gateway.to_string();
        let address = if address == HOST_GATEWAY { &gateway } else { address };
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Paths;
    use std::os::unix::fs::MetadataExt;

    fn attachment() -> Attachment {
        Attachment {
            id: "x".to_owned(),
            address: [10, 210, 0, 7].into(),
            prefix_length: 24,
            gateway: [10, 210, 0, 1].into(),
            netns: "/run/netns/x".to_owned(),
        }
    }

    #[test]
    fn files_have_owner_and_mode_and_may_be_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let replica = Paths::new(dir.path(), dir.path()).replica(&"r".parse().unwrap());
        let file = File {
            target: "/etc/app.conf".to_owned(),
            content: "a=1".to_owned(),
            mode: 0o440,
            uid: 70,
            gid: 71,
            secret: false,
        };
        for _ in 0..2 {
            let paths = write(std::slice::from_ref(&file), &replica).unwrap();
            let metadata = fs::metadata(&paths[0]).unwrap();
            assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (70, 71, 0o440));
            assert_eq!(fs::read_to_string(&paths[0]).unwrap(), "a=1");
        }
    }

    #[test]
    fn a_secret_lies_in_memory() {
        // /dev/shm is in memory already, so that nothing is mounted.
        let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
        let dir = tempfile::tempdir().unwrap();
        let replica = Paths::new(dir.path(), memory.path()).replica(&"r".parse().unwrap());
        let secret = File {
            target: "/run/secrets/key".to_owned(),
            content: "k".to_owned(),
            mode: 0o400,
            uid: 0,
            gid: 0,
            secret: true,
        };
        let paths = write(&[secret], &replica).unwrap();
        assert!(paths[0].starts_with(memory.path()));
        assert!(!replica.files().exists());
    }

    #[test]
    fn the_hosts_file_knows_itself_and_what_the_manifest_adds() {
        let extra_hosts = [("db.example", "192.0.2.1"), ("node", "host-gateway")];
        let template = Template {
            extra_hosts: extra_hosts.map(|(name, address)| (name.to_owned(), address.to_owned())).into(),
            ..Template::default()
        };
        let want = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.210.0.7\tweb-1\n\
                    192.0.2.1\tdb.example\n10.210.0.1\tnode\n";
        assert_eq!(hosts(&template, "web-1", &attachment()), want);
    }
}
