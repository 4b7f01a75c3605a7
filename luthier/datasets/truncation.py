"""What is kept of a conversation that is too long: the answer, before its prompt, before the history.

`fit` cuts by one rule, in this order, and stops as soon as the rest fits:

1. what follows the last answer that is trained on goes, since nothing is learnt from it;
2. the oldest exchanges (a user's turn up to the next) go whole, and the rest is rendered anew, so that the
   system turn stays in its place in every template;
3. the user's turn of the first exchange left loses tokens from its beginning;
4. what stands before the header of the answer goes from its beginning, the first `bos_token` excepted;
5. the answer is cut at its end. Only then is it a lost answer, as those of exchanges gone are.

A text is cut at its end. `RULE` says so to users.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from luthier.datasets.examples import Example
from luthier.datasets.rendering import Rendered
from luthier.datasets.tokenizer import Span, SpannedTokens

RULE = (
    "the oldest exchanges go first, then the beginning of the prompt; the answer is kept, and cut at its end "
    "only where it does not fit alone"
)


@dataclass(frozen=True, slots=True)
class Whole:
    """An example with all of its tokens; the spans of `tokens` are those of the turns of `rendered`."""

    example: Example
    rendered: Rendered
    tokens: SpannedTokens


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is left: `kept` are ranges of the tokens of `whole`, which may be a shorter example."""

    whole: Whole
    kept: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """Places in the tokens of an example that end with an answer.

    Attributes:
        content: of the first user's turn; empty where the template hides it.
        header: where that of the last answer begins.
        first: tokens at the beginning that stay: a `bos_token`, or none.
    """

    content: Span
    header: int
    first: int


def fit(
    whole: Whole,
    limit: int,
    answer: int | None,
    encode: Callable[[Example], Whole],
    frame: Callable[[Whole], Frame],
) -> Fitted:
    """Cut an example down to `limit` tokens.

    Args:
        whole: longer than `limit`.
        answer: index of the message that is the last answer trained on; None for a text, or for none.
        encode: renders and encodes a shorter example.
        frame: finds the places where a prompt may be cut.
    Raises:
        DatasetError: the template refuses the shorter conversation.
    """
    if answer is None:
        return Fitted(whole, (Span(0, limit),))
    if answer < len(whole.example.messages) - 1:
        whole = encode(replace(whole.example, messages=whole.example.messages[: answer + 1]))
    while _answer_end(whole) > limit and (left := _later_exchanges(whole, limit)) is not None:
        whole = encode(left)
    end = _answer_end(whole)
    if end <= limit:
        return Fitted(whole, (Span(0, min(limit, len(whole.tokens.ids))),))
    return Fitted(whole, _cut_prompt(whole, limit, frame(whole)))


def _answer_end(whole: Whole) -> int:
    return whole.tokens.spans[-1].end


def _later_exchanges(whole: Whole, limit: int) -> Example | None:
    """The example without as many of its oldest exchanges as seem too many; None where only one is there."""
    messages = whole.example.messages
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    if len(starts) < 2:
        return None
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    ends = dict(zip(turns, (span.end for span in whole.tokens.spans), strict=True))
    excess, gone = _answer_end(whole) - limit, 0
    # What goes ends with the last answer before the next exchange; the frame around it stays in doubt.
    while (
        gone < len(starts) - 2 and max((ends[t] for t in turns if t < starts[gone + 1]), default=0) < excess
    ):
        gone += 1
    return replace(whole.example, messages=(*messages[: starts[0]], *messages[starts[gone + 1] :]))


def _cut_prompt(whole: Whole, limit: int, frame: Frame) -> tuple[Span, ...]:
    """The ranges that stay of one exchange."""
    end = _answer_end(whole)
    excess = end - limit
    content = frame.content
    gone = min(excess, content.end - content.start)
    kept = [Span(0, content.start), Span(content.start + gone, end)]
    if gone < excess:
        kept = _cut_front(kept, excess - gone, frame)
    if (length := sum(span.end - span.start for span in kept)) > limit:
        kept[-1] = Span(kept[-1].start, kept[-1].end - (length - limit))
    return tuple(span for span in kept if span.start < span.end)


def _cut_front(kept: list[Span], excess: int, frame: Frame) -> list[Span]:
    """Take tokens behind the first ones and before the header of the answer."""
    first, *rest = kept
    left = [Span(0, frame.first)]
    for span in [Span(frame.first, first.end), *rest]:
        free = max(0, min(span.end, frame.header) - span.start)
        gone = min(excess, free)
        excess -= gone
        left.append(Span(span.start + gone, span.end))
    return left
