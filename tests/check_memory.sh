#!/usr/bin/env bash
# --ram is never exceeded, and a control group's limits are seen: models of six sizes run with the
# least budget that is not refused, with half as much again and with plenty, and with the least where
# dense weights stream; and the most that the process ever had resident is compared with it. Where
# control groups can be made, one that is as large as the budget runs them too, and quotas bound the
# threads.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
configs=tests/oracle/configs
context=2048

for config in tiny-flash tiny-pro wide-heads; do
    "$sluice" synth $configs/$config.json "$scratch/$config" >"$scratch/log" 2>&1 || cat "$scratch/log"
done
for way in "" --compress; do
    # shellcheck disable=SC2086 # no word where there is no option
    "$sluice" pack $way tests/small "$scratch/store$way" >"$scratch/log" 2>&1 || cat "$scratch/log"
done
models=("$scratch/tiny-flash" "$scratch/tiny-pro" "$scratch/wide-heads" tests/small
    "$scratch/store" "$scratch/store--compress")
printf 'It was a bright cold day in April, and the clocks were striking %d.\n' {1..12} >"$scratch/text"

# The command's most resident bytes, in KiB.
peak() {
    "$python" -c '
import os, sys
child = os.fork()
if child == 0:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.execvp(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status) != 0)' "$scratch/log" "$@"
}

# The least --ram in MiB that the model runs with, and two for prompt and tokenizer.
least() {
    "$sluice" inspect "$1" --cache min --segment 512 --context "$context" --threads 4 |
        awk '/^  together/ && $3 == "MiB" { print int($2) + 3 }'
}

# The same where no layer stays and the cache is the least there is: no smaller one is refused less.
least_streaming() {
    local megabytes=32

    until "$sluice" inspect "$1" --dense stream --ram "${megabytes}M" --segment 512 --context "$context" \
        --threads 4 | grep -q '^slow: '; do
        megabytes=$((megabytes + 1))
    done
    echo $((megabytes + 2))
}

stays_within() { # MiB command...
    local ram=$1 kib

    shift
    if ! kib=$(peak "$@" --ram "${ram}M"); then
        cat "$scratch/log"
        return 1
    fi
    echo "$ram MiB: $kib KiB"
    [ "$kib" -le $((ram * 1024)) ]
}

generate=("$sluice" generate -f "$scratch/text" -n 4 --context "$context" --threads 4)
for model in "${models[@]}"; do
    ram=$(least "$model")
    name=$(basename "$model")
    check "$name within the least" stays_within "$ram" "${generate[@]}" "$model"
    check "$name within half as much again" \
        stays_within $((ram * 3 / 2)) "${generate[@]}" --io threads "$model"
    check "$name within plenty" stays_within $((ram * 4)) "${generate[@]}" "$model"
    check "$name within the least where dense weights stream" \
        stays_within "$(least_streaming "$model")" "${generate[@]}" "$model" --dense stream
done
seq -s ' ' 2 400 >"$scratch/tokens"
check "logits too" stays_within "$(least tests/small)" "$sluice" logits tests/small \
    --tokens "$scratch/tokens" --out "$scratch/logits.npy" --context "$context" --threads 4
check "perplexity too" stays_within "$(least tests/small)" "$sluice" perplexity tests/small \
    -f "$scratch/text" --context "$context" --threads 4

# ---- control groups ------------------------------------------------------------------------------

# The folder of this process's group in a hierarchy of version 1.
group_of() {
    local path

    path=$(awk -F: -v c="$1" '("," $2 ",") ~ ("," c ",") { print $3 }' /proc/self/cgroup)
    path=/sys/fs/cgroup/$1${path%/}
    [ -n "$path" ] && [ -w "$path/cgroup.procs" ] && echo "$path"
}

in_group() { # folder command...
    local group=$1

    shift
    (echo "$BASHPID" >"$group/cgroup.procs" && "$@")
}

group=
remove_group() {
    [ -z "$group" ] || rmdir "$group"/nested "$group" 2>/dev/null
    group=
}
trap 'remove_group; rm -rf "$scratch"' EXIT

make_group() { # controller
    local parent

    parent=$(group_of "$1") && mkdir "$parent/sluice-test-$$" 2>/dev/null || return 1
    group=$parent/sluice-test-$$
    mkdir "$group/nested"
}

set_limit() { # MiB
    echo "$(($1 << 20))" >"$group/memory.limit_in_bytes"
}

runs_in_as_much() { # model
    local ram

    ram=$(least "$1")
    set_limit "$ram" && echo 0 >"$group/memory.max_usage_in_bytes" || return 1
    in_group "$group/nested" "${generate[@]}" "$1" --ram "${ram}M" >"$scratch/log" 2>&1 || {
        cat "$scratch/log"
        return 1
    }
    echo "$ram MiB: $(($(cat "$group/memory.max_usage_in_bytes") >> 10)) KiB, file cache included"
}

default_fits() { # model MiB
    set_limit "$2" || return 1
    in_group "$group/nested" "${generate[@]}" "$1" >"$scratch/log" 2>&1 || {
        cat "$scratch/log"
        return 1
    }
    in_group "$group/nested" "$sluice" inspect "$1" --context "$context" | grep '^  together'
}

names_the_group() {
    set_limit 70 || return 1
    ! in_group "$group/nested" "${generate[@]}" tests/small --ram 71M 2>"$scratch/log" &&
        grep "more than the 70.0 MiB that the control group allows ($group/memory.limit_in_bytes)" \
            "$scratch/log"
}

if make_group memory; then
    for model in "${models[@]}"; do
        check "$(basename "$model") in a group as large as its budget" runs_in_as_much "$model"
    done
    check "the default fits into a small group" default_fits tests/small 80
    check "and into a smaller one" default_fits tests/small 76
    check "a budget above the group's is refused, by name" names_the_group
    remove_group
else
    skip "memory limits of control groups" "none can be made here"
fi

threads_in_group() { # quota in microseconds of 100,000
    echo "$1" >"$group/cpu.cfs_quota_us"
    in_group "$group/nested" "$sluice" inspect tests/small --context "$context" |
        grep -o '^  [0-9]* thread'
}

if make_group cpu; then
    check "half a processor makes one thread" [ "$(threads_in_group 50000)" = "  1 thread" ]
    check "ten processors make as many as there are" \
        [ "$(threads_in_group 1000000)" = "$(threads_in_group -1)" ]
    remove_group
else
    skip "quotas of control groups" "none can be made here"
fi
tap_end
