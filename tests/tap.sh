# For check scripts, to be sourced: counts and prints tests as TAP.
#
# ok NAME [DETAIL], fail NAME [DETAIL] and skip NAME REASON report a test; check NAME COMMAND...
# runs a command and reports by its exit status, with its output where it fails. wait_for COMMAND...
# waits until a command succeeds, at most a minute. tap_end prints the plan and ends the script.
# $scratch is a folder of the script's own; it goes when the script ends.
# shellcheck shell=bash

set -u
tap_count=0
tap_failed=0
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
export XDG_STATE_HOME=$scratch/state # servers and conversations leave something there

ok() {
    tap_count=$((tap_count + 1))
    echo "ok $tap_count - $1${2:+: $2}"
}

fail() {
    tap_count=$((tap_count + 1))
    tap_failed=$((tap_failed + 1))
    echo "not ok $tap_count - $1${2:+: $2}"
}

skip() {
    tap_count=$((tap_count + 1))
    echo "ok $tap_count - $1 # SKIP $2"
}

check() {
    local name=$1 output

    shift
    if output=$("$@" 2>&1); then
        ok "$name" "$(tail -n 1 <<<"$output")"
    else
        fail "$name"
        echo "# ${output//$'\n'/$'\n# '}"
        return 1
    fi
}

wait_for() {
    local end=$((SECONDS + 60))

    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "in vain: $*" && return 1; }
        sleep 0.02
    done
}

tap_end() {
    echo "1..$tap_count"
    [ $tap_failed = 0 ]
    exit
}
