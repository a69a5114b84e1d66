"""Training on a GPU: repeatable, wherever the images lie, and never waiting for it in a step."""

import warnings
from dataclasses import asdict
from typing import Any

import pytest
import torch

from ml.models import weights_sha256
from ml.training import batches, environment
from ml.training.batches import DeviceBatches, StreamedBatches, select_batches
from ml.training.group import Group
from ml.training.train_state import TrainState
from ml.training.trainer import prepare_network, train_network, training_parameters
from tests.gpu.conftest import IS_REHEARSAL
from tests.gpu.trained import ARCHITECTURES, quick_training

IMAGES, EPOCHS = (120, 1) if IS_REHEARSAL else (4000, 3)
_NO_KERNEL = "does not have a deterministic implementation"


def _train(architecture: str, device: str) -> dict[str, Any]:
    """What must be equal: the weights, with what is fitted in closed form, and the metrics."""
    model, splits = quick_training(architecture, device, IMAGES, EPOCHS)
    epochs = []
    with environment.deterministic(device), warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        network = train_network(model, splits, device=device, on_epoch=epochs.append)
    names = {str(one.message).split(" ")[0] for one in raised if _NO_KERNEL in str(one.message)}
    assert not names, "have no deterministic kernel"
    speed = ("seconds", "images_per_second")
    metrics = [{key: value for key, value in asdict(epoch).items() if key not in speed}
               for epoch in epochs]  # fmt: skip
    return {"weights": weights_sha256(network), "epochs": metrics}


@pytest.fixture(scope="module")
def first(request, device) -> dict[str, Any]:
    return _train(request.param, device)


same_training = pytest.mark.parametrize(
    ("first", "architecture"), [(name, name) for name in ARCHITECTURES], indirect=["first"]
)


@same_training
def test_the_same_seed_gives_the_same_weights_and_metrics(first, architecture, device):
    assert len(first["epochs"]) == EPOCHS
    assert _train(architecture, device) == first


@same_training
def test_images_that_stay_on_the_host_give_the_same_weights(
    first, architecture, device, monkeypatch
):
    pixels = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
    labels = torch.zeros(10, dtype=torch.int64)
    if not IS_REHEARSAL:
        assert isinstance(select_batches(pixels, labels, torch.device(device)), DeviceBatches)
    monkeypatch.setattr(batches, "MAX_SHARE", 0.0)
    if not IS_REHEARSAL:
        assert isinstance(select_batches(pixels, labels, torch.device(device)), StreamedBatches)
    assert _train(architecture, device) == first


@pytest.mark.parametrize("share", [batches.MAX_SHARE, 0.0], ids=["on the GPU", "on the host"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_never_waits_for_the_gpu(architecture, share, device, real_gpu, monkeypatch):
    monkeypatch.setattr(batches, "MAX_SHARE", share)
    model, splits = quick_training(architecture, device, 600, 1)
    with environment.deterministic(device):
        network = prepare_network(model, splits.classes, splits.train, torch.device(device))
        network.to(memory_format=torch.channels_last)
        pixels, labels = splits.train.tensors()
        images = select_batches(pixels, labels, torch.device(device))
        rows = network.train_indices(labels)
        state = TrainState(network, training_parameters(model, device), 10, Group())
        # The first steps make workspaces and the optimizers' states.
        state.train_epoch(images.gather([rows[:64]] * 3))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss_and_norm = state.train_epoch(images.gather([rows[:64]] * 5))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(loss_and_norm).all()
