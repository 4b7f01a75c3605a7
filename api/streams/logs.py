"""Following the log of a job while it grows, from one run to the next.

The file stays open: a log that grows too long is renamed and begun anew beside it, and a run's folder goes
when the run ends. Of a run on another host there is nothing before its end, when its log is stored.
"""

import os
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool

from api.log_files import LogFile, find_log, key_of, tail_start
from api.streams.broadcast import Broadcast
from luthier import repository
from luthier.installation import Installation

_CHUNK_BYTES = 1 << 18


class LogFollower:
    """Reads the newest log of a job on and on; close it at the end.

    Args:
        offset: bytes of the first log that are passed over; none of a log that has fewer.
        tail: only so many lines from the end of the first log.
    """

    def __init__(
        self, installation: Installation, job_id: str, *, offset: int = 0, tail: int | None = None
    ) -> None:
        self._installation, self._job_id = installation, job_id
        self._offset, self._tail = offset, tail
        self._key: str | None = None
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._stored: Iterator[bytes] = iter(())

    def read(self, *, look_for_run: bool) -> bytes:
        """What comes next, at most some hundred kilobytes; empty where there is nothing now.

        Args:
            look_for_run: whether another run may have begun, or this one ended. It is looked for once there
                is nothing more of this one, and so always before the answer is empty.
        """
        if chunk := self._read_on():
            return chunk
        if self._is_begun_anew():
            self._open(0)
            if chunk := self._read_on():
                return chunk
        if look_for_run or self._key is None:
            self._look_for_run()
        return self._read_on()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read_on(self) -> bytes:
        chunk = self._file.read(_CHUNK_BYTES) if self._file is not None else b""
        return chunk or next(self._stored, b"")

    def _look_for_run(self) -> None:
        with self._installation.database.reading() as session:
            run = repository.find_newest_run(session, self._job_id)
        if run is None or key_of(run) == self._key or (log := find_log(self._installation, run)) is None:
            return
        start = self._start(log)
        self._key, self._path, self._offset, self._tail = log.key, log.path, 0, None
        if log.path is None:
            self._stored = log.read(start, log.size_bytes)
        else:
            self._open(start)

    def _start(self, log: LogFile) -> int:
        if self._tail is not None:
            return tail_start(log, self._tail)
        return self._offset if self._offset <= log.size_bytes else 0

    def _open(self, start: int) -> None:
        self.close()
        self._file = None
        # Where it has gone meanwhile, the run has ended, and the log is stored.
        with suppress(FileNotFoundError):
            if self._path is not None:
                self._file = self._path.open("rb")
                self._file.seek(start)

    def _is_begun_anew(self) -> bool:
        """Whether there is another file by now where ours was."""
        if self._file is None or self._path is None:
            return False
        try:
            return self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return False


async def follow_log(broadcast: Broadcast, follower: LogFollower, job_id: str) -> AsyncGenerator[bytes, None]:
    """What there is of a job's log, and what comes, until the job has ended or `longest_seconds` are over."""
    until = time.monotonic() + broadcast.longest_seconds
    try:
        async with broadcast.job(job_id) as feed:
            seen: dict[str, bytes] | None = None
            while not broadcast.is_closed and time.monotonic() <= until:
                # In this order, so that what was written before the end is read after it.
                is_over, current = feed.is_over, feed.current
                chunk = await run_in_threadpool(follower.read, look_for_run=is_over or current != seen)
                if chunk:
                    yield chunk
                elif is_over:
                    return
                else:
                    # Only now all runs that there were have been looked at.
                    seen = current
                    await feed.backlog.changed(broadcast.every_seconds)
    finally:
        follower.close()
