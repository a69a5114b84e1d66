"""CIFAR-10 from a server on this machine, in an archive of the same layout."""

import hashlib
import io
import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

import ml
from ml.data import cifar10
from ml.errors import ServiceError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
LABELS = np.arange(60, dtype=np.uint8) % 10


def _archive() -> bytes:
    """Ten images a batch; the batches in another order than they are numbered."""
    batches = {f"data_batch_{number + 1}.bin": number for number in (3, 0, 4, 1, 2)}
    files = {"batches.meta.txt": "\n".join(CLASSES).encode() + b"\n\n", "readme.html": b"<html>"}
    for name, number in (batches | {"test_batch.bin": 5}).items():
        part = slice(10 * number, 10 * number + 10)
        pixels = IMAGES[part].transpose(0, 3, 1, 2).reshape(10, -1)
        files[name] = np.column_stack([LABELS[part], pixels]).tobytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVE = _archive()
Answer = Callable[[BaseHTTPRequestHandler], None]


def _send(request: BaseHTTPRequestHandler, content: bytes, length: int | None = None) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content) if length is None else length))
    request.end_headers()
    request.wfile.write(content)


def whole(request: BaseHTTPRequestHandler) -> None:
    _send(request, ARCHIVE)


def cut_short(request: BaseHTTPRequestHandler) -> None:
    _send(request, ARCHIVE[:1000], length=len(ARCHIVE))


def other_content(request: BaseHTTPRequestHandler) -> None:
    _send(request, b"something else")


def not_found(request: BaseHTTPRequestHandler) -> None:
    request.send_error(404)


def moved(request: BaseHTTPRequestHandler) -> None:
    request.send_response(301)
    request.send_header("Location", "/elsewhere.tar.gz")
    request.end_headers()


@contextmanager
def _server(answers: Iterator[Answer]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            next(answers)(self)

        def log_message(self, template: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def served(monkeypatch):
    """Lets the download find a server that gives these answers, one after the other."""

    @contextmanager
    def serve(*answers: Answer) -> Iterator[None]:
        with _server(iter(answers)) as url:
            monkeypatch.setattr(cifar10, "URL", url)
            monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(ARCHIVE).hexdigest())
            yield

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return serve


def test_each_image_is_written_under_its_split_and_class(served, tmp_path):
    with served(whole):
        folder = cifar10.download(tmp_path)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert len(files) == 60
    for at, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        split, index = ("train", at) if at < 50 else ("test", at - 50)
        path = folder / split / CLASSES[label] / f"{index:05}.png"
        assert np.array_equal(np.asarray(Image.open(path)), image), path


def test_a_moved_archive_is_followed_and_a_broken_transfer_is_tried_again(served, tmp_path):
    with served(moved, cut_short, moved, whole):
        folder = cifar10.download(tmp_path)
    assert len(list(folder.rglob("*.png"))) == 60


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([not_found], "404"),
        ([other_content], "SHA-256"),
        ([cut_short] * 3, "cannot be downloaded"),
    ],
    ids=["missing", "changed", "cut short"],
)
def test_what_is_not_cifar10_is_refused(served, tmp_path, answers, message):
    with served(*answers), pytest.raises(ServiceError, match=message) as caught:
        cifar10.download(tmp_path)
    assert "nightscore dataset import" in caught.value.hint
    assert not list(tmp_path.rglob("*.png"))


def test_the_time_limit_of_other_sockets_is_left_alone(served, tmp_path):
    limits = []

    def note(request: BaseHTTPRequestHandler) -> None:
        limits.append(socket.getdefaulttimeout())
        whole(request)

    with served(note):
        cifar10.download(tmp_path)
    assert limits == [None]


def test_no_module_needs_torchvision():
    """It is installed for development only."""
    for path in Path(ml.__file__).parent.rglob("*.py"):
        assert "torchvision" not in path.read_text(encoding="utf-8"), path
