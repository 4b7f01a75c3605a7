"""Keys, settings and the schema from the command line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier import schema
from luthier.errors import LuthierError
from luthier.installation import open_installation
from luthier.keys import parse_key
from luthier.service import access
from luthier.settings import Settings

Luthier = Callable[..., Any]


def entry(text: str) -> str | None:
    """The key's id, when it opens the installation of the settings."""
    installation = open_installation(Settings())
    try:
        with installation.database.reading() as session:
            return access.authenticate(
                session, text, installation_key=installation.installation_key
            ).api_key_id
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
