#!/usr/bin/env bash
# Makes the whole V4-Pro, 865 GB by length, on 43 GB of disk, for the measurements of docs/PRO.md:
# an XFS in a file, read past the page cache, and in it a checkpoint whose layers share their
# blocks, and a store of it that shares them too. Root only.
#
#   tests/pro/make_pro.sh FOLDER     FOLDER/drive has pro (checkpoint) and store; some two minutes
#   tests/pro/make_pro.sh --drop FOLDER
set -eu
cd "$(dirname "$0")/../.."
build=${BUILD:-build/release}

if [ "$1" = --drop ]; then
    umount "$2/drive"
    losetup -j "$2/image" -O NAME -n | while read -r loop; do losetup -d "$loop"; done
    rm "$2/image"
    rmdir "$2/drive" "$2"
    exit
fi
mkdir -p "$1/drive"
fallocate -l 40G "$1/image"
mkfs.xfs -q -K "$1/image"
loop=$(losetup -f --show --direct-io=on "$1/image")
mount -o noatime "$loop" "$1/drive"
"$build/sluice" synth v4-pro "$1/drive/pro" --share-layers 1
tests/pro/pack_shared.sh "$1/drive/pro" "$1/drive/store"
df -h "$1/drive"
