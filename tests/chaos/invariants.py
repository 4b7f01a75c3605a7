"""What must hold after any fault, read from the database and the disk alone, never from a log.

Each function looks at one promise and gives the places where it is broken, in words; an empty list is well.
`check_all` runs all of them over an installation whose processes have ended.
"""

import fcntl
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import psutil
from sqlalchemy import select
from sqlalchemy.orm import Session

from luthier.accounts import recount
from luthier.artifacts import MANIFEST_NAME, ManifestError, sha256_of, verify
from luthier.database import Database
from luthier.status import FINAL, LEASED, Kind, State
from luthier.tables import Artifact, Checkpoint, Job, JobEvent, Metric, Outbox, Project, Run

_TERMINAL_EVENTS = frozenset({"job_succeeded", "job_failed", "job_cancelled", "job_quarantined"})
_CHUNK_BYTES = 1 << 20
AnyRow = TypeVar("AnyRow")
OfJob = TypeVar("OfJob", Run, JobEvent, Artifact)


@dataclass
class Scene:
    """What is looked at.

    Attributes:
        accepted: ids that a caller was given, each with the states that its job may have ended in.
        folder: of the installation; its processes carry it in their environment.
        secrets: texts that no file may hold; `searched` are the folders that are searched for them.
    """

    database: Database
    storage: Path
    folder: Path
    accepted: Mapping[str, Collection[State]] = field(default_factory=dict)
    secrets: Sequence[str] = ()
    searched: Sequence[Path] = ()

    @cached_property
    def jobs(self) -> dict[str, Job]:
        return {job.id: job for job in self._all(Job)}

    @cached_property
    def runs(self) -> dict[str, list[Run]]:
        """By job, in the order of their epochs."""
        return _grouped(sorted(self._all(Run), key=lambda run: run.epoch))

    @cached_property
    def events(self) -> dict[str, list[JobEvent]]:
        """By job, in the order of their numbers."""
        return _grouped(sorted(self._all(JobEvent), key=lambda event: event.number))

    @cached_property
    def artifacts(self) -> dict[str, list[Artifact]]:
        return _grouped(self._all(Artifact))

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        return self._all(Checkpoint)

    def read(self, question: Callable[[Session], list[str]]) -> list[str]:
        with self.database.reading() as session:
            return question(session)

    def _all(self, table: type[AnyRow]) -> list[AnyRow]:
        with self.database.reading() as session:
            return list(session.scalars(select(table)))


def accepted_jobs_have_ended_once(scene: Scene) -> list[str]:
    """I1: every accepted job is there, ended as it should, and no submit made a second job."""
    broken = []
    for job_id, states in scene.accepted.items():
        job = scene.jobs.get(job_id)
        if job is None:
            broken.append(f"{job_id} was accepted and is gone")
        elif job.state not in states:
            broken.append(f"{job_id} is {job.state}, not {' or '.join(states)}: {job.error_message}")
        elif job.state == State.SUCCEEDED and not scene.artifacts.get(job_id):
            broken.append(f"{job_id} succeeded and left no artifact")
    numbers = Counter(
        (job.user_metadata or {}).get("number") for job in scene.jobs.values() if job.kind == Kind.TRAIN
    )
    broken += [
        f"submit {number} made {count} jobs" for number, count in numbers.items() if number and count > 1
    ]
    return broken


def jobs_succeed_at_most_once(scene: Scene) -> list[str]:
    """I2: at most one success in events and runs; artifacts are of the run that succeeded."""
    broken = []
    for job_id, job in scene.jobs.items():
        told = sum(event.kind == "job_succeeded" for event in scene.events.get(job_id, []))
        epochs = [run.epoch for run in scene.runs.get(job_id, []) if run.outcome == "succeeded"]
        expected = 1 if job.state == State.SUCCEEDED else 0
        if (told, len(epochs)) != (expected, expected):
            broken.append(f"{job_id} is {job.state} with {told} events and {len(epochs)} runs of success")
        stale = {artifact.epoch for artifact in scene.artifacts.get(job_id, [])} - set(epochs)
        if stale:
            broken.append(f"{job_id} has artifacts of the runs {sorted(stale)}, which did not succeed")
    return broken


def visible_files_are_whole(scene: Scene) -> list[str]:
    """I3: what a row makes visible is on disk, byte for byte: artifacts and checkpoints."""
    broken = []
    for artifact in (artifact for of_job in scene.artifacts.values() for artifact in of_job):
        path = scene.storage / artifact.storage_key
        if not path.is_file() or sha256_of(path) != artifact.sha256:
            broken.append(f"artifact {artifact.storage_key} is missing or damaged")
    for checkpoint in scene.checkpoints:
        folder = scene.storage / checkpoint.storage_key
        try:
            verify(folder)
        except ManifestError as error:
            broken.append(f"checkpoint {checkpoint.storage_key}: {error}")
        else:
            if sha256_of(folder / MANIFEST_NAME) != checkpoint.manifest_sha256:
                broken.append(f"checkpoint {checkpoint.storage_key} is another than its row says")
    return broken


def leases_stand_with_work_alone(scene: Scene) -> list[str]:
    """I4: a job that is worked on has an owner and an end of its lease; no other has."""
    broken = []
    for job in scene.jobs.values():
        held = (job.lease_owner is not None, job.lease_expires_at is not None)
        expected = State(job.state) in LEASED
        if held != (expected, expected):
            broken.append(f"{job.id} is {job.state} with owner {job.lease_owner}")
    return broken


def epochs_grow(scene: Scene) -> list[str]:
    """I5: runs are numbered without a gap as their epochs grow, in time, and so are events."""
    broken = []
    for job_id, runs in scene.runs.items():
        if [run.number for run in runs] != list(range(1, len(runs) + 1)):
            broken.append(f"{job_id}: its runs are numbered {[run.number for run in runs]}")
        if any(later.started_at < earlier.started_at for earlier, later in pairwise(runs)):
            broken.append(f"{job_id}: a run of a later epoch began earlier")
        if runs[-1].epoch > scene.jobs[job_id].lease_epoch:
            broken.append(f"{job_id}: run {runs[-1].epoch} is beyond the job's epoch")
    for job_id, events in scene.events.items():
        if any(later.epoch < earlier.epoch for earlier, later in pairwise(events)):
            broken.append(f"{job_id}: an event of an older run came after one of a newer")
    return broken


def nothing_follows_the_end(scene: Scene) -> list[str]:
    """I6: the last fact about an ended job is how it ended, and nothing but that says so."""
    broken = []
    with scene.database.reading() as session:
        measured: dict[str, int] = defaultdict(int)
        for job_id, number in session.execute(select(Metric.job_id, Metric.number)):
            measured[job_id] = max(measured[job_id], number)
    for job_id, job in scene.jobs.items():
        events = scene.events.get(job_id, [])
        ends = [event.number for event in events if event.kind in _TERMINAL_EVENTS]
        last = max([event.number for event in events] + [measured[job_id]], default=0)
        if State(job.state) in FINAL and ends != [last]:
            broken.append(f"{job_id} is {job.state}; it ended at {ends}, and its last number is {last}")
        elif State(job.state) not in FINAL and ends:
            broken.append(f"{job_id} is {job.state}, and its events say that it ended")
    return broken


def no_process_is_left(scene: Scene) -> list[str]:
    """I7: no process of the installation lives, and nobody holds a lock in its folder."""
    broken = [f"process {pid} is left: {command}" for pid, command in processes_of(scene.folder)]
    for path in [*scene.folder.rglob("*.lock"), *scene.folder.glob("*/runs/*/*")]:
        if _is_locked(path):
            broken.append(f"{path.relative_to(scene.folder)} is locked")
    return broken


def outbox_is_empty(scene: Scene) -> list[str]:
    """I8: every message that a transaction promised was sent."""

    def unsent(session: Session) -> list[str]:
        rows = session.scalars(select(Outbox).where(Outbox.sent_at.is_(None)))
        return [f"message {row.id} ({row.topic} {row.key}) was not sent in {row.tries} tries" for row in rows]

    return scene.read(unsent)


def storage_is_counted(scene: Scene) -> list[str]:
    """I9: what a project takes up in storage is what its rows say."""

    def miscounted(session: Session) -> list[str]:
        projects = session.execute(select(Project.id, Project.storage_bytes)).all()
        counted = [(project_id, stored, recount(session, project_id)) for project_id, stored in projects]
        return [f"{one}: {stored} bytes, counted {rows}" for one, stored, rows in counted if stored != rows]

    return scene.read(miscounted)


def no_secret_is_written(scene: Scene) -> list[str]:
    """I10: no file holds a secret: not the logs, the database's own files, the storage or a run folder."""
    needles = [text.encode() for text in scene.secrets]
    paths = (path for folder in scene.searched for path in folder.rglob("*"))
    return [f"{path} holds a secret" for path in paths if path.is_file() and _holds(path, needles)]


def steps_were_done_once(scene: Scene) -> list[str]:
    """P13: a job's last run went on where its checkpoints ended; the scripted trainer says what it did."""
    broken = []
    for job_id in scene.accepted:
        for artifact in scene.artifacts.get(job_id, []):
            if artifact.name == "all_results.json":
                steps = json.loads((scene.storage / artifact.storage_key).read_bytes())["steps"]
                if steps != list(range(1, len(steps) + 1)):
                    broken.append(f"{job_id} did the steps {steps}")
    return broken


INVARIANTS: tuple[Callable[[Scene], list[str]], ...] = (
    accepted_jobs_have_ended_once,
    jobs_succeed_at_most_once,
    visible_files_are_whole,
    leases_stand_with_work_alone,
    epochs_grow,
    nothing_follows_the_end,
    no_process_is_left,
    outbox_is_empty,
    storage_is_counted,
    no_secret_is_written,
    steps_were_done_once,
)


def check_all(scene: Scene) -> list[str]:
    """All that is broken, each with the name of its invariant."""
    return [f"{check.__name__}: {text}" for check in INVARIANTS for text in check(scene)]


def processes_of(folder: Path) -> Iterator[tuple[int, str]]:
    """Processes with a folder in their environment, but this one and those that are dead already."""
    marker = str(folder).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if marker in environment:
            yield int(entry.name), command.replace(b"\0", b" ").decode(errors="replace")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _holds(path: Path, needles: Iterable[bytes]) -> bool:
    overlap = max((len(needle) for needle in needles), default=0)
    before = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            text = before + chunk
            if any(needle in text for needle in needles):
                return True
            before = text[-overlap:]
    return False


def _grouped(rows: Iterable[OfJob]) -> dict[str, list[OfJob]]:
    groups: dict[str, list[OfJob]] = defaultdict(list)
    for row in rows:
        groups[row.job_id].append(row)
    return dict(groups)
