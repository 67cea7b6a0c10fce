"""The protobuf messages of a Core ML model, as far as an ML Program and its interface go.

Field numbers are those of coremltools' ``mlmodel/format`` (Model.proto, FeatureTypes.proto, MIL.proto). They
are here so that a package is read where coremltools is not installed; what is not named is skipped.
"""

from __future__ import annotations

import functools
from typing import Any

SCALARS = ("int32", "int64", "uint64", "bool", "float", "double", "string", "bytes")

OTHER_MODELS = {
    "pipelineClassifier": 200,
    "pipelineRegressor": 201,
    "pipeline": 202,
    "glmRegressor": 300,
    "supportVectorRegressor": 301,
    "treeEnsembleRegressor": 302,
    "neuralNetworkRegressor": 303,
    "bayesianProbitRegressor": 304,
    "glmClassifier": 400,
    "supportVectorClassifier": 401,
    "treeEnsembleClassifier": 402,
    "neuralNetworkClassifier": 403,
    "kNearestNeighborsClassifier": 404,
    "neuralNetwork": 500,
    "itemSimilarityRecommender": 501,
    "customModel": 555,
    "linkedModel": 556,
    "identity": 900,
    "serializedModel": 3000,
}
"""Kinds of models that are no ML Program, to name one that is given."""

MESSAGES: dict[str, dict[str, str]] = {
    "Model": {
        "specificationVersion": "1 int32",
        "description": "2 ModelDescription",
        "mlProgram": "502 Program in Type",
        **{name: f"{number} Empty in Type" for name, number in OTHER_MODELS.items()},
    },
    "Empty": {},
    "ModelDescription": {
        "input": "1 repeated FeatureDescription",
        "output": "10 repeated FeatureDescription",
        "state": "13 repeated FeatureDescription",
        "functions": "20 repeated FunctionDescription",
        "defaultFunctionName": "21 string",
    },
    "FunctionDescription": {
        "name": "1 string",
        "input": "2 repeated FeatureDescription",
        "output": "3 repeated FeatureDescription",
        "state": "6 repeated FeatureDescription",
    },
    "FeatureDescription": {"name": "1 string", "shortDescription": "2 string", "type": "3 FeatureType"},
    "FeatureType": {
        "int64Type": "1 Empty in Type",
        "doubleType": "2 Empty in Type",
        "stringType": "3 Empty in Type",
        "imageType": "4 ImageFeatureType in Type",
        "multiArrayType": "5 ArrayFeatureType in Type",
        "dictionaryType": "6 Empty in Type",
        "sequenceType": "7 Empty in Type",
        "stateType": "8 StateFeatureType in Type",
        "isOptional": "1000 bool",
    },
    "StateFeatureType": {"arrayType": "1 ArrayFeatureType in Type"},
    "ArrayFeatureType": {
        "shape": "1 repeated int64",
        "dataType": "2 int32",
        "enumeratedShapes": "21 EnumeratedShapes in ShapeFlexibility",
        "shapeRange": "31 ShapeRange in ShapeFlexibility",
    },
    "EnumeratedShapes": {"shapes": "1 repeated Shape"},
    "Shape": {"shape": "1 repeated int64"},
    "ShapeRange": {"sizeRanges": "1 repeated SizeRange"},
    "SizeRange": {"lowerBound": "1 uint64", "upperBound": "2 int64"},
    "ImageFeatureType": {
        "width": "1 int64",
        "height": "2 int64",
        "colorSpace": "3 int32",
        "enumeratedSizes": "21 Empty in SizeFlexibility",
        "imageSizeRange": "31 Empty in SizeFlexibility",
    },
    "Program": {"version": "1 int64", "functions": "2 map Function"},
    "Function": {
        "inputs": "1 repeated NamedValueType",
        "opset": "2 string",
        "block_specializations": "3 map Block",
    },
    "Block": {
        "inputs": "1 repeated NamedValueType",
        "outputs": "2 repeated string",
        "operations": "3 repeated Operation",
    },
    "Operation": {
        "type": "1 string",
        "inputs": "2 map Argument",
        "outputs": "3 repeated NamedValueType",
        "blocks": "4 repeated Block",
        "attributes": "5 map Value",
    },
    "Argument": {"arguments": "1 repeated Binding"},
    "Binding": {"name": "1 string in binding", "value": "2 Value in binding"},
    "NamedValueType": {"name": "1 string", "type": "2 ValueType"},
    "ValueType": {
        "tensorType": "1 TensorType in type",
        "listType": "2 ListType in type",
        "tupleType": "3 Empty in type",
        "dictionaryType": "4 Empty in type",
        "stateType": "5 StateType in type",
    },
    "TensorType": {"dataType": "1 int32", "rank": "2 int64", "dimensions": "3 repeated Dimension"},
    "ListType": {"type": "1 ValueType", "length": "2 Dimension"},
    "StateType": {"wrappedType": "1 ValueType"},
    "Dimension": {
        "constant": "1 ConstantDimension in dimension",
        "unknown": "2 UnknownDimension in dimension",
    },
    "ConstantDimension": {"size": "1 uint64"},
    "UnknownDimension": {"variadic": "1 bool"},
    "Value": {
        "type": "2 ValueType",
        "immediateValue": "3 ImmediateValue in value",
        "blobFileValue": "5 BlobFileValue in value",
    },
    "BlobFileValue": {"fileName": "1 string", "offset": "2 uint64"},
    "ImmediateValue": {
        "tensor": "1 TensorValue in value",
        "tuple": "2 Empty in value",
        "list": "3 ListValue in value",
        "dictionary": "4 Empty in value",
    },
    "ListValue": {"values": "1 repeated Value"},
    "TensorValue": {
        "floats": "1 RepeatedFloats in value",
        "ints": "2 RepeatedInts in value",
        "bools": "3 RepeatedBools in value",
        "strings": "4 RepeatedStrings in value",
        "longInts": "5 RepeatedLongInts in value",
        "doubles": "6 RepeatedDoubles in value",
        "bytes": "7 RepeatedBytes in value",
    },
    "RepeatedFloats": {"values": "1 repeated float"},
    "RepeatedInts": {"values": "1 repeated int32"},
    "RepeatedBools": {"values": "1 repeated bool"},
    "RepeatedStrings": {"values": "1 repeated string"},
    "RepeatedLongInts": {"values": "1 repeated int64"},
    "RepeatedDoubles": {"values": "1 repeated double"},
    "RepeatedBytes": {"values": "1 bytes"},
}
"""Each message's fields: number, "repeated" or "map" (of strings to it), type, and the oneof it is in."""

_PACKAGE = "mobile_o_export.coreml"


@functools.cache
def model_message() -> Any:
    """The class of ``Model`` messages.

    Raises:
        ImportError: protobuf is not installed.
    """
    from google.protobuf import (  # type: ignore[import-untyped]
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    file = descriptor_pb2.FileDescriptorProto(name="model.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        groups: dict[str, int] = {}
        for field_name, text in fields.items():
            number, *words = text.split()
            group = words[-1] if "in" in words else ""
            many = words.pop(0) if words[0] in ("repeated", "map") else ""
            kind = f"{name}.{_entry(message, field_name, words[0])}" if many == "map" else words[0]
            field = message.field.add(name=field_name, number=int(number))
            field.label = field.LABEL_REPEATED if many else field.LABEL_OPTIONAL
            _set_type(field, kind)
            if group:
                if group not in groups:
                    groups[group] = len(message.oneof_decl)
                    message.oneof_decl.add(name=group)
                field.oneof_index = groups[group]
    # A pool of its own: coremltools registers the same messages under their own names.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Model"))


def _set_type(field: Any, kind: str) -> None:
    if kind in SCALARS:
        field.type = getattr(field, f"TYPE_{kind.upper()}")
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"


def _entry(message: Any, field_name: str, kind: str) -> str:
    """The name of a new message of a map's keys and values, as protobuf's compiler would call it."""
    name = "".join(word.title() for word in field_name.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    for field_name, number, of in (("key", 1, "string"), ("value", 2, kind)):
        field = entry.field.add(name=field_name, number=number)
        field.label = field.LABEL_OPTIONAL
        _set_type(field, of)
    return name
