"""Who may import whom: the table of docs/architecture.md, read from the source and held.

The table is `ZONES` below. A violation names file, line and rule. Imports stand at the top of a file, so that
the table can be read from there; tests are free of that rule alone.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("luthier", "api", "worker", "trainer", "migrations")

CORE = frozenset({"spec", "status", "events", "errors", "artifacts", "planning"})
TORCH = frozenset({"torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets"})
DATABASE = frozenset({"sqlalchemy", "alembic", "psycopg", "pysqlite3"})
CELERY = frozenset({"celery", "kombu"})
WEB = frozenset({"fastapi", "starlette", "uvicorn"})


@dataclass(frozen=True)
class Zone:
    """One row of the table.

    Attributes:
        ours: zones of our own that it may import.
        never: libraries that it may not import.
        only: where given, the only libraries beside Python's own that it may import.
    """

    ours: frozenset[str]
    never: frozenset[str] = frozenset()
    only: frozenset[str] | None = None


_DATA_LIBRARIES = {"tokenizers", "jinja2", "orjson", "msgspec", "pyarrow", "zstandard"}
ZONES = {
    "core": Zone(frozenset({"core"}), only=frozenset({"pydantic"})),
    "datasets": Zone(frozenset({"core", "datasets"}), only=frozenset({"pydantic"} | _DATA_LIBRARIES)),
    "luthier": Zone(frozenset({"core", "datasets", "luthier"}), never=TORCH | {"fastapi", "starlette"}),
    "api": Zone(frozenset({"core", "datasets", "luthier", "api"}), never=TORCH | CELERY),
    "worker": Zone(frozenset({"core", "datasets", "luthier", "worker"}), never=TORCH | WEB),
    "trainer": Zone(frozenset({"core", "datasets", "trainer"}), never=DATABASE | CELERY | {"fastapi"}),
    "migrations": Zone(frozenset({"core", "luthier"}), never=TORCH | CELERY | WEB),
}

# Libraries that have one place each, as the beginnings of paths.
PLACES = {
    **dict.fromkeys(CELERY, ("luthier/queue.py", "worker/")),
    "httpx": ("luthier/client/", "luthier/webhooks/"),
    "botocore": ("luthier/storage/",),
    "typer": ("luthier/cli/",),
    "rich": ("luthier/cli/",),
    "starlette": ("api/", "trainer/serving/"),
}
# Queries belong to luthier/repository.py and luthier/service/; the API has sessions, not statements.
STATEMENTS = frozenset({"select", "insert", "update", "delete", "text", "func"})
# Migrations build what the tables describe, and need nothing else of the domain.
FOR_MIGRATIONS = frozenset({"luthier.tables", "luthier.status"})
# Imports inside a function that may stay there, each for a reason that the source tells.
LATE = frozenset(
    {("trainer/__main__.py", "trainer.process.run"), ("trainer/process.py", "trainer.recipe.train")}
)
LOST_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})


@dataclass(frozen=True)
class Import:
    """One imported module, or name of a module, and the line where that is done."""

    module: str
    line: int
    in_function: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def sources() -> list[Path]:
    """All Python files of our packages, relative to the root."""
    return sorted(path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def zone_of(module: str) -> str:
    """The row of the table that one of our modules belongs to."""
    package, _, rest = module.partition(".")
    if package != "luthier":
        return package
    # The package itself is imported by whoever imports a part of it, so it is held to the strictest row.
    part = rest.partition(".")[0]
    if part == "" or part in CORE:
        return "core"
    return "datasets" if part == "datasets" else "luthier"


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, source: str) -> Iterator[Import]:
    """Every import of a file; `from a import b` names `a.b`, which may be a module or a name in one."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path.parent / "__init__.py")

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(f"{module}.{alias.name}", node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "importlib.import_module",
        ):
            yield Import(ast.unparse(node), node.lineno, True)
        deeper = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, deeper)

    return visit(ast.parse(source), False)


def violations(path: Path, source: str) -> Iterator[str]:
    """What a file does against the table, each as `file:line: rule`."""
    name = path.as_posix()
    for found in imports_of(path, source):
        for rule in (_place_in_file(path, found), _edge(path, found), _library(path, found)):
            if rule is not None:
                yield f"{name}:{found.line}: imports {found.module}, but {rule}"


def _place_in_file(path: Path, found: Import) -> str | None:
    if found.in_function and (path.as_posix(), found.module) not in LATE:
        return "imports stand at the top of a file: two modules that need each other want a third"
    return None


def _edge(path: Path, found: Import) -> str | None:
    """The rule that an import of one of our own modules breaks."""
    if found.top not in PACKAGES:
        return None
    here, there = zone_of(module_of(path)), zone_of(_existing(found.module))
    if here == "migrations" and there != here and _existing(found.module) not in FOR_MIGRATIONS:
        return f"migrations may import {' and '.join(sorted(FOR_MIGRATIONS))} only"
    if there != here and there not in ZONES[here].ours:
        return f"{here} may import {', '.join(sorted(ZONES[here].ours))} of ours, not {there}"
    return None


def _library(path: Path, found: Import) -> str | None:
    """The rule that an import of somebody else's module breaks."""
    top, here, name = found.top, zone_of(module_of(path)), path.as_posix()
    if top in PACKAGES or top in sys.stdlib_module_names:
        return None
    zone = ZONES[here]
    if zone.only is not None and top not in zone.only:
        return f"{here} may import {', '.join(sorted(zone.only))} and no other library"
    if top in zone.never:
        return f"{here} may never import {top}"
    if top in PLACES and not name.startswith(PLACES[top]):
        return f"{top} may be imported in {' and '.join(PLACES[top])} only"
    if here == "api" and top == "sqlalchemy" and found.module.rpartition(".")[2] in STATEMENTS:
        return "the API has no queries of its own: they belong to luthier/repository.py"
    return None


def _existing(module: str) -> str:
    """The module itself, or the one that holds the name which stands last in it."""
    path = ROOT.joinpath(*module.split("."))
    return module if path.is_dir() or path.with_suffix(".py").is_file() else module.rpartition(".")[0]


def test_every_import_is_one_that_the_table_allows() -> None:
    found = [line for path in sources() for line in violations(path, (ROOT / path).read_text("utf-8"))]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "rule"),
    [
        ("luthier/spec.py", "import orjson", "pydantic and no other library"),
        ("luthier/spec.py", "from luthier import settings", "not luthier"),
        ("luthier/__init__.py", "from luthier.tables import Job", "not luthier"),
        ("luthier/datasets/rows.py", "import sqlalchemy", "no other library"),
        ("luthier/datasets/rows.py", "from luthier.tables import Job", "not luthier"),
        ("luthier/datasets/rows.py", "from ..settings import Settings", "not luthier"),
        ("luthier/models.py", "import torch.nn as nn", "never import torch"),
        ("luthier/models.py", "import httpx", "luthier/client/ and luthier/webhooks/ only"),
        ("luthier/client/http.py", "from rich.table import Table", "luthier/cli/ only"),
        ("luthier/cli/up.py", "from worker import agent", "not worker"),
        ("luthier/storage/files.py", "from celery import Celery", "luthier/queue.py and worker/ only"),
        ("api/app.py", "from trainer.model import load", "not trainer"),
        ("api/routes/jobs.py", "from sqlalchemy import select", "no queries of its own"),
        ("worker/agent.py", "import transformers", "never import transformers"),
        ("worker/tasks.py", "def drain():\n    from worker import agent", "top of a file"),
        ("worker/tasks.py", "drain = lambda: importlib.import_module('torch')", "top of a file"),
        ("trainer/recipe.py", "from luthier.tables import Job", "not luthier"),
        ("trainer/recipe.py", "from starlette.applications import Starlette", "trainer/serving/ only"),
        ("migrations/versions/0001.py", "from luthier import settings", "luthier.tables only"),
    ],
)
def test_the_check_sees(path: str, source: str, rule: str) -> None:
    found = list(violations(Path(path), source))
    assert len(found) == 1
    assert found[0].startswith(f"{path}:")
    assert rule in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "luthier/datasets/rows.py",
            "import orjson\nfrom luthier.spec import SourceFile\nfrom . import readers",
        ),
        ("luthier/queue.py", "from celery import Celery"),
        ("api/routes/jobs.py", "from fastapi import Depends\nfrom sqlalchemy.orm import Session"),
        ("trainer/serving/app.py", "import torch\nfrom starlette.routing import Route"),
        ("worker/agent.py", "if TYPE_CHECKING:\n    from luthier.tables import Job"),
    ],
)
def test_the_check_lets_pass(path: str, source: str) -> None:
    assert list(violations(Path(path), source)) == []


@pytest.mark.parametrize("module", ["api.app", "luthier.cli"])
def test_importing_it_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({set(TORCH)!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == ""


def test_no_module_is_named_for_what_is_left_over() -> None:
    parts = [(path, part) for path in sources() for part in (*path.parent.parts, path.stem)]
    assert [str(path) for path, part in parts if part in LOST_NAMES] == []
