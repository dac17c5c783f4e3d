#!/usr/bin/env bash
# The test driver: that it notices every way in which a program can fail. Programs that pass, fail,
# skip, crash, hang, stop early or print nothing are run one by one, and its last line is compared.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

program() { # name, body on stdin
    { echo '#!/usr/bin/env bash'; cat; } >"$scratch/$1"
    chmod +x "$scratch/$1"
}

expect() { # name rc last-line programs...
    local name=$1 rc=$2 line=$3 output got
    shift 3
    output=$(TEST_TIMEOUT_S=1 tests/run.sh "${@/#/$scratch/}" 2>&1)
    got=$?
    if [ $got = "$rc" ] && [ "$(tail -n 1 <<<"$output")" = "$line" ]; then
        ok "$name"
    else
        fail "$name" "exit status $got, $(tail -n 1 <<<"$output")"
    fi
}

program good <<<'echo 1..2; echo ok 1 - a; echo ok 2 - b'
program bad <<<'echo 1..2; echo ok 1 - a; echo not ok 2 - b; exit 1'
program skips <<<'echo 1..2; echo ok 1 - a; echo "not ok 2 # SKIP b"'
program crash <<<'echo 1..2; echo ok 1 - a; echo ok 2 - b; kill -SEGV $$'
program hang <<<'echo 1..1; echo ok 1 - a; exec sleep 100'
program short <<<'echo 1..3; echo ok 1 - a'
program silent <<<'exit 0'
program reasons <<<'echo 1..2; echo "ok 1 - a # SKIP no b here"; echo ok 2 - c; echo "# SKIP half of c"'
program lies <<<'echo 1..1; echo ok 1 - a; exit 3'
program away <<<'exit 77'
program groups <<<'echo 1..1; echo ok 1 - a; echo 1..1; echo ok 1 - b'

expect "all pass" 0 "2 passed, 0 failed, 0 skipped" good
expect "a failed test" 1 "3 passed, 1 failed, 0 skipped" good bad
expect "skipped as cmocka does" 0 "1 passed, 0 failed, 1 skipped" skips
expect "a crash after the last test" 1 "2 passed, 1 failed, 0 skipped" crash
expect "a hang" 1 "1 passed, 1 failed, 0 skipped" hang
expect "fewer tests than planned" 1 "1 passed, 1 failed, 0 skipped" short
expect "no plan" 1 "0 passed, 1 failed, 0 skipped" silent
expect "an exit status without a failed test" 1 "1 passed, 1 failed, 0 skipped" lies
expect "a program that skips itself" 0 "2 passed, 0 failed, 1 skipped" good away
expect "nothing but skips" 1 "0 passed, 0 failed, 1 skipped" away
expect "two groups in one program" 0 "2 passed, 0 failed, 0 skipped" groups
export TEST_JOBS=3
expect "several at a time" 1 "5 passed, 2 failed, 1 skipped" good bad crash away
expect "several at a time, all pass" 0 "4 passed, 0 failed, 0 skipped" good groups
unset TEST_JOBS
expect "a program that is not there" 1 "0 passed, 1 failed, 0 skipped" missing
expect "skipped as scripts do" 0 "1 passed, 0 failed, 1 skipped" reasons
why=$(tests/run.sh "$scratch/reasons" | sed -n 's/.*| skipped: //p')
check "why something was skipped" [ "$why" = $'a: no b here\nhalf of c' ]
tap_end
