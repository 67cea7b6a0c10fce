"""The I/O contract: what each function takes and gives, and the graphs that realise it on each target."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from mobile_o_export.backends.base import GraphFile
from mobile_o_export.bundle.manifest import ComponentEntry
from mobile_o_export.components.base import Continuity, Extent, FunctionSpec, GraphSpec
from mobile_o_export.report.content import ReportContent
from mobile_o_export.report.markup import Html, cell, details, joined, section, small, table, tag
from mobile_o_export.report.quantities import DASH, MINUS, count
from mobile_o_export.tensors import TensorSpec

LETTERS = {
    "B": "batch, always 1",
    "S": "sequence length, tokens of this call",
    "D": "width of the LLM",
    "P": "positions already in the KV cache",
    "V": "vocabulary size",
    "M": "positions in all, P + S",
    "K": "hidden states for the MCP",
    "T": "capacity of the KV cache, positions",
    "L": "layers of the LLM",
    "H": "key/value heads",
    "E": "width of one head",
    "N": "image tokens",
    "R": "input resolution of the vision encoder, pixels",
    "C": "latent channels",
    "Y": "latent height",
    "X": "latent width",
    "O": "side of the decoded image, pixels",
    "F": "width of the conditioning",
    "W": "width of the vision tower, before its projector",
}
"""The legend of ``tensors``."""

CONTINUITY = {
    Continuity.STATELESS: "",
    Continuity.STARTS: "starts a sequence",
    Continuity.CONTINUES: "continues the sequence",
}
SIBLINGS = 3
"""So many tensors that differ in a number alone are shown one by one; more of them as one line."""

ABOUT = (
    "What a caller sees: unpadded tensors, where a letter in a shape is a size that varies from call to "
    "call. The graphs of each target add padding, masks, positions and KV caches."
)


def render(content: ReportContent) -> Html:
    """The section."""
    functions = content.manifest.functions
    columns = ["function", "in/out", "tensor", "shape", "type", "layout", "role", "range", "meaning"]
    bodies = [_function(component, own) for component, every in functions.items() for own in every]
    return section(
        "contract",
        "I/O contract",
        ABOUT,
        table("Functions of the components", columns, *bodies, class_="dense"),
        _legend(spec.layout for every in functions.values() for own in every for spec in _tensors(own)),
        *(_target(content, name) for name, entry in content.manifest.targets.items() if entry.exported),
    )


def collapsed(specs: Iterable[TensorSpec]) -> list[tuple[str, TensorSpec, int]]:
    """Each spec with its name, where many that differ in a number alone stand as one: how many they are."""
    families: dict[tuple[object, ...], list[TensorSpec]] = {}
    for spec in specs:
        family = re.sub(r"\d+", "#", spec.name)
        key = (family, spec.shape, spec.dtype, spec.layout, spec.role, spec.range, spec.description)
        families.setdefault(key, []).append(spec)
    lines = []
    for members in families.values():
        if len(members) <= SIBLINGS:
            lines += [(spec.name, spec, 1) for spec in members]
        else:
            lines.append((_range_of_names(members[0].name, members[-1].name), members[0], len(members)))
    return lines


def _range_of_names(first: str, last: str) -> str:
    """``past_key_values.{0…5}.key``, of names that differ in numbers alone."""
    pieces = zip(re.split(r"(\d+)", first), re.split(r"(\d+)", last), strict=True)
    return "".join(a if a == b else f"{{{a}…{b}}}" for a, b in pieces)


def shape(spec: TensorSpec) -> str:
    """``1 × S × 128``."""
    return " × ".join(str(dim) for dim in spec.shape) or "scalar"


def _tensors(function: FunctionSpec) -> tuple[TensorSpec, ...]:
    return (*function.inputs, *function.outputs)


def _function(component: str, function: FunctionSpec) -> Html:
    """The lines of one function, its name beside all of them."""
    tensors = [("in", spec) for spec in function.inputs] + [("out", spec) for spec in function.outputs]
    continuity = CONTINUITY[function.continuity]
    name = joined(
        [component, ".", tag("strong", function.name), *([small(continuity)] if continuity else [])]
    )
    lines = []
    for index, (direction, spec) in enumerate(tensors):
        head = [tag("th", name, scope="rowgroup", rowspan=len(tensors))] if index == 0 else []
        lines.append(
            tag(
                "tr",
                *head,
                cell(direction),
                cell(tag("code", spec.name)),
                cell(tag("code", shape(spec))),
                cell(str(spec.dtype)),
                cell(tag("code", spec.layout)),
                cell(str(spec.role).replace("_", " ")),
                cell(_range(spec)),
                cell(spec.description or DASH),
            )
        )
    return tag("tbody", *lines)


def _range(spec: TensorSpec) -> str:
    if spec.range is None:
        return DASH
    return f"{spec.range[0]:g}\u00a0…\u00a0{spec.range[1]:g}".replace("-", MINUS)


def _legend(layouts: Iterable[str]) -> Html:
    used = dict.fromkeys(letter for layout in layouts for letter in layout.split() if letter in LETTERS)
    facts = [tag("div", tag("dt", letter), tag("dd", LETTERS[letter])) for letter in used]
    return tag("dl", *facts, class_="legend")


def _target(content: ReportContent, name: str) -> Html:
    entry = content.manifest.targets[name]
    graphs = sum(len(entry.components[part].graphs) for part in entry.exported)
    columns = ["component", "graph and file", "realises", "inputs", "outputs", "states"]
    bodies = [_component(part, entry.components[part]) for part in entry.exported]
    caption = f"Graphs of {name}; files are below {name}/"
    return details(
        f"{name}: {count(graphs, 'graph')}", table(caption, columns, *bodies, class_="dense graphs")
    )


def _component(name: str, entry: ComponentEntry) -> Html:
    """A component's graphs, its name beside all of them."""
    lines = []
    for index, graph in enumerate(entry.graphs):
        head = [tag("th", name, scope="rowgroup", rowspan=len(entry.graphs))] if index == 0 else []
        lines.append(tag("tr", *head, *_graph(entry.folder.partition("/")[2], graph)))
    return tag("tbody", *lines)


def _graph(folder: str, graph: GraphFile) -> list[Html]:
    """Its line; ``folder`` is its component's below the target's."""
    spec = graph.spec
    entry = [", in it ", tag("code", graph.entry)] if graph.entry not in ("", spec.name) else []
    file = small(tag("code", PurePosixPath(folder, graph.file).as_posix()), *entry)
    return [
        cell(tag("code", spec.name), file),
        cell(", ".join(spec.functions), *_profiles(spec)),
        cell(_listed(spec.inputs)),
        cell(_listed(spec.outputs)),
        cell(_listed(spec.states)),
    ]


def _profiles(spec: GraphSpec) -> list[Html]:
    """Of a dynamic graph, the extents that each function runs in."""
    return [
        small(
            f"{profile.function}: ",
            ", ".join(f"{letter}\u00a0{_extent(extent)}" for letter, extent in profile.extents.items()),
        )
        for profile in spec.profiles
    ]


def _extent(extent: Extent) -> str:
    if extent.minimum == extent.maximum:
        return f"{extent.minimum:,}"
    return f"{extent.minimum:,}–{extent.maximum:,}"


def _listed(specs: Sequence[TensorSpec]) -> Html:
    if not specs:
        return Html(DASH)
    items = [
        tag(
            "li",
            tag("code", name),
            f" {shape(spec)} {spec.dtype}",
            f", {number} tensors" if number > 1 else "",
        )
        for name, spec, number in collapsed(specs)
    ]
    return tag("ul", *items, class_="tensors")
