#!/usr/bin/env bash
# Installs the Debian packages that Sluice needs and that are missing; silent when none is.
#
#   tools/install-deps.sh build         to build
#   tools/install-deps.sh build test    and to run the tests and checks
#   tools/install-deps.sh cross         to build for aarch64 and run that
#   tools/install-deps.sh numa          to emulate a machine of two memory nodes
#   tools/install-deps.sh train         to make the small model (docs/MODEL.md)
#   tools/install-deps.sh --list SET... prints the packages instead
#
# Uses apt-get, through sudo when not root.
set -eu

list_only=
[ "${1:-}" != --list ] || {
    list_only=yes
    shift
}

build="gcc libc6-dev make liburing-dev libpcre2-dev libjansson-dev libnuma-dev liblmdb-dev libxxhash-dev libzstd-dev libssl-dev libmicrohttpd-dev libsystemd-dev libcurl4-openssl-dev libedit-dev"
test="curl libcmocka-dev python3 python3-numpy clang libclang-rt-dev clang-format valgrind mandoc shellcheck fio xfsprogs python3-httpx"
cross="gcc-aarch64-linux-gnu qemu-user"
numa="qemu-system-x86 busybox-static numactl"
train="python3 python3-numpy python3-regex python3-torch python3-matplotlib libjemalloc2 mandoc"

wanted=
for set in "$@"; do
    case $set in
    build) wanted="$wanted $build" ;;
    test) wanted="$wanted $test" ;;
    cross) wanted="$wanted $cross" ;;
    numa) wanted="$wanted $numa" ;;
    train) wanted="$wanted $train" ;;
    *)
        echo "install-deps.sh: unknown set \"$set\" (known: build, test, cross, numa, train)" >&2
        exit 2
        ;;
    esac
done
[ -n "$wanted" ] || {
    echo "usage: install-deps.sh [--list] build|test|cross|numa|train ..." >&2
    exit 2
}

[ -z "$list_only" ] || {
    echo "$wanted"
    exit 0
}

# Words are split on purpose: these are lists of package names.
# shellcheck disable=SC2086
installed=" $(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null |
    sed -n 's/^installed //p' | tr '\n' ' ')" || true
missing=
for package in $wanted; do
    case $installed in
    *" $package "*) ;;
    *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "install-deps.sh: no apt-get here; install what your system calls these Debian packages:$missing" >&2
    exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "install-deps.sh: neither root nor sudo; have these packages installed:$missing" >&2
        exit 1
    fi
    as_root=sudo
fi

install() {
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}
echo "installing Debian packages:$missing"
# A bare machine has no package lists and an idle one has old ones: fetch them when needed.
install 2>/dev/null || {
    $as_root apt-get update -qq
    install
}
