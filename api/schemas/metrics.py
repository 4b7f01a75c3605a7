"""The numbers of a job by step, as columns."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Literal

from pydantic import BaseModel

from luthier.metrics import KEYS, MetricRow
from luthier.status import FINAL, State
from luthier.tables import Job


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


def metrics_object(job: Job, rows: Iterable[MetricRow], keys: Sequence[str] = KEYS) -> MetricsObject:
    """One entry a step, ascending, of rows that are in the order of steps."""
    by_step = dict(_merged(rows))
    columns: dict[str, list[int] | list[float | None]] = {"step": list(by_step)}
    columns |= {key: [values.get(key) for values in by_step.values()] for key in keys}
    return MetricsObject(
        job_id=job.id,
        keys=keys,
        data=columns,
        last_step=max(by_step, default=None),
        is_final=State(job.state) in FINAL,
    )


def metrics_csv(rows: Iterable[MetricRow], keys: Sequence[str] = KEYS) -> str:
    """The same as CSV, with a header and an empty cell for null."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", *keys))
    writer.writerows((step, *map(values.get, keys)) for step, values in _merged(rows))
    return text.getvalue()


def _merged(rows: Iterable[MetricRow]) -> Iterator[tuple[int, dict[str, float]]]:
    """What was measured at each step; training and evaluation are rows of their own."""
    for step, measured in groupby(rows, key=attrgetter("step")):
        values: dict[str, float] = {}
        for row in measured:
            values |= {
                key: value for key, value in row._mapping.items() if value is not None and key != "step"
            }
        yield step, values
