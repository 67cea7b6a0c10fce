"""A Mobile-O checkpoint folder: opened from its headers, read one component at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from mobile_o_export.checkpoint.config import MobileOConfig, read_json
from mobile_o_export.checkpoint.digest import content_digests, joined_digest
from mobile_o_export.checkpoint.lora import LoraAdapter
from mobile_o_export.checkpoint.names import EMBEDDINGS, HEAD, Names
from mobile_o_export.checkpoint.safetensors_file import SafetensorsFile, TensorInfo, pickle_error
from mobile_o_export.errors import CheckpointError
from mobile_o_export.snapshot import Snapshot

if TYPE_CHECKING:
    import torch

COMPONENT_PREFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vision_encoder": ("model.vision_tower.vision_tower.model.", "model.mm_projector."),
        "llm": ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head."),
        "mcp": ("model.diffusion_connector.fusion.",),
        "dit": ("model.dit.",),
        "vae_decoder": ("model.vae.decoder.",),
        "vae_encoder": ("model.vae.encoder.",),
    }
)
"""Component → how its tensors' names begin. ``vae_encoder`` serves training only; nothing exports it."""

RANDOM_MARKER = "mobile_o_export_random"
"""Key that ``init-checkpoint`` sets in ``config.json``: these weights are random and carry no licence."""

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_TASKS = "evaluation"
_OTHER_FILES = ("generation_config.json", "preprocessor_config.json")
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md")

_PUBLISHED_LICENCE = """\
These files contain weights of Mobile-O (https://github.com/Amshaker/Mobile-O, arXiv 2602.20161) or weights
derived from them, converted for on-device use by mobile-o-export.

They are licensed under Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International
(CC BY-NC-SA 4.0): https://creativecommons.org/licenses/by-nc-sa/4.0/
You must give appropriate credit and indicate changes, may not use them commercially, and must pass on
adaptations under the same licence.
"""
_RANDOM_LICENCE = """\
These files contain random weights written by `mobile-o-export init-checkpoint`. They hold nothing of the
published Mobile-O weights and may be used under the Apache License, Version 2.0:
https://www.apache.org/licenses/LICENSE-2.0
"""


class Checkpoint:
    """An opened checkpoint: its configuration, what it holds, and its tensors on demand.

    Make one with :meth:`open`. Files stay memory-mapped for as long as a tensor of theirs is alive.

    Attributes:
        path: the folder.
        config: its configuration.
        tensors: every stored tensor by name.
        lora: the adapter that is merged into what :meth:`state_dict` returns, or None.
        second_copies: stored names of tensors that are there under their own names as well, and not read.
    """

    def __init__(
        self,
        path: Path,
        config: MobileOConfig,
        files: Mapping[str, SafetensorsFile],
        lora: LoraAdapter | None,
        second_copies: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.config = config
        self.lora = lora
        self.second_copies = second_copies
        self._files = files
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {name: file.tensors[name] for name, file in files.items()}
        )
        self._checked: set[str] = set()
        self._snapshot = Snapshot.of(*self._sources())

    @classmethod
    def open(cls, path: Path, lora: Path | None = None) -> Checkpoint:
        """The checkpoint in folder ``path``, with the PEFT adapter in ``lora`` merged in.

        Reads the configuration and the files' headers, and compares every tensor's name and shape with
        what the configuration calls for; no weights are read.

        Raises:
            CheckpointError: the folder is missing or is no Mobile-O checkpoint; a file is truncated,
                corrupt or pickled; tensors are missing, unexpected or of the wrong shape.
        """
        from mobile_o_export.checkpoint.expected import validate

        path = Path(path)
        if not path.is_dir():
            what = "a file" if path.exists() else "missing"
            raise CheckpointError(
                f"{path}: is {what}, and a checkpoint is a folder with config.json and model.safetensors. "
                "Give the path of a downloaded Mobile-O checkpoint, or make a random one with "
                "'mobile-o-export init-checkpoint'."
            )
        config = MobileOConfig.load(path)
        files, second_copies = _by_own_names(path, _open_files(path))
        tensors = {name: file.tensors[name] for name, file in files.items()}
        validate(path, config, {name: info.shape for name, info in tensors.items()})
        adapter = None
        if lora is not None:
            base = {**tensors, HEAD: tensors.get(HEAD, tensors[EMBEDDINGS])}
            tied = config.tie_word_embeddings and _head_is_table(files)
            adapter = LoraAdapter(Path(lora), base, tied=tied)
        return cls(path, config, files, adapter, second_copies)

    def outline(self) -> Checkpoint:
        """This checkpoint with tensors of the right shapes and no content (``meta``): for names and sizes."""
        return _Outline(self.path, self.config, self._files, self.lora)

    def component_tensors(self, component: str) -> tuple[TensorInfo, ...]:
        """The stored tensors of ``component``, one of :data:`COMPONENT_PREFIXES`, sorted by name."""
        prefixes = COMPONENT_PREFIXES[component]
        return tuple(self.tensors[name] for name in sorted(self.tensors) if name.startswith(prefixes))

    def component_state_dict(
        self, component: str, dtype: torch.dtype | None = None
    ) -> dict[str, torch.Tensor]:
        """Every tensor of ``component`` under its full published name; else as :meth:`state_dict`."""
        prefixes = COMPONENT_PREFIXES[component]
        return self._read((name for name in self._names() if name.startswith(prefixes)), component, dtype)

    def state_dict(self, prefix: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """The tensors whose names start with ``prefix``, by their names after it.

        A tensor that needs neither cast nor merge is a view of the memory-mapped file: changing one in
        place changes it for this checkpoint (never the file), so load them with ``assign=True`` and leave
        them as they are, or clone. With ``tie_word_embeddings``, ``lm_head.weight`` is there even where
        the file leaves it out.

        Args:
            prefix: for example one of :data:`COMPONENT_PREFIXES`'s.
            dtype: what floating-point tensors are cast to; None leaves each as stored.

        Raises:
            CheckpointError: no tensor has that prefix; one holds NaN or infinity, or overflows ``dtype``.
        """
        names = (name for name in self._names() if name.startswith(prefix))
        found = self._read(names, prefix, dtype)
        return {name.removeprefix(prefix): tensor for name, tensor in found.items()}

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` of the configurations and of every tensor's name, dtype, shape and bytes.

        It reads the whole checkpoint once. Sharding, the folder's place and the tokenizer do not matter;
        an adapter does.
        """
        return self._digest(self._contents)

    def part(self, components: Collection[str]) -> Checkpoint:
        """This checkpoint, of whose tensors only those of ``components`` can be read; the others have shapes.

        What is made from it follows from those tensors, and :meth:`part_digest` covers all of that.
        """
        return _Part(self, components)

    def part_digest(self, components: Collection[str]) -> str:
        """As :attr:`digest`, of all that can be read of a :meth:`part`."""
        prefixes = _prefixes(components)
        return self._digest({name: c for name, c in self._contents.items() if name.startswith(prefixes)})

    @cached_property
    def _contents(self) -> Mapping[str, str]:
        """The digest of each tensor's bytes; reads the whole checkpoint."""
        return content_digests(self._files)

    def _digest(self, contents: Mapping[str, str]) -> str:
        # Places, not content: the configurations that diffusion_name_or_path leads to are hashed instead.
        places = ("diffusion_name_or_path", "_name_or_path")
        settings = {
            "config": {key: value for key, value in self.config.raw.items() if key not in places},
            "transformer": dict(self.config.diffusion.transformer),
            "vae": dict(self.config.diffusion.vae),
            "scheduler": dict(self.config.diffusion.scheduler),
        }
        content = sha256(json.dumps(settings, sort_keys=True).encode())
        content.update(joined_digest(self.tensors, contents).encode())
        if self.lora is not None:
            content.update(self.lora.digest.encode())
        return f"sha256:{content.hexdigest()}"

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The tokenizer, generation and preprocessing files that are there."""
        candidates = (self.path / name for name in (*_TOKENIZER_FILES, *_OTHER_FILES))
        return tuple(path for path in candidates if path.is_file())

    def release(self) -> None:
        """Gives back the memory that tensors take which are views of the files; they stay what they are.

        Any that was changed in place, which none should be, is again as it is stored.
        """
        for file in {id(file): file for file in self._files.values()}.values():
            file.release()

    def require_unchanged(self) -> None:
        """Raises CheckpointError if a file of the checkpoint, or of its adapter, changed since it was opened.

        What was computed from it is then of no one checkpoint: its digest is of other bytes than its weights.
        """
        self._snapshot.require_unchanged(
            CheckpointError, "Wait until nothing writes to it, then run the command again."
        )

    def _sources(self) -> Iterator[Path]:
        """Every file and folder that something of a bundle is made from."""
        names = ("config.json", _SINGLE, _INDEX, *_TOKENIZER_FILES, *_OTHER_FILES, *_LICENCE_FILES, _TASKS)
        yield from (self.path / name for name in names)
        yield from {file.path for file in self._files.values()}
        diffusion = Path(self.config.diffusion.source)
        if diffusion.is_dir():
            yield from (diffusion / part for part in ("transformer", "vae", "scheduler"))
        if self.lora is not None:
            yield from self.lora.files

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The tokenizer's files.

        Raises:
            CheckpointError: they are not enough for a tokenizer.
        """
        present = {path.name for path in self.files}
        if "tokenizer.json" not in present and not {"vocab.json", "merges.txt"} <= present:
            raise CheckpointError(
                f"{self.path}: has neither tokenizer.json nor vocab.json with merges.txt. Copy the "
                "tokenizer's files from the published checkpoint into it."
            )
        return tuple(path for path in self.files if path.name in _TOKENIZER_FILES)

    @cached_property
    def licence(self) -> str:
        """The notice that everything made from these weights has to carry.

        The folder's own LICENSE where there is one; else a note that the weights are random where
        ``init-checkpoint`` wrote them; else the published weights' CC BY-NC-SA 4.0.
        """
        for name in _LICENCE_FILES:
            path = self.path / name
            if path.is_file():
                return path.read_text(encoding="utf-8", errors="replace")
        return _RANDOM_LICENCE if self.config.raw.get(RANDOM_MARKER) else _PUBLISHED_LICENCE

    def _names(self) -> list[str]:
        names = sorted(self.tensors)
        return names if HEAD in self.tensors else [*names, HEAD]

    def _read(self, names: Iterable[str], what: str, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
        found = {name: self._tensor(name, dtype) for name in names}
        if not found:
            raise CheckpointError(
                f"{self.path}: has no tensors of {what!r}. Use a complete Mobile-O checkpoint."
            )
        return found

    def _tensor(self, name: str, dtype: torch.dtype | None) -> torch.Tensor:
        stored = EMBEDDINGS if name not in self.tensors else name
        tensor = self._files[stored].tensor(stored)
        if not tensor.is_floating_point():
            return tensor
        wanted = tensor.dtype if dtype is None else dtype
        if self.lora is not None and name in self.lora.targets:
            self._require_finite(stored, tensor, tensor.dtype)
            merged = self.lora.merged(name, tensor)
            self._require_finite(stored, merged, wanted)
            return merged.to(wanted)
        if (key := f"{stored}:{wanted}") not in self._checked:
            self._require_finite(stored, tensor, wanted)
            self._checked.add(key)
        return tensor.to(wanted)

    def _require_finite(self, name: str, tensor: torch.Tensor, wanted: torch.dtype) -> None:
        import torch

        if not tensor.numel():
            return
        # One pass without temporaries: NaN and infinity both come through aminmax.
        low, high = (float(bound) for bound in torch.aminmax(tensor))
        where = f"{self.tensors[name].file}: {name}"
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise CheckpointError(
                f"{where} holds NaN or infinity. The training diverged or the file is damaged: "
                "use an earlier checkpoint, or copy it again."
            )
        limit = torch.finfo(wanted).max
        if max(-low, high) > limit:
            raise CheckpointError(
                f"{where} holds {max(-low, high):g}, more than {wanted} can ({limit:g}). "
                "Read this checkpoint as fp32 or bf16."
            )


class _Outline(Checkpoint):
    def _tensor(self, name: str, dtype: torch.dtype | None) -> torch.Tensor:
        import torch

        info = self.tensors[EMBEDDINGS if name not in self.tensors else name]
        stored: torch.dtype = getattr(torch, info.dtype)
        return torch.empty(
            info.shape,
            dtype=dtype if dtype is not None and stored.is_floating_point else stored,
            device="meta",
        )


class _Part(Checkpoint):
    """One of whose tensors some can be read."""

    def __init__(self, whole: Checkpoint, components: Collection[str]) -> None:
        self.__dict__.update(whole.__dict__)
        self._readable = _prefixes(components)

    def _tensor(self, name: str, dtype: torch.dtype | None) -> torch.Tensor:
        if not name.startswith(self._readable):
            raise LookupError(f"{name} is no tensor of this part of the checkpoint")
        return super()._tensor(name, dtype)


def _prefixes(components: Collection[str]) -> tuple[str, ...]:
    """How the names of the tensors of ``components`` begin."""
    return tuple(prefix for name in sorted(components) for prefix in COMPONENT_PREFIXES[name])


def _open_files(path: Path) -> dict[str, SafetensorsFile]:
    """Each tensor's name and its file, from one file or a sharded index."""
    if (path / _SINGLE).is_file():
        file = SafetensorsFile(path / _SINGLE)
        return dict.fromkeys(file.tensors, file)
    if not (path / _INDEX).is_file():
        raise _no_weights(path)
    weight_map = read_json(path / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path / _INDEX}: weight_map is missing or empty. Copy the index again.")
    if strange := [shard for shard in weight_map.values() if not isinstance(shard, str)]:
        raise CheckpointError(f"{path / _INDEX}: {strange[0]!r} is no file's name. Copy the index again.")
    shards: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not shard.isprintable():
            raise CheckpointError(
                f"{path / _INDEX}: names the shard {shard!r}, which is not a file of this folder. "
                "Copy the index again."
            )
        shards[shard] = SafetensorsFile(path / shard)
    for name, shard in weight_map.items():
        if name not in shards[shard].tensors:
            raise CheckpointError(
                f"{path / shard}: has no {name}, which {_INDEX} places there. The index and the shards are "
                "not of one checkpoint: copy both again."
            )
    for shard, file in shards.items():
        stray = next((name for name in file.tensors if weight_map.get(name) != shard), None)
        if stray is not None:
            raise CheckpointError(
                f"{path / shard}: holds {stray}, which {_INDEX} does not place there. The index and the "
                "shards are not of one checkpoint: copy both again."
            )
    return {name: shards[shard] for name, shard in weight_map.items()}


def _by_own_names(
    path: Path, files: Mapping[str, SafetensorsFile]
) -> tuple[dict[str, SafetensorsFile], tuple[str, ...]]:
    """``files`` by the tensors' own names, without what wrappers of training add; and what that leaves out.

    Raises:
        CheckpointError: the stored names are not those of one merged model.
    """
    try:
        names = Names.of(files)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    own: dict[Path, dict[str, str]] = {}
    for name, stored in names.stored.items():
        own.setdefault(files[stored].path, {})[name] = stored
    views = {file.path: file.under(own[file.path]) for file in set(files.values()) if file.path in own}
    return {name: views[files[stored].path] for name, stored in names.stored.items()}, names.ignored


def _head_is_table(files: Mapping[str, SafetensorsFile]) -> bool:
    """Whether the head is the embeddings; where both are stored and differ, transformers ties nothing."""
    if HEAD not in files:
        return True
    chunks = (files[name].chunks(name) for name in (HEAD, EMBEDDINGS))
    return all(one == other for one, other in zip_longest(*chunks))


def _no_weights(path: Path) -> CheckpointError:
    pickles = sorted(
        file for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl") for file in path.glob(pattern)
    )
    if pickles:
        return pickle_error(pickles[0])
    others = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))[:3])
    hint = f" It does hold {others}: rename it, or restore the index." if others else ""
    return CheckpointError(
        f"{path}: has neither {_SINGLE} nor {_INDEX}.{hint} Copy the weights into the folder."
    )
