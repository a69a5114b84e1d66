"""Programs converted for OpenVINO, which runs them on CPUs.

A converted program is one file: a zip archive of OpenVINO's graph and weights, and of torch's
outputs for images of noise. So it can be opened without torch, and compared with torch wherever it
is used: with this version of OpenVINO, on this processor (docs/decisions/0013-converted-form.md).
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

from ml.program.precision import TOLERANCE
from ml.program.runtime import OpenVinoRuntime, Runtime, TorchRuntime, images_per_core

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_GRAPH, _WEIGHTS, _METADATA = "graph.xml", "graph.bin", "made.json"
_OUTPUT = "output-{}.npy"
# The oldest date that a zip archive can hold, so that the same content gives the same archive.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class ConvertedProgram:
    """A program converted for OpenVINO.

    Attributes:
        program: SHA-256 of the program's file.
        openvino: Version of OpenVINO that converted it.
        images: Number of images of `noise` that `outputs` are for.
        graph: OpenVINO's XML file.
        weights: OpenVINO's binary file.
        outputs: torch's outputs, float32, an array for each.
    """

    program: str
    openvino: str
    images: int
    graph: bytes
    weights: bytes
    outputs: tuple[np.ndarray, ...]

    def runtime(self, precision: str, input_size: tuple[int, int]) -> OpenVinoRuntime:
        """Return what runs the program on images of `input_size` (height, width) in pixels.

        Args:
            precision: float32 or bfloat16, see `ml.program.precision.requested_precision`.
            input_size: Height and width in pixels.
        """
        return OpenVinoRuntime(self.graph, self.weights, precision, input_size)

    def check(self, runtime: Runtime, input_size: tuple[int, int]) -> None:
        """Compare a runtime's outputs with torch's, within the tolerance of float32.

        Raises:
            ValueError: They differ.
        """
        computed = runtime(noise(self.images, input_size))
        for output, expected in zip(computed, self.outputs, strict=True):
            if output.shape != expected.shape:
                raise ValueError(f"its outputs have the shape {output.shape}, not {expected.shape}")
            if not np.isfinite(expected).all():
                continue  # an image with such an output is rejected in any case
            difference = float(np.abs(output - expected).max())
            if not difference <= TOLERANCE["float32"]:
                raise ValueError(f"its outputs differ from those of torch by {difference:.2g}")


def version() -> str:
    """Return the version of OpenVINO in this process."""
    import openvino

    return str(openvino.__version__)


def convert(exported: "ExportedProgram", program: str, input_size: tuple[int, int]) -> bytes:
    """Convert a program for OpenVINO.

    Args:
        exported: The program.
        program: SHA-256 of the program's file.
        input_size: Height and width in pixels.

    Returns:
        The file of the converted program, for `unpack`.

    Raises:
        ValueError: On images of noise its outputs differ from torch's.
        OSError: There is no space for temporary files.
        Exception: OpenVINO raises errors of any class if it does not know an operation.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(_to_openvino(exported), Path(folder) / _GRAPH, compress_to_fp16=False)
        graph = (Path(folder) / _GRAPH).read_bytes()
        weights = (Path(folder) / _WEIGHTS).read_bytes()
    # A batch of this size runs both compiled models: that for a full batch, and that for one image.
    images = images_per_core(input_size) + 1
    outputs = TorchRuntime(exported)(noise(images, input_size))
    converted = ConvertedProgram(program, version(), images, graph, weights, outputs)
    converted.check(converted.runtime("float32", input_size), input_size)
    return pack(converted)


def noise(count: int, input_size: tuple[int, int]) -> np.ndarray:
    """Return images of noise, uint8 (count, 3, height, width).

    They are the same on every machine: made with SHAKE-128 and not with a generator of numpy, which
    may change with numpy's version.
    """
    shape = (count, 3, *input_size)
    digest = hashlib.shake_128(b"nightscore").digest(int(np.prod(shape)))
    # A bytearray, since OpenVINO does not take read-only memory.
    return np.frombuffer(bytearray(digest), dtype=np.uint8).reshape(shape)


def pack(converted: ConvertedProgram) -> bytes:
    """Return the file of a converted program, for `unpack`."""
    records = {_GRAPH: converted.graph, _WEIGHTS: converted.weights}
    for index, output in enumerate(converted.outputs):
        buffer = io.BytesIO()
        np.save(buffer, output, allow_pickle=False)
        records[_OUTPUT.format(index)] = buffer.getvalue()
    metadata = {
        "program": converted.program,
        "openvino": converted.openvino,
        "images": converted.images,
        "files": {name: _sha256(record) for name, record in records.items()},
    }
    records[_METADATA] = json.dumps(metadata).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), record, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def unpack(content: bytes) -> ConvertedProgram:
    """Read the file of a converted program.

    Raises:
        ValueError: The file is damaged, or of another kind.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        metadata = json.loads(records.pop(_METADATA))
        if metadata["files"] != {name: _sha256(record) for name, record in records.items()}:
            raise ValueError("its parts are not those that were written")
        outputs = tuple(
            np.load(io.BytesIO(records[_OUTPUT.format(index)]), allow_pickle=False)
            for index in range(len(records) - 2)
        )
        return ConvertedProgram(
            **{name: metadata[name] for name in ("program", "openvino", "images")},
            graph=records[_GRAPH],
            weights=records[_WEIGHTS],
            outputs=outputs,
        )
    except Exception as error:  # zipfile, zlib, json and numpy may raise anything on damaged files
        raise ValueError(f"it is no form for OpenVINO ({error})") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _to_openvino(exported: "ExportedProgram") -> Any:
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    # `openvino.convert_model` takes the same two steps, and sends telemetry.
    with _without_warnings():
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchFXPythonDecoder.from_exported_program(exported)
        return frontend.convert(frontend.load(decoder))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the warnings of a conversion.

    The decoder logs a traceback for each operation that torch no longer decomposes. torch warns of
    its own classes when the decoder copies them.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)
