"""Rows read through a dataset_info entry, by LLaMA-Factory's rules for alpaca, sharegpt and openai.

What that system drops without a word (a turn out of order, an unknown role, an odd number of turns) is an
error here; what it accepts, such as a blank answer, is accepted. Source: LLaMA-Factory,
src/llamafactory/data/converter.py; the note on thinking that it adds to openai rows is left out.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from luthier.datasets.examples import Example, Format, Message
from luthier.datasets.findings import Findings, key_list, shown, string_field
from luthier.datasets.formats import read_history, read_items
from luthier.datasets.tool_calls import read_function_call, read_tool_calls, read_tools
from luthier.datasets.turn_rules import Turns
from luthier.spec.entry import DatasetEntry

# Stands between the answers of tools that were called together, which become one turn.
TOOL_ANSWER_JOINT = "\n</tool_response>\n<tool_response>\n"

_Kind = Literal["user", "assistant", "observation", "function", "system"]
_FORMATS = {"alpaca": Format.ALPACA, "sharegpt": Format.SHAREGPT, "openai": Format.CHAT}


def entry_columns(entry: DatasetEntry) -> frozenset[str]:
    """The columns that an entry reads."""
    columns = entry.columns
    alpaca = (columns.prompt, columns.query, columns.response, columns.history)
    names = alpaca if entry.formatting == "alpaca" else (columns.messages,)
    return frozenset(name for name in (*names, columns.system, columns.tools) if name is not None)


def read_by_entry(row: Mapping[str, Any], entry: DatasetEntry, found: Findings) -> Example | None:
    """The example of a row; None, with errors in `found`, when there is something wrong with it."""
    _check_columns(row, entry, found)
    if found.errors:
        return None
    if entry.formatting == "alpaca" and entry.columns.response is None:
        return _plain_text(row, entry, found)
    system = _text(row, entry.columns.system, found)
    turns = _alpaca(row, entry, found) if entry.formatting == "alpaca" else _talk(row, entry, found)
    if turns and turns[0][1].role == "system":
        # A system turn of the conversation goes before the system column.
        system = turns.pop(0)[1].content or ""
    if system:
        turns.insert(0, (entry.columns.system or "system", Message("system", system)))
    tools = read_tools(row.get(entry.columns.tools), found) if entry.columns.tools else ()
    if found.errors:
        return None
    return Example(_FORMATS[entry.formatting], tuple(message for _, message in turns), tools)


def _check_columns(row: Mapping[str, Any], entry: DatasetEntry, found: Findings) -> None:
    """A column that one can do without may be missing; LLaMA-Factory takes that where other rows have it."""
    columns = entry.columns
    needed = {columns.prompt or columns.query, columns.response}
    needed = needed if entry.formatting == "alpaca" else {columns.messages}
    for name in sorted(entry_columns(entry) - row.keys()):
        text = f"is missing, but the dataset_info entry names it; the row has {key_list(row)}"
        tell = found.error if name in needed else found.warn
        tell("entry.column_missing", name, text)


def _plain_text(row: Mapping[str, Any], entry: DatasetEntry, found: Findings) -> Example | None:
    text = _request(row, entry, found)
    if not found.errors and not text.strip():
        found.error("text.blank", entry.columns.prompt or "", "is blank; write a text, or remove the row")
    return None if found.errors else Example(Format.TEXT, (), text=((text, True),))


def _alpaca(row: Mapping[str, Any], entry: DatasetEntry, found: Findings) -> Turns:
    columns = entry.columns
    turns = read_history(row.get(columns.history), found) if columns.history else []
    request = _request(row, entry, found)
    answer = string_field(row, columns.response or "", "alpaca", found)
    prompt = columns.prompt or columns.query or ""
    return [
        *turns,
        (prompt, Message("user", request)),
        (columns.response or "", Message("assistant", answer)),
    ]


def _request(row: Mapping[str, Any], entry: DatasetEntry, found: Findings) -> str:
    texts = (_text(row, name, found) for name in (entry.columns.prompt, entry.columns.query))
    return "\n".join(text for text in texts if text)


def _text(row: Mapping[str, Any], column: str | None, found: Findings) -> str:
    """The string in a column; empty where there is no such column, or null in it."""
    return string_field(row, column, "entry", found, is_required=False) if column else ""


def _talk(row: Mapping[str, Any], entry: DatasetEntry, found: Findings) -> Turns:
    """The turns of a conversation, a system turn first where it has one."""
    items: _Items = [
        (loc, kind, value)
        for loc, value in read_items(row, entry.columns.messages or "", "sharegpt", found)
        if (kind := _kind(value, loc, entry, found)) is not None
    ]
    if found.errors:
        return []
    start = 1 if items and items[0][1] == "system" else 0
    if entry.formatting == "openai":
        items = [*items[:start], *_joined(items[start:], entry, found)]
    _check_turns([(loc, kind) for loc, kind, _ in items[start:]], found)
    return (
        []
        if found.errors
        else [(loc, _message(kind, value, loc, entry, found)) for loc, kind, value in items]
    )


_Items = list[tuple[str, _Kind, Mapping[str, Any]]]


def _kind(value: Mapping[str, Any], loc: str, entry: DatasetEntry, found: Findings) -> _Kind | None:
    """Who speaks, by the entry's tags."""
    tags = entry.tags
    kinds: dict[str | None, _Kind] = {
        tags.system_tag: "system",
        tags.observation_tag: "observation",
        tags.function_tag: "function",
        tags.assistant_tag: "assistant",
        tags.user_tag: "user",
    }
    role = value.get(tags.role_tag or "")
    kind = kinds.get(role) if isinstance(role, str) else None
    if kind is None:
        known = ", ".join(name for name in reversed(kinds) if name is not None)
        found.error(
            "entry.role_invalid", f"{loc}.{tags.role_tag}", f"is {shown(role)}; the entry's tags are {known}"
        )
    elif kind == "assistant" and entry.formatting == "openai" and value.get("tool_calls"):
        return "function"
    return kind


def _joined(
    items: _Items, entry: DatasetEntry, found: Findings
) -> Iterator[tuple[str, _Kind, Mapping[str, Any]]]:
    """Answers of tools in a row as one; those that no turn follows are left out, as in LLaMA-Factory."""
    key = entry.tags.content_tag or ""
    answers: list[str] = []
    for loc, kind, value in items:
        if kind == "observation":
            answers.append(string_field(value, key, "entry", found, prefix=f"{loc}."))
            continue
        if answers:
            yield loc, "observation", {key: TOOL_ANSWER_JOINT.join(answers)}
            answers = []
        yield loc, kind, value
    if answers:
        found.warn(
            "entry.tool_answer_unused",
            items[-1][0],
            "is a tool's answer that no turn follows; it is left out",
        )


def _check_turns(turns: list[tuple[str, _Kind]], found: Findings) -> None:
    """The user's side and the assistant's take turns, in pairs."""
    sides = (("user", "observation"), ("assistant", "function"))
    for index, (loc, kind) in enumerate(turns):
        if kind not in sides[index % 2]:
            wanted = " or ".join(sides[index % 2])
            text = (
                f"is a turn of kind {kind} where one of {wanted} must stand; LLaMA-Factory would drop the row"
            )
            found.error("entry.alternation", loc, text)
            return
    if len(turns) % 2 or not turns:
        text = f"the row has {len(turns)} turns; they must come in pairs, or LLaMA-Factory drops it"
        found.error("entry.turn_count", "", text)


def _message(
    kind: _Kind, value: Mapping[str, Any], loc: str, entry: DatasetEntry, found: Findings
) -> Message:
    if kind == "function" and entry.formatting == "openai" and value.get("tool_calls"):
        return Message("assistant", None, read_tool_calls(value["tool_calls"], f"{loc}.tool_calls", found))
    key = entry.tags.content_tag or ""
    text = string_field(value, key, "entry", found, prefix=f"{loc}.")
    match kind:
        case "function":
            return read_function_call(text, f"{loc}.{key}", found)
        case "observation":
            return Message("tool", text)
        case "user" | "assistant" | "system":
            return Message(kind, text)
