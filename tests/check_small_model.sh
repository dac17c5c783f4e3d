#!/usr/bin/env bash
# The trained small model (docs/MODEL.md), where a fault in the arithmetic costs quality and not only
# digits. Bits per byte of a held-out passage must stay within 0.2 % of what was recorded; `native` and
# `exact` within 1 % of each other; the oracle must agree; and text must come out of it.
#
# --record writes the figures that later runs are compared with.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
model=tests/small
passage=$model/passage.jsonl
recorded=$model/passage.bits
export PYTHONDONTWRITEBYTECODE=1

bits() { # flags...
    "$sluice" perplexity "$model" --jsonl "$passage" --special --window 2048 "$@" 2>/dev/null |
        awk '/^bits per byte/ { print $4 }'
}

within() { # percent figure reference
    awk -v p="$1" -v a="$2" -v b="$3" 'BEGIN {
        printf "%s bits per byte, %+.4f %% of %s\n", a, (a / b - 1) * 100, b
        exit !(a > 0 && b > 0 && a < b * (1 + p / 100) && a > b * (1 - p / 100)) }'
}

native=$(bits)
if [ "${1-}" = --record ]; then
    echo "$native" >"$recorded"
    exit
fi
check "quality is what it was" within 0.2 "$native" "$(cat "$recorded")"
check "another cache and segment: the same figure" \
    [ "$(bits --cache min --segment 100 --threads 1)" = "$native" ]

# `exact` is slow: the first document alone.
head -n 1 $passage >"$scratch/first.jsonl"
passage=$scratch/first.jsonl
check "native is as good as exact" within 1 "$(bits)" "$(bits --numerics exact)"

agrees() { # numerics mode flags...
    local numerics=$1 mode=$2

    shift 2
    "$sluice" logits "$model" --tokens "$scratch/tokens" --out "$scratch/logits.npy" \
        --numerics "$numerics" "$@" >/dev/null 2>&1 &&
        "$python" tests/oracle/compare.py "$model" "$scratch/tokens" "$scratch/logits.npy" \
            --against "$mode" "$@" |
        awk '{ line = line "  " $0; last = $0 } END { print line; exit last != "ok" }'
}
"$sluice" tokenize "$model" --special --jsonl "$passage" | tr -d '[],' | cut -d " " -f 1-600 >"$scratch/tokens"
check "the oracle agrees: exact" agrees exact exact
check "the oracle agrees: native" agrees native stored
check "the oracle agrees: native, MTP" agrees native stored --mtp

speaks() {
    local text words

    text=$("$sluice" generate "$model" -p "The file system" -n 60 --temp 0.7 --top-p 0.9 --seed 1 \
        --cache 4M 2>/dev/null) || return
    words=$(grep -oE '[a-z]{2,}' <<<"$text" | sort -u | wc -l)
    echo "$words different words: $text"
    [ "$words" -ge 15 ]
}
check "text comes out of it" speaks

if "$python" -c 'import torch' 2>/dev/null; then
    check "the form it was trained in is the oracle's model" \
        "$python" tests/oracle/check_torch.py tests/oracle/small.json
else
    skip "the form it was trained in is the oracle's model" "python3-torch is not installed"
fi
tap_end
