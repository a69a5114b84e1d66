# `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
AUDIT := .venv-audit
INSTALLED := $(VENV)/.installed
AUDIT_INSTALLED := $(AUDIT)/.installed
FAB := .venv-fab
FAB_INSTALLED := $(FAB)/.installed
S3 := .venv-s3
S3_INSTALLED := $(S3)/.installed
export AIRFLOW__USAGE_DATA_COLLECTION__ENABLED := False
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true

.DEFAULT_GOAL := help
.PHONY: help install run stop docker-build docker-up docker-down docker-test production-test docker-scaling test test-unit faults hostile lint types format bench growth models gpu-check gpu-rehearsal peers audit sbom licences clean lock

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## install everything into .venv

$(INSTALLED): requirements/lock.txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}. Choose one: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make virtual environments (Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@echo "Installing Nightscore into $(VENV) (a few gigabytes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/lock.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

run: $(INSTALLED)  ## start the local stack, train, score a night, show the results (DATA=DIR: real images, VERBOSE=1: all logs)
	@$(BIN)/nightscore run $(if $(DATA),--data "$(DATA)") $(if $(VERBOSE),--verbose)

stop: $(INSTALLED)  ## stop the local stack; its data stay in .nightscore/
	@$(BIN)/nightscore down

test: $(INSTALLED) $(AUDIT_INSTALLED) $(FAB_INSTALLED) lint  ## lint, type-check and run all tests; they start all they need (ARGS="-k name")
	@$(BIN)/pytest $(ARGS)

test-unit: $(INSTALLED) $(AUDIT_INSTALLED)  ## run the quick tests that need no service, in under a minute
	@$(BIN)/pytest tests/unit -m "not slow" --numprocesses 2 $(ARGS)

faults: $(INSTALLED)  ## break everything that can break, often, and count what was lost (half an hour)
	@FAULTS=full $(BIN)/pytest --numprocesses 0 tests/faults $(ARGS)

lint: $(INSTALLED)  ## check style, types and who imports whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/mypy

format: $(INSTALLED)  ## rewrite the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(INSTALLED)  ## measure scoring against other ways and stage by stage (ARGS="--workload photos")
	@$(BIN)/python -c 'import daft, ray, tqdm' 2>/dev/null || $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/bench.txt
	@$(BIN)/python -m benchmarks.scoring.score $(ARGS)

growth: $(INSTALLED)  ## measure nights of 10 thousand to 1 million images, ten minutes (ARGS="--history 1000": behind a history)
	@$(BIN)/python -m benchmarks.scoring.growth $(ARGS)

models: $(INSTALLED)  ## compare models on labelled images (ARGS="--task anomaly --data spill.tar")
	@$(BIN)/python -m benchmarks.models.compare $(ARGS)

gpu-check: $(INSTALLED)  ## prepare a check for a machine with an NVIDIA GPU and no network (DATA=DIR: real images)
	@$(BIN)/python -m tools.gpu_check prepare $(if $(DATA),--data "$(DATA)") $(ARGS)

gpu-rehearsal: $(INSTALLED)  ## run that check on the CPU, without a network (20 minutes)
	@$(BIN)/python -m tools.gpu_check rehearse $(if $(DATA),--data "$(DATA)") $(ARGS)

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# The command of Compose 2, or of 1.
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose) -f docker/compose.yaml

docker-build:  ## build the images nightscore/scorer, server and trainer (20 GB while it builds)
	@for image in scorer server trainer; do docker build $(DOCKER_BUILD_ARGS) --file docker/Dockerfile --target $$image --build-arg VERSION=$(VERSION) --build-arg COMMIT=$$(git rev-parse HEAD) --tag nightscore/$$image:$(VERSION) . || exit 1; done

docker-up:  ## draw the secrets and start everything in containers (docker/README.md)
	@docker/make-secrets.sh
	@NIGHTSCORE_VERSION=$(VERSION) $(COMPOSE) up --detach $(ARGS)

docker-down:  ## stop the containers; their volumes stay
	@$(COMPOSE) down $(ARGS)

docker-test: $(INSTALLED)  ## build the images, and kill a worker in mid-night (root, dockerd; 25 minutes)
	@$(BIN)/pytest --numprocesses 0 -s tests/docker $(ARGS)

production-test: $(INSTALLED) $(S3_INSTALLED)  ## follow docs/production.md with services of its own over TLS (two minutes; five at first)
	@$(BIN)/pytest --numprocesses 0 tests/production $(ARGS)

docker-scaling: $(INSTALLED)  ## measure nights on one, two and four worker containers (15 minutes)
	@$(BIN)/python -m tests.docker.scaling $(ARGS)

hostile: $(INSTALLED)  ## score 20,000 broken and hostile images and count the outcomes
	@$(BIN)/python -m tests.hostile.run $(ARGS)

peers: $(INSTALLED)  ## install the other libraries of `make models` into .venv-peers (5 GB)
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(PEERS)
	@$(BIN)/uv pip sync --quiet --python $(PEERS)/bin/python --require-hashes requirements/peers.txt

$(AUDIT_INSTALLED): requirements/audit.txt | $(INSTALLED)
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(AUDIT)
	@$(BIN)/uv pip sync --quiet --python $(AUDIT)/bin/python --require-hashes requirements/audit.txt
	@touch $@

# What is not in it is taken from .venv, which it lies over.
$(FAB_INSTALLED): requirements/fab.txt | $(INSTALLED)
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(FAB)
	@$(BIN)/uv pip sync --quiet --python $(FAB)/bin/python --require-hashes requirements/fab.txt
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > "$$($(FAB)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/over-venv.pth"
	@touch $@

$(S3_INSTALLED): requirements/s3.txt | $(INSTALLED)
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(S3)
	@$(BIN)/uv pip sync --quiet --python $(S3)/bin/python --require-hashes requirements/s3.txt
	@touch $@

audit: $(AUDIT_INSTALLED)  ## look for known vulnerabilities of every locked package
	@$(BIN)/python -m tools.audit

sbom: $(AUDIT_INSTALLED)  ## write what is installed as a CycloneDX bill of materials
	@$(AUDIT)/bin/python -m tools.sbom build/sbom.cdx.json

licences: $(INSTALLED)  ## write every locked package's licence into docs/licences.md
	@$(BIN)/python -m tools.licences

lock: $(INSTALLED)  ## resolve requirements/*.txt again from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --all-extras --upgrade pyproject.toml -o requirements/lock.txt
	@for image in scorer trainer server; do $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --extra $$image -c requirements/lock.txt pyproject.toml -o requirements/$$image.txt || exit 1; done
	@$(BIN)/uv pip compile --quiet --no-deps --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade -c requirements/lock.txt requirements/bench.in -o requirements/bench.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade --no-emit-package numpy --no-emit-package psutil --no-emit-package pyarrow --no-emit-package pytest --no-emit-package iniconfig --no-emit-package packaging --no-emit-package pluggy --no-emit-package pygments -c requirements/lock.txt -c requirements/bench.txt requirements/gpu-check.in -o requirements/gpu-check.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade requirements/peers.in -o requirements/peers.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade requirements/audit.in -o requirements/audit.txt
	@$(BIN)/uv pip compile --quiet --no-deps --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade -c requirements/lock.txt requirements/fab.in -o requirements/fab.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade requirements/s3.in -o requirements/s3.txt

clean:  ## stop the stack and delete .venv, caches and the local stack's data
	@[ ! -x $(BIN)/nightscore ] || $(BIN)/nightscore down || true
	rm -rf $(VENV) $(PEERS) $(AUDIT) $(FAB) $(S3) .nightscore build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
