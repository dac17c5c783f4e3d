#!/usr/bin/env bash
# The engine against the oracle: every test config, in one pass and in many, the MTP head too,
# DSpark's drafts, and the rotary angles at single positions.
# `exact` must agree with the oracle's exact logits to 1e-3 on every row; `native` must be as near
# to the model as stored as the released code's own numerics are (tests/oracle/compare.py).
#
# Two configs are tried with the Base models' format too. SEED=N tries other weights and tokens;
# OPTIONS="--format base --scales any" tries all configs so, with any options of make_case.py. Cases
# are kept in build/oracle.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
cases=build/oracle
make_case=("$python" tests/oracle/make_case.py --seed "${SEED:-1}")
export PYTHONDONTWRITEBYTECODE=1

agrees() { # case numerics compare-mode flags...
    local case=$1 numerics=$2 mode=$3 heads=()

    shift 3
    [[ " $* " != *" --mtp "* ]] || heads=(--mtp)
    "$sluice" logits "$case/checkpoint" --tokens "$case/tokens.txt" --out "$scratch/logits.npy" \
        --numerics "$numerics" "$@" >/dev/null &&
        "$python" tests/oracle/compare.py "$case/checkpoint" "$case/tokens.txt" \
            "$scratch/logits.npy" --against "$mode" --cache "$case" "${heads[@]}" |
        awk '{ line = line "  " $0; last = $0 } END { print line; exit last != "ok" }'
}

# Drafts of DSpark, N tokens apart: in exact the rows of a step may be more than a ring has.
drafts_agree() { # case numerics compare-mode N flags...
    local case=$1 numerics=$2 mode=$3 every=$4

    shift 4
    "$sluice" logits "$case/checkpoint" --tokens "$case/tokens.txt" --draft-out "$scratch/drafts" \
        --draft-every "$every" --numerics "$numerics" "$@" >/dev/null &&
        "$python" tests/oracle/compare.py "$case/checkpoint" "$case/tokens.txt" "$scratch/drafts" \
            --dspark --against "$mode" |
        awk '{ line = line "  " $0; last = $0 } END { print line; exit last != "ok" }'
}

# The rotary angles, to the last token of a context of a million: around what a float32 product still
# tells apart, the original context, and multiples of both ratios.
angles_agree() { # config
    local positions=(0 1 4095 65535 65536 131073 262143 524287 524288 1000003 1048448 1048572 1048575)

    "$(dirname "$sluice")/tests/test_rope" "$1" "${positions[@]}" |
        "$python" tests/oracle/angles.py "$1" "${positions[@]}" |
        awk '{ line = line "  " $0; last = $0 } END { print line; exit last != "ok" }'
}
for config in tests/oracle/configs/*.json; do
    check "$(basename "$config" .json): angles" angles_agree "$config"
done

# Each item is a config and options of make_case.py.
list=()
for config in tests/oracle/configs/[!v]*.json; do
    list+=("$(basename "$config" .json)${OPTIONS:+ $OPTIONS}")
done
[ -n "${OPTIONS:-}" ] ||
    list+=("tiny-flash --tokens 100 --format base --scales any --no-expert-dtype"
        "odd-heads --tokens 100 --format base --draft dspark"
        "tiny-pro --tokens 70 --draft dspark" "ratios --tokens 40 --draft dspark --markov-rank 48")

make_one() { # config options...
    local config=tests/oracle/configs/$1.json

    shift
    "${make_case[@]}" "$config" $cases "$@"
}

# Not yet made cases take the oracle some seconds each: two at a time.
for item in "${list[@]}"; do
    # Options are split at their spaces.
    # shellcheck disable=SC2086
    make_one $item --references >/dev/null &
    [ "$(jobs -r | wc -l)" -lt 2 ] || wait -n
done
wait
for name in "${list[@]}"; do
    # shellcheck disable=SC2086
    if ! case=$(make_one $name); then
        fail "$name: the oracle runs"
        continue
    fi
    check "$name: exact" agrees "$case" exact exact
    # Without rounding a pass costs much the same for one token as for many, so token by token is for
    # one short case; check_one_answer.sh has it for the rest. Of most cases the last pass has a token.
    check "$name: exact, 23 tokens at once" agrees "$case" exact exact --segment 23
    [[ "$name" != "tiny-pro --tokens 70"* ]] ||
        check "$name: exact, token by token" agrees "$case" exact exact --segment 1
    check "$name: native" agrees "$case" native stored
    if grep -q dspark_block_size "$case/checkpoint/config.json"; then
        check "$name: exact, drafts" drafts_agree "$case" exact exact 45 --segment 40
        check "$name: native, drafts" drafts_agree "$case" native stored 16
    elif grep -q '"num_nextn_predict_layers": [1-9]' "$case/checkpoint/config.json"; then
        check "$name: exact, MTP" agrees "$case" exact exact --mtp
        check "$name: native, MTP" agrees "$case" native stored --mtp
    fi
done
tap_end
