#!/usr/bin/env bash
# Progress on terminals: one line, redrawn, never longer than the terminal is wide, gone in the end;
# and no escapes where the terminal knows none.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
sentence='the river rose in the night and took the bridge. '

on_terminal() { # columns term
    timeout 60 "$python" tests/on_terminal.py --columns "$1" --term "$2" "$sluice" perplexity \
        tests/small -f "$scratch/text" --segment 2 >"$scratch/seen"
}

# A redraw comes after a quarter of a second: the text is made long enough for that on this machine.
n_sentences=10
until [ $n_sentences -gt 5000 ]; do
    for ((i = 0; i < n_sentences; i++)); do printf '%s' "$sentence"; done >"$scratch/text"
    on_terminal 80 xterm
    grep -q 'nats/token' "$scratch/seen" && break
    n_sentences=$((n_sentences * 2))
done
for ((i = 0; i < n_sentences; i++)); do printf '%s' "$sentence"; done >>"$scratch/text"

redrawn() { # columns
    on_terminal "$1" xterm && "$python" - "$1" "$scratch/seen" <<'PYTHON'
import json, re, sys
columns = int(sys.argv[1])
seen = json.load(open(sys.argv[2]))
assert seen["status"] == 0, seen
shown = seen["terminal"]
assert shown.endswith("\r\x1b[K") and "\n" not in shown, shown
lines = [line.replace("\x1b[K", "") for line in shown.split("\r")]
texts = [line for line in lines if line.startswith("text: "[:columns - 1])]
assert texts and max(map(len, lines)) <= columns - 1, lines
if columns >= 80:
    assert "loading dense weights" in lines, lines # at once, not when the first of them is read
    assert re.match(r"text: \d+ of \d+ tokens, [\d.]+/s, \d+ s left, [\d.]+ nats/token$", texts[-1])
else:
    assert len(texts[-1]) == columns - 1, texts
PYTHON
}
for columns in 200 80 30 5; do
    check "a terminal of $columns columns" redrawn $columns
done
without_escapes() { # term
    on_terminal 80 "$1" && "$python" - "$scratch/seen" <<'PYTHON'
import json, sys
seen = json.load(open(sys.argv[1]))
assert seen["status"] == 0 and "\x1b" not in seen["terminal"], seen
assert "\r" not in seen["terminal"].replace("\r\n", "\n"), seen
PYTHON
}
check "TERM=dumb" without_escapes dumb
check "no TERM" without_escapes ''
tap_end
