"""The interface that a package declares, compared with the one that its program has.

Core ML shows apps the declaration and runs the program; a package in which the two differ does not load, and
an interpreter that read the program alone would never notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mobile_o_export.backends.coreml.interpreter.errors import DamagedPackageError, InputError
from mobile_o_export.backends.coreml.interpreter.program import MilFunction, MilProgram
from mobile_o_export.backends.coreml.interpreter.tensor_type import Port, fits

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ARRAY_TYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8"}
"""Core ML's ``ArrayFeatureType.ArrayDataType`` → MIL's type."""


@dataclass(frozen=True)
class Interface:
    """What a package declares of one function beyond what its program says.

    Attributes:
        images: the inputs that are pictures.
        image_outputs: the outputs that are.
        limits: which shapes flexible inputs may have.
    """

    images: Mapping[str, ImagePort]
    image_outputs: Mapping[str, ImagePort]
    limits: Mapping[str, Limits]


def require_described(description: Any, program: MilProgram) -> dict[str, Interface]:
    """Compares the declared interface with the program's.

    Args:
        description: the ``ModelDescription`` message; a package of one function declares it at top level.
        program: what the package runs.

    Returns:
        What is declared of each function.

    Raises:
        DamagedPackageError: the two differ.
    """
    declared = {function.name: function for function in description.functions} or {"main": description}
    if declared.keys() != program.functions.keys():
        raise DamagedPackageError(
            f"{program.path} declares the functions {', '.join(sorted(declared))} but holds "
            f"{', '.join(sorted(program.functions))}; export it again"
        )
    interfaces = {}
    for name, interface in declared.items():
        function = program.functions[name]
        images = _require_equal(function, "inputs", interface.input, function.inputs)
        image_outputs = _require_equal(function, "outputs", interface.output, function.outputs)
        _require_equal(function, "states", interface.state, function.states)
        limits = {
            feature.name: found
            for feature in interface.input
            if (found := Limits.of(feature.type.multiArrayType)) is not None
        }
        interfaces[name] = Interface(images, image_outputs, limits)
    return interfaces


def _require_equal(
    function: MilFunction, kind: str, features: Iterable[Any], ports: Iterable[Port]
) -> dict[str, ImagePort]:
    """Raises DamagedPackageError unless ``features`` declare ``ports``; which of them are pictures."""
    declared = {feature.name: _array(feature) for feature in features}
    actual = {port.name: port for port in ports}
    if declared.keys() != actual.keys():
        raise DamagedPackageError(
            f"{function.package}: function {function.name} declares the {kind} "
            f"{', '.join(sorted(declared)) or 'none'} but has {', '.join(sorted(actual)) or 'none'}; "
            "export it again"
        )
    for name, port in actual.items():
        array = declared[name]
        if isinstance(array, str):
            if array != port.dtype:
                raise DamagedPackageError(
                    f"{function.package}: function {function.name} declares {name} as a {array} but it is a "
                    f"{port.dtype}; export it again"
                )
            continue
        if isinstance(array, ImagePort):
            if not array.fits(port):
                raise DamagedPackageError(
                    f"{function.package}: function {function.name} declares {name} as {array} but it is "
                    f"{port.dtype} {list(port.shape)}; export it again"
                )
            continue
        dtype, shape = ARRAY_TYPES.get(array.dataType), tuple(array.shape)
        # An output may be declared without its shape.
        if dtype != port.dtype or (shape and None not in port.shape and shape != port.shape):
            raise DamagedPackageError(
                f"{function.package}: function {function.name} declares {name} as {dtype} {list(shape)} but "
                f"it is {port.dtype} {list(port.shape)}; export it again"
            )
    return {name: port for name, port in declared.items() if isinstance(port, ImagePort)}


@dataclass(frozen=True)
class Limits:
    """The shapes that an input may have, where it may have several: each of these, or any within bounds.

    Attributes:
        shapes: the shapes; empty where there are bounds.
        bounds: least and largest size of each axis; None for no largest.
    """

    shapes: tuple[tuple[int, ...], ...]
    bounds: tuple[tuple[int, int | None], ...]

    @classmethod
    def of(cls, array: Any) -> Limits | None:
        """Those of an ``ArrayFeatureType`` message; None where it has one shape."""
        match array.WhichOneof("ShapeFlexibility"):
            case "enumeratedShapes":
                return cls(tuple(tuple(one.shape) for one in array.enumeratedShapes.shapes), ())
            case "shapeRange":
                ranges = array.shapeRange.sizeRanges
                # A negative upper bound stands for none.
                bounds = ((one.lowerBound, one.upperBound if one.upperBound >= 0 else None) for one in ranges)
                return cls((), tuple(bounds))
        return None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an input may have ``shape``."""
        if self.shapes:
            return shape in self.shapes
        return len(shape) == len(self.bounds) and all(
            least <= size and (most is None or size <= most)
            for size, (least, most) in zip(shape, self.bounds, strict=True)
        )

    def __str__(self) -> str:
        if self.shapes:
            return " or ".join(map(str, self.shapes))
        return " × ".join(f"{least} to {'any' if most is None else most}" for least, most in self.bounds)


@dataclass(frozen=True)
class ImagePort:
    """A picture that Core ML hands to the program, or makes of its result: [1, channels, height, width].

    Attributes:
        colours: ``GRAYSCALE``, ``RGB``, ``BGR`` or ``GRAYSCALE_FLOAT16``.
        flexible: it may have other sizes as well.
    """

    colours: str
    height: int
    width: int
    flexible: bool

    @property
    def channels(self) -> int:
        """How many planes it has."""
        return 3 if self.colours in ("RGB", "BGR") else 1

    def array(self, picture: Picture) -> NDArray[np.float32]:
        """``picture`` as the program gets it: 0 to 255, its channels in the declared order.

        Raises:
            InputError: it has another size.
        """
        if not self.flexible and picture.size != (self.width, self.height):
            width, height = picture.size
            raise InputError(
                f"the picture has {width} × {height} pixels, and the package takes {self.width} × "
                f"{self.height}. Scale it first."
            )
        # A greyscale one of fp16 has fractions.
        modes = {"GRAYSCALE": "L", "GRAYSCALE_FLOAT16": "F"}
        values = np.asarray(picture.convert(modes.get(self.colours, "RGB")), np.float32)
        planes = values.reshape(*values.shape[:2], self.channels).transpose(2, 0, 1)
        return np.ascontiguousarray(planes[::-1] if self.colours == "BGR" else planes)[None]

    def picture(self, array: NDArray[Any]) -> Picture:
        """The picture that a result [1, channels, height, width] is.

        Values of 8 bits are rounded to the nearest and end at 0 and 255; Apple does not say how Core ML
        rounds. ``GRAYSCALE_FLOAT16`` is of Pillow's mode ``F``.
        """
        from PIL import Image

        planes = array[0].astype(np.float32)
        if self.colours == "GRAYSCALE_FLOAT16":
            return Image.fromarray(planes[0].astype(np.float16).astype(np.float32))
        pixels = np.nan_to_num(planes).round().clip(0, 255).astype(np.uint8)
        if self.channels == 1:
            return Image.fromarray(pixels[0])
        return Image.fromarray(
            np.ascontiguousarray((pixels[::-1] if self.colours == "BGR" else pixels).transpose(1, 2, 0))
        )

    def fits(self, port: Port) -> bool:
        """Whether the program takes, or gives, it as ``port``."""
        plane = [None] * len(port.shape[2:]) if self.flexible else port.shape[2:]
        return fits((1, self.channels, self.height, self.width), (*port.shape[:2], *plane))

    def __str__(self) -> str:
        return f"a picture of {self.channels} channels, {self.height} × {self.width}"


COLOURS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}
"""Core ML's ``ImageFeatureType.ColorSpace``."""

OTHERS = {"stringType": "string", "int64Type": "int64", "dictionaryType": "dictionary"}
"""What a classifier gives: the declaration's name of a type → the program's."""


def _array(feature: Any) -> Any:
    """What a feature declares: an array, a picture, or the name of another type."""
    kind = feature.type
    if kind.WhichOneof("Type") in OTHERS:
        return OTHERS[kind.WhichOneof("Type")]
    if kind.WhichOneof("Type") == "imageType":
        image = kind.imageType
        flexible = image.WhichOneof("SizeFlexibility") is not None
        colours = COLOURS.get(image.colorSpace, f"colour space {image.colorSpace}")
        return ImagePort(colours, image.height, image.width, flexible)
    return kind.stateType.arrayType if kind.WhichOneof("Type") == "stateType" else kind.multiArrayType
