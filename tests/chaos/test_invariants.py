"""Each invariant of the chaos runs finds a state that was broken on purpose, and none in a good one."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from luthier.artifacts import MANIFEST_NAME, seal, sha256_of
from luthier.database import Database
from luthier.service.transitions import note, ring
from luthier.status import State
from luthier.tables import Artifact, Checkpoint, Job, JobEvent, Outbox, Project, Run
from tests.chaos import invariants
from tests.chaos.invariants import Scene
from tests.factories import NOW, create_prepared_job, create_tuned_job

ARTIFACT, CHECKPOINT = "ftjob-1/e0001/artifacts/all_results.json", "ftjob-1/e0001/checkpoints/step-000002"
SECRET = "hf_canary"
Break = Callable[[Session, Path], object]


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    """SQLite: what is broken here is broken on any database."""
    database = Database(sqlite_url)
    yield database
    database.close()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A storage folder with a checkpoint and an artifact."""
    storage = tmp_path / "installation" / "storage"
    (storage / CHECKPOINT).mkdir(parents=True)
    (storage / CHECKPOINT / "weights.bin").write_bytes(b"weights")
    seal(storage / CHECKPOINT, {"step": 2})
    (storage / ARTIFACT).parent.mkdir(parents=True)
    (storage / ARTIFACT).write_text('{"steps": [1, 2, 3]}')
    return storage


@pytest.fixture
def scene(database: Database, storage: Path) -> Scene:
    """A job that succeeded with a checkpoint and an artifact, and one that waits."""
    with database.transaction() as session:
        job = create_tuned_job(session)
        create_prepared_job(session, "ftjob-2")
        session.add(_artifact(job, storage))
        session.add(_checkpoint(job, storage))
        session.execute(update(Outbox).values(sent_at=NOW))
    folder = storage.parent
    accepted = {"ftjob-1": [State.SUCCEEDED]}
    return Scene(database, storage, folder, accepted, secrets=(SECRET,), searched=(folder,))


def _artifact(job: Job, storage: Path) -> Artifact:
    return Artifact(
        job_id=job.id, name="all_results.json", project_id=job.project_id, epoch=1, kind="results",
        size_bytes=20, sha256=sha256_of(storage / ARTIFACT), storage_key=ARTIFACT, created_at=NOW,
    )  # fmt: skip


def _checkpoint(job: Job, storage: Path) -> Checkpoint:
    return Checkpoint(
        id="ftckpt_1", project_id=job.project_id, job_id=job.id, epoch=1, number=3, step=2,
        storage_key=CHECKPOINT, manifest_sha256=sha256_of(storage / CHECKPOINT / MANIFEST_NAME), size_bytes=7,
        metrics={}, created_at=NOW,
    )  # fmt: skip


def _job(session: Session, job_id: str = "ftjob-1") -> Job:
    return session.get_one(Job, job_id)


def _fail(session: Session, _: Path) -> None:
    session.execute(update(Job).where(Job.id == "ftjob-1").values(state=State.FAILED))


def _submit_twice(session: Session, _: Path) -> None:
    session.execute(update(Job).where(Job.kind == "train").values(user_metadata={"number": "1"}))


def _succeed_in_two_runs(session: Session, _: Path) -> None:
    run = session.get_one(Run, ("ftjob-1", 1))
    copied = {column.name: getattr(run, column.name) for column in Run.__table__.columns}
    session.add(Run(**copied | {"epoch": 2, "number": 2}))


def _publish_by_a_stale_owner(session: Session, _: Path) -> None:
    session.execute(update(Artifact).values(epoch=7))


def _tear_the_artifact(_: Session, storage: Path) -> None:
    (storage / ARTIFACT).write_text("half")


def _tear_the_checkpoint(_: Session, storage: Path) -> None:
    (storage / CHECKPOINT / "weights.bin").write_bytes(b"weig")


def _replace_the_checkpoint(_: Session, storage: Path) -> None:
    seal(storage / CHECKPOINT, {"step": 3})


def _leave_a_lease(session: Session, _: Path) -> None:
    session.execute(update(Job).where(Job.id == "ftjob-2").values(lease_expires_at=NOW))


def _lease_for_ever(session: Session, _: Path) -> None:
    values = {"state": State.RUNNING, "lease_owner": "host/x#y", "lease_expires_at": None}
    session.execute(update(Job).where(Job.id == "ftjob-2").values(**values))


def _skip_a_run(session: Session, _: Path) -> None:
    session.execute(update(Run).where(Run.job_id == "ftjob-1").values(number=2))


def _go_back_an_epoch(session: Session, _: Path) -> None:
    session.execute(update(JobEvent).where(JobEvent.kind == "job_created").values(epoch=9))


def _begin_before(session: Session, storage: Path) -> None:
    _succeed_in_two_runs(session, storage)
    session.flush()
    earlier = NOW - timedelta(seconds=9)
    session.execute(update(Run).where(Run.epoch == 2).values(started_at=earlier, outcome="lost"))
    session.execute(update(Job).where(Job.id == "ftjob-1").values(lease_epoch=2))


def _tell_more(session: Session, _: Path) -> None:
    note(session, _job(session), "checkpoint_created", "Too late", now=NOW)


def _tell_of_no_end(session: Session, _: Path) -> None:
    session.execute(update(JobEvent).where(JobEvent.kind == "job_succeeded").values(kind="job_requeued"))


def _promise(session: Session, _: Path) -> None:
    ring(session, _job(session, "ftjob-2"), now=NOW)


def _miscount(session: Session, _: Path) -> None:
    session.execute(update(Project).values(storage_bytes=Project.storage_bytes + 1))


def _write_the_secret(_: Session, storage: Path) -> None:
    # Over the border of what is read at once.
    (storage / "log.txt").write_bytes(b"x" * ((1 << 20) - 4) + SECRET.encode())


def _do_a_step_twice(_: Session, storage: Path) -> None:
    (storage / ARTIFACT).write_text('{"steps": [1, 2, 2, 3]}')


BROKEN: list[tuple[Callable[[Scene], list[str]], Break]] = [
    (invariants.accepted_jobs_have_ended_once, _fail),
    (invariants.accepted_jobs_have_ended_once, _submit_twice),
    (invariants.jobs_succeed_at_most_once, _succeed_in_two_runs),
    (invariants.jobs_succeed_at_most_once, _publish_by_a_stale_owner),
    (invariants.visible_files_are_whole, _tear_the_artifact),
    (invariants.visible_files_are_whole, _tear_the_checkpoint),
    (invariants.visible_files_are_whole, _replace_the_checkpoint),
    (invariants.leases_stand_with_work_alone, _leave_a_lease),
    (invariants.leases_stand_with_work_alone, _lease_for_ever),
    (invariants.epochs_grow, _skip_a_run),
    (invariants.epochs_grow, _go_back_an_epoch),
    (invariants.epochs_grow, _begin_before),
    (invariants.nothing_follows_the_end, _tell_more),
    (invariants.nothing_follows_the_end, _tell_of_no_end),
    (invariants.outbox_is_empty, _promise),
    (invariants.storage_is_counted, _miscount),
    (invariants.no_secret_is_written, _write_the_secret),
    (invariants.steps_were_done_once, _do_a_step_twice),
]


def test_a_good_state_breaks_nothing(scene: Scene) -> None:
    assert invariants.check_all(scene) == []


@pytest.mark.parametrize(("check", "break_it"), BROKEN, ids=[one[1].__name__.strip("_") for one in BROKEN])
def test_a_broken_state_is_found(
    scene: Scene, storage: Path, check: Callable[[Scene], list[str]], break_it: Break
) -> None:
    with scene.database.transaction() as session:
        break_it(session, storage)
    assert check(scene) != []


def test_an_accepted_job_that_is_gone_is_found(scene: Scene) -> None:
    gone = replace(scene, accepted={"ftjob-9": [State.SUCCEEDED]})
    assert invariants.accepted_jobs_have_ended_once(gone) == ["ftjob-9 was accepted and is gone"]


def test_a_process_that_is_left_is_found(scene: Scene) -> None:
    environment = os.environ | {"HF_HOME": f"{scene.folder}/hf"}
    command = [sys.executable, "-S", "-c", "import time; print('x', flush=True); time.sleep(60)"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = invariants.no_process_is_left(scene)
        process.kill()
    assert [text.startswith(f"process {process.pid} is left") for text in found] == [True]


def test_a_lock_that_is_held_is_found(scene: Scene) -> None:
    path = scene.folder / "host" / "locks" / "train-cpu.lock"
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert invariants.no_process_is_left(scene) == ["host/locks/train-cpu.lock is locked"]


def test_every_invariant_has_a_state_that_breaks_it() -> None:
    found = {check for check, _ in BROKEN} | {invariants.no_process_is_left}
    assert set(invariants.INVARIANTS) - found == set()
