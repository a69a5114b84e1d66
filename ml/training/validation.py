"""A network in training, measured on held-out images."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ml.config.schema import Model
from ml.evaluation.metrics import anomaly_metrics
from ml.models import Network
from ml.program.info import CLASSIFICATION
from ml.training.batches import Batch, Batches, select_batches
from ml.training.data import Split
from ml.training.precision import autocast

_BATCH = 512


class Validation:
    """Measures a network after each epoch; a GPU keeps the images in between, if they fit.

    Args:
        model: its task, and the seed of the augmentation.
        holdout: the images.
        device: where the network is.
    """

    def __init__(self, model: Model, holdout: Split, device: torch.device) -> None:
        self._model = model
        self._holdout = holdout
        self._images = select_batches(*holdout.tensors(), device)

    def __call__(self, network: Network) -> dict[str, float]:
        """Measure a network.

        Returns:
            `holdout_loss`, if there are images that the network has a loss for; and
            `holdout_accuracy` or, if the images are of both kinds, `holdout_auroc`.
        """
        labels = torch.from_numpy(self._holdout.labels)
        rows = network.train_indices(labels)
        metrics: dict[str, float] = {}
        if len(rows):
            metrics["holdout_loss"] = holdout_loss(
                network, self._images, rows, seed=self._model.seed
            )
        order = torch.split(torch.arange(len(labels)), _BATCH)
        outputs = _outputs(network, self._images.gather(order))
        if self._model.task == CLASSIFICATION:
            accuracy = float((outputs.argmax(axis=1) == self._holdout.labels).mean())
            return metrics | {"holdout_accuracy": accuracy}
        auroc = anomaly_metrics(outputs, self._holdout.labels == 1, None)["auroc"]
        return metrics if auroc is None else metrics | {"holdout_auroc": auroc}


def holdout_loss(
    network: Network, images: Batches, rows: Tensor, *, seed: int, batch_size: int = _BATCH
) -> float:
    """The mean training loss of a network over images that it does not learn from.

    Args:
        network: the network, on its device.
        images: the images.
        rows: which of them, int64 (M,): those of `Network.train_indices`.
        seed: of the augmentation. Equal weights, images and seed give an equal loss; the random
            numbers of the training are not affected.
        batch_size: the largest number of images of a batch.
    """
    device = network.device
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(),
        autocast(device),
    ):
        torch.manual_seed(seed)
        # Shuffled, and of about the same size: a loss may need images of more than one class.
        order = torch.randperm(len(rows)).tensor_split(math.ceil(len(rows) / batch_size))
        batches = images.gather([rows[part] for part in order])
        losses = [network.loss(*batch).float() * len(batch[1]) for batch in batches]
    return float(torch.stack(losses).sum()) / len(rows)


def predict(network: Network, pixels: Tensor, batch_size: int = _BATCH) -> Any:
    """Compute the outputs of a network in training.

    Args:
        network: the network, on its device.
        pixels: uint8 (N, 3, H, W), on the CPU.
        batch_size: the largest number of images of a batch.

    Returns:
        A numpy array, float32: probabilities (N, classes), or the scores (N,) of an anomaly
        detector.
    """
    images = select_batches(pixels, torch.zeros(len(pixels), dtype=torch.int64), network.device)
    return _outputs(network, images.gather(torch.split(torch.arange(len(pixels)), batch_size)))


def _outputs(network: Network, batches: Iterable[Batch]) -> Any:
    collected = []
    with torch.inference_mode(), autocast(network.device):
        for pixels, _ in batches:
            outputs = network(pixels)
            values = outputs[0] if isinstance(outputs, tuple) else outputs
            collected.append(values.float())
    return torch.cat(collected).cpu().numpy()
