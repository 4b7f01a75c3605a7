"""Jobs that are tried again, with real agents and scripted children."""

from collections.abc import Callable

from luthier import repository
from luthier.database import clock
from luthier.installation import Installation
from luthier.service import control
from luthier.status import Queue, State
from luthier.tables import File, Job
from tests.factories import CALLER, create_job
from worker.agent import Agent

MakeAgent = Callable[..., Agent]
JobOf = Callable[[str], Job]


def _retry(installation: Installation, job_id: str) -> str:
    with installation.database.transaction() as session:
        names = {"job_id": "ftjob-again", "work_id": "work-again"}
        job = session.get_one(Job, job_id)
        return control.retry(session, CALLER, job, from_="checkpoint", seed=1, now=clock(session), **names).id


def test_a_retry_goes_on_from_the_checkpoint_of_the_job_that_failed(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "crash").drain()
    assert job_of(prepared_job).state == State.FAILED
    again = _retry(installation, prepared_job)
    make_agent(Queue.CPU, "done").drain()
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.reading() as session:
        found = repository.list_runs(session, again)
    assert job_of(again).state == State.SUCCEEDED
    assert [(run.outcome, run.from_step) for run in found] == [("succeeded", 2)]


def test_a_retry_whose_checkpoint_is_damaged_starts_anew(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "crash").drain()
    again = _retry(installation, prepared_job)
    with installation.database.reading() as session:
        for checkpoint in repository.all_checkpoints(session, prepared_job):
            path = installation.storage.path(checkpoint.storage_key) / "adapter.txt"
            path.write_text("another", encoding="utf-8")
    make_agent(Queue.CPU, "done").drain()
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.reading() as session:
        found = repository.list_runs(session, again)
    assert [(run.outcome, run.from_step) for run in found] == [("succeeded", 0)]


def test_a_retry_of_a_job_on_a_tuned_model_starts_from_the_adapter_of_that_model(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.transaction() as session:
        second = create_job(session, "ftjob-2", model=job_of(prepared_job).fine_tuned_model)
        control.request_cancel(session, second, now=clock(session))
    again = _retry(installation, "ftjob-2")
    make_agent(Queue.CPU, "done").drain()
    make_agent(Queue.TRAIN, "done").drain()
    job = job_of(again)
    assert (job.state, job.parent_job_id) == (State.SUCCEEDED, "ftjob-2")
    assert prepared_job in (job.result or {})["adapter_from"]


def test_a_full_disk_blocks_a_job_and_does_not_fail_it(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "disk full").drain()
    job = job_of(prepared_job)
    assert (job.state, job.blocked_on, job.error_code) == (State.BLOCKED, "disk", None)
    with installation.database.reading() as session:
        assert session.get_one(File, "file-train").status == "processed"
        assert repository.list_runs(session, job.id)[0].reason == "The disk of the worker is full"
