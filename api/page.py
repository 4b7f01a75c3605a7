"""`/docs`: the API for people, one page of plain HTML made of its OpenAPI document.

It loads nothing from elsewhere and runs no script, so that it works on a machine without a network. The
anchors of error codes are what the `type` of an error leads to.
"""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from luthier.errors import CATALOGUE

_METHODS = ("get", "post", "patch", "delete")
_LIMITS = {
    "exclusiveMinimum": "above",
    "minimum": "from",
    "maximum": "to",
    "exclusiveMaximum": "below",
    "minLength": "of at least",
    "maxLength": "of at most",
    "maxItems": "of at most",
}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "code{font:14px ui-monospace,monospace}table{border-collapse:collapse}"
    "th,td{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top;border-bottom:1px solid #ddd}"
    "h3{margin-bottom:0}p{margin:.3rem 0}tr:target{background:#fff3c4}"
)


def build_page(document: Mapping[str, Any]) -> str:
    """A page for people: every call, its parameters, and every error code."""
    info = document["info"]
    calls = "".join(_calls(document))
    schemas = document["components"]["schemas"]
    bodies = "".join(_body(name, schema) for name, schema in schemas.items() if name.endswith("Request"))
    codes = "".join(
        f'<tr id="{code}"><td><code>{code}</code><td>{entry.status}<td>{escape(entry.title)}'
        for code, entry in CATALOGUE.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])} API</title>'
        f"<style>{_STYLE}</style><h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f'<p>{escape(info["summary"])} Machines read <a href="openapi.json">/openapi.json</a>.'
        "<p>Calls below <code>/v1</code> want the header <code>Authorization: Bearer lk_...</code>."
        f"<h2>Calls</h2>{calls}<h2>Bodies</h2>{bodies}<h2>Error codes</h2>"
        f"<table><tr><th>code<th>status<th>meaning{codes}</table></html>"
    )


def _calls(document: Mapping[str, Any]) -> Iterator[str]:
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                yield _call(path, method, operations[method])


def _call(path: str, method: str, operation: Mapping[str, Any]) -> str:
    rows = [
        (item["name"], item["in"], item.get("description", "")) for item in operation.get("parameters", ())
    ]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        names = content["schema"].get(
            "properties", {content["schema"].get("$ref", "").rpartition("/")[2]: None}
        )
        rows.append((media, "body", ", ".join(names)))
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{escape(place)}<td>{escape(text)}"
        for name, place, text in rows
    )
    table = f"<table>{cells}</table>" if rows else ""
    return (
        f"<h3><code>{method.upper()} {escape(path)}</code></h3>"
        f"<p>{escape(operation.get('description', ''))}</p>{table}"
    )


def _body(name: str, schema: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code><td>{escape(_kind(inner))}<td>{escape(_default(inner))}"
        for field, inner in schema["properties"].items()
    )
    text = escape(schema.get("description", ""))
    return f'<h3 id="{name}"><code>{name}</code></h3><p>{text}</p><table>{rows}</table>'


def _kind(schema: Mapping[str, Any]) -> str:
    """What a field takes, in few words."""
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(_kind(choice) for choice in choices)
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "const" in schema or "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    limits = [f"{words} {schema[key]}" for key, words in _LIMITS.items() if key in schema]
    return " ".join([schema.get("type", "anything"), *limits])


def _default(schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    return "" if default is None or isinstance(default, dict) else f"default {json.dumps(default)}"
