"""`python -P -m luthier.datasets RUN_FOLDER`: does with files what the folder's spec.json says.

A child process of the cpu agent, and limited in its memory, since it reads what strangers uploaded and runs
templates that came with models. `work` has a function for each kind of spec. It tells what it does in
events.jsonl, leaves files in artifacts/ and ends with an exit code of `luthier.errors.ExitCode`; whatever
happens, its last event is `run_ended`. SIGTERM stops it.
"""

import errno
import os
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pydantic import TypeAdapter, ValidationError

from luthier import __version__
from luthier.datasets.work import do_work
from luthier.errors import ExitCode, JobFailure
from luthier.events import EventWriter, RunEnded, RunStarted
from luthier.spec import DatasetSpec, RunSpec, TrainSpec, field_path

MAX_ADDRESS_SPACE_BYTES = 8 * 1024**3

# More threads than that encode no faster, and each reserves 64 MiB of address space for its heap.
_MAX_THREADS = 8
# What Python ends with when nobody caught an error.
_UNEXPECTED = 1
_SPEC: TypeAdapter[RunSpec] = TypeAdapter(RunSpec)


class _StopAsked(BaseException):
    """SIGTERM came; no `except Exception` may hold it up."""


def main(folder: Path) -> int:
    """Do the work of a run folder, and leave its last event."""
    events = EventWriter(folder / "events.jsonl")
    exit_code, ended = _outcome(folder, events)
    # On a full disk the event may not fit either; the exit code still tells.
    with suppress(OSError):
        events.write(ended)
    return exit_code


def _outcome(folder: Path, events: EventWriter) -> tuple[int, RunEnded]:
    try:
        with _stoppable():
            return ExitCode.DONE, RunEnded(outcome="done", result=_work(folder, events))
    except _StopAsked:
        return ExitCode.STOPPED, RunEnded(outcome="stopped")
    except JobFailure as error:
        return error.exit_code, _failed(error.code, error.message, error.param)
    # The edge: whoever waits has to be told; a panic in a library written in Rust is no Exception.
    except BaseException as error:  # noqa: BLE001
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = "The worker's disk is full: free some space there and start the job again"
            return ExitCode.DISK_FULL, _failed("disk_full", text)
        # For the log alone: it may hold a user's text.
        traceback.print_exc()
        text = f"Reading the data failed: {type(error).__name__}. The run's log has the details"
        return _UNEXPECTED, _failed("server_error", text)


def _failed(code: str, message: str, param: str | None = None) -> RunEnded:
    return RunEnded(outcome="failed", code=code, message=message, param=param)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM raises `_StopAsked` inside the block; behind it, it is too late to stop anything."""

    def stop(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise _StopAsked

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _work(folder: Path, events: EventWriter) -> dict[str, object]:
    spec = _read_spec(folder / "spec.json")
    # Our own version is not asked of the metadata: a source tree on the path has none.
    versions = {"luthier": __version__} | {
        name: version(name) for name in ("tokenizers", "jinja2", "pyarrow")
    }
    events.write(RunStarted(versions=versions))
    return do_work(spec, folder, events)


def _read_spec(path: Path) -> DatasetSpec:
    try:
        spec = _SPEC.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise JobFailure("The run folder has no spec.json", "invalid_spec", ExitCode.BAD_SPEC) from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        text = f"spec.json: {field_path(first['loc'])}: {first['msg']}"
        raise JobFailure(text, "invalid_spec", ExitCode.BAD_SPEC) from error
    if isinstance(spec, TrainSpec):
        text = "spec.json: kind is 'train', which this process does not do: start `python -m trainer`"
        raise JobFailure(text, "invalid_spec", ExitCode.BAD_SPEC)
    return spec


def _limit_itself() -> None:
    """Keep hostile input from taking the machine's memory, and a crash from leaving a dump of users' data."""
    # The tokenizer's; read when the first text is encoded.
    os.environ["RAYON_NUM_THREADS"] = str(min(_MAX_THREADS, len(os.sched_getaffinity(0))))
    for limit, wanted in ((resource.RLIMIT_AS, MAX_ADDRESS_SPACE_BYTES), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -P -m luthier.datasets RUN_FOLDER")
    _limit_itself()
    sys.exit(main(Path(sys.argv[1])))
