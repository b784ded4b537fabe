//! Messages between the runtime and the process that becomes the container.
//!
//! ```text
//! child                        parent
//!   Identity(pid)  ──────────►          only through a go-between (joined user namespace)
//!                  ◄────────── Go
//!   NeedMaps       ──────────►          writes uid_map and gid_map
//!                  ◄────────── Go
//!                  ◄────────── Doors    only when the cgroup was not made before the child
//!   NeedHooks      ──────────►          runs prestart and createRuntime hooks
//!                  ◄────────── Go
//!   Terminal + fd  ──────────►          only when the parent keeps the terminal
//!   Created        ──────────►          run: what remains is a few steps of this process alone
//!                  ◄────────── Go       run: start now; create: from `start`, on a connection of its own
//!   Executing      ──────────►          create only, to the one `start` that was heard
//!   Listener + fd  ──────────►          only with a seccomp agent; see `seccomp::notify`
//!                  ◄────────── Go
//!   end of file    ──────────►          the program has been executed
//!   Failed(..)     ──────────►          at any point
//! ```

use crate::cgroup::Doors;
use crate::error::{Because, Failure, Outcome};
use crate::sys::socket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What the child says.
#[derive(Debug)]
pub enum Message {
    /// The number of the container's process, from a go-between.
    Identity(i32),
    /// Write the ID maps.
    NeedMaps,
    /// Run the hooks of the runtime's namespace.
    NeedHooks,
    /// The master side of the terminal.
    Terminal(OwnedFd),
    /// The listener of the filter, or the memory through which it will be offered.
    Listener(OwnedFd),
    /// All is ready but the program.
    Created,
    /// `start` was heard: the program comes next.
    Executing,
    /// A step failed.
    Failed(Failure),
    /// The other side has closed: executed, or dead.
    End,
}

/// Longest message.
const MESSAGE_MAX: usize = 16 * 1024;

/// One end of a message socket.
#[derive(Debug)]
pub struct Channel(pub OwnedFd);

impl Channel {
    /// Two ends.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn pair() -> Outcome<(Self, Self)> {
        let (a, b) = socket::message_pair().because(|| "cannot make a socket pair".to_owned())?;
        Ok((Self(a), Self(b)))
    }

    /// The descriptor, to poll on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Send a message.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn send(&self, message: &Message) -> Outcome<()> {
        let bytes = match message {
            Message::Identity(pid) => [&b"P"[..], &pid.to_ne_bytes()].concat(),
            Message::NeedMaps => b"M".to_vec(),
            Message::NeedHooks => b"H".to_vec(),
            Message::Terminal(_) => b"T".to_vec(),
            Message::Listener(_) => b"L".to_vec(),
            Message::Created => b"C".to_vec(),
            Message::Executing => b"X".to_vec(),
            Message::Failed(failure) => {
                let mut bytes = [&b"E"[..], &failure.encode()].concat();
                bytes.truncate(MESSAGE_MAX);
                bytes
            }
            Message::End => return Ok(()),
        };
        let fd = match message {
            Message::Terminal(fd) | Message::Listener(fd) => Some(fd.as_fd()),
            _ => None,
        };
        socket::send(self.fd(), &bytes, fd).because(|| "the runtime process has gone".to_owned())
    }

    /// Wait for a message.
    ///
    /// # Errors
    /// The socket fails.
    pub fn receive(&self) -> Outcome<Message> {
        // Nearly all are one byte, so its pages are left untouched.
        let mut bytes = Vec::with_capacity(MESSAGE_MAX);
        let lost = |error: &std::io::Error| error.raw_os_error() == Some(libc::ECONNRESET);
        let mut result = socket::receive_vec(self.fd(), &mut bytes);
        if result.as_ref().is_err_and(lost) {
            // It ended without reading all that it was sent. What it had to say itself comes after this.
            result = socket::receive_vec(self.fd(), &mut bytes);
        }
        let fd = match result {
            Err(error) if lost(&error) => None,
            result => result.because(|| "cannot read from the container's process".to_owned())?.into_iter().next(),
        };
        Ok(match (bytes.first(), fd) {
            (None, _) => Message::End,
            (Some(b'P'), _) => match bytes[1..].try_into() {
                Ok(number) => Message::Identity(i32::from_ne_bytes(number)),
                Err(_) => Message::End,
            },
            (Some(b'M'), _) => Message::NeedMaps,
            (Some(b'H'), _) => Message::NeedHooks,
            (Some(b'T'), Some(fd)) => Message::Terminal(fd),
            (Some(b'L'), Some(fd)) => Message::Listener(fd),
            (Some(b'C'), _) => Message::Created,
            (Some(b'X'), _) => Message::Executing,
            (Some(b'E'), _) => Message::Failed(Failure::decode(&bytes[1..])),
            _ => Message::Failed(Failure::new("the container's process sent a message nobody knows")),
        })
    }

    /// Let the child into its cgroup.
    ///
    /// - `located`: the hierarchies were not where the child takes them to be.
    ///
    /// # Errors
    /// It is gone.
    pub fn send_doors(&self, doors: &Doors, located: bool) -> Outcome<()> {
        let files: Vec<BorrowedFd<'_>> = doors.files().collect();
        let word = if located { b"L" } else { b"D" };
        socket::send_many(self.fd(), word, &files).because(|| "the container's process has gone".to_owned())
    }

    /// Wait until the cgroup is made; also answers whether the hierarchies have to be located.
    ///
    /// # Errors
    /// The parent is gone.
    pub fn receive_doors(&self) -> Outcome<(Doors, bool)> {
        let mut bytes = Vec::with_capacity(1);
        let files =
            socket::receive_vec(self.fd(), &mut bytes).because(|| "cannot read from the runtime process".to_owned())?;
        match bytes.as_slice() {
            b"D" => Ok((Doors::from(files), false)),
            b"L" => Ok((Doors::from(files), true)),
            _ => Err(Failure::new("the runtime process has gone")),
        }
    }

    /// Let the child go on.
    ///
    /// # Errors
    /// It is gone.
    pub fn go(&self) -> Outcome<()> {
        socket::send(self.fd(), b"G", None).because(|| "the container's process has gone".to_owned())
    }

    /// Wait until the parent lets us go on.
    ///
    /// # Errors
    /// The parent is gone.
    pub fn wait_for_go(&self) -> Outcome<()> {
        let mut bytes = Vec::with_capacity(1);
        match socket::receive_vec(self.fd(), &mut bytes) {
            Ok(_) if bytes.len() == 1 => Ok(()),
            Ok(_) => Err(Failure::new("the runtime process has gone")),
            Err(error) => Err(error).because(|| "cannot read from the runtime process".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_failure_is_heard_although_something_was_left_unread() {
        let (ours, theirs) = Channel::pair().expect("a pair");
        ours.go().expect("there is room");
        theirs.send(&Message::Failed(Failure::new("no such file"))).expect("there is room");
        drop(theirs);
        assert!(matches!(ours.receive(), Ok(Message::Failed(failure)) if failure.what == "no such file"));
        assert!(matches!(ours.receive(), Ok(Message::End)));
        assert!(ours.go().is_err(), "nobody is there");
    }

    #[test]
    fn doors_are_the_files_they_were() {
        let (ours, theirs) = Channel::pair().expect("a pair");
        for (count, located) in [(0, false), (9, true), (socket::DESCRIPTORS_MAX, false)] {
            let file = || OwnedFd::from(File::options().write(true).open("/dev/null").expect("a file"));
            let doors = Doors::from((0..count).map(|_| file()).collect::<Vec<_>>());
            ours.send_doors(&doors, located).expect("there is room");
            let (received, asked) = theirs.receive_doors().expect("a message");
            assert_eq!((received.files().count(), asked), (count, located));
            received.enter().expect("each can be written");
        }
        drop(ours);
        assert!(theirs.receive_doors().is_err(), "nobody is there");
    }
}
