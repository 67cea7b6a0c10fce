"""What an app has to do: a bundle's files, a runtime, a tokenizer, NumPy and Pillow; nothing else.

Neither PyTorch nor mobile-o-export is imported, so that this can be read, and ported line by line, as the
list of everything that has to be right for an app to draw the same picture and give the same answer.

    python examples/plain_app.py BUNDLE litert-cpu draw "a red cube" --seed 1 --steps 8 --out cube.png
    python examples/plain_app.py BUNDLE tensorrt-orin answer photo.png "What is this?" --tokens 24

It knows LiteRT and ONNX files. Core ML keeps the KV cache in a state; the rest is the same there.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np


class LiteRTGraphs:
    """A component's graphs: signatures of one .tflite file."""

    def __init__(self, folder, graphs):
        from ai_edge_litert.interpreter import Interpreter

        (file,) = {graph["file"] for graph in graphs}
        self.interpreter = Interpreter(str(folder / file))
        self.entries = {graph["spec"]["name"]: graph["entry"] for graph in graphs}

    def run(self, graph, inputs):
        return self.interpreter.get_signature_runner(self.entries[graph])(**inputs)


class OnnxGraphs:
    """A component's graphs: an .onnx file each."""

    def __init__(self, folder, graphs):
        import onnxruntime

        self.sessions = {
            graph["spec"]["name"]: onnxruntime.InferenceSession(str(folder / graph["file"]))
            for graph in graphs
        }

    def run(self, graph, inputs):
        session = self.sessions[graph]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))


def require(package, least):
    """Ends where the runtime is older than the first that computes the files rightly: it need not fail."""

    def numbers(text):
        return [int(part) for part in text.split(".")[:3]]

    found = version(package)
    if numbers(found) < numbers(least):
        sys.exit(
            f"{package} is {found}; this bundle needs {least} or later. pip install '{package}>={least}'"
        )


class App:
    """One target of a bundle."""

    def __init__(self, bundle, target):
        from tokenizers import Tokenizer

        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["targets"][target]
        for package, least in manifest["least_runtimes"].items():
            require(package, least)
        self.dynamic = manifest["backend"] == "onnx"
        opened = OnnxGraphs if self.dynamic else LiteRTGraphs
        self.buckets = manifest["sequence"]["lengths"]
        self.specs = {}
        self.graphs = {}
        for name, component in manifest["components"].items():
            self.graphs[name] = opened(bundle / component["folder"], component["graphs"])
            self.specs[name] = {graph["spec"]["name"]: graph["spec"] for graph in component["graphs"]}
        self.tokenizer = Tokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json"))
        config = bundle / "config"
        self.prompts = json.loads((config / "prompts.json").read_text(encoding="utf-8"))
        self.numbers = json.loads((config / "pipeline.json").read_text(encoding="utf-8"))
        self.scheduler = json.loads((config / "scheduler.json").read_text(encoding="utf-8"))
        self.preprocessing = json.loads((config / "preprocessing.json").read_text(encoding="utf-8"))

    # Sequences: the bucket that fits, zeros after the end, and where the end is.

    def bucket(self, length):
        fitting = [size for size in self.buckets if size >= length]
        if not fitting:
            sys.exit(f"the prompt has {length} tokens, and {self.buckets[-1]} is the longest there can be")
        return fitting[0]

    def padded(self, array, axis, size):
        room = [(0, 0)] * array.ndim
        room[axis] = (0, size - array.shape[axis])
        return np.pad(array, room)

    def mask(self, length, size):
        return (np.arange(size) < length).astype(np.float32)[None]

    # The five components.

    def encode_image(self, path):
        """A picture's file → features [1, N, D]."""
        pixels = preprocessed(path, self.preprocessing).astype(np.float32)
        image = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]) / np.float32(255)
        return self.graphs["vision_encoder"].run("encode", {"image": image})["image_features"]

    def embed(self, text):
        """Text → embeddings [1, S, D]."""
        return self.embed_ids(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def embed_ids(self, ids):
        array = np.array([ids])
        if self.dynamic:
            return self.graphs["llm"].run("embed", {"input_ids": array.astype(np.int64)})["inputs_embeds"]
        size = 1 if len(ids) == 1 else self.bucket(len(ids))
        inputs = {"input_ids": self.padded(array.astype(np.int32), 1, size)}
        return self.graphs["llm"].run(f"embed_{size}", inputs)["inputs_embeds"][:, : len(ids)]

    def prompt(self, task, text, features=None):
        """The task's template around the user's text, image features in the image's place."""
        before, image, after = (
            self.prompts[task].replace("{text}", text).partition(self.prompts["image_token"])
        )
        parts = [self.embed(before)] + ([features, self.embed(after)] if image else [])
        return np.concatenate(parts, axis=1)

    def prefill(self, embeds):
        """Embeddings → logits of the last position, hidden states [1, K, S, D]; the cache is filled."""
        length = embeds.shape[1]
        self.position = 0
        if self.dynamic:
            # A cache that grows, empty at first.
            self.cache = {
                spec["name"]: np.zeros([0 if size == "P" else size for size in spec["shape"]], spec["dtype"])
                for spec in self.specs["llm"]["model"]["inputs"]
                if spec["role"] == "cache"
            }
            outputs = self.step(embeds)
        else:
            size = self.bucket(length)
            inputs = {"inputs_embeds": self.padded(embeds, 1, size), "length": np.array([length], np.int32)}
            outputs = self.graphs["llm"].run(f"prefill_{size}", inputs)
            self.cache = {name: outputs[name] for name in ("k_cache", "v_cache")}
            self.position = length
        return outputs["logits"], outputs["hidden_states"][:, :, :length]

    def decode(self, embeds):
        """Embeddings [1, 1, D] of one more token → logits."""
        if self.dynamic:
            return self.step(embeds)["logits"]
        inputs = {"inputs_embeds": embeds, "position": np.array([self.position], np.int32), **self.cache}
        outputs = self.graphs["llm"].run("decode", inputs)
        self.cache = {name: outputs[name] for name in self.cache}
        self.position += 1
        return outputs["logits"]

    def step(self, embeds):
        """The one graph that does both, in Hugging Face's naming."""
        start, end = self.position, self.position + embeds.shape[1]
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end)[None],
            **self.cache,
        }
        outputs = self.graphs["llm"].run("model", inputs)
        self.cache = {name: outputs[name.replace("past_key_values", "present")] for name in self.cache}
        self.position = end
        return outputs

    def project(self, hidden):
        """Hidden states → conditioning [1, S, F]."""
        length = hidden.shape[2]
        if self.dynamic:
            return self.graphs["mcp"].run("project", {"hidden_states": hidden})["conditioning"]
        size = self.bucket(length)
        inputs = {"hidden_states": self.padded(hidden, 2, size), "mask": self.mask(length, size)}
        return self.graphs["mcp"].run(f"project_{size}", inputs)["conditioning"][:, :length]

    def velocity(self, latent, timestep, conditioning):
        """What the DiT says of a latent."""
        inputs = {
            "latent": latent,
            "timestep": np.array([timestep], np.float32),
            "conditioning": conditioning,
        }
        if self.dynamic:
            return self.graphs["dit"].run("denoise", inputs)["velocity"]
        length = conditioning.shape[1]
        size = self.bucket(length)
        inputs["conditioning"] = self.padded(conditioning, 1, size)
        inputs["conditioning_mask"] = self.mask(length, size)
        return self.graphs["dit"].run(f"denoise_{size}", inputs)["velocity"]

    # The tasks.

    def draw(self, text, seed, steps, guidance=None):
        """Text → image [1, 3, O, O] in 0..1."""
        guidance = np.float32(self.numbers["guidance"] if guidance is None else guidance)
        _, hidden = self.prefill(self.prompt("generate", text))
        conditional, unconditional = self.project(hidden), self.project(np.zeros_like(hidden))
        latent = noise(seed, self.numbers["latent_shape"])
        before = np.zeros_like(latent)
        for step in self.scheduler["schedules"][str(steps)]:
            with_prompt = self.velocity(latent, step["timestep"], conditional)
            without = self.velocity(latent, step["timestep"], unconditional)
            velocity = without + guidance * (with_prompt - without)
            denoised = latent - np.float32(step["sigma"]) * velocity
            latent = (
                np.float32(step["sample"]) * latent
                + np.float32(step["denoised_now"]) * denoised
                + np.float32(step["denoised_before"]) * before
            )
            before = denoised
        latent = latent / np.float32(self.numbers["vae_scaling_factor"])
        image = self.graphs["vae_decoder"].run("decode", {"latent": latent})["image"]
        return np.clip(image / 2 + 0.5, 0, 1)

    def answer(self, path, question, count):
        """A picture's file and a question → the ids of a greedy answer."""
        features = self.encode_image(path)
        logits, _ = self.prefill(self.prompt("describe", question, features))
        ids = []
        while len(ids) < count:
            token = int(logits[0, -1].argmax())
            if token in self.numbers["stop_token_ids"]:
                break
            ids.append(token)
            if len(ids) < count:
                logits = self.decode(self.embed_ids([token]))
        return ids


def preprocessed(path, wanted):
    """A picture's file → uint8 RGB [size, size, 3], as vectors/preprocessing.json has it."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture = picture.convert("RGB")
    size = wanted["image_size"]
    if wanted["square_first"] and picture.width != picture.height:
        edge = max(picture.size)
        canvas = Image.new("RGB", (edge, edge))
        canvas.paste(picture, ((edge - picture.width) // 2, (edge - picture.height) // 2))
        picture = canvas
    short = min(picture.size)
    scaled = tuple(size if side == short else int(size * side / short) for side in picture.size)
    picture = picture.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def noise(seed, shape):
    """The latent that denoising starts from, as vectors/noise.json says (for a multiple of 16 values)."""
    count = int(np.prod(shape))
    words = np.frombuffer(np.random.RandomState(seed).bytes(4 * count), "<u4")
    uniform = (words & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)
    blocks = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - blocks[:, 0]))
    angle = np.float32(2 * np.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(shape)


def main():
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("target")
    tasks = parser.add_subparsers(dest="task", required=True)
    draw = tasks.add_parser("draw")
    draw.add_argument("text")
    draw.add_argument("--seed", type=int, default=0)
    draw.add_argument("--steps", type=int, default=20, choices=(4, 8, 12, 20))
    draw.add_argument("--out", type=Path, required=True)
    answer = tasks.add_parser("answer")
    answer.add_argument("picture", type=Path)
    answer.add_argument("question")
    answer.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    app = App(arguments.bundle, arguments.target)
    if arguments.task == "draw":
        image = app.draw(arguments.text, arguments.seed, arguments.steps)
        pixels = np.rint(image[0].transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(arguments.out)
        print(arguments.out)
    else:
        ids = app.answer(arguments.picture, arguments.question, arguments.tokens)
        print(json.dumps({"tokens": ids, "text": app.tokenizer.decode(ids)}))


if __name__ == "__main__":
    sys.exit(main())
