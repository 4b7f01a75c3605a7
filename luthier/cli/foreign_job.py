"""A LLaMA-Factory job on its way to a server: its datasets are uploaded and registered, then it is ours.

Entered by `submitted_body`. The server reads the rows by the entry of dataset_info.json, as it would stand
on the machine of the writer.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.cli.progress import TransferDisplay
from luthier.cli.terminal import say
from luthier.cli.uploading import find_uploaded
from luthier.client import ApiError, Client
from luthier.llamafactory import convert
from luthier.llamafactory.registry import INDEX_NAME, RegisteredDataset, dataset_folder, find_datasets


def submitted_body(client: Client, given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The body to send.

    Without a dataset_info.json here the job goes as it is: the server knows datasets by their names, too.

    Args:
        folder: of the job file.
    Raises:
        LuthierError: an argument stops the job, or a dataset is not there.
        ApiError: the server refuses a file.
    """
    job = convert(given)
    for note in job.notes:
        say(f"note: {note}")
    where = dataset_folder(job.dataset_dir, folder)
    if "dataset_dir" not in given and not (where / INDEX_NAME).is_file():
        return dict(given)
    training, evaluation = find_datasets(job.datasets, where), find_datasets(job.eval_datasets, where)
    ids = {each.name: each for each in (*training, *evaluation)}
    sent = {name: _registered(client, dataset) for name, dataset in ids.items()}
    return job.with_files(
        [sent[name] for name in job.datasets], next((sent[name] for name in job.eval_datasets), None)
    )


def _registered(client: Client, dataset: RegisteredDataset) -> str:
    """The id of a dataset's file on the server."""
    path = dataset.path
    known = find_uploaded(client, path, dataset.name)
    if known is not None:
        _register(client, known.id, dataset)
        say(f"{path.name} is on the server already, as {known.id}, registered as {dataset.name}")
        return known.id
    with TransferDisplay(path.name, path.stat().st_size) as display:
        # Its rows may make no sense before the entry says how they are read.
        file_id = client.files.upload(path, on_bad_row="keep", on_bytes=display).id
    try:
        _register(client, file_id, dataset)
    except BaseException:
        # What went wrong first is what is told.
        with suppress(ApiError):
            client.files.delete(file_id)
        raise
    say(f"Uploaded {path.name} as {file_id}, registered as {dataset.name}")
    return file_id


def _register(client: Client, file_id: str, dataset: RegisteredDataset) -> None:
    """Have the name mean this file, read by the entry of today.

    Jobs that were submitted before keep the file and the entry that they were given.
    """
    registration = client.files.register(file_id, dataset.name, dataset.entry, replace=True)
    for warning in registration.warnings:
        say(f"note: {warning}")
