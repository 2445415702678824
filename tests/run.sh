#!/bin/bash
# Every test, in the order in which failures are cheapest to understand. Each step counts as one test beside those of the
# programs it runs; the last line sums them up. Usage: tests/run.sh [STEP...], the steps being the functions step_*.
set -u
cd "$(dirname "$0")/.."
export LC_ALL=C ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export MSAN_OPTIONS=allocator_may_return_null=1

# The default model as it was trained is too large for the tree; where its folder is at hand it is tested too.
[ -d ../shared/emoji ] && export GMEM_EMOJI=${GMEM_EMOJI:-../shared/emoji}
# Which OpenCL devices a machine has must not decide what a test computes: only what is meant to sees one.
mkdir -p build/no-opencl
export OCL_ICD_VENDORS=$PWD/build/no-opencl
# On a machine that does other things too, OpenMP's threads must not spin for each other.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}

passed=0
failed=0
jobs=$(nproc)
log=build/test.log
mkdir -p build
: >"$log"

# report NAME STATUS SECONDS LOG: one step's line; counts what the log's last line says where it says so.
report() {
    local name=$1 status=$2 seconds=$3 step_log=$4 counts counts_failed
    cat "$step_log" >>"$log"
    counts=$(grep -aE '^[0-9]+ passed, [0-9]+ failed$' "$step_log" | tail -n 1)
    if [ "$status" = 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        tail -n 40 "$step_log"
    fi
    if [ -n "$counts" ]; then
        passed=$((passed + ${counts%% *}))
        counts_failed=${counts##*, }
        failed=$((failed + ${counts_failed%% *}))
    fi
    printf '%-6s %-44s %4ss  %s\n' "$([ "$status" = 0 ] && echo ok || echo FAILED)" "$name" "$seconds" "$counts"
}

# run NAME COMMAND...: one step.
run() {
    local name=$1 start=$SECONDS status
    shift
    "$@" >build/step.log 2>&1
    status=$?
    report "$name" $status $((SECONDS - start)) build/step.log
}

# Builds test programs in a folder of their own and runs them one after the other, for each uses every core:
# variant FOLDER "MAKE VARIABLES" PROGRAM...
variant() {
    local folder=$1 name
    build "$@"
    shift 2
    for name in "$@"; do
        run "$folder $name" "$folder/tests/$name"
    done
}

build() {
    local folder=$1 variables=$2
    shift 2
    eval run "'build $folder'" make -s -j"$jobs" BUILD="$folder" "$variables" "${*/#/$folder/tests/}"
}

# side_by_side FOLDER COMMAND PROGRAM...: the command with NAME for each program's name; logs go to the folder.
side_by_side() {
    local folder=$1 command=$2 name status seconds
    shift 2
    mkdir -p "$folder"
    printf '%s\n' "$@" | xargs -P "$jobs" -I NAME bash -c \
        "($command)"' >"$0/NAME.log" 2>&1; echo "$? $SECONDS" >"$0/NAME.status"' "$folder"
    for name in "$@"; do
        read -r status seconds <"$folder/$name.status"
        report "$folder $name" "$status" "$seconds" "$folder/$name.log"
    done
}

# The same as variant for programs of one thread each.
variant_serial() {
    local folder=$1
    build "$@"
    shift 2
    side_by_side "$folder" "$folder/tests/NAME" "$@"
}

every_test=$(ls tests/test_*.c | sed 's,tests/\(.*\)\.c,\1,')
opencl_tests=$(echo "$every_test" | grep opencl)
all_tests=$(echo "$every_test" | grep -v -e opencl -e 'full$') # those run with a device
# Once is enough for whole models: their operations are tested in every variant.
quick_tests=$(echo "$all_tests" | grep -v -e full -e emoji -e compute)

# Trajectories repeat what single passes have done, and take a minute under a sanitizer.
checked_tests=$(echo "$quick_tests" | grep -v -e recordings)

# What a build for the readers alone leaves out: half a minute of compiling.
readers="-DGMEM_NO_SIMD -DGMEM_NO_OPENCL"

step_source() {
    run "gmem.h is what the parts give" tests/same_header.sh
    run "layout" tests/layout.sh
}

step_header() {
    run "the header in C and C++, gcc and clang" tests/header.sh
}

step_kernels() {
    run "the kernels for GPUs, clang" tests/kernels.sh
}

step_gcc() {
    variant build "CC=gcc" $all_tests
}

# The code of AVX-512 on any processor that has AVX2, as two others with AVX-512 would run it.
step_emulated() {
    grep -qw avx2 /proc/cpuinfo || { echo "not emulated: AVX-512, without AVX2"; return; }
    local processor name kernels="test_narrow test_products test_handover test_bank_search"
    local vectors="test_kernels test_gemm test_joints test_network test_autoencoder test_encoder test_bank_compress"
    build build/emulated "EMULATED=1 CC=gcc CFLAGS=-O2" $vectors $kernels
    for processor in zen4 intel; do
        for name in $kernels; do
            run "$processor $name" env GMEM_EMULATED=$processor "build/emulated/tests/$name"
        done
    done
    for name in $vectors; do
        run "emulated $name" "build/emulated/tests/$name"
    done
}

step_clang() {
    variant build/clang "CC=clang OPENMP=-fopenmp" $quick_tests
}

step_sanitizers() {
    variant_serial build/asan-gcc \
        "CC=gcc OPENMP= CFLAGS='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined'" $checked_tests
    # Readers of untrusted bytes, which know nothing of kernels; for uninitialised memory too.
    variant_serial build/asan-clang \
        "CC=clang OPENMP= CFLAGS='$readers -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined'" \
        test_files test_torch test_zip test_pickle
    variant_serial build/msan "CC=clang OPENMP= CFLAGS='$readers -O1 -g -fsanitize=memory'" \
        test_files test_io test_bank test_tensor test_zip test_pickle
}

step_threads() {
    variant build/tsan "CC=clang OPENMP= CFLAGS='-O1 -g -fsanitize=thread'" test_threads
}

# PoCL is the device that every machine has; GMEM_TEST_DEVICE names another one. Its compiler's results are kept.
device="env OCL_ICD_VENDORS=${GMEM_TEST_VENDORS:-/etc/OpenCL/vendors/pocl.icd} POCL_CACHE_DIR=$PWD/build/pocl"
[ -n "${GMEM_TEST_DEVICE:-}" ] && device="env -u OCL_ICD_VENDORS"

# The recorded cases on a device, with the bars of the CPU, then what there is for devices alone.
step_opencl() {
    local name recorded="test_network test_recordings test_autoencoder test_full test_full_vae test_emoji test_cache
        test_sample test_generate test_threads test_encoder"
    mkdir -p build/pocl
    build build "CC=gcc" $recorded $opencl_tests
    for name in $recorded; do
        run "opencl $name" $device GMEM_TEST_BACKEND=opencl "build/tests/$name"
    done
    side_by_side build/device "$device build/tests/NAME" $opencl_tests # most of it is compiling, on one core
}

# simulate PROGRAM: every report of oclgrind is a failure. Unoptimised, since oclgrind 21.10 takes optimised vectors for
# uninitialised.
simulate() {
    local reports=build/$1.reports status
    rm -f "$reports"
    OCL_ICD_VENDORS=/usr/lib/oclgrind/liboclgrind-rt-icd.so OCLGRIND_DATA_RACES=1 OCLGRIND_UNINITIALIZED=1 \
        OCLGRIND_BUILD_OPTIONS=-cl-opt-disable OCLGRIND_LOG=$reports "build/tests/$1" small
    status=$?
    [ -e "$reports" ] || { echo "oclgrind did not run"; return 1; }
    if [ -s "$reports" ]; then head -n 30 "$reports"; return 1; fi
    return $status
}

# Every kernel in a simulator that sees data races, memory that was never written, and accesses out of bounds.
step_simulator() {
    local programs="test_opencl_ops test_opencl_values test_opencl_product test_opencl_split"
    build build "CC=gcc" $programs
    export -f simulate
    side_by_side build/simulated "simulate NAME" $programs
}

step_fuzz() {
    run "fuzz the readers" tests/fuzz.sh
}

step_command() {
    run "make build/gmem" make -s -j"$jobs" build/gmem
    run "the command from outside" $device tests/test_command.sh
}

for step in "${@:-}"; do
    if [ -n "$step" ]; then
        "step_$step"
    else
        step_source
        step_header
        step_kernels
        step_gcc
        step_emulated
        step_clang
        step_sanitizers
        step_threads
        step_opencl
        step_simulator
        step_fuzz
        step_command
    fi
done
echo "everything printed is in $log; seconds: $SECONDS"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
