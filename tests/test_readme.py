"""The README tells the truth: settings, commands, calls and links are looked up where they come from."""

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from starlette.routing import Match
from typer.main import get_command

from api.app import create_app
from luthier.cli import app
from luthier.installation import open_installation
from luthier.settings import Settings
from luthier.settings_page import page
from luthier.spec import JobRequest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OF_CLIENTS = {"LUTHIER_URL", "LUTHIER_API_KEY", "LUTHIER_PROFILE"}
OF_CHILDREN = {"LUTHIER_RUN"}


def blocks(language: str) -> list[str]:
    """The contents of the README's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    """What the README's shell blocks have a reader type; continued lines are joined, comments cut off."""
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line for line in (re.sub(r"\s#.*", "", line).strip() for line in text.splitlines()) if line]


def luthier_calls() -> list[str]:
    """Every command line of `luthier` in shell blocks and in running text."""
    typed = [line.removeprefix(".venv/bin/") for line in shell_lines()]
    told = re.findall(r"`(luthier [^`]+)`", README)
    return sorted({line for line in [*typed, *told] if line.startswith("luthier ")})


def test_the_page_of_settings_is_as_the_settings_are() -> None:
    assert (ROOT / "docs" / "settings.md").read_text("utf-8") == page()


def test_no_other_setting_is_told() -> None:
    known = {f"LUTHIER_{name.upper()}" for name in Settings.model_fields} | OF_CLIENTS | OF_CHILDREN
    found = {
        name for path in DOCUMENTS for name in re.findall(r"LUTHIER_[A-Z0-9_]+", path.read_text("utf-8"))
    }
    assert found <= known


@pytest.mark.parametrize("line", luthier_calls())
def test_every_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)[1:]
    command: Any = get_command(app)
    while words and hasattr(command, "commands"):
        word = words.pop(0)
        assert word in command.commands, f"`{line}`: there is no {word!r}"
        command = command.get_command(typer.Context(command), word)
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options, line


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = re.findall(r"`make ([a-z-]+)", README) + re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)
    assert {"demo", "test", "help"} <= set(named) <= targets


def test_the_job_of_the_curl_example_is_one() -> None:
    (body,) = re.findall(r"-d '(\{.*?\n\})'", "\n".join(blocks("sh")), re.DOTALL)
    assert (
        JobRequest.model_validate(json.loads(body.replace("'$FILE'", "file-1"))).dataset.validation_split > 0
    )


def test_the_job_of_the_python_example_is_one() -> None:
    (code,) = blocks("python")
    (call,) = [
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("jobs.create")
    ]
    values = {word.arg: word.value for word in call.keywords if word.arg != "training_file"}
    body = {str(name): ast.literal_eval(value) for name, value in values.items()}
    assert JobRequest.model_validate({"training_file": "file-1", **body.pop("extra_body"), **body})


def test_the_settings_of_the_command_line_example_are_some() -> None:
    (line,) = [line for line in shell_lines() if "jobs create" in line]
    body: dict[str, Any] = {"model": "m", "training_file": "file-1"}
    for path, value in re.findall(r"--set (\w+\.\w+)=(\S+)", line):
        group, name = path.split(".")
        body.setdefault(group, {})[name] = yaml.safe_load(value)
    assert JobRequest.model_validate(body).qlora.r > 0


def test_every_call_has_a_route(tmp_path: Path) -> None:
    routes = create_app(open_installation(Settings(data_dir=tmp_path))).router.routes
    calls = [line for line in shell_lines() if "curl " in line]
    paths = [
        re.sub(r"\?.*", "", "/v1" + path).replace("$JOB", "ftjob-1")
        for line in calls
        for path in re.findall(r"\$URL([^\s\"]+)", line)
    ]
    assert len(paths) == len(calls) > 5
    for line, path in zip(calls, paths, strict=True):
        method = "POST" if re.search(r" (-d|-F|-X POST)", line) else "GET"
        scope = {"type": "http", "path": path, "method": method, "root_path": "", "headers": []}
        assert any(route.matches(scope)[0] is Match.FULL for route in routes), line


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
