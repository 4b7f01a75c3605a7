"""Fills the disk of the given folder and sees the service through it; says `survived` at the end.

Run on a file system of some megabytes that is nobody else's.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.orm import Session

from luthier import disk, schema
from luthier.artifacts import seal
from luthier.database import clock
from luthier.installation import open_installation
from luthier.service import access, endings, runs
from luthier.settings import MIB, Settings
from luthier.status import BlockedOn, State
from luthier.tables import Job
from tests.factories import NOW, claim, create_prepared_job
from worker.disk_watch import DiskWatch
from worker.seat import Seat

folder = Path(sys.argv[1])
settings = Settings(
    data_dir=folder / "data", reserve_bytes=MIB, low_disk_bytes=MIB, enough_disk_bytes=3 * MIB
)
installation = open_installation(settings)
database, storage = installation.database, installation.storage
schema.upgrade(database)
assert database.restore_reserve()
seat = Seat(installation, "a")
assert seat.keep(0.0)
watch = DiskWatch(installation, seat)

source = folder / "step-000010"
source.mkdir()
(source / "adapter.safetensors").write_bytes(b"weights")
seal(source, {"step": 10})
key = "ftjob-1/e0001/checkpoints/step-000010"
storage.put_folder(source, key)
with database.transaction() as session:
    access.ensure_project(session, now=NOW)
    create_prepared_job(session, model="tiny")
    run = claim(session)
    assert run is not None
    runs.record_checkpoint(
        session,
        run.lease,
        step=10,
        storage_key=key,
        manifest_sha256="0" * 64,
        size_bytes=7,
        metrics={},
        now=NOW,
    )

filler = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
try:
    while os.write(filler, bytes(4096)):
        pass
except OSError as error:
    print(error)
os.close(filler)

# A checkpoint that finds no room leaves the one before it whole, and nothing under its key.
(source / "optimizer.safetensors").touch()
try:
    storage.put_folder(source, "ftjob-1/e0001/checkpoints/step-000020")
    raise AssertionError("there was room on a full disk")
except OSError as error:
    print(error)
assert storage.verify(key).size_bytes == 7
assert sorted(file.key for file in storage.list_files()) == [
    f"{key}/MANIFEST.json",
    f"{key}/adapter.safetensors",
]


def block(session: Session) -> None:
    assert run is not None
    a_while_ago = clock(session) - timedelta(minutes=1)
    endings.block_run(
        session, run.lease, blocked_on=BlockedOn.DISK, message="disk full", exit_code=73, now=a_while_ago
    )


database.run(block)
assert not disk.has_room(installation)
database.run(lambda _: watch.look())
with database.reading() as session:
    assert session.get_one(Job, "ftjob-1").state == State.BLOCKED

(folder / "filler").unlink()
watch.look()
assert disk.has_room(installation)
assert not database.reserve_is_spent
with database.reading() as session:
    assert session.get_one(Job, "ftjob-1").state == State.QUEUED
    assert session.scalar(text("PRAGMA integrity_check")) == "ok"
print("survived")
