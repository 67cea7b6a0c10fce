"""The seam between what is exported and how: backends, artifacts, executors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from mobile_o_export.components.base import Component, GraphOptions, GraphSpec
from mobile_o_export.compression.check import WeightRow
from mobile_o_export.members import MemberName
from mobile_o_export.parity.metrics import Array
from mobile_o_export.precision import Precision
from mobile_o_export.progress import Say

if TYPE_CHECKING:
    from mobile_o_export.backends.contents import Contents
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.compression.activations import Statistics
    from mobile_o_export.compression.recipe import Recipe
    from mobile_o_export.targets import Sequence as Lengths


@dataclass(frozen=True)
class Probe:
    """What a backend can do on this host.

    ``problem`` says why it cannot lower or run, and ``remedy`` what to install.
    """

    backend: str
    runtime: str
    versions: Mapping[str, str]
    problem: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class LowerRequest:
    """One component to be lowered for one target, its weights at the precisions of ``recipe``.

    ``statistics`` are of its layers, where the recipe needs them; ``absent`` are the components that are not
    lowered for the target along with it.
    """

    target: str
    component: Component
    recipe: Recipe
    sequence: Lengths
    options: Mapping[str, Any]
    statistics: Statistics = field(default_factory=dict)
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class GraphFile:
    """Where one graph lies.

    Attributes:
        spec: the graph.
        file: path below the artifact's folder (a .mlpackage is a folder itself).
        entry: the function or signature inside the file; empty where the file is the graph.
    """

    spec: GraphSpec
    file: MemberName
    entry: str


@dataclass(frozen=True)
class Artifact:
    """A lowered component: its graphs, and whatever ships beside them in its folder.

    ``weights`` are those that were compressed, as they were read back from the files.
    """

    graphs: tuple[GraphFile, ...]
    weights: tuple[WeightRow, ...] = ()


class Executor(Protocol):
    """Runs an artifact's graphs exactly as the files say: padded, masked, caches in and out.

    A context manager, closed at its end. ``runtime`` names what computes, so that a report can say what a
    pass proves; ``rounds_to_half`` says whether it computes fp16 as fp16, result by result; ``threads`` is
    how many it computes with, None where the runtime chooses and does not say.
    """

    runtime: str
    rounds_to_half: bool = False
    threads: int | None = None

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of the graph by the names in the file; states are kept between calls."""
        ...

    def reset(self) -> None:
        """Sets every state to zero."""
        ...

    def close(self) -> None:
        """Gives back what was loaded."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def several_files(graphs: Sequence[GraphFile]) -> str:
    """Why ``graphs``, all of which have to be in one file, cannot be opened; else an empty string."""
    files = sorted({graph.file for graph in graphs})
    return "" if len(files) == 1 else f"its graphs lie in {len(files)} files, and have to be in one"


class Backend(Protocol):
    """One ecosystem."""

    name: str

    def supports(self, precision: Precision) -> bool:
        """Whether weights can be stored at ``precision``."""
        ...

    precisions: str
    """What it supports, for a message."""

    converter_bytes: int
    """What the converter takes in memory, its packages included, for a component of real size."""

    maps_files: bool
    """Whether what is read back of a file stays mapped into memory."""

    bytes_of_restored: int
    """What each number of a weight takes while it is restored and compared."""

    def probe(self) -> Probe:
        """What works on this host, going by what is installed."""
        ...

    def graph_options(self, request: LowerRequest) -> GraphOptions:
        """The graphs' options that follow from a request.

        Raises:
            ConfigError: the target's ``[options]`` are wrong.
        """
        ...

    def refusal(self, request: LowerRequest, checkpoint: Checkpoint) -> str:
        """Why ``request`` cannot be carried out, or an empty string; before any work."""
        ...

    def caution(self, request: LowerRequest, size_bytes: int) -> str:
        """What a user should know of files of about ``size_bytes``, before any work; by itself, nothing."""
        del request, size_bytes
        return ""

    def lower(self, request: LowerRequest, checkpoint: Checkpoint, folder: Path, progress: Say) -> Artifact:
        """Writes the component into the empty ``folder``."""
        ...

    def folder(self, component: str) -> str:
        """Where below a target's folder the files of ``component`` go; empty for that folder itself."""
        return component

    def finish(
        self, folder: Path, graphs: Mapping[str, tuple[GraphFile, ...]], options: Mapping[str, Any]
    ) -> None:
        """Adds to a target's ``folder`` what concerns all its components together: by itself, nothing.

        ``graphs`` are each component's, their files below its own folder; ``options`` the target's.
        """
        del folder, graphs, options

    def finishing(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the files that ``finish`` writes under a target's ``options``."""
        del options
        return ()

    def least_runtimes(self, options: Mapping[str, Any]) -> Mapping[str, str]:
        """The oldest version of each runtime that is known to compute a target's files rightly.

        By the name of its package, or of the system that brings it. Of packages that version was run.
        """
        del options
        return {}

    def constants(self, artifact: Artifact, folder: Path, component: str) -> Iterator[tuple[str, Array]]:
        """Every constant of the files by its place, one at a time: the numbers that it stands for.

        Raises:
            MissingToolError: this host cannot read them.
            ExportError: they contradict themselves.
        """
        ...

    def contents(self, artifact: Artifact, folder: Path, component: str) -> Contents:
        """What the files hold, read by other code than wrote them.

        Raises:
            MissingToolError: this host cannot read them.
            ExportError: they contradict themselves.
        """
        ...

    def layout_problem(self, component: str, graphs: Sequence[GraphFile]) -> str:
        """Why the ``graphs`` of ``component`` cannot be opened as they lie, or an empty string."""
        del component
        return several_files(graphs)

    def open(self, artifact: Artifact, folder: Path, component: str) -> Executor:
        """An executor over the files; raises MissingToolError where this host has no runtime."""
        ...
