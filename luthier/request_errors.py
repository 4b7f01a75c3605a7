"""What is wrong with a request, in words: pydantic's errors become one error of the catalogue.

The message names the field and what would do, as OpenAI's API words it; all errors stand in `details`.
Numbers are repeated, texts never: one that stands in the wrong place may be a secret.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError

from luthier.errors import LuthierError, printable
from luthier.spec import JobRequest, Request, field_path

MAX_DETAILS = 20

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}
_BOUNDS = {
    "gt": "a value greater than",
    "ge": "a value of at least",
    "lt": "a value less than",
    "le": "a value of at most",
}
_AUTO_TAG, _LIST_TAG, _NAME_TAG = "<value>", "<list>", "<name>"
_MAX_VALUE_CHARACTERS, _MAX_NAME_CHARACTERS = 80, 64
_CLOSE = 0.6
# What peft, transformers and LLaMA-Factory call some of the fields.
_OTHER_NAMES = {
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_target": "target_modules",
    "lr": "learning_rate",
    "num_train_epochs": "n_epochs",
    "num_epochs": "n_epochs",
    "per_device_train_batch_size": "batch_size",
    "cutoff_len": "max_seq_length",
    "max_length": "max_seq_length",
    "bf16": "precision",
    "fp16": "precision",
    "load_in_4bit": "quantization",
    "val_size": "validation_split",
}

Body = TypeVar("Body", bound=Request)


def parse_job(body: dict[str, Any]) -> JobRequest:
    """The request for a job; raises as `parse_body`."""
    return parse_body(body, JobRequest)


def parse_body(body: dict[str, Any], model: type[Body]) -> Body:
    """The body of a call, as a model describes it.

    Raises:
        LuthierError: the body is not one; `param` is the first field that is wrong.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _combined(error.errors(include_url=False), model) from error


def error_of_parameters(errors: Sequence[Any]) -> LuthierError:
    """The error for parameters of the path and the query."""
    return _combined([{**item, "loc": item["loc"][1:]} for item in errors], JobRequest)


def _combined(items: Sequence[Mapping[str, Any]], model: type[Request]) -> LuthierError:
    """The first error, with the first ones as details."""
    found = [_described(item, model) for item in items[:MAX_DETAILS]]
    first, others = found[0], len(items) - 1
    more = f" ({others} more in 'details'.)" if others else ""
    details = [{"loc": error.param, "code": error.code, "message": error.message} for error in found]
    return LuthierError(first.message + more, first.code, first.param, details)


def _described(item: Mapping[str, Any], model: type[Request]) -> LuthierError:
    """One of pydantic's errors in our words."""
    kind, loc, context = item["type"], tuple(item["loc"]), item.get("ctx", {})
    path = _path(loc)
    name = f"'{path}'" if path else "the body"
    if kind == "missing":
        return LuthierError(f"Missing required parameter: {name}.", "missing_required_parameter", path)
    if kind == "extra_forbidden":
        return LuthierError(f"Unknown parameter: {name}.{_suggestion(loc, model)}", "unknown_parameter", path)
    if kind in _EXPECTED:
        expected, got = _alternatives(loc) + _EXPECTED[kind], _kind_of(item["input"])
        text = f"Invalid type for {name}: expected {expected}, but got {got} instead."
        return LuthierError(text, "invalid_type", path)
    if kind == "value_error":
        text = str(context["error"])
        return LuthierError(f"{text[:1].upper()}{text[1:]}.", "invalid_value", path)
    text = f"Invalid value for {name}{_shown(item['input'])}. {_wanted(kind, loc, context, item['msg'])}"
    return LuthierError(text, "invalid_value", path)


def _wanted(kind: str, loc: Sequence[int | str], context: Mapping[str, Any], message: str) -> str:
    """What would have been right, as a sentence."""
    for bound, words in _BOUNDS.items():
        if bound in context:
            return f"Expected {_alternatives(loc)}{words} {context[bound]}."
    match kind:
        case "literal_error":
            other = " or a list of module names" if _NAME_TAG in loc else ""
            return f"Supported: {context['expected']}{other}."
        case "string_too_short" | "too_short":
            return f"Expected a length of at least {context['min_length']}."
        case "string_too_long" | "too_long":
            return f"Expected a length of at most {context['max_length']}."
        case "string_pattern_mismatch":
            return f"Expected a string that matches {context['pattern']}."
        case "finite_number":
            return "Expected a finite number."
        case _:
            return f"{message}."


def _alternatives(loc: Sequence[int | str]) -> str:
    return "'auto' or " if _AUTO_TAG in loc else ""


def _path(loc: Sequence[int | str]) -> str | None:
    """The dotted name of a field; None for the body as a whole."""
    parts = tuple(
        printable(part, _MAX_NAME_CHARACTERS) if isinstance(part, str) else part
        for part in loc
        if part != "[key]"
    )
    return field_path(parts) or None


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case list() | tuple():
            return "a list"
        case _:
            return "an object"


def _shown(value: object) -> str:
    """A number as it was sent; nothing of anything else."""
    text = repr(value)
    shows = isinstance(value, int | float) and not isinstance(value, bool)
    return f": {text}" if shows and len(text) <= _MAX_VALUE_CHARACTERS else ""


def _suggestion(loc: Sequence[int | str], model: type[Request]) -> str:
    """The field that was probably meant: one beside it, or one of that name elsewhere."""
    above, name = field_path(tuple(loc[:-1])), str(loc[-1])
    if len(name) > _MAX_NAME_CHARACTERS:
        return ""
    names = _field_names(model)
    beside = {path.rpartition(".")[2]: path for path in names if path.rpartition(".")[0] == above}
    anywhere = {path.rpartition(".")[2]: path for path in reversed(names)}
    for there in (beside, anywhere):
        meant = _OTHER_NAMES.get(name)
        close = [meant] if meant in there else difflib.get_close_matches(name, there, n=1, cutoff=_CLOSE)
        if close:
            return f" Did you mean '{there[close[0]]}'?"
    return ""


@cache
def _field_names(model: type[Request]) -> Sequence[str]:
    """The dotted names of all fields of a body, the outer ones first."""
    schema = model.model_json_schema()
    found: list[str] = []
    pending: list[tuple[str, Mapping[str, Any]]] = [("", schema)]
    while pending:
        above, node = pending.pop(0)
        for name, inner in node.get("properties", {}).items():
            path = f"{above}.{name}" if above else name
            found.append(path)
            pending.extend((path, schema["$defs"][key]) for key in _references(inner))
    return found


def _references(node: Mapping[str, Any]) -> Iterator[str]:
    """The definitions that a field's schema names."""
    for choice in (node, *node.get("anyOf", ())):
        if "$ref" in choice:
            yield choice["$ref"].rpartition("/")[2]
