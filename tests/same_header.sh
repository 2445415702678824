#!/bin/sh
# The committed gmem.h is what tools/amalgamate.awk makes of the parts today, with every awk at hand.
set -eu
cd "$(dirname "$0")/.."
for awk in awk mawk gawk; do
    command -v $awk >/dev/null || continue
    $awk -f tools/amalgamate.awk src/gmem.c >build/gmem.h.check
    cmp build/gmem.h.check gmem.h || {
        echo "gmem.h is stale: run 'make gmem.h' and commit it"
        exit 1
    }
done
