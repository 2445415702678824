# make demo            builds the command and draws demo.png
# make test            installs what the tests need, builds everything, runs every test
# make build/gmem      the command alone: needs a C compiler and make
# make gmem.h          the single header, regenerated from src/ and backends/
# make bench           measures (bench/README.md)
# make install PREFIX=/usr/local

CC      ?= cc
CFLAGS  ?= -O2
PREFIX  ?= /usr/local
WARN    := -Wall -Wextra -Wpedantic -Wshadow -Wconversion
OPENMP  := $(shell printf 'int main(void){return 0;}' | $(CC) -fopenmp -xc - -o /dev/null 2>/dev/null && echo -fopenmp)
override CFLAGS += -std=c99 $(WARN) $(OPENMP)
LIBS    := -lm

PARTS   := $(filter-out src/gmem.c,$(wildcard src/*.c)) $(wildcard backends/*/*.c)
HEADERS := $(wildcard src/*.h backends/*/*.h backends/*/*.inc)
OBJECTS := $(PARTS:%.c=build/%.o)

all: build/gmem

build/%.o: %.c $(HEADERS)
	@mkdir -p $(dir $@)
	$(CC) $(CFLAGS) -DGMEM__PARTS -c $< -o $@

build/libgmem.a: $(OBJECTS)
	$(AR) rcs $@ $(OBJECTS)

gmem.h: $(PARTS) $(HEADERS) src/gmem.c tools/amalgamate.awk
	awk -f tools/amalgamate.awk src/gmem.c > $@.tmp && mv $@.tmp $@

.PHONY: all
