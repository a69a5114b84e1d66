"""The pattern that takes a camera out of a key, and what it does with keys from outside."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.config.key_pattern import GROUPS, MAX_NAME_LENGTH, CameraName, KeyPattern, camera_name
from ml.config.loading import load
from ml.errors import ConfigurationError

CONFIGURATION = """\
storage: s3://nightscore
streams:
  hall:
    prefix: s3://nightscore/hall
    models: [moulds]
    key_pattern: '{pattern}'
models:
  moulds:
    task: anomaly
    dataset: moulds
    architecture: anomaly_segmenter
    input_size: [32, 32]
    training:
      cpu: {{epochs: 1, batch_size: 8, learning_rate: 0.1}}
"""


def _name(pattern: str, key: str) -> CameraName | None:
    match = KeyPattern(pattern).search(key)
    return None if match is None else camera_name(match)


@pytest.mark.parametrize(
    ("pattern", "key", "name"),
    [
        (r"(?P<camera>cam-\d+)/", "hall/cam-07/1.jpg", ("cam-07", "", "")),
        (r"^(?P<camera>[^/]+)/", "cam-07/1.jpg", ("cam-07", "", "")),
        (r"l(?P<line>\d+)/(?P<camera>\w+)/(?P<product>\w+)", "l2/c7/mug/1", ("c7", "2", "mug")),
        # The groups are named, so their order is free.
        (r"(?P<product>\w+)/(?P<camera>\w+)", "mug/c7/1.jpg", ("c7", "", "mug")),
        (r"(?<camera>[^/]+)", "ünï 中文/1.jpg", ("ünï 中文", "", "")),
        # A group that takes no part, or matches nothing, is empty.
        (r"(?:l(?P<line>\d+)/)?(?P<camera>c\d)", "c7/1.jpg", ("c7", "", "")),
        (r"(?P<line>\d*)/(?P<camera>c\d)", "/c7/1.jpg", ("c7", "", "")),
        # No camera: no match, no text, too long a text, or one that cannot be printed.
        (r"(?P<camera>cam-\d+)/", "hall/1.jpg", None),
        (r"(?P<camera>[^/]*)/", "/1.jpg", None),
        (r"(?P<camera>[^/]*)/", f"{'x' * (MAX_NAME_LENGTH + 1)}/1.jpg", None),
        (r"(?P<camera>[^/]*)/", "c\n7/1.jpg", None),
        (r"(?P<camera>[^/]*)/", "c\x007/1.jpg", None),
        (r"(?P<camera>[^/]*)/", "c\u202e7/1.jpg", None),
        (r"(?P<camera>\w+)/(?P<line>.*)", f"c7/{'x' * 101}", None),
    ],
)
def test_what_a_pattern_finds(pattern, key, name):
    assert _name(pattern, key) == name


@given(st.text(max_size=1024))
def test_no_key_makes_the_search_fail_and_a_name_can_be_stored(key):
    for pattern in (r"(?P<camera>.*)", r"(?s)(?P<camera>.*)(?P<line>.*)", r"(?P<camera>(.|\n)*)x"):
        name = _name(pattern, key)
        if name is not None:
            assert all("\x00" not in text and text.encode() is not None for text in name)
            assert name.camera and all(len(text) <= MAX_NAME_LENGTH for text in name)


def test_a_pattern_that_would_take_a_backtracking_engine_for_ever_answers():
    # Python's re needs more than 2 ** 1000 steps for it.
    assert _name(r"^(?P<camera>(a+)+)$", "a" * 1023 + "!") is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("cam-[0-9]+", "has no group camera"),
        ("(?P<line>x)", "has no group camera"),
        ("(?P<camera>x)(?P<hall>y)", "has the group 'hall'"),
        ("(?P<camera>x)|(?P<camera>y)", "has the group 'camera' twice"),
        ("(?P<camera>x", "missing )"),
        ("(?P<camera>x)(?=y)", "invalid perl operator"),
        (r"(?P<camera>x)\1", "invalid escape sequence"),
        ("(?P<camera>x{1001})", "invalid repetition"),
        (f"(?P<camera>{'x' * 500})", "500 at most"),
        ("", "has no group camera"),
    ],
)
def test_a_pattern_that_is_none_is_refused_with_line_pattern_and_groups(tmp_path, pattern, message):
    path = tmp_path / "nightscore.yaml"
    path.write_text(CONFIGURATION.format(pattern=pattern))
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:6: streams.hall.key_pattern: ")
    assert message in text
    assert repr(pattern)[:100] in text
    assert all(group in text for group in GROUPS) or "at most" in text


def test_a_stream_has_a_pattern_or_none(tmp_path):
    path = tmp_path / "nightscore.yaml"
    path.write_text(CONFIGURATION.format(pattern="(?P<camera>x)"))
    assert load(path).stream("hall").key_pattern == "(?P<camera>x)"
    path.write_text(CONFIGURATION.replace("    key_pattern: '{pattern}'\n", "").format())
    assert load(path).stream("hall").key_pattern is None


def test_re2_is_loaded_only_for_a_stream_that_has_a_pattern(tmp_path):
    path = tmp_path / "nightscore.yaml"
    code = (
        "import pathlib, sys; from ml.config.loading import load;"
        "load(pathlib.Path(sys.argv[1])); print('re2' in sys.modules)"
    )
    with_pattern = CONFIGURATION.format(pattern="(?P<camera>x)")
    without = CONFIGURATION.replace("    key_pattern: '{pattern}'\n", "").format()
    for text, loaded in ((with_pattern, "True"), (without, "False")):
        path.write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == loaded
        assert done.stderr == ""
