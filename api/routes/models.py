"""`/v1/models`: the bases of this machine, and the models that jobs have made."""

from fastapi import APIRouter

from api.dependencies import CallerOf, InstallationOf
from api.schemas.models import ModelList, ModelObject, base_model_object, tuned_model_object
from luthier import models, repository
from luthier.errors import not_found

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", operation_id="list_models")
def list_models(installation: InstallationOf, caller: CallerOf) -> ModelList:
    """List all models: bases first, then the tuned ones, newest first."""
    with installation.database.reading() as session:
        tuned = repository.list_tuned_jobs(session, caller.project_id)
    bases = [base_model_object(model) for model in models.list_models(installation.settings.models)]
    return ModelList(data=[*bases, *(tuned_model_object(job, caller.organization_id) for job in tuned)])


@router.get("/{model_id:path}", operation_id="get_model")
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
