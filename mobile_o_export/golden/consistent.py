"""Whether an index agrees with itself: every call with its contract, every key with an array that fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mobile_o_export.strict import nearest
from mobile_o_export.tensors import DType

if TYPE_CHECKING:
    from mobile_o_export.components.base import FunctionSpec
    from mobile_o_export.golden.encoding import Stored
    from mobile_o_export.golden.store import AnswerChain, Case, ComponentGolden, DrawingChain, Step


def require_cases(name: str, golden: ComponentGolden, tensors: Mapping[str, Stored]) -> None:
    """Raises ValueError unless the cases of the component ``name`` are calls of its functions."""
    functions = {function.name: function for function in golden.functions}
    require_once(f"{name}: the function", (function.name for function in golden.functions))
    require_once(f"{name}: the case", (case.name for case in golden.cases))
    for case in golden.cases:
        _require_calls(f"{name}, {case.name}", case, functions, tensors)


def _require_calls(
    where: str, case: Case, functions: Mapping[str, FunctionSpec], tensors: Mapping[str, Stored]
) -> None:
    if not case.steps:
        raise ValueError(f"{where}: has no call")
    for step in case.steps:
        if step.function not in functions:
            raise ValueError(f"{where}: calls {step.function!r}, which is no function of the component")
        _require_call(where, step, functions[step.function], tensors)


def _require_call(where: str, step: Step, contract: FunctionSpec, tensors: Mapping[str, Stored]) -> None:
    inputs = {spec.name: spec for spec in contract.inputs}
    outputs = {spec.name: spec for spec in contract.outputs}
    if step.inputs.keys() != inputs.keys():
        raise ValueError(
            f"{where}: {contract.name} takes {', '.join(inputs)}, and is given "
            f"{', '.join(step.inputs) or 'nothing'}"
        )
    if unknown := sorted(step.outputs.keys() - outputs.keys()):
        raise ValueError(
            f"{where}: {contract.name} has no output {unknown[0]!r}.{nearest(unknown[0], outputs)}"
        )
    fitting = _Fitting(f"{where}: {contract.name}", tensors)
    for specs, keys in ((inputs, step.inputs), (outputs, step.outputs)):
        for name, key in keys.items():
            fitting.require(name, key, specs[name].shape, specs[name].dtype)


def require_drawing(chain: DrawingChain, tensors: Mapping[str, Stored]) -> None:
    """Raises ValueError unless every array of ``chain`` is there, in the shape that the others ask for."""
    fitting = _Fitting(f"drawing {chain.name}", tensors)
    if chain.pixels is not None:
        fitting.require("pixels", chain.pixels, (1, 3, "R", "R"))
    for key in (chain.initial_latent, *chain.latents):
        fitting.require("latents", key, (1, "C", "Y", "X"))
    fitting.require("hidden_states", chain.hidden_states, (1, "K", "S", "D"))
    for name, key in (("conditional", chain.conditional), ("unconditional", chain.unconditional)):
        fitting.require(name, key, (1, "S", "F"))
    fitting.require("image", chain.image, (1, 3, "O", "O"))


def require_answer(chain: AnswerChain, tensors: Mapping[str, Stored]) -> None:
    """Raises ValueError unless every array of ``chain`` is there, in the shape that the others ask for."""
    fitting = _Fitting(f"answer {chain.name}", tensors)
    fitting.require("pixels", chain.pixels, (1, 3, "R", "R"))
    fitting.require("image_features", chain.image_features, (1, "N", "D"))
    fitting.require("logits", chain.logits, (1, 1, "V"))
    count = len(chain.tokens)
    fitting.require("candidates", chain.candidates, (count, "best"), DType.INT32)
    fitting.require("candidate_logits", chain.candidate_logits, (count, "best"))
    fitting.require("spread", chain.spread, (count,))
    vocabulary = fitting.sizes["V"]
    if max(chain.tokens) >= vocabulary:
        raise ValueError(f"answer {chain.name}: the token {max(chain.tokens)} is not among {vocabulary}")


class _Fitting:
    """The arrays of one call or chain, whose sizes have to go together."""

    def __init__(self, where: str, tensors: Mapping[str, Stored]) -> None:
        self.where = where
        self.sizes: dict[str, int] = {}
        self._tensors = tensors

    def require(
        self, name: str, key: str, shape: tuple[int | str, ...], dtype: DType = DType.FLOAT32
    ) -> None:
        stored = _stored(key, self._tensors, self.where)
        if (
            stored.dtype != dtype
            or len(stored.shape) != len(shape)
            or any(
                size != (self.sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
                for dim, size in zip(shape, stored.shape, strict=True)
            )
        ):
            wanted = [self.sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in shape]
            raise ValueError(
                f"{self.where}: {name} is stored as {stored.dtype} {list(stored.shape)}, and has to be "
                f"{dtype} {wanted}"
            )


def _stored(key: str, tensors: Mapping[str, Stored], where: str) -> Stored:
    if key not in tensors:
        raise ValueError(f"{where}: names the tensor {key[:40]!r}, which is not there")
    return tensors[key]


def require_once(what: str, names: Iterable[str]) -> None:
    """Raises ValueError where one of ``names`` comes twice."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{what} {twice[:60]!r} is there twice")
