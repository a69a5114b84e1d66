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
from ml.models import Network, build
from ml.program.device import Device
from ml.program.info import ANOMALY, CLASSIFICATION, ProgramInfo, sha256
from ml.program.program_file import export
from ml.training import environment, loop, thresholds
from ml.training.train import training_parameters

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


def train(architecture: str, device: Device, folder: Path, count: int, epochs: int) -> Trained:
    """Train with the parameters of the device's profile, for fewer epochs, and export."""
    settings = model(architecture)
    classes = SHAPES if settings.task == CLASSIFICATION else ("normal", "anomalous")
    _, pixels, labels = images(settings.task, count, settings.input_size, seed=1)
    learned = torch.from_numpy(pixels), torch.from_numpy(labels)
    parameters = training_parameters(settings, device).model_copy(update={"epochs": epochs})
    done: list[loop.Epoch] = []
    torch.manual_seed(0)
    network = build(architecture, settings.input_size, classes, settings.options)
    network.before_fit(*learned)
    with environment.deterministic(device):
        loop.fit(
            network, *learned, parameters, device=torch.device(device), seed=0, on_epoch=done.append
        )
    network.after_fit(*learned)
    network.calibrate(*learned)
    path = folder / f"{architecture}.pt2"
    export(network, path, settings.input_size)
    files, unseen, truth = images(settings.task, count, settings.input_size, seed=2)
    info = ProgramInfo(
        architecture, 1, settings.task, classes, settings.input_size, None, sha256(path)
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
