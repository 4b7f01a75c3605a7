"""`run.json` of a finished run, read to repeat the run: its settings as they are, its data by their contents.

Files are found by SHA-256 wherever they lie and whatever they are called now. Versions of libraries that
differ from those of the run are told, since they may change a number.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.artifacts import sha256_of
from luthier.cli.local_job import LocalJob
from luthier.errors import LuthierError, printable
from luthier.spec import (
    DataFile,
    DatasetEntry,
    DatasetRequest,
    JobRequest,
    PreparedData,
    RunManifest,
    WeightedFile,
    field_path,
)

_SHOWN = 12


def read_manifest(path: Path, data: Sequence[Path]) -> LocalJob:
    """The job that does a run again.

    Args:
        data: the files that it was trained on, or folders that hold them.
    Raises:
        LuthierError: `path` is no manifest that tells its files, or one of those is not among `data`.
    """
    manifest = _parsed(path)
    if not manifest.data.files:
        raise _wrong(f"{path} does not tell which files the run was trained on, so it cannot be repeated")
    if manifest.base_model.adapter_sha256 is not None:
        raise _wrong(
            f"{path} is of a run that went on from an adapter: only runs on a base model are repeated"
        )
    located = _located(manifest.data.files, data)
    return LocalJob(
        request=_request(manifest, located),
        folder=path.parent,
        output=Path(f"{path.parent.absolute().parent.name or 'run'}-again"),
        entries=_entries(manifest, located),
        notes=list(_differences(manifest)),
        hyperparameters=manifest.hyperparameters,
        expected=tuple((split.sha256, split.row_count, split.token_count) for split in manifest.data.train),
    )


def check_prepared(expected: Sequence[tuple[str, int, int]], prepared: PreparedData) -> None:
    """Compare prepared rows with those of the run that is repeated.

    Args:
        expected: SHA-256, rows and tokens of each file.
    Raises:
        LuthierError: the rows became other examples than they were then.
    """
    for (sha256, row_count, token_count), split in zip(expected, prepared.train, strict=True):
        if (split.row_count, split.token_count) != (row_count, token_count):
            raise _wrong(
                f"the data became {split.row_count} rows of {split.token_count} tokens (SHA-256 "
                f"{split.sha256}) and was {row_count} rows of {token_count} tokens (SHA-256 {sha256}) in the "
                "run: the base model's tokenizer or template, or this release's rules, are others"
            )


def _parsed(path: Path) -> RunManifest:
    try:
        return RunManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = field_path(first["loc"])
        raise _wrong(f"{path} is not a run's manifest: {place}: {first['msg']}") from error


def _located(files: Sequence[DataFile], data: Sequence[Path]) -> list[Path]:
    """Where the files of a run lie now, in its order.

    Files are hashed as far as is needed: those of the same name first.
    """
    candidates = [file for path in data for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    candidates = [file.absolute() for file in candidates if file.is_file()]
    hashes: dict[Path, str] = {}
    found = []
    for wanted in files:
        ordered = sorted(candidates, key=lambda file: file.name != wanted.filename)
        match = next((file for file in ordered if _hash(file, hashes) == wanted.sha256), None)
        if match is None:
            raise _missing(wanted, hashes)
        found.append(match)
    return found


def _hash(file: Path, known: dict[Path, str]) -> str:
    if file not in known:
        known[file] = sha256_of(file)
    return known[file]


def _missing(wanted: DataFile, hashes: Mapping[Path, str]) -> LuthierError:
    name = printable(wanted.filename)
    same = [sha256 for file, sha256 in hashes.items() if file.name == wanted.filename]
    if same:
        text = (
            f"{name} has SHA-256 {same[0]}, and the run was trained on {wanted.sha256}: it was changed since"
        )
    elif hashes:
        seen = ", ".join(f"{file.name} {sha256}" for file, sha256 in list(hashes.items())[:_SHOWN])
        text = f"no file has the SHA-256 {wanted.sha256} of {name}; looked at {seen}"
    else:
        text = f"the run was trained on {name} (SHA-256 {wanted.sha256}): give it, or its folder, with --data"
    return _wrong(text)


def _request(manifest: RunManifest, located: Sequence[Path]) -> JobRequest:
    """The request whose files are prepared as they were; its settings stand in the hyperparameters."""
    pairs = list(zip(manifest.data.files, located, strict=True))
    training = [(file, path) for file, path in pairs if file.param != "validation_file"]
    validation = [path for file, path in pairs if file.param == "validation_file"]
    weighted = [WeightedFile(id=str(path), weight=file.weight) for file, path in training]
    rules = (manifest.data.rules or DatasetRequest()).model_copy(update={"files": weighted})
    fields: dict[str, Any] = {
        "model": manifest.base_model.id,
        "training_file": str(training[0][1]),
        "validation_file": str(validation[0]) if validation else None,
        "seed": manifest.hyperparameters.seed,
        "dataset": rules.model_dump(),
        "qlora": {"max_seq_length": manifest.hyperparameters.max_seq_length},
    }
    return JobRequest.model_validate(fields)


def _entries(manifest: RunManifest, located: Sequence[Path]) -> dict[str, DatasetEntry]:
    pairs = zip(manifest.data.files, located, strict=True)
    return {str(path): file.entry for file, path in pairs if file.entry is not None}


def _differences(manifest: RunManifest) -> list[str]:
    """A line for each library that is another one now."""
    recorded = manifest.software.libraries
    installed = {name: _installed(name) for name in recorded}
    return [
        f"{name} was {then} in the run and is {installed[name] or 'not installed'} now: numbers may differ"
        for name, then in recorded.items()
        if installed[name] != then
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _wrong(text: str) -> LuthierError:
    return LuthierError(text, "invalid_value")
