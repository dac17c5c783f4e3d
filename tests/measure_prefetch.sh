#!/usr/bin/env bash
# Measures what predictions gain or cost (--prefetch auto against hash) in interleaved pairs of runs
# that make the same text: a store of V4-Flash's sizes with random weights, and one of the small
# trained model, with 12, 25 and 50 % of their experts cached, on a drive that the kernel holds to
# rates (0: as fast as it is). Needs root, 6 GB in FOLDER and, while the store is made, 5 in TMPDIR;
# a FOLDER in /dev/shm makes a drive that is memory.
#
# A held drive makes up for time in which it idled (tests/held_drive.sh), and predictions use no
# other. So these pairs tell whether they lose; tests/test_prefetch_pays.c tells what they gain.
#
#   [PAIRS=5] [TOKENS=64] [MODELS="random trained"] tests/measure_prefetch.sh FOLDER [MB_PER_S...]
#
# A line for each case: the median of the ratios of time, auto to hash (below 1 is faster), with the
# least and the largest; and for hash and auto the time to the larger of what the drive alone takes
# at that rate for the bytes read, and computing alone, which is decoding with all experts cached.
set -eu
[ $# -gt 0 ] || { echo "usage: tests/measure_prefetch.sh FOLDER [MB_PER_S...]" >&2; exit 2; }
folder=$1
shift
sluice=${SLUICE:-build/release/sluice}
pairs=${PAIRS:-5}
tokens=${TOKENS:-64}
models=${MODELS:-random trained}
scratch=$(mktemp -d)
. tests/held_drive.sh

clean_up() {
    rm -rf "$scratch"
    close_drive
}
trap clean_up EXIT

make_random() {
    /usr/bin/python3 - tools/configs/v4-flash.json "$scratch/config.json" <<'PYTHON'
import json, sys
config = json.load(open(sys.argv[1]))
config.update(num_hidden_layers=4, n_routed_experts=64, num_hash_layers=1, vocab_size=32768,
              num_nextn_predict_layers=0, compress_ratios=config["compress_ratios"][:4])
json.dump(config, open(sys.argv[2], "w"))
PYTHON
    "$sluice" synth "$scratch/config.json" "$scratch/checkpoint" --no-mtp --skew 0
    "$sluice" pack "$scratch/checkpoint" "$mount/random"
    rm -rf "$scratch/checkpoint"
}

make_trained() {
    "$sluice" pack tests/small "$mount/trained"
}

open_drive "$folder" 6
for model in $models; do
    [ -e "$mount/$model" ] || "make_$model"
done

# run STATS MODEL PERCENT SEED OPTIONS...
run() {
    local cache

    cache=$(/usr/bin/python3 - "$mount/$2/config.json" "$3" <<'PYTHON'
import json, sys
config, percent = json.load(open(sys.argv[1])), int(sys.argv[2])
matrix = config["hidden_size"] * config["moe_intermediate_size"] * 17 // 32
slot = 3 * (-(-matrix // 4096) * 4096)
print(config["num_hidden_layers"] * config["n_routed_experts"] * percent // 100 * slot + slot // 2)
PYTHON
    )
    "$sluice" generate "$mount/$2" -p "The river rose in the" -n "$tokens" --temp 1 --seed "$4" \
        --context 256 --cache "$cache" --stats "$1" "${@:5}" >/dev/null 2>&1
}

for rate in "${@:-0}"; do
    for model in $models; do
        for _ in 1 2; do # the second has all that the first left in its hot list
            run "$scratch/resident" "$model" 100 0 --prefetch hash
        done
        for share in 12 25 50; do
            for ((i = 0; i < pairs; i++)); do
                hold_drive "$rate"
                run "$scratch/hash.$i" "$model" "$share" "$i" --no-hot-list --prefetch hash
                run "$scratch/auto.$i" "$model" "$share" "$i" --no-hot-list --prefetch auto
                hold_drive 0
            done
            /usr/bin/python3 - "$scratch" "$pairs" "$rate" "$model" "$share" <<'PYTHON'
import json, statistics, sys
folder, pairs, rate, model, share = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
def read(name):
    return json.load(open(f"{folder}/{name}"))
compute = read("resident")["decode_seconds"]
hashes, autos = ([read(f"{kind}.{i}") for i in range(pairs)] for kind in ("hash", "auto"))
def bound(stats):
    drive = stats["decode_read_bytes"] / (float(rate) * 1e6) if rate != "0" else 0
    return stats["decode_seconds"] / max(drive, compute)
def median(values):
    return statistics.median(list(values))
ratios = [a["decode_seconds"] / h["decode_seconds"] for a, h in zip(autos, hashes)]
print(f"{rate if rate != '0' else 'unheld':>6} MB/s  {model:8}{share:>3} %  auto/hash "
      f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})  time to the bound: hash "
      f"{median(map(bound, hashes)):.2f}, auto {median(map(bound, autos)):.2f}  predicted loads "
      f"{median(a['predicted_loads'] for a in autos):.0f}, in vain "
      f"{median(a['predicted_wasted_bytes'] for a in autos) / 1e6:.1f} MB")
PYTHON
        done
    done
done
