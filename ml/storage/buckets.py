"""Buckets: made once, by whoever sets a service up; scoring and training never do."""

from ml.errors import ServiceError
from ml.storage.object_store import object_store


def ensure_bucket(name: str) -> None:
    """Create a bucket, in the region of the settings, unless it exists.

    Raises:
        ServiceError: S3 cannot be reached, or refuses.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    store = object_store()
    region = store.settings.s3_region
    location = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        if name not in {bucket["Name"] for bucket in store.boto.list_buckets()["Buckets"]}:
            # AWS refuses a constraint on the region that needs none.
            store.boto.create_bucket(Bucket=name, **({} if region == "us-east-1" else location))
    except (BotoCoreError, ClientError) as error:
        raise ServiceError(
            f"The bucket {name} cannot be made: {error}.",
            "Check AWS_ENDPOINT_URL and the key, which must be allowed to make buckets.",
        ) from None
