"""The log of a run, wherever it lies: in storage once the run is over, before that where it runs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.installation import Installation
from luthier.storage.files import read_range
from luthier.tables import Run

_BLOCK_BYTES = 1 << 16
# As `worker.child` names it.
_OLDER_NAME = "log.1.txt"


@dataclass(frozen=True)
class LogFile:
    """A log as it is now.

    Attributes:
        key: names the run; the same below the storage and the folder of runs.
        read: the bytes from one offset up to another.
        path: of a log that may still grow; None for one in storage, which has all that is left of a run's.
    """

    key: str
    size_bytes: int
    read: Callable[[int, int], Iterator[bytes]]
    path: Path | None

    @property
    def has_older(self) -> bool:
        """Whether it is not the run's first one: it grew too long, and was begun anew."""
        return self.path is not None and self.path.with_name(_OLDER_NAME).exists()


def key_of(run: Run) -> str:
    return f"{run.job_id}/e{run.epoch:04d}/log.txt"


def find_log(installation: Installation, run: Run) -> LogFile | None:
    """The log of a run; None where there is none, or it is on another machine until the run ends."""
    key, storage = key_of(run), installation.storage
    size = storage.find_size(key)
    if size is not None:
        return LogFile(key, size, lambda start, stop: storage.read_range(key, start, stop), None)
    return local_log(key, installation.settings.runs / key)


def local_log(key: str, path: Path) -> LogFile | None:
    """A log that may still grow; None where there is none."""
    if not path.is_file():
        return None
    return LogFile(key, path.stat().st_size, lambda start, stop: read_range(path, start, stop), path)


def tail_start(log: LogFile, line_count: int) -> int:
    """Where the last lines of a log begin; read from its end, however long it is."""
    # A line break at the very end ends a line and begins none.
    stop = max(0, log.size_bytes - 1)
    while stop > 0:
        start = max(0, stop - _BLOCK_BYTES)
        block = b"".join(log.read(start, stop))
        breaks = block.count(b"\n")
        if breaks >= line_count:
            at = len(block)
            for _ in range(line_count):
                at = block.rfind(b"\n", 0, at)
            return start + at + 1
        line_count, stop = line_count - breaks, start
    return 0
