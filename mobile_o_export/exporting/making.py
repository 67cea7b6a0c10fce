"""What every export does, whole or in shares: components are lowered and verified, then chains over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mobile_o_export import memory
from mobile_o_export.backends import versions
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle import configs
from mobile_o_export.bundle.manifest import (
    GOLDEN_FOLDER,
    SCHEMA,
    CheckpointEntry,
    ComponentEntry,
    Manifest,
    TargetEntry,
)
from mobile_o_export.bundle.outcomes import OutcomeWriter
from mobile_o_export.cache.exports import ExportCache
from mobile_o_export.components.registry import component
from mobile_o_export.errors import GoldenError, MissingToolError, UnsupportedError, UsageError
from mobile_o_export.exporting.chaining import Chaining
from mobile_o_export.exporting.lowering import Lowering
from mobile_o_export.exporting.verifying import Verifying
from mobile_o_export.golden import Golden
from mobile_o_export.golden.record import record_golden, truth_of
from mobile_o_export.jobs import Pool
from mobile_o_export.parity.gates import ChainGate, shipped_gates
from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.plan import REFUSED_HINT, PlanItem, plan, short_of_memory, within_memory
from mobile_o_export.progress import Done, Progress
from mobile_o_export.snapshot import Snapshot

if TYPE_CHECKING:
    from mobile_o_export.cache.store import Store
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.targets import Target


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
class Made:
    """Components in a folder: what a manifest says of them, the verdicts, the costs."""

    manifest: Manifest
    rows: tuple[Row, ...]
    costs: tuple[Cost, ...]


@dataclass(frozen=True)
class Chained:
    """The verdicts on chains, and what each target's took."""

    rows: tuple[Row, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Making:
    """What is exported, and how it is done.

    Attributes:
        checkpoint: what is exported.
        targets: where to.
        items: what it comes to, nothing of it refused.
        golden: what files are compared with; recorded on the shipped prompts if None.
        calibration: further goldens to calibrate activations on.
        cache: where results are kept.
        pool: what runs jobs.
        progress: told what happens.
    """

    checkpoint: Checkpoint
    targets: Sequence[Target]
    items: Sequence[PlanItem]
    golden: Golden | None
    calibration: Sequence[Golden]
    cache: ExportCache
    pool: Pool
    progress: Progress

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        targets: Sequence[Target],
        components: Sequence[str],
        golden: Path | None,
        calibration: Sequence[Path],
        store: Store | None,
        jobs: int,
        max_memory_bytes: int | None,
        progress: Progress,
    ) -> Self:
        """What ``export_bundle`` is asked for; nothing is done yet.

        Raises:
            UsageError: the targets skip every component.
            UnsupportedError: something is refused, or needs more than ``max_memory_bytes``.
            MissingToolError: a backend's packages are not installed.
            GoldenError: a golden is damaged.
        """
        items = within_memory(plan(checkpoint, targets, components), max_memory_bytes)
        _require_possible(items, targets)
        for item in items:
            if item.caution:
                progress(item.target, item.component, Done(item.caution))
        available = memory.available_bytes()
        if short := short_of_memory(items, available):
            progress("memory", "", Done(short))
        recorded_before = Snapshot.of(*calibration, *([] if golden is None else [golden]))

        def require_unchanged() -> None:
            checkpoint.require_unchanged()
            recorded_before.require_unchanged(GoldenError, "Run the command again.")

        return cls(
            checkpoint=checkpoint,
            targets=targets,
            items=items,
            golden=None if golden is None else Golden.open(golden),
            calibration=[Golden.open(path) for path in calibration],
            cache=ExportCache(store, checkpoint, require_unchanged),
            pool=Pool(
                jobs,
                available if max_memory_bytes is None else max_memory_bytes,
                lambda phrase: progress("jobs", "", Done(phrase)),
            ),
            progress=progress,
        )

    def require_unchanged(self) -> None:
        """Raises CheckpointError or GoldenError where a file has changed since it was opened."""
        self.cache.require_unchanged()

    def furnish(self, folder: Path) -> Mapping[str, str]:
        """Puts into ``folder`` what every component is made with: configurations, tokenizer and golden.

        Returns:
            Where the configurations come from.

        Raises:
            GoldenError: a golden is not of the checkpoint.
        """
        self.progress("checkpoint", "", "computing the digest")
        for recorded in (*self.calibration, *([] if self.golden is None else [self.golden])):
            recorded.require_checkpoint(self.checkpoint.digest)
            recorded.require_settings(*truth_of(self.checkpoint))
        sources = configs.write_configs(self.checkpoint, folder)
        place = folder / GOLDEN_FOLDER
        if self.golden is not None:
            place.mkdir()
            self.golden.copy_into(place)
        elif self.cache.golden(place, lambda: record_golden(self.checkpoint, None, place, self.progress)):
            self.progress("golden", "", Done("from the cache"))
        return sources

    def components(
        self, folder: Path, items: Sequence[PlanItem], bundle_version: str, sources: Mapping[str, str]
    ) -> Made:
        """Lowers and verifies ``items`` in ``folder``, which is furnished: that gave ``sources``."""
        golden = Golden.open(folder / GOLDEN_FOLDER)
        lowering = Lowering(folder, self.checkpoint, [golden, *self.calibration], self.cache, self.progress)
        self.pool.run(lowering.jobs(items, self.targets))
        lowered = lowering.lowered
        # In the plan's order, in whatever order they were finished.
        entries: dict[str, dict[str, ComponentEntry]] = {}
        for item in items:
            entries.setdefault(item.target, {})[item.component] = (
                ComponentEntry(skipped=item.skip) if item.request is None else lowered[item.key].entry
            )
        targets = [target for target in self.targets if target.name in entries]
        for target in targets:
            graphs = {name: entry.graphs for name, entry in entries[target.name].items() if entry.graphs}
            if graphs:
                backend(target.backend).finish(folder / target.name, graphs, target.options)
        manifest = self._manifest(targets, entries, bundle_version, sources)
        verifying = Verifying(folder, manifest, golden, self.cache, self.progress)
        self.pool.run(verifying.jobs(items))
        rows: list[Row] = []
        costs = []
        for item in items:
            if item.request is None:
                continue
            of, found = lowered[item.key], verifying.found[item.key]
            rows += found.rows
            costs.append(
                Cost(
                    target=item.target,
                    component=item.component,
                    lower_seconds=of.seconds,
                    lower_peak_bytes=of.peak_bytes,
                    lower_cached=of.cached,
                    verify_seconds=found.seconds,
                    verify_peak_bytes=found.peak_bytes,
                    verify_cached=found.cached,
                    size_bytes=of.entry.size_bytes,
                )
            )
        return Made(manifest, tuple(rows), tuple(costs))

    def chains(self, folder: Path, manifest: Manifest, targets: Sequence[str]) -> Chained:
        """Judges the chains of ``targets``, all of whose components are in ``folder``."""
        golden = Golden.open(folder / GOLDEN_FOLDER)
        outcomes = OutcomeWriter(folder, golden, targets)
        chaining = Chaining(folder, manifest, golden, outcomes, self.cache, self.progress)
        self.pool.run(chaining.jobs(targets, self.items))
        outcomes.write()
        return Chained(
            rows=tuple(row for target in targets for row in chaining.found[target].rows),
            seconds={target: chaining.found[target].seconds for target in targets},
        )

    def _manifest(
        self,
        targets: Sequence[Target],
        entries: Mapping[str, Mapping[str, ComponentEntry]],
        bundle_version: str,
        sources: Mapping[str, str],
    ) -> Manifest:
        """Of the components in ``entries``, by target; no file is listed yet."""
        checkpoint = self.checkpoint
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
                    components=dict(entries[target.name]),
                    chain_gate=_chain_gate(self.items, target.name),
                )
                for target in targets
            },
            calibration=tuple(recorded.index.sha256 for recorded in self.calibration),
            files={},
        )


def missed(rows: Sequence[Row]) -> str:
    """How many of ``rows`` did not pass, and which is the first."""
    bad = [row for row in rows if row.status is not Status.PASSED]
    first = bad[0]
    return (
        f"{len(bad)} of {len(rows)} outputs missed their gate, the first on {first.target}, "
        f"{first.component}.{first.function} {first.output}: {first.reason}"
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


def _chain_gate(items: Sequence[PlanItem], target: str) -> ChainGate | None:
    """What chains over the components of ``target`` must reach."""
    judged = {
        item.component: (item.precisions, item.gate)
        for item in items
        if item.target == target and item.gate is not None
    }
    return shipped_gates().of_chain(judged) if judged else None
