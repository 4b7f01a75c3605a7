"""`luthier settings`: every setting, as this process would read it."""

import json
import os
from typing import Annotated, Any

import typer
from pydantic import SecretStr

from luthier.cli.terminal import console, print_table
from luthier.client.address import KEY_VARIABLE, URL_VARIABLE
from luthier.client.profiles import PROFILE_VARIABLE
from luthier.settings import Settings

_HIDDEN = "(set, hidden)"
_CLIENT_SETTINGS = {
    URL_VARIABLE: "Server that the client's commands call; default: the one of the data folder",
    KEY_VARIABLE: "Key that the client's commands enter with",
    PROFILE_VARIABLE: "Profile of `luthier config` that has both where they are not set",
}

app = typer.Typer()


@app.command()
def settings(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show every setting: its environment variable, value, default and meaning; secrets stay hidden."""
    current = Settings()
    rows = [
        {
            "name": f"LUTHIER_{name.upper()}",
            "value": _shown(getattr(current, name)),
            "default": _shown(field.default),
            "meaning": field.description or "",
        }
        for name, field in Settings.model_fields.items()
    ]
    rows += [
        {
            "name": name,
            "value": _shown(SecretStr(value) if value and name == KEY_VARIABLE else value),
            "default": "",
            "meaning": meaning,
        }
        for name, meaning in _CLIENT_SETTINGS.items()
        for value in [os.environ.get(name)]
    ]
    if as_json:
        console().print_json(json.dumps(rows))
    else:
        print_table(("VARIABLE", "VALUE", "DEFAULT", "MEANING"), [tuple(row.values()) for row in rows])


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return _HIDDEN if isinstance(value, SecretStr) else str(value)
