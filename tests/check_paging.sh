#!/usr/bin/env bash
# sluice batch run with KV caches on disk: the same bytes as with all of them in memory, also where
# the file is too small for them; what was read is told, nothing is left in the folder, and without
# a folder it is refused. On the small trained model.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=$PWD/${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
model=$PWD/tests/small
"$python" - docs/PERFORMANCE.md >"$scratch/in.jsonl" <<'END'
import json, sys
words = open(sys.argv[1]).read().split()
for i in range(4):
    prompt = f"{i} " + " ".join(words[300 * i : 300 * i + 620])
    body = {"prompt": prompt, "max_tokens": 8}
    print(json.dumps({"custom_id": f"d{i}", "method": "POST", "url": "/v1/completions", "body": body}))
END
cd "$scratch" || exit 1

run() { "$sluice" batch run "$model" in.jsonl "$@" --ram 2G 2>stderr; }
# Memory for the whole of one document, where a sweep reads far more than that.
little() { run "$1" --cache 6M --kv 3500K --context 2500 --segment 256 --images images "${@:2}"; }
read_back() { sed -n 's/^KV .* on disk, \(.*\) read back.*/\1/p' stderr; }

in_memory() { run whole --images none && [ "$(wc -l <whole)" = 4 ] && [ -z "$(read_back)" ]; }
check "all documents in memory" in_memory
on_disk() {
    little paged --kv-disk 64M && cmp <(sort whole) <(sort paged) && [ -n "$(read_back)" ] &&
        echo "$(read_back) read back" && [ ! -e images/kv-pages ]
}
check "documents on disk, and the same bytes" on_disk
too_small() { little small --kv-disk 80K && cmp <(sort whole) <(sort small); }
check "a file for two pages, and the same bytes" too_small
refused() {
    ! run none --images none --kv-disk 64M && grep -q -- '--kv-disk needs --images' stderr
}
check "without a folder it is refused" refused
tap_end
