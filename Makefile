# Sluice: runs DeepSeek-V4 on one Linux workstation.   make help   lists the targets.

CONFIG ?= release
MAKEFLAGS += --no-print-directory
B := build/$(CONFIG)
prefix ?= /usr/local
PYTHON ?= /usr/bin/python3
V ?= 0
Q := $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),@:,@printf '  %-6s %s\n')

# No -ffast-math and no contraction: the answer is the same bits from every build (docs/NUMERICS.md).
# -fno-math-errno and -fno-trapping-math change no result; they let loops with selects vectorise.
CFLAGS ?= -O3 -g
NUMERIC := -ffp-contract=off -fno-math-errno -fno-trapping-math
# A compiler newer than ours may warn of more: only the checks take a warning for an error.
WARN := $(if $(filter 1,$(WERROR)),-Werror) -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
ALL_CFLAGS = -std=gnu11 -D_GNU_SOURCE -I. $(WARN) $(CFLAGS) $(NUMERIC) $(SANITIZE) -pthread -MMD -MP
AARCH64_ROOT := build/aarch64-root
LIBS := -luring -lpcre2-8 -ljansson -lnuma -llmdb -lxxhash -lzstd -lcrypto -lmicrohttpd -lsystemd -lm
TOOL_LIBS := -lcurl -ledit

# These builds need their own compiler also where another one was named, as in make CC=gcc-14 check.
CLANG := $(if $(findstring clang,$(CC)),$(CC),clang)
ifeq ($(CONFIG),asan)
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -DSL_DEBUG
CFLAGS := -O1 -g
else ifeq ($(CONFIG),tsan)
SANITIZE := -fsanitize=thread -DSL_DEBUG
CFLAGS := -O1 -g
else ifeq ($(CONFIG),clang)
override CC := $(CLANG)
else ifeq ($(CONFIG),fuzz)
override CC := $(CLANG)
SANITIZE := -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all -DSL_DEBUG
CFLAGS := -O1 -g
else ifeq ($(CONFIG),aarch64)
override CC := aarch64-linux-gnu-gcc --sysroot=$(AARCH64_ROOT) -B$(AARCH64_ROOT)/usr/lib/aarch64-linux-gnu
endif

ARCH := $(shell { $(CC) -dumpmachine || uname -m; } 2>/dev/null | cut -d- -f1)
LIB_SRC := $(filter-out %_isa.c,$(wildcard core/*/*.c storage/*/*.c cache/*.c daemon/*.c daemon/*/*.c))
TOOL_SRC := $(wildcard tools/*/*.c)
TEST_SRC := $(wildcard tests/test_*.c)
SUPPORT_SRC := $(filter-out $(TEST_SRC),$(wildcard tests/*.c))
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)

# The plain-C kernels are compiled once for each instruction set that the compiler can vectorise for.
ISA_SRC := $(wildcard core/kernels/*_isa.c)
ISA_OBJ := $(ISA_SRC:%.c=$(B)/%.ref.o)
ifeq ($(ARCH),x86_64)
ISA_OBJ += $(ISA_SRC:%.c=$(B)/%.avx2.o) $(ISA_SRC:%.c=$(B)/%.avx512.o)
LIB_SRC += $(wildcard kernels-avx512/*.c)
else ifeq ($(ARCH),aarch64)
ISA_OBJ += $(B)/kernels-neon/fp4_neon.dot.o
LIB_SRC += $(wildcard kernels-neon/*.c)
endif
AVX512 := -mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl

LIB_OBJ := $(LIB_SRC:%.c=$(B)/%.o) $(ISA_OBJ)
TOOL_OBJ := $(TOOL_SRC:%.c=$(B)/%.o)

# Stacks may be small (ulimit -s). Some kernels keep their blocks there, so that they
# stay in the cache; STACK_USED_BYTES of daemon/engine/memory_plan.c has room for the largest.
FRAME_BYTES := 32768
$(LIB_OBJ) $(TOOL_OBJ): WARN += $(if $(SANITIZE),,-Wframe-larger-than=$(FRAME_BYTES))
$(B)/kernels-avx512/fp4_avx512.o: FRAME_BYTES := 393216
$(B)/kernels-avx512/fp4_amx.o: FRAME_BYTES := 524288
$(B)/kernels-avx512/linear_amx.o: FRAME_BYTES := 786432
$(B)/kernels-avx512/index_amx.o: FRAME_BYTES := 65536
$(B)/kernels-neon/linear_neon.o: FRAME_BYTES := 49152
SUPPORT_OBJ := $(SUPPORT_SRC:%.c=$(B)/%.o)
TEST_BIN := $(TEST_SRC:%.c=$(B)/%)
FUZZ_BIN := $(FUZZ_SRC:%.c=$(B)/%)
LIB := $(B)/libsluice.a
# The commands' own modules, for tests of them.
TOOL_LIB := $(B)/libtools.a

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all tests aarch64 deps deps-build demo check check-fast check-kernels check-threads \
        check-every-bit check-batch check-images check-sessions check-clients check-debian \
        check-load check-night measure-serve check-tokenizer check-numa asan tsan valgrind lint \
        fuzz-replay fuzz bench install uninstall clean help
all: $(B)/sluice $(B)/sluiced ## build the sluice command (build/release/sluice)
tests: $(TEST_BIN) $(FUZZ_BIN) $(B)/sluice $(B)/sluiced

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile
	@echo "  CONFIG=release|clang|aarch64|asan|tsan|fuzz chooses the build, V=1 shows commands"

# ---- on a new machine -----------------------------------------------------------------------------

deps: ## install the Debian packages that building and testing need
	@tools/install-deps.sh build test

deps-build:
	@tools/install-deps.sh build

demo: deps-build ## build, generate text with the small model that is here
	$(Q)$(MAKE) all
	@tools/demo.sh $(B)/sluice

# ---- tests ----------------------------------------------------------------------------------------

check check-fast check-threads aarch64 asan tsan valgrind fuzz-replay: export WERROR := 1

# Many tests have one thread, so that two at a time are done sooner.
check check-fast check-threads asan tsan: export TEST_JOBS ?= 2

# Three configurations are built, since one answer holds across compilers and processors as well.
check: deps ## build and run all tests
	$(Q)$(MAKE) tests
	$(Q)$(MAKE) CONFIG=clang build/clang/sluice build/clang/tests/test_kernels
	$(Q)$(MAKE) aarch64
	$(Q)$(MAKE) fuzz-replay
	$(Q)tests/run.sh $(TEST_BIN) build/clang/tests/test_kernels $(wildcard tests/check_*.sh)

# Where the cross compiler, qemu or the libraries cannot be had, check_aarch64.sh counts as skipped.
aarch64: ## build sluice and the kernels' test for aarch64, to run under qemu
	$(Q)if [ $(ARCH) != aarch64 ] && tools/install-deps.sh cross && tools/aarch64-root.sh $(AARCH64_ROOT); \
	    then $(MAKE) CONFIG=aarch64 build/aarch64/sluice build/aarch64/tests/test_kernels; \
	    else rm -rf build/aarch64; echo "no build for aarch64"; fi

check-fast: tests ## the C tests alone (of this CONFIG)
	$(Q)tests/run.sh $(TEST_BIN)

# Where threads meet: the pool and what runs on it, reads, the cache, whole engines, packing.
THREADED := base phases forward attend indexer moe weights io io_probe reader expert_cache prefetch \
            packed_experts cache_simulation engine one_answer engine_faults soak store store_crash \
            slab start_report generation worker worker_images checkpoint_verify images images_crash engine_images
THREADED_BIN := $(THREADED:%=build/tsan/tests/test_%)
check-threads: ## the tests that have threads, under ThreadSanitizer
	$(Q)$(MAKE) CONFIG=tsan $(THREADED_BIN)
	$(Q)tests/run.sh $(THREADED_BIN)

check-debian: ## demo and tests on bare Debian releases, with gcc and clang (root, debootstrap, an hour)
	$(Q)tests/bare_debian.sh

check-every-bit: $(B)/tests/test_store_faults ## each bit of a store's catalog flipped and repaired (minutes)
	$(Q)SL_EVERY_BIT=1 $(B)/tests/test_store_faults

check-sessions: $(addprefix $(B)/tests/,test_kv_cache test_session_lives test_long_session) ## sessions live, branch and sleep for long; 6 GB (minutes)
	$(Q)SL_KV_TOKENS=1048576 $(B)/tests/test_kv_cache
	$(Q)SL_SESSION_EVENTS=100000 $(B)/tests/test_session_lives
	$(Q)SL_SESSION_TOKENS=40000 $(B)/tests/test_long_session

check-batch: all ## a batch is killed a hundred times (some ten minutes)
	$(Q)SL_KILLS=100 tests/check_batch.sh

check-images: $(B)/tests/test_engine_images ## sessions from disk, up to 40,000 tokens of the small model (minutes)
	$(Q)SL_LONG=1 $(B)/tests/test_engine_images

check-kernels: $(B)/tests/test_kernels ## every kernel against its reference
	$(B)/tests/test_kernels

# The sanitizers run the C tests, the stored fuzz inputs and, on one model, the commands themselves.
SANITIZED_SCRIPTS := tests/check_one_answer.sh tests/check_bad_input.sh
asan tsan: deps
	$(Q)$(MAKE) CONFIG=$@ tests fuzz-replay
	$(Q)CONFIGS=tiny-flash SLUICE=build/$@/sluice tests/run.sh $(TEST_SRC:%.c=build/$@/%) $(SANITIZED_SCRIPTS)
asan: ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
tsan: ## the tests under ThreadSanitizer

valgrind: deps tests ## the C tests under valgrind
	$(Q)SL_SLOW=1 TEST_WRAPPER="valgrind -q --error-exitcode=99 --leak-check=full" \
	    tests/run.sh $(TEST_BIN)

# A gigabyte from npm, and six minutes, since it looks whether agents wait for a slow prompt.
check-clients: $(B)/tests/clients/scripted_serve ## Claude Code, Codex and opencode with the daemon (npm; minutes)
	$(Q)tests/run.sh tests/clients/agents.sh

# Outside `check`, since it needs npm. MODEL=FOLDER takes another tokenizer.json for the ids.
check-tokenizer: $(B)/sluice ## words and ids as Hugging Face's tokenizers give them (npm; minutes)
	$(Q)SLUICE=$(B)/sluice MODEL=$(MODEL) tests/run.sh tests/tokenizer/check.sh

# Outside `check`, since it boots an emulated machine.
check-numa: $(B)/sluice $(B)/tests/numa/numa_place ## two memory nodes, in an emulated machine (qemu; a minute)
	$(Q)tools/install-deps.sh numa
	$(Q)BUILD=$(B) TEST_TIMEOUT_S=1800 tests/run.sh tests/numa/check_nodes.sh

$(B)/tests/numa/numa_place $(B)/tests/pro/repeat_records: %: %.o $(TOOL_LIB) $(LIB)
	$(say) LD $@
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS)

# For measuring the whole V4-Pro on little disk (docs/PRO.md).
$(B)/tests/pro/share_writes.so: tests/pro/share_writes.c storage/io/checksum.c
	@mkdir -p $(@D)
	$(say) LD $@
	$(Q)$(CC) $(filter-out -MMD -MP,$(ALL_CFLAGS)) -fPIC -shared -o $@ $^ -lxxhash

# REQUESTS=10000 for a long run, or CONFIG=asan REQUESTS=300: the sanitizer, not the test, then looks
# at memory.
REQUESTS ?= 1000
check-load: SANITIZED := $(filter asan tsan,$(CONFIG))
check-load: $(B)/sluice ## sluice serve under load: 64 clients, hang-ups, slow readers, kill -9 (minutes)
	$(Q)$(if $(SANITIZED),$(MAKE) CONFIG=release build/release/sluice)
	$(Q)SL_SANITIZED=$(SANITIZED) SL_REFERENCE=$(if $(SANITIZED),build/release,$(B))/sluice $(or $(PYTHON),/usr/bin/python3) \
	    tests/serve_load.py $(B)/sluice tests/small $(REQUESTS)

check-night: $(B)/sluice ## 200 documents go through a batch that is killed thrice, beside conversations (minutes)
	$(Q)$(or $(PYTHON),/usr/bin/python3) tests/night.py $(B)/sluice tests/small

SLICE ?= build/slice
measure-serve: $(B)/sluice ## speed of sluice serve beside the engine's, and waits; 6 GB of disk and RAM (minutes)
	$(Q)$(or $(PYTHON),/usr/bin/python3) tests/measure_serve.py $(B)/sluice $(SLICE)

lint: deps ## layers, names, headers, format
	$(Q)tests/lint.sh

bench: tests ## speed of tokenizer, checkpoint reader, images and kernels
	$(Q)for t in tokenizer checkpoint_pro images_speed; do \
	    SL_BENCH=1 $(B)/tests/test_$$t 2>&1 | grep -v '^\[' || exit 1; done
	$(Q)$(B)/sluice bench kernels

# ---- building -------------------------------------------------------------------------------------

$(B)/%.ref.o: %.c
	@mkdir -p $(@D)
	$(say) CC $@
	$(Q)$(CC) $(ALL_CFLAGS) -DSL_ISA=ref -c -o $@ $<

$(B)/%.avx2.o: %.c
	@mkdir -p $(@D)
	$(say) CC $@
	$(Q)$(CC) $(ALL_CFLAGS) -DSL_ISA=avx2 -mavx2 -mfma -c -o $@ $<

$(B)/%.avx512.o: %.c
	@mkdir -p $(@D)
	$(say) CC $@
	$(Q)$(CC) $(ALL_CFLAGS) -DSL_ISA=avx512 $(AVX512) -mprefer-vector-width=512 -c -o $@ $<

# Only these files may use AVX-512 on their own; the installer beside them is for the baseline. gcc
# would make repeated string moves of their loops over two vectors, which are slow to start.
AVX512_FILES := $(AVX512) -mavx512vnni -mavx512bf16 -mavx512vbmi
AVX512_FILES += $(if $(findstring clang,$(CC)),,-fno-tree-loop-distribute-patterns)
$(B)/kernels-avx512/%_avx512.o: kernels-avx512/%_avx512.c
	@mkdir -p $(@D)
	$(say) CC $@
	$(Q)$(CC) $(ALL_CFLAGS) $(AVX512_FILES) -c -o $@ $<

AMX_FILES := $(AVX512_FILES) -mamx-tile -mamx-int8 -mamx-bf16
$(B)/kernels-avx512/%_amx.o: kernels-avx512/%_amx.c
	@mkdir -p $(@D)
	$(say) CC $@
	$(Q)$(CC) $(ALL_CFLAGS) $(AMX_FILES) -c -o $@ $<

# The same source as for the baseline, with the int8 dot product.
$(B)/kernels-neon/%.dot.o: kernels-neon/%.c
	@mkdir -p $(@D)
	$(say) CC $@
	$(Q)$(CC) $(ALL_CFLAGS) -DSL_NEON_DOT -march=armv8.2-a+dotprod -c -o $@ $<

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(say) CC $@
	$(Q)$(CC) $(ALL_CFLAGS) -c -o $@ $<

$(B)/tools/cli/version.o: ALL_CFLAGS += -DSL_VERSION='"$(shell cat VERSION)"'
$(B)/tools/cli/version.o: VERSION

$(LIB): $(LIB_OBJ)
	$(say) AR $@
	$(Q)rm -f $@ && ar rcs $@ $^

$(TOOL_LIB): $(filter-out $(B)/tools/cli/sluice.o,$(TOOL_OBJ))
	$(say) AR $@
	$(Q)rm -f $@ && ar rcs $@ $^

$(B)/daemon/http/status_page.o: $(wildcard daemon/http/page/*)

$(B)/sluice: $(TOOL_OBJ) $(LIB)
	$(say) LD $@
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS) $(TOOL_LIBS)

# The server is the same program under another name.
$(B)/sluiced: $(B)/sluice
	$(Q)ln -sf sluice $@

# The real server, but for its worker: what the linker finds first it takes.
$(B)/tests/clients/scripted_serve: $(B)/tests/clients/scripted_serve.o $(B)/tests/clients/scripted_worker.o $(TOOL_LIB) $(LIB)
	$(say) LD $@
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS) $(TOOL_LIBS)

# A fuzz harness gets its main() from libFuzzer in CONFIG=fuzz and from replay.c otherwise.
FUZZ_OBJ := $(if $(filter fuzz,$(CONFIG)),,$(B)/tests/fuzz/replay.o)
$(B)/tests/fuzz/fuzz_%: $(B)/tests/fuzz/fuzz_%.o $(FUZZ_OBJ) $(LIB)
	$(say) LD $@
	$(Q)$(CC) $(ALL_CFLAGS) $(if $(FUZZ_OBJ),,-fsanitize=fuzzer) -o $@ $^ $(LIBS)

# ---- fuzzing --------------------------------------------------------------------------------------

fuzz-replay: $(FUZZ_BIN) ## run every fuzz harness over its stored inputs
	$(Q)for f in $(FUZZ_SRC:tests/fuzz/fuzz_%.c=%); do \
	    $(B)/tests/fuzz/fuzz_$$f tests/fuzz/corpus/$$f || exit 1; done

FUZZ ?= safetensors
SECONDS ?= 600
ifeq ($(CONFIG),fuzz)
fuzz: $(B)/tests/fuzz/fuzz_$(FUZZ)
	@mkdir -p $(B)/corpus/$(FUZZ) $(B)/findings
	$(B)/tests/fuzz/fuzz_$(FUZZ) -max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=4096 \
	    -artifact_prefix=$(B)/findings/$(FUZZ)- $(B)/corpus/$(FUZZ) tests/fuzz/corpus/$(FUZZ)
else
fuzz: ## fuzz one harness: make fuzz FUZZ=safetensors SECONDS=600 (findings in build/fuzz/findings)
	$(Q)$(MAKE) CONFIG=fuzz FUZZ=$(FUZZ) SECONDS=$(SECONDS) fuzz
endif

$(B)/tests/test_%: $(B)/tests/test_%.o $(SUPPORT_OBJ) $(TOOL_LIB) $(LIB)
	$(say) LD $@
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS) -lcmocka

# ---- installing -----------------------------------------------------------------------------------

# Quoted for the shell: these folders may have blanks in their names. STRIP=: keeps the symbols.
STRIP ?= $(if $(filter aarch64,$(CONFIG)),aarch64-linux-gnu-)strip
quoted = '$(subst ','\'',$(1))'
at = $(call quoted,$(DESTDIR)$(prefix)/$(1))
UNITS := lib/systemd/system
COMPLETIONS := share/bash-completion/completions

install: all ## install sluice, sluiced, manuals, configs and units under prefix (/usr/local), below DESTDIR
	install -D -m 755 $(B)/sluice $(call at,bin/sluice)
	$(STRIP) $(call at,bin/sluice)
	ln -sf sluice $(call at,bin/sluiced)
	install -D -m 644 docs/man/sluice.1 $(call at,share/man/man1/sluice.1)
	install -D -m 644 docs/man/sluiced.8 $(call at,share/man/man8/sluiced.8)
	install -D -m 644 -t $(call at,$(UNITS)) tools/serve/sluiced.socket tools/serve/sluiced.service
	sed -i 's|@bindir@|'$(call quoted,$(prefix)/bin)'|' $(call at,$(UNITS)/sluiced.service)
	install -D -m 644 -t $(call at,share/sluice/configs) tools/configs/*.json
	install -D -m 644 tools/cli/sluice.bash $(call at,$(COMPLETIONS)/sluice)
	ln -sf sluice $(call at,$(COMPLETIONS)/sluiced)

uninstall: ## remove what install put there
	rm -f $(call at,bin/sluice) $(call at,bin/sluiced) $(call at,share/man/man1/sluice.1) \
	    $(call at,share/man/man8/sluiced.8) $(call at,$(UNITS)/sluiced.service) \
	    $(call at,$(UNITS)/sluiced.socket) $(call at,$(COMPLETIONS)/sluice) \
	    $(call at,$(COMPLETIONS)/sluiced)
	rm -rf $(call at,share/sluice)

clean: ## remove everything built
	rm -rf build

-include $(shell find build -name '*.d' -type f 2>/dev/null)
