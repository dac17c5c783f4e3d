#!/usr/bin/env bash
# Measures decode on a checkpoint against the drive it lies on: pairs of runs, one of fio reading the
# same files at random with O_DIRECT, one of sluice generating text. Prints each pair and the medians.
#
#   tests/measure_decode.sh MODEL CACHE [PAIRS] [TOKENS]
#
# The prompt's pass warms the cache as far as it does; the figures are of the tokens after it.
set -eu
[ $# -ge 2 ] || { echo "usage: tests/measure_decode.sh MODEL CACHE [PAIRS] [TOKENS]" >&2; exit 2; }
model=$1
cache=$2
pairs=${3:-5}
tokens=${4:-32}
sluice=${SLUICE:-build/release/sluice}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
shards=$(find "$model" -name '*.safetensors' -size +2G | sort | paste -sd:)

for ((i = 0; i < pairs; i++)); do
    fio --name=drive --filename="$shards" --readonly --rw=randread --bs=1M --ioengine=io_uring \
        --iodepth=32 --direct=1 --runtime=4 --time_based --randrepeat=0 --output-format=json \
        >"$scratch/fio.json"
    "$sluice" generate "$model" -p "The quick brown fox jumps over the lazy dog. " -n "$tokens" \
        --temp 1 --seed "$i" --cache "$cache" --no-hot-list --stats "$scratch/$i.json" >/dev/null 2>&1
    /usr/bin/python3 - "$scratch" "$i" "$tokens" <<'PYTHON' | tee -a "$scratch/pairs"
import json, sys
folder, i, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
drive = json.load(open(folder + "/fio.json"))["jobs"][0]["read"]["bw_bytes"]
s = json.load(open(f"{folder}/{i}.json"))
at_drive = s["decode_read_bytes"] / drive
print(f"drive {drive / 1e9:.2f} GB/s  decode {(tokens - 1) / s['decode_seconds']:.2f} tokens/s  "
      f"{s['decode_read_bytes'] / 1e9 / (tokens - 1):.3f} GB/token  "
      f"wall/drive {s['decode_seconds'] / at_drive if at_drive else 0:.2f}  "
      f"prompt {s['prompt_tokens'] / s['prefill_seconds']:.2f} tokens/s")
PYTHON
done
/usr/bin/python3 - "$scratch/pairs" <<'PYTHON'
import statistics, sys
rows = [line.split() for line in open(sys.argv[1])]
at = lambda n: statistics.median(float(row[n]) for row in rows)
print(f"median: drive {at(1):.2f} GB/s, decode {at(4):.2f} tokens/s, {at(6):.3f} GB/token, "
      f"wall/drive {at(9):.2f}, prompt {at(11):.2f} tokens/s")
PYTHON
