"""Files of the server: training data in, results out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.client.calls import Query, Resource, Runner, call, flow, listing
from luthier.client.downloads import OnBytes, read
from luthier.client.objects import File, Page, Preview, Registration, Validation
from luthier.client.steps import Flow, Pause, Request, Steps, given, segment
from luthier.client.uploads import PART_BYTES, Source, upload_in_parts, upload_whole

_PATH = "/files"
_LOOK_SECONDS = 1.0
LARGE_BYTES = 2 * PART_BYTES


class Files(Resource[Runner]):
    """`/v1/files`, and `/v1/uploads` for large ones."""

    @call
    def upload(
        self,
        path: Path,
        *,
        purpose: str = "fine-tune",
        on_bad_row: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Steps[File]:
        """Send a file; memory does not grow with it.

        One over 64 MiB goes in parts. Broken off, by a crash too, it goes on when the same file is sent again
        within the hour that the server keeps its parts.

        Args:
            on_bad_row: `drop` keeps a file with bad rows among good ones, and a job says the same to use it;
                `keep` keeps any, to be registered.
            on_bytes: called with the number of bytes sent so far.
        Raises:
            ApiError: the server found the file wanting, and says where, or did not take it.
            OSError: `path` cannot be read.
        """
        fields = given({"purpose": purpose, "on_bad_row": on_bad_row})
        source = Source(path, fields, self._runner.url, on_bytes or _ignore)
        if path.stat().st_size > LARGE_BYTES:
            file = yield from upload_in_parts(self._runner.policy, source)
            if file is not None:
                return file
        return (yield from upload_whole(self._runner.policy, source))

    @listing
    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        purpose: str | None = None,
        name: str | None = None,
        sha256: str | None = None,
    ) -> Query[File]:
        """Files, newest first.

        Args:
            limit: rows of a page.
            name: that a file is registered under.
            sha256: of a file's content, in hexadecimal.
        """
        asked = {"after": after, "limit": limit, "purpose": purpose, "name": name, "sha256": sha256}
        return Query(Page[File], _PATH, asked)

    @call
    def get(self, file_id: str) -> Steps[File]:
        """One file."""
        return self._ask(File, Request("GET", _path(file_id)))

    @flow
    def content(self, file_id: str) -> Flow[bytes]:
        """The file's bytes, in pieces."""
        return read(self._runner.policy, f"{_path(file_id)}/content")

    @call
    def delete(self, file_id: str) -> Steps[None]:
        """Remove a file; the server refuses while a job that has not ended uses it."""
        yield from self._send(Request("DELETE", _path(file_id)))

    @call
    def validation(self, file_id: str, *, view: Mapping[str, Any] | None = None) -> Steps[Validation]:
        """What was found in a file.

        Args:
            view: `model`, and perhaps `dataset` and `max_seq_length`, to be told what the rows are for it,
                and `against`, the id of a validation file, to be told which rows both have.
        """
        path = f"{_path(file_id)}/validation"
        return self._ask(Validation, Request("GET", path) if view is None else _question(path, view))

    @call
    def preview(self, file_id: str, request: Mapping[str, Any]) -> Steps[Preview]:
        """Some rows as a model sees them.

        Args:
            request: `model`, and perhaps `rows`, `offset`, `dataset` and `max_seq_length`.
        """
        return self._ask(Preview, _question(f"{_path(file_id)}/preview", request))

    @call
    def prepare(
        self, file_id: str, columns: Mapping[str, str] | None = None, filename: str | None = None
    ) -> Steps[File]:
        """Have a new file made of instruction, input and output; returns it when it is checked.

        Raises:
            ApiError: the columns are not there, or a row cannot be read.
        """
        body = given({"columns": dict(columns) if columns else None, "filename": filename})
        file = yield from self._ask(File, _question(f"{_path(file_id)}/prepare", body))
        while file.status == "uploaded":
            yield Pause(_LOOK_SECONDS)
            file = yield from self._ask(File, Request("GET", _path(file.id)))
        return file

    @call
    def register(
        self, file_id: str, name: str, entry: Mapping[str, Any], *, replace: bool = False
    ) -> Steps[Registration]:
        """Name a file, and have its rows read as an entry of dataset_info.json says.

        Args:
            replace: take the name from another file, which keeps it where this one is refused.
        """
        body = {"name": name, "entry": dict(entry), "replace": replace}
        return self._ask(Registration, Request("POST", f"{_path(file_id)}/register", {"json": body}))

    @call
    def unregister(self, file_id: str) -> Steps[None]:
        """Take a file's name and entry away."""
        yield from self._send(Request("DELETE", f"{_path(file_id)}/register"))


def _path(file_id: str) -> str:
    return f"{_PATH}/{segment(file_id)}"


def _question(path: str, body: Mapping[str, Any]) -> Request:
    """What the server may take a while to answer: the same call finds the answer later."""
    return Request("POST", path, {"json": dict(body)}, is_repeatable=True)


def _ignore(_count: int) -> None:
    """For those who do not watch."""
