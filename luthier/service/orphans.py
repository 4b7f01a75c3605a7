"""Which of the things in storage no row speaks of: what a crash between bytes and row has left.

A key tells what lies under it (`Unit`); what has another form is not ours to judge and stays. Whoever asks
has waited for things to grow old: bytes come before their row. A run that works is left alone whatever the
age of its bytes; once its lease is gone no row can come any more, for its epoch fences it.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from luthier.status import LEASED, State
from luthier.tables import Artifact, Checkpoint, File, Job, PreparedRows, UploadPart

_FORMS = {
    "file": re.compile(r"files/(?P<file>file-[^/]+)"),
    "part": re.compile(r"uploads/(?P<part>part_[^/]+)"),
    "prepared": re.compile(r"prepared/(?P<project>[^/]+)/(?P<cache_key>[^/]+)"),
    "checkpoint": re.compile(r"(?P<job>[a-z]+-[^/]+)/e(?P<epoch>\d{4,})/checkpoints/[^/]+"),
    "artifacts": re.compile(r"(?P<job>[a-z]+-[^/]+)/e(?P<epoch>\d{4,})/artifacts"),
    "log": re.compile(r"(?P<job>[a-z]+-[^/]+)/e(?P<epoch>\d{4,})/log\.txt"),
}
_OF_A_JOB = frozenset({"checkpoint", "artifacts", "log"})

Form = Literal["file", "part", "prepared", "checkpoint", "artifacts", "log"]


@dataclass(frozen=True)
class Unit:
    """What goes or stays as one: a file, or a folder with all that is in it.

    Attributes:
        owner: of a prepared folder its project, of a run's things their job, of a file or a part its own id.
        name: of a prepared folder its cache key; else empty.
        epoch: of a run's things; else 0.
    """

    form: Form
    key: str
    owner: str
    name: str = ""
    epoch: int = 0


def unit_of(key: str) -> Unit | None:
    """What the file under a key belongs to; None where the key is of no form that we know."""
    for form, pattern in _FORMS.items():
        found = pattern.match(key)
        if found is None or key[found.end() :][:1] not in ("", "/"):
            continue
        parts = found.groupdict()
        return Unit(
            form,  # type: ignore[arg-type]
            found.group(),
            parts.get("file") or parts.get("part") or parts.get("project") or parts["job"],
            parts.get("cache_key") or "",
            int(parts.get("epoch") or 0),
        )
    return None


def find_orphans(session: Session, units: Sequence[Unit]) -> list[Unit]:
    """Those of some hundred units that no row speaks of."""
    # Read first: a run that ends meanwhile then counts as at work, and one that has ended has all its rows.
    jobs = _jobs(session, {unit.owner for unit in units if unit.form in _OF_A_JOB})
    judges: dict[str, Callable[[Unit], bool]] = {
        "file": _known(session, File, _owners(units, "file")),
        "part": _known(session, UploadPart, _owners(units, "part")),
        "prepared": _prepared(session, [unit for unit in units if unit.form == "prepared"]),
        "checkpoint": _checkpoints(session, _owners(units, "checkpoint")),
        "artifacts": _artifacts(session, _owners(units, "artifacts")),
        "log": lambda _: True,
    }

    def is_spoken_of(unit: Unit) -> bool:
        if unit.form not in _OF_A_JOB:
            return judges[unit.form](unit)
        if unit.owner not in jobs:
            return False
        state, epoch = jobs[unit.owner]
        return (state in LEASED and epoch == unit.epoch) or judges[unit.form](unit)

    return [unit for unit in units if not is_spoken_of(unit)]


def hold_prepared(session: Session, unit: Unit, *, now: datetime) -> bool:
    """Keep others from making rows of a cache key until this transaction ends; False where there are some.

    A folder of that key may be found whole, and a row made of it, at any time: so whoever deletes it holds
    the key meanwhile, and whoever makes the row looks for the folder afterwards, in the same transaction.
    """
    placeholder = PreparedRows(
        project_id=unit.owner,
        key=unit.name,
        file_sha256="",
        storage_key=unit.key,
        facts={},
        size_bytes=0,
        created_at=now,
        last_used_at=now,
    )
    try:
        with session.begin_nested():
            session.add(placeholder)
    except IntegrityError:
        return False
    session.delete(placeholder)
    session.flush()
    return True


def _owners(units: Sequence[Unit], form: Form) -> set[str]:
    return {unit.owner for unit in units if unit.form == form}


def _known(session: Session, table: type[File | UploadPart], ids: Collection[str]) -> Callable[[Unit], bool]:
    known = set(session.scalars(select(table.id).where(table.id.in_(ids))))
    return lambda unit: unit.owner in known


def _prepared(session: Session, units: Sequence[Unit]) -> Callable[[Unit], bool]:
    query = select(PreparedRows.storage_key).where(
        PreparedRows.project_id.in_({unit.owner for unit in units}),
        PreparedRows.key.in_({unit.name for unit in units}),
    )
    known = set(session.scalars(query))
    return lambda unit: unit.key in known


def _checkpoints(session: Session, job_ids: Collection[str]) -> Callable[[Unit], bool]:
    known = set(session.scalars(select(Checkpoint.storage_key).where(Checkpoint.job_id.in_(job_ids))))
    return lambda unit: unit.key in known


def _artifacts(session: Session, job_ids: Collection[str]) -> Callable[[Unit], bool]:
    query = select(Artifact.job_id, Artifact.epoch).where(Artifact.job_id.in_(job_ids)).distinct()
    known = {(job_id, epoch) for job_id, epoch in session.execute(query)}
    return lambda unit: (unit.owner, unit.epoch) in known


def _jobs(session: Session, ids: Collection[str]) -> dict[str, tuple[State, int]]:
    query = select(Job.id, Job.state, Job.lease_epoch).where(Job.id.in_(ids), Job.deleted_at.is_(None))
    return {job_id: (State(state), epoch) for job_id, state, epoch in session.execute(query)}
