"""Runs ``llm/`` with PyTorch: MLX itself needs a Mac's GPU, or its own build for others."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_o_export.backends.base import Executor
from mobile_o_export.backends.mobile_o_app.configuration import CONFIG_FILE, LanguageConfig
from mobile_o_export.backends.mobile_o_app.language import PROJECTOR, THEIRS
from mobile_o_export.backends.mobile_o_app.mlx import WEIGHTS_FILE, read_weights
from mobile_o_export.backends.mobile_o_app.packages import PROJECTOR as PROJECTOR_GRAPH
from mobile_o_export.errors import GateError, MissingToolError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.quiet import quiet_vendor

if TYPE_CHECKING:
    import torch


class LanguageExecutor(Executor):
    """transformers' own Qwen2, built from nothing but the folder; keeps the KV cache."""

    def __init__(self, folder: Path, layers: int) -> None:
        """Loads ``folder``; calls give the last ``layers`` hidden states."""
        import torch

        # transformers warns about packages of others while it is imported.
        with quiet_vendor():
            from transformers import Qwen2Config, Qwen2ForCausalLM

        from mobile_o_export.components import building

        config = LanguageConfig.read(folder)
        weights = _tensors(folder, THEIRS)
        if config.tie_word_embeddings and "model.embed_tokens.weight" in weights:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        with quiet_vendor():
            settings = Qwen2Config(**config.model_dump(exclude={"quantization"}))
            try:
                self._model = building.build(lambda: Qwen2ForCausalLM(settings), weights)
            except RuntimeError as error:
                raise GateError(
                    f"{folder / WEIGHTS_FILE}: is not the Qwen2 of {CONFIG_FILE}: {error}"
                ) from error
            # The rotary frequencies are computed, not stored, and the meta device computed nothing.
            rotary = self._model.model.rotary_emb
            self._model.model.rotary_emb = type(rotary)(config=settings)
        self._layers = layers
        self._cache: Any = None
        self.runtime = f"transformers {version('transformers')} on MLX's weights, restored, fp32"
        self.threads = torch.get_num_threads()

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """``embed``: a row for each token; ``model``: the sequence so far, and these embeddings after it."""
        import torch

        (given,) = (torch.from_numpy(value) for value in inputs.values())
        with torch.no_grad(), quiet_vendor():
            if graph == "embed":
                return {"inputs_embeds": self._model.model.embed_tokens(given).numpy()}
            out = self._model(
                inputs_embeds=given,
                past_key_values=self._cache,
                use_cache=True,
                output_hidden_states=True,
                logits_to_keep=1,
            )
        self._cache = out.past_key_values
        hidden = torch.stack(out.hidden_states[-self._layers :], dim=1)
        return {"logits": out.logits.numpy(), "hidden_states": hidden.numpy()}

    def reset(self) -> None:
        """Begins a new sequence."""
        self._cache = None

    def close(self) -> None:
        """Forgets the model."""
        del self._model, self._cache


class VisionExecutor(Executor):
    """The vision encoder's package, and the projector, whose weights the app keeps in ``llm/``."""

    def __init__(self, package: Executor, folder: Path) -> None:
        """``package`` runs the tower; ``folder`` is ``llm/``.

        Raises:
            MissingToolError: it is not there.
        """
        if not (folder / WEIGHTS_FILE).is_file():
            raise MissingToolError(
                f"the vision encoder's projector is in {folder.name}/, which was not exported. Export "
                "the llm as well; the app cannot do without either"
            )
        self.runtime, self.rounds_to_half = package.runtime, package.rounds_to_half
        self.threads = package.threads
        self._package = package
        self._weights = _tensors(folder, f"{PROJECTOR}.")
        _require_projector(self._weights, folder)

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of the package, or of the projector, in fp32."""
        import torch
        from torch.nn import functional

        if graph != PROJECTOR_GRAPH:
            return self._package.run(graph, inputs)
        (features,) = (torch.from_numpy(value).float() for value in inputs.values())
        with torch.no_grad():
            inner = functional.gelu(self._linear("linear_0", features))
            return {name: self._linear("linear_2", inner).numpy() for name in inputs}

    def _linear(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        return functional.linear(x, self._weights[f"{layer}.weight"], self._weights[f"{layer}.bias"])

    def reset(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Closes the package."""
        self._package.close()


def _require_projector(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raises GateError unless ``weights`` are the two layers of a projector."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    inner, outer = shapes.get("linear_0.weight", ()), shapes.get("linear_2.weight", ())
    flat = len(inner) == len(outer) == 2
    biases = shapes.get("linear_0.bias"), shapes.get("linear_2.bias")
    if not flat or outer[1] != inner[0] or biases != (inner[:1], outer[:1]):
        raise GateError(
            f"{folder / WEIGHTS_FILE}: the projector's two layers are incomplete or do not fit together. "
            "Get the bundle again."
        )


def _tensors(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """What the file restores, float32, by the names after ``prefix``."""
    import torch

    return {name: torch.from_numpy(values).float() for name, values in read_weights(folder, prefix)}
