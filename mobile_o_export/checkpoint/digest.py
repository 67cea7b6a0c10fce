"""Content digests: equal for equal content, however it is split into files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

from mobile_o_export.checkpoint.safetensors_file import SafetensorsFile, TensorInfo


def tensors_digest(files: Mapping[str, SafetensorsFile]) -> str:
    """Hex SHA-256 over every tensor's name, dtype, shape and bytes, in order of name.

    Args:
        files: each tensor's name and the file that holds it.
    """
    infos = {name: file.tensors[name] for name, file in files.items()}
    return joined_digest(infos, content_digests(files))


def content_digests(files: Mapping[str, SafetensorsFile]) -> dict[str, str]:
    """Hex SHA-256 of each tensor's bytes, by name; ``files`` as in :func:`tensors_digest`."""
    names = sorted(files)
    # hashlib releases the interpreter lock on large buffers, so threads hash several tensors at once.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: _content_digest(files[name], name), names), strict=True))


def joined_digest(tensors: Mapping[str, TensorInfo], contents: Mapping[str, str]) -> str:
    """Hex SHA-256 over the name, dtype and shape of each of ``tensors``, in order of name.

    And over the digest of its bytes, where ``contents`` has it.
    """
    total = sha256()
    for name, info in sorted(tensors.items()):
        total.update(f"{name}\0{info.dtype}\0{info.shape}\0{contents.get(name, '')}\n".encode())
    return total.hexdigest()


def _content_digest(file: SafetensorsFile, name: str) -> str:
    content = sha256()
    for chunk in file.chunks(name):
        content.update(chunk)
    return content.hexdigest()
