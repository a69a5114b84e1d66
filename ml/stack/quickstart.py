"""The main job, end to end: data in, models trained, a night scored, results shown.

This is what `make run` does. It works through Airflow's scheduler, as a production night would:
data are put into S3, the DAGs are triggered and followed to their end. What does not wait for each
other goes side by side: images are imported while Airflow starts, and brought into the night while
a trained model is evaluated.
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from ml.config.loading import configuration
from ml.config.schema import Configuration
from ml.data import dataset, ingest, samples, snapshot
from ml.database.connection import rows, transaction
from ml.database.tables import CHAMPION, ModelAlias, ModelVersion
from ml.errors import DataError, RunFailedError, ServiceError
from ml.parallel import in_thread
from ml.stack.airflow_client import AirflowApi, DagRun, TaskState, run_page
from ml.stack.local import ALREADY_UP, SERVICES, LocalStack

Say = Callable[[str], None]
REPORT_SPLIT = "test"
_SERVERS = "local stack"
# A task that takes less is not worth a line of its own.
_LONG_TASK_S = 10.0
_SHOW_EVERY_S = 0.2


class Progress(Protocol):
    """Takes what a person is shown while the job runs; called from several threads."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def doing(self, what: str, detail: str) -> None:
        """What is being done now about `what`, a data set or a DAG run."""

    def done(self, what: str) -> None:
        """Nothing more is done about `what`."""


@dataclass(frozen=True)
class Source:
    """Labelled images on disk: a folder or tar a data set; by data set, a folder of broken files
    for the night; and data sets that are in S3 and stay as they are (`kept`)."""

    datasets: dict[str, Path]
    broken: dict[str, Path] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    synthetic: bool = False


@dataclass(frozen=True)
class Result:
    """Rows of `reporting.nightly_summary`; the DAG run of each stream; the DAG run that trained
    each model, if one did; and the champions as rows of `reporting.model_versions`."""

    summaries: list[dict[str, Any]]
    scored: dict[str, DagRun]
    trained: dict[str, DagRun | None]
    champions: list[dict[str, Any]]


def run(
    data: Path | None, night: date, stack: LocalStack, progress: Progress, *, verbose: bool = False
) -> Result:
    """Start the stack, import, train, ingest and score.

    Args:
        data: folder with NAME.tar files or NAME/ folders laid out SPLIT/CLASS/FILE, where NAME is
            the data set of a model; None for the built-in synthetic samples. Samples never take the
            place of other images: a data set that was imported before is used as it is.
        night: the night that the test images are ingested for.
        verbose: show every line that a task logs.

    Raises:
        DataError: `data` holds no data set that a model uses.
        ServiceError: a DAG run failed; the message ends with the task's log.
    """
    config = configuration()
    # What is wrong with the folder is said before anything is started.
    given = _real(data, config) if data is not None else None
    with ExitStack() as opened:
        storage: Future[None] = Future()
        api = in_thread(_started, stack, storage, opened, progress)
        both: list[Future[Any]] = [storage, api]
        wait(both, return_when=FIRST_COMPLETED)
        if not storage.done():
            api.result()  # raises what went wrong
        source = given or _samples(config, opened, progress.say)
        return _Job(config, source, night, api, progress, verbose=verbose).run()


def _started(
    stack: LocalStack, storage: Future[None], opened: ExitStack, progress: Progress
) -> AirflowApi:
    """Airflow, once the whole stack is up; `storage` is done as soon as Postgres and S3 are."""

    def say(line: str) -> None:
        # Each server that is ready passes; what else is said stays.
        if " is ready" in line or line == ALREADY_UP:
            progress.doing(_SERVERS, line)
        else:
            progress.say(line)

    progress.doing(_SERVERS, f"starting {', '.join(SERVICES)}")
    stack.up(SERVICES, say=say, on_storage=lambda: storage.set_result(None))
    progress.done(_SERVERS)
    progress.say("PostgreSQL, S3, MLflow and Airflow are up")
    return opened.enter_context(AirflowApi())


class _Job:
    """The steps of a run, each on a thread of its own that first waits for those it needs."""

    def __init__(
        self,
        config: Configuration,
        source: Source,
        night: date,
        api: Future[AirflowApi],
        progress: Progress,
        *,
        verbose: bool,
    ) -> None:
        self.config, self.source, self.night = config, source, night
        self.api, self.progress, self.verbose = api, progress, verbose
        # Of each model: its training has ended, though not its DAG run.
        self.fitted: dict[str, Future[None]] = {name: Future() for name in config.models}

    def run(self) -> Result:
        """All steps; raises the first failure when whatever does not depend on it has ended."""
        models = _models_of({*self.source.datasets, *self.source.kept}, self.config)
        streams = _streams_of(models, self.config)
        # One upload at a time, as each takes all that the object store gives; and none beside a
        # training, whose threads wait for each other: it would lose more time than an upload takes.
        imported: list[Future[None]] = []
        for name in self.source.datasets:
            imported.append(in_thread(self._import, name, imported[-1:]))
        trained = {model: in_thread(self._train, model, imported) for model in models}
        scored = {}
        fitted = [self.fitted[model] for model in models]
        before = imported[-1:]
        for name in streams:
            ingested = in_thread(self._ingest, name, before, fitted)
            before = [ingested]
            # Trainings have ended, so that a night does not wait for their slot of the pool.
            needed = [*(trained[model] for model in self.config.stream(name).models), ingested]
            scored[name] = in_thread(self._score, name, [*fitted, *needed])
        # What goes wrong before anything is trained is said at once.
        first: list[Future[Any]] = [self.api, *imported]
        for future in wait(first, return_when=FIRST_EXCEPTION).done:
            future.result()
        wait(scored.values())
        runs = {model: future.result() for model, future in trained.items()}
        nights = {name: future.result() for name, future in scored.items()}
        return Result(
            [_summary(night) for night in nights.values()], nights, runs, _champions(models)
        )

    def _import(self, name: str, needs: Iterable[Future[None]]) -> None:
        _wait_for(needs)
        what = f"data set {name}"
        self.progress.doing(what, f"importing {self.source.datasets[name].name}")
        # What was there before under the same name, samples for instance, must not mix with this.
        result = dataset.import_(
            self.source.datasets[name],
            name,
            storage=self.config.storage,
            replace=True,
            on_progress=self._count(what, "images so far"),
        )
        self.progress.done(what)
        removed = f", {result.removed:,} others removed" if result.removed else ""
        there = f", {result.skipped:,} of them there already" if result.skipped else ""
        self.progress.say(f"{what}: {result.images:,} images{there}{removed}")

    def _ingest(
        self, name: str, needs: Iterable[Future[None]], fitted: Iterable[Future[None]]
    ) -> None:
        _wait_for(needs)
        # Between two trainings or after them, as above.
        wait(fitted, return_when=FIRST_COMPLETED)
        stream = self.config.stream(name)
        names = {self.config.model(model).dataset for model in stream.models}
        what = f"stream {name}"
        if not self.source.synthetic and (removed := ingest.remove_samples(stream, self.night)):
            self.progress.say(f"{what}: {removed:,} synthetic samples of {self.night} removed")
        for dataset_name in sorted(names & self.source.datasets.keys()):
            path = self.source.datasets[dataset_name]
            self.progress.doing(what, f"ingesting {path.name}")
            count = self._count(what, "images so far")
            result = ingest.ingest(path, stream, self.night, split=REPORT_SPLIT, on_progress=count)
            files = 0
            if broken := self.source.broken.get(dataset_name):
                files = ingest.ingest(broken, stream, self.night, split=None).images
            self.progress.say(
                f"{what}, night of {self.night}: {result.images:,} images, labels left out"
                f"{f', and {files:,} broken files' if files else ''}"
            )
        self.progress.done(what)

    def _count(self, what: str, unit: str) -> Callable[[int], None]:
        """Takes counts and shows some of them, as showing one takes longer than an image."""
        shown = 0.0

        def count(done: int) -> None:
            nonlocal shown
            if (now := time.monotonic()) - shown >= _SHOW_EVERY_S:
                shown = now
                self.progress.doing(what, f"{done:,} {unit}")

        return count

    def _train(self, model: str, needs: Iterable[Future[None]]) -> DagRun | None:
        """Train a model through Airflow, unless its champion was trained from the same images."""
        fitted = self.fitted[model]

        def on_success(task: str) -> None:
            if task == "train" and not fitted.done():
                fitted.set_result(None)

        try:
            _wait_for(needs)
            if not _needs_training(model, self.config, self.progress.say):
                return None
            run = self._trigger(f"retrain_{model}")
            self._follow(run, on_success)
            _require_champion(model)
            return run
        finally:
            on_success("train")

    def _score(self, stream: str, needs: Iterable[Future[Any]]) -> DagRun:
        _wait_for(needs)
        run = self._trigger(f"score_{stream}", {"night": self.night.isoformat()})
        self._follow(run)
        return run

    def _trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> DagRun:
        api = self.api.result()
        api.unpause(dag_id)
        run = api.trigger(dag_id, conf)
        self.progress.doing(dag_id, "waits for Airflow's scheduler")
        return run

    def _follow(self, run: DagRun, on_success: Callable[[str], None] = lambda task: None) -> None:
        """Wait for a run; raises ServiceError with the log of its failed task."""
        api, started = self.api.result(), time.monotonic()

        def on_task(_: DagRun, task: TaskState) -> None:
            if task.state == "success":
                on_success(task.task)
            if shown := _SHOWN_STATES.get(task.state):
                self.progress.doing(run.dag_id, f"{task.task}{shown}")
            elif line := _lasting(task):
                self.progress.say(f"{run.dag_id}: {line}")

        def on_log(_: DagRun, task: str, line: str) -> None:
            if self.verbose:
                self.progress.say(f"{run.dag_id}: {task}: {line}")
            else:
                self.progress.doing(run.dag_id, f"{task}: {line}")

        state = api.wait([run], on_task, on_log, verbose=self.verbose)[run]
        self.progress.done(run.dag_id)
        took = timedelta(seconds=round(time.monotonic() - started))
        self.progress.say(
            f"{run.dag_id}: {'done in' if state == 'success' else state + ' after'} {took}"
        )
        if state != "success":
            raise ServiceError(
                f"The DAG run {run.dag_id} failed in {api.failure(run)}",
                f"Its page in Airflow: {run_page(run)}",
            )


# States that pass, and what is said of a task in them.
_SHOWN_STATES = {"scheduled": " waits for its turn", "queued": " is about to start", "running": ""}


def _lasting(task: TaskState) -> str:
    """The line that stays of a task that has ended, if it is worth one."""
    if task.state == "failed":
        return f"{task.task} failed: {task.reason}"
    if task.state == "up_for_retry":
        return f"{task.task} failed and is tried again soon: {task.reason}"
    if task.state == "success" and task.seconds >= _LONG_TASK_S:
        return f"{task.task} took {timedelta(seconds=round(task.seconds))}"
    return ""


def _wait_for(needs: Iterable[Future[Any]]) -> None:
    for future in needs:
        future.result()


def _samples(config: Configuration, opened: ExitStack, say: Say) -> Source:
    kept = {name for name in samples.DATASETS if dataset.holds_real_images(config.storage, name)}
    for name in sorted(kept):
        say(f"data set {name}: the images that were imported before are used")
    wanted = [name for name in samples.DATASETS if name not in kept]
    if not wanted:
        return Source({}, kept=frozenset(kept), synthetic=True)
    say(f"no DATA given: drawing SYNTHETIC sample images for {', '.join(wanted)}")
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="nightscore-")))
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


def _models_of(datasets: Iterable[str], config: Configuration) -> list[str]:
    return [name for name, model in config.models.items() if model.dataset in set(datasets)]


def _streams_of(models: Iterable[str], config: Configuration) -> list[str]:
    return [name for name, stream in config.streams.items() if set(stream.models) <= set(models)]


def _needs_training(name: str, config: Configuration, say: Say) -> bool:
    """Whether the champion is missing or was trained from other images than there are now."""
    with transaction() as session:
        champion = session.scalar(
            sa.select(ModelVersion)
            .join(
                ModelAlias,
                (ModelAlias.model == ModelVersion.model)
                & (ModelAlias.version == ModelVersion.version),
            )
            .where(ModelAlias.model == name, ModelAlias.alias == CHAMPION)
        )
        if champion is None:
            return True
        version, trained_from = champion.version, champion.snapshot_uri
    model = config.model(name)
    uri = snapshot.take_snapshot(
        model.dataset,
        config.storage,
        holdout_share=model.holdout_share,
        holdout_by=model.holdout_by,
    )
    if trained_from != uri:
        return True
    say(f"model {name}: version {version} was trained from these images and is used")
    return False


def _require_champion(model: str) -> None:
    """Raise RunFailedError, with what the gate said, when a model has no champion to score with."""
    with transaction() as session:
        if session.get(ModelAlias, (model, CHAMPION)) is not None:
            return
        newest = session.scalar(
            sa.select(ModelVersion)
            .where(ModelVersion.model == model)
            .order_by(ModelVersion.version.desc())
            .limit(1)
        )
        reason = newest.gate_reason if newest else "it has no version"
    raise RunFailedError(
        f"Model {model} has no champion: {reason}.",
        "Its page in MLflow shows how it trained; `gate` in nightscore.yaml decides.",
    )


def _champions(models: list[str]) -> list[dict[str, Any]]:
    """The models' champions, as `reporting.model_versions` has them."""
    with transaction() as session:
        found = [dict(row) for row in rows(session, "registry/sql/list_versions")]
    return [
        row
        for row in found
        if row["model"] in models and CHAMPION in (row["alias"] or "").split(", ")
    ]


def _summary(run: DagRun) -> dict[str, Any]:
    with transaction() as session:
        return dict(
            rows(session, "stack/sql/summary_of_trigger", trigger=f"{run.dag_id}/{run.run_id}")[0]
        )
