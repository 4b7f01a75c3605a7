"""Rows as a model would see them: the text, its tokens, and which of these are learnt.

`preview_rows` goes the way of preparation for a few rows and keeps what preparation throws away: where each
token stands in the text, and why a row would be cut or dropped.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from luthier.datasets.encoding import EncodedRow, Encoder, places
from luthier.datasets.examples import DatasetError, Example, Issue, Message
from luthier.datasets.prepare import build_encoder, truncation_rule
from luthier.datasets.reading import read_examples, reading_of
from luthier.datasets.template_choice import disagreements, resolve_template
from luthier.datasets.tokenizer import ModelTokenizer
from luthier.spec import DatasetRequest, SourceFile


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class PreviewToken(_Frozen):
    """One token: `start` and `end` are its characters in the row's text, which several may share."""

    id: int
    text: str
    start: int
    end: int
    is_trained: bool


class PreviewMessage(_Frozen):
    """One turn as the row has it; `tool_calls` as chat templates take them."""

    role: str
    content: str
    is_trained: bool
    tool_calls: tuple[dict[str, Any], ...] = ()


class PreviewRow(_Frozen):
    """One row.

    Attributes:
        text: all of what was rendered; the tokens are what is kept of it.
        token_count, trained_token_count: of what is kept.
        is_truncated, is_dropped: what would become of the row.
        warnings: why, in sentences, and what else to know.
    """

    line: int | None
    text: str = ""
    tokens: tuple[PreviewToken, ...] = ()
    token_count: int = 0
    trained_token_count: int = 0
    is_truncated: bool = False
    is_dropped: bool = False
    messages: tuple[PreviewMessage, ...] = ()
    warnings: tuple[str, ...] = ()


def preview_rows(
    source: SourceFile,
    tokenizer: ModelTokenizer,
    *,
    rules: DatasetRequest,
    max_seq_length: int,
    offset: int,
    count: int,
) -> tuple[PreviewRow, ...]:
    """Rows `offset` up to `offset + count` of a file, bad ones with what is wrong with them.

    Raises:
        DatasetError: the file cannot be read on, or there is no such template.
        JobFailure: the model's template is broken.
        OSError: the file cannot be read.
    """
    chosen = resolve_template(rules.template, tokenizer, rules.style)
    cuts = rules.overlength == "truncate"
    encoder = build_encoder(tokenizer, chosen, rules, max_seq_length if cuts else None)
    look = _Look(tokenizer, encoder, rules, max_seq_length, disagreements(chosen, tokenizer))
    # Those before the offset are read and let go of, however many they are.
    found: list[tuple[int | None, Example | Issue]] = []
    seen = 0

    def see(line: int | None, row: Example | Issue) -> None:
        nonlocal seen
        seen += 1
        if seen > offset:
            found.append((line, row))

    reading = reading_of(source, rules.model_copy(update={"max_samples": offset + count}))
    for line, example in read_examples(Path(source.path), reading, lambda issue: see(issue.line, issue)):
        see(line, example)
    return tuple(look.at(line, row) for line, row in found)


class _Look:
    """Looks at rows by one set of rules."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        encoder: Encoder,
        rules: DatasetRequest,
        max_seq_length: int,
        notes: tuple[str, ...],
    ) -> None:
        self._tokenizer, self._encoder, self._rules = tokenizer, encoder, rules
        self._limit, self._notes = max_seq_length, notes

    def at(self, line: int | None, row: Example | Issue) -> PreviewRow:
        if isinstance(row, Issue):
            return PreviewRow(line=line, is_dropped=True, warnings=(row.message,))
        try:
            [encoded] = self._encoder.encode([(row, self._encoder.render(row))])
        except DatasetError as error:
            encoded = error.issue
        if isinstance(encoded, Issue):
            messages = _messages(row, self._rules.train_on)
            return PreviewRow(
                line=line, is_dropped=True, messages=messages, warnings=(encoded.at(line or 1).message,)
            )
        return self._shown(line, row, encoded)

    def _shown(self, line: int | None, example: Example, row: EncodedRow) -> PreviewRow:
        text = row.text
        tokens = tuple(
            PreviewToken(id=token, text=text[start:end], start=start, end=end, is_trained=mark > 0)
            for token, mark, (start, end) in zip(row.ids, row.mask, places(row, self._tokenizer), strict=True)
        )
        is_too_long = row.full_token_count > self._limit and self._rules.overlength != "truncate"
        return PreviewRow(
            line=line,
            text=text,
            tokens=tokens,
            token_count=len(tokens),
            trained_token_count=len(row.mask) - row.mask.count(0),
            is_truncated=row.is_cut,
            is_dropped=is_too_long or 1 not in row.mask,
            messages=_messages(example, self._rules.train_on),
            warnings=(*self._notes, *self._warnings(row, is_too_long=is_too_long)),
        )

    def _warnings(self, row: EncodedRow, *, is_too_long: bool) -> list[str]:
        found = []
        if is_too_long:
            what = "stops the job" if self._rules.overlength == "raise" else "drops it"
            found.append(
                f"The row has {row.full_token_count} tokens, over {self._limit}: dataset.overlength {what}"
            )
        if row.is_cut:
            found.append(
                f"The row is cut from {row.full_token_count} to {len(row.ids)} tokens: "
                f"{truncation_rule(self._rules)}"
            )
        if row.lost_answer_count:
            found.append(f"{row.lost_answer_count} of {row.answer_count} answers lose tokens")
        if 1 not in row.mask:
            found.append("The row is dropped: there is no token in it to learn")
        if any(part.literals for part in row.parts):
            found.append("Special tokens stand in its text; they are encoded as plain text")
        return found


def _messages(example: Example, train_on: str) -> tuple[PreviewMessage, ...]:
    """The turns, each with whether it is trained on; a text is one turn without a role of its own."""
    if not example.messages:
        text = "".join(text for text, _ in example.text)
        return (PreviewMessage(role="text", content=text, is_trained=True),)
    last = max(index for index, message in enumerate(example.messages) if message.role == "assistant")
    return tuple(
        PreviewMessage(
            role=message.role,
            content=message.content or "",
            is_trained=_is_trained(message, train_on, is_last=index == last),
            tool_calls=message.tool_calls,
        )
        for index, message in enumerate(example.messages)
    )


def _is_trained(message: Message, train_on: str, *, is_last: bool) -> bool:
    if message.role != "assistant":
        return train_on == "all"
    return message.is_trained and (train_on != "last" or is_last)
