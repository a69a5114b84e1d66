"""The classifier of the usual notebook.

torchvision's ResNet-18 in its ImageNet layout, the images enlarged to 224 x 224 pixels, Adam,
batches of 64, float32.

On a CPU an epoch takes half an hour and more, so `benchmarks.models.compare` times some steps of
one and extrapolates. This file, run by itself, trains whole epochs and prints the accuracy on the
test images after each; where the processor multiplies bfloat16 faster, in that, which is about as
accurate and takes a fraction of the time.
"""

import argparse
import io
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional

from benchmarks.models import dataset
from benchmarks.models.figures import epoch_seconds, images_per_second
from benchmarks.paths import REPOSITORY
from ml.config.loading import load
from ml.errors import NightscoreError
from ml.program.device import has_fast_bfloat16
from ml.training.data import Split, Splits
from ml.training.memory import retain_freed_memory

BATCH = 64
WARM_UP, STEPS = 3, 20
_SIDE = 224
_LEARNING_RATE = 1e-3
_RATED_ON = 64
# Mean and deviation of ImageNet's channels, as torchvision's recipes have them.
_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
_DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def measure(
    pixels: np.ndarray, labels: np.ndarray, classes: int, seed: int, steps: int = STEPS
) -> dict[str, float]:
    """What an epoch, the forward pass and the weights cost.

    epoch_seconds is extrapolated from `steps` steps after a warm-up, images_per_second is that of
    the forward pass in torch, and size_mb that of the weights as torch.save writes them.

    Args:
        pixels: uint8 (N, 3, H, W), the images of an epoch.
        labels: int64 (N,).
        classes: their number.
        seed: of the weights and of the order of the images.
        steps: how many are timed.
    """
    network = _network(classes, seed)
    seconds = list(islice(_steps(network, pixels, labels), WARM_UP + steps))[WARM_UP:]
    return {
        "epoch_seconds": epoch_seconds(seconds, len(pixels), BATCH),
        "images_per_second": _rate(network, pixels[:_RATED_ON]),
        "size_mb": _size_mb(network),
    }


@retain_freed_memory()
def train(splits: Splits, seed: int, epochs: int) -> None:
    """Train, and print the accuracy on the test images after each epoch."""
    network = _network(len(splits.classes), seed)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
        steps = _steps(network, splits.train.pixels, splits.train.labels)
        for epoch in range(1, epochs + 1):
            seconds = sum(islice(steps, math.ceil(len(splits.train) / BATCH)))
            accuracy = _accuracy(network, splits.test)
            print(f"epoch {epoch}: accuracy {accuracy:.4f}, {seconds:.0f} s", flush=True)


def _accuracy(network: nn.Module, part: Split) -> float:
    network.eval()
    with torch.inference_mode():
        answers = [
            network(_prepared(part.pixels[start : start + BATCH])).argmax(1).numpy()
            for start in range(0, len(part), BATCH)
        ]
    network.train()
    return float((np.concatenate(answers) == part.labels).mean())


def _network(classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module = torchvision.models.resnet18(weights=None, num_classes=classes)
    return network


def _steps(network: nn.Module, pixels: np.ndarray, labels: np.ndarray) -> Iterator[float]:
    """Train; yields the seconds of each step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    network.train()
    for chosen in _batches(len(pixels)):
        started = time.perf_counter()
        loss = functional.cross_entropy(
            network(_prepared(pixels[chosen])), torch.from_numpy(labels[chosen])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield time.perf_counter() - started


def _batches(count: int) -> Iterator[np.ndarray]:
    """Indices of batches without end, each image once an epoch."""
    while True:
        yield from (batch.numpy() for batch in torch.randperm(count).split(BATCH))


def _prepared(pixels: np.ndarray) -> torch.Tensor:
    images = torch.from_numpy(pixels).float() / 255
    return (functional.interpolate(images, (_SIDE, _SIDE), mode="bilinear") - _MEAN) / _DEVIATION


def _rate(network: nn.Module, pixels: np.ndarray) -> float:
    network.eval()
    with torch.inference_mode():
        return images_per_second(lambda: network(_prepared(pixels)), len(pixels))


def _size_mb(network: nn.Module) -> float:
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.tell() / 1e6


def main() -> None:
    """Train whole epochs and print the accuracy after each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.resnet_notebook",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", required=True, type=Path, metavar="PATH", help="a tar or folder: SPLIT/CLASS/FILE"
    )
    parser.add_argument("--epochs", type=int, default=3, help="how many, default 3")
    parser.add_argument("--seed", type=int, default=0)
    found = parser.parse_args()
    model = load(REPOSITORY / "nightscore.yaml").model("cifar10-classifier")
    try:
        splits = dataset.load(found.data, model)
    except NightscoreError as error:
        raise SystemExit(str(error)) from None
    train(splits, found.seed, found.epochs)


if __name__ == "__main__":
    main()
