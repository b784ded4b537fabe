/* The least that any correct runtime does for the bench's bundle, in one program without a configuration: no JSON, no
 * record of the container, no device rules, no hooks, and paths are trusted. Nothing can be faster and still isolate
 * as much; how near a runtime comes to it is what the bench shows.
 *
 * usage: floor CGROUP ROOTFS PROGRAM      (pure cgroup v1; filter.h has the seccomp filter of the profile)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "filter.h" /* static const struct sock_filter filter[] */

static const char *const HIERARCHIES[] = {
    "memory", "pids", "cpu", "cpuacct", "cpuset", "devices", "freezer", "blkio", "systemd",
};
#define HIERARCHY_COUNT (sizeof HIERARCHIES / sizeof *HIERARCHIES)

static const char *const MASKED[] = {
    "proc/acpi", "proc/asound", "proc/kcore", "proc/keys", "proc/latency_stats", "proc/timer_list",
    "proc/timer_stats", "proc/sched_debug", "sys/firmware", "proc/scsi",
};
static const char *const READONLY[] = { "proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger" };

static void must(long result, const char *what) {
    if (result < 0) {
        dprintf(2, "floor: %s: %s\n", what, strerror(errno));
        _exit(99);
    }
}

static void put(const char *directory, const char *file, const char *value) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    must(fd, path);
    must(write(fd, value, strlen(value)), path);
    close(fd);
}

/* The container's first process. */
static void contain(const int *doors, const char *root, const char *program) {
    const unsigned long strict = MS_NOSUID | MS_NOEXEC | MS_NODEV;
    /* A thread that moves itself through `tasks` does not wait for a grace period. */
    for (size_t i = 0; i < HIERARCHY_COUNT; i++) must(write(doors[i], "0", 1), "join cgroup");
    must(unshare(CLONE_NEWCGROUP), "cgroup namespace");
    setsid();
    umask(0);
    must(mount(0, "/", 0, MS_REC | MS_SLAVE, 0), "propagation");
    must(mount(root, root, 0, MS_BIND | MS_REC, 0), "root");
    must(chdir(root), "root");
    must(mount("proc", "proc", "proc", 0, 0), "proc");
    must(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"), "dev");
    mkdir("dev/pts", 0755);
    mkdir("dev/shm", 0755);
    mkdir("dev/mqueue", 0755);
    must(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
               "newinstance,ptmxmode=0666,mode=0620,gid=5"), "devpts");
    must(mount("shm", "dev/shm", "tmpfs", strict, "mode=1777,size=65536k"), "shm");
    must(mount("mqueue", "dev/mqueue", "mqueue", strict, 0), "mqueue");
    must(mount("sysfs", "sys", "sysfs", strict | MS_RDONLY, 0), "sysfs");
    must(mount("tmpfs", "sys/fs/cgroup", "tmpfs", strict, "mode=755"), "cgroup directory");
    for (size_t i = 0; i < HIERARCHY_COUNT; i++) {
        const char *name = HIERARCHIES[i];
        char path[64];
        snprintf(path, sizeof path, "sys/fs/cgroup/%s", name);
        mkdir(path, 0755);
        must(mount("cgroup", path, "cgroup", strict | MS_RELATIME | MS_RDONLY,
                   strcmp(name, "systemd") ? name : "none,name=systemd"), path);
    }
    must(mount(0, "sys/fs/cgroup", 0, MS_REMOUNT | MS_BIND | MS_RDONLY | strict, 0), "cgroup directory");
    static const struct { const char *path; int major, minor; } nodes[] = {
        { "dev/null", 1, 3 }, { "dev/zero", 1, 5 }, { "dev/full", 1, 7 },
        { "dev/random", 1, 8 }, { "dev/urandom", 1, 9 }, { "dev/tty", 5, 0 },
    };
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        must(mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)), nodes[i].path);
    symlink("pts/ptmx", "dev/ptmx");
    symlink("/proc/self/fd", "dev/fd");
    symlink("/proc/self/fd/0", "dev/stdin");
    symlink("/proc/self/fd/1", "dev/stdout");
    symlink("/proc/self/fd/2", "dev/stderr");
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(umount2(".", MNT_DETACH), "old root");
    for (size_t i = 0; i < sizeof MASKED / sizeof *MASKED; i++) {
        if (mount("dev/null", MASKED[i], 0, MS_BIND, 0) == 0) continue;
        if (errno == ENOTDIR) must(mount("tmpfs", MASKED[i], "tmpfs", MS_RDONLY, "nr_blocks=1,nr_inodes=1"), MASKED[i]);
        else if (errno != ENOENT) must(-1, MASKED[i]);
    }
    for (size_t i = 0; i < sizeof READONLY / sizeof *READONLY; i++) {
        if (mount(READONLY[i], READONLY[i], 0, MS_BIND | MS_REC, 0) == 0)
            must(mount(0, READONLY[i], 0, MS_BIND | MS_REMOUNT | MS_RDONLY | strict, 0), READONLY[i]);
        else if (errno != ENOENT) must(-1, READONLY[i]);
    }
    must(mount(0, "/", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0), "read-only root");
    must(sethostname("bench", 5), "host name");
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq lo = { .ifr_name = "lo" };
    lo.ifr_flags = IFF_UP;
    must(ioctl(sock, SIOCSIFFLAGS, &lo), "loopback");
    struct rlimit files = { 1024, 1024 };
    must(setrlimit(RLIMIT_NOFILE, &files), "open files");
    const uint32_t keep = 1u << CAP_AUDIT_WRITE | 1u << CAP_KILL | 1u << CAP_NET_BIND_SERVICE;
    for (int i = 0; i <= CAP_LAST_CAP; i++)
        if (i >= 32 || !(keep >> i & 1)) must(prctl(PR_CAPBSET_DROP, i, 0, 0, 0), "bounding set");
    must(syscall(SYS_setgroups, 0, 0), "groups");
    must(syscall(SYS_setgid, 0), "group");
    must(syscall(SYS_setuid, 0), "user");
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct sets[2] = { { keep, keep, 0 }, { 0, 0, 0 } };
    must(syscall(SYS_capset, &header, sets), "capabilities");
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    umask(022);
    must(syscall(SYS_close_range, 3, ~0u, 4), "descriptors");
    struct sock_fprog fprog = { sizeof filter / sizeof *filter, (struct sock_filter *)filter };
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &fprog), "seccomp");
    execl(program, program, (char *)0);
    must(-1, program);
}

int main(int count, char **arguments) {
    if (count < 4) return 2;
    char path[512];
    int doors[HIERARCHY_COUNT];
    for (size_t i = 0; i < HIERARCHY_COUNT; i++) {
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s", HIERARCHIES[i], arguments[1]);
        must(mkdir(path, 0755), path);
        if (!strcmp(HIERARCHIES[i], "memory")) put(path, "memory.limit_in_bytes", "268435456");
        if (!strcmp(HIERARCHIES[i], "pids")) put(path, "pids.max", "100");
        if (!strcmp(HIERARCHIES[i], "cpuset")) {
            char value[256];
            static const char *const files[] = { "cpuset.cpus", "cpuset.mems" };
            for (size_t k = 0; k < 2; k++) {
                char parent[64];
                snprintf(parent, sizeof parent, "/sys/fs/cgroup/cpuset/%s", files[k]);
                int fd = open(parent, O_RDONLY | O_CLOEXEC);
                must(fd, parent);
                long length = read(fd, value, sizeof value - 1);
                must(length, parent);
                close(fd);
                value[length] = 0;
                put(path, files[k], value);
            }
        }
        strcat(path, "/tasks");
        must(doors[i] = open(path, O_WRONLY | O_CLOEXEC), path);
    }
    /* The parent has nothing to do meanwhile, so its memory need not be copied. */
    struct clone_args args = {
        .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_VFORK,
        .exit_signal = SIGCHLD,
    };
    long pid = syscall(SYS_clone3, &args, sizeof args);
    must(pid, "clone3");
    if (pid == 0) contain(doors, arguments[2], arguments[3]);
    int status;
    must(waitpid(pid, &status, 0), "wait");
    for (size_t i = 0; i < HIERARCHY_COUNT; i++) {
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s", HIERARCHIES[i], arguments[1]);
        must(rmdir(path), path);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
