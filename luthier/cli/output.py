"""What a command prints for people or for programs: `-o table|json|jsonl|csv|id`, one way for all lists.

`json` is what the server sent, `jsonl` a row a line, `csv` the columns of the table with raw values, `id`
what another command takes. Words for people beside it go to stderr.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any, Generic, TypeVar

import typer
from pydantic import BaseModel

from luthier.cli.terminal import console, print_table, say
from luthier.client.calls import Rows
from luthier.client.objects import Answer, Page

MOST_ROWS = 100


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    ID = "id"


Output = Annotated[Format, typer.Option("--output", "-o", help="How to print it.")]
AsJson = Annotated[bool, typer.Option("--json", help="The same as -o json.")]
Limit = Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="Newest entries to show.")]
After = Annotated[str | None, typer.Option(help="Go on after this id.")]
All = Annotated[bool, typer.Option("--all", help="Show all of them, however many.")]

Row = TypeVar("Row", bound=Answer | Mapping[str, Any])
Listed = TypeVar("Listed", bound=Answer)


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table; its header in small letters is its name in CSV.

    Attributes:
        value: what a row has there; None where it has nothing.
        text: how people read it.
        is_whole, is_cut: where the terminal is narrow it stays as it is, or loses its end; else it is folded.
    """

    header: str
    value: Callable[[Row], Any]
    text: Callable[[Any], str] = str
    is_whole: bool = False
    is_cut: bool = False


def format_of(output: Format, as_json: bool) -> Format:
    """What was asked for, `--json` being another word for `-o json`."""
    return Format.JSON if as_json else output


def show_list(
    rows: Rows[Listed],
    columns: Sequence[Column[Listed]],
    output: Format,
    *,
    limit: int,
    is_all: bool = False,
    keep: Callable[[Listed], bool] | None = None,
) -> None:
    """Print the rows of a list: one page of it, or all.

    Args:
        rows: whose pages have `limit` rows.
        keep: picks some; a page then has the first `limit` of them.
    """
    if is_all and output not in (Format.TABLE, Format.JSON):
        # As they come: there may be more than fit into memory.
        show_rows(filter(keep, rows), columns, output)
        return
    page = _page(rows, limit, is_all, keep)
    if output is Format.JSON:
        print_json(page)
    else:
        show_rows(page.data, columns, output)
    if page.has_more:
        say(f"More: --after {page.next_after}, or --all")


def show_rows(rows: Iterable[Row], columns: Sequence[Column[Row]], output: Format) -> None:
    """Print rows that are here."""
    match output:
        case Format.TABLE:
            print_table(
                [column.header for column in columns],
                [[_text(column, row) for column in columns] for row in rows],
                whole=[column.header for column in columns if column.is_whole],
                cut=[column.header for column in columns if column.is_cut],
            )
        case Format.JSON:
            print_json(list(rows))
        case Format.JSONL:
            for row in rows:
                print(row.model_dump_json() if isinstance(row, BaseModel) else json.dumps(dict(row)))
        case Format.CSV:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow([column.header.lower().replace(" ", "_") for column in columns])
            writer.writerows([column.value(row) for column in columns] for row in rows)
        case Format.ID:
            for row in rows:
                print(columns[0].value(row))


def show_one(row: Answer, output: Format) -> None:
    """Print one object: all of its fields, those within others by dotted names."""
    fields = dict(flat(row.model_dump(mode="json")))
    match output:
        case Format.JSON:
            print_json(row)
        case Format.JSONL:
            print(row.model_dump_json())
        case Format.ID:
            print(fields["id"])
        case Format.CSV:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerows([list(fields), list(fields.values())])
        case Format.TABLE:
            print_table(("FIELD", "VALUE"), [(name, value) for name, value in fields.items() if value != ""])


def print_json(value: BaseModel | Sequence[Any]) -> None:
    """An answer of the server as it came, or a list of them."""
    if isinstance(value, BaseModel):
        console().print_json(value.model_dump_json())
    else:
        console().print_json(
            data=[each.model_dump(mode="json") if isinstance(each, BaseModel) else each for each in value]
        )


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects by dotted names; a list is a leaf, null an empty text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, "" if value is None else json.dumps(value) if isinstance(value, list) else value


def _page(
    rows: Rows[Listed], limit: int, is_all: bool, keep: Callable[[Listed], bool] | None
) -> Page[Listed]:
    if keep is None and not is_all:
        return rows.page()
    found = filter(keep, rows)
    shown = list(found if is_all else islice(found, limit))
    has_more = not is_all and len(shown) == limit and next(found, None) is not None
    return Page[Any](data=shown, has_more=has_more, object="list")


def _text(column: Column[Row], row: Row) -> str | None:
    value = column.value(row)
    return None if value is None else column.text(value)
