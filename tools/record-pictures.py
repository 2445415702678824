#!/usr/bin/env python3
"""Records small picture files as Pillow writes them, and the pixels that it reads back: tests/golden/picture_* and
pictures.safetensors, for tests/test_pictures.c. Needs Pillow. Usage: tools/record-pictures.py [FOLDER]"""
import io
import json
import struct
import sys

import PIL
from PIL import Image

W, H = 29, 19


def colours(mode):
    """Smooth, so that lossy formats stay close."""
    picture = Image.new("RGB", (W, H))
    picture.putdata([(8 * x, 12 * y, 255 - 4 * (x + y)) for y in range(H) for x in range(W)])
    return picture.convert(mode)


def transparent():
    """Alpha falls from left to right."""
    picture = colours("RGB").convert("RGBA")
    picture.putalpha(Image.frombytes("L", (W, H), bytes(255 - 9 * x for y in range(H) for x in range(W))))
    return picture


FILES = {
    "baseline.jpg": (colours("RGB"), dict(quality=92)),
    "full.jpg": (colours("RGB"), dict(quality=92, subsampling=0, optimize=True)),
    "progressive.jpg": (colours("RGB"), dict(quality=92, progressive=True)),
    "restarts.jpg": (colours("RGB"), dict(quality=92, restart_marker_blocks=1)),
    "gray.jpg": (colours("L"), dict(quality=92)),
    "cmyk.jpg": (colours("CMYK"), dict(quality=92)),
    "palette.png": (colours("RGB").quantize(16), dict(bits=4, optimize=True)),
    "alpha.png": (transparent(), dict(optimize=True)),
    "plain.gif": (colours("RGB").quantize(32), dict()),
    "clear.gif": (colours("RGB").quantize(8), dict(transparency=3)),
    "packed.tga": (colours("RGB"), dict(compression="tga_rle")),
}


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else "tests/golden"
    header, data = {"__metadata__": {"pillow": PIL.__version__}}, b""
    for name, (picture, how) in FILES.items():
        memory = io.BytesIO()
        picture.save(memory, {"jpg": "JPEG"}.get(name[-3:], name[-3:]), **how)
        with open(f"{folder}/picture_{name}", "wb") as out:
            out.write(memory.getvalue())
        read = Image.open(memory)
        if read.mode == "RGBA" or "transparency" in read.info:
            read = Image.alpha_composite(Image.new("RGBA", read.size, "white"), read.convert("RGBA"))
        pixels = read.convert("RGB").tobytes()
        header[name] = {"dtype": "U8", "shape": [H, W, 3], "data_offsets": [len(data), len(data) + len(pixels)]}
        data += pixels
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with open(f"{folder}/pictures.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + data)


main()
