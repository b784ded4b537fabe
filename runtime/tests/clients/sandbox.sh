#!/bin/bash
# A host of its own for one client: namespaces, cgroups, network and every directory that a client writes to.
#
#     keeper (own session, sees the test end) ── unshare ── inside (PID 1, reaps) ── steps
#
# The test holds the keeper's standard input. When that closes, killed test or not, the keeper ends PID 1, and with it
# every process, mount and device; then it removes what no namespace holds: the cgroups, and the work directory.
#
#     sandbox.sh keeper NAME WORK      NAME: of the cgroups; WORK: directory with prelude.sh and steps/
set -u
me=$0

keeper() {
    name=$1 work=$2
    trap '' HUP INT TERM
    groups=()
    while read -r _ mount type _; do
        case $type:$mount in cgroup:/sys/fs/cgroup/* | cgroup2:/sys/fs/cgroup*) ;; *) continue ;; esac
        own=$(awk -F: -v n="${mount##*/}" '$2 == n || $2 == "name=" n { print $3; exit }' /proc/self/cgroup)
        group=$mount${own%/}/$name
        mkdir -p "$group"
        groups+=("$group")
        if [ -e "$group/cpuset.mems" ] && [ "$type" = cgroup ]; then
            for file in cpuset.cpus cpuset.mems; do cat "${group%/*}/$file" >"$group/$file"; done
        fi
    done </proc/self/mounts
    (
        exec <&- # only the keeper holds the test's pipe
        for group in "${groups[@]}"; do echo 0 >"$group/cgroup.procs"; done
        exec setpriv --pdeathsig KILL unshare --mount --net --pid --ipc --uts --cgroup --fork --kill-child \
            --mount-proc --propagation private -- bash "$me" inside "$work" >"$work/log" 2>&1
    ) &
    sandbox=$!
    (cat >/dev/null; [ -e "$work/done" ] || kill -KILL "$sandbox" 2>/dev/null) <&0 &
    watcher=$!
    exec <&-
    wait "$sandbox"
    code=$?
    for group in "${groups[@]}"; do
        for _ in {1..500}; do # the last processes take a moment to be gone
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
            [ -e "$group" ] || break
            sleep 0.02
        done
    done
    echo "$code" >"$work/done"
    wait "$watcher" 2>/dev/null # the test has read what it wants
    rm -rf --one-file-system "$work"
}

# The same hierarchies as outside, with this sandbox's cgroup as their root.
cgroups() {
    mount -t sysfs sysfs /sys
    [ "$1" = "cgroup2 /sys/fs/cgroup" ] || mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    while read -r type mount options; do
        if [ "$type" = cgroup ]; then
            only=$(tr , '\n' <<<"$options" | grep -E '^(name=.*|blkio|cpu|cpuacct|cpuset|devices|freezer|hugetlb|memory|misc|net_cls|net_prio|perf_event|pids|rdma)$')
            options=$(paste -sd, <<<"${only/#name=/none,name=}")
        else
            options=rw
        fi
        mkdir -p "$mount"
        mount -t "$type" -o "$options" "$type" "$mount"
    done <<<"$1"
    if [ -e /sys/fs/cgroup/cgroup.subtree_control ]; then # processes may only be in leaves
        mkdir /sys/fs/cgroup/init
        while read -r pid; do echo "$pid" >/sys/fs/cgroup/init/cgroup.procs; done </sys/fs/cgroup/cgroup.procs
        for controller in $(</sys/fs/cgroup/cgroup.controllers); do
            echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || true
        done
    else
        mount -o remount,ro,mode=755 tmpfs /sys/fs/cgroup
    fi
}

# Fresh where a client writes, the host's where it only reads.
files() {
    for dir in /run /opt /dev/shm; do [ ! -d $dir ] || mount -t tmpfs -o mode=1755 tmpfs $dir; done
    mkdir -p /run/lock /run/sandbox/{home,etc,etc.work,lib,lib.work}
    mount -t overlay -o lowerdir=/etc,upperdir=/run/sandbox/etc,workdir=/run/sandbox/etc.work overlay /etc
    mount -t overlay -o lowerdir=/var/lib,upperdir=/run/sandbox/lib,workdir=/run/sandbox/lib.work overlay /var/lib
    for dir in /var/lib/docker /var/lib/containerd /var/lib/containers /var/tmp /var/cache/containers; do
        mkdir -p "$dir"
        mount -t tmpfs -o mode=1777 tmpfs "$dir"
    done
    umask 022
    hostname sandbox
    ip link set lo up
}

inside() {
    work=$1
    set -e
    cgroups "$(awk '$2 ~ "^/sys/fs/cgroup" && $3 ~ "^cgroup2?$" { print $3, $2, $4 }' /proc/self/mounts)"
    files
    set +e
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/sandbox/home TMPDIR=/var/tmp WORK=$work LC_ALL=C TERM=dumb
    cd /run/sandbox/home || exit 1
    steps "$work" </dev/null &
    wait $!
}

# Each step is a file NNN; what it said, and its exit code and time, are beside it.
steps() {
    for step in "$1"/steps/???; do
        begun=${EPOCHREALTIME/./}
        timeout -k 5 60 bash -c '. "$WORK/prelude.sh"; . "$0"' "$step" >"$step.out" 2>"$step.err"
        code=$?
        echo "$code $(((${EPOCHREALTIME/./} - begun) / 1000))ms" >"$step.code"
        [ "$code" = 0 ] || [[ ${step##*/} > 001 ]] || break # set-up
    done
}

"$@"
