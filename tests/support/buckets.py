"""Buckets for tests; in production, an administrator creates them."""

from ml.storage.object_store import object_store


def ensure_bucket(name: str) -> None:
    """Create a bucket unless it exists."""
    client = object_store().boto
    if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=name)
