"""From a checkpoint to a verified bundle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_o_export.atomic import staged_folder
from mobile_o_export.bundle.manifest import (
    MANIFEST_DIGEST,
    MANIFEST_SCHEMA,
    PARITY_REPORT,
    file_entries,
    json_schema,
    write_manifest,
)
from mobile_o_export.bundle.verdicts import write_verdicts
from mobile_o_export.errors import GateError, UsageError
from mobile_o_export.exporting.making import Cost, Making, missed
from mobile_o_export.parity.judge import Row, Status, verdict
from mobile_o_export.plan import room_bytes
from mobile_o_export.progress import Done, Progress

if TYPE_CHECKING:
    from mobile_o_export.cache.store import Store
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.targets import Target


@dataclass(frozen=True)
class ExportResult:
    """A finished export: where the bundle lies, the verdicts, the costs; what each target's chains took."""

    bundle: Path
    rows: tuple[Row, ...]
    costs: tuple[Cost, ...]
    chain_seconds: Mapping[str, float]


def export_bundle(
    checkpoint: Checkpoint,
    targets: Sequence[Target],
    components: Sequence[str],
    golden: Path | None,
    out: Path,
    bundle_version: str,
    progress: Progress,
    calibration: Sequence[Path] = (),
    store: Store | None = None,
    jobs: int = 1,
    max_memory_bytes: int | None = None,
) -> ExportResult:
    """Lowers, runs, compares and packs; ``out`` appears when everything passed.

    Args:
        checkpoint: what to export.
        targets: where to.
        components: names; all where none are given.
        golden: a recorded golden, or None to record one.
        out: the bundle's folder.
        bundle_version: goes into the manifest.
        progress: told what happens.
        calibration: further goldens, beside the bundle's, to calibrate activations on.
        store: the cache; what is there is not made again. The bundle is the same without.
        jobs: how many components are lowered or verified at once. Above one, each is in a process of its
            own, which is spawned: a script that calls this needs ``if __name__ == "__main__":``. The bundle
            is the same.
        max_memory_bytes: what the estimates of those at once may add up to; what is available if None.

    Raises:
        UsageError: ``out`` is there already, or the targets skip every component; nothing was done.
        UnsupportedError: something is refused, or needs more than ``max_memory_bytes``; nothing was done.
        MissingToolError: a backend's packages are not installed; nothing was done.
        GoldenError: a golden does not belong to the checkpoint, or was changed meanwhile.
        CheckpointError: a file of the checkpoint was changed meanwhile; nothing is left at ``out``.
        GateError: an output missed its gate; the bundle lies in ``<out>.failed`` for inspection.
        OutOfMemoryError: a process of ``jobs`` was killed; nothing is left at ``out``.
    """
    making = Making.of(
        checkpoint, targets, components, golden, calibration, store, jobs, max_memory_bytes, progress
    )
    failed = out.parent / f"{out.name}.failed"
    _require_replaceable(failed)
    room = room_bytes(making.items)
    with staged_folder(out, room, lambda phrase: progress("disk", "", Done(phrase))) as folder:
        result = _export_into(folder, making, bundle_version)
        making.require_unchanged()
        if verdict(result.rows) is not Status.PASSED:
            shutil.rmtree(failed, ignore_errors=True)
            folder.rename(failed)
            raise ParityError(replace(result, bundle=failed))
    return replace(result, bundle=out)


def _export_into(folder: Path, making: Making, bundle_version: str) -> ExportResult:
    """Makes everything in ``folder`` and writes report and manifest."""
    sources = making.furnish(folder)
    (folder / MANIFEST_SCHEMA).write_text(json_schema())
    made = making.components(folder, making.items, bundle_version, sources)
    chained = making.chains(folder, made.manifest, [target.name for target in making.targets])
    rows = (*made.rows, *chained.rows)
    making.progress("bundle", "", "hashing its files")
    files = file_entries(folder)
    write_verdicts(folder, made.manifest.model_copy(update={"files": files}), rows)
    files |= file_entries(folder, [PARITY_REPORT])
    # In the order of the paths' parts, as if all were listed at once: equal bundles have equal manifests.
    listed = dict(sorted(files.items(), key=lambda item: item[0].split("/")))
    write_manifest(folder, made.manifest.model_copy(update={"files": listed}))
    return ExportResult(folder, rows, made.costs, chained.seconds)


class ParityError(GateError):
    """An export whose outputs missed their gates.

    Attributes:
        result: what came of it all the same.
    """

    def __init__(self, result: ExportResult) -> None:
        self.result = result
        super().__init__(
            f"{missed(result.rows)}. The bundle is in {result.bundle} for inspection; do not ship it."
        )


def _require_replaceable(failed: Path) -> None:
    """Raises UsageError where a failed bundle would have to go, but something of the user's lies."""
    if (failed.exists() or failed.is_symlink()) and not (failed / MANIFEST_DIGEST).is_file():
        raise UsageError(
            f"{failed}: exists already and is no bundle; one that misses its gates would be put there. "
            "Move it away, or choose another --out."
        )
