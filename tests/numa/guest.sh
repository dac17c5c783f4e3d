#!/bin/busybox sh
# The emulated machine's first process: runs numa_place under each condition of check.sh and prints
# what it says, each line after the condition's name. It ends the machine.
# shellcheck shell=dash
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec >/dev/console 2>&1
mount -t cgroup2 cgroup /sys/fs/cgroup
echo '+cpuset +cpu' >/sys/fs/cgroup/cgroup.subtree_control
dmesg -n 1
echo # ends what the firmware left on the line
# NUMA balancing takes pages out of the page tables to see who wants them; where they lie is not
# told meanwhile. `sluice doctor` advises to turn it off.
echo 0 >/proc/sys/kernel/numa_balancing
thp=/sys/kernel/mm/transparent_hugepage/enabled
cpus=/sys/devices/system/cpu

say() { # name; lines on standard input
    while read -r line; do
        echo "@ $1 $line"
    done
}

place() { # name frame-bytes [command...]
    name=$1 frame=$2
    shift 2
    "$@" numa_place /model 256 TOKENS "$frame" 2>&1 | say "$name"
}

# Runs the command in a control group of its own, with values written to its files.
group() { # name "file=value ..." command...
    folder=/sys/fs/cgroup/$1
    mkdir "$folder"
    for setting in $2; do
        echo "${setting#*=}" | tr , ' ' >"$folder/${setting%%=*}"
    done
    shift 2
    (
        echo 0 >"$folder/cgroup.procs"
        "$@"
    )
}

free_mib() { # node
    sed -n "s/^Node $1 MemFree: *\([0-9]*\) kB/\1/p" "/sys/devices/system/node/node$1/meminfo" |
        { read -r kb && echo $((kb / 1024)); }
}

echo never >$thp
place small 4096
echo madvise >$thp
place huge 2097152
echo never >$thp
place one-node 4096 taskset 3
place interleave 4096 numactl --interleave=all
group cpus 'cpuset.cpus=0,2' place cpus 4096
group quota 'cpu.max=200000,100000' place quota 4096
group mems 'cpuset.mems=1' place mems 4096

# What is in a file of a tmpfs stays where it is: node 1 is then full but for a little.
mkdir /full
mount -t tmpfs -o size=90% full /full
numactl --membind=1 dd if=/dev/zero of=/full/file bs=1M count=$(($(free_mib 1) - 12)) 2>/dev/null
place full 4096
numactl --membind=0 numa_place /model 600 TOKENS 4096 2>&1 | say bound
rm /full/file

echo 0 >$cpus/cpu3/online
place offline 4096
echo "@ end"
poweroff -f
