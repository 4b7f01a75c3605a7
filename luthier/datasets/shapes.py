"""Conversations that a chat template is known to treat alike: their text without running the template.

`Shapes` learns from a conversation by watching the template (`tracing`), and fills what it learnt with the
contents of the next one of the same roles, if these answer alike all that the template asks. What it gives is
what the template gives: a shape is only used when it repeats the conversation that it was learnt from, and
what cannot be watched is never filled.
"""

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from luthier.datasets.conversation import Conversation
from luthier.datasets.examples import DatasetError
from luthier.datasets.templates import ChatTemplate
from luthier.datasets.tokenizer import Span
from luthier.datasets.tracing import Trace, TracingSandbox, UntraceableError, Value, literal_end
from luthier.errors import JobFailure

# Ways of a template that are remembered for the same roles, and lists of roles.
_MAX_WAYS = 16
_MAX_SHAPES = 512

# The roles of a conversation's messages.
Roles = tuple[str, ...]


@dataclass(frozen=True)
class _Way:
    """One way through a template.

    Attributes:
        trace: what was asked.
        pieces: of the text, literal or to be filled in; empty where the way cannot be watched to its end.
        spans: the assistant's turns, as numbers of pieces.
    """

    trace: Trace
    pieces: tuple[str | Value, ...] = ()
    spans: tuple[Span, ...] = ()

    def fill(self, contents: Sequence[str]) -> tuple[str, list[Span]] | None:
        texts = [piece if isinstance(piece, str) else piece(contents) for piece in self.pieces]
        places = list(itertools.accumulate(map(len, texts), initial=0))
        spans = [Span(places[span.start], places[span.end]) for span in self.spans]
        if not texts or any(span.start >= span.end for span in spans):
            return None
        return "".join(texts), spans


class Shapes:
    """What is known of one template.

    Args:
        source, named_tokens: of the template.
        moment: for templates that print the date.
        special_tokens: none of them stands in the contents that are asked about.
    """

    def __init__(
        self, source: str, named_tokens: Mapping[str, str], moment: datetime, special_tokens: tuple[str, ...]
    ) -> None:
        self._special_tokens = special_tokens
        self._ways: dict[Roles, list[_Way]] = {}
        self._lock = threading.Lock()
        self._template: ChatTemplate | None
        try:
            self._template = ChatTemplate(source, named_tokens, lambda: moment, TracingSandbox)
        except (UntraceableError, JobFailure):
            self._template = None

    def fill(self, roles: Roles, contents: Sequence[str]) -> tuple[str, list[Span]] | None:
        """Text and turns of a conversation; None where nothing like it is known."""
        for way in self._ways.get(roles, ()):
            if way.trace.fits(contents):
                return way.fill(contents)
        return None

    def learn(self, roles: Roles, contents: Sequence[str], text: str, spans: Sequence[Span]) -> None:
        """Remember how the template treats conversations like this one, of which text and turns are known."""
        with self._lock:
            ways = self._ways.get(roles, [])
            is_full = len(ways) >= _MAX_WAYS or (not ways and len(self._ways) >= _MAX_SHAPES)
            # Where a way is known that cannot be filled, there is no more to learn.
            if self._template is None or is_full or any(way.trace.fits(contents) for way in ways):
                return
            way = self._watched(self._template, roles, contents)
            if way is None:
                return
            if way.pieces and way.fill(contents) != (text, list(spans)):
                way = _Way(way.trace)
            self._ways[roles] = [*ways, way]

    def _watched(self, template: ChatTemplate, roles: Roles, contents: Sequence[str]) -> _Way | None:
        trace = Trace(contents)
        assert isinstance(template.sandbox, TracingSandbox)  # noqa: S101, so it was made
        template.sandbox.trace = trace
        messages = [{"role": role, "content": trace.content(index)} for index, role in enumerate(roles)]
        try:
            conversation = Conversation(template, messages, None, self._special_tokens, may_probe=False)
            return self._way(trace, conversation.text, conversation.turns())
        except UntraceableError:
            return _Way(trace)
        except DatasetError:
            return None

    def _way(self, trace: Trace, text: str, spans: Sequence[Span]) -> _Way:
        """The pieces of a text with marks, parted where turns begin and end."""
        places = sorted({0, len(text), *(place for span in spans for place in (span.start, span.end))})
        pieces: list[str | Value] = []
        numbers = {0: 0}
        for start, end in itertools.pairwise(places):
            pieces += trace.pieces(text[start:end])
            numbers[end] = len(pieces)
        for span in spans:
            self._check_ending(text[span.start : span.end])
        turns = tuple(Span(numbers[span.start], numbers[span.end]) for span in spans)
        return _Way(trace, tuple(pieces), turns)

    def _check_ending(self, turn: str) -> None:
        """Refuse where a content and what stands behind it could end in a special token together."""
        tail = literal_end(turn).rstrip()
        has_own = tail.endswith(self._special_tokens)
        if tail and not has_own and any(token.endswith(tail) for token in self._special_tokens):
            raise UntraceableError
