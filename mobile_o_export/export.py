"""From a checkpoint to a verified bundle."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_o_export import memory
from mobile_o_export.atomic import staged_folder
from mobile_o_export.backends import versions
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle import configs
from mobile_o_export.bundle.chains import verify_chains
from mobile_o_export.bundle.manifest import (
    GOLDEN_FOLDER,
    MANIFEST_DIGEST,
    MANIFEST_SCHEMA,
    PARITY_REPORT,
    SCHEMA,
    CheckpointEntry,
    ComponentEntry,
    Manifest,
    TargetEntry,
    file_entries,
    json_schema,
    write_manifest,
)
from mobile_o_export.bundle.outcomes import OutcomeWriter
from mobile_o_export.bundle.verdicts import write_verdicts
from mobile_o_export.cache.exports import ExportCache
from mobile_o_export.components.registry import component
from mobile_o_export.errors import GateError, GoldenError, MissingToolError, UnsupportedError, UsageError
from mobile_o_export.exporting.lowering import Lowering
from mobile_o_export.exporting.verifying import Verifying, told
from mobile_o_export.golden import Golden
from mobile_o_export.golden.record import GoldenRecording, truth_of
from mobile_o_export.golden.requests import load_requests
from mobile_o_export.jobs import Pool
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.gates import ChainGate, shipped_gates
from mobile_o_export.parity.judge import Row, Status, verdict
from mobile_o_export.plan import REFUSED_HINT, PlanItem, plan, within_memory
from mobile_o_export.progress import Done, Progress
from mobile_o_export.snapshot import Snapshot

if TYPE_CHECKING:
    from mobile_o_export.cache.store import Store
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.targets import Target

GOLDEN_ROOM_BYTES = 256 * 2**20
WORKING_COPIES = 2.5
"""Room for the files beside the parts they are merged from, over their estimated size."""


@dataclass(frozen=True)
class Cost:
    """What one component on one target took; ``…_cached`` where it was in the cache."""

    target: str
    component: str
    lower_seconds: float
    lower_peak_bytes: int
    lower_cached: bool
    verify_seconds: float
    verify_peak_bytes: int
    verify_cached: bool
    size_bytes: int


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
    items = within_memory(plan(checkpoint, targets, components), max_memory_bytes)
    _require_possible(items, targets)
    failed = out.parent / f"{out.name}.failed"
    _require_replaceable(failed)
    given = None if golden is None else Golden.open(golden)
    more = [Golden.open(path) for path in calibration]
    recorded_before = Snapshot.of(*calibration, *([] if golden is None else [golden]))

    def require_unchanged() -> None:
        checkpoint.require_unchanged()
        recorded_before.require_unchanged(GoldenError, "Run the command again.")

    cache = ExportCache(store, checkpoint, require_unchanged)
    pool = Pool(
        jobs,
        memory.available_bytes() if max_memory_bytes is None else max_memory_bytes,
        lambda phrase: progress("jobs", "", Done(phrase)),
    )
    room = GOLDEN_ROOM_BYTES + int(WORKING_COPIES * sum(item.size_bytes for item in items))
    with staged_folder(out, room, lambda phrase: progress("disk", "", Done(phrase))) as folder:
        progress("checkpoint", "", "computing the digest")
        for recorded in (*more, *([] if given is None else [given])):
            recorded.require_checkpoint(checkpoint.digest)
            recorded.require_settings(*truth_of(checkpoint))
        sources = configs.write_configs(checkpoint, folder)
        (folder / MANIFEST_SCHEMA).write_text(json_schema())
        place = folder / GOLDEN_FOLDER
        if given is not None:
            place.mkdir()
            given.copy_into(place)
        elif cache.golden(place, lambda: record_golden(checkpoint, None, place, progress)):
            progress("golden", "", Done("from the cache"))
        result = _export_into(
            folder, checkpoint, targets, items, more, bundle_version, sources, progress, cache, pool
        )
        require_unchanged()
        if verdict(result.rows) is not Status.PASSED:
            shutil.rmtree(failed, ignore_errors=True)
            folder.rename(failed)
            raise ParityError(replace(result, bundle=failed))
    return replace(result, bundle=out)


class ParityError(GateError):
    """An export whose outputs missed their gates.

    Attributes:
        result: what came of it all the same.
    """

    def __init__(self, result: ExportResult) -> None:
        self.result = result
        bad = [row for row in result.rows if row.status is not Status.PASSED]
        first = bad[0]
        super().__init__(
            f"{len(bad)} of {len(result.rows)} outputs missed their gate, the first on {first.target}, "
            f"{first.component}.{first.function} {first.output}: {first.reason}. The bundle is in "
            f"{result.bundle} for inspection; do not ship it."
        )


def record_golden(checkpoint: Checkpoint, prompts: Path | None, folder: Path, progress: Progress) -> None:
    """Records a golden of ``checkpoint`` on ``prompts`` (the shipped ones if None) into ``folder``."""
    requests, images = load_requests(prompts)
    recording = GoldenRecording(checkpoint, images, lambda phrase: progress("golden", "", phrase))
    recording.record(requests, folder)


def _require_replaceable(failed: Path) -> None:
    """Raises UsageError where a failed bundle would have to go, but something of the user's lies."""
    if (failed.exists() or failed.is_symlink()) and not (failed / MANIFEST_DIGEST).is_file():
        raise UsageError(
            f"{failed}: exists already and is no bundle; one that misses its gates would be put there. "
            "Move it away, or choose another --out."
        )


def _require_possible(items: Sequence[PlanItem], targets: Sequence[Target]) -> None:
    if refused := [item for item in items if item.refusal]:
        reasons = "; ".join(f"{item.target}, {item.component}: {item.refusal}" for item in refused)
        raise UnsupportedError(f"{reasons}. {REFUSED_HINT}")
    if not any(item.request for item in items):
        reasons = "; ".join(f"{item.target}, {item.component}: {item.skip}" for item in items)
        raise UsageError(f"nothing to export, everything chosen is skipped: {reasons}. Choose others.")
    for name in dict.fromkeys(target.backend for target in targets):
        probe = backend(name).probe()
        if probe.problem:
            raise MissingToolError(f"the {name} backend: {probe.problem}. {probe.remedy}")


def _export_into(
    folder: Path,
    checkpoint: Checkpoint,
    targets: Sequence[Target],
    items: Sequence[PlanItem],
    calibrated_on: Sequence[Golden],
    bundle_version: str,
    sources: Mapping[str, str],
    progress: Progress,
    cache: ExportCache,
    pool: Pool,
) -> ExportResult:
    """Lowers and verifies every item inside ``folder`` and writes report and manifest."""
    golden = Golden.open(folder / GOLDEN_FOLDER)
    lowering = Lowering(folder, checkpoint, [golden, *calibrated_on], cache, progress)
    pool.run(lowering.jobs(items, targets))
    lowered = lowering.lowered
    # In the plan's order, in whatever order they were finished.
    entries: dict[str, dict[str, ComponentEntry]] = {target.name: {} for target in targets}
    for item in items:
        entries[item.target][item.component] = (
            ComponentEntry(skipped=item.skip)
            if item.request is None
            else lowered[item.target, item.component].entry
        )
    for target in targets:
        graphs = {name: entry.graphs for name, entry in entries[target.name].items() if entry.graphs}
        if graphs:
            backend(target.backend).finish(folder / target.name, graphs, target.options)

    manifest = _manifest(checkpoint, targets, items, entries, bundle_version, sources)
    further = tuple(recorded.index.sha256 for recorded in calibrated_on)
    manifest = manifest.model_copy(update={"calibration": further})
    verifying = Verifying(folder, manifest, golden, cache, progress)
    pool.run(verifying.jobs(items))
    rows: list[Row] = []
    costs = []
    for target_name, name in (item.key for item in items if item.request is not None):
        of, found = lowered[target_name, name], verifying.found[target_name, name]
        rows += found.rows
        costs.append(
            Cost(
                target=target_name,
                component=name,
                lower_seconds=of.seconds,
                lower_peak_bytes=of.peak_bytes,
                lower_cached=of.cached,
                verify_seconds=found.seconds,
                verify_peak_bytes=found.peak_bytes,
                verify_cached=found.cached,
                size_bytes=of.entry.size_bytes,
            )
        )
    chain_seconds = {}
    outcomes = OutcomeWriter(folder, golden)
    for target in targets:
        started = time.monotonic()
        judge = partial(verify_chains, folder, manifest, golden, target.name, progress, outcomes.add)
        chained, cached = cache.chains(folder, manifest, golden, target.name, outcomes, judge)
        if not cached:
            memory.release()
        chain_seconds[target.name] = time.monotonic() - started
        if chained:
            progress(target.name, CHAIN, told(chained, cached))
        rows += chained
    outcomes.write()
    progress("bundle", "", "hashing its files")
    files = file_entries(folder)
    write_verdicts(folder, manifest.model_copy(update={"files": files}), tuple(rows))
    files |= file_entries(folder, [PARITY_REPORT])
    # In the order of the paths' parts, as if all were listed at once: equal bundles have equal manifests.
    listed = dict(sorted(files.items(), key=lambda item: item[0].split("/")))
    write_manifest(folder, manifest.model_copy(update={"files": listed}))
    return ExportResult(folder, tuple(rows), tuple(costs), chain_seconds)


def _chain_gate(items: Sequence[PlanItem], target: str) -> ChainGate | None:
    """What chains over the components of ``target`` must reach."""
    judged = {
        item.component: (item.precisions, item.gate)
        for item in items
        if item.target == target and item.gate is not None
    }
    return shipped_gates().of_chain(judged) if judged else None


def _manifest(
    checkpoint: Checkpoint,
    targets: Sequence[Target],
    items: Sequence[PlanItem],
    entries: dict[str, dict[str, ComponentEntry]],
    bundle_version: str,
    sources: Mapping[str, str],
) -> Manifest:
    tools = {"torch", "transformers", "diffusers", "numpy", "mobile-o-export"}
    for target in targets:
        tools |= backend(target.backend).probe().versions.keys()
    exported = dict.fromkeys(name for components in entries.values() for name in components)
    return Manifest(
        schema_version=SCHEMA,
        bundle_version=bundle_version,
        made_with=versions.installed(sorted(tools)),
        checkpoint=CheckpointEntry(
            digest=checkpoint.digest,
            parameters=sum(tensor.parameters for tensor in checkpoint.tensors.values()),
            component_parameters={
                name: sum(tensor.parameters for tensor in checkpoint.component_tensors(name))
                for name in exported
            },
            adapter=None if checkpoint.lora is None else checkpoint.lora.digest,
            sources=dict(sources),
        ),
        functions={name: component(name).functions(checkpoint) for name in exported},
        targets={
            target.name: TargetEntry(
                backend=target.backend,
                description=target.description,
                sequence=target.sequence,
                options=target.options,
                least_runtimes=dict(backend(target.backend).least_runtimes(target.options)),
                components=entries[target.name],
                chain_gate=_chain_gate(items, target.name),
            )
            for target in targets
        },
        files={},
    )
