#!/usr/bin/env bash
# Checks what a compiler does not: layers, fenced headers, unique names, headers that stand alone,
# sizes of files and functions, cycles among modules, openings of comments, format, the width of
# documents, shell scripts.
# One line for each finding; exit status 1 if there is any.
#
#   tests/lint.sh [ROOT]
set -u
cd "${1:-$(dirname "$0")/..}" || exit 2

findings=0
finding() {
    echo "lint: $*"
    findings=$((findings + 1))
}

# Every line read becomes a finding.
findings_from() {
    local line

    while read -r line; do
        finding "$line"
    done < <("$@")
}

mapfile -t files < <(find . -type f -not -path './build/*' -not -path './.git/*' -printf '%P\n' | sort)
c_files=() headers=() scripts=()
for file in "${files[@]}"; do
    case $file in
    *.h) headers+=("$file") c_files+=("$file") ;;
    *.c) c_files+=("$file") ;;
    *.sh | .ci/run) scripts+=("$file") ;;
    esac
done

# What storage knows of the model: what an expert is and its layout, and how weights are asked for.
model_for_storage() {
    echo core/base/ core/kernels/r16.h core/model/expert_key.h core/model/expert_pack.h \
        core/model/expert_shape.h core/model/phase.h core/model/weight_source.h
}

# What each folder may include, as prefixes; docs/ARCHITECTURE.md has the table and its reasons.
allowed_includes() {
    case $1 in
    core/base/*) echo core/base/ ;;
    core/kernels/*) echo core/base/ core/kernels/ ;;
    core/model/*) echo core/base/ core/kernels/ core/model/ ;;
    core/text/*) echo core/base/ core/text/ ;;
    core/session/*) echo core/base/ core/kernels/ core/model/ core/session/ ;;
    storage/io/*) echo core/base/ storage/io/ ;;
    storage/checkpoint/*) echo core/base/ core/model/weight_source.h storage/io/ storage/checkpoint/ ;;
    storage/store/*) echo "$(model_for_storage)" storage/io/ storage/store/ ;;
    storage/experts/*)
        echo "$(model_for_storage)" storage/io/ storage/checkpoint/ storage/store/ storage/experts/
        ;;
    storage/images/*) echo core/base/ storage/io/ storage/images/ ;;
    storage/pages/*) echo core/base/ core/model/kv_file.h storage/io/ storage/pages/ ;;
    storage/pack/*) echo "$(model_for_storage)" storage/ ;;
    cache/*)
        echo core/base/ core/model/expert_key.h core/model/expert_pack.h \
            core/model/expert_shape.h core/model/expert_source.h core/model/phase.h core/kernels/r16.h storage/ cache/
        ;;
    kernels-*/*) echo core/base/ core/kernels/ "${1%%/*}/" ;;
    daemon/engine/*) echo core/ storage/ cache/ daemon/engine/ ;;
    daemon/scheduler/*) echo core/base/ daemon/engine/step_size.h daemon/scheduler/ ;;
    daemon/protocol/*) echo core/base/ core/text/ daemon/engine/generation.h daemon/protocol/ ;;
    daemon/*) echo core/ storage/ daemon/ ;;
    tools/*) echo core/ storage/ cache/ daemon/ tools/ ;;
    tests/*) echo core/ kernels- storage/ cache/ daemon/ tools/ tests/ ;;
    esac
}

# A header whose name ends in _internal.h is for its own folder, and for tests; benchmarks may see
# the inside of the engine.
may_see() { # file header
    case $2 in
    *_internal.h) ;;
    *) return 0 ;;
    esac
    case $1 in
    "${2%/*}"/* | tests/*) return 0 ;;
    tools/bench/*) [ "$2" = daemon/engine/engine_internal.h ] ;;
    *) return 1 ;;
    esac
}

check_layers() { # lines "file:number:header" of quoted includes
    local file number header prefix allowed

    while IFS=: read -r file number header; do
        if [ ! -f "$header" ]; then
            echo "$file:$number: includes \"$header\", which is no path from the root"
            continue
        fi
        allowed=
        for prefix in $(allowed_includes "$file"); do
            case $header in
            "$prefix"*) allowed=yes ;;
            esac
        done
        [ -n "$allowed" ] || echo "$file:$number: ${file%/*} may not include \"$header\""
        may_see "$file" "$header" || echo "$file:$number: \"$header\" is for its own folder alone"
    done < <(grep -HnoP '^\s*#\s*include\s*"\K[^"]+' "${c_files[@]}")
}

# The one file, or kind of file, that each third-party header is fenced into.
check_fences() {
    local file number header fence

    while IFS=: read -r file number header; do
        case $header in
        liburing.h) fence='storage/io/io_uring.c' ;;
        pcre2.h) fence='core/text/*.c' ;;
        jansson.h) fence='core/base/json.h' ;;
        numa.h) fence='core/base/topology.c' ;;
        numaif.h) fence='core/base/nodes.c' ;;
        lmdb.h) fence='storage/store/catalog.c' ;;
        xxhash.h) fence='storage/io/checksum.c' ;;
        zstd.h) fence='storage/store/codec.c' ;;
        curl/curl.h) fence='tools/cli/daemon_client.c' ;;
        histedit.h) fence='tools/chat/line_input.c' ;;
        openssl/*) fence='storage/io/sha256.c' ;;
        cmocka.h) fence='tests/*' ;;
        immintrin.h) fence='kernels-avx512/*' ;;
        arm_neon.h) fence='kernels-neon/*' ;;
        sys/auxv.h) fence='core/base/cpu.c' ;;
        microhttpd.h) fence='daemon/http/http_server.c' ;;
        systemd/*) fence='daemon/http/service_manager.c' ;;
        *) continue ;;
        esac
        # shellcheck disable=SC2053 # the fence is a pattern
        [[ $file == $fence ]] || echo "$file:$number: <$header> is for $fence alone"
    done < <(grep -HnoP '^\s*#\s*include\s*<\K[^>]+' "${c_files[@]}")
    grep -lP '^\s*#\s*include\s*<pcre2.h>' "${c_files[@]}" | sed -n '2s/$/: a second file that includes <pcre2.h>/p'
}

check_folders() {
    local file

    for file in "${c_files[@]}"; do
        [ -n "$(allowed_includes "$file")" ] || echo "$file: its folder is not in the table of layers"
    done
}

check_names() {
    printf '%s\n' "${files[@]}" | sed -n 's/.*[[:space:]].*/&: has white space in its name/p'
}

check_unique_names() {
    printf '%s\n' "${files[@]}" | grep -v -e '^tests/oracle/' -e '^tests/small/' -e '^tests/fuzz/corpus/' -e 'README.md$' |
        awk -F/ '$NF in first { print $0 ": has the name of " first[$NF] } { first[$NF] = $0 }'
}

# The guard is the path without core/: core/base/err.h has SL_BASE_ERR_H.
check_guards() {
    local header guard

    for header in "${headers[@]}"; do
        guard=${header#core/}
        guard=SL_${guard//[!A-Za-z0-9]/_}
        guard=${guard^^}
        [ "$(grep -m2 -A1 '^#' "$header" | grep -c -e "^#ifndef $guard\$" -e "^#define $guard\$")" = 2 ] ||
            echo "$header: its include guard is not $guard"
    done
}

check_headers_alone() {
    [ ${#headers[@]} = 0 ] || gcc -std=gnu11 -D_GNU_SOURCE -I. -Wall -Wextra -Werror -fsyntax-only \
        "${headers[@]}" 2>&1 | sed -n 's/: \(fatal \)\?error: /: does not compile alone: /p'
}

check_format() {
    [ ${#c_files[@]} = 0 ] || clang-format -n -Werror "${c_files[@]}" 2>&1 |
        sed -n 's/: error: code should be clang-formatted.*/: is not formatted (clang-format -i)/p'
}

check_sizes() {
    wc -l "${c_files[@]}" | awk '$2 ~ /\.c$/ && $1 > 1000 { print $2 ": " $1 " lines, at most 1000 are allowed" }
        $2 ~ /\.h$/ && $1 > 250 { print $2 ": " $1 " lines, at most 250 are allowed" }'
}

# Kernels may be longer. The format puts the braces of functions, and of nothing else, on lines of
# their own in the first column.
check_functions() {
    printf '%s\n' "${c_files[@]}" | grep -v -e '^core/kernels/' -e '^kernels-' -e '_isa\.c$' |
        xargs -r awk 'FNR == 1 || /^}/ {
                if (FNR > 1 && first && FNR - first + 1 > 70)
                    print FILENAME ":" first ": a function of " FNR - first + 1 " lines, at most 70 are allowed"
                first = 0
            }
            /^{$/ { first = FNR }'
}

# A module is NAME.c, NAME.h and NAME_internal.h. Those that include each other, by whatever way,
# cannot be understood one after the other.
check_cycles() {
    grep -HnoP '^\s*#\s*include\s*"\K[^"]+' "${c_files[@]}" | grep -v '^tests/' |
        awk -F: '{
                sub(/(_internal)?\.[ch]$/, "", $1)
                sub(/(_internal)?\.[ch]$/, "", $3)
                if ($1 != $3)
                    print $1, $3
            }' | tsort 2>&1 >/dev/null |
        awk '/loop/ { if (cycle) print cycle; cycle = "modules include each other:"; next }
            { cycle = cycle " " $2 }
            END { if (cycle) print cycle }'
}

# docs/STYLE.md: a comment is a sentence with a subject. These words at the start of a comment, or of
# a paragraph in it, mostly open one without a subject.
check_comments() {
    printf '%s\n' "${c_files[@]}" | grep -v '^tests/' |
        xargs -r awk '/(\/|^ *)\* (What|Of|As|That of|Those|Likewise|The same)[ ,:]/ && (paragraph || /\/\*/) {
                print FILENAME ":" FNR ": a comment opens with a word that leaves out its subject"
            }
            { paragraph = /^ *\*$/ }'
}

check_white_space() {
    local file

    grep -HnP '\t' "${c_files[@]}" | sed 's/^\([^:]*:[0-9]*\):.*/\1: has a tab/'
    # Markdown and test data may end lines as they need.
    mapfile -t text < <(printf '%s\n' "${files[@]}" | grep -e '\.[ch]$' -e '\.sh$' -e '\.py$' -e '^Makefile$' -e '^.ci/run$')
    grep -Hn ' $' "${text[@]}" | sed 's/^\([^:]*:[0-9]*\):.*/\1: white space at the end/'
    for file in "${text[@]}"; do
        [ -z "$(tail -c 1 "$file")" ] || echo "$file: does not end in a newline"
    done
}

# Prose is read beside code, so its lines end where code's do. Rows of tables, and what is shown as it
# is (indented by four, or fenced), may be longer.
check_documents() {
    printf '%s\n' "${files[@]}" | grep -e '^[A-Z]*\.md$' -e '^docs/[A-Z]*\.md$' |
        LC_ALL=C xargs -r awk 'FNR == 1 { fenced = 0 }
            /^```/ { fenced = !fenced }
            fenced || /^(\||    )/ { next }
            { gsub(/[\200-\277]/, "") } # a character of UTF-8 is counted by its first byte
            length > 100 {
                print FILENAME ":" FNR ": a line of " length " columns, at most 100 are allowed"
            }'
}

check_scripts() {
    local script

    for script in "${scripts[@]}"; do
        bash -n "$script" 2>/dev/null || echo "$script: bash cannot parse it"
    done
    if [ ${#scripts[@]} != 0 ] && command -v shellcheck >/dev/null; then
        # SC2317: it does not see that functions are called through their names.
        shellcheck -x -e SC2317 -f gcc "${scripts[@]}"
    fi
}

for tool in gcc clang-format; do
    command -v $tool >/dev/null || finding "$tool is missing (make deps)"
done
[ ${#c_files[@]} != 0 ] || finding "no C files under $PWD"
if [ ${#c_files[@]} != 0 ]; then
    findings_from check_folders
    findings_from check_layers
    findings_from check_fences
    findings_from check_guards
    findings_from check_headers_alone
    findings_from check_format
    findings_from check_sizes
    findings_from check_functions
    findings_from check_cycles
    findings_from check_comments
    findings_from check_white_space
fi
findings_from check_names
findings_from check_unique_names
findings_from check_documents
findings_from check_scripts
[ $findings = 0 ]
