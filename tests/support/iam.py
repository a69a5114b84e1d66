"""The IAM actions and resources of a request to an S3 server."""

from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

_OBJECT = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "DELETE": "s3:DeleteObject"}


class Request(NamedTuple):
    """An action, its resource, and the address of the request, for messages."""

    action: str
    resource: str
    address: str


def requests(method: str, address: str, body: bytes) -> list[Request]:
    """The IAM requests of an HTTP request to /BUCKET/KEY: one per key that it is about."""
    parts = urlsplit(address)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = set(parse_qs(parts.query, keep_blank_values=True))
    arn, text = f"arn:aws:s3:::{bucket}", f"{method} {address}"
    if method == "POST" and not key and "delete" in query:
        keys = [element.text for element in ElementTree.fromstring(body).iter() if _is_key(element)]
        assert keys
        return [Request("s3:DeleteObject", f"{arn}/{key}", text) for key in keys]
    return [Request(_action(method, bucket, key, query), f"{arn}/{key}" if key else arn, text)]


def _is_key(element: ElementTree.Element) -> bool:
    return element.tag.rpartition("}")[2] == "Key"


def _action(method: str, bucket: str, key: str, query: set[str]) -> str:
    if not bucket:
        return "s3:ListAllMyBuckets"
    if not key:
        return {"GET": "s3:ListBucket", "HEAD": "s3:ListBucket", "PUT": "s3:CreateBucket"}[method]
    if "uploadId" in query and method == "DELETE":
        return "s3:AbortMultipartUpload"
    # PutObject covers all steps of a multipart upload, also those that use POST.
    return _OBJECT.get(method, "s3:PutObject")
