"""Examples become ids and loss masks within a length, as the rules of a job say.

`NativeEncoder` renders a whole row by its template and encodes it; `llamafactory.SlotEncoder` goes slot by
slot; `build_encoder` in `prepare` chooses. Both work in two steps, so that the next rows can be rendered, in
Python, while a thread encodes these, in Rust. What does not fit is cut by `truncation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from luthier.datasets.examples import DatasetError, Example, Issue
from luthier.datasets.rendering import Rendered, Renderer, Turn
from luthier.datasets.template_choice import ChosenTemplate
from luthier.datasets.tokenizer import ModelTokenizer, Span, SpannedText
from luthier.datasets.truncation import Fitted, Frame, Whole, fit

TrainOn = Literal["assistant", "last", "all"]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as it is trained on.

    Attributes:
        ids: within the length allowed.
        mask: a byte for each, 1 where the token is learnt, END_MARK where the end is.
        full_token_count: before anything was cut.
        answer_count: parts that are trained on: assistant turns, or the text.
        lost_answer_count: of these, with a token cut away.
        parts: the texts that were encoded, one after the other.
        kept: ranges of their tokens, which are the ids.
    """

    ids: list[int]
    mask: bytes
    full_token_count: int
    answer_count: int
    lost_answer_count: int
    parts: tuple[SpannedText, ...]
    kept: tuple[Span, ...]

    @property
    def is_cut(self) -> bool:
        return len(self.ids) < self.full_token_count

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


class Encoder(Protocol):
    """How rows become ids and masks."""

    def render(self, example: Example) -> Any:
        """What `encode` makes ids of.

        Raises:
            DatasetError: the template refuses the row.
        """
        ...

    def encode(self, rows: Sequence[tuple[Example, Any]]) -> list[EncodedRow | Issue]:
        """Rows from examples, each with what `render` made of it; an issue where one cannot be encoded."""
        ...


def places(row: EncodedRow, tokenizer: ModelTokenizer) -> list[tuple[int, int]]:
    """For each of a row's ids, the characters of its `text` that it stands for."""
    found: list[tuple[int, int]] = []
    position = 0
    for part, tokens in zip(
        row.parts, tokenizer.encode_batch([(part.text, part.literals) for part in row.parts]), strict=True
    ):
        found += [(position + start, position + end) for start, end in tokens.offsets]
        position += len(part.text)
    return [place for span in row.kept for place in found[span.start : span.end]]


class NativeEncoder:
    """Rows as their template renders them.

    Args:
        max_tokens: longer rows are cut; None for never.
    """

    def __init__(
        self, tokenizer: ModelTokenizer, template: ChosenTemplate, train_on: TrainOn, max_tokens: int | None
    ) -> None:
        self._tokenizer, self._renderer = tokenizer, Renderer(tokenizer, template)
        self._train_on, self._max_tokens = train_on, max_tokens

    def render(self, example: Example) -> Rendered:
        return self._renderer.render(example)

    def encode(self, rows: Sequence[tuple[Example, Rendered]]) -> list[EncodedRow | Issue]:
        try:
            found = self._tokenizer.encode_spans([_spanned(rendered) for _, rendered in rows])
        except ValueError as error:
            if len(rows) > 1:
                return [result for row in rows for result in self.encode([row])]
            return [Issue("template.special_token", f"{error}; take it out of the row")]
        return [
            self._row(Whole(example, rendered, tokens))
            for (example, rendered), tokens in zip(rows, found, strict=True)
        ]

    def _row(self, whole: Whole) -> EncodedRow | Issue:
        tokens, turns = whole.tokens, whole.rendered.turns
        length, limit = len(tokens.ids), self._max_tokens
        trained = trained_turns(turns, self._train_on)
        if limit is None or length <= limit:
            mask = loss_mask(length, turns, tokens.spans, self._train_on)
            kept = (Span(0, length),)
            return EncodedRow(tokens.ids, mask, length, len(trained), 0, (_spanned(whole.rendered),), kept)
        try:
            fitted = fit(whole, limit, _last_answer(whole, trained), self._whole, self._frame)
        except DatasetError as error:
            return error.issue
        return self._cut_row(fitted, length, len(trained))

    def _cut_row(self, fitted: Fitted, length: int, answer_count: int) -> EncodedRow:
        tokens, turns, kept = fitted.whole.tokens, fitted.whole.rendered.turns, fitted.kept
        mask = loss_mask(len(tokens.ids), turns, tokens.spans, self._train_on)
        left = trained_turns(turns, self._train_on)
        whole_answers = sum(_is_within(tokens.spans[index], kept) for index in left)
        ids = [token for span in kept for token in tokens.ids[span.start : span.end]]
        cut_mask = b"".join(mask[span.start : span.end] for span in kept)
        return EncodedRow(
            ids,
            b"\0" + cut_mask[1:],
            length,
            answer_count,
            answer_count - whole_answers,
            (_spanned(fitted.whole.rendered),),
            kept,
        )

    def _whole(self, example: Example) -> Whole:
        rendered = self._renderer.render(example)
        [tokens] = self._tokenizer.encode_spans([_spanned(rendered)])
        return Whole(example, rendered, tokens)

    def _frame(self, whole: Whole) -> Frame:
        """Where the prompt of the one exchange in an example may be cut."""
        messages = whole.example.messages
        first = next(index for index, message in enumerate(messages) if message.role == "user")
        content = self._renderer.content_span(whole.example, first)
        last = self._renderer.content_span(whole.example, len(messages) - 2)
        starts_with_bos = whole.tokens.ids[:1] == [
            self._tokenizer.token_of(self._tokenizer.named_tokens.get("bos_token", ""))
        ]
        answer = whole.tokens.spans[-1].start
        if content is None or last is None:
            return Frame(Span(answer, answer), answer, int(starts_with_bos))
        text = whole.rendered.text
        asked = (Span(0, content.start), Span(content.end, len(text)), Span(last.end, len(text)))
        [tokens] = self._tokenizer.encode_spans([SpannedText(text, asked, whole.rendered.literals)])
        before, behind, header = tokens.spans
        inner = Span(before.end, max(before.end, min(behind.start, answer)))
        return Frame(inner, min(header.start, answer), int(starts_with_bos))


def loss_mask(length: int, turns: Sequence[Turn], spans: Sequence[Span], train_on: TrainOn) -> bytes:
    """1 for every token to be learnt, 0 for the others.

    Args:
        spans: tokens of the turns. A token belongs to a turn when any of its characters does.

    The first token is never learnt: nothing stands before it. Turns of weight 0 are left out, also with
    `all`; `last` is the last assistant turn.
    """
    mask = bytearray(b"\1" * length if train_on == "all" else length)
    if train_on == "all":
        marked = [(span, b"\0") for turn, span in zip(turns, spans, strict=True) if not turn.is_trained]
    else:
        marked = [(spans[index], b"\1") for index in trained_turns(turns, train_on)]
    for span, value in marked:
        mask[span.start : span.end] = value * (span.end - span.start)
    if length:
        mask[0] = 0
    return bytes(mask)


def trained_turns(turns: Sequence[Turn], train_on: TrainOn) -> list[int]:
    """Numbers of the turns that are trained on."""
    first = len(turns) - 1 if train_on == "last" else 0
    return [index for index, turn in enumerate(turns) if turn.is_trained and index >= first]


def _last_answer(whole: Whole, trained: Sequence[int]) -> int | None:
    """The message that is the last answer trained on; None for a text, or for none."""
    answers = [index for index, message in enumerate(whole.example.messages) if message.role == "assistant"]
    return answers[trained[-1]] if trained and answers else None


def _is_within(span: Span, kept: Sequence[Span]) -> bool:
    return any(part.start <= span.start and span.end <= part.end for part in kept)


def _spanned(rendered: Rendered) -> SpannedText:
    return SpannedText(rendered.text, tuple(turn.span for turn in rendered.turns), rendered.literals)
