#!/usr/bin/env bash
# Tokens per second with and without drafts, in turn: what docs/PERFORMANCE.md has of --draft.
#
#   [OUT=FOLDER] [TOKENS=400] [LIMIT_S=570] tests/measure_drafts.sh [MODEL [ROUNDS [OPTION...]]]
#
# With tests/small, whose MTP block was trained, and six rounds if nothing else is said. Further
# options go to generate. In a round --draft is off, 1, 2, 3 and auto, at temperature 0 and at 1.
# Each run leaves its figures in OUT (build/drafts) and is not made again while they are there; after
# LIMIT_S seconds no other is begun, and the next call goes on. Ratios are those of each round's runs
# to its run without drafts. Beside the medians: what one token at a time makes where all is
# resident, and the limit of that (sluice bench decode).
cd "$(dirname "$0")/.." || exit 1
set -eu

sluice=${SLUICE:-build/release/sluice}
out=${OUT:-build/drafts}
limit_s=${LIMIT_S:-570}
model=${1:-tests/small}
rounds=${2:-6}
shift $(($# < 2 ? $# : 2))
mkdir -p "$out"

for ((round = 1; round <= rounds; round++)); do
    for temperature in 0 1; do
        for draft in off 1 2 3 auto; do
            file=$out/$round-$temperature-$draft.json
            [ ! -e "$file" ] || continue
            [ "$SECONDS" -lt "$limit_s" ] || break 3
            "$sluice" generate "$model" -p "The package provides a library for" -n "${TOKENS:-400}" \
                --temp "$temperature" --seed 1 --draft "$draft" --no-hot-list --stats "$file.part" "$@" \
                >"$out/text" 2>"$out/stderr" || { cat "$out/stderr" >&2; exit 1; }
            mv "$file.part" "$file"
        done
    done
done
[ -e "$out/bench.json" ] ||
    "$sluice" bench decode "$model" --runs 3 --json >"$out/bench.json" 2>/dev/null

echo "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1); $("$sluice" --version);" \
    "$model $*"
/usr/bin/python3 - "$out" "$rounds" <<'PYTHON'
import json, os, statistics, sys
out, rounds = sys.argv[1], int(sys.argv[2])
bench = json.loads(open(out + "/bench.json").readline())
print(f"bench decode {bench['value']:.1f} of {bench['limit']:.1f} tokens/s ({bench['shape']})"
      + (", disturbed" if bench["disturbed"] else ""))
for temperature in "0", "1":
    runs = {}
    for draft in "off", "1", "2", "3", "auto":
        paths = {i: f"{out}/{i}-{temperature}-{draft}.json" for i in range(1, rounds + 1)}
        runs[draft] = {i: json.load(open(p)) for i, p in paths.items() if os.path.exists(p)}
        if not runs[draft]:
            continue
        speeds = [s["decode_tokens_per_second"] for s in runs[draft].values()]
        ratios = [s["decode_tokens_per_second"] / runs["off"][i]["decode_tokens_per_second"]
                  for i, s in runs[draft].items()]
        made = sum(s["new_tokens"] for s in runs[draft].values())
        right = sum(s.get("drafts_right", 0) for s in runs[draft].values())
        print(f"--temp {temperature} --draft {draft:<4}  {len(speeds)} runs  "
              f"{statistics.median(speeds):8.2f} tokens/s ({min(speeds):.2f} to {max(speeds):.2f})  "
              f"to off {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})  "
              f"{made / (made - right):.2f} tokens a step")
PYTHON
n_done=$(find "$out" -name '*-*-*.json' | wc -l)
[ "$n_done" -ge $((rounds * 10)) ] || {
    echo "$n_done of $((rounds * 10)) runs: call again to go on" >&2
    exit 75
}
