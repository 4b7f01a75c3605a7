"""Base models that can be tuned here, and how far their settings may go."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel as Schema

from api.schemas.pages import Named, unix_seconds
from luthier.datasets.named_templates import NAMED
from luthier.errors import LuthierError
from luthier.inspection import check_config
from luthier.models import BaseModel, shape_of
from luthier.spec import LINEAR_MODULES, Method, QloraRequest, Quantization


class LimitsObject(Schema):
    """The most that a job may ask for; `r` is bounded by the smallest side of a layer."""

    r: int
    max_seq_length: int
    gradient_accumulation: int
    learning_rate: int


class TunableModelObject(Named):
    """A base model on this machine.

    `problem` tells why it cannot be tuned; `parameter_count` is null where its family is not known;
    `templates` are the names that `dataset.template` takes beside the model's own.
    """

    object: Literal["fine_tuning.model"] = "fine_tuning.model"
    created: int
    architecture: str
    revision: str | None
    size_bytes: int
    parameter_count: int | None
    context_length: int | None
    smallest_dimension: int | None
    limits: LimitsObject
    methods: Sequence[str]
    quantizations: Sequence[str]
    target_modules: Sequence[str]
    has_chat_template: bool
    templates: Sequence[str]
    problem: str | None


class TunableModelList(Schema):
    """All of them."""

    object: Literal["list"] = "list"
    data: Sequence[TunableModelObject]


def tunable_model_object(model: BaseModel) -> TunableModelObject:
    """What a model's folder tells."""
    shape = shape_of(model)
    most_r, most_length = _bound("r"), _bound("max_seq_length")
    return TunableModelObject(
        id=model.id,
        created=unix_seconds(model.created_at),
        architecture=model.architecture,
        revision=model.revision,
        size_bytes=model.size_bytes,
        parameter_count=shape.parameter_count if shape is not None and shape.is_exact else None,
        context_length=model.context_length,
        smallest_dimension=model.smallest_dimension,
        limits=LimitsObject(
            r=min(most_r, model.smallest_dimension or most_r),
            max_seq_length=min(most_length, model.context_length or most_length),
            gradient_accumulation=_bound("gradient_accumulation"),
            learning_rate=_bound("learning_rate"),
        ),
        methods=get_args(Method),
        quantizations=get_args(Quantization),
        target_modules=[linear.name for linear in shape.linears] if shape else list(LINEAR_MODULES),
        has_chat_template=model.has_chat_template,
        templates=sorted(NAMED),
        problem=_problem(model),
    )


def _problem(model: BaseModel) -> str | None:
    try:
        check_config(model.path)
    except LuthierError as error:
        return error.message
    return None


def _bound(name: str) -> int:
    """The largest value that a job's body takes for a setting."""
    field: dict[str, Any] = QloraRequest.model_json_schema()["properties"][name]
    choices = [field, *field.get("anyOf", ()), *field.get("oneOf", ())]
    return int(next(choice["maximum"] for choice in choices if "maximum" in choice))
