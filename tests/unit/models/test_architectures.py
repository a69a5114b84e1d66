"""Every architecture: shapes, training, reproducibility, export."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import nll_loss

import ml.models
from ml.config.schema import Model, Training
from ml.errors import ConfigurationError, DataError
from ml.models import build
from ml.program.info import ANOMALY, CLASSIFICATION, ProgramInfo, sha256
from ml.program.program import Program
from ml.program.program_file import export
from ml.training.batches import HostBatches
from ml.training.data import Split
from ml.training.loop import Epoch, fit
from ml.training.validation import Validation, holdout_loss, predict

SIZE = (16, 24)
TASKS = {
    "residual_network": CLASSIFICATION,
    "anomaly_segmenter": ANOMALY,
    "attention_autoencoder": ANOMALY,
}
DETECTORS = [name for name, task in TASKS.items() if task == ANOMALY]
CLASSES = {CLASSIFICATION: ("a", "b", "c"), ANOMALY: ("normal", "anomalous")}
PARAMETERS = Training(epochs=1, batch_size=16, learning_rate=0.01, weight_decay=1e-4)
CPU = torch.device("cpu")


def _network(name: str, seed: int = 0):
    torch.manual_seed(seed)
    return build(name, SIZE, CLASSES[TASKS[name]], {"width": 4})


def _images(count: int = 48):
    """Images whose brightness shows their label."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 2
    noise = random.integers(0, 60, (count, 3, *SIZE))
    return torch.from_numpy(
        (noise + 150 * labels[:, None, None, None]).astype(np.uint8)
    ), torch.from_numpy(labels)


def test_every_architecture_is_tested_here():
    files = {p.stem for p in Path(ml.models.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_outputs_have_the_shapes_and_ranges_that_the_tables_need(name):
    pixels, _ = _images(5)
    with torch.inference_mode():
        outputs = _network(name).eval()(pixels)
    if TASKS[name] == CLASSIFICATION:
        assert outputs.shape == (5, 3)
        assert torch.allclose(outputs.sum(1), torch.ones(5), atol=1e-5)
    else:
        scores, anomaly_maps, *novelties = outputs
        assert len(novelties) == (name == "anomaly_segmenter")
        assert all(values.shape == (5,) for values in (scores, *novelties))
        assert anomaly_maps.shape == (5, SIZE[0] // 2, SIZE[1] // 2)
        for values in (scores, anomaly_maps):
            assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_training_lowers_the_loss_and_the_same_seed_gives_the_same_weights(name):
    pixels, labels = _images()
    losses: list[float] = []
    trained = []
    for _ in range(2):
        losses.clear()
        network = _network(name)
        parameters = PARAMETERS.model_copy(update={"epochs": 3})
        fit(
            network,
            pixels,
            labels,
            parameters,
            device=CPU,
            seed=1,
            on_epoch=lambda e: losses.append(e.train_loss),
        )
        trained.append(network)
    assert losses[-1] < losses[0]
    for one, other in zip(*(network.state_dict().values() for network in trained), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_validation_leaves_training_as_it_is_and_measures_the_same_each_time(name):
    pixels, labels = _images()
    parameters = PARAMETERS.model_copy(update={"epochs": 2})
    losses: list[float] = []

    def validate(network):
        rows = network.train_indices(labels)
        images = HostBatches(pixels, labels)
        first, second = (holdout_loss(network, images, rows, seed=3) for _ in range(2))
        assert first == second
        losses.append(first)
        return {"holdout_loss": first}

    trained = [
        fit(_network(name), pixels, labels, parameters, device=CPU, seed=1, **options)
        for options in ({}, {"validate": validate})
    ]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    for one, other in zip(*(network.state_dict().values() for network in trained), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", TASKS)
def test_only_the_images_that_a_network_is_trained_from_come_in_batches(name):
    pixels, labels = _images(100)
    network = _network(name)
    seen: list[torch.Tensor] = []
    original_loss = network.loss

    def loss(pixels, labels):
        seen.append(labels)
        return original_loss(pixels, labels)

    network.loss = loss
    fit(network, pixels, labels, PARAMETERS, device=CPU, seed=0)
    assert set(torch.cat(seen).tolist()) == ({0, 1} if TASKS[name] == CLASSIFICATION else {0})
    # The same holds for the loss of held-out images, however they are sorted.
    seen.clear()
    rows = network.train_indices(labels.sort().values)
    images = HostBatches(pixels, labels.sort().values)
    assert np.isfinite(holdout_loss(network.eval(), images, rows, seed=0, batch_size=10))
    assert sum(map(len, seen)) == len(rows)
    assert set(torch.cat(seen).tolist()) == ({0, 1} if TASKS[name] == CLASSIFICATION else {0})


def test_held_out_images_without_a_normal_one_have_no_loss_for_a_detector():
    pixels, _ = _images(20)
    holdout = Split(pixels.numpy(), np.ones(20, np.int64), ())
    model = Model(
        task=ANOMALY, dataset="d", architecture="anomaly_segmenter", input_size=SIZE,
        training={"cpu": PARAMETERS},
    )  # fmt: skip
    assert Validation(model, holdout, CPU)(_network("anomaly_segmenter").eval()) == {}


def test_an_epoch_has_the_norms_of_gradient_and_weights():
    pixels, labels = _images()
    epochs: list[Epoch] = []
    network = fit(
        _network("residual_network"), pixels, labels, PARAMETERS,
        device=CPU, seed=1, on_epoch=epochs.append,
    )  # fmt: skip
    weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    assert epochs[-1].weight_norm == pytest.approx(float(weights.norm()), rel=1e-5)
    assert epochs[-1].gradient_norm > 0


def test_the_moving_average_of_the_weights_is_validated_and_returned():
    pixels, labels = _images()
    last, averaged = _network("anomaly_segmenter"), _network("anomaly_segmenter")
    # It reaches back so far that the weights of the first step stay.
    last.ema_ratio, averaged.ema_ratio = 0.0, 1000.0
    validated: list[torch.Tensor] = []

    def validate(network):
        assert not network.training
        validated.append(network.image.weight.detach().clone())
        return {}

    for network in (last, averaged):
        fit(network, pixels, labels, PARAMETERS, device=CPU, seed=1, validate=validate)
    fresh = _network("anomaly_segmenter").image.weight
    assert torch.equal(validated[0], last.image.weight)
    assert torch.equal(validated[1], averaged.image.weight)
    change, averaged_change = (
        float((network.image.weight - fresh).detach().norm()) for network in (last, averaged)
    )
    assert 0 < averaged_change < change / 4
    assert int(averaged.to_half[0][1].num_batches_tracked) > 0


def test_a_detector_gives_a_mirrored_image_the_same_score():
    pixels, _ = _images(3)
    network = _network("anomaly_segmenter").eval()
    with torch.inference_mode():
        score, anomaly_map, _ = network(pixels)
        mirrored_score, mirrored_map, _ = network(pixels.flip(-1))
        network.flips = False
        assert not torch.allclose(network(pixels)[0], network(pixels.flip(-1))[0], atol=1e-6)
    torch.testing.assert_close(score, mirrored_score)
    torch.testing.assert_close(anomaly_map, mirrored_map.flip(-1))


def test_a_classifier_learns_what_is_easy():
    pixels, labels = _images(200)
    network = fit(
        _network("residual_network"),
        pixels,
        labels,
        PARAMETERS.model_copy(update={"epochs": 3}),
        device=CPU,
        seed=0,
    )
    assert (predict(network, pixels).argmax(1) == labels.numpy()).mean() > 0.95


def test_calibration_lowers_the_loss_and_keeps_the_answers():
    pixels, labels = _images()
    network = fit(_network("residual_network"), pixels, labels, PARAMETERS, device=CPU, seed=0)
    # A fifth of the labels is wrong.
    labels = torch.where(torch.arange(48) % 5 == 0, 1 - labels, labels)

    def outputs():
        with torch.inference_mode():
            return network(pixels)

    before = outputs()
    network.calibrate(pixels, labels)
    after = outputs()
    assert not torch.equal(before, after)
    assert torch.equal(before.argmax(1), after.argmax(1))
    assert nll_loss(after.log(), labels) < nll_loss(before.log(), labels)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_can_be_trained_without_a_single_anomaly(name):
    pixels, _ = _images(40)
    labels = torch.zeros(40, dtype=torch.int64)
    network = fit(_network(name), pixels, labels, PARAMETERS, device=CPU, seed=0)
    network.after_fit(pixels, labels)
    assert np.isfinite(predict(network, pixels)).all()


def _autoencoder(size: tuple[int, int] = SIZE):
    torch.manual_seed(0)
    return build("attention_autoencoder", size, CLASSES[ANOMALY], {"width": 4, "bottleneck": 4})


def _errors(network, pixels):
    with torch.inference_mode():
        return network.eval()._errors(pixels.float() / 255)


def test_an_autoencoder_finds_anomalies_it_has_never_seen():
    pixels, labels = _images(200)
    parameters = PARAMETERS.model_copy(update={"epochs": 3})
    network = fit(_autoencoder(), pixels, labels, parameters, device=CPU, seed=0)
    network.after_fit(pixels, labels)
    scores = predict(network, pixels)
    assert scores[labels == 1].min() > scores[labels == 0].max()


def test_an_autoencoder_learns_nothing_from_anomalies():
    """The weights are the same whatever the anomalous images show."""
    pixels, labels = _images()
    other = torch.where((labels == 1)[:, None, None, None], 255 - pixels, pixels)
    trained = [
        fit(_autoencoder(), p, labels, PARAMETERS, device=CPU, seed=0) for p in (pixels, other)
    ]
    for one, another in zip(*(network.state_dict().values() for network in trained), strict=True):
        assert torch.equal(one, another)


def test_an_autoencoders_scale_comes_from_normal_images_and_keeps_the_order():
    pixels, labels = _images(300)
    network = _autoencoder().eval()
    _, errors = _errors(network, pixels)
    network.after_fit(pixels, labels)
    assert float(network.score_scale) == pytest.approx(
        float(np.quantile(errors[labels == 0].numpy(), 0.99)), rel=1e-5
    )
    scores = predict(network, pixels)
    # In bfloat16, where a processor has it, the last digits differ.
    assert np.corrcoef(scores.argsort().argsort(), errors.argsort().argsort())[0, 1] > 0.99
    assert (scores[labels == 0] < 0.5).mean() > 0.9


@pytest.mark.parametrize("size", [(8, 8), (17, 23), (30, 50)])
def test_an_autoencoder_takes_any_size(size):
    pixels = torch.randint(256, (3, 3, *size), dtype=torch.uint8)
    with torch.inference_mode():
        scores, anomaly_maps = _autoencoder(size).eval()(pixels)
    assert scores.shape == (3,)
    assert anomaly_maps.shape == (3, size[0] // 2, size[1] // 2)


def test_a_loss_that_is_not_finite_stops_the_training():
    pixels, labels = _images()
    parameters = PARAMETERS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(DataError, match="Lower the learning rate"):
        fit(_network("residual_network"), pixels, labels, parameters, device=CPU, seed=0)


def test_no_normal_image_is_an_error_of_a_detector():
    pixels, _ = _images(20)
    labels = torch.ones(20, dtype=torch.int64)
    with pytest.raises(DataError, match="no image"):
        fit(_network("anomaly_segmenter"), pixels, labels, PARAMETERS, device=CPU, seed=0)


def test_no_image_is_an_error():
    with pytest.raises(DataError, match="no image"):
        fit(
            _network("residual_network"),
            torch.empty(0, 3, *SIZE, dtype=torch.uint8),
            torch.empty(0, dtype=torch.int64),
            PARAMETERS,
            device=CPU,
            seed=0,
        )


def test_an_unknown_architecture_or_option_lists_the_known_ones():
    with pytest.raises(
        ConfigurationError, match="Known: anomaly_segmenter, attention_autoencoder, res"
    ):
        build("transformer", SIZE, ("a", "b"), {})
    with pytest.raises(ConfigurationError, match=r"depth: .*Known: width, smoothing, flips"):
        build("residual_network", SIZE, ("a", "b"), {"depth": 3})
    with pytest.raises(ConfigurationError, match="should be 'empty', 'pasted', 'spill' or 'torn'"):
        build("anomaly_segmenter", SIZE, ("normal", "anomalous"), {"synthetic": ["dust"]})
    with pytest.raises(ConfigurationError, match="synthetic: List should have at least 1 item"):
        build("anomaly_segmenter", SIZE, ("normal", "anomalous"), {"synthetic": []})


@pytest.fixture(scope="module", params=TASKS)
def original(request, tmp_path_factory):
    """A network, and the file and the info of its program."""
    network = _network(request.param).eval()
    network.after_fit(*_images())
    network.calibrate(*_images())
    path = tmp_path_factory.mktemp(request.param) / "model.pt2"
    export(network, path, SIZE)
    task = TASKS[request.param]
    threshold = 0.5 if task == ANOMALY else None
    return network, path, ProgramInfo("m", 1, task, CLASSES[task], SIZE, threshold, sha256(path))


@pytest.fixture
def exported(original, tmp_path):
    """As `original`, with a copy of the file that a test may change."""
    network, path, info = original
    return network, Path(shutil.copy(path, tmp_path)), info


# For tests that do not depend on the architecture.
one_architecture = pytest.mark.parametrize("original", ["residual_network"], indirect=True)


@pytest.mark.slow
class TestProgram:
    def test_it_has_the_network_s_outputs_for_any_batch(self, exported, monkeypatch):
        monkeypatch.setenv("NIGHTSCORE_PRECISION", "float32")
        network, path, info = exported
        program = Program.load(path, info, "cpu")
        for count in (1, 2, 7):
            pixels, _ = _images(count)
            outputs = program.predict(pixels.numpy())
            with torch.inference_mode():
                expected = network(pixels)
            expected = expected if isinstance(expected, tuple) else (expected,)
            arrays = (
                (outputs.probabilities,)
                if info.task == CLASSIFICATION
                else (outputs.scores, outputs.anomaly_maps, outputs.novelties)[: len(expected)]
            )
            for array, tensor in zip(arrays, expected, strict=True):
                np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-4, atol=1e-5)

    @one_architecture
    def test_a_changed_file_is_not_opened(self, exported):
        _, path, info = exported
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(DataError, match="SHA-256"):
            Program.load(path, info, "cpu")

    @one_architecture
    def test_a_pickle_is_not_executed(self, exported, tmp_path):
        _, _, info = exported
        trap = tmp_path / "trap"

        class Bomb:
            def __reduce__(self):
                return (Path.touch, (trap,))

        path = tmp_path / "model.pt2"
        torch.save(Bomb(), path)
        with pytest.raises(DataError, match="is not opened: it has a record"):
            Program.load(path, ProgramInfo(**{**vars(info), "sha256": sha256(path)}), "cpu")
        assert not trap.exists()

    @one_architecture
    def test_what_is_recorded_must_fit(self, exported):
        _, path, info = exported
        with pytest.raises(DataError):
            Program.load(
                path,
                ProgramInfo(
                    **{**vars(info), "input_size": (5, 5), "task": ANOMALY, "threshold": None}
                ),
                "cpu",
            )
        with pytest.raises(DataError, match="needs"):
            Program.load(path, ProgramInfo(**{**vars(info), "classes": ("a", "b")}), "cpu")


@pytest.mark.parametrize(
    ("images", "batch_size", "batches"),
    [
        (70, 16, [16] * 30),  # goes through them several times
        (70, 384, [32] * 30),
        (20, 384, [20] * 30),
        (1200, 384, [40] * 30),  # once
        (1200, 16, [16] * 75),
    ],
)
def test_an_epoch_of_few_images_has_smaller_batches_and_thirty_steps(images, batch_size, batches):
    network = _network("residual_network")
    sizes: list[int] = []
    original_loss = network.loss

    def loss(pixels, labels):
        sizes.append(len(pixels))
        return original_loss(pixels, labels)

    network.loss = loss
    parameters = PARAMETERS.model_copy(update={"batch_size": batch_size})
    fit(network, *_images(images), parameters, device=CPU, seed=0)
    assert sizes == batches
