#!/usr/bin/env bash
# sluice generate: why a text ends, stop strings, log probabilities against the logits command, many
# prompts in one go against one by one, and what --stats says. On the small trained model.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
prompt="The river rose in the"

generate() { "$sluice" generate tests/small -p "$prompt" "$@" 2>"$scratch/stderr"; }
ended() { grep -q "^text .*, $1\$" "$scratch/stderr"; }

greedy=$(generate -n 60 --temp 0)
check "-n is why it ended" ended 'stopped at -n 60'

# Guesses of the model's draft change nothing but the number of steps.
drafts_change_nothing() {
    local how depth

    for how in "--temp 0.7 --top-k 20 --seed 3 --logprobs=3" "--top-p 0.8 --min-p 0.05" \
        "--temp 0 --stop ${greedy:20:4}" "-n -1 --context 80 --temp 0"; do
        # shellcheck disable=SC2086 # several options
        generate -n 60 $how >"$scratch/without" || return
        for depth in 1 3 auto; do
            # shellcheck disable=SC2086
            generate -n 60 $how --draft "$depth" --stats "$scratch/stats" >"$scratch/with" &&
                cmp "$scratch/without" "$scratch/with" || return
        done
    done
}
check "--draft makes the same texts" drafts_change_nothing
drafts_are_right() {
    generate -n 100 --temp 0 --draft 2 --stats "$scratch/stats" >/dev/null &&
        grep -q '^drafts .* checked in .* steps, .* right: [0-9.]* tokens a step' "$scratch/stderr" &&
        "$python" - "$scratch/stats" <<'PYTHON'
import json, sys
stats = json.load(open(sys.argv[1]))
assert stats["new_tokens"] == 100
assert 10 < stats["drafts_right"] < stats["drafts"] <= 2 * stats["verifications"], stats
PYTHON
}
check "... in fewer steps" drafts_are_right
drafts_off() {
    generate -n 30 --temp 0 --draft off >/dev/null && ! grep -q '^drafts' "$scratch/stderr"
}
check "--draft off checks none" drafts_off
drafts_and_images() {
    generate -n 40 --temp 0 --draft 2 --images "$scratch/images" >"$scratch/first" &&
        generate -n 60 --temp 0 --draft 2 --images "$scratch/images" >"$scratch/again" &&
        grep -q '^images .* loaded' "$scratch/stderr" && [ "$(cat "$scratch/again")" = "$greedy" ] &&
        [[ $greedy == "$(cat "$scratch/first")"* ]]
}
check "... and goes on from images" drafts_and_images
no_such_depth() {
    ! generate -n 1 --draft 6 && grep -q -- '--draft' "$scratch/stderr"
}
check "--draft refuses what it does not know" no_such_depth

# A stop string from the middle of the text, which begins and ends inside tokens; and one that comes
# later in vain.
stops_before() {
    local middle=${greedy:20:9} text

    text=$(generate -n 60 --temp 0 --stop "never there" --stop "$middle" --stop "${greedy:35:20}")
    [ "$text" = "${greedy%%"$middle"*}" ] && ended "stopped at --stop \"$middle\""
}
check "--stop ends the text before it" stops_before
almost() { # what only looks like a stop string is there in the end
    [ "$(generate -n 60 --temp 0 --stop "${greedy: -4}#")" = "$greedy" ]
}
check "nothing is lost to a stop string that does not come" almost
context() {
    [ "$(generate -n -1 --context 30 --temp 0 --json |
        "$python" -c 'import json, sys
o = json.loads(sys.stdin.read())
print(o["stop"], o["prompt_tokens"] + o["tokens"])')" = "context 30" ] &&
        ended 'stopped at --context 30'
}
check "-n -1 goes on to the end of the context" context

# A model whose end-of-sentence token is one that it chooses soon.
end_of_text() {
    local id

    id=$(generate -n 8 --temp 0 --logprobs | cut -f 2 | tail -n 1)
    cp -r tests/small "$scratch/ends" &&
        sed -i "s/\"eos_token_id\": *[0-9]*/\"eos_token_id\": $id/" "$scratch/ends/config.json" &&
        "$sluice" generate "$scratch/ends" -p "$prompt" -n -1 --temp 0 --context 4000 \
            >"$scratch/text" 2>"$scratch/stderr" && ended 'to the end of text' &&
        [[ $greedy == "$(cat "$scratch/text")"* ]]
}
check "the model's end-of-sentence token ends it" end_of_text

logprobs() {
    generate -n 20 --seed 5 --logprobs=3 >"$scratch/lines" &&
        generate -n 20 --seed 5 --json --logprobs=3 >"$scratch/object" &&
        [ "$(generate -n 20 --seed 5 --json | "$python" -c '
import json, sys
print(json.loads(sys.stdin.read())["text"])')" = "$(generate -n 20 --seed 5)" ] &&
        { "$sluice" tokenize tests/small -p "$prompt" | sed 's/^/0 /' && cut -f 2 "$scratch/lines"; } \
            >"$scratch/ids" &&
        "$sluice" logits tests/small --tokens "$scratch/ids" --out "$scratch/logits.npy" &&
        "$python" - "$scratch" <<'PYTHON'
import json, sys
import numpy as np
folder = sys.argv[1]
lines = [line.rstrip("\n").split("\t") for line in open(folder + "/lines")]
made = json.load(open(folder + "/object"))
ids = [int(i) for i in open(folder + "/ids").read().split()]
logits = np.load(folder + "/logits.npy").astype(np.float64)
first = len(ids) - len(lines)
assert len(lines) == 20 and made["tokens"] == 20 and first == made["prompt_tokens"]
for i, (line, token) in enumerate(zip(lines, made["logprobs"])):
    row = logits[first + i - 1]
    logprob = row - row.max() - np.log(np.exp(row - row.max()).sum())
    best = sorted(range(len(row)), key=lambda id: (-row[id], id))[:3]
    assert token["id"] == ids[first + i] == int(line[1])
    assert abs(token["logprob"] - logprob[token["id"]]) < 1e-9
    assert [t["id"] for t in token["top"]] == best == [int(line[k]) for k in (4, 7, 10)]
    for t, k in zip([token] + token["top"], (0, 3, 6, 9)):
        assert abs(t["logprob"] - logprob[t["id"]]) < 1e-9
        assert abs(t["logprob"] - float(line[k])) < 1e-5 and t["token"] == json.loads(line[k + 2])
assert "".join(token["token"] for token in made["logprobs"]) == made["text"]
PYTHON
}
check "log probabilities are those of the logits" logprobs

# A draw depends on seed and position: a text that is cut and gone on with ends the same. (Where it
# is cut, the tokens of the beginning must be those that were made.)
goes_on() {
    local k text n_same=0
    local -a ids

    generate -n 12 --seed 9 --logprobs >"$scratch/lines" || return
    mapfile -t ids < <(cut -f 2 "$scratch/lines")
    text=$(generate -n 12 --seed 9)
    for k in {1..11}; do
        generate -n "$k" --seed 9 >"$scratch/text"
        printf '%s' "$prompt$(cat "$scratch/text")" >"$scratch/begun"
        [[ "$("$sluice" tokenize tests/small -f "$scratch/begun" 2>/dev/null)" == \
        *" ${ids[*]:0:$k}" ]] || continue
        [ "$(cat "$scratch/text")$("$sluice" generate tests/small -f "$scratch/begun" --seed 9 \
            -n $((12 - k)) 2>/dev/null)" = "$text" ] || return
        n_same=$((n_same + 1))
    done
    [ "$n_same" -ge 3 ]
}
check "a text that is cut goes on as it would have" goes_on

many() {
    printf '%s\n' '"The river rose"' '{"text": "Once upon a time", "id": 7}' \
        '{"prompt": "The river rose"}' >"$scratch/prompts"
    "$sluice" generate tests/small --jsonl "$scratch/prompts" -n 12 --seed 40 --stop 'e ' \
        --stats "$scratch/stats" >"$scratch/out" 2>"$scratch/stderr" || return
    for i in 0 1 2; do
        "$sluice" generate tests/small -p "$([ "$i" = 1 ] && echo "Once upon a time" ||
            echo "The river rose")" -n 12 --seed $((40 + i)) --stop 'e ' --json 2>/dev/null
    done >"$scratch/want"
    cmp "$scratch/want" "$scratch/out" && [ "$(wc -l <"$scratch/out")" = 3 ] &&
        grep -q '^text .* in 3 texts' "$scratch/stderr"
}
check "--jsonl makes what one by one makes" many
check "... in one go" grep -q '"texts": 3' "$scratch/stats"
bad_line() {
    printf '%s\n' '"The river rose"' '{"words": "a"}' >"$scratch/prompts"
    ! "$sluice" generate tests/small --jsonl "$scratch/prompts" >"$scratch/out" \
        2>"$scratch/stderr" && [ ! -s "$scratch/out" ] &&
        grep -q 'prompts: line 2: expected a JSON string, or an object whose "text" or "prompt" is one' "$scratch/stderr"
}
check "a bad line is told before anything is made" bad_line

stats() {
    generate -n 9 --seed 3 --temp 0.5 --stop '#' --stats "$scratch/stats" >/dev/null &&
        "$python" - "$scratch/stats" "$(cat VERSION)" "$prompt" <<'PYTHON'
import json, sys
s = json.load(open(sys.argv[1]))
assert s["version"] == sys.argv[2] and s["model"] == "tests/small" and s["seed"] == 3, s
assert s["arguments"][:5] == ["tests/small", "-p", sys.argv[3], "-n", "9"], s
assert s["options"]["temperature"] == 0.5 and s["options"]["stop"] == ["#"], s
assert s["interrupted"] is False and s["stop"] == "length" and s["texts"] == 1, s
rate = (s["new_tokens"] - 1) / s["decode_seconds"]
assert abs(s["decode_tokens_per_second"] / rate - 1) < 1e-9, s
rate = s["prompt_tokens"] / s["prefill_seconds"]
assert abs(s["prefill_tokens_per_second"] / rate - 1) < 1e-9, s
PYTHON
}
check "--stats says what was run, and how fast" stats

interrupted() { # the text so far, and a stop for the reason
    for _ in {1..9000}; do printf 'the river rose in the night. '; done >"$scratch/text"
    timeout 60 "$python" tests/on_terminal.py --signal SIGINT --when 'prompt: ' "$sluice" generate \
        tests/small -f "$scratch/text" --json --segment 16 --stats "$scratch/stats" \
        >"$scratch/seen" &&
        "$python" - "$scratch/seen" "$scratch/stats" <<'PYTHON'
import json, sys
seen, stats = (json.load(open(path)) for path in sys.argv[1:])
assert seen["status"] == -2 and ", interrupted" in seen["terminal"], seen
assert json.loads(seen["stdout"])["stop"] == "interrupted", seen
assert stats["interrupted"] is True and stats["stop"] == "interrupted", stats
PYTHON
}
check "Ctrl-C leaves the figures in --stats too" interrupted

misuse() { # pattern arguments...
    local pattern=$1

    shift
    "$sluice" generate tests/small "$@" >/dev/null 2>"$scratch/stderr"
    [ "$?" = 2 ] && grep -q -e "$pattern" "$scratch/stderr"
}
check "-n 0 is misuse" misuse '-n, besides -1, takes a whole number' -p a -n 0
check "-n -2 is misuse" misuse '-n, besides -1, takes a whole number' -p a -n -2
check "--stop '' is misuse" misuse '--stop: a stop string is empty' -p a --stop ''
check "--logprobs=21 is misuse" misuse '--logprobs takes a whole number from 1 to 20' -p a \
    --logprobs=21
check "two sources are misuse" misuse 'or many with --jsonl' -p a --jsonl b
tap_end
