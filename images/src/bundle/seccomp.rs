//! The default filter for system calls: what ordinary programs use, and for each capability what it is for.
//!
//! Refused are calls that the kernel does not guard well by namespaces and capabilities alone: key rings, `io_uring`,
//! `userfaultfd`, loading of modules and kernels, swap, clocks of the host, new user namespaces.
//!
//! # Source
//! Which calls: the documented default profile of docker (`docs/engine/security/seccomp`), compared with that of
//! containers-common 0.50. Form: runtime-spec `config-linux.md`, "Seccomp".

use std::path::Path;

use serde_json::{Value, json};

use super::{Overrides, Seccomp, bad, capabilities};
use crate::error::{ImageError, Result};
use crate::files;

/// Any file that a person wrote.
const PROFILE_MAX: u64 = 4 << 20;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Allowed to all, by what they deal with; names of all architectures, each knows its own.
const ALLOWED: [&str; 12] = [
    // Processes and threads.
    "arch_prctl arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush capget capset execve execveat exit exit_group \
     fork futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list get_thread_area getcpu \
     getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid membarrier modify_ldt pidfd_open \
     pidfd_send_signal prctl prlimit64 process_mrelease restart_syscall rseq seccomp set_robust_list set_thread_area \
     set_tid_address set_tls setpgid setpriority setrlimit setsid sync_file_range2 sysinfo times ugetrlimit umask uname \
     uretprobe vfork wait4 waitid waitpid",
    // Debugging: needs the same user, and since Linux 4.8 a tracer cannot get around a filter.
    "process_vm_readv process_vm_writev ptrace",
    // Users and groups.
    "getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid \
     getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid \
     setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32",
    // Scheduling.
    "ioprio_get ioprio_set sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
     sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
     sched_setparam sched_setscheduler sched_yield",
    // Memory.
    "brk cachestat madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect \
     mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages",
    // Names of files.
    "access chdir chmod chown chown32 creat faccessat faccessat2 fchdir fchmod fchmodat fchmodat2 fchown fchown32 \
     fchownat getcwd lchown lchown32 link linkat mkdir mkdirat mknod mknodat name_to_handle_at open openat openat2 \
     readlink readlinkat rename renameat renameat2 rmdir symlink symlinkat unlink unlinkat",
    // What files are.
    "fgetxattr flistxattr fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 futimesat getxattr getxattrat \
     lgetxattr listmount listxattr listxattrat llistxattr lremovexattr lsetxattr lstat lstat64 newfstatat removexattr \
     removexattrat setxattr setxattrat stat stat64 statfs statfs64 statmount statx utime utimensat utimensat_time64 utimes",
    // What is in files.
    "_llseek close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 fallocate fcntl fcntl64 fdatasync flock \
     fsync ftruncate ftruncate64 getdents getdents64 ioctl lseek pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev \
     pwritev2 read readahead readdir readv sendfile sendfile64 splice sync sync_file_range syncfs tee truncate \
     truncate64 vmsplice write writev",
    // Waiting for files.
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old \
     eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy \
     io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit poll ppoll ppoll_time64 pselect6 \
     pselect6_time64 select",
    // Time and signals.
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
     clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday kill nanosleep pause rt_sigaction rt_sigpending \
     rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
     rt_tgsigqueueinfo setitimer sigaction sigaltstack signal signalfd signalfd4 sigpending sigprocmask sigreturn \
     sigsuspend tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
     timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 tkill",
    // Sockets; `socket` has a rule of its own.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg \
     send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    // Between processes, and giving up rights.
    "getrandom ipc landlock_add_rule landlock_create_ruleset landlock_restrict_self mq_getsetattr mq_notify mq_open \
     mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl \
     semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget",
];

/// Allowed besides to who has the capability.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// `personality`: Linux, `UNAME26`, `PER_LINUX32`, both, and the question which it is (`linux/personality.h`).
const PERSONALITIES: [u64; 5] = [0, 0x0002_0000, 0x0008, 0x0002_0008, 0xffff_ffff];

/// New namespaces: cgroup, UTS, IPC, user, PID, network and mount (`linux/sched.h`).
const CLONE_NEW: u64 = 0x7e02_0000;

/// Sockets to the hypervisor have no namespace (`linux/socket.h`).
const AF_VSOCK: u64 = 40;

/// The filter for a container, none if it is to have none.
pub(super) fn filter(overrides: &Overrides, capabilities: &capabilities::Set) -> Result<Option<Value>> {
    match &overrides.security {
        _ if overrides.privileged => Ok(None),
        Seccomp::Unconfined => Ok(None),
        Seccomp::Default => Ok(Some(default(capabilities))),
        Seccomp::Path(path) => from_file(path).map(Some),
    }
}

fn allow(names: &str) -> Value {
    json!({ "names": names.split_whitespace().collect::<Vec<_>>(), "action": "SCMP_ACT_ALLOW" })
}

fn allow_if(name: &str, argument: Value) -> Value {
    json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument] })
}

fn default(capabilities: &capabilities::Set) -> Value {
    let mut rules = vec![allow(&ALLOWED.join(" "))];
    let extra: Vec<&str> =
        BY_CAPABILITY.iter().filter(|(name, _)| capabilities.contains(*name)).map(|(_, calls)| *calls).collect();
    if !extra.is_empty() {
        rules.push(allow(&extra.join(" ")));
    }
    if !capabilities.contains("CAP_SYS_ADMIN") {
        // The flags of `clone3` are in memory, which a filter cannot read: programs fall back to `clone`.
        rules.push(allow_if(
            "clone",
            json!({ "index": 0, "value": CLONE_NEW, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }),
        ));
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    for value in PERSONALITIES {
        rules.push(allow_if("personality", json!({ "index": 0, "value": value, "op": "SCMP_CMP_EQ" })));
    }
    rules.push(allow_if("socket", json!({ "index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE" })));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

/// The architecture of this machine and the older ones that it runs too.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "arm" => &["SCMP_ARCH_ARM"],
        "riscv64" => &["SCMP_ARCH_RISCV64"],
        "s390x" => &["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
        "powerpc64" => &["SCMP_ARCH_PPC64LE"],
        _ => &[],
    }
}

/// A filter in the form of the runtime specification. Docker's own form, with conditions, is not that.
fn from_file(path: &Path) -> Result<Value> {
    let shown = path.display().to_string();
    let missing = || ImageError::io("read", path, std::io::Error::from(std::io::ErrorKind::NotFound));
    let bytes = files::read_limited(path, PROFILE_MAX)?.ok_or_else(missing)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| bad("seccomp", &shown, e.to_string()))?;
    if value.get("archMap").is_some() {
        let why = "is in docker's form: write `architectures` instead of `archMap`, and rules without `includes` and `excludes`";
        return Err(bad("seccomp", shown, why));
    }
    match value.get("defaultAction").and_then(Value::as_str) {
        Some(action) if action.starts_with("SCMP_ACT_") => Ok(value),
        _ => Err(bad("seccomp", shown, "has no `defaultAction`")),
    }
}
