"""A storage of each kind, and folders to put into it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.artifacts import seal
from luthier.storage import FileStorage, Storage
from tests.s3 import S3Server

# The least that S3 takes for a part but the last, so that small tests have uploads in parts.
PART_BYTES = 5 << 20


@pytest.fixture(params=["files", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage, once of each kind."""
    if request.param == "files":
        return FileStorage(tmp_path / "storage")
    return _s3(request.getfixturevalue("s3_server"), tmp_path)


def _s3(server: S3Server, tmp_path: Path) -> Storage:
    return server.storage(tmp_path / "spool", f"test-{os.urandom(6).hex()}", PART_BYTES)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes sealed folders of two files that say who made them."""

    def make(text: str = "one", meta: dict[str, object] | None = None) -> Path:
        folder = tmp_path / f"work-{os.urandom(4).hex()}"
        (folder / "sub").mkdir(parents=True)
        (folder / "a.txt").write_text(f"a of {text}", encoding="utf-8")
        (folder / "sub" / "b.txt").write_text(f"b of {text}", encoding="utf-8")
        seal(folder, {"made_by": text} if meta is None else meta)
        return folder

    return make
