"""A version's OpenVINO form, on the real services: made at registration and fetched by workers.

It is refused when it is not what was recorded; `nightscore models convert` makes a new one.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from typer.testing import CliRunner

from ml.cli.models import models_app
from ml.config.loading import configuration
from ml.errors import DataError, RunFailedError, ServiceError
from ml.program import conversion
from ml.program.info import CLASSIFICATION, ProgramInfo
from ml.program.runtime import OpenVinoRuntime
from ml.registry import artifacts, openvino_conversion, programs, registration, tracking, versions
from ml.registry.openvino_models import fetch_openvino_model, log_openvino_model
from ml.report import nightly
from ml.retrain import steps as retrain
from ml.scoring import steps
from ml.settings import settings
from ml.storage.object_store import object_store
from tests.support import registered, synthetic_images
from tests.support.proxy import HttpRequest, Proxy
from tests.support.retries import no_retries
from tests.support.scorer_packages import hidden_packages

REPOSITORY = Path(__file__).parents[3]
NIGHTS = iter(date(2033, 3, 1) + timedelta(days=10 * n) for n in range(1000))
IMAGES = 6
HEAVY = ("torch", "mlflow", "boto3", "botocore", "alembic", "sklearn", "matplotlib", "pandas")
OF_IMAGES = ("numpy", "cv2", "PIL", "simplejpeg", "openvino")


@pytest.fixture
def night(trained) -> str:
    """A night with images that no other test uses."""
    chosen = next(NIGHTS)
    prefix = configuration().stream("line").prefix
    for n in range(IMAGES):
        content = synthetic_images.shade("dark" if n % 2 else "light", 410_000 + n)
        object_store().put(f"{prefix}/dt={chosen}/{n}.png", content)
    return chosen.isoformat()


@pytest.fixture
def shades(trained) -> Iterator[registration.Registration]:
    """The classifier's champion, of which this machine has cached nothing."""
    version = versions.version_of_alias("shades", "champion")
    with registered.uncached("shades", version):
        yield registration.load_registration("shades", version)


def _form_uri(recorded: registration.Registration) -> str:
    """The URI of the form in the bucket."""
    name = f"openvino/{recorded.converted.sha256}.zip"
    return registered.artifact(recorded.model, recorded.version, name)


def _score(night: str) -> dict:
    """Score a night of `line` by the command line; returns the counts and the imported modules."""
    code = """
import json, sys
from ml.cli import main
sys.argv = ["nightscore", "score", "line", "--date", sys.argv[1], "--json"]
main_failed = None
try:
    main()
except SystemExit as end:
    main_failed = end.code
print(json.dumps({"failed": main_failed, "modules": sorted(sys.modules)}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, night],
        env=os.environ,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    counts, outcome = map(json.loads, done.stdout.splitlines())
    assert not outcome["failed"], done.stderr
    return counts | {"modules": set(outcome["modules"]), "said": done.stderr}


def test_registration_stores_the_form_and_records_it(trained):
    for model in ("shades", "moulds"):
        recorded = registration.load_registration(model, 1)
        content, _ = object_store().get(_form_uri(recorded))
        assert hashlib.sha256(content).hexdigest() == recorded.converted.sha256
        form = conversion.unpack(content)
        assert form.program == recorded.sha256
        assert form.openvino == recorded.converted.openvino == conversion.version()
        (row,) = registered.query(
            "SELECT openvino_version, openvino_sha256 FROM reporting.model_versions"
            " WHERE model = :m AND version = 1",
            m=model,
        )
        assert tuple(row.values()) == (recorded.converted.openvino, recorded.converted.sha256)


def test_a_version_never_used_here_scores_without_torch_and_without_mlflow(shades, night):
    counts = _score(night)
    assert counts["scored"] == IMAGES
    assert counts["modules"] >= set(OF_IMAGES)
    assert not counts["modules"] & set(HEAVY)
    assert counts["said"] == ""
    assert counts["engine_images_per_second"] > IMAGES / counts["seconds"] > 0
    names = {path.name for path in registered.folder("shades", shades.version).iterdir()}
    assert names == {"model.pt2", "program.json", f"openvino-{shades.converted.sha256}.zip"}
    # The fetched files are cached, and a night without new images needs none of them.
    again = _score(night)
    assert again["scored"] == 0
    assert again["engine_images_per_second"] is None
    assert not again["modules"] & {*HEAVY, *OF_IMAGES}


def test_the_rates_of_a_run_say_what_they_count(shades, night):
    counts = steps.score_night("line", night)
    (row,) = registered.query(
        "SELECT seconds, images_per_second, engine_images_per_second, devices,"
        " extract(epoch FROM finished_at - started_at)::double precision AS whole"
        " FROM reporting.nightly_summary WHERE run_id = :r",
        r=counts["run_id"],
    )
    assert row["seconds"] == counts["seconds"] == row["whole"]
    assert row["engine_images_per_second"] == counts["engine_images_per_second"]
    (shard,) = registered.query(
        "SELECT engine_images, engine_seconds, device,"
        " extract(epoch FROM finished_at - started_at)::double precision AS whole"
        " FROM nightscore.shard WHERE run_id = :r",
        r=counts["run_id"],
    )
    assert shard["engine_images"] == IMAGES
    assert shard["device"] == row["devices"] == "cpu"
    assert "Scored on cpu." in nightly.read(UUID(counts["run_id"]))
    assert 0 < shard["engine_seconds"] < shard["whole"]
    # A repetition that has nothing to score keeps the rate of the attempt that scored the shard.
    steps.score_shard(counts["run_id"], 0)
    (after,) = registered.query(
        "SELECT engine_images, engine_seconds FROM nightscore.shard WHERE run_id = :r",
        r=counts["run_id"],
    )
    assert after["engine_images"] == IMAGES
    assert after["engine_seconds"] == shard["engine_seconds"]


@pytest.mark.parametrize("where", ["MLflow", "this machine"])
def test_a_form_that_is_not_the_recorded_one_fails_the_night_by_name(shades, night, where):
    recorded = f"recorded is {shades.converted.sha256}"

    def changed(content: bytes) -> bytes:
        return conversion.pack(conversion.unpack(content)) + b"?"

    if where == "MLflow":
        with (
            registered.changed_object(_form_uri(shades), changed),
            pytest.raises(RunFailedError) as caught,
        ):
            steps.score_night("line", night)
        # Nothing of it was cached.
        names = {path.name for path in registered.folder("shades", shades.version).iterdir()}
        assert names == {"model.pt2", "program.json"}
    else:
        programs.fetch(shades)
        form = fetch_openvino_model(shades)
        (cached,) = registered.folder("shades", shades.version).glob("openvino-*.zip")
        cached.write_bytes(changed(form))
        with pytest.raises(RunFailedError) as caught:
            steps.score_night("line", night)
        cached.write_bytes(form)
    for part in (shades.name, recorded, where if where == "MLflow" else str(cached)):
        assert part in str(caught.value)
    assert "nightscore models convert shades" in str(caught.value)
    assert steps.score_night("line", night)["scored"] == IMAGES


def test_a_form_of_another_version_is_refused_though_its_hash_is_recorded(shades):
    other = registration.load_registration("moulds", 1).converted
    form, _ = object_store().get(_form_uri(registration.load_registration("moulds", 1)))
    uri = _form_uri(shades).replace(shades.converted.sha256, other.sha256)
    object_store().put(uri, form)
    with (
        registered.changed_row("shades", shades.version, openvino_sha256=other.sha256),
        pytest.raises(DataError, match="is of another program"),
    ):
        programs.load("shades", shades.version, "cpu")


def test_a_form_that_mlflow_has_lost_is_named(shades):
    with (
        no_retries(),
        registered.changed_object(_form_uri(shades), lambda content: None),
        pytest.raises(ServiceError, match=shades.converted.sha256),
    ):
        programs.load("shades", shades.version, "cpu")


def test_a_version_without_a_form_is_converted_here_and_then_for_all(shades, night):
    name, version = shades.model, shades.version
    with registered.changed_row(name, version, openvino_sha256=None, openvino_version=None):
        program = programs.load(name, version, "cpu")
        assert isinstance(program.runtime, OpenVinoRuntime)
        assert steps.score_night("line", night)["scored"] == IMAGES
        names = {path.name for path in registered.folder(name, version).iterdir()}
        assert names == {"model.pt2", "program.json", "model.openvino.zip"}

        first = {result.version: result for result in openvino_conversion.convert(name)}
        assert first[version].made
        assert "champion" in first[version].aliases
        recorded = registration.load_registration(name, version).converted
        assert recorded.openvino == first[version].openvino == conversion.version()
        assert not any(result.made for result in openvino_conversion.convert(name))
        with registered.uncached(name, version):
            fetched = programs.load(name, version, "cpu")
        pixels = conversion.noise(5, program.info.input_size)
        assert np.array_equal(
            fetched.predict(pixels).probabilities, program.predict(pixels).probabilities
        )


def _as_scorer(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `nightscore` with the packages of the image `scorer` alone."""
    return subprocess.run(
        [sys.executable, "-m", "tests.support.scorer_packages", *arguments],
        env=os.environ,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_a_scorer_needs_no_package_that_its_image_does_not_have(shades, night):
    assert {"torch", "mlflow", "scipy", "pyarrow"} <= hidden_packages()
    scored = _as_scorer("score", "line", "--date", night, "--json")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["scored"] == IMAGES
    training = _as_scorer("train", "shades")
    assert training.returncode == 1
    assert "Install nightscore[train]" in training.stderr


def test_a_scorer_that_meets_a_version_without_a_form_names_it(shades, night):
    empty = {"openvino_sha256": None, "openvino_version": None}
    with registered.changed_row(shades.model, shades.version, **empty):
        failed = _as_scorer("score", "line", "--date", night)
        assert failed.returncode == 1
        assert f"{shades.name} has no recorded form for CPUs" in failed.stderr
        assert "nightscore models convert shades" in failed.stderr
        # Where torch is installed, the same night is scored.
        assert steps.score_night("line", night)["scored"] == IMAGES


@pytest.mark.parametrize("fault", ["older", "damaged", "lost"])
def test_convert_makes_anew_what_is_older_damaged_or_lost(shades, fault):
    name, version = shades.model, shades.version
    uri = _form_uri(shades)

    def broken(content: bytes) -> bytes | None:
        return content[:-1] if fault == "damaged" else None

    older = {"openvino_version": "2020.1"} if fault == "older" else {}
    older["gate_reason"] = "test"  # a change, so that the old row returns in the end
    with registered.changed_row(name, version, **older):
        if fault == "older":
            assert _converted(name, version).made
        else:
            with no_retries(), registered.changed_object(uri, broken):
                assert _converted(name, version).made
                programs.load(name, version, "cpu")
        assert (
            registration.load_registration(name, version).converted.openvino == conversion.version()
        )
        assert not _converted(name, version).made


def _converted(name: str, version: int) -> openvino_conversion.Conversion:
    return next(result for result in openvino_conversion.convert(name) if result.version == version)


def test_the_command_says_what_it_did(shades):
    def run_process(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).parent / "nightscore", "models", *arguments],
            env=os.environ,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )

    def run(*arguments: str) -> str:
        """The same in this process, without the imports of a new one."""
        done = CliRunner().invoke(models_app, arguments)
        assert done.exception is None
        return done.stdout

    empty = {"openvino_sha256": None, "openvino_version": None}
    with registered.changed_row(shades.model, shades.version, **empty):
        done = run_process("convert", "shades")
        assert done.returncode == 0, done.stderr
        assert f"shades: version {shades.version} (champion" in done.stdout
        assert f"is converted by OpenVINO {conversion.version()}" in done.stdout
        again = run("convert", "shades", "--json")
        assert {result["made"] for result in json.loads(again)} == {False}
    listed = json.loads(run("--json"))
    assert {"shades", "moulds"} <= {row["model"] for row in listed}
    unknown = run_process("convert", "nothing")
    assert unknown.returncode == 1
    assert "no model 'nothing'" in unknown.stderr


class _Exotic(torch.nn.Module):
    """An operation that OpenVINO does not know."""

    def forward(self, pixels):
        return torch.special.i0(pixels.float().mean((2, 3)) / 255).softmax(1)


def test_a_program_that_openvino_cannot_run_is_registered_without_a_form(trained):
    run_id = tracking.start_run("exotic", None, {})
    info = ProgramInfo("exotic", None, CLASSIFICATION, ("a", "b", "c"), (16, 16), None, "")
    programs.log_program(run_id, _Exotic().eval(), info, {"task": CLASSIFICATION})
    assert retrain._store_conversion(run_id, *programs.fetch_from_run(run_id)) is None
    assert versions.register(run_id, "exotic", {}, "") == 1


def test_a_gpu_s_worker_does_not_fetch_the_form(shades, monkeypatch):
    paths: list[str] = []

    def note(request: HttpRequest) -> None:
        paths.append(request.path)

    with Proxy(settings().mlflow_uri, note) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        settings.cache_clear()
        with suppress(Exception):  # there may be no GPU
            programs.load(shades.model, shades.version, "cuda")
        on_gpu = list(paths)
        programs.load(shades.model, shades.version, "cpu")
    monkeypatch.undo()
    settings.cache_clear()
    assert any("model.pt2" in path for path in on_gpu)
    assert not any("openvino" in path for path in on_gpu)
    assert any("openvino" in path for path in paths)


def test_many_at_once_fetch_one_form(shades):
    programs.fetch(shades)
    with ThreadPoolExecutor(6) as pool:
        forms = set(pool.map(lambda _: fetch_openvino_model(shades), range(6)))
    assert len(forms) == 1
    names = sorted(path.name for path in registered.folder("shades", shades.version).iterdir())
    assert names == ["model.pt2", f"openvino-{shades.converted.sha256}.zip", "program.json"]


def test_a_full_disk_is_named_and_leaves_nothing(shades):
    programs.fetch(shades)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        with pytest.raises(ServiceError, match=r"cannot be kept in .*File too large"):
            fetch_openvino_model(shades)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    names = sorted(path.name for path in registered.folder("shades", shades.version).iterdir())
    assert names == ["model.pt2", "program.json"]
    assert fetch_openvino_model(shades)


def test_a_newer_form_takes_the_place_of_the_older_on_this_machine(shades):
    programs.load(shades.model, shades.version, "cpu")
    current = conversion.unpack(fetch_openvino_model(shades))
    newer = conversion.pack(conversion.ConvertedProgram(**vars(current) | {"openvino": "2031.1"}))
    converted = log_openvino_model(artifacts.logged_model_id(shades), newer)
    with registered.changed_row(
        shades.model,
        shades.version,
        openvino_sha256=converted.sha256,
        openvino_version=converted.openvino,
    ):
        programs.load(shades.model, shades.version, "cpu")
    (cached,) = registered.folder(shades.model, shades.version).glob("openvino-*.zip")
    assert cached.read_bytes() == newer


def test_half_a_record_is_refused_by_the_table(trained):
    with (
        pytest.raises(sa.exc.IntegrityError),
        registered.as_owner() as session,
    ):
        session.execute(
            sa.text("UPDATE nightscore.model_version SET openvino_version = NULL WHERE version = 1")
        )
