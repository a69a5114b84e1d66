"""airbench: the CIFAR-10 speed records as a package, trained on the images that ours is trained on.

It reads `cifar10/train.pt` and `cifar10/test.pt` below the working directory, trains in float16 on
a CUDA device and knows no other. Its images are all on the GPU before the time is taken, as its
authors have them.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ml.training.data import Splits

_FOLDER = "cifar10"


def missing(device: str) -> str:
    """Why it cannot be run; empty if it can."""
    if find_spec("airbench") is None:
        return "the package airbench is not installed"
    return "" if device == "cuda" else "it knows no device but a GPU; only its files were written"


def write(splits: Splits, folder: Path) -> None:
    """Write the images to train from and to test on as its loader reads them.

    They are uint8 (N, 32, 32, 3), in `folder`/cifar10.
    """
    (folder / _FOLDER).mkdir(exist_ok=True)
    for name, split in {"train": splits.train, "test": splits.test}.items():
        pixels, labels = split.tensors()
        content = {
            "images": pixels.permute(0, 2, 3, 1).contiguous(),
            "labels": labels,
            "classes": list(splits.classes),
        }
        torch.save(content, folder / _FOLDER / f"{name}.pt")


def train(target: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train its network for a target, 94 or 96 percent; `folder` is where `write` wrote.

    Returns:
        seconds of training, and accuracy on the test images (by its mean over shifted and mirrored
        images, as it is published), which is measured after the time is taken.
    """
    import airbench

    fit, warm_up = getattr(airbench, f"train{target}"), getattr(airbench, f"warmup{target}")
    with _inside(folder):
        with _quiet():
            warm_up()  # a step; cuDNN chooses its kernels in it
        torch.manual_seed(seed)
        loader = airbench.CifarLoader(_FOLDER, train=True, **_loading(fit))
        torch.cuda.synchronize()
        started = time.perf_counter()
        network = fit(train_loader=loader, run=seed, verbose=False)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        tested = airbench.CifarLoader(_FOLDER, train=False, batch_size=2000)
        accuracy = airbench.evaluate(network, tested, tta_level=2)
    return {"train_seconds": seconds, "accuracy": accuracy}


def _loading(fit: Any) -> dict[str, Any]:
    """How the program would make its own loader: batch size and augmentation."""
    chosen = fit.__globals__["hyp"]
    return {"batch_size": chosen["opt"]["batch_size"], "aug": chosen["aug"], "altflip": True}


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the warm-up prints."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
