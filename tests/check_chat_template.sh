#!/usr/bin/env bash
# sluice chat-template: DeepSeek's own fixtures byte for byte where they are at hand; the format
# follows the model's folder, and a store's is its checkpoint's; ids are those of the pieces; bad
# conversations get one line.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
fixtures=../shared/chat-tests
model=$scratch/model
cp -r tests/small "$model"
hi='[{"role": "user", "content": "hi <think>"}]'

prompt() { # expected arguments...
    local expected=$1

    shift
    printf %s "$hi" | "$sluice" chat-template "$@" - >"$scratch/prompt" &&
        printf %s "$expected" | cmp - "$scratch/prompt"
}
begin='<｜begin▁of▁sentence｜>'
turn='<｜User｜>hi <think><｜Assistant｜>'
maximum='Reasoning Effort: Absolute maximum with no shortcuts permitted.'
beyond='Reasoning Effort: Beyond maximum'
begins() { # expected arguments...
    local expected=$1

    shift
    printf %s "$hi" | "$sluice" chat-template "$@" - | head -c "$(printf %s "$expected" | wc -c)" |
        cmp - <(printf %s "$expected")
}

check "thinking" prompt "$begin$turn<think>" "$model"
check "not thinking" prompt "$begin$turn</think>" "$model" --no-thinking
check "no begin of sentence" prompt "$turn<think>" "$model" --no-bos
check "ids, control tokens in the text as letters" \
    [ "$(printf %s "$hi" | "$sluice" chat-template "$model" --ids -)" = \
    "0 4073 $("$sluice" tokenize "$model" -p 'hi <think>' 2>/dev/null) 4074 4085" ]

for i in 1 2 3 4; do
    [ -r "$fixtures/test_input_$i.json" ] || continue
    thinking=()
    [ $i != 4 ] || thinking=(--no-thinking)
    check "fixture $i" cmp "$fixtures/test_output_$i.txt" \
        <("$sluice" chat-template "$model" "${thinking[@]}" "$fixtures/test_input_$i.json")
done

# The format by the folder, and from a store as from its checkpoint.
format() { "$sluice" inspect "$1" | grep -x "  chat format      $2"; }
check "without evidence it is the preview's" format "$model" 'v4-preview, by config.json'
check "high is its own" prompt "$begin$turn<think>" "$model" --effort high
check "--profile gives another" begins "$begin$maximum" "$model" --effort high --profile v4-0731
mkdir "$model/encoding"
printf 'TEXT = "%s and more"\n' "$beyond" >"$model/encoding/encoding_dsv4.py"
check "the encoder tells" format "$model" 'v4-0731, by encoding/encoding_dsv4.py'
check "and is obeyed" begins "$begin$beyond" "$model" --effort max
check "a store is packed" "$sluice" pack "$model" "$scratch/store"
check "which has it too" format "$scratch/store" 'v4-0731, by encoding_dsv4.py'
printf '\n' >>"$scratch/store/encoding_dsv4.py"
check "and repairs it" "$sluice" verify "$scratch/store" --repair "$model"
check "as it was" cmp "$scratch/store/encoding_dsv4.py" "$model/encoding/encoding_dsv4.py"
check "a store is packed anew" "$sluice" pack "$scratch/store" "$scratch/anew"
check "which has it as well" cmp "$scratch/anew/encoding_dsv4.py" "$model/encoding/encoding_dsv4.py"

refused() { # name pattern text arguments...
    local name=$1 pattern=$2 text=$3

    shift 3
    printf %s "$text" | "$sluice" chat-template "$@" - >"$scratch/stdout" 2>"$scratch/stderr"
    if [ $? = 1 ] && [ "$(wc -l <"$scratch/stderr")" = 1 ] && [ ! -s "$scratch/stdout" ] &&
        grep -q -e "$pattern" "$scratch/stderr"; then
        ok "$name" "$(cat "$scratch/stderr")"
    else
        fail "$name" "$(cat "$scratch/stderr")"
    fi
}
refused "no JSON" 'standard input' '[{' "$model"
refused "no messages" 'standard input: expected a list of messages' '{"message": []}' "$model"
refused "an unknown role" 'standard input: message 0: unknown role "robot"' \
    '[{"role": "robot"}]' "$model"
refused "an effort that the format lacks" '.' "$hi" "$model" --profile v4-preview --effort low
refused "no model" "$scratch/none" "$hi" "$scratch/none"
rm -r "$model/encoding"
sed -i 's/"fp4"/"fp8"/' "$model/config.json"
refused "a base model" 'base model, which has no chat format' "$hi" "$model"
check "unless it is asked for" prompt "$begin$turn<think>" "$model" --profile v4-preview
tap_end
