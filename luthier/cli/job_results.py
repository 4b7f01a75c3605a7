"""What a job has left: its artifacts, listed and brought home."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.job_control import JobId
from luthier.cli.output import AsJson, Column, Format, Output, format_of, show_rows
from luthier.cli.progress import TransferDisplay
from luthier.cli.terminal import fail
from luthier.client import Artifact, Client

app = typer.Typer()

_ARTIFACTS = (
    Column[Artifact]("NAME", lambda artifact: artifact.name, is_whole=True),
    Column[Artifact]("KIND", lambda artifact: artifact.kind),
    Column[Artifact]("BYTES", lambda artifact: artifact.bytes),
    Column[Artifact]("SHA256", lambda artifact: artifact.sha256),
)


@app.command()
def artifacts(job_id: JobId, output: Output = Format.TABLE, as_json: AsJson = False) -> None:
    """List the files that a succeeded job has left, with their SHA-256."""
    with Client() as client:
        show_rows(client.jobs.artifacts(job_id), _ARTIFACTS, format_of(output, as_json))


@app.command()
def download(
    job_id: JobId,
    name: Annotated[
        str | None, typer.Option(help="One artifact, or a folder of them such as adapter; default: all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to fill; default: the job's id.")
    ] = None,
    tar: Annotated[bool, typer.Option("--tar", help="One .tar file in the place of a folder.")] = False,
) -> None:
    """Download what a job has left; every file's SHA-256 is checked, and a broken download goes on."""
    with Client() as client:
        if tar:
            target = output or Path(f"{job_id}.tar")
            with TransferDisplay(target.name, None) as display:
                client.jobs.download_tar(job_id, target, display)
        else:
            target = output or Path(job_id)
            download_artifacts(client, job_id, _chosen(client, job_id, name), target)
    print(target)


def download_artifacts(client: Client, job_id: str, artifacts: Sequence[Artifact], folder: Path) -> None:
    """Put artifacts under their names into a folder, with a bar for each."""
    for artifact in artifacts:
        with TransferDisplay(artifact.name, artifact.bytes) as display:
            client.jobs.download(job_id, artifact, folder, display)


def _chosen(client: Client, job_id: str, name: str | None) -> Sequence[Artifact]:
    found = client.jobs.artifacts(job_id)
    if name is not None:
        found = [each for each in found if each.name == name or each.name.startswith(f"{name.rstrip('/')}/")]
    if not found:
        which = f"has no artifact {name}" if name is not None else "has left nothing yet"
        fail(f"job {job_id} {which}: see `luthier jobs artifacts {job_id}`")
    return found
