"""A base model of this machine as the command line names it: by its id, or by the path of its folder.

For commands that work without a server: `get_local_model` where they need it, `find_local_model` where they
can do without.
"""

import difflib
from pathlib import Path

from luthier.cli.terminal import fail
from luthier.inspection import check_config
from luthier.models import BaseModel, choice_of_models, find_model, is_allowed, list_models
from luthier.samples import SAMPLES
from luthier.settings import Settings


def get_local_model(settings: Settings, name: str, beside: Path = Path()) -> BaseModel:
    """The model; one that is not there, or that cannot be trained, ends the command.

    Args:
        beside: the folder that a path is relative to, before the current one.
    """
    model = find_local_model(settings, name, beside)
    if model is None:
        fail(
            f"there is no model {name} in {settings.models}, nor a folder {_located(name, beside)}: "
            f"{_remedy(settings, name)}"
        )
    return model


def find_local_model(settings: Settings, name: str, beside: Path = Path()) -> BaseModel | None:
    """As `get_local_model`; None where there is no such model."""
    path, here = _located(name, beside), _located(name, Path())
    model = (
        find_model(settings.models, name)
        or find_model(path.parent, path.name)
        or find_model(here.parent, here.name)
    )
    if model is not None:
        check_config(model.path)
    return model


def _remedy(settings: Settings, name: str) -> str:
    """What brings a model here, or which one may be meant."""
    if name in SAMPLES:
        return f"run `luthier models add-sample {name}`"
    here = [model.id for model in list_models(settings.models)]
    near = difflib.get_close_matches(name, [*here, *SAMPLES], n=1)
    if near:
        return f"did you mean {near[0]}? {choice_of_models(settings.models, ())}"
    if is_allowed(name, settings.allowed_models):
        return f"run `luthier models pull {name}`"
    return choice_of_models(settings.models, settings.allowed_models)


def _located(name: str, folder: Path) -> Path:
    return (folder / Path(name).expanduser()).absolute()
