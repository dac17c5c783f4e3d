#!/usr/bin/env bash
# The daemon as real clients see it: OpenAI's and Anthropic's SDKs, of fixed versions from npm, over
# the Unix socket. Skipped where there is no npm, or nothing to fetch them from.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
packages="openai@6.49.0 @anthropic-ai/sdk@1.14.0 undici@7.30.2"
folder=build/clients

# Installs the packages once; the stamp names their versions.
install() {
    [ "$(cat $folder/installed 2>/dev/null)" = "$packages" ] && return
    mkdir -p $folder
    echo '{"private": true}' >$folder/package.json
    # shellcheck disable=SC2086
    (cd $folder && timeout 120 npm install --no-audit --no-fund --silent $packages) &&
        echo "$packages" >$folder/installed
}

if ! command -v npm >/dev/null || ! install >"$scratch/npm" 2>&1; then
    skip "OpenAI's and Anthropic's SDKs" "npm is not there, or cannot fetch them"
    tap_end
fi

"$sluice" serve tests/small --socket "$scratch/socket" --ram 2G 2>"$scratch/log" &
daemon=$!
wait_for curl -sf --unix-socket "$scratch/socket" http://localhost/health

cp tests/clients/*.mjs $folder
for client in openai anthropic batches; do
    timeout 120 node $folder/$client.mjs "$scratch/socket" >"$scratch/tests" 2>&1 ||
        echo "not ok the script's end: $(tail -n 1 "$scratch/tests")" >>"$scratch/tests"
    while read -r line; do
        case $line in
        "ok "*) ok "$client: ${line#ok }" ;;
        "not ok "*) fail "$client: ${line#not ok }" ;;
        *) echo "# $line" ;;
        esac
    done <"$scratch/tests"
done

kill $daemon
if wait $daemon; then
    ok "the daemon ends well"
else
    fail "the daemon ends well" "$(tail -n 1 "$scratch/log")"
fi
tap_end
