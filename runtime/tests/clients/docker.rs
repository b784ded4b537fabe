//! docker 20.10 with the system's containerd, as Debian starts them; `daemon.json` names the runtime.

use super::{Step, about, ends, step};

/// Programs, and the packages that have them.
pub(crate) const PROGRAMS: &[(&str, &str)] =
    &[("dockerd", "docker.io"), ("containerd", "containerd"), ("iptables", "iptables")];

/// Before the first step.
pub(crate) const SETUP: &str = r#"
mkdir -p /etc/docker /run/sandbox/vol
echo data >/run/sandbox/vol/file
if [ "$OCI" = /usr/sbin/runc ]; then
    echo '{"live-restore": true}' >/etc/docker/daemon.json
else
    echo "{\"live-restore\": true, \"default-runtime\": \"gantry\", \"runtimes\": {\"gantry\": {\"path\": \"$OCI\"}}}" >/etc/docker/daemon.json
fi
cat >/run/sandbox/start-docker <<'END'
[ -S /run/containerd/containerd.sock ] || setsid containerd >>/run/sandbox/containerd.log 2>&1 &
setsid dockerd -H unix:///run/docker.sock --containerd=/run/containerd/containerd.sock >>/run/sandbox/dockerd.log 2>&1 &
END
. /run/sandbox/start-docker
eventually docker info >/dev/null || { cat /run/sandbox/*.log; exit 1; }
docker import -c 'CMD ["sh"]' /run/sandbox/bb.tar bb
docker run -d --name long -h long bb sh -c 'trap "echo usr1" USR1; trap "echo term; exit 3" TERM; echo up; while :; do sleep 0.05; done'
"#;

/// What docker is asked to do.
pub(crate) const STEPS: &[Step] = &[
    step("run", "docker run --rm bb echo hi", "hi"),
    about("info", "docker info -f '{{.DefaultRuntime}} {{.Runtimes}}'", "runc"),
    ends(7, "exit code", "docker run --rm bb sh -c 'exit 7'", ""),
    ends(137, "ended by a signal", "docker run --rm bb sh -c 'kill -9 $$'", ""),
    step("standard input", "echo data | docker run --rm -i bb cat", "data"),
    step("standard error apart", "docker run --rm bb sh -c 'echo out; echo err >&2' 2>/dev/null", "out"),
    step("terminal", "pty 'docker run --rm -it bb sh -c \"tty; test -t 2 && echo yes\"'", "/dev/\nyes"),
    step("environment", "docker run --rm -e A='b c' -h box bb env | sort", "A=b c\nHOME=/root\nHOSTNAME=box"),
    ends(127, "program that is not there", "docker run --rm bb nope", "executable file not found"),
    ends(127, "path that is not there", "docker run --rm bb /bin/nope", "no such file or directory"),
    ends(126, "program that is a directory", "docker run --rm bb /etc", "permission denied"),
    ends(126, "program without the bit", "docker run --rm bb /etc/not-executable", "permission denied"),
    ends(125, "option that is not there", "docker run --rm --nope bb true", "unknown flag"),
    step("user by name", "docker run --rm -u web --group-add 4321 bb id", "uid=1000(web) gid=1000(web)"),
    step("working directory", "docker run --rm -w /tmp/new/dir bb pwd", "/tmp/new/dir"),
    step(
        "init",
        "docker run --rm --init bb sh -c 'tr \"\\\\0\" \" \" </proc/1/cmdline; ps | grep -c init'",
        "docker-init -- sh",
    ),
    // -- the world inside, whole
    step(
        "mounts",
        "docker run --rm bb sh -c \"mount | sed 's/^overlay.*/overlay/; s/size=[0-9]*k/size/'\"",
        "overlay\nproc on /proc\ntmpfs on /dev",
    ),
    step(
        "devices",
        "docker run --rm bb ls -l /dev /dev/pts /dev/shm /dev/mqueue | sed 's/ [A-Z][a-z][a-z] .*:[0-9][0-9]//'",
        "null\nzero",
    ),
    step(
        "what a process has",
        "docker run --rm bb grep -vE '^(Pid|PPid|Tgid|Ngid|NSpid|NStgid|NSpgid|NSsid|Vm|Rss|Hugetlb|.*ctxt|Cpus|Mems|FDSize|Sig|Shd|x86|State|Tracer)' /proc/self/status",
        "CapEff:\nSeccomp:",
    ),
    step("ignored signals", "docker run --rm bb grep Sig /proc/self/status", "SigIgn:"),
    step(
        "open files and limits",
        "docker run --rm bb sh -c 'ls /proc/self/fd; ls /proc/1/fd; cat /proc/self/limits'",
        "0\n1\n2",
    ),
    step(
        "cgroup",
        "docker run --rm bb sed 's/:[^:]*$/:X/' /proc/self/cgroup; docker run --rm bb cat /proc/self/cgroup",
        "memory:/docker",
    ),
    step(
        "cgroup files",
        "docker run --rm bb sh -c 'ls /sys/fs/cgroup /sys/fs/cgroup/memory; touch /sys/fs/cgroup/memory/x'; true",
        "memory\nRead-only file system",
    ),
    step(
        "score",
        "docker run --rm bb cat /proc/self/oom_score_adj; docker run --rm --oom-score-adj 321 bb cat /proc/self/oom_score_adj",
        "0\n321",
    ),
    step(
        "masked",
        "docker run --rm bb sh -c 'ls /proc/scsi /sys/firmware; wc -c </proc/kcore; echo 1 >/proc/sysrq-trigger'; true",
        "0\nRead-only file system",
    ),
    step(
        "namespaces",
        "docker run --rm bb sh -c 'cd /proc/self/ns; for n in *; do echo $n $(readlink $n); done' | while read -r n at; do [ \"$at\" = \"$(readlink /proc/self/ns/$n)\" ] && echo \"$n host\" || echo \"$n own\"; done",
        "mnt own\nuser host",
    ),
    // -- limits
    step(
        "memory limit",
        "docker run --rm -m 64m --memory-reservation 32m --memory-swap 96m bb sh -c 'cd /sys/fs/cgroup/memory; cat memory.limit_in_bytes memory.memsw.limit_in_bytes memory.soft_limit_in_bytes'",
        "67108864",
    ),
    step(
        "out of memory",
        "docker run --name oom -m 8m bb sh -c 'tail /dev/zero & wait $!; exit 5'; echo $?; docker inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' oom; docker rm oom; docker run --name oom2 -m 8m bb tail /dev/zero; docker inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' oom2; docker rm oom2",
        "true 137\noom2",
    ),
    step(
        "cpus",
        "docker run --rm --cpus 0.5 --cpu-shares 512 --cpuset-cpus 0 bb sh -c 'cd /sys/fs/cgroup; cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus; nproc'",
        "50000\n100000\n512\n0\n1",
    ),
    step(
        "pids limit",
        "docker run --rm --pids-limit 5 bb sh -c 'cat /sys/fs/cgroup/pids/pids.max; for i in 1 2 3 4 5 6 7; do sleep 9 & done' 2>&1 | head -2; docker run --rm bb cat /sys/fs/cgroup/pids/pids.max",
        "5\ncan't fork\nmax",
    ),
    step(
        "file limits",
        "docker run --rm --ulimit nofile=100:200 --ulimit core=0 bb sh -c 'ulimit -n; ulimit -Hn; ulimit -c'",
        "100\n200\n0",
    ),
    step(
        "kernel settings",
        "docker run --rm --sysctl net.ipv4.ip_unprivileged_port_start=77 --sysctl kernel.msgmax=9000 bb sysctl net.ipv4.ip_unprivileged_port_start kernel.msgmax",
        "= 77\n= 9000",
    ),
    ends(125, "kernel setting that is not there", "docker run --rm --sysctl net.nope=1 bb true", "net/nope"),
    step("shm size", "docker run --rm --shm-size 1m bb sh -c 'mount | grep shm'", "size=1024k"),
    step(
        "cgroup parent and namespace",
        "docker run --rm --cgroup-parent /own/place bb grep -c own/place /proc/self/cgroup; docker run --rm --cgroupns private bb cat /proc/self/cgroup",
        "memory:/",
    ),
    // -- files
    step(
        "read-only root and tmpfs",
        "docker run --rm --read-only --tmpfs /mnt:rw,size=1m,mode=1700 bb sh -c 'touch /x; touch /mnt/x && mount | grep /mnt; stat -c %a /mnt'",
        "Read-only file system\nsize=1024k\n1700",
    ),
    step(
        "volumes",
        "docker run --rm -v /run/sandbox/vol:/mnt -v /run/sandbox/vol:/root:ro -v data:/var/tmp bb sh -c 'cat /mnt/file; touch /root/x; echo kept >/var/tmp/x'; docker run --rm -v data:/mnt bb cat /mnt/x; docker volume rm data",
        "data\nRead-only\nkept",
    ),
    step(
        "volume propagation",
        "mount -t tmpfs tmpfs /run/sandbox/vol; mount --make-rshared /run/sandbox/vol; mkdir /run/sandbox/vol/in; docker run --rm --privileged -v /run/sandbox/vol:/mnt:rshared bb mount -t tmpfs seen /mnt/in; grep -o 'seen.*in tmpfs' /proc/mounts; for p in rslave rprivate slave private; do docker run --rm -v /run/sandbox/vol:/mnt:$p bb sh -c 'grep \" /mnt \" /proc/self/mountinfo | grep -o \"shared\\|master\"'; echo $p; done; umount -R /run/sandbox/vol",
        "seen /run/sandbox/vol/in\nmaster\nrslave",
    ),
    step(
        "mount option",
        "docker run --rm --mount type=bind,src=/run/sandbox/vol,dst=/mnt,readonly --mount type=tmpfs,dst=/etc/t,tmpfs-size=8192 bb sh -c 'cat /mnt/file; mount | grep /etc/t'",
        "data\nsize=8k",
    ),
    step(
        "device",
        "docker run --rm --device /dev/zero:/dev/mine:r bb sh -c 'head -c 3 /dev/mine | wc -c; echo >/dev/mine'; docker run --rm bb sh -c 'mknod /tmp/mem c 1 1; cat /tmp/mem'; docker run --rm --device-cgroup-rule 'c 1:1 r' bb sh -c 'mknod /tmp/mem c 1 1; exec 3</tmp/mem && echo open'",
        "3\nOperation not permitted\nOperation not permitted",
    ),
    // -- privileges
    step(
        "capabilities",
        "docker run --rm --cap-add sys_time --cap-drop net_raw bb grep Cap /proc/self/status; docker run --rm --cap-drop ALL bb sh -c 'grep CapEff /proc/self/status; chown 1 /tmp'; docker run --rm -u web bb grep Cap /proc/self/status",
        "CapEff:\nCapEff:\t0000000000000000\nOperation not permitted",
    ),
    step(
        "privileged",
        "docker run --rm --privileged bb sh -c 'grep -E \"Cap|Seccomp|NoNew\" /proc/self/status; mount | grep -c cgroup; mount | grep \"^sysfs\"; test -e /dev/mem && echo mem; mount -t tmpfs t /mnt && echo mounted'",
        "CapEff:\nSeccomp:\t0\nmem\nmounted",
    ),
    step(
        "security options",
        "docker run --rm --security-opt no-new-privileges bb grep NoNewPrivs /proc/self/status; docker run --rm --security-opt seccomp=unconfined bb grep Seccomp: /proc/self/status; docker run --rm --security-opt systempaths=unconfined bb sh -c 'mount | grep -c kcore'",
        "1\n0\n0",
    ),
    step(
        "own seccomp filter",
        "echo '{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"mkdir\",\"mkdirat\"],\"action\":\"SCMP_ACT_ERRNO\",\"errnoRet\":95}]}' >/run/sandbox/seccomp.json; docker run --rm --security-opt seccomp=/run/sandbox/seccomp.json bb mkdir /tmp/x; docker run --rm bb unshare -U true; true",
        "Not supported\nOperation not permitted",
    ),
    // -- namespaces
    step(
        "namespaces of the host",
        "docker run --rm --pid host --net host --ipc host --uts host bb sh -c 'for n in pid net ipc uts; do readlink /proc/self/ns/$n; done' | grep -cxF \"$(for n in pid net ipc uts; do readlink /proc/self/ns/$n; done)\"; docker run --rm --userns host bb cat /proc/self/uid_map",
        "4\n4294967295",
    ),
    step("no network", "docker run --rm --net none bb ip -o addr | awk '{print $2, $4}'", "lo 127.0.0.1/8"),
    step(
        "bridge",
        "docker run --rm --net bridge bb sh -c 'ip -o -4 addr show eth0; ping -c1 -w5 172.17.0.1' | grep -c -e 172.17 -e '1 packets received'",
        "3",
    ),
    step(
        "own network, names and ports",
        "docker network create net >/dev/null; docker run -d --name web --net net -p 8080:80 bb nc -ll -p 80 -e echo hello >/dev/null; eventually says hello docker run --rm --net net bb nc -w1 web 80; eventually says hello nc -w1 127.0.0.1 8080; docker rm -f web >/dev/null; docker network rm net",
        "hello\nhello\nnet",
    ),
    step(
        "namespaces of a container",
        "docker run --rm --net container:long --ipc container:long --pid container:long bb sh -c 'ls /sys/class/net; ps | grep -c \"[t]rap\"'",
        "eth0\n1",
    ),
    // -- a container that lives: see the setup
    step(
        "ps and top",
        "docker ps --format '{{.Names}} {{.State}} {{.Image}}'; docker top long -o pid,args | grep -c '[t]rap'",
        "long running bb\n1",
    ),
    step(
        "exec",
        "docker exec long sh -c 'hostname; echo $0'; docker exec -e A=b -w /tmp -u web long sh -c 'echo $A; pwd; id; grep -E \"Cap|NoNew|Seccomp:\" /proc/self/status'",
        "long\nb\n/tmp\nuid=1000(web)",
    ),
    step("exec with input", "echo data | docker exec -i long cat", "data"),
    step("exec with a terminal", "pty 'docker exec -it long sh -c \"tty\"'", "/dev/pts/"),
    step("exec with privileges", "docker exec --privileged long grep Cap /proc/self/status", "CapEff:"),
    step(
        "exec in the background",
        "docker exec -d long sh -c 'echo done >/tmp/background'; eventually docker exec long cat /tmp/background",
        "done",
    ),
    step(
        "exec is in the container's cgroups",
        "docker exec long sh -c 'test \"$(cat /proc/self/cgroup)\" = \"$(cat /proc/1/cgroup)\" && echo same; cat /proc/self/oom_score_adj; umask; ls /proc/self/fd'",
        "same",
    ),
    ends(9, "exit code of exec", "docker exec long sh -c 'exit 9'", ""),
    ends(127, "exec of a path that is not there", "docker exec long /bin/nope", "no such file or directory"),
    ends(127, "exec of what is not there", "docker exec long nope", "not found"),
    ends(126, "exec of what cannot be executed", "docker exec long /etc/not-executable", "permission denied"),
    about("exec in a directory that is not there", "docker exec -w /nope long true; echo $?", "12"),
    step(
        "logs",
        "docker logs long; timeout 5 docker logs -f --tail 1 long >/run/sandbox/followed & eventually grep up /run/sandbox/followed; docker kill -s USR1 long; eventually grep usr1 /run/sandbox/followed; kill $!",
        "up\nup\nlong\nusr1",
    ),
    about("stats", "docker stats --no-stream --format '{{.Name}} {{.PIDs}}' long", "long"),
    step(
        "pause",
        "docker pause long; docker ps --format '{{.Names}} {{.State}} '; docker exec long true; docker unpause long; docker exec long echo again",
        "long\nlong paused\nis paused\nlong\nagain",
    ),
    step(
        "update",
        "docker update --memory 48m --memory-swap 48m --cpus 0.25 --pids-limit 77 long; docker exec long sh -c 'cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us pids/pids.max'",
        "long\n50331648\n25000\n77",
    ),
    step(
        "files in and out, commit",
        "echo in >/run/sandbox/in; docker cp /run/sandbox/in long:/tmp/in; docker cp long:/etc/group - | tar tf -; docker diff long | grep /tmp/in; docker commit long made >/dev/null; docker run --rm made cat /tmp/in; docker rmi made >/dev/null",
        "group\nA /tmp/in\nin",
    ),
    // -- the daemon dies
    step(
        "killed daemon",
        "kill -9 $(pidof dockerd); eventually sh -c '! pidof dockerd'; rm -f /var/run/docker.pid; echo $(ps ax | grep -c '[t]rap \"echo usr1')",
        "2",
    ),
    step(
        "daemon again",
        ". /run/sandbox/start-docker; eventually docker info >/dev/null; docker ps --format '{{.Names}} {{.State}}'; docker exec long echo alive; docker inspect -f '{{.State.Running}} {{.RestartCount}}' long",
        "long running\nalive\ntrue 0",
    ),
    step(
        "killed containerd",
        "kill -9 $(pidof containerd); eventually sh -c '! pidof containerd'; rm -f /run/containerd/containerd.sock; (. /run/sandbox/start-docker) 2>/dev/null; eventually docker exec long echo alive",
        "alive",
    ),
    step(
        "signals after that",
        "docker kill -s USR1 long; eventually says usr1 docker logs --since 3s long",
        "long\nusr1",
    ),
    step(
        "stop",
        "docker stop -t 10 long; docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' long; docker logs long | tail -1",
        "exited 3\nterm",
    ),
    step(
        "start, restart, rename, kill, remove",
        "docker start long; docker restart -t 0 long; docker rename long longer; docker exec longer echo yes; docker kill longer; docker wait longer; docker rm longer; docker ps -aq | wc -l",
        "long\nyes\nlonger\n137\n0",
    ),
    // -- other lives
    step(
        "create, start, attach",
        "docker create --name made bb sh -c 'echo made; exit 4' >/dev/null; docker start -a made; echo $?; docker rm made; docker run -d --name att bb sh -c 'sleep 1; echo late; exit 5' >/dev/null; docker attach att; echo $?; docker rm att",
        "made\n4\nlate\n5",
    ),
    step(
        "signals pass through",
        "docker run --name sig bb sh -c 'trap \"echo got; exit 6\" TERM; echo ready; while :; do sleep 0.05; done' >/run/sandbox/sig & eventually grep ready /run/sandbox/sig; kill -TERM $!; wait $!; echo $?; cat /run/sandbox/sig; docker rm -f sig >/dev/null",
        "6\nready\ngot",
    ),
    step(
        "stop of what does not listen",
        "docker run -d --name deaf --stop-signal USR2 bb sleep 1000 >/dev/null; docker stop -t 0 deaf; docker wait deaf; docker rm deaf",
        "137",
    ),
    step(
        "removal by force",
        "docker run -d --name gone bb sleep 1000 >/dev/null; docker rm -f gone; docker run -d --name gone bb sleep 1000 >/dev/null; docker pause gone; docker rm -f gone; docker ps -aq | wc -l",
        "gone\ngone\n0",
    ),
    step(
        "restart policy",
        "docker run -d --name again --restart on-failure:2 bb sh -c 'exit 1' >/dev/null; eventually says '2 exited' docker inspect -f '{{.RestartCount}} {{.State.Status}}' again; docker rm -f again",
        "2 exited",
    ),
    step(
        "always restarted",
        "docker run -d --name always --restart always bb sh -c 'trap \"exit 0\" TERM; while :; do sleep 0.05; done' >/dev/null; docker exec always kill 1; eventually says '1 true' docker inspect -f '{{.RestartCount}} {{.State.Running}}' always; docker rm -f always",
        "1 true",
    ),
    step(
        "healthcheck",
        "docker run -d --name health --health-cmd 'test -e /tmp/well' --health-interval 100ms --health-retries 1 bb sleep 1000 >/dev/null; eventually says unhealthy docker inspect -f '{{.State.Health.Status}}' health; docker exec health touch /tmp/well; eventually docker ps --filter health=healthy --format '{{.Names}}' ; eventually says healthy docker ps --filter health=healthy --format '{{.Names}} healthy'; docker rm -f health",
        "unhealthy\nhealth healthy",
    ),
    step("much output", "docker run --rm bb sh -c 'seq 1 200000' | tail -1", "200000"),
    step(
        "eight at once",
        "for i in 1 2 3 4 5 6 7 8; do docker run --rm bb echo $i & done | sort; wait",
        "1\n2\n3\n4\n5\n6\n7\n8",
    ),
    step(
        "build",
        "printf 'FROM bb\\nRUN echo built >/made\\nUSER web\\nHEALTHCHECK CMD true\\nCMD [\"cat\", \"/made\"]\\n' >/run/sandbox/Dockerfile; DOCKER_BUILDKIT=0 docker build -q -t built -f /run/sandbox/Dockerfile /run/sandbox/vol >/dev/null; docker run --rm built",
        "built",
    ),
    step(
        "events",
        "docker events --since 10m --until 0s --filter event=die --filter event=oom --format '{{.Action}}' | sort -u",
        "die\noom",
    ),
    step(
        "nothing is left",
        "docker ps -aq | wc -l; ls /run/docker/runtime-*/moby /run/containerd/runc/moby 2>/dev/null | wc -l; find /sys/fs/cgroup/*/docker -mindepth 1 -type d | wc -l; ps ax | grep -c '[c]ontainerd-shim'",
        "0\n0\n0\n0",
    ),
];
