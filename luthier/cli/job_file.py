"""Job files: the body of `POST /v1/fine_tuning/jobs` as YAML, with local paths where files are meant.

JSON is YAML too. What a file of LLaMA-Factory's means, `luthier.llamafactory` knows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.yaml_body import YamlError, parse

FILE_FIELDS = ("training_file", "validation_file")


class JobFileError(ValueError):
    """A job file, or a setting of the command line, that cannot be read; the message says where."""


def read_job_file(path: Path) -> dict[str, Any]:
    """The body that a job file describes, unchecked; paths in it, relative to it, are made absolute.

    Raises:
        JobFileError: it is not a YAML mapping.
        OSError: it cannot be read.
    """
    try:
        body = parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise JobFileError(f"{path} is not UTF-8") from error
    except YamlError as error:
        raise JobFileError(f"{path} is not YAML: {error}") from error
    if not isinstance(body, dict):
        raise JobFileError(
            f"{path} is not a job: it needs lines such as `model: ...` and `training_file: ...`"
        )
    for field in FILE_FIELDS:
        if isinstance(value := body.get(field), str):
            located = (path.parent / Path(value).expanduser()).absolute()
            body[field] = value if _is_id(value) and not located.is_file() else str(located)
    return body


def apply_settings(body: dict[str, Any], settings: Sequence[str]) -> None:
    """Put `qlora.r=8` and the like into a body.

    Raises:
        JobFileError: a setting has no `=`, or leads through something that is not a mapping.
    """
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise JobFileError(f"--set {setting!r} needs the form name=value, such as qlora.r=8")
        *outer, last = name.split(".")
        target = body
        for part in outer:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise JobFileError(f"--set {setting!r}: {part} is not a group of settings")
        try:
            target[last] = parse(text)
        except YamlError as error:
            raise JobFileError(f"--set {setting!r}: {error}") from error


def local_files(body: dict[str, Any]) -> dict[str, Path]:
    """The fields of a body that name files of this machine, and their absolute paths.

    A relative path, as an option or `--set` may have it, starts at the working folder.

    What starts with `file-` and is no file here is taken for the id of an uploaded one.

    Raises:
        JobFileError: a field names a file that is not there.
    """
    found = {}
    for field in FILE_FIELDS:
        value = body.get(field)
        if not isinstance(value, str):
            continue
        path = Path(value).expanduser()
        if path.is_file():
            # Whoever opens it may stand in another folder.
            found[field] = path.absolute()
        elif not _is_id(value):
            raise JobFileError(f"{field}: there is no file {path}")
    return found


def _is_id(value: str) -> bool:
    return value.startswith("file-")
