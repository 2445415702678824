#!/bin/bash
# make bench: the GEMM's shapes, one pass of XL/1 in steady state, and the same pass in PyTorch beside it (installed into
# build/peers on first use; BENCH_PEERS=0 leaves it out). Run it on an idle machine. Results: bench/RESULTS.md.
set -eu
cd "$(dirname "$0")/.."
make -s build/gmem build/bench/gemm

echo "== GEMM shapes of XL/1"
build/bench/gemm

network=build/xl1.safetensors
[ -f $network ] || build/gmem synth xl/1 -q -o $network
echo "== a pass of XL/1"
build/gmem bench network --network $network

[ "${BENCH_PEERS:-1}" = 1 ] || exit 0
if [ ! -x build/peers/bin/python ]; then
    python3 -m venv build/peers
    build/peers/bin/pip install -q -r bench/peers/requirements.txt
fi
echo "== beside PyTorch"
build/peers/bin/python bench/peers/pytorch.py $network
