#!/usr/bin/env bash
# sluice batch, without a daemon: what make writes, what check refuses, and that run gives the same
# bytes whoever shares its steps, in whatever kind of folder the model is, and however often it was
# killed on the way (SL_KILLS times, at random moments; SL_SEED repeats them).
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

sluice=$PWD/${SLUICE:-build/release/sluice}
python=${PYTHON:-/usr/bin/python3}
model=$PWD/tests/small
kills=${SL_KILLS:-3}
RANDOM=${SL_SEED:-$$}
echo "# SL_SEED=${SL_SEED:-$$}"
cd "$scratch" || exit 1

batch() { "$sluice" batch "$@" 2>"$scratch/stderr"; }
says() { grep -q -- "$1" "$scratch/stderr" || { cat "$scratch/stderr"; return 1; }; }
run() { batch run "$model" in.jsonl "$@" --ram 2G --journal-every 0.2; }
same() { sort "$1" | cmp - "$scratch/sorted"; }

# ---- make and check -------------------------------------------------------------------------------

mkdir docs docs/sub docs/.hidden
for n in 1 2 3; do
    sed -n "$((20 * n)),$((20 * n + 8))p" "$OLDPWD/docs/PERFORMANCE.md" >docs/$n.txt
done
echo "A short one." >docs/sub/4.txt
echo "Not this." >docs/.hidden/5.txt
echo "Which number is named first?" >question

makes() {
    batch make --ask question --ask "Why?" --system "Be brief." --max-tokens 16 docs >in.jsonl &&
        "$python" - <<'END'
import json
lines = [json.loads(line) for line in open("in.jsonl")]
ids = [line["custom_id"] for line in lines]
assert ids == [f"docs/{n}#{k}" for n in ("1.txt", "2.txt", "3.txt", "sub/4.txt") for k in (1, 2)], ids
for line in lines:
    document = open(line["custom_id"].split("#")[0]).read()
    system, user = line["body"]["messages"]
    assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
    assert system == {"role": "system", "content": "Be brief."}
    asked = "Why?" if line["custom_id"].endswith("2") else "Which number is named first?\n"
    assert user["content"] == document + "\n\n" + asked
    assert line["body"]["max_tokens"] == 16
END
}
check "make puts the document first and the question last" makes
make_refuses() {
    printf 'caf\351\n' >latin && ! batch make --ask Why latin >made && says 'latin: is no UTF-8' &&
        ! batch make --ask Why docs/1.txt docs/1.txt >made && says 'named twice' &&
        ! batch make --ask Why nowhere >made && says 'nowhere: No such file' &&
        ! batch make --ask Why docs latin >made && says 'latin: is no UTF-8' && [ ! -s made ] &&
        ! batch make docs >made && says '--ask is needed'
}
check "make refuses what is no text, or not there" make_refuses

"$python" - <<'END'
import json
good = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Once", "max_tokens": 5}}
def but(**changes): return json.dumps({**good, **changes})
lines = [but(), but(), "{", but(custom_id="b", method="GET"), but(custom_id="c", url="/v1/embeddings"),
         but(custom_id="d", body={"prompt": "Once", "max_tokens": 0}), but(custom_id=7), "",
         but(custom_id="e", body={"prompt": "Once", "model": "other"}), but(custom_id="f", body=None),
         but(custom_id="g", body={"prompt": "word " * 900}), but(custom_id="h", body={"prompt": "Twice", "max_tokens": 4, "stream": True})]
open("bad.jsonl", "w").write("\n".join(lines))
END
bad_lines="2:duplicate_custom_id 3:invalid_json_line 4:invalid_method 5:invalid_url"
bad_lines+=" 6:invalid_request 7:invalid_custom_id 9:model_not_found 10:missing_required_parameter"
bad_lines+=" 11:context_length_exceeded"
checks() {
    local found

    found=$(batch check "$model" bad.jsonl --context 500 --json | "$python" -c '
import json, sys
o = json.loads(sys.stdin.read())
for f in sorted(o["faults"], key=lambda f: f["line"]):
    print(f["line"], f["code"], sep=":", end=" ")')
    [ "$found" = "$bad_lines " ] || { echo "$found"; return 1; }
    ! batch check "$model" bad.jsonl && says 'bad.jsonl: line 4: invalid_method' &&
        batch check "$model" in.jsonl && ! batch check "$model" /dev/null && true
}
check "check tells each line that is no request, and why" checks
skips() {
    ! batch run "$model" bad.jsonl skipped.jsonl --context 500 --ram 2G && says 'skip-bad' &&
        [ ! -e skipped.jsonl ] && rm -rf skipped.jsonl.journal &&
        ! batch run "$model" bad.jsonl skipped.jsonl --context 500 --ram 2G --skip-bad &&
        [ "$(grep -c '"error":null' skipped.jsonl)" = 2 ] &&
        [ "$(grep -c '"response":null' skipped.jsonl.errors)" = 9 ]
}
check "--skip-bad makes errors of them" skips

# ---- results --------------------------------------------------------------------------------------

start=$EPOCHREALTIME
run out.jsonl
whole_ms=$(((${EPOCHREALTIME//./} - ${start//./}) / 1000))
sort out.jsonl >sorted
has_all() {
    "$python" - <<'END'
import json
asked = [json.loads(line)["custom_id"] for line in open("in.jsonl")]
lines = [json.loads(line) for line in open("out.jsonl")]
assert sorted(line["custom_id"] for line in lines) == sorted(asked)
for line in lines:
    body = line["response"]["body"]
    assert line["response"]["status_code"] == 200 and line["error"] is None
    assert line["id"] == "batch_req_" + line["response"]["request_id"]
    assert body["object"] == "chat.completion" and body["usage"]["completion_tokens"] <= 16
END
}
check "each item has one result, in the cloud's form" has_all
check "questions share their document" says '[1-9][0-9]* shared'
sums_up() { # RESULTS: the figures that a run has left in $scratch/stderr are those of its results
    "$python" - "$1" "$scratch/stderr" "$("$sluice" inspect "$model" --json)" \
        "$("$sluice" batch check "$model" in.jsonl --json)" <<'END'
import json, os, re, sys
usages = [json.loads(line)["response"]["body"]["usage"] for line in open(sys.argv[1])]
lines = dict(line.rstrip().split(None, 1) for line in open(sys.argv[2]) if " " in line)
memory, checked = json.loads(sys.argv[3])["memory"], json.loads(sys.argv[4])
units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
def size(text): number, unit = text.split(); return float(number) * units[unit]
n_in, n_out, computed, shared = map(int, re.findall(r"\d+", lines["tokens"]))
assert n_in == sum(usage["prompt_tokens"] for usage in usages) == checked["prompt_tokens"], lines
assert n_out == sum(usage["completion_tokens"] for usage in usages), lines
assert computed + shared == n_in and shared > 0, lines
assert 0 <= checked["computed_tokens"] - computed < 64 * len(usages), (lines, checked)
seconds, steps, rate = re.match(r"(\d+) s, (\d+) steps?, ([\d.]+) tokens/s", lines["time"]).groups()
assert abs((computed + n_out) / float(rate) - int(seconds)) <= 1 and int(steps) >= 16, lines
read, step, hits, reads = re.match(r"(\S+ \S+) read, (\S+ \S+) a step; hit rate (\S+) %, (\S+) reads",
                                   lines["experts"]).groups()
assert abs(size(step) * int(steps) / size(read) - 1) < 0.1 and 0 < float(hits) < 100, lines
assert 1 <= float(reads) <= 1.02, lines
few = size(read) <= memory["slots_max"] * memory["slot_bytes"]
assert few == (float(hits) > 90), (lines, memory)
has_joules = os.access("/sys/class/powercap/intel-rapl:0/energy_uj", os.R_OK)
assert has_joules == ("energy" in lines), lines
print(lines["experts"])
END
}
check "the figures at the end are those of the results" sums_up out.jsonl
alone() { run one.jsonl --max-items-at-once 1 && same one.jsonl; }
check "one at a time gives the same bytes" alone
seven() { run seven.jsonl --max-items-at-once 7 --segment 100 --cache min && same seven.jsonl; }
check "seven in steps of 100 tokens, with the least cache, too" seven
check "its figures, too" sums_up seven.jsonl
stored() {
    "$sluice" pack "$model" store/small 2>/dev/null &&
        batch run store/small in.jsonl stored.jsonl --ram 2G && same stored.jsonl
}
mkdir store
check "so does a store" stored
again() { run out.jsonl && says '8 of 8 items done' && same out.jsonl; }
check "a batch that is done stays as it is" again

# ---- kills ----------------------------------------------------------------------------------------

# Some kills are bound to be before anything is kept, so they count only in sum.
killed() {
    local n=0 n_whole=0 ms

    while [ "$n" -lt "$kills" ]; do
        ms=$((whole_ms / 5 + RANDOM * whole_ms / 40960))
        timeout -s KILL "$(printf %d.%03d $((ms / 1000)) $((ms % 1000)))" \
            "$sluice" batch run "$model" in.jsonl killed.jsonl --ram 2G --journal-every 0.1 \
            2>>stderrs
        if [ $? = 137 ]; then
            n=$((n + 1))
        else # done before the kill: begin again, and kill sooner
            same killed.jsonl || return 1
            rm -rf killed.jsonl*
            n_whole=$((n_whole + 1))
            whole_ms=$((whole_ms * 9 / 10))
        fi
    done
    run killed.jsonl && same killed.jsonl && echo "$n_whole more batches were done meanwhile"
}
check "killed $kills times, the results are the same bytes" killed

# The work that a kill costs, counted in steps of one item at a time: killed when some seconds of it
# are done. What was made two seconds before that, and a third of all at least, is not made again.
lost() {
    run_long() { batch run "$model" long.jsonl "$1" --ram 2G --draft off --max-items-at-once 1; }
    batch make --ask Why --ask When --ask Who --ask What --max-tokens 400 docs >long.jsonl &&
        run_long whole.jsonl && cp stderr whole.figures || return 1
    "$python" "$OLDPWD/tests/on_terminal.py" --columns 200 --signal SIGKILL --when ' 1[2-9].. made' \
        "$sluice" batch run "$model" long.jsonl lost.jsonl --ram 2G --draft off \
        --max-items-at-once 1 --journal-every 0.2 >shown || return 1
    run_long lost.jsonl && cmp <(sort whole.jsonl) <(sort lost.jsonl) && "$python" - <<'END'
import json, re
shown = json.load(open("shown"))
assert shown["status"] == -9, shown
whole, rest = open("whole.figures").read(), open("stderr").read()
steps = [int(re.search(r"(\d+) steps", text)[1]) for text in (whole, rest)]
rate = float(re.search(r"([\d.]+) tokens/s", whole)[1])
made = int(re.findall(r"(\d+) made", shown["terminal"])[-1])
again = steps[1] - (steps[0] - made)
print(f"{again} of {made} tokens were made again, at {rate:.0f} tokens/s")
assert again < min(2 * rate, made * 2 / 3), (steps, made)
END
}
if [ "$kills" -ge 100 ]; then
    check "a kill costs little work" lost
fi

# ---- stopped on the way ---------------------------------------------------------------------------

# Answers are long enough from here on that much is left when a part has been seen to be done.
batch make --ask question --ask "Why?" --system "Be brief." --max-tokens 150 docs >in.jsonl
run reference.jsonl
sort reference.jsonl >sorted

# Starts a run in the background and waits until a part is done, and not all of it. A line that comes
# second is written when the journal has the first.
begin() { # OUT [OPTION...]
    "$sluice" batch run "$model" in.jsonl "$@" --ram 2G --journal-every 0.1 --max-items-at-once 1 \
        2>"$scratch/background" &
    runner=$!
    wait_for has_two "$1"
}
has_two() { [ "$(wc -l <"$1")" -ge 2 ]; }
parks() {
    begin parked.jsonl
    kill -TERM "$runner" # of Ctrl-C, the shell keeps what it starts in the background
    wait "$runner"
    [ $? = 143 ] && grep -q 'parked: .* the same command goes on' background &&
        run parked.jsonl && says 'going on' && same parked.jsonl
}
check "a signal parks, and the same command goes on" parks
# One at a time, so many questions take several times as long as the second or two that they get.
until_time() {
    local asks=()

    for n in {1..16}; do asks+=(--ask "Question $n?"); done
    batch make "${asks[@]}" --max-tokens 150 docs >many.jsonl &&
        batch run "$model" many.jsonl whole-many.jsonl --ram 2G || return
    batch run "$model" many.jsonl until.jsonl --ram 2G --max-items-at-once 1 \
        --until "$(date -d '2 seconds' +%T)"
    [ $? = 3 ] && says 'the same command goes on' &&
        batch run "$model" many.jsonl until.jsonl --ram 2G --until "$(date +%H:%M)" &&
        cmp <(sort whole-many.jsonl) <(sort until.jsonl)
}
check "--until ends with status 3" until_time
second() {
    begin second.jsonl
    ! run second.jsonl && says 'another process works on this journal' && kill -KILL "$runner"
    wait "$runner"
    run second.jsonl && same second.jsonl
}
check "a second run on one journal is refused" second

interrupted() { # a run that a part of is done of: OUT
    begin "$1"
    kill -KILL "$runner"
    wait "$runner" 2>/dev/null
}
changed() {
    interrupted changed.jsonl
    cp in.jsonl kept.jsonl && sed -i 's/Be brief/Be quick/' in.jsonl
    ! run changed.jsonl && says 'the input is not the one'
    local rc=$?
    mv kept.jsonl in.jsonl
    [ "$rc" = 0 ] && run changed.jsonl && same changed.jsonl
}
check "another input is refused, and nothing is lost" changed
removed() {
    interrupted removed.jsonl
    mv removed.jsonl away && ! run removed.jsonl && says 'the results are gone' &&
        head -c 10 away >removed.jsonl && ! run removed.jsonl && says 'somebody has cut' &&
        mv away removed.jsonl && run removed.jsonl && same removed.jsonl
}
check "results that were removed or cut are missed" removed
while_running() {
    begin gone.jsonl
    rm gone.jsonl
    wait "$runner" && grep -q 'gone.jsonl was removed; it was written again' background &&
        same gone.jsonl
}
check "results that are removed meanwhile are written again" while_running
other_model() {
    interrupted other.jsonl
    ! batch run store/small in.jsonl other.jsonl --ram 2G && says 'another model' &&
        ! batch run "$model" in.jsonl other.jsonl --ram 2G --numerics exact && says 'another model' &&
        run other.jsonl && same other.jsonl
}
check "a journal of another model, or of other numerics, is refused" other_model
damaged() {
    interrupted damaged.jsonl
    cp damaged.jsonl.journal/journal.mdb kept.mdb
    "$python" -c '
data = bytearray(open("kept.mdb", "rb").read())
for at in range(8192, len(data), 61): data[at] ^= 0x40
open("damaged.jsonl.journal/journal.mdb", "wb").write(data)'
    ! run damaged.jsonl && says 'damaged' && cmp -s kept.mdb damaged.jsonl.journal/journal.mdb &&
        return 1
    cp kept.mdb damaged.jsonl.journal/journal.mdb && run damaged.jsonl && same damaged.jsonl
}
check "a damaged journal is refused" damaged
foreign() {
    echo mine >mine.jsonl && ! run mine.jsonl && says 'is there already' &&
        [ "$(cat mine.jsonl)" = mine ] && ! run in.jsonl && says 'one file'
}
check "a file that is there is not written over" foreign

full() {
    dd if=/dev/zero of=small/filler bs=1024 count=64 2>/dev/null
    "$sluice" batch run "$model" in.jsonl small/out.jsonl --ram 2G --journal full.journal \
        2>background &
    runner=$!
    wait_for grep 'paused: .*No space left' background || return
    rm small/filler
    wait "$runner" && grep -q 'the batches go on' background && same small/out.jsonl
}
mkdir small
if mount -t tmpfs -o size=64k tmpfs small 2>/dev/null; then
    check "a full disk pauses the batch" full
    umount small
else
    skip "a full disk pauses the batch" "cannot mount a file system"
fi

tap_end
