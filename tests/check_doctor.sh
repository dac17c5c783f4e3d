#!/usr/bin/env bash
# sluice doctor: for everything that it looks at, a system where that is well and one where it falls
# short, in folders that stand for /proc and /sys and under limits of the process itself. What falls
# short comes with what mends it.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=$PWD/${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
root=$scratch/root
cpus=sys/devices/system/cpu

put() { # file text
    mkdir -p "$(dirname "$root/$1")"
    printf '%b\n' "$2" >"$root/$1"
}
well() { # a system where all is well
    rm -rf "$root"
    put proc/meminfo 'MemTotal: 67108864 kB\nMemAvailable: 62914560 kB\nSwapFree: 0 kB
CommitLimit: 33554432 kB\nCommitted_AS: 1048576 kB'
    put proc/sys/kernel/numa_balancing 0
    put proc/sys/vm/overcommit_memory 0
    put sys/kernel/mm/transparent_hugepage/enabled 'always [madvise] never'
    put sys/devices/system/node/online 0-1
    put $cpus/cpu0/cpufreq/scaling_governor schedutil
    put $cpus/cpu1/cpufreq/scaling_governor schedutil
}

# The finding of the last `doctor`, and the mend below it, if there is one.
finds() { # what verdict mend
    local line

    line=$(grep -A1 "^[a-z]* *$1  " "$scratch/page") || return
    [ "$(head -n 1 <<<"$line" | awk '{ print $1 }')" = "$2" ] || return
    if [ -n "$3" ]; then
        tail -n 1 <<<"$line" | grep -qF -e "> $3"
    else
        ! tail -n 1 <<<"$line" | grep -q '^ *> '
    fi
}
doctor() { # status arguments...: on $root
    local status=$1 rc

    shift
    "${wrapper[@]}" "$sluice" doctor --root "$root" "$@" >"$scratch/page" 2>&1
    rc=$?
    [ "$rc" = "$status" ] || {
        echo "exit status $rc"
        cat "$scratch/page"
        return 1
    }
}
tells() { # what verdict mend
    local status=0

    [ "$2" != no ] || status=1
    { doctor "$status" && finds "$@"; } || {
        cat "$scratch/page"
        return 1
    }
}
wrapper=()

well
for what in clock memory "NUMA balancing" "open files"; do
    check "$what: well" tells "$what" ok ""
done

well && put proc/sys/kernel/numa_balancing 1
check "NUMA balancing: on" tells "NUMA balancing" short "sudo sysctl kernel.numa_balancing=0"
put sys/devices/system/node/online 0
check "... does not matter on one node" tells "NUMA balancing" ok ""

well && put sys/kernel/mm/transparent_hugepage/enabled 'always madvise [never]'
check "huge pages: off" tells "huge pages" short "echo madvise | sudo tee /sys/kernel/mm"

governors="echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
well && put $cpus/cpu1/cpufreq/scaling_governor powersave
check "clock: powersave" tells clock short "$governors"
put $cpus/cpu1/cpufreq/energy_performance_preference balance_performance
check "... is fast where the processor chooses" tells clock ok ""
put $cpus/cpu1/cpufreq/energy_performance_preference power
check "... unless it prefers power" tells clock short "$governors"

well && put proc/self/cgroup '0::/small' && put proc/self/mountinfo \
    '25 1 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw' &&
    put sys/fs/cgroup/small/memory.max 1073741824 && put sys/fs/cgroup/small/memory.current 0
check "memory: a control group's limit" tells memory short "echo max | sudo tee $root/sys/fs/cgroup"

well && put proc/sys/vm/overcommit_memory 2
check "overcommit: strict, and not enough" tells overcommit no "sudo sysctl vm.overcommit_memory=0"
put proc/meminfo 'MemTotal: 67108864 kB\nMemAvailable: 62914560 kB\nCommitLimit: 67108864 kB
Committed_AS: 0 kB'
check "... and enough" tells overcommit ok ""

# Limits of the process. A fabricated system has 64 GiB, so the least of them is too little.
limited() { # ulimit's option and value, what verdict mend
    (ulimit "$1" "$2" && tells "${@:3}")
}
well
check "open files: few" limited -n 100 "open files" no "echo \"\$USER - nofile 65536\" | sudo tee"
check "address space: small" limited -v 8388608 "address space" no "ulimit -v unlimited"

well
wrapper=("$python" tests/deny_uring.py setup EPERM)
check "io_uring: forbidden by a filter" tells io_uring short "docker run --security-opt seccomp"
put proc/sys/kernel/io_uring_disabled 2
check "io_uring: forbidden by the system" tells io_uring short \
    "sudo sysctl kernel.io_uring_disabled=0"

well
wrapper=(env SLUICE_ISA=ref)
if "$sluice" doctor | grep -q '^short *instructions'; then
    skip "instructions: masked" "this processor has no more than plain C"
else
    check "instructions: masked" tells instructions short "unset SLUICE_ISA"
fi

# A limit of locked memory holds for ordinary users alone.
wrapper=()
[ "$(id -u)" != 0 ] || wrapper=(setpriv --reuid 65534 --clear-groups)
if chmod -R a+rX "$scratch" && "${wrapper[@]}" test -r "$root/proc/meminfo" -a -x "$sluice"; then
    check "locked memory: little" limited -l 64 "locked memory" short \
        "echo \"\$USER - memlock unlimited\" | sudo tee"
else
    skip "locked memory: little" "no other user can run it here"
fi

wrapper=()
model=$scratch/model
"$sluice" synth tests/oracle/configs/tiny-flash.json "$model" >/dev/null
with_model() {
    doctor 0 "$model" && finds model ok "" && finds fit ok "" && finds drive ok "" &&
        grep -q 'file system .*direct I/O in blocks of 4096' "$scratch/page"
}
check "a model that fits" with_model
missing() {
    doctor 1 "$scratch/none" && finds model no "hf download" &&
        [ "$(tail -n 1 "$scratch/page")" = \
            "This machine cannot run $scratch/none as it is: see \"no\" above." ]
}
check "a model that is not there" missing

json() {
    put sys/kernel/mm/transparent_hugepage/enabled 'always madvise [never]'
    doctor 0 --json "$model" && "$python" - "$scratch/page" <<'PYTHON'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
assert all(list(line) == ["what", "verdict", "found", "mend"] for line in lines), lines
assert all((line["mend"] is None) == (line["verdict"] == "ok") for line in lines), lines
assert len({line["what"] for line in lines}) == len(lines), lines
assert next(l for l in lines if l["what"] == "huge pages")["verdict"] == "short", lines
PYTHON
}
check "--json" json
tap_end
