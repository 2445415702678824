#!/bin/bash
# The OpenCL kernels as clang compiles them for GPUs that no machine of the tests has: with f16 arithmetic, which is then
# that of pairs, with its stand-in, which has none, and without either; with the tiles of several devices.
set -u
cd "$(dirname "$0")/.."
code=$(mktemp)
trap 'rm -f "$code"' EXIT
failed=0

# compile TARGET OPTION...: leaves the LLVM code; a warning is an error.
compile() {
    cat backends/opencl/product.cl backends/opencl/kernels.cl |
        clang -cl-std=CL1.2 -x cl -Xclang -finclude-default-header -Wall -Wextra -Werror -Wno-unused-parameter \
            -Wno-unused-command-line-argument -nogpulib -O1 -S -emit-llvm -o "$code" -target "$@" - && return
    echo "does not compile: $*"
    failed=$((failed + 1))
}

# count NUMBER WHAT PATTERN: how often the code has it, or at least once for "some".
count() {
    local found
    found=$(grep -c "$3" "$code")
    [ "$found" = "$1" ] || { [ "$1" = some ] && [ "$found" -gt 0 ]; } && return
    echo "$found $2, not $1"
    failed=$((failed + 1))
}

fma='call.*<2 x half> @_Z3fmaDv2_DhS_S_'
for target in spir64 "amdgcn-amd-amdhsa -mcpu=gfx906"; do
    for tiles in "" "-DITEM_ROWS=6 -DITEM_COLUMNS=3 -DGROUP_ROWS=4 -DGROUP_COLUMNS=16 -DGROUP_DEPTH=12" \
        "-DITEM_ROWS=2 -DITEM_COLUMNS=1 -DGROUP_ROWS=32 -DGROUP_COLUMNS=8 -DGROUP_DEPTH=64" \
        "-DTILE_ROWS=4 -DTILE_VECTORS=1 -DTILE_WIDTH=4 -DTILE_COLUMNS=64 -DTILE_DEPTH=64"; do
        compile $target $tiles -DF16_ARITHMETIC=1
        count 1 "kernels with f16 arithmetic" "^define.*kernel.*@product_f16("
        count some "products of pairs" "$fma"
        compile $target $tiles -DF16_ARITHMETIC=2
        count 1 "kernels with the stand-in" "^define.*kernel.*@product_f16("
        count 0 "products of pairs" "$fma"
        compile $target $tiles
        count 0 "kernels with f16 arithmetic" "@product_f16("
    done
done
[ "$failed" = 0 ]
