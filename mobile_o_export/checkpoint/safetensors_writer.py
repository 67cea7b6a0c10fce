"""Writes safetensors one tensor at a time, so that memory holds one tensor and not the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from mobile_o_export.checkpoint.safetensors_file import DTYPES

_CODES = {name: code for code, (name, _) in DTYPES.items()}
_ITEM_BYTES = dict(DTYPES.values())


@dataclass(frozen=True)
class Entry:
    """Name, shape and dtype (``"float16"`` …) of a tensor to write."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * _ITEM_BYTES[self.dtype]


def write_safetensors(path: Path, entries: Iterable[Entry], data: Iterator[bytes | memoryview]) -> None:
    """A safetensors file at ``path``; ``data`` yields each entry's bytes in the order of :func:`arranged`.

    Raises:
        OSError: the file cannot be written.
        ValueError: ``data`` does not fit the entries.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ordered = list(entries)
    cursor = 0
    for entry in ordered:
        end = cursor + entry.size_bytes
        offsets = [cursor, end]
        header[entry.name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": offsets,
        }
        cursor = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # Padding the header to eight bytes aligns the data, so that readers can map it without a copy.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for entry, content in zip(ordered, data, strict=True):
            if len(content) != entry.size_bytes:
                raise ValueError(f"{entry.name}: {len(content)} bytes given for {entry.size_bytes}")
            file.write(content)


def arranged(entries: Iterable[Entry]) -> list[Entry]:
    """``entries`` with wide dtypes first, which keeps every tensor aligned to its own width."""
    return sorted(entries, key=lambda entry: (-_ITEM_BYTES[entry.dtype], entry.name))


def shards(entries: Iterable[Entry], limit_bytes: int) -> Mapping[str, list[Entry]]:
    """File name → its entries, each file at most ``limit_bytes``; one ``model.safetensors`` where that does.

    Names are Hugging Face's, ``model-00001-of-00002.safetensors``.
    """
    groups: list[list[Entry]] = [[]]
    size_bytes = 0
    for entry in entries:
        if groups[-1] and size_bytes + entry.size_bytes > limit_bytes:
            groups.append([])
            size_bytes = 0
        groups[-1].append(entry)
        size_bytes += entry.size_bytes
    if len(groups) == 1:
        return {"model.safetensors": arranged(groups[0])}
    return {
        f"model-{number:05}-of-{len(groups):05}.safetensors": arranged(group)
        for number, group in enumerate(groups, 1)
    }
