"""The bundle as others read it: its manifest, and each file through its vendor's own reader."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
from shared_exports import SharedExports

from mobile_o_export.backends.base import GraphFile
from mobile_o_export.backends.onnx import tensorrt
from mobile_o_export.backends.onnx.convert import AXIS_NAMES
from mobile_o_export.backends.registry import BACKEND_NAMES
from mobile_o_export.bundle.manifest import Manifest, file_entries, json_schema, read_manifest
from mobile_o_export.bundle.verify import Wish, verify_bundle
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.golden import Golden
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.tensors import Role, TensorSpec

RUNTIMES = {
    "coreml-ane": "Core ML" if sys.platform == "darwin" else "MIL interpreter",
    "litert-cpu": "ai-edge-litert 2.",
    "tensorrt-orin": "onnxruntime 1.",
}


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture(scope="module")
def rows(bundle: Path, shared: SharedExports) -> list[Row]:
    """What verifying all of the bundle finds of its outputs: checks of files and records have no function."""

    def make(folder: Path) -> None:
        found = verify_bundle(bundle, Wish(chains=True), lambda *_: None)
        (folder / "rows.pickle").write_bytes(pickle.dumps(found))

    place = shared.once("rows", (bundle / "manifest.sha256").read_text(), make)
    found = cast(list[Row], pickle.loads((place / "rows.pickle").read_bytes()))
    assert {row.status for row in found} == {Status.PASSED}
    return [row for row in found if row.function]


def graphs(manifest: Manifest, target: str) -> Iterator[tuple[str, GraphFile]]:
    for name, entry in manifest.targets[target].components.items():
        yield from ((name, graph) for graph in entry.graphs)


def test_targets_of_every_backend_hold_every_component(manifest: Manifest) -> None:
    # The app's folder, whose layout is another, is exported and read in tests/backends.
    assert {target.backend for target in manifest.targets.values()} == {*BACKEND_NAMES} - {"mobile-o-app"}
    for target in manifest.targets.values():
        assert tuple(target.components) == COMPONENT_NAMES
        assert [name for name, entry in target.components.items() if entry.skipped is not None] == []


def test_every_output_of_every_function_is_compared_on_every_target_and_passes(
    rows: list[Row], manifest: Manifest
) -> None:
    assert {row.status for row in rows} == {Status.PASSED}
    expected = {
        (target, name, function.name, output.name)
        for target in manifest.targets
        for name, functions in manifest.functions.items()
        for function in functions
        for output in function.outputs
    }
    alone = [row for row in rows if row.component != CHAIN]
    assert {(row.target, row.component, row.function, row.output) for row in alone} == expected


def test_every_stage_of_every_chain_is_compared_on_every_target(rows: list[Row], bundle: Path) -> None:
    golden = Golden.open(bundle / "golden")
    expected = {
        (chain.name, output)
        for chain in golden.index.answers
        for output in ("image_features", "logits", "tokens")
    }
    for chain in golden.index.drawings:
        latents = [f"latent_{step:02d}" for step in range(1, len(chain.latents) + 1)]
        stages = ("hidden_states", "conditional", "unconditional", *latents, "image")
        expected |= {(chain.name, output) for output in stages}
    for target in RUNTIMES:
        found = {(row.case, row.output) for row in rows if (row.target, row.component) == (target, CHAIN)}
        assert found == expected


def test_every_graph_is_run_and_each_row_names_its_own(rows: list[Row], manifest: Manifest) -> None:
    for target in manifest.targets:
        alone = [row for row in rows if row.target == target and row.component != CHAIN]
        started = {(row.component, row.case.rpartition("@")[2]) for row in alone}
        # A decode step's case is named after the prefill that it started with.
        listed = {(name, graph.spec.name) for name, graph in graphs(manifest, target)}
        assert listed - started <= {("llm", "decode")}
        assert started <= listed


@pytest.mark.parametrize("target", RUNTIMES)
def test_rows_say_what_computed_them(target: str, rows: list[Row]) -> None:
    found = {row.runtime for row in rows if row.target == target}
    assert len(found) == 1
    assert found.pop().startswith(RUNTIMES[target])


def test_the_shipped_report_is_what_verify_finds(rows: list[Row], bundle: Path) -> None:
    report = json.loads((bundle / "parity.json").read_text())
    assert report["status"] == "passed"
    kept = ("target", "component", "function", "case", "output", "status", "gate", "runtime")
    shipped = [tuple(row[key] for key in kept) for row in report["rows"]]
    assert shipped == [tuple(row.model_dump(mode="json")[key] for key in kept) for row in rows]


def test_the_shipped_report_shows_how_latents_drift(bundle: Path) -> None:
    drift = json.loads((bundle / "parity.json").read_text())["drift"]
    assert {(curve["target"], curve["case"]) for curve in drift} == {
        (target, case) for target in RUNTIMES for case in ("cube", "cat", "market", "recolour")
    }
    for curve in drift:
        levels = curve["snr_db"]
        assert len(levels) == {"cube": 20, "cat": 2}.get(curve["case"], 3)
        assert min(levels) > 45.0
        # In fp32 arithmetic rounding alone is left, which need not grow.
        assert curve["target"] == "litert-cpu" or levels[0] > levels[-1]


def test_the_manifest_fits_the_schema_that_lies_beside_it(bundle: Path) -> None:
    schema = json.loads((bundle / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads((bundle / "manifest.json").read_text())
    jsonschema.validate(content, schema)
    for wrong in ({**content, "extra": 1}, {key: content[key] for key in content if key != "files"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    assert json_schema() == (bundle / "manifest.schema.json").read_text()


def test_the_manifest_round_trips(bundle: Path, manifest: Manifest) -> None:
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert manifest.model_dump(mode="json") == json.loads((bundle / "manifest.json").read_text())


def test_the_manifest_lists_every_file_and_where_it_came_from(
    bundle: Path, manifest: Manifest, reference_checkpoint: Checkpoint
) -> None:
    assert file_entries(bundle) == manifest.files
    assert manifest.checkpoint.digest == reference_checkpoint.digest
    assert manifest.made_with.keys() >= {"torch", "coremltools", "litert-torch", "onnx", "onnxruntime"}
    for name, functions in manifest.functions.items():
        assert functions == component(name).functions(reference_checkpoint)


def test_sizes_are_those_of_the_files(bundle: Path, manifest: Manifest) -> None:
    for target in manifest.targets.values():
        for entry in target.components.values():
            files = [path for path in (bundle / entry.folder).rglob("*") if path.is_file()]
            assert entry.size_bytes == sum(path.stat().st_size for path in files)


def test_no_file_names_a_place_on_the_machine_that_made_it(bundle: Path, reference_folder: Path) -> None:
    places = {Path.cwd(), Path(__file__).parents[2], Path.home(), reference_folder.resolve(), bundle.parent}
    places |= {Path(sys.prefix), Path(np.__file__).parents[1]}
    needles = [f"{place}{os.sep}".encode() for place in places if len(place.parts) > 1]
    needles += [str(place).encode() for place in (bundle, reference_folder.resolve())]
    found = [
        (path.relative_to(bundle), needle)
        for path in bundle.rglob("*")
        if path.is_file()
        for needle in needles
        if needle in path.read_bytes()
    ]
    assert found == []


# Core ML


def features(found: Any) -> dict[str, tuple[str, list[int]]]:
    """Name, element type and shape of each input or output, as Core ML declares them."""
    from coremltools.proto import FeatureTypes_pb2

    kinds = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType
    result = {}
    for feature in found:
        array = feature.type.multiArrayType
        if feature.type.WhichOneof("Type") == "stateType":
            array = feature.type.stateType.arrayType
        result[feature.name] = (kinds.Name(array.dataType).lower(), list(array.shape))
    return result


def declared(specs: tuple[TensorSpec, ...]) -> dict[str, tuple[str, list[int | str]]]:
    return {spec.name: (str(spec.dtype), list(spec.shape)) for spec in specs}


@pytest.mark.parametrize("name", COMPONENT_NAMES)
def test_coremltools_reads_the_contract(name: str, bundle: Path, manifest: Manifest) -> None:
    from mobile_o_export.quiet import quiet_vendor

    with quiet_vendor():
        import coremltools as ct

        package = bundle / "coreml-ane" / name / f"{name}.mlpackage"
        spec = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
    listed = {graph.entry: graph for _, graph in graphs(manifest, "coreml-ane") if _ == name}
    assert set(spec.mlProgram.functions) == listed.keys()
    # iOS 18's specification.
    assert spec.specificationVersion == 9
    described = {function.name: function for function in spec.description.functions}
    if not described:
        described = {"main": spec.description}
    for entry, graph in listed.items():
        assert graph.file == package.name
        function = described[entry]
        assert features(function.input) == declared(graph.spec.inputs)
        assert features(function.output) == declared(graph.spec.outputs)
        assert features(function.state) == declared(graph.spec.states)
        assert {state.dtype for state in graph.spec.states} <= {"float16"}
        for feature in (*function.input, *function.output, *function.state):
            assert feature.shortDescription


def test_the_llm_keeps_its_cache_in_two_states(manifest: Manifest) -> None:
    for name, graph in graphs(manifest, "coreml-ane"):
        sequence = name == "llm" and not graph.spec.name.startswith("embed")
        assert [state.name for state in graph.spec.states] == (["k_cache", "v_cache"] if sequence else [])
        assert {state.role for state in graph.spec.states} <= {Role.CACHE}


@pytest.mark.parametrize("name", ["llm", "mcp", "dit"])
@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("coreml-ane", "{0}.mlpackage/Data/com.apple.CoreML/weights/weight.bin"),
        ("litert-cpu", "{0}.tflite"),
    ],
)
def test_functions_share_their_weights(
    target: str, file: str, name: str, bundle: Path, reference_checkpoint: Checkpoint
) -> None:
    """Each weight's bytes stand in the file once, though two buckets and decode use it."""
    import torch

    content = (bundle / target / name / file.format(name)).read_bytes()
    weights = reference_checkpoint.component_state_dict(name, torch.float16)
    large = {key: weight for key, weight in weights.items() if weight.ndim > 1 and weight.numel() >= 1024}
    counts = {key: content.count(weight.numpy().tobytes()) for key, weight in large.items()}
    assert {key: count for key, count in counts.items() if count > 1} == {}
    # A converter may fold or transpose some.
    assert sum(counts.values()) >= len(large) / 2
    if target == "coreml-ane":
        # The rest are rotary tables and causal masks, at this size a quarter of the LLM's weights.
        assert len(content) < 1.3 * 2 * sum(weight.numel() for weight in weights.values())


# ONNX


@pytest.fixture(scope="module")
def onnx_files(bundle: Path, manifest: Manifest) -> dict[str, tuple[GraphFile, Any]]:
    import onnx

    return {
        f"{name}/{graph.file}": (
            graph,
            onnx.load(bundle / "tensorrt-orin" / name / graph.file, load_external_data=False),
        )
        for name, graph in graphs(manifest, "tensorrt-orin")
    }


def test_onnx_reads_the_contract(onnx_files: dict[str, tuple[GraphFile, Any]]) -> None:
    import onnx

    for graph, model in onnx_files.values():
        for values, specs in (
            (model.graph.input, graph.spec.inputs),
            (model.graph.output, graph.spec.outputs),
        ):
            found = {
                value.name: (
                    onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                    [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
                )
                for value in values
            }
            expected = {
                spec.name: (str(spec.dtype), [AXIS_NAMES.get(str(dim), dim) for dim in spec.shape])
                for spec in specs
            }
            assert list(found) == list(expected)
            assert found == expected


def test_onnx_files_are_pinned_and_hold_no_trace_of_the_build(
    onnx_files: dict[str, tuple[GraphFile, Any]],
) -> None:
    for _, model in onnx_files.values():
        # TensorRT 10.3 parses opset 9 to 20, and IR 10 is what goes with 20 and 21.
        assert (model.ir_version, [(entry.domain, entry.version) for entry in model.opset_import]) == (
            10,
            [("", 20)],
        )
        assert list(model.metadata_props) == list(model.graph.metadata_props) == []
        for node in model.graph.node:
            assert (node.doc_string, list(node.metadata_props), node.domain) == ("", [], "")
        assert b"Traceback" not in model.SerializeToString()
        assert b".py" not in model.SerializeToString()


def test_external_weights_lie_beside_their_graph(
    onnx_files: dict[str, tuple[GraphFile, Any]], bundle: Path
) -> None:
    for name, (graph, model) in onnx_files.items():
        places = {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert places == {f"{graph.file}.data"}
        assert (bundle / "tensorrt-orin" / f"{name}.data").is_file()


def operators(graph: Any) -> set[str]:
    """Types of all nodes, those of nested graphs included."""
    found = set()
    for node in graph.node:
        found.add(node.op_type)
        for attribute in node.attribute:
            for nested in (attribute.g, *attribute.graphs):
                found |= operators(nested)
    return found


def test_tensorrt_parses_every_operator(onnx_files: dict[str, tuple[GraphFile, Any]]) -> None:
    for name, (_, model) in onnx_files.items():
        found = operators(model.graph)
        assert found, name
        assert tensorrt.unsupported(found) == [], name


def test_operators_that_tensorrt_lacks_are_named() -> None:
    # Not in the table, in it as unsupported, and supported.
    assert tensorrt.unsupported(["StringSplit", "MatMul", "NoSuchOperator", "Unique", "Add"]) == [
        "NoSuchOperator",
        "StringSplit",
        "Unique",
    ]
    assert tensorrt.unsupported([]) == []
