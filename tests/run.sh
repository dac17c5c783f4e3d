#!/usr/bin/env bash
# Runs test programs and sums up what they report.
#
#   tests/run.sh PROGRAM...
#
# A program is a cmocka binary or a script; both print TAP on stdout. One line is shown for each,
# with its time, and the full output of those that fail. The last line is always
# "N passed, N failed, N skipped"; the exit status is 0 if nothing failed and something passed.
# Why something was skipped is shown where the program says it: "ok 3 - name # SKIP why", or
# "# SKIP why" on a line of its own.
# A program that crashes, takes too long, reports fewer tests than it planned or plans none counts
# as a failed test; one that exits with 77 as a skipped one.
#
#   TEST_TIMEOUT_S   time for one program, 600 by default
#   TEST_JOBS        programs that run at a time, 1 by default
#   TEST_WRAPPER     a command put before the binaries, as in "valgrind -q --error-exitcode=99"
set -u

timeout_s=${TEST_TIMEOUT_S:-600}
read -r -a wrapper <<<"${TEST_WRAPPER:-}"
export CMOCKA_MESSAGE_OUTPUT=TAP
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
child=
trap '[ -z "$child" ] || kill "$child"; exit 130' INT TERM

# Prints "planned reported passed failed skipped". cmocka writes a skipped test as "not ok N # SKIP".
count_tap() {
    awk '/^1\.\.[0-9]+/ { planned += substr($1, 4) }
         /^(not )?ok / {
             reported++
             if (/# *[Ss][Kk][Ii][Pp]/) skipped++
             else if (/^not/) failed++
             else passed++
         }
         END { print (planned == "" ? "none" : planned), reported + 0, passed + 0, failed + 0, skipped + 0 }' "$1"
}

# Prints why a program failed beyond the tests that it reported, if it did.
trouble() { # rc planned reported failed
    if [ "$1" = 124 ] || [ "$1" = 137 ]; then
        echo "took longer than $timeout_s s"
    elif [ "$1" -gt 128 ]; then
        echo "killed by signal $(($1 - 128))"
    elif [ "$2" = none ]; then
        echo "exit status $1, no plan printed"
    elif [ "$3" -lt "$2" ]; then
        echo "exit status $1, only $3 of $2 tests reported"
    elif [ "$1" != 0 ] && [ "$4" = 0 ]; then
        echo "exit status $1, though no test failed"
    fi
}

# Several at a time: each by a run.sh of its own, whose output is shown when it is complete.
if [ "${TEST_JOBS:-1}" -gt 1 ] && [ $# -gt 1 ]; then
    # shellcheck disable=SC2016 # for the shell that xargs starts
    printf '%s\0' "$@" | xargs -0 -n 1 -P "$TEST_JOBS" bash -c \
        'output=$(TEST_JOBS=1 "$0" "$1"); flock 9; echo "$output" | sed \$d; echo "$output" |
            tail -n 1 >&9; exit 0' "$0" 9>>"$scratch/sums"
    awk '{ passed += $1; failed += $3; skipped += $5 }
         END { print passed + 0 " passed, " failed + 0 " failed, " skipped + 0 " skipped"
               exit failed > 0 || passed + 0 == 0 }' "$scratch/sums"
    exit
fi

all_passed=0 all_failed=0 all_skipped=0
for program in "$@"; do
    command=("$program")
    case $program in
    *.sh) ;;
    *) command=("${wrapper[@]}" "$program") ;;
    esac
    case $program in
    */*) ;;
    *) command[-1]=./$program ;;
    esac
    start=$EPOCHREALTIME
    timeout -k 5 "$timeout_s" "${command[@]}" >"$scratch/out" 2>"$scratch/err" </dev/null &
    child=$! # in the background, so that an interrupt is seen at once
    wait $child
    rc=$?
    child=
    ms=$(((${EPOCHREALTIME//[!0-9]/} - ${start//[!0-9]/}) / 1000))
    read -r planned reported passed failed skipped <<<"$(count_tap "$scratch/out")"
    if [ $rc = 77 ] && [ "$failed" = 0 ]; then
        why='' skipped=$((skipped + 1))
    else
        why=$(trouble $rc "$planned" "$reported" "$failed")
        [ -z "$why" ] || failed=$((failed + 1))
    fi
    verdict=ok
    [ "$failed" = 0 ] || verdict=FAIL
    printf '%-4s %-28s %4d passed, %d failed, %d skipped  %d.%03d s%s\n' $verdict \
        "$(basename "$program")" "$passed" "$failed" "$skipped" \
        $((ms / 1000)) $((ms % 1000)) "${why:+  ($why)}"
    sed -n -e 's/^ok [0-9]* - \(.*\) # SKIP /     | skipped: \1: /p' \
        -e 's/^# SKIP /     | skipped: /p' "$scratch/out"
    [ $verdict = ok ] || sed 's/^/     | /' "$scratch/out" "$scratch/err"
    all_passed=$((all_passed + passed))
    all_failed=$((all_failed + failed))
    all_skipped=$((all_skipped + skipped))
done
echo "$all_passed passed, $all_failed failed, $all_skipped skipped"
[ $all_failed = 0 ] && [ $all_passed -gt 0 ]
