"""What goes wrong between Luthier and an S3 server, and what a bucket holds afterwards."""

import hashlib
import os
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from luthier.artifacts import MANIFEST_NAME, ManifestError
from luthier.settings import Settings
from luthier.storage import S3Storage, StorageUnavailableError, open_storage
from luthier.storage.bucket import Bucket
from luthier.storage.opening import make_client
from tests.luthier.storage.conftest import PART_BYTES
from tests.luthier.storage.faulty_proxy import BUSY, CONFLICT, HANG, LOST, FaultyProxy, faulty_proxy
from tests.s3 import S3Server

MakeFolder = Callable[..., Path]
_KEY = "ftjob-1/e0001/artifacts"
_DATA = os.urandom(1 << 20)


@pytest.fixture
def prefix() -> str:
    return f"test-{os.urandom(6).hex()}"


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server.url) as proxy:
        yield proxy


@pytest.fixture
def storage(proxy: FaultyProxy, s3_server: S3Server, prefix: str, tmp_path: Path) -> Iterator[S3Storage]:
    """A storage whose server is behind the proxy, and that is quick to give up."""
    fields = s3_server.settings(prefix) | {"s3_endpoint_url": proxy.url, "s3_timeout_seconds": 0.5}
    client = make_client(Settings(**fields, s3_attempts=3))
    yield S3Storage(Bucket(client, s3_server.bucket, f"{prefix}/", PART_BYTES), tmp_path / "spool")
    client.close()


def _put(storage: S3Storage, tmp_path: Path, data: bytes = _DATA) -> None:
    (tmp_path / "data").write_bytes(data)
    storage.put(tmp_path / "data", "files/file-1")


def _read(storage: S3Storage, size: int = len(_DATA)) -> bytes:
    return b"".join(storage.read_range("files/file-1", 0, size))


@pytest.mark.parametrize("fault", [BUSY, HANG, LOST, 20])
def test_a_fault_that_passes_is_not_noticed(
    storage: S3Storage, proxy: FaultyProxy, tmp_path: Path, fault: str | int
) -> None:
    proxy.faults.append(fault)
    _put(storage, tmp_path)
    assert _read(storage) == _DATA
    assert proxy.connection_count >= 2


def test_a_server_that_hangs_ends_the_call_and_the_setting_is_named(
    storage: S3Storage, proxy: FaultyProxy, tmp_path: Path
) -> None:
    proxy.faults.extend([HANG] * 10)
    with pytest.raises(StorageUnavailableError, match="LUTHIER_S3_ENDPOINT_URL") as caught:
        _put(storage, tmp_path)
    assert (caught.value.code, proxy.connection_count) == ("storage_unavailable", 3)


def test_a_busy_server_is_asked_a_few_times(storage: S3Storage, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.faults.extend([BUSY] * 10)
    with pytest.raises(StorageUnavailableError, match="SlowDown"):
        _put(storage, tmp_path)
    assert proxy.connection_count == 3


def test_a_conflict_that_nobody_asked_for_is_told_as_a_fault(
    storage: S3Storage, proxy: FaultyProxy, tmp_path: Path
) -> None:
    proxy.faults.append(CONFLICT)
    with pytest.raises(StorageUnavailableError, match="OperationAborted"):
        _put(storage, tmp_path)


def test_a_download_that_breaks_off_goes_on_where_it_broke(
    storage: S3Storage, proxy: FaultyProxy, s3_server: S3Server, prefix: str
) -> None:
    s3_server.client.put_object(Bucket=s3_server.bucket, Key=f"{prefix}/files/file-1", Body=_DATA)
    proxy.faults.extend([300_000, 400_000])
    assert _read(storage) == _DATA
    assert proxy.connection_count == 3


def test_a_download_that_breaks_off_again_and_again_fails(
    storage: S3Storage, proxy: FaultyProxy, s3_server: S3Server, prefix: str
) -> None:
    s3_server.client.put_object(Bucket=s3_server.bucket, Key=f"{prefix}/files/file-1", Body=_DATA)
    proxy.faults.extend([100_000] * 10)
    with pytest.raises(StorageUnavailableError):
        _read(storage)


def test_a_file_that_is_replaced_meanwhile_is_not_mixed(
    storage: S3Storage, proxy: FaultyProxy, s3_server: S3Server, prefix: str
) -> None:
    target = {"Bucket": s3_server.bucket, "Key": f"{prefix}/files/file-1"}
    s3_server.client.put_object(**target, Body=_DATA)
    proxy.faults.append(300_000)
    chunks = storage.read_range("files/file-1", 0, len(_DATA))
    next(chunks)
    s3_server.client.put_object(**target, Body=_DATA[::-1])
    with pytest.raises(OSError, match="replaced"):
        list(chunks)


@pytest.mark.parametrize("keep", [S3Storage.put_sealed, S3Storage.keep_sealed])
def test_a_manifest_whose_answer_was_lost_is_known_as_ours(
    storage: S3Storage, proxy: FaultyProxy, make_folder: MakeFolder, keep: Callable[..., Any]
) -> None:
    bucket, put_once = storage._bucket, storage._bucket.put_once

    def put_once_and_lose(data: bytes, key: str) -> bytes:
        bucket._client._endpoint.http_session.close()
        proxy.faults.append(LOST)
        return put_once(data, key)

    bucket.put_once = put_once_and_lose  # type: ignore[method-assign]
    manifest = keep(storage, make_folder(), _KEY, {"by": 1})
    assert storage.verify(_KEY) == manifest
    assert len(list(storage.list_files(_KEY))) == 3


def test_two_that_publish_different_folders_do_not_mix_them(
    s3_server: S3Server, prefix: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    one, two = (s3_server.storage(tmp_path / "spool", prefix, PART_BYTES) for _ in range(2))
    find = one._bucket.find

    def find_then_lose_the_race(key: str) -> bytes | None:
        found = find(key)
        one._bucket.find = find  # type: ignore[method-assign]
        two.put_folder(make_folder("two"), _KEY)
        return found

    one._bucket.find = find_then_lose_the_race  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailableError, match="Another process"):
        one.put_folder(make_folder("one"), _KEY)


def test_without_its_manifest_a_folder_is_not_there(
    storage: S3Storage, s3_server: S3Server, prefix: str, make_folder: MakeFolder
) -> None:
    storage.put_folder(make_folder(), _KEY)
    s3_server.client.delete_object(Bucket=s3_server.bucket, Key=f"{prefix}/{_KEY}/{MANIFEST_NAME}")
    with pytest.raises(ManifestError, match="there is none"):
        storage.verify(_KEY)
    storage.put_folder(make_folder("two"), _KEY)
    assert storage.verify(_KEY).meta == {"made_by": "two"}


def test_an_upload_in_parts_that_died_is_found_and_given_up(
    storage: S3Storage, s3_server: S3Server, prefix: str
) -> None:
    target = {"Bucket": s3_server.bucket, "Key": f"{prefix}/files/file-1"}
    s3_server.client.create_multipart_upload(**target)
    now, hour = datetime.now(UTC), timedelta(hours=1)
    assert storage.list_temporary(now=now, older_than=hour) == []
    assert storage.list_temporary(now=now + 2 * hour, older_than=hour) == ["files/file-1"]
    assert storage.abort_stale_uploads(now=now, older_than=hour) == 0
    assert storage.abort_stale_uploads(now=now + 2 * hour, older_than=hour) == 1
    assert not s3_server.client.list_multipart_uploads(Bucket=target["Bucket"], Prefix=prefix).get("Uploads")


def test_an_upload_in_parts_that_fails_leaves_none(
    storage: S3Storage, s3_server: S3Server, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(_DATA * 6)
    sha256 = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(Exception, match="another SHA-256"):
        storage._bucket.put_file(tmp_path / "large", "files/file-1", sha256)
    assert storage.find_size("files/file-1") is None
    assert not s3_server.client.list_multipart_uploads(Bucket=s3_server.bucket, Prefix=prefix).get("Uploads")


@pytest.mark.parametrize("size", [1000, PART_BYTES + 1000])
def test_where_the_server_checks_nothing_the_object_is_read_back(
    storage: S3Storage, proxy: FaultyProxy, tmp_path: Path, size: int
) -> None:
    events = storage._bucket._client.meta.events
    altered: list[str] = []

    def without_checksum(parsed: dict[str, Any], **_: Any) -> None:
        parsed.pop("ChecksumSHA256", None)

    def without_algorithm(params: dict[str, Any], **_: Any) -> None:
        del params["headers"]["x-amz-checksum-algorithm"]

    def alter(params: dict[str, Any], **_: Any) -> None:
        params["headers"].pop("x-amz-checksum-sha256", None)
        params["body"] = b"?" + params["body"].read()[1:]
        altered.append("yes")

    events.register("before-call.s3.CreateMultipartUpload", without_algorithm)
    for call in ("PutObject", "UploadPart"):
        events.register(f"after-call.s3.{call}", without_checksum)
    _put(storage, tmp_path, _DATA[:1] * size)
    assert _read(storage, size) == _DATA[:1] * size
    for call in ("PutObject", "UploadPart"):
        events.register(f"before-call.s3.{call}", alter)
    with pytest.raises(StorageUnavailableError, match="other bytes"):
        _put(storage, tmp_path, _DATA[:1] * size)
    assert altered
    assert storage.find_size("files/file-1") is None


def test_a_signed_address_gives_the_file_with_its_headers(
    s3_server: S3Server, prefix: str, tmp_path: Path
) -> None:
    storage = open_storage(Settings(data_dir=tmp_path, **s3_server.settings(prefix), s3_presign=True))
    (tmp_path / "data").write_bytes(b"0123456789")
    storage.put(tmp_path / "data", "files/file-1")
    url = storage.find_url("files/file-1", disposition="attachment", media_type="text/plain")
    assert url is not None
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=2-4"})) as answer:
        assert (answer.status, answer.read()) == (206, b"234")
        assert answer.headers["content-disposition"] == "attachment"


@pytest.mark.parametrize(
    ("fields", "setting"),
    [
        ({"s3_bucket": "not-there"}, "LUTHIER_S3_BUCKET"),
        ({"s3_access_key_id": "nobody"}, "LUTHIER_S3_ACCESS_KEY_ID"),
        ({"s3_secret_access_key": "another-secret"}, "LUTHIER_S3_SECRET_ACCESS_KEY"),
        ({"s3_endpoint_url": "http://127.0.0.1:9", "s3_attempts": 1}, "LUTHIER_S3_ENDPOINT_URL"),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_is(
    s3_server: S3Server, prefix: str, tmp_path: Path, fields: dict[str, Any], setting: str
) -> None:
    settings = Settings(data_dir=tmp_path, **(s3_server.settings(prefix) | fields))
    storage = open_storage(settings)
    assert isinstance(storage, S3Storage)
    with pytest.raises(StorageUnavailableError, match=setting) as caught:
        _put(storage, tmp_path)
    for secret in ("not-a-secret", "another-secret"):
        assert secret not in caught.value.message + repr(settings)


@pytest.mark.parametrize(
    ("fields", "setting"),
    [
        ({"s3_bucket": "b", "s3_access_key_id": "k"}, "LUTHIER_S3_SECRET_ACCESS_KEY"),
        ({"s3_bucket": "b", "storage_dir": "/data"}, "LUTHIER_STORAGE_DIR"),
        ({"s3_presign": True}, "LUTHIER_S3_BUCKET"),
    ],
)
def test_settings_that_contradict_each_other_are_told(fields: dict[str, Any], setting: str) -> None:
    (problem,) = Settings(**fields).problems()
    assert setting in problem
