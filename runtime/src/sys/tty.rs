//! Pseudo-terminals.
#![allow(unsafe_code)] // terminal ioctls

use super::check_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Unlock a pty master and open its other side by descriptor, never by a path in the container.
///
/// # Errors
/// `EIO` when it is not a master, `ENOTTY` for a file that is no terminal.
pub fn open_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    check_int(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor.
    let fd = check_int(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) })?;
    // SAFETY: created just above, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Number of the pty, as in `/dev/pts/N`.
///
/// # Errors
/// `ENOTTY` when it is not a master.
pub fn number(master: BorrowedFd<'_>) -> io::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int.
    check_int(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN as _, &raw mut number) })?;
    Ok(number)
}

/// Make the terminal the controlling one of this session.
///
/// # Errors
/// `EPERM` when the caller leads no session or has a terminal already.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an integer by value.
    check_int(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0) }).map(drop)
}

/// Rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub columns: u16,
}

/// Set the size of a terminal.
///
/// # Errors
/// `ENOTTY`.
pub fn set_size(terminal: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check_int(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) }).map(drop)
}

/// The size of a terminal.
///
/// # Errors
/// `ENOTTY`.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<Size> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    check_int(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ as _, &raw mut size) })?;
    Ok(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Saved settings of a terminal.
#[derive(Clone, Copy)]
pub struct Settings(libc::termios);

/// Put a terminal into raw mode, returning the settings to restore.
///
/// # Errors
/// `ENOTTY`.
pub fn make_raw(terminal: BorrowedFd<'_>) -> io::Result<Settings> {
    // SAFETY: an all-zero termios is a valid value of a plain C structure; tcgetattr then fills it.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `settings` is writable and of the type the call wants.
    check_int(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut settings) })?;
    let before = Settings(settings);
    // SAFETY: both calls work on the initialised `settings`.
    check_int(unsafe {
        libc::cfmakeraw(&raw mut settings);
        libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const settings)
    })?;
    Ok(before)
}

/// Let a line that a program ends with a newline end with just that, also on the other side of the terminal.
///
/// # Errors
/// `ENOTTY`.
pub fn keep_newlines(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an all-zero termios is a valid value of a plain C structure; tcgetattr then fills it.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `settings` is writable and of the type the call wants.
    check_int(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut settings) })?;
    settings.c_oflag &= !libc::ONLCR;
    // SAFETY: `settings` was filled by tcgetattr.
    check_int(unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const settings) }).map(drop)
}

/// Put back what [`make_raw`] found.
///
/// # Errors
/// `EIO` when the terminal is gone.
pub fn restore(terminal: BorrowedFd<'_>, settings: &Settings) -> io::Result<()> {
    // SAFETY: `settings` was filled by tcgetattr.
    check_int(unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const settings.0) }).map(drop)
}
