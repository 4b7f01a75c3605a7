"""Clocks that jump, and a lease without an end: what the database's own clock and its checks are worth."""

import ast
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from luthier.database import Database
from luthier.service import runs, sweep
from luthier.service.retries import Limits
from luthier.service.transitions import LeaseLostError
from luthier.status import State
from luthier.tables import Job
from tests.factories import NOW, claim, create_prepared_job

ROOT = Path(__file__).parents[2]
LIMITS = Limits(max_infra_restarts=5, max_user_failures=5, max_deaths=3)
HOUR = timedelta(hours=1)
WALL_CLOCKS = frozenset({"time.time", "datetime.now", "datetime.utcnow", "datetime.today", "time.gmtime"})


def _wall_clocks(path: Path) -> list[str]:
    calls = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    return [f"{path.name}:{call.lineno}" for call in calls if ast.unparse(call.func) in WALL_CLOCKS]


def test_f30_what_a_worker_decides_on_does_not_depend_on_its_wall_clock() -> None:
    """Leases are compared with the database's clock; a worker's own deadlines are monotonic."""
    paths = [*(ROOT / "worker").rglob("*.py"), *(ROOT / "luthier" / "service").rglob("*.py")]
    assert [place for path in paths for place in _wall_clocks(path)] == []


def test_f31_a_jump_of_the_databases_clock_costs_one_requeue_and_fences_the_first_owner(
    database: Database,
) -> None:
    with database.transaction() as session:
        create_prepared_job(session)
        first = claim(session)
        assert first is not None
        taken = [
            sweep.sweep(session, limits=LIMITS, jitter=0.0, now=now, at_most=None)
            for now in (NOW, NOW + HOUR)
        ]
        second = claim(session, now=NOW + HOUR)
        assert second is not None
        taken.append(sweep.sweep(session, limits=LIMITS, jitter=0.0, now=NOW, at_most=None))
        with pytest.raises(LeaseLostError):
            runs.heartbeat(session, first.lease, lease_seconds=180, now=NOW)
        runs.heartbeat(session, second.lease, lease_seconds=180, now=NOW)
    assert taken == [[], ["ftjob-1"], []]


def test_f32_a_row_that_is_worked_on_has_an_owner_by_force(database: Database) -> None:
    with database.transaction() as session:
        create_prepared_job(session)
    running = update(Job).where(Job.id == "ftjob-1").values(state=State.RUNNING)
    with pytest.raises(IntegrityError), database.transaction() as session:
        session.execute(running)


def test_f32_a_lease_without_an_end_is_over(database: Database) -> None:
    with database.transaction() as session:
        create_prepared_job(session)
        claim(session)
        session.execute(update(Job).where(Job.id == "ftjob-1").values(lease_expires_at=None))
    with database.transaction() as session:
        assert sweep.sweep(session, limits=LIMITS, jitter=0.0, now=NOW, at_most=None) == ["ftjob-1"]
