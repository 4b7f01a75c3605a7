"""The numbers of a job in the order of steps: all of them, or so few that a curve still keeps its shape.

Rows come as plain tuples from a cursor, never as objects of the session: a long run has 100,000 of them.
Thinning is done by the database. The steps are cut into buckets of equal width, and of each bucket stay the
rows that hold the least and the greatest value of each number; so no peak and no dip is lost, which a mean or
every n-th row would lose.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Row, and_, cast, func, or_, select, union
from sqlalchemy.orm import Session

from luthier.tables import Metric

KEYS = (
    "train_loss",
    "train_mean_token_accuracy",
    "eval_loss",
    "eval_mean_token_accuracy",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
)
_OF_EVALUATION = ("eval_loss", "eval_mean_token_accuracy")
_OF_TRAINING = tuple(key for key in KEYS if key not in _OF_EVALUATION)
# Two rows for each number of a bucket, beside the first and the last row of all.
_ROWS_PER_BUCKET, _ENDS = 2 * len(_OF_TRAINING), 2
MIN_POINTS = _ROWS_PER_BUCKET + _ENDS
_ROWS_PER_FETCH = 1000

MetricRow = Row[Any]


def list_metrics(
    session: Session,
    job_id: str,
    *,
    from_step: int = 0,
    to_step: int | None = None,
    max_points: int | None = None,
    keys: Sequence[str] = KEYS,
) -> Iterator[MetricRow]:
    """The metrics that stand, by step, each with `step` and all of `keys`; read them within the transaction.

    Args:
        max_points: of training rows, at least `MIN_POINTS`; where there are more, the first, the last and
            the extremes of each number stay. Evaluations always stay, and are not counted. None for all.
        keys: some of `KEYS`; rows without any of them are left out.
    """
    wanted = _standing(job_id, from_step, to_step)
    if set(keys) != set(KEYS):
        wanted = and_(wanted, or_(*(getattr(Metric, key).is_not(None) for key in keys)))
    if max_points is not None:
        thinned = _thinned(session, wanted, max_points)
        wanted = wanted if thinned is None else thinned
    columns = [getattr(Metric, key) for key in keys]
    query = select(Metric.step, *columns).where(wanted).order_by(Metric.step, Metric.number)
    yield from session.execute(query.execution_options(yield_per=_ROWS_PER_FETCH))


def _standing(job_id: str, from_step: int, to_step: int | None) -> ColumnElement[bool]:
    conditions = [Metric.job_id == job_id, Metric.is_superseded.is_(False), Metric.step >= from_step]
    if to_step is not None:
        conditions.append(Metric.step <= to_step)
    return and_(*conditions)


def _thinned(session: Session, wanted: ColumnElement[bool], max_points: int) -> ColumnElement[bool] | None:
    """The condition for the rows that stay; None where all may."""
    training = and_(wanted, ~_is_evaluation())
    query = select(func.count(), func.min(Metric.step), func.max(Metric.step)).where(training)
    count, first, last = session.execute(query).one()
    if count <= max_points:
        return None
    buckets = (max_points - _ENDS) // _ROWS_PER_BUCKET
    bucket = cast(Metric.step - first, BigInteger) * buckets // (last - first + 1)
    kept = _numbers_of_extremes(training, bucket)
    return and_(wanted, or_(_is_evaluation(), Metric.step.in_([first, last]), Metric.number.in_(kept)))


def _is_evaluation() -> ColumnElement[bool]:
    return or_(*(getattr(Metric, key).is_not(None) for key in _OF_EVALUATION))


def _numbers_of_extremes(training: ColumnElement[bool], bucket: ColumnElement[int]) -> Any:
    """The numbers of the rows that hold an extreme of their bucket; of equal ones the first."""
    values = [getattr(Metric, key) for key in _OF_TRAINING]
    points = select(Metric.number, bucket.label("bucket"), *values).where(training).subquery()
    # Not a join with the extremes: Postgres, that knows nothing of how many rows come, would loop over them.
    extremes = {
        (key, side): extreme(points.c[key]).over(partition_by=points.c.bucket).label(f"{side}_{key}")
        for key in _OF_TRAINING
        for side, extreme in (("least", func.min), ("greatest", func.max))
    }
    bounded = select(points, *extremes.values()).subquery()
    holders = [
        func.min(bounded.c.number).filter(bounded.c[key] == bounded.c[f"{side}_{key}"]).label(f"{side}_{key}")
        for key, side in extremes
    ]
    kept = select(*holders).group_by(bounded.c.bucket).cte("kept")
    return union(*(select(column).where(column.is_not(None)) for column in kept.c))
