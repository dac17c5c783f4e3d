#!/usr/bin/env bash
# Shows the main job on a model small enough to make here: text generated while the experts stream
# from disk through a cache that holds a quarter of them.
#
#   tools/demo.sh SLUICE FOLDER
set -eu
cd "$(dirname "$0")/.."
sluice=$1
model=$2/model

if [ ! -e "$model/config.json" ]; then
    echo "Making a small random model of the V4 architecture in $model:"
    mkdir -p "$2"
    "$sluice" synth tools/demo-config.json "$model"
    echo
fi
echo "Generating with a cache of a quarter of its experts. The weights are random, and so is the text:"
echo
"$sluice" generate "$model" -p "The river rose in the night, and" -n 48 --seed 1 --cache 52M
echo
echo "The weights above are random: this shows that everything runs, not what a trained model writes."
echo "With a DeepSeek-V4 checkpoint: $sluice generate FOLDER -p \"...\""
