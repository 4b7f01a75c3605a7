"""Keys, settings and the schema from the command line."""

import getpass
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from luthier import schema
from luthier.cli import app
from luthier.database import clock
from luthier.errors import LuthierError
from luthier.installation import open_installation
from luthier.keys import parse_key
from luthier.service import access
from luthier.settings import Settings
from luthier.tables import AuditLog

Luthier = Callable[..., Any]


def entry(text: str) -> str | None:
    """The key's id, when it opens the installation of the settings."""
    installation = open_installation(Settings())
    try:
        with installation.database.reading() as session:
            return access.authenticate(
                session, text, installation_key=installation.installation_key, now=clock(session)
            ).caller.api_key_id
    except LuthierError:
        return None
    finally:
        installation.database.close()


def test_a_created_key_opens_until_it_is_revoked(luthier: Luthier) -> None:
    assert luthier("db", "upgrade").exit_code == 0
    text = luthier("keys", "create", "--name", "ann").stdout.strip()
    assert entry(text) is not None
    assert luthier("keys", "revoke", text[3:11]).exit_code == 0
    assert entry(text) is None


def test_a_list_shows_no_secret(luthier: Luthier) -> None:
    luthier("db", "upgrade")
    text = luthier("keys", "create", "--name", "ann").stdout.strip()
    listed = luthier("keys", "list").stdout
    assert re.search(rf"lk_{text[3:11]}_\.\.\. +ann ", listed)
    assert text[12:] not in listed
    (key,) = json.loads(luthier("keys", "list", "-o", "json").stdout)
    assert (key["prefix"], key["name"], key["scopes"]) == (text[3:11], "ann", ["read", "write"])
    assert luthier("keys", "list", "-o", "id").stdout == f"{text[3:11]}\n"


def test_a_generated_key_is_one_and_is_stored_nowhere(luthier: Luthier, data_dir: Path) -> None:
    key = parse_key(luthier("keys", "generate").stdout.strip())
    assert key is not None
    assert not data_dir.exists()


def test_revoking_an_unknown_key_is_an_error(luthier: Luthier) -> None:
    luthier("db", "upgrade")
    result = luthier("keys", "revoke", "nothing1")
    assert result.exit_code == 1
    assert "there is no key 'nothing1'" in result.output


def test_keys_want_the_schema_first(luthier: Luthier) -> None:
    result = luthier("keys", "list")
    assert result.exit_code == 1
    assert "luthier db upgrade" in result.output


def test_the_schema_is_shown_before_and_after_its_upgrade(luthier: Luthier) -> None:
    assert luthier("db", "current").exit_code == 1
    assert luthier("db", "upgrade").exit_code == 0
    current = luthier("db", "current")
    assert current.exit_code == 0
    assert current.stdout.startswith(f"{schema.wanted_revision()} ")


def test_a_database_that_is_away_is_told_without_its_password(
    luthier: Luthier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_DATABASE_URL", "postgresql://luthier:hush@127.0.0.1:1/luthier")
    result = luthier("keys", "list")
    assert result.exit_code == 1
    assert "does not answer" in result.output
    assert "hush" not in result.output


def test_settings_show_every_variable_and_hide_secrets(
    luthier: Luthier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_SECRET_KEY", "hush")
    monkeypatch.setenv("LUTHIER_API_KEY", "hush")
    shown = luthier("settings").stdout
    assert all(f"LUTHIER_{name.upper()}" in shown for name in Settings.model_fields)
    assert "hush" not in shown
    assert shown.count("(set, hidden)") == 2


def test_a_key_is_rotated_and_the_old_one_ends_with_its_grace(luthier: Luthier) -> None:
    luthier("db", "upgrade")
    old = luthier("keys", "create", "--name", "ann", "--scope", "read").stdout.strip()
    new = luthier("keys", "rotate", old[3:11], "--grace-hours", 0).stdout.strip()
    assert (entry(old), entry(new) is not None) == (None, True)
    assert re.search(rf"lk_{new[3:11]}_\.\.\. +ann +default +read ", luthier("keys", "list").stdout)


def test_projects_are_made_limited_and_archived(luthier: Luthier) -> None:
    luthier("db", "upgrade")
    project_id = luthier("projects", "create", "--name", "support", "--running-jobs", 2).stdout.strip()
    key = luthier("keys", "create", "--name", "ann", "--project", "support").stdout.strip()
    assert '{"running_jobs": 2}' in luthier("projects", "list").stdout
    assert luthier("projects", "list", "-o", "csv").stdout.startswith("id,name,storage,quotas,")
    assert luthier("projects", "limit", project_id, "--queued-jobs", 5).exit_code == 0
    assert '{"queued_jobs": 5}' in luthier("projects", "list").stdout
    assert luthier("projects", "archive", project_id).exit_code == 2
    assert entry(key) is not None
    assert luthier("projects", "archive", project_id, "--yes").exit_code == 0
    assert entry(key) is None
    assert "no open project" in luthier("keys", "create", "--name", "x", "--project", "support").output


def test_a_secret_is_set_from_stdin_and_never_shown(luthier: Luthier, data_dir: Path) -> None:
    luthier("db", "upgrade")
    done = CliRunner().invoke(app, ["secrets", "set", "hf_token"], input="hf_CanaryCanary\n")
    shown = luthier("secrets", "list").stdout
    assert (done.exit_code, "hf_token" in shown) == (0, True)
    assert "Canary" not in done.output + shown
    assert luthier("secrets", "list", "-o", "id").stdout == "hf_token\n"
    assert b"Canary" not in b"".join(path.read_bytes() for path in data_dir.glob("luthier.db*"))
    assert luthier("secrets", "delete", "hf_token").exit_code == 0
    assert "No such secret" in luthier("secrets", "delete", "hf_token").output


def test_what_is_done_on_the_command_line_is_in_the_audit_log(luthier: Luthier) -> None:
    luthier("db", "upgrade")
    luthier("keys", "create", "--name", "ann")
    installation = open_installation(Settings())
    with installation.database.reading() as session:
        line = session.query(AuditLog).filter(AuditLog.type == "api_key.created").one()
    installation.database.close()
    assert (line.actor_name, line.address) == (getpass.getuser(), "command line")
