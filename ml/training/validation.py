"""A network in training, measured on held-out images."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ml.config.schema import Model
from ml.evaluation.metrics import anomaly_metrics
from ml.models import Network
from ml.program.info import CLASSIFICATION
from ml.training.data import Split
from ml.training.train_state import autocast


def validate(network: Network, model: Model, holdout: Split) -> dict[str, float]:
    """Measure a network after an epoch.

    Returns:
        `holdout_loss`, and `holdout_accuracy` or, if the images are of both kinds, `holdout_auroc`.
    """
    pixels, labels = holdout.tensors()
    metrics = {"holdout_loss": holdout_loss(network, pixels, labels, seed=model.seed)}
    outputs = predict(network, pixels)
    if model.task == CLASSIFICATION:
        accuracy = float((outputs.argmax(axis=1) == holdout.labels).mean())
        return metrics | {"holdout_accuracy": accuracy}
    auroc = anomaly_metrics(outputs, holdout.labels == 1, None)["auroc"]
    return metrics if auroc is None else metrics | {"holdout_auroc": auroc}


def holdout_loss(
    network: Network, pixels: Tensor, labels: Tensor, *, seed: int, batch_size: int = 512
) -> float:
    """The mean training loss of a network over images that it does not learn from.

    Args:
        network: the network, on its device.
        pixels: uint8 (N, 3, H, W).
        labels: int64 (N,).
        seed: of the augmentation. Equal weights, images and seed give an equal loss; the random
            numbers of the training are not affected.
        batch_size: the largest number of images of a batch.
    """
    device = next(network.parameters()).device
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(),
        autocast(device),
    ):
        torch.manual_seed(seed)
        # Shuffled, and of about the same size: a loss may need images of more than one class.
        batches = torch.randperm(len(pixels)).tensor_split(math.ceil(len(pixels) / batch_size))
        total = 0.0
        for indices in batches:
            loss = network.loss(pixels[indices].to(device), labels[indices].to(device))
            total += float(loss) * len(indices)
    return total / len(pixels)


def predict(network: Network, pixels: Tensor, batch_size: int = 512) -> Any:
    """Compute the outputs of a network in training.

    Args:
        network: the network, on its device.
        pixels: uint8 (N, 3, H, W).
        batch_size: the largest number of images of a batch.

    Returns:
        A numpy array, float32: probabilities (N, classes), or the scores (N,) of an anomaly
        detector.
    """
    device = next(network.parameters()).device
    batches = []
    with torch.inference_mode(), autocast(device):
        for start in range(0, len(pixels), batch_size):
            outputs = network(pixels[start : start + batch_size].to(device))
            values = outputs[0] if isinstance(outputs, tuple) else outputs
            batches.append(values.float().cpu().numpy())
    return np.concatenate(batches)
