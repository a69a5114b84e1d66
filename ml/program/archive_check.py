"""Make the file of an exported program (`.pt2`) safe to open: no code of the file is run.

`torch.export.load` unpickles, imports and evaluates parts of a file: sample inputs, weights marked
as pickled, custom objects, sizes and guards in Python, classes of the outputs' structure.
Some operations write files (docs/decisions/0012-program-files.md). So the file is first read with
zipfile and json and compared with lists of what a program may contain. torch reads a new archive,
which has only the parts that are needed to compute.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable
from typing import Any

# Files have some MB; there is a limit, since a file is read into memory.
MAX_FILE_BYTES = 2**30
_MAX_RECORDS = 20_000
_MAX_EXPRESSION_LENGTH = 500

_PROGRAM = "models/model.json"
_WEIGHTS, _CONSTANTS = "data/weights", "data/constants"
_CONFIGS = {
    f"{_WEIGHTS}/model_weights_config.json": _WEIGHTS,
    f"{_CONSTANTS}/model_constants_config.json": _CONSTANTS,
}
_TENSOR = re.compile(rf"({_WEIGHTS}/weight|{_CONSTANTS}/tensor)_[0-9]{{1,6}}")
_CONSTANT_RECORDS = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_ZIP_VERSION = ".data/version"
_REQUIRED = {_PROGRAM, *_CONFIGS, *_CONSTANT_RECORDS, _ZIP_VERSION}
# Not copied: torch would unpickle the first, and does not read the second.
_SAMPLE_INPUTS, _IDENTITY = "data/sample_inputs/model.pt", ".data/serialization_id"

# A dotted name without parts such as `__class__`.
_DOTTED = re.compile(r"(?!(.*\.)?__)[A-Za-z0-9_.]*")
_IDENTIFIER = re.compile(r"(?!__)([A-Za-z_][A-Za-z0-9_]*)?")
# Text arguments of operations, such as `floor`, or einsum's `bchw,oc->bohw`.
_TEXT = re.compile(r"[A-Za-z0-9_., >-]{0,200}")
_SYMBOL = re.compile(r"[su][0-9]{1,6}")

# Objects of other classes, programs within programs, and side effects.
_FORBIDDEN_KEYS = {"as_custom_obj", "as_graph", "as_operator", "custom_obj", "token"}
_PUBLIC_OPERATION = re.compile(r"torch\.ops\.aten\.([a-z][a-z0-9_]*)\.[A-Za-z][A-Za-z0-9_]*")
_FILE_OPERATIONS = {"from_file", "save"}
# Internal operations that torch writes for public functions; others may not check memory.
_INTERNAL_OPERATIONS = {
    f"torch.ops.aten.{name}"
    for name in (
        "_assert_scalar.default",
        "_assert_tensor_metadata.default",
        "_convolution_mode.default",
        "_upsample_bicubic2d_aa.vec",
        "_upsample_bilinear2d_aa.vec",
    )
}
# Arithmetic on sizes, and the selection of one of several outputs.
_SIZE_OPERATIONS = {
    f"_operator.{name}"
    for name in ("add", "eq", "floordiv", "ge", "getitem", "gt", "le", "lt", "mod", "mul", "ne")
} | {"_operator.neg", "_operator.sub"}


def sanitize(content: bytes) -> bytes:
    """Return a new archive of a program, in which torch runs only operations on tensors.

    Args:
        content: An archive as `torch.export.save` writes it.

    Raises:
        ValueError: The archive has a part that is not allowed, or is none of a program.
    """
    records = _read_records(content)
    try:
        for name, folder in _CONFIGS.items():
            records[name] = _sanitize_config(records[name], folder, records)
        records[_PROGRAM] = _sanitize_program(records[_PROGRAM])
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its description has another form ({error!r})") from error
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, record in records.items():
            archive.writestr(f"model/{name}", record)
        archive.writestr(f"model/{_SAMPLE_INPUTS}", b"")
    return buffer.getvalue()


def _read_records(content: bytes) -> dict[str, bytes]:
    """Read the records to copy, by their names in the folder that all of them are in."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = {
                name: archive.read(entry)
                for name, entry in _check_entries(archive, len(content)).items()
                if name not in (_SAMPLE_INPUTS, _IDENTITY)
            }
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        raise ValueError(f"it is no archive of an exported program ({error})") from error
    for name, expected in _CONSTANT_RECORDS.items():
        if records[name] != expected:
            raise ValueError(f"its {name} is {records[name][:20]!r} instead of {expected!r}")
    if not re.fullmatch(rb"[0-9]{1,3}\n?", records[_ZIP_VERSION]):
        raise ValueError(f"its version is {records[_ZIP_VERSION][:20]!r}")
    return records


def _check_entries(archive: zipfile.ZipFile, length: int) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by their names in the folder, if these are the names of a program's."""
    entries = archive.infolist()
    if len(entries) > _MAX_RECORDS:
        raise ValueError(f"it has {len(entries)} records")
    # The records are not compressed, so they overlap if they are longer than the file.
    if any(
        entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
        for entry in entries
    ) or length < sum(entry.file_size for entry in entries):
        raise ValueError("its records are compressed, or overlap")
    by_name = {entry.filename.partition("/")[2]: entry for entry in entries}
    if len(by_name) != len(entries) or len({e.filename.partition("/")[0] for e in entries}) != 1:
        raise ValueError("its records are not in one folder, each with a name of its own")
    for name in by_name:
        if name not in {*_REQUIRED, _SAMPLE_INPUTS, _IDENTITY} and not _TENSOR.fullmatch(name):
            raise ValueError(f"it has a record {name!r}, which no program of ours has")
    if missing := _REQUIRED - set(by_name):
        raise ValueError(f"it has no record {min(missing)!r}")
    return by_name


def _sanitize_config(config: bytes, folder: str, records: dict[str, bytes]) -> bytes:
    """Check the description of weights or constants, each of which is plain bytes in a record."""
    document = json.loads(config)
    for tensor, storage in document["config"].items():
        record = f"{folder}/{storage['path_name']}"
        if storage["use_pickle"] is not False:
            raise ValueError(f"its tensor {tensor!r} is pickled")
        if record not in records or not _TENSOR.fullmatch(record):
            raise ValueError(f"its tensor {tensor!r} is in {record!r}, which is no tensor's record")
    _check_texts(document)
    return json.dumps(document).encode()


def _sanitize_program(graph: bytes) -> bytes:
    """Check the description of the graph, and remove its metadata and guards."""
    document = json.loads(graph)
    module = document["graph_module"]
    if module["graph"]["custom_obj_values"] or module["treespec_namedtuple_fields"]:
        raise ValueError("it has objects of other classes than tensors")
    for part in (module, *module["graph"]["nodes"]):
        part["metadata"] = {}
    # Conditions on the input, as Python source. The smoke test finds out whether the input fits.
    document["guards_code"] = []
    _check_texts(document)
    return json.dumps(document).encode()


def _check_texts(document: Any) -> None:
    """Check that each text is of the kind that its key requires; by default, a dotted name."""
    pending: list[tuple[str, Any]] = [("", document)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            check_name = _check_identifier if key.endswith("_values") else _check_dotted_name
            for name in value:
                if name in _FORBIDDEN_KEYS:
                    raise ValueError(f"it has a {name!r}, which no program of ours has")
                check_name(name)
            pending += value.items()
        elif isinstance(value, list):
            pending += [(key, part) for part in value]
        elif isinstance(value, str):
            _CHECKS.get(key, _check_dotted_name)(value)


def _check_dotted_name(text: str) -> None:
    if not _DOTTED.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no plain name")


def _check_identifier(text: str) -> None:
    # It becomes a variable in the Python source that torch generates.
    if not _IDENTIFIER.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no name of a value")


def _check_argument(text: str) -> None:
    if not _TEXT.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no word that operations take")


def _check_operation(target: str) -> None:
    match = _PUBLIC_OPERATION.fullmatch(target)
    if (
        match is None or match[1] in _FILE_OPERATIONS
    ) and target not in _INTERNAL_OPERATIONS | _SIZE_OPERATIONS:
        raise ValueError(f"its operation {target[:80]!r} is not one that programs may have")


def _check_size(text: str) -> None:
    """Check that a size has only sums and products of integers and symbols, as sympy writes them.

    torch lets sympy evaluate it as Python.
    """
    try:
        if len(text) > _MAX_EXPRESSION_LENGTH:
            raise SyntaxError
        parsed = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"its size {text[:80]!r} is no expression") from error
    if not _is_size(parsed):
        raise ValueError(f"its size {text[:80]!r} is more than sums and products of numbers")


def _is_size(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=int()):
            return True
        case ast.Name(id=name):
            return bool(_SYMBOL.fullmatch(name))
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult(), right=right):
            return _is_size(left) and _is_size(right)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_size(operand)
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            are_constants = all(
                isinstance(keyword.value, ast.Constant) for keyword in node.keywords
            )
            return are_constants and bool(_SYMBOL.fullmatch(name))
        case ast.Call(func=ast.Name(id="Add" | "Integer" | "Mul"), args=args, keywords=[]):
            return all(map(_is_size, args))
    return False


def _check_structure(text: str) -> None:
    """Check that inputs or outputs are nested tuples, lists and tensors."""
    pending = [json.loads(text)[1]]
    while pending:
        part = pending.pop()
        is_known = part["type"] in (None, "builtins.tuple", "builtins.list", "builtins.dict")
        if not is_known or part["context"] not in (None, "null", "[]"):
            raise ValueError(f"its inputs or outputs have a {part['type']!r}")
        pending += part["children_spec"]


# The checks of texts, by their keys.
_CHECKS: dict[str, Callable[[str], None]] = {
    "name": _check_identifier,
    "as_name": _check_identifier,
    "forward_arg_names": _check_identifier,
    "target": _check_operation,
    "expr_str": _check_size,
    "in_spec": _check_structure,
    "out_spec": _check_structure,
    "as_string": _check_argument,
    "as_strings": _check_argument,
    "as_float": _check_argument,  # numbers that JSON does not have: NaN, -Infinity
    "as_floats": _check_argument,
    "torch_version": lambda text: _check_argument(text.replace("+", ".")),
}
