"""The language model as straight-line PyTorch: Qwen2's layers from transformers, our own loop and caches.

transformers decides caches, masks and hidden-state capture with machinery that does not lower; a loop
over its decoder layers with an explicit additive mask and a cache object does, on every backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

Rotary = tuple[torch.Tensor, torch.Tensor]

GROUPED = "mobile_o_grouped"
"""What transformers knows :func:`grouped_attention` as."""

MASKED_SCORE = -4e4
"""Added to the score of a position that must not be seen: finite in fp16, and exp() of it is 0."""


class LayerCache(Protocol):
    """Where one call's keys and values go, and which ones its queries see."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``key_states``, ``value_states`` [B, H, S, E] → all keys and values to attend to."""
        ...


class GrowingCache:
    """Keys and values appended to what came before, as Hugging Face's ``past_key_values``."""

    def __init__(self, past: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.past = past
        self.present: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, H, S, E] → [B, H, P + S, E]."""
        if layer_idx < len(self.past):
            key, value = self.past[layer_idx]
            key_states = torch.cat([key, key_states], dim=2)
            value_states = torch.cat([value, value_states], dim=2)
        self.present.append((key_states, value_states))
        return key_states, value_states


class FreshCache:
    """A prompt's keys and values, kept for the caller; the queries see only the prompt itself."""

    def __init__(self) -> None:
        self.present: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, H, S, E] → the same tensors, remembered in layer order."""
        del layer_idx
        self.present.append((key_states, value_states))
        return key_states, value_states


class FixedCache:
    """A cache of fixed capacity of which one position is replaced.

    The write is a select against a one-hot of the position: exact, static in shape, and the same few
    elementwise operations on every backend, where an indexed write is a scatter on some and fails on
    others.
    """

    def __init__(self, past: list[tuple[torch.Tensor, torch.Tensor]], position: torch.Tensor) -> None:
        self.past = past
        self.present: list[tuple[torch.Tensor, torch.Tensor]] = []
        capacity = past[0][0].shape[2]
        self.here = (torch.arange(capacity, dtype=position.dtype) == position).view(1, 1, capacity, 1)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, H, 1, E] → the whole cache [B, H, T, E] with the position replaced."""
        key, value = self.past[layer_idx]
        key_states = torch.where(self.here, key_states, key)
        value_states = torch.where(self.here, value_states, value)
        self.present.append((key_states, value_states))
        return key_states, value_states


def causal_mask(query_positions: torch.Tensor, keys: int | torch.SymInt) -> torch.Tensor:
    """The additive mask of causal attention.

    Args:
        query_positions: [S], the position of each query.
        keys: how many keys there are, at positions 0, 1, ….

    Returns:
        [1, 1, S, keys], 0 where a query may look and ``MASKED_SCORE`` where it may not.
    """
    key_positions = torch.arange(keys, dtype=query_positions.dtype)  # type: ignore[arg-type]
    hidden = key_positions[None, :] > query_positions[:, None]
    return (hidden.to(torch.float32) * MASKED_SCORE)[None, None]


def grouped_attention(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention over keys and values as the cache holds them.

    transformers' own repeats them for each query head first: 7 copies of the whole cache for each token of
    the 0.5B model. Here a group's queries are rows of one product instead; the arithmetic is the same.

    Args:
        query: [B, heads, S, E].
        key: [B, H, keys, E], where H divides heads.
        value: [B, H, keys, E].
        attention_mask: additive, broadcastable to [B, heads, S, keys].
        scaling: of the scores.

    Returns:
        [B, S, heads, E], and None for the weights that transformers could return.
    """
    batch, heads, length, width = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    rows = query.reshape(batch, kv_heads, heads // kv_heads * length, width)
    scores = torch.matmul(rows, key.transpose(2, 3)) * scaling
    scores = scores.reshape(batch, heads, length, keys) + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    mixed = torch.matmul(weights.reshape(batch, kv_heads, heads // kv_heads * length, keys), value)
    return mixed.reshape(batch, heads, length, width).transpose(1, 2), None


class LanguageModel(nn.Module):
    """Qwen2 with its head, giving logits and the last K hidden states.

    ``hidden_states`` are Hugging Face's: the embeddings, then each layer's output, the last of them
    after the final norm.
    """

    def __init__(self, config: Mapping[str, Any], conditioning_layers: int) -> None:
        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM
        from transformers.modeling_utils import AttentionInterface

        AttentionInterface.register(GROUPED, grouped_attention)
        qwen = Qwen2Config(**config)
        qwen._attn_implementation = GROUPED
        self.qwen: Qwen2ForCausalLM = Qwen2ForCausalLM(qwen)
        self.conditioning_layers = conditioning_layers

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """``input_ids`` [B, S] → embeddings [B, S, D]."""
        out: torch.Tensor = self.qwen.model.embed_tokens(input_ids)
        return out

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` [B, S, D] → logits [B, S, V]."""
        out: torch.Tensor = self.qwen.lm_head(hidden)
        return out

    def rotary(self, positions: torch.Tensor) -> Rotary:
        """Cosines and sines of the rotary embedding, computed in fp32: [S] → two of [1, S, E]."""
        cos, sin = self.qwen.model.rotary_emb(positions.new_zeros((), dtype=torch.float32), positions[None])
        return cos, sin

    def layers(
        self, inputs_embeds: torch.Tensor, rotary: Rotary, mask: torch.Tensor, cache: LayerCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All decoder layers and the final norm.

        Args:
            inputs_embeds: [B, S, D].
            rotary: cosines and sines of the S positions, each [1, S, E].
            mask: additive, broadcastable to [B, heads, S, keys].
            cache: takes and gives keys and values.

        Returns:
            The output of the final norm [B, S, D] and the last K hidden states [B, K, S, D].
        """
        model = self.qwen.model
        hidden = inputs_embeds
        mask = mask.to(hidden.dtype)
        rotary = (rotary[0].to(hidden.dtype), rotary[1].to(hidden.dtype))
        states = [hidden]
        for layer in model.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                past_key_values=cache,
                position_embeddings=rotary,
                use_cache=False,
            )
            states.append(hidden)
        states[-1] = model.norm(hidden)
        return states[-1], torch.stack(states[-self.conditioning_layers :], dim=1)
