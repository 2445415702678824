"""The linear layers of XL/1 by others: oneDNN through PyTorch (f32, bf16, int8) and NumPy's BLAS (f32, usually OpenBLAS),
256 rows of activations, weights from memory. Beside it: `gmem bench gemm`.

Prints a line each, or with --json one JSON value. PyTorch's weights are packed for oneDNN beforehand where it offers that.
"""

import argparse
import json
import os
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
parser.add_argument("--runs", type=int, default=9)
parser.add_argument("--json", action="store_true")
arguments = parser.parse_args()
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(arguments.threads)  # read when the libraries are loaded

import numpy  # noqa: E402
import torch  # noqa: E402

LAYERS = [("qkv", 3456, 1152), ("proj", 1152, 1152), ("mlp_in", 6144, 1152), ("mlp_out", 1152, 3072)]
COLUMNS = 256
FLUSH = torch.zeros(256 << 20, dtype=torch.uint8)


def torch_f32(x, w):
    return lambda: torch.mm(x, w.t())


def torch_bf16(x, w):
    x, w = x.bfloat16(), w.bfloat16()
    return lambda: torch.mm(x, w.t())


def torch_bf16_packed(x, w):
    x, w = x.bfloat16(), torch.ops.mkldnn._reorder_linear_weight(w.bfloat16(), x.shape[0])
    return lambda: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


def torch_int8(x, w):
    """Signed by signed with int32 sums; the scaling back is part of the work."""
    x_scale, w_scale = x.abs().amax(1, keepdim=True) / 127, w.abs().amax(1, keepdim=True) / 127
    w = (w / w_scale).round().to(torch.int8).t()

    def run():
        q = (x / x_scale).round().to(torch.int8)
        return torch._int_mm(q, w).float() * x_scale * w_scale.t()

    return run


def numpy_f32(x, w):
    a, b = x.numpy(), w.numpy().T
    return lambda: torch.from_numpy(a @ b)


WAYS = [
    ("oneDNN", "f32", torch_f32, 1e-5),
    ("oneDNN", "bf16", torch_bf16, 1e-2),
    ("oneDNN packed", "bf16", torch_bf16_packed, 1e-2),
    ("oneDNN", "int8", torch_int8, 3e-2),
    ("numpy BLAS", "f32", numpy_f32, 1e-5),
]


def measure(layer, rows, depth, library, dtype, make, bar):
    torch.manual_seed(1)
    x, w = torch.randn(COLUMNS, depth), 0.03 * torch.randn(rows, depth)
    expected = x.double() @ w.double().t()
    line = {"layer": layer, "rows": rows, "depth": depth, "library": library, "dtype": dtype}
    try:
        run = make(x, w)
        error = ((run().double() - expected).norm() / expected.norm()).item()
        if not error < bar:
            raise ArithmeticError(f"the result differs by {error:.2e}")
        seconds = []
        for _ in range(arguments.runs):
            FLUSH.add_(1)
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    except Exception as reason:  # another build of PyTorch may lack any of these
        return {**line, "failed": str(reason).splitlines()[0][:160]}
    seconds.sort()
    median = seconds[len(seconds) // 2]
    flop = 2.0 * rows * depth * COLUMNS
    spread = {"seconds_min": seconds[0], "seconds_max": seconds[-1]}
    return {**line, "error": error, "seconds_median": median, **spread, "gflops": 1e-9 * flop / median}


def main():
    torch.set_num_threads(arguments.threads)
    lines = []
    with torch.inference_mode():
        for layer in LAYERS:
            for way in WAYS:
                line = measure(*layer, *way)
                lines.append(line)
                if not arguments.json:
                    found = f"{line['gflops']:9.1f} GFLOP/s" if "gflops" in line else "failed: " + line["failed"]
                    print(f"{line['layer']:<9}{line['library']:<15}{line['dtype']:<6}{found}", flush=True)
    if arguments.json:
        versions = {"torch": torch.__version__, "numpy": numpy.__version__}
        json.dump({**versions, "threads": arguments.threads, "results": lines}, sys.stdout, indent=1)
        print()


main()
