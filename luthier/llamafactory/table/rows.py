"""What becomes of one argument of LLaMA-Factory: the row of the table, and short ways to write one."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Treatment(StrEnum):
    """The four things that can become of an argument."""

    HONOURED = "honoured"
    MAPPED = "mapped"
    WITHOUT_EFFECT = "without effect"
    REFUSED = "refused"


@dataclass(frozen=True)
class Argument:
    """One argument.

    Attributes:
        default: that system's own; None where it has none.
        fields: dotted names of ours that take the value.
        note: what is done with it, or why it is refused; a sentence without its full stop.
        harmless: values beside the default with which a refused argument asks for nothing.
    """

    name: str
    default: Any
    treatment: Treatment
    note: str
    fields: tuple[str, ...] = ()
    harmless: tuple[Any, ...] = ()

    def asks_for_nothing(self, value: object) -> bool:
        """Whether the value is what that system does anyway, or null."""
        return value is None or any(_same(value, each) for each in (self.default, *self.harmless))


@dataclass(frozen=True)
class Group:
    """Arguments that belong together, under the title that the page gives them."""

    title: str
    arguments: tuple[Argument, ...]


def honoured(name: str, default: Any, *fields: str, note: str = "") -> Argument:
    """Means here what it means there."""
    return Argument(name, default, Treatment.HONOURED, note, fields)


def mapped(name: str, default: Any, *fields: str, note: str) -> Argument:
    """Done by other means, as the note tells."""
    return Argument(name, default, Treatment.MAPPED, note, fields)


def idle(name: str, default: Any, note: str) -> Argument:
    """Any value is taken, and changes nothing."""
    return Argument(name, default, Treatment.WITHOUT_EFFECT, note)


def refused(name: str, default: Any, note: str, *harmless: Any) -> Argument:
    """Stops the job, except with its default."""
    return Argument(name, default, Treatment.REFUSED, note, (), harmless)


def all_refused(note: str, **defaults: Any) -> tuple[Argument, ...]:
    """Several arguments that are refused for one reason."""
    return tuple(refused(name, default, note) for name, default in defaults.items())


def all_idle(note: str, **defaults: Any) -> tuple[Argument, ...]:
    """Several arguments that change nothing for one reason."""
    return tuple(idle(name, default, note) for name, default in defaults.items())


def _same(value: object, other: object) -> bool:
    """Equality as the writer of a YAML means it: `False` is not 0, `None` the word is none, 5 is 5.0."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and isinstance(other, str):
        return value.strip().lower() == other.lower()
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    return value == other
