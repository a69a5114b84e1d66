"""Training in several processes: real torchrun, on the CPU."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ml.config.schema import Model
from ml.errors import ConfigurationError, DataError, NightscoreError
from ml.models import build
from ml.training import distributed, loop
from ml.training.data import Split, Splits
from ml.training.group import Group
from ml.training.validation import predict
from tests.support import group_script
from tests.support.synthetic_images import labelled_pixels

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTSCORE_HOME", str(tmp_path / "home"))


def _model(**training) -> Model:
    defaults = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "processes": 2}
    return Model(
        task="classification",
        dataset="shades",
        architecture="residual_network",
        input_size=(16, 24),
        options={"width": 4},
        training={"cpu": defaults | training},
    )


def _splits() -> Splits:
    def split(count: int) -> Split:
        return Split(*labelled_pixels(count, (16, 24)), ())

    return Splits(("dark", "bright"), split(100), split(40), split(0))


def _fit(model: Model, on_epoch=lambda epoch: None):
    network = build(model.architecture, model.input_size, ("dark", "bright"), model.options)
    splits = _splits()
    distributed.fit(network, model, splits, device="cpu", processes=2, on_epoch=on_epoch)
    return network, splits


def _workers() -> list[psutil.Process]:
    """The descendants of this process that train."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "ml.training.worker" in child.cmdline()
        and "torch.distributed.run" not in child.cmdline()
    ]


def test_two_processes_reach_what_one_reaches_and_have_the_same_weights(tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "tests.support.group_script", str(tmp_path),
    ]  # fmt: skip
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=300)
    pixels, labels = labelled_pixels(200, group_script.SIZE)
    for name in group_script.TASKS:
        saved = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1)]
        for key, tensor in saved[0]["weights"].items():
            assert torch.equal(tensor, saved[1]["weights"][key]), key
        assert saved[0]["losses"] == saved[1]["losses"]
        assert saved[0]["random"] != saved[1]["random"]
        alone, together = (group_script.network(name, seed=0) for _ in range(2))
        losses = []
        alone.before_fit(torch.from_numpy(pixels), torch.from_numpy(labels))
        loop.fit(
            alone,
            torch.from_numpy(pixels),
            torch.from_numpy(labels),
            group_script.PARAMETERS,
            device=torch.device("cpu"),
            seed=0,
            on_epoch=lambda epoch, losses=losses: losses.append(epoch.train_loss),
        )
        together.load_state_dict(saved[0]["weights"])
        aurocs = [_auroc(network.eval(), pixels, labels) for network in (alone, together)]
        assert min(aurocs) > 0.95, (name, aurocs)
        assert saved[0]["losses"][-1] == pytest.approx(losses[-1], rel=0.3)


def _auroc(network, pixels, labels) -> float:
    outputs = predict(network, torch.from_numpy(pixels))
    return float(roc_auc_score(labels, outputs if outputs.ndim == 1 else outputs[:, 1]))


def test_every_image_comes_once_per_epoch_in_one_of_the_processes():
    class Half(Group):
        world_size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def shuffle_generator(self, seed):
            return torch.Generator().manual_seed(seed)

        def shard_batch(self, indices):
            return indices[self.rank :: self.world_size]

    shards = []
    for rank in (0, 1):
        group = Half(rank)
        batches = loop._batch_indices(96, 32, group.shuffle_generator(3))
        shards += [group.shard_batch(next(batches)) for _ in range(3)]
    assert torch.equal(torch.cat(shards).sort().values, torch.arange(96))


def test_epochs_weights_and_last_gradients_come_back():
    epochs: list[loop.Epoch] = []
    network, splits = _fit(_model(), epochs.append)
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert epochs[-1].train_loss < epochs[0].train_loss
    predicted = predict(network, torch.from_numpy(splits.holdout.pixels)).argmax(1)
    accuracy = (predicted == splits.holdout.labels).mean()
    assert accuracy == pytest.approx(epochs[-1].validation["holdout_accuracy"])
    assert accuracy > 0.9
    layers = [layer for layer in network.parameters() if layer.requires_grad]
    assert all(layer.grad is not None and layer.grad.shape == layer.shape for layer in layers)
    assert any(layer.grad.abs().max() > 0 for layer in layers)
    assert not _workers()


def test_a_failure_of_the_training_is_the_same_error_as_in_one_process():
    with pytest.raises(DataError, match="The training loss is") as caught:
        _fit(_model(learning_rate=1e30))
    assert caught.value.hint == "Lower the learning rate."


def test_a_killed_process_is_reported_and_no_process_keeps_running():
    errors: list[BaseException] = []
    first = threading.Event()

    def train() -> None:
        try:
            _fit(_model(epochs=100_000), lambda epoch: first.set())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    assert first.wait(300)
    workers = _workers()
    assert len(workers) == 2
    workers[1].kill()
    thread.join(300)
    (error,) = errors
    assert isinstance(error, NightscoreError)
    assert "One of 2 training processes ended early" in error.message
    assert "SIGKILL" in error.message
    psutil.wait_procs(workers, timeout=60)
    assert not _workers()


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = (
        "from tests.integration.training.test_distributed import _fit, _model\n"
        "_fit(_model(epochs=100_000), lambda epoch: print(epoch.number, flush=True))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "1\n"
    descendants = psutil.Process(parent.pid).children(recursive=True)
    assert len(descendants) >= 3
    os.kill(parent.pid, signal.SIGTERM)
    parent.wait(60)
    _, alive = psutil.wait_procs(descendants, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_more_processes_than_gpus_are_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    network = build("residual_network", (16, 24), ("dark", "bright"), {"width": 4})
    with pytest.raises(ConfigurationError, match=r"processes is 2; this machine has 1 GPUs"):
        distributed.fit(network, _model(), _splits(), device="cuda", processes=2)


def test_fewer_images_than_processes_are_an_error():
    class Many(Group):
        world_size = 8

    pixels, labels = map(torch.from_numpy, labelled_pixels(6, (16, 24)))
    network = build("residual_network", (16, 24), ("dark", "bright"), {"width": 4})
    with pytest.raises(DataError, match="smaller than the number of processes, 8"):
        loop.fit(
            network, pixels, labels, _model().training["cpu"],
            device=torch.device("cpu"), seed=0, group=Many(),
        )  # fmt: skip
