#!/usr/bin/env bash
# How fast a store is read that is striped over two drives of different speed, beside fio on each of
# them and on both. The drives are loop devices over memory that the kernel holds to a rate of bytes
# read. For root, with util-linux, e2fsprogs, fio and cgroups that know blkio.
#
#   tests/measure_stripes.sh [MB_PER_S_1] [MB_PER_S_2]
#
# Takes 1.5 GB of /dev/shm, and a minute.
set -eu
rates=("${1:-200}" "${2:-400}")
sluice=${SLUICE:-build/release/sluice}
scratch=$(mktemp -d)
memory=$(mktemp -d -p /dev/shm)
group=
devices=()

clean_up() {
    cd /
    [ -z "$group" ] || { echo $$ >"${group%/*}/cgroup.procs" && sleep 0.1 && rmdir "$group"; }
    umount "$scratch/drive-1" "$scratch/drive-2" 2>/dev/null || true
    for device in "${devices[@]}"; do losetup -d "$device"; done
    rm -rf "$scratch" "$memory"
}
trap clean_up EXIT

# Rates are of a group of processes, this one and what it starts.
if [ -d /sys/fs/cgroup/blkio ]; then
    group=/sys/fs/cgroup/blkio/sluice-stripes-$$
    mkdir "$group"
    hold() { echo "$1 $2" >"$group/blkio.throttle.read_bps_device"; }
else
    group=/sys/fs/cgroup/sluice-stripes-$$
    mkdir "$group"
    hold() { echo "$1 rbps=$2" >"$group/io.max"; }
fi
for i in 1 2; do
    mkdir "$scratch/drive-$i"
    truncate -s 700M "$memory/drive-$i"
    device=$(losetup --show -f "$memory/drive-$i")
    devices+=("$device")
    mkfs.ext4 -q -m 0 "$device"
    mount "$device" "$scratch/drive-$i"
    hold "$(lsblk -dno MAJ:MIN "$device" | tr -d ' ')" "${rates[i - 1]}000000"
done
echo $$ >"$group/cgroup.procs"

sed 's/"hidden_size": *[0-9]*/"hidden_size": 1024/; s/"moe_intermediate_size": *[0-9]*/"moe_intermediate_size": 2048/
    s/"n_routed_experts": *[0-9]*/"n_routed_experts": 32/' tests/oracle/configs/tiny-flash.json >"$scratch/config.json"
"$sluice" synth "$scratch/config.json" "$scratch/checkpoint" >/dev/null
"$sluice" pack "$scratch/checkpoint" "$scratch/drive-1/store" --stripe "$scratch/drive-2"
for files in "$scratch/drive-1/store/experts-1.bin" "$scratch/drive-2/experts-2.bin" "$scratch/drive-1/store"; do
    "$sluice" bench io "$files" --sizes 1M --depths 8,16 --seconds 10
done
