"""``llm/config.json`` as it is read back: the sizes of the Qwen2 in the folder, and how it is quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mobile_o_export.errors import GateError
from mobile_o_export.members import Members
from mobile_o_export.strict import MOST_LAYERS, MOST_WIDTH

CONFIG_FILE = "config.json"


class Quantization(BaseModel):
    """How wide MLX's integers are, and how many share a scale and an offset."""

    model_config = ConfigDict(frozen=True)

    group_size: int = Field(ge=1, le=MOST_WIDTH)
    bits: Literal[4, 8]


class LanguageConfig(BaseModel):
    """The keys that transformers knows by the same names, and MLX's quantisation; others are the app's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden_size: int = Field(ge=1, le=MOST_WIDTH)
    num_hidden_layers: int = Field(ge=1, le=MOST_LAYERS)
    intermediate_size: int = Field(ge=1, le=MOST_WIDTH)
    num_attention_heads: int = Field(ge=1, le=MOST_WIDTH)
    num_key_value_heads: int = Field(ge=1, le=MOST_WIDTH)
    rms_norm_eps: float = Field(gt=0, lt=1)
    vocab_size: int = Field(ge=1, le=MOST_WIDTH)
    max_position_embeddings: int = Field(ge=1, le=MOST_WIDTH)
    rope_theta: float = Field(gt=0, allow_inf_nan=False)
    tie_word_embeddings: bool
    quantization: Quantization | None = None

    @model_validator(mode="after")
    def _divides(self) -> Self:
        heads, width = self.num_attention_heads, self.hidden_size
        if width % heads or heads % self.num_key_value_heads or (width // heads) % 2:
            raise ValueError(
                f"hidden_size {width}, num_attention_heads {heads} and num_key_value_heads "
                f"{self.num_key_value_heads} do not divide one another into heads of even width"
            )
        return self

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That of the folder ``llm/``.

        Raises:
            GateError: the file is missing or damaged.
        """
        return Members(folder, GateError).json(CONFIG_FILE, cls)
