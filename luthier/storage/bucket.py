"""Objects of one bucket: put with a check of what arrived, put once, read, listed and removed.

The thin layer over an S3 client: it knows keys, bytes and hashes, nothing of folders. Every call ends, by the
client's time limits and its bounded retries; what is left of an error names the setting to look at.

What is checked: with each request goes the SHA-256 of its bytes. A server that answers with the same has
checked it (Amazon's, MinIO, Ceph's and SeaweedFS do); where an answer has none, the object is read back.
"""

import base64
import errno
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from luthier.storage.interface import DamagedError, StorageUnavailableError, StoredFile, checked

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        CopySourceTypeDef,
        GetObjectOutputTypeDef,
        HeadObjectOutputTypeDef,
        ObjectIdentifierTypeDef,
    )

PART_BYTES = 16 << 20
_MAX_PARTS = 10_000
_CHUNK_BYTES = 256 * 1024
_DELETED_AT_ONCE = 1000
_READ_TRIES = 3
_PUT_ONCE_TRIES = 3
_SETTING_OF_ERROR = {
    "NoSuchBucket": "LUTHIER_S3_BUCKET names no bucket that is there",
    "InvalidBucketName": "LUTHIER_S3_BUCKET is not a name of a bucket",
    "403": "the key may not do this: see LUTHIER_S3_ACCESS_KEY_ID and the bucket's policy",
    "AccessDenied": "the key may not do this: see LUTHIER_S3_ACCESS_KEY_ID and the bucket's policy",
    "InvalidAccessKeyId": "LUTHIER_S3_ACCESS_KEY_ID is not known there",
    "SignatureDoesNotMatch": "LUTHIER_S3_SECRET_ACCESS_KEY does not fit LUTHIER_S3_ACCESS_KEY_ID",
    "AuthorizationHeaderMalformed": "LUTHIER_S3_REGION is not the bucket's",
    "PermanentRedirect": "LUTHIER_S3_REGION is not the bucket's",
}


class AlteredError(Exception):
    """A file of this machine has another hash than it should."""


class _TakenError(Exception):
    """A condition of a request does not hold: something is there, or is being written."""


@dataclass(frozen=True)
class Upload:
    """An upload in parts that has not ended."""

    key: str
    id: str
    begun_at: datetime


class Bucket:
    """One bucket, below one prefix.

    Args:
        prefix: stands before every key; empty, or it ends with a slash.
        part_bytes: what is larger goes in parts of this size.
    """

    def __init__(self, client: "S3Client", name: str, prefix: str, part_bytes: int = PART_BYTES) -> None:
        self._client, self._name, self._prefix, self._part_bytes = client, name, prefix, part_bytes

    def put_file(self, path: Path, key: str, sha256: str | None = None) -> None:
        """Have a file of this machine under a key; it appears there when all of it has arrived.

        Args:
            sha256: hex; what the file must have.
        Raises:
            AlteredError: it has another one.
        """
        size = path.stat().st_size
        if size > self._part_bytes:
            self._put_parts(path, size, key, sha256)
        else:
            data = path.read_bytes()
            _require(path, hashlib.sha256(data).hexdigest(), sha256)
            self._put(data, key)

    def put_once(self, data: bytes, key: str) -> bytes:
        """Have these bytes under a key, unless something is there; returns what is there now."""
        for _ in range(_PUT_ONCE_TRIES):
            try:
                self._put(data, key, is_conditional=True)
            except _TakenError:
                # Also after an attempt of ours whose answer was lost: what is there tells.
                if (there := self.find(key)) is not None:
                    return there
            else:
                return data
        raise StorageUnavailableError(f"Others write {key} at this moment: try again")

    def find(self, key: str) -> bytes | None:
        """All bytes of a small object; None where there is none."""
        size = self.find_size(key)
        if size is None:
            return None
        try:
            return b"".join(self.read_range(key, 0, size))
        except FileNotFoundError:
            return None

    def find_size(self, key: str) -> int | None:
        head = self._head(key)
        return None if head is None else head["ContentLength"]

    def holds(self, key: str, size_bytes: int, sha256: str) -> bool:
        """Whether an object has this size and hash, by the server's word or by reading it."""
        head = self._head(key)
        if head is None or head["ContentLength"] != size_bytes:
            return False
        told = head.get("ChecksumSHA256")
        # Of an object in parts servers keep a hash of hashes, which ends with their number.
        if told is not None and "-" not in told:
            return told == _base64(bytes.fromhex(sha256))
        return self._hash_of(key, size_bytes) == sha256

    def read_range(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`; a connection that breaks off is taken up again where it broke.

        Raises:
            FileNotFoundError: there is no such object.
            DamagedError: it ends before `stop`.
        """
        tries, etag = 0, None
        while start < stop:
            answer = self._get(key, start, stop, etag)
            etag = answer["ETag"]
            try:
                with closing(answer["Body"]) as body:
                    for chunk in body.iter_chunks(_CHUNK_BYTES):
                        start += len(chunk)
                        yield chunk
            except BotoCoreError as error:
                tries += 1
                if tries == _READ_TRIES:
                    raise _unavailable(error) from error

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        """Every object below a folder."""
        prefix = f"{self._key(folder)}/" if folder else self._prefix
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=prefix)
        with _told():
            for page in pages:
                for item in page.get("Contents", ()):
                    yield StoredFile(self._bare(item["Key"]), item["Size"], item["LastModified"])

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, in this order where they are more than one request takes."""
        for batch in _batches(keys):
            objects: list[ObjectIdentifierTypeDef] = [{"Key": self._key(key)} for key in batch]
            with _told():
                answer = self._client.delete_objects(
                    Bucket=self._name, Delete={"Objects": objects, "Quiet": True}
                )
            if errors := answer.get("Errors"):
                code = errors[0].get("Code", "")
                raise StorageUnavailableError(f"S3 could not delete: {_SETTING_OF_ERROR.get(code, code)}")

    def copy(self, source_key: str, key: str) -> None:
        """Have an object of up to 5 GB under a second key, copied by the server."""
        source: CopySourceTypeDef = {"Bucket": self._name, "Key": self._key(source_key)}
        with _told():
            self._client.copy_object(Bucket=self._name, Key=self._key(key), CopySource=source)

    def url(self, key: str, seconds: int, **answer_headers: str) -> str:
        """An address that gives the object to whoever has it, for so long."""
        asked = {"Bucket": self._name, "Key": self._key(key), **answer_headers}
        return self._client.generate_presigned_url("get_object", Params=asked, ExpiresIn=seconds)

    def probe(self, key: str) -> bool:
        """Whether the server takes what a `put_once` sends, and refuses it the second time.

        Raises:
            StorageUnavailableError: it cannot be reached, or the key may not write there.
        """
        try:
            self._put(b"first", key)
            self._put(b"second", key, is_conditional=True)
        except _TakenError:
            return True
        finally:
            self.delete([key])
        return False

    def list_uploads(self) -> Iterator[Upload]:
        """Uploads in parts that have neither ended nor been aborted."""
        pages = self._client.get_paginator("list_multipart_uploads")
        with _told():
            for page in pages.paginate(Bucket=self._name, Prefix=self._prefix):
                for item in page.get("Uploads", ()):
                    yield Upload(self._bare(item["Key"]), item["UploadId"], item["Initiated"])

    def abort(self, upload: Upload) -> None:
        """Give up an upload in parts, and the room that its parts take."""
        with _told():
            self._client.abort_multipart_upload(
                Bucket=self._name, Key=self._key(upload.key), UploadId=upload.id
            )

    def _put(self, data: bytes, key: str, *, is_conditional: bool = False) -> None:
        digest = hashlib.sha256(data)
        checksum = _base64(digest.digest())
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if is_conditional else {}
        with _told(is_conditional=is_conditional):
            answer = self._client.put_object(
                Bucket=self._name, Key=self._key(key), Body=data, ChecksumSHA256=checksum, **condition
            )
        if answer.get("ChecksumSHA256") != checksum:
            self._read_back(key, digest.hexdigest())

    def _put_parts(self, path: Path, size_bytes: int, key: str, sha256: str | None) -> None:
        with _told():
            begun = self._client.create_multipart_upload(
                Bucket=self._name, Key=self._key(key), ChecksumAlgorithm="SHA256"
            )
        upload_id = begun["UploadId"]
        try:
            parts, found = self._send_parts(path, size_bytes, key, upload_id)
            _require(path, found, sha256)
            with _told():
                self._client.complete_multipart_upload(
                    Bucket=self._name,
                    Key=self._key(key),
                    UploadId=upload_id,
                    MultipartUpload={"Parts": parts},
                )
        except BaseException:
            with suppress(StorageUnavailableError, FileNotFoundError), _told():
                self._client.abort_multipart_upload(Bucket=self._name, Key=self._key(key), UploadId=upload_id)
            raise
        if not all("ChecksumSHA256" in part for part in parts):
            self._read_back(key, found)

    def _send_parts(
        self, path: Path, size_bytes: int, key: str, upload_id: str
    ) -> tuple[list["CompletedPartTypeDef"], str]:
        """Send a file in parts; returns these, each with its checksum where the server checked it."""
        part_bytes = max(self._part_bytes, -(-size_bytes // _MAX_PARTS))
        parts: list[CompletedPartTypeDef] = []
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while data := file.read(part_bytes):
                digest.update(data)
                checksum = _base64(hashlib.sha256(data).digest())
                number = len(parts) + 1
                with _told():
                    answer = self._client.upload_part(
                        Bucket=self._name,
                        Key=self._key(key),
                        UploadId=upload_id,
                        PartNumber=number,
                        Body=data,
                        ChecksumSHA256=checksum,
                    )
                part: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
                if answer.get("ChecksumSHA256") == checksum:
                    part["ChecksumSHA256"] = checksum
                parts.append(part)
        return parts, digest.hexdigest()

    def _read_back(self, key: str, sha256: str) -> None:
        """Check an object that the server did not; one that is not what was sent goes again."""
        size = self.find_size(key)
        if size is None or self._hash_of(key, size) != sha256:
            self.delete([key])
            raise StorageUnavailableError("S3 stored other bytes than were sent: see LUTHIER_S3_ENDPOINT_URL")

    def _hash_of(self, key: str, size_bytes: int) -> str:
        digest = hashlib.sha256()
        for chunk in self.read_range(key, 0, size_bytes):
            digest.update(chunk)
        return digest.hexdigest()

    def _head(self, key: str) -> "HeadObjectOutputTypeDef | None":
        try:
            with _told():
                return self._client.head_object(Bucket=self._name, Key=self._key(key), ChecksumMode="ENABLED")
        except FileNotFoundError:
            return None

    def _get(self, key: str, start: int, stop: int, etag: str | None) -> "GetObjectOutputTypeDef":
        """The answer with a range of an object, which must not have changed since an answer before."""
        condition: dict[str, Any] = {"IfMatch": etag} if etag else {}
        try:
            with _told(is_conditional=etag is not None):
                answer = self._client.get_object(
                    Bucket=self._name, Key=self._key(key), Range=f"bytes={start}-{stop - 1}", **condition
                )
        except _TakenError as error:
            raise DamagedError(f"{key} was replaced while it was read") from error
        if answer["ContentLength"] < stop - start:
            answer["Body"].close()
            raise DamagedError(f"{key} is shorter than its row says")
        return answer

    def _key(self, key: str) -> str:
        return f"{self._prefix}{checked(key)}"

    def _bare(self, full_key: str) -> str:
        return full_key.removeprefix(self._prefix)


@contextmanager
def _told(*, is_conditional: bool = False) -> Iterator[None]:
    """Errors of the client in our own words; none of them repeats what the server said.

    Args:
        is_conditional: whether the request has a condition, so that `_TakenError` may be its answer.
    """
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in ("NoSuchKey", "NotFound", "404"):
            raise FileNotFoundError(errno.ENOENT, "nothing is stored there") from error
        if is_conditional and status in (409, 412):
            raise _TakenError from error
        if status == 416:
            raise DamagedError("a stored file is shorter than its row says") from error
        text = _SETTING_OF_ERROR.get(code, f"{code or status}; see LUTHIER_S3_ENDPOINT_URL")
        raise StorageUnavailableError(f"The S3 storage refuses: {text}") from error
    except BotoCoreError as error:
        raise _unavailable(error) from error


def _unavailable(error: BotoCoreError) -> StorageUnavailableError:
    if isinstance(error, NoCredentialsError):
        text = "no key was found: set LUTHIER_S3_ACCESS_KEY_ID and LUTHIER_S3_SECRET_ACCESS_KEY"
        return StorageUnavailableError(f"The S3 storage cannot be used: {text}")
    text = f"{type(error).__name__}; see LUTHIER_S3_ENDPOINT_URL and LUTHIER_S3_REGION"
    return StorageUnavailableError(f"The S3 storage does not answer: {text}")


def _require(path: Path, found: str, sha256: str | None) -> None:
    if sha256 is not None and found != sha256:
        raise AlteredError(f"{path.name} has another SHA-256")


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii")


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    left = iter(keys)
    while batch := list(islice(left, _DELETED_AT_ONCE)):
        yield batch
