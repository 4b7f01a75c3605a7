"""Follows one child from its start to its end: records what it reports, and ends it where it has to end.

The child's wishes come from its owner (cancel, pause) and from its agent (make room); it is also ended when
it hangs, when it takes more host memory than it may, and when the disk is full.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

import structlog

from luthier import events
from luthier.database import Database, clock
from luthier.service import recording
from luthier.service.claims import Claim
from luthier.service.transitions import LeaseLostError
from luthier.settings import Settings
from luthier.status import DesiredState
from luthier.tables import Run
from worker import process_tree
from worker.child import Child
from worker.lease import LeaseKeeper
from worker.publishing import Publisher, is_disk_full
from worker.stop_flag import StopFlag
from worker.stopping import Ending, Reason
from worker.watchdog import ALIVE_NAME, Watchdog
from worker.writing import Writer

log = structlog.get_logger()
EVENTS_NAME = "events.jsonl"
_BATCH_LINES = 200
# A wish, a lost lease or the child's end is seen within this time.
_LOOK_SECONDS = 0.1
_REASON_OF_WISH = {DesiredState.CANCEL: Reason.CANCEL, DesiredState.PAUSE: Reason.PAUSE}


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        exit_code: negative for a signal.
        last: its last word, where it had one.
        reason: why it was made to end, where it was.
        kernel_ran_out_of_memory: whether the kernel killed a process for want of memory meanwhile.
    """

    exit_code: int
    last: events.RunEnded | None
    reason: Reason | None = None
    kernel_ran_out_of_memory: bool = False


class Reader:
    """Reads one events file from where the last recorded batch ended."""

    def __init__(self, path: Path, database: Database, claim: Claim, publisher: Publisher) -> None:
        self._path, self._database, self._claim, self._publisher = path, database, claim, publisher
        self._stores_offset = path.name == EVENTS_NAME
        self._in_doubt = False
        self.offset = 0
        self.last: events.RunEnded | None = None
        self.phase: str | None = None

    def record(self) -> None:
        """Record what has come; a checkpoint is published before anything behind it is read."""
        if self._in_doubt and self._stores_offset:
            # The last commit failed, or only its answer was lost: the row knows.
            self.offset = max(self.offset, self._recorded_offset())
        batch, offset = self._read()
        if offset == self.offset:
            return
        for event in batch:
            self._take(event)
        self._in_doubt = True
        with self._database.transaction() as session:
            stored = offset if self._stores_offset else 0
            recording.record_events(session, self._claim.lease, batch, offset=stored, now=clock(session))
        self._in_doubt, self.offset = False, offset

    def is_at_end(self) -> bool:
        return self._read()[1] == self.offset

    def size_bytes(self) -> int:
        """Of the file as it is now, recorded or not."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def _take(self, event: events.AnyEvent) -> None:
        match event:
            case events.CheckpointSaved():
                self._publisher.publish(event)
            case events.RunEnded():
                self.last = event
            case events.PhaseChanged():
                self.phase = event.phase

    def _recorded_offset(self) -> int:
        with self._database.reading() as session:
            run = session.get(Run, (self._claim.lease.job_id, self._claim.lease.epoch))
        return run.event_offset if run else 0

    def _read(self) -> tuple[list[events.AnyEvent], int]:
        batch: list[events.AnyEvent] = []
        offset = self.offset
        for event, behind in events.read_events(self._path, self.offset):
            batch.append(event)
            offset = behind
            if len(batch) == _BATCH_LINES:
                break
        return batch, offset


class Follower:
    """Follows one child.

    Args:
        reader: of the child's events.
        stopping: set when the agent shall make room.
    """

    def __init__(
        self,
        child: Child,
        reader: Reader,
        *,
        folder: Path,
        keeper: LeaseKeeper,
        writer: Writer,
        settings: Settings,
        stopping: StopFlag,
    ) -> None:
        self._child, self._reader, self._alive = child, reader, folder / ALIVE_NAME
        self._keeper, self._writer, self._settings, self._stopping = keeper, writer, settings, stopping
        self._ending = Ending(settings)
        now = time.monotonic()
        self._watchdog = Watchdog(settings.hang_seconds, now)
        self._silent_until = now + settings.start_timeout_seconds
        self._next_look = now
        self._seen_bytes, self._beaten_at = 0, 0
        self._lost_at: float | None = None

    def follow(self) -> Ended:
        """Until the child is gone and all that it reported is recorded.

        Raises:
            LeaseLostError: the lease is gone, and so is the child.
            UnkillableError: the child does not end.
            JobFailure: it reported what cannot be.
        """
        kills_before = process_tree.killed_for_memory_count()
        code = self._wait()
        self._keeper.check()
        if self._ending.reason != Reason.DISK_FULL:
            self._record_rest()
        was_killed = code == -SIGKILL and self._ending.killed_at is None
        ran_out = was_killed and process_tree.killed_for_memory_count() > kills_before
        return Ended(code, self._reader.last, self._ending.reason, ran_out)

    def _wait(self) -> int:
        while (code := self._child.poll()) is None:
            now = time.monotonic()
            if self._keeper.lost.is_set():
                self._await_fence(now)
            else:
                self._look(now)
            time.sleep(min(_LOOK_SECONDS, self._settings.watch_seconds))
        return code

    def _look(self, now: float) -> None:
        if now >= self._next_look:
            self._record()
            # Recording may have waited for the database: what came meanwhile is seen before it is judged.
            self._watch(time.monotonic())
            self._next_look = time.monotonic() + self._settings.watch_seconds
        self._hear_wishes(now)
        self._send_signals(time.monotonic())

    def _await_fence(self, now: float) -> None:
        """The lease is lost, and its keeper ends the child; what outlives that is unkillable."""
        self._lost_at = self._lost_at or now
        if now - self._lost_at > self._settings.cancel_grace_seconds:
            self._child.end(self._settings.unkillable_seconds)

    def _record(self) -> None:
        if self._ending.reason == Reason.DISK_FULL:
            return
        try:
            self._writer.attempt(self._reader.record)
        except LeaseLostError:
            self._keeper.lost.set()
        except OSError as error:
            if not is_disk_full(error):
                raise
            log.warning("disk_full", reason=str(error))
            self._ending.want(Reason.DISK_FULL, time.monotonic())

    def _record_rest(self) -> None:
        while not self._reader.is_at_end():
            before = self._reader.offset
            self._writer.insist_on(self._record_or_stop)
            if self._ending.reason == Reason.DISK_FULL or self._reader.offset == before:
                return

    def _record_or_stop(self) -> None:
        try:
            self._reader.record()
        except OSError as error:
            if not is_disk_full(error):
                raise
            self._ending.want(Reason.DISK_FULL, time.monotonic())

    def _hear_wishes(self, now: float) -> None:
        if (reason := _REASON_OF_WISH.get(self._keeper.wish)) is not None:
            self._ending.want(reason, now)
        if self._stopping.is_set():
            self._ending.want(Reason.DRAIN, now)

    def _watch(self, now: float) -> None:
        """Whether the child gets on, and takes no more than it may."""
        self._look_for_signs(now)
        if self._seen_bytes == 0 and now > self._silent_until:
            self._give_up(Reason.SILENT, now)
        if self._watchdog.hangs(now):
            self._give_up(Reason.HUNG, now)
        if self._takes_too_much_memory():
            self._give_up(Reason.HOST_MEMORY, now)

    def _give_up(self, reason: Reason, now: float) -> None:
        if self._ending.reason is None:
            log.warning("child_given_up", pid=self._child.pid, reason=str(reason))
            self._ending.want(reason, now)

    def _look_for_signs(self, now: float) -> None:
        seen, beaten_at = self._reader.size_bytes(), self._beat()
        if (seen, beaten_at) != (self._seen_bytes, self._beaten_at):
            self._seen_bytes, self._beaten_at = seen, beaten_at
            self._watchdog.note_sign(self._reader.phase, now)
        if (process := process_tree.read_process(self._child.pid)) is not None:
            self._watchdog.note_cpu(process.cpu_seconds, now)

    def _beat(self) -> int:
        """When the trainer last touched its file, in its own count; it is compared with itself alone."""
        with contextlib.suppress(OSError):
            return self._alive.stat().st_mtime_ns
        return 0

    def _takes_too_much_memory(self) -> bool:
        limit = self._settings.max_host_memory_bytes
        if limit is None:
            return False
        members = self._child.members()
        # Pages that processes share are counted for each of them here, and looked at closely only then.
        return sum(one.memory_bytes for one in members) > limit < process_tree.shared_out_bytes(members)

    def _send_signals(self, now: float) -> None:
        for number in self._ending.due(now):
            if number == SIGKILL:
                log.warning("child_killed", pid=self._child.pid, reason=str(self._ending.reason))
                self._child.end(self._settings.unkillable_seconds)
            else:
                self._child.signal(number)
