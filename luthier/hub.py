"""One model's repository on the hub: what its newest commit holds, and each file, taken with patience.

`list_files` chooses what loading needs and nothing that could carry code; `take` goes on where an earlier
attempt ended, and checks size and hash. huggingface_hub gives the session (proxies, offline switch) and the
errors; its own download is not used, since from 2.0 on it keeps nothing of a file that was cut short.
Knows nothing of where models lie. Protocol: https://huggingface.co/docs/hub/api.
"""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import get_session

# HTTPError is that of the library's HTTP library: httpx in 1.x, httpx2 in 2.x.
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]
from pydantic import BaseModel, Field, StringConstraints, ValidationError

from luthier.artifacts import FileEntry, flush, sha256_of
from luthier.errors import TRANSIENT_EXITS, ExitCode, JobFailure, LuthierError
from luthier.inspection import CONFIG, TOKENIZER, weight_files
from luthier.models import RECORD

TOKEN_VARIABLE = "LUTHIER_HUB_TOKEN"  # noqa: S105, the name of a variable

_TAKEN = ("*.json", "tokenizer*", "*.model", "*.txt", "*.jinja")
_NEVER = (".py", ".pyc", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".so")
# Of files other than weights; the largest tokenizers have some 35 MB.
_MAX_SMALL_FILE_BYTES = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_ANSWER_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit; the hub tells the SHA-256 of large files and Git's hash of all others."""

    name: str
    size_bytes: int
    sha256: str | None
    git_sha1: str | None


class _Lfs(BaseModel):
    sha256: str


class _Sibling(BaseModel):
    rfilename: str
    size: Annotated[int, Field(ge=0)]
    blob_id: Annotated[str | None, Field(alias="blobId")] = None
    lfs: _Lfs | None = None


class _Revision(BaseModel):
    """What the hub answers about a commit; it says more, which nothing here needs."""

    sha: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    siblings: list[_Sibling]


class Repository:
    """A model on the hub.

    Args:
        model_id: `organisation/name`, well-formed.
        endpoint: address of the hub.
        token: sent to the endpoint, and to no other host that it redirects to.
        retries: further tries at one thing that bring nothing new, with growing pauses.
    """

    def __init__(self, model_id: str, *, endpoint: str, token: str | None, retries: int) -> None:
        self.model_id = model_id
        self._endpoint, self._token, self._retries = endpoint.rstrip("/"), token, retries
        # With compression, a range would count bytes that are not the file's.
        self._headers = {"User-Agent": "luthier", "Accept-Encoding": "identity"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def list_files(self) -> tuple[str, list[RemoteFile]]:
        """The newest commit, and its files that loading needs: config.json first, weights last.

        Raises:
            LuthierError: `model_not_supported`: it lacks one of them.
            JobFailure: the hub does not show it.
        """
        revision = self._patiently(self._ask)
        # Only plain names at the top: what lies deeper is nothing that loading reads.
        found = {file.rfilename: file for file in revision.siblings if _NAME.fullmatch(file.rfilename)}
        weights = weight_files(found)
        for name in (CONFIG, TOKENIZER):
            if name not in found:
                text = f"{self.model_id} has no {name}: use a copy of it that has one"
                raise LuthierError(text, "model_not_supported", "model")
        small = [file.rfilename for file in found.values() if _is_taken(file)]
        small.sort(key=lambda name: (name != CONFIG, not name.endswith(CONFIG), name))
        return revision.sha, [_remote_file(found[name]) for name in [*small, *weights]]

    def take(self, file: RemoteFile, commit: str, folder: Path, on_size: Callable[[int], None]) -> FileEntry:
        """Have one file whole and flushed in the folder, from where an earlier attempt ended.

        Args:
            on_size: called with the bytes of this file that are here.
        Raises:
            JobFailure: it could not be had; what came of it stays.
        """
        target = folder / file.name
        url = f"{self._endpoint}/{self.model_id}/resolve/{commit}/{file.name}"
        target.touch()

        def attempt() -> FileEntry:
            if target.stat().st_size < file.size_bytes:
                self._stream(url, target, file.size_bytes, on_size)
            return _verify(file, target)

        return self._patiently(attempt, lambda: target.stat().st_size)

    def _ask(self) -> _Revision:
        url = f"{self._endpoint}/api/models/{self.model_id}"
        response = get_session().get(
            url, params={"blobs": "true"}, headers=self._headers, timeout=_ANSWER_SECONDS
        )
        hf_raise_for_status(response)
        try:
            return _Revision.model_validate_json(response.content)
        except ValidationError as error:
            raise JobFailure(
                f"{self._host()} does not answer as a hub does: check HF_ENDPOINT and HTTPS_PROXY",
                "server_error",
                ExitCode.MISSING,
            ) from error

    def _stream(self, url: str, target: Path, size: int, on_size: Callable[[int], None]) -> None:
        present = target.stat().st_size
        headers = self._headers | ({"Range": f"bytes={present}-"} if present else {})
        with get_session().stream("GET", url, headers=headers, timeout=_ANSWER_SECONDS) as response:
            hf_raise_for_status(response)
            with target.open("ab" if response.status_code == 206 else "wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    if file.tell() > size:
                        return
                    on_size(file.tell())

    def _patiently(self, attempt: Callable[[], T], reached: Callable[[], int] = lambda: 0) -> T:
        """Try again while trying may help; a try that got further than all before it costs nothing."""
        failed, furthest = 0, reached()
        while True:
            try:
                return attempt()
            except (HTTPError, OfflineModeIsEnabled, JobFailure) as error:
                failure = error if isinstance(error, JobFailure) else self._explain(error)
                failed = 0 if reached() > furthest else failed + 1
                if failure.exit_code not in TRANSIENT_EXITS or failed > self._retries:
                    raise failure from error
                furthest = max(furthest, reached())
                time.sleep(_pause_seconds(error, failed))

    def _explain(self, error: Exception) -> JobFailure:
        """What a failed request means, without the request: it held the token."""
        name, hub = self.model_id, self._host()
        if isinstance(error, OfflineModeIsEnabled):
            return _missing(f"{name} cannot be pulled while HF_HUB_OFFLINE is set: unset it")
        if not isinstance(error, HfHubHTTPError):
            text = f"{hub} cannot be reached ({type(error).__name__}): check HF_ENDPOINT and HTTPS_PROXY"
            return JobFailure(text, "server_error", ExitCode.UNAVAILABLE)
        status = error.response.status_code
        if status in (408, 429) or status >= 500:
            return JobFailure(f"{hub} answered {status}: try again later", "server_error", ExitCode.TRY_LATER)
        if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
            return _missing(
                f"{hub} shows no model {name}: check the name, and for a private one set {TOKEN_VARIABLE} "
                "to a token that may read it"
            )
        if status in (401, 403):
            what = f"refused {TOKEN_VARIABLE} for {name}" if self._token else f"wants a token for {name}"
            return _missing(
                f"{hub} {what}: accept the model's terms on its page, and set {TOKEN_VARIABLE} to a token of "
                "that account which may read gated models"
            )
        return _missing(f"{hub} answered {status} for {name}: check the name and HF_ENDPOINT")

    def _host(self) -> str:
        """The hub's name for people; the whole address may hold a password."""
        return urlsplit(self._endpoint).hostname or "HF_ENDPOINT"


def _is_taken(file: _Sibling) -> bool:
    name = file.rfilename
    if name == RECORD or name.endswith(_NEVER) or file.size > _MAX_SMALL_FILE_BYTES:
        return False
    return any(fnmatchcase(name, pattern) for pattern in _TAKEN)


def _remote_file(file: _Sibling) -> RemoteFile:
    # Of a large file, `blob_id` is the hash of its pointer.
    sha256, git_sha1 = (file.lfs.sha256, None) if file.lfs else (None, file.blob_id)
    return RemoteFile(file.rfilename, file.size, sha256, git_sha1)


def _verify(file: RemoteFile, path: Path) -> FileEntry:
    """Flush a file that is what the hub says; empty one that is not."""
    size = path.stat().st_size
    if size < file.size_bytes:
        raise JobFailure(f"{file.name} was cut short: try again later", "server_error", ExitCode.UNAVAILABLE)
    sha256 = sha256_of(path)
    is_right = file.sha256 in (None, sha256) and (not file.git_sha1 or file.git_sha1 == _git_sha1(path))
    if size > file.size_bytes or not is_right:
        path.write_bytes(b"")
        text = f"{file.name} is not what the hub says: try again later, or use another HF_ENDPOINT"
        raise JobFailure(text, "server_error", ExitCode.UNAVAILABLE)
    flush(path)
    return FileEntry(file.name, size, sha256)


def _git_sha1(path: Path) -> str:
    """The hash by which Git knows a file."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def _pause_seconds(error: Exception, failed: int) -> float:
    """What the hub asks for, or a time that doubles; none after a try that got further."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked) if asked.isdigit() else 2.0**failed - 1, _LONGEST_PAUSE_SECONDS)


def _missing(message: str) -> JobFailure:
    return JobFailure(message, "model_not_found", ExitCode.MISSING, "model")
