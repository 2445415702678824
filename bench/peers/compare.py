"""The same work in gmem, PyTorch (eager, compiled, compiled with frozen weights) and OpenVINO, one after the other on the
same cores: a pass of a GMem LightningDiT and the decoding of a picture, in f32 and bf16.

Every result is compared with gmem's own in f32 before it is timed. gmem is timed before and after its peers, so that a
machine that drifts shows. What fails is a line that says why.

    python3 -m venv build/peers && build/peers/bin/pip install -r bench/peers/requirements.txt
    build/gmem synth xl/1 -o build/xl1.safetensors && build/gmem synth vavae -o build/vavae.safetensors
    build/peers/bin/python bench/peers/compare.py --network build/xl1.safetensors --autoencoder build/vavae.safetensors
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import models
from safetensors.torch import load_file, save_file

HOWS = ["eager", "compile", "freezing", "openvino"]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", help="a GMem LightningDiT with SwiGLU, RMSNorm and RoPE, as safetensors, patch 1")
    parser.add_argument("--autoencoder", help="an autoencoder in CompVis's names, as safetensors")
    parser.add_argument("--gmem", default="build/gmem")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=10, help="how long each peer is repeated")
    parser.add_argument("--limit", type=float, default=900, help="seconds that a peer may take in all")
    parser.add_argument("--hows", nargs="+", default=HOWS, choices=HOWS)
    parser.add_argument("--dtypes", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("-o", "--output", help="write the rows as JSON")
    return parser.parse_args()


def expected_of(arguments, work, path, folder):
    """gmem's result in f32, in a file of one tensor."""
    source, result = os.path.join(folder, work + ".in"), os.path.join(folder, work + ".out")
    save_file(models.load(work, path)[1], source)
    command = ["eval", "--network"] if work == "network" else ["decode", "--autoencoder"]
    command = [arguments.gmem, *command, path, "--input", source, "-o", result, "-q", "-t", str(arguments.threads)]
    subprocess.run(command, check=True)
    name = "v" if work == "network" else "decoded"
    save_file({name: load_file(result)[name]}, result)
    return result


def gmem_row(arguments, work, path, dtype):
    command = [arguments.gmem, "bench", work, "--" + work, path, "--dtype", dtype, "--json", "-q"]
    command += ["-t", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    row = {"work": work, "how": "gmem", "dtype": dtype}
    if done.returncode:
        return {**row, "failed": done.stderr.strip()}
    report = json.loads(done.stdout)
    return {**row, "median": report["seconds_median"], "version": report["kernels"], "cpu": report["cpu"]}


def peer_row(arguments, work, path, how, dtype, expected):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "variant.py")
    command = [sys.executable, script, work, how, dtype, path, expected]
    command += ["--threads", str(arguments.threads), "--seconds", str(arguments.seconds)]
    row = {"work": work, "how": how, "dtype": dtype}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit)
    except subprocess.TimeoutExpired:
        return {**row, "failed": f"took longer than {arguments.limit:.0f} s"}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        told = [line for line in lines if "Error" in line or "differ" in line]
        return {**row, "failed": (told or lines or ["no reason given"])[-1].strip()[:200]}
    return {**row, **json.loads(done.stdout.strip().splitlines()[-1])}


def show(row, ours=None):
    name = f"{row['work']:<12}{row['how']:<10}{row['dtype']:<6}"
    if "failed" in row:
        print(f"{name}failed: {row['failed']}", flush=True)
        return
    ratio = f"  gmem / this {ours / row['median']:.3f}" if ours and row["how"] != "gmem" else ""
    error = f"  error {row['error']:.1e}" if "error" in row else ""
    print(f"{name}{row['median'] * 1e3:10.1f} ms  {row['version']}{error}{ratio}", flush=True)


def main():
    arguments, rows = parse(), []
    works = [(work, getattr(arguments, work)) for work in ("network", "autoencoder") if getattr(arguments, work)]
    if not works:
        sys.exit("compare.py: name a --network, an --autoencoder or both")
    with tempfile.TemporaryDirectory() as folder:
        for work, path in works:
            expected = expected_of(arguments, work, path, folder)
            for dtype in arguments.dtypes:
                before = gmem_row(arguments, work, path, dtype)
                show(before)
                peers = []
                for how in arguments.hows:
                    peers.append(peer_row(arguments, work, path, how, dtype, expected))
                    show(peers[-1], before.get("median"))
                after = gmem_row(arguments, work, path, dtype)
                show(after)
                medians = [row["median"] for row in (before, after) if "median" in row]
                for row in peers:
                    if medians and "median" in row:
                        row["ratio"] = sum(medians) / len(medians) / row["median"]
                rows += [before, *peers, after]
    if arguments.output:
        with open(arguments.output, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
