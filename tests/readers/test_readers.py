"""Each vendor's own reader takes the bundle's files and finds in them what the manifest says."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_o_export.backends.base import GraphFile
from mobile_o_export.bundle.manifest import Manifest, read_manifest
from mobile_o_export.components.registry import COMPONENT_NAMES
from mobile_o_export.parity.metrics import Array
from mobile_o_export.tensors import TensorSpec

COREML, LITERT, ONNX = "coreml-ane", "litert-cpu", "tensorrt-orin"

Declared = dict[str, tuple[str, tuple[int | str, ...]]]
"""Element type and shape by tensor name."""

AXES: Mapping[str, str] = {
    "S": "sequence_length",
    "P": "past_sequence_length",
    "M": "total_sequence_length",
}
"""The manifest's letters in Hugging Face's words, which is what an .onnx file calls its dynamic axes."""

MIL_TYPES = {"fp16": "float16", "fp32": "float32", "int32": "int32"}

every_component = pytest.mark.parametrize("name", COMPONENT_NAMES)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def graphs(manifest: Manifest, target: str, name: str) -> dict[str, GraphFile]:
    """A component's graphs on a target by their entry in the file, by the file where it is the graph."""
    listed = manifest.targets[target].components[name].graphs
    by_entry = {graph.entry or graph.file: graph for graph in listed}
    assert len(by_entry) == len(listed) > 0
    return by_entry


def path_of(bundle: Path, manifest: Manifest, target: str, name: str, graph: GraphFile) -> Path:
    return bundle / manifest.targets[target].components[name].folder / graph.file


def only_path(bundle: Path, manifest: Manifest, target: str, name: str) -> Path:
    """The one file that holds every graph of a component."""
    found = graphs(manifest, target, name).values()
    (path,) = {path_of(bundle, manifest, target, name, graph) for graph in found}
    return path


def declared(specs: Iterable[TensorSpec]) -> Declared:
    return {spec.name: (str(spec.dtype), spec.shape) for spec in specs}


def test_the_manifest_lists_every_file_that_a_reader_can_open(bundle: Path, manifest: Manifest) -> None:
    listed = {
        path_of(bundle, manifest, target, name, graph)
        for target in manifest.targets
        for name in COMPONENT_NAMES
        for graph in graphs(manifest, target, name).values()
    }
    found = {suffix: set(bundle.rglob(f"*{suffix}")) for suffix in (".mlpackage", ".tflite", ".onnx")}
    # On ONNX the LLM's embeddings are a file of their own.
    assert {suffix: len(paths) for suffix, paths in found.items()} == {
        ".mlpackage": 5,
        ".tflite": 5,
        ".onnx": 6,
    }
    assert set().union(*found.values()) == listed


# LiteRT: a plain interpreter


def litert(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path))


def litert_tensors(details: Mapping[str, Any]) -> Declared:
    return {
        name: (np.dtype(found["dtype"]).name, tuple(found["shape"].tolist()))
        for name, found in details.items()
    }


@every_component
def test_a_plain_interpreter_lists_the_signatures(name: str, bundle: Path, manifest: Manifest) -> None:
    interpreter = litert(only_path(bundle, manifest, LITERT, name))
    expected = graphs(manifest, LITERT, name)
    assert interpreter.get_signature_list() == {
        entry: {
            "inputs": sorted(spec.name for spec in graph.spec.inputs),
            "outputs": sorted(spec.name for spec in graph.spec.outputs),
        }
        for entry, graph in expected.items()
    }
    for entry, graph in expected.items():
        runner = interpreter.get_signature_runner(entry)
        assert litert_tensors(runner.get_input_details()) == declared(graph.spec.inputs)
        assert litert_tensors(runner.get_output_details()) == declared(graph.spec.outputs)


@every_component
def test_a_plain_interpreter_runs_every_signature(name: str, bundle: Path, manifest: Manifest) -> None:
    interpreter = litert(only_path(bundle, manifest, LITERT, name))
    for entry, graph in graphs(manifest, LITERT, name).items():
        runner = interpreter.get_signature_runner(entry)
        # One is in the range of everything: pixels, tokens, lengths, positions, masks.
        ones = {
            key: np.ones(found["shape"], found["dtype"]) for key, found in runner.get_input_details().items()
        }
        outputs: dict[str, Array] = runner(**ones)
        assert {key: (value.dtype.name, value.shape) for key, value in outputs.items()} == declared(
            graph.spec.outputs
        )
        for value in outputs.values():
            assert np.isfinite(value).all()
            assert np.any(value != 0)


# Core ML: coremltools' loading, of the description and of the program itself


def coreml_features(found: Iterable[Any]) -> Declared:
    from coremltools.proto import FeatureTypes_pb2

    name_of = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Name
    result: Declared = {}
    for feature in found:
        state = feature.type.WhichOneof("Type") == "stateType"
        array = feature.type.stateType.arrayType if state else feature.type.multiArrayType
        result[feature.name] = (name_of(array.dataType).lower(), tuple(array.shape))
    return result


def functions_of(spec: Any) -> dict[str, Any]:
    """Descriptions by function; a package with one function, ``main``, keeps them at the top."""
    return {found.name: found for found in spec.description.functions} or {"main": spec.description}


@every_component
def test_coremltools_loads_the_package(name: str, bundle: Path, manifest: Manifest) -> None:
    import coremltools as ct

    package = str(only_path(bundle, manifest, COREML, name))
    expected = graphs(manifest, COREML, name)
    for spec in (
        ct.utils.load_spec(package),
        ct.models.MLModel(package, skip_model_load=True).get_spec(),
    ):
        functions = functions_of(spec)
        assert functions.keys() == set(spec.mlProgram.functions) == expected.keys()
        for entry, graph in expected.items():
            assert coreml_features(functions[entry].input) == declared(graph.spec.inputs)
            assert coreml_features(functions[entry].output) == declared(graph.spec.outputs)
            assert coreml_features(functions[entry].state) == declared(graph.spec.states)


@every_component
def test_coremltools_selects_each_function_by_its_name(name: str, bundle: Path, manifest: Manifest) -> None:
    import coremltools as ct

    package = str(only_path(bundle, manifest, COREML, name))
    for entry in graphs(manifest, COREML, name):
        assert ct.models.MLModel(package, skip_model_load=True, function_name=entry).function_name == entry
    with pytest.raises(ValueError, match="function_name"):
        ct.models.MLModel(package, skip_model_load=True, function_name="no_such_function")


def mil_tensors(found: Iterable[tuple[str, Any]]) -> Declared:
    from coremltools.converters.mil.mil import types

    return {name: (MIL_TYPES[types.builtin_to_string(var.dtype)], tuple(var.shape)) for name, var in found}


@every_component
def test_coremltools_loads_the_program(name: str, bundle: Path, manifest: Manifest) -> None:
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto import load as milproto
    from coremltools.converters.mil.mil import types

    model = ct.models.MLModel(str(only_path(bundle, manifest, COREML, name)), skip_model_load=True)
    spec = model.get_spec()
    program = milproto.load(spec, spec.specificationVersion, model.weights_dir)
    expected = graphs(manifest, COREML, name)
    assert program.functions.keys() == expected.keys()
    for entry, graph in expected.items():
        function = program.functions[entry]
        assert len(function.operations) > 0
        states = [(key, var) for key, var in function.inputs.items() if types.is_state(var.sym_type)]
        inputs = [(key, var) for key, var in function.inputs.items() if not types.is_state(var.sym_type)]
        assert mil_tensors(inputs) == declared(graph.spec.inputs)
        assert mil_tensors(states) == declared(graph.spec.states)
        assert mil_tensors((var.name, var) for var in function.outputs) == declared(graph.spec.outputs)


# ONNX: the checker and a plain ONNX Runtime session


def session_tensors(found: Iterable[Any]) -> list[tuple[str, str, tuple[int | str, ...]]]:
    names = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
    return [(value.name, names[value.type], tuple(value.shape)) for value in found]


def with_axes(specs: Iterable[TensorSpec]) -> list[tuple[str, str, tuple[int | str, ...]]]:
    return [
        (spec.name, str(spec.dtype), tuple(AXES[dim] if isinstance(dim, str) else dim for dim in spec.shape))
        for spec in specs
    ]


@every_component
def test_onnx_checks_the_file_and_a_plain_session_opens_it(
    name: str, bundle: Path, manifest: Manifest, tmp_path: Path
) -> None:
    import onnx
    import onnxruntime

    # The checker refuses weights with a second hard link, and other tests' copies of the bundle may hold one.
    copy = shutil.copytree(bundle / manifest.targets[ONNX].components[name].folder, tmp_path / name)
    for file, graph in graphs(manifest, ONNX, name).items():
        onnx.checker.check_model(str(copy / file), full_check=True)
        session = onnxruntime.InferenceSession(str(copy / file), providers=["CPUExecutionProvider"])
        assert session_tensors(session.get_inputs()) == with_axes(graph.spec.inputs)
        assert session_tensors(session.get_outputs()) == with_axes(graph.spec.outputs)


def test_onnx_joins_embeddings_and_decoder_as_they_are(bundle: Path, tmp_path: Path) -> None:
    """Loops that know no embeddings of their own take the two as one: no name may stand in both."""
    import onnx.compose

    # A copy for the reason given above: the loader refuses second hard links as well.
    folder = Path(shutil.copytree(bundle / "tensorrt-orin" / "llm", tmp_path / "llm"))
    joined = onnx.compose.merge_models(
        onnx.load(folder / "embed.onnx"),
        onnx.load(folder / "model.onnx"),
        io_map=[("inputs_embeds", "inputs_embeds")],
    )
    onnx.checker.check_model(joined)
    names = [value.name for value in joined.graph.input]
    assert "input_ids" in names
    assert "inputs_embeds" not in names
    nodes = [node.name for node in joined.graph.node]
    assert len(nodes) == len(set(nodes)) > 100
