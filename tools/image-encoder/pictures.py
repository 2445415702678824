"""Draws examples/like/: pictures that are in no bank, for `gmem sample --like`.

    venv/bin/python pictures.py --font NotoColorEmoji.ttf --out ../../examples/like
"""
import argparse

from PIL import Image, ImageDraw, ImageFont


def emoji(font, text, size, ground):
    """An emoji in the middle of a plain picture."""
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (size, size), ground)
    drawn = Image.new("RGB", (right - left, bottom - top), ground)
    ImageDraw.Draw(drawn).text((-left, -top), text, font=font, embedded_color=True)
    scale = size * 0.94 / max(drawn.size)
    drawn = drawn.resize((round(drawn.width * scale), round(drawn.height * scale)), Image.LANCZOS)
    image.paste(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
    return image


def drawing(width, height, shapes):
    """Shapes (kind, box in thousandths, colour), drawn four times as large."""
    image = Image.new("RGB", (4 * width, 4 * height), "white")
    pen = ImageDraw.Draw(image)
    for kind, box, colour in shapes:
        points = [(4 * x * width / 1000, 4 * y * height / 1000) for x, y in zip(box[::2], box[1::2])]
        getattr(pen, kind)(points, fill=colour)
    return image.resize((width, height), Image.LANCZOS)


TREE = [("rectangle", (440, 620, 560, 960), "#7a4a21"), ("ellipse", (160, 60, 840, 640), "#2f8f3a"),
        ("ellipse", (100, 280, 520, 720), "#37a045"), ("ellipse", (480, 280, 900, 720), "#2a8034")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    font = ImageFont.truetype(args.font, 109)
    pictures = {
        "rainbow-flag.png": emoji(font, "\U0001F3F3\uFE0F\u200D\U0001F308", 200, "white"),
        "polar-bear.png": emoji(font, "\U0001F43B\u200D\u2744\uFE0F", 160, "white"),
        "pizza-on-blue.png": emoji(font, "\U0001F355", 128, "#9fc5e8"),
        "drawn-tree.png": drawing(150, 180, TREE),
        "drawn-sun.png": drawing(180, 150, [("ellipse", (210, 130, 790, 870), "#ffb000")]),
    }
    for name, picture in pictures.items():
        picture.save(f"{args.out}/{name}", optimize=True)


if __name__ == "__main__":
    main()
