"""Runs a program on a GPU: in batches that fit, copied while others are computed.

A batch goes through a stream: its pixels are copied to the GPU, the program runs, the outputs are
copied back. Several threads do so at once, each with a stream of its own, so that copies overlap
with kernels. Of the anomaly maps, only those that somebody looks at leave the GPU.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ml.errors import GpuMemoryError
from ml.program.batch_limit import BatchLimit, images_per_batch
from ml.program.gpu import Stream, StreamPool
from ml.program.gpu_memory import memory_errors
from ml.program.precision import tf32
from ml.program.runtime import as_tensor, as_tuple, is_map, map_rows

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

log = logging.getLogger(__name__)

# With so many images it is measured what memory an image takes.
_MEASURED_IMAGES = 8


class GpuRuntime:
    """Runs a program with torch on a GPU; see `ml.program.runtime.Runtime`.

    Its construction, and each call, may raise GpuMemoryError: there is too little memory for a
    single image.

    Args:
        exported: The program, on the GPU.
        name: Its name, for the log.
        input_size: Height and width in pixels.
        precision: float32, tf32 or bfloat16 (`ml.program.precision`).
        streams: Streams of the GPU.
    """

    def __init__(
        self,
        exported: "ExportedProgram",
        name: str,
        input_size: tuple[int, int],
        precision: str,
        streams: StreamPool,
    ) -> None:
        self.precision = precision
        self._module = _module(exported, precision)
        self._streams = streams
        self._limit = BatchLimit(name, _MEASURED_IMAGES)
        self._limit.images = self._images_per_batch(input_size)
        log.info("%s is computed in %s, %s images at once", name, precision, self._limit.images)

    @property
    def batch_size(self) -> int:
        """The number of images per call that the GPU computes at once."""
        return self._limit.images

    def empty_batch(self, count: int, size: tuple[int, int]) -> np.ndarray:
        """Return an uninitialised batch in page-locked memory, as `Runtime` describes."""
        batch: np.ndarray = self._streams.gpu.empty(count, size).numpy()
        return batch

    def __call__(
        self, pixels: np.ndarray, map_threshold: float | None = None
    ) -> tuple[np.ndarray, ...]:
        """Return the outputs, as `ml.program.runtime.Runtime` describes."""
        parts = []
        start = 0
        while start < len(pixels):
            part = pixels[start : start + self._limit.images]
            outputs = self._run_or_halve(part, map_threshold)
            if outputs is None:
                self._streams.gpu.release()
                continue
            parts.append(outputs)
            start += len(part)
        if len(parts) == 1:
            return parts[0]
        return tuple(np.concatenate(output) for output in zip(*parts, strict=True))

    def _run_or_halve(
        self, pixels: np.ndarray, map_threshold: float | None
    ) -> tuple[np.ndarray, ...] | None:
        """Return the outputs of a batch; None if a smaller batch is to be tried."""
        try:
            with self._streams.borrow() as stream, memory_errors("cuda"):
                return self._run(stream, pixels, map_threshold)
        except GpuMemoryError:
            if not self._limit.halve(len(pixels)):
                raise
        # Outside of the `except`, where the error would keep the batch's memory alive.
        return None

    def _run(
        self, stream: Stream, pixels: np.ndarray, map_threshold: float | None
    ) -> tuple[np.ndarray, ...]:
        host = self._streams.gpu.pin(as_tensor(pixels))
        try:
            with self._streams.launching, tf32(allowed=self.precision == "tf32"):
                outputs = stream.launch(self._compute, stream.upload(host))
                arriving = [one if is_map(one) else stream.download(one) for one in outputs]
        finally:
            # `host` must stay as it is until it has been copied, even if an operation failed.
            stream.synchronize()
        # Which maps are wanted depends on the scores, so maps wait until these have arrived.
        rows = map_rows(arriving[0].cpu().numpy(), map_threshold)
        return tuple(
            self._download_rows(stream, one, rows) if is_map(one) else one.numpy()
            for one in arriving
        )

    def _compute(self, pixels: "Tensor") -> list["Tensor"]:
        import torch

        with torch.autocast(
            pixels.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        ):
            outputs = as_tuple(self._module(pixels))
        # Half precision becomes float32. Integers stay, so that the smoke test reports them.
        return [one.float() if one.is_floating_point() else one for one in outputs]

    def _download_rows(self, stream: Stream, maps: "Tensor", rows: np.ndarray) -> np.ndarray:
        """Return the maps of some rows; the others never leave the GPU."""
        if not len(rows):
            return np.empty((0, *maps.shape[1:]), dtype=np.float32)
        if len(rows) < len(maps):
            index = self._streams.gpu.pin(as_tensor(rows))
            on_device = stream.upload(index)
            maps = stream.launch(maps.index_select, 0, on_device)
        here = stream.download(maps)
        stream.synchronize()
        array: np.ndarray = here.numpy()
        return array

    def _images_per_batch(self, input_size: tuple[int, int]) -> int:
        noise = np.random.default_rng(0).integers(
            0, 256, (_MEASURED_IMAGES, 3, *input_size), dtype=np.uint8
        )
        self(noise)  # loads kernels and libraries, whose memory does not grow with the batch
        peak = self._streams.gpu.peak_bytes(lambda: self(noise))
        bytes_per_image = -(-peak // min(_MEASURED_IMAGES, self._limit.images))
        available = self._streams.gpu.available_bytes() // self._streams.count
        return images_per_batch(input_size, bytes_per_image, available)


def _module(exported: "ExportedProgram", precision: str) -> Callable[["Tensor"], Any]:
    """Return what computes the program, operation by operation."""
    import torch

    module: GraphModule = exported.module()
    if precision == "bfloat16":
        # Operations assert the types with which the program was traced, which are others now.
        for node in list(module.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                module.graph.erase_node(node)
        module.recompile()
    return module
