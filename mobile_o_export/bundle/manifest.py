"""``manifest.json``: what a bundle holds. The JSON Schema beside it is generated from these classes."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from mobile_o_export.backends.base import GraphFile
from mobile_o_export.bundle.consistent import require_functions, require_target
from mobile_o_export.components.base import FunctionSpec
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.errors import BundleError, GateError, UsageError
from mobile_o_export.legible import legible
from mobile_o_export.members import MemberKey, MemberName, Members, PlainKey, entries, is_file
from mobile_o_export.parity.gates import ChainGate, Gate
from mobile_o_export.strict import Strict, Versioned
from mobile_o_export.targets import Sequence

SCHEMA: Final = 4
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
MANIFEST_SCHEMA = "manifest.schema.json"
PARITY_REPORT = "parity.json"
GOLDEN_FOLDER = "golden"
TOKENIZER_FOLDER = "tokenizer"
CONFIG_FOLDER = "config"
VECTORS_FOLDER = "vectors"
EVALUATION_FOLDER = "evaluation"
"""The layout of a bundle."""

ID_PREFIX = "sha256:"
"""How the identity of a bundle begins: the digest of its manifest, which covers all of its files."""

SHOWN_DAMAGE = 5

MOST_BYTES = 2**50
"""Of a file, and parameters of a model."""


@dataclass(frozen=True)
class Damage:
    """One file that is not what the manifest says, and how it differs."""

    file: str
    reason: str


class DamagedBundleError(GateError):
    """A bundle whose files are not those that were exported.

    Attributes:
        damage: every file concerned.
    """

    def __init__(self, folder: Path, damage: Iterable[Damage]) -> None:
        self.damage = tuple(damage)
        shown = "; ".join(f"{legible(found.file)} {found.reason}" for found in self.damage[:SHOWN_DAMAGE])
        more = len(self.damage) - SHOWN_DAMAGE
        super().__init__(
            f"{folder}: is not what was exported: {shown}{f'; and {more} more' if more > 0 else ''}. "
            "Get the bundle again, or export it again."
        )


class FileEntry(Strict):
    """Size and digest of one file."""

    size_bytes: int = Field(ge=0, le=MOST_BYTES)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class ComponentEntry(Strict):
    """One component on one target: its graphs' I/O contracts and files, or why it is not here.

    Attributes:
        folder: where below the bundle its graphs' ``file`` starts from.
        files: its own, paths below the bundle.
        size_bytes: of those.
    """

    recipe: Recipe | None = None
    gate: Gate | None = None
    folder: MemberName | Literal[""] = ""
    files: tuple[MemberName, ...] = ()
    size_bytes: int = Field(default=0, ge=0, le=MOST_BYTES)
    graphs: tuple[GraphFile, ...] = ()
    skipped: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.skipped is None and (self.recipe is None or self.gate is None or not self.graphs):
            raise ValueError("an exported component has a recipe, a gate and graphs")
        return self


class TargetEntry(Strict):
    """One target of the bundle.

    Attributes:
        least_runtimes: the oldest version of each runtime that computes the files rightly, by its package
            or system.
        chain_gate: what whole chains must reach; none where every component is skipped.
    """

    backend: str
    description: str
    sequence: Sequence
    options: dict[str, Any]
    least_runtimes: dict[str, str] = Field(default_factory=dict)
    components: dict[PlainKey, ComponentEntry]
    chain_gate: ChainGate | None

    @property
    def exported(self) -> tuple[str, ...]:
        """The components that are here."""
        return tuple(name for name, entry in self.components.items() if entry.skipped is None)


class CheckpointEntry(Strict):
    """What the bundle was made from.

    Attributes:
        component_parameters: of each component that was exported, by name.
        sources: SHA-256 of the files that were copied from its folder, by their paths in the bundle.
    """

    digest: str
    parameters: int = Field(ge=0, le=MOST_BYTES)
    component_parameters: dict[str, Annotated[int, Field(ge=0, le=MOST_BYTES)]] = Field(default_factory=dict)
    adapter: str | None = None
    sources: dict[str, str] = Field(default_factory=dict)


class Manifest(Strict):
    """A bundle's description of itself.

    Attributes:
        schema_version: of this file's layout.
        bundle_version: the release manager's own, ``--bundle-version``.
        made_with: versions of the tools that made it.
        checkpoint: what it was made from.
        functions: each component's functions in unpadded shapes; the graphs that realise them are under
            ``targets``.
        targets: by name.
        calibration: digests of the tensors of further goldens that activations were calibrated on.
        files: every file of the bundle but this one and its digest, by path.
    """

    schema_version: Literal[4]
    bundle_version: str
    made_with: dict[str, str]
    checkpoint: CheckpointEntry
    functions: dict[PlainKey, tuple[FunctionSpec, ...]]
    targets: dict[PlainKey, TargetEntry]
    calibration: tuple[str, ...] = ()
    files: dict[MemberKey, FileEntry]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require_functions(self.functions)
        for name, entry in self.targets.items():
            require_target(name, entry, self.functions)
        return self


def json_schema() -> str:
    """The JSON Schema of ``manifest.json``."""
    schema = Manifest.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json`` and its digest; the digest covers what no file list can, the list itself."""
    content = (json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n").encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / MANIFEST_DIGEST).write_text(f"{sha256(content).hexdigest()}  {MANIFEST}\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in ``folder``.

    Raises:
        BundleError: there is no bundle, or one of another version.
        DamagedBundleError: the manifest is not what was written.
    """
    members = Members(folder, GateError)
    if not members.has(MANIFEST):
        if members.has(MANIFEST_DIGEST):
            raise DamagedBundleError(folder, [Damage(MANIFEST, "is missing")])
        raise BundleError(
            f"{folder}: is not a bundle ({MANIFEST} is missing). Give the folder that "
            "'mobile-o-export export' wrote."
        )
    try:
        recorded = members.read(MANIFEST_DIGEST) if members.has(MANIFEST_DIGEST) else b""
        if recorded.split()[:1] != [sha256(members.read(MANIFEST)).hexdigest().encode()]:
            raise DamagedBundleError(folder, [Damage(MANIFEST, f"does not match {MANIFEST_DIGEST}")])
        version = members.json(MANIFEST, Versioned).schema_version
        if version != SCHEMA:
            raise BundleError(
                f"{folder}: manifest schema {version}, and this version reads {SCHEMA}. Export it again, or "
                "use the version of mobile-o-export that made it."
            )
        return members.json(MANIFEST, Manifest)
    except DamagedBundleError:
        raise
    except GateError as error:
        raise DamagedBundleError(folder, [Damage(MANIFEST, f"is no manifest ({error})")]) from error


def manifest_digest(folder: Path) -> str:
    """Hex SHA-256 of the manifest of the bundle in ``folder``, which stands for all of its files."""
    return sha256(Members(folder, BundleError).read(MANIFEST)).hexdigest()


def require_expected(folder: Path, expected: str) -> None:
    """Raises unless the bundle in ``folder`` has the identity ``expected``, or none is.

    Raises:
        UsageError: it is no digest.
        DamagedBundleError: the bundle is another.
    """
    if not expected:
        return
    wanted = expected.removeprefix(ID_PREFIX).lower()
    if not re.fullmatch("[0-9a-f]{64}", wanted):
        raise UsageError(
            f"--expect {expected}: is no identity of a bundle, which is {ID_PREFIX} and 64 hexadecimal "
            f"digits. 'mobile-o-export verify' prints it, and {MANIFEST_DIGEST} holds it."
        )
    if wanted != manifest_digest(folder):
        reason = f"is not the expected one: its identity is {ID_PREFIX}{manifest_digest(folder)}"
        raise DamagedBundleError(folder, [Damage(MANIFEST, reason)])


def file_entries(folder: Path, parts: Collection[str] = ()) -> dict[str, FileEntry]:
    """Every file below ``folder`` but the manifest and its digest, by its path with slashes.

    ``parts`` restricts them to the files below those of its folders.

    Raises:
        BundleError: something is a link, a pipe or a device, or has a name that no manifest may hold.
    """
    found, problems = _entries(folder, parts)
    if problems:
        raise BundleError(
            f"{folder / problems[0].file}: {problems[0].reason}, and a bundle holds files only. Replace it."
        )
    return found


def file_digest(members: Members, name: str) -> FileEntry:
    """Size and SHA-256 of one file."""
    digest, size_bytes = sha256(), 0
    with members.open(name) as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
            size_bytes += len(block)
    return FileEntry(size_bytes=size_bytes, sha256=digest.hexdigest())


def damage(folder: Path, manifest: Manifest, parts: Collection[str] = ()) -> list[Damage]:
    """How the files differ from what the manifest says; empty for an intact bundle.

    ``parts`` restricts the check to the files below those of its folders.
    """
    found, problems = _entries(folder, parts)
    named = {problem.file for problem in problems}
    listed = {name: entry for name, entry in manifest.files.items() if _is_below(name, parts)}
    problems += [Damage(name, "is missing") for name in sorted(listed.keys() - found.keys() - named)]
    problems += [Damage(name, "was added") for name in sorted(found.keys() - listed.keys())]
    problems += [
        Damage(name, "was changed")
        for name in sorted(found.keys() & listed.keys())
        if found[name] != listed[name]
    ]
    return problems


def _entries(folder: Path, parts: Collection[str]) -> tuple[dict[str, FileEntry], list[Damage]]:
    """The files, and whatever else lies there: nothing of it is opened."""
    members = Members(folder, BundleError)
    found: dict[str, FileEntry] = {}
    problems = []
    for name, kind in entries(folder):
        if name in (MANIFEST, MANIFEST_DIGEST) or not _is_below(name, parts):
            continue
        if not is_file(kind):
            problems.append(Damage(name, kind))
            continue
        try:
            member = MemberName(name)
        except ValueError:
            problems.append(Damage(name, "has a name that no file of a bundle has"))
            continue
        found[member] = file_digest(members, member)
    return found, problems


def _is_below(name: str, parts: Collection[str]) -> bool:
    return not parts or name.split("/")[0] in parts
