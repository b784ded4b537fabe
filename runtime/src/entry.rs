//! The very first instructions: go on from a view of our own program file that nobody can write through.
//!
//! While a process of ours is inside a container, `/proc/PID/exe` leads there, and root of the container, where that is
//! root of the host as well, could write through it (CVE-2019-5736). An undumpable process hides the link from others
//! but not from itself: an image's program may be `/proc/self/exe`, or a script with `#!/proc/self/exe`, and a
//! container with `CAP_SYS_PTRACE` sees it all the same. So commands that enter a container execute themselves once
//! more, from a detached mount of their file that is read-only: what the link leads to can then be written by nobody,
//! whoever opens it and whenever. The mount is attached nowhere and goes with the last process that runs from it; it
//! cannot be copied or made writable, since it belongs to no mount namespace.
//!
//! This happens before the C library has started, where a second execution costs 0.1 ms instead of 0.4. Where it is
//! not allowed (no right to mount, an old kernel) the program goes on, and `sealed` decides what else can be done.
#![allow(unsafe_code)] // raw system calls without a C library
// Nothing here may use memory or functions that the C library prepares (thread-local storage, `memcpy`, `strlen`), and
// in a position-independent program nothing that holds an address as data. That rules out most functions of `core`: a
// build for debugging calls them through such addresses.

use core::arch::{asm, global_asm};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl gantry_entry",
    ".type gantry_entry, @function",
    "gantry_entry:",
    "xor ebp, ebp",
    "mov rbx, rdx",
    "mov rdi, rsp",
    "call {seal}",
    "mov rdx, rbx",
    "jmp _start",
    seal = sym seal,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl gantry_entry",
    ".type gantry_entry, @function",
    "gantry_entry:",
    "mov x29, xzr",
    "mov x19, x0",
    "mov x0, sp",
    "bl {seal}",
    "mov x0, x19",
    "b _start",
    seal = sym seal,
);

/// One system call; the result is negative for an error.
///
/// # Safety
/// What the call itself demands of its arguments.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: libc::c_long, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result;
    // SAFETY: the kernel's convention for x86_64; it changes rcx and r11 and no other register.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// See the other one.
///
/// # Safety
/// What the call itself demands of its arguments.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: libc::c_long, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result;
    // SAFETY: the kernel's convention for aarch64; it changes no register but x0.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number as usize,
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            options(nostack),
        );
    }
    result
}

/// The byte at an address.
///
/// # Safety
/// It is in memory that can be read.
unsafe fn byte(address: usize) -> u8 {
    let value: u32;
    // SAFETY: one load, of what the caller vouches for.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) address, options(nostack, readonly, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("ldrb {0:w}, [{1}]", out(reg) value, in(reg) address, options(nostack, readonly, preserves_flags));
    }
    value as u8
}

/// The word at an address.
///
/// # Safety
/// It is in memory that can be read.
unsafe fn word(address: usize) -> usize {
    let value: usize;
    // SAFETY: one load, of what the caller vouches for.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) address, options(nostack, readonly, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("ldr {0}, [{1}]", out(reg) value, in(reg) address, options(nostack, readonly, preserves_flags));
    }
    value
}

/// Whether the C string at `text` is exactly `name`.
///
/// # Safety
/// It is a C string.
unsafe fn is(text: usize, name: &[u8]) -> bool {
    let mut at = 0;
    while at < name.len() {
        // SAFETY: all bytes before were equal and not zero, so the string goes on at least to here.
        if unsafe { byte(text + at) } != name[at] {
            return false;
        }
        at += 1;
    }
    // SAFETY: as above.
    unsafe { byte(text + at) == 0 }
}

/// Whether this program runs from a view that nobody can write through. Set before the C library has started; it finds
/// its zeroed memory ready and leaves it alone.
static SEALED: AtomicBool = AtomicBool::new(false);

/// Write a byte.
///
/// # Safety
/// The address is that of a byte of ours which nothing else uses meanwhile.
unsafe fn put_byte(address: usize, value: u8) {
    // SAFETY: one store, to what the caller vouches for.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mov byte ptr [{0}], {1}", in(reg) address, in(reg_byte) value, options(nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("strb {1:w}, [{0}]", in(reg) address, in(reg) u32::from(value), options(nostack, preserves_flags));
    }
}

/// Execute this program again from a read-only view, if the command will enter a container and does not run from one.
///
/// # Safety
/// `stack` is where the kernel has put the number of arguments, with arguments and environment behind it.
unsafe extern "C" fn seal(stack: usize) {
    static OWN: [u8; 15] = *b"/proc/self/exe\0";
    static NOTHING: u8 = 0;
    const WORD: usize = size_of::<usize>();
    /// Place of `f_flags` in `struct statfs`, in words, and the flag of a read-only mount in it.
    const FLAGS_AT: usize = 10;
    const READ_ONLY: usize = 1;
    const HERE: usize = libc::AT_FDCWD as usize;
    const OPEN: usize = (libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC) as usize;
    // SAFETY: the kernel lays out a new program's stack so: the number of arguments, pointers to them and a null,
    // pointers to the environment and a null. The calls read constant C strings, that list, and write `found`, which
    // is as large as `struct statfs` (120 bytes).
    unsafe {
        let count = word(stack);
        let arguments = stack + WORD;
        let environment = arguments + (count + 1) * WORD;
        let mut enters = false;
        let mut at = 1;
        while at < count {
            let text = word(arguments + at * WORD);
            // Any word will do: taking an option's value for the command costs time, missing the command safety.
            enters |= is(text, b"run") || is(text, b"create") || is(text, b"exec") || is(text, b"restore");
            at += 1;
        }
        if !enters {
            return;
        }
        let mut found = const { MaybeUninit::<[u64; 15]>::uninit() };
        let (own, found) = (&raw const OWN as usize, &raw mut found as usize);
        if call(libc::SYS_statfs, [own, found, 0, 0, 0]) < 0 {
            return;
        }
        if word(found + FLAGS_AT * WORD) & READ_ONLY != 0 {
            put_byte(&raw const SEALED as usize, 1);
            return;
        }
        let tree = call(libc::SYS_open_tree, [HERE, own, OPEN, 0, 0]);
        if tree < 0 {
            return;
        }
        // MOUNT_ATTR_RDONLY, _NOSUID and _NODEV; nothing to clear, no propagation, no user namespace.
        let attributes: [u64; 4] = [0x1 | 0x2 | 0x4, 0, 0, 0];
        let (tree, empty) = (tree as usize, &raw const NOTHING as usize);
        let by_descriptor = libc::AT_EMPTY_PATH as usize;
        let attributes = (&raw const attributes) as usize;
        if call(libc::SYS_mount_setattr, [tree, empty, by_descriptor, attributes, 32]) == 0 {
            call(libc::SYS_execveat, [tree, empty, arguments, environment, by_descriptor]);
        }
        call(libc::SYS_close, [tree, 0, 0, 0, 0]);
    }
}

/// What the C library calls.
#[unsafe(no_mangle)]
extern "C" fn main(count: i32, arguments: *const *const core::ffi::c_char) -> i32 {
    gantry_runtime::sys::process::fill_standard_streams();
    // SAFETY: the C library hands over what the kernel has put on the stack: `count` pointers to C strings, which stay
    // as long as the process.
    let arguments = unsafe { gantry_runtime::sys::process::arguments(count, arguments) };
    if SEALED.load(Ordering::Relaxed) {
        gantry_runtime::sealed::was_seen();
    }
    let code = gantry_runtime::run(arguments.into_iter().skip(1));
    let _ = std::io::Write::flush(&mut std::io::stdout());
    gantry_runtime::sys::process::exit_now(i32::from(code))
}
