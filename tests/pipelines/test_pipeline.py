"""The tasks over PyTorch: seeds, numbers out of range, and when components are loaded and freed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobile_o_export import open_bundle, open_checkpoint
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.errors import BundleError, CheckpointError, ExportError, UsageError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.noise import initial_latent
from mobile_o_export.pipelines.pipeline import Pipeline
from mobile_o_export.reference import TorchRunner, TorchRunners, torch_pipeline

DRAWING = ("llm", "mcp", "dit", "vae_decoder")
EDITING = ("vision_encoder", *DRAWING)


@pytest.fixture(scope="module")
def model(reference_checkpoint: Checkpoint) -> Iterator[Pipeline]:
    with torch_pipeline(reference_checkpoint) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(8).integers(0, 256, (80, 60, 3), np.uint8))


class Watched:
    """PyTorch's runners; remembers what is opened and closed, and may lack components."""

    def __init__(self, checkpoint: Checkpoint, missing: Sequence[str] = ()) -> None:
        self._runners = TorchRunners(checkpoint)
        self._missing = missing
        self.limits = self._runners.limits
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.most_at_once = 0

    def require(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._missing:
                raise UsageError(f"this needs {name}")

    @contextmanager
    def open(self, name: str) -> Iterator[TorchRunner]:
        with self._runners.open(name) as runner:
            self.opened[name] += 1
            self.most_at_once = max(self.most_at_once, (self.opened - self.closed).total())
            try:
                yield runner
            finally:
                self.closed[name] += 1


def test_the_same_seed_is_the_same_picture(model: Pipeline) -> None:
    first, second = (model.generate("a red cube", seed=5, steps=2) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert first.picture.tobytes() == second.picture.tobytes()


def test_another_seed_is_another_picture(model: Pipeline) -> None:
    first, second = (model.generate("a red cube", seed=seed, steps=2) for seed in (5, 6))
    assert np.abs(first.image - second.image).max() > 1e-3


def test_another_prompt_is_another_picture(model: Pipeline) -> None:
    first, second = (model.generate(prompt, steps=2) for prompt in ("a red cube", "a boat"))
    assert np.abs(first.image - second.image).max() > 1e-6


def test_another_image_is_another_edit(model: Pipeline, picture: Image.Image) -> None:
    first, second = (model.edit(image, "more red", steps=1) for image in (picture, picture.rotate(180)))
    assert first.image_features is not None
    assert second.image_features is not None
    assert not np.array_equal(first.image_features, second.image_features)
    assert not np.array_equal(first.image, second.image)


def test_what_a_drawing_holds(model: Pipeline) -> None:
    drawing = model.generate("a red cube", steps=3)
    assert [latent.shape for latent in drawing.latents] == [model.settings.numbers.latent_shape] * 3
    assert len(drawing.step_seconds) == 3
    assert drawing.image_features is None
    assert drawing.hidden_states.shape[2] == drawing.prompt_tokens
    assert drawing.conditioning.conditional.shape[1] == drawing.prompt_tokens
    assert drawing.image.shape[:2] == (1, 3)
    assert drawing.picture.size == drawing.image.shape[:1:-1]
    assert list(drawing.seconds) == ["loading", *DRAWING]
    assert set(model.runtimes) >= set(DRAWING)


def test_the_numbers_default_to_the_model_s_own(model: Pipeline) -> None:
    numbers = model.settings.numbers
    assert (numbers.steps, numbers.guidance) == (20, 1.2)
    drawing = model.generate("a red cube")
    expected = model.generate("a red cube", seed=0, steps=20, guidance=1.2)
    assert len(drawing.latents) == 20
    assert np.array_equal(drawing.image, expected.image)


def test_guidance_steers(model: Pipeline) -> None:
    plain, steered = (model.generate("a red cube", steps=2, guidance=weight) for weight in (1.0, 7.5))
    assert not np.array_equal(plain.image, steered.image)


def test_a_given_latent_takes_the_seed_s_place(model: Pipeline) -> None:
    latent = initial_latent(5, model.settings.numbers.latent_shape)
    expected = model.generate("a red cube", seed=5, steps=2)
    assert np.array_equal(model.generate("a red cube", seed=6, steps=2, latent=latent).image, expected.image)


def test_pixels_a_picture_and_its_file_are_the_same(
    model: Pipeline, picture: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    picture.save(path)
    drawings = [model.edit(image, "more red", steps=1) for image in (path, str(path), picture)]
    assert all(np.array_equal(drawing.image, drawings[0].image) for drawing in drawings)


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), float("-inf"), 1e30, -101.0])
def test_a_guidance_that_would_overflow_is_refused(reference_checkpoint: Checkpoint, guidance: float) -> None:
    runners = Watched(reference_checkpoint)
    pipeline = torch_pipeline(reference_checkpoint, runners)
    message = rf"^the guidance {re.escape(str(guidance))} is not within ±100\. The model's is 1\.2\.$"
    with pytest.raises(UsageError, match=message):
        pipeline.generate("a red cube", guidance=guidance)
    assert not runners.opened


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "word " * 3000}, r"^the prompt has \d+ tokens and the model has room for 2048\."),
        ({"steps": 0}, "^0 steps cannot be run"),
        ({"steps": 251}, "^251 steps cannot be run"),
        ({"seed": -1}, r"^the seed -1 is not in 0\.\."),
        ({"seed": 2**32}, r"^the seed 4294967296 is not in 0\.\."),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_opened(
    reference_checkpoint: Checkpoint, arguments: dict[str, object], message: str
) -> None:
    runners = Watched(reference_checkpoint)
    pipeline = torch_pipeline(reference_checkpoint, runners)
    with pytest.raises(UsageError, match=message):
        pipeline.generate(**{"prompt": "a red cube", **arguments})
    assert not runners.opened


@pytest.mark.parametrize("shape", [(1, 8, 4, 4), (8, 8, 8)])
def test_a_latent_of_another_shape_is_refused(model: Pipeline, shape: tuple[int, ...]) -> None:
    """Or a smaller one would draw a smaller picture, and others fail inside PyTorch."""
    with pytest.raises(UsageError, match="latent"):
        model.generate("a red cube", steps=1, latent=np.zeros(shape, np.float32))


def test_pixels_of_another_shape_are_refused(model: Pipeline) -> None:
    """PyTorch takes any size, and gives features that the LLM was not trained on."""
    with pytest.raises(UsageError, match="image"):
        model.edit(np.zeros((1, 3, 9, 9), np.float32), "more red", steps=1)


@pytest.mark.parametrize("missing", DRAWING)
def test_a_drawing_without_a_component_is_refused_before_anything_is_opened(
    reference_checkpoint: Checkpoint, missing: str
) -> None:
    runners = Watched(reference_checkpoint, [missing])
    pipeline = torch_pipeline(reference_checkpoint, runners)
    with pytest.raises(UsageError, match=f"^this needs {missing}$"):
        pipeline.generate("a red cube", steps=1)
    assert not runners.opened


@pytest.mark.parametrize("missing", ["vision_encoder", "llm"])
def test_so_is_an_answer(reference_checkpoint: Checkpoint, picture: Image.Image, missing: str) -> None:
    runners = Watched(reference_checkpoint, [missing])
    pipeline = torch_pipeline(reference_checkpoint, runners)
    with pytest.raises(UsageError, match=f"^this needs {missing}$"):
        pipeline.describe(picture, "What?")
    with pytest.raises(UsageError, match=f"^this needs {missing}$"):
        pipeline.edit(picture, "more red")
    assert not runners.opened


def test_what_a_task_does_not_need_may_be_missing(reference_checkpoint: Checkpoint) -> None:
    runners = Watched(reference_checkpoint, ["vision_encoder", "mcp", "dit", "vae_decoder"])
    with torch_pipeline(reference_checkpoint, runners) as pipeline:
        assert len(list(pipeline.chat().ask("Hello", max_tokens=1, stop=False))) == 1
    assert runners.opened == Counter(["llm"])


def test_kept_components_are_loaded_once_and_freed_at_the_end(
    reference_checkpoint: Checkpoint, picture: Image.Image
) -> None:
    runners = Watched(reference_checkpoint)
    with torch_pipeline(reference_checkpoint, runners, keep=True) as pipeline:
        pipeline.generate("a red cube", steps=1)
        assert runners.opened == Counter(DRAWING)
        pipeline.edit(picture, "more red", steps=1)
        assert len(list(pipeline.describe(picture, "What?", max_tokens=2, stop=False))) == 2
        assert len(list(pipeline.chat().ask("Hello", max_tokens=2, stop=False))) == 2
        assert runners.opened == Counter(EDITING)
        assert not runners.closed
    assert runners.closed == Counter(EDITING)


def test_others_are_freed_after_their_part(reference_checkpoint: Checkpoint, picture: Image.Image) -> None:
    runners = Watched(reference_checkpoint)
    with torch_pipeline(reference_checkpoint, runners, keep=False) as pipeline:
        for count in (1, 2):
            pipeline.edit(picture, "more red", steps=1)
            assert runners.opened == runners.closed == Counter(dict.fromkeys(EDITING, count))
    assert runners.most_at_once == 1


def test_a_conversation_keeps_its_llm_alone(reference_checkpoint: Checkpoint, picture: Image.Image) -> None:
    """It holds the KV cache, and a drawing between two messages uses it too."""
    runners = Watched(reference_checkpoint)
    with torch_pipeline(reference_checkpoint, runners, keep=False) as pipeline:
        talk = pipeline.chat()
        for image in (picture, None, picture):
            assert len(list(talk.ask("What?", image, max_tokens=2, stop=False))) == 2
        assert runners.opened == {"vision_encoder": 2, "llm": 1}
        assert runners.closed == {"vision_encoder": 2}
        pipeline.generate("a red cube", steps=1)
        assert runners.opened == Counter([*DRAWING, "vision_encoder", "vision_encoder"])
    assert runners.closed == runners.opened


def spoiling(monkeypatch: pytest.MonkeyPatch, function: str, spoil: Callable[[Array], Array]) -> None:
    """From now on PyTorch's ``function`` gives what ``spoil`` makes of its outputs."""
    run = TorchRunner.run

    def spoilt(self: TorchRunner, called: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = run(self, called, inputs)
        return {name: spoil(value) for name, value in outputs.items()} if called == function else outputs

    monkeypatch.setattr(TorchRunner, "run", spoilt)


def fail(_value: Array) -> Array:
    raise MemoryError("a test's own")


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_loaded_is_freed_when_a_task_fails(
    reference_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    spoiling(monkeypatch, "denoise", fail)
    runners = Watched(reference_checkpoint)
    with (
        pytest.raises(MemoryError, match="a test's own"),
        torch_pipeline(reference_checkpoint, runners, keep=keep) as pipeline,
    ):
        pipeline.generate("a red cube", steps=1)
    assert runners.opened == runners.closed == Counter(["llm", "mcp", "dit"])


def test_a_checkpoint_opens_as_a_pipeline(reference_folder: Path, model: Pipeline) -> None:
    for folder in (reference_folder, str(reference_folder)):
        with open_checkpoint(folder) as pipeline:
            drawing = pipeline.generate("a red cube", seed=5, steps=1)
        assert np.array_equal(drawing.image, model.generate("a red cube", seed=5, steps=1).image)


def test_no_checkpoint_and_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a checkpoint is a folder"):
        open_checkpoint(tmp_path / "missing")
    with pytest.raises(BundleError, match=r"is not a bundle \(manifest\.json is missing\)"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_no_picture(
    model: Pipeline, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Or a file that overflows in fp16 would draw black pixels, with exit code 0."""
    spoiling(monkeypatch, "denoise", lambda velocity: np.full_like(velocity, value))
    with pytest.raises(ExportError, match=r"NaN|finite"):
        model.generate("a red cube", steps=1)


def test_logits_that_are_not_finite_are_no_answer(model: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the first NaN would count as the largest logit, and the answer go on."""
    spoiling(monkeypatch, "prefill", lambda value: np.full_like(value, np.nan))
    with pytest.raises(ExportError, match=r"NaN|finite"):
        list(model.chat().ask("Hello", max_tokens=2, stop=False))


def test_a_conversation_whose_call_failed_does_not_go_on(
    model: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its cache holds is unknown."""
    talk = model.chat()
    with monkeypatch.context() as spoilt:
        spoiling(spoilt, "prefill", lambda value: np.full_like(value, np.nan))
        with pytest.raises(ExportError, match="NaN"):
            talk.ask("Hello")
    with pytest.raises(UsageError, match="broken off"):
        talk.ask("Hello again")
    assert len(list(model.chat().ask("Hello", max_tokens=2, stop=False))) == 2
