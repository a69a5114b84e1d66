"""A training run: from a snapshot to a program in MLflow."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ml.config.schema import Model
from ml.data.snapshot import Snapshot
from ml.evaluation import plots
from ml.models import Network, weights_sha256
from ml.program.device import Device, select_device
from ml.program.info import ProgramInfo
from ml.registry import cache, programs, tracking
from ml.training import data, environment, loop, thresholds
from ml.training.batches import select_batches
from ml.training.precision import float32
from ml.training.trainer import train_network, training_parameters

log = logging.getLogger(__name__)

# Validation metrics that the log of a training shows, and their names there.
_LOGGED_METRICS = {"holdout_accuracy": "accuracy", "holdout_auroc": "AUROC"}
_FLOAT32_BATCH = 512


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of an anomaly detector.

    Attributes:
        score: from this score an image is flagged.
        novelty: from this novelty an image is marked for review; None if the network does not
            measure novelty.
    """

    score: thresholds.ChosenThreshold
    novelty: float | None


def run(
    name: str, model: Model, snapshot: Snapshot, run_id: str, threads: int | None = None
) -> None:
    """Train a model; parameters, metrics, plots and the program go to its run in MLflow.

    Args:
        name: the model.
        model: its configuration.
        snapshot: what to train on.
        run_id: the run in MLflow.
        threads: the number of CPU threads, to reproduce a run; None: as many as torch chooses.

    Raises:
        ConfigurationError: a variable of the environment is wrong.
        DataError: see `ml.training.data.load` and `ml.training.loop.fit`.
    """
    cache.limit()  # a mistake in it is found now, and not when the trained program is stored
    # Training in several processes takes as many GPUs, so that this one must not hide any.
    device = select_device(all_gpus=training_parameters(model, "cuda").processes > 1)
    with environment.deterministic(device, threads):
        _log_inputs(run_id, model, snapshot, device)
        splits = data.load(snapshot, model)
        log.info(
            "%s images to fit, %s held out, on %s",
            f"{len(splits.train):,}",
            f"{len(splits.holdout):,}",
            device,
        )
        network, history = _train(run_id, model, splits, device)
        chosen = (
            _choose_thresholds(network, model, splits.holdout) if model.task == "anomaly" else None
        )
        network.cpu()
        tracking.set_run_tags(run_id, {tracking.WEIGHTS_TAG: weights_sha256(network)})
        figures = {
            "training_curves": plots.training_curves(history),
            "weights_and_gradients": _plot_weights_and_gradients(network),
        }
        tracking.log_figures(run_id, figures)
        _log_program(name, model, snapshot, run_id, network, splits.classes, chosen)


def _log_inputs(run_id: str, model: Model, snapshot: Snapshot, device: Device) -> None:
    tracking.log_params(
        run_id,
        {
            "task": model.task,
            "architecture": model.architecture,
            "input_size": list(model.input_size),
            "seed": model.seed,
            "device": device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "code": environment.code_version(),
            **{f"options.{key}": value for key, value in model.options.items()},
            **training_parameters(model, device).model_dump(),
        },
    )
    # Where it was trained is in the environment; nothing that is learned depends on the resources.
    configuration = model.model_dump(mode="json", exclude={"resources"})
    tracking.log_json(run_id, tracking.MODEL_FILE, configuration)
    tracking.log_json(run_id, tracking.ENVIRONMENT_FILE, environment.collect(device))
    tracking.log_snapshot(run_id, snapshot)


def _train(
    run_id: str, model: Model, splits: data.Splits, device: Device
) -> tuple[Network, list[dict[str, float]]]:
    """The trained network, on the device, and the metrics of each epoch."""
    history: list[dict[str, float]] = []

    def on_epoch(epoch: loop.Epoch) -> None:
        values = {key: value for key, value in asdict(epoch).items() if isinstance(value, float)}
        row = {"epoch": float(epoch.number), **values, **epoch.validation}
        history.append(row)
        tracking.log_metrics(run_id, row, epoch.number)
        log.info("%s", _summary(epoch))

    network = train_network(model, splits, device=device, on_epoch=on_epoch)
    return network, history


def _summary(epoch: loop.Epoch) -> str:
    """The measurements of an epoch that matter while a model is trained; MLflow has all."""
    metrics = [
        f"held-out {_LOGGED_METRICS[key]} {value:.4g}"
        for key, value in epoch.validation.items()
        if key in _LOGGED_METRICS
    ]
    text = ", ".join([*metrics, f"{epoch.images_per_second:,.0f} images/s"])
    return f"epoch {epoch.number} of {epoch.epochs}: {text}"


def _plot_weights_and_gradients(network: Network) -> bytes:
    """Plot the layers that have a matrix of weights; the others have too few for a histogram."""
    layers = {
        name.removesuffix(".weight"): parameter
        for name, parameter in network.named_parameters()
        if parameter.ndim > 1
    }
    return plots.weights_and_gradients(
        {name: parameter.detach().numpy() for name, parameter in layers.items()},
        {name: layer.grad.numpy() for name, layer in layers.items() if layer.grad is not None},
    )


def _choose_thresholds(network: Network, model: Model, holdout: data.Split) -> Thresholds:
    scores, novelties = _predict_float32(network, holdout)
    normal = holdout.labels == 0
    scenes = np.unique([row.scene for row in holdout.rows], return_inverse=True)[1]
    chosen = thresholds.choose_threshold(
        model.threshold, scores[normal], scores[holdout.labels == 1], scenes[normal]
    )
    log.info(
        "Threshold %.6f (%.6f to %.6f) by %s", chosen.value, chosen.low, chosen.high, chosen.policy
    )
    if novelties is None:
        return Thresholds(chosen, None)
    novelty = thresholds.quantile_threshold(novelties[normal], model.threshold.review_share)
    log.info("Images from a novelty of %.6f on are marked for review", novelty)
    return Thresholds(chosen, novelty)


def _predict_float32(network: Network, split: data.Split) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores and novelties in full precision, as the exported program computes them."""
    images = select_batches(*split.tensors(), network.device)
    scores, novelties = [], []
    with torch.inference_mode(), float32(network.device):
        for pixels, _ in images.gather(torch.split(torch.arange(len(split)), _FLOAT32_BATCH)):
            score, _, *novelty = network(pixels)
            scores.append(score)
            novelties += novelty
    return (
        torch.cat(scores).cpu().numpy(),
        torch.cat(novelties).cpu().numpy() if novelties else None,
    )


def _log_program(
    name: str,
    model: Model,
    snapshot: Snapshot,
    run_id: str,
    network: Network,
    classes: tuple[str, ...],
    chosen: Thresholds | None,
) -> None:
    info = ProgramInfo(
        model=name,
        version=None,
        task=model.task,
        classes=classes,
        input_size=model.input_size,
        threshold=chosen.score.value if chosen else None,
        sha256="",
        synthetic=snapshot.synthetic,
        novelty_threshold=chosen.novelty if chosen else None,
    )
    metadata: dict[str, Any] = {
        "task": model.task,
        "classes": list(classes),
        "input_size": list(model.input_size),
        "snapshot": snapshot.uri,
        "synthetic": snapshot.synthetic,
    }
    if chosen:
        metadata["threshold"] = asdict(chosen.score)
        metadata["novelty_threshold"] = chosen.novelty
        tracking.log_params(
            run_id,
            {
                "threshold": chosen.score.value,
                "threshold_policy": chosen.score.policy,
                "novelty_threshold": chosen.novelty,
            },
        )
    programs.log_program(run_id, network, info, metadata)
