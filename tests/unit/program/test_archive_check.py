"""Program files that try to run code; each of them does it when torch is given the file itself."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ml.errors import DataError
from ml.program import archive_check
from ml.program.archive_check import sanitize
from ml.program.info import CLASSIFICATION, ProgramInfo, sha256
from ml.program.program import Program
from ml.program.program_file import export

SIZE = (16, 16)
MODEL, WEIGHTS, CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
Records = dict[str, bytes]


class _Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 3)

    def forward(self, pixels):
        return self.layer(pixels.float() / 255).mean((2, 3)).softmax(1)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "model.pt2"
    torch.manual_seed(0)
    export(_Small(), path, SIZE)
    return path


@pytest.fixture
def records(good) -> Records:
    return _unpacked(good.read_bytes())


def _unpacked(content: bytes) -> Records:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def _packed(records: Records, folder: str = "model/") -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in records.items():
            archive.writestr(folder + name, content)
    return written.getvalue()


def _info(path: Path) -> ProgramInfo:
    return ProgramInfo("m", 1, CLASSIFICATION, ("a", "b", "c"), SIZE, None, sha256(path))


class Bomb:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self):
        return Path.touch, (self.trap,)


def _pickled(trap: Path) -> bytes:
    written = io.BytesIO()
    torch.save(Bomb(trap), written)
    return written.getvalue()


def _changed(records: Records, name: str, change) -> None:
    described = json.loads(records[name])
    change(described)
    records[name] = json.dumps(described).encode()


def _in_a_weight(records: Records, trap: Path) -> None:
    def change(described):
        next(iter(described["config"].values()))["use_pickle"] = True

    _changed(records, WEIGHTS, change)
    records["data/weights/weight_0"] = _pickled(trap)


def _in_a_constant(records: Records, trap: Path) -> None:
    meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
    _changed(records, CONSTANTS, lambda it: it["config"].update(x=meta | {"tensor_meta": None}))
    records["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(trap))


def _in_the_sample_inputs(records: Records, trap: Path) -> None:
    records["data/sample_inputs/model.pt"] = _pickled(trap)


def _touch(trap: Path) -> str:
    return f"__import__('pathlib').Path({str(trap)!r}).touch()"


def _in_a_size(records: Records, trap: Path) -> None:
    def change(described):
        sizes = described["graph_module"]["graph"]["tensor_values"]["pixels"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = _touch(trap)

    _changed(records, MODEL, change)


def _in_an_operation(records: Records, trap: Path) -> None:
    """No code, but an operation that writes a file."""
    arguments = {
        "filename": {"as_string": trap.name},
        "shared": {"as_bool": True},
        "size": {"as_int": 4},
    }
    node = {
        "target": "torch.ops.aten.from_file.default",
        "inputs": [{"name": name, "arg": arg, "kind": 1} for name, arg in arguments.items()],
        "outputs": [{"as_tensor": {"name": "written"}}],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": "written",
    }

    def change(described):
        graph = described["graph_module"]["graph"]
        graph["nodes"].append(node)
        graph["tensor_values"]["written"] = graph["tensor_values"]["softmax"]

    _changed(records, MODEL, change)


def _in_a_guard(records: Records, trap: Path) -> None:
    _changed(records, MODEL, lambda it: it.update(guards_code=[f"{_touch(trap)} is None"]))


def _in_the_structure(records: Records, trap: Path) -> None:
    (trap.parent / "trapped.py").write_text(_touch(trap))
    enum = {"__enum__": True, "fqn": "trapped:Any.thing", "name": "x"}

    def change(described):
        signature = described["graph_module"]["module_call_graph"][0]["signature"]
        spec = json.loads(signature["out_spec"])
        spec[1] = {"type": "builtins.tuple", "context": json.dumps(enum), "children_spec": []}
        signature["out_spec"] = json.dumps(spec)

    _changed(records, MODEL, change)


def _in_the_format_of_before(records: Records, trap: Path) -> None:
    described = records[MODEL]
    version = json.loads(described)["schema_version"]
    records.clear()
    records["version"] = f"{version['major']}.{version['minor']}".encode()
    records["serialized_exported_program.json"] = described
    for name in ("state_dict", "constants", "example_inputs"):
        records[f"serialized_{name}.pt"] = _pickled(trap)


ATTACKS = {
    _in_a_weight: "'layer.weight' is pickled",
    _in_a_constant: "record 'data/constants/opaque_obj_0'",
    _in_the_sample_inputs: None,
    _in_a_size: "more than sums and products",
    _in_an_operation: "operation 'torch.ops.aten.from_file.default' is not one",
    _in_a_guard: None,
    _in_the_structure: "outputs have a 'builtins.tuple'",
    _in_the_format_of_before: "record",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__.strip("_"))
def test_a_file_with_the_recorded_hash_that_would_run_code_does_not(
    attack, records, tmp_path, monkeypatch
):
    trap = tmp_path / "trap"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    attack(records, trap)
    path = tmp_path / "model.pt2"
    path.write_bytes(_packed(records, "" if "version" in records else "model/"))
    # It is a real attack: torch by itself runs it.
    with suppress(Exception):
        torch.export.load(path).module()(torch.zeros(2, 3, *SIZE, dtype=torch.uint8))
    assert trap.exists()
    trap.unlink()
    sys.modules.pop("trapped", None)
    refused = ATTACKS[attack]
    if refused is None:  # what the code is in is not needed, and left out
        Program.load(path, _info(path), "cpu")
    else:
        with pytest.raises(DataError, match=refused):
            Program.load(path, _info(path), "cpu")
    assert not trap.exists()


@pytest.mark.slow
def test_opening_a_program_unpickles_nothing(good):
    code = f"""
import sys
found, watched = [], []
def watch(event, arguments):
    if event in ("pickle.find_class", "marshal.loads") and watched:
        found.append((event, arguments[1:]) if event == "pickle.find_class" else None)
sys.addaudithook(watch)
import pickle, pathlib
from ml.program.program import Program
from ml.program.info import ProgramInfo
info = ProgramInfo("m", 1, "classification", ("a", "b", "c"), {SIZE}, None, {sha256(good)!r})
watched.append(True)
Program.load(pathlib.Path({str(good)!r}), info, "cpu")
assert "torch" in sys.modules  # it was opened, not only its form for OpenVINO
print([event for event in found if event])
pickle.loads(pickle.dumps(pathlib.Path))
print([event for event in found if event])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    before, after = done.stdout.splitlines()
    assert before == "[]"
    assert "Path" in after  # the hook does hear of it


def test_what_is_rewritten_computes_the_same(good):
    pixels = torch.randint(0, 256, (5, 3, *SIZE), dtype=torch.uint8)
    as_it_was = torch.export.load(good).module()(pixels)
    rewritten = torch.export.load(io.BytesIO(sanitize(good.read_bytes()))).module()(pixels)
    assert torch.equal(as_it_was, rewritten)


def _a_record_more(records: Records) -> None:
    records["data/aotinductor/model/model.so"] = b"\x7fELF"


def _a_way_out(records: Records) -> None:
    records["../data/weights/weight_0"] = b""


def _a_record_less(records: Records) -> None:
    del records[WEIGHTS]


def _another_byte_order(records: Records) -> None:
    records["byteorder"] = b"big"


def _no_json(records: Records) -> None:
    records[MODEL] = b"{"


def _another_form(records: Records) -> None:
    records[MODEL] = b"[]"


def _too_deep(records: Records) -> None:
    records[MODEL] = b"[" * 100_000


def _a_file_in_an_operation(records: Records) -> None:
    records[MODEL] = records[MODEL].replace(b"aten.softmax.int", b"aten.save.default")


def _an_internal_operation(records: Records) -> None:
    records[MODEL] = records[MODEL].replace(b"aten.softmax.int", b"aten._unsafe_index.Tensor")


def _a_method_of_an_operation(records: Records) -> None:
    records[MODEL] = records[MODEL].replace(b"aten.softmax.int", b"aten.softmax.__init__")


def _a_power(records: Records) -> None:
    records[MODEL] = records[MODEL].replace(b"integer=True)", b"integer=True) ** 9 ** 9")


def _any_function(records: Records) -> None:
    records[MODEL] = records[MODEL].replace(b"torch.ops.aten.softmax.int", b"torch.os.system")


def _source_for_a_name(records: Records) -> None:
    def change(described):
        described["graph_module"]["graph"]["nodes"][-1]["name"] = "print().x"

    _changed(records, MODEL, change)


def _source_for_a_value(records: Records) -> None:
    def change(described):
        values = described["graph_module"]["graph"]["tensor_values"]
        values["print().x"] = values["softmax"]

    _changed(records, MODEL, change)


def _a_tensor_elsewhere(records: Records) -> None:
    records[WEIGHTS] = records[WEIGHTS].replace(b'"weight_0"', b'"../constants/tensor_0"')


def _an_object(records: Records) -> None:
    _changed(records, MODEL, lambda it: it["graph_module"]["graph"].update(custom_obj_values={"x": {}}))  # fmt: skip


def _a_class_of_outputs(records: Records) -> None:
    fields = {"os.system": ["x"]}
    _changed(records, MODEL, lambda it: it["graph_module"].update(treespec_namedtuple_fields=fields))  # fmt: skip


def _an_argument_with_a_default(records: Records) -> None:
    records[MODEL] = records[MODEL].replace(b'["pixels"]', b'["pixels=print()"]')


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_a_record_more, "record 'data/aotinductor"),
        (_a_way_out, "record '../data"),
        (_a_record_less, "no record 'data/weights/model_weights_config"),
        (_another_byte_order, "byteorder is b'big'"),
        (_no_json, "Expecting"),
        (_another_form, "another form"),
        (_too_deep, "another form"),
        (_a_file_in_an_operation, "operation 'torch.ops.aten.save"),
        (_an_internal_operation, "operation 'torch.ops.aten._unsafe_index"),
        (_a_method_of_an_operation, "operation 'torch.ops.aten.softmax.__init__"),
        (_any_function, "operation 'torch.os.system' is not one"),
        (_source_for_a_name, "no name of a value"),
        (_source_for_a_value, "no name of a value"),
        (_a_power, "more than sums and products"),
        (_a_tensor_elsewhere, "which is no tensor's record"),
        (_an_argument_with_a_default, "no name of a value"),
        (_an_object, "objects of other classes"),
        (_a_class_of_outputs, "objects of other classes"),
    ],
    ids=lambda it: getattr(it, "__name__", "").strip("_"),
)
def test_what_no_program_of_ours_has_is_refused(change, reason, records):
    sanitize(_packed(records))
    change(records)
    with pytest.raises(ValueError, match=reason):
        sanitize(_packed(records))


def _with_a_size(records: Records, size: str) -> bytes:
    def change(described):
        sizes = described["graph_module"]["graph"]["tensor_values"]["pixels"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = size

    _changed(records, MODEL, change)
    return _packed(records)


@pytest.mark.parametrize(
    "size",
    ["16", "s77", "u0", "-s77", "s77 + 2*s1 - 3", "Symbol('s77', positive=True, integer=True)",
     "Mul(Integer(2), Symbol('s77', integer=True))", "Add(s77, -1)", "10" + "+1" * 249],
)  # fmt: skip
def test_a_size_may_be_sums_and_products(size, records):
    described = json.loads(_unpacked(sanitize(_with_a_size(records, size)))[MODEL])
    pixels = described["graph_module"]["graph"]["tensor_values"]["pixels"]
    assert pixels["sizes"][0]["as_expr"]["expr_str"] == size


@pytest.mark.parametrize(
    "size",
    ["x", "s77.x", "s77 / 2", "s77 ** 2", "~s77", "'text'", "1.5", "s77 + x()", "x() + s77", "-x()",
     "Symbol('x')", "Symbol('s77', integer=x())", "Symbol('s77', 1)", "Add(s77, x())", "Mul(x(), s77)",
     "Integer(x())", "Mul(s77, evaluate=False)", "Pow(s77, 2)", "", "s77 +", "100" + "+1" * 249],
)  # fmt: skip
def test_a_size_of_anything_else_is_refused(size, records):
    with pytest.raises(ValueError, match=r"more than sums and products|is no expression"):
        sanitize(_with_a_size(records, size))


def test_records_are_counted(records, monkeypatch):
    monkeypatch.setattr(archive_check, "_MAX_RECORDS", len(records))
    sanitize(_packed(records))
    monkeypatch.setattr(archive_check, "_MAX_RECORDS", len(records) - 1)
    with pytest.raises(ValueError, match=f"it has {len(records)} records"):
        sanitize(_packed(records))


@pytest.mark.parametrize(
    "said",
    [{"compress_type": zipfile.ZIP_DEFLATED}, {"file_size": 7}, {"file_size": 10**9, "compress_size": 10**9}],
    ids=["compressed", "of two sizes", "longer than the file"],
)  # fmt: skip
def test_a_record_whose_length_is_not_what_is_stored_is_refused(said, records):
    packed = io.BytesIO(_packed(records))
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("model/data/weights/weight_9", b"12345678")
        for name, value in said.items():
            setattr(archive.getinfo("model/data/weights/weight_9"), name, value)
    with pytest.raises(ValueError, match="compressed, or overlap"):
        sanitize(packed.getvalue())


def test_an_archive_in_which_two_readers_could_see_different_files_is_refused(records):
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = io.BytesIO(_packed(records))
        with zipfile.ZipFile(twice, "a") as archive:
            archive.writestr(f"model/{MODEL}", records[MODEL])
    with pytest.raises(ValueError, match="name of its own"):
        sanitize(twice.getvalue())
    two_folders = io.BytesIO(_packed(records))
    with zipfile.ZipFile(two_folders, "a") as archive:
        archive.writestr("other/data/weights/weight_9", b"")
    with pytest.raises(ValueError, match="in one folder"):
        sanitize(two_folders.getvalue())


def test_what_grows_when_it_is_read_is_refused(records):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (records | {"data/weights/weight_9": bytes(10**7)}).items():
            archive.writestr(f"model/{name}", content)
    assert len(packed.getvalue()) < 10**5
    with pytest.raises(ValueError, match="compressed, or overlap"):
        sanitize(packed.getvalue())


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_archive_is_refused(content):
    with pytest.raises(ValueError, match=r"no archive|not in one folder"):
        sanitize(content)


def test_a_truncated_archive_is_refused(good):
    content = good.read_bytes()
    for end in (len(content) // 2, len(content) - 10):
        with pytest.raises(ValueError, match="no archive"):
            sanitize(content[:end])
