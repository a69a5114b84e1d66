"""The example policies of docs/iam are enough for the work that they are for, and no more.

All requests of a retraining, a night, an import and MLflow's artifacts go through a proxy that
notes them; each must be allowed, and each thing that is allowed must have been asked for.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path

import boto3
import pytest
from botocore.validate import ParamValidator

from ml.settings import settings
from ml.storage.buckets import ensure_bucket
from ml.storage.object_store import object_store
from tests.support import stacks, synthetic_images
from tests.support.iam import Request, requests
from tests.support.proxy import HttpRequest, Proxy

DOCUMENTS = Path(__file__).parents[3] / "docs" / "iam"
IMAGES, STORAGE, ARTIFACTS = "example-images", "example-nightscore", "example-mlflow"
NIGHT = date(2026, 2, 3)


def _statements(name: str) -> list[dict]:
    document = json.loads((DOCUMENTS / f"{name}.json").read_text(encoding="utf-8"))
    return document["Statement"]


def _grants(name: str) -> set[tuple[str, str]]:
    """Each action with each resource that a policy allows."""
    grants = set()
    for statement in _statements(name):
        # What this file understands; a document that says more needs an evaluator that does.
        assert set(statement) == {"Sid", "Effect", "Action", "Resource"}
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action
            grants |= {(action, resource) for resource in statement["Resource"]}
    return grants


def _matching_grants(name: str, request: Request) -> set[tuple[str, str]]:
    """The grants of a policy that allow a request."""
    return {
        (action, resource)
        for action, resource in _grants(name)
        if action == request.action and fnmatchcase(request.resource, resource)
    }


def _forbidden_addresses(name: str, requests: list[Request]) -> set[str]:
    """The addresses that a policy does not allow."""
    return {request.address for request in requests if not _matching_grants(name, request)}


def _unused_grants(name: str, requests: list[Request]) -> set[tuple[str, str]]:
    """What a policy grants and nothing has asked for."""
    return _grants(name) - set().union(*(_matching_grants(name, request) for request in requests))


@contextmanager
def _record_requests() -> Iterator[list[Request]]:
    """Whatever this process asks of S3 goes through the proxy."""
    recorded: list[Request] = []

    def record(request: HttpRequest) -> None:
        recorded.extend(requests(*request))

    with Proxy(settings().s3_endpoint, record) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        settings.cache_clear()
        object_store.cache_clear()
        try:
            yield recorded
        finally:
            del os.environ["AWS_ENDPOINT_URL"]
            settings.cache_clear()
            object_store.cache_clear()


@pytest.fixture(scope="module")
def plant(services, tmp_path_factory):
    """A configuration with the documents' buckets; gives the folder of its images."""
    for name in (IMAGES, STORAGE, ARTIFACTS):
        ensure_bucket(name)
    text = stacks.CONFIGURATION.format(bucket=f"s3://{STORAGE}")
    for before, after in (
        ("  both:\n", "  both-of-policy:\n"),
        ("  line:\n", "  line-of-policy:\n"),
        (f"s3://{STORAGE}/streams/", f"s3://{IMAGES}/line/"),
        ("shades", "policy-shades"),
        ("moulds", "policy-moulds"),
    ):
        assert before in text
        text = text.replace(before, after)
    # Of the scenes' images too, which are read when the snapshot is taken.
    text = text.replace(
        "dataset: policy-moulds\n", "dataset: policy-moulds\n    holdout_by: scene\n"
    )
    folder = tmp_path_factory.mktemp("plant")
    (folder / "nightscore.yaml").write_text(text)
    for name in ("shades", "moulds"):
        synthetic_images.write_dataset(folder / f"policy-{name}", name)
    before = os.environ.get("NIGHTSCORE_CONFIG")
    os.environ["NIGHTSCORE_CONFIG"] = str(folder / "nightscore.yaml")
    yield folder
    if before is None:
        del os.environ["NIGHTSCORE_CONFIG"]
    else:
        os.environ["NIGHTSCORE_CONFIG"] = before


@pytest.fixture(scope="module")
def import_requests(plant) -> list[Request]:
    """What the import of data sets and a night's images asks for."""
    from ml.config.loading import configuration
    from ml.data import dataset, ingest

    stream = configuration().stream("both-of-policy")
    sample = plant / "sample"
    sample.mkdir()
    (sample / "synthetic-1.png").write_bytes(synthetic_images.mould("normal", 1))
    with _record_requests() as requests:
        for name in ("policy-shades", "policy-moulds"):
            dataset.import_(plant / name, name, storage=configuration().storage)
        (plant / "policy-shades" / "train" / "dark" / "0001.png").unlink()
        dataset.import_(
            plant / "policy-shades", "policy-shades", storage=configuration().storage, replace=True
        )
        assert dataset.summaries(configuration().storage)
        ingest.ingest(sample, stream, NIGHT)
        ingest.remove_samples(stream, NIGHT)
        ingest.ingest(plant / "policy-moulds", stream, NIGHT, split="test")
    return requests


@pytest.fixture(scope="module")
def work_requests(import_requests) -> list[Request]:
    """What a retraining of both kinds of model and a night ask for."""
    from ml.report import nightly
    from ml.retrain import steps as retrain
    from ml.scoring import runs, steps
    from ml.stack.doctor import run_checks

    with _record_requests() as requests:
        for name in ("policy-shades", "policy-moulds"):
            retrain.retrain(name)
        counts = steps.score_night("both-of-policy", NIGHT.isoformat())
        assert counts["anomalies"]
        assert nightly.read(runs.newest_run("both-of-policy", NIGHT))
        assert {check.name: check.ok for check in run_checks()}["s3"]
    return requests


def test_a_data_engineer_s_policy_is_enough_and_no_more(import_requests):
    assert _forbidden_addresses("data-engineer", import_requests) == set()
    assert _unused_grants("data-engineer", import_requests) == set()


def test_a_worker_s_policy_is_enough_and_no_more(work_requests):
    assert _forbidden_addresses("worker", work_requests) == set()
    assert _unused_grants("worker", work_requests) == set()


def test_a_policy_of_the_pages_is_enough_to_show_a_report(work_requests):
    from ml.report import nightly
    from ml.scoring import runs

    with _record_requests() as requests:
        assert nightly.read(runs.newest_run("both-of-policy", NIGHT))
    assert _forbidden_addresses("pages", requests) == set()
    # Listing turns 403 into 404 for a report that a lifecycle rule has removed.
    assert {action for action, _ in _unused_grants("pages", requests)} == {"s3:ListBucket"}


def test_a_worker_writes_results_only_and_deletes_nothing(work_requests):
    written = {asked.resource for asked in work_requests if asked.action == "s3:PutObject"}
    folders = {resource.split(":::")[1].split("/")[1] for resource in written}
    assert folders == {"snapshots", "heatmaps", "reports"}
    assert {asked.action for asked in work_requests} == {
        "s3:ListBucket",
        "s3:GetObject",
        "s3:PutObject",
    }
    assert not any(f":::{IMAGES}" in resource for resource in written)


def test_a_policy_of_maintain_is_enough_and_no_more(plant):
    from ml.config.loading import configuration
    from ml.config.retention import Retention
    from ml.retention import objects, snapshots
    from ml.retention.policy import Policy
    from tests.support import expiry

    storage = configuration().storage
    for key in (
        "heatmaps/policy-old/dt=2020-01-01/policy-moulds/1/1.jpg",
        "reports/policy-old/dt=2020-01-01/1.html",
        f"snapshots/policy-old/{0:032}.parquet",
    ):
        object_store().put(f"{storage}/{key}", b"old")
    policy, later = Policy(Retention(heatmaps=1, reports=1, snapshots=1)), expiry.in_days(2)
    with _record_requests() as requests:
        for source in (objects, snapshots):
            for candidate in source.candidates(policy, later):
                if "policy-old" in candidate.name:
                    source.delete(candidate, policy, later)
    assert {request.action for request in requests} == {"s3:ListBucket", "s3:DeleteObject"}
    assert _forbidden_addresses("maintain", requests) == set()
    assert _unused_grants("maintain", requests) == set()


@pytest.mark.parametrize("name", ["images", "storage", "artifacts"])
def test_a_lifecycle_is_what_s3_takes_and_expires_nothing_that_must_stay(name):
    text = (DOCUMENTS / f"lifecycle-{name}.json").read_text(encoding="utf-8")
    document = json.loads(text)
    client = boto3.client("s3", region_name="us-east-1")
    operation = client.meta.service_model.operation_model("PutBucketLifecycleConfiguration")
    arguments = {"Bucket": "example", "LifecycleConfiguration": document}
    report = ParamValidator().validate(arguments, operation.input_shape)
    assert not report.has_errors(), report.generate_report()
    expiring = {
        rule["Filter"]["Prefix"]
        for rule in document["Rules"]
        if "Days" in rule.get("Expiration", {})
    }
    # Data sets, snapshots and artifacts never go by their age alone.
    assert (
        expiring
        == {
            "images": {"line/"},
            "storage": {"heatmaps/line/", "reports/line/"},
            "artifacts": set(),
        }[name]
    )
    assert all(rule["Status"] == "Enabled" for rule in document["Rules"])
    assert {"abandoned-uploads", "replaced-and-deleted-versions"} <= {
        rule["ID"] for rule in document["Rules"]
    }


def test_a_camera_may_put_images_and_neither_read_nor_list_them(services, plant):
    with _record_requests() as requests:
        current = settings()
        camera = boto3.client(
            "s3",
            endpoint_url=current.s3_endpoint,
            aws_access_key_id=current.s3_access_key,
            aws_secret_access_key=current.s3_secret_key.get_secret_value(),
            region_name=current.s3_region,
        )
        camera.put_object(Bucket=IMAGES, Key=f"line/both/dt={NIGHT}/1.png", Body=b"an image")
    assert _forbidden_addresses("camera", requests) == set()
    assert _unused_grants("camera", requests) == set()
    for action, resource in (
        ("s3:GetObject", f"arn:aws:s3:::{IMAGES}/line/both/1.png"),
        ("s3:DeleteObject", f"arn:aws:s3:::{IMAGES}/line/both/1.png"),
        ("s3:ListBucket", f"arn:aws:s3:::{IMAGES}"),
        ("s3:PutObject", f"arn:aws:s3:::{STORAGE}/datasets/policy-shades/train/dark/1.png"),
    ):
        assert not _matching_grants("camera", Request(action, resource, ""))


def test_what_mlflow_s_server_does_with_artifacts_is_allowed_and_no_more(
    services, plant, tmp_path, monkeypatch
):
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    (tmp_path / "small.txt").write_text("small")
    (tmp_path / "large.bin").write_bytes(os.urandom(9_000_000))  # sent in parts
    with _record_requests() as requests:
        current = settings()
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", current.s3_endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", current.s3_access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", current.s3_secret_key.get_secret_value())
        monkeypatch.setenv("AWS_DEFAULT_REGION", current.s3_region)
        artifacts = get_artifact_repository(f"s3://{ARTIFACTS}/artifacts/1/run")
        artifacts.log_artifacts(str(tmp_path))
        assert {info.path for info in artifacts.list_artifacts()} == {"small.txt", "large.bin"}
        assert Path(artifacts.download_artifacts("small.txt")).read_text() == "small"
        artifacts.delete_artifacts("small.txt")
    assert _forbidden_addresses("mlflow-server", requests) == set()
    assert _unused_grants("mlflow-server", requests) == set()


def test_the_bucket_policy_refuses_plain_http_for_everything_in_the_bucket():
    (statement,) = _statements("bucket-policy")
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == (
        "Deny",
        "*",
        "s3:*",
    )
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert statement["Resource"] == [f"arn:aws:s3:::{STORAGE}", f"arn:aws:s3:::{STORAGE}/*"]
