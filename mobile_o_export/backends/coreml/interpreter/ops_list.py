"""Lists of tensors (defs/iOS15/control_flow.py): what TensorFlow's TensorArray and loops become."""

from __future__ import annotations

import torch
from torch import Tensor

from mobile_o_export.backends.coreml.interpreter.errors import EvaluationError
from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, TensorList, implements


@implements("make_list", "elem_shape", "init_length dynamic_length dtype", other_results=True)
def _make_list(call: Call) -> Result:
    return TensorList((None,) * call.integer("init_length", 1), call.flag("dynamic_length", True))


@implements("list_length", "ls")
def _list_length(call: Call) -> Result:
    return torch.tensor(len(call.tensor_list("ls").elements))


@implements("list_write", "ls index value", other_results=True)
def _list_write(call: Call) -> Result:
    return _written(call, {call.integer("index", 0): call.tensor("value")})


@implements("list_scatter", "ls indices value", other_results=True)
def _list_scatter(call: Call) -> Result:
    return _written(call, dict(zip(call.integers("indices"), call.tensor("value"), strict=True)))


@implements("list_read", "ls index", exact=True)
def _list_read(call: Call) -> Result:
    return _element(call, call.integer("index", 0), call.outputs[0].shape)


@implements("list_gather", "ls indices", exact=True)
def _list_gather(call: Call) -> Result:
    shape = call.outputs[0].shape[1:]
    return torch.stack([_element(call, index, shape) for index in call.integers("indices")])


def _element(call: Call, index: int, shape: tuple[int | None, ...]) -> Tensor:
    """The element at ``index``, zero where nothing was written; ``shape`` is the declared one."""
    elements = call.tensor_list("ls").elements
    if not 0 <= index < len(elements):
        raise EvaluationError(f"{call.op_type} {call.op_name} reads element {index} of {len(elements)}")
    element = elements[index]
    if element is not None:
        return element
    alike = [tuple(other.shape) for other in elements if other is not None]
    if alike:
        return torch.zeros(alike[0])
    if None in shape:
        raise EvaluationError(f"{call.op_type} {call.op_name}: nothing says how large element {index} is")
    return torch.zeros([size or 0 for size in shape])


def _written(call: Call, values: dict[int, Tensor]) -> TensorList:
    """The list with ``values`` by place; a dynamic one grows as far as they need."""
    given = call.tensor_list("ls")
    length = max(len(given.elements), 1 + max(values, default=-1)) if given.dynamic else len(given.elements)
    elements = [*given.elements, *[None] * (length - len(given.elements))]
    for index, value in values.items():
        if not 0 <= index < length:
            raise EvaluationError(f"{call.op_type} {call.op_name} writes element {index} of {length}")
        elements[index] = value
    return TensorList(tuple(elements), given.dynamic)
