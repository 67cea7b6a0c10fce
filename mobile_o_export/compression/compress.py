"""Compresses a module's weights where they are: what a backend lowers afterwards is what it stores.

Compression happens before lowering, in PyTorch: each chosen parameter becomes what its compressed form
restores. So there is one implementation for every backend, its result can be run in PyTorch, and a backend
only encodes what is there already, without loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mobile_o_export.compression import affine
from mobile_o_export.compression.activations import Statistics, layers, quantize_inputs
from mobile_o_export.compression.check import require_near
from mobile_o_export.compression.form import Form
from mobile_o_export.compression.half import chunks, stored_array
from mobile_o_export.compression.integers import Integers, quantize
from mobile_o_export.compression.palettes import Palettes, palettize
from mobile_o_export.errors import ExportError
from mobile_o_export.precision import Affine, Palette, Precision
from mobile_o_export.progress import Say, silent

if TYPE_CHECKING:
    from mobile_o_export.compression.recipe import Recipe
    from mobile_o_export.parity.metrics import Array

FEWEST = 1024
"""Weights of fewer elements stay floating point: they are few bytes."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding, nn.ParameterList)
"""What has weights; a list of them is one layer's in pieces."""

CHANNELS = 16
"""Output channels that share a palette where a precision does not say."""


@dataclass(frozen=True)
class Compressed:
    """One weight in its compressed form.

    Attributes:
        name: of the parameter.
        form: how it is stored.
        data: palettes, integers or integers with offsets of the G groups, a group the weights of a row-major
            run.
        source: the weight before: float32, or of 16 bits where it had no more.
        dtype: what a runtime computes it in: float16 or float32.
        input_scale: the step of the integers that it is multiplied by, where these are calibrated.
        output_scale: … of those that its layer's results may be rounded to.
        importance: of each number's error, where palettes were fitted by it.
    """

    name: str
    form: Form
    data: Palettes | Integers | affine.Affines
    source: Array
    dtype: type[np.floating] = np.float16
    input_scale: float | None = None
    output_scale: float | None = None
    importance: Array | None = None

    def restored(self) -> Array:
        """The weight that a runtime computes from it, of that dtype."""
        return self.data.restored(self.dtype).reshape(self.form.shape)

    def pieces(self) -> Iterator[tuple[slice, Array]]:
        """``restored`` a few groups at a time: which rows of [G, N], and they."""
        count = prod(self.form.groups)
        for part in chunks(count, prod(self.form.shape) // count):
            yield part, self.data.rows(part).restored(self.dtype)

    def rows(self, values: Array) -> Array:
        """``values`` of the weight's shape as [G, N], a row a group."""
        return values.reshape(prod(self.form.groups), -1)


def weights_of(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a recipe speaks of: matrices and kernels of layers, of some size.

    Other tables are what something is scaled and shifted by, and few bytes.
    """
    owners = dict(module.named_modules())
    for name, parameter in module.named_parameters():
        layer = isinstance(owners[name.rpartition(".")[0]], LAYERS)
        if layer and parameter.dim() >= 2 and parameter.numel() >= FEWEST and parameter.is_floating_point():
            yield name, parameter


def forms(module: nn.Module, recipe: Recipe, where: str) -> dict[str, Form]:
    """How each weight of ``module`` that ``recipe`` compresses is stored; none that would not get smaller,
    and none that the precision has no form for.

    Raises:
        ConfigError: a rule matches no weight.
    """
    # A rule may name what stays floating point in a small model, and is compressed in a large one.
    recipe.require_used([name for name, _ in module.named_parameters()], where)
    chosen = {name: (recipe.of(name), tuple(parameter.shape)) for name, parameter in weights_of(module)}
    stored = {name: Form.saving(*pair) for name, pair in chosen.items()}
    return {name: form for name, form in stored.items() if form is not None}


def compress_module(
    module: nn.Module,
    recipe: Recipe,
    where: str,
    say: Say = silent,
    statistics: Statistics | None = None,
    dtype: type[np.floating] | None = None,
    least_scale: float = 0.0,
    *,
    keep: bool = True,
) -> dict[str, Compressed]:
    """Replaces the weights of ``module`` by what their compressed forms restore; these by name.

    The parameters' own tensors, which may be views of the checkpoint's file, are left as they are. Weights of
    linear layers and convolutions get the scales of their activations where ``recipe`` says so; of others,
    such as tables of embeddings, there is nothing to be calibrated.

    Args:
        module: prepared for lowering; changed in place.
        recipe: what to do.
        where: for messages.
        say: told what happens.
        statistics: of the layers; needed where the recipe is ``calibrated``.
        dtype: what a runtime restores weights in, where that is not what the recipe computes in.
        least_scale: integers that need a smaller one become palettes of as many bits, which have none; their
            activations stay floating point.
        keep: False leaves zeros in the place of compressed weights, and no memory to them.

    Raises:
        ConfigError: a rule matches no weight.
        ExportError: a weight is not finite.
        GateError: a weight is further from its source than its precision can excuse.
    """
    parameters = dict(module.named_parameters())
    # A layer that no recorded call reached has nothing to be calibrated on.
    known = {name: layer for name, layer in (statistics or {}).items() if layer.positions}
    if dtype is None:
        dtype = np.float32 if recipe.floating.arithmetic_bits == 32 else np.float16
    done: dict[str, Compressed] = {}
    stored = forms(module, recipe, where)
    for index, (name, form) in enumerate(stored.items()):
        say(f"compressing weight {index + 1} of {len(stored)}")
        parameter = parameters[name]
        layer = known.get(name)
        weight = stored_array(parameter)
        importance = layer.importance(form.shape) if layer and recipe.importance else None
        try:
            found = compress(name, weight, form, importance, dtype)
            if isinstance(found.data, Integers) and found.data.scales.min() < least_scale:
                form = _without_scales(form)
                found = compress(name, weight, form, importance, dtype)
        except ExportError as error:
            raise ExportError(
                f"{where}: {name}: {error} Correct the checkpoint, or leave it floating point by a rule."
            ) from error
        bits = form.precision.calibrated_bits
        if layer and bits:
            found = replace(
                found, input_scale=layer.inputs.scale(bits), output_scale=layer.outputs.scale(bits)
            )
        # The files are held to this as well, at the end of hours.
        require_near(found, found.pieces(), f"{where}: {name}")
        stays = torch.from_numpy(found.restored()).to(parameter.dtype) if keep else parameter.new_zeros(())
        parameter.data = stays.expand(form.shape)
        done[name] = found
    return done


def _without_scales(form: Form) -> Form:
    """A palette of as many bits, of few channels where it is smaller than fp16."""
    bits = form.precision.weight_bits
    palettes = (Form.of(Precision(Palette(bits, channels)), form.shape) for channels in (CHANNELS, None))
    return next(palette for palette in palettes if palette.saves)


def round_inputs(module: nn.Module, weights: Mapping[str, Compressed]) -> None:
    """Has the layers whose activations are calibrated compute with inputs that are integers."""
    for name, layer in layers(module).items():
        weight = weights.get(name)
        if weight is not None and weight.input_scale is not None:
            bits = weight.form.precision.calibrated_bits
            assert bits is not None
            quantize_inputs(layer, weight.input_scale, bits)


def compress(
    name: str,
    weight: Array,
    form: Form,
    importance: Array | None = None,
    dtype: type[np.floating] = np.float16,
) -> Compressed:
    """``weight`` in ``form``.

    Args:
        name: of the weight.
        weight: of the form's shape, float32 or of 16 bits.
        form: how to store it.
        importance: of each weight's error, of the same shape; see ``palettize``.
        dtype: what the weight will be computed in.

    Raises:
        ExportError: a weight is not finite or beyond fp16's range.
    """
    rows = weight.reshape(prod(form.groups), -1)
    bits = form.precision.weight_bits
    if isinstance(form.precision.weights, Palette):
        weighing = None if importance is None else importance.reshape(rows.shape)
        palettes = palettize(rows, bits, weighing)
        return Compressed(name, form, palettes, weight, dtype, importance=importance)
    if isinstance(form.precision.weights, Affine):
        return Compressed(name, form, affine.quantize(rows, bits), weight, dtype)
    return Compressed(name, form, quantize(rows, bits, clip=bits < 8), weight, dtype)
