"""What is scored: images, and a model with fresh weights, as what it says does not matter here."""

import io
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.paths import DATASETS, REPOSITORY
from ml.config.loading import load
from ml.config.schema import Configuration
from ml.data import samples
from ml.data.archive import entries
from ml.parallel import parallel_map
from ml.program.info import ANOMALY, CLASSIFICATION

if TYPE_CHECKING:
    from torch import Tensor, nn

STORAGE = "s3://nightscore"
NIGHT = "2026-01-01"
# Flagged images cost a heat map each; about so many of them are flagged.
FLAGGED_SHARE = 0.01
_CALIBRATED_ON = 500
_CLEAR_GAP = 3.0  # of the logits of the two best classes, in the median
_DISTINCT = {"photos": 40, "imagenet": 100}


@dataclass(frozen=True)
class Workload:
    """Images of one kind and the model that scores them.

    `input_size` is (height, width) in pixels, `images` how many are scored unless told otherwise.
    """

    name: str
    model: str
    task: str
    classes: tuple[str, ...]
    input_size: tuple[int, int]
    images: int

    @property
    def prefix(self) -> str:
        """The URI of the folder of its images."""
        return f"{STORAGE}/streams/{self.name}/dt={NIGHT}"


_JUDGED = ("normal", "anomalous")
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("spill", "spill-anomaly", ANOMALY, _JUDGED, (32, 56), 10_000),
        Workload(
            "cifar10", "cifar10-classifier", CLASSIFICATION, tuple(samples.SHAPES), (32, 32), 10_000
        ),
        Workload("photos", "photos-anomaly", ANOMALY, _JUDGED, (128, 224), 400),
        Workload(
            "imagenet",
            "imagenet-classifier",
            CLASSIFICATION,
            tuple(f"class-{number:03}" for number in range(1000)),
            (224, 224),
            1000,
        ),
    )
}


# --- configuration and models ------------------------------------------------------------------


def write_configuration(path: Path) -> None:
    """A `nightscore.yaml` (JSON is YAML) with a stream and a model for each workload."""
    known = load(REPOSITORY / "nightscore.yaml").model_dump(mode="json")
    stream, models = known["streams"]["spill"], known["models"]
    models["photos-anomaly"] = models["spill-anomaly"]
    models["imagenet-classifier"] = models["cifar10-classifier"]
    document = {
        "storage": STORAGE,
        "streams": {
            workload.name: stream
            | {
                "prefix": f"{STORAGE}/streams/{workload.name}",
                "models": [workload.model],
                "lookback_nights": 0,
            }
            for workload in WORKLOADS.values()
        },
        "models": {
            workload.model: models[workload.model] | {"input_size": workload.input_size}
            for workload in WORKLOADS.values()
        },
    }
    Configuration.model_validate(document)
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def network(workload: Workload) -> "nn.Module":
    """The reference architecture of `nightscore.yaml` (imagenet: ResNet-18), with fixed weights.

    They are in the channels-last order in which they are exported. It takes uint8 (B, 3, H, W).
    """
    import torch

    torch.manual_seed(0)
    built: Any = _resnet18(1000) if workload.name == "imagenet" else _reference(workload)
    _normalise(built, workload)
    if workload.name == "imagenet":
        _sharpen(built, workload)
    network: nn.Module = built.to(memory_format=torch.channels_last).eval()
    return network


def _normalise(network: "nn.Module", workload: Workload) -> None:
    """Set the statistics of batch normalisation from drawn images, as a training would.

    With fresh statistics the outputs for any two images are nearly equal.
    """
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.inference_mode():
        network.train()(_sample_batch(workload))


def _sample_batch(workload: Workload) -> "Tensor":
    """A few drawn images, uint8 (B, 3, height, width)."""
    import torch

    kind = "cifar10" if workload.task == CLASSIFICATION else "spill"
    images = [_pixels(content, workload.input_size) for content in draw_images(kind, 64)]
    return torch.from_numpy(np.concatenate(images))


def _sharpen(network: Any, workload: Workload) -> None:
    """Make the classes of most images as clear as after a training.

    In TF32 and bfloat16 an image with two classes close to each other is computed twice, and with
    fresh weights that is every image.
    """
    import torch

    with torch.inference_mode():
        best_two = network.eval().logits(_sample_batch(workload)).topk(2).values
    gap = (best_two[:, 0] - best_two[:, 1]).median()
    network.scale.fill_(_CLEAR_GAP / gap)


def _reference(workload: Workload) -> "nn.Module":
    from ml.models import build

    model = load(REPOSITORY / "nightscore.yaml").model(
        "cifar10-classifier" if workload.task == CLASSIFICATION else "spill-anomaly"
    )
    return build(model.architecture, workload.input_size, workload.classes, model.options)


def _resnet18(classes: int) -> "nn.Module":
    import torch
    from torch import nn
    from torchvision.models import resnet18

    class Classifier(nn.Module):
        """ResNet-18 with its preprocessing, from uint8 pixels to probabilities."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = resnet18(weights=None, num_classes=classes)
            average, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
            self.mean = nn.Buffer(torch.tensor(average)[:, None, None])
            self.deviation = nn.Buffer(torch.tensor(deviation)[:, None, None])
            self.scale = nn.Buffer(torch.ones(()))

        def logits(self, pixels: "Tensor") -> "Tensor":
            x = (pixels.float() / 255 - self.mean) / self.deviation
            found: Tensor = self.layers(x.contiguous(memory_format=torch.channels_last))
            return found.float() * self.scale

        def forward(self, pixels: "Tensor") -> "Tensor":
            return self.logits(pixels).softmax(1)

    return Classifier().eval()


def threshold(workload: Workload, model: "nn.Module", contents: list[bytes]) -> float | None:
    """A threshold that flags `FLAGGED_SHARE` of the first images, at least one of them.

    It lies between the scores of two of them. None for a classifier.
    """
    import torch

    if workload.task == CLASSIFICATION:
        return None
    distinct = list(dict.fromkeys(contents[:_CALIBRATED_ON]))
    with torch.inference_mode():
        pixels = (torch.from_numpy(_pixels(content, workload.input_size)) for content in distinct)
        scores = sorted({float(model(one)[0]) for one in pixels}, reverse=True)
    flagged = max(1, round(FLAGGED_SHARE * len(scores)))
    return mean(scores[flagged - 1 : flagged + 1])


def _pixels(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """uint8 (1, 3, height, width)."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.array(image).transpose(2, 0, 1)[None])


# --- images ------------------------------------------------------------------------------------


def images(workload: Workload, count: int, data: Path | None) -> tuple[list[bytes], str]:
    """`count` image files and, for the table, where they are from.

    Args:
        workload: whose images.
        count: how many; a data set that is smaller is repeated.
        data: a folder that holds NAME.tar, NAME.tar.xz or a folder NAME; only for workloads that
            are data sets. None: the data sets beside the checkout where there are any, else drawn
            images.
    """
    source = _source(workload.name, data)
    if source is not None:
        found = [entry.content for entry in entries(source)]
        # Classes follow each other in a tar; a night has them mixed.
        random.Random(0).shuffle(found)
        origin = source.name
    else:
        found = draw_images(workload.name, min(count, _DISTINCT.get(workload.name, 1000)))
        origin = "drawn"
    chosen = list(islice(cycle(found), count))
    return chosen, f"{origin}, {len(set(chosen))} distinct"


def _source(name: str, data: Path | None) -> Path | None:
    if name in _DISTINCT:
        return None
    folder = data or DATASETS
    paths = (folder / f"{name}.tar", folder / f"{name}.tar.xz", folder / name)
    found = next((path for path in paths if path.exists()), None)
    if found is None and data is not None:
        raise SystemExit(f"{data} holds neither {name}.tar, {name}.tar.xz nor a folder {name}.")
    return found


def draw_images(name: str, count: int) -> list[bytes]:
    """`count` image files of a workload, all different, always the same.

    Each has a random generator of its own, so that all cores draw.
    """

    def draw(number: int) -> bytes:
        return _DRAWINGS[name](np.random.default_rng((0, number)))

    cores = os.cpu_count() or 1
    return list(parallel_map(draw, range(count), threads=cores, buffer_size=2 * cores))


def _photo(width: int, height: int, grain: float, generator: np.random.Generator) -> Image.Image:
    """Noise at several scales and a few shapes: about as hard to compress as a photograph.

    `grain` is the strength of the noise of single pixels.
    """
    pixels = np.full((height, width, 3), generator.uniform(70, 180, 3), dtype=np.float32)
    for scale, strength in ((128, 40), (32, 22), (8, 12), (2, 6), (1, grain)):
        size = (-(-height // scale), -(-width // scale))
        for channel in range(3):
            coarse = generator.normal(0, strength, size).astype(np.float32)
            fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(fine)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = generator.uniform(0, width), generator.uniform(0, height)
        reach = generator.uniform(0.02, 0.12) * width
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        draw.ellipse((x, y, x + reach, y + 0.7 * reach), outline=colour, width=5)
    return image


def _jpeg(image: Image.Image, size: float) -> bytes:
    """The image as a JPEG of at most `size` bytes, of the best quality that allows it."""
    low, high = 5, 100
    while high - low > 1:
        quality = (low + high) // 2
        low, high = (quality, high) if len(_encoded(image, quality)) < size else (low, quality)
    return _encoded(image, low)


def _encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


_DRAWINGS: dict[str, Callable[[np.random.Generator], bytes]] = {
    "spill": lambda random: samples.jpeg(samples.mould(random)),
    "cifar10": lambda random: samples.jpeg(
        samples.shape(str(random.choice(list(samples.SHAPES))), random)
    ),
    "photos": lambda random: _jpeg(_photo(1920, 1080, 2, random), random.uniform(220_000, 470_000)),
    "imagenet": lambda random: _jpeg(
        _photo(500, 375, 14, random), random.uniform(100_000, 120_000)
    ),
}
