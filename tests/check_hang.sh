#!/usr/bin/env bash
# A drive that stops to answer: at whatever point of a run that happens, the command must print one
# line that names the file, within the deadline (four stalls of a second here), and end with status
# 1, though the drive never answers. The drive is a file system of our own (tests/hang_fs.py), which
# needs /dev/fuse and the right to mount.
cd "$(dirname "$0")/.." || exit 1
if [ -z "${HANG_NAMESPACE:-}" ]; then
    for flags in -m -Urm; do
        # shellcheck disable=SC2086 # flags may be several
        unshare $flags true 2>/dev/null && HANG_NAMESPACE=1 exec unshare $flags bash "$0" "$@"
    done
fi
. tests/tap.sh

sluice=$PWD/${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
hang_fs=$PWD/tests/hang_fs.py
deadline_ms=4000 patience_ms=20000

# Mounts a copy that hangs; $server is its process then.
mount_hanging() { # folder file operation [offset]
    mkdir -p "$1/drive"
    "$python" "$hang_fs" "$scratch/real" "$1/drive" "${@:2}" >"$1/ready" 2>"$1/mount" &
    server=$!
    while [ ! -s "$1/ready" ]; do
        kill -0 $server 2>/dev/null || return 1
    done
}

end_hanging() { # folder
    umount -l "$1/drive"
    kill $server 2>/dev/null
    wait $server 2>/dev/null
}

# Runs a command on a copy that hangs. $folder/result gets its status and milliseconds.
run_hanging() { # folder "file operation [offset]" arguments...
    local folder=$1 start=$EPOCHREALTIME end

    # shellcheck disable=SC2086 # several words
    mount_hanging "$folder" $2 || return
    cd "$folder" || return
    timeout -k 1 $((patience_ms / 1000)) "$sluice" "${@:3}" >out 2>err
    echo $? >status
    end=$EPOCHREALTIME
    echo $(((${end//[!0-9]/} - ${start//[!0-9]/}) / 1000)) >ms
    end_hanging "$folder"
}

report() { # name folder pattern
    local status ms

    status=$(cat "$2/status") ms=$(cat "$2/ms")
    if [ "$status" != 1 ]; then
        fail "$1" "exit status $status: $(head -c 300 "$2/err")"
    elif [ "$ms" -lt $deadline_ms ]; then
        fail "$1" "after $ms ms: $(head -c 300 "$2/err")"
    elif [ "$(grep -vc -e '^note: ' -e '^drive/[a-z]*: ' "$2/err")" != 1 ] || ! grep -q "^sluice: .*$3" "$2/err"; then
        fail "$1" "expected $3, got $(head -c 300 "$2/err")"
    else
        ok "$1" "$(tail -n 1 "$2/err")"
    fi
}

mkdir "$scratch/real"
check "a model to read" "$sluice" synth tests/oracle/configs/tiny-flash.json "$scratch/real/model" --layers 3
check "a store to read" "$sluice" pack "$scratch/real/model" "$scratch/real/store"
for i in {1..20}; do echo $((i * 37 % 1024)); done >"$scratch/tokens"
mkdir "$scratch/none"
if ! mount_hanging "$scratch/none" none read; then
    skip "a drive that hangs" "no file systems can be mounted here: $(tail -n 1 "$scratch/none/mount")"
    tap_end
fi
run=(--tokens "$scratch/tokens" --out /dev/null --io-stall 1)
for model in model store; do
    check "as long as it answers, $model" "$sluice" logits "$scratch/none/drive/$model" "${run[@]}"
done
uring=yes
"$sluice" logits "$scratch/none/drive/store" "${run[@]}" --io uring >/dev/null 2>&1 || uring=
end_hanging "$scratch/none"

# Direct reads by threads cannot be killed while they wait: the line comes, and the process ends when
# the system gives the reads up.
run_direct() {
    local folder=$scratch/direct pid

    mkdir "$folder"
    mount_hanging "$folder" experts-1.bin read 300000 || return
    cd "$folder" || return
    : >err # which the loop may look for before the command has opened it
    "$sluice" logits drive/store "${run[@]}" --io threads >out 2>>err &
    pid=$!
    for ((i = 0; i < patience_ms / 50 && $(grep -c "^sluice: " err) == 0; i++)); do
        read -r -t 0.05 <> <(:)
    done
    end_hanging "$folder"
    wait $pid
    echo $? >status
    echo $deadline_ms >ms
}

# All at once: they do nothing but wait.
run_direct &
names=() patterns=()
hang() { # name "file operation [offset]" pattern arguments...
    local folder=$scratch/hang${#names[@]}

    names+=("$1") patterns+=("$3")
    mkdir "$folder"
    run_hanging "$folder" "$2" "${@:4}" &
}
checkpoint=(logits drive/model "${run[@]}") store=(logits drive/store "${run[@]}")
shard="model-00002-of-00006.safetensors"
reading='drive [0-9]*:[0-9]*: no answer for 4 s, reading at offset [0-9]*$'
piece='drive [0-9]*:[0-9]*: no answer for 4 s, at offset [0-9]* ([0-9]* bytes wanted at [0-9]*)$'
hang "opening the config" "config.json open" "config.json: no answer for 4 s, opening it$" "${checkpoint[@]}"
hang "the config" "config.json read" "config.json: $reading" "${checkpoint[@]}"
hang "the index" "model.safetensors.index.json read" "index.json: $reading" "${checkpoint[@]}"
hang "a header" "$shard read" "$shard: $reading" "${checkpoint[@]}"
hang "dense weights" "$shard read 200000" "$shard: $piece" "${checkpoint[@]}"
hang "a catalog" "catalog.sealed read" "catalog.sealed: $reading" "${store[@]}"
hang "a store's dense weights" "dense.bin read 300000" "dense.bin: $piece" "${store[@]}"
[ -z "$uring" ] ||
    hang "experts" "experts-1.bin read 300000" "experts-1.bin: $piece" "${store[@]}" --io uring
hang "experts, read by threads" "experts-1.bin indirect 300000" "experts-1.bin: $piece" \
    "${store[@]}" --io threads
wait
[ -n "$uring" ] || skip "experts" "no io_uring here"
for i in "${!names[@]}"; do
    report "${names[i]}" "$scratch/hang$i" "${patterns[i]}"
done
report "experts, read directly by threads" "$scratch/direct" "experts-1.bin: $piece"
tap_end
