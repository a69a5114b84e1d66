"""Hostile configuration files: a valid Configuration comes out, or a ConfigurationError of a
bounded length; in bounded time and memory."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.config.loading import MAX_BYTES, load
from ml.config.schema import Configuration
from ml.errors import ConfigurationError

OWN = (Path(__file__).parents[2] / "nightscore.yaml").read_text(encoding="utf-8")
# Twenty mistakes of two texts of 300 letters each.
MOST_LETTERS = 20_000

# Values that may stand in any place of the file.
VALUES = (
    "", "~", "0", "-1", "1e400", "-.inf", ".nan", "9" * 30, "9" * 5000, "0x" + "f" * 500, "-0x" + "f" * 5000,
    "[]", "{}", "[[[[1]]]]", "{a: {b: c}}", "true", "2026-01-01", "2026-13-45", "12:30:45", "!!binary aGk=",
    "!!python/object/apply:os.system ['touch pwned']", "!!python/name:os.system", "!!set {a, b}", "!!int abc",
    "!!float x", "!!timestamp no", "!unknown x", "!!omap [a: 1]", "&a [*a]", "&a {b: *a}", "*none", "<<: 1",
    "'" + "x" * 5000 + "'", '"\\0"', '"\\n\\r\\u2028\\e[2J"', '"\\ud800"', "|\n  text", "? complex", "- a", "%", "@", "`",
    "'0 0 1-99999999 * *'", "'*/99999999999 * * * *'", "'" + "1," * 5000 + "1 * * * *'", "s3://", "s3://a/../b",
    "../../etc/passwd", "'{{ 7*7 }}'", "[1, 2, 3]", "[1e9, 1e9]", "[-5, 8]", "{cpu: 1}",
)  # fmt: skip


def laughs(levels: int) -> str:
    return OWN + "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, levels)
    )  # fmt: skip


# Whole files, with the words that the message must hold.
FILES: dict[str, tuple[bytes | str, str]] = {
    "empty": ("", "holds no settings"),
    "a list": ("- a\n- b\n", "holds no settings"),
    "a text": ("hello", "holds no settings"),
    "two documents": (OWN + "\n---\n" + OWN, "not valid YAML"),
    "binary": (bytes(range(256)), "not valid YAML"),
    "zeros": (bytes(5000), "not valid YAML"),
    "UTF-16": (OWN.encode("utf-16"), "not valid YAML"),
    "Latin-1": ("storage: s3://é".encode("latin-1"), "not valid YAML"),
    "NUL": (OWN.replace("storage", "sto\0rage", 1), "not valid YAML"),
    "escape": (OWN.replace("storage", "sto\x1brage", 1), "not valid YAML"),
    "billion laughs": (laughs(40), "more than 20000 values"),
    "billion laughs of mappings": (
        "a0: &a0 {x: y}\n" + "".join(f"a{n}: &a{n} {{b: *a{n - 1}, c: *a{n - 1}}}\n" for n in range(1, 40)),
        "more than 20000 values",
    ),
    "merges": (
        "a0: &a0 {x: y}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], c{n}: 1}}\n" for n in range(1, 300)),
        "more than 20000 values",
    ),
    "deep flow": ("a: " + "[" * 60_000, "brackets and commas"),
    "deep flow within the limit": ("a: " + "[" * 9000 + "]" * 9000, "in each other"),
    "deep block": ("a:\n" + "".join(" " * n + "a:\n" for n in range(1, 450)), "not valid YAML"),
    "dashes": ("- " * 60_000, "not valid YAML"),
    "long list": ("a: [" + "1," * 60_000 + "]", "brackets and commas"),
    "many keys": ("".join(f"k{n}: {n}\n" for n in range(10_000)), "more mistakes"),
    "huge": ("#" * (MAX_BYTES + 1), "more than 131072 bytes"),
    "duplicate keys": (OWN + "\nstorage: s3://other\n", "duplicate key"),
    "python": ("storage: !!python/object/apply:os.system ['touch pwned']\n", "storage"),
    "huge number": (OWN.replace("epochs: 8", "epochs: 0x" + "f" * 500, 1), "2000 bits"),
    "negative huge number": (OWN.replace("epochs: 8", "epochs: -0x" + "f" * 500, 1), "2000 bits"),
    "infinite": (OWN.replace("minimum: 0.5", "minimum: .inf", 1), "gate.minimum: is inf"),
    "no number": (OWN.replace("minimum: 0.5", "minimum: .nan", 1), "gate.minimum: is nan"),
    "infinite option": (OWN.replace("width: 16", "width: -.inf", 1), "options.width: is -inf"),
    "date as option": (OWN.replace("width: 16", "width: 2026-01-01", 1), "options.width: is of type"),
    "tag as option": (OWN.replace("width: 16", "width: !!python/name:os.system x", 1), "options.width: is of type"),
    "newline in a key": (OWN + '\n"a\\nb": 1\n', "a?b: unknown key"),
    "long value": (OWN.replace("s3://nightscore ", "'" + "x" * 50_000 + "'", 1), "storage"),
    "long cron": (OWN.replace('"0 2 * * *"', "'" + "1," * 5000 + "1 * * * *'", 1), "cron expression"),
}  # fmt: skip


def outcome(path: Path) -> str:
    """The message of the refusal, "" when there is none; nothing else may be raised."""
    try:
        assert isinstance(load(path), Configuration)
    except ConfigurationError as error:
        message = str(error)
        assert len(message) < MOST_LETTERS
        assert all(line.isprintable() for line in message.split("\n")), message
        return message
    return ""


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_explained(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, words = FILES[name]
    path = tmp_path / "nightscore.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = outcome(path)
    assert words in message and str(path) in message, message
    assert list(tmp_path.iterdir()) == [path]


def test_a_byte_order_mark_is_read_over_and_a_list_of_200_streams_is_no_bomb(tmp_path):
    path = tmp_path / "nightscore.yaml"
    path.write_text("\ufeff" + OWN, encoding="utf-8")
    assert outcome(path) == ""
    stream = "  s{}: {{prefix: s3://bucket/s{}, models: [spill-anomaly]}}\n"
    many = "".join(stream.format(number, number) for number in range(200))
    path.write_text(OWN.replace("streams:\n", "streams:\n" + many, 1), encoding="utf-8")
    assert len(load(path).streams) == 202


def test_what_is_no_readable_file_is_explained(tmp_path):
    with pytest.raises(ConfigurationError, match="is not a file"):
        load(tmp_path)
    with pytest.raises(ConfigurationError, match="is not a file"):
        load(Path("/dev/zero"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(Path("/proc/self/mem"))


LINES = OWN.splitlines()
PLACES = [
    number
    for number, line in enumerate(LINES)
    if ": " in line and not line.lstrip().startswith("#")
]


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """The repository's file with values, lines or bytes of it changed."""
    lines = list(LINES)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(PLACES))
        key = lines[place].split(":", 1)[0]
        lines[place] = f"{key}: {draw(st.sampled_from(VALUES))}"
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(("removed", "doubled", "indented", "inserted")))
        if how == "removed":
            lines[place] = ""
        elif how == "doubled":
            lines.insert(place, lines[place])
        elif how == "indented":
            lines[place] = " " * draw(st.integers(0, 9)) + lines[place].lstrip()
        else:
            lines.insert(place, draw(st.text(max_size=40)))
    content = bytearray("\n".join(lines).encode("utf-8", "surrogatepass"))
    generator = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.sampled_from((0, 0, 1, 5)))):
        content[generator.randrange(len(content))] = generator.randrange(256)
    return bytes(content)


@given(files())
@settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
def test_any_change_of_the_file_gives_a_configuration_or_an_explanation(tmp_path, content):
    path = tmp_path / "nightscore.yaml"
    path.write_bytes(content)
    assert outcome(path) == outcome(path)  # and nothing else is raised


@pytest.mark.parametrize("place", PLACES)
def test_a_wrong_value_in_every_place_is_explained(tmp_path, place):
    path = tmp_path / "nightscore.yaml"
    # Each value stands in a third of the places.
    for value in VALUES[place % 3 :: 3]:
        lines = list(LINES)
        lines[place] = f"{lines[place].split(':', 1)[0]}: {value}"
        path.write_text("\n".join(lines), encoding="utf-8")
        message = outcome(path)
        assert not message or str(path) in message


def test_every_hostile_file_stays_within_memory(tmp_path):
    for number, (content, _) in enumerate(FILES.values()):
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / f"{number}.yaml").write_bytes(content)
    code = """
import sys
from pathlib import Path
from ml.config.loading import load
from ml.errors import ConfigurationError
from tests.hostile.child import peak_bytes
before = peak_bytes()
for path in Path(sys.argv[1]).iterdir():
    try:
        load(path)
    except ConfigurationError:
        pass
print(peak_bytes() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 300 * 2**20
