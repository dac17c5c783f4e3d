#!/bin/sh
# Puts Debian's arm64 libraries that Sluice is built and tested with into a folder, for the cross
# compiler (--sysroot) and qemu-aarch64 (-L). Silent when they are there already.
#
#   tools/aarch64-root.sh DIR
#
# Nothing is installed: the machine's own package lists and architectures stay as they are. apt-get
# reads the machine's sources with lists, state and cache of its own, and resolves dependencies as
# if nothing were installed, so DIR gets the C library too.
set -eu

[ $# = 1 ] || {
    echo "usage: aarch64-root.sh DIR" >&2
    exit 2
}
root=$1
packages=$("$(dirname "$0")"/install-deps.sh --list build test | tr ' ' '\n' |
    grep '^lib.*-dev$' | grep -v '^libclang' | tr '\n' ' ')

# Written last; another list of packages makes the folder anew.
[ "$(cat "$root/packages" 2>/dev/null)" != "$packages" ] || exit 0

for tool in apt-get dpkg-deb; do
    command -v $tool >/dev/null || {
        echo "aarch64-root.sh: no $tool here, so Debian's arm64 libraries cannot be had" >&2
        exit 1
    }
done

rm -rf "$root"
mkdir -p "$root/apt/lists/partial" "$root/apt/archives/partial"
apt=$(cd "$root/apt" && pwd)
: >"$apt/status"
private_apt_get() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$apt" \
        -o Dir::State::status="$apt/status" -o Dir::Cache="$apt" -o Acquire::Languages=none \
        -o APT::Sandbox::User="$(id -un)" "$@" >/dev/null
}

echo "fetching Debian's arm64 libraries: $packages"
# A source that cannot be reached need not be one that is needed: downloading will tell.
private_apt_get update || true
# shellcheck disable=SC2086
private_apt_get install -y --no-install-recommends --download-only $packages
for package in "$apt"/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
done
[ -e "$root/lib" ] || ln -s usr/lib "$root/lib" # from Debian 13 on no package has /lib itself
rm -rf "$apt"
printf '%s\n' "$packages" >"$root/packages"
