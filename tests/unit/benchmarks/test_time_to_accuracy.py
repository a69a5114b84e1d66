"""The benchmark of the time to an accuracy: its ladder, and what airbench is given to read."""

import json

import pytest
import torch

from benchmarks.models import time_to_accuracy
from benchmarks.peers import airbench_cifar
from ml.data import samples
from ml.training.data import Split, Splits


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Synthetic images, in the place of CIFAR-10."""
    folder = tmp_path_factory.mktemp("data")
    samples.write(folder)
    return folder


def test_the_ladder_rises_and_has_what_the_peers_are_made_for():
    rungs = list(time_to_accuracy.LADDER.values())
    assert rungs == sorted(rungs)
    assert all(f"width-{w}-epochs-{e}" in time_to_accuracy.LADDER for w, e in rungs)
    names = time_to_accuracy.names()
    assert names[0] == "width-48-epochs-8/0" and names[-1] == "airbench-96/0"
    assert len(set(names)) == len(names)


def test_airbench_gets_the_same_images_in_the_form_that_it_reads(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(6)
    train, test = (Split(pixels[:n].numpy(), labels[:n].numpy(), ()) for n in (6, 2))
    airbench_cifar.write(Splits(("a", "b"), train, test, test), tmp_path)
    train = torch.load(tmp_path / "cifar10" / "train.pt")
    assert train["images"].shape == (6, 32, 32, 3) and train["images"].is_contiguous()
    assert train["images"][4, 7, 9].tolist() == pixels[4, :, 7, 9].tolist()
    assert train["labels"].tolist() == labels.tolist() and train["classes"] == ["a", "b"]
    assert len(torch.load(tmp_path / "cifar10" / "test.pt")["labels"]) == 2


def test_it_trains_from_all_training_images_and_names_what_it_leaves_out(data, tmp_path):
    runs = ["width-48-epochs-8/0", "airbench-94/0"]
    ours, theirs = time_to_accuracy.measured(runs, data, "cpu", tmp_path, quick=True)
    json.dumps(ours)
    assert ours["part"] == "time-to-accuracy/width-48-epochs-8/0"
    assert ours["images"]["train"] == 10 * len(samples.SHAPES)  # none is held out
    figures = ours["figures"]
    assert figures["train_seconds"] > 0 and 0 <= figures["accuracy"] <= 1
    assert figures["seconds_to_0.96"] is None or figures["accuracy"] >= 0.96
    assert theirs["part"] == "airbench" and theirs["left_out"]
    assert (tmp_path / "cifar10" / "train.pt").exists()


def test_a_training_that_fails_is_named_and_ends_nothing():
    def fail() -> dict:
        raise RuntimeError("no compiler")

    found = time_to_accuracy._attempt("airbench-94/0", fail)
    assert found["failed"] == "RuntimeError: no compiler"
    assert found["part"] == "time-to-accuracy/airbench-94/0"
