#!/bin/sh
# Installs what `make test` needs beyond a C compiler, make and awk: the only list of it. Does nothing where all is there.
set -eu

packages="gcc g++ clang libclang-rt-dev libomp-dev clang-format jq pkg-config locales"

missing=""
for package in $packages; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

root=""
[ "$(id -u)" = 0 ] || root=sudo
echo "installing:$missing"
$root apt-get update -q
DEBIAN_FRONTEND=noninteractive $root apt-get install -y -q --no-install-recommends $missing
