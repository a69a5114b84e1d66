"""Unit tests see neither a stack nor a configuration that other tests have put in use."""

import os

import pytest

from ml.settings import settings
from tests.conftest import FOREIGN


@pytest.fixture(scope="module", autouse=True)
def _nothing_in_use(_clean_environment, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(FOREIGN) and name != "NIGHTSCORE_DEVICE":
                patch.delenv(name)
        patch.setenv("NIGHTSCORE_HOME", str(tmp_path_factory.mktemp("nothing")))
        settings.cache_clear()
        yield
    settings.cache_clear()
