# make demo            builds the command and draws demo.png
# make test            installs what the tests need, builds everything, runs every test
# make build/gmem      the command alone: needs a C compiler and make; honours CC, CFLAGS, LDFLAGS
# make gmem.h          the single header, regenerated from src/ and backends/
# make bench           measures this machine (bench/README.md)
# make install PREFIX=/usr/local

CC      ?= cc
CFLAGS  ?= -O2
BUILD   ?= build
WARN    := -Wall -Wextra -Wpedantic -Wshadow -Wconversion
OPENMP  ?= $(shell printf 'int main(void){return 0;}' | $(CC) -fopenmp -xc - -o /dev/null 2>/dev/null && echo -fopenmp)
COMPILE  = $(CC) -std=c99 $(WARN) $(OPENMP) $(CFLAGS) -MMD -MP
LINK     = $(CC) $(OPENMP) $(CFLAGS) $(LDFLAGS)
LIBS    := -lm

# src/gmem.c is the only list of the parts, in reading order.
PARTS   := $(shell awk -F'"' '/^\#include ".*\.c"/ { p = "src/" $$2; sub("src/../", "", p); print p }' src/gmem.c)
OBJECTS := $(PARTS:%.c=$(BUILD)/%.o)
# Tests of instructions that this processor lacks (tests/emulated.h) ask another one what it has.
ifdef EMULATED
OBJECTS := $(OBJECTS:%/backends/cpu/features.o=%/tests/emulated_features.o)
COMPILE += -Wno-psabi -include tests/emulated.h -mavx2 -mfma -mf16c
endif
TESTS   := $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))

all: $(BUILD)/gmem

$(BUILD)/%.o: %.c
	@mkdir -p $(dir $@)
	$(COMPILE) -DGMEM__PARTS -c $< -o $@

# OpenCL's sources as string literals, for the one part that holds them; in gmem.h they are in place.
KERNELS := $(wildcard backends/opencl/*.cl)
$(BUILD)/%.cl.inc: %.cl tools/amalgamate.awk
	@mkdir -p $(dir $@)
	awk -f tools/amalgamate.awk $< > $@.tmp
	mv $@.tmp $@
$(BUILD)/backends/opencl/program.o: COMPILE += -I$(BUILD)/backends/opencl
$(BUILD)/backends/opencl/program.o: $(KERNELS:%=$(BUILD)/%.inc)

$(BUILD)/libgmem.a: $(OBJECTS)
	@rm -f $@
	$(AR) rcs $@ $(OBJECTS)

gmem.h: $(PARTS) $(KERNELS) $(wildcard src/*.h backends/*/*.h backends/*/*.inc) src/gmem.c tools/amalgamate.awk
	awk -f tools/amalgamate.awk src/gmem.c > $@.tmp
	mv $@.tmp $@

include examples/rules.mk

# A test program: tests/test_NAME.c with the parts, the golden files and the procedural weights.
$(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/tests/golden.o $(BUILD)/examples/gmem/procedural.o $(BUILD)/libgmem.a
	$(LINK) $^ $(LIBS) -pthread -o $@

# What the command reads pictures with.
$(BUILD)/tests/test_pictures.o: COMPILE += -I.
$(BUILD)/tests/test_pictures: $(patsubst %,$(BUILD)/examples/gmem/%.o,picture_file pnm report args)

tests: $(TESTS:%=$(BUILD)/tests/%)

test:
	tools/install-test-deps.sh
	tests/run.sh

# A benchmark measures the machine's peak as the command does.
$(BUILD)/bench/%.o: COMPILE += -I.
$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/examples/gmem/machine.o $(BUILD)/examples/gmem/report.o $(BUILD)/libgmem.a
	$(LINK) $^ $(LIBS) -o $@

bench:
	bench/run.sh

clean:
	rm -rf build demo.png

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

.PHONY: all tests test bench clean
.SECONDARY:
