"""Checks of a cache: every file against its digest, and lowered components against what is lowered again."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mobile_o_export.backends.base import LowerRequest
from mobile_o_export.backends.registry import backend
from mobile_o_export.cache.entry import Entry, EntryError
from mobile_o_export.cache.exports import FILES, GOLDEN, LOWERED
from mobile_o_export.cache.keys import golden_digest, lowered_parts, read_components
from mobile_o_export.calibration import Calibration
from mobile_o_export.components.registry import component
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.digests import json_digest
from mobile_o_export.errors import ExportError
from mobile_o_export.golden import Golden
from mobile_o_export.lowered import lower_component
from mobile_o_export.progress import Done
from mobile_o_export.targets import Sequence as Lengths

if TYPE_CHECKING:
    from mobile_o_export.cache.store import Store
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.progress import Progress

SHOWN = 3
"""Of files that differ, so many are named."""

CACHE = "cache"


@dataclass(frozen=True)
class Checked:
    """What was compared.

    Attributes:
        candidates: how many could have been.
        entries: how many were.
        size_bytes: of their files.
        wrong: a sentence on each that was not as it should be, and is removed.
    """

    candidates: int
    entries: int
    size_bytes: int
    wrong: tuple[str, ...]


def check_entries(store: Store, progress: Progress) -> Checked:
    """Reads every file of every entry; those of a newer version are left alone."""
    wrong, count, size_bytes = [], 0, 0
    for kept in list(store.kept()):
        progress(CACHE, "", f"{kept.kind} {kept.folder.name[:8]}")
        try:
            if (entry := Entry.open(kept.folder)) is None:
                continue
            entry.check()
        except EntryError as error:
            wrong.append(str(error))
            store.remove(kept.folder)
        count += 1
        size_bytes += kept.size_bytes
    return Checked(count, count, size_bytes, tuple(wrong))


def recompute(store: Store, checkpoint: Checkpoint, share: float, progress: Progress) -> Checked:
    """Lowers a ``share`` of the cached components of ``checkpoint`` again, at random and one at least.

    Only what this version makes of it on this machine: anything else has other keys.
    """
    progress(CACHE, "", "computing the checkpoint's digest")
    found = list(_lowered(store, checkpoint))
    chosen = random.sample(found, min(len(found), max(1, math.ceil(share * len(found)))))
    wrong, size_bytes = [], 0
    for entry, request, goldens in chosen:
        name = request.component.name
        differing = _differing(entry, request, goldens, checkpoint, progress)
        if differing:
            shown = ", ".join(differing[:SHOWN])
            wrong.append(f"{entry.folder}: {name} lowered again differs in {len(differing)} files: {shown}.")
            store.remove(entry.folder)
        progress(
            CACHE, name, Done("lowered again, other bytes" if differing else "lowered again, the same bytes")
        )
        size_bytes += sum(file.size_bytes for file in entry.index.files.values())
    checkpoint.require_unchanged()
    return Checked(len(found), len(chosen), size_bytes, tuple(wrong))


def _lowered(
    store: Store, checkpoint: Checkpoint
) -> Iterator[tuple[Entry, LowerRequest, tuple[Golden, ...]]]:
    """The cached components of ``checkpoint``, what was asked for, and what they were calibrated on."""
    goldens = dict(_goldens(store))
    for kept in list(store.kept()):
        entry = None if kept.problem or kept.kind != LOWERED else Entry.open(kept.folder)
        if entry is None:
            continue
        parts = entry.index.parts
        try:
            request = _request(parts)
            vendor = backend(parts["backend"])
            own = lowered_parts(request, checkpoint, vendor, parts["calibrated_on"])
        except (ExportError, KeyError, ValueError):
            # Of a version that asked for it in other words.
            continue
        if json_digest(own) == json_digest(parts) and all(name in goldens for name in parts["calibrated_on"]):
            yield entry, request, tuple(goldens[name] for name in parts["calibrated_on"])


def _request(parts: Mapping[str, Any]) -> LowerRequest:
    """What was asked of the backend."""
    return LowerRequest(
        target=CACHE,
        component=component(parts["component"]),
        recipe=Recipe.model_validate(parts["recipe"]),
        sequence=Lengths.model_validate(parts["sequence"]),
        options=parts["options"],
    )


def _goldens(store: Store) -> Iterator[tuple[str, Golden]]:
    """The goldens in the cache, by their digests."""
    for kept in list(store.kept()):
        if kept.kind == GOLDEN and not kept.problem:
            golden = Golden.open(kept.folder / FILES)
            yield golden_digest(golden), golden


def _differing(
    entry: Entry,
    request: LowerRequest,
    goldens: Sequence[Golden],
    checkpoint: Checkpoint,
    progress: Progress,
) -> list[str]:
    """The names of the files that lowering again gives other bytes, or only it or only the entry has."""
    name = request.component.name
    vendor = backend(entry.index.parts["backend"])
    with TemporaryDirectory(prefix="mobile-o-cache-") as work:
        lowered = lower_component(
            request,
            vendor,
            checkpoint.part(read_components(vendor, name)),
            Calibration(checkpoint, goldens),
            Path(work) / name,
            lambda phrase: progress(CACHE, name, phrase),
        )
    again = {f"{FILES}/{inner}": file.sha256 for inner, file in lowered.files.items()}
    kept = {
        str(inner): file.sha256 for inner, file in entry.index.files.items() if inner.startswith(f"{FILES}/")
    }
    return sorted(inner for inner in again.keys() | kept.keys() if again.get(inner) != kept.get(inner))
