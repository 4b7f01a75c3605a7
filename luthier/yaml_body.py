"""YAML as job files and request bodies have it: what JSON can say, and nothing that runs or explodes.

`parse` builds the tree from the parser's events and so without recursion. Scalars are read as PyYAML
reads them, except that `1e-4` is a number and dates stay text. Anchors and merges work within a budget of
values; a name that stands twice, a number that is not finite, and a tag that is not JSON's are refused with
line and column.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from luthier.errors import printable

MAX_DEPTH = 64
# Values after aliases are put in place; a job has a few hundred.
MAX_VALUES = 100_000
_MAX_NUMBER_CHARACTERS = 64
_MAX_DIGITS = 19
_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _TEXT = (_TAG + kind for kind in ("null", "bool", "int", "float", "str"))
_MERGE = _TAG + "merge"
_ALLOWED_TAGS = frozenset({_NULL, _BOOL, _INT, _FLOAT, _TEXT, _TAG + "map", _TAG + "seq", "!"})
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_EVENT_READER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class YamlError(ValueError):
    """Text that cannot be read; the message names line and column, each from 1."""

    def __init__(self, problem: str, mark: Any = None) -> None:
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        super().__init__(place + problem)


class _Resolver(yaml.resolver.Resolver):
    yaml_implicit_resolvers = {  # noqa: RUF012, the base class's own form
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TAG + "timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Resolver.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+0123456789"))


def parse(text: str) -> Any:
    """The one document in `text`; None for an empty one.

    Raises:
        YamlError: it is not such YAML.
    """
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_EVENT_READER):
            builder.take(event)
    except UnicodeEncodeError as error:
        raise YamlError("it holds half of a surrogate pair, which is no character") from error
    except yaml.MarkedYAMLError as error:
        raise YamlError(error.problem or "this is not YAML", error.problem_mark) from error
    except yaml.YAMLError as error:
        raise YamlError(getattr(error, "reason", None) or "this is not YAML") from error
    return builder.document


@dataclass(frozen=True)
class _Merge:
    """The key `<<`, under which other mappings are put beneath this one."""


class _Open:
    """A collection that has begun and not ended."""

    def __init__(self, value: dict[Any, Any] | list[Any], anchor: str | None) -> None:
        self.value, self.anchor = value, anchor
        self.size = 1
        self.merged: list[Any] = []
        self._key: Any = None
        self._has_key = False

    def put(self, item: Any, mark: Any) -> None:
        """Take the next item of a list, or the next key or value of a mapping."""
        if isinstance(self.value, list):
            self.value.append(item)
        elif not self._has_key:
            self._key, self._has_key = self._checked(item, mark), True
        else:
            self._has_key = False
            if isinstance(self._key, _Merge):
                self.merged.extend(_mergeable(item, mark))
            else:
                self.value[self._key] = item

    @property
    def wants_key(self) -> bool:
        return isinstance(self.value, dict) and not self._has_key

    def ended(self) -> Any:
        """The value; what was written in it stands above what was merged into it, earlier above later."""
        if isinstance(self.value, dict):
            for other in self.merged:
                self.value.update({name: item for name, item in other.items() if name not in self.value})
        return self.value

    def _checked(self, key: Any, mark: Any) -> Any:
        if not isinstance(key, str | _Merge):
            raise YamlError("a name must be text: put it in quotes", mark)
        if key in self.value:
            raise YamlError(f"the name {printable(str(key), 64)!r} stands there twice: give it once", mark)
        return key


class _Builder:
    """Turns events into values."""

    def __init__(self) -> None:
        self.document: Any = None
        self._documents = 0
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._values = 0
        self._resolver: Any = _Resolver()
        self._constructor: Any = yaml.constructor.SafeConstructor()

    def take(self, event: Any) -> None:
        """Go on by one event."""
        mark = event.start_mark
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise YamlError("there is a second document: send one", mark)
            case yaml.AliasEvent():
                value, size = self._known(event.anchor or "", mark)
                self._add(_copied(value), size, mark)
            case yaml.ScalarEvent():
                value = self._scalar(event)
                self._remember(event.anchor, value, 1)
                self._add(value, 1, mark)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._begin(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                ended = self._open.pop()
                value = ended.ended()
                self._remember(ended.anchor, value, ended.size)
                self._add(value, ended.size, mark, counted=True)

    def _begin(self, event: Any) -> None:
        if event.tag is not None and event.tag not in _ALLOWED_TAGS:
            raise _bad_tag(event)
        if len(self._open) >= MAX_DEPTH:
            raise YamlError(f"it is nested deeper than {MAX_DEPTH} levels", event.start_mark)
        self._count(1, event.start_mark)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        self._open.append(_Open({} if is_mapping else [], event.anchor))

    def _add(self, value: Any, size: int, mark: Any, *, counted: bool = False) -> None:
        if not counted:
            self._count(size, mark)
        if self._open:
            self._open[-1].size += size
            self._open[-1].put(value, mark)
        else:
            self.document = value

    def _count(self, size: int, mark: Any) -> None:
        self._values += size
        if self._values > MAX_VALUES:
            raise YamlError(f"it has more than {MAX_VALUES} values, aliases included", mark)

    def _remember(self, anchor: str | None, value: Any, size: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = (value, size)

    def _known(self, anchor: str, mark: Any) -> tuple[Any, int]:
        if anchor not in self._anchors:
            raise YamlError(f"the alias *{printable(anchor, 64)} names nothing that stands before it", mark)
        return self._anchors[anchor]

    def _scalar(self, event: Any) -> Any:
        tag = event.tag
        if tag in (None, "!"):
            tag = self._resolver.resolve(yaml.ScalarNode, event.value, event.implicit)
        if tag == _MERGE and self._open and self._open[-1].wants_key:
            return _Merge()
        if tag not in _ALLOWED_TAGS | {_TAG + "value", _MERGE}:
            raise _bad_tag(event)
        if tag not in (_NULL, _BOOL, _INT, _FLOAT):
            return event.value
        node = yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark)
        return self._constructed(node, tag)

    def _constructed(self, node: Any, tag: str) -> Any:
        if tag == _NULL:
            return None
        if len(node.value) > _MAX_NUMBER_CHARACTERS:
            raise YamlError(f"a number has more than {_MAX_NUMBER_CHARACTERS} characters", node.start_mark)
        try:
            value = getattr(self._constructor, f"construct_yaml_{tag.removeprefix(_TAG)}")(node)
        except (ValueError, KeyError) as error:
            kind = tag.removeprefix(_TAG)
            raise YamlError(f"this is not what its tag !!{kind} says", node.start_mark) from error
        if tag == _FLOAT and not math.isfinite(value):
            raise YamlError("the number is not finite: give a finite one", node.start_mark)
        if tag == _INT and abs(value) >= 10**_MAX_DIGITS:
            raise YamlError(f"the integer has more than {_MAX_DIGITS} digits", node.start_mark)
        return value


def _bad_tag(event: Any) -> YamlError:
    tag = printable(event.tag or "of this value", 64)
    return YamlError(f"the tag {tag} is not taken: write plain values, lists and mappings", event.start_mark)


def _mergeable(item: Any, mark: Any) -> Iterator[dict[str, Any]]:
    for each in item if isinstance(item, list) else [item]:
        if not isinstance(each, dict):
            raise YamlError("<< merges mappings only", mark)
        yield each


def _copied(value: Any) -> Any:
    """A copy as deep as the value, so that a change in one place is none in the other."""
    match value:
        case dict():
            return {name: _copied(item) for name, item in value.items()}
        case list():
            return [_copied(item) for item in value]
        case _:
            return value
