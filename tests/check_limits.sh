#!/usr/bin/env bash
# What a shell may limit: with small stacks and few open files everything runs, and what cannot is
# one line that names the limit. The bytes are those of a run without limits.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=$(realpath "${SLUICE:-build/release/sluice}")
model=tests/small
seq -s ' ' 2 200 >"$scratch/tokens"

logits() { # file options...
    local file=$1

    shift
    "$sluice" logits $model --tokens "$scratch/tokens" --out "$scratch/$file" "$@" 2>&1
}
logits free.npy >/dev/null

limited() { # name, options of ulimit
    local name=$1

    shift
    (ulimit "$@" && logits limited.npy) && cmp "$scratch/free.npy" "$scratch/limited.npy" &&
        echo "$name: the same bytes"
}

check "a stack of 256 KiB" limited stack -s 256
check "a stack of 64 KiB" limited stack -s 64
check "a stack without limit" limited stack -s unlimited
check "few files, which may be raised" limited files -Sn 8
check "sixteen files" limited files -n 16

# Ends with status 1 and one line that has the pattern in it.
refused() { # pattern, option of ulimit, value, command...
    local pattern=$1 option=$2 value=$3 status

    shift 3
    (ulimit "$option" "$value" && "$sluice" "$@" >/dev/null 2>"$scratch/err")
    status=$?
    cat "$scratch/err"
    [ "$status" = 1 ] && [ "$(grep -vc "^note: " "$scratch/err")" = 1 ] && grep -q "$pattern" "$scratch/err"
}

check "too few files" refused 'too many open files for this process (see ulimit -Hn)' -n 6 \
    generate $model -p a -n 1
check "files that may not grow, synth" refused 'cannot write: .*ulimit -f' -f 64 \
    synth tests/oracle/configs/tiny-flash.json "$scratch/synth"
check "files that may not grow, pack" refused 'ulimit -f' -f 64 pack $model "$scratch/store"
check "files that may not grow, logits" refused 'ulimit -f' -f 64 \
    logits $model --tokens "$scratch/tokens" --out "$scratch/grown.npy"
check "files that may not grow, traces" refused 'ulimit -f' -f 1 \
    trace record $model -f "$scratch/tokens" --out "$scratch/trace"
tap_end
