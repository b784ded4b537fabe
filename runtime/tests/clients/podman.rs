//! podman 4.3, as Debian configures it; `/etc/containers/containers.conf` names the runtime.

use super::{Step, about, ends, step};

/// Programs, and the packages that have them.
pub(crate) const PROGRAMS: &[(&str, &str)] =
    &[("podman", "podman"), ("conmon", "conmon"), ("catatonit", "catatonit"), ("newuidmap", "uidmap")];

/// Before the first step.
pub(crate) const SETUP: &str = r#"
mkdir -p /etc/containers /etc/hooks /run/sandbox/{vol,hooks}
cat >/etc/containers/containers.conf <<END
[engine]
runtime = "tested"
[engine.runtimes]
tested = ["$OCI"]
END
echo containers:2147483647:2147483648 >>/etc/subuid
echo containers:2147483647:2147483648 >>/etc/subgid
echo data >/run/sandbox/vol/file
podman import -q -c 'CMD ["sh"]' /run/sandbox/bb.tar bb
podman run -d --name long -h long --label kept=yes bb sh -c 'trap "echo usr1" USR1; trap "echo term; exit 3" TERM; echo up; while :; do sleep 0.05; done'
"#;

/// What podman is asked to do.
pub(crate) const STEPS: &[Step] = &[
    // -- one program
    step("run", "podman run --rm bb echo hi", "hi"),
    ends(7, "exit code", "podman run --rm bb sh -c 'exit 7'", ""),
    ends(137, "ended by a signal", "podman run --rm bb sh -c 'kill -9 $$'", ""),
    step("standard input", "echo data | podman run --rm -i bb cat", "data"),
    step("standard error apart", "podman run --rm bb sh -c 'echo out; echo err >&2' 2>/dev/null", "out"),
    step(
        "terminal",
        "pty 'podman run --rm -it bb sh -c \"tty; stty size; test -t 2 && echo yes\"'",
        "/dev/pts/0\n24 80\nyes",
    ),
    step("environment", "podman run --rm -e A='b c' -h box bb env | sort", "A=b c\nHOME=/root\nHOSTNAME=box"),
    ends(127, "program that is not there", "podman run --rm bb nope", "executable file `nope` not found"),
    ends(127, "path that is not there", "podman run --rm bb /bin/nope", "no such file or directory"),
    ends(126, "program that is a directory", "podman run --rm bb /etc", ""),
    ends(126, "program without the bit", "podman run --rm bb /etc/not-executable", "permission denied"),
    ends(126, "working directory that cannot be", "podman run --rm -w /etc/passwd bb true", ""),
    ends(125, "option that is not there", "podman run --rm --nope bb true", "unknown flag"),
    step("user by number", "podman run --rm -u 1234:5678 bb id", "uid=1234 gid=5678"),
    step("user by name", "podman run --rm -u web bb id", "uid=1000(web) gid=1000(web)"),
    step("more groups", "podman run --rm --group-add 4321 -u web bb id", "4321"),
    step("working directory", "podman run --rm -w /tmp/new/dir bb pwd", "/tmp/new/dir"),
    step("entry point", "podman run --rm --entrypoint '[\"echo\", \"one\"]' bb two", "one two"),
    step("umask", "podman run --rm --umask 0077 bb sh -c umask", "0077"),
    step(
        "init",
        "podman run --rm --init bb sh -c 'tr \"\\\\0\" \" \" </proc/1/cmdline; ps | grep -c init'",
        "/run/podman-init -- sh",
    ),
    // -- the world inside, whole
    step(
        "mounts",
        "podman run --rm bb sh -c \"mount | sed 's/^overlay.*/overlay/; s/size=[0-9]*k/size/'\"",
        "overlay\nproc on /proc\ntmpfs on /dev",
    ),
    step(
        "devices",
        "podman run --rm bb ls -l /dev /dev/pts /dev/shm /dev/mqueue | sed 's/ [A-Z][a-z][a-z] .*:[0-9][0-9]//'",
        "null\nzero",
    ),
    step(
        "what a process has",
        "podman run --rm bb grep -vE '^(Pid|PPid|Tgid|Ngid|NSpid|NStgid|NSpgid|NSsid|Vm|Rss|Hugetlb|.*ctxt|Cpus|Mems|FDSize|Sig|Shd|x86|State|Tracer)' /proc/self/status",
        "CapEff:\nSeccomp:",
    ),
    step("ignored signals", "podman run --rm bb grep Sig /proc/self/status", "SigIgn:"),
    step("open files", "podman run --rm bb sh -c 'ls /proc/self/fd; ls /proc/1/fd'", "0\n1\n2"),
    step("limits", "podman run --rm bb cat /proc/self/limits", "Max open files"),
    step("cgroup", "podman run --rm bb sed 's/:.*libpod/:libpod/' /proc/self/cgroup", "libpod"),
    step(
        "cgroup files",
        "podman run --rm bb sh -c 'ls /sys/fs/cgroup /sys/fs/cgroup/memory; touch /sys/fs/cgroup/memory/x'; true",
        "memory\nRead-only file system",
    ),
    step(
        "score",
        "podman run --rm bb cat /proc/self/oom_score_adj; podman run --rm --oom-score-adj 321 bb cat /proc/self/oom_score_adj",
        "0\n321",
    ),
    step(
        "masked",
        "podman run --rm bb sh -c 'ls /proc/scsi /sys/firmware; wc -c </proc/kcore; echo 1 >/proc/sysrq-trigger'; true",
        "0\nRead-only file system",
    ),
    step("keyring", "podman run --rm bb cat /proc/keys | wc -l", ""),
    step(
        "namespaces",
        "podman run --rm bb sh -c 'cd /proc/self/ns; for n in *; do echo $n $(readlink $n); done' | while read -r n at; do [ \"$at\" = \"$(readlink /proc/self/ns/$n)\" ] && echo \"$n host\" || echo \"$n own\"; done",
        "cgroup \nmnt own\nuser host",
    ),
    // -- limits
    step(
        "memory limit",
        "podman run --rm -m 64m --memory-reservation 32m --memory-swappiness 10 bb sh -c 'cd /sys/fs/cgroup/memory; cat memory.limit_in_bytes memory.memsw.limit_in_bytes memory.soft_limit_in_bytes memory.swappiness'",
        "67108864",
    ),
    ends(
        137,
        "out of memory",
        "podman run --name oom -m 8m bb sh -c 'tail /dev/zero & wait $!; kill -9 $$'; code=$?; podman inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' oom; podman rm -f oom >/dev/null; exit $code",
        "true 137",
    ),
    step(
        "cpus",
        "podman run --rm --cpus 0.5 --cpu-shares 512 --cpuset-cpus 0 bb sh -c 'cd /sys/fs/cgroup; cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus; nproc'",
        "50000\n100000\n512\n0\n1",
    ),
    step(
        "pids limit",
        "podman run --rm --pids-limit 5 bb sh -c 'cat /sys/fs/cgroup/pids/pids.max; for i in 1 2 3 4 5 6 7; do sleep 9 & done' 2>&1 | head -2; podman run --rm bb cat /sys/fs/cgroup/pids/pids.max",
        "5\ncan't fork\n2048",
    ),
    step(
        "block limits",
        "podman run --rm --device-read-bps /dev/zero:1mb bb true; podman run --rm --blkio-weight 300 bb true; true",
        "",
    ),
    step(
        "file limits",
        "podman run --rm --ulimit nofile=100:200 --ulimit core=0 bb sh -c 'ulimit -n; ulimit -Hn; ulimit -c'",
        "100\n200\n0",
    ),
    step(
        "kernel settings",
        "podman run --rm --sysctl net.ipv4.ip_unprivileged_port_start=77 --sysctl kernel.msgmax=9000 bb sysctl net.ipv4.ip_unprivileged_port_start kernel.msgmax",
        "= 77\n= 9000",
    ),
    ends(126, "kernel setting that is not there", "podman run --rm --sysctl net.nope=1 bb true", "net/nope"),
    step("shm size", "podman run --rm --shm-size 1m bb sh -c 'mount | grep shm'", "size=1024k"),
    step(
        "cgroup parent",
        "podman run --rm --cgroup-parent /own/place bb sed -n 's/:.*own/:own/p' /proc/self/cgroup",
        "own/place/libpod",
    ),
    step(
        "cgroup namespace",
        "podman run --rm --cgroupns private bb sh -c 'cat /proc/self/cgroup; ls -d /sys/fs/cgroup/memory/memory.limit_in_bytes'",
        "memory:/\nlimit_in_bytes",
    ),
    step("without cgroups", "podman run --rm --cgroups disabled bb echo hi", ""),
    // -- files
    step(
        "read-only root",
        "podman run --rm --read-only bb sh -c 'touch /x; touch /tmp/x /run/x /dev/shm/x && echo three'",
        "Read-only file system\nthree",
    ),
    step(
        "read-only root, all of it",
        "podman run --rm --read-only --read-only-tmpfs=false bb sh -c 'touch /tmp/x'; true",
        "Read-only file system",
    ),
    step(
        "tmpfs",
        "podman run --rm --tmpfs /mnt:rw,size=1m,mode=1700,noexec bb sh -c 'mount | grep /mnt; stat -c %a /mnt'",
        "size=1024k\n1700",
    ),
    step(
        "volume",
        "podman run --rm -v /run/sandbox/vol:/mnt bb sh -c 'cat /mnt/file; echo more >/mnt/new'; cat /run/sandbox/vol/new",
        "data\nmore",
    ),
    step(
        "read-only volume",
        "podman run --rm -v /run/sandbox/vol:/mnt:ro bb sh -c 'cat /mnt/file; touch /mnt/new2'; true",
        "data\nRead-only",
    ),
    step(
        "volume options",
        "podman run --rm -v /run/sandbox/vol:/mnt:nosuid,nodev,noexec bb sh -c 'grep /mnt /proc/self/mounts'",
        "nosuid,nodev,noexec",
    ),
    step(
        "shared volume",
        "mount -t tmpfs tmpfs /run/sandbox/vol; mount --make-rshared /run/sandbox/vol; mkdir /run/sandbox/vol/in; podman run --rm --cap-add sys_admin --security-opt seccomp=unconfined -v /run/sandbox/vol:/mnt:rshared bb sh -c 'mount -t tmpfs seen /mnt/in; grep -c \"/mnt shared\\|shared:\" /proc/self/mountinfo'; grep -o 'seen.*in tmpfs' /proc/mounts; umount -R /run/sandbox/vol",
        "seen /run/sandbox/vol/in",
    ),
    step(
        "slave and private volumes",
        "mount -t tmpfs tmpfs /run/sandbox/vol; mount --make-rshared /run/sandbox/vol; for p in rslave rprivate slave private; do podman run --rm -v /run/sandbox/vol:/mnt:$p bb sh -c 'grep \" /mnt \" /proc/self/mountinfo | grep -o \"shared\\|master\"'; echo $p; done; umount -R /run/sandbox/vol",
        "master\nrslave\nrprivate",
    ),
    step(
        "volume that changes hands",
        "mkdir -p /run/sandbox/owned; podman run --rm -u web -v /run/sandbox/owned:/mnt:U bb sh -c 'touch /mnt/x; stat -c %u /mnt/x'",
        "1000",
    ),
    about(
        "volume with mapped ids",
        "podman run --rm --uidmap 0:100000:5000 --gidmap 0:100000:5000 -v /run/sandbox/vol:/mnt:idmap bb stat -c %u /mnt; true",
        "",
    ),
    step(
        "named volume",
        "podman volume create data >/dev/null; podman run --rm -v data:/mnt bb sh -c 'echo kept >/mnt/x'; podman run --rm -v data:/mnt bb cat /mnt/x; podman volume rm data",
        "kept",
    ),
    step(
        "mount option",
        "podman run --rm --mount type=bind,src=/run/sandbox/vol,dst=/mnt,ro,bind-propagation=rslave --mount type=tmpfs,dst=/etc/t,tmpfs-size=8k bb sh -c 'cat /mnt/file; mount | grep /etc/t'",
        "data\nsize=8k",
    ),
    step(
        "device",
        "podman run --rm --device /dev/zero:/dev/mine:r bb sh -c 'head -c 3 /dev/mine | wc -c; echo >/dev/mine'; true",
        "3\nOperation not permitted",
    ),
    step(
        "device that is not allowed",
        "podman run --rm --cap-add mknod bb sh -c 'mknod /tmp/mem c 1 1; cat /tmp/mem'; podman run --rm --device-cgroup-rule 'c 1:5 r' --cap-add mknod bb sh -c 'mknod /tmp/z c 1 5; head -c 2 /tmp/z | wc -c'",
        "Operation not permitted\n2",
    ),
    step(
        "root directory of the host",
        "podman run --rm --rootfs /run/sandbox/rootfs echo hi; podman run --rm --rootfs /run/sandbox/rootfs:O sh -c 'touch /gone; ls /gone'; ls /run/sandbox/rootfs",
        "hi\n/gone\nbin",
    ),
    step(
        "secret",
        "echo -n hidden | podman secret create sec - >/dev/null; podman run --rm --secret sec,mode=0400 bb sh -c 'cat /run/secrets/sec; stat -c %a /run/secrets/sec'; podman secret rm sec",
        "hidden400",
    ),
    // -- privileges
    step("capability more", "podman run --rm --cap-add sys_time,net_raw bb grep Cap /proc/self/status", "CapEff:"),
    step(
        "capability less",
        "podman run --rm --cap-drop all bb sh -c 'grep Cap /proc/self/status; chown 1 /tmp'; true",
        "CapEff:\t0000000000000000\nOperation not permitted",
    ),
    step(
        "capabilities of a user",
        "podman run --rm -u web bb grep Cap /proc/self/status; podman run --rm -u web --cap-add net_raw bb grep Cap /proc/self/status",
        "CapEff:",
    ),
    step(
        "privileged",
        "podman run --rm --privileged bb sh -c 'grep -E \"Cap|Seccomp|NoNew\" /proc/self/status; mount | grep -c cgroup; mount | grep \"^sysfs\"; test -e /dev/mem && echo mem; mount -t tmpfs t /mnt && echo mounted'",
        "CapEff:\nSeccomp:\t0\nmounted",
    ),
    step(
        "no new privileges",
        "podman run --rm --security-opt no-new-privileges bb grep NoNewPrivs /proc/self/status",
        "1",
    ),
    step(
        "without a seccomp filter",
        "podman run --rm --security-opt seccomp=unconfined bb grep Seccomp: /proc/self/status",
        "0",
    ),
    step(
        "own seccomp filter",
        "echo '{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"mkdir\",\"mkdirat\"],\"action\":\"SCMP_ACT_ERRNO\",\"errnoRet\":95}]}' >/run/sandbox/seccomp.json; podman run --rm --security-opt seccomp=/run/sandbox/seccomp.json bb mkdir /tmp/x; true",
        "Not supported",
    ),
    step(
        "default seccomp filter",
        "podman run --rm --cap-add all bb unshare -m true; podman run --rm bb unshare -U true; true",
        "",
    ),
    step(
        "unmasked",
        "podman run --rm --security-opt unmask=/proc/kcore --security-opt mask=/proc/cpuinfo bb sh -c 'wc -c </proc/cpuinfo; mount | grep -c kcore'; true",
        "0\n0",
    ),
    // -- namespaces
    step(
        "pids of the host",
        "podman run --rm --pid host bb readlink /proc/self/ns/pid | grep -cxF \"$(readlink /proc/self/ns/pid)\"",
        "1",
    ),
    step(
        "network of the host",
        "podman run --rm --net host bb sh -c 'readlink /proc/self/ns/net; hostname' | grep -xF -e \"$(readlink /proc/self/ns/net)\" -e sandbox | wc -l",
        "2",
    ),
    step("no network", "podman run --rm --net none bb ip -o addr | awk '{print $2, $4}'", "lo 127.0.0.1/8"),
    step(
        "ipc of the host",
        "podman run --rm --ipc host bb readlink /proc/self/ns/ipc | grep -cxF \"$(readlink /proc/self/ns/ipc)\"; podman run --rm --ipc private bb echo own",
        "1\nown",
    ),
    step("uts of the host", "podman run --rm --uts host bb hostname", "sandbox"),
    step(
        "bridge",
        "podman run --rm bb ip -o -4 addr show eth0 | awk '{print $2, $4}' | sed 's/[0-9]*.16$/N/'; podman run --rm bb sh -c 'ping -c1 -w5 10.88.0.1 | grep -c \"1 packets received\"'",
        "eth0 10.88.0.N\n1",
    ),
    step(
        "published port",
        "podman run -d --name web -p 8080:80 bb nc -ll -p 80 -e echo hello >/dev/null; eventually says hello nc -w1 127.0.0.1 8080; podman rm -f -t 0 web >/dev/null",
        "hello",
    ),
    step(
        "network of a container",
        "podman run --rm --net container:long bb sh -c 'ls /sys/class/net; hostname'",
        "eth0",
    ),
    step("pids of a container", "podman run --rm --pid container:long bb sh -c 'ps | grep -c \"[t]rap\"'", "1"),
    step(
        "hosts and resolver",
        "podman run --rm --add-host db:10.1.2.3 --dns 10.9.8.7 bb grep -h -e 10.1.2.3 -e 10.9.8.7 /etc/hosts /etc/resolv.conf",
        "db\nnameserver 10.9.8.7",
    ),
    step(
        "own user namespace",
        "podman run --rm --userns auto:size=1000 bb sh -c 'wc -l </proc/self/uid_map; awk \"{print \\$1, \\$3}\" /proc/self/uid_map; id -u; touch /tmp/x; stat -c %u /tmp/x'",
        "1\n0 1000\n0\n0",
    ),
    step(
        "mapped ids",
        "podman run --rm --uidmap 0:100000:5000 --gidmap 0:200000:5000 bb sh -c 'cat /proc/self/uid_map /proc/self/gid_map; id; ls -ln /etc/passwd | cut -c1-30; grep CapEff /proc/self/status; mount | grep -c cgroup'",
        "100000\n200000\nuid=0(root)",
    ),
    step(
        "mapped ids, read-only and a terminal",
        "pty 'podman run --rm -it --read-only --uidmap 0:100000:5000 --gidmap 0:200000:5000 --tmpfs /x -v /run/sandbox/vol:/mnt bb sh -c \"tty; cat /mnt/file; mount | grep /x\"'",
        "/dev/pts/0\ndata",
    ),
    // -- a container that lives: see the setup
    step("ps", "podman ps --format '{{.Names}} {{.State}} {{.Image}}'", "long running localhost/bb:latest"),
    step("top", "podman top long pid user args | head -2", "PID\n1 "),
    step("logs", "eventually says up podman logs long", "up"),
    step("exec", "podman exec long sh -c 'hostname; echo $0'", "long"),
    step(
        "exec with options",
        "podman exec -e A=b -w /tmp -u web long sh -c 'echo $A; pwd; id; grep -E \"Cap|NoNew|Seccomp:\" /proc/self/status'",
        "b\n/tmp\nuid=1000(web)",
    ),
    step("exec with input", "echo data | podman exec -i long cat", "data"),
    step("exec with a terminal", "pty 'podman exec -it long sh -c \"tty; stty size\"'", "/dev/pts/\n24 80"),
    step("exec with privileges", "podman exec --privileged long grep Cap /proc/self/status", "CapEff:"),
    step(
        "exec in the background",
        "podman exec -d long sh -c 'echo done >/tmp/background'; eventually podman exec long cat /tmp/background",
        "done",
    ),
    step(
        "exec is in the container's cgroups",
        "podman exec long sh -c 'test \"$(cat /proc/self/cgroup)\" = \"$(cat /proc/1/cgroup)\" && echo same; cat /proc/self/oom_score_adj; umask; ls /proc/self/fd'",
        "same",
    ),
    ends(9, "exit code of exec", "podman exec long sh -c 'exit 9'", ""),
    ends(127, "exec of what is not there", "podman exec long nope", "not found"),
    ends(126, "exec of what cannot be executed", "podman exec long /etc/not-executable", "permission denied"),
    ends(125, "exec in no container", "podman exec nope true", "no such container"),
    about("exec in a directory that is not there", "podman exec -w /nope long true; echo $?", "12"),
    about("stats", "podman stats --no-stream --format '{{.Name}} {{.PIDs}} {{.MemUsage}}' long", "long 2"),
    step(
        "pause",
        "podman pause long; podman ps --format '{{.Names}} {{.State}}'; podman inspect -f '{{.State.Status}}' long",
        "long\nlong paused\npaused",
    ),
    ends(255, "exec in what is paused", "podman exec long true", ""),
    step("unpause", "podman unpause long; podman exec long echo again", "long\nagain"),
    step(
        "update",
        "podman update --memory 48m --cpus 0.25 --pids-limit 77 long >/dev/null && podman exec long sh -c 'cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us pids/pids.max'",
        "50331648\n25000\n77",
    ),
    step("a signal", "podman kill -s USR1 long; eventually says usr1 podman logs long", "usr1"),
    step(
        "files in and out",
        "echo in >/run/sandbox/in; podman cp /run/sandbox/in long:/tmp/in; podman exec long cat /tmp/in; podman cp long:/etc/group - | tar tf -; podman diff long | grep -c /tmp/in",
        "in\ngroup\n1",
    ),
    step(
        "commit",
        "podman commit -q long made >/dev/null; podman run --rm made cat /tmp/in; podman rmi -f made >/dev/null",
        "in",
    ),
    step(
        "commit while it is paused for it",
        "podman commit -q --pause long made2 >/dev/null; podman ps --format '{{.State}}'; podman rmi -f made2 >/dev/null",
        "running",
    ),
    step("mount of the host", "podman exec long true; ls $(podman mount long) | head -1; podman unmount long", "bin"),
    step(
        "stop",
        "podman stop -t 10 long; podman inspect -f '{{.State.Status}} {{.State.ExitCode}}' long; podman logs long | tail -1",
        "exited 3\nterm",
    ),
    step(
        "start again",
        "podman start long; eventually says up podman logs --tail 1 long; podman inspect -f '{{.State.Running}}' long",
        "long\nup\ntrue",
    ),
    step("restart", "podman restart -t 0 long >/dev/null; podman exec long echo yes", "yes"),
    step("rename", "podman rename long longer; podman exec longer echo yes; podman rename longer long", "yes"),
    step("kill", "podman kill long; podman wait long", "long\n137"),
    step("remove", "podman rm long; podman ps -aq | wc -l", "0"),
    // -- other lives
    step(
        "create, start, attach",
        "podman create --name made bb sh -c 'echo made; exit 4' >/dev/null; podman inspect -f '{{.State.Status}}' made; podman start -a made; echo $?; podman init made >/dev/null; podman inspect -f '{{.State.Status}}' made; podman rm -f -t 0 made >/dev/null",
        "created\nmade\n4\ninitialized",
    ),
    step(
        "attach",
        "podman run -d --name att bb sh -c 'sleep 1; echo late; exit 5' >/dev/null; podman attach att; echo $?; podman rm att >/dev/null",
        "late\n5",
    ),
    step(
        "signals pass through",
        "podman run --name sig bb sh -c 'trap \"echo got; exit 6\" TERM; echo ready; while :; do sleep 0.05; done' >/run/sandbox/sig & eventually grep ready /run/sandbox/sig; kill -TERM $!; wait $!; echo $?; cat /run/sandbox/sig; podman rm -f sig >/dev/null",
        "6\nready\ngot",
    ),
    step(
        "stop signal",
        "podman run -d --name usr --stop-signal USR2 bb sh -c 'trap \"exit 8\" USR2; touch /tmp/up; while :; do sleep 0.05; done' >/dev/null; eventually podman exec usr ls /tmp/up; podman stop -t 9 usr >/dev/null; podman wait usr; podman rm usr >/dev/null",
        "8",
    ),
    step(
        "stop of what does not listen",
        "podman run -d --name deaf bb sleep 1000 >/dev/null; podman stop -t 0 deaf 2>/dev/null; podman wait deaf; podman rm deaf >/dev/null",
        "137",
    ),
    step(
        "removal by force",
        "podman run -d --name gone bb sleep 1000 >/dev/null; podman rm -f -t 0 gone; podman ps -aq | wc -l",
        "gone\n0",
    ),
    step(
        "removal of what is paused",
        "podman run -d --name gone bb sleep 1000 >/dev/null; podman pause gone; podman rm -f -t 0 gone; podman ps -aq | wc -l",
        "gone\ngone\n0",
    ),
    step("time limit", "podman run --rm --timeout 1 bb sleep 1000; echo $?", ""),
    step(
        "restart policy",
        "podman run -d --name again --restart on-failure:2 bb sh -c 'exit 1' >/dev/null; eventually says '2 exited' podman inspect -f '{{.RestartCount}} {{.State.Status}}' again; podman rm -f again >/dev/null",
        "2 exited",
    ),
    step("log to nowhere", "podman run --name quiet --log-driver none bb echo hi; podman rm quiet >/dev/null", "hi"),
    step("much output", "podman run --rm bb sh -c 'seq 1 200000' | tail -1", "200000"),
    step(
        "pid files",
        "podman run -d --name pids --pidfile /run/sandbox/pid --conmon-pidfile /run/sandbox/conmon bb sleep 1000 >/dev/null; cat /proc/$(cat /run/sandbox/pid)/comm /proc/$(cat /run/sandbox/conmon)/comm; podman rm -f -t 0 pids >/dev/null",
        "sleep\nconmon",
    ),
    step("files handed down", "exec 3<<<three; podman run --rm --preserve-fds 1 bb cat /proc/self/fd/3", "three"),
    step(
        "hooks",
        "printf '#!/bin/sh\\ntr -d \" \\n\" | grep -o \"status[^,]*\" >>/run/sandbox/hooks/said' >/etc/hooks/say; chmod +x /etc/hooks/say; for at in prestart createRuntime poststart poststop; do echo \"{\\\"version\\\":\\\"1.0.0\\\",\\\"hook\\\":{\\\"path\\\":\\\"/etc/hooks/say\\\"},\\\"when\\\":{\\\"always\\\":true},\\\"stages\\\":[\\\"$at\\\"]}\" >/etc/hooks/$at.json; done; podman --hooks-dir /etc/hooks run --rm bb true; eventually grep stopped /run/sandbox/hooks/said >/dev/null; cat /run/sandbox/hooks/said",
        "creat\nrunning\nstopped",
    ),
    ends(
        126,
        "hook that fails",
        "rm /etc/hooks/*.json; echo '{\"version\":\"1.0.0\",\"hook\":{\"path\":\"/bin/false\"},\"when\":{\"always\":true},\"stages\":[\"prestart\"]}' >/etc/hooks/bad.json; podman --hooks-dir /etc/hooks run --rm bb true",
        "",
    ),
    step(
        "healthcheck",
        "podman run -d --name health --health-cmd 'test -e /tmp/well' --health-interval disable --health-retries 1 bb sleep 1000 >/dev/null; podman healthcheck run health; echo $?; podman exec health touch /tmp/well; podman healthcheck run health; echo $?; podman inspect -f '{{.State.Health.Status}}' health; podman rm -f -t 0 health >/dev/null",
        "1\n0\nhealthy",
    ),
    step(
        "image with health check and volumes",
        "printf 'FROM localhost/bb\\nVOLUME /vol\\nUSER web\\nENTRYPOINT [\"id\"]\\n' >/run/sandbox/Containerfile; podman image exists bb; podman commit -q -c 'USER web' -c 'VOLUME /vol' -c 'ENTRYPOINT [\"id\"]' $(podman create bb) idimage >/dev/null; podman run --rm idimage; podman rm -fa >/dev/null",
        "uid=1000(web)",
    ),
    about(
        "info",
        "podman info -f '{{.Host.OCIRuntime.Name}} {{.Host.OCIRuntime.Path}} {{.Host.OCIRuntime.Version}}'",
        "tested",
    ),
    step(
        "two hundred processes",
        "podman run --rm bb sh -c 'i=0; while [ $i -lt 200 ]; do sleep 0.2 & i=$((i+1)); done; wait; echo all'",
        "all",
    ),
    step(
        "eight at once",
        "for i in 1 2 3 4 5 6 7 8; do podman run --rm bb echo $i & done | sort; wait",
        "1\n2\n3\n4\n5\n6\n7\n8",
    ),
    step(
        "events",
        "podman run --rm --name told bb true; podman events --stream=false --since 1m --filter container=told --format '{{.Status}}'",
        "create\nstart\ndied\nremove",
    ),
    // -- pods
    step(
        "pod",
        "podman pod create --name pod -p 8081:81 --share net,ipc,uts >/dev/null; podman run -d --pod pod --name srv bb nc -ll -p 81 -e echo pod >/dev/null; eventually says pod podman run --rm --pod pod bb nc -w1 127.0.0.1 81; eventually says pod nc -w1 127.0.0.1 8081; podman pod ps --format '{{.Name}} {{.Status}} {{.NumberOfContainers}}'",
        "pod\npod\npod Running 2",
    ),
    step(
        "pod's namespaces",
        "podman run --rm --pod pod bb readlink /proc/self/ns/ipc | grep -cxF \"$(podman exec srv readlink /proc/self/ns/ipc)\"; podman exec srv hostname",
        "1\npod",
    ),
    step(
        "pod's shared pids",
        "podman pod create --name pp --share pid,net,ipc >/dev/null; podman run -d --pod pp --name p1 bb sleep 777 >/dev/null; podman run --rm --pod pp bb sh -c 'ps | grep -c \"[s]leep 777\"'; podman pod rm -f -t 0 pp >/dev/null",
        "1",
    ),
    step(
        "pod's life",
        "podman pod top pod comm | sort; podman pod pause pod >/dev/null; podman ps --format '{{.State}}' --filter name=srv; podman pod unpause pod >/dev/null; podman pod stop -t 0 pod >/dev/null; podman pod start pod >/dev/null; podman exec srv echo again; podman pod kill pod >/dev/null; podman pod rm -f -t 0 pod >/dev/null; podman pod ps -q | wc -l",
        "nc\npaused\nagain\n0",
    ),
    about(
        "pod's stats",
        "podman pod create --name st >/dev/null; podman run -d --pod st --name st1 bb sleep 100 >/dev/null; podman pod stats --no-stream --format '{{.Name}}' st; podman pod rm -f -t 0 st >/dev/null",
        "st1",
    ),
    step(
        "pod with limits",
        "podman pod create --name lim --cpus 0.5 >/dev/null; podman run --rm --pod lim bb true; podman pod rm -f -t 0 lim >/dev/null",
        "",
    ),
    step(
        "play kube",
        r#"cat >/run/sandbox/app.yaml <<END
apiVersion: v1
kind: Pod
metadata: {name: app, labels: {app: app}}
spec:
  restartPolicy: Never
  hostname: apphost
  initContainers:
  - {name: first, image: localhost/bb, command: [sh, -c, "echo ready >/shared/file"], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: main
    image: localhost/bb
    command: [sh, -c, "cat /shared/file; echo $WHO; sleep 1000"]
    env: [{name: WHO, value: me}]
    workingDir: /tmp
    resources: {limits: {memory: 32Mi, cpu: 500m}}
    securityContext: {runAsUser: 1000, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    livenessProbe: {exec: {command: ["true"]}, initialDelaySeconds: 1}
    volumeMounts: [{name: shared, mountPath: /shared}, {name: scratch, mountPath: /scratch}]
  volumes:
  - {name: shared, hostPath: {path: /run/sandbox/vol, type: Directory}}
  - {name: scratch, emptyDir: {}}
END
podman play kube /run/sandbox/app.yaml >/dev/null; eventually says me podman logs app-main; podman logs app-main; podman exec app-main sh -c 'hostname; pwd; id -u; grep -E "CapEff|NoNew" /proc/self/status; cat /sys/fs/cgroup/memory/memory.limit_in_bytes; touch /x; mount | grep -c scratch'
podman play kube --down /run/sandbox/app.yaml >/dev/null; podman ps -aq | wc -l"#,
        "ready\nme\napphost\n/tmp\n1000\nCapEff:\t0000000000000000\n33554432\nRead-only\n0",
    ),
    step(
        "generate kube",
        "podman run -d --name gen bb sleep 100 >/dev/null; podman generate kube gen | grep -c 'name: gen'; podman rm -f -t 0 gen >/dev/null",
        "",
    ),
    step(
        "nothing is left",
        "ls /run/runc /run/gantry-runtime 2>/dev/null | wc -l; find /sys/fs/cgroup/*/libpod_parent /sys/fs/cgroup/*/own -mindepth 2 -type d 2>/dev/null | grep -c libpod-; podman ps -aq | wc -l",
        "0\n0\n0",
    ),
    step(
        "reset",
        "podman run -d bb sleep 1000 >/dev/null; podman system reset -f >/dev/null 2>&1; podman images -q | wc -l; ps ax | grep -c '[s]leep 1000'",
        "0\n0",
    ),
];
