"""What a chat template does with the contents of messages, learnt by watching it once.

A template is run on `Traced` strings in place of contents. Printing and joining them leaves a mark; every
question about one (is it empty, does it start with ...) is answered for the contents at hand and noted. A row
whose contents answer all the questions alike takes the same way through the template, so its text is that of
the marks filled in: no template has to be run for it. Whatever is done that cannot be noted raises
`UntraceableError`, and such rows are rendered as they always were.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, NoReturn

import jinja2.nodes
import jinja2.runtime
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

# Noncharacters of Unicode, as those in `rendering`: no text of a message has them.
_OPEN, _CLOSE = "\ufdd4", "\ufdd5"
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")

# The value of an expression over the contents of a conversation.
Value = Callable[[Sequence[str]], str]


class UntraceableError(BaseException):
    """The template does what cannot be noted; not an `Exception`, which is what templates are forgiven."""


class Trace:
    """One watched run: what was asked about contents, and what the marks stand for.

    Args:
        contents: for which questions are answered.
    """

    def __init__(self, contents: Sequence[str]) -> None:
        self._contents = contents
        self._questions: list[tuple[Value, str, tuple[Any, ...], Any]] = []
        self._values: list[Value] = []
        self._known: dict[object, Traced] = {}

    def content(self, index: int) -> "Traced":
        """The content of a message, watched."""
        return self.named(("content", index), lambda contents: contents[index])

    def named(self, key: object, value: Value) -> "Traced":
        """The same mark for the same expression, so that texts of several runs can be compared."""
        if key not in self._known:
            self._values.append(value)
            self._known[key] = self._traced(f"{_OPEN}{len(self._values) - 1}{_CLOSE}", value)
        return self._known[key]

    def ask(self, value: Value, question: str, arguments: tuple[Any, ...]) -> Any:
        """Answer a question for the contents at hand, and note both."""
        if any(isinstance(argument, Traced) for argument in arguments):
            raise UntraceableError
        answer = getattr(value(self._contents), question)(*arguments)
        self._questions.append((value, question, arguments, answer))
        return answer

    def fits(self, contents: Sequence[str]) -> bool:
        """Whether a template would take the same way with these contents."""
        return all(
            getattr(value(contents), question)(*arguments) == answer
            for value, question, arguments, answer in self._questions
        )

    def pieces(self, text: str) -> list[str | Value]:
        """A text with marks as literal strings and values, by turns; the first is a string."""
        parts: list[str] = _MARK.split(text)
        return [self._values[int(part)] if index % 2 else part for index, part in enumerate(parts)]

    def lifted(self, text: str) -> str:
        """A text that a template put together, watched again where it holds marks."""
        if type(text) is not str or _OPEN not in text:
            return text
        values = [piece if callable(piece) else _constant(piece) for piece in self.pieces(text)]
        return self._traced(text, lambda contents: "".join(value(contents) for value in values))

    def _traced(self, text: str, value: Value) -> "Traced":
        traced = Traced(text)
        traced.trace, traced.value = self, value
        return traced


def literal_end(text: str) -> str:
    """What stands behind the last mark of a text."""
    return text.rpartition(_CLOSE)[2]


def _constant(text: str) -> Value:
    return lambda _: text


class Traced(str):
    """A string that is watched; its characters are a mark, or a text with marks in it."""

    __slots__ = ("trace", "value")

    trace: Trace
    value: Value

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return self.trace.lifted(f"{str.__str__(self)}{str.__str__(other)}")

    def __radd__(self, other: str) -> str:
        return self.trace.lifted(f"{str.__str__(other)}{str.__str__(self)}")

    def __bool__(self) -> bool:
        return bool(self.trace.ask(self.value, "__len__", ()))

    def __hash__(self) -> NoReturn:
        raise UntraceableError


# Questions: their answers are noted. A length is noted as a number, which few rows share.
_ASKED = (
    "__contains__", "__eq__", "__len__", "__ne__", "count", "endswith", "find", "isalpha", "isdigit",
    "isspace", "startswith",
)  # fmt: skip
# What makes another text of a text.
_MADE = (
    "capitalize",
    "lower",
    "lstrip",
    "removeprefix",
    "removesuffix",
    "replace",
    "rstrip",
    "strip",
    "upper",
)


def _asking(name: str) -> Callable[..., Any]:
    def ask(self: Traced, *arguments: Any) -> Any:
        return self.trace.ask(self.value, name, arguments)

    return ask


def _making(name: str) -> Callable[..., Traced]:
    def make(self: Traced, *arguments: Any) -> Traced:
        if any(_holds_marks(argument) for argument in arguments):
            raise UntraceableError
        before = self.value
        key = (name, str.__str__(self), arguments)
        return self.trace.named(key, lambda contents: getattr(before(contents), name)(*arguments))

    return make


def _refusing(*_arguments: Any, **_named: Any) -> NoReturn:
    raise UntraceableError


def _equip() -> None:
    """Give `Traced` a method for everything that a string can do."""
    own = set(vars(Traced)) | set(vars(object)) - {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"}
    for name in vars(str).keys() - own:
        if name in _ASKED:
            setattr(Traced, name, _asking(name))
        elif name in _MADE:
            setattr(Traced, name, _making(name))
        elif callable(getattr(str, name)):
            setattr(Traced, name, _refusing)


_equip()


class TracingSandbox(ImmutableSandboxedEnvironment):
    """The sandbox of templates, in which all that can touch a `Traced` string is either noted or refused.

    Attributes:
        trace: of the run that is watched; set before each.
    """

    intercepted_binops = frozenset({"%", "*"})
    trace = Trace(())

    def _generate(self, source: jinja2.nodes.Template, *arguments: Any, **options: Any) -> str:
        if next(source.find_all(_UNTRACEABLE_NODES), None) is not None:
            raise UntraceableError
        self.filters = {name: self._watched(name, filter_) for name, filter_ in self.filters.items()}
        self.tests = {name: _watched_test(name, test) for name, test in self.tests.items()}
        self.globals |= {_JOINED: self._joined, _IS_IN: _is_in}
        return super()._generate(_Rewriter().visit(source), *arguments, **options)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Traced) and attribute not in (*_ASKED, *_MADE):
            raise UntraceableError
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Traced) or isinstance(argument, Traced):
            raise UntraceableError
        return super().getitem(obj, argument)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if _holds_marks(left) or _holds_marks(right):
            raise UntraceableError
        return super().call_binop(context, operator, left, right)

    def call(self, context: jinja2.runtime.Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        takes_marks = isinstance(function, jinja2.runtime.Macro) or function in (
            Namespace,
            self._joined,
            _is_in,
        )
        given = [*arguments, *(value for name, value in named.items() if name not in _PLUMBING)]
        if not takes_marks and any(map(_holds_marks, given)):
            raise UntraceableError
        result = super().call(context, function, *arguments, **named)
        return self.trace.lifted(result) if isinstance(result, str) else result

    def _joined(self, *values: Any) -> str:
        """What `~` does."""
        return self.trace.lifted("".join(map(str, values)))

    def _watched(self, name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(filter_)
        def watched(*arguments: Any, **named: Any) -> Any:
            given = (*arguments, *named.values())
            if name in _FILTERS_OF_LISTS:
                is_held = any(isinstance(value, Traced) for value in given)
            else:
                is_held = name not in _FILTERS and any(map(_holds_marks, given))
            if is_held:
                raise UntraceableError
            result = filter_(*arguments, **named)
            if type(result) is str and _OPEN in result:
                raise UntraceableError
            return result

        return watched


# Filters that do to a text what `Traced` notes, and those that only hand on the items of a list.
_FILTERS = frozenset({"count", "d", "default", "length", "lower", "string", "trim", "upper"})
_FILTERS_OF_LISTS = frozenset(
    {"first", "last", "list", "reject", "rejectattr", "reverse", "select", "selectattr"}
)
_TRUE_OF_TEXTS = frozenset({"defined", "iterable", "sequence", "string"})
_FALSE_OF_TEXTS = frozenset(
    {"boolean", "callable", "false", "float", "integer", "mapping", "none", "number", "true", "undefined"}
)
_COMPARING = frozenset({"==", "eq", "equalto", "!=", "ne"})
# Arguments that compiled templates add to every call, for those that want the variables around them.
_PLUMBING = frozenset({"_loop_vars", "_block_vars"})
_JOINED, _IS_IN = "__joined", "__is_in"
# What puts texts together where nobody can watch.
_UNTRACEABLE_NODES = (
    jinja2.nodes.AssignBlock,
    jinja2.nodes.FilterBlock,
    jinja2.nodes.CallBlock,
    jinja2.nodes.Import,
    jinja2.nodes.FromImport,
    jinja2.nodes.Include,
    jinja2.nodes.Extends,
    jinja2.nodes.Block,
)


def _watched_test(name: str, test: Any) -> Callable[..., Any]:
    @wraps(test)
    def watched(*arguments: Any) -> Any:
        if not any(isinstance(value, Traced) for value in arguments):
            return test(*arguments)
        if name in _TRUE_OF_TEXTS or name in _FALSE_OF_TEXTS:
            return name in _TRUE_OF_TEXTS
        if name in _COMPARING:
            return test(*arguments)
        raise UntraceableError

    return watched


def _is_in(item: Any, container: Any) -> bool:
    """What `in` does; a watched text in another text is the one case that Python would not ask it about."""
    if isinstance(item, Traced) and not isinstance(container, list | tuple):
        raise UntraceableError
    return item in container


class _Rewriter(NodeTransformer):
    """Makes calls, which can be watched, of what compiled templates do by themselves."""

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:  # noqa: N802, jinja2's name
        self.generic_visit(node)
        return _call(_JOINED, node.nodes, node.lineno)

    def visit_Compare(self, node: jinja2.nodes.Compare) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not any(operand.op in ("in", "notin") for operand in node.ops):
            return node
        if len(node.ops) > 1:
            raise UntraceableError
        asked = _call(_IS_IN, [node.expr, node.ops[0].expr], node.lineno)
        return asked if node.ops[0].op == "in" else jinja2.nodes.Not(asked, lineno=node.lineno)


def _call(name: str, arguments: Iterable[jinja2.nodes.Expr], line: int) -> jinja2.nodes.Call:
    function = jinja2.nodes.Name(name, "load", lineno=line)
    return jinja2.nodes.Call(function, list(arguments), [], None, None, lineno=line)


def _holds_marks(value: Any) -> bool:
    """Whether a watched text is in a value, however deep."""
    if isinstance(value, str):
        return isinstance(value, Traced) or _OPEN in value
    if isinstance(value, dict):
        return any(map(_holds_marks, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_marks, value))
    # A generator cannot be looked into.
    return hasattr(value, "__next__") and not isinstance(value, jinja2.runtime.LoopContext)
