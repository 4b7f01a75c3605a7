"""Events of a job, as OpenAI's API shows them: messages, and metrics as events of their own type."""

import re
from typing import Any, Literal

from api.schemas.checkpoints import openai_metrics
from api.schemas.pages import Named, unix_seconds
from luthier.errors import invalid, printable
from luthier.tables import Job, JobEvent, Metric

_LOSSES = (("train_loss", "training loss"), ("eval_loss", "validation loss"))
_MEASURED = ("train_loss", "train_mean_token_accuracy", "eval_loss", "eval_mean_token_accuracy")


class EventObject(Named):
    """A fact about a job; of type `metrics`, `data` holds numbers at a step."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


def event_object(row: JobEvent | Metric) -> EventObject:
    """What a row shows."""
    place = {"id": _id(row.job_id, row.number), "created_at": unix_seconds(row.at)}
    if isinstance(row, JobEvent):
        shown = {"level": row.level, "message": row.message, "type": "message", "data": row.data}
    else:
        shown = {"level": "info", "message": _told(row), "type": "metrics", "data": _numbers(row)}
    return EventObject.model_validate(place | shown)


def number_of(event_id: str, job: Job, param: str = "after") -> int:
    """The number within the job of the event that `event_id` names.

    Raises:
        LuthierError: it is no event of this job.
    """
    match = re.fullmatch(r"(.+)-([0-9]{1,9})", event_id, re.ASCII | re.DOTALL)
    number = int(match[2]) if match else 0
    if _id(job.id, number) != event_id:
        raise invalid(f"'{param}' names nothing in this list: {printable(event_id)}", param)
    return number


def _id(job_id: str, number: int) -> str:
    return f"ftevent-{job_id.removeprefix('ftjob-')}-{number}"


def _told(row: Metric) -> str:
    losses = [f"{words}={value:.2f}" for name, words in _LOSSES if (value := getattr(row, name)) is not None]
    return ": ".join([f"Step {row.step}/{row.total_steps}", *losses])


def _numbers(row: Metric) -> dict[str, float]:
    measured = {name: getattr(row, name) for name in _MEASURED}
    return {"step": row.step, "total_steps": row.total_steps, **openai_metrics(measured)}
