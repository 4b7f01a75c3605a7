"""`/v1/models`: the bases of this machine, and the models that jobs have made; and what can be tuned how."""

from fastapi import APIRouter

from api.dependencies import CallerOf, InstallationOf
from api.schemas.models import ModelList, ModelObject, base_model_object, tuned_model_object
from api.schemas.tunable_models import TunableModelList, TunableModelObject, tunable_model_object
from luthier import models, repository
from luthier.errors import not_found

_MOST_TUNED = 1000

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models", operation_id="list_models")
def list_models(installation: InstallationOf, caller: CallerOf) -> ModelList:
    """List models: all bases first, then the newest 1,000 tuned ones, newest first.

    Older ones are found by their name, and in the pages of their jobs.
    """
    with installation.database.reading() as session:
        tuned = repository.list_tuned_jobs(session, caller.project_id, limit=_MOST_TUNED)
    bases = [base_model_object(model) for model in models.list_models(installation.settings.models)]
    return ModelList(data=[*bases, *(tuned_model_object(job, caller.organization_id) for job in tuned)])


@router.get("/models/{model_id:path}", operation_id="get_model")
def get_model(model_id: str, installation: InstallationOf, caller: CallerOf) -> ModelObject:
    """One model, by the name that a job takes or has made."""
    base = models.find_model(installation.settings.models, model_id)
    if base is not None:
        return base_model_object(base)
    with installation.database.reading() as session:
        job = repository.find_tuned_job(session, caller.project_id, model_id)
    if job is None:
        raise not_found("model", model_id, "model_not_found", "model")
    return tuned_model_object(job, caller.organization_id)


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
