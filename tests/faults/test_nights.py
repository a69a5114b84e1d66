"""Nights of an unusual size, and images of unusual names."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ml.config.loading import configuration
from ml.scoring import steps
from ml.settings import settings
from ml.stack.process import package_folder
from ml.storage.buckets import ensure_bucket
from tests.support import evidence, night, synthetic_images

_NAMES = [
    "with a space.png",
    "ünïcödé/日本語/🙂.png",
    "100%.png",
    "%41%2F%00.png",
    "plus+and&=?#;.png",
    "quote'\"`$(id).png",
    "'; DROP TABLE nightscore.image; --.png",
    "<script>alert(1)<.png",
    "back\\slash.png",
    "tab\tand \x01\x1b[31m\x7f controls.png",
    " leading and trailing .png",
    "dots/.../x..png",
    "e\u0301 and \u00e9.png",
    "n" * 250 + ".png",
]


def _score(tonight: night.Night) -> None:
    steps.score_night(tonight.stream, tonight.date.isoformat())


@pytest.mark.parametrize("images", [0, 1])
def test_a_night_of_few_images(outcome, images):
    result = outcome(f"night of {images} images")
    tonight = night.make(images=images, broken=0)
    _score(tonight)
    result.add(evidence.of_complete_night(tonight))
    assert result.is_clean


def test_unusual_names(outcome):
    result = outcome("unusual names")
    content = {name: synthetic_images.mould("spot", 90_000 + n) for n, name in enumerate(_NAMES)}
    tonight = night.of(content)
    _score(tonight)
    result.add(evidence.of_complete_night(tonight))
    assert result.is_clean


@pytest.mark.parametrize("character", ["\x01", "\x1b", "\x7f", "\ufffd"], ids=ascii)
def test_one_character_that_a_listing_cannot_show(outcome, character):
    """Alone: if a listing has other odd names too, it is read in another way."""
    result = outcome(f"a name with {character!a}")
    content = {f"a{character}{n}.png": synthetic_images.mould("spot", 92_000 + n) for n in range(3)}
    tonight = night.of(content)
    _score(tonight)
    result.add(evidence.of_complete_night(tonight))
    assert result.is_clean


def test_names_of_a_thousand_characters(outcome, at_endpoint):
    """Keys of 1,024 bytes, which is the longest that S3 allows.

    The local stack stores objects as files, whose names must be shorter, so the test uses another
    server.
    """
    result = outcome("names of 1,000 characters")
    folder = f"{configuration().stream(night.STREAM).prefix}/dt=2029-01-01/"
    length = 1024 - len(folder.removeprefix("s3://nightscore/")) - len(".png")
    names = ["x" * length + ".png", ("deep/" * length)[: length - 1] + "y.png"]
    with _memory_server() as endpoint:
        before = settings().s3_endpoint
        at_endpoint(endpoint)
        for bucket in ("nightscore", "mlflow"):
            ensure_bucket(bucket)
        content = {name: synthetic_images.mould("spot", 91_000 + n) for n, name in enumerate(names)}
        tonight = night.of(content)
        assert {len(uri.removeprefix("s3://nightscore/")) for uri in tonight.uris} == {1024}
        _score(tonight)
        result.add(evidence.of_complete_night(tonight))
        at_endpoint(before)
    assert result.is_clean


@contextmanager
def _memory_server() -> Iterator[str]:
    """An S3 server that keeps its objects in memory."""
    login = settings()
    keys = f"{login.s3_access_key},{login.s3_secret_key.get_secret_value()}"
    program = package_folder("rclone_api") / "bin" / "rclone"
    options = ("--addr", "127.0.0.1:0", "--config", "/dev/null")
    server = subprocess.Popen(
        [program, "serve", "s3", ":memory:", *options],
        env={"RCLONE_AUTH_KEY": f'"{keys}"'},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "http://127.0.0.1:" in line)
        yield line[line.index("http://") :].split("/]")[0].strip().rstrip("/]")
    finally:
        server.kill()
        server.wait()
