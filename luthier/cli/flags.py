"""The words behind a command as LLaMA-Factory takes them: a job file, `--name value` and `name=value`.

A flag without a value is true, `--no_name` is false for one that exists, and several values are a list.
Values are read as YAML, so that `1e-4` is a number and `'{"min_lr": 1e-6}'` a mapping.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.cli.job_file import JobFileError
from luthier.llamafactory.table import ARGUMENTS
from luthier.yaml_body import YamlError, parse

_FLAG = "--"
_NEGATION = "no_"


@dataclass(frozen=True)
class Words:
    """What was written behind a command.

    Attributes:
        file: the job file; None where all is in flags.
        flags: of `--name value`.
        settings: each `name=value`, for `job_file.apply_settings`.
    """

    file: Path | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)


def read_words(arguments: Sequence[str]) -> Words:
    """Sort the arguments of a command.

    Raises:
        JobFileError: one of them is none of these, or stands twice.
    """
    rest = list(arguments)
    file = Path(rest.pop(0)) if rest and not rest[0].startswith("-") and not _is_setting(rest[0]) else None
    flags: dict[str, Any] = {}
    settings: list[str] = []
    while rest:
        word = rest.pop(0)
        if word.startswith(_FLAG) and len(word) > len(_FLAG):
            name, value = _flag(word.removeprefix(_FLAG), rest)
            if name in flags:
                raise JobFileError(f"--{name} stands there twice: give it once")
            flags[name] = value
        elif _is_setting(word):
            settings.append(word)
        else:
            raise JobFileError(f"{word!r} is not understood here: give a job file first, then --name value")
    return Words(file, flags, settings)


def _flag(word: str, rest: list[str]) -> tuple[str, Any]:
    """Name and value of a flag; takes the values from what follows."""
    name, equals, text = word.partition("=")
    name = name.replace("-", "_")
    values = [text] if equals else []
    while not equals and rest and not rest[0].startswith(_FLAG) and not _is_setting(rest[0]):
        values.append(rest.pop(0))
    if not values:
        positive = name.removeprefix(_NEGATION)
        return (positive, False) if name not in ARGUMENTS and positive in ARGUMENTS else (name, True)
    read = [_value(name, each) for each in values]
    return name, read[0] if len(read) == 1 else read


def _is_setting(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.replace(".", "").replace("_", "").isalnum()


def _value(name: str, text: str) -> Any:
    try:
        return parse(text)
    except YamlError as error:
        raise JobFileError(f"--{name}: the value is not YAML; put it in quotes") from error
