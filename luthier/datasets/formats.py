"""Rows of four formats become examples, or a list of what is wrong with them.

Chat is OpenAI's `messages`; prompt/completion is two strings; Alpaca is `instruction`, `input`, `output`,
optional `system` and `history`; ShareGPT is `conversations` of `from` and `value`. A row's keys decide, never
the name of its file. Every format ends in the same turns, and the same rules hold for their order.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.datasets.examples import Example, Format, Issue, Message, Role
from luthier.datasets.rows import type_name
from luthier.errors import printable

MAX_MESSAGES = 512

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


@dataclass
class Findings:
    """What is wrong with one row, and what its owner should know; filled while the row is read."""

    errors: list[Issue] = field(default_factory=list)
    warnings: list[Issue] = field(default_factory=list)

    def error(self, code: str, loc: str, text: str) -> None:
        """Note an error; `text` goes on after the place."""
        self.errors.append(Issue(code, f"{loc} {text}" if loc else text, loc))

    def warn(self, code: str, loc: str, text: str) -> None:
        self.warnings.append(Issue(code, f"{loc} {text}" if loc else text, loc))


def detect_format(row: Mapping[str, Any], found: Findings) -> Format | None:
    """The format that a row's keys tell; None, with an error in `found`, when they match none."""
    for format_, keys in _KEYS.items():
        if all(row.get(key) is not None for key in keys):
            return format_
    for format_, keys in _KEYS.items():
        if any(key in row for key in keys):
            return format_
    known = [key for keys in _KEYS.values() for key in keys]
    pairs = (
        (key, difflib.get_close_matches(key[:40].lower(), known, n=1, cutoff=0.75)) for key in list(row)[:64]
    )
    hints = [f"'{printable(key, 40)}' -> '{matches[0]}'?" for key, matches in pairs if matches]
    nearest = f" Nearest: {hints[0]}" if hints else ""
    shapes = " or ".join(SHAPES.values())
    found.error("schema.unknown", "", f"the row has {_key_list(row)}; use {shapes}.{nearest}")
    return None


def read_example(row: Mapping[str, Any], format_: Format, found: Findings) -> Example | None:
    """The example of a row; None, with errors in `found`, when there is something wrong with it."""
    match format_:
        case Format.TEXT:
            text = _field(row, "text", "text", found, may_be_blank=False)
            return None if found.errors else Example(format_, (), text=((text, True),))
        case Format.CHAT:
            turns, tools = _chat(row, found), row.get("tools")
        case Format.SHAREGPT:
            turns, tools = _sharegpt(row, found), _parsed_if_string(row.get("tools"))
        case Format.PROMPT_COMPLETION:
            turns, tools = _prompt_completion(row, found), None
        case Format.ALPACA:
            turns, tools = _alpaca(row, found), None
    schemas = _tools(tools, found)
    if not found.errors:
        _check_order(turns, found)
        _check_assistant(turns, found)
    if found.errors:
        return None
    return Example(format_, tuple(message for _, message in turns), schemas)


# A turn is a message and its place in the row.
_Turns = list[tuple[str, Message]]


def _chat(row: Mapping[str, Any], found: Findings) -> _Turns:
    return [
        (loc, message)
        for loc, value in _items(row, "messages", "chat", found)
        if (message := _chat_message(value, loc, found)) is not None
    ]


def _items(
    row: Mapping[str, Any], key: str, family: str, found: Findings
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of the list under `key`, each with its place."""
    values = row.get(key)
    if not isinstance(values, list):
        found.error(f"{family}.{key}_type", key, f"is {type_name(values)}; it is a list of objects")
        return
    if not values:
        found.error(f"{family}.{key}_empty", key, "is empty; put at least a user and an assistant turn")
    if len(values) > MAX_MESSAGES:
        text = f"has {len(values)} turns, over the limit of {MAX_MESSAGES}; split the conversation"
        found.error(f"{family}.too_many_{key}", key, text)
        return
    for index, value in enumerate(values):
        loc = f"{key}[{index}]"
        if isinstance(value, dict):
            yield loc, value
        else:
            found.error(f"{family}.message_type", loc, f"is {type_name(value)}; each turn is an object")


def _chat_message(value: Mapping[str, Any], loc: str, found: Findings) -> Message | None:
    role = _role(value, loc, _CHAT_ROLE, found)
    calls = _tool_calls(value.get("tool_calls"), f"{loc}.tool_calls", found)
    content = _content(value.get("content"), loc, has_calls=bool(calls), found=found)
    weight = value.get("weight")
    if weight not in (None, 0, 1) or isinstance(weight, bool):
        found.error("chat.weight", f"{loc}.weight", f"is {_shown(weight)}; use 0 or 1")
    if calls and role != "assistant":
        found.error(
            "chat.tool_calls_role", f"{loc}.tool_calls", "stands on a turn that is not the assistant's"
        )
    if unread := [key for key in value.keys() - _MESSAGE_KEYS if value[key] is not None]:
        found.warn("chat.ignored_keys", loc, f"has keys that are ignored: {_key_names(sorted(unread))}")
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
    what = f"is {_shown(name)}" if field_.key in value else "is missing"
    hint = f" (did you mean '{meant}'?)" if meant else ""
    text = f"{what}; use {', '.join(words)} or {last}{hint}"
    found.error(f"{field_.family}.role_invalid", f"{loc}.{field_.key}", text)
    return None


def _meant(name: str, field_: _RoleField) -> str | None:
    plain = name.strip().lower()
    near = difflib.get_close_matches(plain[:40], field_.roles, n=1)
    return field_.synonyms.get(plain) or (near[0] if near else None)


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
    text = f'is {_shown(kind)}; only {{"type": "text", "text": "..."}} parts can be trained on'
    found.error("chat.content_type", loc, text)
    return ""


def _string(value: Any, loc: str, found: Findings) -> str | None:
    if value is not None and not isinstance(value, str):
        found.error("chat.field_type", loc, f"is {type_name(value)}; write a string")
        return None
    return value


def _tool_calls(value: Any, loc: str, found: Findings) -> tuple[dict[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        found.error("chat.tool_calls_type", loc, f"is {type_name(value)}; it is a list")
        return ()
    return tuple(
        call
        for index, item in enumerate(value)
        if (call := _tool_call(item, f"{loc}[{index}]", found)) is not None
    )


def _tool_call(value: Any, loc: str, found: Findings) -> dict[str, Any] | None:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        text = 'is not {"type": "function", "function": {"name": "...", "arguments": "..."}}'
        found.error("chat.tool_calls_type", loc, text)
        return None
    arguments = _arguments(function.get("arguments"), f"{loc}.function.arguments", found)
    return {**value, "type": "function", "function": {**function, "arguments": arguments}}


def _arguments(value: Any, loc: str, found: Findings) -> dict[str, Any]:
    """Arguments as an object: OpenAI writes them as a string of JSON, chat templates print objects."""
    arguments = _parsed_if_string(value)
    if isinstance(arguments, dict):
        return arguments
    found.error("chat.tool_args_json", loc, "is not a JSON object, nor a string that holds one")
    return {}


def _parsed_if_string(value: Any) -> Any:
    """The JSON that a string holds; anything else, and what is not JSON, as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _tools(value: Any, found: Findings) -> tuple[dict[str, Any], ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, list) and all(isinstance(tool, dict) for tool in value):
        return tuple(value)
    found.error("chat.tools_type", "tools", "is not a list of function schemas")
    return ()


def _sharegpt(row: Mapping[str, Any], found: Findings) -> _Turns:
    turns: _Turns = []
    system = _field(row, "system", "sharegpt", found, is_required=False)
    if system.strip():
        turns.append(("system", Message("system", system)))
    for loc, value in _items(row, "conversations", "sharegpt", found):
        if "from" not in value and "role" in value:
            text = (
                "has role and content; turns of conversations have from and value (or rename it to messages)"
            )
            found.error("sharegpt.role_invalid", loc, text)
            continue
        role = _role(value, loc, _SHAREGPT_ROLE, found)
        text = _field(value, "value", "sharegpt", found, prefix=f"{loc}.")
        if role is not None and value["from"] == "function_call":
            turns.append((loc, _function_call(text, f"{loc}.value", found)))
        elif role is not None:
            turns.append((loc, Message(role, text)))
    return turns


def _function_call(text: str, loc: str, found: Findings) -> Message:
    """ShareGPT writes a call, or a list of them, as JSON with `name` and `arguments`."""
    value = _parsed_if_string(text)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            found.error("sharegpt.function_call", loc, 'is not {"name": "...", "arguments": {...}}')
            continue
        function = {"name": call["name"], "arguments": _arguments(call.get("arguments"), loc, found)}
        calls.append({"type": "function", "function": function})
    return Message("assistant", None, tuple(calls))


def _prompt_completion(row: Mapping[str, Any], found: Findings) -> _Turns:
    prompt = _field(row, "prompt", "pc", found)
    completion = _field(row, "completion", "pc", found, may_be_blank=False)
    return [("prompt", Message("user", prompt)), ("completion", Message("assistant", completion))]


def _alpaca(row: Mapping[str, Any], found: Findings) -> _Turns:
    turns: _Turns = []
    system = _field(row, "system", "alpaca", found, is_required=False)
    if system.strip():
        turns.append(("system", Message("system", system)))
    turns += _history(row.get("history"), found)
    extra = _field(row, "input", "alpaca", found, is_required=False)
    instruction = _field(row, "instruction", "alpaca", found, may_be_blank=bool(extra.strip()))
    output = _field(row, "output", "alpaca", found, may_be_blank=False)
    request = "\n".join(text for text in (instruction, extra) if text.strip())
    return [*turns, ("instruction", Message("user", request)), ("output", Message("assistant", output))]


def _history(value: Any, found: Findings) -> _Turns:
    if value is None:
        return []
    pairs = value if isinstance(value, list) else [value]
    turns: _Turns = []
    for index, pair in enumerate(pairs):
        loc = f"history[{index}]"
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
            turns += [(f"{loc}[0]", Message("user", pair[0])), (f"{loc}[1]", Message("assistant", pair[1]))]
        else:
            found.error("alpaca.history_type", loc, "is not a pair of strings: [instruction, answer]")
    return turns


def _field(
    row: Mapping[str, Any],
    key: str,
    family: str,
    found: Findings,
    *,
    prefix: str = "",
    is_required: bool = True,
    may_be_blank: bool = True,
) -> str:
    """The string under `key`; empty, with an error in `found`, when there is none."""
    loc, value = prefix + key, row.get(key)
    if value is None and not is_required:
        return ""
    if key not in row:
        found.error(f"{family}.field_missing", loc, f"is missing; the row has {_key_list(row)}")
    elif not isinstance(value, str):
        found.error(f"{family}.field_type", loc, f"is {type_name(value)}; write a string")
    elif not may_be_blank and not value.strip():
        found.error(f"{family}.field_blank", loc, "is blank; write a text, or remove the row")
    else:
        return value
    return ""


def _check_order(turns: Sequence[tuple[str, Message]], found: Findings) -> None:
    """Report turns that cannot follow each other."""
    before: Role | None = None
    for index, (loc, message) in enumerate(turns):
        match message.role:
            case "system" if index > 0:
                found.error("chat.system_position", loc, "is a system turn; it may only be the first, once")
            case "user" if before == "user":
                text = (
                    "is a second user turn in a row; join the two, or put the assistant's answer between them"
                )
                found.error("chat.alternation", loc, text)
            case "assistant" if before in (None, "system"):
                found.error(
                    "chat.alternation",
                    loc,
                    "is an assistant turn before any user turn; put a user turn first",
                )
            case "tool" if before not in ("assistant", "tool"):
                text = "is a tool's answer that follows no assistant turn; put the call before it"
                found.error("chat.tool_call_unmatched", loc, text)
        before = message.role


def _check_assistant(turns: Sequence[tuple[str, Message]], found: Findings) -> None:
    """Report what leaves nothing, or something odd, to learn from."""
    answers = [(loc, message) for loc, message in turns if message.role == "assistant"]
    if not answers:
        found.error(
            "chat.no_assistant", "", "the row has no assistant turn, so there is nothing to learn from"
        )
    elif not any(message.is_trained for _, message in answers):
        found.warn(
            "chat.no_weight", "", "every assistant turn has weight 0, so nothing is learnt from the row"
        )
    if answers and turns[-1][1].role != "assistant":
        found.warn(
            "chat.ends_without_answer", turns[-1][0], "comes after the last assistant turn and adds nothing"
        )
    for loc, message in answers:
        if not message.tool_calls and not (message.content or "").strip():
            found.warn(
                "chat.content_blank",
                loc,
                "is an assistant turn without text: the model learns to say nothing",
            )


def _shown(value: object) -> str:
    return f"'{printable(value, 40)}'" if isinstance(value, str) else type_name(value)


def _key_list(row: Mapping[str, Any]) -> str:
    return f"the keys {_key_names(list(row))}" if row else "no keys"


def _key_names(keys: Sequence[str]) -> str:
    names = ", ".join(printable(key, 24) for key in keys[:10])
    return names + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")
