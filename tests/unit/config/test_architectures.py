"""Architectures declare their options, which are read without importing them."""

import inspect
from importlib import import_module

import pytest

from ml.config import architectures
from ml.config.architectures import complete_options, options_model
from ml.errors import ConfigurationError

FOLDER = architectures._MODELS


@pytest.mark.parametrize("architecture", architectures.architectures())
def test_build_takes_the_options_that_are_declared(architecture):
    parameters = inspect.signature(import_module(f"ml.models.{architecture}").build).parameters
    names = [
        name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY
    ]
    assert names == list(options_model(architecture).model_fields)
    assert list(complete_options(architecture, {})) == names


def test_defaults_are_added_to_the_options_that_are_given():
    options = {"width": 8, "smoothing": 0}
    assert complete_options("residual_network", options) == options | {"flips": True}
    everything = complete_options("anomaly_segmenter", {"synthetic": ["spill", "spill"]})
    assert everything == {"width": 24, "synthetic": ["spill", "spill"], "flips": True}
    kinds = complete_options("anomaly_segmenter", {})["synthetic"]
    assert kinds == architectures.module_names(FOLDER / "anomalies")


@pytest.mark.parametrize(
    ("declaration", "reason"),
    [
        ("", "there is no OPTIONS"),
        ("OPTIONS = {", "was never closed"),
        ("OPTIONS = {'width': {'type': WIDTH}}", "malformed node"),
        ("OPTIONS = {'width': {'type': 'integer', 'default': 1}}", "width.type"),
        ("OPTIONS = {'width': {'type': 'int', 'default': 1, 'least': 1}}", "width.least"),
        ("OPTIONS = {'width': {'type': 'int', 'default': 0, 'minimum': 1}}", "greater than or equal"),
        ("OPTIONS = {'width': {'type': 'int'}}", "valid integer"),
        ("OPTIONS = {'kinds': {'type': 'modules', 'folder': 'none'}}", "no folder 'none'"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_explained(tmp_path, monkeypatch, declaration, reason):
    monkeypatch.setattr(architectures, "_MODELS", tmp_path)
    (tmp_path / "mine.py").write_text(f'"""Mine."""\nimport torch\n{declaration}\n')
    options_model.cache_clear()
    with pytest.raises(ConfigurationError, match=rf"mine\.py does not declare .*(?s:.*){reason}"):
        options_model("mine")


def test_an_architecture_may_have_no_options(tmp_path, monkeypatch):
    monkeypatch.setattr(architectures, "_MODELS", tmp_path)
    (tmp_path / "mine.py").write_text("import torch\nOPTIONS = {}\n")
    assert complete_options("mine", {}) == {}
    options_model.cache_clear()
