"""Notices where a training would wait for a GPU, on a machine without one.

Tensors on torch's device `meta` have a shape and no content. Like those on a GPU they are not in the
CPU's memory. Every operation is looked at on its way there. `tests/gpu/test_training.py` asks a
real GPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# Their result, or its shape, is known only when the device has computed what they are given.
_WAITING = {
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.masked_select, aten.nonzero,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave,
}  # fmt: skip
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
_COPYING = {aten._to_copy, aten.copy_}
_MASKS = (torch.bool, torch.uint8)


class SynchronizationError(AssertionError):
    """An operation waits for the device."""


class _ForbidWaitingOperations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        operation = func.overloadpacket
        if devices - {"cpu"} and operation in _WAITING:
            raise SynchronizationError(f"{func} waits for a result")
        if devices - {"cpu"} and operation in _INDEXING:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in _MASKS for index in indices):
                raise SynchronizationError(f"{func} has a mask as an index")
        target = (kwargs or {}).get("device")
        if operation in _COPYING and target is not None:
            devices.add(torch.device(target).type)
        # A number from the CPU, of no dimension, goes along with the kernel that takes it.
        takes_numbers = operation not in _COPYING | _INDEXING
        if len(devices) > 1 and not (takes_numbers and _are_numbers(tensors)):
            raise SynchronizationError(f"{func} copies from or to the CPU's memory")
        return func(*args, **(kwargs or {}))


def _are_numbers(tensors: list[Tensor]) -> bool:
    return all(tensor.dim() == 0 for tensor in tensors if tensor.device.type == "cpu")


class _ForbidNewTensors(TorchFunctionMode):
    """Forbids what makes a tensor of a list on the CPU and copies it, which no operation shows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = torch.device((kwargs or {}).get("device") or "cpu")
        if func in (torch.tensor, torch.as_tensor) and device.type != "cpu":
            raise SynchronizationError(f"{func} copies from the CPU's memory")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type != "cpu":
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(index, list) for index in indices):
                raise SynchronizationError("an index that is a list is copied to the device")
        return func(*args, **(kwargs or {}))


class ForbidSynchronization:
    """A context that raises `SynchronizationError` where a training on a GPU would wait for it.

    That is: to read a value, to find out a shape (an index that is a mask), or to copy between the
    CPU's memory and the device's.
    """

    def __enter__(self) -> None:
        self._modes = _ForbidWaitingOperations(), _ForbidNewTensors()
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
