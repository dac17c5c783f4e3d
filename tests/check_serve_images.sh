#!/usr/bin/env bash
# sluice serve --images as a user meets it: a turn after a restart, a prompt in whose middle the
# server was killed, conversations that memory does not hold, a folder that another server has or
# that is full. Texts are what `sluice generate` makes; what had been seen is not computed again.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
images=$scratch/images
daemon=

serve() { # SOCKET option...: in the background; waits until it is ready
    "$sluice" serve tests/small --socket "$scratch/$1" --ram 2G --no-hot-list --context 4096 "${@:2}" \
        >/dev/null 2>"$scratch/log-$1" &
    daemon=$!
    wait_for ready_or_ended "$1" && kill -0 "$daemon"
}
ready_or_ended() { # SOCKET
    curl -sf --unix-socket "$scratch/$1" http://localhost/health || ! kill -0 "$daemon"
}
ends() {
    kill "$daemon" && wait "$daemon"
}
# Like check, in this shell, for what starts and ends servers.
try() { # name command...
    if "${@:2}" >"$scratch/out" 2>&1; then
        ok "$1" "$(tail -n 1 "$scratch/out")"
    else
        fail "$1" "$(tail -n 3 "$scratch/out" "$scratch"/log-*)"
    fi
}
ask() { # SOCKET PROMPT-FILE: the text, in $scratch/text; prints the tokens that were known
    "$python" -c 'import json, sys
print(json.dumps({"prompt": open(sys.argv[1]).read(), "max_tokens": 12, "seed": 4}))' "$2" |
        curl -s --unix-socket "$scratch/$1" -H Content-Type:application/json -d @- \
            http://localhost/v1/completions >"$scratch/reply"
    "$python" -c 'import json, sys
reply = json.load(open(sys.argv[1]))
open(sys.argv[2], "w").write(reply["choices"][0]["text"])
print(reply["usage"]["prompt_tokens_details"]["cached_tokens"])' "$scratch/reply" "$scratch/text"
}
expected() { # PROMPT-FILE
    "$sluice" generate tests/small -f "$1" -n 12 --seed 4 2>/dev/null >"$scratch/expected"
    truncate -s -1 "$scratch/expected" # its last line's end
}
is_expected() { # PROMPT-FILE
    expected "$1" && cmp "$scratch/text" "$scratch/expected"
}
metric() { # SOCKET NAME
    curl -s --unix-socket "$scratch/$1" http://localhost/metrics | sed -n "s/^sluice_$2 //p"
}

for ((i = 0; i < 20; i++)); do printf 'In the year %d the river rose in the night. ' $((1700 + i)); done >"$scratch/one"

next_turn() {
    local n

    serve a --images "$images" && [ "$(ask a "$scratch/one")" = 0 ] && is_expected "$scratch/one" &&
        ends || return
    cat "$scratch/one" "$scratch/text" >"$scratch/two"
    echo ' And then?' >>"$scratch/two"
    serve a --images "$images" && n=$(ask a "$scratch/two") && [ "$n" -ge 300 ] &&
        is_expected "$scratch/two" && [ "$(metric a prompt_tokens_resumed_total)" = "$n" ] &&
        [ "$(stat -c %a "$images" "$images"/*.image | sort -u | tr '\n' ' ')" = "600 700 " ] &&
        echo "$n tokens"
}
try "the next turn after a restart" next_turn

# The folder is a's.
taken() {
    local first=$daemon n rc=1

    serve b --images "$images" && n=$(ask b "$scratch/two") && [ "$n" = 0 ] &&
        is_expected "$scratch/two" && grep 'another process uses these images' "$scratch/log-b" &&
        ends && rc=0
    daemon=$first
    return "$rc"
}
try "a folder that another server has: a note, and none are kept" taken
ends

has_images() { [ "$(metric a images_saved_total)" -ge "$1" ]; }
# After each 128 tokens of the prompt there is an image: killed behind the third, it goes on there.
killed() {
    local client n

    for i in 1 2 3; do cat "$scratch/one"; done >"$scratch/long"
    serve a --images "$scratch/killed" --images-every 128 --segment 64 --small-step 64 || return
    ask a "$scratch/long" >/dev/null 2>&1 &
    client=$!
    wait_for has_images 3 || return
    kill -9 "$daemon"
    wait "$daemon" "$client" 2>/dev/null
    serve a --images "$scratch/killed" && n=$(ask a "$scratch/long") && [ "$n" -ge 384 ] &&
        is_expected "$scratch/long" && ends && "$sluice" images verify "$scratch/killed" >/dev/null &&
        echo "from token $n"
}
try "kill -9 in the middle of a prompt" killed

# Memory for two of eight: the others' turns are on disk when they come.
crowded() {
    local i n least=9999

    serve a --images "$scratch/crowd" --kv 4M --parallel 2 || return
    for i in 1 2 3 4 5 6 7 8; do
        echo "Number $i. $(cat "$scratch/one")" >"$scratch/crowd-$i"
        [ "$(ask a "$scratch/crowd-$i")" -lt 64 ] || return
    done
    for i in 1 2 3 4 5 6 7 8; do
        echo 'And then?' >>"$scratch/crowd-$i"
        n=$(ask a "$scratch/crowd-$i") && is_expected "$scratch/crowd-$i" || return
        least=$((n < least ? n : least))
    done
    n=$(metric a sessions_resumed_total)
    ends && [ "$least" -gt 250 ] && [ "$n" -ge 4 ] && echo "$n woke up, at least $least tokens known"
}
try "eight conversations, and memory for two" crowded

full() {
    local rc=1

    mkdir -p "$scratch/full" && mount -t tmpfs -o size=64k tmpfs "$scratch/full" || return
    serve a --images "$scratch/full/images" && ask a "$scratch/two" >/dev/null &&
        is_expected "$scratch/two" && ends && [ "$(grep -c 'not kept' "$scratch/log-a")" = 1 ] && rc=0
    umount "$scratch/full"
    return "$rc"
}
if mount -t tmpfs -o size=64k tmpfs "$images" 2>/dev/null && umount "$images"; then
    try "a full disk: one line, and the text is the same" full
else
    skip "a full disk" "mounting needs root"
fi
tap_end
