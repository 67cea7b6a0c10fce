"""llm: ``embed``, ``prefill`` and ``decode`` of Qwen2, with a KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from mobile_o_export.components import building
from mobile_o_export.components.base import (
    CacheStyle,
    Continuity,
    Extent,
    FunctionSpec,
    GraphOptions,
    GraphSpec,
    Profile,
)
from mobile_o_export.components.mcp import hidden_states_spec
from mobile_o_export.components.sizes import sizes
from mobile_o_export.components.stateless import sequence_extent, sequence_graphs
from mobile_o_export.model.elementary import BlendedCache, distances, later_mask, one_hot
from mobile_o_export.model.llm import (
    MASKED_SCORE,
    FixedCache,
    FreshCache,
    GrowingCache,
    LanguageModel,
    causal_mask,
)
from mobile_o_export.tensors import DType, Role, TensorSpec

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint

CACHE_NAMES = ("k_cache", "v_cache")
CACHE_LAYOUT = "L H T E"


class LLM:
    """Qwen2 as three functions over one set of weights."""

    name, widens = "llm", False

    def functions(self, checkpoint: Checkpoint) -> tuple[FunctionSpec, ...]:
        """``embed``, ``prefill``, ``decode``."""
        s = sizes(checkpoint)
        ids = TensorSpec(
            "input_ids", (1, "S"), DType.INT32, "B S", Role.TOKENS, (0, s.vocabulary - 1), "token ids"
        )
        embeds = TensorSpec(
            "inputs_embeds",
            (1, "S", s.hidden),
            DType.FLOAT32,
            "B S D",
            Role.FEATURES,
            None,
            "embeddings of tokens, or image features in the place of <image>",
        )
        logits = TensorSpec(
            "logits",
            (1, 1, s.vocabulary),
            DType.FLOAT32,
            "B 1 V",
            Role.LOGITS,
            None,
            "of the last real position",
        )
        hidden = hidden_states_spec(checkpoint)
        one = {"S": 1}
        return (
            FunctionSpec("embed", (ids,), (embeds,)),
            FunctionSpec("prefill", (embeds,), (logits, hidden), Continuity.STARTS),
            FunctionSpec("decode", (embeds.bind(one),), (logits, hidden.bind(one)), Continuity.CONTINUES),
        )

    def graphs(self, checkpoint: Checkpoint, options: GraphOptions) -> tuple[GraphSpec, ...]:
        """``embed`` for prompts and single tokens, then prefill and decode in the cache's style."""
        embed, prefill, decode = self.functions(checkpoint)
        (ids,), (embeds,) = embed.inputs, embed.outputs
        embed = FunctionSpec("embed", (retyped(ids, options.token_dtype),), (embeds,))
        if options.cache is CacheStyle.GROWING:
            growing = _growing_graph(checkpoint, prefill, options)
            return (*sequence_graphs(embed, options, None), growing)
        lengths = tuple(sorted({1, *options.lengths}))
        embeds_graphs = tuple(
            GraphSpec(f"embed_{n}", ("embed",), (embed.inputs[0].bind({"S": n}),), (embeds.bind({"S": n}),))
            for n in lengths
        )
        return (*embeds_graphs, *_fixed_graphs(checkpoint, prefill, decode, options))

    def load(self, checkpoint: Checkpoint, *, stored: bool = False) -> LanguageModel:
        """Qwen2."""
        config = checkpoint.config
        weights = checkpoint.component_state_dict(self.name, None if stored else torch.float32)
        named = {f"qwen.{name}": tensor for name, tensor in weights.items()}
        model = building.build(lambda: LanguageModel(config.language, config.conditioning_layers), named)
        # The rotary frequencies are computed, not stored, and the meta device computed nothing.
        rotary = model.qwen.model.rotary_emb
        model.qwen.model.rotary_emb = type(rotary)(config=model.qwen.config)
        return model

    def rewrite(self, module: nn.Module, options: GraphOptions) -> nn.Module:
        """The module with the numerics of ``options`` and its head in pieces, changed in place."""
        assert isinstance(module, LanguageModel)
        if options.head_chunk is not None:
            module.qwen.lm_head = ChunkedLinear(module.qwen.lm_head, options.head_chunk)
        return building.with_half_safety(module, options)

    def graph(self, module: nn.Module, spec: GraphSpec, options: GraphOptions) -> nn.Module:
        """The module of one graph."""
        assert isinstance(module, LanguageModel)
        if spec.functions == ("embed",):
            return EmbedGraph(module, options)
        if options.cache is CacheStyle.GROWING:
            return GrowingGraph(module, options)
        if spec.functions == ("prefill",):
            (length,) = (s.shape[1] for s in spec.inputs if s.name == "inputs_embeds")
            assert isinstance(length, int)
            return PrefillGraph(module, spec, length, options)
        return DecodeGraph(module, spec, options)

    def reference(self, module: nn.Module, checkpoint: Checkpoint) -> LLMCalls:
        """The three functions in PyTorch, unpadded, with a growing cache."""
        del checkpoint
        assert isinstance(module, LanguageModel)
        return LLMCalls(module)


def retyped(spec: TensorSpec, dtype: DType) -> TensorSpec:
    """``spec`` with another element type."""
    return TensorSpec(spec.name, spec.shape, dtype, spec.layout, spec.role, spec.range, spec.description)


def _fixed_graphs(
    checkpoint: Checkpoint, prefill: FunctionSpec, decode: FunctionSpec, options: GraphOptions
) -> tuple[GraphSpec, ...]:
    """Prefill at each bucket and decode, over a cache of fixed capacity."""
    s = sizes(checkpoint)
    stateful = options.cache is CacheStyle.STATE
    shape = (s.layers, s.kv_heads, options.context, s.head)
    caches = tuple(
        TensorSpec(
            name,
            shape,
            DType.FLOAT16 if stateful else DType.FLOAT32,
            CACHE_LAYOUT,
            Role.CACHE,
            None,
            "keys, rotated" if name == "k_cache" else "values",
        )
        for name in CACHE_NAMES
    )
    states, outputs = (caches, ()) if stateful else ((), caches)
    last = options.context - 1
    length = TensorSpec(
        "length",
        (1,),
        options.token_dtype,
        "B",
        Role.LENGTH,
        (1, max(options.lengths)),
        "how many positions are real",
    )
    position = TensorSpec(
        "position",
        (1,),
        options.token_dtype,
        "B",
        Role.POSITION,
        (0, last),
        "index of this token in the sequence",
    )
    graphs = [
        GraphSpec(
            f"prefill_{n}",
            ("prefill",),
            (*(spec.bind({"S": n}) for spec in prefill.inputs), length),
            (*(spec.bind({"S": n}) for spec in prefill.outputs), *outputs),
            states,
            feeds={} if stateful else {name: name for name in CACHE_NAMES},
        )
        for n in options.lengths
    ]
    inputs = (*decode.inputs, position, *outputs)
    feeds = {} if stateful else {name: name for name in CACHE_NAMES}
    graphs.append(GraphSpec("decode", ("decode",), inputs, (*decode.outputs, *outputs), states, feeds))
    return tuple(graphs)


def _growing_graph(checkpoint: Checkpoint, prefill: FunctionSpec, options: GraphOptions) -> GraphSpec:
    """One graph for prefill and decode, in Hugging Face's naming: past_key_values in, present out."""
    s = sizes(checkpoint)
    dtype = options.compute_dtype
    tokens = options.token_dtype
    mask = TensorSpec(
        "attention_mask", (1, "M"), tokens, "B M", Role.MASK, (0, 1), "1 for each position so far"
    )
    positions = TensorSpec(
        "position_ids",
        (1, "S"),
        tokens,
        "B S",
        Role.POSITION,
        (0, options.context - 1),
        "index in the sequence",
    )
    past, present, feeds = [], [], {}
    for layer in range(s.layers):
        for kind in ("key", "value"):
            names = f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}"
            past.append(TensorSpec(names[0], (1, s.kv_heads, "P", s.head), dtype, "B H P E", Role.CACHE))
            present.append(TensorSpec(names[1], (1, s.kv_heads, "M", s.head), dtype, "B H M E", Role.CACHE))
            feeds[names[1]] = names[0]
    sequence, context = sequence_extent(options), options.context
    typical = sequence.typical
    profiles = (
        Profile("prefill", {"S": sequence, "P": Extent(0, 0, 0), "M": sequence}),
        Profile(
            "decode",
            {
                "S": Extent(1, 1, 1),
                "P": Extent(1, typical, context - 1),
                "M": Extent(2, typical + 1, context),
            },
        ),
    )
    return GraphSpec(
        "model",
        ("prefill", "decode"),
        (*prefill.inputs, mask, positions, *past),
        (*prefill.outputs, *present),
        feeds=feeds,
        profiles=profiles,
    )


class ChunkedLinear(nn.Module):
    """A linear layer in pieces no wider than an engine allows, over views of one weight."""

    def __init__(self, linear: nn.Linear, width: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(piece, requires_grad=False) for piece in torch.split(linear.weight, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., inputs] → [..., outputs]."""
        return torch.cat([functional.linear(x, weight) for weight in self.weights], dim=-1)


class EmbedGraph(nn.Module):
    """``embed``: a row of the embedding table for each token."""

    def __init__(self, model: LanguageModel, options: GraphOptions) -> None:
        super().__init__()
        del options
        self.table = model.qwen.model.embed_tokens

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """``input_ids`` [1, S] → inputs_embeds [1, S, D], fp32."""
        out: torch.Tensor = self.table(input_ids)
        return out.float()


class GrowingGraph(nn.Module):
    """Prefill and decode at dynamic lengths."""

    def __init__(self, model: LanguageModel, options: GraphOptions) -> None:
        super().__init__()
        self.model = model
        self.compute = building.TORCH_DTYPES[options.compute_dtype]

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """[1, S, D], [1, M], [1, S], 2L of [1, H, P, E] → logits, hidden_states, 2L of [1, H, M, E]."""
        positions = position_ids[0]
        # By place in the cache, not by position: a batch padded on the left counts from its first real token.
        places = torch.arange(positions.shape[0]) + past[0].shape[2]
        visible = causal_mask(places, attention_mask.shape[1])
        hidden_keys = (1 - attention_mask.to(torch.float32))[:, None, None, :]
        mask = torch.minimum(visible, hidden_keys * MASKED_SCORE)
        cache = GrowingCache(list(zip(past[::2], past[1::2], strict=True)))
        rotary = self.model.rotary(positions)
        last, hidden = self.model.layers(inputs_embeds.to(self.compute), rotary, mask, cache)
        logits = self.model.head(last[:, -1:])
        return (logits.float(), hidden.float(), *(tensor for pair in cache.present for tensor in pair))


class FixedGraph(nn.Module):
    """What prefill and decode over a cache of fixed capacity share."""

    k_cache: torch.Tensor
    v_cache: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, model: LanguageModel, spec: GraphSpec, options: GraphOptions) -> None:
        super().__init__()
        self.model = model
        self.capacity = options.context
        self.stateful = bool(spec.states)
        self.elementary = options.elementary
        # Tables, not sin and cos in the graph: fp16 cannot hold the angle of a late position.
        cos, sin = model.rotary(torch.arange(options.context))
        self.register_buffer("cos", cos[0], persistent=False)
        self.register_buffer("sin", sin[0], persistent=False)
        for state in spec.states:
            shape = [dim for dim in state.shape if isinstance(dim, int)]
            self.register_buffer(state.name, torch.zeros(shape, dtype=torch.float32), persistent=False)


class PrefillGraph(FixedGraph):
    """``prefill`` of one bucket: padding comes last, where causal attention never looks."""

    mask: torch.Tensor

    def __init__(self, model: LanguageModel, spec: GraphSpec, length: int, options: GraphOptions) -> None:
        super().__init__(model, spec, options)
        self.register_buffer("mask", causal_mask(torch.arange(length), length), persistent=False)
        self.length = length

    def forward(self, inputs_embeds: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[1, S, D], [1] → logits [1, 1, V], hidden_states [1, K, S, D] and, if no state, the cache."""
        rotary = (self.cos[None, : self.length], self.sin[None, : self.length])
        cache = FreshCache()
        last, hidden = self.model.layers(inputs_embeds, rotary, self.mask, cache)
        if self.elementary:
            here = one_hot(distances(length - 1, self.length))
            logits = self.model.head(here[:, None] @ last)
        else:
            logits = self.model.head(last.index_select(1, length - 1))
        keys = torch.cat([key for key, _ in cache.present])
        values = torch.cat([value for _, value in cache.present])
        if self.stateful:
            self.k_cache[:, :, : self.length] = keys
            self.v_cache[:, :, : self.length] = values
            return logits, hidden
        room = (0, 0, 0, self.capacity - self.length)
        return logits, hidden, functional.pad(keys, room), functional.pad(values, room)


class DecodeGraph(FixedGraph):
    """``decode`` of one token."""

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        position: torch.Tensor,
        k_cache: torch.Tensor | None = None,
        v_cache: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """[1, 1, D], [1], the caches if no state → logits, hidden_states [1, K, 1, D], the caches."""
        keys = self.k_cache if k_cache is None else k_cache
        values = self.v_cache if v_cache is None else v_cache
        past = list(zip(torch.split(keys, 1), torch.split(values, 1), strict=True))
        cache: FixedCache | BlendedCache
        if self.elementary:
            distance = distances(position, self.capacity)
            here, mask = one_hot(distance), later_mask(distance)
            rotary = (functional.linear(here, self.cos.T)[None], functional.linear(here, self.sin.T)[None])
            cache = BlendedCache(past, here)
        else:
            rotary = (self.cos.index_select(0, position)[None], self.sin.index_select(0, position)[None])
            cache, mask = FixedCache(past, position), causal_mask(position, self.capacity)
        last, hidden = self.model.layers(inputs_embeds, rotary, mask, cache)
        logits = self.model.head(last)
        new_keys = torch.cat([key for key, _ in cache.present])
        new_values = torch.cat([value for _, value in cache.present])
        if self.stateful:
            self.k_cache[:] = new_keys
            self.v_cache[:] = new_values
            return logits, hidden
        return logits, hidden, new_keys, new_values


class LLMCalls:
    """The three functions in PyTorch; keeps the sequence between calls."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._past: list[tuple[torch.Tensor, torch.Tensor]] = []

    def call(self, function: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs of ``function`` by name; ``prefill`` starts a new sequence."""
        if function == "embed":
            return {"inputs_embeds": self._model.embed(inputs["input_ids"])}
        if function == "prefill":
            self._past = []
        embeds = inputs["inputs_embeds"]
        start = self._past[0][0].shape[2] if self._past else 0
        end = start + embeds.shape[1]
        positions = torch.arange(start, end)
        cache = GrowingCache(self._past)
        last, hidden = self._model.layers(
            embeds, self._model.rotary(positions), causal_mask(positions, end), cache
        )
        self._past = cache.present
        return {"logits": self._model.head(last[:, -1:]), "hidden_states": hidden}


COMPONENT = LLM()
