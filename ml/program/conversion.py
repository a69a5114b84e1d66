"""A program's form for the CPU: made by OpenVINO once, and compared with torch wherever it is used.

The form is one file: a zip archive of OpenVINO's graph and weights, and of what torch gave for
images of noise. Whoever opens it needs no torch, and still finds out whether this OpenVINO on this
processor computes what torch does (docs/decisions/0013-converted-form.md).
"""

import hashlib
import io
import json
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ml.program.runtime import TOLERANCE, OpenVinoRuntime, Runtime, TorchRuntime, at_once

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_GRAPH, _WEIGHTS, _MADE = "graph.xml", "graph.bin", "made.json"
_OUTPUT = "output-{}.npy"
# The same archive for the same content: the oldest date that a zip archive can hold.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Converted:
    """A program's form for OpenVINO.

    `program` is the SHA-256 of the program's file, `openvino` the version that made the form,
    `outputs` what torch gave for so many `images` of `noise`: float32, of each output an array.
    """

    program: str
    openvino: str
    images: int
    graph: bytes
    weights: bytes
    outputs: tuple[np.ndarray, ...]

    def runtime(self, precision: str, input_size: tuple[int, int]) -> OpenVinoRuntime:
        """What runs it, for images of (height, width) pixels; precision as in
        `ml.program.runtime`.
        """
        return OpenVinoRuntime(self.graph, self.weights, precision, input_size)

    def check(self, runtime: Runtime, input_size: tuple[int, int]) -> None:
        """Raise ValueError unless a runtime gives torch's outputs, within float32's tolerance."""
        for found, wanted in zip(
            runtime(noise(self.images, input_size)), self.outputs, strict=True
        ):
            if found.shape != wanted.shape:
                raise ValueError(f"its outputs have the shape {found.shape}, not {wanted.shape}")
            if not np.isfinite(wanted).all():
                continue  # it is rejected, whatever it is here
            furthest = float(np.abs(found - wanted).max())
            if not furthest <= TOLERANCE["float32"]:
                raise ValueError(f"its outputs differ from those of torch by {furthest:.2g}")


def version() -> str:
    """The OpenVINO of this process."""
    import openvino

    return str(openvino.__version__)


def convert(exported: "ExportedProgram", program: str, input_size: tuple[int, int]) -> bytes:
    """The file of a program's form for OpenVINO.

    Args:
        program: the SHA-256 of the program's file.
        input_size: (height, width) in pixels.

    Raises:
        ValueError: on images of noise its outputs are not those of torch. Whatever OpenVINO or the
            file system raises passes through.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(_graph(exported), Path(folder) / _GRAPH, compress_to_fp16=False)
        graph = (Path(folder) / _GRAPH).read_bytes()
        weights = (Path(folder) / _WEIGHTS).read_bytes()
    # Both of the forms that are compiled take part in it.
    images = at_once(input_size) + 1
    outputs = TorchRuntime(exported, "cpu")(noise(images, input_size))
    made = Converted(program, version(), images, graph, weights, outputs)
    made.check(made.runtime("float32", input_size), input_size)
    return pack(made)


def noise(count: int, input_size: tuple[int, int]) -> np.ndarray:
    """Images of noise, uint8 (count, 3, height, width): the same everywhere and for ever, whichever
    version of numpy there is.
    """
    shape = (count, 3, *input_size)
    drawn = hashlib.shake_128(b"nightscore").digest(int(np.prod(shape)))
    # OpenVINO wants memory that it could write to.
    return np.frombuffer(bytearray(drawn), dtype=np.uint8).reshape(shape)


def pack(converted: Converted) -> bytes:
    """The file of a form, as `unpack` reads it."""
    records = {_GRAPH: converted.graph, _WEIGHTS: converted.weights}
    for number, output in enumerate(converted.outputs):
        written = io.BytesIO()
        np.save(written, output, allow_pickle=False)
        records[_OUTPUT.format(number)] = written.getvalue()
    made = {
        "program": converted.program,
        "openvino": converted.openvino,
        "images": converted.images,
        "files": {name: _sha256(record) for name, record in records.items()},
    }
    records[_MADE] = json.dumps(made).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), record, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def unpack(content: bytes) -> Converted:
    """Read the file of a form; raises ValueError when it is damaged, or none."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        made = json.loads(records.pop(_MADE))
        if made["files"] != {name: _sha256(record) for name, record in records.items()}:
            raise ValueError("its parts are not those that were written")
        outputs = tuple(
            np.load(io.BytesIO(records[_OUTPUT.format(number)]), allow_pickle=False)
            for number in range(len(records) - 2)
        )
        return Converted(
            **{name: made[name] for name in ("program", "openvino", "images")},
            graph=records[_GRAPH],
            weights=records[_WEIGHTS],
            outputs=outputs,
        )
    except Exception as error:  # whatever zipfile, zlib, json and numpy make of a damaged file
        raise ValueError(f"it is no form for OpenVINO ({error})") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _graph(exported: "ExportedProgram") -> Any:
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    # `openvino.convert_model` does the same two steps, and reports to its makers' telemetry.
    with _without_warnings():
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchFXPythonDecoder.from_exported_program(exported)
        return frontend.convert(frontend.load(decoder))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """The decoder logs a traceback for each operation that torch does not decompose any more, and
    torch warns of what its own classes do when the decoder copies them.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)
