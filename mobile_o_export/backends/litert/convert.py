"""PyTorch graphs → one .tflite with a signature each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mobile_o_export.backends.tracing import Named
from mobile_o_export.components import building

if TYPE_CHECKING:
    from torch import nn

    from mobile_o_export.components.base import GraphSpec


def convert(graphs: Sequence[tuple[GraphSpec, nn.Module]], path: Path) -> None:
    """Writes ``graphs`` as signatures of one file; weights that they share are stored once."""
    import litert_torch

    converter = litert_torch
    with torch.no_grad():
        for spec, module in graphs:
            arguments = dict(
                zip((tensor.name for tensor in spec.inputs), building.examples(spec), strict=True)
            )
            converter = converter.signature(spec.name, Named(module, spec).eval(), sample_kwargs=arguments)
        converter.convert().export(str(path))


def store_weights_as_fp16(path: Path) -> None:
    """Rewrites ``path`` with fp16 weights behind DEQUANTIZE operations, as LiteRT's own fp16 files are."""
    from ai_edge_quantizer import qtyping, quantizer

    settings = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=16, dtype=qtyping.TensorDataType.FLOAT
        ),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    work = quantizer.Quantizer(str(path))
    work.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=settings,
        algorithm_key="float_casting",
    )
    small = path.with_suffix(".fp16")
    work.quantize().export_model(str(small), overwrite=True)
    small.replace(path)
