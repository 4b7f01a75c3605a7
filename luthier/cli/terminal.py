"""How the command line speaks: data to stdout, words about it to stderr, tables for eyes and for grep."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 240
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def console(*, stderr: bool = False) -> Console:
    """A console for the stream as it is now; into a pipe lines are long rather than folded."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream,
        width=None if stream.isatty() else _PIPE_WIDTH,
        highlight=False,
        soft_wrap=not stream.isatty(),
    )


def say(line: str) -> None:
    """A line for people, which no script reads."""
    print(line, file=sys.stderr, flush=True)


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """End the command with a line that says what is wrong and what to do."""
    say(f"error: {message}")
    raise typer.Exit(exit_code)


def misuse(message: str) -> NoReturn:
    """End the command as called wrongly: exit code 2."""
    fail(message, 2)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, stderr: bool = False) -> None:
    """Rows under headers; None becomes an empty cell."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console(stderr=stderr).print(table, markup=False)


def print_json(value: BaseModel | Sequence[BaseModel]) -> None:
    """An answer of the server as it came, or a list of them."""
    if isinstance(value, BaseModel):
        console().print_json(value.model_dump_json())
    else:
        console().print_json(data=[each.model_dump(mode="json") for each in value])


def print_value(value: Any) -> None:
    """A value of ours as JSON."""
    console().print_json(data=value)


def time_of(unix_seconds: float | None) -> str:
    """A time in UTC, to the second."""
    if unix_seconds is None:
        return ""
    return f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%d %H:%M:%S}Z"


def size_of(count: float) -> str:
    """A number of bytes with a binary unit."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def duration_of(seconds: float) -> str:
    """`3:07`, or `2:03:07` from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
