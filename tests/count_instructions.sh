#!/usr/bin/env bash
# Counts the instructions that kernels take for a product or a value, with AVX2 (under valgrind) and
# with NEON (under qemu-aarch64): a stand-in for time where there is no such processor. It needs the
# builds of `make tests` and `make aarch64`, and takes some minutes.
#
#   tests/count_instructions.sh [NAME]      only entries whose names contain NAME
cd "$(dirname "$0")/.." || exit 1
set -eu

# What the process executes in all, for so many calls.
executed() { # isa calls name size...
    local isa=$1 calls=$2

    shift 2
    if [ "$isa" = avx2 ]; then
        valgrind --tool=callgrind --callgrind-out-file=/dev/null \
            build/release/tests/test_kernels --calls "$calls" avx2 "$@" 2>&1 |
            sed -n 's/.*Collected : //p'
    else
        qemu-aarch64 -L build/aarch64-root -cpu max -singlestep -d nochain,exec \
            build/aarch64/tests/test_kernels --calls "$calls" neon "$@" 2>&1 | wc -l
    fi
}

# The row of a table; `per` is the number of products or values of one call.
row() { # per name size...
    local per=$1 isa once thrice

    shift
    case $1 in *"$only"*) ;; *) return 0 ;; esac
    printf '| %s %s ' "$1" "${*:2}"
    for isa in avx2 neon; do
        once=$(executed $isa 1 "$@")
        thrice=$(executed $isa 3 "$@")
        awk -v n=$(((thrice - once) / 2)) -v per="$per" 'BEGIN { printf "| %.3f ", n / per }'
    done
    echo "|"
}

only=${1:-}
echo '| entry and sizes | AVX2 | NEON |'
echo '|---|---|---|'
for tokens in 1 4 64; do
    for linear in matmul_fp4 matmul_fp8 matmul_fp8_block matmul_bf16 matmul_f32; do
        row $((4 * 16 * 512 * tokens)) $linear 4 512 $tokens
    done
done
row $((4 * 16 * 128 * 64)) index_scores 4 128 64
row 4096 quantise_int8 4096
row 4096 to_bf16 4096
row 512 kv_encode 448 64
row 512 kv_decode 448 64
row $((32 * 512)) pair_rows 16 512
row $((128 * 16)) attend_softmax 128
row 128 index_encode 128
