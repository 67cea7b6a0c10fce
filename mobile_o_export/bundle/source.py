"""Checks of a bundle against the checkpoint that it was made from: everything that can be is derived again.

A bundle whose every record was rewritten together agrees with itself. It does not agree with its source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export import memory
from mobile_o_export.backends.base import LowerRequest
from mobile_o_export.backends.contents import differing
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle import configs
from mobile_o_export.bundle.chains import chains_over, judge_chains
from mobile_o_export.bundle.findings import BUNDLE, Finding
from mobile_o_export.bundle.layout import LICENCE_NOTICE
from mobile_o_export.bundle.manifest import (
    CONFIG_FOLDER,
    EVALUATION_FOLDER,
    TOKENIZER_FOLDER,
    Damage,
    FileEntry,
    Manifest,
    file_entries,
)
from mobile_o_export.bundle.parts import read_record
from mobile_o_export.bundle.runners import artifact_of
from mobile_o_export.calibration import Calibration
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.golden.compare import LEAST_DB
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.gates import ChainGate, Gate
from mobile_o_export.parity.judge import Judge, Row
from mobile_o_export.pipelines.pipeline import TORCH
from mobile_o_export.reference import TorchRunners, torch_pipeline

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.golden import Golden
    from mobile_o_export.parity.metrics import Array
    from mobile_o_export.progress import Progress

SHOWN = 5
"""Of constants that differ, so many get a row."""

LAST_PLACES = 2.0**-9
"""Two units in the last place of fp16: what another CPU's sums may make of a weight that was folded."""

DERIVED = (CONFIG_FOLDER, TOKENIZER_FOLDER, EVALUATION_FOLDER)
"""Folders whose files follow from the checkpoint's folder to the byte."""

TORCH_GATE = Gate(snr_db=LEAST_DB)
TORCH_CHAIN_GATE = ChainGate(
    image_features_db=LEAST_DB,
    hidden_states_db=LEAST_DB,
    conditioning_db=LEAST_DB,
    logits_db=LEAST_DB,
    latent_db=LEAST_DB,
    psnr_db=LEAST_DB,
    ssim=0.9999,
    tie=0.0001,
)
"""What PyTorch has to reach against what it recorded, perhaps on another machine."""


class Source:
    """The checkpoint that a bundle should have been made from, and the checks against it.

    Args:
        checkpoint: the one that was given.
        calibrated_on: the further goldens that activations were calibrated on, if there were any.
    """

    def __init__(self, checkpoint: Checkpoint, calibrated_on: Sequence[Golden] = ()) -> None:
        self.checkpoint = checkpoint
        self._calibrated_on = calibrated_on

    def check_bundle(self, manifest: Manifest) -> Iterator[Finding]:
        """Digest, numbers, contracts and every file that follows from the checkpoint's folder."""
        checkpoint, entry = self.checkpoint, manifest.checkpoint
        adapter = None if checkpoint.lora is None else checkpoint.lora.digest
        wanted: dict[str, Any] = {
            "digest": checkpoint.digest,
            "adapter": adapter,
            "parameters": sum(tensor.parameters for tensor in checkpoint.tensors.values()),
            "component_parameters": {
                name: sum(tensor.parameters for tensor in checkpoint.component_tensors(name))
                for name in manifest.functions
            },
        }
        problems = [
            Damage(f"checkpoint.{name}", f"is {getattr(entry, name)}, and the checkpoint's is {value}")
            for name, value in wanted.items()
            if getattr(entry, name) != value
        ]
        problems += [
            Damage(f"functions.{name}", "is another contract than the checkpoint's")
            for name, functions in manifest.functions.items()
            if name not in COMPONENT_NAMES or component(name).functions(checkpoint) != functions
        ]
        yield Finding(BUNDLE, "source", "manifest", "the checkpoint's", tuple(problems))
        with TemporaryDirectory(prefix="mobile-o-source-") as work:
            sources = configs.write_configs(checkpoint, Path(work))
            again = {
                name: file.sha256
                for name, file in file_entries(Path(work)).items()
                if name == LICENCE_NOTICE or name.startswith(tuple(f"{part}/" for part in DERIVED))
            }
        shipped = {
            name: file.sha256
            for name, file in manifest.files.items()
            if name == LICENCE_NOTICE or name.startswith(tuple(f"{part}/" for part in DERIVED))
        }
        files = [
            Damage(name, f"{how}, by the checkpoint's folder") for name, how in differing(again, shipped)
        ]
        if sources != entry.sources:
            files.append(Damage("checkpoint.sources", "are not the files that the checkpoint's folder has"))
        yield Finding(BUNDLE, "source", "copied and derived files", "the checkpoint's", tuple(files))

    def check_component(
        self, folder: Path, manifest: Manifest, golden: Golden, target: str, name: str, progress: Progress
    ) -> Iterator[Finding]:
        """The component lowered again by the recipe in the manifest: its graphs, programs and constants."""
        entry = manifest.targets[target].components[name]
        request = self._request(manifest, target, name)
        if request.recipe.calibrated:
            given = tuple(recorded.index.sha256 for recorded in self._calibrated_on)
            if given != manifest.calibration:
                reason = "it was calibrated on further goldens: give the same ones with --calibration"
                yield Finding(target, name, "weights", "lowered again", undecided=reason)
                return
            calibration = Calibration(self.checkpoint, [golden, *self._calibrated_on])
            statistics = calibration.of(name, lambda phrase: progress(target, name, phrase))
            request = replace(request, statistics=statistics)
        vendor = backend(manifest.targets[target].backend)
        with TemporaryDirectory(prefix="mobile-o-lowered-") as work:
            place = Path(work)
            artifact = vendor.lower(
                request, self.checkpoint, place, lambda phrase: progress(target, name, f"again: {phrase}")
            )
            memory.release()
            progress(target, name, "comparing its constants with the checkpoint's")
            problems = [] if artifact.graphs == entry.graphs else [Damage("graphs", "have another contract")]
            again = vendor.contents(artifact, place, name)
            record = read_record(folder, entry, name)
            problems += [Damage(*found) for found in differing(again.programs, record.programs)]
            if again.constants != record.constants:
                shipped = vendor.constants(*artifact_of(folder, entry), name)
                problems += _further(vendor.constants(artifact, place, name), shipped)
            weights = {row.name: (row.precision, row.shape) for row in artifact.weights}
            if weights != {weight.name: (weight.precision, weight.shape) for weight in record.weights}:
                problems.append(Damage("weights.json", "lists other weights than the recipe compresses"))
        yield Finding(target, name, "weights", "lowered again from the checkpoint", tuple(problems[:SHOWN]))

    def judge(
        self, manifest: Manifest, golden: Golden, names: Sequence[str], chains: bool, progress: Progress
    ) -> list[Row]:
        """The verdict on the golden: PyTorch on the checkpoint, against what is said to be recorded of it."""
        rows: list[Row] = []
        runners = TorchRunners(self.checkpoint)
        for name in names:
            with runners.open(name) as runner:
                judge = Judge(TORCH, name, runner.runtime, TORCH_GATE)
                specs = {
                    (function.name, output.name): output
                    for function in manifest.functions[name]
                    for output in function.outputs
                }
                for case in golden.cases(name):
                    progress(TORCH, name, case.name)
                    for index, step in enumerate(case.steps):
                        outputs = runner.run(step.function, golden.inputs(step))
                        label = case.name if len(case.steps) == 1 else f"{case.name}#{index}"
                        rows += [
                            judge.compare(
                                step.function,
                                label,
                                specs[step.function, output],
                                golden.tensor(key),
                                outputs.get(output),
                            )
                            for output, key in step.outputs.items()
                        ]
            memory.release()
        if chains:
            found = chains_over(golden, COMPONENT_NAMES)
            rows += judge_chains(
                lambda say: torch_pipeline(self.checkpoint, keep=False, say=say),
                golden,
                found,
                TORCH,
                TORCH_CHAIN_GATE,
                progress,
            )
            progress(TORCH, CHAIN, "compared with the golden")
        return rows

    def _request(self, manifest: Manifest, target: str, name: str) -> LowerRequest:
        entry = manifest.targets[target]
        recipe = entry.components[name].recipe
        assert recipe is not None
        return LowerRequest(
            target=target,
            component=component(name),
            recipe=recipe,
            sequence=entry.sequence,
            options=entry.options,
            absent=frozenset(COMPONENT_NAMES) - set(entry.exported),
        )


def _following(files: Mapping[str, FileEntry]) -> dict[str, str]:
    """The digests of those ``files`` that follow from a checkpoint's folder."""
    parts = tuple(f"{folder}/" for folder in DERIVED)
    return {
        name: file.sha256 for name, file in files.items() if name == LICENCE_NOTICE or name.startswith(parts)
    }


def _further(derived: Iterator[tuple[str, Array]], shipped: Iterator[tuple[str, Array]]) -> Iterator[Damage]:
    """Constants that are further from the derived ones than another CPU could make them."""
    for (name, wanted), (other, found) in zip_longest(derived, shipped, fillvalue=("", np.empty(0))):
        if name != other:
            yield Damage(other or name, f"stands where the checkpoint gives {name or 'nothing'}")
            return
        if wanted.dtype != found.dtype or wanted.shape != found.shape:
            yield Damage(name, f"is {found.dtype} {found.shape}, and the checkpoint gives {wanted.dtype}")
            continue
        if np.array_equal(wanted, found):
            continue
        if not np.issubdtype(wanted.dtype, np.floating):
            yield Damage(name, "is not what the checkpoint gives")
            continue
        one, two = wanted.astype(np.float64), found.astype(np.float64)
        allowed = LAST_PLACES * np.abs(one) + LAST_PLACES**2 * np.abs(one).max()
        if wrong := int(np.count_nonzero(~(np.abs(one - two) <= allowed))):
            yield Damage(name, f"differs from what the checkpoint gives in {wrong} of {one.size} numbers")
