"""Profiles: named servers with their keys, in a file that only its owner can read.

The file is `luthier/config.toml` in XDG_CONFIG_HOME (default: `~/.config`):

    profile = "work"

    [profiles.work]
    url = "https://luthier.example.com"
    api_key = "lk_..."
"""

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from luthier.client.errors import SetupError

PROFILE_VARIABLE = "LUTHIER_PROFILE"
DEFAULT_PROFILE = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Profile:
    """One server and a key for it; None is what the profile does not say."""

    url: str | None = None
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Config:
    """The file: the profiles, and the one that is used where nobody names another."""

    profile: str = DEFAULT_PROFILE
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    def with_value(self, profile: str, name: str, value: str) -> "Config":
        """The same with one value of a profile set; an unknown profile is made."""
        changed = replace(self.profiles.get(profile, Profile()), **{name: value})
        return replace(self, profiles={**self.profiles, profile: changed})


FIELDS = tuple(each.name for each in fields(Profile))


def config_path() -> Path:
    """Where the file is, or will be."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "luthier" / "config.toml"


def read_config() -> Config:
    """The file's content; an absent file is an empty one.

    Raises:
        SetupError: it cannot be read.
    """
    path = config_path()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        profiles = {
            name: Profile(**{key: str(told[key]) for key in FIELDS if key in told})
            for name, told in raw.get("profiles", {}).items()
        }
        return Config(str(raw.get("profile", DEFAULT_PROFILE)), profiles)
    except FileNotFoundError:
        return Config()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise SetupError(f"{path} cannot be read: {error}") from error


def write_config(config: Config) -> Path:
    """Replace the file, readable by its owner alone; returns where it is."""
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"profile = {_quoted(config.profile)}"]
    for name, profile in sorted(config.profiles.items()):
        lines += ["", f"[profiles.{name}]"]
        lines += [f"{key} = {_quoted(value)}" for key in FIELDS if (value := getattr(profile, key))]
    # A temporary file is made with mode 0600.
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write("\n".join(lines) + "\n")
    Path(file.name).replace(path)
    return path


def checked_name(name: str) -> str:
    """A name that a profile may have.

    Raises:
        SetupError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise SetupError(f"{name!r} is no name of a profile: use letters, digits, - and _")
    return name


def chosen_name(config: Config, name: str | None = None) -> str:
    """The profile's name: `name`, else LUTHIER_PROFILE, else the one of the file."""
    return checked_name(name or os.environ.get(PROFILE_VARIABLE) or config.profile)


def is_named(name: str | None = None) -> bool:
    """Whether a profile was asked for by name, for this call or this process."""
    return bool(name or os.environ.get(PROFILE_VARIABLE))


def current_profile(name: str | None = None) -> Profile:
    """The profile that is in force.

    Args:
        name: default: LUTHIER_PROFILE, else the one of the file.
    Raises:
        SetupError: a profile was named that is not there.
    """
    config = read_config()
    chosen = chosen_name(config, name)
    if chosen not in config.profiles and chosen != DEFAULT_PROFILE:
        known = ", ".join(sorted(config.profiles)) or "none"
        raise SetupError(f"There is no profile {chosen!r} in {config_path()}; there is: {known}")
    return config.profiles.get(chosen, Profile())


def _quoted(text: str) -> str:
    """A basic string of TOML, which a JSON string of printable characters is."""
    if not text.isprintable():
        raise SetupError("A value with control characters cannot be kept: copy it again")
    return json.dumps(text)
