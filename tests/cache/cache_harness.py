"""Exports with a cache: what they lower and judge, and the bytes that come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobile_o_export.cache.store import Store
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.export import ExportResult, export_bundle
from mobile_o_export.targets import Target, load_targets


@dataclass
class Exports:
    """Exports of one checkpoint, by default of two components on one target.

    Attributes:
        made: what the last one made and did not find: ``lowered mcp``, ``judged mcp``, ``golden``.
        said: what the store said.
    """

    folder: Path
    checkpoint: Checkpoint
    golden: Path | None
    components: tuple[str, ...] = ("mcp", "vae_decoder")
    targets: list[Target] = field(default_factory=lambda: load_targets(["tensorrt-orin"]))
    made: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    count: int = 0

    @property
    def store(self) -> Store:
        return Store.open(self.folder / "cache", self.said.append)

    def __call__(self, *, store: Store | None = None, cached: bool = True, **changes: Any) -> ExportResult:
        """Exports into a new folder."""
        self.made.clear()
        self.said.clear()
        self.count += 1
        given = {"checkpoint": self.checkpoint, "targets": self.targets, "golden": self.golden, **changes}
        return export_bundle(
            components=self.components,
            out=self.folder / f"bundle-{self.count}",
            bundle_version="1",
            progress=lambda *_: None,
            store=(store or self.store) if cached else None,
            **given,
        )

    def kinds(self) -> dict[str, int]:
        """How many entries of each kind are in the cache."""
        found = [kept.kind for kept in self.store.kept()]
        return {kind: found.count(kind) for kind in sorted(set(found))}
