"""Examples become text by a chat template, with the place of every assistant turn in it.

Few templates mark the assistant's turns, so these are found by rendering beginnings of the conversation: a
turn starts behind what the template writes before an answer (`add_generation_prompt`) and ends, end-of-turn
token included, where the conversation up to it ends. Where a template writes past turns differently, as those
of reasoning models do to drop thoughts, a probe in the place of the answer tells where the turn ends.
"""

import bisect
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from luthier.datasets.examples import DatasetError, Example, Format, Issue, Message
from luthier.datasets.template_choice import ChosenTemplate
from luthier.datasets.templates import ChatTemplate
from luthier.datasets.tokenizer import ModelTokenizer, Span

# Noncharacters of Unicode, which no text may hold: they mark special tokens that stand in messages, and the
# probe. They are taken out of messages before, and out of the text afterwards.
_OPEN, _CLOSE, _PROBE = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}{_PROBE}]")
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
    Raises:
        JobFailure: `model_load_failed`, when the template is not usable.
    """

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        template: ChosenTemplate | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        chosen = template or ChosenTemplate(tokenizer.chat_template)
        moment = now()
        self._named_tokens, self._starts_with_bos = tokenizer.named_tokens, tokenizer.starts_with_bos
        self._special_tokens = tokenizer.special_tokens
        self._special = _any_of(tokenizer.special_tokens)
        self._is_format_string = chosen.is_format_string
        self._template = (
            ChatTemplate(chosen.source, self._named_tokens, lambda: moment)
            if chosen.source is not None
            else None
        )

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
        probed = [*messages[:index], {**messages[index], "content": _PROBE}, *messages[index + 1 :]]
        text = self._template.render(messages, tools)
        head, found, tail = self._template.render(probed, tools).partition(_PROBE)
        if not found or not (text.startswith(head) and text.endswith(tail)):
            return None
        return _moved(text, Span(len(head), len(text) - len(tail)))

    def _render_chat(self, example: Example) -> Rendered:
        assert self._template is not None  # noqa: S101, the callers asked
        messages = [_for_template(message, self._marked) for message in example.messages]
        tools = self._marked(example.tools) or None
        conversation = _Conversation(self._template, messages, tools, self._special_tokens)
        answers = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
        spans = [conversation.turn(index) for index in answers]
        if any(before.end > after.start for before, after in itertools.pairwise(spans)):
            text = "the model's chat template does not print the turns one after the other; use another model"
            raise DatasetError(Issue("template.unstable", text))
        return _unmarked(conversation.text, spans, [example.messages[index].is_trained for index in answers])

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


class _Conversation:
    """One conversation under a chat template; `text` is all of it, marks included."""

    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        special_tokens: tuple[str, ...],
    ) -> None:
        self._template, self._messages, self._tools = template, messages, tools
        self._special_tokens = special_tokens
        self.text = template.render(messages, tools)

    def turn(self, index: int) -> Span:
        """Where the assistant's turn `index` stands.

        Raises:
            DatasetError: the template hides it, or the calls in it.
        """
        opening = self._beginning(self._messages[:index], add_generation_prompt=True)
        is_last = index == len(self._messages) - 1
        whole = self.text if is_last else self._beginning(self._messages[: index + 1])
        start = len(opening) if opening and self.text.startswith(opening) else None
        end = len(whole) if whole and self.text.startswith(whole) else None
        if start is None or end is None or start >= end:
            start, end = self._probe(index, opening, start)
        span = Span(start, self._without_trailing_space(start, end))
        self._check_calls(index, span)
        return span

    def _beginning(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """What these first messages become alone; empty when the template will not have them so."""
        try:
            return self._template.render(messages, self._tools, add_generation_prompt=add_generation_prompt)
        except DatasetError:
            return ""

    def _probe(self, index: int, opening: str, start: int | None) -> tuple[int, int]:
        """Start and end of a turn, found with a probe in the place of its answer."""
        probe = {"role": "assistant", "content": _PROBE}
        before, after = self._messages[:index], self._messages[index + 1 :]
        head, found, tail = self._template.render([*before, probe, *after], self._tools).partition(_PROBE)
        _, _, closing = self._template.render([*before, probe], self._tools).partition(_PROBE)
        if start is None:
            # The text may leave the prompt for an answer early: a prompt to think, and an answer without.
            start = len(head) if self.text.startswith(head) else _common_length(self.text, opening)
        end = len(self.text) - len(tail) + self._ending_length(tail, closing)
        if not found or not start < end or self.text[end:] != tail[len(tail) - (len(self.text) - end) :]:
            text = f"the model's chat template hides where the answer messages[{index}] begins and ends"
            raise DatasetError(Issue("template.unstable", text))
        return start, end

    def _ending_length(self, tail: str, closing: str) -> int:
        """How much of `tail`, the text behind an answer, still belongs to its turn.

        `closing` is what stands behind the same answer at the end of a conversation. The two agree for as
        long as the turn lasts; what they share by chance of the next lies behind the end-of-turn token.
        """
        special, shared = _any_of(self._special_tokens), _common_length(tail, closing)
        ends = [match.end() for match in special.finditer(tail) if match.end() <= shared]
        if ends:
            return ends[-1]
        # Some templates end past turns with another token than the last one.
        first, last = special.search(tail), special.search(closing)
        if first and last and first.start() == last.start() <= shared:
            return first.end()
        return shared

    def _without_trailing_space(self, start: int, end: int) -> int:
        """`end`, moved before the white space behind an end-of-turn token: no model has to write that."""
        stripped = self.text[start:end].rstrip()
        return start + len(stripped) if stripped.endswith(self._special_tokens) else end

    def _check_calls(self, index: int, span: Span) -> None:
        names = [call["function"]["name"] for call in self._messages[index].get("tool_calls", ())]
        if not all(name in self.text[span.start : span.end] for name in names):
            text = f"the model's chat template leaves out the tool calls of messages[{index}]; remove the row"
            raise DatasetError(Issue("template.no_tool_calls", text))


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longer ones first; `re` keeps what it compiled."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _common_length(first: str, second: str) -> int:
    """Length of the beginning that two texts share."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


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
