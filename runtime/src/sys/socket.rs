//! Local sockets: message pairs between parent and child, and descriptors sent as messages.
#![allow(unsafe_code)] // raw recvmsg and sendmsg with control data

use super::check_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A pair of connected sockets that keep message borders, close-on-exec.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` is writable for two descriptors.
    check_int(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    // SAFETY: both descriptors were created by the call above and nothing else holds them.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Room for [`DESCRIPTORS_MAX`] in a control message, aligned for `cmsghdr`.
#[repr(C, align(8))]
struct Control([u8; 160]);

impl Control {
    const EMPTY: Self = Self([0; 160]);
}

/// Most descriptors that go with one message.
pub const DESCRIPTORS_MAX: usize = 32;

/// Send one message, with one descriptor attached if given.
///
/// # Errors
/// `EPIPE` when the other side is gone (no signal is raised).
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send_some(socket, bytes, fd.as_slice()).map(drop)
}

/// Send one message with up to [`DESCRIPTORS_MAX`] descriptors.
///
/// # Errors
/// As [`send`], and `EINVAL` for more of them.
pub fn send_many(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_some(socket, bytes, fds).map(drop)
}

/// Send bytes over a stream, all of them, with a descriptor attached to the first.
///
/// # Errors
/// As [`send`], and `EAGAIN` when the time limit of the socket is over.
pub fn send_all(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut sent = send_some(socket, bytes, &[fd])?;
    while sent < bytes.len() {
        sent += send_some(socket, &bytes[sent..], &[])?;
    }
    Ok(())
}

fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > DESCRIPTORS_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control::EMPTY;
    // SAFETY: an all-zero msghdr is a valid value of a plain C structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        message.msg_control = control.0.as_mut_ptr().cast();
        let size = size_of_val(fds) as u32;
        // SAFETY: CMSG_SPACE and CMSG_LEN compute sizes; the most descriptors there may be need 144 of the 160 bytes of
        // `control`, so the first header and its data lie inside it. A borrowed descriptor is its number.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(size) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as _;
            let data = libc::CMSG_DATA(header).cast::<i32>();
            for (at, fd) in fds.iter().enumerate() {
                data.add(at).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    loop {
        // SAFETY: `message` and what it points to live across the call.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(sent as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receive one message into `buffer`: its length (0 at the end) and the descriptor that came with it.
///
/// # Errors
/// Those of `recvmsg(2)` other than `EINTR`.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let (count, fds) = receive_in(socket, libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })?;
    Ok((count, fds.into_iter().next()))
}

/// The same with all descriptors, in place of what `bytes` holds, as far as it has room: memory that no message fills is
/// not touched.
///
/// # Errors
/// As [`receive`].
pub fn receive_vec(socket: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> io::Result<Vec<OwnedFd>> {
    bytes.clear();
    let room = bytes.spare_capacity_mut();
    let (count, fds) = receive_in(socket, libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() })?;
    // SAFETY: the kernel has written so many bytes from the start of the room, and never more than there is.
    unsafe { bytes.set_len(count) };
    Ok(fds)
}

/// Receive into memory of ours that nothing else uses meanwhile.
fn receive_in(socket: BorrowedFd<'_>, mut part: libc::iovec) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = Control::EMPTY;
    // SAFETY: an all-zero msghdr is a valid value of a plain C structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    let count = loop {
        // SAFETY: `message` points to writable buffers of the lengths it states.
        let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        if count >= 0 {
            break count as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel filled `control` up to msg_controllen; CMSG_FIRSTHDR returns null when there is no header. The
    // length of a header says how many descriptors follow it, which are new and nobody else's.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if !header.is_null() && (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
            let size = ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            let data = libc::CMSG_DATA(header).cast::<i32>();
            fds.extend((0..size / size_of::<i32>()).map(|at| OwnedFd::from_raw_fd(data.add(at).read_unaligned())));
        }
    }
    Ok((count, fds))
}
