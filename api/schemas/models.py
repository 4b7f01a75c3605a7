"""Models: bases of this machine, and what jobs have made of them."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel as Schema

from api.schemas.pages import Named, unix_seconds
from luthier.models import BaseModel
from luthier.service.tuned_models import TunedModel

_OWNER_OF_BASES = "luthier"


class ModelObject(Named):
    """A model; `created` is in Unix seconds."""

    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelDeleted(Schema):
    """The answer to DELETE."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class ModelList(Schema):
    """Bases and the newest tuned models; OpenAI's list of them has no pages."""

    object: Literal["list"] = "list"
    data: Sequence[ModelObject]


def base_model_object(model: BaseModel) -> ModelObject:
    return ModelObject(id=model.id, created=unix_seconds(model.created_at), owned_by=_OWNER_OF_BASES)


def tuned_model_object(model: TunedModel, organization_id: str) -> ModelObject:
    """A model that a job has left, or one of its checkpoints."""
    return ModelObject(id=model.name, created=unix_seconds(model.created_at), owned_by=organization_id)
