#!/bin/bash
# The readers under libFuzzer for a bounded number of runs, from small valid files of every format. Longer by hand:
# tests/fuzz.sh SECONDS
set -eu
cd "$(dirname "$0")/.."
out=build/fuzz
mkdir -p $out/corpus $out/found
flags="-DGMEM_NO_SIMD -DGMEM_NO_OPENCL -O1 -g -fsanitize=fuzzer-no-link,address,undefined" # the readers use neither
make -s -j"$(nproc)" BUILD=$out/parts CC=clang OPENMP= CFLAGS="$flags" $out/parts/libgmem.a $out/parts/tests/fuzz_files.o
clang -fsanitize=fuzzer,address,undefined $out/parts/tests/fuzz_files.o $out/parts/libgmem.a -lm -o $out/fuzz_files
cp tests/golden/container_* tests/golden/bank_full.pth $out/corpus/
if [ $# = 1 ]; then bound="-max_total_time=$1"; else bound="-runs=20000"; fi
$out/fuzz_files -seed=1 -timeout=5 -rss_limit_mb=1024 -max_len=65536 -artifact_prefix=$out/found/ "$bound" $out/corpus
