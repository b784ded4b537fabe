//! To be told when something in a directory changes, in a fraction of a millisecond.

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::unix::AsyncFd;

/// A watched directory.
pub(crate) struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches `dir` for files that appear by rename.
    pub(crate) fn arrivals(dir: &Path) -> io::Result<Self> {
        Self::new(dir, WatchFlags::MOVED_TO)
    }

    /// Watches `dir` for any growth or change of names, and for its own end.
    pub(crate) fn changes(dir: &Path) -> io::Result<Self> {
        let names = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
        Self::new(dir, WatchFlags::MODIFY | WatchFlags::DELETE_SELF | names)
    }

    fn new(dir: &Path, flags: WatchFlags) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, dir, flags | WatchFlags::ONLYDIR)?;
        Ok(Self { fd: crate::sys::ready(fd)? })
    }

    /// Waits for a change and takes all that were told; what they are is found by looking. May be dropped at any time.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let mut ready = self.fd.readable().await?;
            let mut any = false;
            loop {
                match rustix::io::read(self.fd.get_ref(), &mut buffer) {
                    Ok(1..) => any = true,
                    Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if any {
                return Ok(());
            }
        }
    }
}
