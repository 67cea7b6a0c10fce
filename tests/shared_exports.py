"""Goldens, exports and lowered components that a whole test session shares.

Whichever process needs one first makes it; the others wait and read it. Nothing outlives the session, so a
key names only what can differ within one: checkpoint, target, recipe, options, golden.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from filelock import FileLock

from mobile_o_export.backends.base import Artifact, Backend, LowerRequest
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle.manifest import FileEntry, file_digest
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.errors import BundleError
from mobile_o_export.export import ExportResult, export_bundle
from mobile_o_export.exporting import lowering
from mobile_o_export.golden import Golden
from mobile_o_export.golden.record import record_golden
from mobile_o_export.members import Members, entries
from mobile_o_export.progress import Say
from mobile_o_export.targets import Target

LONGEST_WAIT = 1800.0
"""Seconds for which another process may be making what this one waits for."""

ARTIFACT, RESULT, FILES, PROMPTS = "artifact.pickle", "result.pickle", "files", "prompts.toml"


@dataclass(frozen=True)
class SharedExports:
    """What was made in this session, by content; for reading only.

    Attributes:
        root: a folder that every process of the session sees.
    """

    root: Path

    def once(self, kind: str, key: object, make: Callable[[Path], object]) -> Path:
        """The folder that ``make`` filled, in this process or another.

        Args:
            kind: what it is, for who looks into the folder.
            key: everything that it depends on, as JSON.
            make: fills the folder that it gets. Where it raises, nothing is kept and the next one tries.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        place = self.root / f"{kind}-{digest[:20]}"
        with FileLock(f"{place}.lock", timeout=LONGEST_WAIT):
            if not place.exists():
                partial = place.with_name(f"{place.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                make(partial)
                partial.rename(place)
        return place

    def prompts(self, content: str) -> Path:
        """A file of prompts for a golden."""
        place = self.once("prompts", content, lambda folder: (folder / PROMPTS).write_text(content))
        return place / PROMPTS

    def golden(self, checkpoint: Checkpoint, prompts: Path | None = None) -> Golden:
        """The checkpoint's golden on ``prompts``, on the shipped ones if None."""
        asked = None if prompts is None else prompts.read_text(encoding="utf-8")
        place = self.once(
            "golden",
            [checkpoint.digest, asked],
            lambda folder: record_golden(checkpoint, prompts, folder, lambda *_: None),
        )
        return Golden.open(place)

    def lower(self, vendor: Backend, request: LowerRequest, checkpoint: Checkpoint, folder: Path) -> Artifact:
        """What ``vendor`` lowers, its files copied into the empty ``folder``."""

        def make(place: Path) -> None:
            (place / FILES).mkdir()
            artifact = vendor.lower(request, checkpoint, place / FILES, lambda _: None)
            (place / ARTIFACT).write_bytes(pickle.dumps(artifact))

        key = {
            "backend": vendor.name,
            "checkpoint": checkpoint.digest,
            "target": request.target,
            "component": request.component.name,
            "recipe": request.recipe.model_dump(mode="json"),
            "sequence": request.sequence.model_dump(mode="json"),
            "options": dict(request.options),
            "statistics": hashlib.sha256(pickle.dumps(dict(request.statistics))).hexdigest(),
            "absent": sorted(request.absent),
        }
        place = self.once(f"{request.target}-{request.component.name}", key, make)
        shutil.copytree(place / FILES, folder, dirs_exist_ok=True)
        return cast(Artifact, pickle.loads((place / ARTIFACT).read_bytes()))

    def export(
        self, checkpoint: Checkpoint, targets: Sequence[Target], components: Sequence[str], golden: Golden
    ) -> ExportResult:
        """An export by ``export_bundle`` as version 1.2.3, its components lowered once in the session."""

        def make(place: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(lowering, "backend", lambda name: _LoweringOnce(backend(name), self))
                out = place / "bundle"
                result = export_bundle(
                    checkpoint, targets, components, golden.path, out, "1.2.3", lambda *_: None
                )
            (place / RESULT).write_bytes(
                pickle.dumps((result.rows, result.costs, dict(result.chain_seconds)))
            )

        key = {
            "checkpoint": checkpoint.digest,
            "targets": [target.model_dump(mode="json") for target in targets],
            "components": list(components),
            "golden": golden.index.sha256,
        }
        place = self.once("-".join(["export", *(target.name for target in targets)])[:60], key, make)
        return ExportResult(place / "bundle", *pickle.loads((place / RESULT).read_bytes()))


class _LoweringOnce:
    """A backend that takes what the session has lowered already."""

    def __init__(self, vendor: Backend, shared: SharedExports) -> None:
        self._vendor = vendor
        self._shared = shared

    def lower(self, request: LowerRequest, checkpoint: Checkpoint, folder: Path, progress: Say) -> Artifact:
        return self._shared.lower(self._vendor, request, checkpoint, folder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vendor, name)


def tree(folder: Path) -> dict[str, FileEntry]:
    """Every file below ``folder``, the manifest too."""
    return {name: file_digest(Members(folder, BundleError), name) for name, _ in entries(folder)}
