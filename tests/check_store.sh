#!/usr/bin/env bash
# Packed stores at the command level: the logits are the checkpoint's, byte for byte; damage is named
# by the run that meets it and by verify, and repaired by verify --repair; a pack that was killed goes
# on and ends in the same bytes. CONFIGS names the models, tiny-flash and tiny-pro by default.

# Drives are small file systems in memory; mounting them takes a namespace, where it can be had.
if [ -z "${STORE_DRIVES:-}" ]; then
    for flags in -m -rm; do
        unshare $flags true 2>/dev/null && STORE_DRIVES=1 exec unshare $flags bash "$0" "$@"
    done
fi
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
configs=tests/oracle/configs
checkpoint=$scratch/checkpoint
store=$scratch/store
compressed=$scratch/compressed
seq 0 299 | awk '{ print ($1 * 37 + 5) % 509 }' >"$scratch/tokens"

drive() { # folder size
    mkdir "$1"
    mount -t tmpfs -o "size=$2" none "$1"
}

logits() { # model flags...: prints the hash of the logits
    local model=$1 out

    shift
    out=$(mktemp "$scratch/logits.XXXXXX")
    "$sluice" logits "$model" --tokens "$scratch/tokens" --out "$out" "$@" >/dev/null &&
        sha256sum <"$out"
    rm -f "$out"
}

same() { # hash model flags...
    local want=$1

    shift
    [ "$(logits "$@")" = "$want" ]
}

# Runs the command; it must end with exit status 1 and one line on stderr that matches the pattern.
refused() { # name pattern arguments...
    local name=$1 pattern=$2 rc

    shift 2
    timeout -k 5 60 "$sluice" "$@" >"$scratch/stdout" 2>"$scratch/stderr"
    rc=$?
    # Neither notes count, nor what a slow start says that it does.
    sed -i '/^sluice: /!d' "$scratch/stderr"
    if [ $rc != 1 ]; then
        fail "$name" "exit status $rc: $(head -c 300 "$scratch/stderr")"
    elif [ "$(wc -l <"$scratch/stderr")" != 1 ] || ! grep -q -e "$pattern" "$scratch/stderr"; then
        fail "$name" "expected one line with $pattern, got $(head -c 300 "$scratch/stderr")"
    else
        ok "$name" "$(cat "$scratch/stderr")"
    fi
}

run=(--tokens "$scratch/tokens" --out "$scratch/refused.npy")

same_store() { # a b: everything but LMDB's own pages and what runs remember
    diff -r -x catalog.mdb -x catalog.sealed -x hot -x probe "$1" "$2" && diff <(contents "$1") <(contents "$2")
}

contents() { # store: what its catalog says, as far as inspect shows it
    "$sluice" inspect "$1" --tensors --experts
}

flip() { # file offset
    local byte

    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    # shellcheck disable=SC2059 # the format is the byte
    printf "\\x$(printf %x $((byte ^ 16)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

variants=(
    "" "--io threads" "--cache min" "--cache 1G" "--cache min --io threads --threads 1 --segment 7"
    "--verify always --cache min" "--verify never" "--verify never --io threads" "--isa ref"
)

for name in ${CONFIGS:-tiny-flash tiny-pro}; do
    rm -rf "$checkpoint" "$store" "$compressed"
    if ! "$sluice" synth "$configs/$name.json" "$checkpoint" >/dev/null ||
        ! plain=$(logits "$checkpoint") || ! mtp=$(logits "$checkpoint" --mtp) ||
        ! exact=$(logits "$checkpoint" --numerics exact --segment 50); then
        fail "$name: a checkpoint that runs"
        continue
    fi
    check "$name is packed" "$sluice" pack "$checkpoint" "$store"
    check "$name: the store is sound" "$sluice" verify "$store"
    check "$name: the store is sound, read by threads" "$sluice" verify --io threads "$store"
    for variant in "${variants[@]}"; do
        # Flags are split at their spaces.
        # shellcheck disable=SC2086
        check "$name packed ${variant:-as it is}" same "$plain" "$store" $variant
    done
    check "$name packed --mtp" same "$mtp" "$store" --mtp --cache min
    check "$name packed --numerics exact" same "$exact" "$store" --numerics exact --segment 50
    check "$name: text comes out" eval "'$sluice' generate '$store' -p 'some text' -n 20 --no-hot-list >'$scratch/text'"
    check "$name: the same text, and nothing was hot" eval "'$sluice' generate '$store' -p 'some text' -n 20 2>'$scratch/stderr' |
        cmp - '$scratch/text' && ! grep 'experts of an earlier run' '$scratch/stderr'"
    check "$name: the same text, from what was hot then" eval "'$sluice' generate '$store' -p 'some text' -n 20 2>'$scratch/stderr' |
        cmp - '$scratch/text' && grep 'experts of an earlier run' '$scratch/stderr'"
    check "$name: the same text without it" eval "'$sluice' generate '$store' -p 'some text' -n 20 --no-hot-list 2>'$scratch/stderr' |
        cmp - '$scratch/text' && ! grep 'experts of an earlier run' '$scratch/stderr'"
    check "$name: and the store is sound" "$sluice" verify "$store"
    check "$name: inspect" "$sluice" inspect "$store"
    check "$name is packed by one thread" "$sluice" pack "$checkpoint" "$scratch/again" --threads 1 --batch 1M &&
        check "$name: to the same bytes" same_store "$store" "$scratch/again"
    rm -rf "$scratch/again"
    check "$name is packed with --compress" "$sluice" pack "$checkpoint" "$compressed" --compress
    check "$name: the compressed store is sound" "$sluice" verify "$compressed"
    for variant in "${variants[@]}"; do
        # shellcheck disable=SC2086
        check "$name compressed ${variant:-as it is}" same "$plain" "$compressed" $variant
    done
    check "$name compressed --mtp" same "$mtp" "$compressed" --mtp --cache min
    check "$name compressed --numerics exact" same "$exact" "$compressed" --numerics exact --segment 50
    check "$name is packed with --compress by one thread" "$sluice" pack "$checkpoint" "$scratch/again" --threads 1 --batch 1M --compress &&
        check "$name: to the same bytes" same_store "$compressed" "$scratch/again"
    rm -rf "$scratch/again"
done

refused "a store in the folder that is packed" "sub: is in the folder that is packed" pack "$checkpoint" "$checkpoint/sub"
refused "a stripe there" "sub: is in the folder that is packed" pack "$checkpoint" "$scratch/apart" --stripe "$checkpoint/sub"
check "and no folder is left behind" eval "! ls -d '$checkpoint/sub' '$scratch/apart' 2>/dev/null"

# From here on with the last of them.
if [ -n "${STORE_DRIVES:-}" ]; then
    drive "$scratch/drive-2" 200M
    drive "$scratch/drive-3" 200M
    drive "$scratch/drive-4" 200M
    mkdir "$scratch/drive-2/part"
    refused "two folders on one drive" 'drive-2 and .*part are on one drive' pack "$checkpoint" "$scratch/striped" \
        --stripe "$scratch/drive-2" --stripe "$scratch/drive-2/part"
    refused "no folder to make a stripe's in" 'none/part: cannot make the folder' pack "$checkpoint" "$scratch/striped" \
        --stripe "$scratch/drive-2/none/part"
    check "refused folders are not left behind" test ! -e "$scratch/striped"
    check "a stripe's folder is made" "$sluice" pack "$checkpoint" "$scratch/striped" --stripe "$scratch/drive-2/made"
    check "and what is there is sound" "$sluice" verify "$scratch/striped"
    rm -r "$scratch/striped" "$scratch/drive-2/made"
    mkdir -p "$scratch/striped" && : >"$scratch/striped/catalog.mdb.new" # as a pack leaves it that is killed at once
    check "packed over three drives" eval "'$sluice' pack '$checkpoint' '$scratch/striped' --stripe '$scratch/drive-2' --stripe '$scratch/drive-3' >'$scratch/stdout'"
    check "by what they read" grep 'drive-3 reads ' "$scratch/stdout"
    for variant in "" "--io threads --cache min --verify always"; do
        # shellcheck disable=SC2086
        check "striped ${variant:-as it is}" same "$plain" "$scratch/striped" $variant
    done
    check "what is striped is sound" "$sluice" verify "$scratch/striped"
    flip "$scratch/drive-3/experts-3.bin" 5000
    refused "a run meets a flipped bit on another drive" 'striped/experts-1.bin: w. at offset\|drive-2/experts-2.bin: w. at offset\|drive-3/experts-3.bin: w. at offset' \
        logits "$scratch/striped" "${run[@]}"
    check "repair on another drive" "$sluice" verify "$scratch/striped" --repair "$checkpoint"
    check "and it is sound" "$sluice" verify "$scratch/striped"
    mv "$scratch/drive-2/experts-2.bin" "$scratch/drive-4"
    refused "a part that was moved" 'drive-2/experts-2.bin: cannot open: .*sluice verify STORE --stripe DIR' logits "$scratch/striped" "${run[@]}"
    refused "looked for in the wrong place" 'part: no part of .*striped is there' verify "$scratch/striped" --stripe "$scratch/drive-2/part"
    check "looked for in the right one" "$sluice" verify "$scratch/striped" --stripe "$scratch/drive-4"
    check "it runs from there" same "$plain" "$scratch/striped"
    check "packed anew onto one drive" "$sluice" pack "$scratch/striped" "$scratch/again" &&
        check "to the bytes of the store" same_store "$store" "$scratch/again"
    rm -r "$scratch/again"
    cp "$scratch/drive-3/experts-3.bin" "$scratch/drive-2/part"
    flip "$scratch/drive-2/part/experts-3.bin" 5000
    refused "another store's part" 'does not have the checksum' verify "$scratch/striped" --stripe "$scratch/drive-2/part"
    check "nothing was changed by that" same "$plain" "$scratch/striped"
    rm "$scratch/drive-3/experts-3.bin" "$scratch/drive-3/catalog-3.sealed"
    refused "a drive that died" 'drive-3/experts-3.bin: cannot open: .*--repair SOURCE --stripe NEWDIR' logits "$scratch/striped" "${run[@]}"
    refused "and is not named" 'name the folder that it was moved to, or where it is to be made anew' verify "$scratch/striped" --repair "$checkpoint"
    mkdir "$scratch/drive-2/new"
    check "its part is made again on another" "$sluice" verify "$scratch/striped" --repair "$checkpoint" --stripe "$scratch/drive-2/new"
    check "what was made is sound" "$sluice" verify "$scratch/striped"
    check "and runs" same "$plain" "$scratch/striped"
    rm "$scratch/drive-2/new/experts-3.bin"
    check "from a store as well, in the same place" "$sluice" verify "$scratch/striped" --repair "$store" --stripe "$scratch/drive-2/new"
    rm -r "$scratch/striped" && mkdir "$scratch/striped"
    check "the store's own drive died" "$sluice" verify "$scratch/striped" --repair "$checkpoint" --stripe "$scratch/drive-4" --stripe "$scratch/drive-2/new"
    check "and what was on it is there again" same "$plain" "$scratch/striped"
    cp -r "$scratch/striped" "$scratch/stranger"
    echo other >"$scratch/drive-2/new/catalog-3.sealed"
    flip "$scratch/drive-4/experts-2.bin" 5000
    refused "nothing is written where no copy of the catalog says so" 'drive-2/new/experts-3.bin: is outside the store.s folder' verify "$scratch/stranger" --repair "$checkpoint"
    check "but where it is named" "$sluice" verify "$scratch/stranger" --repair "$checkpoint" --stripe "$scratch/drive-2/new"
    rm -r "$scratch/striped" "$scratch/stranger" "$scratch/drive-4/experts-2.bin" "$scratch/drive-4/catalog-2.sealed" "$scratch/drive-2/new" "$scratch/drive-2/catalog-2.sealed"

    check "packed and compressed, over two drives" eval "'$sluice' pack '$checkpoint' '$scratch/striped' --compress --stripe '$scratch/drive-3' >'$scratch/stdout' &&
        grep 'compressed: experts take .* instead of .*; scales 0\.[0-4][0-9]*, codes 1\.000' '$scratch/stdout'"
    check "inspect says that it is" eval "'$sluice' inspect '$scratch/striped' | grep ' compressed .* less than without'"
    check "and it runs" same "$plain" "$scratch/striped" --cache min
    mv "$scratch/drive-3/experts-2.bin" "$scratch/drive-2"
    check "its part was moved" "$sluice" verify "$scratch/striped" --stripe "$scratch/drive-2"
    flip "$scratch/drive-2/experts-2.bin" 5000
    refused "a run meets a flipped bit in what is compressed" 'layer 0, expert [0-9]*: .*experts-1.bin: the compressed record at offset [0-9]* does not give the w. that the catalog names' \
        logits "$scratch/striped" "${run[@]}"
    refused "so does packing anew" 'layer 0, expert [0-9]*: .*experts-1.bin: the compressed record at offset [0-9]* does not give the w. that the catalog names' \
        pack "$scratch/striped" "$scratch/again"
    refused "verify names that" 'damaged' verify "$scratch/striped"
    check "with layer, expert and file" grep 'damaged: layer 0, expert [0-9]*: .*experts-1.bin: from offset' "$scratch/stdout"
    check "repair of what is compressed" "$sluice" verify "$scratch/striped" --repair "$checkpoint"
    check "after which it is sound" "$sluice" verify "$scratch/striped"
    check "packed anew onto one drive, and not compressed, it goes on" "$sluice" pack "$scratch/striped" "$scratch/again" &&
        check "to the bytes of the plain store" same_store "$store" "$scratch/again"
    rm -r "$scratch/striped" "$scratch/again"
    umount -l "$scratch/drive-2" "$scratch/drive-3" "$scratch/drive-4"
else
    skip "over several drives" "no user namespaces here to mount some in"
fi

refused "compressing what was packed plain" 'begun without --compress' pack "$checkpoint" "$store" --compress

check "packing what is packed" "$sluice" pack "$checkpoint" "$store"
check "a store is packed anew" "$sluice" pack "$store" "$scratch/again" &&
    check "to the same bytes" same_store "$store" "$scratch/again"
rm -r "$scratch/again"
check "a store is packed anew and compressed" "$sluice" pack "$store" "$scratch/again" --compress &&
    check "to the bytes of the compressed one" same_store "$compressed" "$scratch/again"
rm -r "$scratch/again"
check "and a compressed one plain" "$sluice" pack "$compressed" "$scratch/again" &&
    check "to the bytes of the plain one" same_store "$store" "$scratch/again"
rm -r "$scratch/again"
refused "a store is not consumed" 'a store; --consume takes a checkpoint' pack --consume "$store" "$scratch/again"
logits "$store" --cache min >"$scratch/first" &
logits "$store" --io threads >"$scratch/second"
wait
if [ "$(cat "$scratch/first" "$scratch/second" | sort -u)" = "$plain" ]; then
    ok "two read one store"
else
    fail "two read one store"
fi
if command -v flock >/dev/null; then
    check "a second packer" eval "! flock '$store' '$sluice' pack '$checkpoint' '$store' 2>'$scratch/stderr' &&
        grep 'another process is writing' '$scratch/stderr'"
else
    skip "a second packer" "no flock command here"
fi

# ---- damage ----

cp -r "$store" "$scratch/bad"
flip "$scratch/bad/experts-1.bin" 70000
refused "a run meets a flipped bit" 'layer 0, expert [0-9]*: .*experts-1.bin: w. at offset [0-9]* does not have the checksum' \
    logits "$scratch/bad" "${run[@]}"
refused "verify names it" 'damaged' verify "$scratch/bad"
check "with layer, expert and file" grep 'damaged: layer 0, expert [0-9]*, w.*experts-1.bin: from offset' "$scratch/stdout"
damage_as_json() {
    ! "$sluice" verify "$scratch/bad" --json >"$scratch/verified" 2>/dev/null &&
        "$python" -c '
import json, sys
damage, total = map(json.loads, open(sys.argv[1]))
assert damage["damaged"].startswith("layer 0, expert "), damage
assert total["damaged_parts"] == 1 < total["parts"] and total["verified_bytes"] > 0, total' \
            "$scratch/verified"
}
check "... or as JSON" damage_as_json
check "a run that does not look" logits "$scratch/bad" --verify never
flip "$scratch/bad/dense.bin" 5000
refused "a run meets a flipped bit in a dense tensor" 'dense.bin: tensor "embed.weight"' logits "$scratch/bad" "${run[@]}"
echo >>"$scratch/bad/config.json"
"$sluice" synth "$configs/tiny-flash.json" "$scratch/other" --seed 2 >/dev/null
refused "another model repairs nothing" 'is not what' verify "$scratch/bad" --repair "$scratch/other"
check "repair" "$sluice" verify "$scratch/bad" --repair "$checkpoint"
check "what is repaired is sound" "$sluice" verify "$scratch/bad"
check "and is what was packed" same_store "$store" "$scratch/bad"
truncate -s -4096 "$scratch/bad/experts-1.bin"
refused "a file that was cut" 'experts-1.bin: the file has' logits "$scratch/bad" "${run[@]}"
check "repair of that" "$sluice" verify "$scratch/bad" --repair "$checkpoint" &&
    check "gives what was packed" same_store "$store" "$scratch/bad"
sed -i 's/"n_routed_experts": [0-9]*/"n_routed_experts": 8/' "$scratch/bad/config.json"
refused "a config of other sizes" 'config.json: not the file that was packed' logits "$scratch/bad" "${run[@]}"
cp "$store/config.json" "$scratch/bad"
for size in 40000 9000 5000 100 0; do
    truncate -s $size "$scratch/bad/catalog.sealed"
    refused "a sealed catalog cut to $size bytes" 'catalog.sealed: damaged' logits "$scratch/bad" "${run[@]}"
done
refused "nor does verify take it" '--repair-catalog can repair it' verify "$scratch/bad"
check "it is repaired without a checkpoint" "$sluice" verify "$scratch/bad" --repair-catalog
check "and runs" same "$plain" "$scratch/bad"
for file in catalog.sealed catalog.mdb; do
    for ((i = 0; i < 5; i++)); do
        at=$(($(stat -c %s "$scratch/bad/$file") * (2 * i + 1) / 10))
        flip "$scratch/bad/$file" $at
        "$sluice" verify "$scratch/bad" >/dev/null 2>&1 && [ $file = catalog.sealed ] && fail "byte $at of $file"
        check "a bit of $file is repaired" "$sluice" verify "$scratch/bad" --repair-catalog
        check "it is sound then" "$sluice" verify "$scratch/bad"
    done
done
check "and runs as before" same "$plain" "$scratch/bad"
truncate -s 100 "$scratch/bad/catalog.sealed" "$scratch/bad/catalog.mdb"
refused "no copy is left" 'catalog.sealed: damaged.*nor is there a sound copy' verify "$scratch/bad" --repair-catalog
refused "other weights are not written over it" 'dense.bin: [0-9]* of [0-9]* tensors are not those of\|its config.json is not that of' verify "$scratch/bad" --repair "$scratch/other"
check "the checkpoint makes all of it again" "$sluice" verify "$scratch/bad" --repair "$checkpoint"
check "which is what was packed" same_store "$store" "$scratch/bad"
echo >>"$scratch/bad/experts-1.bin"
refused "bytes behind the last record" 'damaged' verify "$scratch/bad"
check "are cut off" "$sluice" verify "$scratch/bad" --repair "$store"
check "from the store itself" same_store "$store" "$scratch/bad"
rm "$scratch/bad/dense.bin"
check "a file that is lost is made again, from another store" "$sluice" verify "$scratch/bad" --repair "$store"
check "and is what it was" same_store "$store" "$scratch/bad"

# ---- a store from a stranger ----

echo secret >"$scratch/mine"
for file in catalog.sealed catalog.mdb dense.bin experts-1.bin config.json hot; do
    [ -e "$scratch/bad/$file" ] && mv "$scratch/bad/$file" "$scratch/kept"
    ln -s "$scratch/mine" "$scratch/bad/$file"
    "$sluice" generate "$scratch/bad" -p text -n 2 >/dev/null 2>&1
    "$sluice" pack "$checkpoint" "$scratch/bad" >/dev/null 2>&1
    "$sluice" verify "$scratch/bad" --repair "$checkpoint" >/dev/null 2>&1
    check "a link in place of $file leads nowhere" eval "[ \"\$(cat '$scratch/mine')\" = secret ]"
    rm -f "$scratch/bad/$file"
    [ -e "$scratch/kept" ] && mv "$scratch/kept" "$scratch/bad/$file"
done
check "and what is left can be repaired" "$sluice" verify "$scratch/bad" --repair "$checkpoint"
mkdir "$scratch/old" && mkdir "$scratch/old/catalog" && echo 1 >"$scratch/old/catalog/data.mdb" && cp "$store/config.json" "$scratch/old"
refused "a store of the first format version" 'has format version 1; this sluice knows version 2' logits "$scratch/old" "${run[@]}"
refused "nor is it packed into" 'has format version 1' pack "$checkpoint" "$scratch/old"
rm -r "$scratch/old"
rm -r "$scratch/bad"

# ---- killed, again and again ----

RANDOM=${SEED:-1}
total=$(($(stat -c %s "$store/dense.bin") + $(stat -c %s "$store/experts-1.bin")))
resumed=0
for ((i = 0; i < 12; i++)); do
    "$sluice" pack "$checkpoint" "$scratch/killed" --batch 512K --threads 2 >"$scratch/stdout" 2>"$scratch/stderr" &
    pid=$!
    target=$((total * (RANDOM % 1000) / 1000))
    while kill -0 $pid 2>/dev/null; do
        now=$(stat -c %s "$scratch/killed/dense.bin" "$scratch/killed/experts-1.bin" 2>/dev/null | awk '{ n += $1 } END { print n + 0 }')
        [ "$now" -lt $target ] || kill -9 $pid 2>/dev/null
    done
    wait $pid 2>/dev/null
    rc=$?
    if [ $rc = 137 ]; then
        resumed=$((resumed + 1))
    elif [ $rc != 0 ]; then
        fail "killed and gone on" "$(cat "$scratch/stderr")"
        break
    fi
    if [ $rc = 137 ] && [ $resumed = 1 ] && [ -e "$scratch/killed/experts-1.bin" ]; then
        refused "a store that is not complete" 'not complete: run sluice pack again' inspect "$scratch/killed"
    fi
done
check "killed $resumed times, it goes on" "$sluice" pack "$checkpoint" "$scratch/killed" &&
    check "and ends in the same bytes" same_store "$store" "$scratch/killed"
check "which are sound" "$sluice" verify "$scratch/killed"
if [ $resumed -ge 2 ]; then
    ok "it was killed more than once"
else
    fail "it was killed more than once" "$resumed"
fi

# ---- consumed ----

if [ -n "${STORE_DRIVES:-}" ]; then
    drive "$scratch/disk" $(($(du -sm "$checkpoint" | cut -f 1) * 3 / 2 + 20))M
    cp -r "$checkpoint" "$scratch/disk/checkpoint"
    refused "no room for both" 'disk/store: .* are needed, .* are free' pack "$scratch/disk/checkpoint" "$scratch/disk/store"
    check "consumed where there is no room for both" "$sluice" pack --consume --batch 1M "$scratch/disk/checkpoint" "$scratch/disk/store"
    check "the store is sound" "$sluice" verify "$scratch/disk/store"
    umount -l "$scratch/disk"
else
    skip "consumed where there is no room for both" "no user namespaces here"
fi

cp -r "$checkpoint" "$scratch/eaten"
"$sluice" pack --consume --batch 512K "$scratch/eaten" "$scratch/eater" >/dev/null 2>"$scratch/stderr" &
pid=$!
while kill -0 $pid 2>/dev/null && [ ! -s "$scratch/eater/experts-1.bin" ]; do :; done
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
check "a checkpoint is consumed" "$sluice" pack --consume "$scratch/eaten" "$scratch/eater"
check "into the same bytes" same_store "$store" "$scratch/eater"
refused "what is left is no checkpoint" 'packed with --consume' inspect "$scratch/eaten"
refused "nor can it be packed again" 'the file was cut' pack "$scratch/eaten" "$scratch/again"
rm -r "$scratch/eaten" "$scratch/eater" "$scratch/again"
cp -r "$checkpoint" "$scratch/eaten"
check "one is consumed and compressed" "$sluice" pack --consume --compress --batch 512K "$scratch/eaten" "$scratch/eater"
check "into the bytes of the compressed store" same_store "$compressed" "$scratch/eater"
rm -r "$scratch/eaten" "$scratch/eater"

"$sluice" pack "$checkpoint" "$scratch/stopped" --batch 512K >/dev/null 2>"$scratch/stderr" &
pid=$!
while kill -0 $pid 2>/dev/null && [ ! -s "$scratch/stopped/dense.bin" ]; do :; done
kill -TERM $pid 2>/dev/null
wait $pid
rc=$?
if [ $rc = 0 ] || { [ $rc = 143 ] && grep -q 'run sluice pack again to go on' "$scratch/stderr"; }; then
    ok "stopped by a signal" "$(cat "$scratch/stderr")"
else
    fail "stopped by a signal" "exit status $rc: $(cat "$scratch/stderr")"
fi
tap_end
