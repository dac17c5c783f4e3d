#!/usr/bin/env bash
# The build for aarch64, under qemu: NEON kernels equal their reference with and without the int8 dot
# product, the reference equals this machine's, and so do the logits of tiny checkpoints, whatever
# the instruction set. Hashes of outputs are compared, and .npy files byte by byte.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

here=${SLUICE:-build/release/sluice}
there=build/aarch64
root=build/aarch64-root
python=${PYTHON:-/usr/bin/python3}
export PYTHONDONTWRITEBYTECODE=1

missing=
if [ "$(uname -m)" = aarch64 ]; then
    missing="this machine is one, and all other tests are for it"
elif ! command -v qemu-aarch64 >/dev/null; then
    missing="there is no qemu-aarch64 (make aarch64)"
elif [ ! -x "$there/sluice" ] || [ ! -x "$there/tests/test_kernels" ]; then
    missing="there is no build for aarch64 (make aarch64)"
fi
if [ -n "$missing" ]; then
    skip "aarch64" "$missing"
    tap_end
fi

emulate() { # cpu program arguments...
    qemu-aarch64 -L "$root" -cpu "$@"
}

run_kernels() { # cpu
    CMOCKA_MESSAGE_OUTPUT=TAP emulate "$1" "$there/tests/test_kernels" >"$scratch/$1" 2>&1
    echo "exit status $?" >>"$scratch/$1"
}

# Entries that are the reference's count as skipped; the linears must not be among them.
kernels_agreed() { # cpu
    local line

    cat "$scratch/$1"
    for line in 'exit status 0' 'ok .*neon matmul_fp4' 'ok .*neon matmul_fp8' 'ok .*neon matmul_bf16'; do
        grep -q "^$line\$" "$scratch/$1" || return 1
    done
    echo "$(grep -c '^ok ' "$scratch/$1") entries"
}

same_reference() {
    build/release/tests/test_kernels --hash >"$scratch/here" &&
        emulate max "$there/tests/test_kernels" --hash | diff "$scratch/here" - &&
        echo "$(wc -l <"$scratch/here") entries"
}

# The first tokens of a case: here plainly, there with flags.
same_logits() { # name token-count cpu flags...
    local case tokens=$scratch/tokens cpu=$3

    case=$("$python" tests/oracle/make_case.py "tests/oracle/configs/$1.json" build/oracle) || return 1
    tr -s ' \n' '\n' <"$case/tokens.txt" | head -n "$2" >"$tokens"
    shift 3
    "$here" logits "$case/checkpoint" --tokens "$tokens" --out "$scratch/here.npy" &&
        emulate "$cpu" "$there/sluice" logits "$case/checkpoint" --tokens "$tokens" \
            --out "$scratch/there.npy" --io threads "$@" &&
        cmp "$scratch/here.npy" "$scratch/there.npy"
}

run_kernels max & # all shapes, half a minute beside the rest
export SL_SLOW=1
run_kernels cortex-a72
check "the reference's outputs are this machine's" same_reference
# Enough tokens to fill a window of 128, and few where less is enough: qemu takes 0.1 s for each.
check "tiny-flash" same_logits tiny-flash 140 max
check "tiny-flash --isa ref" same_logits tiny-flash 20 max --isa ref
check "tiny-flash --segment 1, without the dot product" same_logits tiny-flash 20 cortex-a72 --segment 1
check "tiny-pro" same_logits tiny-pro 40 max
wait
check "kernels with the dot product" kernels_agreed max
check "kernels without it" kernels_agreed cortex-a72
tap_end
