#!/usr/bin/env bash
# Measures texts in lockstep (sluice bench decode) on a store of V4-Flash's sizes, from a drive that
# the kernel holds to a rate, beside what sluice plan predicts. Needs root, and 4 GB in FOLDER for
# each layer.
#
#   [LAYERS=4] tests/measure_lockstep.sh FOLDER [MB_PER_S...] [-- OPTION...]
#
# Options go to bench decode, which has 1, 64 and 256 texts and two runs if they do not say otherwise:
# some five minutes at 200 MB/s.
#
# LAYERS layers of 128 experts, with a cache of a quarter of them. Without rates the drive, which
# tests/held_drive.sh makes, is measured as it is.
set -eu
[ $# -gt 0 ] || { echo "usage: tests/measure_lockstep.sh FOLDER [MB_PER_S...] [-- OPTION...]" >&2; exit 2; }
folder=$1
shift
rates=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    rates+=("$1")
    shift
done
[ $# = 0 ] || shift
sluice=${SLUICE:-build/release/sluice}
layers=${LAYERS:-4}
cache=$((layers * 32 * 13369344 + (1 << 20)))
. tests/held_drive.sh

trap close_drive EXIT
open_drive "$folder" $((1 + 2 * layers))
if [ -n "$is_new" ]; then
    /usr/bin/python3 - tools/configs/v4-flash.json "$folder/config.json" "$layers" <<'PYTHON'
import json, sys
config = json.load(open(sys.argv[1]))
config.update(num_hidden_layers=int(sys.argv[3]), n_routed_experts=128, num_hash_layers=1,
              num_nextn_predict_layers=0, vocab_size=32768,
              compress_ratios=config["compress_ratios"][:int(sys.argv[3])])
json.dump(config, open(sys.argv[2], "w"))
PYTHON
    rm -rf "$folder/checkpoint"
    "$sluice" synth "$folder/config.json" "$folder/checkpoint" --no-mtp --skew 0
    "$sluice" pack "$folder/checkpoint" "$mount/store"
    rm -rf "$folder/checkpoint"
fi
sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1
for rate in "${rates[@]:-0}"; do
    hold_drive "$rate"
    ssd=()
    if [ "$rate" != 0 ]; then
        echo "held to $rate MB/s"
        ssd=(--ssd "${rate}M/s")
    fi
    "$sluice" plan "$mount/store" --probe "${ssd[@]}" --curve even --cache "$cache" --context 131 |
        grep -e '^ *sequences' -e '^decode'
    "$sluice" bench decode "$mount/store" --cache "$cache" --sequences 1,64,256 --tokens 1 --runs 2 \
        --position 128 "$@"
done
