# Sourced by what measures on a drive of a known rate: a file system of its own in FOLDER/drive.ext4,
# on a loop device whose reads blkio.throttle bounds. What was made stays for the next time, but for
# the mount and the loop device.
#
# The kernel holds by slices of 100 ms: what is due in one it reads as fast as the file underneath
# allows, and then nothing until the next. Held to 2.5 GB/s, a file in memory gave 239 MiB in some
# 70 ms and paused for 30. So time in which such a drive idles is made up for, where a drive of that
# rate would have lost it; and the copies of a file in memory take the cores' time.
# shellcheck shell=bash
# shellcheck disable=SC2034 # is_new is for whoever sources this

throttle=/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device
device=

open_drive() { # folder GB: mounts it as $mount, and sets is_new where it is made
    local image=$1/drive.ext4

    mount=$1/drive
    is_new=
    mkdir -p "$mount"
    if [ ! -e "$image" ]; then
        is_new=1
        truncate -s "$2G" "$image"
        mkfs.ext4 -q -m 0 "$image"
    fi
    device=$(losetup --find --show --direct-io=on "$image")
    numbers=$(($(stat -c 0x%t "$device"))):$(($(stat -c 0x%T "$device")))
    mount "$device" "$mount"
}

hold_drive() { # MB/s, or 0 for as fast as it is
    echo "$numbers ${1}000000" >"$throttle"
}

close_drive() {
    [ -n "$device" ] || return 0
    [ ! -e "$throttle" ] || hold_drive 0
    # The kernel lets go of a ring's files a while after its process.
    for _ in 1 2 3 4 5; do
        umount "$mount" 2>/dev/null && break
        sleep 1
    done
    losetup -d "$device"
}
