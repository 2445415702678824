#!/usr/bin/env python3
"""Records what Pillow makes of procedural pictures: tests/golden/resample.safetensors, which tests/test_resample.c
compares gmem_resize and gmem_center_crop with. Usage: tools/record-resample.py [FILE]
Needs Pillow before 13, which sometimes begins with the columns: there a clamped value in between can differ."""
import json
import struct
import sys

import PIL
from PIL import Image

RESIZES = [  # height, width -> height, width; with both filters
    (1, 1, 1, 1), (1, 1, 5, 7), (1, 1, 64, 1), (5, 1, 1, 5), (1, 9, 4, 1), (2, 2, 3, 3), (3, 3, 40, 41),
    (7, 5, 3, 2), (37, 53, 18, 26), (37, 53, 37, 53), (37, 53, 37, 20), (37, 53, 11, 53), (13, 17, 29, 40),
    (64, 48, 1, 1), (100, 100, 99, 101), (1000, 3, 2, 2), (3, 1000, 2, 3), (300, 2, 3, 60), (401, 257, 23, 31),
    (16, 300, 16, 261), (2, 5000, 1, 17), (32, 32, 16, 16), (33, 35, 16, 17),
]
CROPS = [  # height, width, size
    (1, 1, 1), (1, 1, 16), (1, 40, 8), (40, 1, 8), (9, 14, 1), (32, 32, 32), (33, 32, 32), (31, 40, 32), (97, 211, 32),
    (640, 480, 48), (511, 1023, 32), (64, 64, 32), (63, 64, 32), (128, 65, 32), (777, 129, 33), (100, 40, 56),
    (2, 3, 3), (2, 5, 3), (2, 9, 3), (7, 2, 3),  # lengths half-way between two: to the even one
    (12, 3000, 5),
]


def procedural(height, width):
    """Smooth in every other tile of 8, noise in the rest, flat at the extremes here and there."""
    data = bytearray()
    for y in range(height):
        for x in range(width):
            for c in range(3):
                tile = (x // 8 + 2 * (y // 8)) % 4
                noise = (((y * width + x) * 3 + c) * 2654435761 & 0xFFFFFFFF) >> 24
                smooth = (5 * x + 3 * y + 40 * c) & 255
                data.append((smooth, noise, 255 if noise & 1 else 0, noise)[tile])
    return Image.frombytes("RGB", (width, height), bytes(data))


def center_crop(picture, size):
    """As datasets/construct_memory_bank.py of LINs-lab/GMem describes its steps."""
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), resample=Image.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), resample=Image.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def main():
    if int(PIL.__version__.split(".")[0]) >= 13:
        sys.exit("this is Pillow " + PIL.__version__ + ": the bank was made with one before 13")
    made = {}
    for height, width, to_height, to_width in RESIZES:
        for name, how in ("box", Image.BOX), ("bicubic", Image.BICUBIC):
            result = procedural(height, width).resize((to_width, to_height), resample=how)
            made[f"{name} {height} {width} {to_height} {to_width}"] = result
    for height, width, size in CROPS:
        made[f"crop {height} {width} {size} {size}"] = center_crop(procedural(height, width), size)

    header, data = {"__metadata__": {"pillow": PIL.__version__}}, b""
    for name, picture in made.items():
        begin, data = len(data), data + picture.tobytes()
        header[name] = {"dtype": "U8", "shape": [picture.height, picture.width, 3], "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with open(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/resample.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + data)


main()
