"""``manifest.json``: what a bundle holds. The JSON Schema beside it is generated from these classes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from mobile_o_export.backends.base import GraphFile
from mobile_o_export.bundle.consistent import require_functions, require_target
from mobile_o_export.components.base import FunctionSpec
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.errors import BundleError, GateError
from mobile_o_export.parity.gates import ChainGate, Gate
from mobile_o_export.strict import Strict, Versioned, read_json
from mobile_o_export.targets import Sequence

SCHEMA: Final = 3
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
        shown = "; ".join(f"{found.file} {found.reason}" for found in self.damage[:SHOWN_DAMAGE])
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
    """One component on one target: its graphs' I/O contracts and files, or why it is not here."""

    recipe: Recipe | None = None
    gate: Gate | None = None
    folder: str = ""
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
        chain_gate: what whole chains must reach; none where every component is skipped.
    """

    backend: str
    description: str
    sequence: Sequence
    options: dict[str, Any]
    components: dict[str, ComponentEntry]
    chain_gate: ChainGate | None

    @property
    def exported(self) -> tuple[str, ...]:
        """The components that are here."""
        return tuple(name for name, entry in self.components.items() if entry.skipped is None)


class CheckpointEntry(Strict):
    """What the bundle was made from.

    Attributes:
        component_parameters: of each component that was exported, by name.
    """

    digest: str
    parameters: int = Field(ge=0, le=MOST_BYTES)
    component_parameters: dict[str, Annotated[int, Field(ge=0, le=MOST_BYTES)]] = Field(default_factory=dict)
    adapter: str | None = None


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
        files: every file of the bundle but this one and its digest, by path.
    """

    schema_version: Literal[3]
    bundle_version: str
    made_with: dict[str, str]
    checkpoint: CheckpointEntry
    functions: dict[str, tuple[FunctionSpec, ...]]
    targets: dict[str, TargetEntry]
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{name!r} lies outside the bundle")
        return self

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
    path = folder / MANIFEST
    recorded = folder / MANIFEST_DIGEST
    if not path.is_file():
        if recorded.is_file():
            raise DamagedBundleError(folder, [Damage(MANIFEST, "is missing")])
        raise BundleError(
            f"{folder}: is not a bundle ({MANIFEST} is missing). Give the folder that "
            "'mobile-o-export export' wrote."
        )
    digest = recorded.read_text(errors="replace").split()[:1] if recorded.is_file() else []
    if digest != [sha256(path.read_bytes()).hexdigest()]:
        raise DamagedBundleError(folder, [Damage(MANIFEST, f"does not match {MANIFEST_DIGEST}")])
    try:
        version = read_json(path, Versioned, GateError).schema_version
        if version != SCHEMA:
            raise BundleError(
                f"{folder}: manifest schema {version}, and this version reads {SCHEMA}. Export it again, or "
                "use the version of mobile-o-export that made it."
            )
        return read_json(path, Manifest, GateError)
    except GateError as error:
        raise DamagedBundleError(folder, [Damage(MANIFEST, f"is no manifest ({error})")]) from error


def manifest_digest(folder: Path) -> str:
    """Hex SHA-256 of the manifest of the bundle in ``folder``, which stands for all of its files."""
    return sha256((folder / MANIFEST).read_bytes()).hexdigest()


def file_entries(folder: Path, parts: Collection[str] = ()) -> dict[str, FileEntry]:
    """Every file below ``folder`` but the manifest and its digest, by its path with slashes.

    ``parts`` restricts them to the files below those of its folders.
    """
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_dir() and not path.is_symlink()) or name in (MANIFEST, MANIFEST_DIGEST):
            continue
        if not _is_below(name, parts):
            continue
        entries[name] = FileEntry(size_bytes=path.lstat().st_size, sha256=file_digest(path))
    return entries


def file_digest(path: Path) -> str:
    """SHA-256 of a file; a link, a pipe or a device has none and never matches."""
    if path.is_symlink() or not path.is_file():
        return "0" * 64
    digest = sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def damage(folder: Path, manifest: Manifest, parts: Collection[str] = ()) -> list[Damage]:
    """How the files differ from what the manifest says; empty for an intact bundle.

    ``parts`` restricts the check to the files below those of its folders.
    """
    found = file_entries(folder, parts)
    listed = {name: entry for name, entry in manifest.files.items() if _is_below(name, parts)}
    problems = [Damage(name, "is missing") for name in sorted(listed.keys() - found.keys())]
    problems += [Damage(name, "was added") for name in sorted(found.keys() - listed.keys())]
    problems += [
        Damage(name, "was changed")
        for name in sorted(found.keys() & listed.keys())
        if found[name] != listed[name]
    ]
    return problems


def _is_below(name: str, parts: Collection[str]) -> bool:
    return not parts or PurePosixPath(name).parts[0] in parts
