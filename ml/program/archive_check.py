"""An exported program's file (`.pt2`), of which torch is given only what runs no foreign code.

`torch.export.load` unpickles, imports and evaluates what the file asks for: sample inputs, weights
marked as pickled, custom objects, sizes and guards in Python, classes of the outputs' structure. An
operation may write files (docs/decisions/0012-program-files.md). So the file is taken apart here
with zipfile and json, held against lists of what programs consist of, and an archive is written
anew from the parts. torch reads that one; what is not needed to compute is not in it.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable
from typing import Any

# Ours have some MB; it is a bound since a file is read as a whole.
LARGEST_FILE = 2**30
_MOST_RECORDS = 20_000
_LONGEST_EXPRESSION = 500

_PROGRAM = "models/model.json"
_WEIGHTS, _CONSTANTS = "data/weights", "data/constants"
_CONFIGS = {
    f"{_WEIGHTS}/model_weights_config.json": _WEIGHTS,
    f"{_CONSTANTS}/model_constants_config.json": _CONSTANTS,
}
_TENSOR = re.compile(rf"({_WEIGHTS}/weight|{_CONSTANTS}/tensor)_[0-9]{{1,6}}")
_FIXED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_ZIP_VERSION = ".data/version"
_REQUIRED = {_PROGRAM, *_CONFIGS, *_FIXED, _ZIP_VERSION}
# Left out: torch would unpickle the first, and nobody reads the other.
_SAMPLE_INPUTS, _IDENTITY = "data/sample_inputs/model.pt", ".data/serialization_id"

# A dotted name without a part that is Python's own, as `__class__` is.
_DOTTED = re.compile(r"(?!(.*\.)?__)[A-Za-z0-9_.]*")
_IDENTIFIER = re.compile(r"(?!__)([A-Za-z_][A-Za-z0-9_]*)?")
# What operations take as text, such as `floor`, or einsum's `bchw,oc->bohw`.
_TEXT = re.compile(r"[A-Za-z0-9_., >-]{0,200}")
_SYMBOL = re.compile(r"[su][0-9]{1,6}")

# Objects of other classes, programs within programs, and what has effects beside its outputs.
_REFUSED = {"as_custom_obj", "as_graph", "as_operator", "custom_obj", "token"}
_PUBLIC = re.compile(r"torch\.ops\.aten\.([a-z][a-z0-9_]*)\.[A-Za-z][A-Za-z0-9_]*")
_USES_FILES = {"from_file", "save"}
# What torch writes for public functions; others may leave memory unchecked.
_INTERNAL = {
    f"torch.ops.aten.{name}"
    for name in (
        "_assert_scalar.default",
        "_assert_tensor_metadata.default",
        "_convolution_mode.default",
        "_upsample_bicubic2d_aa.vec",
        "_upsample_bilinear2d_aa.vec",
    )
}
# Arithmetic on sizes, and one of several outputs.
_ON_SIZES = {
    f"_operator.{name}"
    for name in ("add", "eq", "floordiv", "ge", "getitem", "gt", "le", "lt", "mod", "mul", "ne")
} | {"_operator.neg", "_operator.sub"}


def sanitize(content: bytes) -> bytes:
    """A program's archive, written anew, of which torch runs nothing but operations on tensors.

    Args:
        content: what `torch.export.save` wrote.

    Raises:
        ValueError: it has a part that is not on the lists here, or it is no such archive.
    """
    records = _records(content)
    try:
        for name, folder in _CONFIGS.items():
            records[name] = _tensors(records[name], folder, records)
        records[_PROGRAM] = _program(records[_PROGRAM])
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its description has another form ({error!r})") from error
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, record in records.items():
            archive.writestr(f"model/{name}", record)
        archive.writestr(f"model/{_SAMPLE_INPUTS}", b"")
    return written.getvalue()


def _records(content: bytes) -> dict[str, bytes]:
    """What is kept of the records, by their names below the folder that all of them are in."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = _listed(archive, len(content))
            left_out = (_SAMPLE_INPUTS, _IDENTITY)
            found = {n: archive.read(entry) for n, entry in entries.items() if n not in left_out}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        raise ValueError(f"it is no archive of an exported program ({error})") from error
    for name, expected in _FIXED.items():
        if found[name] != expected:
            raise ValueError(f"its {name} is {found[name][:20]!r} instead of {expected!r}")
    if not re.fullmatch(rb"[0-9]{1,3}\n?", found[_ZIP_VERSION]):
        raise ValueError(f"its version is {found[_ZIP_VERSION][:20]!r}")
    return found


def _listed(archive: zipfile.ZipFile, length: int) -> dict[str, zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > _MOST_RECORDS:
        raise ValueError(f"it has {len(entries)} records")
    # As they are stored unchanged, records that are longer than the file would overlap.
    if any(
        entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
        for entry in entries
    ) or length < sum(entry.file_size for entry in entries):
        raise ValueError("its records are compressed, or overlap")
    found = {entry.filename.partition("/")[2]: entry for entry in entries}
    if len(found) != len(entries) or len({e.filename.partition("/")[0] for e in entries}) != 1:
        raise ValueError("its records are not in one folder, each with a name of its own")
    for name in found:
        if name not in {*_REQUIRED, _SAMPLE_INPUTS, _IDENTITY} and not _TENSOR.fullmatch(name):
            raise ValueError(f"it has a record {name!r}, which no program of ours has")
    if missing := _REQUIRED - set(found):
        raise ValueError(f"it has no record {min(missing)!r}")
    return found


def _tensors(config: bytes, folder: str, records: dict[str, bytes]) -> bytes:
    """The description of weights or constants, each of which is plain bytes in a record."""
    found = json.loads(config)
    for tensor, stored in found["config"].items():
        record = f"{folder}/{stored['path_name']}"
        if stored["use_pickle"] is not False:
            raise ValueError(f"its tensor {tensor!r} is pickled")
        if record not in records or not _TENSOR.fullmatch(record):
            raise ValueError(f"its tensor {tensor!r} is in {record!r}, which is no tensor's record")
    _check(found)
    return json.dumps(found).encode()


def _program(description: bytes) -> bytes:
    """The description of the graph, without remarks on where it came from."""
    found = json.loads(description)
    module = found["graph_module"]
    if module["graph"]["custom_obj_values"] or module["treespec_namedtuple_fields"]:
        raise ValueError("it has objects of other classes than tensors")
    for remarked in (module, *module["graph"]["nodes"]):
        remarked["metadata"] = {}
    # Conditions on the input, as Python source; a trial says whether the input fits.
    found["guards_code"] = []
    _check(found)
    return json.dumps(found).encode()


def _check(described: Any) -> None:
    """Whether each text is of the kind that belongs where it stands; a name, where nothing says."""
    left: list[tuple[str, Any]] = [("", described)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            is_name = _identifier if key.endswith("_values") else _dotted
            for name in value:
                if name in _REFUSED:
                    raise ValueError(f"it has a {name!r}, which no program of ours has")
                is_name(name)
            left += value.items()
        elif isinstance(value, list):
            left += [(key, part) for part in value]
        elif isinstance(value, str):
            _KINDS.get(key, _dotted)(value)


def _dotted(text: str) -> None:
    if not _DOTTED.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no plain name")


def _identifier(text: str) -> None:
    # It becomes a variable of the source that torch writes.
    if not _IDENTIFIER.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no name of a value")


def _text(text: str) -> None:
    if not _TEXT.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no word that operations take")


def _operation(target: str) -> None:
    public = _PUBLIC.fullmatch(target)
    if (public is None or public[1] in _USES_FILES) and target not in _INTERNAL | _ON_SIZES:
        raise ValueError(f"its operation {target[:80]!r} is not one that programs may have")


def _expression(text: str) -> None:
    """A size: sums and products of whole numbers and of symbols, as sympy writes them. torch has
    sympy evaluate it, as Python.
    """
    try:
        if len(text) > _LONGEST_EXPRESSION:
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
            assumed = all(isinstance(given.value, ast.Constant) for given in node.keywords)
            return assumed and bool(_SYMBOL.fullmatch(name))
        case ast.Call(func=ast.Name(id="Add" | "Integer" | "Mul"), args=args, keywords=[]):
            return all(map(_is_size, args))
    return False


def _structure(text: str) -> None:
    """The nesting of inputs or outputs: tuples, lists and tensors."""
    left = [json.loads(text)[1]]
    while left:
        part = left.pop()
        known = part["type"] in (None, "builtins.tuple", "builtins.list", "builtins.dict")
        if not known or part["context"] not in (None, "null", "[]"):
            raise ValueError(f"its inputs or outputs have a {part['type']!r}")
        left += part["children_spec"]


# What stands below which key.
_KINDS: dict[str, Callable[[str], None]] = {
    "name": _identifier,
    "as_name": _identifier,
    "forward_arg_names": _identifier,
    "target": _operation,
    "expr_str": _expression,
    "in_spec": _structure,
    "out_spec": _structure,
    "as_string": _text,
    "as_strings": _text,
    "as_float": _text,  # what is no JSON number: NaN, -Infinity
    "as_floats": _text,
    "torch_version": lambda text: _text(text.replace("+", ".")),
}
