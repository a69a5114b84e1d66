"""The main job, end to end: data in, models trained, a night scored, results shown.

This is what `make run` does. It works through Airflow's scheduler, as a production night would:
data are put into S3, the DAGs are triggered and followed to their end.
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ml import dataset, ingest, samples, snapshot
from ml.airflow_api import AirflowApi, DagRun
from ml.config import Configuration, configuration
from ml.database import rows, session
from ml.errors import DataError, RunFailed, ServiceError
from ml.tables import CHAMPION, ModelAlias, ModelVersion

Say = Callable[[str], None]
REPORT_SPLIT = "test"
_PROGRESS_EVERY_S = 10.0


@dataclass(frozen=True)
class Source:
    """Labelled images on disk: a folder or tar a data set; by data set, a folder of broken files
    for the night; and data sets that are in S3 and stay as they are (`kept`)."""

    datasets: dict[str, Path]
    broken: dict[str, Path] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    synthetic: bool = False


def run(data: Path | None, night: date, say: Say) -> list[dict[str, Any]]:
    """Import, train, ingest and score; the stack must be up.

    Parameters
    ----------
    data: folder with NAME.tar files or NAME/ folders laid out SPLIT/CLASS/FILE, where NAME is the
        data set of a model; None for the built-in synthetic samples. Samples never take the place
        of other images: a data set that was imported before is used as it is.
    night: the night that the test images are ingested for.
    say: takes lines of progress.

    Returns
    -------
    A row of `reporting.nightly_summary` for each stream that was scored.

    Raises
    ------
    DataError: `data` holds no data set that a model uses.
    ServiceError: a DAG run failed; the message ends with the task's log.
    """
    config = configuration()
    with ExitStack() as stack:
        source = _samples(config, stack, say) if data is None else _real(data, config)
        for name, path in source.datasets.items():
            _import(name, path, config, say)
        models = _models_of({*source.datasets, *source.kept}, config)
        streams = _streams_of(models, config)
        api = stack.enter_context(AirflowApi())
        _retrain([model for model in models if _needs_training(model, config, say)], api, say)
        _require_champions(models)
        for stream in streams:
            _ingest(stream, source, night, config, say)
        scored = _score(streams, night, api, say)
    return [_summary(run) for run in scored]


def _samples(config: Configuration, stack: ExitStack, say: Say) -> Source:
    kept = {name for name in samples.DATASETS if dataset.holds_real_images(config.storage, name)}
    for name in sorted(kept):
        say(f"data set {name}: the images that were imported before are used")
    wanted = [name for name in samples.DATASETS if name not in kept]
    if not wanted:
        return Source({}, kept=frozenset(kept), synthetic=True)
    say(f"no DATA given: drawing SYNTHETIC sample images for {', '.join(wanted)}")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nightscore-")))
    written = samples.write(folder)
    return Source(
        {name: written.datasets[name] for name in wanted},
        {name: written.broken[name] for name in wanted if name in written.broken},
        frozenset(kept),
        synthetic=True,
    )


def _real(data: Path, config: Configuration) -> Source:
    wanted = {model.dataset for model in config.models.values()}
    found = {name: path for name in sorted(wanted) for path in _candidates(data, name)}
    if not found:
        raise DataError(
            f"{data} holds none of the data sets that nightscore.yaml names: "
            f"{', '.join(sorted(wanted))}.",
            "Put NAME.tar files or NAME/ folders there, laid out SPLIT/CLASS/FILE.",
        )
    return Source(found)


def _candidates(folder: Path, name: str) -> Iterable[Path]:
    options = (folder / name, folder / f"{name}.tar", folder / f"{name}.tar.gz")
    return [path for path in options if path.exists()][:1]


def _import(name: str, path: Path, config: Configuration, say: Say) -> None:
    # What was there before under the same name, samples for instance, must not mix with this.
    result = dataset.import_(
        path,
        name,
        storage=config.storage,
        replace=True,
        on_progress=_now_and_then(say, f"data set {name}: {{:,}} images so far"),
    )
    say(
        f"data set {name}: {result.images:,} images, {result.uploaded:,} uploaded, "
        f"{result.skipped:,} there already, {result.removed:,} removed"
    )


def _now_and_then(say: Say, text: str) -> Callable[[int], None]:
    """Takes counts and says one of them every few seconds."""
    said = time.monotonic()

    def count(done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _PROGRESS_EVERY_S:
            said = time.monotonic()
            say(text.format(done))

    return count


def _models_of(datasets: Iterable[str], config: Configuration) -> list[str]:
    return [name for name, model in config.models.items() if model.dataset in set(datasets)]


def _streams_of(models: Iterable[str], config: Configuration) -> list[str]:
    return [name for name, stream in config.streams.items() if set(stream.models) <= set(models)]


def _needs_training(name: str, config: Configuration, say: Say) -> bool:
    """Whether the champion is missing or was trained from other images than there are now."""
    model = config.model(name)
    uri = snapshot.take(
        model.dataset,
        config.storage,
        holdout_share=model.holdout_share,
        holdout_by=model.holdout_by,
    )
    with session() as current:
        champion = current.scalar(
            sa.select(ModelVersion)
            .join(
                ModelAlias,
                (ModelAlias.model == ModelVersion.model)
                & (ModelAlias.version == ModelVersion.version),
            )
            .where(ModelAlias.model == name, ModelAlias.alias == CHAMPION)
        )
        if champion is None or champion.snapshot_uri != uri:
            return True
        say(
            f"model {name}: version {champion.version} was trained from these images; "
            f"train again with the DAG retrain_{name} or `nightscore train {name}`"
        )
        return False


def _retrain(models: list[str], api: AirflowApi, say: Say) -> None:
    runs = []
    for model in models:
        api.unpause(f"retrain_{model}")
        runs.append(api.trigger(f"retrain_{model}"))
    _follow(runs, api, say)


def _require_champions(models: list[str]) -> None:
    """Raise RunFailed, with what the gate said, when a model has no champion to score with."""
    with session() as current:
        for model in models:
            if current.get(ModelAlias, (model, CHAMPION)) is None:
                newest = current.scalar(
                    sa.select(ModelVersion)
                    .where(ModelVersion.model == model)
                    .order_by(ModelVersion.version.desc())
                    .limit(1)
                )
                reason = newest.gate_reason if newest else "it has no version"
                raise RunFailed(
                    f"Model {model} has no champion: {reason}.",
                    "Its page in MLflow shows how it trained; `gate` in nightscore.yaml decides.",
                )


def _ingest(name: str, source: Source, night: date, config: Configuration, say: Say) -> None:
    stream = config.stream(name)
    names = {config.model(model).dataset for model in stream.models}
    if not source.synthetic and (removed := ingest.remove_samples(stream, night)):
        say(f"stream {name}, night {night}: {removed:,} synthetic samples removed")
    for dataset_name in sorted(names & source.datasets.keys()):
        path = source.datasets[dataset_name]
        progress = _now_and_then(say, f"stream {name}: {{:,}} images so far")
        result = ingest.ingest(path, stream, night, split=REPORT_SPLIT, on_progress=progress)
        say(f"stream {name}, night {night}: {result.images:,} images, labels left out")
        if broken := source.broken.get(dataset_name):
            result = ingest.ingest(broken, stream, night, split=None)
            say(f"stream {name}, night {night}: {result.images:,} broken files besides")


def _score(streams: list[str], night: date, api: AirflowApi, say: Say) -> list[DagRun]:
    runs = []
    for stream in streams:
        api.unpause(f"score_{stream}")
        runs.append(api.trigger(f"score_{stream}", {"night": night.isoformat()}))
    _follow(runs, api, say)
    return runs


def _follow(runs: list[DagRun], api: AirflowApi, say: Say) -> None:
    """Wait for the runs; raises ServiceError with the log of the first that fails."""

    def on_task(run: DagRun, task: str, state: str) -> None:
        if state in ("running", "success", "failed", "up_for_retry", "skipped"):
            say(f"{run.dag_id}: {task} {state}")

    def on_log(run: DagRun, task: str, line: str) -> None:
        say(f"{run.dag_id}: {task}: {line}")

    for run, state in api.wait(runs, on_task, on_log).items():
        if state != "success":
            raise ServiceError(f"The DAG run {run.dag_id} failed in {api.failure(run)}")


def _summary(run: DagRun) -> dict[str, Any]:
    with session() as current:
        return dict(rows(current, "summary_of_trigger", trigger=f"{run.dag_id}/{run.run_id}")[0])
