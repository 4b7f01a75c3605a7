"""`luthier doctor`: what it finds on a good machine, and what it says about a bad one."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from luthier import schema
from luthier.cli.doctor import host, software
from luthier.database import Database
from luthier.service import backups
from luthier.settings import Settings
from luthier.storage import opening
from luthier.storage.opening import make_client
from tests.s3 import S3Server

Luthier = Callable[..., Any]


def findings(result: Any) -> dict[str, dict[str, Any]]:
    return {finding["check"]: finding for finding in json.loads(result.stdout)}


def test_a_fresh_machine_is_well_and_stays_untouched(luthier: Luthier, data_dir: Path) -> None:
    result = luthier("doctor", "--json")
    found = findings(result)
    assert result.exit_code == 0
    failed = [finding for finding in found.values() if finding["status"] == "failed"]
    assert failed == []
    assert "add-sample" in found["models"]["remedy"]
    assert not data_dir.exists()


def test_a_broken_installation_exits_1_and_says_what_to_do(
    luthier: Luthier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_LEASE_SECONDS", "10")
    monkeypatch.setenv("LUTHIER_DATABASE_URL", "postgresql://luthier:hush@127.0.0.1:1/luthier")
    monkeypatch.setenv("LUTHIER_REDIS_URL", "redis://:hush@127.0.0.1:1/0")
    monkeypatch.setenv("LUTHIER_GPUS", "GPU-that-is-not-here")
    result = luthier("doctor")
    assert result.exit_code == 1
    for check in ("settings", "database", "broker", "devices"):
        assert f"FAILED  {check}: " in result.output
    assert "correct LUTHIER_GPUS" in result.output
    assert "hush" not in result.output


def test_a_good_broker_passes_and_one_that_drops_messages_does_not(
    luthier: Luthier, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis

    monkeypatch.setenv("LUTHIER_REDIS_URL", redis_url)
    assert findings(luthier("doctor", "--json"))["broker"]["status"] == "ok"
    with redis.Redis.from_url(redis_url) as broker:
        broker.config_set("maxmemory-policy", "allkeys-lru")
        finding = findings(luthier("doctor", "--json"))["broker"]
        broker.config_set("maxmemory-policy", "noeviction")
    assert "noeviction" in finding["remedy"]


@pytest.mark.parametrize(
    ("kind", "status"), [("nfs4", "failed"), ("fuse.sshfs", "failed"), ("overlay", "warning"), ("ext4", "ok")]
)
def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, kind: str, status: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"1 0 0:1 / / rw - ext4 /dev/root rw\n2 1 0:2 / {tmp_path} rw - {kind} server:/share rw\n"
    )
    settings = Settings(data_dir=tmp_path / "data")
    found = {finding.check: finding for finding in host.check_folders(settings, mounts)}
    assert found["file system"].status == status


def test_a_package_that_shadows_ours_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = {finding.check: finding for finding in software.check_packages()}
    assert found["child packages"].status == "failed"
    assert str(tmp_path) in found["child packages"].message


def test_an_old_schema_is_told_with_the_way_out(luthier: Luthier) -> None:
    luthier("db", "upgrade")
    found = findings(luthier("doctor", "--json"))
    assert found["database"]["status"] == "ok"
    assert f"schema {schema.wanted_revision()}" in found["database"]["message"]


def test_a_good_bucket_passes_and_one_that_is_not_there_is_named(
    luthier: Luthier, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment("doctor").items():
        monkeypatch.setenv(name, value)
    found = findings(luthier("doctor", "--json"))
    assert found["bucket"]["status"] == "ok"
    assert "storage folder" not in found
    monkeypatch.setenv("LUTHIER_S3_BUCKET", "not-there")
    finding = findings(luthier("doctor", "--json"))["bucket"]
    assert (finding["status"], "LUTHIER_S3_BUCKET" in finding["message"]) == ("failed", True)


def test_a_bucket_that_overwrites_is_refused(
    luthier: Luthier, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment("doctor").items():
        monkeypatch.setenv(name, value)

    def make_careless_client(settings: Settings) -> Any:
        client = make_client(settings)
        client.meta.events.register("before-call.s3.PutObject", _without_condition)
        return client

    monkeypatch.setattr(opening, "make_client", make_careless_client)
    finding = findings(luthier("doctor", "--json"))["bucket"]
    assert (finding["status"], "If-None-Match" in finding["message"]) == ("failed", True)


def _without_condition(params: dict[str, Any], **_: Any) -> None:
    params["headers"].pop("If-None-Match", None)


def test_what_keeps_data_safe_is_reported(luthier: Luthier, data_dir: Path, tmp_path: Path) -> None:
    luthier("db", "upgrade")
    found = findings(luthier("doctor", "--json"))
    assert found["database file"]["status"] == "ok"
    assert found["reserve"]["status"] == "ok"
    assert "luthier backup" in found["backup"]["remedy"]
    luthier("backup", tmp_path / "backup")
    (data_dir / "luthier.db.reserve").touch()
    found = findings(luthier("doctor", "--json"))
    assert found["backup"]["status"] == "ok"
    assert str(tmp_path / "backup") in found["backup"]["message"]
    assert found["reserve"]["status"] == "failed"


def test_an_old_backup_is_warned_of(luthier: Luthier, data_dir: Path) -> None:
    luthier("db", "upgrade")
    database = Database(Settings().database)
    with database.transaction() as session:
        backups.record(session, made_at=datetime(2020, 1, 1, tzinfo=UTC), folder="/backups/one")
    database.close()
    found = findings(luthier("doctor", "--json"))
    assert (found["backup"]["status"], "/backups/one" in found["backup"]["message"]) == ("warning", True)
