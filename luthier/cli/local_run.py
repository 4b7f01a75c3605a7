"""A training run without a server: the trainer's own processes, started and followed from here.

OUTPUT is the run folder of the training process: its spec, events, log, checkpoints and artifacts.
`OUTPUT/prepared` is the one of the preparation that goes before. Both are what a worker would make.
"""

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from luthier import planning
from luthier.artifacts import ManifestError, sha256_of, verify
from luthier.cli.local_job import LocalJob
from luthier.devices import CPU
from luthier.errors import invalid
from luthier.events import AnyEvent, RunEnded, read_events
from luthier.processes import die_with_parent, import_path, module_command
from luthier.settings import Settings
from luthier.spec import (
    MAX_SEED,
    BaseModelRef,
    JobRequest,
    PreparedData,
    PreparedSplit,
    PrepareSpec,
    SourceFile,
    TrainSpec,
    data_origin,
)

JOB_ID = "local"
LOG_NAME = "log.txt"
_LOOK_SECONDS = 0.2
_VALIDATION = "validation_file"

OnEvent = Callable[[AnyEvent], None]


@dataclass(frozen=True)
class Child:
    """How a child process ended: its exit code (128 and more for a signal) and its last word."""

    exit_code: int
    ended: RunEnded | None


def prepare_data(
    output: Path, job: LocalJob, model: BaseModelRef, max_seq_length: int, on_event: OnEvent
) -> Child:
    """Check, render and tokenise the job's files into `OUTPUT/prepared`."""
    folder = output / "prepared"
    folder.mkdir(parents=True, exist_ok=True)
    sources = sources_of(job)
    spec = PrepareSpec(
        job_id=JOB_ID,
        run=1,
        epoch=1,
        model=model,
        train=tuple(source for source in sources if source.param != _VALIDATION),
        validation=next((source for source in sources if source.param == _VALIDATION), None),
        dataset=job.request.dataset,
        max_seq_length=max_seq_length,
    )
    _write_spec(folder, spec)
    return run_child(module_command("luthier.datasets", str(folder)), folder, {}, on_event)


def plan_training(
    output: Path,
    job: LocalJob,
    model: BaseModelRef,
    prepared: PreparedData,
    *,
    max_seq_length: int,
    device: str,
) -> TrainSpec:
    """The spec of a run on data that `prepare_data` has left; resumes where OUTPUT has a checkpoint.

    A seed that the request leaves open is drawn, and stays the same in what resumes.
    """
    before = read_spec(output)
    settings = job.hyperparameters or planning.resolve(
        job.request,
        prepared.train_row_count,
        max_seq_length,
        _seed(job.request, before),
        token_count=prepared.train_token_count,
        longest=max(split.longest_row_tokens for split in prepared.train) or None,
    )
    return TrainSpec(
        job_id=JOB_ID,
        run=before.run + 1 if before else 1,
        epoch=before.epoch + 1 if before else 1,
        model=model,
        data=PreparedData(
            train=tuple(_located(output, split) for split in prepared.train),
            validation=_located(output, prepared.validation) if prepared.validation else None,
            chat_template=prepared.chat_template,
        ),
        hyperparameters=settings,
        resume_from=newest_checkpoint(output) if before else None,
        device="cpu" if device == CPU else "cuda",
        **data_origin(job.request.dataset, _hashed(sources_of(job))),
    )


def train(output: Path, spec: TrainSpec, environment: Mapping[str, str], on_event: OnEvent) -> Child:
    """Run the trainer in OUTPUT; a signal to end makes it save a checkpoint first."""
    _write_spec(output, spec)
    return run_child(module_command("trainer", str(output)), output, environment, on_event)


def read_spec(output: Path) -> TrainSpec | None:
    """The spec of the last training run in OUTPUT; None where none has been.

    Raises:
        LuthierError: there is one that this release cannot read.
    """
    path = output / "spec.json"
    if not path.exists():
        return None
    try:
        return TrainSpec.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise invalid(
            f"{path} is not the spec of a training run of this release: choose another --output"
        ) from error


def sources_of(job: LocalJob) -> list[SourceFile]:
    """The files of a job, those for training first."""
    request = job.request
    named = [
        _source(job, path, "dataset.files" if number else "training_file", weight)
        for number, (path, weight) in enumerate(request.training_files.items())
    ]
    if request.validation_file is not None:
        named.append(_source(job, request.validation_file, _VALIDATION))
    return named


def trainer_threads(settings: Settings) -> int:
    """LUTHIER_TRAINER_THREADS where it is set, else every core: a run by hand has the machine to itself."""
    is_set = "trainer_threads" in settings.model_fields_set
    return settings.trainer_threads if is_set else len(os.sched_getaffinity(0))


def newest_checkpoint(output: Path) -> str | None:
    """The checkpoint with the most steps whose files are what its manifest says; None where there is none."""
    folders = [path for path in (output / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
    for folder in sorted(folders, key=lambda path: int(path.name[5:]), reverse=True):
        try:
            verify(folder)
        except ManifestError:
            continue
        return str(folder)
    return None


def run_child(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], on_event: OnEvent
) -> Child:
    """Run a child in its run folder, hand on its events as they come, and wait for its end.

    SIGINT and SIGTERM become a SIGTERM to the child, which then saves and ends; a second one kills it.
    """
    events_path = folder / "events.jsonl"
    offset = events_path.stat().st_size if events_path.exists() else 0
    ended: RunEnded | None = None
    with (folder / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env={**os.environ, **import_path(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C reaches us alone.
            process_group=0,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509, it calls the kernel and no more
        )
    with _signals_passed_on(process):
        is_over = False
        while not is_over:
            # Asked before reading: what the child wrote before its end is then read for certain.
            is_over = process.poll() is not None
            for event, behind in read_events(events_path, offset):
                offset = behind
                ended = event if isinstance(event, RunEnded) else ended
                on_event(event)
            if not is_over:
                time.sleep(_LOOK_SECONDS)
    code = process.returncode
    return Child(code if code >= 0 else 128 - code, ended)


@contextmanager
def _signals_passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    asked = False

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        process.send_signal(signal.SIGKILL if asked else signal.SIGTERM)
        asked = True

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _seed(request: JobRequest, before: TrainSpec | None) -> int:
    asked = request.seed if request.seed is not None else request.qlora.seed
    if asked is not None:
        return asked
    return before.hyperparameters.seed if before else secrets.randbelow(MAX_SEED + 1)


def _source(job: LocalJob, path: str, param: str, weight: float = 1.0) -> SourceFile:
    entry = job.entries.get(path)
    fields = {
        "path": path,
        "filename": Path(path).name,
        "param": param,
        "weight": weight,
        "entry": entry,
        "columns": job.request.dataset.columns if entry is None else None,
    }
    return SourceFile.model_validate(fields)


def _hashed(sources: Sequence[SourceFile]) -> list[SourceFile]:
    return [source.model_copy(update={"sha256": sha256_of(Path(source.path))}) for source in sources]


def _located(output: Path, split: PreparedSplit) -> PreparedSplit:
    return split.model_copy(update={"path": str((output / "prepared" / split.path).absolute())})


def _write_spec(folder: Path, spec: PrepareSpec | TrainSpec) -> None:
    (folder / "spec.json").write_text(spec.model_dump_json(indent=1), encoding="utf-8")
