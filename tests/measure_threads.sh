#!/usr/bin/env bash
# How speed grows with threads: decode, texts in lockstep and prompts with everything resident, each
# beside what memory and the multipliers allowed in the same runs.
#
#   [OUT=FOLDER] [RUNS=3] [LIMIT_S=570] tests/measure_threads.sh MODEL [THREADS...]
#
# With 1, 2, 4, 8 and 16 threads, as many of these as there are processors, if none are given. Each
# measurement leaves a file of JSON in OUT (build/threads) and is not made again while that is there;
# after LIMIT_S seconds no other is begun, and the next call goes on. A model is opened anew for each,
# so it had better lie in the page cache. Needs bash, coreutils, python3 and the program alone.
set -eu
[ $# -gt 0 ] || { echo "usage: tests/measure_threads.sh MODEL [THREADS...]" >&2; exit 2; }
model=$1
shift
sluice=${SLUICE:-build/release/sluice}
out=${OUT:-build/threads}
runs=${RUNS:-3}
limit_s=${LIMIT_S:-570}
processors=$(nproc)
[ $# -gt 0 ] || for n in 1 2 4 8 16; do
    [ "$n" -gt "$processors" ] || set -- "$@" "$n"
done
mkdir -p "$out"
echo "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1), $processors processors;" \
    "$("$sluice" --version); $model"

show() { # threads file: of each kind of step tokens/s, the limits, the ratio, and the waiting
    python3 - "$@" <<'PYTHON'
import json, sys
threads, path = sys.argv[1:]
kinds = [] # the figures of each, of which the first is the speed
for line in map(json.loads, open(path)):
    if line["unit"] == "tokens/s" and ", " not in line["what"]:
        kinds.append([])
    kinds[-1].append(line)
for lines in kinds:
    speed, *others = lines
    at = {line["what"].split(", ")[1]: line for line in others if not line["shape"].startswith("rate")}
    rates = [line for line in others if line["shape"].startswith("rate")]
    peaks = {"memory": next((r["limit"] for r in rates if r["unit"] == "GB/s"), None)}
    for name, phase in ("int8", "routed experts"), ("BF16", "attention projections"):
        peaks[name] = next((r["limit"] for r in rates
                            if r["what"].endswith(phase) and r["unit"] == "GMAC/s"), None)
    print(f"{threads:>3} threads  {speed['what']:<7} {speed['value']:9.2f} of {speed['limit']:9.2f} "
          f"tokens/s {100 * speed['ratio']:5.1f} %  ({at['slowest']['value']:.2f} to "
          f"{at['fastest']['value']:.2f})  barriers "
          f"{100 * at['barriers']['ratio'] if 'barriers' in at else 0:4.1f} %  "
          + "  ".join(f"{name} {rate:.4g}" for name, rate in peaks.items() if rate)
          + f"  {speed['shape']}" + ("  disturbed" if speed["disturbed"] else ""))
PYTHON
}

measure() { # threads what kind arguments...
    local threads=$1 kind=$3 file=$out/$1-$2.json

    shift 3
    if [ ! -e "$file" ]; then
        if [ "$SECONDS" -ge "$limit_s" ]; then
            echo "$limit_s s are over: call again to go on" >&2
            exit 75
        fi
        "$sluice" bench "$kind" "$model" --threads "$threads" --runs "$runs" --json "$@" \
            >"$file.part" 2>"$file.stderr" || { cat "$file.stderr" >&2; exit 1; }
        mv "$file.part" "$file"
    fi
    show "$threads" "$file"
}

for n in "$@"; do
    measure "$n" decode decode --tokens 16 --position 128
    measure "$n" lockstep decode --tokens 4 --sequences 8,64 --position 128
    measure "$n" prompt-512 prefill --tokens 512
    measure "$n" prompt-2048 prefill --tokens 2048
done
