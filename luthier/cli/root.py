"""The root of the command line: which commands there are, and what becomes of errors.

A command's module is imported when the command is called, or when help is shown: the client's commands then
start fast, and need no package of the server. Every error that a user can do something about ends here as one
line, with one of the exit codes of `terminal.Ending`.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup
from typer.main import get_command

from luthier import __version__
from luthier.cli.parts import install, is_ours
from luthier.cli.reports import say_details
from luthier.cli.terminal import Ending, fail, say
from luthier.client import ApiError, SetupError, UnreachableError
from luthier.client.profiles import PROFILE_VARIABLE
from luthier.errors import LuthierError
from luthier.settings import Settings
from luthier.spec import field_path

_EPILOG = (
    "Start with `luthier up`, or with `luthier demo` for all of it at once. The client's commands find the "
    "server by LUTHIER_URL, else by `luthier config`, else by the data folder, and enter with "
    "LUTHIER_API_KEY or the key of `luthier config`."
)


@dataclass(frozen=True)
class _Part:
    """Commands of one module, and the extra of the package that they need beside the base."""

    module: str
    extra: str | None = None


_PARTS = {
    "up": _Part("up", "server"),
    "demo": _Part("demo", "all"),
    "train": _Part("train", "trainer"),
    "files": _Part("files"),
    "jobs": _Part("jobs"),
    "queue": _Part("job_queue"),
    "models": _Part("models"),
    "webhooks": _Part("webhooks"),
    "keys": _Part("keys"),
    "projects": _Part("projects"),
    "secrets": _Part("secrets"),
    "db": _Part("database", "server"),
    "backup": _Part("backup", "server"),
    "restore": _Part("backup", "server"),
    "config": _Part("config"),
    "settings": _Part("settings"),
    "doctor": _Part("doctor"),
    "api": _Part("processes", "server"),
    "worker": _Part("processes", "server"),
    "dispatcher": _Part("processes", "server"),
    "workers": _Part("workers"),
}


class _Commands(Mapping[str, Any]):
    """The commands by name, imported when they are asked for."""

    def __getitem__(self, name: str) -> Any:
        part = _PARTS[name]
        try:
            command = get_command(resolve_name(f"luthier.cli.{part.module}:app"))
        except ModuleNotFoundError as error:
            if part.extra is None or is_ours(error):
                raise
            return get_command(_missing(name, part.extra))
        if isinstance(command, TyperGroup) and name in command.commands:
            return command.commands[name]
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_PARTS)

    def __len__(self) -> int:
        return len(_PARTS)


class _Root(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": _Commands()})

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ApiError as error:
            if len(error.details) > 1:
                say_details(error.details)
            where = {"field": error.param, "code": error.code, "request": error.request_id}
            told = "; ".join(f"{name} {value}" for name, value in where.items() if value)
            fail(f"{error.message} ({told})" if told else error.message, _ending_of(error))
        except LuthierError as error:
            fail(f"{error.message} (field {error.param})" if error.param else error.message)
        except ValidationError as error:
            name = _setting if error.title == Settings.__name__ else field_path
            for problem in error.errors(include_url=False, include_input=False):
                say(f"error: {name(problem['loc']) or error.title}: {problem['msg']}")
            raise typer.Exit(1) from error
        except BrokenPipeError:
            # Whoever read our output has enough of it.
            raise
        except OSError as error:
            fail(str(error))


def _ending_of(error: ApiError) -> Ending:
    if isinstance(error, UnreachableError):
        return Ending.UNREACHABLE
    if isinstance(error, SetupError):
        return Ending.MISUSED
    return Ending.DENIED if error.status in (401, 403) else Ending.FAILED


app = typer.Typer(
    cls=_Root,
    name="luthier",
    help="Fine-tune language models on your own machines: from a dataset to a trained, checked adapter.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command that the process was called with."""
    app(prog_name="luthier")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"luthier {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and end.", callback=_show_version, is_eager=True),
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", help="Server and key of this name: see `luthier config` (LUTHIER_PROFILE)."
        ),
    ] = None,
) -> None:
    """Options of the root."""
    if profile is not None:
        os.environ[PROFILE_VARIABLE] = profile


def _missing(name: str, extra: str) -> typer.Typer:
    """A command in the place of one whose packages are not installed."""
    needs = install(extra)
    stand_in = typer.Typer()

    @stand_in.command(
        name,
        help=f"Not installed: needs {needs}.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def refuse() -> None:
        fail(f"`luthier {name}` needs packages that are not installed: {needs}")

    return stand_in


def _setting(loc: tuple[int | str, ...]) -> str:
    """The environment variable of a setting that could not be read."""
    return f"LUTHIER_{field_path(loc).upper()}" if loc else "settings"
