"""A LLaMA-Factory job that came over HTTP: its datasets are files that are registered by those names.

`from_llamafactory` finds the files by name within the caller's project and leaves all else to
`luthier.llamafactory`. No file of this machine is ever looked for.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import LuthierError, printable
from luthier.installation import Installation
from luthier.llamafactory import convert
from luthier.service.jobs import Caller

_SUGGESTED = 100


def from_llamafactory(
    installation: Installation, caller: Caller, given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The body of ours that the arguments stand for, and notes about how they are understood.

    Raises:
        LuthierError: an argument stops the job, or a name is nobody's.
    """
    job = convert(given)
    with installation.database.reading() as session:
        training = [_file_id(session, caller, name, "dataset") for name in job.datasets]
        evaluation = [_file_id(session, caller, name, "eval_dataset") for name in job.eval_datasets]
    return job.with_files(training, evaluation[0] if evaluation else None), job.notes


def _file_id(session: Session, caller: Caller, name: str, param: str) -> str:
    file = repository.find_dataset(session, caller.project_id, name)
    if file is None:
        newest = repository.list_files(session, caller.project_id, after=None, limit=_SUGGESTED).data
        names = [other.dataset_name for other in newest if other.dataset_name]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise LuthierError(
            f"No file is registered as the dataset {printable(name)!r}: upload one, and name it with "
            f"POST /v1/files/{{id}}/register.{hint}",
            "invalid_training_file" if param == "dataset" else "invalid_validation_file",
            param,
        )
    return file.id
