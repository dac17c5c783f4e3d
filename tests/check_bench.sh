#!/usr/bin/env bash
# The measurements measure: every line of JSON is a figure beside its limit, nothing is zero, every
# family of kernels and kind of work is there. Times are as short as they can be and mean nothing.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
model=$scratch/model
"$sluice" synth tests/oracle/configs/tiny-flash.json "$model" >/dev/null || {
    fail "synth makes the model"
    tap_end
}

figures() { # file what...: lines are sound, and among them are these. A limit may be unknown
    "$python" - "$@" <<'PYTHON'
import json, math, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
for line in lines:
    assert list(line) == ["what", "shape", "value", "unit", "limit", "ratio",
                          "disturbed"], line
    assert isinstance(line["disturbed"], bool), line
    assert line["what"] and line["shape"] and line["unit"], line
    known = ("value",) if line["limit"] is None else ("value", "limit", "ratio")
    assert all(math.isfinite(line[k]) and line[k] > 0 for k in known), line
    if line["limit"] is None:
        assert line["ratio"] is None and "no fio here" in line["shape"], line
    else:
        assert abs(line["ratio"] - line["value"] / line["limit"]) < 1e-9 * line["ratio"], line
names = [(line["what"], line["shape"]) for line in lines]
assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)
missing = [what for what in sys.argv[2:] if what not in {line["what"] for line in lines}]
assert not missing, missing
print(len(lines), "figures")
PYTHON
}

kernels() {
    "$sluice" bench kernels --seconds 0.0001 --runs 1 --json >"$scratch/kernels" &&
        figures "$scratch/kernels" "read bandwidth" "float32 multiply peak" "BF16 multiply peak" \
            "int8 multiply peak" "FP4 expert w1, Flash" "FP4 expert w2, Pro" "FP8 wq_b, Flash" \
            "FP8 wo_b, Pro" "BF16 compressor, Flash" "F32 mHC, Pro" "R16 repack, FP4" "R16 repack, FP8" \
            "quantise to int8" "RMS norm" "rope" "SwiGLU" "attention softmax" "KV encode" \
            "KV decode" "compressor pooling" "Sinkhorn" "attention" "indexer" "router" "mHC"
}
check "bench kernels" kernels
only_nothing() {
    "$sluice" bench kernels --only nothing >"$scratch/stdout" 2>"$scratch/stderr"
    [ $? = 1 ] && [ ! -s "$scratch/stdout" ] && [ "$(wc -l <"$scratch/stderr")" = 1 ] &&
        "$sluice" bench kernels --only "$(sed 's/.*; //' "$scratch/stderr")" \
            --seconds 0.0001 --runs 1 --json >"$scratch/last"
}
check "... of nothing names what there is" only_nothing
check "... the last as well" figures "$scratch/last" mHC

seq -s ' ' 3000 >"$scratch/text"
decode() { # flags...
    "$sluice" bench decode "$model" --tokens 20 --runs 1 --json "$@" >"$scratch/decode" 2>"$scratch/stderr" &&
        figures "$scratch/decode" decode "decode, slowest" "decode, fastest" \
            "decode, reading memory" "decode, attention projections" "decode, shared expert" \
            "decode, routed experts" "decode, head" "decode, attention" "decode, indexer" \
            "decode, compressor" "decode, mHC" "decode, router" "decode, quantise" "decode, rest" \
            "decode, barriers" &&
        grep -q '^compute  .* thread' "$scratch/stderr" &&
        grep -q '^memory  .*huge pages' "$scratch/stderr"
}
check "bench decode" decode --threads 2
check "... says that all is resident" grep -q '20 tokens, all resident' "$scratch/decode"
check "... and found every expert" "$python" -c '
import json, sys
found = [f for f in map(json.loads, open(sys.argv[1])) if f["what"] == "decode, experts found"]
assert [f["ratio"] for f in found] == [1] and found[0]["value"] == 36, found' "$scratch/decode"
check "bench decode of three texts at a time" decode --threads 2 --sequences 3
check "... says so" grep -q '20 tokens, all resident, 3 texts' "$scratch/decode"
check "... and asks once for an expert that two want" "$python" -c '
import json, sys
found = [f for f in map(json.loads, open(sys.argv[1])) if f["what"] == "decode, experts found"]
assert 12 <= found[0]["value"] < 36, found' "$scratch/decode"
check "bench decode of a text, with a cache for some" decode --threads 2 --cache min \
    -f "$scratch/text"
check "... says for how many" grep -q '20 tokens, room for 36 of 144' "$scratch/decode"

beside() { # flags...: the drives' part is there, and adds up
    decode --threads 2 --cache min "$@" -f "$scratch/text" && "$python" -c '
import json, sys
f = {line["what"]: line for line in map(json.loads, open(sys.argv[1]))}
time, rate, found = (f["decode, " + w] for w in ("beside the drive", "reading the drive", "experts found"))
assert time["unit"] == "ms/token" and rate["unit"] == "GB/s", (time, rate)
assert 0 < found["ratio"] < 1 and f["decode, waiting for the drive"]["value"] > 0, f' "$scratch/decode"
}
check "bench decode from an empty cache" beside --cold
check "... says that it is" grep -q '20 tokens, cold, room for 36 of 144' "$scratch/decode"
check "bench decode from a used cache" beside --warm
check "a store to measure" bash -c "'$sluice' pack '$model' '$scratch/store' >/dev/null"
model=$scratch/store check "... from an empty cache" beside --cold
check "a cache for all that begins empty misses" decode --threads 2 --cold
check "... which it says" grep -q '"decode, beside the drive"' "$scratch/decode"
check "bench decode behind tokens that are not computed" decode --threads 2 --position 9000
check "... says where" grep -q '20 tokens at 9000, all resident' "$scratch/decode"

prefill() {
    "$sluice" bench prefill "$model" --tokens 40 --segment 16 --cache min --threads 2 --runs 1 --json "$@" \
        >"$scratch/prefill" 2>/dev/null &&
        figures "$scratch/prefill" prefill "prefill, slowest" "prefill, fastest" \
            "prefill, multiplying" "prefill, attention projections" "prefill, routed experts" \
            "prefill, repacking" "prefill, barriers"
}
check "bench prefill" prefill
check "... behind tokens that are not computed" prefill --position 9000
check "... from an empty cache" prefill --cold
check "a table for people" bash -c "
    '$sluice' bench prefill '$model' --tokens 8 --runs 1 2>/dev/null | grep -q '^prefill  .*tokens/s .*%'"

# Texts in lockstep: what is read once is read once, of all that a step wants; a prompt shares it.
lockstep() {
    "$sluice" bench decode "$model" --sequences 1,40 --tokens 2 --runs 1 --cache min --threads 2 \
        --json "$@" >"$scratch/lockstep" 2>/dev/null &&
        figures "$scratch/lockstep" decode "decode, beside the drive" "decode, experts found" \
            "decode, experts kept" "decode, reads of an expert" "decode, drives at work" &&
        "$python" -c '
import json, sys
figures = [f for f in map(json.loads, open(sys.argv[1]))]
reads = [f["ratio"] for f in figures if f["what"] == "decode, reads of an expert"]
assert len(reads) == 2 and all(1 <= r <= 1.02 for r in reads), reads
kept = [f["shape"] for f in figures if f["what"] == "decode, experts kept"]
assert len(kept) == (2 if "prompt" in kept[-1] else 1) and "40 texts" in kept[-1], kept
assert all("of each layer pinned" in shape for shape in kept), kept' "$scratch/lockstep"
}
check "bench decode of 1 and of 40 texts" lockstep
check "... with a prompt's rows" lockstep --prompt-rows 30
check "... which it says" grep -q '40 texts and 30 of a prompt' "$scratch/lockstep"
check "a past that is computed comes anew for each number" bash -c "
    '$sluice' bench decode '$model' --sequences 1,3 --tokens 4 --runs 1 -f '$scratch/text' --json \
        2>/dev/null | grep -c '\"decode\"' | grep -qx 2"

# fio is a program of its own; where it is missing, its column says so.
io() { # path arguments...
    PATH=$1 "$sluice" bench io "${@:2}" --seconds 0.01 --json >"$scratch/io" &&
        figures "$scratch/io" "expert reads" "mmap of the same records"
}
head -c 1000000 /dev/urandom >"$scratch/a:file"
check "bench io of files, without fio" io "$scratch" --sizes 4K,16K --depths 1,4 \
    "$scratch/a:file" "$model/model-00002-of-00009.safetensors"
check "... which it says" test "$(grep -c 'no fio here", *"value": *[^,]*,.*"limit": *null' "$scratch/io")" = 4
if command -v fio >/dev/null; then
    check "bench io of a model" io "$PATH" --sizes 8K --depths 2 "$model"
    check "... beside fio" grep -q '"expert reads".*"limit": *[0-9]' "$scratch/io"
    check "... with a colon in a name" io "$PATH" --sizes 8K --depths 2 "$scratch/a:file"
    check "... beside fio" grep -q '"expert reads".*"limit": *[0-9]' "$scratch/io"
else
    skip "bench io of a model, beside fio" "there is no fio"
fi

# Work that one thread does alone has no barriers.
check "one thread has no barriers" bash -c "
    '$sluice' bench decode '$model' --tokens 2 --runs 1 --threads 1 --json >'$scratch/one' 2>/dev/null &&
    grep -q 'decode, head' '$scratch/one' && ! grep -q 'barriers' '$scratch/one'"

misuse() { # status pattern arguments...
    local want=$1 pattern=$2

    shift 2
    "$sluice" bench "$@" >/dev/null 2>"$scratch/stderr"
    [ $? = "$want" ] && grep -q -e "$pattern" "$scratch/stderr"
}
printf 'too short' >"$scratch/short"
check "a text that is too short" misuse 1 "short: [0-9]* tokens, 40 are needed" \
    decode "$model" --tokens 4 -f "$scratch/short"
check "a position beyond the context" misuse 1 "10004 tokens do not fit --context 10003" \
    decode "$model" --tokens 4 --position 10000 --context 10003
check "tokens that do not fit the context" misuse 1 "20 tokens do not fit --context 19" \
    decode "$model" --tokens 4 --context 19
check "no kind" misuse 2 "Usage: "
check "an unknown kind" misuse 2 "there is no kind \"walking\"" walking
check "no model" misuse 2 "MODEL is missing" prefill
check "an unknown instruction set" misuse 2 "--isa takes ref, avx2, .*, not \"none\"" \
    kernels --isa none
check "a prompt in lockstep" misuse 2 "are for decode" prefill "$model" --sequences 8
check "a number of texts that is none" misuse 2 "--sequences takes" decode "$model" --sequences 1,
check "cold and warm" misuse 2 "exclude each other" decode "$model" --cold --warm
check "a warm prefill" misuse 2 "--warm is for decode" prefill "$model" --warm
check "no drives" misuse 2 "MODEL or FILE is missing" io
check "no such file" misuse 1 "/nowhere: " io /nowhere
check "an empty file" misuse 1 "too small to be timed" io /dev/null
check "odd pieces" misuse 2 "multiple of 4K" io "$model" --sizes 1000
check "no depths" misuse 2 "list such as" io "$model" --depths ,
check "no time" misuse 2 "takes a number above 0" kernels --seconds 0
tap_end
