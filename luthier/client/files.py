"""Files of the server: training data in, results out."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from luthier.client.connection import Connection, OnBytes
from luthier.client.objects import File, Page, Preview, Registration, Validation

_LOOK_SECONDS = 1.0


class Files:
    """`/v1/files`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def upload(
        self,
        path: Path,
        *,
        purpose: str = "fine-tune",
        on_bad_row: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> File:
        """Send a file, in pieces; memory does not grow with it.

        Args:
            on_bad_row: `drop` keeps a file with bad rows among good ones, and a job says the same to use it;
                `keep` keeps any, to be registered.
            on_bytes: called with the number of bytes sent so far.
        Raises:
            ApiError: the server found the file wanting, and says where, or did not take it.
            OSError: `path` cannot be read.
        """
        with path.open("rb") as file:
            response = self._connection.request(
                "POST",
                "/files",
                data=_given({"purpose": purpose, "on_bad_row": on_bad_row}),
                files={"file": (path.name, _Watched(file, on_bytes or _ignore), "application/octet-stream")},
            )
        return File.model_validate_json(response.content)

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        purpose: str | None = None,
        name: str | None = None,
        sha256: str | None = None,
    ) -> Page[File]:
        """One page, newest first.

        Args:
            name: that a file is registered under.
            sha256: of a file's content, in hexadecimal.
        """
        asked = {"after": after, "limit": limit, "purpose": purpose, "name": name, "sha256": sha256}
        response = self._connection.request("GET", "/files", params=_given(asked))
        return Page[File].model_validate_json(response.content)

    def get(self, file_id: str) -> File:
        return File.model_validate_json(self._connection.request("GET", f"/files/{file_id}").content)

    def content(self, file_id: str) -> Iterator[bytes]:
        """The file's bytes, in pieces."""
        return self._connection.read(f"/files/{file_id}/content")

    def delete(self, file_id: str) -> None:
        """Remove a file; the server refuses while a job that has not ended uses it."""
        self._connection.request("DELETE", f"/files/{file_id}")

    def validation(self, file_id: str, *, view: Mapping[str, Any] | None = None) -> Validation:
        """What was found in a file.

        Args:
            view: `model`, and perhaps `dataset` and `max_seq_length`, to be told what the rows are for it,
                and `against`, the id of a validation file, to be told which rows both have.
        """
        path = f"/files/{file_id}/validation"
        response = self._connection.request("GET", path) if view is None else self._ask(path, view)
        return Validation.model_validate_json(response.content)

    def preview(self, file_id: str, request: Mapping[str, Any]) -> Preview:
        """Some rows as a model sees them.

        Args:
            request: `model`, and perhaps `rows`, `offset`, `dataset` and `max_seq_length`.
        """
        return Preview.model_validate_json(self._ask(f"/files/{file_id}/preview", request).content)

    def prepare(
        self, file_id: str, columns: Mapping[str, str] | None = None, filename: str | None = None
    ) -> File:
        """Have a new file made of instruction, input and output; returns it when it is checked.

        Raises:
            ApiError: the columns are not there, or a row cannot be read.
        """
        body = _given({"columns": dict(columns) if columns else None, "filename": filename})
        file = File.model_validate_json(self._ask(f"/files/{file_id}/prepare", body).content)
        while file.status == "uploaded":
            self._connection.pause(_LOOK_SECONDS)
            file = self.get(file.id)
        return file

    def register(
        self, file_id: str, name: str, entry: Mapping[str, Any], *, replace: bool = False
    ) -> Registration:
        """Name a file, and have its rows read as an entry of dataset_info.json says.

        Args:
            replace: take the name from another file, which keeps it where this one is refused.
        """
        body = {"name": name, "entry": dict(entry), "replace": replace}
        response = self._connection.request("POST", f"/files/{file_id}/register", json=body)
        return Registration.model_validate_json(response.content)

    def unregister(self, file_id: str) -> None:
        """Take a file's name and entry away."""
        self._connection.request("DELETE", f"/files/{file_id}/register")

    def _ask(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """A question that the server may take a while to answer: the same call finds the answer later."""
        return self._connection.request("POST", path, is_repeatable=True, json=dict(body))


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


def _given(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if value is not None}
