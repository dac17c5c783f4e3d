#!/usr/bin/env bash
# Builds and tests Sluice where a newcomer would: on releases of Debian that have nothing on them
# but git and make. `make demo` and `make check`, then with clang the demo and the C tests.
#
#   tests/bare_debian.sh [--demo] [RELEASE...]
#
# RELEASEs are bookworm and trixie by default; --demo leaves the tests out. What is committed is
# cloned into a folder that debootstrap fills, below $TMPDIR; it goes again, and so do the mounts,
# which no other process sees. Needs root, debootstrap, a mirror ($MIRROR) and 6 GB for a release.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

mirror=${MIRROR:-http://deb.debian.org/debian}
with_tests=yes
[ "${1:-}" != --demo ] || {
    with_tests=
    shift
}
[ $# != 0 ] || set -- bookworm trixie
if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
    echo "bare_debian.sh: needs root and debootstrap" >&2
    exit 77
fi

inside() { # root command...: in the clone, with an environment as bare as the system
    # shellcheck disable=SC2016 # $0 and $@ are the inner shell's
    unshare --mount --pid --fork --kill-child bash -c '
        mount -t proc proc "$0/proc" && mount -t sysfs sysfs "$0/sys" &&
            mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' "$1" \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        make --no-print-directory -C /sluice "${@:2}"
}

for release; do
    root=$scratch/$release
    check "$release: debootstrap" debootstrap --variant=minbase --include=git,make,ca-certificates \
        "$release" "$root" "$mirror" || continue
    git clone -q --no-hardlinks . "$root/sluice" || exit 1
    check "$release: make demo" inside "$root" demo
    [ -z "$with_tests" ] || check "$release: make check" inside "$root" check
    chroot "$root" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends clang >/dev/null 2>&1
    inside "$root" clean >/dev/null
    check "$release: make CC=clang demo" inside "$root" CC=clang WERROR=1 demo
    [ -z "$with_tests" ] || check "$release: make CC=clang check-fast" inside "$root" CC=clang check-fast
    rm -rf --one-file-system "$root"
done
tap_end
