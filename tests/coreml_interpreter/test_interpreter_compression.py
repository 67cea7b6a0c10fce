"""Blob storage and compressed weights against coremltools' own reader and decompression."""

import numpy as np
import pytest
import torch

from mobile_o_export.backends.coreml.interpreter import (
    DamagedPackageError,
    EvaluationError,
    Interpreter,
    Rounding,
    load_mlpackage,
)
from mobile_o_export.backends.coreml.interpreter.bits import unpack
from mobile_o_export.backends.coreml.interpreter.blob import WeightFile
from mobile_o_export.backends.coreml.interpreter.ops_compression import _looked_up
from mobile_o_export.backends.coreml.interpreter.tensor_type import TensorType
from mobile_o_export.quiet import quiet_vendor

with quiet_vendor():
    import coremltools as ct
    import coremltools.optimize.coreml as cto
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import types
    from coremltools.libmilstoragepython import _BlobStorageReader, _BlobStorageWriter

rng = np.random.default_rng(3)
BLOBS = {
    "float32": ("float", rng.standard_normal(13).astype(np.float32)),
    "float16": ("fp16", rng.standard_normal(13).astype(np.float16)),
    "int8": ("int8", rng.integers(-128, 128, 13).astype(np.int8)),
    "uint8": ("uint8", rng.integers(0, 256, 13).astype(np.uint8)),
    "int16": ("int16", rng.integers(-(2**15), 2**15, 13).astype(np.int16)),
    "uint16": ("uint16", rng.integers(0, 2**16, 13).astype(np.uint16)),
    "int32": ("int32", rng.integers(-(2**31), 2**31, 13).astype(np.int32)),
    "uint32": ("uint32", rng.integers(0, 2**32, 13).astype(np.uint32)),
    "int4": ("int4", rng.integers(-8, 8, 13).astype(np.int8)),
    "uint1": ("uint1", rng.integers(0, 2, 13).astype(np.uint8)),
    "uint2": ("uint2", rng.integers(0, 4, 13).astype(np.uint8)),
    "uint3": ("uint3", rng.integers(0, 8, 13).astype(np.uint8)),
    "uint4": ("uint4", rng.integers(0, 16, 13).astype(np.uint8)),
    "uint6": ("uint6", rng.integers(0, 64, 13).astype(np.uint8)),
}


@pytest.fixture(scope="module")
def blob_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("blobs") / "weight.bin"
    writer = _BlobStorageWriter(str(path))
    offsets = {}
    for dtype, (method, values) in BLOBS.items():
        raw = values.view(np.uint16) if dtype == "float16" else values
        offsets[dtype] = getattr(writer, f"write_{method}_data")(raw)
    del writer
    return path, offsets


@pytest.mark.parametrize("dtype", BLOBS)
def test_reads_what_coremltools_wrote(blob_file, dtype):
    path, offsets = blob_file
    method, values = BLOBS[dtype]
    read = WeightFile(path).read(offsets[dtype], TensorType(dtype, (13,)))
    np.testing.assert_array_equal(read, values)
    theirs = np.asarray(getattr(_BlobStorageReader(str(path)), f"read_{method}_data")(offsets[dtype]))
    np.testing.assert_array_equal(read, theirs.view(np.float16) if dtype == "float16" else theirs)


@pytest.mark.parametrize(
    ("offset", "declared", "message"),
    [
        (1 << 40, TensorType("float32", (13,)), "past the end"),
        (65, TensorType("float32", (13,)), "sentinel"),
        (64, TensorType("float16", (26,)), "type code"),
        (64, TensorType("float32", (12,)), "declares"),
    ],
)
def test_refuses_a_wrong_reference(blob_file, offset, declared, message):
    with pytest.raises(DamagedPackageError, match=message):
        WeightFile(blob_file[0]).read(offset, declared)


def test_refuses_a_truncated_file(blob_file, tmp_path):
    path, offsets = blob_file
    cut = tmp_path / "weight.bin"
    cut.write_bytes(path.read_bytes()[: offsets["uint6"] + 66])
    with pytest.raises(DamagedPackageError, match="cut short"):
        WeightFile(cut).check(offsets["uint6"], TensorType("uint6", (13,)))
    cut.write_bytes(b"")
    with pytest.raises(DamagedPackageError):
        WeightFile(cut)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_unpack_is_little_endian(bits):
    values = [5 % 2**bits, 1, 0, 2**bits - 1, 2 % 2**bits]
    run = sum(value << (bits * place) for place, value in enumerate(values))
    packed = np.frombuffer(run.to_bytes(4, "little"), np.uint8)
    assert unpack(packed, bits, 5, signed=False).tolist() == values


WEIGHT = rng.standard_normal((64, 64)).astype(np.float32)
# At most 16 values, so that a table of them loses nothing and no k-means is needed.
FEW = rng.choice(rng.standard_normal(16).astype(np.float32), (64, 64))
SPARSE = WEIGHT * (np.abs(WEIGHT) > 0.9)


def linear_config(**options):
    return lambda m: cto.linear_quantize_weights(
        m, cto.OptimizationConfig(cto.OpLinearQuantizerConfig(weight_threshold=0, **options))
    )


def palette_config(**options):
    return lambda m: cto.palettize_weights(
        m, cto.OptimizationConfig(cto.OpPalettizerConfig(weight_threshold=0, **options))
    )


def prune(m):
    return cto.prune_weights(
        m, cto.OptimizationConfig(cto.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=0))
    )


def joint_int8(compress, granularity):
    config = cto.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity=granularity, weight_threshold=0
    )
    return lambda m: cto.linear_quantize_weights(
        compress(m), cto.OptimizationConfig(config), joint_compression=True
    )


def palettize_pruned(m):
    config = cto.OptimizationConfig(cto.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0))
    return cto.palettize_weights(prune(m), config, joint_compression=True)


SCHEMES = {
    "int8_per_channel": (
        WEIGHT,
        linear_config(mode="linear_symmetric", dtype="int8"),
        "blockwise_shift_scale",
    ),
    "uint8_per_tensor": (
        WEIGHT,
        linear_config(mode="linear", dtype="uint8", granularity="per_tensor"),
        "blockwise_shift_scale",
    ),
    "int4_per_block": (
        WEIGHT,
        linear_config(mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=16),
        "blockwise_shift_scale",
    ),
    "uint4_affine": (
        WEIGHT,
        linear_config(mode="linear", dtype="uint4", granularity="per_block", block_size=32),
        "blockwise_shift_scale",
    ),
    "palette_uniform_6": (WEIGHT, palette_config(mode="uniform", nbits=6), "lut_to_dense"),
    "palette_unique": (FEW, palette_config(mode="unique"), "lut_to_dense"),
    "pruned": (WEIGHT, prune, "sparse_to_dense"),
    "pruned_int8": (WEIGHT, joint_int8(prune, "per_channel"), "sparse_blockwise_shift_scale"),
    "palette_int8": (FEW, joint_int8(palette_config(mode="unique"), "per_tensor"), "lut_to_dense"),
    "palette_pruned": (WEIGHT, palettize_pruned, "lut_to_sparse"),
}


def small_model(weight, target, silent):
    with silent():

        @mb.program(input_specs=[mb.TensorSpec((2, 64))], opset_version=target)
        def program(x):
            return mb.linear(x=x, weight=weight, name="y")

        return ct.convert(
            program,
            minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT32,
            compute_units=ct.ComputeUnit.CPU_ONLY,
            skip_model_load=True,
        )


def decompressed_weight(model):
    for op in cto.decompress_weights(model)._mil_program.functions["main"].operations:
        if op.op_type == "linear":
            return op.weight.val
    raise AssertionError("no linear")


IOS16_SCHEMES = ("int8_per_channel", "palette_unique", "palette_uniform_6", "pruned")
CASES = [(name, "iOS18") for name in SCHEMES] + [(name, "iOS16") for name in IOS16_SCHEMES]


@pytest.mark.parametrize(("scheme", "target"), CASES)
def test_compressed_weights(tmp_path, silent, scheme, target):
    weight, compress, op = SCHEMES[scheme]
    with silent():
        model = compress(small_model(weight, getattr(ct.target, target), silent))
        model.save(str(tmp_path / "m.mlpackage"))
        expected = decompressed_weight(model)
    function = load_mlpackage(tmp_path / "m.mlpackage").functions["main"]
    op = "affine_dequantize" if target == "iOS16" and op == "blockwise_shift_scale" else op
    assert f"constexpr_{op}" in function.op_counts()
    # The rows of the unit matrix, two at a time, read the weight out column by column.
    unit = np.eye(64, dtype=np.float32)
    interpreter = Interpreter(function, component=scheme)
    columns = [interpreter.run({"x": unit[row : row + 2]})["y"] for row in range(0, 64, 2)]
    np.testing.assert_allclose(np.concatenate(columns).T, expected, rtol=1e-6, atol=1e-7)
    assert np.abs(expected - weight).max() < 1.5  # Not garbage on both sides.


def vector_lut(mb_types):
    # Two groups of rows, four palettes each of vectors of two, along the columns.
    indices = rng.integers(0, 4, (4, 3)).astype(np.uint8)
    lut = rng.standard_normal((2, 1, 4, 2)).astype(np.float32)
    return indices, lut


def test_vector_palettes(tmp_path, build_program, save_program):
    indices, lut = vector_lut(types)
    typed = indices.astype(types.np_uint2_dtype)
    builders = {
        "axis1": lambda x: mb.add(
            x=x, y=mb.reduce_sum(x=mb.constexpr_lut_to_dense(indices=typed, lut=lut, vector_axis=1), axes=[0])
        ),
        "axis0": lambda x: mb.mul(
            x=mb.reduce_sum(x=x), y=mb.constexpr_lut_to_dense(indices=typed, lut=lut, vector_axis=0)
        ),
    }
    x = np.zeros(6, np.float32)
    x[0] = 1
    save_program(build_program({"x": x}, builders), tmp_path / "m.mlpackage")
    results = Interpreter(load_mlpackage(tmp_path / "m.mlpackage").functions["main"], component="lut").run(
        {"x": x}
    )
    along_1, along_0 = np.zeros((4, 6), np.float32), np.zeros((8, 3), np.float32)
    for row in range(4):
        for column in range(3):
            vector = lut[row // 2, 0, indices[row, column]]
            along_1[row, 2 * column : 2 * column + 2] = vector
            along_0[2 * row : 2 * row + 2, column] = vector
    np.testing.assert_allclose(results["out_axis1_0"], x + along_1.sum(0), rtol=1e-5)
    np.testing.assert_allclose(results["out_axis0_0"], along_0, rtol=1e-6)


def test_sparse_palettes_and_casts(tmp_path, build_program, save_program):
    mask = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
    lut = np.array([0.5, -2.0], np.float32).reshape(1, 1, 2, 1)
    picked = np.array([1, 0, 0, 1], np.uint8)

    def sparse(x):
        mask_out, values = mb.constexpr_lut_to_sparse(
            indices_mask=mask.astype(types.np_uint1_dtype),
            indices_nonzero_data=picked.astype(types.np_uint1_dtype),
            lut=lut,
        )
        return mb.add(x=x, y=mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask_out))

    def cast(x):
        source = np.arange(6, dtype=np.float16).reshape(2, 3)
        return mb.add(x=x, y=mb.constexpr_cast(source_val=source, output_dtype="fp32"))

    x = np.zeros((2, 3), np.float32)
    program = build_program({"x": x}, {"sparse": sparse, "cast": cast})
    save_program(program, tmp_path / "m.mlpackage")
    results = Interpreter(load_mlpackage(tmp_path / "m.mlpackage").functions["main"], component="sparse").run(
        {"x": x}
    )
    np.testing.assert_array_equal(results["out_sparse_0"], [[-2.0, 0, 0.5], [0, 0.5, -2.0]])
    np.testing.assert_array_equal(results["out_cast_0"], np.arange(6).reshape(2, 3))


SCALES = np.array([0.1, 0.5, 0.02], np.float32)
ZEROS = np.array([3, -7, 0], np.int8)
QUANTIZE = {
    "quantize": (
        lambda x: mb.quantize(input=x, scale=np.float32(0.5), zero_point=np.int8(3), output_dtype="int8"),
        lambda x: np.clip(np.round(x / 0.5) + 3, -128, 127).astype(np.int32),
    ),
    "round_trip": (
        lambda x: mb.dequantize(
            input=mb.quantize(input=x, scale=SCALES, zero_point=ZEROS, axis=1, output_dtype="int8"),
            scale=SCALES,
            zero_point=ZEROS,
            axis=1,
        ),
        lambda x: (
            (np.clip(np.round(x / SCALES[:, None]) + ZEROS[:, None], -128, 127) - ZEROS[:, None])
            * SCALES[:, None]
        ),
    ),
    "uint8": (
        lambda x: mb.quantize(input=x, scale=np.float32(0.01), output_dtype="uint8"),
        lambda x: np.clip(np.round(x / np.float32(0.01)), 0, 255).astype(np.int32),
    ),
}


@pytest.mark.parametrize("name", QUANTIZE)
def test_activation_quantization(check, name):
    inputs = {"x": np.random.default_rng(4).uniform(-5, 5, (2, 3, 4)).astype(np.float32)}
    check("quantize", inputs, QUANTIZE, name)


@pytest.mark.parametrize("keep", [True, False])
def test_keep_weights(tmp_path, silent, keep):
    with silent():
        model = SCHEMES["int4_per_block"][1](small_model(WEIGHT, ct.target.iOS18, silent))
        model.save(str(tmp_path / "m.mlpackage"))
    program = load_mlpackage(tmp_path / "m.mlpackage")
    function = program.functions["main"]
    x = rng.standard_normal((2, 64)).astype(np.float32)
    interpreter = Interpreter(function, component="c", keep_weights=keep, rounding=Rounding.FP32)
    first = interpreter.run({"x": x})["y"]
    kept = program.weights.kept_count
    second = Interpreter(function, component="c", keep_weights=keep, rounding=Rounding.FP32).run({"x": x})[
        "y"
    ]
    np.testing.assert_array_equal(first, second)
    assert program.weights.kept_count == kept
    large = [
        value for values in program.weights._tensors.values() for value in values if value.numel() >= 4096
    ]
    # The restored weight alone; the integers that it came from are not asked for again.
    assert len(large) == int(keep)


@pytest.mark.parametrize(("scheme", "shared"), [("palette_uniform_6", True), ("int4_per_block", False)])
def test_weights_that_no_rounding_changes_are_restored_once_for_both(tmp_path, silent, scheme, shared):
    with silent():
        model = SCHEMES[scheme][1](small_model(WEIGHT, ct.target.iOS18, silent))
        model.save(str(tmp_path / "m.mlpackage"))
    program = load_mlpackage(tmp_path / "m.mlpackage")
    x = rng.standard_normal((2, 64)).astype(np.float32)
    counts = []
    for rounding in Rounding:
        Interpreter(program.functions["main"], component="c", rounding=rounding).run({"x": x})
        counts.append(program.weights.kept_count)
    assert (counts[0] == counts[1]) is shared


def test_an_index_beyond_its_palette_is_refused():
    indices, lut = torch.tensor([[0, 3]], dtype=torch.uint8), torch.zeros(1, 1, 3, 1)
    with pytest.raises(EvaluationError, match="beyond the 3 values"):
        _looked_up(indices, lut, None)


def test_groups_along_the_first_axis_are_looked_up_as_any_others():
    """Along another axis there are no whole rows for the compiled loop."""
    indices = torch.randint(0, 4, (6, 10), dtype=torch.uint8)
    lut = torch.randn(3, 1, 4, 1)
    found = _looked_up(indices, lut, None)
    assert torch.equal(found, _looked_up(indices.T, lut.transpose(0, 1), None).T)
    assert torch.equal(found, _looked_up(indices, lut.repeat(1, 2, 1, 1), None))
