#!/usr/bin/env bash
# Packs a checkpoint that `sluice synth --share-layers 1` wrote, on a file system that can share
# blocks, into a store that shares them too and takes as little of the disk. docs/PRO.md uses it.
#
#   tests/pro/pack_shared.sh CHECKPOINT STORE
#
# The dense tensors and the first layer's experts are packed as they are, except that what is
# written a second time is shared; then the other layers share those experts; then packing ends.
set -eu
cd "$(dirname "$0")/../.."
build=${BUILD:-build/release}
store=$2
make --no-print-directory "$build/sluice" "$build/tests/pro/share_writes.so" "$build/tests/pro/repeat_records"

# As many bytes as the records of one layer have.
layer_bytes() {
    "$build/sluice" inspect --json "$1" | python3 -c '
import json, sys
m = json.load(sys.stdin)
print(m["config"]["experts_per_layer"] * m["memory"]["slot_bytes"])'
}

LD_PRELOAD=$build/tests/pro/share_writes.so "$build/sluice" pack "$1" "$store" &
packer=$!
enough=$(($(layer_bytes "$1") * 11 / 10))
until [ "$(stat -c %s "$store/experts-1.bin" 2>/dev/null || echo 0)" -gt "$enough" ]; do
    kill -0 $packer 2>/dev/null || break
    sleep 1
done
kill -TERM $packer 2>/dev/null || true # it ends with a whole batch
wait $packer || true
"$build/tests/pro/repeat_records" "$store"
exec "$build/sluice" pack "$1" "$store"
