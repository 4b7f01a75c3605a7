"""Servers and keys under names: kept, shown without secrets, and chosen."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from luthier.cli import app
from luthier.keys import new_key

Luthier = Callable[..., Any]
KEY = new_key().text


@pytest.fixture
def run(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`run("config", "list", stdin="")`; `--profile` holds for that call alone."""

    def call(*arguments: str, stdin: str = "") -> Any:
        with monkeypatch.context() as patch:
            # What is set here is put back, and so is what the command sets.
            patch.setenv("LUTHIER_PROFILE", os.environ.get("LUTHIER_PROFILE", ""))
            return CliRunner().invoke(app, arguments, input=stdin)

    return call


def test_what_is_kept_is_used_and_its_key_is_never_shown(run: Callable[..., Any], tmp_path: Path) -> None:
    run("config", "set", "url", "http://127.0.0.1:1/v1")
    done = run("config", "set", "api_key", stdin=f"{KEY}\n")
    path = tmp_path / "config" / "luthier" / "config.toml"
    assert str(path) in done.stderr
    assert KEY in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shown = [run("config", "list"), run("config", "get", "api_key"), run("config", "list", "-o", "json")]
    assert all(each.exit_code == 0 and KEY not in each.stdout + each.stderr for each in shown)
    assert shown[1].stdout == f"{KEY[:11]}...\n"
    assert run("config", "get", "url").stdout == "http://127.0.0.1:1\n"


def test_a_profile_is_chosen_for_one_command_and_for_all(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("config", "set", "url", "http://home:1")
    run("--profile", "work", "config", "set", "url", "http://work:1")
    assert run("config", "get", "url").stdout == "http://home:1\n"
    assert run("--profile", "work", "config", "get", "url").stdout == "http://work:1\n"
    assert run("config", "use", "work").exit_code == 0
    assert run("config", "get", "url").stdout == "http://work:1\n"
    monkeypatch.setenv("LUTHIER_PROFILE", "default")
    assert run("config", "get", "url").stdout == "http://home:1\n"
    used = [row["profile"] for row in json.loads(run("config", "list", "-o", "json").stdout) if row["in_use"]]
    assert used == ["default"]


def test_the_environment_goes_before_the_profile(luthier: Luthier, monkeypatch: pytest.MonkeyPatch) -> None:
    luthier("config", "set", "url", "http://home:1")
    monkeypatch.setenv("LUTHIER_URL", "http://other:1")
    told = luthier("config", "get", "url")
    assert (told.stdout, told.stderr) == ("http://other:1\n", "from LUTHIER_URL\n")
    assert "LUTHIER_URL is set" in luthier("config", "list").stderr


def test_a_profile_that_is_named_goes_before_the_environment(
    luthier: Luthier, monkeypatch: pytest.MonkeyPatch
) -> None:
    luthier("config", "set", "url", "http://home:1")
    monkeypatch.setenv("LUTHIER_URL", "http://other:1")
    monkeypatch.setenv("LUTHIER_PROFILE", "default")
    told = luthier("config", "get", "url")
    assert (told.stdout, told.stderr) == ("http://home:1\n", "")


@pytest.mark.parametrize("kept_url", ["http://home:1", None])
def test_the_key_of_a_profile_goes_to_no_other_server(
    luthier: Luthier, monkeypatch: pytest.MonkeyPatch, kept_url: str | None
) -> None:
    if kept_url:
        luthier("config", "set", "url", kept_url)
    luthier("config", "set", "api_key", KEY)
    monkeypatch.setenv("LUTHIER_URL", "http://127.0.0.1:1")
    refused = luthier("jobs", "list")
    assert (refused.exit_code, "No API key for http://127.0.0.1:1" in refused.stderr) == (2, True)
    if kept_url:
        luthier("config", "set", "url", "http://127.0.0.1:1/v1/")
        assert luthier("config", "get", "api_key").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config", "set", "url", "nonsense"], "is not an address"),
        (["config", "set", "url", "http://[::1"], "is not an address"),
        (["config", "set", "url", "http://host:abc"], "is not an address"),
        (["config", "set", "colour", "red"], "url or api_key"),
        (["config", "use", "nowhere"], "no profile 'nowhere'"),
        (["jobs", "list"], "No server is known"),
    ],
)
def test_what_cannot_be_kept_or_found_is_told(luthier: Luthier, arguments: list[str], message: str) -> None:
    result = luthier(*arguments)
    assert (result.exit_code, message in result.output) == (2, True)


def test_a_profile_that_is_not_there_is_named(luthier: Luthier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_PROFILE", "nowhere")
    result = luthier("jobs", "list")
    assert (result.exit_code, "no profile 'nowhere'" in result.output) == (2, True)


def test_a_removed_profile_is_forgotten(luthier: Luthier, tmp_path: Path) -> None:
    luthier("config", "set", "api_key", KEY)
    luthier("config", "remove", "default")
    assert KEY not in (tmp_path / "config" / "luthier" / "config.toml").read_text()


def test_a_file_that_is_no_toml_is_named(luthier: Luthier, tmp_path: Path) -> None:
    (tmp_path / "config" / "luthier").mkdir(parents=True)
    (tmp_path / "config" / "luthier" / "config.toml").write_text("profile = [")
    result = luthier("config", "list")
    assert (result.exit_code, "config.toml cannot be read" in result.output) == (2, True)


def test_a_server_that_is_not_there_has_an_exit_code(
    luthier: Luthier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("LUTHIER_API_KEY", KEY)
    assert luthier("files", "list").exit_code == 3
