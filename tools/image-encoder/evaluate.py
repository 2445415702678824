"""Measures an image encoder on the emoji that train.py holds out; records features for tests/test_default_encoder.c.

    venv/bin/python evaluate.py --emoji ../shared/emoji --font NotoColorEmoji.ttf --encoder image_encoder.safetensors
"""
import argparse
import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from train import SIDE, Encoder, Pictures, disturbed, grounds, measure, moved, on_white

REPEATS = 8  # of each picture, where chance has a part
RECORDED = 6


def jpeg(pictures, quality):
    def through(x):
        file = io.BytesIO()
        Image.fromarray((x.permute(1, 2, 0) * 255).round().byte().numpy()).save(file, "JPEG", quality=quality)
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    return torch.stack([through(x) for x in pictures])


def on_ground(parts):
    return parts[:, :3] + (1 - parts[:, 3:]) * grounds(len(parts))


def shifted(parts, by):
    """By `by` pixels, in a direction of chance."""
    angle = torch.rand(len(parts)) * 2 * torch.pi
    theta = torch.eye(2, 3).repeat(len(parts), 1, 1)
    theta[:, 0, 2], theta[:, 1, 2] = torch.cos(angle) * 2 * by / SIDE, torch.sin(angle) * 2 * by / SIDE
    return on_white(F.grid_sample(parts, F.affine_grid(theta, parts.shape, False), align_corners=False))


def scaled(parts, by):
    theta = torch.eye(2, 3).repeat(len(parts), 1, 1) / by
    return on_white(F.grid_sample(parts, F.affine_grid(theta, parts.shape, False), align_corners=False))


def softened(x):
    return F.interpolate(F.interpolate(x, 24, mode="bilinear", antialias=True), SIDE, mode="bilinear")


CASES = {
    "shifted by 2 pixels": lambda p: shifted(p, 2),
    "shifted by 4 pixels": lambda p: shifted(p, 4),
    "scaled by 0.9": lambda p: scaled(p, 0.9),
    "scaled by 1.1": lambda p: scaled(p, 1.1),
    "shrunk to 24 pixels and enlarged": lambda p: softened(on_white(p)),
    "noise of deviation 0.1": lambda p: (on_white(p) + 0.1 * torch.randn(len(p), 3, SIDE, SIDE)).clamp(0, 1),
    "JPEG of quality 20": lambda p: jpeg(on_white(p).clamp(0, 1), 20),
    "on a background": lambda p: on_ground(p).clamp(0, 1),
    "all of training's, by chance": disturbed,
}


def nearest_colour(query, pictures):
    """The baseline: the row of the trained emoji whose 4x4 cells have the nearest mean colours."""
    cells = lambda x: F.adaptive_avg_pool2d(x, 4).flatten(1)
    known = pictures.clean[pictures.trained]
    return pictures.bank[pictures.trained][torch.cdist(cells(query), cells(known)).argmin(1)]


def show(name, m):
    shares = f"{100 * m['top1']:.0f} % | {100 * m['top5']:.0f} %"
    print(f"| {name} | {m['mean']:.3f} | {m['median']:.3f} | {m['min']:.2f} | {shares} |")


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", required=True)
    parser.add_argument("--font", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--record", help="safetensors for the test")
    args = parser.parse_args()
    torch.manual_seed(2)
    pictures = Pictures(args.emoji, args.font)
    net = Encoder()
    net.load_state_dict({name: value.float() for name, value in load_file(args.encoder).items()})

    print("| held-out emoji | mean cosine | median | least | top-1 | top-5 |\n|---|---|---|---|---|---|")
    clean, held = pictures.clean[pictures.held], pictures.held
    show("clean", measure(net(clean), held, pictures.bank))
    truth, parts = held.repeat(REPEATS), pictures.held_parts.repeat(REPEATS, 1, 1, 1)
    for name, case in CASES.items():
        x = case(parts)
        show(name, measure(net(x), truth, pictures.bank))
        show("&ensp; the linear map instead", measure(pictures.rows(x), truth, pictures.bank))
    cosine = F.cosine_similarity(nearest_colour(clean, pictures), pictures.bank[held])
    print(f"\nnearest trained emoji by mean colours: {cosine.mean():.3f}")
    seen = measure(net(pictures.clean[pictures.trained]), pictures.trained, pictures.bank)
    print(f"trained emoji, clean: {seen['mean']:.3f}; sequences: "
          f"{F.cosine_similarity(net(on_white(pictures.extra)), pictures.rows(on_white(pictures.extra))).mean():.3f}")

    if args.record:
        i = held[:: len(held) // RECORDED][:RECORDED]
        x = (pictures.clean[i] * 255).round().byte()
        save_file(dict(pixels=x.permute(0, 2, 3, 1).contiguous(), cls=net(x / 255), rows=i.contiguous()), args.record)


if __name__ == "__main__":
    main()
