#!/bin/bash
# make bench: this machine's peaks, and everything that gmem does against them (bench/all has the peers too, and a chart).
# Run it on an idle machine.
set -eu
cd "$(dirname "$0")/.."
make -s build/gmem
network=build/xl1.safetensors autoencoder=build/vavae.safetensors
[ -f $network ] || build/gmem synth xl/1 -q -o $network
[ -f $autoencoder ] || build/gmem synth vavae -q -o $autoencoder
build/gmem bench all --network $network --autoencoder $autoencoder
