"""The main job, end to end: import data, train models, score a night, show the results.

This is what `make run` does. It works through Airflow's scheduler, as production does: data are put
into S3, and the DAGs are triggered and followed to their end. Steps that do not depend on each
other run at the same time: images are imported while Airflow starts, and ingested into the night
while a trained model is evaluated.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from ml.config.loading import configuration
from ml.config.schema import Configuration
from ml.data import dataset, ingest
from ml.database.connection import rows, transaction
from ml.errors import ServiceError
from ml.parallel import run_in_thread
from ml.stack.airflow_client import AirflowApi, DagRun, TaskState, run_page
from ml.stack.champions import champion_rows, needs_training, require_champion
from ml.stack.image_sources import ImageSource, draw_samples, find_datasets
from ml.stack.local import ALREADY_UP, SERVICES, LocalStack
from ml.stack.progress import Progress

# The split whose images are ingested into the night.
NIGHT_SPLIT = "test"
_STACK_TASK = "local stack"
# A task that takes less time gets no line of its own.
_LONG_TASK_S = 10.0
_COUNT_EVERY_S = 0.2


@dataclass(frozen=True)
class Result:
    """What the main job has made.

    Attributes:
        summaries: rows of `reporting.nightly_summary`, one per stream.
        scored: stream → the DAG run that scored it.
        trained: model → the DAG run that trained it; None when its champion was used.
        champions: rows of `reporting.model_versions`.
    """

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
            the data set of a model; None for the built-in synthetic samples. Samples never replace
            other images: a data set that was imported before is used as it is.
        night: the night that the test images are ingested into.
        stack: the local stack.
        progress: shows a person what is done.
        verbose: show every line that a task logs.

    Raises:
        DataError: `data` has no data set that a model uses.
        ServiceError: a DAG run failed; the message ends with the task's log.
        RunFailedError: a trained model did not pass the gate and has no champion.
    """
    config = configuration()
    # A wrong folder is reported before anything is started.
    own_source = find_datasets(data, config) if data is not None else None
    with ExitStack() as resources:
        storage_ready: Future[None] = Future()
        api = run_in_thread(_start_stack, stack, storage_ready, resources, progress)
        futures: list[Future[Any]] = [storage_ready, api]
        wait(futures, return_when=FIRST_COMPLETED)
        if not storage_ready.done():
            api.result()  # raises the error
        source = own_source or draw_samples(config, resources, progress.message)
        return _Job(config, source, night, api, progress, verbose=verbose).run()


def _start_stack(
    stack: LocalStack, storage_ready: Future[None], resources: ExitStack, progress: Progress
) -> AirflowApi:
    """Start the stack; `storage_ready` is done as soon as Postgres and S3 can be used."""

    def on_message(line: str) -> None:
        # That a server is ready is shown for a moment; other lines stay.
        if " is ready" in line or line == ALREADY_UP:
            progress.update(_STACK_TASK, line)
        else:
            progress.message(line)

    progress.update(_STACK_TASK, f"starting {', '.join(SERVICES)}")
    stack.up(
        SERVICES,
        on_message=on_message,
        on_storage_ready=lambda: storage_ready.set_result(None),
    )
    progress.finish(_STACK_TASK)
    progress.message("PostgreSQL, S3, MLflow and Airflow are up")
    return resources.enter_context(AirflowApi())


class _Job:
    """The steps of the job, each on its own thread, which first waits for the steps it depends on.

    Args:
        config: the models and streams.
        source: the images.
        night: the night that the test images are ingested into.
        api: Airflow, once it is up.
        progress: shows a person what is done.
        verbose: show every line that a task logs.
    """

    def __init__(
        self,
        config: Configuration,
        source: ImageSource,
        night: date,
        api: Future[AirflowApi],
        progress: Progress,
        *,
        verbose: bool,
    ) -> None:
        self.config, self.source, self.night = config, source, night
        self.api, self.progress, self.verbose = api, progress, verbose
        # Model → done when its task `train` has ended, before its DAG run has.
        self.fitted: dict[str, Future[None]] = {name: Future() for name in config.models}

    def run(self) -> Result:
        """Run all steps; raises the first error after the steps that do not depend on it."""
        models = _models_of({*self.source.datasets, *self.source.imported}, self.config)
        streams = _streams_of(models, self.config)
        # One import at a time, since each uses all of the object store's throughput. And none
        # during a training: it slows the training's threads by more time than the import takes.
        imports: list[Future[None]] = []
        for name in self.source.datasets:
            imports.append(run_in_thread(self._import, name, imports[-1:]))
        trainings = {model: run_in_thread(self._train, model, imports) for model in models}
        nights = {}
        fitted = [self.fitted[model] for model in models]
        previous = imports[-1:]
        for name in streams:
            ingested = run_in_thread(self._ingest, name, previous, fitted)
            previous = [ingested]
            # All trainings have ended, so that the night does not wait for a slot of their pool.
            own_trainings = [trainings[model] for model in self.config.stream(name).models]
            dependencies = [*fitted, *own_trainings, ingested]
            nights[name] = run_in_thread(self._score, name, dependencies)
        # An error before the first training is reported at once.
        first: list[Future[Any]] = [self.api, *imports]
        for future in wait(first, return_when=FIRST_EXCEPTION).done:
            future.result()
        wait(nights.values())
        trained = {model: future.result() for model, future in trainings.items()}
        scored = {name: future.result() for name, future in nights.items()}
        summaries = [_summary(run) for run in scored.values()]
        return Result(summaries, scored, trained, champion_rows(models))

    def _import(self, name: str, dependencies: Iterable[Future[None]]) -> None:
        _wait_for(dependencies)
        task = f"data set {name}"
        self.progress.update(task, f"importing {self.source.datasets[name].name}")
        # `replace`: older images of the same name, such as samples, must not mix with these.
        result = dataset.import_(
            self.source.datasets[name],
            name,
            storage=self.config.storage,
            replace=True,
            on_progress=self._counter(task),
        )
        self.progress.finish(task)
        removed = f", {result.removed:,} others removed" if result.removed else ""
        skipped = f", {result.skipped:,} of them there already" if result.skipped else ""
        self.progress.message(f"{task}: {result.images:,} images{skipped}{removed}")

    def _ingest(
        self, name: str, dependencies: Iterable[Future[None]], fitted: Iterable[Future[None]]
    ) -> None:
        _wait_for(dependencies)
        # Not during a training, for the same reason as an import.
        wait(fitted, return_when=FIRST_COMPLETED)
        stream = self.config.stream(name)
        datasets = {self.config.model(model).dataset for model in stream.models}
        task = f"stream {name}"
        if not self.source.synthetic and (removed := ingest.remove_samples(stream, self.night)):
            self.progress.message(f"{task}: {removed:,} synthetic samples of {self.night} removed")
        for dataset_name in sorted(datasets & self.source.datasets.keys()):
            path = self.source.datasets[dataset_name]
            self.progress.update(task, f"ingesting {path.name}")
            counter = self._counter(task)
            result = ingest.ingest(path, stream, self.night, split=NIGHT_SPLIT, on_progress=counter)
            broken_files = 0
            if broken := self.source.broken.get(dataset_name):
                broken_files = ingest.ingest(broken, stream, self.night, split=None).images
            self.progress.message(
                f"{task}, night of {self.night}: {result.images:,} images, labels left out"
                f"{f', and {broken_files:,} broken files' if broken_files else ''}"
            )
        self.progress.finish(task)

    def _counter(self, task: str) -> Callable[[int], None]:
        """Takes the number of images done so far and shows it at most every 0.2 seconds.

        Showing a number takes longer than importing an image.
        """
        last_shown = 0.0

        def show(images: int) -> None:
            nonlocal last_shown
            if (now := time.monotonic()) - last_shown >= _COUNT_EVERY_S:
                last_shown = now
                self.progress.update(task, f"{images:,} images so far")

        return show

    def _train(self, model: str, dependencies: Iterable[Future[None]]) -> DagRun | None:
        """Train a model through Airflow, unless its champion was trained from the same images."""
        fitted = self.fitted[model]

        def on_success(task: str) -> None:
            if task == "train" and not fitted.done():
                fitted.set_result(None)

        try:
            _wait_for(dependencies)
            if not needs_training(model, self.config, self.progress.message):
                return None
            run = self._trigger(f"retrain_{model}")
            self._follow(run, on_success)
            require_champion(model)
            return run
        finally:
            on_success("train")

    def _score(self, stream: str, dependencies: Iterable[Future[Any]]) -> DagRun:
        _wait_for(dependencies)
        run = self._trigger(f"score_{stream}", {"night": self.night.isoformat()})
        self._follow(run)
        return run

    def _trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> DagRun:
        api = self.api.result()
        api.unpause(dag_id)
        run = api.trigger(dag_id, conf)
        self.progress.update(dag_id, "waits for Airflow's scheduler")
        return run

    def _follow(self, run: DagRun, on_success: Callable[[str], None] = lambda task: None) -> None:
        """Wait for a run; raises ServiceError with the log of its failed task."""
        api, started = self.api.result(), time.monotonic()

        def on_task(_: DagRun, task: TaskState) -> None:
            if task.state == "success":
                on_success(task.task)
            if status := _STATUSES.get(task.state):
                self.progress.update(run.dag_id, f"{task.task} {status}")
            elif line := _final_line(task):
                self.progress.message(f"{run.dag_id}: {line}")

        def on_log(_: DagRun, task: str, line: str) -> None:
            if self.verbose:
                self.progress.message(f"{run.dag_id}: {task}: {line}")
            else:
                self.progress.update(run.dag_id, f"{task}: {line}")

        state = api.wait([run], on_task, on_log, verbose=self.verbose)[run]
        self.progress.finish(run.dag_id)
        took = timedelta(seconds=round(time.monotonic() - started))
        self.progress.message(
            f"{run.dag_id}: {'done in' if state == 'success' else state + ' after'} {took}"
        )
        if state != "success":
            raise ServiceError(
                f"The DAG run {run.dag_id} failed in {api.failure(run)}",
                f"Its page in Airflow: {run_page(run)}",
            )


# State of a task that has not started → what is shown after the task's name.
_STATUSES = {"scheduled": "waits for its turn", "queued": "is about to start"}


def _final_line(task: TaskState) -> str:
    """The line about a task that has ended; empty when it succeeded quickly."""
    if task.state == "failed":
        return f"{task.task} failed: {task.reason}"
    if task.state == "up_for_retry":
        return f"{task.task} failed and is tried again soon: {task.reason}"
    if task.state == "success" and task.seconds >= _LONG_TASK_S:
        return f"{task.task} took {timedelta(seconds=round(task.seconds))}"
    return ""


def _wait_for(dependencies: Iterable[Future[Any]]) -> None:
    for future in dependencies:
        future.result()


def _models_of(datasets: Iterable[str], config: Configuration) -> list[str]:
    """The models that are trained from some of the data sets."""
    names = set(datasets)
    return [name for name, model in config.models.items() if model.dataset in names]


def _streams_of(models: Iterable[str], config: Configuration) -> list[str]:
    """The streams all of whose models are among these."""
    names = set(models)
    return [name for name, stream in config.streams.items() if set(stream.models) <= names]


def _summary(run: DagRun) -> dict[str, Any]:
    """The row of `reporting.nightly_summary` of the scoring run that a DAG run opened."""
    trigger = f"{run.dag_id}/{run.run_id}"
    with transaction() as session:
        return dict(rows(session, "stack/sql/summary_of_trigger", trigger=trigger)[0])
