"""`luthier jobs diff`: in what jobs differ, and what came of it."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from luthier.cli.output import Column, Format, Output, flat, show_rows
from luthier.cli.terminal import misuse, say
from luthier.client import Client, Job

app = typer.Typer()

# Settings of a job; the rest of the object tells which job it is and what became of it.
_SETTINGS = (
    "model",
    "training_file",
    "validation_file",
    "method",
    "seed",
    "qlora",
    "dataset",
    "priority",
    "metadata",
)


@app.command()
def diff(
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB_ID JOB_ID...", help="Two jobs or more.")],
    is_all: Annotated[bool, typer.Option("--all", help="Show what is the same, too.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show side by side the settings and the results in which jobs differ.

    Settings are shown as they became: what was left to the server, too. Losses are the last and the least.
    """
    if len(set(job_ids)) < 2:
        misuse("give two jobs or more to compare")
    with Client() as client:
        told = {job_id: _facts(client, client.jobs.get(job_id)) for job_id in dict.fromkeys(job_ids)}
    names = dict.fromkeys(name for facts in told.values() for name in facts)
    rows = [{"field": name, **{job_id: facts.get(name) for job_id, facts in told.items()}} for name in names]
    shown = [row for row in rows if is_all or len({str(row[job_id]) for job_id in told}) > 1]
    if not shown:
        say("They do not differ")
    columns = [Column[Mapping[str, Any]]("FIELD", lambda row: row["field"], is_whole=True)]
    show_rows(shown, [*columns, *map(_column, told)], output)


def _column(job_id: str) -> Column[Mapping[str, Any]]:
    return Column(job_id, lambda row: row[job_id])


def _facts(client: Client, job: Job) -> dict[str, Any]:
    """Settings and results of a job by their dotted names."""
    fields = job.model_dump(mode="json")
    settings = {name: fields.get(name) for name in _SETTINGS}
    return {"name": job.name, **dict(flat(settings)), **_results(client, job)}


def _results(client: Client, job: Job) -> dict[str, Any]:
    measured = client.jobs.metrics(job.id)
    results: dict[str, Any] = {
        "status": job.status,
        "error": job.error.code if job.error else None,
        "steps": job.progress.step if job.progress else None,
        "trained_tokens": job.trained_tokens,
        "seconds": job.finished_at - job.created_at if job.finished_at else None,
    }
    for name in ("train_loss", "eval_loss"):
        values = [value for _, value in measured.series(name)]
        results |= {f"{name}.last": values[-1], f"{name}.least": min(values)} if values else {}
    return {f"result.{name}": value for name, value in results.items()}
