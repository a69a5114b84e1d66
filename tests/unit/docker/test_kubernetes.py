"""docker/kubernetes/: manifests that Kubernetes accepts, and the pods that Airflow makes of a task.

No cluster runs here: `kubernetes-validate` checks against the schemas of a Kubernetes release, and
the pods come from the code of Airflow's Kubernetes provider.
"""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ml.config.loading import load

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "docker" / "kubernetes"
RELEASE = "1.33"
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
TEMPLATE = FOLDER / "pod-template.yaml"
# Not manifests: the chart's values, and an example of our own configuration.
OTHERS = {"values.yaml", "nightscore.yaml"}
SECRET_NAMES = ("PASSWORD", "SECRET", "TOKEN", "KEY", "_URL", "STORE_URI")


def _manifests() -> list[Any]:
    return [
        pytest.param(document, id=f"{path.name}-{document['kind']}")
        for path in sorted(FOLDER.glob("*.yaml"))
        if path.name not in OTHERS
        for document in yaml.safe_load_all(path.read_text())
    ]


def _validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, RELEASE, strict=True)


@pytest.fixture(scope="module")
def pods(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """ "DAG/TASK" → the pod that KubernetesExecutor starts, with the example configuration."""
    variables = {
        "AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow")),
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor,pods:KubernetesExecutor",
        "NIGHTSCORE_CONFIG": str(FOLDER / "nightscore.yaml"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.task_pods", str(TEMPLATE)],
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return result


def _pod_specs(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if document["kind"] == "Pod":
        yield document["spec"]
    elif document["kind"] in ("Deployment", "Job"):
        yield document["spec"]["template"]["spec"]


def _check_hardened(spec: dict[str, Any]) -> None:
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 50000
    assert spec["automountServiceAccountToken"] is False
    for container in spec["containers"] + spec.get("initContainers", []):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        repository, _, tag = container["image"].partition(":")
        assert repository in {f"nightscore/{image}" for image in ("scorer", "trainer", "server")}
        assert tag == VERSION
        for variable in container.get("env", []):
            if variable["name"].endswith(SECRET_NAMES):
                public = variable.get("value", "").startswith("http://airflow-api-server")
                assert "valueFrom" in variable or public, variable["name"]


@pytest.mark.parametrize("document", _manifests())
def test_kubernetes_accepts_each_manifest_and_none_needs_root(document):
    _validate(document)
    for spec in _pod_specs(document):
        _check_hardened(spec)


def test_a_long_running_server_has_probes():
    (deployment, *_) = yaml.safe_load_all((FOLDER / "mlflow.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


def test_a_word_that_kubernetes_does_not_know_is_noticed():
    pod = yaml.safe_load(TEMPLATE.read_text())
    pod["spec"]["containers"][0]["resource"] = pod["spec"]["containers"][0].pop("resources")
    with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
        _validate(pod)


def test_what_the_chart_s_values_give_to_kubernetes_is_accepted():
    values = yaml.safe_load((FOLDER / "values.yaml").read_text())
    server = values["apiServer"]
    container = {
        "name": "api-server",
        "image": f"{values['defaultAirflowRepository']}:{values['defaultAirflowTag']}",
        "securityContext": values["securityContexts"]["containers"],
        "resources": server["resources"],
        "env": server["env"],
        "volumeMounts": values["volumeMounts"],
    }
    spec = {
        "securityContext": values["securityContexts"]["pod"],
        "automountServiceAccountToken": False,
        "initContainers": server["extraInitContainers"],
        "containers": [container],
        "volumes": values["volumes"] + server["extraVolumes"],
    }
    _validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec})
    _check_hardened(spec)
    for name in ("scheduler", "dagProcessor", "triggerer"):
        assert {"requests", "limits"} == values[name]["resources"].keys()


def test_every_task_of_the_dags_gets_a_pod_that_kubernetes_accepts(pods):
    assert {name.partition("/")[0] for name in pods} == {
        "score_moulds", "score_labels", "rescore_moulds",
        "retrain_moulds-anomaly", "retrain_labels-classifier",
    }  # fmt: skip
    for pod in pods.values():
        _validate(pod)
        _check_hardened(pod["spec"])
        assert [container["name"] for container in pod["spec"]["containers"]] == ["base"]


def test_a_pod_has_what_the_configuration_says_and_the_rest_of_the_template(pods):
    spec = pods["score_moulds/score_shards"]["spec"]
    (base,) = spec["containers"]
    amounts = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}
    assert base["resources"]["limits"].items() >= amounts.items()
    assert base["resources"]["requests"].items() >= amounts.items()
    assert base["image"] == f"nightscore/trainer:{VERSION}"
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    (toleration,) = spec["tolerations"]
    assert (toleration["key"], toleration["operator"]) == ("nvidia.com/gpu", "Exists")
    assert {"secretRef": {"name": "nightscore-worker"}} in base["envFrom"]
    assert base["args"][0] == "python"

    train = pods["retrain_moulds-anomaly/train"]["spec"]["containers"][0]
    assert train["resources"]["limits"]["nvidia.com/gpu"] == "4"
    trained_on = load(FOLDER / "nightscore.yaml").model("moulds-anomaly").training["gpu"]
    assert trained_on.processes == 4


def test_a_stream_can_score_on_cpus_where_others_score_on_gpus(pods):
    spec = pods["score_labels/score_shards"]["spec"]
    assert not spec.get("tolerations") and not spec.get("nodeSelector")
    (base,) = spec["containers"]
    assert base["image"] == f"nightscore/scorer:{VERSION}"
    assert "nvidia.com/gpu" not in base["resources"]["limits"]


def test_steps_without_resources_get_the_template_s_pod(pods):
    template = yaml.safe_load(TEMPLATE.read_text())["spec"]["containers"][0]
    base = pods["score_moulds/reconcile"]["spec"]["containers"][0]
    assert base["resources"] == template["resources"]
    assert base["image"] == template["image"]


def test_no_pod_of_a_task_knows_airflow_s_database_or_keys(pods):
    for pod in pods.values():
        (base,) = pod["spec"]["containers"]
        names = {variable["name"] for variable in base["env"]}
        forbidden = ("SQL_ALCHEMY_CONN", "FERNET_KEY", "JWT_SECRET", "API__SECRET_KEY", "OWNER_URL")
        assert not [name for name in names if name.endswith(forbidden)]
        assert base["envFrom"] == [{"secretRef": {"name": "nightscore-worker"}}]
