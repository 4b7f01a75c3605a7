"""Whether a model can be used for what a request asks, told before anything is queued.

Models of the hub, folders of this machine and models that jobs have made come together here. Each function
raises the error that the call is answered with.
"""

from sqlalchemy.orm import Session

from luthier import planning
from luthier.datasets.cache import cache_key
from luthier.datasets.examples import DatasetError
from luthier.datasets.format_strings import is_format_string
from luthier.datasets.named_templates import named_template
from luthier.errors import JobFailure, LuthierError, invalid
from luthier.installation import Installation
from luthier.models import BaseModel, require_known
from luthier.service import lineage
from luthier.service.jobs import Caller
from luthier.settings import Settings
from luthier.spec import DatasetRequest, JobRequest, QloraRequest, SourceFile


def base_of(session: Session, caller: Caller, model_id: str) -> str:
    """The id of the base model behind a name: of a tuned model, the one that it was made of.

    Raises:
        LuthierError: the project has no such tuned model, or it cannot be tuned again.
    """
    parent = lineage.find_parent(session, caller.project_id, model_id)
    return model_id if parent is None else parent.model or ""


def check_model(installation: Installation, caller: Caller, body: JobRequest) -> None:
    """Refuse a model that cannot be used, and settings that are too large for one that is here.

    Raises:
        LuthierError: `invalid_model`, `model_not_supported`, or `invalid_value` with the setting as param.
    """
    settings = installation.settings
    check_template(body.dataset)
    with installation.database.reading() as session:
        base = base_of(session, caller, body.model)
    model = require_known(settings.models, base, settings.allowed_models)
    if model is not None:
        check_limits(model, body.qlora)


def require_here(settings: Settings, model_id: str) -> BaseModel:
    """A base model of this machine.

    Raises:
        LuthierError: `invalid_model`, `model_not_supported`, or `model_not_found` for one that may be used
            and is not here yet.
    """
    model = require_known(settings.models, model_id, settings.allowed_models)
    if model is None:
        text = f"The model {model_id} is not on this machine yet: run `luthier models pull {model_id}`"
        raise LuthierError(text, "model_not_found", "model")
    return model


def check_limits(model: BaseModel, asked: QloraRequest) -> None:
    """Refuse settings that are too large for a model.

    Raises:
        LuthierError: `invalid_value`, with the setting as param.
    """
    check_length(model, asked.max_seq_length, "qlora.max_seq_length")
    smallest = model.smallest_dimension
    if smallest is not None and asked.r > smallest:
        raise invalid(
            f"Invalid value for 'qlora.r': {asked.r}. The smallest side of a layer of {model.id} is "
            f"{smallest}; ask for at most that.",
            "qlora.r",
        )


def check_length(model: BaseModel, asked: int | None, param: str) -> None:
    """Refuse a length beyond the model's context."""
    context = model.context_length
    if asked is not None and context is not None and asked > context:
        raise invalid(
            f"Invalid value for '{param}': {asked}. {model.id} has a context of {context} tokens; ask for at "
            "most that.",
            param,
        )


def length_of_look(model: BaseModel, asked: int | None) -> int:
    """Tokens of a row in a look at a file: as asked, else as a job would have it.

    Raises:
        LuthierError: `invalid_value`.
    """
    check_length(model, asked, "max_seq_length")
    return planning.max_seq_length(asked, model.context_length)


def check_template(rules: DatasetRequest) -> None:
    """Refuse the name of a template that there is not.

    Raises:
        LuthierError: `invalid_value`, which lists those that there are.
    """
    if rules.template is None or is_format_string(rules.template):
        return
    try:
        named_template(rules.template)
    except DatasetError as error:
        raise invalid(str(error), "dataset.template") from error


def rows_key(model: BaseModel, source: SourceFile, rules: DatasetRequest, length: int) -> str:
    """The cache key of a file's rows for a model.

    Raises:
        LuthierError: `invalid_value` for an unknown template, `model_not_supported` for a broken model.
    """
    check_template(rules)
    try:
        return cache_key(source.sha256 or "", model.path, source, rules, length)
    except JobFailure as error:
        raise LuthierError(error.message, "model_not_supported", "model") from error
