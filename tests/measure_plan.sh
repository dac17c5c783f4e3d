#!/usr/bin/env bash
# Holds `sluice plan` against what it plans: on a model here, with everything resident and with a
# cache of a given size. Prints predicted and measured tokens a second and bytes from the drive.
#
#   tests/measure_plan.sh MODEL CACHE [PROMPT_TOKENS] [DECODE_TOKENS]
#
# MODEL is of `sluice synth`, which routes nearly evenly (so --curve even); it fits in memory, and
# is a store if reading is to need no repacking.
set -eu
[ $# -ge 2 ] || { echo "usage: tests/measure_plan.sh MODEL CACHE [PROMPT_TOKENS] [DECODE_TOKENS]" >&2; exit 2; }
model=$1
cache=$2
prompt=${3:-512}
tokens=${4:-16}
sluice=${SLUICE:-build/release/sluice}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

bytes=$("$sluice" plan "$model" --ssd 1G --dram 1G --cores 1 --json | sed -n 's/.*"expert_bytes": \([0-9]*\).*/\1/p')
experts=$(sed -n 's/.*"n_routed_experts": *\([0-9]*\).*/\1/p' "$model/config.json")
layers=$(sed -n 's/.*"num_hidden_layers": *\([0-9]*\).*/\1/p' "$model/config.json")
context=$((16 + tokens)) # as bench decode has it
for size in "$((bytes * experts * layers))" "$cache"; do
    "$sluice" plan "$model" --probe --curve even --cache "$size" --context "$context" --segment "$prompt" \
        --json >"$scratch/plan"
    "$sluice" bench decode "$model" --cache "$size" --tokens "$tokens" --json >"$scratch/decode" 2>/dev/null
    "$sluice" bench prefill "$model" --cache "$size" --tokens "$prompt" --segment "$prompt" --json \
        >"$scratch/prefill" 2>/dev/null
    /usr/bin/python3 - "$scratch" <<'PYTHON'
import json, sys
lines = lambda name: [json.loads(line) for line in open(f"{sys.argv[1]}/{name}")]
plan = lines("plan")
print(f"drive {plan[0]['drive_gb_per_s']:.2f} GB/s, memory {plan[0]['memory_gb_per_s']:.1f} GB/s, "
      f"int8 {plan[0]['int8_gmac_per_s']:.0f}, BF16 {plan[0]['bf16_gmac_per_s']:.0f}")
for what in "decode", "prefill":
    p = next(x for x in plan if x["what"] == what and x["sequences"] == 1)
    measured = lines(what)
    m = next(x for x in measured if x["what"] == what)
    found = next((x for x in measured if x["what"].endswith("experts found")), None)
    print(f"{what:8} predicted {p['tokens_per_s']:8.2f} tokens/s, measured {m['value']:8.2f} "
          f"({m['shape']}), measured/predicted {m['value'] / p['tokens_per_s']:.2f}; "
          f"bound by {p['limit']}, {p['drive_bytes_per_token'] / 1e6:.1f} MB/token, found "
          f"{100 * p['hit_rate']:.0f} %; measured {found['shape'] if found else '-'}, "
          f"{100 * found['ratio'] if found else 0:.0f} %")
PYTHON
done
