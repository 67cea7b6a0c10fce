"""Sizes: of every component on every target, next to its weights in fp32."""

from __future__ import annotations

from dataclasses import dataclass

from mobile_o_export.bundle.manifest import Manifest
from mobile_o_export.report.charts import size_bar
from mobile_o_export.report.content import ReportContent
from mobile_o_export.report.markup import Html, cell, number, row, section, table, tag
from mobile_o_export.report.quantities import DASH, percent, size

FP32_BYTES = 4
OTHER = "other files"

ABOUT = (
    "Outlined: the component’s parameters in fp32, 4 bytes each. Filled: its files, which hold its graphs "
    "beside the weights."
)


@dataclass(frozen=True)
class Size:
    """Bytes of files, and of the same parameters in fp32 where their number is known."""

    size_bytes: int
    fp32_bytes: int | None

    @property
    def ratio(self) -> float | None:
        """The files' share of fp32."""
        return self.size_bytes / self.fp32_bytes if self.fp32_bytes else None


def sizes_of(manifest: Manifest, target: str) -> dict[str, Size]:
    """The size of each component that a target holds, and of its files beside them, if there are any."""
    entry = manifest.targets[target]
    parameters = manifest.checkpoint.component_parameters
    sizes = {}
    for name in entry.exported:
        own = parameters.get(name)
        fp32 = None if own is None else FP32_BYTES * own
        sizes[name] = Size(entry.components[name].size_bytes, fp32)
    shipped = sum(file.size_bytes for path, file in manifest.files.items() if path.startswith(f"{target}/"))
    rest = shipped - sum(found.size_bytes for found in sizes.values())
    return {**sizes, OTHER: Size(rest, None)} if rest > 0 else sizes


def total(sizes: dict[str, Size]) -> Size:
    """All of a target; its fp32 size is known if each component's is."""
    components = [found for name, found in sizes.items() if name != OTHER]
    known = [found.fp32_bytes for found in components if found.fp32_bytes is not None]
    whole = sum(known) if known and len(known) == len(components) else None
    return Size(sum(found.size_bytes for found in sizes.values()), whole)


def render(content: ReportContent) -> Html:
    """The section."""
    manifest = content.manifest
    targets = {name: sizes_of(manifest, name) for name, entry in manifest.targets.items() if entry.exported}
    every = [found for sizes in targets.values() for found in sizes.values()]
    scale = max((max(found.size_bytes, found.fp32_bytes or 0) for found in every), default=1)
    columns = ["component", "#files", "#fp32", "#of fp32", "files, in fp32’s outline"]
    bodies = [
        tag(
            "tbody",
            tag("tr", tag("th", name, colspan=len(columns), scope="rowgroup", class_="group")),
            *(_row(part, found, scale) for part, found in sizes.items()),
            row("total", *_numbers(total(sizes)), cell(), class_="total"),
        )
        for name, sizes in targets.items()
    ]
    return section("sizes", "Sizes", ABOUT, table("Files of each component on each target", columns, *bodies))


def versus_fp32(found: Size) -> str:
    """``52 % of 15.2 MB in fp32``, or a dash."""
    if found.ratio is None or found.fp32_bytes is None:
        return DASH
    return f"{percent(found.ratio)} of {size(found.fp32_bytes)} in fp32"


def _row(name: str, found: Size, scale: int) -> Html:
    bar = size_bar(found.size_bytes, found.fp32_bytes, scale)
    return row(name, *_numbers(found), cell(bar))


def _numbers(found: Size) -> tuple[Html, Html, Html]:
    fp32 = DASH if found.fp32_bytes is None else size(found.fp32_bytes)
    ratio = DASH if found.ratio is None else percent(found.ratio)
    return number(size(found.size_bytes)), number(fp32), number(ratio)
