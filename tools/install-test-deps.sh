#!/bin/sh
# Installs what `make test` needs beyond a C compiler, make and awk: the only list of it. Does nothing where all is there.
set -eu

# OpenCL: a device on the processor, the two libraries that the backend opens, and the checker of kernels. No headers.
opencl="pocl-opencl-icd ocl-icd-libopencl1 libclblast1 oclgrind"
# libsimde-dev: what stands in for instructions that the processor lacks.
packages="gcc g++ clang libclang-rt-dev libomp-dev clang-format jq pkg-config locales libsimde-dev $opencl"

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
