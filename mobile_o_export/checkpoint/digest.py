"""Content digests: equal for equal content, however it is split into files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

from mobile_o_export.checkpoint.safetensors_file import SafetensorsFile


def tensors_digest(files: Mapping[str, SafetensorsFile]) -> str:
    """Hex SHA-256 over every tensor's name, dtype, shape and bytes, in order of name.

    Args:
        files: each tensor's name and the file that holds it.
    """
    names = sorted(files)
    # hashlib releases the interpreter lock on large buffers, so threads hash several tensors at once.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        contents = pool.map(lambda name: _tensor_digest(files[name], name), names)
        total = sha256()
        for name, content in zip(names, contents, strict=True):
            info = files[name].tensors[name]
            total.update(f"{name}\0{info.dtype}\0{info.shape}\0{content}\n".encode())
    return total.hexdigest()


def _tensor_digest(file: SafetensorsFile, name: str) -> str:
    content = sha256()
    for chunk in file.chunks(name):
        content.update(chunk)
    return content.hexdigest()
