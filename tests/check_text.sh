#!/usr/bin/env bash
# Text as the commands take it: begin-of-sentence once, what a user may not expect is said once, ids
# that no text stands for are refused, lines of JSON with strings or objects. On the small model.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
model=tests/small
bos='<｜begin▁of▁sentence｜>'

# said COUNT PATTERN COMMAND...: the command succeeds, and so many lines of its standard error match.
said() {
    local count=$1 pattern=$2

    shift 2
    "$@" >"$scratch/out" 2>"$scratch/err" || return
    [ "$(grep -c -- "$pattern" "$scratch/err")" = "$count" ]
}

continued() {
    "$sluice" generate "$model" -n 12 --temp 0 "$@" 2>/dev/null
}

one_begin_of_sentence() {
    local text

    text=$(continued -p "The river rose") && [ -n "$text" ] &&
        [ "$text" = "$(continued --special -p "${bos}The river rose")" ] &&
        [ "$text" = "$(continued --special --no-bos -p "${bos}The river rose")" ] &&
        [ "$text" != "$(continued --no-bos -p "The river rose")" ] &&
        [ "$text" != "$(continued -p "${bos}The river rose")" ] &&
        said 1 'no second one' "$sluice" generate "$model" -n 1 --special -p "${bos}The river" &&
        said 0 'no second one' "$sluice" generate "$model" -n 1 --special -p "The river"
}
check "begin-of-sentence comes once" one_begin_of_sentence

nothing_to_begin_with() {
    ! "$sluice" generate "$model" -n 1 --no-bos -p "" 2>"$scratch/err" &&
        grep -q '^sluice: the text is empty' "$scratch/err"
}
check "--no-bos with an empty text is refused" nothing_to_begin_with

control_tokens_are_told() {
    local two='"a <｜User｜> b"'

    printf '%s\n' "$two" "$two" >"$scratch/two.jsonl"
    said 1 '<｜User｜> in the text is taken as letters' "$sluice" tokenize "$model" \
        --jsonl "$scratch/two.jsonl" &&
        said 0 note: "$sluice" tokenize "$model" --special --jsonl "$scratch/two.jsonl" &&
        said 0 note: "$sluice" tokenize "$model" -p "a < User > b" &&
        said 1 '</think> in the text' "$sluice" perplexity "$model" --jsonl - \
            < <(echo '"so</think> be it"')
}
check "control tokens taken as letters are told once" control_tokens_are_told

newline_is_told() {
    printf 'The river\n' >"$scratch/line" && printf 'The river' >"$scratch/no-line"
    said 1 'line ends in a newline, which is part' "$sluice" tokenize "$model" -f "$scratch/line" &&
        said 0 note: "$sluice" tokenize "$model" -f "$scratch/no-line" &&
        said 1 'standard input ends in a newline' "$sluice" generate "$model" -n 1 -f - \
            <"$scratch/line"
}
check "a file's last newline is told" newline_is_told

# refused PATTERN OPTIONS...: nothing printed, exit status 1, one line that matches.
refused() {
    local pattern=$1 rc

    shift
    "$sluice" tokenize "$model" "$@" >"$scratch/out" 2>"$scratch/err"
    rc=$?
    [ "$rc" = 1 ] && [ ! -s "$scratch/out" ] && [ "$(wc -l <"$scratch/err")" = 1 ] &&
        grep -q -- "$pattern" "$scratch/err"
}
unknown_ids() {
    echo '[3, 999999]' >"$scratch/ids.jsonl"
    refused 'token 2 is 4294967295' --decode -p "35 4294967295 36" &&
        refused 'line 1: token 2 is 999999' --decode --jsonl "$scratch/ids.jsonl"
}
check "ids that no text stands for are refused" unknown_ids

lines_of_json() {
    local mark=$'\xEF\xBB\xBF'

    "$sluice" tokenize "$model" --jsonl - <<<'"the river"' >"$scratch/want" &&
        "$sluice" tokenize "$model" --jsonl - >"$scratch/got" \
            <<<"$mark"'{"id": 7, "text": "the river"}' &&
        cmp "$scratch/want" "$scratch/got" &&
        [ "$("$sluice" perplexity "$model" --jsonl - <<<'"the river rose"' | grep nats)" = \
            "$("$sluice" perplexity "$model" --jsonl - <<<'{"text": "the river rose"}' | grep nats)" ] &&
        ! "$sluice" tokenize "$model" --jsonl - <<<'{"texts": 1}' 2>"$scratch/err" &&
        grep -q 'line 1: expected a JSON string' "$scratch/err"
}
check "lines are strings or objects with a text" lines_of_json

scored_tokens() {
    "$sluice" perplexity "$model" -f "$scratch/text" "$@" 2>/dev/null | awk '/^tokens/ { print $2 }'
}

# Without a begin-of-sentence token the first token of a piece is not scored.
pieces_without_bos() {
    local n

    printf 'It was a dark and stormy night' >"$scratch/text"
    n=$("$sluice" tokenize "$model" -f "$scratch/text" | wc -w)
    [ "$(scored_tokens)" = "$n" ] && [ "$(scored_tokens --window 3)" = "$n" ] &&
        [ "$(scored_tokens --no-bos)" = $((n - 1)) ] &&
        [ "$(scored_tokens --no-bos --window 3)" = $((n - (n + 2) / 3)) ] &&
        ! "$sluice" perplexity "$model" --no-bos --jsonl - <<<'"a"' 2>"$scratch/err" &&
        grep -q 'no token of the text has another before it' "$scratch/err"
}
check "perplexity without begin-of-sentence" pieces_without_bos

marked_files() { # a byte order mark before each JSON file
    local file

    mkdir -p "$scratch/marked" && cp "$model"/* "$scratch/marked" || return
    for file in config.json tokenizer.json model.safetensors.index.json; do
        { printf '\xEF\xBB\xBF' && cat "$model/$file"; } >"$scratch/marked/$file"
    done
    [ "$("$sluice" generate "$scratch/marked" -p "The river" -n 8 --temp 0 2>/dev/null)" = \
        "$("$sluice" generate "$model" -p "The river" -n 8 --temp 0 2>/dev/null)" ]
}
check "a byte order mark before JSON is passed over" marked_files
tap_end
