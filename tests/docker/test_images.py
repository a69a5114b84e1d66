"""The images, as `docker inspect` and a look inside show them."""

import json

import pytest

from tests.docker.composition import IMAGES, run
from tests.docker.conftest import MEASURED

_MAX_GB = {"scorer": 1.5, "server": 2.5, "trainer": 9}


@pytest.fixture(params=IMAGES)
def image(request, images) -> tuple[str, dict]:
    name = images[request.param]
    (described,) = json.loads(run("docker", "inspect", name))
    return name, described


def inside(name: str, script: str) -> str:
    return run(
        "docker", "run", "--rm", "--read-only", "--network", "none", name, "sh", "-c", script
    )


def test_its_size_is_stated_and_bounded(image):
    name, described = image
    gigabytes = described["Size"] / 1e9
    MEASURED.append(f"{name}: {gigabytes:.2f} GB")
    assert gigabytes < _MAX_GB[name.split("/")[1].split(":")[0]]


def test_it_is_not_root_s_and_says_what_it_is(image):
    name, described = image
    config = described["Config"]
    assert config["User"] == "50000:0"
    assert config["Labels"]["org.opencontainers.image.version"] == name.split(":")[1]
    assert len(config["Labels"]["org.opencontainers.image.revision"]) == 40
    assert inside(name, "id -u; nightscore --version").split()[0] == "50000"


def test_it_has_no_build_tools_caches_or_secrets(image):
    name, described = image
    tools = inside(
        name, "for p in gcc cc make pip pip3 uv git curl; do command -v $p || true; done"
    )
    assert tools == ""
    found = inside(
        name,
        "find / -xdev \\( -name '*.pem' -o -name '*.key' -o -name .git -o -name secrets"
        " -o -name '.cache' \\) -not -path '/etc/ssl/*' -not -path '/usr/*'"
        # Packages have tests, and certificates of authorities.
        " -not -path '*/site-packages/*' 2> /dev/null || true;"
        "ls -A /var/lib/apt/lists /var/cache/apt /tmp | grep -v '^/.*:$' || true",
    )
    assert found.split() == []
    assert not [each for each in described["Config"]["Env"] if "PASSWORD" in each or "KEY=" in each]


def test_the_scorer_has_neither_torch_nor_mlflow(images):
    check = "import importlib.util as u; print([n for n in ('torch', 'mlflow') if u.find_spec(n)])"
    command = f'/opt/nightscore/venv/bin/python -c "{check}"'
    assert inside(images["scorer"], command).strip() == "[]"
    assert inside(images["trainer"], command).strip() == "['torch', 'mlflow']"
    assert inside(images["server"], command).strip() == "['mlflow']"


def test_a_change_of_the_code_leaves_the_layer_of_the_packages(images):
    """The layers below the package's own are those of a build before its sources changed."""
    history = run("docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", images["scorer"])
    steps = [line for line in history.splitlines() if "COPY" in line]
    # Newest first: the packages come before (below) everything of ours.
    assert len(steps) == 4
    assert "/opt/nightscore/venv" in steps[-1]
