"""Where the assistant's turns stand in what a chat template makes of a conversation.

Few templates mark them, so they are found by rendering beginnings of the conversation: a turn starts behind
what the template writes before an answer (`add_generation_prompt`) and ends, end-of-turn token included,
where the conversation up to it ends. Where a template writes past turns differently, as those of reasoning
models do to drop thoughts, a probe in the place of the answer tells where the turn ends.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.templates import ChatTemplate
from luthier.datasets.tokenizer import Span
from luthier.datasets.tracing import UntraceableError

# A noncharacter of Unicode, which no text of a message has.
PROBE = "\ufdd2"

_ANSWER = "assistant"


class Conversation:
    """One conversation under a chat template; `text` is all of it, marks included.

    Args:
        messages, tools: as chat templates read them.
        may_probe: whether turns may be found with a probe, which is the long way; `UntraceableError` if not.
    """

    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        special_tokens: tuple[str, ...],
        *,
        may_probe: bool = True,
    ) -> None:
        self._template, self._messages, self._tools = template, messages, tools
        self._special_tokens, self._may_probe = special_tokens, may_probe
        self.text = template.render(messages, tools)

    def turns(self) -> list[Span]:
        """Where the assistant's turns stand.

        Raises:
            DatasetError: the template hides one, or the calls in it, or changes their order.
        """
        spans = [
            self._turn(index) for index, message in enumerate(self._messages) if message["role"] == _ANSWER
        ]
        if any(before.end > after.start for before, after in itertools.pairwise(spans)):
            text = "the model's chat template does not print the turns one after the other; use another model"
            raise DatasetError(Issue("template.unstable", text))
        return spans

    def _turn(self, index: int) -> Span:
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
        if not self._may_probe:
            raise UntraceableError
        probe = {"role": "assistant", "content": PROBE}
        before, after = self._messages[:index], self._messages[index + 1 :]
        head, found, tail = self._template.render([*before, probe, *after], self._tools).partition(PROBE)
        _, _, closing = self._template.render([*before, probe], self._tools).partition(PROBE)
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
        special, shared = any_of(self._special_tokens), _common_length(tail, closing)
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


def any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longer ones first; `re` keeps what it compiled."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _common_length(first: str, second: str) -> int:
    """Length of the beginning that two texts share."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
