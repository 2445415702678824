#!/bin/bash
# Every test, in the order in which failures are cheapest to understand. Each step counts as one test beside those of the
# programs it runs; the last line sums them up. Usage: tests/run.sh [STEP...], the steps being the functions step_*.
set -u
cd "$(dirname "$0")/.."
export LC_ALL=C ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export MSAN_OPTIONS=allocator_may_return_null=1

# The default model as it was trained is too large for the tree; where its folder is at hand it is tested too.
[ -d ../shared/emoji ] && export GMEM_EMOJI=${GMEM_EMOJI:-../shared/emoji}
# On a machine that does other things too, OpenMP's threads must not spin for each other.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}

passed=0
failed=0
jobs=$(nproc)
log=build/test.log
mkdir -p build
: >"$log"

# run NAME COMMAND...: one step; counts what the command's last line says where it says so.
run() {
    local name=$1 start=$SECONDS status counts
    shift
    "$@" >build/step.log 2>&1
    status=$?
    cat build/step.log >>"$log"
    counts=$(grep -aE '^[0-9]+ passed, [0-9]+ failed$' build/step.log | tail -n 1)
    if [ $status = 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        tail -n 40 build/step.log
    fi
    if [ -n "$counts" ]; then
        passed=$((passed + ${counts%% *}))
        counts_failed=${counts##*, }
        failed=$((failed + ${counts_failed%% *}))
    fi
    printf '%-6s %-44s %4ss  %s\n' "$([ $status = 0 ] && echo ok || echo FAILED)" "$name" $((SECONDS - start)) "$counts"
}

# Builds and runs test programs in a folder of their own: variant FOLDER "MAKE VARIABLES" PROGRAM...
variant() {
    local folder=$1 variables=$2 name
    shift 2
    eval run "'build $folder'" make -s -j"$jobs" BUILD="$folder" "$variables" "${*/#/$folder/tests/}"
    for name in "$@"; do
        run "$folder $name" "$folder/tests/$name"
    done
}

all_tests=$(ls tests/test_*.c | sed 's,tests/\(.*\)\.c,\1,')
# Once is enough for whole models: their operations are tested in every variant.
quick_tests=$(echo "$all_tests" | grep -v -e full -e emoji -e compute)

# Trajectories repeat what single passes have done, and take a minute under a sanitizer.
checked_tests=$(echo "$quick_tests" | grep -v -e recordings)

step_source() {
    run "gmem.h is what the parts give" tests/same_header.sh
    run "layout" tests/layout.sh
}

step_header() {
    run "the header in C and C++, gcc and clang" tests/header.sh
}

step_gcc() {
    variant build "CC=gcc" $all_tests
}

step_clang() {
    variant build/clang "CC=clang OPENMP=-fopenmp" $quick_tests
}

step_sanitizers() {
    variant build/asan-gcc "CC=gcc OPENMP= CFLAGS='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined'" $checked_tests
    variant build/asan-clang "CC=clang OPENMP= CFLAGS='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined'" \
        test_files test_torch test_zip test_pickle
    # What reads untrusted bytes, for uninitialised memory too; whole models take minutes there.
    variant build/msan "CC=clang OPENMP= CFLAGS='-O1 -g -fsanitize=memory'" \
        test_files test_io test_bank test_tensor test_zip test_pickle
}

step_threads() {
    variant build/tsan "CC=clang OPENMP= CFLAGS='-O1 -g -fsanitize=thread'" test_threads
}

step_fuzz() {
    run "fuzz the readers" tests/fuzz.sh
}

step_command() {
    run "make build/gmem" make -s -j"$jobs" build/gmem
    run "the command from outside" tests/test_command.sh
}

for step in "${@:-}"; do
    if [ -n "$step" ]; then
        "step_$step"
    else
        step_source
        step_header
        step_gcc
        step_clang
        step_sanitizers
        step_threads
        step_fuzz
        step_command
    fi
done
echo "everything printed is in $log; seconds: $SECONDS"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
