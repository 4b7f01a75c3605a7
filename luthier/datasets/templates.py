"""Chat templates: the Jinja that comes with a model, in a sandbox set up as transformers does.

A template is code from a stranger: it sees plain JSON values, cannot reach Python's objects, and whatever it
raises becomes a `DatasetError` of the row. Source: transformers, `utils/chat_template_utils.py`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luthier.datasets.examples import DatasetError, Issue
from luthier.errors import ExitCode, JobFailure, printable

_ANYTHING = "anything"


class ChatTemplate:
    """One compiled template.

    Args:
        source: Jinja.
        named_tokens: `bos_token` and the like, which templates print.
        now: for templates that print the date.
        sandbox: what it runs in; one of these is made, and becomes an attribute.
    Raises:
        JobFailure: `model_load_failed`: it is not valid Jinja, or does not print the text of messages (those
            of vision models may want it in parts).
    """

    def __init__(
        self,
        source: str,
        named_tokens: Mapping[str, str],
        now: Callable[[], datetime],
        sandbox: type[ImmutableSandboxedEnvironment] = ImmutableSandboxedEnvironment,
    ) -> None:
        self.sandbox = _environment(now, sandbox)
        try:
            self._template = self.sandbox.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise _unusable(f"is broken in line {error.lineno}: {error.message}") from error
        self._named_tokens = dict(named_tokens)
        try:
            text = self.render([{"role": "user", "content": _ANYTHING}])
        except DatasetError:
            return  # It may want more than one turn, and will tell of a row what it lacks.
        if _ANYTHING not in text:
            raise _unusable("does not print the text of messages; choose a model for text")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of a conversation; with `add_generation_prompt`, what stands before an answer follows it.

        Raises:
            DatasetError: the template refuses the conversation, or fails on it.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._named_tokens,
            )
        except Exception as error:  # a template can raise whatever an expression can
            text = f"the model's chat template refuses the row: {printable(str(error), 200)}"
            raise DatasetError(Issue("template.refused", text)) from error


def _unusable(why: str) -> JobFailure:
    return JobFailure(f"The base model's chat template {why}", "model_load_failed", ExitCode.MISSING, "model")


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which writes what is inside it; turns are found alike with and without it."""

    tags = {"generation"}  # noqa: RUF012, jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(
    now: Callable[[], datetime], environment_class: type[ImmutableSandboxedEnvironment]
) -> ImmutableSandboxedEnvironment:
    environment = environment_class(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes the characters of HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
