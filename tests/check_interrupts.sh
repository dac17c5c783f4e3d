#!/usr/bin/env bash
# Ctrl-C and its like, the same in every command: the figures so far, then death by the signal; no
# figures while nothing has begun; a signal that is ignored stays so.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
model=$scratch/model
"$sluice" synth tests/oracle/configs/tiny-flash.json "$model" >/dev/null || {
    fail "synth makes the model"
    tap_end
}
for _ in {1..800}; do printf 'the river rose in the night and took the bridge. '; done >"$scratch/text"

# Sends the signal when `when` has appeared on the terminal. The command must die of it, and say
# what matches `pattern`.
stops() { # signal when pattern command...
    local signal=$1 when=$2 pattern=$3

    shift 3
    timeout 60 "$python" tests/on_terminal.py --signal "SIG$signal" --when "$when" "$sluice" "$@" \
        >"$scratch/seen" &&
        "$python" - "$signal" "$pattern" "$scratch/seen" <<'PYTHON'
import json, re, signal, sys
seen = json.load(open(sys.argv[3]))
said = seen["stdout"] + seen["terminal"]
assert seen["status"] == -getattr(signal, "SIG" + sys.argv[1]), seen
assert re.search(sys.argv[2], said), seen
PYTHON
}
generate=(generate "$model" -f "$scratch/text" -n 10)
for signal in INT TERM HUP; do
    check "generate: $signal" stops $signal 'prompt: ' 'prompt .* tokens in' "${generate[@]}"
done
check "perplexity" stops INT 'nats/token' '(?m)^nats per token +[0-9.]+' \
    perplexity "$model" -f "$scratch/text" --segment 50
check "... as JSON" stops INT 'nats/token' '"interrupted": true' \
    perplexity "$model" -f "$scratch/text" --segment 50 --json
"$sluice" tokenize "$model" -f "$scratch/text" >"$scratch/ids"
check "logits" stops INT 'logits: ' 'interrupted: stopped' \
    logits "$model" --tokens "$scratch/ids" --out "$scratch/npy"
check "... without a file" [ ! -e "$scratch/npy" ]
check "trace record" stops INT 'text: ' '(?m)^requests +[0-9]+' \
    trace record "$model" -f "$scratch/text" --out "$scratch/trace"
check "... without a file" [ ! -e "$scratch/trace" ]
check "synth" stops INT 'writing: ' interrupted \
    synth tests/oracle/configs/v4-flash.json "$scratch/flash" --layers 1
check "... without a folder" bash -c "! ls -d '$scratch'/flash* 2>/dev/null"
at_once() { # a second signal comes while the first still stops the work
    timeout 60 "$python" tests/on_terminal.py --signal SIGINT --then SIGTERM --when 'writing: ' "$sluice" \
        synth tests/oracle/configs/v4-flash.json "$scratch/flash" --layers 1 >"$scratch/seen" &&
        "$python" -c 'import json, sys; sys.exit(json.load(sys.stdin)["status"] not in (-2, -15))' \
            <"$scratch/seen"
}
check "synth, with a second signal" at_once
check "... without a folder too" bash -c "! ls -d '$scratch'/flash* 2>/dev/null"
check "bench decode" stops INT '\[K' '' bench decode "$model" --tokens 10000

goes_on() {
    head -c 3000 "$scratch/text" >"$scratch/short"
    timeout 60 "$python" tests/on_terminal.py --ignored --signal SIGINT --when 'text: ' \
        "$sluice" perplexity "$model" -f "$scratch/short" --segment 2 >"$scratch/seen" &&
        "$python" - "$scratch/seen" <<'PYTHON'
import json, sys
seen = json.load(open(sys.argv[1]))
assert "text: " in seen["terminal"] and seen["status"] == 0, seen
assert "nats per token" in seen["stdout"] and "interrupted" not in seen["stdout"], seen
PYTHON
}
check "a signal that is ignored, as under nohup, stays ignored" goes_on
tap_end
