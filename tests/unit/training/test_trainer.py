"""The whole training of a network."""

from dataclasses import asdict

import pytest
import torch

from ml.config.schema import Model, Training
from ml.models import build, weights_sha256
from ml.training import environment
from ml.training.batches import DeviceBatches, StreamedBatches
from ml.training.data import Split, Splits
from ml.training.loop import fit
from ml.training.precision import float32
from ml.training.trainer import train_network, training_parameters
from tests.support.deferred_transfer import DeferredTransfer
from tests.support.synthetic_images import labelled_pixels

SIZE = (16, 24)
TASKS = {
    "residual_network": ("classification", ("dark", "bright")),
    "anomaly_segmenter": ("anomaly", ("normal", "anomalous")),
    "attention_autoencoder": ("anomaly", ("normal", "anomalous")),
}
CPU = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}


def _train(name: str, seed: int = 0):
    task, classes = TASKS[name]
    model = Model(
        task=task, dataset="d", architecture=name, input_size=SIZE, options={"width": 4}, seed=seed,
        training={"cpu": CPU},
    )  # fmt: skip
    train, holdout, test = (Split(*labelled_pixels(count, SIZE), ()) for count in (120, 60, 0))
    epochs = []
    with environment.deterministic("cpu"):
        network = train_network(
            model, Splits(classes, train, holdout, test), device="cpu", on_epoch=epochs.append
        )
    return network, epochs


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_weights_and_metrics(name):
    (first, first_epochs), (second, second_epochs) = (_train(name) for _ in range(2))
    assert weights_sha256(first) == weights_sha256(second)
    assert not first.training
    for one, other in zip(first_epochs, second_epochs, strict=True):
        times = {"seconds": 0, "images_per_second": 0}
        assert asdict(one) | times == asdict(other) | times
        assert one.validation["holdout_loss"] > 0
    assert weights_sha256(_train(name, seed=1)[0]) != weights_sha256(first)


@pytest.mark.slow
def test_what_is_fitted_in_closed_form_is_fitted():
    classifier, _ = _train("residual_network")
    assert float(classifier.temperature) != 1
    detector, _ = _train("anomaly_segmenter")
    assert detector.novelty.whitening.any()
    assert not len(detector.known_anomalies)
    autoencoder, _ = _train("attention_autoencoder")
    assert float(autoencoder.score_scale) != pytest.approx(0.01)


def test_parameters_of_a_gpu_are_those_of_the_cpu_if_there_are_no_others():
    model = Model(
        task="anomaly", dataset="d", architecture="anomaly_segmenter", input_size=SIZE,
        training={"cpu": CPU},
    )  # fmt: skip
    assert training_parameters(model, "cuda") == model.training["cpu"]
    gpu = model.training["cpu"].model_copy(update={"epochs": 7})
    both = model.model_copy(update={"training": model.training | {"gpu": gpu}})
    assert training_parameters(both, "cuda").epochs == 7
    assert training_parameters(both, "cpu").epochs == 2


def test_float32_means_neither_bfloat16_nor_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    a = torch.rand(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with float32(torch.device("cpu")):
            assert (a @ a).dtype == torch.float32
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.slow
def test_training_gives_the_same_weights_whichever_way_the_images_take():
    pixels, labels = map(torch.from_numpy, labelled_pixels(100, SIZE))
    parameters = Training(epochs=2, batch_size=16, learning_rate=0.01)
    trained = []
    for way in (DeviceBatches, StreamedBatches):
        torch.manual_seed(0)
        network = build("anomaly_segmenter", SIZE, ("normal", "anomalous"), {"width": 4})
        network.before_fit(pixels, labels)
        images = way(pixels, labels, DeferredTransfer())
        fit(
            network,
            pixels,
            labels,
            parameters,
            device=DeferredTransfer.device,
            seed=0,
            images=images,
        )
        trained.append(network.state_dict())
    for name, weights in trained[0].items():
        assert torch.equal(weights, trained[1][name]), name
