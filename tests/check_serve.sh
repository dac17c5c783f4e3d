#!/usr/bin/env bash
# sluice serve on the trained small model, as httpx and bare sockets see it: texts are what
# `sluice generate` makes, in any company; conversations go on; bad requests, slow and absent readers
# and strangers harm nobody; a signal lets what is under way end; what was killed starts again.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
socket=$scratch/socket
daemon=

serve() { # option...: in the background; waits until it is ready
    "$sluice" serve tests/small --socket "$socket" --ram 2G --no-hot-list "$@" \
        >/dev/null 2>"$scratch/log" &
    daemon=$!
    wait_for ready_or_ended && kill -0 "$daemon" 2>/dev/null
}
ready_or_ended() {
    curl -sf --unix-socket "$socket" http://localhost/health || ! kill -0 "$daemon"
}
# Like check, in this shell, for what starts and ends servers. What a failed one leaves running would
# be in the way of the next.
try() { # name command...
    if "${@:2}" >"$scratch/out" 2>&1; then
        ok "$1" "$(tail -n 1 "$scratch/out")"
    else
        fail "$1" "$(tail -n 3 "$scratch/out" "$scratch/log")"
        kill -9 "$daemon" 2>/dev/null && wait "$daemon"
    fi
}
ask() { curl -s --unix-socket "$socket" -H Content-Type:application/json "$@"; }
# In the background, as $client; waits until its first tokens have come.
begin_stream() { # JSON curl-option...: what is asked beside the stream
    rm -f "$scratch/stream" # that of an earlier one must not be taken for this one's
    ask -N "${@:2}" http://localhost/v1/completions -d "{\"stream\": true, $1}" >"$scratch/stream" &
    client=$!
    wait_for grep data: "$scratch/stream"
}

if ! "$python" -c 'import httpx' 2>/dev/null; then
    skip "sluice serve" "python3-httpx is not installed"
    tap_end
fi

port=$("$python" -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
echo "a key of its own" >"$scratch/key"
serve --draft 2 --listen "127.0.0.1:$port" --api-key-file "$scratch/key" --context 4096 --max-body 2M \
    --body-time 2 --parallel 16 --grace 60
timeout 240 "$python" tests/serve_requests.py "$socket" "$sluice" tests/small "$port" \
    "a key of its own" >"$scratch/tests" 2>&1 || echo "not ok the script: $(tail -n 1 "$scratch/tests")" >>"$scratch/tests"
while read -r line; do
    case $line in
    "ok "*) ok "${line#ok }" ;;
    "not ok "*) fail "${line#not ok }" ;;
    *) echo "# $line" ;;
    esac
done <"$scratch/tests"

in_use() {
    ! "$sluice" serve tests/small --socket "$socket" 2>"$scratch/stderr" &&
        grep -q 'another server listens there' "$scratch/stderr"
}
try "a socket in use is refused" in_use

# What is under way when SIGTERM comes is finished, and nothing new is taken.
ends_well() {
    local client

    begin_stream '"prompt": "The river rose in the", "max_tokens": 100, "temperature": 0' || return
    kill "$daemon"
    wait "$client"
    [ "$(grep -c '^data: ' "$scratch/stream")" -gt 50 ] && grep -q '\[DONE\]' "$scratch/stream" &&
        wait "$daemon" && [ ! -e "$socket" ] && ! grep -q 'a key of its own' "$scratch/log"
}
try "SIGTERM lets a stream end, and leaves no socket" ends_well

# Whom the grace cuts off is told so, also one who has not read yet what came before. Of so many texts
# some do not end by themselves before.
cuts_off() {
    local client

    serve --context 4096 --grace 1 &&
        begin_stream '"prompt": "She said", "max_tokens": 3900, "logprobs": 20, "n": 16' --limit-rate 800K ||
        return
    kill "$daemon"
    wait "$client" && grep -q 'shutting down' "$scratch/stream" && wait "$daemon"
}
try "a slow reader gets all that was made before the grace was over" cuts_off

# One that ends makes room for the next at once, and leaves its socket alone.
takes_over() {
    local first client

    serve --context 4096 --grace 1 && begin_stream '"prompt": "She said", "max_tokens": 4000' || return
    first=$daemon
    kill "$first"
    wait_for [ ! -e "$socket" ] # it may not have seen the signal yet
    serve && wait "$first" && wait "$client" && ask http://localhost/health | grep -q ok &&
        kill "$daemon" && wait "$daemon" && [ ! -e "$socket" ]
}
try "another server takes the place of one that ends" takes_over

# A full disk costs the trace, and who reads the log may go: neither costs an answer.
without_trace_and_log() {
    "$sluice" serve tests/small --socket "$socket" --ram 2G --no-hot-list --trace /dev/full \
        >/dev/null 2> >(grep -m 1 'trace cannot be written: No space' >"$scratch/log") &
    daemon=$!
    wait_for ready_or_ended && kill -0 "$daemon" || return
    for i in 1 2 3; do
        ask http://localhost/v1/completions -d '{"prompt": "a", "max_tokens": 1}' |
            grep -q '"finish_reason":"length"' || return
    done
    kill "$daemon"
    wait "$daemon" && wait_for [ -s "$scratch/log" ]
}
try "a trace on a full disk, a log that nobody reads" without_trace_and_log

# A server that was killed leaves its socket behind; the next one replaces it. Its KV caches have
# room for one long text: others wait or are told.
starts_again() {
    local text

    serve --kv 1300K --context 2048 --queue 2 || return
    kill -9 "$daemon"
    wait "$daemon" 2>/dev/null
    [ -S "$socket" ] && serve --kv 1300K --context 2048 --queue 2 --profile v4-preview || return
    text=$(ask http://localhost/v1/completions -d '{"prompt": "She said", "seed": 8, "max_tokens": 9}' |
        "$python" -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["text"])')
    [ "$text" = "$("$sluice" generate tests/small -p "She said" --seed 8 -n 9 2>/dev/null)" ]
}
try "after kill -9 the socket is replaced, and the text is the same" starts_again

crowded() {
    local i clients=()

    for i in $(seq 30); do
        ask -o "$scratch/crowd$i" -w '%{http_code} %header{retry-after}\n' \
            http://localhost/v1/completions -d "{\"prompt\": \"$i\", \"max_tokens\": 60, \"seed\": $i}" \
            >"$scratch/code$i" &
        clients+=($!)
    done
    wait "${clients[@]}"
    cat "$scratch"/code* | sort | uniq -c >"$scratch/codes"
    grep -q ' 200 ' "$scratch/codes" && grep -q ' 429 5' "$scratch/codes" &&
        [ "$(grep -vcE ' (200|429|503) ' "$scratch/codes")" = 0 ] &&
        ask http://localhost/status | "$python" -c '
import json, sys
s = json.load(sys.stdin)["serving"]
assert s["texts_running"] == s["texts_waiting"] == 0, s
print(s["requests_finished"], "answered,", s["requests_refused"], "refused,",
      s["requests_failed"], "without memory")'
}
try "a full queue, and full KV caches" crowded
kill "$daemon"
wait "$daemon"

serve --listen 0.0.0.0:0
outside=$(tail -n 1 "$scratch/log")
if [[ $outside == *--api-key-file* ]]; then
    ok "an address that others reach needs a key"
else
    fail "an address that others reach needs a key" "$outside"
fi
tap_end
