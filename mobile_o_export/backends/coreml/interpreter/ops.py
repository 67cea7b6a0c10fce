"""Every operation there is: importing this module fills the registry."""

from __future__ import annotations

from mobile_o_export.backends.coreml.interpreter import (  # noqa: F401
    ops_activation,
    ops_compression,
    ops_conv,
    ops_detect,
    ops_elementwise,
    ops_fill,
    ops_index,
    ops_linear,
    ops_list,
    ops_norm,
    ops_pool,
    ops_random,
    ops_recurrent,
    ops_reduce,
    ops_resize,
    ops_sample,
    ops_shape,
)
from mobile_o_export.backends.coreml.interpreter.registry import OPS

CONTROL_OPS = {
    "cond": frozenset({"pred"}),
    "while_loop": frozenset({"loop_vars"}),
    "read_state": frozenset({"input"}),
    "write_state": frozenset({"input", "data"}),
}
"""Ops that the evaluator carries out itself, with the parameters of each."""


def implemented_ops() -> tuple[str, ...]:
    """The MIL names of all operations that can be evaluated, sorted."""
    return tuple(sorted({*OPS, *CONTROL_OPS, "const"}))
