"""Parts of the command line whose packages may not be installed: found when they are called."""

from pkgutil import resolve_name
from typing import Any

from luthier.cli.terminal import fail


def needed(name: str, extra: str) -> Any:
    """What `module:name` leads to; the command ends where its packages are missing, and says which."""
    try:
        return resolve_name(name)
    except ModuleNotFoundError as error:
        if is_ours(error):
            raise
        fail(f"this needs packages that are not installed: {install(extra)}")


def install(extra: str) -> str:
    """The command that installs what is missing."""
    return f"pip install 'luthier[{extra}]'"


def is_ours(error: ModuleNotFoundError) -> bool:
    """Whether a module of Luthier's itself is missing, which no installing helps."""
    return (error.name or "").startswith("luthier")
