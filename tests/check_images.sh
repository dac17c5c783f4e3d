#!/usr/bin/env bash
# generate --images as a user meets it: the same text with images and without, the second question
# about a document, many prompts in one go, a signal in the middle of a prompt, a folder that
# is full, damaged, taken or of another model; and sluice images. On the small trained model.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
images=$scratch/images
for ((i = 0; i < 36; i++)); do printf 'In the year %d the river rose in the night. ' $((1700 + i)); done >"$scratch/document"
(cat "$scratch/document" && printf 'What rose in the night?') >"$scratch/question-1"
(cat "$scratch/document" && printf 'When did it rise for the last time?') >"$scratch/question-2"

# Log probabilities are told to the last digit, so they stand for the logits.
generate() { # question flags...
    "$sluice" generate tests/small -f "$scratch/question-$1" -n 12 --temp 0.9 --seed 4 --logprobs=3 "${@:2}" 2>"$scratch/stderr"
}
found() { sed -n 's/^images *\([0-9]*\) tokens of prompts found.*/\1/p' "$scratch/stderr"; }
kept() { sed -n 's/^images.*; \([0-9]*\) kept.*/\1/p' "$scratch/stderr"; }

generate 1 >"$scratch/text-1"
n=$(sed -n 's/^prompt *\([0-9]*\) tokens.*/\1/p' "$scratch/stderr")
generate 2 >"$scratch/text-2"
same_text() { # question flags...
    generate "$@" >"$scratch/text" && cmp "$scratch/text" "$scratch/text-$1"
}
first() { same_text 1 --images "$images" && [ "$(found)" = 0 ] && [ "$(kept)" = 2 ]; }
check "the first time, with images" first
again() { same_text 1 --images "$images" && [ "$(found)" = $((n - 1)) ] && [ "$(kept)" = 0 ]; }
check "the same prompt needs one step" again
second() { same_text 2 --images "$images" && [ "$(found)" = 0 ] && [ "$(kept)" = 3 ]; }
check "the second question finds out what it shares" second
third() {
    (cat "$scratch/document" && printf 'Who saw it?') >"$scratch/question-3"
    generate 3 --images "$images" >/dev/null && [ "$(found)" -gt $((n - 20)) ] && [ "$(found)" -lt $((n - 1)) ]
}
check "the third begins there" third
other_resources() {
    same_text 1 --images "$images" --threads 1 --cache min --segment 7 && [ "$(found)" = $((n - 1)) ]
}
check "with other resources" other_resources
with_the_draft() {
    same_text 1 --images "$images" --draft 2 && [ "$(found)" = $((n - 1)) ] &&
        same_text 1 --images "$scratch/drafted" --draft 2 && [ "$(found)" = 0 ] &&
        same_text 1 --images "$scratch/drafted" && [ "$(found)" = $((n - 1)) ]
}
check "with the draft, and without it again" with_the_draft
many() {
    "$python" - "$scratch" <<'PYTHON'
import json, sys
with open(sys.argv[1] + "/prompts", "w") as out:
    for i in (1, 1):
        print(json.dumps(open(f"{sys.argv[1]}/question-{i}").read()), file=out)
PYTHON
    "$sluice" generate tests/small --jsonl "$scratch/prompts" -n 12 --temp 0.9 \
        >"$scratch/plain" 2>/dev/null &&
        "$sluice" generate tests/small --jsonl "$scratch/prompts" -n 12 --temp 0.9 \
            --images "$scratch/many" --stats "$scratch/stats" >"$scratch/text" 2>/dev/null &&
        cmp "$scratch/text" "$scratch/plain" &&
        "$python" -c 'import json, sys
s = json.load(open(sys.argv[1]))
assert s["resumed_tokens"] == int(sys.argv[2]) - 1, s
print(s["resumed_tokens"], "tokens found")' "$scratch/stats" "$n"
}
check "a prompt that comes again in the same run" many

# ---- interrupted ---------------------------------------------------------------------------------

for i in 1 2 3 4 5; do cat "$scratch/document"; done >"$scratch/question-9"
generate 9 >"$scratch/text-9"
# Short steps, so that some are done soon; a signal comes when the prompt is being taken in.
interrupted() {
    timeout 60 "$python" tests/on_terminal.py --signal SIGTERM --when 'prompt: [1-9][0-9][0-9]' \
        "$sluice" generate tests/small -f "$scratch/question-9" -n 12 --temp 0.9 --seed 4 \
        --logprobs=3 --segment 32 --images "$scratch/cut" >"$scratch/run.json" &&
        "$python" -c 'import json, sys
run = json.load(open(sys.argv[1]))
open(sys.argv[2], "w").write(run["terminal"])
assert run["status"] == -15, run' "$scratch/run.json" "$scratch/stderr"
}
goes_on() { same_text 9 --images "$scratch/cut" && [ "$(found)" -gt 0 ] && echo "from token $(found)"; }
check "a signal in the middle of a prompt" interrupted
check "... says how to go on" grep -q 'prompt: [0-9]* of [0-9]* tokens are done and kept; the same command' "$scratch/stderr"
check "... which goes on from there" goes_on
check "nothing unfinished is left" bash -c "! compgen -G '$scratch/cut/*.new'"

# Killed again and again at random moments, whatever it is doing, until one run comes to its end.
killed() {
    local run ms last=0 rc

    for run in $(seq 40); do
        "$sluice" generate tests/small -f "$scratch/question-9" -n 12 --temp 0.9 --seed 4 \
            --logprobs=3 --images "$scratch/killed" --images-every 128 --segment 64 \
            >"$scratch/text" 2>"$scratch/stderr" &
        ms=$((600 + RANDOM % 1400))
        sleep "$((ms / 1000)).$(printf %03d $((ms % 1000)))"
        kill -9 $! 2>/dev/null
        wait $! 2>/dev/null
        rc=$?
        [ "$rc" = 0 ] && break
        [ "$rc" = 137 ] || return 1
    done
    cmp "$scratch/text" "$scratch/text-9" || return 1
    "$sluice" images verify "$scratch/killed" >/dev/null || return 1
    same_text 9 --images "$scratch/killed" || return 1
    last=$(found)
    [ "$last" -gt 0 ] && echo "killed $((run - 1)) times; then from token $last"
}
check "kill -9 at random moments" killed

# ---- folders -------------------------------------------------------------------------------------

modes() { [ "$(stat -c %a "$images" "$images"/*.image | sort -u | tr '\n' ' ')" = "600 700 " ]; }
check "only the owner can read them" modes
taken() {
    local rc

    exec 9<"$images" && flock -n 9 && { generate 1 --images "$images" >/dev/null; rc=$?; }
    exec 9<&-
    [ "$rc" = 1 ] && tail -n 1 "$scratch/stderr" | grep 'another process uses these images'
}
check "a folder that another process has" taken
lists() {
    "$sluice" images list "$images" >"$scratch/list" &&
        "$sluice" images list "$images" --json | "$python" -c 'import json, sys
images = [json.loads(line) for line in sys.stdin]
assert len({i["model"] for i in images}) == 1
assert all(i["first_token"] < i["end_token"] and i["resumable"] for i in images), images
print(len(images), "images")'
}
check "images list" lists
check "images verify" "$sluice" images verify "$images"
damaged() {
    local file rc

    file=$(sed -n "s|^\([0-9a-f]*\)  [0-9a-f]* *0 \.\. *$((n - 1)) .*|$images/\1.image|p" "$scratch/list")
    printf 'x' | dd of="$file" bs=1 seek=9000 conv=notrunc status=none
    "$sluice" images verify "$images" >"$scratch/stdout" 2>"$scratch/stderr"
    rc=$?
    [ "$rc" = 1 ] && grep -q "^faulty: $file: damaged" "$scratch/stdout" &&
        same_text 1 --images "$images" && grep 'note: .* damaged: .*; it is dropped' "$scratch/stderr" &&
        "$sluice" images verify "$images" >/dev/null
}
check "a damaged image is told, dropped and computed again" damaged
limit() {
    same_text 1 --images "$scratch/small" --images-max 600K &&
        [ "$(du -sb --apparent-size "$scratch/small" | cut -f1)" -lt $((600 * 1024 + 4096)) ] &&
        compgen -G "$scratch/small/*.image" >/dev/null &&
        same_text 1 --images "$scratch/smaller" --images-max 300K &&
        grep 'note: .*no room for an image' "$scratch/stderr"
}
check "--images-max is kept, and the text is the same" limit
prunes() {
    local bytes

    "$sluice" images prune "$images" --images-max 1M &&
        bytes=$(cat "$images"/*.image | wc -c) && [ "$bytes" -gt 0 ] && [ "$bytes" -le 1048576 ] &&
        "$sluice" images prune "$images" --all && ! compgen -G "$images/*.image"
}
check "images prune" prunes
nowhere() {
    local rc

    generate 1 --images "$scratch/document" >/dev/null
    rc=$?
    [ "$rc" = 1 ] && tail -n 1 "$scratch/stderr" | grep "$scratch/document: .*: Not a directory"
}
check "a folder that is a file" nowhere

# A file system with no room for an image.
full() {
    mkdir -p "$scratch/full" && mount -t tmpfs -o size=64k tmpfs "$scratch/full" || return
    same_text 1 --images "$scratch/full/images"
    local rc=$?
    grep 'note: .*No space left.*not kept' "$scratch/stderr" || rc=1
    compgen -G "$scratch/full/images/*.new" && rc=1
    umount "$scratch/full"
    return "$rc"
}
if mount -t tmpfs -o size=64k tmpfs "$images" 2>/dev/null && umount "$images"; then
    check "a full disk: a line, and the text is the same" full
else
    skip "a full disk" "mounting needs root"
fi
tap_end
