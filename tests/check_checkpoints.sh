#!/usr/bin/env bash
# Checkpoints as people have them: in Hugging Face's cache, where all files are links; with DSpark's
# stages beside the layers; repacked by others, who spell names and types in their own ways; cut
# short. Whatever runs gives the same logits, and the rest is told in one line.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
export PYTHONDONTWRITEBYTECODE=1
configs=tests/oracle/configs
make_checkpoint() { "$python" tests/oracle/make_checkpoint.py "$configs/tiny-flash.json" "$@" --seed 3; }
damage() { "$python" tests/oracle/damage.py "$@"; }

plain=$scratch/plain
dspark=$scratch/dspark
check "checkpoints to begin with" make_checkpoint "$plain" --draft none
check "one with DSpark" make_checkpoint "$dspark" --draft dspark
for i in {1..150}; do echo $((i * 37 % 1024)); done >"$scratch/ids"
logits() { # model arguments...: to $scratch/logits.npy
    rm -f "$scratch/logits.npy"
    "$sluice" logits "$@" --tokens "$scratch/ids" --out "$scratch/logits.npy" 2>"$scratch/notes"
}
logits "$plain" && mv "$scratch/logits.npy" "$scratch/plain.npy"
same() { # model arguments...
    logits "$@" && cmp "$scratch/logits.npy" "$scratch/plain.npy"
}
# It runs as ever, and has one note, which matches. (A slow start may be told as well.)
same_with_note() { # pattern model arguments...
    local pattern=$1

    shift
    same "$@" && [ "$(grep -c '^note: ' "$scratch/notes")" = 1 ] &&
        grep -e "^note: .*$pattern" "$scratch/notes"
}
same_in_silence() { # model
    same "$@" && ! grep '^note: ' "$scratch/notes"
}
refused() { # name pattern command...: status 1 and one line
    local name=$1 pattern=$2

    shift 2
    "$sluice" "$@" >"$scratch/stdout" 2>"$scratch/stderr"
    if [ $? = 1 ] && [ "$(grep -c '^sluice: ' "$scratch/stderr")" = 1 ] &&
        grep -q -e "^sluice: .*$pattern" "$scratch/stderr"; then
        ok "$name" "$(cat "$scratch/stderr")"
    else
        fail "$name" "$(cat "$scratch/stderr")"
    fi
}
tells() { # pattern command...: a line of what it prints matches as a whole
    local pattern=$1

    shift
    "$sluice" "$@" 2>&1 | grep -x -e "$pattern"
}

# ---- DSpark ---------------------------------------------------------------------------------------
draft='  draft            DSpark: 3 stages, Markov rank 64, blocks of 5 tokens, reads layers 3, 4, 5'
check "DSpark's stages are left aside with a line" same_with_note '3 stages of DSpark' "$dspark"
check "inspect shows them" tells "$draft" inspect "$dspark"
check "and their experts" tells 'mtp\.2 .*' inspect "$dspark" --experts
check "and the chat format that came with them" tells '  chat format      v4-0731, by config.json' inspect "$dspark"
check "a store takes them" tells 'packed .*: 216 experts, 307 dense tensors; .*' pack "$dspark" "$scratch/store"
check "and runs without them" same_with_note '3 stages of DSpark' "$scratch/store" --cache min
check "and shows them" tells "$draft" inspect "$scratch/store"
"$python" - "$scratch/store/experts-1.bin" <<'PYTHON' || fail "a stage's expert to damage"
import os, sys
with open(sys.argv[1], "r+b") as f:
    f.seek(-8192, os.SEEK_END)
    f.write(b"damage")
PYTHON
check "one of their experts can be repaired" "$sluice" verify "$scratch/store" --repair "$dspark"

# Its drafts are checked against the oracle by check_oracle.sh; here, where they can be had at all.
drafts() { # folder model arguments...
    local folder=$1

    shift
    "$sluice" logits "$@" --tokens "$scratch/ids" --draft-out "$folder" 2>"$scratch/notes"
}
same_drafts() { # model arguments...
    drafts "$scratch/drafts2" "$@" &&
        for file in positions anchors logits tokens conf; do
            cmp "$scratch/drafts/$file.npy" "$scratch/drafts2/$file.npy" || return
        done
}
check "drafts can be had" drafts "$scratch/drafts" "$dspark"
check "from a store, the stages' experts in the least cache" same_drafts "$scratch/store" --cache min
check "with dense weights that are read in each step" same_drafts "$scratch/store" --dense stream
check "with the model's own logits, which they do not change" \
    bash -c "'$sluice' logits '$dspark' --tokens '$scratch/ids' --draft-out '$scratch/drafts2' \
        --out '$scratch/logits.npy' && cmp '$scratch/logits.npy' '$scratch/plain.npy'"
refused "a model without stages has none" 'no draft of a kind' \
    logits "$plain" --tokens "$scratch/ids" --draft-out "$scratch/drafts2"
cp -r "$dspark" "$scratch/untold"
damage "$scratch/untold" config-drop dspark_noise_token_id
refused "nor one whose config does not tell how" 'config.json lacks dspark_block_size, dspark_noise' \
    logits "$scratch/untold" --tokens "$scratch/ids" --draft-out "$scratch/drafts2"
check "inspect says so" tells "$draft; cannot be run, .*" inspect "$scratch/untold"
check "its layers run" same_with_note '3 stages of DSpark' "$scratch/untold"

cp -r "$dspark" "$scratch/broken"
damage "$scratch/broken" rename mtp.1.attn.wkv.scale mtp.1.attn.wkv.other
check "where a stage is broken the layers still run" same_with_note '3 stages of DSpark' "$scratch/broken"
refused "inspect says so" 'tensor mtp\.1\.attn\.wkv\.scale is missing' inspect "$scratch/broken"
refused "so does pack" 'tensor mtp\.1\.attn\.wkv\.scale is missing' pack "$scratch/broken" "$scratch/none"

# ---- Hugging Face's cache ---------------------------------------------------------------------------
cache=$scratch/models--deepseek-ai--DeepSeek-V4-Flash
snapshot=$cache/snapshots/$(printf '%040d' 1)
mkdir -p "$cache/blobs" "$cache/refs" "$snapshot"
for file in "$plain"/*; do
    hash=$(sha256sum "$file" | cut -d' ' -f1)
    cp "$file" "$cache/blobs/$hash"
    ln -s "../../blobs/$hash" "$snapshot/${file##*/}"
done
(cd "$cache/blobs" && sha256sum ./*) >"$scratch/blobs"
check "a snapshot of the cache runs" same_in_silence "$snapshot"
check "so does the model's folder, of one snapshot" same_in_silence "$cache"
check "inspect takes it" tells 'model' inspect "$cache"
check "plan takes it" "$sluice" plan "$cache" --ssd 1G/s --dram 10G/s
check "pack takes it" "$sluice" pack "$cache" "$scratch/cached"
check "the store runs" same_in_silence "$scratch/cached"
refused "pack --consume does not touch what links point to" 'cannot be freed: a symbolic link' \
    pack "$cache" "$scratch/none" --consume
printf damage | dd of="$scratch/cached/experts-1.bin" bs=4096 seek=7 conv=notrunc status=none
check "a store is repaired from it" "$sluice" verify "$scratch/cached" --repair "$cache"
check "and is sound again" "$sluice" verify "$scratch/cached"
untouched() { (cd "$cache/blobs" && sha256sum ./*) | cmp - "$scratch/blobs"; }
check "the cache is as it was" untouched

# Its names are hashes, by which a download is checked.
verified() { # pattern command...: sound, with a line that matches as a whole
    local pattern=$1

    shift
    "$sluice" verify "$@" >"$scratch/stdout" && grep -x -e "$pattern" "$scratch/stdout"
}
bad() { # name pattern command...: status 1, a "bad" line that matches, and the file in the last line
    local name=$1 file=$2 pattern=$3

    shift 3
    if "$sluice" verify "$@" >"$scratch/stdout" 2>"$scratch/stderr" || [ $? != 1 ]; then
        fail "$name" "it does not fail"
    elif [ "$(grep -c '^bad: ' "$scratch/stdout")" = 1 ] && grep -q -e "^bad: .*/$file: $pattern" "$scratch/stdout" &&
        grep -q -e "^sluice: .* 1 file is bad, to be fetched again: $file\$" "$scratch/stderr"; then
        ok "$name" "$(head -n 1 "$scratch/stdout")"
    else
        fail "$name" "$(cat "$scratch/stdout" "$scratch/stderr")"
    fi
}
n_files=$(find "$plain" -type f | wc -l)
shard=model-00002-of-00002.safetensors
check "verify takes the cache" verified "verified .*: 0 of $n_files files bad, SHA-256 known of $n_files" "$cache"
check "a folder without hashes too" verified 'no SHA-256 is known: .*' "$plain"
(cd "$plain" && sha256sum ./*) >"$scratch/list"
check "with a list" verified "verified .*: 0 of $n_files files bad, SHA-256 known of $n_files" \
    "$plain" --sha256 "$scratch/list"
check "through the threads" verified "verified .*: 0 of $n_files files bad, .*" "$cache" --io threads
flip() { printf '\x55' | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
cp -r "$plain" "$scratch/bad"
flip "$scratch/bad/$shard" 1000000
bad "verify names the shard with a wrong byte" "$shard" 'its SHA-256 is .*, expected' \
    "$scratch/bad" --sha256 "$scratch/list"
check "which is seen by its hash alone" verified 'verified .*: 0 of .*' "$scratch/bad"
cp "$plain/$shard" "$scratch/bad/$shard" && truncate -s -4096 "$scratch/bad/$shard"
bad "... that is cut" "$shard" '.*is the file truncated' "$scratch/bad"
rm "$scratch/bad/$shard"
bad "... that is missing" "$shard" '.*No such file' "$scratch/bad"
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 34\n' >"$scratch/bad/$shard"
bad "... that was not fetched" "$shard" '.*Git LFS pointer' "$scratch/bad"
cp "$plain/$shard" "$scratch/bad/$shard"
damage "$scratch/bad" poke layers.5.ffn.experts.3.w2.scale 100 ff
bad "... with a scale that is no number" "$shard" \
    'tensor "layers\.5\.ffn\.experts\.3\.w2\.scale" has a scale that is no number' "$scratch/bad"
check "as JSON" [ "$("$sluice" verify "$scratch/bad" --json 2>/dev/null | "$python" -c '
import json, sys
*bad, last = [json.loads(line) for line in sys.stdin]
print([b["file"] for b in bad], last["bad_files"], last["files_with_sha256"], last["complete"])')" = \
    "['$shard'] 1 0 True" ]
cp -a "$snapshot" "$cache/snapshots/$(printf '%040d' 2)"
printf '%040d' 2 >"$cache/refs/main"
refused "of two snapshots one must be named" '2 snapshots.*01, 0*02 (main)$' inspect "$cache"
refused "for every command" '2 snapshots' pack "$cache" "$scratch/none"
rm -r "$cache/snapshots/"*
refused "none is a download that was stopped" 'without a snapshot' inspect "$cache"

# ---- other spellings --------------------------------------------------------------------------------
cp -r "$dspark" "$scratch/repack"
damage "$scratch/repack" respell
check "a repack's spelling runs" same_with_note '3 stages of DSpark' "$scratch/repack"
check "and packs" "$sluice" pack "$scratch/repack" "$scratch/repacked"
check "into the same experts" cmp "$scratch/repacked/experts-1.bin" "$scratch/store/experts-1.bin"
check "and the same dense tensors" cmp "$scratch/repacked/dense.bin" "$scratch/store/dense.bin"
cp -r "$plain" "$scratch/unindexed"
damage "$scratch/unindexed" unindex layers.2.ffn
check "an index that names less than the shards hold" same_in_silence "$scratch/unindexed"
cp -r "$plain" "$scratch/later"
damage "$scratch/later" add layers.0.attn_norm.weight mtp.1.attn_norm.weight
check "blocks that config.json does not know are told" \
    same_with_note '1 tensor is not used, such as mtp\.1\.' "$scratch/later"
check "also by pack" tells 'note: 1 tensor is not packed, such as mtp\.1\..*' \
    pack "$scratch/later" "$scratch/later-store"
cp -r "$plain" "$scratch/nameless"
damage "$scratch/nameless" config-drop model_type
damage "$scratch/nameless" config z_loss 1
check "a config without model_type, and with a key that is not known" same "$scratch/nameless"
check "says both" [ "$(grep -c -e 'no "model_type"; the model is taken' -e 'no effect: z_loss$' "$scratch/notes")" = 2 ]
check "pack says both" [ "$("$sluice" pack "$scratch/nameless" "$scratch/nameless-store" 2>&1 |
    grep -c -e '^note: .*no "model_type"' -e '^note: .*no effect: z_loss$')" = 2 ]
check "inspect too" tells '  model type       not in config.json, taken for deepseek_v4' inspect "$scratch/nameless"

# ---- incomplete, and another one ---------------------------------------------------------------------
cut() { # layers of config.json
    rm -rf "$scratch/cut"
    cp -r "$plain" "$scratch/cut"
    damage "$scratch/cut" config num_hidden_layers "$1"
    damage "$scratch/cut" config compress_ratios "[0, 0, 4, 128, 4, 128$(printf ', 4%.0s' $(seq 7 "$1"))]"
}
cut 43
refused "fewer layers than the config says" \
    'num_hidden_layers is 43, but there are no tensors of layers 6 to 42: is the checkpoint complete' \
    inspect "$scratch/cut"
refused "to pack as well" 'no tensors of layers 6 to 42' pack "$scratch/cut" "$scratch/none"
cut 7
refused "one layer fewer" 'no tensors of layer 6: is' logits "$scratch/cut" --tokens "$scratch/ids" --out "$scratch/no.npy"
for type in deepseek_v41 deepseek_v4_1; do
    rm -rf "$scratch/cut"
    cp -r "$plain" "$scratch/cut"
    damage "$scratch/cut" config model_type "\"$type\""
    refused "V4.1 ($type) is another architecture" 'DeepSeek-V4\.1.*another architecture' \
        pack "$scratch/cut" "$scratch/none"
done
printf '{"model_type": "deepseek_v41", "text_config": {}}' >"$scratch/cut/config.json"
refused "also where its config is of another form" 'DeepSeek-V4\.1.*another architecture' inspect "$scratch/cut"
# ---- FP8 experts ------------------------------------------------------------------------------------
base=$scratch/base
check "a base model" make_checkpoint "$base" --draft none --format base --scales any
logits "$base" && mv "$scratch/logits.npy" "$scratch/plain.npy"
check "runs in silence" same_in_silence "$base"
check "inspect tells its experts" tells '  experts .* FP8, .*' inspect "$base"
damage "$base" config expert_dtype '"fp4"'
check "the tensors decide" same_with_note '"expert_dtype" in config.json is "fp4"; .*, FP8$' "$base"
check "pack says so too" tells 'note: "expert_dtype" .*, FP8' pack "$base" "$scratch/base-store"
check "and the store" same_with_note 'FP8$' "$scratch/base-store" --cache min
check "inspect goes by them" tells '  experts .* FP8, .*' inspect "$base"
damage "$base" respell
check "without it, and spelled as repacks do" same_in_silence "$base"
tap_end
