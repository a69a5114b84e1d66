"""A configuration whose storage no other test uses."""

import pytest

from tests.support import expiry


@pytest.fixture
def storage(bucket, tmp_path, monkeypatch) -> str:
    path = tmp_path / "nightscore.yaml"
    path.write_text(expiry.CONFIGURATION.format(bucket=bucket))
    monkeypatch.setenv("NIGHTSCORE_CONFIG", str(path))
    return bucket
