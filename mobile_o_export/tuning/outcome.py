"""What tuning leaves behind: a recipe to replay, its numbers as JSON, and a chart of size against error."""

from __future__ import annotations

import glob
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_o_export.atomic import staged_file
from mobile_o_export.precision import Precision
from mobile_o_export.progress import Say, silent

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from mobile_o_export.tuning.tune import Tuned

WIDTH, HEIGHT, MARGIN = 460, 320, 56
MOST_DB = 80.0
"""The top of the chart; what is above is drawn there."""

_INK, _FAINT, _GRID, _LINE = (30, 30, 34), (105, 105, 112), (228, 228, 232), (31, 99, 196)


def recipe_toml(found: Sequence[Tuned], target: str, goal: str) -> str:
    """The recipe for ``export --recipe``: a component's commonest precision, rules for other weights."""
    lines = [f"# Measured for {target}: {goal}"]
    for tuned in found:
        everything = _everything(tuned)
        ((default, _),) = counts(tuned).most_common(1)
        lines += [
            "",
            f"# {tuned.size_bytes / 1e6:.1f} MB of weights, {_db(tuned.measured_db)} measured at the output",
            f"[components.{tuned.component}]",
            f'precision = "{default}"',
        ]
        for precision in sorted(set(everything.values()) - {default}, key=str):
            names = (name for name, own in everything.items() if own == precision)
            lines += [
                "",
                f"[[components.{tuned.component}.rules]]",
                "match = [",
                *(f"  {json.dumps(glob.escape(name))}," for name in names),
                "]",
                f'precision = "{precision}"',
            ]
    return "\n".join(lines) + "\n"


def counts(tuned: Tuned) -> Counter[Precision]:
    """How many weights have each precision."""
    return Counter(_everything(tuned).values())


def _everything(tuned: Tuned) -> dict[str, Precision]:
    return {**dict.fromkeys(tuned.weights, tuned.floating), **tuned.precisions}


def outcome_json(found: Sequence[Tuned]) -> dict[str, Any]:
    """Sizes in bytes, levels in dB (null where nothing differs)."""
    return {
        "schema": 1,
        "components": {
            tuned.component: {
                "size_bytes": tuned.size_bytes,
                "predicted_db": _number(tuned.predicted_db),
                "measured_db": _number(tuned.measured_db),
                "weights": {name: str(precision) for name, precision in tuned.precisions.items()},
                "frontier": [[size, _number(level)] for size, level in tuned.frontier],
                "uniform": [
                    {"precision": str(precision), "size_bytes": size, "measured_db": _number(level)}
                    for precision, size, level in tuned.uniform
                ],
            }
            for tuned in found
        },
    }


def outcome_paths(recipe: Path) -> tuple[Path, Path, Path]:
    """The recipe's own path, that of its numbers and that of its chart."""
    return recipe, recipe.with_suffix(".json"), recipe.with_suffix(".png")


def write_outcome(found: Sequence[Tuned], target: str, goal: str, out: Path, say: Say = silent) -> None:
    """The recipe at ``out``, the JSON and the chart beside it; each whole or not at all, the recipe last.

    Args:
        found: of every component.
        target: whom it was measured for, a name.
        goal: what was asked, as a reader of the recipe may ask it again.
        out: ends in ``.toml``.
        say: told what of a killed run's was removed.
    """
    recipe, numbers, picture = outcome_paths(out)
    with staged_file(picture, say) as partial:
        chart(found).save(partial, format="png", optimize=True)
    with staged_file(numbers, say) as partial:
        partial.write_text(json.dumps(outcome_json(found), indent=1) + "\n", encoding="utf-8")
    with staged_file(recipe, say) as partial:
        partial.write_text(recipe_toml(found, target, goal), encoding="utf-8")


def chart(found: Sequence[Tuned]) -> Picture:
    """A panel a component: the frontier, the uniform precisions, and what was chosen."""
    from PIL import Image

    sheet = Image.new("RGB", (len(found) * WIDTH, HEIGHT), "white")
    for index, tuned in enumerate(found):
        sheet.paste(_panel(tuned), (index * WIDTH, 0))
    return sheet


def _panel(tuned: Tuned) -> Picture:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    marked = [(str(precision), size, level) for precision, size, level in tuned.uniform]
    sizes = [size for size, _ in tuned.frontier] + [size for _, size, _ in marked]
    low, high = 0.95 * min(sizes), 1.02 * max(sizes)

    def place(size: float, level: float) -> tuple[float, float]:
        across = (size - low) / (high - low)
        up = min(max(level, 0.0), MOST_DB) / MOST_DB
        return MARGIN + across * (WIDTH - MARGIN - 20), HEIGHT - 40 - up * (HEIGHT - 80)

    for line in range(0, int(MOST_DB) + 1, 20):
        _, y = place(low, line)
        draw.line((MARGIN, y, WIDTH - 20, y), _GRID)
        draw.text((10, y - 7), f"{line} dB", _FAINT, font)
    for part in (0.0, 0.5, 1.0):
        size = low + part * (high - low)
        x, _ = place(size, 0)
        draw.text((x - 16 * part - 12, HEIGHT - 34), f"{size / 1e6:.3g} MB", _FAINT, font)
    draw.line([place(size, level) for size, level in tuned.frontier], _LINE, 2)
    for name, size, level in marked:
        x, y = place(size, level)
        draw.rectangle((x - 3, y - 3, x + 3, y + 3), fill=_FAINT)
        draw.text((x + 6, y - 2), name, _FAINT, font)
    x, y = place(tuned.size_bytes, tuned.measured_db)
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=_INK, width=2)
    draw.text((x + 8, y - 14), f"chosen, {_db(tuned.measured_db)}", _INK, font)
    draw.text(
        (MARGIN, 12),
        f"{tuned.component}: predicted frontier, measured points",
        _INK,
        ImageFont.load_default(13),
    )
    return image


def _db(level: float) -> str:
    return "no difference" if math.isinf(level) else f"{level:.1f} dB"


def _number(level: float) -> float | None:
    return None if math.isinf(level) else round(level, 2)
