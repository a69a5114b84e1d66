"""Downloads of many objects, from the real S3 server."""

import itertools
import socket
import threading

import pytest

from ml.errors import ServiceError
from ml.settings import Settings
from ml.storage import clients
from ml.storage.download import CONNECTIONS, DownloadRequest, download
from ml.storage.object_store import ObjectStore, object_store


def _requests(uris: dict[str, bytes]) -> list[DownloadRequest[str]]:
    return [DownloadRequest(uri, uri, len(content), "") for uri, content in uris.items()]


def _put(objects: dict[str, bytes]) -> dict[str, str]:
    return {uri: object_store().put(uri, content) for uri, content in objects.items()}


def test_every_object_arrives_once_with_its_etag(bucket):
    objects = {f"{bucket}/{number:04}.bin": b"%d" % number * 300 for number in range(500)}
    etags = _put(objects)
    results = list(download(object_store(), _requests(objects)))
    assert len(results) == 500
    assert {key: content for key, content, _ in results} == objects
    assert {key: etag for key, _, etag in results} == etags


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "ü/ö.jpg",
        "100%.jpg",
        "%41.jpg",
        "a+b&c=d?e#f.jpg",
        "x" * 200,
        "q'\"<>.jpg",
        "n~(1)*!",
    ],
)
def test_names_that_a_url_would_change(bucket, name):
    objects = {f"{bucket}/{name}": name.encode()}
    etags = _put(objects)
    (result,) = download(object_store(), _requests(objects))
    assert (result.content, result.etag) == (name.encode(), etags[result.key])


def test_what_is_gone_comes_without_content_and_the_others_arrive(bucket):
    objects = {f"{bucket}/{number}": bytes([number]) for number in range(40)}
    _put(objects)
    missing = {f"{bucket}/none/{number}": b"" for number in range(3)}
    contents = {
        key: content for key, content, _ in download(object_store(), _requests(objects | missing))
    }
    assert contents == objects | dict.fromkeys(missing)


def test_an_empty_and_a_large_object(bucket):
    objects = {f"{bucket}/empty": b"", f"{bucket}/large": bytes(range(256)) * 2**19}
    _put(objects)
    assert {
        key: content for key, content, _ in download(object_store(), _requests(objects))
    } == objects


def test_no_request(bucket):
    assert list(download(object_store(), [])) == []


def test_it_reads_only_a_bounded_way_ahead_and_can_be_closed(bucket):
    uri = f"{bucket}/one"
    object_store().put(uri, b"content")
    numbers = itertools.count()
    results = download(
        object_store(), (DownloadRequest(next(numbers), uri, 7, "") for _ in range(10_000))
    )
    for _ in range(5):
        next(results)
    results.close()
    assert next(numbers) < 5 + 4 * CONNECTIONS + 64


def test_a_connection_cut_in_mid_body_is_tried_again_by_itself(bucket):
    """A proxy before the server cuts each first answer in half; the second try arrives whole."""
    objects = {f"{bucket}/{number}": b"x" * 20_000 for number in range(5)}
    _put(objects)
    with _CuttingProxy(object_store().settings.s3_endpoint) as proxy:
        store = _store_at(f"http://127.0.0.1:{proxy.port}")
        contents = {key: content for key, content, _ in download(store, _requests(objects))}
    assert contents == objects
    assert proxy.cut > 0


def test_an_outage_is_an_error_that_names_the_store(bucket, monkeypatch):
    options = clients.s3_options
    monkeypatch.setattr(
        clients,
        "s3_options",
        lambda settings: options(settings) | {"retry_config": {"max_retries": 0}},
    )
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        store = _store_at(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(ServiceError, match="object store failed at s3://nightscore/x"):
            list(download(store, [DownloadRequest(0, "s3://nightscore/x", 1, "")]))


def test_wrong_credentials_are_an_error(bucket):
    uri = f"{bucket}/one"
    object_store().put(uri, b"content")
    store = _store_at(object_store().settings.s3_endpoint, secret="wrong" * 8)
    with pytest.raises(ServiceError):
        list(download(store, [DownloadRequest(0, uri, 1, "")]))


def _store_at(endpoint: str, secret: str = "") -> ObjectStore:
    current = object_store().settings
    return ObjectStore(
        Settings(
            AWS_ENDPOINT_URL=endpoint,
            AWS_ACCESS_KEY_ID=current.s3_access_key,
            AWS_SECRET_ACCESS_KEY=secret or current.s3_secret_key.get_secret_value(),
        )
    )


class _CuttingProxy:
    """Passes bytes on to a server, and cuts the first answers of more than 4 kB in half."""

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self.server = (host, int(port))
        self.cut = 0

    def __enter__(self) -> "_CuttingProxy":
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.server) as server:
            threading.Thread(target=self._copy, args=(client, server), daemon=True).start()
            while block := server.recv(65536):
                if self.cut < 3 and len(block) > 4096:
                    self.cut += 1
                    client.sendall(block[: len(block) // 2])
                    client.shutdown(socket.SHUT_RDWR)  # the other thread still reads from it
                    return
                client.sendall(block)

    def _copy(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while block := client.recv(65536):
                server.sendall(block)
        except OSError:
            pass
