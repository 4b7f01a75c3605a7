"""Base models of this machine: what a model's name is, which folders are models, which may be pulled.

A model is a folder below the model folder. `org/name` of the hub lies in `org--name`, and its `luthier.json`
tells the commit and the hashes; a folder that was put there by hand needs no such file. Names come from users
and become paths here alone, behind `check_model_id`. What is unfinished lies in `.partial`, never listed.
"""

import fcntl
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, ValidationError

from luthier.artifacts import FileEntry
from luthier.errors import LuthierError, printable
from luthier.inspection import CONFIG, check_config, read_object
from luthier.planning import ModelShape, ShapeError
from luthier.spec import Frozen

RECORD = "luthier.json"
_UNFINISHED = ".partial"
_MAX_ID_CHARACTERS = 96
# ASCII, so that no letter of another script can look like one of these.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"{_PART}(?:/{_PART})?")
_TEMPORARY = (".tmp", ".partial", ".git")
_LISTED_IN_MESSAGE = 20


class PullRecord(Frozen):
    """`luthier.json`: where a pulled model came from, and what came."""

    id: str
    commit: str
    pulled_at: AwareDatetime
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine.

    Attributes:
        path: absolute folder.
        revision: commit on the hub, or None for a folder that did not come from there.
        created_at: when it was pulled, or when its config.json was written; aware, UTC.
        context_length: in tokens, or None where config.json does not tell.
        smallest_dimension: shortest side of a linear layer, which LoRA's r should not pass; None if unknown.
    """

    id: str
    path: Path
    revision: str | None
    created_at: datetime
    size_bytes: int
    architecture: str
    context_length: int | None
    smallest_dimension: int | None
    has_chat_template: bool


def shape_of(model: BaseModel) -> ModelShape | None:
    """What a model is made of, to plan with; None where its config.json does not tell."""
    try:
        return ModelShape.from_config(read_object(model.path / CONFIG))
    except (LuthierError, ShapeError):
        return None


def check_model_id(model_id: str) -> str:
    """The id itself, when it has the form of one.

    Raises:
        LuthierError: `invalid_model`.
    """
    if not _is_well_formed(model_id):
        raise LuthierError(
            f"{printable(model_id)!r} is not a model name: write `name` for a folder here, or "
            f"`organisation/name` for the hub; at most {_MAX_ID_CHARACTERS} letters A-Z, digits, `-`, `_` "
            "and `.`, without `--`, `..`, a path, an address or a revision",
            "invalid_model",
            "model",
        )
    return model_id


def is_allowed(model_id: str, allow: Sequence[str]) -> bool:
    """Whether an id may be pulled from the hub: it has an organisation and matches one of the patterns."""
    if not _is_well_formed(model_id) or "/" not in model_id:
        return False
    return any(fnmatchcase(model_id, pattern) for pattern in allow)


def find_model(model_dir: Path, model_id: str) -> BaseModel | None:
    """The model of that id, if it is on this machine."""
    return _read_model(model_folder(model_dir, model_id)) if _is_well_formed(model_id) else None


def list_models(model_dir: Path) -> list[BaseModel]:
    """All models on this machine, by id."""
    folders = model_dir.iterdir() if model_dir.is_dir() else ()
    models = (_read_model(folder) for folder in folders)
    return sorted((model for model in models if model is not None), key=lambda model: model.id)


def require_known(model_dir: Path, model_id: str, allow: Sequence[str]) -> BaseModel | None:
    """What a job needs at submit: the local model, or None where it will be pulled at its first use.

    Raises:
        LuthierError: `invalid_model` for a name that is malformed, or neither local nor allowed;
            `model_not_supported` for a local folder that cannot be used.
    """
    folder = model_folder(model_dir, model_id)
    if folder.is_dir():
        return _checked(folder, _stamp(folder))
    if is_allowed(model_id, allow):
        return None
    raise LuthierError(
        f"There is no model {model_id!r} here. {choice_of_models(model_dir, allow)}", "invalid_model", "model"
    )


def choice_of_models(model_dir: Path, allow: Sequence[str]) -> str:
    """Which names would do, in words."""
    local = [model.id for model in list_models(model_dir)]
    more = f" and {len(local) - _LISTED_IN_MESSAGE} more" if len(local) > _LISTED_IN_MESSAGE else ""
    have = f"Models here: {', '.join(local[:_LISTED_IN_MESSAGE])}{more}." if local else (
        "No model is here yet; `luthier models add-sample tiny` adds one."
    )  # fmt: skip
    hub = f" Ids of the hub that may be used: {', '.join(allow)}." if allow else ""
    return have + hub


def model_folder(model_dir: Path, model_id: str) -> Path:
    """Where a model of that id lies or will lie.

    Raises:
        LuthierError: `invalid_model`.
    """
    return model_dir / check_model_id(model_id).replace("/", "--")


@contextmanager
def reserved(model_dir: Path, model_id: str) -> Iterator[Path]:
    """Wait until nobody else on this machine makes that model; yields the folder for unfinished files."""
    unfinished = model_dir / _UNFINISHED
    name = model_folder(model_dir, model_id).name
    unfinished.mkdir(parents=True, exist_ok=True)
    with (unfinished / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield unfinished


def _is_well_formed(model_id: str) -> bool:
    return (
        len(model_id) <= _MAX_ID_CHARACTERS
        and _ID.fullmatch(model_id) is not None
        and not any(forbidden in model_id for forbidden in ("--", ".."))
        and not model_id.endswith(_TEMPORARY)
    )


_Stamp = tuple[tuple[str, int, int, int], ...]


def _stamp(folder: Path) -> _Stamp:
    """What changes with a folder's files: their names, inodes, sizes and times of change."""
    return tuple(sorted(_stamp_of(path) for path in folder.iterdir()))


def _stamp_of(path: Path) -> tuple[str, int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return path.name, 0, 0, 0
    return path.name, found.st_ino, found.st_size, found.st_mtime_ns


# To read a model's settings and the headers of its weights takes milliseconds, and every submit asks for it.
@lru_cache(maxsize=64)
def _checked(folder: Path, stamp: _Stamp) -> BaseModel | None:  # noqa: ARG001, part of the cache's key
    check_config(folder)
    return _read_model(folder)


def _read_model(folder: Path) -> BaseModel | None:
    """The model in a folder; None where it is something else, or is being removed."""
    model_id = folder.name.replace("--", "/", 1)
    if not _is_well_formed(model_id) or not (folder / CONFIG).is_file():
        return None
    try:
        return _describe(folder, model_id, read_object(folder / CONFIG))
    except (LuthierError, FileNotFoundError):
        return None


def _describe(folder: Path, model_id: str, config: dict[str, Any]) -> BaseModel:
    record = _read_record(folder)
    written = datetime.fromtimestamp((folder / CONFIG).stat().st_mtime, UTC)
    architectures = config.get("architectures")
    return BaseModel(
        id=model_id,
        path=folder.absolute(),
        revision=record.commit if record else None,
        created_at=record.pulled_at if record else written,
        size_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "",
        context_length=_number(config, "max_position_embeddings", "n_positions"),
        smallest_dimension=_smallest_dimension(config),
        has_chat_template=_has_chat_template(folder),
    )


def _read_record(folder: Path) -> PullRecord | None:
    try:
        return PullRecord.model_validate_json((folder / RECORD).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _smallest_dimension(config: dict[str, Any]) -> int | None:
    """The shortest side of the attention's and the feed-forward's projections."""
    hidden = _number(config, "hidden_size", "n_embd")
    heads = _number(config, "num_attention_heads", "n_head")
    if hidden is None or heads is None:
        return hidden
    head = _number(config, "head_dim") or hidden // heads
    keys = head * (_number(config, "num_key_value_heads") or heads)
    inner = _number(config, "moe_intermediate_size", "intermediate_size") or hidden
    return min(hidden, head * heads, keys, inner)


def _number(config: dict[str, Any], *names: str) -> int | None:
    """The first of some settings that is a positive whole number; a nested `text_config` comes first."""
    nested = config.get("text_config")
    settings = config | nested if isinstance(nested, dict) else config
    found = (settings.get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    return any(
        bool(_optional(folder / name).get("chat_template"))
        for name in ("tokenizer_config.json", "chat_template.json")
    )


def _optional(path: Path) -> dict[str, Any]:
    """The object in a file that may be missing or broken; then an empty one."""
    try:
        return read_object(path)
    except LuthierError:
        return {}
