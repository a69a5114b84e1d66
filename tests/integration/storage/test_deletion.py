"""Objects are deleted a thousand with a request, from the real S3 server."""

from ml.settings import settings
from ml.storage.object_store import object_store
from tests.support.proxy import HttpRequest, Proxy


def _left(folder: str) -> list[str]:
    return [info.uri for page in object_store().list_pages(folder) for info in page]


def test_a_thousand_objects_go_with_one_request_and_those_that_are_gone_are_no_error(
    bucket, at_endpoint
):
    folder = f"{bucket}/a"
    uris = [f"{folder}/{number:04}.jpg" for number in range(1100)]
    for uri in uris[::2]:
        object_store().put(uri, b"x")
    kept = object_store().put(f"{bucket}/ab/kept.jpg", b"x")
    asked: list[tuple[str, str]] = []

    def record(request: HttpRequest) -> None:
        asked.append((request[0], request[1]))

    with Proxy(settings().s3_endpoint, record) as proxy:
        at_endpoint(proxy.url)
        object_store().delete(uris)
    assert [method for method, _ in asked] == ["POST", "POST"]
    assert _left(folder) == []
    assert kept and _left(f"{bucket}/ab") == [f"{bucket}/ab/kept.jpg"]


def test_nothing_to_delete_asks_nothing(bucket, at_endpoint):
    asked: list[HttpRequest] = []
    with Proxy(settings().s3_endpoint, asked.append) as proxy:
        at_endpoint(proxy.url)
        object_store().delete([])
        assert asked == []
        object_store().delete([f"{bucket}/none.jpg"])
        assert len(asked) == 1
