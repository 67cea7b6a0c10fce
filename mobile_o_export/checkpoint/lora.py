"""A PEFT LoRA adapter, merged into the base weights one tensor at a time.

Formulas: W + (alpha / r) B A (LoRA, arXiv 2106.09685, section 4.1), with alpha / sqrt(r) in its
rank-stabilised form (arXiv 2312.03732). File layout: https://huggingface.co/docs/peft, "Checkpoint format".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_o_export.checkpoint.config import read_json
from mobile_o_export.checkpoint.digest import tensors_digest
from mobile_o_export.checkpoint.module_pattern import ModulePatterns
from mobile_o_export.checkpoint.names import EMBEDDINGS, HEAD, PEFT_PREFIX
from mobile_o_export.checkpoint.safetensors_file import SafetensorsFile, TensorInfo, pickle_error
from mobile_o_export.checkpoint.trained_beside import TrainedBeside
from mobile_o_export.errors import CheckpointError
from mobile_o_export.strict import MOST_WIDTH

if TYPE_CHECKING:
    import torch

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?:(?P<linear>[AB])\.weight|embedding_(?P<embedding>[AB]))")

_COPY = re.compile(r"\.(?:modules_to_save|original_module)(?=\.)")
"""PEFT's ``save_embedding_layers`` also writes both halves of a module that it trained whole."""

_CONV_DIMS = 4

_UNSUPPORTED_WHEN_SET = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
"""Options of PEFT that change what the two factors mean; ignoring one would merge the wrong weights."""

_BASE_CHANGING_INITIALISATIONS = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Initialisations that also change the base weights, so that the adapter does not fit the published ones."""

_RANKS, _ALPHAS = "rank_pattern", "alpha_pattern"
"""Exceptions from ``r`` and ``lora_alpha``, by patterns of modules' names."""

SMALLEST, LARGEST = 1e-6, 1e6
"""Of an alpha: beyond, its product with the factors is nothing, or more than fp32 holds."""


@dataclass(frozen=True)
class _Delta:
    """The two factors of one base weight, by their names in the adapter's file."""

    a: str
    b: str
    scale: float
    embedding: bool

    def of(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """What is added to the weight: ``scale`` B A.

        Args:
            a: [r, in] of a Linear, [r, in] of an Embedding, [r, in, h, w] of a Conv2d.
            b: [out, r], [out, r] and [out, r, 1, 1].

        Returns:
            [out, in]; an Embedding's rows are its tokens, [in, out]; [out, in, h, w].
        """
        import torch

        if a.dim() == _CONV_DIMS:
            return torch.einsum("or,rihw->oihw", b.flatten(1), a) * self.scale
        product = b @ a
        return (product.T if self.embedding else product) * self.scale


CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


class LoraAdapter:
    """A PEFT adapter folder: which base weights it changes, and each changed weight.

    Args:
        path: the folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: the tensors of the checkpoint that it is merged into; with ``tied``, the embeddings are there
            as the head as well.
        tied: the head is the table of embeddings.

    Attributes:
        beside: base weights that were trained beside the adapter, to be taken over before it is merged.

    Raises:
        CheckpointError: a file is missing or damaged, an option is not supported, a tensor of the adapter
            fits no base weight, or what was trained beside it cannot be read.
    """

    def __init__(self, path: Path, base: Mapping[str, TensorInfo], *, tied: bool = False) -> None:
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder. Give --lora the folder that PEFT saved.")
        self.path = path
        self._tied = tied
        self._config = read_json(path / CONFIG_FILE)
        self._refuse_unsupported()
        weights = path / WEIGHTS_FILE
        self._ranks = self._patterns(_RANKS, _rank)
        self._alphas = self._patterns(_ALPHAS, _alpha)
        if not weights.is_file() and (path / "adapter_model.bin").exists():
            raise pickle_error(path / "adapter_model.bin")
        self._file = SafetensorsFile(weights)
        self._deltas: dict[str, _Delta] = {}
        self._replacements: dict[str, str] = {}
        self._match(base)
        self.beside = TrainedBeside.of(path, self._file, base)

    @property
    def files(self) -> tuple[Path, ...]:
        """Its configuration, its weights and what was trained beside them."""
        return self.path / CONFIG_FILE, self.path / WEIGHTS_FILE, *self.beside.files

    @property
    def rank(self) -> int:
        """``r`` of ``adapter_config.json``; single modules may differ."""
        return int(self._config["r"])

    @property
    def alpha(self) -> float:
        """``lora_alpha`` of ``adapter_config.json``; single modules may differ."""
        return float(self._config["lora_alpha"])

    @property
    def targets(self) -> tuple[str, ...]:
        """The base tensors that the adapter changes, sorted."""
        return tuple(sorted({*self._deltas, *self._replacements, *self.beside.tensors}))

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` of every setting that merging reads and every tensor's bytes."""
        keys = ("r", "lora_alpha", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern")
        values = {key: self._config.get(key) for key in keys}
        if self._tied:
            values["modules_to_save"] = self._config.get("modules_to_save")
        settings = json.dumps(values, sort_keys=True)
        content = sha256(settings.encode())
        content.update(tensors_digest(dict.fromkeys(self._file.tensors, self._file)).encode())
        if self.beside.tensors:
            content.update(self.beside.digest.encode())
        return f"sha256:{content.hexdigest()}"

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Base tensor ``name`` with the adapter merged, in fp32; ``weight`` itself where it is no target.

        Raises:
            CheckpointError: the adapter's own tensors hold NaN or infinity.
        """
        import torch

        if name in self._replacements:
            weight = self._finite(self._replacements[name])
        elif (trained := self.beside.tensors.get(name)) is not None and not torch.equal(
            # Where the whole model was saved, in another dtype maybe, most of it was not trained.
            weight.to(trained.dtype),
            trained,
        ):
            weight = trained.to(torch.float32)
        if name not in self._deltas:
            return weight
        delta = self._deltas[name]
        return weight.to(torch.float32) + delta.of(self._finite(delta.a), self._finite(delta.b))

    def _finite(self, name: str) -> torch.Tensor:
        import torch

        tensor = self._file.tensor(name).to(torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{self._file.path}: {name} holds NaN or infinity. The training diverged or the file is "
                "damaged: use an earlier adapter, or copy it again."
            )
        return tensor

    def _refuse_unsupported(self) -> None:
        where = self.path / "adapter_config.json"
        found = self._config.get("peft_type")
        if found != "LORA":
            raise CheckpointError(
                f"{where}: peft_type is {found!r}, and only LORA can be merged. Merge it with PEFT "
                "(merge_and_unload) and export the result without --lora."
            )
        for key in _UNSUPPORTED_WHEN_SET:
            if self._config.get(key):
                raise CheckpointError(
                    f"{where}: {key} is {self._config[key]!r}, which is not supported. Merge it with PEFT "
                    "(merge_and_unload) and export the result without --lora."
                )
        start = self._config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING_INITIALISATIONS):
            raise CheckpointError(
                f"{where}: init_lora_weights is {start!r}, which changed the base weights as well. Save it "
                "with PEFT's path_initial_model_for_weight_conversion, which turns it into a plain LoRA."
            )
        for key in ("use_rslora", "fan_in_fan_out"):
            if not isinstance(self._config.get(key), bool | None):
                raise CheckpointError(
                    f"{where}: {key} is {self._config[key]!r}, and true or false is needed. Save the adapter "
                    "again."
                )
        self._require_number("r", self._config.get("r"), _rank)
        self._require_number("lora_alpha", self._config.get("lora_alpha"), _alpha)

    def _patterns(self, key: str, wanted: Callable[[object], str]) -> ModulePatterns:
        """The exceptions that ``rank_pattern`` or ``alpha_pattern`` makes, every value as ``wanted``."""
        where = self.path / "adapter_config.json"
        values = self._config.get(key)
        if not isinstance(values, dict | None):
            raise CheckpointError(
                f"{where}: {key} is {values!r}, and a table of patterns is needed. Save the adapter again."
            )
        for pattern, value in (values or {}).items():
            self._require_number(f"{key} of {pattern[:60]!r}", value, wanted)
        try:
            return ModulePatterns(values or {})
        except ValueError as error:
            raise self._unreadable(key, error) from error

    def _require_number(self, what: str, value: object, wanted: Callable[[object], str]) -> None:
        """Raises CheckpointError unless ``value`` is what is ``wanted``."""
        if needed := wanted(value):
            raise CheckpointError(
                f"{self.path / 'adapter_config.json'}: {what} is {value!r}, and {needed}. Save the adapter "
                "again."
            )

    def _unreadable(self, key: str, error: ValueError) -> CheckpointError:
        return CheckpointError(
            f"{self.path / 'adapter_config.json'}: {key}: {error}. Merge it with PEFT (merge_and_unload) and "
            "export the result without --lora."
        )

    def _chosen(self, key: str, patterns: ModulePatterns, module: str, default: float) -> float:
        """What ``patterns`` of ``key`` say of ``module``."""
        try:
            return patterns.value(module, default)
        except ValueError as error:
            raise self._unreadable(key, error) from error

    def _match(self, base: Mapping[str, TensorInfo]) -> None:
        factors: dict[str, dict[str, TensorInfo]] = {}
        embeddings: set[str] = set()
        for name, info in self._file.tensors.items():
            # PEFT keeps a wrapped module's own weight under "base_layer", and saves it where the training
            # changed it (biases) or might have (embeddings).
            plain = name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")
            if (whole := _COPY.sub("", name)) != name and whole in self._file.tensors:
                continue
            match = _FACTOR.fullmatch(plain)
            if match is None:
                if self._base_name(name, plain, base) in self._replacements:
                    raise self._twice(name, plain)
                self._replacements[plain] = name
                if base[plain].shape != info.shape:
                    raise self._misfit(name, info.shape, f"{plain} {base[plain].shape}")
                continue
            weight = self._base_name(name, f"{match['module']}.weight", base)
            pair, factor = factors.setdefault(weight, {}), match["linear"] or match["embedding"]
            if factor in pair:
                raise self._twice(name, f"lora_{factor} of {weight}")
            pair[factor] = info
            if match["embedding"]:
                embeddings.add(weight)
        if self._tied:
            self._share(factors)
        for weight, pair in factors.items():
            module = weight.removesuffix(".weight")
            if set(pair) != {"A", "B"}:
                raise CheckpointError(
                    f"{self._file.path}: {module} has only lora_{next(iter(pair))} of the two factors. "
                    "The adapter is incomplete: save or copy it again."
                )
            self._deltas[weight] = self._delta(
                module, pair["A"], pair["B"], base[weight], weight in embeddings
            )
        if not self._file.tensors:
            raise CheckpointError(f"{self._file.path}: holds no tensors. Save the adapter again.")

    def _share(self, factors: Iterable[str]) -> None:
        """Says what becomes of a head that is the table of embeddings.

        A module that PEFT trained whole (``modules_to_save``) is a copy of its own, and the other stays what
        it was. Embeddings that were saved without being trained whole are loaded into the one table.

        Raises:
            CheckpointError: there are factors of either.
        """
        if shared := {EMBEDDINGS, HEAD} & set(factors):
            module = min(shared).removesuffix(".weight")
            raise CheckpointError(
                f"{self._file.path}: changes {module} by factors, and this checkpoint's head and embeddings "
                "are one table. Training added them to one of the two uses and PEFT merges them into both, "
                "which is another model. Leave embed_tokens and lm_head out of target_modules, or save the "
                "trained model with the two untied."
            )
        whole = self._config.get("modules_to_save") or ()
        named = {str(name).rsplit(".", 1)[-1] for name in (whole if isinstance(whole, list) else [whole])}
        if EMBEDDINGS in self._replacements and "embed_tokens" not in named:
            self._replacements.setdefault(HEAD, self._replacements[EMBEDDINGS])

    def _twice(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._file.path}: {name} is a second {what}. The adapter is damaged: save or copy it again."
        )

    def _base_name(self, name: str, candidate: str, base: Mapping[str, TensorInfo]) -> str:
        if not name.startswith(PEFT_PREFIX) or candidate not in base:
            raise CheckpointError(
                f"{self._file.path}: {name} matches no weight of the checkpoint (looked for {candidate}). "
                "If it was trained on another checkpoint, use that. If it changes a module of a kind that "
                "cannot be merged here, merge it with PEFT (merge_and_unload) and export the result without "
                "--lora."
            )
        return candidate

    def _delta(
        self, module: str, a: TensorInfo, b: TensorInfo, weight: TensorInfo, embedding: bool
    ) -> _Delta:
        rank = self._chosen(_RANKS, self._ranks, module, self._config["r"])
        alpha = self._chosen(_ALPHAS, self._alphas, module, self._config["lora_alpha"])
        dims = len(weight.shape)
        if dims == _CONV_DIMS and a.shape[1:2] != weight.shape[1:2]:
            raise CheckpointError(
                f"{self._file.path}: {module} is a convolution in groups, and its factors mix all: no "
                "weight of that module computes it, and PEFT does not merge it either. Train an adapter "
                f"without {module}."
            )
        if {len(a.shape), len(b.shape)} != {dims} or (a.shape[0], b.shape[1]) != (rank, rank):
            raise self._misfit(f"lora_A and lora_B of {module}", (*a.shape, *b.shape), f"rank {rank}")
        # fan_in_fan_out is of GPT-2's Conv1D; PEFT sets it aside for a Linear, and a Mobile-O has no other.
        product = (a.shape[1], b.shape[0]) if embedding else (b.shape[0], *a.shape[1:])
        if product != weight.shape or b.shape[2:] != (1,) * (dims - 2):
            raise self._misfit(f"B @ A of {module}", product, f"{weight.name} {weight.shape}")
        scale = alpha / (rank**0.5 if self._config.get("use_rslora") else rank)
        return _Delta(a.name, b.name, scale, embedding)

    def _misfit(self, name: str, shape: tuple[int, ...], wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{self._file.path}: {name} has the shape {shape}, which does not fit {wanted}. "
            "Use the adapter with the checkpoint that it was trained on."
        )


def _rank(value: object) -> str:
    """What a rank has to be, where ``value`` is none."""
    fits = type(value) is int and 1 <= value <= MOST_WIDTH
    return "" if fits else f"a whole number from 1 to {MOST_WIDTH} is needed"


def _alpha(value: object) -> str:
    """What an alpha has to be, where ``value`` is none."""
    if isinstance(value, int | float) and type(value) is not bool and SMALLEST <= value <= LARGEST:
        return ""
    silent = "; 0 would leave the adapter without effect" if value == 0 else ""
    return f"a number from {SMALLEST:g} to {LARGEST:g} is needed{silent}"
