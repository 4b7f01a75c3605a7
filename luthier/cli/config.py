"""`luthier config`: named servers with their keys, kept for the client's commands."""

import os
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from luthier.cli.output import Column, Format, Output, show_rows
from luthier.cli.terminal import fail, misuse, say
from luthier.client import profiles
from luthier.client.address import (
    KEY_VARIABLE,
    URL_VARIABLE,
    checked_key,
    checked_url,
    find_address,
    find_key,
    known_address,
)
from luthier.client.errors import SetupError
from luthier.client.profiles import Config, read_config, write_config

app = typer.Typer(
    no_args_is_help=True,
    help="Keep servers and keys under names. LUTHIER_URL and LUTHIER_API_KEY go before what is kept, but not "
    "before a profile that `luthier --profile NAME ...` or LUTHIER_PROFILE names for one command.",
)

Name = Annotated[str, typer.Argument(help=f"One of: {', '.join(profiles.FIELDS)}.")]
_KEY = re.compile(r"lk_[A-Za-z0-9]{8}_")
_SHOWN_CHARACTERS = 11
_VARIABLES = {"url": URL_VARIABLE, "api_key": KEY_VARIABLE}
_PROFILES = (
    Column[Mapping[str, Any]]("PROFILE", lambda row: row["profile"], is_whole=True),
    Column[Mapping[str, Any]]("IN USE", lambda row: row["in_use"], lambda used: "yes" if used else ""),
    Column[Mapping[str, Any]]("URL", lambda row: row["url"]),
    Column[Mapping[str, Any]]("API KEY", lambda row: row["api_key"]),
)


@app.command("set")
def set_value(
    name: Name,
    value: Annotated[
        str | None, typer.Argument(help="Left out, it is asked for, or read from stdin.")
    ] = None,
) -> None:
    """Keep a value in the profile that is in use.

    luthier config set url https://luthier.example.com

    luthier config set api_key

    A key is better asked for than written here, where others may see it.
    """
    _check(name)
    if value is None:
        value = typer.prompt(name, hide_input=name == "api_key", err=True) if sys.stdin.isatty() else input()
    value = checked_key(value) if name == "api_key" else checked_url(value)
    config = read_config()
    profile = profiles.chosen_name(config)
    path = write_config(config.with_value(profile, name, value))
    say(f"Kept {name} of profile {profile} in {path}")


@app.command()
def get(name: Name) -> None:
    """Print a value as it is in force; of a key only its beginning."""
    _check(name)
    url = known_address()
    value = find_address() if name == "url" else find_key(url and checked_url(url))
    if not value:
        fail(f"there is no {name}: luthier config set {name}")
    print(value if name == "url" else _hidden(value))
    if value == os.environ.get(_VARIABLES[name]):
        say(f"from {_VARIABLES[name]}")


@app.command("list")
def list_profiles(output: Output = Format.TABLE) -> None:
    """List the profiles; of keys only their beginnings are shown."""
    config = read_config()
    chosen = profiles.chosen_name(config)
    rows = [
        {
            "profile": name,
            "in_use": name == chosen,
            "url": profile.url,
            "api_key": _hidden(profile.api_key),
        }
        for name, profile in sorted(config.profiles.items())
    ]
    show_rows(rows, _PROFILES, output)
    for variable in _VARIABLES.values():
        if os.environ.get(variable) and not profiles.is_named():
            say(f"{variable} is set and goes before the profile")


@app.command()
def use(profile: Annotated[str, typer.Argument(help="Name of a profile.")]) -> None:
    """Use a profile from now on."""
    config = read_config()
    if profile not in config.profiles:
        raise SetupError(
            f"There is no profile {profile!r}: `luthier --profile {profile} config set url ADDRESS` makes it"
        )
    write_config(Config(profile, config.profiles))
    say(f"In use: {profile}")


@app.command()
def remove(profile: Annotated[str, typer.Argument(help="Name of a profile.")]) -> None:
    """Forget a profile with its key."""
    config = read_config()
    if profile not in config.profiles:
        fail(f"there is no profile {profile!r}")
    kept = {name: each for name, each in config.profiles.items() if name != profile}
    write_config(Config(profiles.DEFAULT_PROFILE if config.profile == profile else config.profile, kept))
    say(f"Removed {profile}")


def _check(name: str) -> None:
    if name not in profiles.FIELDS:
        misuse(f"there is no {name!r} to keep: {' or '.join(profiles.FIELDS)}")


def _hidden(key: str | None) -> str | None:
    """The public beginning of a key, which `luthier keys list` shows too; nothing of what is not ours."""
    if key is None:
        return None
    return f"{key[:_SHOWN_CHARACTERS]}..." if _KEY.match(key) else "(set, hidden)"
