"""`luthier files`: training data on the server, and the results that jobs leave there."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.progress import TransferDisplay
from luthier.cli.terminal import print_json, print_table, say, size_of, time_of
from luthier.client import Client

app = typer.Typer(no_args_is_help=True, help="Send training data to the server, and look at what is there.")

FileId = Annotated[str, typer.Argument(metavar="FILE_ID", help="Such as file-4Xq...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's JSON.")]


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSONL or JSON, UTF-8.")],
    purpose: Annotated[str, typer.Option(help="What the file is for.")] = "fine-tune",
    as_json: AsJson = False,
) -> None:
    """Send a file; the server checks it and names the line of the first bad row.

    Rows may be OpenAI chat (messages), prompt and completion, Alpaca (instruction, input, output) or ShareGPT
    (conversations); the form is recognised by content. Prints the file's id.
    """
    with Client() as client, TransferDisplay(path.name, path.stat().st_size) as display:
        file = client.files.upload(path, purpose=purpose, on_bytes=display)
    if as_json:
        print_json(file)
        return
    print(file.id)
    if file.status == "uploaded":
        say("The file is large and is still being checked; a job on it starts when that is done.")


@app.command("list")
def list_files(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Newest files to show.")] = 20,
    after: Annotated[str | None, typer.Option(help="Go on after this file id.")] = None,
    as_json: AsJson = False,
) -> None:
    """List files, newest first."""
    with Client() as client:
        page = client.files.list(limit=limit, after=after)
    if as_json:
        print_json(page)
        return
    rows = [
        (file.id, file.filename, size_of(file.bytes), file.purpose, file.status, time_of(file.created_at))
        for file in page.data
    ]
    print_table(("ID", "NAME", "SIZE", "PURPOSE", "STATUS", "CREATED"), rows)
    if page.has_more:
        say(f"More: --after {page.data[-1].id}")


@app.command()
def get(file_id: FileId) -> None:
    """Show one file as JSON; `status_details` says what is wrong with a file in `error`."""
    with Client() as client:
        print_json(client.files.get(file_id))


@app.command()
def content(
    file_id: FileId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here, not to stdout.")] = None,
) -> None:
    """Print a file's bytes."""
    with Client() as client:
        chunks = client.files.content(file_id)
        if output is None:
            for chunk in chunks:
                sys.stdout.buffer.write(chunk)
            return
        with output.open("wb") as file:
            file.writelines(chunks)


@app.command()
def delete(file_id: FileId) -> None:
    """Delete a file; refused while a job that has not ended uses it."""
    with Client() as client:
        client.files.delete(file_id)
    say(f"Deleted {file_id}")
