#!/usr/bin/env bash
# sluice synth: that what it writes is a checkpoint, and that it refuses what it cannot do. Each
# test config is made and judged against the oracle's own writer, two of them by running them.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
configs=tests/oracle/configs
export PYTHONDONTWRITEBYTECODE=1

# Runs the command; it must fail with exit status $3, and $4 in its one line on stderr.
refuses() { # name rc pattern arguments...
    local name=$1 want=$2 pattern=$3 error rc

    shift 3
    error=$("$sluice" synth "$@" 2>&1 >/dev/null)
    rc=$?
    if [ $rc != "$want" ] || ! grep -q "$pattern" <<<"$error"; then
        fail "$name" "exit status $rc, $error"
    elif [ "$want" = 1 ] && [ "$(wc -l <<<"$error")" != 1 ]; then
        fail "$name" "more than one line: $error"
    else
        ok "$name" "$(head -n 1 <<<"$error")"
    fi
}

# All files of a checkpoint as one hash.
digest() {
    (cd "$1" && sha256sum -- *) | sha256sum
}

judge=tests/oracle/judge_synth.py
for config in "$configs"/[!v]*.json; do
    name=$(basename "$config" .json)
    tokens=0
    [ "$name" != tiny-flash ] && [ "$name" != odd-heads ] || tokens=100
    check "$name is written" "$sluice" synth "$config" "$scratch/$name" &&
        check "$name is a checkpoint" "$python" "$judge" "$scratch/$name" --tokens $tokens
done

check "tiny-flash is written as a base model" "$sluice" synth "$configs/tiny-flash.json" "$scratch/base" --format base &&
    check "the base model is a checkpoint" "$python" "$judge" "$scratch/base" --tokens 100
sed -i 's/"expert_dtype": "fp8",//' "$scratch/base/config.json"
nameless() { "$sluice" inspect "$scratch/base" | grep -x "  chat format      none, by the experts' type"; }
check "it is known for one by its tensors alone" nameless
refuses "a format that there is not" 2 "instruct or base" "$configs/tiny-flash.json" "$scratch/x" --format fp8

"$sluice" synth "$configs/tiny-flash.json" "$scratch/same" >/dev/null
"$sluice" synth "$configs/tiny-flash.json" "$scratch/other" --seed 2 >/dev/null
if [ "$(digest "$scratch/tiny-flash")" = "$(digest "$scratch/same")" ]; then
    ok "a seed gives the same bytes again"
else
    fail "a seed gives the same bytes again"
fi
if [ "$(digest "$scratch/same")" != "$(digest "$scratch/other")" ]; then
    ok "another seed gives others"
else
    fail "another seed gives others"
fi

check "three layers of six" "$sluice" synth "$configs/tiny-flash.json" "$scratch/cut" --layers 3 --skew 0.2 &&
    check "the cut is a checkpoint" "$python" "$judge" "$scratch/cut" --tokens 100
config=$(tr -s ' \n' ' ' <"$scratch/cut/config.json")
if grep -q '"num_hidden_layers": 3,' <<<"$config" &&
    grep -q '"compress_ratios": \[ 0, 0, 4, 0 \]' <<<"$config"; then
    ok "the cut's config says so"
else
    fail "the cut's config says so" "$config"
fi
"$sluice" synth "$configs/tiny-flash.json" "$scratch/dspark" --dspark >"$scratch/stdout" &&
    check "with DSpark it is a checkpoint" "$python" "$judge" "$scratch/dspark" --tokens 0
seq 5 44 >"$scratch/ids"
drafts_agree() {
    "$sluice" logits "$scratch/dspark" --tokens "$scratch/ids" --draft-out "$scratch/drafts" \
        --numerics exact && "$python" tests/oracle/compare.py "$scratch/dspark" "$scratch/ids" \
        "$scratch/drafts" --dspark --against exact
}
check "whose drafts are the oracle's" drafts_agree
"$sluice" pack "$scratch/dspark" "$scratch/dspark-store" >"$scratch/stdout"
text() { # flags...: of a prompt that wraps the stages' rings
    "$sluice" generate "$scratch/dspark-store" --prompt "$(seq -s' ' 1 30)" -n 30 --seed 3 "$@" \
        2>"$scratch/stderr"
}
text --draft off >"$scratch/text"
for flags in "--draft 1" "--draft 5 --segment 64" "--draft 5 --cache min --dense stream" "--draft auto" \
    "--draft 3 --images $scratch/images" "--draft 3 --images $scratch/images"; do
    # Flags are split at their spaces.
    # shellcheck disable=SC2086
    check "a text with drafts is the one without: ${flags/$scratch\//}" cmp <(text $flags) "$scratch/text"
done
check "and goes on from an image, with the stages' rows" grep -q 'images  *[1-9][0-9]* tokens' "$scratch/stderr"
same_plan() { # plan and inspect of the config alone give the draft the bytes of the checkpoint's
    local line

    line=$("$sluice" inspect "$scratch/dspark" --draft 3 | grep '^  draft  *[0-9.]* [KM]iB ') &&
        "$sluice" inspect "$scratch/dspark/config.json" --draft 3 | grep -x "$line" &&
        "$sluice" plan "$scratch/dspark/config.json" --ssd 1G/s --dram 10G/s --with-draft | grep -x "$line"
}
check "its memory is known from the config alone" same_plan
refuses "too few layers for DSpark" 1 "less than the 3 that --dspark reads" \
    "$configs/tiny-flash.json" "$scratch/x" --layers 2 --dspark
check "without MTP" "$sluice" synth "$configs/tiny-flash.json" "$scratch/no-mtp" --no-mtp &&
    check "and it is a checkpoint" "$python" "$judge" "$scratch/no-mtp"

# Layers that share their blocks need a file system of ours: one in a file, if we may mount it.
share=$scratch/share
mkdir "$share"
truncate -s 300M "$scratch/image"
if ! output=$({ mkfs.xfs -q "$scratch/image" && mount -o loop "$scratch/image" "$share"; } 2>&1); then
    skip "layers share blocks" "no XFS can be made and mounted here: $(tail -n 1 <<<"$output")"
else
    trap 'umount "$share"; rm -rf "$scratch"' EXIT
    for layers in 1 2; do
        sync -f "$share"
        free_kb=$(stat -f -c '%f*4' "$share")
        check "layers share blocks, $layers of them" "$sluice" synth "$configs/tiny-flash.json" "$share/$layers" --share-layers $layers &&
            check "and are a checkpoint" "$python" "$judge" "$share/$layers" --tokens 100 --share-layers $layers
        sync -f "$share"
        used_kb=$((free_kb - $(stat -f -c '%f*4' "$share")))
        full_kb=$(du -sk --apparent-size "$share/$layers" | cut -f 1)
        if [ $used_kb -lt $((full_kb * 6 / 10)) ]; then
            ok "and take less of the disk" "$used_kb KB of $full_kb KB"
        else
            fail "and take less of the disk" "$used_kb KB of $full_kb KB"
        fi
    done
fi
if cp --reflink=always "$scratch/cut/config.json" "$scratch/cut/copy" 2>/dev/null; then
    skip "a file system that cannot share" "that of \$TMPDIR can"
else
    refuses "a file system that cannot share" 1 'same-blocks: --share-layers: .* cannot share' "$configs/tiny-flash.json" "$scratch/same-blocks" --share-layers 1
fi
mkdir "$scratch/empty"
check "an empty folder is filled" "$sluice" synth "$configs/no-yarn.json" "$scratch/empty/"

rm -r "$scratch/same" && mkdir "$scratch/full" && echo precious >"$scratch/full/file"
refuses "a folder that is not empty" 1 "full: .*not empty" "$configs/no-yarn.json" "$scratch/full"
refuses "a config that is not there" 1 "missing.json" "$scratch/missing.json" "$scratch/same"
echo '{"vocab_size": 7' >"$scratch/broken.json"
refuses "a config that is no JSON" 1 "broken.json" "$scratch/broken.json" "$scratch/same"
sed 's/"hidden_size": 256/"hidden_size": 200/' "$configs/tiny-flash.json" >"$scratch/broken.json"
refuses "a config with a broken relation" 1 '"hidden_size"' "$scratch/broken.json" "$scratch/same"
sed 's/"vocab_size": 515/"vocab_size": 200/' "$configs/no-yarn.json" >"$scratch/broken.json"
refuses "a vocabulary without room for bytes" 1 'broken.json: "vocab_size" is 200' "$scratch/broken.json" "$scratch/same"
sed 's/"hidden_size": 384/"hidden_size": 16384/; s/"moe_intermediate_size": 128/"moe_intermediate_size": 65536/
    s/"n_routed_experts": 5/"n_routed_experts": 4096/' "$configs/no-yarn.json" >"$scratch/vast.json"
refuses "more than the disk holds" 1 'are needed, .* are free' "$scratch/vast.json" "$scratch/same"
refuses "more layers than there are" 1 'less than --layers' "$configs/no-yarn.json" "$scratch/same" --layers 4
refuses "a folder that cannot be made" 1 'cannot create' "$configs/no-yarn.json" "$scratch/no/such/folder"
refuses "no folder given" 2 'a config and a folder' "$configs/no-yarn.json"
refuses "an unknown flag" 2 'unrecognized option' "$configs/no-yarn.json" "$scratch/same" --fast
refuses "no layer to share" 2 'share-layers' "$configs/no-yarn.json" "$scratch/same" --share-layers 0
refuses "a flag's bad value" 2 'layers' "$configs/no-yarn.json" "$scratch/same" --layers 0
if [ ! -e "$scratch/same" ] && ! compgen -G "$scratch/*.part.*" >/dev/null &&
    [ "$(cat "$scratch/full/file")" = precious ]; then
    ok "nothing is left behind"
else
    fail "nothing is left behind"
fi
tap_end
