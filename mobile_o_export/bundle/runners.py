"""A bundle's files behind the interface that the tasks run over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mobile_o_export.backends.base import Artifact
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle.manifest import (
    CONFIG_FOLDER,
    MANIFEST,
    TOKENIZER_FOLDER,
    ComponentEntry,
    DamagedBundleError,
    Manifest,
    damage,
    read_manifest,
)
from mobile_o_export.errors import BundleError, GateError, UsageError
from mobile_o_export.members import Members
from mobile_o_export.pipelines.pipeline import Pipeline
from mobile_o_export.pipelines.runner import Limits
from mobile_o_export.pipelines.settings import Settings
from mobile_o_export.pipelines.workbench import Workbench
from mobile_o_export.precision import Precision
from mobile_o_export.progress import Say, silent
from mobile_o_export.session import Session
from mobile_o_export.strict import nearest
from mobile_o_export.tokenizer import Tokenizer

FP16_AS_FP32 = ", fp16 computed in fp32"
"""Of a runtime whose results say nothing of what overflows or rounds in a device's fp16 arithmetic."""


def artifact_of(folder: Path, entry: ComponentEntry) -> tuple[Artifact, Path]:
    """The graphs of a component of the bundle in ``folder``, and the folder that their files start from.

    Raises:
        GateError: a link or a special file lies where one should be.
    """
    members = Members(folder, GateError)
    for file in {graph.file for graph in entry.graphs}:
        place = f"{entry.folder}/{file}" if entry.folder else file
        # Vendors' readers open paths, and follow whatever lies there. What lacks, the backend knows to tell.
        if members.has(place):
            members.tree(place)
    return Artifact(entry.graphs), folder / entry.folder


class BundleRunners:
    """The components of one target of a bundle."""

    def __init__(self, folder: Path, manifest: Manifest, target: str) -> None:
        self._folder = folder
        self._manifest = manifest
        self._target = target
        sequence = manifest.targets[target].sequence
        self.limits = Limits(target, sequence.longest, sequence.context)

    def require(self, names: Sequence[str]) -> None:
        """Raises UsageError unless the components ``names`` were exported."""
        for name in names:
            self._entry(name)

    @contextmanager
    def open(self, name: str) -> Iterator[Session]:
        """The component ``name``, run by whatever runtime of its format this host has.

        Raises:
            MissingToolError: this host has none.
            ExportError: the files cannot be loaded.
        """
        entry = self._entry(name)
        vendor = backend(self._manifest.targets[self._target].backend)
        with vendor.open(*artifact_of(self._folder, entry), name) as executor:
            graphs = [graph.spec for graph in entry.graphs]
            session = Session(self._manifest.functions[name], graphs, executor)
            if entry.recipe is not None and entry.recipe.floating == Precision.FP16:
                session.runtime += "" if executor.rounds_to_half else FP16_AS_FP32
            yield session

    def _entry(self, name: str) -> ComponentEntry:
        entry = self._manifest.targets[self._target].components.get(name)
        if entry is None or entry.skipped is not None:
            why = "was not exported" if entry is None else f"is skipped: {entry.skipped}"
            raise UsageError(
                f"{self._folder}: this needs {name}, which on {self._target} {why}. Choose another target, "
                "or export it."
            )
        return entry


def open_target(
    folder: Path, manifest: Manifest, target: str, *, keep: bool = True, say: Say = silent
) -> Pipeline:
    """The tasks over one target's files, which are taken to be intact."""
    members = Members(folder, BundleError)
    settings = Settings.read(members.tree(CONFIG_FOLDER))
    tokenizer = Tokenizer(members.tree(TOKENIZER_FOLDER))
    runners = BundleRunners(folder, manifest, target)
    bench = Workbench(runners, tokenizer, settings, keep=keep, say=say)
    return Pipeline(bench, lambda steps: settings.schedule(steps).start(), target)


def open_bundle(
    folder: Path | str, target: str | None = None, *, keep: bool = True, say: Say = silent
) -> Pipeline:
    """The four tasks over the files of a bundle, after checking the hashes of those that are used.

    Args:
        folder: the bundle.
        target: one of its targets; may be left out where it has one only.
        keep: keep components loaded between tasks; without, each is freed after its part.
        say: told in a short phrase what happens now.

    Raises:
        BundleError: there is no bundle in ``folder``.
        DamagedBundleError: a file is missing or changed.
        UsageError: the target is not in the bundle.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    target = chosen_target(folder, manifest, target)
    say("hashing its files")
    if problems := damage(folder, manifest, (target, CONFIG_FOLDER, TOKENIZER_FOLDER)):
        raise DamagedBundleError(folder, problems)
    return open_target(folder, manifest, target, keep=keep, say=say)


def chosen_target(folder: Path, manifest: Manifest, target: str | None) -> str:
    """``target``, or the only one there is.

    Raises:
        UsageError: it is not in the bundle, or there are several to choose from.
    """
    if target is None:
        if len(manifest.targets) == 1:
            return next(iter(manifest.targets))
        raise UsageError(f"{folder}: say which target: --target {' or '.join(manifest.targets)}.")
    require_known(target, manifest.targets, "target", folder)
    return target


def chosen_components(
    folder: Path, manifest: Manifest, targets: Sequence[str], components: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """The (target, component) pairs that were exported, of those named: all where none are.

    Raises:
        UsageError: a target or component is not in the bundle, or every pair that was named is skipped.
    """
    for name in targets:
        require_known(name, manifest.targets, "target", folder)
    for name in components:
        require_known(name, manifest.functions, "component", folder)
    chosen = tuple(
        (target, component)
        for target in dict.fromkeys(targets or manifest.targets)
        for component in dict.fromkeys(components or manifest.targets[target].components)
        if component in manifest.targets[target].exported
    )
    if not chosen and (targets or components):
        raise UsageError(
            f"{folder}: the chosen targets skip the chosen components. Choose others; "
            f"{folder / MANIFEST} says what was exported."
        )
    return chosen


def require_source(folder: Path, manifest: Manifest, digest: str) -> None:
    """Raises UsageError unless the bundle in ``folder`` was made from the checkpoint of that digest."""
    if digest != manifest.checkpoint.digest:
        raise UsageError(
            f"{folder}: was made from another checkpoint. Give the one that it was made from, or none."
        )


def require_known(name: str, known: Iterable[str], kind: str, folder: Path) -> None:
    """Raises UsageError unless the bundle in ``folder`` has the target or component ``name``."""
    names = list(known)
    if name not in names:
        raise UsageError(
            f"{folder}: has no {kind} {name!r}.{nearest(name, names)} It has {', '.join(names)}."
        )
