#!/usr/bin/env bash
# The lint script: that it passes a clean tree and names each kind of violation. A tree of a few
# small files is made, broken in one way, and the finding expected; then it is whole again.
cd "$(dirname "$0")/.." || exit 1
. tests/tap.sh

root=$PWD
tree=$scratch/tree
mkdir -p "$tree"/{core/base,core/text,storage/io,storage/store,storage/experts,cache,daemon/engine,daemon/http,tools/bench,tools/cmd,tests}
cp .clang-format "$tree"
cd "$tree" || exit 1

header() { # path guard [line]
    printf '#ifndef %s\n#define %s\n\n%s\n#endif\n' "$2" "$2" "${3:+$3$'\n'}" >"$1"
}

clean_tree() {
    header core/base/err.h SL_BASE_ERR_H 'int sl_err(void);'
    printf '#include "core/base/err.h"\n\nint sl_err(void)\n{\n    return 0;\n}\n' >core/base/err.c
    header storage/store/store.h SL_STORAGE_STORE_STORE_H '#include "core/base/err.h"'
    printf '#include <liburing.h>\n\n#include "core/base/err.h"\n' >storage/io/io_uring.c
    printf '#include <cmocka.h>\n\n#include "storage/store/store.h"\n' >tests/test_store.c
    printf '#!/bin/sh\ntrue\n' >tests/good.sh
}

finds() { # name pattern: the tree as it is now has exactly one finding, which matches
    local output

    if output=$("$root/tests/lint.sh" . 2>&1); then
        fail "$1" "no finding"
    elif grep -q "^lint: $2" <<<"$output" && [ "$(wc -l <<<"$output")" = 1 ]; then
        ok "$1"
    else
        fail "$1" "$output"
    fi
}

clean_tree
check "a clean tree passes" "$root/tests/lint.sh" .

echo '#include "storage/store/store.h"' >core/base/up.c
finds "base may not include storage" 'core/base/up.c:1: core/base may not include "storage/store/store.h"'
rm core/base/up.c
printf '#include "storage/store/store.h"\n' >core/text/tokens.c
finds "text may not include storage" 'core/text/tokens.c:1: core/text may not include'
rm core/text/tokens.c
printf '#include "err.h"\n' >core/base/near.c
finds "includes start at the root" 'core/base/near.c:1: includes "err.h"'
mkdir -p extra && echo 'int x;' >extra/x.c && mv core/base/near.c "$scratch"
finds "a folder outside the table" 'extra/x.c: its folder'
rm -r extra

echo '#include "storage/store/store.h"' >storage/io/up.c
finds "io may not include the store above it" 'storage/io/up.c:1: storage/io may not include'
mv storage/io/up.c storage/experts/down.c
check "what lies above the store may include it" "$root/tests/lint.sh" .
rm storage/experts/down.c

header tools/cmd/tool.h SL_TOOLS_CMD_TOOL_H 'int sl_tool(void);'
echo '#include "tools/cmd/tool.h"' >daemon/http/http.c
finds "the daemon may not include tools" 'daemon/http/http.c:1: daemon/http may not include'
header daemon/http/http.h SL_DAEMON_HTTP_HTTP_H 'int sl_http(void);'
echo '#include "daemon/http/http.h"' | tee tools/cmd/good.c >daemon/engine/up.c
rm daemon/http/http.c
finds "the engine may not include the daemon above it" 'daemon/engine/up.c:1: daemon/engine may not include'
rm -r daemon/http/http.h daemon/engine/up.c tools/cmd/{good.c,tool.h}

header daemon/engine/engine_internal.h SL_DAEMON_ENGINE_ENGINE_INTERNAL_H 'int x;'
echo '#include "daemon/engine/engine_internal.h"' |
    tee daemon/engine/inside.c tools/bench/bench.c tests/test_engine.c >tools/cmd/command.c
finds "internal headers are for their folder" 'tools/cmd/command.c:1: .* is for its own folder alone'
rm daemon/engine/{engine_internal.h,inside.c} tools/bench/bench.c tests/test_engine.c tools/cmd/command.c

header storage/io/one.h SL_STORAGE_IO_ONE_H 'int sl_one(void);'
header storage/io/two.h SL_STORAGE_IO_TWO_H '#include "storage/io/one.h"'
echo '#include "storage/io/two.h"' >storage/io/one.c
finds "modules that include each other" 'modules include each other: storage/io/[a-z]* storage/io/[a-z]*$'
header storage/io/one_internal.h SL_STORAGE_IO_ONE_INTERNAL_H '#include "storage/io/one.h"'
echo '#include "storage/io/one_internal.h"' >storage/io/one.c
check "a module and its internal header are one" "$root/tests/lint.sh" .
rm storage/io/{one,two}*

echo '#include <liburing.h>' >cache/ring.c
finds "liburing is fenced" 'cache/ring.c:1: <liburing.h> is for storage/io/io_uring.c alone'
echo '#include <cmocka.h>' >cache/ring.c
finds "cmocka is fenced" 'cache/ring.c:1: <cmocka.h>'
echo '#include <jansson.h>' >cache/ring.c
finds "jansson is fenced" 'cache/ring.c:1: <jansson.h>'
echo '#include <arm_neon.h>' >cache/ring.c
finds "instruction sets are fenced" 'cache/ring.c:1: <arm_neon.h> is for kernels-neon/'
rm cache/ring.c
echo '#include <pcre2.h>' | tee core/text/one.c >core/text/two.c
finds "pcre2 is for one file" 'core/text/two.c: a second file'
rm core/text/{one,two}.c

echo 'int x;' >cache/err.c
finds "names are unique" 'core/base/err.c: has the name of cache/err.c'
rm cache/err.c
echo 'left behind' >'standard output'
finds "no white space in names" 'standard output: has white space in its name'
rm 'standard output'
header core/base/other.h SL_CORE_BASE_OTHER_H 'int x;'
finds "include guards" 'core/base/other.h: its include guard is not SL_BASE_OTHER_H'
header core/base/other.h SL_BASE_OTHER_H 'uint32_t x;'
finds "headers stand alone" 'core/base/other.h:4:1: does not compile alone'
rm core/base/other.h

printf '/* What it is. */\n' >tools/cmd/riddle.c
finds "comments without a subject" 'tools/cmd/riddle.c:1: a comment opens with'
printf '/* It reads.\n *\n * Of a file, all. */\n' >tools/cmd/riddle.c
finds "paragraphs without a subject" 'tools/cmd/riddle.c:3: a comment opens with'
printf '/* It reads, and says to others\n * What it found. */\n' >tools/cmd/riddle.c
check "a line within a paragraph may begin with any word" "$root/tests/lint.sh" .
rm tools/cmd/riddle.c

printf 'int  x;\n' >core/base/wide.c
finds "format" 'core/base/wide.c:1:.* is not formatted'
printf 'const char text[] = "\t";\n' >core/base/wide.c
finds "tabs" 'core/base/wide.c:1: has a tab'
printf '/* a */' >core/base/wide.c
finds "the last newline" 'core/base/wide.c: does not end in a newline'
for _ in {1..1001}; do echo 'struct x;'; done >core/base/wide.c
finds "long files" 'core/base/wide.c: 1001 lines'
rm core/base/wide.c
function_of() { # lines between its braces
    printf 'static void f(void)\n{\n'
    yes '    g();' | head -n "$1"
    printf '}\n'
}
{
    function_of 68
    echo
    function_of 69
} >core/base/wide.c
finds "long functions" 'core/base/wide.c:74: a function of 71 lines'
mkdir core/kernels && mv core/base/wide.c core/kernels
check "kernels may be longer" "$root/tests/lint.sh" .
rm -r core/kernels
for _ in {1..260}; do echo 'struct x;'; done >"$scratch/lines"
header core/base/long.h SL_BASE_LONG_H "$(cat "$scratch/lines")"
finds "long headers" 'core/base/long.h: 26[0-9] lines'
rm core/base/long.h

printf '%0100d\n| %0100d |\n    %0100d\n\140\140\140\n%0101d\n\140\140\140\n' 0 0 0 0 >WIDE.md
printf '\303\244%099d\n' 0 >>WIDE.md
check "tables, code and letters of two bytes may be there" "$root/tests/lint.sh" .
printf '%0101d\n' 0 >>WIDE.md
finds "wide lines of documents" 'WIDE.md:8: a line of 101 columns'
rm WIDE.md

echo 'true ' >tests/wide.py
finds "white space at the end" 'tests/wide.py:1: white space'
rm tests/wide.py

printf '#!/bin/bash\nif true; then\n' >tests/broken.sh
output=$("$root/tests/lint.sh" . 2>&1)
# Where shellcheck is installed, it has its own words for the same.
if grep -q '^lint: tests/broken.sh: bash cannot parse it' <<<"$output"; then
    ok "scripts are parsed"
else
    fail "scripts are parsed" "$output"
fi
rm tests/broken.sh
check "and the tree that is whole again passes" "$root/tests/lint.sh" .
cd "$root" || exit 1
tap_end
