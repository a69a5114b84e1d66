"""What runs an exported program: OpenVINO on a CPU, torch on a GPU.

On a CPU, OpenVINO (https://docs.openvino.ai) takes 10 to 30 % less time than torch in float32, and
half of the time in bfloat16. It needs no compiler on the machine and, once the program is
converted, no torch in the process (docs/decisions/0008-scoring-path.md).
"""

import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ml.program.device import Device
from ml.program.gpu_memory import apply_limit, memory_errors
from ml.program.precision import requested_precision

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

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the outputs, float32, for pixels: uint8 (B, 3, H, W), B at least 1."""
        ...


class TorchRuntime:
    """Runs a program with torch, operation by operation; on a GPU from pinned memory.

    On a CPU it is the reference for other runtimes. On a GPU, its construction and each call may
    raise GpuMemoryError (`NIGHTSCORE_GPU_MEMORY`).

    Args:
        exported: The program.
        device: Where to run it.
    """

    def __init__(self, exported: "ExportedProgram", device: Device) -> None:
        if device == "cuda":
            import torch
            from torch.export.passes import move_to_device_pass

            with memory_errors(device):
                apply_limit()
                # A program exported on a CPU carries its device in its operations.
                exported = move_to_device_pass(exported, device)
            # Otherwise cuDNN would use TF32, with a mantissa of 10 bits, for float32.
            torch.backends.cudnn.allow_tf32 = requested_precision() != "float32"
        self.exported = exported
        self._module = exported.module()
        self._device = device
        self._launching = threading.Lock()
        self._local = threading.local()

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the outputs, as `Runtime` describes."""
        with memory_errors(self._device):
            return self._run(pixels)

    def _run(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        import torch

        on_host = self._pin(pixels) if self._device == "cuda" else _as_tensor(pixels)
        # One thread launches operations at a time; the others decode, copy, or wait for results.
        with self._launching, torch.inference_mode():
            outputs = self._module(on_host.to(self._device, non_blocking=True))
        tensors = outputs if isinstance(outputs, tuple | list) else (outputs,)
        # Half precision becomes float32. Integers stay, so that the smoke test reports them.
        return tuple(
            (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
            for tensor in tensors
        )

    def _pin(self, pixels: np.ndarray) -> "torch.Tensor":
        """Copy pixels to page-locked memory, which the GPU reads while this thread continues.

        Each thread has a buffer, which it uses again for every batch.
        """
        import torch

        count, *shape = pixels.shape
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < count or list(buffer.shape[1:]) != shape:
            buffer = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
            self._local.buffer = buffer
        filled: torch.Tensor = buffer[:count].copy_(_as_tensor(pixels))
        return filled


class OpenVinoRuntime:
    """Runs a converted program with OpenVINO, on one core per calling thread.

    The program is compiled for two fixed numbers of images, `batch_size` and one, and a batch is
    cut into such parts. Compiled for any number of images, OpenVINO shares no memory between
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

        streams = os.cpu_count() or 1
        options: dict[str, Any] = {
            # The calling threads are the parallelism; a batch is computed on one core.
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
            "ENABLE_CPU_PINNING": False,  # the cores are shared with decoding and with servers
            "INFERENCE_PRECISION_HINT": _OPENVINO_NAMES[precision],
        }
        core = openvino.Core()
        self._batch_size = batch_size(input_size)
        self._compiled = {}
        for count in {self._batch_size, 1}:
            model = core.read_model(graph, weights)
            model.reshape([count, 3, *input_size])
            self._compiled[count] = core.compile_model(model, "CPU", options)
        used = self._compiled[1].get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision = {value: key for key, value in _OPENVINO_NAMES.items()}[used]
        self._local = threading.local()

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the outputs, as `Runtime` describes."""
        # OpenVINO reads the array's own memory, so the array must live until it is done.
        contiguous = np.ascontiguousarray(pixels)
        size = self._batch_size
        in_batches = len(pixels) - len(pixels) % size
        parts = [
            self._infer(contiguous[start : start + size]) for start in range(0, in_batches, size)
        ]
        parts += [self._infer(contiguous[row : row + 1]) for row in range(in_batches, len(pixels))]
        return tuple(np.concatenate(output) for output in zip(*parts, strict=True))

    def _infer(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        import openvino

        name = f"request_{len(pixels)}"
        request = getattr(self._local, name, None)
        if request is None:
            request = self._compiled[len(pixels)].create_infer_request()
            setattr(self._local, name, request)
        request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))
        request.infer()
        # Copies, since the next call overwrites the request's tensors.
        return tuple(np.array(tensor.data) for tensor in request.output_tensors)


def batch_size(input_size: tuple[int, int]) -> int:
    """Return the number of images per batch for a core, a power of two up to 64.

    With it, the activations between two layers fit into the core's cache.

    Args:
        input_size: Height and width in pixels.
    """
    height, width = input_size
    limit = max(1, min(64, _PIXELS_PER_BATCH // (height * width)))
    return 1 << (limit.bit_length() - 1)


def _as_tensor(pixels: np.ndarray) -> "torch.Tensor":
    import torch

    return torch.from_numpy(np.require(pixels, requirements="W"))
