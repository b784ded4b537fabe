# What every step may use.

# eventually CMD...: until it succeeds; its last output when it never does.
eventually() {
    local try
    for try in {1..400}; do
        if "$@" >"$TMPDIR/eventually.$$" 2>&1; then cat "$TMPDIR/eventually.$$"; return 0; fi
        sleep 0.05
    done
    cat "$TMPDIR/eventually.$$"
    echo "did not come true: $*"
    return 1
}

# says TEXT CMD...: whether the output of CMD has TEXT, for `eventually`.
says() {
    local text=$1
    shift
    "$@" 2>&1 | grep -F -- "$text"
}

# pty 'COMMAND LINE': on a terminal of 24 x 80, whose input never ends; without carriage returns.
pty() {
    rm -f "$TMPDIR/silent" && mkfifo "$TMPDIR/silent"
    SHELL=/bin/bash script -qefc "stty rows 24 cols 80; $1" /dev/null <>"$TMPDIR/silent" | tr -d '\r' | sed '/^$/d'
    return "${PIPESTATUS[0]}"
}

# What stands in the output of mount(8), in one order, without sizes and without how this runtime makes what covers a
# masked directory (a filesystem that can hold nothing) and the directory of cgroups (as the bundle says: read-only).
mounts() {
    sed 's/^overlay on .*/overlay/; s/,size=[0-9]*k//; s/,nr_inodes=1\([,)]\)/\1/' |
        sed 's/^systemd on /cgroup on /; / on .sys.fs.cgroup type tmpfs/s/(r[ow],/(/' | sort
}

nc() { busybox nc "$@"; }
export -f nc

# in_cgroup PID CONTROLLER FILE: what a file of a process's cgroup says, on v1.
in_cgroup() {
    cat "/sys/fs/cgroup/$2$(awk -F: -v name="$2" '$2 == name { print $3 }' "/proc/$1/cgroup")/$3"
}

. /run/sandbox/env 2>/dev/null # OCI: the runtime's program
