"""The numbers of a job by step, as columns."""

import csv
import io
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from luthier.status import FINAL, State
from luthier.tables import Job, Metric

KEYS = (
    "train_loss",
    "train_mean_token_accuracy",
    "eval_loss",
    "eval_mean_token_accuracy",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
)


class MetricsObject(BaseModel):
    """`data[key][i]` was measured after step `data["step"][i]`; null where it was not measured then.

    `is_final` tells that the job has ended, so that nothing more will come.
    """

    object: Literal["fine_tuning.job.metrics"] = "fine_tuning.job.metrics"
    job_id: str
    keys: Sequence[str]
    data: dict[str, list[int] | list[float | None]]
    last_step: int | None
    is_final: bool


def metrics_object(job: Job, rows: Sequence[Metric]) -> MetricsObject:
    """One entry a step, ascending."""
    by_step = _merged(rows)
    columns: dict[str, list[int] | list[float | None]] = {"step": list(by_step)}
    columns |= {key: [values.get(key) for values in by_step.values()] for key in KEYS}
    return MetricsObject(
        job_id=job.id,
        keys=KEYS,
        data=columns,
        last_step=max(by_step, default=None),
        is_final=State(job.state) in FINAL,
    )


def metrics_csv(metrics: MetricsObject) -> str:
    """The same as CSV, with a header and an empty cell for null."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(metrics.data)
    writer.writerows(zip(*metrics.data.values(), strict=True))
    return text.getvalue()


def _merged(rows: Sequence[Metric]) -> dict[int, dict[str, float]]:
    """What was measured at each step; training and evaluation are rows of their own."""
    by_step: dict[int, dict[str, float]] = {}
    for row in rows:
        measured = {key: getattr(row, key) for key in KEYS}
        known = {key: value for key, value in measured.items() if value is not None}
        by_step.setdefault(row.step, {}).update(known)
    return by_step
