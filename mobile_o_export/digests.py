"""Digests of values: equal for equal content."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mobile_o_export.parity.metrics import Array


def array_digest(value: Array) -> str:
    """Hex SHA-256 of an array: its element type, shape and bytes in row-major order."""
    content = sha256(f"{value.dtype.str}{value.shape}".encode())
    content.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return content.hexdigest()


def json_digest(value: Any) -> str:
    """Hex SHA-256 of a JSON value, whatever the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
