"""Hostile images through the real engine: each is scored or rejected with a reason, twice the same,
in bounded time and memory."""

import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.hostile.child import outcomes, programs
from tests.hostile.corpus import MUTATIONS, NO_IMAGES, SUFFIXES, Input, bases, corpus
from tests.hostile.run import MOST_BYTES, Run, lines, table

# `make hostile` has 20,000.
INPUTS = 2_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def versions(folder):
    return programs(folder)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A name and a file: one of those there are, after a chain of mutations."""
    generator = random.Random(draw(st.integers(0, 2**32)))
    content = bases()[draw(st.sampled_from(list(bases())))]
    for name in draw(st.lists(st.sampled_from(list(MUTATIONS)), max_size=4)):
        try:
            content = MUTATIONS[name](generator, content)
        except (IndexError, struct.error):
            break  # what the mutation changes was broken by the one before
    return f"image.{draw(st.sampled_from(SUFFIXES))}", content


@given(st.lists(files(), min_size=1, max_size=8))
@settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
def test_any_images_are_scored_or_rejected_with_a_reason_and_the_same_on_a_retry(versions, drawn):
    # `outcomes` holds what must be true of each; it raises otherwise.
    assert len(outcomes(drawn, versions)) == len(drawn)


@given(st.binary(max_size=200))
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
def test_any_bytes_are_scored_or_rejected(versions, content):
    assert len(outcomes([("image.jpg", content)], versions)) == 1


def test_an_image_s_neighbours_do_not_change_what_becomes_of_it(versions):
    drawn = [(file.name, file.content) for file in corpus(1, 200, bombs=False)]
    together = outcomes(drawn, versions)
    assert together[::-1] == outcomes(drawn[::-1], versions)
    assert {reason for reason, _ in together} >= {
        "",
        "truncated",
        "not_an_image",
        "too_many_pixels",
    }


def test_thousands_of_hostile_inputs_neither_crash_nor_hang_nor_balloon(versions, folder, tmp_path):
    figures = Run(folder, tmp_path).all(corpus(0, INPUTS))
    console = Console(width=150)
    console.print(table(figures))
    console.print(lines(figures), highlight=False)
    assert not figures.failures + figures.crashes + figures.hangs
    assert figures.tried == figures.outcomes.total() == INPUTS
    assert figures.peak_bytes < figures.start_bytes + MOST_BYTES
    mutations = {mutation for mutation, _ in figures.outcomes}
    assert mutations == {*MUTATIONS, "bomb", "no image"}
    scored = sum(count for (_, reason), count in figures.outcomes.items() if not reason)
    assert INPUTS / 5 < scored < INPUTS / 2


@pytest.mark.parametrize(
    ("what", "found"),
    [("os.kill(os.getpid(), 11)", "crashes"), ("time.sleep(600)", "hangs"), ("1 / 0", "failures")],
)
def test_a_crash_a_hang_and_an_error_are_noticed_and_the_file_is_kept(
    versions, folder, tmp_path, monkeypatch, what, found
):
    """The one good file behind the bad one is scored, by another process where it must."""
    monkeypatch.setattr("tests.hostile.run.HANG_WALL_S", 5.0)
    monkeypatch.setenv("HOSTILE_TEST", what)
    bad = Input("bad.jpg", "none", "as it is", b"crash me")
    good = Input("good.jpg", "jpeg", "as it is", bases()["jpeg"])
    figures = Run(folder, tmp_path).all([bad, good])
    assert {name: len(getattr(figures, name)) for name in ("crashes", "hangs", "failures")} == {
        "crashes": 0, "hangs": 0, "failures": 0, found: 1,
    }  # fmt: skip
    assert (tmp_path / "bad.jpg").read_bytes() == b"crash me"
    assert dict(figures.outcomes) == {("as it is", ""): 1}


def test_ordinary_files_are_scored(versions):
    """The limits are for hostile files: every ordinary one passes, but for those without a range."""
    names = list(bases())
    found = outcomes([("image.jpg", bases()[name]) for name in names], versions)
    refused = {name: reason for name, (reason, _) in zip(names, found, strict=True) if reason}
    assert refused == {
        "tiff 32 bit": "unsupported",
        "tiff float": "unsupported",
        "gif frame outside": "truncated",  # the frame says 5 x 6 pixels, and holds one
    }


def test_the_corpus_is_the_same_for_a_seed_and_names_everything():
    first, second, other = (list(corpus(seed, 300, bombs=False)) for seed in (7, 7, 8))
    assert first == second != other and len(first) == 300
    assert {file.base for file in corpus(0, 2000, bombs=False)} == {*bases(), *NO_IMAGES}
