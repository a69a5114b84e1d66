"""What executes an exported program: OpenVINO on a CPU, torch on a GPU.

OpenVINO (https://docs.openvino.ai) takes the exported program as it is. Against torch on a CPU it
needs 10 to 30 % less time in float32 and half in bfloat16, no compiler on the machine, and, once
the program is converted, no torch in the process at all (docs/decisions/0008-scoring-path.md).
"""

import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ml.errors import ConfigurationError
from ml.program.device import Device
from ml.program.gpu_memory import apply_limit, memory_errors

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

# Where this package is installed, OpenVINO reports to its makers; where it cannot be imported, not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# How far outputs, all in [0, 1], may be from those of torch in float32.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
_OPENVINO_NAMES = {"float32": "f32", "bfloat16": "bf16"}
# Of all images that one call takes, measured with 64 of 32 x 56 pixels and with 4 of 128 x 224.
_PIXELS_AT_ONCE = 64 * 32 * 56


class Runtime(Protocol):
    """Runs a program; may be called from several threads at once."""

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs (float32) for pixels: uint8 (B, 3, H, W), B at least 1."""
        ...


def precision() -> str:
    """`NIGHTSCORE_PRECISION`: float32 (when it is not set) or bfloat16.

    bfloat16 is for processors that multiply in it, others stay with float32; on a GPU it means
    that TF32 may be used. Raises ConfigurationError for anything else.
    """
    wish = os.environ.get("NIGHTSCORE_PRECISION", "").strip().lower() or "float32"
    if wish not in TOLERANCE:
        allowed = ", ".join(TOLERANCE)
        raise ConfigurationError(f"NIGHTSCORE_PRECISION is {wish!r}; allowed: {allowed}.")
    return wish


class TorchRuntime:
    """Runs a program as it is, operation by operation; on a GPU from pinned memory.

    On a CPU it is the reference that others are compared with. On a GPU it and what it is called
    with raise GpuMemoryError when there is too little memory (`NIGHTSCORE_GPU_MEMORY`).
    """

    def __init__(self, exported: "ExportedProgram", device: Device) -> None:
        if device == "cuda":
            import torch
            from torch.export.passes import move_to_device_pass

            with memory_errors(device):
                apply_limit()
                # A program exported on a CPU carries its device in its operations.
                exported = move_to_device_pass(exported, device)
            # cuDNN would use TF32, with a mantissa of 10 bits, for what is declared as float32.
            torch.backends.cudnn.allow_tf32 = precision() != "float32"
        self.exported = exported
        self._module = exported.module()
        self._device = device
        self._launching = threading.Lock()
        self._local = threading.local()

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        with memory_errors(self._device):
            return self._run(pixels)

    def _run(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        import torch

        on_host = self._pinned(pixels) if self._device == "cuda" else _as_tensor(pixels)
        # One thread launches at a time; the others decode, copy, or wait for their results.
        with self._launching, torch.inference_mode():
            outputs = self._module(on_host.to(self._device, non_blocking=True))
        found = outputs if isinstance(outputs, tuple | list) else (outputs,)
        # Half precision is computed with, but not handed on; what is no fraction is left to show.
        return tuple(
            (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
            for tensor in found
        )

    def _pinned(self, pixels: np.ndarray) -> "torch.Tensor":
        """The pixels in page-locked memory, which the GPU reads while this thread goes on; each
        thread has a buffer, used again for every batch.
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
    """Runs a program on the CPU, on one core for each thread that calls it.

    It is compiled for two numbers of images, `at_once` and one: for any number, OpenVINO shares no
    memory between layers, which takes a tenth more time. So a batch is cut into such parts.

    Args:
        graph, weights: as OpenVINO writes a model, its XML and its binary file
            (`ml.program.conversion`).
        precision: as that function returns it; the attribute says which was taken.
        input_size: (height, width) in pixels.

    Raises:
        RuntimeError: the program does not take images of that size.
    """

    def __init__(
        self, graph: bytes, weights: bytes, precision: str, input_size: tuple[int, int]
    ) -> None:
        import openvino

        streams = os.cpu_count() or 1
        options: dict[str, Any] = {
            # The threads that call are the parallelism; within a batch there is none to wait for.
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
            "ENABLE_CPU_PINNING": False,  # the cores are shared with decoding and with servers
            "INFERENCE_PRECISION_HINT": _OPENVINO_NAMES[precision],
        }
        core = openvino.Core()
        self._at_once = at_once(input_size)
        self._compiled = {}
        for count in {self._at_once, 1}:
            model = core.read_model(graph, weights)
            model.reshape([count, 3, *input_size])
            self._compiled[count] = core.compile_model(model, "CPU", options)
        used = self._compiled[1].get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision = next(name for name, theirs in _OPENVINO_NAMES.items() if theirs == used)
        self._local = threading.local()

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        # OpenVINO reads the array's own memory, so the array has to stay until it is done.
        contiguous = np.ascontiguousarray(pixels)
        whole = len(pixels) - len(pixels) % self._at_once
        parts = [
            self._infer(contiguous[start : start + self._at_once])
            for start in range(0, whole, self._at_once)
        ]
        parts += [self._infer(contiguous[row : row + 1]) for row in range(whole, len(pixels))]
        return tuple(np.concatenate(found) for found in zip(*parts, strict=True))

    def _infer(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        import openvino

        name = f"request_{len(pixels)}"
        request = getattr(self._local, name, None)
        if request is None:
            request = self._compiled[len(pixels)].create_infer_request()
            setattr(self._local, name, request)
        request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))
        request.infer()
        # The tensors are the request's, which the next part overwrites.
        return tuple(np.array(tensor.data) for tensor in request.output_tensors)


def at_once(input_size: tuple[int, int]) -> int:
    """Images of (height, width) pixels that a core takes at once, a power of two up to 64: as many
    as leave what one layer hands to the next in the core's cache.
    """
    height, width = input_size
    most = max(1, min(64, _PIXELS_AT_ONCE // (height * width)))
    return 1 << (most.bit_length() - 1)


def _as_tensor(pixels: np.ndarray) -> "torch.Tensor":
    import torch

    return torch.from_numpy(np.require(pixels, requirements="W"))
