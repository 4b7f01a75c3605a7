"""Looks at a file of this machine without a server, by the same child process that a server would start.

The child and its spec are those of a cpu agent, so what is shown here is what the server would show. Its
failure ends the command in its own words.
"""

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luthier import planning
from luthier.cli import local_run
from luthier.cli.local_model import get_local_model
from luthier.cli.terminal import fail
from luthier.errors import ExitCode
from luthier.processes import module_command
from luthier.settings import Settings
from luthier.spec import (
    BaseModelRef,
    Columns,
    ConvertSpec,
    DatasetRequest,
    DatasetSpec,
    ModelView,
    PreviewSpec,
    SourceFile,
    ValidateSpec,
)

RUN: dict[str, Any] = {"job_id": local_run.JOB_ID, "run": 1, "epoch": 1}


def check(
    path: Path, columns: Columns | None, model: str | None, against: Path | None = None
) -> dict[str, Any]:
    """The validation report of a file; with a model also what the rows are for it.

    Args:
        against: a validation file with the same columns; a warning tells of rows that both have.
    """
    view = None if model is None else view_of(model, DatasetRequest(columns=columns))
    other = None if against is None else _source(against, columns)
    spec = ValidateSpec(**RUN, file=_source(path, columns), view=view, against=other)
    report: dict[str, Any] = run_look(spec)["report"]
    return report


def preview(path: Path, view: ModelView, *, offset: int, count: int) -> list[dict[str, Any]]:
    """Rows of a file as a model sees them."""
    source = _source(path, view.dataset.columns)
    rows: list[dict[str, Any]] = run_look(
        PreviewSpec(**RUN, file=source, view=view, offset=offset, count=count)
    )["rows"]
    return rows


def convert(path: Path, columns: Columns | None, target: Path) -> int:
    """Write the rows of a file as Alpaca rows; returns how many."""
    with tempfile.TemporaryDirectory() as folder:
        count = run_look(ConvertSpec(**RUN, file=_source(path, columns)), Path(folder))["row_count"]
        shutil.copyfile(Path(folder) / "artifacts" / "rows.jsonl", target)
    return int(count)


def view_of(name: str, rules: DatasetRequest, max_seq_length: int | None = None) -> ModelView:
    """A look for a model of this machine, by its id or its folder; an unusable one ends the command."""
    model = get_local_model(Settings(), name)
    length = planning.max_seq_length(max_seq_length, model.context_length)
    ref = BaseModelRef(id=model.id, path=str(model.path), revision=model.revision)
    return ModelView(model=ref, dataset=rules, max_seq_length=length)


def run_look(spec: DatasetSpec, folder: Path | None = None) -> dict[str, Any]:
    """The result of a child; its failure ends the command in its words."""
    if find_spec("tokenizers") is None:
        fail("looking at files of this machine needs packages: pip install 'luthier[server]'")
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            return run_look(spec, Path(scratch))
    (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    child = local_run.run_child(
        module_command("luthier.datasets", str(folder)), folder, {}, lambda _event: None
    )
    if child.exit_code != ExitCode.DONE or child.ended is None:
        log = (folder / local_run.LOG_NAME).read_text(encoding="utf-8", errors="replace").strip()
        fail((child.ended.message if child.ended else None) or f"the process failed: {log[-500:]}")
    return child.ended.result


def _source(path: Path, columns: Columns | None) -> SourceFile:
    return SourceFile(path=str(path.absolute()), filename=path.name, param="file", columns=columns)
