"""`luthier train`: a job on this machine without a server; its file is that of `luthier jobs create`."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from luthier import planning
from luthier.cli import local_run
from luthier.cli.job_file import FILE_FIELDS, JobFileError, apply_settings, local_files, read_job_file
from luthier.cli.progress import RunDisplay, RunState, state_after
from luthier.cli.terminal import fail, misuse, say
from luthier.devices import choose_devices, list_gpus
from luthier.errors import ExitCode
from luthier.events import AnyEvent, CheckpointSaved, PlanChosen, ProgressMade, WarningRaised
from luthier.inspection import check_config
from luthier.models import BaseModel, find_model
from luthier.settings import Settings
from luthier.spec import BaseModelRef, JobRequest, PreparedData, field_path

app = typer.Typer()


@app.command()
def train(
    job_file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The job, as YAML.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", file_okay=False, help="Run folder; default: the job file's name here."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in the output folder from its newest good checkpoint.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any field, such as qlora.r=8; may be repeated."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads; default: LUTHIER_TRAINER_THREADS, else every core."),
    ] = None,
) -> None:
    """Train without a server: check the data, train, and leave the adapter in the output folder.

    The job file is the body of `POST /v1/fine_tuning/jobs` as YAML; training_file and validation_file are
    paths relative to it, and model is a model's id (LUTHIER_MODEL_DIR) or a folder. Ctrl-C saves a checkpoint
    and ends with exit code 85; --resume goes on from there. The exit code is the trainer's.
    """
    request = _read_request(job_file, settings or [])
    installed = Settings()
    model = _find(installed, request.model, job_file.parent)
    folder = (output or Path(job_file.stem)).absolute()
    if local_run.read_spec(folder) is not None and not resume:
        misuse(f"{folder} holds a run already: give --resume to go on, or choose another --output")
    folder.mkdir(parents=True, exist_ok=True)

    reference = BaseModelRef(id=model.id, path=str(model.path), revision=model.revision)
    max_seq_length = planning.max_seq_length(request, model.context_length)
    device = choose_devices(installed.gpus, list_gpus())[0]
    with RunDisplay() as display:
        viewer = _Viewer(display)
        data = local_run.prepare_data(folder, request, reference, max_seq_length, viewer)
        if data.exit_code != ExitCode.DONE or data.ended is None:
            _end_badly(data, folder / "prepared")
        spec = local_run.plan_training(
            folder,
            request,
            reference,
            _prepared(data.ended.result),
            max_seq_length=max_seq_length,
            device=device.id,
        )
        environment = {
            **device.environment(),
            "OMP_NUM_THREADS": str(threads or local_run.trainer_threads(installed)),
        }
        run = local_run.train(folder, spec, environment, viewer)
    if run.exit_code == ExitCode.STOPPED:
        say(f"Stopped, checkpoint kept; go on with: luthier train {job_file} --output {folder} --resume")
        raise typer.Exit(run.exit_code)
    if run.exit_code != ExitCode.DONE:
        _end_badly(run, folder)
    print(folder / "artifacts" / "adapter")


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
            case CheckpointSaved():
                self._display.note(f"checkpoint {event.path}")
            case ProgressMade():
                return
        self._state = state_after(event, self._state)
        self._display.show(self._state)


def _read_request(job_file: Path, settings: list[str]) -> JobRequest:
    """The job of a file, checked as the server would; what is wrong with it ends the command."""
    try:
        body = read_job_file(job_file)
        apply_settings(body, settings)
        body |= {name: str(path) for name, path in _all_local(body).items()}
        return JobRequest.model_validate(body)
    except JobFileError as error:
        misuse(str(error))
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            say(f"error: {job_file}: {field_path(problem['loc']) or 'the job'}: {problem['msg']}")
        raise typer.Exit(2) from error


def _all_local(body: dict[str, Any]) -> dict[str, Path]:
    """The files of a job; ids of uploaded ones mean nothing without a server."""
    paths = local_files(body)
    for field in FILE_FIELDS:
        if isinstance(body.get(field), str) and field not in paths:
            raise JobFileError(f"{field}: there is no file {body[field]}; without a server it must be a path")
    return paths


def _find(settings: Settings, name: str, folder: Path) -> BaseModel:
    """A model by its id in the model folder, or by a path; one that cannot be trained ends the command."""
    path = (folder / Path(name).expanduser()).absolute()
    model = find_model(settings.models, name) or find_model(path.parent, path.name)
    if model is None:
        fail(
            f"there is no model {name} in {settings.models}, nor a folder {path}: "
            f"run `luthier models pull {name}`, or `luthier models add-sample tiny` for a model to try with"
        )
    check_config(model.path)
    return model


def _prepared(result: dict[str, Any]) -> PreparedData:
    return PreparedData.model_validate({name: result.get(name) for name in PreparedData.model_fields})


def _end_badly(child: local_run.Child, folder: Path) -> NoReturn:
    """Say why a child failed, with every bad line that it named, and end with its exit code."""
    ended = child.ended
    for detail in ended.details if ended else []:
        say(f"  {detail.get('message')}")
    message = ended.message if ended else None
    reason = message or f"the process ended with exit code {child.exit_code}"
    say(f"error: {reason} (log: {folder / local_run.LOG_NAME})")
    raise typer.Exit(child.exit_code or 1)
