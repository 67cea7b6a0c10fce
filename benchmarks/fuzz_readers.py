"""Every reader of files that somebody else may have written: what it reads, and how that is damaged.

Files of vendors' formats are damaged for our own readers alone: onnxruntime and LiteRT, which are native
code, are never given any of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import fuzz_mutators as mutators
import numpy as np
from fuzz_bundle import CHECKPOINT, ROOT, write_bundle
from PIL import Image
from safetensors.numpy import save, save_file

from mobile_o_export.backends.contents import Contents
from mobile_o_export.backends.mobile_o_app.mlx import read_weights
from mobile_o_export.backends.mobile_o_app.tokenizer import write_tokenizer
from mobile_o_export.bundle.manifest import MANIFEST_DIGEST, read_manifest
from mobile_o_export.bundle.runners import open_target
from mobile_o_export.bundle.weights import WeightsRecord
from mobile_o_export.checkpoint.config import MobileOConfig
from mobile_o_export.checkpoint.digest import tensors_digest
from mobile_o_export.checkpoint.lora import LoraAdapter
from mobile_o_export.checkpoint.reader import Checkpoint, _open_files
from mobile_o_export.checkpoint.safetensors_file import SafetensorsFile
from mobile_o_export.compression.check import WeightRow
from mobile_o_export.errors import BundleError, UsageError
from mobile_o_export.evaluation.record import RECORD, Answered, Drawn, Evaluation, ModelRun, Settings
from mobile_o_export.evaluation.tasks import PROMPTS, QUESTIONS, Tasks
from mobile_o_export.golden import Golden
from mobile_o_export.golden.requests import load_requests
from mobile_o_export.members import Members
from mobile_o_export.pipelines.noise import initial_latent
from mobile_o_export.pipelines.preprocessing import load_picture, pixel_values
from mobile_o_export.pipelines.settings import LISTED_STEPS, SchedulerNumbers
from mobile_o_export.pipelines.settings import Settings as PipelineSettings
from mobile_o_export.precision import Precision
from mobile_o_export.report.content import gather
from mobile_o_export.report.evaluated import EvaluationContent
from mobile_o_export.report.page import page
from mobile_o_export.report.pictures import Picture
from mobile_o_export.targets import load_target, load_targets
from mobile_o_export.tokenizer import Tokenizer
from mobile_o_export.tuning.sensitivity import Sensitivities


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        files: what is damaged, one at a time.
        mutators: how.
        read: reads; raises ExportError for what it cannot read.
        sign: writes what a forger writes anew as well, such as digests.
    """

    name: str
    files: tuple[Path, ...]
    mutators: tuple[mutators.Mutator, ...]
    read: Callable[[], object]
    sign: Callable[[], object] = lambda: None


def readers(folder: Path) -> Iterator[Reader]:
    """All of them, on files below the empty ``folder``."""
    bundle = folder / "bundle"
    write_bundle(bundle)
    yield from _of_bundles(bundle)
    yield from _of_goldens(bundle / "golden")
    yield from _of_checkpoints(folder)
    yield from _of_adapters(folder)
    yield from _of_requests(folder, bundle)
    yield from _of_packages(folder)
    yield from _of_the_app(folder)
    yield from _of_pictures(folder)


def _of_bundles(bundle: Path) -> Iterator[Reader]:
    manifest = bundle / "manifest.json"

    def sign() -> None:
        (bundle / MANIFEST_DIGEST).write_text(f"{sha256(manifest.read_bytes()).hexdigest()}  manifest.json\n")

    def opened() -> None:
        found = read_manifest(bundle)
        for target in found.targets:
            open_target(bundle, found, target).close()

    def configured() -> None:
        settings = PipelineSettings.read(bundle / "config")
        for steps in (*LISTED_STEPS, 7):
            settings.schedule(steps).start()
        initial_latent(0, settings.numbers.latent_shape)

    def reported() -> None:
        page(gather(bundle, None))

    yield Reader("manifest.json", (manifest,), mutators.JSON, opened, sign)
    yield Reader("parity.json", (bundle / "parity.json",), mutators.JSON, reported)
    yield Reader("chains.json", (bundle / "chains" / "chains.json",), mutators.JSON, reported)
    weights = bundle.parent / "weights.json"
    row = WeightRow("a.b", Precision.parse("w8"), (4, 32), 44.0, 33.0, 136, "0" * 64, ("a",))
    WeightsRecord.of([row], Contents({"a": "1" * 64}, {"p": "2" * 64})).write(weights)
    own = Members(weights.parent, BundleError)
    yield Reader("weights.json", (weights,), mutators.JSON, lambda: own.json(weights.name, WeightsRecord))
    config = tuple(sorted((bundle / "config").iterdir()))
    yield Reader("config/*.json", config, mutators.JSON, configured)
    tokenizer = bundle / "tokenizer"
    yield Reader("tokenizer.json", (tokenizer / "tokenizer.json",), mutators.JSON, lambda: _spoken(tokenizer))


def _spoken(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    for text in ("a red cube", "<|im_start|>x<|im_end|>", "é 你", ""):
        ids = tokenizer.encode(text)[0].tolist()
        tokenizer.ends(text)
        tokenizer.decode(ids)
        stream = tokenizer.stream()
        for token in ids:
            stream.add(token)
        stream.rest()


def _of_goldens(folder: Path) -> Iterator[Reader]:
    index, tensors = folder / "golden.json", folder / "tensors.safetensors"

    def whole() -> None:
        golden = Golden.open(folder)
        for key in list(golden.index.tensors)[:40]:
            golden.tensor(key)

    def sign() -> None:
        """The digest that is in the index, as text: what is damaged there stays damaged."""
        digest = sha256(tensors.read_bytes()).hexdigest()
        index.write_text(index.read_text().replace(intact, digest))

    intact = sha256(tensors.read_bytes()).hexdigest()
    yield Reader("golden.json", (index,), mutators.JSON, whole)
    yield Reader("golden's tensors", (tensors,), mutators.SAFETENSORS, whole, sign)


def _of_checkpoints(folder: Path) -> Iterator[Reader]:
    copy = folder / "checkpoint"
    shutil.copytree(CHECKPOINT, copy)
    diffusion = copy / "diffusion"
    configs = (
        copy / "config.json",
        diffusion / "transformer" / "config.json",
        diffusion / "vae" / "config.json",
        diffusion / "scheduler" / "scheduler_config.json",
    )

    def configured() -> None:
        SchedulerNumbers.of(MobileOConfig.load(copy).diffusion.scheduler)

    yield Reader("checkpoint's config.json", configs, mutators.JSON, configured)
    yield Reader("checkpoint, opened", configs, mutators.JSON, lambda: Checkpoint.open(copy))
    vocabulary, merges = (copy / "vocab.json",), (copy / "merges.txt",)
    yield Reader("vocab.json", vocabulary, mutators.JSON, lambda: _written(copy, folder))
    yield Reader("merges.txt", merges, mutators.BYTES, lambda: _written(copy, folder))

    sharded = folder / "sharded"
    sharded.mkdir()
    names = {}
    for number in range(2):
        file = f"model-{number}.safetensors"
        tensors = {f"{number}.{name}": np.ones((2, 3), np.float32) for name in "abc"}
        save_file(tensors, sharded / file)
        names |= dict.fromkeys(tensors, file)
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    yield Reader("sharded index", (index,), mutators.JSON, lambda: _open_files(sharded))

    shard = sharded / "model-0.safetensors"

    def hashed() -> None:
        file = SafetensorsFile(shard)
        tensors_digest(dict.fromkeys(file.tensors, file))
        for name in file.tensors:
            file.tensor(name)

    yield Reader("safetensors", (shard,), mutators.SAFETENSORS, hashed)


def _written(checkpoint: Path, folder: Path) -> None:
    """The tokenizer's files as the app gets them, of a vocabulary and merges alone."""
    place = folder / "written"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    write_tokenizer([checkpoint / "vocab.json", checkpoint / "merges.txt"], place)


def _of_adapters(folder: Path) -> Iterator[Reader]:
    adapter = folder / "adapter"
    adapter.mkdir()
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "fan_in_fan_out": False,
        "rank_pattern": {"q_proj": 2, ".*layers.[0-9]+.mlp.*": 3}, "alpha_pattern": {"^model.*q_proj": 3.5},
        "target_modules": ["q_proj"], "init_lora_weights": True, "use_dora": False,
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    base = Checkpoint.open(CHECKPOINT).tensors
    weight = "model.layers.0.self_attn.q_proj"
    out, inner = base[f"{weight}.weight"].shape
    factors = {"A": np.ones((2, inner), np.float32), "B": np.ones((out, 2), np.float32)}
    tensors = {f"base_model.model.{weight}.lora_{side}.weight": value for side, value in factors.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")

    def merged() -> None:
        import torch

        found = LoraAdapter(adapter, base)
        assert found.digest
        for name in found.targets:
            found.merged(name, torch.zeros(base[name].shape))

    yield Reader("adapter_config.json", (adapter / "adapter_config.json",), mutators.JSON, merged)
    yield Reader("adapter's tensors", (adapter / "adapter_model.safetensors",), mutators.SAFETENSORS, merged)


def _of_requests(folder: Path, bundle: Path) -> Iterator[Reader]:
    for name in ("litert-cpu.toml", "coreml-ane.toml"):
        shutil.copyfile(ROOT / "targets" / name, folder / name)
    targets = (folder / "litert-cpu.toml", folder / "coreml-ane.toml")

    def planned() -> None:
        for path in targets:
            load_target(str(path))

    recipe = folder / "recipe.toml"
    recipe.write_text('[components.mcp]\nprecision = "w8"\nimportance = true\n\n[[components.mcp.rules]]\n'
                      'match = ["a.*", "b"]\nprecision = "w4_lut"\nreason = "x"\n')  # fmt: skip
    prompts = folder / "prompts.toml"
    shutil.copyfile(ROOT / "golden" / "demo-prompts.toml", prompts)
    yield Reader("target.toml", targets, mutators.TOML, planned)
    yield Reader("recipe.toml", (recipe,), mutators.TOML, lambda: load_targets(["litert-cpu"], (), recipe))
    yield Reader("prompts.toml", (prompts,), mutators.TOML, lambda: load_requests(prompts))

    tasks = folder / "evaluation"
    shutil.copytree(CHECKPOINT / "evaluation", tasks)
    for name in (PROMPTS, QUESTIONS):
        path = tasks / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:6]))
    lines = (tasks / PROMPTS, tasks / QUESTIONS)
    yield Reader("tasks' JSON lines", lines, mutators.JSON_LINES, lambda: Tasks.read(*lines))

    evaluated = folder / "evaluated"
    evaluated.mkdir()
    Image.new("RGB", (16, 16), (9, 99, 199)).save(evaluated / "0.png")
    drawn = Drawn(tag="one", prompt="a", seed=1, passed=True, reason="", picture="0.png")
    answered = Answered(image="i.png", question="q", expected="e", answer="f", exact=False)
    run = ModelRun(runtimes={"dit": "r"}, drawings=(drawn,), answers=(answered,), seconds={"drawings": 1.5})
    manifest = read_manifest(bundle)
    Evaluation(
        bundle="",
        settings=Settings(
            checkpoint=manifest.checkpoint.digest, tasks="t", judge="none", steps=2, guidance=1.2, seed=0
        ),
        models={"torch": run, "phone": run},
    ).write(evaluated)
    yield Reader(
        "evaluation.json",
        (evaluated / RECORD,),
        mutators.JSON,
        lambda: EvaluationContent.read(evaluated, tasks, manifest.checkpoint.digest, "b", None),
    )

    known = folder / "sensitivities.jsonl"
    known.write_text("".join(json.dumps({"key": str(n), "noise": {"a.b": 0.5}}) + "\n" for n in range(3)))
    yield Reader("sensitivities", (known,), mutators.JSON_LINES, lambda: Sensitivities(known))


def _of_packages(folder: Path) -> Iterator[Reader]:
    """A small Core ML package, read by our interpreter's loader, down to every weight."""
    package = folder / "small.mlpackage"
    try:
        _write_package(package)
    except ImportError:
        return
    from mobile_o_export.backends.coreml.interpreter import load_mlpackage
    from mobile_o_export.backends.coreml.interpreter.plan import plan_function
    from mobile_o_export.backends.coreml.interpreter.weights import Constant

    def loaded() -> None:
        program = load_mlpackage(package)
        for function in program.functions.values():
            plan_function(function, "small")
            for operation in function.block.operations:
                for bindings in operation.inputs.values():
                    for binding in bindings:
                        if isinstance(binding, Constant) and binding.type.dtype != "string":
                            function.weights.array(binding)

    data = package / "Data" / "com.apple.CoreML"
    yield Reader("Manifest.json of a package", (package / "Manifest.json",), mutators.JSON, loaded)
    yield Reader("model.mlmodel", (data / "model.mlmodel",), mutators.BYTES, loaded)
    yield Reader("weight.bin", (data / "weights" / "weight.bin",), mutators.BYTES, loaded)


def _write_package(package: Path) -> None:
    from mobile_o_export.quiet import captured

    with captured("coremltools"):
        import coremltools as ct
        from coremltools.converters.mil import Builder

        @Builder.program(input_specs=[Builder.TensorSpec(shape=(4, 64))], opset_version=ct.target.iOS18)
        def program(x: object) -> object:
            weight = Builder.const(val=np.arange(64 * 32, dtype=np.float32).reshape(32, 64))
            return Builder.add(x=Builder.linear(x=x, weight=weight), y=np.ones((1, 32), np.float32))

        settings = {"minimum_deployment_target": ct.target.iOS18, "skip_model_load": True}
        ct.convert(program, compute_precision=ct.precision.FLOAT32, **settings).save(str(package))


def _of_the_app(folder: Path) -> Iterator[Reader]:
    llm = folder / "llm"
    llm.mkdir()
    config = {
        "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "vocab_size": 8, "max_position_embeddings": 64,
        "rope_theta": 1e6, "tie_word_embeddings": True, "quantization": {"group_size": 32, "bits": 4},
    }  # fmt: skip
    (llm / "config.json").write_text(json.dumps(config))
    tensors = {
        "a.weight": np.ones((4, 8), np.uint32), "a.scales": np.ones((4, 2), np.float16),
        "a.biases": np.ones((4, 2), np.float16), "b.weight": np.ones((4, 4), np.float16),
    }  # fmt: skip
    (llm / "model.safetensors").write_bytes(save(tensors))

    def restored() -> None:
        list(read_weights(llm))

    yield Reader("llm/config.json", (llm / "config.json",), mutators.JSON, restored)
    yield Reader("llm/model.safetensors", (llm / "model.safetensors",), mutators.SAFETENSORS, restored)


def _of_pictures(folder: Path) -> Iterator[Reader]:
    place = folder / "pictures"
    place.mkdir()
    ramp = np.arange(32 * 24 * 3, dtype=np.uint32).reshape(24, 32, 3).astype(np.uint8)
    for kind in ("png", "jpg", "gif", "bmp", "webp", "tiff"):
        Image.fromarray(ramp).save(place / f"ramp.{kind}")
    pictures = tuple(sorted(place.iterdir()))

    def seen() -> None:
        failure = None
        for path in pictures:
            try:
                pixel_values(load_picture(path), 32, square=True)
                if path.suffix == ".png":
                    Picture.read(Members(place, UsageError), path.name).within(8)
            except UsageError as error:
                failure = error
        if failure is not None:
            raise failure

    yield Reader("pictures", pictures, mutators.BYTES, seen)
