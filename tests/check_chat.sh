#!/usr/bin/env bash
# sluice chat: a conversation from a pipe and on a terminal, with a daemon of its own. Answers are
# those of `sluice generate` for the prompt that the conversation becomes.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
model=tests/small
unset XDG_RUNTIME_DIR

# Says the lines of standard input; the answers are in $scratch/answers.
talk() { # options...
    "$sluice" chat "$model" --ram 2G --effort none "$@" >"$scratch/answers" 2>"$scratch/notes"
}

# What generate makes of the conversation in a file.
expected() { # FILE SEED TOKENS
    "$sluice" chat-template "$model" --no-thinking "$1" >"$scratch/prompt"
    "$sluice" generate "$model" --ram 2G --special --no-bos -f "$scratch/prompt" --seed "$2" -n "$3" \
        2>/dev/null
}

printf '%s\n' "What is /a/ river\\" 'in a valley?' "/save $scratch/one.json" |
    talk --seed 7 --tokens 12
"$python" - "$scratch/one.json" >"$scratch/question.json" <<'END'
import json, sys
print(json.dumps(json.load(open(sys.argv[1]))["messages"][:1]))
END
check "a question of two lines" grep -q 'river\\nin a valley' "$scratch/question.json"
check "the answer is what generate makes" \
    cmp <(expected "$scratch/question.json" 7 12) "$scratch/answers"

printf '%s\n' "/load $scratch/one.json" /retry "/save $scratch/two.json" | talk --seed 8 --tokens 12
check "another seed, another answer to the same question" \
    cmp <(expected "$scratch/question.json" 8 12) "$scratch/answers"

printf '%s\n' "/load $scratch/two.json" "/system Be brief." /undo '"""' '//slash' '' end '"""' "/save $scratch/three.json" \
    /stats | talk --seed 7 --tokens 12
check "a question is undone, one of many lines takes its place" \
    "$python" - "$scratch/three.json" <<'END'
import json, sys
messages = json.load(open(sys.argv[1]))["messages"]
assert [m["role"] for m in messages] == ["system", "user", "assistant"], messages
assert messages[1]["content"] == "/slash\n\nend", messages
END
check "figures of the last answer" grep -q '^completion_tokens  *[1-9]' "$scratch/notes"

echo "some text" >"$scratch/text"
printf '%s\n' "/file $scratch/text" 'Sum it up.' "/save $scratch/four.json" | talk --tokens 4
check "a file goes in front of the next message" grep -q 'some text\\n\\n\\nSum it up' "$scratch/four.json"

# The next program knows the conversation from images; the answer is what it is without.
for ((i = 0; i < 20; i++)); do printf 'In the year %d the river rose. ' $((1700 + i)); done >"$scratch/text"
printf '%s\n' "/file $scratch/text" 'When?' "/save $scratch/five.json" | talk --tokens 4
goes_on() { # options...
    printf '%s\n' "/load $scratch/five.json" 'And then?' /stats | talk --seed 5 --tokens 12 "$@"
    sed -n 's/^prompt_cache_hit_tokens *//p' "$scratch/notes"
}
resumes() {
    local n without

    n=$(goes_on) && cp "$scratch/answers" "$scratch/with" && without=$(goes_on --images none) &&
        [ "$without" = 0 ] && [ "$n" -gt 200 ] && cmp "$scratch/with" "$scratch/answers" &&
        [ "$(stat -c %a "$XDG_STATE_HOME/sluice/images")" = 700 ] && echo "$n tokens"
}
check "a conversation that is loaded goes on from images" resumes

# Nobody reads the answer: chat is killed as other commands are, and its daemon clears up.
leaves_nothing() {
    mkdir "$scratch/run"
    printf '%s\n' One Two | XDG_RUNTIME_DIR=$scratch/run "$sluice" chat "$model" --ram 2G \
        --effort none --tokens 500 2>/dev/null | head -c 5 >/dev/null
    wait_for rmdir "$scratch/run"
}
check "a pipe that breaks leaves no daemon and no folder" leaves_nothing

# Killed at any moment of its start: the daemon that it has begun, if any, clears up.
killed_anywhere() {
    local ms chat

    for ms in 0 2 5 10 15 20 30 40 60 80 120 200; do
        mkdir "$scratch/killed"
        XDG_RUNTIME_DIR=$scratch/killed "$sluice" chat "$model" --ram 2G <"$scratch/silence" \
            >/dev/null 2>&1 &
        chat=$!
        sleep "0.$(printf %03d "$ms")"
        kill "$chat"
        wait "$chat" 2>/dev/null
        wait_for rmdir "$scratch/killed" || return
    done
}
mkfifo "$scratch/silence"
sleep 600 >"$scratch/silence" &
silent=$!
check "killed while it starts: no folder is left" killed_anywhere
kill "$silent"

refused() { # LINE WORDS
    printf '%s\n' "$1" | talk
    [ $? = 1 ] && [ "$(tail -n 1 "$scratch/notes" | cut -c -8)" = "sluice: " ] &&
        tail -n 1 "$scratch/notes" | grep -q "$2"
}
check "an unknown command" refused '/frob' '/frob is no command'
check "a file that is not there" refused "/load $scratch/none.json" none.json
printf '\377' >"$scratch/binary"
check "a file that is no text" refused "/file $scratch/binary" 'UTF-8'
printf 'a\0b' >"$scratch/binary"
check "a file with a NUL" refused "/file $scratch/binary" 'NUL'
printf 'a\0b\n' | talk
check "a message with a NUL" grep -q 'has a NUL byte' "$scratch/notes"
check "a word for effort that nobody knows" refused $'/effort much\nhi' effort

fails() { # STATUS WORDS arguments...
    local status=$1 words=$2

    shift 2
    "$sluice" chat "$@" </dev/null >/dev/null 2>"$scratch/notes"
    [ $? = "$status" ] && grep -q -- "$words" "$scratch/notes"
}
check "MODEL and a socket" fails 2 'not both' "$model" --socket /nowhere
check "no daemon" fails 1 /nowhere --socket /nowhere
check "an option that serve does not know" fails 2 frob "$model" --frob
check "no model in a folder" fails 1 "$scratch" "$scratch"
check "help" sh -c "'$sluice' chat --help | grep -q -- --socket"

# On a terminal: the first answer is stopped, and the talk goes on. What is typed before the prompt is
# there must be lines: Ctrl-D would be lost when the terminal changes its mode.
say() { # SCRIPT options...
    local script=$1

    shift
    "$python" tests/talk_on_terminal.py "$script" "$sluice" chat "$model" --ram 2G --seed 1 "$@"
}
# This hot, the answer with this seed does not end by itself for 3,000 tokens.
check "Ctrl-C stops an answer, not the program" \
    say '[["> ", "Go on and on.\n"], ["\u001b[2m", "^C"], ["(stopped", "/undo\n"], ["> ", "/quit\n"]]' \
    --temp 1.6 --seed 62
check "Ctrl-C leaves a line" say '[["> ", "a line"], ["line", "^C"], ["> ", "/quit\n"]]'
check "Ctrl-D ends the program" say '[["> ", "^D"]]'
typed_letters() { # in a locale that has none of them
    LC_ALL=C say '[["> ", "//Gr\u00fc\u00dfe \u6cb3\n"], ["> ", "/save '"$scratch"'/typed.json\n"],
        ["> ", "/quit\n"]]' --tokens 1 --effort none && grep -q '"/Grüße 河"' "$scratch/typed.json"
}
check "letters of every script can be typed" typed_letters
check "the history is the user's alone" \
    [ "$(stat -c %a "$XDG_STATE_HOME/sluice/chat_history")" = 600 ]
check "no folder is left behind" sh -c "! ls -d /tmp/sluice-chat-* 2>/dev/null | grep ."

tap_end
