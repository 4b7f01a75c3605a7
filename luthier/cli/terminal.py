"""How the command line speaks: data to stdout, words about it to stderr, tables for eyes and for grep."""

import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from luthier.errors import printable

_PIPE_WIDTH = 240
_CELL_CHARACTERS = 10_000
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Ending(IntEnum):
    """Exit codes; docs/cli.md tells them. `luthier train` has the trainer's beside them."""

    DONE = 0
    FAILED = 1
    MISUSED = 2
    UNREACHABLE = 3
    DENIED = 4
    CANCELLED = 5
    INTERRUPTED = 130


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


def fail(message: str, exit_code: int = Ending.FAILED) -> NoReturn:
    """End the command with a line that says what is wrong and what to do."""
    say(f"error: {message}")
    raise typer.Exit(exit_code)


def misuse(message: str) -> NoReturn:
    """End the command as called wrongly: exit code 2."""
    fail(message, Ending.MISUSED)


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    whole: Collection[str] = (),
    cut: Collection[str] = (),
    stderr: bool = False,
) -> None:
    """Rows under headers; None becomes an empty cell.

    Where a terminal is narrow, cells are folded.

    Args:
        whole: headers of columns that stay as they are.
        cut: headers of columns that stay on one line and lose their end.
    """
    shown = console(stderr=stderr)
    table = Table(box=None, pad_edge=False, header_style="bold")
    cut = cut if shown.is_terminal else ()

    def fitted(header: str, text: str) -> Text | str:
        return Text(text, no_wrap=True, overflow="ellipsis") if header in cut else text

    for header in headers:
        table.add_column(fitted(header, header), overflow="fold", no_wrap=header in whole)
    for row in rows:
        cells = ("" if cell is None else _clean(str(cell)) for cell in row)
        table.add_row(*(fitted(header, cell) for header, cell in zip(headers, cells, strict=True)))
    shown.print(table, markup=False)


def print_value(value: Any) -> None:
    """A value of ours as JSON."""
    console().print_json(data=value)


def has_colour() -> bool:
    """Whether stdout shows colours: a terminal, and no NO_COLOR."""
    shown = console()
    return shown.color_system is not None and not shown.no_color


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


def _clean(text: str) -> str:
    """One line; what others have written must not steer the terminal."""
    return printable(" ".join(text.splitlines()), _CELL_CHARACTERS)
