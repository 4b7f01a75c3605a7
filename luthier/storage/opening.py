"""The storage that the settings name: a bucket where LUTHIER_S3_BUCKET is set, else a folder."""

from typing import TYPE_CHECKING, cast

from botocore.config import Config
from botocore.handlers import add_expect_header
from botocore.session import get_session

from luthier.settings import Settings
from luthier.storage.bucket import Bucket
from luthier.storage.files import FileStorage
from luthier.storage.interface import Storage
from luthier.storage.s3 import S3Storage

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_CONNECTIONS = 50
_DEFAULT_REGION = "us-east-1"


def open_storage(settings: Settings) -> Storage:
    """The storage of an installation; nothing is asked of a server yet."""
    if settings.s3_bucket is None:
        return FileStorage(settings.storage)
    bucket = Bucket(make_client(settings), settings.s3_bucket, _prefix(settings))
    return S3Storage(bucket, settings.data / "spool", gives_urls=settings.s3_presign)


def _prefix(settings: Settings) -> str:
    bare = (settings.s3_prefix or "").strip("/")
    return f"{bare}/" if bare else ""


def make_client(settings: Settings) -> "S3Client":
    """A client that threads may share; a call ends within attempts x timeouts, 80 s as they are set."""
    secret = settings.s3_secret_access_key
    config = Config(
        signature_version="s3v4",
        connect_timeout=settings.s3_connect_timeout_seconds,
        read_timeout=settings.s3_timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": settings.s3_attempts},
        max_pool_connections=_CONNECTIONS,
        # We send and check SHA-256 ourselves; other servers than Amazon's stumble over the client's own.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # A server under an address of its own rarely has a name for each bucket.
        s3={"addressing_style": "path" if settings.s3_endpoint_url else "auto"},
    )
    client = get_session().create_client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        region_name=settings.s3_region or (_DEFAULT_REGION if settings.s3_endpoint_url else None),
        aws_access_key_id=settings.s3_access_key_id,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=config,
    )
    # Waiting for "100 Continue" costs a round trip, and where the connection ends within that answer,
    # botocore reads from its end for ever.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return cast("S3Client", client)
