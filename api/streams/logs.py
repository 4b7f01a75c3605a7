"""Following the log of a job while it grows, from one run to the next.

The file stays open: a log that grows too long is renamed and begun anew beside it, and a run's folder goes
when the run ends. Of a run on another host there is nothing before its end, when its log is stored.
"""

import os
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import suppress
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool

from api.log_files import LogFile, find_log, key_of, local_log, tail_start
from api.streams.broadcast import Broadcast
from luthier import repository
from luthier.installation import Installation

_CHUNK_BYTES = 1 << 18


class LogFollower:
    """Reads the newest log of a job on and on; close it at the end.

    Args:
        offset: bytes of the first log that are passed over; none of a log that has fewer.
        tail: only so many lines from the end of the first log.
        only: id of the log that `offset` counts in, whose bytes alone are wanted. Where it is not the newest
            one, that one is read from its beginning.
    """

    def __init__(
        self,
        installation: Installation,
        job_id: str,
        *,
        offset: int = 0,
        tail: int | None = None,
        only: str | None = None,
    ) -> None:
        self._installation, self._job_id = installation, job_id
        self._offset, self._tail, self._only = offset, tail, only
        self.is_at_end = False
        self._is_to_look = True
        self._log: LogFile | None = None
        self._file: BinaryIO | None = None
        self._stored: Iterator[bytes] = iter(())

    def find_place(self) -> Mapping[str, str]:
        """Open the log, and tell in headers which it is and what of it is passed over; empty without one."""
        log = self._find_other()
        if log is None or (start := self._begin(log)) is None:
            return {}
        return {"X-Log": self._id_of(log), "X-Log-Offset": str(start)}

    def read(self, *, look_for_run: bool) -> bytes:
        """What comes next, at most some hundred kilobytes; empty where there is nothing now.

        Args:
            look_for_run: whether another run may have begun, or this one ended. It is looked for once there
                is nothing more of this one, and so always before the answer is empty.
        """
        self._is_to_look |= look_for_run
        if (chunk := self._read_on()) or self.is_at_end or (other := self._find_other()) is None:
            return chunk
        if chunk := self._read_on():
            # Written after the first look, before the other log began.
            self._is_to_look = True
            return chunk
        if self._only is not None:
            self.is_at_end = True
            return b""
        self._begin(other)
        return self._read_on()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read_on(self) -> bytes:
        chunk = self._file.read(_CHUNK_BYTES) if self._file is not None else b""
        return chunk or next(self._stored, b"")

    def _find_other(self) -> LogFile | None:
        """The log that takes the place of ours, or the first one."""
        if (anew := self._begun_anew()) is not None:
            return anew
        if not self._is_to_look and self._log is not None:
            return None
        self._is_to_look = False
        with self._installation.database.reading() as session:
            run = repository.find_newest_run(session, self._job_id)
        if run is None or (self._log is not None and key_of(run) == self._log.key):
            return None
        return find_log(self._installation, run)

    def _begin(self, log: LogFile) -> int | None:
        """Go on with a log; returns the bytes of it that are passed over, None where it has just gone.

        Then its run has ended, and it is looked for again where logs are stored.
        """
        self.close()
        self._log, self._stored = None, iter(())
        with suppress(FileNotFoundError):
            if log.path is not None:
                self._file = log.path.open("rb")
            start = self._start(log)
            if self._file is None:
                self._stored = log.read(start, log.size_bytes)
            else:
                self._file.seek(start)
            self._log, self._offset, self._tail = log, 0, None
            return start
        return None

    def _start(self, log: LogFile) -> int:
        if self._tail is not None:
            return tail_start(log, self._tail)
        is_known = self._only is None or self._only == self._id_of(log)
        return self._offset if is_known and self._offset <= log.size_bytes else 0

    def _id_of(self, log: LogFile) -> str:
        """One name also when the log is stored: only what was begun anew has another place there."""
        if self._file is None or not log.has_older:
            return log.key
        return f"{log.key}-{os.fstat(self._file.fileno()).st_ino}"

    def _begun_anew(self) -> LogFile | None:
        """The file that is by now where ours was."""
        if self._file is None or self._log is None or self._log.path is None:
            return None
        try:
            is_ours = self._log.path.stat().st_ino == os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return None
        return None if is_ours else local_log(self._log.key, self._log.path)


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
                elif is_over or follower.is_at_end:
                    return
                else:
                    # Only now all runs that there were have been looked at.
                    seen = current
                    await feed.backlog.changed(broadcast.every_seconds)
    finally:
        follower.close()
