"""A base model of this machine as the command line names it: by its id, or by the path of its folder.

`find_local_model` is for commands that work without a server.
"""

from pathlib import Path

from luthier.cli.terminal import fail
from luthier.inspection import check_config
from luthier.models import BaseModel, find_model
from luthier.settings import Settings


def find_local_model(settings: Settings, name: str, beside: Path = Path()) -> BaseModel:
    """The model; one that is not there, or that cannot be trained, ends the command.

    Args:
        beside: the folder that a path is relative to, before the current one.
    """
    path, here = ((folder / Path(name).expanduser()).absolute() for folder in (beside, Path()))
    model = (
        find_model(settings.models, name)
        or find_model(path.parent, path.name)
        or find_model(here.parent, here.name)
    )
    if model is None:
        fail(
            f"there is no model {name} in {settings.models}, nor a folder {path}: "
            f"run `luthier models pull {name}`, or `luthier models add-sample tiny` for a model to try with"
        )
    check_config(model.path)
    return model
