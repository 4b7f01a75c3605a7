"""Keys: their form, their storage, and who gets in."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from luthier import schema
from luthier.database import Database
from luthier.errors import LuthierError
from luthier.installation import open_installation, prepare
from luthier.keys import Key, new_key, parse_key
from luthier.service import access, api_keys, projects
from luthier.service.access import Grant
from luthier.settings import Settings
from luthier.tables import ApiKey, Project
from tests.factories import NOW, create_project
from tests.waiting import wait_for

SECRET = b"installation"


def _record(session: Session, project: Project, key: Key, *, key_id: str = "key-1", **fields: Any) -> ApiKey:
    return access.record_key(
        session, project, key, key_id=key_id, name="n", installation_key=SECRET, now=NOW, **fields
    )


def _enter(session: Session, presented: str | None, **fields: Any) -> Grant:
    return access.authenticate(session, presented, **{"installation_key": SECRET, "now": NOW} | fields)


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
        caller = _enter(session, key.text).caller
        assert (caller.project_id, caller.organization_id) == (project.id, project.organization_id)
        for presented in (None, "", "lk_", new_key().text):
            with pytest.raises(LuthierError, match="API key"):
                _enter(session, presented)
        with pytest.raises(LuthierError, match="API key"):
            _enter(session, key.text, installation_key=b"another installation")


def test_a_revoked_key_stays_out(database: Database) -> None:
    key = new_key()
    with database.transaction() as session:
        project = access.ensure_project(session, now=NOW)
        row = _record(session, project, key)
        row.revoked_at = NOW
        session.flush()
        with pytest.raises(LuthierError, match="API key"):
            _enter(session, key.text)


def test_a_key_opens_until_it_expires(database: Database) -> None:
    key, end = new_key(), NOW + timedelta(days=1)
    with database.transaction() as session:
        _record(session, access.ensure_project(session, now=NOW), key, expires_at=end)
        assert _enter(session, key.text, now=end - timedelta(seconds=1))
        with pytest.raises(LuthierError, match="API key"):
            _enter(session, key.text, now=end)


def test_a_rotated_key_is_good_for_its_grace_and_the_new_one_has_its_rights(database: Database) -> None:
    old, new, soon = new_key(), new_key(), NOW + timedelta(hours=2)
    with database.transaction() as session:
        project = access.ensure_project(session, now=NOW)
        row = _record(session, project, old, scopes=["read"], expires_at=NOW + timedelta(days=9))
        rotated = {"grace": timedelta(hours=2), "installation_key": SECRET, "now": NOW}
        made = api_keys.rotate(session, row, new, key_id="key-2", **rotated)
        before = [_enter(session, key.text, now=soon - timedelta(seconds=1)).scopes for key in (old, new)]
        assert before == [{"read"}, {"read"}]
        assert made.expires_at == NOW + timedelta(days=9)
        assert _enter(session, new.text, now=soon)
        with pytest.raises(LuthierError, match="API key"):
            _enter(session, old.text, now=soon)
        with pytest.raises(LuthierError, match="rotated before"):
            api_keys.rotate(session, row, new_key(), key_id="key-3", **rotated)


def test_a_header_may_name_the_keys_own_project_and_an_admins_may_name_another(database: Database) -> None:
    plain, admin = new_key(), new_key()
    with database.transaction() as session:
        project = access.ensure_project(session, now=NOW)
        create_project(session, "proj-b")
        _record(session, project, plain, scopes=access.PROJECT_SCOPES)
        _record(session, project, admin, key_id="key-2")
        named = {"organization": project.organization_id, "project": project.id}
        assert _enter(session, plain.text, **named).caller.project_id == project.id
        assert _enter(session, admin.text, project="proj-b").caller.project_id == "proj-b"
        for key, wrong in [
            (plain, {"project": "proj-b"}), (admin, {"project": "proj-?"}),
            (admin, {"organization": "org-?"}),
        ]:  # fmt: skip
            with pytest.raises(LuthierError) as caught:
                _enter(session, key.text, **wrong)
            assert caught.value.code == f"mismatched_{next(iter(wrong))}"


def test_an_archived_project_lets_admins_read_and_nobody_else_in(database: Database) -> None:
    plain, admin = new_key(), new_key()
    with database.transaction() as session:
        _record(session, access.ensure_project(session, now=NOW), admin, key_id="key-2")
        project = create_project(session, "proj-b")
        _record(session, project, plain, scopes=access.PROJECT_SCOPES)
        projects.archive(session, project, now=NOW)
        with pytest.raises(LuthierError, match="archived"):
            _enter(session, plain.text)
        grant = _enter(session, admin.text, project="proj-b")
        grant.require("read")
        with pytest.raises(LuthierError, match="archived"):
            grant.require("write")


def test_the_home_of_an_admins_key_is_not_archived(database: Database) -> None:
    with database.transaction() as session:
        project = access.ensure_project(session, now=NOW)
        _record(session, project, new_key())
        with pytest.raises(LuthierError, match="home of admin key key-1"):
            projects.archive(session, project, now=NOW)


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
    # Before it is closed, what was written lies in the log beside the file.
    bytes_of_all = b"".join(path.read_bytes() for path in tmp_path.glob("luthier.db*"))
    assert stored.prefix in first.first_key
    assert (stored.prefix.encode() in bytes_of_all, first.first_key.encode() in bytes_of_all) == (True, False)
    installation.database.close()


def test_a_process_that_starts_waits_for_another_that_prepares(postgres_url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=postgres_url)
    one, other = (open_installation(settings) for _ in range(2))
    is_waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with closing(one.database), closing(other.database), ThreadPoolExecutor(1) as pool:
        with one.database.transaction() as session:
            schema.lock(session.connection())
            access.ensure_project(session, now=NOW)
            starting = pool.submit(prepare, other)
            wait_for(lambda: session.scalar(is_waiting))
        assert starting.result().first_key is not None


def test_a_malformed_bootstrap_key_is_refused(tmp_path: Path) -> None:
    installation = open_installation(Settings(data_dir=tmp_path, bootstrap_key="secret"))
    with pytest.raises(LuthierError, match="LUTHIER_BOOTSTRAP_KEY"):
        prepare(installation)
    installation.database.close()


def test_the_installation_key_is_drawn_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    keys = {open_installation(Settings(data_dir=tmp_path)).installation_key for _ in range(2)}
    assert len(keys) == 1
    assert (tmp_path / "installation.key").stat().st_mode & 0o777 == 0o600
