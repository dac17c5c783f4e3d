#!/usr/bin/env bash
# One answer: the logits of a checkpoint and its tokens are the same bytes whatever the threads, the
# cache, its policy, what is prefetched, the I/O back end, the segments, what shares the passes, the
# instruction set and the compiler. Each is varied alone and some together; the hash of the .npy is
# compared with that of a plain run. What goes token by token is long, and so has fewer tokens, which
# are still more than any window or compressed entry has.
# CONFIGS names the models, tiny-flash and tiny-pro by default.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
export PYTHONDONTWRITEBYTECODE=1

logits() { # binary flags...: prints the hash of the logits
    local binary=$1

    shift
    "$binary" logits "$case/checkpoint" --tokens "$tokens" --out "$scratch/logits.npy" \
        "$@" >/dev/null && sha256sum <"$scratch/logits.npy"
}

FEW_TOKENS=160
choose_tokens() { # flags: sets $tokens and $want, the hash that they are to have
    tokens=$case/tokens.txt want=$plain
    [[ "$1 " != *"--segment 1 "* ]] || tokens=$scratch/few want=$plain_few
}

same() { # hash binary flags...
    local want=$1 got

    shift
    got=$(logits "$@") && [ "$got" = "$want" ]
}

seq 100 400 | tr '\n' ' ' >"$scratch/other"
others=(--tokens "$scratch/other" --out "$scratch/other.npy")
variants=(
    "--threads 1" "--threads 2" "--threads 3"
    "--cache min" "--cache 1G"
    "--io uring" "--io threads"
    "--policy lru --cache min --segment 1" "--policy frequency --cache min --segment 1"
    "--prefetch off" "--prefetch auto --cache min --segment 1" "--prefetch gate --cache min --segment 1" "--prefetch gate --segment 7"
    "--segment 1" "--segment 7" "--segment 64" "--segment 300"
    "--isa ref"
    "--threads 1 --cache min --io threads --segment 1 --isa ref"
    "--threads 2 --cache min --io uring --segment 7"
    "--cache min --io-piece 4K --io-depth 1" "--cache min --io threads --io-piece 12K --io-depth 3"
)
# The program is asked, not the processor: Linux refuses AMX where signal stacks are small, as those
# of the sanitizers are.
isas=()
for isa in avx2 avx512 amx neon; do
    if ! "$sluice" bench kernels --isa "$isa" --only none --seconds 1e-5 2>&1 |
        grep -q "does not have the instruction set"; then
        isas+=("$isa")
        variants+=("--isa $isa" "--isa $isa --segment 1 --threads 1")
    else
        skip "--isa $isa" "this machine does not have it"
    fi
done

for name in ${CONFIGS:-tiny-flash tiny-pro}; do
    config=tests/oracle/configs/$name.json
    if ! case=$("$python" tests/oracle/make_case.py "$config" build/oracle) ||
        ! tokens=$case/tokens.txt || ! plain=$(logits "$sluice") ||
        ! cut -d " " -f "-$FEW_TOKENS" "$tokens" >"$scratch/few" ||
        ! plain_few=$(tokens=$scratch/few logits "$sluice") ||
        ! mtp=$(tokens=$scratch/few logits "$sluice" --mtp); then
        fail "$name: a plain run"
        continue
    fi
    for variant in "${variants[@]}"; do
        choose_tokens "$variant"
        # Flags are split at their spaces.
        # shellcheck disable=SC2086
        check "$name $variant" same "$want" "$sluice" $variant
    done
    tokens=$scratch/few
    check "$name --mtp --segment 7 --cache min" same "$mtp" "$sluice" --mtp --segment 7 --cache min
    check "$name --mtp --segment 1 --threads 1 --isa ref" \
        same "$mtp" "$sluice" --mtp --segment 1 --threads 1 --isa ref
    tokens=$case/tokens.txt
    if [ -x build/clang/sluice ]; then
        check "$name, built by clang" same "$plain" build/clang/sluice
        check "$name, built by clang, --isa ref" same "$plain" build/clang/sluice --isa ref
    else
        skip "$name, built by clang" "build/clang/sluice is not there"
    fi
    check "$name beside other tokens" same "$plain" "$sluice" "${others[@]}"
    check "$name beside other tokens, --segment 7 --cache min" \
        same "$plain" "$sluice" "${others[@]}" --segment 7 --cache min
    if [ "$(sha256sum <"$scratch/other.npy")" != "$plain" ]; then
        ok "$name: other tokens have another answer"
    else
        fail "$name: other tokens have another answer"
    fi
done
# FP8 experts and float32 scales, from a checkpoint and from stores of it.
few=("--threads 1 --segment 1 --cache min --prefetch gate" "--threads 3 --segment 7" "--isa ref")
for isa in "${isas[@]}"; do
    few+=("--isa $isa --threads 2")
done
of_store() { # hash store flags...
    local want=$1 store=$2

    shift 2
    "$sluice" logits "$store" --tokens "$case/tokens.txt" --out "$scratch/logits.npy" "$@" \
        >/dev/null && [ "$(sha256sum <"$scratch/logits.npy")" = "$want" ]
}
# Drafts of DSpark, of all tokens and places in one hash.
drafts() { # binary flags...: prints the hash
    local binary=$1

    shift
    "$binary" logits "$case/checkpoint" --tokens "$case/tokens.txt" --draft-out "$scratch/drafts" \
        "$@" >/dev/null && cat "$scratch"/drafts/{positions,anchors,logits,tokens,conf}.npy | sha256sum
}
same_drafts() { # hash binary flags...
    local want=$1 got

    shift
    got=$(drafts "$@") && [ "$got" = "$want" ]
}
if case=$("$python" tests/oracle/make_case.py tests/oracle/configs/odd-heads.json build/oracle \
    --tokens 100 --draft dspark) && plain=$(drafts "$sluice"); then
    for variant in "${few[@]/--segment 1/--segment 5}" "--segment 64 --threads 1"; do
        # shellcheck disable=SC2086
        check "drafts $variant" same_drafts "$plain" "$sluice" $variant
    done
    check "drafts beside others'" same_drafts "$plain" "$sluice" --tokens "$case/tokens.txt" \
        --draft-out "$scratch/others"
    check "they are the same there" cmp "$scratch/others/logits.npy" "$scratch/drafts/logits.npy"
else
    fail "drafts: a plain run"
fi

if case=$("$python" tests/oracle/make_case.py tests/oracle/configs/tiny-flash.json build/oracle \
    --tokens 100 --format base --scales any --no-expert-dtype) && tokens=$case/tokens.txt &&
    plain=$(logits "$sluice"); then
    for variant in "${few[@]}"; do
        # shellcheck disable=SC2086
        check "base $variant" same "$plain" "$sluice" $variant
    done
    check "base is packed" "$sluice" pack "$case/checkpoint" "$scratch/plain"
    check "base, a store" of_store "$plain" "$scratch/plain" --cache min --segment 1
    check "base is packed and compressed" "$sluice" pack --compress "$case/checkpoint" "$scratch/small"
    check "base, a compressed store" of_store "$plain" "$scratch/small" --segment 7
else
    fail "base: a plain run"
fi
tap_end
