"""The numbers of a job: thinned without losing a peak, and recorded in few statements."""

import random
from collections.abc import Iterator

import pytest
from sqlalchemy import event, update
from sqlalchemy.orm import Session

from luthier import events, metrics
from luthier.database import Database
from luthier.service import recording
from luthier.service.transitions import Lease
from luthier.tables import Metric
from tests.factories import NOW, claim, create_prepared_job

_STEPS = 3000
_SPIKE, _DIP = 1234, 2345


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


@pytest.fixture
def lease(session: Session) -> Lease:
    create_prepared_job(session)
    taken = claim(session)
    assert taken is not None
    return taken.lease


def _step(step: int, **numbers: float | None) -> events.StepLogged:
    return events.StepLogged(step=step, total_steps=_STEPS, epoch=0, **numbers)  # type: ignore[arg-type]


def _record(session: Session, lease: Lease, lines: list[events.AnyEvent]) -> None:
    recording.record_events(session, lease, lines, offset=1, now=NOW)


def _long_run() -> list[events.AnyEvent]:
    noise = random.Random(7)
    lines: list[events.AnyEvent] = [events.RunStarted()]
    for step in range(1, _STEPS + 1):
        grad_norm = {_SPIKE: 1e6, _DIP: 1e-6}.get(step, 1 + noise.random())
        lines.append(_step(step, train_loss=noise.random(), learning_rate=1e-4, grad_norm=grad_norm))
        if step % 100 == 0:
            lines.append(events.EvalLogged(step=step, total_steps=_STEPS, eval_loss=float(step)))
    return lines


def test_thinned_numbers_keep_extremes_ends_and_all_evaluations(session: Session, lease: Lease) -> None:
    _record(session, lease, _long_run())
    rows = list(metrics.list_metrics(session, lease.job_id, max_points=200))
    training = [row for row in rows if row.eval_loss is None]
    grad_norms = {row.step: row.grad_norm for row in training}
    assert (grad_norms[_SPIKE], grad_norms[_DIP]) == (1e6, 1e-6)
    assert {1, _STEPS} <= set(grad_norms)
    assert len(training) <= 200
    assert [row.step for row in rows if row.eval_loss is not None] == list(range(100, _STEPS + 1, 100))


def test_every_bucket_keeps_its_least_and_its_greatest_value(session: Session, lease: Lease) -> None:
    _record(session, lease, _long_run())
    whole = list(metrics.list_metrics(session, lease.job_id))
    thinned = list(metrics.list_metrics(session, lease.job_id, max_points=metrics.MIN_POINTS + 10 * 9))
    kept = {row.train_loss for row in thinned}
    for start in range(0, _STEPS, _STEPS // 10):
        losses = [row.train_loss for row in whole if start < row.step <= start + 300 and row.train_loss]
        assert {min(losses), max(losses)} <= kept


def test_few_numbers_stay_as_they_are(session: Session, lease: Lease) -> None:
    lines: list[events.AnyEvent] = [_step(step, train_loss=None) for step in range(1, 13)]
    _record(session, lease, lines)
    steps = [row.step for row in metrics.list_metrics(session, lease.job_id, max_points=12)]
    assert steps == list(range(1, 13))


def test_what_a_lost_run_logged_is_no_extreme(session: Session, lease: Lease) -> None:
    _record(session, lease, _long_run())
    session.execute(update(Metric).where(Metric.step == _SPIKE).values(is_superseded=True))
    rows = metrics.list_metrics(session, lease.job_id, max_points=200)
    assert _SPIKE not in {row.step for row in rows}


@pytest.mark.parametrize("count", [1, 150])
def test_a_batch_of_any_length_costs_four_statements(session: Session, lease: Lease, count: int) -> None:
    _record(session, lease, [events.RunStarted()])
    statements: list[str] = []
    connection = session.connection()
    event.listen(connection, "before_cursor_execute", lambda *args: statements.append(args[2].split()[0]))
    lines: list[events.AnyEvent] = [events.WarningRaised(code="slow", message="It is slow")]
    _record(session, lease, [*lines, *(_step(step) for step in range(count))])
    assert statements == ["UPDATE", "INSERT", "INSERT", "UPDATE"]
