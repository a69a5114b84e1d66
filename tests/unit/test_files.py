"""Files are whole or not there, and what killed processes have left goes away."""

import os
import time

import pytest

from ml.files import atomic_path, atomic_write, scratch_folder


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "file.bin"
    for content in (b"first", b"second"):
        atomic_write(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file.bin"
    atomic_write(path, b"whole")
    with pytest.raises(OSError, match="full"), atomic_path(path) as partial:
        partial.write_bytes(b"ha")
        raise OSError("full")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_scratch_folder_of_a_killed_process_is_deleted_but_not_one_in_use(tmp_path):
    old = time.time() - 7200
    for name in ("partial-killed", "partial-slow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.bin").touch()
        os.utime(tmp_path / name, (old, old))
    os.utime(tmp_path / "partial-killed" / "file.bin", (old, old))
    with scratch_folder(tmp_path) as scratch:
        (scratch / "file.bin").touch()
        remaining = {path.name for path in tmp_path.iterdir()}
        assert remaining == {"partial-slow", scratch.name}
    assert not scratch.exists()
