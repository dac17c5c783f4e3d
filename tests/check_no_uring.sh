#!/usr/bin/env bash
# Where io_uring is forbidden, as in most containers: every command that reads goes on through
# threads, says so once, and gives the same bytes. A back end that was asked for by name is not
# replaced. Forbidden by a filter on system calls, which fails the setup of a ring or its use.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
model=$scratch/model store=$scratch/store
seq -s ' ' 1 12 >"$scratch/ids"
{
    "$sluice" synth tests/oracle/configs/tiny-flash.json "$model" &&
        "$sluice" pack "$model" "$store" &&
        "$sluice" logits "$model" --tokens "$scratch/ids" --out "$scratch/want.npy" --io uring
} >/dev/null || {
    fail "a model, a store and logits to compare with"
    tap_end
}

without() { # setup|enter errno arguments...
    "$python" tests/deny_uring.py "$1" "$2" "$sluice" "${@:3}" 2>"$scratch/stderr"
}

says_once() { # what io_uring's setup or use ended with
    [ "$(grep -c 'io_uring' "$scratch/stderr")" = 1 ] &&
        grep -q "^note: .*io_uring is not available here: $1; reads go through threads" \
            "$scratch/stderr"
}

same_logits() { # setup|enter errno text
    rm -f "$scratch/got.npy"
    without "$1" "$2" logits "$model" --tokens "$scratch/ids" --out "$scratch/got.npy" &&
        says_once "$3" && cmp "$scratch/want.npy" "$scratch/got.npy"
}
refused() { # setup|enter errno text
    local rc

    without "$1" "$2" logits "$model" --tokens "$scratch/ids" --out "$scratch/no.npy" --io uring
    rc=$?
    [ "$rc" = 1 ] && [ "$(cat "$scratch/stderr")" = \
        "sluice: io_uring is not available here: $3; use --io threads" ]
}
for call in setup enter; do
    check "$call fails with EPERM: same logits" same_logits $call EPERM "Operation not permitted"
    check "$call fails with ENOSYS: same logits" same_logits $call ENOSYS "Function not implemented"
    check "$call fails with EPERM: --io uring is refused" refused $call EPERM "Operation not permitted"
done

show_notes() {
    cat "$scratch/stderr"
    false
}
goes_on() { # arguments...
    if without setup EPERM "$@" >/dev/null; then
        says_once "Operation not permitted" || show_notes
    else
        show_notes
    fi
}
goes_on_as_told() { # arguments...: with threads asked for there is nothing to say
    if PATH=/no/fio/here without enter EPERM "$@" --io threads >/dev/null; then
        ! grep io_uring "$scratch/stderr"
    else
        show_notes
    fi
}
printf '"the river rose"\n' >"$scratch/text"
bench_io=(bench io "$model" --seconds 0.01 --sizes 64K --depths 4)
check "generate" goes_on generate "$model" -p "The river rose" -n 4
check "trace record" goes_on trace record "$model" --jsonl "$scratch/text" --out "$scratch/trace"
check "verify" goes_on verify "$store"
check "verify --io threads" goes_on_as_told verify "$store"
check "bench io" goes_on "${bench_io[@]}"
check "bench io --io threads" goes_on_as_told "${bench_io[@]}"

truncate -s 1G "$scratch/drive" # what plan --probe needs to tell a rate
if dd if="$scratch/drive" of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null; then
    probe=(plan "$model" --probe --dram 10G --drive "$scratch/drive")
    check "plan --probe" goes_on "${probe[@]}"
    check "plan --probe --io threads" goes_on_as_told "${probe[@]}"
else
    skip "plan --probe" "no direct I/O in ${TMPDIR:-/tmp}"
fi

packs() {
    without setup EPERM pack "$model" "$scratch/packed" >/dev/null &&
        cmp "$store/experts-1.bin" "$scratch/packed/experts-1.bin"
}
check "pack needs no io_uring" packs
tap_end
