"""What `luthier train` is to do, from whatever it was told by: a job file, flags, or a run's manifest.

A job of LLaMA-Factory's is converted, and its datasets are found in its dataset_dir.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.cli.flags import Words, read_words
from luthier.cli.job_file import FILE_FIELDS, JobFileError, apply_settings, local_files, read_job_file
from luthier.datasets.entries import resolve_entry
from luthier.datasets.examples import DatasetError
from luthier.errors import LuthierError
from luthier.llamafactory import convert, is_llamafactory
from luthier.llamafactory.registry import dataset_folder, find_datasets
from luthier.request_errors import parse_job
from luthier.spec import DatasetEntry, Hyperparameters, JobRequest


@dataclass(frozen=True)
class LocalJob:
    """A job on this machine.

    Attributes:
        request: with absolute paths where a server would have ids.
        folder: that a model's path is relative to.
        output: the run folder, unless another is asked for.
        entries: of dataset_info.json, by the path of the file.
        notes: what is done otherwise than the writer may think.
        hyperparameters: of a run that is repeated; None where they follow from the request.
        expected: SHA-256, rows and tokens of each prepared training file of that run.
    """

    request: JobRequest
    folder: Path
    output: Path
    entries: Mapping[str, DatasetEntry] = field(default_factory=dict)
    notes: Sequence[str] = ()
    hyperparameters: Hyperparameters | None = None
    expected: tuple[tuple[str, int, int], ...] = ()

    def description(self) -> dict[str, Any]:
        """The job as it would run, for `--dry-run`."""
        described: dict[str, Any] = {
            "job": self.request.model_dump(mode="json", exclude_none=True),
            "output": str(self.output),
            "notes": list(self.notes),
        }
        if self.hyperparameters is not None:
            described["hyperparameters"] = self.hyperparameters.model_dump(mode="json")
        return described


def read_local_job(arguments: Sequence[str], settings: Sequence[str]) -> LocalJob:
    """The job that the words of the command line describe.

    Raises:
        JobFileError: the words, or the job file, cannot be read.
        LuthierError: the job is not one, an argument of LLaMA-Factory's stops it, or a dataset is not there.
    """
    words = read_words(arguments)
    body = _body(words)
    apply_settings(body, [*words.settings, *settings])
    folder = words.file.parent if words.file else Path()
    if is_llamafactory(body):
        return _converted(body, folder, words.file)
    if words.file is None:
        given = ", ".join(f"--{name}" for name in list(words.flags)[:3])
        raise JobFileError(
            "give a job file, or LLaMA-Factory's flags with --model_name_or_path"
            + (f"; {given} alone make no job" if given else "")
        )
    body |= {name: str(path) for name, path in _all_local(body).items()}
    return LocalJob(parse_job(body), folder, Path(words.file.stem))


def _body(words: Words) -> dict[str, Any]:
    if words.file is None:
        return dict(words.flags)
    if not words.file.is_file():
        raise JobFileError(f"there is no job file {words.file}")
    body = read_job_file(words.file)
    if words.flags and not is_llamafactory(body):
        name = next(iter(words.flags))
        raise JobFileError(f"there is no option --{name}: fields of a job file are changed by --set")
    return body | words.flags


def _converted(body: dict[str, Any], folder: Path, file: Path | None) -> LocalJob:
    """A job of LLaMA-Factory's with its datasets' files."""
    job = convert(body)
    where = dataset_folder(job.dataset_dir, folder)
    training, evaluation = find_datasets(job.datasets, where), find_datasets(job.eval_datasets, where)
    entries, warnings = {}, []
    for dataset in {each.name: each for each in (*training, *evaluation)}.values():
        entry, odd = _resolved(dataset.entry, dataset.name)
        entries[str(dataset.path)] = entry
        warnings += odd
    request = job.with_files(
        [str(dataset.path) for dataset in training], str(evaluation[0].path) if evaluation else None
    )
    output = Path(job.output_dir).expanduser() if job.output_dir else Path(file.stem if file else "output")
    return LocalJob(parse_job(request), folder, output, entries, [*job.notes, *warnings])


def _resolved(raw: Mapping[str, Any], name: str) -> tuple[DatasetEntry, list[str]]:
    try:
        entry, issues = resolve_entry(dict(raw), name)
    except DatasetError as error:
        raise LuthierError(f"dataset {name!r}: {error}", "invalid_value", "dataset") from error
    return entry, [issue.message for issue in issues]


def _all_local(body: dict[str, Any]) -> dict[str, Path]:
    """The files of a job; ids of uploaded ones mean nothing without a server."""
    paths = local_files(body)
    for field_name in FILE_FIELDS:
        if isinstance(body.get(field_name), str) and field_name not in paths:
            raise JobFileError(
                f"{field_name}: there is no file {body[field_name]}; without a server it must be a path"
            )
    return paths
