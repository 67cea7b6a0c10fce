"""Checks of one component on one target: its files against the manifest, its numbers against their record."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from mobile_o_export.backends.contents import Contents, contradiction, differing
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle.findings import Finding
from mobile_o_export.bundle.manifest import ComponentEntry, Damage, Manifest, TargetEntry
from mobile_o_export.bundle.runners import artifact_of
from mobile_o_export.bundle.weights import WeightsRecord
from mobile_o_export.compression.check import WEIGHTS, least_db
from mobile_o_export.compression.form import Form
from mobile_o_export.errors import BundleError, ExportError, MissingToolError
from mobile_o_export.members import Members
from mobile_o_export.parity.gates import Gate, Gates, shipped_gates
from mobile_o_export.precision import Precision

SHOWN = 5
"""Of constants that differ, so many get a row."""


def record_name(component: str, *, own_folder: bool) -> str:
    """What a component's record of weights is called: where several share a folder, its name comes first."""
    return WEIGHTS if own_folder else f"{component}.{WEIGHTS}"


def read_record(folder: Path, entry: ComponentEntry, component: str) -> WeightsRecord:
    """The record of weights of one component.

    Raises:
        BundleError: it is missing or damaged.
    """
    names = [name for name in entry.files if PurePosixPath(name).name in (WEIGHTS, f"{component}.{WEIGHTS}")]
    if len(names) != 1:
        raise BundleError(f"{folder}: {component} has no {WEIGHTS} among its files.")
    return Members(folder, BundleError).json(names[0], WeightsRecord)


def check_component(folder: Path, manifest: Manifest, target: str, component: str) -> list[Finding]:
    """What can be said of one component without computing anything.

    Raises:
        MissingToolError: this host cannot read the files.
    """
    entry = manifest.targets[target].components[component]
    vendor = backend(manifest.targets[target].backend)
    try:
        record = read_record(folder, entry, component)
        contents = vendor.contents(*artifact_of(folder, entry), component)
    except MissingToolError:
        raise
    except (ExportError, OSError) as error:
        problem = Damage(WEIGHTS, str(error))
        return [Finding(target, component, WEIGHTS, "can be read", (problem,))]

    def finding(checked: str, rule: str, problems: Iterable[Damage]) -> Finding:
        return Finding(target, component, checked, rule, tuple(problems))

    return [
        finding("files", "the manifest's", _misfiled(manifest, entry)),
        finding("contract", "what the files declare", _contradictions(manifest, entry, contents, component)),
        finding("programs", "as exported", _differing(record.programs, contents.programs)),
        finding("constants", "restored as exported", _differing(record.constants, contents.constants)),
        finding(WEIGHTS, "what it says of each weight holds", _unlikely(record)),
        finding("gate", "of the weights' precisions", _loosened(entry, record, shipped_gates())),
    ]


def check_chain_gate(folder: Path, manifest: Manifest, target: str) -> Finding:
    """The gates of whole chains, which follow from those of the components."""
    entry = manifest.targets[target]
    rule = "of its components' gates"
    if not entry.exported:
        return Finding(target, "pipeline", "gates", rule)
    try:
        wanted = shipped_gates().of_chain(dict(_judged(folder, entry)))
    except ExportError as error:
        return Finding(target, "pipeline", "gates", rule, (Damage("gates", str(error)),))
    problems = [
        Damage(name, f"is {value}, and follows as {getattr(wanted, name)}")
        for name, value in (entry.chain_gate or wanted).model_dump().items()
        if value != getattr(wanted, name)
    ]
    if entry.chain_gate is None:
        problems = [Damage("gates", "are missing")]
    return Finding(target, "pipeline", "gates", rule, tuple(problems))


def _judged(folder: Path, entry: TargetEntry) -> Iterator[tuple[str, tuple[Collection[Precision], Gate]]]:
    """Each component's precisions and gate."""
    for name in entry.exported:
        part = entry.components[name]
        assert part.recipe is not None
        assert part.gate is not None
        record = read_record(folder, part, name)
        yield name, ((part.recipe.floating, *record.precisions), part.gate)


def _misfiled(manifest: Manifest, entry: ComponentEntry) -> Iterator[Damage]:
    """Files that are not in the bundle, graphs whose file is not among them, and their size."""
    listed = [name for name in entry.files if name in manifest.files]
    for name in sorted(set(entry.files) - set(listed)):
        yield Damage(name, "is no file of the bundle")
    for graph in entry.graphs:
        place = (PurePosixPath(entry.folder) / graph.file).as_posix()
        if not any(name == place or name.startswith(f"{place}/") for name in manifest.files):
            yield Damage(place, f"is no file of the bundle, and {graph.spec.name} should be in it")
    size = sum(manifest.files[name].size_bytes for name in listed)
    if size != entry.size_bytes:
        yield Damage("size_bytes", f"is {entry.size_bytes}, and the files have {size}")


def _contradictions(
    manifest: Manifest, entry: ComponentEntry, contents: Contents, component: str
) -> Iterator[Damage]:
    """Graphs that are no function of the component, are not in their file, or are another there."""
    functions = {function.name for function in manifest.functions.get(component, ())}
    for graph in entry.graphs:
        name = graph.spec.name
        if strange := sorted(set(graph.spec.functions) - functions):
            yield Damage(name, f"is said to do {strange[0]}, which is no function of {component}")
        if contents.interfaces and name not in contents.interfaces and graph.spec.functions:
            yield Damage(name, f"is not in its file under the name {graph.entry!r}")
        elif name not in contents.interfaces and graph.entry:
            yield Damage(name, f"has the entry {graph.entry!r}, and its file has none")
        elif name in contents.interfaces and (
            problem := contradiction(graph.spec, contents.interfaces[name])
        ):
            yield Damage(name, problem)


def _differing(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[Damage]:
    """Names with other digests than recorded; of many the first few."""
    problems = differing(recorded, found)
    shown = [Damage(name, f"{how} (of {len(recorded)} recorded)") for name, how in problems[:SHOWN]]
    if len(problems) > SHOWN:
        shown.append(Damage(f"{len(problems) - SHOWN} more", "differ"))
    return shown


def _unlikely(record: WeightsRecord) -> Iterator[Damage]:
    """What a record says of a weight and cannot be."""
    for weight in record.weights:
        if weight.precision.floating or not Form.exists(weight.precision, weight.shape):
            yield Damage(weight.name, f"cannot be stored as {weight.precision}")
            continue
        form = Form.of(weight.precision, weight.shape)
        if weight.size_bytes != form.size_bytes:
            yield Damage(
                weight.name, f"takes {form.size_bytes} bytes as {weight.precision}, not {weight.size_bytes}"
            )
        if weight.least_db != least_db(weight.precision):
            yield Damage(weight.name, f"has to reach {least_db(weight.precision)} dB, not {weight.least_db}")
        if weight.snr_db < round(weight.least_db, 2):
            yield Damage(weight.name, f"is {weight.snr_db} dB from its source, less than {weight.least_db}")
        if lost := [place for place in weight.places if place not in record.constants] or not weight.places:
            yield Damage(weight.name, f"is in no constant of the files ({lost})")


def _loosened(entry: ComponentEntry, record: WeightsRecord, gates: Gates) -> Sequence[Damage]:
    """A gate that is looser than its precisions' own, without a reason."""
    assert entry.recipe is not None
    try:
        gates.effective((entry.recipe.floating, *record.precisions), entry.gate)
    except ValueError as error:
        return [Damage("gate", f"{error}; it is {entry.gate.snr_db:g} dB" if entry.gate else str(error))]
    return []
