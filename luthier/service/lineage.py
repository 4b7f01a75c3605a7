"""Tuning again: a job whose model is one of ours starts from the adapter of the job that made it.

The adapter's shape is then given, so its settings are taken over from that job, and a setting that says
otherwise is refused. The base model stays the same.
"""

import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import LuthierError, invalid, printable
from luthier.spec import JobRequest, QloraRequest
from luthier.tables import Job

_PREFIX = "ft:"
# What the weights of an adapter cannot be used without.
_SHAPE = ("r", "alpha", "target_modules", "bias", "use_rslora", "use_dora")
_BASE = ("method", "quantization")


def find_parent(session: Session, project_id: str, model_id: str) -> Job | None:
    """The job that made the model; None for a base model.

    Raises:
        LuthierError: `invalid_model`, where the project has no such model; `model_not_supported`, where it
            has no adapter.
    """
    if not model_id.startswith(_PREFIX):
        return None
    parent = repository.find_tuned_job(session, project_id, model_id)
    if parent is None:
        text = f"There is no tuned model {printable(model_id)!r}: GET /v1/models lists those that there are"
        raise LuthierError(text, "invalid_model", "model")
    if (parent.hyperparameters or {}).get("method") == "full":
        raise LuthierError(
            f"{printable(model_id)} was made with method 'full' and has no adapter to go on from: tune "
            f"{parent.model}, or a model made with method 'qlora' or 'lora'",
            "model_not_supported",
            "model",
        )
    return parent


def inherit(request: JobRequest, parent: Job) -> JobRequest:
    """The request with what the parent's adapter decides.

    Raises:
        LuthierError: `invalid_value`, for a setting that differs from the parent's, or that makes no sense
            on weights that are there.
    """
    numbers = _numbers(parent)
    given = request.qlora.model_dump(mode="json", exclude_unset=True)
    if given.get("method") == "full" or given.get("init_lora_weights", "default") != "default":
        name = "method" if given.get("method") == "full" else "init_lora_weights"
        raise invalid(
            f"Invalid value for 'qlora.{name}': {given[name]!r}. The job starts from the adapter of "
            f"{request.model}; leave it out.",
            f"qlora.{name}",
        )
    for name in _SHAPE:
        if name in given and not _same(given[name], numbers[name]):
            raise invalid(
                f"Invalid value for 'qlora.{name}': {given[name]!r}. {request.model} was made with "
                f"{numbers[name]!r}, which its adapter keeps; leave the setting out, or use that.",
                f"qlora.{name}",
            )
    settings = given | {name: numbers[name] for name in _SHAPE}
    if not any(name in given for name in _BASE):
        settings |= {
            name: numbers[name] for name in _BASE if numbers["method"] == "qlora" or name == "method"
        }
    return request.model_copy(update={"qlora": QloraRequest.model_validate(settings)})


def _numbers(parent: Job) -> Mapping[str, Any]:
    """The parent's settings as its adapter has them: PiSSA's has twice the rank and the same scale."""
    numbers: dict[str, Any] = dict(parent.hyperparameters or {})
    if numbers.get("init_lora_weights") == "pissa":
        growth = math.sqrt(2) if numbers["use_rslora"] else 2
        numbers |= {"r": 2 * numbers["r"], "alpha": growth * numbers["alpha"]}
    return numbers


def _same(asked: object, parents: object) -> bool:
    if isinstance(asked, list) and isinstance(parents, list):
        return set(asked) == set(parents)
    return asked == parents
