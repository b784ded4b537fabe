//! containerd 1.6 with `ctr`, as Debian configures it; `--runc-binary` names the runtime.

use super::{Step, about, ends, step};

/// Programs, and the packages that have them.
pub(crate) const PROGRAMS: &[(&str, &str)] = &[("containerd", "containerd"), ("ctr", "containerd")];

/// Before the first step.
pub(crate) const SETUP: &str = r#"
mkdir -p /run/sandbox/vol /run/sandbox/image
echo data >/run/sandbox/vol/file
cat >>/run/sandbox/env <<'END'
run() { timeout --foreground -k 1 30 ctr run --runc-binary $OCI "$@"; }
tasks() { ctr tasks ls | awk '{ print $1, $3 }'; }
gone() { eventually sh -c "! ctr tasks ls -q | grep -x $1" >/dev/null; ctr containers rm $1; }
END
setsid containerd >/run/sandbox/containerd.log 2>&1 &
eventually ctr version >/dev/null || { cat /run/sandbox/containerd.log; exit 1; }
layer=$(sha256sum </run/sandbox/bb.tar | cut -c1-64)
cd /run/sandbox/image || exit 1
cp ../bb.tar layer.tar
echo "{\"architecture\":\"$(dpkg --print-architecture)\",\"os\":\"linux\",\"config\":{\"Cmd\":[\"sh\"],\"Env\":[\"PATH=/bin\"]},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$layer\"]}}" >config.json
echo '[{"Config":"config.json","RepoTags":["docker.io/library/bb:1"],"Layers":["layer.tar"]}]' >manifest.json
tar -cf ../image.tar manifest.json config.json layer.tar
ctr image import ../image.tar
. /run/sandbox/env
run -d docker.io/library/bb:1 long sh -c 'trap "exit 3" TERM; while :; do sleep 0.05; done'
"#;

/// What containerd is asked to do.
pub(crate) const STEPS: &[Step] = &[
    step("run", "run --rm docker.io/library/bb:1 a echo hi", "hi"),
    ends(7, "exit code", "run --rm docker.io/library/bb:1 a sh -c 'exit 7'", ""),
    ends(137, "ended by a signal", "run --rm docker.io/library/bb:1 a sh -c 'kill -9 $$'", ""),
    step("standard input", "echo data | run --rm docker.io/library/bb:1 a cat", "data"),
    step(
        "terminal",
        "pty '. $WORK/prelude.sh; run --rm --tty docker.io/library/bb:1 a sh -c \"tty; stty size\"'",
        "/dev/pts/0\n24 80",
    ),
    step("root file system", "run --rm --rootfs /run/sandbox/rootfs a echo hi", "hi"),
    step(
        "without streams",
        "run --rm --null-io docker.io/library/bb:1 a sh -c 'echo hi; readlink /proc/self/fd/1 >/dev/full'; true",
        "",
    ),
    ends(1, "program that is not there", "run --rm docker.io/library/bb:1 a nope", "executable file not found"),
    ends(1, "program without the bit", "run --rm docker.io/library/bb:1 a /etc/not-executable", "permission denied"),
    step(
        "nothing of these is left",
        "ctr containers ls -q; ctr tasks ls -q; ls /run/containerd/runc/default",
        "long\nlong\nlong",
    ),
    // -- the world inside, whole
    step(
        "mounts",
        "run --rm docker.io/library/bb:1 a sh -c \"mount | sed 's/^overlay.*/overlay/; s/size=[0-9]*k/size/'\"",
        "overlay\nproc on /proc\ntmpfs on /dev",
    ),
    step(
        "devices",
        "run --rm docker.io/library/bb:1 a ls -l /dev /dev/pts /dev/shm /dev/mqueue | sed 's/ [A-Z][a-z][a-z] .*:[0-9][0-9]//'",
        "null\nzero",
    ),
    step(
        "what a process has",
        "run --rm docker.io/library/bb:1 a grep -vE '^(Pid|PPid|Tgid|Ngid|NSpid|NStgid|NSpgid|NSsid|Vm|Rss|Hugetlb|.*ctxt|Cpus|Mems|FDSize|Shd|x86|State|Tracer)' /proc/self/status",
        "CapEff:\nSeccomp:",
    ),
    step(
        "limits, files, environment",
        "run --rm --env A=b --cwd /tmp docker.io/library/bb:1 a sh -c 'cat /proc/self/limits; ls /proc/self/fd; env | sort; pwd; cat /proc/self/oom_score_adj; umask'",
        "Max open files\nA=b\n/tmp",
    ),
    step(
        "cgroup",
        "run --rm docker.io/library/bb:1 a cat /proc/self/cgroup; run --rm --cgroup /own/place docker.io/library/bb:1 a cat /proc/self/cgroup",
        "memory:/",
    ),
    step(
        "masked",
        "run --rm docker.io/library/bb:1 a sh -c 'ls /proc/scsi /sys/firmware; wc -c </proc/kcore; echo 1 >/proc/sysrq-trigger'; true",
        "0\nRead-only file system",
    ),
    // -- options
    step(
        "memory limit",
        "run --rm --memory-limit 33554432 docker.io/library/bb:1 a sh -c 'grep -o \"memory:.*\" /proc/self/cgroup; cat /sys/fs/cgroup/memory/memory.limit_in_bytes'",
        "33554432",
    ),
    step(
        "cpus",
        "run --rm --cpus 0.5 --cpu-shares 512 docker.io/library/bb:1 a sh -c 'cd /sys/fs/cgroup/cpu; cat cpu.cfs_quota_us cpu.shares'",
        "50000\n512",
    ),
    step("read-only", "run --rm --read-only docker.io/library/bb:1 a touch /x; true", "Read-only file system"),
    step(
        "mount",
        "run --rm --mount type=bind,src=/run/sandbox/vol,dst=/mnt,options=rbind:ro docker.io/library/bb:1 a sh -c 'cat /mnt/file; touch /mnt/x'; true",
        "data\nRead-only",
    ),
    step(
        "capabilities",
        "run --rm --cap-add CAP_SYS_TIME --cap-drop CAP_CHOWN docker.io/library/bb:1 a grep -E 'Cap|NoNew' /proc/self/status; run --rm --allow-new-privs docker.io/library/bb:1 a grep NoNew /proc/self/status",
        "CapEff:\nNoNewPrivs:\t1\nNoNewPrivs:\t0",
    ),
    step(
        "privileged",
        "run --rm --privileged docker.io/library/bb:1 a sh -c 'grep -E \"Cap|Seccomp\" /proc/self/status; mount -t tmpfs t /mnt && echo mounted'",
        "CapEff:\nmounted",
    ),
    step("seccomp", "run --rm --seccomp docker.io/library/bb:1 a grep Seccomp: /proc/self/status", "2"),
    step(
        "network of the host",
        "run --rm --net-host docker.io/library/bb:1 a readlink /proc/self/ns/net | grep -cxF \"$(readlink /proc/self/ns/net)\"",
        "1",
    ),
    step(
        "device",
        "run --rm --device /dev/full docker.io/library/bb:1 a sh -c 'ls /dev/full; cat /dev/kmsg'; true",
        "/dev/full",
    ),
    step(
        "pid file and label",
        "run -d --pid-file /run/sandbox/pid --label a=b docker.io/library/bb:1 b sleep 1000; cat /proc/$(cat /run/sandbox/pid)/comm; ctr tasks kill -s KILL b; gone b",
        "sleep",
    ),
    step(
        "namespace of another",
        "run --rm --with-ns network:/proc/$(ctr tasks ls | awk '$1 == \"long\" { print $2 }')/ns/net docker.io/library/bb:1 a readlink /proc/self/ns/net | grep -cxF \"$(ctr tasks exec --exec-id n long readlink /proc/self/ns/net)\"",
        "1",
    ),
    step(
        "user namespace",
        "run --rm --rootfs --uidmap 0:0:5000 --gidmap 0:0:5000 /run/sandbox/rootfs a sh -c 'cat /proc/self/uid_map; id -u'",
        "5000",
    ),
    // -- a container that lives: see the setup
    step("tasks", "tasks", "long RUNNING"),
    step(
        "exec",
        "ctr tasks exec --exec-id x long sh -c 'echo hi; cat /proc/self/cgroup'; ctr tasks exec --exec-id x --user 1000:1000 --cwd /tmp long sh -c 'id; pwd; grep Cap /proc/self/status'",
        "hi\nuid=1000\n/tmp",
    ),
    ends(9, "exit code of exec", "ctr tasks exec --exec-id x long sh -c 'exit 9'", ""),
    ends(1, "exec of what is not there", "ctr tasks exec --exec-id x long nope", "not found"),
    step(
        "exec with a terminal",
        "pty 'ctr tasks exec --exec-id x --tty long sh -c \"tty; until stty size | grep 24; do sleep 0.05; done\"'",
        "/dev/pts/0\n24 80",
    ),
    step("exec with input", "echo data | ctr tasks exec --exec-id x long cat", "data"),
    step(
        "exec in the background",
        "ctr tasks exec --detach --exec-id d long sh -c 'echo done >/tmp/x'; eventually ctr tasks exec --exec-id y long cat /tmp/x",
        "done",
    ),
    about("processes", "ctr tasks ps long | tail -n +2 | wc -l", ""),
    step(
        "pause",
        "ctr tasks pause long; tasks; ctr tasks exec --exec-id p long true; ctr tasks resume long; tasks; ctr tasks exec --exec-id p long echo again",
        "long PAUSED\nlong RUNNING\nagain",
    ),
    about(
        "metrics",
        "ctr tasks metrics --format json long | tr ',{' '\\n\\n' | grep -E 'usage|pids|current' | head; ctr tasks metrics long",
        "usage\nmemory.",
    ),
    step("metrics name the same things", "ctr tasks metrics long | awk '{ print $1 }'", "METRIC"),
    step("checkpoint", "ctr tasks checkpoint --help | head -2", "checkpoint"),
    step(
        "kill with a signal",
        "ctr tasks kill -s TERM long; eventually says STOPPED ctr tasks ls | awk '{ print $3 }'; ctr tasks delete long; echo $?; ctr containers rm long",
        "STOPPED",
    ),
    step(
        "start again",
        "run -d docker.io/library/bb:1 long sleep 1000; ctr tasks kill -s KILL long; eventually says STOPPED ctr tasks ls >/dev/null; ctr tasks rm long; ctr tasks start -d long; tasks; ctr tasks kill -s KILL long; gone long",
        "long RUNNING",
    ),
    step(
        "kill of all processes",
        "run -d docker.io/library/bb:1 k sh -c 'sleep 777 & sleep 777'; eventually says 2 sh -c 'ps ax | grep -c \"[s]leep 777\"' >/dev/null; ctr tasks kill -a -s KILL k; gone k; ps ax | grep -c '[s]leep 777'; true",
        "",
    ),
    step(
        "removal of what is paused",
        "run -d docker.io/library/bb:1 z sleep 777; ctr tasks pause z; ctr tasks rm -f z; ctr containers rm z; tasks; ps ax | grep -c '[s]leep 777'; true",
        "0",
    ),
    step(
        "killed shim",
        "run -d docker.io/library/bb:1 s sleep 778; kill -9 $(pgrep -f '[c]ontainerd-shim.*-id s '); eventually sh -c '! pgrep -f \"[s]leep 778\"'; gone s; ls /run/containerd/runc/default | wc -l; find /sys/fs/cgroup/*/default -mindepth 1 -type d | wc -l",
        "0\n0",
    ),
    step(
        "killed containerd",
        "run -d docker.io/library/bb:1 s sleep 779; kill -9 $(pidof containerd); eventually sh -c '! pidof containerd'; setsid containerd >>/run/sandbox/containerd.log 2>&1 & eventually ctr version >/dev/null; tasks; ctr tasks exec --exec-id x s echo alive; ctr tasks kill -s KILL s; gone s",
        "s RUNNING\nalive",
    ),
    step(
        "eight at once",
        "for i in 1 2 3 4 5 6 7 8; do run --rm docker.io/library/bb:1 p$i echo $i & done | sort; wait",
        "1\n2\n3\n4\n5\n6\n7\n8",
    ),
    step(
        "out of memory",
        "run --rm --memory-limit 8388608 docker.io/library/bb:1 a tail /dev/zero; echo $?; timeout 1 ctr events >/dev/null; true",
        "137",
    ),
    step(
        "nothing is left",
        "ctr tasks ls -q; ctr containers ls -q; ls /run/containerd/runc/default | wc -l; find /sys/fs/cgroup/*/default -mindepth 1 -type d | wc -l; ps ax | grep -c '[c]ontainerd-shim'",
        "0\n0\n0",
    ),
];
