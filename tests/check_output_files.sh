#!/usr/bin/env bash
# Files that commands write: tried before the work begins, whole or not there, never a file of the
# model or an input, and what was there before survives whatever goes wrong.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
sluice() { timeout 60 "$sluice" "$@"; } # a pipe that nobody writes to must not hold up all tests
python=${PYTHON:-/usr/bin/python3}
model=$scratch/model
"$sluice" synth tests/oracle/configs/tiny-flash.json "$model" --layers 3 >/dev/null || {
    fail "synth makes the model"
    tap_end
}
for i in {1..20}; do echo $((i * 37 % 1024)); done >"$scratch/ids"
printf 'The river rose' >"$scratch/text"
mkdir "$scratch/out"
out=$scratch/out/file

# Each command that writes a file, to $1.
write_logits() { sluice logits "$model" --tokens "$scratch/ids" --out "$@"; }
write_trace() { sluice trace record "$model" -f "$scratch/text" --out "$@"; }
write_stats() { sluice generate "$model" -f "$scratch/text" -n 4 --temp 0 --stats "$@"; }
writers=(write_logits write_trace write_stats)

# Fails with status 1; the last line says why; nothing was begun, and nothing is left behind.
refuses() { # writer path pattern
    local rc before after

    before=$(find "$scratch" | sort)
    $1 "$2" >"$scratch/stdout" 2>"$scratch/stderr"
    rc=$?
    rm -f "$scratch/seen"
    after=$(find "$scratch" ! -name stdout ! -name stderr | sort)
    before=$(grep -v -e '/stdout$' -e '/stderr$' <<<"$before")
    [ "$rc" = 1 ] && [ ! -s "$scratch/stdout" ] && [ "$(wc -l <"$scratch/stderr")" = 1 ] &&
        grep -q -e "$3" "$scratch/stderr" && [ "$before" = "$after" ] && return
    echo "exit status $rc, $(cat "$scratch/stderr" "$scratch/stdout")"
    diff <(echo "$before") <(echo "$after")
    return 1
}

ln -s nowhere "$scratch/dangling"
ln -s "$model/config.json" "$scratch/link"
ln "$model/model.safetensors.index.json" "$scratch/hard"
for writer in "${writers[@]}"; do
    name=${writer#write_}
    check "$name: a folder that is not there" \
        refuses "$writer" "$scratch/none/x" 'none/x: cannot write: No such file or directory'
    check "$name: a folder" refuses "$writer" "$scratch/out" 'out: cannot write: Is a directory'
    check "$name: below a file" refuses "$writer" "$scratch/ids/x" 'cannot write: Not a directory'
    check "$name: an empty name" refuses "$writer" "" 'cannot write: No such file'
    check "$name: a link that leads nowhere" \
        refuses "$writer" "$scratch/dangling" 'dangling: cannot write: No such file'
    check "$name: a file of the model" refuses "$writer" "$model/config.json" 'a file of .*model'
    check "$name: a link to one" refuses "$writer" "$scratch/link" 'a file of .*model'
    check "$name: a second name of one" refuses "$writer" "$scratch/hard" 'a file of .*model'
done
check "logits: its input" refuses write_logits "$scratch/ids" 'ids: read as well'
check "trace: its input" refuses write_trace "$scratch/text" 'text: read as well'
check "stats: its input" refuses write_stats "$scratch/text" 'text: read as well'
from_stdin() { "$sluice" generate "$model" -f - -n 4 --stats "$1" <"$scratch/text"; }
check "stats: standard input" refuses from_stdin "$scratch/text" 'text: read as well'
twice() {
    "$sluice" logits "$model" --tokens "$scratch/ids" --out "$1" --tokens "$scratch/ids" \
        --out "$scratch/out/../out/file"
}
check "two outputs in one file" refuses twice "$out" 'given for two lists'

# What is there is replaced as a whole, keeps its permissions and its links.
replaces() { # writer
    "$1" "$out" >/dev/null 2>&1 && cp "$out" "$scratch/want" && echo "older" >"$out" &&
        chmod 640 "$out" && ln -sf out/file "$scratch/alias" &&
        "$1" "$scratch/alias" >/dev/null 2>&1 && [ -L "$scratch/alias" ] &&
        [ "$(stat -c %a "$out")" = 640 ] && [ "$(wc -c <"$out")" -gt 100 ] &&
        [ "$(find "$scratch/out" -type f | wc -l)" = 1 ]
}
for writer in "${writers[@]}"; do
    check "${writer#write_}: a file is replaced through a link" replaces "$writer"
done
umask 027
rm -f "$out"
check "a new file has the permissions that new files have" \
    bash -c "'$sluice' logits '$model' --tokens '$scratch/ids' --out '$out' &&
        [ \"\$(stat -c %a '$out')\" = 640 ]"
umask 022

# "-", pipes and devices.
write_logits "$out" || fail "logits"
check "logits to standard output" cmp "$out" <(write_logits - 2>/dev/null)
check "logits to /dev/stdout" cmp "$out" <(write_logits /dev/stdout 2>/dev/null)
check "logits of standard input" cmp "$out" \
    <("$sluice" logits "$model" --tokens - --out - <"$scratch/ids")
to_pipe() {
    mkfifo "$scratch/pipe" && { timeout 60 cat "$scratch/pipe" >"$scratch/got" & } &&
        write_logits "$scratch/pipe" && wait $! && cmp "$out" "$scratch/got" && [ -p "$scratch/pipe" ]
}
check "logits to a named pipe" to_pipe
appended() { # what stands in a file before is not lost
    echo "before" >"$scratch/all" && write_stats /dev/stdout >>"$scratch/all" 2>/dev/null &&
        [ "$(head -n 1 "$scratch/all")" = before ] && grep -q '"new_tokens": 4' "$scratch/all" &&
        grep -q '^}$' "$scratch/all"
}
check "stats behind the text" appended
check "trace to standard output and from standard input" bash -c "
    '$sluice' trace record '$model' -f '$scratch/text' --out - 2>/dev/null |
        '$sluice' trace replay - --cache 50% --json >'$scratch/replayed' && grep -q hit_rate '$scratch/replayed'"
check "one step is said to be one" eval "'$sluice' trace record '$model' -p a --out - 2>/dev/null |
    '$sluice' trace summary - | grep ' tokens\? in 1 step; '"
full() { # writer
    $1 /dev/full >/dev/null 2>"$scratch/stderr"
    [ $? = 1 ] && grep -q '/dev/full: cannot write: No space left on device' "$scratch/stderr" &&
        [ -c /dev/full ]
}
for writer in "${writers[@]}"; do
    check "${writer#write_}: a full disk" full "$writer"
done

# A run that fails leaves what was there: an expert of the last layer has a scale that is none.
cp -r "$model" "$scratch/bad"
"$python" tests/oracle/damage.py "$scratch/bad" poke layers.2.ffn.experts.7.w1.scale 100 ff
survives_failure() {
    echo "older" >"$out"
    ! "$sluice" logits "$scratch/bad" --tokens "$scratch/ids" --out "$out" 2>"$scratch/stderr" &&
        grep -q expert "$scratch/stderr" && [ "$(cat "$scratch"/out/*)" = older ]
}
check "a file survives a run that fails" survives_failure
two_survive() {
    echo "older" >"$out"
    ! "$sluice" logits "$model" --tokens "$scratch/ids" --out /dev/full --tokens "$scratch/ids" \
        --out "$out" 2>"$scratch/stderr" && [ "$(cat "$scratch"/out/*)" = older ]
}
check "a file survives where another output is not written" two_survive

# Interrupted: the second output is a pipe that shows when the work is under way.
survives() { # signal
    local pid

    echo "older" >"$out"
    rm -f "$scratch/pipe" && mkfifo "$scratch/pipe"
    for i in {1..5}; do cat "$scratch/ids"; done >"$scratch/more"
    # A shell lets what runs in the background ignore SIGINT.
    env --default-signal=INT "$sluice" logits "$model" --tokens "$scratch/more" --out "$out" --tokens "$scratch/more" \
        --out "$scratch/pipe" --segment 1 2>"$scratch/stderr" &
    pid=$!
    timeout 60 bash -c "{ head -c 1; kill -$1 $pid; cat; } <'$scratch/pipe' >/dev/null"
    wait "$pid"
    [ $? = $((128 + $(kill -l "$1"))) ] && [ "$(cat "$out")" = older ] &&
        if [ "$1" = KILL ]; then rm "$scratch"/out/*.part.*; else
            [ "$(find "$scratch/out" -type f | wc -l)" = 1 ] &&
                grep -q '^sluice: interrupted' "$scratch/stderr"
        fi
}
has_two_files() { [ "$(find "$scratch/out" -type f | wc -l)" = 2 ]; }
# Before the work has begun the signal ends the program at once: here while it waits for a reader.
leaves_nothing() { # signal
    local pid

    echo "older" >"$out"
    env --default-signal=INT "$sluice" logits "$model" --tokens "$scratch/ids" --out "$out" \
        --tokens "$scratch/ids" --out "$scratch/pipe" 2>"$scratch/stderr" &
    pid=$!
    wait_for has_two_files
    kill -"$1" "$pid"
    wait "$pid"
    [ "$?" = $((128 + $(kill -l "$1"))) ] && [ "$(cat "$scratch"/out/*)" = older ]
}
for signal in INT TERM; do
    check "nothing is left by SIG$signal before the work" leaves_nothing $signal
done
for signal in INT TERM HUP KILL; do
    check "a file survives SIG$signal" survives $signal
done
tap_end
