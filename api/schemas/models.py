"""Models: bases of this machine, and what jobs have made of them."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel as Schema

from api.schemas.pages import Named, unix_seconds
from luthier.models import BaseModel
from luthier.tables import Job

_OWNER_OF_BASES = "luthier"


class ModelObject(Named):
    """A model; `created` is in Unix seconds."""

    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(Schema):
    """Bases and the newest tuned models; OpenAI's list of them has no pages."""

    object: Literal["list"] = "list"
    data: Sequence[ModelObject]


def base_model_object(model: BaseModel) -> ModelObject:
    return ModelObject(id=model.id, created=unix_seconds(model.created_at), owned_by=_OWNER_OF_BASES)


def tuned_model_object(job: Job, organization_id: str) -> ModelObject:
    """The model that a succeeded job has left."""
    created = unix_seconds(job.finished_at or job.created_at)
    return ModelObject(id=job.fine_tuned_model or "", created=created, owned_by=organization_id)
