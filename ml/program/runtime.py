"""What runs an exported program: OpenVINO on a CPU, torch on a GPU.

On a CPU, OpenVINO (https://docs.openvino.ai) takes 10 to 30 % less time than torch in float32, and
half of the time in bfloat16. It needs no compiler on the machine and, once the program is
converted, no torch in the process (docs/decisions/0008-scoring-path.md).
"""

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ml.cores import usable_cores
from ml.images.resizing import empty_batch

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

# OpenVINO sends telemetry if this package can be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

_OPENVINO_NAMES = {"float32": "f32", "bfloat16": "bf16"}
# Pixels per batch; measured with 64 images of 32 x 56 pixels, and with 4 of 128 x 224.
_PIXELS_PER_BATCH = 64 * 32 * 56


class Runtime(Protocol):
    """Runs a program; several threads may call it at once."""

    # float32, tf32 or bfloat16
    precision: str

    @property
    def batch_size(self) -> int:
        """The number of images per call that suits the device."""
        ...

    def empty_batch(self, count: int, size: tuple[int, int]) -> np.ndarray:
        """Return an uninitialised batch where the device reads it fastest.

        Args:
            count: Number of images.
            size: Height and width in pixels.

        Returns:
            uint8 (count, 3, height, width), in channels-last order.
        """
        ...

    def __call__(
        self, pixels: np.ndarray, map_threshold: float | None = None
    ) -> tuple[np.ndarray, ...]:
        """Return the outputs of a batch.

        Args:
            pixels: uint8 (B, 3, H, W), B at least 1.
            map_threshold: Only the anomaly maps of images whose first output, the score, has
                reached it are returned (`map_rows`). None: those of all images.

        Returns:
            float32 arrays of length B; an anomaly map's is shorter where some are left out.
        """
        ...


class CpuRuntime:
    """What the runtimes on a CPU have in common."""

    # So many images of a usual size lie in the caches.
    batch_size = 128

    def empty_batch(self, count: int, size: tuple[int, int]) -> np.ndarray:
        """Return an uninitialised batch, as `Runtime` describes."""
        return empty_batch(count, size)


class TorchRuntime(CpuRuntime):
    """Runs a program with torch on a CPU, operation by operation: the reference for the others.

    Args:
        exported: The program.
    """

    precision = "float32"

    def __init__(self, exported: "ExportedProgram") -> None:
        self._module = exported.module()

    def __call__(
        self, pixels: np.ndarray, map_threshold: float | None = None
    ) -> tuple[np.ndarray, ...]:
        """Return the outputs, as `Runtime` describes."""
        import torch

        with torch.inference_mode():
            tensors = as_tuple(self._module(as_tensor(pixels)))
        # Half precision becomes float32. Integers stay, so that the smoke test reports them.
        outputs = [
            (tensor.float() if tensor.is_floating_point() else tensor).numpy() for tensor in tensors
        ]
        return _select_maps(outputs, map_threshold)


class OpenVinoRuntime(CpuRuntime):
    """Runs a converted program with OpenVINO, on one core per calling thread.

    The program is compiled for two fixed numbers of images, `images_per_core` and one, and a batch
    is cut into such parts. Compiled for any number of images, OpenVINO shares no memory between
    layers and takes a tenth more time.

    Args:
        graph: OpenVINO's XML file.
        weights: OpenVINO's binary file.
        precision: float32 or bfloat16. The attribute `precision` is the one that is used: float32
            if the processor does not multiply in bfloat16.
        input_size: Height and width in pixels.

    Raises:
        RuntimeError: The program does not take images of that size.
    """

    def __init__(
        self, graph: bytes, weights: bytes, precision: str, input_size: tuple[int, int]
    ) -> None:
        import openvino

        options = inference_options(precision)
        core = openvino.Core()
        self._images_per_core = images_per_core(input_size)
        self._compiled = {}
        for count in {self._images_per_core, 1}:
            model = core.read_model(graph, weights)
            model.reshape([count, 3, *input_size])
            self._compiled[count] = core.compile_model(model, "CPU", options)
        used = self._compiled[1].get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision = {value: key for key, value in _OPENVINO_NAMES.items()}[used]
        self._local = threading.local()

    def __call__(
        self, pixels: np.ndarray, map_threshold: float | None = None
    ) -> tuple[np.ndarray, ...]:
        """Return the outputs, as `Runtime` describes."""
        # OpenVINO reads the array's own memory, so the array must live until it is done.
        contiguous = np.ascontiguousarray(pixels)
        size = self._images_per_core
        in_batches = len(pixels) - len(pixels) % size
        parts = [
            self._infer(contiguous[start : start + size], map_threshold)
            for start in range(0, in_batches, size)
        ]
        parts += [
            self._infer(contiguous[row : row + 1], map_threshold)
            for row in range(in_batches, len(pixels))
        ]
        return tuple(np.concatenate(output) for output in zip(*parts, strict=True))

    def _infer(self, pixels: np.ndarray, map_threshold: float | None) -> tuple[np.ndarray, ...]:
        import openvino

        name = f"request_{len(pixels)}"
        request = getattr(self._local, name, None)
        if request is None:
            request = self._compiled[len(pixels)].create_infer_request()
            setattr(self._local, name, request)
        request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))
        request.infer()
        outputs = _select_maps([tensor.data for tensor in request.output_tensors], map_threshold)
        # Copies, since the next call overwrites the request's tensors.
        return tuple(np.array(output) for output in outputs)


def inference_options(precision: str) -> dict[str, Any]:
    """Return OpenVINO's options for a precision (float32 or bfloat16) and this process's cores."""
    streams = usable_cores()
    return {
        # The calling threads are the parallelism; a batch is computed on one core.
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        "ENABLE_CPU_PINNING": False,  # the cores are shared with decoding and with servers
        "INFERENCE_PRECISION_HINT": _OPENVINO_NAMES[precision],
    }


def images_per_core(input_size: tuple[int, int]) -> int:
    """Return the number of images that a core computes at once, a power of two up to 64.

    With it, the activations between two layers fit into the core's cache.

    Args:
        input_size: Height and width in pixels.
    """
    height, width = input_size
    limit = max(1, min(64, _PIXELS_PER_BATCH // (height * width)))
    return 1 << (limit.bit_length() - 1)


def map_rows(scores: np.ndarray, map_threshold: float | None) -> np.ndarray:
    """Return the rows whose anomaly maps are returned, int64: see `Runtime`."""
    if map_threshold is None:
        return np.arange(len(scores))
    return np.flatnonzero(scores >= map_threshold)


def is_map(output: "np.ndarray | torch.Tensor") -> bool:
    """Return whether an output is an anomaly map (B, h, w)."""
    return output.ndim == 3


def as_tensor(array: np.ndarray) -> "torch.Tensor":
    """Return a tensor that shares the array's memory; a read-only array is copied."""
    import torch

    return torch.from_numpy(np.require(array, requirements="W"))


def as_tuple(outputs: Any) -> "tuple[torch.Tensor, ...]":
    """Return the outputs of a program, of which there may be one or several."""
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _select_maps(
    outputs: Sequence[np.ndarray], map_threshold: float | None
) -> tuple[np.ndarray, ...]:
    """Return the outputs with the anomaly maps that are wanted."""
    if map_threshold is None:
        return tuple(outputs)
    rows = map_rows(outputs[0], map_threshold)
    return tuple(output[rows] if is_map(output) else output for output in outputs)
