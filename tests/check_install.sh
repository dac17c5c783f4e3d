#!/usr/bin/env bash
# The Makefile where it meets other machines: folders with blanks, no compiler yet, a compiler that
# warns of more than ours.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

# A make of its own: not the jobs, variables and directory lines of the one that runs the tests.
unset MAKEFLAGS MFLAGS MAKELEVEL WERROR CC CONFIG DESTDIR

root="$scratch/a root's name"
installed() {
    make install DESTDIR="$root" prefix="/opt/my sluice" &&
        [ "$("$root/opt/my sluice/bin/sluice" --version)" = "$(build/release/sluice --version)" ] &&
        cmp docs/man/sluice.1 "$root/opt/my sluice/share/man/man1/sluice.1" &&
        "$root/opt/my sluice/bin/sluiced" --help | grep -q '^Usage: sluiced' &&
        grep -q '^ExecStart="/opt/my sluice/bin/sluiced" ' "$root/opt/my sluice/lib/systemd/system/sluiced.service"
}
stripped() {
    readelf -S --wide build/release/sluice >"$scratch/built" &&
        readelf -S --wide "$root/opt/my sluice/bin/sluice" >"$scratch/installed" &&
        grep -q '\.symtab' "$scratch/built" && ! grep '\.symtab' "$scratch/installed"
}
completes() { # WORDS EXPECTED: what bash offers behind the words
    bash -c '. "$1/opt/my sluice/share/bash-completion/completions/sluice"
        PATH=$PWD/build/release:$PATH COMP_WORDS=($2) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _sluice && printf "%s\n" "${COMPREPLY[@]}"' - "$root" "$1" | grep -qxe "$2"
}
# The memory of the command itself, which is part of the plan, is not the same twice.
plans_by_name() {
    local sluice="$root/opt/my sluice/bin/sluice"
    local machine=(--ram 128G --ssd 12G/s --dram 80G/s --cores 16)

    cmp tools/configs/v4-pro.json "$root/opt/my sluice/share/sluice/configs/v4-pro.json" &&
        (cd / && "$sluice" plan v4-pro "${machine[@]}") >"$scratch/by-name" &&
        (cd / && "$sluice" plan v4-pro.json "${machine[@]}") >"$scratch/by-file" &&
        sed -i '/^  program /d' "$scratch/by-name" "$scratch/by-file" &&
        cmp "$scratch/by-name" "$scratch/by-file"
}
uninstalled() {
    make uninstall DESTDIR="$root" prefix="/opt/my sluice" && [ -z "$(find "$root" ! -type d)" ]
}
keeps_symbols() {
    make install DESTDIR="$root" STRIP=: && cmp build/release/sluice "$root/usr/local/bin/sluice"
}
check "installs below folders with blanks and quotes" installed
check "... without symbols" stripped
check "... with configs that are found by name" plans_by_name
check "... and commands that bash completes" completes "sluice gen" generate
check "... and their options" completes "sluice generate --st" --stats
check "... and kinds of commands" completes "sluice batch ch" check
check "... and the options of kinds" completes "sluice batch run --un" --until
check "... and takes it away again" uninstalled
check "STRIP=: leaves the symbols" keeps_symbols

no_compiler() {
    make CC=/nowhere/cc help >"$scratch/help" 2>"$scratch/stderr" && [ ! -s "$scratch/stderr" ]
}
check "without a compiler nothing is said but what is asked for" no_compiler

compile_line() {
    make -B -n V=1 build/release/core/base/err.o "$@" | grep -e ' -c '
}
errors_only_when_asked() {
    compile_line >"$scratch/default" && compile_line WERROR=1 >"$scratch/strict" &&
        ! grep -e -Werror "$scratch/default" && grep -q -e -Werror "$scratch/strict"
}
check "warnings are errors only where that is asked for" errors_only_when_asked
tap_end
