#!/usr/bin/env bash
# Shows the main job on the small model that comes with Sluice (docs/MODEL.md): text generated while
# the experts stream from disk through a cache that holds a quarter of them.
#
#   tools/demo.sh SLUICE
set -eu
cd "$(dirname "$0")/.."
sluice=$1
model=tests/small

# Of 288 experts of 52,224 bytes each, 72.
echo "The small model, with a cache of a quarter of its experts, goes on from: \"The kernel is\""
echo
"$sluice" generate "$model" -p "The kernel is" -n 120 --temp 0.6 --top-p 0.9 --seed 4 --cache 3760128
echo
echo "With a DeepSeek-V4 checkpoint: $sluice generate FOLDER -p \"...\""
