"""MLX's quantised layers in safetensors: codes packed into words, scales and offsets beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.backends.mobile_o_app.configuration import LanguageConfig
from mobile_o_export.compression.affine import Affines
from mobile_o_export.errors import GateError
from mobile_o_export.members import Members

if TYPE_CHECKING:
    from mobile_o_export.compression.compress import Compressed
    from mobile_o_export.parity.metrics import Array

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

WORD_BITS = 32
WEIGHT, SCALES, OFFSETS = ".weight", ".scales", ".biases"
"""Ends of the names of a layer's tensors; a layer's own bias is ``.bias``."""


def packed(codes: Array, bits: int) -> Array:
    """Codes uint8 [O, I] in words, the first in the lowest ``bits``: uint32 [O, I * bits / 32]."""
    count = WORD_BITS // bits
    words = np.zeros((len(codes), codes.shape[1] // count), np.uint32)
    for place in range(count):
        words |= codes[:, place::count].astype(np.uint32) << np.uint32(bits * place)
    return words


def unpacked(words: Array, bits: int) -> Array:
    """The codes uint8 [O, I] in ``words`` uint32 [O, I * bits / 32]."""
    count = WORD_BITS // bits
    codes = np.empty((len(words), words.shape[1] * count), np.uint8)
    for place in range(count):
        codes[:, place::count] = words >> np.uint32(bits * place) & np.uint32(2**bits - 1)
    return codes


def quantized_tensors(name: str, weight: Compressed) -> dict[str, Array]:
    """What stands for the affine ``weight`` of the layer whose weight is called ``name``."""
    data, layer = weight.data, name.removesuffix(WEIGHT)
    assert isinstance(data, Affines)
    groups = weight.form.groups
    return {
        layer + WEIGHT: packed(data.values.reshape(weight.form.shape), weight.form.precision.weight_bits),
        layer + SCALES: data.scales.reshape(groups),
        layer + OFFSETS: data.offsets.reshape(groups),
    }


def write_weights(folder: Path, tensors: Mapping[str, Array]) -> None:
    """Writes the one file of weights and its index into ``folder``."""
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(whole, folder / WEIGHTS_FILE, metadata={"format": "mlx"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in whole.values())},
        "weight_map": dict.fromkeys(sorted(whole), WEIGHTS_FILE),
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=4) + "\n")


def read_weights(folder: Path, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """The layers' tensors, float16, by the names after ``prefix``; quantised ones restored as MLX does.

    Raises:
        GateError: a layer's tensors do not fit together, or with the configuration.
    """
    from safetensors import SafetensorError, safe_open

    quantization = LanguageConfig.read(folder).quantization
    bits = None if quantization is None else quantization.bits
    try:
        with safe_open(Members(folder, GateError).file(WEIGHTS_FILE), framework="numpy") as file:
            names = {name for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
            for name in sorted(names):
                layer = name.removesuffix(WEIGHT)
                if name.endswith((SCALES, OFFSETS)):
                    continue
                tensor = file.get_tensor(name)
                if layer + SCALES in names:
                    scales, offsets = file.get_tensor(layer + SCALES), file.get_tensor(layer + OFFSETS)
                    tensor = _restored(layer, bits, tensor, scales, offsets)
                yield name.removeprefix(prefix), tensor
    # An element type that NumPy lacks is a TypeError, or an AttributeError.
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise GateError(
            f"{folder / WEIGHTS_FILE}: cannot be read as safetensors: {error}. Get the bundle again."
        ) from error


def _restored(layer: str, bits: int | None, words: Array, scales: Array, offsets: Array) -> Array:
    """The weights of one layer, float16 [O, I]."""
    fits = words.dtype == np.uint32 and scales.dtype == offsets.dtype == np.float16
    flat = words.ndim == scales.ndim == offsets.ndim == 2
    if bits is None or not fits or not flat or scales.shape != offsets.shape or len(words) != len(scales):
        raise GateError(f"{WEIGHTS_FILE}: {layer} holds no weights in groups of one scale and offset")
    codes = unpacked(words, bits)
    if not scales.size or codes.size % scales.size:
        raise GateError(
            f"{WEIGHTS_FILE}: {layer} has {codes.size} weights, which {scales.size} groups cannot share"
        )
    groups = Affines(codes.reshape(scales.size, -1), scales.reshape(-1), offsets.reshape(-1))
    with np.errstate(over="ignore", invalid="ignore"):
        weights = groups.restored().reshape(codes.shape)
    if not np.isfinite(weights).all():
        raise GateError(f"{WEIGHTS_FILE}: {layer} holds NaN, infinity or weights beyond fp16")
    return weights
