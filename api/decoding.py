"""The check of a small file that must be decoded: by a child whose memory, time and disk are limited.

A few megabytes may ask for gigabytes while they are decoded, so no process that serves others reads such
rows. A child that comes to no end within its limits tells nothing of the file: a worker's child, whose limits
are wider, reads it later.
"""

import os
import resource
import subprocess
import tempfile
import threading
from pathlib import Path

from luthier.datasets.report import ValidationReport
from luthier.events import RunEnded, read_events
from luthier.processes import import_path, module_command
from luthier.spec import DatasetEntry, SourceFile, ValidateSpec

_SECONDS = 20
_LIMITS = (
    (resource.RLIMIT_AS, 2 << 30),
    # Should we be killed while it runs.
    (resource.RLIMIT_CPU, _SECONDS),
    # Parquet that is packed once more is decoded to a temporary file.
    (resource.RLIMIT_FSIZE, 256 << 20),
)
# A child takes a core; a request that finds no place leaves its file to a worker, so that none waits for one.
_PLACES = threading.BoundedSemaphore(4)
_TOO_LARGE = "dataset.decoded_too_large"
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")


def find_report(path: Path, filename: str, entry: DatasetEntry | None) -> ValidationReport | None:
    """The report of a file that was read whole; None where that takes more than a request may.

    Args:
        filename: what the user calls it; stands in the report.
        entry: of dataset_info.json, where the file is read by one.
    """
    if not _PLACES.acquire(blocking=False):
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = SourceFile(path=str(path), filename=filename, param="file", entry=entry)
            return _read_by_child(Path(folder), source)
    finally:
        _PLACES.release()


def _read_by_child(folder: Path, source: SourceFile) -> ValidationReport | None:
    spec = ValidateSpec(job_id="upload", run=1, epoch=1, file=source)
    (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    _run(module_command("luthier.datasets", str(folder)), folder)
    events = [event for event, _ in read_events(folder / "events.jsonl", 0)]
    ended = events[-1] if events else None
    if not isinstance(ended, RunEnded) or ended.outcome != "done":
        return None
    report = ValidationReport.model_validate(ended.result["report"])
    # Too large for these limits; perhaps not for a worker's.
    return None if _TOO_LARGE in report.error_counts else report


def _run(command: list[str], folder: Path) -> None:
    """Run a child to its end, or to that of its time."""
    inherited = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**inherited, **import_path()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            # Set from here: code of ours between fork and exec is not safe beside other threads.
            for limit, most in _LIMITS:
                _lower(process.pid, limit, most)
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()


def _lower(process_id: int, limit: int, most: int) -> None:
    _, hard = resource.prlimit(process_id, limit)
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.prlimit(process_id, limit, (value, value))
