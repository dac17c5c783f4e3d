#!/usr/bin/env bash
# The command line: help and version everywhere, misuse with status 2 and one line that says so and
# what to do, failures with status 1, and output that cannot be written told by its reason.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
model=$scratch/model
"$sluice" synth tests/oracle/configs/tiny-flash.json "$model" >/dev/null || {
    fail "synth makes the model"
    tap_end
}
printf '5 6 7 8\n' >"$scratch/ids"

mapfile -t commands < <("$sluice" --help | sed -n 's/^  \([a-z-]*\) .*/\1/p')
kinds=("bench decode" "bench io" "bench kernels" "bench prefill" "images list"
    "images prune" "images verify" "trace record" "trace replay"
    "trace summary")

check "--help lists the commands" [ ${#commands[@]} -ge 11 ]
every_command_helps() {
    local name text command

    for name in "${commands[@]}" "${kinds[@]}"; do
        read -ra command <<<"$name" # a command and its kind are two words
        text=$("$sluice" "${command[@]}" --help) &&
            [[ $text == "Usage: sluice $name"* ]] &&
            [ "$text" = "$("$sluice" "${command[@]}" -h)" ] &&
            [ "$text" = "$("$sluice" help "${command[@]}")" ] && continue
        echo "$name"
        return 1
    done
}
check "each command has --help, -h and help COMMAND" every_command_helps
version="sluice $(cat VERSION)"
check "--version is the file VERSION" [ "$("$sluice" --version)" = "$version" ]
check "so is -V" [ "$("$sluice" -V)" = "$version" ]
check "a command has it too" [ "$("$sluice" generate -V)" = "$version" ]

# Misuse ends with status 2 and few lines, of which one matches; nothing goes to standard output.
misuse() { # name pattern arguments...
    local name=$1 pattern=$2 rc

    shift 2
    "$sluice" "$@" >"$scratch/stdout" 2>"$scratch/stderr"
    rc=$?
    if [ $rc = 2 ] && grep -q -e "$pattern" "$scratch/stderr" && [ ! -s "$scratch/stdout" ] &&
        [ "$(wc -l <"$scratch/stderr")" -le 3 ]; then
        ok "$name" "$(head -n 1 "$scratch/stderr")"
    else
        fail "$name" "exit status $rc, $(cat "$scratch/stderr")"
    fi
}
misuse "an unknown command" 'no command "frobnicate"' frobnicate
misuse "help for an unknown command" 'no command' help frobnicate
misuse "an unknown kind" 'no kind "frobnicate"' bench frobnicate
misuse "a text without -p" 'give the text with -p' generate "$model" "Once upon a time"
misuse "a second model" 'one MODEL, not "b"' logits a b --tokens x --out y
misuse "an option of the sampler out of range" '--top-p takes a number' \
    generate "$model" -p a --top-p 2
for text in 0x10 -1 ' 1' inf nan 1e30 5X ''; do
    misuse "--ram '$text'" '--ram takes a size such as' generate "$model" -p a --ram "$text"
    misuse "--temp '$text'" '--temp takes a number' generate "$model" -p a --temp "$text"
    misuse "--skew '$text'" '--skew takes a number' synth a b --skew "$text"
    misuse "--ssd '$text'" '--ssd takes bytes' plan a --ssd "$text" --dram 1G
done
for text in 0x10 -1 +1 1.5 '' 18446744073709551616; do
    misuse "--seed '$text'" '--seed takes a whole number' generate "$model" -p a --seed "$text"
    misuse "--threads '$text'" '--threads takes a whole number' \
        logits "$model" --tokens x --out y --threads "$text"
done
misuse "a size of zero" '--batch takes a size' pack a b --batch 0
misuse "a word that an option does not know" '--verify takes first, always or never, not "some"' \
    generate "$model" -p a --verify some
misuse "another one" '--curve takes flash or even, not "round"' plan a --curve round
misuse "a share that is none" '--cache takes sizes' trace replay x --cache 0%
misuse "a share beyond all" '--cache takes sizes' trace replay x --cache 101%
misuse "no batch to forget" 'batch forget: ID or --older is missing' batch forget
misuse "two batches at once" 'batch results: one ID, not "b" as well' batch results a b
misuse "an unknown policy" '--policy takes some of' trace replay x --policy best
no_command() {
    "$sluice" 2>"$scratch/stderr"
    [ "$?" = 2 ] && grep -q generate "$scratch/stderr"
}
check "no command is misuse, told with the list" no_command

# What fails for another reason than the command line has status 1 and one line.
fails() { # name pattern arguments...
    local name=$1 pattern=$2 rc

    shift 2
    "$sluice" "$@" >/dev/null 2>"$scratch/stderr"
    rc=$?
    if [ $rc = 1 ] && [ "$(wc -l <"$scratch/stderr")" = 1 ] &&
        grep -q -e "$pattern" "$scratch/stderr"; then
        ok "$name" "$(cat "$scratch/stderr")"
    else
        fail "$name" "exit status $rc, $(cat "$scratch/stderr")"
    fi
}
fails "a trace that is not there" 'none: cannot open: No such file' trace replay "$scratch/none"
fails "a model that is not there" 'there is no such folder' inspect "$scratch/none"

# What was printed must have been written.
full() { # arguments...
    local rc

    "$sluice" "$@" >/dev/full 2>"$scratch/stderr"
    rc=$?
    [ "$rc" = 1 ] && [ "$(wc -l <"$scratch/stderr")" = 1 ] &&
        grep -q 'No space left on device' "$scratch/stderr" && return
    echo "exit status $rc, $(cat "$scratch/stderr")"
    return 1
}
check "--help to a full disk fails" full --help
check "a command's --help does" full generate --help
check "--version does" full --version
check "inspect does" full inspect "$model"
check "tokenize does" full tokenize "$model" -p "some text"
check "perplexity does" bash -c "printf 'some text' >'$scratch/text'
    ! '$sluice' perplexity '$model' -f '$scratch/text' >/dev/full 2>'$scratch/stderr' &&
    grep -q 'No space left on device' '$scratch/stderr'"
tap_end
