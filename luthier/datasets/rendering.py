"""Examples become text by a chat template, with the place of every assistant turn in it.

`conversation` finds the turns by running the template several times; `shapes` spares that where one like it
has been seen. Special tokens in messages are marked on their way through the template, so that they
can be told from those that it writes.
"""

import bisect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from luthier.datasets.conversation import PROBE, Conversation, any_of
from luthier.datasets.examples import DatasetError, Example, Format, Issue, Message
from luthier.datasets.shapes import Shapes
from luthier.datasets.template_choice import ChosenTemplate
from luthier.datasets.templates import ChatTemplate
from luthier.datasets.tokenizer import ModelTokenizer, Span

# Noncharacters of Unicode, which no text may hold: they mark special tokens that stand in messages. They, and
# those that find places (`conversation`, `tracing`), are taken out of messages before.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKS = re.compile("[\ufdd0-\ufdd5]")
_MARKED = re.compile(f"{_OPEN}[^{_OPEN}{_CLOSE}]*{_CLOSE}")
# How a format string writes the model's own tokens.
_TOKEN_NAME = re.compile(r"\{([a-z]+_token)\}")


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant turn in a rendered text; `is_trained` is False where the row gave it weight 0."""

    span: Span
    is_trained: bool


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text that a model sees for an example.

    Attributes:
        turns: the assistant's, in order, each with its end-of-turn token.
        literals: where special tokens stand in messages and are plain text.
    """

    text: str
    turns: tuple[Turn, ...]
    literals: tuple[Span, ...] = ()


class Renderer:
    """Renders examples for one model.

    Args:
        tokenizer: gives the special tokens.
        template: what renders; None for the model's own.
        now: for templates that print the date; asked once, so that all rows have the same.
        learns: whether conversations like one seen before are filled in without running the template.
    Raises:
        JobFailure: `model_load_failed`, when the template is not usable.
    """

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        template: ChosenTemplate | None = None,
        now: Callable[[], datetime] = datetime.now,
        *,
        learns: bool = True,
    ) -> None:
        chosen = template or ChosenTemplate(tokenizer.chat_template)
        moment = now()
        self._named_tokens, self._starts_with_bos = tokenizer.named_tokens, tokenizer.starts_with_bos
        self._special_tokens = tokenizer.special_tokens
        self._special = any_of(tokenizer.special_tokens)
        self._is_format_string = chosen.is_format_string
        self._template, self._learns = None, learns
        if chosen.source is not None:
            self._template = ChatTemplate(chosen.source, self._named_tokens, lambda: moment)
            self._shapes = Shapes(chosen.source, self._named_tokens, moment, self._special_tokens)

    def render(self, example: Example) -> Rendered:
        """The text of an example.

        Without a chat template there are prompt/completion rows and texts only: their strings as they are,
        with the `eos_token` behind them.

        Raises:
            DatasetError: the template refuses the row, or is none and needed, or hides where answers stand.
        """
        if example.format is Format.TEXT:
            return self._render_text(example)
        if self._template is None:
            return self._render_plain(example)
        return self._render_chat(example)

    def content_span(self, example: Example, index: int) -> Span | None:
        """Where the content of message `index` stands in the text of an example; None where that is hidden.

        The message is not the assistant's.
        """
        if self._template is None:
            before = len(self._bos())
            return Span(before, before + len(example.messages[0].content or "")) if index == 0 else None
        messages = [_for_template(message, self._marked) for message in example.messages]
        tools = self._marked(example.tools) or None
        probed = [*messages[:index], {**messages[index], "content": PROBE}, *messages[index + 1 :]]
        text = self._template.render(messages, tools)
        head, found, tail = self._template.render(probed, tools).partition(PROBE)
        if not found or not (text.startswith(head) and text.endswith(tail)):
            return None
        return _moved(text, Span(len(head), len(text) - len(tail)))

    def _render_chat(self, example: Example) -> Rendered:
        """By what is known of such conversations, else by the template itself; both give the same."""
        contents = self._plain_contents(example) if self._learns else None
        if contents is None:
            return self._render_exactly(example)
        shape = tuple(message.role for message in example.messages)
        found = self._shapes.fill(shape, contents)
        if found is None:
            rendered = self._render_exactly(example)
            self._shapes.learn(shape, contents, rendered.text, [turn.span for turn in rendered.turns])
            return rendered
        text, spans = found
        answers = (message for message in example.messages if message.role == "assistant")
        return Rendered(
            text, tuple(Turn(span, answer.is_trained) for span, answer in zip(spans, answers, strict=True))
        )

    def _plain_contents(self, example: Example) -> list[str] | None:
        """The contents of messages, where these are all that there is and no mark is needed in them."""
        if example.tools:
            return None
        contents = []
        for message in example.messages:
            content = message.content
            if content is None or message.tool_calls or message.name or message.tool_call_id:
                return None
            if self._special.search(content) or _MARKS.search(content):
                return None
            contents.append(content)
        return contents

    def _render_exactly(self, example: Example) -> Rendered:
        assert self._template is not None  # noqa: S101, the callers asked
        messages = [_for_template(message, self._marked) for message in example.messages]
        tools = self._marked(example.tools) or None
        conversation = Conversation(self._template, messages, tools, self._special_tokens)
        are_trained = [message.is_trained for message in example.messages if message.role == "assistant"]
        return _unmarked(conversation.text, conversation.turns(), are_trained)

    def _render_plain(self, example: Example) -> Rendered:
        eos = self._named_tokens.get("eos_token")
        if example.format is not Format.PROMPT_COMPLETION or eos is None:
            lack = "chat template" if eos else "chat template and no eos_token"
            text = (
                f"the model has no {lack}, so it cannot be trained on {example.format} rows; set "
                "dataset.template to the name of one, such as chatml"
            )
            raise DatasetError(Issue("template.missing", text))
        bos = self._bos()
        prompt, completion = (self._marked(message.content) for message in example.messages)
        start = len(bos) + len(prompt)
        text = f"{bos}{prompt}{completion}{eos}"
        return _unmarked(text, [Span(start, len(text))], [example.messages[1].is_trained])

    def _render_text(self, example: Example) -> Rendered:
        """A text between `bos_token`, where texts begin with one, and `eos_token`, where it lacks them."""
        bos, eos = self._bos(), self._named_tokens.get("eos_token", "")
        pieces = [self._parsed(text) if parsed else self._marked(text) for text, parsed in example.text]
        text = "".join(pieces)
        begins = bos if not text.startswith(bos) else ""
        ends = eos if not text.endswith(eos) else ""
        text = f"{begins}{text}{ends}"
        return _unmarked(text, [Span(0, len(text))], [True])

    def _parsed(self, text: str) -> str:
        """A piece in which special tokens count, and the names of the model's own stand for them."""
        text = _MARKS.sub("", text)
        return _TOKEN_NAME.sub(self._token_named, text) if self._is_format_string else text

    def _token_named(self, match: re.Match[str]) -> str:
        if (token := self._named_tokens.get(match[1])) is not None:
            return token
        there = ", ".join(self._named_tokens) or "none"
        text = f"dataset.template names {{{match[1]}}}, which the model lacks; it has {there}"
        raise DatasetError(Issue("template.unknown_token", text, "dataset.template"))

    def _bos(self) -> str:
        return self._named_tokens["bos_token"] if self._starts_with_bos else ""

    def _marked(self, value: Any) -> Any:
        """A JSON value with marks around every special token in its strings."""
        if isinstance(value, str):
            return self._special.sub(f"{_OPEN}\\g<0>{_CLOSE}", _MARKS.sub("", value))
        if isinstance(value, dict):
            return {self._marked(key): self._marked(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(item) for item in value]
        return value


def _for_template(message: Message, mark: Callable[[Any], Any]) -> dict[str, Any]:
    """A message as chat templates read it; what it lacks has no key, since some templates ask for keys."""
    fields = {"content": message.content, "tool_call_id": message.tool_call_id, "name": message.name}
    present = {name: mark(value) for name, value in fields.items() if value is not None}
    if message.tool_calls:
        # Not None, which many templates print, or fail on.
        present |= {"content": present.get("content", ""), "tool_calls": mark(message.tool_calls)}
    return {"role": message.role} | present


def _unmarked(text: str, spans: Sequence[Span], are_trained: Sequence[bool]) -> Rendered:
    """The text without its marks, and all places moved accordingly."""
    marks = [match.start() for match in _MARKS.finditer(text)]

    def moved(start: int, end: int) -> Span:
        return Span(start - bisect.bisect_left(marks, start), end - bisect.bisect_left(marks, end))

    if not marks:
        turns = tuple(map(Turn, spans, are_trained))
        return Rendered(text, turns)
    return Rendered(
        text=_MARKS.sub("", text),
        turns=tuple(
            Turn(moved(span.start, span.end), is_trained)
            for span, is_trained in zip(spans, are_trained, strict=True)
        ),
        literals=tuple(moved(match.start() + 1, match.end() - 1) for match in _MARKED.finditer(text)),
    )


def _moved(text: str, span: Span) -> Span:
    """A place in a text, when its marks are gone."""
    return _unmarked(text, [span], [True]).turns[0].span
