"""Tools, calls of them and their arguments, brought into the one form that chat templates take.

Arguments and tools may come as they are or as their JSON text, as exporters differ. What is neither is an
error in `Findings`.
"""

from typing import Any

from luthier.datasets.examples import Message
from luthier.datasets.findings import Findings, parsed_if_string
from luthier.datasets.rows import type_name

MAX_CALLS = 512


def read_tool_calls(value: Any, loc: str, found: Findings) -> tuple[dict[str, Any], ...]:
    """The `tool_calls` of a turn, each with its arguments as an object."""
    if value is None:
        return ()
    if not isinstance(value, list):
        found.error("chat.tool_calls_type", loc, f"is {type_name(value)}; it is a list")
        return ()
    if _are_too_many(value, loc, found):
        return ()
    return tuple(
        call
        for index, item in enumerate(value)
        if (call := _tool_call(item, f"{loc}[{index}]", found)) is not None
    )


def _are_too_many(calls: list[Any], loc: str, found: Findings) -> bool:
    if len(calls) > MAX_CALLS:
        found.error("chat.too_many_tool_calls", loc, f"has {len(calls)} calls, over the limit of {MAX_CALLS}")
    return len(calls) > MAX_CALLS


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
    arguments = parsed_if_string(value)
    if isinstance(arguments, dict):
        return arguments
    found.error("chat.tool_args_json", loc, "is not a JSON object, nor a string that holds one")
    return {}


def read_tools(value: Any, found: Findings) -> tuple[dict[str, Any], ...]:
    """The schemas of a row's functions: a list, or a string that holds one as JSON."""
    value = parsed_if_string(value)
    if value in (None, ""):
        return ()
    if isinstance(value, list) and all(isinstance(tool, dict) for tool in value):
        return tuple(value)
    found.error("chat.tools_type", "tools", "is not a list of function schemas")
    return ()


def read_function_call(text: str, loc: str, found: Findings) -> Message:
    """ShareGPT writes a call, or a list of them, as JSON with `name` and `arguments`."""
    value = parsed_if_string(text)
    value = value if isinstance(value, list) else [value]
    calls: list[dict[str, Any]] = []
    if _are_too_many(value, loc, found):
        return Message("assistant", None)
    for call in value:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            found.error("sharegpt.function_call", loc, 'is not {"name": "...", "arguments": {...}}')
            continue
        function = {"name": call["name"], "arguments": _arguments(call.get("arguments"), loc, found)}
        calls.append({"type": "function", "function": function})
    return Message("assistant", None, tuple(calls))
