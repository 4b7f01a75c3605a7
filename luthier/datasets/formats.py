"""Rows of five formats become examples, or a list of what is wrong with them.

Chat is OpenAI's `messages`; prompt/completion is two strings; Alpaca is `instruction`, `input`, `output`,
optional `system` and `history`; ShareGPT is `conversations` of `from` and `value`; text is `text`. A row's
keys decide, never the name of its file. All but text end in the same turns, and the same rules hold for their
order. Lists may be written as strings of JSON, since cells of a CSV file cannot hold them otherwise.
"""

import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.datasets.examples import Example, Format, Message, Role
from luthier.datasets.findings import Findings, key_list, key_names, parsed_if_string, shown, string_field
from luthier.datasets.rows import type_name
from luthier.datasets.tool_calls import read_function_call, read_tool_calls, read_tools
from luthier.datasets.turn_rules import Turns, check_assistant, check_order, check_tool_answers
from luthier.errors import printable

MAX_MESSAGES = 512
# Each becomes two turns, and two more follow them.
MAX_HISTORY_PAIRS = MAX_MESSAGES // 2 - 1

SHAPES = {
    Format.CHAT: '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}',
    Format.PROMPT_COMPLETION: '{"prompt": "...", "completion": "..."}',
    Format.ALPACA: '{"instruction": "...", "input": "...", "output": "..."}',
    Format.SHAREGPT: '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}',
    Format.TEXT: '{"text": "..."}',
}
_KEYS = {
    Format.CHAT: ("messages",),
    Format.SHAREGPT: ("conversations",),
    Format.PROMPT_COMPLETION: ("prompt", "completion"),
    Format.ALPACA: ("instruction", "output"),
    Format.TEXT: ("text",),
}
# Every key that a format reads; of tables no other columns are touched.
KNOWN_KEYS = frozenset(
    {key for keys in _KEYS.values() for key in keys} | {"input", "system", "history", "tools"}
)
# Formats of preference training, which is not done here, by keys that give them away.
_VERDICTS = frozenset({"yes", "no", "true", "false"})
_REFUSED_KEYS = {
    ("chosen", "rejected"): ("pref.unsupported", "preference pairs (DPO)"),
    ("prompt", "completion", "label"): ("kto.unsupported", "labelled answers (KTO)"),
    ("messages", "label"): ("kto.unsupported", "labelled answers (KTO)"),
    ("conversations", "label"): ("kto.unsupported", "labelled answers (KTO)"),
    ("kto_tag",): ("kto.unsupported", "labelled answers (KTO)"),
}
TELLING_KEYS = KNOWN_KEYS | {key for keys in _REFUSED_KEYS for key in keys}


@dataclass(frozen=True)
class _RoleField:
    """Where a format writes who speaks, which words it has for that, and which people write instead."""

    family: str
    key: str
    roles: Mapping[str, Role]
    synonyms: Mapping[str, str]


_CHAT_ROLE = _RoleField(
    family="chat",
    key="role",
    # `developer` is OpenAI's newer name of the system role; chat templates know the older one.
    roles={
        "system": "system",
        "developer": "system",
        "user": "user",
        "assistant": "assistant",
        "tool": "tool",
    },
    synonyms={
        "bot": "assistant",
        "gpt": "assistant",
        "ai": "assistant",
        "model": "assistant",
        "human": "user",
        "function": "tool",
        "observation": "tool",
    },
)
_SHAREGPT_ROLE = _RoleField(
    family="sharegpt",
    key="from",
    roles={
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "system": "system",
        "tool": "tool",
        "observation": "tool",
        "function_call": "assistant",
    },
    synonyms={"bot": "gpt", "ai": "gpt", "model": "gpt", "chatgpt": "gpt", "function": "function_call"},
)
_MESSAGE_KEYS = {"role", "content", "name", "weight", "tool_calls", "tool_call_id"}


def detect_format(row: Mapping[str, Any], found: Findings) -> Format | None:
    """The format that a row's keys tell; None, with an error in `found`, when they match none."""
    if any(key in row for key in ("chosen", "label", "kto_tag")) and _is_refused(row, found):
        return None
    for format_, keys in _KEYS.items():
        if all(row.get(key) is not None for key in keys):
            return format_
    for format_, keys in _KEYS.items():
        if any(key in row for key in keys):
            return format_
    known = tuple(key for keys in _KEYS.values() for key in keys)
    pairs = ((key, _nearest(key[:40].lower(), known, 0.75)) for key in list(row)[:64])
    hint = next((f"'{printable(key, 40)}' -> '{near}'?" for key, near in pairs if near), None)
    nearest = f" Nearest: {hint}" if hint else ""
    shapes = " or ".join(SHAPES.values())
    found.error("schema.unknown", "", f"the row has {key_list(row)}; use {shapes}.{nearest}")
    return None


# Rows of one file mostly share their mistakes, and a comparison takes longer than all else about such a row.
@functools.lru_cache(maxsize=1024)
def _nearest(word: str, known: tuple[str, ...], cutoff: float = 0.6) -> str | None:
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=cutoff)), None)


def _is_refused(row: Mapping[str, Any], found: Findings) -> bool:
    for keys, (code, name) in _REFUSED_KEYS.items():
        # A completion with a label that is no verdict, such as a topic, is an ordinary row.
        if all(key in row for key in keys) and ("label" not in keys or _is_verdict(row["label"])):
            text = f"belongs to {name}, which Luthier does not train on; use {SHAPES[Format.CHAT]}"
            found.error(code, keys[-1], text)
            return True
    return False


def _is_verdict(label: Any) -> bool:
    return isinstance(label, bool) or (isinstance(label, str) and label.lower() in _VERDICTS)


def read_example(row: Mapping[str, Any], format_: Format, found: Findings) -> Example | None:
    """The example of a row; None, with errors in `found`, when there is something wrong with it."""
    match format_:
        case Format.TEXT:
            return _text(row, found)
        case Format.CHAT:
            turns, tools = _chat(row, found), row.get("tools")
        case Format.SHAREGPT:
            turns, tools = _sharegpt(row, found), row.get("tools")
        case Format.PROMPT_COMPLETION:
            turns, tools = _prompt_completion(row, found), None
        case Format.ALPACA:
            turns, tools = _alpaca(row, found), None
    schemas = read_tools(tools, found)
    if not found.errors:
        check_order(turns, found)
        check_assistant(turns, found)
    if not found.errors and format_ is Format.CHAT:
        check_tool_answers(turns, found)
    if found.errors:
        return None
    return Example(format_, tuple(message for _, message in turns), schemas)


def _text(row: Mapping[str, Any], found: Findings) -> Example | None:
    value = row.get("text")
    if not isinstance(value, str):
        found.error("text.type", "text", f"is {type_name(value)}; write a string")
    elif not value.strip():
        found.error("text.blank", "text", "is blank; write a text, or remove the row")
    return None if found.errors else Example(Format.TEXT, (), text=((str(value), True),))


def _chat(row: Mapping[str, Any], found: Findings) -> Turns:
    return [
        (loc, message)
        for loc, value in read_items(row, "messages", "chat", found)
        if (message := _chat_message(value, loc, found)) is not None
    ]


def read_items(
    row: Mapping[str, Any], key: str, family: str, found: Findings
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of the list of turns under `key`, each with its place."""
    name = "messages" if family == "chat" else "conversations"
    values = parsed_if_string(row.get(key))
    if not isinstance(values, list):
        found.error(f"{family}.{name}_type", key, f"is {type_name(values)}; it is a list of objects")
        return
    if not values:
        found.error(f"{family}.{name}_empty", key, "is empty; put at least a user and an assistant turn")
    if len(values) > MAX_MESSAGES:
        text = f"has {len(values)} turns, over the limit of {MAX_MESSAGES}; split the conversation"
        found.error(f"{family}.too_many_{name}", key, text)
        return
    for index, value in enumerate(values):
        loc = f"{key}[{index}]"
        if isinstance(value, dict):
            yield loc, value
        else:
            found.error(f"{family}.message_type", loc, f"is {type_name(value)}; each turn is an object")


def _chat_message(value: Mapping[str, Any], loc: str, found: Findings) -> Message | None:
    role = _role(value, loc, _CHAT_ROLE, found)
    calls = read_tool_calls(value.get("tool_calls"), f"{loc}.tool_calls", found)
    content = _content(value.get("content"), loc, has_calls=bool(calls), found=found)
    weight = value.get("weight")
    if weight not in (None, 0, 1) or isinstance(weight, bool):
        found.error("chat.weight", f"{loc}.weight", f"is {shown(weight)}; use 0 or 1")
    if calls and role != "assistant":
        found.error(
            "chat.tool_calls_role", f"{loc}.tool_calls", "stands on a turn that is not the assistant's"
        )
    if unread := [key for key in value.keys() - _MESSAGE_KEYS if value[key] is not None]:
        found.warn("chat.ignored_keys", loc, f"has keys that are ignored: {key_names(sorted(unread))}")
    if role is None:
        return None
    call_id, name = (_string(value.get(key), f"{loc}.{key}", found) for key in ("tool_call_id", "name"))
    return Message(role, content, calls, call_id, name, is_trained=weight != 0)


def _role(value: Mapping[str, Any], loc: str, field_: _RoleField, found: Findings) -> Role | None:
    name = value.get(field_.key)
    if isinstance(name, str) and name in field_.roles:
        return field_.roles[name]
    *words, last = field_.roles
    meant = _meant(name, field_) if isinstance(name, str) else None
    what = f"is {shown(name)}" if field_.key in value else "is missing"
    hint = f" (did you mean '{meant}'?)" if meant else ""
    text = f"{what}; use {', '.join(words)} or {last}{hint}"
    found.error(f"{field_.family}.role_invalid", f"{loc}.{field_.key}", text)
    return None


def _meant(name: str, field_: _RoleField) -> str | None:
    plain = name.strip().lower()
    return field_.synonyms.get(plain) or _nearest(plain[:40], tuple(field_.roles))


def _content(value: Any, loc: str, *, has_calls: bool, found: Findings) -> str | None:
    """The text of a message: a string, or text parts put together."""
    loc = f"{loc}.content"
    if value is None and has_calls:
        return None
    if value is None:
        found.error(
            "chat.content_null", loc, "is missing or null; write a string (only tool calls may go without)"
        )
    elif isinstance(value, str):
        return value
    elif isinstance(value, list):
        return "".join(_part(part, f"{loc}[{index}]", found) for index, part in enumerate(value))
    else:
        found.error(
            "chat.content_type", loc, f"is {type_name(value)}; write a string or a list of text parts"
        )
    return None


def _part(value: Any, loc: str, found: Findings) -> str:
    if isinstance(value, dict) and value.get("type") == "text" and isinstance(value.get("text"), str):
        return str(value["text"])
    kind = value.get("type") if isinstance(value, dict) else value
    text = f'is {shown(kind)}; only {{"type": "text", "text": "..."}} parts can be trained on'
    found.error("chat.content_type", loc, text)
    return ""


def _string(value: Any, loc: str, found: Findings) -> str | None:
    if value is not None and not isinstance(value, str):
        found.error("chat.field_type", loc, f"is {type_name(value)}; write a string")
        return None
    return value


def _sharegpt(row: Mapping[str, Any], found: Findings) -> Turns:
    turns: Turns = []
    system = string_field(row, "system", "sharegpt", found, is_required=False)
    if system.strip():
        turns.append(("system", Message("system", system)))
    for loc, value in read_items(row, "conversations", "sharegpt", found):
        if "from" not in value and "role" in value:
            text = (
                "has role and content; turns of conversations have from and value (or rename it to messages)"
            )
            found.error("sharegpt.role_invalid", loc, text)
            continue
        role = _role(value, loc, _SHAREGPT_ROLE, found)
        text = string_field(value, "value", "sharegpt", found, prefix=f"{loc}.")
        if role is not None and value["from"] == "function_call":
            turns.append((loc, read_function_call(text, f"{loc}.value", found)))
        elif role is not None:
            turns.append((loc, Message(role, text)))
    return turns


def _prompt_completion(row: Mapping[str, Any], found: Findings) -> Turns:
    prompt = string_field(row, "prompt", "pc", found)
    completion = string_field(row, "completion", "pc", found, may_be_blank=False)
    return [("prompt", Message("user", prompt)), ("completion", Message("assistant", completion))]


def _alpaca(row: Mapping[str, Any], found: Findings) -> Turns:
    turns: Turns = []
    system = string_field(row, "system", "alpaca", found, is_required=False)
    if system.strip():
        turns.append(("system", Message("system", system)))
    turns += read_history(row.get("history"), found)
    extra = string_field(row, "input", "alpaca", found, is_required=False)
    instruction = string_field(row, "instruction", "alpaca", found, may_be_blank=bool(extra.strip()))
    output = string_field(row, "output", "alpaca", found, may_be_blank=False)
    request = "\n".join(text for text in (instruction, extra) if text.strip())
    return [*turns, ("instruction", Message("user", request)), ("output", Message("assistant", output))]


def read_history(value: Any, found: Findings) -> Turns:
    """Earlier questions and answers: a list of pairs of strings."""
    value = parsed_if_string(value)
    if value in (None, ""):
        return []
    pairs = value if isinstance(value, list) else [value]
    if len(pairs) > MAX_HISTORY_PAIRS:
        text = f"has {len(pairs)} pairs, over the limit of {MAX_HISTORY_PAIRS}; split the conversation"
        found.error("alpaca.too_many_turns", "history", text)
        return []
    turns: Turns = []
    for index, pair in enumerate(pairs):
        loc = f"history[{index}]"
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
            turns += [(f"{loc}[0]", Message("user", pair[0])), (f"{loc}[1]", Message("assistant", pair[1]))]
        else:
            found.error("alpaca.history_type", loc, "is not a pair of strings: [instruction, answer]")
    return turns
