"""`/v1/models`: the bases of this machine, and the models that jobs have made; and what can be tuned how."""

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api.dependencies import CallerOf, InstallationOf
from api.schemas.models import ModelDeleted, ModelList, ModelObject, base_model_object, tuned_model_object
from api.schemas.tunable_models import TunableModelList, TunableModelObject, tunable_model_object
from luthier import models
from luthier.database import clock
from luthier.errors import LuthierError, not_found
from luthier.service import tuned_models
from luthier.storage import discard

_MOST_TUNED = 1000

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models", operation_id="list_models")
def list_models(installation: InstallationOf, caller: CallerOf) -> ModelList:
    """List models: all bases first, then the newest 1,000 tuned ones and their checkpoints.

    Older ones are found by their name, and in the pages of their jobs.
    """
    with installation.database.reading() as session:
        tuned = tuned_models.list_newest(session, caller, limit=_MOST_TUNED)
    bases = [base_model_object(model) for model in models.list_models(installation.settings.models)]
    return ModelList(data=[*bases, *(tuned_model_object(model, caller.organization_id) for model in tuned)])


@router.get("/models/{model_id:path}", operation_id="get_model")
def get_model(model_id: str, installation: InstallationOf, caller: CallerOf) -> ModelObject:
    """One model, by the name that a job takes or has made."""
    base = models.find_model(installation.settings.models, model_id)
    if base is not None:
        return base_model_object(base)
    with installation.database.reading() as session:
        tuned = tuned_models.find(session, caller, model_id)
    if tuned is None:
        raise not_found("model", model_id, "model_not_found", "model")
    return tuned_model_object(tuned, caller.organization_id)


@router.delete("/models/{model_id:path}", operation_id="delete_model")
def delete_model(model_id: str, installation: InstallationOf, caller: CallerOf) -> ModelDeleted:
    """Delete a tuned model or a checkpoint, with its weights; the job that made it stays, and its results.

    Refused for a base model, and while a job that has not ended needs it.
    """
    if models.find_model(installation.settings.models, model_id) is not None:
        text = f"{model_id} is a base model: whoever runs the service removes it from its model folder"
        raise LuthierError(text, "insufficient_permissions", "model")
    keys: list[str] = []

    def delete(session: Session) -> bool:
        keys[:] = tuned_models.remove(session, caller, model_id, now=clock(session))
        return True

    def is_gone(session: Session) -> bool | None:
        return True if tuned_models.find_own(session, caller, model_id) is None else None

    installation.database.run(delete, recall=is_gone)
    discard(installation.storage, keys)
    return ModelDeleted(id=model_id)


@router.get("/fine_tuning/models", operation_id="list_tunable_models")
def list_tunable_models(installation: InstallationOf, _caller: CallerOf) -> TunableModelList:
    """List the base models of this machine, with the limits of their settings."""
    found = models.list_models(installation.settings.models)
    return TunableModelList(data=[tunable_model_object(model) for model in found])


@router.get("/fine_tuning/models/{model_id:path}", operation_id="get_tunable_model")
def get_tunable_model(model_id: str, installation: InstallationOf, _caller: CallerOf) -> TunableModelObject:
    """One base model of this machine."""
    model = models.find_model(installation.settings.models, model_id)
    if model is None:
        raise not_found("model", model_id, "model_not_found", "model")
    return tunable_model_object(model)
