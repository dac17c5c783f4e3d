#!/usr/bin/env bash
# Files and batches at a daemon on the trained small model, as httpx, bare sockets and `sluice batch`
# see them: what is uploaded comes back, bad uploads and lines are told, batches make what a run
# without a daemon makes, byte for byte, also where the daemon was killed in the middle; cancelled
# and expired ones keep what is done, urgent ones and whoever waits come first.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}

if ! "$python" -c 'import httpx' 2>/dev/null; then
    skip "files and batches" "python3-httpx is not installed"
    tap_end
fi
# shellcheck disable=SC2086 # a list of tests to choose
timeout 500 "$python" tests/batch_requests.py "$sluice" tests/small "$scratch" ${TESTS:-} \
    >"$scratch/tests" 2>&1 || echo "not ok the script: $(tail -n 1 "$scratch/tests")" >>"$scratch/tests"
while read -r line; do
    case $line in
    "ok "*) ok "${line#ok }" ;;
    "not ok "*) fail "${line#not ok }" ;;
    *) echo "# $line" ;;
    esac
done <"$scratch/tests"
tap_end
