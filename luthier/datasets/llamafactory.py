"""Rows as LLaMA-Factory makes them: slot by slot, cut turn by turn, with that system's label spans.

`SlotEncoder` is what `dataset.style: llamafactory` chooses. Every slot is encoded alone, so ids can differ
from those of the whole text; the line end behind an answer's last token is in the loss; every answer is
trained on, or with `last` the last one, which then also has the first claim to the room there is. Where a
template ends rows with one `eos_token` ("efficient eos"), the model learns to end behind earlier answers too,
though no such token stands there. One thing differs: special tokens in messages are spelled out.
Source: LLaMA-Factory, data/processor and data/template.py, as of August 2026.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from luthier.datasets.encoding import EncodedRow, TrainOn
from luthier.datasets.examples import DatasetError, Example, Format, Issue, Message
from luthier.datasets.named_templates import (
    CONTENT,
    EMPTY_THOUGHT,
    TOOLS_BEFORE,
    TOOLS_BEHIND,
    Named,
    NamedTemplate,
    Slots,
)
from luthier.datasets.tokenizer import ModelTokenizer, Span, SpannedText
from luthier.spec import END_MARK

Thoughts = Literal["learn", "give", "remove"]

RULE = "turn by turn as LLaMA-Factory does: prompt and answer share what room is left, later turns get none"

_THOUGHT = re.compile(r"<think>\n(.*?)\n</think>\n\n", re.DOTALL)
_BETWEEN_TOOLS = "\n</tool_response>\n<tool_response>\n"


def shared_room(source: int, target: int, room: int) -> tuple[int, int]:
    """How many tokens of a prompt and of its answer stay where there is room for so many.

    The smaller of the two stays whole when it takes less than half; otherwise both shrink alike.
    """
    if target * 2 < room:
        most = room
    elif source * 2 < room:
        most = room - source
    else:
        most = int(room * (target / (source + target)))
    target = min(most, target)
    return min(max(room - target, 0), source), target


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and its answer, as the slots that are encoded alone."""

    source: tuple[SpannedText, ...]
    target: tuple[SpannedText, ...]
    is_trained: bool


@dataclass(frozen=True, slots=True)
class _Ids:
    source: list[int]
    target: list[int]
    is_trained: bool


class SlotEncoder:
    """Rows by a named template, slot by slot.

    Args:
        max_tokens: rows are cut to so many; None for never.
        thoughts: `DatasetRequest.thoughts`, for a reasoning template.
    Raises:
        DatasetError: the prompt shall be trained on, and the template cannot have that.
    """

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        template: NamedTemplate,
        train_on: TrainOn,
        max_tokens: int | None,
        thoughts: Thoughts = "learn",
    ) -> None:
        if train_on == "all" and template.ends_with_eos:
            text = f"the template {template.name} cannot train on prompts: set dataset.train_on to assistant"
            raise DatasetError(Issue("template.train_on", text, "dataset.train_on"))
        self._tokenizer, self._template = tokenizer, template
        self._train_on, self._max_tokens, self._thoughts = train_on, max_tokens, thoughts

    def render(self, example: Example) -> tuple[Pair, ...]:
        """The slots of each prompt and answer.

        Raises:
            DatasetError: turns do not alternate, or the template has no words for them.
        """
        if example.format is Format.TEXT:
            _refuse("texts have no turns; leave dataset.template to a format string, or the style out")
        messages = list(example.messages)
        system = (messages.pop(0).content or "") if messages[0].role == "system" else ""
        system = system or self._template.default_system
        turns = list(_alternating(messages))
        pairs = []
        for number, (prompt, answer) in enumerate(turns):
            source = self._source(prompt, system if number == 0 else None, example.tools)
            thought, target = self._target(answer, is_last=number == len(turns) - 1)
            if self._thoughts == "learn":
                pairs.append(Pair(source, thought + target, answer.is_trained))
            else:
                pairs.append(Pair(source + thought, target, answer.is_trained))
        return tuple(pairs)

    def encode(self, rows: Sequence[tuple[Example, tuple[Pair, ...]]]) -> list[EncodedRow | Issue]:
        eos = self._eos()
        slots = [
            slot
            for _, pairs in rows
            for slot in (*(slot for pair in pairs for slot in (*pair.source, *pair.target)), *eos)
        ]
        try:
            ids = iter([tokens.ids for tokens in self._tokenizer.encode_spans(slots)])
        except ValueError as error:
            if len(rows) > 1:
                return [result for row in rows for result in self.encode([row])]
            return [Issue("template.special_token", f"{error}; take it out of the row")]
        return [self._row(pairs, ids) for _, pairs in rows]

    def _row(self, pairs: Sequence[Pair], ids: Iterator[list[int]]) -> EncodedRow:
        encoded = [
            _Ids(_joined(pair.source, ids), _joined(pair.target, ids), pair.is_trained) for pair in pairs
        ]
        eos = self._eos()
        ending = _joined(eos, ids)
        lengths = self._lengths(encoded, len(ending))
        row_ids: list[int] = []
        mask = bytearray()
        kept: list[Span] = []
        place = 0
        learns = self._learnt(encoded)
        # The turn that is taken up first has no answer before it there: of a masked history, the last one.
        first = len(encoded) - 1 if self._train_on == "last" else 0
        for number, (turn, (source, target)) in enumerate(zip(encoded, lengths, strict=True)):
            row_ids += turn.source[:source] + turn.target[:target]
            mask += self._source_mask(source, is_first=number == first) + bytes([learns[number]]) * target
            kept += [Span(place, place + source)]
            place += len(turn.source)
            kept += [Span(place, place + target)]
            place += len(turn.target)
        kept.append(Span(place, place + len(ending)))
        row_ids += ending
        mask += b"\1" * len(ending)
        learnt = [index for index, is_learnt in enumerate(learns) if is_learnt]
        lost = sum(lengths[index][1] < len(encoded[index].target) for index in learnt)
        parts = tuple(slot for pair in pairs for slot in (*pair.source, *pair.target)) + eos
        return EncodedRow(
            row_ids,
            b"\0" + bytes(mask[1:]),
            place + len(ending),
            len(learnt),
            lost,
            parts,
            tuple(span for span in kept if span.start < span.end),
        )

    def _source_mask(self, length: int, *, is_first: bool) -> bytes:
        if self._template.ends_with_eos and length > 0 and not is_first:
            return bytes([END_MARK]) + bytes(length - 1)
        return bytes([self._train_on == "all"]) * length

    def _lengths(self, turns: Sequence[_Ids], taken: int) -> list[tuple[int, int]]:
        """What stays of each prompt and answer; of those for which there is no room, nothing."""
        if self._max_tokens is None:
            return [(len(turn.source), len(turn.target)) for turn in turns]
        found = []
        # With the history masked, the last turn has the first claim.
        for turn in reversed(turns) if self._train_on == "last" else turns:
            room = self._max_tokens - taken
            lengths = shared_room(len(turn.source), len(turn.target), room) if room > 0 else (0, 0)
            taken += sum(lengths)
            found.append(lengths)
        return found[::-1] if self._train_on == "last" else found

    def _learnt(self, turns: Sequence[_Ids]) -> list[bool]:
        first = len(turns) - 1 if self._train_on == "last" else 0
        return [turn.is_trained and index >= first for index, turn in enumerate(turns)]

    def _source(
        self, prompt: Sequence[Message], system: str | None, tools: Sequence[dict[str, Any]]
    ) -> tuple[SpannedText, ...]:
        """A prompt with what stands before it; `system` is None for all but the first."""
        template = self._template
        before: tuple[SpannedText, ...] = ()
        fused = ""
        if system is not None:
            before = self._slots(template.prefix, "")
            told = system + self._functions(tools)
            if told and template.fuses_system:
                fused = str(template.system[0]).replace(CONTENT, told)
            elif told:
                before += self._slots(template.system, told)
        slots = template.user if prompt[0].role == "user" else self._tool_slots()
        content = _BETWEEN_TOOLS.join(message.content or "" for message in prompt)
        return before + self._slots(_merged(slots, template.header), fused + content)

    def _target(
        self, answer: Message, *, is_last: bool
    ) -> tuple[tuple[SpannedText, ...], tuple[SpannedText, ...]]:
        """The empty thought that an answer lacks, and the answer."""
        template = self._template
        content = self._answer(answer)
        if not template.is_reasoning:
            return (), self._slots(template.assistant, content)
        is_history = self._train_on == "last" and not is_last
        if is_history or self._thoughts == "remove":
            content = _THOUGHT.sub("", content).lstrip("\n")
        has_thought = "<think>" in content or "</think>" in content
        thought = () if has_thought or is_history else (SpannedText(EMPTY_THOUGHT),)
        return thought, self._slots(template.assistant, content)

    def _answer(self, message: Message) -> str:
        """The text of an answer, its calls included."""
        if not message.tool_calls:
            return message.content or ""
        if not self._template.has_tools:
            _refuse(f"the template {self._template.name} has no tool calls; use qwen")
        calls = [
            {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            for call in message.tool_calls
        ]
        texts = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
        return "\n".join([message.content, *texts] if message.content else texts)

    def _functions(self, tools: Sequence[dict[str, Any]]) -> str:
        if not tools:
            return ""
        if not self._template.has_tools:
            _refuse(f"the template {self._template.name} has no functions; use qwen")
        listed = "".join(f"\n{json.dumps(tool, ensure_ascii=False)}" for tool in tools)
        return f"\n\n{TOOLS_BEFORE}{listed}{TOOLS_BEHIND}"

    def _tool_slots(self) -> Slots:
        if self._template.tool is None:
            _refuse(f"the template {self._template.name} has no turns of tools; use qwen")
        return self._template.tool

    def _slots(self, slots: Slots, content: str) -> tuple[SpannedText, ...]:
        """Slots filled in, each a text to encode; empty ones and tokens that the model lacks left out."""
        return tuple(text for slot in slots if (text := self._filled(slot, content)).text)

    def _filled(self, slot: str | Named, content: str) -> SpannedText:
        if isinstance(slot, Named):
            return SpannedText(self._tokenizer.named_tokens.get(slot.value, ""))
        before, found, behind = slot.partition(CONTENT)
        if not found:
            return SpannedText(slot)
        literals = self._tokenizer.special_spans(content, len(before))
        return SpannedText(before + content + behind, (), literals)

    def _eos(self) -> tuple[SpannedText, ...]:
        """What closes a row by a template whose answers have no end of their own."""
        return self._slots((Named.EOS,), "") if self._template.ends_with_eos else ()


def _merged(slots: Slots, header: Slots) -> Slots:
    """Slots with the header of an answer behind them; strings that touch are one slot."""
    if header and isinstance(slots[-1], str) and isinstance(header[0], str):
        return (*slots[:-1], slots[-1] + header[0], *header[1:])
    return slots + header


def _alternating(messages: Sequence[Message]) -> Iterator[tuple[list[Message], Message]]:
    """Prompts with their answers; the answers of several tools in a row are one prompt."""
    prompt: list[Message] = []
    for message in messages:
        if message.role == "assistant" and prompt:
            yield prompt, message
            prompt = []
        elif message.role == "assistant" or (prompt and not prompt[-1].role == message.role == "tool"):
            _refuse("prompts and answers have to alternate in this style; leave out the turn that does not")
        else:
            prompt.append(message)
    if prompt:
        _refuse("the last turn has no answer, which this style wants; leave it out")


def _joined(slots: Sequence[SpannedText], ids: Iterator[list[int]]) -> list[int]:
    return [token for _ in slots for token in next(ids)]


def _refuse(text: str) -> NoReturn:
    raise DatasetError(Issue("template.llamafactory", text))
