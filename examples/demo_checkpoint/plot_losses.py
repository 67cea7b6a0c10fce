"""Draws the loss curves of a training run: ``python plot_losses.py RUN OUT.png``."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

STAGES = ("autoencoder", "decoding", "seeing", "answering", "drawing")
WIDTH, HEIGHT, MARGIN = 380, 260, 48
INKS = ((31, 99, 196), (196, 78, 31), (34, 130, 72))
GREY = (120, 120, 128)


def main() -> None:
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    sheet = Image.new("RGB", (len(STAGES) * WIDTH, HEIGHT), "white")
    for index, stage in enumerate(STAGES):
        lines = (run / f"{stage}.losses.jsonl").read_text().splitlines()
        sheet.paste(panel(stage, [json.loads(line) for line in lines]), (index * WIDTH, 0))
    sheet.save(out, optimize=True)


def panel(title: str, points: list[dict[str, float]]) -> Image.Image:
    """One stage: a line for each term of its loss, logarithmic."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    terms = [name for name in points[0] if name not in ("step", "seconds")]
    values = [point[term] for point in points for term in terms if point[term] > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    last = points[-1]["step"]

    def place(step: float, value: float) -> tuple[float, float]:
        across = MARGIN + (WIDTH - MARGIN - 16) * step / last
        up = (math.log10(max(value, 10**low)) - low) / max(1, high - low)
        return across, HEIGHT - 36 - (HEIGHT - 72) * up

    for power in range(low, high + 1):
        _, y = place(0, 10**power)
        draw.line((MARGIN, y, WIDTH - 16, y), (228, 228, 232))
        draw.text((6, y - 7), f"{10.0**power:g}", GREY, font)
    draw.text(
        (MARGIN, 8),
        f"{title}: {points[-1]['seconds'] / 60:.0f} min",
        (30, 30, 34),
        ImageFont.load_default(13),
    )
    draw.text((MARGIN, HEIGHT - 26), "step 0", GREY, font)
    draw.text((WIDTH - 60, HEIGHT - 26), f"{last:.0f}", GREY, font)
    for number, (term, ink) in enumerate(zip(terms, INKS, strict=False)):
        draw.line([place(point["step"], point[term]) for point in points if point[term] > 0], ink, 2)
        draw.text((WIDTH - 90, 28 + 14 * number), term, ink, font)
    return image


if __name__ == "__main__":
    main()
