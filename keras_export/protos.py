"""The messages of a SavedModel, described here and parsed without TensorFlow.

In: nothing. Out: message classes with the fields that the readers use; all others are skipped when
bytes are parsed. The invariant: field numbers and types are those of the format, and the
descriptors live in a pool of their own, so TensorFlow may be imported beside them.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError as DecodeError

_PACKAGE = "keras_export_reading"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "fixed32": _Field.TYPE_FIXED32,
    "fixed64": _Field.TYPE_FIXED64,
    "float": _Field.TYPE_FLOAT,
    "int": _Field.TYPE_INT64,  # also int32 and enums: the same on the wire
    "sint": _Field.TYPE_SINT64,
    "string": _Field.TYPE_STRING,
    "uint": _Field.TYPE_UINT64,
}

# Message -> "field=number:type", `*` for a repeated field, `?` for one of several of which only one
# is set (`WhichOneof("value")` names it). Maps are their repeated entries.
# Sources: tensorflow/core/protobuf/{saved_model,meta_graph,saved_object_graph,tensor_bundle,
# trackable_object_graph,fingerprint,struct}.proto, tensorflow/core/framework/*.proto.
_MESSAGES = {
    "SavedModel": "meta_graphs=2:MetaGraph*",
    "MetaGraph": "meta_info_def=1:MetaInfo graph_def=2:Graph saver_def=3:Saver "
    "collection_def=4:CollectionEntry* signature_def=5:SignatureEntry* asset_file_def=6:AssetFile* "
    "object_graph_def=7:SavedObjects",
    "CollectionEntry": "key=1:string value=2:Collection",
    "Collection": "node_list=1:NodeList",
    "NodeList": "value=1:string*",
    "MetaInfo": "stripped_op_list=2:OpList tags=4:string* tensorflow_version=5:string",
    "OpList": "op=1:OpDef*",
    "OpDef": "name=1:string attr=4:AttrDef*",
    "AttrDef": "name=1:string type=2:string default_value=3:Attr",
    "Saver": "filename_tensor_name=1:string restore_op_name=3:string",
    "SignatureEntry": "key=1:string value=2:Signature",
    "Signature": "inputs=1:TensorEntry* outputs=2:TensorEntry* defaults=4:DefaultEntry*",
    "DefaultEntry": "key=1:string value=2:bytes",
    "TensorEntry": "key=1:string value=2:Tensor",
    "Tensor": "name=1:string dtype=2:int tensor_shape=3:Shape coo_sparse=4:Sparse "
    "composite_tensor=5:Composite",
    "Sparse": "values_tensor_name=1:string indices_tensor_name=2:string "
    "dense_shape_tensor_name=3:string",
    "Composite": "type_spec=1:TypeSpec components=2:Tensor*",
    "TypeSpec": "type_spec_class=1:int type_state=2:Value type_spec_class_name=3:string",
    "Value": "float64_value=11:fixed64? int64_value=12:sint? string_value=13:string? "
    "bool_value=14:bool? tensor_shape_value=31:Shape? tensor_dtype_value=32:int? "
    "tensor_spec_value=33:TensorSpec? type_spec_value=34:TypeSpec? list_value=51:Values? "
    "tuple_value=52:Values? dict_value=53:Dict? named_tuple_value=54:NamedTuple?",
    "TensorSpec": "name=1:string shape=2:Shape dtype=3:int",
    "Dict": "fields=1:Pair*",
    "Values": "values=1:Value*",
    "NamedTuple": "name=1:string values=2:Pair*",
    "Pair": "key=1:string value=2:Value",
    "Shape": "dim=2:Dim* unknown_rank=3:bool",
    "Dim": "size=1:int",
    "AssetFile": "tensor_info=1:Tensor filename=2:string",
    "SavedObjects": "nodes=1:SavedObject* concrete_functions=2:ConcreteEntry*",
    "SavedObject": "children=1:Child* user_object=4:UserObject function=6:SavedFunction "
    "variable=7:SavedVariable bare_concrete_function=8:SavedBare "
    "saveable_objects=11:SaveableEntry*",
    "UserObject": "identifier=1:string metadata=3:string",
    "SavedFunction": "concrete_functions=1:string*",
    "ConcreteEntry": "key=1:string value=2:Concrete",
    "Concrete": "canonicalized_input_signature=3:Value",
    "SavedBare": "concrete_function_name=1:string argument_keywords=2:string* function_spec=4:Spec",
    "Spec": "fullargspec=1:Value input_signature=5:Value",
    "SaveableEntry": "key=1:string value=2:Saveable",
    "Saveable": "save_function=2:int",
    "SavedVariable": "dtype=1:int shape=2:Shape trainable=3:bool name=6:string",
    "Child": "node_id=1:int local_name=2:string",
    "CheckpointObjects": "nodes=1:CheckpointObject*",
    "CheckpointObject": "children=1:Child* attributes=2:Attribute*",
    "Attribute": "name=1:string full_name=2:string checkpoint_key=3:string",
    "Graph": "node=1:Node* library=2:Library versions=4:Versions",
    "Versions": "producer=1:int min_consumer=2:int bad_consumers=3:int*",
    "Library": "function=1:Function*",
    "Function": "signature=1:FunctionName node_def=3:Node* ret=4:Result* attr=5:AttrEntry* "
    "control_ret=6:Result*",
    "Result": "key=1:string value=2:string",
    "FunctionName": "name=1:string input_arg=2:Argument*",
    "Argument": "name=1:string type=3:int",
    "Node": "name=1:string op=2:string input=3:string* device=4:string attr=5:AttrEntry*",
    "AttrEntry": "key=1:string value=2:Attr",
    "Attr": "list=1:AttrList? s=2:bytes? i=3:int? f=4:float? b=5:bool? type=6:int? shape=7:Shape? "
    "tensor=8:Constant? placeholder=9:string? func=10:FunctionName?",
    "AttrList": "s=2:bytes* i=3:int* f=4:float* b=5:bool* type=6:int* func=9:FunctionName*",
    "Constant": "dtype=1:int tensor_shape=2:Shape string_val=8:bytes*",
    "BundleHeader": "num_shards=1:int endianness=2:int",
    "BundleEntry": "dtype=1:int shape=2:Shape shard_id=3:int offset=4:int size=5:int "
    "crc32c=6:fixed32 slices=7:Slice*",
    "Slice": "extent=1:Extent*",
    "Extent": "start=1:int length=2:int",
    # tensorflow_serving/apis/{prediction_log,predict,model}.proto; a TensorProto is its bytes.
    "PredictionLog": "predict_log=6:PredictLog",
    "PredictLog": "request=1:PredictRequest",
    "PredictRequest": "model_spec=1:ModelSpec inputs=2:InputEntry*",
    "ModelSpec": "signature_name=3:string",
    "InputEntry": "key=1:string value=2:bytes",
    "Fingerprint": "saved_model_checksum=1:uint graph_def_program_hash=2:uint "
    "signature_def_hash=3:uint saved_object_graph_hash=4:uint checkpoint_hash=5:uint uuid=7:string",
}
def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.split():
            _add_field(message, field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


def _add_field(message: Any, text: str) -> None:
    name, _, rest = text.partition("=")
    number, _, kind = rest.partition(":")
    repeated, exclusive = kind.endswith("*"), kind.endswith("?")
    kind = kind.rstrip("*?")
    field = message.field.add(name=name, number=int(number))
    if exclusive:
        if not message.oneof_decl:
            message.oneof_decl.add(name="value")
        field.oneof_index = 0
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"


_CLASSES = _classes()

SavedModel = _CLASSES["SavedModel"]
CheckpointObjects = _CLASSES["CheckpointObjects"]
BundleHeader = _CLASSES["BundleHeader"]
BundleEntry = _CLASSES["BundleEntry"]
Fingerprint = _CLASSES["Fingerprint"]
Attr = _CLASSES["Attr"]
PredictionLog = _CLASSES["PredictionLog"]

# By number of the enum `DataType` (tensorflow/core/framework/types.proto): name, bytes of an
# element. Kinds without a fixed size have 0.
DTYPES = {
    1: ("float32", 4), 2: ("float64", 8), 3: ("int32", 4), 4: ("uint8", 1), 5: ("int16", 2),
    6: ("int8", 1), 7: ("string", 0), 8: ("complex64", 8), 9: ("int64", 8), 10: ("bool", 1),
    11: ("qint8", 1), 12: ("quint8", 1), 13: ("qint32", 4), 14: ("bfloat16", 2),
    15: ("qint16", 2), 16: ("quint16", 2), 17: ("uint16", 2), 18: ("complex128", 16),
    19: ("float16", 2), 20: ("resource", 0), 21: ("variant", 0), 22: ("uint32", 4),
    23: ("uint64", 8), 24: ("float8_e5m2", 1), 25: ("float8_e4m3fn", 1),
    26: ("float8_e4m3fnuz", 1), 27: ("float8_e4m3b11fnuz", 1), 28: ("float8_e5m2fnuz", 1),
    29: ("int4", 1), 30: ("uint4", 1), 31: ("int2", 1), 32: ("uint2", 1), 33: ("float4_e2m1fn", 1),
}  # fmt: skip


def dtype_name(number: int) -> str:
    """The name of a `DataType`."""
    return DTYPES[number][0] if number in DTYPES else f"dtype_{number}"


def shape_of(shape: Any) -> tuple[int | None, ...] | None:
    """A `Shape` as a tuple, None for an unknown size; None for an unknown rank."""
    if shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
