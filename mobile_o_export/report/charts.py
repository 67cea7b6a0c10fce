"""Charts as inline SVG, readable without colour: bars with their gate, intervals, lines over steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mobile_o_export.parity.judge import Status
from mobile_o_export.report.markup import Html, joined, tag
from mobile_o_export.report.quantities import decibels, limit

LEVEL_TOP_DB = 120.0
"""The right end of a level's bar: what two fp32 computations of one graph reach."""

BAR, WIDE_BAR, BAR_HEIGHT = 180, 360, 16
MOST_TICKS = 8
SERIES = 5
"""How many colours, dashes and markers there are in ``style.css`` and here."""


def level_bar(value: float | None, gate: float | None, status: Status) -> Html:
    """A level on 0..120 dB with its gate as a tick; hollow where it did not pass."""
    parts = [_rect(0, 4, BAR, BAR_HEIGHT - 8, "track")]
    if value is not None and math.isfinite(value):
        solid = "bar" if status is Status.PASSED else "bar hollow"
        parts.append(_rect(0, 4, BAR * _clamped(value / LEVEL_TOP_DB), BAR_HEIGHT - 8, solid))
    if gate is not None:
        parts.append(_rect(BAR * _clamped(gate / LEVEL_TOP_DB) - 1, 0, 2, BAR_HEIGHT, "tick"))
    label = decibels(value) + ("" if gate is None else f", gate {limit(gate)}")
    return _svg(BAR, BAR_HEIGHT, label, "inline", *parts)


def size_bar(size: float, whole: float | None, scale: float) -> Html:
    """A size against what it was in fp32, an outline; ``scale`` is what the full width stands for."""
    # Where nothing has a size, there is nothing to compare with.
    scale = scale or 1.0
    parts = []
    if whole is not None:
        parts.append(_rect(0.5, 2.5, max(1.0, WIDE_BAR * whole / scale - 1), BAR_HEIGHT - 5, "outline"))
    parts.append(_rect(0, 4, max(1.0, WIDE_BAR * size / scale), BAR_HEIGHT - 8, "bar plain"))
    return tag(
        "svg", *parts, viewBox=f"0 0 {WIDE_BAR} {BAR_HEIGHT}", class_="inline wide", aria_hidden="true"
    )


def interval_bar(low: float, value: float, high: float, label: str) -> Html:
    """A share of 1 with its confidence interval, on 0..1."""
    middle = BAR_HEIGHT / 2
    return _svg(
        BAR,
        BAR_HEIGHT,
        label,
        "inline",
        _rect(0, middle - 1, BAR, 2, "track"),
        _rect(BAR * low, middle - 3, max(1.0, BAR * (high - low)), 6, "reach"),
        _rect(min(BAR - 3.0, max(0.0, BAR * value - 1.5)), 1, 3, BAR_HEIGHT - 2, "bar plain"),
    )


@dataclass(frozen=True)
class Range:
    """The levels that a chart shows, dB."""

    low: float
    high: float

    @classmethod
    def around(cls, levels: Sequence[float]) -> Range:
        """Whole tens around ``levels``; what lies far outside of what fp32 reaches is drawn at the edge."""
        known = [level for level in levels if math.isfinite(level)] or [0.0, LEVEL_TOP_DB]
        low = max(-20.0, 10 * math.floor((min(known) - 5) / 10))
        return cls(low, max(low + 20, min(LEVEL_TOP_DB + 20, 10 * math.ceil(max(known) / 10))))


@dataclass(frozen=True)
class _Frame:
    """Where the plot lies in its SVG, and what its axes mean."""

    steps: int
    range: Range
    left: float = 46
    right: float = 366
    top: float = 12
    bottom: float = 208
    width: float = 480
    height: float = 250

    def x(self, step: int) -> float:
        if self.steps == 1:
            return (self.left + self.right) / 2
        return self.left + 10 + (self.right - self.left - 20) * (step - 1) / (self.steps - 1)

    def y(self, level: float) -> float:
        inside = _clamped((level - self.range.low) / (self.range.high - self.range.low))
        return self.bottom - inside * (self.bottom - self.top)


def line_chart(
    label: str, lines: Mapping[str, Sequence[float | None]], gates: Mapping[str, float], range_: Range
) -> Html:
    """A level after each step, a line a target, labelled at its end; a level without a value is a gap.

    ``gates`` are named by whom they apply to. The n-th line has the n-th colour, dash and marker.
    """
    frame = _Frame(max((len(values) for values in lines.values()), default=1), range_)
    ends = [
        (index, name, last)
        for index, (name, values) in enumerate(lines.items())
        if (last := _last(values)) is not None
    ]
    return _svg(
        frame.width,
        frame.height,
        label,
        "chart",
        *_axes(frame),
        *(
            _gate(frame, name, level, len(gates) > 1 and level == min(gates.values()))
            for name, level in gates.items()
        ),
        *(_line(frame, index, values) for index, values in enumerate(lines.values())),
        *_end_labels(frame, ends),
    )


def sample(index: int) -> Html:
    """A piece of the n-th line, for legends."""
    line = tag("path", d="M0 8L36 8", class_=f"line series-{index % SERIES}")
    return tag("svg", line, _marker(index, 18, 8), viewBox="0 0 36 16", class_="sample", aria_hidden="true")


def _marker(index: int, x: float, y: float) -> Html:
    """The n-th line's marker."""
    shape = index % SERIES
    paths = (
        f"M{x - 3:.1f} {y:.1f}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0Z",
        f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6Z",
        f"M{x:.1f} {y - 4:.1f}l4 7h-8Z",
        f"M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4 -4Z",
        f"M{x:.1f} {y + 4:.1f}l4 -7h-8Z",
    )
    return tag("path", d=paths[shape], class_=f"marker series-{shape}")


def _axes(frame: _Frame) -> list[Html]:
    parts = []
    spacing = 10 if frame.range.high - frame.range.low <= 80 else 20
    level = spacing * math.ceil(frame.range.low / spacing)
    while level <= frame.range.high:
        y = frame.y(level)
        parts.append(tag("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid"))
        parts.append(_words(frame.left - 6, y + 4, f"{level:g}", "axis end"))
        level += spacing
    parts += [
        _words(frame.x(step), frame.bottom + 16, f"{step}", "axis middle") for step in _ticks(frame.steps)
    ]
    parts.append(_words((frame.left + frame.right) / 2, frame.height - 6, "denoising step", "axis middle"))
    middle = (frame.top + frame.bottom) / 2
    turned = f"rotate(-90 12 {middle:.1f})"
    parts.append(tag("text", "SNR, dB", x=12, y=middle, class_="axis middle", transform=turned))
    return parts


def _ticks(steps: int) -> list[int]:
    """The steps that the axis names: the first, the last, and round ones between that leave room."""
    stride = next(size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if steps / size <= MOST_TICKS)
    room = stride / 2
    between = [step for step in range(stride, steps, stride) if step - 1 > room and steps - step > room]
    return list(dict.fromkeys([1, *between, steps]))


def _gate(frame: _Frame, name: str, level: float, below: bool) -> Html:
    """A gate's line, and its words above or below it."""
    y = frame.y(level)
    line = tag("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="gate")
    words = f"gate {limit(level)}" + (f": {name}" if name else "")
    return joined([line, _words(frame.left + 4, y + (12 if below else -4), _short(words, 50), "gate-label")])


def _line(frame: _Frame, index: int, values: Sequence[float | None]) -> Html:
    """One target's polyline, broken where there is no value, and its markers."""
    points = [
        None if value is None or not math.isfinite(value) else (frame.x(step), frame.y(value))
        for step, value in enumerate(values, 1)
    ]
    path, pen = "", "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        path += f"{pen}{point[0]:.1f} {point[1]:.1f}"
        pen = "L"
    series = f"line series-{index % SERIES}"
    return joined(
        [
            tag("path", d=path, class_=series) if path else "",
            *(_marker(index, *point) for point in points if point is not None),
        ]
    )


def _end_labels(frame: _Frame, ends: Sequence[tuple[int, str, tuple[int, float]]]) -> list[Html]:
    """Each line's name beside its last point, apart from each other."""
    apart = 15.0
    placed = []
    below = frame.top - apart
    for index, name, (step, level) in sorted(ends, key=lambda end: (-end[2][1], end[0])):
        below = max(frame.y(level), below + apart)
        placed.append((index, name, step, level, below))
    over = max(0.0, below - frame.bottom)
    parts = []
    for index, name, step, level, y in placed:
        x, start = frame.right + 8, frame.x(step)
        at = y - over
        leader = f"M{start + 6:.1f} {frame.y(level):.1f}L{x - 2:.1f} {at:.1f}"
        parts.append(tag("path", d=leader, class_="leader"))
        parts.append(_marker(index, x + 5, at))
        parts.append(_words(x + 13, at + 4, _short(name, 14), "label"))
    return parts


def _last(values: Sequence[float | None]) -> tuple[int, float] | None:
    """The last step that has a value, and the value."""
    known = [(step, v) for step, v in enumerate(values, 1) if v is not None and math.isfinite(v)]
    return known[-1] if known else None


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}…"


def _clamped(share: float) -> float:
    return min(1.0, max(0.0, share))


def _rect(x: float, y: float, width: float, height: float, class_: str) -> Html:
    return tag("rect", x=x, y=y, width=width, height=height, class_=class_)


def _words(x: float, y: float, words: str, class_: str) -> Html:
    return tag("text", words, x=x, y=y, class_=class_)


def _svg(width: float, height: float, label: str, class_: str, *parts: Html) -> Html:
    return tag(
        "svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, class_=class_
    )
