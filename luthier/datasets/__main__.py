"""`python -P -m luthier.datasets RUN_FOLDER`: prepares or validates, as the folder's spec.json says.

A child process of the cpu agent, limited in memory and threads, since it reads what strangers uploaded
and runs templates that came with models. It tells what it does in events.jsonl, leaves Parquet files in
artifacts/ and ends with an exit code of `luthier.errors.ExitCode`; code 1 is a fault of the program. SIGTERM
stops it.
"""

import contextlib
import errno
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pydantic import TypeAdapter, ValidationError

from luthier import __version__
from luthier.artifacts import sha256_of
from luthier.datasets.examples import DatasetError
from luthier.datasets.prepare import PreparedFile, PrepareStats, cache_key, prepare_file
from luthier.datasets.tokenizer import ModelTokenizer, load_tokenizer
from luthier.datasets.validate import failure_message, validate_file
from luthier.errors import ExitCode, JobFailure
from luthier.events import EventWriter, PhaseChanged, ProgressMade, RunEnded, RunStarted, WarningRaised
from luthier.spec import PreparedData, PrepareSpec, RunSpec, SourceFile, ValidateSpec, field_path
from luthier.status import Phase

MAX_ADDRESS_SPACE_BYTES = 8 * 1024**3
# Each thread reserves 64 MiB of address space for its heap: with 128 of them, one a core, it did not suffice.
MAX_THREADS = 16

_PROGRAM_FAULT = 1
_PROGRESS_SECONDS = 1.0
_SPEC: TypeAdapter[RunSpec] = TypeAdapter(RunSpec)


class _StopAsked(BaseException):
    """SIGTERM came; no `except Exception` may hold it up."""


def main(folder: Path) -> int:
    """Do the work of a run folder, and leave its last event; the return value is the exit code."""
    events = EventWriter(folder / "events.jsonl")
    exit_code, ended = _outcome(folder, events)
    # On a full disk the event may not fit either; the exit code still tells.
    with contextlib.suppress(OSError):
        events.write(ended)
    return exit_code


def _outcome(folder: Path, events: EventWriter) -> tuple[int, RunEnded]:
    try:
        with _stoppable():
            return ExitCode.DONE, RunEnded(outcome="done", result=_work(folder, events))
    except _StopAsked:
        return ExitCode.STOPPED, RunEnded(outcome="stopped")
    except JobFailure as failure:
        return _failed(failure)
    # The edge of the process; a panic in a library written in Rust is no Exception.
    except BaseException as error:  # noqa: BLE001
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = "The worker's disk is full: free some space there and start the job again"
            return _failed(JobFailure(text, "disk_full", ExitCode.DISK_FULL))
        traceback.print_exc()
        text = f"Reading the data failed: {type(error).__name__}. The run's log has the details"
        return _PROGRAM_FAULT, RunEnded(outcome="failed", code="server_error", message=text)


def _failed(failure: JobFailure) -> tuple[int, RunEnded]:
    return failure.exit_code, RunEnded(
        outcome="failed", code=failure.code, message=failure.message, param=failure.param
    )


@contextlib.contextmanager
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
    return _validate(spec, events) if isinstance(spec, ValidateSpec) else _prepare(spec, folder, events)


def _read_spec(path: Path) -> PrepareSpec | ValidateSpec:
    try:
        spec = _SPEC.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise JobFailure("The run folder has no spec.json", "invalid_spec", ExitCode.BAD_SPEC) from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        text = f"spec.json: {field_path(first['loc'])}: {first['msg']}"
        raise JobFailure(text, "invalid_spec", ExitCode.BAD_SPEC) from error
    if not isinstance(spec, PrepareSpec | ValidateSpec):
        text = f"spec.json: kind is {spec.kind!r}, which this process does not do; use prepare or validate"
        raise JobFailure(text, "invalid_spec", ExitCode.BAD_SPEC)
    return spec


def _validate(spec: ValidateSpec, events: EventWriter) -> dict[str, object]:
    events.write(PhaseChanged(phase=Phase.VALIDATING_FILES))
    progress = _Progress(events, "bytes")
    report = validate_file(_existing(spec.file), spec.file.filename, progress.tell)
    message = None if report.valid else failure_message(report)
    return {"report": report.model_dump(mode="json"), "message": message}


def _prepare(spec: PrepareSpec, folder: Path, events: EventWriter) -> dict[str, object]:
    events.write(PhaseChanged(phase=Phase.TOKENIZING))
    tokenizer = load_tokenizer(Path(spec.model.path))
    (folder / "artifacts").mkdir(exist_ok=True)
    sources = {f"train-{number:03d}": source for number, source in enumerate(spec.train)}
    if spec.validation is not None:
        sources["validation"] = spec.validation
    files = {
        name: _prepare_source(spec, source, folder / "artifacts" / f"{name}.parquet", tokenizer, events)
        for name, source in sources.items()
    }
    splits = {
        name: file.split.model_copy(
            update={"path": f"artifacts/{name}.parquet", "weight": sources[name].weight}
        )
        for name, file in files.items()
    }
    data = PreparedData(
        train=tuple(split for name, split in splits.items() if name != "validation"),
        validation=splits.get("validation"),
    )
    hashes = [sha256_of(Path(source.path)) for source in sources.values()]
    facts = {
        "stats": {name: asdict(file.stats) for name, file in files.items()},
        "cache_key": cache_key(hashes, Path(spec.model.path), tokenizer, spec.dataset, spec.max_seq_length),
    }
    return data.model_dump(mode="json") | facts


def _prepare_source(
    spec: PrepareSpec, source: SourceFile, target: Path, tokenizer: ModelTokenizer, events: EventWriter
) -> PreparedFile:
    progress = _Progress(events, "rows")
    try:
        prepared = prepare_file(
            _existing(source),
            target,
            tokenizer,
            rules=spec.dataset,
            max_seq_length=spec.max_seq_length,
            on_progress=progress.tell,
        )
    except DatasetError as error:
        raise JobFailure(str(error), _failure_code(source), ExitCode.BAD_DATA, source.param) from error
    for warning in _warnings(prepared.stats, source, spec.max_seq_length):
        events.write(warning)
    return prepared


def _existing(source: SourceFile) -> Path:
    path = Path(source.path)
    if not path.is_file():
        text = f"The file {source.filename} is not on this machine: upload it again"
        raise JobFailure(text, _failure_code(source), ExitCode.MISSING, source.param)
    return path


def _failure_code(source: SourceFile) -> str:
    return "invalid_validation_file" if source.param == "validation_file" else "invalid_training_file"


def _warnings(stats: PrepareStats, source: SourceFile, limit: int) -> Iterator[WarningRaised]:
    """What happened to rows without being asked for row by row."""
    counted = {
        "rows_truncated": (stats.truncated_row_count, f"were cut at {limit} tokens"),
        "rows_dropped_overlength": (stats.overlength_row_count, f"were dropped: over {limit} tokens"),
        "rows_dropped_untrained": (stats.untrained_row_count, "were dropped: no token in them to learn"),
    }
    for code, (count, what) in counted.items():
        if count:
            text = f"{count} of {stats.read_row_count} rows of {source.filename} {what}"
            yield WarningRaised(code=code, message=text, data={"param": source.param, "row_count": count})


class _Progress:
    """Tells how far the work has come, at most once a second."""

    def __init__(self, events: EventWriter, unit: str) -> None:
        self._events, self._unit = events, unit
        self._told_at = time.monotonic()

    def tell(self, done: int, total: int | None = None) -> None:
        if time.monotonic() - self._told_at >= _PROGRESS_SECONDS:
            self._events.write(ProgressMade(done=done, total=total, unit=self._unit))
            self._told_at = time.monotonic()


def _limit_itself() -> None:
    """Keep hostile input from taking the machine's memory, and a crash from leaving a dump of users' data."""
    os.environ["RAYON_NUM_THREADS"] = str(min(MAX_THREADS, len(os.sched_getaffinity(0))))
    for limit, wanted in ((resource.RLIMIT_AS, MAX_ADDRESS_SPACE_BYTES), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -P -m luthier.datasets RUN_FOLDER")
    _limit_itself()
    sys.exit(main(Path(sys.argv[1])))
