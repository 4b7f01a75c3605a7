"""`luthier files`: training data on the server, and the results that jobs leave there."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from luthier.cli import local_look
from luthier.cli.output import (
    After,
    All,
    AsJson,
    Column,
    Format,
    Output,
    format_of,
    print_json,
    show_list,
    show_one,
)
from luthier.cli.progress import TransferDisplay
from luthier.cli.reports import print_preview, print_report, summary_of
from luthier.cli.terminal import misuse, say, size_of, time_of
from luthier.client import Client, File, Preview, Validation
from luthier.spec import Columns, DatasetRequest

app = typer.Typer(
    no_args_is_help=True, help="Check training data, send it to the server, and see it as a model does."
)

FileId = Annotated[str, typer.Argument(metavar="FILE_ID", help="Such as file-4Xq...")]
FileOrPath = Annotated[str, typer.Argument(metavar="FILE_ID|PATH", help="On the server, or here.")]
LocalFile = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A file on this machine.")]
ColumnOption = Annotated[
    str | None,
    typer.Option("--columns", metavar="OURS=THEIRS,...", help="Such as instruction=question,output=answer."),
]
_COLUMNS: TypeAdapter[Columns] = TypeAdapter(Columns)
_FILES = (
    Column[File]("ID", lambda file: file.id, is_whole=True),
    Column[File]("NAME", lambda file: file.filename, is_cut=True),
    Column[File]("SIZE", lambda file: file.bytes, size_of),
    Column[File]("PURPOSE", lambda file: file.purpose, is_cut=True),
    Column[File]("STATUS", lambda file: file.status),
    Column[File]("CREATED", lambda file: file.created_at, time_of, is_cut=True),
)


@app.command()
def upload(
    path: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="JSONL, JSON, CSV or Parquet, also packed.")
    ],
    purpose: Annotated[str, typer.Option(help="What the file is for.")] = "fine-tune",
    on_bad_row: Annotated[
        str,
        typer.Option(
            help="`drop` keeps a file with bad rows, for jobs with dataset.on_bad_row=drop; `keep` any file, "
            "to be registered."
        ),
    ] = "refuse",
    as_json: AsJson = False,
) -> None:
    """Send a file; the server checks it and names the line of the first bad row.

    Rows may be OpenAI chat (messages), prompt and completion, Alpaca (instruction, input, output), ShareGPT
    (conversations) or plain text; the file JSONL, a JSON array, CSV or Parquet, also packed by gzip or zstd.
    All of it is recognised by content. Prints the file's id.
    """
    with Client() as client, TransferDisplay(path.name, path.stat().st_size) as display:
        file = client.files.upload(path, purpose=purpose, on_bad_row=on_bad_row, on_bytes=display)
        report = client.files.validation(file.id) if file.status != "uploaded" else None
    if as_json:
        print_json(file)
        return
    print(file.id)
    if report is None:
        say("The file is still being checked; a job on it starts when that is done.")
    elif report.valid:
        say(summary_of(report))
    else:
        say(f"{file.status_details}\nwarning: kept in status `error`, {_remedy(report, file.id)}")


@app.command()
def check(
    path: LocalFile,
    model: Annotated[str | None, typer.Option(help="Also tell what the rows are for this model.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A validation file: tell which rows both have."),
    ] = None,
    columns: ColumnOption = None,
    as_json: AsJson = False,
) -> None:
    """Check a file on this machine, without a server; exit code 1 where it has errors.

    Every row is read: errors come with their line, oddities such as duplicates are counted. --model (an id of
    LUTHIER_MODEL_DIR, or a folder) adds lengths in tokens, what would be cut, and what would be trained on.
    """
    report = Validation.model_validate(local_look.check(path, _columns(columns), model, against))
    if not as_json and any(error["code"] == "schema.unknown" for error in report.errors):
        say("Where the columns have other names, say which is which: --columns instruction=...,output=...")
    _tell(report, as_json=as_json)


@app.command()
def validation(
    file_id: FileId,
    model: Annotated[str | None, typer.Option(help="Also tell what the rows are for this model.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="FILE_ID", help="A validation file: tell which rows both have.")
    ] = None,
    columns: ColumnOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what the server has found in a file; exit code 1 where it has errors."""
    if against is not None and model is None:
        misuse("--against reads both files again, by the rules of a model: give --model, too")
    view = None if model is None else {"model": model, "dataset": _rules(columns, None)}
    if view is not None and against is not None:
        view["against"] = against
    with Client() as client:
        report = client.files.validation(file_id, view=view)
    _tell(report, as_json=as_json)


@app.command()
def preview(
    *,
    file: FileOrPath,
    model: Annotated[str, typer.Option(help="Model id; for a path also a model's folder.")],
    rows: Annotated[int, typer.Option(min=1, max=100, help="Rows to show.")] = 3,
    offset: Annotated[int, typer.Option(min=0, help="Rows to pass over.")] = 0,
    template: Annotated[str | None, typer.Option(help="A template's name, or a format string.")] = None,
    max_seq_length: Annotated[int | None, typer.Option(min=8, help="In tokens.")] = None,
    columns: ColumnOption = None,
    as_json: AsJson = False,
) -> None:
    """Show rows as a model would see them: trained tokens in colour, all others dim.

    Without colours trained tokens stand in brackets. A path is looked at on this machine, without a server.
    """
    rules = _rules(columns, template)
    if (path := Path(file)).is_file():
        view = local_look.view_of(model, DatasetRequest.model_validate(rules), max_seq_length)
        shown = local_look.preview(path, view, offset=offset, count=rows)
    else:
        asked = {"model": model, "rows": rows, "offset": offset, "dataset": rules}
        asked |= {} if max_seq_length is None else {"max_seq_length": max_seq_length}
        with Client() as client:
            shown = client.files.preview(file, asked).data
    if as_json:
        print_json(Preview(model=model, offset=offset, data=shown))
    else:
        print_preview(shown)


@app.command()
def prepare(
    file: FileOrPath,
    columns: ColumnOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the rows here, on this machine.")
    ] = None,
) -> None:
    """Make rows of instruction, input and output from a file with other columns.

    luthier files prepare qa.jsonl --columns instruction=question,input=context,output=answer -o out.jsonl

    For a path the rows are written to --output, whose name is printed; for a file of the server a new one is
    made there, and its id is printed.
    """
    asked = _columns(columns)
    if (path := Path(file)).is_file():
        if output is None:
            misuse("where to? give --output")
        count = local_look.convert(path, asked, output)
        print(output)
        say(f"{count:,} rows of instruction, input and output")
        return
    with Client() as client:
        made = client.files.prepare(file, dict[str, str](asked.items()) if asked else None)
        if output is not None:
            _save(client, made.id, output)
        report = client.files.validation(made.id)
    print(made.id)
    say(summary_of(report))


@app.command()
def register(
    file_id: FileId,
    name: Annotated[str, typer.Option(help="Jobs of LLaMA-Factory's form call the file so.")],
    entry: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="dataset_info.json that has an entry of that name."),
    ] = None,
) -> None:
    """Give a file a name, and have its rows read as LLaMA-Factory's dataset_info.json says."""
    with Client() as client:
        registration = client.files.register(file_id, name, _entry(entry, name) if entry else {})
    for warning in registration.warnings:
        say(f"warning: {warning}")
    print(f"{registration.file_id} is {registration.name}")


@app.command()
def unregister(file_id: FileId) -> None:
    """Take a file's name and entry away."""
    with Client() as client:
        client.files.unregister(file_id)
    say(f"{file_id} has no name now")


@app.command("list")
def list_files(
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Newest files to show.")] = 20,
    after: After = None,
    purpose: Annotated[str | None, typer.Option(help="Only those for this, such as fine-tune.")] = None,
    name: Annotated[str | None, typer.Option(help="Only the one that is registered under it.")] = None,
    is_all: All = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """List files, newest first."""
    with Client() as client:
        rows = client.files.list(limit=limit, after=after, purpose=purpose, name=name)
        show_list(rows, _FILES, format_of(output, as_json), limit=limit, is_all=is_all)


@app.command()
def get(file_id: FileId, output: Output = Format.JSON) -> None:
    """Show one file; `status_details` says what is wrong with a file in `error`."""
    with Client() as client:
        show_one(client.files.get(file_id), output)


@app.command()
def content(
    file_id: FileId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here, not to stdout.")] = None,
) -> None:
    """Print a file's bytes."""
    with Client() as client:
        if output is not None:
            _save(client, file_id, output)
            return
        for chunk in client.files.content(file_id):
            sys.stdout.buffer.write(chunk)


@app.command()
def delete(file_id: FileId) -> None:
    """Delete a file; refused while a job that has not ended uses it."""
    with Client() as client:
        client.files.delete(file_id)
    say(f"Deleted {file_id}")


def _save(client: Client, file_id: str, path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(client.files.content(file_id))


def _tell(report: Validation, *, as_json: bool) -> None:
    """Print a report; one with errors ends the command with exit code 1."""
    if as_json:
        print_json(report)
    else:
        print_report(report)
    if not report.valid:
        raise typer.Exit(1)


def _remedy(report: Validation, file_id: str) -> str:
    """What makes a file with mistakes usable."""
    if (report.statistics or {}).get("characters"):
        return "use it in jobs with dataset.on_bad_row=drop"
    return (
        f"say how its rows are read, with `luthier files prepare {file_id} --columns ...` or `luthier files "
        f"register {file_id} ...`"
    )


def _columns(told: str | None) -> Columns | None:
    """`instruction=question,output=answer` as a mapping; what is none ends the command."""
    if told is None:
        return None
    pairs = [pair.partition("=") for pair in told.split(",")]
    if any(not (ours and separator and theirs) for ours, separator, theirs in pairs):
        misuse(f"--columns {told!r}: write OURS=THEIRS, with commas between pairs")
    try:
        return _COLUMNS.validate_python({ours.strip(): theirs.strip() for ours, _, theirs in pairs})
    except ValidationError as error:
        misuse(f"--columns: {error.errors()[0]['msg']}")


def _rules(columns: str | None, template: str | None) -> dict[str, Any]:
    """`dataset` of a request."""
    asked = {"columns": _columns(columns), "template": template}
    return {name: value for name, value in asked.items() if value is not None}


def _entry(path: Path, name: str) -> dict[str, Any]:
    """An entry of dataset_info.json."""
    try:
        entries = json.loads(path.read_bytes())
        entry: dict[str, Any] = entries[name]
    except (ValueError, KeyError, TypeError):
        misuse(f"{path} is no dataset_info.json with an entry {name!r}")
    return entry
