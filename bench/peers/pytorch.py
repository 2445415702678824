"""One pass of a GMem LightningDiT in PyTorch, eager f32, beside the same pass of `gmem`: same file, same inputs, same cores.

The outputs are compared before anything is timed. Times alternate (gmem, PyTorch, gmem, ...) so that a drifting machine
drifts under both.

    python -m venv build/peers && build/peers/bin/pip install -r bench/peers/requirements.txt
    build/gmem synth xl/1 -o build/xl1.safetensors
    build/peers/bin/python bench/peers/pytorch.py build/xl1.safetensors
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def sincos(positions, dim):
    """(P) positions -> (P, dim): sines, then cosines, of `dim / 2` frequencies."""
    omega = 1.0 / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions[:, None].double() * omega[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class Network:
    """The forward pass, from a dictionary of weights. Activations are (batch, tokens, width)."""

    def __init__(self, weights, heads, side):
        self.w, self.heads, self.side = weights, heads, side
        self.width = weights["x_embedder.proj.weight"].shape[0]
        self.depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        rows, columns = (grid.flatten() for grid in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
        if "pos_embed" not in weights:
            half = self.width // 2
            self.w["pos_embed"] = torch.cat([sincos(columns, half), sincos(rows, half)], dim=1)[None]
        quarter = self.width // heads // 4
        frequency = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
        angles = torch.cat([rows[:, None] * frequency, columns[:, None] * frequency], dim=1)
        self.cos = angles.cos().float().repeat_interleave(2, dim=1)
        self.sin = angles.sin().float().repeat_interleave(2, dim=1)

    def linear(self, name, x):
        return F.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def norm(self, name, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.w[name + ".weight"]

    def rotate(self, x):
        """Rotary embedding of adjacent pairs; x (batch, heads, tokens, head_dim)."""
        turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
        return x * self.cos + turned * self.sin

    def attention(self, name, x):
        batch, tokens, width = x.shape
        q, k, v = self.linear(name + ".qkv", x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        return self.linear(name + ".proj", y.transpose(1, 2).reshape(batch, tokens, width))

    def mlp(self, name, x):
        gate, up = self.linear(name + ".w12", x).chunk(2, dim=-1)
        return self.linear(name + ".w3", F.silu(gate) * up)

    def __call__(self, x, t, c):
        """x (batch, channels, side, side), t (batch), c (batch, snippet width) -> velocity like x."""
        frequency = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
        angles = t[:, None] * frequency
        embedding = self.linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1))
        condition = self.linear("t_embedder.mlp.2", F.silu(embedding)) + self.linear("condition_projection.linear", c)
        condition = F.silu(condition)
        h = F.conv2d(x, self.w["x_embedder.proj.weight"], self.w["x_embedder.proj.bias"])
        h = h.flatten(2).transpose(1, 2) + self.w["pos_embed"]
        for block in (f"blocks.{i}" for i in range(self.depth)):
            modulation = self.linear(block + ".adaLN_modulation.1", condition)[:, None].chunk(6, dim=-1)
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
            h = h + gate_a * self.attention(block + ".attn", self.norm(block + ".norm1", h) * (1 + scale_a) + shift_a)
            h = h + gate_m * self.mlp(block + ".mlp", self.norm(block + ".norm2", h) * (1 + scale_m) + shift_m)
        shift, scale = self.linear("final_layer.adaLN_modulation.1", condition)[:, None].chunk(2, dim=-1)
        y = self.linear("final_layer.linear", self.norm("final_layer.norm_final", h) * (1 + scale) + shift)
        return y.transpose(1, 2).reshape(x.shape[0], -1, self.side, self.side)


def gmem_eval(gmem, path, inputs, folder):
    source, result = os.path.join(folder, "in.safetensors"), os.path.join(folder, "out.safetensors")
    save_file(inputs, source)
    subprocess.run([gmem, "eval", "--network", path, "--input", source, "-o", result, "-q"], check=True)
    return load_file(result)["v"]


def gmem_bench(gmem, path, threads):
    command = [gmem, "bench", "network", "--network", path, "--json", "-q", "-t", str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a GMem LightningDiT with SwiGLU, RMSNorm and RoPE, as safetensors, patch 1")
    parser.add_argument("--gmem", default="build/gmem")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    with safe_open(arguments.network, "pt") as file:
        config = json.loads((file.metadata() or {}).get("config", "{}"))
    weights = load_file(arguments.network)
    network = Network(weights, int(config["num_heads"]), int(config.get("input_size", 16)))
    channels, width = weights["x_embedder.proj.weight"].shape[1], weights["condition_projection.linear.weight"].shape[1]
    inputs = {
        "x": torch.randn(1, channels, network.side, network.side),
        "t": torch.tensor([0.3]),
        "c": F.normalize(torch.randn(1, width)),
    }

    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        expected = network(**inputs)
        error = (gmem_eval(arguments.gmem, arguments.network, inputs, folder) - expected).norm() / expected.norm()
        print(f"relative L2 difference of the outputs: {error:.2e}")
        if not error < 1e-5:
            sys.exit("the outputs differ: nothing is timed")
        ours, theirs = [], []
        for _ in range(arguments.rounds):
            report = gmem_bench(arguments.gmem, arguments.network, arguments.threads)
            ours.append(report["seconds_median"])
            network(**inputs)
            start = time.perf_counter()
            network(**inputs)
            theirs.append(time.perf_counter() - start)
    mine, reference = statistics.median(ours), statistics.median(theirs)
    print(f"cpu: {report['cpu']}, {arguments.threads} threads, {report['isa']}")
    print(f"gmem            {mine:.3f} s a pass, {report['gflops']:.0f} GFLOP/s")
    print(f"PyTorch {torch.__version__:8s}{reference:.3f} s a pass (eager, f32); best {min(theirs):.3f}")
    print(f"gmem / PyTorch  {mine / reference:.3f}")


if __name__ == "__main__":
    main()
