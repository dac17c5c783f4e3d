#!/usr/bin/env bash
# Where memory lies on a machine of two memory nodes, seen and not believed: qemu emulates one with
# four processors and 512 MiB on each node, boots Debian's kernel there, and numa_place runs a model
# under every condition of guest.sh, counting pages.
#
# The kernel's package is unpacked below build/, not installed. KERNEL=FILE takes another kernel.
cd "$(dirname "$0")/../.." || exit 1
. tests/tap.sh

build=${BUILD:-build/release}
work=build/numa
kernel=${KERNEL:-}
timeout_s=${NUMA_TIMEOUT_S:-1500}
tokens=8

unpack_kernel() {
    local package

    kernel=$(compgen -G "$work/kernel/boot/vmlinuz-*")
    [ -z "$kernel" ] || return 0
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
    mkdir -p "$work" && (cd "$work" && apt-get download -qq "${package:?}" && dpkg-deb -x "$package"_*.deb kernel && rm "$package"_*.deb) ||
        return
    kernel=$(compgen -G "$work/kernel/boot/vmlinuz-*")
}

for program in qemu-system-x86_64 busybox numactl; do
    if ! command -v $program >/dev/null; then
        echo "# SKIP no $program here (tools/install-deps.sh numa)"
        exit 77
    fi
done
if [ "$(uname -m)" != x86_64 ] || { [ -z "$kernel" ] && ! unpack_kernel 2>"$scratch/why"; }; then
    echo "# SKIP no kernel for the emulated machine: $(tail -n 1 "$scratch/why" 2>/dev/null)"
    exit 77
fi

# ---- the machine -----------------------------------------------------------------------------------

root=$scratch/root
config=tests/oracle/configs/tiny-flash.json
mkdir -p "$root"/{bin,proc,sys,dev}
sed 's/"hidden_size": 256/"hidden_size": 512/; s/"moe_intermediate_size": 128/"moe_intermediate_size": 512/
    s/"n_routed_experts": 24/"n_routed_experts": 8/
    s/"num_experts_per_tok": 6/"num_experts_per_tok": 2/; s/"sliding_window": 16/"sliding_window": 128/
    s/"vocab_size": 1024/"vocab_size": 16384/' \
    $config >"$scratch/config.json"
check "a model" "$build/sluice" synth "$scratch/config.json" "$root/model" --layers 3 --no-mtp || tap_end
cp "$(command -v busybox)" "$(command -v numactl)" "$build/tests/numa/numa_place" "$root/bin" || exit 1
sed "s/TOKENS/$tokens/" tests/numa/guest.sh >"$root/init" && chmod +x "$root/init"
# The libraries, where their loader looks for them.
ldd "$root/bin/numactl" "$root/bin/numa_place" | grep -o '/[^ ]*\.so[^ ]*' | sort -u |
    while read -r library; do
        mkdir -p "$root/${library%/*}" && cp "$library" "$root/$library"
    done
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$scratch/initramfs" || exit 1

timeout "$timeout_s" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m 1G -smp 4 \
    -object memory-backend-ram,id=m0,size=512M -object memory-backend-ram,id=m1,size=512M \
    -numa node,memdev=m0,cpus=0-1 -numa node,memdev=m1,cpus=2-3 \
    -nographic -no-reboot -nodefaults -serial stdio -kernel "$kernel" -initrd "$scratch/initramfs" \
    -append "console=ttyS0 quiet panic=-1" </dev/null 2>"$scratch/qemu" | tr -d '\r' >"$scratch/log"
if ! grep -q '^@ end' "$scratch/log"; then
    fail "the machine runs to its end" "$(tail -n 5 "$scratch/log" "$scratch/qemu" | tr '\n' ' ')"
    sed 's/^/# /' "$scratch/log"
    tap_end
fi
ok "the machine runs to its end"
sed 's/^/# /' "$scratch/log"

# ---- what it saw -----------------------------------------------------------------------------------

said() { # condition word: the rest of that line
    sed -n "s/^@ $1 $2 //p" "$scratch/log"
}

threads() { # condition expected
    if [ "$(said "$1" threads)" = "$2" ]; then
        ok "$1: the threads are where they may be" "$2"
    else
        fail "$1: the threads are where they may be" "$(said "$1" threads), not $2"
    fi
}

# At least $3 pages were seen, and from $4 to $5 percent of them are elsewhere.
elsewhere() { # condition what pages least most
    local pages strays

    read -r pages strays <<<"$(said "$1" "$2")"
    if [ "${pages:-0}" -ge "$3" ] && [ $((strays * 100)) -ge $((pages * $4)) ] &&
        [ $((strays * 100)) -le $((pages * $5)) ]; then
        ok "$1: $2 on the threads' nodes" "$strays of $pages pages elsewhere"
    else
        fail "$1: $2 on the threads' nodes" "$strays of $pages pages elsewhere, expected $4 to $5 % of at least $3"
    fi
}

# Pages of the KV cache: from $2 to $3 percent of them on node 0.
kv() { # condition least most
    local here there

    read -r here there <<<"$(said "$1" kv)"
    if [ $((here + there)) -ge 12 ] && [ $((here * 100)) -ge $(((here + there) * $2)) ] &&
        [ $((here * 100)) -le $(((here + there) * $3)) ]; then
        ok "$1: the KV cache's pages" "$here on node 0, $there on node 1"
    else
        fail "$1: the KV cache's pages" "$here on node 0, $there on node 1; expected $2 to $3 % of 12 or more"
    fi
}

notes() { # condition pattern: a note that matches, or none on nodes where it is empty
    if [ -n "$2" ] && said "$1" note | grep -q "$2"; then
        ok "$1: a note" "$(said "$1" note | grep "$2")"
    elif [ -z "$2" ] && ! said "$1" note | grep -q node; then
        ok "$1: no note on nodes"
    else
        fail "$1: the note" "$(said "$1" note)"
    fi
}

all='4 threads: node 0, CPUs 0-1; node 1, CPUs 2-3'
threads small "$all"
elsewhere small weights 4000 0 0
elsewhere small slots 1500 0 0
kv small 30 70
notes small ''
threads huge "$all"
elsewhere huge weights 2 0 0
notes huge ''
threads one-node '2 threads: node 0, CPUs 0-1'
elsewhere one-node weights 4000 0 0
kv one-node 100 100
threads interleave "$all"
elsewhere interleave weights 4000 45 55
elsewhere interleave slots 1500 45 55
kv interleave 30 70
notes interleave ''
threads cpus '2 threads: node 0, CPU 0; node 1, CPU 2'
elsewhere cpus weights 4000 0 0
elsewhere cpus slots 1500 0 0
threads quota '2 threads: node 0, CPUs 0-1'
elsewhere quota weights 4000 0 0
threads mems "$all"
elsewhere mems weights 4000 45 55
kv mems 0 0
notes mems 'lie on other memory nodes than the threads'
threads full "$all"
elsewhere full slots 1500 5 60
notes full 'memory node'
threads offline '3 threads: node 0, CPUs 0-1; node 1, CPU 2'
elsewhere offline weights 4000 0 0
if [[ $(said bound refused) == *"memory nodes that this process is bound to"* ]]; then
    ok "bound to a node that is too small" "$(said bound refused)"
else
    fail "bound to a node that is too small" "$(said bound '')"
fi

# One answer, here and there.
here=$("$build/tests/numa/numa_place" "$root/model" 256 $tokens 4096 | sed -n 's/^logits //p')
for condition in small huge one-node interleave cpus quota mems full offline; do
    if [ -n "$here" ] && [ "$(said $condition logits)" = "$here" ]; then
        ok "$condition: the same logits as outside"
    else
        fail "$condition: the same logits as outside" "$(said $condition logits), not $here"
    fi
done
tap_end
