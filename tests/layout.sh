#!/bin/sh
# .clang-format decides layout. Versions differ in taste, so only the one that the project uses may complain.
set -eu
cd "$(dirname "$0")/.."
format=$(command -v clang-format-14 || command -v clang-format) || exit 0
$format --version | grep -q 'version 14\.' || exit 0
git ls-files '*.c' '*.h' '*.inc' | grep -v -e '^gmem\.h$' -e '^examples/stb/' | xargs $format --dry-run -Werror
