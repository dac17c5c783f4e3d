#!/usr/bin/env bash
# Tokens per second with and without drafts, in turn: what docs/PERFORMANCE.md has of --draft.
#
#   tests/measure_drafts.sh [MODEL [PAIRS [OPTIONS...]]]
#
# With tests/small, whose MTP block was trained, if no MODEL is given. Further options go to generate.
cd "$(dirname "$0")/.." || exit 1

sluice=${SLUICE:-build/release/sluice}
model=${1:-tests/small}
pairs=${2:-6}
shift $(($# < 2 ? $# : 2))

for sampler in "--temp 0" "--temp 1 --seed 1"; do
    for ((pair = 1; pair <= pairs; pair++)); do
        for depth in off 1 2 3 auto; do
            # shellcheck disable=SC2086 # several options
            "$sluice" generate "$model" -p "The package provides a library for" -n 400 $sampler \
                --draft "$depth" "$@" 2>&1 >/dev/null |
                awk -v what="$sampler, --draft $depth" '
                    /^text/ { match($0, /\([0-9.]* tokens/); speed = substr($0, RSTART + 1, RLENGTH - 1) }
                    /^drafts/ { drafts = "; " $0; sub(/drafts +/, "", drafts) }
                    END { print what ": " speed "/s" drafts }' || exit 1
        done
    done
done
