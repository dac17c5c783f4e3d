# Sluice: runs DeepSeek-V4 on one Linux workstation.   make help   lists the targets.

CONFIG ?= release
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
WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
ALL_CFLAGS = -std=gnu11 -D_GNU_SOURCE -I. $(WARN) $(CFLAGS) $(NUMERIC) $(SANITIZE) -pthread -MMD -MP
LIBS := -luring -lpcre2-8 -ljansson -lm

ifeq ($(CONFIG),asan)
SANITIZE := -fsanitize=address -fno-omit-frame-pointer -DSL_DEBUG
CFLAGS := -O1 -g
else ifeq ($(CONFIG),ubsan)
SANITIZE := -fsanitize=undefined -fno-sanitize-recover=all -DSL_DEBUG
CFLAGS := -O1 -g
else ifeq ($(CONFIG),tsan)
SANITIZE := -fsanitize=thread -DSL_DEBUG
CFLAGS := -O1 -g
else ifeq ($(CONFIG),clang)
CC := clang
else ifeq ($(CONFIG),fuzz)
CC := clang
SANITIZE := -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all -DSL_DEBUG
CFLAGS := -O1 -g
endif

ARCH := $(shell $(CC) -dumpmachine | cut -d- -f1)
LIB_SRC := $(filter-out %_isa.c,$(wildcard core/*/*.c storage/*.c cache/*.c daemon/*.c))
TOOL_SRC := $(wildcard tools/*.c)
TEST_SRC := $(wildcard tests/test_*.c)
SUPPORT_SRC := $(filter-out $(TEST_SRC),$(wildcard tests/*.c))
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)

# The plain-C kernels are compiled once for each instruction set that the compiler can vectorise for.
ISA_SRC := $(wildcard core/kernels/*_isa.c)
ISA_OBJ := $(ISA_SRC:%.c=$(B)/%.ref.o)
ifeq ($(ARCH),x86_64)
ISA_OBJ += $(ISA_SRC:%.c=$(B)/%.avx2.o)
endif

LIB_OBJ := $(LIB_SRC:%.c=$(B)/%.o) $(ISA_OBJ)
TOOL_OBJ := $(TOOL_SRC:%.c=$(B)/%.o)
SUPPORT_OBJ := $(SUPPORT_SRC:%.c=$(B)/%.o)
TEST_BIN := $(TEST_SRC:%.c=$(B)/%)
FUZZ_BIN := $(FUZZ_SRC:%.c=$(B)/%)
LIB := $(B)/libsluice.a

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all tests help clean
all: $(B)/sluice ## build the sluice command (build/release/sluice)
tests: $(TEST_BIN) $(FUZZ_BIN) $(B)/sluice

$(B)/%.ref.o: %.c
	@mkdir -p $(@D)
	$(say) CC $@
	$(Q)$(CC) $(ALL_CFLAGS) -DSL_ISA=ref -c -o $@ $<

$(B)/%.avx2.o: %.c
	@mkdir -p $(@D)
	$(say) CC $@
	$(Q)$(CC) $(ALL_CFLAGS) -DSL_ISA=avx2 -mavx2 -mfma -c -o $@ $<

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(say) CC $@
	$(Q)$(CC) $(ALL_CFLAGS) -c -o $@ $<

$(LIB): $(LIB_OBJ)
	$(say) AR $@
	$(Q)rm -f $@ && ar rcs $@ $^

$(B)/sluice: $(TOOL_OBJ) $(LIB)
	$(say) LD $@
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS)

# A fuzz harness gets its main() from libFuzzer in CONFIG=fuzz and from replay.c otherwise.
FUZZ_OBJ := $(if $(filter fuzz,$(CONFIG)),,$(B)/tests/fuzz/replay.o)
$(B)/tests/fuzz/fuzz_%: $(B)/tests/fuzz/fuzz_%.o $(FUZZ_OBJ) $(LIB)
	$(say) LD $@
	$(Q)$(CC) $(ALL_CFLAGS) $(if $(FUZZ_OBJ),,-fsanitize=fuzzer) -o $@ $^ $(LIBS)

.PHONY: fuzz-replay fuzz
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

$(B)/tests/test_%: $(B)/tests/test_%.o $(SUPPORT_OBJ) $(LIB)
	$(say) LD $@
	$(Q)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS) -lcmocka

clean: ## remove everything built
	rm -rf build

-include $(shell find build -name '*.d' 2>/dev/null)
