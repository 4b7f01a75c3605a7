"""A base model that is not on this machine is pulled at the first use of it, or the job says why not."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from luthier.installation import Installation
from luthier.models import find_model
from luthier.settings import Settings
from luthier.status import Queue, State
from luthier.tables import Job, JobEvent
from tests.factories import NOW, create_job
from tests.hub import WEIGHTS, Hub, model_files, running_hub
from worker.agent import Agent
from worker.dispatcher import Dispatcher

MODEL = "Qwen/Tiny"
# Of the fetcher, at one thing.
_TRIES = 6


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local server that speaks the hub's protocol and has one model."""
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """The usual settings with a model folder that is empty."""
    return settings.model_copy(update={"model_dir": tmp_path / "models"})


def _submit(installation: Installation, job_id: str = "ftjob-1") -> str:
    with installation.database.transaction() as session:
        return create_job(session, job_id, model=MODEL).id


def test_the_first_job_of_a_model_pulls_it(
    installation: Installation, make_agent: Callable[..., Agent], hub: Hub, job_of: Callable[[str], Job]
) -> None:
    hub.models[MODEL] = model_files()
    job_id = _submit(installation)
    make_agent(Queue.CPU, "done").drain()
    model = find_model(installation.settings.models, MODEL)
    assert model is not None
    assert (model.revision, job_of(job_id).prepared_at is not None) == (hub.commit(MODEL), True)


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_refuses_for_now_has_the_job_wait_and_go_on_by_itself(
    installation: Installation,
    make_agent: Callable[..., Agent],
    hub: Hub,
    job_of: Callable[[str], Job],
    status: int,
) -> None:
    hub.models[MODEL] = model_files()
    hub.statuses += [status] * _TRIES
    job_id = _submit(installation)
    make_agent(Queue.CPU, "done").drain()
    job = job_of(job_id)
    assert (job.state, job.blocked_on, job.user_failures) == (State.BLOCKED, "model", 0)
    with installation.database.reading() as session:
        told = session.query(JobEvent).filter_by(job_id=job_id, kind="job_blocked").one()
    assert f"base model {MODEL} cannot be had now" in told.message
    dispatcher = Dispatcher(installation, None, "host#1")
    dispatcher.tick(time.monotonic())
    assert job_of(job_id).state == State.BLOCKED
    with installation.database.transaction() as session:
        session.execute(update(Job).where(Job.blocked_on == "model").values(not_before=NOW))
    dispatcher.tick(time.monotonic())
    make_agent(Queue.CPU, "done").drain()
    assert (job_of(job_id).state, job_of(job_id).prepared_at is not None) == (State.QUEUED, True)


def test_a_model_that_the_host_has_no_room_for_has_the_job_wait(
    installation: Installation, make_agent: Callable[..., Agent], hub: Hub, job_of: Callable[[str], Job]
) -> None:
    hub.models[MODEL] = model_files()
    hub.claimed[WEIGHTS] = 1 << 60
    job_id = _submit(installation)
    make_agent(Queue.CPU, "done").drain()
    assert (job_of(job_id).state, job_of(job_id).blocked_on) == (State.BLOCKED, "model")


def test_a_model_that_has_come_frees_all_jobs_that_wait_for_it(
    installation: Installation, make_agent: Callable[..., Agent], hub: Hub, job_of: Callable[[str], Job]
) -> None:
    hub.models[MODEL] = model_files()
    hub.statuses += [503] * _TRIES
    first = _submit(installation)
    make_agent(Queue.CPU, "done").drain()
    second = _submit(installation, "ftjob-2")
    make_agent(Queue.CPU, "done").drain()
    assert [job_of(job_id).prepared_at is not None for job_id in (first, second)] == [True, True]


def test_a_model_that_the_hub_does_not_have_fails_the_job_with_advice(
    installation: Installation, make_agent: Callable[..., Agent], hub: Hub, job_of: Callable[[str], Job]
) -> None:
    job_id = _submit(installation)
    make_agent(Queue.CPU, "done").drain()
    job = job_of(job_id)
    assert (job.state, job.error_code) == (State.FAILED, "model_not_found")
    assert MODEL in (job.error_message or "")
