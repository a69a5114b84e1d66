"""A training run: parts of a snapshot in, a program in MLflow out."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ml.config.schema import Model, Training
from ml.data.snapshot import Snapshot
from ml.evaluation import plots
from ml.evaluation.metrics import anomaly_metrics
from ml.models import Network, build, weights_sha256
from ml.program import device
from ml.program.info import ProgramInfo
from ml.registry import programs, tracking
from ml.training import data, distributed, environment, loop, thresholds

log = logging.getLogger(__name__)

# What is said of an epoch, of what `validate` measures.
_MEASURES = {"holdout_accuracy": "accuracy", "holdout_auroc": "AUROC"}


@dataclass(frozen=True)
class Thresholds:
    """From which score on an image is flagged, and from which novelty on marked for review; None
    for a network that gives none."""

    score: thresholds.ChosenThreshold
    novelty: float | None


def run(
    name: str, model: Model, snapshot: Snapshot, run_id: str, threads: int | None = None
) -> None:
    """Train a model on a snapshot; parameters, curves and the program go to the run.

    Args:
        threads: of the CPU, to repeat a run with as many as it had; None: as many as torch chooses.

    Raises:
        DataError: see `ml.training.data.load` and `ml.training.loop.fit`.
    """
    place = device.select_device()
    with environment.fixed(place, threads):
        _run(name, model, snapshot, run_id, place)


def _run(name: str, model: Model, snapshot: Snapshot, run_id: str, place: device.Device) -> None:
    used = parameters(model, place)
    tracking.log_params(
        run_id,
        {
            "task": model.task,
            "architecture": model.architecture,
            "input_size": list(model.input_size),
            "seed": model.seed,
            "device": place,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "code": environment.code_version(),
            **{f"options.{key}": value for key, value in model.options.items()},
            **used.model_dump(),
        },
    )
    tracking.log_json(run_id, tracking.MODEL, model.model_dump(mode="json"))
    tracking.log_json(run_id, tracking.ENVIRONMENT, environment.collect(place))
    tracking.log_snapshot(run_id, snapshot)
    parts = data.load(snapshot, model)
    log.info(
        "%s images to fit, %s held out, on %s",
        f"{len(parts.fit):,}",
        f"{len(parts.holdout):,}",
        place,
    )
    torch.manual_seed(model.seed)
    network = build(model.architecture, model.input_size, parts.classes, model.options)
    history: list[dict[str, float]] = []

    def on_epoch(epoch: loop.Epoch) -> None:
        values = {key: value for key, value in asdict(epoch).items() if isinstance(value, float)}
        row = {"epoch": float(epoch.number), **values, **epoch.validation}
        history.append(row)
        tracking.log_metrics(run_id, row, epoch.number)
        log.info("%s", _in_words(epoch))

    pixels, labels = parts.fit.tensors()
    network.before_fit(pixels, labels)
    if used.processes > 1:
        distributed.fit(
            network, model, parts, place=place, processes=used.processes, on_epoch=on_epoch
        )
    else:
        loop.fit(
            network,
            pixels,
            labels,
            used,
            device=torch.device(place),
            seed=model.seed,
            validate=lambda trained: validate(trained, model, parts.holdout),
            on_epoch=on_epoch,
        )
    network.after_fit(pixels, labels)
    network.calibrate(*parts.holdout.tensors())
    tracking.set_run_tags(run_id, {tracking.WEIGHTS_TAG: weights_sha256(network)})
    tracking.log_figures(
        run_id,
        {
            "training_curves": plots.training_curves(history),
            "weights_and_gradients": _weights_and_gradients(network),
        },
    )
    chosen = _thresholds(network, model, parts.holdout) if model.task == "anomaly" else None
    _log_program(name, model, snapshot, run_id, network, parts.classes, chosen)


def _in_words(epoch: loop.Epoch) -> str:
    """What a person wants to know while a model is trained; all of it is in MLflow."""
    measured = [
        f"held-out {_MEASURES[key]} {value:.4g}"
        for key, value in epoch.validation.items()
        if key in _MEASURES
    ]
    said = ", ".join([*measured, f"{epoch.images_per_second:,.0f} images/s"])
    return f"epoch {epoch.number} of {epoch.epochs}: {said}"


def parameters(model: Model, place: device.Device) -> Training:
    """The training parameters for a device: those of `cpu` where `gpu` has none."""
    return model.training.get(device.profile(place)) or model.training["cpu"]


def validate(network: Network, model: Model, holdout: data.Part) -> dict[str, float]:
    """What is measured after each epoch on the held-out images."""
    pixels, labels = holdout.tensors()
    loss = {"holdout_loss": loop.holdout_loss(network, pixels, labels, seed=model.seed)}
    outputs = loop.predict(network, pixels)
    if model.task == "classification":
        return loss | {"holdout_accuracy": float((outputs.argmax(axis=1) == holdout.labels).mean())}
    measured = anomaly_metrics(outputs, holdout.labels == 1, None)
    return loss | ({"holdout_auroc": measured["auroc"]} if measured["auroc"] is not None else {})


def _weights_and_gradients(network: Network) -> bytes:
    """Of the layers with a matrix of weights; biases and scales are too few for a histogram."""
    layers = {
        name.removesuffix(".weight"): parameter
        for name, parameter in network.named_parameters()
        if parameter.ndim > 1
    }
    return plots.weights_and_gradients(
        {name: parameter.detach().numpy() for name, parameter in layers.items()},
        {name: layer.grad.numpy() for name, layer in layers.items() if layer.grad is not None},
    )


def _thresholds(network: Network, model: Model, holdout: data.Part) -> Thresholds:
    with torch.autocast("cpu", enabled=False):
        scores, novelties = _scores_in_float32(network, holdout.pixels)
    normal = holdout.labels == 0
    scenes = np.unique([row.scene for row in holdout.rows], return_inverse=True)[1]
    chosen = thresholds.choose(
        model.threshold, scores[normal], scores[holdout.labels == 1], scenes[normal]
    )
    log.info(
        "Threshold %.6f (%.6f to %.6f) by %s", chosen.value, chosen.low, chosen.high, chosen.policy
    )
    if novelties is None:
        return Thresholds(chosen, None)
    novelty = thresholds.above_share(novelties[normal], model.threshold.review_share)
    log.info("Images from a novelty of %.6f on are marked for review", novelty)
    return Thresholds(chosen, novelty)


def _scores_in_float32(
    network: Network, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores and novelties as the exported program will compute them, which training's reduced
    precision is not."""
    scores, novelties = [], []
    with torch.inference_mode():
        for start in range(0, len(pixels), 512):
            score, _, *novelty = network(torch.from_numpy(np.array(pixels[start : start + 512])))
            scores.append(score.numpy())
            novelties += [values.numpy() for values in novelty]
    return np.concatenate(scores), np.concatenate(novelties) if novelties else None


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
