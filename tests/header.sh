#!/bin/bash
# gmem.h as users take it: the embedding example as C99 and C++, by gcc and clang, without a warning; after any system
# header; included twice; static; without SIMD, mapping, OpenMP and OpenCL; optimised and not.
set -eu
cd "$(dirname "$0")/.."
out=build/header
mkdir -p $out
warn="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"

cat >$out/late.c <<'C'
#include <stdio.h>
#include <stdlib.h>
#include <math.h>
#include <fcntl.h>
#include <unistd.h>
#include "gmem.h"
#define GMEM_IMPLEMENTATION
#include "gmem.h"
#include "gmem.h"
int main(void) { return gmem_version()[0] == 0; }
C
cat >$out/static.c <<'C'
#define GMEM_STATIC
#define GMEM_IMPLEMENTATION
#include "gmem.h"
int main(void) { return gmem_version()[0] == 0; }
C

try() { # try COMPILER SOURCE FLAGS...: the program is $out/COMPILER
    local compiler=$1 source=$2
    shift 2
    case $compiler in *++) set -- "$@" -xc++ ;; esac
    if ! "$compiler" $warn "$@" -I. "$source" -xnone -lm -o "$out/$compiler"; then
        echo "failed: $compiler $* $source"
        exit 1
    fi
    count=$((count + 1))
}

try_pair() { # try_pair CC CXX
    count=0
    try "$1" examples/embed.c -std=c99 -O2 -fopenmp
    try "$2" examples/embed.c -std=c++11 -O2 -fopenmp
    try "$1" $out/late.c -std=gnu11 -DGMEM_NO_MMAP
    try "$1" $out/static.c -std=c99 -Wno-unused-function
    try "$1" $out/late.c -std=c99 -DGMEM_NO_SIMD
    try "$2" $out/late.c -std=c++17
    grep -q libOpenCL "$out/$2" || { echo "the header does not know OpenCL's library"; exit 1; }
    try "$2" $out/static.c -std=c++11 -DGMEM_NO_OPENCL -Wno-unused-function
    try "$1" $out/late.c -std=c99 -DGMEM_NO_OPENCL
    if grep -q libOpenCL "$out/$1"; then echo "GMEM_NO_OPENCL leaves something of OpenCL"; exit 1; fi
    try "$1" $out/late.c -std=c99
    "$out/$1"
    echo "$1 and $2: $count compilations without a warning"
}

try_pair gcc g++ >$out/gcc.log 2>&1 &
first=$!
try_pair clang clang++ >$out/clang.log 2>&1 &
second=$!
status=0
wait $first || status=1
wait $second || status=1
cat $out/gcc.log $out/clang.log
exit $status
