"""Keys: their form, their storage, and who gets in."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.errors import LuthierError
from luthier.installation import open_installation, prepare
from luthier.keys import Key, new_key, parse_key
from luthier.service import access
from luthier.settings import Settings
from luthier.tables import ApiKey, Project
from tests.factories import NOW

SECRET = b"installation"


def _record(session: Session, project: Project, key: Key) -> ApiKey:
    return access.record_key(
        session, project, key, key_id="key-1", name="n", installation_key=SECRET, now=NOW
    )


def test_a_key_has_the_form_that_scanners_look_for() -> None:
    key = new_key()
    assert parse_key(key.text) == key
    assert (len(key.text), key.text[:3], key.text[3:11]) == (61, "lk_", key.prefix)


def test_a_key_with_a_typing_error_is_known_without_a_look_up() -> None:
    text = new_key().text
    wrong = text[:20] + ("a" if text[20] != "a" else "b") + text[21:]
    assert parse_key(wrong) is None


def test_the_key_that_was_recorded_gets_in_and_no_other(database: Database) -> None:
    key = new_key()
    with database.transaction() as session:
        project = access.ensure_project(session, now=NOW)
        _record(session, project, key)
        caller = access.authenticate(session, key.text, installation_key=SECRET)
        assert (caller.project_id, caller.organization_id) == (project.id, project.organization_id)
        for presented in (None, "", "lk_", new_key().text):
            with pytest.raises(LuthierError, match="API key"):
                access.authenticate(session, presented, installation_key=SECRET)
        with pytest.raises(LuthierError, match="API key"):
            access.authenticate(session, key.text, installation_key=b"another installation")


def test_a_revoked_key_stays_out(database: Database) -> None:
    key = new_key()
    with database.transaction() as session:
        project = access.ensure_project(session, now=NOW)
        row = _record(session, project, key)
        row.revoked_at = NOW
        session.flush()
        with pytest.raises(LuthierError, match="API key"):
            access.authenticate(session, key.text, installation_key=SECRET)


def test_the_last_use_is_noted_to_the_minute(database: Database) -> None:
    with database.transaction() as session:
        project = access.ensure_project(session, now=NOW)
        row = _record(session, project, new_key())
        for seconds in (0, 30, 90):
            access.record_use(session, "key-1", now=NOW + timedelta(seconds=seconds))
        assert row.last_used_at == NOW + timedelta(seconds=90)


def test_the_first_start_makes_one_key_and_stores_only_its_hash(tmp_path: Path) -> None:
    installation = open_installation(Settings(data_dir=tmp_path))
    first, second = prepare(installation), prepare(installation)
    assert first.first_key is not None
    assert (first.upgraded, second) == (True, second.__class__(upgraded=False, first_key=None))
    with installation.database.reading() as session:
        stored = session.scalars(select(ApiKey)).one()
    assert first.first_key not in (tmp_path / "luthier.db").read_bytes().decode("latin-1")
    assert stored.prefix in first.first_key
    installation.database.close()


def test_a_malformed_bootstrap_key_is_refused(tmp_path: Path) -> None:
    installation = open_installation(Settings(data_dir=tmp_path, bootstrap_key="secret"))
    with pytest.raises(LuthierError, match="LUTHIER_BOOTSTRAP_KEY"):
        prepare(installation)
    installation.database.close()


def test_the_installation_key_is_drawn_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    keys = {open_installation(Settings(data_dir=tmp_path)).installation_key for _ in range(2)}
    assert len(keys) == 1
    assert (tmp_path / "installation.key").stat().st_mode & 0o777 == 0o600
