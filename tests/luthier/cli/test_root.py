"""The command line as a whole: help everywhere, clear refusals, and commands whose packages are missing."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from luthier import __version__
from luthier.cli import app


def all_commands() -> Iterator[tuple[str, ...]]:
    """Every command by the words that call it."""

    def visit(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        if isinstance(command, TyperGroup):
            for name, child in command.commands.items():
                yield from visit(child, (*path, name))

    return visit(get_command(app), ())


@pytest.mark.parametrize("words", list(all_commands()), ids=" ".join)
def test_every_command_has_help_that_says_something(
    luthier: Callable[..., Any], words: tuple[str, ...]
) -> None:
    result = luthier(*words, "--help")
    assert result.exit_code == 0, result.output
    said = result.output.partition("Usage:")[2].split("─")[0].splitlines()[1:]
    assert len(" ".join(said).split()) >= 3


def test_the_version_is_told(luthier: Callable[..., Any]) -> None:
    assert luthier("--version").output == f"luthier {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jobs", "create"], "a job needs a model and a training file"),
        (["jobs", "create", "--model", "tiny", "--training-file", "no.jsonl"], "there is no file no.jsonl"),
        (["jobs", "create", "--set", "qlora.r"], "name=value"),
        (["jobs", "create", "--set", "qlora.learning_rate=.nan"], "the number is not finite"),
        (["jobs", "create", "-f", "no.yaml"], "no.yaml"),
        (["files", "upload", "no.jsonl"], "no.jsonl"),
        (["keys", "create", "--name", ""], "--name has 0 characters"),
        (["models", "add-sample", "huge"], "choose one of tiny"),
        (["models", "pull", "evil/model"], "LUTHIER_MODEL_ALLOW"),
        (["worker", "--queue", "gpu"], "gpu"),
        (["up", "--port", "70000"], "--port"),
        (["train", "no.yaml"], "no.yaml"),
        (["jobs", "delete", "ftjob-1"], "give --yes"),
        (["jobs", "diff", "ftjob-1", "ftjob-1"], "two jobs or more"),
        (["jobs", "list", "--metadata", "team"], "key=value"),
        (["jobs", "annotate", "ftjob-1", "team"], "KEY=VALUE"),
        (["jobs", "events", "ftjob-1", "-f", "-o", "csv"], "use -o table, jsonl or id"),
        (["jobs", "list", "-o", "xml"], "xml"),
        (["jbos"], "Did you mean 'jobs'"),
    ],
)
def test_wrong_use_exits_2_with_a_clear_line(
    luthier: Callable[..., Any], arguments: list[str], message: str
) -> None:
    result = luthier(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_setting_that_cannot_be_read_is_named(
    luthier: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_PORT", "eighty")
    result = luthier("settings")
    assert result.exit_code == 1
    assert "error: LUTHIER_PORT: Input should be a valid integer" in result.output


def test_without_the_servers_packages_the_client_works_and_the_rest_says_what_to_install() -> None:
    # None in sys.modules makes an import fail as if the package were not installed.
    missing = ["sqlalchemy", "alembic", "pysqlite3", "fastapi", "celery", "redis", "huggingface_hub", "torch"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); from luthier.cli import main; main()"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("jobs", "list", "--help").returncode == 0
    assert "Not installed" in run("--help").stdout
    up = run("up", "--port", "0")
    assert up.returncode == 1
    assert "pip install 'luthier[server]'" in up.stderr
