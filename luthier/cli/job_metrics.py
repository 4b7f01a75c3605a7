"""The numbers of a job by step: `luthier jobs metrics`, as a table or as a plot."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.text import Text

from luthier.cli.job_control import JobId
from luthier.cli.output import AsJson, Column, Format, Output, format_of, print_json, show_rows
from luthier.cli.plot import plot
from luthier.cli.terminal import console, fail
from luthier.client import Client, Metrics

app = typer.Typer()

_METRICS = ("train_loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")
_PLOT_HEIGHT, _PLOT_WIDTH, _WIDEST = 18, 80, 120


@app.command()
def metrics(
    *,
    job_id: JobId,
    draw: Annotated[bool, typer.Option("--plot", "-p", help="Draw the curves.")] = False,
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="NAME", help="Such as grad_norm; may be repeated. Default: the usual."),
    ] = None,
    from_step: Annotated[int | None, typer.Option(min=0, help="Only from this step on.")] = None,
    to_step: Annotated[int | None, typer.Option(min=0, help="Only up to this step.")] = None,
    max_points: Annotated[
        int | None, typer.Option(min=2, help="Steps at most; those that tell most stay.")
    ] = None,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """Show a job's numbers by step.

    --plot draws the training loss as a curve, and the validation loss as marks on it.
    """
    chosen = format_of(output, as_json)
    with Client() as client:
        measured = client.jobs.metrics(
            job_id, from_step=from_step, to_step=to_step, max_points=max_points, keys=keys
        )
    if draw:
        _draw(measured, keys)
    elif chosen is Format.JSON:
        print_json(measured)
    else:
        names = keys or [name for name in _METRICS if measured.series(name)]
        show_rows(_by_step(measured, names), _columns(names), chosen)


def _draw(measured: Metrics, keys: Sequence[str] | None) -> None:
    """Plots of some metrics; the losses share one by default."""
    shown = console()
    width = min(shown.width if shown.is_terminal else _PLOT_WIDTH, _WIDEST)
    pairs = [(key, None) for key in keys] if keys else [("train_loss", "eval_loss")]
    for name, beside in pairs:
        line, marks = measured.series(name), measured.series(beside) if beside else []
        rows = plot(line, marks, width=width, height=_PLOT_HEIGHT)
        if not rows:
            fail(f"the job has measured no {name} yet")
        shown.print(Text(_legend(name, line, beside, marks), style="bold"))
        shown.print(Text("\n".join(rows)))


def _legend(name: str, line: Any, beside: str | None, marks: Any) -> str:
    told = f"{name}, last {line[-1][1]:.4g}" if line else name
    return f"{told}; ● {beside}, last {marks[-1][1]:.4g}" if marks else told


def _columns(names: Sequence[str]) -> list[Column[Mapping[str, Any]]]:
    step = Column[Mapping[str, Any]]("STEP", lambda row: row["step"])
    return [step, *(_column(name) for name in names)]


def _column(name: str) -> Column[Mapping[str, Any]]:
    return Column(name.upper(), lambda row: row.get(name), "{:.6g}".format)


def _by_step(measured: Metrics, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """A row for each step at which something was measured, ascending."""
    by_step: dict[int, dict[str, Any]] = {}
    for name in names:
        for step, value in measured.series(name):
            by_step.setdefault(step, {"step": step})[name] = value
    return [row for _, row in sorted(by_step.items())]
