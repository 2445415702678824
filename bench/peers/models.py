"""Plain PyTorch models of what gmem runs, from the same files: the transformer's pass and the autoencoder's decoding."""

import json

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file


class Model(torch.nn.Module):
    """A forward pass written over a file's tensors, which are parameters, so that compilers may take them as constant."""

    def __init__(self, weights):
        super().__init__()
        self.names = set(weights)
        for name, tensor in weights.items():
            self.register_parameter(name.replace(".", "__"), torch.nn.Parameter(tensor, requires_grad=False))

    def w(self, name):
        return getattr(self, name.replace(".", "__"))


def sincos(positions, dim):
    """(P) positions -> (P, dim): sines, then cosines, of `dim / 2` frequencies."""
    omega = 1.0 / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions[:, None].double() * omega[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class Network(Model):
    """LightningDiT with SwiGLU, RMSNorm and RoPE, conditioned on a snippet. Activations are (batch, tokens, width)."""

    def __init__(self, weights, heads, side):
        weights = dict(weights)
        self_width = weights["x_embedder.proj.weight"].shape[0]
        rows, columns = (g.flatten() for g in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
        if "pos_embed" not in weights:
            half = self_width // 2
            weights["pos_embed"] = torch.cat([sincos(columns, half), sincos(rows, half)], dim=1)[None]
        super().__init__(weights)
        self.heads, self.side, self.width = heads, side, self_width
        self.channels = weights["x_embedder.proj.weight"].shape[1]
        self.snippet_width = weights["condition_projection.linear.weight"].shape[1]
        self.depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        quarter = self_width // heads // 4
        frequency = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
        angles = torch.cat([rows[:, None] * frequency, columns[:, None] * frequency], dim=1)
        self.register_buffer("cos", angles.cos().float().repeat_interleave(2, dim=1))
        self.register_buffer("sin", angles.sin().float().repeat_interleave(2, dim=1))
        self.register_buffer("times", 1.0 / 10000 ** (torch.arange(128) / 128))

    def linear(self, name, x):
        return F.linear(x, self.w(name + ".weight"), self.w(name + ".bias"))

    def norm(self, name, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.w(name + ".weight")

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

    def forward(self, x, t, c):
        """x (batch, channels, side, side), t (batch), c (batch, snippet width) -> velocity like x."""
        angles = t[:, None] * self.times
        embedding = self.linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1))
        condition = self.linear("t_embedder.mlp.2", F.silu(embedding)) + self.linear("condition_projection.linear", c)
        condition = F.silu(condition)
        h = F.conv2d(x, self.w("x_embedder.proj.weight"), self.w("x_embedder.proj.bias"))
        h = h.flatten(2).transpose(1, 2) + self.w("pos_embed")
        for block in (f"blocks.{i}" for i in range(self.depth)):
            modulation = self.linear(block + ".adaLN_modulation.1", condition)[:, None].chunk(6, dim=-1)
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
            h = h + gate_a * self.attention(block + ".attn", self.norm(block + ".norm1", h) * (1 + scale_a) + shift_a)
            h = h + gate_m * self.mlp(block + ".mlp", self.norm(block + ".norm2", h) * (1 + scale_m) + shift_m)
        shift, scale = self.linear("final_layer.adaLN_modulation.1", condition)[:, None].chunk(2, dim=-1)
        y = self.linear("final_layer.linear", self.norm("final_layer.norm_final", h) * (1 + scale) + shift)
        return y.transpose(1, 2).reshape(x.shape[0], -1, self.side, self.side)


class Decoder(Model):
    """The decoder half of a CompVis autoencoder: z (batch, channels, height, width) -> pictures."""

    def __init__(self, weights):
        super().__init__({k: v for k, v in weights.items() if k.startswith(("decoder.", "post_quant_conv."))})
        self.channels = weights["post_quant_conv.weight"].shape[1]
        levels = {int(name.split(".")[2]) for name in weights if name.startswith("decoder.up.")}
        self.levels = sorted(levels, reverse=True)

    def has(self, name):
        return any(n.startswith(name + ".") for n in self.names)

    def conv(self, name, x):
        weight = self.w(name + ".weight")
        return F.conv2d(x, weight, self.w(name + ".bias"), padding=weight.shape[-1] // 2)

    def norm(self, name, x):
        return F.group_norm(x, 32, self.w(name + ".weight"), self.w(name + ".bias"), 1e-6)

    def residual(self, name, x):
        h = self.conv(name + ".conv1", F.silu(self.norm(name + ".norm1", x)))
        h = self.conv(name + ".conv2", F.silu(self.norm(name + ".norm2", h)))
        return h + (self.conv(name + ".nin_shortcut", x) if self.has(name + ".nin_shortcut") else x)

    def attention(self, name, x):
        h = self.norm(name + ".norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2).transpose(1, 2)[:, None] for part in "qkv")
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.conv(name + ".proj_out", y)

    def forward(self, z):
        h = self.conv("decoder.conv_in", self.conv("post_quant_conv", z))
        h = self.residual("decoder.mid.block_1", h)
        h = self.residual("decoder.mid.block_2", self.attention("decoder.mid.attn_1", h))
        for level in (f"decoder.up.{i}" for i in self.levels):
            for i in range(3):
                h = self.residual(f"{level}.block.{i}", h)
                if self.has(f"{level}.attn.{i}"):
                    h = self.attention(f"{level}.attn.{i}", h)
            if self.has(level + ".upsample"):
                h = self.conv(level + ".upsample.conv", F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", h)))


def load(work, path):
    """The model of "network" or "autoencoder", and inputs for it: names as `gmem eval` and `gmem decode` read them."""
    torch.manual_seed(1)
    weights = load_file(path)
    if work == "autoencoder":
        model = Decoder(weights)
        return model.eval(), {"z": torch.randn(1, model.channels, 16, 16)}
    with safe_open(path, "pt") as file:
        config = json.loads((file.metadata() or {}).get("config", "{}"))
    config = config.get("model", config)
    model = Network(weights, int(config["num_heads"]), int(config.get("input_size", 16)))
    inputs = {
        "x": torch.randn(1, model.channels, model.side, model.side),
        "t": torch.tensor([0.3]),
        "c": F.normalize(torch.randn(1, model.snippet_width)),
    }
    return model.eval(), inputs
