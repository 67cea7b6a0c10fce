"""How components build their PyTorch modules and examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from mobile_o_export.tensors import DType, Role, TensorSpec

if TYPE_CHECKING:
    from mobile_o_export.components.base import Component, GraphOptions, GraphSpec

ModuleT = TypeVar("ModuleT", bound=nn.Module)

TORCH_DTYPES: Mapping[DType, torch.dtype] = {
    DType.FLOAT32: torch.float32,
    DType.FLOAT16: torch.float16,
    DType.INT32: torch.int32,
    DType.INT64: torch.int64,
}


def build(factory: Callable[[], ModuleT], weights: Mapping[str, torch.Tensor]) -> ModuleT:
    """The module that ``factory`` makes, holding ``weights`` themselves (no copy, no initialisation)."""
    with torch.device("meta"):
        module = factory()
    module.load_state_dict(dict(weights), strict=True, assign=True)
    return module.eval().requires_grad_(False)


class CastAround(nn.Module):
    """``module`` computing in ``dtype`` behind an fp32 boundary.

    ``casts`` says which inputs are cast; a timestep is not, for its sinusoids need fp32.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, casts: tuple[bool, ...]) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype
        self.casts = casts

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """fp32 inputs → the module's one output in fp32."""
        cast = (x.to(self.dtype) if wanted else x for x, wanted in zip(inputs, self.casts, strict=True))
        out: torch.Tensor = self.module(*cast)
        return out.float()


def prepare(component: Component, module: nn.Module, options: GraphOptions) -> nn.Module:
    """``module`` with the rewrites of ``options``, in the dtype that it computes in; changed in place."""
    return component.rewrite(module, options).to(TORCH_DTYPES[options.compute_dtype])


def with_half_safety(module: nn.Module, options: GraphOptions) -> nn.Module:
    """``module`` with what keeps fp16 in range, where ``options`` ask for it; changed in place."""
    from mobile_o_export.model.half_safe import make_half_safe

    if options.half_safe:
        make_half_safe(module)
    return module


def example(spec: TensorSpec) -> torch.Tensor:
    """An input of ``spec``'s fixed shape and dtype, with values that a graph can be traced with."""
    shape = [dim for dim in spec.shape if isinstance(dim, int)]
    if spec.role in (Role.MASK, Role.LENGTH):
        return torch.ones(shape, dtype=TORCH_DTYPES[spec.dtype])
    return torch.zeros(shape, dtype=TORCH_DTYPES[spec.dtype])


def examples(spec: GraphSpec) -> tuple[torch.Tensor, ...]:
    """Inputs of a static graph to trace it with."""
    return tuple(example(tensor) for tensor in spec.inputs)
