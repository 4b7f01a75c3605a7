"""The page of all settings: `python -m luthier.settings_page > docs/settings.md`."""

import sys
from pathlib import Path
from typing import Any

from luthier.settings import DEFAULT_MODEL_ALLOW, GIB, MIB, Settings

_HEAD = """\
# Settings

Environment variables, read once by each process. `luthier settings` shows what is in force; `luthier doctor`
finds values that contradict each other. Made by `python -m luthier.settings_page`.

| variable | default | meaning |
|---|---|---|
"""
_TAIL = """
Clients read two more: `LUTHIER_URL`, the server to call (default: the one that `luthier up` runs here), and
`LUTHIER_API_KEY`.
"""


def page() -> str:
    """All settings in the order of their definition."""
    rows = (
        f"| `LUTHIER_{name.upper()}` | {_shown(name, field.default)} | {field.description} |\n"
        for name, field in Settings.model_fields.items()
    )
    return _HEAD + "".join(rows) + _TAIL


def _shown(name: str, default: Any) -> str:
    if default is None or default == "":
        return ""
    if default == DEFAULT_MODEL_ALLOW:
        return "the usual organisations"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if name.endswith("_bytes"):
        return f"{default // GIB} GiB" if default % GIB == 0 else f"{default // MIB} MiB"
    return f"`{default}`" if isinstance(default, Path | str) else f"`{default:g}`"


if __name__ == "__main__":
    sys.stdout.write(page())
