"""From a component to its files: what every backend does alike.

The journey of a weight:

1. It lies in the checkpoint, mapped into memory, and is loaded as it is stored: nothing is copied yet.
2. What a file's program folds into weights is folded in PyTorch, in fp32 (``Component.rewrite``).
3. It is compressed (``compression.compress``): to palettes or integers, or it stays as it is. Its source is
   kept to be compared with, in 16 bits where it has no more.
4. A placeholder takes its place in the module (``compression.placeholders``): as large, of one row in memory.
5. The graph is traced and converted around placeholders (``Writer.write``). No converter sees a weight, none
   copies one. A converter that computes with a placeholder leaves a constant that names no weight, and the
   graph is refused.
6. Where the converted graph has a placeholder, the backend writes the weight, in the order of axes that the
   placeholder has there, in the bytes of the format. What several graphs share is written once.
7. It is read back from the file by other code than wrote it (``Writer.stored``), and compared with what was
   compressed, number by number, and with its source (``compression.check``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from mobile_o_export.backends.base import Artifact, GraphFile, LowerRequest
from mobile_o_export.components import building
from mobile_o_export.compression.check import check_weights
from mobile_o_export.compression.compress import compress_module
from mobile_o_export.compression.placeholders import Placeholders
from mobile_o_export.quiet import captured

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.components.base import Component, GraphOptions, GraphSpec
    from mobile_o_export.compression.compress import Compressed
    from mobile_o_export.parity.metrics import Array
    from mobile_o_export.progress import Say


ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Graphs:
    """What is to be lowered.

    Attributes:
        specs: what each graph takes and gives.
        load: the module that they share, rewritten, its weights as they are stored.
        around: the module of one graph around that one.
        dtype: what they are traced in.
        release: gives back the memory of weights that were read.
    """

    specs: tuple[GraphSpec, ...]
    load: Callable[[], nn.Module]
    around: Callable[[nn.Module, GraphSpec], nn.Module]
    dtype: torch.dtype
    release: Callable[[], None]

    @classmethod
    def of(cls, component: Component, checkpoint: Checkpoint, options: GraphOptions) -> Graphs:
        """The graphs of a whole component."""
        return cls(
            component.graphs(checkpoint, options),
            lambda: component.rewrite(component.load(checkpoint, stored=True), options),
            lambda module, spec: component.graph(module, spec, options),
            building.TORCH_DTYPES[options.compute_dtype],
            checkpoint.release,
        )


class Writer(Protocol):
    """What a backend adds.

    Attributes:
        restored_in: what its runtimes restore weights in, where that is not what the recipe computes in.
        least_scale: the smallest scale of integers that its runtimes take.
    """

    restored_in: type[np.floating] | None = None
    least_scale: float = 0.0

    def alter(self, module: nn.Module, compressed: Mapping[str, Compressed]) -> None:
        """Changes the module, whose weights have been compressed, to suit the converter; if need be."""

    def write(
        self, graphs: Iterator[tuple[GraphSpec, nn.Module]], weights: Placeholders, progress: Say
    ) -> tuple[GraphFile, ...]:
        """Converts the graphs, and writes the files with every weight in its place.

        Raises:
            LoweringError: the converter failed.
            ExportError: a weight is in no graph, or was changed on its way there.
        """
        ...

    def stored(self) -> Iterator[tuple[str, str, Array]]:
        """What the files restore of compressed weights: name, place, numbers in the parameters' axes."""
        ...


def lower(request: LowerRequest, graphs: Graphs, writer: Writer, what: str, progress: Say) -> Artifact:
    """Writes ``graphs`` with the weights that ``request`` asks for, and compares what was written.

    Args:
        request: says the precisions, and names component and target.
        graphs: to be written.
        writer: the backend's part.
        what: is done, for messages.
        progress: told what happens.

    Raises:
        LoweringError: the converter failed.
        ExportError: a weight is not finite, is in no graph, or was changed on its way there.
        GateError: a weight read back is not what was compressed.
    """
    name = request.component.name
    progress("loading the weights")
    module = graphs.load()
    compressed = compress_module(
        module,
        request.recipe,
        what,
        progress,
        request.statistics,
        dtype=writer.restored_in,
        least_scale=writer.least_scale,
        keep=False,
    )
    writer.alter(module, compressed)
    weights = Placeholders(module, compressed, graphs.dtype)
    module.to(graphs.dtype)
    graphs.release()
    files = writer.write(((spec, graphs.around(module, spec)) for spec in graphs.specs), weights, progress)
    del module
    progress("reading the weights back")
    with captured(f"{what} (reading back)"):
        rows = check_weights(compressed, _followed(writer.stored(), graphs.release), name)
    return Artifact(files, rows)


def _followed(items: Iterator[ItemT], by: Callable[[], None]) -> Iterator[ItemT]:
    """``items``, each followed by a call."""
    for item in items:
        yield item
        del item  # not kept while the next is made
        by()
