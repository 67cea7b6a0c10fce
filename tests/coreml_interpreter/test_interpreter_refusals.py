"""Damaged packages, wrong inputs, and programs that the interpreter does not implement."""

import json
import shutil

import numpy as np
import pytest

from mobile_o_export.backends.coreml.interpreter import (
    DamagedPackageError,
    EvaluationError,
    InputError,
    Interpreter,
    UnsupportedOpError,
    load_mlpackage,
)
from mobile_o_export.backends.coreml.interpreter.package import root_model_path
from mobile_o_export.errors import BundleError, ExportError, UnsupportedError, UsageError
from mobile_o_export.quiet import quiet_vendor

with quiet_vendor():
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.proto import Model_pb2

X = np.ones((2, 16), np.float32)
WEIGHT = np.random.default_rng(8).standard_normal((4, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def sound(tmp_path_factory, build_program, save_program):
    path = tmp_path_factory.mktemp("sound") / "m.mlpackage"
    ids = np.zeros(3, np.int32)
    builders = {
        "y": lambda x, ids: mb.linear(x=x, weight=WEIGHT),
        "z": lambda x, ids: mb.gather(x=x, indices=ids, axis=0),
    }
    return save_program(build_program({"x": X, "ids": ids}, builders), path)


@pytest.fixture
def package(sound, tmp_path):
    """A copy to damage."""
    shutil.copytree(sound, tmp_path / "m.mlpackage")
    return tmp_path / "m.mlpackage"


def edit(package, change):
    """Apply ``change`` to the operations of the program's only function."""
    path = root_model_path(package)
    model = Model_pb2.Model.FromString(path.read_bytes())
    function = model.mlProgram.functions["main"]
    change(function.block_specializations[function.opset])
    path.write_bytes(model.SerializeToString())


def first(block, kind):
    return next(operation for operation in block.operations if operation.type == kind)


def blob(block):
    return next(
        op.attributes["val"].blobFileValue
        for op in block.operations
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue"
    )


def rename_file(block):
    blob(block).fileName = "@model_path/weights/other.bin"


def escape(block):
    blob(block).fileName = "@model_path/../../../etc/hostname"


def impossible(block):
    blob(block).fileName = "@model_path/weights/a\0b"


def shift(block):
    blob(block).offset += 64


def overrun(block):
    blob(block).offset = 10**9


def lose_value(block):
    constant = first(block, "const")
    constant.attributes["val"].ClearField("immediateValue")
    constant.attributes["val"].ClearField("blobFileValue")


def lose_parameter(block):
    del first(block, "linear").inputs["weight"]


def dangle(block):
    first(block, "linear").inputs["x"].arguments[0].name = "nobody"


def lose_producer(block):
    block.operations.remove(first(block, "identity"))


def repeat(block):
    block.operations.append(first(block, "linear"))


@pytest.mark.parametrize(
    "change",
    [
        rename_file,
        escape,
        impossible,
        shift,
        overrun,
        lose_value,
        lose_parameter,
        dangle,
        lose_producer,
        repeat,
    ],
    ids=lambda change: change.__name__,
)
def test_damaged_programs(package, change):
    edit(package, change)
    with pytest.raises(DamagedPackageError) as caught:
        Interpreter(load_mlpackage(package).functions["main"], component="dit")
    assert isinstance(caught.value, BundleError)


def test_missing_package(tmp_path):
    with pytest.raises(DamagedPackageError, match=r"Manifest\.json is missing"):
        load_mlpackage(tmp_path / "none.mlpackage")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rootModelIdentifier": "a", "itemInfoEntries": {}}'])
def test_damaged_manifest(package, text):
    (package / "Manifest.json").write_text(text)
    with pytest.raises(DamagedPackageError, match="root model"):
        load_mlpackage(package)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (7, "does not name a root model: .* has no attribute 'split'"),
        ("x" * 5000, "does not name a root model: .* it is too long"),
        ("x\0y", "does not name a root model: .* it holds control characters"),
    ],
)
def test_manifest_that_names_no_file(package, path, message):
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
    (package / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedPackageError, match=message) as caught:
        load_mlpackage(package)
    assert caught.value.exit_code == 2


def test_manifest_that_points_outside(package):
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../secret"
    (package / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedPackageError, match="leads out of it"):
        load_mlpackage(package)


def test_missing_model(package):
    root_model_path(package).unlink()
    with pytest.raises(DamagedPackageError, match="root model"):
        load_mlpackage(package)


def test_damaged_model(package):
    path = root_model_path(package)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedPackageError):
        load_mlpackage(package)


def test_empty_model(package):
    root_model_path(package).write_bytes(b"")
    with pytest.raises(DamagedPackageError, match="not an ML Program"):
        load_mlpackage(package)


def test_missing_and_short_weights(package):
    path = root_model_path(package).parent / "weights/weight.bin"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DamagedPackageError, match="cut short"):
        load_mlpackage(package)
    path.unlink()
    with pytest.raises(DamagedPackageError, match="lacks its weight file"):
        load_mlpackage(package)


def test_unknown_op(package):
    names = []

    def change(block):
        operation = first(block, "linear")
        operation.type = "warp_core"
        names.extend(operation.attributes["name"].immediateValue.tensor.strings.values)

    edit(package, change)
    function = load_mlpackage(package).functions["main"]
    with pytest.raises(UnsupportedOpError) as caught:
        Interpreter(function, component="dit")
    message = str(caught.value)
    assert isinstance(caught.value, UnsupportedError)
    assert all(part in message for part in ("'warp_core'", names[0], "'main'", "'dit'"))


def test_unknown_op_in_a_nested_block(tmp_path, build_program, save_program):
    program = build_program(
        {"x": X},
        {
            "y": lambda x: mb.cond(
                pred=mb.greater(x=mb.reduce_sum(x=x), y=0.0),
                _true_fn=lambda: mb.exp(x=x),
                _false_fn=lambda: mb.sub(x=x, y=1.0),
            )
        },
    )
    save_program(program, tmp_path / "m.mlpackage")
    edit(
        tmp_path / "m.mlpackage",
        lambda block: setattr(first(first(block, "cond").blocks[0], "exp"), "type", "warp_core"),
    )
    with pytest.raises(UnsupportedOpError, match="warp_core"):
        Interpreter(load_mlpackage(tmp_path / "m.mlpackage").functions["main"], component="dit")


def test_unknown_parameter(package):
    def change(block):
        first(block, "linear").inputs["rotation"].CopyFrom(first(block, "linear").inputs["x"])

    edit(package, change)
    with pytest.raises(UnsupportedOpError, match="rotation"):
        Interpreter(load_mlpackage(package).functions["main"], component="dit")


IDS = np.zeros(3, np.int32)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": X}, "also needs the inputs ids"),
        ({"x": X, "ids": IDS, "y": X}, "has no inputs y"),
        ({"x": X[:1], "ids": IDS}, r"shape \(2, 16\), not \(1, 16\)"),
        ({"x": X[0], "ids": IDS}, "shape"),
        ({"x": X.astype(np.float64), "ids": IDS}, "is float32, not float64"),
        ({"x": X, "ids": IDS.astype(np.int64)}, "is int32, not int64"),
    ],
)
def test_wrong_inputs(sound, inputs, message):
    interpreter = Interpreter(load_mlpackage(sound).functions["main"], component="dit")
    with pytest.raises(InputError, match=message) as caught:
        interpreter.run(inputs)
    assert isinstance(caught.value, UsageError)


def test_index_out_of_bounds(sound):
    interpreter = Interpreter(load_mlpackage(sound).functions["main"], component="dit")
    with pytest.raises(EvaluationError, match="outside"):
        interpreter.run({"x": X, "ids": np.array([0, 1, 2], np.int32)})


def test_declared_shapes_are_checked(package):
    """A program whose declaration and operation disagree is never run to a result."""

    def change(block):
        first(block, "linear").outputs[0].type.tensorType.dimensions[1].constant.size = 5

    edit(package, change)
    interpreter = Interpreter(load_mlpackage(package).functions["main"], component="dit")
    with pytest.raises(EvaluationError, match="declares") as caught:
        interpreter.run({"x": X, "ids": IDS})
    assert isinstance(caught.value, ExportError)
    assert caught.value.exit_code == 70


def test_missing_state(tmp_path, silent):
    with silent():
        import coremltools as ct

        @mb.program(
            input_specs=[
                mb.TensorSpec((3,), dtype=ct.converters.mil.mil.types.fp16),
                mb.StateTensorSpec((3,), dtype=ct.converters.mil.mil.types.fp16),
            ],
            opset_version=ct.target.iOS18,
        )
        def program(x, total):
            return mb.coreml_update_state(state=total, value=mb.add(x=mb.read_state(input=total), y=x))

        model = ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
            pass_pipeline=ct.PassPipeline.EMPTY,
        )
        model.save(str(tmp_path / "m.mlpackage"))
    interpreter = Interpreter(load_mlpackage(tmp_path / "m.mlpackage").functions["main"], component="llm")
    x = {"x": np.ones(3, np.float16)}
    with pytest.raises(InputError, match=r"'total'.*make_state"):
        interpreter.run(x)
    state = interpreter.make_state()
    interpreter.run(x, state=state)
    (result,) = interpreter.run(x, state=state).values()
    np.testing.assert_array_equal(result, [2, 2, 2])
    state["total"] = state["total"][:2]
    with pytest.raises(InputError, match="state 'total'"):
        interpreter.run(x, state=state)
