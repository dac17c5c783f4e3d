#!/usr/bin/env bash
# The engine against the oracle: every test config, in one pass and in many, the MTP head too.
# `exact` must agree with the oracle's exact logits to 1e-3 on every row; `native` must be as near
# to the model as stored as the released code's own numerics are (tests/oracle/compare.py).
#
# SEED=N tries other weights and tokens. Cases are kept in build/oracle.
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

configs=(tests/oracle/configs/[!v]*.json)
# Not yet made cases take the oracle some seconds each: two at a time.
printf '%s\n' "${configs[@]}" |
    xargs -P 2 -I '{}' "${make_case[@]}" '{}' $cases --references >/dev/null
for config in "${configs[@]}"; do
    name=$(basename "$config" .json)
    if ! case=$("${make_case[@]}" "$config" $cases); then
        fail "$name: the oracle runs"
        continue
    fi
    check "$name: exact" agrees "$case" exact exact
    # Without rounding a pass costs much the same for one token as for many, so token by token is for
    # one config; check_one_answer.sh has it for the rest.
    check "$name: exact, 7 tokens at once" agrees "$case" exact exact --segment 7
    [ "$name" != tiny-flash ] ||
        check "$name: exact, token by token" agrees "$case" exact exact --segment 1
    check "$name: native" agrees "$case" native stored
    if ! grep -q '"num_nextn_predict_layers": 0' "$config"; then
        check "$name: exact, MTP" agrees "$case" exact exact --mtp
        check "$name: native, MTP" agrees "$case" native stored --mtp
    fi
done
tap_end
