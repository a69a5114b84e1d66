"""The architectures as `nightscore.yaml` has them, trained for seconds on synthetic images."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ml.config.loading import load
from ml.config.schema import Model
from ml.data import samples
from ml.models import Network
from ml.program.device import Device
from ml.program.info import ANOMALY, CLASSIFICATION, ProgramInfo, sha256
from ml.program.program_file import export
from ml.training import environment, loop, thresholds
from ml.training.data import Split, Splits
from ml.training.trainer import train_network, training_parameters

ARCHITECTURES = ("residual_network", "anomaly_segmenter", "attention_autoencoder")
SHAPES = tuple(samples.SHAPES)
_REPOSITORY = Path(__file__).parents[2]
_FLAGGED = 0.3  # of the images, so that many lie on either side of the threshold


@dataclass(frozen=True)
class Trained:
    """An exported program with its thresholds, and images that it has not seen: their files, and
    their pixels, uint8 (N, 3, H, W), with labels (N,)."""

    path: Path
    info: ProgramInfo
    epochs: list[loop.Epoch]
    network: Network
    files: list[bytes]
    pixels: np.ndarray
    labels: np.ndarray


def model(architecture: str) -> Model:
    """The model of `nightscore.yaml`; the baseline, which it does not name, in the place of the
    detector's."""
    known = load(_REPOSITORY / "nightscore.yaml")
    if architecture == "residual_network":
        return known.model("cifar10-classifier")
    found = known.model("spill-anomaly")
    if architecture == found.architecture:
        return found
    return found.model_copy(update={"architecture": architecture, "options": {}})


def images(
    task: str, count: int, size: tuple[int, int], seed: int
) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Files, pixels uint8 (N, 3, height, width) and labels of synthetic images; a quarter of the
    moulds are anomalous."""
    random = np.random.default_rng(seed)
    if task == CLASSIFICATION:
        labels = np.arange(count) % len(SHAPES)
        drawn = [samples.shape(SHAPES[label], random) for label in labels]
    else:
        labels = (np.arange(count) % 4 == 0).astype(np.int64)
        kinds = ["spill" if bad else "normal" for bad in labels]
        drawn = [samples.mould(random, kind) for kind in kinds]
    files = [samples.jpeg(image) for image in drawn]
    return files, np.stack([_pixels(file, size) for file in files]), labels


def quick_training(
    architecture: str, device: Device, count: int, epochs: int
) -> tuple[Model, Splits]:
    """A model with the parameters of the device's profile, for fewer epochs, and its images, of
    which the held-out ones are those that it is trained from."""
    settings = model(architecture)
    classes = SHAPES if settings.task == CLASSIFICATION else ("normal", "anomalous")
    _, pixels, labels = images(settings.task, count, settings.input_size, seed=1)
    parameters = training_parameters(settings, device).model_copy(update={"epochs": epochs})
    settings = settings.model_copy(
        update={"seed": 0, "training": {"cpu": parameters, "gpu": parameters}}
    )
    learned = Split(pixels, labels, ())
    return settings, Splits(classes, train=learned, holdout=learned, test=learned)


def train(architecture: str, device: Device, folder: Path, count: int, epochs: int) -> Trained:
    """Train with the parameters of the device's profile, for fewer epochs, and export."""
    settings, splits = quick_training(architecture, device, count, epochs)
    done: list[loop.Epoch] = []
    with environment.deterministic(device):
        network = train_network(settings, splits, device=device, on_epoch=done.append).cpu()
    path = folder / f"{architecture}.pt2"
    export(network, path, settings.input_size)
    files, unseen, truth = images(settings.task, count, settings.input_size, seed=2)
    info = ProgramInfo(
        architecture, 1, settings.task, splits.classes, settings.input_size, None, sha256(path)
    )
    if settings.task == ANOMALY:
        info = _with_thresholds(info, network, unseen)
    return Trained(path, info, done, network, files, unseen, truth)


def _with_thresholds(info: ProgramInfo, network: Network, pixels: np.ndarray) -> ProgramInfo:
    with torch.inference_mode():
        score, _, *novelty = network(torch.from_numpy(pixels))
    return replace(
        info,
        threshold=thresholds.quantile_threshold(score.numpy(), _FLAGGED),
        novelty_threshold=thresholds.quantile_threshold(novelty[0].numpy(), _FLAGGED)
        if novelty
        else None,
    )


def _pixels(file: bytes, size: tuple[int, int]) -> np.ndarray:
    image = Image.open(io.BytesIO(file)).convert("RGB")
    resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)
