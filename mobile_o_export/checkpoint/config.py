"""A checkpoint's configuration: the sizes and settings that its tensors alone do not tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobile_o_export.errors import CheckpointError
from mobile_o_export.members import require_no_special_file
from mobile_o_export.strict import MOST_LAYERS, MOST_WIDTH, parse_json

BUILT_IN_DIFFUSION: Mapping[str, str] = {
    "Efficient-Large-Model/Sana_600M_512px_diffusers": "sana-600m-512",
    "Efficient-Large-Model/Sana_1600M_512px_diffusers": "sana-1600m-512",
}
"""Published SANA repositories whose configurations ship with this package, and their folders in ``data``."""

_DATA = Path(__file__).parent / "data"

GUIDANCE = "guidance_scale"
"""Key of a checkpoint's own guidance; the published ones leave it out."""

MOST_GUIDANCE = 100.0
"""Far beyond use, and far from overflow."""

_VISION_STRIDE = 64
"""Pixels of one image token's side: FastViTHD halves the resolution six times."""

MOST_PIXELS = 8192
"""Of a side of a picture: eight times the published encoder's, and few enough to be allocated."""

MOST_LATENT = 1024
"""Of a side of a latent."""

MOST_STAGES = 8
"""Of a VAE, each of which doubles a side."""

_MODEL_TYPES = r"mobile[_-]?o|llava_qwen2$"
"""Mobile-O's inference writes the first; its training scripts keep the second, of LLaVA, whence they came."""

_REFUSED_WHEN_SET = ("mm_use_im_start_end", "quantization_config")
"""Two more tokens around an image's features (LLaVA); weights that are no numbers yet (transformers)."""

_DIFFUSION_KEYS = ("diffusion_name_or_path", "vlm_num_layers")

_LANGUAGE_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "layer_types",
    "attention_dropout",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
"""The Qwen2 fields of ``config.json`` that describe the model; the rest is about Mobile-O or training."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusers configurations of the DiT, the VAE and the scheduler.

    Attributes:
        transformer: ``SanaTransformer2DModel``'s, as in ``transformer/config.json``.
        vae: ``AutoencoderDC``'s, as in ``vae/config.json``.
        scheduler: ``DPMSolverMultistepScheduler``'s, as in ``scheduler/scheduler_config.json``.
        source: where they came from: a built-in name or a folder.

    Raises:
        CheckpointError: a class or size that this package cannot export.
    """

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    source: str

    def __post_init__(self) -> None:
        expected = (
            (self.transformer, "transformer/config.json", "SanaTransformer2DModel"),
            (self.vae, "vae/config.json", "AutoencoderDC"),
        )
        for values, file, class_name in expected:
            found = values.get("_class_name")
            if found != class_name:
                raise CheckpointError(
                    f"{self.source}: {file} is of class {found!r}, and Mobile-O needs {class_name}. "
                    "Point diffusion_name_or_path at a SANA folder."
                )
        where = f"{self.source}: transformer/config.json"
        _positive_int(self.transformer, "num_layers", where, MOST_LAYERS)
        for key in ("num_attention_heads", "attention_head_dim", "caption_channels",
                    "in_channels", "out_channels", "patch_size"):  # fmt: skip
            _positive_int(self.transformer, key, where)
        _positive_int(self.transformer, "sample_size", where, MOST_LATENT)
        _require_plausible(self.transformer, where)
        _require_plausible(self.vae, f"{self.source}: vae/config.json")
        _positive_int(self.vae, "latent_channels", f"{self.source}: vae/config.json")
        _require_stages(self.vae, f"{self.source}: vae/config.json")
        _positive_number(self.vae, "scaling_factor", f"{self.source}: vae/config.json")
        if self.transformer["in_channels"] != self.vae["latent_channels"]:
            raise CheckpointError(
                f"{self.source}: the transformer takes {self.transformer['in_channels']} latent channels "
                f"and the VAE makes {self.vae['latent_channels']}. Use the two that were trained together."
            )
        if self.scheduler.get("prediction_type") != "flow_prediction":
            raise CheckpointError(
                f"{self.source}: scheduler/scheduler_config.json has prediction_type "
                f"{self.scheduler.get('prediction_type')!r}, and Mobile-O's DiT predicts flow "
                "('flow_prediction'). Restore the scheduler that the checkpoint was trained with."
            )

    @classmethod
    def resolve(cls, name_or_path: str, folder: Path) -> DiffusionConfig:
        """The configurations that ``diffusion_name_or_path`` names; nothing is ever downloaded.

        Args:
            name_or_path: an absolute folder, a folder relative to ``folder``, or a published name
                (its last part suffices).
            folder: the checkpoint's folder.

        Raises:
            CheckpointError: the name is neither, or a configuration in the folder is missing or damaged.
        """
        try:
            local = folder / Path(name_or_path).expanduser()
            found = local.is_dir()
        # A name that the file system does not take, or somebody's home that is not here.
        except (OSError, ValueError, RuntimeError):
            found = False
        if found:
            return cls._read(local, str(local))
        basename = name_or_path.rstrip("/").rsplit("/", 1)[-1].lower()
        for published, data in BUILT_IN_DIFFUSION.items():
            if published.rsplit("/", 1)[-1].lower() == basename:
                return cls._read(_DATA / data, published)
        raise CheckpointError(
            f"{folder / 'config.json'}: diffusion_name_or_path {name_or_path!r} is no local folder "
            f"and no built-in configuration ({', '.join(BUILT_IN_DIFFUSION)}). Set it to one, or to "
            "a local folder with transformer/config.json, vae/config.json and "
            "scheduler/scheduler_config.json."
        )

    @classmethod
    def _read(cls, folder: Path, source: str) -> DiffusionConfig:
        return cls(
            transformer=read_json(folder / "transformer" / "config.json"),
            vae=read_json(folder / "vae" / "config.json"),
            scheduler=read_json(folder / "scheduler" / "scheduler_config.json"),
            source=source,
        )


@dataclass(frozen=True)
class MobileOConfig:
    """What ``config.json`` and the diffusion configurations say of a checkpoint.

    Attributes:
        language: Qwen2's fields, to be used as ``transformers.Qwen2Config(**language)``. Its
            ``tie_word_embeddings`` is always false, since :class:`~.reader.Checkpoint` hands out a
            ``lm_head.weight`` of its own even where the file shares it with the embeddings.
        tie_word_embeddings: whether the file may leave ``lm_head.weight`` out.
        image_size: R, the side of the image that the vision encoder takes, in pixels.
        image_aspect_ratio: ``"pad"`` where images are squared before resizing, else None.
        mm_hidden_size: width of the vision encoder's features.
        mm_projector_type: ``"mlp2x_gelu"``.
        conditioning_layers: K, how many of the LLM's last hidden states feed the MCP.
        guidance: the model's own, or None where it does not say.
        diffusion: configurations of the DiT, the VAE and the scheduler.
        raw: ``config.json`` as read.

    Raises:
        CheckpointError: a key is missing or has a value that this package cannot export.
    """

    language: Mapping[str, Any]
    tie_word_embeddings: bool
    image_size: int
    image_aspect_ratio: str | None
    mm_hidden_size: int
    mm_projector_type: str
    conditioning_layers: int
    guidance: float | None
    diffusion: DiffusionConfig
    raw: Mapping[str, Any]

    def __post_init__(self) -> None:
        _positive_int(self.language, "num_hidden_layers", "config.json", MOST_LAYERS)
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
                    "num_key_value_heads"):  # fmt: skip
            _positive_int(self.language, key, "config.json")
        if "max_position_embeddings" in self.language:
            _positive_int(self.language, "max_position_embeddings", "config.json")
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            _require_token_ids(self.language, key)
        for key in ("rms_norm_eps", "rope_theta"):
            _positive_number(self.language, key, "config.json")
        width, heads = self.language["hidden_size"], self.language["num_attention_heads"]
        if width % heads or heads % self.language["num_key_value_heads"]:
            raise CheckpointError(
                f"config.json: hidden_size {width}, num_attention_heads {heads} and num_key_value_heads "
                f"{self.language['num_key_value_heads']} do not divide one another. Correct the three."
            )
        if self.language.get("hidden_act", "silu") != "silu":
            raise _unsupported("hidden_act", self.language["hidden_act"], "'silu'")
        if self.language.get("use_sliding_window"):
            raise _unsupported("use_sliding_window", True, "false")
        kinds = self.language.get("layer_types")
        if kinds is not None and (not isinstance(kinds, list) or set(map(str, kinds)) - {"full_attention"}):
            raise _unsupported("layer_types", kinds, "'full_attention' of every layer")
        if self.raw.get("head_dim", width // heads) not in (None, width // heads):
            size = self.raw["head_dim"]
            raise _unsupported("head_dim", size, f"hidden_size / num_attention_heads, {width // heads},")
        for key in _REFUSED_WHEN_SET:
            if self.raw.get(key):
                raise _unsupported(key, self.raw[key], "false or none")
        if not 1 <= self.image_size <= MOST_PIXELS or self.image_size % _VISION_STRIDE:
            raise CheckpointError(
                f"config.json: mm_vision_tower {self.raw.get('mm_vision_tower')!r} gives an image size of "
                f"{self.image_size}, and the encoder needs a positive multiple of {_VISION_STRIDE}, at most "
                f"{MOST_PIXELS}. "
                "Its last number must be the input resolution, as in 'mobileclip_l_1024'."
            )
        if self.image_aspect_ratio not in (None, "pad", "square", "resize"):
            raise _unsupported("image_aspect_ratio", self.image_aspect_ratio, "'pad' or none")
        if self.mm_projector_type != "mlp2x_gelu":
            raise _unsupported("mm_projector_type", self.mm_projector_type, "'mlp2x_gelu'")
        if not 1 <= self.conditioning_layers <= self.language["num_hidden_layers"] + 1:
            raise CheckpointError(
                f"config.json: vlm_num_layers is {self.conditioning_layers}, and an LLM of "
                f"{self.language['num_hidden_layers']} layers has {self.language['num_hidden_layers'] + 1} "
                "hidden states. Set it to the number that the projector was trained with."
            )

    @classmethod
    def load(cls, folder: Path) -> MobileOConfig:
        """The configuration of the checkpoint in ``folder``.

        Raises:
            CheckpointError: ``config.json`` is missing, damaged, or not a Mobile-O configuration.
        """
        return cls.from_json(read_json(folder / "config.json"), folder)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], folder: Path) -> MobileOConfig:
        """The configuration in the parsed ``raw``; ``folder`` is where relative paths start.

        Raises:
            CheckpointError: a key is missing or has a value that this package cannot export.
        """
        model_type = raw.get("model_type")
        if not isinstance(model_type, str) or not re.match(_MODEL_TYPES, model_type.lower()):
            raise CheckpointError(
                f"{folder / 'config.json'}: model_type is {model_type!r}, not one of Mobile-O's "
                "('mobile_o_inference', or 'llava_qwen2' of its training). Give the folder of a Mobile-O "
                "checkpoint."
            )
        if lacking := [key for key in _DIFFUSION_KEYS if key not in raw]:
            raise CheckpointError(
                f"{folder / 'config.json'}: has no {' and no '.join(lacking)}, which every Mobile-O has for "
                "its diffusion half. A vision-language model alone (FastVLM, LLaVA) cannot be exported; of a "
                "Mobile-O, restore the config.json that belongs to the weights."
            )
        tower = _text(raw, "mm_vision_tower", folder)
        numbers = re.findall(r"[0-9]+", tower)
        return cls(
            language=_language(raw),
            tie_word_embeddings=_true_or_false(raw, "tie_word_embeddings", folder),
            # More digits than a resolution has are no number that Python need convert.
            image_size=int(numbers[-1]) if numbers and len(numbers[-1]) < 10 else 0,
            image_aspect_ratio=raw.get("image_aspect_ratio"),
            mm_hidden_size=_positive_int(raw, "mm_hidden_size", str(folder / "config.json")),
            mm_projector_type=_text(raw, "mm_projector_type", folder),
            conditioning_layers=_positive_int(raw, "vlm_num_layers", str(folder / "config.json")),
            guidance=(
                _positive_number(raw, GUIDANCE, str(folder / "config.json"), MOST_GUIDANCE)
                if GUIDANCE in raw
                else None
            ),
            diffusion=DiffusionConfig.resolve(_text(raw, "diffusion_name_or_path", folder), folder),
            raw=raw,
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: there is no such file, or it holds no JSON object.
    """
    require_no_special_file(path, CheckpointError)
    try:
        value = parse_json(path.read_bytes(), infinities=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file. Give a complete checkpoint folder, or copy the file into it."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as JSON ({error}). Copy or download it again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a JSON object. Copy it again.")
    return value


def _language(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen2's fields of ``raw``, with ``rope_theta`` wherever this version of transformers wrote it."""
    language = {key: raw[key] for key in _LANGUAGE_KEYS if key in raw}
    # transformers 5 writes rope_parameters = {rope_theta, rope_type}; 4 wrote rope_theta and rope_scaling.
    # Of several, 5 takes rope_scaling before rope_parameters, and a theta within before one beside.
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(key) or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else rope
    if kind != "default":
        raise _unsupported(key, kind, "none")
    if "rope_theta" in rope:
        language["rope_theta"] = rope["rope_theta"]
    if language.get("num_key_value_heads") is None:
        language["num_key_value_heads"] = raw.get("num_attention_heads")
    language["tie_word_embeddings"] = False
    return language


def _unsupported(key: str, found: object, supported: str) -> CheckpointError:
    return CheckpointError(
        f"config.json: {key} is {found!r}, and only {supported} can be exported. "
        "Use a checkpoint trained that way."
    )


def _text(raw: Mapping[str, Any], key: str, folder: Path) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise CheckpointError(
            f"{folder / 'config.json'}: {key} is {_found(raw, key)}, and a non-empty text is needed. "
            "Restore the published config.json."
        )
    return value


def _true_or_false(raw: Mapping[str, Any], key: str, folder: Path) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise CheckpointError(
            f"{folder / 'config.json'}: {key} is {value!r}, and true or false is needed. "
            "Restore the published config.json."
        )
    return value


def _require_token_ids(language: Mapping[str, Any], key: str) -> None:
    """Raises CheckpointError unless ``key`` is missing, null, an id, or a list of some."""
    value = language.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and 0 <= token < MOST_WIDTH for token in ids):
        raise CheckpointError(
            f"config.json: {key} is {value!r}, and a token's id, or a list of some, is needed. "
            "Restore the published config.json."
        )


def _require_plausible(values: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError where a number, or one in a list, is more than a network has of anything."""
    for key, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not -MOST_WIDTH <= number <= MOST_WIDTH:
                raise CheckpointError(
                    f"{where}: {key} is {value!r}, and nothing of a network is beyond ±{MOST_WIDTH}. "
                    "Restore the published configuration."
                )


def _require_stages(vae: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError unless the VAE has a few stages of a few blocks each."""
    for side in ("encoder", "decoder"):
        widths, depths = f"{side}_block_out_channels", f"{side}_layers_per_block"
        for key, most in ((widths, MOST_WIDTH), (depths, MOST_LAYERS)):
            value = vae.get(key)
            fits = isinstance(value, list) and 1 <= len(value) <= MOST_STAGES
            if not fits or not all(type(number) is int and 1 <= number <= most for number in value or ()):
                raise CheckpointError(
                    f"{where}: {key} is {_found(vae, key)}, and a list of 1 to {MOST_STAGES} whole numbers "
                    f"from 1 to {most} is needed. Restore the published configuration."
                )


def _positive_int(values: Mapping[str, Any], key: str, where: str, most: int = MOST_WIDTH) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        limit = f" up to {most}" if isinstance(value, int) and value > most else ""
        raise CheckpointError(
            f"{where}: {key} is {_found(values, key)}, and a positive whole number{limit} is needed. "
            "Restore the published configuration."
        )
    return value


def _positive_number(values: Mapping[str, Any], key: str, where: str, most: float = 1e12) -> float:
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
        limit = f" up to {most:g}" if isinstance(value, int | float) and value > most else ""
        raise CheckpointError(
            f"{where}: {key} is {_found(values, key)}, and a positive number{limit} is needed. "
            "Restore the published configuration."
        )
    return float(value)


def _found(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "missing"
