#!/usr/bin/env bash
# The commands as a user meets them: text that streams and can be interrupted, figures that add up,
# sampling that repeats, memory that is refused with the figures. On a small random model.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
model=$scratch/model
"$sluice" synth tests/oracle/configs/tiny-flash.json "$model" >/dev/null || {
    fail "synth makes the model"
    tap_end
}

generate() {
    "$sluice" generate "$model" -p "The river rose" "$@" 2>"$scratch/figures"
}

repeats() { # flags...: same text with other resources
    local want got

    want=$(generate -n 40 "$@") && got=$(generate -n 40 --cache min --threads 1 --segment 3 "$@") &&
        [ -n "$want" ] && [ "$want" = "$got" ]
}
check "greedy text repeats" repeats --temp 0
check "a seed's text repeats" repeats --seed 7 --temp 0.9 --top-p 0.95 --top-k 50 --min-p 0.01
check "another seed gives another text" \
    [ "$(generate -n 40 --seed 1)" != "$(generate -n 40 --seed 2)" ]
check "-f reads the prompt from a file" bash -c "
    printf 'The river rose' >'$scratch/prompt'
    [ \"\$('$sluice' generate '$model' -f '$scratch/prompt' -n 20 --temp 0 2>/dev/null)\" = \
      \"\$('$sluice' generate '$model' -p 'The river rose' -n 20 --temp 0 2>/dev/null)\" ]"

# Documents know nothing of each other, and neither do a document's pieces.
nats() { # file flags...
    "$sluice" perplexity "$model" --jsonl "$@" 2>/dev/null | awk '/^nats per token/ { print $4 }'
}
documents_stand_alone() {
    local one='"the river rose in the night and took the bridge"'

    echo "$one" >"$scratch/one"
    printf '%s\n' "$one" "$one" >"$scratch/two"
    [ -n "$(nats "$scratch/one")" ] && [ "$(nats "$scratch/one")" = "$(nats "$scratch/two")" ] &&
        [ "$(nats "$scratch/one" --window 8)" = "$(nats "$scratch/two" --window 8 --segment 3)" ] &&
        [ "$(nats "$scratch/one" --window 8)" != "$(nats "$scratch/one")" ]
}
check "perplexity: documents and their pieces stand alone" documents_stand_alone

figures_add_up() {
    generate -n 30 --cache min --stats "$scratch/stats.json" >/dev/null || return
    "$python" - "$scratch/stats.json" <<'PYTHON'
import json, sys
s = json.load(open(sys.argv[1]))
assert s["new_tokens"] == 30, s
k, layers = 6, 6
assert s["decode_expert_requests"] == 29 * k * layers, s
loads_for_demand = s["expert_requests"] - s["expert_hits"] - s["expert_prefetch_hits"]
assert 0 < loads_for_demand <= s["expert_loads"], s
expert = 3 * 128 * 256 * 17 // 32
assert s["wanted_bytes"] == s["expert_loads"] * expert, s
assert s["wanted_bytes"] <= s["read_bytes"] < 1.5 * s["wanted_bytes"], s
assert 0 < s["decode_read_bytes"] < s["read_bytes"], s
PYTHON
}
check "the figures add up" figures_add_up

# Every expert read once when all fit, but for those that were given up while they were read ahead.
reads_once() {
    generate -n 300 --cache 1G --stats "$scratch/stats.json" >/dev/null || return
    "$python" -c '
import json, sys
s = json.load(open(sys.argv[1]))
given_up = s["predicted_loads"] - s["predicted_hits"] - s["predicted_late"]
assert s["expert_evictions"] == 0 and s["expert_loads"] <= 6 * 24 + given_up, s' "$scratch/stats.json"
}
check "a cache that holds all reads none twice" reads_once

interrupted() {
    local pid

    rm -f "$scratch/text" # of an earlier run
    env --default-signal=INT "$sluice" generate "$model" -p "The river rose" -n 900000 --temp 0 \
        >"$scratch/text" 2>"$scratch/figures" &
    pid=$!
    wait_for [ -s "$scratch/text" ]
    kill -INT "$pid"
    wait "$pid"
    [ $? = 130 ] && grep -q ', interrupted' "$scratch/figures" && grep -q '^disk ' "$scratch/figures"
}
check "Ctrl-C ends with the figures" interrupted

packs_as_json() {
    "$sluice" pack "$model" "$scratch/store" --json >"$scratch/packed" 2>/dev/null &&
        "$sluice" pack "$model" "$scratch/store" --json >"$scratch/again" 2>/dev/null &&
        "$python" - "$scratch" "$model" <<'PYTHON'
import json, os, sys
packed, again = (json.load(open(sys.argv[1] + name)) for name in ("/packed", "/again"))
store = sys.argv[1] + "/store"
size = sum(os.path.getsize(os.path.join(store, name)) for name in os.listdir(store)
           if name.startswith(("dense", "experts")))
assert packed["complete"] and packed["bytes"] == packed["written_bytes"] > 0, packed
assert again["complete"] and again["written_bytes"] == 0, again
assert packed["bytes"] == again["bytes"] == size and packed["drives"] == [], (packed, size)
assert packed["checkpoint"] == sys.argv[2] and packed["experts"] >= 6 * 24, packed
PYTHON
}
check "pack --json says what was packed" packs_as_json

perplexity_is_json() {
    printf 'It was a dark and stormy night' >"$scratch/text"
    "$sluice" perplexity "$model" -f "$scratch/text" >"$scratch/figures" 2>/dev/null &&
        "$sluice" perplexity "$model" -f "$scratch/text" --json 2>/dev/null | "$python" -c '
import json, sys
figures = dict(line.rstrip().rsplit(None, 1) for line in open(sys.argv[1]) if "sec" not in line)
o = json.load(sys.stdin)
for key, name in (("tokens", "tokens"), ("bytes", "bytes"), ("nats per token", "nats_per_token"),
                  ("perplexity", "perplexity"), ("bits per byte", "bits_per_byte")):
    assert abs(float(figures[key]) / o[name] - 1) < 1e-5, (figures, o)
assert o["interrupted"] is False and o["documents"] == 1, o' "$scratch/figures"
}
check "perplexity --json has the same figures" perplexity_is_json

perplexity_is_that_of_the_logits() {
    printf 'It was a dark and stormy night, and the rain fell in torrents.' >"$scratch/text"
    { echo 0; "$sluice" tokenize "$model" -f "$scratch/text"; } >"$scratch/ids"
    "$sluice" logits "$model" --tokens "$scratch/ids" --out "$scratch/logits.npy" || return
    "$sluice" perplexity "$model" -f "$scratch/text" --segment 5 >"$scratch/perplexity" || return
    "$python" - "$scratch" <<'PYTHON'
import sys
import numpy as np
folder = sys.argv[1]
ids = np.array(open(folder + "/ids").read().split(), int)
logits = np.load(folder + "/logits.npy").astype(np.float64)[:-1]
top = logits.max(1)
nats = top + np.log(np.exp(logits - top[:, None]).sum(1)) - logits[np.arange(len(logits)), ids[1:]]
said = dict(line.rsplit(None, 1) for line in open(folder + "/perplexity") if "seconds" not in line)
said = {key.strip(): float(value) for key, value in said.items()}
assert said["tokens"] == len(nats), said
assert abs(said["nats per token"] - nats.mean()) < 1e-5, (said, nats.mean())
text = open(folder + "/text").read()
assert abs(said["bits per byte"] - nats.sum() / np.log(2) / len(text)) < 1e-4, said
PYTHON
}
check "perplexity is that of the logits" perplexity_is_that_of_the_logits

# What the run's cache counted, the replay of its trace counts; and no policy beats the optimum.
trace_is_replayed() {
    local policy

    head -c 3000 README.md >"$scratch/text"
    for policy in lru frequency; do
        "$sluice" trace record "$model" -f "$scratch/text" --out "$scratch/trace" --cache min --segment 1 \
            --policy "$policy" --prefetch hash >"$scratch/counted" 2>/dev/null &&
            "$sluice" trace replay "$scratch/trace" --segment recorded --json \
                --cache "$("$sluice" inspect "$model" --cache min |
                    sed -n 's/.*expert cache .* \([0-9]*\) of .*/\1/p')" \
                --policy "$policy,optimum" >"$scratch/replayed" &&
            "$sluice" trace summary "$scratch/trace" | grep -q 'never before' || return
        "$python" - "$scratch" "$policy" <<'PYTHON' || return
import json, sys
counted = dict(line.split() for line in open(sys.argv[1] + "/counted"))
policy, optimum = map(json.loads, open(sys.argv[1] + "/replayed"))
assert policy["policy"] == sys.argv[2] and optimum["policy"] == "optimum"
for key in ("requests", "hits", "prefetch_hits", "loads", "evictions"):
    assert policy[key] == int(counted[key]), (key, policy, counted)
assert 0 < optimum["loads"] <= policy["loads"] < policy["requests"], (policy, optimum)
PYTHON
    done
}
check "a trace is replayed as it was" trace_is_replayed

# The budget that the design starts from: 366 experts of 35,094,528 bytes for a token of Pro.
plan_adds_up() {
    "$sluice" plan tests/oracle/configs/v4-pro.json --ram 128G --ssd 12G/s --dram 80G/s --cores 16 \
        --json >"$scratch/plan" || return
    "$python" - "$scratch/plan" <<'PYTHON'
import json, sys
machine, *rows = map(json.loads, open(sys.argv[1]))
assert machine["expert_bytes"] == 35094528 and machine["budget_bytes"] == 128 << 30, machine
assert [row["sequences"] for row in rows] == [1, 8, 16, 32, 64, 128, 256, 512, 1], rows
for row in rows:
    assert row["fits"] and row["cache_bytes"] <= 128 << 30, row
    read = row["experts"] * 35094528 * (1 - row["hit_rate"])
    n_tokens = row["sequences"] * row["tokens"]
    assert abs(row["drive_bytes_per_token"] * n_tokens / read - 1) < 1e-9, row
    assert abs(row["drive_s"] * 12e9 / read - 1) < 1e-9, row
    assert abs(row["tokens_per_s"] * row["step_s"] / n_tokens - 1) < 1e-9, row
    parts = {"drive": "drive_s", "memory": "memory_s", "multiplication": "multiply_s"}
    assert row[parts[row["limit"]]] == max(row[key] for key in parts.values()), row
    assert max(row[key] for key in parts.values()) <= row["step_s"] * (1 + 1e-9), row
share, share_of_8 = (row["cache_bytes"] / (61 * 384 * 35094528) for row in rows[:2])
assert 0.11 < share < 0.22 and abs(rows[0]["hit_rate"] - (0.59 + (share - 0.11) * 15 / 11)) < 1e-3
# Eight texts go by the same popularity of experts as one, and so read less for each token.
points = [(0, 0), (.055, .4), (.11, .59), (.22, .74), (.44, .87), (1, 1)]
def demanded(upto, tokens):
    return sum((min(x1, upto) - x0) * (1 - (1 - 6 / 384 * (y1 - y0) / (x1 - x0)) ** tokens)
               for (x0, y0), (x1, y1) in zip(points, points[1:]) if x0 < upto)
assert abs(rows[0]["experts"] - 366) < 1e-6, rows[0]
assert abs(rows[1]["experts"] / (61 * 384 * demanded(1, 8)) - 1) < 1e-6, rows[1]
assert abs(rows[1]["hit_rate"] - demanded(share_of_8, 8) / demanded(1, 8)) < 1e-3, rows[1]
speed = [row["tokens_per_s"] for row in rows[:-1]]
assert speed == sorted(speed), speed
assert rows[-1]["what"] == "prefill" and abs(rows[-1]["experts"] - 61 * 384) < 1, rows
PYTHON
}
check "a plan's figures add up" plan_adds_up

# A night is no shorter than what its bytes take the drive; what is done by a time is a part of it.
plan_a_night() {
    "$sluice" plan tests/oracle/configs/v4-pro.json --ram 128G --ssd 12G/s --dram 80G/s --cores 16 \
        --documents 40 --prompt-tokens 3000 --answer-tokens 100 --until 07:00 --json "$@" \
        >"$scratch/plan" && "$python" - "$scratch/plan" <<'PYTHON'
import json, sys
night = [json.loads(line) for line in open(sys.argv[1])][-1]
assert night["what"] == "night" and night["fits"] and 1 <= night["at_once"] <= 40, night
assert (night["documents"], night["prompt_tokens"], night["answer_tokens"]) == (40, 120000, 4000)
assert night["seconds"] >= night["drive_bytes"] / 12e9 * (1 - 1e-9), night
assert abs(night["drive_share"] + night["memory_share"] + night["multiply_share"] - 1) < 1e-9
assert 100 <= night["sweeps"] and night["done"]["documents"] <= 40, night
assert 0 < night["done"]["seconds"] <= min(night["seconds"], 86400), night
print(night["at_once"], night["kv_bytes"], night["cache_bytes"])
PYTHON
}
check "a plan of a night adds up" plan_a_night
check "... with little memory for KV caches" bash -c "
    $(declare -f plan_a_night); sluice='$sluice' python='$python' scratch='$scratch'
    plan_a_night --kv 500M | { read -r n kv cache; [ \"\$n\" -lt 12 ] && [ \"\$kv\" -lt 530000000 ]; }"
check "... for people" bash -c "
    '$sluice' plan '$model' --ssd 1G --dram 10G --documents 3 --prompt-tokens 50 --answer-tokens 4 |
    grep -q 'sweeps of .* hours, .* read'"
# 5 lines, each longer than the one before, one of which asks for two texts; answers of 2 to 6 tokens.
plan_an_input() {
    "$python" -c '
import json
for i in range(5):
    print(json.dumps({"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body":
        {"model": "model", "prompt": "The river rose. " * 40 * (i + 1), "max_tokens": i + 2, "n": 1 + (i == 4)}}))' \
        >"$scratch/in.jsonl" &&
        "$sluice" plan "$model" --ssd 1G --dram 10G --batch "$scratch/in.jsonl" --json >"$scratch/plan" &&
        "$sluice" batch check "$model" "$scratch/in.jsonl" --json >"$scratch/checked" &&
        "$python" -c '
import json, sys
night = [json.loads(line) for line in open(sys.argv[1])][-1]
checked = json.load(open(sys.argv[2]))
assert (night["documents"], night["answer_tokens"]) == (6, 2 + 3 + 4 + 5 + 2 * 6), night
assert night["prompt_tokens"] == checked["prompt_tokens"] > 1000, (night, checked)
assert night["shared_tokens"] == checked["prompt_tokens"] - checked["computed_tokens"] > 500, \
    (night, checked)' "$scratch/plan" "$scratch/checked"
}
check "a plan of a batch's input" plan_an_input
plan_refuses_an_input() {
    echo '{}' >"$scratch/in.jsonl" &&
        ! "$sluice" plan "$model" --ssd 1G --dram 10G --batch "$scratch/in.jsonl" >"$scratch/plan" 2>"$scratch/faults" &&
        [ ! -s "$scratch/plan" ] && grep -q 'in.jsonl: 1 of 1 lines are faulty' "$scratch/faults"
}
check "a faulty input is told before any plan" plan_refuses_an_input
check "a plan whose dense weights stream says so" bash -c "
    '$sluice' plan v4-pro --ram 64G --ssd 1G --dram 10G --dense stream | grep -q '0 of 61 layers stay'"
check "a plan for KV caches of a size" bash -c "
    '$sluice' plan v4-flash --ram 64G --ssd 1G --dram 10G --kv 400M |
    grep -q 'decode .* does not fit: .* take more than --kv'"

plan_replays() {
    "$sluice" plan "$model" --ssd 1G --dram 10G --cache "$("$sluice" inspect "$model" --cache min |
        sed -n 's/.*expert cache  *\([0-9.]*\) MiB.*/\1M/p')" --trace "$scratch/trace" --json \
        >"$scratch/plan" &&
        "$sluice" trace replay "$scratch/trace" --policy frequency --json --cache \
            "$("$python" -c '
import json, sys
machine, alone = list(map(json.loads, open(sys.argv[1])))[:2]
print(alone["cache_bytes"] // machine["expert_bytes"])' "$scratch/plan")" >"$scratch/replayed" &&
        "$python" -c '
import json, sys
alone = list(map(json.loads, open(sys.argv[1])))[1]
assert 0 < alone["hit_rate"] < 1, alone
assert alone["hit_rate"] == json.load(open(sys.argv[2]))["hit_rate"], alone' \
            "$scratch/plan" "$scratch/replayed"
}
check "a plan takes a trace's hit rate" plan_replays
check "a plan says what does not fit, and that is no failure" bash -c "
    '$sluice' plan '$model' --ram 8M --ssd 1G --dram 10G | grep -q 'decode .* does not fit: '"

refused() { # name pattern arguments...: exit status 1, and the last line of stderr says why
    local name=$1 pattern=$2 rc

    shift 2
    "$sluice" "$@" >/dev/null 2>"$scratch/stderr"
    rc=$?
    if [ $rc = 1 ] && tail -n 1 "$scratch/stderr" | grep -q -e "$pattern"; then
        ok "$name" "$(tail -n 1 "$scratch/stderr")"
    else
        fail "$name" "exit status $rc, $(cat "$scratch/stderr")"
    fi
}
# What one sequence of 64 tokens takes, in KiB and rounded up.
kv_of_one=$("$sluice" inspect "$model" --context 64 |
    awk '/^  KV cache/ { print int($4 == "MiB" ? $3 * 1024 + 12 : $3 + 2) "K" }')
refused "a prompt longer than the context" "do not fit --context 8" \
    generate "$model" -p "The river rose in the night" -n 4 --context 8
refused "a list longer than the context" "$scratch/ids: .* do not fit --context 8" \
    logits "$model" --tokens "$scratch/ids" --out "$scratch/logits.npy" --context 8
refused "a text longer than the context" "$scratch/text: .* do not fit --context 8" \
    perplexity "$model" -f "$scratch/text" --context 8
refused "a context longer than the model's" "max_position_embeddings" \
    generate "$model" -p a -n 4 --context 2000000
check "a cache below one token's working set is told, with the price" bash -c "
    '$sluice' generate '$model' -p a -n 2 --cache 1M 2>&1 >/dev/null |
    grep -q 'note: memory holds .* experts that a token takes, .* a token'"
refused "... and refused with --refuse-slow" "give --cache min, or more" \
    generate "$model" -p a --cache 1M --refuse-slow
check "... with the table" grep -q 'dense weights' "$scratch/stderr"
refused "memory for KV caches that holds no sequence" "one sequence of 64 tokens takes .* than --kv 64.0 KiB" \
    generate "$model" -p a -n 4 --context 64 --kv 64K
refused "KV caches that grow beyond their memory" "needs .* more for KV caches, but .* (--kv) are left" \
    logits "$model" --tokens "$scratch/ids" --out "$scratch/logits.npy" \
    --tokens "$scratch/ids" --out "$scratch/logits2.npy" --context 64 --kv "$kv_of_one"
check "a sequence that fits into its memory gives the same" bash -c "
    '$sluice' logits '$model' --tokens '$scratch/ids' --out '$scratch/logits.npy' &&
    '$sluice' logits '$model' --tokens '$scratch/ids' --out '$scratch/logits2.npy' --context 64 --kv $kv_of_one &&
    cmp '$scratch/logits.npy' '$scratch/logits2.npy'"
refused "a budget that is too small" "the budget is 8.00 MiB (--ram)" \
    generate "$model" -p a --ram 8M
check "... with the table" grep -q 'KV cache' "$scratch/stderr"
refused "output that cannot be written" "cannot write" \
    logits "$model" --tokens "$scratch/ids" --out /dev/full
check "... and is left alone, being no plain file" [ -c /dev/full ]
refused "of two outputs the one that cannot be written" "/dev/full: cannot write" \
    logits "$model" --tokens "$scratch/ids" --out "$scratch/logits.npy" \
    --tokens "$scratch/ids" --out /dev/full

refused "a trace of another model" "of 6 layers with 24 experts" \
    plan tests/oracle/configs/v4-pro.json --ram 128G --ssd 1G --dram 10G --trace "$scratch/trace"
check "inspect says who needs what" bash -c "
    '$sluice' inspect '$model' --context 1000 >'$scratch/inspect' &&
    grep -q 'expert cache' '$scratch/inspect' && grep -q 'huge pages: [0-9]' '$scratch/inspect' && grep -q '1 x 1000 tokens' '$scratch/inspect'"
# A release's sizes are known, and what plan finds to fit is what inspect does.
inspects_configs() {
    "$sluice" inspect v4-pro --json --ram 128G --context 8192 >"$scratch/inspected" &&
        "$sluice" inspect tools/configs/v4-pro.json --json --ram 128G >"$scratch/by-path" &&
        "$sluice" plan v4-pro --json --ram 128G --ssd 1G --dram 10G >"$scratch/plan" &&
        "$python" - "$scratch/inspected" "$scratch/plan" "$scratch/by-path" <<'PYTHON'
import json, sys
m, by_path = json.load(open(sys.argv[1])), json.load(open(sys.argv[3]))
assert all(m[k] == by_path[k] for k in m if k not in ("model", "huge_page_share", "memory")), by_path
machine, alone = list(map(json.loads, open(sys.argv[2])))[:2]
assert m["kind"] == "config" and m["tensors"] == 145116 and m["files"] == 64, m
assert 864e9 < m["disk_bytes"] < 866e9, m
memory = m["memory"]
assert memory["fits"] and memory["slots_max"] == 61 * 384 and memory["slots_min"] == 366, m
assert memory["bytes"]["dense weights"] == machine["dense_bytes"], (m, machine)
# What the program itself has taken differs from one run to the next.
assert abs(memory["bytes"]["expert cache"] - alone["cache_bytes"]) <= memory["slot_bytes"], (m, alone)
assert sum(memory["bytes"].values()) == memory["together_bytes"] <= memory["budget_bytes"], m
PYTHON
}
check "inspect knows a release by its name" inspects_configs
inspects_as_json() {
    local n

    n=$("$sluice" inspect "$model" --tensors | grep -c -v '^#')
    "$sluice" inspect "$model" --json >"$scratch/inspected" &&
        "$sluice" inspect "$model" --tensors --json >"$scratch/tensors" &&
        "$sluice" inspect "$model" --experts --json >"$scratch/experts" &&
        "$python" - "$scratch" "$n" <<'PYTHON'
import json, os, sys
read = lambda name: list(map(json.loads, open(os.path.join(sys.argv[1], name))))
(m,), tensors, experts = map(read, ("inspected", "tensors", "experts"))
assert m["kind"] == "checkpoint" and m["tensors"] == len(tensors) == int(sys.argv[2]), m
assert m["disk_bytes"] == sum(t["bytes"] for t in tensors), m
assert m["unused_tensors"] == 0 and m["config"]["unknown_keys"] == "", m
assert len({t["name"] for t in tensors}) == len(tensors)
assert [e["layer"] for e in experts] == [*"012345", "mtp.0"], experts
assert all(e["experts"] == m["config"]["experts_per_layer"] for e in experts), experts
PYTHON
}
check "inspect speaks JSON" inspects_as_json
check "inspect says what does not fit, and that is no failure" bash -c "
    '$sluice' inspect '$model' --ram 9M | grep -q '^does not fit: '"
check "inspect lists the experts" bash -c "
    [ \"\$('$sluice' inspect '$model' --experts | grep -c -v '^#')\" = 7 ]"

# A later generation of checkpoints: the body runs, the unknown MTP blocks are left aside.
"$python" - "$model" "$scratch/later" <<'PYTHON'
import json, os, shutil, struct, sys
shutil.copytree(sys.argv[1], sys.argv[2])
os.chdir(sys.argv[2])
config = json.load(open("config.json"))
config["num_nextn_predict_layers"] = 3
config["compress_ratios"] += [0, 0]
json.dump(config, open("config.json", "w"))
index = json.load(open("model.safetensors.index.json"))
file = index["weight_map"]["mtp.0.e_proj.weight"]
data = open(file, "rb").read()
size, = struct.unpack("<Q", data[:8])
header = data[8:8 + size].replace(b"mtp.0.e_proj", b"mtp.0.main_p").replace(b"mtp.0.h_proj", b"mtp.0.other_")
open(file, "wb").write(data[:8] + header + data[8 + size:])
index["weight_map"] = {k.replace("mtp.0.e_proj", "mtp.0.main_p").replace("mtp.0.h_proj", "mtp.0.other_"): v
                       for k, v in index["weight_map"].items()}
json.dump(index, open("model.safetensors.index.json", "w"))
PYTHON
later() {
    local want got

    want=$(generate -n 20 --temp 0) &&
        got=$("$sluice" generate "$scratch/later" -p "The river rose" -n 20 --temp 0 \
            2>"$scratch/stderr") && [ "$want" = "$got" ] &&
        [ "$(grep -c 'MTP blocks of a kind unknown' "$scratch/stderr")" = 1 ]
}
check "a later checkpoint's MTP blocks are left aside with one line" later
refused "its MTP logits cannot be had" "no MTP block" \
    logits "$scratch/later" --tokens "$scratch/ids" --out "$scratch/logits.npy" --mtp
tap_end
