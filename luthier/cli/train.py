"""`luthier train`: a job on this machine without a server; its file is that of `luthier jobs create`."""

import shlex
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from luthier import planning
from luthier.cli import local_run
from luthier.cli.job_file import JobFileError
from luthier.cli.local_estimate import estimate_local
from luthier.cli.local_job import LocalJob, read_local_job
from luthier.cli.local_model import get_local_model
from luthier.cli.manifest import check_prepared, read_manifest
from luthier.cli.progress import RunDisplay, RunState, state_after
from luthier.cli.reports import print_estimate, say_details
from luthier.cli.terminal import fail, misuse, print_value, say
from luthier.devices import choose_devices, list_gpus
from luthier.errors import ExitCode, LuthierError, printable
from luthier.events import (
    AnyEvent,
    CheckpointSaved,
    EvalLogged,
    PlanChosen,
    ProgressMade,
    SampleGenerated,
    WarningRaised,
)
from luthier.models import BaseModel, shape_of
from luthier.settings import Settings
from luthier.spec import BaseModelRef, PreparedData

app = typer.Typer()

_ANSWER_CHARACTERS = 160


@app.command(context_settings={"ignore_unknown_options": True})
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[JOB_FILE] [--NAME VALUE]... [NAME=VALUE]...",
            help="The job, as YAML or JSON; LLaMA-Factory's arguments, in a file or as flags.",
        ),
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", file_okay=False, help="Run folder; default: output_dir, or the file's name."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in the output folder from its newest good checkpoint.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any field, such as qlora.r=8; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the job as it would run, with notes and an estimate.")
    ] = False,
    from_manifest: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Repeat the run that left this run.json."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="For --from-manifest: a data file, or a folder of them."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads; default: LUTHIER_TRAINER_THREADS, else every core."),
    ] = None,
) -> None:
    """Train without a server: check the data, train, and leave the adapter in the output folder.

    The job file is the body of `POST /v1/fine_tuning/jobs` as YAML; training_file and validation_file are
    paths relative to it, and model is a model's id (LUTHIER_MODEL_DIR) or a folder. A LLaMA-Factory YAML, or
    its flags, do as well: its datasets are found in dataset_dir. Ctrl-C saves a checkpoint and ends with exit
    code 85; --resume goes on from there. The exit code is the trainer's; of --dry-run it is 1 where the job
    would fail.
    """
    job = _read_job(arguments or [], settings or [], from_manifest, data)
    if not dry_run:
        for note in job.notes:
            say(f"note: {note}")
    else:
        print_value(job.description())
        _show_estimate(job, threads)
        return
    folder = (output or job.output).absolute()
    run = _run(job, folder, resume=resume, threads=threads)
    if run.exit_code == ExitCode.STOPPED:
        words = [*(arguments or []), *(f"--set={each}" for each in settings or [])]
        words += [f"--from-manifest={from_manifest}"] if from_manifest else []
        words += [f"--data={path}" for path in data or []]
        words += [f"--threads={threads}"] if threads else []
        _say_stopped(folder, shlex.join([*words, "--output", str(folder), "--resume"]))
        raise typer.Exit(run.exit_code)
    if run.exit_code != ExitCode.DONE:
        _end_badly(run, folder)
    print(folder / "artifacts" / "adapter")


def _say_stopped(folder: Path, words: str) -> None:
    """What is there after a stop, and the words behind `luthier train` that go on from it."""
    checkpoint = local_run.newest_checkpoint(folder)
    if checkpoint is None:
        say(f"Stopped before the first checkpoint; start again with: luthier train {words}")
    else:
        say(f"Stopped, {Path(checkpoint).name} is kept; go on with: luthier train {words}")


def _run(job: LocalJob, folder: Path, *, resume: bool, threads: int | None) -> local_run.Child:
    """Prepare the data and train in a run folder; what stands in the way of training ends the command."""
    installed = Settings()
    model = get_local_model(installed, job.request.model, job.folder)
    _check_adapters(job, model)
    if local_run.read_spec(folder) is not None and not resume:
        misuse(f"{folder} holds a run already: give --resume to go on, choose another --output, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    reference = BaseModelRef(id=model.id, path=str(model.path), revision=model.revision)
    device = choose_devices(installed.gpus, list_gpus())[0]
    max_seq_length = planning.max_seq_length(job.request.qlora.max_seq_length, model.context_length)
    with RunDisplay() as display:
        viewer = _Viewer(display)
        prepared = _prepare(job, folder, reference, max_seq_length, viewer)
        spec = local_run.plan_training(
            folder, job, reference, prepared, max_seq_length=max_seq_length, device=device.id
        )
        threads = threads or local_run.trainer_threads(installed)
        environment = {**device.environment(), "OMP_NUM_THREADS": str(threads)}
        return local_run.train(folder, spec, environment, viewer)


def _prepare(
    job: LocalJob, folder: Path, model: BaseModelRef, max_seq_length: int, viewer: "_Viewer"
) -> PreparedData:
    run = local_run.prepare_data(folder, job, model, max_seq_length, viewer)
    if run.exit_code == ExitCode.STOPPED:
        fail("stopped while the data were prepared: give the same command again", ExitCode.STOPPED)
    if run.exit_code != ExitCode.DONE or run.ended is None:
        _end_badly(run, folder / "prepared")
    result = run.ended.result
    prepared = PreparedData.model_validate({name: result.get(name) for name in PreparedData.model_fields})
    if job.expected:
        check_prepared(job.expected, prepared)
    return prepared


def _show_estimate(job: LocalJob, threads: int | None) -> None:
    """What the job would cost, as `luthier jobs estimate` shows it; one that would fail ends the command."""
    installed = Settings()
    model = get_local_model(installed, job.request.model, job.folder)
    device = choose_devices(installed.gpus, list_gpus())[0]
    told = estimate_local(job, model, device, threads or local_run.trainer_threads(installed))
    print_estimate(told, stderr=True)
    if not told.valid:
        raise typer.Exit(1)


def _check_adapters(job: LocalJob, model: BaseModel) -> None:
    """End the command where the adapters do not fit the model, before minutes go into loading it."""
    shape = shape_of(model)
    asked = job.hyperparameters or job.request.qlora
    problems = list(planning.unfit_adapters(shape, asked)) if shape is not None else []
    for problem in problems:
        say(f"error: {problem.message} ({problem.param})")
    if problems:
        raise typer.Exit(1)


class _Viewer:
    """Shows the events of preparation and of training, one after the other."""

    def __init__(self, display: RunDisplay) -> None:
        self._display, self._state = display, RunState(phase="checking data")

    def __call__(self, event: AnyEvent) -> None:
        match event:
            case PlanChosen():
                self._display.note(event.summary)
            case WarningRaised():
                self._display.note(f"warning: {event.message}")
            case EvalLogged() if event.eval_loss is not None:
                self._display.evaluated(event.step, event.total_steps, event.eval_loss)
            case CheckpointSaved():
                self._display.note(f"checkpoint {event.path}")
            case SampleGenerated():
                self._display.note(
                    f"answer at step {event.step}: {printable(event.text, _ANSWER_CHARACTERS)}"
                )
            case ProgressMade():
                return
        self._state = state_after(event, self._state)
        self._display.show(self._state)


def _read_job(
    arguments: list[str], settings: list[str], from_manifest: Path | None, data: list[Path] | None
) -> LocalJob:
    """The job, checked as the server would; what is wrong with it ends the command."""
    if from_manifest is not None and (arguments or settings):
        misuse("--from-manifest repeats a run as it was: leave the job file and its settings out")
    if from_manifest is None and data:
        misuse("--data is for --from-manifest: a job names its own files")
    try:
        if from_manifest is not None:
            return read_manifest(from_manifest, data or [])
        return read_local_job(arguments, settings)
    except JobFileError as error:
        misuse(str(error))
    except LuthierError as error:
        for message in [detail["message"] for detail in error.details] or [error.message]:
            say(f"error: {message}")
        raise typer.Exit(2) from error


def _end_badly(child: local_run.Child, folder: Path) -> NoReturn:
    """Say why a child failed, with every bad line that it named, and end with its exit code."""
    ended = child.ended
    say_details(ended.details if ended else [])
    message = ended.message if ended else None
    reason = message or f"the process ended with exit code {child.exit_code}"
    say(f"error: {reason} (log: {folder / local_run.LOG_NAME})")
    raise typer.Exit(child.exit_code or 1)
