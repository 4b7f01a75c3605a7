"""Reading the values of a LLaMA-Factory job: by name, with the type that is meant, problems gathered.

Nothing raises here: what is wrong is kept as a `Problem` and the default takes its place, so that one look
tells a user everything. Texts are never repeated in a problem; one that stands in the wrong place may be a
secret.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, TypeVar

from luthier.errors import printable
from luthier.llamafactory.table import ARGUMENTS
from luthier.yaml_body import YamlError, parse

Choice = TypeVar("Choice")
_MAX_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Problem:
    """Why a job cannot be run: one argument and what is the matter with it.

    Attributes:
        name: of the argument, as it was written.
        text: what is wrong and what to change, without the name.
    """

    name: str
    text: str
    kind: Literal["unknown", "value", "refused", "missing"] = "value"


class Values:
    """The arguments of one job; those that are not given have that system's default."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = {name: value for name, value in given.items() if value is not None}
        self.problems: list[Problem] = []

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def wrong(self, name: str, text: str, kind: Literal["value", "refused", "missing"] = "value") -> None:
        """Keep a problem with an argument."""
        self.problems.append(Problem(name, text, kind))

    def flag(self, name: str) -> bool:
        """True or false, also as words."""
        value = self._value(name)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool) and value is not None:
            self.wrong(name, f"expected true or false{_shown(value)}")
            return bool(ARGUMENTS[name].default)
        return bool(value)

    def number(self, name: str) -> float | None:
        """A finite number; text that is one counts."""
        value = _number(self._value(name))
        if is_number(value):
            return value
        return None if value is None else self._unfit(name, "a number")

    def integer(self, name: str) -> int | None:
        """A whole number, also as 3.0."""
        value = self.number(name)
        if value is None or value == int(value):
            return None if value is None else int(value)
        default = self._unfit(name, "a whole number")
        return None if default is None else int(default)

    def text(self, name: str) -> str | None:
        """Some text; a number as its digits."""
        value = self._value(name)
        if isinstance(value, list | dict | bool):
            self.wrong(name, "expected text")
            return None
        return str(value).strip() or None if value is not None else None

    def names(self, name: str) -> list[str]:
        """A list, or text with commas."""
        value = self._value(name)
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return [each.strip() for each in value]
        text = self.text(name)
        if text is None:
            return []
        found = [each.strip() for each in text.split(",")]
        if not all(found):
            self.wrong(name, "a name between the commas is empty")
        return [each for each in found if each]

    def choice(self, name: str, choices: Mapping[str, Choice]) -> Choice:
        """What a word stands for; the default's where the word is none of the choices.

        YAML takes a bare `no` for false.
        """
        default = choices[str(ARGUMENTS[name].default)]
        word = "no" if self._value(name) is False else self.text(name)
        if word is None or word.lower() in choices:
            return default if word is None else choices[word.lower()]
        self.wrong(name, f"takes {_listed(list(choices))}", "refused")
        return default

    def mapping(self, name: str) -> dict[str, Any]:
        """A mapping, also as text in YAML or JSON."""
        value = self._value(name)
        if isinstance(value, str):
            try:
                value = parse(value)
            except YamlError:
                value = False
        if value is not None and not isinstance(value, dict):
            self.wrong(name, "expected a mapping")
            return {}
        return value or {}

    def _value(self, name: str) -> Any:
        return self._given.get(name, ARGUMENTS[name].default)

    def _unfit(self, name: str, expected: str) -> float | None:
        self.wrong(name, f"expected {expected}{_shown(self._value(name))}")
        default = ARGUMENTS[name].default
        return None if default is None else float(default)


class Reading:
    """The arguments of one job while they are read, and the notes that come of it."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.notes: list[str] = []

    def note(self, name: str, text: str) -> None:
        """Tell something about how an argument is understood."""
        self.notes.append(f"{name}: {text}")


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number that has a size as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def _number(value: Any) -> Any:
    """Text that is a number, as the number."""
    if not isinstance(value, str):
        return value
    try:
        return int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
    except ValueError:
        return value


def _shown(value: object) -> str:
    """A number as it was given; nothing of anything else."""
    shows = isinstance(value, int | float) and not isinstance(value, bool)
    return f", not {printable(repr(value), _MAX_SHOWN_CHARACTERS)}" if shows else ""


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
