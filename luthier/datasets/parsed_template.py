"""A model's own chat template taken apart into slots, as LLaMA-Factory does for a job without `template`.

`parsed_template` runs the template on conversations of placeholders and cuts what comes out; where the cuts
make no sense, it refuses. What it finds writes every turn alike, which the template itself need not do:
`differences` says where the two part. Source: LLaMA-Factory, data/template.py, as of August 2026.
"""

from collections.abc import Sequence
from datetime import datetime

from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.named_templates import CONTENT, EMPTY_THOUGHT, NamedTemplate
from luthier.datasets.templates import ChatTemplate
from luthier.datasets.tokenizer import ModelTokenizer

# A template may look at what it is given, so the placeholder is that system's.
_PLACEHOLDER = "{{content}}"
_TAGS = ("<think>", "</think>")
_NAME = "the model's own"

# A role and its content.
Turn = tuple[str, str]


def parsed_template(tokenizer: ModelTokenizer) -> NamedTemplate:
    """The slots of the chat template that a model has.

    Raises:
        DatasetError: `template.unreadable`: it cannot be taken apart.
        JobFailure: `model_load_failed`: it is broken.
    """
    own = _Own(tokenizer)
    system = own.text(("system", _PLACEHOLDER))
    without = own.text(("system", ""), ("user", _PLACEHOLDER), asks=True)
    user = own.text(("user", _PLACEHOLDER), asks=True)
    whole = own.text(("user", _PLACEHOLDER), ("assistant", _PLACEHOLDER))
    answer = _behind(user, whole, "an answer does not follow what stands before one")
    default_system = ""
    if len(user) > len(without):
        default_system = _left_over(without, user)
        told = system.replace(_PLACEHOLDER, default_system, 1)
        user = _behind(told, user, "its default system message cannot be told from the turn behind it")
    slots = [_slot(text, role) for text, role in ((user, "user"), (system, "system"))]
    return NamedTemplate(
        name=_NAME,
        user=(slots[0],),
        system=(slots[1],),
        tool=(slots[0],),
        assistant=(_slot(_without_tags(answer), "assistant"),),
        prefix=(tokenizer.empty_text,) if tokenizer.empty_text else (),
        default_system=default_system,
        is_reasoning=_TAGS[0] in answer,
    )


def differences(parsed: NamedTemplate, tokenizer: ModelTokenizer) -> tuple[str, ...]:
    """A sentence where the slots write a conversation otherwise than the template itself; else none.

    Of a reasoning template one exchange is compared: that system puts thoughts into earlier answers, too.
    """
    own = _Own(tokenizer)
    exchanges = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    turns = exchanges[:2] if parsed.is_reasoning else exchanges
    if all(_written(parsed, each) == own.text(*each) for each in (turns, [("system", "s"), *turns])):
        return ()
    text = (
        "the model's own chat template, taken apart as LLaMA-Factory does, does not write conversations as "
        "the template itself does, so the model will not see in use what it was trained on: name a template"
    )
    return (text,)


class _Own:
    """Runs a model's template; what the tokenizer puts before every text is left out."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        if tokenizer.has_many_templates:
            raise _unreadable("it is one of several, of which that system reads none")
        self._prefix = tokenizer.empty_text
        self._template = ChatTemplate(tokenizer.chat_template or "", tokenizer.named_tokens, datetime.now)

    def text(self, *turns: Turn, asks: bool = False) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            text = self._template.render(messages, add_generation_prompt=asks)
        except DatasetError as error:
            roles = " and ".join(role for role, _ in turns)
            raise _unreadable(f"it refuses a conversation of {roles}") from error
        return _behind(self._prefix, text, f"it does not begin with {self._prefix!r}, as texts do")


def _written(parsed: NamedTemplate, turns: Sequence[Turn]) -> str:
    slots = {"user": parsed.user, "assistant": parsed.assistant, "system": parsed.system}
    if parsed.default_system and turns[0][0] != "system":
        turns = [("system", parsed.default_system), *turns]
    thoughts = {"assistant": EMPTY_THOUGHT} if parsed.is_reasoning else {}
    return "".join(
        thoughts.get(role, "") + str(slots[role][0]).replace(CONTENT, content) for role, content in turns
    )


def _behind(start: str, text: str, otherwise: str) -> str:
    if not text.startswith(start):
        raise _unreadable(otherwise)
    return text[len(start) :]


def _left_over(short: str, long: str) -> str:
    """The characters of `long` that are passed over while `short` is looked for in it, one by one."""
    found, place = [], 0
    for letter in long:
        if place == len(short):
            break
        if letter == short[place]:
            place += 1
        else:
            found.append(letter)
    return "".join(found)


def _without_tags(answer: str) -> str:
    for tag in _TAGS:
        answer = answer.replace(tag, "")
    return answer.lstrip("\n")


def _slot(text: str, role: str) -> str:
    before, found, behind = text.partition(_PLACEHOLDER)
    if not found or CONTENT in before:
        raise _unreadable(f"the content of a turn of {role} does not stand in it as it was given")
    return before + CONTENT + behind


def _unreadable(why: str) -> DatasetError:
    text = (
        "without `template`, LLaMA-Factory takes the model's chat template apart, and this one it cannot: "
        f"{why}. Set dataset.template to the name of one, such as chatml or llama3"
    )
    return DatasetError(Issue("template.unreadable", text, "dataset.template"))
