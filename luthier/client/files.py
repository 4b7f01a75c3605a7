"""Files of the server: training data in, results out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from luthier.client.connection import Connection, OnBytes
from luthier.client.objects import File, Page


class Files:
    """`/v1/files`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def upload(self, path: Path, *, purpose: str = "fine-tune", on_bytes: OnBytes | None = None) -> File:
        """Send a file, in pieces; memory does not grow with it.

        Args:
            on_bytes: called with the number of bytes sent so far.
        Raises:
            ApiError: the server found the file wanting, and says where, or did not take it.
            OSError: `path` cannot be read.
        """
        with path.open("rb") as file:
            response = self._connection.request(
                "POST",
                "/files",
                data={"purpose": purpose},
                files={"file": (path.name, _Watched(file, on_bytes or _ignore), "application/octet-stream")},
            )
        return File.model_validate_json(response.content)

    def list(self, *, after: str | None = None, limit: int = 100, purpose: str | None = None) -> Page[File]:
        """One page, newest first."""
        asked = {"after": after, "limit": limit, "purpose": purpose}
        response = self._connection.request("GET", "/files", params=_given(asked))
        return Page[File].model_validate_json(response.content)

    def get(self, file_id: str) -> File:
        return File.model_validate_json(self._connection.request("GET", f"/files/{file_id}").content)

    def content(self, file_id: str) -> Iterator[bytes]:
        """The file's bytes, in pieces."""
        return self._connection.read(f"/files/{file_id}/content")

    def register(self, file_id: str, name: str, entry: Mapping[str, Any]) -> Sequence[str]:
        """Name a file, and say how its rows are read; the name is taken from a file that has it.

        Args:
            entry: as it stands in LLaMA-Factory's dataset_info.json.
        Returns:
            What is odd about the entry.
        """
        response = self._connection.request("GET", "/files", params={"name": name})
        for other in Page[File].model_validate_json(response.content).data:
            self._connection.request("DELETE", f"/files/{other.id}/register")
        body = {"name": name, "entry": dict(entry)}
        response = self._connection.request("POST", f"/files/{file_id}/register", json=body)
        return [str(warning) for warning in response.json()["warnings"]]

    def delete(self, file_id: str) -> None:
        """Remove a file; the server refuses while a job that has not ended uses it."""
        self._connection.request("DELETE", f"/files/{file_id}")


class _Watched:
    """A file that tells how far it has been read."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self._file, self._on_bytes = file, on_bytes

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_bytes(self._file.tell())
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()


def _ignore(_count: int) -> None:
    """For those who do not watch."""


def _given(asked: dict[str, str | int | None]) -> dict[str, str | int]:
    return {name: value for name, value in asked.items() if value is not None}
