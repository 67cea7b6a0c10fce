"""``weights.json`` beside a component's files: every number that they hold, as it was read back at export."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints

from mobile_o_export.backends.contents import Contents
from mobile_o_export.compression.check import WeightRow
from mobile_o_export.precision import Precision
from mobile_o_export.strict import Strict

SCHEMA: Final = 2

Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
"""Hex SHA-256."""


class StoredWeight(Strict):
    """One compressed weight: ``compression.check.WeightRow``, levels in dB rounded to two places."""

    name: str
    precision: Precision
    shape: tuple[int, ...]
    snr_db: float = Field(allow_inf_nan=False)
    least_db: float = Field(allow_inf_nan=False)
    size_bytes: int = Field(ge=0)
    sha256: Digest
    places: tuple[str, ...]
    input_scale: float | None = None


class WeightsRecord(Strict):
    """The file.

    Attributes:
        weights: the compressed ones, each with how near it is to its source.
        constants: every constant of the files by its place, compressed or not: a digest of the numbers that
            it stands for.
        programs: of every file, a digest of all that is no constant.
    """

    model_config = ConfigDict(populate_by_name=True)

    version: Literal[2] = Field(default=SCHEMA, alias="schema")
    weights: tuple[StoredWeight, ...]
    constants: dict[str, Digest]
    programs: dict[str, Digest] = Field(min_length=1)

    @classmethod
    def of(cls, rows: Iterable[WeightRow], contents: Contents) -> Self:
        """What compression found, and what the files hold."""
        weights = tuple(
            StoredWeight(
                name=row.name,
                precision=row.precision,
                shape=row.shape,
                snr_db=round(row.snr_db, 2),
                least_db=row.least_db,
                size_bytes=row.size_bytes,
                sha256=row.sha256,
                places=row.places,
                input_scale=row.input_scale,
            )
            for row in rows
        )
        return cls(
            weights=weights,
            constants=dict(sorted(contents.constants.items())),
            programs=dict(sorted(contents.programs.items())),
        )

    def write(self, path: Path) -> None:
        """Writes the file."""
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that compressed weights have, each once."""
        return tuple(dict.fromkeys(weight.precision for weight in self.weights))
