"""A training step never waits for the device: the device `meta` plays the GPU."""

from contextlib import nullcontext

import pytest
import torch

from ml.config.schema import Training
from ml.models import build
from ml.training.batches import DeviceBatches
from ml.training.group import Group
from ml.training.train_state import TrainState
from tests.support.deferred_transfer import DeferredTransfer
from tests.support.synchronization import ForbidSynchronization, SynchronizationError

SIZE, BATCH = (16, 24), 20
META = torch.device("meta")
TASKS = {
    "residual_network": ("a", "b", "c"),
    "anomaly_segmenter": ("normal", "anomalous"),
    "attention_autoencoder": ("normal", "anomalous"),
}
SYNTHETIC = {"synthetic": ["empty", "pasted", "spill", "torn"]}


def _batch():
    pixels = torch.zeros(BATCH, 3, *SIZE, dtype=torch.uint8, device=META)
    return pixels, torch.zeros(BATCH, dtype=torch.int64, device=META)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_step_never_waits_for_the_device(name, monkeypatch):
    # torch has no autocast for this device.
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    options = {"width": 4} | (SYNTHETIC if name == "anomaly_segmenter" else {})
    network = build(name, SIZE, TASKS[name], options).to(META)
    if name == "anomaly_segmenter":
        network.known_anomalies = _batch()[0]
    parameters = Training(epochs=2, batch_size=BATCH, learning_rate=0.1)
    state = TrainState(network, parameters, 3, Group())
    assert (state.result is network) == (not network.ema_ratio)
    with ForbidSynchronization():
        loss_and_norm = state.train_epoch([_batch() for _ in range(3)])
    assert loss_and_norm.device == META
    trained = [weights for weights in network.parameters() if weights.requires_grad]
    assert all(weights.grad is not None for weights in trained)


def test_gathering_on_the_device_never_waits_for_it():
    class MetaTransfer(DeferredTransfer):
        device = META

        def copy(self, buffer):
            return super().copy(torch.empty_like(buffer, device=META))

    pixels = torch.zeros(100, 3, *SIZE, dtype=torch.uint8)
    images = DeviceBatches(pixels, torch.zeros(100, dtype=torch.int64), MetaTransfer())
    with ForbidSynchronization():
        batches = list(images.gather([torch.arange(10), torch.arange(8)]))
    assert [len(pixels) for pixels, _ in batches] == [10, 8]
    assert batches[0][0].device == META


WAITING = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x.mean()),
    "bool": lambda x: bool((x > 0).any()),
    "mask": lambda x: x[x > 0],
    "assigned mask": lambda x: x.__setitem__(x > 0, x),
    "nonzero": lambda x: torch.nonzero(x),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "from a list": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=META),
    "to the device": lambda x: torch.zeros(3).to(META),
    "a number to the device": lambda x: torch.tensor(3.0).to(META),
    "to the CPU": lambda x: x.cpu(),
    "index on the CPU": lambda x: x[torch.randint(3, (2,))],
    "index from a list": lambda x: x[[0, 2]],
    "copied into": lambda x: x.copy_(torch.ones(3)),
    "a number copied into": lambda x: x[0].copy_(torch.tensor(3.0)),
}
FREE = {
    "number": lambda x: 2 * x + 1,
    "number on the CPU": lambda x: x * torch.tensor(3.0),
    "where with numbers": lambda x: torch.where(x > 0, 1.0, -1.0),
    "filled mask": lambda x: x.masked_fill(x > 0, 0.0),
    "index on the device": lambda x: x[torch.randint(3, (2,), device=META)],
    "slice": lambda x: x[1:].sum(),
    "number drawn on the CPU": lambda x: x[: int(torch.randint(1, 3, ()))],
    "made on the device": lambda x: x + torch.arange(3, device=META),
    "another type": lambda x: x.to(torch.bfloat16),
}


@pytest.mark.parametrize("name", [*WAITING, *FREE])
def test_what_waits_is_noticed(name):
    expected = pytest.raises(SynchronizationError) if name in WAITING else nullcontext()
    x = torch.zeros(3, device=META)
    with expected, ForbidSynchronization():
        (WAITING | FREE)[name](x)
