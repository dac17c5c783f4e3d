#!/usr/bin/env bash
# Compares our tokenizer with the one of Hugging Face, the npm package tokenizers: every code point
# in several contexts, and random texts of all scripts, as words and as ids. Fetches the packages
# into build/npm; needs node, npm and some minutes.
#
#   MODEL=FOLDER tests/tokenizer/check.sh     a folder with tokenizer.json (default: tests/small)
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
here=tests/tokenizer
modules=build/npm/node_modules
model=${MODEL:-tests/small}

install_reference() {
    mkdir -p build/npm && cp "$here"/package.json "$here"/package-lock.json build/npm/ &&
        npm ci --prefix build/npm --ignore-scripts --no-audit --no-fund
}
check "the reference is installed" install_reference || tap_end

classes_are_as_made() {
    node "$here/unicode_classes.mjs" "$modules" | diff core/text/unicode_classes.c -
}
check "the table of classes is made from Unicode 16" classes_are_as_made

words_are_as_made() {
    node "$here/reference_words.mjs" "$modules" tests/small/tokenizer.json | diff "$here/words.txt" -
}
check "the reference cuts the words that test_splitter compares with" words_are_as_made

check "the ids of $model" \
    node "$here/compare_ids.mjs" "$modules" "$model/tokenizer.json" "$sluice"
tap_end
