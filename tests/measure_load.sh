#!/usr/bin/env bash
# sluice serve under the load of tests/serve_load.py: as many requests as are asked for, of 64
# clients. Exit status 1 if a text differs, an answer is lost or memory grows.
#
#   tests/measure_load.sh [REQUESTS]
set -u
cd "$(dirname "$0")/.." || exit 1

sluice=${SLUICE:-build/release/sluice}
scratch=$(mktemp -d) || exit 1
trap 'kill $daemon; rm -rf "$scratch"' EXIT

"$sluice" serve tests/small --socket "$scratch/socket" --ram 2G --kv 32M --no-hot-list \
    >/dev/null 2>"$scratch/log" &
daemon=$!
for _ in $(seq 600); do
    curl -sf --unix-socket "$scratch/socket" http://localhost/health >/dev/null && break
    sleep 0.1
done
"${PYTHON:-/usr/bin/python3}" tests/serve_load.py "$scratch/socket" "$sluice" tests/small "${1:-1000}" 64
