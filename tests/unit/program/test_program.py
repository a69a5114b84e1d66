"""Loading a program: what is read of its file, and what its outputs must be."""

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ml.errors import DataError, ServiceError
from ml.program import archive_check
from ml.program.info import ANOMALY, CLASSIFICATION, ProgramInfo, sha256
from ml.program.precision import TOLERANCE
from ml.program.program import Program
from ml.program.program_file import export

SIZE = (16, 16)


class _Means(torch.nn.Module):
    """Shares of three colours, changed in the end."""

    def __init__(self, change=lambda shares: shares) -> None:
        super().__init__()
        self.change = change

    def forward(self, pixels):
        return self.change((pixels.float().mean((2, 3)) / 50).softmax(1))


class _Map(torch.nn.Module):
    def __init__(self, change=lambda heat: heat) -> None:
        super().__init__()
        self.change = change

    def forward(self, pixels):
        heat = pixels[:, 0, ::2, ::2].float() / 255
        return heat.mean((1, 2)), self.change(heat)


def _export(network: torch.nn.Module, path: Path, **other) -> ProgramInfo:
    export(network, path, SIZE)
    classes = ("a", "b", "c") if isinstance(network, _Means) else ("normal", "anomalous")
    task = CLASSIFICATION if isinstance(network, _Means) else ANOMALY
    threshold = 0.5 if task == ANOMALY else None
    info = ProgramInfo("m", 1, task, classes, SIZE, threshold, sha256(path))
    return replace(info, **other)


def _has_reader(pipe: Path) -> bool:
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def test_the_file_is_read_once_so_nobody_can_change_it_between_check_and_use(tmp_path):
    """A pipe gives its content to the first reader only."""
    whole = tmp_path / "whole.pt2"
    info = _export(_Means(), whole)
    path = tmp_path / "model.pt2"
    os.mkfifo(path)
    opened = []

    def write() -> None:
        for content in (whole.read_bytes(), b"something else"):
            # The last of them is not read.
            with suppress(BrokenPipeError), path.open("wb") as pipe:
                opened.append(content)
                pipe.write(content)
            while _has_reader(path):
                time.sleep(0.01)

    threading.Thread(target=write, daemon=True).start()
    program = Program.load(path, info, "cpu")
    assert program.predict(torch.zeros(1, 3, *SIZE, dtype=torch.uint8).numpy()).probabilities.size
    assert len(opened) == 1
    path.open("rb").close()  # lets the thread end


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_check, "MAX_FILE_BYTES", 2**20)
    path = tmp_path / "model.pt2"
    info = _export(_Means(), path)
    os.truncate(path, 2**40)  # a sparse file, larger than the memory
    with pytest.raises(DataError, match=f"more than {archive_check.MAX_FILE_BYTES} bytes"):
        Program.load(path, info, "cpu")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    info = _export(_Means(), tmp_path / "model.pt2")
    with pytest.raises(ServiceError, match=r"m/1 cannot be read: .*nowhere\.pt2"):
        Program.load(tmp_path / "nowhere.pt2", info, "cpu")


def test_a_program_for_one_number_of_images_is_refused(tmp_path):
    path = tmp_path / "model.pt2"
    info = _export(_Means(), path)
    for count in (1, 2, 3):
        # Without dynamic shapes the number of images of the example is the program's.
        example = torch.zeros(count, 3, *SIZE, dtype=torch.uint8)
        torch.export.save(torch.export.export(_Means(), (example,)), path)
        with pytest.raises(DataError, match=r"does not take [13] uint8 images of 16 x 16"):
            Program.load(path, replace(info, sha256=sha256(path)), "cpu")


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (_Means(lambda shares: shares * 2 - 1), r"probabilities that are not all in \[0, 1\]: -"),
        (_Means(lambda shares: shares / 0), r"not all in \[0, 1\]: inf"),
        (_Means(lambda shares: shares * float("nan")), r"not all in \[0, 1\]: nan"),
        (_Means(lambda shares: shares.argsort()), "type int64 for 3 images"),
        (_Means(lambda shares: shares[:1]), r"of shape \(1, 3\)"),
        (_Map(lambda heat: heat + 1), r"anomaly_maps that are not all in \[0, 1\]"),
        (_Map(lambda heat: heat.mean(1)), r"anomaly_maps of shape \(3, 8\)"),
    ],
)
def test_outputs_that_are_not_those_of_the_task_are_refused(network, reason, tmp_path):
    path = tmp_path / "model.pt2"
    info = _export(network, path)
    with pytest.raises(DataError, match=reason):
        Program.load(path, info, "cpu")


def test_what_fits_is_loaded(tmp_path):
    for network in (_Means(), _Map()):
        path = tmp_path / f"{type(network).__name__}.pt2"
        info = _export(network, path)
        assert Program.load(path, info, "cpu").info == info


def test_a_class_is_computed_again_where_an_error_of_both_best_could_change_it():
    error, third = TOLERANCE["bfloat16"], np.full(3, 1 / 3, dtype=np.float32)
    rows = [(0.5 + part * error, 0.5 - part * error, 0) for part in (0.9, 1.1)]
    quick = np.array([*rows, rows[0][::-1], rows[1][::-1]], dtype=np.float32)
    computed_again: list[int] = []

    def compute_quickly(pixels, map_threshold):
        return (quick.copy(),)

    def compute_again(pixels):
        computed_again.extend(pixels[:, 0, 0, 0].tolist())
        return (np.tile(third, (len(pixels), 1)),)

    compute_quickly.precision = "bfloat16"

    info = ProgramInfo("m", 1, CLASSIFICATION, ("a", "b", "c"), SIZE, None, "")
    program = Program(compute_quickly, info, "cpu", compute_again)
    pixels = np.zeros((4, 3, *SIZE), dtype=np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]  # fmt: skip
    probabilities = program.predict(pixels).probabilities
    assert computed_again == [0, 2]
    assert np.array_equal(probabilities, [third, quick[1], third, quick[3]])
