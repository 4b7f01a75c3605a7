"""Pulls base models from the hub: `python -P -m luthier.fetcher MODEL_ID --model-dir DIR --events FILE`.

`pull` pins the commit, checks the settings before it takes anything large, and goes on where an earlier
attempt ended; a model appears whole, with its `luthier.json`, or not at all. The process is the one part of
Luthier with a network and a hub token. `main` alone reads its environment: LUTHIER_HUB_TOKEN and HF_ENDPOINT;
HTTPS_PROXY and its like are read by the HTTP library.
"""

import argparse
import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from luthier.artifacts import FileEntry, flush
from luthier.errors import ExitCode, JobFailure, LuthierError
from luthier.events import EventWriter, PhaseChanged, ProgressMade, RunEnded
from luthier.hub import TOKEN_VARIABLE, RemoteFile, Repository
from luthier.inspection import CONFIG, check_config, check_settings
from luthier.models import RECORD, BaseModel, PullRecord, find_model, model_folder, reserved
from luthier.status import Phase

DEFAULT_ENDPOINT = "https://huggingface.co"
_PROGRESS_SECONDS = 1.0

Progress = Callable[[int, int], None]


def pull(
    model_id: str,
    model_dir: Path,
    *,
    on_progress: Progress,
    endpoint: str = DEFAULT_ENDPOINT,
    token: str | None = None,
    retries: int = 5,
) -> BaseModel:
    """The model of that id, pulled from the hub unless it is here already.

    Args:
        model_id: `organisation/name`; whether it may be pulled is the caller's to decide.
        on_progress: called with the bytes that are here and the bytes in all.
        endpoint, token, retries: as in `hub.Repository`.
    Raises:
        LuthierError: `invalid_model`, or `model_not_supported` for a model that is not safe or not fit.
        JobFailure: it could not be had; the exit code tells whether trying later may help. What came is kept.
    """
    try:
        with reserved(model_dir, model_id) as unfinished:
            model = find_model(model_dir, model_id)
            if model is not None:
                return model
            if "/" not in model_id:
                text = (
                    f"{model_id} is not on this machine, and names on the hub have the form organisation/name"
                )
                raise LuthierError(text, "invalid_model", "model")
            repository = Repository(model_id, endpoint=endpoint, token=token, retries=retries)
            return _pull(repository, model_dir, unfinished, on_progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(f"The disk of {model_dir} is full") from error
        text = f"{model_dir} cannot be used as the folder of models: {error.strerror or error}"
        raise JobFailure(text, "server_error", ExitCode.MISSING) from error


def _pull(repository: Repository, model_dir: Path, unfinished: Path, on_progress: Progress) -> BaseModel:
    final = model_folder(model_dir, repository.model_id)
    if final.exists():
        raise _not_supported(f"{final} is in the way and is no model: move it elsewhere")
    commit, files = repository.list_files()
    folder = _folder_of_commit(unfinished, final.name, commit)
    _check_room(folder, files)
    try:
        entries = _take_all(repository, commit, files, folder, on_progress)
        check_config(folder)
    except LuthierError:
        shutil.rmtree(folder)
        raise
    pulled_at = datetime.now(UTC)
    record = PullRecord(id=repository.model_id, commit=commit, pulled_at=pulled_at, files=tuple(entries))
    (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    flush(folder / RECORD)
    flush(folder)
    folder.rename(final)
    flush(model_dir)
    model = find_model(model_dir, repository.model_id)
    if model is None:
        raise _not_supported(f"{final} was changed while it was pulled: pull it again")
    return model


def _folder_of_commit(unfinished: Path, name: str, commit: str) -> Path:
    """Where what came of a commit is kept between attempts; that of other commits goes."""
    folder = unfinished / f"{name}@{commit}"
    for other in unfinished.glob(f"{name}@*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(exist_ok=True)
    return folder


def _check_room(folder: Path, files: Sequence[RemoteFile]) -> None:
    present = sum(path.stat().st_size for path in folder.iterdir())
    needed = sum(file.size_bytes for file in files) - present
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _disk_full(f"The model needs {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free")


def _take_all(
    repository: Repository, commit: str, files: Sequence[RemoteFile], folder: Path, on_progress: Progress
) -> list[FileEntry]:
    """Have all files in the folder; settings are checked before anything behind them is asked for."""
    total = sum(file.size_bytes for file in files)

    def report(before: int, size: int) -> None:
        on_progress(before + size, total)

    entries: list[FileEntry] = []
    for file in files:
        before = sum(entry.size_bytes for entry in entries)
        entries.append(repository.take(file, commit, folder, partial(report, before)))
        report(before, file.size_bytes)
        if file.name.endswith(CONFIG):
            check_settings(folder / file.name)
    return entries


def _disk_full(message: str) -> JobFailure:
    return JobFailure(f"{message}: make room; what came is kept", "disk_full", ExitCode.DISK_FULL)


def _not_supported(message: str) -> LuthierError:
    return LuthierError(message, "model_not_supported", "model")


class _ProgressEvents:
    """Writes how far a download has come, at most once a second and at its end."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next or done == total:
            self._next = now + _PROGRESS_SECONDS
            self._writer.write(ProgressMade(done=done, total=total, unit="bytes"))


def _failed(code: str, message: str, param: str | None) -> RunEnded:
    return RunEnded(outcome="failed", code=code, message=message, param=param)


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> ExitCode:
    """Pull one model, report to the events file, and tell by the exit code what became of it."""
    parser = argparse.ArgumentParser(prog="python -P -m luthier.fetcher", description="Pull a base model.")
    parser.add_argument("model_id", metavar="MODEL_ID", help="organisation/name on the hub")
    parser.add_argument("--model-dir", type=Path, required=True, help="folder of the base models")
    parser.add_argument("--events", type=Path, required=True, help="file that events are appended to")
    parser.add_argument(
        "--retries", type=int, default=5, help="tries that bring nothing new, after the first"
    )
    options = parser.parse_args(arguments)
    writer = EventWriter(options.events)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    writer.write(PhaseChanged(phase=Phase.DOWNLOADING_MODEL))
    try:
        model = pull(
            options.model_id,
            options.model_dir,
            endpoint=environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT,
            token=environment.get(TOKEN_VARIABLE) or None,
            on_progress=_ProgressEvents(writer),
            retries=options.retries,
        )
    except KeyboardInterrupt:
        writer.write(RunEnded(outcome="stopped"))
        return ExitCode.STOPPED
    except JobFailure as failure:
        writer.write(_failed(failure.code, failure.message, failure.param))
        return failure.exit_code
    except LuthierError as error:
        writer.write(_failed("model_load_failed", error.message, error.param))
        return ExitCode.MISSING
    writer.write(RunEnded(outcome="done", result={"path": str(model.path), "revision": model.revision}))
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
