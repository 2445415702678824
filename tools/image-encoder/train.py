"""Trains the default model's image encoder: a small ViT in DINOv2's layout whose class token is the bank's row.

    apt-get download fonts-noto-color-emoji && dpkg -x fonts-noto-color-emoji_*.deb font
    python -m venv venv && venv/bin/pip install torch safetensors pillow fonttools
    venv/bin/python train.py --emoji ../shared/emoji --font font/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

A bank row is projection (192 x 12288) times (picture - mean), so the exact target of every 64x64 picture is known, not
only of those in the bank. The network starts as that linear map, as near as its attention can come to it, and learns
from there to give the row of the clean picture for one that is shifted, scaled, blurred, noisy or on a background.
Every tenth emoji is held out, with every sequence that contains it.
"""
import argparse
import copy
import math
import time
import unicodedata

import numpy as np
import torch
import torch.nn.functional as F
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file
from torch import nn

SIDE, PATCH, WIDTH, DEPTH, HEADS = 64, 16, 192, 6, 6
GRID, HEAD = SIDE // PATCH, WIDTH // HEADS
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's
HOLD_OUT = 10  # emoji i is held out where i % 10 == 5


# Pictures ------------------------------------------------------------------------------------------------------------

def render(font, text, ground):
    """As the bank's pictures were made: bitmaps of 136x128, centred on 136x136, Lanczos."""
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (136, 136), (ground,) * 3)
    at = ((136 - right + left) // 2 - left, (136 - bottom + top) // 2 - top)
    ImageDraw.Draw(image).text(at, text, font=font, embedded_color=True)
    return torch.from_numpy(np.array(image.resize((SIDE, SIDE), Image.LANCZOS))).permute(2, 0, 1)


def layers(font, texts):
    """(n, 4, 64, 64): colour times alpha, and alpha, both in [0, 1], from renderings on white and on black."""
    white = torch.stack([render(font, t, 255) for t in texts]) / 255
    black = torch.stack([render(font, t, 0) for t in texts]) / 255
    return torch.cat([black, 1 - (white - black).mean(1, keepdim=True)], 1), white


def sequences(path):
    """Texts of several characters that the font draws as one picture: flags, skin tones, families."""
    table = TTFont(path)
    code = {glyph: point for point, glyph in table.getBestCmap().items()}
    found = []
    for lookup in table["GSUB"].table.LookupList.Lookup:
        for sub in lookup.SubTable if lookup.LookupType == 4 else []:
            for first, ligatures in sub.ligatures.items():
                found += [[first] + ligature.Component for ligature in ligatures]
    return sorted("".join(chr(code[g]) for g in s) for s in found if all(g in code for g in s))


class Pictures:
    def __init__(self, folder, font_path):
        pca = load_file(f"{folder}/emoji_pca.safetensors")
        self.projection, self.mean = pca["projection"].float(), pca["mean"]
        self.bank = torch.load(f"{folder}/emoji_bank.pth").float()
        names = open(f"{folder}/emoji_names.txt").read().splitlines()
        font = ImageFont.truetype(font_path, 109)
        characters = [unicodedata.lookup(name.upper()) for name in names]
        parts, self.clean = layers(font, characters)
        worst = F.cosine_similarity(self.rows(self.clean), self.bank).min()
        assert worst > 0.9999, f"these are not the bank's pictures: cosine {worst}"

        held = torch.arange(len(names)) % HOLD_OUT == HOLD_OUT // 2
        self.held, self.trained = held.nonzero()[:, 0], (~held).nonzero()[:, 0]
        self.held_parts = parts[held]
        secret = {characters[i] for i in self.held}
        texts = [t for t in sequences(font_path) if not secret & set(t)]
        others, drawn = layers(font, texts)
        unique = {d.numpy().tobytes(): i for i, d in enumerate((drawn * 255).byte())}
        for d in (self.clean * 255).byte():
            unique.pop(d.numpy().tobytes(), None)
        self.extra = others[sorted(unique.values())]
        self.parts = torch.cat([parts[~held], self.extra])

    def rows(self, pictures):
        """(n, 3, 64, 64) in [0, 1] -> (n, 192)"""
        return (pictures.permute(0, 2, 3, 1).flatten(1) * 2 - 1 - self.mean) @ self.projection.T


# Training pictures ---------------------------------------------------------------------------------------------------

def on_white(parts):
    return parts[:, :3] + 1 - parts[:, 3:]


def sometimes(p, change, x):
    """`change` done to a share p of the pictures."""
    i = (torch.rand(len(x)) < p).nonzero()[:, 0]
    return x.index_copy(0, i, change(x[i]).to(x.dtype)) if len(i) else x


def moved(parts, shift, zoom, turn):
    """Shifted by up to `shift` of the side, scaled by up to 1 +- zoom, turned by up to `turn` radians."""
    n = len(parts)
    a, s = (torch.rand(n) * 2 - 1) * turn, torch.exp((torch.rand(n) * 2 - 1) * math.log1p(zoom))
    theta = torch.stack([torch.cos(a) * s, -torch.sin(a) * s, (torch.rand(n) * 2 - 1) * 2 * shift,
                         torch.sin(a) * s, torch.cos(a) * s, (torch.rand(n) * 2 - 1) * 2 * shift], 1).view(n, 2, 3)
    return F.grid_sample(parts, F.affine_grid(theta, parts.shape, False), align_corners=False)


def recoloured(parts):
    """Colours turned about the grey axis, and mixed a little."""
    n = len(parts)
    a = torch.rand(n, 1, 1) * 2 * math.pi
    k = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = torch.eye(3) + torch.sin(a) * k + (1 - torch.cos(a)) * (k @ k)
    colour = torch.einsum("nij,njhw->nihw", turn, parts[:, :3])
    return torch.cat([colour.clamp(min=0).minimum(parts[:, 3:]), parts[:, 3:]], 1)


def overlaid(one, two):
    two = moved(two, 0.3, 1.0, math.pi)
    return two + (1 - two[:, 3:]) * one


def joined(one, two):
    n, line = len(one), torch.linspace(-1, 1, SIDE)
    angle = torch.rand(n, 1, 1, 1) * 2 * math.pi
    side = torch.cos(angle) * line + torch.sin(angle) * line[:, None] > torch.rand(n, 1, 1, 1) - 0.5
    return torch.where(side, one, two)


def blended(one, two):
    return torch.lerp(one, two, torch.rand(len(one), 1, 1, 1))


def originals(pictures, n):
    """Emoji, and what can be made of them: turned, mirrored, recoloured, laid over one another, joined, blended.

    Mostly the latter: from the emoji alone the network learns them by heart instead of the map."""
    def draw(n):
        many = torch.where(torch.rand(n) < 0.5, len(pictures.trained), len(pictures.parts))
        x = pictures.parts[(torch.rand(n) * many).long()]
        for change in (lambda x: x.flip(2)), (lambda x: x.flip(3)), (lambda x: x.mT):
            x = sometimes(0.3, change, x)
        return sometimes(0.4, recoloured, x)
    one = draw(n)
    for combine, share in (overlaid, 0.2), (joined, 0.2), (blended, 0.2):
        one = sometimes(share, lambda x: combine(x, draw(len(x))), one)
    return one


def grounds(n):
    """Backgrounds: plain, a gradient, or soft shapes like those of a photo out of focus."""
    plain = torch.rand(n, 3, 1, 1).expand(-1, -1, SIDE, SIDE)
    ramp = F.interpolate(torch.rand(n, 3, 2, 2), SIDE, mode="bilinear", align_corners=True)
    soft = F.interpolate(torch.rand(n, 3, 6, 6), SIDE, mode="bicubic").clamp(0, 1)
    kind = torch.rand(n, 1, 1, 1)
    mixed = torch.lerp(plain, soft, torch.rand(n, 1, 1, 1))
    return torch.where(kind < 0.5, plain, torch.where(kind < 0.75, ramp, mixed))


DCT = torch.cos(torch.arange(8.0)[:, None] * (torch.arange(8.0) + 0.5) * math.pi / 8) / 2
DCT[0] /= math.sqrt(2)


def quantised(x):
    """The cosine transform of 8x8 blocks, rounded more coarsely at high frequencies, as JPEG does."""
    n = len(x)
    step = (torch.rand(n, 1, 1, 1, 1, 1) * 0.06 + 0.01) * (1 + torch.arange(8.0)[:, None] + torch.arange(8.0))
    blocks = x.view(n, 3, 8, 8, 8, 8).permute(0, 1, 2, 4, 3, 5)
    terms = torch.round(DCT @ blocks @ DCT.T / step) * step
    return (DCT.T @ terms @ DCT).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)


def coarse(x):
    small = F.interpolate(x, int(torch.randint(24, 56, ())), mode="bilinear", antialias=True)
    return F.interpolate(small, SIDE, mode="bilinear")


def relit(x):
    n = len(x)
    return x * (0.75 + 0.4 * torch.rand(n, 1, 1, 1)) + 0.15 * torch.rand(n, 1, 1, 1) - 0.05


def disturbed(parts):
    """Pictures whose row should still be the original's."""
    parts = sometimes(0.5, lambda x: moved(x, 0.05, 0.12, 0.1), parts)
    x = on_white(parts)
    i = (torch.rand(len(x)) < 0.5).nonzero()[:, 0]
    x[i] = parts[i, :3] + (1 - parts[i, 3:]) * grounds(len(i))
    x = sometimes(0.3, coarse, x)
    x = sometimes(0.3, relit, x)
    x = sometimes(0.3, lambda x: x + torch.randn_like(x) * 0.12 * torch.rand(len(x), 1, 1, 1), x)
    x = sometimes(0.3, quantised, x)
    return x.clamp(0, 1)


def batch(pictures, n):
    parts = originals(pictures, n)
    clean = on_white(parts)
    return torch.cat([clean[: n // 3], disturbed(parts[n // 3:])]), pictures.rows(clean)


# The network, in DINOv2's names --------------------------------------------------------------------------------------

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        return self.proj(((q @ k.mT / math.sqrt(HEAD)).softmax(-1) @ v).transpose(1, 2).reshape(n, t, WIDTH))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return x * self.gamma


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(WIDTH, 1e-6), Attention(), Scale()
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(WIDTH, 1e-6), Mlp(), Scale()

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID * GRID, WIDTH))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, 1e-6)

    def forward(self, pictures):
        """(n, 3, 64, 64) in [0, 1] -> (n, 192)"""
        x = (pictures - MEAN[:, None, None]) / STD[:, None, None]
        x = self.patch_embed.proj(x).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])


def patches(x):
    """(n, 3, 64, 64) -> (n, 16, 768), each in the order of the convolution's weights"""
    return x.reshape(-1, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(len(x), GRID * GRID, -1)


@torch.no_grad()
def begin_linear(net, pictures, free=2, content=6.0, mark=12.0):
    """Starts the network as the bank's linear map, as near as attention comes to it.

    A patch token is the patch's 175 principal components (of norm `content`) and a one-hot mark of its position; the
    class token has a mark of its own. After `free` blocks, each head of the class token looks at one position and adds
    the 32 strongest directions that its patch contributes to the row; the heads left over add the next 32.
    """
    own = WIDTH - 1
    marks = parts = own - GRID * GRID  # content comes first, then the marks of positions, then the class token's
    x = on_white(pictures.parts) * 2 - 1
    x = patches(x)
    middle = patches(pictures.mean.view(1, SIDE, SIDE, 3).permute(0, 3, 1, 2))[0]
    maps = patches(pictures.projection.view(WIDTH, SIDE, SIDE, 3).permute(0, 3, 1, 2)).transpose(0, 1)
    x = x - middle
    basis = torch.linalg.eigh((x.flatten(0, 1).T @ x.flatten(0, 1)).double())[1][:, -parts:].T.float()
    scale = content / (x @ basis.T).norm(dim=2).mean()

    deviation = STD.repeat_interleave(PATCH * PATCH)
    shade = MEAN.repeat_interleave(PATCH * PATCH)
    net.patch_embed.proj.weight.zero_().view(WIDTH, -1)[:parts] = scale * basis * 2 * deviation
    net.patch_embed.proj.bias.zero_()[:parts] = scale * basis @ (2 * shade - 1)
    net.pos_embed[0, 1:, :parts] = -scale * middle @ basis.T
    net.pos_embed[0, 1:, marks:own] = mark * torch.eye(GRID * GRID)
    net.cls_token[0, 0, own] = mark

    size = pictures.bank.norm(dim=1).mean()
    deviation = math.sqrt((content ** 2 + mark ** 2) / WIDTH)  # of a token, for its norm
    directions, energy = [], []
    for p in range(GRID * GRID):
        part = x[:, p] @ maps[p].T
        strength, u = torch.linalg.eigh((part.T @ part).double())
        directions.append(u.flip(1).float())
        energy.append(strength.flip(0)[HEAD: 2 * HEAD].sum())
    jobs = [(p, 0) for p in range(GRID * GRID)]
    jobs += [(p, 1) for p in torch.stack(energy).argsort(descending=True).tolist()]
    sharp = math.sqrt(9 * math.sqrt(HEAD)) * deviation / mark  # nine between the position's logit and the others'
    for b, block in enumerate(net.blocks):
        nn.init.normal_(block.attn.qkv.weight, std=0.02)
        nn.init.normal_(block.mlp.fc1.weight, std=0.05)
        for p in (block.attn.qkv.bias, block.attn.proj.weight, block.attn.proj.bias, block.mlp.fc1.bias,
                  block.mlp.fc2.weight, block.mlp.fc2.bias):
            p.zero_()
        if b < free:
            continue
        q, k, v = block.attn.qkv.weight.view(3, HEADS, HEAD, WIDTH)
        for h in range(HEADS):
            p, part = jobs[(b - free) * HEADS + h]
            u = directions[p][:, part * HEAD: (part + 1) * HEAD]
            q[h, 0, own], k[h, 0, marks + p] = sharp, sharp
            v[h].zero_()[:, :parts] = u.T @ maps[p] @ basis.T / scale * deviation / size * content
            block.attn.proj.weight[:own, h * HEAD: (h + 1) * HEAD] = u[:own]
    net.norm.weight.fill_(size / content * deviation)
    net.norm.bias.zero_()
    net.norm.weight[own] = 0.01


# Measures ------------------------------------------------------------------------------------------------------------

def similarity(features, rows):
    return F.cosine_similarity(features, rows)


@torch.no_grad()
def measure(features, truth, bank):
    """Cosines with the true rows, and how often the true row is the first and among the first five of the bank."""
    cosine = similarity(features, bank[truth])
    order = (F.normalize(features) @ F.normalize(bank).T).argsort(1, descending=True)
    found = order == truth[:, None]
    return dict(mean=cosine.mean().item(), median=cosine.median().item(), min=cosine.min().item(),
                top1=found[:, 0].float().mean().item(), top5=found[:, :5].any(1).float().mean().item())


def line(name, m):
    return f"{name:20}" + "".join(f" {key} {value:.4f}" for key, value in m.items())


@torch.no_grad()
def report(net, pictures, repeats=1):
    state = torch.get_rng_state()
    torch.manual_seed(1)
    clean = net(pictures.clean[pictures.held])
    text = [line("held out, clean", measure(clean, pictures.held, pictures.bank))]
    truth = pictures.held.repeat(repeats)
    rough = disturbed(pictures.held_parts.repeat(repeats, 1, 1, 1))
    text.append(line("held out, disturbed", measure(net(rough), truth, pictures.bank)))
    torch.set_rng_state(state)
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", required=True, help="folder of emoji_{pca.safetensors,bank.pth,names.txt}")
    parser.add_argument("--font", required=True, help="NotoColorEmoji.ttf")
    parser.add_argument("--out", default="image_encoder.safetensors")
    parser.add_argument("--start", help="an encoder to go on from")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    pictures = Pictures(args.emoji, args.font)
    print(f"{len(pictures.trained)} emoji, {len(pictures.extra)} sequences; {len(pictures.held)} held out", flush=True)

    net = Encoder()
    begin_linear(net, pictures)
    if args.start:
        net.load_state_dict({name: value.float() for name, value in load_file(args.start).items()})
    print(sum(p.numel() for p in net.parameters()), "parameters\n" + report(net, pictures), flush=True)
    mean = copy.deepcopy(net)
    matrices = [p for p in net.parameters() if p.dim() > 1]
    vectors = [p for p in net.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW([dict(params=matrices, weight_decay=0.02), dict(params=vectors, weight_decay=0)],
                                  lr=args.rate, betas=(0.9, 0.98))
    size = pictures.bank.norm(dim=1).mean()
    begin, step, shown = time.time(), 0, time.time()
    while (done := (time.time() - begin) / 60 / args.minutes) < 1:
        for group in optimiser.param_groups:
            group["lr"] = args.rate * min((step + 1) / 200, 1) * max(math.cos(done * math.pi / 2), 0.01)
        x, rows = batch(pictures, args.batch)
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x).float()
        cosine = similarity(y, rows)
        loss = (1 - cosine).mean() + 0.1 * (y / size - F.normalize(rows)).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            for a, b in zip(mean.parameters(), net.parameters()):
                a.lerp_(b, max(1 / step, 0.002))
        if time.time() - shown > 60:
            shown = time.time()
            third = args.batch // 3
            print(f"{step} steps, {done:.0%}: clean {cosine[:third].mean():.4f} disturbed {cosine[third:].mean():.4f}\n"
                  + report(mean, pictures), flush=True)
            save(mean, args.out)
    save(mean, args.out)
    print(report(mean, pictures, 4))


def save(net, path):
    tensors = {name: value.detach().half().contiguous() for name, value in net.state_dict().items()}
    save_file(tensors, path, metadata=dict(
        image_size=str(SIDE), num_heads=str(HEADS), name="gmem emoji ViT-192/16",
        description="Image encoder of gmem's default model in DINOv2's layout; trained by tools/image-encoder/train.py",
        license="trained on pictures of Noto Color Emoji, SIL Open Font License 1.1"))


if __name__ == "__main__":
    main()
