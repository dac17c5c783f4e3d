#!/usr/bin/env bash
# A checkpoint beside a store packed of it, in turn: decode with everything resident, from a used cache
# and from an empty one, and a prompt from an empty one. A packed expert is compared with its checksums
# the first time that it is read, which is all that it costs beside the reading: so the store is
# measured once more as if every time were the first.
#
#   [OUT=FOLDER] [LIMIT_S=570] tests/measure_packed.sh CHECKPOINT STORE CACHE [PAIRS]
#
# CACHE is the size of the cache where not everything is resident. A run leaves its figures in OUT
# (build/packed) and is not made again while they are there; after LIMIT_S seconds no other is begun,
# and the next call goes on.
cd "$(dirname "$0")/.." || exit 1
set -eu
[ $# -ge 3 ] || { echo "usage: tests/measure_packed.sh CHECKPOINT STORE CACHE [PAIRS]" >&2; exit 2; }
checkpoint=$1 store=$2 cache=$3 pairs=${4:-6}
sluice=${SLUICE:-build/release/sluice}
out=${OUT:-build/packed}
limit_s=${LIMIT_S:-570}
mkdir -p "$out"

measure() { # what which model kind options...
    local file=$out/$pair-$1-$2.json

    [ ! -e "$file" ] || return 0
    if [ "$SECONDS" -ge "$limit_s" ]; then
        over=1
        return 0
    fi
    "$sluice" bench "$4" "$3" --runs 1 --json "${@:5}" >"$file.part" 2>"$out/stderr" || {
        cat "$out/stderr" >&2
        exit 1
    }
    mv "$file.part" "$file"
}

over=
for ((pair = 1; pair <= pairs; pair++)); do
    for which in checkpoint store first-time; do
        model=$store verify=(--verify first)
        [ $which != checkpoint ] || model=$checkpoint
        [ $which != first-time ] || verify=(--verify always)
        [ $which = first-time ] || measure resident $which "$model" decode --tokens 32
        measure used $which "$model" decode --tokens 16 --warm --cache "$cache" "${verify[@]}"
        measure empty $which "$model" decode --tokens 16 --cold --cache "$cache" "${verify[@]}"
        measure prompt $which "$model" prefill --tokens 512 --cold --cache "$cache" "${verify[@]}"
    done
done
echo "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1); $("$sluice" --version);" \
    "$store, $cache"
/usr/bin/python3 - "$out" "$pairs" <<'PYTHON'
import json, os, statistics, sys
out, pairs = sys.argv[1], int(sys.argv[2])
for what in "resident", "used", "empty", "prompt":
    runs = {}
    for which in "checkpoint", "store", "first-time":
        paths = {i: f"{out}/{i}-{what}-{which}.json" for i in range(1, pairs + 1)}
        runs[which] = {i: [json.loads(line) for line in open(p)]
                       for i, p in paths.items() if os.path.exists(p)}
        if not runs[which]:
            continue
        median = lambda name: statistics.median(
            next((f["value"] for f in figures if f["what"].endswith(name) and "ms" in f["unit"]), 0)
            for figures in runs[which].values())
        speeds = {i: figures[0]["value"] for i, figures in runs[which].items()}
        ratios = [v / runs["checkpoint"][i][0]["value"] for i, v in speeds.items()
                  if i in runs["checkpoint"]]
        print(f"{what:<9} {which:<11} {len(speeds)} runs {statistics.median(speeds.values()):8.2f} "
              f"tokens/s ({min(speeds.values()):.2f} to {max(speeds.values()):.2f}), of the limit "
              f"{statistics.median(f[0]['ratio'] for f in runs[which].values()):.2f}; to the checkpoint "
              f"{statistics.median(ratios):.3f}, more in {sum(r > 1 for r in ratios)}; ms a token: "
              f"waiting {median('waiting for the drive'):.2f}, repacking or checksums "
              f"{median('repacking'):.2f}"
              + (", disturbed" if any(f[0]["disturbed"] for f in runs[which].values()) else ""))
PYTHON
[ -z "$over" ] || {
    echo "$limit_s s are over: call again to go on" >&2
    exit 75
}
