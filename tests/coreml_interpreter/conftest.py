"""Small MIL programs: built with coremltools, saved, loaded again and evaluated."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from mobile_o_export.backends.coreml.interpreter import (
    Interpreter,
    Rounding,
    load_mlpackage,
)
from mobile_o_export.quiet import quiet_vendor

pytest.importorskip("coremltools")


@contextlib.contextmanager
def _silent():
    # Progress bars go straight to stderr.
    with quiet_vendor(), contextlib.redirect_stderr(io.StringIO()):
        yield


@pytest.fixture(scope="session")
def silent():
    """The context in which coremltools may talk."""
    return _silent


@pytest.fixture(scope="session")
def save_program():
    """Save a MIL program as .mlpackage; without a precision no pass touches its operations."""

    def save(program, path, precision=None, states=None):
        with _silent():
            import coremltools as ct

            options = {} if precision else {"pass_pipeline": ct.PassPipeline.EMPTY}
            model = ct.convert(
                program,
                minimum_deployment_target=ct.target.iOS18,
                compute_units=ct.ComputeUnit.CPU_ONLY,
                compute_precision={"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}[
                    precision or "fp32"
                ],
                skip_model_load=True,
                **options,
            )
            model.save(str(path))
        return path

    return save


@pytest.fixture(scope="session")
def build_program():
    """A MIL program with the given inputs and one output for each builder."""

    def build(inputs, builders, opset="iOS18"):
        with _silent():
            import coremltools as ct
            from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
            from coremltools.converters.mil.mil import Function, Program, types

            kinds = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32}
            target = getattr(ct.target, opset)
            program = Program()
            placeholders = {
                name: mb.placeholder(array.shape, dtype=kinds[array.dtype.name], name=name)
                for name, array in inputs.items()
            }
            with Function(placeholders, opset_version=target) as function:
                outputs = []
                for name, builder in builders.items():
                    result = builder(**{key: function.inputs[key] for key in inputs})
                    for place, var in enumerate(result if isinstance(result, tuple | list) else [result]):
                        if var.dtype not in (types.fp32, types.fp16, types.int32):
                            var = mb.cast(x=var, dtype="int32")
                        outputs.append(mb.identity(x=var, name=f"out_{name}_{place}"))
                function.set_outputs(outputs)
            program.add_function("main", function)
        return program

    return build


@pytest.fixture(scope="session")
def evaluate(tmp_path_factory, build_program, save_program):
    """All results of a family of cases, built into one package and evaluated once a session."""
    done = {}

    def run(family, inputs, cases):
        if family not in done:
            builders = {name: case[0] for name, case in cases.items()}
            path = tmp_path_factory.mktemp("mil") / f"{family}.mlpackage"
            save_program(build_program(inputs, builders), path)
            function = load_mlpackage(Path(path)).functions["main"]
            done[family] = Interpreter(function, component=family, rounding=Rounding.FP32).run(inputs)
        return done[family]

    return run


@pytest.fixture(scope="session")
def check(evaluate):
    """Compare one case of a family with the expected values that stand beside it."""

    def compare(family, inputs, cases, name, rtol=1e-5, atol=1e-5):
        results = evaluate(family, inputs, cases)
        expected = cases[name][1](**inputs)
        expected = expected if isinstance(expected, tuple | list) else [expected]
        for place, wanted in enumerate(expected):
            got = results[f"out_{name}_{place}"]
            wanted = np.asarray(wanted)
            assert got.shape == wanted.shape
            if wanted.dtype.kind == "f":
                assert got.dtype == np.float32
                np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol)
            else:
                np.testing.assert_array_equal(got, wanted)

    return compare


@pytest.fixture
def evaluated(build_program, save_program, tmp_path):
    """What an operator makes of inputs in fp32, in a package of its own; its first result."""

    def run(operator, inputs, opset="iOS18"):
        path = tmp_path / "one.mlpackage"
        save_program(build_program(inputs, {"it": operator}, opset), path)
        function = load_mlpackage(path).functions["main"]
        return Interpreter(function, component="one", rounding=Rounding.FP32).run(inputs)["out_it_0"]

    return run
